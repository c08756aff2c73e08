"""The side of a frame with the answer: its text coloured, which token this is, and what is out of view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attention_heatmap.drawing.colour import CURRENT_TOKEN, MUTED, PAPER, scale_ends, strengths
from attention_heatmap.drawing.fonts import NEWLINE_MARK, cut_to
from attention_heatmap.drawing.pen import AnyPen
from attention_heatmap.drawing.text import TextPiece
from attention_heatmap.drawing.text_panel import put_text
from attention_heatmap.maps import ShownRows

# The highest weights of a text are clipped here, so that one outlier does not turn all the rest red.
TEXT_SCALE_QUANTILE = 0.99
ROOM_FOR_TOKEN = 480  # pixels at the left of a heading
LEAST_TOLD = 0.0005  # of the attention; less of it out of view is not worth a word


class AnswerSide:
    """What a frame draws of the text; the frame lays it out, and gives fonts, lengths and places."""

    def _weigh(self, shown: ShownRows, start: int, pieces: Sequence[TextPiece]) -> None:
        """The weights of all pieces of text, NaN where left out, the ends of their scales, and what stands above."""
        rows_TS, starts = self.record.rows(self.plane), self.piece_starts - start
        # Weights of the frames only; the weight of a run of image tokens, or of a character's parts, is their sum.
        self.text_weights = np.add.reduceat(rows_TS[self.first_step :, start:], starts, axis=1)
        left_out = shown.sinks[start:] & ~np.isin(np.arange(start, len(shown.sinks)), self.record.image_positions)
        self.text_weights[:, np.logical_or.reduceat(left_out, starts)] = np.nan
        self.words = np.array([piece.kind != "image" for piece in pieces])
        plain = np.array([piece.kind == "text" for piece in pieces])
        self.text_ends = scale_ends(self.text_weights[:, plain], TEXT_SCALE_QUANTILE, self.options.scale)
        self.text_strengths = strengths(np.nan_to_num(self.text_weights[:, self.words]).sum(axis=1))
        before = np.setdiff1d(
            np.arange(1, start), self.record.image_positions
        )  # the first token has a share of its own
        self.before = rows_TS[self.first_step :, before].sum(axis=1)

    def draw_answer(self, pen: AnyPen, step: int) -> None:
        """The text of a step, its heading, and how much attention is out of view."""
        number = step - self.first_step
        current = int(np.searchsorted(self.piece_starts, self.record.prompt_length + step, side="right")) - 1
        values = np.clip(self.text_weights[number] / self.text_ends[number], 0, 1) ** self.options.power
        look = self.text_size[1], self.colormap, self.options.text_style, float(self.text_strengths[number])
        put_text(pen, self.text_at, self.text, values, current, *look)
        self._draw_token(pen, step, self.text.pieces[current].text, self._draw_above(pen, number, current))

    def heading(self, top: int) -> int:
        """The base line of the heading of a panel."""
        return top - self.header + round(self.header * 0.62)

    def _draw_above(self, pen: AnyPen, number: int, current: int) -> float:
        """How much attention lies on text above the panel's first line; the x where that is said.

        No text is out of view below: the current token is in the last line, and looks at none after it.
        """
        first, _ = self.text.visible(current, self.text_size[1])
        weights = np.nan_to_num(self.text_weights[number]) * self.words
        above = float(weights[self.text.last_line < first].sum()) + float(self.before[number])
        (left, top), right, fonts = self.text_at, self.text_at[0] + self.text_size[0], self.label_fonts
        if above < LEAST_TOLD:
            return right
        for text in (f"{above:.1%} of it on text above", f"{above:.1%} above"):
            x = right - fonts.width(text)
            if x >= left + self.px(ROOM_FOR_TOKEN):  # room for the token comes first
                break
        pen.text((x, self.heading(top)), text, fonts, MUTED)
        return x - self.px(20)

    def _draw_token(self, pen: AnyPen, step: int, token: str, end: float) -> None:
        """Which token this is, up to an x."""
        px, fonts, base = self.px, self.title_fonts, self.heading(self.text_at[1])
        shown = " ".join(token.replace("\n", NEWLINE_MARK).split()) or "space"
        for title in (f"token {step + 1} of {self.record.response_length}", f"token {step + 1}"):
            x = self.text_at[0] + fonts.width(title) + px(20)
            if x + fonts.width(shown) + px(8) <= end:
                break
        pen.text((self.text_at[0], base), title, fonts)
        shown = cut_to(shown, fonts, end - x - px(8))
        chip = (x - px(8), base - px(29), x + fonts.width(shown) + px(9), base + px(11))
        pen.box(chip, CURRENT_TOKEN, radius=px(6))
        pen.text((x, base), shown, fonts, PAPER)
