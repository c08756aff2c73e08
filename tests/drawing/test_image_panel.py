"""The pictures under the heat: cells where they belong, tints, hatched sinks, mutings, marks."""

from dataclasses import replace

import numpy as np
import pytest
from drawn import FONTS, Shapes, cell_centre, hot_record, on_white, renderer_of, sink_record, with_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records import grid_boxes, make_record, picture

from attention_heatmap.drawing.colour import CELL_ALPHA, COLORMAPS, CURRENT_TOKEN, PAPER, red_to_green
from attention_heatmap.drawing.image_panel import (
    CELL_LEVELS,
    MARK_OPACITY,
    MOST_MARKS,
    ImageLayout,
    cell_colours,
    draw_marks,
    put_heat,
    under_heat,
)
from attention_heatmap.drawing.marks import Mark
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.pen import Pen
from attention_heatmap.maps import map_cells
from attention_heatmap.record import ImageTokens


def layout_of(grids=((3, 4),), size=(400, 300), panel=(400, 300), colour="white", **options):
    record = make_record(["a"], ["b"], grids=grids, size=size)
    return ImageLayout(record, [picture(size, colour)] * len(grids), *panel, FONTS, **options)


def heated(layout, values, colormap=red_to_green):
    """(Y, X, 3) a panel under the tint of its cells."""
    canvas = Image.new("RGB", layout.picture.shape[1::-1])
    put_heat(Pen(canvas), (0, 0), layout, *cell_colours(values, 1, DrawingOptions(), colormap))
    return np.asarray(canvas)


@pytest.mark.parametrize("hot, cell", [(0, (0, 0)), (3, (0, 3)), (4, (1, 0)), (11, (2, 3))])
def test_cells_are_row_major_and_the_hot_one_alone_is_green(hot, cell):
    renderer = renderer_of(hot_record([hot]), picture="colour")
    frame = renderer.draw(0)
    for number in range(12):
        y, x = cell_centre(renderer, number)
        np.testing.assert_allclose(frame[y, x], on_white(float(number == hot)), atol=2)
    whole = renderer.panel.at, renderer.panel.layout.places[0]
    y, x = cell_centre(renderer, hot)
    assert (y - whole[0][1] - whole[1][1]) // (whole[1][3] / 3) == cell[0]
    assert (x - whole[0][0] - whole[1][0]) // (whole[1][2] / 4) == cell[1]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12), st.sampled_from(list(COLORMAPS.values())))
def test_the_colour_at_a_cells_centre_is_the_colour_map_at_its_weight(values, colormap):
    layout = layout_of(panel=(300, 240))
    panel = heated(layout, np.array(values), colormap)
    for (left, top, right, bottom), weight in zip(layout.edges, values):
        expected = on_white(weight, colormap=colormap)
        np.testing.assert_allclose(panel[(top + bottom) // 2, (left + right) // 2], expected, atol=2)


def test_a_cell_that_hardly_changes_does_not_change_at_all():
    layout, values = layout_of(), np.linspace(0.1, 0.9, 12)
    values = np.round(values * (CELL_LEVELS - 1)) / (CELL_LEVELS - 1)
    first, second = (heated(layout, values + shift) for shift in (0.1 / CELL_LEVELS, -0.1 / CELL_LEVELS))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("size, grid", [((333, 211), (7, 5)), ((97, 640), (23, 3)), ((1000, 50), (1, 37))])
def test_cells_reach_every_edge_of_the_picture(size, grid):
    layout = layout_of([grid], size, (500, 400), "black")
    drawn = (layout.picture != PAPER).any(axis=2)
    np.testing.assert_array_equal(drawn, layout.cell_index > 0)
    assert len(np.unique(layout.cell_index[drawn])) == grid[0] * grid[1]


def test_the_picture_keeps_its_shape_and_fills_the_panel_one_way():
    rows, columns = np.nonzero(layout_of(size=(200, 100), panel=(500, 400)).cell_index)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (500, 250)


def test_two_pictures_do_not_overlap_have_their_numbers_and_share_one_scale():
    record = make_record(["Based"], [" w"], grids=[(3, 4), (2, 5)])
    record.images[1].boxes[:] = grid_boxes(2, 5, 100, 300)
    renderer = renderer_of(record, [picture((400, 300)), picture((100, 300))])
    assert renderer.panel.layout.labels == ["image 1", "image 2"] and len(renderer.panel.layout.edges) == 22
    assert set(np.unique(renderer.panel.layout.cell_index)) == set(range(23))
    assert renderer.panel.ends[0][0] == pytest.approx(renderer.panel.maps[0].weights.max())


def test_the_hot_token_of_the_second_picture_is_green_there():
    record = hot_record([13, 2], grids=[(3, 4), (2, 2)])
    renderer = renderer_of(record, [picture(), picture()], picture="colour")
    for step, hot in enumerate((13, 2)):
        frame = renderer.draw(step)
        for number in range(16):
            expected = on_white(float(number == hot), strength=float(renderer.panel.strengths[step]))
            np.testing.assert_allclose(frame[cell_centre(renderer, number)], expected, atol=2)


def test_a_token_without_a_place_is_drawn_nowhere():
    record = make_record(["a"], ["b"])
    boxes = record.images[0].boxes.copy()
    boxes[5] = np.nan
    images = (ImageTokens(record.images[0].positions, boxes),)
    layout = ImageLayout(replace(record, images=images), [picture()], 300, 240, FONTS)
    assert record.images[0].positions[5] not in map_cells(images[0]).positions and len(layout.edges) == 11
    assert np.unique(layout.cell_index).tolist() == list(range(12))


def test_grid_lines_run_where_cells_meet_and_tiny_cells_have_none():
    lines = layout_of().picture
    assert (lines[150, 100] < 255).all() and (lines[100, 50] < 255).all() and (lines[50, 50] == 255).all()
    assert (layout_of([(100, 100)]).picture == 255).all()


def test_many_pictures_are_all_drawn():
    layout = layout_of([(2, 2)] * 14)
    assert len(np.unique(layout.cell_index)) == 1 + 14 * 4 and layout.labels[-1] == "14"


def test_what_is_left_out_has_no_tint():
    layout, values = layout_of(), np.ones(12)
    values[5] = np.nan
    panel = heated(layout, values)
    left, top, right, bottom = layout.edges[5]
    assert (panel[(top + bottom) // 2, (left + right) // 2] == 255).all() and (panel[20, 20] != 255).any()


@pytest.mark.parametrize("colour", ["black", "white", "khaki", "navy"])
@pytest.mark.parametrize("colormap", COLORMAPS)
def test_a_sink_is_hatched_visibly_on_any_picture_and_not_tinted(colour, colormap):
    def lightness(step, **options):
        """Of the pixels of the cell, but for the grid lines round it."""
        renderer = renderer_of(sink_record(), [picture(colour=colour)], colormap=colormap, **options)
        (left, top, right, bottom), at = renderer.panel.layout.edges[5], renderer.panel.at
        panel = renderer.draw(step)[at[1] :, at[0] :]
        return panel[top + 2 : bottom - 2, left + 2 : right - 2].mean(axis=2)

    light = lightness(0, sinks=True)
    assert np.ptp(light) > 120 and 0.4 < (light > light.mean()).mean() < 0.6 and np.ptp(lightness(0)) == 0
    np.testing.assert_array_equal(light, lightness(7, sinks=True))


def test_a_sink_is_left_out_of_the_scale_of_the_other_cells():
    with_sink, without = renderer_of(sink_record()), renderer_of(sink_record(), sinks=True)
    assert with_sink.panel.ends[0][0] == pytest.approx(3.0) and without.panel.ends[0][0] == pytest.approx(0.5)
    weights = without.panel.maps[0].weights
    assert np.isnan(weights[:, 5]).all() and np.isfinite(np.delete(weights, 5, 1)).all()


def test_each_frame_has_its_own_scale_unless_the_video_has_one_and_the_power_lifts_weak_ones():
    record = hot_record([0, 1, 2])
    weights = record.weights[:, 0, record.image_positions] * [[1], [0.1], [1]]
    record = with_cells(record, weights)
    frame, video, lifted = (
        renderer_of(record, picture="colour", **o) for o in ({}, {"scale": "video"}, {"scale": "video", "power": 0.5})
    )
    np.testing.assert_allclose(frame.panel.ends[0], [0.5, 0.05, 0.5])
    np.testing.assert_allclose(video.panel.ends[0], [0.5] * 3)
    for renderer, value in ((frame, 1), (video, 0.1), (lifted, 0.1**0.5)):
        expected = on_white(value, strength=float(renderer.panel.strengths[1]))
        np.testing.assert_allclose(renderer.draw(1)[cell_centre(renderer, 1)], expected, atol=2)


@pytest.mark.parametrize("how, colourful", [("colour", 1.0), ("muted", 0.5), ("grey", 0.0)])
def test_under_the_heat_the_picture_is_in_its_colours_or_paler_or_grey(how, colourful):
    y, x = np.mgrid[0:100, 0:100]
    image = Image.fromarray(np.stack([x * 2, y * 2, 0 * x + 60], axis=-1).astype(np.uint8))
    shown, plain = np.asarray(under_heat(image, how), int), np.asarray(image, int)
    saturation = np.ptp(shown, axis=2).mean() / np.ptp(plain, axis=2).mean()
    assert saturation == pytest.approx(colourful * (1 if how == "colour" else 0.55), abs=0.12)
    assert (shown == plain).all() if how == "colour" else shown.mean() > plain.mean() + 30


@pytest.mark.parametrize("how", ["muted", "grey"])
def test_what_can_be_told_apart_in_a_dark_flat_picture_still_can_and_a_plain_one_stays_plain(how):
    x = np.tile(np.arange(100) // 50 * 40, (100, 1)).astype(np.uint8)
    shown = np.asarray(under_heat(Image.fromarray(np.stack([x] * 3, -1)), how), int)
    assert shown[0, 99, 0] - shown[0, 0, 0] > 40
    for level in (0, 120, 255):
        assert np.ptp(np.asarray(under_heat(picture(colour=(level,) * 3), how))) == 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 255), st.integers(0, 255), st.sampled_from(["muted", "grey"]))
def test_muting_turns_no_light_into_dark(first, second, how):
    pixels = np.full((40, 40, 3), first, np.uint8)
    pixels[:, 20:] = second
    shown = np.asarray(under_heat(Image.fromarray(pixels), how), int)
    assert np.sign(shown[0, 39, 0] - shown[0, 0, 0]) in (0, np.sign(second - first))


def test_shapes_have_a_box_for_each_cell_in_its_colour_and_every_picture_once():
    layout, values = layout_of([(3, 4), (2, 2)]), np.linspace(0, 1, 16)
    pen = Shapes(400, 300)
    put_heat(pen, (10, 20), layout, *cell_colours(values, 1, DrawingOptions(), red_to_green))
    boxes = [shape for kind, shape in pen.shapes if kind == "box"]
    assert len(boxes) == 16 and sum(kind == "picture" for kind, _ in pen.shapes) == 2
    for box, edges, value in zip(boxes, layout.edges, values):
        np.testing.assert_allclose(np.array(box["box"]), np.add(edges, [10, 20, 10, 20]))
        shade = 255 - (255 - np.array(box["fill"])) * box["opacity"]
        np.testing.assert_allclose(shade, on_white(value, CELL_ALPHA), atol=1.5)
    assert [shape["text"] for kind, shape in pen.shapes if kind == "text"] == ["image 1", "image 2"]


# ---- marks -------------------------------------------------------------------------------------------


def marked(layout, corners, image=0, background=(255, 255, 255), margin=40):
    """(Y, X, 3) a panel with marks, and room round it."""
    canvas = Image.new("RGB", tuple(n + 2 * margin for n in layout.picture.shape[1::-1]), background)
    marks = [Mark(n, "", image, each) for n, each in enumerate(corners)]
    draw_marks(Pen(canvas), (margin, margin), layout, marks)
    return np.asarray(canvas, int)[margin:, margin:]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1))
def test_a_ring_stands_round_its_point_in_its_own_picture_and_leaves_the_point_in_view(x, y, image):
    layout = layout_of([(2, 2), (2, 2)])
    panel = marked(layout, [(x, y)], image)
    left, top, width, height = layout.places[image]
    at_x, at_y = left + x * width, top + y * height
    rows, columns = np.nonzero((np.abs(panel - CURRENT_TOKEN) < 40).all(axis=2))
    distance = np.hypot(columns - at_x, rows - at_y)
    assert len(rows) and (panel[round(at_y), round(at_x)] == 255).all()
    assert distance.min() > 8 and ((distance > 9) & (distance < 16)).sum() > 40


def test_the_newest_mark_is_blue_and_the_ones_before_it_ever_fainter():
    layout = layout_of()
    panel = marked(layout, [(0.1 + n / 10, 0.5) for n in range(8)])

    def strength(number):
        x = round((0.1 + number / 10) * 400)
        return int((255 - panel[135:166, x - 15 : x + 16]).sum())

    strengths = [strength(n) for n in range(7)]
    assert strengths[6] > strengths[5] > strengths[4] > 0 and len(MARK_OPACITY) == 3
    last = panel[:, 300:]
    assert (np.abs(last - CURRENT_TOKEN) < 40).all(axis=2).sum() > 60
    assert not (np.abs(panel[:, :280] - CURRENT_TOKEN) < 40).all(axis=2).any()


def test_a_box_has_its_corners_where_it_says():
    panel = marked(layout_of(), [(0.25, 0.2, 0.75, 0.8)])
    blue = (np.abs(panel - CURRENT_TOKEN) < 40).all(axis=2)
    for x, y in ((200, 60), (200, 240), (100, 150), (300, 150)):
        assert blue[y - 3 : y + 4, x - 3 : x + 4].any()
    assert not blue[100:200, 120:280].any()


def test_a_mark_at_the_edge_of_the_panel_is_whole():
    layout = layout_of()
    corner, middle = (int((marked(layout, [at]) != 255).any(axis=2).sum()) for at in ((0.5, 0.0), (0.5, 0.5)))
    canvas = Image.new("RGB", (480, 380), "white")
    draw_marks(Pen(canvas), (40, 40), layout, [Mark(0, "", 0, (0.0, 0.0))])
    whole = int((np.asarray(canvas) != 255).any(axis=2).sum())
    assert corner < middle and whole >= 0.7 * middle


def test_however_many_there_are_only_the_last_are_drawn_and_numbered_on():
    pen, layout = Shapes(400, 300), layout_of()
    marks = [Mark(n, "", 0, (0.5, 0.5)) for n in range(500)]
    draw_marks(pen, (0, 0), layout, marks, 1000)
    texts = [shape["text"] for kind, shape in pen.shapes if kind == "text"]
    assert texts == ["1498", "1499", "1500"] and sum(kind == "ring" for kind, _ in pen.shapes) == 2 * MOST_MARKS


def test_a_muted_picture_is_lighter_and_paler_and_its_landmarks_are_told_apart():
    colours = [(214, 47, 39), (240, 120, 20), (250, 190, 20), (60, 100, 200), (30, 30, 30), (40, 150, 70)]
    image = Image.fromarray(np.repeat(np.array([colours], np.uint8), 20, axis=1).repeat(30, axis=0))
    assert under_heat(image, "colour") is image
    muted = [np.asarray(under_heat(image, how), float)[0, 10::20] for how in ("muted", "grey")]
    assert np.ptp(muted[1], axis=1).max() == 0 and muted[0].min() > 90
    apart = np.linalg.norm(muted[0][:, None] - muted[0][None], axis=-1) + 1000 * np.eye(len(colours))
    assert apart.min() > 15


def test_marks_fade_the_last_stands_out_and_most_of_the_picture_stays_seen():
    layout = ImageLayout(make_record(["a"], ["b"]), [picture()], 900, 675, FONTS)
    rng = np.random.default_rng(0)
    marks = [Mark(n, "think", 0, tuple(rng.random(2).tolist())) for n in range(60)]
    canvas = Image.fromarray(layout.picture)
    draw_marks(Pen(canvas), (0, 0), layout, marks)
    drawn = np.asarray(canvas)
    changed = (drawn != layout.picture).any(axis=2)
    assert 0.001 < changed.mean() < 0.03
    assert ((drawn[..., 2].astype(int) - drawn[..., 0]) > 150).any()  # the newest, blue


@pytest.mark.parametrize("size", [(800, 600), (160, 120), (60, 45)])
def test_marks_leave_most_of_a_small_picture_seen_and_only_a_large_one_has_numbers(size):
    layout = ImageLayout(make_record(["a"], ["b"]), [picture()], *size, FONTS)
    pen = Shapes(*size)
    draw_marks(pen, (0, 0), layout, [Mark(n, "", 0, (0.3 + 0.4 * n, 0.5)) for n in range(2)])
    assert [shape["text"] for kind, shape in pen.shapes if kind == "text"] == (["1", "2"] if size[0] == 800 else [])
    canvas = Image.fromarray(layout.picture)
    draw_marks(Pen(canvas), (0, 0), layout, [Mark(0, "", 0, (0.5, 0.5))])
    rows, columns = np.nonzero((np.asarray(canvas) != layout.picture).any(axis=2))
    assert 3 < np.ptp(rows) < layout.picture.shape[0] / 2 and 3 < np.ptp(columns) < layout.picture.shape[1] / 2
