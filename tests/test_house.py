"""The rules of the house: which room may use which, how large each may be, where an option is written."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import visualizeHeatMap as door
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.recording.options import CheckpointOptions, RecordingOptions

ROOT = Path(__file__).resolve().parents[1]
HOUSE = "attention_heatmap"
ROOMS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / HOUSE).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in ROOMS.items()}
DOOR = ast.parse((ROOT / "visualizeHeatMap.py").read_text("utf-8"))
LARGEST_ROOM, LARGEST_CLASS, LARGEST_FUNCTION = 450, 200, 50  # lines
WITHOUT_MODELS = [
    name for name in ROOMS
    if name.startswith(f"{HOUSE}.drawing") or name in [f"{HOUSE}.{room}" for room in ("record", "maps", "dataset")]
]  # fmt: skip
# Where a record shows itself, the drawing is fetched inside the method.
SHOWS_ITSELF = (f"{HOUSE}.record", f"{HOUSE}.showing")  # what these fetch inside their methods is no way back up


def imported(nodes) -> set[str]:
    """The modules that some import statements name, of this house down to the room."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "rooms are named from the street"
            found |= {whole if (whole := f"{node.module}.{a.name}") in ROOMS else node.module for a in node.names}
    return found


def all_imports(tree: ast.AST) -> set[str]:
    return imported(ast.walk(tree))


def within(names: set[str], *parts: str) -> set[str]:
    """Those of the modules that are one of `parts`, or inside of one."""
    return {name for name in names if any(name == part or name.startswith(f"{part}.") for part in parts)}


@pytest.mark.parametrize("room", WITHOUT_MODELS)
def test_drawing_and_the_record_know_no_model(room):
    assert not within(all_imports(TREES[room]), "torch", "transformers", f"{HOUSE}.recording")


@pytest.mark.parametrize("room", [name for name in ROOMS if name.startswith(f"{HOUSE}.recording")])
def test_recording_knows_no_drawing(room):
    assert not within(all_imports(TREES[room]), f"{HOUSE}.drawing")


def test_no_room_imports_the_door_or_one_that_imports_it():
    graph = {}
    for name, tree in TREES.items():
        uses = imported(tree.body if name in SHOWS_ITSELF else ast.walk(tree))
        assert not within(uses, "visualizeHeatMap"), name
        graph[name] = within(uses, HOUSE)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"rooms import each other: {error.args[1]}")


def test_a_record_that_shows_itself_fetches_the_drawing_inside_its_methods_and_nothing_else_does():
    def inside(name):
        return within(all_imports(TREES[f"{HOUSE}.{name}"]) - imported(TREES[f"{HOUSE}.{name}"].body), HOUSE)

    allowed = {f"{HOUSE}.maps", f"{HOUSE}.record"}
    assert inside("showing") - allowed == within(inside("showing"), f"{HOUSE}.drawing")
    assert inside("record") == {f"{HOUSE}.record_file"}


def test_only_recording_imports_torch_or_transformers():
    elsewhere = {name: within(all_imports(tree), "torch", "transformers") for name, tree in TREES.items()
                 if not name.startswith(f"{HOUSE}.recording")}  # fmt: skip
    assert not any(elsewhere.values()), elsewhere


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_can_be_read_in_one_sitting(room):
    lines = len(ROOMS[room].read_text("utf-8").splitlines())
    assert lines <= LARGEST_ROOM, f"{room} has {lines} lines and wants to be two rooms"


@pytest.mark.parametrize("room", ["visualizeHeatMap", *ROOMS])
def test_classes_and_functions_are_short(room):
    limits = {ast.ClassDef: LARGEST_CLASS, ast.FunctionDef: LARGEST_FUNCTION}
    for node in ast.walk(DOOR if room == "visualizeHeatMap" else TREES[room]):
        if type(node) in limits:
            said = [
                inner for inner in node.body if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant)
            ]
            lines = node.end_lineno - node.lineno + 1 - sum(one.end_lineno - one.lineno + 1 for one in said)
            assert lines <= limits[type(node)], f"{node.name} has {lines} lines"


@pytest.mark.parametrize("room", ROOMS)
def test_what_one_room_keeps_to_itself_no_other_uses(room):
    for node in ast.walk(TREES[room]):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(HOUSE):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{room} takes {private} of {node.module}"


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_it_is_for(room):
    said = ast.get_docstring(TREES[room])
    assert ROOMS[room].stat().st_size == 0 or (said and "TODO" not in said)


@pytest.mark.parametrize(
    "name", ["drawing.frame", "drawing.video", "drawing.summary", "record", "maps", "dataset", "table", "compare"]
)
def test_no_torch_comes_with_what_needs_no_model(name):
    code = f"import {HOUSE}.{name}, sys; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_door_names_what_other_programs_use():
    assert all(hasattr(door, name) for name in door.__all__)
    assert {"AttentionVisualizer", "AttentionRecord", "ImageTokens", "locate_image_tokens", "write_video"} <= set(
        door.__all__
    )


# --- an option is written once

OPTIONS = (CheckpointOptions, RecordingOptions, DrawingOptions)
ONLY_FLAGS = {"help", "verbose", "from_record", "image", "problem"}


def flags() -> dict[str, argparse.Action]:
    return {action.dest: action for action in door.build_parser()._actions if action.dest not in ONLY_FLAGS}


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_option_is_a_flag_with_the_same_default(kind):
    for field in dataclasses.fields(kind):
        assert flags()[field.name].default == field.default, field.name
        assert field.metadata["help"] and field.metadata["group"], field.name


def test_every_flag_is_an_option_or_a_keyword_of_the_class_with_the_same_default_and_the_other_way_round():
    visualizer, keywords = door.AttentionVisualizer, {}
    for method in (
        visualizer.__init__, visualizer.visualize_dataset, visualizer.load_sample_data,
        visualizer.create_attention_visualization_for_sample,
    ):  # fmt: skip
        for parameter in inspect.signature(method).parameters.values():
            keywords[parameter.name] = parameter.default
    keywords["model_path"] = keywords.pop("model_name_or_path")
    for python_only in ("self", "sample", "images", "processor"):
        del keywords[python_only]
    assert flags().keys() == keywords.keys()
    for name, default in keywords.items():
        expected = [default] if name == "layer_idx" else None if default is inspect.Parameter.empty else default
        assert flags()[name].default == expected, name


def test_no_option_has_the_name_of_another():
    names = [field.name for kind in OPTIONS for field in dataclasses.fields(kind)]
    assert len(set(names)) == len(names)


def test_the_help_tells_of_every_flag_in_whole_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = door.build_parser().format_help()
    for name, action in flags().items():
        assert f"--{name}" in text and action.help, name
    assert "==SUPPRESS==" not in text and "%(" not in text


OUTSIDE = "\n".join(
    path.read_text("utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "tests").rglob("*.py"))
)


@pytest.mark.parametrize("room", ROOMS)
def test_a_function_or_a_constant_of_one_room_alone_begins_with_an_underscore(room):
    offered = set()
    for node in TREES[room].body:
        if isinstance(node, ast.FunctionDef):
            offered.add(node.name)
        elif isinstance(node, ast.Assign):
            named = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            offered |= {name for name in named if name.isupper()}
    others = [path.read_text("utf-8") for name, path in ROOMS.items() if name != room]
    used = set(re.findall(r"\w+", "\n".join([*others, OUTSIDE, Path(door.__file__).read_text("utf-8")])))
    assert not {name for name in offered if not name.startswith("_")} - used
