"""TODO."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.recording.grids import ProcessedImages, end_rows, grid_boxes, no_place, tile_boxes


def _canvas_boxes(
    cells: np.ndarray, image: Image.Image, resized: tuple[int, int], padding: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Boxes on a canvas, on which the resized picture lies behind some padding, as boxes of the picture."""
    stretch = np.array([image.width / resized[0], image.height / resized[1]] * 2, np.float32)
    return (cells - np.array([*padding, *padding], np.float32)) * stretch


def anyres_boxes(made: ProcessedImages) -> list[np.ndarray]:
    """llava_next and llava_onevision: the whole picture, then the rows of a padded canvas without its padding.

    A newline ends each row. onevision pools a canvas of many cells, and takes each of several pictures as one square.
    """
    config = made.model.config
    if config.model_type == "llava_onevision" and len(made.images) > 1:
        return tile_boxes(made, newline=1)[0]
    return [_anyres_boxes(config, image) for image in made.images]


def _anyres_boxes(config: Any, image: Image.Image) -> np.ndarray:
    from transformers.image_processing_utils import select_best_resolution

    (width, height), tile = image.size, config.vision_config.image_size
    side = tile // config.vision_config.patch_size
    canvas_height, canvas_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    cell = tile / side
    rows, columns = canvas_height // tile * side, canvas_width // tile * side
    if canvas_width / width < canvas_height / height:
        resized = canvas_width, min(math.ceil(height * canvas_width / width), canvas_height)
    else:
        resized = min(math.ceil(width * canvas_height / height), canvas_width), canvas_height
    left = top = 0
    if width / height > columns / rows:
        top = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        left = (columns - int(round(width * (rows / height), 7))) // 2
    kept_rows, kept_columns = rows - 2 * top, columns - 2 * left
    area = (kept_columns * cell, kept_rows * cell, left * cell, top * cell)
    if config.model_type == "llava_onevision":
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(kept_rows * kept_columns / (most * side**2))
        if ratio > 1.1:
            kept_rows, kept_columns = int(kept_rows // ratio), int(kept_columns // ratio)
    padding = (canvas_width - resized[0]) // 2, (canvas_height - resized[1]) // 2
    cells = _canvas_boxes(grid_boxes(kept_rows, kept_columns, *area), image, resized, padding)
    return np.concatenate([grid_boxes(side, side, width, height), end_rows(cells, kept_rows, kept_columns)])


def phi4_boxes(made: ProcessedImages) -> list[np.ndarray]:
    """phi4_multimodal: the useful rows of a canvas padded right and below, a separator, a thumbnail of that canvas."""
    vision = made.model.config.vision_config
    tile = vision.crop_size
    side = -(-vision.image_size // vision.patch_size // 2)  # tokens along a tile
    boxes = []
    for image, size, mask in zip(made.images, made.numbers("image_sizes"), made.numbers("image_attention_mask")):
        height, width = size.tolist()
        down, across = height // tile, width // tile
        useful = mask[1 : down * across + 1, ::2, ::2].reshape(down, across, side, side)
        rows, columns = int(useful[:, 0, :, 0].sum()), int(useful[0, :, 0].sum())
        scale = min(width / image.width, height / image.height)
        resized = int(image.width * scale), int(image.height * scale)
        cell = tile / side
        cells = _canvas_boxes(grid_boxes(rows, columns, columns * cell, rows * cell), image, resized)
        thumbnail = _canvas_boxes(grid_boxes(side, side, width, height), image, resized)
        boxes.append(np.concatenate([end_rows(cells, rows, columns), no_place(), end_rows(thumbnail, side, side)]))
    return boxes


def mllama_boxes(made: ProcessedImages) -> list[np.ndarray]:
    """mllama: tiles of a canvas padded right and below, row-major; each holds a class token, then a grid."""
    from transformers.models.mllama import image_processing_mllama as mllama

    vision, boxes = made.model.config.vision_config, []
    tile, side = vision.image_size, vision.image_size // vision.patch_size
    for image in made.images:
        size = {"image_height": image.height, "image_width": image.width}
        most = made.processor.image_processor.max_image_tiles
        height, width = mllama.get_optimal_tiled_canvas(**size, max_image_tiles=most, tile_size=tile)
        new_height, new_width = mllama.get_image_size_fit_to_canvas(
            **size, canvas_height=height, canvas_width=width, tile_size=tile
        )
        corners = [(x, y) for y in range(0, height, tile) for x in range(0, width, tile)]
        cells = [part for x, y in corners for part in (no_place(), grid_boxes(side, side, tile, tile, x, y))]
        boxes.append(_canvas_boxes(np.concatenate(cells), image, (new_width, new_height)))
    return boxes


FAMILY_RULES: dict[str, Callable[[ProcessedImages], list[np.ndarray]]] = {
    "llava_next": anyres_boxes,
    "llava_onevision": anyres_boxes,
    "phi4_multimodal": phi4_boxes,
    "mllama": mllama_boxes,
}
