"""How an answer is made and recorded: wrong options say what was expected, right ones what `generate` gets."""

import pytest
import torch

from attention_heatmap.log import warn_once
from attention_heatmap.recording.options import RecordingOptions


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected 1 or more"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'; expected a whole number"),
        ({"max_pixels": 5.0}, "max_pixels is 5.0; expected a whole number"),
        ({"max_pixels": 0}, "max_pixels is 0; expected 1 or more"),
        ({"temperature": "1"}, "temperature is '1'; expected a number"),
        ({"fast": "no"}, "fast is 'no'; expected True or False"),
        ({"neutral_prompt": 5}, "neutral_prompt is 5; expected a text"),
        ({"attention": "flash"}, "attention is 'flash'; expected 'auto' or 'eager'"),
        ({"prompt_template": "no place"}, "'no place' has no {Question}; put it where the problem goes"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p 1.5"),
        ({"do_sample": True, "seed": -1}, "seed -1"),
    ],
)
def test_a_wrong_option_says_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        RecordingOptions(**options)


def test_sampling_that_is_not_asked_for_is_told_once(caplog):
    warn_once.cache_clear()
    for _ in range(2):
        RecordingOptions(top_p=0.5, seed=3)
    RecordingOptions(do_sample=True, top_p=0.5)
    assert caplog.text.count("top_p, seed without do_sample changes nothing; add do_sample, or leave that out") == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("given", [{"response": "<answer> a"}, {"response_key": "pred"}])
def test_settings_of_generation_are_named_where_the_answer_is_given(given, caplog):
    warn_once.cache_clear()
    RecordingOptions(do_sample=True, seed=5, max_new_tokens=77, **given)
    RecordingOptions(**given)
    told = "seed, do_sample, max_new_tokens with a given response changes nothing; leave that out"
    assert caplog.messages == [told]


def test_greedy_decoding_sets_a_checkpoints_sampling_aside():
    unused = {"temperature": None, "top_p": None, "top_k": None}
    assert RecordingOptions(max_new_tokens=9).generation(None) == {"max_new_tokens": 9, "do_sample": False, **unused}


def test_fast_is_a_static_cache_where_that_pays(tiny, monkeypatch, caplog):
    warn_once.cache_clear()
    how = RecordingOptions(max_new_tokens=500, fast=True)
    plain = RecordingOptions(max_new_tokens=500).generation(tiny.model)
    for _ in range(2):
        assert how.generation(tiny.model) == plain
    assert caplog.text.count("fast changes nothing: it does not pay on cpu for 500 tokens at most") == 1
    monkeypatch.setattr("attention_heatmap.recording.options.input_device", lambda _: torch.device("cuda"))
    assert how.generation(tiny.model) == {**plain, "cache_implementation": "static"}
    assert "cache_implementation" not in RecordingOptions(max_new_tokens=100, fast=True).generation(tiny.model)
    monkeypatch.setattr("attention_heatmap.recording.options.tp_size", lambda _: 2)
    assert how.generation(tiny.model) == plain


def test_sampling_begins_at_its_seed():
    how = RecordingOptions(do_sample=True, temperature=2.0, seed=7)
    drawn = []
    for _ in range(2):
        assert how.generation(None) == {"max_new_tokens": 1024, "do_sample": True, "temperature": 2.0, "top_p": 1.0}
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"response": ""}, "the given response is ''; expected a text that is not empty"),
        ({"response": "a", "response_key": "pred"}, "both given; give one of them"),
        ({"response_key": "other"}, r"'other' is no key of the sample; it has \['number', 'pred'\]"),
        ({"response_key": "number"}, "^response_key 'number' names a int in the sample; expected a text, the answer$"),
    ],
)
def test_a_given_response_that_is_none_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RecordingOptions(**options).given_response({"pred": "b", "number": 3})


@pytest.mark.parametrize(
    "options, response",
    [({}, None), ({"response": "a"}, "a"), ({"response_key": "pred"}, "b"), ({"response": "\ud800"}, "\ufffd")],
)
def test_the_given_response_is_the_text_or_that_of_the_field(options, response):
    assert RecordingOptions(**options).given_response({"pred": "b"}) == response
