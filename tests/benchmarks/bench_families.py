"""For each family, on a tiny random checkpoint: rows against eager attention, boxes against the pixels.

python tests/benchmarks/bench_families.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np
import tiny_models as tiny
import transformers
from test_families import PICTURES, UNNAMED, centre_errors, noise_picture, processor_kwargs, reference_rows

import visualizeHeatMap as vhm

SIZES = [(211, 130), (61, 97), (255, 47), (33, 240), (160, 160)]  # pixels of the pictures whose boxes are checked


def row_error(visualizer: vhm.AttentionVisualizer) -> float:
    """The largest difference of a recorded weight from eager attention on the same tokens, over all layers."""
    layers = vhm.attention_layers(visualizer.config)
    inputs = vhm.build_inputs(visualizer.processor, "Where?", PICTURES, "{Question}")
    generation = {"max_new_tokens": 8, "do_sample": False}
    rows = vhm.record_rows(visualizer.model, inputs, layers, "mean", generation, None)
    reference = reference_rows(visualizer.model, inputs, rows.response_ids, layers)
    return max(
        float(np.abs(rows.weights[:, place, : expected.shape[1]] - expected).max())
        for place, expected in enumerate(reference.values())
    )


def main() -> None:
    print(f"transformers {transformers.__version__}, CPU, float32")
    results = {}
    with tempfile.TemporaryDirectory() as root:
        for family in (*tiny.ALL_FAMILIES, *UNNAMED):
            folder = tiny.family_checkpoint(family, Path(root) / family)
            visualizer = vhm.AttentionVisualizer(
                str(folder), max_image_num=4, processor_kwargs=processor_kwargs(family)
            )
            centre = max(centre_errors(visualizer, [noise_picture(*size)]) for size in SIZES)
            results[family] = {"rows": row_error(visualizer), "centre_px": centre}
            print(f"{family:<24} rows {results[family]['rows']:.1e}   centre {centre:.2f} px", flush=True)
    print(json.dumps({"bench": "families", "transformers": transformers.__version__, "families": results}))


if __name__ == "__main__":
    main()
