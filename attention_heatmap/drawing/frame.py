"""One frame: the text of the answer, the map over the pictures, or several, the legend."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.drawing.colour import MUTED, PAPER
from attention_heatmap.drawing.fonts import FONT_TEXT, FontSet, cut_to, wrapped
from attention_heatmap.drawing.image_panel import ImageLayout, MapPanel, ShownMap, draw_marks, label_height, shown_map
from attention_heatmap.drawing.layout import Sheet, place_panels
from attention_heatmap.drawing.legend import (
    FOOTER_END,
    NOTES,
    Legend,
    difference_note,
    footer_height,
    map_notes,
    plane_title,
)
from attention_heatmap.drawing.marks import MOST_INSIDE, response_marks, share_inside
from attention_heatmap.drawing.options import DrawingOptions, drawing_options
from attention_heatmap.drawing.pen import AnyPen, Pen, VectorPen, draw_lines
from attention_heatmap.drawing.text import find_panel_start, text_pieces
from attention_heatmap.drawing.text_layout import layout_text
from attention_heatmap.drawing.text_panel import Answer
from attention_heatmap.maps import shown_rows
from attention_heatmap.record import AttentionRecord, Head
from attention_heatmap.showing import DEFAULT_START_PHRASE

_LEAST_SCALE = 480  # pixels from the colour bar of the pictures to the right edge


def planes_together(
    record: AttentionRecord, planes: Sequence[int], options: DrawingOptions
) -> tuple[str, list[ShownMap]]:
    """The heading and the maps of planes of one record; what all have in common is said once, in the heading."""
    names = [record.plane_name(plane) for plane in planes]
    layers, heads = zip(*(name.split(", ", 1) for name in names))
    heading = "attention in several layers and heads"
    if len(set(layers)) == 1:
        names, heading = heads, f"attention in {layers[0]}"
    elif len(set(heads)) == 1:
        names, heading = layers, f"attention, {heads[0]}"
    return heading, [shown_map(record, plane, options, name) for plane, name in zip(planes, names)]


def comparison_maps(
    records: Sequence[AttentionRecord], names: Sequence[str], options: DrawingOptions
) -> tuple[str, list[ShownMap]]:
    """The heading and the maps of two records over the same positions, and of their difference."""
    maps = a, b = [shown_map(record, 0, options, name) for record, name in zip(records, names)]
    if options.difference:
        maps.append(ShownMap("difference", b.weights - a.weights, b.shares - a.shares, True))
    return f"attention in {records[0].plane_name(0)}", maps


class FrameRenderer:
    """Lays out once what no step changes, for one plane of one record, and then draws any step."""

    def __init__(
        self, record: AttentionRecord, images: Sequence[Image.Image], plane: int, start_phrase: str,
        options: DrawingOptions, together: tuple[str, list[ShownMap]] | None = None,
    ) -> None:  # fmt: skip
        """together: a heading and several maps to draw in place of the one of the plane."""
        if len(images) != len(record.images):
            raise ValueError(f"{len(images)} pictures were given; the record has {len(record.images)}")
        self.sheet = sheet = Sheet(options)
        self.record, self.plane, self.options, self.sizes = record, plane, options, [image.size for image in images]
        self.px, self.label_fonts, left, right = sheet.px, sheet.label_fonts, sheet.left, sheet.right
        start, self.first_step = find_panel_start(record, start_phrase)
        shown = shown_rows(record, plane, *options.map)
        self.title, maps = together or (plane_title(record, plane), [shown_map(record, plane, options)])
        names = [one.name for one in maps if together]
        notes = map_notes(record, plane, options, shown)
        notes += [f"text, shares and time line: {names[0]}"] if together else []
        notes += [difference_note(names)] if maps[-1].is_difference else []
        self.notes = wrapped(notes, self.label_fonts, right - left)
        footer = sheet.height - footer_height(sheet) - len(self.notes) * self.px(NOTES)

        pieces, drawn = text_pieces(record, start), self.sizes * len(maps)
        lines = [max(len(line), 1) for line in "".join(piece.text for piece in pieces).split("\n")]
        room, label = (left, 0, right, footer - self.px(8)), label_height(self.label_fonts, len(drawn))
        lengths = sheet.header, left, label, self.px(FONT_TEXT)
        self.panels = panels = place_panels(drawn, room, *lengths, lines, len(images))
        for scale in panels.text_scales:  # until all of the text is in view
            text = layout_text(pieces, FontSet(self.px(FONT_TEXT * scale), options.font_path), panels.text[2])
            if len(text.ink) <= panels.text[3]:
                break
        self.answer = Answer(record, plane, self.first_step, shown.sinks, text, panels.text, sheet)
        look = self.label_fonts, shown.sinks, options.picture, names
        layout, at = ImageLayout(record, images, *panels.pictures[2:], *look), panels.pictures[:2]
        self.panel = MapPanel(maps, layout, at, self.first_step, sheet)
        self.pictures = f"picture{'s' * (len(images) > 1)}"
        # The first fonts in which the map's heading and the share of the pictures find room on one line.
        widest = f"{self.title}   {1:.1%} on the {self.pictures}"
        fonts = (fonts for fonts in (sheet.title_fonts, sheet.label_fonts) if at[0] + fonts.width(widest) <= right)
        self.share_fonts = next(fonts, None)
        self.marks = response_marks(record, plane, self.sizes, options.draw_points)
        second = (left + right) // 2 if panels.stacked else at[0]
        second = max(min(second, right - self.px(_LEAST_SCALE)), right // 4)
        self.legend = Legend(record, plane, self.first_step, sheet, footer, second)
        self.base = Image.new("RGB", options.frame_size, PAPER)  # what no step changes
        self.base.paste(Image.fromarray(layout.picture), at)
        self._draw_fixed(Pen(self.base))

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

    def draw_shapes(self, step: int, pen: VectorPen) -> VectorPen:
        """The same frame by a pen of an SVG or PDF file, which is returned."""
        self._draw_fixed(pen)
        self._draw_step(pen, step)
        return pen

    def _draw_fixed(self, pen: AnyPen) -> None:
        """Headings, notes, and what of the legend no step changes."""
        last = self.sheet.height - self.px(FOOTER_END) // 2
        at = self.sheet.left, last - self.px(NOTES) * (len(self.notes) - 1)
        draw_lines(pen, self.notes, at, self.px(NOTES), self.label_fonts)
        (x, top), fonts, pitch = self.panel.at, self.share_fonts or self.label_fonts, self.px(24)
        base, room = self.sheet.heading(top), self.sheet.right - x
        shorter = [self.record.plane_name(self.plane), self.record.plane_key(self.plane)]
        for title in [self.title, *shorter * (len(self.panel.maps) == 1)]:
            lines = wrapped([title], fonts, room)
            if len(lines) <= 2 and base - pitch * (len(lines) - 1) >= fonts.size:  # there is room above the last
                break
        else:
            lines = [cut_to(title, fonts, room)]
        draw_lines(pen, lines, (x, base - pitch * (len(lines) - 1)), pitch, fonts, MUTED)
        self.legend.draw_fixed(pen)

    def _draw_step(self, pen: AnyPen, step: int) -> None:
        panel, number = self.panel, step - self.first_step
        self.answer.draw(pen, step)
        panel.draw(pen, number)
        self.draw_marks(pen, step)
        if self.share_fonts and len(panel.maps) == 1:
            text = f"{panel.maps[0].shares[number].sum():.1%} on the {self.pictures}"
            at = self.sheet.right - self.share_fonts.width(text), self.sheet.heading(panel.at[1])
            pen.text(at, text, self.share_fonts, self.legend.shares[0].colour)
        ends = float(self.answer.ends[number]), panel.scale_end(number)
        self.legend.draw_bars(pen, *ends, (float(self.answer.strengths[number]), float(panel.strengths[number])))
        self.legend.draw_step(pen, step)

    def draw_marks(self, pen: AnyPen, step: int) -> None:
        """The places named so far in the phase of the last one: an answer is not drawn over the thoughts it repeats."""
        layout, at = self.panel.layout, self.panel.at
        first = end = bisect_right(self.marks, step, key=lambda mark: mark.step)
        while first and self.marks[first - 1].phase == self.marks[end - 1].phase and end - first < MOST_INSIDE:
            first -= 1
        marks = self.marks[first:end]
        if not marks:
            return
        before = first - next(n for n, mark in enumerate(self.marks) if mark.phase == marks[0].phase)
        for shift in range(0, len(layout.places), len(self.sizes)):  # of several maps, over each
            shifted = [replace(mark, image=mark.image + shift) for mark in marks] if shift else marks
            draw_marks(pen, at, layout, shifted, before)
        inside = None if self.sheet.small else share_inside(self.record, self.plane, step, marks, self.sizes)
        if inside is not None:
            boxes = sum(len(mark.corners) == 4 for mark in marks)
            which = f"the {boxes} boxes named so far" if boxes > 1 else "the box"
            text = f"{inside:.1%} of the attention on the {self.pictures} is inside {which}"
            at = (self.sheet.right - self.label_fonts.width(text), self.legend.timeline_y - self.px(10))
            pen.text(at, text, self.label_fonts)


def render_frames(
    record: AttentionRecord, images: Sequence[Image.Image], layer: int, start_phrase: str = DEFAULT_START_PHRASE,
    *, head: Head | None = None, **options: Any,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The frames of one layer's video, one a response token, drawn as they are asked for.

    layer: a recorded layer; head: which of its planes, where it has several. start_phrase: where the text panel
    begins. options: fields of `DrawingOptions`.
    Returns an iterator of (Y, X, 3) uint8. Raises ValueError before the first frame for what does not fit.
    """
    renderer = FrameRenderer(record, images, record.plane(layer, head), start_phrase, drawing_options(options))
    return map(renderer.draw, range(renderer.first_step, record.response_length))
