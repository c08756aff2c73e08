"""What a run takes: refused where it surely does not fit, told in one line where memory runs out."""

import gc
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from attention_heatmap.log import logger, one_line
from attention_heatmap.recording import torch
from attention_heatmap.recording.layers import attention_layers, layer_kinds, layer_values, tp_size
from attention_heatmap.recording.prompt import input_device
from attention_heatmap.recording.recorder import record_dtype

MARGIN = 1.15  # times an estimate: what is rounded up, and what stands for no large array
SURE_PART = 0.7  # of an estimate: where not even this is free, a run surely does not fit
# Words of a RuntimeError which means that no memory is left: on the host, on an Apple GPU, in cuBLAS.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def run_memory(config: Any, positions: int, eager: bool = False, cache: bool = True) -> int:
    """Numbers that a run over so many positions holds at once beside the weights, estimated.

    The cache, which the pass that reads the rows has not and a layer with a window hardly, and a pass at its peak:
    inside an MLP, with its inner values three times. eager: every layer's weights, scores and copies of one layer.
    """
    text = config.get_text_config()
    heads, kinds = text.num_attention_heads, layer_kinds(config)
    head_dims = layer_values(text, "head_dim", text.hidden_size // heads)
    cached = (layer_values(text, "num_key_value_heads", heads) * head_dims)[np.isin(kinds, ("", "full_attention"))]
    inner = layer_values(text, "intermediate_size", 4 * text.hidden_size).max()
    weights = eager * heads * positions**2 * (len(attention_layers(config)) + 7)
    return int(positions * (2 * cache * cached.sum() + 3 * inner + 4 * text.hidden_size) + weights)


def free_memory(device: Any) -> float:
    """Bytes that can be taken on a device, torch's own reserve included; infinite where that is not known."""
    import psutil

    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available if device.type == "cpu" else math.inf


def gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def check_memory(model: Any, prompt: int, steps: int, planes: int, *, eager: bool) -> str:
    """What a run will take, in words. Warns where that may not fit; raises ValueError where it surely does not.

    An answer seldom has all of its `steps`, so that a pass over the prompt decides what surely does not fit on the
    devices, which are taken together.
    """
    size, half = model.dtype.itemsize / tp_size(model), ", take dtype bfloat16" * (model.dtype.itemsize > 2)
    advice = "take attention='auto'" if eager else f"lower max_pixels{half} or take more devices"
    least = run_memory(model.config, prompt, eager, cache=False) * size
    most = run_memory(model.config, prompt + steps, eager) * size
    # Weights that accelerate keeps on the host or on disk are on "meta", and run where the model takes its inputs.
    devices = {input_device(model), *(weight.device for weight in model.parameters() if weight.device.type != "meta")}
    free, where = sum(map(free_memory, devices)), ", ".join(sorted(map(str, devices)))
    asked = f"{prompt} prompt tokens and up to {steps} of the response take about {gib(most * MARGIN)}"
    told = f"{asked} on {where} beside the weights, where {gib(free)} are free"
    if least * SURE_PART > free:
        raise ValueError(f"{told}: {advice}")
    if most * MARGIN > free:
        logger.warning("%s: that may not fit; lower max_new_tokens, or %s", told, advice)
    return f"{told}; {check_record_memory(prompt, steps, planes, known=False)}"


def check_record_memory(prompt: int, steps: int, planes: int, *, known: bool) -> str:
    """What the record will take on the host, in words. Where it does not fit: raises ValueError, or warns.

    known: the answer has so many steps; else that is the most that it may have.
    """
    values = steps * planes * (prompt + steps)
    record, free = values * np.dtype(record_dtype(values)).itemsize, free_memory("cpu")
    told = f"{'' if known else 'up to '}{gib(record)} on the host for the record, where {gib(free)} are free"
    advice = "record fewer layers or heads, or lower max_new_tokens"
    if record > free and known:
        raise ValueError(f"{told}: {advice}")
    if record > free:
        logger.warning("%s: that may not fit; %s", told, advice)
    return told


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the host has no more memory."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def out_of_memory_told(advice: str = "lower max_pixels or max_new_tokens") -> Iterator[list[str]]:
    """Within this block running out of memory is a RuntimeError of one line, with the facts put into the list."""
    facts: list[str] = []
    try:
        yield facts
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the cache
        gc.collect()
        torch.cuda.empty_cache()
        what = ". ".join(one_line(error).split(". ")[:2])
        raise RuntimeError("; ".join([f"out of memory: {what or 'on the host'}", *facts, advice])) from error
