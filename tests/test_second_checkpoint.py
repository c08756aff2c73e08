"""Two checkpoints, one answer: the second reads the very same tokens; for one sample, and for a dataset with resume."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from reference import noise_picture
from safetensors.torch import load_file, save_file

from attention_heatmap.compare import compare
from attention_heatmap.table import read_facts, sample_folder
from visualizeHeatMap import AttentionRecord, AttentionVisualizer

SMALL = {"frame_size": (640, 360), "max_new_tokens": 5, "layer_idx": 1}


@pytest.fixture(scope="module")
def second(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with other weights, as a fine-tune has them."""
    folder = tmp_path_factory.mktemp("second") / "model"
    shutil.copytree(tiny_checkpoint("qwen2_vl"), folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    moved = {name: w + 0.1 * torch.randn(w.shape, generator=generator).to(w) for name, w in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for n in range(2):
        noise_picture(90 + n, 60, n).save(folder / f"{n}.png")
    samples = [{"id": n, "image": f"{n}.png", "problem": f"Where is {n}?", "answer": "x"} for n in range(2)]
    (folder / "data.json").write_text(json.dumps(samples))
    return folder


@pytest.fixture
def visualizer(tiny_checkpoint):
    return AttentionVisualizer(str(tiny_checkpoint("qwen2_vl")))


def test_the_second_model_reads_the_very_tokens_of_the_first(visualizer, second, tmp_path):
    sample, images = {"problem": "Where is it?"}, [noise_picture(90, 60)]
    video = visualizer.create_attention_visualization_for_sample(sample, images, compare_model_path=second, **SMALL)
    a, b = visualizer.last_records
    np.testing.assert_array_equal(a.token_ids, b.token_ids)
    again = AttentionVisualizer(str(second)).record(sample, images, [1], response=a.response)
    if again.token_ids.tolist() == a.token_ids.tolist():  # where its text gives back the same tokens
        np.testing.assert_allclose(b.weights, again.weights, atol=1e-6)
    assert (tmp_path / video).stat().st_size > 0 and compare(a, b).distances.min() > 1e-4
    assert "model" not in vars(visualizer.checkpoint), "the first model's weights were kept beside the second's"


def test_a_dataset_is_answered_by_the_first_and_read_by_the_second_with_resume(visualizer, second, dataset, tmp_path):
    where = dataset / "data.json", dataset
    options = {**SMALL, "compare_model_path": second, "output_dir": tmp_path / "out"}
    first = visualizer.visualize_dataset(*where, **options)
    assert [row["error"] for row in first] == ["", ""] and first[0]["distance_response_layer1"] > 0
    rows = list(csv.DictReader((tmp_path / "out" / "samples.csv").open(encoding="utf-8")))
    assert [row["sample"] for row in rows] == ["0", "1", "mean", "2.5%", "97.5%"]
    changes = [float(row["change_image_share_response_layer1"]) for row in rows[2:]]
    assert changes[1] <= changes[0] <= changes[2]
    assert not list((tmp_path / "out").glob("*/first_*"))
    facts = read_facts(sample_folder(tmp_path / "out", 1))
    shutil.rmtree(sample_folder(tmp_path / "out", 0))
    before = {path: path.stat().st_mtime_ns for path in sample_folder(tmp_path / "out", 1).iterdir()}
    assert visualizer.visualize_dataset(*where, **options) == first
    assert {path: path.stat().st_mtime_ns for path in sample_folder(tmp_path / "out", 1).iterdir()} == before
    assert facts["columns"]["distance_response_layer1"] == first[1]["distance_response_layer1"]
    with pytest.raises(ValueError, match=r"made with other settings.*second"):
        visualizer.visualize_dataset(*where, **{**options, "compare_model_path": None})


def test_what_the_first_model_answered_is_kept_for_the_second_when_a_run_is_stopped(
    visualizer, second, dataset, tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    where, options = (dataset / "data.json", dataset), {**SMALL, "output_dir": tmp_path / "out"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AttentionVisualizer, "replay", stop)
        visualizer.visualize_dataset(*where, **options, compare_model_path=second)
    assert len(list((tmp_path / "out").glob("sample_*/first_*.safetensors"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr(AttentionVisualizer, "record", stop)
        rows = visualizer.visualize_dataset(*where, **options, compare_model_path=second)
    assert [row["error"] for row in rows] == ["", ""]


def test_a_sample_that_json_cannot_hold_fails_alone_in_a_comparison(visualizer, second, dataset, tmp_path):
    samples = json.loads((dataset / "data.json").read_text())
    samples[0] |= {3: "no text"}
    options = {**SMALL, "compare_model_path": second, "output_dir": tmp_path / "out"}
    rows = visualizer.visualize_dataset(samples, dataset, "0-1", **options)
    assert [bool(row["error"]) for row in rows] == [True, False]


def test_both_records_are_kept_where_their_comparison_cannot_be_drawn(visualizer, second, dataset, tmp_path):
    sample, images = visualizer.load_sample_data(dataset / "data.json", dataset, 0)
    options = {**SMALL, "compare_model_path": second, "output_dir": tmp_path / "out", "overview": "no such word"}
    with pytest.raises(RuntimeError, match=r"the record is kept in .*record\.safetensors, .*record.*\.safetensors"):
        visualizer.create_attention_visualization_for_sample(sample, images, **options)
    kept = [AttentionRecord.load(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert len(kept) == 2 and not np.array_equal(kept[0].weights, kept[1].weights)


def test_a_checkpoint_of_another_tokenizer_is_refused_before_any_weights(visualizer, tiny_checkpoint, monkeypatch):
    loading = "attention_heatmap.recording.checkpoint.Checkpoint._model_class"
    monkeypatch.setattr(loading, lambda *_: pytest.fail("the weights were loaded"))
    with pytest.raises(ValueError, match=r"the tokenizers of .* differ in .* tokens; compare checkpoints of one"):
        visualizer.create_attention_visualization_for_sample(
            {"problem": "x"}, [Image.new("RGB", (60, 60))], compare_model_path=tiny_checkpoint("llava")
        )
