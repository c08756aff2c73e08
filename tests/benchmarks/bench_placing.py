"""How long it takes to find where image tokens stand, at Qwen2.5-VL-7B's width, and what memory that takes.

python tests/benchmarks/bench_placing.py [--dtype float32] [--device cpu] [--tokens 1230]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np
import torch
import transformers
from geometries import PUBLISHED, Geometry, build
from placing import noise_picture

from attention_heatmap.recording import image_tokens, pixels
from attention_heatmap.recording.prompt import build_inputs

CELL = 28  # pixels of the picture that an image token stands for
VISION = {"hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584, "depth": 32}
TEXT = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "head_dim": 128}


def qwen(depth: int) -> tuple:
    """A model with the vision tower of Qwen2.5-VL-7B, at its width, and one narrow layer of text at 3584."""
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    config = {
        "vision_config": VISION | {"depth": depth, "fullatt_block_indexes": [depth - 1]},
        "text_config": TEXT | {"num_hidden_layers": 1, "layer_types": ["full_attention"], "rope_parameters": rope},
    }
    image = {"size": {"shortest_edge": 56 * 56, "longest_edge": 4096 * CELL * CELL}}
    published = PUBLISHED["Qwen2.5-VL"]
    return build(Geometry("qwen2_5_vl", config=config, image=image, placeholder=published.placeholder))


def measured(work, device: str) -> tuple[float, float]:
    """Seconds, and GiB on the device beyond what was there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return seconds, (torch.cuda.max_memory_allocated() - before) / 2**30 if device == "cuda" else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser()
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[660, 1230, 4096] if cuda else [1230])
    parser.add_argument("--depth", type=int, default=32 if cuda else 4, help="layers of the tower; they are skipped")
    arguments = parser.parse_args()
    name, results = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads", []
    model, processor = qwen(arguments.depth)
    model = model.to(arguments.device, getattr(torch, arguments.dtype)).eval()
    print(f"{name}, {arguments.dtype}, torch {torch.__version__}, transformers {transformers.__version__}")
    print("tokens   model asked   GiB   named   processor asked   all, first   all, next size   processor alone")
    for tokens in arguments.tokens:
        rows = max(n for n in range(1, int(tokens**0.5) + 1) if tokens % n == 0)
        size = tokens // rows * CELL, rows * CELL
        picture, token_id = noise_picture(*size), image_tokens.image_token_id(model.config)
        begin = time.perf_counter()
        inputs = build_inputs(processor, "Where?", [picture], "{Question}")
        plain = time.perf_counter() - begin
        found = []
        ask = lambda inputs=inputs, found=found, token_id=token_id: found.append(  # noqa: E731
            pixels.token_of_each_value(model, inputs, "pixel_values", token_id)
        )
        if cuda:
            ask()  # kernels are loaded
        asked, memory = measured(ask, arguments.device)
        owner, count = found[-1]
        expected = image_tokens.reported_owners(inputs, "pixel_values", count)
        assert count == tokens and (owner == expected)[owner >= 0].all()
        named = float((owner >= 0).mean())
        ramps, _ = measured(lambda size=size: pixels.pixel_sources(processor, [size], "pixel_values"), arguments.device)
        image_tokens._kept.clear()
        place = lambda inputs=inputs, picture=picture: image_tokens.locate_image_tokens(  # noqa: E731
            model, processor, inputs, [picture]
        )
        first, _ = measured(place, arguments.device)
        (key,) = [key for key in image_tokens._kept[model] if key[0] != "reported"]
        del image_tokens._kept[model][key]  # of another size the grid alone is known
        following, _ = measured(place, arguments.device)
        print(
            f"{tokens:6d}   {asked:9.2f} s   {memory:4.2f}   {named:.2%}   {ramps:13.2f} s   {first:8.2f} s"
            f"   {following:11.2f} s   {plain:13.2f} s",
            flush=True,
        )
        results.append({
            "tokens": tokens, "model_s": asked, "gib": memory, "named": named, "ramps_s": ramps, "first_s": first,
            "next_size_s": following, "processor_s": plain,
        })  # fmt: skip
    assert np.isfinite([row["model_s"] for row in results]).all()
    print(json.dumps({"bench": "placing", "device": name, "dtype": arguments.dtype, "rows": results}))


if __name__ == "__main__":
    main()
