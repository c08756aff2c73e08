"""The text panel of one step."""

from __future__ import annotations

from itertools import groupby
from typing import Any

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
from attention_heatmap.drawing.fonts import NEWLINE_MARK
from attention_heatmap.drawing.pen import AnyPen, VectorPen
from attention_heatmap.drawing.text_layout import INK_LEVELS, TextLayout

CURRENT_ALPHA = 0.12  # of the blue behind the current token where glyphs are coloured
TEXT_LEVELS = 32  # steps of the colour scale: what hardly changes from frame to frame does not change at all
_SINGLE = range(3)  # levels that are no weights: not there yet, the current token, left out


def visualize_attention_step(
    layout: TextLayout,
    values: np.ndarray,
    current: int | None,
    height: int,
    colormap: Colormap = red_to_green,
    text_style: str = "tint",
    strength: float = 1,
) -> Image.Image:
    """Draw the text panel of one step: the function to edit, or to pass a `colormap` to, for another style.

    layout: the text, from `layout_text`.
    values: (pieces,) float, the weight of each piece on the scale 0..1 (clipped); NaN: left out, on white.
    current: number of the piece that is being generated: blue; what comes after it is not shown yet. None: all is.
    height: pixels of the panel; the text scrolls by lines so that the current piece is always in view.
    text_style: "tint" colours the ground of dark text, "glyph" the text itself on white.
    strength: 0..1, how strong the tint of the highest weights is.
    Returns an RGB image of that height, as wide as the layout.
    """
    grounds, glyphs, levels = piece_colours(layout, values, current, colormap, text_style, strength)
    paper = len(glyphs) - len(_SINGLE)
    # Glyphs reach into the white round their token: there the ground is white and the glyph colour the token's.
    grounds = np.concatenate([grounds, np.full_like(grounds, 255)])
    colours = blend(grounds[:, None], np.tile(glyphs, (2, 1))[:, None], np.linspace(0, 1, INK_LEVELS)[:, None])
    levels = np.concatenate([[paper], levels, levels + len(glyphs)])
    words = pixel_words(colours.reshape(-1, 3)).reshape(-1, INK_LEVELS)[levels]
    panel = Image.new("RGB", (layout.ink.shape[1], height), PAPER)
    panel.paste(coloured(layout.entries(*layout.visible(current, height)), words))
    return panel


def piece_colours(
    layout: TextLayout, values: np.ndarray, current: int | None, colormap: Colormap, text_style: str, strength: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((levels, 3), (levels, 3), (pieces,)) RGB of grounds and glyphs of each level, and the level of each piece."""
    # A piece becomes a level, a level has a ground and a glyph colour: text tokens, special ones, white, blue.
    paper, blue, plain = (2 * TEXT_LEVELS + n for n in _SINGLE)
    shades, inks = text_colours(np.linspace(0, 1, TEXT_LEVELS), colormap, text_style, strength)
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
    return grounds, glyphs, levels


def put_text(
    pen: AnyPen, at: tuple[int, int], layout: TextLayout, values: np.ndarray, current: int | None, *look: Any
) -> None:
    """The panel of a step at a point, by any pen. look: height, colormap, text_style, strength."""
    if isinstance(pen, VectorPen):
        draw_text(pen, at, layout, values, current, *look)
    else:
        pen.picture(visualize_attention_step(layout, values, current, *look), at)


def draw_text(
    pen: VectorPen, at: tuple[int, int], layout: TextLayout, values: np.ndarray, current: int | None, height: int,
    colormap: Colormap, text_style: str, strength: float,
) -> None:  # fmt: skip
    """The same panel by a pen: a box for each ground, and text."""
    grounds, glyphs, levels = piece_colours(layout, values, current, colormap, text_style, strength)
    first, end = layout.visible(current, height)
    shown = len(levels) if current is None else current + 1
    for unit in (unit for unit in layout.written if first <= unit.line < end):
        top = at[1] + (unit.line - first) * layout.line_height
        parts = [part for part in unit.parts() if part[0].piece < shown]
        for fragment, left, right in parts:
            box = (at[0] + left, top + layout.gap, at[0] + right - 1, top + layout.line_height - layout.gap)
            chip = layout.pieces[fragment.piece].kind == "image"
            pen.box(box, grounds[levels[fragment.piece]], MUTED if chip else None, radius=6 if chip else 0)
        for _, same in groupby(parts, key=lambda part: part[0].piece == current):
            same = list(same)
            text = "".join(fragment.text for fragment, _, _ in same)
            x = at[0] + min(left for _, left, _ in same)
            if layout.pieces[same[0][0].piece].kind == "image":
                x, text = x + (same[0][0].width - layout.fonts.width(text.strip("[]"))) / 2, text.strip("[]")
            text = NEWLINE_MARK if "\n" in text else text
            pen.text((x, top + layout.base), text, layout.fonts, glyphs[levels[same[0][0].piece]])
