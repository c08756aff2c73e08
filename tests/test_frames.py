import numpy as np
import pytest
from conftest import SMALL, make_record, picture
from hypothesis import given, settings
from hypothesis import strategies as st

import visualizeHeatMap as vhm

FONTS = vhm.FontSet(20)


def renderer_of(record, images=None, layer=1, size=SMALL, scale="video", phrase="Based", colormap=vhm.red_to_green):
    images = images or [picture()] * len(record.images)
    options = vhm.DrawingOptions(scale=scale, colormap=colormap, frame_size=size)
    return vhm.FrameRenderer(record, images, layer, phrase, options)


def cell_centre(renderer, cell):
    """(y, x) on the frame of the middle of a cell."""
    rows, columns = np.nonzero(renderer.image.cell_index == cell + 1)
    return renderer.top + (rows.min() + rows.max()) // 2, renderer.x_image + (columns.min() + columns.max()) // 2


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


# ---- the text --------------------------------------------------------------------------------------


def token_pixels(renderer, piece):
    """The background pixels of a piece in the panel of the first lines."""
    height = renderer.panel_height // renderer.text.line_height * renderer.text.line_height
    return (renderer.text.piece_index[:height] == piece + 1) & (renderer.text.ink[:height] == 0)


def text_panel(renderer, step):
    height = renderer.panel_height // renderer.text.line_height * renderer.text.line_height
    panel = renderer.draw(step)[renderer.top :, renderer.x_text : renderer.x_text + renderer.panel_width]
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


def test_all_text_is_readable_on_its_background():
    for weight in np.linspace(0, 1, 21):
        assert contrast(vhm.INK, on_white(weight, vhm.TEXT_ALPHA)) >= 4.5
        faded = 255 - (255 - on_white(weight, vhm.TEXT_ALPHA)) * vhm.SPECIAL_ALPHA
        assert contrast(vhm.MUTED, faded) >= 4.5
    assert contrast(vhm.PAPER, vhm.CURRENT_TOKEN) >= 4.5


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
    assert [share.name for share in shares] == ["image 1", "image 2", "problem", "response", "first token"]
    np.testing.assert_allclose(sum(share.weights for share in shares), 1, rtol=1e-5)
    row = record.weights[1, 1]
    np.testing.assert_allclose(
        [share.weights[1] for share in shares],
        [row[1:13].sum(), row[13:17].sum(), row[17:18].sum(), row[18:].sum(), row[0]],
        rtol=1e-5,
    )


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
