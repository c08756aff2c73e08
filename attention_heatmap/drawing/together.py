"""Several maps over the same pictures in one frame: planes of a record, two checkpoints, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attention_heatmap.compare import Comparison
from attention_heatmap.drawing.colour import (
    CELL_ALPHA,
    MUTED,
    colour_map,
    opacity,
    purple_to_green,
    scale_ends,
    strengths,
)
from attention_heatmap.drawing.fonts import FontSet
from attention_heatmap.drawing.image_panel import (
    IMAGE_SCALE_QUANTILE,
    ImageLayout,
    cell_colours,
    label_height,
    painted,
    painted_by_pen,
)
from attention_heatmap.drawing.legend import amount_text
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.pen import AnyPen, VectorPen
from attention_heatmap.maps import TINY, image_shares, shown_rows
from attention_heatmap.record import AttentionRecord


@dataclass(frozen=True)
class ShownMap:
    """One of several maps."""

    name: str
    record: AttentionRecord
    plane: int
    minus: ShownMap | None = None
    """Another map that is taken off: what is drawn is the difference, on a two-sided scale."""

    def weights(self, layout: ImageLayout, options: DrawingOptions) -> np.ndarray:
        """(T, cells of one map) its weights, NaN where a sink is left out."""
        shown = shown_rows(self.record, self.plane, *options.map)
        parts = [cells.weights(shown.rows, shown.sinks) for cells in layout.cells[: len(self.record.images)]]
        weights = np.concatenate(parts, axis=1)
        return weights if self.minus is None else weights - self.minus.weights(layout, options)

    @cached_property
    def shares(self) -> np.ndarray:
        """(T,) the share of the attention that lies on the pictures; of a difference, how much more does."""
        shares = image_shares(self.record, self.plane)
        return shares if self.minus is None else shares - self.minus.shares


def planes_together(record: AttentionRecord, planes: Sequence[int]) -> tuple[str, list[ShownMap]]:
    """The heading and the maps of planes of one record."""
    names = [record.plane_name(plane) for plane in planes]
    parts = [name.partition(", ") for name in names]
    same = next((k for k in (0, 2) if len({part[k] for part in parts}) == 1), None)
    if same is not None and len(planes) > 1:  # what all have in common is said once
        shown, heading = [part[2 - same] for part in parts], f"attention in {parts[0][same]}" * (same == 0)
        heading = heading or f"attention, {parts[0][2]}"
    else:
        shown, heading = names, "attention in several layers and heads"
    return heading, [ShownMap(name, record, plane) for name, plane in zip(shown, planes)]


def comparison_maps(comparison: Comparison, names: Sequence[str], difference: bool) -> tuple[str, list[ShownMap]]:
    """The heading and the maps of two records of the same tokens, and of their difference."""
    a, b = (ShownMap(name, record, 0) for name, record in zip(names, comparison.common_records()))
    more = [ShownMap("difference", b.record, 0, a)] * difference
    return f"attention in {a.record.plane_name(0)}", [a, b, *more]


def notes_below(maps: Sequence[ShownMap]) -> list[str]:
    """What has to be said of several maps, below them."""
    notes = [f"text, shares and time line: {maps[0].name}"]
    if maps[-1].minus:
        notes.append(f"difference: green where {maps[1].name} looks more, purple where {maps[0].name} does")
    return notes


class MapsTogether:
    """A map over the pictures, or several over the same ones, at every step that has a frame."""

    def __init__(
        self, maps: Sequence[ShownMap], heading: str, layout: ImageLayout, at: tuple[int, int], first_step: int,
        options: DrawingOptions,
    ) -> None:  # fmt: skip
        self.maps, self.title, self.layout, self.at = list(maps), heading, layout, at
        self.colormap, self.power, self.first_step = colour_map(options.colormap), options.power, first_step
        found = [one.weights(layout, options)[first_step:] for one in maps]
        self.weights = np.concatenate(found, axis=1)
        self.any_heat = bool((np.nan_to_num(self.weights) > 0).any())
        plain = [weights for weights, one in zip(found, maps) if one.minus is None]
        shared = scale_ends(np.concatenate(plain, axis=1), IMAGE_SCALE_QUANTILE, options.scale)
        own = [scale_ends(np.abs(weights), IMAGE_SCALE_QUANTILE, options.scale) for weights in found]
        self.own_scale = options.together != "shared" and len(maps) > 1
        self._ends = [ends if self.own_scale or one.minus else shared for ends, one in zip(own, maps)]
        self.ends = self._ends[0]
        self.shares = maps[0].shares[first_step:]
        self.strengths = strengths(np.max([one.shares[first_step:] for one in maps if one.minus is None], axis=0))

    def scale_end(self, number: int) -> float | str:
        """The weight at the end of the scale of a frame, or words for it."""
        return "each map's own scale" if self.own_scale else float(self.ends[number])

    def draw(self, pen: AnyPen, number: int, fonts: FontSet) -> None:
        """The heat of a frame, and above each of several maps its share and the end of its scale."""
        tints, alphas = (np.concatenate(parts) for parts in zip(*self._colours(number)))
        if isinstance(pen, VectorPen):
            painted_by_pen(pen, self.at, self.layout, tints, alphas, fonts)
        else:
            pen.picture(painted(self.layout, tints, alphas), (self.at[0], self.at[1] + self.layout.cell_rows.start))
        pictures, label = len(self.layout.places) // len(self.maps), label_height(fonts, 2)
        for k, one in enumerate(self.maps if len(self.maps) > 1 else ()):
            left, top, width, _ = self.layout.places[k * pictures]
            share = one.shares[self.first_step + number]
            words = f"{share:+.1%}" if one.minus else f"{share:.1%}"
            if self.own_scale or one.minus:
                words += f", up to {amount_text(float(self._ends[k][number]), False)}"
            x = left + width - fonts.width(words)
            if x > left + fonts.width(self.layout.labels[k * pictures]) + fonts.size / 2:
                pen.text((self.at[0] + x, self.at[1] + top - label * 0.3), words, fonts, MUTED)

    def _colours(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """((cells, 3), (cells,)) RGB and opacity of each map's cells."""
        parts, found = np.split(self.weights[number], len(self.maps)), []
        for one, weights, ends in zip(self.maps, parts, self._ends):
            values = weights / max(float(ends[number]), TINY)
            if one.minus is None:
                scaled = np.clip(values, 0, 1) ** self.power
                found.append(cell_colours(scaled, self.colormap, float(self.strengths[number])))
            else:
                values = np.clip(np.nan_to_num(values), -1, 1)
                found.append((purple_to_green((values + 1) / 2), opacity(np.abs(values), CELL_ALPHA)))
        return found
