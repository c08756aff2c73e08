"""From queries and keys to rows."""

import numpy as np
import pytest
import torch

from attention_heatmap.record import ImageTokens
from attention_heatmap.recording import recorder as room
from attention_heatmap.recording.recorder import AttentionRecorder, attention_scores, causal_mask, reduce_heads

H, G, D = 4, 2, 8


def observe(recorder, layer, batch=1, queries=1, keys=1):
    recorder.observe(layer, torch.zeros(batch, H, queries, D), torch.zeros(batch, G, keys, D), None, None, None)


def random_call(queries, keys, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, H, queries, D, generator=generator), torch.randn(1, G, keys, D, generator=generator)


def expected_rows(query, key, allowed_QK, scaling=D**-0.5):
    """(H, Q, K) by the formula, keys repeated for the heads of their group."""
    scores = query[0] @ key[0].repeat_interleave(H // G, 0).transpose(1, 2) * scaling
    return torch.softmax(scores.masked_fill(~allowed_QK, -torch.inf), -1).numpy()


@pytest.mark.parametrize("window", [None, 30, 3])
@pytest.mark.parametrize("values_at_once", [1, 1000, 2**23])
def test_blocks_of_queries_give_the_rows_of_the_last_steps(monkeypatch, window, values_at_once):
    monkeypatch.setattr(room, "_VALUES_AT_ONCE", values_at_once)
    P, T = 50, 90
    query, key = random_call(P - 1 + T, P - 1 + T)
    recorder = AttentionRecorder([(0, "mean"), (3, 1)], P, T)
    for layer in (0, 1, 3):
        recorder.observe(layer, query, key, None, None, window)
    at = torch.arange(P - 1 + T)
    allowed = (at <= at[:, None]) & (at > at[:, None] - (window or P + T))
    expected, rows = expected_rows(query, key, allowed)[:, P - 1 :], recorder.finish().weights
    assert rows.shape == (T, 2, P + T) and not rows[..., -1].any()
    np.testing.assert_allclose(rows[:, 0, :-1], expected.mean(0), atol=1e-6)
    np.testing.assert_allclose(rows[:, 1, :-1], expected[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["bool", "added", "longer"])
def test_a_mask_is_obeyed_and_cut_to_the_keys(kind):
    query, key = random_call(6, 6)
    allowed = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    allowed |= torch.eye(6, dtype=torch.bool)
    mask = allowed[None, None]
    if kind == "longer":  # of an empty static cache
        mask = torch.nn.functional.pad(mask, (0, 3))
    if kind == "added":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    recorder = AttentionRecorder([(0, "max")], 2, 4)
    recorder.observe(0, query, key, mask, 0.7, None)
    np.testing.assert_allclose(
        recorder.finish().weights[:, 0, :6], expected_rows(query, key, allowed, 0.7)[:, 2:].max(0), atol=1e-6
    )


def test_a_layer_that_sees_fewer_queries_than_others_sees_the_last_ones():
    query, key = random_call(3, 9)
    recorder = AttentionRecorder([(0, "mean")], 6, 3)
    recorder.observe(0, query, key, None, None, None)
    allowed = torch.arange(9) <= torch.arange(6, 9)[:, None]
    np.testing.assert_allclose(
        recorder.finish().weights[:, 0, :9], expected_rows(query, key, allowed).mean(0), atol=1e-6
    )


def pictures_at(*places):
    return [ImageTokens(np.arange(at, at + n), np.zeros((n, 4), np.float32)) for at, n in places]


def test_a_layer_that_crosses_sees_all_keys_and_those_of_the_pictures_stand_where_these_do():
    """Its 20 keys are 10 a picture, padded; the text of 4 positions stands around the pictures' 2 + 3."""
    query, key = random_call(4, 20)
    recorder = AttentionRecorder([(1, "mean"), (0, "mean")], 2, 2, pictures_at((1, 2), (4, 3)), crossing=[1])
    recorder.observe(1, query, key, None, None, None)
    recorder.observe_weights(0, torch.full((1, H, 4, 4), 0.25))
    rows = recorder.finish().weights
    assert rows.shape == (2, 2, 9) and recorder.text_positions.tolist() == [0, 3, 7, 8]
    everything = torch.ones(4, 20, dtype=torch.bool)
    expected = expected_rows(query, key, everything)[:, 2:].mean(0)[:, [0, 1, 10, 11, 12]]
    np.testing.assert_allclose(rows[:, 0, [1, 2, 4, 5, 6]], expected, atol=1e-6)
    assert not rows[:, 0, [0, 3, 7, 8]].any()
    np.testing.assert_array_equal(rows[:, 1], np.tile([0.25, 0, 0, 0.25, 0, 0, 0, 0.25, 0.25], (2, 1)))


def test_keys_of_pictures_that_cross_are_as_many_a_picture_and_others_are_positions():
    recorder = AttentionRecorder([(0, "mean")], 7, 1, pictures_at((1, 2), (4, 3)), crossing=[1])
    assert recorder.image_keys(1, 8).tolist() == [0, 1, 4, 5, 6]
    assert recorder.image_keys(0, 8).tolist() == recorder.image_positions.tolist() == [1, 2, 4, 5, 6]


def test_weights_that_the_model_computed_are_rows_as_they_are():
    weights = torch.rand(1, H, 5, 5)
    recorder = AttentionRecorder([(2, (0, 3))], 1, 4)
    recorder.observe_weights(2, weights)
    recorder.observe_weights(1, weights)  # of a layer that nobody wants
    np.testing.assert_allclose(recorder.finish().weights[:, 0, :5], weights[0, [0, 3], 1:].mean(0), atol=1e-6)


def test_no_matrix_of_all_positions_is_held(monkeypatch):
    monkeypatch.setattr(room, "_VALUES_AT_ONCE", H * 500 * 2)
    seen, real = [], room.attention_scores

    def noted(*arguments):
        seen.append(tuple(real(*arguments).shape))
        return real(*arguments)

    monkeypatch.setattr(room, "attention_scores", noted)
    recorder = AttentionRecorder([(0, "mean")], 491, 10)
    observe(recorder, 0, queries=500, keys=500)
    assert seen == [(H, 2, 500)] * 5 and recorder.finish().weights.shape == (10, 1, 501)


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match="the batch has 2 sequences; attention is recorded for one at a time"):
        observe(AttentionRecorder([(0, "mean")], 0, 1), 0, batch=2)


def test_a_layer_without_rows_is_named():
    recorder = AttentionRecorder([(0, "mean"), (5, "mean")], 0, 1)
    assert not recorder.reached
    observe(recorder, 0)
    assert recorder.reached
    with pytest.raises(RuntimeError, match="layer 5 gave 0 attention rows for 1 tokens"):
        recorder.finish()


def test_weights_that_are_no_numbers_name_the_layer_and_the_step():
    recorder = AttentionRecorder([(3, "mean")], 0, 5)
    weights = torch.full((1, H, 5, 5), 0.2)
    weights[0, 2, 3, 1] = torch.nan
    recorder.observe_weights(3, weights)
    with pytest.raises(RuntimeError, match=r"layer 3 has weights that are no numbers at step 3: .* --dtype bfloat16"):
        recorder.finish()


@pytest.mark.parametrize("limit, dtype", [(2**28, np.float32), (0, np.float16)])
def test_a_large_record_is_kept_in_half_the_memory(monkeypatch, limit, dtype):
    monkeypatch.setattr(room, "LARGEST_FLOAT32_RECORD", limit)
    recorder = AttentionRecorder([(0, "mean")], 99, 5)
    observe(recorder, 0, queries=104, keys=104)
    weights = recorder.finish().weights
    assert weights.dtype == dtype
    np.testing.assert_allclose(weights.astype(np.float32).sum(-1), 1, atol=1e-3)


def test_planes_of_a_layer_leave_together_and_the_queue_stays_short(monkeypatch):
    monkeypatch.setattr(room, "_MOST_ON_THEIR_WAY", 2)
    monkeypatch.setattr(room, "_ROWS_PER_BLOCK", 1)
    recorder, sizes = AttentionRecorder([(0, 0), (1, 0), (0, 1)], 0, 6), []
    real = recorder._store
    monkeypatch.setattr(recorder, "_store", lambda *arguments: sizes.append(arguments[2]) or real(*arguments))
    for layer in (0, 1):
        observe(recorder, layer, queries=6, keys=6)
        assert len(recorder._on_their_way) <= 2
    assert recorder.finish().weights.any() and sizes == [[0, 2]] * 6 + [[1]] * 6


@pytest.mark.parametrize("count, keys, window", [(3, 3, None), (2, 7, None), (4, 9, 2)])
def test_a_causal_mask_is_that_of_the_last_queries(count, keys, window):
    whole = torch.ones(keys, keys, dtype=torch.bool).tril()
    expected = (whole & ~whole.tril(-window) if window else whole)[keys - count :]
    assert (causal_mask(slice(0, count), count, keys, window, "cpu") == expected).all()
    assert (causal_mask(slice(1, 2), count, keys, window, "cpu") == expected[1:2]).all()


def test_scores_are_of_the_queries_dtype():
    query, key = random_call(2, 3)
    scores = attention_scores(query.bfloat16(), key.bfloat16(), None, None, slice(0, 2))
    assert scores.dtype == torch.bfloat16 and scores.shape == (H, 2, 3)


@pytest.mark.parametrize("head", ["mean", "max", 0, 3, (1, 3), (2, 0, 1)])
def test_heads_shared_by_processes_are_reduced_as_those_of_one(monkeypatch, head):
    """Two processes of two heads each: what each gives to the others, added or compared, is the row of all four."""
    weights = torch.rand(4, 3, 5)
    given = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda rows, how: given.append((rows.clone(), how)))
    for rank in (0, 1):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        reduce_heads(weights[2 * rank : 2 * rank + 2], head, 2)
    (first, how), (second, _) = given
    together = torch.maximum(first, second) if how == torch.distributed.ReduceOp.MAX else first + second
    assert torch.allclose(together, reduce_heads(weights, head), atol=1e-6)


def test_steps_that_no_call_saw_are_missed_also_where_others_came_twice():
    recorder = AttentionRecorder([(0, "mean")], 3, 4)
    for _ in range(2):  # the last two of four
        observe(recorder, 0, queries=2, keys=7)
    with pytest.raises(RuntimeError, match="layer 0 gave 2 attention rows for 4 tokens"):
        recorder.finish()


def test_a_head_that_a_layer_does_not_have_is_no_row_of_zeros():
    for head in (6, (1, 6)):
        with pytest.raises(IndexError):
            reduce_heads(torch.ones(H, 1, 2), head)
