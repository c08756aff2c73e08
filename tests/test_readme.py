"""The README is held to the code: its commands and snippets run, its flags are the command line's."""

import json
import re
import shlex
import subprocess
import sys
import types

import pytest
from conftest import ROOT

import visualizeHeatMap as vhm

README = (ROOT / "README_attention_visualization.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
SETUPS = [line for line in COMMANDS if " && " in line]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working folder in which the README's paths are there and what it writes stays apart."""
    for name in ("demo", "visualizeHeatMap.py", "run_attention_visualization.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_runs(checkout):
    """In the order of the page, since one may use what another has written."""
    programs = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
    for command in COMMANDS:
        if command not in SETUPS:
            program, *arguments = shlex.split(command)
            result = subprocess.run([*programs[program], *arguments], capture_output=True, text=True)
            assert result.returncode == 0, f"{command}\n{result.stderr}"
            assert all((checkout / path).stat().st_size > 0 for path in result.stdout.split())


def test_the_example_script_prints_the_video_and_the_response(checkout):
    result = subprocess.run([sys.executable, "run_attention_visualization.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^response: <think>.*</answer>", result.stdout, re.M | re.S)
    (video,) = re.findall(r"^video: (.*)", result.stdout, re.M)
    assert (checkout / video).stat().st_size > 0


def test_the_set_up_commands_install_what_is_there_and_run_what_is_there():
    assert len(SETUPS) == 2
    for line in SETUPS:
        install, run = line.split(" && ")[1:]
        assert all((ROOT / name).is_file() for name in re.findall(r"-r (\S+)", install))
        assert run.endswith("-m pytest") or (ROOT / run.split()[-1]).is_file()


def test_every_snippet_runs_in_the_order_of_the_page(checkout, monkeypatch):
    notebook = types.ModuleType("IPython.display")
    notebook.Video = lambda path, embed: (checkout / path).read_bytes()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=notebook))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    names, shown = {}, []
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "README", "exec"), names)
        for cell in block.splitlines() if kind == "ipython" else ():
            *before, last = cell.split("; ")
            exec("\n".join(before), names)
            shown.append(eval(last, names))
    video, record, frame = shown
    assert video[4:8] == b"ftyp" and record._repr_html_().startswith("<img") and frame.size == vhm.DEFAULT_FRAME_SIZE
    assert (checkout / "layer6.mp4").stat().st_size > 0


def test_the_datasets_example_is_a_dataset():
    (example,) = [block for kind, block in BLOCKS if kind == "json"]
    assert {"id", "image", "problem", "solution", "answer"} == set(json.loads(example)[0])


def test_every_flag_is_in_the_readme_and_the_other_way_round():
    table = README[README.index("## Flags") : README.index("## Dataset")]
    documented = set(re.findall(r"`(--\w+)`", table))
    flags = {flag for action in vhm.build_parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert documented == flags - {"--help"}


def test_every_file_the_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
