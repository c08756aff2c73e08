"""Several processes: those that share a model, and those that share out a dataset."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from attention_heatmap.recording import torch
from attention_heatmap.recording.layers import layer_values

_LONGEST_WAIT = timedelta(weeks=4)  # of one process for the others, whose samples may take longer


def process_number(tp_plan: Any = "auto") -> int:
    """Which of several processes this is, by the launcher's word; 0 for one alone, or without a plan."""
    return environment_number("RANK", 0) if tp_plan else 0


def environment_number(name: str, default: int) -> int:
    """A number that a launcher puts into the environment. Raises ValueError for another text."""
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"the environment's {name} is {text[:50]!r}; expected a number, as a launcher sets it")
    return int(text)


def check_tp_plan(tp_plan: Any, device_map: Any, config: Any) -> None:
    """Raises ValueError where a model cannot be shared by the processes that were started."""
    if not tp_plan:
        return
    ranks = environment_number("WORLD_SIZE", 1)
    if ranks < 2:
        advice = "start several: torchrun --nproc-per-node 2 visualizeHeatMap.py ..."
        raise ValueError(f"tp_plan {tp_plan!r} shares the model between processes, and there is one; {advice}")
    if device_map not in (None, "auto"):
        raise ValueError(f"device_map {device_map!r} and tp_plan {tp_plan!r} were both given; give one of them")
    for name in ("num_attention_heads", "num_key_value_heads"):
        uneven = [count for count in layer_values(config.get_text_config(), name, 0) if count % ranks]
        if uneven:
            told = f"tp_plan {tp_plan!r}: {ranks} processes cannot share {uneven[0]} {name} evenly"
            raise ValueError(f"{told}; start a number of processes that divides them")


def part_of(numbers: list[int], checkpoint: Any) -> tuple[list[int], bool, Callable[[], None]]:
    """The samples of this process, whether it is the first, and a function that waits for the others.

    By accelerate's view of the processes, each of which gets a card of its own; of processes that share the model,
    each answers every sample. Comes before the weights are loaded.
    """
    if checkpoint.options.tp_plan:
        wait = lambda: torch.distributed.is_initialized() and torch.distributed.barrier()  # noqa: E731
        return numbers, not process_number(), wait
    from accelerate import PartialState

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment_number(name, 0)
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST_WAIT)
    if state.num_processes > 1 and checkpoint.options.device_map == "auto":
        checkpoint.options = replace(checkpoint.options, device_map={"": state.device})
    with state.split_between_processes(numbers) as own:
        return list(own), state.is_main_process, state.wait_for_everyone
