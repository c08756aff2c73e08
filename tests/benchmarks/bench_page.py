"""The page of a long answer: its size, how long it takes to make and to open, and how fast it answers the hand.

python tests/benchmarks/bench_page.py [--tokens 1000] [--positions 5000] [--planes 4] [--moves 200]

Pointing at tokens, at cells and stepping by keys: the processor time that the page's main thread takes for each event,
all told (script, style, layout, painting), and the time by the clock from the event to the end of its frame, which
other programs on the machine lengthen. The rows are noise with heavy tails, which no compression helps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from pages import FLAGS, chromium
from PIL import Image
from records import grid_boxes

from attention_heatmap.drawing.page import write_page
from attention_heatmap.record import AttentionRecord, ImageTokens, picture_file

SIZE = (1680, 1176)  # pixels of the picture
GRID = (56, 70)  # rows and columns of its cells: 3,920 of the 5,000 positions
WINDOW = {"width": 1440, "height": 900}
WORDS = [" the", " route", " begins", " at", " red", " circle", ",", " turns", " at", " (", "1", "4", "0", ")", ".\n"]

# For each of some events in turn: dispatch it, and measure until the frame that shows it is handed over to be painted.
MEASURE = """async ([kind, moves]) => {
  const spans = document.querySelectorAll("#answer > span"), over = document.querySelector(".over");
  const box = over.getBoundingClientRect(), work = [];
  const send = (n) => {
    const clientX = box.left + box.width * ((n * 0.137) % 1), clientY = box.top + box.height * ((n * 0.071) % 1);
    const mouse = { clientX, clientY, bubbles: true, pointerType: "mouse" };
    if (kind === "tokens") spans[(n * 37) % spans.length].dispatchEvent(new PointerEvent("pointerover", mouse));
    if (kind === "cells") over.dispatchEvent(new PointerEvent("pointermove", mouse));
    const key = new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true });
    if (kind === "steps") document.body.dispatchEvent(key);
  };
  const painted = () => new Promise((go) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => go(performance.now());
    channel.port2.postMessage(0);
  });
  for (let n = 0; n < moves; n++) {
    await new Promise((go) => setTimeout(go));
    const start = performance.now();
    send(n);
    const handled = performance.now();
    const [began, ended] = await new Promise((go) => requestAnimationFrame(() => {
      const now = performance.now();
      painted().then((ended) => go([now, ended]));
    }));
    work.push(handled - start + (ended - began));
  }
  return work;
}"""


KINDS = {"tokens": "a token", "cells": "a cell", "steps": "stepping by keys"}


def long_record(tokens: int, positions: int, planes: int) -> AttentionRecord:
    """An answer of so many tokens over so many positions in all, most of them a picture's."""
    rng, rows = np.random.default_rng(0), GRID[0]
    columns = min(GRID[1], (positions - tokens - 40) // rows)
    at = np.arange(1, 1 + rows * columns)
    weights = np.zeros((tokens, planes, positions), np.float32)
    for t in range(tokens):
        row = np.exp(2 * rng.normal(size=(planes, positions - tokens + t)))
        weights[t, :, : row.shape[1]] = row / row.sum(axis=1, keepdims=True)
    words = [WORDS[n] for n in rng.integers(0, len(WORDS), positions)]
    x, y = np.meshgrid(np.linspace(0, 6, SIZE[0]), np.linspace(0, 4, SIZE[1]))
    pixels = np.stack([127 + 120 * np.sin(x + k) * np.cos(y) for k in range(3)], axis=-1).astype(np.uint8)
    return AttentionRecord(
        tokens=tuple(words), token_ids=np.arange(positions), prompt_length=positions - tokens,
        layers=tuple(range(planes)), weights=weights, num_layers=planes,
        images=(ImageTokens(at, grid_boxes(rows, columns, *SIZE)),), pictures=(picture_file(Image.fromarray(pixels)),),
    )  # fmt: skip


def _busy(trace: Path) -> float:
    """Milliseconds of processor time that the page's main thread took while a trace was kept."""
    events = json.loads(trace.read_text("utf-8"))["traceEvents"]
    main = {(e["pid"], e["tid"]) for e in events if e.get("args", {}).get("name") == "CrRendererMain"}
    tasks = [
        e.get("tdur", 0)
        for e in events
        if e["name"] == "ThreadControllerImpl::RunTask" and (e["pid"], e["tid"]) in main
    ]
    return sum(tasks) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tokens", 1000), ("positions", 5000), ("planes", 4), ("moves", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if not sync_playwright or not chromium():
        print("nothing measured: it needs Chromium and pip install playwright")
        print(json.dumps({"bench": "page", "skipped": True}))
        return
    record = long_record(args.tokens, args.positions, args.planes)
    facts: dict = {"bench": "page", **vars(args), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        began = time.perf_counter()
        path = write_page(record, Path(folder) / "page.html", "")
        facts |= {"write_s": round(time.perf_counter() - began, 2), "mb": round(path.stat().st_size / 1e6, 2)}
        chrome = play.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        facts["browser"] = f"headless Chromium {chrome.version}"
        page = chrome.new_page(viewport=WINDOW)
        began = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        facts["open_s"] = round(time.perf_counter() - began, 2)
        page.wait_for_timeout(2000)
        for kind in KINDS:
            trace = Path(folder) / "trace.json"
            chrome.start_tracing(page=page, path=trace, categories=["toplevel"])
            work = page.evaluate(MEASURE, [kind, args.moves])
            chrome.stop_tracing()
            cpu, clock = _busy(trace) / args.moves, np.percentile(work, (50, 95)).round(1).tolist()
            facts[kind] = {"cpu_ms": round(cpu, 1), "clock_ms": clock[0], "clock_95_ms": clock[1]}
        chrome.close()
    print(f"{args.tokens} tokens over {args.positions} positions, {args.planes} planes: {facts['mb']} MB")
    print(
        f"made in {facts['write_s']} s, open in {facts['open_s']} s; {facts['cores']} CPU cores, {facts['browser']}\n"
    )
    print("| pointing at | processor time an event | by the clock, median | 95% |\n| --- | --- | --- | --- |")
    for kind, name in KINDS.items():
        print("| {} | {cpu_ms} ms | {clock_ms} ms | {clock_95_ms} ms |".format(name, **facts[kind]))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
