"""The colours of the page as tables, made by the functions that colour the video."""

from __future__ import annotations

import base64

import numpy as np

from attention_heatmap.drawing.colour import (
    CELL_ALPHA,
    COLORMAPS,
    CURRENT_TOKEN,
    GLYPH_LUMINANCE,
    GROUND_LUMINANCE,
    INK,
    MUTED,
    PAPER,
    SPECIAL_ALPHA,
    TEXT_ALPHA,
    Colormap,
    blend,
    opacity,
    text_colours,
    with_luminance,
)
from attention_heatmap.drawing.options import DrawingOptions

LEVELS = 128  # colours of a table
DARK_PAPER, DARK_INK = (21, 23, 27), (232, 234, 238)  # of the page on a dark screen
# Luminance there of coloured grounds at most, of coloured glyphs at least: a contrast of 4.5:1.
DARK_GROUNDS, DARK_GLYPHS = 0.14, 0.23
TWO_SIDED = ((178, 88, 6), (244, 240, 232), (45, 80, 160))  # below, alike, above: told apart by any colour vision


def _table(colours: np.ndarray) -> str:
    """Colours, or colours and an opacity 0..1, as base64 of bytes."""
    return base64.b64encode(np.round(colours).astype(np.uint8).tobytes()).decode()


def page_colours(options: DrawingOptions) -> dict:
    """Tables of LEVELS colours of each map, from low to high weights, made by the functions that draw the video."""
    own = {"own": options.colormap} if callable(options.colormap) else {}
    maps = own | COLORMAPS
    return {
        "levels": LEVELS, "maps": {name: _colour_tables(colormap) for name, colormap in maps.items()},
        "difference": _two_sided_tables(),
        "fixed": {"current": CURRENT_TOKEN, "ink": INK, "muted": MUTED, "paper": PAPER},
        "dark": {"ink": DARK_INK, "paper": DARK_PAPER}, "special": SPECIAL_ALPHA,
    }  # fmt: skip


def _colour_tables(colormap: Colormap) -> dict:
    """Of one map: RGBA of cells; grounds and glyphs of the text, on light and on dark paper."""
    scale = np.linspace(0, 1, LEVELS)
    shades, cover = np.asarray(colormap(scale), float), opacity(scale, CELL_ALPHA)
    tint, glyph = text_colours(scale, colormap, "tint"), text_colours(scale, colormap, "glyph")
    paper = np.array(DARK_PAPER, float)
    dark = with_luminance(blend(paper, shades, opacity(scale, TEXT_ALPHA)[:, None]), most=DARK_GROUNDS)
    return {
        "cells": _table(np.column_stack([shades, 255 * cover])), "ground": _table(tint[0]), "glyph": _table(glyph[1]),
        "darkGround": _table(dark), "darkGlyph": _table(with_luminance(shades, least=DARK_GLYPHS)),
    }  # fmt: skip


def _two_sided_tables() -> dict:
    """The same of a difference, from the most below to the most above; what is alike has no tint."""
    scale = np.linspace(-1, 1, LEVELS)
    shades = np.stack([np.interp(scale, (-1, 0, 1), channel) for channel in zip(*TWO_SIDED)], axis=-1)
    strong = np.array([TWO_SIDED[0] if value < 0 else TWO_SIDED[2] for value in scale], float)
    cover = np.abs(scale) * TEXT_ALPHA[1]
    light = with_luminance(blend(255.0, strong, cover[:, None]), least=GROUND_LUMINANCE)
    dark = with_luminance(blend(np.array(DARK_PAPER, float), strong, cover[:, None]), most=DARK_GROUNDS)
    return {
        "cells": _table(np.column_stack([strong, 255 * cover**0.7])), "ground": _table(light),
        "glyph": _table(with_luminance(shades, most=GLYPH_LUMINANCE)), "darkGround": _table(dark),
        "darkGlyph": _table(with_luminance(shades, least=DARK_GLYPHS)),
    }  # fmt: skip
