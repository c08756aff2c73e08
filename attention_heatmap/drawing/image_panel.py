"""The picture panel: pictures scaled and placed once, cells, tints, and marks over them."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from attention_heatmap.dataset import upright_rgb
from attention_heatmap.drawing import colour
from attention_heatmap.drawing.colour import CURRENT_TOKEN, INK, PAPER, Colormap
from attention_heatmap.drawing.fonts import FONT_LABEL, FontSet, cut_to
from attention_heatmap.drawing.layout import Sheet, picture_slots, used_size
from attention_heatmap.drawing.legend import amount_text
from attention_heatmap.drawing.marks import Mark
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.pen import AnyPen, Pen
from attention_heatmap.maps import TINY, cell_weights, map_cells, picture_shares, shown_rows
from attention_heatmap.record import AttentionRecord

_WIDEST_BESIDE = "+100.0%, up to 100.00%", "100.0%"  # beside the name of one of several maps, or at least
# The names of planes in fewer words, one after the other until all names have room; those of checkpoints stay.
_SHORTER = (
    (r"\b(mean|maximum) of the heads\b", r"\1"), (r"(^|, )maximum(?=$| ·)", r"\1max"), (r"· image (\d+)$", r"· \1"),
    (r"^layer (\d+)", r"L\1"), (r"(^|, )heads? (?=\d)", r"\1H"), (r"^(L\d+), ", r"\1 "), (r" · 1$", ""),
)  # fmt: skip
CELL_LEVELS = 32  # steps of the colour scale: what hardly changes from frame to frame does not change at all
# The highest weights are clipped here, so that one outlier among very many cells does not turn all the rest red.
IMAGE_SCALE_QUANTILE = 0.999
GRID_ALPHA = 0.2  # opacity of the grid lines
GRID_LINE = (60, 64, 72)
SMALLEST_GRIDDED_CELL = 6  # pixels on the screen; lines round smaller cells would hide the picture
_HATCH = 5  # width of a stripe
_HATCH_ALPHA = 0.6  # opacity of the stripes over a sink: dark and light ones, seen on any picture
# The picture under the heat: part of its colour that goes, and of its darkness, at least and at most: its middle shade
# is then no more than _DARKEST_MIDDLE below white. The shades of a picture whose middle is below DARK are first spread,
# so that what can be told apart in a night scene still can: the darker, the more evenly, up to _MOST_EVENED.
GREYED, _LIGHTENED, _DARKEST_MIDDLE = 0.55, (0.45, 0.7), 75
_DARK, _MOST_EVENED = 110, 0.7
_FINEST = 3  # pixels of a picture to one of the frame, at most, in a file of shapes
# In radii of a mark, of a square as large as the picture: on a smaller one marks are smaller and have no numbers.
_MARKED_SIDE = 12
MARK_RADIUS, MARK_OPACITY, OLD_MARK, MOST_MARKS = 13, (1.0, 0.75, 0.5), 0.4, 24  # the newest mark first


class ImageLayout:
    """The pictures of a whole video, scaled and placed once, with an index of the cells over them."""

    def __init__(
        self, record: AttentionRecord, images: Sequence[Image.Image], width: int, height: int, fonts: FontSet,
        sinks: np.ndarray | None = None, picture: str = "colour", names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Place the pictures, as large as a panel of at most width × height pixels allows, and index their cells.

        sinks: (S,) bool, positions whose cells are hatched. picture: how it looks under the heat, see `under_heat`.
        names: of several maps, each of which has all pictures, one map after the other.
        """
        self.fonts, self.label = fonts, label_height(fonts, len(images) * max(len(names), 1))
        # Each picture as it stands under the heat, in its own size, and the cells over it.
        self.shown = [under_heat(upright_rgb(image), picture) for image in images] * max(len(names), 1)
        cells = [map_cells(tokens) for tokens in record.images] * max(len(names), 1)
        sizes = [image.size for image in self.shown]
        slots = picture_slots(sizes, width, height, self.label, len(images))
        # Left, top, width, height of each picture, and left, top, right, bottom of each cell on the panel, in pixels.
        self.places = [(x, y, max(round(w * s), 1), max(round(h * s), 1)) for (w, h), (x, y, s) in zip(sizes, slots)]
        self.edges: list[tuple[int, int, int, int]] = []
        self.labels = self._labels(len(images), names)  # above each picture
        panel = Image.new("RGB", (width, used_size(sizes, slots)[1]), PAPER)
        for image, own, text, (x, y, *size) in zip(self.shown, cells, self.labels, self.places):
            panel.paste(image.resize(size, Image.Resampling.LANCZOS), (x, y))
            Pen(panel).text((x, y - self.label * 0.3), text, fonts)
            stretch = np.array([size[0] / image.width, size[1] / image.height] * 2)
            # Rounding edges, not sizes, lets uneven cells still reach the last pixel.
            self.edges += map(tuple, np.add(np.round(own.boxes * stretch).astype(int), [x, y, x, y]).tolist())
        # (Y, X), 1 + the cell that covers a pixel, 0 for none: what a frame looks its colours up by.
        self.cell_index = np.zeros((panel.height, width), np.intp)
        for number, (left, top, right, bottom) in enumerate(self.edges, start=1):
            self.cell_index[top:bottom, left:right] = number
        sinks = np.zeros(len(record.tokens), bool) if sinks is None else sinks
        self.hatched = np.concatenate([sinks[own.positions] for own in cells])  # (cells,) bool
        sides = [min(right - left, bottom - top) for left, top, right, bottom in self.edges]
        self.gridded = bool(sides) and np.median(sides) >= SMALLEST_GRIDDED_CELL
        self._draw_lines(panel)
        self.picture = np.asarray(panel)  # (Y, X, 3) uint8, the panel without heat

    def _labels(self, images: int, names: Sequence[str]) -> list[str]:
        """What stands above each picture, of several maps their names above the first; shorter where it is wider."""
        fonts, numbers = self.fonts, [f"image {n}" for n in range(1, images + 1)] if images > 1 else [""]
        named = [[name, *[""] * (images - 1)] for name in names or [""]]
        shown = labels = [" · ".join(filter(None, both)) for own in named for both in zip(own, numbers)]
        widths = [width for _, _, width, _ in self.places]
        if not names:  # each picture by itself
            fits = (fonts.width(label) <= width for label, width in zip(labels, widths))
            shown = [label if fit else label.removeprefix("image ") for label, fit in zip(labels, fits)]
            return [cut_to(label, fonts, width) for label, width in zip(shown, widths)]
        # What stands beside them: the most for which all have room, in as few words as it takes.
        shares = [*(fonts.width(words) + fonts.size / 2 for words in _WIDEST_BESIDE), 0]
        for share in (share for share in shares if share <= min(widths) / 2):
            shown, rooms = labels, [width - share for width in widths]
            for words, fewer in (("", ""), *_SHORTER):
                shown = [re.sub(words, fewer, label) for label in shown]
                if all(fonts.width(label) <= room for label, room in zip(shown, rooms)):
                    return shown
        rooms = [width - shares[0] if shares[0] <= width / 2 else width for width in widths]
        return [cut_to(label, fonts, room) for label, room in zip(shown, rooms)]

    def _draw_lines(self, panel: Image.Image) -> None:
        """Grid lines round the cells, unless they are tiny, and stripes over the sinks."""
        index, stripe = self.cell_index, max(round(self.fonts.size * _HATCH / FONT_LABEL), 2)
        around = np.pad(index, 1)
        starts = (index != around[:-2, 1:-1]) | (index != around[1:-1, :-2])
        ends = (around[2:, 1:-1] == 0) | (around[1:-1, 2:] == 0)
        lines = self.gridded & (index > 0) & (starts | ends)
        sinks = np.concatenate([[False], self.hatched])[index]
        dark = np.add.outer(*map(np.arange, index.shape)) // stripe % 2 == 0
        dark, light = (INK, _HATCH_ALPHA, sinks & dark), (PAPER, _HATCH_ALPHA, sinks & ~dark)
        for shade, opacity, where in ((GRID_LINE, GRID_ALPHA, lines), dark, light):
            panel.paste(shade, mask=Image.fromarray(np.where(where, round(255 * opacity), 0).astype(np.uint8)))


def under_heat(image: Image.Image, picture: str) -> Image.Image:
    """The picture as it stands under the heat: "colour", as it is; "muted", half as colourful and lighter; "grey"."""
    if picture == "colour":
        return image
    flat = image.convert("L").convert("RGB")
    return (flat if picture == "grey" else Image.blend(image, flat, GREYED)).point(heat_shades(image) * 3)


def heat_shades(image: Image.Image) -> list[int]:
    """The shade under the heat of each shade 0..255 of a picture that is muted or grey."""
    counts = np.array(image.convert("L").resize((128, 128)).histogram())
    even = 255 * (np.cumsum(counts) - counts / 2) / counts.sum()  # as many pixels of each shade as of any other
    middle = np.searchsorted(np.cumsum(counts), counts.sum() / 2)
    dark = _MOST_EVENED * np.clip(1 - middle / _DARK, 0, 1)
    values = dark * even + (1 - dark) * np.arange(256)
    light = float(np.clip(1 - _DARKEST_MIDDLE / max(255 - values[middle], 1), *_LIGHTENED))
    return np.round(255 - (255 - values) * (1 - light)).astype(int).tolist()


def label_height(fonts: FontSet, count: int) -> int:
    """Pixels above each of so many pictures, for its number; one alone has none."""
    return round(fonts.size * 1.5) if count > 1 else 0


def cell_colours(
    weights: np.ndarray, end: float, options: DrawingOptions, colormap: Colormap, strength: float = 1
) -> tuple[np.ndarray, np.ndarray]:
    """((cells, 3), (cells,)) RGB and opacity 0..1 of (cells,) weights on a scale up to an end; NaN: no tint."""
    values = colour.scaled(weights / max(end, TINY), options.scale, options.power)
    levels = np.round(np.nan_to_num(values) * (CELL_LEVELS - 1)).astype(int)
    scale = np.linspace(0, 1, CELL_LEVELS)
    alphas = colour.opacity(scale, colour.CELL_ALPHA, strength)[levels]
    return colormap(scale)[levels], np.where(np.isnan(values), 0, alphas)


def two_sided_colours(weights: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """The same of differences: those of 0 hardly tinted, either end alike."""
    values = np.clip(np.nan_to_num(weights / max(end, TINY)), -1, 1)
    return colour.purple_to_green((values + 1) / 2), colour.opacity(np.abs(values), colour.CELL_ALPHA)


def put_heat(
    pen: AnyPen, at: tuple[int, int], layout: ImageLayout, tints: np.ndarray, alphas: np.ndarray, over: bool = False
) -> None:
    """The pictures under the tints of their cells, (cells, 3) RGB and (cells,) opacity 0..1, at a point.

    over: whether an image has the pictures already. As shapes, there are each picture and a box for each cell.
    """
    if isinstance(pen, Pen):
        if not over:
            pen.picture(Image.fromarray(layout.picture), at)
        # Entry 0 is for pixels without a cell.
        tints, alphas = np.concatenate([[PAPER], tints]), np.concatenate([[0], np.round(255 * alphas)])
        pen.picture(colour.coloured(layout.cell_index, colour.pixel_words(tints, alphas)), at)
        return
    for image, text, (x, y, *size) in zip(layout.shown, layout.labels, layout.places):
        image = image.copy()
        image.thumbnail((_FINEST * size[0], _FINEST * size[1]))
        pen.picture(image, (at[0] + x, at[1] + y), tuple(size))
        pen.text((at[0] + x, at[1] + y - layout.label * 0.3), text, layout.fonts)
    line = tuple(colour.blend(255.0, np.array(GRID_LINE), GRID_ALPHA)) if layout.gridded else None
    stripe = max(layout.fonts.size * _HATCH / FONT_LABEL, 2)
    for edges, tint, alpha, is_sink in zip(layout.edges, tints, alphas, layout.hatched):
        left, top, right, bottom = np.add(edges, [*at, *at]).tolist()
        pen.box((left, top, right, bottom), tint, line, opacity=float(alpha))
        for ends in np.arange(left + top + stripe, right + bottom, 3 * stripe) if is_sink else ():
            x = max(left, ends - bottom), min(right, ends - top)
            pen.line([(x[0], ends - x[0]), (x[1], ends - x[1])], INK, stripe / 2, _HATCH_ALPHA)


def draw_marks(pen: AnyPen, at: tuple[int, int], layout: ImageLayout, marks: Sequence[Mark], before: int = 0) -> None:
    """The places named last, after so many before them: the newest in blue, older ones ever fainter, over the heat."""
    # Where several maps share a frame, all pictures that have marks are of one size, or nearly.
    side = min((layout.places[mark.image][2] * layout.places[mark.image][3]) ** 0.5 for mark in marks)
    fonts = layout.fonts
    unit, most = fonts.size / FONT_LABEL, side / (_MARKED_SIDE * MARK_RADIUS)
    is_small, unit = most < unit, min(most, unit)
    places = np.array(layout.places)[[mark.image for mark in marks]]
    boxes = [place[:2] + np.reshape(mark.corners, (-1, 2)) * place[2:] + at for place, mark in zip(places, marks)]
    drawn = [(len(marks) - n, *each) for n, each in enumerate(zip(marks, boxes), start=1)][-MOST_MARKS:]
    points, radius = [each for each in drawn if len(each[2]) == 1], MARK_RADIUS * unit
    for (_, last, (start,)), (age, mark, (end,)) in pairwise(points):  # joined between their rings, not through them
        along = end - start
        length = float(np.hypot(*along))
        if last.image == mark.image and age < len(MARK_OPACITY) and length > 3 * radius:
            edge = along / length * (radius + 4 * unit)
            pen.line([tuple((start + edge).tolist()), tuple((end - edge).tolist())], INK, 2 * unit, MARK_OPACITY[age])
    for age, _, box in drawn:
        if age >= len(MARK_OPACITY):  # an old one: a dot
            pen.ring(box.mean(axis=0).tolist(), 1.5 * unit, INK, 2 * unit, OLD_MARK, INK)
            continue
        ink, clear = INK if age else CURRENT_TOKEN, MARK_OPACITY[age]
        if len(box) == 1:
            pen.ring(box[0].tolist(), radius, ink, 3 * unit, clear)
        else:
            (x0, y0), (x1, y1) = box.tolist()
            pen.line([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], ink, 3 * unit, clear)
        if not is_small:  # the lower right corner of the number's tag, within the panel
            x, y = box[0] - radius * (len(box) == 1)
            text, high = str(before + len(marks) - age), fonts.size * 1.15
            width = fonts.width(text) + fonts.size * 0.5
            left = max(float(x) - width, at[0])
            top = min(max(float(y) - high, at[1]), at[1] + layout.picture.shape[0] - high)
            shade = tuple(round(255 - (255 - channel) * (0.5 + 0.5 * clear)) for channel in ink)
            pen.box((left, top, left + width, top + high), shade, radius=round(high / 4))
            pen.text((left + fonts.size * 0.25, top + fonts.size * 0.93), text, fonts, PAPER)


class ShownMap(NamedTuple):
    """One of the maps of a frame."""

    name: str
    weights: np.ndarray  # (T, cells), NaN where a sink is left out
    shares: np.ndarray  # (T, pictures) of the attention that lies on each picture
    is_difference: bool = False  # of two others: what is drawn, on a two-sided scale, is how much more lies there


def shown_map(record: AttentionRecord, plane: int, options: DrawingOptions, name: str = "") -> ShownMap:
    """The map of a plane."""
    shown = shown_rows(record, plane, *options.map)
    return ShownMap(name, cell_weights(record, shown.rows, shown.sinks), picture_shares(record, plane))


class MapPanel:
    """The side of a frame with the pictures: a map over them, or several, at every step that has a frame."""

    def __init__(
        self, maps: Sequence[ShownMap], layout: ImageLayout, at: tuple[int, int], first_step: int, sheet: Sheet
    ) -> None:
        self.layout, self.at, self.options, self.colormap = layout, at, sheet.options, sheet.colormap
        self.maps = [one._replace(weights=one.weights[first_step:], shares=one.shares[first_step:]) for one in maps]
        plain = [one for one in self.maps if not one.is_difference]
        scale = IMAGE_SCALE_QUANTILE, self.options.scale
        self.own_scale = self.options.together != "shared" and len(maps) > 1
        shared = colour.scale_ends(np.concatenate([one.weights for one in plain], axis=1), *scale)
        # Of each map, the weight at the end of its scale in each frame.
        self.ends = [
            colour.scale_ends(np.abs(one.weights), *scale) if self.own_scale or one.is_difference else shared
            for one in self.maps
        ]
        self.any_heat = any((np.nan_to_num(one.weights) > 0).any() for one in self.maps)
        self.strengths = colour.strengths(np.max([one.shares.sum(1) for one in plain], axis=0), self.options.scale)

    def scale_end(self, number: int) -> float | str | None:
        """The weight at the end of the scale of a frame, or words for it; None where nothing has any."""
        if not self.any_heat:
            return None
        ends = [own[number] for own, one in zip(self.ends, self.maps) if not one.is_difference]
        low, high = (self._amount(float(end)) for end in (min(ends), max(ends)))
        return f"each map's own scale: {f'{low} to ' * (low != high)}{high}" if self.own_scale else float(ends[0])

    def _amount(self, weight: float) -> str:
        return amount_text(weight, self.options.baseline == "relative")

    def draw(self, pen: AnyPen, number: int) -> None:
        """The heat of a frame, and above each of several maps its share and the end of its scale."""
        found, look = [], (self.options, self.colormap, float(self.strengths[number]))
        for one, ends in zip(self.maps, self.ends):
            heat = one.weights[number], float(ends[number])
            found.append(two_sided_colours(*heat) if one.is_difference else cell_colours(*heat, *look))
        put_heat(pen, self.at, self.layout, *map(np.concatenate, zip(*found)), over=True)
        for k, one in enumerate(self.maps if len(self.maps) > 1 else ()):
            pictures = one.shares.shape[1]
            for n, share in enumerate(one.shares[number]):
                words = [f"{share:{'+' * one.is_difference}.1%}"]
                if n == 0 and one.is_difference and not np.nan_to_num(one.weights[number]).any():
                    words = ["no difference"]
                elif n == 0 and (self.own_scale or one.is_difference):
                    words.insert(0, f"{words[0]}, up to {self._amount(float(self.ends[k][number]))}")
                self._draw_beside(pen, k * pictures + n, words)

    def _draw_beside(self, pen: AnyPen, place: int, words: Sequence[str]) -> None:
        """The first of some words that there is room for beside the name of a picture, if any."""
        layout, fonts, (left, top, width, _) = self.layout, self.layout.fonts, self.layout.places[place]
        room = width - fonts.width(layout.labels[place]) - fonts.size / 2
        if text := next((text for text in words if fonts.width(text) < room), ""):
            at = self.at[0] + left + width - fonts.width(text), self.at[1] + top - layout.label * 0.3
            pen.text(at, text, fonts, colour.MUTED)
