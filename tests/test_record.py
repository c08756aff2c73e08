"""The record: saved and loaded as it was, whole or not at all; what fits no recording is refused, in bounded room."""

from __future__ import annotations

import io
import json
import math
import resource
import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records import SMALL, make_record, picture
from safetensors import safe_open
from safetensors.numpy import save_file

from attention_heatmap import record as room
from attention_heatmap import record_file
from attention_heatmap.record import AttentionRecord, Check, ImageTokens, check_pictures, picture_file

NAME = "run.safetensors"


def illustrated(record, size=(400, 300), colour="khaki"):
    """The record with a picture in it."""
    return replace(record, pictures=(picture_file(picture(size, colour)),) * len(record.images))


def rewritten(path, change=None, header=None):
    """A saved record with its facts and arrays changed: change(facts, arrays)."""
    with safe_open(path, "numpy") as data:
        facts = json.loads(data.metadata()["facts"])
        arrays = {name: data.get_tensor(name) for name in data.keys()}  # noqa: SIM118
    if change:
        change(facts, arrays)
    save_file(arrays, path, header if header is not None else {"facts": json.dumps(facts)})


# --- saved and loaded


def test_a_saved_record_is_loaded_as_it_was(tmp_path):
    record = make_record(["Based", " on", " 路线"], [" red", "\n", "", "é"], grids=[(3, 4), (2, 2)])
    check = Check(1, "above the median", "answer", 0.5, (0.1, 0.25))
    neutral = np.float32([[0.01] * 16, [0.02] * 16])
    record = replace(record, heads=(3, (0, 2)), problem=(5, 7), auto_layer=True, neutral=neutral, checks=(check,))
    record.save(tmp_path / NAME)
    loaded = AttentionRecord.load(tmp_path / NAME)
    for field in record_file._PLAIN_FIELDS:
        assert getattr(loaded, field) == getattr(record, field), field
    assert loaded.checks == (check,)
    for name in ("token_ids", "weights", "neutral"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(record, name))
    for old, new in zip(record.images, loaded.images, strict=True):
        np.testing.assert_array_equal(new.positions, old.positions)
        np.testing.assert_array_equal(new.boxes, old.boxes)


def test_some_layers_of_a_record_can_be_loaded_alone(tmp_path):
    record = make_record(["a"], ["b", "c"], layers=(1, 3, 3, 6))
    check = Check(2, "", "answer", 0.5, (0.1,))
    record = replace(record, heads=("mean", 0, 1, "mean"), neutral=np.ones((4, 12), np.float32), checks=(check,))
    record.save(tmp_path / NAME)
    loaded = AttentionRecord.load(tmp_path / NAME, [3])
    assert loaded.layers == (3, 3) and loaded.heads == (0, 1) and loaded.neutral.shape == (2, 12)
    np.testing.assert_array_equal(loaded.weights, record.weights[:, 1:3])
    assert loaded.checks == (replace(check, plane=1),)
    with pytest.raises(ValueError, match=r"it holds none of the layers \[2\]"):
        AttentionRecord.load(tmp_path / NAME, [2])


def test_a_record_may_be_read_by_whoever_may_read_other_new_files(tmp_path):
    make_record(["a"], ["b"]).save(tmp_path / "record.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "record.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_record_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    record = make_record(["a"], ["b"])
    record.save(tmp_path / NAME)
    before = (tmp_path / NAME).read_bytes()

    def fail(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        record.save(tmp_path / NAME)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == before


def test_weights_that_lie_otherwise_in_memory_are_saved_as_they_are(tmp_path):
    record = make_record(["a"], ["b", "c"], layers=(0, 1, 2))
    turned = replace(record, weights=np.asfortranarray(record.weights), token_ids=np.repeat(record.token_ids, 2)[::2])
    turned.save(tmp_path / NAME)
    loaded = AttentionRecord.load(tmp_path / NAME)
    np.testing.assert_array_equal(loaded.weights, record.weights)
    np.testing.assert_array_equal(loaded.token_ids, record.token_ids)


def test_a_record_keeps_its_pictures(tmp_path):
    illustrated(make_record(["a"], ["b"])).save(tmp_path / NAME)
    (image,) = AttentionRecord.load(tmp_path / NAME).open_pictures()
    assert image.mode == "RGB" and image.size == (400, 300)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture((400, 300), "khaki")))


def test_a_picture_that_would_be_too_large_as_png_is_kept_as_jpeg_of_the_same_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 900, 3), np.uint8))
    data = picture_file(noise)
    assert data[:2] == b"\xff\xd8" and Image.open(io.BytesIO(data)).size == (900, 700)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text(max_size=5), min_size=1, max_size=4), st.lists(st.text(max_size=5), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=3), st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_any_record_that_can_be_made_is_saved_and_loaded_as_it_was(tmp_path_factory, problem, response, grids, n, half):
    path = tmp_path_factory.mktemp("any") / NAME
    record = make_record(problem, response, grids, layers=tuple(range(n)))
    record = replace(record, weights=record.weights.astype(np.float16)) if half else record
    record.save(path)
    loaded = AttentionRecord.load(path)
    assert loaded.tokens == record.tokens and loaded.weights.dtype == record.weights.dtype
    np.testing.assert_array_equal(loaded.weights, record.weights)


# --- files that are no records


@pytest.mark.parametrize("keep", [0, 4, 8, 10, 0.02, 0.5, 0.95, -1])
def test_a_cut_record_is_one_clear_line(tmp_path, keep):
    illustrated(make_record(["a"], ["b"] * 50)).save(tmp_path / NAME)
    data = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ValueError, match=rf"{NAME} is no attention record: [^\n]+; make one with save"):
        AttentionRecord.load(tmp_path / NAME)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_any_change_of_a_records_bytes_is_a_record_or_refused_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / NAME
    illustrated(make_record(["Based"], [" a"], grids=[(1, 2)]), (8, 8)).save(path)
    raw = bytearray(path.read_bytes())
    last = data.draw(st.sampled_from([12, len(raw) - 1]))  # the length of the header, or anything
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        record = AttentionRecord.load(path)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        repr(record)
        record.open_pictures()


def test_a_header_that_promises_more_than_is_there_is_refused_before_anything_is_read(tmp_path):
    tensor = {"weights": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
    header = json.dumps(tensor).encode()
    for length in (len(header), 2**62, 2**40):
        (tmp_path / NAME).write_bytes(struct.pack("<Q", length) + header)
        with pytest.raises(ValueError, match="is no attention record: "):
            AttentionRecord.load(tmp_path / NAME)


@pytest.mark.parametrize("facts", ["", "null", "3", "[1]", '"x"', "{", "[" * 100_000, '{"a":' * 5000, "9" * 5000])
def test_facts_that_are_none_are_one_clear_line(tmp_path, facts):
    make_record(["a"], ["b"]).save(tmp_path / NAME)
    rewritten(tmp_path / NAME, header={"facts": facts})
    with pytest.raises(ValueError, match="is no attention record: ") as error:
        AttentionRecord.load(tmp_path / NAME)
    assert len(str(error.value)) < 500


def test_a_safetensors_file_of_another_kind_is_told_by_its_format(tmp_path):
    save_file({"weights": np.zeros(3)}, tmp_path / NAME)
    with pytest.raises(ValueError, match="its format is None, this version reads 2"):
        AttentionRecord.load(tmp_path / NAME)


CHANGES = [  # what is changed in a good record's facts and arrays, expected after "is no attention record: "
    (lambda f, a: f.update(format=99), "its format is 99, this version reads 2"),
    (lambda f, a: f.update(format=[2]), r"its format is \[2\]"),
    (lambda f, a: f.pop("tokens"), "tokens"),
    (lambda f, a: f.pop("layers"), "layers"),
    (lambda f, a: f.pop("heads"), "heads"),
    (lambda f, a: f.pop("checks"), "checks"),
    (lambda f, a: f.pop("images"), "images"),
    (lambda f, a: f.update(tokens=[3] * len(f["tokens"])), "."),
    (lambda f, a: f.update(tokens="x" * len(f["tokens"])), "tokens must be texts"),
    (lambda f, a: f.update(tokens=f["tokens"][:-1]), "token_ids has"),
    (lambda f, a: f["tokens"].__setitem__(3, "x" * 10**5), "tokens must be texts"),
    (lambda f, a: f.update(prompt_length=-1), "prompt_length is -1"),
    (lambda f, a: f.update(prompt_length=10**400), "prompt_length is|int too large"),
    (lambda f, a: f.update(prompt_length=14.0), "."),
    (lambda f, a: f.update(prompt_length=True), "."),
    (lambda f, a: f.update(prompt_length=None), "."),
    (lambda f, a: f.update(layers=[1, 1]), "layers must be layers of the model, each plane a different one"),
    (lambda f, a: f.update(layers=[0, 99]), "layers must be layers of the model"),
    (lambda f, a: f.update(layers=[0, -1]), "layers must be layers of the model"),
    (lambda f, a: f.update(layers=[0, 1.5]), "must be whole numbers"),
    (lambda f, a: f.update(layers=[0, [1]]), "."),
    (lambda f, a: f.update(layers=[]), "it holds none of the layers"),
    (lambda f, a: f.update(num_layers="8"), "."),
    (lambda f, a: f.update(num_layers=0.5), "layers must be layers of the model"),
    (lambda f, a: f.update(num_layers=-3), "layers must be layers of the model"),
    (lambda f, a: f.update(heads=["mean"]), "heads has 1 entries"),
    (lambda f, a: f.update(heads=["mean", "some"]), "heads must be mean, max or numbers"),
    (lambda f, a: f.update(heads=["mean", 10**9]), "heads must be mean, max or numbers"),
    (lambda f, a: f.update(heads=["mean", []]), "heads must be"),
    (lambda f, a: f.update(heads=["mean", list(range(10**5))]), "heads must be"),
    (lambda f, a: f.update(heads=["mean", {"a": 1}]), "."),
    (lambda f, a: f.update(problem=[5, 99]), "the problem must lie in the prompt"),
    (lambda f, a: f.update(problem=[5]), "the problem must lie in the prompt"),
    (lambda f, a: f.update(problem=7), "."),
    (lambda f, a: f.update(special_ids=["x"]), "must be whole numbers"),
    (lambda f, a: f.update(special_ids=3), "."),
    (lambda f, a: f.update(auto_layer="yes"), "auto_layer and auto_head must be true or false"),
    (lambda f, a: f.update(images=10**9), "positions_1"),
    (lambda f, a: f.update(images="1"), "."),
    (lambda f, a: f.update(pictures=10**9), "picture_0"),
    (lambda f, a: f.update(checks=[{}]), "."),
    (lambda f, a: f.update(checks=[3]), "."),
    (lambda f, a: f.update(checks=[check_facts(random=[])]), "checks must be of planes, their falls numbers"),
    (lambda f, a: f.update(checks=[check_facts(hottest=1e300)]), "checks must be of planes"),
    (lambda f, a: f.update(checks=[check_facts(hottest=math.nan)]), "checks must be of planes"),
    (lambda f, a: f.update(checks=[check_facts(hottest="9")]), "checks must be of planes"),
    (lambda f, a: f.update(checks=[check_facts()] * 9), "checks must be of planes"),
    (lambda f, a: f.update(checks=[check_facts(view="x" * 10**5)]), "checks must be of planes"),
    (lambda f, a: f.update(checks=[check_facts(extra=1)]), "extra"),
    (lambda f, a: a["weights"].__setitem__((0, 0, 0), np.nan), "weights must be .* from 0 to 1"),
    (lambda f, a: a["weights"].__setitem__((0, 0, 0), np.inf), "weights must be .* from 0 to 1"),
    (lambda f, a: a["weights"].__setitem__((0, 0, 0), -1), "weights must be .* from 0 to 1"),
    (lambda f, a: a["weights"].__setitem__((0, 0, 0), 2), "weights must be .* from 0 to 1"),
    (lambda f, a: a.update(weights=a["weights"].astype(float)), "weights must be float32 or"),
    (lambda f, a: a.update(weights=a["weights"].astype(np.int32)), "weights must be float32 or"),
    (lambda f, a: a.update(weights=a["weights"][:, :1]), "weights has shape"),
    (lambda f, a: a.update(weights=a["weights"].ravel()), "weights has shape"),
    (lambda f, a: a.pop("weights"), "weights"),
    (lambda f, a: a.update(token_ids=a["token_ids"] * 1.0), "must be rows of whole numbers"),
    (lambda f, a: a.update(token_ids=np.stack([a["token_ids"]] * 2, axis=1)), "must be rows of whole numbers"),
    (lambda f, a: a.update(token_ids=np.array(3)), "."),
    (lambda f, a: a.pop("token_ids"), "token_ids"),
    (lambda f, a: a.update(positions_0=a["positions_0"] + 99), "has tokens outside"),
    (lambda f, a: a.update(positions_0=a["positions_0"] - 99), "has tokens outside"),
    (lambda f, a: a.update(positions_0=a["positions_0"] * 1.0), "must be rows of whole numbers"),
    (lambda f, a: a.pop("positions_0"), "positions_0"),
    (lambda f, a: a["boxes_0"].__setitem__((0, 0), np.inf), "boxes must lie within 0 and"),
    (lambda f, a: a["boxes_0"].__setitem__((0, 0), -5), "boxes must lie within 0 and"),
    (lambda f, a: a.update(boxes_0=a["boxes_0"][:-1]), "boxes has shape"),
    (lambda f, a: a.update(boxes_0=a["boxes_0"].astype(np.int64)), "."),
    (lambda f, a: a.update(neutral=np.float32([[np.nan] * 12] * 2)), "neutral must be from 0 up and finite"),
    (lambda f, a: a.update(neutral=-np.ones((2, 12), np.float32)), "neutral must be from 0 up and finite"),
    (lambda f, a: a.update(neutral=np.ones((2, 5), np.float32)), "neutral has shape"),
    (lambda f, a: a.update(neutral=np.array(1.0)), "."),
    (lambda f, a: add_picture(f, a, b"no picture"), "has a picture that cannot be read"),
    (lambda f, a: add_picture(f, a, b"\x89PNG\r\n\x1a\nbroken"), "has a picture that cannot be read"),
    (lambda f, a: add_picture(f, a, b"GIF89a"), "has a picture that cannot be read"),
    (lambda f, a: add_picture(f, a, b""), "has a picture that cannot be read"),
    (lambda f, a: add_picture(f, a, bomb_png(9_000)), "pixels, more than|too large|cannot be read"),
    (lambda f, a: add_picture(f, a, bomb_png(400)[:-20]), "has a picture that cannot be read"),
]  # fmt: skip


def check_facts(**change) -> dict:
    return {"plane": 0, "view": "", "part": "answer", "hottest": 0.5, "random": [0.1], **change}


def add_picture(facts, arrays, data):
    facts["pictures"], arrays["picture_0"] = 1, np.frombuffer(data, np.uint8)


def bomb_png(side, rows=0):
    """A tiny PNG that says it has side × side pixels."""
    chunk = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", chunk), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )


@pytest.mark.parametrize("change, expected", CHANGES, ids=range(len(CHANGES)))
def test_a_record_that_holds_what_no_recording_gives_is_refused_in_one_line(tmp_path, change, expected):
    make_record(["Based"], [" a", " b"]).save(tmp_path / NAME)
    rewritten(tmp_path / NAME, change)
    with pytest.raises(ValueError, match=f"{NAME} is no attention record: .*({expected})") as error:
        AttentionRecord.load(tmp_path / NAME)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2500


def test_a_small_record_takes_a_bounded_memory_and_time(tmp_path):
    """Twenty pictures of 89 million pixels each, that a file of some MB can hold: counted before one is decoded."""
    record = make_record(["Based"], [" a"], grids=[(1, 1)] * 20)
    record = replace(record, pictures=(bomb_png(9_400),) * 20)
    record.save(tmp_path / NAME)
    code = (
        f"import sys; sys.path.insert(0, {str(room.__file__).rsplit('/', 2)[0]!r})\n"
        "from attention_heatmap.record import AttentionRecord\n"
        "try: AttentionRecord.load(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))  # noqa: E731
    command = [sys.executable, "-c", code, str(tmp_path / NAME)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20, preexec_fn=limit)
    assert "its pictures have 1767200000 pixels, more than" in result.stdout, result


# --- parts that do not fit


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": np.zeros((2, 2, 3), np.float32)}, "weights has shape"),
        ({"token_ids": np.arange(3)}, "token_ids has 3 entries"),
        ({"prompt_length": 0}, "prompt_length is 0"),
        ({"pictures": (b"", b"")}, "pictures has 2 entries; expected 1"),
        ({"heads": ("mean",)}, "heads has 1 entries; expected 2"),
        ({"neutral": np.zeros((2, 3), np.float32)}, r"neutral has shape \(2, 3\); expected \(2, 12\)"),
        ({"images": (ImageTokens(np.array([99]), np.zeros((1, 4), np.float32)),)}, "outside the"),
    ],
)
def test_a_record_whose_parts_do_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(make_record(["a"], ["b", "c"]), **change)


def test_boxes_and_positions_go_together():
    with pytest.raises(ValueError, match=r"expected \(2, 4\)"):
        ImageTokens(np.arange(2), np.zeros((3, 4), np.float32))


# --- planes


def test_a_plane_is_asked_for_by_its_own_layer_and_head():
    record = make_record(["a"], ["b", "c"], layers=(3, 6, 6))
    record = replace(record, heads=("mean", 0, (1, 3)))
    assert record.plane() == 1 and record.plane(3) == 0 and record.plane(-2) == 1 and record.plane(6, (1, 3)) == 2
    np.testing.assert_array_equal(record.rows(1), record.weights[:, 1])
    assert record.select() == [0, 1, 2] and record.select([6]) == [1, 2] and record.select("all", "1+3") == [2]
    assert record.select("3-3") == [0] and record.select([3, -2], "mean") == [0]
    for asked, message in (({"layer": 1}, r"layer 1 was not recorded; the record holds \[3, 6\]"),
                           ({"layer": 6, "head": 7}, "head 7 was not recorded"),
                           ({"layer": "yellow"}, "layer yellow was not recorded"),
                           ({"layer": -1}, "layer -1 was not recorded")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            record.plane(**asked)


def test_planes_have_names_that_tell_them_apart():
    record = replace(make_record(["a"], ["b"], layers=(3, 6, 6)), heads=("max", 0, (1, 3)))
    assert [record.plane_key(n) for n in range(3)] == ["layer3", "layer6_head0", "layer6_head1+3"]
    assert [record.plane_name(n) for n in range(3)] == [
        "layer 3, maximum of the heads", "layer 6, head 0", "layer 6, mean of heads 1, 3",
    ]  # fmt: skip


def test_the_response_is_the_text_after_the_prompt():
    record = make_record(["a"], ["b", " c"])
    assert record.response == "b c" and record.response_length == 2


# --- how it shows itself


def test_a_record_shows_itself_as_one_line_of_facts():
    record = illustrated(make_record(["Based"], [" a"] * 40, layers=tuple(range(7))))
    assert repr(record) == (
        "AttentionRecord(40 response tokens after 14 of the prompt, 1 picture(s) of 12 image tokens, 7 plane(s): "
        "layer 0, mean of the heads, layer 1, mean of the heads, layer 2, mean of the heads, ...)"
    )


def test_a_record_shows_the_frame_of_a_token_and_itself():
    from attention_heatmap.drawing.frame import render_frames

    record = illustrated(make_record(["Based"], [" a", " b", " c"]))
    frames = list(render_frames(record, record.open_pictures(), 1, frame_size=SMALL))
    np.testing.assert_array_equal(np.asarray(record.show(2, frame_size=SMALL)), frames[1])
    np.testing.assert_array_equal(np.asarray(record.show(-1, layer=1, frame_size=SMALL)), frames[2])
    assert record._repr_html_().lstrip().startswith("<")


@pytest.mark.parametrize(
    "step, options, message",
    [
        (4, {}, "token 4 is not there; expected 1 to 3, or -1 for the last"),
        (0, {}, "token 0 is not there; expected 1 to 3"),
        (-4, {}, "token -4 is not there; expected 1 to 3"),
        ("yellow", {}, "token 'yellow' is not there; expected a token's number, from 1"),
        (1.5, {}, "token 1.5 is not there"),
        (True, {}, "token True is not there"),
        (None, {}, "token None is not there"),
        (10**400, {}, "token 10+ is not there"),
        (1, {"layer": "yellow"}, "layer yellow was not recorded"),
        (1, {"head": "each one"}, "head each one was not recorded"),
        (1, {"colour_map": "x"}, "there is no option 'colour_map'; did you mean colormap?"),
        (1, {"scale": "page"}, "scale is 'page'; expected 'frame' or 'video'"),
    ],
)
def test_a_frame_that_cannot_be_shown_is_told_in_one_line(step, options, message):
    with pytest.raises(ValueError, match=message) as error:
        illustrated(make_record(["Based"], [" a", " b", " c"])).show(step, **options)
    assert "\n" not in str(error.value)


def test_a_record_without_pictures_says_what_to_give_and_shows_its_text():
    record = make_record(["Based"], [" a<b"])
    assert record._repr_html_() == "<pre> a&lt;b</pre>"
    with pytest.raises(ValueError, match="keeps no pictures; give benchmark_json and image_dir"):
        record.show(1)


def test_a_record_is_drawn_on_its_own_pictures_only():
    record = illustrated(make_record(["a"], ["b"]))
    assert check_pictures(record, None)[0].size == (400, 300)
    assert len(check_pictures(record, [picture((400, 300), "khaki")])) == 1
    for other in ([picture((400, 300), "navy")], [picture((300, 400), "khaki")], [picture()] * 2):
        with pytest.raises(ValueError, match="picture 1 of the sample is not the record's"):
            check_pictures(record, other)
