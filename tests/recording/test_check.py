"""The check: cells are hidden, and the answer says whether they mattered."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DEMO
from records import grid_boxes, picture
from reference import PICTURES, inputs_of, with_response

from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.log import NOTE
from attention_heatmap.record import CHECK_DRAWS, CHECK_PART
from attention_heatmap.recording import check as room
from attention_heatmap.recording import session as session_room
from attention_heatmap.recording.attention import implementations
from attention_heatmap.recording.check import (
    cells_to_hide,
    check_record,
    hide_cells,
    moved_cells,
    response_log_probabilities,
)
from attention_heatmap.recording.options import RecordingOptions
from attention_heatmap.recording.session import Session

SAMPLE = {"problem": "Based on the following requirements, go."}
PLAIN = ("off", False, 0)


@pytest.fixture(scope="module")
def session(tiny):
    return Session(tiny.model, tiny.processor)


def recorded(session, response="<think> a", layers=(1,), **options):
    return session.record(SAMPLE, PICTURES, layers, RecordingOptions(response=response, **options))


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(room, "CHECK_DRAWS", 2)


def test_log_probabilities_of_a_part_are_those_of_a_plain_pass(tiny, twin, monkeypatch):
    monkeypatch.setattr(room, "LOGITS_PER_BLOCK", 3)
    inputs, ids = inputs_of(tiny), [65, 66, 67, 68, 69, 70, 71, 72]
    P = inputs["input_ids"].shape[1]
    with torch.no_grad():
        logits = twin("qwen2_vl")(**with_response(inputs, ids)).logits[0].log_softmax(-1)
    expected = np.array([float(logits[P - 1 + t, ids[t]]) for t in range(8)])
    for part in (range(0, 8), range(3, 8), range(7, 8), range(0, 1)):
        found = response_log_probabilities(tiny.model, inputs, ids, part)
        np.testing.assert_allclose(found, expected[part], atol=1e-4)


def test_a_check_of_each_plane_is_in_the_record_and_told(session, caplog):
    record = recorded(session, layers=(0, 2), max_pixels=9000)
    before = implementations(session.model.config)
    with caplog.at_level(NOTE):
        found = check_record(session, record, SAMPLE, PICTURES, ("off", True, 0), RecordingOptions(max_pixels=9000))
    assert [check.plane for check in found.checks] == [0, 1] and record.checks == ()
    assert all(len(check.random) == CHECK_DRAWS and check.view == "sinks left out" for check in found.checks)
    assert f"check of {record.plane_name(1)}: {found.checks[1]}" in caplog.text
    assert implementations(session.model.config) == before


@pytest.mark.parametrize(
    "response, part, tokens",
    [("<think> a </think><answer> b </answer>", "answer", 20), ("<think> a", "response", 9), ("ab", "response", 2)],
)
def test_the_check_is_of_the_answer_or_else_of_the_whole_response(
    session, monkeypatch, few_draws, response, part, tokens
):
    record, steps, real = recorded(session, response), [], room.response_log_probabilities
    monkeypatch.setattr(room, "response_log_probabilities", lambda *a: steps.append(a[3]) or real(*a))
    (check,) = check_record(session, record, SAMPLE, PICTURES, PLAIN, RecordingOptions()).checks
    T = record.response_length
    assert check.part == part and set(steps) == {range(T - tokens, T)} and len(steps) == 4


@pytest.mark.parametrize(
    "sample, images, options, message",
    [
        ({"problem": "Hello?"}, PICTURES, {}, "the record is of another prompt"),
        (SAMPLE, PICTURES, {"prompt_template": "Say: {Question}"}, "the record is of another prompt"),
        (SAMPLE, [PICTURES[0], picture(PICTURES[1].size)], {}, "is not the record's"),
    ],
)
def test_a_record_is_not_checked_on_another_sample_picture_or_prompt(session, sample, images, options, message):
    record = recorded(session, "x")
    with pytest.raises(ValueError, match=message):
        check_record(session, record, sample, images, PLAIN, RecordingOptions(**options))


def test_a_map_that_is_the_same_everywhere_is_not_judged(session, caplog):
    record = recorded(session, "x")
    with caplog.at_level(NOTE):
        found = check_record(session, record, SAMPLE, PICTURES, ("median", False, 0), RecordingOptions())
    assert found.checks == () and "cannot be checked: its map is the same everywhere" in caplog.text


def test_hiding_no_cell_changes_nothing(session, monkeypatch):
    record = recorded(session)
    monkeypatch.setattr(room, "cells_to_hide", lambda cells, seed=None: [np.zeros((0, 4))] * 2)
    (check,) = check_record(session, record, SAMPLE, PICTURES, PLAIN, RecordingOptions()).checks
    assert check.hottest == 0 and set(check.random) == {0.0} and check.points is None


def test_a_processor_that_cuts_a_picture_by_its_content_cannot_be_checked(session, monkeypatch):
    record, real, calls = recorded(session), session_room.build_inputs, []

    def other(*arguments):
        calls.append(1)
        inputs = real(*arguments)
        inputs["input_ids"] = inputs["input_ids"] + (len(calls) > 1)
        return inputs

    monkeypatch.setattr(session_room, "build_inputs", other)
    with pytest.raises(ValueError, match="the check cannot be made: the processor cuts the pictures by what they show"):
        check_record(session, record, SAMPLE, PICTURES, PLAIN, RecordingOptions())


def test_a_layer_that_crosses_is_checked_on_the_prompts_own_text(tiny_visualizer, few_draws):
    visualizer = tiny_visualizer("mllama")
    session = Session(visualizer.model, visualizer.processor)
    record = recorded(session, layers=(1,))
    assert len(check_record(session, record, SAMPLE, PICTURES, PLAIN, RecordingOptions()).checks) == 1


def test_the_hottest_part_of_the_cells_is_hidden_and_cells_without_a_place_are_not():
    boxes = grid_boxes(2, 5, 50, 20)
    heat = np.arange(10.0)
    heat[9] = np.nan
    (hidden,) = cells_to_hide([(boxes, heat)])
    assert len(hidden) == int(np.ceil(CHECK_PART * 9)) == 2
    np.testing.assert_array_equal(hidden, boxes[[7, 8]])
    first, second = cells_to_hide([(boxes, heat), (boxes, 100 + heat)])
    assert len(first) == 0 and len(second) == 4


def test_random_cells_are_as_many_and_cling_together_as_the_maps_own():
    boxes, heat = grid_boxes(10, 10, 100, 100), np.zeros(100)
    spot = [r * 10 + c for r in range(3, 7) for c in range(4, 9)]
    heat[spot] = 1
    draws = [cells_to_hide([(boxes, heat)], seed)[0] for seed in range(5)]
    assert all(len(draw) == 20 for draw in draws)
    assert len({tuple(draw[0]) for draw in draws}) > 1
    np.testing.assert_array_equal(draws[2], cells_to_hide([(boxes, heat)], 2)[0])
    for draw in draws:  # each has a neighbour, across the edge, too
        middles = (draw[:, :2] + draw[:, 2:]) / 2
        apart = np.abs(middles[:, None] - middles)
        near = np.minimum(apart, 100 - apart).sum(-1)
        assert (np.sort(near, axis=1)[:, 1] <= 10).all()


def test_a_map_moved_by_whole_sides_comes_back_and_by_half_wraps_round():
    boxes = grid_boxes(2, 4, 80, 40)
    assert moved_cells(boxes, np.array([0, 0])).tolist() == list(range(8))
    assert moved_cells(boxes, np.array([0.5, 0])).tolist() == [2, 3, 0, 1, 6, 7, 4, 5]
    assert moved_cells(boxes, np.array([0, 0.5])).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_hidden_cells_have_the_mean_colour_of_their_own_picture():
    image = picture((4, 2), "black")
    image.paste("white", (0, 0, 2, 2))
    painted, same = hide_cells([image, image], [np.array([[0, 0, 1, 2]]), np.zeros((0, 4))])
    assert np.asarray(painted)[..., 0].tolist() == [[128, 255, 0, 0]] * 2
    assert same.tobytes() == image.tobytes() and np.asarray(image)[0, 0, 0] == 255


def test_on_the_demo_the_clear_map_points_and_a_map_turned_round_does_not(demo_visualizer, monkeypatch):
    monkeypatch.setattr(room, "CHECK_DRAWS", 8)
    sample, images = demo_visualizer.load_sample_data(DEMO / "dataset.json", DEMO / "images", 0)
    record = demo_visualizer.record(sample, images, "auto", head="auto", response_key="solution")
    assert record.layers == (7,)
    session, how = Session(demo_visualizer.model, demo_visualizer.processor), RecordingOptions()
    (check,) = check_record(session, record, sample, images, DrawingOptions(view="clear").map, how).checks
    assert check.points and check.part == "answer"
    at, weights = record.image_positions, record.weights.copy()
    weights[:, :, at] = weights[:, :, at].max() - weights[:, :, at]
    (check,) = check_record(session, replace(record, weights=weights), sample, images, PLAIN, how).checks
    assert not check.points
