"""What a record takes in memory and on disk, and what float16 loses.

python tests/benchmarks/bench_record.py [--tokens 1000] [--positions 5000] [--layers 28]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from records import grid_boxes

from attention_heatmap.record import LARGEST_FLOAT32_RECORD, AttentionRecord, ImageTokens


def weights_like_a_models(tokens: int, layers: int, positions: int) -> np.ndarray:
    """(T, L, S) float32 rows as uneven as attention is: softmax of normal numbers three wide."""
    rng = np.random.default_rng(0)
    weights = np.zeros((tokens, layers, positions), np.float32)
    for t, row_LS in enumerate(weights):
        seen = np.exp(3 * rng.standard_normal((layers, positions - tokens + t), np.float32))
        row_LS[:, : seen.shape[1]] = seen / seen.sum(-1, keepdims=True)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--positions", type=int, default=5000)
    parser.add_argument("--layers", type=int, default=28)
    arguments = parser.parse_args()
    T, S, L = arguments.tokens, arguments.positions, arguments.layers
    exact = weights_like_a_models(T, L, S)
    kept = exact if exact.nbytes <= LARGEST_FLOAT32_RECORD else exact.astype(np.float16)
    image = ImageTokens(np.arange(5, 5 + 600), grid_boxes(20, 30, 840, 560))
    ids, words = np.arange(S) % 1000, tuple(f" w{n % 1000}" for n in range(S))
    record = AttentionRecord(words, ids, S - T, tuple(range(L)), kept, (image,))
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "run.safetensors", time.perf_counter()
        record.save(path)
        saved = time.perf_counter()
        AttentionRecord.load(path)
        facts = {"save_s": saved - start, "load_s": time.perf_counter() - saved, "disk_MB": path.stat().st_size / 1e6}
    top = exact.max(axis=-1, keepdims=True)
    facts |= {
        "memory_MB": kept.nbytes / 1e6,
        # Of a colour scale that ends at the row's highest weight; a step of it is 1 / 255.
        "largest_error_in_colour_steps": float((np.abs(kept - exact) / top).max() * 255),
    }
    print(f"{T} response tokens, {S} positions, {L} layers, {kept.dtype}")
    for name, value in facts.items():
        print(f"{name:>32} {value:10.3f}")
    print(json.dumps({"bench": "record", **vars(arguments), "dtype": str(kept.dtype), **facts}))


if __name__ == "__main__":
    main()
