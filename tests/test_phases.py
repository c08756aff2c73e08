"""The phases of a response: the thinking, then the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import make_record

from attention_heatmap.phases import response_ends, response_phases


@pytest.mark.parametrize(
    "tokens, phases",
    [
        (["a", " b"], [("response", 0, 2)]),
        (["<think>", " a", "</think>", "<answer>", " b", "</answer>"], [("think", 0, 3), ("answer", 3, 6)]),
        ([" a", "</think>", " b"], [("think", 0, 2), ("answer", 2, 3)]),
        (["x", "<think>", "a", "</think>"], [("think", 1, 4)]),
        (["<think>", "a"], [("think", 0, 2)]),
        (["a", "<answer>", "b"], [("answer", 1, 3)]),
        (["<think>a<", "/think><answer>", "b"], [("think", 0, 1), ("answer", 1, 3)]),
        (["<think>a</think><answer>b</answer>"], [("answer", 0, 1)]),
        (["a</think", ">\n\n", "<answer>b"], [("think", 0, 2), ("answer", 2, 3)]),
    ],
)  # fmt: skip
def test_the_tags_part_the_response(tokens, phases):
    assert [(p.name, p.first, p.last) for p in response_phases(make_record(["go"], tokens))] == phases


TAGS = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "<", "think>", "a", " ", "", "\n", "</thi", "nk>"]
)


@given(st.lists(st.lists(TAGS, max_size=3).map("".join), min_size=1, max_size=12))
def test_whatever_tags_stand_where_the_phases_are_in_order_and_within_the_response(tokens):
    record = make_record(["go"], tokens)
    phases = response_phases(record)
    bounds = [bound for phase in phases for bound in (phase.first, phase.last)]
    assert bounds == sorted(bounds) and bounds[0] >= 0 and bounds[-1] <= len(tokens)
    assert all(phase.first < phase.last for phase in phases)
    assert [p.name for p in phases] in (["response"], ["think"], ["answer"], ["think", "answer"])


def test_many_tags_take_no_time():
    tokens = ["<answer>", "</answer>", "<think>"] * 40_000
    record = make_record(["go"], ["x"])
    object.__setattr__(record, "tokens", (*record.tokens[: record.prompt_length], *tokens))
    assert response_phases(record)[0].last == len(tokens)


def test_the_ends_of_tokens_are_counted_in_characters():
    assert response_ends(make_record(["go"], ["a", "", "路线", " b"])).tolist() == [1, 1, 3, 5]
