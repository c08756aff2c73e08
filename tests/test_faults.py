"""Bad input, faults of the machine, and data made to do harm: one clear line, nothing half-written, nothing hung."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from records import make_record, picture
from test_log import HOSTILE

from attention_heatmap.log import visible
from attention_heatmap.record import picture_file
from visualizeHeatMap import AttentionVisualizer, main

SCRIPT = [sys.executable, str(ROOT / "visualizeHeatMap.py")]
PROBLEM = "Based on the following requirements, go."
VIDEO = "combined_attention_visualization_layer1.mp4"

# --- a table of bad inputs and the line that each gives

FLAGS = [  # flags, expected line
    (["--frame_size", "big"], "is no size; expected WIDTHxHEIGHT"),
    (["--frame_size", "641x360"], "both must be even"),
    (["--frame_size", "10x10"], "at least 640x360"),
    (["--frame_size", "1000000x360"], "at most 8192"),
    (["--frame_size", "9" * 5000 + "x2"], "argument --frame_size"),
    (["--head", "some"], "head 'some' cannot be taken: the layer has 4 heads"),
    (["--head", "99"], "head 99 cannot be taken: the layer has 4 heads"),
    (["--head", "0-99999"], "is out of range: no model has so many"),
    (["--head", "auto", "1"], "expected numbers, or auto alone"),
    (["--head", "1+9"], "head 9 cannot be taken"),
    (["--layer_idx", "x"], "layer_idx is 'x'; expected a whole number, a range such as 0-7, all, or auto"),
    (["--layer_idx", "3"], "layer_idx 3 is out of range: the model has 3 layers"),
    (["--layer_idx", "-4"], "layer_idx -4 is out of range"),
    (["--layer_idx", "0-3"], "layer_idx 3 is out of range"),
    (["--layer_idx", "0-999999999"], "is out of range: no model has so many"),
    (["--layer_idx", "9" * 400], "layer_idx is '9+; expected a whole number"),
    (["--layer_idx", "auto", "1"], "expected auto alone"),
    (["--layer_idx", "1.0"], "layer_idx is '1.0'"),
    (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
    (["--fps", "x"], "argument --fps: invalid float value"),
    (["--fps", "0"], "fps is 0.0; expected a number from"),
    (["--fps", "nan"], "fps is nan"),
    (["--fps", "inf"], "fps is inf"),
    (["--fps", "9" * 400], "fps is inf"),
    (["--fps", "51", "--format", "gif"], r"fps is 51.0; expected a number from 0.01 to 50 for \.gif"),
    (["--smooth", "9" * 400], "smooth is inf"),
    (["--scale", "page"], "argument --scale: invalid choice"),
    (["--format", "avi"], "argument --format: invalid choice"),
    (["--colormap", "jet"], "colormap is 'jet'; expected red_to_green or"),
    (["--frames", "0"], "frames is .*; expected the numbers of tokens: tokens are numbered from 1"),
    (["--frames", "x" * 10**6], "frames is .*; expected the numbers of tokens"),
    (["--model_kwargs", "[1]"], "is no JSON object"),
    (["--model_kwargs", "[" * 100_000], "is no JSON object"),
    (["--processor_kwargs", "{"], "is no JSON object"),
    (
        ["--processor_kwargs", '{"max_pixel": 9}'],
        "processor_kwargs: max_pixel is no keyword .*; did you mean max_pixels",
    ),
    (["--processor_kwargs", '{"do_resiz\\u001b": 9}'], r"do_resiz\\x1b is no keyword .*; did you mean do_resize"),
    (["--model_path", "nowhere/at/all"], "model_path nowhere/at/all is no directory"),
    (["--model_path", "./nowhere"], "model_path ./nowhere is no directory; give a directory with a checkpoint"),
    (["--model_path", "{world}/modle"], "is no directory; did you mean .*/model"),
    (["--model_path", "{world}/data.json"], "is a file, no directory"),
    (["--model_path", ""], "--model_path is required"),
    (["--model_path", "~/nowhere"], "is no directory"),
    (["--model_path", "no-such/model-at-all"], "AutoConfig cannot load it"),
    (["--model_path", "a\0b"], "."),
    (["--model_path", "{world}/text_model"], "'gpt2' names no image_token_id"),
    (["--model_path", "{world}/own_code"], "comes with Python code of its own, which could do whatever you can do"),
    (["--model_path", "{world}/cut_config"], "AutoConfig cannot load it"),
    (["--model_path", "{world}/deep_config"], "AutoConfig cannot load it"),
    (["--model_path", "{world}/text_template"], "chat template leaves pictures out: it is made for text"),
    (["--model_path", "{world}/repr_template"], "chat template leaves pictures out: it is made for text"),
    (["--model_path", "{world}/adding_template"], "chat template cannot be used: can only concatenate str"),
    (["--model_path", "{world}/silent_template"], "chat template leaves the problem out"),
    (["--model_path", "{world}/broken_template"], "chat template cannot be used: .*; mend it"),
    (["--model_path", "{world}/raising_template"], "chat template cannot be used: No pictures; mend it"),
    (["--model_path", "{world}/endless_template"], "chat template cannot be used: .*Range too big"),
    (["--model_path", "{world}/no_template"], "Qwen2VLProcessor has no chat template; add chat_template.jinja"),
    (["--device_map", "meta"], "device_map names meta, a device without weights; give auto, cpu or cuda:0"),
    (["--dtype", "float99"], "dtype is 'float99'"),
    (["--dtype", "nn"], "dtype is 'nn'"),
    (["--tp_plan", "auto"], "shares the model between processes, and there is one"),
    (["--font_path", "none.ttf"], "font_path none.ttf cannot be used"),
    (["--font_path", "{world}/images/broken.png"], "cannot be used: unknown file format"),
    (["--font_path", "{world}/images/pipe"], "cannot be used: a folder, a device or a pipe"),
    (["--font_path", "{world}/images"], "cannot be used: a folder, a device or a pipe"),
    (["--font_path", "/dev/zero"], "cannot be used: a folder, a device or a pipe"),
    (["--output_dir", "/dev/null/x"], "output_dir '/dev/null/x' cannot be written to"),
    (["--output_dir", "{world}/images/ring.png"], "cannot be written to"),
    (["--output_dir", "{world}/images/ring.png/below"], "cannot be written to"),
    (["--output_dir", "{world}/data.json"], "cannot be written to"),
    (["--output_dir", "x" * 300], "cannot be written to .*too long"),
    (["--output_dir", "a\0b"], "cannot be written to .*null"),
    (["--output_dir", "{world}/occupied", "--layer_idx", "1"], f"{VIDEO} is a folder; give the name of a file"),
    (["--output_dir", "{world}/occupied", "--sample_idx", "0-1"], "samples.csv is a folder; give the name of a file"),
    (["--save_record", "{world}"], "is a folder; give the name of a file"),
    (["--save_record", "{world}/images/pipe"], "is a device or a pipe"),
    (["--save_record", "/dev/null"], "is a device or a pipe|cannot be written to"),
    (["--save_record", "/dev/null/run.safetensors"], "cannot be written to"),
    (["--save_record", "{world}/data.json"], "is read by this run and must not be overwritten"),
    (["--save_record", "{world}/images/../data.json"], "is read by this run and must not be overwritten"),
    (["--save_record", "{world}/images/a.png"], "is there and no attention record, and is not overwritten"),
    (["--save_record", "{model}/model.safetensors"], "is there and no attention record, and is not overwritten"),
    (["--save_record", "run.npz"], "records are safetensors files; give a name such as run.safetensors"),
    (["--sample_idx", "7"], r"sample_idx 7 is out of range: .* has 2 samples \(0..1\)"),
    (["--sample_idx", "-1"], "sample_idx -1 is out of range"),
    (["--sample_idx", "0-9"], "sample_idx 0-9 is out of range"),
    (["--sample_idx", "1-0"], "cannot be read; expected a number, a range such as 0-99"),
    (["--sample_idx", "0,,1"], "cannot be read"),
    (["--sample_idx", "some"], "cannot be read"),
    (["--sample_idx", "9" * 5000], "cannot be read"),
    (["--sample_idx", "all", "--response", "x"], "response is the answer to one sample; give response_key"),
    (["--sample_idx", "all", "--save_record", "a/b.safetensors"], "is no name for each sample's folder"),
    (["--sample_idx", "all", "--image_dir", "nowhere"], "is no directory"),
    (["--image_dir", "nowhere"], "image_dir nowhere is no directory"),
    (["--image_dir", "{world}/data.json"], "is no directory"),
    (["--max_image_num", "0"], "has 1 picture, more than max_image_num=0"),
    (["--max_new_tokens", "0"], "max_new_tokens is 0; expected 1 or more"),
    (["--max_new_tokens", "9" * 400], "max_new_tokens is 9+; expected a whole number below"),
    (["--max_pixels", "0"], "max_pixels is 0; expected 1 or more"),
    (["--do_sample", "--temperature", "0"], "temperature is 0.0"),
    (["--do_sample", "--temperature", "inf"], "temperature is inf"),
    (["--do_sample", "--top_p", "2"], "top_p 2.0"),
    (["--do_sample", "--seed", "-1"], "seed -1"),
    (["--prompt_template", "no place"], "has no {Question}; put it where the problem goes"),
    (["--response", ""], "the given response is ''"),
    (["--response", "a", "--response_key", "b"], "give one of them"),
    (["--response_key", "none"], "'none' is no key of the sample"),
    (["--benchmark_json", "{world}/images"], "is a folder; give a JSON list"),
    (["--benchmark_json", "{world}/images/pipe"], "is empty; expected a JSON list"),
    (["--benchmark_json", "/dev/zero"], "cannot be read: it is a device"),
    (["--benchmark_json", "{world}/images/ring.png"], "cannot be read: Too many levels of symbolic links"),
    (["--from_record", "x.safetensors"], "--model_path does not go with --from_record"),
]
GOOD = {"image": "a.png", "problem": PROBLEM}
DATASETS = [  # the dataset's text or its samples, expected line
    ("", "is empty; expected a JSON list"),
    (" \n", "is empty; expected a JSON list"),
    ("{not json", "is not JSON"),
    (b"\xff\xfe\x00", "is not UTF-8 text"),
    ("[" * 100_000, "is not JSON: maximum recursion depth exceeded|is not JSON: .*too deep"),
    ('{"a":' * 100_000, "is not JSON: maximum recursion depth exceeded|is not JSON: .*too deep"),
    ("[" + "9" * 5000 + "]", "is not JSON: Exceeds the limit"),
    ('{"a": 1}', "holds a dict; expected a JSON list"),
    ('{"a": 1}\n{"b": ', "is not JSON: .*: line 2 column 7"),
    ('{"a": 1}\n{"b": 2}', "has no key 'image'"),
    ("3", "holds a int; expected a JSON list"),
    ("null", "holds a NoneType; expected a JSON list"),
    ("[]", "is an empty list"),
    ("[] []", "holds a list and more"),
    (["text"], "is a str; expected an object"),
    ([[GOOD]], "is a list; expected an object"),
    ([{"problem": "p"}], "has no key 'image'"),
    ([{"\x1b" * 10**6: "p"}], r"has no key 'image'; it has \['\\\\*x1b"),
    ([{"image": "a.png"}], "has no key 'problem'"),
    ([{**GOOD, "problem": " "}], "expected a text that is not empty"),
    ([{**GOOD, "problem": 3}], "the problem of sample 0"),
    ([{**GOOD, "problem": ["x" * 10**6]}], "the problem of sample 0"),
    ([{**GOOD, "image": [3]}], "expected a path or a list of paths"),
    ([{**GOOD, "image": []}], "expected a path or a list of paths"),
    ([{**GOOD, "image": ""}], "expected a path or a list of paths"),
    ([{**GOOD, "image": {"path": "a.png"}}], "expected a path or a list of paths"),
    ([{**GOOD, "image": ["a.png"] * 3}], "has 3 pictures, more than max_image_num=2"),
    ([{**GOOD, "image": "/etc/hostname"}], "outside image_dir .*: /etc/hostname; .*--allow_absolute_paths"),
    ([{**GOOD, "image": "../data.json"}], "names a picture outside image_dir"),
    ([{**GOOD, "image": "link.png"}], "names a picture outside image_dir .*: link.png"),
    ([{**GOOD, "image": "none.png"}], "names a picture that does not exist"),
    ([{**GOOD, "image": "\x1b[31m\u202eevil\n.png"}], r"does not exist: .*\\x1b\[31m\\u202eevil .png; check"),
    ([{**GOOD, "image": "nul\0.png"}], "has a picture that cannot be read: .*null"),
    ([{**GOOD, "image": "lone\ud800.png"}], r"has a picture that cannot be read: .*lone\\ud800.png"),
    ([{**GOOD, "image": "x" * 1000}], "has a picture that cannot be read: .*too long"),
    ([{**GOOD, "image": "x" * 5_000_000}], "has a picture that cannot be read: "),
    ([{**GOOD, "image": "ring.png"}], "has a picture that cannot be read"),
    ([{**GOOD, "image": "folder"}], "names a folder where a picture is expected"),
    ([{**GOOD, "image": "pipe"}], "cannot be read: .*a device or a pipe"),
    ([{**GOOD, "image": "broken.png"}], "has a picture that cannot be read"),
    ([{**GOOD, "image": "cut.png"}], "has a picture that cannot be read"),
    ([{**GOOD, "image": "nan.tiff"}], "cannot be read: .*no pixel of the picture is a number from 0 up"),
    ([{**GOOD, "image": "bomb.png"}], r"too large: .*limit of .* pixels.*it may be made to fill the memory: shrink it"),
    ([{**GOOD, "image": "program.eps"}], "a program, which Ghostscript would have to run"),
]
FILES = [  # a file that is no record, expected line
    (None, "cannot be read: No such file or directory.*; give a file that --save_record"),
    (b"", "is no attention record"),
    (b"text", "is no attention record"),
    (b"PK\x05\x06" + bytes(18), "is no attention record"),
    (struct.pack("<Q", 2) + b"{}", "is no attention record: its format is None"),
    (struct.pack("<Q", 2**63) + b"{}", "is no attention record"),
    (bytes(2**20), "is no attention record"),
    ("folder", "is no attention record: it is a folder, a device or a pipe"),
    ("pipe", "is no attention record: it is a folder, a device or a pipe"),
    ("device", "is no attention record: it is a folder, a device or a pipe"),
    ("ring", "cannot be read: .*; give a file that --save_record"),
]
TEMPLATES = {
    "text_template": "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    "repr_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "adding_template": "{% for m in messages %}{{ 'user: ' + m.content }}{% endfor %}",
    "silent_template": "{% for m in messages %}{% for p in m.content %}<|image_pad|>{% endfor %}{% endfor %}",
    "broken_template": "{% for m in messages %}",
    "raising_template": "{{ raise_exception('No pictures') }}",
    "endless_template": "{% for n in range(10**12) %}x{% endfor %}",
}


def bomb_png(side):
    """A tiny PNG that says it has side × side pixels."""
    chunk = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", chunk), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_checkpoint):
    """A folder with pictures good and bad, a dataset, and checkpoints that are none."""
    world, model = tmp_path_factory.mktemp("world"), tiny_checkpoint("qwen2_vl")
    (world / "model").symlink_to(model)
    images = world / "images"
    images.mkdir()
    picture((120, 90), "orange").save(images / "a.png")
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:90])
    (images / "broken.png").write_bytes(b"\x89PNG nothing")
    (images / "bomb.png").write_bytes(bomb_png(20_000))
    (images / "program.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    from PIL import Image

    Image.fromarray(np.full((4, 5), np.nan, np.float32)).save(images / "nan.tiff")
    picture().save(world / "outside.png")
    (images / "link.png").symlink_to(world / "outside.png")
    (images / "ring.png").symlink_to(images / "ring.png")
    (images / "folder").mkdir()
    os.mkfifo(images / "pipe")
    (world / "data.json").write_text(json.dumps([GOOD, GOOD]))
    for name in (VIDEO, "samples.csv"):
        (world / "occupied" / name).mkdir(parents=True)
    configs = {
        "text_model": '{"model_type": "gpt2"}',
        "own_code": '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}',
        "cut_config": '{"model_type": "qwen2_vl",',
        "deep_config": '{"a":' * 100_000,
    }
    for name, config in configs.items():
        (world / name).mkdir()
        (world / name / "config.json").write_text(config)
    (world / "own_code" / "evil.py").write_text(f"open({str(world / 'evil_ran')!r}, 'w')\n")
    for name, template in {**TEMPLATES, "no_template": None}.items():
        (world / name).mkdir()
        for file in model.iterdir():
            if file.name != "chat_template.jinja" and file.suffix != ".safetensors":
                (world / name / file.name).symlink_to(file)
        if template:
            (world / name / "chat_template.jinja").write_text(template)
    return world


def base_flags(world):
    return {"--model_path": world / "model", "--benchmark_json": world / "data.json", "--image_dir": world / "images"}


def run_main(arguments):
    """The exit code of `main`, also where the parser ends it."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


def assert_one_line(capfd, code, expected, tmp_path, before=()):
    out, error = capfd.readouterr()
    lines = [line for line in error.splitlines() if not line.startswith("[transformers]")]
    assert code == 2 and out == "" and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and re.search(expected, lines[0]), lines[0]
    assert lines[0] == visible(lines[0]) and len(lines[0]) < 2600
    assert "mistake of this program" not in lines[0], lines[0]
    assert sorted(tmp_path.iterdir()) == sorted(before)


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(AttentionVisualizer, "model", property(lambda self: pytest.fail("the weights were loaded")))


@pytest.mark.parametrize(
    "flags, expected",
    FLAGS,
    ids=lambda value: "_".join(value)[:60].replace("\0", "0") if isinstance(value, list) else "",
)
def test_a_bad_flag_is_one_line_before_the_weights(world, tmp_path, capfd, no_weights, flags, expected):
    given = {**base_flags(world)}
    model = (world / "model").resolve()
    flags = [flag.replace("{world}", str(world)).replace("{model}", str(model)) for flag in flags]
    for name in set(flags) & given.keys():
        del given[name]
    started = time.perf_counter()
    code = run_main([*(part for pair in given.items() for part in pair), *flags])
    assert_one_line(capfd, code, expected, tmp_path)
    assert not (world / "evil_ran").exists(), "the checkpoint's own code ran"
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize("samples, expected", DATASETS, ids=range(len(DATASETS)))
def test_a_bad_dataset_is_one_line_before_the_weights(world, tmp_path, capfd, no_weights, samples, expected):
    data = tmp_path / "d.json"
    data.write_bytes(samples if isinstance(samples, bytes) else (
        samples if isinstance(samples, str) else json.dumps(samples)).encode())  # fmt: skip
    flags = {**base_flags(world), "--benchmark_json": data}
    code = run_main([part for pair in flags.items() for part in pair])
    assert_one_line(capfd, code, expected, tmp_path, [data])


@pytest.mark.parametrize("content, expected", FILES, ids=range(len(FILES)))
def test_a_file_that_is_no_record_is_one_line(tmp_path, capfd, content, expected):
    path = tmp_path / "run.safetensors"
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"),
            "ring": lambda: path.symlink_to(path), None: lambda: None}  # fmt: skip
    make[content]() if not isinstance(content, bytes) else path.write_bytes(content)
    code = run_main(["--from_record", path, "--output_dir", tmp_path])
    assert_one_line(capfd, code, expected, tmp_path, [path] if content is not None else [])


def test_there_are_many_bad_inputs():
    assert len(FLAGS) + len(DATASETS) + len(FILES) >= 150


def test_a_picture_too_thin_for_the_processor_is_one_line(world, tmp_path, capfd):
    picture((1, 900)).save(world / "images" / "thin.png")
    flags = {**base_flags(world), "--image": world / "images" / "thin.png", "--problem": "go"}
    del flags["--benchmark_json"], flags["--image_dir"]
    code = run_main([part for pair in flags.items() for part in pair])
    assert_one_line(capfd, code, "cannot take the problem and its 1 picture.*check the pictures' sizes", tmp_path)


def test_a_name_on_the_hub_is_not_asked_for_while_it_is_a_typo_of_a_folder(tmp_path, capfd, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *a, **k: pytest.fail("the hub was asked"))
    (tmp_path / "demo" / "model").mkdir(parents=True)
    code = run_main(["--model_path", "demo/modell", "--image", "a.png", "--problem", "x"])
    error = capfd.readouterr().err
    assert code == 2 and "names a picture that does not exist" in error
    picture().save(tmp_path / "a.png")
    code = run_main(["--model_path", "demo/modell", "--image", "a.png", "--problem", "x"])
    assert_one_line(capfd, code, "model_path demo/modell is no directory; did you mean demo/model", tmp_path,
                    [tmp_path / "demo", tmp_path / "a.png"])  # fmt: skip


# --- models and tokenizers that do not fit


@pytest.fixture
def own(tiny_checkpoint):
    """A visualizer whose model and processor a test may spoil."""
    return AttentionVisualizer(str(tiny_checkpoint("qwen2_vl")))


def test_a_token_beyond_the_vocabulary_is_one_line(own, monkeypatch):
    processor = own.processor

    def shifted(*arguments, **options):
        inputs = type(processor).__call__(processor, *arguments, **options)
        inputs["input_ids"][0, 0] = 10**6
        return inputs

    monkeypatch.setattr("attention_heatmap.recording.session.build_inputs", lambda p, q, i, t: shifted(
        text=[p.apply_chat_template([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q}]}])],
        images=[i], return_tensors="pt"))  # fmt: skip
    with pytest.raises(
        ValueError, match=r"the tokenizer gives ids up to 1000000, the model has .* tokens; give the token"
    ):
        own.record({"problem": "go"}, [picture((60, 60))], [1], response="ok")


@pytest.mark.parametrize("ids", [-1, 10**6, [258, None], [], None, [-1, 10**9]])
def test_odd_ids_of_the_end_of_a_sequence_are_answered_or_told(own, ids):
    own.model.generation_config.eos_token_id = ids
    own.model.config.get_text_config().eos_token_id = None
    try:
        record = own.record({"problem": "go"}, [picture((60, 60))], [1], max_new_tokens=2)
    except (ValueError, RuntimeError, OSError) as error:
        assert "\n" not in str(error)
    else:
        assert 1 <= record.response_length <= 2


@pytest.mark.parametrize("ids", [-1, 10**6, None])
def test_odd_ids_of_padding_change_nothing(own, ids):
    expected = own.record({"problem": "go"}, [picture((60, 60))], [1], max_new_tokens=2).response
    own.model.generation_config.pad_token_id = ids
    assert own.record({"problem": "go"}, [picture((60, 60))], [1], max_new_tokens=2).response == expected


def test_a_sample_of_hostile_text_is_answered(tiny):
    sample = {"problem": "go " + "".join(HOSTILE.values()), "pred": "\ud800 \x1b[31m \u202e"}
    record = tiny.record(sample, [picture((60, 60))], [1], response_key="pred")
    assert record.response == "\ufffd \x1b[31m \u202e" and np.isfinite(record.weights).all()


def test_a_failure_after_the_answer_loses_no_record_of_before(world, tmp_path, capfd, monkeypatch):
    def broken(*arguments, **options):
        raise IndexError("no paint")

    monkeypatch.setattr("visualizeHeatMap.write_records", broken)
    (tmp_path / "record.safetensors").write_text("of somebody")
    flags = [*(part for pair in base_flags(world).items() for part in pair), "--response", "ok", "--layer_idx", "1"]
    assert run_main([*flags, "--output_dir", tmp_path]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    kept = tmp_path / "record_1.safetensors"
    assert error.startswith(f"error: IndexError: no paint; the record is kept in {kept} (a mistake of this program")
    assert (tmp_path / "record.safetensors").read_text() == "of somebody"
    monkeypatch.undo()
    assert run_main(["--from_record", kept, "--frame_size", "640x360", "--output_dir", tmp_path / "again"]) == 0


# --- faults of the machine


@pytest.fixture
def kept(tmp_path):
    """The command that draws a kept record of two layers, which takes some seconds."""
    record = replace(make_record(["Based"], [" word"] * 60), pictures=(picture_file(picture()),))
    (tmp_path / "kept").mkdir()
    record.save(tmp_path / "kept" / "run.safetensors")
    flags = ["--from_record", str(tmp_path / "kept" / "run.safetensors"), "--frame_size", "640x360", "--layer_idx"]
    return [*SCRIPT, *flags, "0", "1", "--start_phrase", "Based", "--output_dir", str(tmp_path / "out")]


def whole_videos(folder):
    """The names in a folder, after a look that each is a whole video."""
    from imageio_ffmpeg import count_frames_and_secs

    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    assert all(count_frames_and_secs(str(folder / name))[0] == 60 for name in names)
    return names


def begun(process, folder):
    """Wait until a process writes its first video."""
    while not (left := list(folder.glob(".*.partial*"))) and process.poll() is None:
        time.sleep(0.01)
    return left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_is_one_line_and_leaves_whole_files_only(kept, tmp_path, number):
    process = subprocess.Popen(kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun(process, tmp_path / "out")
    time.sleep(random.uniform(0, 0.5))
    for _ in range(3):  # three are as one
        process.send_signal(number)
        time.sleep(0.005)
    _, error = process.communicate(timeout=60)
    if process.returncode and len(list((tmp_path / "out").iterdir())) < 2:  # else all was done already
        assert process.returncode == 128 + number and error.count("\n") == 1
        assert error.startswith(f"error: stopped by {number.name}; no file is half-written")
    whole_videos(tmp_path / "out")


@pytest.mark.parametrize("format", ["mp4", "gif"])
def test_a_killed_process_leaves_hidden_files_only_and_the_next_one_removes_them(kept, tmp_path, format):
    kept = [*kept, "--format", format]
    process = subprocess.Popen(kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    left = begun(process, tmp_path / "out")
    process.kill()
    process.wait()
    time.sleep(0.5)  # the encoder ends by itself, since its input has
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert left[0].name in names and all(name.startswith(".") and ".partial" in name for name in names)
    kept = [*kept[: kept.index("0")], *kept[kept.index("1") :]]  # one layer will do
    assert subprocess.run(kept, capture_output=True).returncode == 0
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [f".{format}"]


def test_a_limit_of_the_size_of_files_is_one_line(kept, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))  # noqa: E731
    result = subprocess.run(kept, preexec_fn=limit, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize("size", ["100k", "150k"])
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
