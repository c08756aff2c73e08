"""The picture panel: pictures scaled and placed once, cells, tints, and marks over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from attention_heatmap.dataset import upright_rgb
from attention_heatmap.drawing.colour import (
    CELL_ALPHA,
    CURRENT_TOKEN,
    INK,
    PAPER,
    Colormap,
    coloured,
    opacity,
    pixel_words,
    red_to_green,
)
from attention_heatmap.drawing.fonts import FONT_LABEL, FontSet, draw_runs
from attention_heatmap.drawing.marks import Mark
from attention_heatmap.drawing.text_layout import SMOOTH
from attention_heatmap.maps import Cells, map_cells
from attention_heatmap.record import AttentionRecord

CELL_LEVELS = 255  # steps of the colour scale
GRID_ALPHA = 0.45  # opacity of the grid lines
GRID_LINE = (60, 64, 72)
SMALLEST_GRIDDED_CELL = 6  # pixels on the screen; lines round smaller cells would hide the picture
HATCH = 5  # width of a stripe
HATCH_ALPHA = 0.6  # opacity of the stripes over a sink: dark and light ones, seen on any picture


@dataclass(frozen=True, eq=False)
class ImageLayout:
    """The pictures of a whole video, scaled and placed once, with an index of the cells over them."""

    picture: np.ndarray
    """(Y, X, 3) uint8, the panel without heat, grid lines drawn."""
    cell_index: np.ndarray
    """(Y, X) int64, 1 + the cell that covers a pixel, 0 for none."""
    cells: tuple[Cells, ...]
    """Of each picture."""
    places: tuple[tuple[int, int, int, int], ...] = ()
    """Left, top, width, height of each picture on the panel, in pixels."""

    @cached_property
    def cell_rows(self) -> slice:
        """The rows of pixels in which there are cells."""
        rows = np.flatnonzero(self.cell_index.any(axis=1))
        return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 1)

    @property
    def positions(self) -> np.ndarray:
        """(cells,) int64, the position in the prompt of each cell's image token."""
        return np.concatenate([np.zeros(0, np.int64), *(cells.positions for cells in self.cells)])

    def cell_weights(self, rows_TS: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
        """(T, cells) weight of every cell, from rows of attention; NaN where it is one of the sinks, (S,) bool."""
        return np.concatenate([rows_TS[:, :0], *(cells.weights(rows_TS, sinks) for cells in self.cells)], axis=1)


def layout_images(
    record: AttentionRecord, images: Sequence[Image.Image], width: int, height: int, fonts: FontSet,
    sinks: np.ndarray | None = None,
) -> ImageLayout:  # fmt: skip
    """Place the pictures, each as large as a panel of at most width × height pixels allows, and index their cells.

    sinks: (S,) bool, positions whose cells are hatched.
    """
    sizes, label = [image.size for image in images], label_height(fonts, len(images))
    slots = picture_slots(sizes, width, height, label)
    panel = Image.new("RGB", (width, used_height(sizes, slots)), PAPER)
    draw = ImageDraw.Draw(panel)
    index = np.zeros((panel.height, width), np.int64)
    found, sides = tuple(map(map_cells, record.images)), []
    for number, (image, cells, (x, y, scale)) in enumerate(zip(images, found, slots), start=1):
        size = round(image.width * scale), round(image.height * scale)
        panel.paste(upright_rgb(image).resize(size, Image.Resampling.LANCZOS), (x, y))
        if label:
            draw_runs(draw, (x, y - label * 0.3), f"image {number}", fonts, INK)
        stretch = np.array([size[0] / image.width, size[1] / image.height] * 2)
        # Rounding edges, not sizes, lets uneven cells still reach the last pixel.
        edges = np.round(cells.boxes * stretch).astype(int) + np.array([x, y, x, y])
        for left, top, right, bottom in edges:
            sides.append(min(right - left, bottom - top))
            index[top:bottom, left:right] = len(sides)
    if sides and np.median(sides) >= SMALLEST_GRIDDED_CELL:
        around = np.pad(index, 1)
        starts = (index != around[:-2, 1:-1]) | (index != around[1:-1, :-2])
        ends = (around[2:, 1:-1] == 0) | (around[1:-1, 2:] == 0)
        lines = np.where((index > 0) & (starts | ends), round(255 * GRID_ALPHA), 0)
        panel.paste(GRID_LINE, mask=Image.fromarray(lines.astype(np.uint8)))
    places = tuple((x, y, round(i.width * scale), round(i.height * scale)) for i, (x, y, scale) in zip(images, slots))
    layout = ImageLayout(np.asarray(panel), index, found, places)
    if sinks is None or not sinks[layout.positions].any():
        return layout
    hatched = np.concatenate([[False], sinks[layout.positions]])[index]
    _hatch(panel, hatched, max(round(fonts.size * HATCH / FONT_LABEL), 2))
    return replace(layout, picture=np.asarray(panel))


def _hatch(panel: Image.Image, where: np.ndarray, stripe: int) -> None:
    """Lay dark and light stripes, so many pixels wide, over a (Y, X) bool part of the panel."""
    dark = np.add.outer(*map(np.arange, where.shape)) // stripe % 2 == 0
    for colour, stripes in ((INK, dark), (PAPER, ~dark)):
        mask = np.where(where & stripes, round(255 * HATCH_ALPHA), 0)
        panel.paste(colour, mask=Image.fromarray(mask.astype(np.uint8)))


def label_height(fonts: FontSet, count: int) -> int:
    """Pixels above each of so many pictures, for its number; one alone has none."""
    return round(fonts.size * 1.5) if count > 1 else 0


def picture_slots(
    sizes: Sequence[tuple[int, int]], width: int, height: int, label: int
) -> list[tuple[int, int, float]]:
    """(x, y, scale) of each picture, from the top left, in as many columns as let the smallest one be largest."""

    def scales(columns: int) -> list[float]:
        rows = -(-len(sizes) // columns)
        wide = (width - (columns - 1) * label) / columns
        high = height / rows - label
        return [min(wide / w, high / h) for w, h in sizes]

    columns = max(range(1, len(sizes) + 1), key=lambda count: min(scales(count)))
    slots, y, placed = [], 0.0, list(zip(sizes, scales(columns)))
    for start in range(0, len(sizes), columns):
        row = placed[start : start + columns]
        x = 0.0
        for (w, _), scale in row:
            slots.append((round(x), round(y + label), scale))
            x += w * scale + label
        y += label + max(h * scale for (_, h), scale in row)
    return slots


def used_height(sizes: Sequence[tuple[int, int]], slots: Sequence[tuple[int, int, float]]) -> int:
    """Rows that pictures in these slots take."""
    return max(y + round(height * scale) for (_, height), (_, y, scale) in zip(sizes, slots))


def heat_tint(layout: ImageLayout, values: np.ndarray, colormap: Colormap = red_to_green) -> Image.Image:
    """The tint of each cell, as an RGBA image of those rows of the panel in which there are cells.

    values: (cells,) float, the weight of each cell on the scale 0..1 (clipped); NaN: no tint.
    """
    levels = np.round(np.clip(np.nan_to_num(values), 0, 1) * (CELL_LEVELS - 1)).astype(int)
    scale = np.linspace(0, 1, CELL_LEVELS)
    # Entry 0 is for pixels without a cell.
    tints = np.concatenate([[PAPER], np.asarray(colormap(scale))[levels]])
    alphas = np.where(np.isnan(values), 0, np.round(255 * opacity(scale, CELL_ALPHA))[levels])
    return coloured(layout.cell_index[layout.cell_rows], pixel_words(tints, np.concatenate([[0], alphas])))


def draw_heat(layout: ImageLayout, values: np.ndarray, colormap: Colormap = red_to_green) -> Image.Image:
    """The panel of the pictures under the tint of their cells, an RGB image; values as for `heat_tint`."""
    panel, heat = Image.fromarray(layout.picture), heat_tint(layout, values, colormap)
    panel.paste(heat, (0, layout.cell_rows.start), heat)
    return panel


def draw_marks(layout: ImageLayout, marks: Sequence[Mark], fonts: FontSet) -> Image.Image:
    """An RGBA overlay of the panel: marks numbered, the points of a picture joined in order; the last one is blue."""
    Y, X = layout.cell_index.shape
    radius, width = fonts.size * 0.75 * SMOOTH, max(round(fonts.size * 0.12 * SMOOTH), 1)
    # All outlines are white, as the ground is: colour and cover may be reduced by themselves, which is much faster.
    overlay, cover = Image.new("RGB", (X * SMOOTH, Y * SMOOTH), PAPER), Image.new("L", (X * SMOOTH, Y * SMOOTH))
    draw, mask = ImageDraw.Draw(overlay), ImageDraw.Draw(cover)
    font = fonts.main.font_variant(size=round(radius * 1.15))
    paths: list[list] = [[] for _ in layout.places]
    corners = []  # x, y of each mark's first corner
    for mark in marks:
        place = np.array(layout.places[mark.image])
        x, y = ((place[:2] + np.reshape(mark.corners, (-1, 2)) * place[2:]) * SMOOTH).T.tolist()
        rim, ends = radius + width, (place[:2] + place[2:]) * SMOOTH  # a disc stays whole, and in its picture
        disc = np.maximum(np.minimum((x[0], y[0]), ends - rim), place[:2] * SMOOTH + rim)
        corners.append(tuple(disc.tolist()))
        if len(x) == 1:
            paths[mark.image].append((x[0], y[0]))
        else:
            paths.append([(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]), (x[0], y[0])])
    for on, colour, thickness in ((draw, PAPER, 3 * width), (mask, 255, 3 * width), (draw, INK, width)):
        for path in (path for path in paths if len(path) > 1):  # light round dark: seen on any picture
            on.line(path, colour, thickness, joint="curve")
    for number, at in enumerate(corners, start=1):
        disc = [at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius]
        draw.ellipse(disc, CURRENT_TOKEN if number == len(corners) else INK, PAPER, width)
        draw.text(at, str(number), PAPER, font, anchor="mm")
        mask.ellipse(disc, 255)
    overlay = overlay.reduce(SMOOTH)
    overlay.putalpha(cover.reduce(SMOOTH))
    return overlay
