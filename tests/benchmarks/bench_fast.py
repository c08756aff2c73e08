"""Compiled generation and one recording pass against plain generation, for a long answer on a GPU.

python tests/benchmarks/bench_fast.py [--length 4096] [--tokens 512] [--rounds 2]

On a CPU, where `--fast` changes nothing, the same runs in small.
"""

from __future__ import annotations

import argparse
import json

import torch
from bench_recording import alternate, measured
from shapes import build, device_name, greedy, prompt

from attention_heatmap.recording.generation import generate_response, record_rows


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b" if gpu else "small")
    parser.add_argument("--length", type=int, default=4096 if gpu else 1024)
    parser.add_argument("--tokens", type=int, default=512 if gpu else 32)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    device = "cuda" if gpu else "cpu"
    model = build(arguments.shape, device)
    inputs, generation = prompt(model, arguments.length), greedy(arguments.tokens)
    planes = [(model.config.text_config.num_hidden_layers - 8, "mean")]

    def plain():
        with torch.inference_mode():
            model.generate(**inputs, **generation)

    def fast():
        response_ids = generate_response(model, inputs, generation | {"cache_implementation": "static"})
        record_rows(model, inputs, planes, response_ids)

    first, _ = measured(fast)
    results = alternate({"plain generate": plain, "fast, record included": fast}, arguments.rounds)
    base = results["plain generate"][0]
    print(f"{device_name(device)}, shape {arguments.shape}, {arguments.length} prompt, {arguments.tokens} new tokens")
    for name, (seconds, peak, _) in results.items():
        print(f"{name:<24} {seconds:8.2f} s {peak:8.2f} GiB {seconds / base:8.3f}")
    seconds = results["fast, record included"][0]
    print(f"{'compiling, once':<24} {first - seconds:8.2f} s")
    row = {"plain_s": base, "fast_s": seconds, "ratio": seconds / base, "compile_s": first - seconds}
    print(json.dumps({"bench": "fast", "device": device_name(device), **vars(arguments), **row}))


if __name__ == "__main__":
    main()
