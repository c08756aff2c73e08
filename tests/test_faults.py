"""Bad input, faults of the machine, and data made to do harm: one clear line, nothing half-written, nothing hung."""

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, make_record, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import qwen_checkpoint

import visualizeHeatMap as vhm

SCRIPT = [sys.executable, str(ROOT / "visualizeHeatMap.py")]
PROBLEM = "Based on the following requirements, go."


# --- a table of bad inputs and the line that each gives

FLAGS = [  # flags, expected line
    (["--frame_size", "big"], "is no size; expected WIDTHxHEIGHT"),
    (["--frame_size", "641x360"], "both must be even"),
    (["--frame_size", "10x10"], "at least 640x360"),
    (["--frame_size", "1000000x360"], "at most 8192"),
    (["--frame_size", "9" * 5000 + "x2"], "argument --frame_size"),
    (["--head", "some"], "is no head; expected mean, max, auto or a number"),
    (["--head", "99"], "head 99 cannot be taken: the layer has 4 heads"),
    (["--layer_idx", "x"], "is no layer; expected auto or a number"),
    (["--layer_idx", "3"], r"layer_idx 3 is out of range: the model has 3 layers"),
    (["--layer_idx", "-4"], r"layer_idx -4 is out of range"),
    (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
    (["--fps", "x"], "argument --fps: invalid float value"),
    (["--fps", "0"], "fps is 0.0; expected a number from"),
    (["--fps", "nan"], "fps is nan"),
    (["--fps", "inf"], "fps is inf"),
    (["--fps", "51", "--format", "gif"], r"fps is 51.0; expected a number from 0.01 to 50 for \.gif"),
    (["--scale", "page"], "argument --scale: invalid choice"),
    (["--format", "avi"], "argument --format: invalid choice"),
    (["--colormap", "jet"], "argument --colormap: invalid choice"),
    (["--model_kwargs", "[1]"], "is no JSON object"),
    (["--processor_kwargs", "{"], "is no JSON object"),
    (["--model_path", "nowhere/at/all"], "AutoConfig cannot load it"),
    (["--model_path", "{world}/text_model"], "'gpt2' names no image_token_id"),
    (["--model_path", "{world}/own_code"], "comes with Python code of its own, which could do whatever you can do"),
    (["--model_path", "{world}/cut_config"], "AutoConfig cannot load it"),
    (["--font_path", "none.ttf"], "font_path none.ttf cannot be used"),
    (["--font_path", "{world}/images/broken.png"], "cannot be used: unknown file format"),
    (["--output_dir", "/dev/null/x"], "output_dir '/dev/null/x' cannot be written to"),
    (["--save_record", "{world}"], "is a folder; give the name of a file"),
    (["--save_record", "/dev/null/run.npz"], "cannot be written to"),
    (["--sample_idx", "7"], r"sample_idx 7 is out of range: .* has 2 samples \(0..1\)"),
    (["--sample_idx", "-1"], "sample_idx -1 is out of range"),
    (["--sample_idx", "0-9"], "sample_idx 0-9 is out of range"),
    (["--sample_idx", "1-0"], "cannot be read; expected a number, a range such as 0-99"),
    (["--sample_idx", "0,,1"], "cannot be read"),
    (["--sample_idx", "some"], "cannot be read"),
    (["--sample_idx", "9" * 5000], "cannot be read"),
    (["--sample_idx", "all", "--response", "x"], "response is the answer to one sample; give response_key"),
    (["--sample_idx", "all", "--save_record", "a/b.npz"], "is no name for each sample's folder"),
    (["--sample_idx", "all", "--image_dir", "nowhere"], "is no directory"),
    (["--image_dir", "nowhere"], "image_dir nowhere is no directory"),
    (["--max_image_num", "0"], "has 1 pictures, more than max_image_num=0"),
    (["--max_new_tokens", "0"], "max_new_tokens is 0; expected 1 or more"),
    (["--max_pixels", "0"], "max_pixels is 0; expected 1 or more"),
    (["--do_sample", "--temperature", "0"], "temperature is 0.0"),
    (["--do_sample", "--top_p", "2"], "top_p 2.0"),
    (["--do_sample", "--seed", "-1"], "seed -1"),
    (["--prompt_template", "no place"], "has no {Question}; put it where the problem goes"),
    (["--response", ""], "the given response is ''"),
    (["--response", "a", "--response_key", "b"], "give one of them"),
    (["--response_key", "none"], "'none' is no key of the sample"),
    (["--dtype", "float99"], "dtype is 'float99'"),
    (["--benchmark_json", "{world}/images"], "is a folder; give a JSON list"),
    (["--from_record", "x.npz"], "--model_path does not go with --from_record"),
]
GOOD = {"image": "a.png", "problem": PROBLEM}
DATASETS = [  # the dataset's text or its samples, expected line
    ("", "is not JSON"),
    ("{not json", "is not JSON"),
    (b"\xff\xfe\x00", "is not UTF-8 text"),
    ("[" * 100_000, "is not JSON: maximum recursion depth exceeded|is not JSON: .*too deep"),
    ("[" + "9" * 5000 + "]", "is not JSON: Exceeds the limit"),
    ('{"a": 1}', "holds a dict; expected a JSON list"),
    ("[]", "is an empty list"),
    (["text"], "is a str; expected an object"),
    ([{"problem": "p"}], "has no key 'image'"),
    ([{"image": "a.png"}], "has no key 'problem'"),
    ([{**GOOD, "problem": " "}], "expected a text that is not empty"),
    ([{**GOOD, "problem": 3}], "the problem of sample 0"),
    ([{**GOOD, "image": [3]}], "expected a path or a list of paths"),
    ([{**GOOD, "image": []}], "expected a path or a list of paths"),
    ([{**GOOD, "image": ["a.png"] * 3}], "has 3 pictures, more than max_image_num=2"),
    ([{**GOOD, "image": "/etc/hostname"}], "outside image_dir .*: /etc/hostname; .*--allow_absolute_paths"),
    ([{**GOOD, "image": "../data.json"}], "names a picture outside image_dir"),
    ([{**GOOD, "image": "link.png"}], "names a picture outside image_dir .*: link.png"),
    ([{**GOOD, "image": "none.png"}], "names a picture that does not exist"),
    ([{**GOOD, "image": "\x1b[31m\u202eevil\n.png"}], r"does not exist: .*\\x1b\[31m\\u202eevil .png; check"),
    ([{**GOOD, "image": "nul\0.png"}], "has a picture that cannot be read: .*null"),
    ([{**GOOD, "image": "lone\ud800.png"}], r"has a picture that cannot be read: .*lone\\ud800.png"),
    ([{**GOOD, "image": "x" * 10_000}], "has a picture that cannot be read: .*too long"),
    ([{**GOOD, "image": "ring.png"}], "has a picture that cannot be read"),
    ([{**GOOD, "image": "folder"}], "names a folder where a picture is expected"),
    ([{**GOOD, "image": "pipe"}], "cannot be read: .*a device or a pipe"),
    ([{**GOOD, "image": "broken.png"}], "has a picture that cannot be read"),
    ([{**GOOD, "image": "cut.png"}], "has a picture that cannot be read"),
    ([{**GOOD, "image": "bomb.png"}], r"too large: .*limit of .* pixels.*it may be made to fill the memory: shrink it"),
    ([{**GOOD, "image": "thin.png"}], "cannot take the problem and its 1 picture.*check the pictures' sizes"),
    ([{**GOOD, "image": "program.eps"}], "a program, which Ghostscript would have to run"),
]
RECORDS = [  # what is changed in a good record, expected line after "is no attention record: "
    (lambda facts, arrays: facts.update(format=99), "its format is 99"),
    (lambda facts, arrays: facts.pop("tokens"), "'tokens'"),
    (lambda facts, arrays: facts.update(tokens=[3] * len(facts["tokens"])), "tokens must be texts|cannot"),
    (lambda facts, arrays: facts.update(tokens=facts["tokens"][:-1]), "token_ids has"),
    (lambda facts, arrays: facts.update(prompt_length=-1), "prompt_length is -1"),
    (lambda facts, arrays: facts.update(prompt_length=15.0), "must be whole numbers|weights has shape"),
    (lambda facts, arrays: facts.update(layers=[1, 1]), "layers must be different ones"),
    (lambda facts, arrays: facts.update(layers=[0, 99]), "layers must be different ones of the model"),
    (lambda facts, arrays: facts.update(layers=[0, -1]), "layers must be different ones of the model"),
    (lambda facts, arrays: facts.update(head=["mean"]), "head must be"),
    (lambda facts, arrays: facts.update(problem=[5, 99]), "the problem must lie in the prompt"),
    (lambda facts, arrays: facts.update(special_ids=["x"]), "must be whole numbers"),
    (lambda facts, arrays: facts.update(images=10**9), "positions_1"),
    (lambda facts, arrays: facts.update(pictures=10**9), "picture_0"),
    (lambda facts, arrays: arrays["weights"].__setitem__((0, 0, 0), np.nan), "weights must be .* from 0 to 1"),
    (lambda facts, arrays: arrays["weights"].__setitem__((0, 0, 0), np.inf), "weights must be .* from 0 to 1"),
    (lambda facts, arrays: arrays["weights"].__setitem__((0, 0, 0), -1), "weights must be .* from 0 to 1"),
    (lambda facts, arrays: arrays.update(weights=arrays["weights"].astype(float)), "weights must be float32 or"),
    (lambda facts, arrays: arrays.update(weights=arrays["weights"][:, :1]), "weights has shape"),
    (lambda facts, arrays: arrays.update(token_ids=arrays["token_ids"] * 1.0), "must be rows of whole numbers"),
    (lambda facts, arrays: arrays.update(positions_0=arrays["positions_0"] + 99), "has tokens outside"),
    (lambda facts, arrays: arrays.update(positions_0=arrays["positions_0"] * 1.0), "must be rows of whole numbers"),
    (lambda facts, arrays: arrays["boxes_0"].__setitem__((0, 0), np.inf), "boxes must lie within 0 and"),
    (lambda facts, arrays: arrays["boxes_0"].__setitem__((0, 0), -5), "boxes must lie within 0 and"),
    (lambda facts, arrays: arrays.update(boxes_0=arrays["boxes_0"][:-1]), "boxes has shape"),
    (lambda facts, arrays: arrays.update(token_ids=np.array([{}], object)), "is no plain array|pickle|allow_pickle"),
    (lambda facts, arrays: arrays.update(bomb=np.zeros(2**23)), "bytes would unpack to"),
]  # fmt: skip
FILES = [  # a file that is no record, expected line
    (None, "cannot be read: No such file or directory; give a file that --save_record"),
    (b"", "is no attention record"),
    (b"text", "is no attention record: File is not a zip file"),
    (b"PK\x05\x06" + bytes(18), "is no attention record: .*facts"),
]


def header_only(name, member):
    """A .npz whose one array has a header that promises far more than is there."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr(member, header.getvalue())


def bomb_png(side):
    """A tiny PNG that says it has side × side pixels."""
    chunk = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", chunk), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a checkpoint, pictures good and bad, a dataset and checkpoints that are none."""
    world = tmp_path_factory.mktemp("world")
    qwen_checkpoint("qwen2_vl", world / "model")
    images = world / "images"
    images.mkdir()
    picture((120, 90), "orange").save(images / "a.png")
    picture((1, 900)).save(images / "thin.png")
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:90])
    (images / "broken.png").write_bytes(b"\x89PNG nothing")
    (images / "bomb.png").write_bytes(bomb_png(20_000))
    (images / "program.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    picture().save(world / "outside.png")
    (images / "link.png").symlink_to(world / "outside.png")
    (images / "ring.png").symlink_to(images / "ring.png")
    (images / "folder").mkdir()
    os.mkfifo(images / "pipe")
    (world / "data.json").write_text(json.dumps([GOOD, GOOD]))
    configs = {
        "text_model": '{"model_type": "gpt2"}',
        "own_code": '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}',
        "cut_config": '{"model_type": "qwen2_vl",',
    }
    for name, config in configs.items():
        (world / name).mkdir()
        (world / name / "config.json").write_text(config)
    (world / "own_code" / "evil.py").write_text(f"open({str(world / 'evil_ran')!r}, 'w')\n")
    return world


def base_flags(world):
    return {"--model_path": world / "model", "--benchmark_json": world / "data.json", "--image_dir": world / "images"}


def run_main(arguments):
    """The exit code of `main`, also where the parser ends it."""
    try:
        return vhm.main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


def assert_one_line(capfd, code, expected, tmp_path, before=()):
    out, error = capfd.readouterr()
    lines = [line for line in error.splitlines() if not line.startswith("[transformers]")]
    assert code == 2 and out == "" and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and re.search(expected, lines[0]), lines[0]
    assert lines[0] == vhm.visible(lines[0])
    assert sorted(tmp_path.iterdir()) == sorted(before)


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(vhm.AttentionVisualizer, "model", property(lambda self: pytest.fail("the weights were loaded")))


@pytest.mark.parametrize(
    "flags, expected", FLAGS, ids=lambda value: "_".join(value)[:60] if isinstance(value, list) else ""
)
def test_a_bad_flag_is_one_line_before_the_weights(world, tmp_path, capfd, no_weights, flags, expected):
    given_ = {**base_flags(world)}
    flags = [flag.replace("{world}", str(world)) for flag in flags]
    for name in set(flags) & given_.keys():
        del given_[name]
    code = run_main([*(part for pair in given_.items() for part in pair), *flags])
    assert_one_line(capfd, code, expected, tmp_path)
    assert not (world / "evil_ran").exists(), "the checkpoint's own code ran"


@pytest.mark.parametrize("samples, expected", DATASETS)
def test_a_bad_dataset_is_one_line_before_the_weights(world, tmp_path, capfd, no_weights, samples, expected):
    data = tmp_path / "d.json"
    data.write_bytes(samples if isinstance(samples, bytes) else (
        samples if isinstance(samples, str) else json.dumps(samples)).encode())  # fmt: skip
    flags = {**base_flags(world), "--benchmark_json": data}
    code = run_main([part for pair in flags.items() for part in pair])
    assert_one_line(capfd, code, expected, tmp_path, [data])


@pytest.mark.parametrize("change, expected", RECORDS, ids=range(len(RECORDS)))
def test_a_bad_record_is_one_line(tmp_path, capfd, monkeypatch, change, expected):
    monkeypatch.setattr(vhm, "LARGEST_UNCHECKED_ARCHIVE", 2**20)
    make_record(["Based"], [" a", " b"]).save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as data:
        arrays = dict(data)
    facts = json.loads(arrays.pop("facts").tobytes())
    change(facts, arrays)
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez_compressed(tmp_path / "run.npz", **arrays)
    code = run_main(["--from_record", tmp_path / "run.npz", "--output_dir", tmp_path])
    assert_one_line(
        capfd, code, "run.npz is no attention record: .*" + f"({expected})", tmp_path, [tmp_path / "run.npz"]
    )


@pytest.mark.parametrize("content, expected", FILES)
def test_a_file_that_is_no_record_is_one_line(tmp_path, capfd, content, expected):
    path = tmp_path / "run.npz"
    if content is not None:
        path.write_bytes(content)
    code = run_main(["--from_record", path, "--output_dir", tmp_path])
    assert_one_line(capfd, code, expected, tmp_path, [path] if content is not None else [])


def test_a_header_that_promises_more_than_is_there_is_refused_before_anything_is_read(tmp_path, capfd):
    header_only(tmp_path / "run.npz", "facts.npy")
    code = run_main(["--from_record", tmp_path / "run.npz", "--output_dir", tmp_path])
    assert_one_line(capfd, code, "facts.npy is no plain array of shape", tmp_path, [tmp_path / "run.npz"])


def test_a_kept_record_is_of_one_sample(capfd, tmp_path):
    code = run_main(["--from_record", "x.npz", "--sample_idx", "all"])
    assert_one_line(capfd, code, "--sample_idx takes one number with --from_record", tmp_path)


@pytest.mark.parametrize("stop, code, name", [
    (KeyboardInterrupt(), 130, "SIGINT"), (vhm.Stopped(signal.SIGTERM), 143, "SIGTERM"),
])  # fmt: skip
def test_a_stop_is_one_line_and_the_code_of_its_signal(monkeypatch, capsys, stop, code, name):
    def stopped(arguments):
        raise stop

    monkeypatch.setattr(vhm, "run_command", stopped)
    assert run_main(["--from_record", "x.npz"]) == code
    error = capsys.readouterr().err
    assert error.startswith(f"error: stopped by {name}; ") and error.count("\n") == 1


def test_a_signal_is_heard_once_and_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(vhm.Stopped) as stop, vhm.stoppable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
    assert stop.value.args == (signal.SIGTERM,)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_waits_while_a_process_is_started(tmp_path, monkeypatch):
    """Else nobody would know of an encoder that has begun, and it would write its file when all was put away."""
    popen, started = subprocess.Popen, []

    def slow(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        started.append(popen(*arguments, **options))
        time.sleep(0.1)
        return started[0]

    vhm.find_encoder()
    monkeypatch.setattr(subprocess, "Popen", slow)
    with pytest.raises(vhm.Stopped), vhm.stoppable():
        vhm.write_video([np.zeros((48, 64, 3), np.uint8)] * 3, tmp_path / "out.mp4")
    assert started[0].returncode is not None and list(tmp_path.iterdir()) == []


def test_memory_that_is_not_there_is_one_line(monkeypatch, capsys):
    def full(arguments):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(vhm, "run_command", full)
    assert run_main(["--from_record", "x.npz"]) == 2
    assert capsys.readouterr().err == "error: Unable to allocate 9 TiB\n"


def test_there_are_many_bad_inputs():
    assert len(FLAGS) + len(DATASETS) + len(RECORDS) + len(FILES) >= 100


def test_paths_outside_can_be_allowed(world, tmp_path):
    data = tmp_path / "d.json"
    for name in ("link.png", str(world / "outside.png"), "../outside.png"):
        data.write_text(json.dumps([{**GOOD, "image": name}]))
        with pytest.raises(ValueError, match="outside image_dir"):
            vhm.load_sample(data, world / "images")
        (image,) = vhm.load_sample(data, world / "images", allow_absolute_paths=True)[1]
        assert image.size == (400, 300)


def test_a_folder_of_pictures_may_itself_be_a_link(world, tmp_path):
    (tmp_path / "images").symlink_to(world / "images")
    assert len(vhm.load_sample(world / "data.json", tmp_path / "images")[1]) == 1


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_change_of_a_records_bytes_is_drawn_as_a_record_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    make_record(["Based"], [" a"], grids=[(1, 2)]).save(folder / "run.npz", compress=data.draw(st.booleans()))
    raw = bytearray((folder / "run.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "run.npz").write_bytes(raw)
    try:
        vhm.AttentionRecord.load(folder / "run.npz")
    except ValueError as error:
        assert "\n" not in str(error)


# --- text made to do harm


HOSTILE = {
    "escapes": "\x1b[2J\x1b]0;title\x07 red \x9b31m",
    "controls": "".join(map(chr, range(32))) + "\x7f",
    "right to left": "a\u202eb\u2066c\u2069\u200f\u061cd",
    "surrogates": "a\ud800 \udc00\udfffb",
    "long word": "w" * 10_000,
    "marks": "e" + "\u0301" * 300,
    "no characters": "\ufffe\uffff\U0010ffff",
    "joiners": "\u200d\u200b\ufeff\u2060",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_drawn_and_shown_harmlessly(tmp_path, name):
    record = make_record(["Based", HOSTILE[name]], [" a", HOSTILE[name], " b"])
    started = time.process_time()
    frames = list(vhm.render_frames(record, [picture()], 1, "Based", frame_size=SMALL))
    assert len(frames) == 3 and len(np.unique(frames[1].reshape(-1, 3), axis=0)) > 10
    assert time.process_time() - started < 10
    record.save(tmp_path / "run.npz")
    assert vhm.AttentionRecord.load(tmp_path / "run.npz").response == record.response
    for shown in (vhm.visible(HOSTILE[name]), vhm.one_line(HOSTILE[name])):
        assert not set(shown) & set("\x1b\x07\x9b\x7f\u202e\u2066\u200f\ud800\ufeff")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(), max_size=12), min_size=1, max_size=6), st.integers(60, 300))
def test_any_text_is_laid_out_and_drawn(texts, width):
    pieces = [vhm.TextPiece(n, text, "text") for n, text in enumerate(texts)]
    layout = vhm.layout_text(pieces, vhm.FontSet(18), width)
    panel = vhm.visualize_attention_step(layout, np.linspace(0, 1, len(pieces)), len(pieces) - 1, 200)
    assert panel.size == (width, 200) and layout.piece_index.max(initial=0) <= 2 * len(pieces)


def test_marks_that_turn_the_direction_of_writing_turn_nothing():
    fonts = vhm.FontSet(20)
    for mark in "\u202e\u2067\u200f":
        pieces = [vhm.TextPiece(0, f"abc{mark}def", "text")], [vhm.TextPiece(0, "abcdef", "text")]
        turned, plain = (vhm.layout_text(piece, fonts, 200) for piece in pieces)
        np.testing.assert_array_equal(turned.ink, plain.ink)


def test_a_sample_of_hostile_text_is_answered(world, tmp_path):
    visualizer = vhm.AttentionVisualizer(str(world / "model"))
    sample = {"problem": "go " + "".join(HOSTILE.values()).replace("w" * 9_900, ""), "pred": "\ud800 \x1b[31m \u202e"}
    record = visualizer.record(sample, [picture((60, 60))], [1], response_key="pred")
    assert record.response == "\ufffd \x1b[31m \u202e" and np.isfinite(record.weights).all()


def test_a_terminal_of_few_characters_gets_escapes_and_no_error(tmp_path):
    make_record(["Based"], [" a"]).save(tmp_path / "run.npz")
    kept = vhm.AttentionRecord.load(tmp_path / "run.npz")
    record = vhm.AttentionRecord(**{**vars(kept), "pictures": (vhm.picture_file(picture()),)})
    record.save(tmp_path / "run.npz")
    flags = ["--from_record", str(tmp_path / "run.npz"), "--frame_size", "640x360", "--output_dir"]
    few = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run([*SCRIPT, *flags, str(tmp_path / "路线")], env=few, capture_output=True)
    # In the C locale a name's bytes are no characters: whatever Python makes of them is escaped.
    assert result.returncode == 0 and result.stdout.isascii() and result.stdout.count(b"\\") >= 2
    assert list((tmp_path / "路线").iterdir())
    result = subprocess.run([*SCRIPT, *flags, "/dev/null/路\x1b[31m"], env=few, capture_output=True)
    assert result.returncode == 2 and b"\x1b" not in result.stderr and len(result.stderr.splitlines()) == 1


# --- faults of the machine


@pytest.fixture
def kept(tmp_path):
    """A record that takes some seconds to draw, and the command that does."""
    record = make_record(["Based"], [" word"] * 60)
    record = vhm.AttentionRecord(**{**vars(record), "pictures": (vhm.picture_file(picture()),)})
    (tmp_path / "kept").mkdir()
    record.save(tmp_path / "kept" / "run.npz")
    flags = ["--from_record", str(tmp_path / "kept" / "run.npz"), "--frame_size", "640x360", "--layer_idx", "0", "1"]
    flags += ["--start_phrase", "Based"]
    return [*SCRIPT, *flags, "--output_dir", str(tmp_path / "out")]


def whole_videos(folder):
    """The names in a folder, after a look that each is a whole video."""
    from imageio_ffmpeg import count_frames_and_secs

    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    assert all(count_frames_and_secs(str(folder / name))[0] == 60 for name in names)
    return names


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM] * 3)
def test_a_signal_at_any_moment_is_one_line_and_leaves_whole_files_only(kept, tmp_path, number):
    process = subprocess.Popen(kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("out/.*.partial*")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1))
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    if process.returncode and len(list((tmp_path / "out").iterdir())) < 2:  # else all was done already
        assert process.returncode == 128 + number and error.count("\n") == 1
        assert error.startswith(f"error: stopped by {number.name}; no file is half-written")
    whole_videos(tmp_path / "out")


def test_two_signals_are_one(kept, tmp_path):
    process = subprocess.Popen(kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("out/.*.partial*")) and process.poll() is None:
        time.sleep(0.02)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.005)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143 and error.count("\n") == 1 and list((tmp_path / "out").iterdir()) == []


def test_a_killed_process_leaves_hidden_files_only_and_the_next_one_removes_them(kept, tmp_path):
    process = subprocess.Popen(kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (left := list(tmp_path.glob("out/.*.partial*"))) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(0.5)  # the encoder ends by itself, since its input has
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert names == [left[0].name] and ".partial" in left[0].name
    assert subprocess.run(kept, capture_output=True).returncode == 0
    assert len(whole_videos(tmp_path / "out")) == 2


def test_only_the_half_written_files_of_dead_processes_are_stale(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = {
        f".a.{vhm.HOST}-{dead.pid}.partial.mp4": False, f".a.{vhm.HOST}-{os.getpid()}.partial.mp4": True,
        f".a.{vhm.HOST}-1.partial": True, ".a.elsewhere-7.partial.npz": True, ".a.long_ago-7.partial.npz": False,
        ".mine.partial": True, "a.partial.mp4": True, f".b.{vhm.HOST}-{10**30}.partial.png": False,
    }  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    os.utime(tmp_path / ".a.long_ago-7.partial.npz", (0, 0))
    vhm.remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}


def test_a_limit_of_the_size_of_files_is_one_line(kept, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))  # noqa: E731
    result = subprocess.run(kept, preexec_fn=limit, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize("size", ["100k", "400k", "500k"])
def test_a_full_disk_is_one_line_and_leaves_whole_files_only(kept, tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        result = subprocess.run([*kept[:-1], str(disk / "out")], capture_output=True, text=True)
        left = whole_videos(disk / "out")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert result.returncode == 2 and len(left) < 2
    assert result.stderr.count("\n") == 1 and "No space left on device" in result.stderr, result.stderr


@pytest.mark.parametrize("damage", [5, 300, 30_000, "cut"])
def test_a_broken_font_is_named_before_the_long_work_or_gives_way(tmp_path, damage):
    data = bytearray(Path(vhm.FontSet(20).main.path).read_bytes())
    rng = random.Random(0)
    for _ in range(damage if damage != "cut" else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    (tmp_path / "f.ttf").write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    record = make_record(["Based"], [" the", " 路", " e\u0301 Ω ж"])
    try:
        fonts = vhm.DrawingOptions(font_path=str(tmp_path / "f.ttf"), frame_size=SMALL)
    except OSError as error:
        assert re.fullmatch(r"font_path .*f\.ttf cannot be used: .*; give a .*", str(error))
    else:
        assert len(list(vhm.render_frames(record, [picture()], 1, "Based", **vars(fonts)))) == 3


def test_without_fonts_of_the_system_text_is_drawn_by_pillows_own(monkeypatch):
    monkeypatch.setattr(vhm, "FONT_NAMES", ("none.ttf",))
    assert vhm.FontSet(20).width("abc") > 20


def test_a_gif_that_finds_no_room_is_one_line(tmp_path, monkeypatch):
    real, encoder = vhm.find_encoder(), tmp_path / "encoder"
    encoder.write_text(
        f'#!/bin/sh\ncase "$*" in *palette*) echo "[gif @ 0x1] No space" >&2; exit 1;; esac\nexec {real} "$@"\n'
    )
    encoder.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(encoder))
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="the GIF could not be written: No space; check the space"):
        vhm.write_video([np.zeros((48, 64, 3), np.uint8)] * 2, tmp_path / "out" / "out.gif")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_error_of_the_system_while_a_file_is_written_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"a\.png could not be written: No space left on device; check the space in"):  # noqa: SIM117
        with vhm.moved_into_place(tmp_path / "a.png") as temporary:
            temporary.write_text("half")
            raise OSError(28, os.strerror(28))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_full_is_told_before_the_long_work(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(OSError, match=r"cannot be written to \(\[Errno 28\] No space left on device\)"):
            vhm.check_output_dir(disk)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_vanishes_while_a_video_is_written_is_named(tmp_path):
    def frames():
        for number in range(5):
            if number == 3:
                shutil.rmtree(tmp_path / "out")
            yield np.zeros((48, 64, 3), np.uint8)

    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match=r"out\.mp4 could not be written: the encoder ended .*; .*out is no longer there"):
        vhm.write_video(frames(), tmp_path / "out" / "out.mp4")
    assert not (tmp_path / "out").exists()


def test_the_model_is_as_before_whatever_stops_a_recording(world, monkeypatch):
    visualizer = vhm.AttentionVisualizer(str(world / "model"))
    before = vhm.implementations(visualizer.model.config)
    for failure in (KeyboardInterrupt(), RuntimeError("out of memory"), vhm.Stopped(15)):

        def fail(*arguments, failure=failure, **options):
            raise failure

        for attention, name in (("auto", "attention_scores"), ("eager", "reduce_heads")):
            with monkeypatch.context() as patch, pytest.raises(type(failure)):
                patch.setattr(vhm, name, fail)
                visualizer.record({"problem": "go"}, [picture((60, 60))], [1], max_new_tokens=2, attention=attention)
            assert vhm.implementations(visualizer.model.config) == before and vhm._active_recorder.get() is None
            assert not any(module._forward_pre_hooks for module in visualizer.model.modules())


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_stop_with_the_layer_and_the_step(world, monkeypatch, attention, bad):
    visualizer = vhm.AttentionVisualizer(str(world / "model"))
    reduce, seen = vhm.reduce_heads, [0]

    def overflow(weights_LHQK, head):
        rows_LQK, first = reduce(weights_LHQK, head), seen[0]
        seen[0] += rows_LQK.shape[1]
        if first <= 2 < seen[0]:
            rows_LQK[1, 2 - first, 0] = bad
        return rows_LQK

    monkeypatch.setattr(vhm, "reduce_heads", overflow)
    with pytest.raises(RuntimeError, match=r"layer 2 has weights that are no numbers at step 2: .*--dtype bfloat16"):
        visualizer.record({"problem": "go"}, [picture((60, 60))], [0, 2], max_new_tokens=5, attention=attention)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_weights_that_are_a_pickle_run_nothing(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"weights": Evil()}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError, RuntimeError), match="cannot load it") as error:
        _ = vhm.AttentionVisualizer(str(tmp_path / "model")).model
    assert not (tmp_path / "ran").exists() and "\n" not in str(error.value)


def test_an_answer_of_nothing_is_told(world, monkeypatch):
    visualizer = vhm.AttentionVisualizer(str(world / "model"))
    ids = list(range(visualizer.config.get_text_config().vocab_size))
    monkeypatch.setattr(visualizer.model.generation_config, "eos_token_id", ids)
    with pytest.raises(RuntimeError, match="nothing but an end-of-sequence token; check prompt_template"):
        visualizer.record({"problem": "go"}, [picture((60, 60))], [1])
    with pytest.raises(ValueError, match="no layer was given"):
        visualizer.record({"problem": "go"}, [picture((60, 60))], [])


def test_a_model_in_half_precision_that_overflows_is_told(world):
    visualizer = vhm.AttentionVisualizer(str(world / "model"))
    with pytest.raises(RuntimeError, match="layer 1 has weights that are no numbers at step 0"):
        visualizer.model.model.language_model.layers[0].mlp.down_proj.weight.data.fill_(float("inf"))
        visualizer.record({"problem": "go"}, [picture((60, 60))], [1], response="ok")
