"""A sample recorded: inputs, answer, rows, record."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.dataset import problem_of, shrink, upright_rgb, well_formed
from attention_heatmap.log import NOTE, logger
from attention_heatmap.record import AttentionRecord, ImageTokens, picture_file
from attention_heatmap.recording import generation
from attention_heatmap.recording.heads import choose_heads, survey_heads
from attention_heatmap.recording.image_tokens import image_token_id, locate_image_tokens
from attention_heatmap.recording.layers import resolve_heads, text_config, tp_size, warn_of_blind_layers
from attention_heatmap.recording.memory import check_memory, check_record_memory, out_of_memory_told
from attention_heatmap.recording.options import RecordingOptions
from attention_heatmap.recording.prompt import build_inputs, decode_tokens, input_device
from attention_heatmap.recording.recorder import AttentionRecorder, Plane


class Session:
    """One model and its processor, that answer samples and record their attention."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    def record(
        self, sample: dict, images: Sequence[Image.Image], layers: tuple[int, ...], how: RecordingOptions,
        ids: list[int] | None = None,
    ) -> AttentionRecord:  # fmt: skip
        """Let the model answer a sample, then record the attention of some layers; none: one is chosen.

        ids: the tokens of an answer that is known already, such as another checkpoint's.
        """
        problem, heads = well_formed(problem_of(sample, "the sample")), resolve_heads(self.model.config, how.head)
        response, auto_layer, auto_head = how.given_response(sample), not layers, heads == ("auto",)
        if tp_size(self.model) > 1 and (auto_layer or auto_head):
            told = "auto compares the heads of a layer, which tp_plan shares out"
            raise ValueError(f"{told}; name the layer and the head")
        originals, neutral = [upright_rgb(image) for image in images], None
        with generation.alone_with(self.model), out_of_memory_told() as facts:
            inputs, located = self.inputs(problem, originals, how)
            if ids is None and response is not None:
                ids = self._response_ids(response)
            prompt, steps = inputs["input_ids"].shape[1], how.max_new_tokens if ids is None else len(ids)
            count = max(len(layers), 1) * len(heads)
            facts.append(check_memory(self.model, prompt, steps, count, eager=how.attention == "eager"))
            logger.info(facts[0])
            if ids is None:
                generation.say_decoding_settings(self.model, how.do_sample)
                ids = generation.generate_response(self.model, inputs, how.generation(self.model))
            check_record_memory(prompt, len(ids), count, known=True)
            planes = [(layer, head) for layer in layers for head in heads]
            if auto_layer or auto_head:
                planes = self._chosen(inputs, located, ids, [image.size for image in originals], layers, heads)
            rows = generation.record_rows(self.model, inputs, planes, ids, how.attention, located)
            record = self._record_of(rows, inputs, ids, originals, problem)
            if how.neutral_prompt is not None:
                asked, places = self.inputs(how.neutral_prompt, originals, replace(how, prompt_template="{Question}"))
                again = generation.record_rows(self.model, asked, planes, ids, how.attention, places)
                neutral = again.weights[:, :, again.image_positions].mean(axis=0, dtype=np.float32)
        warn_of_blind_layers(self.model.config, record.layers, prompt + len(ids) - int(record.image_positions.min()))
        return replace(record, auto_layer=auto_layer, auto_head=auto_head, neutral=neutral)

    def built(self, problem: str, originals: Sequence[Image.Image], how: RecordingOptions) -> tuple[Any, list]:
        """The model's inputs, on the CPU, and the pictures that went into them."""
        images = [shrink(image, how.max_pixels) for image in originals]
        inputs = build_inputs(self.processor, problem, images, how.prompt_template)
        highest, vocabulary = int(inputs["input_ids"].max()), self.model.get_input_embeddings().weight.shape[0]
        if highest >= vocabulary:
            told = f"the tokenizer gives ids up to {highest}, the model has {vocabulary} tokens"
            raise ValueError(f"{told}; give the tokenizer that belongs to the weights")
        return inputs, images

    def inputs(
        self, problem: str, originals: list[Image.Image], how: RecordingOptions
    ) -> tuple[Any, list[ImageTokens]]:
        """The model's inputs on its device, and where the image tokens stand in the original pictures."""
        inputs, images = self.built(problem, originals, how)
        logger.debug("inputs: %s", {key: tuple(one.shape) for key, one in inputs.items() if hasattr(one, "shape")})
        located = [
            ImageTokens(tokens.positions, tokens.boxes * np.float32([a.width / b.width, a.height / b.height] * 2))
            for tokens, a, b in zip(locate_image_tokens(self.model, self.processor, inputs, images), originals, images)
        ]
        return inputs.to(input_device(self.model), dtype=self.model.dtype), located

    def _response_ids(self, response: str) -> list[int]:
        """The tokens of a given response, without an end-of-sequence token at its end."""
        ids = list(self.processor.tokenizer(response, add_special_tokens=False)["input_ids"])
        while ids and ids[-1] in generation.end_ids(self.model):
            ids.pop()
        if not ids:
            raise ValueError(f"the given response is {response!r}; expected more than the end of a sequence")
        return ids

    def _chosen(
        self, inputs: Any, located: list[ImageTokens], ids: list[int], sizes: list, layers: tuple, heads: tuple
    ) -> list[Plane]:
        """The planes of an answer of which auto chooses the layer, as there is none, or a head a layer; logged."""
        layer, best = choose_heads(survey_heads(self.model, inputs, ids, located, sizes))
        if not layers:
            logger.log(NOTE, "auto: layer %d, whose heads agree most on what moves with the token", layer)
            layers = (layer,)
        if heads != ("auto",):
            return [(layer, head) for head in heads]
        for number in layers:
            if number not in best:
                told = f"no head of layer {number} sees pictures, for auto to choose"
                raise ValueError(f"{told}; take one of {list(best)}")
            logger.log(NOTE, "auto: head %d of layer %d, which agrees most with the others", best[number], number)
        return [(number, best[number]) for number in layers]

    def _record_of(
        self, rows: AttentionRecorder, inputs: Any, ids: list[int], originals: list[Image.Image], problem: str
    ) -> AttentionRecord:
        """The rows of an answer, joined with the text and the pictures."""
        tokenizer, (*_, S) = self.processor.tokenizer, rows.weights.shape
        text_ids, P = [*inputs["input_ids"][0].tolist(), *ids], S - len(ids)
        token_ids, tokens = np.full(S, image_token_id(self.model.config), np.int64), np.full(S, "", object)
        token_ids[rows.text_positions] = text_ids
        tokens[rows.text_positions] = decode_tokens(tokenizer, text_ids)
        ends, at = np.cumsum([0, *map(len, tokens[:P])]), "".join(tokens[:P]).rfind(problem)
        span = np.searchsorted(ends, [at, at + len(problem) - 1], side="right") - [1, 0]
        layers, heads = zip(*rows.planes)
        return AttentionRecord(
            tokens=tuple(tokens), token_ids=token_ids, prompt_length=P, layers=layers, heads=heads,
            problem=tuple(span.tolist()) if at >= 0 else None, weights=rows.weights, images=tuple(rows.located),
            special_ids=tuple(sorted(set(tokenizer.all_special_ids))), pictures=tuple(map(picture_file, originals)),
            num_layers=text_config(self.model.config).num_hidden_layers, model=Path(self.model.name_or_path).name[:99],
        )  # fmt: skip
