import inspect
import logging
import shutil
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
from conftest import DEMO, ROOT, SMALL, picture
from tiny_models import qwen_checkpoint

import visualizeHeatMap as vhm

SAMPLE = {"problem": "Based on the following requirements, go."}
QUICK = {"max_new_tokens": 5, "frame_size": SMALL}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny random Qwen2-VL of three layers."""
    return vhm.AttentionVisualizer(str(qwen_checkpoint("qwen2_vl", tmp_path_factory.mktemp("tiny"))))


def test_the_names_positions_and_defaults_are_the_ones_of_the_contract():
    def of(function):
        return [
            (p.name, p.default) for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY
        ]

    nothing = inspect.Parameter.empty
    assert of(vhm.AttentionVisualizer)[:2] == [("model_name_or_path", nothing), ("max_image_num", 2)]
    assert of(vhm.AttentionVisualizer.load_sample_data)[1:] == [
        ("benchmark_json", nothing), ("image_dir", nothing), ("sample_idx", 0)
    ]  # fmt: skip
    assert of(vhm.AttentionVisualizer.create_attention_visualization_for_sample)[1:5] == [
        ("sample", nothing), ("images", nothing), ("layer_idx", 20),
        ("start_phrase", "Based on the following requirements"),
    ]  # fmt: skip


def test_one_layer_gives_a_path_and_several_a_list_from_one_generation(tiny, tmp_path, monkeypatch):
    one = tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], 1, output_dir=tmp_path, **QUICK)
    assert one == str(tmp_path / "combined_attention_visualization_layer1.mp4")
    calls = []
    generate = tiny.model.generate
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: calls.append(1) or generate(*a, **k))
    several = tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], [0, -1], output_dir=tmp_path, **QUICK)
    assert several == [str(tmp_path / f"combined_attention_visualization_layer{n}.mp4") for n in (0, 2)]
    assert len(calls) == 1


def test_the_video_has_a_frame_a_response_token(tiny, tmp_path):
    path = tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], 1, fps=3, output_dir=tmp_path, **QUICK)
    with imageio.get_reader(path) as reader:
        assert sum(1 for _ in reader) == tiny.last_record.response_length > 0
        assert reader.get_meta_data()["fps"] == 3 and reader.get_meta_data()["size"] == SMALL


def test_only_the_default_layer_falls_back_and_says_so(tiny, caplog):
    assert tiny.resolve_layer(20) == 2 and "has 3 layers" in caplog.text
    assert [tiny.resolve_layer(layer) for layer in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for layer in (3, 19, 21, -4):
        with pytest.raises(ValueError, match=rf"layer_idx {layer} is out of range: the model has 3 layers \(0\.\.2"):
            tiny.resolve_layer(layer)


@pytest.mark.parametrize("value, kind", [(["x" * 99] * 99, "list"), (3, "int"), (None, "NoneType")])
def test_a_field_that_is_no_text_is_no_response_and_not_told_whole(tiny, value, kind):
    with pytest.raises(ValueError, match=f"^response_key 'pred' names a {kind} in the sample; expected a text, the"):
        tiny.record({**SAMPLE, "pred": value}, [picture()], [1], response_key="pred")


def test_a_trailing_end_of_sequence_token_is_no_response_token(tiny, monkeypatch):
    record = tiny.record(SAMPLE, [picture()], [1], max_new_tokens=5)
    third = int(record.token_ids[record.prompt_length + 2])
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [third])
    stopped = tiny.record(SAMPLE, [picture()], [1], max_new_tokens=5)
    first = record.token_ids[record.prompt_length :].tolist().index(third)
    assert stopped.response_length == first
    np.testing.assert_allclose(stopped.weights[:, 0, : stopped.prompt_length],
                               record.weights[:first, 0, : record.prompt_length], atol=1e-6)  # fmt: skip


def test_a_response_that_hits_the_limit_is_told(tiny, caplog):
    tiny.record(SAMPLE, [picture()], [1], max_new_tokens=2)
    assert "cut at max_new_tokens=2" in caplog.text


def test_a_given_response_is_replayed_and_nothing_generated(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: pytest.fail("generated"))
    record = tiny.record({**SAMPLE, "pred": "<think> 路 </think>"}, [picture()], [0, 1], response_key="pred")
    assert record.response == "<think> 路 </think>"
    np.testing.assert_allclose(record.weights.sum(-1), 1, atol=1e-5)


def test_sampling_follows_its_seed(tiny):
    runs = [
        tiny.record(SAMPLE, [picture()], [1], max_new_tokens=12, do_sample=True, temperature=5.0, seed=seed).response
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_sampling_that_is_not_asked_for_is_told_once(tiny, tmp_path, caplog):
    vhm.warn_once.cache_clear()
    options = {**QUICK, "output_dir": tmp_path, "top_p": 0.5, "neutral_prompt": "Describe.", "check": True}
    tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], 1, **options)
    assert caplog.text.count("without do_sample nothing comes of top_p; add it, or leave that out") == 1


def test_the_problem_stands_in_the_prompt_where_the_template_says(tiny):
    record = tiny.record(SAMPLE, [picture()], [1], max_new_tokens=1, prompt_template="Q: {Question} A:")
    assert "Q: Based on the following requirements, go. A:<|im_end|>" in "".join(record.tokens)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'; expected a whole number"),
        ({"max_pixels": 5.0}, "max_pixels is 5.0; expected a whole number"),
        ({"temperature": "1"}, "temperature is '1'; expected a number"),
        ({"fast": "no"}, "fast is 'no'; expected True or False"),
        ({"neutral_prompt": 5}, "neutral_prompt is 5; expected a text"),
        ({"attention": "flash"}, "expected 'auto' or 'eager'"),
        ({"prompt_template": "no place"}, "has no {Question}"),
        ({"response": ""}, "expected a text that is not empty"),
        ({"response": "a", "response_key": "b"}, "give one of them"),
        ({"response_key": "pred"}, r"no key of the sample; it has \['problem'\]"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0"),
        ({"head": 99, "max_new_tokens": 2}, "the layer has 4 heads"),
    ],
)
def test_a_wrong_option_says_what_was_expected(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        tiny.record(SAMPLE, [picture()], [1], **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fps": 0}, "fps is 0"),
        ({"scale": "page"}, "scale is 'page'"),
        ({"frame_size": (641, 360)}, "both must be even"),
        ({"font_path": "none.ttf"}, "cannot be used"),
        ({"layer_idx": 7}, "layer_idx 7 is out of range"),
        ({"output_dir": "/dev/null/x"}, "cannot be written to"),
    ],
)
def test_what_drawing_would_stumble_over_is_found_before_the_model_is_loaded(tiny, options, message):
    visualizer = vhm.AttentionVisualizer(tiny.model_name_or_path)
    with pytest.raises((ValueError, OSError), match=message):
        visualizer.create_attention_visualization_for_sample(SAMPLE, [picture()], **options)
    assert "model" not in vars(visualizer), "the weights were loaded"


@pytest.mark.parametrize(
    "options",
    [
        {"head": 99},
        {"do_sample": True, "temperature": 0.0},
        {"do_sample": True, "seed": -1},
        {"response": "<|im_end|>"},
    ],
)
def test_a_wrong_option_of_recording_is_found_before_any_generation(tiny, monkeypatch, options):
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: pytest.fail("generated"))
    with pytest.raises(ValueError):
        tiny.record(SAMPLE, [picture()], [1], **options)


@pytest.mark.parametrize("sample", [{}, {"problem": ""}, {"problem": 3}])
def test_a_sample_without_a_problem_is_refused(tiny, sample):
    with pytest.raises(ValueError, match="expected a text that is not empty"):
        tiny.record(sample, [picture()], [1])


def test_numbers_of_numpy_are_numbers(tiny, tmp_path):
    path = tiny.create_attention_visualization_for_sample(
        SAMPLE,
        [picture()],
        np.int64(1),
        head=np.int64(2),
        output_dir=tmp_path,
        save_record=tmp_path / "a" / "b.npz",
        **QUICK,
    )
    assert path.endswith("layer1.mp4") and vhm.AttentionRecord.load(tmp_path / "a" / "b.npz").head == 2
    assert tiny.record(SAMPLE, [picture()], np.array([0, 2]), max_new_tokens=1).layers == (0, 2)


@pytest.mark.parametrize("layer", [True, 7.0, "7", None])
def test_a_layer_that_is_no_whole_number_is_refused(tiny, layer):
    with pytest.raises(ValueError, match="expected a whole number"):
        tiny.resolve_layer(layer)


def test_the_same_layer_twice_is_one_video(tiny, tmp_path):
    paths = tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], [2, -1], output_dir=tmp_path, **QUICK)
    assert len(paths) == 1


def test_a_given_response_ends_before_its_end_token(tiny):
    record = tiny.record(SAMPLE, [picture()], [1], response="go<|im_end|>")
    assert record.response == "go"


def test_the_start_phrase_is_looked_for_in_the_problem_and_not_in_the_template(tiny):
    record = tiny.record(
        SAMPLE, [picture()], [1], prompt_template="{Question} in <think> tags", response="I <think> so"
    )
    first, last = record.problem
    assert "".join(record.tokens[first:last]) == SAMPLE["problem"]
    assert vhm.find_panel_start(record, "<think>")[0] == record.prompt_length + 2


def test_a_text_model_is_told_at_once(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="'gpt2' names no image_token_id"):
        vhm.AttentionVisualizer(str(tmp_path))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float99"}, "dtype is 'float99'"),
        ({"model_kwargs": {"no_such_option": 1}}, "cannot load it .*; check device_map, dtype and model_kwargs"),
        ({"device_map": "nowhere"}, "cannot load it .*; check device_map, dtype and model_kwargs"),
        ({"processor_kwargs": {"size": "q"}}, "cannot load it .*; check processor_kwargs"),
    ],
)
def test_what_from_pretrained_cannot_take_is_one_clear_line(tiny, options, message):
    with pytest.raises(ValueError, match=message) as error:
        _ = vhm.AttentionVisualizer(tiny.model_name_or_path, **options).model
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("chat_template.jinja", "{% if %}", "chat template cannot be used"),
        ("adapter_config.json", "{}", "names no base model"),
        ("processor_config.json", "[]", "cannot load it"),
    ],
)
def test_a_broken_file_beside_the_weights_is_one_clear_line(tiny, tmp_path, name, content, message):
    shutil.copytree(tiny.model_name_or_path, tmp_path / "broken")
    (tmp_path / "broken" / name).write_text(content)
    if name == "adapter_config.json":
        (tmp_path / "broken" / "config.json").unlink()
    with pytest.raises((ValueError, OSError), match=message) as error:
        vhm.AttentionVisualizer(str(tmp_path / "broken")).record(SAMPLE, [picture()], [1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "processes, options, message",
    [
        (1, {}, "and there is one; start several"),
        (3, {}, "3 processes cannot share 4 num_attention_heads evenly"),
        (4, {}, "4 processes cannot share 2 num_key_value_heads evenly"),
        (2, {"device_map": "cpu"}, "were both given"),
    ],
)
def test_processes_that_cannot_share_a_model_are_told_at_once(tiny, monkeypatch, processes, options, message):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ValueError, match=message):
        vhm.AttentionVisualizer(tiny.model_name_or_path, tp_plan="auto", **options)


def test_of_the_processes_that_share_a_model_the_first_alone_writes(tiny, tmp_path, monkeypatch):
    assert tiny.model  # loaded, by one process
    monkeypatch.setattr(tiny, "tp_plan", "auto")
    for process, files in (("1", []), ("0", ["combined_attention_visualization_layer1.webm", "run.npz"])):
        monkeypatch.setenv("RANK", process)
        path = tiny.create_attention_visualization_for_sample(
            SAMPLE, [picture()], 1, output_dir=tmp_path, save_record=tmp_path / "run.npz", format="webm", **QUICK
        )
        assert path == str(tmp_path / "combined_attention_visualization_layer1.webm")
        assert sorted(file.name for file in tmp_path.iterdir()) == files


def test_too_many_pictures_are_refused(tiny):
    with pytest.raises(ValueError, match=r"3 pictures were given; expected 1\.\.2"):
        tiny.record(SAMPLE, [picture()] * 3, [1])


def test_a_path_without_a_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises((OSError, ValueError), match="AutoConfig cannot load it") as error:
        vhm.AttentionVisualizer(str(tmp_path))
    assert "\n" not in str(error.value) and str(error.value).count(str(tmp_path)) >= 1
    assert str(error.value).count("model_path") == 1


@pytest.mark.parametrize(
    "name, content",
    [("model.safetensors", b"\x10\0\0\0\0\0\0\0cut"), ("config.json", b"{"), ("config.json", b"\xff\xfe")],
)
def test_a_broken_file_of_a_checkpoint_is_one_clear_line(tiny, tmp_path, name, content):
    shutil.copytree(tiny.model_name_or_path, tmp_path / "broken")
    (tmp_path / "broken" / name).write_bytes(content)
    with pytest.raises((OSError, ValueError), match=r"cannot load it .*; give a directory") as error:
        _ = vhm.AttentionVisualizer(str(tmp_path / "broken")).model
    assert type(error.value) in (OSError, ValueError) and "\n" not in str(error.value)


def test_what_is_loaded_and_how_large_it_is_can_be_read_in_the_log(tiny, caplog):
    visualizer = vhm.AttentionVisualizer(tiny.model_name_or_path)
    with caplog.at_level(logging.DEBUG):
        visualizer.record(SAMPLE, [picture()], [1], max_new_tokens=2)
    for part in (
        "loaded Qwen2VLForConditionalGeneration",
        "float32",
        "pixel_values",
        "input_ids",
        "generated 2 tokens",
    ):
        assert part in caplog.text


def test_a_notebook_that_asks_for_notes_gets_them_by_their_name():
    code = (
        "import logging, visualizeHeatMap as vhm; logging.basicConfig(level='NOTE'); vhm.logger.log(vhm.NOTE, 'auto')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr == "NOTE:visualizeHeatMap:auto\n"


def test_when_the_demo_names_a_landmark_the_hot_cells_lie_on_it(demo_visualizer):
    """At the step that produces a landmark's name the hottest cell meets its box: chance is about 1 in 20."""
    import re

    hits = []
    for index in range(6):
        sample, images = demo_visualizer.load_sample_data(DEMO / "dataset.json", DEMO / "images", index)
        record = demo_visualizer.record(sample, images, [7])
        ends = np.cumsum([len(token) for token in record.tokens[record.prompt_length :]])
        tokens = record.images[0]
        for name, box in sample["boxes"][0].items():
            for mention in re.finditer(re.escape(name), record.response):
                step = int(np.searchsorted(ends, mention.start(), side="right"))
                left, top, right, bottom = tokens.boxes[record.weights[step, 0, tokens.positions].argmax()]
                hits.append(left < box[2] and right > box[0] and top < box[3] and bottom > box[1])
    assert len(hits) >= 20 and np.mean(hits) >= 0.95


def test_auto_is_the_layer_and_the_head_that_it_names(tiny, caplog):
    with caplog.at_level(vhm.NOTE):
        record = tiny.record(SAMPLE, [picture()], "auto", head="auto", response="a red circle, then a square")
    (layer,), (head,) = record.layers, record.auto_heads
    assert (
        f"auto: layer {layer}, whose" in caplog.text
        and f"auto: head {head} of layer {layer}," in caplog.text
        and record.auto_layer
    )
    named = tiny.record(SAMPLE, [picture()], [layer], head=head, response=record.response)
    np.testing.assert_array_equal(named.token_ids, record.token_ids)
    np.testing.assert_array_equal(named.weights, record.weights)


def test_auto_takes_a_head_for_each_layer_and_generates_once(tiny, monkeypatch):
    calls, generate = [], tiny.model.generate
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: calls.append(1) or generate(*a, **k))
    record = tiny.record(SAMPLE, [picture()], [0, 2], head="auto", max_new_tokens=12)
    assert len(calls) == 1 and record.layers == (0, 2) and len(record.auto_heads) == 2
    record = tiny.record(SAMPLE, [picture()], [0, 2], head="auto", response="a red circle, then a square")
    for place, (layer, head) in enumerate(zip(record.layers, record.auto_heads)):
        named = tiny.record(SAMPLE, [picture()], [layer], head=head, response=record.response)
        np.testing.assert_array_equal(named.weights[:, 0], record.weights[:, place])


def test_a_layer_chosen_by_auto_names_the_video(tiny, tmp_path):
    path = tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], "auto", output_dir=tmp_path, **QUICK)
    (layer,) = tiny.last_record.layers
    assert path == str(tmp_path / f"combined_attention_visualization_layer{layer}.mp4")
    assert tiny.last_record.head == "mean" and tiny.last_record.auto_heads == ()
    assert [path] == tiny.create_attention_visualization_for_sample(
        SAMPLE, [picture()], ["auto"], output_dir=tmp_path, **QUICK
    )


def test_the_clear_view_chooses_what_is_not_named(tiny, tmp_path):
    create, quick = tiny.create_attention_visualization_for_sample, {**QUICK, "output_dir": tmp_path, "view": "clear"}
    create(SAMPLE, [picture()], **quick)
    assert tiny.last_record.auto_layer and tiny.last_record.head == "auto"
    create(SAMPLE, [picture()], np.array([0, 1]), **quick)
    assert tiny.last_record.layers == (0, 1) and not tiny.last_record.auto_layer and tiny.last_record.head == "auto"
    create(SAMPLE, [picture()], 1, head=2, **quick)
    assert tiny.last_record.layers == (1,) and not tiny.last_record.auto_layer and tiny.last_record.head == 2


def test_the_neutral_replay_is_the_same_response_after_another_prompt(tiny):
    record = tiny.record(SAMPLE, [picture()], [0, 1], response="a red circle", neutral_prompt="Describe.")
    other = tiny.record({"problem": "Describe."}, [picture()], [0, 1], response=record.response,
                        prompt_template="{Question}")  # fmt: skip
    expected = other.weights[:, :, other.image_positions].mean(axis=0)
    np.testing.assert_allclose(record.neutral, expected, atol=1e-6)
    plain = tiny.record(SAMPLE, [picture()], [0, 1], response="a red circle")
    assert plain.neutral is None
    np.testing.assert_array_equal(plain.weights, record.weights)


def test_a_baseline_that_needs_a_neutral_prompt_brings_it(tiny, tmp_path):
    options = {**QUICK, "output_dir": tmp_path, "baseline": "relative"}
    tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], 1, **options)
    assert tiny.last_record.neutral.shape == (1, len(tiny.last_record.image_positions))


def test_a_check_is_in_the_record_and_told_for_each_layer(tiny, tmp_path, caplog):
    options = {**QUICK, "output_dir": tmp_path, "check": True, "sinks": True, "max_pixels": 9000}
    before = vhm.implementations(tiny.model.config)
    with caplog.at_level(vhm.NOTE):
        tiny.create_attention_visualization_for_sample(
            SAMPLE, [picture()], [0, 2], save_record=tmp_path / "run.npz", **options
        )
    checks = vhm.AttentionRecord.load(tmp_path / "run.npz").checks
    assert checks == tiny.last_record.checks and [check.layer for check in checks] == [0, 2]
    assert all(len(check.random) == vhm.CHECK_DRAWS and check.view == "sinks left out" for check in checks)
    assert f"check of layer 2: {checks[1]}" in caplog.text and checks[0].part == "response"
    assert vhm.implementations(tiny.model.config) == before


@pytest.mark.parametrize(
    "response, part, tokens",
    [("<think> a </think><answer> b </answer>", "answer", 20), ("<think> a", "response", 9), ("ab", "response", 2)],
)
def test_the_check_is_of_the_answer_or_else_of_the_whole_response(tiny, monkeypatch, response, part, tokens):
    record, steps = tiny.record(SAMPLE, [picture()], [1], response=response), []
    real = vhm.response_log_probabilities
    monkeypatch.setattr(vhm, "response_log_probabilities", lambda *a: steps.append(a[3]) or real(*a))
    monkeypatch.setattr(vhm, "CHECK_DRAWS", 1)
    (check,) = tiny.check(record, SAMPLE, [picture()]).checks
    T = record.response_length
    assert check.part == part and set(steps) == {range(T - tokens, T)}


def test_a_record_is_not_checked_on_another_sample_picture_or_prompt(tiny):
    record = tiny.record(SAMPLE, [picture()], [1], max_new_tokens=3)
    for sample, image, options in (
        ({**SAMPLE, "problem": "Hello?"}, picture(), {}),
        (SAMPLE, picture(colour="navy"), {}),
        (SAMPLE, picture(), {"prompt_template": "Say: {Question}"}),
    ):
        with pytest.raises(ValueError, match=r"another prompt|is not the record's"):
            tiny.check(record, sample, [image], **options)


def test_a_map_that_is_the_same_everywhere_is_not_judged(tiny, caplog):
    record = tiny.record(SAMPLE, [picture()], [1], response="x")
    with caplog.at_level(vhm.NOTE):
        assert tiny.check(record, SAMPLE, [picture()], vhm.DrawingOptions(baseline="median")).checks == ()
    assert "cannot be checked: its map is the same everywhere" in caplog.text


def test_hiding_no_cell_changes_nothing(tiny, monkeypatch):
    record = tiny.record(SAMPLE, [picture()], [1], max_new_tokens=6)
    monkeypatch.setattr(vhm, "cells_to_hide", lambda cells, seed=None: [np.zeros((0, 4))])
    (check,) = tiny.check(record, SAMPLE, [picture()]).checks
    assert check.hottest == 0 and set(check.random) == {0.0} and check.points is None


def test_a_processor_that_cuts_a_picture_by_its_content_cannot_be_checked(tiny, monkeypatch):
    record = tiny.record(SAMPLE, [picture()], [1], max_new_tokens=3)
    real, calls = vhm.build_inputs, []

    def other(*arguments):
        calls.append(1)
        inputs = real(*arguments)
        inputs["input_ids"] = inputs["input_ids"] + (len(calls) > 1)
        return inputs

    monkeypatch.setattr(vhm, "build_inputs", other)
    with pytest.raises(ValueError, match="the check cannot be made: the processor cuts the pictures"):
        tiny.check(record, SAMPLE, [picture()])


def test_a_check_that_fails_loses_no_record(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "check", lambda *a, **k: (_ for _ in ()).throw(ValueError("no")))
    options = {**QUICK, "output_dir": tmp_path, "save_record": tmp_path / "run.npz", "check": True}
    with pytest.raises(ValueError, match="no"):
        tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], 1, **options)
    assert vhm.AttentionRecord.load(tmp_path / "run.npz").checks == ()


def test_on_the_demo_the_clear_map_points_and_a_map_turned_round_does_not(demo_visualizer):
    from dataclasses import replace

    sample, images = demo_visualizer.load_sample_data(DEMO / "dataset.json", DEMO / "images", 0)
    record = demo_visualizer.record(sample, images, "auto", head="auto", response_key="solution")
    assert record.layers == (7,)
    options = vhm.DrawingOptions(view="clear")
    (check,) = demo_visualizer.check(record, sample, images, options).checks
    assert check.points and check.part == "answer"
    weights = record.weights.copy()
    weights[:, :, record.image_positions] = (
        weights[:, :, record.image_positions].max() - weights[:, :, record.image_positions]
    )
    (check,) = demo_visualizer.check(replace(record, weights=weights), sample, images).checks
    assert not check.points


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer_idx": "all"}, "layer_idx is 'all'; expected a whole number or auto"),
        ({"layer_idx": ["auto", 1]}, "expected a whole number"),
        ({"head": [0, 9]}, "the layer has 4 heads"),
        ({"head": ["auto", 1]}, "each must be a number"),
    ],
)
def test_a_choice_that_is_none_is_found_before_any_generation(tiny, monkeypatch, options, message):
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: pytest.fail("generated"))
    with pytest.raises(ValueError, match=message):
        tiny.create_attention_visualization_for_sample(SAMPLE, [picture()], **options)


def test_auto_cannot_choose_in_a_model_that_bypasses_the_interface(tiny, monkeypatch):
    monkeypatch.setattr(vhm, "RECORDING_ATTENTION", "sdpa")
    monkeypatch.setattr("transformers.AttentionInterface.register", lambda *_: None)
    monkeypatch.setattr("transformers.AttentionMaskInterface.register", lambda *_: None)
    with pytest.raises(RuntimeError, match="no layer or head can be chosen by auto; name them"):
        tiny.record(SAMPLE, [picture()], "auto", max_new_tokens=3)


def test_auto_is_refused_where_processes_share_the_heads(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "tp_plan", "auto")
    for layers, head in (("auto", "mean"), ([1], "auto")):
        with pytest.raises(ValueError, match="auto compares the heads of a layer, which tp_plan shares out"):
            tiny.record(SAMPLE, [picture()], layers, head=head)
