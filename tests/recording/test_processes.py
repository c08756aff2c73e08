"""Several processes: those that share a model, and those that share out a dataset."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from records import picture
from transformers import AutoConfig

from attention_heatmap.recording.checkpoint import check_tp_plan, environment_number, part_of, process_number
from attention_heatmap.recording.options import CheckpointOptions


@pytest.mark.parametrize("text, number", [("", 7), ("0", 0), ("12", 12)])
def test_a_launchers_number_is_read_from_the_environment(monkeypatch, text, number):
    monkeypatch.setenv("RANK", text)
    assert environment_number("RANK", 7) == number
    assert process_number("auto") == (number if text else 0) and process_number(None) == 0


@pytest.mark.parametrize("text", ["two", "-1", "1.5", "²", "9" * 10])
def test_what_no_launcher_sets_is_refused(monkeypatch, text):
    monkeypatch.setenv("RANK", text)
    with pytest.raises(ValueError, match=r"^the environment's RANK is '.*'; expected a number, as a launcher sets it$"):
        process_number("auto")


@pytest.mark.parametrize(
    "processes, device_map, message",
    [
        (1, "auto", "and there is one; start several: torchrun"),
        (3, "auto", "3 processes cannot share 4 num_attention_heads evenly"),
        (4, None, "4 processes cannot share 2 num_key_value_heads evenly"),
        (2, "cpu", "were both given; give one of them"),
    ],
)
def test_processes_that_cannot_share_a_model_are_told(tiny_checkpoint, monkeypatch, processes, device_map, message):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = AutoConfig.from_pretrained(tiny_checkpoint("qwen2_vl"))
    check_tp_plan(None, device_map, config)
    with pytest.raises(ValueError, match=message):
        check_tp_plan("auto", device_map, config)


def test_processes_that_share_the_model_answer_every_sample_and_the_first_one_writes(monkeypatch):
    checkpoint = SimpleNamespace(options=CheckpointOptions(tp_plan="auto"))
    for rank, is_first in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        own, first, wait = part_of([4, 5, 6], checkpoint)
        assert own == [4, 5, 6] and first == is_first and not wait()


@pytest.mark.parametrize("device_map, placed", [("auto", {"": "cuda:1"}), ("cpu", "cpu")])
def test_each_of_several_processes_takes_a_part_and_a_card_of_its_own(monkeypatch, device_map, placed):
    class State:
        num_processes, device, is_main_process, wait_for_everyone = 2, "cuda:1", False, print

        def __init__(self, **_):
            pass

        def split_between_processes(self, numbers):
            from contextlib import nullcontext

            return nullcontext(numbers[1::2])

    monkeypatch.setattr("accelerate.PartialState", State)
    checkpoint = SimpleNamespace(options=CheckpointOptions(device_map=device_map))
    own, first, wait = part_of([4, 5, 6, 7], checkpoint)
    assert own == [5, 7] and not first and wait is print and checkpoint.options.device_map == placed


def test_one_process_takes_all(monkeypatch):
    checkpoint = SimpleNamespace(options=CheckpointOptions())
    own, first, wait = part_of([4, 5], checkpoint)
    wait()
    assert own == [4, 5] and first and checkpoint.options.device_map == "auto"


# ------------------------------------------------------------------------------------- two real processes

SHARED_RUNS = (
    {"head": ["mean", "max", 1, 3, "1+3"]}, {"attention": "eager"}, {"response": "<think> so"},
    {"do_sample": True, "temperature": 5.0, "seed": 3},
)  # fmt: skip
OF_TWO_PROCESSES = """
import sys
sys.path[:0] = sys.argv[1].split("|")
import numpy as np
from test_processes import shared_runs
from visualizeHeatMap import AttentionVisualizer
from attention_heatmap.recording.checkpoint import process_number
for checkpoint in sys.argv[2:]:
    rows = shared_runs(AttentionVisualizer(checkpoint, tp_plan="auto"))
    np.savez(f"{checkpoint}/{process_number()}.npz", *rows)
"""


def shared_runs(visualizer):
    """Weights and ids of each run in turn."""
    sample, images = {"problem": "Go."}, [picture((90, 60))]
    records = [visualizer.record(sample, images, [0, 2], **{"max_new_tokens": 6, **options}) for options in SHARED_RUNS]
    return [part for record in records for part in (record.weights, record.token_ids)]


def test_processes_that_share_the_heads_record_what_one_process_does(tiny_checkpoint, tiny_visualizer):
    """Not every family's text is cut into parts by each version of transformers: a process then has all heads."""
    families = ("qwen2_vl", "qwen3_vl")
    paths = "|".join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/recording")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable]
    command += ["-c", OF_TWO_PROCESSES, paths, *(str(tiny_checkpoint(family)) for family in families)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    for family in families:
        alone = shared_runs(tiny_visualizer(family))
        for process in ("0", "1"):
            with np.load(tiny_checkpoint(family) / f"{process}.npz") as found:
                for expected, rows in zip(alone, found.values(), strict=True):
                    np.testing.assert_allclose(rows, expected, atol=1e-5)
