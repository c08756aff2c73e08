"""A pen for text, boxes, rings, lines and pictures: on an image, or as a drawing that keeps text as text."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw

from attention_heatmap.drawing.colour import INK, PAPER
from attention_heatmap.drawing.fonts import BitmapFont, FontSet

SMOOTH = 4  # rings and lines are drawn that many times larger and reduced, so that they have no steps
Point = tuple[float, float]


class Pen:
    """Draws on an image, in pixels from its top left; colours are RGB in 0..255, or a grey of a grey image."""

    def __init__(self, canvas: Image.Image) -> None:
        self.canvas, self._draw = canvas, ImageDraw.Draw(canvas)

    def text(self, at: Point, text: str, fonts: FontSet, fill: Any = INK) -> float:
        """A line of text with its base line at a point; the x at which it ends."""
        x, y = at
        for font, part in fonts.runs(text):
            if isinstance(font, BitmapFont):
                self._draw.bitmap((round(x), round(y) - font.getmetrics()[0]), font.coverage(part), fill)
            else:
                self._draw.text((x, y), part, fill=fill, font=font, anchor="ls")
            x += font.getlength(part)
        return x

    def box(self, box: Sequence[float], fill: Any = None, outline: Any = None, width: int = 1, radius: int = 0) -> None:
        """A box from left, top to right, bottom (which it does not reach)."""
        left, top, right, bottom = (round(edge) for edge in box)
        if right > left and bottom > top:
            corners, fill = (left, top, right - 1, bottom - 1), fill if fill is None else tuple(map(round, fill))
            self._draw.rounded_rectangle(corners, min(radius, (bottom - top) // 2), fill, outline, width)

    def picture(self, image: Image.Image, at: Point) -> None:
        """A picture with its top left at a point."""
        self.canvas.paste(image, (round(at[0]), round(at[1])), image if image.mode == "RGBA" else None)

    def ring(self, at: Point, radius: float, colour: Any, width: float, opacity: float, fill: Any = None) -> None:
        """A ring round a point, with a light rim on both sides; filled, if a colour is given."""
        sprite = _ring(round(radius, 1), tuple(colour), round(width, 1), round(opacity, 2), fill)
        self.picture(sprite, (at[0] - sprite.width / 2, at[1] - sprite.height / 2))

    def line(self, points: Sequence[Point], colour: Any, width: float, opacity: float) -> None:
        """A line through points, with a light rim."""
        left, top = (int(min(values)) for values in zip(*points))
        offsets = tuple((round(x - left, 1), round(y - top, 1)) for x, y in points)
        sprite = _line(offsets, tuple(colour), round(width, 1), round(opacity, 2))
        edge = -(-round(3 * width) // 2) + 1
        self.picture(sprite, (left - edge, top - edge))


def _reduced(colour: Image.Image, cover: Image.Image, opacity: float) -> Image.Image:
    """What was drawn SMOOTH times larger, as an RGBA image."""
    sprite = colour.reduce(SMOOTH)
    sprite.putalpha(cover.reduce(SMOOTH).point(lambda level: round(level * opacity)))
    return sprite


@lru_cache(maxsize=256)
def _ring(radius: float, colour: tuple, width: float, opacity: float, fill: Any) -> Image.Image:
    side = 2 * (int(radius + 1.5 * width) + 2) * SMOOTH
    sprite, cover = Image.new("RGB", (side, side), PAPER), Image.new("L", (side, side))
    for image, half, shade in (
        (cover, 1.5, 255), (cover, -1.5, 255 if fill else 0),
        (sprite, 0.5, colour), (sprite, -0.5, PAPER), (sprite, -1.5, fill or PAPER),
    ):  # fmt: skip
        reach = max(radius + half * width, 0) * SMOOTH
        ImageDraw.Draw(image).ellipse([side / 2 - reach, side / 2 - reach, side / 2 + reach, side / 2 + reach], shade)
    return _reduced(sprite, cover, opacity)


@lru_cache(maxsize=256)
def _line(offsets: tuple, colour: tuple, width: float, opacity: float) -> Image.Image:
    edge = -(-round(3 * width) // 2) + 1
    size = [(int(max(values)) + 1 + 2 * edge) * SMOOTH for values in zip(*offsets)]
    sprite, cover = Image.new("RGB", size, PAPER), Image.new("L", size)
    path = [((x + edge) * SMOOTH, (y + edge) * SMOOTH) for x, y in offsets]
    ImageDraw.Draw(cover).line(path, 255, round(3 * width * SMOOTH), joint="curve")
    ImageDraw.Draw(sprite).line(path, colour, round(width * SMOOTH), joint="curve")
    return _reduced(sprite, cover, opacity)


class VectorPen:
    """Takes what a `Pen` takes, for a file that keeps text as text; one for each kind of file is in `vectors`."""

    def text(self, at: Point, text: str, fonts: FontSet, fill: Any = INK) -> float:
        x, y = at
        for font, part in fonts.runs(text):
            width = font.getlength(part)
            if isinstance(font, BitmapFont):
                cover = font.coverage(part)
                glyphs = Image.merge("LA", (Image.new("L", cover.size, 0), cover)).convert("RGBA")
                self.picture(glyphs, (x, y - font.getmetrics()[0]))
            elif part.strip():
                self.run((x, y), part, width, font, fill)
            x += width
        return x

    def box(
        self, box: Sequence[float], fill: Any = None, outline: Any = None, width: int = 1, radius: int = 0,
        opacity: float = 1,
    ) -> None:  # fmt: skip
        left, top, right, bottom = map(float, box)
        if right > left and bottom > top:
            self.rect((left, top), (right - left, bottom - top), fill, outline, width, radius, opacity)

    def picture(self, image: Image.Image, at: Point, size: tuple[int, int] | None = None) -> None:
        self.image(image, tuple(map(float, at)), size or image.size)

    def ring(self, at: Point, radius: float, colour: Any, width: float, opacity: float, fill: Any = None) -> None:
        self.circle(at, radius, PAPER, 3 * width, opacity, fill)
        self.circle(at, radius, colour, width, opacity, None)

    def line(self, points: Sequence[Point], colour: Any, width: float, opacity: float) -> None:
        self.path(points, PAPER, 3 * width, opacity)
        self.path(points, colour, width, opacity)


AnyPen = Pen | VectorPen


def draw_lines(pen: AnyPen, lines: Sequence[str], at: Point, pitch: int, fonts: FontSet, fill: Any = INK) -> None:
    """Lines of text below each other, the base line of the first at a point."""
    for number, line in enumerate(lines):
        pen.text((at[0], at[1] + number * pitch), line, fonts, fill)
