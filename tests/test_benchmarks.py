"""Every benchmark runs, in small: a table for people, then one JSON line. No time is judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
SMALL = {
    "bench_drawing": "--frames 3 --rounds 1 --long 8",
    "bench_faithfulness": "--samples 4 --curve_samples 1 --check_samples 4 --levels 2",
    "bench_families": "",
    "bench_fast": "--tokens 2 --rounds 1",
    "bench_long": "--plain --tokens 4",
    "bench_record": "--tokens 20 --positions 700 --layers 2",
    "bench_recording": "--lengths 1024 --tokens 4 --replayed 4 --rounds 1",
    "bench_startup": "--rounds 1",
    "bench_sweep": "--samples 2 --timed 1 --max_new_tokens 8",
    "bench_two_gpus": "--parts tensor",
    "fault_signals": "--drawings 1 --datasets 1",
}


def test_no_benchmark_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SMALL, "shapes"}


@pytest.mark.parametrize("script", SMALL)
def test_a_benchmark_ends_with_a_table_and_one_line_of_json(script, tmp_path):
    command = [sys.executable, str(FOLDER / f"{script}.py"), *SMALL[script].split()]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    *table, last = result.stdout.splitlines()
    facts = json.loads(last)
    assert facts["bench"] == script.split("_", 1)[1]
    assert len(facts) > 1
    assert table
