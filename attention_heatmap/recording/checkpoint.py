"""TODO."""

from __future__ import annotations

import os
from typing import Any

from attention_heatmap.recording.memory import layer_values


def process_number(tp_plan: Any) -> int:
    """Which process of a tensor-parallel run this is, by torchrun's word; 0 where the model is not shared."""
    return int(os.environ.get("RANK", 0)) if tp_plan else 0


def check_tp_plan(tp_plan: Any, device_map: Any, config: Any) -> None:
    """Raises ValueError where a model cannot be shared by the processes that were started."""
    if not tp_plan:
        return
    ranks, text = int(os.environ.get("WORLD_SIZE", 1)), config.get_text_config()
    if ranks < 2:
        raise ValueError(
            f"tp_plan {tp_plan!r} shares the model between processes, and there is one; start several: "
            "torchrun --nproc-per-node 2 visualizeHeatMap.py ..."
        )
    if device_map not in (None, "auto"):
        raise ValueError(f"device_map {device_map!r} and tp_plan {tp_plan!r} were both given; give one of them")
    for name in ("num_attention_heads", "num_key_value_heads"):
        uneven = [count for count in layer_values(text, name, 0) if count % ranks]
        if uneven:
            raise ValueError(
                f"tp_plan {tp_plan!r}: {ranks} processes cannot share {uneven[0]} {name} evenly; start a number of "
                "processes that divides them"
            )
