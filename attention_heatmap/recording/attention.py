"""The registered attention function: rows beside the attention that the model would have used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from attention_heatmap.recording.recorder import AttentionRecorder

# Names of our attention functions in transformers; must not contain flash, flex, sdpa or paged.
RECORDING_ATTENTION, NO_ATTENTION = "record_rows", "no_attention"
active_recorder: ContextVar[AttentionRecorder | None] = ContextVar("active_recorder", default=None)


def recording_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> tuple:
    """The attention function registered with transformers: sdpa's output, and rows for the active recorder.

    What sdpa cannot do (a soft cap, sinks, a position bias) goes to the model's own eager function.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    recorder, layer = active_recorder.get(), module.layer_idx
    if kwargs.get("softcap") is None and kwargs.get("s_aux") is None and kwargs.get("position_bias") is None:
        if recorder is not None:
            recorder.observe(layer, query, key, attention_mask, kwargs.get("scaling"))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise RuntimeError(f"{type(module).__name__} has no eager_attention_forward; try attention='eager'")
    mask = additive_mask(attention_mask, query, key.shape[2])
    output, weights_1HQK = eager(module, query, key, value, mask, **kwargs)
    if recorder is not None:
        recorder.observe_weights(layer, weights_1HQK)
    return output, weights_1HQK


def additive_mask(mask: Any, query: Any, K: int) -> Any:
    """sdpa's mask as eager attention adds it to the scores; None means what it means to sdpa."""
    import torch

    Q = query.shape[2]
    if mask is None:
        mask = torch.ones(1, 1, Q, K, dtype=torch.bool, device=query.device)
        mask = mask.tril() if Q > 1 else mask
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


def recording_mask(*args: Any, **kwargs: Any) -> Any:
    """sdpa's mask, written out where the keys outnumber several queries: a static cache, which a layer may cut."""
    from transformers.masking_utils import sdpa_mask

    if 1 < kwargs.get("q_length", 0) < kwargs.get("kv_length", 0):
        kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(*args, **kwargs)


def implementations(config: Any) -> dict[str, str]:
    """The attention implementation in force for a model ("") and each of its sub-models."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": config._attn_implementation} | {
        name: part._attn_implementation for name, part in parts.items() if part is not None
    }


@contextmanager
def text_attention(model: Any, text: str | None = None, rest: str | None = None) -> Iterator[None]:
    """Let the language model, and the rest, use other attention; put the old one back in every case."""
    before = implementations(model.config)
    text_config = model.config.get_text_config()
    text_key = next((name for name in before if name and getattr(model.config, name) is text_config), "")
    wanted = {name: text if name == text_key else rest for name in before if name or name == text_key}
    try:
        model.set_attn_implementation(before | {name: wish for name, wish in wanted.items() if wish})
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def recording(model: Any, recorder: AttentionRecorder) -> Iterator[None]:
    """Within this block the chosen layers of the model report their attention rows to the recorder."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(RECORDING_ATTENTION, recording_attention)
    AttentionMaskInterface.register(RECORDING_ATTENTION, recording_mask)
    token = active_recorder.set(recorder)
    try:
        with text_attention(model, RECORDING_ATTENTION):
            yield
    finally:
        active_recorder.reset(token)


@contextmanager
def vision_attention_off(model: Any) -> Iterator[None]:
    """Within this block every part of the model but the language model has an attention that adds nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def nothing(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple:
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    AttentionInterface.register(NO_ATTENTION, nothing)
    AttentionMaskInterface.register(NO_ATTENTION, eager_mask)
    with text_attention(model, rest=NO_ATTENTION):
        yield


def decoder_layers(model: Any) -> Any:
    """The layers of the language model; None where they cannot be found."""
    return getattr(model.get_decoder() if hasattr(model, "get_decoder") else None, "layers", None)
