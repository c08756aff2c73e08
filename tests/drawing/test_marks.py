"""Places that an answer names: what is one, in which unit, in which picture, and how much attention is inside."""

import time

import numpy as np
import pytest
from drawn import Shapes, hot_record, renderer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from records import make_record

from attention_heatmap.drawing.image_panel import MOST_MARKS
from attention_heatmap.drawing.marks import (
    MOST_INSIDE,
    PICTURE_NAMED,
    Mark,
    _number_named,
    response_marks,
    share_inside,
)

ONE = [(400, 300)]


@pytest.mark.parametrize(
    "text, corners",
    [
        ("at (380, 620).", [(0.38, 0.62)]),
        ("（380，620）", [(0.38, 0.62)]),
        ("[250, 500]", [(0.25, 0.5)]),
        ("(100,150),(400,500)", [(0.1, 0.15, 0.4, 0.5)]),
        ("[100, 150, 400, 500]", [(0.1, 0.15, 0.4, 0.5)]),
        ("(100,200),(300,400),(500,600)", [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)]),
        ("(100, 200), (300, 400)", [(0.1, 0.2), (0.3, 0.4)]),
        ("[400, 500, 100, 650] [400, 500, 600, 150]", []),
        ("(2000, 100)", []),
        ("f(x, y) = (a, 1) of (1, 2, 3)", []),
        ("(0.5, 0.5)", []),
        ("it costs (1,000) dollars", []),
        ("the interval [0, 1]", []),
        ("at 10 (040, 20)", []),
    ],
)
def test_places_are_read_from_the_response_and_numbers_that_are_none_are_not(text, corners):
    record = make_record(["p"], list(text))
    marks = response_marks(record, 0, ONE)
    assert [mark.corners for mark in marks] == [pytest.approx(place) for place in corners]
    assert response_marks(record, 0, ONE, "off") == []


@pytest.mark.parametrize(
    "problem, text, unit, corners",
    [
        ("p", "(200, 150)", "pixels", (0.5, 0.5)),
        ("in pixels", "(200, 150)", "auto", (0.5, 0.5)),
        ("in pixels", "(200, 150)", "thousandths", (0.2, 0.15)),
    ],
)
def test_places_are_thousandths_or_pixels(problem, text, unit, corners):
    (mark,) = response_marks(make_record([problem], [text]), 0, ONE, unit)
    assert mark.corners == pytest.approx(corners)
    (large,) = response_marks(make_record(["p"], ["(1500, 150)"]), 0, [(3000, 300)])
    assert large.corners == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    "text, number",
    [
        ("in image 4 ", 3), ("Image #6: ", 5), ("picture four, ", 3), ("the fourth image ", 3), ("第四张图里", 3),
        ("the 2nd image ", 1), ("image 10 ", 9), ("第10张图片", 9), ("figure 21 shows ", 20), ("图十：", 9),
        ("image 1 and image 3 ", 2), ("an image of ten trees ", None), ("an image oneself ", None), ("image 0", -1),
        ("image " + "9" * 5000, None),
    ],
)  # fmt: skip
def test_a_picture_is_named_by_any_number(text, number):
    named = list(PICTURE_NAMED.finditer(text))
    assert (_number_named(named[-1]) if named else None) == number


def test_a_picture_that_is_not_there_names_none():
    record = make_record(["p"], list("image 0 and image 9 (500, 500)"), grids=[(2, 2), (2, 2)])
    (mark,) = response_marks(record, 0, ONE * 2)
    assert mark.image in (0, 1)


@pytest.mark.parametrize(
    "before, picture_number",
    [("picture one has ", 0), ("in the second image ", 1), ("第二张图里 ", 1), ("Image 1: not image 2: ", 1)],
)
def test_a_place_is_in_the_picture_that_the_text_names(before, picture_number):
    record = make_record(["p"], [before, "(100, 200)", " again", "(100, 200)"], grids=[(3, 4), (3, 4)])
    assert [mark.image for mark in response_marks(record, 0, ONE * 2)] == [picture_number] * 2


def test_a_picture_named_in_the_thoughts_is_not_that_of_the_answer():
    tokens = ["<think>", "image 2", "</think>", "<answer>", "(100, 200)", "</answer>"]
    record = make_record(["p"], tokens, grids=[(3, 4), (3, 4)])
    record.weights[:, :, record.images[0].positions] += 1
    assert [mark.image for mark in response_marks(record, 0, ONE * 2)] == [0]


@pytest.mark.parametrize("looked_at", [0, 1])
def test_else_it_is_in_the_picture_that_was_looked_at(looked_at):
    record = make_record(["p"], ["(1", "00, 200)"], grids=[(3, 4), (3, 4)])
    record.weights[:, :, record.images[looked_at].positions] += 1
    (mark,) = response_marks(record, 0, ONE * 2)
    assert mark.image == looked_at and mark.step == 1


def test_the_share_inside_boxes_counts_cells_by_the_part_that_is_covered_and_overlaps_once():
    record = hot_record([0])
    half_of_cell_0 = Mark(0, "", 0, (0, 0, 0.125, 1 / 3))
    elsewhere = Mark(0, "", 0, (0.5, 0.5, 1, 1))
    parts = [Mark(0, "", 0, (0, 0, 0.1, 1 / 3)), Mark(0, "", 0, (0.05, 0, 0.125, 1 / 3))]  # half of it together
    for marks in ([half_of_cell_0, elsewhere], [half_of_cell_0] * 2, [*parts, elsewhere]):
        assert share_inside(record, 1, 0, marks, ONE) == pytest.approx(0.5, rel=1e-4)
    assert share_inside(record, 1, 0, [Mark(0, "", 0, (0.5, 0.5))], ONE) is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("()[]（，,. 0123456789image picture第张图二<>think/answer"), max_size=80))
def test_whatever_is_written_its_marks_lie_in_a_picture_that_is_there(text):
    record = make_record(["p"], list(text) or ["x"], grids=[(2, 2), (1, 3)])
    for mark in response_marks(record, 1, ONE * 2):
        assert mark.image in (0, 1) and len(mark.corners) in (2, 4)
        assert all(0 <= corner <= 1 for corner in mark.corners) and 0 <= mark.step < record.response_length


@pytest.mark.parametrize(
    "text",
    ["<answer>" * 40_000, "(100,200)" * 20_000, "(" * 40_000, "(1" * 40_000, "(1,1" * 20_000, "(" + " " * 40_000,
     "image " * 20_000, "(" + "1" * 40_000 + ",1)", "第" * 40_000],
    ids=lambda text: text[:9].strip(),
)  # fmt: skip
def test_an_answer_that_loops_is_read_in_linear_time(text):
    """40,000 times over; what takes a time that grows with the square would take minutes."""
    record, began = make_record(["p"], [text], grids=[(1, 1), (1, 1)], layers=(0,)), time.process_time()
    response_marks(record, 0, ONE * 2)
    assert time.process_time() - began < 20


def test_an_answer_that_loops_on_points_draws_no_more_of_them_the_longer_it_is():
    record = make_record(["Based"], ["(100,", "200)"] * 1500, grids=[(1, 1)], layers=(0,))
    renderer = renderer_of(record, plane=0, phrase="")
    assert len(renderer.marks) == 1500
    counts = []
    for step in (2 * MOST_INSIDE, 1000, 2999):
        pen = Shapes(10, 10)
        renderer.draw_marks(pen, step)
        counts.append(len(pen.shapes))
    assert max(counts) - min(counts) <= 4 and max(counts) < 8 * MOST_MARKS
    numbers = [values["text"] for kind, values in pen.shapes if kind == "text"]
    assert numbers[-1] == "1500"  # and they go on being counted
    assert np.isfinite(renderer.draw(2999)).all()


def test_a_mark_belongs_to_the_token_that_completes_it_and_to_its_phase():
    marks = response_marks(
        make_record(["p"], ["<think>", " (100", ", 200", ")", "</think>", "<answer>", "(300,300)", "</answer>"]), 1, ONE
    )
    assert [(mark.step, mark.phase) for mark in marks] == [(3, "think"), (6, "answer")]
