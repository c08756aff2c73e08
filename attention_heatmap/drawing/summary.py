"""One picture of a whole answer: its text, its phases, the words that looked the most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from attention_heatmap.drawing.colour import MUTED, PAPER, colour_bar, colour_map, text_colours
from attention_heatmap.drawing.fonts import FONT_LABEL, FONT_TEXT, FONT_TITLE, FontSet, wrapped
from attention_heatmap.drawing.frame import MARGIN
from attention_heatmap.drawing.image_panel import draw_heat, draw_heat_by_pen, layout_images
from attention_heatmap.drawing.legend import NOTES, amount_text, map_notes, plane_title
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions
from attention_heatmap.drawing.pen import AnyPen, Pen, VectorPen, draw_lines
from attention_heatmap.drawing.text import BREAK_ANYWHERE, LETTERS, text_pieces
from attention_heatmap.drawing.text_layout import TextLayout, layout_text
from attention_heatmap.drawing.text_panel import put_text
from attention_heatmap.maps import BASELINES, TINY, image_shares, shown_rows
from attention_heatmap.phases import response_ends, response_phases
from attention_heatmap.record import AttentionRecord

SUMMARY_COLUMNS = 4  # maps side by side, in two rows


def words_that_looked(record: AttentionRecord, plane: int, count: int) -> list[tuple[int, str]]:
    """(step, word) of the words that looked at the pictures the most, the most first, each word once.

    A word counts by the token that begins it; in a script without spaces each token is a word.
    """
    text, words = record.response, {}
    starts = np.concatenate([[0], response_ends(record)])
    for step in np.argsort(-image_shares(record, plane), kind="stable"):
        token = record.tokens[record.prompt_length + step]
        match = LETTERS.search(token)
        at = starts[step] + match.start() if match else 0
        if not match or (at and text[at - 1] in "</") or len(words) == count:
            continue
        alone = bool(BREAK_ANYWHERE.match(match[0]))
        if alone or not (at and text[at - 1].isalpha()):
            words.setdefault(match[0] if alone else LETTERS.match(text, at)[0], int(step))
    return [(step, word) for word, step in words.items()]


def summary_spans(record: AttentionRecord, plane: int) -> list[tuple[str, int, int]]:
    """(title, first step, the one after the last) of each map of the summary: the phases, then single words."""
    phases = [(f"{p.name}: mean of {p.last - p.first} steps", p.first, p.last) for p in response_phases(record)]
    words = words_that_looked(record, plane, 2 * SUMMARY_COLUMNS - len(phases))
    return phases + [(f"“{word}”, token {step + 1}", step, step + 1) for step, word in words]


def summary_facts(
    spans: Sequence[tuple], shares_T: np.ndarray, cells_TN: np.ndarray, images: int, options: DrawingOptions
) -> list[str]:
    """What is written over the map of each span of steps: the share of the pictures, and the highest cell."""
    relative, unit = options.baseline == "relative", f" {BASELINES[options.baseline][1]}" * (options.baseline != "off")
    tops = [np.nan_to_num(cells_TN[start:end].mean(axis=0)).max(initial=0) for _, start, end in spans]
    looked = [f"{shares_T[start:end].mean():.1%} on the picture{'s' * (images > 1)}" for _, start, end in spans]
    return [f"{share}, highest cell {amount_text(top, relative)}{unit}" for share, top in zip(looked, tops)]


def lengths_and_fonts(options: DrawingOptions) -> tuple[Callable[[float], int], list[FontSet]]:
    """What gives the pixels of a length in a picture of the default width, and the fonts of text, titles, labels."""

    def px(length: float) -> int:
        return max(round(length * options.frame_size[0] / DEFAULT_FRAME_SIZE[0]), 1)

    return px, [FontSet(px(size), options.font_path) for size in (FONT_TEXT, FONT_TITLE, FONT_LABEL)]


def answer_values(
    record: AttentionRecord, values_T: np.ndarray, fonts: FontSet, width: int
) -> tuple[TextLayout, np.ndarray]:
    """The answer laid out, and (pieces,) the highest value of each piece's tokens, 1 for the highest of all."""
    pieces = text_pieces(record, record.prompt_length)
    first = np.array([piece.start - record.prompt_length for piece in pieces])
    return layout_text(pieces, fonts, width), np.maximum.reduceat(values_T, first) / max(values_T.max(), TINY)


def draw_summary(
    record: AttentionRecord, images: Sequence[Image.Image], plane: int, options: DrawingOptions | None = None,
    as_shapes: bool = False,
) -> Image.Image | VectorPen:  # fmt: skip
    """One picture of a whole response, as wide as a frame: its text, where its phases and some of its words looked.

    The text is coloured by the share of each token's attention that lies on the pictures. as_shapes: for an SVG or PDF.
    """
    options = options or DrawingOptions()
    width, (px, (text_fonts, title_fonts, fonts)) = options.frame_size[0], lengths_and_fonts(options)
    margin, colormap, shown = px(MARGIN), colour_map(options.colormap), shown_rows(record, plane, *options.map)
    shares_T, spans = image_shares(record, plane), summary_spans(record, plane)
    text, values = answer_values(record, shares_T, text_fonts, width - 2 * margin)
    tile = (width - margin) // SUMMARY_COLUMNS - margin
    image = layout_images(record, images, tile, tile * 3 // 4, fonts, shown.sinks, options.picture)
    cells_TN = image.cell_weights(shown.rows, shown.sinks)
    notes = [*map_notes(record, plane, options, shown), "each map below goes up to its own highest cell"]
    notes = wrapped(notes, fonts, width - 2 * margin)
    facts = [wrapped([fact], fonts, tile) for fact in summary_facts(spans, shares_T, cells_TN, len(images), options)]
    y_heat = px(60) + (max(map(len, facts)) - 1) * px(NOTES)
    tile_height = max(top + high for _, top, _, high in image.places) + y_heat + px(40)
    y_text = margin + px(100) + len(notes) * px(NOTES)
    y_maps = y_text + px(40) + len(text.ink)
    size = width, y_maps + -(-len(spans) // SUMMARY_COLUMNS) * tile_height
    canvas = Image.new("RGB", size, PAPER)
    pen: AnyPen = VectorPen(*size) if as_shapes else Pen(canvas)

    pen.text((margin, margin + px(30)), plane_title(record, plane), title_fonts)
    caption = f"each token coloured by its attention on the picture{'s' * (len(images) > 1)}: 0% "
    x = round(pen.text((margin, margin + px(74)), caption, fonts))
    shades = text_colours(np.linspace(0, 1, px(220)), colormap, options.text_style)[options.text_style == "glyph"]
    pen.picture(colour_bar(shades, px(20)), (x, margin + px(58)))
    pen.text((x + px(230), margin + px(74)), f"{shares_T.max():.1%}", fonts)
    draw_lines(pen, notes, (margin, margin + px(74 + NOTES)), px(NOTES), fonts)
    put_text(pen, (margin, y_text), text, values, None, len(text.ink), colormap, options.text_style, 1)
    for number, (name, start, end) in enumerate(spans):
        row, column = divmod(number, SUMMARY_COLUMNS)
        x, y = margin + column * (tile + margin), y_maps + row * tile_height
        pen.text((x, y + px(22)), name, fonts)
        draw_lines(pen, facts[number], (x, y + px(48)), px(NOTES), fonts, MUTED)
        cells = cells_TN[start:end].mean(axis=0)
        scaled = np.clip(cells / max(np.nan_to_num(cells).max(initial=0), TINY), 0, 1) ** options.power
        if as_shapes:
            draw_heat_by_pen(pen, (x, y + y_heat), image, scaled, colormap, 1, fonts)
        else:
            heat = draw_heat(image, scaled, colormap)
            pen.picture(heat.crop((0, 0, tile, min(tile_height - y_heat, heat.height))), (x, y + y_heat))
    return pen if as_shapes else canvas
