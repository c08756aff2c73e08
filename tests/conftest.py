"""Records made by hand, whose every weight is known, and the demo's checkpoint and dataset."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would ask the hub fails at once
os.environ.setdefault("TQDM_DISABLE", "1")  # one line on stderr is then one line

import numpy as np
import pytest
from PIL import Image

import visualizeHeatMap as vhm

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
SMALL = (640, 360)  # pixels of a frame, where the size does not matter
SPECIAL_ID = 9
IMAGE_ID = 8


@pytest.fixture(autouse=True)
def _not_in_the_checkout(tmp_path, monkeypatch):
    """What a test writes by default goes to a folder of its own."""
    monkeypatch.chdir(tmp_path)


def make_record(
    problem: list[str],
    response: list[str],
    grids: list[tuple[int, int]] = ((3, 4),),
    size: tuple[int, int] = (400, 300),
    layers: tuple[int, ...] = (0, 1),
    seed: int = 0,
) -> vhm.AttentionRecord:
    """A record of random rows: a first special token, the pictures' tokens, the problem, then the response.

    Row t of the weights is 0 from column P + t on and sums to 1.
    """
    rng = np.random.default_rng(seed)
    tokens, ids, images = ["<s>"], [SPECIAL_ID], []
    for rows, columns in grids:
        positions = np.arange(len(tokens), len(tokens) + rows * columns)
        images.append(vhm.ImageTokens(positions, vhm.grid_boxes(rows, columns, *size)))
        tokens += ["<image>"] * len(positions)
        ids += [IMAGE_ID] * len(positions)
    tokens += problem
    P = len(tokens)
    tokens += response
    ids += list(range(10, 10 + len(tokens) - len(ids)))
    weights = rng.random((len(response), len(layers), len(tokens)), np.float32)
    for t in range(len(response)):
        weights[t, :, P + t :] = 0
    weights /= weights.sum(-1, keepdims=True)
    return vhm.AttentionRecord(
        tuple(tokens), np.array(ids), P, layers, weights, tuple(images), (SPECIAL_ID,), num_layers=8
    )


def picture(size: tuple[int, int] = (400, 300), colour: str = "white") -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture(scope="session")
def demo_visualizer() -> vhm.AttentionVisualizer:
    return vhm.AttentionVisualizer(str(DEMO / "model"), dtype="float32")


@pytest.fixture(scope="session")
def demo_record(demo_visualizer):
    """(record of every layer, pictures) of the demo's first sample."""
    sample, images = demo_visualizer.load_sample_data(DEMO / "dataset.json", DEMO / "images", 0)
    return demo_visualizer.record(sample, images, range(demo_visualizer.num_layers)), images
