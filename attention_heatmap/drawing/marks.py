"""Places that an answer names: points and boxes, and the picture that each is in."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attention_heatmap.phases import Phase, response_ends, response_phases
from attention_heatmap.record import AttentionRecord

_N = r"\s*(\d+(?:\.\d+)?)\s*"
# (x1,y1),(x2,y2) is a box where nothing but one comma joins exactly two; else each bracket stands for itself.
_COORDINATES = re.compile(
    rf"(?<!\),)\({_N},{_N}\),\({_N},{_N}\)(?!,\()|[(\[（]{_N}[,，]{_N}(?:[,，]{_N}[,，]{_N})?[)\]）]"
)
_NOUN = r"(?:image|picture|photo|figure|图片?)"
_NUMERALS = (
    ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"],
    list("一二三四五六七八九十"),
)
_CARDINAL, _ORDINAL, _CHINESE = map("|".join, _NUMERALS)
PICTURE_NAMED = re.compile(
    rf"{_NOUN}\s*#?\s*(\d{{1,4}}(?!\d)|(?:{_CARDINAL})(?![a-z])|{_CHINESE})"
    rf"|(?:({_ORDINAL})|(\d{{1,4}})(?:st|nd|rd|th)|第\s*({_CHINESE}|\d{{1,4}}))\s*[张幅个]?\s*{_NOUN}",
    re.IGNORECASE,
)
MOST_INSIDE = 64  # boxes that the attention inside is counted of


@dataclass(frozen=True)
class Mark:
    """A place that the response names."""

    step: int  # the response token that completes it
    phase: str
    image: int  # which picture it is in, from 0
    corners: tuple[float, ...]  # x, y of a point or left, top, right, bottom of a box, 0..1 of the picture's sides


def response_marks(
    record: AttentionRecord, plane: int, sizes: Sequence[tuple[int, int]], draw_points: str = "auto"
) -> list[Mark]:
    """The points `(x,y)`, `[x, y]` and the boxes `(x1,y1),(x2,y2)`, `[x1, y1, x2, y2]` that the response names.

    sizes: width and height of the pictures. draw_points: "thousandths" or "pixels" (of the pictures as given);
    "auto" takes thousandths unless a number is above 1000 or the prompt speaks of pixels; "off" finds none.
    With several pictures a place belongs to the one that the text has named last in this phase ("picture two");
    else to that of an earlier mark at the same place; else to the one with more attention while it was written.
    What lies outside its picture is left out.
    """
    P, text, ends, phases = record.prompt_length, record.response, response_ends(record), response_phases(record)
    found = list(_COORDINATES.finditer(text)) if draw_points != "off" and sizes else []
    places = [(match, tuple(float(group) for group in match.groups() if group)) for match in found]
    # (1,000) is a number, and places that are all 0 or 1 are intervals and the like.
    places = [(match, place) for match, place in places if not re.search(r"(?<![\d.])0\d", match[0]) and max(place) > 1]
    in_pixels = any(max(place) > 1000 for _, place in places) or "pixel" in "".join(record.tokens[:P]).lower()
    in_pixels = draw_points == "pixels" or (draw_points == "auto" and in_pixels)
    rows_TS = record.rows(plane)
    looked_IT = np.array([rows_TS[:, image.positions].sum(axis=1) for image in record.images])
    marks: list[Mark] = []
    image_of: dict[tuple, int] = {}
    names = list(PICTURE_NAMED.finditer(text)) if len(sizes) > 1 else []
    for match, place in places:
        first, last = np.searchsorted(ends, (match.start(), match.end() - 1), side="right").tolist()
        phase = next((phase for phase in phases if phase.first <= last < phase.last), Phase("", 0, 0))
        before = bisect_right(names, match.start(), key=re.Match.end)
        inside = before and names[before - 1].start() >= (ends[phase.first - 1] if phase.first else 0)
        image = _number_named(names[before - 1]) if inside else None
        if image not in range(len(sizes)):
            image = image_of.get(place, int(looked_IT[:, first : last + 1].sum(axis=1).argmax()))
        image_of[place] = image
        whole = np.resize(sizes[image] if in_pixels else 1000, len(place))
        corners = tuple((np.array(place) / whole).tolist())
        if max(corners) <= 1 and all(low < high for low, high in zip(corners[:2], corners[2:])):
            marks.append(Mark(last, phase.name, image, corners))
    return marks


def _number_named(match: re.Match) -> int | None:
    """The picture that a match names, from 0, whether there are so many or not."""
    name = "".join(match.groups("")).lower()
    return (
        int(name) - 1 if name.isdecimal() else next((words.index(name) for words in _NUMERALS if name in words), None)
    )


def share_inside(
    record: AttentionRecord, plane: int, step: int, marks: Sequence[Mark], sizes: Sequence
) -> float | None:
    """How much of a step's attention on the pictures lies inside the boxes among the marks; None without a box."""
    boxes = [mark for mark in marks if len(mark.corners) == 4]
    row_S, inside, total = record.rows(plane)[step], 0.0, 0.0
    for number, (tokens, size) in enumerate(zip(record.images, sizes)):
        own = [mark.corners for mark in boxes if mark.image == number]
        covered, weights = (
            _covered(tokens.boxes / np.resize(size, 4), np.reshape(own, (-1, 4))),
            row_S[tokens.positions],
        )
        inside, total = inside + float(weights @ covered), total + float(weights.sum())
    return inside / total if boxes and total else None


def _covered(cells_N4: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) the part of each cell that lies in any of the boxes, which may overlap; 0 for a cell without a place."""
    sides, along = [], []
    for low in (0, 1):  # the boxes' edges cut the picture into columns and rows
        edges = np.unique(boxes[:, [low, low + 2]])
        ends = np.minimum(cells_N4[:, low + 2, None], edges[1:]) - np.maximum(cells_N4[:, low, None], edges[:-1])
        along.append(np.clip(np.nan_to_num(ends), 0, None))
        sides.append((boxes[:, low, None] <= edges[:-1]) & (boxes[:, low + 2, None] >= edges[1:]))
    inside_XY = (sides[0][:, :, None] & sides[1][:, None]).any(axis=0)
    area_N = (cells_N4[:, 2:] - cells_N4[:, :2]).prod(axis=1)
    return np.nan_to_num(((along[0] @ inside_XY) * along[1]).sum(axis=1) / area_N)
