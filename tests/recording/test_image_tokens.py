"""Boxes of image tokens at the geometry of published checkpoints: held to the families' own formulas and to changes of
the picture itself. Whatever state the model is in, it is asked alike and left as it was."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from geometries import PUBLISHED, build
from placing import anyres, breaches, cropped, error, grid, located, mllama, noise_picture, phi4, tiled, whole
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from attention_heatmap.recording import image_tokens, pixels
from attention_heatmap.recording.attention import implementations
from attention_heatmap.recording.image_tokens import image_token_id, locate_image_tokens
from attention_heatmap.recording.prompt import build_inputs

built = cache(lambda label: build(PUBLISHED[label]))
SIZES = [(611, 330), (401, 743)]


def inputs_of(label, images):
    return build_inputs(built(label)[1], "Where?", images, "{Question}")


# ------------------------------------------------------------------------------------- formulas


def expected_boxes(label: str, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Boxes by the family's formula, and the pixels of the canvas that a cell has along a side."""
    geometry, (width, height) = PUBLISHED[label], size
    if label == "LLaVA 1.5":
        return cropped(size, 336, 14), 14
    if label in ("LLaVA-Interleave", "Gemma 3", "PaliGemma 224", "PaliGemma 448"):
        known = {"LLaVA-Interleave": (384, 14), "Gemma 3": (896, 56), "PaliGemma 224": (224, 14)}
        tile, cell = known.get(label, (448, 14))
        return whole(size, tile, cell), cell
    if label in ("LLaVA 1.6", "Granite Vision", "LLaVA-OneVision"):
        return anyres(size, geometry.config["image_grid_pinpoints"], 336 if label == "LLaVA 1.6" else 384, 14), 14
    if geometry.model_type in ("smolvlm", "idefics3"):
        tile, scale = geometry.config["vision_config"]["image_size"], geometry.config["scale_factor"]
        cell, longest = geometry.config["vision_config"]["patch_size"] * scale, geometry.image["size"]["longest_edge"]
        shorter = -(-int(longest * min(size) / max(size)) // tile)
        rows, columns = (shorter, longest // tile) if width > height else (longest // tile, shorter)
        return np.concatenate([tiled(size, rows, columns, tile, cell), whole(size, tile, cell)]), cell
    if label == "InternVL":
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        return np.concatenate([tiled(size, rows, columns, 448, 28), whole(size, 448, 28)]), 28
    inputs = inputs_of(label, [noise_picture(*size)])
    if label == "Phi-4":
        canvas, mask = inputs["image_sizes"][0].tolist()[::-1], inputs["image_attention_mask"][0, 1:, ::2, ::2]
        down, across = canvas[1] // 448, canvas[0] // 448
        useful = mask[: down * across].reshape(down, across, 16, 16)
        return phi4(size, int(useful[:, 0, :, 0].sum()), int(useful[0, :, 0].sum()), canvas), 28
    if label == "Llama 3.2 Vision":
        return mllama(size, 560, 14, 4), 14
    if "image_grid_thw" in inputs:
        cell = 2 * built(label)[0].config.vision_config.patch_size
        rows, columns = (inputs["image_grid_thw"][0, 1:] // 2).tolist()
    else:
        cell = {"Pixtral": 16, "Mistral 3.1": 28}[label]
        rows, columns = (inputs["image_sizes"][0] // cell).tolist()
    return grid(
        *(
            np.stack([np.arange(n), np.arange(1, n + 1)], 1) * length / n
            for n, length in ((columns, width), (rows, height))
        )
    ), cell


@pytest.mark.parametrize("label", PUBLISHED)
def test_boxes_are_those_of_the_familys_formula_at_published_geometry(label):
    many_tiles = PUBLISHED[label].model_type in ("smolvlm", "idefics3")
    for size in SIZES[: 1 if many_tiles else 2]:
        (tokens,) = located(*built(label), [noise_picture(*size)])
        expected, cell = expected_boxes(label, size)
        assert error(tokens.boxes, expected, size, cell) < 0.02, size


def test_two_pictures_side_by_side_in_a_tile_stay_on_their_own_lines():
    at = torch.cat([torch.arange(20.0) + 0.5, torch.arange(20.0) + 0.5])[None]
    shown, length = torch.ones(1, 40, dtype=torch.bool), torch.full((1, 40), 20.0)
    assert torch.equal(pixels._straightened(at, shown, length, -1), at)
    rippled = at[:, :20] + 0.1 * torch.arange(20).cos()
    straight = pixels._straightened(rippled, shown[:, :20], length[:, :20], -1)
    assert (straight - at[:, :20]).abs().max() < 0.03
    for one in (torch.full((1, 9), 0.5), torch.tensor([[0.5, 1.5]])):  # pictures of one and of two pixels
        whole = torch.ones_like(one, dtype=torch.bool)
        same = pixels._straightened(one, whole, torch.full_like(one, float(one.max()) + 0.5), -1)
        assert torch.equal(same, one)


@pytest.mark.parametrize("label", ["LLaVA 1.6", "Idefics3", "Qwen2-VL", "Qwen3-VL", "Gemma 3", "Llama 3.2 Vision"])
def test_processors_that_resize_with_pillow_and_take_whole_levels_only_are_read_as_well(label):
    model, processor = build(PUBLISHED[label])
    own = processor.image_processor
    settings = {key: value for key, value in own.to_dict().items() if key != "image_processor_type"}
    processor.image_processor = getattr(transformers, f"{type(own).__name__}Pil")(**settings)
    (tokens,) = located(model, processor, [noise_picture(*SIZES[0])])
    expected, cell = expected_boxes(label, SIZES[0])
    assert error(tokens.boxes, expected, SIZES[0], cell) < 0.1


def test_where_large_digits_are_too_coarse_small_ones_name_the_tokens(monkeypatch):
    images = [noise_picture(61, 52)]
    (expected,) = located(*build(PUBLISHED["LLaVA 1.5"]), images)  # what a model was found to do is kept
    by_digits, bases = pixels._by_digits, []

    def coarse(gradient, number_N, base):
        bases.append(base)
        owner, fed = by_digits(gradient, number_N, base)
        return owner.where((owner % 3 > 0) | (base == 2), -1), fed  # as TF32 leaves them

    monkeypatch.setattr(pixels, "_by_digits", coarse)
    (found,) = located(*build(PUBLISHED["LLaVA 1.5"]), images)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert bases[-1] == 2 < bases[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("label", PUBLISHED)
def test_a_gpu_whose_kernels_are_coarser_places_tokens_alike(label, dtype):
    images, (model, processor) = [noise_picture(*SIZES[0])], build(PUBLISHED[label])
    (expected,) = located(*built(label), images)
    (found,) = located(model.to("cuda", dtype), processor, images)  # another model: what was found is kept
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(np.isnan(found.boxes), np.isnan(expected.boxes))
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.02 * max(SIZES[0]) / 100)


# ------------------------------------------------------------------------------------- what was wrong


def test_several_pictures_each_have_their_tokens():
    pictures = [noise_picture(211, 130, 1), noise_picture(61, 97, 2)]
    for label in ("LLaVA 1.5", "LLaVA 1.6", "Qwen2-VL", "Llama 3.2 Vision", "Mistral 3.1"):
        together = located(*built(label), pictures)
        apart = [located(*built(label), [picture])[0] for picture in pictures]
        assert together[0].positions.max() < together[1].positions.min()
        for one, other in zip(together, apart):
            np.testing.assert_allclose(one.boxes, other.boxes, atol=0.02 * 211)


def test_class_tokens_go_with_the_picture_that_they_begin():
    found = np.array([-1, 0, 0, -1, 1, 1])
    owner = np.arange(6)[None]
    owner = np.where(found >= 0, owner, -1)
    sources = SimpleNamespace(shown=np.ones((6, 1), bool), picture=np.array([0, 0, 0, 0, 1, 1])[:, None])
    assert image_tokens.token_pictures(sources, owner.T, 6).tolist() == [0, 0, 0, 1, 1, 1]


TINY_PICTURES = [(1, 1), (1, 40), (40, 1), (9, 7)]


@pytest.mark.parametrize("label", ["LLaVA 1.5", "LLaVA 1.6", "LLaVA-OneVision", "Qwen2-VL", "PaliGemma 224"])
def test_pictures_smaller_than_a_cell_have_their_cells(label):
    for size in TINY_PICTURES:
        try:
            inputs = inputs_of(label, [noise_picture(*size)])
        except ValueError:
            continue  # the processor refuses such pictures
        (tokens,) = locate_image_tokens(*built(label), inputs, [noise_picture(*size)])
        boxes = tokens.boxes[np.isfinite(tokens.boxes[:, 0])]
        assert len(boxes) and (boxes[:, :2] < boxes[:, 2:]).all(), size
        if label != "LLaVA 1.5":  # it sees the middle of the longer side only
            np.testing.assert_allclose(boxes.min(axis=0)[:2], 0, atol=0.05)
            np.testing.assert_allclose(boxes.max(axis=0)[2:], size, rtol=0.03)


def test_a_map_in_which_no_token_has_a_place_is_an_error(monkeypatch):
    monkeypatch.setattr(image_tokens, "token_boxes", lambda *_: np.full((576, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"no token has a place in picture 1 of 1.*'llava', 576 image tokens"):
        located(*built("LLaVA 1.5"), [noise_picture(51, 52)])


class PaddingProcessor:
    """A processor that puts the picture in the middle of a larger canvas and reports the grid of that canvas."""

    def __init__(self, processor):
        self.own, self.tokenizer, self.chat_template = processor, processor.tokenizer, processor.chat_template
        self.apply_chat_template = processor.apply_chat_template

    def __call__(self, images, **kwargs):
        def padded(picture):
            if not torch.is_tensor(picture):
                picture = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            return torch.nn.functional.pad(picture, (40, 40, 100, 100))

        return self.own(images=[[padded(picture) for picture in images[0]]], **kwargs)


def test_a_reported_grid_lies_over_the_padded_canvas_not_over_the_picture():
    model, processor = built("Qwen2-VL")
    size = (300, 200)
    (tokens,) = located(model, PaddingProcessor(processor), [noise_picture(*size)])
    grid_ = inputs_of("Qwen2-VL", [noise_picture(380, 400)])["image_grid_thw"][0, 1:] // 2
    rows, columns = grid_.tolist()
    x, y = (np.stack([np.arange(n), np.arange(1, n + 1)], 1) * (length + 2 * pad) / n - pad
            for n, length, pad in ((columns, 300, 40), (rows, 200, 100)))  # fmt: skip
    assert error(tokens.boxes, grid(x, y), size, 28) < 0.2


# ------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("size", [(2000, 1700), (700, 2300)])
def test_pooled_cells_lie_on_the_pixels_that_they_blend(size):
    model, processor = built("LLaVA-OneVision")
    picture = noise_picture(*size)
    (tokens,) = located(model, processor, [picture])
    assert len(tokens.boxes) < 9.2 * 729 + 729 + 100  # it pools
    looked, wrong = breaches(model, processor, picture, tokens.boxes, blend=1.1, cuts=(0.47,))
    assert looked > 4000 and wrong == 0


def test_a_picture_that_is_not_pooled_needs_no_rule():
    config = built("LLaVA-OneVision")[0].config
    assert image_tokens.pooled_boxes(config, 611, 330) is None


# ------------------------------------------------------------------------------------- the model's state


def test_half_precision_names_the_same_tokens():
    for dtype in (torch.bfloat16, torch.float16):
        for label in ("PaliGemma 224", "Mistral 3.1", "Qwen2.5-VL"):
            model, processor = build(PUBLISHED[label])
            picture = noise_picture(150, 120)
            expected = located(model, processor, [picture])[0].boxes
            image_tokens._kept.clear()
            found = located(model.to(dtype), processor, [picture])[0].boxes
            np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_model_is_left_as_it_was_also_after_an_error(monkeypatch):
    model, processor = build(PUBLISHED["LLaVA 1.5"])
    model(**build_inputs(processor, "Where?", [noise_picture(60, 50)], "{Question}"))  # transformers' own hooks stay
    forwards = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
    before = implementations(model.config)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    wanted = [p.requires_grad for p in model.parameters()]

    def hooks():
        return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())

    hooks_before = hooks()

    def same():
        return (
            implementations(model.config) == before and hooks() == hooks_before
            and {name: module.__dict__.get("forward") for name, module in model.named_modules()} == forwards
            and [p.requires_grad for p in model.parameters()] == wanted
            and all(p.grad is None for p in model.parameters())
        )  # fmt: skip

    located(model, processor, [noise_picture(60, 50)])
    assert same()
    monkeypatch.setattr(type(model.model.multi_modal_projector), "forward", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match="the model cannot be asked: division by zero"):
        located(model, processor, [noise_picture(61, 50)])
    assert same()
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError):
        located(model, processor, [noise_picture(61, 51)])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_callers_in_inference_mode_are_served():
    model, processor = build(PUBLISHED["Qwen2.5-VL"])
    with torch.inference_mode():
        (tokens,) = located(model, processor, [noise_picture(300, 200)])
    assert np.isfinite(tokens.boxes).all()


def test_a_model_with_parts_on_the_host_is_asked_through_its_hooks():
    from accelerate import cpu_offload

    model, processor = build(PUBLISHED["LLaVA 1.5"])
    expected = located(model, processor, [noise_picture(300, 200)])[0].boxes
    image_tokens._kept.clear()
    hooked = cpu_offload(model, execution_device=torch.device("cpu"))
    forwards = {name: module.__dict__.get("forward") for name, module in hooked.named_modules()}
    np.testing.assert_array_equal(located(hooked, processor, [noise_picture(300, 200)])[0].boxes, expected)
    assert {name: module.__dict__.get("forward") for name, module in hooked.named_modules()} == forwards


def test_layers_of_the_encoder_are_not_computed():
    model, processor = build(PUBLISHED["LLaVA 1.5"])
    seen = []
    for layer in model.model.vision_tower.encoder.layers if hasattr(model.model.vision_tower, "encoder") else ():
        layer.mlp.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    located(model, processor, [noise_picture(60, 50)])
    assert len(seen) <= 1 and not any(seen)  # the first is asked what it returns, without a graph


# ------------------------------------------------------------------------------------- the fast path, kept results


def test_a_reported_grid_is_tried_once_and_then_believed(monkeypatch):
    model, processor = build(PUBLISHED["Qwen2-VL"])
    asked = []
    ask = pixels.token_of_each_value
    monkeypatch.setattr(image_tokens, "token_of_each_value", lambda *args: asked.append(1) or ask(*args))
    first = located(model, processor, [noise_picture(700, 500)])[0].boxes
    second = located(model, processor, [noise_picture(500, 700)])[0].boxes
    assert len(asked) == 1 and first.shape[1] == second.shape[1] == 4
    processor.image_processor.patch_size = 14
    processor.image_processor.merge_size = 2
    located(model, processor, [noise_picture(700, 500)])
    assert len(asked) == 1


def test_a_reported_grid_in_another_order_is_not_believed(monkeypatch):
    model, processor = build(PUBLISHED["Qwen2-VL"])
    merger = model.model.visual.merger
    turned = type(merger).forward
    monkeypatch.setattr(type(merger), "forward", lambda self, x: turned(self, x).flip(0))
    (tokens,) = located(model, processor, [noise_picture(300, 200)])
    np.testing.assert_allclose(tokens.boxes[0, 2:], [300, 200], atol=0.01)  # the last cell comes first


def test_pictures_of_the_same_sizes_are_placed_once(monkeypatch):
    model, processor = build(PUBLISHED["LLaVA 1.6"])
    first = located(model, processor, [noise_picture(300, 200)])[0]
    monkeypatch.setattr(image_tokens, "pixel_sources", lambda *_: 1 / 0)
    second = located(model, processor, [noise_picture(300, 200, seed=5)])[0]
    np.testing.assert_array_equal(first.boxes, second.boxes)
    second.boxes[:] = 0  # a caller's own
    np.testing.assert_array_equal(located(model, processor, [noise_picture(300, 200)])[0].boxes, first.boxes)
    with pytest.raises(ZeroDivisionError):
        located(model, processor, [noise_picture(301, 200)])


def test_placing_is_quick_on_a_tiny_model():
    model, processor = build(PUBLISHED["Qwen2-VL"])
    begin = time.perf_counter()
    located(model, processor, [noise_picture(640, 480)])
    assert time.perf_counter() - begin < 5


# ------------------------------------------------------------------------------------- refusals


def test_values_that_feed_several_tokens_are_refused(monkeypatch):
    model, processor = build(PUBLISHED["LLaVA 1.5"])
    projector = type(model.model.multi_modal_projector)
    plain = projector.forward
    monkeypatch.setattr(projector, "forward", lambda self, x: plain(self, x + x.roll(1, dims=1)))
    with pytest.raises(ValueError, match=r"pixels feed several image tokens each.*'llava', 576 image tokens"):
        located(model, processor, [noise_picture(60, 50)])
    with pytest.raises(ValueError, match="pixels feed several image tokens each"):
        located(model.to(torch.bfloat16), processor, [noise_picture(60, 50)])


def test_tokens_without_pixels_of_their_own_are_refused(monkeypatch):
    model, processor = build(PUBLISHED["LLaVA 1.5"])
    monkeypatch.setattr(
        type(model.model.multi_modal_projector),
        "forward",
        lambda self, x: (x * 0).detach() @ torch.ones(x.shape[-1], 32),
    )
    with pytest.raises(ValueError, match=r"no gradient leads|hangs on pixels of its own"):
        located(model, processor, [noise_picture(60, 50)])


def test_pictures_that_go_through_pil_are_placed_as_well_as_bytes_can_tell():
    image = noise_picture(611, 330)
    exact, by_bytes = (
        located(*build(replace(PUBLISHED["LLaVA 1.5"], image_class=name)), [image])[0].boxes
        for name in ("CLIPImageProcessor", "CLIPImageProcessorPil")
    )
    assert np.abs(exact - by_bytes).max() < 611 / 224  # a ramp has 224 levels


@pytest.mark.parametrize("config_class", [transformers.Blip2Config, transformers.InstructBlipConfig])
def test_tokens_of_a_query_former_are_refused_before_the_weights_are_loaded(config_class):
    config = config_class(image_token_index=7)
    with pytest.raises(ValueError, match=f"'{config.model_type}' has a qformer: its tokens stand for no part"):
        image_token_id(config)


def test_an_encoder_decoder_is_refused_before_the_weights_are_loaded():
    with pytest.raises(ValueError, match="'florence2' is an encoder-decoder"):
        image_token_id(transformers.Florence2Config())


def test_a_prompt_without_image_tokens_and_a_config_without_their_id_are_refused():
    model, processor = built("LLaVA 1.5")
    inputs = inputs_of("LLaVA 1.5", [noise_picture(60, 50)])
    inputs["input_ids"] = inputs["input_ids"][:, :1]
    with pytest.raises(ValueError, match=r"the prompt holds none; check the chat template.*'llava', 0 image tokens"):
        locate_image_tokens(model, processor, inputs, [noise_picture(60, 50)])
    with pytest.raises(ValueError, match="'text_only' names no image_token_id"):
        image_token_id(SimpleNamespace(model_type="text_only", vision_config=None))


def test_a_number_of_tokens_that_the_model_does_not_make_is_refused():
    model, processor = built("LLaVA 1.5")
    inputs = inputs_of("LLaVA 1.5", [noise_picture(60, 50)])
    first = int((inputs["input_ids"][0] == image_token_id(model.config)).nonzero()[0])
    inputs["input_ids"] = inputs["input_ids"][:, first + 1 :]
    with pytest.raises(ValueError, match="575 image tokens, pixel_values of shape"):
        locate_image_tokens(model, processor, inputs, [noise_picture(60, 50)])


def test_a_processor_that_refuses_ramps_is_named():
    _, processor = built("LLaVA 1.5")

    class Refusing:
        chat_template, tokenizer = processor.chat_template, processor.tokenizer
        apply_chat_template = staticmethod(processor.apply_chat_template)

        def __call__(self, **_):
            raise TypeError("pictures only")

    with pytest.raises(ValueError, match="Refusing takes no ramps in the pictures' place: pictures only"):
        pixels.pixel_sources(Refusing(), [(5, 5)], "pixel_values")
