"""From queries and keys to rows: softmax for the queries wanted, heads reduced on the device, rows to the host."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from attention_heatmap.record import LARGEST_FLOAT32_RECORD, Head

_VALUES_AT_ONCE = 2**23  # weights of single heads, about, that stand on the device at once
_LARGEST_QUEUE = 32  # transfers to the host that have not been put in their place yet
_ROWS_PER_BLOCK = 64  # queries of a layer that are taken together, at most

Plane = tuple[int, Head]
"""A layer, and how its heads are reduced."""


class AttentionRecorder:
    """Collects, in chosen layers, the attention rows of the last `steps` queries of one pass.

    No S×S matrix ever exists: scores are computed for the queries wanted, a block at a time, go through the softmax
    and the reduction of the heads on the device, and leave for the host without stopping it. On the host there is one
    array: float32, or float16 where that would be large.

    planes: layers with a reduction of their heads. first_query: position of the first query wanted.
    crossing: the layers whose keys belong to pictures, not to positions of the text. shared_heads: the number of
    heads of the model where the processes of a tensor-parallel run share them, else 0.
    """

    def __init__(
        self,
        planes: Sequence[Plane],
        first_query: int,
        steps: int,
        crossing: Iterable[int] = (),
        shared_heads: int = 0,
    ) -> None:
        self.planes = tuple(planes)
        self.first_query, self.steps = first_query, steps
        self.crossing = frozenset(crossing)
        self.shared_heads = shared_heads
        self.cross_keys = 0  # keys that a layer has which sees the pictures only
        self._places: dict[int, list[int]] = {}  # of each layer's planes
        for place, (layer, _) in enumerate(self.planes):
            self._places.setdefault(layer, []).append(place)
        shape = steps, len(self.planes), first_query + 1 + steps
        self._weights_TNK = np.zeros(
            shape, record_dtype(math.prod(shape))
        )  # memory is taken where something is written
        self._found_TN = np.zeros(shape[:2], bool)
        self._pool = ThreadPoolExecutor(max_workers=1)  # so that the model never waits for the host's memory
        self._storing: list[Future] = []

    @property
    def reached(self) -> bool:
        """Whether any row came."""
        return bool(self._storing) or bool(self._found_TN.any())

    def wants(self, layer: int) -> bool:
        """Whether rows of a layer are recorded."""
        return layer in self._places

    def observe(self, layer: int, query: Any, key: Any, mask: Any, scaling: float | None, window: int | None) -> None:
        """Record the rows of one attention call: query (1, H, Q, D), key (1, G, K, D), mask (1, 1, Q, K) or None.

        Without a mask attention is causal, within a window of the last positions where there is one; that of a layer
        that crosses sees all keys.
        """
        (batch, heads, count, _), keys = query.shape, key.shape[2]
        if not self.wants(layer):
            return
        if batch != 1:
            raise ValueError(f"the batch has {batch} sequences; attention is recorded for one at a time")
        block, causal = self.block_length(heads, keys), mask is None and layer not in self.crossing
        for first, step in self._wanted(count, block):
            queries = slice(first, min(first + block, count))
            scores_HQK = attention_scores(query, key, mask, scaling, queries)
            if causal:
                scores_HQK.masked_fill_(~causal_mask(queries, count, keys, window, query.device), -math.inf)
            self.take(layer, step, softmax(scores_HQK))

    def observe_weights(self, layer: int, weights_1HQK: Any) -> None:
        """Record the rows of one attention call from the weights that the model computed itself."""
        if self.wants(layer):
            _, heads, count, keys = weights_1HQK.shape
            block = self.block_length(heads, keys)
            for first, step in self._wanted(count, block):
                self.take(layer, step, weights_1HQK[0, :, first : first + block].float())

    def _wanted(self, count: int, block: int) -> Iterable[tuple[int, int]]:
        """(query, step) that each block of a call begins with; its queries are the pass's last ones."""
        start = self.first_query + self.steps - count  # a layer that sees fewer queries than others sees the last ones
        begin = max(self.first_query - start, 0)
        return ((first, start + first - self.first_query) for first in range(begin, count, block))

    @staticmethod
    def block_length(heads: int, keys: int) -> int:
        """The number of queries whose weights may exist at once."""
        return min(max(_VALUES_AT_ONCE // (heads * keys), 1), _ROWS_PER_BLOCK)

    def take(self, layer: int, step: int, weights_HQK: Any) -> None:
        """Reduce the weights of the queries from a step on to rows of each plane, and let them leave for the host."""
        import torch

        if layer in self.crossing:
            self.cross_keys = weights_HQK.shape[2]
        places = self._places[layer]
        rows = [reduce_heads(weights_HQK, self.planes[place][1], self.shared_heads) for place in places]
        rows_NQK = torch.stack(rows) if len(rows) > 1 else rows[0][None]
        if self._weights_TNK.dtype == np.float16:
            rows_NQK = rows_NQK.half()  # here, since NumPy takes its time over small numbers
        on_host, event = rows_NQK.to("cpu", non_blocking=True), None
        if rows_NQK.is_cuda:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(rows_NQK.device))
        self._storing.append(self._pool.submit(self._store, event, step, places, on_host))
        if len(self._storing) > _LARGEST_QUEUE:
            self._storing.pop(0).result()

    def _store(self, event: Any, step: int, places: list[int], rows_NQK: Any) -> None:
        """Put rows where they belong, once they have arrived."""
        if event is not None:
            event.synchronize()
        rows_NQK = rows_NQK.numpy()
        missing = rows_NQK.shape[2] - self._weights_TNK.shape[2]
        if missing > 0:  # more keys of pictures than there are positions
            self._weights_TNK = np.pad(self._weights_TNK, ((0, 0), (0, 0), (0, missing)))
        finite_NQ = np.isfinite(rows_NQK).all(axis=2)
        if not finite_NQ.all():
            first = int(np.argmin(finite_NQ.all(axis=0)))
            raise RuntimeError(
                f"layer {self.planes[places[0]][0]} has weights that are no numbers at step {step + first}: the model "
                "overflowed, as float16 may; try --dtype bfloat16 or float32"
            )
        steps = slice(step, step + rows_NQK.shape[1])
        for place, rows_QK in zip(places, rows_NQK):
            self._weights_TNK[steps, place, : rows_QK.shape[1]] = rows_QK
            self._found_TN[steps, place] = True

    def weights(self) -> np.ndarray:
        """(T, N, columns) of everything recorded. Raises RuntimeError when rows are missing.

        columns: the positions, or the keys of pictures that only cross-attention sees, where those are more.
        """
        try:
            for stored in self._storing:
                stored.result()
        finally:
            self._storing.clear()
            self._pool.shutdown()
        for (layer, _), found_T in zip(self.planes, self._found_TN.T):
            if not found_T.all():
                raise RuntimeError(
                    f"layer {layer} gave {found_T.sum()} attention rows for {self.steps} tokens; it may have no "
                    "softmax attention or bypass transformers' AttentionInterface: try another layer, or eager"
                )
        return self._weights_TNK


def record_dtype(values: int) -> type:
    """The dtype of a record of so many weights."""
    return np.float32 if values * 4 <= LARGEST_FLOAT32_RECORD else np.float16


def attention_scores(query: Any, key: Any, mask: Any, scaling: float | None, queries: slice) -> Any:
    """q·kᵀ, scaled and masked, for a slice of the queries: (H, Q, K) in the dtype of the query.

    Query heads are grouped by reshape, so that no key is repeated.
    """
    import torch

    _, H, _, D = query.shape
    _, G, K, _ = key.shape
    Q = queries.stop - queries.start
    query_GQD = query[0, :, queries].reshape(G, H // G * Q, D)
    scale = D**-0.5 if scaling is None else scaling
    nothing = query.new_empty(1, 1, 1)  # beta=0: it is not read; one call multiplies and scales
    scores_HQK = torch.baddbmm(nothing, query_GQD, key[0].transpose(1, 2), beta=0, alpha=scale).view(H, Q, K)
    if mask is None:
        return scores_HQK
    mask_1QK = mask[0, :, queries, :K]
    return scores_HQK.masked_fill_(~mask_1QK, -math.inf) if mask_1QK.dtype == torch.bool else scores_HQK + mask_1QK


def causal_mask(queries: slice, count: int, keys: int, window: int | None, device: Any) -> Any:
    """(Q, K) bool, the keys that a slice of the last `count` queries sees: those before them, in a window if any."""
    import torch

    at_Q1 = torch.arange(keys - count + queries.start, keys - count + queries.stop, device=device)[:, None]
    at_K = torch.arange(keys, device=device)
    seen_QK = at_K <= at_Q1
    return seen_QK if window is None else seen_QK & (at_K > at_Q1 - window)


def softmax(scores_HQK: Any) -> Any:
    """Weights in float32."""
    import torch

    return torch.softmax(scores_HQK, -1, dtype=torch.float32)


def reduce_heads(weights_HQK: Any, head: Head, heads: int = 0) -> Any:
    """(Q, K) weights from (H, Q, K): the mean or maximum over the heads, one head, or the mean of several.

    heads: the number of all heads where each process of a tensor-parallel run holds an equal part of them, in order,
    or every one holds all; 0 for a single process.
    """
    H, wanted = weights_HQK.shape[0], head if isinstance(head, tuple) else (head,)
    if not heads:
        if head == "mean":
            return weights_HQK.mean(0)
        return weights_HQK.amax(0) if head == "max" else weights_HQK[list(wanted)].mean(0)
    import torch.distributed as dist

    maximum = head == "max"
    if head in ("mean", "max"):
        rows_QK = weights_HQK.amax(0) if maximum else weights_HQK.mean(0) / dist.get_world_size()
    else:  # the first process that has a head gives its rows, the others zeros
        places = [one - dist.get_rank() * H for one in wanted]
        rows_QK = weights_HQK[[place for place in places if 0 <= place < H]].sum(0) / len(wanted)
    rows_QK = rows_QK.contiguous()
    dist.all_reduce(rows_QK, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM)
    return rows_QK
