"""An answer and the pass that records it, and the pass alone, against plain generation and plain prefill.

python tests/benchmarks/bench_recording.py [--shape 7b|small] [--lengths 4096 1536] [--tokens 512 128] [--rounds 3]

Recorded: one layer, all layers, one layer with each of its heads. Before the pass the answer comes from `generate`.

Random weights, the real configuration. Runs alternate in one process; the table shows medians: seconds, GiB, their
ratios to the plain run, and the ratio of the shortest times, which other work on the machine disturbs least.
"same kernels" is plain generation with cuDNN's attention aside after the prompt's pass, as the tool generates. What
cuDNN takes to get ready for each new length is paid in the round that does not count, so that here it can only gain.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable

import torch
from shapes import build, device_name, greedy, prompt
from transformers import LogitsProcessorList

from attention_heatmap.recording.generation import generate_response, record_rows
from attention_heatmap.recording.prompt import append_response


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and peak GiB of the device over what was there before (0 on a CPU)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    run()
    if not torch.cuda.is_available():
        return time.perf_counter() - start, 0.0
    torch.cuda.synchronize()
    return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / 2**30


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Median seconds, peak GiB and shortest seconds of each run; the first round, which warms up, does not count."""
    gc.freeze()  # what stands already need not be looked through after each run
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            result = measured(run)
            if number:
                found[name].append(result)
    medians = {name: [statistics.median(part) for part in zip(*results)] for name, results in found.items()}
    return {name: (*median, min(found[name])[0]) for name, median in medians.items()}


def recorded_planes(model) -> dict[str, list]:
    """What is recorded, by its name in the table."""
    text = model.config.text_config
    layer = text.num_hidden_layers - 8
    return {
        "one layer": [(layer, "mean")],
        "all layers": [(number, "mean") for number in range(text.num_hidden_layers)],
        "one layer, each head": [(layer, head) for head in range(text.num_attention_heads)],
    }


def generation_runs(model, inputs: dict, tokens: int) -> dict[str, Callable[[], object]]:
    generation = greedy(tokens)

    def record(planes):
        return lambda: record_rows(model, inputs, planes, generate_response(model, inputs, generation))

    def plain(*processors):
        with torch.inference_mode():
            model.generate(**inputs, **generation, logits_processor=LogitsProcessorList(processors))

    def cudnn_aside(input_ids, scores):
        torch.backends.cuda.enable_cudnn_sdp(False)
        return scores

    def same_kernels():
        try:
            plain(cudnn_aside)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(True)

    return {
        "plain generate": plain,
        "plain, same kernels": same_kernels,
        **{name: record(planes) for name, planes in recorded_planes(model).items()},
    }


def replay_runs(model, inputs: dict, tokens: int) -> dict[str, Callable[[], object]]:
    response = torch.randint(10, 1000, (tokens,), generator=torch.Generator().manual_seed(2)).tolist()
    forced = append_response(inputs, response[:-1])

    def prefill():
        with torch.inference_mode():
            model(**forced, use_cache=False, logits_to_keep=1)

    def replay(planes):
        return lambda: record_rows(model, inputs, planes, response)

    return {
        "plain prefill": prefill,
        **{f"replay, {name}": replay(planes) for name, planes in recorded_planes(model).items()},
    }


def eager_result(model, inputs: dict, tokens: int) -> tuple[float, float] | None:
    """Time and memory of a pass with transformers' output_attentions, or None where it runs out of memory."""
    response = [10 + number % 900 for number in range(tokens)]
    try:
        return measured(lambda: record_rows(model, inputs, [(0, "mean")], response, "eager"))
    except torch.cuda.OutOfMemoryError:
        return None


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b" if gpu else "small")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 1536, 16384] if gpu else [1024, 2048])
    parser.add_argument("--eager_lengths", type=int, nargs="*", default=[1536, 4096, 8192] if gpu else [1024])
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[512, 128, 128] if gpu else [32], help="one number, or one a length"
    )
    parser.add_argument(
        "--replayed", type=int, default=1024 if gpu else 64, help="tokens of the replayed response; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    many = arguments.tokens if len(arguments.tokens) > 1 else arguments.tokens * len(arguments.lengths)
    if len(many) != len(arguments.lengths):
        parser.error(f"{len(many)} numbers of tokens were given for {len(arguments.lengths)} lengths")
    device = "cuda" if gpu else "cpu"
    model = build(arguments.shape, device)
    print(f"{device_name(device)}, shape {arguments.shape}, {model.dtype}, torch {torch.__version__}")
    rows = []
    for length, tokens in zip(arguments.lengths, many):
        inputs = prompt(model, length)
        runs_of_both = [(tokens, generation_runs(model, inputs, tokens))]
        if arguments.replayed:
            runs_of_both.append((arguments.replayed, replay_runs(model, inputs, arguments.replayed)))
        for count, runs in runs_of_both:
            results = alternate(runs, arguments.rounds)
            base = next(iter(results.values()))
            for name, (seconds, peak, shortest) in results.items():
                ratio = {"time_ratio": seconds / base[0], "peak_ratio": peak / base[1] if base[1] else None}
                ratio |= {"shortest_ratio": shortest / base[2], "tokens": count}
                rows.append({"length": length, "run": name, "seconds": seconds, "peak_GiB": peak, **ratio})
                report(rows[-1])
    for length in arguments.eager_lengths:
        result = eager_result(model, prompt(model, length), many[0])
        seconds, peak = result or (None, None)
        rows.append({"length": length, "run": "eager output_attentions", "seconds": seconds, "peak_GiB": peak})
        report(rows[-1])
    print(json.dumps({"bench": "recording", "device": device_name(device), "shape": arguments.shape, "rows": rows}))


def report(row: dict) -> None:
    if row["seconds"] is None:
        print(f"{row['length']:>7} {row['run']:<24} out of memory", flush=True)
        return
    ratios = [f"{row[key]:7.3f}" if row.get(key) else " " * 7 for key in ("time_ratio", "peak_ratio", "shortest_ratio")]
    print(
        f"{row['length']:>7} {row['run']:<24} {row['seconds']:8.2f} s {row['peak_GiB']:8.2f} GiB {' '.join(ratios)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
