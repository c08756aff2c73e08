"""How well maps point at what the response names, on fresh samples of the demo, which knows where everything is.

For each mention of a landmark, the map of the step that produced its first token: whether the hottest cell meets the
landmark's box, and the share of the weight on the pictures inside it; for one mention a sample, also the areas under
the insertion and deletion curves (Petsiuk et al. 2018, arXiv 1806.07421): the mean log-probability of the mention
while cells are shown, or hidden, in the order of their heat. Intervals: 95%, bootstrap over samples.

python tests/benchmarks/bench_faithfulness.py [--samples 300] [--curve_samples 40] [--check_samples 40] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

from make_data import LANGUAGES, TASKS, make_sample
from train_demo_model import cell_overlap, prepare, token_bytes

from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.maps import shown_rows
from attention_heatmap.record import AttentionRecord
from attention_heatmap.recording import check
from attention_heatmap.recording.attention import text_attention
from attention_heatmap.recording.generation import end_ids
from attention_heatmap.recording.heads import choose_heads, survey_heads
from attention_heatmap.recording.options import NEUTRAL_PROMPT, RecordingOptions
from attention_heatmap.recording.prompt import append_response
from attention_heatmap.recording.session import Session
from visualizeHeatMap import AttentionVisualizer

FIRST_SEED = 900_000  # no sample of these was looked at, in training or while the options were made
SEEDS_OF_A_KIND = 10_000  # so that the n-th sample is the same however many there are
BATCH = 20  # samples generated at once
RESAMPLES = 2000
LAST = 7  # the demo's last layer, the yardstick's
PLAIN = ("off", False, 0)
# Row, layer, heads, map. Row: 0 is the query that produced the token, 1 the one after, a classic mistake.
SETTINGS = {
    **{f"layer {layer}, heads averaged": (0, layer, "mean", PLAIN) for layer in range(LAST)},
    "layer 7, heads averaged (yardstick)": (0, LAST, "mean", PLAIN),
    "... the row one token late": (1, LAST, "mean", PLAIN),
    "... maximum of the heads": (0, LAST, "max", PLAIN),
    **{f"... head {head}": (0, LAST, head, PLAIN) for head in range(4)},
    "... head auto": (0, LAST, "auto", PLAIN),
    "... baseline median": (0, LAST, "mean", ("median", False, 0)),
    "... baseline neutral": (0, LAST, "mean", ("neutral", False, 0)),
    "... baseline relative": (0, LAST, "mean", ("relative", False, 0)),
    "... sinks": (0, LAST, "mean", ("off", True, 0)),
    "... smooth 1": (0, LAST, "mean", ("off", False, 1)),
    "layer auto, heads averaged": (0, "auto", "mean", PLAIN),
    "layer auto, head auto": (0, "auto", "auto", PLAIN),
    "--view clear": (0, "auto", "auto", DrawingOptions(view="clear").map),
}


def mentions_in(tokenizer, ids: list[int], names: set[str]) -> list[tuple[int, int, str]]:
    """(first token, the one after the last, name) of each mention of a name."""
    pieces = token_bytes(tokenizer, ids)
    ends, text = np.cumsum([len(piece) for piece in pieces]), b"".join(pieces)
    found = re.finditer(b"|".join(re.escape(name.encode()) for name in names), text)
    places = [(*np.searchsorted(ends, (m.start(), m.end() - 1), side="right"), m.group().decode()) for m in found]
    return [(int(first), int(last) + 1, name) for first, last, name in places]


def respond(visualizer, samples: list, pictures: list) -> list[list[int]]:
    """The response's ids of each sample, generated together."""
    inputs = prepare(visualizer.processor, pictures, [sample["problem"] for sample in samples])
    with torch.inference_mode():
        output = visualizer.model.generate(**inputs.to(visualizer.model.device))
    rows, ends = output[:, inputs["input_ids"].shape[1] :].tolist(), end_ids(visualizer.model)
    return [row[: next((n for n, i in enumerate(row) if i in ends), len(row))] for row in rows]


def all_rows(model, inputs, ids: list[int]) -> np.ndarray:
    """(T + 1, L, H, S) attention of the queries from the last of the prompt on."""
    P = inputs["input_ids"].shape[1]
    with text_attention(model, "eager"), torch.inference_mode():
        attentions = model(**append_response(inputs, ids), use_cache=False, output_attentions=True).attentions
    return torch.stack([layer[0, :, P - 1 :] for layer in attentions]).permute(2, 0, 1, 3).float().cpu().numpy()


def reduced(weights_TLHS: np.ndarray, head, heads: dict[int, int]) -> np.ndarray:
    """(T, L, S) with heads reduced as the tool does; heads: the choice of auto for each layer."""
    if head == "auto":
        return np.stack([weights_TLHS[:, layer, heads[layer]] for layer in range(weights_TLHS.shape[1])], axis=1)
    return getattr(weights_TLHS, head)(2) if head in ("mean", "max") else weights_TLHS[:, :, head]


class Case:
    """One sample with its response, and the maps of all settings."""

    def __init__(self, visualizer, sample: dict, images: list, ids: list[int]) -> None:
        self.images, self.ids = images, ids
        session = Session(visualizer.model, visualizer.processor)
        self.inputs, located = session.inputs(sample["problem"], images, RecordingOptions())
        neutral, places = session.inputs(NEUTRAL_PROMPT, images, RecordingOptions(prompt_template="{Question}"))
        model, P, layers = visualizer.model, self.inputs["input_ids"].shape[1], tuple(range(visualizer.num_layers))
        weights = all_rows(model, self.inputs, ids)
        at = np.concatenate([image.positions for image in places])
        anyway = all_rows(model, neutral, ids)[:-1, ..., at]
        sizes = [image.size for image in images]
        layer, heads = choose_heads(survey_heads(model, self.inputs, ids, located, sizes))
        self.auto, self.tokens = (layer, heads[layer]), [image.positions for image in located]
        plain = AttentionRecord(
            tokens=("",) * (P + len(ids)), token_ids=np.zeros(P + len(ids), np.int64), prompt_length=P, layers=layers,
            weights=reduced(weights[:-1], "mean", heads), images=tuple(located),
        )  # fmt: skip
        self.maps, records = {}, {}
        for name, (late, number, head, drawn) in SETTINGS.items():
            key = late, head
            if key not in records:
                rows = reduced(weights, head, heads)[late : late + len(ids)]
                base = reduced(anyway, head, heads).mean(axis=0)
                records[key] = replace(plain, weights=rows, neutral=base)
            shown = shown_rows(records[key], layer if number == "auto" else number, *drawn)
            self.maps[name] = shown.rows[:, plain.image_positions] * ~shown.sinks[plain.image_positions]
        names = {name for boxes in sample["boxes"] for name in boxes}
        self.mentions = mentions_in(visualizer.processor.tokenizer, ids, names)
        self.overlaps = [cell_overlap(name, sample["boxes"], sizes) for _, _, name in self.mentions]

    def pointing(self) -> dict[str, np.ndarray]:
        """For each setting (mentions, 2): whether the hottest cell meets the box, the share inside it."""
        found = {}
        for name, map_TN in self.maps.items():
            rows = [(map_TN[step], inside) for (step, _, _), inside in zip(self.mentions, self.overlaps)]
            found[name] = np.array(
                [(inside[row.argmax()] > 0 < row.sum(), row @ inside / max(row.sum(), 1e-12)) for row, inside in rows],
                float,
            ).reshape(-1, 2)
        return found

    def curves(self, visualizer, levels: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
        """(insertion, deletion) area of each setting, and of a random order, for one mention drawn at random."""
        step, end, _ = self.mentions[rng.integers(len(self.mentions))]
        count = self.maps["--view clear"].shape[1]
        random = rng.permutation(count)  # also the order of cells that are equally hot, as where a baseline leaves 0
        orders = {name: np.lexsort((random, -map_TN[step])) for name, map_TN in self.maps.items()}
        orders["random order"] = np.argsort(random)
        parts = np.linspace(0, 1, levels + 1)
        hidden = [np.ones(count, bool), np.zeros(count, bool)]
        for order in orders.values():
            rank = np.empty(count, int)
            rank[order] = np.arange(count)
            hidden += [rank >= part * count for part in parts[1:-1]] + [rank < part * count for part in parts[1:-1]]
        different, which = np.unique(np.array(hidden), axis=0, return_inverse=True)
        values = self.log_probabilities(visualizer.model, different, step, end)[which.ravel()]
        nothing, whole, inner = values[0], values[1], values[2:].reshape(len(orders), 2, levels - 1)
        shown = [[nothing, *insertion, whole] for insertion, _ in inner]
        removed = [[whole, *deletion, nothing] for _, deletion in inner]
        return {name: (np.trapezoid(a, parts), np.trapezoid(b, parts)) for name, a, b in zip(orders, shown, removed)}

    def log_probabilities(self, model, hidden_VN: np.ndarray, step: int, end: int, block: int = 32) -> np.ndarray:
        """(V,) mean log-probability of the response's tokens step..end - 1 for each way of hiding cells.

        A hidden cell has the mean colour of its picture.
        """
        forced, P = append_response(self.inputs, self.ids[: end - 1]), self.inputs["input_ids"].shape[1]
        pixels, starts = forced["pixel_values"], np.cumsum([0, *map(len, self.tokens)])
        per_cell = len(pixels) // starts[-1]
        blank = torch.cat(
            [
                pixels[a * per_cell : b * per_cell].reshape((b - a) * per_cell, 3, -1).mean((0, 2), keepdim=True)
                .expand((b - a) * per_cell, 3, pixels.shape[1] // 3).flatten(1)
                for a, b in pairwise(starts)
            ]
        )  # fmt: skip
        keep, wanted = torch.arange(P - 1 + step, P - 1 + end), torch.tensor(self.ids[step:end], device=pixels.device)
        values = []
        for start in range(0, len(hidden_VN), block):
            hide = torch.from_numpy(hidden_VN[start : start + block]).to(pixels.device).repeat_interleave(per_cell, 1)
            batch = {k: v.repeat(len(hide), *[1] * (v.ndim - 1)) for k, v in forced.items() if torch.is_tensor(v)}
            batch["pixel_values"] = torch.where(hide[..., None], blank, pixels).flatten(0, 1)
            with torch.inference_mode():
                logits = model(**batch, use_cache=False, logits_to_keep=keep).logits.float()
            values.append(logits.log_softmax(-1).gather(2, wanted.expand(len(hide), -1)[..., None]).mean((1, 2)))
        return torch.cat(values).cpu().numpy()


def measure_checks(visualizer, kinds: dict[tuple, int], samples: int, first_seed: int) -> dict[str, list[bool | None]]:
    """What the tool's own check says of maps known to be good, and of one turned round, by name of the map."""
    verdicts: dict[str, list[bool | None]] = {}
    for kind, number in kinds.items():
        for n in range(samples // len(kinds)):
            sample, images = reversed(make_sample(first_seed + number * SEEDS_OF_A_KIND + n, *kind))
            given = {"response_key": "solution"}
            clear = visualizer.record(sample, images, "auto", head="auto", **given)
            plain = visualizer.record(sample, images, [LAST, 5, 1, 0], **given)
            weights = plain.weights.copy()
            weights[:, 3] = weights[:, 0].max() - weights[:, 0]
            found = visualizer.check(clear, sample, images, view="clear").checks
            found += visualizer.check(replace(plain, weights=weights), sample, images).checks
            names = ("--view clear", "layer 7 (yardstick)", "layer 5", "layer 1", "yardstick turned round")
            for name, one in zip(names, found, strict=True):
                verdicts.setdefault(name, []).append(one.points)
        print(f"checks of {kind[0]} {kind[1]}", file=sys.stderr, flush=True)
    return verdicts


def with_interval(values: list[np.ndarray], seed: int = 0) -> np.ndarray:
    """(columns, 3): mean over all rows of all samples, and its 95% interval; samples are drawn, not rows."""
    sums, counts = np.array([v.sum(axis=0) for v in values]), np.array([len(v) for v in values])
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)[:, None]
    return np.column_stack([sums.sum(axis=0) / counts.sum(), *np.quantile(means, (0.025, 0.975), axis=0)])


def measure(visualizer, kinds: dict[tuple, int], samples: int, curve_samples: int, first_seed: int, levels: int):
    """Pointing by kind and setting, one array a sample; curves by setting, one row a sample; choices of auto."""
    pointing, curves, chosen = {kind: {name: [] for name in SETTINGS} for kind in kinds}, {}, {}
    rng = np.random.default_rng(0)
    for kind, number in kinds.items():
        seeds = [first_seed + number * SEEDS_OF_A_KIND + n for n in range(samples // len(kinds))]
        for start in range(0, len(seeds), BATCH):
            drawn = [make_sample(seed, *kind) for seed in seeds[start : start + BATCH]]
            pictures, texts = [images for images, _ in drawn], [sample for _, sample in drawn]
            for place, (sample, images, ids) in enumerate(zip(texts, pictures, respond(visualizer, texts, pictures))):
                case = Case(visualizer, sample, images, ids)
                chosen[case.auto] = chosen.get(case.auto, 0) + 1
                if not case.mentions:
                    continue
                for name, found in case.pointing().items():
                    pointing[kind][name].append(found)
                if start + place < curve_samples // len(kinds):
                    for name, areas in case.curves(visualizer, levels, rng).items():
                        curves.setdefault(name, []).append(np.array([areas]))
            print(f"{kind[0]} {kind[1]}: {min(start + BATCH, len(seeds))} samples", file=sys.stderr, flush=True)
    return pointing, curves, chosen


def report(pointing: dict, curves: dict, chosen: dict) -> dict:
    """Print the table; return its numbers."""
    numbers: dict[str, dict] = {}
    print(f"{'':<36}pointing              share in the box      route en zh, moved en zh: pointing / share")
    for name in SETTINGS:
        pooled = [found for by_name in pointing.values() for found in by_name[name]]
        hit, share = with_interval(pooled)
        by_kind = {
            f"{task} {language}": np.concatenate(by_name[name]).mean(axis=0)
            for (task, language), by_name in pointing.items()
        }
        numbers[name] = {"pointing": hit.round(4).tolist(), "share": share.round(4).tolist()}
        numbers[name] |= {kind: means.round(4).tolist() for kind, means in by_kind.items()}
        each = "  ".join(f"{h:.3f}/{s:.2f}" for h, s in by_kind.values())
        print(f"{name:<36}{interval(hit):<22}{interval(share):<22}{each}")
    if curves:
        print(f"\n{'':<36}insertion, higher is better  deletion, lower is better: log-probability a token")
        for name, areas in curves.items():
            insertion, deletion = with_interval(areas)
            numbers.setdefault(name, {}).update(
                insertion=insertion.round(4).tolist(), deletion=deletion.round(4).tolist()
            )
            print(f"{name:<36}{interval(insertion):<29}{interval(deletion)}")
    print("\nlayer and head chosen by auto:", ", ".join(f"{k} {n} times" for k, n in sorted(chosen.items())))
    return numbers


def interval(mean_low_high: np.ndarray) -> str:
    mean, low, high = mean_low_high
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300, help="a quarter of each task and language")
    parser.add_argument("--curve_samples", type=int, default=40, help="of these also the curves; 0: none")
    parser.add_argument("--check_samples", type=int, default=40, help="of these also what --check says; 0: none")
    parser.add_argument("--draws", type=int, default=check.CHECK_DRAWS, help="of each check")
    parser.add_argument("--kinds", nargs="*", help="such as route_en; by default all tasks and languages")
    parser.add_argument("--levels", type=int, default=10, help="of the curves")
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    kinds = {(task, language): n for n, (task, language) in enumerate(product(TASKS, LANGUAGES))}
    kinds = {kind: n for kind, n in kinds.items() if not arguments.kinds or "_".join(kind) in arguments.kinds}
    if not kinds or arguments.samples < len(kinds):
        parser.error(f"--samples {arguments.samples} is no sample of each of {len(kinds)} kinds")
    check.CHECK_DRAWS = arguments.draws
    started = time.perf_counter()
    model = str(ROOT / "demo" / "model")
    visualizer = AttentionVisualizer(model, dtype="float32", device_map=arguments.device)
    counts = arguments.samples, arguments.curve_samples, arguments.first_seed, arguments.levels
    found = measure(visualizer, kinds, *counts)
    pointing, curves, _ = found
    samples = sum(map(len, (by_name["--view clear"] for by_name in pointing.values())))
    mentions = sum(len(found) for by_name in pointing.values() for found in by_name["--view clear"])
    print(f"{samples} samples, {mentions} mentions, curves of {len(curves.get('--view clear', []))} mentions")
    numbers = report(*found)
    verdicts = measure_checks(visualizer, kinds, arguments.check_samples, arguments.first_seed)
    counts = {name: {str(v): found.count(v) for v in (True, None, False)} for name, found in verdicts.items()}
    if counts:
        print(f"\n{'the verdict of --check':<36}points  cannot tell  no better than random")
    for name, count in counts.items():
        print(f"{name:<36}{count['True']:6d}  {count['None']:11d}  {count['False']:21d}")
    seconds = round(time.perf_counter() - started)
    print(f"{seconds} s on {visualizer.model.device}")
    facts = {"samples": samples, "mentions": mentions, "seconds": seconds, **vars(arguments)}
    print(json.dumps({"bench": "faithfulness", **facts, "settings": numbers, "checks": counts}))


if __name__ == "__main__":
    main()
