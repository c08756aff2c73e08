"""The choice of auto."""

import numpy as np
import pytest
from records import grid_boxes
from reference import PICTURES, eager_weights, inputs_of

from attention_heatmap.record import ImageTokens
from attention_heatmap.recording.attention import RECORDING_ATTENTION
from attention_heatmap.recording.heads import (
    SURVEY_REGIONS,
    choose_heads,
    head_agreement,
    survey_heads,
    token_regions,
)
from attention_heatmap.recording.image_tokens import image_token_id

RESPONSE = list(range(40, 110))


def by_hand(tiny):
    """Inputs and two pictures' image tokens, with boxes of a grid as wide as the tokens."""
    inputs = inputs_of(tiny)
    at = np.flatnonzero(inputs["input_ids"][0].numpy() == image_token_id(tiny.config))
    parts = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    located = [
        ImageTokens(part, grid_boxes(1, len(part), *image.size)) for part, image in zip(parts, PICTURES, strict=True)
    ]
    return inputs, located, [image.size for image in PICTURES]


def test_the_survey_sees_what_eager_attention_gives_of_each_head(tiny, twin):
    """The agreement of the heads of every layer, on a coarse grid by hand."""
    inputs, located, sizes = by_hand(tiny)
    survey = survey_heads(tiny.model, inputs, RESPONSE, located, sizes)
    weights = eager_weights(twin("qwen2_vl", "eager"), inputs, RESPONSE)
    at, region = np.concatenate([image.positions for image in located]), token_regions(located, sizes)
    onto_NR = (region[:, None] == np.unique(region)).astype(np.float32)
    assert list(survey) == [0, 1, 2]
    for layer, heads_HTK in weights.items():
        expected = head_agreement((heads_HTK[:, :, at] @ onto_NR).transpose(1, 0, 2))
        np.testing.assert_allclose(survey[layer], expected, rtol=1e-3, atol=1e-9)


def test_a_model_that_bypasses_the_interface_cannot_be_surveyed(tiny, monkeypatch):
    (inputs, located, sizes), real = by_hand(tiny), tiny.model.set_attn_implementation
    passed = lambda new: real({key: "sdpa" if one == RECORDING_ATTENTION else one for key, one in new.items()})  # noqa: E731
    monkeypatch.setattr(tiny.model, "set_attn_implementation", passed)
    with pytest.raises(RuntimeError, match="no layer or head can be chosen by auto; name them"):
        survey_heads(tiny.model, inputs, RESPONSE, located, sizes)


def test_a_cell_belongs_to_the_region_of_its_middle_and_each_picture_has_its_own():
    boxes = np.concatenate([grid_boxes(2, 2, 80, 40), [[np.nan] * 4]]).astype(np.float32)
    regions = token_regions([ImageTokens(np.arange(5), boxes)] * 2, [(80, 40)] * 2)
    side = SURVEY_REGIONS
    first = [1 + 2 * side + 2, 1 + 2 * side + 6, 1 + 6 * side + 2, 1 + 6 * side + 6]
    assert regions.tolist() == [*first, 0, *(one + side**2 for one in first), 0]


def test_heads_agree_where_they_move_together():
    """Two heads follow the token, one looks the other way, one glows at one place all the time."""
    T = 6
    follows = np.eye(T)
    survey = np.stack([follows, 0.9 * follows, follows[::-1], np.tile(np.eye(T)[0], (T, 1))], axis=1)
    agreement = head_agreement(survey)
    assert agreement[0] > 0 and agreement[1] > 0 and agreement[2] < agreement[1] and abs(agreement[3]) < 1e-12
    np.testing.assert_allclose(head_agreement(survey[:, :1]), (survey[:, 0].var(axis=0)).sum())  # one head, with itself


def test_the_layer_whose_heads_agree_most_is_taken_and_of_each_layer_the_best_head():
    agreement = {3: np.array([0.1, 0.5]), 5: np.array([0.9, 0.3]), 7: np.zeros(2)}
    assert choose_heads(agreement) == (5, {3: 1, 5: 0, 7: 0})
    below = {0: np.array([-1.0, -2.0]), 1: np.zeros(2)}  # a window may end before the picture: that says nothing
    assert choose_heads(below)[0] == 0
    assert choose_heads({4: np.zeros(2)})[0] == 4
