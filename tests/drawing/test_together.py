"""Several maps in one frame: planes of a record, two checkpoints, and their difference."""

import re
from dataclasses import replace

import numpy as np
import pytest
from drawn import Shapes, on_white, with_cells
from records import make_record, picture

from attention_heatmap.compare import compare
from attention_heatmap.drawing.colour import CELL_ALPHA, opacity, purple_to_green
from attention_heatmap.drawing.fonts import FontSet
from attention_heatmap.drawing.frame import FrameRenderer, comparison_maps, planes_together
from attention_heatmap.drawing.image_panel import ImageLayout
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.maps import picture_shares


def record_of(hot, weights=(0.5, 0.5), steps=2, **change):
    """A record whose plane n looks at cell hot[n] with its weight."""
    layers = tuple(range(len(hot)))
    record = make_record(["Based"], [f" w{t}" for t in range(steps)], layers=layers)
    cells = np.zeros((steps, len(hot), 12), np.float32)
    for plane, (cell, weight) in enumerate(zip(hot, weights)):
        cells[:, plane, cell] = weight
    return replace(with_cells(record, cells), **change)


def renderer_with(record, together="own", maps=None, **options):
    how = DrawingOptions(frame_size=(1280, 720), together=together, picture="colour", **options)
    maps = maps or planes_together(record, range(len(record.layers)), how)
    return FrameRenderer(record, [picture()], 0, "Based", how, maps)


def colours(renderer, step):
    """(maps, cells, 3) the colour in the middle of each cell of each map."""
    frame, (left, top) = renderer.draw(step), renderer.panel.at
    found = [frame[top + (t + b) // 2, left + (x + r) // 2] for x, t, r, b in renderer.panel.layout.edges]
    return np.array(found, int).reshape(-1, 12, 3)


def words_of(renderer, step):
    return [shape["text"] for kind, shape in renderer.draw_shapes(step, Shapes()).shapes if kind == "text"]


@pytest.mark.parametrize(
    "layers, heads, heading, names",
    [
        ((1, 2), ("mean", "mean"), "attention, mean of the heads", ["layer 1", "layer 2"]),
        ((1, 1), (0, "max"), "attention in layer 1", ["head 0", "maximum of the heads"]),
        ((1, 2), (0, "max"), "attention in several layers and heads",
         ["layer 1, head 0", "layer 2, maximum of the heads"]),
    ],
)  # fmt: skip
def test_what_the_planes_have_in_common_is_said_once(layers, heads, heading, names):
    record = record_of([0, 1], layers=layers, heads=heads)
    found, maps = planes_together(record, [0, 1], DrawingOptions())
    assert found == heading and [one.name for one in maps] == names


@pytest.mark.parametrize("together, second", [("own", 1.0), ("shared", 0.2)])
def test_each_map_has_its_hot_cell_on_its_own_scale_or_a_shared_one(together, second):
    record = record_of([0, 7], (0.5, 0.1))
    renderer = renderer_with(record, together)
    found, strength = colours(renderer, 1), float(renderer.panel.strengths[1])
    for shown, hot, value in zip(found, (0, 7), (1.0, second)):
        for cell in range(12):
            expected = on_white(value if cell == hot else 0.0, strength=strength)
            np.testing.assert_allclose(shown[cell], expected, atol=2)


def test_each_map_names_itself_its_share_and_the_end_of_its_scale():
    record = record_of([0, 7], (0.5, 0.1))
    own, shared = (" ".join(words_of(renderer_with(record, how), 1)) for how in ("own", "shared"))
    for text in (own, shared):
        assert "layer 0" in text and "layer 1" in text and "text, shares and time line: layer 0" in text
    assert "up to 50.00%" in own and "up to 10.00%" in own and "each map's own scale" in own
    assert "up to" not in shared and "50.00% or more" in shared


def test_maps_stand_apart_and_every_mark_is_drawn_over_each():
    record = record_of([0, 7], steps=2)
    tokens = (*record.tokens[:-1], " (500, 500)")
    renderer, plain = (renderer_with(replace(record, tokens=tokens), draw_points=how) for how in ("auto", "off"))
    boxes = renderer.panel.layout.places
    assert len(boxes) == 2 and len(np.unique(renderer.panel.layout.cell_index)) == 25
    changed = (renderer.draw(1) != plain.draw(1)).any(axis=2)
    for left, top, width, height in boxes:
        x, y = renderer.panel.at[0] + left + width // 2, renderer.panel.at[1] + top + height // 2
        assert changed[y - 15 : y + 16, x - 15 : x + 16].any()


def compared(difference, cells=(3, 8), weights=(0.5, 0.5)):
    """The first of two records of one hot cell each, then the heading and the maps of both."""
    comparison = compare(*(record_of([cell], (weight,)) for cell, weight in zip(cells, weights)), 0)
    records = [comparison.common_record(which) for which in (0, 1)]
    return records[0], comparison_maps(records, ("base", "tuned"), DrawingOptions(difference=difference))


def test_a_comparison_names_the_checkpoints_and_their_difference_is_green_where_the_second_looks_more():
    record, (heading, maps) = compared(True)
    assert heading == "attention in layer 0, mean of the heads"
    assert [one.name for one in maps] == ["base", "tuned", "difference"]
    found = colours(renderer_with(record, "off", (heading, maps)), 1)
    np.testing.assert_allclose(found[0][3], on_white(1), atol=2)
    np.testing.assert_allclose(found[1][8], on_white(1), atol=2)
    for cell in range(12):
        value = {3: 0.0, 8: 1.0}.get(cell, 0.5)
        cover = opacity(np.array([abs(2 * value - 1)]), CELL_ALPHA)[0]
        expected = 255 - (255 - purple_to_green(np.array([value]))[0]) * cover
        np.testing.assert_allclose(found[2][cell], expected, atol=2)


def test_the_difference_says_how_much_more_of_the_attention_lies_on_the_pictures():
    record, (heading, maps) = compared(True, (3, 3), (0.25, 0.5))
    shares = [one.shares[1, 0] for one in maps]
    assert shares[2] == pytest.approx(shares[1] - shares[0]) and shares[2] > 0
    text = " ".join(words_of(renderer_with(record, "off", (heading, maps)), 1))
    assert f"{shares[2]:+.1%}, up to 25.00%" in text


def test_maps_that_are_the_same_have_no_difference():
    record, (heading, maps) = compared(True, (3, 3))
    words = words_of(renderer_with(record, "off", (heading, maps)), 1)
    assert "no difference" in words and not any(word.startswith("+0.0%") for word in words)


def test_without_a_difference_there_are_two_maps_and_shapes_have_the_colours_of_the_picture():
    record, (heading, maps) = compared(False)
    renderer = renderer_with(record, "off", (heading, maps))
    found = colours(renderer, 1).reshape(-1, 3)
    boxes = [s for kind, s in renderer.draw_shapes(1, Shapes()).shapes if kind == "box" and 0 < s["opacity"] < 1]
    assert len(boxes) == 24
    for box, colour in zip(boxes, found):
        np.testing.assert_allclose(255 - (255 - np.array(box["fill"])) * box["opacity"], colour, atol=2)


@pytest.mark.parametrize("width, told", [(1400, True), (500, False)])
def test_the_names_of_maps_are_cut_and_leave_room_for_the_share_where_there_is_any(width, told):
    names = [f"Qwen2-VL-7B-Instruct{'-trajectory' * 9}-{end}" for end in ("base", "tuned")]
    fonts = FontSet(18)
    layout = ImageLayout(make_record(["Based"], ["w"]), [picture()], width, 700, fonts, names=names)
    for name, label, (_, _, wide, _) in zip(names, layout.labels, layout.places):
        assert label.endswith(name[-3:]) and fonts.width(label) <= wide
        assert (wide - fonts.width(label) > fonts.width("99.3%, up to 52.95%")) == told


@pytest.mark.parametrize("width", range(200, 2000, 150))
@pytest.mark.parametrize("pictures", [1, 2])
def test_however_small_they_are_maps_of_planes_have_names_that_differ_and_are_of_one_kind(width, pictures):
    names = [f"layer {layer}, {head}" for layer in (6, 27) for head in ("mean of the heads", "head 0", "head 11")]
    record = make_record(["Based"], ["w"], grids=[(3, 4)] * pictures)
    layout = ImageLayout(record, [picture()] * pictures, width, 700, FontSet(20), names=names)
    firsts = layout.labels[::pictures]
    assert len({label.startswith("layer ") for label in firsts}) == 1, firsts
    if layout.places[0][2] > 90:
        assert len(set(firsts)) == len(names) and not any("…" in label for label in layout.labels), layout.labels


def test_the_names_of_checkpoints_are_cut_only_and_a_narrow_picture_alone_has_a_shorter_label():
    names = [f"head image {end}, layer of the heads" + ", maximum-likelihood" * 3 for end in ("tuned", "base")]
    record = make_record(["Based"], ["w"], grids=[(3, 4)] * 2)
    layout = ImageLayout(record, [picture()] * 2, 700, 700, FontSet(20), names=names)
    for label, name in zip(layout.labels[::2], names):
        begin, _, end = label.partition("…")
        assert name.startswith(begin) and name.endswith(end.removesuffix(" · 1")), label
    sizes = [(400, 300), (30, 400)]
    layout = ImageLayout(record, [picture(size) for size in sizes], 400, 300, FontSet(20))
    assert layout.labels == ["image 1", "2"]


@pytest.mark.parametrize("width, told", [(1000, r"[0-9.]+%, up to (?:50|25)\.00%"), (1920, r"[0-9.]+%")])
@pytest.mark.parametrize("scale", ["frame", "log"])
def test_each_picture_of_a_map_has_its_own_share_and_the_scales_ends_are_told_with_little_room_too(width, told, scale):
    record = make_record(["Based"], ["w"] * 2, grids=[(3, 4)] * 2, layers=(0, 1))
    cells = np.zeros((2, 2, 24), np.float32)
    cells[:, :, 3] = np.array([0.5, 0.25])
    how = DrawingOptions(frame_size=(width, 1080), together="own", scale=scale)
    record = with_cells(record, cells)
    maps = planes_together(record, [0, 1], how)
    renderer = FrameRenderer(record, [picture((300, 400))] * 2, 0, "Based", how, maps)
    words = words_of(renderer, 1)
    shares = np.concatenate([picture_shares(record, plane)[1] for plane in (0, 1)])
    beside = [one for one in words if re.fullmatch(rf"{told}|[0-9.]+%", one)]
    assert [one.partition(",")[0] for one in beside[:4]] == [f"{share:.1%}" for share in shares]
    assert bool(re.fullmatch(told, beside[0]))
    log = ", log" * (scale == "log")
    assert f"each map's own scale: 25.00% to 50.00%{log}" in words
    assert ("a cell  0%" in words) == (scale != "log")
