"""Tiny random checkpoints, built from configurations and written as a user's checkpoint would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as t
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
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
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
    model.generation_config.suppress_tokens = list(range(259, len(tokenizer)))
    model.save_pretrained(folder)
    processor_class(image_processor, tokenizer, video, chat_template=QWEN_TEMPLATE).save_pretrained(folder)
    return folder


# One checkpoint a family, as small as the family's own classes allow. A new family is one entry of FAMILIES.

SPECIAL = {
    "image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "video_token": "<video>",
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<image>",
    "image_boundary_token": "<fake_token_around_image>", "audio_token": "<audio>",
    "boa_token": "<boa>", "eoa_token": "<eoa>",
}  # fmt: skip
TILE = 56  # pixels; with patches of 14, a grid of 4 × 4
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": TILE, "patch_size": 14,
}  # fmt: skip
SIGLIP = CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "head_dim": 8, "image_size": 280, "patch_size": 14,
}  # fmt: skip
QWEN_VISION = {
    "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
    "patch_size": 16, "num_position_embeddings": 64,
}  # fmt: skip
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [TILE, 3 * TILE], [3 * TILE, TILE]]
SQUARE = {"height": TILE, "width": TILE}


def _family_tokenizer(more: tuple[str, ...]) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(tuple(dict.fromkeys(("<pad>", "<bos>", "<eos>", *SPECIAL.values(), *more))))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        extra_special_tokens=SPECIAL,
    )  # fmt: skip


def _chat_template(picture: str) -> str | None:
    return picture and (
        "{% for message in messages %}User: {% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + picture
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant: {% endif %}"
    )


@dataclass(frozen=True)
class Family:
    """What makes one tiny checkpoint: the pieces of its configuration and of its processor."""

    config: dict
    """Arguments of the configuration, without the text part and the image token's id."""
    processor: Callable[[PreTrainedTokenizerFast, str | None], Any]
    """From tokenizer and chat template."""
    model_type: str | None = None
    """Where it is not the family's name."""
    text: dict = field(default_factory=lambda: {"model_type": "llama"})
    """What its text configuration has beyond that of every family."""
    placeholder: str = "<image>"
    """What the chat template puts where a picture belongs; "" for no chat template."""
    more: tuple[str, ...] = ()
    """Further special tokens."""
    processor_kwargs: dict = field(default_factory=dict)
    """What a user would have to ask the processor for."""
    flat: bool = False
    """Whether the text model's settings stand in the configuration itself."""


def _llava(tokenizer, template, image_class=t.CLIPImageProcessor, strategy="default", **settings):
    crop = {"size": {"shortest_edge": TILE}, "crop_size": SQUARE} | settings
    return t.LlavaProcessor(
        image_class(**crop), tokenizer, patch_size=14, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip


def _llava_next(tokenizer, template):
    processor = t.LlavaNextImageProcessor(
        size={"shortest_edge": TILE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
    )
    return t.LlavaNextProcessor(
        processor, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip


def _llava_onevision(tokenizer, template):
    processor = t.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS)
    return t.LlavaOnevisionProcessor(
        processor, tokenizer, t.LlavaOnevisionVideoProcessor(size=SQUARE), num_image_tokens=16,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_2", chat_template=template,
    )  # fmt: skip


def _idefics3(tokenizer, template):
    processor = t.Idefics3ImageProcessor(
        size={"longest_edge": 4 * TILE}, max_image_size={"longest_edge": TILE}, do_image_splitting=True
    )
    return t.Idefics3Processor(processor, tokenizer, image_seq_len=4, chat_template=template)


def _smolvlm(tokenizer, template):
    processor = t.SmolVLMImageProcessor(size={"longest_edge": 4 * TILE}, max_image_size={"longest_edge": TILE})
    video = t.SmolVLMVideoProcessor(size={"longest_edge": TILE}, max_image_size={"longest_edge": TILE})
    return t.SmolVLMProcessor(processor, tokenizer, video, image_seq_len=4, chat_template=template)


def _gemma3(tokenizer, template):
    return t.Gemma3Processor(t.Gemma3ImageProcessor(size=SQUARE), tokenizer, chat_template=template, image_seq_length=4)


def _gemma4(tokenizer, template):
    return t.Gemma4Processor(
        t.Gemma4AudioFeatureExtractor(), t.Gemma4ImageProcessor(patch_size=8, max_soft_tokens=70), tokenizer,
        t.Gemma4VideoProcessor(), chat_template=template,
    )  # fmt: skip


def _paligemma(tokenizer, template):
    processor = t.SiglipImageProcessor(size=SQUARE)
    processor.image_seq_length = 16
    return t.PaliGemmaProcessor(processor, tokenizer, chat_template=template)


def _internvl(tokenizer, template):
    processor = t.GotOcr2ImageProcessor(size=SQUARE, min_patches=1, max_patches=6)
    return t.InternVLProcessor(
        processor, tokenizer, t.InternVLVideoProcessor(size=SQUARE), image_seq_length=4, chat_template=template
    )


def _pixtral(tokenizer, template, merge=1):
    processor = t.PixtralImageProcessor(size={"longest_edge": 140}, patch_size={"height": 14, "width": 14})
    return t.PixtralProcessor(
        processor, tokenizer, patch_size=14, spatial_merge_size=merge, image_token="<image>",
        image_break_token="<break>", image_end_token="<end>", chat_template=template,
    )  # fmt: skip


def _mllama(tokenizer, template):
    return t.MllamaProcessor(t.MllamaImageProcessor(size=SQUARE), tokenizer, chat_template=template)


def _phi4_multimodal(tokenizer, template):
    processor = t.Phi4MultimodalImageProcessor(dynamic_hd=4)  # it counts on tiles of 448 pixels
    return t.Phi4MultimodalProcessor(processor, t.Phi4MultimodalFeatureExtractor(), tokenizer, chat_template=template)


def _aya_vision(tokenizer, template):
    processor = t.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    return t.AyaVisionProcessor(
        processor, tokenizer, patch_size=14, img_size=TILE, image_token="<slot>", downsample_factor=2,
        start_of_img_token="<img>", end_of_img_token="</img>", img_patch_token="<image>", img_line_break_token="<br>",
        tile_token="TILE", tile_global_token="TILE_GLOBAL",
        chat_template=template and template.replace("<image>", "<slot>"),
    )  # fmt: skip


def _glm4v(tokenizer, template):
    processor = t.Glm4vImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 2 * 280 * 280})
    return t.Glm4vProcessor(processor, tokenizer, t.Glm4vVideoProcessor(), chat_template=template)


def _idefics2(tokenizer, template):
    processor = t.Idefics2ImageProcessor(
        size={"shortest_edge": TILE, "longest_edge": 2 * TILE}, do_image_splitting=False
    )
    return t.Idefics2Processor(processor, tokenizer, image_seq_len=4, chat_template=template)


def _qwen3_vl(tokenizer, template):
    processor = Qwen2VLImageProcessor(patch_size=16, min_pixels=64 * 64, max_pixels=320 * 320)
    return Qwen3VLProcessor(processor, tokenizer, Qwen3VLVideoProcessor(), chat_template=template)


IDEFICS_TOKENS = (
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)  # fmt: skip
GEMMA_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 24}
GEMMA_TEXT = {"query_pre_attn_scalar": 8, "hidden_activation": "gelu_pytorch_tanh", **GEMMA_SLIDING}
IDEFICS_VISION = {k: v for k, v in CLIP.items() if k != "model_type"}
AYA_TOKENS = ("<slot>", "<br>", "TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 10)))
GLM_TOKENS = ("<|image|>", "<|video|>")
PIXTRAL_TOKENS = ("<break>", "<end>")
QWEN_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}

FAMILIES = {
    "qwen3_vl_moe": Family(
        {"vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]}}, _qwen3_vl, placeholder="<img><image></img>",
        text={"rope_parameters": QWEN_ROPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "qwen3_5": Family(
        {"vision_config": QWEN_VISION}, _qwen3_vl, placeholder="<img><image></img>",
        text={
            "rope_parameters": QWEN_ROPE | {"partial_rotary_factor": 1.0}, "linear_num_key_heads": 2,
            "layer_types": ["linear_attention", "full_attention", "full_attention"], "linear_num_value_heads": 4,
            "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        },
    ),
    "llava": Family({"vision_config": CLIP}, _llava),
    "llava_padded": Family(
        {"vision_config": CLIP}, lambda *args: _llava(*args, image_class=t.LlavaImageProcessor, do_pad=True),
        model_type="llava",
    ),
    "llava_full": Family(
        {"vision_config": CLIP, "vision_feature_select_strategy": "full"}, lambda *args: _llava(*args, strategy="full"),
        model_type="llava",
    ),
    "llava_next": Family({"vision_config": CLIP, "image_grid_pinpoints": PINPOINTS}, _llava_next),
    "llava_onevision": Family(
        {"vision_config": SIGLIP, "image_grid_pinpoints": PINPOINTS, "vision_aspect_ratio": "anyres_max_2"},
        _llava_onevision, text={"model_type": "qwen2"},
    ),
    "idefics3": Family({"vision_config": IDEFICS_VISION}, _idefics3, more=IDEFICS_TOKENS),
    "smolvlm": Family({"vision_config": IDEFICS_VISION}, _smolvlm, more=IDEFICS_TOKENS),
    "gemma3": Family(
        {"vision_config": SIGLIP, "mm_tokens_per_image": 4}, _gemma3, text=GEMMA_TEXT, placeholder="<boi>"
    ),
    "gemma3_pan_and_scan": Family(
        {"vision_config": SIGLIP, "mm_tokens_per_image": 4}, _gemma3, model_type="gemma3", text=GEMMA_TEXT,
        placeholder="<boi>", processor_kwargs={"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 24},
    ),
    "gemma4": Family(
        {
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 2, "head_dim": 8, "patch_size": 8, "pooling_kernel_size": 3,
                "position_embedding_size": 256,
            },
        },
        _gemma4,
        text={
            "hidden_size_per_layer_input": 8, "num_hidden_layers": 6, "num_kv_shared_layers": 4, "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 24,
        },
    ),
    "paligemma": Family(
        {"vision_config": SIGLIP, "projection_dim": 32}, _paligemma, text={"model_type": "gemma"}, placeholder=""
    ),
    "paligemma2": Family(
        {"vision_config": SIGLIP, "projection_dim": 32}, _paligemma, model_type="paligemma", placeholder="",
        text={"model_type": "gemma2", "attn_logit_softcapping": 2.0, **GEMMA_TEXT},
    ),
    "internvl": Family(
        {
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                "image_size": [TILE, TILE], "patch_size": [14, 14],
            },
            "image_seq_length": 4,
        },
        _internvl, text={"model_type": "qwen2"},
    ),
    "pixtral": Family(
        {"vision_config": PIXTRAL, "vision_feature_select_strategy": "full", "vision_feature_layer": -1}, _pixtral,
        model_type="llava", text={"model_type": "mistral", "sliding_window": 24}, more=PIXTRAL_TOKENS,
    ),
    "mistral3": Family(
        {"vision_config": PIXTRAL, "spatial_merge_size": 2}, lambda *args: _pixtral(*args, merge=2),
        text={"model_type": "mistral", "sliding_window": None}, more=PIXTRAL_TOKENS,
    ),
    "phi4_multimodal": Family(
        {
            "vision_config": IDEFICS_VISION | {"image_size": 448, "crop_size": 448},
            "audio_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_blocks": 1, "num_attention_heads": 2,
                "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 16,
            },
            "resid_pdrop": 0.0,
        },
        _phi4_multimodal, flat=True,
    ),
    "mllama": Family(
        {
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_global_layers": 1,
                "attention_heads": 2, "image_size": TILE, "patch_size": 14, "vision_output_dim": 32,
                "intermediate_layers_indices": [1],
            },
        },
        _mllama, text={"num_hidden_layers": 4, "cross_attention_layers": [1, 3]},
    ),
}  # fmt: skip
# Families that nobody named, and families that are refused.
OTHERS = {
    "aya_vision": Family(
        {"vision_config": SIGLIP, "downsample_factor": 2, "vision_feature_select_strategy": "full"}, _aya_vision,
        text={"model_type": "cohere2", "sliding_window": 24}, more=AYA_TOKENS,
    ),
    "glm4v": Family(
        {
            "vision_config": {
                "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
                "patch_size": 14, "image_size": 112,
            },
        },
        _glm4v, text={"rope_parameters": QWEN_ROPE | {"partial_rotary_factor": 1.0}}, placeholder="<img><image></img>",
        more=GLM_TOKENS,
    ),
    "internvl_gpt_oss": Family(
        {
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                "image_size": [TILE, TILE], "patch_size": [14, 14],
            },
            "image_seq_length": 4,
        },
        _internvl, model_type="internvl",
        text={"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
    ),
    "idefics2": Family(
        {
            "vision_config": IDEFICS_VISION,
            "perceiver_config": {
                "hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
                "resampler_head_dim": 8, "num_key_value_heads": 2,
            },
        },
        _idefics2, text={"model_type": "mistral"}, more=IDEFICS_TOKENS,
    ),
}  # fmt: skip
QWEN_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ALL_FAMILIES = (*QWEN_FAMILIES, *FAMILIES)


def family_checkpoint(name: str, folder: Path) -> Path:
    """Write a tiny random checkpoint of a family; returns its folder."""
    if name in QWEN_FAMILIES:
        return qwen_checkpoint(name, folder)
    family = (FAMILIES | OTHERS)[name]
    tokenizer = _family_tokenizer(family.more)
    ids = {key: tokenizer.convert_tokens_to_ids(value) for key, value in SPECIAL.items()}
    special = {"bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256}
    text = _text(len(tokenizer), None) | special | family.text
    text = {key: value for key, value in text.items() if value is not None or key == "sliding_window"}
    config = family.config | {"image_token_id": ids["image_token"], "video_token_id": ids["video_token"]}
    if family.flat:
        text.pop("model_type"), text.pop("head_dim")
        config["vision_config"] = config["vision_config"] | {"image_token_id": config.pop("image_token_id")}
        config["audio_config"] = config["audio_config"] | {"audio_token_id": ids["audio_token"]}
        config |= text
    else:
        config["text_config"] = text
    torch.manual_seed(0)
    config = t.AutoConfig.for_model(family.model_type or name, **config)
    model = model_class(config)(config)
    for parameter in model.parameters():  # as a trained model has them: gemma3 begins with a projector of zeros
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    # An image token in a response would ask phi4_multimodal for another picture.
    model.generation_config = t.GenerationConfig(**special, suppress_tokens=list(range(259, len(tokenizer))))
    model.save_pretrained(folder)
    family.processor(tokenizer, _chat_template(family.placeholder)).save_pretrained(folder)
    return folder


def model_class(config: Any) -> type:
    """The class that generates from pictures and text, for a configuration."""
    mappings = (t.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, t.MODEL_FOR_CAUSAL_LM_MAPPING)
    return next(mapping[type(config)] for mapping in mappings if type(config) in mapping)
