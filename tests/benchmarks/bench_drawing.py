"""Drawing and encoding against the encoder alone, and against drawing every token anew in each frame.

python tests/benchmarks/bench_drawing.py [--frames 240] [--rounds 3] [--long 4000]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from PIL import Image, ImageDraw, ImageFont
from records import make_record

from attention_heatmap.dataset import load_sample
from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions
from attention_heatmap.drawing.video import write_video
from attention_heatmap.record import AttentionRecord

DEMO = Path(__file__).resolve().parents[2] / "demo"

PLAIN_SIZE = (3750, 2500)  # pixels of the plain way's frames
SIZE = (728, 504)  # pixels of the picture
WORDS = [" the", " route", " begins", " at", " red", " circle", ",", " turns", " at", " (", "1", "4", "0", ")", ".\n"]


def long_record(response_length: int) -> AttentionRecord:
    """200 words of problem, a picture of 18 x 26 cells, and a response."""
    rng = np.random.default_rng(0)
    problem = ["Based", *(WORDS[n] for n in rng.integers(0, len(WORDS), 200))]
    response = [WORDS[n] for n in rng.integers(0, len(WORDS), response_length)]
    return make_record(problem, response, grids=[(18, 26)], size=SIZE, layers=(0,))


def demo_picture() -> Image.Image:
    return load_sample(DEMO / "dataset.json", DEMO / "images")[1][0].resize(SIZE)


def renderer_of(record: AttentionRecord) -> FrameRenderer:
    return FrameRenderer(record, [demo_picture()], 0, "Based", DrawingOptions())


def plain_frame(record: AttentionRecord, step: int, image: Image.Image) -> np.ndarray:
    """What a first version does: each visible token and each cell by a call of its own, RGBA composites."""
    canvas = Image.new("RGB", PLAIN_SIZE, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(40)
    row = record.weights[step, 0]
    x, y, top = 40, 40, row.max()
    for position in range(record.prompt_length - 201, record.prompt_length + step + 1):
        text, level = record.tokens[position].strip("\n"), int(255 * row[position] / top)
        width = draw.textlength(text, font=font)
        if x + width > PLAIN_SIZE[0] // 2 - 40:
            x, y = 40, y + 52
        draw.text((x, y), text, font=font, fill=(255 - level, level, 0))
        x += width
    side = PLAIN_SIZE[0] // 2 - 80
    picture_part = image.resize((side, side * image.height // image.width)).convert("RGBA")
    overlay = Image.new("RGBA", picture_part.size)
    cells = ImageDraw.Draw(overlay)
    scale = side / image.width
    for position, box in zip(record.images[0].positions, record.images[0].boxes):
        level = int(255 * row[position] / top)
        cells.rectangle([float(edge) * scale for edge in box], fill=(255 - level, level, 0, 120), outline="black")
    canvas.paste(Image.alpha_composite(picture_part, overlay).convert("RGB"), (PLAIN_SIZE[0] // 2 + 40, 40))
    return np.asarray(canvas)


def plain_video(frames: Iterable[np.ndarray], path: Path) -> None:
    """What a first version does: imageio's defaults."""
    with imageio.get_writer(path, fps=2, macro_block_size=2, ffmpeg_log_level="error") as writer:
        for frame in frames:
            writer.append_data(frame)


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(frames: int, rounds: int) -> dict[str, float]:
    """Medians over alternating rounds, in seconds a frame."""
    record = long_record(frames)
    renderer, image = renderer_of(record), demo_picture()
    ready = [renderer.draw(step) for step in range(frames)]
    plain_steps = range(0, frames, max(frames // 8, 1))
    times: dict[str, list[float]] = {
        "encoder alone": [],
        "drawing and encoding": [],
        "drawing alone": [],
        "plain way": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "out.mp4"
        for _ in range(rounds):
            times["encoder alone"].append(timed(lambda: write_video(ready, video)) / frames)
            whole = timed(lambda: write_video(map(renderer_of(record).draw, range(frames)), video))
            times["drawing and encoding"].append(whole / frames)
            times["drawing alone"].append(timed(lambda: [renderer.draw(step) for step in range(frames)]) / frames)
            plain = (plain_frame(record, step, image) for step in plain_steps)
            times["plain way"].append(timed(lambda: plain_video(plain, video)) / len(plain_steps))  # noqa: B023
    return {name: statistics.median(values) for name, values in times.items()}


def measure_long(frames: int) -> dict[str, float]:
    """Whether cost and memory grow over a long video."""
    record = long_record(frames)
    renderer, marks = renderer_of(record), []

    def draw(step: int) -> np.ndarray:
        if step % (frames // 4) == 0:
            marks.append((time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return renderer.draw(step)

    with tempfile.TemporaryDirectory() as folder:
        write_video(map(draw, range(frames)), Path(folder) / "out.mp4")
    marks.append((time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    seconds = [later[0] - earlier[0] for earlier, later in pairwise(marks[:5])]
    return {"last_over_first_quarter": seconds[3] / seconds[1], "growth_MiB": marks[-1][1] - marks[1][1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=4000, help="frames of the long video; 0: none")
    arguments = parser.parse_args()
    medians = measure(arguments.frames, arguments.rounds)
    ratios = {
        "whole_over_encoder": medians["drawing and encoding"] / medians["encoder alone"],
        "whole_over_plain": medians["drawing and encoding"] / medians["plain way"],
    }
    if arguments.long:
        ratios |= measure_long(arguments.long)
    print(f"{len(os.sched_getaffinity(0))} cores, frames of {DEFAULT_FRAME_SIZE[0]}x{DEFAULT_FRAME_SIZE[1]}")
    for name, seconds in medians.items():
        print(f"{name:>24} {seconds * 1000:8.1f} ms a frame")
    for name, ratio in ratios.items():
        print(f"{name:>24} {ratio:8.3f}")
    print(json.dumps({"bench": "drawing", "ms": {k: round(v * 1000, 1) for k, v in medians.items()}, **ratios}))


if __name__ == "__main__":
    main()
