"""The text panel of one step: its tokens coloured, and above them which one this is and what is out of view."""

from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.drawing import colour
from attention_heatmap.drawing.colour import CURRENT_TOKEN, MUTED, PAPER, SPECIAL_ALPHA, Colormap, blend
from attention_heatmap.drawing.fonts import NEWLINE_MARK, cut_to
from attention_heatmap.drawing.layout import Sheet
from attention_heatmap.drawing.pen import AnyPen, Pen
from attention_heatmap.drawing.text_layout import INK_LEVELS, TextLayout
from attention_heatmap.record import AttentionRecord

CURRENT_ALPHA = 0.12  # of the blue behind the current token where glyphs are coloured
TEXT_LEVELS = 32  # steps of the colour scale: what hardly changes from frame to frame does not change at all
# The levels of pieces: those of text, those of special tokens, then not there yet, the current token, left out.
_AHEAD, _CURRENT, _LEFT_OUT = (2 * TEXT_LEVELS + n for n in range(3))
# The highest weights of a text are clipped here, so that one outlier does not turn all the rest red.
TEXT_SCALE_QUANTILE = 0.99
_ROOM_FOR_TOKEN = 480  # pixels at the left of a heading
_LEAST_TOLD = 0.0005  # of the attention; less of it out of view is not worth a word


def visualize_attention_step(
    layout: TextLayout, values: np.ndarray, current: int | None, height: int,
    colormap: Colormap = colour.red_to_green, text_style: str = "tint", strength: float = 1,
) -> Image.Image:  # fmt: skip
    """Draw the text panel of one step: the function to edit, or to pass a `colormap` to, for another style.

    layout: the text, from `layout_text`.
    values: (pieces,) float, the weight of each piece on the scale 0..1 (clipped); NaN: left out, on white.
    current: number of the piece that is being generated: blue; what comes after it is not shown yet. None: all is.
    height: pixels of the panel; the text scrolls by lines so that the current piece is always in view.
    text_style: "tint" colours the ground of dark text, "glyph" the text itself on white.
    strength: 0..1, how strong the tint of the highest weights is.
    Returns an RGB image of that height, as wide as the layout.
    """
    grounds, glyphs, levels = _piece_colours(layout, values, current, colormap, text_style, strength)
    # Glyphs reach into the white round their token: there the ground is white and the glyph colour the token's.
    grounds = np.concatenate([grounds, np.full_like(grounds, 255)])
    colours = blend(grounds[:, None], np.tile(glyphs, (2, 1))[:, None], np.linspace(0, 1, INK_LEVELS)[:, None])
    levels = np.concatenate([[_AHEAD], levels, levels + len(glyphs)])
    words = colour.pixel_words(colours.reshape(-1, 3)).reshape(-1, INK_LEVELS)[levels]
    panel = Image.new("RGB", (layout.ink.shape[1], height), PAPER)
    panel.paste(colour.coloured(layout.entries(*layout.visible(current, height)), words))
    return panel


def _piece_colours(
    layout: TextLayout, values: np.ndarray, current: int | None, colormap: Colormap, text_style: str, strength: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((levels, 3), (levels, 3), (pieces,)) RGB of grounds and glyphs of each level, and the level of each piece."""
    shades, inks = colour.text_colours(np.linspace(0, 1, TEXT_LEVELS), colormap, text_style, strength)
    ground, glyph, faded = CURRENT_TOKEN, PAPER, np.full_like(inks, MUTED)
    if text_style == "glyph":
        ground, glyph = blend(np.array(PAPER), np.array(CURRENT_TOKEN), CURRENT_ALPHA), CURRENT_TOKEN
        faded = blend(faded, inks, SPECIAL_ALPHA)
    grounds = np.concatenate([shades, blend(255, shades, SPECIAL_ALPHA), [PAPER, ground, PAPER]])
    glyphs = np.concatenate([inks, faded, [PAPER, glyph, MUTED]])
    levels = np.round(np.clip(np.nan_to_num(values), 0, 1) * (TEXT_LEVELS - 1)).astype(np.uint16)
    levels += TEXT_LEVELS * np.array([piece.kind == "special" for piece in layout.pieces], np.uint16)
    levels[np.isnan(values)] = _LEFT_OUT
    if current is not None:
        levels[current] = _CURRENT
        levels[current + 1 :] = _AHEAD
    return grounds, glyphs, levels


def put_text(
    pen: AnyPen, at: tuple[int, int], layout: TextLayout, values: np.ndarray, current: int | None, height: int,
    *look: Any,
) -> None:  # fmt: skip
    """The panel of a step at a point, or as shapes: a box for each ground, and text.

    The rest as for `visualize_attention_step`; look: colormap, text_style, strength.
    """
    if isinstance(pen, Pen):
        pen.picture(visualize_attention_step(layout, values, current, height, *look), at)
        return
    grounds, glyphs, levels = _piece_colours(layout, values, current, *look)
    first, end = layout.visible(current, height)
    for unit in (unit for unit in layout.written if first <= unit.line < end):
        top = at[1] + (unit.line - first) * layout.line_height
        parts = [part for part in unit.parts if current is None or part[0].piece <= current]
        for fragment, left, right in parts:
            box = (at[0] + left, top + layout.gap, at[0] + right - 1, top + layout.line_height - layout.gap)
            chip = layout.pieces[fragment.piece].kind == "image"
            pen.box(box, grounds[levels[fragment.piece]], MUTED if chip else None, radius=6 if chip else 0)
        for _, same in groupby(parts, key=lambda part: part[0].piece == current):
            fragments, lefts, _ = zip(*same)
            x, text = min(lefts), "".join(fragment.text for fragment in fragments)
            if len(fragments) == len(unit.parts):
                x, text = unit.x, unit.text
            pen.text((at[0] + x, top + layout.base), text, layout.fonts, glyphs[levels[fragments[0].piece]])


class Answer:
    """The side of a frame with the answer: its text at every step that has a frame, and what stands above it."""

    def __init__(
        self, record: AttentionRecord, plane: int, first_step: int, sinks: np.ndarray, layout: TextLayout,
        panel: tuple[int, int, int, int], sheet: Sheet,
    ) -> None:  # fmt: skip
        """sinks: (S,) bool, positions that are left out; panel: left, top, width, height."""
        self.record, self.first_step, self.layout, self.sheet = record, first_step, layout, sheet
        self.at, self.size, self.heading = panel[:2], panel[2:], sheet.heading(panel[1])
        self.starts = np.array([piece.start for piece in layout.pieces])
        start, rows_TS = self.starts[0], record.rows(plane)[first_step:]
        # The weight of a run of image tokens, or of a character's parts, is their sum.
        self.weights = np.add.reduceat(rows_TS[:, start:], self.starts - start, axis=1)
        left_out = sinks.copy()
        left_out[record.image_positions] = False
        self.weights[:, np.logical_or.reduceat(left_out[start:], self.starts - start)] = np.nan
        kinds = np.array([piece.kind for piece in layout.pieces])
        self.words = kinds != "image"
        self.ends = colour.scale_ends(self.weights[:, kinds == "text"], TEXT_SCALE_QUANTILE, sheet.options.scale)
        self.strengths = colour.strengths(np.nan_to_num(self.weights[:, self.words]).sum(axis=1), sheet.options.scale)
        # The first token has a share of its own.
        self.before = rows_TS[:, np.setdiff1d(np.arange(1, start), record.image_positions)].sum(axis=1)

    def draw(self, pen: AnyPen, step: int) -> None:
        """The text of a step, its heading, and how much attention is out of view."""
        number, sheet, options = step - self.first_step, self.sheet, self.sheet.options
        current = int(np.searchsorted(self.starts, self.record.prompt_length + step, side="right")) - 1
        values = colour.scaled(self.weights[number] / self.ends[number], options.scale, options.power)
        look = self.size[1], sheet.colormap, options.text_style, float(self.strengths[number])
        put_text(pen, self.at, self.layout, values, current, *look)
        self._draw_token(pen, step, self.layout.pieces[current].text, self._draw_above(pen, number, current))

    def _draw_above(self, pen: AnyPen, number: int, current: int) -> float:
        """How much attention lies on text above the panel's first line; the x where that is said.

        No text is out of view below: the current token is in the last line, and looks at none after it.
        """
        first, _ = self.layout.visible(current, self.size[1])
        weights = np.nan_to_num(self.weights[number]) * self.words
        above = float(weights[self.layout.last_line < first].sum()) + float(self.before[number])
        right, fonts = self.at[0] + self.size[0], self.sheet.label_fonts
        if above < _LEAST_TOLD:
            return right
        for text in (f"{above:.1%} of it on text above", f"{above:.1%} above"):
            x = right - fonts.width(text)
            if x >= self.at[0] + self.sheet.px(_ROOM_FOR_TOKEN):  # room for the token comes first
                break
        pen.text((x, self.heading), text, fonts, MUTED)
        return x - self.sheet.px(20)

    def _draw_token(self, pen: AnyPen, step: int, token: str, end: float) -> None:
        """Which token this is, up to an x."""
        px, fonts, base = self.sheet.px, self.sheet.title_fonts, self.heading
        shown = " ".join(token.replace("\n", NEWLINE_MARK).split()) or "space"
        if not fonts.width(shown):  # of characters that nobody sees
            shown = "".join(f"[U+{ord(char):04X}]" for char in token)
        for title in (f"token {step + 1} of {self.record.response_length}", f"token {step + 1}"):
            x = self.at[0] + fonts.width(title) + px(20)
            if x + fonts.width(shown) + px(8) <= end:
                break
        pen.text((self.at[0], base), title, fonts)
        shown = cut_to(shown, fonts, end - x - px(8))
        chip = (x - px(8), base - px(29), x + fonts.width(shown) + px(9), base + px(11))
        pen.box(chip, CURRENT_TOKEN, radius=px(6))
        pen.text((x, base), shown, fonts, PAPER)
