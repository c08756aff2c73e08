"""TODO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.recording.prompt import forced_pass

# The check hides this part of the cells; 19 random draws, so that chance beats all of them 1 time in 20.
CHECK_PART, CHECK_DRAWS, CHECK_MATTERS = 0.2, 19, 1.05
LOGITS_PER_BLOCK = 64  # rows of logits, each as wide as the vocabulary, in float32 at once


def moved_cells(boxes: np.ndarray, part: np.ndarray) -> np.ndarray:
    """(cells,) int, the cell that comes to each cell's place where a map moves by parts 0..1 of its sides."""
    middles, low, high = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    sources = low + (middles - low + part * (high - low)) % (high - low)
    return np.array([np.abs(middles - source).sum(axis=1).argmin() for source in sources])


def cells_to_hide(cells: Sequence[tuple[np.ndarray, np.ndarray]], seed: int | None = None) -> list[np.ndarray]:
    """(n, 4) boxes a picture: the hottest CHECK_PART of the cells of `mean_cells`.

    seed: as many of the map moved by a random distance, wrapped round at the edges: where it points is left to
    chance, how its hot cells cling together is kept. Scattered cells would seldom hide a whole thing, and so flatter
    any map with a large spot.
    """
    usable = np.flatnonzero(np.isfinite(np.concatenate([part for _, part in cells])))
    random = np.random.default_rng(seed)
    parts = [part if seed is None else part[moved_cells(boxes, random.random(2))] for boxes, part in cells]
    weights = np.nan_to_num(np.concatenate(parts))
    order = usable[np.argsort(-weights[usable], kind="stable")]
    hidden = np.zeros(len(weights), bool)
    hidden[order[: math.ceil(CHECK_PART * len(usable))]] = True
    parts = np.split(hidden, np.cumsum([len(part) for _, part in cells])[:-1])
    return [boxes[part] for (boxes, _), part in zip(cells, parts)]


def hide_cells(images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[Image.Image]:
    """The pictures with boxes in their pixels, (n, 4) a picture, painted over in the picture's mean colour."""
    painted = []
    for image, hidden in zip(images, boxes):
        copy = image.copy()
        colour = tuple(np.asarray(image).reshape(-1, 3).mean(axis=0).round().astype(int).tolist())
        for box in hidden:
            copy.paste(colour, tuple(np.round(box).astype(int).tolist()))
        painted.append(copy)
    return painted


def response_log_probabilities(model: Any, inputs: Any, response_ids: list[int], steps: range) -> np.ndarray:
    """(steps,) float, the natural logarithm of the probability of those tokens of a given response, by one pass."""
    import torch

    P = inputs["input_ids"].shape[1]
    keep = slice(P - 1 + steps.start, P - 1 + steps.stop)
    logits_TV = forced_pass(model, inputs, response_ids[: steps.stop], logits_to_keep=keep).logits[0]
    wanted = torch.tensor(response_ids[steps.start : steps.stop], device=logits_TV.device)
    parts = zip(logits_TV.split(LOGITS_PER_BLOCK), wanted.split(LOGITS_PER_BLOCK))
    losses = [torch.nn.functional.cross_entropy(part.float(), ids, reduction="none") for part, ids in parts]
    return -torch.cat(losses).cpu().numpy()
