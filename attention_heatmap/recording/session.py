"""A sample recorded: inputs, answer, rows, record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.dataset import problem_of, shrink, upright_rgb, well_formed
from attention_heatmap.log import NOTE, logger, one_line
from attention_heatmap.options import expand
from attention_heatmap.record import AttentionRecord, Head, ImageTokens, picture_file
from attention_heatmap.recording.generation import (
    RecordedRows,
    alone_with,
    end_ids,
    fast_settings,
    generate_response,
    insert_image_positions,
    record_rows,
    say_decoding_settings,
)
from attention_heatmap.recording.heads import choose_heads, picture_regions, survey_heads
from attention_heatmap.recording.image_tokens import image_token_id, locate_image_tokens
from attention_heatmap.recording.layers import (
    attention_layers,
    check_head,
    cross_layers,
    resolve_layer,
    text_config,
    warn_of_blind_layers,
)
from attention_heatmap.recording.memory import check_memory, check_record_memory, out_of_memory_told
from attention_heatmap.recording.options import RecordingOptions
from attention_heatmap.recording.prompt import build_inputs, decode_tokens, input_device


def resolve_layers(config: Any, layers: Any) -> tuple[int, ...]:
    """The 0-based layers that are asked for, each once; none for "auto". Raises ValueError.

    layers: a number, "all", a range such as "0-7", or several of these; negative ones count from the end.
    """
    found: list[int] = []
    given = expand(layers, "layer_idx")
    for one in given:
        if isinstance(one, (str, tuple)) and one != "all" and given != ["auto"]:
            expected = "auto alone" if one == "auto" else "a whole number, a range such as 0-7, all, or auto"
            raise ValueError(f"layer_idx is {one_line(repr(one))[:200]}; expected {expected}")
        if one != "auto":
            found += attention_layers(config) if one == "all" else [resolve_layer(config, one)]
    if not given:
        raise ValueError("no layer was given; expected one or more")
    return tuple(dict.fromkeys(found))


def resolve_heads(config: Any, head: Any) -> tuple[Head, ...]:
    """The reductions of the heads that are asked for, each once. Raises ValueError.

    head: "mean", "max", "auto", a number, a range such as "0-3", "each", the mean of some such as "1+3" (in Python
    also a tuple, (1, 3)), or several of these in a list.
    """
    count, found = text_config(config).num_attention_heads, []
    for one in expand(head if isinstance(head, list) else [head], "head"):
        found += range(count) if one == "each" else [check_head(one, count)]
    heads = tuple(dict.fromkeys(found))
    if "auto" in heads and len(heads) > 1:
        raise ValueError(f"head is {head!r}; expected numbers, or auto alone")
    if not heads:
        raise ValueError("no head was given; expected one or more")
    return heads


class Session:
    """One model and its processor, that answer samples and record their attention."""

    def __init__(self, model: Any, processor: Any, max_image_num: int) -> None:
        self.model, self.processor, self.max_image_num = model, processor, max_image_num
        self.config = model.config

    def record(
        self, sample: dict, images: Sequence[Image.Image], layers: tuple[int, ...], how: RecordingOptions,
        ids: list[int] | None = None,
    ) -> AttentionRecord:  # fmt: skip
        """Let the model answer a sample, then record the attention of some layers; none: one is chosen.

        ids: the tokens of an answer that is known already, such as another checkpoint's.
        """
        problem, heads = well_formed(problem_of(sample, "the sample")), resolve_heads(self.config, how.head)
        response, auto_layer, auto_head = how.given_response(sample), not layers, heads == ("auto",)
        if (getattr(self.model, "tp_size", None) or 1) > 1 and (auto_layer or auto_head):
            raise ValueError(
                "auto compares the heads of a layer, which tp_plan shares out; name the layer and the head"
            )
        originals = [upright_rgb(image) for image in images]
        with alone_with(self.model), out_of_memory_told() as facts:
            inputs, located = self.inputs(problem, originals, how)
            given = self._response_ids(response) if response is not None and ids is None else ids
            steps, prompt = how.max_new_tokens if given is None else len(given), inputs["input_ids"].shape[1]
            planes = max(len(layers), 1) * len(heads)
            facts.append(check_memory(self.model, prompt, steps, planes, eager=how.attention == "eager"))
            logger.info(facts[0])
            ids = self._answer(inputs, how) if given is None else given
            chosen: dict[int, int] = {}
            if auto_layer or auto_head:
                layers, chosen = self._choose(inputs, ids, located, originals, layers, auto_head)
            pairs = [(layer, chosen.get(layer, head)) for layer in layers for head in heads]
            check_record_memory(prompt, len(ids), len(pairs))
            rows = record_rows(self.model, inputs, pairs, ids, how.attention)
            record = self._as_record(inputs, located, pairs, rows, ids, originals, problem)
            record = replace(record, auto_layer=auto_layer, auto_head=auto_head)
            if how.neutral_prompt is not None:
                plain = replace(how, prompt_template="{Question}")
                neutral = self._mean_weights(*self.inputs(how.neutral_prompt, originals, plain), pairs, ids, how)
                record = replace(record, neutral=neutral)
        reach = prompt + len(ids) - min(int(image.positions.min()) for image in located)
        warn_of_blind_layers(self.config, layers, reach)
        return record

    def inputs(
        self, problem: str, originals: list[Image.Image], how: RecordingOptions
    ) -> tuple[Any, list[ImageTokens]]:
        """The model's inputs on its device, and where the image tokens stand in the original pictures."""
        if not 1 <= len(originals) <= self.max_image_num:
            raise ValueError(f"{len(originals)} pictures were given; expected 1..{self.max_image_num} (max_image_num)")
        images = [shrink(image, how.max_pixels) for image in originals]
        inputs = self.processed(problem, originals, how)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if int(inputs["input_ids"].max()) >= vocabulary:
            raise ValueError(
                f"the tokenizer gives ids up to {int(inputs['input_ids'].max())}, the model has {vocabulary} tokens; "
                "give the tokenizer that belongs to the weights"
            )
        shapes = {key: tuple(value.shape) for key, value in inputs.items() if hasattr(value, "shape")}
        logger.debug("inputs: %s", shapes)
        located = [
            ImageTokens(tokens.positions, tokens.boxes * np.float32([a.width / b.width, a.height / b.height] * 2))
            for tokens, a, b in zip(locate_image_tokens(self.model, self.processor, inputs, images), originals, images)
        ]
        return inputs.to(input_device(self.model), dtype=self.model.dtype), located

    def processed(self, problem: str, originals: list[Image.Image], how: RecordingOptions) -> Any:
        """The model's inputs, on the host. Raises ValueError where they hold no picture."""
        images = [shrink(image, how.max_pixels) for image in originals]
        inputs = build_inputs(self.processor, problem, images, how.prompt_template)
        if not (inputs["input_ids"] == image_token_id(self.config)).any():
            raise ValueError("the prompt holds no image token: the chat template or the tokenizer leaves pictures out")
        return inputs

    def _answer(self, inputs: Any, how: RecordingOptions) -> list[int]:
        """The ids of the model's own answer."""
        say_decoding_settings(self.model, how.do_sample)
        generation = how.generation()
        return generate_response(self.model, inputs, fast_settings(self.model, generation) if how.fast else generation)

    def _response_ids(self, response: str) -> list[int]:
        """The tokens of a given response, without an end-of-sequence token at its end."""
        ids = list(self.processor.tokenizer(response, add_special_tokens=False)["input_ids"])
        while ids and ids[-1] in end_ids(self.model):
            ids.pop()
        if not ids:
            raise ValueError(f"the given response is {response!r}; expected more than the end of a sequence")
        return ids

    def _choose(
        self, inputs: Any, ids: list[int], located: Any, originals: list, layers: tuple[int, ...], choose_head: bool
    ) -> tuple[tuple[int, ...], dict[int, int]]:
        """The layers, or the one chosen where there are none, and the head chosen for each, if any; logged."""
        regions = picture_regions(located, [image.size for image in originals])
        layer, heads = choose_heads(survey_heads(self.model, inputs, ids, located, regions))
        if not layers:
            logger.log(NOTE, "auto: layer %d, whose heads agree most on what moves with the token", layer)
            layers = (layer,)
        if not choose_head:
            return layers, {}
        for number in layers:
            if number not in heads:
                raise ValueError(
                    f"no head of layer {number} sees pictures, for auto to choose; take one of {list(heads)}"
                )
            logger.log(NOTE, "auto: head %d of layer %d, which agrees most with the others", heads[number], number)
        return layers, {number: heads[number] for number in layers}

    def _mean_weights(
        self, inputs: Any, located: list[ImageTokens], planes: list, ids: list[int], how: RecordingOptions
    ) -> np.ndarray:
        """(N, M) float32, the mean weight of every image token while a given response is replayed."""
        rows = record_rows(self.model, inputs, planes, ids, how.attention)
        record = self._as_record(inputs, located, planes, rows, ids, [], "")
        return record.weights[:, :, record.image_positions].mean(axis=0, dtype=np.float32)

    def _as_record(
        self, inputs: Any, located: list[ImageTokens], planes: list, rows: RecordedRows, ids: list[int],
        originals: list, problem: str,
    ) -> AttentionRecord:  # fmt: skip
        """Join what was recorded with the text and the pictures."""
        tokenizer, weights_TNS = self.processor.tokenizer, rows.weights
        token_ids = np.concatenate([inputs["input_ids"][0].cpu().numpy(), ids]).astype(np.int64)
        tokens = decode_tokens(tokenizer, token_ids.tolist())
        if crossing := cross_layers(self.config):
            crosses_N = [layer in crossing for layer, _ in planes]
            placed = insert_image_positions(token_ids, weights_TNS, located, crosses_N, rows.cross_keys)
            token_ids, weights_TNS, is_text = placed
            texts = iter(tokens)
            tokens = tuple(next(texts) if text else "" for text in is_text)
        P = len(token_ids) - len(ids)
        ends, at = np.cumsum([0, *map(len, tokens[:P])]), "".join(tokens[:P]).rfind(problem)
        span = np.searchsorted(ends, [at, at + len(problem) - 1], side="right") - [1, 0]
        return AttentionRecord(
            tokens=tokens, token_ids=token_ids, prompt_length=P, problem=tuple(span.tolist()) if at >= 0 else None,
            layers=tuple(layer for layer, _ in planes), heads=tuple(head for _, head in planes), weights=weights_TNS,
            images=tuple(located), special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
            num_layers=text_config(self.config).num_hidden_layers, model=Path(self.model.name_or_path).name[:99],
            pictures=tuple(map(picture_file, originals)),
        )  # fmt: skip
