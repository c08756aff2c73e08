"""Two independent truths for the boxes of image tokens: what a change of half a picture changes, and old formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from attention_heatmap.record import ImageTokens
from attention_heatmap.recording.attention import decoder_layers, vision_attention_off
from attention_heatmap.recording.image_tokens import image_token_id, locate_image_tokens
from attention_heatmap.recording.prompt import build_inputs

KERNEL = 3.5  # pixels of the picture, or of the canvas where that is coarser, over which resizing blends
CUTS = (0.31, 0.64)  # of a picture's side


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def located(model: Any, processor: Any, images: Sequence[Image.Image]) -> list[ImageTokens]:
    inputs = build_inputs(processor, "Where?", images, "{Question}")
    return locate_image_tokens(model, processor, inputs, images)


class _Found(Exception):
    pass


def embeddings(model: Any, processor: Any, images: Sequence[Image.Image]) -> np.ndarray:
    """(N, D) what the language model gets of the pictures, one row an image token, without attention in the tower."""
    found = {}

    def keep(module, args, kwargs):
        found.update({"hidden_states": args[0] if args else None, **kwargs})
        raise _Found

    inputs = build_inputs(processor, "Where?", images, "{Question}").to(model.dtype)
    hook = decoder_layers(model)[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with vision_attention_off(model), torch.inference_mode():
            model(**inputs, use_cache=False)
    except _Found:
        pass
    finally:
        hook.remove()
    if (crossing := found.get("cross_attention_states")) is not None:
        real = inputs["aspect_ratio_mask"].flatten().bool()
        return crossing.reshape(len(real), -1, crossing.shape[-1])[real].flatten(0, 1).numpy()
    return found["hidden_states"][0, inputs["input_ids"][0] == image_token_id(model.config)].flatten(1).numpy()


def breaches(
    model: Any, processor: Any, image: Image.Image, boxes: np.ndarray, blend: float = 0.25, cuts: Sequence[float] = CUTS
) -> tuple[int, int]:
    """How many pairs of a token and a changed half of the picture were looked at, and how many contradict the boxes.

    A token must change with the pixels of its box and with no others. blend: of a cell's side, about its edges, where
    nothing is asked.
    """
    before, other = embeddings(model, processor, [image]), np.asarray(noise_picture(*image.size, seed=9))
    looked = wrong = 0
    placed = np.isfinite(boxes[:, 0])
    for axis, length in enumerate(image.size):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        slack = blend * (high - low) + KERNEL
        for cut in (round(part * length) for part in cuts):
            for first in (True, False):
                changed = np.array(image)
                half = [slice(None), slice(None)]
                half[1 - axis] = slice(None, cut) if first else slice(cut, None)
                changed[tuple(half)] = other[tuple(half)]
                difference = np.abs(embeddings(model, processor, [Image.fromarray(changed)]) - before).max(axis=1)
                moved = difference > 1e-5 * np.abs(before).max()
                inside = (low < cut - slack) if first else (high > cut + slack)
                outside = (low > cut + slack) if first else (high < cut - slack)
                looked += int((placed & (inside | outside)).sum()) + int((~placed).sum())
                wrong += int((placed & ((inside & ~moved) | (outside & moved))).sum()) + int((~placed & moved).sum())
    return looked, wrong


# The formulas by which families lay out their tokens, each from the family's own code: what the boxes must be.


def grid(x: np.ndarray, y: np.ndarray, newline: int = 0) -> np.ndarray:
    """(rows · (columns + newline), 4) from (columns, 2) and (rows, 2) ends of cells; NaN for a newline."""
    made = np.full((len(y), len(x) + newline, 4), np.nan)
    made[:, : len(x), ::2], made[:, : len(x), 1::2] = x, y[:, None]
    return made.reshape(-1, 4)


def ends(count: int, cell: float, start: float = 0) -> np.ndarray:
    """(count, 2) where cells in a row begin and end."""
    at = start + cell * np.arange(count + 1)
    return np.stack([at[:-1], at[1:]], axis=1)


def whole(size: tuple[int, int], tile: int, cell: int, newline: int = 0) -> np.ndarray:
    """The picture squeezed into one tile of cells; what is left of the tile belongs to none."""
    return grid(*(ends(tile // cell, cell * length / tile) for length in size), newline)


def tiled(size: tuple[int, int], rows: int, columns: int, tile: int, cell: int) -> np.ndarray:
    """The picture squeezed into rows and columns of tiles, tile by tile."""
    (x, y), n = ((length / (count * tile) for length, count in zip(size, (columns, rows)))), tile // cell
    parts = [
        grid(ends(n, cell * x, column * tile * x), ends(n, cell * y, row * tile * y))
        for row in range(rows) for column in range(columns)
    ]  # fmt: skip
    return np.concatenate(parts)


def cropped(size: tuple[int, int], tile: int, patch: int) -> np.ndarray:
    """llava: the shortest edge resized, the middle cut out."""
    resized = [int(length * tile / min(size)) for length in size]
    return grid(*(
        ends(tile // patch, patch * length / long, (long - tile) // 2 * length / long)
        for length, long in zip(size, resized)
    ))  # fmt: skip


def anyres(size: tuple[int, int], pinpoints: list, tile: int, patch: int) -> np.ndarray:
    """llava_next and unpooled llava_onevision: the whole, then the unpadded rows of a canvas, each with a newline."""
    from transformers.image_processing_utils import select_best_resolution

    (width, height), side = size, tile // patch
    canvas_height, canvas_width = select_best_resolution((height, width), pinpoints)
    rows, columns = canvas_height // tile * side, canvas_width // tile * side
    if canvas_width / width < canvas_height / height:
        resized = canvas_width, min(int(np.ceil(height * canvas_width / width)), canvas_height)
    else:
        resized = min(int(np.ceil(width * canvas_height / height)), canvas_width), canvas_height
    left = top = 0
    if width / height > columns / rows:
        top = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        left = (columns - int(round(width * (rows / height), 7))) // 2
    found = []
    for length, used, canvas, count, first in zip(
        size, resized, (canvas_width, canvas_height), (columns, rows), (left, top)
    ):
        number = np.arange(first, count - first)
        start = number // side * tile + number % side * patch - (canvas - used) // 2
        found.append(np.stack([start, start + patch], axis=1) * length / used)
    return np.concatenate([whole(size, tile, patch), grid(*found, 1)])


def phi4(
    size: tuple[int, int], rows: int, columns: int, canvas: tuple[int, int], tile: int = 448, side: int = 16
) -> np.ndarray:
    """Useful rows of a canvas padded right and below, a separator, a thumbnail of that canvas."""
    scale = min(c / length for c, length in zip(canvas, size))
    stretch = [length / int(length * scale + 1e-9) for length in size]
    cells = grid(*(ends(count, tile / side * by) for count, by in zip((columns, rows), stretch)), 1)
    thumbnail = grid(*(ends(side, c / side * by) for c, by in zip(canvas, stretch)), 1)
    return np.concatenate([cells, np.full((1, 4), np.nan), thumbnail])


def mllama(size: tuple[int, int], tile: int, patch: int, most: int) -> np.ndarray:
    """Tiles of a canvas padded right and below; each holds a class token, then a grid."""
    from transformers.models.mllama import image_processing_mllama as code

    size_ = {"image_height": size[1], "image_width": size[0]}
    height, width = code.get_optimal_tiled_canvas(**size_, max_image_tiles=most, tile_size=tile)
    resized = code.get_image_size_fit_to_canvas(**size_, canvas_height=height, canvas_width=width, tile_size=tile)
    x, y = size[0] / resized[1], size[1] / resized[0]
    n, parts = tile // patch, []
    for row in range(height // tile):
        for column in range(width // tile):
            cells = grid(ends(n, patch * x, column * tile * x), ends(n, patch * y, row * tile * y))
            parts += [np.full((1, 4), np.nan), cells]
    return np.concatenate(parts)


def error(boxes: np.ndarray, expected: np.ndarray, size: tuple[int, int], pixels: int) -> float:
    """The largest distance of an edge from the expected one, in pixels of the canvas, of which a cell has so many.

    The expected boxes are clipped to the picture; of slivers at its end, less than a pixel, nothing is asked.
    """
    assert boxes.shape == expected.shape, (boxes.shape, expected.shape)
    one = np.tile((expected[:, 2:] - expected[:, :2]) / pixels, 2)
    clipped = expected.clip(0, np.tile(size, 2))
    seen = ((clipped[:, 2:] - clipped[:, :2]) / one[:, :2]).min(axis=1)
    clear, none = seen > 1, ~(seen > 0)
    assert np.isfinite(boxes[clear]).all(), "a cell of the picture has no box"
    assert np.isnan(boxes[none, 0]).all(), "a box where no picture is"
    return float((np.abs(boxes - clipped) / one)[clear].max())
