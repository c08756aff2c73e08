"""One frame: panels, heading, legend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from attention_heatmap.drawing.colour import (
    COLORMAPS,
    CURRENT_TOKEN,
    INK,
    PAPER,
    weight_scale,
)
from attention_heatmap.drawing.fonts import (
    FONT_LABEL,
    FONT_TEXT,
    FONT_TITLE,
    NEWLINE_MARK,
    FontSet,
    draw_lines,
    draw_runs,
    wrapped,
)
from attention_heatmap.drawing.image_panel import (
    draw_marks,
    heat_tint,
    label_height,
    layout_images,
    picture_slots,
    used_height,
)
from attention_heatmap.drawing.legend import FOOTER, FOOTER_END, NOTES, Legend, Place, map_notes, plane_title
from attention_heatmap.drawing.marks import response_marks, share_inside
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions, drawing_options
from attention_heatmap.drawing.text import TextPiece, find_panel_start, text_pieces
from attention_heatmap.drawing.text_layout import layout_text
from attention_heatmap.drawing.text_panel import visualize_attention_step
from attention_heatmap.maps import ShownRows, shown_rows
from attention_heatmap.record import DEFAULT_START_PHRASE, AttentionRecord, Head

TALL_FRAME_SIZE = (1600, 1920)  # of a frame taller than wide in which lengths are the same
# The highest weights of a video are clipped here, so that one outlier does not turn all the rest red.
TEXT_SCALE_QUANTILE = 0.99
IMAGE_SCALE_QUANTILE = 0.999
MARGIN, HEADER = 28, 84
TALL_FONT_TEXT = 34  # in a frame taller than wide, whose text is as wide as the frame
IMAGE_PANEL = (0.4, 0.45, 0.5, 0.55, 0.6)  # parts of the frame's width that the image panel may take
TALL_IMAGE_PANEL = 0.6  # of what both panels share in a frame taller than wide, at most
MOST_HEADS_NAMED = 4  # in the heading; more are named below the time line


def _scale_ends(weights: np.ndarray, quantile: float, scale: str) -> np.ndarray:
    """(steps,) the weight drawn as the highest in each frame, from (steps, ...) weights."""
    if scale == "frame":
        return np.array([weight_scale(row, quantile) for row in weights])
    return np.full(len(weights), weight_scale(weights, quantile))


class FrameRenderer:
    """Lays out once what no step changes, for one plane of one record, and then draws any step."""

    def __init__(
        self, record: AttentionRecord, images: Sequence[Image.Image], plane: int, start_phrase: str,
        options: DrawingOptions,
    ) -> None:  # fmt: skip
        if len(images) != len(record.images):
            raise ValueError(f"{len(images)} pictures were given; the record has {len(record.images)}")
        self.record, self.plane, self.text_style = record, plane, options.text_style
        self.colormap = COLORMAPS.get(options.colormap, options.colormap)
        self.width, self.height = options.frame_size
        self.tall = self.height > self.width
        text_fonts, self.title_fonts, self.label_fonts = (
            FontSet(self.px(size), options.font_path)
            for size in (TALL_FONT_TEXT if self.tall else FONT_TEXT, FONT_TITLE, FONT_LABEL)
        )
        margin = self.px(MARGIN)
        shown = shown_rows(record, plane, *options.map)
        notes = wrapped(map_notes(record, plane, options, shown), self.label_fonts, self.width - 2 * margin)
        self.sizes, self.left, self.right = [image.size for image in images], margin, self.width - margin
        footer = self.height - self.px(FOOTER) - len(notes) * self.px(NOTES) + self.px(16)
        self._place_panels(footer - self.px(16))

        start, self.first_step = find_panel_start(record, start_phrase)
        pieces = text_pieces(record, start)
        self.piece_starts = np.array([piece.start for piece in pieces])
        self.text = layout_text(pieces, text_fonts, self.text_size[0])
        self.image = layout_images(record, images, *self.image_size, self.label_fonts, shown.sinks)
        self._weigh(shown, start, pieces, options.scale)
        self.marks = response_marks(record, plane, self.sizes, options.draw_points)
        self.mark_overlay: tuple = ([], None)  # of the last frame: the marks, and what to paste
        self.base = Image.new("RGB", (self.width, self.height), PAPER)  # what no step changes
        self.base.paste(Image.fromarray(self.image.picture), self.image_at)
        at = (self.image_at[0], self._heading(self.image_at[1]))
        title = plane_title(record, plane)
        fonts = self.title_fonts if at[0] + self.title_fonts.width(title) <= self.right else self.label_fonts
        draw_runs(ImageDraw.Draw(self.base), at, title, fonts, INK)
        last = self.height - self.px(FOOTER_END)
        draw_lines(
            self.base, notes, (margin, last - self.px(NOTES) * (len(notes) - 1)), self.px(NOTES), self.label_fonts
        )
        place = Place(margin, self.right, footer, self.second_bar, self.px)
        self.legend = Legend(record, plane, self.first_step, place, self.label_fonts, options)
        self.legend.draw_fixed(self.base)
        if options.scale == "video":
            self._draw_bars(self.base, 0)
        self.bars_change = options.scale == "frame"

    def _weigh(self, shown: ShownRows, start: int, pieces: Sequence[TextPiece], scale: str) -> None:
        """The weights of all pieces of text and of all cells, NaN where left out, and the ends of their scales."""
        rows_TS, starts = self.record.rows(self.plane), self.piece_starts - start
        # Weights of the frames only; the weight of a run of image tokens, or of a character's parts, is their sum.
        self.text_weights = np.add.reduceat(rows_TS[self.first_step :, start:], starts, axis=1)
        left_out = shown.sinks[start:] & ~np.isin(np.arange(start, len(shown.sinks)), self.record.image_positions)
        self.text_weights[:, np.logical_or.reduceat(left_out, starts)] = np.nan
        self.cell_weights = self.image.cell_weights(shown.rows[self.first_step :], shown.sinks)
        words = np.array([piece.kind == "text" for piece in pieces])
        self.text_ends = _scale_ends(self.text_weights[:, words], TEXT_SCALE_QUANTILE, scale)
        self.any_heat = bool((np.nan_to_num(self.cell_weights) > 0).any())
        self.cell_ends = _scale_ends(self.cell_weights, IMAGE_SCALE_QUANTILE, scale)

    def _place_panels(self, bottom: int) -> None:
        """Where the text and the pictures stand, (x, y), and how large, down to a row.

        They stand side by side; in a frame taller than wide the pictures stand above the text where they are larger so.
        """
        margin, top, label = self.left, self.px(HEADER), label_height(self.label_fonts, len(self.sizes))

        def scale(width: int, height: int) -> float:
            return round(min(scale for *_, scale in picture_slots(self.sizes, width, height, label)), 4)

        both, height = self.width - 3 * margin, bottom - top
        # No wider than makes the pictures larger.
        width = max((round(both * part) for part in IMAGE_PANEL), key=lambda width: (scale(width, height), -width))
        self.image_size, self.text_size = (width, height), (both - width, height)
        self.text_at, self.image_at = (margin, top), (2 * margin + both - width, top)
        self.second_bar = (margin + self.right) // 2 if self.tall else self.image_at[0]
        above = self.right - margin, round((height - top) * TALL_IMAGE_PANEL)
        self.stacked = self.tall and scale(*above) > scale(width, height)
        if self.stacked:
            used = used_height(self.sizes, picture_slots(self.sizes, *above, label))
            self.image_size, self.image_at, self.text_at = above, (margin, top), (margin, 2 * top + used)
            self.text_size = above[0], bottom - self.text_at[1]

    def _heading(self, top: int) -> int:
        """The base line of the heading of a panel."""
        return top - self.px(HEADER) + round(self.px(HEADER) * 0.6)

    def check_step(self, step: int) -> int:
        """A step that has a frame; negative ones count from the end. Raises ValueError."""
        number = step + self.record.response_length if step < 0 else step
        if not self.first_step <= number < self.record.response_length:
            last = self.record.response_length - 1
            raise ValueError(f"step {step} has no frame; there are frames of steps {self.first_step}..{last}")
        return number

    def px(self, length: float) -> int:
        """Pixels of a length that is given for a frame of DEFAULT_FRAME_SIZE, or of TALL_FRAME_SIZE."""
        width, height = TALL_FRAME_SIZE if self.tall else DEFAULT_FRAME_SIZE
        return max(round(length * min(self.width / width, self.height / height)), 1)

    def draw(self, step: int) -> np.ndarray:
        """The frame of one step: (Y, X, 3) uint8."""
        frame_number = step - self.first_step
        current = int(np.searchsorted(self.piece_starts, self.record.prompt_length + step, side="right")) - 1
        text_end, cell_end = self.text_ends[frame_number], self.cell_ends[frame_number]
        text_values = self.text_weights[frame_number] / text_end
        canvas = self.base.copy()
        canvas.paste(
            visualize_attention_step(
                self.text, text_values, current, self.text_size[1], self.colormap, self.text_style
            ),
            self.text_at,
        )
        heat = heat_tint(self.image, self.cell_weights[frame_number] / cell_end, self.colormap)
        canvas.paste(heat, (self.image_at[0], self.image_at[1] + self.image.cell_rows.start), heat)
        draw = ImageDraw.Draw(canvas)
        self._draw_marks(canvas, step)
        self._draw_token(draw, step, self.text.pieces[current].text)
        if self.bars_change:
            self._draw_bars(canvas, frame_number)
        self.legend.draw_step(canvas, step)
        return np.asarray(canvas)

    def _draw_token(self, draw: ImageDraw.ImageDraw, step: int, token: str) -> None:
        """Which token this is."""
        px, fonts, base = self.px, self.title_fonts, self._heading(self.text_at[1])
        title = f"token {step + 1} of {self.record.response_length}"
        x = draw_runs(draw, (self.text_at[0], base), title, fonts, INK) + px(24)
        shown = " ".join(token.replace("\n", NEWLINE_MARK).split()) or "space"
        while x + fonts.width(shown) > self.text_at[0] + self.text_size[0] - px(MARGIN) and len(shown) > 1:
            shown = shown[: 3 * (len(shown) - 1) // 4] + "…"
        chip = [x - px(8), base - px(30), x + fonts.width(shown) + px(8), base + px(11)]
        draw.rounded_rectangle(chip, px(6), fill=CURRENT_TOKEN)
        draw_runs(draw, (x, base), shown, fonts, PAPER)

    def _draw_marks(self, canvas: Image.Image, step: int) -> None:
        """The places named so far in the phase of the last one: an answer is not drawn over the thoughts it repeats."""
        marks = [mark for mark in self.marks if mark.step <= step]
        marks = [mark for mark in marks if mark.phase == marks[-1].phase]
        if not marks:
            return
        if self.mark_overlay[0] != marks:
            overlay = draw_marks(self.image, marks, self.label_fonts)
            box = overlay.getbbox()
            at, overlay = (self.image_at[0] + box[0], self.image_at[1] + box[1]), overlay.crop(box)
            self.mark_overlay = marks, (overlay.convert("RGB"), at, overlay.getchannel("A"))
        canvas.paste(*self.mark_overlay[1])
        inside = share_inside(self.record, self.plane, step, marks, self.sizes)
        if inside is not None:
            text = f"{inside:.1%} of the attention on the picture{'s' * (len(self.sizes) > 1)} is inside the boxes"
            at = (self.right - self.label_fonts.width(text), self.legend.timeline_y - self.px(10))
            draw_runs(ImageDraw.Draw(canvas), at, text, self.label_fonts, INK)

    def _draw_bars(self, canvas: Image.Image, frame_number: int) -> None:
        """The colour bars, with the ends of the scales of a frame."""
        ends = self.text_ends[frame_number], self.cell_ends[frame_number] if self.any_heat else None
        self.legend.draw_bars(canvas, *ends)


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
