"""How a checkpoint is loaded, an answer made, and its attention recorded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from attention_heatmap.dataset import well_formed
from attention_heatmap.log import one_line, warn_once
from attention_heatmap.options import check_options, defaults_of, number_or_text, option
from attention_heatmap.recording import torch, transformers
from attention_heatmap.recording.layers import tp_size
from attention_heatmap.recording.prompt import DEFAULT_PROMPT_TEMPLATE, input_device

# What a cell gets anyway: the answer replayed after a request that asks for nothing in particular.
NEUTRAL_PROMPT = "Write a general description of the image."
_SHORTEST_FAST_ANSWER = 128  # tokens; for fewer, compiling takes longer than it saves
_model, _answer, _recording = (partial(option, group=group) for group in ("model", "answer", "recording"))


def _json_object(text: str) -> dict:
    with suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(text), dict):
            return value
    shown = one_line(text)[:200]
    raise argparse.ArgumentTypeError(f'{shown!r} is no JSON object; expected one such as {{"revision": "main"}}')


_JSON = {"type": _json_object, "metavar": "JSON"}


@dataclass(frozen=True)
class CheckpointOptions:
    """How a checkpoint is loaded."""

    device_map: str | dict | None = _model("auto", "as in from_pretrained: auto, cpu, cuda:0, ...", flag={"type": str})
    dtype: Any = _model("auto", "as in from_pretrained: auto, float32, bfloat16, ...; on a CPU auto is float32")
    tp_plan: str | dict | None = _model(
        None, "auto, under torchrun: its processes share every layer, in place of device_map",
        flag={"choices": ("auto",)},
    )  # fmt: skip
    trust_remote_code: bool = _model(False, "run Python code that comes with the checkpoint")
    allow_missing_weights: bool = _model(
        False, "go on where the checkpoint lacks weights of its model, which are then random"
    )
    model_kwargs: dict | None = _model(None, "more for the model's from_pretrained, as a JSON object", flag=_JSON)
    processor_kwargs: dict | None = _model(
        None, "more for the processor's from_pretrained, as a JSON object", flag=_JSON
    )

    def __post_init__(self) -> None:
        check_options(self)
        named = isinstance(self.dtype, str) and self.dtype != "auto"
        if named and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            expected = "auto or one of torch's, such as float32 or bfloat16"
            raise ValueError(f"dtype is {one_line(repr(self.dtype))}; expected {expected}")
        places = self.device_map.values() if isinstance(self.device_map, dict) else [self.device_map]
        if "meta" in map(str, places):
            raise ValueError("device_map names meta, a device without weights; give auto, cpu or cuda:0")


@dataclass(frozen=True)
class RecordingOptions:
    """How an answer is made and its attention recorded. Raises ValueError for what fits no sample and no model."""

    prompt_template: str = _answer(
        DEFAULT_PROMPT_TEMPLATE, "{Question} is replaced by the problem", shown="Reason-RFT's"
    )
    max_new_tokens: int = _answer(1024, "the most tokens to generate")
    do_sample: bool = _answer(False, "sample instead of taking the likeliest token")
    temperature: float = _answer(1.0, "of sampling")
    top_p: float = _answer(1.0, "of sampling")
    seed: int = _answer(0, "of sampling")
    fast: bool = _answer(False, "generate with a static cache and a compiled step: for long answers on a GPU")
    response: str | None = _answer(None, "an answer already known: its attention is shown, nothing is generated")
    response_key: str | None = _answer(None, "the same, from this field of the sample, such as solution")
    head: str | int | Sequence = _recording(
        "mean", "mean or max over the heads, one head, several such as 0-3, each, the mean of some such as 1+3, or "
        "auto: the one of each layer that agrees most with the others",
        flag={"nargs": "+", "metavar": "HEAD", "type": number_or_text},
    )  # fmt: skip
    attention: str = _recording(
        "auto", "how to record; eager is transformers' output_attentions, which needs far more memory",
        choices=("auto", "eager"),
    )  # fmt: skip
    max_pixels: int | None = _recording(None, "shrink pictures of more pixels first, for a smaller memory")
    neutral_prompt: str | None = _recording(
        None, "replay the answer after this text, too, for the baselines neutral and relative", flag={"metavar": "TEXT"}
    )

    def __post_init__(self) -> None:
        check_options(self)
        if "{Question}" not in self.prompt_template:
            template = f"prompt_template {self.prompt_template!r}"
            raise ValueError(f"{template} has no {{Question}}; put it where the problem goes")
        for name in ("max_new_tokens", "max_pixels"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name} is {number}; expected 1 or more")
        usable = self.temperature > 0 and 0 < self.top_p <= 1 and 0 <= self.seed < 2**32
        if self.do_sample and not usable:
            given = f"temperature is {self.temperature}, top_p {self.top_p}, seed {self.seed}"
            raise ValueError(f"{given}; expected above 0, 0..1, and 0..{2**32 - 1}")
        unused, why = ["temperature", "top_p", "seed"], "without do_sample changes nothing; add do_sample, or"
        if self.response is not None or self.response_key is not None:
            unused, why = [*unused, "do_sample", "fast", "max_new_tokens"], "with a given response changes nothing;"
        elif self.do_sample:
            unused = []
        defaults = defaults_of(type(self))
        if named := [name for name in unused if getattr(self, name) != defaults[name]]:
            warn_once(f"{', '.join(named)} {why} leave that out")

    def generation(self, model: Any) -> dict[str, Any]:
        """What the model's `generate` is told; sampling starts at its seed."""
        most, told = self.max_new_tokens, {"max_new_tokens": self.max_new_tokens, "do_sample": self.do_sample}
        if self.do_sample:
            transformers.set_seed(self.seed)
            told |= {"temperature": self.temperature, "top_p": self.top_p}
        else:  # None: a checkpoint's own sampling settings would only warn here
            told |= dict.fromkeys(("temperature", "top_p", "top_k"))
        if self.fast and input_device(model).type == "cuda" and tp_size(model) == 1 and most >= _SHORTEST_FAST_ANSWER:
            told["cache_implementation"] = "static"  # whose step is compiled
        elif self.fast:
            warn_once(f"fast changes nothing: it does not pay on {model.device} for {most} tokens at most")
        return told

    def given_response(self, sample: dict) -> str | None:
        """The answer that is already known, if one was named."""
        response, key = self.response, self.response_key
        if key is not None:
            if response is not None:
                raise ValueError("response and response_key were both given; give one of them")
            if key not in sample:
                raise ValueError(f"response_key {key!r} is no key of the sample; it has {sorted(map(str, sample))}")
            response = sample[key]
            if not isinstance(response, str):
                kind = type(response).__name__
                raise ValueError(f"response_key {key!r} names a {kind} in the sample; expected a text, the answer")
        if response is None:
            return None
        if not isinstance(response, str) or not response:
            raise ValueError(f"the given response is {one_line(repr(response))}; expected a text that is not empty")
        return well_formed(response)
