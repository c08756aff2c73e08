"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.log import one_line
from attention_heatmap.record import ImageTokens
from attention_heatmap.recording.attention import decoder_layers, vision_attention_off
from attention_heatmap.recording.families import FAMILY_RULES
from attention_heatmap.recording.grids import ProcessedImages, grid_boxes, patch_owners, reported_grids, tile_boxes
from attention_heatmap.recording.layers import cross_layers
from attention_heatmap.recording.prompt import input_device


def image_token_id(config: Any) -> int:
    """The id that stands for a piece of a picture in `input_ids`. Raises ValueError where there is none."""
    for holder in (config, getattr(config, "vision_config", None)):
        for name in ("image_token_id", "image_token_index"):
            if isinstance(getattr(holder, name, None), int):
                return getattr(holder, name)
    raise ValueError(f"model type {config.model_type!r} names no image_token_id, so its image tokens cannot be found")


def locate_image_tokens(model: Any, processor: Any, inputs: Any, images: Sequence[Image.Image]) -> list[ImageTokens]:
    """Where every image token stands in its picture: one box a token, or an error.

    `inputs` is what the processor returned for `images` (batch 1). In this order: a grid that the processor
    reports, a rule for the family, or tiles, read off a ramp that goes through the processor in the picture's place.
    Tokens without a place (newlines, a class token, padding) get NaN boxes. Where only cross-attention sees the
    pictures, their tokens get positions of their own, right after the token that stands for each in the prompt.
    Raises ValueError, with the model type and the counts, where nothing fits.
    """
    ids_P = inputs["input_ids"][0].cpu().numpy()
    positions = np.flatnonzero(ids_P == image_token_id(model.config))
    made = ProcessedImages(model, processor, inputs, images, len(positions))
    try:
        if not made.count:
            raise ValueError("the prompt holds none; check the chat template")
        boxes = place_image_tokens(made)
        counts = [len(part) for part in boxes]
        if cross_layers(model.config) and len(positions) == len(images):
            shifts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            positions = np.concatenate(
                [at + 1 + np.arange(n) + shift for at, n, shift in zip(positions, counts, shifts)]
            )
        if len(boxes) != len(images) or sum(counts) != len(positions):
            raise ValueError(f"the {len(images)} pictures would have {counts} image tokens")
    except ValueError as error:
        raise ValueError(
            f"the image tokens cannot be placed in the picture: {one_line(error)} (model type "
            f"{model.config.model_type!r}, {made.count} image tokens, {made.pixels_name} of shape {made.shape})"
        ) from error
    parts = np.split(positions.astype(np.int64), np.cumsum(counts)[:-1])
    return [ImageTokens(part, visible_boxes(box, image.size)) for part, box, image in zip(parts, boxes, images)]


def place_image_tokens(made: ProcessedImages) -> list[np.ndarray]:
    """(tokens, 4) boxes of each picture, not clipped to it yet, by the first mechanism that fits."""
    family = made.model.config.model_type
    for part in made.model.config.sub_configs:
        if "qformer" in part or "perceiver" in part:
            raise ValueError(f"tokens of a {part.removesuffix('_config')} each stand for the whole picture")
    if family in FAMILY_RULES:
        return FAMILY_RULES[family](made)
    grids = reported_grids(made)
    if grids is None:
        boxes, owner = tile_boxes(made)
    else:
        boxes = [grid_boxes(*grid.tolist(), *image.size) for grid, image in zip(grids, made.images)]
        owner = patch_owners(made, grids)
    if family not in PROVEN_FAMILIES:
        check_places(made, owner)
    return boxes


def visible_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The boxes clipped to the picture; a cell that lies in the padding, up to rounding, has no place."""
    clipped = np.clip(boxes, 0, np.array([*size, *size])).astype(np.float32)
    whole, seen = boxes[:, 2:] - boxes[:, :2], clipped[:, 2:] - clipped[:, :2]
    clipped[~(seen > SMALLEST_VISIBLE_PART * whole).all(axis=1)] = np.nan
    return clipped


SMALLEST_VISIBLE_PART = 0.02  # of a cell's side; less of the picture in it is rounding


def check_places(made: ProcessedImages, owner: np.ndarray | None) -> None:
    """For a family that nobody proved: with the vision tower's attention off, a token must hang on its own cell alone.

    The cells are told apart by the bits of their numbers, one run of the vision tower a bit.
    """
    import torch

    if owner is None:
        raise ValueError("nothing says which pixels its tokens stand for")
    pixels = made.inputs[made.pixels_name]
    tokens = torch.arange(made.count)
    placed = torch.isin(tokens, torch.from_numpy(np.unique(owner)))
    owner = torch.from_numpy(owner).reshape(*pixels.shape[: -owner.ndim + 1], *owner.shape[1:])
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).to(pixels.dtype)
    before = image_embeddings(made, pixels)
    for bit in range(made.count.bit_length()):
        changed = (image_embeddings(made, pixels + noise * ((owner + 1) >> bit & 1)) - before).abs().amax(dim=-1)
        expected = ((tokens + 1) >> bit & 1).bool() & placed
        if not torch.equal(changed > 1e-4 * changed.max(), expected):
            raise ValueError("no token, as in a query-former or perceiver, has one place of its own in the picture")


def image_embeddings(made: ProcessedImages, pixels: Any) -> Any:
    """(N, D) float32 embeddings of the image tokens for other pixel values, without attention between patches."""
    import torch

    model, found = made.model, []

    def keep(module: Any, args: tuple, kwargs: dict) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _EmbeddingsFound

    layers = decoder_layers(model)
    if not layers:
        raise ValueError(f"the layers of {type(model).__name__} cannot be found to check it")
    hook = layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    inputs, device = {**made.inputs, made.pixels_name: pixels.to(model.dtype)}, input_device(model)
    inputs = {key: value.to(device) if torch.is_tensor(value) else value for key, value in inputs.items()}
    try:
        with vision_attention_off(model), torch.inference_mode():
            model(**inputs)
    except _EmbeddingsFound:
        pass
    finally:
        hook.remove()
    return found[0][0].cpu()[inputs["input_ids"][0].cpu() == image_token_id(model.config)].float()


class _EmbeddingsFound(Exception):
    """Leaves a model's forward pass as soon as its embeddings are there."""


# Families without a rule whose boxes the tests hold to the pixels; any other is checked on the model itself.
PROVEN_FAMILIES = {
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "llava", "idefics3", "smolvlm", "gemma3", "gemma4",
    "paligemma", "internvl", "mistral3",
}  # fmt: skip
