"""The text of a whole video, wrapped and drawn once."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from attention_heatmap.drawing.fonts import NEWLINE_MARK, FontSet
from attention_heatmap.drawing.pen import Pen
from attention_heatmap.drawing.text import BREAK_ANYWHERE, TextPiece

_FRAGMENT = re.compile(rf"\r?\n|[^\S\n]+|{BREAK_ANYWHERE.pattern}|(?:(?!{BREAK_ANYWHERE.pattern})\S)+")
_NO_LINE_START = set("、。，．：；！？）」』】》〉”’…")
# Scripts whose letters join or change their shape beside others: Arabic and its kin, those of India, Tibet, Burma,
# Cambodia, Mongolia. A word of theirs is drawn as one, whatever tokens it is made of.
_SHAPED = re.compile("[\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufeff]")
_OPENING, _CLOSING = "([{<«", ")]}>»"
_MIRRORED = str.maketrans(_OPENING + _CLOSING, _CLOSING + _OPENING)  # between words of right-to-left script
# A character with the accents and joiners that belong to it.
_CLUSTER = re.compile(
    "(?:.[\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u093a-\u094f\u200d\ufe0f]*)", re.DOTALL
)
LEAST_PART = 0.15  # of an even part of a word that is drawn as one, for each of its tokens: all can be seen
LEAST_SPACE = 4  # pixels of a space at the end of a line
_LINE_PITCH = 1.3  # of the height of the fonts
INK_LEVELS = 16  # steps of a glyph's edge
_GLYPH_OVERHANG = 3  # pixels that a glyph may reach over its width
SMOOTH = 3  # chips are drawn that many times larger and reduced, so that their corners have no steps


@dataclass(frozen=True)
class Fragment:
    """A part of a piece that is never broken: a word or a part of one, a space, a newline, one CJK character."""

    piece: int
    text: str
    width: float
    alone: bool  # a chip or a special token: a line may break before and after it


class Written(NamedTuple):
    """What is drawn at one place of a line: a fragment, or several whose letters join."""

    text: str
    line: int
    x: float
    parts: list[tuple[Fragment, float, float]]  # in the order of the tokens, left and right from the line's left


@dataclass(frozen=True, eq=False)
class TextLayout:
    """The text of a whole video, laid out and drawn once; a frame only looks its colours up."""

    pieces: tuple[TextPiece, ...]
    # (Y, X) int32, 1 + the piece that owns a pixel, 0 for none; in the white between pieces and between lines the
    # number of pieces is added, since glyphs reach into it and the tint does not.
    piece_index: np.ndarray
    ink: np.ndarray  # (Y, X) uint8, how much of a pixel the glyphs cover, 0..INK_LEVELS - 1
    last_line: np.ndarray  # (pieces,) int, the line on which each piece ends
    line_height: int  # pixels
    written: tuple[Written, ...]  # what is drawn, line by line, for whom draws it in another way
    fonts: FontSet
    base: int  # pixels from the top of a line to its base line
    gap: int  # pixels above and below the ground of a line that stay white
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


def _fragments(pieces: Sequence[TextPiece], fonts: FontSet) -> Iterator[Fragment]:
    """The pieces cut where a line may have to end."""
    for number, piece in enumerate(pieces):
        if piece.kind == "image":  # what its brackets would take is the margin of the chip
            yield Fragment(number, piece.text.strip("[]"), fonts.width(piece.text), True)
            continue
        for part in _FRAGMENT.findall(piece.text.expandtabs(4).replace("\u3000", "  ")):
            # No font is asked for any of the other white space: it would draw a box for it.
            shown = NEWLINE_MARK if "\n" in part else " " * len(part) if part.isspace() else part
            if not fonts.width(shown):  # a token of characters that nobody sees
                part = shown = "".join(f"[U+{ord(char):04X}]" for char in part)
            yield Fragment(number, part if "\n" in part else shown, fonts.width(shown), piece.kind == "special")


def _grouped(fragments: Iterable[Fragment], belong: Callable[[Fragment, Fragment], bool]) -> list[list[Fragment]]:
    """Fragments beside each other in one group where they belong together."""
    groups: list[list[Fragment]] = []
    for fragment in fragments:
        if groups and belong(groups[-1][-1], fragment):
            groups[-1].append(fragment)
        else:
            groups.append([fragment])
    return groups


def _wide(fragments: Iterable[Fragment]) -> float:
    return sum(fragment.width for fragment in fragments)


def _text(fragments: Iterable[Fragment]) -> str:
    return "".join(fragment.text for fragment in fragments)


def _unbroken(one: Fragment, other: Fragment) -> bool:
    """Whether no line may end between two fragments."""
    if one.text.isspace() or other.text.isspace() or ((one.alone or other.alone) and one.piece != other.piece):
        return False
    if other.text[0] in _NO_LINE_START:
        return True
    return not (BREAK_ANYWHERE.match(one.text[-1]) or BREAK_ANYWHERE.match(other.text[0]))


def _joined(one: Fragment, other: Fragment) -> bool:
    """Whether the letters of two fragments of a line take their shape from each other."""
    return all(_SHAPED.match(c) and unicodedata.category(c)[0] in "LM" for c in (one.text[-1], other.text[0]))


def _words(fragments: Iterable[Fragment], fonts: FontSet, width: float) -> Iterator[list[Fragment]]:
    """Fragments that must stand on one line together; a word wider than the line comes in single characters."""
    for word in _grouped(fragments, _unbroken):
        if _wide(word) <= width:
            yield word
            continue
        for fragment in word:
            for part in _CLUSTER.findall(fragment.text):
                yield [replace(fragment, text=part, width=fonts.width(part))]


def _lines(fragments: Iterable[Fragment], fonts: FontSet, width: float) -> list[list[Fragment]]:
    """Everything on lines of a width. Spaces at the end of a line take the room there is."""
    lines: list[list[Fragment]] = [[]]
    spaces: list[Fragment] = []
    room = width - fonts.width(NEWLINE_MARK)  # the mark always finds its place on the line that it ends
    for word in _words(fragments, fonts, room):
        ends_line = "\n" in word[0].text
        if word[0].text.isspace() and not ends_line:
            spaces.append(word[0])
            continue
        if _wide((*lines[-1], *spaces, *([] if ends_line else word))) > room:
            others = [space for space in spaces if space.piece != word[0].piece]  # which is seen on the next line
            _squeeze(others, lines, room if ends_line else width)
            spaces = []
            if lines[-1] and not ends_line:
                lines.append([])
        lines[-1] += (*spaces, *word)
        spaces = []
        if ends_line:
            lines.append([])
    _squeeze(spaces, lines, width)
    return lines


def _squeeze(spaces: Sequence[Fragment], lines: list[list[Fragment]], end: float) -> None:
    """Put spaces on the last line, up to an x: narrower where they would not fit.

    Each is a token to be seen: those that have no room left go to lines below.
    """
    while spaces:
        room = end - _wide(lines[-1])
        count = max(int(room // LEAST_SPACE), not lines[-1])
        here, spaces = spaces[:count], spaces[count:]
        narrow = min(room / (_wide(here) or 1), 1)
        lines[-1] += [replace(space, width=space.width * narrow) for space in here]
        if spaces:
            lines.append([])


def _written(lines: Sequence[list[Fragment]], fonts: FontSet) -> Iterator[Written]:
    """What is drawn, with every stretch of right-to-left script turned round in its line, but not the numbers in it."""
    for line, fragments in enumerate(lines):
        groups, x = _grouped(fragments, _joined), 0.0
        kinds = "".join(_direction(_text(group)) for group in groups)
        order = list(range(len(groups)))
        for stretch in re.finditer("R(?:[R1 ()]*[R1])?", kinds):
            first, last = stretch.span()
            while kinds.startswith(")", last) and kinds.count("(", first, last) > kinds.count(")", first, last):
                last += 1  # what closes a bracket of the stretch belongs to it
            order[first:last] = order[first:last][::-1]
            for n in (n for n in range(first, last) if kinds[n] in " ()"):
                groups[n] = [replace(part, text=part.text.translate(_MIRRORED)) for part in groups[n]]
            for number in re.finditer("1+", kinds[first:last][::-1]):
                place = slice(first + number.start(), first + number.end())
                order[place] = order[place][::-1]
        for group, kind in ((groups[number], kinds[number]) for number in order):
            ends = _ends(group, fonts)
            edges = zip((0.0, *ends), ends)
            if kind == "R":
                edges = ((ends[-1] - end, ends[-1] - start) for start, end in edges)
            parts = [(fragment, x + left, x + right) for fragment, (left, right) in zip(group, edges)]
            text = NEWLINE_MARK if "\n" in group[0].text else _text(group)
            yield Written(text, line, x + (ends[-1] - fonts.width(text)) / 2, parts)
            x += ends[-1]


def _ends(group: Sequence[Fragment], fonts: FontSet) -> tuple[float, ...]:
    """Where each fragment of a group ends, from where its text begins."""
    if len(group) == 1:
        return (group[0].width,)
    text, lengths = _text(group), np.cumsum([len(fragment.text) for fragment in group])
    whole = fonts.width(text)
    before = np.minimum(np.maximum.accumulate([fonts.width(text[:length]) for length in lengths]), whole)
    even = whole * np.arange(1, len(group) + 1) / len(group)
    ends = (1 - LEAST_PART) * before + LEAST_PART * even  # of a ligature the first token's part would be all
    return (*ends[:-1].tolist(), whole)


def _direction(text: str) -> str:
    """R for right-to-left script, L for left-to-right, 1 for a number, ( or ) for a bracket, a space for all else."""
    found = {unicodedata.bidirectional(char) for char in text}
    if text in _OPENING + _CLOSING:
        return "(" if text in _OPENING else ")"
    return "R" if found & {"R", "AL"} else "L" if "L" in found else "1" if found & {"EN", "AN"} else " "


def layout_text(pieces: Sequence[TextPiece], fonts: FontSet, width: int) -> TextLayout:
    """Lay the pieces out on lines of a width in pixels, and draw their glyphs once."""
    written = tuple(_written(_lines(_fragments(pieces, fonts), fonts, width - _GLYPH_OVERHANG), fonts))
    ascent, descent = fonts.metrics()
    line_height = round((ascent + descent) * _LINE_PITCH)
    gap, base = max(round(line_height * 0.07), 1), (line_height - ascent - descent) // 2 + ascent
    lines = 1 + (written[-1].line if written else 0)
    canvas = Image.new("L", (width, lines * line_height))
    pen, last_line = Pen(canvas), np.zeros(len(pieces), int)
    index, white = (np.zeros((lines * line_height, width), kind) for kind in (np.int32, bool))
    for unit in written:
        top = unit.line * line_height
        for fragment, left, right in unit.parts:
            left, right = min(round(left), width - 1), min(round(right), width)
            right = max(right, left + 1)
            index[top : top + line_height, left:right] = 1 + fragment.piece
            # A pixel stays white at the right of a piece, so that two of one colour can be told apart.
            white[top : top + line_height, left : right - 1] = False
            white[top : top + line_height, right - 1] = right - left > 1
            last_line[fragment.piece] = unit.line
        if pieces[fragment.piece].kind == "image":
            box = (left, top + gap, max(right - 1, left + 1), top + line_height - gap)
            index[box[1] : box[3], left:right] *= _draw_chip(canvas, box)[:, : right - left]
        pen.text((unit.x, top + base), unit.text, fonts, 255)
    white &= np.pad(index[:, 1:], ((0, 0), (0, 1))) != index  # but not within a piece
    row = np.arange(len(index)) % line_height
    white[(row < gap) | (row >= line_height - gap)] = True
    index[white] += len(pieces) * (index[white] > 0)
    ink = np.round(np.asarray(canvas) / 255 * (INK_LEVELS - 1)).astype(np.uint8)
    for shift in (1, 1, 1, -1, -1):  # a glyph reaches a pixel or two over its width: those belong to its token too
        over, neighbours = (ink > 0) & (index == 0), np.roll(index, shift, axis=1)
        index[over] = neighbours[over] + len(pieces) * ((neighbours[over] > 0) & (neighbours[over] <= len(pieces)))
    ink[index == 0] = 0
    last_line = np.maximum.accumulate(last_line)
    return TextLayout(tuple(pieces), index, ink, last_line, line_height, written, fonts, base, gap)


def _draw_chip(canvas: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Outline a chip in a box; returns the (Y, X) bool mask of its inside, the corners cut round."""
    size = (box[2] - box[0]) * SMOOTH, (box[3] - box[1]) * SMOOTH
    outline, inside = Image.new("L", size), Image.new("L", size)
    look = (0, 0, size[0] - 1, size[1] - 1), size[1] // 3
    ImageDraw.Draw(outline).rounded_rectangle(*look, outline=255, width=SMOOTH + 1)
    ImageDraw.Draw(inside).rounded_rectangle(*look, fill=255)
    canvas.paste(outline.reduce(SMOOTH), box[:2])
    return np.pad(np.asarray(inside.reduce(SMOOTH)) > 127, ((0, 0), (0, 1)))
