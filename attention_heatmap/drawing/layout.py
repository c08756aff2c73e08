"""The lengths and fonts of a frame, where its panels stand, and the pictures within theirs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from attention_heatmap.drawing.colour import colour_map
from attention_heatmap.drawing.fonts import FONT_LABEL, FONT_TITLE, FontSet
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions

Size = tuple[int, int]
Slot = tuple[int, int, float]  # x, y and scale of a picture, from the top left of its panel
_TALL_FRAME_SIZE = (1600, 1920)  # of a frame taller than wide in which lengths are the same
_SMALLEST_UNIT = 0.55  # of a pixel of the default frame: in a small frame what is written stays readable, and is less
MARGIN, _HEADER, _SMALL_HEADER = 28, 78, 56
_LOWEST = 0.01  # pixels of a row of pictures, of strips, say: it is never wider than its panel
_UNEVEN = 0.8  # what the size of maps counts where the last row is shorter than the others
MOST_ARRANGED = 6  # pictures; more stand in rows of equal count
_PICTURE_WIDTHS = tuple(n / 50 for n in range(12, 38))  # parts of the frame's width that the pictures may take
_PICTURE_HEIGHTS = tuple(n / 50 for n in range(4, 38))  # parts of its height, where they stand above the text
_TEXT_WEIGHT = 0.4  # how much room for text counts beside room for pictures, as a power
_NARROWEST_TEXT, _LOWEST_TEXT = 19, 7  # in heights of its font: about 36 letters, 5 lines
_LETTER, _LINE = 0.55, 1.55  # width of a letter and pitch of a line, in heights of the font
LARGER_TEXT = (1.8, 1.6, 1.4, 1.25, 1.1)  # what the font may grow by where all of the text finds room


class Sheet:
    """What all parts of a frame share: its options, lengths and fonts."""

    def __init__(self, options: DrawingOptions) -> None:
        self.options, self.colormap = options, colour_map(options.colormap)
        self.width, self.height = options.frame_size
        whole = _TALL_FRAME_SIZE if self.height > self.width else DEFAULT_FRAME_SIZE
        unit = min(self.width / whole[0], self.height / whole[1])
        self.small, self.unit = unit < _SMALLEST_UNIT, max(unit, _SMALLEST_UNIT)
        path = options.font_path
        self.title_fonts, self.label_fonts = (FontSet(self.px(size), path) for size in (FONT_TITLE, FONT_LABEL))
        self.left, self.right = self.px(MARGIN), self.width - self.px(MARGIN)
        self.header = self.px(_SMALL_HEADER if self.small else _HEADER)

    def px(self, length: float) -> int:
        """Pixels of a length that is given for a frame of DEFAULT_FRAME_SIZE, or of _TALL_FRAME_SIZE."""
        return max(round(length * self.unit), 1)

    def heading(self, top: int) -> int:
        """The base line of the heading of a panel."""
        return top - self.header + round(self.header * 0.62)


def _rows(count: int, each: int) -> Iterator[list[range]]:
    """The ways to stand so many pictures in rows.

    Of several maps, of `each` pictures, a row has whole maps, or one of the pictures of all.
    """
    if each == count and count <= MOST_ARRANGED:
        for breaks in range(count):
            for at in combinations(range(1, count), breaks):
                yield [range(first, last) for first, last in pairwise((0, *at, count))]
        return
    if 1 < each < count:
        yield [range(first, count, each) for first in range(each)]
    step = each if each < count else 1
    for length in range(step, count + 1, step):
        yield [range(start, min(start + length, count)) for start in range(0, count, length)]


def _slots(sizes: Sequence[Size], rows: list[range], width: int, height: int, label: int, alike: bool) -> list[Slot]:
    """The pictures in these rows: those of a row are of one height, a row is as wide as the panel, if that fits.

    alike: whether the rows are of the same pictures, so that a shorter one must not be of larger ones.
    """
    highs = [(width - (len(row) - 1) * label) / sum(sizes[n][0] / sizes[n][1] for n in row) for row in rows]
    highs = [min(highs)] * len(highs) if alike and len(rows[-1]) < len(rows[0]) else highs
    # A row that is lower than its part leaves the rest to the others.
    left, limit = height - len(rows) * label, 0.0
    for done, high in enumerate(sorted(highs)):
        limit = left / (len(highs) - done)
        if high > limit:
            break
        left -= high
    slots, y = {}, 0.0
    for row, high in zip(rows, highs):
        high, x = max(min(high, limit), _LOWEST), 0.0
        for n in row:
            scale = high / sizes[n][1]
            slots[n] = round(x), round(y + label), scale
            x += sizes[n][0] * scale + label
        y += label + high
    return [slots[n] for n in range(len(sizes))]


def _seen(sizes: Sequence[Size], slots: Sequence[Slot]) -> float:
    """How large the pictures are together: the sum of the sides of squares as large as they are."""
    return sum(scale * (width * height) ** 0.5 for (width, height), (_, _, scale) in zip(sizes, slots))


def picture_slots(sizes: Sequence[Size], width: int, height: int, label: int, each: int = 0) -> list[Slot]:
    """(x, y, scale) of each picture in a panel of a size, in the rows in which they are largest together.

    label: pixels above each picture, and between two of a row. each: pictures of a map; 0: all are of one.
    """
    each = each or len(sizes)

    def slots(rows: list[range]) -> list[Slot]:
        return _slots(sizes, rows, width, height, label, each < len(sizes))

    def score(rows: list[range]) -> float:
        even = len(rows[-1]) == len(rows[0]) or each == len(sizes)
        return _seen(sizes, slots(rows)) * (1 if even else _UNEVEN)

    return slots(max(_rows(len(sizes), each), key=score))


def used_size(sizes: Sequence[Size], slots: Sequence[Slot]) -> Size:
    """Width and height that pictures in these slots take."""
    placed = list(zip(sizes, slots))
    return max(x + round(w * s) for (w, _), (x, _, s) in placed), max(y + round(h * s) for (_, h), (_, y, s) in placed)


@dataclass(frozen=True)
class Panels:
    """Left, top, width and height of the text and of the pictures, in pixels of the frame."""

    text: tuple[int, int, int, int]
    pictures: tuple[int, int, int, int]
    stacked: bool  # whether the pictures stand above the text, not beside it
    text_scales: tuple[float, ...] = ()  # what the text's font may grow by, most first; wide letters allow less


def place_panels(
    sizes: Sequence[Size], room: tuple[int, int, int, int], header: int, gap: int, label: int, font: int,
    lines: Sequence[int], each: int = 0,
) -> Panels:  # fmt: skip
    """The panels in which pictures and text have the most room.

    room: left, top, right, bottom of what both share; header: pixels above each panel; label: above each picture;
    font: height of the text's; lines: letters of each line of the text; each: pictures of a map.
    """
    left, top, right, bottom = room
    width, height, found = right - left, bottom - top, []
    for part in _PICTURE_WIDTHS:
        high = height - header
        used = used_size(sizes, picture_slots(sizes, round((width - gap) * part), high, label, each))[0]
        text, pictures = (left, top + header, width - gap - used, high), (right - used, top + header, used, high)
        if text[2] >= _NARROWEST_TEXT * font or not found:
            found.append(Panels(text, pictures, stacked=False))
    for part in _PICTURE_HEIGHTS:
        high = round((height - 2 * header) * part)
        text_top = top + 2 * header + used_size(sizes, picture_slots(sizes, width, high, label, each))[1]
        text, pictures = (left, text_top, width, bottom - text_top), (left, top + header, width, high)
        if text[3] >= _LOWEST_TEXT * font:
            found.append(Panels(text, pictures, stacked=True))
    needed = max(sum(lines) * _LETTER * font * _LINE * font * LARGER_TEXT[1] ** 2, (_NARROWEST_TEXT * font) ** 2)

    def score(panels: Panels) -> float:
        seen = _seen(sizes, picture_slots(sizes, *panels.pictures[2:], label, each))
        return seen**2 * min(max(panels.text[2] * panels.text[3], 1), needed) ** _TEXT_WEIGHT

    panels = max(found, key=score)
    _, _, wide, high = panels.text

    def fits(scale: float) -> bool:
        size = font * scale
        return sum(-(-letters * _LETTER * size // wide) for letters in lines) * _LINE * size < high

    return replace(panels, text_scales=(*filter(fits, LARGER_TEXT), 1))
