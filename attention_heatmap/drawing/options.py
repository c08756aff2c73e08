"""How a video looks."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attention_heatmap.drawing.colour import COLORMAPS, Colormap, colour_map
from attention_heatmap.drawing.fonts import FONT_TEXT, FontSet
from attention_heatmap.drawing.video import check_fps
from attention_heatmap.log import one_line
from attention_heatmap.maps import BASELINES
from attention_heatmap.options import are_whole, check_options, expand, number_or_text, option, pick

DEFAULT_FRAME_SIZE = (1920, 1080)  # pixels, width and height; both even for yuv420p
_SMALLEST_FRAME = (640, 360)  # pixels; below it the legend no longer fits
_LARGEST_SIDE_OF_FRAME = 8192  # pixels; players and the memory take no more
_LEAST_SMOOTH = 0.1  # cells; a narrower Gaussian reaches no other cell
# What the view "clear" sets where it is left at its default: of recording, then of drawing.
CLEAR_RECORDING, _CLEAR_DRAWING = {"layer_idx": "auto", "head": "auto"}, {"baseline": "median", "sinks": True}
PAGE = "html"
VIDEOS, STILLS = ("mp4", "gif", "webm"), ("png", "pdf", "svg")
_MOST_POWER = 10
_MAP, PICTURE, _OUTPUT = "map", "picture", "output"  # headings of the flags


def _read_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{one_line(text)!r} is no size; expected WIDTHxHEIGHT, such as 1920x1080")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class DrawingOptions:
    """How a video looks. Raises ValueError or OSError for an option that cannot be used."""

    view: str = option(
        "plain", "plain: the model's weights; clear: layer and head auto, baseline median, sinks", group=_MAP,
        choices=("plain", "clear"),
    )  # fmt: skip
    baseline: str = option(
        "off", "take off what every cell gets anyway: its median over the steps, or its mean under a neutral prompt; "
        "relative divides by the latter", group=_MAP, choices=tuple(BASELINES),
    )  # fmt: skip
    sinks: bool = option(
        False, "hatch cells that glow at nearly all steps, and leave them out of the scale", group=_MAP
    )
    smooth: float = option(0, "width of a Gaussian over the map, in cells", group=_MAP)
    scale: str = option(
        "frame", "each frame's own colour scale; one for all frames, to compare them; or that one by the logarithm of "
        "the weight, which keeps weak frames readable", group=PICTURE, choices=("frame", "video", "log"),
    )  # fmt: skip
    power: float = option(1, "colours follow this power of the weight: 0.5, say, brings weak cells out", group=PICTURE)
    picture: str = option(
        "muted", "the picture under the heat: paler and lighter, in its own colours, or in grey", group=PICTURE,
        choices=("muted", "colour", "grey"),
    )  # fmt: skip
    colormap: str | Colormap = option(
        "red_to_green", f"colours of low to high weights: {', '.join(COLORMAPS)}, or a name that matplotlib knows; in "
        "Python also any function of (n,) weights in 0..1 to (n, 3) or (n, 4) colours", group=PICTURE,
        flag={"metavar": "NAME"},
    )  # fmt: skip
    together: str = option(
        "off", "put the planes asked for into one video, each map on its own scale, or all on a shared one",
        group=PICTURE, choices=("off", "own", "shared"), flag={"nargs": "?", "const": "own"},
    )  # fmt: skip
    difference: bool = option(
        False, "of two checkpoints or records, also draw the difference of their maps, on a two-sided scale",
        group=PICTURE,
    )  # fmt: skip
    text_style: str = option(
        "tint", "colour the ground of the text, or its glyphs", group=PICTURE, choices=("tint", "glyph")
    )
    draw_points: str = option(
        "auto", "mark the places that the answer names, in thousandths of the picture or its pixels", group=PICTURE,
        choices=("auto", "thousandths", "pixels", "off"),
    )  # fmt: skip
    frame_size: tuple[int, int] = option(
        DEFAULT_FRAME_SIZE, "width and height in even pixels; in a tall frame wide pictures stand above the text",
        group=PICTURE, flag={"type": _read_size, "metavar": "WxH"}, shown="{}x{}".format(*DEFAULT_FRAME_SIZE),
    )  # fmt: skip
    font_path: str | None = option(None, "font of the text, a .ttf, .otf or .ttc file", group=PICTURE)
    fps: float = option(2, "frames a second", group=_OUTPUT)
    format: str = option(
        "mp4", "a video: mp4, webm (VP9) or gif (at most 960 pixels wide); or no video, but what frames and summary "
        "ask for, as png, pdf or svg; or html, a page to explore", group=_OUTPUT, choices=(*VIDEOS, *STILLS, PAGE),
    )  # fmt: skip
    frames: int | str | Sequence[int | str] = option(
        (), "tokens whose frames are also written as pictures, by the numbers that the frames name, from 1: 52, 50-59, "
        "-1 for the last, or all", group=_OUTPUT,
        flag={"type": number_or_text, "nargs": "*", "metavar": "TOKEN"},
    )  # fmt: skip
    figure: str = option(
        "frame", "what such a picture shows: the whole frame, or the map alone", group=_OUTPUT, choices=("frame", "map")
    )
    summary: bool = option(
        False, "also write one picture: the response, maps of single words, mean maps of the phases", group=_OUTPUT
    )
    overview: str | None = option(
        None, "also write one PNG of all planes (a row a layer, a column a head) for this word, phase or step",
        group=_OUTPUT, flag={"metavar": "WORD"},
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_options(self)
        check_fps(self.fps, f".{self.format if self.format in VIDEOS else VIDEOS[0]}")
        if not 0 < self.power <= _MOST_POWER:
            raise ValueError(f"power is {self.power}; expected a number above 0, at most {_MOST_POWER}; 1 for none")
        if self.smooth and self.smooth < _LEAST_SMOOTH:
            expected = f"a width in cells, {_LEAST_SMOOTH} or more, or 0 for none"
            raise ValueError(f"smooth is {self.smooth}; expected {expected}")
        colour_map(self.colormap)
        object.__setattr__(self, "frames", self._numbers())
        if not are_whole(self.frame_size) or len(self.frame_size) != 2:
            given = one_line(repr(self.frame_size))
            raise ValueError(f"frame_size is {given}; expected whole pixels, such as {DEFAULT_FRAME_SIZE}")
        sides = list(zip(self.frame_size, _SMALLEST_FRAME))
        if any(side % 2 or not least <= side <= _LARGEST_SIDE_OF_FRAME for side, least in sides):
            given, least = ("x".join(map(str, size)) for size in (self.frame_size, _SMALLEST_FRAME))
            expected = f"both must be even, at least {least} and at most {_LARGEST_SIDE_OF_FRAME}"
            raise ValueError(f"frame_size {given} cannot be used: {expected}")
        FontSet(FONT_TEXT, self.font_path)
        for name, value in _CLEAR_DRAWING.items():
            if self.view == "clear" and getattr(self, name) == type(self).__dataclass_fields__[name].default:
                object.__setattr__(self, name, value)

    def _numbers(self) -> tuple[int | str, ...]:
        """The tokens that frames names: numbers, or "all". Raises ValueError for anything else."""
        numbers = tuple(expand(self.frames, "frames"))
        wrong = [one for one in numbers if one != "all" and not (are_whole([one]) and one)]
        if wrong:
            zero = are_whole(wrong[:1])
            advice = (
                "tokens are numbered from 1, as in the heading of each frame" if zero else "such as 52, 50-59 or all"
            )
            shown = one_line(repr(self.frames))[:200]
            raise ValueError(f"frames is {shown}; expected the numbers of tokens: {advice}")
        return tuple(one if one == "all" else int(one) for one in numbers)

    @property
    def map(self) -> tuple[str, bool, float]:
        """What is done to the weights before they are drawn: the last arguments of `shown_rows` and `view_names`."""
        return self.baseline, self.sinks, self.smooth


def drawing_options(given: dict[str, Any]) -> DrawingOptions:
    """Options of drawing, given by name. Raises ValueError for a name that there is not, with the nearest."""
    return DrawingOptions(**pick(given, DrawingOptions)[0])
