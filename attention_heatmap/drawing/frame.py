"""One frame: the text of the answer, the map over the pictures, the legend."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.drawing.answer_side import AnswerSide
from attention_heatmap.drawing.colour import MUTED, PAPER, colour_map
from attention_heatmap.drawing.fonts import (
    FONT_LABEL,
    FONT_TEXT,
    FONT_TITLE,
    FontSet,
    wrapped,
)
from attention_heatmap.drawing.image_panel import MapPanel, draw_marks, label_height, layout_images
from attention_heatmap.drawing.layout import LARGER_TEXT, place_panels
from attention_heatmap.drawing.legend import FOOTER_END, NOTES, Legend, Place, footer_height, map_notes
from attention_heatmap.drawing.marks import MOST_INSIDE, response_marks, share_inside
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions, drawing_options
from attention_heatmap.drawing.pen import AnyPen, Pen, VectorPen, draw_lines
from attention_heatmap.drawing.text import TextPiece, find_panel_start, text_pieces
from attention_heatmap.drawing.text_layout import layout_text
from attention_heatmap.drawing.together import MapsTogether, ShownMap, notes_below
from attention_heatmap.maps import ShownRows, shown_rows
from attention_heatmap.record import AttentionRecord, Head
from attention_heatmap.showing import DEFAULT_START_PHRASE

TALL_FRAME_SIZE = (1600, 1920)  # of a frame taller than wide in which lengths are the same
SMALLEST_UNIT = 0.55  # of a pixel of the default frame: in a small frame what is written stays readable, and is less
MARGIN, HEADER, SMALL_HEADER = 28, 78, 56
LEAST_SCALE = 480  # pixels from the colour bar of the pictures to the right edge


class FrameRenderer(AnswerSide):
    """Lays out once what no step changes, for one plane of one record, and then draws any step."""

    def __init__(
        self, record: AttentionRecord, images: Sequence[Image.Image], plane: int, start_phrase: str,
        options: DrawingOptions, together: tuple[str, list[ShownMap]] | None = None,
    ) -> None:  # fmt: skip
        """together: a heading and several maps to draw in place of the one of the plane."""
        if len(images) != len(record.images):
            raise ValueError(f"{len(images)} pictures were given; the record has {len(record.images)}")
        self.record, self.plane, self.options = record, plane, options
        self.colormap, (self.width, self.height) = colour_map(options.colormap), options.frame_size
        self._measure()
        margin, shown = self.px(MARGIN), shown_rows(record, plane, *options.map)
        self.left, self.right = margin, self.width - margin
        self.header = self.px(SMALL_HEADER if self.small else HEADER)
        notes = map_notes(record, plane, options, shown)
        if together:
            notes += notes_below(together[1])
        self.notes = wrapped(notes, self.label_fonts, self.right - margin)
        footer = self.height - footer_height(self.px, self.small) - len(self.notes) * self.px(NOTES)
        start, self.first_step = find_panel_start(record, start_phrase)
        pieces = text_pieces(record, start)
        self.piece_starts = np.array([piece.start for piece in pieces])
        self.sizes = [image.size for image in images]
        at = self._place(images, pieces, footer, shown, together)
        self._weigh(shown, start, pieces)
        self.marks = response_marks(record, plane, self.sizes, options.draw_points)
        self._mark_steps = [mark.step for mark in self.marks]
        self._phase_starts = {mark.phase: n for n, mark in reversed(list(enumerate(self.marks)))}
        second = (margin + self.right) // 2 if self.stacked else at[0]
        second = max(min(second, self.right - self.px(LEAST_SCALE)), self.right // 4)
        place = Place(margin, self.right, footer, second, self.px, self.small)
        self.legend = Legend(record, plane, self.first_step, place, self.label_fonts, options)
        self.base = Image.new("RGB", (self.width, self.height), PAPER)  # what no step changes
        for panel in self.maps:
            self.base.paste(Image.fromarray(panel.layout.picture), panel.at)
        self._draw_fixed(Pen(self.base))

    image = property(lambda self: self.maps[0].layout, doc="The pictures of the first map.")
    image_at = property(lambda self: self.maps[0].at, doc="Where they stand.")
    cell_weights = property(lambda self: self.maps[0].weights, doc="(frames, cells) their weights.")
    cell_ends = property(lambda self: self.maps[0].ends, doc="(frames,) the ends of their scales.")

    def _measure(self) -> None:
        """The unit of all lengths, and the fonts of headings and labels."""
        whole = TALL_FRAME_SIZE if self.height > self.width else DEFAULT_FRAME_SIZE
        unit = min(self.width / whole[0], self.height / whole[1])
        self.small, self.unit = unit < SMALLEST_UNIT, max(unit, SMALLEST_UNIT)
        path = self.options.font_path
        self.title_fonts, self.label_fonts = (FontSet(self.px(size), path) for size in (FONT_TITLE, FONT_LABEL))

    def _place(
        self, images: Sequence[Image.Image], pieces: Sequence[TextPiece], footer: int, shown: ShownRows,
        together: tuple[str, list[ShownMap]] | None,
    ) -> tuple[int, int]:  # fmt: skip
        """Lay out the text and the pictures above a footer; where the pictures stand."""
        names = [one.name for one in together[1]] if together else ()
        drawn = self.sizes * max(len(names), 1)
        label, room = label_height(self.label_fonts, len(drawn)), (self.left, 0, self.right, footer - self.px(8))
        lines = [max(len(line), 1) for line in "".join(piece.text for piece in pieces).split("\n")]
        panels = place_panels(drawn, room, self.header, self.left, label, self.px(FONT_TEXT), lines)
        self.stacked, self.text_at, self.text_size = panels.stacked, panels.text[:2], panels.text[2:]
        for scale in (*(scale for scale in LARGER_TEXT if scale <= panels.text_scale), 1):  # until all of it is in view
            text_fonts = FontSet(self.px(FONT_TEXT * scale), self.options.font_path)
            self.text = layout_text(pieces, text_fonts, self.text_size[0])
            if len(self.text.ink) <= self.text_size[1]:
                break
        look = self.label_fonts, shown.sinks, self.options.picture, names
        layout, at = layout_images(self.record, images, *panels.pictures[2:], *look), panels.pictures[:2]
        if together:
            self.maps = [MapsTogether(together[1], together[0], layout, at, self.first_step, self.options)]
        else:
            self.maps = [MapPanel(self.record, self.plane, layout, at, shown, self.first_step, self.options)]
        return at

    def px(self, length: float) -> int:
        """Pixels of a length that is given for a frame of DEFAULT_FRAME_SIZE, or of TALL_FRAME_SIZE."""
        return max(round(length * self.unit), 1)

    def check_step(self, number: int) -> int:
        """The step, from 0, of a token's number, from 1; negative ones count from the end. Raises ValueError."""
        step = self.record.step_of(number)
        if step < self.first_step:
            raise ValueError(f"token {number} has no frame: the text begins at token {self.first_step + 1}")
        return step

    def draw(self, step: int) -> np.ndarray:
        """The frame of one step, from 0: (Y, X, 3) uint8."""
        canvas = self.base.copy()
        self._draw_step(Pen(canvas), step)
        return np.asarray(canvas)

    def draw_shapes(self, step: int) -> VectorPen:
        """The same frame as shapes, for an SVG or PDF file."""
        pen = VectorPen(self.width, self.height)
        self._draw_fixed(pen)
        self._draw_step(pen, step)
        return pen

    def _draw_fixed(self, pen: AnyPen) -> None:
        """Headings, notes, and what of the legend no step changes."""
        last = self.height - self.px(FOOTER_END) // 2
        at = self.left, last - self.px(NOTES) * (len(self.notes) - 1)
        draw_lines(pen, self.notes, at, self.px(NOTES), self.label_fonts)
        for panel in self.maps:
            x, base, room = panel.at[0], self.heading(panel.at[1]), self.right - panel.at[0]
            if self._share_fits(panel, self.title_fonts):
                pen.text((x, base), panel.title, self.title_fonts, MUTED)
                continue
            lines, pitch = wrapped([panel.title], self.label_fonts, room)[:2], self.px(24)
            top = base - pitch * (len(lines) - 1)
            draw_lines(pen, lines, (x, top), pitch, self.label_fonts, MUTED)
        self.legend.draw_fixed(pen)

    def _draw_step(self, pen: AnyPen, step: int) -> None:
        number = step - self.first_step
        self.draw_answer(pen, step)
        for panel in self.maps:
            panel.draw(pen, number, self.label_fonts)
            self.draw_marks(pen, panel, step)
            if isinstance(panel, MapPanel):
                self._draw_share(pen, panel, number)
        first = self.maps[0]
        ends = float(self.text_ends[number]), first.scale_end(number) if first.any_heat else None
        self.legend.draw_bars(pen, *ends, (float(self.text_strengths[number]), float(self.maps[0].strengths[number])))
        self.legend.draw_step(pen, step)

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
                pen.text((self.right - fonts.width(text), self.heading(panel.at[1])), text, fonts, colour)
                return

    def draw_marks(self, pen: AnyPen, panel: MapPanel, step: int) -> None:
        """The places named so far in the phase of the last one: an answer is not drawn over the thoughts it repeats."""
        end = bisect_right(self._mark_steps, step)
        first = end
        while first and self.marks[first - 1].phase == self.marks[end - 1].phase and end - first < MOST_INSIDE:
            first -= 1
        marks = self.marks[first:end]
        if not marks:
            return
        before = first - self._phase_starts[marks[0].phase]
        for shift in range(0, len(panel.layout.places), len(self.sizes)):  # of several maps, over each
            shifted = [replace(mark, image=mark.image + shift) for mark in marks] if shift else marks
            draw_marks(pen, panel.at, panel.layout, shifted, self.label_fonts, before)
        inside = None if self.small else share_inside(self.record, self.plane, step, marks, self.sizes)
        if inside is not None:
            text = f"{inside:.1%} of the attention on the picture{'s' * (len(self.sizes) > 1)} is inside the boxes"
            at = (self.right - self.label_fonts.width(text), self.legend.timeline_y - self.px(10))
            pen.text(at, text, self.label_fonts)


def render_frames(
    record: AttentionRecord,
    images: Sequence[Image.Image],
    layer: int,
    start_phrase: str = DEFAULT_START_PHRASE,
    *,
    head: Head | None = None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """The frames of one layer's video, one a response token, drawn as they are asked for.

    layer: a recorded layer; head: which of its planes, where it has several. start_phrase: where the text panel
    begins. options: fields of `DrawingOptions`.
    Returns an iterator of (Y, X, 3) uint8. Raises ValueError before the first frame for what does not fit.
    """
    renderer = FrameRenderer(record, images, record.plane(layer, head), start_phrase, drawing_options(options))
    return map(renderer.draw, range(renderer.first_step, record.response_length))
