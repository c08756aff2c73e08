import numpy as np
import pytest
from conftest import SPECIAL_ID, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import QWEN_SPECIAL, byte_tokenizer

import visualizeHeatMap as vhm

TOKENIZER = byte_tokenizer(QWEN_SPECIAL)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(max_size=30))
def test_tokens_joined_are_the_decoded_text(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    tokens = vhm.decode_tokens(TOKENIZER, ids)
    assert len(tokens) == len(ids)
    assert "".join(tokens) == TOKENIZER.decode(ids, skip_special_tokens=False)


def test_a_character_of_several_tokens_comes_whole_with_the_last():
    ids = TOKENIZER("a路b", add_special_tokens=False)["input_ids"]
    assert vhm.decode_tokens(TOKENIZER, ids) == ("a", "", "", "路", "b")


def test_bytes_that_are_no_character_are_shown_and_do_not_hold_up_the_rest():
    ids = TOKENIZER("路", add_special_tokens=False)["input_ids"][:1] * 6 + TOKENIZER("ok")["input_ids"]
    tokens = vhm.decode_tokens(TOKENIZER, ids)
    assert "".join(tokens).endswith("ok") and "\ufffd" in "".join(tokens)


def test_a_broken_end_keeps_its_place():
    ids = TOKENIZER("a路", add_special_tokens=False)["input_ids"][:2]
    tokens = vhm.decode_tokens(TOKENIZER, ids)
    assert tokens == ("a", "\ufffd")


PROBLEM = ["Look", ".", " Based", " on", " it", ".", " Based", " on", " this"]


def start_token(record, phrase):
    position, step = vhm.find_panel_start(record, phrase)
    return position - 13, step  # 1 special and 12 image tokens stand before the problem


def test_a_phrase_in_the_problem_begins_the_panel_at_its_last_occurrence():
    record = make_record(PROBLEM, [" Based", " on"])
    assert start_token(record, "Based on") == (6, 0)


def test_a_phrase_inside_a_token_begins_with_that_token():
    assert start_token(make_record(PROBLEM, ["x"]), "ook. B") == (0, 0)


def test_a_phrase_in_the_response_begins_panel_and_video_there():
    record = make_record(PROBLEM, ["I", " see", " the", " road", " see", " the"])
    assert start_token(record, "see the") == (len(PROBLEM) + 1, 1)


def test_a_phrase_across_the_end_of_the_prompt_is_not_in_the_problem():
    record = make_record(["ab"], ["cd"])
    assert start_token(record, "bc") == (1, 0)


def test_an_absent_phrase_warns_and_begins_at_the_response(caplog):
    assert start_token(make_record(PROBLEM, ["x"]), "no such words") == (len(PROBLEM), 0)
    assert "'no such words' was not found" in caplog.text


def test_no_phrase_begins_at_the_response_without_a_warning(caplog):
    assert start_token(make_record(PROBLEM, ["x"]), "") == (len(PROBLEM), 0)
    assert not caplog.records


def test_pieces_cover_every_position_from_the_start_in_order():
    record = make_record(["Go", " 路"], ["", "", "线", "\n", "!"], grids=[(2, 2), (1, 3)])
    pieces = vhm.text_pieces(record, 0)
    starts = [piece.start for piece in pieces]
    assert starts[0] == 0 and starts == sorted(set(starts))
    assert [piece.kind for piece in pieces] == ["special", "image", "image", "text", "text", "text", "text", "text"]
    assert [piece.text for piece in pieces[1:3]] == ["[image 1]", "[image 2]"]
    assert pieces[5].text == "线" and pieces[5].start == record.prompt_length


def test_the_run_of_image_tokens_has_their_summed_weight():
    record = make_record(["Go"], ["x", "y"], grids=[(2, 2), (1, 3)])
    renderer = vhm.FrameRenderer(record, [vhm.Image.new("RGB", (400, 300))] * 2, 1, "<s>", vhm.DrawingOptions())
    np.testing.assert_allclose(renderer.text_weights[:, 1], record.weights[:, 1, 1:5].sum(1), rtol=1e-5)
    np.testing.assert_allclose(renderer.text_weights[:, 2], record.weights[:, 1, 5:8].sum(1), rtol=1e-5)
    np.testing.assert_allclose(renderer.text_weights.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("token_id, kind", [(SPECIAL_ID, "special"), (11, "text")])
def test_special_tokens_are_known_by_their_id(token_id, kind):
    record = make_record(["a"], ["<|x|>"])
    ids = record.token_ids.copy()
    ids[-1] = token_id
    record = vhm.AttentionRecord(**{**vars(record), "token_ids": ids})
    assert vhm.text_pieces(record, len(ids) - 1)[0].kind == kind
