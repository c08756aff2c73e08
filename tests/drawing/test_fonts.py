import pytest

from attention_heatmap.drawing import fonts as room
from attention_heatmap.drawing.fonts import NEWLINE_MARK, FontSet, wrapped


def test_a_character_no_font_has_is_its_code_point_and_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(room, "_fonts_with", lambda char: ())
    monkeypatch.setattr(room, "_warned_of", set())
    fonts = FontSet(20)
    fonts.has_glyph = lambda font, char: char.isascii()
    assert "".join(part for _, part in fonts.runs("a路线")) == "a8DEF 7EBF "
    assert len(caplog.records) == 1 and "fonts-noto-cjk" in caplog.text


def test_a_font_without_the_newline_mark_writes_it_out(caplog):
    fonts = FontSet(20)
    fonts.has_glyph = lambda font, char: char.isascii()
    assert [part for _, part in fonts.runs("a" + NEWLINE_MARK)] == ["a", "\\n"] and not caplog.records


def test_a_fallback_font_is_used_where_the_first_lacks_a_glyph(monkeypatch):
    fonts, other = FontSet(20), room.ImageFont.load_default(20)
    monkeypatch.setattr(fonts, "has_glyph", lambda font, char: font is not fonts.main or char != "x")
    monkeypatch.setattr(room, "_fonts_with", lambda char: (("other.ttf", 0),))
    monkeypatch.setattr(room.ImageFont, "truetype", lambda *args, **kwargs: other)
    assert fonts.runs("axa") == [(fonts.main, "a"), (other, "x"), (fonts.main, "a")]


def test_a_font_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(OSError, match=r"font_path .*broken\.ttf cannot be used"):
        FontSet(20, str(tmp_path / "broken.ttf"))


def test_notes_are_broken_between_words():
    fonts = FontSet(20)
    lines = wrapped(["one two three four five six"], fonts, 120)
    assert " ".join(lines) == "one two three four five six" and max(map(fonts.width, lines)) <= 120
