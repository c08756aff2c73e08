"""Beyond one GPU: layers on two cards, two processes that share every layer, a sweep by two processes.

python tests/benchmarks/bench_two_gpus.py [--parts spread offload tensor sweep] [--length 240000]

Random weights, the real configurations. Without a GPU the same runs with the small shape on the CPU.

spread   the 32B shape and a prompt that one card cannot hold beside the weights: the estimate refuses it on one card,
         then two cards record it, in layers on both; before that, a short prompt's rows against eager attention. The
         default length is for cards of 140 GB; take 98304 on those of 80.
offload  the 72B shape with a fifth of its weights on the host, of which one card is enough.
tensor   the 7B shape, written as a checkpoint: one process, then two by torchrun with tp_plan "auto"; generation with
         and without recording, and the rows of one response in both (to tell an error from rounding:
         --tensor_dtype float32).
sweep    samples of the demo by the command line in one process on one card, then by accelerate in two; answered by a
         checkpoint of the 7B shape beside the demo's processor, whose answers mean nothing (by the demo itself without
         a GPU).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_recording import alternate
from shapes import build, build_spread, device_name, greedy, prompt

from attention_heatmap.recording.generation import generate_response, record_rows
from attention_heatmap.recording.memory import check_memory

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.cuda.is_available()
DEVICES = [f"cuda:{number}" for number in range(min(torch.cuda.device_count(), 2))] or ["cpu"]


def timed(run):
    """What a run returns, its seconds, and the peak GiB on each card, weights included."""
    for card in DEVICES if GPU else ():
        torch.cuda.synchronize(card)
        torch.cuda.reset_peak_memory_stats(card)
    start = time.perf_counter()
    result = run()
    for card in DEVICES if GPU else ():
        torch.cuda.synchronize(card)
    peaks = [torch.cuda.max_memory_allocated(card) / 2**30 for card in DEVICES] if GPU else []
    return result, time.perf_counter() - start, peaks


def say(name: str, *values: object) -> None:
    print(f"{name:<44}", *(f"{value:.4g}" if isinstance(value, float) else value for value in values), flush=True)


def apart(rows: np.ndarray, others: np.ndarray) -> dict:
    """How far rows lie apart: the largest difference of a weight, and the largest part of a row that has moved."""
    rows, others = rows.astype(np.float32), others.astype(np.float32)
    moved = (np.abs(rows - others).sum(-1) / others.sum(-1)).max() / 2
    return {"largest_difference": float(np.abs(rows - others).max()), "largest_part_moved": float(moved)}


def refusal_on_one_card(arguments: argparse.Namespace) -> str:
    """What the estimate says of the long prompt where one card holds all the weights."""
    model = build_spread(arguments.shape, DEVICES[:1])
    inputs = prompt(model, arguments.length)
    try:
        return f"not refused: {check_memory(model, inputs['input_ids'].shape[1], arguments.tokens, 1, eager=False)}"
    except ValueError as error:
        return str(error)


def spread(arguments: argparse.Namespace) -> dict:
    say(f"one card, {arguments.length} prompt tokens:", refused := refusal_on_one_card(arguments))
    gc.collect()
    torch.cuda.empty_cache()
    model = built(lambda: build_spread(arguments.shape, DEVICES))
    return {"one_card": refused, "shape": arguments.shape, **recorded(model, arguments.length, arguments.tokens)}


def offload(arguments: argparse.Namespace) -> dict:
    model = built(lambda: build_spread(arguments.offload_shape, [DEVICES[0], "cpu"], 0.8))
    return {"shape": arguments.offload_shape, **recorded(model, arguments.offload_length, arguments.tokens)}


def built(make):
    model, seconds, _ = timed(make)
    say("built in s", seconds)
    return model


def recorded(model, length: int, tokens: int) -> dict:
    """Rows of layers that lie apart: a short prompt's against eager attention, then those of a long one."""
    count = model.config.text_config.num_hidden_layers
    layers = (0, count // 4, 3 * count // 4, count - 1)
    devices = [str(next(model.get_decoder().layers[layer].parameters()).device) for layer in layers]
    where = [device.replace("meta", "host") for device in devices]
    weights = [torch.cuda.memory_allocated(card) / 2**30 for card in DEVICES] if GPU else []
    say("weights GiB a card", *weights)
    say("recorded layers and their devices", dict(zip(layers, where)))
    response = torch.randint(10, 900, (16,), generator=torch.Generator().manual_seed(2)).tolist()
    short = prompt(model, 1024)
    planes = [(layer, "mean") for layer in layers]
    close = apart(*(record_rows(model, short, planes, response, how).weights for how in ("auto", "eager")))
    say("1024 prompt tokens, against eager", close)
    inputs, generation = prompt(model, length), greedy(tokens)
    estimate = check_memory(model, length, tokens, len(layers), eager=False)
    say("estimate:", estimate)
    rows, seconds, peaks = timed(lambda: answered_and_recorded(model, inputs, generation, planes))
    sums = rows.weights.astype(np.float64).sum(-1)
    say(f"{length} + {tokens} tokens recorded in s", seconds)
    say("peak GiB a card, weights included", *peaks)
    say("rows sum to", float(sums.min()), float(sums.max()))
    assert np.abs(sums - 1).max() < 0.01
    return {
        "length": length, "tokens": tokens, "layers_on": dict(zip(layers, where)), "weights_GiB": weights,
        "against_eager": close, "estimate": estimate,
        "seconds": seconds, "peak_GiB": peaks, "sums": [float(sums.min()), float(sums.max())],
    }  # fmt: skip


def answered_and_recorded(model, inputs, generation: dict, planes: list):
    return record_rows(model, inputs, planes, generate_response(model, inputs, generation))


def tensor_runs(model, arguments: argparse.Namespace) -> tuple[dict, dict[str, np.ndarray]]:
    """Times of generation with and without recording, and the rows of a fixed response by heads and layer."""
    inputs, generation = prompt(model, arguments.tensor_length), greedy(arguments.tensor_tokens)
    count = model.config.text_config.num_hidden_layers
    layers = (count // 2, count - 1)

    def plain():
        with torch.inference_mode():
            model.generate(**inputs, **generation)

    results = alternate(
        {
            "plain generate": plain,
            "one layer": lambda: answered_and_recorded(model, inputs, generation, [(layers[0], "mean")]),
            "all layers": lambda: answered_and_recorded(model, inputs, generation, [(n, "mean") for n in range(count)]),
        },
        rounds=arguments.tensor_rounds,
    )
    response = torch.randint(10, 900, (16,), generator=torch.Generator().manual_seed(2)).tolist()
    rows = {}
    for head in ("mean", "max", 3):
        weights = record_rows(model, inputs, [(layer, head) for layer in layers], response).weights
        rows |= {f"heads {head}, layer {layer}": weights[:, place] for place, layer in enumerate(layers)}
    return {name: values[:2] for name, values in results.items()}, rows


def tensor_of_each_process(arguments: argparse.Namespace) -> None:
    """In torchrun's processes: the same runs on the shared model, compared with those of one process."""
    from transformers import AutoModelForImageTextToText

    dtype = getattr(torch, arguments.tensor_dtype)
    plan = {"distributed_config": {"tp_plan": "auto"}}
    model = AutoModelForImageTextToText.from_pretrained(arguments.checkpoint, dtype=dtype, **plan).eval()
    weights = torch.cuda.memory_allocated() / 2**30 if GPU else 0.0
    results, rows = tensor_runs(model, arguments)
    if torch.distributed.get_rank() == 0:
        with np.load(Path(arguments.checkpoint) / "rows.npz") as alone:
            close = {name: apart(rows[name], alone[name]) for name in rows}
        print(json.dumps({"runs": results, "weights_GiB": weights, "against_one_process": close}))
    torch.distributed.destroy_process_group()


def scratch_folder(size: int) -> str:
    """Where a checkpoint of so many bytes may lie: in memory, or with the temporary files."""
    folders = [folder for folder in ("/dev/shm", tempfile.gettempdir()) if Path(folder).is_dir()]
    return next(folder for folder in folders if shutil.disk_usage(folder).free > 1.2 * size)


def tensor(arguments: argparse.Namespace) -> dict:
    shape = arguments.tensor_shape
    model = build(shape, "cuda" if GPU else "cpu", getattr(torch, arguments.tensor_dtype))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with tempfile.TemporaryDirectory(dir=scratch_folder(size)) as folder:
        model.generation_config.temperature = None
        model.save_pretrained(folder)
        alone, rows = tensor_runs(model, arguments)
        np.savez(Path(folder) / "rows.npz", **rows)
        del model
        gc.collect()
        torch.cuda.empty_cache()
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__]
        given = {name: str(value) for name, value in vars(arguments).items() if name.startswith("tensor_")}
        command += ["--checkpoint", folder, *(word for name in given for word in (f"--{name}", given[name]))]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"two processes failed:\n{result.stderr}")
    two = json.loads(result.stdout.splitlines()[-1])
    tokens = f"{arguments.tensor_length} + {arguments.tensor_tokens} tokens"
    for name, (seconds, peak) in alone.items():
        other, other_peak = two["runs"][name]
        say(f"{shape}, {tokens}, {name}", f"one {seconds:.2f} s {peak:.2f} GiB, two {other:.2f} s {other_peak:.2f} GiB")
    for name, close in two["against_one_process"].items():
        say(f"rows of two processes against one, {name}", *close.values())
    return {
        "shape": shape,
        "dtype": arguments.tensor_dtype,
        "tokens": tokens,
        "one_process": alone,
        "two_processes": two,
    }


def checkpoint_of_shape(shape: str, folder: Path) -> Path:
    """Write random weights of a shape that answer prompts of the demo's processor."""
    demo = json.loads((ROOT / "demo/model/config.json").read_text())
    ids = {key: value for key, value in demo.items() if key.endswith("_token_id")}
    build(shape, "cuda" if GPU else "cpu", **ids, vocab_size=demo["text_config"]["vocab_size"]).save_pretrained(folder)
    for path in (ROOT / "demo/model").iterdir():
        if path.name.startswith(("processor", "tokenizer", "chat_template")):
            shutil.copy(path, folder)
    gc.collect()
    torch.cuda.empty_cache()
    return folder


def sweep(arguments: argparse.Namespace) -> dict:
    """Seconds of the command line over samples, by one process on one card and by two on two."""
    shape, found = arguments.sweep_shape, {"shape": arguments.sweep_shape or "demo", "flags": arguments.sweep_flags}
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2"]
    with tempfile.TemporaryDirectory(dir=scratch_folder(2**34 if GPU else 0)) as folder:
        model = checkpoint_of_shape(shape, Path(folder)) if shape else ROOT / "demo/model"
        for count, start in ((1, []), (2, launch)):
            found[f"by {count}"] = swept(model, arguments.sweep_flags, count, start)
            say(f"sweep, {found['shape']}, by {count}: s in all, samples a s", *found[f"by {count}"].values())
    for name in found["by 1"]:
        say(f"two over one, {name}", found["by 2"][name] / found["by 1"][name])
    return found


def swept(model: Path, flags: str, count: int, start: list[str]) -> dict:
    """Seconds of a sweep, loading included, and samples a second from the end of each process's first one."""
    cards = {"CUDA_VISIBLE_DEVICES": ",".join(str(card) for card in range(count))} if GPU else {}
    with tempfile.TemporaryDirectory() as folder:
        given = ["--model_path", str(model), *shlex.split(flags), "--output_dir", folder]
        command = [sys.executable, *start, str(ROOT / "visualizeHeatMap.py"), *given]
        began = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | cards)
        seconds = time.perf_counter() - began
        if result.returncode:
            raise SystemExit(f"the sweep by {count} process(es) failed:\n{result.stderr}")
        ends = sorted(video.stat().st_mtime for video in Path(folder).rglob("*.mp4"))
    return {"seconds": seconds, "samples_a_second": (len(ends) - count) / (ends[-1] - ends[count - 1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, parts = parser.add_argument, {"spread": spread, "offload": offload, "tensor": tensor, "sweep": sweep}
    add("--parts", nargs="+", choices=tuple(parts), default=["spread", "tensor"])
    add("--shape", default="32b" if GPU else "small", help="of spread")
    add("--length", type=int, default=240000 if GPU else 1024)
    add("--tokens", type=int, default=16)
    add("--offload_shape", default="72b" if GPU else "small")
    add("--offload_length", type=int, default=16384 if GPU else 1024)
    add("--tensor_shape", default="7b" if GPU else "small")
    add("--tensor_length", type=int, default=4096 if GPU else 1024)
    add("--tensor_tokens", type=int, default=128 if GPU else 16)
    add("--tensor_rounds", type=int, default=2)
    add("--tensor_dtype", default="bfloat16" if GPU else "float32")
    add("--checkpoint", help=argparse.SUPPRESS)  # given to the processes that torchrun starts
    add(
        "--sweep_shape",
        default="7b" if GPU else None,
        help="random weights of this shape; by default without a GPU: the demo",
    )
    add(
        "--sweep_flags",
        default="--benchmark_json demo/dataset.json --image_dir demo/images --layer_idx 7 --max_new_tokens 128 "
        f"--sample_idx {'0-23' if GPU else 'all'}",
    )
    arguments = parser.parse_args()
    if arguments.checkpoint:
        tensor_of_each_process(arguments)
        return
    device = f"{len(DEVICES)} x {device_name('cuda')}" if GPU else device_name("cpu")
    say(device, f"torch {torch.__version__}")
    results = {part: parts[part](arguments) for part in arguments.parts}
    print(json.dumps({"bench": "two_gpus", "device": device, **results}))


if __name__ == "__main__":
    main()
