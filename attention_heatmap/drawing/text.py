"""The text of the panel: where it begins, and the pieces that are coloured."""

import re
from dataclasses import dataclass

import numpy as np

from attention_heatmap.log import logger
from attention_heatmap.record import AttentionRecord


def find_panel_start(record: AttentionRecord, start_phrase: str) -> tuple[int, int]:
    """The position at which the text panel begins, and the first step that gets a frame.

    The phrase is looked for in the problem (last occurrence), then in the response (first one: the video then
    begins there). Where it is absent, the panel begins at the problem; where none is given, at the response.
    """
    P, text = record.prompt_length, "".join(record.tokens)
    if not start_phrase:
        return P, 0
    ends = np.cumsum([0, *map(len, record.tokens)])
    first, last = record.problem or (0, P)
    at = text.rfind(start_phrase, int(ends[first]), int(ends[last]))
    at = at if at >= 0 else text.find(start_phrase, int(ends[P]))
    if at >= 0:
        position = int(np.searchsorted(ends, at, side="right")) - 1
        return position, max(position - P, 0)
    last_line = "".join(record.tokens[first:last]).strip().rpartition("\n")[2]
    logger.warning(
        "start_phrase %r does not occur: the text begins at the problem; to begin elsewhere, give words of it, "
        "such as start_phrase %r, or '' for the answer alone",
        start_phrase, last_line.rpartition(". ")[2].strip()[:40],
    )  # fmt: skip
    return first, 0


@dataclass(frozen=True)
class TextPiece:
    """A stretch of positions that is shown as one: a token, a character of several tokens, a run of image tokens."""

    start: int  # first position
    text: str
    kind: str  # "text", "special" or "image"


def text_pieces(record: AttentionRecord, start: int) -> list[TextPiece]:
    """The pieces of the text panel: together they cover every position from `start` to the end."""
    image_of = {int(p): number for number, image in enumerate(record.images, 1) for p in image.positions}
    special, pieces = set(record.special_ids), []
    waiting = None  # first position of a character that is not complete yet
    for position in range(start, len(record.tokens)):
        if number := image_of.get(position):
            if position == start or image_of.get(position - 1) != number:
                pieces.append(TextPiece(position, f"[image {number}]", "image"))
            continue
        waiting = position if waiting is None else waiting
        text = record.tokens[position]
        if text or position == len(record.tokens) - 1:
            kind = "special" if int(record.token_ids[position]) in special else "text"
            pieces.append(TextPiece(waiting, text if pieces else text.lstrip(" "), kind))
            waiting = None
    return pieces


LETTERS = re.compile(r"[^\W\d_]+")
# Scripts written without spaces: a line may break before and after each of their characters.
BREAK_ANYWHERE = re.compile(
    "[\u1100-\u11ff\u2e80-\u303f\u3040-\u30ff\u3100-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
