"""The colours of the page as tables, made by the functions that colour the video."""

import base64

import numpy as np

from attention_heatmap.drawing import colour
from attention_heatmap.drawing.colour import CELL_ALPHA, TEXT_ALPHA, blend, opacity, with_luminance
from attention_heatmap.drawing.options import DrawingOptions

LEVELS = 65  # colours of a table; odd, so that a difference of nothing has one of its own
DARK_PAPER, DARK_INK = (21, 23, 27), (232, 234, 238)  # of the page on a dark screen
# Luminance there of coloured grounds at most, of coloured glyphs at least: a contrast of 4.5:1.
DARK_GROUNDS, DARK_GLYPHS = 0.14, 0.23
STRENGTHS = np.linspace(colour.LEAST_STRENGTH, 1, 6)  # of the tint; it follows the share of the attention shown


def page_colours(options: DrawingOptions) -> dict:
    """Tables of colours of each map, made by the functions that draw the video: strength by strength, low to high."""
    given = options.colormap
    maps = {given if isinstance(given, str) else "own": colour.colour_map(given)} | colour.COLORMAPS
    return {
        "levels": LEVELS, "strengths": STRENGTHS.tolist(),
        "maps": {name: _tables([_shades(colormap, s) for s in STRENGTHS]) for name, colormap in maps.items()},
        "difference": _tables([_two_sided(s) for s in STRENGTHS]),
        "fixed": {"current": colour.CURRENT_TOKEN, "ink": colour.INK, "muted": colour.MUTED, "paper": colour.PAPER},
        "dark": {"ink": DARK_INK, "paper": DARK_PAPER}, "special": colour.SPECIAL_ALPHA,
    }  # fmt: skip


def _tables(found: list[dict[str, np.ndarray]]) -> dict[str, str]:
    """Tables as base64 of bytes, (strengths, levels, channels)."""
    whole = {kind: np.stack([tables[kind] for tables in found]) for kind in found[0]}
    return {kind: base64.b64encode(np.round(t).astype(np.uint8).tobytes()).decode() for kind, t in whole.items()}


def _shades(colormap: colour.Colormap, strength: float) -> dict[str, np.ndarray]:
    """Of one map: RGBA of cells; RGB of grounds and glyphs of the text, on light and on dark paper."""
    scale = np.linspace(0, 1, LEVELS)
    shades, cover = np.asarray(colormap(scale), float), opacity(scale, CELL_ALPHA, strength)
    grounds, glyphs = (colour.text_colours(scale, colormap, style, strength) for style in ("tint", "glyph"))
    return {
        "cells": np.column_stack([shades, 255 * cover]), "ground": grounds[0], "glyph": glyphs[1],
        **_at_night(shades, opacity(scale, TEXT_ALPHA, strength)),
    }  # fmt: skip


def _two_sided(strength: float) -> dict[str, np.ndarray]:
    """The same of a difference, from the most below to the most above; what is alike has no tint."""
    scale = np.linspace(0, 1, LEVELS)
    strong = colour.purple_to_green(np.round(scale))  # the opacity alone tells how far
    cells, text = (np.abs(2 * scale - 1) * high * strength for _, high in (CELL_ALPHA, TEXT_ALPHA))
    light, glyphs = blend(255.0, strong, text[:, None]), colour.purple_to_green(scale)
    return {
        "cells": np.column_stack([strong, 255 * cells]), "ground": with_luminance(light, least=colour.GROUND_LUMINANCE),
        "glyph": with_luminance(glyphs, most=colour.GLYPH_LUMINANCE), **_at_night(strong, text),
    }  # fmt: skip


def _at_night(shades: np.ndarray, cover: np.ndarray) -> dict[str, np.ndarray]:
    """Grounds and glyphs of the text on dark paper."""
    grounds = blend(np.array(DARK_PAPER, float), shades, cover[:, None])
    return {
        "darkGround": with_luminance(grounds, most=DARK_GROUNDS),
        "darkGlyph": with_luminance(shades, least=DARK_GLYPHS),
    }
