import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records import make_record, picture

from attention_heatmap.drawing.colour import CELL_ALPHA, PAPER, red_to_green, tinted
from attention_heatmap.drawing.fonts import FontSet
from attention_heatmap.drawing.image_panel import draw_heat, draw_marks, layout_images, under_heat
from attention_heatmap.drawing.layout import picture_slots, place_panels, used_size
from attention_heatmap.drawing.marks import Mark
from attention_heatmap.drawing.pen import Pen

FONTS = FontSet(20)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12))
def test_the_colour_at_a_cells_centre_is_the_colour_map_at_its_weight(values):
    layout = layout_images(make_record(["a"], ["b"]), [picture()], 300, 240, FONTS)
    panel = np.asarray(draw_heat(layout, np.array(values)), float)
    for (left, top, right, bottom), weight in zip(layout.edges, values):
        expected = tinted(np.array([weight]), red_to_green, CELL_ALPHA)[0]
        np.testing.assert_allclose(panel[(top + bottom) // 2, (left + right) // 2], expected, atol=12)


@pytest.mark.parametrize("size, grid", [((333, 211), (7, 5)), ((97, 640), (23, 3)), ((1000, 50), (1, 37))])
def test_cells_reach_every_edge_of_the_picture(size, grid):
    layout = layout_images(
        make_record(["a"], ["b"], grids=[grid], size=size), [picture(size, "black")], 500, 400, FONTS
    )
    drawn = (layout.picture != PAPER).any(axis=2)
    np.testing.assert_array_equal(drawn, layout.cell_index > 0)
    assert len(np.unique(layout.cell_index[drawn])) == grid[0] * grid[1]


def test_a_token_without_a_place_is_drawn_nowhere():
    record = make_record(["a"], ["b"])
    record.images[0].boxes[5] = np.nan
    layout = layout_images(record, [picture()], 300, 240, FONTS)
    assert record.images[0].positions[5] not in layout.positions and len(layout.positions) == 11


def test_grid_lines_run_where_cells_meet_and_tiny_cells_have_none():
    lines = layout_images(make_record(["a"], ["b"]), [picture()], 400, 300, FONTS).picture
    assert (lines[150, 100] < 255).all() and (lines[100, 50] < 255).all() and (lines[50, 50] == 255).all()
    fine = make_record(["a"], ["b"], grids=[(100, 100)])
    assert (layout_images(fine, [picture()], 400, 300, FONTS).picture == 255).all()


def test_a_muted_picture_is_lighter_and_paler_and_its_landmarks_are_told_apart():
    colours = [(214, 47, 39), (240, 120, 20), (250, 190, 20), (60, 100, 200), (30, 30, 30), (40, 150, 70)]
    image = Image.fromarray(np.repeat(np.array([colours], np.uint8), 20, axis=1).repeat(30, axis=0))
    assert under_heat(image, "colour") is image
    muted = [np.asarray(under_heat(image, how), float)[0, 10::20] for how in ("muted", "grey")]
    assert np.ptp(muted[1], axis=1).max() == 0 and muted[0].min() > 90
    apart = np.linalg.norm(muted[0][:, None] - muted[0][None], axis=-1) + 1000 * np.eye(len(colours))
    assert apart.min() > 15


def test_a_dark_picture_is_lifted_and_what_is_in_it_seen():
    dark = np.full((60, 80, 3), 12, np.uint8)
    dark[20:40, 20:40] = 40
    muted = np.asarray(under_heat(Image.fromarray(dark), "muted"), int)
    assert muted.min() > 120 and abs(muted[30, 30] - muted[5, 5]).max() > 15


SIZES = st.lists(st.tuples(st.integers(20, 3000), st.integers(20, 3000)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZES, st.integers(200, 1900), st.integers(200, 1900))
def test_pictures_keep_to_their_panel_and_do_not_overlap(sizes, width, height):
    slots = picture_slots(sizes, width, height, 20)
    wide, high = used_size(sizes, slots)
    assert wide <= width + 1 and high <= height + len(sizes) + 1
    boxes = [(x, y, x + w * s, y + h * s) for (w, h), (x, y, s) in zip(sizes, slots)]
    for n, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:n]:
            assert other[2] <= left + 1 or other[0] >= right - 1 or other[3] <= top + 1 or other[1] >= bottom - 1


@pytest.mark.parametrize(
    "sizes, frame, stacked, least",
    [
        ([(640, 448)], (1920, 1080), False, 0.28),
        ([(500, 900)], (1920, 1080), False, 0.13),
        ([(2000, 100)], (1920, 1080), True, 0.07),
        ([(1000, 800), (300, 900)], (1920, 1080), False, 0.28),
        ([(640, 448), (640, 448)], (1080, 1920), True, 0.33),
        ([(640, 448)], (640, 360), False, 0.2),
    ],
)
def test_the_pictures_have_their_part_of_the_frame_and_the_text_is_not_squeezed(sizes, frame, stacked, least):
    font = 26 if frame[0] > 700 else 14
    panels = place_panels(sizes, (28, 0, frame[0] - 28, frame[1] * 3 // 4), 60, 28, 30, font, [30] * 20)
    slots = picture_slots(sizes, *panels.pictures[2:], 30)
    area = sum(w * h * s * s for (w, h), (_, _, s) in zip(sizes, slots)) / (frame[0] * frame[1])
    assert panels.stacked == stacked and area >= least
    assert panels.text[2] >= 18 * font and panels.text[3] >= 7 * font


def test_marks_fade_the_last_stands_out_and_most_of_the_picture_stays_seen():
    layout = layout_images(make_record(["a"], ["b"]), [picture()], 900, 675, FONTS)
    rng = np.random.default_rng(0)
    marks = [Mark(n, "think", 0, tuple(rng.random(2).tolist())) for n in range(60)]
    canvas = Image.fromarray(layout.picture)
    draw_marks(Pen(canvas), (0, 0), layout, marks, FONTS)
    drawn = np.asarray(canvas)
    changed = (drawn != layout.picture).any(axis=2)
    assert 0.001 < changed.mean() < 0.03
    assert ((drawn[..., 2].astype(int) - drawn[..., 0]) > 150).any()  # the newest, blue
