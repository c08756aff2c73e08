"""What is said: one line, harmless in any terminal, however long and odd the text."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_heatmap.log import LONGEST_LINE, logger, one_line, said_of, visible

HOSTILE = {
    "escapes": "\x1b[2J\x1b]0;title\x07 red \x9b31m",
    "controls": "".join(map(chr, range(32))) + "\x7f",
    "right to left": "a\u202eb\u2066c\u2069\u200f\u061cd",
    "surrogates": "a\ud800 \udc00\udfffb",
    "no characters": "\ufffe\uffff\U0010ffff",
    "joiners": "\u200d\u200b\ufeff\u2060",
    "tags": "\U000e0041\U000e007f",
}


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_written_harmlessly_and_is_left_as_it_is_where_it_was_so(text):
    shown = visible(text)
    assert all(char.isprintable() or char == "\n" or char.isspace() for char in shown)
    assert "\x1b" not in shown and shown.encode() is not None
    assert text != "".join(char for char in text if char.isprintable()) or shown == text
    assert len(one_line(text).splitlines()) <= 1


@pytest.mark.parametrize("name", HOSTILE)
def test_what_steers_a_terminal_is_shown_as_escapes(name):
    for shown in (visible(HOSTILE[name]), one_line(HOSTILE[name])):
        assert not set(shown) & (set(HOSTILE[name]) - set("aBbcd \n0123456789[]J;titleredm"))


@pytest.mark.parametrize("unit", ["x", "word ", "\x1b", "\n", "路", " ", "\U000e0041"])
def test_a_line_of_any_length_is_cut_soon(unit):
    line = one_line(unit * 5_000_000)
    assert len(line) <= LONGEST_LINE + 3 and "\n" not in line
    assert line.endswith("...") or not line


def test_an_error_whose_text_is_odd_is_said_all_the_same():
    assert one_line(OSError(2, "No such file", "a\nb")) == "[Errno 2] No such file: 'a\\nb'"
    assert one_line(ValueError()) == "" and one_line(KeyError("x")) == "'x'" and one_line(None) == "None"


def test_within_a_block_messages_begin_with_a_name_and_later_ones_do_not(caplog):
    with caplog.at_level(logging.INFO):
        try:
            with said_of("sample 7"):
                logger.warning("a %s of %d", "part", 3)
                raise KeyError
        except KeyError:
            pass
        logger.warning("later")
        with said_of("100% of %s"):
            logger.warning("plain")
            logger.warning("with %s", "more")
    assert caplog.messages == ["sample 7: a part of 3", "later", "100% of %s: plain", "100% of %s: with more"]
