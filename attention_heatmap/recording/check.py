"""The check: cells are hidden, and the answer says whether they mattered."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageStat

from attention_heatmap.dataset import problem_of, upright_rgb, well_formed
from attention_heatmap.log import NOTE, logger
from attention_heatmap.maps import mean_cells, shown_rows, view_names
from attention_heatmap.phases import Phase, response_phases
from attention_heatmap.record import CHECK_DRAWS, CHECK_PART, AttentionRecord, Check, check_pictures
from attention_heatmap.recording import torch
from attention_heatmap.recording.generation import alone_with
from attention_heatmap.recording.layers import cross_layers
from attention_heatmap.recording.memory import out_of_memory_told
from attention_heatmap.recording.options import RecordingOptions
from attention_heatmap.recording.prompt import forced_pass, input_device
from attention_heatmap.recording.session import Session

LOGITS_PER_BLOCK = 64  # rows of logits, each as wide as the vocabulary, in float32 at once


def moved_cells(boxes: np.ndarray, part: np.ndarray) -> np.ndarray:
    """(cells,) int, the cell that comes to each cell's place where a map moves by parts 0..1 of its sides."""
    middles, low, high = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    sources = low + (middles - low + part * (high - low)) % (high - low)
    return np.array([np.abs(middles - source).sum(axis=1).argmin() for source in sources])


def cells_to_hide(cells: Sequence[tuple[np.ndarray, np.ndarray]], seed: int | None = None) -> list[np.ndarray]:
    """(n, 4) boxes a picture: the hottest CHECK_PART of the cells of `mean_cells`.

    seed: as many of the map moved by a random distance, wrapped round at the edges, so that hot cells cling together
    as they did. Scattered cells would seldom hide a whole thing, and so flatter any map with a large spot.
    """
    usable = np.flatnonzero(np.isfinite(np.concatenate([part for _, part in cells])))
    random = np.random.default_rng(seed)
    parts = [part if seed is None else part[moved_cells(boxes, random.random(2))] for boxes, part in cells]
    weights = np.nan_to_num(np.concatenate(parts))
    hottest = usable[np.argsort(-weights[usable], kind="stable")][: math.ceil(CHECK_PART * len(usable))]
    hidden = np.isin(np.arange(len(weights)), hottest)
    parts = np.split(hidden, np.cumsum([len(part) for part in parts])[:-1])
    return [boxes[part] for (boxes, _), part in zip(cells, parts)]


def hide_cells(images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[Image.Image]:
    """The pictures with boxes in their pixels, (n, 4) a picture, painted over in the picture's mean colour."""
    painted = [image.copy() for image in images]
    for image, hidden in zip(painted, boxes):
        colour = tuple(map(round, ImageStat.Stat(image).mean))
        for box in hidden:
            image.paste(colour, tuple(map(round, box.tolist())))
    return painted


def response_log_probabilities(model: Any, inputs: Any, response_ids: list[int], steps: range) -> np.ndarray:
    """(steps,) float, the natural logarithm of the probability of those tokens of a given response, by one pass."""
    P = inputs["input_ids"].shape[1]
    keep = slice(P - 1 + steps.start, P - 1 + steps.stop)
    logits_TV = forced_pass(model, inputs, response_ids[: steps.stop], logits_to_keep=keep).logits[0]
    wanted = torch.tensor(response_ids[steps.start : steps.stop], device=logits_TV.device)
    parts = zip(logits_TV.split(LOGITS_PER_BLOCK), wanted.split(LOGITS_PER_BLOCK))
    losses = [torch.nn.functional.cross_entropy(part.float(), ids, reduction="none") for part, ids in parts]
    return -torch.cat(losses).cpu().numpy()


def check_record(
    session: Session, record: AttentionRecord, sample: dict, images: Sequence[Image.Image],
    view: tuple[str, bool, float], how: RecordingOptions,
) -> AttentionRecord:  # fmt: skip
    """The record of a sample with a `Check` of the map of each of its planes.

    The cells to hide are painted over in the pictures, the hottest and CHECK_DRAWS times those of the map moved; each
    time the same response is forced, and the log-probability of its answer compared. A map that is the same everywhere
    gets no check. view: baseline, sinks and smoothing of the map; how: as the record was made, so that the prompt is
    the same. Raises ValueError for another sample's record, or where painting over gives other tokens.
    """
    ids = record.token_ids[record.prompt_length :].tolist()
    originals, problem = [upright_rgb(image) for image in images], well_formed(problem_of(sample, "the sample"))
    answers = [phase for phase in response_phases(record) if phase.name == "answer"]
    part = [*answers, Phase("response", 0, record.response_length)][0]

    prompt, own_ids = session.built(problem, originals, how)[0], record.token_ids[: record.prompt_length]
    if cross_layers(session.model.config):  # its pictures stand outside the text
        own_ids = np.delete(own_ids, record.image_positions)
    if own_ids.tolist() != prompt["input_ids"][0].tolist():
        raise ValueError("the record is of another prompt; give its own sample, pictures and prompt_template")
    check_pictures(record, originals)

    def log_probability(inputs: Any) -> float:
        placed = inputs.to(input_device(session.model), dtype=session.model.dtype)
        return float(response_log_probabilities(session.model, placed, ids, range(part.first, part.last)).mean())

    def fall(boxes: Sequence[np.ndarray]) -> float:
        inputs, _ = session.built(problem, hide_cells(originals, boxes), how)
        if inputs["input_ids"].tolist() != prompt["input_ids"].tolist():
            raise ValueError("the check cannot be made: the processor cuts the pictures by what they show")
        return plain - log_probability(inputs)

    checks = []
    with alone_with(session.model), out_of_memory_told("lower max_pixels"):
        plain = log_probability(prompt)
        for plane in range(len(record.layers)):
            cells = mean_cells(record, shown_rows(record, plane, *view))
            if np.ptp(np.concatenate([weights[np.isfinite(weights)] for _, weights in cells])) == 0:
                logger.log(NOTE, "%s cannot be checked: its map is the same everywhere", record.plane_name(plane))
                continue
            random = tuple(fall(cells_to_hide(cells, seed)) for seed in range(CHECK_DRAWS))
            checks.append(Check(plane, view_names(*view), part.name, fall(cells_to_hide(cells)), random))
            logger.log(NOTE, "check of %s: %s", record.plane_name(plane), checks[-1])
    return replace(record, checks=tuple(checks))
