"""What tests share: the demo's checkpoint and dataset, tiny models, a folder for what a test writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would ask the hub fails at once
os.environ.setdefault("TQDM_DISABLE", "1")  # one line on stderr is then one line
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads, and tests share the cores

import pytest
from PIL import Image

from visualizeHeatMap import AttentionRecord, AttentionVisualizer

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"


def pytest_configure(config: pytest.Config) -> None:
    """All tests run on a CPU, a machine's GPUs or not, but those of the marker `gpu` where it is asked for."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _not_in_the_checkout(tmp_path, monkeypatch):
    """What a test writes by default goes to a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def demo_visualizer() -> AttentionVisualizer:
    return AttentionVisualizer(str(DEMO / "model"), dtype="float32")


@pytest.fixture(scope="session")
def demo_record(demo_visualizer) -> tuple[AttentionRecord, list[Image.Image]]:
    """(record of every layer, pictures) of the demo's first sample."""
    sample, images = demo_visualizer.load_sample_data(DEMO / "dataset.json", DEMO / "images", 0)
    return demo_visualizer.record(sample, images, "all"), images


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """A function from a family's name to the folder of its tiny random checkpoint."""
    import tiny_models

    root = tmp_path_factory.mktemp("families")
    return cache(lambda family: tiny_models.family_checkpoint(family, root / family))


@pytest.fixture(scope="session")
def tiny_visualizer(tiny_checkpoint) -> Callable[[str], AttentionVisualizer]:
    """A function from a family's name to the visualizer of its tiny checkpoint."""
    import tiny_models

    def load(family: str) -> AttentionVisualizer:
        known = tiny_models.FAMILIES.get(family)
        kwargs = known.processor_kwargs if known else None
        return AttentionVisualizer(str(tiny_checkpoint(family)), max_image_num=4, processor_kwargs=kwargs)

    return cache(load)


@pytest.fixture(scope="session")
def tiny(tiny_visualizer) -> AttentionVisualizer:
    """A tiny random Qwen2-VL of three layers."""
    return tiny_visualizer("qwen2_vl")
