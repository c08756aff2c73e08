import json

import numpy as np
import pytest
from PIL import Image

import visualizeHeatMap as vhm

GOOD = {"id": 1, "image": ["a.png"], "problem": "Which way?", "solution": "s", "answer": "a"}


@pytest.fixture
def dataset(tmp_path):
    """A function that writes a dataset beside two pictures, and returns the arguments to load it."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20), "red").save(tmp_path / "images" / "a.png")
    Image.new("L", (20, 40), 7).save(tmp_path / "images" / "b.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG nothing")

    def write(samples):
        path = tmp_path / "data.json"
        path.write_text(samples if isinstance(samples, str) else json.dumps(samples, ensure_ascii=False), "utf-8")
        return path, tmp_path / "images"

    return write


@pytest.mark.parametrize("paths, count", [("a.png", 1), (["a.png"], 1), (["a.png", "b.png"], 2)])
def test_a_picture_is_given_as_a_text_or_a_list(dataset, paths, count):
    sample, images = vhm.load_sample(*dataset([{**GOOD, "image": paths}]))
    assert sample["problem"] == "Which way?"
    assert [image.mode for image in images] == ["RGB"] * count
    assert images[0].size == (30, 20)


def test_the_sample_asked_for_is_returned_as_it_stands(dataset):
    samples = [GOOD, {**GOOD, "problem": "中文问题", "extra": [1, 2]}]
    assert vhm.load_sample(*dataset(samples), 1)[0] == samples[1]


def test_only_image_and_problem_are_required(dataset):
    assert vhm.load_sample(*dataset([{"image": "a.png", "problem": "p"}]))[0]["problem"] == "p"


@pytest.mark.parametrize(
    "samples, message",
    [
        ("{not json", "is not JSON"),
        ({"a": 1}, "holds a dict; expected a JSON list"),
        ([], "is an empty list"),
        (["text"], "is a str; expected an object"),
        ([{"problem": "p"}], "has no key 'image'; it has"),
        ([{"image": "a.png"}], "has no key 'problem'"),
        ([{**GOOD, "problem": "  "}], "expected a text that is not empty"),
        ([{**GOOD, "problem": None}], "the problem of sample 0"),
        ([{**GOOD, "image": []}], "expected a path or a list of paths"),
        ([{**GOOD, "image": [3]}], "expected a path or a list of paths"),
        ([{**GOOD, "image": ["none.png"]}], "names a picture that does not exist"),
        ([{**GOOD, "image": ["broken.png"]}], "has a picture that cannot be read"),
        ([{**GOOD, "image": ["."]}], "names a folder where a picture is expected"),
        ([{**GOOD, "image": ["a.png"] * 3}], "has 3 pictures, more than max_image_num=2; raise it"),
    ],
)
def test_a_bad_dataset_is_named_in_one_line(dataset, samples, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        vhm.load_sample(*dataset(samples))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("index", [-1, 2, 1000, True, 0.5])
def test_an_index_out_of_range_names_the_range(dataset, index):
    with pytest.raises(ValueError, match=r"out of range: .* has 2 samples \(0\.\.1\)"):
        vhm.load_sample(*dataset([GOOD, GOOD]), index)


def test_missing_files_are_named(dataset, tmp_path):
    path, folder = dataset([GOOD])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        vhm.load_sample(tmp_path / "nowhere.json", folder)
    with pytest.raises(FileNotFoundError, match="is no directory"):
        vhm.load_sample(path, tmp_path / "nowhere")


def test_more_pictures_can_be_allowed(dataset):
    assert len(vhm.load_sample(*dataset([{**GOOD, "image": ["a.png"] * 3}]), max_image_num=3)[1]) == 3


def test_exif_rotation_is_applied_once(tmp_path):
    image = Image.new("RGB", (40, 20), "blue")
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        upright = vhm.upright_rgb(opened)
    assert upright.size == (20, 40) and vhm.upright_rgb(upright).size == (20, 40)


def test_transparency_is_laid_on_white_and_sixteen_bits_are_scaled():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert vhm.upright_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert abs(vhm.upright_rgb(deep).getpixel((0, 0))[0] - 127) <= 1
