"""Where each image token stands in its picture. Processor and model are asked; no family needs to be known."""

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from attention_heatmap.log import one_line
from attention_heatmap.record import ImageTokens
from attention_heatmap.recording import torch
from attention_heatmap.recording.layers import cross_layers
from attention_heatmap.recording.pixels import END, PixelSources, pixel_sources, token_of_each_value
from attention_heatmap.recording.prompt import build_inputs

_MOST_KEPT = 64  # placements of one model that are kept for pictures of the same sizes
_TRIAL = (280, 170)  # pixels of the picture on which a reported grid is tried: windows and odd ends in both directions

_kept: WeakKeyDictionary = WeakKeyDictionary()  # of each model, what it was found to do by processor and sizes


def image_token_id(config: Any) -> int:
    """The id that stands for a piece of a picture in `input_ids`. Raises ValueError where none has a place."""
    kind = f"model type {config.model_type!r}"
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} is an encoder-decoder, whose answering layers do not hold the prompt")
    for part in getattr(config, "sub_configs", ()):
        if "qformer" in part or "perceiver" in part:
            raise ValueError(f"{kind} has a {part.removesuffix('_config')}: its tokens stand for no part of a picture")
    for holder in (config, getattr(config, "vision_config", None)):
        for name in ("image_token_id", "image_token_index"):
            if isinstance(getattr(holder, name, None), int):
                return getattr(holder, name)
    raise ValueError(f"{kind} names no image_token_id, so its image tokens cannot be found")


def locate_image_tokens(model: Any, processor: Any, inputs: Any, images: Sequence[Image.Image]) -> list[ImageTokens]:
    """Where every image token stands in its picture: one box a token, or an error.

    `inputs` is what the processor returned for `images` (batch 1). A token's box is the extent, in the picture, of the
    pixel values that feed it; NaN for a token on no pixel (newlines, a class token, padding). Where only
    cross-attention sees the pictures, their tokens get positions of their own, right after the token that stands for
    each in the prompt. Raises ValueError, with the model type and the counts, where the tokens have no place.
    """
    positions = np.flatnonzero(image_token_id(model.config) == inputs["input_ids"][0].cpu().numpy())
    settings = repr(getattr(processor, "image_processor", processor))
    names = [key for key in inputs if ("pixel_values" in key or key == "image_patches") and "video" not in key]
    name = next(iter(names), "pixel_values")
    try:
        if not len(positions):
            raise ValueError("the prompt holds none; check the chat template")
        if len(names) > 1:
            raise ValueError(f"the model takes pictures in several forms: {' and '.join(names)}")
        sizes = tuple(image.size for image in images)
        asked = model, processor, inputs, sizes, name, len(positions)
        boxes, picture = _once(model, (settings, sizes, len(positions)), lambda: _place(*asked))
    except ValueError as error:
        shape = tuple(getattr(inputs.get(name), "shape", ()))
        facts = f"model type {model.config.model_type!r}, {len(positions)} image tokens, {name} of shape {shape}"
        raise ValueError(f"the image tokens cannot be placed in the picture: {one_line(error)} ({facts})") from error
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


def _place(model: Any, processor: Any, inputs: Any, sizes: tuple, name: str, expected: int) -> tuple:
    """(N, 4) float32 boxes of the image tokens, and (N,) the picture of each."""
    config = model.config
    if not hasattr(inputs.get(name), "is_floating_point"):
        raise ValueError(f"{name} is no tensor of pixel values")
    pools = config.model_type == "llava_onevision" and len(sizes) == 1
    if pools and (boxes := pooled_boxes(config, *sizes[0])) is not None:
        count, picture = len(boxes), np.zeros(len(boxes), int)
    else:
        owner, count = _owners(model, processor, inputs, name, expected)
        sources = pixel_sources(processor, sizes, name)
        if sources.shown.shape != owner.shape:
            raise ValueError(f"a ramp of the pictures' size gave {name} of shape {sources.shown.shape}, as tiles")
        boxes, picture = token_boxes(sources, owner, count, sizes), token_pictures(sources, owner, count)
    if count != expected and not cross_layers(config):
        raise ValueError(f"the model makes {count} of the pictures")
    for number in range(len(sizes)):
        if not np.isfinite(boxes[picture == number]).any():
            raise ValueError(f"no token has a place in picture {number + 1} of {len(sizes)}")
    return boxes, picture


def _owners(model: Any, processor: Any, inputs: Any, name: str, count: int) -> tuple[Any, int]:
    """The token of each pixel value, and the number of tokens: as reported, where a trial confirms it, else found."""
    token_id = image_token_id(model.config)

    def confirmed() -> bool:
        noise = np.random.default_rng(0).integers(1, 256, (*_TRIAL, 3), np.uint8)
        trial = build_inputs(processor, "", [Image.fromarray(noise)], "{Question}")
        owner, count = token_of_each_value(model, trial, name, token_id)
        return bool((owner == reported_owners(trial, name, count))[owner >= 0].all())

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
        boxes[:, axis] = np.where(low > END, np.maximum(low - half, 0), 0)
        boxes[:, axis + 2] = np.where(high < length - END, np.minimum(high + half, length), length)
    boxes[(length_N2[:, 0] == 0) | ~(boxes[:, :2] < boxes[:, 2:]).all(axis=1)] = np.nan
    return boxes


def _steps(at: np.ndarray, on: np.ndarray, owner: np.ndarray, axis: int, length_N: np.ndarray) -> np.ndarray:
    """(N,) how far apart, in the picture, the columns (or rows) of pixel values are that a token hangs on."""
    at, on, owner = (np.moveaxis(values, axis, 0) for values in (at, on, owner))
    rises = on[1:] & on[:-1] & (at[1:] - at[:-1] > 1e-5 * length_N[owner[:-1]])  # less is rounding
    step, token = (at[1:] - at[:-1])[rises], owner[:-1][rises]
    total, times = np.bincount(token, step, len(length_N)), np.bincount(token, minlength=len(length_N))
    return np.where(times > 0, total / np.maximum(times, 1), total.sum() / max(len(step), 1)).astype(np.float32)


def token_pictures(sources: PixelSources, owner: np.ndarray, count: int) -> np.ndarray:
    """(count,) the picture that each token belongs to. A token on no pixel goes with those before it, but for as many
    as the first picture begins with: a class token."""
    of_tile = np.where(sources.shown, sources.picture, -1).reshape(len(owner), -1).max(axis=1)
    token, of_token = owner[owner >= 0], of_tile[np.nonzero(owner >= 0)[0]]
    placed, starts = np.unique(token), [0]
    for number in range(1, of_tile.max() + 1):
        first = token[of_token == number].min(initial=count)
        starts.append(max(first - placed[0], placed[np.searchsorted(placed, first) - 1] + 1))
    return np.searchsorted(starts, np.arange(count), side="right") - 1


def pooled_boxes(config: Any, width: int, height: int) -> np.ndarray | None:
    """Boxes of llava_onevision where it pools, so that a pixel feeds several tokens; else None."""
    from transformers.models.llava_onevision.modeling_llava_onevision import get_anyres_image_grid_shape, unpad_image

    tile, patch, size = config.vision_config.image_size, config.vision_config.patch_size, (height, width)
    side, tiles = tile // patch, get_anyres_image_grid_shape(size, config.image_grid_pinpoints, tile)
    patches_2RC = torch.stack(torch.meshgrid(*(torch.arange(side * count) for count in tiles), indexing="ij"))
    kept_2RC = unpad_image(patches_2RC, size)
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(kept_2RC[0].numel() / (most * side**2))
    if ratio <= 1.1:
        return None
    scale, whole, cells = min(count * tile / length for count, length in zip(tiles, size)), [], []
    for kept, length, count, along in zip(kept_2RC, size, tiles, kept_2RC.shape[1:]):
        edges = int(kept.min()) + np.linspace(0, along, int(along // ratio) + 1)
        ends = np.stack([edges[:-1], edges[1:]])
        of_tile = np.stack([edges[:-1] // side, np.ceil(edges[1:] / side) - 1])
        used = min(math.ceil(length * scale), count * tile)
        padding = (count * tile - used) // 2
        cells.append((ends * patch + of_tile * (tile - side * patch) - padding) * length / used)
        whole.append(np.arange(side) * patch * length / tile + np.array([[0], [patch * length / tile]]))
    boxes = np.concatenate([_grid(*whole), _grid(*cells, newline=1)]).clip(0, [width, height] * 2)
    boxes[~(boxes[:, :2] < boxes[:, 2:]).all(axis=1)] = np.nan
    return boxes.astype(np.float32)


def _grid(rows: np.ndarray, columns: np.ndarray, newline: int = 0) -> np.ndarray:
    """Boxes, row by row, from (2, N) where rows and columns begin and end; NaN for a newline after each row."""
    boxes = np.full((rows.shape[1], columns.shape[1] + newline, 4), np.nan)
    boxes[:, : columns.shape[1], ::2], boxes[:, : columns.shape[1], 1::2] = columns.T, rows.T[:, None]
    return boxes.reshape(-1, 4)
