"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from attention_heatmap.dataset import well_formed
from attention_heatmap.log import warn_once
from attention_heatmap.options import check_kinds
from attention_heatmap.recording.prompt import DEFAULT_PROMPT_TEMPLATE, check_prompt_template

DEFAULT_MAX_NEW_TOKENS = 1024
# What a cell gets anyway: the answer replayed after a request that asks for nothing in particular.
NEUTRAL_PROMPT = "Write a general description of the image."


@dataclass(frozen=True)
class RecordingOptions:
    """How an answer is made and its attention recorded. Raises ValueError for what fits no sample and no model."""

    prompt_template: str = DEFAULT_PROMPT_TEMPLATE
    """Its {Question} is replaced by the sample's problem."""
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    """The most tokens to generate."""
    do_sample: bool = False
    """Sample, by temperature, top_p and seed, instead of taking the likeliest token."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    response: str | None = None
    """An answer already known: nothing is generated, one teacher-forced pass gives its rows."""
    response_key: str | None = None
    """The same, from a field of the sample."""
    head: str | int | Sequence[int] = "mean"
    """"mean" or "max" over the heads, the number of one, the mean of several, or "auto": one a layer, see
    `choose_heads`. What is "auto" costs two passes over the answer."""
    attention: str = "auto"
    """"eager": transformers' own `output_attentions`, slow and hungry for memory."""
    max_pixels: int | None = None
    """Shrink pictures of more pixels before the processor sees them, for a smaller memory."""
    fast: bool = False
    """Compiled generation, then one pass over the answer to record; for long answers on a GPU only."""
    neutral_prompt: str | None = None
    """Replay the answer after this text, too, such as NEUTRAL_PROMPT, for the baselines "neutral" and "relative";
    one more pass."""

    def __post_init__(self) -> None:
        check_kinds(self)
        check_prompt_template(self.prompt_template)
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")
        if self.attention not in ("auto", "eager"):
            raise ValueError(f"attention is {self.attention!r}; expected 'auto' or 'eager'")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}; expected 1 or more")
        usable = self.temperature > 0 and 0 < self.top_p <= 1 and 0 <= self.seed < 2**32
        if self.do_sample and not usable:
            raise ValueError(
                f"temperature is {self.temperature}, top_p {self.top_p}, seed {self.seed}; expected above 0, 0..1, and "
                f"0..{2**32 - 1}"
            )
        sampling = [
            name for name in ("temperature", "top_p", "seed") if getattr(self, name) != getattr(type(self), name)
        ]
        if sampling and not self.do_sample:
            warn_once(f"without do_sample nothing comes of {', '.join(sampling)}; add it, or leave that out")

    def generation(self) -> dict:
        """What `generate` is told; sampling starts at its seed."""
        if not self.do_sample:  # None: a checkpoint's own sampling settings would only warn here
            unused = dict.fromkeys(("temperature", "top_p", "top_k"))
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False, **unused}
        from transformers import set_seed

        set_seed(self.seed)
        names = ("max_new_tokens", "do_sample", "temperature", "top_p")
        return {name: getattr(self, name) for name in names}

    def given_response(self, sample: dict) -> str | None:
        """The answer that is already known, if one was named."""
        response, key = self.response, self.response_key
        if response is not None and key is not None:
            raise ValueError("response and response_key were both given; give one of them")
        if key is not None:
            if key not in sample:
                raise ValueError(f"response_key {key!r} is no key of the sample; it has {sorted(map(str, sample))}")
            response = sample[key]
            if not isinstance(response, str):
                kind = type(response).__name__
                raise ValueError(f"response_key {key!r} names a {kind} in the sample; expected a text, the answer")
        if response is not None and (not isinstance(response, str) or not response):
            raise ValueError(f"the given response is {response!r}; expected a text that is not empty")
        return response if response is None else well_formed(response)


RECORDING_OPTIONS = [field.name for field in fields(RecordingOptions)]
