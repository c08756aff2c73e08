"""The text of a whole video, wrapped and drawn once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw

from attention_heatmap.drawing.fonts import NEWLINE_MARK, FontSet, draw_runs
from attention_heatmap.drawing.text import BREAK_ANYWHERE, TextPiece

FRAGMENT = re.compile(rf"\r?\n|[^\S\n]+|{BREAK_ANYWHERE.pattern}|(?:(?!{BREAK_ANYWHERE.pattern})\S)+")
NO_LINE_START = set("、。，．：；！？）」』】》〉”’…")
# Scripts whose letters join or change their shape beside others: Arabic and its kin, those of India, Tibet, Burma,
# Cambodia, Mongolia. A word of theirs is drawn as one, whatever tokens it is made of.
SHAPED = re.compile("[\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufeff]")
LEAST_PART = 0.15  # of an even part of a word that is drawn as one, for each of its tokens: all can be seen
LEAST_SPACE = 4  # pixels of a space at the end of a line
LINE_PITCH = 1.3  # of the height of the fonts
INK_LEVELS = 16  # steps of a glyph's edge
GLYPH_OVERHANG = 3  # pixels that a glyph may reach over its width
SMOOTH = 3  # chips are drawn that many times larger and reduced, so that their corners have no steps


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


@dataclass(frozen=True)
class Written:
    """What is drawn at one place of a line: a fragment, or several whose letters join."""

    fragments: tuple[Fragment, ...]
    """In the order of the tokens."""
    line: int
    x: float
    ends: tuple[float, ...]
    """Where each fragment's part ends, in pixels from where the text begins: its left, or its right (see `turned`)."""
    turned: bool
    """Whether the text runs from right to left."""

    @property
    def text(self) -> str:
        return "".join(fragment.text for fragment in self.fragments)

    def parts(self) -> list[tuple[Fragment, float, float]]:
        """(fragment, left, right) of each, in pixels from the line's left."""
        starts, width = (0.0, *self.ends[:-1]), self.ends[-1]
        if self.turned:
            return [
                (f, self.x + width - end, self.x + width - start)
                for f, start, end in zip(self.fragments, starts, self.ends)
            ]
        return [(f, self.x + start, self.x + end) for f, start, end in zip(self.fragments, starts, self.ends)]


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
    written: tuple[Written, ...]
    """What is drawn, line by line, for whom draws it in another way."""
    fonts: FontSet
    base: int
    """Pixels from the top of a line to its base line."""
    gap: int
    """Pixels above and below the ground of a line that stay white."""
    _view: dict = field(default_factory=dict)

    def visible(self, current: int | None, height: int) -> tuple[int, int]:
        """The lines that a panel of a height shows, first and one after the last: the current piece's is in view."""
        end = int(self.last_line[-1 if current is None else current]) + 1
        return max(end - max(height // self.line_height, 1), 0), end

    def entries(self, first: int, end: int) -> np.ndarray:
        """(Y, X) intp, piece and ink of the pixels of some lines as one index: what a frame looks its colours up by."""
        if (first, end) not in self._view:
            rows = slice(first * self.line_height, end * self.line_height)
            self._view.clear()  # the last view is the next one, mostly
            self._view[first, end] = self.piece_index[rows].astype(np.intp) * INK_LEVELS + self.ink[rows]
        return self._view[first, end]


def _fragments(pieces: Sequence[TextPiece], fonts: FontSet) -> list[Fragment]:
    """The pieces cut where a line may have to end."""
    parts: list[list] = []  # number of the piece, text
    for number, piece in enumerate(pieces):
        text = piece.text.expandtabs(4).replace("\u3000", "  ")
        for part in [text] if piece.kind == "image" else FRAGMENT.findall(text):
            # No font is asked for any of the other white space: it would draw a box for it.
            parts.append([number, " " * len(part) if part.isspace() and "\n" not in part else part])
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
        for part in _CLUSTER.findall(fragment.text):
            yield [Fragment(fragment.piece, part, fonts.width(part), fragment.alone)]


# A character with the accents and joiners that belong to it.
_CLUSTER = re.compile(
    "(?:.[\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u093a-\u094f\u200d\ufe0f]*)", re.DOTALL
)


def _place(fragments: Sequence[Fragment], fonts: FontSet, width: float) -> list[tuple[Fragment, int]]:
    """(fragment, line) of everything, wrapped at the width. Spaces at the end of a line take the room there is."""
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
            end = room if ends_line else width
            placed += _squeezed(others, line, x, end)
            line, x = (placed[-1][1], end) if others else (line, x)
            line, x = (line, x) if ends_line else (line + (x > 0), 0.0)
            spaces = []
        placed += [(fragment, line) for fragment in (*spaces, *word)]
        x += sum(fragment.width for fragment in (*spaces, *word))
        spaces = []
        if ends_line:
            line, x = line + 1, 0.0
    return placed + _squeezed(spaces, line, x, width)


def _squeezed(spaces: Sequence[Fragment], line: int, x: float, end: float) -> list[tuple[Fragment, int]]:
    """(space, line) of spaces between an x and the end of a line, narrower where they would not fit.

    Each is a token to be seen: those that have no room left go to the lines below.
    """
    placed: list[tuple[Fragment, int]] = []
    while spaces:
        count = max(int((end - x) // LEAST_SPACE), x == 0)
        here, spaces = spaces[:count], spaces[count:]
        narrow = min((end - x) / (sum(space.width for space in here) or 1), 1)
        placed += [(replace(space, width=space.width * narrow), line) for space in here]
        line, x = line + 1, 0.0
    return placed


def _joined(fragments: Sequence[Fragment]) -> list[list[Fragment]]:
    """Fragments of one line, those together whose letters take their shape from each other."""
    groups: list[list[Fragment]] = []
    for fragment in fragments:
        previous = groups[-1][-1] if groups else None
        ends = (previous.text[-1], fragment.text[0]) if previous else ""
        if previous and all(SHAPED.match(c) and unicodedata.category(c)[0] in "LM" for c in ends):
            groups[-1].append(fragment)
        else:
            groups.append([fragment])
    return groups


def _written(placed: list[tuple[Fragment, int]], fonts: FontSet) -> list[Written]:
    """What is drawn, with every stretch of right-to-left script turned round in its line, but not the numbers in it."""
    written = []
    for line, entries in groupby(placed, key=lambda entry: entry[1]):
        groups, x = _joined([entry[0] for entry in entries]), 0.0
        kinds = "".join(_direction("".join(fragment.text for fragment in group)) for group in groups)
        order = list(range(len(groups)))
        for stretch in re.finditer("R(?:[R1 ]*[R1])?", kinds):
            order[slice(*stretch.span())] = order[slice(*stretch.span())][::-1]
            for number in re.finditer("1+", stretch[0][::-1]):
                place = slice(stretch.start() + number.start(), stretch.start() + number.end())
                order[place] = order[place][::-1]
        for number in order:
            ends = _ends(groups[number], fonts)
            written.append(Written(tuple(groups[number]), line, x, ends, kinds[number] == "R"))
            x += ends[-1]
    return written


def _ends(group: Sequence[Fragment], fonts: FontSet) -> tuple[float, ...]:
    """Where each fragment of a group ends, from where its text begins."""
    if len(group) == 1:
        return (group[0].width,)
    lengths = np.cumsum([len(fragment.text) for fragment in group])
    text = "".join(fragment.text for fragment in group)
    whole = fonts.width(text)
    before = np.minimum(np.maximum.accumulate([fonts.width(text[:length]) for length in lengths]), whole)
    even = whole * np.arange(1, len(group) + 1) / len(group)
    ends = (1 - LEAST_PART) * before + LEAST_PART * even  # of a ligature the first token's part would be all
    return (*ends[:-1].tolist(), whole)


def _direction(text: str) -> str:
    """R for right-to-left script, L for left-to-right, 1 for a number, a space for what takes any direction."""
    found = {unicodedata.bidirectional(char) for char in text}
    return "R" if found & {"R", "AL"} else "L" if "L" in found else "1" if found & {"EN", "AN"} else " "


def layout_text(pieces: Sequence[TextPiece], fonts: FontSet, width: int) -> TextLayout:
    """Lay the pieces out on lines of a width in pixels, and draw their glyphs once."""
    written = _written(_place(_fragments(pieces, fonts), fonts, width - GLYPH_OVERHANG), fonts)
    ascent, descent = fonts.metrics()
    line_height = round((ascent + descent) * LINE_PITCH)
    gap, base = max(round(line_height * 0.07), 1), (line_height - ascent - descent) // 2 + ascent
    lines = 1 + max((unit.line for unit in written), default=0)
    canvas = Image.new("L", (width, lines * line_height))
    draw = ImageDraw.Draw(canvas)
    index, white = np.zeros((lines * line_height, width), np.int32), np.zeros((lines * line_height, width), bool)
    last_line = np.zeros(len(pieces), int)
    for unit in written:
        top, x = unit.line * line_height, unit.x
        for fragment, left, right in unit.parts():
            left, right = min(round(left), width - 1), min(round(right), width)
            right = max(right, left + 1)
            index[top : top + line_height, left:right] = 1 + fragment.piece
            # A pixel stays white at the right of a piece, so that two of one colour can be told apart.
            white[top : top + line_height, left : right - 1] = False
            white[top : top + line_height, right - 1] = right - left > 1
            last_line[fragment.piece] = max(last_line[fragment.piece], unit.line)
        if pieces[fragment.piece].kind == "image":
            box = (left, top + gap, max(right - 1, left + 1), top + line_height - gap)
            index[box[1] : box[3], left:right] *= _draw_chip(canvas, box)[:, : right - left]
            shown = fragment.text.strip("[]")
            x += (fragment.width - fonts.width(shown)) / 2
        else:
            shown = NEWLINE_MARK if "\n" in unit.text else unit.text
        draw_runs(draw, (x, top + base), shown, fonts)
    white = _white_ends(white, index) | _between_lines(index, line_height, gap)
    index[white] += len(pieces) * (index[white] > 0)
    ink = np.round(np.asarray(canvas) / 255 * (INK_LEVELS - 1)).astype(np.uint8)
    for shift in (1, 1, 1, -1, -1):  # a glyph reaches a pixel or two over its width: those belong to its token too
        over, neighbours = (ink > 0) & (index == 0), np.roll(index, shift, axis=1)
        index[over] = neighbours[over] + len(pieces) * ((neighbours[over] > 0) & (neighbours[over] <= len(pieces)))
    ink[index == 0] = 0
    last_line = np.maximum.accumulate(last_line)
    return TextLayout(tuple(pieces), index, ink, last_line, line_height, tuple(written), fonts, base, gap)


def _white_ends(white: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The pixels at the right of fragments after which another piece, or none, begins."""
    following = np.pad(index[:, 1:], ((0, 0), (0, 1)))
    return white & (following != index)


def _between_lines(index: np.ndarray, line_height: int, gap: int) -> np.ndarray:
    """(Y, X) bool, the white between two lines."""
    row = np.arange(len(index)) % line_height
    return np.repeat(((row < gap) | (row >= line_height - gap))[:, None], index.shape[1], axis=1)


def _draw_chip(canvas: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Outline a chip in a box; returns the (Y, X) bool mask of its inside, the corners cut round."""
    width, height = box[2] - box[0], box[3] - box[1]
    outline, inside = (Image.new("L", (width * SMOOTH, height * SMOOTH)) for _ in range(2))
    corners = (0, 0, width * SMOOTH - 1, height * SMOOTH - 1)
    ImageDraw.Draw(outline).rounded_rectangle(corners, height * SMOOTH // 3, outline=255, width=SMOOTH + 1)
    ImageDraw.Draw(inside).rounded_rectangle(corners, height * SMOOTH // 3, fill=255)
    canvas.paste(outline.reduce(SMOOTH), box[:2])
    return np.pad(np.asarray(inside.reduce(SMOOTH)) > 127, ((0, 0), (0, 1)))
