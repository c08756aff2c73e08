"""The text of one step: blue where it stands, coloured by weights before it, nothing of what comes."""

import numpy as np
import pytest
from drawn import FONTS, Shapes, contrast, ground_of, is_current, on_white, renderer_of, text_panel
from hypothesis import given, settings
from hypothesis import strategies as st
from records import make_record, picture

from attention_heatmap.drawing.colour import CURRENT_TOKEN, MUTED, TEXT_ALPHA, red_to_green, text_colours
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE
from attention_heatmap.drawing.text import TextPiece
from attention_heatmap.drawing.text_layout import INK_LEVELS, layout_text
from attention_heatmap.drawing.text_panel import put_text, visualize_attention_step

TOKENS = st.text(st.sampled_from("abc 路线\n\t😀مرحبا<>"), min_size=1, max_size=9)


def layout_of(texts, width=150):
    return layout_text([TextPiece(n, text, "text") for n, text in enumerate(texts)], FONTS, width)


def test_the_current_token_is_blue_and_later_ones_are_not_shown():
    renderer = renderer_of(make_record(["Based", " on"], [" one", " two", " three"]))
    for step in range(3):
        panel = text_panel(renderer, step)
        assert is_current(panel[ground_of(renderer, 2 + step)]).all()
        for later in range(3 + step, 5):
            owned = np.isin(renderer.answer.layout.piece_index[: len(panel)] % 5, [(later + 1) % 5])
            assert (panel[owned] == 255).all()


def test_a_token_is_coloured_by_its_weight_on_the_frames_own_scale():
    record = make_record(["Based", " on", " it"], [" w", " v"])
    renderer = renderer_of(record)
    panel, weights = text_panel(renderer, 1), record.weights[1, 1, record.prompt_length - 3 :]
    assert renderer.answer.ends[1] == pytest.approx(weights[:4].max())
    for piece in range(4):
        expected = on_white(weights[piece] / renderer.answer.ends[1], TEXT_ALPHA, float(renderer.answer.strengths[1]))
        np.testing.assert_allclose(panel[ground_of(renderer, piece)][0], expected, atol=2)


def test_a_character_of_several_tokens_is_blue_while_any_of_them_is_made():
    renderer = renderer_of(make_record(["Based"], [" a", "", "", "é"]))
    for step in (1, 2, 3):
        assert is_current(text_panel(renderer, step)[ground_of(renderer, 2)]).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(TOKENS, min_size=1, max_size=25), st.integers(60, 200), st.data())
def test_the_current_token_is_in_view_in_every_frame(texts, height, data):
    layout = layout_of(texts)
    current = data.draw(st.integers(0, len(texts) - 1))
    panel = np.asarray(visualize_attention_step(layout, np.zeros(len(texts)), current, height))
    assert panel.shape == (height, 150, 3) and is_current(panel).any()


def test_coloured_glyphs_stand_on_white_and_the_current_one_is_blue():
    record = make_record(["Based", "MM"], ["MM", "MM"])
    renderer = renderer_of(record, text_style="glyph", size=DEFAULT_FRAME_SIZE)  # thick enough glyphs
    panel, index, ink = text_panel(renderer, 1), renderer.answer.layout.piece_index, renderer.answer.layout.ink
    full = (ink == INK_LEVELS - 1)[: len(panel)]
    weight = min(record.weights[1, 1, record.prompt_length - 1] / renderer.answer.ends[1], 1)
    expected = text_colours(np.array([weight]), red_to_green, "glyph")[1][0]
    np.testing.assert_allclose(panel[full & (index == 2)][0], expected, atol=2.5)
    assert (panel[ground_of(renderer, 1)] == 255).all()
    assert is_current(panel[full & (index == 4)]).all() and (panel[ground_of(renderer, 3)] != 255).any()


@pytest.mark.parametrize("text_style", ["tint", "glyph"])
def test_what_is_left_out_stands_on_white_in_grey(text_style):
    layout = layout_of(["MM", "MM", "x"], 300)
    panel = np.asarray(visualize_attention_step(layout, np.array([np.nan, 1, 1]), 2, 60, text_style=text_style))
    index, full = layout.piece_index, layout.ink == INK_LEVELS - 1
    assert (panel[: len(index)][(index == 1) & (layout.ink == 0)] == 255).all()
    assert (panel[: len(index)][full & (index == 1)] == MUTED).all()
    assert (panel[: len(index)][full & (index == 2)] != MUTED).any()


def test_without_a_current_token_all_are_shown_and_none_is_blue():
    layout = layout_of(["one", " two"], 300)
    panel = np.asarray(visualize_attention_step(layout, np.ones(2), None, 60))
    assert not is_current(panel).any()
    for piece in (1, 2):
        ground = panel[: len(layout.ink)][(layout.piece_index == piece) & (layout.ink == 0)]
        np.testing.assert_allclose(ground, np.tile(on_white(1, TEXT_ALPHA), (len(ground), 1)), atol=1.5)


def test_a_chip_is_coloured_by_the_weight_of_its_run():
    renderer = renderer_of(make_record(["Go"], ["x", "y"]), phrase="<s>")
    weight = min(renderer.answer.weights[1, 1] / renderer.answer.ends[1], 1)
    ground = text_panel(renderer, 1)[ground_of(renderer, 1)]
    expected = on_white(weight, TEXT_ALPHA, float(renderer.answer.strengths[1]))
    np.testing.assert_allclose(np.median(ground, axis=0), expected, atol=2)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(TOKENS, min_size=1, max_size=12), st.data())
def test_shapes_have_the_same_tokens_in_the_same_colours_as_the_picture(texts, data):
    layout, current = layout_of(texts, 300), data.draw(st.integers(0, len(texts) - 1))
    values, height = np.linspace(0, 1, len(texts)), len(layout.ink)
    pen = Shapes(300, height)
    put_text(pen, (0, 0), layout, values, current, height, red_to_green, "tint", 1)
    panel = np.asarray(visualize_attention_step(layout, values, current, height), int)
    first, _ = layout.visible(current, height)
    assert first == 0
    boxes = [shape for kind, shape in pen.shapes if kind == "box"]
    assert any(tuple(map(round, box["fill"])) == CURRENT_TOKEN for box in boxes)
    for box in boxes:
        left, top, right, _bottom = box["box"]
        y, x = int(top), int((left + right) / 2)
        if layout.ink[y, x] == 0 and right - left > 3:
            np.testing.assert_allclose(panel[y, x], box["fill"], atol=1.5)
    for kind, shape in pen.shapes:
        assert kind != "text" or shape["at"][0] >= 0


def test_in_a_frame_the_headings_token_is_white_on_blue():
    renderer = renderer_of(make_record(["Based"], [" lamp"]), [picture()])
    heading = renderer.draw(0)[: renderer.answer.at[1], : renderer.panel.at[0]]
    assert is_current(heading).sum() > 100 and contrast((255, 255, 255), CURRENT_TOKEN) >= 4.5
