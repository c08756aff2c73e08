"""What changed between two records of the same tokens, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from attention_heatmap.compare import Comparison
from attention_heatmap.drawing.colour import CELL_ALPHA, INK, MUTED, PAPER, colour_map, opacity, purple_to_green
from attention_heatmap.drawing.fonts import FONT_LABEL, FONT_TEXT, FONT_TITLE, FontSet, draw_runs
from attention_heatmap.drawing.image_panel import ImageLayout, draw_heat, layout_images, painted
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions
from attention_heatmap.drawing.pen import Pen, draw_lines
from attention_heatmap.drawing.text import text_pieces
from attention_heatmap.drawing.text_layout import layout_text
from attention_heatmap.drawing.text_panel import visualize_attention_step
from attention_heatmap.maps import TINY

_TOKENS = 6  # whose maps are drawn, two in a row
_MARGIN, _GAP, _LINE = 28, 12, 28  # pixels in a picture 1920 wide


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
    margin, line = px(_MARGIN), px(_LINE)
    written = _answer(comparison, text_fonts, width - 2 * margin, options)
    facts = [_fact(row, names) for row in comparison.phases()]
    changed = comparison.most_changed(_TOKENS)
    tile = (width - 2 * margin - 5 * px(_GAP) - margin) // 6
    record = comparison.common_records()[0]
    layout = layout_images(record, images, tile, tile * 3 // 4, fonts, None, options.picture)
    high = max(y + height for _, y, _, height in layout.places)
    top = margin + px(100) + len(facts) * line
    rows = -(-len(changed) // 2)
    canvas = Image.new("RGB", (width, top + written.height + margin + rows * (high + 2 * line + margin)), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw_runs(draw, (margin, margin + px(30)), f"{names[0]} and {names[1]}: {record.plane_name(0)}", title_fonts, INK)
    said = "each token coloured by how far its two maps lie apart (Jensen-Shannon distance, 0 to 1)"
    draw_runs(draw, (margin, margin + px(70)), said, fonts, MUTED)
    draw_lines(Pen(canvas), facts, (margin, margin + px(70) + line), line, fonts)
    canvas.paste(written, (margin, top))
    for number, (step, token, distance) in enumerate(changed):
        x = margin + (number % 2) * (3 * (tile + px(_GAP)) + margin)
        y = top + written.height + margin + (number // 2) * (high + 2 * line + margin)
        draw_runs(draw, (x, y + line // 2), f"token {step + 1} “{token.strip()}”, distance {distance:.2f}", fonts, INK)
        for place, (title, picture) in enumerate(_maps(comparison, layout, step, names, options)):
            at = x + place * (tile + px(_GAP)), y + 2 * line
            draw_runs(draw, (at[0], at[1] - px(8)), title, fonts, MUTED)
            canvas.paste(picture.crop((0, 0, tile, high)), at)
    return canvas


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
) -> list[tuple[str, Image.Image]]:
    """(title, picture) of a step: both maps, each up to its own highest cell, and their difference."""
    colormap = colour_map(options.colormap)
    both = [weights[step] for weights in comparison.weights]
    ends = [max(float(weights.max(initial=0)), TINY) for weights in both]
    shares = [share[step] for share in comparison.shares]
    drawn = [
        (f"{name}: {share:.1%} on the picture", draw_heat(layout, weights / end, colormap))
        for name, share, weights, end in zip(names, shares, both, ends)
    ]
    change = both[1] - both[0]
    end = max(float(np.abs(change).max(initial=0)), TINY)
    return [*drawn, (f"difference, up to {end:.2%}", _difference(layout, change / end))]


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
        f"{names[0]}, "
        f"{row['image_share_b']:.1%} in {names[1]}; the maps lie {row['distance']:.2f} apart"
    )
