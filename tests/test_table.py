"""What is known of each sample, written last of all, and the table of all, harmless wherever it is opened."""

from __future__ import annotations

import csv
import json
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import make_record

from attention_heatmap.maps import image_shares
from attention_heatmap.table import (
    _cell,
    answer_text,
    check_table,
    forget_sample,
    is_correct,
    is_finished,
    own_files,
    phase_shares,
    read_facts,
    record_facts,
    table_row,
    write_facts,
    write_table,
)


def table(folder):
    with open(folder / "samples.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- answers and shares


@pytest.mark.parametrize(
    "response, answer, correct",
    [
        ("<think> b </think><answer> (1,  2)\n</answer>", "(1, 2)", True),
        ("<answer>a</answer> no, <answer>b</answer>", "b", True),
        ("plain  text ", "plain text", True),
        ("<answer>A</answer>", "a", False),
        ("<answer>[(1, 2), (3, 4)]</answer>", "<answer> [(1, 2), (3, 4)] </answer>", True),
        ("<answer>5</answer>", 5, True),
        ("<answer>[1, 2]</answer>", [1, 2], True),
        ("</answer>a<answer>", "</answer>a<answer>", True),
        ("a", None, None),
        ("a", "  ", None),
    ],
)
def test_an_answer_is_compared_letter_by_letter_but_for_white_space(response, answer, correct):
    assert is_correct(response, answer) is correct


def test_an_answer_of_many_tags_takes_no_time():
    assert answer_text("<answer>" * 40_000 + "x") == "<answer>" * 40_000 + "x"
    assert answer_text("<answer>" * 40_000 + "x" + "</answer>" * 40_000) == "x" + "</answer>" * 39_999


def test_the_shares_of_the_phases_are_means_of_the_shares_that_the_frames_show():
    record = make_record(["go"], ["<think>", " a", "</think>", "<answer>", " b", "</answer>"])
    shares, found = image_shares(record, 1), phase_shares(record, 1)
    assert found.keys() == {"think", "answer", "response"}
    np.testing.assert_allclose(found["think"], shares[:3].mean(), atol=1e-6)
    np.testing.assert_allclose(found["answer"], shares[3:].mean(), atol=1e-6)
    np.testing.assert_allclose(found["response"], shares.mean(), atol=1e-6)


def test_the_facts_of_a_record_are_json():
    facts = record_facts([make_record(["go"], ["a"])], "a")
    assert json.loads(json.dumps(facts)) == facts and facts["correct"] is True
    names = {f"image_share_response_layer{n}" for n in (0, 1)}
    assert facts["columns"].keys() == names and "layer 0" in facts["map"]


# --- finished or not


def finished(folder, change=lambda facts: None):
    """Whether a folder with one file of 3 bytes counts as finished, its facts changed."""
    (folder / "a.mp4").write_bytes(b"abc")
    write_facts(folder, {"error": ""}, [folder / "a.mp4"])
    facts = json.loads((folder / "sample.json").read_text())
    change(facts)
    (folder / "sample.json").write_text(json.dumps(facts))
    return is_finished(folder, read_facts(folder))


@pytest.mark.parametrize(
    "change, whole",
    [
        ({}, True), ({"error": "x"}, False), ({"files": {}}, False), ({"files": {"a.mp4": 3, "gone.mp4": 3}}, False),
        ({"files": {"a.mp4": 4}}, False), ({"files": {"../a.mp4": 3}}, False), ({"files": "a.mp4"}, False),
        ({"files": ["a.mp4"]}, False), ({"files": {"..": 3}}, False), ({"files": {".": 3}}, False),
        ({"files": {"": 3}}, False), ({"files": {"a.mp4": "3"}}, False), ({"files": {"a.mp4": None}}, False),
        ({"files": {"a\0b": 3}}, False), ({"files": {"x" * 5000: 3}}, False), ({"files": None}, False),
    ],
)  # fmt: skip
def test_a_sample_is_finished_when_all_its_files_are_there_as_large_as_they_were(tmp_path, change, whole):
    (tmp_path.parent / "a.mp4").write_bytes(b"abc")
    assert finished(tmp_path, lambda facts: facts.update(change)) is whole


def test_a_stale_video_beside_new_facts_is_not_counted(tmp_path):
    """A run that was killed between facts and video: the video of an earlier run must not be taken for its own."""
    (tmp_path / "a.mp4").write_bytes(b"old")
    write_facts(tmp_path, {"response": "new"})
    assert not is_finished(tmp_path, read_facts(tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"3", b"null", b"{", b"\xff", b"[" * 100_000, b'{"a": ' * 5000, b"9" * 5000, b"\x00" * 99]
)
def test_facts_that_cannot_be_read_are_none(tmp_path, content):
    (tmp_path / "sample.json").write_bytes(content)
    assert read_facts(tmp_path) == {} and not is_finished(tmp_path, {})


def test_facts_that_are_no_file_hang_nothing(tmp_path):
    os.mkfifo(tmp_path / "sample.json")
    assert read_facts(tmp_path) == {}
    (tmp_path / "huge").mkdir()
    with open(tmp_path / "huge" / "sample.json", "wb") as file:
        file.truncate(2**40)
    assert read_facts(tmp_path / "huge") == {}
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "sample.json").symlink_to("/dev/zero")
    assert read_facts(tmp_path / "device") == {} == read_facts(tmp_path / "none")


def test_forgetting_a_sample_takes_its_own_files_and_no_others(tmp_path):
    folder = tmp_path / "sample_0000"
    folder.mkdir()
    for path in (folder / "a.mp4", folder / "mine.txt", tmp_path / "keep.mp4"):
        path.touch()
    write_facts(folder, {}, [folder / "a.mp4"])
    facts = json.loads((folder / "sample.json").read_text())
    facts["files"] |= {"../keep.mp4": 0, "/etc/none": 0, "gone.mp4": 0, "..": 0}
    (folder / "sample.json").write_text(json.dumps(facts))
    forget_sample(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"] and (tmp_path / "keep.mp4").exists()
    forget_sample(folder)
    forget_sample(tmp_path / "none")


@given(st.dictionaries(st.text(max_size=12), st.integers(), max_size=4))
def test_no_name_among_the_facts_leaves_the_folder(tmp_path_factory, names):
    folder = tmp_path_factory.getbasetemp() / "facts"
    assert all(path.parent == folder for path in own_files(folder, {"files": names}))


# --- the table


SEPARATORS = ["", ";", "\t", "\n", "\r", "\r\n", ",", "|", '"', "x;", 'a"\n', " ", "\u00a0", "\u3000"]
FORMULAS = ["=1+1", "@SUM(A1)", "+x", "-x+1", "＝1", "＋1", "－x", "＠x", "=cmd|' /C calc'!A0", '="x"']


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_begins_with_a_formula_wherever_a_spreadsheet_splits(separator, formula):
    cell = _cell(separator + formula)
    for parts in (re.split(r"[;\t\r\n,|]", cell), [cell]):
        marked = [part for part in parts if re.match(r"""\s*'""", part)]
        assert all(re.match(r"""[\s"']*[=@+\-＝＠＋－]""", part) is None for part in parts if part not in marked), cell


@pytest.mark.parametrize(
    "text", ["-2.5", "+3", "42", "a=b", "x - y", "(1, -2)", "[(-1, -2.5), (3, -4)]", "a, b", "5-3"]
)
def test_numbers_and_plain_text_stay_what_they_are(text):
    assert _cell(text) == text


@pytest.mark.parametrize("text", ["-2 +cmd|' /C calc'!A0", "-2)+x", "-2+3", "-1,-2+x", "5;-2 =x", "-", "\n- item"])
def test_what_goes_on_after_a_number_is_no_number(text):
    assert _cell(text).count("'") > text.count("'")


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_any_text_in_the_table_is_harmless_and_can_be_read_again(text):
    cell = _cell(text)
    assert "\x1b" not in cell and "\0" not in cell
    cell.encode("utf-8")
    for part in re.split(r"[;\t\r\n,|]", cell):
        assert not re.match(r"\s*[=@]", part)


def test_the_table_holds_hostile_text_and_runs_none_of_it(tmp_path):
    texts = ["=1+1", " @SUM(A1)", "+x", "-2.5", "a\x1b[31m\u202e\ud800\0b", 'say "a,b"\nc']
    for number, text in enumerate(texts):
        write_facts(tmp_path / f"sample_{number:04d}", {"response": text, "id": [text]})
    (tmp_path / "sample_other").mkdir()
    write_table(tmp_path)
    rows = table(tmp_path)
    assert [row["response"] for row in rows] == [
        "'=1+1", "' @SUM(A1)", "'+x", "-2.5", "a\\x1b[31m\\u202e\\ud800\\x00b", 'say "a,b"\nc',
    ]  # fmt: skip
    assert [row["sample"] for row in rows] == list("012345") and {row["error"] for row in rows} == {"not finished"}


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=6)  # fmt: skip
KEYS = ("sample", "id", "response", "answer", "correct", "columns", "map", "check", "files", "error", "settings")


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_a_table_survives_facts_of_any_kind(tmp_path_factory, facts):
    folder = tmp_path_factory.mktemp("table")
    (folder / "sample_0007").mkdir()
    (folder / "sample_0007" / "sample.json").write_text(json.dumps(facts))
    write_table(folder)
    (row,) = table(folder)
    assert row["sample"] == "7" and row["correct"] in ("", "0", "1")
    assert table_row(folder / "sample_0007")["error"]


def test_a_row_names_the_files_that_are_there(tmp_path):
    folder = tmp_path / "sample_0002"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"abc")
    write_facts(folder, {"sample": 2, "correct": True}, [folder / "a.mp4"])
    row = table_row(folder)
    assert row["files"] == "sample_0002/a.mp4" and row["error"] == "" and row["correct"] == 1
    (folder / "a.mp4").unlink()
    assert table_row(folder)["files"] == "" and table_row(folder)["error"] == "not finished"


def test_samples_whose_numbers_are_long_stand_in_their_order(tmp_path):
    for number in (10_000, 2, 123_456):
        write_facts(tmp_path / f"sample_{number:04d}", {})
    for name in ("sample_12", "sample_٣٣٣٣", "sample_" + "9" * 30, "sample_0001x"):
        (tmp_path / name).mkdir()
    write_table(tmp_path)
    assert [row["sample"] for row in table(tmp_path)] == ["2", "10000", "123456"]


def test_a_table_of_somebody_else_is_not_replaced(tmp_path):
    check_table(tmp_path / "none")
    (tmp_path / "samples.csv").write_text("name,age\nx,3\n")
    with pytest.raises(
        ValueError, match=r"samples\.csv is there and no table of this program; give another output_dir"
    ):
        check_table(tmp_path)
    write_facts(tmp_path / "out" / "sample_0000", {})
    write_table(tmp_path / "out")
    check_table(tmp_path / "out")
    (tmp_path / "samples.csv").unlink()
    (tmp_path / "samples.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        check_table(tmp_path)
