"""A dataset, one of its samples, its pictures: which are taken, and what is refused in one line."""

from __future__ import annotations

import json
import os
import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from attention_heatmap.dataset import (
    Dataset,
    load_sample,
    open_pictures,
    read_dataset,
    select_from_dataset,
    select_samples,
    shrink,
    upright_rgb,
)

GOOD = {"id": 1, "image": ["a.png"], "problem": "Which way?", "solution": "s", "answer": "a"}


@pytest.fixture
def dataset(tmp_path):
    """A function that writes a dataset beside two pictures, and returns the arguments to load it."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20), "red").save(tmp_path / "images" / "a.png")
    Image.new("L", (20, 40), 7).save(tmp_path / "images" / "b.png")

    def write(samples, name="data.json"):
        path = tmp_path / name
        path.write_text(samples if isinstance(samples, str) else json.dumps(samples, ensure_ascii=False), "utf-8")
        return path, tmp_path / "images"

    return write


# --- a sample


@pytest.mark.parametrize("paths, count", [("a.png", 1), (["a.png"], 1), (["a.png", "b.png"], 2)])
def test_a_picture_is_given_as_a_text_or_a_list(dataset, paths, count):
    sample, images = load_sample(*dataset([{**GOOD, "image": paths}]))
    assert sample["problem"] == "Which way?"
    assert [image.mode for image in images] == ["RGB"] * count
    assert images[0].size == (30, 20)


def test_the_sample_asked_for_is_returned_as_it_stands(dataset):
    samples = [GOOD, {**GOOD, "problem": "中文问题", "extra": [1, 2]}]
    assert load_sample(*dataset(samples), 1)[0] == samples[1]


def test_only_image_and_problem_are_required(dataset):
    assert load_sample(*dataset([{"image": "a.png", "problem": "p"}]))[0]["problem"] == "p"


@pytest.mark.parametrize("index", [-1, 2, 1000, True, 0.5, None, 10**400])
def test_an_index_out_of_range_names_the_range(dataset, index):
    with pytest.raises(ValueError, match=r"out of range: .* has 2 samples \(0\.\.1\)") as error:
        load_sample(*dataset([GOOD, GOOD]), index)
    assert len(str(error.value)) < 1000


def test_more_pictures_can_be_allowed(dataset):
    assert len(load_sample(*dataset([{**GOOD, "image": ["a.png"] * 3}]), max_image_num=3)[1]) == 3


def test_paths_outside_can_be_allowed(dataset, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.png")
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    for name in ("link.png", str(tmp_path / "outside.png"), "../outside.png"):
        where = dataset([{**GOOD, "image": name}])
        with pytest.raises(ValueError, match="outside image_dir"):
            load_sample(*where)
        assert load_sample(*where, allow_absolute_paths=True)[1][0].size == (9, 9)


def test_a_folder_of_pictures_may_itself_be_a_link(dataset, tmp_path):
    path, images = dataset([GOOD])
    (tmp_path / "link").symlink_to(images)
    assert len(load_sample(path, tmp_path / "link")[1]) == 1


# --- forms of a dataset


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n\n"])
def test_a_sample_a_line_is_a_dataset(dataset, name, end):
    samples = [GOOD, {**GOOD, "problem": "two\nlines\u2028and \x85 more"}]
    text = end.join(json.dumps(sample, ensure_ascii=False) for sample in samples) + end
    assert read_dataset(dataset(text, name)[0]) == samples


def test_one_line_is_a_dataset_where_its_name_says_so(dataset):
    assert read_dataset(dataset(json.dumps(GOOD), "data.jsonl")[0]) == [GOOD]
    assert read_dataset(dataset("\n\n" + json.dumps(GOOD) + "\n", "data.NDJSON")[0]) == [GOOD]
    with pytest.raises(ValueError, match="holds a dict; expected a JSON list"):
        read_dataset(dataset(json.dumps(GOOD))[0])


@pytest.mark.parametrize("bad, number", [("{not json", 2), ("[" * 100_000, 2), ("NaN x", 2)])
def test_a_broken_line_is_named(dataset, bad, number):
    text = "\n".join((json.dumps(GOOD), bad, json.dumps(GOOD)))
    with pytest.raises(ValueError, match=rf"data\.jsonl is not JSON: .*: line {number}\b"):
        read_dataset(dataset(text, "data.jsonl")[0])


def test_the_list_itself_is_a_dataset_and_is_not_copied_twice(dataset):
    _, images = dataset([])
    samples, numbers = select_from_dataset([GOOD, GOOD], images, "all")
    assert numbers == [0, 1] and samples == [GOOD, GOOD] and str(samples) == "the dataset"
    assert select_from_dataset(samples, images, 0)[0] is samples
    with pytest.raises(ValueError, match=r"sample_idx 7 is out of range: the dataset has 1 samples"):
        load_sample([GOOD], images, 7)


def test_a_dataset_as_a_text_is_its_name_however_long_it_is(dataset):
    path, _ = dataset([GOOD] * 1000)
    assert str(read_dataset(path)) == f"{read_dataset(path)}" == str(path)
    assert str(Dataset([GOOD] * 1000, "x")) == "x"


def test_a_byte_order_mark_is_no_part_of_a_dataset(dataset):
    assert read_dataset(dataset("\ufeff" + json.dumps([GOOD]))[0]) == [GOOD]


def test_a_dataset_may_come_by_a_pipe(tmp_path):
    read, write = os.pipe()
    threading.Timer(0.2, lambda: (os.write(write, json.dumps([GOOD]).encode()), os.close(write))).start()
    assert read_dataset(f"/dev/fd/{read}") == [GOOD]
    os.close(read)


def test_a_pipe_that_nobody_writes_to_is_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is empty; expected a JSON list"):
        read_dataset(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/tty", "ring", "x" * 10_000, "nul\0", "file/below"])
def test_what_is_no_file_is_told_at_once(tmp_path, name):
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"benchmark_json .* cannot be read: .*; give a JSON list of samples"):
        read_dataset(name)


def test_missing_files_are_named(dataset, tmp_path):
    path, folder = dataset([GOOD])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        load_sample(tmp_path / "nowhere.json", folder)
    with pytest.raises(FileNotFoundError, match="is no directory"):
        load_sample(path, tmp_path / "nowhere")


# --- which samples


@pytest.mark.parametrize(
    "selection, numbers",
    [
        (3, [3]), ("3", [3]), ("0-3", [0, 1, 2, 3]), ("0,5,9", [0, 5, 9]), ("all", list(range(10))),
        ("9,0-2,1", [9, 0, 1, 2]), (" 1 - 2 , 4 ", [1, 2, 4]), ([4, 1, 4], [4, 1]), (np.array([2, 3]), [2, 3]),
        (np.int64(4), [4]), (range(3), [0, 1, 2]), ((n for n in (1, 2)), [1, 2]),
    ],
)  # fmt: skip
def test_a_selection_names_each_sample_once_in_its_order(selection, numbers):
    assert select_samples(selection, 10, "d.json") == numbers


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted), min_size=1))
def test_a_selection_that_is_written_down_is_read_as_it_was(spans):
    text = ",".join(f"{a}-{b}" if a < b else str(a) for a, b in spans)
    expected = list(dict.fromkeys(n for a, b in spans for n in range(a, b + 1)))
    assert select_samples(text, 51, "d.json") == expected
    assert select_samples(",".join(map(str, expected)), 51, "d.json") == expected


@given(st.text(alphabet="0123456789-, alx\u0663\n", max_size=12), st.integers(1, 40))
def test_any_text_is_a_selection_within_the_range_or_one_clear_error(text, count):
    try:
        numbers = select_samples(text, count, "d.json")
    except ValueError as error:
        assert str(error).startswith("sample_idx ") and "\n" not in str(error)
    else:
        assert numbers and len(set(numbers)) == len(numbers) and set(numbers) <= set(range(count))


def test_no_sample_is_no_selection():
    with pytest.raises(ValueError, match="names no sample"):
        select_samples([], 3, "d.json")


@pytest.mark.parametrize("text", ["", ",", "1,", "-", "3-", "-3", "5-3", "1--2", "all,3", "0x2", "1e3", "1.0", "٣"])
def test_a_form_that_cannot_be_read_says_what_can(text):
    with pytest.raises(ValueError, match="cannot be read; expected a number, a range such as 0-99"):
        select_samples(text, 10, "d.json")


@pytest.mark.parametrize(
    "selection, named",
    [("8-12", "8-12"), ("0,10", "10"), ([-1], "-1"), ("0-999999999999999", "0-9"), ([2.0], "2.0"), (["1"], "1")],
)
def test_a_selection_out_of_range_is_named_and_never_spelled_out(selection, named):
    with pytest.raises(ValueError, match=rf"sample_idx {named}.* is out of range: d\.json has 10 samples \(0\.\.9\)"):
        select_samples(selection, 10, "d.json")


# --- pictures


def test_exif_rotation_is_applied_once(tmp_path):
    image = Image.new("RGB", (40, 20), "blue")
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        upright = upright_rgb(opened)
    assert upright.size == (20, 40) and upright_rgb(upright).size == (20, 40)


def test_transparency_is_laid_on_white_and_sixteen_bits_are_scaled():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert upright_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert abs(upright_rgb(deep).getpixel((0, 0))[0] - 127) <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -9999, 3.4e38])
def test_pixels_that_are_no_numbers_spoil_no_others_and_are_counted(tmp_path, caplog, bad):
    values = np.linspace(0, 200, 20, dtype=np.float32).reshape(4, 5)
    plain = np.asarray(upright_rgb(Image.fromarray(values)))
    values[1, 2] = bad
    Image.fromarray(values).save(tmp_path / "float.tiff")
    (image,) = open_pictures(tmp_path / "float.tiff")
    assert image.getpixel((2, 1)) == (0, 0, 0)
    others = np.arange(20).reshape(4, 5) != 7
    np.testing.assert_array_equal(np.asarray(image)[others], plain[others])
    assert "1 of 20 pixels of a picture are below 0 or no numbers; they become black" in caplog.text


@pytest.mark.parametrize("bad", [np.nan, -1])
def test_a_picture_without_any_number_is_refused(tmp_path, bad):
    Image.fromarray(np.full((4, 5), bad, np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(OSError, match=r"float\.tiff \(no pixel of the picture is a number from 0 up\)"):
        open_pictures([tmp_path / "float.tiff"])


def test_pictures_are_given_as_paths_or_as_images(tmp_path):
    image = Image.new("RGB", (3, 2), "red")
    image.save(tmp_path / "a.png")
    for one in (tmp_path / "a.png", str(tmp_path / "a.png"), "a.png", image, [image], ["a.png"], (tmp_path / "a.png",)):
        assert [opened.size for opened in open_pictures(one)] == [(3, 2)]
    for other in ([3], [None], [b"a.png"], [np.zeros((2, 3, 3), np.uint8)]):
        with pytest.raises(ValueError, match=r"a picture is a \w+; expected a path or a PIL image"):
            open_pictures(other)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "MSP", "DDS"])
def test_a_picture_that_is_broken_anywhere_is_read_or_refused_in_one_line(tmp_path, kind):
    mode, rng = "1" if kind == "MSP" else "RGB", random.Random(0)
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    pixels.convert(mode).save(tmp_path / "good", kind)
    good = (tmp_path / "good").read_bytes()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(len(data), rng.choice([60, len(data)])))] = rng.randrange(256)
        (tmp_path / "bad").write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            open_pictures(tmp_path / "bad")
        except (OSError, ValueError) as error:
            assert "\n" not in str(error)


def test_an_error_of_pillow_that_nobody_foresaw_is_one_line(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise AttributeError("no\nsuch thing")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(OSError, match=r"a\.png \(no such thing\)"):
        open_pictures("a.png")


@pytest.mark.parametrize("size, most, expected", [
    ((100, 50), None, (100, 50)), ((100, 50), 5000, (100, 50)), ((100, 50), 1250, (50, 25)), ((1000, 1), 1, (31, 1)),
])  # fmt: skip
def test_a_picture_shrinks_to_so_many_pixels_and_keeps_a_side(size, most, expected):
    assert shrink(Image.new("RGB", size), most).size == expected
