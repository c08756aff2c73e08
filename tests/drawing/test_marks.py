import time
from dataclasses import replace

import numpy as np
import pytest
from records import make_record

from attention_heatmap.drawing.marks import response_marks, share_inside
from attention_heatmap.phases import response_phases

SIZES = [(400, 300)]


def marks_of(response, prompt="Based", sizes=SIZES, **kwargs):
    return response_marks(make_record([prompt], response, **kwargs), 1, sizes)


@pytest.mark.parametrize(
    "text, corners",
    [
        ("(100,200)", [(0.1, 0.2)]),
        ("[100, 200]", [(0.1, 0.2)]),
        ("（100，200）", [(0.1, 0.2)]),
        ("(100,200),(300,400)", [(0.1, 0.2, 0.3, 0.4)]),
        ("[100, 200, 300, 400]", [(0.1, 0.2, 0.3, 0.4)]),
        ("(100,200),(300,400),(500,600)", [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)]),
        ("(1,000) (0, 1) (1200, 2000)", []),
    ],
)
def test_points_and_boxes_are_found(text, corners):
    found = [mark.corners for mark in marks_of([text])]
    assert len(found) == len(corners)
    for one, other in zip(found, corners):
        assert one == pytest.approx(other)


def test_a_mark_belongs_to_the_token_that_completes_it_and_to_its_phase():
    marks = marks_of(["<think>", " (100", ", 200", ")", "</think>", "<answer>", "(300,300)", "</answer>"])
    assert [(mark.step, mark.phase) for mark in marks] == [(3, "think"), (6, "answer")]


@pytest.mark.parametrize(
    "words, image",
    [("image 2: ", 1), ("the second picture: ", 1), ("图一 ", 0), ("第二张图片 ", 1), ("image 2, image 1: ", 0)],
)
def test_a_place_is_in_the_picture_named_last(words, image):
    marks = marks_of([words, "(100,200)"], grids=[(3, 4), (3, 4)], sizes=SIZES * 2)
    assert [mark.image for mark in marks] == [image]


def test_pixels_are_told_by_the_prompt():
    assert marks_of(["(200,150)"], "in pixels")[0].corners == pytest.approx((0.5, 0.5))


def test_the_share_inside_boxes():
    record = make_record(["Based"], ["[0, 0, 500, 1000]"])
    weights = record.weights.copy()
    weights[:, :, record.images[0].positions] = np.tile([0.03, 0.03, 0.01, 0.01], 3)
    record = replace(record, weights=weights)
    marks = response_marks(record, 1, SIZES)
    assert share_inside(record, 1, 0, marks, SIZES) == pytest.approx(0.75, rel=1e-4)
    assert share_inside(record, 1, 0, [], SIZES) is None


def test_time_grows_with_the_answer_and_not_faster():
    # Only the text matters: the weights of so many tokens would not fit.
    record = make_record(["Based"], ["<answer> image 1 (100,200) image 2 (300,400) " * 20000], grids=[(1, 1), (1, 1)])
    start = time.perf_counter()
    assert len(response_marks(record, 1, SIZES * 2)) == 40000 and len(response_phases(record)) == 1
    assert time.perf_counter() - start < 20
