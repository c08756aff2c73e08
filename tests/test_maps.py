"""What is done to weights before they are drawn, how layer and heads are chosen, and the check of a map."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_record, picture
from hypothesis import given, settings
from hypothesis import strategies as st

import visualizeHeatMap as vhm

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
    above = vhm.above_baseline(weights, "median")
    assert (above[:, 5] == 0).all() and (above >= 0).all()
    np.testing.assert_array_equal(above.argmax(axis=1)[:5], weights[:5].argmax(axis=1))
    assert above[3, 3] == pytest.approx(0.3, abs=0.002)


def test_a_neutral_prompts_weight_is_taken_off_or_divided_by():
    weights, neutral = np.array([[0.4, 0.1], [0.2, 0.3]], np.float32), np.array([0.3, 0.1], np.float32)
    np.testing.assert_allclose(vhm.above_baseline(weights, "neutral", neutral), [[0.1, 0], [0, 0.2]], atol=1e-7)
    np.testing.assert_allclose(vhm.above_baseline(weights, "relative", neutral), [[4 / 3, 1], [2 / 3, 3]], rtol=1e-6)
    assert np.isfinite(vhm.above_baseline(weights, "relative", np.zeros(2, np.float32))).all()


@pytest.mark.parametrize("baseline", ["neutral", "relative"])
def test_a_record_without_a_neutral_replay_says_what_to_do(baseline):
    with pytest.raises(ValueError, match="needs a record made with neutral_prompt; record again, or take"):
        vhm.shown_rows(make_record(["a"], ["b"]), 0, baseline, False, 0)


# ---- sinks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [[], [0], [3, 70], [5, 6, 7]])
def test_planted_sinks_are_found_and_nothing_else(planted):
    weights = moving(cells=100)
    weights[:, planted] = np.random.default_rng(1).uniform(0.05, 0.5, (40, len(planted)))
    assert np.flatnonzero(vhm.find_sinks(weights)).tolist() == planted


@pytest.mark.parametrize("part, found", [(0.5, False), (0.9, False), (1.0, True)])
def test_what_some_words_look_at_is_no_sink_however_bright(part, found):
    weights = moving(cells=100)
    weights[: round(part * 40), 50] = 0.6
    weights[round(part * 40) :, 50] = 0.001
    assert vhm.find_sinks(weights)[50] == found


def test_a_wide_glow_is_no_sink():
    weights = moving(cells=100)
    weights[:, :60] += 0.05
    assert not vhm.find_sinks(weights).any()


def test_a_short_answer_has_no_sinks_and_neither_has_a_picture_of_one_cell():
    bright = np.tile([0.001] * 99 + [0.9], (vhm.FEWEST_SINK_STEPS, 1))
    assert vhm.find_sinks(bright)[-1] and not vhm.find_sinks(bright[1:]).any()
    assert not vhm.find_sinks(np.ones((40, 1))).any() and vhm.find_sinks(np.ones((40, 0))).shape == (0,)


def test_sinks_of_the_picture_and_of_the_prompt_are_found_apart_and_their_weight_told():
    weights = moving(cells=30)
    weights[:, 7] = 0.4
    record = make_record([f"p{n}" for n in range(30)], WORDS, grids=[(5, 6)])
    rows, image = record.weights.copy(), record.image_positions
    rows[:, :, image] = weights[:, None]
    rows[:, :, 45] = 3.0
    shown = vhm.shown_rows(replace(record, weights=rows), 1, "off", True, 0)
    assert shown.sinks.nonzero()[0].tolist() == [image[7], 45]
    assert shown.left_out == pytest.approx((weights[:, 7] / weights.sum(axis=1)).mean(), rel=1e-5)
    assert (shown.rows[:, image[7]] == 0).all() and (shown.rows[:, 45] == 3).all()


# ---- smoothing ---------------------------------------------------------------------------------------


def test_smoothing_spreads_a_cell_over_its_neighbours_of_the_same_picture():
    boxes = vhm.grid_boxes(5, 5, 100, 100)
    weights = np.zeros((1, 25), np.float32)
    weights[0, 12] = 1
    smooth = vhm.smooth_cells(weights, boxes, 1.0, np.zeros(25, bool))[0].reshape(5, 5)
    assert smooth.argmax() == 12 and smooth[2, 1] == pytest.approx(smooth[1, 2], rel=1e-5) and 0 < smooth[0, 0] < 0.05
    np.testing.assert_allclose(vhm.smooth_cells(np.ones((2, 25)), boxes, 2.0, np.zeros(25, bool)), 1, rtol=1e-6)
    two = record_with(np.eye(1, 24, dtype=np.float32).repeat(40, 0), grids=[(3, 4), (3, 4)])
    shown = vhm.shown_rows(two, 0, "off", False, 1.0).rows
    assert (shown[:, two.images[0].positions] > 0).all() and (shown[:, two.images[1].positions] == 0).all()


def test_a_token_without_a_place_and_a_coarser_view_are_not_smoothed_into_others():
    boxes = np.concatenate([vhm.grid_boxes(1, 1, 100, 100), vhm.grid_boxes(4, 4, 100, 100), [[np.nan] * 4]])
    weights = np.zeros((1, 18), np.float32)
    weights[0, [0, 17]] = 1
    smooth = vhm.smooth_cells(weights, boxes.astype(np.float32), 1.0, np.zeros(len(boxes), bool))[0]
    assert smooth[0] == 1 and smooth[17] == 1 and (smooth[1:17] == 0).all()


# ---- together ----------------------------------------------------------------------------------------


def test_without_options_the_rows_are_the_records_own():
    record = make_record(["a", "b"], ["c", "d"], layers=(3, 6))
    shown = vhm.shown_rows(record, 6, *vhm.DrawingOptions().map)
    np.testing.assert_array_equal(shown.rows, record.layer_weights(6))
    assert not shown.sinks.any() and shown.left_out == 0 and vhm.view_names("off", False, 0) == ""


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(list(vhm.BASELINES)),
    st.booleans(),
    st.sampled_from([0, 0.5, 2]),
    st.integers(1, 30),
    st.integers(0, 99),
)
def test_any_options_give_finite_weights_of_0_or_more_and_leave_the_record_alone(baseline, sinks, smooth, steps, seed):
    record = make_record(["a"], WORDS[:steps], grids=[(3, 4), (2, 2)], seed=seed)
    neutral = np.random.default_rng(seed).random((2, 16), np.float32)
    record, before = replace(record, neutral=neutral), record.weights.copy()
    shown = vhm.shown_rows(record, 1, baseline, sinks, smooth)
    assert np.isfinite(shown.rows).all() and (shown.rows >= 0).all() and 0 <= shown.left_out <= 1
    np.testing.assert_array_equal(record.weights, before)
    text = np.setdiff1d(np.arange(len(record.tokens)), record.image_positions)
    np.testing.assert_array_equal(shown.rows[:, text], record.layer_weights(1)[:, text])


# ---- choosing layer and heads --------------------------------------------------------------------------


def survey_of(*heads):
    """(T, H, R) of heads that look at: "moves" the spoken of, "alone" something else each step, "static", "blur"."""
    rng, T, R = np.random.default_rng(0), 60, 64
    spoken = rng.integers(0, R, T)
    survey = np.full((T, len(heads), R), 0.001)
    for number, head in enumerate(heads):
        places = {"moves": spoken, "alone": rng.integers(0, R, T), "static": np.full(T, 9)}.get(head)
        if places is None:
            survey[:, number] = 0.5 / R * rng.uniform(0.9, 1.1, (T, R))
        else:
            survey[np.arange(T), number, places] = 0.6
    return survey


def test_heads_agree_on_what_moves_with_the_token_and_on_nothing_else():
    agreement = vhm.head_agreement(survey_of("moves", "blur", "moves", "static", "alone"))
    assert agreement[[0, 2]].min() > 5 * np.abs(agreement[[1, 3, 4]]).max()


def test_the_layer_and_the_head_that_agree_most_are_chosen():
    surveys = {
        2: survey_of("static", "static", "static"),
        4: survey_of("alone", "alone", "alone"),
        5: survey_of("blur", "moves", "moves"),
        6: survey_of("alone", "blur", "blur"),
    }
    layer, heads = vhm.choose_heads({layer: vhm.head_agreement(survey) for layer, survey in surveys.items()})
    assert layer == 5 and heads[5] in (1, 2) and heads.keys() == surveys.keys()


def test_a_layer_that_does_not_see_the_pictures_is_not_chosen_over_one_that_does():
    agreement = {0: np.zeros(2), 3: np.array([-0.02, 0.01])}
    assert vhm.choose_heads(agreement) == (3, {0: 0, 3: 1}) and vhm.choose_heads({0: np.zeros(2)}) == (0, {0: 0})


def test_a_layer_of_one_head_has_its_own_movement():
    assert vhm.head_agreement(survey_of("moves"))[0] > 100 * vhm.head_agreement(survey_of("static"))[0]


# ---- the check ---------------------------------------------------------------------------------------


def shown_of(record):
    return vhm.shown_rows(record, 0, "off", False, 0)


def test_a_fifth_of_the_cells_is_hidden_the_hottest_or_as_many_at_random_and_never_a_sink():
    record = record_with(np.tile(np.arange(1, 13), (40, 1)))
    cells = vhm.mean_cells(record, shown_of(record))
    (hottest,) = vhm.cells_to_hide(cells)
    np.testing.assert_array_equal(hottest, record.images[0].boxes[-3:])
    draws = [vhm.cells_to_hide(cells, seed)[0] for seed in range(5)]
    assert all(len(draw) == 3 for draw in draws) and len({draw.tobytes() for draw in draws}) > 1
    np.testing.assert_array_equal(vhm.cells_to_hide(cells, 0)[0], draws[0])
    cells[0][1][11] = np.nan  # a sink
    sink = record.images[0].boxes[11]
    assert not any((vhm.cells_to_hide(cells, seed)[0] == sink).all(axis=1).any() for seed in range(20))
    np.testing.assert_array_equal(vhm.cells_to_hide(cells)[0], record.images[0].boxes[8:11])


def test_a_random_draw_keeps_the_pattern_of_the_map_and_moves_it():
    """So that a spot is compared with spots, not with scattered cells, which seldom hide a whole thing."""
    boxes = vhm.grid_boxes(10, 10, 100, 100)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    spot = np.exp(-(((middles - [35, 65]) / 15) ** 2).sum(1))
    moved = [vhm.cells_to_hide([(boxes, spot)], seed)[0] for seed in range(10)]
    assert len({draw.tobytes() for draw in moved}) > 5
    for draw in moved:
        x, y = ((draw[:, :2] + draw[:, 2:]) / 2).T
        shifted = [np.ptp((part + shift) % 100) for part in (x, y) for shift in range(0, 100, 10)]
        assert len(draw) == 20 and min(shifted[:10]) <= 50 and min(shifted[10:]) <= 50  # one spot, wrapped round


def test_smoothing_takes_nothing_from_a_sink_and_gives_it_nothing():
    boxes, out = vhm.grid_boxes(5, 5, 100, 100), np.arange(25) == 6
    smooth = vhm.smooth_cells(np.where(out, 0.0, 1.0)[None], boxes, 1.0, out)[0]
    np.testing.assert_allclose(smooth, ~out, rtol=1e-6)


def test_hidden_cells_have_the_pictures_mean_colour_and_all_else_is_as_it_was():
    image = vhm.Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
    (painted,) = vhm.hide_cells([image], [np.array([[10, 0, 20, 15]], np.float32)])
    old, new = np.asarray(image), np.asarray(painted)
    assert (new[:15, 10:20] == old.reshape(-1, 3).mean(0).round()).all()
    changed = (old != new).any(axis=2)
    changed[:15, 10:20] = False
    assert not changed.any()


def test_overlapping_views_hide_their_finest_cells():
    record = make_record(["a"], WORDS, grids=[(4, 4)])
    boxes = np.concatenate([vhm.grid_boxes(2, 2, 400, 300)[:1], vhm.grid_boxes(4, 4, 400, 300)[:15]])
    record = replace(record, images=(vhm.ImageTokens(record.images[0].positions, boxes),))
    ((cells, weights),) = vhm.mean_cells(record, shown_of(record))
    assert len(cells) == 15 and weights.sum() == pytest.approx(record.layer_weights(0).mean(0)[1:17].sum(), rel=1e-5)


@pytest.mark.parametrize(
    "hottest, random, points, words",
    [
        (1.0, [0.1] * 18 + [0.2], True, "the map points at what it needs"),
        (1.0, [0.1] * 15 + [1.2] * 4, None, "unclear, check more answers"),
        (1.0, [0.1] * 14 + [1.2] * 5, False, "do not trust this map"),
        (0.01, [0.0] * 18 + [-0.3], None, "says nothing of the map"),
        (-0.1, [0.0] * 18 + [0.3], False, "do not trust this map"),
    ],
)
def test_a_verdict_is_one_of_four(hottest, random, points, words):
    check = vhm.Check(7, "", "answer", hottest, tuple(random))
    assert check.points is points and words in str(check) and "in 19 draws" in str(check)
    assert f"made the answer {np.exp(hottest):.2f} times as unlikely per token" in str(check)


def test_what_is_new_in_a_record_is_saved_and_loaded(tmp_path):
    record = make_record(["a"], ["b"], grids=[(2, 2)])
    record = replace(
        record, head="auto", auto_layer=True, auto_heads=(1, 3), neutral=np.ones((2, 4), np.float32),
        checks=(vhm.Check(0, "x", "answer", 0.5, (0.1, 0.2)),), pictures=(vhm.picture_file(picture()),),
    )  # fmt: skip
    record.save(tmp_path / "run.npz")
    loaded = vhm.AttentionRecord.load(tmp_path / "run.npz")
    for name in ("head", "auto_layer", "auto_heads", "checks"):
        assert getattr(loaded, name) == getattr(record, name)
    np.testing.assert_array_equal(loaded.neutral, record.neutral)
    several = replace(make_record(["a"], ["b"]), head=(1, 2))
    several.save(tmp_path / "run.npz")
    assert vhm.AttentionRecord.load(tmp_path / "run.npz").head == (1, 2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"neutral": np.zeros((2, 3))}, r"neutral has shape \(2, 3\); expected \(2, 12\)"),
        ({"head": "auto"}, "auto_heads has 0 entries; expected 2"),
        ({"auto_heads": (1, 2)}, "auto_heads has 2 entries; expected 0"),
    ],
)
def test_new_parts_of_a_record_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(make_record(["a"], ["b"]), **change)
