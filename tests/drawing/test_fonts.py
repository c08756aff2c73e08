"""Fonts: a glyph for every character, or its code point and one warning; broken fonts; lines broken between words."""

import pytest
from drawn import FONTS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from attention_heatmap.drawing import fonts as room
from attention_heatmap.drawing.fonts import NEWLINE_MARK, TURNING_MARKS, BitmapFont, FontSet, cut_to, wrapped
from attention_heatmap.drawing.pen import Pen


@pytest.fixture
def ascii_only(monkeypatch):
    """Fonts of a machine on which no font has more than ASCII."""
    monkeypatch.setattr(room, "_fonts_with", lambda char: ())
    monkeypatch.setattr(room, "_warned_of", set())
    fonts = FontSet(20)
    fonts.has_glyph = lambda font, char: char.isascii()
    return fonts


def test_a_character_no_font_has_is_its_code_point_and_warns_once(ascii_only, caplog):
    assert "".join(part for _, part in ascii_only.runs("a路线")) == "a8DEF 7EBF "
    assert len(caplog.records) == 1 and "fonts-noto-cjk" in caplog.text


@pytest.mark.parametrize("char, package", [("😀", "fonts-noto-color-emoji"), ("ᚠ", "fonts-noto-core")])
def test_the_warning_names_the_font_to_install(ascii_only, caplog, char, package):
    ascii_only.runs(char)
    assert package in caplog.text


def test_a_font_without_the_newline_mark_writes_it_out(ascii_only, caplog):
    assert [part for _, part in ascii_only.runs("a" + NEWLINE_MARK)] == ["a", "\\n"] and not caplog.records


def test_an_accent_without_a_glyph_is_a_code_point_and_a_joiner_nothing(ascii_only):
    assert "".join(part for _, part in ascii_only.runs("e\u0301\u200dx")) == "e0301 x"


def test_marks_that_would_turn_the_order_of_the_tokens_are_not_drawn():
    for mark in TURNING_MARKS:
        assert "".join(part for _, part in FONTS.runs(f"a{mark}b")) == "ab"


def test_a_fallback_font_is_used_where_the_first_lacks_a_glyph(monkeypatch):
    fonts, other = FontSet(20), ImageFont.load_default(20)
    monkeypatch.setattr(fonts, "has_glyph", lambda font, char: font is not fonts.main or char != "x")
    monkeypatch.setattr(room, "_fonts_with", lambda char: (("other.ttf", 0),))
    monkeypatch.setattr(ImageFont, "truetype", lambda *args, **kwargs: other)
    assert fonts.runs("axa") == [(fonts.main, "a"), (other, "x"), (fonts.main, "a")]
    assert fonts.metrics() == tuple(map(max, fonts.main.getmetrics(), other.getmetrics()))


def test_a_fallback_font_that_is_broken_is_passed_over(ascii_only, monkeypatch, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(room, "_fonts_with", lambda char: ((str(tmp_path / "broken.ttf"), 0),))
    assert [part for _, part in ascii_only.runs("é")] == ["00E9 "]


def test_without_fontconfig_every_font_file_is_tried(monkeypatch, tmp_path):
    (tmp_path / "a.ttf").touch()
    (tmp_path / "a.txt").touch()
    monkeypatch.setattr(room, "FONT_FOLDERS", (str(tmp_path), str(tmp_path / "none")))
    monkeypatch.setenv("PATH", "")
    room._font_files.cache_clear()
    try:
        assert room._fonts_with.__wrapped__("x") == ((str(tmp_path / "a.ttf"), 0),)
    finally:
        room._font_files.cache_clear()


def test_without_any_font_pillows_own_is_used(monkeypatch):
    monkeypatch.setattr(room, "FONT_NAMES", ("none.ttf",))
    assert FontSet(20).width("word") > 10


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"no font"), lambda path: path.mkdir(), lambda path: 0])
def test_a_font_that_cannot_be_read_is_named(tmp_path, make):
    make(tmp_path / "broken.ttf")
    with pytest.raises(OSError, match=r"font_path .*broken\.ttf cannot be used: .*; give a .ttf, .otf or .ttc file"):
        FontSet(20, str(tmp_path / "broken.ttf"))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=12))
def test_any_text_has_a_width_and_is_drawn_up_to_it(text):
    canvas = Image.new("L", (2000, 60))
    end = Pen(canvas).text((10, 40), text, FONTS, 255)
    assert end == pytest.approx(10 + FONTS.width(text), abs=0.1) and FONTS.width(text) >= 0


def test_words_of_a_note_are_all_there_and_fit():
    lines = wrapped(["one two three four", "five"], FONTS, FONTS.width("one two"))
    assert lines == ["one two", "three", "four", "five"]
    begin, cut, end = wrapped(["a " + "w" * 90 + " b"], FONTS, 200)
    assert (begin, end) == ("a", "b") and "…" in cut and FONTS.width(cut) <= 200
    assert "…" in wrapped(["w" * 90], FONTS, 200)[0]  # no empty line before it


@pytest.mark.parametrize("width", [60, 100, 250])
def test_a_text_is_cut_in_its_middle_so_that_either_end_tells_it_from_others(width):
    cut = cut_to("Qwen2-VL-7B-Instruct-checkpoint-1200", FONTS, width)
    begin, end = cut.split("…")
    assert FONTS.width(cut) <= width < FONTS.width(cut) + 3 * FONTS.width("W")
    assert "Qwen2-VL-7B-Instruct-checkpoint-1200".startswith(begin) and cut.endswith("0") and len(end) in (
        len(begin), len(begin) - 1
    )  # fmt: skip
    assert cut_to("word", FONTS, 500) == "word" and cut_to("w", FONTS, 0) == "w" and cut_to("", FONTS, 0) == ""


@pytest.mark.skipif("NotoColorEmoji" not in " ".join(room._font_files()), reason="needs Noto Color Emoji")
@pytest.mark.parametrize("text", ["\U0001f680", "\U0001f468\u200d\U0001f680"], ids=["one", "joined"])
def test_coloured_emoji_of_a_bitmap_font_are_drawn_as_glyphs(text):
    fonts = FontSet(26)
    ((font, part),) = fonts.runs(text)
    assert isinstance(font, BitmapFont) and part == text
    assert 20 < font.getlength(part) < 60  # one picture, about as wide as high
    canvas = Image.new("L", (80, 60))
    Pen(canvas).text((10, 40), text, fonts, 255)
    assert canvas.getextrema()[1] > 127
