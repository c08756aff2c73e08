import sys
import types

import numpy as np
import pytest

from attention_heatmap.drawing.colour import (
    CELL_ALPHA,
    COLORMAPS,
    LEAST_STRENGTH,
    colour_map,
    red_to_green,
    scale_ends,
    strengths,
    text_colours,
    tinted,
)

VALUES = np.linspace(0, 1, 50)


def contrast(first, second):
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour):
        c = np.asarray(colour, float) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("style", ["tint", "glyph"])
@pytest.mark.parametrize("name", COLORMAPS)
def test_text_is_readable_on_every_colour(name, style):
    for ground, glyph in zip(*text_colours(VALUES, COLORMAPS[name], style)):
        assert contrast(ground, glyph) >= 4.45


def test_red_is_low_green_is_high_and_what_is_not_looked_at_is_nearly_white():
    low, high = red_to_green(np.array([0.0, 1.0]))
    assert low[0] > low[1] and high[1] > high[0]
    shades = tinted(VALUES, red_to_green, CELL_ALPHA)
    assert shades[0].min() > 245 and shades[-1].max() < 190
    assert text_colours(np.array([0.05]), red_to_green, "tint")[0].min() > 235


def test_weak_frames_are_weaker_and_never_below_the_least():
    strong = strengths(np.array([0.0, 0.01, 0.25, 1.0]))
    assert strong[0] == LEAST_STRENGTH and strong[-1] == 1 and (np.diff(strong) > 0).all()


def test_a_frames_own_scale_ends_at_its_highest_weight_and_the_videos_is_one():
    weights = np.array([[0.1, 0.2], [0.4, 0.8], [0, 0]])
    np.testing.assert_allclose(scale_ends(weights, 1, "frame"), [0.2, 0.8, 1])
    np.testing.assert_allclose(scale_ends(weights, 1, "video"), [0.8] * 3)


GREY = np.linspace(0, 1, 64)


@pytest.mark.parametrize(
    "function, at_one",
    [
        (lambda w: np.stack([w, w, w], -1), 255),
        (lambda w: np.stack([w, w, w, w], -1), 255),
        (lambda w: np.stack([w * 200] * 3, -1), 200),
        (lambda w: (np.stack([w] * 4, -1) * 255).astype(np.uint8), 255),
        (lambda w: np.stack([w * 120] * 3, -1).astype(int), 120),
    ],
    ids=["0..1", "RGBA", "0..255", "bytes", "whole numbers"],
)
def test_functions_may_give_floats_or_bytes_with_or_without_opacity(function, at_one):
    colours = colour_map(function)(np.array([0.0, 1.0]))
    np.testing.assert_allclose(colours, [[0] * 3, [at_one] * 3])


@pytest.mark.parametrize(
    "function",
    [
        lambda w: w,
        lambda w: np.stack([w, w], -1),
        lambda w: np.stack([w * 300] * 3, -1),
        lambda w: np.stack([w - 0.5] * 3, -1),
        lambda w: np.full((len(w), 3), np.nan),
        lambda w: 1 / 0,
        lambda w: [["red"] * 3] * len(w),
        "no such map",
        7,
    ],
)
def test_what_gives_no_colours_is_refused(function):
    with pytest.raises(ValueError, match="colormap"):
        colour_map(function)


def test_any_name_that_matplotlib_knows_is_a_colour_map(monkeypatch):
    fake = types.ModuleType("matplotlib")
    fake.colormaps = {"viridis": lambda w: np.stack([w, 1 - w, w * 0, w * 0 + 1], -1)}
    monkeypatch.setitem(sys.modules, "matplotlib", fake)
    np.testing.assert_allclose(colour_map("viridis")(np.array([1.0])), [[255, 0, 0]])
    with pytest.raises(ValueError, match="'virids'; expected red_to_green or blue_to_yellow, a name that matplotlib"):
        colour_map("virids")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="with matplotlib installed"):
        colour_map("viridis")
