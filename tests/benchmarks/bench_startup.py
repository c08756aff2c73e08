"""What the command costs beyond importing, loading and plain generation; and what answers without torch.

python tests/benchmarks/bench_startup.py [--rounds 3] [--max_new_tokens 1024]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATASET = ["--benchmark_json", str(ROOT / "demo/dataset.json"), "--image_dir", str(ROOT / "demo/images")]
COMMAND = [sys.executable, str(ROOT / "visualizeHeatMap.py")]
PLAIN = """
import json, sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
import torch
demo = sys.argv[1]
processor = AutoProcessor.from_pretrained(demo + "/model")
model = AutoModelForImageTextToText.from_pretrained(demo + "/model", dtype=torch.float32)
sample = json.load(open(demo + "/dataset.json", encoding="utf-8"))[0]
images = [{"type": "image", "image": Image.open(f"{demo}/images/{name}")} for name in sample["image"]]
text = sample["problem"] + (
    " Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
)
message = {"role": "user", "content": [*images, {"type": "text", "text": text}]}
inputs = processor.apply_chat_template(
    [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
model.generate(**inputs, max_new_tokens=int(sys.argv[2]), do_sample=False)
"""

RECORD = """
import sys
sys.path.insert(0, sys.argv[1] + "/..")
from visualizeHeatMap import AttentionVisualizer
demo = sys.argv[1]
visualizer = AttentionVisualizer(demo + "/model")
sample, images = visualizer.load_sample_data(demo + "/dataset.json", demo + "/images")
visualizer.record(sample, images, [7], max_new_tokens=int(sys.argv[2]))
"""


def seconds(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first_rounds", type=int, default=1, help="that fill the caches of files and do not count")
    parser.add_argument("--max_new_tokens", type=int, default=1024)
    arguments = parser.parse_args()
    tokens = str(arguments.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        record = str(Path(folder) / "run.safetensors")
        demo = [*COMMAND, "--model_path", str(ROOT / "demo/model"), *DATASET]
        runs = {
            "import, load, plain generate": [sys.executable, "-c", PLAIN, str(ROOT / "demo"), tokens],
            "the same, recorded": [sys.executable, "-c", RECORD, str(ROOT / "demo"), tokens],
            "demo run, video included": [*demo, "--max_new_tokens", tokens, "--save_record", record],
            "the same from its record": [*COMMAND, *DATASET, "--from_record", record],
            "--help": [*COMMAND, "--help"],
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(arguments.first_rounds + arguments.rounds):
            for name, command in runs.items():
                taken = seconds(command, folder)
                if number >= arguments.first_rounds:
                    times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["import, load, plain generate"]
    print(f"{len(os.sched_getaffinity(0))} cores, CPU")
    for name, taken in medians.items():
        print(f"{name:<30} {taken:7.2f} s {taken / base:7.2f}")
    print(
        json.dumps(
            {"bench": "startup", "seconds": medians, "over_plain": {name: s / base for name, s in medians.items()}}
        )
    )


if __name__ == "__main__":
    main()
