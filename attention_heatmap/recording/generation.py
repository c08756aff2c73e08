"""The answer by plain `generate`, then its rows by one teacher-forced pass."""

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attention_heatmap.log import NOTE, logger, one_line
from attention_heatmap.options import are_whole
from attention_heatmap.record import ImageTokens
from attention_heatmap.recording import torch, transformers
from attention_heatmap.recording.attention import recording, text_attention
from attention_heatmap.recording.layers import attention_layers, cross_layers, tp_size
from attention_heatmap.recording.prompt import forced_pass
from attention_heatmap.recording.recorder import AttentionRecorder, Plane

# Ends of names of settings that need no mention: no answer that is the likeliest at each token changes by them.
_UNSAID_SETTINGS = (
    "_id", "_version", "temperature", "top_p", "top_k", "top_h", "min_p", "typical_p", "_cutoff", "max_length",
    "max_new_tokens", "cache_implementation", "num_return_sequences", "assistant_confidence_threshold",
)  # fmt: skip

_locks: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # one a model


@contextmanager
def alone_with(model: Any) -> Iterator[None]:
    """Within this block no other thread uses the model by way of this package; one that wants to waits.

    A model in training is in evaluation mode meanwhile; each of its modules gets back the mode that it had.
    """
    lock = _locks.setdefault(model, threading.RLock())
    if not lock.acquire(blocking=False):
        logger.info("the model is in use by another thread; waiting")
        lock.acquire()
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True
        lock.release()


def end_ids(model: Any) -> set[int]:
    """The ids that end a response. Raises ValueError where the checkpoint names something else."""
    ids = model.generation_config.eos_token_id
    ids = model.config.get_text_config().eos_token_id if ids is None else ids
    found = ids if isinstance(ids, (list, tuple)) else [ids]
    if ids is not None and not (found and are_whole(found)):
        raise ValueError(f"the checkpoint's eos_token_id is {one_line(ids)}; expected the id of a token, or several")
    return set(found) - {None}


def say_decoding_settings(model: Any, do_sample: bool) -> None:
    """Name the settings of the checkpoint that change its answer, and those that are set aside."""
    changed = model.generation_config.to_diff_dict()
    kept = [
        f"{name}={value}" for name, value in changed.items()
        if (name.startswith("forced_") or not name.endswith(_UNSAID_SETTINGS)) and not isinstance(value, bool | None)
    ]  # fmt: skip
    if kept:
        logger.log(NOTE, "the checkpoint's own settings of generation are kept: %s", ", ".join(kept))
    if changed.get("do_sample") and not do_sample:
        logger.info("the checkpoint asks for sampling; the likeliest token is taken, unless do_sample is given")


def generate_response(model: Any, inputs: Any, generation: dict) -> list[int]:
    """The ids of the model's answer, without the end-of-sequence token and what may follow it, by plain `generate`."""
    from tqdm import tqdm

    ends, cudnn = end_ids(model), torch.backends.cuda.cudnn_sdp_enabled()
    static = generation.get("cache_implementation") or model.generation_config.cache_implementation

    def move_on(input_ids: Any, scores: Any) -> Any:  # a streamer would wait for each token, and refuse beams
        bar.update()
        # The prompt's pass is over. Where the cache grows, each step has a number of keys of its own, and for each new
        # one cuDNN's attention, torch's first choice on some GPUs, gets ready anew, which tripled the time.
        torch.backends.cuda.enable_cudnn_sdp(cudnn and static is not None)
        return scores

    limit, started = generation["max_new_tokens"], time.perf_counter()
    own = {"logits_processor": transformers.LogitsProcessorList([move_on]), "return_dict_in_generate": False}
    try:
        with tqdm(total=limit, desc="generating", unit="token", leave=None) as bar, torch.inference_mode():
            output = model.generate(**inputs, **generation, **own)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    response_ids = ids[: next((n for n, one in enumerate(ids) if one in ends), len(ids))]
    logger.info("generated %d tokens in %.1f s", len(ids), time.perf_counter() - started)
    if len(response_ids) >= limit:
        logger.warning("the response was cut at max_new_tokens=%d; raise it to see the whole answer", limit)
    if not response_ids:
        raise RuntimeError("the model answered with nothing but an end-of-sequence token; check prompt_template")
    return response_ids


def record_rows(
    model: Any, inputs: Any, planes: Sequence[Plane], response_ids: list[int], attention: str = "auto",
    located: Sequence[ImageTokens] = (),
) -> AttentionRecorder:  # fmt: skip
    """The rows of a response, as `weights` of a recorder, by one teacher-forced pass over prompt and response.

    attention: "auto": by the registered function or, where the model never calls it, with a warning by "eager":
    transformers' `output_attentions`, where every layer's S×S matrix is held. located: the pictures, for layers that
    cross.
    """
    lengths, crossing = (inputs["input_ids"].shape[1], len(response_ids)), cross_layers(model.config)
    recorder = AttentionRecorder(planes, *lengths, located, crossing, tp_size(model))
    if attention == "auto":
        with recording(model, recorder):
            forced_pass(model, inputs, response_ids, logits_to_keep=slice(-1, None))
        if recorder.reached:
            return recorder.finish()
        told = f"{type(model).__name__} does not go through transformers' AttentionInterface: falling back to eager"
        more = "which holds every layer's S×S weights and may run out of memory"
        logger.warning("%s attention with output_attentions, %s", told, more)
    with text_attention(model, "eager"):
        attentions = forced_pass(model, inputs, response_ids, output_attentions=True).attentions or ()
    # Some models leave out their layers without attention.
    numbers, every = attention_layers(model.config), range(model.config.get_text_config().num_hidden_layers)
    if len(attentions) not in (len(numbers), len(every)):
        found = f"the attention of {len(attentions)} layers, not of {len(numbers)}"
        raise RuntimeError(f"{type(model).__name__} returned {found}: it cannot be recorded")
    by_layer = dict(zip(numbers if len(attentions) == len(numbers) else every, attentions))
    for layer in {layer for layer, _ in planes}:
        recorder.observe_weights(layer, by_layer[layer])
    return recorder.finish()
