"""What a configuration says of its layers and heads."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_heatmap.log import logger, one_line
from attention_heatmap.options import are_whole, expand
from attention_heatmap.record import Head

DEFAULT_LAYER = 20  # falls back to the last layer of a shallower model
_WITHOUT_ROWS = ("linear_attention", "conv", "mamba", "recurrent", "moe")  # of transformers' layer_types


def text_config(config: Any) -> Any:
    """The configuration of the language model. Raises ValueError where there is none."""
    text = config.get_text_config()
    for name in ("num_hidden_layers", "num_attention_heads"):
        if not isinstance(getattr(text, name, None), int):
            told = f"model type {config.model_type!r} has no text model whose {name} is known"
            raise ValueError(f"{told}; give a checkpoint that answers questions about pictures")
    return text


def cross_layers(config: Any) -> list[int]:
    """The layers whose keys are pictures, outside the text (mllama's); most models have none."""
    return list(getattr(config.get_text_config(), "cross_attention_layers", None) or [])


def layer_kinds(config: Any) -> list[str]:
    """What transformers calls each layer, such as "sliding_attention"; "" where all are of one kind."""
    text = config.get_text_config()
    return list(getattr(text, "layer_types", None) or [""] * text.num_hidden_layers)


def attention_layers(config: Any) -> list[int]:
    """The layers that have softmax attention; hybrid models have others in between."""
    return [layer for layer, kind in enumerate(layer_kinds(config)) if kind not in _WITHOUT_ROWS]


def layer_values(text: Any, name: str, default: int) -> np.ndarray:
    """(layers,) a number of a text model's configuration, which may differ from layer to layer."""
    layers = getattr(text, "per_layer_config", None) or [text] * text.num_hidden_layers
    found = [getattr(layer, name, None) for layer in layers]
    return np.array([np.max(number) if number else default for number in found])  # gemma3n has a list in each


def tp_size(model: Any) -> int:
    """The number of processes of a tensor-parallel run that share a model; 1 for one alone."""
    return getattr(model, "tp_size", None) or 1


def resolve_layers(config: Any, layers: Any) -> tuple[int, ...]:
    """The 0-based layers that are asked for, each once; none for "auto". Raises ValueError.

    layers: a number, "all", a range such as "0-7", or several of these; negative ones count from the end.
    """
    given, found = expand(layers, "layer_idx"), []
    if not given:
        raise ValueError("no layer was given; expected one or more")
    for one in given if given != ["auto"] else ():
        found += attention_layers(config) if one == "all" else [resolve_layer(config, one)]
    return tuple(dict.fromkeys(found))


def resolve_layer(config: Any, layer_idx: int) -> int:
    """The 0-based layer of a number that may be negative. Raises ValueError out of range, or without attention.

    The default layer alone gives way, where the model has no such layer or it does not look at pictures.
    """
    if not are_whole([layer_idx]):
        expected = "auto alone" if layer_idx == "auto" else "a whole number, a range such as 0-7, all, or auto"
        raise ValueError(f"layer_idx is {one_line(repr(layer_idx))[:200]}; expected {expected}")
    layer_idx, count, usable = int(layer_idx), text_config(config).num_hidden_layers, attention_layers(config)
    seeing = cross_layers(config) or usable
    if layer_idx == DEFAULT_LAYER and layer_idx not in seeing:
        nearest = min(seeing, key=lambda layer: abs(layer - layer_idx))
        which = "" if len(seeing) == count else f", of which {len(seeing)} show attention to pictures"
        shown = f"layer {nearest} is shown in place of the default {layer_idx}"
        logger.warning("the model has %d layers%s; %s", count, which, shown)
        return nearest
    if not -count <= layer_idx < count:
        usual = f"{count} layers (0..{count - 1}, or {-count}..-1)"
        raise ValueError(f"layer_idx {layer_idx} is out of range: the model has {usual}")
    if layer_idx % count not in usable:
        kind = layer_kinds(config)[layer_idx]
        raise ValueError(f"layer {layer_idx % count} is a {kind} layer without attention weights; take one of {usable}")
    return layer_idx % count


def resolve_heads(config: Any, head: Any) -> tuple[Head, ...]:
    """The reductions of the heads that are asked for, each once. Raises ValueError.

    head: "mean", "max", "auto", a number, a range such as "0-3", "each", the mean of some such as "1+3" (in Python
    also a tuple, (1, 3)), or several of these in a list.
    """
    count, found = text_config(config).num_attention_heads, []
    head = head.tolist() if isinstance(head, np.ndarray) else head
    for one in expand(head if isinstance(head, list) else [head], "head"):
        found += range(count) if one == "each" else [check_head(one, count)]
    heads = tuple(dict.fromkeys(found))
    if "auto" in heads and len(heads) > 1:
        raise ValueError(f"head is {head!r}; expected numbers, or auto alone")
    if not heads:
        raise ValueError("no head was given; expected one or more")
    return heads


def check_head(head: Any, count: int) -> Head:
    """A reduction of the heads that a layer with so many can do, heads counted from 0. Raises ValueError."""
    if isinstance(head, str) and head in ("mean", "max", "auto"):
        return head
    several = list(head) if isinstance(head, (list, tuple)) else [head]
    wrong = [one for one in several if not are_whole([one]) or not -count <= one < count]
    if wrong or not several:
        shown = one_line(repr(wrong[0] if wrong else head))[:200]
        raise ValueError(f"head {shown} cannot be taken: the layer has {count} heads; or take mean, max, each or auto")
    heads = tuple(dict.fromkeys(int(one) % count for one in several))
    return heads if len(heads) > 1 else heads[0]


def warn_of_blind_layers(config: Any, layers: Sequence[int], reach: int) -> None:
    """Say which layers cannot see the pictures, or not all of them, `reach` positions back from the response's end."""
    crossing, kinds = cross_layers(config), layer_kinds(config)
    window = getattr(config.get_text_config(), "sliding_window", None)
    for layer in dict.fromkeys(layers):
        if crossing and layer not in crossing:
            logger.warning("layer %d does not look at pictures; layers %s do", layer, crossing)
        elif kinds[layer] == "sliding_attention" and reach > (window or reach):
            told = f"layer {layer} sees the last {window} positions only"
            logger.warning("%s: at the response's end not all of the picture, %d back", told, reach)
