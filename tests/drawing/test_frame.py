from dataclasses import replace

import numpy as np
import pytest
from records import SMALL, hot_record, make_record, picture

from attention_heatmap.drawing.colour import CURRENT_TOKEN
from attention_heatmap.drawing.frame import FrameRenderer, render_frames
from attention_heatmap.drawing.options import drawing_options
from attention_heatmap.drawing.pen import VectorPen


def renderer_of(record, images=None, plane=1, phrase="Based", **options):
    images = images or [picture()] * len(record.images)
    return FrameRenderer(record, images, plane, phrase, drawing_options({"frame_size": SMALL} | options))


def cell_colours(renderer, frame):
    """(cells, 3) the colour in the middle of each cell."""
    left, top = renderer.image_at
    return np.array([frame[top + (t + b) // 2, left + (x + r) // 2] for x, t, r, b in renderer.image.edges], int)


def said(renderer, step):
    """What is written in a frame."""
    return " ".join(values["text"] for kind, values in renderer.draw_shapes(step).shapes if kind == "text")


@pytest.mark.parametrize("share", [0.5, 0.01])
@pytest.mark.parametrize("colour", ["white", "green", "black", "red"])
def test_the_hot_cell_is_the_greenest_on_any_picture_in_strong_and_weak_frames(colour, share):
    record = hot_record([7, 3], share)
    weights = record.weights.copy()
    weights[0, :, record.images[0].positions[7]] = 0.5
    renderer = renderer_of(replace(record, weights=weights), [picture(colour=colour)])
    for step, hot in ((0, 7), (1, 3)):
        colours = cell_colours(renderer, renderer.draw(step))
        away = np.abs(colours - np.median(colours, axis=0)).sum(axis=1)
        assert away.argmax() == hot and away[hot] > 60


def test_a_weak_frame_looks_weaker_than_a_strong_one():
    strong, weak = hot_record([7]), hot_record([7], 0.01)
    record = replace(make_record(["Based", " on"], [" a", " b"]))
    weights = np.zeros_like(record.weights)
    for t, source in enumerate((strong, weak)):
        weights[t, :, : source.weights.shape[2]] = source.weights[0]
    renderer = renderer_of(replace(record, weights=weights))
    first, second = (cell_colours(renderer, renderer.draw(t))[7].sum() for t in (0, 1))
    assert second > first + 40


def test_the_scale_of_the_video_is_one_and_its_power_lifts_weak_frames():
    record = hot_record([7, 3], 0.5)
    weights = record.weights.copy()
    weights[1] *= 0.05
    record = replace(record, weights=weights)
    plain, lifted = (renderer_of(record, scale="video", power=power) for power in (1.0, 0.3))
    assert plain.cell_ends[0] == plain.cell_ends[1]
    away = [np.ptp(cell_colours(renderer, renderer.draw(1)), axis=0).sum() for renderer in (plain, lifted)]
    assert away[1] > 2 * away[0]


def test_the_current_token_is_blue_and_later_ones_are_not_shown():
    renderer = renderer_of(make_record(["Based", " on"], [" one", " two", " three"]))
    for step in range(3):
        frame = renderer.draw(step)
        left, top = renderer.text_at
        panel = frame[top : top + renderer.text_size[1], left : left + renderer.text_size[0]][: len(renderer.text.ink)]
        ground = np.where(renderer.text.ink == 0, renderer.text.piece_index, 0)[: len(panel)]
        assert (panel[ground == 3 + step] == CURRENT_TOKEN).all()
        assert (panel[ground > 3 + step] == 255).all()


def test_how_much_is_told_in_numbers():
    record = hot_record([7, 3], 0.5)
    text = said(renderer_of(record, frame_size=(1920, 1080)), 1)
    share = record.weights[1, 1, record.images[0].positions].sum() / record.weights[1, 1].sum()
    assert f"{share:.1%} on the picture" in text and "50.00% or more of the attention (this frame)" in text
    assert "token 2 of 2" in text and "attention in layer 1 (the last is 7), mean of the heads" in text


def test_attention_on_text_that_has_scrolled_away_is_told():
    record = make_record(["Start", "Based"], ["\n"] * 80 + ["x"], grids=[(1, 1)])
    renderer = renderer_of(record)
    first, _ = renderer.text.visible(len(renderer.text.pieces) - 1, renderer.text_size[1])
    above = np.flatnonzero(renderer.text.last_line < first)
    expected = renderer.text_weights[80][above].sum() + record.rows(1)[80][2]
    assert first > 0 and f"{expected:.1%}" in said(renderer, 80) and "above" in said(renderer, 80)
    assert "above" not in said(renderer_of(make_record(["Based"], ["x"])), 0)


@pytest.mark.parametrize("size", [(640, 360), (640, 640), (640, 800), (1080, 1920), (1920, 1080)])
@pytest.mark.parametrize("sizes", [[(400, 300)], [(300, 900)], [(2000, 100)], [(900, 100), (300, 400)]])
def test_nothing_is_drawn_over_something_else_or_outside(size, sizes):
    record = make_record(["Based"], [" w"] * 5, grids=[(3, 4)] * len(sizes), sizes=sizes)
    renderer = renderer_of(record, [picture(each, "grey") for each in sizes], frame_size=size)
    assert renderer.draw(4).shape == (size[1], size[0], 3)
    pen = renderer.draw_shapes(4)
    assert isinstance(pen, VectorPen)
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


def test_steps_are_numbered_from_1_as_the_frames_name_them():
    renderer = renderer_of(make_record(["a"], ["b", " Based", " on"]))
    assert renderer.first_step == 1 and renderer.check_step(2) == 1 and renderer.check_step(-1) == 2
    for number, message in (
        (0, "token 0 is not there"),
        (1, "begins at token 2"),
        (4, "expected 1 to 3"),
        (-4, "1 to 3"),
    ):
        with pytest.raises(ValueError, match=message):
            renderer.check_step(number)


def test_frames_of_a_long_answer_that_loops_on_points_are_drawn_in_the_time_of_others():
    record = make_record(["Based"], [" (", "300", ",", "400", ")", "\n"] * 30, grids=[(2, 2)])
    frames = list(render_frames(record, [picture()], 1, "Based", frame_size=SMALL))
    assert len(frames) == 180 and all(frame.dtype == np.uint8 for frame in frames)


def test_a_wrong_number_of_pictures_is_refused():
    with pytest.raises(ValueError, match="2 pictures were given; the record has 1"):
        renderer_of(make_record(["a"], ["b"]), [picture(), picture()])
