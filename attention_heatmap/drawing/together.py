"""Several maps over the same pictures in one frame: planes of a record, two checkpoints, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attention_heatmap.compare import Comparison
from attention_heatmap.drawing import colour, image_panel
from attention_heatmap.drawing.fonts import FontSet
from attention_heatmap.drawing.image_panel import IMAGE_SCALE_QUANTILE, ImageLayout
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
    """The heading and the maps of planes of one record; what all have in common is said once, in the heading."""
    names = [record.plane_name(plane) for plane in planes]
    layers, heads = zip(*(name.split(", ", 1) for name in names))
    heading = "attention in several layers and heads"
    if len(planes) > 1 and len(set(layers)) == 1:
        names, heading = heads, f"attention in {layers[0]}"
    elif len(planes) > 1 and len(set(heads)) == 1:
        names, heading = layers, f"attention, {heads[0]}"
    return heading, [ShownMap(name, record, plane) for name, plane in zip(names, planes)]


def comparison_maps(comparison: Comparison, names: Sequence[str], difference: bool) -> tuple[str, list[ShownMap]]:
    """The heading and the maps of two records of the same tokens, and of their difference."""
    a, b = (ShownMap(name, record, 0) for name, record in zip(names, comparison.common_records()))
    more = [ShownMap("difference", b.record, 0, a)] * difference
    return f"attention in {a.record.plane_name(0)}", [a, b, *more]


def difference_note(names: Sequence[str]) -> str:
    """What the colours of a difference mean."""
    return f"difference: green where {names[1]} looks more, purple where {names[0]} does"


def notes_below(maps: Sequence[ShownMap]) -> list[str]:
    """What has to be said of several maps, below them."""
    names = [one.name for one in maps]
    return [f"text, shares and time line: {names[0]}", *[difference_note(names)] * (maps[-1].minus is not None)]


def two_sided_colours(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((cells, 3), (cells,)) RGB and opacity of differences of -1..1: those of 0 hardly tinted, either end alike."""
    return colour.purple_to_green((values + 1) / 2), colour.opacity(np.abs(values), colour.CELL_ALPHA)


class MapsTogether:
    """A map over the pictures, or several over the same ones, at every step that has a frame."""

    def __init__(
        self, maps: Sequence[ShownMap], heading: str, layout: ImageLayout, at: tuple[int, int], first_step: int,
        options: DrawingOptions,
    ) -> None:  # fmt: skip
        self.maps, self.title, self.layout, self.at = list(maps), heading, layout, at
        self.colormap, self.options, self.first_step = colour.colour_map(options.colormap), options, first_step
        found = [one.weights(layout, options)[first_step:] for one in maps]
        self.weights = np.concatenate(found, axis=1)
        self.any_heat = bool((np.nan_to_num(self.weights) > 0).any())
        scale = IMAGE_SCALE_QUANTILE, options.scale
        shared = colour.scale_ends(np.concatenate([w for w, m in zip(found, maps) if not m.minus], axis=1), *scale)
        self.own_scale = options.together != "shared" and len(maps) > 1
        self._ends = [
            colour.scale_ends(np.abs(weights), *scale) if self.own_scale or one.minus else shared
            for weights, one in zip(found, maps)
        ]
        self.ends, self.shares = self._ends[0], maps[0].shares[first_step:]
        shares = np.max([one.shares[first_step:] for one in maps if not one.minus], axis=0)
        self.strengths = colour.strengths(shares, options.scale)

    def scale_end(self, number: int) -> float | str:
        """The weight at the end of the scale of a frame, or words for it."""
        return "each map's own scale" if self.own_scale else float(self.ends[number])

    def draw(self, pen: AnyPen, number: int, fonts: FontSet) -> None:
        """The heat of a frame, and above each of several maps its share and the end of its scale."""
        tints, alphas = (np.concatenate(parts) for parts in zip(*self._colours(number)))
        if isinstance(pen, VectorPen):
            image_panel.painted_by_pen(pen, self.at, self.layout, tints, alphas, fonts)
        else:
            heat = image_panel.painted(self.layout, tints, alphas)
            pen.picture(heat, (self.at[0], self.at[1] + self.layout.cell_rows.start))
        pictures, label = len(self.layout.places) // len(self.maps), image_panel.label_height(fonts, 2)
        for k, one in enumerate(self.maps if len(self.maps) > 1 else ()):
            left, top, width, _ = self.layout.places[k * pictures]
            share = one.shares[self.first_step + number]
            words = f"{share:+.1%}" if one.minus else f"{share:.1%}"
            if one.minus and not np.nan_to_num(np.split(self.weights[number], len(self.maps))[k]).any():
                words = "no difference"
            elif self.own_scale or one.minus:
                words += f", up to {amount_text(float(self._ends[k][number]), False)}"
            x = left + width - fonts.width(words)
            if x > left + fonts.width(self.layout.labels[k * pictures]) + fonts.size / 2:
                pen.text((self.at[0] + x, self.at[1] + top - label * 0.3), words, fonts, colour.MUTED)

    def _colours(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """((cells, 3), (cells,)) RGB and opacity of each map's cells."""
        parts, found = np.split(self.weights[number], len(self.maps)), []
        for one, weights, ends in zip(self.maps, parts, self._ends):
            values = weights / max(float(ends[number]), TINY)
            if one.minus:
                found.append(two_sided_colours(np.clip(np.nan_to_num(values), -1, 1)))
            else:
                values = colour.scaled(values, self.options.scale, self.options.power)
                found.append(image_panel.cell_colours(values, self.colormap, float(self.strengths[number])))
        return found
