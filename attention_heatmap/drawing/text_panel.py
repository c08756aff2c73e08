"""The text panel of one step."""

from __future__ import annotations

import numpy as np
from PIL import Image

from attention_heatmap.drawing.colour import (
    CURRENT_TOKEN,
    MUTED,
    PAPER,
    SPECIAL_ALPHA,
    Colormap,
    blend,
    coloured,
    pixel_words,
    red_to_green,
    text_colours,
)
from attention_heatmap.drawing.text_layout import INK_LEVELS, TextLayout

CURRENT_ALPHA = 0.12  # of the blue behind the current token where glyphs are coloured
TEXT_LEVELS = 127  # steps of the colour scale


def visualize_attention_step(
    layout: TextLayout,
    values: np.ndarray,
    current: int | None,
    height: int,
    colormap: Colormap = red_to_green,
    text_style: str = "tint",
) -> Image.Image:
    """Draw the text panel of one step: the function to edit, or to pass a `colormap` to, for another style.

    layout: the text, from `layout_text`.
    values: (pieces,) float, the weight of each piece on the scale 0..1 (clipped); NaN: left out, on white.
    current: number of the piece that is being generated: blue; what comes after it is not shown yet. None: all is.
    height: pixels of the panel; the text scrolls by lines so that the current piece is always in view.
    text_style: "tint" colours the ground of dark text, "glyph" the text itself on white.
    Returns an RGB image of that height, as wide as the layout.
    """
    # A piece becomes a level, a level has a ground and a glyph colour: text tokens, special ones, white, blue.
    paper, blue, plain = 2 * TEXT_LEVELS, 2 * TEXT_LEVELS + 1, 2 * TEXT_LEVELS + 2
    shades, inks = text_colours(np.linspace(0, 1, TEXT_LEVELS), colormap, text_style)
    tint = text_style == "tint"
    faded = blend(np.array(MUTED), inks, 0 if tint else SPECIAL_ALPHA)
    current_colours = np.array([CURRENT_TOKEN, PAPER] if tint else [PAPER, CURRENT_TOKEN], float)
    current_colours[0] = current_colours[0] if tint else blend(current_colours[0], current_colours[1], CURRENT_ALPHA)
    grounds = np.concatenate([shades, blend(255, shades, SPECIAL_ALPHA), [PAPER, current_colours[0], PAPER]])
    glyphs = np.concatenate([inks, faded, [PAPER, current_colours[1], MUTED]])
    levels = np.round(np.clip(np.nan_to_num(values), 0, 1) * (TEXT_LEVELS - 1)).astype(np.uint16)
    levels += TEXT_LEVELS * np.array([piece.kind == "special" for piece in layout.pieces], np.uint16)
    levels[np.isnan(values)] = plain
    last = len(levels) - 1 if current is None else current
    levels[last + 1 :] = paper
    if current is not None:
        levels[current] = blue
    # Glyphs reach into the white round their token: there the ground is white and the glyph colour the token's.
    grounds = np.concatenate([grounds, np.full_like(grounds, 255)])
    colours = blend(grounds[:, None], np.tile(glyphs, (2, 1))[:, None], np.linspace(0, 1, INK_LEVELS)[:, None])
    levels = np.concatenate([[paper], levels, levels + len(glyphs)])
    words = pixel_words(colours.reshape(-1, 3)).reshape(-1, INK_LEVELS)[levels]

    visible_lines = max(height // layout.line_height, 1)
    last_line = int(layout.last_line[last])
    first_line = max(last_line + 1 - visible_lines, 0)
    rows = slice(first_line * layout.line_height, (last_line + 1) * layout.line_height)
    panel = Image.new("RGB", (layout.ink.shape[1], height), PAPER)
    panel.paste(coloured(layout.entries[rows], words))
    return panel
