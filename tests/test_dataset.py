"""Many samples in one run: which ones, what is kept of each, and how a run goes on."""

import csv
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, make_record, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import qwen_checkpoint

import visualizeHeatMap as vhm

QUICK = {"max_new_tokens": 3, "frame_size": SMALL}
VIDEO = "combined_attention_visualization_layer1.mp4"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return vhm.AttentionVisualizer(str(qwen_checkpoint("qwen2_vl", tmp_path_factory.mktemp("tiny"))))


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


def table(folder):
    with open(folder / "samples.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- which samples


@pytest.mark.parametrize(
    "selection, numbers",
    [
        (3, [3]), ("3", [3]), ("0-3", [0, 1, 2, 3]), ("0,5,9", [0, 5, 9]), ("all", list(range(10))),
        ("9,0-2,1", [9, 0, 1, 2]), (" 1 - 2 , 4 ", [1, 2, 4]), ([4, 1, 4], [4, 1]), (np.array([2, 3]), [2, 3]),
    ],
)  # fmt: skip
def test_a_selection_names_each_sample_once_in_its_order(selection, numbers):
    assert vhm.select_samples(selection, 10, "d.json") == numbers


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted), min_size=1))
def test_a_selection_that_is_written_down_is_read_as_it_was(spans):
    text = ",".join(f"{a}-{b}" if a < b else str(a) for a, b in spans)
    expected = list(dict.fromkeys(n for a, b in spans for n in range(a, b + 1)))
    assert vhm.select_samples(text, 51, "d.json") == expected
    assert vhm.select_samples(",".join(map(str, expected)), 51, "d.json") == expected


@given(st.text(alphabet="0123456789-, alx\u0663\n", max_size=12), st.integers(1, 40))
def test_any_text_is_a_selection_within_the_range_or_one_clear_error(text, count):
    try:
        numbers = vhm.select_samples(text, count, "d.json")
    except ValueError as error:
        assert str(error).startswith("sample_idx ") and "\n" not in str(error)
    else:
        assert numbers and len(set(numbers)) == len(numbers) and set(numbers) <= set(range(count))


def test_no_sample_is_no_selection():
    with pytest.raises(ValueError, match="names no sample"):
        vhm.select_samples([], 3, "d.json")


@pytest.mark.parametrize("text", ["", ",", "1,", "-", "3-", "-3", "5-3", "1--2", "all,3", "0x2", "1e3", "1.0", "٣"])
def test_a_form_that_cannot_be_read_says_what_can(text):
    with pytest.raises(ValueError, match="cannot be read; expected a number, a range such as 0-99"):
        vhm.select_samples(text, 10, "d.json")


@pytest.mark.parametrize(
    "selection, named", [("8-12", "8-12"), ("0,10", "10"), ([-1], "-1"), ("0-999999999999999", "0-9")]
)
def test_a_selection_out_of_range_is_named_and_never_spelled_out(selection, named):
    with pytest.raises(ValueError, match=rf"sample_idx {named}.* is out of range: d\.json has 10 samples \(0\.\.9\)"):
        vhm.select_samples(selection, 10, "d.json")


# --- what is kept of a sample


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
        ("a", None, None),
        ("a", "  ", None),
    ],
)
def test_an_answer_is_compared_letter_by_letter_but_for_white_space(response, answer, correct):
    assert vhm.is_correct(response, answer) is correct


def test_the_shares_of_the_phases_are_means_of_the_shares_that_the_frames_show():
    record = make_record(["go"], ["<think>", " a", "</think>", "<answer>", " b", "</answer>"])
    shares = vhm.attention_shares(record, 1)[0].weights
    found = vhm.phase_shares(record, 1)
    assert found.keys() == {"think", "answer", "response"}
    np.testing.assert_allclose(found["think"], shares[:3].mean(), atol=1e-6)
    np.testing.assert_allclose(found["answer"], shares[3:].mean(), atol=1e-6)
    np.testing.assert_allclose(found["response"], shares.mean(), atol=1e-6)


@pytest.mark.parametrize(
    "change, finished",
    [
        ({}, True), ({"error": "x"}, False), ({"files": []}, False), ({"files": ["a.mp4", "gone.mp4"]}, False),
        ({"files": ["../a.mp4"]}, False), ({"files": "a.mp4"}, False), ({"files": [3]}, False),
        ({"files": [".."]}, False),
    ],
)  # fmt: skip
def test_a_sample_is_finished_when_all_its_files_are_there(tmp_path, change, finished):
    (tmp_path / "a.mp4").touch()
    vhm.write_facts(tmp_path, {"files": ["a.mp4"], **change})
    assert vhm.is_finished(tmp_path, vhm.read_facts(tmp_path)) is finished


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_facts_that_cannot_be_read_are_none(tmp_path, content):
    (tmp_path / "sample.json").write_bytes(content)
    assert vhm.read_facts(tmp_path) == {} and not vhm.is_finished(tmp_path, {})


def test_forgetting_a_sample_takes_its_own_files_and_no_others(tmp_path):
    folder = tmp_path / "sample_0000"
    vhm.write_facts(folder, {"files": ["a.mp4", "../keep.mp4", "/etc/none"]})
    for path in (folder / "a.mp4", folder / "mine.txt", tmp_path / "keep.mp4"):
        path.touch()
    vhm.forget_sample(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"] and (tmp_path / "keep.mp4").exists()


def test_the_table_holds_hostile_text_and_runs_none_of_it(tmp_path):
    texts = ["=1+1", " @SUM(A1)", "+x", "-2.5", "a\x1b[31m\u202e\ud800\0b", 'say "a,b"\nc']
    for number, text in enumerate(texts):
        vhm.write_facts(tmp_path / f"sample_{number:04d}", {"response": text, "id": [text]})
    (tmp_path / "sample_other").mkdir()
    vhm.write_table(tmp_path)
    rows = table(tmp_path)
    assert [row["response"] for row in rows] == [
        "'=1+1", "' @SUM(A1)", "'+x", "-2.5", "a\\x1b[31m\\u202e\\ud800\\x00b", 'say "a,b"\nc',
    ]  # fmt: skip
    assert [row["sample"] for row in rows] == list("012345") and {row["error"] for row in rows} == {"not finished"}


def test_a_table_survives_facts_of_the_wrong_kind(tmp_path):
    for number, facts in enumerate([{"image_share": 3, "correct": "yes"}, {"image_share": {"1": [2]}, "files": {}}]):
        vhm.write_facts(tmp_path / f"sample_{number:04d}", facts)
    vhm.write_table(tmp_path)
    assert [row["correct"] for row in table(tmp_path)] == ["", ""]


# --- a run


def test_each_sample_has_its_folder_and_its_row_and_one_that_fails_stops_no_other(tiny, dataset, tmp_path, caplog):
    rows = tiny.visualize_dataset(*dataset, "3,1-2", 1, output_dir=tmp_path / "out", response_key="pred", **QUICK)
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
    assert "sample 2: sample 2 of" in caplog.text


def test_a_samples_video_is_the_one_that_the_class_makes_alone(tiny, dataset, tmp_path):
    options = {**QUICK, "start_phrase": "--following", "frames": [0, -1], "summary": True, "fps": 3, "scale": "frame"}
    tiny.visualize_dataset(*dataset, [0], [1, -1], output_dir=tmp_path / "many", save_record="run.npz", **options)
    sample, images = tiny.load_sample_data(*dataset, 0)
    tiny.create_attention_visualization_for_sample(sample, images, [1, -1], output_dir=tmp_path / "one", **options)
    folder = tmp_path / "many" / "sample_0000"
    made = {path.name for path in folder.iterdir()} - {"sample.json"}
    assert made == {path.name for path in (tmp_path / "one").iterdir()} | {"run.npz"}
    assert {path.name for path in vhm.own_files(folder, vhm.read_facts(folder))} == made
    for name in made - {"run.npz"}:
        assert (folder / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert vhm.AttentionRecord.load(folder / "run.npz").layers == (1, 2)


def test_a_run_goes_on_where_it_was_and_does_nothing_twice(tiny, dataset, tmp_path, monkeypatch):
    run = lambda **more: tiny.visualize_dataset(*dataset, "0,1,3", 1, output_dir=tmp_path / "out", **QUICK, **more)  # noqa: E731
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
    done = vhm.is_finished(folder := tmp_path / "out" / "sample_0000", vhm.read_facts(folder))
    assert [row["error"] for row in run()] == [""] * 3
    assert recorded[2:] == ["n0"] * (not done) + ["n1", "n3"]
    recorded.clear()
    run()
    assert recorded == []
    (tmp_path / "out" / "sample_0001" / VIDEO).unlink()
    run()
    assert recorded == ["n1"]
    run(overwrite=True)
    assert recorded == ["n1", "n0", "n1", "n3"]


def test_a_finished_sample_of_other_settings_or_data_is_told_before_the_model_is_loaded(tiny, dataset, tmp_path):
    options = {"output_dir": tmp_path / "out", **QUICK}
    tiny.visualize_dataset(*dataset, "0-1", 1, **options)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    fresh = vhm.AttentionVisualizer(tiny.model_name_or_path)
    with pytest.raises(ValueError, match=r"2 finished sample.* were made otherwise, such as sample 0 \(other layers\)"):
        fresh.visualize_dataset(*dataset, "0-1", 2, **options)
    with pytest.raises(ValueError, match=r"\(other max_new_tokens, seed\); give another output_dir, or --overwrite"):
        fresh.visualize_dataset(*dataset, "0-1", 1, seed=3, **{**options, "max_new_tokens": 2})
    picture((120, 90), "navy").save(dataset[1] / "a.png")
    with pytest.raises(ValueError, match=r"\(other input\)"):
        fresh.visualize_dataset(*dataset, "0-1", 1, **options)
    assert "model" not in vars(fresh)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


def test_what_is_said_of_one_sample_names_it_and_later_words_do_not(tiny, dataset, tmp_path, caplog):
    tiny.visualize_dataset(*dataset, [3, 2, 0], 1, output_dir=tmp_path / "out", **QUICK)
    cut = [record.getMessage().split(": ")[0] for record in caplog.records if "was cut at" in record.getMessage()]
    assert cut == ["sample 3", "sample 0"]
    caplog.clear()
    vhm.logger.warning("later")
    assert caplog.messages == ["later"]


def test_a_sample_that_cannot_be_drawn_is_reported_and_keeps_its_response(tiny, dataset, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(vhm, "__file__", str(tmp_path / "fail.py"))
    (tmp_path / "fail.py").write_text("import sys; sys.exit('error: no paint')")
    rows = tiny.visualize_dataset(*dataset, "0-1", 1, output_dir=tmp_path, response_key="pred", **QUICK)
    assert [row["error"] for row in rows] == ["no paint", "no paint"]
    assert rows[0]["response"] == "<answer> a </answer>" and "sample 1: no paint" in caplog.text
    assert not list(tmp_path.rglob("*.mp4")) and not list(tmp_path.rglob("*.partial*"))


def test_a_step_that_one_answer_lacks_costs_no_sample(tiny, dataset, tmp_path, caplog):
    options = {"response_key": "pred", "frames": [0, 99], **QUICK}
    rows = tiny.visualize_dataset(*dataset, "0-1", 1, output_dir=tmp_path, **options)
    assert [row["error"] for row in rows] == ["", ""] and "not all of the frames [0, 99] are there" in caplog.text
    assert len(list(tmp_path.rglob("*_step0.png"))) == 2 and not list(tmp_path.rglob("*_step99.png"))
    tiny.visualize_dataset(*dataset, "0-1", 1, output_dir=tmp_path, **options)  # finished: nothing is redone
    assert len(list(tmp_path.rglob("*.mp4"))) == 2


def test_a_drawing_process_whose_parent_has_ended_moves_nothing_into_place(tmp_path, monkeypatch):
    monkeypatch.setenv(vhm.DRAWN_FOR, "1" if os.getppid() != 1 else "2")
    with pytest.raises(OSError, match="no longer asked for"), vhm.moved_into_place(tmp_path / "a.png") as temporary:
        temporary.touch()
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_has_changed_is_another_setting(tiny, dataset, tmp_path):
    tiny.visualize_dataset(*dataset, "0", 1, output_dir=tmp_path, **QUICK)
    config = Path(tiny.model_name_or_path) / "config.json"
    before = config.stat()
    os.utime(config, (before.st_atime, before.st_mtime + 1))
    with pytest.raises(ValueError, match="checkpoint"):
        tiny.visualize_dataset(*dataset, "0", 1, output_dir=tmp_path, **QUICK)
    os.utime(config, (before.st_atime, before.st_mtime))


def test_auto_and_the_check_of_each_sample_stand_in_the_table(tiny, dataset, tmp_path):
    rows = tiny.visualize_dataset(*dataset, "0-1", "auto", output_dir=tmp_path, check=True, view="clear", **QUICK)
    assert all("(auto)" in row["map"] and row["check"] for row in rows)


def test_a_drawing_process_that_is_killed_is_reported(tiny, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(vhm, "__file__", str(tmp_path / "kill.py"))
    (tmp_path / "kill.py").write_text("import os; os.kill(os.getpid(), 9)")
    (row,) = tiny.visualize_dataset(*dataset, "0", 1, output_dir=tmp_path, **QUICK)
    assert row["error"] == "drawing ended with status -9" and not list(tmp_path.rglob("*.partial*"))


def test_a_sample_whose_folder_cannot_be_made_fails_alone(tiny, dataset, tmp_path, caplog):
    (tmp_path / "sample_0000").touch()
    rows = tiny.visualize_dataset(*dataset, "0-1", 1, output_dir=tmp_path, **QUICK)
    assert [row["error"] for row in rows] == ["not finished", ""] and "sample 0: " in caplog.text


def test_of_several_processes_each_takes_its_part_and_a_card_of_its_own(tiny, dataset, tmp_path, monkeypatch):
    import accelerate

    for index in (0, 1):
        state = accelerate.PartialState()
        monkeypatch.setattr(state, "num_processes", 2)
        monkeypatch.setattr(state, "process_index", index)
        visualizer = vhm.AttentionVisualizer(tiny.model_name_or_path)
        visualizer.visualize_dataset(*dataset, "0,1,3", 1, output_dir=tmp_path, **QUICK)
        assert visualizer.device_map == {"": state.device}
        names = sorted(path.name for path in tmp_path.glob("sample_*/*.mp4"))
        assert len(names) == (2, 3)[index]


def test_a_colour_map_of_ones_own_is_drawn_here(tiny, dataset, tmp_path):
    grey = lambda values: np.repeat(values[:, None] * 255, 3, axis=1)  # noqa: E731
    (row,) = tiny.visualize_dataset(*dataset, [1], 1, output_dir=tmp_path, colormap=grey, **QUICK)
    assert row["error"] == "" and (tmp_path / row["files"]).stat().st_size > 0
    tiny.visualize_dataset(*dataset, [1], 1, output_dir=tmp_path, colormap=grey, **QUICK)
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_full_disk_stops_the_run_and_what_was_finished_stays(tiny, dataset, tmp_path, monkeypatch):
    save, saved = vhm.AttentionRecord.save, []

    def full(record, path, **options):
        saved.append(path)
        if len(saved) == 2:
            raise OSError(28, os.strerror(28))
        save(record, path, **options)

    monkeypatch.setattr(vhm.AttentionRecord, "save", full)
    with pytest.raises(OSError, match="has no space left; make room, and the same command goes on"):
        tiny.visualize_dataset(*dataset, "0,1,3", 1, output_dir=tmp_path / "out", **QUICK)
    assert len(saved) == 2 and [row["sample"] for row in table(tmp_path / "out")] == ["0", "1"]


def test_a_disk_that_is_full_for_one_video_stops_the_run_and_blames_no_other_sample(
    tiny, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(vhm, "__file__", str(tmp_path / "fail.py"))
    (tmp_path / "fail.py").write_text(f"import sys; sys.exit('error: [Errno 28] {os.strerror(28)}')")
    with pytest.raises(vhm.NoSpaceLeft, match="has no space left; make room, and the same command goes on"):
        tiny.visualize_dataset(*dataset, "0,1,3", 1, output_dir=tmp_path / "out", **QUICK)
    (full, next_one) = table(tmp_path / "out")
    assert full["sample"] == "0" and os.strerror(28) in full["error"]
    assert next_one["error"] == "not finished" and not list(tmp_path.rglob("*.partial*"))


def test_a_run_that_is_stopped_at_its_first_sample_is_stopped_and_nothing_else(tiny, dataset, tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "record", functools.wraps(tiny.record)(stopped))
    with pytest.raises(KeyboardInterrupt):
        tiny.visualize_dataset(*dataset, "0-1", 1, output_dir=tmp_path / "new" / "out", **QUICK)
    assert table(tmp_path / "new" / "out") == []


def test_a_sample_that_another_run_has_finished_meanwhile_is_left_alone(tiny, dataset, tmp_path, monkeypatch):
    options = {"output_dir": tmp_path / "out", "response_key": "pred", "frame_size": SMALL}
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


def test_a_picture_outside_is_not_read_before_it_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    sample, seen = {"image": str(tmp_path / "secret"), "problem": "p"}, {}
    for content in (b"one", b"two"):
        (tmp_path / "secret").write_bytes(content)
        for allowed in (False, True):
            seen.setdefault(allowed, set()).add(vhm.fingerprint(sample, tmp_path / "images", allowed))
    assert len(seen[False]) == 1 and len(seen[True]) == 2


def test_options_of_any_kind_of_number_and_path_reach_the_drawing(tiny, dataset, tmp_path):
    font = vhm.FontSet(20).main.path
    options = {**QUICK, "font_path": Path(font) if Path(font).exists() else None, "fps": np.float32(2)}
    options |= {"frames": np.array([0]), "save_record": Path("run.npz"), "smooth": np.int64(1)}
    (row,) = tiny.visualize_dataset(*dataset, [1], 1, output_dir=tmp_path, **options)
    assert row["error"] == "" and len(row["files"].split(";")) == 3, row


def test_colour_maps_of_one_name_are_told_apart(tiny, dataset, tmp_path):
    run = lambda colour: tiny.visualize_dataset(  # noqa: E731
        *dataset, [1], 1, output_dir=tmp_path, colormap=lambda v: np.outer(v, colour), response_key="pred",
        frame_size=SMALL,
    )  # fmt: skip
    run((255, 0, 0))
    run((255, 0, 0))
    with pytest.raises(ValueError, match=r"\(other colormap\)"):
        run((0, 0, 255))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"response": "x"}, "give response_key"),
        ({"save_record": "a/b.npz"}, "is no name for each sample's folder"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"prompt_template": "x"}, "has no {Question}"),
        ({"head": 99}, "head 99 cannot be taken"),
        ({"sample_idx": "9"}, "out of range"),
        ({"output_dir": "/dev/null/x"}, "cannot be written to"),
        ({"image_dir": "nowhere"}, "is no directory"),
        ({"no_such": 1}, "unexpected keyword"),
    ],
)
def test_what_no_sample_could_succeed_with_is_told_at_once(tiny, dataset, tmp_path, options, message):
    fresh = vhm.AttentionVisualizer(tiny.model_name_or_path)
    places = dict(zip(("benchmark_json", "image_dir"), dataset))
    with pytest.raises((ValueError, OSError, TypeError), match=message):
        fresh.visualize_dataset(**{**places, "output_dir": tmp_path / "out", **options})
    assert "model" not in vars(fresh) and not (tmp_path / "out").exists()


def test_the_command_ends_with_1_and_a_list_where_samples_failed(tiny, dataset, tmp_path, capsys):
    flags = ["--model_path", tiny.model_name_or_path, "--benchmark_json", dataset[0], "--image_dir", dataset[1]]
    flags += ["--layer_idx", 1, "--max_new_tokens", 2, "--frame_size", "640x360", "--output_dir", tmp_path / "out"]
    assert vhm.main([*map(str, flags), "--sample_idx", "all"]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == f"error: 1 of 4 samples failed: 2; {tmp_path / 'out' / 'samples.csv'} says why"
    assert vhm.main([*map(str, flags), "--sample_idx", "0,3"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "samples.csv")
    assert len(table(tmp_path / "out")) == 4


def test_processes_share_the_samples_and_one_table_tells_of_all(tiny, dataset, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "visualizeHeatMap.py"), "--model_path", tiny.model_name_or_path, "--sample_idx", "all"]
    command += ["--benchmark_json", str(dataset[0]), "--image_dir", str(dataset[1]), "--layer_idx", "1", "--verbose"]
    command += ["--frame_size", "640x360", "--response_key", "pred", "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "1 of 4 samples failed: 2;" in result.stderr
    assert [bool(row["files"]) for row in table(tmp_path / "out")] == [True, True, False, True]
    assert "sample 2: sample 2 of" in result.stderr and result.stderr.count("<answer> a </answer>") == 3, (
        "each sample once"
    )
    assert not list(tmp_path.rglob("*.partial*"))
    assert result.stderr.count("samples failed") == 1 and not result.stdout, "one process tells the end"


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_any_text_is_written_harmlessly_and_is_left_as_it_is_where_it_was_so(text):
    shown = vhm.visible(text)
    assert all(char.isprintable() or char == "\n" or char.isspace() for char in shown)
    assert "\x1b" not in shown and shown.encode() is not None
    assert text != "".join(char for char in text if char.isprintable()) or shown == text
    assert math.isfinite(len(vhm.one_line(text))) and "\n" not in vhm.one_line(text)


def test_only_one_row_a_sample_and_no_memory_of_an_earlier_failure(tiny, dataset, tmp_path):
    options = {"output_dir": tmp_path / "out", **QUICK}
    assert tiny.visualize_dataset(*dataset, [2], 1, **options)[0]["error"]
    picture((120, 90)).save(dataset[1] / "none.png")
    assert tiny.visualize_dataset(*dataset, [2], 1, **options)[0]["error"] == ""
    assert len(table(tmp_path / "out")) == 1 and Path(tmp_path / "out" / "sample_0002" / VIDEO).is_file()
