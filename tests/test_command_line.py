"""The command line: what it makes is what the class makes; flags that do not go together are told in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from records import SMALL, picture

import visualizeHeatMap as door
from attention_heatmap.log import NOTE, warn_once
from attention_heatmap.record import AttentionRecord
from visualizeHeatMap import AttentionVisualizer, main

SCRIPT = [sys.executable, str(ROOT / "visualizeHeatMap.py")]
QUICK = ["--frame_size", "640x360", "--response_key", "pred"]
RECORD = "run.safetensors"


@pytest.fixture(scope="module")
def run_files(tmp_path_factory, tiny_checkpoint):
    """(checkpoint, dataset, pictures) as a user has them."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "images").mkdir()
    picture((150, 90), "orange").save(folder / "images" / "a.png")
    sample = {"id": 0, "image": ["a.png"], "problem": "Based on the following requirements 走。", "pred": "ok then"}
    (folder / "data.json").write_text(json.dumps([sample, {**sample, "image": ["none.png"]}]), "utf-8")
    return tiny_checkpoint("qwen2_vl"), folder / "data.json", folder / "images"


def command(run_files, *flags, **replaced):
    names = ("model_path", "benchmark_json", "image_dir")
    paths = {**dict(zip(names, run_files)), **replaced}
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))] + [str(flag) for flag in flags]


def refused(arguments, capsys) -> str:
    """The line of a command that the parser refuses."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1
    return error


def besides_fonts(error: str) -> list[str]:
    """The lines on stderr, without the warning of a machine whose fonts lack a sign of the dataset."""
    return [line for line in error.splitlines() if not line.startswith("WARNING: no installed font has ")]


@pytest.fixture(scope="module")
def kept(run_files, tmp_path_factory):
    """A record of layers 0 and 2 that the command line has kept, and the paths of its videos."""
    folder = tmp_path_factory.mktemp("kept")
    flags = ["--layer_idx", 0, 2, *QUICK, "--output_dir", folder / "a", "--save_record", folder / RECORD]
    assert main(command(run_files, *flags)) == 0
    return str(folder / RECORD), sorted((folder / "a").iterdir())


# --- what it makes


def test_the_command_makes_what_the_class_makes(run_files, tmp_path, capsys):
    flags = ("--layer_idx", 1, "--max_new_tokens", 4, "--frame_size", "640x360", "--output_dir", tmp_path / "cli")
    assert main(command(run_files, *flags)) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == str(tmp_path / "cli" / "combined_attention_visualization_layer1.mp4")
    visualizer = AttentionVisualizer(str(run_files[0]))
    sample, images = visualizer.load_sample_data(*run_files[1:])
    path = visualizer.create_attention_visualization_for_sample(
        sample, images, 1, max_new_tokens=4, frame_size=SMALL, output_dir=tmp_path / "class"
    )
    assert Path(printed).read_bytes() == Path(path).read_bytes()


def test_several_layers_print_a_path_each(run_files, capsys):
    assert main(command(run_files, "--layer_idx", 0, -1, *QUICK)) == 0
    assert capsys.readouterr().out.split() == [f"combined_attention_visualization_layer{n}.mp4" for n in (0, 2)]


def test_one_picture_and_one_question_need_no_dataset(run_files, tmp_path, capsys):
    image = run_files[2] / "a.png"
    flags = ["--model_path", run_files[0], "--image", image, "--problem", "Where?", "--response", "ok then"]
    flags += ["--layer_idx", 1, "--frame_size", "640x360"]
    assert main([*map(str, flags), "--output_dir", "cli"]) == 0
    visualizer = AttentionVisualizer(str(run_files[0]))
    path = visualizer.visualize(image, "Where?", 1, response="ok then", frame_size=SMALL, output_dir="class")
    assert Path(capsys.readouterr().out.strip()).read_bytes() == Path(path).read_bytes()
    many = [*map(str, flags), "--output_dir", "three"]
    many[many.index("--image") + 1 : many.index("--image") + 1] = [str(image)] * 2
    assert main(many) == 0, "as many pictures as are named"


@pytest.mark.parametrize("lines", [False, True])
def test_a_sample_of_json_lines_is_one_of_a_list(run_files, tmp_path, capsys, lines):
    samples = json.loads(run_files[1].read_text())
    text = "\n".join(map(json.dumps, samples)) if lines else json.dumps(samples)
    (tmp_path / "data.jsonl").write_text(text)
    assert main(command(run_files, "--layer_idx", 1, *QUICK, benchmark_json=tmp_path / "data.jsonl")) == 0
    assert main(command(run_files, "--sample_idx", 7, benchmark_json=tmp_path / "data.jsonl")) == 2
    assert "has 2 samples (0..1)" in capsys.readouterr().err


def test_a_dataset_may_come_by_a_pipe(run_files):
    read, write = os.pipe()
    os.write(write, run_files[1].read_bytes())
    os.close(write)
    assert main(command(run_files, "--layer_idx", 1, *QUICK, benchmark_json=f"/dev/fd/{read}")) == 0
    os.close(read)


def test_a_kept_record_is_drawn_again_without_model_and_torch(kept, run_files, tmp_path, capsys):
    path, first = kept
    again = ["--frame_size", "640x360", "--from_record", path, "--output_dir", str(tmp_path / "b")]
    dataset = ["--benchmark_json", str(run_files[1]), "--image_dir", str(run_files[2])]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import visualizeHeatMap as door; "
        "status = door.main(sys.argv[1:]); sys.exit(status or 3 * ('torch' in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code, *dataset, *again], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for old, new in zip(first, result.stdout.split(), strict=True):
        assert Path(new).name == old.name and Path(new).read_bytes() == old.read_bytes()
    assert main([*again, "--layer_idx", "1"]) == 2
    assert "layer 1 was not recorded; the record holds [0, 2]" in capsys.readouterr().err


def test_a_kept_record_gives_stills_and_a_summary(kept, caplog):
    flags = ["--from_record", kept[0], "--layer_idx", "0", "--frame_size", "640x360"]
    assert main([*flags, "--output_dir", "b", "--frames", "1", "-1", "--summary"]) == 0
    names = sorted(path.name for path in Path("b").iterdir())
    assert [Path(name).suffix for name in names] == [".mp4", ".png", ".png", ".png"]
    assert main([*flags, "--output_dir", "c", "--frames", "99"]) == 0
    assert "99" in caplog.text and [path.suffix for path in Path("c").iterdir()] == [".mp4"]


def test_choices_and_maps_by_flags(run_files, capsys):
    flags = [*QUICK, "--save_record", RECORD]
    assert main(command(run_files, "--layer_idx", "auto", "--head", "0+2", "--baseline", "neutral", *flags)) == 0
    record = AttentionRecord.load(RECORD)
    assert record.auto_layer and record.heads == ((0, 2),) and record.neutral is not None
    assert capsys.readouterr().out.strip() == f"combined_attention_visualization_layer{record.layers[0]}.mp4"
    redrawn = ["--from_record", RECORD, "--frame_size", "640x360", "--output_dir", "b"]
    for more in (["--view", "clear"], ["--layer_idx", "auto"], ["--baseline", "relative", "--smooth", "1"]):
        assert main([*redrawn, *more]) == 0
    assert main(command(run_files, "--head", 1, *flags)) == 0
    assert AttentionRecord.load(RECORD).heads == (1,)
    assert main([*redrawn, "--baseline", "neutral"]) == 2
    assert "needs a record made with neutral_prompt" in capsys.readouterr().err
    assert main(command(run_files, "--layer_idx", "auto", 1)) == 2
    assert "layer_idx is 'auto'; expected auto alone" in capsys.readouterr().err


def test_a_checks_verdict_is_one_line_and_stays_in_the_record(run_files, caplog):
    with caplog.at_level(NOTE):
        assert main(command(run_files, "--layer_idx", 1, *QUICK, "--save_record", RECORD, "--check")) == 0
    (line,) = [line for line in caplog.messages if line.startswith("check of layer 1, mean of the heads: hiding the")]
    assert line.endswith(str(AttentionRecord.load(RECORD).checks[0]))


# --- flags that do not go together


@pytest.mark.parametrize("name", ["benchmark_json", "image_dir"])
def test_a_dataset_is_required_whole(name, capsys):
    for source in (["--model_path", "m"], ["--from_record", RECORD]):
        other = ({"benchmark_json", "image_dir"} - {name}).pop()
        assert f"--{other} is required" in refused([*source, f"--{name}", "x"], capsys)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--head", "max", "--response", "x"], "--response does not go with --from_record"),
        (["--save_record", "z"], "--save_record does not go with --from_record"),
        (["--model_path", "m"], "--model_path does not go with --from_record"),
        (["--fast"], "--fast does not go with --from_record"),
        (["--check"], "--check does not go with --from_record"),
        (["--neutral_prompt", "x"], "--neutral_prompt does not go with --from_record"),
        (["--dtype", "float32"], "--dtype does not go with --from_record"),
        (["--compare_model_path", "m"], "--compare_model_path does not go with --from_record"),
        (["--image", "a.png"], "--image does not go with --from_record"),
        (["--sample_idx", "3"], "--sample_idx tells of a dataset, and none was given; leave"),
        (["--max_image_num", "1"], "--max_image_num tells of a dataset, and none was given"),
        (["--allow_absolute_paths"], "--allow_absolute_paths tells of a dataset, and none was given"),
        (["--sample_idx", "all"], "--sample_idx takes one number with --from_record"),
    ],
)
def test_a_flag_that_a_kept_record_cannot_follow_is_refused(flags, message, capsys):
    assert message in refused(["--from_record", RECORD, *flags], capsys)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image", "a.png"], "--problem is required"),
        (["--problem", "x"], "--image is required"),
        (["--image", "a.png", "--problem", "x", "--sample_idx", "3"], "--sample_idx tells of a dataset, --image and"),
        (["--image", "a.png", "--problem", "x", "--image_dir", "i"], "--image_dir tells of a dataset, --image and"),
        (["--image", "a.png", "--problem", "x", "--benchmark_json", "i"], "--benchmark_json tells of a dataset"),
        ([], "--benchmark_json is required"),
    ],
)
def test_a_sample_comes_from_a_dataset_or_from_flags(flags, message, capsys):
    assert message in refused(["--model_path", "m", *flags], capsys)


def test_a_model_or_a_record_is_required(run_files, capsys):
    assert "--model_path is required" in refused(command(run_files)[2:], capsys)


@pytest.mark.parametrize(
    "flags",
    [("--frame_size", "big"), ("--no_flag",), ("--fps", "x"), ("--max_new_tokens", "9" * 5000),
     ("--seed", "1.5"), ("--format", "x" * 10**6), ("--view", "\x1b[31m")],
)  # fmt: skip
def test_a_flag_that_cannot_be_read_is_refused_by_the_parser(run_files, flags, capsys):
    assert "\x1b" not in refused(command(run_files, *flags), capsys)


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("--sample", "--sample_idx"), ("--out", "--output_dir"), ("--layer_id=3", "--layer_idx"),
        ("--samle_idx", "--sample_idx"), ("--colourmap", "--colormap"), ("--max_tokens", "--max_new_tokens"),
    ],
)  # fmt: skip
def test_a_flag_that_is_shortened_or_misspelt_is_refused_with_the_nearest(run_files, typed, meant, capsys):
    error = refused(command(run_files, typed, "0"), capsys)
    assert error.startswith(f"error: unrecognized arguments: {typed}") and f"; did you mean {meant}? --help" in error


def test_a_flag_that_is_like_no_other_is_refused_and_none_is_guessed(run_files, capsys):
    assert "did you mean" not in refused(command(run_files, "--xyzzy"), capsys)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}", "[1]", "", "{", "3"])
@pytest.mark.parametrize("flag", ["--model_kwargs", "--processor_kwargs"])
def test_json_in_a_flag_that_is_no_object_is_one_short_line(run_files, flag, text, capsys):
    error = refused(command(run_files, flag, text), capsys)
    assert "is no JSON object; expected one such as" in error and len(error) < 600


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--temperature", "0.1", "--seed", "3"], "temperature, seed with a given response changes nothing"),
        (
            ["--overwrite"],
            "overwrite changes nothing for one sample, whose files are always written anew; leave it out",
        ),
        (["--fast", "--max_new_tokens", "3"], "fast changes nothing: it does not pay on cpu for 3 tokens at most"),
    ],
)
def test_a_flag_that_changes_nothing_is_told_in_one_line(run_files, caplog, flags, line):
    warn_once.cache_clear()
    given = [] if "--fast" in flags else QUICK[2:]
    with caplog.at_level(NOTE):
        assert main(command(run_files, "--layer_idx", 1, *QUICK[:2], *given, *flags)) == 0
    assert sum(message.startswith(line) for message in caplog.messages) == 1


# --- records that do not fit


def test_auto_is_refused_where_a_kept_record_was_made_without(kept, capsys):
    assert main(["--from_record", kept[0], "--layer_idx", "auto"]) == 2
    error = capsys.readouterr().err
    assert error == "error: layer_idx auto: the record's layers [0, 2] were named; name one of them\n"


def test_the_clear_view_of_a_kept_record_says_what_it_keeps(kept, caplog):
    with caplog.at_level(NOTE):
        assert main(["--from_record", kept[0], "--view", "clear", "--frame_size", "640x360"]) == 0
    expected = "view clear: layer 0, mean of the heads as recorded; auto chooses while recording only"
    assert caplog.messages[0] == expected


def test_a_kept_record_is_not_drawn_on_other_pictures(kept, run_files, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    picture((150, 90), "navy").save(tmp_path / "images" / "a.png")
    flags = ["--from_record", kept[0], "--benchmark_json", str(run_files[1]), "--image_dir", str(tmp_path / "images")]
    assert main(flags) == 2
    assert "picture 1 of the sample is not the record's" in capsys.readouterr().err


# --- processes and the script


def test_a_process_that_shares_the_model_tells_its_own_error_after_the_first_ones(run_files, monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "TQDM_DISABLE": "", "TRANSFORMERS_VERBOSITY": ""}.items():
        monkeypatch.setenv(name, value)
    waits = []
    monkeypatch.setattr(door.time, "sleep", waits.append)
    assert main(command(run_files, "--tp_plan", "auto", "--layer_idx", 9)) == 2
    assert waits == [door._LATER_PROCESS_WAITS]
    assert capsys.readouterr().err.startswith("error: process 1: layer_idx 9 is out of range")


@pytest.mark.parametrize("name, value", [("RANK", "x"), ("RANK", "-1"), ("WORLD_SIZE", "9" * 99), ("LOCAL_RANK", "٣")])
def test_an_environment_that_no_launcher_made_is_one_line(run_files, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    flags = ["--sample_idx", "0-1"] if name != "WORLD_SIZE" else ["--tp_plan", "auto"]
    assert main(command(run_files, *flags, *QUICK)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: the environment's {name} is '") and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["--model_path", "m", "--benchmark_json", "n", "--image_dir", "i"]]
)
def test_help_and_bad_arguments_import_no_torch(arguments):
    code = (
        "import sys, visualizeHeatMap as door\n"
        "try: door.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "module, package, arguments",
    [
        ("PIL", "pillow", ["--help"]),
        ("numpy", "numpy", []),
        ("torch", "torch", ["--model_path", "m", "--image", "a.png", "--problem", "x"]),
        ("safetensors", "safetensors", ["--from_record", "x.safetensors"]),
    ],
)
def test_a_package_that_is_not_installed_is_one_line_that_says_what_to_run(tmp_path, module, package, arguments):
    picture().save(tmp_path / "a.png")
    code = (
        f"import runpy, sys; sys.modules[{module!r}] = None; sys.path.insert(0, {str(ROOT)!r}); "
        f"runpy.run_path({SCRIPT[1]!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    expected = f"error: the package {package} is not installed; run pip install -r requirements.txt\n"
    assert (result.returncode, result.stderr, result.stdout) == (2, expected, "")


@pytest.mark.parametrize("redirected", [">/dev/full", ">&-"])
def test_a_stdout_that_takes_nothing_is_one_line_and_the_files_are_there(kept, redirected):
    flags = [*SCRIPT, "--from_record", kept[0], "--layer_idx", "0", "--frame_size", "640x360", "--output_dir", "out"]
    result = subprocess.run(["bash", "-c", f"{' '.join(flags)} {redirected}"], capture_output=True, text=True)
    assert len(list(Path("out").glob("*.mp4"))) == 1
    (line,) = besides_fonts(result.stderr)
    assert result.returncode == 2 and line.startswith("error: "), result.stderr
    assert "the files are written: out/combined_attention_visualization_layer0.mp4" in line


def test_a_closed_stdin_or_stderr_disturbs_nothing(kept, tmp_path):
    flags = [*SCRIPT, "--from_record", kept[0], "--layer_idx", "0", "--frame_size", "640x360", "--output_dir"]
    result = subprocess.run(["bash", "-c", f"{' '.join(flags)} out <&- 2>&-"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "out/combined_attention_visualization_layer0.mp4\n"
    result = subprocess.run(["bash", "-c", f"{' '.join(flags)} /dev/null/x 2>&-"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""


def test_a_reader_that_leaves_early_is_one_line(kept):
    flags = [*SCRIPT, "--from_record", kept[0], "--layer_idx", "0", "--frame_size", "640x360", "--output_dir", "out"]
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(flags, stdout=write, stderr=subprocess.PIPE, text=True)
    (line,) = besides_fonts(result.stderr)
    assert result.returncode == 2 and line.startswith("error: ") and "Broken pipe" in line, result.stderr


def test_a_terminal_of_few_characters_gets_escapes_and_no_error(kept, tmp_path):
    flags = ["--from_record", kept[0], "--layer_idx", "0", "--frame_size", "640x360", "--output_dir"]
    few = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run([*SCRIPT, *flags, str(tmp_path / "路线")], env=few, capture_output=True)
    # In the C locale a name's bytes are no characters: whatever Python makes of them is escaped.
    assert result.returncode == 0 and result.stdout.isascii() and result.stdout.count(b"\\") >= 2
    assert list((tmp_path / "路线").iterdir())
    result = subprocess.run([*SCRIPT, *flags, "/dev/null/路\x1b[31m"], env=few, capture_output=True)
    assert result.returncode == 2 and b"\x1b" not in result.stderr and len(result.stderr.splitlines()) == 1


# --- one place that turns whatever comes into one line


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("a\nb"), "error: a b"),
        (MemoryError("Unable to allocate 9 TiB"), "error: Unable to allocate 9 TiB"),
        (MemoryError(), "error: MemoryError"),
        (ImportError("no module"), "error: no module"),
        (OSError(28, "No space left on device", "x"), "error: [Errno 28] No space left on device: 'x'"),
        (IndexError("x"), "error: IndexError: x (a mistake of this program, not yours; please report it"),
        (KeyError("x"), "error: KeyError: 'x' (a mistake of this program"),
        (RecursionError("deep"), "error: "),
        (AssertionError(), "error: AssertionError: AssertionError (a mistake of this program"),
        (RuntimeError("\x1b[31m" * 10**6), "error: \\x1b[31m"),
    ],
)
def test_whatever_comes_is_one_line_and_the_traceback_is_for_who_asks(monkeypatch, capsys, error, line):
    def broken(arguments):
        raise error

    monkeypatch.setattr(door, "run_command", broken)
    assert main(["--from_record", "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1 and len(said) < 2500
    assert main(["--from_record", "x", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.fixture
def heard():
    """No signal is ignored, though the tests themselves may run in the background."""
    before = {one: signal.signal(one, signal.SIG_DFL) for one in door._SIGNALS}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_heard_once_is_one_line_and_the_handlers_are_put_back(monkeypatch, capsys, heard, number):
    before = [signal.getsignal(one) for one in door._SIGNALS]

    def stopped(arguments):
        try:
            os.kill(os.getpid(), number)
            door.time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            door.time.sleep(0.05)

    monkeypatch.setattr(door, "run_command", stopped)
    assert main(["--from_record", "x"]) == 128 + number
    error = capsys.readouterr().err
    assert error.startswith(f"error: stopped by {number.name}; ") and error.count("\n") == 1
    assert [signal.getsignal(one) for one in door._SIGNALS] == before


def test_a_signal_that_the_caller_ignores_stays_ignored(monkeypatch):
    """As with nohup."""
    monkeypatch.setattr(door, "run_command", lambda arguments: os.kill(os.getpid(), signal.SIGHUP) or [])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["--from_record", "x"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
