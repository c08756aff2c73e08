"""What changed between two records of the same tokens, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from attention_heatmap.compare import Comparison
from attention_heatmap.drawing.colour import MUTED, PAPER, colour_map
from attention_heatmap.drawing.fonts import cut_to, wrapped
from attention_heatmap.drawing.image_panel import ImageLayout, draw_heat, layout_images, painted
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.pen import Pen, draw_lines
from attention_heatmap.drawing.summary import answer_values, lengths_and_fonts
from attention_heatmap.drawing.text_panel import visualize_attention_step
from attention_heatmap.drawing.together import difference_note, two_sided_colours
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
    options, record = options or DrawingOptions(), comparison.common_records()[0]
    px, (text_fonts, title_fonts, fonts) = lengths_and_fonts(options)
    width, margin, line, gap = options.frame_size[0], px(_MARGIN), px(_LINE), px(_GAP)
    inside = width - 2 * margin
    text, values = answer_values(record, comparison.distances, text_fonts, inside)
    look = len(text.ink), colour_map(options.colormap), options.text_style
    written = visualize_attention_step(text, values, None, *look)
    title = wrapped([f"{names[0]} and {names[1]}: {record.plane_name(0)}"], title_fonts, inside)
    scale = (
        "each token coloured by how far its two maps lie apart (Jensen-Shannon distance): from 0 to "
        f"{comparison.distances.max():.2f}"
    )
    phases = [_fact(row, names) for row in comparison.phases()]
    notes = wrapped([scale, difference_note(names), *phases], fonts, inside)
    changed = comparison.most_changed(_TOKENS)
    tile = (inside - 5 * gap - margin) // 6
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
        x = margin + (number % 2) * (3 * (tile + gap) + margin)
        y = top + written.height + margin + (number // 2) * row
        what = f"token {step + 1} “{token.strip()}”, distance {distance:.2f}"
        pen.text((x, y + line // 2), cut_to(what, fonts, 3 * tile), fonts)
        for place, (name, fact, picture) in enumerate(_maps(comparison, layout, step, names, options)):
            at = x + place * (tile + gap), y + 3 * line
            said = [cut_to(words, fonts, tile) for words in (name, fact)]
            draw_lines(pen, said, (at[0], at[1] - line - px(8)), line, fonts, MUTED)
            pen.picture(picture.crop((0, 0, tile, high)), at)
    return canvas


def _maps(
    comparison: Comparison, layout: ImageLayout, step: int, names: tuple[str, str], options: DrawingOptions
) -> list[tuple[str, str, Image.Image]]:
    """(name, fact, picture) of a step: both maps, each up to its own highest cell, and their difference."""
    both = [weights[step] for weights in comparison.weights]
    drawn = []
    for name, share, weights in zip(names, comparison.shares, both):
        heat = draw_heat(layout, weights / max(float(weights.max(initial=0)), TINY), colour_map(options.colormap))
        drawn.append((name, f"{share[step]:.1%} on the picture", heat))
    change = both[1] - both[0]
    end = max(float(np.abs(change).max(initial=0)), TINY)
    panel, heat = Image.fromarray(layout.picture), painted(layout, *two_sided_colours(change / end))
    panel.paste(heat, (0, layout.cell_rows.start), heat)
    return [*drawn, ("difference", f"up to {end:.2%}", panel)]


def _fact(row: dict, names: tuple[str, str]) -> str:
    """A phase's figures in words."""
    return (
        f"{row['phase']}, {row['steps']} steps: {row['image_share_a']:.1%} of the attention on the pictures in "
        f"{names[0]}, {row['image_share_b']:.1%} in {names[1]}; the maps lie {row['distance']:.2f} apart"
    )
