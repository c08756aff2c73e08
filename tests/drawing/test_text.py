"""Where the text panel begins, and the pieces that it is coloured by."""

import re
from dataclasses import replace

import numpy as np
import pytest
from drawn import renderer_of
from records import SPECIAL_ID, make_record

from attention_heatmap.drawing.text import find_panel_start, text_pieces

PROBLEM = ["Look", ".", " Based", " on", " it", ".", " Based", " on", " this"]
FIRST = 13  # 1 special and 12 image tokens stand before the problem


def start_of(response, phrase, problem=PROBLEM):
    """The token of problem and response at which the panel begins, and the first step."""
    record = make_record(problem, response)
    position, step = find_panel_start(replace(record, problem=(FIRST, record.prompt_length)), phrase)
    return position - FIRST, step


def test_a_phrase_in_the_problem_begins_the_panel_at_its_last_occurrence():
    assert start_of([" Based", " on"], "Based on") == (6, 0)


def test_a_phrase_inside_a_token_begins_with_that_token():
    assert start_of(["x"], "ook. B") == (0, 0)


def test_a_phrase_in_the_response_begins_panel_and_video_there():
    assert start_of(["I", " see", " the", " road", " see", " the"], "see the") == (len(PROBLEM) + 1, 1)


def test_an_absent_phrase_begins_at_the_problem_and_the_warning_quotes_words_that_would_do(caplog):
    assert start_of(["x"], "no such words") == (0, 0)
    assert "'no such words' does not occur" in caplog.text and "'Based on this'" in caplog.text
    lines = make_record(["Look", " at", " it", ".", "\n", "What", " is", " it", "?"], ["x"])
    find_panel_start(lines, "nowhere")
    told = re.findall(r"such as start_phrase '(.*?)'", caplog.text)[-1]
    assert find_panel_start(lines, told) == (FIRST + 5, 0)


def test_a_phrase_across_the_end_of_the_prompt_is_absent():
    assert start_of(["cd"], "bc", ["ab"]) == (0, 0)


def test_a_phrase_of_what_stands_round_the_problem_is_absent():
    record = make_record(["You", " help", ".", "Where", "?"], ["x"])
    assert find_panel_start(replace(record, problem=(FIRST + 3, FIRST + 5)), "help") == (FIRST + 3, 0)


def test_no_phrase_begins_at_the_response_without_a_warning(caplog):
    assert start_of(["x"], "") == (len(PROBLEM), 0) and not caplog.records


def test_pieces_cover_every_position_from_the_start_in_order():
    record = make_record(["Go", " 路"], ["", "", "线", "\n", "!"], grids=[(2, 2), (1, 3)])
    pieces = text_pieces(record, 0)
    starts = [piece.start for piece in pieces]
    assert starts[0] == 0 and starts == sorted(set(starts))
    assert [piece.kind for piece in pieces] == ["special", "image", "image", "text", "text", "text", "text", "text"]
    assert [piece.text for piece in pieces[1:3]] == ["[image 1]", "[image 2]"]
    assert pieces[5].text == "线" and pieces[5].start == record.prompt_length


def test_a_panel_that_begins_amid_a_run_of_image_tokens_begins_with_its_chip():
    pieces = text_pieces(make_record(["Go"], ["x"]), 5)
    assert [(piece.start, piece.kind) for piece in pieces[:2]] == [(5, "image"), (FIRST, "text")]


def test_the_weight_of_a_piece_is_the_sum_over_its_positions():
    record = make_record(["Go"], ["x", "", "路"], grids=[(2, 2), (1, 3)])
    weights, rows = renderer_of(record, phrase="<s>").answer.weights, record.weights[:, 1]
    np.testing.assert_allclose(weights[:, 1], rows[:, 1:5].sum(1), rtol=1e-5)
    np.testing.assert_allclose(weights[:, 2], rows[:, 5:8].sum(1), rtol=1e-5)
    np.testing.assert_allclose(weights[:, -1], rows[:, -2:].sum(1), rtol=1e-5)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("token_id, kind", [(SPECIAL_ID, "special"), (11, "text")])
def test_special_tokens_are_known_by_their_id(token_id, kind):
    record = make_record(["a"], ["<|x|>"])
    ids = record.token_ids.copy()
    ids[-1] = token_id
    assert text_pieces(replace(record, token_ids=ids), len(ids) - 1)[0].kind == kind
