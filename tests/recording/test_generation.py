"""The answer is plain `generate`'s whatever its settings, and its rows are eager attention's on the same tokens."""

import importlib
import importlib.util
import json
import logging
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import GREEDY, assert_rows, eager_weights, inputs_of, located_of
from transformers import AutoModelForImageTextToText, set_seed

from attention_heatmap.recording.attention import RECORDING_ATTENTION, _active, implementations
from attention_heatmap.recording.generation import (
    alone_with,
    end_ids,
    generate_response,
    record_rows,
    say_decoding_settings,
)

PLANES = [(layer, "mean") for layer in range(3)]
RESPONSE = list(range(40, 52))
TOKENS = 12
without_quanto = pytest.mark.skipif(not importlib.util.find_spec("optimum"), reason="needs optimum-quanto")
QUANTISED = {
    "cache_implementation": "quantized",
    "cache_config": {"backend": "quanto", "nbits": 4, "residual_length": 8, "q_group_size": 16},
}
# What a checkpoint's generation_config.json says. The prompt has more tokens than a chunk of the prefill.
SETTINGS = {
    "plain": {},
    "use_cache false": {"use_cache": False},
    "prompt look-up": {"prompt_lookup_num_tokens": 3},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "prefill in chunks": {"prefill_chunk_size": 16},
    "quantised cache": QUANTISED,
}
every_setting = pytest.mark.parametrize(
    "changes",
    [pytest.param(v, id=name, marks=without_quanto if v is QUANTISED else ()) for name, v in SETTINGS.items()],
)


@pytest.fixture
def changed_checkpoint(tiny_checkpoint, tmp_path):
    """A function that copies a family's checkpoint and changes one of its JSON files."""

    def change(family, name, changes):
        folder = shutil.copytree(tiny_checkpoint(family), tmp_path / "changed")
        facts = json.loads((folder / name).read_text()) | changes
        if name == "config.json":
            facts["text_config"] |= changes
        (folder / name).write_text(json.dumps(facts))
        return folder

    return change


def loaded(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def plain_answer(model, inputs, **how):
    """The ids that an untouched model generates, up to its end-of-sequence token."""
    ids = model.generate(**inputs, max_new_tokens=TOKENS, **how)[0, inputs["input_ids"].shape[1] :].tolist()
    return ids[: ids.index(258)] if 258 in ids else ids


def assert_recorded_as_plain(folder, twin, inputs, family="qwen2_vl", how=GREEDY):
    """One model answers and records, another of the same files answers alone, eager attention gives the rows."""
    model, untouched = loaded(folder), loaded(folder)
    set_seed(5)
    expected = plain_answer(untouched, inputs, **how)
    set_seed(5)
    before = implementations(model.config), model.generation_config.to_dict(), model.config.to_dict()
    ids = generate_response(model, inputs, {"max_new_tokens": TOKENS, **how})
    rows = record_rows(model, inputs, PLANES, ids)
    assert ids == expected and len(ids) > 3
    assert (implementations(model.config), model.generation_config.to_dict(), model.config.to_dict()) == before
    assert_rows(rows.weights, PLANES, eager_weights(twin(family, "eager"), inputs, ids))


@pytest.fixture
def _nothing_is_compiled(monkeypatch):
    """Quanto would compile a small C++ library at its first use, for a minute; this does the same."""

    def unpack(packed, bits):
        return torch.cat([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)])

    if importlib.util.find_spec("optimum"):
        extensions = importlib.import_module("optimum.quanto.library.extensions.extension")
        monkeypatch.setattr(extensions.get_extension("quanto_cpp"), "_lib", SimpleNamespace(unpack=unpack))


@every_setting
@pytest.mark.usefixtures("_nothing_is_compiled")
def test_settings_of_generation_reach_the_answer_and_change_no_row(tiny, twin, changed_checkpoint, changes):
    folder = changed_checkpoint("qwen2_vl", "generation_config.json", changes)
    assert_recorded_as_plain(folder, twin, inputs_of(tiny))


def test_a_configuration_without_a_cache_has_the_same_rows(tiny, twin, changed_checkpoint):
    folder = changed_checkpoint("qwen2_vl", "config.json", {"use_cache": False})
    assert not loaded(folder).config.get_text_config().use_cache
    assert_recorded_as_plain(folder, twin, inputs_of(tiny))


def test_sampling_by_a_seed_is_plain_sampling(tiny, twin, tiny_checkpoint):
    how = {"do_sample": True, "temperature": 3.0, "top_p": 0.9}
    assert_recorded_as_plain(tiny_checkpoint("qwen2_vl"), twin, inputs_of(tiny), how=how)


@pytest.mark.parametrize("family", ["gemma3", "llava", "internvl_gpt_oss"])
def test_a_static_cache_changes_no_row_of_other_families(tiny_visualizer, twin, changed_checkpoint, family):
    folder = changed_checkpoint(family, "generation_config.json", SETTINGS["static cache"])
    assert_recorded_as_plain(folder, twin, inputs_of(tiny_visualizer(family)), family)


# ------------------------------------------------------------------------------------- the answer


def test_the_answer_ends_before_its_end_token(tiny, monkeypatch):
    inputs = inputs_of(tiny)
    ids = generate_response(tiny.model, inputs, {"max_new_tokens": 8, **GREEDY})
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [ids[3]])
    assert generate_response(tiny.model, inputs, {"max_new_tokens": 8, **GREEDY}) == ids[: ids.index(ids[3])]
    assert end_ids(tiny.model) == {ids[3]}


def test_an_answer_of_an_end_token_alone_is_an_error(tiny, monkeypatch):
    inputs = inputs_of(tiny)
    first = generate_response(tiny.model, inputs, {"max_new_tokens": 1, **GREEDY})
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", first)
    with pytest.raises(RuntimeError, match="answered with nothing but an end-of-sequence token; check prompt_template"):
        generate_response(tiny.model, inputs, {"max_new_tokens": 8, **GREEDY})


def test_an_answer_that_hits_the_limit_is_told(tiny, caplog):
    generate_response(tiny.model, inputs_of(tiny), {"max_new_tokens": 2, **GREEDY})
    assert "cut at max_new_tokens=2; raise it" in caplog.text


@pytest.mark.parametrize("own, of_text, ends", [([1, 2], 3, {1, 2}), (None, 3, {3}), (None, None, set()), (0, 3, {0})])
def test_the_ids_that_end_a_response(own, of_text, ends):
    text = SimpleNamespace(eos_token_id=of_text)
    config = SimpleNamespace(get_text_config=lambda: text)
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own), config=config)
    assert end_ids(model) == ends


def test_settings_of_the_checkpoint_that_change_its_answer_are_named(twin, monkeypatch, caplog):
    model = twin("qwen2_vl")
    monkeypatch.setattr(model.generation_config, "num_beams", 3)
    monkeypatch.setattr(model.generation_config, "do_sample", True)
    with caplog.at_level(logging.INFO):
        say_decoding_settings(model, do_sample=False)
    assert "own settings of generation are kept: num_beams=3, suppress_tokens=[259" in caplog.text
    assert "asks for sampling; the likeliest token is taken" in caplog.text
    caplog.clear()
    say_decoding_settings(model, do_sample=True)
    assert "asks for sampling" not in caplog.text


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "more, steps", [({}, False), ({"cache_implementation": "static", "disable_compile": True}, True)]
)
def test_steps_of_a_growing_cache_are_kept_from_cudnn_which_plans_anew_for_each_length(tiny, more, steps, before):
    """The pass over the prompt and the steps of a static cache are not; an error, too, puts it back."""
    allowed, kept = [], torch.backends.cuda.cudnn_sdp_enabled()

    def note(*_):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        if len(allowed) == 4:
            raise RuntimeError("stopped")

    torch.backends.cuda.enable_cudnn_sdp(before)
    hook = tiny.model.get_decoder().register_forward_pre_hook(note)
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            generate_response(tiny.model, inputs_of(tiny), {"max_new_tokens": 6, **GREEDY, **more})
        assert allowed == [before, *[before and steps] * 3]
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    finally:
        hook.remove()
        torch.backends.cuda.enable_cudnn_sdp(kept)


# ------------------------------------------------------------------------------------- the pass


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_planes_of_one_pass_are_those_of_single_passes_and_of_eager_attention(tiny, twin, attention):
    """Each head, their mean, their maximum, the mean of some: of several layers at once."""
    inputs = inputs_of(tiny)
    planes = [(layer, head) for layer in (2, 0) for head in ("mean", "max", 0, 1, 2, 3, (1, 3))]
    together = record_rows(tiny.model, inputs, planes, RESPONSE, attention).weights
    assert_rows(together, planes, eager_weights(twin("qwen2_vl", "eager"), inputs, RESPONSE))
    for place, plane in enumerate(planes):
        alone = record_rows(tiny.model, inputs, [plane], RESPONSE, attention).weights
        np.testing.assert_array_equal(alone[:, 0], together[:, place])


def test_the_row_is_of_the_query_that_produced_the_token(tiny, twin):
    """Row t is the query at position P - 1 + t: it sums to 1 over what stands before token t, which it does not see."""
    inputs = inputs_of(tiny)
    P, rows = inputs["input_ids"].shape[1], record_rows(tiny.model, inputs, [(1, "mean")], RESPONSE).weights[:, 0]
    with torch.inference_mode():
        longer = torch.cat([inputs["input_ids"], torch.tensor([RESPONSE])], dim=1)
        ones = torch.ones_like(longer)
        marks = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(RESPONSE)))
        given = {**inputs, "input_ids": longer, "attention_mask": ones, "mm_token_type_ids": marks}
        full_QK = twin("qwen2_vl", "eager")(**given, output_attentions=True).attentions[1][0].mean(0).numpy()
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)
    for t in range(len(RESPONSE)):
        np.testing.assert_allclose(rows[t, : P + t], full_QK[P - 1 + t, : P + t], atol=2e-5)
        assert np.abs(rows[t, : P + t] - full_QK[P + t, : P + t]).max() > 1e-3  # its own, one later
        assert (rows[t, P + t :] == 0).all() and (rows[t, : P + t] > 0).all()


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5", "mllama"])
def test_a_model_that_does_not_reach_the_function_falls_back_to_eager_and_says_so(
    tiny_visualizer, monkeypatch, caplog, family
):
    """The layers of these are of several kinds, of which eager attention may leave some out."""
    visualizer = tiny_visualizer(family)
    model, inputs = visualizer.model, inputs_of(visualizer)
    planes, located = [(1, "mean"), (2, 0)], located_of(visualizer, inputs)
    expected = record_rows(model, inputs, planes, RESPONSE, located=located)
    real = model.set_attn_implementation
    passed = lambda new: real({key: "sdpa" if one == RECORDING_ATTENTION else one for key, one in new.items()})  # noqa: E731
    monkeypatch.setattr(model, "set_attn_implementation", passed)
    found = record_rows(model, inputs, planes, RESPONSE, located=located)
    assert "falling back to eager attention" in caplog.text
    np.testing.assert_allclose(found.weights, expected.weights, atol=2e-5)


def test_a_model_that_returns_no_attention_cannot_be_recorded(tiny, monkeypatch):
    passes = lambda *_, **__: SimpleNamespace(attentions=None)  # noqa: E731
    monkeypatch.setattr("attention_heatmap.recording.generation.forced_pass", passes)
    with pytest.raises(RuntimeError, match="returned the attention of 0 layers, not of 3: it cannot be recorded"):
        record_rows(tiny.model, inputs_of(tiny), PLANES, RESPONSE, "eager")


# ------------------------------------------------------------------------------------- one model, several users


def test_two_threads_on_one_model_get_the_rows_of_their_own_sample(tiny, twin, caplog):
    samples = [inputs_of(tiny, problem) for problem in ("Where?", "What is it, and why is it there?")]
    before, found, start = implementations(tiny.model.config), {}, threading.Barrier(2)

    def work(number):
        start.wait()
        for _ in range(3):
            with alone_with(tiny.model):
                ids = generate_response(tiny.model, samples[number], {"max_new_tokens": 6, **GREEDY})
                found.setdefault(number, []).append((ids, record_rows(tiny.model, samples[number], PLANES, ids)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    with caplog.at_level(logging.INFO):
        [thread.start() for thread in threads], [thread.join() for thread in threads]
    for number, inputs in enumerate(samples):
        expected = twin("qwen2_vl").generate(**inputs, max_new_tokens=6, **GREEDY)[0, inputs["input_ids"].shape[1] :]
        assert len(found[number]) == 3
        for ids, rows in found[number]:
            assert ids == expected.tolist()[: len(ids)]
            assert_rows(rows.weights, PLANES, eager_weights(twin("qwen2_vl", "eager"), inputs, ids))
    assert implementations(tiny.model.config) == before and _active.get() is None
    assert "the model is in use by another thread; waiting" in caplog.text


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_a_model_in_training_is_evaluated_meanwhile_and_each_module_gets_its_mode_back(tiny_checkpoint, error):
    model = loaded(tiny_checkpoint("qwen2_vl")).train()
    frozen = model.model.visual.eval()
    modes = [module.training for module in model.modules()]
    assert set(modes) == {True, False} and not frozen.training
    with pytest.raises(ZeroDivisionError) if error else alone_with(model), alone_with(model), alone_with(model):
        assert not any(module.training for module in model.modules())
        if error:
            raise error
    assert [module.training for module in model.modules()] == modes
