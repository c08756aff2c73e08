"""The registered attention function: rows beside what the model would have used, which stays what it was."""

import sys

import numpy as np
import pytest
import tiny_models
import torch
from reference import GREEDY, assert_rows, at_positions, eager_weights, inputs_of, located_of
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, flash_attention_mask, sdpa_mask

from attention_heatmap.recording.attention import (
    RECORDING_ATTENTION,
    _active,
    decoder_layers,
    implementations,
    recording,
    recording_attention,
    text_attention,
    vision_attention_off,
)
from attention_heatmap.recording.generation import generate_response, record_rows
from attention_heatmap.recording.layers import attention_layers, cross_layers
from attention_heatmap.recording.recorder import AttentionRecorder

# Families that are written nowhere in the package, attention sinks among them.
FAMILIES = (*tiny_models.ALL_FAMILIES, "aya_vision", "glm4v", "internvl_gpt_oss")
every_family = pytest.mark.parametrize("family", FAMILIES)
PLANES = [(layer, "mean") for layer in range(3)]
RESPONSE = list(range(40, 52))


@every_family
def test_rows_are_eager_attentions_and_the_answer_is_the_models_own(tiny_visualizer, twin, family):
    visualizer = tiny_visualizer(family)
    planes = [(layer, "mean") for layer in attention_layers(visualizer.config)]
    inputs = inputs_of(visualizer)
    plain = twin(family).generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    ids = generate_response(visualizer.model, inputs, {"max_new_tokens": 8, **GREEDY})
    assert ids == plain.tolist()[: len(ids)]
    located, crossing = located_of(visualizer, inputs), cross_layers(visualizer.config)
    rows = record_rows(visualizer.model, inputs, planes, ids, located=located)
    expected = at_positions(eager_weights(twin(family, "eager"), inputs, ids), located, crossing)
    assert_rows(rows.weights, planes, expected)


@pytest.mark.parametrize("family", ["llava", "gemma3", "mistral3", "paligemma2"])
def test_left_padding_gets_no_weight_and_changes_no_row(tiny_visualizer, family):
    visualizer, pad = tiny_visualizer(family), 5
    inputs = inputs_of(visualizer)
    padded = dict(inputs)
    for key, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            fill = visualizer.processor.tokenizer.pad_token_id if key == "input_ids" else 0
            padded[key] = torch.nn.functional.pad(value, (pad, 0), value=fill)
    rows, moved = (record_rows(visualizer.model, given, PLANES, RESPONSE).weights for given in (inputs, padded))
    assert not moved[..., :pad].any()
    assert np.abs(moved[..., pad:] - rows).max() < 2e-5


# ------------------------------------------------------------------------------------- a user's own function


def plain_attention(module, query, key, value, mask, scaling=None, sliding_window=None, **_):
    """Output and weights as a user would write them; without a mask a decoder's attention is causal, in its window."""
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    Q, K = scores.shape[2:]
    if mask is None and hasattr(module, "layer_idx"):
        at_Q1, at_K = torch.arange(K - Q, K)[:, None], torch.arange(K)
        mask = (at_K <= at_Q1) & (at_K > at_Q1 - (sliding_window or K))
    if mask is not None:
        mask = mask[..., :K]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


MASKS = {"no mask": None, "eager's mask": eager_mask, "sdpa's mask": sdpa_mask, "flash's mask": flash_attention_mask}


@pytest.fixture
def users_attention(monkeypatch):
    """A function that registers a user's attention under a new name, with a mask or none, and takes it for a model.

    It returns the name and a list of (layer, kind of mask, weights), one for each call in the language model.
    """
    functions, masks = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(functions))
    monkeypatch.setattr(AttentionMaskInterface, "_global_mapping", dict(masks))
    taken = []

    def register(model, mask):
        name, calls = f"users_{len(taken)}", []

        def function(module, query, key, value, attention_mask, **kwargs):
            output = plain_attention(module, query, key, value, attention_mask, **kwargs)
            if hasattr(module, "layer_idx"):
                kind = None if attention_mask is None else attention_mask.dtype
                calls.append((module.layer_idx, kind, output[1]))
            return output

        AttentionInterface.register(name, function)
        if mask:
            AttentionMaskInterface.register(name, mask)
        taken.append((model, implementations(model.config)))
        model.set_attn_implementation(name)
        return name, calls

    yield register
    for model, before in taken:
        model.set_attn_implementation(before)


# pixtral's text is mistral's, of a window shorter than the prompt.
@pytest.mark.parametrize("family", ["qwen2_vl", "pixtral"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_users_own_attention_computes_the_output_and_stays(tiny_visualizer, twin, users_attention, family, mask):
    visualizer = tiny_visualizer(family)
    model, inputs = visualizer.model, inputs_of(visualizer)
    name, calls = users_attention(model, MASKS[mask])
    ids = generate_response(model, inputs, {"max_new_tokens": 8, **GREEDY})
    calls.clear()
    rows = record_rows(model, inputs, PLANES, ids)
    assert [layer for layer, *_ in calls] == [0, 1, 2]
    kinds = {"no mask": {None}, "eager's mask": {torch.float32}, "flash's mask": {None}}
    assert {kind for _, kind, _ in calls} <= kinds.get(mask, {None, torch.bool})
    assert set(implementations(model.config).values()) == {name}
    plain = twin(family).generate(**inputs, max_new_tokens=8, **GREEDY)[0, inputs["input_ids"].shape[1] :].tolist()
    assert ids == plain[: len(ids)]
    assert_rows(rows.weights, PLANES, eager_weights(twin(family, "eager"), inputs, ids))


def test_without_a_mask_function_a_window_of_gemma_is_the_one_that_the_users_attention_has(
    tiny_visualizer, users_attention
):
    """Eager attention would let a picture's tokens see each other, which a function without a mask cannot know."""
    visualizer = tiny_visualizer("gemma3")
    inputs = inputs_of(visualizer)
    _, calls = users_attention(visualizer.model, None)
    rows = record_rows(visualizer.model, inputs, PLANES, RESPONSE)
    P = inputs["input_ids"].shape[1]
    assert_rows(rows.weights, PLANES, {layer: weights[0, :, P - 1 :].numpy() for layer, _, weights in calls})


@pytest.mark.parametrize("mask", ["eager's mask", "sdpa's mask"])
def test_with_a_mask_function_gemmas_rows_are_eagers(tiny_visualizer, twin, users_attention, mask):
    visualizer = tiny_visualizer("gemma3")
    inputs = inputs_of(visualizer)
    _, calls = users_attention(visualizer.model, MASKS[mask])
    rows = record_rows(visualizer.model, inputs, PLANES, RESPONSE)
    assert len(calls) == 3
    assert_rows(rows.weights, PLANES, eager_weights(twin("gemma3", "eager"), inputs, RESPONSE))


def test_a_soft_cap_goes_to_eager_and_to_the_users_attention(tiny_visualizer, twin, users_attention):
    """The output is then the user's, whose function ignores the cap: the first layer's rows alone are eager's."""
    visualizer = tiny_visualizer("paligemma2")
    inputs = inputs_of(visualizer)
    _, calls = users_attention(visualizer.model, eager_mask)
    rows = record_rows(visualizer.model, inputs, PLANES[:1], RESPONSE)
    assert len(calls) == 3
    assert_rows(rows.weights, PLANES[:1], eager_weights(twin("paligemma2", "eager"), inputs, RESPONSE))


def test_a_users_attention_is_put_back_after_an_error(tiny, users_attention, monkeypatch):
    name, _ = users_attention(tiny.model, None)
    monkeypatch.setattr(tiny.model.lm_head, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record_rows(tiny.model, inputs_of(tiny), PLANES, RESPONSE)
    assert set(implementations(tiny.model.config).values()) == {name} and _active.get() is None


def test_a_mask_of_another_shape_is_refused(tiny_visualizer, users_attention):
    visualizer = tiny_visualizer("llava")
    inputs = dict(inputs_of(visualizer))
    name, _ = users_attention(visualizer.model, flash_attention_mask)  # (1, keys), where there is padding
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    inputs["attention_mask"][0, :3] = 0
    with pytest.raises(RuntimeError, match=rf"mask of the attention function '{name}' is not \(1, 1, queries, keys\)"):
        record_rows(visualizer.model, inputs, PLANES, RESPONSE)


# ------------------------------------------------------------------------------------- choosing, and putting back


@every_family
def test_the_models_own_attention_is_put_back_even_after_an_error(tiny_visualizer, family):
    model = tiny_visualizer(family).model
    before = implementations(model.config)
    for block in (recording(model, AttentionRecorder([(0, "mean")], 0, 1)), vision_attention_off(model)):
        with pytest.raises(KeyboardInterrupt), block:
            assert implementations(model.config) != before
            raise KeyboardInterrupt
        assert implementations(model.config) == before and _active.get() is None


def test_the_language_model_alone_records(tiny):
    before = implementations(tiny.model.config)
    with recording(tiny.model, AttentionRecorder([(0, "mean")], 0, 1)):
        during = implementations(tiny.model.config)
    assert during["text_config"] == RECORDING_ATTENTION
    assert during["vision_config"] == before["vision_config"] == "sdpa"


@pytest.mark.parametrize("stock", ["eager", "sdpa"])
def test_in_place_of_transformers_own_functions_sdpa_runs(tiny, twin, monkeypatch, stock):
    calls, inputs = [], inputs_of(tiny)
    counted = lambda *a, **k: calls.append(1) or sdpa_attention_forward(*a, **k)  # noqa: E731
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", counted)
    with text_attention(tiny.model, stock, "eager"):
        rows = record_rows(tiny.model, inputs, PLANES, RESPONSE)
        assert implementations(tiny.model.config)["text_config"] == stock
    assert len(calls) == 3
    assert_rows(rows.weights, PLANES, eager_weights(twin("qwen2_vl", "eager"), inputs, RESPONSE))


def test_vision_without_attention_adds_nothing_and_the_language_model_keeps_its_own(tiny):
    """Each patch then hangs on its own pixels alone."""
    inputs, seen = inputs_of(tiny), []
    visual = tiny.model.model.visual
    with vision_attention_off(tiny.model), torch.inference_mode():
        for changed in (0, 1):
            pixels = inputs["pixel_values"].clone()
            pixels[:4] += changed  # one image token
            seen.append(visual(pixels, inputs["image_grid_thw"]).pooler_output)
        assert implementations(tiny.model.config)["text_config"] == "sdpa"
    assert (seen[0] != seen[1]).any(dim=1).nonzero().ravel().tolist() == [0]


def test_a_model_without_an_eager_function_says_what_to_try(tiny):
    module = torch.nn.Linear(1, 1)
    module.layer_idx = 0
    recorder = AttentionRecorder([(0, "mean")], 0, 1)
    query = torch.zeros(1, 4, 1, 8)
    with recording(tiny.model, recorder), pytest.raises(RuntimeError, match=r"Linear has no eager_attention_forward"):
        recording_attention(module, query, query, query, None, softcap=2.0)


class Capped(torch.nn.Module):
    """A layer whose attention sdpa cannot compute; its eager function stands in its module."""

    layer_idx = 0


@pytest.mark.parametrize("queries", [1, 3])
def test_no_mask_means_to_eager_what_it_means_to_sdpa(tiny, monkeypatch, queries):
    masks, keys, weights = [], torch.zeros(1, 4, 3, 8), torch.full((1, 4, queries, 3), 1 / 3)
    eager = lambda module, query, key, value, mask, **_: (masks.append(mask), weights)  # noqa: E731
    monkeypatch.setattr(sys.modules[__name__], "eager_attention_forward", eager, raising=False)
    expected = torch.zeros(1, 3) if queries == 1 else torch.full((3, 3), torch.finfo(torch.float32).min).triu(1)
    with recording(tiny.model, AttentionRecorder([(0, "mean")], 3, queries)):
        for mask in (None, expected[None, None], expected[None, None] == 0):
            recording_attention(Capped(), keys[:, :, :queries], keys, keys, mask, softcap=2.0)
    assert len(masks) == 3 and all((mask[0, 0] == expected).all() for mask in masks)


def test_the_layers_of_the_language_model(tiny):
    assert len(decoder_layers(tiny.model)) == 3 and decoder_layers(object()) is None
