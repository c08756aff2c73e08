"""Two records of the same tokens, such as of two checkpoints: where their maps differ, and by how much."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from attention_heatmap.maps import TINY, image_shares, map_cells
from attention_heatmap.phases import Phase, response_phases
from attention_heatmap.record import AttentionRecord, Head, ImageTokens

_SAME_EDGE = 0.25  # pixels; edges of cells that are as near are one


Parts = tuple[np.ndarray, np.ndarray]


def common_cells(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, tuple[Parts, Parts]]:
    """The common refinement of two sets of (n, 4) boxes of cells: one per pair that overlaps, by area.

    Returns (cells, 4) boxes, and of either set (cells,) the number of its own cell and the part of its weight here.
    """
    if a.shape == b.shape and np.allclose(a, b, atol=_SAME_EDGE):
        whole = np.arange(len(a)), np.ones(len(a), np.float32)
        return a, (whole, whole)
    if len(a) * len(b) > 2**28:  # finer than any model sees, and more than the memory holds
        raise ValueError(f"maps of {len(a)} and {len(b)} cells are too fine to be compared; lower max_pixels")
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    at_a, at_b = np.nonzero((high - low > _SAME_EDGE).all(axis=2))
    boxes = np.concatenate([low[at_a, at_b], high[at_a, at_b]], axis=1).astype(np.float32)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    parts = []
    for at, own in ((at_a, a), (at_b, b)):
        covered = np.bincount(at, area, len(own))  # what the other leaves bare, at an edge, is its rounding
        parts.append((at, (area / np.maximum(covered[at], TINY)).astype(np.float32)))
    return boxes, tuple(parts)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two planes of two records of the same tokens, on the cells that they have in common."""

    records: tuple[AttentionRecord, AttentionRecord]
    planes: tuple[int, int]
    steps: int  # T, the steps that are compared: all, or those that two answers have in common

    @cached_property
    def cells(self) -> list[tuple[np.ndarray, tuple[Parts, Parts]]]:
        """The common cells of each picture, as of `common_cells`."""
        pairs = zip(*(record.images for record in self.records))
        return [common_cells(map_cells(one).boxes, map_cells(other).boxes) for one, other in pairs]

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """(T, cells) float32 of each record: the weights on the common cells, picture after picture."""
        found = []
        for which, (record, plane) in enumerate(zip(self.records, self.planes)):
            rows_TS = record.rows(plane)[: self.steps]
            parts = [rows_TS[:, :0]]
            for image, (_, both) in zip(record.images, self.cells):
                at, part = both[which]
                parts.append(np.nan_to_num(map_cells(image).weights(rows_TS))[:, at] * part)
            found.append(np.concatenate(parts, axis=1))
        return tuple(found)

    @cached_property
    def distances(self) -> np.ndarray:
        """(T,) how far the two maps of each step lie apart, 0..1: see `jensen_shannon`."""
        return jensen_shannon(*self.weights)

    @cached_property
    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """(T,) of each record: the part of each step's attention that lies on the pictures."""
        return tuple(image_shares(record, plane)[: self.steps] for record, plane in zip(self.records, self.planes))

    def phases(self) -> list[dict[str, Any]]:
        """For each phase, and the whole response: steps, the mean share on the pictures under each, mean distance."""
        phases = [phase for phase in response_phases(self.records[0]) if phase.first < self.steps]
        rows = {}
        for phase in [*phases, Phase("response", 0, self.steps)]:
            steps = slice(phase.first, min(phase.last, self.steps))
            means = {"image_share_a": self.shares[0], "image_share_b": self.shares[1], "distance": self.distances}
            means = {name: round(float(values_T[steps].mean()), 6) for name, values_T in means.items()}
            rows[phase.name] = {"phase": phase.name, "steps": steps.stop - steps.start, **means}
        return list(rows.values())

    def most_changed(self, count: int = 10) -> list[tuple[int, str, float]]:
        """(step, token, distance) of the tokens whose maps lie farthest apart, the farthest first."""
        order = np.argsort(-self.distances, kind="stable")[:count]
        tokens = self.records[0].tokens[self.records[0].prompt_length :]
        return [(int(step), tokens[step], float(self.distances[step])) for step in order]

    def common_record(self, which: int) -> AttentionRecord:
        """The first record (0) or the second (1) with one plane over common positions: image tokens are common cells.

        What the two differ in lies in the prompt's image tokens only; weights of the text stay as they are.
        """
        record, plane = self.records[which], self.planes[which]
        keep = np.setdiff1d(np.arange(record.prompt_length + self.steps), record.image_positions)
        # The common cells stand where the picture's first token did; all else keeps its order.
        boxes = [boxes for boxes, _ in self.cells]
        cells = [np.full(len(own), image.positions.min()) for own, image in zip(boxes, record.images)]
        order = np.concatenate([keep, *cells])
        owner = np.repeat(np.arange(len(cells) + 1), [len(keep), *map(len, cells)])  # 0: none, else the picture
        at = np.argsort(order, kind="stable")
        order, owner = order[at], owner[at]
        rows_TS = np.concatenate([record.rows(plane)[: self.steps][:, keep], self.weights[which]], axis=1)[:, at]
        return replace(
            record, tokens=tuple("" if own else record.tokens[p] for p, own in zip(order, owner)),
            token_ids=record.token_ids[order], prompt_length=len(at) - self.steps, layers=(record.layers[plane],),
            heads=(record.heads[plane],), weights=rows_TS[:, None].astype(np.float32),
            images=tuple(ImageTokens(np.flatnonzero(owner == k), own) for k, own in enumerate(boxes, start=1)),
            problem=record.problem and tuple(np.searchsorted(order, record.problem).tolist()),
            auto_layer=False, auto_head=False, neutral=None, model="", checks=(),
        )  # fmt: skip


def compare(
    record_a: AttentionRecord, record_b: AttentionRecord, layer: int | None = None, head: Head | None = None
) -> Comparison:
    """Compare two records of the same tokens; of two answers to one prompt, what they have in common.

    layer, head: which plane of both; by default the last layer's first. Grids of image tokens may differ: the maps are
    then compared on the finest cells that both share. Raises ValueError for records of other pictures, of another
    prompt, or of another tokenizer.
    """
    _check_same(record_a, record_b)
    ids = [record.token_ids[record.prompt_length :] for record in (record_a, record_b)]
    least = min(map(len, ids))
    same = ids[0][:least] == ids[1][:least]
    # The step at which two answers part has the same context, too.
    steps = least if same.all() else int(np.argmin(same)) + 1
    planes = record_a.plane(layer, head), record_b.plane(layer, head)
    return Comparison((record_a, record_b), planes, steps)


def _check_same(a: AttentionRecord, b: AttentionRecord) -> None:
    """Raises ValueError where two records are not of the same pictures and the same words."""
    if len(a.images) != len(b.images):
        raise ValueError(
            f"the records are of {len(a.images)} and {len(b.images)} pictures; give two of the same sample"
        )
    if a.pictures and b.pictures:
        for number, (one, other) in enumerate(zip(a.open_pictures(), b.open_pictures()), start=1):
            if one.size != other.size or np.abs(np.asarray(one, int) - np.asarray(other, int)).mean() > 8:
                raise ValueError(f"picture {number} is not the same in both records; give two of the same sample")
    prompts = [np.setdiff1d(np.arange(record.prompt_length), record.image_positions) for record in (a, b)]
    if np.array_equal(a.token_ids[prompts[0]], b.token_ids[prompts[1]]):
        return
    if "".join(a.tokens[p] for p in prompts[0]) == "".join(b.tokens[p] for p in prompts[1]):
        raise ValueError("the records have the same text in other tokens: the checkpoints have different tokenizers")
    raise ValueError("the records are of other prompts; give two of the same sample and prompt_template")


def jensen_shannon(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(T,) the Jensen-Shannon distance of (T, cells) weights, each row scaled to sum to 1: 0 the same, 1 apart.

    The square root of the divergence to base 2 (Endres and Schindelin 2003); a row without any weight is at
    distance 0 of another such, else 1.
    """
    pair = np.stack([a, b]).astype(np.float64)
    sums = pair.sum(axis=2)
    pair /= np.maximum(sums, TINY)[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(pair > 0, pair * np.log2(pair / pair.mean(axis=0)), 0)
    distance = np.sqrt(np.clip(terms.sum(axis=2).mean(axis=0), 0, 1))
    return np.where((sums[0] <= 0) != (sums[1] <= 0), 1.0, distance)


def bootstrap(values: Iterable[float], seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high): the mean over samples and its 95% interval by the bootstrap over samples (Efron 1979)."""
    found = np.array([value for value in values if value is not None], float)
    if not len(found):
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(found), (2000, len(found)))
    low, high = np.percentile(found[draws].mean(axis=1), (2.5, 97.5))
    return float(found.mean()), float(low), float(high)
