"""Tiny random models at the geometry of published checkpoints, and one of each image-text-to-text type.

Widths, depths and vocabularies shrink; tiles, patches, merges and whatever else the processor decides stay.
"""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass, field
from typing import Any

import tiny_models as tiny
import torch
import transformers as t
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

TYPES = tuple(sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
LAYERS = 2
SMALL = {
    "hidden_size": 32, "d_model": 32, "embed_dim": 32, "n_embd": 32, "dim": 32, "out_hidden_size": 32, "width": 32,
    "intermediate_size": 48, "mlp_dim": 48, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
    "num_hidden_layers": LAYERS, "depth": LAYERS, "num_layers": LAYERS, "num_attention_heads": 4, "num_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "attention_heads": 4, "projection_dim": 32, "text_hidden_size": 32, "num_blocks": 1,
    "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "n_layers": LAYERS, "vision_output_dim": 64,
    "projector_hidden_size": 32, "projector_input_dim": 32, "projector_output_dim": 32, "base_channels": 32,
    "num_res_blocks": 1, "latent_channels": 32, "codebook_size": 16, "num_embeddings": 16, "adapter_in_dim": 32,
    "adapter_out_dim": 32, "adapter_input_size": 32, "downsample_hidden_size": 32, "vision_hidden_size": 32,
    "alignment_intermediate_size": 64,
}  # fmt: skip
DROPPED = ("model_type", "transformers_version", "architectures", "per_layer_config", "dtype", "rope_theta")


@dataclass(frozen=True)
class Geometry:
    """A model type, what a published checkpoint changes of its defaults, and which checkpoints those are."""

    model_type: str
    stands_for: str = ""
    config: dict = field(default_factory=dict)
    """Changes of the configuration."""
    image: dict = field(default_factory=dict)
    """Settings of the image processor."""
    processor: dict = field(default_factory=dict)
    """Further arguments of the processor."""
    placeholder: str | None = None
    """What the chat template puts where a picture belongs; "" for no template."""
    image_class: str = ""
    """Of the image processor, where it is not the type's own. By name, since not every transformers has every class."""
    video_class: str = ""
    audio_class: str = ""
    processor_class: str = ""
    image_token: str | None = None
    """What stands for a piece of a picture in the prompt, where it is not the placeholder of the whole."""


def shrink(config: dict, vocabulary: int) -> dict:
    """The same configuration, narrow and shallow."""
    depth = next((config[k] for k in ("num_hidden_layers", "depth", "num_layers") if isinstance(config.get(k), int)), 0)
    special, found = ("pad_token_id", "bos_token_id", "eos_token_id"), {}
    for key, value in config.items():
        if key in DROPPED:
            continue
        if isinstance(value, dict) and key.endswith("config"):
            value = shrink(value, vocabulary) | {k: value[k] for k in ("model_type",) if k in value}
        elif key in SMALL and type(value) is int:
            value = min(value, SMALL[key])
        elif "vocab_size" in key and type(value) is int:
            value = vocabulary
        elif isinstance(value, (list, tuple)) and (len(value) == depth or key.endswith("layer_types")):
            value = list(value)[:LAYERS]
        elif key in special and value is not None:
            value = 256 + special.index(key)
        found[key] = value
    if "kv_lora_rank" in found:  # every head has keys of its own
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found


def merged(config: dict, changes: dict) -> dict:
    """A nested configuration with changes."""
    return config | {k: merged(config.get(k) or {}, v) if type(v) is dict else v for k, v in changes.items()}


class _Underscored(t.PreTrainedTokenizerFast):
    """As sentencepiece's, which puts a sign before every text."""

    def __call__(self, text: str, *args: Any, **kwargs: Any) -> Any:
        return super().__call__("_" + text, *args, **kwargs)


def _tokenizer(processor_class: type) -> Any:
    """A byte tokenizer with every token, and every name of a token, that the source of a processor speaks of."""
    source = inspect.getsource(inspect.getmodule(processor_class))
    tokens = re.findall(r"""["']([<|][^"'\s{}]{1,40}[>|]|\[[A-Z_]{2,20}\]|\]<\][^"'{}]+\[>\[)["']""", source)
    names = re.findall(r"""tokenizer(?:\.|, ")(\w+_token)\b""", source)
    special = {name: f"<{name}>" for name in names if name.split("_")[0] not in ("bos", "eos", "pad", "unk", "add")}
    special |= tiny.SPECIAL
    core = tiny.byte_tokenizer(tuple(dict.fromkeys(("<pad>", "<bos>", "<eos>", "<unk>", *special.values(), *tokens))))
    if re.search(r"""\n {8}self\.image_token = ["']\S+\n""", source):  # and asks no tokenizer for it
        special = {name: token for name, token in special.items() if name not in ("image_token", "video_token")}
    kind = _Underscored if "strip off the underscore" in source else t.PreTrainedTokenizerFast
    return kind(
        tokenizer_object=core.backend_tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        unk_token="<unk>", extra_special_tokens=special,
    )  # fmt: skip


def _found(mapping: Any, config_class: type, name: str = "") -> Any:
    """A class by its name, else what a mapping has for a configuration, or the larger model that it is a part of."""
    if name:
        return getattr(t, name)
    whole = model_type_to_module_name(config_class.model_type)
    kinds = [config_class, *([t.CONFIG_MAPPING[whole]] if whole in t.CONFIG_MAPPING else [])]
    found = next((mapping[kind] for kind in kinds if kind in mapping), None)
    return found.get("torchvision") or found.get("pil") if isinstance(found, dict) else found


def _own_processor(config_class: type) -> type | None:
    """The processor that is written beside a configuration, where no mapping names it."""
    try:
        module = importlib.import_module(config_class.__module__.replace(".configuration_", ".processing_"))
    except ImportError:
        return None
    return next(getattr(module, name) for name in module.__all__ if name.endswith("Processor"))


def _processor(geometry: Geometry, config: Any, tokenizer: Any, processor_class: type) -> Any:
    parts: dict[str, Any] = {}
    vision = getattr(config, "vision_config", config)
    for key in inspect.signature(processor_class.__init__).parameters:
        if key in geometry.processor:
            continue
        if key == "image_processor":
            parts[key] = _found(t.IMAGE_PROCESSOR_MAPPING, type(config), geometry.image_class)(**geometry.image)
        elif key.endswith("tokenizer"):
            parts[key] = tokenizer
        elif key == "video_processor":
            parts[key] = _found(t.VIDEO_PROCESSOR_MAPPING, type(config), geometry.video_class)()
        elif key in ("feature_extractor", "audio_processor"):
            parts[key] = _found(t.FEATURE_EXTRACTOR_MAPPING, type(config), geometry.audio_class)()
        elif key in ("patch_size", "vision_feature_select_strategy"):
            value = getattr(vision, key, getattr(config, key, None))
            parts |= {} if value is None else {key: value}
    return processor_class(**parts | geometry.processor)


def configuration(geometry: Geometry, vocabulary: int = 512) -> Any:
    """A tiny configuration with the geometry's changes."""
    config_class = t.CONFIG_MAPPING[geometry.model_type]
    config = config_class(**merged(shrink(config_class().to_dict(), vocabulary), geometry.config))
    if getattr(config, "image_token_id", 0) is None:  # left to the checkpoint
        config.image_token_id = 0
    return config


def build(geometry: Geometry) -> tuple[Any, Any]:
    """(model, processor)."""
    config_class = t.CONFIG_MAPPING[geometry.model_type]
    processor_class = _found(t.PROCESSOR_MAPPING, config_class, geometry.processor_class)
    processor_class = processor_class or _own_processor(config_class)
    tokenizer = _tokenizer(processor_class)
    config = configuration(geometry, len(tokenizer))
    processor = _processor(geometry, config, tokenizer, processor_class)
    token = str(getattr(processor, "image_token", None) or "<image>")
    processor.chat_template = tiny._chat_template(token if geometry.placeholder is None else geometry.placeholder)
    token_id = getattr(processor, "image_token_id", None)
    if geometry.image_token:
        token_id = tokenizer.convert_tokens_to_ids(geometry.image_token)
    for holder in (config, getattr(config, "vision_config", None)):
        for key in ("image_token_id", "image_token_index"):
            if hasattr(holder, key):
                setattr(holder, key, tokenizer.convert_tokens_to_ids(token) if token_id is None else token_id)
    torch.manual_seed(0)
    model = tiny.model_class(config)(config).float().eval()
    for parameter in model.parameters():  # as a trained model has them
        if parameter.abs().max() < 1e-6:
            torch.nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size > module.stride:
            torch.nn.init.normal_(module.weight, std=0.5)
    return model, processor


def _square(side: int) -> dict:
    return {"height": side, "width": side}


def _pinpoints(side: int, *shapes: tuple[int, int]) -> list[list[int]]:
    return [[rows * side, columns * side] for rows, columns in shapes]


SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, "image_size": 384, "patch_size": 14}
SO400M = {"vision_config": tiny.SIGLIP | SIGLIP}
CLIP = {"vision_config": tiny.CLIP | {"image_size": 336}}
LLAVA_NEXT = _pinpoints(336, (1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
ONEVISION = _pinpoints(384, *((r, c) for r in range(1, 7) for c in range(1, 7)))
WIDE_OR_TALL = (*((1, c) for c in range(1, 11)), *((r, 1) for r in range(2, 11)))
GRANITE = _pinpoints(384, *WIDE_OR_TALL, (2, 2), (2, 3), (2, 4), (2, 5), (3, 2), (3, 3), (4, 2), (5, 2))
ROPE = {"text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}}
QWEN = "<image>"
CROP_336 = {"size": {"shortest_edge": 336}, "crop_size": _square(336)}
ONE_CLASS_TOKEN = {"num_additional_image_tokens": 1, "patch_size": 14, "vision_feature_select_strategy": "default"}
NO_CLASS_TOKEN = {"num_additional_image_tokens": 0, "patch_size": 14, "vision_feature_select_strategy": "full"}


def _smolvlm(name: str, tile: int, patch: int, scale: int, stands_for: str) -> Geometry:
    config = {"vision_config": {"image_size": tile, "patch_size": patch}, "scale_factor": scale}
    image = {"size": {"longest_edge": 4 * tile}, "max_image_size": {"longest_edge": tile}}
    return Geometry(name, stands_for, config, image, {"image_seq_len": (tile // patch // scale) ** 2}, "<image>")


def _pixtral(kind: str, patch: int, merge: int, longest: int, stands_for: str, **config: Any) -> Geometry:
    vision = {"vision_config": tiny.PIXTRAL | {"patch_size": patch, "image_size": longest}}
    processor = {
        "patch_size": patch, "spatial_merge_size": merge, "image_token": "<image>", "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    }  # fmt: skip
    image = {"size": {"longest_edge": longest}, "patch_size": _square(patch)}
    return Geometry(kind, stands_for, vision | config, image, processor, image_class="PixtralImageProcessor")


PUBLISHED = {
    "LLaVA 1.5": Geometry("llava", "llava-1.5-7b, -13b; bakLlava", CLIP, CROP_336, ONE_CLASS_TOKEN),
    "LLaVA-Interleave": Geometry(
        "llava",
        "llava-interleave-qwen-0.5b, -7b",
        SO400M | {"vision_feature_select_strategy": "full"},
        {"size": _square(384)},
        NO_CLASS_TOKEN,
        image_class="SiglipImageProcessor",
    ),
    "LLaVA 1.6": Geometry(
        "llava_next",
        "llava-v1.6-mistral-7b, -vicuna-7b, -vicuna-13b, -34b",
        CLIP | {"image_grid_pinpoints": LLAVA_NEXT},
        CROP_336 | {"image_grid_pinpoints": LLAVA_NEXT},
        ONE_CLASS_TOKEN,
    ),
    "Granite Vision": Geometry(
        "llava_next",
        "granite-vision-3.1-2b, -3.2-2b, -3.3-2b",
        SO400M
        | {"image_grid_pinpoints": GRANITE, "vision_feature_layer": [-2, -1], "vision_feature_select_strategy": "full"},
        {"size": {"shortest_edge": 384}, "crop_size": _square(384), "image_grid_pinpoints": GRANITE},
        NO_CLASS_TOKEN,
    ),
    "LLaVA-OneVision": Geometry(
        "llava_onevision",
        "llava-onevision-qwen2-0.5b, -7b, -72b",
        SO400M | {"image_grid_pinpoints": ONEVISION, "vision_aspect_ratio": "anyres_max_9"},
        {"size": _square(384), "image_grid_pinpoints": ONEVISION},
        {"num_image_tokens": 729, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
    ),
    "SmolVLM 256M, 500M": _smolvlm("smolvlm", 512, 16, 4, "SmolVLM-256M, -500M; SmolVLM2-256M, -500M"),
    "SmolVLM 2.2B": _smolvlm("smolvlm", 384, 14, 3, "SmolVLM2-2.2B"),
    "SmolVLM 2.2B (idefics3)": _smolvlm("idefics3", 384, 14, 3, "SmolVLM-2.2B (an idefics3)"),
    "Idefics3": _smolvlm("idefics3", 364, 14, 2, "Idefics3-8B-Llama3"),
    "InternVL": Geometry(
        "internvl",
        "InternVL2.5-1B to -78B, InternVL3-1B to -78B (-hf)",
        {"vision_config": {"image_size": [448, 448], "patch_size": [14, 14]}, "image_seq_length": 256},
        {"size": _square(448), "min_patches": 1, "max_patches": 12, "crop_to_patches": True},
        {"image_seq_length": 256},
    ),
    "Qwen2-VL": Geometry("qwen2_vl", "Qwen2-VL-2B, -7B, -72B; Reason-RFT", ROPE, placeholder=QWEN),
    "Qwen2.5-VL": Geometry("qwen2_5_vl", "Qwen2.5-VL-3B, -7B, -32B, -72B", ROPE, placeholder=QWEN),
    "Qwen3-VL": Geometry(
        "qwen3_vl",
        "Qwen3-VL-2B to -32B",
        ROPE | {"vision_config": {"deepstack_visual_indexes": [0]}},
        {"patch_size": 16},
        placeholder=QWEN,
    ),
    "Gemma 3": Geometry(
        "gemma3",
        "gemma-3-4b, -12b, -27b; medgemma",
        {"vision_config": tiny.SIGLIP | {"image_size": 896}, "mm_tokens_per_image": 256},
        {"size": _square(896)},
        {"image_seq_length": 256},
        "<boi>",
        image_token="<image>",
    ),
    "PaliGemma 224": Geometry(
        "paligemma",
        "paligemma-3b-*-224, paligemma2-*-224",
        {"vision_config": tiny.SIGLIP | {"image_size": 224}},
        {"size": _square(224), "image_seq_length": 256},
        placeholder="",
    ),
    "PaliGemma 448": Geometry(
        "paligemma",
        "paligemma-3b-*-448, paligemma2-*-448",
        {"vision_config": tiny.SIGLIP | {"image_size": 448}},
        {"size": _square(448), "image_seq_length": 1024},
        placeholder="",
    ),
    "Pixtral": _pixtral(
        "llava", 16, 1, 1024, "pixtral-12b", vision_feature_select_strategy="full", vision_feature_layer=-1
    ),
    "Mistral 3.1": _pixtral("mistral3", 14, 2, 1540, "Mistral-Small-3.1-24B, -3.2-24B", spatial_merge_size=2),
    "Phi-4": Geometry(
        "phi4_multimodal",
        "Phi-4-multimodal-instruct",
        {"vision_config": {"image_size": 448, "patch_size": 14, "crop_size": 448}},
        {"dynamic_hd": 36},
        placeholder="<image>",
    ),
    "Llama 3.2 Vision": Geometry(
        "mllama",
        "Llama-3.2-11B-Vision, -90B-Vision",
        {
            "vision_config": {
                "image_size": 560,
                "patch_size": 14,
                "intermediate_layers_indices": [0],
                "num_global_layers": 1,
                "vision_output_dim": 64,
                "max_num_tiles": 4,
            },
            "text_config": {"num_hidden_layers": 2, "cross_attention_layers": [1]},
        },
        {"size": _square(560), "max_image_tiles": 4},
        placeholder="<image>",
    ),
}

# Types that need more than their own defaults; those without an entry here or above are built from these alone.
SHORT_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
CODES = {  # of a picture, and which token each is: as chameleon names them, and as emu3 does
    "vocabulary_map": {"<image>": 260, "<|extra_200|>": 0}
    | {f"IMGIMG{str(code).translate({48 + digit: 65 + digit for digit in range(10)})}Z": code for code in range(16)}
    | {f"<|visual token {code:06}|>": code + 16 for code in range(16)}
}
SIGLIP_384 = {"vision_config": {"image_size": 384, "patch_size": 16}}
CONFIGURED = {
    "gemma4": Geometry(
        "gemma4",
        config=tiny.FAMILIES["gemma4"].config | {"text_config": tiny.FAMILIES["gemma4"].text},
        image={"patch_size": 8, "max_soft_tokens": 70},
    ),
    "apertus1p5": Geometry(
        "apertus1p5",
        config={
            "text_config": {"vocab_size": 512},
            "audio_config": {"codebook_dim": 32},
            "image_token_offset": 400,
            "audio_token_offset": 416,
        },
    ),
    "chameleon": Geometry(
        "chameleon",
        config=CODES | {"vq_config": {"resolution": 128}},
        image={"size": {"shortest_edge": 128}, "crop_size": _square(128)},
        processor={"image_seq_length": 64},
    ),
    "emu3": Geometry(
        "emu3", config=CODES | {"vq_config": {"hidden_size": 128}}, image={"min_pixels": 64**2, "max_pixels": 128**2}
    ),
    "cohere_compass": Geometry(
        "cohere_compass",
        config={
            "text_config": {"rope_parameters": {"full_attention": SHORT_ROPE}},
            "vision_config": {"deepstack_visual_indexes": [0]},
        },
        image={"patch_size": 16},
    ),
    "cosmos3_edge": Geometry("cosmos3_edge", config=ROPE),
    "cosmos3_omni": Geometry(
        "cosmos3_omni",
        config=ROPE | {"vision_config": {"deepstack_visual_indexes": [0]}},
        image={"patch_size": 16},
        processor_class="Qwen3VLProcessor",
        video_class="Qwen3VLVideoProcessor",
    ),
    **{
        name: Geometry(
            name,
            config={
                "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
                "vision_config": {"sam_config": {"downsample_channels": [32, 32], "global_attn_indexes": [1]}},
            },
        )
        for name in ("deepseek_ocr2", "unlimited_ocr")
    },
    "diffusion_gemma": Geometry(
        "diffusion_gemma",
        config={"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}},
        image_class="Gemma4ImageProcessor",
        video_class="Gemma4VideoProcessor",
        audio_class="Gemma4AudioFeatureExtractor",
    ),
    "dots3_note": Geometry("dots3_note", image={"temporal_patch_size": 1}),
    "fast_vlm": Geometry(
        "fast_vlm",
        config={
            "vision_config": {"hidden_size": 64, "model_args": {"layers": [1] * 5, "embed_dims": [8, 16, 32, 32, 32]}}
        },
        image={"size": {"shortest_edge": 1024}, "crop_size": _square(1024)},
        processor={"patch_size": 64, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"},
        processor_class="LlavaProcessor",
        image_class="CLIPImageProcessor",
    ),
    "fuyu": Geometry("fuyu", placeholder=""),
    "granite_docling": Geometry("granite_docling", image={"max_patches": 4}),
    "got_ocr2": Geometry("got_ocr2", image={"size": _square(1024)}),
    "gemma4_unified": Geometry("gemma4_unified", config={"vision_config": {}}),
    "glmga": Geometry("glmga", config=ROPE, processor_class="Glm46VProcessor"),
    "gemma3n": Geometry(
        "gemma3n",
        config={
            "text_config": {"num_kv_shared_layers": 0},
            "vision_config": {"hidden_size": 2048, "model_args": {"channel_multiplier": 0.125}},
        },
    ),
    "nemotron_h_omni": Geometry("nemotron_h_omni", audio_class="ParakeetFeatureExtractor"),
    **{name: Geometry(name, config={"out_hidden_size": 128}) for name in ("muse_glimmer", "muse_spark")},
    "perception_lm": Geometry(
        "perception_lm",
        config={
            "vision_config": {
                "architecture": "vit_pe_lang_large_patch14_448",
                "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 4, "global_pool": ""},
            },
            "projector_pooling_ratio": 2,
        },
        image={"tile_size": 448, "max_num_tiles": 4},
        processor={"patch_size": 14, "pooling_ratio": 2},
    ),
    "pp_chart2table": Geometry("pp_chart2table", placeholder=256 * "<image>", image_token="<image>"),
    "ernie4_5_vl_moe": Geometry("ernie4_5_vl_moe", config=ROPE),
    "hunyuan_vl": Geometry(
        "hunyuan_vl",
        config={"text_config": ROPE["text_config"] | {"head_dim": 8}},
        placeholder="<image_start_token><image><image_end_token>",
    ),
    "glm4v_moe": Geometry(
        "glm4v_moe",
        config={"text_config": ROPE["text_config"] | {"head_dim": 16}},
        image_class="Glm4vImageProcessor",
        video_class="Glm4vVideoProcessor",
    ),
    "glm_ocr": Geometry(
        "glm_ocr",
        config=ROPE,
        processor_class="Glm46VProcessor",
        image_class="Glm46VImageProcessor",
        video_class="Glm46VVideoProcessor",
    ),
    "molmo2": Geometry(
        "molmo2",
        config={"adapter_config": {"vision_feature_layer": [1, 0], "initializer_range": 0.3}},
        image_token="<im_patch>",
    ),
    "qwen3_vl_moe": Geometry(
        "qwen3_vl_moe",
        config=ROPE | {"vision_config": {"deepstack_visual_indexes": [0]}},
        image={"patch_size": 16},
        image_class="Qwen2VLImageProcessor",
        video_class="Qwen3VLVideoProcessor",
    ),
    "aria": Geometry("aria", config={"vision_config": {"image_size": 980, "patch_size": 14}}),
    "aya_vision": Geometry(
        "aya_vision",
        config={"vision_config": tiny.SIGLIP | {"image_size": 364}, "downsample_factor": 2},
        image={"size": _square(364), "crop_to_patches": True, "max_patches": 12},
        processor={"patch_size": 14, "img_size": 364, "downsample_factor": 2},
    ),
    "glm4v": Geometry("glm4v", config=ROPE),
    "qwen3_5": Geometry("qwen3_5", config=ROPE, image={"patch_size": 16}),
    "deepseek_vl": Geometry("deepseek_vl", config=SIGLIP_384),
    "deepseek_vl_hybrid": Geometry(
        "deepseek_vl_hybrid", config=SIGLIP_384 | {"high_res_vision_config": {"global_attn_indexes": [1]}}
    ),
    "glm46v": Geometry("glm46v", config=ROPE),
    "paddleocr_vl": Geometry("paddleocr_vl", config=ROPE),
    "kimi_k25": Geometry(
        "kimi_k25",
        config={
            "text_config": {"head_dim": 64},
            "projection_hidden_size": 32,
            "vision_config": {"projection_hidden_size": 32},
        },
    ),
    "lfm3_vl": Geometry("lfm3_vl", image={"patch_size": 16}),
    "llama4": Geometry(
        "llama4",
        config={
            "vision_config": {"image_size": 336, "patch_size": 14, "intermediate_size": 128, "vision_output_dim": 32}
        },
        placeholder="<|image|>",
        image_token="<|patch|>",
    ),
    "llava_next_video": Geometry("llava_next_video", config=CLIP, image=CROP_336, processor=ONE_CLASS_TOKEN),
    **{
        name: Geometry(name, config={"insert_layer_id": 0}, image={"patch_size": 16})
        for name in ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")
    },
    "mistral_large4": _pixtral("mistral_large4", 14, 2, 1540, "", spatial_merge_size=2),
    "ovis2": Geometry(
        "ovis2",
        config={"vision_config": {"image_size": 448, "patch_size": 14, "hidden_stride": 2}},
        image={"size": _square(448)},
        processor={"image_seq_length": 256},
        image_token="<IMG_ATOM>",
    ),
    "qianfan_ocr": Geometry(
        "qianfan_ocr",
        config={"vision_config": {"image_size": [448, 448], "patch_size": [14, 14]}, "image_seq_length": 256},
        image={"size": _square(448)},
        processor={"image_seq_length": 256},
    ),
    "qwen2_5_omni_thinker": Geometry("qwen2_5_omni_thinker", config=ROPE | {"vision_start_token_id": 0}),
    "qwen3_omni_moe_thinker": Geometry(
        "qwen3_omni_moe_thinker",
        config=ROPE | {"vision_start_token_id": 0, "vision_config": {"deepstack_visual_indexes": [0]}},
        image={"patch_size": 16},
    ),
    "qwen3_5_moe": Geometry("qwen3_5_moe", config=ROPE, image={"patch_size": 16}),
    "qwen4_exp": Geometry("qwen4_exp", config=ROPE, image={"patch_size": 16}),
    "shieldgemma2": Geometry(
        "shieldgemma2",
        config={"vision_config": tiny.SIGLIP | {"image_size": 896}, "mm_tokens_per_image": 256},
        image={"size": _square(896)},
        processor={"image_seq_length": 256},
        image_token="<image>",
    ),
    "step3p7": Geometry("step3p7", config={"text_config": {"sliding_window": 24}}),
    "video_llama_3": Geometry("video_llama_3", image={"patch_size": 16}),
    "video_llava": Geometry("video_llava", processor={"patch_size": 14, "num_additional_image_tokens": 1}),
    "vipllava": Geometry(
        "vipllava",
        config=CLIP | {"vision_feature_layers": [-2, -1]},
        image=CROP_336,
        processor=ONE_CLASS_TOKEN,
        image_class="CLIPImageProcessor",
    ),
}
OF_TYPE = {geometry.model_type: geometry for geometry in reversed(PUBLISHED.values())} | CONFIGURED
