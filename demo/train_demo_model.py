"""Train, measure and export the demo's small Qwen2-VL. See demo/README.md for the commands and the figures.

    seeds -> scenes and token ids (CPU workers) -> pictures and pixel values (device) -> loss -> demo/model

Pictures are drawn, resized and cut into patches on the training device, with the numbers that the image
processor of the checkpoint gives; a batch has pictures of one size, so that its shapes are static. The forward
pass uses the modules of transformers' Qwen2-VL, batched over pictures; tests hold it to the plain one.

Dimension key: B sample, S position, N patch, C cell (2 x 2 patches, one image token), D width.
"""

import argparse
import contextlib
import copy
import functools
import json
import math
import os
import random
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_data import (
    COLOURS,
    DEFAULT_PROMPT_TEMPLATE,
    LANGUAGES,
    SHAPES,
    SIZES,
    TASKS,
    TRAINING_SEEDS,
    landmark_name,
    make_sample,
    make_scene,
    render,
    scene_arrays,
    scene_text,
)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (  # Qwen2-VL's
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] "
    "== 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}"
    "Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content "
    "%}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
SYSTEM_TEXT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
PATCH, MERGE = 14, 2
CELL = PATCH * MERGE  # pixels of the resized picture along a side of an image token's cell
IGNORED = -100
VOCABULARY = 960
WARM_UP = 0.03  # share of the schedule
SAVE_EVERY = 120  # seconds between checkpoints
HELD_OUT_SEEDS = 500_000  # the first seed that `evaluate` uses; the shipped dataset's lie below

# The shallow vision tower keeps what an image token knows near the place where it stands.
FULL = {"hidden": 256, "layers": 8, "inner": 576, "heads": 4, "kv_heads": 2, "vision": 160, "depth": 2}
TINY = {"hidden": 64, "layers": 2, "inner": 128, "heads": 2, "kv_heads": 1, "vision": 32, "depth": 1}
SETTINGS = {"full": FULL | {"batch": 256, "lr": 1.5e-3}, "tiny": TINY | {"batch": 8, "lr": 3e-3}}


# ---- tokenizer, processor, model ---------------------------------------------------------------------------


def build_tokenizer():
    """Qwen2's byte-level BPE, its merges learnt from the generated texts."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        max_token_length=15,  # five Chinese characters, so that no token is a whole sentence
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_tokenizer_corpus(), trainer)
    learnt = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    return Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=SPECIAL_TOKENS,
        model_max_length=32768,
        padding_side="left",
    )


def _tokenizer_corpus(count=400):
    """Texts of training seeds; names are set apart, so that no token spans a name and its neighbours."""
    names = [*(c for c, _ in COLOURS.values()), *(s for s, _ in SHAPES.values())]
    names = re.compile("(" + "|".join(sorted(names, key=len, reverse=True)) + ")")
    template = DEFAULT_PROMPT_TEMPLATE.replace("{Question}", "")
    for i in range(count):
        problem, solution, _ = scene_text(make_scene(TRAINING_SEEDS + i))
        chinese = names.search(solution) is not None
        yield from names.split(solution)
        yield from [problem] * (2 if chinese else 1) + [template]


def build_processor(tokenizer):
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(setting, tokenizer):
    from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)))
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    # Height and width get the slower rotary frequencies, and width both the ones that tell neighbouring cells
    # apart and the ones that a look-up by content over a long text needs.
    head_dim = setting["hidden"] // setting["heads"]
    rope = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": _mrope_section(head_dim // 2)}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": setting["hidden"],
        "intermediate_size": setting["inner"],
        "num_hidden_layers": setting["layers"],
        "num_attention_heads": setting["heads"],
        "num_key_value_heads": setting["kv_heads"],
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
    }
    vision = {
        "depth": setting["depth"],
        "embed_dim": setting["vision"],
        "hidden_size": setting["hidden"],
        "num_heads": 4,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[end, pad], pad_token_id=pad, do_sample=False, max_new_tokens=512
    )
    _zero_residual_outputs(model)
    return model


def _mrope_section(half):
    temporal, height = half // 8, half * 3 // 16
    return [temporal, height, half - temporal - height]


def _zero_residual_outputs(model):
    """Every block starts as the identity: what a token knows leaves its place only where that helps."""
    for block in model.model.visual.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    for layer in model.model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)


# ---- inputs ------------------------------------------------------------------------------------------------


def grid_of(size):
    """Rows and columns of cells of a picture of (width, height) pixels, as the image processor rounds them."""
    return round(size[1] / CELL), round(size[0] / CELL)


class Texts:
    """Token ids of samples: a prompt as the chat template and the processor give it, and the response."""

    def __init__(self, tokenizer):
        self.encode = functools.partial(tokenizer.encode, add_special_tokens=False)
        ids = tokenizer.convert_tokens_to_ids
        self.image, self.start, self.end = (ids("<|image_pad|>"), ids("<|vision_start|>"), ids("<|vision_end|>"))
        self.pad, self.stop = ids("<|endoftext|>"), ids("<|im_end|>")
        self.system = self.encode(SYSTEM_TEXT)
        self.question = functools.lru_cache(maxsize=64)(self._question)

    def _question(self, problem):
        text = DEFAULT_PROMPT_TEMPLATE.format(Question=problem)
        return self.encode(f"{text}<|im_end|>\n<|im_start|>assistant\n")

    def prompt(self, problem, cells):
        """cells: number of image tokens of each picture."""
        images = [token for count in cells for token in [self.start, *[self.image] * count, self.end]]
        return self.system + images + self.question(problem)

    def image_slots(self, cells):
        """Positions of the image tokens, in order."""
        first, slots = len(self.system) + 1, []
        for count in cells:
            slots += range(first, first + count)
            first += count + 2
        return slots

    def sample(self, scene, misled):
        """ids and labels; a misled reasoning gets no loss."""
        problem, solution, _ = scene_text(scene, misled)
        rows, columns = grid_of((scene["width"], scene["height"]))
        prompt = self.prompt(problem, [rows * columns] * (1 if scene["task"] == "route" else 2))
        thought, _answer = solution.split("<answer>")
        thought_ids, ids = self.encode(thought), self.encode(solution)
        free = len(prompt) + (len(thought_ids) + 1 if misled else 0)
        ids = prompt + ids + [self.stop]
        return ids, [IGNORED] * free + ids[free:]


def rope_positions(texts, grid, pictures, length):
    """(3, 1, length) M-RoPE positions (time, row, column) of prompts with `pictures` pictures of one grid."""
    rows, columns = grid
    ahead = np.arange(len(texts.system) + 1)
    parts, position = [np.stack([ahead] * 3)], len(ahead)
    for index in range(pictures):
        r, c = np.indices(grid).reshape(2, -1)
        parts.append(position + np.stack([np.zeros_like(r), r, c]))
        position += max(rows, columns)
        gap = np.arange(position, position + 2) if index + 1 < pictures else np.arange(position, position + length)
        parts.append(np.stack([gap] * 3))
        position += 2
    return torch.from_numpy(np.concatenate(parts, axis=1)[:, None, :length])


class Batches(torch.utils.data.Dataset):
    """Batch i as CPU tensors; it follows from i alone, so a resumed run sees what an unbroken one would."""

    def __init__(self, tokenizer, batch, length, misled=0.35):
        self.texts, self.batch, self.length, self.misled = Texts(tokenizer), batch, length, misled

    def __getitem__(self, index):
        rng = random.Random(index)
        task = "route" if rng.random() < 0.6 else "moved"
        size = rng.choice(SIZES[task])
        ids = np.full((self.batch, self.length), self.texts.pad)
        labels = np.full((self.batch, self.length), IGNORED)
        pictures = []
        for b in range(self.batch):
            language = "zh" if rng.random() < 0.35 else "en"
            scene = make_scene(TRAINING_SEEDS + index * self.batch + b, task, language, size)
            row, row_labels = self.texts.sample(scene, task == "route" and rng.random() < self.misled)
            ids[b, : len(row)], labels[b, : len(row)] = row, row_labels
            pictures += scene_arrays(scene)
        arrays = {key: torch.from_numpy(np.stack([p[key] for p in pictures])) for key in pictures[0]}
        return dict(task=task, size=size, ids=torch.from_numpy(ids), labels=torch.from_numpy(labels), **arrays)


# ---- pixels and forward pass, batched over pictures of one size ----------------------------------------------


@functools.cache
def resize_weights(source, target, device):
    """(target, source) float32: torchvision's antialiased bicubic resize along one side, as a matrix."""
    from torchvision.transforms.v2 import functional as tv

    eye = torch.eye(source)[None]
    weights = tv.resize(eye, [target, source], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    return weights[0].to(device)


def pixel_values(pictures):
    """uint8 (B, 3, Y, X) -> float32 (B, N, 1176): resized, normalised patches in the processor's order."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    batch, _, height, width = pictures.shape
    rows, columns = grid_of((width, height))
    down = resize_weights(height, rows * CELL, pictures.device)
    across = resize_weights(width, columns * CELL, pictures.device)
    # Whole levels after each side, as in the processor's resize of uint8 pictures.
    resized = (pictures.float() @ across.T).round().clamp(0, 255)
    resized = (down @ resized).round().clamp(0, 255)
    mean, std = (torch.tensor(v, device=pictures.device)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    values = (resized / 255 - mean) / std
    values = values.view(batch, 3, rows, MERGE, PATCH, columns, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return values.unsqueeze(6).expand(*[-1] * 6, 2, -1, -1).reshape(batch, rows * columns * MERGE**2, -1)


def vision_rotary(visual, grid, device):
    """cos and sin, (N, head width), of the vision tower's rotary embedding in the order of the patches."""
    rows, columns = grid
    r, c = np.indices((rows * MERGE, columns * MERGE))
    ordered = [
        torch.from_numpy(v.reshape(rows, MERGE, columns, MERGE).transpose(0, 2, 1, 3).reshape(-1)) for v in (r, c)
    ]
    quarter = visual.blocks[0].attn.head_dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter) / quarter)
    angles = torch.cat([v[:, None] * frequencies for v in ordered] * 2, dim=1).to(device)
    return angles.cos(), angles.sin()


def _rotate(x, cos, sin):
    x = x.float()
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def vision_features(visual, values, cos, sin):
    """Patches (B, N, 1176) of one size -> image tokens (B, N / 4, D): the vision tower, batched."""
    batch, count, _ = values.shape
    x = F.linear(values, visual.patch_embed.proj.weight.flatten(1))
    for block in visual.blocks:
        attention = block.attn
        q, k, v = attention.qkv(block.norm1(x)).view(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, -1)
        x = x + attention.proj(mixed)
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x).view(batch, count // MERGE**2, -1)


def hidden_states(model, ids, values, slots, positions, rotary):
    """Final hidden states (B, S, D) of right-padded prompts whose image tokens stand at `slots`."""
    language = model.model.language_model
    images = vision_features(model.model.visual, values, *rotary).reshape(ids.shape[0], len(slots), -1)
    x = language.embed_tokens(ids).to(images.dtype).index_copy(1, slots, images)
    position_embeddings = language.rotary_emb(x, positions)
    for layer in language.layers:
        x = layer(x, attention_mask=None, position_embeddings=position_embeddings)
    return language.norm(x)


def batch_loss(model, ids, labels, values, slots, positions, rotary):
    """Mean cross-entropy of the labelled tokens."""
    x = hidden_states(model, ids, values, slots, positions, rotary)
    first = slots.shape[0]  # no label stands before it
    logits = F.linear(x[:, first:-1], model.lm_head.weight)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, first + 1 :].flatten(), ignore_index=IGNORED)


class Stepper:
    """The loss of a batch of Batches on one device, drawing included, compiled on a GPU."""

    def __init__(self, model, texts, length, device):
        self.model, self.texts, self.length, self.device = model, texts, length, device
        on_gpu = device.type == "cuda"
        self.render = torch.compile(render, dynamic=True) if on_gpu else render
        self.loss_of = torch.compile(batch_loss, dynamic=False) if on_gpu else batch_loss
        self.precision = torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext()
        self.layout = functools.cache(self._layout)

    def _layout(self, size, pictures):
        rows, columns = grid = grid_of(size)
        slots = torch.tensor(self.texts.image_slots([rows * columns] * pictures), device=self.device)
        positions = rope_positions(self.texts, grid, pictures, self.length).to(self.device)
        return slots, positions, vision_rotary(self.model.model.visual, grid, self.device)

    def loss(self, batch):
        moved = {k: v.to(self.device, non_blocking=True) for k, v in batch.items() if torch.is_tensor(v)}
        ids, labels = moved.pop("ids"), moved.pop("labels")
        with torch.no_grad():
            values = pixel_values(self.render(moved, *batch["size"]))
        layout = self.layout(tuple(batch["size"]), 1 if batch["task"] == "route" else 2)
        with self.precision:
            return self.loss_of(self.model, ids, labels, values, *layout)


# ---- training ------------------------------------------------------------------------------------------------


def longest_sample(texts, count=400):
    """Tokens of the longest of many samples, rounded up with room to spare."""
    lengths = [len(texts.sample(make_scene(TRAINING_SEEDS - 1 - i), False)[0]) for i in range(count)]
    return 32 * math.ceil((max(lengths) + 8) / 32)


def learning_rate(peak, progress):
    """A linear warm-up, then a cosine down to zero; progress runs from 0 to 1."""
    return peak * min(1.0, progress / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model, device):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=device.type == "cuda")


def train(
    setting, checkpoint, *, steps=None, minutes=None, stop_at=None, workers=0, device="cpu", log_every=100, early=()
):
    """Train until `steps` steps or `minutes` of wall time, both counted over all calls that resume `checkpoint`.

    The learning rate falls to zero at the end of that budget; stop_at ends a call early, at that step.
    early: (share of the schedule, folder) of states that are exported on the way.
    Returns the model and the tokenizer.
    """
    device = torch.device(device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    tokenizer = build_tokenizer()
    model = build_model(setting, tokenizer).to(device).train()
    optimizer, step, spent = make_optimizer(model, device), 0, 0.0
    if Path(checkpoint).exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    texts = Texts(tokenizer)
    length = longest_sample(texts)
    batches = Batches(tokenizer, setting["batch"], length)
    stepper = Stepper(model, texts, length, device)
    if device.type == "cuda":
        _compile(stepper, batches)
    loader = _loader(batches, step, workers, device)
    batch, started, saved = next(loader), time.monotonic(), spent
    waiting = sorted(early)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {length} tokens, from step {step}", flush=True)
    while True:
        seconds = spent + time.monotonic() - started
        progress = step / steps if steps else seconds / (60 * minutes)
        if progress >= 1 or step == stop_at:
            break
        while waiting and progress >= waiting[0][0]:  # an early state, to compare the trained one with
            share, folder = waiting.pop(0)
            print(f"step {step}  {seconds:.0f} s  exported to {folder}: {share:.0%} of the schedule", flush=True)
            export(copy.deepcopy(model).eval(), tokenizer, folder)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(setting["lr"], progress)
        loss = stepper.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % log_every == 0:
            print(f"step {step}  {seconds:.0f} s  {batch['task']}  loss {loss.item():.4f}", flush=True)
        if seconds - saved > SAVE_EVERY:
            saved = seconds
            _save(checkpoint, model, optimizer, step, seconds)
        batch = next(loader)
    _save(checkpoint, model, optimizer, step, seconds)
    return model.eval(), tokenizer


def _loader(batches, step, workers, device):
    """An iterator over the batches from `step` on, in order, made ahead by worker processes."""
    pinned, ahead = device.type == "cuda", 4 if workers else None
    steps = range(step, 10**8)
    return iter(
        torch.utils.data.DataLoader(
            batches, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pinned, prefetch_factor=ahead
        )
    )


def _save(checkpoint, model, optimizer, step, seconds):
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, f"{checkpoint}.part")
    os.replace(f"{checkpoint}.part", checkpoint)  # a run that is cut short leaves the checkpoint before


def _compile(stepper, batches):
    """Compile for every picture size, outside the training budget; no weight changes."""
    seen = set()
    for index in range(200):
        rng = random.Random(index)
        task = "route" if rng.random() < 0.6 else "moved"
        size = rng.choice(SIZES[task])
        if size not in seen:
            seen.add(size)
            begun = time.monotonic()
            stepper.loss(batches[index]).backward()
            torch.cuda.synchronize()
            print(f"compiled {task} {size}: {time.monotonic() - begun:.1f} s", flush=True)
    stepper.model.zero_grad(set_to_none=True)


def export(model, tokenizer, folder):
    """Write the checkpoint as bfloat16 safetensors with its processor."""
    model.to(torch.bfloat16).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)


# ---- measuring -----------------------------------------------------------------------------------------------


def load(folder, device="cpu", dtype="auto"):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()
    return model, AutoProcessor.from_pretrained(folder)


def prepare(processor, pictures, problems):
    """Left-padded inputs of samples, through the chat template: pictures first, then the prompt."""
    prompts = []
    for images, problem in zip(pictures, problems):
        text = DEFAULT_PROMPT_TEMPLATE.format(Question=problem)
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    return processor(text=prompts, images=list(pictures), padding=True, padding_side="left", return_tensors="pt")


def score_answer(response, sample):
    """names: the right landmarks in the right order; exact: the answer to the letter; errors: of coordinates."""
    answer = response.split("<answer>")[-1].split("</answer>")[0].strip()
    found, expected = (_names_in(text, sample) for text in (answer, sample["answer"]))
    numbers, truth = (re.findall(r"\((\d+), (\d+)\)", text) for text in (answer, sample["answer"]))
    names = found == expected
    errors = []
    if names and len(numbers) == len(truth):
        errors = np.abs(np.array(numbers, int) - np.array(truth, int)).ravel().tolist()
    return {"names": names, "exact": answer == sample["answer"], "errors": errors}


def _names_in(text, sample):
    language = "zh" if re.search("[\u4e00-\u9fff]", sample["problem"]) else "en"
    names = [landmark_name((colour, shape), language) for colour in COLOURS for shape in SHAPES]
    return re.findall("|".join(names), text)


def token_bytes(tokenizer, ids):
    """The bytes of each token: decoding tokens one by one would break characters of several bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    back = {character: byte for byte, character in bytes_to_unicode().items()}
    special = set(tokenizer.all_special_ids)
    return [
        b"" if i in special else bytes(back[c] for c in t) for i, t in zip(ids, tokenizer.convert_ids_to_tokens(ids))
    ]


def mentions_of(tokenizer, ids, names):
    """(token index, name) of each mention of a name: the index of the token in which the name begins."""
    pieces = token_bytes(tokenizer, ids)
    ends, text = np.cumsum([len(p) for p in pieces]), b"".join(pieces)
    pattern = re.compile(b"|".join(re.escape(name.encode()) for name in names))
    return [(int(np.searchsorted(ends, m.start(), side="right")), m.group().decode()) for m in pattern.finditer(text)]


def cell_overlap(name, boxes, sizes):
    """(C,) share of each cell's area inside the landmark's box, over all pictures of a sample in order."""
    shares = []
    for picture, (width, height) in zip(boxes, sizes):
        rows, columns = grid_of((width, height))
        left, top, right, bottom = picture.get(name, (0, 0, 0, 0))
        x, y = np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1)
        across = (np.minimum(x[1:], right) - np.maximum(x[:-1], left)).clip(0) / (width / columns)
        down = (np.minimum(y[1:], bottom) - np.maximum(y[:-1], top)).clip(0) / (height / rows)
        shares.append((down[:, None] * across).ravel())
    return np.concatenate(shares)


def pointing_of(weights, overlap):
    """Hit, and share within the box, of image attention (..., C): shape (..., 2)."""
    hit = overlap[weights.argmax(-1)] > 0
    share = (weights * overlap).sum(-1) / weights.sum(-1).clip(1e-12)
    return np.stack([hit, share], axis=-1)


@torch.no_grad()
def measure_batch(model, processor, samples, pictures):
    """Answers and pointing of samples of one task: a list of (score, (mentions, L, heads + 1, 2))."""
    inputs = prepare(processor, pictures, [s["problem"] for s in samples]).to(model.device)
    length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs)
    responses = processor.batch_decode(output[:, length:], skip_special_tokens=True)
    model.set_attn_implementation("eager")
    inputs["input_ids"] = output
    inputs["attention_mask"] = F.pad(inputs["attention_mask"], (0, output.shape[1] - length), value=1)
    inputs["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, output.shape[1] - length))
    attentions = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    measured = []
    for b, sample in enumerate(samples):
        names = {name for boxes in sample["boxes"] for name in boxes}
        slots = output[b] == model.config.image_token_id
        found = []
        for token, name in mentions_of(processor.tokenizer, output[b, length:].tolist(), names):
            rows = torch.stack([a[b, :, length + token - 1, slots].float() for a in attentions])  # L, heads, C
            weights = torch.cat([rows, rows.mean(1, keepdim=True)], 1).cpu().numpy()
            found.append(pointing_of(weights, cell_overlap(name, sample["boxes"], [p.size for p in pictures[b]])))
        measured.append((score_answer(responses[b], sample), np.array(found), responses[b]))
    return measured


def evaluate(folder, samples=300, first_seed=HELD_OUT_SEEDS, batch=25, device="cpu", dtype="auto", verbose=0):
    """Print, for fresh held-out samples, a table of answers by kind and a table of pointing by layer."""
    model, processor = load(folder, device, dtype)
    kinds = [(task, language) for task in TASKS for language in LANGUAGES]
    pointing, results = {task: [] for task in TASKS}, {}
    print("kind       n   names right  exact answer  coordinates exact  mean error (of 1000)")
    for k, (task, language) in enumerate(kinds):
        seeds = range(first_seed + k * samples, first_seed + k * samples + samples // len(kinds))
        scores = []
        for i in range(0, len(seeds), batch):
            drawn = [make_sample(seed, task, language) for seed in seeds[i : i + batch]]
            for score, found, response in measure_batch(model, processor, [s for _, s in drawn], [p for p, _ in drawn]):
                scores.append(score)
                pointing[task] += list(found)
                if len(scores) <= verbose:
                    print(response)
        errors = np.array([e for s in scores for e in s["errors"]])
        names, exact = (np.mean([s[key] for s in scores]) for key in ("names", "exact"))
        right, mean = ((errors == 0).mean(), errors.mean()) if errors.size else (0.0, math.nan)
        results[task, language] = {
            "n": len(scores),
            "names": names,
            "exact": exact,
            "coordinates": right,
            "error": mean,
        }
        print(f"{task} {language}  {len(scores):4d}  {names:11.1%}  {exact:12.1%}  {right:17.1%}  {mean:10.1f}")
    for task, found in pointing.items():
        if found:
            _print_pointing(task, np.array(found))
    return results, {task: np.array(found) for task, found in pointing.items()}


def _print_pointing(task, found):
    """found: (mentions, L, heads + 1, 2), the last head being the mean of all."""
    hit, share = found.mean(0)[..., 0], found.mean(0)[..., 1]
    print(f"\n{task}: {len(found)} mentions; hottest cell meets the named landmark's box, share within the box")
    print("layer  heads averaged   best head")
    for layer in range(len(hit)):
        best = share[layer, :-1].argmax()
        print(
            f"{layer:5d}  {hit[layer, -1]:6.1%}  {share[layer, -1]:5.2f}   "
            f"head {best}  {hit[layer, best]:6.1%}  {share[layer, best]:5.2f}"
        )


# ---- command line --------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train, or resume a checkpoint, and export")
    training.add_argument("--tiny", action="store_true", help="a setting that shows the path on a CPU in a minute")
    training.add_argument("--steps", type=int, help="length of the schedule in steps")
    training.add_argument("--minutes", type=float, help="length of the schedule in minutes, compilation not counted")
    training.add_argument(
        "--early", nargs=2, action="append", default=[], metavar=("SHARE", "FOLDER"),
        help="also export the state at this share of the schedule, such as 0.25, to this folder",
    )  # fmt: skip
    training.add_argument("--checkpoint", default="demo_checkpoint.pt", help="resumed if it exists, then written")
    training.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 2))
    measuring = commands.add_parser("evaluate", help="measure on fresh held-out samples")
    measuring.add_argument("--samples", type=int, default=300)
    measuring.add_argument("--first_seed", type=int, default=HELD_OUT_SEEDS)
    measuring.add_argument("--batch", type=int, default=25)
    measuring.add_argument("--dtype", default="auto")
    measuring.add_argument("--verbose", type=int, default=0, help="responses to print of each kind")
    training.add_argument("--model", default="trained_model", help="folder to export to; never the shipped one unasked")
    measuring.add_argument("--model", default=str(Path(__file__).parent / "model"), help="folder of the checkpoint")
    for command in (training, measuring):
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.command == "train":
        if (args.steps is None) == (args.minutes is None):
            parser.error("give either --steps or --minutes")
        setting = SETTINGS["tiny" if args.tiny else "full"]
        early = [(float(share), folder) for share, folder in args.early]
        model, tokenizer = train(
            setting, args.checkpoint, steps=args.steps, minutes=args.minutes, workers=args.workers,
            device=args.device, early=early,
        )  # fmt: skip
        export(model, tokenizer, args.model)
    else:
        evaluate(args.model, args.samples, args.first_seed, args.batch, args.device, args.dtype, args.verbose)


if __name__ == "__main__":
    main()
