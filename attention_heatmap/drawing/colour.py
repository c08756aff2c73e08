"""Colours, colour maps, opacities, and the scale that a weight is drawn on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

# Colours, RGB 0..255. Dark text on every tint of RED_TO_GREEN mixed as below keeps a contrast above 4.5:1.
RED_TO_GREEN = ((214, 47, 39), (250, 208, 84), (26, 152, 80))  # low, middle, high
BLUE_TO_YELLOW = ((38, 66, 122), (146, 150, 138), (253, 231, 55))  # the same for colour-blind viewers, after cividis
PURPLE_TO_GREEN = ((118, 42, 131), (244, 244, 244), (27, 120, 55))  # of differences, after ColorBrewer's PRGn
LUMINANCE = (0.2126, 0.7152, 0.0722)  # parts of linear red, green and blue (WCAG 2)
# Luminance of what is coloured by any map: grounds at least, glyphs on white at most, for a contrast of 4.5:1.
GROUND_LUMINANCE, GLYPH_LUMINANCE = 0.23, 0.175
# Opacity of a tint at the low and at the high end: what is looked at stands out, the rest stays readable.
TEXT_ALPHA, CELL_ALPHA = (0.28, 0.72), (0.16, 0.62)
SPECIAL_ALPHA = 0.3  # of a special token's colour, as a part of any other token's
CURRENT_TOKEN = (30, 92, 214)
PAPER = (255, 255, 255)
INK = (24, 26, 30)
MUTED = (84, 90, 100)
Colormap = Callable[[np.ndarray], np.ndarray]


def _between(stops: Sequence[tuple[int, int, int]], values: np.ndarray) -> np.ndarray:
    """Colours between evenly spaced stops."""
    values, places = np.clip(np.asarray(values, np.float32), 0, 1), np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, places, channel) for channel in zip(*stops)], axis=-1)


def red_to_green(values: np.ndarray) -> np.ndarray:
    """Colour map: values of any shape in 0..1 (clipped) to RGB floats in 0..255, with a last axis of 3."""
    return _between(RED_TO_GREEN, values)


def blue_to_yellow(values: np.ndarray) -> np.ndarray:
    """The same from dark blue to yellow: told apart by any colour vision, and in grey."""
    return _between(BLUE_TO_YELLOW, values)


def purple_to_green(values: np.ndarray) -> np.ndarray:
    """The two-sided map of a difference: 0 purple, 0.5 nearly white, 1 green."""
    return _between(PURPLE_TO_GREEN, values)


COLORMAPS = {colormap.__name__: colormap for colormap in (red_to_green, blue_to_yellow)}


def with_luminance(colours: np.ndarray, least: float = 0, most: float = 1) -> np.ndarray:
    """(n, 3) RGB 0..255, darkened or mixed with white where their WCAG luminance is not in least..most."""
    colours = np.clip(np.asarray(colours, float) / 255, 0, 1)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    light = (linear @ LUMINANCE)[:, None]
    linear = np.where(light > most, linear * most / np.maximum(light, most), linear)
    linear = np.where(light < least, 1 - (1 - linear) * (1 - least) / (1 - np.minimum(light, least)), linear)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def opacity(values: np.ndarray, alpha_range: tuple[float, float]) -> np.ndarray:
    """Opacity 0..1 of the tint of weights on the scale 0..1: it grows with the weight."""
    return alpha_range[0] + (alpha_range[1] - alpha_range[0]) * np.clip(values, 0, 1)


def tinted(values: np.ndarray, colormap: Colormap, alpha_range: tuple[float, float]) -> np.ndarray:
    """(n, 3) RGB 0..255 of weights on the scale 0..1, tinted over white."""
    return 255 - (255 - np.asarray(colormap(np.clip(values, 0, 1)))) * opacity(values, alpha_range)[:, None]


def text_colours(values: np.ndarray, colormap: Colormap, text_style: str) -> tuple[np.ndarray, np.ndarray]:
    """((n, 3), (n, 3)) RGB 0..255 of the grounds and the glyphs of weights, with a contrast of 4.5:1 for any map."""
    if text_style == "glyph":
        return np.full((len(values), 3), 255.0), with_luminance(colormap(values), most=GLYPH_LUMINANCE)
    grounds = with_luminance(tinted(values, colormap, TEXT_ALPHA), least=GROUND_LUMINANCE)
    return grounds, np.full((len(values), 3), INK, float)


def blend(under: np.ndarray, over: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Colours `over` laid on colours `under`, with an opacity `cover` of 0..1."""
    return under + (over - under) * cover


def pixel_words(colours: np.ndarray, cover: Any = 255) -> np.ndarray:
    """(n,) uint32 words, a pixel each, of (n, 3) RGB colours and (n,) covers, all 0..255."""
    words = np.empty((len(colours), 4), np.uint8)
    words[:, :3], words[:, 3] = np.round(colours), cover
    return words.view(np.uint32)[:, 0]


def coloured(entries: np.ndarray, words: np.ndarray) -> Image.Image:
    """An RGBA image from (Y, X) intp indices into a palette of words."""
    return Image.frombuffer("RGBA", entries.shape[::-1], words.take(entries), "raw", "RGBA", 0, 1)


def colour_bar(shades: np.ndarray, height: int) -> Image.Image:
    """A colour bar of (n, 3) colours, one a column of pixels."""
    return Image.fromarray(np.tile(shades.round().astype(np.uint8), (height, 1, 1)))


def weight_scale(weights: np.ndarray, quantile: float) -> float:
    """The weight that is drawn as the highest: a quantile of the weights shown, above 0."""
    shown = weights[weights > 0]
    return float(np.quantile(shown, quantile, method="higher")) if shown.size else 1.0


def check_colormap(colormap: Any) -> None:
    """Raises ValueError for what is neither the name of a colour map nor a function that gives colours."""
    if not callable(colormap) and colormap not in tuple(COLORMAPS):
        raise ValueError(f"colormap is {colormap!r}; expected {' or '.join(COLORMAPS)}, or a function")
    shape = np.shape(colormap(np.linspace(0, 1, 3))) if callable(colormap) else (3, 3)
    if shape != (3, 3):
        raise ValueError(
            f"colormap makes of 3 weights an array of shape {shape}; expected (3, 3), RGB in 0..255 of each"
        )
