"""The class: the contract of its names, and what holds only where recording and drawing come together."""

import inspect
import json
import re
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
from conftest import DEMO, ROOT
from records import SMALL, picture
from reference import inputs_of

from attention_heatmap.log import NOTE
from attention_heatmap.recording.attention import implementations
from visualizeHeatMap import AttentionRecord, AttentionVisualizer

SAMPLE = {"problem": "Based on the following requirements, go."}
QUICK = {"max_new_tokens": 4, "frame_size": SMALL}


@pytest.fixture
def create(tiny, tmp_path):
    """create_attention_visualization_for_sample of the tiny Qwen2-VL, on one picture, quickly."""

    def run(layer_idx=1, **options):
        options = {"output_dir": tmp_path, **QUICK, **options}
        return tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], layer_idx, **options)

    return run


def test_the_names_positions_and_defaults_are_the_ones_of_the_contract():
    def of(function):
        kept = inspect.signature(function).parameters.values()
        return [(p.name, p.default) for p in kept if p.kind is not p.KEYWORD_ONLY]

    nothing = inspect.Parameter.empty
    assert of(AttentionVisualizer) == [("model_name_or_path", nothing), ("max_image_num", 2)]
    assert of(AttentionVisualizer.load_sample_data)[1:] == [
        ("benchmark_json", nothing), ("image_dir", nothing), ("sample_idx", 0)
    ]  # fmt: skip
    assert of(AttentionVisualizer.create_attention_visualization_for_sample)[1:] == [
        ("sample", nothing), ("images", nothing), ("layer_idx", 20),
        ("start_phrase", "Based on the following requirements"),
    ]  # fmt: skip
    assert [name for name, _ in of(AttentionVisualizer.record)] == ["self", "sample", "images", "layers"]


def test_a_loaded_model_answers_and_is_the_same_afterwards(tiny, twin_of_tiny, tmp_path):
    """In training, with gradient checkpointing, some of its modules frozen."""
    model, processor = twin_of_tiny.train(), tiny.processor
    model.gradient_checkpointing_enable()
    model.model.visual.eval()
    modes, before = [module.training for module in model.modules()], implementations(model.config)
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    record = AttentionVisualizer(model, processor=processor).record(SAMPLE, [picture()], [0, 2], max_new_tokens=8)
    expected = tiny.record(SAMPLE, [picture()], [0, 2], max_new_tokens=8)
    np.testing.assert_array_equal(record.token_ids, expected.token_ids)
    np.testing.assert_allclose(record.weights, expected.weights, atol=1e-6)
    assert [module.training for module in model.modules()] == modes and implementations(model.config) == before
    assert model.is_gradient_checkpointing
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert all((weight == weights[name]).all() for name, weight in model.named_parameters())
    model(**inputs_of(tiny), use_cache=False).logits.sum().backward()  # it can still be trained
    assert all(weight.grad is not None for weight in model.get_decoder().layers.parameters())


@pytest.fixture
def twin_of_tiny(tiny):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny.checkpoint.name)


def test_one_layer_gives_a_path_and_several_a_list_from_one_generation(create, tiny, tmp_path, monkeypatch):
    assert create(1) == str(tmp_path / "combined_attention_visualization_layer1.mp4")
    calls, generate = [], tiny.model.generate
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: calls.append(1) or generate(*a, **k))
    both = [str(tmp_path / f"combined_attention_visualization_layer{n}.mp4") for n in (0, 2)]
    assert create([0, -1]) == both and len(calls) == 1
    assert create([2, -1]) == both[1:]  # the same layer twice, in a list
    assert create("0,2") == both and create("2") == both[1]


def test_the_video_has_a_frame_a_response_token(create, tiny):
    with imageio.get_reader(create(fps=3)) as reader:
        assert sum(1 for _ in reader) == tiny.last_record.response_length > 0
        assert reader.get_meta_data()["fps"] == 3 and reader.get_meta_data()["size"] == SMALL


def test_numbers_of_numpy_are_numbers(create, tmp_path):
    path = create(np.int64(1), head=np.int64(2), save_record=tmp_path / "a" / "b.safetensors")
    assert "layer1" in path
    record = AttentionRecord.load(tmp_path / "a" / "b.safetensors")
    assert record.heads == (2,) and record.layers == (1,)


def test_pictures_may_be_paths_and_one_picture_stands_for_itself(tiny, tmp_path):
    picture().save(tmp_path / "a.png")
    by_path = tiny.record(SAMPLE, [tmp_path / "a.png"], 1, response="so")
    np.testing.assert_array_equal(by_path.weights, tiny.record(SAMPLE, [picture()], 1, response="so").weights)
    options = {**QUICK, "output_dir": tmp_path, "response": "so"}
    tiny.visualize(tmp_path / "a.png", SAMPLE["problem"], 1, **options)
    np.testing.assert_array_equal(by_path.weights, tiny.last_record.weights)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fps": 0}, "fps is 0"),
        ({"scale": "page"}, "scale is 'page'"),
        ({"frame_size": (641, 360)}, "both must be even"),
        ({"font_path": "none.ttf"}, "cannot be used"),
        ({"layer_idx": 7}, "layer_idx 7 is out of range"),
        ({"layer_idx": ["auto", 1]}, "expected auto alone"),
        ({"head": 99}, "the layer has 4 heads"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0"),
        ({"output_dir": "/dev/null/x"}, "cannot be written to"),
        ({"save_record": "run.npz"}, "records are safetensors files"),
        ({"max_tokens": 5}, "there is no option 'max_tokens'; did you mean max_new_tokens"),
    ],
)
def test_a_wrong_option_is_found_before_the_model_is_loaded(tiny, options, message):
    visualizer = AttentionVisualizer(tiny.checkpoint.name)
    with pytest.raises((ValueError, OSError), match=message):
        visualizer.create_attention_visualization_for_sample(SAMPLE, [picture()], **options)
    assert "model" not in vars(visualizer.checkpoint), "the weights were loaded"


def test_a_record_with_a_wrong_option_is_refused_before_the_model_is_loaded(tiny):
    visualizer = AttentionVisualizer(tiny.checkpoint.name)
    for layers, options in (([9], {}), ([1], {"head": 99}), ([1], {"response_key": "none"})):
        with pytest.raises(ValueError):
            visualizer.record(SAMPLE, [picture()], layers, **options)
    with pytest.raises(ValueError, match="max_image_num is 0; expected 1 or more"):
        AttentionVisualizer(tiny.checkpoint.name, 0)
    assert "model" not in vars(visualizer.checkpoint)


@pytest.mark.parametrize(
    "process, files", [("1", []), ("0", ["combined_attention_visualization_layer1.mp4", "run.safetensors"])]
)
def test_of_the_processes_that_share_a_model_the_first_writes(create, tiny, tmp_path, monkeypatch, process, files):
    from dataclasses import replace

    assert tiny.model  # loaded, by one process
    monkeypatch.setattr(tiny.checkpoint, "options", replace(tiny.checkpoint.options, tp_plan="auto"))
    monkeypatch.setenv("RANK", process)
    path = create(save_record=tmp_path / "run.safetensors")
    assert path == (str(tmp_path / files[0]) if files else [])
    assert sorted(file.name for file in tmp_path.iterdir()) == files


def test_a_layer_chosen_by_auto_names_the_video(create, tiny, tmp_path):
    path = create("auto", response="a red circle")
    (layer,) = tiny.last_record.layers
    assert path == str(tmp_path / f"combined_attention_visualization_layer{layer}.mp4")
    assert tiny.last_record.auto_layer and not tiny.last_record.auto_head
    assert create(["auto"], response="a red circle") == [path]


def test_the_clear_view_chooses_what_is_not_named(create, tiny):
    def chosen():
        record = tiny.last_record
        return record.layers, record.auto_layer, record.auto_head, record.heads

    create(20, view="clear", response="so")
    assert chosen()[1:3] == (True, True)
    create(np.array([0, 1]), view="clear", response="so")
    assert chosen()[:3] == ((0, 1), False, True)
    create(1, head=2, view="clear", response="so")
    assert chosen() == ((1,), False, False, (2,))


def test_a_baseline_that_needs_a_neutral_prompt_brings_it(create, tiny):
    create(baseline="relative")
    assert tiny.last_record.neutral.shape == (1, len(tiny.last_record.image_positions))


def test_a_check_is_in_the_record_that_is_kept_and_told(create, tiny, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("attention_heatmap.recording.check.CHECK_DRAWS", 2)
    with caplog.at_level(NOTE):
        create([0, 2], check=True, sinks=True, max_pixels=9000, save_record=tmp_path / "run.safetensors")
    checks = AttentionRecord.load(tmp_path / "run.safetensors").checks
    assert checks == tiny.last_record.checks and [check.plane for check in checks] == [0, 1]
    assert {check.view for check in checks} == {"sinks left out"} and str(checks[1]) in caplog.text


def test_a_check_that_fails_loses_no_record(create, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "check", lambda *a, **k: (_ for _ in ()).throw(ValueError("no")))
    with pytest.raises(RuntimeError, match=r"^no; the record is kept in .*run\.safetensors$"):
        create(check=True, save_record=tmp_path / "run.safetensors")
    assert AttentionRecord.load(tmp_path / "run.safetensors").checks == ()


def test_a_sweep_gives_a_row_a_sample_and_goes_on_where_it_was_stopped(tiny, tmp_path, monkeypatch):
    picture((90, 60)).save(tmp_path / "a.png")
    samples = [{"id": n, "image": ["a.png"], "problem": "Go on.", "answer": "x"} for n in range(2)]
    samples.append({"id": 2, "image": ["none.png"], "problem": "Go."})
    (tmp_path / "data.json").write_text(json.dumps(samples))
    options = {"output_dir": tmp_path / "out", **QUICK, "save_record": "run.safetensors", "check": False}
    rows = tiny.visualize_dataset(tmp_path / "data.json", tmp_path, "all", 1, **options)
    assert [str(row["id"]) for row in rows] == ["0", "1", "2"]
    assert [bool(row["error"]) for row in rows] == [False, False, True] and "none.png" in rows[2]["error"]
    assert (tmp_path / "out/sample_0001/run.safetensors").is_file() and (tmp_path / "out/samples.csv").is_file()
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: pytest.fail("generated"))
    again = tiny.visualize_dataset(tmp_path / "data.json", tmp_path, "all", 1, **options)
    assert [row["response"] for row in again] == [row["response"] for row in rows]


def test_the_number_of_layers_is_the_language_models(tiny):
    assert tiny.num_layers == 3


def test_a_notebook_that_asks_for_notes_gets_them_by_their_name():
    code = (
        "import logging; from attention_heatmap.log import NOTE, logger; import visualizeHeatMap;"
        "logging.basicConfig(level='NOTE'); logger.log(NOTE, 'auto')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr == "NOTE:visualizeHeatMap:auto\n"


def test_when_the_demo_names_a_landmark_the_hot_cells_lie_on_it(demo_record):
    """At the step that produces a landmark's name the hottest cell meets its box: chance is about 1 in 20."""
    (record, _), hits = demo_record, []
    boxes = json.loads((DEMO / "dataset.json").read_text("utf-8"))[0]["boxes"][0]
    ends, tokens = np.cumsum([len(token) for token in record.tokens[record.prompt_length :]]), record.images[0]
    for name, box in boxes.items():
        for mention in re.finditer(re.escape(name), record.response):
            step = int(np.searchsorted(ends, mention.start(), side="right"))
            row = record.weights[step, record.plane(7)]
            left, top, right, bottom = tokens.boxes[row[tokens.positions].argmax()]
            hits.append(left < box[2] and right > box[0] and top < box[3] and bottom > box[1])
    assert len(hits) >= 8 and np.mean(hits) >= 0.9


def test_the_paths_that_are_told_are_there(tiny, tmp_path):
    options = {"format": "png", "output_dir": tmp_path, "response": "The lamp is red.", "frame_size": (640, 360)}
    sample, images = {"problem": "Where?"}, [picture((90, 60))]
    paths = tiny.create_attention_visualization_for_sample(
        sample, images, 1, "lamp", frames=[1, -1], overview="lamp", **options
    )
    assert sorted(map(str, tmp_path.iterdir())) == sorted(paths if isinstance(paths, list) else [paths])
