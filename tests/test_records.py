import json

import numpy as np
import pytest
from conftest import make_record

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

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="No space left"):
        record.save(tmp_path / "run.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    assert (tmp_path / "run.npz").read_bytes() == before


def test_a_pickle_is_never_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", facts=np.array([{"format": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"evil\.npz is no attention record"):
        vhm.AttentionRecord.load(tmp_path / "evil.npz")


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
