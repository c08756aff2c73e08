"""Options: any value of any kind is taken or refused in one line; flags, texts and Python give the same."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_heatmap.drawing.options import DrawingOptions, drawing_options
from attention_heatmap.options import (
    add_flags,
    are_whole,
    defaults_of,
    expand,
    names_of,
    number_or_text,
    option,
    pick,
    shows_options,
    spans,
)
from attention_heatmap.recording.options import CheckpointOptions, RecordingOptions

KINDS = (CheckpointOptions, RecordingOptions, DrawingOptions)
NASTY = (10**400, np.float32("nan"), np.array([1, 2]), np.zeros((2, 2)), object, len, {1}, range(10**12), b"x", 1j, {})
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4),
    st.complex_numbers(), st.lists(st.integers(-3, 3), max_size=3), st.tuples(st.integers(), st.integers()),
    st.dictionaries(st.text(), st.text()),
    st.sampled_from(NASTY),
)  # fmt: skip


OPTIONS = [(kind, name) for kind in KINDS for name in names_of(kind)]


def is_taken_or_refused_by_name(kind, name, value):
    try:
        kind(**{name: value})
    except (ValueError, OSError) as error:
        return name in str(error) and "\n" not in str(error) and len(str(error)) < 2500
    return True


@pytest.mark.parametrize("kind, name", OPTIONS)
def test_a_value_that_nobody_should_give_is_taken_or_refused_by_name(kind, name):
    for value in NASTY:
        assert is_taken_or_refused_by_name(kind, name, value), value


@pytest.mark.parametrize("kind, name", OPTIONS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_value_of_an_option_is_taken_or_refused_in_one_line_that_names_it(kind, name, data):
    assert is_taken_or_refused_by_name(kind, name, data.draw(ANYTHING))


@settings(deadline=None, max_examples=60)
@given(
    st.fixed_dictionaries({}, optional={
        "max_new_tokens": st.integers(-2, 5), "do_sample": st.booleans(), "temperature": st.floats(),
        "top_p": st.floats(), "seed": st.integers(-1, 2**33), "max_pixels": st.none() | st.integers(-1, 9),
        "prompt_template": st.sampled_from(["{Question}", "a {Question} b", "", "{question}"]),
    })
)  # fmt: skip
def test_options_that_are_taken_can_be_used(options):
    try:
        how = RecordingOptions(**options)
    except ValueError:
        return
    generation = how.generation(None)
    assert generation["max_new_tokens"] >= 1 and generation["do_sample"] is how.do_sample
    assert not how.do_sample or (generation["temperature"] > 0 and 0 < generation["top_p"] <= 1)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (RecordingOptions, {"max_new_tokens": 0}, "max_new_tokens is 0; expected 1 or more"),
        (RecordingOptions, {"max_new_tokens": 2.0}, "max_new_tokens is 2.0; expected a whole number"),
        (RecordingOptions, {"max_new_tokens": True}, "max_new_tokens is True; expected a whole number"),
        (RecordingOptions, {"max_new_tokens": 10**400}, r"max_new_tokens is 10+; expected a whole number below 9\d+$"),
        (RecordingOptions, {"max_pixels": 0}, "max_pixels is 0; expected 1 or more"),
        (RecordingOptions, {"do_sample": 1}, "do_sample is 1; expected True or False"),
        (RecordingOptions, {"do_sample": True, "temperature": 0}, "temperature is 0, top_p"),
        (RecordingOptions, {"do_sample": True, "temperature": math.inf}, "temperature is inf"),
        (RecordingOptions, {"do_sample": True, "temperature": math.nan}, "temperature is nan"),
        (RecordingOptions, {"do_sample": True, "top_p": math.nan}, "top_p is nan"),
        (RecordingOptions, {"do_sample": True, "seed": -1}, "seed -1"),
        (RecordingOptions, {"prompt_template": "no place"}, "has no {Question}; put it where the problem goes"),
        (RecordingOptions, {"attention": "flash"}, "attention is 'flash'; expected 'auto' or 'eager'"),
        (CheckpointOptions, {"dtype": "float99"}, "dtype is 'float99'; expected auto or one of torch's"),
        (CheckpointOptions, {"dtype": "nn"}, "dtype is 'nn'"),
        (CheckpointOptions, {"device_map": "meta"}, "device_map names meta, a device without weights"),
        (CheckpointOptions, {"device_map": {"": "meta"}}, "device_map names meta, a device without weights"),
        (CheckpointOptions, {"trust_remote_code": "no"}, "trust_remote_code is 'no'; expected True or False"),
        (CheckpointOptions, {"model_kwargs": "{}"}, "model_kwargs is '{}'; expected a dict of names and values"),
        (
            CheckpointOptions,
            {"processor_kwargs": [1]},
            r"processor_kwargs is \[1\]; expected a dict of names and values",
        ),
        (DrawingOptions, {"fps": math.nan}, "fps is nan; expected a number below"),
        (DrawingOptions, {"fps": "2"}, "fps is '2'; expected a number"),
        (DrawingOptions, {"fps": 10**400}, "fps is"),
        (DrawingOptions, {"smooth": -1}, "smooth is -1; expected a width in cells"),
        (DrawingOptions, {"frame_size": (641, 360)}, "both must be even"),
        (DrawingOptions, {"frame_size": 640}, "frame_size is 640"),
        (DrawingOptions, {"frames": "some"}, "frames is 'some'; expected the numbers of tokens"),
        (DrawingOptions, {"frames": [1.5]}, "frames is"),
        (DrawingOptions, {"colormap": "jet"}, "colormap"),
        (DrawingOptions, {"font_path": "none.ttf"}, "font_path none.ttf cannot be used"),
        (DrawingOptions, {"format": "avi"}, "format is 'avi'; expected 'mp4' or"),
    ],
)
def test_an_option_that_does_not_fit_says_what_does(kind, options, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        kind(**options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2500


@pytest.mark.parametrize(
    "given_, message",
    [
        ({"max_new_token": 3}, "there is no option 'max_new_token'; did you mean max_new_tokens?"),
        ({"colour_map": 3}, "there is no option 'colour_map'; did you mean colormap?"),
        ({"layer": 3}, "there is no option 'layer'; did you mean layer_idx?"),
        ({"xyz": 1}, r"there is no option 'xyz'; expected one of attention, baseline, "),
    ],
)
def test_a_misspelt_option_is_named_with_the_nearest(given_, message):
    with pytest.raises(ValueError, match=message):
        pick(given_, RecordingOptions, DrawingOptions)


def test_options_are_parted_between_their_classes():
    assert pick({"fps": 3, "head": "max"}, RecordingOptions, DrawingOptions) == [{"head": "max"}, {"fps": 3}]
    assert drawing_options({"fps": 3}) == DrawingOptions(fps=3)


def test_a_signature_lists_the_options_in_place_of_their_dict():
    @shows_options(RecordingOptions)
    def function(a, fast=True, **options): ...

    parameters = inspect.signature(function).parameters
    assert list(parameters)[:2] == ["a", "fast"] and parameters["fast"].default is True
    assert set(names_of(RecordingOptions)) < set(parameters) and "options" not in parameters


@pytest.mark.parametrize(
    "given_, expected",
    [
        (3, [3]), (-1, [-1]), ("3", [3]), ("-1", [-1]), ("0-3", [0, 1, 2, 3]), ("0,5-6", [0, 5, 6]), ("1+3", [(1, 3)]),
        ("all", ["all"]), ([1, "2-3", (4, 5)], [1, 2, 3, (4, 5)]), ("yellow", ["yellow"]), ("3-1", ["3-1"]),
        (None, [None]), (range(2), [0, 1]), ("", [""]), ("٣", ["٣"]), ([], []),
    ],
)  # fmt: skip
def test_what_names_layers_or_heads_is_read_one_way(given_, expected):
    assert expand(given_, "layer_idx") == expected


@pytest.mark.parametrize("text", ["0-999999999", "0-60000,0-60000", "0-999999999999999999"])
def test_a_range_far_too_long_is_refused_and_never_spelled_out(text):
    with pytest.raises(ValueError, match="is out of range: no model has so many"):
        expand(text, "layer_idx")


@given(st.text(max_size=30))
def test_any_text_is_read_as_numbers_or_stays(text):
    parsed = spans(text)
    assert parsed is None or all(0 <= first <= last for first, last in parsed)
    assert number_or_text(text) in (text, *([int(text)] if text.lstrip("-").isdecimal() else []))
    assert isinstance(expand(text[:8], "x"), list)


def test_true_is_no_number_and_numpys_numbers_are():
    assert are_whole([1, np.int64(2)]) and not are_whole([True]) and not are_whole([1.0]) and not are_whole(3)
    assert are_whole(range(10**12))  # without a look at each


def test_a_flag_is_made_of_a_field():
    @dataclasses.dataclass(frozen=True)
    class Options:
        size: int = option(3, "of 5% more", group="new", shown="three")
        kind: str = option("a", "which", group="new", choices=("a", "b"))
        quick: bool = option(False, "be quick", group="old")

    parser = argparse.ArgumentParser()
    groups = {"old": parser.add_argument_group("old")}
    add_flags(parser, groups, Options)
    assert vars(parser.parse_args([])) == defaults_of(Options) and set(groups) == {"old", "new"}
    assert parser.parse_args(["--size", "4", "--kind", "b", "--quick"]) == argparse.Namespace(
        size=4, kind="b", quick=True
    )
    assert "of 5% more (default: three)" in " ".join(parser.format_help().split())
