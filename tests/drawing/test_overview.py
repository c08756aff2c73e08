"""The overview of many planes: each map in its row and column, for a step, a word or a phase."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from records import make_record

from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.pen import Pen
from attention_heatmap.drawing.summary import draw_overview
from attention_heatmap.phases import steps_of
from attention_heatmap.record import picture_file

WORDS = ["<think>", " red", " lamp", ",", " lamp", "</think>", "<answer>", "lamp"]
SIZE = (400, 300)


def record_of(layers=(1, 1, 2, 2), heads=(0, "mean", 0, "mean")):
    record = make_record(["Where"], WORDS, grids=[(3, 4)], size=SIZE, layers=layers)
    return replace(record, heads=heads, pictures=(picture_file(Image.new("RGB", SIZE, "white")),))


@pytest.mark.parametrize(
    "what, steps, title",
    [
        (2, [1], "token 2"), ("-1", [7], "token 8"), ("lamp", [2, 4, 7], "mean of 3 mentions"),
        ("red", [1], "token 2"), ("answer", [6, 7], "answer: mean of 2 steps"), ("response", [*range(8)], "mean of 8"),
        ("red lamp", [1], "“red lamp”"),
    ],
)  # fmt: skip
def test_a_step_a_word_and_a_phase_are_found(what, steps, title):
    found = steps_of(record_of(), what)
    assert found[1] == steps and title in found[0]


@pytest.mark.parametrize(
    "what, message", [("chair", "does not hold 'chair'"), (9, "token 9 is not there"), ("", "does not hold")]
)
def test_what_is_not_there_is_told(what, message):
    with pytest.raises(ValueError, match=message):
        steps_of(record_of(), what)


def test_the_hot_cell_of_each_plane_is_green_in_its_own_map():
    record = record_of()
    weights = np.zeros_like(record.weights)
    hot = [0, 3, 8, 11]  # the corners
    for plane, cell in enumerate(hot):
        weights[:, plane, record.image_positions[cell]] = 1
    record = replace(record, weights=weights)
    options = {"colormap": lambda values: np.stack([255 - values * 255, values * 255, 0 * values], axis=-1)}
    picture = np.asarray(draw_overview(record, record.open_pictures(), "lamp", DrawingOptions(**options)), int)
    greener = picture[..., 1] - picture[..., 0] > 60
    rows, columns = np.nonzero(greener)
    middle_y, middle_x = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    quarters = [(rows < middle_y) & (columns < middle_x), (rows < middle_y) & (columns > middle_x),
                (rows > middle_y) & (columns < middle_x), (rows > middle_y) & (columns > middle_x)]  # fmt: skip
    sizes = [quarter.sum() for quarter in quarters]
    assert min(sizes) > 200 and max(sizes) < 1.3 * min(sizes)


def test_a_model_of_many_heads_has_small_maps_and_all_of_them():
    record = record_of(layers=(0,) * 28, heads=tuple(range(28)))
    picture = draw_overview(record, record.open_pictures(), 1)
    assert picture.width > 28 * 72 and record.overview("lamp").size[0] == picture.width


def test_each_layer_is_named_though_the_first_head_is_not_among_its_own(monkeypatch):
    written = []
    monkeypatch.setattr(Pen, "text", lambda self, at, text, *rest: written.append(text) or at[0])
    draw_overview(record_of((1, 2), (0, 3)), [Image.new("RGB", SIZE)], 1)
    assert {"layer 1", "layer 2", "head 0", "head 3"} <= {*written}
