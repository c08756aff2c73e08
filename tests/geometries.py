"""Tiny random models at the geometry of published checkpoints, and one of each image-text-to-text type.

Widths, depths and vocabularies shrink; tiles, patches, merges and whatever else the processor decides stay.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import Any

import tiny_models as tiny
import torch
import transformers as t
from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor
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
    image_class: type | None = None
    """Of the image processor, where it is not the type's own."""
    video_class: type | None = None
    processor_class: type | None = None
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
    return found


def merged(config: dict, changes: dict) -> dict:
    """A nested configuration with changes."""
    return config | {k: merged(config.get(k) or {}, v) if type(v) is dict else v for k, v in changes.items()}


def _tokenizer(processor_class: type) -> Any:
    """A byte tokenizer with every token, and every name of a token, that the source of a processor speaks of."""
    source = inspect.getsource(inspect.getmodule(processor_class))
    tokens = re.findall(r"""["']([<|][^"'\s{}]{1,40}[>|]|\[[A-Z_]{2,20}\])["']""", source)
    names = re.findall(r"""tokenizer(?:\.|, ")(\w+_token)\b""", source)
    special = {name: f"<{name}>" for name in names if name.split("_")[0] not in ("bos", "eos", "pad", "unk", "add")}
    core = tiny.byte_tokenizer(
        tuple(dict.fromkeys(("<pad>", "<bos>", "<eos>", *(special | tiny.SPECIAL).values(), *tokens)))
    )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=core.backend_tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        extra_special_tokens=special | tiny.SPECIAL,
    )  # fmt: skip


def _part(mapping: Any, config_class: type, settings: dict) -> Any:
    found = mapping[config_class]
    if isinstance(found, dict):
        found = found.get("torchvision") or found.get("pil")
    return found(**settings)


def _processor(geometry: Geometry, config: Any, tokenizer: Any, processor_class: type) -> Any:
    parts: dict[str, Any] = {}
    vision = getattr(config, "vision_config", config)
    for key in inspect.signature(processor_class.__init__).parameters:
        if key in geometry.processor:
            continue
        if key == "image_processor":
            own = geometry.image_class
            parts[key] = (
                own(**geometry.image) if own else _part(t.IMAGE_PROCESSOR_MAPPING, type(config), geometry.image)
            )
        elif key.endswith("tokenizer"):
            parts[key] = tokenizer
        elif key == "video_processor":
            own = geometry.video_class
            parts[key] = own() if own else _part(t.VIDEO_PROCESSOR_MAPPING, type(config), {})
        elif key in ("feature_extractor", "audio_processor"):
            parts[key] = _part(t.FEATURE_EXTRACTOR_MAPPING, type(config), {})
        elif key in ("patch_size", "vision_feature_select_strategy"):
            value = getattr(vision, key, getattr(config, key, None))
            parts |= {} if value is None else {key: value}
    return processor_class(**parts | geometry.processor)


def build(geometry: Geometry) -> tuple[Any, Any]:
    """(model, processor)."""
    config_class = t.CONFIG_MAPPING[geometry.model_type]
    processor_class = geometry.processor_class or t.PROCESSOR_MAPPING[config_class]
    tokenizer = _tokenizer(processor_class)
    config = config_class(**merged(shrink(config_class().to_dict(), len(tokenizer)), geometry.config))
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
        if not parameter.any():
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


def _smolvlm(
    name: str, tile: int, patch: int, scale: int, stands_for: str, processor: type = t.SmolVLMImageProcessor
) -> Geometry:
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
    return Geometry(kind, stands_for, vision | config, image, processor, image_class=t.PixtralImageProcessor)


PUBLISHED = {
    "LLaVA 1.5": Geometry("llava", "llava-1.5-7b, -13b; bakLlava", CLIP, CROP_336, ONE_CLASS_TOKEN),
    "LLaVA-Interleave": Geometry(
        "llava",
        "llava-interleave-qwen-0.5b, -7b",
        SO400M | {"vision_feature_select_strategy": "full"},
        {"size": _square(384)},
        NO_CLASS_TOKEN,
        image_class=t.SiglipImageProcessor,
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
SIGLIP_384 = {"vision_config": {"image_size": 384, "patch_size": 16}}
CONFIGURED = {
    "gemma4": Geometry(
        "gemma4",
        config=tiny.FAMILIES["gemma4"].config | {"text_config": tiny.FAMILIES["gemma4"].text},
        image={"patch_size": 8, "max_soft_tokens": 70},
    ),
    "apertus1p5": Geometry("apertus1p5", config={"audio_config": {"codebook_dim": 32}}),
    "cosmos3_edge": Geometry("cosmos3_edge", config=ROPE),
    "deepseek_ocr2": Geometry("deepseek_ocr2", config={"text_config": {"mlp_layer_types": ["dense", "sparse"]}}),
    "dots3_note": Geometry(
        "dots3_note", config={"text_config": {"num_key_value_heads": 4}, "vision_config": {"adapter_in_dim": 32}}
    ),
    "ernie4_5_vl_moe": Geometry("ernie4_5_vl_moe", config=ROPE),
    "hunyuan_vl": Geometry("hunyuan_vl", config={"text_config": {"head_dim": 8}}),
    "glm5_next": Geometry("glm5_next", config={"text_config": {"num_key_value_heads": 4}}),
    "glm4v_moe": Geometry(
        "glm4v_moe",
        config={"text_config": ROPE["text_config"] | {"head_dim": 16}},
        image_class=t.Glm4vImageProcessor,
        video_class=t.Glm4vVideoProcessor,
    ),
    "glm_ocr": Geometry(
        "glm_ocr",
        config=ROPE,
        processor_class=t.Glm46VProcessor,
        image_class=t.Glm46VImageProcessor,
        video_class=t.Glm46VVideoProcessor,
    ),
    "molmo2": Geometry(
        "molmo2",
        config={"adapter_config": {"vision_feature_layer": [1, 0]}},
        placeholder="<|image|>",
        image_token="<im_patch>",
    ),
    "qwen3_vl_moe": Geometry(
        "qwen3_vl_moe",
        config=ROPE | {"vision_config": {"deepstack_visual_indexes": [0]}},
        image={"patch_size": 16},
        image_class=Qwen2VLImageProcessor,
        video_class=Qwen3VLVideoProcessor,
    ),
    "granite4_vision": Geometry("granite4_vision", config={"deepstack_layer_map": [[0, 0]]}),
    "aria": Geometry("aria", config={"vision_config": {"image_size": 980, "patch_size": 14}}),
    "aya_vision": Geometry(
        "aya_vision",
        config={"vision_config": tiny.SIGLIP | {"image_size": 364}, "downsample_factor": 2},
        image={"size": _square(364), "crop_to_patches": True, "max_patches": 12},
        processor={"patch_size": 14, "img_size": 364, "downsample_factor": 2},
    ),
    "blip-2": Geometry("blip-2", processor={"num_query_tokens": 32}, image={"size": _square(224)}),
    "chameleon": Geometry("chameleon", config={"vocabulary_map": {"<image>": 259, "IMGIMGAZ": 300}}),
    "glm4v": Geometry("glm4v", config=ROPE),
    "qwen3_5": Geometry("qwen3_5", config=ROPE, image={"patch_size": 16}),
    "deepseek_vl": Geometry("deepseek_vl", config=SIGLIP_384),
    "deepseek_vl_hybrid": Geometry("deepseek_vl_hybrid", config=SIGLIP_384),
    "emu3": Geometry("emu3", config={"vocabulary_map": {"<image>": 259}}),
    "florence2": Geometry("florence2", placeholder=""),
    "glm46v": Geometry("glm46v", config=ROPE),
    "paddleocr_vl": Geometry("paddleocr_vl", config=ROPE),
    "instructblip": Geometry("instructblip", processor={"num_query_tokens": 32}, image={"size": _square(224)}),
    "kimi_k25": Geometry(
        "kimi_k25", config={"projection_hidden_size": 32, "vision_config": {"projection_hidden_size": 32}}
    ),
    "lfm3_vl": Geometry("lfm3_vl", image={"patch_size": 16}),
    "llama4": Geometry(
        "llama4",
        config={"vision_config": {"image_size": 336, "patch_size": 14}},
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
    "t5gemma2": Geometry(
        "t5gemma2",
        config={
            "encoder": {"vision_config": tiny.SIGLIP | {"image_size": 896}, "mm_tokens_per_image": 256},
        },
        image={"size": _square(896)},
        processor={"image_seq_length": 256},
        image_token="<image>",
    ),
    "video_llama_3": Geometry("video_llama_3", image={"patch_size": 16}),
    "video_llava": Geometry("video_llava", processor={"patch_size": 14, "num_additional_image_tokens": 1}),
    "vipllava": Geometry(
        "vipllava",
        config=CLIP | {"vision_feature_layers": [-2, -1]},
        image=CROP_336,
        processor=ONE_CLASS_TOKEN,
        image_class=t.CLIPImageProcessor,
    ),
}
OF_TYPE = {geometry.model_type: geometry for geometry in reversed(PUBLISHED.values())} | CONFIGURED
