"""TODO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.recording.prompt import prompt_text

RAMP_BASE, RAMP_MAIN, RAMP_SIDE = 16, 200, 20  # levels of 0..255: of the ramp that is shown to a processor


@dataclass(frozen=True, eq=False)
class ProcessedImages:
    """What a model and its processor made of the pictures of one prompt: all that the rules below look at."""

    model: Any
    processor: Any
    inputs: Any
    images: Sequence[Image.Image]
    count: int
    """Number of image tokens in the prompt."""

    @property
    def pixels_name(self) -> str:
        return next((key for key in ("pixel_values", "image_pixel_values") if key in self.inputs), "pixel_values")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixel values; () where there is no one array of them."""
        return tuple(getattr(self.inputs.get(self.pixels_name), "shape", ()))

    def numbers(self, name: str) -> np.ndarray | None:
        """An input as an array, or None."""
        return self.inputs[name].cpu().numpy() if name in self.inputs else None


def grid_boxes(rows: int, columns: int, width: float, height: float, left: float = 0, top: float = 0) -> np.ndarray:
    """(rows · columns, 4) float32 boxes of a patch grid laid over a rectangle, row-major, in pixels."""
    x = np.linspace(left, left + width, columns + 1, dtype=np.float32)
    y = np.linspace(top, top + height, rows + 1, dtype=np.float32)
    x0, y0 = np.meshgrid(x[:-1], y[:-1])
    x1, y1 = np.meshgrid(x[1:], y[1:])
    return np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4)


def no_place(count: int = 1) -> np.ndarray:
    """Boxes of tokens that stand for no part of the picture."""
    return np.full((count, 4), np.nan, np.float32)


def end_rows(boxes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Grid boxes with a token without a place, a newline, after each row. Either count may be 0."""
    return np.pad(boxes.reshape(rows, columns, 4), ((0, 0), (0, 1), (0, 0)), constant_values=np.nan).reshape(-1, 4)


def reported_grids(made: ProcessedImages) -> np.ndarray | None:
    """(pictures, 2) rows and columns of tokens, from a grid of patches or pixels that the processor reports.

    It stands in `image_grid_thw` (time, height, width), in the `image_position_ids` (x, y) of the patches, or in
    `image_sizes` where these are the pixels of the canvas; m × m of its units make one token.
    """
    fine, xy, sizes = (made.numbers(name) for name in ("image_grid_thw", "image_position_ids", "image_sizes"))
    if fine is not None:
        if (fine[:, 0] != 1).any():
            raise ValueError(f"image_grid_thw is {fine.tolist()}; expected one frame a picture")
        fine = fine[:, 1:]
    elif xy is not None:
        fine = xy.max(axis=1)[:, ::-1] + 1
    elif sizes is not None and len(made.shape) == 4 and tuple(sizes.max(axis=0)) == made.shape[-2:]:
        fine = sizes
    if fine is None:
        return None
    merge = math.isqrt(int(fine.prod(axis=1).sum()) // max(made.count, 1))
    if len(fine) != len(made.images) or merge == 0 or (fine % merge).any():
        raise ValueError(f"the grids {fine.tolist()} of {len(made.images)} picture(s) do not make so many tokens")
    return fine // merge


def patch_owners(made: ProcessedImages, grids: np.ndarray) -> np.ndarray | None:
    """The token of each pixel value, -1 for none: of patches in the tokens' order, or of a canvas a picture."""
    if len(made.shape) == 2 and made.shape[0] % made.count == 0:
        return np.arange(made.shape[0])[:, None] // (made.shape[0] // made.count)
    if len(made.shape) != 4:
        return None
    owner, start = np.full((made.shape[0], 1, *made.shape[-2:]), -1), 0
    for canvas, size, (rows, columns) in zip(owner, made.numbers("image_sizes"), grids):
        height, width = size
        cells = np.arange(rows * columns).reshape(rows, columns) + start
        canvas[0, :height, :width] = np.kron(cells, np.ones((height // rows, width // columns), int))
        start += rows * columns
    return owner


def tile_boxes(made: ProcessedImages, newline: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Boxes where every tile that the processor cut holds a grid of tokens of its own shape, and each pixel's token.

    `newline`: 1 where a token without a place follows the grid of each tile.
    """
    tiles = read_tiles(made)
    height, width = made.shape[-2:]
    shown = [number for number, (picture, _) in enumerate(tiles) if picture >= 0]
    per_tile = made.count // max(len(shown), 1)
    class_token = 0
    grid = _grid_like(per_tile - newline, height, width)
    if grid is None and getattr(made.model.config, "vision_feature_select_strategy", None) == "full":
        class_token, grid = 1, _grid_like(per_tile - 1 - newline, height, width)
    if grid is None:
        raise ValueError(f"{len(shown)} tile(s) of {width} × {height} pixels do not hold a grid of tokens each")
    rows, columns = grid
    boxes: list[list[np.ndarray]] = [[no_place(0)] for _ in made.images]
    owner = np.full((len(tiles), 1, height, width), -1)
    for place, number in enumerate(shown):
        picture, (x0, y0, x1, y1) = tiles[number]
        cells = grid_boxes(rows, columns, x1 - x0, y1 - y0, x0, y0)
        boxes[picture] += [no_place(class_token), cells, no_place(newline)]
        tokens = np.arange(rows * columns).reshape(rows, columns) + place * per_tile + class_token
        owner[number, 0] = np.kron(tokens, np.ones((height // rows, width // columns), int))
    return [np.concatenate(parts) for parts in boxes], owner


def _grid_like(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of a grid of so many square cells on a canvas of a size, or None."""
    unit = math.gcd(height, width)
    if unit == 0 or tokens <= 0:
        return None
    share = math.isqrt(tokens * unit * unit // (height * width))  # cells along one unit
    rows, columns = height // unit * share, width // unit * share
    fits = rows * columns == tokens and height % rows == 0 and width % columns == 0
    return (rows, columns) if fits else None


def read_tiles(made: ProcessedImages) -> list[tuple[int, np.ndarray | None]]:
    """For each tile in `pixel_values`: its picture (-1 for padding) and the rectangle of that picture it shows.

    The processor itself is asked: it gets a ramp, whose colour says where a pixel came from, in a picture's place.
    """
    if len(made.shape) not in (4, 5) or made.shape[-3] != 3:
        raise ValueError("it reports no grid, and pixel_values are no tiles of three colours")
    tiles: list[tuple[int, np.ndarray | None]] = [(-1, None)] * math.prod(made.shape[:-3])
    for number, image in enumerate(made.images):
        pictures = [Image.new("RGB", other.size) for other in made.images]
        pictures[number] = _ramp(image.size)
        pixels = processed_unscaled(made.processor, pictures)[made.pixels_name]
        if tuple(pixels.shape) != made.shape:
            raise ValueError(f"a ramp of the picture's size gave pixel_values of shape {tuple(pixels.shape)}")
        for tile, tile_CYX in enumerate(pixels.reshape(-1, *made.shape[-3:]).double().numpy()):
            rectangle = _shown_rectangle(tile_CYX, image.size)
            if rectangle is not None:
                tiles[tile] = number, rectangle
    order = [picture for picture, _ in tiles if picture >= 0]
    if order != sorted(order):
        raise ValueError("the tiles do not stand in the order of the pictures")
    return tiles


def _ramp(size: tuple[int, int]) -> Image.Image:
    """A picture that says where its pixels are: red rises with x, green with y, blue is full.

    Each rises a little along the other side as well, so that rounding to whole levels averages out over a tile.
    """
    x, y = ((np.arange(length, dtype=np.float32) + 0.5) / length for length in size)
    red = RAMP_BASE + RAMP_MAIN * x + RAMP_SIDE * y[:, None]
    green = RAMP_BASE + RAMP_SIDE * x + RAMP_MAIN * y[:, None]
    return Image.fromarray(np.stack([red, green, np.full_like(red, 255)], axis=-1).round().astype(np.uint8))


def _shown_rectangle(tile_CYX: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """left, top, right, bottom of a tile in pixels of the picture whose ramp it shows; None where it shows none."""
    red, green, blue = tile_CYX
    shown = (blue > 254) & (np.maximum(red, green) < RAMP_BASE + RAMP_MAIN + RAMP_SIDE + 2)
    if not shown.any():
        return None
    red, green = red - RAMP_BASE, green - RAMP_BASE
    norm = RAMP_MAIN**2 - RAMP_SIDE**2
    x_YX = (RAMP_MAIN * red - RAMP_SIDE * green) / norm * size[0]
    y_YX = (RAMP_MAIN * green - RAMP_SIDE * red) / norm * size[1]
    left, right = _fit_ends(x_YX, shown, size[0])
    top, bottom = _fit_ends(y_YX.T, shown.T, size[1])
    return np.array([left, top, right, bottom])


def _fit_ends(values: np.ndarray, shown: np.ndarray, length: int) -> tuple[float, float]:
    """Where the first and the last column of a tile lie, by a straight line through the columns that show the ramp."""
    columns = np.flatnonzero(2 * shown.sum(axis=0) >= shown.sum(axis=0).max())
    if len(columns) < 2:
        raise ValueError("too little of the picture is left on a tile to tell its place")
    means = np.where(shown, values, 0).sum(axis=0)[columns] / shown.sum(axis=0)[columns]
    slope, start = np.polyfit(columns + 0.5, means, 1)
    error = np.abs(means - slope * (columns + 0.5) - start).max()
    # A pixel of the canvas, a level of colour, and half a pixel of the picture, where enlarging bends its ends.
    if slope <= 0 or error > slope + length / RAMP_MAIN + 0.5:
        raise ValueError("the processor does more than cut, scale and pad the picture")
    return start, start + slope * values.shape[1]


def processed_unscaled(processor: Any, images: Sequence[Image.Image]) -> Any:
    """The processor's output for pictures alone, their colours as they are."""
    import torch

    content = [{"type": "image"} for _ in images]
    text = prompt_text(processor, content)
    made = processor(text=[text], images=[list(images)], do_rescale=False, do_normalize=False, return_tensors="pt")
    return {key: value for key, value in made.items() if torch.is_tensor(value)}
