"""Every benchmark runs, in small: a table for people, then one JSON line. No time is judged here."""

import importlib.util
import json
import multiprocessing
import os
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from pages import chromium
from records import make_record, picture

from attention_heatmap.record import picture_file

LONGEST = 300  # seconds of a script; one that is still there hangs
FOLDER = Path(__file__).parent / "benchmarks"
SMALL = {
    "bench_two_gpus": "--parts tensor --tensor_shape tiny --tensor_length 700 --tensor_tokens 2 --tensor_rounds 1",
    "bench_startup": "--rounds 1 --first_rounds 0 --max_new_tokens 2",
    "fault_signals": "--drawings 1 --datasets 0 --max_new_tokens 4",
    "bench_faithfulness": "--kinds route_en --samples 1 --curve_samples 1 --check_samples 1 --levels 2 --draws 1",
    "bench_sweep": "--samples 1 --timed 1 --max_new_tokens 4",
    "bench_drawing": "--frames 3 --rounds 1 --long 8",
    "bench_legibility": "record.safetensors",
    "bench_page": "--tokens 20 --positions 700 --planes 1 --moves 2",
    "bench_placing": "--tokens 20 --depth 1",
    "bench_recording": "--shape tiny --lengths 700 --tokens 2 --replayed 2 --rounds 1 --eager_lengths 700",
    "bench_long": "--shape tiny --plain --length 700 --tokens 4",
    "bench_fast": "--shape tiny --length 700 --tokens 2 --rounds 1",
    "bench_record": "--tokens 20 --positions 700 --layers 2",
}


def run_script(script: str, folder: Path) -> None:
    """What a process does: the script as `python script.py` runs it; what it says goes to files of the folder."""
    os.chdir(folder)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = [script, *SMALL[script].split()]
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def outcome(request, tmp_path_factory):
    """A function that gives (exit code, stdout, stderr) of a script. Two run at a time, each in a process of its own.

    The processes come from one that has imported torch and transformers already, which takes longer than most scripts.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "shapes", "visualizeHeatMap"])

    def run(script: str) -> tuple[int, str, str]:
        folder = tmp_path_factory.mktemp(script)
        record = make_record([" Go"], [" left", "."])
        replace(record, pictures=(picture_file(picture()),)).save(folder / "record.safetensors")
        process = context.Process(target=run_script, args=(script, folder))
        process.start()
        process.join(LONGEST)
        process.kill()
        return process.exitcode, *((folder / name).read_text("utf-8") for name in ("stdout", "stderr"))

    asked = {getattr(item, "callspec", None) and item.callspec.params.get("script") for item in request.session.items}
    sys.path.insert(0, str(FOLDER))  # for the process that imports
    with ThreadPoolExecutor(2) as pool:
        running = {script: pool.submit(run, script) for script in SMALL if script in asked}
        yield lambda script: running[script].result()
    sys.path.remove(str(FOLDER))


def test_no_benchmark_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SMALL, "shapes"}


@pytest.mark.parametrize("script", SMALL)
def test_a_benchmark_ends_with_a_table_and_one_line_of_json(script, outcome):
    if script == "bench_page" and not (importlib.util.find_spec("playwright") and chromium()):
        pytest.skip("no browser, or no package that drives it")
    code, said, errors = outcome(script)
    assert code == 0, errors
    *table, last = said.splitlines()
    facts = json.loads(last)
    assert facts["bench"] == script.split("_", 1)[1]
    assert len(facts) > 1
    assert table
