"""TODO."""

from __future__ import annotations

import gc
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from attention_heatmap.log import logger, one_line
from attention_heatmap.record import LARGEST_FLOAT32_RECORD
from attention_heatmap.recording.attention import decoder_layers
from attention_heatmap.recording.recorder import attention_layers, layer_kinds

MEMORY_MARGIN = 1.2  # times an estimate of memory: what is rounded up, and what stands for no large array
# Words of a RuntimeError which means that no memory is left: on the host, on an Apple GPU, in cuBLAS.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
SURE_PART = 0.8  # of an estimate: where not even this is free, a run surely does not fit


def layer_values(text: Any, name: str, default: int) -> np.ndarray:
    """(layers,) a number of a text model's configuration, which may differ from layer to layer."""
    layers = getattr(text, "per_layer_config", None) or [text] * text.num_hidden_layers
    found = [getattr(layer, name, None) for layer in layers]
    return np.array([np.max(number) if number else default for number in found])  # gemma3n has a list in each


def cache_size(config: Any, positions: int) -> int:
    """Numbers that the cache holds after so many positions; a sliding window keeps the last ones only."""
    text = config.get_text_config()
    heads, window = text.num_attention_heads, getattr(text, "sliding_window", None) or positions
    key_heads = layer_values(text, "num_key_value_heads", heads)
    sizes = layer_values(text, "head_dim", text.hidden_size // heads)
    kept = [min(positions, window) if kind == "sliding_attention" else positions for kind in layer_kinds(config)]
    return int((2 * key_heads * sizes * kept)[attention_layers(config)].sum())


def pass_size(config: Any, positions: int, patches: int = 0, ranks: int = 1) -> int:
    """Numbers that exist at once, at the most, in a pass over so many positions, or over the patches of the pictures.

    That is inside an MLP, which has its inner values three times; `ranks` processes share these.
    """
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    inner = layer_values(
        text, "intermediate_size", 0 if hasattr(text, "moe_intermediate_size") else 4 * text.hidden_size
    )
    experts = layer_values(text, "moe_intermediate_size", 0) * layer_values(text, "num_experts_per_tok", 1)
    in_text = positions * (3 * max(*inner, *experts) / ranks + 4 * text.hidden_size)
    wide = getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", None) or text.hidden_size
    return int(max(in_text, patches * (3 * (getattr(vision, "intermediate_size", None) or 4 * wide) + 8 * wide)))


def device_memory(
    config: Any, prompt: int, steps: int, value_bytes: int, patches: int = 0, *, replay: bool = False,
    eager: bool = False, ranks: int = 1, share: float = 1.0,
) -> tuple[int, int]:  # fmt: skip
    """Bytes that a run takes on a device beside the weights, estimated: for the prompt alone, and for all `steps`.

    replay: one pass over prompt and response, without a cache. eager: every layer's weights are kept.
    patches: of the vision tower. ranks: processes that share each layer. share: part of the layers on this device.
    """
    heads, kept = config.get_text_config().num_attention_heads / ranks, share * len(attention_layers(config))
    passed = prompt + steps if replay else prompt
    cached = [0 if replay else share / ranks * cache_size(config, S) for S in (prompt, prompt + steps)]
    least = cached[0] + pass_size(config, passed, patches, ranks)
    most = max(least, cached[1])
    if eager:  # beside the weights that are kept a layer has scores, masked scores, weights, and two in float32
        least += heads * passed**2 * (kept + 3 + 8 / value_bytes)
        most = least + (not replay) * heads * kept * steps * (prompt + steps)
    return int(least * value_bytes), int(most * value_bytes)


def record_memory(prompt: int, steps: int, layers: int) -> int:
    """Bytes of the record's weights on the host, at most."""
    values = steps * layers * (prompt + steps)
    return values * (4 if 4 * values <= LARGEST_FLOAT32_RECORD else 2)


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


def layer_shares(model: Any) -> dict[Any, float]:
    """The devices that run the layers of the language model, and the part of the layers that each runs."""
    import torch

    layers = decoder_layers(model) or [model]
    hooks = [getattr(getattr(layer, "_hf_hook", None), "execution_device", None) for layer in layers]  # of accelerate
    places = [next(layer.parameters()).device if at is None else at for layer, at in zip(layers, hooks)]
    devices = [torch.device(place) for place in places]
    return {device: devices.count(device) / len(devices) for device in dict.fromkeys(devices)}


def gib(count: float | None) -> str:
    """Bytes in words."""
    if count is None:
        return "unknown GiB"
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def weights_memory(folder: str, config: Any, dtype: Any) -> int:
    """Bytes of a checkpoint's weights once they are loaded; 0 where that is not known: on the hub, or quantised."""
    import torch

    found = (list(Path(folder).glob(name)) for name in ("model*.safetensors", "pytorch_model*.bin"))
    files = next((files for files in found if files), [])
    if getattr(config, "quantization_config", None):
        return 0
    size, wanted = sum(file.stat().st_size for file in files), getattr(torch, str(dtype).removeprefix("torch."), None)
    return size if wanted is None or config.dtype is None else size * wanted.itemsize // config.dtype.itemsize


def check_weights(needed: int, device_map: Any, ranks: int = 1) -> None:
    """Raises ValueError where weights surely do not fit on the device named; warns where they outgrow all cards."""
    import torch

    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    device = str(device_map.get("") if isinstance(device_map, dict) else device_map or "cpu")
    if ranks > 1:
        device, needed = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cards else "cpu", needed // ranks
    elif not re.fullmatch(r"(cpu|cuda)(:\d+)?", device):
        free = [free_memory(card) for card in cards or ["cpu"]]
        if None not in free and needed > sum(free):
            logger.warning(
                "the weights take %s, and %s are free on %s: the rest stays on the host or on disk, which is slow",
                gib(needed), gib(sum(free)), ", ".join(cards) or "the host",
            )  # fmt: skip
        return
    free = free_memory(device)
    if free is not None and needed * SURE_PART > free:
        raise ValueError(
            f"the weights take {gib(needed)} on {device}, where {gib(free)} are free: take a smaller dtype, a "
            "quantised checkpoint, device_map 'auto' or, by torchrun, tp_plan 'auto'"
        )


def check_memory(model: Any, inputs: Any, steps: int, layers: int, *, replay: bool, eager: bool) -> str:
    """What a run will take, in words. Warns where that may not fit; raises ValueError where it surely does not.

    An answer seldom has all of its `steps`, so that the prompt alone decides what surely does not fit.
    """
    prompt, config, vision = inputs["input_ids"].shape[1], model.config, getattr(model.config, "vision_config", None)
    pixels, side, patches = inputs.get("pixel_values"), getattr(vision, "patch_size", None), 0
    if hasattr(pixels, "numel") and isinstance(side, int):
        patches = pixels.numel() // (3 * side**2 * getattr(vision, "temporal_patch_size", 1))
    asked = f"{prompt} prompt tokens and up to {steps} of the response"
    half = ", take dtype bfloat16" * (model.dtype.itemsize > 2)
    lower = "take attention='auto'" if eager else f"lower max_pixels{half} or take more devices"
    how = {"replay": replay, "eager": eager, "ranks": getattr(model, "tp_size", None) or 1}
    told = []
    for device, share in layer_shares(model).items():
        least, most = device_memory(config, prompt, steps, model.dtype.itemsize, patches, share=share, **how)
        free = free_memory(device)
        told.append(f"{gib(most * MEMORY_MARGIN)} on {device} beside the weights, where {gib(free)} are free")
        if free is not None and least * SURE_PART > free:
            raise ValueError(f"{asked} take about {told[-1]}: {lower}")
        if free is not None and most * MEMORY_MARGIN > free:
            logger.warning("%s take about %s: that may not fit; lower max_new_tokens, or %s", asked, told[-1], lower)
    record, free = record_memory(prompt, steps, layers), free_memory("cpu")
    told.append(f"up to {gib(record)} on the host for the record, where {gib(free)} are free")
    if free is not None and record > free:
        logger.warning("%s take %s: record fewer layers, or lower max_new_tokens", asked, told[-1])
    return f"{asked} take about {', '.join(told)}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the host has no more memory."""
    import torch

    known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return known or any(words in str(error) for words in OUT_OF_MEMORY)


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
