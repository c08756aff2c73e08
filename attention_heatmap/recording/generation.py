"""TODO."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_heatmap.log import NOTE, logger
from attention_heatmap.record import ImageTokens
from attention_heatmap.recording.attention import recording, text_attention
from attention_heatmap.recording.prompt import forced_pass, input_device
from attention_heatmap.recording.recorder import (
    AttentionRecorder,
    RecordedRows,
    attention_layers,
    cross_layers,
    picture_columns,
    shared_heads,
)

SHORTEST_FAST_ANSWER = 128  # tokens; for fewer, compiling takes longer than it saves


def end_ids(model: Any) -> set[int]:
    """The ids that end a response."""
    ids = model.generation_config.eos_token_id
    ids = ids if ids is not None else model.config.get_text_config().eos_token_id
    return set(ids) if isinstance(ids, (list, tuple)) else {ids} - {None}


def generate_response(model: Any, inputs: Any, generation: dict, **kwargs: Any) -> tuple[list[int], Any]:
    """Generate; returns the response's ids (without a trailing end-of-sequence token) and generate's output."""
    import torch
    from tqdm import tqdm
    from transformers import LogitsProcessorList

    def move_on(input_ids: Any, scores: Any) -> Any:  # a streamer would wait for each token
        bar.update()
        # The prompt's pass is over. Where the cache grows, each step has a number of keys of its own, and for each new
        # one cuDNN's attention, torch's first choice on some GPUs, gets ready anew, which tripled the time.
        torch.backends.cuda.enable_cudnn_sdp(cudnn and "cache_implementation" in generation)
        return scores

    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    limit, progress = generation["max_new_tokens"], LogitsProcessorList([move_on])
    started = time.perf_counter()
    try:
        with tqdm(total=limit, desc="generating", unit="token", leave=None) as bar, torch.inference_mode():
            output = model.generate(
                **inputs, **generation, logits_processor=progress, return_dict_in_generate=True, **kwargs
            )
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
    response_ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    logger.info("generated %d tokens in %.1f s", len(response_ids), time.perf_counter() - started)
    if response_ids and response_ids[-1] in end_ids(model):
        response_ids.pop()
    elif len(response_ids) >= limit:
        logger.warning("the response was cut at max_new_tokens=%d; raise it to see the whole answer", limit)
    if not response_ids:
        raise RuntimeError("the model answered with nothing but an end-of-sequence token; check prompt_template")
    return response_ids, output


def record_rows(
    model: Any, inputs: Any, layers: Sequence[int], head: str | int, generation: dict, response_ids: list[int] | None
) -> RecordedRows | None:
    """Generate and record by the registered function; None where the model never calls it.

    With `response_ids` nothing is generated: one teacher-forced pass gives every row.
    """
    P = inputs["input_ids"].shape[1]
    steps = generation["max_new_tokens"] if response_ids is None else len(response_ids)
    recorder = AttentionRecorder(layers, P - 1, head, steps, cross_layers(model.config), shared_heads(model))
    with recording(model, recorder):
        if response_ids is None:
            response_ids, _ = generate_response(model, inputs, generation)
        else:
            forced_pass(model, inputs, response_ids, logits_to_keep=slice(-1, None))
    if not recorder.reached:
        return None
    weights_TLK = recorder.weights(len(response_ids), P + len(response_ids))
    return RecordedRows(response_ids, weights_TLK, recorder.cross_keys)


def generate_fast(model: Any, inputs: Any, generation: dict) -> list[int] | None:
    """The response's ids by a static cache and a compiled step; None where that does not pay.

    It does not on a CPU, for a short answer, or where several processes share the model.
    Compiling takes a minute at first, and again for a prompt or answer beyond the length compiled for.
    """
    short = generation["max_new_tokens"] < SHORTEST_FAST_ANSWER
    if input_device(model).type != "cuda" or shared_heads(model) or short:
        facts = model.device, generation["max_new_tokens"]
        logger.log(NOTE, "fast changes nothing: it does not pay on %s for %d tokens at most", *facts)
        return None
    return generate_response(model, inputs, generation | {"cache_implementation": "static"})[0]


def record_rows_eager(
    model: Any, inputs: Any, layers: Sequence[int], head: str | int, generation: dict, response_ids: list[int] | None
) -> RecordedRows:
    """The same by transformers' own `output_attentions` with eager attention: every layer's S×S matrix is held."""
    P = inputs["input_ids"].shape[1]
    with text_attention(model, "eager"):
        if response_ids is None:
            response_ids, output = generate_response(model, inputs, generation, output_attentions=True)
            steps = [[step[n][0, :, -1:] for n in _attention_places(model, layers, step)] for step in output.attentions]
        else:
            attentions = forced_pass(model, inputs, response_ids, output_attentions=True).attentions
            places, queries = _attention_places(model, layers, attentions), range(P - 1, P - 1 + len(response_ids))
            steps = [[attentions[n][0, :, q : q + 1] for n in places] for q in queries]
    recorder = AttentionRecorder(
        layers, P - 1, head, len(response_ids), cross_layers(model.config), shared_heads(model)
    )
    for t in range(len(response_ids)):
        for layer, weights_H1K in zip(layers, steps[t]):
            weights_H1K = weights_H1K if layer in recorder.crossing else weights_H1K[..., : P + t]
            recorder.observe_weights(layer, weights_H1K[None], P - 1 + t)
    weights_TLK = recorder.weights(len(response_ids), P + len(response_ids))
    return RecordedRows(response_ids, weights_TLK, recorder.cross_keys)


def _attention_places(model: Any, layers: Sequence[int], attentions: Any) -> list[int]:
    """Where the layers stand in `attentions`, which may leave out layers without attention. Raises RuntimeError."""
    softmax = attention_layers(model.config)
    if not attentions or len(attentions) not in (len(softmax), model.config.get_text_config().num_hidden_layers):
        raise RuntimeError(
            f"{type(model).__name__} returned the attention of {len(attentions or ())} layers, not of {len(softmax)}: "
            "it cannot be recorded"
        )
    return [softmax.index(layer) if len(attentions) == len(softmax) else layer for layer in layers]


def insert_image_positions(
    token_ids: np.ndarray, weights_TLK: np.ndarray, located: Sequence[ImageTokens], crosses_L: Sequence[bool], keys: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(S,) ids and (T, L, S) weights with positions for the pictures' keys, and (S,) bool, which positions are text.

    Layers that cross hold weights of `keys` columns, as many a picture, padded; all other layers of the text alone.
    """
    image_positions = np.concatenate([image.positions for image in located])
    is_text = np.ones(len(token_ids) + len(image_positions), bool)
    is_text[image_positions] = False
    wide_ids, wide_TLS = np.zeros(len(is_text), np.int64), np.zeros((*weights_TLK.shape[:2], len(is_text)), np.float32)
    wide_ids[is_text] = token_ids
    for image in located:  # their ids: that of the token before them, which stands for the picture
        wide_ids[image.positions] = wide_ids[image.positions[0] - 1]
    columns = picture_columns(located, keys)
    for layer, crosses in enumerate(crosses_L):
        places, taken = (image_positions, columns) if crosses else (is_text, slice(len(token_ids)))
        wide_TLS[:, layer, places] = weights_TLK[:, layer, taken]
    return wide_ids, wide_TLS, is_text
