"""The README, its translation and docs/ are held to the code: what stands there runs, and what exists stands there."""

from __future__ import annotations

import functools
import json
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
from conftest import ROOT
from flag_table import flag_rows

import visualizeHeatMap as vhm

README, CHINESE = ROOT / "README_attention_visualization.md", ROOT / "README_attention_visualization.zh.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
MOST_LINES = 200  # of a README
QUICK = {"frame_size": (640, 360), "max_new_tokens": 12}  # what the tests add to each run that does not say it
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def blocks(page: Path, *kinds: str) -> list[tuple[str, str]]:
    """(language, text) of each code block, in the order of the page."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", text_of(page), re.S | re.M)
    return [(kind, text) for kind, text in found if not kinds or kind in kinds]


def commands(page: Path) -> list[str]:
    """The command lines of a page, without the comments behind them."""
    lines = [line.split("  #")[0].strip() for _, text in blocks(page, "bash") for line in text.splitlines()]
    return [line for line in lines if line]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)]+)\)", prose(page)) if "://" not in link]


def table(page: Path) -> list[list[str]]:
    """The cells of the rows of the table of flags."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text_of(page).splitlines() if "| `--" in line]
    return [[cell.strip() for cell in row] for row in rows]


# ------------------------------------------------------------------------------------- what runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder in which the paths of the pages are there and what is written stays apart."""
    path = tmp_path_factory.mktemp("checkout")
    for name in ("demo", "tests", "attention_heatmap", "visualizeHeatMap.py", "run_attention_visualization.py"):
        (path / name).symlink_to(ROOT / name)
    return path


@pytest.fixture
def checkout(folder, monkeypatch) -> Path:
    """The working folder, and runs of the class made small."""
    monkeypatch.chdir(folder)
    for name in ("create_attention_visualization_for_sample", "visualize_dataset", "record"):
        whole = getattr(vhm.AttentionVisualizer, name)
        quick = QUICK if name != "record" else {"max_new_tokens": QUICK["max_new_tokens"]}

        def made_small(*arguments, _whole=whole, _quick=quick, **options):
            return _whole(*arguments, **{**_quick, **options})

        monkeypatch.setattr(vhm.AttentionVisualizer, name, functools.wraps(whole)(made_small))
    return folder


def quick_flags(arguments: list[str]) -> list[str]:
    size, tokens = (
        ["--frame_size", "{}x{}".format(*QUICK["frame_size"])],
        ["--max_new_tokens", str(QUICK["max_new_tokens"])],
    )
    size = [] if "--frame_size" in arguments else size
    return size if {"--max_new_tokens", "--from_record"} & set(arguments) else size + tokens


def run(command: str, capsys) -> str:
    """Run a command of a page, and give what it prints. In this process where that can be: torch is loaded once."""
    program, *arguments = shlex.split(command)
    if program in ("torchrun", "accelerate"):
        arguments = launched(program, arguments)
    elif program == "python" and arguments[0] != "visualizeHeatMap.py":  # the benchmarks run in a test of their own
        return check_script(arguments)
    else:
        assert program in ("python", "visualize-heatmap"), command
        arguments = arguments[program == "python" :]
    if "--tp_plan" in arguments:  # two processes, tested where models are shared
        vhm.check_flags(vhm.build_parser(), vars(vhm.build_parser().parse_args(arguments)))
        return ""
    capsys.readouterr()
    assert vhm.main([*arguments, *quick_flags(arguments)]) == 0, f"{command}\n{capsys.readouterr().err}"
    return capsys.readouterr().out


def launched(program: str, arguments: list[str]) -> list[str]:
    """The arguments of the tool in a command of a launcher, whose own flags are read by its own parser."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    parser = get_args_parser() if program == "torchrun" else launch_command_parser()
    found = parser.parse_args(arguments[program == "accelerate" :])
    assert found.training_script == "visualizeHeatMap.py"
    return found.training_script_args


def check_script(arguments: list[str]) -> str:
    """A script of the project is there, and knows the flags that it is given."""
    if arguments[0] == "-m":
        assert all((ROOT / one.split("::")[0]).exists() for one in arguments[2:] if "/" in one), arguments
        return ""
    source = (ROOT / arguments[0]).read_text("utf-8")
    assert all(f'"{flag}"' in source for flag in arguments if flag.startswith("--")), arguments
    return ""


@by_name
def test_every_command_runs_in_the_order_of_the_page(page, checkout, capsys):
    """One may use what another has written."""
    for command in commands(page):
        if " && " not in command:
            printed = run(command, capsys)
            assert all((checkout / path).stat().st_size > 0 for path in printed.split()), printed


def test_the_set_up_commands_install_what_is_there_and_run_what_is_there():
    lines = [line for line in commands(README) if " && " in line]
    assert len(lines) == 2
    for line in lines:
        install, last = line.split(" && ")[1:]
        assert all((ROOT / name).is_file() for name in re.findall(r"-r (\S+)", install))
        assert last.endswith("-m pytest -n auto") or (ROOT / last.split()[-1]).is_file()


def test_the_example_script_prints_the_video_and_the_response(checkout, capsys, monkeypatch):
    import run_attention_visualization as example

    monkeypatch.setattr(example, "MAX_NEW_TOKENS", QUICK["max_new_tokens"])
    example.main()
    printed = capsys.readouterr().out
    assert re.search(r"^response: <think>", printed, re.M)
    (video,) = re.findall(r"^video: (.*)", printed, re.M)
    assert (checkout / video).stat().st_size > 0


def test_every_snippet_runs_those_of_docs_with_the_names_of_the_readme(checkout, monkeypatch):
    notebook = types.ModuleType("IPython.display")
    notebook.Video = lambda path, embed: (checkout / path).read_bytes()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=notebook))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    names, shown = {}, []
    for page in PAGES:
        for kind, block in blocks(page, "python", "ipython"):
            if kind == "python":
                exec(compile(block, page.name, "exec"), names)
            for cell in block.splitlines() if kind == "ipython" else ():
                *before, last = cell.split("; ")
                exec("\n".join(before), names)
                shown.append(eval(last, names))
    video, record, frame = shown
    assert video[4:8] == b"ftyp" and "<i" in record._repr_html_() and frame.size == (1920, 1080)


def test_the_datasets_example_is_a_dataset():
    ((_, example),) = blocks(README, "json")
    assert {"id", "image", "problem", "solution", "answer"} == set(json.loads(example)[0])


# ------------------------------------------------------------------------------------- what stands there


def test_the_table_has_each_flag_once_in_its_group_with_its_default():
    found, group = [], ""
    for row in table(README):
        group = row[0] or group
        flags, defaults = re.findall(r"`(--\w+)`", row[1]), [d.strip("`") for d in row[2].split(", ")]
        defaults = defaults if len(defaults) > 1 else defaults * len(flags)
        found += [(group, *pair) for pair in zip(flags, defaults, strict=True)]
    wanted = [row[:3] for row in flag_rows()]
    assert sorted(found) == sorted(wanted), "`python tests/flag_table.py` prints what the parser has"


def test_the_two_readmes_say_the_same():
    def code(page: Path) -> list[tuple[str, str]]:
        return [(kind, re.sub(r" *# .*", "", text)) for kind, text in blocks(page)]

    def headings(page: Path) -> list[int]:
        return [len(marks) for marks in re.findall(r"^(#+) ", prose(page), re.M)]

    def flags(page: Path) -> list[list[str]]:
        """Of each part below a heading: the flags that it names, and the values and names in code."""
        parts = re.split(r"^#+ ", prose(page), flags=re.M)
        return [sorted({" ".join(code.split()) for code in re.findall(r"`([^`]+)`", part)}) for part in parts]

    def defaults(page: Path) -> list[tuple]:
        return [tuple(re.findall(r"`([^`]*)`", cell) for cell in row[1:3]) for row in table(page)]

    assert commands(README) == commands(CHINESE)
    assert code(README) == code(CHINESE)
    assert headings(README) == headings(CHINESE)
    assert flags(README) == flags(CHINESE)
    assert defaults(README) == defaults(CHINESE)
    assert links(README)[0] == CHINESE.name and links(CHINESE)[0] == README.name
    assert sorted(links(README)[1:]) == sorted(links(CHINESE)[1:])


@pytest.mark.parametrize("page", [README, CHINESE], ids=["English", "Chinese"])
def test_a_readme_is_short_and_leads_to_every_page(page):
    assert len(text_of(page).splitlines()) <= MOST_LINES
    assert {f"docs/{one.name}" for one in DOCS} <= set(links(page))


@by_name
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        names = [re.sub(r"[^\w\- ]", "", name.lower()) for name in re.findall(r"^#+ (.*)", prose(target), re.M)] \
            if target.suffix == ".md" else []  # fmt: skip
        assert not anchor or anchor in [name.replace(" ", "-") for name in names], link


@by_name
def test_every_flag_and_file_named_in_a_page_exists(page):
    flags = {row[1] for row in flag_rows()} | {"--help"}
    scripts = "".join(text_of(path) for path in (ROOT / "tests/benchmarks").glob("*.py"))
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for flag in re.findall(r"(?<!\S)--\w+", code):
            assert flag in flags or f'"{flag}"' in scripts or code.startswith("accelerate"), flag
        for path in re.findall(r"(?<!\S)(?:attention_heatmap|tests|docs|demo)/[\w./]+", code):
            assert (ROOT / path).exists(), path


# ------------------------------------------------------------------------------------- docs/development.md


def test_the_plan_of_the_house_names_every_room():
    plan = blocks(ROOT / "docs/development.md", "text")[0][1]
    rooms = {path.name for path in (ROOT / "attention_heatmap").rglob("*.py") if path.name != "__init__.py"}
    assert rooms | {"visualizeHeatMap.py", "run_attention_visualization.py"} == set(re.findall(r"\w+\.py", plan))


@pytest.mark.parametrize("diff", [text for _, text in blocks(ROOT / "docs/development.md", "diff")])
def test_a_worked_change_fits_the_code_as_it_is(diff):
    """The lines that it takes away, and those around them, stand in the file like that."""
    for path, changes in re.findall(r"^--- a/(\S+)\n\+\+\+ .*\n((?:[ +@\-].*\n|\n)*)", diff, re.M):
        for hunk in re.split(r"^@@.*\n", changes, flags=re.M):
            before = "".join(f"{line[1:]}\n" for line in hunk.splitlines() if not line.startswith("+"))
            assert before in text_of(ROOT / path), f"{path}\n{before}"
