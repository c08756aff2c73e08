"""A sample recorded: what of inputs, answer and rows comes together in the record."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from conftest import DEMO
from reference import PICTURES, assert_rows, eager_weights, inputs_of

from attention_heatmap.log import NOTE
from attention_heatmap.maps import mean_cells, shown_rows
from attention_heatmap.recording import check as check_room
from attention_heatmap.recording import memory
from attention_heatmap.recording import session as room
from attention_heatmap.recording.attention import _active, implementations
from attention_heatmap.recording.check import check_record
from attention_heatmap.recording.layers import attention_layers, cross_layers
from attention_heatmap.recording.options import NEUTRAL_PROMPT, RecordingOptions
from attention_heatmap.recording.session import Session

SAMPLE = {"problem": "Where is it? Based on the following requirements, say."}
PLAIN = ("off", False, 0)


@pytest.fixture(scope="session")
def session_of(tiny_visualizer):
    """A function from a family's name to a session of its tiny model."""

    def load(family="qwen2_vl"):
        visualizer = tiny_visualizer(family)
        return Session(visualizer.model, visualizer.processor)

    return load


@pytest.fixture
def record(session_of):
    """A function that records layers of the tiny Qwen2-VL, or of another family."""

    def run(layers=(1,), family="qwen2_vl", sample=SAMPLE, images=PICTURES, **options):
        how = RecordingOptions(**{"max_new_tokens": 5, **options})
        return session_of(family).record(sample, images, tuple(layers), how)

    return run


# ------------------------------------------------------------------------------------- the record


def test_every_plane_stands_in_the_record_with_its_layer_and_heads(record, tiny, twin):
    found = record([2, 0], head=["mean", "1+3", "each"], prompt_template="{Question}", sample={"problem": "Where?"})
    heads = ("mean", (1, 3), 0, 1, 2, 3)
    assert found.layers == (2,) * 6 + (0,) * 6 and found.heads == heads * 2 and found.num_layers == 3
    inputs, ids = inputs_of(tiny, "Where?"), found.token_ids[found.prompt_length :].tolist()
    assert found.token_ids[: found.prompt_length].tolist() == inputs["input_ids"][0].tolist()
    expected = eager_weights(twin("qwen2_vl", "eager"), inputs, ids)
    assert_rows(found.weights, list(zip(found.layers, found.heads)), expected)
    assert "".join(found.tokens) == tiny.processor.tokenizer.decode(found.token_ids)
    assert found.neutral is None and not found.auto_layer and not found.auto_head


def test_the_problem_is_the_text_that_was_asked_not_the_templates(record):
    found = record(prompt_template="{Question} in <think> tags", response="I <think> so")
    first, last = found.problem
    assert "".join(found.tokens[first:last]) == SAMPLE["problem"]


@pytest.mark.parametrize("sample", [{}, {"problem": ""}, {"problem": 3}])
def test_a_sample_without_a_problem_is_refused(record, sample):
    with pytest.raises(ValueError, match="expected a text that is not empty"):
        record(sample=sample)


def test_a_given_response_is_replayed_up_to_its_end_token_and_nothing_generated(record, tiny, monkeypatch):
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: pytest.fail("generated"))
    found = record([0, 1], sample={**SAMPLE, "pred": "<think> 路 </think><|im_end|>"}, response_key="pred")
    assert found.response == "<think> 路 </think>"
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="expected more than the end of a sequence"):
        record(response="<|im_end|>")


def test_a_replayed_response_has_the_rows_of_its_generation(demo_record, demo_visualizer):
    """On the demo, on every step and layer; eager attention gives the same."""
    (found, images), how = demo_record, {"response": demo_record[0].response}
    sample, _ = demo_visualizer.load_sample_data(DEMO / "dataset.json", DEMO / "images", 0)
    session = Session(demo_visualizer.model, demo_visualizer.processor)
    for attention in ("auto", "eager"):
        other = session.record(sample, images, found.layers, RecordingOptions(attention=attention, **how))
        np.testing.assert_array_equal(found.token_ids, other.token_ids)
        np.testing.assert_allclose(found.weights, other.weights, rtol=0, atol=1e-5)


def test_max_pixels_means_a_smaller_grid_over_the_same_picture(record):
    images = [PICTURES[0].resize((300, 200))]
    large, small = (record(images=images, response="ok", max_pixels=n).images[0] for n in (None, 100 * 100))
    assert len(small.boxes) < len(large.boxes) / 3
    for tokens in (large, small):
        ends = [*tokens.boxes.min(axis=0)[:2], *tokens.boxes.max(axis=0)[2:]]
        assert np.allclose(ends, [0, 0, 300, 200], atol=0.5)


def test_the_neutral_replay_is_the_same_response_after_another_prompt(record):
    found = record([0, 1], response="a red circle", neutral_prompt="Describe.")
    other = record([0, 1], sample={"problem": "Describe."}, response="a red circle", prompt_template="{Question}")
    np.testing.assert_allclose(found.neutral, other.weights[:, :, other.image_positions].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(record([0, 1], response="a red circle").weights, found.weights)


def test_rows_of_cross_attention_lie_on_the_pictures_and_those_of_other_layers_on_the_text(record, session_of, caplog):
    images = [PICTURES[0].resize((50, 50)), PICTURES[0].resize((211, 130))]  # one tile, padded to the four of the other
    found = record([1, 2], "mllama", images=images)
    assert [len(image.positions) for image in found.images] == [17, 68]
    at = found.image_positions
    crossing, other = found.weights[:, 0], found.weights[:, 1]
    assert np.allclose(crossing[:, at].sum(axis=1), 1, atol=1e-5) and np.allclose(crossing.sum(axis=1), 1, atol=1e-5)
    assert not other[:, at].any() and np.allclose(other.sum(axis=1), 1, atol=1e-5)
    # Each picture's tokens follow the token that stands for it, and the text stays what it was.
    before = found.token_ids[[int(image.positions[0]) - 1 for image in found.images]]
    assert (before == session_of("mllama").model.config.image_token_id).all()
    assert "".join(found.tokens).count("<image>") == 2
    assert "layer 2 does not look at pictures; layers [1, 3] do" in caplog.text


def test_a_window_that_leaves_pictures_out_is_told(record, caplog):
    found = record([0, 1], "gemma3", images=PICTURES[:1], max_new_tokens=2)
    assert "layer 0 sees the last 24 positions only" in caplog.text and "layer 1 sees" not in caplog.text
    assert (np.count_nonzero(found.weights[:, 0], axis=1) <= 24).all()


def test_what_goes_in_and_how_long_it_took_can_be_read_in_the_log(record, caplog):
    with caplog.at_level(logging.DEBUG):
        record(max_new_tokens=2)
    for part in (
        "inputs: {",
        "'pixel_values': (",
        "prompt tokens and up to 2 of the response take about",
        "generated 2 tokens",
    ):
        assert part in caplog.text


def test_a_fast_answer_is_the_same_answer(record):
    assert record(fast=True).token_ids.tolist() == record().token_ids.tolist()


def test_a_tokenizer_of_another_model_is_told(record, tiny, monkeypatch):
    monkeypatch.setattr(tiny.model, "get_input_embeddings", lambda: torch.nn.Embedding(100, 2))
    with pytest.raises(ValueError, match="the tokenizer gives ids up to 261, the model has 100 tokens"):
        record()


def test_a_template_that_leaves_pictures_out_is_told(record, monkeypatch):
    monkeypatch.setattr(room, "build_inputs", lambda *_: {"input_ids": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match="cannot be placed in the picture: the prompt holds none; check the chat tem"):
        record()


# ------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("options", [{}, {"response": "go on"}, {"attention": "eager"}])
def test_what_surely_does_not_fit_is_refused_before_anything_is_generated(record, tiny, monkeypatch, options):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: pytest.fail("generated"))
    with pytest.raises(ValueError, match=r"prompt tokens and up to \d of .* on cpu .* where 0\.0 MiB are free: "):
        record(**options)


@pytest.mark.parametrize("options", [{}, {"response": "go on"}, {"attention": "eager"}])
def test_running_out_of_memory_is_told_with_the_estimate_and_leaves_the_model_as_it_was(
    record, tiny, monkeypatch, options
):
    before, layer = implementations(tiny.model.config), tiny.model.get_decoder().layers[2]
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda *a, **k: (_ for _ in ()).throw(error))
        with pytest.raises(RuntimeError, match=r"^out of memory: .* prompt tokens and up to .* free; lower max_pixels"):
            record(**options)
    assert implementations(tiny.model.config) == before and _active.get() is None
    assert record(max_new_tokens=2).response_length == 2


# ------------------------------------------------------------------------------------- auto


def test_auto_is_the_layer_and_the_head_that_it_names(record, caplog):
    with caplog.at_level(NOTE):
        found = record((), head="auto", response="a red circle, then a square")
    (layer,), (head,) = found.layers, found.heads
    assert found.auto_layer and found.auto_head
    assert f"auto: layer {layer}, whose" in caplog.text and f"auto: head {head} of layer {layer}," in caplog.text
    named = record([layer], head=head, response=found.response)
    np.testing.assert_array_equal(named.token_ids, found.token_ids)
    np.testing.assert_array_equal(named.weights, found.weights)


def test_auto_takes_a_head_for_each_layer_and_generates_once(record, tiny, monkeypatch):
    calls, generate = [], tiny.model.generate
    monkeypatch.setattr(tiny.model, "generate", lambda *a, **k: calls.append(1) or generate(*a, **k))
    found = record([0, 2], head="auto", max_new_tokens=12)
    assert len(calls) == 1 and found.layers == (0, 2) and not found.auto_layer and found.auto_head
    for plane, (layer, head) in enumerate(zip(found.layers, found.heads)):
        named = record([layer], head=head, response=found.response)
        if named.token_ids.tolist() == found.token_ids.tolist():  # bytes that are no text come back as another answer
            np.testing.assert_allclose(named.weights[:, 0], found.weights[:, plane], atol=1e-6)


def test_auto_without_a_head_takes_the_layer_alone(record):
    found = record((), response="a red circle")
    assert found.auto_layer and not found.auto_head and found.heads == ("mean",)


def test_of_a_layer_that_sees_no_pictures_auto_chooses_no_head(record):
    with pytest.raises(ValueError, match=r"no head of layer 2 sees pictures, for auto to choose; take one of \[1, 3\]"):
        record([2], "mllama", head="auto", response="so")


@pytest.mark.parametrize("layers, head", [((), "mean"), ((1,), "auto")])
def test_auto_is_refused_where_processes_share_the_heads(tiny, layers, head):
    model = SimpleNamespace(config=tiny.config, tp_size=2)
    with pytest.raises(
        ValueError, match="auto compares the heads of a layer, which tp_plan shares out; name the layer"
    ):
        Session(model, tiny.processor).record(SAMPLE, PICTURES, layers, RecordingOptions(head=head))


# Layers that cross, windows, layers without attention, no text part, sinks, a soft cap, newlines between tokens.
@pytest.mark.parametrize(
    "family", ["mllama", "gemma3", "qwen3_5", "phi4_multimodal", "internvl_gpt_oss", "paligemma2", "llava_next"]
)
def test_auto_takes_rows_that_can_be_named_and_any_map_can_be_checked(record, session_of, family, monkeypatch):
    monkeypatch.setattr(check_room, "CHECK_DRAWS", 1)
    session, given = session_of(family), {"response": "It is on the left.", "neutral_prompt": NEUTRAL_PROMPT}
    found = record((), family, head="auto", **given)
    (layer,), (head,) = found.layers, found.heads
    assert layer in (cross_layers(session.model.config) or attention_layers(session.model.config))
    named = record([layer], family, head=head, **given)
    np.testing.assert_allclose(named.weights, found.weights, atol=1e-6)
    assert found.neutral.shape == (1, len(found.image_positions)) and (found.neutral >= 0).all()
    cells = mean_cells(found, shown_rows(found, 0, *PLAIN))
    flat = np.ptp(np.concatenate([weights for _, weights in cells])) == 0  # a tiny model may look nowhere
    checks = check_record(session, found, SAMPLE, PICTURES, PLAIN, RecordingOptions()).checks
    assert [check.plane for check in checks] == [0] * (not flat)
    assert all(np.isfinite([check.hottest, *check.random]).all() for check in checks)


# ------------------------------------------------------------------------------------- two cards


def on_two_cards(model):
    """A device map as device_map="auto" makes it of a large model: the later layers and what follows on card 1."""
    decoder = model.get_decoder()
    head, tied = model.get_output_embeddings(), model.get_input_embeddings().weight
    later = [*decoder.layers[len(decoder.layers) // 2 :], decoder.norm, *([head] if head.weight is not tied else [])]

    def places(name, module):
        if module in later:
            return {name: 1}
        if not any(part in later for part in module.modules()):
            return {name: 0}
        found = {f"{name}.{own}": 0 for own, _ in module.named_parameters(recurse=False)}
        for child, part in module.named_children():
            found |= places(f"{name}.{child}" if name else child, part)
        return found

    return places("", model)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("family", [*tiny_models.ALL_FAMILIES, "aya_vision", "glm4v", "internvl_gpt_oss"])
def test_layers_on_two_cards_have_the_rows_of_one(tiny_checkpoint, family, monkeypatch):
    from visualizeHeatMap import AttentionVisualizer

    monkeypatch.setattr(check_room, "CHECK_DRAWS", 2)
    known = tiny_models.FAMILIES.get(family)
    kwargs = {"dtype": "float32", "processor_kwargs": known.processor_kwargs if known else None}
    one = AttentionVisualizer(str(tiny_checkpoint(family)), device_map={"": 0}, **kwargs)
    two = AttentionVisualizer(str(tiny_checkpoint(family)), device_map=on_two_cards(one.model), **kwargs)
    layers = cross_layers(one.config) or attention_layers(one.config)
    assert {weight.device.index for weight in two.model.get_decoder().layers.parameters()} == {0, 1}
    answer = {"response": "It is on the left.", "neutral_prompt": NEUTRAL_PROMPT}
    for options in ({}, {"attention": "eager"}, answer, answer | {"head": "auto"}, {"do_sample": True, "seed": 3}):
        first, second = (viz.record(SAMPLE, PICTURES, layers, max_new_tokens=8, **options) for viz in (one, two))
        np.testing.assert_array_equal(first.token_ids, second.token_ids)
        np.testing.assert_allclose(first.weights, second.weights, rtol=0, atol=1e-5)
        assert first.heads == second.heads
    checked = [viz.check(record, SAMPLE, PICTURES).checks for viz, record in ((one, first), (two, second))]
    assert [check.plane for check in checked[0]] == [check.plane for check in checked[1]]
