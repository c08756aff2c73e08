"""What changed between two records of the same tokens, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from attention_heatmap.compare import Comparison
from attention_heatmap.drawing.colour import CELL_ALPHA, MUTED, PAPER, colour_map, opacity, purple_to_green
from attention_heatmap.drawing.fonts import FONT_LABEL, FONT_TEXT, FONT_TITLE, FontSet, cut_to, wrapped
from attention_heatmap.drawing.image_panel import ImageLayout, draw_heat, layout_images, painted
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions
from attention_heatmap.drawing.pen import Pen, draw_lines
from attention_heatmap.drawing.text import text_pieces
from attention_heatmap.drawing.text_layout import layout_text
from attention_heatmap.drawing.text_panel import visualize_attention_step
from attention_heatmap.maps import TINY

_TOKENS = 6  # whose maps are drawn, two in a row
_MARGIN, _GAP, _LINE, _TITLE = 28, 12, 28, 40  # pixels in a picture 1920 wide


def draw_changes(
    comparison: Comparison, images: Sequence[Image.Image], names: tuple[str, str], options: DrawingOptions | None = None
) -> Image.Image:
    """The answer, each token coloured by how far its two maps lie apart, and the maps of those that changed most.

    names: what the two records are called. The third map of each token is the difference of the two: purple where the
    first looked more, green where the second did.
    """
    options = options or DrawingOptions()
    width = options.frame_size[0]
    px = lambda length: max(round(length * width / DEFAULT_FRAME_SIZE[0]), 1)  # noqa: E731
    text_fonts, title_fonts, fonts = (FontSet(px(n), options.font_path) for n in (FONT_TEXT, FONT_TITLE, FONT_LABEL))
    margin, line, inside = px(_MARGIN), px(_LINE), width - 2 * px(_MARGIN)
    record = comparison.common_records()[0]
    written = _answer(comparison, text_fonts, inside, options)
    title = wrapped([f"{names[0]} and {names[1]}: {record.plane_name(0)}"], title_fonts, inside)
    notes = wrapped([*_notes(comparison, names), *(_fact(row, names) for row in comparison.phases())], fonts, inside)
    changed = comparison.most_changed(_TOKENS)
    tile = (inside - 5 * px(_GAP) - margin) // 6
    layout = layout_images(record, images, tile, tile * 3 // 4, fonts, None, options.picture)
    high = max(y + height for _, y, _, height in layout.places)
    y_notes = margin + px(70) + (len(title) - 1) * px(_TITLE)
    top = y_notes + px(2) + len(notes) * line
    row = high + 3 * line + margin
    canvas = Image.new("RGB", (width, top + written.height + margin + -(-len(changed) // 2) * row), PAPER)
    pen = Pen(canvas)
    draw_lines(pen, title, (margin, margin + px(30)), px(_TITLE), title_fonts)
    draw_lines(pen, notes, (margin, y_notes), line, fonts)
    pen.picture(written, (margin, top))
    for number, (step, token, distance) in enumerate(changed):
        x = margin + (number % 2) * (3 * (tile + px(_GAP)) + margin)
        y = top + written.height + margin + (number // 2) * row
        what = f"token {step + 1} “{token.strip()}”, distance {distance:.2f}"
        pen.text((x, y + line // 2), cut_to(what, fonts, 3 * tile), fonts)
        for place, (name, fact, picture) in enumerate(_maps(comparison, layout, step, names, options)):
            at = x + place * (tile + px(_GAP)), y + 3 * line
            said = [cut_to(words, fonts, tile) for words in (name, fact)]
            draw_lines(pen, said, (at[0], at[1] - line - px(8)), line, fonts, MUTED)
            pen.picture(picture.crop((0, 0, tile, high)), at)
    return canvas


def _notes(comparison: Comparison, names: tuple[str, str]) -> list[str]:
    """What the colours of the text and of the differences mean."""
    return [
        "each token coloured by how far its two maps lie apart (Jensen-Shannon distance): from 0 to "
        f"{comparison.distances.max():.2f}",
        f"difference: green where {names[1]} looks more, purple where {names[0]} does",
    ]


def _answer(comparison: Comparison, fonts: FontSet, width: int, options: DrawingOptions) -> Image.Image:
    """The text of the answer, coloured by the distances of its tokens."""
    record = comparison.common_records()[0]
    pieces = text_pieces(record, record.prompt_length)
    text = layout_text(pieces, fonts, width)
    first = np.array([piece.start - record.prompt_length for piece in pieces])
    values = np.maximum.reduceat(comparison.distances, first) / max(comparison.distances.max(), TINY)
    colormap = colour_map(options.colormap)
    return visualize_attention_step(text, values, None, len(text.ink), colormap, options.text_style)


def _maps(
    comparison: Comparison, layout: ImageLayout, step: int, names: tuple[str, str], options: DrawingOptions
) -> list[tuple[str, str, Image.Image]]:
    """(name, fact, picture) of a step: both maps, each up to its own highest cell, and their difference."""
    colormap = colour_map(options.colormap)
    both = [weights[step] for weights in comparison.weights]
    ends = [max(float(weights.max(initial=0)), TINY) for weights in both]
    shares = [share[step] for share in comparison.shares]
    drawn = [
        (name, f"{share:.1%} on the picture", draw_heat(layout, weights / end, colormap))
        for name, share, weights, end in zip(names, shares, both, ends)
    ]
    change = both[1] - both[0]
    end = max(float(np.abs(change).max(initial=0)), TINY)
    return [*drawn, ("difference", f"up to {end:.2%}", _difference(layout, change / end))]


def _difference(layout: ImageLayout, change: np.ndarray) -> Image.Image:
    """The pictures under (cells,) differences of -1..1: those of 0 hardly tinted, those of either end alike."""
    panel = Image.fromarray(layout.picture)
    heat = painted(layout, purple_to_green((change + 1) / 2), opacity(np.abs(change), CELL_ALPHA))
    panel.paste(heat, (0, layout.cell_rows.start), heat)
    return panel


def _fact(row: dict, names: tuple[str, str]) -> str:
    """A phase's figures in words."""
    return (
        f"{row['phase']}, {row['steps']} steps: {row['image_share_a']:.1%} of the attention on the pictures in "
        f"{names[0]}, {row['image_share_b']:.1%} in {names[1]}; the maps lie {row['distance']:.2f} apart"
    )
