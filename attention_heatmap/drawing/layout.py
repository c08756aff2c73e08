"""Where the panels of a frame stand, and the pictures within theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

Size = tuple[int, int]
Slot = tuple[int, int, float]
"""x, y and scale of a picture, from the top left of its panel."""
MOST_ARRANGED = 6  # pictures; more stand in rows of equal count
PICTURE_WIDTHS = tuple(n / 50 for n in range(12, 38))  # parts of the frame's width that the pictures may take
PICTURE_HEIGHTS = tuple(n / 50 for n in range(4, 38))  # parts of its height, where they stand above the text
TEXT_WEIGHT = 0.4  # how much room for text counts beside room for pictures, as a power
NARROWEST_TEXT, LOWEST_TEXT = 19, 7  # in heights of its font: about 36 letters, 5 lines
LETTER, LINE = 0.55, 1.55  # width of a letter and pitch of a line, in heights of the font
LARGER_TEXT = (1.8, 1.6, 1.4, 1.25, 1.1)  # what the font may grow by where all of the text finds room


def _rows(count: int) -> Iterator[list[range]]:
    """The ways to stand so many pictures in rows, in their order."""
    if count > MOST_ARRANGED:
        for columns in range(1, count + 1):
            yield [range(start, min(start + columns, count)) for start in range(0, count, columns)]
        return
    for breaks in range(count):
        for at in combinations(range(1, count), breaks):
            edges = (0, *at, count)
            yield [range(first, last) for first, last in pairwise(edges)]


def _slots(sizes: Sequence[Size], rows: list[range], width: int, height: int, label: int) -> list[Slot]:
    """The pictures in these rows: those of a row are of one height, a row is as wide as the panel, if that fits."""
    highs = [(width - (len(row) - 1) * label) / sum(sizes[n][0] / sizes[n][1] for n in row) for row in rows]
    room = height - len(rows) * label
    # A row that is lower than its part leaves the rest to the others.
    left, limit = room, 0.0
    for done, high in enumerate(sorted(highs)):
        limit = left / (len(highs) - done)
        if high > limit:
            break
        left -= high
    slots, y = [], 0.0
    for row, high in zip(rows, highs):
        high, x = max(min(high, limit if high > limit else high), 1), 0.0
        for n in row:
            scale = high / sizes[n][1]
            slots.append((round(x), round(y + label), scale))
            x += sizes[n][0] * scale + label
        y += label + high
    return slots


def _seen(sizes: Sequence[Size], slots: Sequence[Slot]) -> float:
    """How large the pictures are together: the sum of the sides of squares as large as they are."""
    return sum(scale * (width * height) ** 0.5 for (width, height), (_, _, scale) in zip(sizes, slots))


def picture_slots(sizes: Sequence[Size], width: int, height: int, label: int) -> list[Slot]:
    """(x, y, scale) of each picture in a panel of a size, in the rows in which they are largest together.

    label: pixels above each picture, and between two of a row.
    """
    return max((_slots(sizes, rows, width, height, label) for rows in _rows(len(sizes))), key=lambda s: _seen(sizes, s))


def used_size(sizes: Sequence[Size], slots: Sequence[Slot]) -> Size:
    """Width and height that pictures in these slots take."""
    placed = list(zip(sizes, slots))
    return max(x + round(w * s) for (w, _), (x, _, s) in placed), max(y + round(h * s) for (_, h), (_, y, s) in placed)


@dataclass(frozen=True)
class Panels:
    """Left, top, width and height of the text and of the pictures, in pixels of the frame."""

    text: tuple[int, int, int, int]
    pictures: tuple[int, int, int, int]
    stacked: bool
    """Whether the pictures stand above the text, not beside it."""
    text_scale: float = 1
    """How much larger the font of the text may be, by the count of its letters; wide ones allow less."""


def place_panels(
    sizes: Sequence[Size],
    room: tuple[int, int, int, int],
    header: int,
    gap: int,
    label: int,
    font: int,
    lines: Sequence[int],
) -> Panels:
    """The panels in which pictures and text have the most room.

    room: left, top, right, bottom of what both share; header: pixels above each panel; lines: letters of each line
    of the text.
    """
    left, top, right, bottom = room
    width, height = right - left, bottom - top
    found: list[tuple[float, Panels]] = []

    def add(pictures: Size, text_at: tuple[int, int], picture_at: tuple[int, int], text: Size, stacked: bool) -> None:
        needed = sum(lines) * LETTER * font * LINE * font * LARGER_TEXT[1] ** 2
        useful = min(text[0] * text[1], max(needed, (NARROWEST_TEXT * font) ** 2))
        score = _seen(sizes, picture_slots(sizes, *pictures, label)) ** 2 * useful**TEXT_WEIGHT
        found.append((score, Panels((*text_at, *text), (*picture_at, *pictures), stacked)))

    for part in PICTURE_WIDTHS:
        most = round((width - gap) * part), height - header
        used = used_size(sizes, picture_slots(sizes, *most, label))[0]
        text = width - gap - used, height - header
        if text[0] >= NARROWEST_TEXT * font or part == PICTURE_WIDTHS[0]:
            add((used, most[1]), (left, top + header), (right - used, top + header), text, False)
    for part in PICTURE_HEIGHTS:
        most = width, round((height - 2 * header) * part)
        used = used_size(sizes, picture_slots(sizes, *most, label))[1]
        text_top = top + 2 * header + used
        if bottom - text_top >= LOWEST_TEXT * font:
            add((width, most[1]), (left, text_top), (left, top + header), (width, bottom - text_top), True)
    panels = max(found, key=lambda pair: pair[0])[1]
    _, _, wide, high = panels.text

    def fits(scale: float) -> bool:
        size = font * scale
        return sum(-(-letters * LETTER * size // wide) for letters in lines) * LINE * size < high

    return Panels(panels.text, panels.pictures, panels.stacked, next(filter(fits, LARGER_TEXT), 1))
