"""Many samples in one run: what is kept of each, how a run goes on, and what stops it."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from records import SMALL, make_record, picture

import attention_heatmap.background as background
from attention_heatmap.background import kept_on_failure
from attention_heatmap.drawing.fonts import FontSet
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.log import OurMistake, logger
from attention_heatmap.record import AttentionRecord, picture_file
from attention_heatmap.sweep import (
    NoSpaceLeft,
    SamplesFailed,
    fingerprint,
    report_samples,
    settings_of_run,
)
from attention_heatmap.table import is_finished, own_files, read_facts
from visualizeHeatMap import AttentionVisualizer, main

QUICK = {"max_new_tokens": 3, "frame_size": SMALL}
GIVEN = {"response_key": "pred", "frame_size": SMALL}  # nothing is generated
VIDEO = "combined_attention_visualization_layer1.mp4"
RECORD = "run.safetensors"


@pytest.fixture
def dataset(tmp_path):
    """(dataset, pictures): four samples, of which number 2 names no picture that is there."""
    (tmp_path / "images").mkdir()
    picture((120, 90), "orange").save(tmp_path / "images" / "a.png")
    sample = {"image": "a.png", "problem": "Based on the following requirements, go.", "pred": "<answer> a </answer>"}
    samples = [{**sample, "id": f"n{n}", "answer": " a" if n else "b"} for n in range(4)]
    samples[2]["image"] = "none.png"
    (tmp_path / "data.json").write_text(json.dumps(samples), "utf-8")
    return tmp_path / "data.json", tmp_path / "images"


@pytest.fixture
def drawn_beside():
    """Asked for by a test whose samples are drawn in a process of their own, as a user's are."""


@pytest.fixture(autouse=True)
def _drawn_here(request, monkeypatch):
    """Drawing in this process: a process takes a second to start, and nothing in it can be broken."""

    class NoPool:
        def __init__(self, *arguments):
            raise TypeError("no process")

    if "drawn_beside" not in request.fixturenames:
        monkeypatch.setattr(background, "ProcessPoolExecutor", NoPool)


def table(folder):
    with open(folder / "samples.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fresh(tiny):
    """Another visualizer of the tiny checkpoint, whose weights are not loaded."""
    return AttentionVisualizer(tiny.checkpoint.name)


def loaded(visualizer):
    return "model" in vars(visualizer.checkpoint)


# --- a run


def test_each_sample_has_its_folder_and_its_row_and_one_that_fails_stops_no_other(tiny, dataset, tmp_path, caplog):
    rows = tiny.visualize_dataset(*dataset, "3,1-2", 1, output_dir=tmp_path / "out", **GIVEN)
    assert [row["sample"] for row in rows] == [3, 1, 2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "sample_0001", "sample_0002", "sample_0003", "samples.csv"
    ]  # fmt: skip
    for number in (1, 3):
        files = sorted(path.name for path in (tmp_path / "out" / f"sample_{number:04d}").iterdir())
        assert files == [VIDEO, "sample.json"]
    one, two, three = table(tmp_path / "out")
    assert one["id"] == "n1" and one["response"] == "<answer> a </answer>" and one["correct"] == "1"
    assert 0 < float(one["image_share_answer_layer1"]) < 1 and one["error"] == ""
    assert three["files"] == f"sample_0003/{VIDEO}"
    assert "names a picture that does not exist" in two["error"] and two["files"] == "" and two["correct"] == ""
    assert "sample 2 of" in caplog.text and "sample 2: sample 2" not in caplog.text


def test_pages_of_many_samples_have_an_index_of_all_that_the_table_has(tiny, dataset, tmp_path):
    for number in ("1", "0,2"):
        tiny.visualize_dataset(*dataset, number, 1, output_dir=tmp_path / "out", format="html", **GIVEN)
    index = (tmp_path / "out" / "index.html").read_text("utf-8")
    links = re.findall(r'<a href="(sample_000[0-9]/[^"]+[.]html)"', index)
    assert [link.partition("/")[0] for link in links] == ["sample_0000", "sample_0001"]
    assert all((tmp_path / "out" / link).is_file() for link in links)
    assert "names a picture that does not exist" in index  # sample 2


def test_a_samples_video_is_the_one_that_the_class_makes_alone(tiny, dataset, tmp_path, drawn_beside):
    options = {**QUICK, "start_phrase": "--following", "frames": [1, -1], "summary": True, "fps": 3}
    tiny.visualize_dataset(*dataset, [0], [1, -1], output_dir=tmp_path / "many", save_record=RECORD, **options)
    sample, images = tiny.load_sample_data(*dataset, 0)
    tiny.create_attention_visualization_for_sample(sample, images, [1, -1], output_dir=tmp_path / "one", **options)
    folder = tmp_path / "many" / "sample_0000"
    made = {path.name for path in folder.iterdir()} - {"sample.json"}
    assert made == {path.name for path in (tmp_path / "one").iterdir()} | {RECORD}
    assert {path.name for path in own_files(folder, read_facts(folder))} == made
    for name in made - {RECORD}:
        assert (folder / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert AttentionRecord.load(folder / RECORD).layers == (1, 2)


def test_a_run_goes_on_where_it_was_and_does_nothing_twice(tiny, dataset, tmp_path, monkeypatch):
    run = lambda **more: tiny.visualize_dataset(*dataset, "0,1,3", 1, output_dir=tmp_path / "out", **GIVEN, **more)  # noqa: E731
    recorded, record = [], tiny.record

    @functools.wraps(record)
    def stopping(sample, *arguments, **options):
        recorded.append(sample["id"])
        if sample["id"] == "n1" and len(recorded) == 2:
            raise KeyboardInterrupt
        return record(sample, *arguments, **options)

    monkeypatch.setattr(tiny, "record", stopping)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert recorded == ["n0", "n1"] and not list((tmp_path / "out").rglob(".*"))
    assert [row["sample"] for row in table(tmp_path / "out")] == ["0"], "the table tells of what is there"
    done = is_finished(folder := tmp_path / "out" / "sample_0000", read_facts(folder))
    assert [row["error"] for row in run()] == [""] * 3
    assert recorded[2:] == ["n0"] * (not done) + ["n1", "n3"]
    recorded.clear()
    run()
    assert recorded == []
    (tmp_path / "out" / "sample_0001" / VIDEO).write_bytes(b"cut")
    run()
    assert recorded == ["n1"]


def test_a_stale_video_is_made_again(tiny, dataset, tmp_path):
    folder = tmp_path / "out" / "sample_0001"
    folder.mkdir(parents=True)
    (folder / VIDEO).write_bytes(b"of an earlier time")
    (folder / "sample.json").write_text(json.dumps({"sample": 1, "response": "old"}))
    (row,) = tiny.visualize_dataset(*dataset, [1], 1, output_dir=tmp_path / "out", **GIVEN)
    assert row["error"] == "" and (folder / VIDEO).read_bytes() != b"of an earlier time"


def test_overwriting_makes_a_finished_sample_again(tiny, dataset, tmp_path, monkeypatch):
    run = lambda **more: tiny.visualize_dataset(*dataset, [1], 1, output_dir=tmp_path / "out", **GIVEN, **more)  # noqa: E731
    run()
    before = (tmp_path / "out/sample_0001" / VIDEO).stat()
    run(overwrite=True)
    assert (tmp_path / "out/sample_0001" / VIDEO).stat().st_mtime_ns > before.st_mtime_ns


def test_a_finished_sample_of_other_settings_or_data_is_told_before_the_model_is_loaded(tiny, dataset, tmp_path):
    options = {"output_dir": tmp_path / "out", **GIVEN}
    tiny.visualize_dataset(*dataset, "0-1", 1, **options)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    other = fresh(tiny)
    with pytest.raises(ValueError, match=r"2 finished sample.* were made .*, such as sample 0 \(other layers\)"):
        other.visualize_dataset(*dataset, "0-1", 2, **options)
    with pytest.raises(ValueError, match=r"\(other max_new_tokens, seed\); give another output_dir, or --overwrite"):
        other.visualize_dataset(*dataset, "0-1", 1, seed=3, max_new_tokens=2, **options)
    picture((120, 90), "navy").save(dataset[1] / "a.png")
    with pytest.raises(ValueError, match=r"\(other input\)"):
        other.visualize_dataset(*dataset, "0-1", 1, **options)
    picture((120, 90), "orange").save(dataset[1] / "a.png")
    config = Path(tiny.checkpoint.name) / "config.json"
    times = config.stat()
    os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    with pytest.raises(ValueError, match=r"\(other checkpoint\)"):
        other.visualize_dataset(*dataset, "0-1", 1, **options)
    os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not loaded(other)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


def test_a_sample_that_another_run_has_finished_meanwhile_is_left_alone(tiny, dataset, tmp_path, monkeypatch):
    options = {"output_dir": tmp_path / "out", **GIVEN}
    recorded, record = [], tiny.record

    @functools.wraps(record)
    def beside_another_run(sample, *arguments, **more):
        recorded.append(sample["id"])
        if recorded == ["n0"]:
            tiny.visualize_dataset(*dataset, [3], 1, **options)
        return record(sample, *arguments, **more)

    monkeypatch.setattr(tiny, "record", beside_another_run)
    rows = tiny.visualize_dataset(*dataset, "0,3", 1, **options)
    assert recorded == ["n0", "n3"] and [row["error"] for row in rows] == ["", ""]


def test_what_is_said_of_one_sample_names_it_and_later_words_do_not(tiny, dataset, tmp_path, caplog):
    tiny.visualize_dataset(*dataset, [3, 2, 0], 1, output_dir=tmp_path / "out", **QUICK)
    cut = [record.getMessage().split(": ")[0] for record in caplog.records if "was cut at" in record.getMessage()]
    assert cut == ["sample 3", "sample 0"]
    caplog.clear()
    logger.warning("later")
    assert caplog.messages == ["later"]


def test_a_token_that_one_answer_lacks_costs_no_sample(tiny, dataset, tmp_path, caplog):
    options = {"frames": [1, 99], "output_dir": tmp_path, **GIVEN}
    rows = tiny.visualize_dataset(*dataset, "0-1", 1, **options)
    assert [row["error"] for row in rows] == ["", ""] and "99" in caplog.text
    assert len(list(tmp_path.rglob("*.png"))) == 3  # with the dataset's own


def test_auto_and_the_check_of_each_sample_stand_in_the_table(tiny, dataset, tmp_path):
    (row,) = tiny.visualize_dataset(*dataset, "0", "auto", output_dir=tmp_path, check=True, view="clear", **GIVEN)
    assert row["map"].startswith("layer ") and "head " in row["map"] and "hiding the hottest 20%" in row["check"]


def test_only_one_row_a_sample_and_no_memory_of_an_earlier_failure(tiny, dataset, tmp_path):
    options = {"output_dir": tmp_path / "out", **GIVEN}
    assert tiny.visualize_dataset(*dataset, [2], 1, **options)[0]["error"]
    picture((120, 90)).save(dataset[1] / "none.png")
    assert tiny.visualize_dataset(*dataset, [2], 1, **options)[0]["error"] == ""
    assert len(table(tmp_path / "out")) == 1 and (tmp_path / "out" / "sample_0002" / VIDEO).is_file()


def test_a_dataset_may_be_a_list(tiny, dataset, tmp_path, caplog):
    samples = json.loads(dataset[0].read_text())
    rows = tiny.visualize_dataset(samples, dataset[1], [1, 2], 1, output_dir=tmp_path / "out", **GIVEN)
    assert rows[0]["error"] == "" and "sample 2 of the dataset names a picture" in rows[1]["error"]


def test_a_sample_that_json_cannot_hold_fails_alone(tiny, dataset, tmp_path):
    samples = json.loads(dataset[0].read_text())
    samples[0] |= {3: "no text"}
    rows = tiny.visualize_dataset(samples, dataset[1], [0, 1], 1, output_dir=tmp_path / "out", **GIVEN)
    assert [bool(row["error"]) for row in rows] == [True, False]


def test_options_of_any_kind_of_number_and_path_reach_the_drawing(tiny, dataset, tmp_path):
    font = getattr(FontSet(20).main, "path", None)
    options = {**GIVEN, "font_path": font and Path(font), "fps": np.float32(2), "frames": np.array([1])}
    options |= {"save_record": Path(RECORD), "smooth": np.int64(1)}
    (row,) = tiny.visualize_dataset(*dataset, [1], np.int64(1), output_dir=tmp_path, **options)
    assert row["error"] == "" and len(row["files"].split(";")) == 3, row


# --- colour maps of one's own


def test_a_colour_map_that_no_other_process_could_have_is_drawn_here_and_told_from_others(tiny, dataset, tmp_path):
    run = lambda colour: tiny.visualize_dataset(  # noqa: E731
        *dataset, [1], 1, output_dir=tmp_path, colormap=lambda v: np.outer(v, colour), **GIVEN
    )
    (row,) = run((255, 0, 0))
    assert row["error"] == "" and (tmp_path / row["files"]).stat().st_size > 0
    run((255, 0, 0))
    with pytest.raises(ValueError, match=r"\(other colormap\)"):
        run((0, 0, 255))
    assert not list(tmp_path.rglob("*.partial*"))


# --- what fails


def breaking(monkeypatch, error):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(background, "write_records", broken)


def test_a_sample_that_cannot_be_drawn_is_reported_and_its_record_is_kept(tiny, dataset, tmp_path, monkeypatch, caplog):
    breaking(monkeypatch, IndexError("no paint"))
    rows = tiny.visualize_dataset(*dataset, "0-1", 1, output_dir=tmp_path / "out", **GIVEN)
    for number, row in enumerate(rows):
        kept = tmp_path / "out" / f"sample_{number:04d}" / "record.safetensors"
        assert row["error"] == f"IndexError: no paint; the record is kept in {kept}"
        assert row["response"] == "<answer> a </answer>" == AttentionRecord.load(kept).response
    assert "sample 1: IndexError: no paint" in caplog.text
    assert not list(tmp_path.rglob("*.mp4")) and not list(tmp_path.rglob("*.partial*"))


def test_a_disk_that_is_full_while_drawing_stops_the_run_and_blames_no_other_sample(
    tiny, dataset, tmp_path, monkeypatch
):
    breaking(monkeypatch, OSError(28, os.strerror(28)))
    with pytest.raises(NoSpaceLeft, match="has no space left; make room, and the same command goes on where it was"):
        tiny.visualize_dataset(*dataset, "0,1,3", 1, output_dir=tmp_path / "out", **GIVEN)
    first = table(tmp_path / "out")[0]
    assert first["sample"] == "0" and os.strerror(28) in first["error"]
    assert {row["error"] for row in table(tmp_path / "out")[1:]} <= {"not finished"}
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_full_disk_stops_the_run_and_what_was_finished_stays(tiny, dataset, tmp_path, monkeypatch):
    save, saved = AttentionRecord.save, []

    def full(record, path, **options):
        saved.append(path)
        if len(saved) == 2:
            raise OSError(28, os.strerror(28))
        save(record, path, **options)

    monkeypatch.setattr(AttentionRecord, "save", full)
    with pytest.raises(OSError, match="has no space left; make room, and the same command goes on"):
        tiny.visualize_dataset(*dataset, "0,1,3", 1, output_dir=tmp_path / "out", save_record=RECORD, **GIVEN)
    assert len(saved) == 2 and [row["sample"] for row in table(tmp_path / "out")] == ["0", "1"]
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_process_that_draws_and_is_killed_gives_its_work_back(tmp_path, caplog, drawn_beside):
    record = make_record(["Based"], [" a", " b"])
    record = AttentionRecord(**{**vars(record), "pictures": (picture_file(picture()),)})
    with background.BackgroundDrawing("Based", DrawingOptions(frame_size=SMALL), None) as beside:
        beside.start(tmp_path / "sample_0000", {"sample": 0, "answer": None}, [record])
        for process in beside._processes:
            process.kill()
    assert "the process that draws has ended; drawing goes on in this one" in caplog.text
    assert is_finished(tmp_path / "sample_0000", read_facts(tmp_path / "sample_0000"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_process_that_draws_and_is_killed_between_two_samples_is_replaced(tmp_path, caplog, drawn_beside):
    record = dataclasses.replace(make_record(["Based"], [" a", " b"]), pictures=(picture_file(picture()),))
    with background.BackgroundDrawing("Based", DrawingOptions(frame_size=SMALL), None) as beside:
        for number in range(3):
            beside.start(tmp_path / f"sample_000{number}", {"sample": number, "answer": None}, [record])
            beside.finish()
            for process in beside._processes:
                process.kill()
                process.join()
    folders = [tmp_path / f"sample_000{number}" for number in range(3)]
    assert all(is_finished(folder, read_facts(folder)) for folder in folders)
    assert caplog.text.count("the process that draws has ended; drawing goes on in this one") == 1


def test_what_cannot_be_handed_to_the_process_is_drawn_here(tmp_path, caplog, drawn_beside):
    record = dataclasses.replace(make_record(["Based"], [" a", " b"]), pictures=(picture_file(picture()),))
    with background.BackgroundDrawing("Based", DrawingOptions(frame_size=SMALL), None) as beside:
        (drawn := dataclasses.replace(record)).__dict__["kept"] = lambda: 0
        beside.start(tmp_path / "sample_0000", {"sample": 0, "answer": None}, [drawn])
    assert is_finished(tmp_path / "sample_0000", read_facts(tmp_path / "sample_0000"))
    assert "a sample cannot be handed to the process that draws" in caplog.text


def test_a_record_that_cannot_be_kept_when_drawing_fails_is_told(tiny, dataset, tmp_path, monkeypatch, caplog):
    breaking(monkeypatch, IndexError("no paint"))
    monkeypatch.setattr(AttentionRecord, "save", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    (row,) = tiny.visualize_dataset(*dataset, "0", 1, output_dir=tmp_path / "out", **GIVEN)
    assert row["error"] == "no paint" and "the record could not be kept: no room" in caplog.text


def test_a_sample_whose_folder_cannot_be_made_fails_alone(tiny, dataset, tmp_path, caplog):
    (tmp_path / "sample_0000").touch()
    rows = tiny.visualize_dataset(*dataset, "0-1", 1, output_dir=tmp_path, **GIVEN)
    assert [row["error"] for row in rows] == ["not finished", ""] and "sample 0: " in caplog.text


def test_whatever_fails_with_one_sample_is_that_samples(tiny, dataset, tmp_path, monkeypatch):
    record, seen = tiny.record, []

    @functools.wraps(record)
    def failing(sample, *arguments, **options):
        seen.append(sample["id"])
        if sample["id"] == "n0":
            raise ZeroDivisionError("x\n" * 10**6)
        return record(sample, *arguments, **options)

    monkeypatch.setattr(tiny, "record", failing)
    rows = tiny.visualize_dataset(*dataset, "0-1", 1, output_dir=tmp_path, **GIVEN)
    assert rows[0]["error"].startswith("x x") and len(rows[0]["error"]) < 2100 and rows[1]["error"] == ""


def test_a_run_that_is_stopped_at_its_first_sample_is_stopped_and_nothing_else(tiny, dataset, tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "record", functools.wraps(tiny.record)(stopped))
    with pytest.raises(KeyboardInterrupt):
        tiny.visualize_dataset(*dataset, "0-1", 1, output_dir=tmp_path / "new" / "out", **GIVEN)
    assert table(tmp_path / "new" / "out") == []


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("error, kind", [(ValueError("no"), RuntimeError), (IndexError("no"), OurMistake)])
def test_no_failure_after_a_record_exists_loses_it(tmp_path, saved, error, kind):
    record, place = make_record(["a"], ["b"]), tmp_path / "out" / "record.safetensors"
    with (
        pytest.raises(kind, match=r"no; the record is kept in ") as told,
        kept_on_failure([record], ["elsewhere"] if saved else [], place),
    ):
        raise error
    assert str(told.value).endswith("elsewhere" if saved else str(place)) and place.exists() is not saved
    assert saved or AttentionRecord.load(place).response == "b"


def test_a_record_that_cannot_be_kept_hides_no_error(tmp_path, caplog):
    (tmp_path / "file").touch()
    with (
        pytest.raises(IndexError, match=r"^no$"),
        kept_on_failure([make_record(["a"], ["b"])], [], tmp_path / "file" / "record.safetensors"),
    ):
        raise IndexError("no")
    assert "the record could not be kept" in caplog.text


# --- before the long work


@pytest.mark.parametrize(
    "options, message",
    [
        ({"response": "x"}, "give response_key"),
        ({"save_record": "a/b.safetensors"}, "is no name for each sample's folder"),
        ({"save_record": "run.npz"}, "is no name for each sample's folder"),
        ({"save_record": "../run.safetensors"}, "is no name for each sample's folder"),
        ({"save_record": "sample.json"}, "is no name for each sample's folder"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"prompt_template": "x"}, "has no {Question}"),
        ({"head": 99}, "head 99 cannot be taken"),
        ({"layer_idx": 99}, "layer_idx 99 is out of range"),
        ({"layer_idx": "yellow"}, "layer_idx is 'yellow'"),
        ({"layer_idx": 0.5}, "layer_idx is 0.5"),
        ({"layer_idx": []}, "no layer was given"),
        ({"sample_idx": "9"}, "out of range"),
        ({"output_dir": "/dev/null/x"}, "cannot be written to"),
        ({"output_dir": "nul\0"}, "cannot be written to"),
        ({"image_dir": "nowhere"}, "is no directory"),
        ({"benchmark_json": "nowhere"}, "does not exist"),
        ({"benchmark_json": []}, "is an empty list"),
        ({"no_such": 1}, "there is no option 'no_such'"),
        ({"compare_model_path": "./nowhere"}, "no directory"),
    ],
)
def test_what_no_sample_could_succeed_with_is_told_at_once(tiny, dataset, tmp_path, options, message):
    other = fresh(tiny)
    places = dict(zip(("benchmark_json", "image_dir"), dataset))
    with pytest.raises((ValueError, OSError), match=message) as error:
        other.visualize_dataset(**{**places, "output_dir": tmp_path / "out", **options})
    assert not loaded(other) and not (tmp_path / "out").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("a,b\n"), os.mkfifo])
def test_a_table_that_cannot_be_written_is_told_at_once(tiny, dataset, tmp_path, make):
    make(tmp_path / "samples.csv")
    other = fresh(tiny)
    with pytest.raises(ValueError, match=r"samples\.csv is .*; give "):
        other.visualize_dataset(*dataset, "0", output_dir=tmp_path, **GIVEN)
    assert not loaded(other)


@pytest.mark.parametrize(
    "sample, images, message",
    [
        ({"problem": " "}, ["a.png"], "the problem of the sample is ' '; expected a text"),
        ({}, ["a.png"], "the problem of the sample is None"),
        (["go"], ["a.png"], "the problem of the sample is None"),
        ({"problem": "go"}, ["none.png"], "names a picture that does not exist: none.png"),
        ({"problem": "go"}, [3], "a picture is a int; expected a path or a PIL image"),
        ({"problem": "go"}, [], r"0 pictures were given; expected 1\.\.2 \(max_image_num\)"),
        ({"problem": "go"}, ["a.png"] * 3, r"3 pictures were given; expected 1\.\.2 \(max_image_num\)"),
    ],
)
def test_a_sample_that_cannot_be_answered_is_told_before_the_weights(tiny, sample, images, message):
    other = fresh(tiny)
    picture((60, 60)).save("a.png")
    with pytest.raises((ValueError, OSError), match=message):
        other.record(sample, images, 1)
    assert not loaded(other)


def test_settings_are_json_as_it_is_read_again():
    settings = settings_of_run(
        {"head": (0, (1, 2)), "model": Path("x")}, DrawingOptions(colormap=lambda v: np.outer(v, (1, 2, 3)))
    )
    assert json.loads(json.dumps(settings)) == settings and len(settings["colormap"]) == 64


def test_a_picture_outside_is_not_read_before_it_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    sample, seen = {"image": str(tmp_path / "secret"), "problem": "p"}, {}
    for content in (b"one", b"two"):
        (tmp_path / "secret").write_bytes(content)
        for allowed in (False, True):
            seen.setdefault(allowed, set()).add(fingerprint(sample, tmp_path / "images", allowed))
    assert len(seen[False]) == 1 and len(seen[True]) == 2


@pytest.mark.parametrize("sample", [
    None, 3, [], {"image": "a\0b", "problem": "p"}, {"image": "pipe", "problem": "p"},
    {"image": "a", "problem": object()}, {"image": "x" * 9999, "problem": "\ud800"},
])  # fmt: skip
def test_any_sample_has_a_fingerprint(tmp_path, sample):
    os.mkfifo(tmp_path / "pipe")
    assert len(fingerprint(sample, tmp_path)) == 64


# --- several processes, and the command line


def test_of_several_processes_each_takes_its_part_and_a_card_of_its_own(tiny, dataset, tmp_path, monkeypatch):
    import accelerate

    for index in (0, 1):
        state = accelerate.PartialState()
        monkeypatch.setattr(state, "num_processes", 2)
        monkeypatch.setattr(state, "process_index", index)
        visualizer = fresh(tiny)
        visualizer.visualize_dataset(*dataset, "0,1,3", 1, output_dir=tmp_path, **GIVEN)
        assert visualizer.checkpoint.options.device_map == {"": state.device}
        names = sorted(path.name for path in tmp_path.glob("sample_*/*.mp4"))
        assert len(names) == (2, 3)[index]


def test_a_report_lists_the_samples_that_failed(tmp_path):
    rows = [{"sample": n, "error": "x" * (n % 2)} for n in range(100)]
    with pytest.raises(
        SamplesFailed, match=r"^50 of 100 samples failed: 1, 3, .*, 39, \.\.\.; .*samples\.csv says why$"
    ):
        report_samples(rows, tmp_path)
    assert report_samples(rows[::2], tmp_path) == str(tmp_path / "samples.csv")


def test_the_command_ends_with_1_and_a_list_where_samples_failed_and_reads_the_dataset_once(
    tiny, dataset, tmp_path, capsys
):
    read, write = os.pipe()
    os.write(write, dataset[0].read_bytes())
    os.close(write)
    flags = ["--model_path", tiny.checkpoint.name, "--benchmark_json", f"/dev/fd/{read}", "--image_dir", dataset[1]]
    flags += ["--layer_idx", 1, "--response_key", "pred", "--frame_size", "640x360", "--output_dir", tmp_path / "out"]
    assert main([*map(str, flags), "--sample_idx", "1-2"]) == 1
    os.close(read)
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == f"error: 1 of 2 samples failed: 2; {tmp_path / 'out' / 'samples.csv'} says why"
    flags[3] = dataset[0]
    assert main([*map(str, flags), "--sample_idx", "1,1"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "samples.csv")
    assert len(table(tmp_path / "out")) == 2


def test_processes_share_the_samples_and_one_table_tells_of_all(tiny, dataset, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "visualizeHeatMap.py"), "--model_path", tiny.checkpoint.name, "--sample_idx", "all"]
    command += ["--benchmark_json", str(dataset[0]), "--image_dir", str(dataset[1]), "--layer_idx", "1", "--verbose"]
    command += ["--frame_size", "640x360", "--response_key", "pred", "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "1 of 4 samples failed: 2;" in result.stderr, result.stderr[-2000:]
    assert [bool(row["files"]) for row in table(tmp_path / "out")] == [True, True, False, True]
    once = result.stderr.count("INFO: sample 0: <answer> a </answer>") + result.stderr.count("<answer> a </answer>")
    assert "sample 2 of" in result.stderr and once >= 3, "each sample once"
    assert not list(tmp_path.rglob("*.partial*"))
    assert result.stderr.count("samples failed") == 1 and not result.stdout, "one process tells the end"
