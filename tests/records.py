"""Records made by hand, whose every weight is known."""

from __future__ import annotations

import numpy as np
from PIL import Image

from attention_heatmap.record import AttentionRecord, ImageTokens

SMALL = (640, 360)  # pixels of a frame, where the size does not matter
SPECIAL_ID = 9
IMAGE_ID = 8


def grid_boxes(rows: int, columns: int, width: float, height: float) -> np.ndarray:
    """(rows * columns, 4) float32, equal cells row by row: left, top, right, bottom."""
    x, y = np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1)
    boxes = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(rows) for c in range(columns)]
    return np.array(boxes, np.float32)


def make_record(
    problem: list[str],
    response: list[str],
    grids: list[tuple[int, int]] = ((3, 4),),
    size: tuple[int, int] = (400, 300),
    layers: tuple[int, ...] = (0, 1),
    seed: int = 0,
) -> AttentionRecord:
    """A record of random rows: a first special token, the pictures' tokens, the problem, then the response.

    Row t of the weights is 0 from column P + t on and sums to 1.
    """
    rng = np.random.default_rng(seed)
    tokens, ids, images = ["<s>"], [SPECIAL_ID], []
    for rows, columns in grids:
        positions = np.arange(len(tokens), len(tokens) + rows * columns)
        images.append(ImageTokens(positions, grid_boxes(rows, columns, *size)))
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
        tokens=tuple(tokens), token_ids=np.array(ids), prompt_length=P, layers=layers, weights=weights,
        images=tuple(images), special_ids=(SPECIAL_ID,), num_layers=8,
    )  # fmt: skip


def picture(size: tuple[int, int] = (400, 300), colour: str = "white") -> Image.Image:
    return Image.new("RGB", size, colour)
