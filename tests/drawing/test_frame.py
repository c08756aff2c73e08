"""Whole frames: of the size asked for, each panel in its place, whatever the text; marks as they are named."""

from dataclasses import replace

import numpy as np
import pytest
from drawn import Shapes, cell_centre, hot_record, is_current, renderer_of, with_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from records import SMALL, make_record, picture

from attention_heatmap.drawing.colour import CELL_ALPHA
from attention_heatmap.drawing.fonts import FONT_TEXT, FontSet
from attention_heatmap.drawing.frame import FrameRenderer, render_frames
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.text import text_pieces
from attention_heatmap.drawing.text_layout import layout_text

# Any character at all is tried in test_text_layout.py; here each new one costs a search through the fonts.
TOKEN = st.one_of(
    st.text(st.sampled_from(" \n\t路线aé.<>/()0123שלوم😀नम∑\x07\u200d\u0301\ue000"), max_size=12),
    st.sampled_from([" " * 40, "\n\n\n", "السلامعليكم" * 9, "</think><answer>", "(100,200)", "\x00", "\u200b"]),
)
TOKENS = st.lists(TOKEN, min_size=1, max_size=12)


def words_of(renderer, step):
    return [shape["text"] for kind, shape in renderer.draw_shapes(step, Shapes()).shapes if kind == "text"]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(TOKENS, TOKENS, st.booleans(), st.sampled_from([SMALL, (640, 800), (720, 1280)]))
def test_whatever_a_model_emits_nothing_leaves_its_panel_and_the_current_token_is_in_every_frame(
    problem, response, wide, size
):
    record = make_record(["Based", *problem], [text or "·" for text in response])
    renderer = renderer_of(record, [picture((400, 100) if wide else (100, 400), "khaki")], size=size, draw_points="off")
    (left, top), (width, height) = renderer.answer.at, renderer.answer.size
    footer = renderer.legend.top
    assert top + height <= footer and left + width <= renderer.sheet.right
    for step in range(renderer.first_step, record.response_length, 7):
        frame = renderer.draw(step)
        assert frame.shape == (size[1], size[0], 3) and frame.dtype == np.uint8
        if not renderer.panels.stacked:
            assert (frame[top:footer, left + width : renderer.panel.at[0]] == 255).all()
        assert (frame[top + height : footer - 1, : left + width] == 255).all()
        margins = frame[:, : renderer.sheet.left - renderer.px(8)], frame[:, renderer.sheet.right + 2 :]
        assert min(int(part.min()) for part in margins) == 255
        assert is_current(frame[top : top + height, left : left + width]).any()


@pytest.mark.parametrize("size", [(640, 800), (720, 1280), (1080, 1920)])
@pytest.mark.parametrize("sizes", [[(400, 300)], [(300, 300)], [(900, 100), (300, 400)]])
def test_in_a_frame_taller_than_wide_the_pictures_stand_above_the_text(size, sizes):
    record = make_record(["Based"], ["w"] * 3, grids=[(3, 4)] * len(sizes))
    tall = renderer_of(record, [picture(each) for each in sizes], size=size)
    high = max(top + height for _, top, _, height in tall.panel.layout.places)
    assert (
        tall.panels.stacked
        and tall.panel.at[0] == tall.answer.at[0]
        and tall.panel.at[1] + high <= tall.answer.at[1] - tall.px(50)
    )
    assert tall.answer.at[1] + tall.answer.size[1] <= tall.legend.top


def test_a_picture_that_stacking_would_make_smaller_stands_beside_the_text_in_a_tall_frame_too():
    renderer = renderer_of(make_record(["Based"], ["w"]), [picture((100, 900))], size=(640, 800))
    assert not renderer.panels.stacked and renderer.panel.at[0] > renderer.answer.at[0]


def test_a_frame_a_token_of_the_size_asked_for():
    record = make_record(["Based", " on"], [" a", " b", " c"])
    frames = list(render_frames(record, [picture()], 0, frame_size=(800, 450)))
    assert [frame.shape for frame in frames] == [(450, 800, 3)] * 3 and (frames[0] != frames[1]).any()


def test_a_step_looks_the_same_whether_others_were_drawn_before_it():
    record = make_record(["Based"], [" a", " (100, 200)", " c"])
    fresh, used = renderer_of(record), renderer_of(record)
    for step in (2, 0, 1):
        used.draw(step)
    np.testing.assert_array_equal(fresh.draw(0), used.draw(0))


def test_the_first_and_the_last_token_have_a_frame_and_a_phrase_in_the_response_starts_the_video():
    record = make_record(["Look"], [" I", " see", " it"])
    assert len(list(render_frames(record, [picture()], 0, "see", frame_size=SMALL))) == 2
    assert len(list(render_frames(record, [picture()], 0, "Look", frame_size=SMALL))) == 3


def test_frames_are_drawn_one_by_one():
    frames = render_frames(make_record(["Based"], [" w"] * 500), [picture()], 0, frame_size=SMALL)
    assert iter(frames) is frames and next(frames).shape == (360, 640, 3)


def test_tokens_are_numbered_from_one_and_steps_from_zero():
    renderer = renderer_of(make_record(["Based"], [" a", " b", " c"]), size=(1280, 720))
    assert "token 2 of 3" in words_of(renderer, 1)
    assert [renderer.check_step(number) for number in (1, 3, -1, -3)] == [0, 2, 2, 0]
    late = renderer_of(make_record(["Look"], [" a", " b", " c"]), phrase="b")
    with pytest.raises(ValueError, match="token 1 has no frame: the text begins at token 2"):
        late.check_step(1)
    with pytest.raises(ValueError, match="token 0 is not there; expected 1 to 3"):
        renderer.check_step(0)


@pytest.mark.parametrize("options, same", [({}, False), ({"scale": "video"}, True)])
def test_the_scale_of_the_video_is_the_same_in_all_its_frames(options, same):
    record = hot_record([0, 0])
    record = with_cells(record, record.weights[:, 0, record.image_positions] * [[1], [0.5]])
    renderer = renderer_of(record, size=(1280, 720), **options)
    said = [[text for text in words_of(renderer, step) if "or more" in text][-1] for step in (0, 1)]
    assert (said[0] == said[1]) == same and ("50.00% or more" in said[0]) and ("(this frame)" in said[1]) != same
    assert len(set(renderer.answer.ends)) == (1 if same else 2)


def test_the_share_of_the_pictures_is_said_at_every_step():
    renderer = renderer_of(hot_record([0, 5], 0.25), size=(1280, 720))
    for step in (0, 1):
        assert f"{renderer.panel.maps[0].shares[step, 0]:.1%} on the picture" in words_of(renderer, step)


def test_attention_on_text_out_of_view_is_said():
    record = make_record(["Look", " away", " Based"], [f" word{n}" for n in range(300)])
    said = words_of(renderer_of(record, size=(1280, 720)), 299)
    assert any("above" in text and "%" in text for text in said)
    near = words_of(renderer_of(make_record(["Based"], [" w"]), size=(1280, 720)), 0)
    assert not any("above" in text for text in near)


def test_a_sink_in_the_text_takes_no_part_in_the_scale_and_stands_on_white():
    record = make_record(["Based", *[f" p{n}" for n in range(30)]], [f" w{n}" for n in range(20)])
    record.weights[:, :, record.prompt_length - 30] = 5.0
    renderer = renderer_of(record, sinks=True)
    assert np.isnan(renderer.answer.weights[:, 1]).all() and renderer.answer.ends.max() < 1
    assert np.isfinite(np.delete(renderer.answer.weights, 1, 1)).all()


def test_a_layer_that_does_not_look_at_the_pictures_is_drawn():
    record = make_record(["Based"], ["w", "v"])
    record.weights[:, :, record.image_positions] = 0
    renderer = renderer_of(record, picture="colour")
    frame = renderer.draw(1)
    weak = frame[cell_centre(renderer, 0)].astype(int)
    assert (255 - weak).max() <= 255 * CELL_ALPHA[0] + 1


def test_a_mark_is_drawn_as_soon_as_its_place_is_generated_and_an_answer_takes_over():
    record = make_record(["Based"], ["<think>", "(250,", "500)", "(750, 500)", "</think><answer>", "[250, 500]"])
    renderer, plain = renderer_of(record), renderer_of(record, draw_points="off")

    def marked(step, x):
        """Whether the frame differs from one without marks round a place of the picture."""
        left, top, wide, high = renderer.panel.layout.places[0]
        at = renderer.panel.at[1] + top + high // 2, renderer.panel.at[0] + left + int(x * wide)
        area = tuple(slice(middle - 12, middle + 13) for middle in at)
        return bool((renderer.draw(step)[area] != plain.draw(step)[area]).any())

    assert [marked(step, 0.25) for step in range(6)] == [False, False, True, True, True, True]
    assert [marked(step, 0.75) for step in range(6)] == [False, False, False, True, True, False]
    assert [marked(step, 0.5) for step in range(6)] == [False, False, False, True, True, False]


def test_marks_are_numbered_within_their_phase_and_boxes_say_how_much_is_inside():
    record = make_record(["Based"], ["<think>", "(100, 100, 400, 400)", "</think><answer>", "[0, 0, 250, 333]"])
    record = with_cells(record, np.eye(4, 12))
    renderer = renderer_of(replace(record, weights=record.weights), size=(1280, 720))
    assert "1" in words_of(renderer, 1) and "2" not in words_of(renderer, 3)
    assert any("is inside the box" in text for text in words_of(renderer, 3))


def test_many_pictures_are_drawn_within_the_frame():
    renderer = renderer_of(make_record(["Based"], ["w"], grids=[(2, 2)] * 14))
    assert (renderer.draw(0)[:, renderer.sheet.right :] == 255).all()


def test_another_colour_map_colours_text_and_picture_and_its_scales():
    record = hot_record([3])
    violet = lambda values: np.broadcast_to([200.0, 0.0, 250.0], (len(values), 3))  # noqa: E731
    renderer = renderer_of(record, picture="colour", colormap=violet)
    expected = np.array([200, 0, 250]) * CELL_ALPHA[1] + 255 * (1 - CELL_ALPHA[1])
    frame = renderer.draw(0)
    np.testing.assert_allclose(frame[cell_centre(renderer, 3)], expected, atol=1.5)
    bars = frame[renderer.legend.top : renderer.legend.share_top].astype(int)
    assert (np.abs(bars - expected).max(axis=2) < 8).any()


def test_the_records_plane_and_pictures_are_checked_before_the_first_frame():
    record = make_record(["Based"], ["w"])
    with pytest.raises(ValueError, match="2 pictures were given; the record has 1"):
        render_frames(record, [picture()] * 2, 0)
    with pytest.raises(ValueError, match="layer 5 was not recorded"):
        render_frames(record, [picture()], 5)
    with pytest.raises(ValueError, match="there is no option 'colourmap'; did you mean colormap"):
        render_frames(record, [picture()], 0, colourmap="x")


def test_over_a_narrow_picture_the_heading_says_layer_and_heads_in_fewer_words():
    record = replace(make_record(["a"], ["b"], layers=(3, 7)), num_layers=28)
    for size, told in (
        ((100, 400), "layer 7, mean of the heads"),
        ((400, 300), "attention in layer 7 (the last is 27), mean of the heads"),
    ):
        words = " ".join(words_of(renderer_of(record, [picture(size)], size=(1920, 1080)), 0))
        assert told in words and ("attention in layer" in words) == ("attention" in told) and "…" not in words


@pytest.mark.parametrize("token", ["\u200f", "\u200b"])
def test_the_heading_names_a_token_that_nobody_sees(token):
    assert f"[U+{ord(token):04X}]" in words_of(renderer_of(make_record(["a"], [" b", token])), 1)


def test_a_heading_that_is_too_long_is_cut():
    renderer = renderer_of(make_record(["Based"], ["w" * 500]))
    beside = slice(renderer.answer.at[0] + renderer.answer.size[0] + 9, renderer.panel.at[0])
    assert (renderer.draw(0)[: renderer.answer.at[1], beside] == 255).all()


def cell_colours(renderer, frame):
    """(cells, 3) the colour in the middle of each cell."""
    return np.array([frame[cell_centre(renderer, cell)] for cell in range(len(renderer.panel.layout.edges))], int)


def weaker(parts, **options):
    """A renderer of steps that look at one cell each with these parts of their attention."""
    record = hot_record([7, 3, 7][: len(parts)])
    cells = record.weights[:, 0, record.image_positions] * np.reshape(parts, (-1, 1)) * 2
    record = with_cells(record, cells)
    record.weights[:, :, 0] += np.maximum(1 - record.weights.sum(axis=2), 0)
    return renderer_of(record, **options)


@pytest.mark.parametrize("share", [0.5, 0.01])
@pytest.mark.parametrize("colour", ["white", "green", "black", "red"])
def test_the_hot_cell_stands_out_on_any_picture_in_strong_and_weak_frames(colour, share):
    renderer = weaker((0.5, share), images=[picture(colour=colour)])
    for step, hot in ((0, 7), (1, 3)):
        colours = cell_colours(renderer, renderer.draw(step))
        away = np.abs(colours - np.median(colours, axis=0)).sum(axis=1)
        assert away.argmax() == hot and away[hot] > 60


def test_a_weak_frame_looks_weaker_than_a_strong_one():
    renderer = weaker((0.5, 0.01, 0.01))
    assert cell_colours(renderer, renderer.draw(2))[7].sum() > cell_colours(renderer, renderer.draw(0))[7].sum() + 40


@pytest.mark.parametrize("size", [(640, 360), (640, 640), (640, 800), (1080, 1920), (1920, 1080)])
@pytest.mark.parametrize("sizes", [[(400, 300)], [(300, 900)], [(2000, 100)], [(900, 100), (300, 400)]])
def test_nothing_is_drawn_over_something_else_or_outside(size, sizes):
    record = make_record(["Based"], [" w"] * 5, grids=[(3, 4)] * len(sizes), sizes=sizes)
    renderer = renderer_of(record, [picture(each, "grey") for each in sizes], size=size)
    assert renderer.draw(4).shape == (size[1], size[0], 3)
    pen = renderer.draw_shapes(4, Shapes())
    boxes = []
    for kind, values in pen.shapes:
        if kind == "text":
            (x, y), width, high = values["at"], values["width"], values["font"].size
            boxes.append((x, y - 0.7 * high, x + width, y, values["text"]))
            assert x >= -1 and x + width <= size[0] + 1 and y <= size[1], values["text"]
    for n, (left, top, right, bottom, text) in enumerate(boxes):
        for other in boxes[:n]:
            apart = other[2] <= left + 2 or other[0] >= right - 2 or other[3] <= top + 1 or other[1] >= bottom - 1
            assert apart, (text, other[4])


def test_attention_on_text_that_has_scrolled_away_is_told():
    record = make_record(["Start", "Based"], ["\n"] * 80 + ["x"], grids=[(1, 1)])
    renderer = renderer_of(record)
    first, _ = renderer.answer.layout.visible(len(renderer.answer.layout.pieces) - 1, renderer.answer.size[1])
    above = np.flatnonzero(renderer.answer.layout.last_line < first)
    expected = renderer.answer.weights[80][above].sum() + record.rows(1)[80][2]
    assert (
        first > 0
        and f"{expected:.1%}" in " ".join(words_of(renderer, 80))
        and "above" in " ".join(words_of(renderer, 80))
    )
    assert "above" not in " ".join(words_of(renderer_of(make_record(["Based"], ["x"])), 0))


@pytest.mark.parametrize("word", ["route ", "路线经过"])
def test_a_font_grows_only_while_all_of_the_text_stays_in_view(word):
    grown = []
    for words in (4, 12, 20, 30, 40, 50, 60, 80, 100, 130, 400):
        record = make_record(["Based ", *[word] * words], [word] * 8)
        renderer = FrameRenderer(record, [picture((300, 900))], 0, "Based", DrawingOptions(frame_size=(1280, 720)))
        plain = layout_text(text_pieces(record, 0), FontSet(renderer.px(FONT_TEXT)), renderer.answer.size[0])
        grown.append(renderer.answer.layout.line_height > plain.line_height)
        assert not grown[-1] or len(renderer.answer.layout.ink) <= renderer.answer.size[1]
    assert grown[0] and not grown[-1]
