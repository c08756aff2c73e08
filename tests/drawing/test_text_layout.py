import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_heatmap.drawing.colour import CURRENT_TOKEN
from attention_heatmap.drawing.fonts import FontSet
from attention_heatmap.drawing.text import TextPiece
from attention_heatmap.drawing.text_layout import layout_text
from attention_heatmap.drawing.text_panel import visualize_attention_step

FONTS = FontSet(20)
ALPHABET = st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from(" \n路线a.لاب"))
TEXTS = st.lists(st.text(ALPHABET, max_size=12), min_size=1, max_size=20)


def laid_out(texts, width=170):
    return layout_text([TextPiece(n, text, "text") for n, text in enumerate(texts)], FONTS, width)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(TEXTS, st.integers(60, 400))
def test_every_token_has_its_place_and_nothing_leaves_the_panel(texts, width):
    layout = laid_out(texts, width)
    assert layout.ink.shape == layout.piece_index.shape and layout.ink.shape[1] == width
    assert layout.piece_index.max() <= 2 * len(texts)
    owners = {int(owner - 1) % len(texts) for owner in np.unique(layout.piece_index) if owner}
    assert {n for n, text in enumerate(texts) if text.strip()} <= owners
    assert not layout.ink[layout.piece_index == 0].any()
    assert (np.diff(layout.last_line) >= 0).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(TEXTS, st.integers(60, 200), st.data())
def test_the_current_token_is_in_view_in_every_frame(texts, height, data):
    layout = laid_out([text or "·" for text in texts], 150)
    current = data.draw(st.integers(0, len(texts) - 1))
    panel = np.asarray(visualize_attention_step(layout, np.zeros(len(texts)), current, height))
    assert panel.shape == (height, 150, 3)
    if (texts[current] or "·").strip():
        assert (panel == CURRENT_TOKEN).all(axis=2).any()


@pytest.mark.parametrize("texts", [[" "] * 30, ["w", *[" "] * 60, "x"], ["\t"] * 30, ["ل" * 200], ["سلام" * 60, " a"]])
def test_runs_of_white_space_and_endless_words_have_their_place(texts):
    for width in (70, 171, 500):
        layout = laid_out(texts, width)
        assert set(range(1, len(texts) + 1)) <= set(np.unique(layout.piece_index))
        for current in range(0, len(texts), 7):
            panel = np.asarray(visualize_attention_step(layout, np.zeros(len(texts)), current, 120))
            assert (panel == CURRENT_TOKEN).all(axis=2).any()


@pytest.mark.parametrize("count, after", [(1, []), (3, []), (1, ["word"]), (3, ["word"]), (1, ["\n", "x"])])
def test_a_space_has_its_place_also_where_a_line_ends(count, after):
    for words in range(1, 30):  # somewhere among them the line is full
        texts = ["w"] * words + [" "] * count + after
        assert set(range(1, len(texts) + 1)) <= set(np.unique(laid_out(texts).piece_index))


@pytest.mark.parametrize("word", ["لا", "السلام", "كتاب", "नमस्ते", "मन्त्री"])
def test_a_word_of_joined_letters_looks_the_same_whatever_tokens_it_is_made_of(word):
    whole = laid_out([word])
    for cut in range(1, len(word)):
        parted = laid_out([word[:cut], word[cut:]])
        np.testing.assert_array_equal(parted.ink, whole.ink)
        assert {1, 2} <= set(np.unique(parted.piece_index))


def test_right_to_left_words_are_turned_and_their_numbers_are_not():
    layout = laid_out(["שלום", " ", "עולם", " ", "12", "3"], 400)
    left = {piece: np.nonzero((layout.piece_index == piece + 1).any(axis=0))[0].min() for piece in range(6)}
    assert left[0] > left[2] > left[5] > left[4]


def test_words_wrap_whole_and_chinese_between_characters():
    assert laid_out([" extra", "ordinary", " route"]).last_line.tolist() == [0, 0, 1]
    assert laid_out(["路线从红色圆形开始路线从红色圆形开始"]).last_line[0] >= 1


def test_a_newline_begins_a_line_and_a_word_wider_than_the_panel_is_broken():
    layout = laid_out(["a\nb", "w" * 80], 200)
    assert layout.last_line[0] == 1 and layout.last_line[1] > 3
