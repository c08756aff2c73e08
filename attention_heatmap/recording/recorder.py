"""From queries and keys to rows: softmax for the queries wanted, heads reduced on the device, rows to the host."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from attention_heatmap.record import LARGEST_FLOAT32_RECORD, Head, ImageTokens
from attention_heatmap.recording import torch

_VALUES_AT_ONCE = 2**23  # weights of single heads, about, that stand on the device at once
_MOST_ON_THEIR_WAY = 32  # blocks of rows that have left the device and have not been put in their place yet
_ROWS_PER_BLOCK = 64  # queries of a layer that are taken together, at most

Plane = tuple[int, Head]
"""A layer, and how its heads are reduced."""


class AttentionRecorder:
    """Collects, in chosen layers, the attention rows of the last `steps` queries of one pass.

    No S×S matrix ever exists: scores are computed for the queries wanted, a block at a time, go through the softmax
    and the reduction of the heads on the device, and leave for the host without stopping it.

    planes: layers with a reduction of their heads. prompt: P, its positions. ranks: the processes that share the heads.
    crossing: the layers whose keys are the pictures, outside the text; these then have positions in every row.
    weights: (T, N, S) float32, or float16 where that would be large; complete after `finish`.
    """

    def __init__(
        self, planes: Sequence[Plane], prompt: int, steps: int, located: Sequence[ImageTokens] = (),
        crossing: Iterable[int] = (), ranks: int = 1,
    ) -> None:  # fmt: skip
        self.planes, self.steps, self.ranks = tuple(planes), steps, ranks
        self.located, self.crossing = located, frozenset(crossing)
        self.image_positions = np.concatenate([np.zeros(0, int), *(image.positions for image in located)])
        outside = self.image_positions if self.crossing else []
        shape = steps, len(self.planes), prompt + steps + len(outside)
        self.text_positions = np.setdiff1d(np.arange(shape[2]), outside)
        self.weights = np.zeros(shape, record_dtype(math.prod(shape)))  # memory is taken where something is written
        self._found_TN = np.zeros(shape[:2], bool)
        self._pool = ThreadPoolExecutor(max_workers=1)  # so that the model never waits for the host's memory
        self._on_their_way: deque[Future] = deque()

    @property
    def reached(self) -> bool:
        """Whether any row came."""
        return bool(self._on_their_way) or bool(self._found_TN.any())

    def observe(self, layer: int, query: Any, key: Any, mask: Any, scaling: float | None, window: int | None) -> None:
        """Record the rows of one attention call: query (1, H, Q, D), key (1, G, K, D), mask (1, 1, Q, K) or None.

        Without a mask attention is causal, within a window where there is one; a layer that crosses sees all keys.
        """
        (batch, heads, count, _), keys, seen = query.shape, key.shape[2], None
        for queries, step in self._blocks(layer, heads, count, keys):
            if batch != 1:
                raise ValueError(f"the batch has {batch} sequences; attention is recorded for one at a time")
            if mask is not None:
                seen = mask[0, :, queries, :keys]
            elif layer not in self.crossing:
                seen = causal_mask(queries, count, keys, window, query.device)
            scores_HQK = attention_scores(query, key, seen, scaling, queries)
            self.take(layer, step, scores_HQK.softmax(-1, dtype=torch.float32))

    def observe_weights(self, layer: int, weights_1HQK: Any) -> None:
        """Record the rows of one attention call from the weights that the model computed itself."""
        for queries, step in self._blocks(layer, *weights_1HQK.shape[1:]):
            self.take(layer, step, weights_1HQK[0, :, queries].float())

    def _blocks(self, layer: int, heads: int, count: int, keys: int) -> Iterable[tuple[slice, int]]:
        """The blocks of a call's queries that are wanted, and the step of the first of each; none of another layer."""
        if not any(layer == wanted for wanted, _ in self.planes):
            return
        length = min(max(_VALUES_AT_ONCE // (heads * keys), 1), _ROWS_PER_BLOCK)
        before = count - self.steps  # queries; the call's last ones are those of the pass, of which it may see fewer
        for first in range(max(before, 0), count, length):
            yield slice(first, min(first + length, count)), first - before

    def take(self, layer: int, step: int, weights_HQK: Any) -> None:
        """Reduce the weights of the queries from a step on to rows of each plane, and let them leave for the host."""
        places = [place for place, (number, _) in enumerate(self.planes) if number == layer]
        rows_NQK = torch.stack([reduce_heads(weights_HQK, self.planes[place][1], self.ranks) for place in places])
        if self.weights.dtype == np.float16:
            rows_NQK = rows_NQK.half()  # here, since NumPy takes its time over small numbers
        on_host, there = rows_NQK.to("cpu", non_blocking=rows_NQK.is_cuda), None
        if rows_NQK.is_cuda:
            there = torch.cuda.current_stream(rows_NQK.device).record_event()
        self._on_their_way.append(self._pool.submit(self._store, there, step, places, on_host))
        if len(self._on_their_way) > _MOST_ON_THEIR_WAY:
            self._on_their_way.popleft().result()

    def _store(self, there: Any, step: int, places: list[int], rows_NQK: Any) -> None:
        """Put rows where they belong, once they have arrived."""
        if there is not None:
            there.synchronize()
        rows_NQK = rows_NQK.numpy()
        (_, Q, K), layer = rows_NQK.shape, self.planes[places[0]][0]
        finite_Q = np.isfinite(rows_NQK).all(axis=(0, 2))
        if not finite_Q.all():
            told = f"layer {layer} has weights that are no numbers at step {step + finite_Q.argmin()}"
            raise RuntimeError(f"{told}: the model overflowed, as float16 may; try --dtype bfloat16 or float32")
        positions = self.text_positions[:K] if self.crossing else slice(K)
        if layer in self.crossing:
            positions, rows_NQK = self.image_positions, rows_NQK[..., self.image_keys(layer, K)]
        for place, rows_QK in zip(places, rows_NQK):
            self.weights[step : step + Q, place, positions] = rows_QK
            self._found_TN[step : step + Q, place] = True

    def image_keys(self, layer: int, keys: int) -> np.ndarray:
        """(M,) the key of each image token; a layer that crosses has as many a picture, padded."""
        if layer not in self.crossing:
            return self.image_positions
        each = keys // len(self.located)
        return np.concatenate([each * n + np.arange(len(image.positions)) for n, image in enumerate(self.located)])

    def finish(self) -> "AttentionRecorder":
        """Wait until all rows are in their place. Raises RuntimeError when some are missing."""
        with self._pool:
            while self._on_their_way:
                self._on_their_way.popleft().result()
        for (layer, _), found in zip(self.planes, self._found_TN.sum(axis=0)):
            if found < self.steps:
                told = f"layer {layer} gave {found} attention rows for {self.steps} tokens"
                reason = "it may have no softmax attention or bypass transformers' AttentionInterface"
                raise RuntimeError(f"{told}; {reason}: try another layer, or eager")
        return self


def record_dtype(values: int) -> type:
    """The dtype of a record of so many weights."""
    return np.float32 if values * 4 <= LARGEST_FLOAT32_RECORD else np.float16


def attention_scores(query: Any, key: Any, mask_1QK: Any, scaling: float | None, queries: slice) -> Any:
    """q·kᵀ, scaled and masked, for a slice of the queries: (H, Q, K) in the dtype of the query.

    mask_1QK: of these queries; bool, or added; None hides nothing.
    """
    _, H, _, D = query.shape
    _, G, K, _ = key.shape
    query_GQD = query[0, :, queries].reshape(G, -1, D)  # heads of a group beside each other: no key is repeated
    scale = D**-0.5 if scaling is None else scaling
    nothing = query.new_empty(1, 1, 1)  # beta=0: it is not read; one call multiplies and scales
    scores_HQK = torch.baddbmm(nothing, query_GQD, key[0].transpose(1, 2), beta=0, alpha=scale).view(H, -1, K)
    if mask_1QK is None:
        return scores_HQK
    return scores_HQK.masked_fill_(~mask_1QK, -math.inf) if mask_1QK.dtype == torch.bool else scores_HQK + mask_1QK


def causal_mask(queries: slice, count: int, keys: int, window: int | None, device: Any) -> Any:
    """(Q, K) bool, the keys that a slice of the last `count` queries sees: those before them, in a window if any."""
    at_Q1 = torch.arange(keys - count + queries.start, keys - count + queries.stop, device=device)[:, None]
    at_K = torch.arange(keys, device=device)
    seen_QK = at_K <= at_Q1
    return seen_QK if window is None else seen_QK & (at_K > at_Q1 - window)


def reduce_heads(weights_HQK: Any, head: Head, ranks: int = 1) -> Any:
    """(Q, K) weights from (H, Q, K): the mean or maximum over the heads, one head, or the mean of several.

    ranks: the processes of a tensor-parallel run; each holds an equal part of the heads, in order, or all of them.
    """
    if head in ("mean", "max"):
        rows_QK = weights_HQK.amax(0) if head == "max" else weights_HQK.mean(0) / ranks
    else:  # the first process that has a head gives its rows, the others zeros
        H, wanted = weights_HQK.shape[0], head if isinstance(head, tuple) else (head,)
        places = [one - (torch.distributed.get_rank() * H if ranks > 1 else 0) for one in wanted]
        own = [place for place in places if 0 <= place < H] if ranks > 1 else places
        rows_QK = weights_HQK[own].sum(0) / len(wanted)
    if ranks > 1:
        rows_QK, operations = rows_QK.contiguous(), torch.distributed.ReduceOp
        torch.distributed.all_reduce(rows_QK, operations.MAX if head == "max" else operations.SUM)
    return rows_QK
