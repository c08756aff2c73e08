"""Records made by hand, whose every weight is known."""

from __future__ import annotations

import numpy as np
from PIL import Image

from attention_heatmap.record import AttentionRecord, ImageTokens

SMALL = (640, 360)  # pixels of a frame, where the size does not matter
SPECIAL_ID, IMAGE_ID = 9, 8


def grid_boxes(rows: int, columns: int, width: float, height: float) -> np.ndarray:
    """(rows * columns, 4) float32 boxes of a grid over a whole picture, row by row."""
    x, y = np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1)
    boxes = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(rows) for c in range(columns)]
    return np.array(boxes, np.float32).reshape(-1, 4)


def make_record(
    problem: list[str],
    response: list[str],
    grids: list[tuple[int, int]] = ((3, 4),),
    size: tuple[int, int] = (400, 300),
    layers: tuple[int, ...] = (0, 1),
    seed: int = 0,
    sizes: list[tuple[int, int]] | None = None,
) -> AttentionRecord:
    """A record of random rows: a first special token, the pictures' tokens, the problem, then the response.

    size, or sizes: of the pictures. Row t of the weights is 0 from column P + t on and sums to 1.
    """
    rng = np.random.default_rng(seed)
    tokens, ids, images = ["<s>"], [SPECIAL_ID], []
    for (rows, columns), each in zip(grids, sizes or [size] * len(grids)):
        positions = np.arange(len(tokens), len(tokens) + rows * columns)
        images.append(ImageTokens(positions, grid_boxes(rows, columns, *each)))
        tokens += ["<image>"] * len(positions)
        ids += [IMAGE_ID] * len(positions)
    tokens += problem
    P = len(tokens)
    tokens += response
    ids += list(range(10, 10 + len(tokens) - len(ids)))
    weights = rng.random((len(response), len(layers), len(tokens)), np.float32)
    for t in range(len(response)):
        weights[t, :, P + t :] = 0
    weights /= weights.sum(-1, keepdims=True)
    return AttentionRecord(
        tuple(tokens), np.array(ids), P, layers, weights, tuple(images), special_ids=(SPECIAL_ID,), num_layers=8
    )


def picture(size: tuple[int, int] = (400, 300), colour: str = "white") -> Image.Image:
    return Image.new("RGB", size, colour)
