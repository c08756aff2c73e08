"""Many samples in one run: whether memory grows, and what drawing one beside the answer to the next saves.

python tests/benchmarks/bench_sweep.py [--samples 200] [--timed 24] [--max_new_tokens 48] [--model_path demo/model]

Modes: `beside`, as the tool does it, in a process of its own; `thread`, in a thread of this process; `after`, one after
the other. Memory is this process's resident set.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from attention_heatmap import sweep
from attention_heatmap.background import BackgroundDrawing
from attention_heatmap.log import logger
from visualizeHeatMap import AttentionVisualizer

FRAME = (1280, 720)


class DrawnAfter(BackgroundDrawing):
    """The same without overlap."""

    def start(self, *arguments):
        super().start(*arguments)
        self.finish()


class DrawnInThread(BackgroundDrawing):
    """The same with a thread in place of the process."""

    def __enter__(self):
        self._pool = ThreadPoolExecutor(1)
        return self


MODES = {"beside": BackgroundDrawing, "thread": DrawnInThread, "after": DrawnAfter}


def resident() -> float:
    """MiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def repeated(folder: Path, count: int) -> Path:
    """The demo's dataset, repeated to so many samples."""
    samples = json.loads((ROOT / "demo/dataset.json").read_text("utf-8"))
    path = folder / "data.json"
    path.write_text(json.dumps((samples * (count // len(samples) + 1))[:count]), "utf-8")
    return path


def run(visualizer: AttentionVisualizer, mode: str, count: int, max_new_tokens: int) -> tuple[float, dict, float]:
    """Seconds of a run, memory after some of its samples, and the seconds of it that went into answering."""
    memory, answering, record = {}, [], visualizer.record

    def watched(*arguments, **options):
        started = time.perf_counter()
        made = record(*arguments, **options)
        answering.append(time.perf_counter() - started)
        if len(answering) in (1, 20, 50, 100, 150, 200, count):
            memory[len(answering)] = round(resident(), 1)
        return made

    watched.__wrapped__ = record
    visualizer.record, sweep.BackgroundDrawing = watched, MODES[mode]
    with tempfile.TemporaryDirectory() as folder:
        data = repeated(Path(folder), count)
        started = time.perf_counter()
        rows = visualizer.visualize_dataset(
            data, ROOT / "demo/images", "all", -1, output_dir=folder, max_new_tokens=max_new_tokens, frame_size=FRAME
        )
        taken = time.perf_counter() - started
    visualizer.record, sweep.BackgroundDrawing = record, MODES["beside"]
    assert not any(row["error"] for row in rows)
    return taken, memory, sum(answering)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--timed", type=int, default=24, help="samples of the runs that are compared")
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--model_path", default=str(ROOT / "demo/model"))
    arguments = parser.parse_args()
    logger.setLevel(logging.ERROR)  # answers are cut here
    visualizer = AttentionVisualizer(arguments.model_path)
    run(visualizer, "beside", 2, arguments.max_new_tokens)
    times = {mode: run(visualizer, mode, arguments.timed, arguments.max_new_tokens) for mode in MODES}
    print(f"{os.cpu_count()} cores, model on {visualizer.model.device}, frames of {FRAME[0]}x{FRAME[1]}")
    for mode, (taken, _, answering) in times.items():
        print(
            f"{mode:>8} {taken / arguments.timed:7.2f} s a sample, of them answering {answering / arguments.timed:.2f}"
        )
    taken, memory, _ = run(visualizer, "beside", arguments.samples, arguments.max_new_tokens)
    for count, size in memory.items():
        print(f"after {count:4} samples {size:8.1f} MiB")
    seconds = {mode: round(taken / arguments.timed, 3) for mode, (taken, *_) in times.items()}
    print(json.dumps({"bench": "sweep", "seconds_a_sample": seconds, "MiB": memory, "samples": arguments.samples}))


if __name__ == "__main__":
    main()
