"""Tiny random checkpoints, built from configurations and written as a user's checkpoint would be."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
)  # fmt: skip
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: every character beyond ASCII is several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[2], pad_token=special[0])


def _text(vocabulary: int, rope: dict) -> dict:
    return {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096,
        "rope_parameters": rope, "tie_word_embeddings": False, "initializer_range": 0.4,
    }  # fmt: skip


def qwen_checkpoint(family: str, folder: Path) -> Path:
    """Write a tiny random checkpoint of qwen2_vl, qwen2_5_vl or qwen3_vl; returns its folder."""
    tokenizer = byte_tokenizer(QWEN_SPECIAL)
    ids = {
        "vision_start_token_id": 259, "vision_end_token_id": 260, "image_token_id": 261, "video_token_id": 262,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = _text(len(tokenizer), rope)
    patch = 16 if family == "qwen3_vl" else 14
    image_processor = Qwen2VLImageProcessor(patch_size=patch, min_pixels=56 * 56, max_pixels=400 * 400)
    if family == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": patch}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
        model_class, processor_class, video = Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLVideoProcessor()
    elif family == "qwen2_5_vl":
        vision = {
            "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
            "patch_size": patch, "window_size": 56, "fullatt_block_indexes": [1],
        }  # fmt: skip
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        model_class, processor_class, video = (
            Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor()
        )  # fmt: skip
    else:
        vision = {
            "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
            "patch_size": patch, "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        }  # fmt: skip
        config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
        model_class, processor_class, video = Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor()
    torch.manual_seed(0)
    model = model_class(config)
    model.generation_config.eos_token_id = 258
    model.save_pretrained(folder)
    processor_class(image_processor, tokenizer, video, chat_template=QWEN_TEMPLATE).save_pretrained(folder)
    return folder
