"""Signals at random moments of real runs: after each, every file under a final name is the one of an undisturbed run.

python tests/benchmarks/fault_signals.py [--drawings 70] [--datasets 30] [--seed 0] [--max_new_tokens 1024]

Drawings draw a kept record; datasets answer three samples of the demo, each run going on in the folder that the one
before left. A quarter of the signals each are SIGINT, SIGTERM, SIGHUP and SIGKILL. At the end a run without one has to
make the folder whole.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ["--model_path", "demo/model", "--benchmark_json", "demo/dataset.json", "--image_dir", "demo/images"]
SMALL = ["--frame_size", "640x360", "--layer_idx", "6", "7"]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
ENDED = "ended before the signal"
PATIENCE = 30  # seconds after a signal; a process that is still there hangs


def start(flags: list[str], output_dir: Path) -> subprocess.Popen:
    command = [sys.executable, "visualizeHeatMap.py", *flags, *SMALL, "--output_dir", str(output_dir)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def videos(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.mp4") if path.name[0] != "."}


def hidden(folder: Path) -> set[Path]:
    return {path for path in folder.rglob(".*") if path.is_file()}


def check(folder: Path, reference: dict[str, bytes], left: set[Path]) -> None:
    """Raises AssertionError where a folder is not as it should be. left: by killed runs before this one."""
    for name, content in videos(folder).items():
        assert content == reference[name], f"{name} is half-written"
    for facts in folder.rglob("sample.json"):
        json.loads(facts.read_text("utf-8"))
    assert hidden(folder) <= left, f"{hidden(folder) - left} are left"


def disturbed(flags: list[str], folder: Path, reference: dict[str, bytes], seconds: float) -> str:
    """One run with a signal at a random moment; what came of it, in words."""
    number, moment, left = random.choice(SIGNALS), random.uniform(0, seconds), hidden(folder)
    process = start(flags, folder)
    time.sleep(moment)
    process.send_signal(number)
    sent = time.perf_counter()
    _, said = process.communicate(timeout=PATIENCE)
    worst.append(time.perf_counter() - sent)
    if number == signal.SIGKILL:  # a drawing process may still be at it
        time.sleep(2)
        left = hidden(folder)
    check(folder, reference, left)
    lines = [line for line in said.splitlines() if line.startswith("error: ") or "Traceback" in line]
    if process.returncode == 0:
        return ENDED
    if process.returncode == -number:
        return "killed" if number == signal.SIGKILL else f"{number.name} before the command began"
    if process.returncode == 128 + number and len(lines) == 1:
        return f"{number.name}: one line, exit code {128 + number}"
    return f"{number.name}: exit code {process.returncode}, {said[-300:]!r}"


def series(flags: list[str], runs: int, folder: Path) -> collections.Counter:
    """Disturbed runs in one folder, and a last one that makes it whole."""
    began = time.perf_counter()
    assert start(flags, folder / "reference").wait() == 0
    seconds = time.perf_counter() - began
    reference = videos(folder / "reference")
    found: collections.Counter = collections.Counter()
    while found.total() - found[ENDED] < runs:
        found[what := disturbed(flags, folder / "out", reference, seconds)] += 1
        if what == ENDED:  # the next one begins anew
            shutil.rmtree(folder / "out")
    time.sleep(3)
    assert start(flags, folder / "out").wait() == 0
    assert videos(folder / "out") == reference
    check(folder / "out", reference, set())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawings", type=int, default=70)
    parser.add_argument("--datasets", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_new_tokens", default="1024")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    answered = [*DEMO, "--max_new_tokens", arguments.max_new_tokens]
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "run.safetensors"
        assert start([*answered, "--save_record", str(record)], Path(folder)).wait() == 0
        found = series(["--from_record", str(record)], arguments.drawings, Path(folder) / "drawings")
        if arguments.datasets:
            found += series([*answered, "--sample_idx", "0-2"], arguments.datasets, Path(folder) / "datasets")
    for what, count in found.most_common():
        print(f"{count:4} {what}")
    print(json.dumps({"bench": "signals", "runs": sum(found.values()), "slowest_end_s": round(max(worst), 2), **found}))


worst: list[float] = []

if __name__ == "__main__":
    main()
