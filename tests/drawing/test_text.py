from dataclasses import replace

import numpy as np
import pytest
from records import SPECIAL_ID, make_record

from attention_heatmap.drawing.text import find_panel_start, text_pieces

PROBLEM = ["Look", ".", " Based", " on", " it", ".", " Based", " on", " this"]


def start_token(record, phrase):
    position, step = find_panel_start(record, phrase)
    return position - 13, step  # 1 special and 12 image tokens stand before the problem


@pytest.mark.parametrize(
    "problem, response, phrase, found",
    [
        (PROBLEM, [" Based", " on"], "Based on", (6, 0)),
        (PROBLEM, ["x"], "ook. B", (0, 0)),
        (PROBLEM, ["I", " see", " the", " road", " see", " the"], "see the", (len(PROBLEM) + 1, 1)),
        (PROBLEM, ["x"], "", (len(PROBLEM), 0)),
    ],
    ids=["last in the problem", "inside a token", "first in the response", "none: the response"],
)
def test_where_a_phrase_lets_the_panel_begin(problem, response, phrase, found, caplog):
    assert start_token(make_record(problem, response), phrase) == found
    assert not caplog.records


@pytest.mark.parametrize("phrase", ["no such words", "thisx"])
def test_an_absent_phrase_begins_at_the_problem_and_says_how_to_choose(caplog, phrase):
    record = replace(make_record(PROBLEM, ["x"]), problem=(13, 13 + len(PROBLEM)))
    assert start_token(record, phrase) == (0, 0)
    assert (
        "does not occur: the text begins at the problem" in caplog.text and "start_phrase 'Look. Based" in caplog.text
    )


def test_pieces_cover_every_position_from_the_start_in_order():
    record = make_record(["Go", " 路"], ["", "", "线", "\n", "!"], grids=[(2, 2), (1, 3)])
    pieces = text_pieces(record, 0)
    starts = [piece.start for piece in pieces]
    assert starts[0] == 0 and starts == sorted(set(starts))
    assert [piece.kind for piece in pieces] == ["special", "image", "image", *["text"] * 5]
    assert [piece.text for piece in pieces[1:3]] == ["[image 1]", "[image 2]"]
    assert pieces[5].text == "线" and pieces[5].start == record.prompt_length


@pytest.mark.parametrize("token_id, kind", [(SPECIAL_ID, "special"), (11, "text")])
def test_special_tokens_are_known_by_their_id(token_id, kind):
    record = make_record(["a"], ["<|x|>"])
    ids = np.array([*record.token_ids[:-1], token_id])
    assert text_pieces(replace(record, token_ids=ids), len(ids) - 1)[0].kind == kind
