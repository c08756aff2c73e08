"""What changed between two records, as one picture."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from drawn import with_cells
from PIL import Image
from records import make_record, picture

from attention_heatmap.compare import compare
from attention_heatmap.drawing import summary as room
from attention_heatmap.drawing.fonts import FontSet
from attention_heatmap.drawing.image_panel import ImageLayout, put_heat
from attention_heatmap.drawing.layout import Sheet
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.pen import Pen
from attention_heatmap.drawing.summary import draw_changes

WORDS = ["<think>", " lamp", "</think>", "<answer>", " left", " of", " it"]
LONG = "Qwen2-VL-7B-Instruct" + "-trajectory" * 5
OPTIONS = DrawingOptions(frame_size=(1280, 720), picture="colour")


def pair(hot, others=3):
    """Two records that look at the same cell, but at step 1, where the second looks at another."""
    record = make_record(["Where"], WORDS)
    cells = np.zeros((len(WORDS), 12), np.float32)
    cells[:, others] = 0.5
    changed = cells.copy()
    changed[1] = np.roll(cells[1], hot - others)
    return with_cells(record, cells), with_cells(record, changed)


@pytest.fixture
def written(monkeypatch):
    """[(left, base line, text, right)] of all that is written, as it is drawn."""
    said, text = [], Pen.text

    def noted(pen, at, words, *more):
        end = text(pen, at, words, *more)
        if pen.canvas.mode == "RGB":  # not the glyphs of a text, which are laid out on a grey image of their own
            said.append((at[0], at[1], words, end))
        return end

    monkeypatch.setattr(Pen, "text", noted)
    return said


def test_the_tokens_that_changed_most_come_first_with_their_distance(written):
    image = draw_changes(compare(*pair(8)), [picture()], ("base", "tuned"), OPTIONS)
    words = [text for _, _, text, _ in written if text]
    tokens = [text for text in words if text.startswith("token ")]
    assert tokens == ["token 2 “lamp”, distance 1.00"]
    assert words[0] == "base and tuned: layer 1, mean of the heads" and image.width == 1280
    assert words[1].endswith("from 0 to 1.00")
    assert words[2] == "difference: green where tuned looks more, purple where base does"
    assert (np.asarray(image)[:, -10:] == 255).all()


@pytest.mark.parametrize("size", [(1920, 1080), (640, 360)])
@pytest.mark.parametrize("names", [("base", "early_model"), (f"{LONG}-base", f"{LONG}-tuned")])
def test_no_words_run_into_others_or_off_the_picture(written, names, size):
    draw_changes(compare(*pair(8)), [picture()], names, DrawingOptions(frame_size=size))
    assert all(right <= size[0] for _, _, _, right in written)
    for base in {base for _, base, _, _ in written}:
        line = sorted((left, right) for left, at, _, right in written if at == base)
        assert all(right <= left for (_, right), (left, _) in pairwise(line))
    heads = [text for _, _, text, _ in written if text.endswith((names[0][-1], names[1][-1]))]
    assert len(set(heads)) >= 2  # the two are told apart


def test_the_difference_is_purple_where_the_first_looked_more_and_green_where_the_second_did():
    comparison = compare(*pair(8))
    layout = ImageLayout(comparison.common_record(0), [picture()], 400, 300, FontSet(16))
    maps = room._maps(comparison, 1, ("base", "tuned"), Sheet(OPTIONS))
    centres = [((t + b) // 2, (x + r) // 2) for x, t, r, b in layout.edges]
    pixels = []
    for *_, colours in maps:
        canvas = Image.new("RGB", layout.picture.shape[1::-1])
        put_heat(Pen(canvas), (0, 0), layout, *colours)
        pixels.append([np.asarray(canvas, int)[at] for at in centres])
    for map_number, cell in ((0, 3), (1, 8)):
        green = [colour[1] - colour[0] for colour in pixels[map_number]]
        assert int(np.argmax(green)) == cell and green[cell] > 60
    (red, green, blue), (red2, green2, blue2) = pixels[2][3], pixels[2][8]
    assert min(red, blue) > green + 40 and green2 > max(red2, blue2) + 40
    assert [name for name, *_ in maps] == ["base", "tuned", "difference"]


def test_two_records_that_are_the_same_have_no_change_and_are_drawn():
    record = make_record(["Where"], WORDS)
    image = draw_changes(compare(record, record), [picture()], ("a", "b"), OPTIONS)
    assert isinstance(image, Image.Image) and 150 < image.height < 300, "no map"


@pytest.mark.parametrize("steps, rows", [(1, 1), (3, 2), (7, 3)])
def test_there_is_a_row_for_every_two_tokens(steps, rows):
    heights = []
    for count in (1, steps):
        record, other = (make_record(["Where"], ["w"] * count, seed=seed) for seed in (1, 2))
        heights.append(draw_changes(compare(record, other), [picture()], ("a", "b"), OPTIONS).height)
    assert (heights[1] > heights[0]) == (rows > 1)


def test_records_of_two_pictures_show_both():
    record = make_record(["Where"], WORDS, grids=[(3, 4), (2, 2)])
    record = replace(record, special_ids=())
    image = draw_changes(compare(record, record), [picture(), picture(colour="khaki")], ("a", "b"), OPTIONS)
    assert (np.asarray(image) != 255).any()
