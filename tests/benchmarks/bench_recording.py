"""Recording while generating, and replaying a given response, against plain generation and plain prefill.

python tests/benchmarks/bench_recording.py [--shape 7b|small] [--lengths 1536 4096] [--tokens 128] [--rounds 3]

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

import visualizeHeatMap as vhm


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
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            result = measured(run)
            if number:
                found[name].append(result)
    medians = {name: [statistics.median(part) for part in zip(*results)] for name, results in found.items()}
    return {name: (*median, min(found[name])[0]) for name, median in medians.items()}


def generation_runs(model, inputs: dict, tokens: int) -> dict[str, Callable[[], object]]:
    generation = greedy(tokens)
    every = range(model.config.text_config.num_hidden_layers)

    def record(layers):
        return lambda: vhm.record_rows(model, inputs, tuple(layers), "mean", generation, None)

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
        "one layer": record(list(every)[-8:-7]),
        "all layers": record(every),
    }


def replay_runs(model, inputs: dict, tokens: int) -> dict[str, Callable[[], object]]:
    response = torch.randint(10, 1000, (tokens,), generator=torch.Generator().manual_seed(2)).tolist()
    forced = vhm.append_response(inputs, response[:-1])
    every = range(model.config.text_config.num_hidden_layers)

    def prefill():
        with torch.inference_mode():
            model(**forced, use_cache=False, logits_to_keep=1)

    def replay(layers):
        return lambda: vhm.record_rows(model, inputs, tuple(layers), "mean", {}, response)

    return {
        "plain prefill": prefill,
        "replay, one layer": replay(list(every)[-8:-7]),
        "replay, all layers": replay(every),
    }


def eager_result(model, inputs: dict, tokens: int) -> tuple[float, float] | None:
    """Time and memory of transformers' output_attentions, or None where it runs out of memory."""
    try:
        return measured(lambda: vhm.record_rows_eager(model, inputs, (0,), "mean", greedy(tokens), None))
    except torch.cuda.OutOfMemoryError:
        return None


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b" if gpu else "small")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1536, 4096, 16384, 32768] if gpu else [1024, 2048])
    parser.add_argument("--eager_lengths", type=int, nargs="*", default=[1536, 4096, 8192] if gpu else [1024])
    parser.add_argument("--tokens", type=int, default=128 if gpu else 32)
    parser.add_argument(
        "--replayed", type=int, default=1024 if gpu else 64, help="tokens of the replayed response; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device = "cuda" if gpu else "cpu"
    model = build(arguments.shape, device)
    print(f"{device_name(device)}, shape {arguments.shape}, {model.dtype}, {arguments.tokens} new tokens")
    rows = []
    for length in arguments.lengths:
        inputs = prompt(model, length)
        runs_of_both = [generation_runs(model, inputs, arguments.tokens)]
        if arguments.replayed:
            runs_of_both.append(replay_runs(model, prompt(model, length), arguments.replayed))
        for runs in runs_of_both:
            results = alternate(runs, arguments.rounds)
            base = next(iter(results.values()))
            for name, (seconds, peak, shortest) in results.items():
                ratio = {"time_ratio": seconds / base[0], "peak_ratio": peak / base[1] if base[1] else None}
                ratio["shortest_ratio"] = shortest / base[2]
                rows.append({"length": length, "run": name, "seconds": seconds, "peak_GiB": peak, **ratio})
                report(rows[-1])
    for length in arguments.eager_lengths:
        result = eager_result(model, prompt(model, length), arguments.tokens)
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
