"""The headings of a frame: which token, what of the attention lies out of view, how much on the pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from attention_heatmap.drawing.colour import CURRENT_TOKEN, MUTED, PAPER
from attention_heatmap.drawing.fonts import NEWLINE_MARK, FontSet
from attention_heatmap.drawing.image_panel import MapPanel
from attention_heatmap.drawing.legend import Legend
from attention_heatmap.drawing.pen import AnyPen
from attention_heatmap.drawing.text_layout import TextLayout
from attention_heatmap.record import AttentionRecord

ROOM_FOR_TOKEN = 480  # pixels at the left of a heading
LEAST_TOLD = 0.0005  # of the attention; less of it out of view is not worth a word


def cut(text: str, fonts: FontSet, width: float) -> str:
    """The text, or its beginning and an ellipsis, in a width."""
    while fonts.width(text) > width and len(text) > 1:
        text = text[: 3 * (len(text) - 1) // 4] + "…"
    return text


class Headings:
    """The headings of a `FrameRenderer`, which has laid out what they tell of."""

    record: AttentionRecord
    text: TextLayout
    legend: Legend
    title_fonts: FontSet
    label_fonts: FontSet
    px: Callable[[float], int]

    def _heading(self, top: int) -> int:
        """The base line of the heading of a panel."""
        return top - self.header + round(self.header * 0.62)

    def _share_fits(self, panel: MapPanel, fonts: FontSet) -> bool:
        """Whether a map's title and the share of the pictures find room on one line, in some fonts."""
        used = fonts.width(f"{panel.title}   {self._share_text(1)}")
        return panel.at[0] + used <= self.right

    def _share_text(self, share: float) -> str:
        return f"{share:.1%} on the picture{'s' * (len(self.sizes) > 1)}"

    def _draw_share(self, pen: AnyPen, panel: MapPanel, number: int) -> None:
        """How much of the attention lies on the pictures, at the right of a map's heading if there is room."""
        text, colour = self._share_text(float(panel.shares[number])), self.legend.shares[0].colour
        for fonts in (self.title_fonts, self.label_fonts):
            if self._share_fits(panel, fonts):
                pen.text((self.right - fonts.width(text), self._heading(panel.at[1])), text, fonts, colour)
                return

    def _draw_above(self, pen: AnyPen, number: int, current: int) -> float:
        """How much attention lies on text above the panel's first line, or below its last; the x where it begins."""
        first, end = self.text.visible(current, self.text_size[1])
        weights = np.nan_to_num(self.text_weights[number]) * self.words
        above = float(weights[self.text.last_line < first].sum()) + float(self.before[number])
        below = float(
            weights[current + 1 :].sum() + weights[: current + 1][self.text.last_line[: current + 1] >= end].sum()
        )
        shown = [
            f"{part:.1%} of it on text {where}"
            for part, where in ((above, "above"), (below, "below"))
            if part >= LEAST_TOLD
        ]
        text, fonts = ", ".join(shown), self.label_fonts
        x = self.text_at[0] + self.text_size[0] - fonts.width(text)
        if x < self.text_at[0] + self.px(ROOM_FOR_TOKEN):  # room for the token comes first
            text = f"{above:.1%} above"
            x = self.text_at[0] + self.text_size[0] - fonts.width(text)
        if shown:
            pen.text((x, self._heading(self.text_at[1])), text, fonts, MUTED)
        return x - self.px(20) if shown else self.text_at[0] + self.text_size[0]

    def _draw_token(self, pen: AnyPen, step: int, token: str, end: float) -> None:
        """Which token this is, up to an x."""
        px, fonts, base = self.px, self.title_fonts, self._heading(self.text_at[1])
        shown = " ".join(token.replace("\n", NEWLINE_MARK).split()) or "space"
        for title in (f"token {step + 1} of {self.record.response_length}", f"token {step + 1}"):
            x = self.text_at[0] + fonts.width(title) + px(20)
            if x + fonts.width(shown) + px(8) <= end:
                break
        pen.text((self.text_at[0], base), title, fonts)
        shown = cut(shown, fonts, end - x - px(8))
        chip = (x - px(8), base - px(29), x + fonts.width(shown) + px(9), base + px(11))
        pen.box(chip, CURRENT_TOKEN, radius=px(6))
        pen.text((x, base), shown, fonts, PAPER)
