"""Where each image token stands in its picture. Processor and model are asked; no family needs to be known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from attention_heatmap.log import one_line
from attention_heatmap.record import ImageTokens
from attention_heatmap.recording.layers import cross_layers
from attention_heatmap.recording.pixel_sources import PixelSources, float_tensor, pixel_sources, processed
from attention_heatmap.recording.pixel_tokens import token_of_each_value

_MOST_KEPT = 64  # placements of one model that are kept for pictures of the same sizes
_TRIAL = (350, 210)  # pixels of the picture on which a reported grid is tried: windows and odd ends in both directions

_kept: WeakKeyDictionary = WeakKeyDictionary()  # of each model, what it was found to do by processor and sizes


def image_token_id(config: Any) -> int:
    """The id that stands for a piece of a picture in `input_ids`. Raises ValueError where there is none."""
    for holder in (config, getattr(config, "vision_config", None)):
        for name in ("image_token_id", "image_token_index"):
            if isinstance(getattr(holder, name, None), int):
                return getattr(holder, name)
    raise ValueError(f"model type {config.model_type!r} names no image_token_id, so its image tokens cannot be found")


def locate_image_tokens(model: Any, processor: Any, inputs: Any, images: Sequence[Image.Image]) -> list[ImageTokens]:
    """Where every image token stands in its picture: one box a token, or an error.

    `inputs` is what the processor returned for `images` (batch 1). Ramps that go through the processor tell where
    each pixel value comes from, gradients of the model which token it feeds; a token's box is the extent of its
    pixel values. Tokens on no pixel of a picture (newlines, a class token, padding) get NaN boxes. Where only
    cross-attention sees the pictures, their tokens get positions of their own, right after the token that stands for
    each in the prompt. Raises ValueError, with the model type and the counts, where the tokens have no place.
    """
    token_id = image_token_id(model.config)
    positions = np.flatnonzero(inputs["input_ids"][0].cpu().numpy() == token_id)
    name = next((key for key in inputs if "pixel_values" in key and "video" not in key), "pixel_values")
    try:
        if not len(positions):
            raise ValueError("the prompt holds none; check the chat template")
        sizes = tuple(image.size for image in images)
        boxes, picture = _once(
            model,
            (repr(getattr(processor, "image_processor", processor)), sizes, len(positions)),
            lambda: _place(model, processor, inputs, sizes, name, positions),
        )
    except ValueError as error:
        raise ValueError(
            f"the image tokens cannot be placed in the picture: {one_line(error)} (model type "
            f"{model.config.model_type!r}, {len(positions)} image tokens, {name} of shape "
            f"{tuple(getattr(inputs.get(name), 'shape', ()))})"
        ) from error
    if cross_layers(model.config) and len(positions) == len(images):
        positions = positions[picture] + 1 + np.arange(len(picture))
    return [ImageTokens(positions[picture == number], boxes[picture == number]) for number in range(len(images))]


def _once(model: Any, key: tuple, make: Any) -> Any:
    """What was made for a model and a key before, else made now. Of many keys the last ones are kept."""
    kept = _kept.setdefault(model, {})
    if key not in kept:
        kept[key] = make()
        if len(kept) > _MOST_KEPT:
            kept.pop(next(iter(kept)))
    return kept[key]


def _place(
    model: Any, processor: Any, inputs: Any, sizes: tuple, name: str, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) float32 boxes of the image tokens, and (N,) the picture of each."""
    config = model.config
    float_tensor(inputs, name)
    if (
        config.model_type == "llava_onevision"
        and len(sizes) == 1
        and (boxes := pooled_boxes(config, *sizes[0])) is not None
    ):
        count, picture = len(boxes), np.zeros(len(boxes), int)
    else:
        for part in config.sub_configs:
            if "qformer" in part or "perceiver" in part:
                raise ValueError(f"tokens of a {part.removesuffix('_config')} each stand for the whole picture")
        owner, count = _owners(model, processor, inputs, name, len(positions))
        sources = pixel_sources(processor, sizes, name)
        if sources.shown.shape != owner.shape:
            raise ValueError(f"a ramp of the pictures' size gave {name} of shape {tuple(sources.shown.shape)}")
        boxes = token_boxes(sources, owner, count, sizes)
        picture = token_pictures(sources, owner, count)
    if count != len(positions) and not cross_layers(config):
        raise ValueError(f"the model makes {count} of the pictures")
    for number in range(len(sizes)):
        if not np.isfinite(boxes[picture == number]).any():
            raise ValueError(f"no token has a place in picture {number + 1} of {len(sizes)}")
    return boxes, picture


def _owners(model: Any, processor: Any, inputs: Any, name: str, count: int) -> tuple[Any, int]:
    """The token of each pixel value, and the number of tokens: as reported, where a trial confirms it, else found."""
    token_id = image_token_id(model.config)

    def confirmed() -> bool:
        import torch

        noise = 255 * torch.rand(3, *_TRIAL, generator=torch.Generator().manual_seed(0))
        trial = processed(processor, [noise])
        owner, count = token_of_each_value(model, trial, name, token_id)
        expected = reported_owners(trial, name, count)
        return expected is not None and bool((owner == expected)[owner >= 0].all())

    reported = reported_owners(inputs, name, count)
    settings = repr(getattr(processor, "image_processor", processor))
    if reported is not None and _once(model, ("reported", settings), confirmed):
        return reported, count
    return token_of_each_value(model, inputs, name, token_id)


def reported_owners(inputs: Any, name: str, count: int) -> np.ndarray | None:
    """The token of each pixel value where a grid is reported and patches stand in the tokens' order; else None."""
    shape = tuple(inputs[name].shape)
    if "image_grid_thw" not in inputs or len(shape) != 2 or shape[0] % count:
        return None
    return np.broadcast_to(np.arange(shape[0])[:, None] // (shape[0] // count), shape)


def token_boxes(sources: PixelSources, owner: np.ndarray, count: int, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """(count, 4) float32: the extent of each token's pixel values in its picture; NaN where it has none."""
    on = sources.shown & (owner >= 0)
    token, boxes = owner[on], np.full((count, 4), np.nan, np.float32)
    length_N2 = np.zeros((count, 2), np.float32)
    length_N2[token] = np.array(sizes)[sources.picture[on]]
    for axis, (at, length) in enumerate(zip((sources.x, sources.y), length_N2.T)):
        low, high = np.full(count, np.inf, np.float32), np.full(count, -np.inf, np.float32)
        np.minimum.at(low, token, at[on])
        np.maximum.at(high, token, at[on])
        half = _steps(at, on, owner, -1 - axis if at.ndim > 2 else -1, length) / 2
        # Enlarging repeats the middle of the picture's first and last pixel up to its ends.
        boxes[:, axis] = np.where(low > 0.501, np.maximum(low - half, 0), 0)
        boxes[:, axis + 2] = np.where(high < length - 0.501, np.minimum(high + half, length), length)
    boxes[(length_N2[:, 0] == 0) | ~(boxes[:, :2] < boxes[:, 2:]).all(axis=1)] = np.nan
    return boxes


def _steps(at: np.ndarray, on: np.ndarray, owner: np.ndarray, axis: int, length_N: np.ndarray) -> np.ndarray:
    """(N,) how far apart, in the picture, the columns (or rows) of pixel values are that a token hangs on."""
    step, before, after = np.diff(at, axis=axis), np.arange(at.shape[axis] - 1), np.arange(1, at.shape[axis])
    both, token = on.take(before, axis) & on.take(after, axis), owner.take(before, axis)
    step, token = step[both], token[both]
    rises = step > 1e-5 * length_N[token]  # less is rounding
    step, token = step[rises], token[rises]
    total, times = np.bincount(token, step, len(length_N)), np.bincount(token, minlength=len(length_N))
    return np.where(times > 0, total / np.maximum(times, 1), np.median(step) if len(step) else 0).astype(np.float32)


def token_pictures(sources: PixelSources, owner: Any, count: int) -> np.ndarray:
    """(count,) the picture that each token belongs to; tokens on no pixel go with those before them.

    Where the first picture begins with such tokens, as with a class token, so does every other one.
    """
    of_tile = np.where(sources.shown, sources.picture, -1).reshape(len(owner), -1).max(axis=1)
    of_tile = _filled(of_tile)  # a tile of padding goes with the one before
    tile = np.nonzero(owner >= 0)[0]
    found = np.full(count, -1)
    found[owner[owner >= 0]] = of_tile[tile]
    placed = np.flatnonzero(found >= 0)
    for before, after in pairwise(placed):
        if found[before] != found[after]:
            found[max(before + 1, after - placed[0]) : after] = found[after]
    return _filled(found)


def _filled(numbers: np.ndarray) -> np.ndarray:
    """Each -1 as the number before it, those at the beginning as the first one."""
    known = np.flatnonzero(numbers >= 0)
    return numbers[known[np.maximum(np.searchsorted(known, np.arange(len(numbers)), side="right") - 1, 0)]]


def pooled_boxes(config: Any, width: int, height: int) -> np.ndarray | None:
    """Boxes of llava_onevision where it pools, else None: there a cell blends patches, and a pixel feeds several tokens.

    The whole picture, then the cells of a canvas without its padding, a newline after each row.
    """
    from transformers.image_processing_utils import select_best_resolution

    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    side, size = tile // patch, np.array([width, height])
    canvas = np.array(select_best_resolution((height, width), config.image_grid_pinpoints)[::-1])
    patches, scale = canvas // tile * side, (canvas / size).min()
    resized = np.minimum(np.ceil(size * scale), canvas)
    unpadded, tight = patches.copy(), int(width / height <= patches[0] / patches[1])  # the axis with padding: x is 0
    across = 1 - tight
    unpadded[across] -= 2 * ((patches[across] - int(round(size[across] * (patches[tight] / size[tight]), 7))) // 2)
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(unpadded.prod() / (most * side**2))
    if ratio <= 1.1:
        return None

    def ends(patches: int, first: int, cells: int) -> np.ndarray:
        """(cells, 2) where cells begin and end on the canvas; what is left of a tile belongs to none."""
        edges = first + np.linspace(0, patches, cells + 1)
        tiles = np.stack([edges[:-1] // side, np.ceil(edges[1:] / side) - 1], axis=1)
        return tiles * (tile - side * patch) + np.stack([edges[:-1], edges[1:]], axis=1) * patch

    def boxes(x: np.ndarray, y: np.ndarray, newline: int) -> np.ndarray:
        made = np.full((len(y), len(x) + newline, 4), np.nan)
        made[:, : len(x), ::2], made[:, : len(x), 1::2] = x, y[:, None]
        return made.reshape(-1, 4)

    views = [ends(side, 0, side) * length / tile for length in size]
    parts = [
        (ends(kept, (all_ - kept) // 2, int(kept // ratio)) - (long - used) // 2) * length / used
        for kept, all_, long, used, length in zip(unpadded, patches, canvas, resized, size)
    ]
    found = np.concatenate([boxes(*views, 0), boxes(*parts, 1)]).clip(0, np.tile(size, 2))
    found[~(found[:, :2] < found[:, 2:]).all(axis=1)] = np.nan
    return found.astype(np.float32)
