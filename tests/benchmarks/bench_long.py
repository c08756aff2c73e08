"""A long answer end to end: generated and recorded, drawn, encoded, kept.

python tests/benchmarks/bench_long.py [--length 16384] [--tokens 4096] [--plain]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from records import grid_boxes
from shapes import IMAGE_GRID, build, device_name, greedy, prompt

from attention_heatmap.record import AttentionRecord, ImageTokens
from attention_heatmap.recording.generation import generate_response, record_rows
from visualizeHeatMap import render_frames, write_video


def as_record(inputs: dict, response_ids: list[int], weights: np.ndarray, layer: int) -> AttentionRecord:
    """The record of random ids, with a word for each."""
    ids = np.concatenate([inputs["input_ids"][0].cpu().numpy(), response_ids])
    height, width = (14 * side for side in IMAGE_GRID)
    positions = np.flatnonzero(ids[: -len(response_ids)] == 3)
    boxes = grid_boxes(IMAGE_GRID[0] // 2, IMAGE_GRID[1] // 2, width, height)
    words = tuple(f" w{number % 1000}" for number in ids)
    P = len(ids) - len(response_ids)
    return AttentionRecord(words, ids, P, (layer,), weights, (ImageTokens(positions, boxes),))


def host_peak() -> float:
    """GiB that this process has held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b" if gpu else "small")
    parser.add_argument("--length", type=int, default=16384 if gpu else 1024)
    parser.add_argument("--tokens", type=int, default=4096 if gpu else 128)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="time plain generation, too, first; of lengths that do not come again, since"
        " cuDNN's attention builds a plan for each length that it has not seen",
    )
    arguments = parser.parse_args()
    device = "cuda" if gpu else "cpu"
    model = build(arguments.shape, device)
    inputs, generation = prompt(model, arguments.length), greedy(arguments.tokens)
    layer = model.config.text_config.num_hidden_layers - 8
    facts = {}
    with torch.inference_mode():
        model.generate(**inputs, **greedy(8))  # loads the device's own libraries, which take memory of the host
    if arguments.plain:
        unseen = prompt(model, arguments.length + arguments.tokens)
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(**unseen, **generation)
        facts["plain_generate_s"] = time.perf_counter() - start
        print(f"generated {arguments.tokens} tokens in the plain way in {facts['plain_generate_s']:.1f} s", flush=True)
    host_before = host_peak()
    if gpu:
        weights_GiB = torch.cuda.memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    settings = generation | ({"cache_implementation": "static"} if arguments.fast else {})
    response_ids = generate_response(model, inputs, settings)
    rows = record_rows(model, inputs, [(layer, "mean")], response_ids)
    recorded = time.perf_counter()
    print(f"answered and recorded {len(response_ids)} tokens in {recorded - start:.1f} s", flush=True)
    record = as_record(inputs, response_ids, rows.weights, layer)
    height, width = (14 * side for side in IMAGE_GRID)
    image = Image.new("RGB", (width, height), "khaki")
    facts |= {"recorded_s": recorded - start, "host_growth_recorded_GiB": host_peak() - host_before}
    if gpu:
        facts["device_peak_over_weights_GiB"] = torch.cuda.max_memory_allocated() / 2**30 - weights_GiB
    with tempfile.TemporaryDirectory() as folder:
        record.save(Path(folder) / "run.safetensors")
        saved = time.perf_counter()
        video = write_video(render_frames(record, [image], layer, ""), Path(folder) / "out.mp4", 8)
        facts |= {
            "saved_s": saved - recorded,
            "drawn_and_encoded_s": time.perf_counter() - saved,
            "host_growth_in_all_GiB": host_peak() - host_before,
            "record_in_memory_MiB": record.weights.nbytes / 2**20,
            "record_on_disk_MiB": (Path(folder) / "run.safetensors").stat().st_size / 2**20,
            "video_MiB": Path(video).stat().st_size / 2**20,
        }
    print(f"{device_name(device)}, shape {arguments.shape}, {arguments.length} prompt, {arguments.tokens} new tokens")
    for name, value in facts.items():
        print(f"{name:>32} {value:10.2f}")
    print(json.dumps({"bench": "long", "device": device_name(device), **vars(arguments), **facts}))


if __name__ == "__main__":
    main()
