"""TODO."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from attention_heatmap.record import LARGEST_FLOAT32_RECORD, ImageTokens

VALUES_AT_ONCE = 2**23  # scores of single heads, about, that stand on the device at once
LARGEST_QUEUE = 32  # transfers to the host that have not been put in their place yet
ROWS_PER_BLOCK = 64  # queries of a layer that are taken together, at most


class AttentionRecorder:
    """Collects, in chosen layers, the attention rows of every query from `first_query` on.

    No S×S matrix ever exists: scores are computed for the queries wanted, a block at a time, go through the softmax
    and the reduction of the heads on the device, and leave for the host without stopping it. While a response is
    generated, a query waits for those of the next steps, since the keys only grow: a step then costs next to nothing.
    On the host there is one array, for at most `steps` rows a layer: float32, or float16 where that would be large.

    `crossing`: the layers whose keys belong to pictures, not to positions of the text. `shared_heads`: the number of
    heads of the model where the processes of a tensor-parallel run share them, else 0.
    """

    def __init__(
        self,
        layers: Sequence[int],
        first_query: int,
        head: str | int = "mean",
        steps: int = 1,
        crossing: Iterable[int] = (),
        shared_heads: int = 0,
    ) -> None:
        self.layers = tuple(layers)
        self.first_query = first_query
        self.head = head
        self.crossing = frozenset(crossing)
        self.shared_heads = shared_heads
        self._places = {layer: place for place, layer in enumerate(self.layers)}
        self._last_layer = max(self.layers)
        self.cross_keys = 0  # keys that a layer has which sees the pictures only
        shape = steps, len(self.layers), first_query + 1 + steps
        dtype = np.float32 if math.prod(shape) * 4 <= LARGEST_FLOAT32_RECORD else np.float16
        self._weights_TLK = np.zeros(shape, dtype)  # memory is taken only where something is written
        self._found_TL = np.zeros(shape[:2], bool)
        self._seen: dict[int, int] = {}  # the position after the last query that each layer has met
        self._late: dict[int, LateQueries] = {}  # of each layer
        # What can be reduced together: (first step, first column, ...) to the layers' places and their scores.
        self._waiting: dict[tuple, tuple[list[int], list[Any]]] = {}
        self._values_waiting = 0
        self._pool = ThreadPoolExecutor(max_workers=1)  # so that generation never waits for the host's memory
        self._storing: list[Future] = []
        self._end = 0  # the position after the last query that any layer has met

    @property
    def reached(self) -> bool:
        """Whether any row came."""
        return bool(self._late or self._waiting or self._storing)

    def advance(self, layer: int, count: int) -> int:
        """Note that a layer meets `count` queries; returns the position of the first."""
        # A layer that sees fewer queries than those before it (gemma4's shared keys) sees the last ones.
        self._end = self._seen[layer] = max(self._seen.get(layer, 0) + count, self._end)
        return self._end - count

    def observe(self, layer: int, query: Any, key: Any, mask: Any, scaling: float | None) -> None:
        """Record the rows of one attention call: query (1, H, Q, D), key (1, G, K, D), mask (1, 1, Q, K)."""
        (batch, heads, count, _), keys = query.shape, key.shape[2]
        start = self.advance(layer, count)
        if layer not in self._places:
            return
        if batch != 1:
            raise ValueError(f"the batch has {batch} sequences; attention is recorded for one at a time")
        first_column = self._first_column(layer, keys, start + count)
        late = self._late.get(layer)
        if count == 1 and mask is None and not first_column and start >= self.first_query:
            late = late or self._late.setdefault(layer, LateQueries(start, scaling))
            late.queries.append(query)
            late.key = key  # no other memory: the cache holds it, too
            if len(late.queries) >= self.block_length(heads, keys):
                self._take_late(layer)
            return
        if late:  # a sliding window has begun to move
            self._take_late(layer)
        self._observe_block(layer, query, key, mask, scaling, start, first_column)

    def _observe_block(
        self, layer: int, query: Any, key: Any, mask: Any, scaling: Any, start: int, column: int
    ) -> None:
        """Score the queries wanted, a block at a time: the first query stands at `start`, key 0 at `column`."""
        count, block = query.shape[2], self.block_length(query.shape[1], key.shape[2])
        for first in range(max(self.first_query - start, 0), count, block):
            queries = slice(first, min(first + block, count))
            scores_HQK = attention_scores(query, key, mask, scaling, queries, start - column)
            self._keep(layer, start + first, column, scores_HQK)

    def _take_late(self, layer: int) -> None:
        """Score the queries of a layer that wait, with the keys of the last one, which hold those of the others."""
        import torch

        late = self._late.pop(layer)
        self._observe_block(layer, torch.cat(late.queries, dim=2), late.key, None, late.scaling, late.start, 0)

    @staticmethod
    def block_length(heads: int, keys: int) -> int:
        """The number of queries whose weights may exist at once."""
        return min(max(VALUES_AT_ONCE // (heads * keys), 1), ROWS_PER_BLOCK)

    def observe_weights(self, layer: int, weights_1HQK: Any, start: int | None = None) -> None:
        """Record the rows of one attention call from the weights that the model computed itself."""
        _, _, count, K = weights_1HQK.shape
        start = self.advance(layer, count) if start is None else start
        first = max(self.first_query - start, 0)
        if layer in self._places and first < count:
            first_column = self._first_column(layer, K, start + count)
            self._keep(layer, start + first, first_column, weights_1HQK[0, :, first:], are_weights=True)

    def _first_column(self, layer: int, keys: int, end: int) -> int:
        """The position of key 0: a sliding window keeps the last keys only."""
        if layer not in self.crossing:
            return max(end - keys, 0)
        self.cross_keys = keys
        return 0

    def _keep(self, layer: int, position: int, first_column: int, part_HQK: Any, are_weights: bool = False) -> None:
        """Let the scores, or weights, of the queries from a position on wait for those of the step's other layers."""
        alike = position - self.first_query, first_column, are_weights, part_HQK.shape, part_HQK.device
        places, parts = self._waiting.setdefault(alike, ([], []))
        places.append(self._places[layer])
        parts.append(part_HQK)
        self._values_waiting += part_HQK.numel()
        if layer == self._last_layer or self._values_waiting >= VALUES_AT_ONCE // 2:
            self._send()

    def _send(self) -> None:
        """Reduce what waits to rows, and let them leave for the host."""
        import torch

        for (step, column, are_weights, _, device), (places, parts) in self._waiting.items():
            parts_LHQK = torch.stack(parts) if len(parts) > 1 else parts[0][None]
            weights_LHQK = parts_LHQK.float() if are_weights else torch.softmax(parts_LHQK, -1, dtype=torch.float32)
            if self.shared_heads:
                rows_LQK = reduce_shared_heads(weights_LHQK, self.head, self.shared_heads)
            else:
                rows_LQK = reduce_heads(weights_LHQK, self.head)
            if self._weights_TLK.dtype == np.float16:
                rows_LQK = rows_LQK.half()  # here, since NumPy takes its time over small numbers
            on_host, event = rows_LQK.to("cpu", non_blocking=True), None
            if rows_LQK.is_cuda:
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
            self._storing.append(self._pool.submit(self._store, event, step, column, places, on_host))
            if len(self._storing) > LARGEST_QUEUE:
                self._storing.pop(0).result()
        self._waiting.clear()
        self._values_waiting = 0

    def _store(self, event: Any, step: int, column: int, places: list[int], rows_LQK: Any) -> None:
        """Put rows where they belong, once they have arrived."""
        if event is not None:
            event.synchronize()
        end, steps = column + rows_LQK.shape[2], slice(step, step + rows_LQK.shape[1])
        missing = end - self._weights_TLK.shape[2]
        if missing > 0:  # more keys of pictures than there are positions
            self._weights_TLK = np.pad(self._weights_TLK, ((0, 0), (0, 0), (0, missing)))
        finite_LQ = np.isfinite(rows_LQK.numpy()).all(axis=2)
        if not finite_LQ.all():
            first = int(np.argmin(finite_LQ.all(axis=0)))
            raise RuntimeError(
                f"layer {self.layers[places[int(np.argmin(finite_LQ[:, first]))]]} has weights that are no numbers at "
                f"step {step + first}: the model overflowed, as float16 may; try --dtype bfloat16 or float32"
            )
        for place, rows_QK in zip(places, rows_LQK.numpy()):
            into_QK = self._weights_TLK[steps, place, column:end]
            into_QK[:] = rows_QK[: len(into_QK)]
        self._found_TL[steps, places] = True

    def weights(self, steps: int, positions: int) -> np.ndarray:
        """(steps, L, columns) of everything recorded. Raises RuntimeError when rows are missing.

        columns: the positions, or the keys of pictures that only cross-attention sees, where those are more.
        """
        for layer in list(self._late):
            self._take_late(layer)
        self._send()
        for stored in self._storing:
            stored.result()
        for layer, found_T in zip(self.layers, self._found_TL[:steps].T):
            if not found_T.all():
                raise RuntimeError(
                    f"layer {layer} gave {found_T.sum()} attention rows for {steps} tokens; it may have no softmax "
                    "attention or bypass transformers' AttentionInterface: try another layer or attention='eager'"
                )
        return self._weights_TLK[:steps, :, : max(positions, self.cross_keys)]


def attention_scores(query: Any, key: Any, mask: Any, scaling: float | None, queries: slice, start: int) -> Any:
    """q·kᵀ, scaled and masked, for a slice of the queries: (H, Q, K) in the dtype of the query.

    `start` is the column of query 0's own key. Without a mask attention is causal. Query heads are grouped by
    reshape, so that no key is repeated.
    """
    import torch

    _, H, _, D = query.shape
    _, G, K, _ = key.shape
    Q = queries.stop - queries.start
    query_GQD = query[0, :, queries].reshape(G, H // G * Q, D)
    scale = D**-0.5 if scaling is None else scaling
    nothing = query.new_empty(1, 1, 1)  # beta=0: it is not read; one call multiplies and scales
    scores_HQK = torch.baddbmm(nothing, query_GQD, key[0].transpose(1, 2), beta=0, alpha=scale).view(H, Q, K)
    if mask is None and Q == 1 and start + queries.start >= K - 1:
        return scores_HQK  # a step of generation sees all there is
    if mask is None:  # also hides the empty end of a static cache
        positions_Q1 = torch.arange(start + queries.start, start + queries.stop, device=query.device)[:, None]
        mask_1QK = torch.arange(K, device=query.device) <= positions_Q1
    else:
        mask_1QK = mask[0, :, queries, :K]
    return scores_HQK.masked_fill(~mask_1QK, -math.inf) if mask_1QK.dtype == torch.bool else scores_HQK + mask_1QK


def check_head(head: str | int | Sequence[int], count: int) -> str | int | tuple[int, ...]:
    """A reduction of the heads that a layer with so many can do, heads counted from 0. Raises ValueError."""
    if isinstance(head, str) and head in ("mean", "max", "auto"):
        return head
    if isinstance(head, (list, tuple)) and head:
        heads = tuple(dict.fromkeys(check_head(one, count) for one in head))
        if not all(isinstance(one, Integral) for one in head):
            raise ValueError(f"head {head!r} cannot be taken: of several, each must be a number")
        return heads if len(heads) > 1 else heads[0]
    if isinstance(head, bool) or not isinstance(head, Integral) or not -count <= head < count:
        raise ValueError(f"head {head!r} cannot be taken: the layer has {count} heads; or take mean, max or auto")
    return int(head) % count


def reduce_heads(weights_LHQK: Any, head: str | int | tuple[int, ...]) -> Any:
    """(L, Q, K) weights from (L, H, Q, K): the mean or maximum over the heads, one head, or the mean of several."""
    if head == "mean":
        return weights_LHQK.mean(1)
    if head == "max":
        return weights_LHQK.amax(1)
    return weights_LHQK[:, list(head)].mean(1) if isinstance(head, tuple) else weights_LHQK[:, head]


def reduce_shared_heads(weights_LHQK: Any, head: str | int | tuple[int, ...], heads: int) -> Any:
    """(L, Q, K) weights of all `heads`, of which each process holds an equal part in order, or every one holds all."""
    import torch.distributed as dist

    H, maximum = weights_LHQK.shape[1], head == "max"
    if head in ("mean", "max"):
        rows_LQK = reduce_heads(weights_LHQK, head) / (1 if maximum else dist.get_world_size())
    else:  # the first process that has a head gives its rows, the others zeros
        wanted = head if isinstance(head, tuple) else (head,)
        places = [one % heads - dist.get_rank() * H for one in wanted]
        rows_LQK = weights_LHQK[:, [place for place in places if 0 <= place < H]].sum(1) / len(wanted)
    rows_LQK = rows_LQK.contiguous()
    dist.all_reduce(rows_LQK, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM)
    return rows_LQK


def shared_heads(model: Any) -> int:
    """The number of heads that the processes of a tensor-parallel run share; 0 where there is one process."""
    ranks = getattr(model, "tp_size", None) or 1
    return model.config.get_text_config().num_attention_heads if ranks > 1 else 0


def cross_layers(config: Any) -> list[int]:
    """The layers whose keys are pictures, outside the text (mllama's); most models have none."""
    return list(getattr(config.get_text_config(), "cross_attention_layers", None) or [])


def layer_kinds(config: Any) -> list[str]:
    """What transformers calls each layer, such as "sliding_attention"; "" where all are of one kind."""
    text = config.get_text_config()
    return list(getattr(text, "layer_types", None) or [""] * text.num_hidden_layers)


def attention_layers(config: Any) -> list[int]:
    """The layers that have softmax attention; hybrid models have others in between."""
    return [layer for layer, kind in enumerate(layer_kinds(config)) if kind not in KINDS_WITHOUT_ROWS]


KINDS_WITHOUT_ROWS = ("linear_attention", "conv", "mamba", "recurrent", "moe")  # of transformers' layer_types


@dataclass(frozen=True, eq=False)
class RecordedRows:
    """What recording gives, before it is mapped to pictures and text."""

    response_ids: list[int]
    weights: np.ndarray
    """(T, L, columns) float32 or float16; columns: positions, or keys of pictures in a layer that crosses."""
    cross_keys: int
    """Number of keys of pictures that cross-attention saw; 0 for most models."""


def picture_columns(located: Sequence[ImageTokens], keys: int) -> np.ndarray:
    """(N,) the key of each image token in a layer that crosses, which has as many keys a picture, padded."""
    each = keys // len(located)
    return np.concatenate([number * each + np.arange(len(i.positions)) for number, i in enumerate(located)])
