"""One frame: the text of the answer, the map over the pictures, the legend."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.drawing.colour import MUTED, PAPER, colour_map, scale_ends, strengths
from attention_heatmap.drawing.fonts import (
    FONT_LABEL,
    FONT_TEXT,
    FONT_TITLE,
    FontSet,
    wrapped,
)
from attention_heatmap.drawing.heading import Headings, cut
from attention_heatmap.drawing.image_panel import MapPanel, draw_marks, label_height, layout_images
from attention_heatmap.drawing.layout import place_panels
from attention_heatmap.drawing.legend import FOOTER_END, NOTES, Legend, Place, footer_height, map_notes
from attention_heatmap.drawing.marks import MOST_INSIDE, response_marks, share_inside
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions, drawing_options
from attention_heatmap.drawing.pen import AnyPen, Pen, VectorPen, draw_lines
from attention_heatmap.drawing.text import TextPiece, find_panel_start, text_pieces
from attention_heatmap.drawing.text_layout import layout_text
from attention_heatmap.drawing.text_panel import draw_text, visualize_attention_step
from attention_heatmap.drawing.together import MapsTogether, ShownMap
from attention_heatmap.maps import ShownRows, shown_rows
from attention_heatmap.record import AttentionRecord, Head
from attention_heatmap.showing import DEFAULT_START_PHRASE

TALL_FRAME_SIZE = (1600, 1920)  # of a frame taller than wide in which lengths are the same
SMALLEST_UNIT = 0.55  # of a pixel of the default frame: in a small frame what is written stays readable, and is less
# The highest weights of a text are clipped here, so that one outlier does not turn all the rest red.
TEXT_SCALE_QUANTILE = 0.99
MARGIN, HEADER, SMALL_HEADER = 28, 78, 56
LEAST_SCALE = 480  # pixels from the colour bar of the pictures to the right edge


class FrameRenderer(Headings):
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
        whole = TALL_FRAME_SIZE if self.height > self.width else DEFAULT_FRAME_SIZE
        unit = min(self.width / whole[0], self.height / whole[1])
        self.small, self.unit = unit < SMALLEST_UNIT, max(unit, SMALLEST_UNIT)
        self.title_fonts, self.label_fonts = (
            FontSet(self.px(size), options.font_path) for size in (FONT_TITLE, FONT_LABEL)
        )
        margin, shown = self.px(MARGIN), shown_rows(record, plane, *options.map)
        self.left, self.right, self.header = (
            margin,
            self.width - margin,
            self.px(SMALL_HEADER if self.small else HEADER),
        )
        notes = map_notes(record, plane, options, shown)
        if together:
            notes.append(f"text, shares and time line: {together[1][0].name}")
        self.notes = wrapped(notes, self.label_fonts, self.right - margin)
        footer = self.height - footer_height(self.px, self.small) - len(self.notes) * self.px(NOTES)
        start, self.first_step = find_panel_start(record, start_phrase)
        pieces = text_pieces(record, start)
        self.piece_starts = np.array([piece.start for piece in pieces])
        self.sizes = [image.size for image in images]
        names = [one.name for one in together[1]] if together else ()
        drawn = self.sizes * max(len(names), 1)
        label = label_height(self.label_fonts, len(drawn))
        lines = [max(len(line), 1) for line in "".join(piece.text for piece in pieces).split("\n")]
        panels = place_panels(
            drawn,
            (margin, 0, self.right, footer - self.px(8)),
            self.header,
            margin,
            label,
            self.px(FONT_TEXT),
            lines,
        )
        self.stacked, self.text_at, self.text_size = panels.stacked, panels.text[:2], panels.text[2:]
        text_fonts = FontSet(self.px(FONT_TEXT * panels.text_scale), options.font_path)
        self.text = layout_text(pieces, text_fonts, self.text_size[0])
        look = self.label_fonts, shown.sinks, options.picture, names
        layout, at = layout_images(record, images, *panels.pictures[2:], *look), panels.pictures[:2]
        if together:
            self.maps = [MapsTogether(together[1], together[0], layout, at, self.first_step, options)]
        else:
            self.maps = [MapPanel(record, plane, layout, at, shown, self.first_step, options)]
        self._weigh(shown, start, pieces)
        self.marks = response_marks(record, plane, self.sizes, options.draw_points)
        self._mark_steps = [mark.step for mark in self.marks]
        self._phase_starts = {mark.phase: n for n, mark in reversed(list(enumerate(self.marks)))}
        second = (margin + self.right) // 2 if self.stacked else panels.pictures[0]
        place = Place(
            margin,
            self.right,
            footer,
            max(min(second, self.right - self.px(LEAST_SCALE)), self.right // 4),
            self.px,
            self.small,
        )
        self.legend = Legend(record, plane, self.first_step, place, self.label_fonts, options)
        self.base = Image.new("RGB", (self.width, self.height), PAPER)  # what no step changes
        for panel in self.maps:
            self.base.paste(Image.fromarray(panel.layout.picture), panel.at)
        self._draw_fixed(Pen(self.base))

    image = property(lambda self: self.maps[0].layout, doc="The pictures of the first map.")
    image_at = property(lambda self: self.maps[0].at, doc="Where they stand.")
    cell_weights = property(lambda self: self.maps[0].weights, doc="(frames, cells) their weights.")
    cell_ends = property(lambda self: self.maps[0].ends, doc="(frames,) the ends of their scales.")

    def px(self, length: float) -> int:
        """Pixels of a length that is given for a frame of DEFAULT_FRAME_SIZE, or of TALL_FRAME_SIZE."""
        return max(round(length * self.unit), 1)

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
            x, base, room = panel.at[0], self._heading(panel.at[1]), self.right - panel.at[0]
            if self._share_fits(panel, self.title_fonts):
                pen.text((x, base), panel.title, self.title_fonts, MUTED)
                continue
            lines, pitch = wrapped([panel.title], self.label_fonts, room)[:2], self.px(24)
            top = base - pitch * (len(lines) - 1)
            draw_lines(
                pen, [cut(line, self.label_fonts, room) for line in lines], (x, top), pitch, self.label_fonts, MUTED
            )
        self.legend.draw_fixed(pen)

    def _draw_step(self, pen: AnyPen, step: int) -> None:
        number = step - self.first_step
        current = int(np.searchsorted(self.piece_starts, self.record.prompt_length + step, side="right")) - 1
        values = np.clip(self.text_weights[number] / self.text_ends[number], 0, 1) ** self.options.power
        look = self.text_size[1], self.colormap, self.options.text_style, float(self.text_strengths[number])
        if isinstance(pen, VectorPen):
            draw_text(pen, self.text_at, self.text, values, current, *look)
        else:
            pen.picture(visualize_attention_step(self.text, values, current, *look), self.text_at)
        for panel in self.maps:
            panel.draw(pen, number, self.label_fonts)
            self.draw_marks(pen, panel, step)
            if isinstance(panel, MapPanel):
                self._draw_share(pen, panel, number)
        self._draw_token(pen, step, self.text.pieces[current].text, self._draw_above(pen, number, current))
        first = self.maps[0]
        ends = float(self.text_ends[number]), first.scale_end(number) if first.any_heat else None
        self.legend.draw_bars(pen, *ends, (float(self.text_strengths[number]), float(self.maps[0].strengths[number])))
        self.legend.draw_step(pen, step)

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
