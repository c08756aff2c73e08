"""What recording is held against: transformers alone, on the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from visualizeHeatMap import locate_image_tokens

GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
CLOSE = 2e-5  # of weights in float32


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [noise_picture(150, 110, 1), noise_picture(61, 97, 2)]


def inputs_of(visualizer: Any, problem: str = "Where is it?", images: list[Image.Image] = PICTURES) -> Any:
    """The processor's inputs, by its own chat template."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": problem}]
    processor, message = visualizer.processor, {"role": "user", "content": content}
    if processor.chat_template is None:  # paligemma's
        text = processor.image_token * len(images) + problem
    else:
        text = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(text=[text], images=[images], return_tensors="pt")
    inputs.pop("labels", None)  # paligemma's
    return inputs


def with_response(inputs: Any, ids: list[int]) -> dict:
    """Inputs that go on with a response, whose last token produces nothing."""
    longer, tail = dict(inputs), torch.tensor([ids[:-1]])
    for key, value in inputs.items():
        if key == "cross_attention_mask":
            longer[key] = torch.cat([value, value[:, -1:].expand(-1, tail.shape[1], -1, -1)], dim=1)
        elif torch.is_tensor(value) and value.shape == inputs["input_ids"].shape:
            causal = key == "attention_mask" or (key == "token_type_ids" and not value.any())  # the latter: paligemma's
            more = tail if key == "input_ids" else torch.full_like(tail, int(causal))
            longer[key] = torch.cat([value, more.to(value)], dim=1)
    return longer


def eager_weights(model: Any, inputs: Any, ids: list[int]) -> dict[int, np.ndarray]:
    """By layer, (H, T, K) rows of a response: the weights of eager attention, which the model itself computes.

    model: one whose attention is eager, by from_pretrained.
    """
    assert model.config.get_text_config()._attn_implementation == "eager"
    caught, hooks = {}, []

    def keep(module: Any, _: Any, output: Any) -> None:
        caught[module.layer_idx] = output[1][0].float().numpy()

    for module in model.get_decoder().modules():
        if hasattr(module, "layer_idx") and {"q_proj", "qkv_proj"} & set(dict(module.named_children())):
            hooks.append(module.register_forward_hook(keep))
    try:
        with torch.inference_mode():
            model(**with_response(inputs, ids), use_cache=False)
    finally:
        [hook.remove() for hook in hooks]
    return {layer: weights[:, inputs["input_ids"].shape[1] - 1 :] for layer, weights in caught.items()}


def located_of(visualizer: Any, inputs: Any, images: list[Image.Image] = PICTURES) -> list:
    """The pictures of a model with layers that cross; of others, which need none, nothing."""
    crosses = getattr(visualizer.config.get_text_config(), "cross_attention_layers", None)
    return locate_image_tokens(visualizer.model, visualizer.processor, inputs, images) if crosses else []


def at_positions(weights: dict[int, np.ndarray], located: list, crossing: list[int]) -> dict[int, np.ndarray]:
    """Eager weights where the record has positions for the pictures that only some layers see."""
    if not located:
        return weights
    at = np.concatenate([image.positions for image in located])
    length = max(rows.shape[2] for layer, rows in weights.items() if layer not in crossing) + len(at)
    text, found = [place for place in range(length) if place not in at], {}
    for layer, rows in weights.items():
        found[layer] = np.zeros((*rows.shape[:2], length), np.float32)
        if layer in crossing:
            parts = np.split(rows, len(located), axis=2)  # as many keys a picture, padded
            kept = [part[:, :, : len(image.positions)] for part, image in zip(parts, located)]
            found[layer][:, :, at] = np.concatenate(kept, axis=2)
        else:
            found[layer][:, :, text] = rows
    return found


def assert_rows(weights_TNK: np.ndarray, planes: list, expected: dict[int, np.ndarray], close: float = CLOSE) -> None:
    """Rows of planes are the eager weights with their heads reduced; 0 where eager attention has no column."""
    for place, (layer, head) in enumerate(planes):
        heads_HTK = expected[layer]
        if head in ("mean", "max"):
            rows_TK = getattr(heads_HTK, head)(0)
        else:
            rows_TK = heads_HTK[list(head) if isinstance(head, tuple) else [head]].mean(0)
        found_TK, K = weights_TNK[:, place], rows_TK.shape[1]
        assert np.abs(found_TK[:, :K] - rows_TK).max() < close, (layer, head)
        assert not found_TK[:, K:].any(), (layer, head)
