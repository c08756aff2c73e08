import re
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, make_record, picture
from hypothesis import given, settings
from hypothesis import strategies as st

import visualizeHeatMap as vhm

FONTS = vhm.FontSet(20)


def renderer_of(record, images=None, layer=1, size=SMALL, phrase="Based", **options):
    images = images or [picture()] * len(record.images)
    options = vhm.DrawingOptions(frame_size=size, **options)
    return vhm.FrameRenderer(record, images, layer, phrase, options)


def cell_centre(renderer, cell):
    """(y, x) on the frame of the middle of a cell."""
    rows, columns = np.nonzero(renderer.image.cell_index == cell + 1)
    left, top = renderer.image_at
    return top + (rows.min() + rows.max()) // 2, left + (columns.min() + columns.max()) // 2


def hot_record(cells, **kwargs):
    """A record in which step t looks at image token cells[t] and at nothing else of the picture."""
    record = make_record(["Based", " on"], [f" w{t}" for t in range(len(cells))], **kwargs)
    weights = record.weights.copy()
    for t, cell in enumerate(cells):
        weights[t, :, record.images[0].positions] = 0
        weights[t, :, record.images[0].positions[cell]] = 0.5
    return vhm.AttentionRecord(**{**vars(record), "weights": weights})


def on_white(weight, alpha_range):
    return vhm.tinted(np.array([weight]), vhm.red_to_green, alpha_range)[0]


# ---- the picture -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hot, cell", [(0, (0, 0)), (3, (0, 3)), (4, (1, 0)), (11, (2, 3))])
def test_the_hot_image_token_is_the_green_cell_of_the_grid(hot, cell):
    renderer = renderer_of(hot_record([hot]))
    frame = renderer.draw(0)
    for number in range(12):
        y, x = cell_centre(renderer, number)
        expected = on_white(1.0 if number == hot else 0.0, vhm.CELL_ALPHA)
        np.testing.assert_allclose(frame[y, x], expected, atol=1.5)
    rows, columns = np.nonzero(renderer.image.cell_index == hot + 1)
    whole_rows, whole_columns = np.nonzero(renderer.image.cell_index)
    assert (rows.mean() - whole_rows.min()) // (np.ptp(whole_rows) / 3) == cell[0]
    assert (columns.mean() - whole_columns.min()) // (np.ptp(whole_columns) / 4) == cell[1]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12))
def test_the_colour_at_a_cells_centre_is_the_colour_map_at_its_weight(values):
    record = make_record(["a"], ["b"])
    layout = vhm.layout_images(record, [picture()], 300, 240, FONTS)
    panel = np.asarray(vhm.draw_heat(layout, np.array(values)))
    for cell, weight in enumerate(values):
        rows, columns = np.nonzero(layout.cell_index == cell + 1)
        y, x = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
        np.testing.assert_allclose(panel[y, x], on_white(weight, vhm.CELL_ALPHA), atol=1.5)


@pytest.mark.parametrize("size, grid", [((333, 211), (7, 5)), ((97, 640), (23, 3)), ((1000, 50), (1, 37))])
def test_cells_reach_every_edge_of_the_picture(size, grid):
    record = make_record(["a"], ["b"], grids=[grid], size=size)
    layout = vhm.layout_images(record, [picture(size, "black")], 500, 400, FONTS)
    drawn = (layout.picture != vhm.PAPER).any(axis=2)
    np.testing.assert_array_equal(drawn, layout.cell_index > 0)
    assert len(np.unique(layout.cell_index[drawn])) == grid[0] * grid[1]


def test_the_picture_keeps_its_shape_and_fills_the_panel_one_way():
    record = make_record(["a"], ["b"], size=(200, 100))
    layout = vhm.layout_images(record, [picture((200, 100))], 500, 400, FONTS)
    rows, columns = np.nonzero(layout.cell_index)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (500, 250)


def test_two_pictures_do_not_overlap_and_share_one_scale():
    record = make_record(["Based"], [" w"], grids=[(3, 4), (2, 5)])
    record.images[1].boxes[:] = vhm.grid_boxes(2, 5, 100, 300)
    renderer = renderer_of(record, [picture((400, 300)), picture((100, 300))])
    assert len(renderer.image.positions) == 22
    assert set(np.unique(renderer.image.cell_index)) == set(range(23))
    assert renderer.cell_ends[0] == pytest.approx(renderer.cell_weights.max())


def test_a_token_without_a_place_is_drawn_nowhere():
    record = make_record(["a"], ["b"])
    boxes = record.images[0].boxes.copy()
    boxes[5] = np.nan
    images = (vhm.ImageTokens(record.images[0].positions, boxes),)
    layout = vhm.layout_images(vhm.AttentionRecord(**{**vars(record), "images": images}), [picture()], 300, 240, FONTS)
    assert record.images[0].positions[5] not in layout.positions and len(layout.positions) == 11


def test_grid_lines_run_where_cells_meet_and_tiny_cells_have_none():
    lines = vhm.layout_images(make_record(["a"], ["b"]), [picture()], 400, 300, FONTS).picture
    assert (lines[150, 100] < 255).all() and (lines[100, 50] < 255).all() and (lines[50, 50] == 255).all()
    fine = make_record(["a"], ["b"], grids=[(100, 100)])
    assert (vhm.layout_images(fine, [picture()], 400, 300, FONTS).picture == 255).all()


def golden_heat(name):
    """(heat, file) of a drawing without any text: 5 x 7 cells on a gradient, one of them without a place."""
    record = make_record(["a"], ["b"], grids=[(5, 7)], size=(140, 100))
    record.images[0].boxes[17] = np.nan
    y, x = np.mgrid[0:100, 0:140]
    image = vhm.Image.fromarray(np.stack([x, y * 2, 250 - x], axis=-1).astype(np.uint8))
    layout = vhm.layout_images(record, [image], 180, 150, FONTS)
    values = np.random.default_rng(5).random(34) ** 2
    return vhm.draw_heat(layout, values, vhm.COLORMAPS[name]), Path(__file__).parent / "golden" / f"{name}.png"


@pytest.mark.parametrize("name", vhm.COLORMAPS)
def test_the_heat_looks_as_it_did(name):
    """To draw the golden pictures anew: python -c "import test_frames as t; h, p = t.golden_heat(NAME); h.save(p)"."""
    heat, path = golden_heat(name)
    with vhm.Image.open(path) as golden:
        np.testing.assert_allclose(np.asarray(heat, int), np.asarray(golden.convert("RGB"), int), atol=3)


@pytest.mark.parametrize("size", [(640, 800), (720, 1280), (1080, 1920)])
@pytest.mark.parametrize("sizes", [[(400, 300)], [(300, 300)], [(900, 100), (300, 400)]])
def test_in_a_frame_taller_than_wide_the_pictures_stand_above_the_text(size, sizes):
    record = make_record(["Based"], ["w"] * 3, grids=[(3, 4)] * len(sizes))
    images = [picture(each) for each in sizes]
    tall, wide = renderer_of(record, images, size=size), renderer_of(record, images, size=(size[0], size[0]))
    high = len(tall.image.picture)
    assert tall.stacked and not wide.stacked
    assert tall.image_at[1] + high < tall.text_at[1] - tall.px(50) and tall.image_at[0] == tall.text_at[0]
    assert tall.text_size[1] >= 0.3 * (tall.text_size[1] + high)
    areas = [min(w * h for *_, w, h in renderer.image.places) for renderer in (tall, wide)]
    assert areas[0] > areas[1]
    assert max(top + high for _, top, _, high in tall.image.places) == high


def test_a_picture_that_stacking_would_make_smaller_stands_beside_the_text_in_a_tall_frame_too():
    renderer = renderer_of(make_record(["Based"], ["w"]), [picture((100, 900))], size=(640, 800))
    assert not renderer.stacked and renderer.image_at[0] > renderer.text_at[0]


@pytest.mark.parametrize("options", [{}, {"baseline": "relative"}, {"baseline": "median"}, {"scale": "frame"}])
@pytest.mark.parametrize("size", [(640, 360), (640, 640), (640, 800), (1080, 1920)])
def test_the_colour_bars_and_their_numbers_stand_side_by_side(size, options):
    record = hot_record([0, 3, 4])
    if options.get("baseline") == "relative":
        record = vhm.AttentionRecord(**{**vars(record), "neutral": np.full((2, 12), 1e-3, np.float32)})
    renderer = renderer_of(record, size=size, **options)
    bars = renderer.draw(1)[renderer.footer : renderer.footer + renderer.px(24)]
    between = renderer.second_bar - renderer.px(vhm.MARGIN) // 2
    assert (bars[:, between : renderer.second_bar] == 255).all() and (bars[:, renderer.right :] == 255).all()
    assert (bars[:, : renderer.second_bar] != 255).any() and (bars[:, renderer.second_bar :] != 255).any()


# ---- the text --------------------------------------------------------------------------------------


def token_pixels(renderer, piece):
    """The background pixels of a piece in the panel of the first lines."""
    height = renderer.text_size[1] // renderer.text.line_height * renderer.text.line_height
    return (renderer.text.piece_index[:height] == piece + 1) & (renderer.text.ink[:height] == 0)


def text_panel(renderer, step):
    height = renderer.text_size[1] // renderer.text.line_height * renderer.text.line_height
    left, top = renderer.text_at
    panel = renderer.draw(step)[top:, left : left + renderer.text_size[0]]
    return panel[: len(renderer.text.piece_index[:height])]


def test_the_current_token_is_blue_and_later_ones_are_not_shown():
    record = make_record(["Based", " on"], [" one", " two", " three"])
    renderer = renderer_of(record)
    for step in range(3):
        panel = text_panel(renderer, step)
        assert (panel[token_pixels(renderer, 2 + step)] == vhm.CURRENT_TOKEN).all()
        for later in range(3 + step, 5):
            owned = np.isin(renderer.text.piece_index[: len(panel)] % 5, [(later + 1) % 5])
            assert (panel[owned] == 255).all()


def test_a_token_is_coloured_by_its_weight():
    record = make_record(["Based", " on", " it"], [" w", " v"])
    renderer = renderer_of(record)
    panel = text_panel(renderer, 1)
    for piece in range(4):
        position = record.prompt_length - 3 + piece
        weight = record.weights[1, 1, position] / renderer.text_ends[1]
        np.testing.assert_allclose(panel[token_pixels(renderer, piece)][0], on_white(weight, vhm.TEXT_ALPHA), atol=1.5)


def test_a_character_of_several_tokens_is_blue_while_any_of_them_is_made():
    renderer = renderer_of(make_record(["Based"], [" a", "", "", "é"]))
    for step in (1, 2, 3):
        assert (text_panel(renderer, step)[token_pixels(renderer, 2)] == vhm.CURRENT_TOKEN).all()


TEXTS = st.lists(
    st.text(st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from(" \n路线a.")), max_size=12),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TEXTS, st.integers(60, 400))
def test_nothing_overlaps_and_every_token_has_its_place(texts, width):
    pieces = [vhm.TextPiece(n, text, "text") for n, text in enumerate(texts)]
    layout = vhm.layout_text(pieces, FONTS, width)
    assert layout.ink.shape == layout.piece_index.shape and layout.ink.shape[1] == width
    owners = {int(owner) % len(pieces) for owner in np.unique(layout.piece_index) if owner}
    assert layout.piece_index.max() <= 2 * len(pieces)
    for number, text in enumerate(texts):
        if text.strip():
            assert (number + 1) % len(pieces) in owners
    edges = layout.ink[:, [0, -1]]
    assert not layout.ink[layout.piece_index == 0].any() and not (edges[:, 1] == layout.ink.max(initial=1)).any()
    assert (np.diff(layout.last_line) >= 0).all()
    assert layout.ink.shape[0] == (layout.last_line[-1] + 1) * layout.line_height or not "".join(texts).strip(" ")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(TEXTS, st.integers(60, 200), st.data())
def test_the_current_token_is_in_view_in_every_frame(texts, height, data):
    texts = [*texts, "x"]
    pieces = [vhm.TextPiece(n, text or "·", "text") for n, text in enumerate(texts)]
    layout = vhm.layout_text(pieces, FONTS, 150)
    current = data.draw(st.integers(0, len(pieces) - 1))
    panel = np.asarray(vhm.visualize_attention_step(layout, np.zeros(len(pieces)), current, height))
    assert panel.shape == (height, 150, 3)
    if pieces[current].text.strip():
        assert (panel == vhm.CURRENT_TOKEN).all(axis=2).any()


def test_words_wrap_whole_and_chinese_between_characters():
    layout = vhm.layout_text(
        [vhm.TextPiece(n, text, "text") for n, text in enumerate([" extra", "ordinary", " route"])], FONTS, 170
    )
    assert layout.last_line.tolist() == [0, 0, 1]
    chinese = vhm.layout_text([vhm.TextPiece(0, "路线从红色圆形开始路线从红色圆形开始", "text")], FONTS, 170)
    assert chinese.last_line[0] >= 1


@pytest.mark.parametrize("count, after", [(1, []), (3, []), (1, ["word"]), (3, ["word"]), (1, ["\n", "x"])])
def test_a_space_has_its_place_also_where_a_line_ends(after, count):
    for words in range(1, 30):  # somewhere among them the line is full
        texts = ["w"] * words + [" "] * count + after
        layout = vhm.layout_text([vhm.TextPiece(n, t, "text") for n, t in enumerate(texts)], FONTS, 170)
        assert set(range(1, len(texts) + 1)) <= set(np.unique(layout.piece_index))
        panel = np.asarray(vhm.visualize_attention_step(layout, np.zeros(len(texts)), words, 200))
        assert (panel == vhm.CURRENT_TOKEN).all(axis=2).any()


def test_a_newline_begins_a_line_and_a_word_wider_than_the_panel_is_broken():
    pieces = [vhm.TextPiece(0, "a\nb", "text"), vhm.TextPiece(1, "w" * 80, "text")]
    layout = vhm.layout_text(pieces, FONTS, 200)
    assert layout.last_line[0] == 1 and layout.last_line[1] > 3


def test_a_character_no_font_has_is_its_code_point_and_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(vhm, "_fonts_with", lambda char: ())
    monkeypatch.setattr(vhm, "_warned_of", set())
    fonts = vhm.FontSet(20)
    fonts.has_glyph = lambda font, char: char.isascii()
    assert "".join(part for _, part in fonts.runs("a路线")) == "a8DEF 7EBF "
    assert len(caplog.records) == 1 and "fonts-noto-cjk" in caplog.text


def test_a_font_without_the_newline_mark_writes_it_out(caplog):
    fonts = vhm.FontSet(20)
    fonts.has_glyph = lambda font, char: char.isascii()
    assert [part for _, part in fonts.runs("a" + vhm.NEWLINE_MARK)] == ["a", "\\n"] and not caplog.records


def test_a_fallback_font_is_used_where_the_first_lacks_a_glyph(monkeypatch):
    fonts = vhm.FontSet(20)
    other = vhm.ImageFont.load_default(20)
    monkeypatch.setattr(fonts, "has_glyph", lambda font, char: font is not fonts.main or char != "x")
    monkeypatch.setattr(vhm, "_fonts_with", lambda char: (("other.ttf", 0),))
    monkeypatch.setattr(vhm.ImageFont, "truetype", lambda *args, **kwargs: other)
    assert fonts.runs("axa") == [(fonts.main, "a"), (other, "x"), (fonts.main, "a")]


def test_a_font_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(OSError, match=r"font_path .*broken\.ttf cannot be used"):
        vhm.FontSet(20, str(tmp_path / "broken.ttf"))


def contrast(first, second):
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour):
        c = np.asarray(colour, float) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


COLOUR = st.tuples(*[st.integers(0, 255)] * 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(COLOUR, min_size=2, max_size=4), st.sampled_from(["tint", "glyph"]))
def test_all_text_is_readable_on_its_background_with_any_colour_map(stops, text_style):
    colormap = lambda values: vhm._between(stops, values)  # noqa: E731
    grounds, glyphs = vhm.text_colours(np.linspace(0, 1, 21), colormap, text_style)
    for ground, glyph in zip(grounds, glyphs):
        assert contrast(np.round(ground), np.round(glyph)) >= 4.5


@pytest.mark.parametrize("colormap", vhm.COLORMAPS.values())
def test_special_tokens_and_the_current_one_are_readable(colormap):
    for ground in vhm.text_colours(np.linspace(0, 1, 21), colormap, "tint")[0]:
        assert contrast(vhm.MUTED, vhm.blend(255, ground, vhm.SPECIAL_ALPHA)) >= 4.5
    for glyph in vhm.text_colours(np.linspace(0, 1, 21), colormap, "glyph")[1]:
        assert contrast(vhm.PAPER, vhm.blend(np.array(vhm.MUTED), glyph, vhm.SPECIAL_ALPHA)) >= 4.5
    assert contrast(vhm.PAPER, vhm.CURRENT_TOKEN) >= 4.5
    assert contrast(255 - (255 - np.array(vhm.CURRENT_TOKEN)) * vhm.CURRENT_ALPHA, vhm.CURRENT_TOKEN) >= 4.5


def test_the_maps_own_colours_are_left_as_they_are():
    for colormap in vhm.COLORMAPS.values():
        expected = vhm.tinted(np.linspace(0, 1, 9), colormap, vhm.TEXT_ALPHA)
        np.testing.assert_allclose(vhm.text_colours(np.linspace(0, 1, 9), colormap, "tint")[0], expected, atol=0.5)


def test_the_second_map_is_told_apart_without_red_and_green():
    """By a deuteranope, who sees red and green as one yellow, and by lightness alone."""
    low, high = (vhm.blue_to_yellow(np.array([end]))[0] for end in (0.0, 1.0))
    assert contrast(low, high) > 4.5
    assert high[:2].mean() - high[2] > 100 and low[2] - low[:2].mean() > 50


def test_coloured_glyphs_stand_on_white_and_the_current_one_is_blue():
    record = make_record(["Based", "MM"], ["MM", "MM"])
    renderer = renderer_of(record, text_style="glyph", size=vhm.DEFAULT_FRAME_SIZE)  # thick enough glyphs
    panel, index, ink = text_panel(renderer, 1), renderer.text.piece_index, renderer.text.ink
    full = (ink == vhm.INK_LEVELS - 1)[: len(panel)]
    weight = record.weights[1, 1, record.prompt_length - 1] / renderer.text_ends[1]
    expected = vhm.text_colours(np.array([weight]), vhm.red_to_green, "glyph")[1][0]
    np.testing.assert_allclose(panel[full & (index == 2)][0], expected, atol=2.5)
    assert (panel[token_pixels(renderer, 1)] == 255).all()
    assert (panel[full & (index == 4)] == vhm.CURRENT_TOKEN).all()
    assert (panel[token_pixels(renderer, 3)] != 255).any()


def test_a_run_of_image_tokens_is_a_chip_with_round_corners_coloured_by_its_weight():
    renderer = renderer_of(make_record(["Go"], ["x", "y"]), phrase="<s>")
    chip = renderer.text.piece_index == 2
    rows, columns = np.nonzero(chip)
    assert not chip[rows.min(), columns.min()] and not chip[rows.max(), columns.min()]
    assert chip[(rows.min() + rows.max()) // 2, columns.min()]
    weight = min(renderer.text_weights[1, 1] / renderer.text_ends[1], 1)
    ground = text_panel(renderer, 1)[token_pixels(renderer, 1)]
    np.testing.assert_allclose(np.median(ground, axis=0), on_white(weight, vhm.TEXT_ALPHA), atol=1.5)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(TEXTS, TEXTS, st.booleans(), st.sampled_from([SMALL, (640, 800), (720, 1280)]))
def test_nothing_is_drawn_outside_its_panel_and_the_current_token_is_in_every_frame(problem, response, wide, size):
    record = make_record(["Based", *problem], [text or "·" for text in response])
    renderer = renderer_of(record, [picture((400, 100) if wide else (100, 400), "khaki")], size=size)
    renderer = renderer if "Based" in "".join(problem) else renderer_of(record, size=size)
    (left, top), (width, height) = renderer.text_at, renderer.text_size
    bottom = top + height
    assert bottom <= renderer.footer and left + width <= renderer.right
    for step in range(0, record.response_length, 7):
        frame = renderer.draw(step)
        if renderer.stacked:  # between the pictures and the heading of the text
            low, between = renderer.image_at[1] + len(renderer.image.picture), renderer.px(8)
            assert (frame[low : low + between] == 255).all() and top > low + between
        else:
            assert (frame[:bottom, left + width : renderer.image_at[0]] == 255).all()
        assert (frame[bottom : renderer.footer] == 255).all()
        assert (frame[:, : renderer.left] == 255).all() and (frame[:, renderer.right :] == 255).all()
        text = frame[top:bottom, left : left + width]
        current = renderer.text.pieces[int((renderer.piece_starts <= record.prompt_length + step).sum()) - 1]
        assert (text == vhm.CURRENT_TOKEN).all(axis=2).any() or not current.text.strip()


# ---- every script ----------------------------------------------------------------------------------


def left_ends(texts):
    """Where each piece begins on its line."""
    layout = vhm.layout_text([vhm.TextPiece(n, text, "text") for n, text in enumerate(texts)], FONTS, 800)
    return [np.nonzero(layout.piece_index == n + 1)[1].min() for n in range(len(texts))]


def test_right_to_left_script_is_turned_round_and_its_numbers_are_not():
    latin, first, second, one, two, last = left_ends(["abc", "שלום", " עולם", " 1", "2", "def"])
    assert latin < one < two < second < first < last


def test_arabic_letters_join_across_tokens():
    fragments = vhm._fragments([vhm.TextPiece(0, " مر", "text"), vhm.TextPiece(1, "حبا", "text")], FONTS)
    assert [fragment.text for fragment in fragments] == [" ", "مر" + vhm.JOINER, vhm.JOINER + "حبا"]


@pytest.mark.parametrize("space", ["\t", "\r", "\x0b", "\x85", "\u2028", "\u3000", "\u00a0"])
def test_white_space_of_any_kind_is_empty(space):
    layout = vhm.layout_text([vhm.TextPiece(0, "x" + space * 2 + "x", "text")], FONTS, 200)
    plain = vhm.layout_text([vhm.TextPiece(0, "x", "text")], FONTS, 200)
    assert layout.ink.sum() == pytest.approx(2 * plain.ink.sum(), rel=0.05)
    assert layout.piece_index.astype(bool).sum() > 2.2 * plain.piece_index.astype(bool).sum()


def test_an_accent_without_a_glyph_is_a_code_point_and_a_joiner_nothing(monkeypatch):
    monkeypatch.setattr(vhm, "_fonts_with", lambda char: ())
    fonts = vhm.FontSet(20)
    fonts.has_glyph = lambda font, char: char.isascii()
    assert "".join(part for _, part in fonts.runs("e\u0301\u200dx")) == "e0301 x"


# ---- scales, shares, whole frames ------------------------------------------------------------------


def test_one_scale_for_the_video_or_one_a_frame():
    record = hot_record([0, 1, 2])
    weights = record.weights.copy()
    weights[1] *= 0.1
    record = vhm.AttentionRecord(**{**vars(record), "weights": weights})
    video, frame = renderer_of(record), renderer_of(record, scale="frame")
    np.testing.assert_allclose(video.cell_ends, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(frame.cell_ends, [0.5, 0.05, 0.5])
    with pytest.raises(ValueError, match="scale is 'page'; expected 'video' or 'frame'"):
        renderer_of(record, scale="page")


def test_shares_name_every_part_and_sum_to_one():
    record = make_record(["Based"], [" a", " b"], grids=[(3, 4), (2, 2)])
    shares = vhm.attention_shares(record, 1)
    assert [share.name for share in shares] == ["image 1", "image 2", "problem", "response", "first token (sink)"]
    np.testing.assert_allclose(sum(share.weights for share in shares), 1, rtol=1e-5)
    row = record.weights[1, 1]
    np.testing.assert_allclose(
        [share.weights[1] for share in shares],
        [row[1:13].sum(), row[13:17].sum(), row[17:18].sum(), row[18:].sum(), row[0]],
        rtol=1e-5,
    )


def test_the_shares_of_many_pictures_differ_in_colour_and_the_key_keeps_those_of_the_text():
    record = make_record(["Based"], [" a"], grids=[(2, 2)] * 8)
    assert len({share.colour for share in vhm.attention_shares(record, 1)}) == 11
    renderer = renderer_of(record)
    named = [share.name for share, _ in renderer.share_numbers]
    assert named[0] == "image 1" and named[-3:] == ["problem", "response", "first token (sink)"] and len(named) < 11
    ends = [x + renderer.label_fonts.width("100.0%") for _, x in renderer.share_numbers]
    assert ends == sorted(ends) and ends[-1] <= renderer.right


def test_a_heading_of_many_heads_fits_and_the_heads_stand_below():
    record = make_record(["Based"], [" a"])
    heads = tuple(range(0, 28, 2))
    record = vhm.AttentionRecord(**{**vars(record), "head": heads})
    assert vhm.layer_title(record, 1) == "layer 1 of 0-7, mean of 14 heads"
    notes = vhm.map_notes(record, 1, vhm.DrawingOptions(), vhm.shown_rows(record, 1, "off", False, 0))
    assert notes == ["heads: 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26"]
    few = vhm.AttentionRecord(**{**vars(record), "head": heads[:4]})
    assert vhm.layer_title(few, 1) == "layer 1 of 0-7, mean of heads 0, 2, 4, 6"
    frame = renderer_of(few, size=(640, 1138)).draw(0)
    assert (frame[:, -2:] == 255).all()  # nothing runs off


def test_a_frame_a_token_of_the_size_asked_for():
    record = make_record(["Based", " on"], [" a", " b", " c"])
    frames = list(vhm.render_frames(record, [picture()], 0, frame_size=(800, 450)))
    assert len(frames) == 3
    assert all(frame.shape == (450, 800, 3) and frame.dtype == np.uint8 for frame in frames)
    assert (frames[0] != frames[1]).any()


def test_the_first_and_the_last_token_have_a_frame_and_a_phrase_in_the_response_starts_the_video():
    record = make_record(["Look"], [" I", " see", " it"])
    assert len(list(vhm.render_frames(record, [picture()], 0, "see", frame_size=SMALL))) == 2
    assert len(list(vhm.render_frames(record, [picture()], 0, "Look", frame_size=SMALL))) == 3


def test_frames_are_drawn_one_by_one():
    record = make_record(["Based"], [" w"] * 2000)
    frames = vhm.render_frames(record, [picture()], 0, frame_size=SMALL)
    assert iter(frames) is frames and next(frames).shape == (360, 640, 3)


def test_a_colour_map_has_a_name_or_is_a_function():
    named = renderer_of(hot_record([3]), colormap="blue_to_yellow").draw(0)
    given = renderer_of(hot_record([3]), colormap=vhm.blue_to_yellow).draw(0)
    np.testing.assert_array_equal(named, given)
    with pytest.raises(ValueError, match="colormap is 'jet'; expected red_to_green or blue_to_yellow, or a function"):
        vhm.DrawingOptions(colormap="jet")


def test_another_colour_map_colours_text_and_picture():
    record = hot_record([3])
    violet = lambda values: np.broadcast_to([200.0, 0.0, 250.0], (len(values), 3))  # noqa: E731
    renderer = renderer_of(record, colormap=violet)
    y, x = cell_centre(renderer, 3)
    expected = np.array([200, 0, 250]) * vhm.CELL_ALPHA[1] + 255 * (1 - vhm.CELL_ALPHA[1])
    np.testing.assert_allclose(renderer.draw(0)[y, x], expected, atol=1.5)


def test_the_colour_map_runs_from_red_to_green():
    low, middle, high = vhm.red_to_green(np.array([0.0, 0.5, 1.0]))
    assert low[0] > 2 * low[1] and high[1] > 2 * high[0] and middle.min() < 128 < middle[0]
    np.testing.assert_array_equal(vhm.red_to_green(np.array([-3.0, 7.0])), np.array([low, high]))


@pytest.mark.parametrize("size", [(641, 360), (640, 361), (320, 180)])
def test_a_size_the_encoder_cannot_take_is_refused(size):
    with pytest.raises(ValueError, match="both must be even, at least 640x360"):
        vhm.render_frames(make_record(["Based"], ["w"]), [picture()], 0, frame_size=size)


def test_as_many_pictures_as_the_record_has():
    with pytest.raises(ValueError, match="2 pictures were given; the record has 1"):
        vhm.render_frames(make_record(["Based"], ["w"]), [picture()] * 2, 0)


# ---- phases, marks, summary ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, phases",
    [
        (["<think>", "a", "</think>", "<answer>", "b", "</answer>"], [("think", 0, 3), ("answer", 3, 6)]),
        (["<think", ">", "a", "</think", "><", "answer", ">", "b"], [("think", 0, 4), ("answer", 4, 8)]),
        (["a", "</think>", "b"], [("think", 0, 2), ("answer", 2, 3)]),
        (["<think>", "a"], [("think", 0, 2)]),
        (["a", "<answer>", "b"], [("answer", 1, 3)]),
        (["a", "b"], [("response", 0, 2)]),
        (["a", "</think>"], [("think", 0, 2)]),
    ],
)
def test_phases_come_from_the_tags(response, phases):
    found = vhm.response_phases(make_record(["p"], response))
    assert [(phase.name, phase.first, phase.last) for phase in found] == phases


def test_the_time_line_has_its_past_in_full_its_future_pale_and_the_place_in_blue():
    renderer = renderer_of(make_record(["Based"], ["w"] * 20))
    frame, y = renderer.draw(9), renderer.timeline_y + renderer.px(vhm.CURVE) - 2
    middle = [renderer.left + (renderer._column(n) + renderer._column(n + 1)) // 2 for n in range(20)]
    assert (frame[y, middle[:10]] == vhm.SHARE_COLOURS[0]).all()
    assert (frame[y, middle[10:]] > np.array(vhm.SHARE_COLOURS[0]) + 50).all()
    place = np.nonzero((frame[renderer.timeline_y - 1 :] == vhm.CURRENT_TOKEN).all(axis=2))[1]
    assert place.min() < middle[9] < place.max() and place.max() - place.min() < 2 * (middle[1] - middle[0])


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
    ],
)
def test_places_are_read_from_the_response(text, corners):
    marks = vhm.response_marks(make_record(["p"], list(text)), 0, ONE)
    assert [mark.corners for mark in marks] == [pytest.approx(place) for place in corners]
    assert vhm.response_marks(make_record(["p"], list(text)), 0, ONE, "off") == []


@pytest.mark.parametrize(
    "problem, text, unit, corners",
    [
        ("p", "(200, 150)", "pixels", (0.5, 0.5)),
        ("in pixels", "(200, 150)", "auto", (0.5, 0.5)),
        ("in pixels", "(200, 150)", "thousandths", (0.2, 0.15)),
    ],
)
def test_places_are_thousandths_or_pixels(problem, text, unit, corners):
    (mark,) = vhm.response_marks(make_record([problem], [text]), 0, ONE, unit)
    assert mark.corners == pytest.approx(corners)
    (large,) = vhm.response_marks(make_record(["p"], ["(1500, 150)"]), 0, [(3000, 300)])
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
    assert vhm._picture_named(text) == number


def test_a_picture_that_is_not_there_names_none():
    record = make_record(["p"], list("image 0 and image 9 (500, 500)"), grids=[(2, 2), (2, 2)])
    (mark,) = vhm.response_marks(record, 0, ONE * 2)
    assert mark.image in (0, 1)


@pytest.mark.parametrize(
    "before, picture_number",
    [("picture one has ", 0), ("in the second image ", 1), ("第二张图里 ", 1), ("Image 1: not image 2: ", 1)],
)
def test_a_place_is_in_the_picture_that_the_text_names(before, picture_number):
    record = make_record(["p"], [before, "(100, 200)", " again", "(100, 200)"], grids=[(3, 4), (3, 4)])
    assert [mark.image for mark in vhm.response_marks(record, 0, ONE * 2)] == [picture_number] * 2


@pytest.mark.parametrize("looked_at", [0, 1])
def test_else_it_is_in_the_picture_that_was_looked_at(looked_at):
    record = make_record(["p"], ["(1", "00, 200)"], grids=[(3, 4), (3, 4)])
    record.weights[:, :, record.images[looked_at].positions] += 1
    (mark,) = vhm.response_marks(record, 0, ONE * 2)
    assert mark.image == looked_at


def test_a_mark_is_drawn_as_soon_as_its_place_is_generated_and_an_answer_takes_over():
    record = make_record(["Based"], ["<think>", "(250,", "500)", "(750, 500)", "</think><answer>", "[250, 500]"])
    renderer, plain = renderer_of(record), renderer_of(record, draw_points="off")

    def marked(step, x):
        """Whether the frame differs from one without marks at a place of the picture."""
        left, top, wide, high = renderer.image.places[0]
        at = renderer.image_at[1] + top + high // 2, renderer.image_at[0] + left + int(x * wide)
        area = tuple(slice(middle - 3, middle + 4) for middle in at)
        return bool((renderer.draw(step)[area] != plain.draw(step)[area]).any())

    assert [marked(step, 0.25) for step in range(6)] == [False, False, True, True, True, True]
    assert [marked(step, 0.75) for step in range(6)] == [False, False, False, True, True, False]
    assert [marked(step, 0.5) for step in range(6)] == [False, False, False, True, True, False]


def test_the_share_inside_boxes_counts_cells_by_the_part_that_is_covered():
    record = hot_record([0])
    sizes = [(400, 300)]
    half_of_cell_0 = vhm.Mark(0, "", 0, (0, 0, 0.125, 1 / 3))
    elsewhere = vhm.Mark(0, "", 0, (0.5, 0.5, 1, 1))
    assert vhm.share_inside(record, 1, 0, [half_of_cell_0, elsewhere], sizes) == pytest.approx(0.5, rel=1e-4)
    assert vhm.share_inside(record, 1, 0, [vhm.Mark(0, "", 0, (0.5, 0.5))], sizes) is None


def test_the_words_that_looked_most_are_whole_words_once_and_no_tags():
    record = make_record(["p"], ["<think>", " yel", "low", " 12", "红色", " a", " yel", "low", "</think>"])
    for step, weight in enumerate([9, 5, 8, 7, 4, 1, 3, 2, 9]):
        record.weights[step] = 0
        record.weights[step, :, 1:13], record.weights[step, :, 0] = weight / 120, 1 - weight / 10
    assert vhm.words_that_looked(record, 1, 9) == [(1, "yellow"), (4, "红色"), (5, "a")]
    assert vhm.words_that_looked(record, 1, 1) == [(1, "yellow")]


def test_many_pictures_are_drawn_and_named_within_the_frame():
    record = make_record(["Based"], ["w"], grids=[(2, 2)] * 14)
    renderer = renderer_of(record)
    assert len(np.unique(renderer.image.cell_index)) == 1 + 14 * 4
    assert (renderer.draw(0)[:, renderer.right :] == 255).all()


def test_a_layer_that_does_not_look_at_the_pictures_is_drawn_and_summed_up():
    record = make_record(["Based"], ["w", "v"])
    record.weights[:, :, record.images[0].positions] = 0
    assert (renderer_of(record).draw(1) != 255).any()
    assert vhm.draw_summary(record, [picture()], 1).height > 0


@pytest.mark.parametrize("grids", [[(3, 4)], [(3, 4), (2, 2)]])
def test_a_summary_is_as_wide_as_a_frame_and_has_a_map_for_each_phase_and_word(grids):
    record = make_record(["p"], ["<think>", " one", " two", "</think>", "<answer>", " three"], grids=grids)
    summary = vhm.draw_summary(record, [picture((400, 300), "khaki")] * len(grids), 1, vhm.DrawingOptions())
    assert summary.width == vhm.DEFAULT_FRAME_SIZE[0]
    dark = (np.asarray(summary).astype(int).sum(axis=2) < 600).any(axis=0)
    assert dark.any() and (np.asarray(summary)[:, -20:] == 255).all()


@pytest.mark.parametrize("text", ["(0.5, 0.5)", "it costs (1,000) dollars", "the interval [0, 1]", "at 10 (040, 20)"])
def test_numbers_in_brackets_that_are_no_place_are_not_marked(text):
    assert vhm.response_marks(make_record(["Based"], [text]), 1, [(400, 300)]) == []


def test_a_mark_at_the_edge_of_the_panel_is_whole():
    record = make_record(["Based"], ["(0, 0) and (500, 500)"], size=(400, 300))
    layout = vhm.layout_images(record, [picture()], 400, 300, FONTS)
    corner = np.asarray(vhm.draw_marks(layout, [vhm.Mark(0, "", 0, (0.0, 0.0))], FONTS))[..., 3] > 0
    middle = np.asarray(vhm.draw_marks(layout, [vhm.Mark(0, "", 0, (0.5, 0.5))], FONTS))[..., 3] > 0
    assert abs(int(corner.sum()) - int(middle.sum())) <= 0.1 * middle.sum()


@pytest.mark.skipif("NotoColorEmoji" not in " ".join(vhm._font_files()), reason="needs Noto Color Emoji")
@pytest.mark.parametrize("text", ["\U0001f680", "\U0001f468\u200d\U0001f680"], ids=["one", "joined"])
def test_coloured_emoji_of_a_bitmap_font_are_drawn_as_glyphs(text):
    fonts = vhm.FontSet(26)
    ((font, part),) = fonts.runs(text)
    assert isinstance(font, vhm.BitmapFont) and part == text
    layout = vhm.layout_text([vhm.TextPiece(0, text, "text")], fonts, 200)
    assert layout.ink.max() >= vhm.INK_LEVELS // 2
    assert 20 < font.getlength(part) < 60  # one picture, about as wide as high


# ---- maps that are not the plain one -----------------------------------------------------------------


def sink_record(sink=5, steps=20, **kwargs):
    """A record in which one cell takes most of every step, and another cell is looked at in turn."""
    record = hot_record([t % 12 if t % 12 != sink else 0 for t in range(steps)], **kwargs)
    weights = record.weights.copy()
    image = record.images[0].positions
    weights[:, :, image] = np.maximum(weights[:, :, image], 0.001)
    weights[:, :, image[sink]] = 3.0
    return vhm.AttentionRecord(**{**vars(record), "weights": weights})


@pytest.mark.parametrize("colour", ["black", "white", "khaki", "navy"])
@pytest.mark.parametrize("colormap", vhm.COLORMAPS)
def test_a_sink_is_hatched_visibly_on_any_picture_and_not_tinted(colour, colormap):
    def lightness(step, **options):
        """Of the pixels of the cell, but for the grid lines round it."""
        renderer = renderer_of(sink_record(), [picture(colour=colour)], colormap=colormap, **options)
        rows, columns = np.nonzero(renderer.image.cell_index == 6)
        panel = renderer.draw(step)[renderer.image_at[1] :, renderer.image_at[0] :]
        return panel[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1].mean(axis=2)

    light = lightness(0, sinks=True)
    assert np.ptp(light) > 120 and 0.4 < (light > light.mean()).mean() < 0.6 and np.ptp(lightness(0)) == 0
    np.testing.assert_array_equal(light, lightness(7, sinks=True))


def test_a_sink_is_left_out_of_the_scale_of_the_other_cells():
    with_sink, without = renderer_of(sink_record()), renderer_of(sink_record(), sinks=True)
    assert with_sink.cell_ends[0] == pytest.approx(3.0) and without.cell_ends[0] == pytest.approx(0.5)
    assert np.isnan(without.cell_weights[:, 5]).all() and np.isfinite(np.delete(without.cell_weights, 5, 1)).all()


def test_a_sink_in_the_text_stands_on_white_in_grey():
    record = make_record(["Based", *[f" p{n}" for n in range(30)]], [f" w{n}" for n in range(20)])
    weights = record.weights.copy()
    weights[:, :, record.prompt_length - 30] = 5.0
    record = vhm.AttentionRecord(**{**vars(record), "weights": weights})
    renderer = renderer_of(record, sinks=True)
    panel = text_panel(renderer, 3)
    assert (panel[token_pixels(renderer, 1)] == 255).all() and (panel[token_pixels(renderer, 2)] != 255).any()
    assert renderer.text_ends[0] < 1
    owned = renderer.text.piece_index[: len(panel)] == 2
    assert np.abs(panel[owned].astype(int) - vhm.MUTED).sum(axis=1).min() < 60


def test_notes_say_what_is_not_plain_and_what_the_check_said():
    record, check = sink_record(), vhm.Check(1, "", "answer", 0.7, (0.1, 0.2))
    record = vhm.AttentionRecord(**{**vars(record), "checks": (check,)})

    def notes(**options):
        options = vhm.DrawingOptions(**options)
        return vhm.map_notes(record, 1, options, vhm.shown_rows(record, 1, *options.map))

    assert notes() == [f"check: {check}"] and vhm.map_notes(record, 0, vhm.DrawingOptions(), None) == []
    first, second = notes(view="clear")
    assert first.startswith("map: cells minus their median over the steps, sinks left out (1 hatched with 8")
    assert second == f"check of the map as the model computed it: {check}"
    assert notes(smooth=1.5)[0] == "map: smoothed over 1.5 cells"


@pytest.mark.parametrize("size", [SMALL, (1280, 720), (1920, 1080)])
def test_notes_stand_below_the_time_line_within_the_frame(size):
    record = sink_record()
    checks = (vhm.Check(1, "", "answer", 0.7, (0.1, 0.2)),)
    record = vhm.AttentionRecord(**{**vars(record), "checks": checks})
    plain, noted = renderer_of(sink_record(), size=size), renderer_of(record, size=size, view="clear")
    lines = (plain.text_size[1] - noted.text_size[1]) / noted.px(vhm.NOTES)
    assert lines == round(lines) >= 2
    bottom = noted.timeline_y + noted.timeline.height + noted.px(5)
    written = (noted.draw(0)[bottom:] < 128).all(axis=2)
    assert written.any(axis=1).sum() >= lines * 3 and not written[-2:].any() and not written[:, -noted.px(20) :].any()
    assert not (plain.draw(0)[plain.timeline_y + plain.timeline.height + plain.px(8) :] < 128).all(axis=2).any()


def test_words_of_a_note_are_all_there_and_fit():
    lines = vhm._wrapped(["one two three four", "five"], FONTS, FONTS.width("one two"))
    assert lines == ["one two", "three", "four", "five"]


@pytest.mark.parametrize(
    "weight, relative, text", [(0.1234, False, "12.34%"), (12.34, True, "12.3 times"), (0.5, True, "0.5 times")]
)
def test_a_weight_is_written_in_the_unit_of_its_map(weight, relative, text):
    assert vhm._amount(weight, relative) == text


def test_the_clear_view_sets_what_is_left_at_its_default():
    assert vhm.DrawingOptions(view="clear").map == ("median", True, 0) and vhm.DrawingOptions().map == ("off", False, 0)
    assert vhm.DrawingOptions(view="clear", baseline="neutral", smooth=1).map == ("neutral", True, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fps": "2"}, "fps is '2'; expected a number"),
        ({"fps": True}, "fps is True; expected a number"),
        ({"smooth": "1"}, "smooth is '1'; expected a number"),
        ({"sinks": "no"}, "sinks is 'no'; expected True or False"),
        ({"summary": 1}, "summary is 1; expected True or False"),
        ({"font_path": 3}, "font_path is 3; expected a text"),
        ({"frames": [1.5]}, "frames is [1.5]; expected the numbers of steps, such as (0, 51)"),
        ({"frames": "51"}, "frames is '51'; expected the numbers of steps"),
        ({"frame_size": "640x360"}, "frame_size is '640x360'; expected whole pixels, such as (1920, 1080)"),
        ({"frame_size": (640.0, 360.0)}, "frame_size is (640.0, 360.0); expected whole pixels"),
        ({"frame_size": (640, 360, 3)}, "frame_size is (640, 360, 3); expected whole pixels"),
        ({"frame_size": 640}, "frame_size is 640; expected whole pixels"),
        ({"colormap": ["jet"]}, "colormap is ['jet']; expected red_to_green or blue_to_yellow, or a function"),
        ({"colormap": lambda x: x}, "colormap makes of 3 weights an array of shape (3,); expected (3, 3), RGB"),
        ({"colormap": lambda x: np.zeros((len(x), 4))}, "array of shape (3, 4); expected (3, 3), RGB in 0..255"),
    ],
)
def test_an_option_of_another_kind_says_what_was_expected(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        vhm.DrawingOptions(**options)


@pytest.mark.parametrize("frames, steps", [(51, (51,)), (np.int64(-1), (-1,)), (np.array([0, 2]), (0, 2)), ([], ())])
def test_frames_are_the_numbers_of_steps(frames, steps):
    assert vhm.DrawingOptions(frames=frames).frames == steps


@pytest.mark.parametrize("options", [{"smooth": -1}, {"smooth": float("nan")}, {"baseline": "mean"}, {"view": "best"}])
def test_an_option_of_the_map_that_is_none_is_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        vhm.DrawingOptions(**options)


@pytest.mark.parametrize(
    "change, title",
    [
        ({}, "layer 1 of 0-7, mean of the heads"),
        ({"head": (0, 3)}, "layer 1 of 0-7, mean of heads 0, 3"),
        ({"head": "auto", "auto_heads": (2, 5)}, "layer 1 of 0-7, head 5 (auto)"),
        ({"head": "max", "auto_layer": True}, "layer 1 (auto) of 0-7, maximum of the heads"),
    ],
)
def test_the_title_says_whose_attention_it_is_and_what_was_chosen(change, title):
    record = vhm.AttentionRecord(**{**vars(make_record(["a"], ["b"])), **change})
    assert vhm.layer_title(record, 1) == title


def test_a_summary_hatches_sinks_and_carries_the_notes():
    record, images = sink_record(), [picture()]
    plain, clear = (vhm.draw_summary(record, images, 1, vhm.DrawingOptions(**o)) for o in ({}, {"view": "clear"}))
    assert clear.height in (plain.height + vhm.NOTES, plain.height + 2 * vhm.NOTES)  # the captions may take one more
