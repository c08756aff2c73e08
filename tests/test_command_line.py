import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, picture
from tiny_models import qwen_checkpoint

import visualizeHeatMap as vhm


@pytest.fixture(scope="module")
def run_files(tmp_path_factory):
    """(checkpoint, dataset, pictures) as a user has them."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint = qwen_checkpoint("qwen2_vl", folder / "model")
    (folder / "images").mkdir()
    picture((150, 90), "orange").save(folder / "images" / "a.png")
    sample = {"id": 0, "image": ["a.png"], "problem": "Based on the following requirements 走。", "pred": "ok then"}
    (folder / "data.json").write_text(json.dumps([sample, {**sample, "image": ["none.png"]}]), "utf-8")
    return checkpoint, folder / "data.json", folder / "images"


def command(run_files, *flags, **replaced):
    names = ("model_path", "benchmark_json", "image_dir")
    paths = {**dict(zip(names, run_files)), **replaced}
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))] + [str(flag) for flag in flags]


def test_the_command_makes_what_the_class_makes(run_files, tmp_path, capsys):
    flags = ("--layer_idx", 1, "--max_new_tokens", 4, "--frame_size", "640x360", "--output_dir", tmp_path / "cli")
    assert vhm.main(command(run_files, *flags)) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == str(tmp_path / "cli" / "combined_attention_visualization_layer1.mp4")
    visualizer = vhm.AttentionVisualizer(str(run_files[0]))
    sample, images = visualizer.load_sample_data(*run_files[1:])
    path = visualizer.create_attention_visualization_for_sample(
        sample, images, 1, max_new_tokens=4, frame_size=SMALL, output_dir=tmp_path / "class"
    )
    with open(printed, "rb") as cli, open(path, "rb") as api:
        assert cli.read() == api.read()


def test_several_layers_print_a_path_each(run_files, capsys):
    assert vhm.main(command(run_files, "--layer_idx", 0, -1, "--response_key", "pred", "--frame_size", "640x360")) == 0
    assert capsys.readouterr().out.split() == [f"combined_attention_visualization_layer{n}.mp4" for n in (0, 2)]


def test_every_flag_is_a_keyword_of_the_class_with_its_default_and_the_other_way_round():
    flags = {
        action.dest: action.default
        for action in vhm.build_parser()._actions
        if action.dest not in ("help", "verbose", "from_record")
    }
    keywords = {}
    visualizer = vhm.AttentionVisualizer
    for function in (
        visualizer.__init__,
        visualizer.visualize_dataset,
        visualizer.load_sample_data,
        vhm.RecordingOptions,
        visualizer.create_attention_visualization_for_sample,
        vhm.DrawingOptions,
    ):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                keywords[parameter.name] = parameter.default
    keywords["model_path"] = keywords.pop("model_name_or_path")
    for python_only in ("self", "sample", "images"):
        del keywords[python_only]
    assert flags.keys() == keywords.keys()
    for name, default in keywords.items():
        expected = [default] if name == "layer_idx" else default
        assert flags[name] == (None if default is inspect.Parameter.empty else expected), name


@pytest.mark.parametrize(
    "flags, replaced, message",
    [
        ((), {"benchmark_json": "nowhere.json"}, "does not exist"),
        ((), {"image_dir": "nowhere"}, "is no directory"),
        ((), {"model_path": "./nowhere"}, "AutoConfig cannot load it"),
        (("--sample_idx", 7), {}, "sample_idx 7 is out of range"),
        (("--sample_idx", -1), {}, "sample_idx -1 is out of range"),
        (("--sample_idx", 1), {}, "names a picture that does not exist"),
        (("--save_record", "/dev/null/run.npz"), {}, "cannot be written to"),
        (("--layer_idx", 3), {}, "layer_idx 3 is out of range: the model has 3 layers"),
        (("--output_dir", "/dev/null/x"), {}, "cannot be written to"),
        (("--fps", 0), {}, "fps is 0"),
        (("--response_key", "none"), {}, "is no key of the sample"),
        (("--max_image_num", 0), {}, "has 1 pictures, more than max_image_num=0"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_before_the_weights_and_nothing_written(
    run_files, tmp_path, capfd, monkeypatch, flags, replaced, message
):
    monkeypatch.setattr(vhm.AttentionVisualizer, "model", property(lambda self: pytest.fail("the weights were loaded")))
    assert vhm.main(command(run_files, *flags, **replaced)) == 2
    out, error = capfd.readouterr()
    lines = [line for line in error.splitlines() if not line.startswith("[transformers]")]
    assert out == "" and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_kept_record_is_drawn_again_without_model_and_torch(run_files, tmp_path, capsys):
    flags = ["--layer_idx", 0, 2, "--response_key", "pred", "--frame_size", "640x360"]
    assert vhm.main(command(run_files, *flags, "--output_dir", tmp_path / "a", "--save_record", "run.npz")) == 0
    first = capsys.readouterr().out.split()
    again = ["--frame_size", "640x360", "--from_record", "run.npz", "--output_dir", str(tmp_path / "b")]
    dataset = ["--benchmark_json", str(run_files[1]), "--image_dir", str(run_files[2])]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import visualizeHeatMap as vhm; "
        "status = vhm.main(sys.argv[1:]); sys.exit(status or 3 * ('torch' in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code, *dataset, *again], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for old, new in zip(first, result.stdout.split(), strict=True):
        with open(old, "rb") as old_file, open(new, "rb") as new_file:
            assert old_file.read() == new_file.read()
    assert vhm.main([*dataset, *again, "--layer_idx", "1"]) == 2
    assert "layer 1 was not recorded; the record holds [0, 2]" in capsys.readouterr().err


def test_a_kept_record_needs_no_dataset_and_gives_stills_and_a_summary(run_files, capsys, caplog):
    flags = ["--layer_idx", 0, "--response_key", "pred", "--frame_size", "640x360"]
    assert vhm.main(command(run_files, *flags, "--output_dir", "a", "--save_record", "run.npz")) == 0
    more = ["--frames", "0", "-1", "--summary", "--frame_size", "640x360"]
    assert vhm.main(["--from_record", "run.npz", "--output_dir", "b", *more]) == 0
    for path in capsys.readouterr().out.split():
        assert Path("a", Path(path).name).read_bytes() == Path("b", Path(path).name).read_bytes()
    last = vhm.AttentionRecord.load("run.npz").response_length - 1
    stem = "combined_attention_visualization_layer0"
    assert sorted(path.name for path in Path("b").iterdir()) == sorted(
        [f"{stem}.mp4", f"{stem}_step0.png", f"{stem}_step{last}.png", f"{stem}_summary.png"]
    )
    assert vhm.main(["--from_record", "run.npz", "--output_dir", "c", "--frames", "99"]) == 0
    assert f"not all of the frames [99] are there, but those of steps 0..{last}" in caplog.text
    assert [path.name for path in Path("c").iterdir()] == [f"{stem}.mp4"]


@pytest.mark.parametrize("name", ["benchmark_json", "image_dir"])
def test_a_dataset_is_required_whole(run_files, name, capsys):
    for source in (["--model_path", "m"], ["--from_record", "run.npz"]):
        with pytest.raises(SystemExit):
            vhm.main([*source, f"--{name}", "x"])
        other = ({"benchmark_json", "image_dir"} - {name}).pop()
        assert f"--{other} is required" in capsys.readouterr().err


@pytest.fixture
def kept(run_files, tmp_path):
    """A record kept by the command line."""
    flags = ["--layer_idx", 0, 2, "--response_key", "pred", "--frame_size", "640x360", "--output_dir", tmp_path / "a"]
    assert vhm.main(command(run_files, *flags, "--save_record", tmp_path / "run.npz")) == 0
    return str(tmp_path / "run.npz")


@pytest.mark.parametrize(
    "flags",
    [
        ("--head", "max"),
        ("--response", "x"),
        ("--save_record", "z.npz"),
        ("--model_path", "m"),
        ("--fast",),
        ("--check",),
        ("--neutral_prompt", "x"),
    ],
)
def test_a_flag_that_a_kept_record_cannot_follow_is_refused(kept, flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        vhm.main(["--from_record", kept, *flags])
    assert exit_.value.code == 2 and f"{flags[0]} does not go with --from_record" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--sample_idx", "3"), ("--max_image_num", "1"), ("--allow_absolute_paths",)])
def test_a_flag_of_a_dataset_is_refused_where_there_is_none(kept, flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        vhm.main(["--from_record", kept, *flags])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.startswith(
        f"error: {flags[0]} tells of a dataset, and none was given; leave"
    )


@pytest.mark.parametrize(
    "flags, line",
    [
        (
            ["--temperature", "0.1", "--seed", "3"],
            "without do_sample nothing comes of temperature, seed; add it, or leave that out",
        ),
        (
            ["--overwrite"],
            "overwrite changes nothing for one sample, whose files are always written anew; leave it out",
        ),
        (["--fast"], "fast changes nothing: it does not pay on cpu for 3 tokens at most"),
    ],
)
def test_a_flag_that_changes_nothing_is_told_in_one_line(run_files, caplog, flags, line):
    vhm.warn_once.cache_clear()
    with caplog.at_level(vhm.NOTE):
        flags = ["--layer_idx", 1, "--max_new_tokens", 3, "--frame_size", "640x360", *flags]
        assert vhm.main(command(run_files, *flags)) == 0
    assert sum(message.startswith(line) for message in caplog.messages) == 1


def test_auto_is_refused_where_a_kept_record_was_made_without(kept, capsys):
    assert vhm.main(["--from_record", kept, "--layer_idx", "auto"]) == 2
    error = capsys.readouterr().err
    assert error == "error: layer_idx auto: the record's layers [0, 2] were named; name one of them\n"


def test_the_clear_view_of_a_kept_record_says_which_layers_and_head_it_keeps(kept, caplog):
    with caplog.at_level(vhm.NOTE):
        assert vhm.main(["--from_record", kept, "--view", "clear", "--frame_size", "640x360"]) == 0
    assert caplog.messages == ["view clear: layers [0, 2], head mean as recorded; auto chooses while recording only"]


def test_a_record_that_is_not_there_is_one_line(capsys):
    assert vhm.main(["--from_record", "none.npz"]) == 2
    expected = "error: the record none.npz cannot be read: No such file or directory; give a file that --save_record"
    assert capsys.readouterr().err.startswith(expected)


def test_a_kept_record_is_not_drawn_on_other_pictures(kept, run_files, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    picture((150, 90), "navy").save(tmp_path / "images" / "a.png")
    flags = ["--from_record", kept, "--benchmark_json", str(run_files[1]), "--image_dir", str(tmp_path / "images")]
    assert vhm.main(flags) == 2
    assert "picture 1 of the sample is not the record's" in capsys.readouterr().err


def test_a_model_or_a_record_is_required(run_files, capsys):
    with pytest.raises(SystemExit) as exit_:
        vhm.main(command(run_files)[2:])
    assert exit_.value.code == 2 and "--model_path is required" in capsys.readouterr().err


def test_a_process_that_shares_the_model_tells_its_own_error_after_the_first_ones(run_files, monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "TQDM_DISABLE": "", "TRANSFORMERS_VERBOSITY": ""}.items():
        monkeypatch.setenv(name, value)
    waits = []
    monkeypatch.setattr(vhm.time, "sleep", waits.append)
    assert vhm.main(command(run_files, "--tp_plan", "auto", "--layer_idx", 9)) == 2
    assert waits == [vhm.LATER_PROCESS_WAITS]
    assert capsys.readouterr().err.startswith("error: process 1: layer_idx 9 is out of range")


@pytest.mark.parametrize("flags", [("--frame_size", "big"), ("--head", "some"), ("--layer_idx", "x"), ("--no_flag",)])
def test_a_flag_that_cannot_be_read_is_refused_by_the_parser(run_files, flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        vhm.main(command(run_files, *flags))
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["--model_path", "m", "--benchmark_json", "n", "--image_dir", "i"]]
)
def test_help_and_bad_arguments_import_no_torch(arguments):
    code = (
        "import sys, visualizeHeatMap as vhm\n"
        "try: vhm.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_the_script_itself_exits_with_2_and_one_line(run_files):
    script = [sys.executable, str(ROOT / "visualizeHeatMap.py"), *command(run_files, "--sample_idx", 99)]
    result = subprocess.run(script, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1


def test_choices_and_maps_by_flags(run_files, capsys, caplog):
    flags = ["--response_key", "pred", "--frame_size", "640x360", "--save_record", "run.npz"]
    assert vhm.main(command(run_files, "--layer_idx", "auto", "--head", 0, 2, "--baseline", "neutral", *flags)) == 0
    record = vhm.AttentionRecord.load("run.npz")
    assert record.auto_layer and record.head == (0, 2) and record.neutral is not None
    assert capsys.readouterr().out.strip() == f"combined_attention_visualization_layer{record.layers[0]}.mp4"
    redrawn = ["--from_record", "run.npz", "--frame_size", "640x360", "--output_dir", "b"]
    for more in (["--view", "clear"], ["--layer_idx", "auto"], ["--baseline", "relative", "--smooth", "1"]):
        assert vhm.main([*redrawn, *more]) == 0
    assert vhm.main(command(run_files, "--head", 1, *flags)) == 0
    assert vhm.AttentionRecord.load("run.npz").head == 1
    assert vhm.main([*redrawn, "--baseline", "neutral"]) == 2
    assert "needs a record made with neutral_prompt" in capsys.readouterr().err
    assert vhm.main(command(run_files, "--layer_idx", "auto", 1)) == 2
    assert "expected numbers, or auto alone" in capsys.readouterr().err


def test_a_checks_verdict_is_one_line_on_stderr_and_stays_in_the_record(run_files):
    flags = [
        "--layer_idx",
        1,
        "--response_key",
        "pred",
        "--frame_size",
        "640x360",
        "--save_record",
        "run.npz",
        "--check",
    ]
    script = [sys.executable, str(ROOT / "visualizeHeatMap.py"), *command(run_files, *flags)]
    result = subprocess.run(script, capture_output=True, text=True)
    lines = [
        line for line in result.stderr.splitlines() if line.startswith("NOTE: check of layer 1: hiding the hottest")
    ]
    assert result.returncode == 0 and len(lines) == 1 and len(result.stdout.splitlines()) == 1
    assert lines[0].endswith(str(vhm.AttentionRecord.load("run.npz").checks[0]))


def test_several_samples_take_auto_and_the_clear_view_as_one_does(run_files):
    flags = ["--sample_idx", "0,0-0", "--frame_size", "640x360", "--max_new_tokens", 3, "--save_record", "run.npz"]
    for view, folder in ((["--layer_idx", "auto"], "a"), (["--view", "clear"], "b")):
        assert vhm.main(command(run_files, *flags, *view, "--output_dir", folder)) == 0
        assert vhm.AttentionRecord.load(f"{folder}/sample_0000/run.npz").auto_layer is True
