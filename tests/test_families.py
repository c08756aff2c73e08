"""Every common family: the right rectangle for every image token, rows equal to eager attention, or a refusal.

A family is one entry of `tiny_models.FAMILIES`; every test below then runs on it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import visualizeHeatMap as vhm

torch.set_num_threads(1)
every_family = pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
FEW = settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
MOST_TOKENS = 24
# Odd sizes, of pictures of which the tiny tiles keep enough to see.
SIZES = st.tuples(st.integers(31, 260), st.integers(31, 260))


@pytest.fixture(scope="session")
def visualizer(tmp_path_factory):
    """A function from a family's name to the visualizer of its tiny checkpoint."""
    root = tmp_path_factory.mktemp("families")

    @lru_cache(maxsize=None)
    def load(family: str) -> vhm.AttentionVisualizer:
        folder = tiny.family_checkpoint(family, root / family)
        return vhm.AttentionVisualizer(str(folder), max_image_num=4, processor_kwargs=processor_kwargs(family))

    return load


def processor_kwargs(family: str) -> dict:
    return tiny.FAMILIES[family].processor_kwargs if family in tiny.FAMILIES else {}


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [noise_picture(211, 130, 1), noise_picture(61, 97, 2)]
SAMPLE = {"problem": "Where is it? Based on the following requirements, say."}


# ------------------------------------------------------------------------------------- 1. rows are eager attention's


def reference_rows(model: Any, inputs: Any, response_ids: list[int], layers: list[int]) -> dict[int, np.ndarray]:
    """(T, K) rows of each layer, caught from the model's own eager attention on the same tokens."""
    caught, hooks = {}, []

    def keep(module: Any, _: Any, output: Any) -> None:
        caught[module.layer_idx] = output[1][0].mean(0).float().numpy()

    for module in model.get_decoder().modules():
        if getattr(module, "layer_idx", None) in layers and {"q_proj", "qkv_proj"} & set(dict(module.named_children())):
            hooks.append(module.register_forward_hook(keep))
    try:
        with vhm.text_attention(model, "eager"), torch.inference_mode():
            model(**vhm.append_response(inputs, response_ids[:-1]), use_cache=False)
    finally:
        [hook.remove() for hook in hooks]
    P = inputs["input_ids"].shape[1]
    return {layer: caught[layer][P - 1 : P - 1 + len(response_ids)] for layer in layers}


@every_family
def test_rows_equal_eager_attention_and_tokens_are_the_models_own(visualizer, family):
    viz = visualizer(family)
    layers = vhm.attention_layers(viz.config)
    inputs = vhm.build_inputs(viz.processor, "Where?", PICTURES, "{Question}")
    plain = viz.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    generation = {"max_new_tokens": 8, "do_sample": False}
    for given_ids in (None, plain):
        if given_ids is None:
            response_ids, weights_TLK, _ = vhm.record_rows(viz.model, inputs, layers, "mean", generation, None)
            assert response_ids == [token for token in plain if token not in vhm._end_ids(viz.model)]
        else:
            response_ids, weights_TLK, _ = vhm.record_rows(viz.model, inputs, layers, "mean", {}, given_ids)
        for place, (layer, rows_TK) in enumerate(reference_rows(viz.model, inputs, response_ids, layers).items()):
            found_TK, K = weights_TLK[:, place], rows_TK.shape[1]
            assert np.abs(found_TK[:, :K] - rows_TK).max() < 2e-5, layer
            assert not found_TK[:, K:].any(), layer


# ------------------------------------------------------------------------------------- 2. boxes are true to the pixels


class _Found(Exception):
    pass


def picture_tokens(viz: vhm.AttentionVisualizer, inputs: dict) -> torch.Tensor:
    """(N, D) what the language model gets of the pictures, one row an image token."""
    found = []

    def keep(module, args, kwargs):
        found.append({"hidden_states": args[0] if args else None, **kwargs})
        raise _Found

    hook = viz.model.get_decoder().layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        viz.model(**inputs)
    except _Found:
        pass
    finally:
        hook.remove()
    crossing = found[0].get("cross_attention_states")
    if crossing is None:
        return found[0]["hidden_states"][0, inputs["input_ids"][0] == vhm.image_token_id(viz.config)]
    pictures, most = inputs["aspect_ratio_mask"].shape[1:]
    real = inputs["aspect_ratio_mask"].reshape(-1).bool()
    return crossing.reshape(pictures * most, -1, crossing.shape[-1])[real].flatten(0, 1)


def through_processor(viz: vhm.AttentionVisualizer, pictures: list[Image.Image], name: str) -> np.ndarray:
    return vhm.processed_unscaled(viz.processor, pictures)[name].double().numpy()


def coordinate_pictures(images: list[Image.Image], axis: int) -> list[Image.Image]:
    """Grey ramps that rise along x (axis 0) or y (axis 1)."""
    made = []
    for image in images:
        x = np.linspace(0, 255, 2 * image.size[axis] + 1)[1::2]
        grey = np.broadcast_to(x if axis == 0 else x[:, None], (image.height, image.width))
        made.append(Image.fromarray(np.repeat(grey.round().astype(np.uint8)[:, :, None], 3, axis=2)))
    return made


def random_tokens(count: int) -> np.ndarray:
    """The image tokens to look at: one gradient each, so not all of a large canvas."""
    return np.random.default_rng(count).permutation(count)[:MOST_TOKENS]


def true_centres(viz: vhm.AttentionVisualizer, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) centre of the pixels that each image token hangs on, 0..1 of its picture, and (N, 2) how much of the
    picture one pixel of the canvas is there. NaN where a token hangs on no pixel of a picture."""
    name = "image_pixel_values" if viz.config.model_type == "phi4_multimodal" else "pixel_values"
    inputs = dict(vhm.build_inputs(viz.processor, "Where?", images, "{Question}"))
    pools = viz.config.model_type == "llava_onevision"  # by interpolation: the weights count, not only their support
    generator = torch.Generator().manual_seed(3)
    pixels = torch.full_like(inputs[name], 0.5) if pools else torch.randn(inputs[name].shape, generator=generator)
    if pools:
        pixels[inputs[name] == 0] = 0  # padding stays padding
    inputs[name] = pixels.requires_grad_()
    white = through_processor(viz, [Image.new("RGB", i.size, "white") for i in images], name)
    black = through_processor(viz, [Image.new("RGB", i.size, "black") for i in images], name)
    shown = (white > 254) & (black < 1)
    places = [through_processor(viz, coordinate_pictures(images, axis), name) / 255 for axis in (0, 1)]
    with vhm.vision_attention_off(viz.model), positions_off(viz.model, pools):
        tokens = picture_tokens(viz, inputs)
        direction = torch.randn(tokens.shape[1], generator=generator)
        centres, pixel = np.full((len(tokens), 2), np.nan), np.full((len(tokens), 2), np.nan)
        for number in random_tokens(len(tokens)):
            token = tokens[number]
            (gradient,) = torch.autograd.grad(token @ direction, inputs[name], retain_graph=True, allow_unused=True)
            weight = gradient.abs().double().numpy() * shown
            if weight.max() <= 1e-9:
                continue
            weight = weight if pools else (weight > 1e-6 * weight.max()).astype(float)
            on = weight > 0
            for axis in (0, 1):
                centres[number, axis] = (weight * places[axis]).sum() / weight.sum()
                values = places[axis][on]
                pixel[number, axis] = np.ptp(values) / max(canvas_side(on, axis) - 1, 1)
    return centres, pixel


def canvas_side(on: np.ndarray, axis: int) -> int:
    """How many columns (axis 0) or rows (axis 1) of the canvas a token hangs on."""
    if on.ndim > 3:
        used = np.flatnonzero(on.any(axis=tuple(a for a in range(on.ndim) if a != on.ndim - 1 - axis)))
        return int(np.ptp(used)) + 1
    return round(np.sqrt(on.sum() / (6 if on.ndim == 2 else 3)))  # flattened patches; two frames of them in qwen


class positions_off:
    """Position embeddings of the vision tower as zeros: then every patch of a plain picture is the same."""

    def __init__(self, model, off):
        self.parameters = [p for name, p in model.named_parameters() if "position_embedding" in name] if off else []

    def __enter__(self):
        self.kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            [p.zero_() for p in self.parameters]

    def __exit__(self, *_):
        with torch.no_grad():
            [p.copy_(kept) for p, kept in zip(self.parameters, self.kept)]


def centre_errors(viz: vhm.AttentionVisualizer, images: list[Image.Image]) -> float:
    """The largest distance, in pixels of the canvas, of a box's centre from the true one."""
    inputs = vhm.build_inputs(viz.processor, "Where?", images, "{Question}")
    located = vhm.locate_image_tokens(viz.model, viz.processor, inputs, images)
    boxes = np.concatenate([tokens.boxes / np.array([*image.size] * 2) for tokens, image in zip(located, images)])
    centres, pixel = true_centres(viz, images)
    looked = np.sort(random_tokens(len(boxes)))
    boxes, centres, pixel = boxes[looked], centres[looked], pixel[looked]
    placed = np.isfinite(boxes[:, 0])
    assert (placed <= np.isfinite(centres[:, 0])).all(), "a box where a token hangs on no pixel"
    missed = np.isfinite(centres[:, 0]) & ~placed
    assert not missed.any() or (pixel[missed] == 0).any(axis=1).all(), "no box where a token hangs on pixels"
    found = (boxes[placed, :2] + boxes[placed, 2:]) / 2
    return float((np.abs(found - centres[placed]) / np.maximum(pixel[placed], 1e-9)).max())


@every_family
def test_boxes_are_where_the_pixels_of_the_tokens_are(visualizer, family):
    @FEW
    @given(SIZES)
    def holds(size):
        assert centre_errors(visualizer(family), [noise_picture(*size)]) < 1

    holds()


@every_family
def test_boxes_of_several_pictures_are_each_true(visualizer, family):
    assert centre_errors(visualizer(family), PICTURES) < 1
