"""Colours, colour maps, opacities, and the scale that a weight is drawn on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.log import one_line

# Colours, RGB 0..255. Dark text on every tint of RED_TO_GREEN mixed as below keeps a contrast above 4.5:1.
RED_TO_GREEN = ((214, 47, 39), (250, 208, 84), (26, 152, 80))  # low, middle, high
BLUE_TO_YELLOW = ((38, 66, 122), (146, 150, 138), (253, 231, 55))  # the same for colour-blind viewers, after cividis
PURPLE_TO_GREEN = ((118, 42, 131), (244, 244, 244), (27, 120, 55))  # of differences, after ColorBrewer's PRGn
LUMINANCE = (0.2126, 0.7152, 0.0722)  # parts of linear red, green and blue (WCAG 2)
# Luminance of what is coloured by any map: grounds at least, glyphs on white at most, for a contrast of 4.5:1.
GROUND_LUMINANCE, GLYPH_LUMINANCE = 0.23, 0.175
# Opacity of a tint at the low and at the high end: what is not looked at is nearly as it was, what is stands out.
TEXT_ALPHA, CELL_ALPHA = (0.03, 0.85), (0.03, 0.9)
_TEXT_STEEPNESS = 1.3  # power of the weight that the opacity of a text's ground follows: most of it stays white
LOG_DECADES = 2.5  # of the scale "log": a weight of a 300th of the highest, and below, is at its low end
LEAST_STRENGTH = 0.62  # of the high end, where a frame has hardly any attention: weak, and still seen at a glance
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


def opacity(values: np.ndarray, alpha_range: tuple[float, float], strength: float = 1) -> np.ndarray:
    """Opacity 0..1 of the tint of weights on the scale 0..1: it grows with the weight, up to a part of the high end."""
    (low, high), steepness = alpha_range, _TEXT_STEEPNESS if alpha_range == TEXT_ALPHA else 1
    return low + (high * strength - low) * np.clip(values, 0, 1) ** steepness


def scaled(parts: np.ndarray, scale: str, power: float) -> np.ndarray:
    """Weights as parts of the one at the scale's end, clipped to 0..1, to where they are on the colours, 0..1.

    scale: "frame" or "video", by the power; "log", by the logarithm, over LOG_DECADES powers of ten.
    """
    parts = np.clip(parts, 0, 1)
    if scale != "log":
        return parts**power
    return np.clip(1 + np.log10(np.maximum(parts, np.finfo(np.float32).tiny)) / LOG_DECADES, 0, 1) ** power


def strengths(shares_T: np.ndarray, scale: str) -> np.ndarray:
    """(T,) LEAST_STRENGTH..1, how strong each frame's tint is: it follows the share of the attention that is shown.

    On a scale for all frames the same weight looks the same in each: there all are 1.
    """
    if scale != "frame":
        return np.ones(len(shares_T))
    parts = np.sqrt(shares_T / max(shares_T.max(initial=0), np.finfo(float).tiny))
    return LEAST_STRENGTH + (1 - LEAST_STRENGTH) * parts


def tinted(values: np.ndarray, colormap: Colormap, alpha_range: tuple[float, float], strength: float = 1) -> np.ndarray:
    """(n, 3) RGB 0..255 of weights on the scale 0..1, tinted over white."""
    return 255 - (255 - colormap(np.clip(values, 0, 1))) * opacity(values, alpha_range, strength)[:, None]


def text_colours(
    values: np.ndarray, colormap: Colormap, text_style: str, strength: float = 1
) -> tuple[np.ndarray, np.ndarray]:
    """((n, 3), (n, 3)) RGB 0..255 of the grounds and the glyphs of weights, with a contrast of 4.5:1 for any map."""
    if text_style == "glyph":
        return np.full((len(values), 3), 255.0), with_luminance(colormap(values), most=GLYPH_LUMINANCE)
    grounds = with_luminance(tinted(values, colormap, TEXT_ALPHA, strength), least=GROUND_LUMINANCE)
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


def scale_ends(weights: np.ndarray, quantile: float, scale: str) -> np.ndarray:
    """(steps,) the weight drawn as the highest in each frame: a quantile of the weights shown, above 0.

    weights: (steps, ...). scale: "frame", of each frame's weights, or "video" or "log", of all.
    """

    def end(part: np.ndarray) -> float:
        shown = part[part > 0]
        return float(np.quantile(shown, quantile, method="higher")) if shown.size else 1.0

    return np.array([end(row) for row in weights]) if scale == "frame" else np.full(len(weights), end(weights))


def colour_map(given: str | Colormap) -> Colormap:
    """The function behind a colour map: (n,) weights in 0..1 to (n, 3) RGB floats in 0..255.

    given: one of COLORMAPS, a name that matplotlib knows where it is installed, or a function that gives RGB or RGBA,
    as floats in 0..1 or as numbers in 0..255; of RGBA the opacity is left out. Raises ValueError for any other.
    """
    if isinstance(given, str) and given in COLORMAPS:
        return COLORMAPS[given]
    function = given if callable(given) else _of_matplotlib(given)
    try:
        sample = np.asarray(function(np.linspace(0, 1, 64)))
        good = sample.shape in ((64, 3), (64, 4)) and sample.dtype.kind in "fiu" and np.isfinite(sample).all()
        if not good or sample.min() < 0 or sample.max() > 255:
            what = "of values outside 0..255" if sample.shape[1:] in ((3,), (4,)) else f"of shape {sample.shape}"
            raise ValueError(f"it makes of 64 weights an array {what}; expected (64, 3), RGB of each")
    except Exception as error:  # whatever a function of the user's raises
        raise ValueError(f"colormap {given!r} cannot be used: {one_line(error)}") from error
    whole = 255 if sample.dtype.kind == "f" and sample.max() <= 1 else 1
    return lambda weights: np.asarray(function(weights), float)[..., :3] * whole


def _of_matplotlib(name: Any) -> Colormap:
    """The colour map of matplotlib of a name. Raises ValueError where there is none."""
    wrong = f"colormap is {name!r}; expected {' or '.join(COLORMAPS)}, a"
    try:
        from matplotlib import colormaps
    except ImportError:
        raise ValueError(f"{wrong} function, or, with matplotlib installed, a name of its") from None
    if not isinstance(name, str) or name not in colormaps:
        raise ValueError(f"{wrong} name that matplotlib knows, or a function")
    return colormaps[name]
