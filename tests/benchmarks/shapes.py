"""Models of real shapes with random weights, and prompts of a given length, for the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from attention_heatmap.log import logger

IMAGE_GRID = (44, 60)  # patches, rows and columns: 660 image tokens, a picture of 616 x 840 pixels
IDS = {"vision_start_token_id": 1, "vision_end_token_id": 2, "image_token_id": 3, "video_token_id": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
SHAPES = {
    # Qwen2.5-VL-7B-Instruct's configuration.
    "7b": (
        {
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000,
            "rope_parameters": {**ROPE, "mrope_section": [16, 24, 24]}, "tie_word_embeddings": False,
        },
        {"depth": 32, "hidden_size": 1280, "out_hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16},
    ),
    # Qwen2.5-VL-32B-Instruct's.
    "32b": (
        {
            "vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
            "num_attention_heads": 40, "num_key_value_heads": 8, "max_position_embeddings": 128000,
            "rope_parameters": {**ROPE, "mrope_section": [16, 24, 24]}, "tie_word_embeddings": False,
        },
        {"depth": 32, "hidden_size": 1280, "out_hidden_size": 5120, "intermediate_size": 3456, "num_heads": 16},
    ),
    # Qwen2.5-VL-72B-Instruct's.
    "72b": (
        {
            "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 128000,
            "rope_parameters": {**ROPE, "mrope_section": [16, 24, 24]}, "tie_word_embeddings": False,
        },
        {"depth": 32, "hidden_size": 1280, "out_hidden_size": 8192, "intermediate_size": 3456, "num_heads": 16},
    ),
    "small": (
        {
            "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 128000,
            "rope_parameters": {**ROPE, "mrope_section": [4, 6, 6]}, "tie_word_embeddings": False,
        },
        {
            "depth": 2, "hidden_size": 64, "out_hidden_size": 256, "intermediate_size": 128, "num_heads": 2,
            "fullatt_block_indexes": [1],
        },
    ),
    # To see that a script runs.
    "tiny": (
        {
            "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128000,
            "rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}, "tie_word_embeddings": False,
        },
        {
            "depth": 1, "hidden_size": 16, "out_hidden_size": 64, "intermediate_size": 24, "num_heads": 2,
            "fullatt_block_indexes": [],
        },
    ),
}  # fmt: skip


def build(shape: str, device: str, dtype: torch.dtype | None = None, **changes) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of a shape with random weights: bfloat16 on a GPU, float32 on a CPU, where no dtype is given.

    changes: another vocab_size, other ids of special tokens.
    """
    with torch.device(device):
        return new_model(shape, dtype or (torch.bfloat16 if device == "cuda" else torch.float32), **changes)


def new_model(shape: str, dtype: torch.dtype, **changes) -> Qwen2_5_VLForConditionalGeneration:
    text, vision = SHAPES[shape]
    text = text | {key: changes.pop(key) for key in ("vocab_size",) if key in changes}
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **IDS | changes)
    )
    torch.set_default_dtype(torch.float32)
    logger.setLevel("ERROR")  # every answer is cut here
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def build_spread(shape: str, devices: list[str], part: float | None = None) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of a shape whose layers lie on several devices by accelerate, as device_map="auto" puts them.

    The random weights come to where they belong one by one: no device ever holds them all. part: of the weights, on
    each device but the last; equal parts by default.
    """
    from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights

    dtype = torch.bfloat16 if "cuda" in devices[0] else torch.float32
    with init_empty_weights():
        model = new_model(shape, dtype)
    whole = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    # The last device takes what is left, as under "auto", where it is the largest part that is not to be split.
    limit = int(1.03 * whole / len(devices) if part is None else part * whole)
    limits = dict.fromkeys(devices[:-1], limit) | {devices[-1]: 2 * whole}
    keys = [torch.device(device).index if "cuda" in device else device for device in limits]
    places = infer_auto_device_map(
        model, max_memory=dict(zip(keys, limits.values())), no_split_module_classes=model._no_split_modules, dtype=dtype
    )
    for owner, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            full = f"{owner}.{name}"
            place = next(at for prefix, at in places.items() if not prefix or f"{full}.".startswith(f"{prefix}."))
            value = torch.empty(weight.shape, dtype=dtype, device=devices[0] if place == "cpu" else place)
            value = value.fill_(float(name == "weight")) if weight.ndim == 1 else value.normal_(0, 0.02)
            module._parameters[name] = torch.nn.Parameter(value.to(place), requires_grad=False)
    return dispatch_model(model, places, force_hooks=True)


def prompt(model: Qwen2_5_VLForConditionalGeneration, length: int) -> dict[str, torch.Tensor]:
    """Inputs of `length` tokens: a picture, then random text."""
    rows, columns = IMAGE_GRID
    count = rows * columns // 4
    ids = torch.randint(
        10, model.config.text_config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)
    )
    ids[0, 4], ids[0, 5 : 5 + count], ids[0, 5 + count] = 1, 3, 2
    patch_values = 3 * 2 * 14 * 14
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 3).long(),
        "pixel_values": torch.randn(rows * columns, patch_values, generator=torch.Generator().manual_seed(1)),
        "image_grid_thw": torch.tensor([[1, rows, columns]]),
    }
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None) for key, value in inputs.items()
    }


def greedy(tokens: int) -> dict:
    """Generation of exactly so many tokens."""
    return {
        "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False,
        "temperature": None, "top_p": None, "top_k": None,
    }  # fmt: skip


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
