"""The phases of a response: the thinking, then the answer."""

import re
from dataclasses import dataclass

import numpy as np

from attention_heatmap.options import number_or_text
from attention_heatmap.record import AttentionRecord


@dataclass(frozen=True)
class Phase:
    """A stretch of the response, such as the thinking before the answer."""

    name: str  # "think", "answer", or "response" where no tag parts the two
    first: int  # first step
    last: int  # first step after it


def response_ends(record: AttentionRecord) -> np.ndarray:
    """(T,) int, the character of the response at which each of its tokens ends."""
    return np.cumsum([len(token) for token in record.tokens[record.prompt_length :]], dtype=int)


def response_phases(record: AttentionRecord) -> list[Phase]:
    """The phases, from the tags in the response. `<think>` may stand in the prompt: `</think>` alone ends it."""
    text, ends = record.response, response_ends(record)
    thought, answer = text.find("</think>"), text.find("<answer>")
    think = text.find("<think>") if "<think>" in text else 0
    think_end = thought + len("</think>") if thought >= 0 else answer if answer >= 0 else len(text)
    spans = [("think", think, think_end)] if "<think>" in text or thought >= 0 else []
    if answer >= 0 or (thought >= 0 and think_end < len(text)):
        spans.append(("answer", max(answer, think_end) if spans else answer, len(text)))
    steps = [(name, *np.searchsorted(ends, (first, last - 1), side="right").tolist()) for name, first, last in spans]
    T = record.response_length
    phases = [Phase(name, first, min(last + 1, T)) for name, first, last in steps if first < T]
    if len(phases) > 1:  # a token may hold the end of one tag and the start of the other
        phases[0] = Phase("think", phases[0].first, phases[1].first)
        phases = [phase for phase in phases if phase.first < phase.last]
    return phases or [Phase("response", 0, T)]


def steps_of(record: AttentionRecord, what: int | str) -> tuple[str, list[int]]:
    """What is asked for in words, and its steps: a token's number, a phase, or a word, by the tokens that begin it.

    Tokens are numbered from 1, as in the frames. Raises ValueError where the response has no such token or word.
    """
    T = record.response_length
    number = number_or_text(what) if isinstance(what, str) else what
    if isinstance(number, int):
        step = record.step_of(number)
        return f"token {step + 1}, “{record.tokens[record.prompt_length + step].strip()}”", [step]
    for phase in [*response_phases(record), Phase("response", 0, T)]:
        if phase.name == what:
            return f"{what}: mean of {phase.last - phase.first} steps", list(range(phase.first, phase.last))
    found = [match.start() for match in re.finditer(f"(?={re.escape(what)})", record.response)] if what else []
    if not found:
        raise ValueError(
            f"the response does not hold {what!r}; give one of its words, a phase such as answer, or a step"
        )
    steps = list(dict.fromkeys(np.searchsorted(response_ends(record), found, side="right").tolist()))
    return f"“{what}”: " + (f"mean of {len(steps)} mentions" if len(steps) > 1 else f"token {steps[0] + 1}"), steps
