"""What a run takes: refused where it surely does not fit, told in one line where memory runs out."""

from __future__ import annotations

import gc
import math
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from attention_heatmap.log import logger, one_line
from attention_heatmap.recording.attention import decoder_layers
from attention_heatmap.recording.layers import attention_layers, layer_kinds, layer_values
from attention_heatmap.recording.recorder import record_dtype

MARGIN = 1.2  # times an estimate: what is rounded up, and what stands for no large array
SURE_PART = 0.8  # of an estimate: where not even this is free, a run surely does not fit
# Words of a RuntimeError which means that no memory is left: on the host, on an Apple GPU, in cuBLAS.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def run_memory(config: Any, prompt: int, steps: int, eager: bool = False) -> tuple[int, int]:
    """Numbers that a run holds at once beside the weights, estimated: at least, and where the answer has all `steps`.

    At least a pass over the prompt, at its peak inside an MLP, which has its inner values three times. Generation has
    its cache, too, in which a sliding window keeps the last positions only. eager: every layer's weights are kept.
    """
    text = config.get_text_config()
    heads, layers = text.num_attention_heads, attention_layers(config)
    per_position = (
        2 * layer_values(text, "num_key_value_heads", heads) * layer_values(text, "head_dim", text.hidden_size // heads)
    )
    window = getattr(text, "sliding_window", None) or math.inf
    windows = np.array([window if kind == "sliding_attention" else math.inf for kind in layer_kinds(config)])
    inner = layer_values(text, "moe_intermediate_size", 0) * layer_values(text, "num_experts_per_tok", 1)
    if not inner.any():
        inner = layer_values(text, "intermediate_size", 4 * text.hidden_size)

    def cache(positions: int) -> float:
        return (per_position * np.minimum(windows, positions))[layers].sum()

    def passed(positions: int) -> float:
        # Eager attention: beside the weights that are kept a layer has scores, masked scores, and two in float32.
        weights = eager * heads * positions**2 * (len(layers) + 7)
        return positions * (3 * inner.max() + 4 * text.hidden_size) + weights

    whole = prompt + steps
    return int(passed(prompt)), int(max(cache(prompt) + passed(prompt), cache(whole), passed(whole)))


def record_memory(prompt: int, steps: int, planes: int) -> int:
    """Bytes of the record's weights on the host, at most."""
    values = steps * planes * (prompt + steps)
    return values * np.dtype(record_dtype(values)).itemsize


def check_record_memory(prompt: int, steps: int, planes: int) -> None:
    """Raises ValueError where the record of an answer surely does not fit on the host."""
    record, free = record_memory(prompt, steps, planes), free_memory("cpu")
    if free is not None and record > free:
        raise ValueError(
            f"the record of {steps} tokens over {prompt} for {planes} planes takes {gib(record)}, {gib(free)} are free "
            "on the host: record fewer layers or heads, or head mean"
        )


def free_memory(device: Any) -> int | None:
    """Bytes that can be taken on a device, torch's own reserve included; None where that is not known."""
    import torch

    device = torch.device(device)
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text("ascii"), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found and device.type == "cpu" else None


def gib(count: float | None) -> str:
    """Bytes in words."""
    if count is None:
        return "unknown GiB"
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def layer_shares(model: Any) -> dict[Any, float]:
    """The devices that run the layers of the language model, and the part of the layers that each runs."""
    import torch

    layers = decoder_layers(model) or [model]
    hooks = [getattr(getattr(layer, "_hf_hook", None), "execution_device", None) for layer in layers]  # of accelerate
    places = [next(layer.parameters()).device if at is None else at for layer, at in zip(layers, hooks)]
    devices = [torch.device(place) for place in places]
    return {device: devices.count(device) / len(devices) for device in dict.fromkeys(devices)}


def check_memory(model: Any, prompt: int, steps: int, planes: int, *, eager: bool) -> str:
    """What a run will take, in words. Warns where that may not fit; raises ValueError where it surely does not.

    An answer seldom has all of its `steps`, so that the prompt alone decides what surely does not fit.
    """
    ranks, size = getattr(model, "tp_size", None) or 1, model.dtype.itemsize
    asked = f"{prompt} prompt tokens and up to {steps} of the response"
    half = ", take dtype bfloat16" * (size > 2)
    lower = "take attention='auto'" if eager else f"lower max_pixels{half} or take more devices"
    least, most = (numbers * size / ranks for numbers in run_memory(model.config, prompt, steps, eager))
    told = []
    for device, share in layer_shares(model).items():
        free = free_memory(device)
        needed = f"{gib(most * share * MARGIN)} on {device} beside the weights, where {gib(free)} are free"
        if free is not None and least * share * SURE_PART > free:
            raise ValueError(f"{asked} take about {needed}: {lower}")
        if free is not None and most * share * MARGIN > free:
            logger.warning("%s take about %s: that may not fit; lower max_new_tokens, or %s", asked, needed, lower)
        told.append(needed)
    record, free = record_memory(prompt, steps, planes), free_memory("cpu")
    told.append(f"up to {gib(record)} on the host for the record, where {gib(free)} are free")
    if free is not None and record > free:
        logger.warning("%s take %s: record fewer layers or heads, or lower max_new_tokens", asked, told[-1])
    return f"{asked} take about {', '.join(told)}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the host has no more memory."""
    import torch

    known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return known or any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def out_of_memory_told(advice: str = "lower max_pixels or max_new_tokens") -> Iterator[list[str]]:
    """Within this block running out of memory is a RuntimeError of one line, with the facts put into the list."""
    import torch

    facts: list[str] = []
    try:
        yield facts
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or str(error).startswith("out of memory: "):  # told already, while loading
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the cache
        gc.collect()
        torch.cuda.empty_cache()
        what = ". ".join(one_line(error).split(". ")[:2])
        raise RuntimeError("; ".join([f"out of memory: {what or 'on the host'}", *facts, advice])) from error
