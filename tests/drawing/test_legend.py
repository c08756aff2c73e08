"""The legend: whose attention, colour bars, shares, time line, notes."""

from dataclasses import replace

import numpy as np
import pytest
from drawn import Shapes, hot_record, is_current, renderer_of, sink_record
from records import SMALL, make_record

from attention_heatmap.drawing.legend import (
    NOTES,
    SHARE_COLOURS,
    amount_text,
    key_entries,
    map_notes,
    plane_title,
)
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.maps import shown_rows
from attention_heatmap.record import Check

CHECK = Check(1, "", "answer", 0.7, (0.1, 0.2))


@pytest.mark.parametrize(
    "change, title",
    [
        ({}, "attention in layer 1 (the last is 7), mean of the heads"),
        ({"num_layers": 2}, "attention in layer 1 (the last), mean of the heads"),
        ({"layers": (1, 0)}, "attention in layer 0 (the first), mean of the heads"),
        ({"num_layers": None}, "attention in layer 1, mean of the heads"),
        ({"heads": ("mean", (0, 3))}, "attention in layer 1 (the last is 7), mean of heads 0, 3"),
        ({"heads": ("max", 5), "auto_head": True}, "attention in layer 1 (the last is 7), head 5 (chosen by auto)"),
        ({"heads": ("mean", "max"), "auto_layer": True, "num_layers": None},
         "attention in layer 1 (chosen by auto), maximum of the heads"),
    ],
)  # fmt: skip
def test_the_title_says_whose_attention_it_is_and_what_was_chosen(change, title):
    assert plane_title(replace(make_record(["a"], ["b"]), **change), 1) == title


def test_a_heading_of_many_heads_fits_and_the_heads_stand_below():
    heads = tuple(range(0, 28, 2))
    record = replace(make_record(["Based"], [" a"]), heads=("mean", heads))
    assert plane_title(record, 1).endswith("mean of 14 heads")
    notes = map_notes(record, 1, DrawingOptions(), shown_rows(record, 1, "off", False, 0))
    assert notes == ["heads: 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26"]
    few = replace(record, heads=("mean", heads[:4]))
    assert (renderer_of(few, size=(640, 1138)).draw(0)[:, -2:] == 255).all()  # nothing runs off


def test_notes_say_what_is_not_plain_and_what_the_check_said():
    record = replace(sink_record(), checks=(CHECK,))

    def notes(plane=1, **options):
        options = DrawingOptions(**options)
        return map_notes(record, plane, options, shown_rows(record, plane, *options.map))

    assert notes() == [f"check: {CHECK}"] and notes(0) == []
    first, second = notes(view="clear")
    assert first.startswith("map: cells minus their median over the steps, sinks left out (1 hatched, on average 8")
    assert second == f"check of the map as the model computed it: {CHECK}"
    assert notes(smooth=1.5)[0] == "map: smoothed over 1.5 cells"


def test_without_sinks_the_note_says_none_or_too_short():
    for steps, said in ((20, "(none found)"), (5, "(too short an answer to tell)")):
        record = hot_record([t % 12 for t in range(steps)])
        notes = map_notes(record, 1, DrawingOptions(sinks=True), shown_rows(record, 1, "off", True, 0))
        assert notes == [f"map: sinks left out {said}"]


@pytest.mark.parametrize("size", [SMALL, (1280, 720), (1080, 1350)])
def test_notes_stand_below_the_time_line_within_the_frame(size):
    plain, noted = (
        renderer_of(record, size=size) for record in (sink_record(), replace(sink_record(), checks=(CHECK,)))
    )
    lines = (plain.legend.top - noted.legend.top) / noted.px(NOTES)
    assert lines == len(noted.notes) >= 1
    bottom = noted.legend.timeline_y + noted.legend.timeline.height + noted.px(5)
    written = (noted.draw(0)[bottom:] < 128).all(axis=2)
    assert (
        written.any(axis=1).sum() >= lines * 3 and not written[-2:].any() and not written[:, noted.sheet.right :].any()
    )


@pytest.mark.parametrize(
    "weight, relative, text",
    [
        (0.1234, False, "12.34%"), (12.34, True, "12.3 times"), (0.5, True, "0.5 times"), (5.1e-7, False, "0.00005%"),
        (0, False, "0.00%"),
    ],
)  # fmt: skip
def test_a_weight_is_written_in_the_unit_of_its_map(weight, relative, text):
    assert amount_text(weight, relative) == text


def test_shares_name_every_part_and_sum_to_one():
    record = make_record(["Based"], [" a", " b"], grids=[(3, 4), (2, 2)])
    shares = key_entries(record, 1)
    assert [share.name for share in shares] == ["image 1", "image 2", "problem", "response", "first token (sink)"]
    np.testing.assert_allclose(sum(share.weights for share in shares), 1, rtol=1e-5)
    assert key_entries(make_record(["Based"], [" a"]), 1)[0].name == "image"


def test_the_shares_of_many_pictures_differ_in_colour_and_the_key_keeps_those_of_the_text():
    record = make_record(["Based"], [" a"], grids=[(2, 2)] * 8)
    assert len({share.colour for share in key_entries(record, 1)}) == 11
    renderer = renderer_of(record)
    named = renderer.legend.names
    assert named[0][0].name == "image 1" and (None in [share for share, _ in named])
    assert [share.name for share, _ in named[-3:]] == ["problem", "response", "first token (sink)"]
    places = [x for _, x in named]
    assert places == sorted(places) and places[-1] < renderer.sheet.right


@pytest.mark.parametrize("size", [SMALL, (1280, 720)])
def test_the_bar_of_shares_is_parted_by_them(size):
    renderer = renderer_of(make_record(["Based"], [" a", " b"], grids=[(3, 4), (2, 2)]), size=size)
    legend = renderer.legend
    row = renderer.draw(1)[legend.share_top + legend.share_high // 2, renderer.sheet.left : renderer.sheet.right]
    for share in legend.shares:
        part = (row == share.colour).all(axis=1).mean()
        assert part == pytest.approx(share.weights[1], abs=0.01)


@pytest.mark.parametrize("size", [SMALL, (1280, 720)])
def test_the_time_line_has_its_past_in_full_its_future_pale_and_the_place_in_blue(size):
    record = make_record(["Based"], ["w"] * 20)
    record.weights[...] = record.weights[:1]  # as much at every step
    renderer = renderer_of(record, size=size)
    legend, frame = renderer.legend, renderer.draw(9)
    y = legend.timeline_y + legend.curve - 3
    middle = [renderer.sheet.left + (legend.columns[n] + legend.columns[n + 1]) // 2 for n in range(20)]
    assert (frame[y, middle[:10]] == SHARE_COLOURS[0]).all()
    assert (frame[y, middle[10:]] > np.array(SHARE_COLOURS[0]) + 50).all()
    place = np.nonzero(is_current(frame[legend.timeline_y - 1 :]))[1]
    assert place.min() < middle[9] < place.max() and place.max() - place.min() < 2 * (middle[1] - middle[0])


def test_the_time_line_is_as_high_as_the_share_of_each_step():
    record = hot_record([0] * 4)
    for step, part in enumerate((1, 0.5, 0.25, 0)):
        row = np.zeros(record.weights.shape[2], np.float32)
        row[1], row[0] = part, 1 - part
        record.weights[step] = row
    legend = renderer_of(record, size=(1280, 720)).legend
    band = (np.asarray(legend.timeline)[: legend.curve] == SHARE_COLOURS[0]).all(axis=2)
    highs = [band[:, (legend.columns[n] + legend.columns[n + 1]) // 2].sum() for n in range(4)]
    assert highs == [legend.curve, round(legend.curve / 2), round(legend.curve / 4), 0]


@pytest.mark.parametrize(
    "options", [{}, {"baseline": "relative"}, {"baseline": "median"}, {"scale": "video"}, {"text_style": "glyph"}]
)
@pytest.mark.parametrize("size", [SMALL, (640, 800), (1080, 1920)])
def test_the_colour_bars_and_their_numbers_stand_side_by_side(size, options):
    record = hot_record([0, 3, 4])
    if options.get("baseline") == "relative":
        record = replace(record, neutral=np.full((2, 12), 1e-3, np.float32))
    renderer = renderer_of(record, size=size, **options)
    place = renderer.legend
    bars = renderer.draw(1)[place.top : renderer.legend.share_top - 1]
    assert (bars[:, place.second_bar - 6 : place.second_bar] == 255).all() and (
        bars[:, renderer.sheet.right :] == 255
    ).all()
    assert (bars[:, : place.second_bar - 6] != 255).any() and (bars[:, place.second_bar :] != 255).any()


def test_where_nothing_is_looked_at_the_scale_of_the_cells_says_nothing():
    record = make_record(["Based"], ["w", "v"])
    record.weights[:, :, record.image_positions] = 0
    texts = [
        s["text"]
        for kind, s in renderer_of(record, size=(1920, 1080)).draw_shapes(1, Shapes()).shapes
        if kind == "text"
    ]
    assert any(text.startswith("nothing") for text in texts) and any("0.0% on the picture" in text for text in texts)
