"""What is done to weights before they are drawn, and the map as an array."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import grid_boxes, make_record

from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.maps import (
    BASELINES,
    FEWEST_SINK_STEPS,
    above_baseline,
    find_sinks,
    shown_rows,
    smooth_cells,
    view_names,
)
from attention_heatmap.record import ImageTokens

WORDS = [f" w{n}" for n in range(40)]


def record_with(cells_TN, response=WORDS, **kwargs):
    """A record whose image tokens have these weights, in each layer."""
    record = make_record(["Based"], response, **kwargs)
    weights = record.weights.copy()
    weights[:, :, record.image_positions] = np.asarray(cells_TN)[:, None]
    return replace(record, weights=weights)


def moving(steps=40, cells=12, seed=0):
    """(T, N) weights: a little noise, and one cell, another at each step, that is looked at."""
    weights = np.random.default_rng(seed).uniform(0.001, 0.002, (steps, cells))
    weights[np.arange(steps), np.arange(steps) % cells] = 0.3
    return weights.astype(np.float32)


# ---- baselines ---------------------------------------------------------------------------------------


def test_a_cell_that_glows_at_every_step_is_nothing_above_its_median_and_one_that_is_looked_at_stays():
    weights = moving()
    weights[:, 5] = 0.25
    above = above_baseline(weights, "median")
    assert (above[:, 5] == 0).all() and (above >= 0).all()
    np.testing.assert_array_equal(above.argmax(axis=1)[:5], weights[:5].argmax(axis=1))
    assert above[3, 3] == pytest.approx(0.3, abs=0.002)


def test_a_neutral_prompts_weight_is_taken_off_or_divided_by():
    weights, neutral = np.array([[0.4, 0.1], [0.2, 0.3]], np.float32), np.array([0.3, 0.1], np.float32)
    np.testing.assert_allclose(above_baseline(weights, "neutral", neutral), [[0.1, 0], [0, 0.2]], atol=1e-7)
    np.testing.assert_allclose(above_baseline(weights, "relative", neutral), [[4 / 3, 1], [2 / 3, 3]], rtol=1e-6)
    assert np.isfinite(above_baseline(weights, "relative", np.zeros(2, np.float32))).all()


@pytest.mark.parametrize("baseline", ["neutral", "relative"])
def test_a_record_without_a_neutral_replay_says_what_to_do(baseline):
    with pytest.raises(ValueError, match="needs a record made with neutral_prompt; record again, or take"):
        shown_rows(make_record(["a"], ["b"]), 0, baseline, False, 0)


# ---- sinks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [[], [0], [3, 70], [5, 6, 7]])
def test_planted_sinks_are_found_and_nothing_else(planted):
    weights = moving(cells=100)
    weights[:, planted] = np.random.default_rng(1).uniform(0.05, 0.5, (40, len(planted)))
    assert np.flatnonzero(find_sinks(weights)).tolist() == planted


@pytest.mark.parametrize("part, found", [(0.5, False), (0.9, False), (1.0, True)])
def test_what_some_words_look_at_is_no_sink_however_bright(part, found):
    weights = moving(cells=100)
    weights[: round(part * 40), 50] = 0.6
    weights[round(part * 40) :, 50] = 0.001
    assert find_sinks(weights)[50] == found


def test_a_wide_glow_is_no_sink():
    weights = moving(cells=100)
    weights[:, :60] += 0.05
    assert not find_sinks(weights).any()


def test_a_short_answer_has_no_sinks_and_neither_has_a_picture_of_one_cell():
    bright = np.tile([0.001] * 99 + [0.9], (FEWEST_SINK_STEPS, 1))
    assert find_sinks(bright)[-1] and not find_sinks(bright[1:]).any()
    assert not find_sinks(np.ones((40, 1))).any() and find_sinks(np.ones((40, 0))).shape == (0,)


def test_sinks_of_the_picture_and_of_the_prompt_are_found_apart_and_their_weight_told():
    weights = moving(cells=30)
    weights[:, 7] = 0.4
    record = make_record([f"p{n}" for n in range(30)], WORDS, grids=[(5, 6)])
    rows, image = record.weights.copy(), record.image_positions
    rows[:, :, image] = weights[:, None]
    rows[:, :, 45] = 3.0
    shown = shown_rows(replace(record, weights=rows), 1, "off", True, 0)
    assert shown.sinks.nonzero()[0].tolist() == [image[7], 45]
    assert shown.left_out == pytest.approx((weights[:, 7] / weights.sum(axis=1)).mean(), rel=1e-5)
    assert (shown.rows[:, image[7]] == 0).all() and (shown.rows[:, 45] == 3).all()


# ---- smoothing ---------------------------------------------------------------------------------------


def test_smoothing_spreads_a_cell_over_its_neighbours_of_the_same_picture():
    boxes = grid_boxes(5, 5, 100, 100)
    weights = np.zeros((1, 25), np.float32)
    weights[0, 12] = 1
    smooth = smooth_cells(weights, boxes, 1.0, np.zeros(25, bool))[0].reshape(5, 5)
    assert smooth.argmax() == 12 and smooth[2, 1] == pytest.approx(smooth[1, 2], rel=1e-5) and 0 < smooth[0, 0] < 0.05
    np.testing.assert_allclose(smooth_cells(np.ones((2, 25)), boxes, 2.0, np.zeros(25, bool)), 1, rtol=1e-6)
    two = record_with(np.eye(1, 24, dtype=np.float32).repeat(40, 0), grids=[(3, 4), (3, 4)])
    shown = shown_rows(two, 0, "off", False, 1.0).rows
    assert (shown[:, two.images[0].positions] > 0).all() and (shown[:, two.images[1].positions] == 0).all()


def test_a_token_without_a_place_and_a_coarser_view_are_not_smoothed_into_others():
    boxes = np.concatenate([grid_boxes(1, 1, 100, 100), grid_boxes(4, 4, 100, 100), [[np.nan] * 4]])
    weights = np.zeros((1, 18), np.float32)
    weights[0, [0, 17]] = 1
    smooth = smooth_cells(weights, boxes.astype(np.float32), 1.0, np.zeros(len(boxes), bool))[0]
    assert smooth[0] == 1 and smooth[17] == 1 and (smooth[1:17] == 0).all()


# ---- together ----------------------------------------------------------------------------------------


def test_without_options_the_rows_are_the_records_own():
    record = make_record(["a", "b"], ["c", "d"], layers=(3, 6))
    shown = shown_rows(record, record.plane(6), *DrawingOptions().map)
    np.testing.assert_array_equal(shown.rows, record.rows(record.plane(6)))
    assert not shown.sinks.any() and shown.left_out == 0 and view_names("off", False, 0) == ""


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(list(BASELINES)),
    st.booleans(),
    st.sampled_from([0, 0.5, 2]),
    st.integers(1, 30),
    st.integers(0, 99),
)
def test_any_options_give_finite_weights_of_0_or_more_and_leave_the_record_alone(baseline, sinks, smooth, steps, seed):
    record = make_record(["a"], WORDS[:steps], grids=[(3, 4), (2, 2)], seed=seed)
    neutral = np.random.default_rng(seed).random((2, 16), np.float32)
    record, before = replace(record, neutral=neutral), record.weights.copy()
    shown = shown_rows(record, 1, baseline, sinks, smooth)
    assert np.isfinite(shown.rows).all() and (shown.rows >= 0).all() and 0 <= shown.left_out <= 1
    np.testing.assert_array_equal(record.weights, before)
    text = np.setdiff1d(np.arange(len(record.tokens)), record.image_positions)
    np.testing.assert_array_equal(shown.rows[:, text], record.rows(1)[:, text])


# ---- the map as an array -----------------------------------------------------------------------------


@pytest.mark.parametrize("grids", [[(3, 4)], [(3, 4), (7, 5)]])
def test_a_grids_map_is_its_weights_row_by_row_and_lies_on_the_whole_picture(grids):
    record = make_record(["a"], ["b", "c"], grids=grids, size=(333, 211))
    for number, (shape, tokens) in enumerate(zip(grids, record.images), start=1):
        weights, extent = record.map(2, 1, number)
        np.testing.assert_allclose(weights, record.rows(1)[1][tokens.positions].reshape(shape), rtol=1e-4)
        np.testing.assert_allclose(extent, (-0.5, 332.5, 210.5, -0.5))


def test_overlapping_views_lie_on_the_finest_grid_and_nothing_is_lost():
    boxes = np.concatenate([grid_boxes(1, 2, 400, 300), grid_boxes(4, 4, 400, 300)])
    record = make_record(["a"], ["b"], grids=[(3, 6)])
    record = replace(record, images=(ImageTokens(record.images[0].positions, boxes),))
    weights, _ = record.map(-1)
    assert weights.shape == (4, 4)
    assert weights.sum() == pytest.approx(record.rows(1)[0][record.images[0].positions].sum(), rel=1e-4)


def test_a_part_of_the_picture_without_a_cell_is_nan_and_the_extent_is_that_of_the_cells():
    boxes = grid_boxes(2, 2, 100, 100) + np.float32(50)
    boxes[3] = np.nan
    record = make_record(["a"], ["b"], grids=[(2, 2)])
    weights, extent = replace(record, images=(ImageTokens(record.images[0].positions, boxes),)).map(1)
    assert np.isnan(weights).tolist() == [[False, False], [False, True]] and extent == (49.5, 149.5, 149.5, 49.5)


@pytest.mark.parametrize(
    "given, message",
    [
        ((0,), "numbered|expected 1 to 2"),
        ((3,), "expected 1 to 2"),
        ((1, 1, 0), "image 0 is not there"),
        ((1, 1, 2), "1 to 1"),
    ],
)
def test_a_map_that_is_not_there_says_which_are(given, message):
    with pytest.raises(ValueError, match=message):
        make_record(["a"], ["b", "c"]).map(*given)
