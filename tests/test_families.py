"""Every common family: the right rectangle for every image token, rows equal to eager attention, or a refusal.

A family is one entry of `tiny_models.FAMILIES`; every test below then runs on it.
"""

from __future__ import annotations

import json
import types
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import visualizeHeatMap as vhm

torch.set_num_threads(1)
every_family = pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
# Families that the module does not name: a grid that is reported, tiles, attention sinks.
UNNAMED = ("aya_vision", "glm4v", "internvl_gpt_oss")
every_family_and_more = pytest.mark.parametrize("family", tiny.ALL_FAMILIES + UNNAMED)
FEW = settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
MOST_TOKENS = 24
# Odd sizes, of pictures of which the tiny tiles keep enough to see.
SIZES = st.tuples(st.integers(31, 260), st.integers(31, 260))


@pytest.fixture(scope="session")
def visualizer(tmp_path_factory):
    """A function from a family's name to the visualizer of its tiny checkpoint."""
    root = tmp_path_factory.mktemp("families")

    @cache
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


@every_family_and_more
def test_rows_equal_eager_attention_and_tokens_are_the_models_own(visualizer, family):
    viz = visualizer(family)
    layers = vhm.attention_layers(viz.config)
    inputs = vhm.build_inputs(viz.processor, "Where?", PICTURES, "{Question}")
    plain = viz.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    generation = {"max_new_tokens": 8, "do_sample": False}
    for given_ids in (None, plain):
        rows = vhm.record_rows(viz.model, inputs, layers, "mean", generation, given_ids)
        if given_ids is None:
            assert rows.response_ids == [token for token in plain if token not in vhm._end_ids(viz.model)]
        for place, (layer, rows_TK) in enumerate(reference_rows(viz.model, inputs, rows.response_ids, layers).items()):
            found_TK, K = rows.weights[:, place], rows_TK.shape[1]
            assert np.abs(found_TK[:, :K] - rows_TK).max() < 2e-5, layer
            assert not found_TK[:, K:].any(), layer


def on_two_cards(model: Any) -> dict[str, int]:
    """A device map as device_map="auto" makes it of a large model: the later layers and what follows on card 1."""
    decoder = model.get_decoder()
    head, tied = model.get_output_embeddings(), model.get_input_embeddings().weight
    later = [*decoder.layers[len(decoder.layers) // 2 :], decoder.norm, *([head] if head.weight is not tied else [])]

    def places(name: str, module: Any) -> dict[str, int]:
        if module in later:
            return {name: 1}
        if not any(part in later for part in module.modules()):
            return {name: 0}
        found = {f"{name}.{own}": 0 for own, _ in module.named_parameters(recurse=False)}
        for child, part in module.named_children():
            found |= places(f"{name}.{child}" if name else child, part)
        return found

    return places("", model)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@every_family_and_more
def test_layers_on_two_cards_have_the_rows_of_one(family, tmp_path, monkeypatch):
    monkeypatch.setattr(vhm, "CHECK_DRAWS", 2)
    checkpoint = str(tiny.family_checkpoint(family, tmp_path / family))
    given = {"dtype": "float32", "max_image_num": 4, "processor_kwargs": processor_kwargs(family)}
    one = vhm.AttentionVisualizer(checkpoint, device_map={"": 0}, **given)
    two = vhm.AttentionVisualizer(checkpoint, device_map=on_two_cards(one.model), **given)
    layers = vhm.cross_layers(one.config) or vhm.attention_layers(one.config)
    assert {weight.device.index for weight in two.model.get_decoder().layers.parameters()} == {0, 1}
    answer = {"response": "It is on the left.", "neutral_prompt": vhm.NEUTRAL_PROMPT}
    for options in ({}, {"attention": "eager"}, answer, answer | {"head": "auto"}, {"do_sample": True, "seed": 3}):
        first, second = (viz.record(SAMPLE, PICTURES, layers, max_new_tokens=8, **options) for viz in (one, two))
        np.testing.assert_array_equal(first.token_ids, second.token_ids)
        np.testing.assert_allclose(first.weights, second.weights, rtol=0, atol=1e-5)
        assert first.auto_heads == second.auto_heads
    first, second = (viz.check(record, SAMPLE, PICTURES) for viz, record in ((one, first), (two, second)))
    assert [check.layer for check in first.checks] == [check.layer for check in second.checks]


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
    # Of a last pixel of the canvas that blends the picture with its padding, neither can be sure.
    sides = boxes[:, 2:] - boxes[:, :2]
    sliver = (sides < 0.11 * np.nanmedian(sides, axis=0)).any(axis=1)
    assert (placed <= np.isfinite(centres[:, 0]) | sliver).all(), "a box where a token hangs on no pixel"
    placed &= np.isfinite(centres[:, 0])
    missed = np.isfinite(centres[:, 0]) & ~placed
    assert not missed.any() or (pixel[missed] == 0).any(axis=1).all(), "no box where a token hangs on pixels"
    # Of a single column at the picture's end neither its width can be told nor, since resizing bends the ramp
    # there, its place.
    errors = np.abs((boxes[:, :2] + boxes[:, 2:]) / 2 - centres)[placed] / np.where(pixel > 0, pixel, np.inf)[placed]
    assert (pixel[placed] > 0).mean() > 0.5, "hardly a box was measured"
    return float(errors.max())


@every_family_and_more
def test_boxes_are_where_the_pixels_of_the_tokens_are(visualizer, family):
    @FEW
    @given(SIZES)
    def holds(size):
        assert centre_errors(visualizer(family), [noise_picture(*size)]) < 1

    holds()


@every_family
def test_boxes_of_several_pictures_are_each_true(visualizer, family):
    assert centre_errors(visualizer(family), PICTURES) < 1


@every_family
@pytest.mark.parametrize("size", [(700, 35), (35, 700), (9, 7)], ids=["wide", "tall", "smaller than a cell"])
def test_every_image_token_has_a_box_whatever_the_shape_of_the_picture(visualizer, family, size):
    viz, image = visualizer(family), noise_picture(*size)
    inputs = vhm.build_inputs(viz.processor, "Where?", [image], "{Question}")
    (tokens,) = vhm.locate_image_tokens(viz.model, viz.processor, inputs, [image])
    in_prompt = int((inputs["input_ids"] == vhm.image_token_id(viz.config)).sum())
    assert len(tokens.boxes) == len(tokens.positions)
    assert len(tokens.boxes) == in_prompt or vhm.cross_layers(viz.config)
    boxes = tokens.boxes[np.isfinite(tokens.boxes[:, 0])]
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    for axis in (0, 1):
        if family in ("llava", "llava_full") and size[axis] > size[1 - axis]:
            continue  # it looks at the middle of the longer side only
        slack = max(0.02 * size[axis], 0.5)
        assert boxes[:, axis].min() < slack and size[axis] - slack < boxes[:, axis + 2].max() <= size[axis]


# ------------------------------------------------------------------------------------- 3. refusals


def placed(viz: vhm.AttentionVisualizer, image: Image.Image) -> list[vhm.ImageTokens]:
    inputs = vhm.build_inputs(viz.processor, "Where?", [image], "{Question}")
    return vhm.locate_image_tokens(viz.model, viz.processor, inputs, [image])


@pytest.mark.parametrize("config_class", [transformers.Blip2Config, transformers.InstructBlipConfig])
def test_tokens_of_a_query_former_are_refused(config_class):
    config = config_class(image_token_index=7)
    inputs = {"input_ids": torch.full((1, 36), 7), "pixel_values": torch.zeros(1, 3, 224, 224)}
    message = rf"qformer.*model type '{config.model_type}', 36 image tokens, pixel_values of shape \(1, 3, 224, 224\)"
    with pytest.raises(ValueError, match=message):
        vhm.locate_image_tokens(types.SimpleNamespace(config=config), None, inputs, [noise_picture(50, 40)])


def test_tokens_of_a_perceiver_are_refused(visualizer):
    message = r"perceiver.*model type 'idefics2', 4 image tokens, pixel_values of shape \(1, 1, 3, 112, 112\)"
    with pytest.raises(ValueError, match=message):
        placed(visualizer("idefics2"), noise_picture(112, 112))


def test_the_check_of_a_model_nobody_named_sees_tokens_that_mix_the_picture(visualizer):
    viz, image = visualizer("idefics2"), noise_picture(112, 112)
    inputs = vhm.build_inputs(viz.processor, "Where?", [image], "{Question}")
    made = vhm.ProcessedImages(viz.model, viz.processor, inputs, [image], 4)
    _, owner = vhm.tile_boxes(made)  # four tokens, a square picture: the counts alone would fit
    with pytest.raises(ValueError, match="no token"):
        vhm.check_places(made, owner)


def test_the_check_of_a_model_nobody_named_sees_tokens_in_another_order(visualizer, monkeypatch):
    turned = vhm.tile_boxes

    def by_columns(made):
        boxes, owner = turned(made)
        return boxes, np.ascontiguousarray(np.swapaxes(owner, -1, -2))

    monkeypatch.setattr(vhm, "tile_boxes", by_columns)
    with pytest.raises(ValueError, match=r"no token.*aya_vision"):
        placed(visualizer("aya_vision"), noise_picture(50, 50))


def test_a_processor_that_mirrors_the_picture_is_refused(visualizer, monkeypatch):
    ramp = vhm._ramp
    monkeypatch.setattr(vhm, "_ramp", lambda size: ramp(size).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    with pytest.raises(ValueError, match=r"more than cut, scale and pad.*'llava', 16 image tokens"):
        placed(visualizer("llava"), noise_picture(80, 60))


def test_tiles_that_do_not_stand_in_the_order_of_the_pictures_are_refused(visualizer, monkeypatch):
    made = vhm.processed_unscaled
    monkeypatch.setattr(vhm, "processed_unscaled", lambda *args: {k: v.flip(0) for k, v in made(*args).items()})
    viz = visualizer("llava")
    inputs = vhm.build_inputs(viz.processor, "Where?", PICTURES, "{Question}")
    with pytest.raises(ValueError, match="do not stand in the order of the pictures"):
        vhm.locate_image_tokens(viz.model, viz.processor, inputs, PICTURES)


def test_a_number_of_tokens_that_is_no_grid_is_refused(visualizer):
    viz, image = visualizer("llava"), noise_picture(80, 60)
    inputs = vhm.build_inputs(viz.processor, "Where?", [image], "{Question}")
    inputs["input_ids"] = inputs["input_ids"][
        :, 1 + int((inputs["input_ids"] == viz.config.image_token_id).nonzero()[0, 1]) :
    ]
    with pytest.raises(ValueError, match="15 image tokens, pixel_values of shape"):
        vhm.locate_image_tokens(viz.model, viz.processor, inputs, [image])


def test_a_checkpoint_without_chat_template_is_refused_unless_its_family_has_none(visualizer):
    processor = types.SimpleNamespace(chat_template=None, tokenizer=types.SimpleNamespace(chat_template=None))
    with pytest.raises(ValueError, match=r"no chat template; add chat_template\.jinja"):
        vhm.build_inputs(processor, "Where?", [noise_picture(9, 9)], "{Question}")
    viz = visualizer("paligemma")
    ids = vhm.build_inputs(viz.processor, "Where?", PICTURES, "{Question}")["input_ids"][0]
    assert viz.processor.tokenizer.decode(ids) == "<image>" * 32 + "<bos>Where?\n"


def test_a_template_that_writes_the_first_token_leaves_none_to_the_tokenizer():
    class Processor:
        chat_template = "{{ messages }}"
        tokenizer = types.SimpleNamespace(bos_token="<s>", chat_template=None)
        text = "<s>Where?"

        def apply_chat_template(self, messages, **_):
            return self.text

        def __call__(self, **kwargs):
            self.called = kwargs
            return {}

    processor = Processor()
    vhm.build_inputs(processor, "Where?", [], "{Question}")
    assert processor.called["add_special_tokens"] is False
    processor.text = "Where?"
    vhm.build_inputs(processor, "Where?", [], "{Question}")
    assert "add_special_tokens" not in processor.called


def test_layers_without_attention_are_refused_by_name_and_the_default_gives_way(visualizer, caplog):
    viz = visualizer("qwen3_5")
    with pytest.raises(ValueError, match=r"layer 0 is a linear_attention layer without attention.*\[1, 2\]"):
        viz.resolve_layer(0)
    assert viz.resolve_layer(vhm.DEFAULT_LAYER) == 2
    assert visualizer("mllama").resolve_layer(vhm.DEFAULT_LAYER) == 3  # the nearest that crosses
    assert "layer 3 is shown in place of the default 20" in caplog.text


# ------------------------------------------------------------------------------------- recording


@pytest.mark.parametrize("family", ["gemma3", "gemma4", "llava", "qwen2_vl", "internvl_gpt_oss"])
def test_a_static_cache_changes_no_row(visualizer, family):
    viz = visualizer(family)
    layers = vhm.attention_layers(viz.config)
    inputs = vhm.build_inputs(viz.processor, "Where?", PICTURES[:1], "{Question}")
    generation = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    rows = vhm.record_rows(viz.model, inputs, layers, "mean", generation, None)
    static = {"cache_implementation": "static", "disable_compile": True}
    static_rows = vhm.record_rows(viz.model, inputs, layers, "mean", generation | static, None)
    assert static_rows.response_ids == rows.response_ids
    assert np.abs(static_rows.weights - rows.weights).max() < 2e-5


@pytest.mark.parametrize("family", ["llava", "gemma3", "mistral3", "paligemma2"])
def test_left_padding_gets_no_weight_and_changes_no_row(visualizer, family):
    viz, pad = visualizer(family), 5
    layers = vhm.attention_layers(viz.config)
    inputs = vhm.build_inputs(viz.processor, "Where?", PICTURES[:1], "{Question}")
    padded = dict(inputs)
    for key, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            fill = {"input_ids": viz.processor.tokenizer.pad_token_id, "token_type_ids": int(family == "paligemma2")}
            padded[key] = torch.nn.functional.pad(value, (pad, 0), value=fill.get(key, 0))
    generation = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    rows = vhm.record_rows(viz.model, inputs, layers, "mean", generation, None)
    padded_rows = vhm.record_rows(viz.model, padded, layers, "mean", generation, None)
    assert padded_rows.response_ids == rows.response_ids
    assert not padded_rows.weights[..., :pad].any()
    assert np.abs(padded_rows.weights[..., pad:] - rows.weights).max() < 2e-5


@every_family_and_more
def test_the_models_own_attention_is_put_back_even_after_an_error(visualizer, family):
    viz = visualizer(family)
    before = vhm.implementations(viz.model.config)
    recorder = vhm.AttentionRecorder([0], 0)
    with pytest.raises(ZeroDivisionError), vhm.recording(viz.model, recorder):
        assert vhm.implementations(viz.model.config) != before
        raise ZeroDivisionError
    assert vhm.implementations(viz.model.config) == before
    with pytest.raises(ZeroDivisionError), vhm.vision_attention_off(viz.model):
        raise ZeroDivisionError
    assert vhm.implementations(viz.model.config) == before


def test_a_model_that_does_not_reach_the_function_falls_back_and_says_so(visualizer, monkeypatch, caplog):
    for family in ("gemma3", "qwen3_5", "mllama"):
        viz = visualizer(family)
        layers = vhm.attention_layers(viz.config)
        expected = viz.record(SAMPLE, PICTURES, layers, max_new_tokens=4)
        real = viz.model.set_attn_implementation
        with monkeypatch.context() as patch:
            patch.setattr(viz.model, "set_attn_implementation", lambda new, real=real: real(
                {key: "sdpa" if value == vhm.RECORDING_ATTENTION else value for key, value in new.items()}
            ))  # fmt: skip
            caplog.clear()
            found = viz.record(SAMPLE, PICTURES, layers, max_new_tokens=4)
        assert "falling back to eager attention" in caplog.text
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        assert np.abs(found.weights - expected.weights).max() < 2e-5


def test_rows_of_cross_attention_lie_on_the_pictures_and_those_of_other_layers_on_the_text(visualizer, caplog):
    pictures = [noise_picture(50, 50), PICTURES[0]]  # one tile, padded to the four of the other
    record = visualizer("mllama").record(SAMPLE, pictures, [1, 2], max_new_tokens=4)
    assert [len(image.positions) for image in record.images] == [17, 68]
    pictures = np.concatenate([image.positions for image in record.images])
    crossing, other = record.layer_weights(1), record.layer_weights(2)
    assert np.allclose(crossing[:, pictures].sum(axis=1), 1, atol=1e-5) and np.allclose(
        crossing.sum(axis=1), 1, atol=1e-5
    )
    assert not other[:, pictures].any() and np.allclose(other.sum(axis=1), 1, atol=1e-5)
    # Each picture's tokens follow the token that stands for it, and the text stays what it was.
    ids = record.token_ids
    assert (
        ids[[int(image.positions[0]) - 1 for image in record.images]] == visualizer("mllama").config.image_token_id
    ).all()
    assert "".join(record.tokens).count("<image>") == 2
    assert [piece.kind for piece in vhm.text_pieces(record, 0)].count("image") == 2
    assert "layer 2 does not look at pictures; layers [1, 3] do" in caplog.text


def test_a_window_that_leaves_pictures_out_is_told(visualizer, caplog):
    record = visualizer("gemma3").record(SAMPLE, PICTURES[:1], [0, 1], max_new_tokens=2)
    assert "layer 0 sees the last 24 positions only" in caplog.text and "layer 1 sees" not in caplog.text
    assert (np.count_nonzero(record.layer_weights(0), axis=1) <= 24).all()


# ------------------------------------------------------------------------------------- pictures


def test_pictures_of_every_mode_arrive_upright_and_in_colour(tmp_path):
    rgb = np.zeros((6, 8, 3), np.uint8)
    rgb[:, :4] = (200, 40, 40)
    rgb[:, 4:] = (20, 60, 220)
    colour = Image.fromarray(rgb)
    grey16 = Image.fromarray((np.linspace(0, 65535, 48).reshape(6, 8)).astype(np.uint16))
    clear = colour.convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat([[0] * 4 + [255] * 4], 6, axis=0).astype(np.uint8)))
    turned = colour.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    saved = {
        "rgb.png": colour, "palette.png": colour.convert("P", palette=Image.Palette.ADAPTIVE),
        "cmyk.tif": colour.convert("CMYK"), "alpha.png": clear, "grey.png": colour.convert("L"), "grey16.png": grey16,
        "grey_alpha.png": colour.convert("LA"), "one_bit.png": colour.convert("1"),
    }  # fmt: skip
    for name, image in saved.items():
        image.save(tmp_path / name)
    turned.save(tmp_path / "turned.png", exif=exif)

    def read(name: str) -> np.ndarray:
        with Image.open(tmp_path / name) as image:
            upright = vhm.upright_rgb(image)
        assert upright.mode == "RGB" and upright.size == (8, 6), name
        return np.asarray(upright).astype(int)

    for name in ("rgb.png", "palette.png", "cmyk.tif", "turned.png"):
        assert np.abs(read(name) - rgb).max() <= 3, name
    assert (read("alpha.png")[:, :4] == 255).all() and np.abs(read("alpha.png")[:, 4:] - rgb[:, 4:]).max() <= 3
    for name in ("grey.png", "grey_alpha.png"):
        assert np.abs(read(name)[..., 0] - np.asarray(colour.convert("L"))).max() <= 1, name
    ramp = read("grey16.png")[..., 0].ravel()
    assert ramp[0] == 0 and ramp[-1] == 255 and (np.diff(ramp) >= 0).all() and len(set(ramp)) == 48
    assert set(read("one_bit.png").ravel()) <= {0, 255}


def test_max_pixels_means_a_smaller_grid_over_the_same_picture(visualizer):
    viz, image = visualizer("qwen2_vl"), noise_picture(300, 200)
    large, small = (viz.record(SAMPLE, [image], [0], response="ok", max_pixels=n).images[0] for n in (None, 100 * 100))
    assert len(small.boxes) < len(large.boxes) / 3
    for tokens in (large, small):
        assert np.allclose(tokens.boxes.min(axis=0)[:2], 0) and np.allclose(tokens.boxes.max(axis=0)[2:], [300, 200])
    with pytest.raises(ValueError, match="max_pixels is 0"):
        viz.record(SAMPLE, [image], [0], max_pixels=0)


# ------------------------------------------------------------------------------------- one map of overlapping views


def test_a_single_grid_is_its_own_map():
    boxes = vhm.grid_boxes(3, 5, 77, 41)
    cells, spread = vhm.finest_cells(boxes)
    assert cells.tolist() == list(range(15)) and spread == []


def test_the_weight_of_a_thumbnail_lies_on_the_finer_cells_by_area():
    boxes = np.concatenate([vhm.grid_boxes(1, 2, 80, 40), vhm.grid_boxes(2, 4, 80, 40)])
    cells, spread = vhm.finest_cells(boxes)
    assert cells.tolist() == list(range(2, 10))
    assert sorted(box for box, _, _ in spread) == [0, 1]
    found = vhm.map_cells(vhm.ImageTokens(np.arange(len(boxes)), boxes))
    rows = np.array([[4, 8, *range(8)]], np.float32)
    assert found.weights(rows).tolist() == [[1, 2, 4, 5, 5, 6, 8, 9]]


@FEW
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.floats(0, 30), st.floats(5, 60))
def test_no_weight_is_lost_where_views_overlap(rows, columns, fine_rows, fine_columns, left, width):
    boxes = np.concatenate(
        [vhm.grid_boxes(rows, columns, 90, 60), vhm.grid_boxes(fine_rows, fine_columns, width, 40, left, 5)]
    )
    cells, spread = vhm.finest_cells(boxes)
    found = vhm.map_cells(vhm.ImageTokens(np.arange(len(boxes)), boxes))
    weights = np.random.default_rng(rows).random((2, len(boxes)), np.float32)
    assert np.allclose(found.weights(weights).sum(axis=1), weights.sum(axis=1), rtol=1e-4)
    assert set(cells) | {box for box, _, _ in spread} == set(range(len(boxes)))


def test_what_sticks_out_of_the_finer_views_stays_a_cell_of_the_coarser_one():
    boxes = np.concatenate([vhm.grid_boxes(1, 1, 80, 40), vhm.grid_boxes(2, 2, 80, 20, top=10)])
    cells, _ = vhm.finest_cells(boxes)
    assert cells[0] == 0 and sorted(cells) == [0, 1, 2, 3, 4]  # painted first, below the others
    found = vhm.map_cells(vhm.ImageTokens(np.arange(len(boxes)), boxes))
    assert found.weights(np.array([[8, 0, 0, 0, 0]], np.float32)).tolist() == [[4, 1, 1, 1, 1]]


# ------------------------------------------------------------------------------------- checkpoints and the command line


def test_an_adapters_directory_is_a_checkpoint(visualizer, tmp_path):
    peft = pytest.importorskip("peft")
    base = visualizer("qwen2_vl")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = transformers.AutoModelForImageTextToText.from_pretrained(base.model_name_or_path)
    torch.manual_seed(1)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    viz = vhm.AttentionVisualizer(str(tmp_path / "adapter"))
    plain, adapted = (v.record(SAMPLE, PICTURES[:1], [-1], response="so it is") for v in (base, viz))
    assert any("lora" in name for name, _ in viz.model.named_parameters())
    assert np.abs(plain.weights - adapted.weights).max() > 1e-3


def test_a_sharded_checkpoint_is_read_and_model_kwargs_reach_it(visualizer, tmp_path):
    base = visualizer("qwen2_vl")
    base.model.save_pretrained(tmp_path, max_shard_size="20KB")
    base.processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    viz = vhm.AttentionVisualizer(str(tmp_path), model_kwargs={"attn_implementation": "eager", "dtype": torch.bfloat16})
    assert viz.model.dtype == torch.bfloat16 and viz.model.config._attn_implementation == "eager"
    viz = vhm.AttentionVisualizer(str(tmp_path))
    first, second = (v.record(SAMPLE, PICTURES[:1], [1], response="so") for v in (base, viz))
    assert (first.weights == second.weights).all()


def test_processor_kwargs_reach_the_processor(visualizer):
    folder = visualizer("gemma3").model_name_or_path
    wide = noise_picture(300, 100)
    plain = vhm.AttentionVisualizer(folder)
    cut = vhm.AttentionVisualizer(folder, processor_kwargs={"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 24})
    for viz in (plain, cut):
        viz.model = visualizer("gemma3").model
    assert len(placed(plain, wide)[0].boxes) == 4
    assert len(placed(cut, wide)[0].boxes) == 16  # a thumbnail and three crops


@every_family
def test_the_first_command_makes_a_video_without_any_option_of_the_family(visualizer, family, tmp_path, capsys):
    noise_picture(90, 60).save(tmp_path / "a.png")
    sample = [{"image": ["a.png"], "problem": "Where? Based on the following requirements, say."}]
    (tmp_path / "data.json").write_text(json.dumps(sample))
    code = vhm.main([
        "--model_path", visualizer(family).model_name_or_path, "--benchmark_json", str(tmp_path / "data.json"),
        "--image_dir", str(tmp_path), "--output_dir", str(tmp_path), "--max_new_tokens", "2", "--frame_size", "640x360",
    ])  # fmt: skip
    out = capsys.readouterr()
    assert code == 0, out.err
    assert Path(out.out.strip()).stat().st_size > 1000


def test_json_flags_are_objects(capsys):
    arguments = vhm.build_parser().parse_args([
        "--model_path", "m", "--benchmark_json", "b", "--image_dir", "i", "--model_kwargs", '{"revision": "main"}',
        "--processor_kwargs", '{"use_fast": true}', "--max_pixels", "90000",
    ])  # fmt: skip
    assert arguments.model_kwargs == {"revision": "main"} and arguments.processor_kwargs == {"use_fast": True}
    assert arguments.max_pixels == 90000
    with pytest.raises(SystemExit):
        vhm.build_parser().parse_args(["--model_path", "m", "--model_kwargs", "[1]"])
    assert "no JSON object" in capsys.readouterr().err


@every_family_and_more
def test_auto_takes_rows_that_can_be_named_and_any_map_can_be_checked(visualizer, family, monkeypatch):
    monkeypatch.setattr(vhm, "CHECK_DRAWS", 2)
    viz = visualizer(family)
    given = {"response": "It is on the left.", "neutral_prompt": vhm.NEUTRAL_PROMPT}
    record = viz.record(SAMPLE, PICTURES, "auto", head="auto", **given)
    (layer,), (head,) = record.layers, record.auto_heads
    assert layer in (vhm.cross_layers(viz.config) or vhm.attention_layers(viz.config))
    named = viz.record(SAMPLE, PICTURES, [layer], head=head, **given)
    np.testing.assert_allclose(named.weights, record.weights, atol=1e-6)
    assert record.neutral.shape == (1, len(record.image_positions)) and (record.neutral >= 0).all()
    cells = vhm.mean_cells(record, vhm.shown_rows(record, layer, "off", False, 0))
    flat = np.ptp(np.concatenate([weights for _, weights in cells])) == 0  # a tiny model may look nowhere
    checks = viz.check(record, SAMPLE, PICTURES).checks
    assert [check.layer for check in checks] == [layer] * (not flat)
    assert all(len(c.random) == 2 and np.isfinite([c.hottest, *c.random]).all() for c in checks)
