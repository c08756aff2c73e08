"""Colours: readable whatever the map, scales, strengths, maps of the user's own."""

import sys

import numpy as np
import pytest
from drawn import contrast
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_heatmap.drawing import colour
from attention_heatmap.drawing.colour import (
    COLORMAPS,
    CURRENT_TOKEN,
    LEAST_STRENGTH,
    LOG_DECADES,
    MUTED,
    PAPER,
    SPECIAL_ALPHA,
    TEXT_ALPHA,
    blend,
    blue_to_yellow,
    colour_map,
    purple_to_green,
    red_to_green,
    scale_ends,
    scaled,
    strengths,
    text_colours,
    tinted,
)
from attention_heatmap.drawing.text_panel import CURRENT_ALPHA

COLOUR = st.tuples(*[st.integers(0, 255)] * 3)
SCALE = np.linspace(0, 1, 21)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(COLOUR, min_size=2, max_size=4), st.sampled_from(["tint", "glyph"]), st.floats(LEAST_STRENGTH, 1))
def test_all_text_is_readable_on_its_ground_with_any_colour_map(stops, text_style, strength):
    grounds, glyphs = text_colours(SCALE, lambda values: colour._between(stops, values), text_style, strength)
    for ground, glyph in zip(grounds, glyphs):
        assert contrast(np.round(ground), np.round(glyph)) >= 4.5


@pytest.mark.parametrize("colormap", COLORMAPS.values())
def test_special_tokens_and_the_current_one_are_readable(colormap):
    for ground in text_colours(SCALE, colormap, "tint")[0]:
        assert contrast(MUTED, blend(255, ground, SPECIAL_ALPHA)) >= 4.5
    for glyph in text_colours(SCALE, colormap, "glyph")[1]:
        assert contrast(PAPER, blend(np.array(MUTED), glyph, SPECIAL_ALPHA)) >= 4.5
    assert contrast(PAPER, CURRENT_TOKEN) >= 4.5 and contrast(PAPER, MUTED) >= 4.5
    assert contrast(255 - (255 - np.array(CURRENT_TOKEN)) * CURRENT_ALPHA, CURRENT_TOKEN) >= 4.5


@pytest.mark.parametrize("colormap", COLORMAPS.values())
def test_the_maps_own_colours_are_left_as_they_are(colormap):
    expected = tinted(SCALE, colormap, TEXT_ALPHA)
    np.testing.assert_allclose(text_colours(SCALE, colormap, "tint")[0], expected, atol=0.5)


def test_the_colour_map_runs_from_red_to_green():
    low, middle, high = red_to_green(np.array([0.0, 0.5, 1.0]))
    assert low[0] > 2 * low[1] and high[1] > 2 * high[0] and middle.min() < 128 < middle[0]
    np.testing.assert_array_equal(red_to_green(np.array([-3.0, 7.0])), np.array([low, high]))


def test_the_second_map_is_told_apart_without_red_and_green():
    """By a deuteranope, who sees red and green as one yellow, and by lightness alone."""
    low, high = (blue_to_yellow(np.array([end]))[0] for end in (0.0, 1.0))
    assert contrast(low, high) > 4.5
    assert high[:2].mean() - high[2] > 100 and low[2] - low[:2].mean() > 50


def test_a_difference_is_purple_below_nothing_green_above_and_nearly_white_at_it():
    less, same, more = purple_to_green(np.array([0.0, 0.5, 1.0]))
    assert min(less[0], less[2]) > 2 * less[1] and more[1] > 2 * max(more[0], more[2]) and same.min() > 240


def test_a_frames_tint_is_strongest_where_most_is_looked_and_never_gone():
    found = strengths(np.array([0.0, 0.01, 0.09, 0.36]), "frame")
    assert found[0] == LEAST_STRENGTH and found[-1] == 1 and (np.diff(found) > 0).all()
    np.testing.assert_array_equal(strengths(np.zeros(3), "frame"), LEAST_STRENGTH)
    assert (tinted(np.ones(1), red_to_green, (0, 1), 0.5) > tinted(np.ones(1), red_to_green, (0, 1)))[0, 0]


def test_on_a_scale_for_all_frames_the_same_weight_looks_the_same_in_each():
    for scale in ("video", "log"):
        np.testing.assert_array_equal(strengths(np.array([0.0, 0.01, 0.36]), scale), 1)


def test_the_logarithm_spreads_small_weights_and_keeps_the_ends():
    parts = np.array([0, 10**-LOG_DECADES, 10 ** (-LOG_DECADES / 2), 1, 2])
    np.testing.assert_allclose(scaled(parts, "log", 1), [0, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(scaled(parts, "log", 2)[2], 0.25, atol=1e-6)
    np.testing.assert_allclose(scaled(np.array([-1, 0.25, 2]), "frame", 0.5), [0, 0.5, 1])
    assert np.isnan(scaled(np.array([np.nan]), "log", 1)).all()


def test_each_frame_has_its_own_scale_or_the_video_one():
    weights = np.array([[0.1, 0.5], [0.01, 0.05], [0, 0]])
    np.testing.assert_allclose(scale_ends(weights, 0.99, "frame"), [0.5, 0.05, 1])
    np.testing.assert_allclose(scale_ends(weights, 0.99, "video"), [0.5] * 3)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1, width=32) | st.just(float("nan")), min_size=1, max_size=30), st.floats(0, 1))
def test_a_scale_ends_at_a_weight_that_is_there(weights, quantile):
    (end,) = scale_ends(np.array([weights]), quantile, "frame")
    assert end > 0 and (end in np.array(weights) or not any(weight > 0 for weight in weights))


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: x, r"makes of 64 weights an array of shape \(64,\); expected \(64, 3\), RGB"),
        (lambda x: np.zeros((len(x), 2)), r"of shape \(64, 2\); expected \(64, 3\)"),
        (lambda x: np.full((len(x), 3), 300), "of values outside 0..255"),
        (lambda x: np.full((len(x), 3), np.nan), "cannot be used"),
        (lambda x: np.full((len(x), 3), "red"), "cannot be used"),
        (lambda x: 1 / 0, "cannot be used: division by zero"),
        (lambda: 1, "cannot be used: .*argument"),
    ],
)
def test_a_function_that_gives_no_colours_is_refused_in_one_line(function, message):
    with pytest.raises(ValueError, match=message) as caught:
        colour_map(function)
    assert "\n" not in str(caught.value)


def test_without_matplotlib_a_name_of_its_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="colormap is 'jet'; expected red_to_green or blue_to_yellow, a function, or,"):
        colour_map("jet")


def test_a_name_of_matplotlib_is_taken_where_it_is_installed(monkeypatch):
    module = type(sys)("matplotlib")
    module.colormaps = {"jet": lambda values: np.tile([0.0, 0.5, 1.0, 1.0], (len(values), 1))}
    monkeypatch.setitem(sys.modules, "matplotlib", module)
    np.testing.assert_allclose(colour_map("jet")(np.zeros(1)), [[0, 127.5, 255]])
    with pytest.raises(ValueError, match=r"colormap is 'jets'; expected .* a name that matplotlib knows"):
        colour_map("jets")
    assert colour_map("blue_to_yellow") is blue_to_yellow


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
