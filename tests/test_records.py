import base64
import io
import json
import re

import numpy as np
import pytest
from conftest import SMALL, make_record, picture
from PIL import Image

import visualizeHeatMap as vhm


def test_a_saved_record_is_loaded_as_it_was(tmp_path):
    record = make_record(["Based", " on", " 路线"], [" red", "\n", "", "é"], grids=[(3, 4), (2, 2)])
    record.save(tmp_path / "run.npz")
    loaded = vhm.AttentionRecord.load(tmp_path / "run.npz")
    assert loaded.tokens == record.tokens and loaded.layers == record.layers
    assert loaded.prompt_length == record.prompt_length and loaded.special_ids == record.special_ids
    assert loaded.head == "mean" and loaded.num_layers == 8
    np.testing.assert_array_equal(loaded.token_ids, record.token_ids)
    np.testing.assert_array_equal(loaded.weights, record.weights)
    for old, new in zip(record.images, loaded.images):
        np.testing.assert_array_equal(new.positions, old.positions)
        np.testing.assert_array_equal(new.boxes, old.boxes)


def test_a_record_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    record = make_record(["a"], ["b"])
    record.save(tmp_path / "run.npz")
    before = (tmp_path / "run.npz").read_bytes()

    def fail(file, array, **_):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="No space left"):
        record.save(tmp_path / "run.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    assert (tmp_path / "run.npz").read_bytes() == before


def test_a_pickle_is_never_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", facts=np.array([{"format": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"evil\.npz is no attention record"):
        vhm.AttentionRecord.load(tmp_path / "evil.npz")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_a_cut_record_is_one_clear_line(tmp_path, keep):
    make_record(["a"], ["b"] * 50).save(tmp_path / "run.npz")
    data = (tmp_path / "run.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ValueError, match=r"cut\.npz is no attention record"):
        vhm.AttentionRecord.load(tmp_path / "cut.npz")


def test_a_damaged_record_is_one_clear_line(tmp_path):
    make_record(["a"], ["b"] * 50).save(tmp_path / "run.npz")
    data = bytearray((tmp_path / "run.npz").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "run.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"run\.npz is no attention record"):
        vhm.AttentionRecord.load(tmp_path / "run.npz")


def test_another_format_is_refused_by_its_number(tmp_path):
    facts = np.frombuffer(json.dumps({"format": 99}).encode(), np.uint8)
    np.savez(tmp_path / "new.npz", facts=facts)
    with pytest.raises(ValueError, match="format is 99"):
        vhm.AttentionRecord.load(tmp_path / "new.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": np.zeros((2, 2, 3), np.float32)}, "weights has shape"),
        ({"token_ids": np.arange(3)}, "token_ids has 3 entries"),
        ({"prompt_length": 0}, "prompt_length is 0"),
        ({"pictures": (b"", b"")}, "pictures has 2 entries; expected 1"),
        ({"images": (vhm.ImageTokens(np.array([99]), np.zeros((1, 4), np.float32)),)}, "outside the"),
    ],
)
def test_a_record_whose_parts_do_not_fit_is_refused(change, message):
    record = make_record(["a"], ["b", "c"])
    with pytest.raises(ValueError, match=message):
        vhm.AttentionRecord(**{**vars(record), **change})


def test_boxes_and_positions_go_together():
    with pytest.raises(ValueError, match=r"expected \(2, 4\)"):
        vhm.ImageTokens(np.arange(2), np.zeros((3, 4), np.float32))


def test_a_layer_is_asked_for_by_its_own_number():
    record = make_record(["a"], ["b", "c"], layers=(3, 6))
    np.testing.assert_array_equal(record.layer_weights(6), record.weights[:, 1])
    np.testing.assert_array_equal(record.layer_weights(-2), record.weights[:, 1])
    with pytest.raises(ValueError, match=r"layer 1 was not recorded; the record holds \[3, 6\]"):
        record.layer_weights(1)


def test_the_response_is_the_text_after_the_prompt():
    record = make_record(["a"], ["b", " c"])
    assert record.response == "b c" and record.response_length == 2


def illustrated(record, size=(400, 300)):
    """The record with a picture in it."""
    return vhm.AttentionRecord(**{**vars(record), "pictures": (vhm.picture_file(picture(size, "khaki")),)})


def test_a_record_keeps_its_pictures(tmp_path):
    illustrated(make_record(["a"], ["b"])).save(tmp_path / "run.npz")
    (image,) = vhm.AttentionRecord.load(tmp_path / "run.npz").open_pictures()
    assert image.mode == "RGB" and image.size == (400, 300)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture((400, 300), "khaki")))


def test_a_picture_that_would_be_too_large_as_png_is_kept_as_jpeg_of_the_same_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 900, 3), np.uint8))
    data = vhm.picture_file(noise)
    assert data[:2] == b"\xff\xd8" and Image.open(io.BytesIO(data)).size == (900, 700)


@pytest.mark.parametrize("data", [b"no picture", b"\x89PNG\r\n\x1a\nbroken", b"GIF89a"])
def test_a_kept_picture_that_cannot_be_read_is_refused_when_loaded(tmp_path, data):
    record = vhm.AttentionRecord(**{**vars(make_record(["a"], ["b"])), "pictures": (data,)})
    record.save(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="has a picture that cannot be read"):
        vhm.AttentionRecord.load(tmp_path / "run.npz")


def test_a_record_shows_the_frame_of_a_step_and_itself():
    record = illustrated(make_record(["Based"], [" a", " b", " c"]))
    frames = list(vhm.render_frames(record, record.open_pictures(), 1, frame_size=SMALL))
    np.testing.assert_array_equal(np.asarray(record.show(1, frame_size=SMALL)), frames[1])
    np.testing.assert_array_equal(np.asarray(record.show(-1, layer=1, frame_size=SMALL)), frames[2])
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', record._repr_html_())
    assert Image.open(io.BytesIO(base64.b64decode(data))).width == vhm.DEFAULT_FRAME_SIZE[0]
    with pytest.raises(ValueError, match=r"step 3 has no frame; there are frames of steps 0\.\.2"):
        record.show(3)


def test_a_record_without_pictures_says_what_to_give_and_shows_its_text():
    record = make_record(["Based"], [" a<b"])
    assert record._repr_html_() == "<pre> a&lt;b</pre>"
    with pytest.raises(ValueError, match="keeps no pictures; give benchmark_json and image_dir"):
        record.show(0)
