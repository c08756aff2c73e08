"""Where panels and pictures stand: within their room, apart, in order, as large as they can be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_heatmap.drawing.layout import LARGER_TEXT, MOST_ARRANGED, picture_slots, place_panels, used_size

SIDE = st.integers(20, 2000)
SIZES = st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=9)


def boxes_of(sizes, slots):
    return [(x, y, x + w * scale, y + h * scale) for (w, h), (x, y, scale) in zip(sizes, slots)]


def apart(a, b, slack=1.0):
    return a[2] <= b[0] + slack or b[2] <= a[0] + slack or a[3] <= b[1] + slack or b[3] <= a[1] + slack


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SIZES, st.integers(200, 1500), st.integers(200, 1500), st.integers(0, 30))
def test_pictures_stand_within_their_panel_apart_and_in_order(sizes, width, height, label):
    boxes = boxes_of(sizes, picture_slots(sizes, width, height, label))
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and top >= label and right <= width + len(sizes) and bottom <= height + len(sizes)
        for other in boxes[:number]:
            assert apart(other, boxes[number])
            assert other[1] <= top + 1  # row by row
            assert other[1] < top - 1 or other[0] < left


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIDE, SIDE, st.integers(50, 1500), st.integers(50, 1500))
def test_one_picture_fills_its_panel_one_way(width, height, panel_width, panel_height):
    ((x, y, scale),) = picture_slots([(width, height)], panel_width, panel_height, 0)
    most = min(panel_width / width, panel_height / height)
    assert (x, y) == (0, 0) and scale == pytest.approx(most, rel=1e-6)
    assert used_size([(width, height)], [(x, y, scale)]) == (round(width * scale), round(height * scale))


@pytest.mark.parametrize("sizes, rows", [([(400, 100)] * 2, 2), ([(100, 400)] * 2, 1), ([(300, 300)] * 4, 2)])
def test_pictures_stand_in_the_rows_in_which_they_are_largest(sizes, rows):
    assert len({y for _, y, _ in picture_slots(sizes, 600, 600, 10)}) == rows


def test_of_many_pictures_each_is_seen():
    count = MOST_ARRANGED + 8
    slots = picture_slots([(400, 300)] * count, 600, 400, 15)
    assert len(slots) == count and min(scale for *_, scale in slots) * 300 > 40


FRAMES = st.sampled_from([(640, 360), (640, 640), (720, 1280), (1920, 1080), (1080, 1920), (3840, 640)])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.tuples(SIDE, SIDE), st.just((1200, 3))), min_size=1, max_size=3),
    st.integers(2, 9), st.integers(200, 1500),
)  # fmt: skip
def test_a_row_has_whole_maps_or_one_picture_of_all_and_a_picture_is_as_large_in_every_map(sizes, maps, width):
    each, slots = len(sizes), picture_slots(sizes * maps, width, 900, 20, len(sizes))
    boxes = boxes_of(sizes * maps, slots)
    assert all(apart(a, b) for n, a in enumerate(boxes) for b in boxes[:n])
    for picture in range(each):
        scales = [slots[n][2] for n in range(picture, len(slots), each)]
        assert max(scales) == pytest.approx(min(scales))
    tops = [y for _, y, _ in slots]
    one_picture = all(len({tops[n] for n in range(picture, len(tops), each)}) == 1 for picture in range(each))
    whole_maps = all(len({*tops[n : n + each]}) == 1 for n in range(0, len(tops), each))
    assert one_picture or whole_maps


@pytest.mark.parametrize("maps", [1, 2, 8])
@pytest.mark.parametrize("sizes", [[(640, 480), (1200, 3)], [(640, 480), (640, 480), (1200, 12)], [(3, 1200)]])
def test_strips_leave_room_for_the_text(sizes, maps):
    panels = place_panels(sizes * maps, (15, 0, 625, 260), 30, 15, 16, 14, [40] * 9, len(sizes))
    assert panels.text[2] >= 100 and panels.text[3] >= 40 and panels.pictures[2] > 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZES, FRAMES, st.lists(st.integers(0, 300), min_size=1, max_size=40))
def test_the_panels_stand_within_their_room_and_apart(sizes, frame, letters):
    header, gap, label, font = 30, 15, 15 * (len(sizes) > 1), 14
    room = (gap, 0, frame[0] - gap, frame[1] - 100)
    panels = place_panels(sizes, room, header, gap, label, font, letters)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (panels.text, panels.pictures)]
    used = used_size(sizes, picture_slots(sizes, *panels.pictures[2:], label))
    boxes[1] = (*boxes[1][:2], boxes[1][0] + used[0], boxes[1][1] + used[1])
    for left, top, right, bottom in boxes:
        assert left >= room[0] and top >= header and right <= room[2] + len(sizes) and bottom <= room[3] + len(sizes)
    assert apart(*boxes, slack=len(sizes)) and panels.text[2] > 8 * font and panels.text[3] > 4 * font
    assert panels.stacked == (panels.text[0] == panels.pictures[0])
    assert 1 <= panels.text_scales[0] <= LARGER_TEXT[0]


@pytest.mark.parametrize(
    "size, frame, stacked",
    [((400, 300), (640, 1138), True), ((400, 300), (1280, 720), False), ((100, 900), (640, 800), False),
     ((1800, 200), (1280, 720), True)],
)  # fmt: skip
def test_pictures_stand_above_the_text_where_they_are_larger_there(size, frame, stacked):
    room = (15, 0, frame[0] - 15, frame[1] - 100)
    assert place_panels([size], room, 30, 15, 0, 14, [400]).stacked == stacked


def test_a_short_text_is_written_larger_and_leaves_the_pictures_more_room():
    short, long = (place_panels([(400, 300)], (0, 0, 1280, 600), 50, 20, 0, 17, n) for n in ([40], [80] * 50))
    assert short.text_scales[0] > 1 == long.text_scales[0] and short.pictures[2] >= long.pictures[2]


@pytest.mark.parametrize(
    "sizes, frame, stacked, least",
    [
        ([(640, 448)], (1920, 1080), False, 0.28),
        ([(500, 900)], (1920, 1080), False, 0.13),
        ([(2000, 100)], (1920, 1080), True, 0.07),
        ([(1000, 800), (300, 900)], (1920, 1080), False, 0.28),
        ([(640, 448), (640, 448)], (1080, 1920), True, 0.28),
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
