"""How well the hottest place of a frame can be told from the rest: colour differences as drawn, over plain pictures.

python tests/benchmarks/bench_legibility.py [record.safetensors ...] [--every 1] [--option scale=video ...]

For each frame: the CIE76 difference in Lab between the cell of the highest weight and the cell of median weight, and
between the grounds of the text's hottest and median tokens. Above 10 is easily seen, above 20 at a glance. Records
that are not given are made of three samples of the demo: one picture, two, Chinese.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.options import drawing_options
from attention_heatmap.record import AttentionRecord
from attention_heatmap.showing import DEFAULT_START_PHRASE

PLAIN = {
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "green": (0, 128, 0),
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
}
DEMO_SAMPLES, DEMO_LAYER = (0, 46, 36), 7  # one picture, two, Chinese
EASILY, AT_A_GLANCE = 10, 20  # CIE76
RGB_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
WHITE = (0.9505, 1.0, 1.089)  # D65


def lab(colours: np.ndarray) -> np.ndarray:
    """(..., 3) Lab of sRGB colours in 0..255."""
    values = np.asarray(colours, float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.transpose(RGB_TO_XYZ) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """CIE76 between the median colours of two sets of (n, 3) pixels."""
    return float(np.linalg.norm(lab(np.median(first, axis=0)) - lab(np.median(second, axis=0))))


def hottest_and_median(weights: np.ndarray) -> tuple[int, int]:
    """The place of the highest weight, and that of the one in the middle."""
    order = np.argsort(weights, kind="stable")
    return int(order[-1]), int(order[(len(order) - 1) // 2])


def of_cells(renderer: FrameRenderer, frame: np.ndarray, weights: np.ndarray) -> float | None:
    """The difference of a frame's cells; None where none has any weight."""
    shown = np.flatnonzero(np.isfinite(weights))
    if not len(shown) or not weights[shown].max() > 0:
        return None
    index = renderer.panel.layout.cell_index
    left, top = renderer.panel.at
    panel = frame[top : top + index.shape[0], left : left + index.shape[1]]
    first, second = (panel[index == shown[place] + 1] for place in hottest_and_median(weights[shown]))
    return difference(first, second)


def of_text(renderer: FrameRenderer, frame: np.ndarray, number: int) -> float | None:
    """The difference of the text's grounds, of the tokens in view that are there already."""
    text, step = renderer.answer.layout, renderer.first_step + number
    current = int(np.searchsorted(renderer.answer.starts, renderer.record.prompt_length + step, side="right")) - 1
    lines = max(renderer.answer.size[1] // text.line_height, 1)
    first = max(int(text.last_line[current]) + 1 - lines, 0) * text.line_height
    index = text.piece_index[first : first + lines * text.line_height]
    ground = np.where(text.ink[first : first + lines * text.line_height] == 0, index, 0)
    weights = renderer.answer.weights[number]
    seen = np.unique(ground)
    words = [n for n in range(current) if renderer.answer.layout.pieces[n].kind == "text" and np.isfinite(weights[n])]
    words = [n for n in words if n + 1 in seen]
    if len(words) < 2:
        return None
    left, top = renderer.answer.at
    panel = frame[top : top + len(index), left : left + index.shape[1]]
    first_piece, second = (panel[ground == words[place] + 1] for place in hottest_and_median(weights[words]))
    return difference(first_piece, second)


def measure(record: AttentionRecord, every: int, options: dict) -> dict[str, list[float]]:
    """The differences of every so many frames: of the cells over each plain colour, and of the text."""
    found: dict[str, list[float]] = {}
    for name, colour in PLAIN.items():
        images = [Image.new("RGB", image.size, colour) for image in record.open_pictures()]
        renderer = FrameRenderer(record, images, record.plane(), DEFAULT_START_PHRASE, drawing_options(options))
        for number in range(0, record.response_length - renderer.first_step, every):
            frame = renderer.draw(renderer.first_step + number)
            found.setdefault(name, []).append(of_cells(renderer, frame, renderer.panel.maps[0].weights[number]))
            if name == "white":
                found.setdefault("text", []).append(of_text(renderer, frame, number))
    return {name: [value for value in values if value is not None] for name, values in found.items()}


def demo_records() -> list[AttentionRecord]:
    """The records of the demo's samples, made by its model."""
    from visualizeHeatMap import AttentionVisualizer

    visualizer = AttentionVisualizer(str(ROOT / "demo/model"), dtype="float32")
    samples = (visualizer.load_sample_data(ROOT / "demo/dataset.json", ROOT / "demo/images", n) for n in DEMO_SAMPLES)
    return [visualizer.record(*sample, [DEMO_LAYER]) for sample in samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*")
    parser.add_argument("--every", type=int, default=1, help="measure every so many frames (default: 1)")
    parser.add_argument("--option", nargs="*", default=[], metavar="NAME=VALUE", help="options of the drawing")
    arguments = parser.parse_args()
    options = {}
    for name, _, value in (one.partition("=") for one in arguments.option):
        options[name] = ast.literal_eval(value) if value[:1].isdigit() or value[:1] == "(" else value
    records = [AttentionRecord.load(path) for path in arguments.records] or demo_records()
    found: dict[str, list[float]] = {}
    for record in records:
        for name, values in measure(record, arguments.every, options).items():
            found.setdefault(name, []).extend(values)
    facts = {}
    print(f"{'over':>8} {'frames':>7} {'median':>7} {'5% below':>9} {'above 10':>9} {'above 20':>9}")
    for name, values in found.items():
        above = [float(np.mean(np.array(values) > limit)) for limit in (EASILY, AT_A_GLANCE)]
        low, middle = np.quantile(values, [0.05, 0.5])
        print(f"{name:>8} {len(values):7} {middle:7.1f} {low:9.1f} {above[0]:9.1%} {above[1]:9.1%}")
        facts[name] = {"frames": len(values), "above_10": round(above[0], 4), "above_20": round(above[1], 4)}
    print(json.dumps({"bench": "legibility", **facts}))


if __name__ == "__main__":
    main()
