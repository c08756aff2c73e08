"""From rows to what is drawn: baselines, sinks, smoothing, cells of overlapping views, shares."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from attention_heatmap.record import AttentionRecord, ImageTokens

_LEAST_BASELINE = 0.1  # of its mean over the image tokens; a smaller one would make a ratio of nothing to nothing glow
# A sink: a weight that many times the mean of all but the highest twentieth, in so large a part of the steps.
_SINK_TIMES, _SINK_STEPS, _SINK_OTHERS = 10, 0.95, 0.95
FEWEST_SINK_STEPS = 10  # an answer of fewer tokens cannot tell a sink from what all of it looks at
TINY = np.finfo(np.float32).tiny  # what is divided by is no smaller
_SMALLEST_BARE_PART = 0.05  # of a cell; less of it that finer cells leave bare is their rounding
SINKS_LEFT_OUT = "sinks left out"
BASELINES = {  # what is done to the weight of a cell, and what the number on the colour bar then is
    "off": ("", "of the attention"),
    "median": ("cells minus their median over the steps", "above its median"),
    "neutral": ("cells minus their mean under a neutral prompt", "above a neutral prompt's"),
    "relative": ("cells over their mean under a neutral prompt", "a neutral prompt's"),
}


def view_names(baseline: str, sinks: bool, smooth: float) -> str:
    """What is done to the weights before they are drawn, in words; "" for the plain weights."""
    smoothed = f"smoothed over {smooth:g} cell{'s' * (smooth != 1)}" * bool(smooth)
    names = [BASELINES[baseline][0], SINKS_LEFT_OUT * sinks, smoothed]
    return ", ".join(name for name in names if name)


def above_baseline(weights_TN: np.ndarray, baseline: str, neutral_N: np.ndarray | None = None) -> np.ndarray:
    """(T, N) weights of image tokens without what each of them gets anyway, 0 at the lowest.

    "median": minus the token's own median over the steps. "neutral": minus its mean weight while the same response is
    replayed after a neutral prompt; "relative": divided by it, as the relative attention of Zhang et al. 2025
    (arXiv 2502.17422). Raises ValueError where the record has no such replay.
    """
    if baseline == "off":
        return weights_TN
    if baseline == "median":
        return np.maximum(weights_TN - np.median(weights_TN, axis=0), 0)
    if neutral_N is None:
        raise ValueError(
            f"baseline {baseline!r} needs a record made with neutral_prompt; record again, or take baseline 'median'"
        )
    if baseline == "neutral":
        return np.maximum(weights_TN - neutral_N, 0)
    return weights_TN / np.maximum(neutral_N, max(_LEAST_BASELINE * neutral_N.mean(), TINY))


def find_sinks(weights_TN: np.ndarray) -> np.ndarray:
    """(N,) bool, the columns that take far more weight than the others at nearly all steps, whatever is said.

    Far more: over _SINK_TIMES the mean of all but the step's highest twentieth; nearly all: _SINK_STEPS of them. What
    is looked at for some words only is none, and neither is anything in fewer than FEWEST_SINK_STEPS steps.
    See Xiao et al. 2023 (arXiv 2309.17453) and, of image tokens, Kang et al. 2025 (arXiv 2503.03321).
    """
    T, N = weights_TN.shape
    if T < FEWEST_SINK_STEPS or N < 2:
        return np.zeros(N, bool)
    ordinary_T = np.sort(weights_TN, axis=1)[:, : max(int(_SINK_OTHERS * N), 1)].mean(axis=1)
    return (weights_TN > _SINK_TIMES * ordinary_T[:, None]).mean(axis=0) >= _SINK_STEPS


def smooth_cells(weights_TN: np.ndarray, boxes_N4: np.ndarray, width: float, out_N: np.ndarray) -> np.ndarray:
    """(T, N) weights of one picture's tokens, each the mean of its neighbours by a Gaussian of a width in cells.

    Those of out_N neither give nor take, those without a place stay as they are; views of different fineness are not
    mixed. Kang et al. 2025 (arXiv 2503.06287) smooth the maps of their heads in this way.
    """
    smoothed_TN, side_N2 = weights_TN.copy(), boxes_N4[:, 2:] - boxes_N4[:, :2]
    middle_N2, area_N = boxes_N4[:, :2] + side_N2 / 2, side_N2.prod(axis=1)
    for cell in np.flatnonzero(np.isfinite(area_N) & ~out_N):
        away_N = (((middle_N2 - middle_N2[cell]) / side_N2[cell]) ** 2).sum(axis=1)
        near_N = np.exp(-away_N / (2 * width**2)) * (np.abs(np.log(area_N / area_N[cell])) < math.log(2))
        near_N = np.nan_to_num(near_N) * ~out_N
        smoothed_TN[:, cell] = weights_TN @ (near_N / near_N.sum())
    return smoothed_TN


@dataclass(frozen=True, eq=False)
class ShownRows:
    """The rows of a plane as they are drawn."""

    rows: np.ndarray  # (T, S) float32, the record's own but for the image tokens
    sinks: np.ndarray  # (S,) bool, positions of the prompt that are left out of the picture and of the scales
    left_out: float  # mean over the steps of the part of the attention on the pictures that lies on those left out


def shown_rows(record: AttentionRecord, plane: int, baseline: str, sinks: bool, smooth: float) -> ShownRows:
    """What is drawn of a plane: baseline, sinks and smoothing, in this order, on the weights of the image tokens."""
    rows_TS, at_N = record.rows(plane), record.image_positions
    sink_S = np.zeros(rows_TS.shape[1], bool)
    if not view_names(baseline, sinks, smooth):
        return ShownRows(rows_TS, sink_S, 0.0)
    rows_TS, weights_TN = rows_TS.copy(), rows_TS[:, at_N]
    words = np.setdiff1d(np.arange(record.prompt_length), at_N)
    for part in (at_N, words) if sinks else ():
        sink_S[part] = find_sinks(rows_TS[:, part])
    out_N = sink_S[at_N]
    left_out = float((weights_TN[:, out_N].sum(axis=1) / np.maximum(weights_TN.sum(axis=1), TINY)).mean())
    neutral_N = None if record.neutral is None else record.neutral[plane]
    rows_TS[:, at_N] = above_baseline(weights_TN, baseline, neutral_N) * ~out_N
    for image in record.images if smooth else ():
        at = image.positions
        rows_TS[:, at] = smooth_cells(rows_TS[:, at], image.boxes, smooth, sink_S[at])
    return ShownRows(rows_TS, sink_S, left_out)


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one picture's map."""

    boxes: np.ndarray  # (cells, 4) float32, in pixels of the picture
    positions: np.ndarray  # (cells,) int64, the position in the prompt of each cell's image token
    # (position, cells, fractions) of each image token whose weight does not lie on one cell alone.
    spread: tuple[tuple[int, np.ndarray, np.ndarray], ...]

    def weights(self, rows_TS: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
        """(T, cells) weight of every cell, from rows of attention; NaN where it is one of the sinks, (S,) bool."""
        alone = ~np.isin(self.positions, [position for position, _, _ in self.spread])
        weights = rows_TS[:, self.positions] * alone
        for position, cells, fractions in self.spread:
            weights[:, cells] += rows_TS[:, position, None] * fractions
        if sinks is not None:
            weights[:, sinks[self.positions]] = np.nan
        return weights


@lru_cache(maxsize=64)  # asked for again by every map of a picture
def map_cells(tokens: ImageTokens) -> Cells:
    """The cells of a picture, of those of its tokens that have a place.

    Boxes of a single grid are all cells, in their order. Where views overlap, as a thumbnail and tiles, the finest
    boxes are, coarsest first: the weight of a coarser box lies on them by area, and on what of it sticks out.
    """
    placed = np.isfinite(tokens.boxes).all(axis=1)
    boxes, at = tokens.boxes[placed], tokens.positions[placed]
    x0, y0, x1, y1 = boxes.T.astype(np.float64)
    area = (x1 - x0) * (y1 - y0)
    if not len(boxes) or area.sum() <= 1.01 * (x1.max() - x0.min()) * (y1.max() - y0.min()):
        return Cells(boxes, at, ())
    order, is_cell, covered = np.argsort(-area, kind="stable"), np.zeros(len(boxes), bool), {}
    for box in order[::-1]:
        wide = np.minimum(x1, x1[box]) - np.maximum(x0, x0[box])
        high = np.minimum(y1, y1[box]) - np.maximum(y0, y0[box])
        shared = np.where(is_cell, np.maximum(wide, 0) * np.maximum(high, 0), 0) / area[box]
        bare = 1 - shared.sum()
        is_cell[box] = bare > _SMALLEST_BARE_PART
        if bare < 1 - _SMALLEST_BARE_PART:
            shared[box] = max(bare, 0) * is_cell[box]
            covered[int(at[box])] = shared / shared.sum()
    cells = order[is_cell[order]]
    parts = ((position, part[cells]) for position, part in covered.items())
    return Cells(boxes[cells], at[cells], tuple((at, np.flatnonzero(part), part[part > 0]) for at, part in parts))


def cell_weights(record: AttentionRecord, rows_TS: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
    """(T, cells) weight of every cell, picture after picture; the rest as for `Cells.weights`."""
    parts = [cells.weights(rows_TS, sinks) for cells in map(map_cells, record.images)]
    return np.concatenate([rows_TS[:, :0], *parts], axis=1)


def map_array(cells: Cells, row_1S: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """((rows, columns) float32, (left, right, bottom, top)) a row's weights over a picture, and their `imshow` extent.

    The array has the fineness of the smallest cells; the weight of larger ones lies on it by area. NaN: no cell.
    """
    boxes = cells.boxes.astype(np.float64)
    if not len(boxes):
        raise ValueError("this picture has no image token with a place; there is no map to give")
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    columns, rows = np.maximum(np.round((high - low) / np.quantile(boxes[:, 2:] - boxes[:, :2], 0.1, axis=0)), 1)
    across = _parts(boxes[:, [0, 2]], np.linspace(low[0], high[0], int(columns) + 1))
    down = _parts(boxes[:, [1, 3]], np.linspace(low[1], high[1], int(rows) + 1))
    weights = (down * cells.weights(row_1S)[0][:, None]).T @ across
    bare = down.T @ across < _SMALLEST_BARE_PART
    left, top, right, bottom = (float(edge) - 0.5 for edge in (*low, *high))  # imshow's pixels are centred on numbers
    return np.where(bare, np.nan, weights).astype(np.float32), (left, right, bottom, top)


def _parts(spans_N2: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(N, len(edges) - 1) the part of each span that lies between two edges; what is rounding goes to the nearest."""
    ends = np.minimum(spans_N2[:, 1:], edges[1:]) - np.maximum(spans_N2[:, :1], edges[:-1])
    parts = np.maximum(ends, 0) / np.maximum(spans_N2[:, 1:] - spans_N2[:, :1], TINY)
    parts[parts < _SMALLEST_BARE_PART] = 0
    return parts / np.maximum(parts.sum(axis=1, keepdims=True), TINY)


def mean_cells(record: AttentionRecord, shown: ShownRows) -> list[tuple[np.ndarray, np.ndarray]]:
    """((cells, 4), (cells,)) a picture: boxes, and weights as drawn, mean over the steps; NaN for a sink."""
    mean_1S = shown.rows.mean(axis=0, keepdims=True)
    return [(cells.boxes, cells.weights(mean_1S, shown.sinks)[0]) for cells in map(map_cells, record.images)]


def attention_shares(record: AttentionRecord, plane: int) -> list[tuple[str, np.ndarray]]:
    """(kind, (T,) share 0..1) of each "image", the rest of the prompt ("problem"), "response" and "first" token."""
    rows_TS = record.rows(plane)
    total = np.maximum(rows_TS.sum(axis=1), TINY)
    kind_S = np.full(rows_TS.shape[1], "problem", object)
    kind_S[record.prompt_length :], kind_S[0], kind_S[record.image_positions] = "response", "first", "image"
    parts = [("image", np.sort(image.positions)) for image in record.images]
    parts += [(kind, kind_S == kind) for kind in ("problem", "response", "first")]
    return [(kind, rows_TS[:, at].sum(axis=1) / total) for kind, at in parts]


def picture_shares(record: AttentionRecord, plane: int) -> np.ndarray:
    """(T, pictures) float, the part of each step's attention that lies on each picture."""
    shares = [share for kind, share in attention_shares(record, plane) if kind == "image"]
    return np.stack(shares, axis=1)


def image_shares(record: AttentionRecord, plane: int) -> np.ndarray:
    """(T,) float, the part of each step's attention that lies on the pictures."""
    return picture_shares(record, plane).sum(axis=1)
