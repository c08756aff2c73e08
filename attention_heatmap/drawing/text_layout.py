"""The text of a whole video, wrapped and drawn once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw

from attention_heatmap.drawing.fonts import JOINER, NEWLINE_MARK, FontSet, draw_runs
from attention_heatmap.drawing.text import BREAK_ANYWHERE, TextPiece

FRAGMENT = re.compile(rf"\r?\n|[^\S\n]+|{BREAK_ANYWHERE.pattern}|(?:(?!{BREAK_ANYWHERE.pattern})\S)+")
NO_LINE_START = set("、。，．：；！？）」』】》〉”’…")
LINE_PITCH = 1.3  # of the height of the fonts
INK_LEVELS = 16  # steps of a glyph's edge
GLYPH_OVERHANG = 3  # pixels that a glyph may reach over its width
SMOOTH = 3  # lines are drawn that many times larger and reduced, so that they have no steps


@dataclass(frozen=True)
class Fragment:
    """A part of a piece that is never broken: a word or a part of one, a space, a newline, one CJK character."""

    piece: int
    text: str
    width: float
    alone: bool = False
    """A chip or a special token: a line may break before and after it."""

    @property
    def is_space(self) -> bool:
        return self.text.isspace()


@dataclass(frozen=True, eq=False)
class TextLayout:
    """The text of a whole video, laid out and drawn once; a frame only looks its colours up."""

    pieces: tuple[TextPiece, ...]
    piece_index: np.ndarray
    """(Y, X) int32, 1 + the piece that owns a pixel, 0 for none; in the white between pieces and between lines
    the number of pieces is added, since glyphs reach into it and the tint does not."""
    ink: np.ndarray
    """(Y, X) uint8, how much of a pixel the glyphs cover, 0..INK_LEVELS - 1."""
    last_line: np.ndarray
    """(pieces,) int, the line on which each piece ends."""
    line_height: int
    """Pixels."""

    @cached_property
    def entries(self) -> np.ndarray:
        """(Y, X) intp, piece and ink of a pixel as one index: what a frame looks its colours up by."""
        return self.piece_index.astype(np.intp) * INK_LEVELS + self.ink


def _fragments(pieces: Sequence[TextPiece], fonts: FontSet) -> list[Fragment]:
    """The pieces cut where a line may have to end."""
    parts: list[list] = []  # number of the piece, text
    for number, piece in enumerate(pieces):
        text = piece.text.expandtabs(4).replace("\u3000", "  ")
        for part in [text] if piece.kind == "image" else FRAGMENT.findall(text):
            # No font is asked for any of the other white space: it would draw a box for it.
            parts.append([number, " " * len(part) if part.isspace() and "\n" not in part else part])
            if len(parts) > 1 and all(unicodedata.bidirectional(c) == "AL" for c in (parts[-2][1][-1], part[0])):
                parts[-2][1] += JOINER  # Arabic letters join across tokens, too
                parts[-1][1] = JOINER + part
    fragments = []
    for number, part in parts:
        width = fonts.width(NEWLINE_MARK if "\n" in part else part)
        if not width:  # a token of characters that nobody sees
            part = "".join(f"{ord(char):04X}" for char in part)
            width = fonts.width(part)
        fragments.append(Fragment(number, part, width, pieces[number].kind != "text"))
    return fragments


def _words(fragments: Sequence[Fragment], fonts: FontSet, width: float) -> Iterator[list[Fragment]]:
    """Fragments that must stand on one line together; a word wider than the line comes in single characters."""
    word: list[Fragment] = []
    for fragment in fragments:
        previous = word[-1] if word else None
        if previous is not None and _may_break(previous, fragment):
            yield from _fitting(word, fonts, width)
            word = []
        word.append(fragment)
    if word:
        yield from _fitting(word, fonts, width)


def _may_break(previous: Fragment, fragment: Fragment) -> bool:
    if previous.is_space or fragment.is_space:
        return True
    if (previous.alone or fragment.alone) and previous.piece != fragment.piece:
        return True
    if fragment.text[0] in NO_LINE_START:
        return False
    return bool(BREAK_ANYWHERE.match(previous.text[-1]) or BREAK_ANYWHERE.match(fragment.text[0]))


def _fitting(word: list[Fragment], fonts: FontSet, width: float) -> Iterator[list[Fragment]]:
    if sum(fragment.width for fragment in word) <= width:
        yield word
        return
    for fragment in word:
        for char in fragment.text:
            yield [Fragment(fragment.piece, char, fonts.width(char))]


def _place(fragments: Sequence[Fragment], fonts: FontSet, width: float) -> list[tuple[Fragment, int, float]]:
    """(fragment, line, x) of everything, wrapped at the width. Spaces at the end of a line take the room there is."""
    placed, spaces = [], []
    line, x = 0, 0.0
    room = width - fonts.width(NEWLINE_MARK)  # the mark always finds its place on the line that it ends
    for word in _words(fragments, fonts, room):
        ends_line = "\n" in word[0].text
        if word[0].is_space and not ends_line:
            spaces.append(word[0])
            continue
        indent = sum(space.width for space in spaces)
        if x + indent + (0 if ends_line else sum(fragment.width for fragment in word)) > room:
            others = [space for space in spaces if space.piece != word[0].piece]  # which is seen on the next line
            placed += _squeezed(others, line, x, room if ends_line else width)
            line, x = (line, room if others else x) if ends_line else (line + (x > 0 or bool(others)), 0.0)
            spaces = []
        for fragment in (*spaces, *word):
            placed.append((fragment, line, x))
            x += fragment.width
        spaces = []
        if ends_line:
            line, x = line + 1, 0.0
    placed += _squeezed(spaces, line, x, width)
    return _turned(placed)


def _squeezed(spaces: Sequence[Fragment], line: int, x: float, end: float) -> list[tuple[Fragment, int, float]]:
    """Spaces between an x and the end of a line, narrower where they would not fit: each is a token to be seen."""
    narrow = min(max(end - x, 0) / (sum(space.width for space in spaces) or 1), 1)
    spaces = [replace(space, width=space.width * narrow) for space in spaces]
    before = np.cumsum([0, *(space.width for space in spaces)])
    return [(space, line, x + float(left)) for space, left in zip(spaces, before)]


def _turned(placed: list[tuple[Fragment, int, float]]) -> list[tuple[Fragment, int, float]]:
    """The same with every stretch of right-to-left script turned round within its line, but not the numbers in it."""
    ordered = []
    for line, entries in groupby(placed, key=lambda entry: entry[1]):
        fragments, x = [entry[0] for entry in entries], 0.0
        kinds = "".join(_direction(fragment.text) for fragment in fragments)
        for stretch in re.finditer("R(?:[R1 ]*[R1])?", kinds):
            fragments[slice(*stretch.span())] = fragments[slice(*stretch.span())][::-1]
            for number in re.finditer("1+", stretch[0][::-1]):
                place = slice(stretch.start() + number.start(), stretch.start() + number.end())
                fragments[place] = fragments[place][::-1]
        for fragment in fragments:
            ordered.append((fragment, line, x))
            x += fragment.width
    return ordered


def _direction(text: str) -> str:
    """R for right-to-left script, L for left-to-right, 1 for a number, a space for what takes any direction."""
    found = {unicodedata.bidirectional(char) for char in text}
    return "R" if found & {"R", "AL"} else "L" if "L" in found else "1" if found & {"EN", "AN"} else " "


def layout_text(pieces: Sequence[TextPiece], fonts: FontSet, width: int) -> TextLayout:
    """Lay the pieces out on lines of a width in pixels, and draw their glyphs once."""
    placed = _place(_fragments(pieces, fonts), fonts, width - GLYPH_OVERHANG)
    ascent, descent = fonts.metrics()
    line_height = round((ascent + descent) * LINE_PITCH)
    gap = max(round(line_height * 0.07), 1)
    lines = placed[-1][1] + 1 if placed else 1
    canvas = Image.new("L", (width, lines * line_height))
    draw = ImageDraw.Draw(canvas)
    index = np.zeros((lines * line_height, width), np.int32)
    last_line = np.zeros(len(pieces), int)
    for number, (fragment, line, x) in enumerate(placed):
        top, left, right = line * line_height, round(x), min(round(x + fragment.width), width)
        index[top : top + line_height, left:right] = 1 + fragment.piece
        # A pixel stays white at the right of a piece, so that two of one colour can be told apart.
        if number + 1 == len(placed) or placed[number + 1][0].piece != fragment.piece:
            index[top + gap : top + line_height - gap, right - 1 : right] += len(pieces)
        last_line[fragment.piece :] = line
        base = top + (line_height - ascent - descent) // 2 + ascent
        if pieces[fragment.piece].kind == "image":
            box = (left, top + gap, right - 1, top + line_height - gap)
            index[box[1] : box[3], left:right] *= _draw_chip(canvas, box)
            shown = fragment.text.strip("[]")
            x += (fragment.width - fonts.width(shown)) / 2
        else:
            shown = NEWLINE_MARK if "\n" in fragment.text else fragment.text
        draw_runs(draw, (x, base), shown, fonts)
    between = np.arange(len(index)) % line_height
    between = (between < gap) | (between >= line_height - gap)
    index[between] += len(pieces) * (index[between] > 0)
    ink = np.round(np.asarray(canvas) / 255 * (INK_LEVELS - 1)).astype(np.uint8)
    for shift in (1, 1, 1, -1, -1):  # a glyph reaches a pixel or two over its width: those belong to its token too
        over, neighbours = (ink > 0) & (index == 0), np.roll(index, shift, axis=1)
        index[over] = neighbours[over] + len(pieces) * ((neighbours[over] > 0) & (neighbours[over] <= len(pieces)))
    ink[index == 0] = 0
    return TextLayout(tuple(pieces), index, ink, last_line, line_height)


def _draw_chip(canvas: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Outline a chip in a box; returns the (Y, X) bool mask of its inside, the corners cut round."""
    width, height = box[2] - box[0], box[3] - box[1]
    outline, inside = (Image.new("L", (width * SMOOTH, height * SMOOTH)) for _ in range(2))
    corners = (0, 0, width * SMOOTH - 1, height * SMOOTH - 1)
    ImageDraw.Draw(outline).rounded_rectangle(corners, height * SMOOTH // 3, outline=255, width=SMOOTH + 1)
    ImageDraw.Draw(inside).rounded_rectangle(corners, height * SMOOTH // 3, fill=255)
    canvas.paste(outline.reduce(SMOOTH), box[:2])
    return np.pad(np.asarray(inside.reduce(SMOOTH)) > 127, ((0, 0), (0, 1)))
