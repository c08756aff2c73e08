"""The layout of the text: every token has its place, in every script, and lines break where they may."""

import itertools
import sys

import numpy as np
import pytest
from drawn import FONTS
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_heatmap.drawing import text_layout as room
from attention_heatmap.drawing.colour import CURRENT_TOKEN
from attention_heatmap.drawing.text import TextPiece
from attention_heatmap.drawing.text_layout import INK_LEVELS, layout_text
from attention_heatmap.drawing.text_panel import visualize_attention_step

ANY = st.characters(exclude_categories=("Cs",))
ARABIC, WHITE = st.sampled_from("مرحباالسلامعليكم"), st.sampled_from(" \t\n\r\x0b\x85\u2028\u3000\u00a0")
TOKEN = st.one_of(
    st.text(st.one_of(ANY, st.sampled_from(" \n路线a.")), max_size=12),
    st.text(WHITE, min_size=1, max_size=30),
    st.text(ARABIC, min_size=1, max_size=40),
    st.sampled_from(
        ["<think>", "</think>", "\x00\x07", "\u200b\u200d", "👩‍🚀", "नमस्ते", "\U0010ffff", "\ue000", " \n\n "]
    ),
)
TEXTS = st.lists(TOKEN, min_size=1, max_size=25)


def layout_of(texts, width=170, kind="text"):
    return layout_text([TextPiece(n, text, kind) for n, text in enumerate(texts)], FONTS, width)


def owners(layout):
    return {int(owner - 1) % len(layout.pieces) for owner in np.unique(layout.piece_index) if owner}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TEXTS, st.integers(60, 400))
def test_whatever_tokens_a_model_emits_each_has_its_place_and_none_runs_off(texts, width):
    layout = layout_of(texts, width)
    assert layout.ink.shape == layout.piece_index.shape and layout.ink.shape[1] == width
    assert layout.piece_index.max() <= 2 * len(texts) and layout.ink.max() < INK_LEVELS
    assert {n for n, text in enumerate(texts) if text} <= owners(layout)
    assert not layout.ink[layout.piece_index == 0].any() and not (layout.ink[:, -1] == INK_LEVELS - 1).any()
    assert (np.diff(layout.last_line) >= 0).all()
    last = max(unit.line for unit in layout.written) if layout.written else 0
    assert len(layout.ink) == (last + 1) * layout.line_height
    for unit in layout.written:
        for _, left, right in unit.parts:
            assert -0.01 <= left <= right + 0.01


@settings(max_examples=30, deadline=None, derandomize=True)
@given(TEXTS, st.integers(60, 400))
def test_places_of_one_line_do_not_overlap_and_stay_in_it_unless_one_character_is_wider(texts, width):
    layout = layout_of(texts, width)
    for line in {unit.line for unit in layout.written}:
        parts = sorted((left, right) for unit in layout.written if unit.line == line for _, left, right in unit.parts)
        assert all(end <= start + 0.01 for (_, end), (start, _) in itertools.pairwise(parts))
        assert parts[-1][1] <= width or len(parts) == 1


def test_words_wrap_whole_and_chinese_between_characters():
    assert layout_of([" extra", "ordinary", " route"]).last_line.tolist() == [0, 0, 1]
    assert layout_of(["路线从红色圆形开始路线从红色圆形开始"]).last_line[0] >= 1


def test_no_line_begins_with_a_mark_that_ends_a_clause():
    for count in range(5, 12):
        layout = layout_of(["线"] * count + ["。"])
        firsts = {unit.line: unit.text for unit in reversed(layout.written)}
        assert "。" not in firsts.values()


@pytest.mark.parametrize("count, after", [(1, []), (3, []), (1, ["word"]), (3, ["word"]), (1, ["\n", "x"])])
def test_a_space_has_its_place_also_where_a_line_ends(after, count):
    for words in range(1, 30):  # somewhere among them the line is full
        texts = ["w"] * words + [" "] * count + after
        assert owners(layout_of(texts)) == set(range(len(texts)))


def test_many_spaces_are_each_to_be_seen():
    texts = ["x", *[" "] * 500, "x"]
    layout = layout_of(texts)
    assert owners(layout) == set(range(len(texts))) and layout.last_line[-1] > 2


def test_a_newline_begins_a_line_and_a_word_wider_than_the_panel_is_broken():
    layout = layout_of(["a\nb", "w" * 80], 200)
    assert layout.last_line[0] == 1 and layout.last_line[1] > 3


@pytest.mark.parametrize("space", ["\t", "\r", "\x0b", "\x85", "\u2028", "\u3000", "\u00a0"])
def test_white_space_of_any_kind_is_empty(space):
    layout, plain = layout_of(["x" + space * 2 + "x"], 200), layout_of(["x"], 200)
    assert layout.ink.sum() == pytest.approx(2 * plain.ink.sum(), rel=0.05)
    assert layout.piece_index.astype(bool).sum() > 2.2 * plain.piece_index.astype(bool).sum()


def test_a_token_of_characters_that_nobody_sees_is_its_code_points():
    layout = layout_of(["\u200b"])
    assert layout.written[0].text == "[U+200B]" and layout.ink.any()


def left_ends(texts):
    """Where each piece begins on its line."""
    layout = layout_of(texts, 800)
    return [np.nonzero(layout.piece_index == n + 1)[1].min() for n in range(len(texts))]


def test_right_to_left_script_is_turned_round_and_its_numbers_are_not():
    latin, first, second, one, two, last = left_ends(["abc", "שלום", " עולם", " 1", "2", "def"])
    assert latin < one < two < second < first < last


@pytest.mark.parametrize(
    "pieces, shown",
    [
        (["שלום", " (", "כן", ")", " סוף"], "סוף (כן) שלום"),
        (["שלום", " [", "12", "]", " {", "כן", "}"], "{כן} [12] שלום"),
        (["abc", " (", "שלום", ")", " def"], "abc (שלום) def"),
        (["שלום", " (", "abc", ")"], "שלום (abc)"),
        (["(", "שלום", ")"], "(שלום)"),
        (["שלום", ")", " abc"], "שלום) abc"),
    ],
)
def test_brackets_between_words_of_right_to_left_script_are_turned_round_with_them(pieces, shown):
    written = sorted(layout_of(pieces).written, key=lambda unit: unit.x)
    assert "".join(unit.text for unit in written) == shown  # from left to right


def needs_font_of(text):
    """Skips a test of letters that no installed font has."""
    if not all(FONTS._font_for(char) for char in text):
        pytest.skip(f"no installed font has {text}: install one, such as Debian's fonts-noto-core")


@pytest.mark.parametrize("word", [["مر", "حبا"], ["नम", "स्", "ते"]])
def test_letters_join_across_tokens_and_each_token_keeps_a_part_of_the_word(word):
    needs_font_of("".join(word))
    layout, whole = layout_of(word), layout_of(["".join(word)])
    assert len(layout.written) == 1 and [f.piece for f, _, _ in layout.written[0].parts] == list(range(len(word)))
    np.testing.assert_array_equal(layout.ink > 0, whole.ink > 0)
    least = room.LEAST_PART * FONTS.width("".join(word)) / len(word)
    assert all(right - left >= 0.9 * least for _, left, right in layout.written[0].parts)


def test_the_first_token_of_an_arabic_word_stands_at_its_right():
    first, second = left_ends(["مر", "حبا"])
    assert second < first


def test_letters_of_other_scripts_do_not_join():
    assert len(layout_of(["ex", "tra"]).written) == 2


def test_a_long_arabic_word_costs_no_more_for_each_letter(monkeypatch):
    """Words of many tokens are measured piece by piece; each measure is of a part that stands on one line."""
    longest, counts = [0], []
    measure = FONTS.width
    monkeypatch.setattr(FONTS, "width", lambda text: longest.append(len(text)) or measure(text), raising=False)
    for tokens in (300, 600):
        longest[:] = [0]
        layout_of(["م"] * tokens, 200)
        counts.append(len(longest))
        assert max(longest) < 100
    assert counts[1] < 2.5 * counts[0]


def test_three_thousand_tokens_take_as_many_steps_each_as_three_hundred():
    counts = []
    for tokens in (300, 3000):
        calls = [0]
        sys.setprofile(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        try:
            layout = layout_of(["(100,200)", " <answer>", " "] * (tokens // 3), 300)
        finally:
            sys.setprofile(None)
        assert {f.piece for unit in layout.written for f, _, _ in unit.parts} == set(range(tokens))
        counts.append(calls[0])
    assert counts[1] < 12 * counts[0]


def test_a_run_of_image_tokens_is_a_chip_with_round_corners():
    layout = layout_of(["[image 1]"], 300, "image")
    chip = layout.piece_index == 1
    rows, columns = np.nonzero(chip)
    assert not chip[rows.min(), columns.min()] and not chip[rows.max(), columns.min()]
    assert chip[(rows.min() + rows.max()) // 2, columns.min()] and layout.ink.any()


def test_two_tokens_and_two_lines_are_parted_by_white():
    layout = layout_of(["MM", "MM", "\n", "MM"], 300)
    P, row = 4, layout.piece_index[layout.line_height // 2]
    edge = np.flatnonzero(row == 2).min()  # where the second begins
    assert row[edge - 1] == 1 + P
    tops = layout.piece_index[:: layout.line_height]
    assert ((tops == 0) | (tops > P)).all() and layout.gap >= 1


@pytest.mark.parametrize("texts", [[" "] * 30, ["w", *[" "] * 60, "x"], ["\t"] * 30, ["ل" * 200], ["سلام" * 60, " a"]])
def test_runs_of_white_space_and_endless_words_have_their_place(texts):
    for width in (70, 171, 500):
        layout = layout_of(texts, width)
        assert set(range(1, len(texts) + 1)) <= set(np.unique(layout.piece_index))
        for current in range(0, len(texts), 7):
            panel = np.asarray(visualize_attention_step(layout, np.zeros(len(texts)), current, 120))
            assert (panel == CURRENT_TOKEN).all(axis=2).any()


@pytest.mark.parametrize("word", ["لا", "السلام", "كتاب", "नमस्ते", "मन्त्री"])
def test_a_word_of_joined_letters_looks_the_same_whatever_tokens_it_is_made_of(word):
    needs_font_of(word)
    whole = layout_of([word])
    for cut in range(1, len(word)):
        parted = layout_of([word[:cut], word[cut:]])
        np.testing.assert_array_equal(parted.ink, whole.ink)
        assert {1, 2} <= set(np.unique(parted.piece_index))
