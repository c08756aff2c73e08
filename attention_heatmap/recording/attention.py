"""The registered attention function: rows beside the attention that the model would have used."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from attention_heatmap.recording import torch, transformers
from attention_heatmap.recording.recorder import AttentionRecorder, causal_mask

# Names of our attention functions in transformers; must not contain flash, flex, sdpa or paged.
RECORDING_ATTENTION, _NO_ATTENTION = "record_rows", "no_attention"
_STOCK = ("sdpa", "eager", "flex_attention")  # transformers' own, beside all of flash; sdpa computes the same
_BEYOND_SDPA = ("softcap", "s_aux", "position_bias")  # keywords of what sdpa cannot do; s_aux: attention sinks

# Who records, and the name of the function that computes the output: sdpa, or a user's own.
_active: ContextVar[tuple[AttentionRecorder, str] | None] = ContextVar("active", default=None)


def recording_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> tuple:
    """The attention function registered with transformers: what the model would have done, and rows.

    In place of transformers' own functions, which all compute the same, sdpa runs; what sdpa cannot do goes to the
    model's own eager function.
    """
    recorder, own = _active.get()
    layer = getattr(module, "layer_idx", None)  # inkling2's attention over layers has none
    if layer is not None and any(kwargs.get(name) is not None for name in _BEYOND_SDPA):
        output = _eager(module, query, key, value, attention_mask, **kwargs)
        recorder.observe_weights(layer, output[1])
        if own == "sdpa":
            return output
    elif layer is not None:
        if attention_mask is not None and getattr(attention_mask, "ndim", 0) != 4:
            told = f"the mask of the attention function {own!r} is not (1, 1, queries, keys)"
            raise RuntimeError(f"{told}; try attention='eager'")
        scaling, window = kwargs.get("scaling"), kwargs.get("sliding_window")
        recorder.observe(layer, query, key, attention_mask, scaling, window)
    masked = own in transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS  # for another transformers makes no mask
    mask = attention_mask if masked else None
    return transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS[own](module, query, key, value, mask, **kwargs)


def _eager(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> tuple:
    """Output and weights of the model's own eager function; a mask that is none means what it means to sdpa."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise RuntimeError(f"{type(module).__name__} has no eager_attention_forward; try attention='eager'")
    if mask is None:
        Q, K = query.shape[2], key.shape[2]
        mask = causal_mask(slice(0, Q), Q, K, None, query.device)[None, None]
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    return eager(module, query, key, value, mask, **kwargs)


def _recording_mask(*args: Any, **kwargs: Any) -> Any:
    """The mask of a user's own attention function, where it has one; else sdpa's."""
    _, own = _active.get()
    masks = transformers.masking_utils
    return masks.ALL_MASK_ATTENTION_FUNCTIONS.get(own, masks.sdpa_mask)(*args, **kwargs)


def implementations(config: Any) -> dict[str, str]:
    """The attention implementation in force for a model ("") and each of its sub-models."""
    parts = {"": config} | {name: getattr(config, name, None) for name in config.sub_configs}
    # gemma4_unified has the configuration of a tower, but no tower.
    return {name: part._attn_implementation for name, part in parts.items() if part and part._attn_implementation}


def _text_key(config: Any) -> str:
    """The name of the language model's configuration among a model's; "" where it is the model's own."""
    text = config.get_text_config()
    return next((name for name in config.sub_configs if getattr(config, name, None) is text), "")


@contextmanager
def text_attention(model: Any, text: str | None = None, rest: str | None = None) -> Iterator[None]:
    """Let the language model, and the rest, use other attention; put the old one back in every case."""
    before, text_key = implementations(model.config), _text_key(model.config)
    wanted = {name: text if name == text_key else rest for name in {*before, text_key} if name or name == text_key}
    try:
        model.set_attn_implementation(before | {name: wish for name, wish in wanted.items() if wish})
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def recording(model: Any, recorder: AttentionRecorder) -> Iterator[None]:
    """Within this block the chosen layers of the model report their attention rows to the recorder."""
    transformers.AttentionInterface.register(RECORDING_ATTENTION, recording_attention)
    transformers.AttentionMaskInterface.register(RECORDING_ATTENTION, _recording_mask)
    name = implementations(model.config).get(_text_key(model.config))
    stock = name is None or name in _STOCK or "flash" in name or "/" in name or name.startswith("paged|")
    token = _active.set((recorder, "sdpa" if stock else name))
    try:
        with text_attention(model, RECORDING_ATTENTION):
            yield
    finally:
        _active.reset(token)


@contextmanager
def vision_attention_off(model: Any) -> Iterator[None]:
    """Within this block every part of the model but the language model has an attention that adds nothing."""

    def nothing(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple:
        if query.shape[2] < key.shape[2]:  # a pool of patches, which without its attention would be empty: their mean
            mean = value.mean(2, keepdim=True).repeat_interleave(query.shape[1] // value.shape[1], 1)
            return mean.expand(-1, -1, query.shape[2], -1).transpose(1, 2), None
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    transformers.AttentionInterface.register(_NO_ATTENTION, nothing)
    transformers.AttentionMaskInterface.register(_NO_ATTENTION, transformers.masking_utils.eager_mask)
    with text_attention(model, rest=_NO_ATTENTION):
        yield


def decoder_layers(model: Any) -> Any:
    """The layers of the language model; None where they cannot be found."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    while decoder is not None and not hasattr(decoder, "layers"):  # llama4 gives a model with a head
        decoder = getattr(decoder, "model", None)
    return getattr(decoder, "layers", None)
