"""See what a vision-language model looks at while it answers.

The module reads top to bottom as the data goes:

    sample -> inputs -> generation + attention rows -> record -> image boxes / text pieces / maps -> frames -> video

Model code ends at the record: everything after it is NumPy and Pillow and needs no torch, which is
imported only inside the functions that run the model.

Dimension key (suffixes of local arrays):
    P prompt tokens   T response tokens   S = P + T positions   L recorded layers   H query heads
    G key/value heads   Q queries of one call   K keys (columns)   N image tokens of one picture
    R regions of the pictures
    Y, X pixel rows and columns   C colour channels
"""

from __future__ import annotations

import argparse
import base64
import csv
import errno
import gc
import hashlib
import html
import inspect
import io
import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import chain, groupby
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

logger = logging.getLogger("visualizeHeatMap")
warn_once = lru_cache(logger.warning)  # options are made anew for each sample

# ---------------------------------------------------------------------------------------- constants

DEFAULT_START_PHRASE = "Based on the following requirements"
# Reason-RFT's own question prompt; {Question} is replaced by the sample's problem.
DEFAULT_PROMPT_TEMPLATE = (
    "{Question} Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
)
DEFAULT_LAYER = 20  # falls back to the last layer of a shallower model
DEFAULT_MAX_NEW_TOKENS = 1024
DEFAULT_FRAME_SIZE = (1920, 1080)  # pixels, width and height; both even for yuv420p
TALL_FRAME_SIZE = (1600, 1920)  # of a frame taller than wide in which lengths are the same
SMALLEST_FRAME = (640, 360)  # pixels; below it the legend no longer fits
LARGEST_SIDE_OF_FRAME = 8192  # pixels; players and the memory take no more
# Names of our attention functions in transformers; must not contain flash, flex, sdpa or paged.
RECORDING_ATTENTION, NO_ATTENTION = "record_rows", "no_attention"
KINDS_WITHOUT_ROWS = ("linear_attention", "conv", "mamba", "recurrent", "moe")  # of transformers' layer_types
SHORTEST_FAST_ANSWER = 128  # tokens; for fewer, compiling takes longer than it saves
LARGEST_FLOAT32_RECORD = 2**28  # bytes; larger ones are float16, whose error of 0.05% is below a colour's step
VALUES_AT_ONCE = 2**23  # scores of single heads, about, that stand on the device at once
LARGEST_QUEUE = 32  # transfers to the host that have not been put in their place yet
ROWS_PER_BLOCK = 64  # queries of a layer that are taken together, at most
LARGEST_UNCHECKED_ARCHIVE = 2**28  # bytes that a record may unpack to, however small its file is
LARGEST_COMPRESSION = 200  # times; real records reach 100 where a sliding window leaves most weights 0
# Number of a head, nats a token, a weight that was rounded: in a record that is read.
LARGEST_HEAD, LARGEST_FALL, LARGEST_WEIGHT = 2**16, 700, 1.01
LARGEST_SIDE = 2**20  # pixels of a picture, in a record that is read
PICTURE_BYTES = 1 << 20  # a record keeps a picture whose PNG is larger as a JPEG
RAMP_BASE, RAMP_MAIN, RAMP_SIDE = 16, 200, 20  # levels of 0..255: of the ramp that is shown to a processor
SMALLEST_VISIBLE_PART = 0.02  # of a cell's side; less of the picture in it is rounding
MEMORY_MARGIN = 1.2  # times an estimate of memory: what is rounded up, and what stands for no large array
# Words of a RuntimeError which means that no memory is left: on the host, on an Apple GPU, in cuBLAS.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
SURE_PART = 0.8  # of an estimate: where not even this is free, a run surely does not fit
LATER_PROCESS_WAITS = 5  # seconds before any process but the first tells its error
RECORD_FORMAT = 1  # version written into every .npz
NOTE = 25  # level of what the user asked to be told (a choice, a verdict), in the log between info and warning
logging.addLevelName(NOTE, "NOTE")

SURVEY_REGIONS = 8  # rows and columns of the coarse grid on which heads are compared, whatever the cells' size
# What a cell gets anyway: the answer replayed after a request that asks for nothing in particular.
NEUTRAL_PROMPT = "Write a general description of the image."
LEAST_BASELINE = 0.1  # of its mean over the image tokens; a smaller one would make a ratio of nothing to nothing glow
# A sink: a weight that many times the mean of all but the highest twentieth, in so large a part of the steps.
SINK_TIMES, SINK_STEPS, SINK_OTHERS = 10, 0.95, 0.95
FEWEST_SINK_STEPS = 10  # an answer of fewer tokens cannot tell a sink from what all of it looks at
# The check hides this part of the cells; 19 random draws, so that chance beats all of them 1 time in 20.
CHECK_PART, CHECK_DRAWS, CHECK_MATTERS = 0.2, 19, 1.05
CHECK_UNCLEAR = 15  # draws beaten, at least, for a map that may still point: chance does it 1 time in 4
LEAST_SMOOTH = 0.1  # cells; a narrower Gaussian reaches no other cell
LOGITS_PER_BLOCK = 64  # rows of logits, each as wide as the vocabulary, in float32 at once

TINY = np.finfo(np.float32).tiny  # what is divided by is no smaller
# The highest weights of a video are clipped here, so that one outlier does not turn all the rest red.
TEXT_SCALE_QUANTILE = 0.99
IMAGE_SCALE_QUANTILE = 0.999

# Colours, RGB 0..255. Dark text on every tint of RED_TO_GREEN mixed as below keeps a contrast above 4.5:1.
RED_TO_GREEN = ((214, 47, 39), (250, 208, 84), (26, 152, 80))  # low, middle, high
BLUE_TO_YELLOW = ((38, 66, 122), (146, 150, 138), (253, 231, 55))  # the same for colour-blind viewers, after cividis
LUMINANCE = (0.2126, 0.7152, 0.0722)  # parts of linear red, green and blue (WCAG 2)
# Luminance of what is coloured by any map: grounds at least, glyphs on white at most, for a contrast of 4.5:1.
GROUND_LUMINANCE, GLYPH_LUMINANCE = 0.23, 0.175
# Opacity of a tint at the low and at the high end: what is looked at stands out, the rest stays readable.
TEXT_ALPHA, CELL_ALPHA = (0.28, 0.72), (0.16, 0.62)
SPECIAL_ALPHA = 0.3  # of a special token's colour, as a part of any other token's
CURRENT_ALPHA = 0.12  # of the blue behind the current token where glyphs are coloured
SMALLEST_BARE_PART = 0.05  # of a cell; less of it that finer cells leave bare is their rounding
TEXT_LEVELS, CELL_LEVELS, INK_LEVELS = 127, 255, 16  # steps of the colour scales, and of a glyph's edge
GRID_ALPHA = 0.45  # opacity of the grid lines
GRID_LINE = (60, 64, 72)
SMALLEST_GRIDDED_CELL = 6  # pixels on the screen; lines round smaller cells would hide the picture
CURRENT_TOKEN = (30, 92, 214)
PAPER = (255, 255, 255)
INK = (24, 26, 30)
MUTED = (84, 90, 100)
SHARE_COLOURS = ((37, 122, 138), (112, 84, 158), (161, 98, 40), (70, 112, 62))  # pictures, in turn, then paler
PALER = 0.6  # what is left of a share's colour with each turn
PROBLEM_COLOUR, RESPONSE_COLOUR, FIRST_COLOUR = (120, 128, 140), (30, 92, 214), (200, 204, 210)
PHASE_COLOURS = {"think": (226, 222, 240), "answer": (214, 233, 226), "response": (230, 232, 236)}
HATCH_ALPHA = 0.6  # opacity of the stripes over a sink: dark and light ones, seen on any picture
COMING_ALPHA = 0.3  # opacity of that part of the time line which the video has not reached

# Lengths in pixels of a frame 1080 high; every one grows and shrinks with the frame.
MARGIN, HEADER = 28, 84
BARS, SHARES, CURVE, PHASES = 44, 96, 46, 26  # heights of the parts of the footer, from the top down
FOOTER_END = 16
FOOTER = 16 + BARS + SHARES + CURVE + PHASES + FOOTER_END
NOTES = 28  # height of a line of notes, below the phases
HATCH = 5  # width of a stripe
FONT_TEXT, FONT_TITLE, FONT_LABEL = 26, 30, 20
TALL_FONT_TEXT = 34  # in a frame taller than wide, whose text is as wide as the frame
IMAGE_PANEL = (0.4, 0.45, 0.5, 0.55, 0.6)  # parts of the frame's width that the image panel may take
TALL_IMAGE_PANEL = 0.6  # of what both panels share in a frame taller than wide, at most
SUMMARY_COLUMNS = 4  # maps side by side, in two rows
GIF_WIDTH, GIF_COLOURS = 960, 256  # at most: a GIF of full frames would have many megabytes
MOST_HEADS_NAMED = 4  # in the heading; more are named below the time line
SMOOTH = 3  # lines are drawn that many times larger and reduced, so that they have no steps

# By suffix: codec, pixel format, options. A GIF is made from a lossless video, by two passes: palette, then frames.
ENCODERS = {
    ".mp4": ("libx264", "yuv420p", "-preset superfast -crf 20 -movflags +faststart"),
    ".webm": ("libvpx-vp9", "yuv420p", "-deadline realtime -cpu-used 6 -row-mt 1 -crf 28 -b:v 0"),
    ".gif": ("libx264rgb", "rgb24", "-preset ultrafast -qp 0"),
}

LEAST_SPACE = 2**16  # bytes that a folder must have room for before the long work begins
CLEANING_TIME = 5  # seconds after a signal in which others are not heard
DRAWING_PATIENCE = 10  # seconds that a process that draws may take to end when it is stopped
ENCODER_PATIENCE = 5  # seconds that an encoder may take to end after it has closed its input
FAILURES_NAMED = 20  # samples, at most, in the last line
LONGEST_WAIT = timedelta(weeks=4)  # of one process for the others, whose samples may take longer
SLOWEST_FPS, FASTEST_FPS = 0.01, 240
FASTEST_GIF = 50  # frames a second: delays are whole hundredths of a second, and players draw out a single one
BITMAP_FONT_SIZE = 109  # pixels; the one size of fonts such as Noto Color Emoji
CODE_POINT_SIZE = 0.55  # of the font, for characters that no font has
FONT_ADVICE = {
    "cjk": "a CJK font, such as Debian's fonts-noto-cjk",
    "emoji": "an emoji font, such as Debian's fonts-noto-color-emoji",
    "any": "a font that has it, such as Debian's fonts-noto-core, or give font_path",
}
ASCII = "".join(map(chr, range(32, 127)))  # what every font must be able to draw
FONT_NAMES = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf", "Helvetica.ttc")
FONT_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip

Colormap = Callable[[np.ndarray], np.ndarray]


def visible(text: object) -> str:
    """The text with all that a terminal obeys or hides written as escapes; line breaks and spaces stay.

    The text of a dataset or a model may hold escape sequences, marks that turn the direction of writing or lone
    surrogates: they shall not steer the terminal of whoever reads it.
    """
    harmless = (c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs" for c in str(text))
    return "".join(c if keep else c.encode("unicode_escape").decode() for c, keep in zip(str(text), harmless))


def one_line(text: object) -> str:
    """The text with every run of white space, line breaks included, as one space, and nothing hidden in it."""
    return visible(" ".join(str(text).split()))


def are_whole(values: object) -> bool:
    """Whether values are there, all of them whole numbers, of Python's or NumPy's; True and False are none."""
    return isinstance(values, Iterable) and all(isinstance(n, Integral) and not isinstance(n, bool) for n in values)


# What an option must be, by the annotation of its field: types, and the words for them. True and False are no numbers.
OPTION_KINDS = {
    "int": (Integral, "a whole number"), "int | None": ((Integral, type(None)), "a whole number"),
    "float": (Real, "a number"), "bool": (bool, "True or False"),
    "str | None": ((str, os.PathLike, type(None)), "a text"),
}  # fmt: skip


def check_kinds(options: Any) -> None:
    """Raises ValueError for the fields of a dataclass that are not of the kind that they are annotated with."""
    for option in fields(options):
        value, (kind, expected) = getattr(options, option.name), OPTION_KINDS.get(option.type, (object, ""))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
            raise ValueError(f"{option.name} is {value!r}; expected {expected}")


class Stopped(KeyboardInterrupt):
    """A signal asks the program to end; its number is the argument."""


class _Stop:
    """What `stoppable` has heard. One for the process, as signals are."""

    quiet_until = 0.0
    held = False
    waiting: int | None = None

    @classmethod
    def hear(cls, number: int, frame: Any = None) -> None:
        if cls.held:
            cls.waiting = number
        elif time.monotonic() >= cls.quiet_until:
            cls.quiet_until = time.monotonic() + CLEANING_TIME
            raise Stopped(number)


@contextmanager
def stoppable(deaf_after: bool = False) -> Iterator[None]:
    """Within this block SIGTERM ends the program as Ctrl-C does; a second signal does not disturb the cleaning up.

    deaf_after: the program ends after the block, and no signal shall disturb that.
    """
    before, _Stop.quiet_until = {}, 0.0
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, _Stop.hear)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if deaf_after else handler or signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within this block, such as the start of a process that has to be known to be ended, a signal waits."""
    _Stop.held = True
    try:
        yield
    finally:
        _Stop.held, number, _Stop.waiting = False, _Stop.waiting, None
        if number:
            _Stop.hear(number)


# ------------------------------------------------------------------------------------------ records


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """Where the tokens of one picture stand, in the prompt and in the picture."""

    positions: np.ndarray
    """(N,) int64, position of each image token in the prompt."""
    boxes: np.ndarray
    """(N, 4) float32, left, top, right, bottom of each token's cell in pixels of the original picture;
    NaN where a token has no place in it."""

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.positions), 4):
            raise ValueError(
                f"boxes has shape {self.boxes.shape}; expected ({len(self.positions)}, 4): one box an image token"
            )


@dataclass(frozen=True)
class Check:
    """What hiding cells did to a given response: whether a map points at what the answer needs.

    The deletion test of Petsiuk et al. 2018 (RISE, arXiv 1806.07421) at one level, against random draws.
    """

    layer: int
    view: str
    """Which map of that layer, in the words of `view_names`; "" for the plain weights."""
    part: str
    """"answer", or "response" where the response has no answer of its own."""
    hottest: float
    """By how much the log-probability fell, in nats a token, with the hottest CHECK_PART of the cells hidden."""
    random: tuple[float, ...]
    """The same with as many cells hidden where the map moved by a random distance is hottest, for each draw."""

    @property
    def points(self) -> bool | None:
        """Whether the map found cells that matter; None where the check cannot tell."""
        beaten = sum(self.hottest > fall for fall in self.random)
        if not self.matters or CHECK_UNCLEAR <= beaten < len(self.random):
            return None
        return beaten == len(self.random)

    @property
    def matters(self) -> bool:
        """Whether hiding any cells made the answer less likely by more than a trifle."""
        return max(self.hottest, *self.random) >= math.log(CHECK_MATTERS)

    def __str__(self) -> str:
        falls = self.hottest, np.mean(self.random), min(self.random), max(self.random)
        hottest, mean, low, high = (f"{times:.2f}" if times < 10 else f"{times:.3g}" for times in np.exp(falls))
        part = f"{CHECK_PART:.0%}"
        meaning = {
            True: "the map points at what it needs",
            False: "no better than random: do not trust this map",
            None: "more than most random draws, not all: unclear, check more answers",
        }[self.points]
        if not self.matters:
            meaning = "the pictures hardly matter to it here, so this says nothing of the map"
        return (
            f"hiding the hottest {part} of the cells made the {self.part} {hottest} times as unlikely per token, as "
            f"many elsewhere {mean} times ({low} to {high} in {len(self.random)} draws): {meaning}"
        )


@dataclass(frozen=True, eq=False)
class AttentionRecord:
    """The attention behind one response: everything that a video is drawn from, and no model."""

    tokens: tuple[str, ...]
    """(S,) display text of every position; joined, they are the decoded text. A character made of
    several tokens stands in the last of them, the others are empty."""
    token_ids: np.ndarray
    """(S,) int64, the prompt's tokens, then the response's (without a trailing end-of-sequence token)."""
    prompt_length: int
    """P; the response has T = S - P tokens."""
    layers: tuple[int, ...]
    """(L,) 0-based layers, in the order of `weights`."""
    weights: np.ndarray
    """(T, L, S) float32; float16 in a record of over LARGEST_FLOAT32_RECORD bytes. Row t: attention of the query
    that produced response token t (at position P - 1 + t), heads reduced; columns from P + t on are 0. With heads
    averaged a row sums to 1."""
    images: tuple[ImageTokens, ...]
    """One entry a picture, in the order of the prompt."""
    special_ids: tuple[int, ...] = ()
    """Ids of the tokenizer's special tokens, which the text panel shows discreetly."""
    num_layers: int | None = None
    """Number of layers of the model, for the legend."""
    head: str | int | tuple[int, ...] = "mean"
    """How the heads were reduced: "mean", "max", one head, the mean of several, or "auto": see `auto_heads`."""
    problem: tuple[int, int] | None = None
    """First position of the problem in the prompt and the one after its last; None: it is all of the prompt."""
    pictures: tuple[bytes, ...] = ()
    """The pictures as PNG or JPEG files, so that the record can be drawn by itself; empty: they are not kept."""
    auto_layer: bool = False
    """Whether the layer was chosen by `choose_heads`."""
    auto_heads: tuple[int, ...] = ()
    """(L,) the head of each layer that `choose_heads` took; empty unless head is "auto"."""
    neutral: np.ndarray | None = None
    """(L, N) float32, the mean weight of every image token, picture after picture, while the same response was
    replayed after a neutral prompt; None: it was not asked for."""
    checks: tuple[Check, ...] = ()
    """What hiding cells did to the answer, where that was asked for."""

    def __post_init__(self) -> None:
        S, T, L = len(self.tokens), self.response_length, len(self.layers)
        if len(self.token_ids) != S:
            raise ValueError(f"token_ids has {len(self.token_ids)} entries; expected {S}, one for each of tokens")
        if not 0 < self.prompt_length <= S:
            raise ValueError(f"prompt_length is {self.prompt_length}; expected 1..{S}, the number of tokens")
        if self.weights.shape != (T, L, S):
            raise ValueError(
                f"weights has shape {self.weights.shape}; expected {(T, L, S)}: response tokens, layers, positions"
            )
        if len(self.pictures) not in (0, len(self.images)):
            raise ValueError(
                f"pictures has {len(self.pictures)} entries; expected {len(self.images)}, one an image, or 0"
            )
        chosen = L if self.head == "auto" else 0
        if len(self.auto_heads) != chosen:
            raise ValueError(
                f"auto_heads has {len(self.auto_heads)} entries; expected {chosen}: one a layer for head auto"
            )
        tokens = len(self.image_positions)
        if self.neutral is not None and self.neutral.shape != (L, tokens):
            raise ValueError(f"neutral has shape {self.neutral.shape}; expected {(L, tokens)}: layers, image tokens")
        for number, image in enumerate(self.images, start=1):
            if len(image.positions) and not 0 <= image.positions.min() <= image.positions.max() < S:
                raise ValueError(f"image {number} has tokens outside the {S} positions of the record")

    @property
    def response_length(self) -> int:
        """T, the number of response tokens."""
        return len(self.tokens) - self.prompt_length

    @property
    def response(self) -> str:
        """The decoded response."""
        return "".join(self.tokens[self.prompt_length :])

    @property
    def image_positions(self) -> np.ndarray:
        """(N,) int, the positions of the image tokens, picture after picture."""
        return np.concatenate([np.zeros(0, int), *(image.positions for image in self.images)])

    def open_pictures(self) -> list[Image.Image]:
        """The pictures that the record keeps, as RGB images. Raises ValueError where it keeps none, or no picture."""
        if len(self.pictures) < len(self.images):
            raise ValueError("the record keeps no pictures; give benchmark_json and image_dir (in Python: images)")
        try:
            files = [Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) for data in self.pictures]
            return [file.convert("RGB") for file in files]
        except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, OSError) as error:
            raise ValueError(f"the record has a picture that cannot be read: {one_line(error)}") from error

    # Here alone does a section use one below it, so that a record can show itself.
    def show(
        self, step: int, layer: int | None = None, start_phrase: str = DEFAULT_START_PHRASE, **options: Any
    ) -> Image.Image:
        """The frame of one step as a PIL image, of the last recorded layer by default. options: `DrawingOptions`."""
        layer = self.layers[-1] if layer is None else self.layer_number(layer)
        renderer = FrameRenderer(self, self.open_pictures(), layer, start_phrase, DrawingOptions(**options))
        return Image.fromarray(renderer.draw(renderer.check_step(step)))

    def _repr_html_(self) -> str:
        """What a notebook shows of a record: its summary."""
        if not self.pictures:
            return f"<pre>{html.escape(self.response)}</pre>"
        file = io.BytesIO()
        draw_summary(self, self.open_pictures(), self.layers[-1]).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        return f'<img alt="summary of an attention record" style="max-width: 100%" src="data:image/png;base64,{data}">'

    def layer_number(self, layer: int) -> int:
        """A recorded layer by its 0-based number; negative ones count from the model's end. Raises ValueError."""
        number = layer + self.num_layers if layer < 0 and self.num_layers else layer
        if number not in self.layers:
            raise ValueError(f"layer {layer} was not recorded; the record holds {list(self.layers)}")
        return number

    def layer_weights(self, layer: int) -> np.ndarray:
        """(T, S) float32 rows of a recorded layer."""
        return self.weights[:, self.layers.index(self.layer_number(layer))].astype(np.float32, copy=False)

    def save(self, path: str | Path, *, compress: bool = True) -> None:
        """Write the record as one .npz, whole or not at all. Raises OSError."""
        facts = {name: getattr(self, name) for name in PLAIN_FIELDS} | {
            "format": RECORD_FORMAT, "images": len(self.images), "pictures": len(self.pictures),
            "checks": [asdict(check) for check in self.checks],
        }  # fmt: skip
        arrays = {"token_ids": self.token_ids, "weights": self.weights}
        for number, image in enumerate(self.images):
            arrays |= {f"positions_{number}": image.positions, f"boxes_{number}": image.boxes}
        arrays |= {f"picture_{number}": np.frombuffer(data, np.uint8) for number, data in enumerate(self.pictures)}
        arrays |= {} if self.neutral is None else {"neutral": self.neutral}
        facts_bytes = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with moved_into_place(Path(path)) as temporary, temporary.open("wb") as file:
            kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            # As np.savez_compressed, but at zlib's level 1: a quarter of the time for 3% more.
            with zipfile.ZipFile(file, "w", kind, compresslevel=1) as archive:
                for name, array in {"facts": facts_bytes, **arrays}.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> AttentionRecord:
        """Read a record that `save` wrote; no pickle. Raises OSError, or ValueError for any other file."""
        try:
            check_archive(path)
            with np.load(path, allow_pickle=False) as data:
                facts = json.loads(data["facts"].tobytes())
                if facts["format"] != RECORD_FORMAT:
                    raise ValueError(f"its format is {facts['format']}, this version reads {RECORD_FORMAT}")
                images = tuple(ImageTokens(data[f"positions_{n}"], data[f"boxes_{n}"]) for n in range(facts["images"]))
                pictures = tuple(data[f"picture_{n}"].tobytes() for n in range(facts.get("pictures", 0)))
                plain = {name: facts[name] for name in PLAIN_FIELDS if name in facts}
                plain = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
                checks = (Check(**{**check, "random": tuple(check["random"])}) for check in facts.get("checks", ()))
                record = cls(
                    token_ids=data["token_ids"], weights=data["weights"], images=images, pictures=pictures,
                    neutral=data.get("neutral"), checks=tuple(checks), **plain,
                )  # fmt: skip
                check_values(record)
                if pictures:
                    record.open_pictures()
                return record
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise type(error)(
                f"the record {path} cannot be read: {reason}; give a file that --save_record or save() wrote"
            ) from error
        except DAMAGED_ARCHIVE as error:
            raise ValueError(f"{path} is no attention record: {one_line(error)}; make one with save()") from error


# The fields of a record that are texts and numbers: they stand in its file as JSON.
PLAIN_FIELDS = (
    "tokens", "prompt_length", "layers", "special_ids", "num_layers", "head", "problem", "auto_layer", "auto_heads",
)  # fmt: skip
# What reading an archive that is none, or a broken or hostile one, raises.
DAMAGED_ARCHIVE = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def check_archive(path: str | Path) -> None:
    """Raises ValueError where an .npz would unpack to far more than it holds, or other than its headers say."""
    total = 0
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as data:
                version = np.lib.format.read_magic(data)
                read_header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read_header(data)
                if dtype.hasobject or data.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
                    raise ValueError(f"{member.filename} is no plain array of shape {shape}")
            total += member.file_size
    if total > max(LARGEST_UNCHECKED_ARCHIVE, LARGEST_COMPRESSION * os.path.getsize(path)):
        raise ValueError(f"its {os.path.getsize(path)} bytes would unpack to {total}")


def check_values(record: AttentionRecord) -> None:
    """Raises ValueError where a record that was read holds what no recording gives."""
    P, heads = record.prompt_length, record.head if isinstance(record.head, tuple) else (record.head,)
    numbers = [P, *record.layers, *record.special_ids, *record.auto_heads, *(record.problem or (0, 1))]
    falls = [fall for check in record.checks for fall in (check.hottest, *check.random)]
    extra = np.concatenate([np.zeros(1), np.ravel(0 if record.neutral is None else record.neutral)])
    boxes = np.concatenate([np.zeros((1, 4)), *(image.boxes for image in record.images)])
    low, high = record.weights.min(initial=0), record.weights.max(initial=0)
    arrays = [record.token_ids, *(image.positions for image in record.images)]
    rules = {
        "tokens must be texts": type(record.tokens) is tuple and all(isinstance(token, str) for token in record.tokens),
        "lengths, layers and ids must be whole numbers": all(type(number) is int for number in numbers),
        "layers must be different ones of the model": len(set(record.layers)) == len(record.layers) > 0
        and type(record.num_layers or 0) is int
        and 0 <= min(record.layers) <= max(record.layers) < (record.num_layers or math.inf),
        "head must be mean, max, auto or numbers": record.head in ("mean", "max", "auto")
        or (len(heads) > 0 and all(type(head) is int and abs(head) < LARGEST_HEAD for head in heads)),
        "auto_layer must be true or false": type(record.auto_layer) is bool,
        "the problem must lie in the prompt": record.problem is None
        or (len(record.problem) == 2 and 0 <= record.problem[0] <= record.problem[1] <= P),
        "ids and positions must be rows of whole numbers": all(a.ndim == 1 and a.dtype.kind == "i" for a in arrays),
        "weights must be float32 or float16, from 0 to 1": record.weights.dtype in (np.float32, np.float16)
        and bool(0 <= low <= high <= LARGEST_WEIGHT),
        "neutral must be from 0 up and finite": extra.dtype.kind == "f"
        and bool(((extra >= 0) & (extra < np.inf)).all()),
        "checks must be of recorded layers, their falls numbers": all(c.layer in record.layers for c in record.checks)
        and all(type(fall) is float and abs(fall) < LARGEST_FALL for fall in falls)
        and len(record.checks) <= len(record.layers)
        and all(isinstance(c.view, str) and isinstance(c.part, str) and c.random for c in record.checks),
        f"boxes must lie within 0 and {LARGEST_SIDE} pixels": boxes.dtype.kind == "f"
        and not ((boxes < 0) | (boxes > LARGEST_SIDE)).any(),
    }
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise ValueError("; ".join(broken))


# Host and process stand in the name, so that others may know whether it is still written.
HOST = re.sub(r"\W", "_", socket.gethostname())[:40]
PARTIAL_NAME = re.compile(r"\..*\.(\w+)-(\d+)\.partial(?:\.\w+)?")


# In the environment of a process that draws for another: the other's number. Nothing of a killed run may come later.
DRAWN_FOR = "VISUALIZE_HEAT_MAP_DRAWN_FOR"


def partial_path(path: Path) -> Path:
    """The hidden name under which a file is written beside its place, by this process."""
    return path.with_name(f".{path.stem[:40]}.{HOST}-{os.getpid()}.partial{path.suffix}")


@contextmanager
def moved_into_place(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: moved there when the block ends well, removed when it does not.

    What killed processes left half-written in the folder goes as well. Raises OSError, with the path in it.
    """
    remove_stale(path.parent)
    temporary = partial_path(path)
    try:
        yield temporary
        if os.getppid() != int(os.environ.get(DRAWN_FOR) or os.getppid()):
            raise OSError(f"{path} is no longer asked for: the run that it belongs to has ended")
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # one of ours, which says more
            raise
        raise OSError(f"{path} could not be written: {error.strerror}; {_folder_advice(path)}") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def _folder_advice(path: Path) -> str:
    """What to look at where a file could not be written."""
    return f"check the space in {path.parent}" if path.parent.is_dir() else f"{path.parent} is no longer there"


def remove_stale(folder: Path) -> None:
    """Remove the half-written files of processes that ended without doing so; of other hosts', those a day old."""
    for path in folder.glob(".*.partial*"):
        match = PARTIAL_NAME.fullmatch(path.name)
        with suppress(OSError):  # another process may have been faster
            if match and (
                not _is_running(int(match[2])) if match[1] == HOST else time.time() - path.stat().st_mtime > 86400
            ):
                path.unlink()


def _is_running(pid: int) -> bool:
    """Whether a process of this host is there; where that cannot be asked, it is."""
    try:
        if os.name == "posix":
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


# ------------------------------------------------------------------------------------------- sample


def load_sample(
    benchmark_json: str | Path,
    image_dir: str | Path,
    sample_idx: int = 0,
    max_image_num: int = 2,
    *,
    allow_absolute_paths: bool = False,
) -> tuple[dict, list[Image.Image]]:
    """Read one sample of a dataset and its pictures.

    The dataset is a JSON list of {"id", "image": ["rel/path.png"] or "rel/path.png", "problem", "solution",
    "answer"}; only "image" and "problem" are required. Returns the sample as it stands in the file, and its
    pictures as upright RGB images. Raises OSError for a file that is missing or unreadable, ValueError for
    one with the wrong content, or for a picture outside image_dir unless allow_absolute_paths lets it be anywhere.
    """
    samples = read_dataset(benchmark_json)
    (number,) = select_samples([sample_idx], len(samples), benchmark_json)
    where = f"sample {number} of {benchmark_json}"
    sample = samples[number]
    return sample, open_pictures_of(sample, image_dir, max_image_num, where, allow_absolute_paths)


def select_samples(selection: int | str | Iterable[int], count: int, benchmark_json: str | Path) -> list[int]:
    """The numbers of the samples that a selection names, each once, in its order, of a dataset of `count` samples.

    selection: a number, several numbers, or a text: `3`, a range with both its ends `0-99`, a list `0,5-7,9`, `all`.
    Raises ValueError for what cannot be read or is out of range.
    """
    if isinstance(selection, str) and selection.strip() == "all":
        return list(range(count))
    if isinstance(selection, str):
        parts = [re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", part) for part in selection.split(",")]
        spans = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
        if not all(parts) or any(first > last for first, last in spans):
            raise ValueError(
                f"sample_idx {selection!r} cannot be read; expected a number, a range such as 0-99, a list such as "
                "0,5,9, or all"
            )
    else:
        spans = [(n, n) for n in (selection if isinstance(selection, Iterable) else [selection])]
    for span in spans:
        whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in span)
        if not whole or not 0 <= span[0] <= span[1] < count:
            named = "-".join(dict.fromkeys(map(str, span)))
            raise ValueError(
                f"sample_idx {named} is out of range: {benchmark_json} has {count} samples (0..{count - 1})"
            )
    if not spans:
        raise ValueError("sample_idx names no sample; expected one or more")
    return list(dict.fromkeys(n for first, last in spans for n in range(int(first), int(last) + 1)))


def check_image_dir(image_dir: str | Path) -> None:
    """Raises FileNotFoundError where there is no such folder."""
    if not Path(image_dir).is_dir():
        raise FileNotFoundError(f"image_dir {image_dir} is no directory; give the folder that holds the pictures")


def open_pictures_of(
    sample: object, image_dir: str | Path, max_image_num: int, where: str, allow_absolute_paths: bool = False
) -> list[Image.Image]:
    """The pictures of a sample whose fields are as they should be, upright and RGB. Raises ValueError or OSError."""
    paths = check_sample(sample, where)
    if len(paths) > max_image_num:
        raise ValueError(
            f"{where} has {len(paths)} pictures, more than max_image_num={max_image_num}; "
            f"raise it with --max_image_num {len(paths)} (in Python: max_image_num={len(paths)})"
        )
    check_image_dir(image_dir)
    images = [_open_image(Path(image_dir), path, where, allow_absolute_paths) for path in paths]
    logger.debug("%s: %d picture(s), sizes %s", where, len(images), [image.size for image in images])
    return images


def read_dataset(benchmark_json: str | Path) -> list:
    """The JSON list in a file, with at least one entry."""
    path = Path(benchmark_json)
    try:
        samples = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"benchmark_json {path} does not exist; give a JSON list of samples") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"benchmark_json {path} is a folder; give a JSON list of samples") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"benchmark_json {path} is not UTF-8 text: {one_line(error)}; expected a JSON list") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"benchmark_json {path} is not JSON: {one_line(error)}; expected a JSON list") from error
    if not isinstance(samples, list):
        raise ValueError(
            f"benchmark_json {path} holds a {type(samples).__name__}; expected a JSON list of samples, "
            '[{"id": ..., "image": [...], "problem": ...}, ...]'
        )
    if not samples:
        raise ValueError(f"benchmark_json {path} is an empty list; expected at least one sample")
    return samples


def select_from_dataset(
    benchmark_json: str | Path, image_dir: str | Path, selection: int | str | Iterable[int]
) -> tuple[list, list[int]]:
    """The samples of a dataset and the numbers of those selected; the folder of their pictures is there."""
    samples = read_dataset(benchmark_json)
    numbers = select_samples(selection, len(samples), benchmark_json)
    check_image_dir(image_dir)
    return samples, numbers


def check_sample(sample: object, where: str) -> list[str]:
    """The picture paths of a sample whose fields are as they should be."""
    if not isinstance(sample, dict):
        raise ValueError(f"{where} is a {type(sample).__name__}; expected an object with image and problem")
    for key in ("image", "problem"):
        if key not in sample:
            raise ValueError(f"{where} has no key {key!r}; it has {sorted(map(str, sample))}")
    _problem(sample, where)
    paths = sample["image"]
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"the image of {where} is {paths!r}; expected a path or a list of paths")
    return paths


def _problem(sample: dict, where: str) -> str:
    """The problem of a sample. Raises ValueError where there is none."""
    problem = sample.get("problem")
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"the problem of {where} is {problem!r}; expected a text that is not empty")
    return problem


def _open_image(image_dir: Path, name: str, where: str, allow_absolute_paths: bool) -> Image.Image:
    """A picture, upright and RGB, as the model and the overlay shall both see it."""
    path = image_dir / name
    if not allow_absolute_paths and not _lies_in(path, image_dir):
        raise ValueError(
            f"{where} names a picture outside image_dir {image_dir}: {name}; move it there, or give "
            "--allow_absolute_paths if you trust the dataset"
        )
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError("a device or a pipe")  # reading one may never end
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only large; the error is twice as far
            with Image.open(path) as image:
                if image.format == "EPS":
                    raise ValueError("a program, which Ghostscript would have to run; convert it to PNG")
                return upright_rgb(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} names a picture that does not exist: {path}; check image_dir") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{where} names a folder where a picture is expected: {path}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{where} has a picture that is too large: {path} ({one_line(error)}); it may be made to fill the memory: "
            "shrink it"
        ) from error
    except (UnidentifiedImageError, SyntaxError, ValueError, RuntimeError, OSError) as error:
        raise OSError(f"{where} has a picture that cannot be read: {path} ({one_line(error)})") from error


def well_formed(text: str) -> str:
    """The text with lone surrogates, which no tokenizer takes, as the sign of a broken character."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a file is below a folder, symbolic links followed; what is no path at all leaves no folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (ValueError, RuntimeError, OSError):  # a null character, a ring of links, a name too long
        return True


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says, transparency laid on white, as RGB (a copy)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits a pixel: convert("RGB") would clip at 255
        values = np.asarray(image, np.float64)
        top = 65535 if image.mode.startswith("I") and values.max(initial=0) > 255 else max(values.max(initial=0), 1)
        image = Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def picture_file(image: Image.Image) -> bytes:
    """The picture as a PNG file, or as a JPEG where that would be too large for a record."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG")
    if png.tell() > PICTURE_BYTES:
        image.save(jpeg, "JPEG", quality=92)
    return jpeg.getvalue() or png.getvalue()


def shrink(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The picture, smaller where it has more than `max_pixels` pixels, which must be 1 or more."""
    if max_pixels is None:
        return image
    scale = min(math.sqrt(max_pixels / (image.width * image.height)), 1)
    size = [max(int(length * scale), 1) for length in image.size]
    return image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)


# ------------------------------------------------------------------------------------------- inputs


def prompt_text(processor: Any, content: list[dict]) -> str:
    """One user message as the text of a prompt. Raises ValueError where the processor has no chat template."""
    from jinja2 import TemplateError

    own, borrowed = (getattr(holder, "chat_template", None) for holder in (processor, processor.tokenizer))
    if own or borrowed:
        message = {"role": "user", "content": content}
        template = {} if own else {"chat_template": borrowed}
        try:
            return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False, **template)
        except TemplateError as error:
            raise ValueError(f"the checkpoint's chat template cannot be used: {one_line(error)}; mend it") from error
    if type(processor).__name__ == "PaliGemmaProcessor":  # its models are prompted plainly, pictures first
        return "".join(processor.image_token if part["type"] == "image" else part["text"] for part in content)
    raise ValueError(
        f"{type(processor).__name__} has no chat template; add chat_template.jinja to the checkpoint's directory"
    )


def check_prompt_template(prompt_template: str) -> None:
    """Raises ValueError for a template without a place for the problem."""
    if "{Question}" not in prompt_template:
        raise ValueError(f"prompt_template {prompt_template!r} has no {{Question}}; put it where the problem goes")


def build_inputs(processor: Any, problem: str, images: Sequence[Image.Image], prompt_template: str) -> Any:
    """The model's inputs for one problem and its pictures, by the processor's own chat template.

    Returns the processor's BatchFeature with tensors of batch 1, on the CPU. Raises ValueError when the
    template has no {Question}, or the processor no chat template.
    """
    check_prompt_template(prompt_template)
    question = prompt_template.replace("{Question}", problem)
    text = prompt_text(processor, [*({"type": "image"} for _ in images), {"type": "text", "text": question}])
    # As apply_chat_template does: a template that writes the first token leaves none to the tokenizer.
    begun = processor.tokenizer.bos_token is not None and text.startswith(processor.tokenizer.bos_token)
    special = {"add_special_tokens": False} if begun else {}
    try:
        inputs = processor(text=[text], images=[list(images)], return_tensors="pt", **special)
    except Exception as error:  # each processor has its own complaints
        raise ValueError(
            f"{type(processor).__name__} cannot take the problem and its {len(images)} picture(s): {one_line(error)}; "
            "check the pictures' sizes and processor_kwargs"
        ) from error
    inputs.pop("labels", None)
    return inputs


def input_device(model: Any) -> Any:
    """Where a model takes its inputs. The weights of a part that is kept on the host or on disk are on "meta"."""
    import torch

    if model.device.type != "meta":
        return model.device
    return torch.device(model.get_input_embeddings()._hf_hook.execution_device)


def append_response(inputs: Any, response_ids: Sequence[int]) -> dict:
    """The inputs with a response's tokens after the prompt, for one teacher-forced pass."""
    import torch

    ids_1P, T = inputs["input_ids"], len(response_ids)
    extended = dict(inputs)
    for key, value in inputs.items():
        if key == "input_ids":
            tail = torch.tensor([list(response_ids)])
        elif key == "cross_attention_mask":  # (1, P, pictures, tiles): the response sees what the prompt's end sees
            tail = value[:, -1:].repeat(1, T, 1, 1)
        elif not torch.is_tensor(value) or value.shape != ids_1P.shape:
            continue
        elif key == "token_type_ids" and not value.any():  # paligemma's 0 is the prefix, which sees itself whole
            tail = torch.ones(1, T)
        else:  # the attention mask goes on with ones, token types with the text's 0
            tail = torch.full((1, T), int(key == "attention_mask"))
        extended[key] = torch.cat([value, tail.to(value)], dim=1)
    return extended


def forced_pass(model: Any, inputs: Any, response_ids: Sequence[int], **options: Any) -> Any:
    """The model's output for prompt and response, by one pass without a cache and without gradients.

    The response's last token is left out: it produces nothing that is shown. options: a `logits_to_keep` among them
    must be a slice. A number would make gemma4 cut its queries; a tensor would be moved by accelerate to the card where
    the model begins, which need not be that of its last layers.
    """
    import torch

    with torch.inference_mode():
        return model(**append_response(inputs, response_ids[:-1]), use_cache=False, **options)


# ---------------------------------------------------------------------------------------- recording

_active_recorder: ContextVar[AttentionRecorder | None] = ContextVar("active_recorder", default=None)


@dataclass(eq=False)
class LateQueries:
    """Queries of one layer, a step each, that wait to be scored together."""

    start: int
    """Position of the first."""
    scaling: float | None
    queries: list = field(default_factory=list)
    """(1, H, 1, D) each."""
    key: Any = None
    """(1, G, K, D) of the last query, which reach back to position 0."""


class AttentionRecorder:
    """Collects, in chosen layers, the attention rows of every query from `first_query` on.

    No S×S matrix ever exists: scores are computed for the queries wanted, a block at a time, go through the softmax
    and the reduction of the heads on the device, and leave for the host without stopping it. While a response is
    generated, a query waits for those of the next steps, since the keys only grow: a step then costs next to nothing.
    On the host there is one array, for at most `steps` rows a layer: float32, or float16 where that would be large.

    `crossing`: the layers whose keys belong to pictures, not to positions of the text. `shared_heads`: the number of
    heads of the model where the processes of a tensor-parallel run share them, else 0.
    """

    def __init__(
        self,
        layers: Sequence[int],
        first_query: int,
        head: str | int = "mean",
        steps: int = 1,
        crossing: Iterable[int] = (),
        shared_heads: int = 0,
    ) -> None:
        self.layers = tuple(layers)
        self.first_query = first_query
        self.head = head
        self.crossing = frozenset(crossing)
        self.shared_heads = shared_heads
        self._places = {layer: place for place, layer in enumerate(self.layers)}
        self._last_layer = max(self.layers)
        self.cross_keys = 0  # keys that a layer has which sees the pictures only
        shape = steps, len(self.layers), first_query + 1 + steps
        dtype = np.float32 if math.prod(shape) * 4 <= LARGEST_FLOAT32_RECORD else np.float16
        self._weights_TLK = np.zeros(shape, dtype)  # memory is taken only where something is written
        self._found_TL = np.zeros(shape[:2], bool)
        self._seen: dict[int, int] = {}  # the position after the last query that each layer has met
        self._late: dict[int, LateQueries] = {}  # of each layer
        # What can be reduced together: (first step, first column, ...) to the layers' places and their scores.
        self._waiting: dict[tuple, tuple[list[int], list[Any]]] = {}
        self._values_waiting = 0
        self._pool = ThreadPoolExecutor(max_workers=1)  # so that generation never waits for the host's memory
        self._storing: list[Future] = []
        self._end = 0  # the position after the last query that any layer has met

    @property
    def reached(self) -> bool:
        """Whether any row came."""
        return bool(self._late or self._waiting or self._storing)

    def advance(self, layer: int, count: int) -> int:
        """Note that a layer meets `count` queries; returns the position of the first."""
        # A layer that sees fewer queries than those before it (gemma4's shared keys) sees the last ones.
        self._end = self._seen[layer] = max(self._seen.get(layer, 0) + count, self._end)
        return self._end - count

    def observe(self, layer: int, query: Any, key: Any, mask: Any, scaling: float | None) -> None:
        """Record the rows of one attention call: query (1, H, Q, D), key (1, G, K, D), mask (1, 1, Q, K)."""
        (batch, heads, count, _), keys = query.shape, key.shape[2]
        start = self.advance(layer, count)
        if layer not in self._places:
            return
        if batch != 1:
            raise ValueError(f"the batch has {batch} sequences; attention is recorded for one at a time")
        first_column = self._first_column(layer, keys, start + count)
        late = self._late.get(layer)
        if count == 1 and mask is None and not first_column and start >= self.first_query:
            late = late or self._late.setdefault(layer, LateQueries(start, scaling))
            late.queries.append(query)
            late.key = key  # no other memory: the cache holds it, too
            if len(late.queries) >= self.block_length(heads, keys):
                self._take_late(layer)
            return
        if late:  # a sliding window has begun to move
            self._take_late(layer)
        self._observe_block(layer, query, key, mask, scaling, start, first_column)

    def _observe_block(
        self, layer: int, query: Any, key: Any, mask: Any, scaling: Any, start: int, column: int
    ) -> None:
        """Score the queries wanted, a block at a time: the first query stands at `start`, key 0 at `column`."""
        count, block = query.shape[2], self.block_length(query.shape[1], key.shape[2])
        for first in range(max(self.first_query - start, 0), count, block):
            queries = slice(first, min(first + block, count))
            scores_HQK = attention_scores(query, key, mask, scaling, queries, start - column)
            self._keep(layer, start + first, column, scores_HQK)

    def _take_late(self, layer: int) -> None:
        """Score the queries of a layer that wait, with the keys of the last one, which hold those of the others."""
        import torch

        late = self._late.pop(layer)
        self._observe_block(layer, torch.cat(late.queries, dim=2), late.key, None, late.scaling, late.start, 0)

    @staticmethod
    def block_length(heads: int, keys: int) -> int:
        """The number of queries whose weights may exist at once."""
        return min(max(VALUES_AT_ONCE // (heads * keys), 1), ROWS_PER_BLOCK)

    def observe_weights(self, layer: int, weights_1HQK: Any, start: int | None = None) -> None:
        """Record the rows of one attention call from the weights that the model computed itself."""
        _, _, count, K = weights_1HQK.shape
        start = self.advance(layer, count) if start is None else start
        first = max(self.first_query - start, 0)
        if layer in self._places and first < count:
            first_column = self._first_column(layer, K, start + count)
            self._keep(layer, start + first, first_column, weights_1HQK[0, :, first:], are_weights=True)

    def _first_column(self, layer: int, keys: int, end: int) -> int:
        """The position of key 0: a sliding window keeps the last keys only."""
        if layer not in self.crossing:
            return max(end - keys, 0)
        self.cross_keys = keys
        return 0

    def _keep(self, layer: int, position: int, first_column: int, part_HQK: Any, are_weights: bool = False) -> None:
        """Let the scores, or weights, of the queries from a position on wait for those of the step's other layers."""
        alike = position - self.first_query, first_column, are_weights, part_HQK.shape, part_HQK.device
        places, parts = self._waiting.setdefault(alike, ([], []))
        places.append(self._places[layer])
        parts.append(part_HQK)
        self._values_waiting += part_HQK.numel()
        if layer == self._last_layer or self._values_waiting >= VALUES_AT_ONCE // 2:
            self._send()

    def _send(self) -> None:
        """Reduce what waits to rows, and let them leave for the host."""
        import torch

        for (step, column, are_weights, _, device), (places, parts) in self._waiting.items():
            parts_LHQK = torch.stack(parts) if len(parts) > 1 else parts[0][None]
            weights_LHQK = parts_LHQK.float() if are_weights else torch.softmax(parts_LHQK, -1, dtype=torch.float32)
            if self.shared_heads:
                rows_LQK = reduce_shared_heads(weights_LHQK, self.head, self.shared_heads)
            else:
                rows_LQK = reduce_heads(weights_LHQK, self.head)
            if self._weights_TLK.dtype == np.float16:
                rows_LQK = rows_LQK.half()  # here, since NumPy takes its time over small numbers
            on_host, event = rows_LQK.to("cpu", non_blocking=True), None
            if rows_LQK.is_cuda:
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
            self._storing.append(self._pool.submit(self._store, event, step, column, places, on_host))
            if len(self._storing) > LARGEST_QUEUE:
                self._storing.pop(0).result()
        self._waiting.clear()
        self._values_waiting = 0

    def _store(self, event: Any, step: int, column: int, places: list[int], rows_LQK: Any) -> None:
        """Put rows where they belong, once they have arrived."""
        if event is not None:
            event.synchronize()
        end, steps = column + rows_LQK.shape[2], slice(step, step + rows_LQK.shape[1])
        missing = end - self._weights_TLK.shape[2]
        if missing > 0:  # more keys of pictures than there are positions
            self._weights_TLK = np.pad(self._weights_TLK, ((0, 0), (0, 0), (0, missing)))
        finite_LQ = np.isfinite(rows_LQK.numpy()).all(axis=2)
        if not finite_LQ.all():
            first = int(np.argmin(finite_LQ.all(axis=0)))
            raise RuntimeError(
                f"layer {self.layers[places[int(np.argmin(finite_LQ[:, first]))]]} has weights that are no numbers at "
                f"step {step + first}: the model overflowed, as float16 may; try --dtype bfloat16 or float32"
            )
        for place, rows_QK in zip(places, rows_LQK.numpy()):
            into_QK = self._weights_TLK[steps, place, column:end]
            into_QK[:] = rows_QK[: len(into_QK)]
        self._found_TL[steps, places] = True

    def weights(self, steps: int, positions: int) -> np.ndarray:
        """(steps, L, columns) of everything recorded. Raises RuntimeError when rows are missing.

        columns: the positions, or the keys of pictures that only cross-attention sees, where those are more.
        """
        for layer in list(self._late):
            self._take_late(layer)
        self._send()
        for stored in self._storing:
            stored.result()
        for layer, found_T in zip(self.layers, self._found_TL[:steps].T):
            if not found_T.all():
                raise RuntimeError(
                    f"layer {layer} gave {found_T.sum()} attention rows for {steps} tokens; it may have no softmax "
                    "attention or bypass transformers' AttentionInterface: try another layer or attention='eager'"
                )
        return self._weights_TLK[:steps, :, : max(positions, self.cross_keys)]


def attention_scores(query: Any, key: Any, mask: Any, scaling: float | None, queries: slice, start: int) -> Any:
    """q·kᵀ, scaled and masked, for a slice of the queries: (H, Q, K) in the dtype of the query.

    `start` is the column of query 0's own key. Without a mask attention is causal. Query heads are grouped by
    reshape, so that no key is repeated.
    """
    import torch

    _, H, _, D = query.shape
    _, G, K, _ = key.shape
    Q = queries.stop - queries.start
    query_GQD = query[0, :, queries].reshape(G, H // G * Q, D)
    scale = D**-0.5 if scaling is None else scaling
    nothing = query.new_empty(1, 1, 1)  # beta=0: it is not read; one call multiplies and scales
    scores_HQK = torch.baddbmm(nothing, query_GQD, key[0].transpose(1, 2), beta=0, alpha=scale).view(H, Q, K)
    if mask is None and Q == 1 and start + queries.start >= K - 1:
        return scores_HQK  # a step of generation sees all there is
    if mask is None:  # also hides the empty end of a static cache
        positions_Q1 = torch.arange(start + queries.start, start + queries.stop, device=query.device)[:, None]
        mask_1QK = torch.arange(K, device=query.device) <= positions_Q1
    else:
        mask_1QK = mask[0, :, queries, :K]
    return scores_HQK.masked_fill(~mask_1QK, -math.inf) if mask_1QK.dtype == torch.bool else scores_HQK + mask_1QK


def check_head(head: str | int | Sequence[int], count: int) -> str | int | tuple[int, ...]:
    """A reduction of the heads that a layer with so many can do, heads counted from 0. Raises ValueError."""
    if isinstance(head, str) and head in ("mean", "max", "auto"):
        return head
    if isinstance(head, (list, tuple)) and head:
        heads = tuple(dict.fromkeys(check_head(one, count) for one in head))
        if not all(isinstance(one, Integral) for one in head):
            raise ValueError(f"head {head!r} cannot be taken: of several, each must be a number")
        return heads if len(heads) > 1 else heads[0]
    if isinstance(head, bool) or not isinstance(head, Integral) or not -count <= head < count:
        raise ValueError(f"head {head!r} cannot be taken: the layer has {count} heads; or take mean, max or auto")
    return int(head) % count


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


def reduce_heads(weights_LHQK: Any, head: str | int | tuple[int, ...]) -> Any:
    """(L, Q, K) weights from (L, H, Q, K): the mean or maximum over the heads, one head, or the mean of several."""
    if head == "mean":
        return weights_LHQK.mean(1)
    if head == "max":
        return weights_LHQK.amax(1)
    return weights_LHQK[:, list(head)].mean(1) if isinstance(head, tuple) else weights_LHQK[:, head]


def reduce_shared_heads(weights_LHQK: Any, head: str | int | tuple[int, ...], heads: int) -> Any:
    """(L, Q, K) weights of all `heads`, of which each process holds an equal part in order, or every one holds all."""
    import torch.distributed as dist

    H, maximum = weights_LHQK.shape[1], head == "max"
    if head in ("mean", "max"):
        rows_LQK = reduce_heads(weights_LHQK, head) / (1 if maximum else dist.get_world_size())
    else:  # the first process that has a head gives its rows, the others zeros
        wanted = head if isinstance(head, tuple) else (head,)
        places = [one % heads - dist.get_rank() * H for one in wanted]
        rows_LQK = weights_LHQK[:, [place for place in places if 0 <= place < H]].sum(1) / len(wanted)
    rows_LQK = rows_LQK.contiguous()
    dist.all_reduce(rows_LQK, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM)
    return rows_LQK


def shared_heads(model: Any) -> int:
    """The number of heads that the processes of a tensor-parallel run share; 0 where there is one process."""
    ranks = getattr(model, "tp_size", None) or 1
    return model.config.get_text_config().num_attention_heads if ranks > 1 else 0


def cross_layers(config: Any) -> list[int]:
    """The layers whose keys are pictures, outside the text (mllama's); most models have none."""
    return list(getattr(config.get_text_config(), "cross_attention_layers", None) or [])


def layer_kinds(config: Any) -> list[str]:
    """What transformers calls each layer, such as "sliding_attention"; "" where all are of one kind."""
    text = config.get_text_config()
    return list(getattr(text, "layer_types", None) or [""] * text.num_hidden_layers)


def attention_layers(config: Any) -> list[int]:
    """The layers that have softmax attention; hybrid models have others in between."""
    return [layer for layer, kind in enumerate(layer_kinds(config)) if kind not in KINDS_WITHOUT_ROWS]


def recording_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> tuple:
    """The attention function registered with transformers: sdpa's output, and rows for the active recorder.

    What sdpa cannot do (a soft cap, sinks, a position bias) goes to the model's own eager function.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    recorder, layer = _active_recorder.get(), module.layer_idx
    if kwargs.get("softcap") is None and kwargs.get("s_aux") is None and kwargs.get("position_bias") is None:
        if recorder is not None:
            recorder.observe(layer, query, key, attention_mask, kwargs.get("scaling"))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise RuntimeError(f"{type(module).__name__} has no eager_attention_forward; try attention='eager'")
    mask = additive_mask(attention_mask, query, key.shape[2])
    output, weights_1HQK = eager(module, query, key, value, mask, **kwargs)
    if recorder is not None:
        recorder.observe_weights(layer, weights_1HQK)
    return output, weights_1HQK


def additive_mask(mask: Any, query: Any, K: int) -> Any:
    """sdpa's mask as eager attention adds it to the scores; None means what it means to sdpa."""
    import torch

    Q = query.shape[2]
    if mask is None:
        mask = torch.ones(1, 1, Q, K, dtype=torch.bool, device=query.device)
        mask = mask.tril() if Q > 1 else mask
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


def recording_mask(*args: Any, **kwargs: Any) -> Any:
    """sdpa's mask, written out where the keys outnumber several queries: a static cache, which a layer may cut."""
    from transformers.masking_utils import sdpa_mask

    if 1 < kwargs.get("q_length", 0) < kwargs.get("kv_length", 0):
        kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(*args, **kwargs)


def implementations(config: Any) -> dict[str, str]:
    """The attention implementation in force for a model ("") and each of its sub-models."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": config._attn_implementation} | {
        name: part._attn_implementation for name, part in parts.items() if part is not None
    }


@contextmanager
def text_attention(model: Any, text: str | None = None, rest: str | None = None) -> Iterator[None]:
    """Let the language model, and the rest, use other attention; put the old one back in every case."""
    before = implementations(model.config)
    text_config = model.config.get_text_config()
    text_key = next((name for name in before if name and getattr(model.config, name) is text_config), "")
    wanted = {name: text if name == text_key else rest for name in before if name or name == text_key}
    try:
        model.set_attn_implementation(before | {name: wish for name, wish in wanted.items() if wish})
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def recording(model: Any, recorder: AttentionRecorder) -> Iterator[None]:
    """Within this block the chosen layers of the model report their attention rows to the recorder."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(RECORDING_ATTENTION, recording_attention)
    AttentionMaskInterface.register(RECORDING_ATTENTION, recording_mask)
    token = _active_recorder.set(recorder)
    try:
        with text_attention(model, RECORDING_ATTENTION):
            yield
    finally:
        _active_recorder.reset(token)


@contextmanager
def vision_attention_off(model: Any) -> Iterator[None]:
    """Within this block every part of the model but the language model has an attention that adds nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def nothing(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple:
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    AttentionInterface.register(NO_ATTENTION, nothing)
    AttentionMaskInterface.register(NO_ATTENTION, eager_mask)
    with text_attention(model, rest=NO_ATTENTION):
        yield


def _end_ids(model: Any) -> set[int]:
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
    if response_ids and response_ids[-1] in _end_ids(model):
        response_ids.pop()
    elif len(response_ids) >= limit:
        logger.warning("the response was cut at max_new_tokens=%d; raise it to see the whole answer", limit)
    if not response_ids:
        raise RuntimeError("the model answered with nothing but an end-of-sequence token; check prompt_template")
    return response_ids, output


@dataclass(frozen=True, eq=False)
class RecordedRows:
    """What recording gives, before it is mapped to pictures and text."""

    response_ids: list[int]
    weights: np.ndarray
    """(T, L, columns) float32 or float16; columns: positions, or keys of pictures in a layer that crosses."""
    cross_keys: int
    """Number of keys of pictures that cross-attention saw; 0 for most models."""


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


def picture_columns(located: Sequence[ImageTokens], keys: int) -> np.ndarray:
    """(N,) the key of each image token in a layer that crosses, which has as many keys a picture, padded."""
    each = keys // len(located)
    return np.concatenate([number * each + np.arange(len(i.positions)) for number, i in enumerate(located)])


class HeadSurvey(AttentionRecorder):
    """How the heads of every layer agree on where a given response looks, instead of rows.

    Of each head the weights of the image tokens are summed over a coarse grid on the device; of each layer only the
    agreement of its heads is kept.
    """

    def __init__(
        self, layers: Sequence[int], first_query: int, end: int, located: Sequence[ImageTokens],
        regions: Sequence[np.ndarray], crosses: bool = False,
    ) -> None:  # fmt: skip
        """end: the position after the pass's last; crosses: the keys are those of pictures, not positions."""
        super().__init__(layers, first_query, crossing=layers if crosses else ())
        self.end, self.located = end, located
        regions_N = np.concatenate(regions)
        self.count = int(regions_N.max(initial=0)) + 1
        self.regions_N = np.where(regions_N < 0, self.count, regions_N)  # the last region: no place
        self.found: dict[int, np.ndarray] = {}  # by layer, (H,): see `head_agreement`
        self._sums: list[Any] = []  # of the layer that is met, a block of queries each

    def _keep(self, layer: int, position: int, first_column: int, part_HQK: Any, are_weights: bool = False) -> None:
        """Sum the weights of the queries from a position on over the regions."""
        import torch

        weights_HQK = part_HQK.float() if are_weights else torch.softmax(part_HQK, -1, dtype=torch.float32)
        H, Q, keys = weights_HQK.shape
        if layer in self.crossing:
            columns_N = picture_columns(self.located, keys)
        else:
            columns_N = np.concatenate([image.positions for image in self.located]) - first_column
        seen = (columns_N >= 0) & (columns_N < keys)
        columns, regions = (torch.as_tensor(a[seen], device=part_HQK.device) for a in (columns_N, self.regions_N))
        sums_HQR = weights_HQK.new_zeros(H, Q, self.count + 1).index_add_(2, regions, weights_HQK[..., columns])
        self._sums.append(sums_HQR[..., : self.count].cpu())
        if position + Q == self.end:
            self.found[layer] = head_agreement(torch.cat(self._sums, dim=1).transpose(0, 1).numpy())
            self._sums.clear()


def picture_regions(located: Sequence[ImageTokens], sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """(N,) int a picture, the region of a coarse grid that each cell's middle is in; -1 without a place."""
    regions, first = [], 0
    for image, size in zip(located, sizes):
        middle = (image.boxes[:, :2] + image.boxes[:, 2:]) / 2 / np.float32(size)
        x, y = np.clip(np.nan_to_num(middle) * SURVEY_REGIONS, 0, SURVEY_REGIONS - 1).astype(int).T
        regions.append(np.where(np.isnan(middle[:, 0]), -1, first + y * SURVEY_REGIONS + x))
        first += SURVEY_REGIONS**2
    return regions


def survey_heads(
    model: Any, inputs: Any, response_ids: list[int], located: Sequence[ImageTokens], regions: Sequence[np.ndarray]
) -> dict[int, np.ndarray]:
    """By layer, (H,) the agreement of the heads over a response: one teacher-forced pass, without generating.

    Raises RuntimeError where the model does not go through our attention function.
    """
    P, T, crossing = inputs["input_ids"].shape[1], len(response_ids), cross_layers(model.config)
    layers = crossing or attention_layers(model.config)
    survey = HeadSurvey(layers, P - 1, P - 1 + T, located, regions, bool(crossing))
    with recording(model, survey):
        forced_pass(model, inputs, response_ids, logits_to_keep=slice(-1, None))
    if not survey.found:
        raise RuntimeError(
            f"{type(model).__name__} does not go through transformers' AttentionInterface, so that no layer or head "
            "can be chosen by auto; name them"
        )
    return survey.found


def head_agreement(survey_THR: np.ndarray) -> np.ndarray:
    """(H,) how much of what each head looks at from token to token the other heads of its layer look at, too.

    The covariance over the steps of a head's weights with the mean of the others', summed over the regions. What
    glows at every step counts nothing, a blur next to nothing, and neither does a head that moves on its own.
    No label goes in. In the spirit of Kang et al. 2025 (arXiv 2503.06287), who find a few heads that locate what
    is spoken of by the sum and the spatial concentration of their attention.
    """
    H = survey_THR.shape[1]
    moved_THR = survey_THR - survey_THR.mean(axis=0)
    others_THR = (moved_THR.sum(axis=1, keepdims=True) - moved_THR) / (H - 1) if H > 1 else moved_THR
    return (moved_THR * others_THR).mean(axis=0).sum(axis=-1)


def choose_heads(agreement: dict[int, np.ndarray]) -> tuple[int, dict[int, int]]:
    """The layer whose heads agree most, on average, and of each layer the head that agrees most."""
    seeing = [number for number, heads in agreement.items() if heads.any()]  # a window may end before the picture
    layer = max(seeing or agreement, key=lambda number: agreement[number].mean())
    return layer, {number: int(heads.argmax()) for number, heads in agreement.items()}


def response_log_probabilities(model: Any, inputs: Any, response_ids: list[int], steps: range) -> np.ndarray:
    """(steps,) float, the natural logarithm of the probability of those tokens of a given response, by one pass."""
    import torch

    P = inputs["input_ids"].shape[1]
    keep = slice(P - 1 + steps.start, P - 1 + steps.stop)
    logits_TV = forced_pass(model, inputs, response_ids[: steps.stop], logits_to_keep=keep).logits[0]
    wanted = torch.tensor(response_ids[steps.start : steps.stop], device=logits_TV.device)
    parts = zip(logits_TV.split(LOGITS_PER_BLOCK), wanted.split(LOGITS_PER_BLOCK))
    losses = [torch.nn.functional.cross_entropy(part.float(), ids, reduction="none") for part, ids in parts]
    return -torch.cat(losses).cpu().numpy()


def _attention_places(model: Any, layers: Sequence[int], attentions: Any) -> list[int]:
    """Where the layers stand in `attentions`, which may leave out layers without attention. Raises RuntimeError."""
    softmax = attention_layers(model.config)
    if not attentions or len(attentions) not in (len(softmax), model.config.get_text_config().num_hidden_layers):
        raise RuntimeError(
            f"{type(model).__name__} returned the attention of {len(attentions or ())} layers, not of {len(softmax)}: "
            "it cannot be recorded"
        )
    return [softmax.index(layer) if len(attentions) == len(softmax) else layer for layer in layers]


# ------------------------------------------------------------------------------------------- memory


def layer_values(text: Any, name: str, default: int) -> np.ndarray:
    """(layers,) a number of a text model's configuration, which may differ from layer to layer."""
    layers = getattr(text, "per_layer_config", None) or [text] * text.num_hidden_layers
    found = [getattr(layer, name, None) for layer in layers]
    return np.array([np.max(number) if number else default for number in found])  # gemma3n has a list in each


def cache_size(config: Any, positions: int) -> int:
    """Numbers that the cache holds after so many positions; a sliding window keeps the last ones only."""
    text = config.get_text_config()
    heads, window = text.num_attention_heads, getattr(text, "sliding_window", None) or positions
    key_heads = layer_values(text, "num_key_value_heads", heads)
    sizes = layer_values(text, "head_dim", text.hidden_size // heads)
    kept = [min(positions, window) if kind == "sliding_attention" else positions for kind in layer_kinds(config)]
    return int((2 * key_heads * sizes * kept)[attention_layers(config)].sum())


def pass_size(config: Any, positions: int, patches: int = 0, ranks: int = 1) -> int:
    """Numbers that exist at once, at the most, in a pass over so many positions, or over the patches of the pictures.

    That is inside an MLP, which has its inner values three times; `ranks` processes share these.
    """
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    inner = layer_values(
        text, "intermediate_size", 0 if hasattr(text, "moe_intermediate_size") else 4 * text.hidden_size
    )
    experts = layer_values(text, "moe_intermediate_size", 0) * layer_values(text, "num_experts_per_tok", 1)
    in_text = positions * (3 * max(*inner, *experts) / ranks + 4 * text.hidden_size)
    wide = getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", None) or text.hidden_size
    return int(max(in_text, patches * (3 * (getattr(vision, "intermediate_size", None) or 4 * wide) + 8 * wide)))


def device_memory(
    config: Any, prompt: int, steps: int, value_bytes: int, patches: int = 0, *, replay: bool = False,
    eager: bool = False, ranks: int = 1, share: float = 1.0,
) -> tuple[int, int]:  # fmt: skip
    """Bytes that a run takes on a device beside the weights, estimated: for the prompt alone, and for all `steps`.

    replay: one pass over prompt and response, without a cache. eager: every layer's weights are kept.
    patches: of the vision tower. ranks: processes that share each layer. share: part of the layers on this device.
    """
    heads, kept = config.get_text_config().num_attention_heads / ranks, share * len(attention_layers(config))
    passed = prompt + steps if replay else prompt
    cached = [0 if replay else share / ranks * cache_size(config, S) for S in (prompt, prompt + steps)]
    least = cached[0] + pass_size(config, passed, patches, ranks)
    most = max(least, cached[1])
    if eager:  # beside the weights that are kept a layer has scores, masked scores, weights, and two in float32
        least += heads * passed**2 * (kept + 3 + 8 / value_bytes)
        most = least + (not replay) * heads * kept * steps * (prompt + steps)
    return int(least * value_bytes), int(most * value_bytes)


def record_memory(prompt: int, steps: int, layers: int) -> int:
    """Bytes of the record's weights on the host, at most."""
    values = steps * layers * (prompt + steps)
    return values * (4 if 4 * values <= LARGEST_FLOAT32_RECORD else 2)


def free_memory(device: Any) -> int | None:
    """Bytes that can be taken on a device, torch's own reserve included; None where that is not known."""
    import torch

    device = torch.device(device)
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text("ascii"), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found and device.type == "cpu" else None


def decoder_layers(model: Any) -> Any:
    """The layers of the language model; None where they cannot be found."""
    return getattr(model.get_decoder() if hasattr(model, "get_decoder") else None, "layers", None)


def layer_shares(model: Any) -> dict[Any, float]:
    """The devices that run the layers of the language model, and the part of the layers that each runs."""
    import torch

    layers = decoder_layers(model) or [model]
    hooks = [getattr(getattr(layer, "_hf_hook", None), "execution_device", None) for layer in layers]  # of accelerate
    places = [next(layer.parameters()).device if at is None else at for layer, at in zip(layers, hooks)]
    devices = [torch.device(place) for place in places]
    return {device: devices.count(device) / len(devices) for device in dict.fromkeys(devices)}


def gib(count: float | None) -> str:
    """Bytes in words."""
    if count is None:
        return "unknown GiB"
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def weights_memory(folder: str, config: Any, dtype: Any) -> int:
    """Bytes of a checkpoint's weights once they are loaded; 0 where that is not known: on the hub, or quantised."""
    import torch

    found = (list(Path(folder).glob(name)) for name in ("model*.safetensors", "pytorch_model*.bin"))
    files = next((files for files in found if files), [])
    if getattr(config, "quantization_config", None):
        return 0
    size, wanted = sum(file.stat().st_size for file in files), getattr(torch, str(dtype).removeprefix("torch."), None)
    return size if wanted is None or config.dtype is None else size * wanted.itemsize // config.dtype.itemsize


def check_weights(needed: int, device_map: Any, ranks: int = 1) -> None:
    """Raises ValueError where weights surely do not fit on the device named; warns where they outgrow all cards."""
    import torch

    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    device = str(device_map.get("") if isinstance(device_map, dict) else device_map or "cpu")
    if ranks > 1:
        device, needed = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cards else "cpu", needed // ranks
    elif not re.fullmatch(r"(cpu|cuda)(:\d+)?", device):
        free = [free_memory(card) for card in cards or ["cpu"]]
        if None not in free and needed > sum(free):
            logger.warning(
                "the weights take %s, and %s are free on %s: the rest stays on the host or on disk, which is slow",
                gib(needed), gib(sum(free)), ", ".join(cards) or "the host",
            )  # fmt: skip
        return
    free = free_memory(device)
    if free is not None and needed * SURE_PART > free:
        raise ValueError(
            f"the weights take {gib(needed)} on {device}, where {gib(free)} are free: take a smaller dtype, a "
            "quantised checkpoint, device_map 'auto' or, by torchrun, tp_plan 'auto'"
        )


def check_memory(model: Any, inputs: Any, steps: int, layers: int, *, replay: bool, eager: bool) -> str:
    """What a run will take, in words. Warns where that may not fit; raises ValueError where it surely does not.

    An answer seldom has all of its `steps`, so that the prompt alone decides what surely does not fit.
    """
    prompt, config, vision = inputs["input_ids"].shape[1], model.config, getattr(model.config, "vision_config", None)
    pixels, side, patches = inputs.get("pixel_values"), getattr(vision, "patch_size", None), 0
    if hasattr(pixels, "numel") and isinstance(side, int):
        patches = pixels.numel() // (3 * side**2 * getattr(vision, "temporal_patch_size", 1))
    asked = f"{prompt} prompt tokens and up to {steps} of the response"
    half = ", take dtype bfloat16" * (model.dtype.itemsize > 2)
    lower = "take attention='auto'" if eager else f"lower max_pixels{half} or take more devices"
    how = {"replay": replay, "eager": eager, "ranks": getattr(model, "tp_size", None) or 1}
    told = []
    for device, share in layer_shares(model).items():
        least, most = device_memory(config, prompt, steps, model.dtype.itemsize, patches, share=share, **how)
        free = free_memory(device)
        told.append(f"{gib(most * MEMORY_MARGIN)} on {device} beside the weights, where {gib(free)} are free")
        if free is not None and least * SURE_PART > free:
            raise ValueError(f"{asked} take about {told[-1]}: {lower}")
        if free is not None and most * MEMORY_MARGIN > free:
            logger.warning("%s take about %s: that may not fit; lower max_new_tokens, or %s", asked, told[-1], lower)
    record, free = record_memory(prompt, steps, layers), free_memory("cpu")
    told.append(f"up to {gib(record)} on the host for the record, where {gib(free)} are free")
    if free is not None and record > free:
        logger.warning("%s take %s: record fewer layers, or lower max_new_tokens", asked, told[-1])
    return f"{asked} take about {', '.join(told)}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the host has no more memory."""
    import torch

    known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return known or any(words in str(error) for words in OUT_OF_MEMORY)


@contextmanager
def out_of_memory_told(advice: str = "lower max_pixels or max_new_tokens") -> Iterator[list[str]]:
    """Within this block running out of memory is a RuntimeError of one line, with the facts put into the list."""
    import torch

    facts: list[str] = []
    try:
        yield facts
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or str(error).startswith("out of memory: "):  # told already, while loading
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the cache
        gc.collect()
        torch.cuda.empty_cache()
        what = ". ".join(one_line(error).split(". ")[:2])
        raise RuntimeError("; ".join([f"out of memory: {what or 'on the host'}", *facts, advice])) from error


# ----------------------------------------------------------------------------------------- image boxes


def image_token_id(config: Any) -> int:
    """The id that stands for a piece of a picture in `input_ids`. Raises ValueError where there is none."""
    for holder in (config, getattr(config, "vision_config", None)):
        for name in ("image_token_id", "image_token_index"):
            if isinstance(getattr(holder, name, None), int):
                return getattr(holder, name)
    raise ValueError(f"model type {config.model_type!r} names no image_token_id, so its image tokens cannot be found")


def grid_boxes(rows: int, columns: int, width: float, height: float, left: float = 0, top: float = 0) -> np.ndarray:
    """(rows · columns, 4) float32 boxes of a patch grid laid over a rectangle, row-major, in pixels."""
    x = np.linspace(left, left + width, columns + 1, dtype=np.float32)
    y = np.linspace(top, top + height, rows + 1, dtype=np.float32)
    x0, y0 = np.meshgrid(x[:-1], y[:-1])
    x1, y1 = np.meshgrid(x[1:], y[1:])
    return np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4)


def _no_place(count: int = 1) -> np.ndarray:
    """Boxes of tokens that stand for no part of the picture."""
    return np.full((count, 4), np.nan, np.float32)


def _end_rows(boxes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Grid boxes with a token without a place, a newline, after each row. Either count may be 0."""
    return np.pad(boxes.reshape(rows, columns, 4), ((0, 0), (0, 1), (0, 0)), constant_values=np.nan).reshape(-1, 4)


@dataclass(frozen=True, eq=False)
class ProcessedImages:
    """What a model and its processor made of the pictures of one prompt: all that the rules below look at."""

    model: Any
    processor: Any
    inputs: Any
    images: Sequence[Image.Image]
    count: int
    """Number of image tokens in the prompt."""

    @property
    def pixels_name(self) -> str:
        return next((key for key in ("pixel_values", "image_pixel_values") if key in self.inputs), "pixel_values")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixel values; () where there is no one array of them."""
        return tuple(getattr(self.inputs.get(self.pixels_name), "shape", ()))

    def numbers(self, name: str) -> np.ndarray | None:
        """An input as an array, or None."""
        return self.inputs[name].cpu().numpy() if name in self.inputs else None


def locate_image_tokens(model: Any, processor: Any, inputs: Any, images: Sequence[Image.Image]) -> list[ImageTokens]:
    """Where every image token stands in its picture: one box a token, or an error.

    `inputs` is what the processor returned for `images` (batch 1). In this order: a grid that the processor
    reports, a rule for the family, or tiles, read off a ramp that goes through the processor in the picture's place.
    Tokens without a place (newlines, a class token, padding) get NaN boxes. Where only cross-attention sees the
    pictures, their tokens get positions of their own, right after the token that stands for each in the prompt.
    Raises ValueError, with the model type and the counts, where nothing fits.
    """
    ids_P = inputs["input_ids"][0].cpu().numpy()
    positions = np.flatnonzero(ids_P == image_token_id(model.config))
    made = ProcessedImages(model, processor, inputs, images, len(positions))
    try:
        if not made.count:
            raise ValueError("the prompt holds none; check the chat template")
        boxes = place_image_tokens(made)
        counts = [len(part) for part in boxes]
        if cross_layers(model.config) and len(positions) == len(images):
            shifts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            positions = np.concatenate(
                [at + 1 + np.arange(n) + shift for at, n, shift in zip(positions, counts, shifts)]
            )
        if len(boxes) != len(images) or sum(counts) != len(positions):
            raise ValueError(f"the {len(images)} pictures would have {counts} image tokens")
    except ValueError as error:
        raise ValueError(
            f"the image tokens cannot be placed in the picture: {one_line(error)} (model type "
            f"{model.config.model_type!r}, {made.count} image tokens, {made.pixels_name} of shape {made.shape})"
        ) from error
    parts = np.split(positions.astype(np.int64), np.cumsum(counts)[:-1])
    return [ImageTokens(part, visible_boxes(box, image.size)) for part, box, image in zip(parts, boxes, images)]


def place_image_tokens(made: ProcessedImages) -> list[np.ndarray]:
    """(tokens, 4) boxes of each picture, not clipped to it yet, by the first mechanism that fits."""
    family = made.model.config.model_type
    for part in made.model.config.sub_configs:
        if "qformer" in part or "perceiver" in part:
            raise ValueError(f"tokens of a {part.removesuffix('_config')} each stand for the whole picture")
    if family in FAMILY_RULES:
        return FAMILY_RULES[family](made)
    grids = reported_grids(made)
    if grids is None:
        boxes, owner = tile_boxes(made)
    else:
        boxes = [grid_boxes(*grid.tolist(), *image.size) for grid, image in zip(grids, made.images)]
        owner = patch_owners(made, grids)
    if family not in PROVEN_FAMILIES:
        check_places(made, owner)
    return boxes


def visible_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The boxes clipped to the picture; a cell that lies in the padding, up to rounding, has no place."""
    clipped = np.clip(boxes, 0, np.array([*size, *size])).astype(np.float32)
    whole, seen = boxes[:, 2:] - boxes[:, :2], clipped[:, 2:] - clipped[:, :2]
    clipped[~(seen > SMALLEST_VISIBLE_PART * whole).all(axis=1)] = np.nan
    return clipped


def reported_grids(made: ProcessedImages) -> np.ndarray | None:
    """(pictures, 2) rows and columns of tokens, from a grid of patches or pixels that the processor reports.

    It stands in `image_grid_thw` (time, height, width), in the `image_position_ids` (x, y) of the patches, or in
    `image_sizes` where these are the pixels of the canvas; m × m of its units make one token.
    """
    fine, xy, sizes = (made.numbers(name) for name in ("image_grid_thw", "image_position_ids", "image_sizes"))
    if fine is not None:
        if (fine[:, 0] != 1).any():
            raise ValueError(f"image_grid_thw is {fine.tolist()}; expected one frame a picture")
        fine = fine[:, 1:]
    elif xy is not None:
        fine = xy.max(axis=1)[:, ::-1] + 1
    elif sizes is not None and len(made.shape) == 4 and tuple(sizes.max(axis=0)) == made.shape[-2:]:
        fine = sizes
    if fine is None:
        return None
    merge = math.isqrt(int(fine.prod(axis=1).sum()) // max(made.count, 1))
    if len(fine) != len(made.images) or merge == 0 or (fine % merge).any():
        raise ValueError(f"the grids {fine.tolist()} of {len(made.images)} picture(s) do not make so many tokens")
    return fine // merge


def patch_owners(made: ProcessedImages, grids: np.ndarray) -> np.ndarray | None:
    """The token of each pixel value, -1 for none: of patches in the tokens' order, or of a canvas a picture."""
    if len(made.shape) == 2 and made.shape[0] % made.count == 0:
        return np.arange(made.shape[0])[:, None] // (made.shape[0] // made.count)
    if len(made.shape) != 4:
        return None
    owner, start = np.full((made.shape[0], 1, *made.shape[-2:]), -1), 0
    for canvas, size, (rows, columns) in zip(owner, made.numbers("image_sizes"), grids):
        height, width = size
        cells = np.arange(rows * columns).reshape(rows, columns) + start
        canvas[0, :height, :width] = np.kron(cells, np.ones((height // rows, width // columns), int))
        start += rows * columns
    return owner


def tile_boxes(made: ProcessedImages, newline: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Boxes where every tile that the processor cut holds a grid of tokens of its own shape, and each pixel's token.

    `newline`: 1 where a token without a place follows the grid of each tile.
    """
    tiles = read_tiles(made)
    height, width = made.shape[-2:]
    shown = [number for number, (picture, _) in enumerate(tiles) if picture >= 0]
    per_tile = made.count // max(len(shown), 1)
    class_token = 0
    grid = _grid_like(per_tile - newline, height, width)
    if grid is None and getattr(made.model.config, "vision_feature_select_strategy", None) == "full":
        class_token, grid = 1, _grid_like(per_tile - 1 - newline, height, width)
    if grid is None:
        raise ValueError(f"{len(shown)} tile(s) of {width} × {height} pixels do not hold a grid of tokens each")
    rows, columns = grid
    boxes: list[list[np.ndarray]] = [[_no_place(0)] for _ in made.images]
    owner = np.full((len(tiles), 1, height, width), -1)
    for place, number in enumerate(shown):
        picture, (x0, y0, x1, y1) = tiles[number]
        cells = grid_boxes(rows, columns, x1 - x0, y1 - y0, x0, y0)
        boxes[picture] += [_no_place(class_token), cells, _no_place(newline)]
        tokens = np.arange(rows * columns).reshape(rows, columns) + place * per_tile + class_token
        owner[number, 0] = np.kron(tokens, np.ones((height // rows, width // columns), int))
    return [np.concatenate(parts) for parts in boxes], owner


def _grid_like(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of a grid of so many square cells on a canvas of a size, or None."""
    unit = math.gcd(height, width)
    if unit == 0 or tokens <= 0:
        return None
    share = math.isqrt(tokens * unit * unit // (height * width))  # cells along one unit
    rows, columns = height // unit * share, width // unit * share
    fits = rows * columns == tokens and height % rows == 0 and width % columns == 0
    return (rows, columns) if fits else None


def read_tiles(made: ProcessedImages) -> list[tuple[int, np.ndarray | None]]:
    """For each tile in `pixel_values`: its picture (-1 for padding) and the rectangle of that picture it shows.

    The processor itself is asked: it gets a ramp, whose colour says where a pixel came from, in a picture's place.
    """
    if len(made.shape) not in (4, 5) or made.shape[-3] != 3:
        raise ValueError("it reports no grid, and pixel_values are no tiles of three colours")
    tiles: list[tuple[int, np.ndarray | None]] = [(-1, None)] * math.prod(made.shape[:-3])
    for number, image in enumerate(made.images):
        pictures = [Image.new("RGB", other.size) for other in made.images]
        pictures[number] = _ramp(image.size)
        pixels = processed_unscaled(made.processor, pictures)[made.pixels_name]
        if tuple(pixels.shape) != made.shape:
            raise ValueError(f"a ramp of the picture's size gave pixel_values of shape {tuple(pixels.shape)}")
        for tile, tile_CYX in enumerate(pixels.reshape(-1, *made.shape[-3:]).double().numpy()):
            rectangle = _shown_rectangle(tile_CYX, image.size)
            if rectangle is not None:
                tiles[tile] = number, rectangle
    order = [picture for picture, _ in tiles if picture >= 0]
    if order != sorted(order):
        raise ValueError("the tiles do not stand in the order of the pictures")
    return tiles


def _ramp(size: tuple[int, int]) -> Image.Image:
    """A picture that says where its pixels are: red rises with x, green with y, blue is full.

    Each rises a little along the other side as well, so that rounding to whole levels averages out over a tile.
    """
    x, y = ((np.arange(length, dtype=np.float32) + 0.5) / length for length in size)
    red = RAMP_BASE + RAMP_MAIN * x + RAMP_SIDE * y[:, None]
    green = RAMP_BASE + RAMP_SIDE * x + RAMP_MAIN * y[:, None]
    return Image.fromarray(np.stack([red, green, np.full_like(red, 255)], axis=-1).round().astype(np.uint8))


def _shown_rectangle(tile_CYX: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """left, top, right, bottom of a tile in pixels of the picture whose ramp it shows; None where it shows none."""
    red, green, blue = tile_CYX
    shown = (blue > 254) & (np.maximum(red, green) < RAMP_BASE + RAMP_MAIN + RAMP_SIDE + 2)
    if not shown.any():
        return None
    red, green = red - RAMP_BASE, green - RAMP_BASE
    norm = RAMP_MAIN**2 - RAMP_SIDE**2
    x_YX = (RAMP_MAIN * red - RAMP_SIDE * green) / norm * size[0]
    y_YX = (RAMP_MAIN * green - RAMP_SIDE * red) / norm * size[1]
    left, right = _fit_ends(x_YX, shown, size[0])
    top, bottom = _fit_ends(y_YX.T, shown.T, size[1])
    return np.array([left, top, right, bottom])


def _fit_ends(values: np.ndarray, shown: np.ndarray, length: int) -> tuple[float, float]:
    """Where the first and the last column of a tile lie, by a straight line through the columns that show the ramp."""
    columns = np.flatnonzero(2 * shown.sum(axis=0) >= shown.sum(axis=0).max())
    if len(columns) < 2:
        raise ValueError("too little of the picture is left on a tile to tell its place")
    means = np.where(shown, values, 0).sum(axis=0)[columns] / shown.sum(axis=0)[columns]
    slope, start = np.polyfit(columns + 0.5, means, 1)
    error = np.abs(means - slope * (columns + 0.5) - start).max()
    # A pixel of the canvas, a level of colour, and half a pixel of the picture, where enlarging bends its ends.
    if slope <= 0 or error > slope + length / RAMP_MAIN + 0.5:
        raise ValueError("the processor does more than cut, scale and pad the picture")
    return start, start + slope * values.shape[1]


def processed_unscaled(processor: Any, images: Sequence[Image.Image]) -> Any:
    """The processor's output for pictures alone, their colours as they are."""
    import torch

    content = [{"type": "image"} for _ in images]
    text = prompt_text(processor, content)
    made = processor(text=[text], images=[list(images)], do_rescale=False, do_normalize=False, return_tensors="pt")
    return {key: value for key, value in made.items() if torch.is_tensor(value)}


def check_places(made: ProcessedImages, owner: np.ndarray | None) -> None:
    """For a family that nobody proved: with the vision tower's attention off, a token must hang on its own cell alone.

    The cells are told apart by the bits of their numbers, one run of the vision tower a bit.
    """
    import torch

    if owner is None:
        raise ValueError("nothing says which pixels its tokens stand for")
    pixels = made.inputs[made.pixels_name]
    tokens = torch.arange(made.count)
    placed = torch.isin(tokens, torch.from_numpy(np.unique(owner)))
    owner = torch.from_numpy(owner).reshape(*pixels.shape[: -owner.ndim + 1], *owner.shape[1:])
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).to(pixels.dtype)
    before = image_embeddings(made, pixels)
    for bit in range(made.count.bit_length()):
        changed = (image_embeddings(made, pixels + noise * ((owner + 1) >> bit & 1)) - before).abs().amax(dim=-1)
        expected = ((tokens + 1) >> bit & 1).bool() & placed
        if not torch.equal(changed > 1e-4 * changed.max(), expected):
            raise ValueError("no token, as in a query-former or perceiver, has one place of its own in the picture")


def image_embeddings(made: ProcessedImages, pixels: Any) -> Any:
    """(N, D) float32 embeddings of the image tokens for other pixel values, without attention between patches."""
    import torch

    model, found = made.model, []

    def keep(module: Any, args: tuple, kwargs: dict) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _EmbeddingsFound

    layers = decoder_layers(model)
    if not layers:
        raise ValueError(f"the layers of {type(model).__name__} cannot be found to check it")
    hook = layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    inputs, device = {**made.inputs, made.pixels_name: pixels.to(model.dtype)}, input_device(model)
    inputs = {key: value.to(device) if torch.is_tensor(value) else value for key, value in inputs.items()}
    try:
        with vision_attention_off(model), torch.inference_mode():
            model(**inputs)
    except _EmbeddingsFound:
        pass
    finally:
        hook.remove()
    return found[0][0].cpu()[inputs["input_ids"][0].cpu() == image_token_id(model.config)].float()


class _EmbeddingsFound(Exception):
    """Leaves a model's forward pass as soon as its embeddings are there."""


# --- rules of families whose tokens are not a grid a tile


def _canvas_boxes(
    cells: np.ndarray, image: Image.Image, resized: tuple[int, int], padding: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Boxes on a canvas, on which the resized picture lies behind some padding, as boxes of the picture."""
    stretch = np.array([image.width / resized[0], image.height / resized[1]] * 2, np.float32)
    return (cells - np.array([*padding, *padding], np.float32)) * stretch


def anyres_boxes(made: ProcessedImages) -> list[np.ndarray]:
    """llava_next and llava_onevision: the whole picture, then the rows of a padded canvas without its padding.

    A newline ends each row. onevision pools a canvas of many cells, and takes each of several pictures as one square.
    """
    config = made.model.config
    if config.model_type == "llava_onevision" and len(made.images) > 1:
        return tile_boxes(made, newline=1)[0]
    return [_anyres_boxes(config, image) for image in made.images]


def _anyres_boxes(config: Any, image: Image.Image) -> np.ndarray:
    from transformers.image_processing_utils import select_best_resolution

    (width, height), tile = image.size, config.vision_config.image_size
    side = tile // config.vision_config.patch_size
    canvas_height, canvas_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    cell = tile / side
    rows, columns = canvas_height // tile * side, canvas_width // tile * side
    if canvas_width / width < canvas_height / height:
        resized = canvas_width, min(math.ceil(height * canvas_width / width), canvas_height)
    else:
        resized = min(math.ceil(width * canvas_height / height), canvas_width), canvas_height
    left = top = 0
    if width / height > columns / rows:
        top = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        left = (columns - int(round(width * (rows / height), 7))) // 2
    kept_rows, kept_columns = rows - 2 * top, columns - 2 * left
    area = (kept_columns * cell, kept_rows * cell, left * cell, top * cell)
    if config.model_type == "llava_onevision":
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(kept_rows * kept_columns / (most * side**2))
        if ratio > 1.1:
            kept_rows, kept_columns = int(kept_rows // ratio), int(kept_columns // ratio)
    padding = (canvas_width - resized[0]) // 2, (canvas_height - resized[1]) // 2
    cells = _canvas_boxes(grid_boxes(kept_rows, kept_columns, *area), image, resized, padding)
    return np.concatenate([grid_boxes(side, side, width, height), _end_rows(cells, kept_rows, kept_columns)])


def phi4_boxes(made: ProcessedImages) -> list[np.ndarray]:
    """phi4_multimodal: the useful rows of a canvas padded right and below, a separator, a thumbnail of that canvas."""
    vision = made.model.config.vision_config
    tile = vision.crop_size
    side = -(-vision.image_size // vision.patch_size // 2)  # tokens along a tile
    boxes = []
    for image, size, mask in zip(made.images, made.numbers("image_sizes"), made.numbers("image_attention_mask")):
        height, width = size.tolist()
        down, across = height // tile, width // tile
        useful = mask[1 : down * across + 1, ::2, ::2].reshape(down, across, side, side)
        rows, columns = int(useful[:, 0, :, 0].sum()), int(useful[0, :, 0].sum())
        scale = min(width / image.width, height / image.height)
        resized = int(image.width * scale), int(image.height * scale)
        cell = tile / side
        cells = _canvas_boxes(grid_boxes(rows, columns, columns * cell, rows * cell), image, resized)
        thumbnail = _canvas_boxes(grid_boxes(side, side, width, height), image, resized)
        boxes.append(np.concatenate([_end_rows(cells, rows, columns), _no_place(), _end_rows(thumbnail, side, side)]))
    return boxes


def mllama_boxes(made: ProcessedImages) -> list[np.ndarray]:
    """mllama: tiles of a canvas padded right and below, row-major; each holds a class token, then a grid."""
    from transformers.models.mllama import image_processing_mllama as mllama

    vision, boxes = made.model.config.vision_config, []
    tile, side = vision.image_size, vision.image_size // vision.patch_size
    for image in made.images:
        size = {"image_height": image.height, "image_width": image.width}
        most = made.processor.image_processor.max_image_tiles
        height, width = mllama.get_optimal_tiled_canvas(**size, max_image_tiles=most, tile_size=tile)
        new_height, new_width = mllama.get_image_size_fit_to_canvas(
            **size, canvas_height=height, canvas_width=width, tile_size=tile
        )
        corners = [(x, y) for y in range(0, height, tile) for x in range(0, width, tile)]
        cells = [part for x, y in corners for part in (_no_place(), grid_boxes(side, side, tile, tile, x, y))]
        boxes.append(_canvas_boxes(np.concatenate(cells), image, (new_width, new_height)))
    return boxes


FAMILY_RULES: dict[str, Callable[[ProcessedImages], list[np.ndarray]]] = {
    "llava_next": anyres_boxes,
    "llava_onevision": anyres_boxes,
    "phi4_multimodal": phi4_boxes,
    "mllama": mllama_boxes,
}
# Families without a rule whose boxes the tests hold to the pixels; any other is checked on the model itself.
PROVEN_FAMILIES = {
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "llava", "idefics3", "smolvlm", "gemma3", "gemma4",
    "paligemma", "internvl", "mistral3",
}  # fmt: skip


# --- pictures that only cross-attention sees


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


# ----------------------------------------------------------------------------------------- text pieces


def decode_tokens(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, ...]:
    """The text of every token, so that joined they are the decoded text.

    Tokens are decoded behind the one before, never alone: a character whose bytes are spread over several
    tokens comes whole, with the last of them, and leading spaces are kept.
    """
    pieces: list[str] = []
    before, start = 0, 0  # ids[before:start] is text that is out already, ids[start:] waits for its last byte
    for end in range(1, len(token_ids) + 1):
        known = _decode(tokenizer, token_ids[before:start])
        text = _decode(tokenizer, token_ids[before:end])
        # A UTF-8 character has at most four bytes: what is broken for longer is no character.
        if text.endswith("\ufffd") and end - start < 4 and end < len(token_ids):
            pieces.append("")
            continue
        pieces.append(text[len(known) :])
        before, start = start, end
    return tuple(pieces)


def _decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    return tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def find_panel_start(record: AttentionRecord, start_phrase: str) -> tuple[int, int]:
    """The position at which the text panel begins, and the first step that gets a frame.

    The phrase is looked for in the problem (last occurrence), then in the response (first one: the video then
    begins there). Where it is absent, the panel begins at the response.
    """
    P = record.prompt_length
    ends = np.cumsum([0, *(len(token) for token in record.tokens)])
    first, last = record.problem or (0, P)
    text = "".join(record.tokens)
    if start_phrase:
        at = text.rfind(start_phrase, int(ends[first]), int(ends[last]))
        at = at if at >= 0 else text.find(start_phrase, int(ends[P]))
        if at >= 0:
            position = int(np.searchsorted(ends, at, side="right")) - 1
            return position, max(position - P, 0)
        logger.warning("start_phrase %r was not found; the text begins at the response", start_phrase)
    return P, 0


@dataclass(frozen=True)
class TextPiece:
    """A stretch of positions that is shown as one: a token, a character of several tokens, a run of image tokens."""

    start: int
    """First position."""
    text: str
    kind: str
    """"text", "special" or "image"."""


def text_pieces(record: AttentionRecord, start: int) -> list[TextPiece]:
    """The pieces of the text panel: together they cover every position from `start` to the end."""
    image_of = {int(p): number for number, image in enumerate(record.images, 1) for p in image.positions}
    special = set(record.special_ids)
    pieces: list[TextPiece] = []
    waiting = None  # first position of a character that is not complete yet
    for position in range(start, len(record.tokens)):
        number = image_of.get(position)
        if number is not None:
            if not (pieces and image_of.get(position - 1) == number and position > start):
                pieces.append(TextPiece(position, f"[image {number}]", "image"))
            continue
        waiting = position if waiting is None else waiting
        text = record.tokens[position]
        if text or position == len(record.tokens) - 1:
            kind = "special" if int(record.token_ids[position]) in special else "text"
            pieces.append(TextPiece(waiting, text if pieces else text.lstrip(" "), kind))
            waiting = None
    return pieces


@dataclass(frozen=True)
class Phase:
    """A stretch of the response, such as the thinking before the answer."""

    name: str
    """"think", "answer", or "response" where no tag parts the two."""
    first: int
    """First step."""
    last: int
    """First step after it."""


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


_N = r"\s*(\d+(?:\.\d+)?)\s*"
# (x1,y1),(x2,y2) is a box where nothing but one comma joins exactly two; else each bracket stands for itself.
COORDINATES = re.compile(
    rf"(?<!\),)\({_N},{_N}\),\({_N},{_N}\)(?!,\()|[(\[（]{_N}[,，]{_N}(?:[,，]{_N}[,，]{_N})?[)\]）]"
)
_NOUN = r"(?:image|picture|photo|figure|图片?)"
NUMERALS = tuple(
    words.split() for words in (
        "one first 一", "two second 二", "three third 三", "four fourth 四", "five fifth 五", "six sixth 六",
        "seven seventh 七", "eight eighth 八", "nine ninth 九", "ten tenth 十",
    )
)  # fmt: skip
_CARDINAL, _ORDINAL, _CHINESE = ("|".join(words) for words in zip(*NUMERALS))
PICTURE_NAMED = re.compile(
    rf"{_NOUN}\s*#?\s*(\d{{1,4}}(?!\d)|(?:{_CARDINAL})(?![a-z])|{_CHINESE})"
    rf"|(?:({_ORDINAL})|(\d{{1,4}})(?:st|nd|rd|th)|第\s*({_CHINESE}|\d{{1,4}}))\s*[张幅个]?\s*{_NOUN}",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mark:
    """A place that the response names."""

    step: int
    """The response token that completes it."""
    phase: str
    image: int
    """Which picture it is in, from 0."""
    corners: tuple[float, ...]
    """x, y of a point or left, top, right, bottom of a box, as parts 0..1 of the picture's width and height."""


def response_marks(
    record: AttentionRecord, layer: int, sizes: Sequence[tuple[int, int]], draw_points: str = "auto"
) -> list[Mark]:
    """The points `(x,y)`, `[x, y]` and the boxes `(x1,y1),(x2,y2)`, `[x1, y1, x2, y2]` that the response names.

    sizes: width and height of the pictures. draw_points: "thousandths" or "pixels" (of the pictures as given);
    "auto" takes thousandths unless a number is above 1000 or the prompt speaks of pixels; "off" finds none.
    With several pictures a place belongs to the one that the text has named last in this phase ("picture two");
    else to that of an earlier mark at the same place; else to the one with more attention while it was written.
    What lies outside its picture is left out.
    """
    text, ends, phases = record.response, response_ends(record), response_phases(record)
    found = list(COORDINATES.finditer(text)) if draw_points != "off" and sizes else []
    places = [tuple(float(group) for group in match.groups() if group) for match in found]
    prompt = "".join(record.tokens[: record.prompt_length])
    # (1,000) is a number, and places that are all 0 or 1 are intervals and the like.
    pairs = [(m, p) for m, p in zip(found, places) if not re.search(r"(?<![\d.])0\d", m[0]) and max(p) > 1]
    found, places = [m for m, _ in pairs], [p for _, p in pairs]
    beyond = any(max(place) > 1000 for place in places)
    pixels = draw_points == "pixels" or (draw_points == "auto" and (beyond or "pixel" in prompt.lower()))
    rows_TS = record.layer_weights(layer)
    looked_IT = np.array([rows_TS[:, image.positions].sum(axis=1) for image in record.images])
    marks: list[Mark] = []
    image_of: dict[tuple, int] = {}
    for match, place in zip(found, places):
        first, last = np.searchsorted(ends, (match.start(), match.end() - 1), side="right").tolist()
        phase = next((phase for phase in phases if phase.first <= last < phase.last), Phase("", 0, 0))
        image = _picture_named(text[int(ends[phase.first - 1]) if phase.first else 0 : match.start()])
        if image not in range(len(sizes)):
            image = image_of.get(place, int(looked_IT[:, first : last + 1].sum(axis=1).argmax()))
        image_of[place] = image
        whole = np.resize(sizes[image] if pixels else 1000, len(place))
        corners = tuple((np.array(place) / whole).tolist())
        if max(corners) <= 1 and all(low < high for low, high in zip(corners[:2], corners[2:])):
            marks.append(Mark(last, phase.name, image, corners))
    return marks


def _picture_named(text: str) -> int | None:
    """The picture that a text names last, from 0, whether there are so many or not."""
    names = ["".join(match.groups("")).lower() for match in PICTURE_NAMED.finditer(text)]
    if names and names[-1].isdecimal():
        return int(names[-1]) - 1
    return next((n for n, words in enumerate(NUMERALS) if names and names[-1] in words), None)


def share_inside(
    record: AttentionRecord, layer: int, step: int, marks: Sequence[Mark], sizes: Sequence
) -> float | None:
    """How much of a step's attention on the pictures lies inside the boxes among the marks; None without a box."""
    boxes = [mark for mark in marks if len(mark.corners) == 4]
    row_S, inside, total = record.layer_weights(layer)[step], 0.0, 0.0
    for number, (tokens, size) in enumerate(zip(record.images, sizes)):
        cells, weights = tokens.boxes / np.resize(size, 4), row_S[tokens.positions]
        area, covered = (cells[:, 2:] - cells[:, :2]).prod(axis=1), np.zeros(len(cells))
        for box in (mark.corners for mark in boxes if mark.image == number):
            overlap = np.minimum(cells[:, 2:], box[2:]) - np.maximum(cells[:, :2], box[:2])
            covered = np.fmax(covered, np.clip(overlap, 0, None).prod(axis=1) / area)  # boxes may overlap
        inside, total = inside + float(weights @ covered), total + float(weights.sum())
    return inside / total if boxes and total else None


# --------------------------------------------------------------------------------------------- maps
# What is drawn of a record's weights; the record itself, and the shares below the picture, stay as they are.

SINKS_LEFT_OUT = "sinks left out"
BASELINES = {  # what is done to the weight of a cell, and what the number on the colour bar then is
    "off": ("", "of the attention"),
    "median": ("cells minus their median over the steps", "above its median"),
    "neutral": ("cells minus their mean under a neutral prompt", "above a neutral prompt's"),
    "relative": ("cells over their mean under a neutral prompt", "a neutral prompt's"),
}


def view_names(baseline: str, sinks: bool, smooth: float) -> str:
    """What is done to the weights before they are drawn, in words; "" for the plain weights."""
    smoothed = f"smoothed over {smooth:g} cell{'s' * (smooth != 1)}" * bool(smooth)
    names = [BASELINES[baseline][0], SINKS_LEFT_OUT * sinks, smoothed]
    return ", ".join(name for name in names if name)


def above_baseline(weights_TN: np.ndarray, baseline: str, neutral_N: np.ndarray | None = None) -> np.ndarray:
    """(T, N) weights of image tokens without what each of them gets anyway, 0 at the lowest.

    "median": minus the token's own median over the steps of the response. "neutral": minus `neutral_N`, its mean
    weight while the same response is replayed after a neutral prompt; "relative": divided by it, as the relative
    attention of Zhang et al. 2025 (arXiv 2502.17422). Raises ValueError where the record has no such replay.
    """
    if baseline == "off":
        return weights_TN
    if baseline == "median":
        return np.maximum(weights_TN - np.median(weights_TN, axis=0), 0)
    if neutral_N is None:
        raise ValueError(
            f"baseline {baseline!r} needs a record made with neutral_prompt; record again, or take baseline 'median'"
        )
    if baseline == "neutral":
        return np.maximum(weights_TN - neutral_N, 0)
    return weights_TN / np.maximum(neutral_N, max(LEAST_BASELINE * neutral_N.mean(), TINY))


def find_sinks(weights_TN: np.ndarray) -> np.ndarray:
    """(N,) bool, the columns that take far more weight than the others at nearly all steps, whatever is said.

    Far more: over SINK_TIMES the mean of all but the step's highest twentieth; nearly all: SINK_STEPS of them. What
    is looked at for some words only is none, and neither is anything in fewer than FEWEST_SINK_STEPS steps.
    See Xiao et al. 2023 (arXiv 2309.17453) and, of image tokens, Kang et al. 2025 (arXiv 2503.03321).
    """
    T, N = weights_TN.shape
    if T < FEWEST_SINK_STEPS or N < 2:
        return np.zeros(N, bool)
    ordinary_T = np.sort(weights_TN, axis=1)[:, : max(int(SINK_OTHERS * N), 1)].mean(axis=1)
    return (weights_TN > SINK_TIMES * ordinary_T[:, None]).mean(axis=0) >= SINK_STEPS


def smooth_cells(weights_TN: np.ndarray, boxes_N4: np.ndarray, width: float, out_N: np.ndarray) -> np.ndarray:
    """(T, N) weights of one picture's tokens, each the mean of its neighbours by a Gaussian of a width in cells.

    out_N: (N,) bool, tokens that are left out: they neither give nor take.

    Kang et al. 2025 (arXiv 2503.06287) smooth the maps of their heads in this way. Tokens without a place stay as
    they are; views of different fineness are not mixed.
    """
    smoothed_TN, side_N2 = weights_TN.copy(), boxes_N4[:, 2:] - boxes_N4[:, :2]
    middle_N2, area_N = boxes_N4[:, :2] + side_N2 / 2, side_N2.prod(axis=1)
    for cell in np.flatnonzero(np.isfinite(area_N) & ~out_N):
        away_N = (((middle_N2 - middle_N2[cell]) / side_N2[cell]) ** 2).sum(axis=1)
        near_N = np.exp(-away_N / (2 * width**2)) * (np.abs(np.log(area_N / area_N[cell])) < math.log(2))
        near_N = np.nan_to_num(near_N) * ~out_N
        smoothed_TN[:, cell] = weights_TN @ (near_N / near_N.sum())
    return smoothed_TN


@dataclass(frozen=True, eq=False)
class ShownRows:
    """The rows of a layer as they are drawn."""

    rows: np.ndarray
    """(T, S) float32, the record's own but for the image tokens."""
    sinks: np.ndarray
    """(S,) bool, positions of the prompt that are left out of the picture and of the scales."""
    left_out: float
    """Mean over the steps of the part of the attention on the pictures that lies on image tokens left out."""


def shown_rows(record: AttentionRecord, layer: int, baseline: str, sinks: bool, smooth: float) -> ShownRows:
    """What is drawn of a layer: baseline, sinks and smoothing, in this order, on the weights of the image tokens."""
    rows_TS, at_N = record.layer_weights(layer), record.image_positions
    sink_S = np.zeros(rows_TS.shape[1], bool)
    if not view_names(baseline, sinks, smooth):
        return ShownRows(rows_TS, sink_S, 0.0)
    rows_TS, weights_TN = rows_TS.copy(), rows_TS[:, at_N]
    if sinks:
        words = np.setdiff1d(np.arange(record.prompt_length), at_N)
        for part in (at_N, words):
            sink_S[part] = find_sinks(rows_TS[:, part])
    out_N = sink_S[at_N]
    whole = weights_TN.sum(axis=1)
    left_out = float((weights_TN[:, out_N].sum(axis=1) / np.maximum(whole, TINY)).mean())
    neutral_N = None if record.neutral is None else record.neutral[record.layers.index(record.layer_number(layer))]
    weights_TN = above_baseline(weights_TN, baseline, neutral_N) * ~out_N
    if smooth:
        ends = np.cumsum([len(image.positions) for image in record.images])[:-1]
        parts = zip(np.split(weights_TN, ends, axis=1), record.images, np.split(out_N, ends))
        smoothed = [smooth_cells(part, image.boxes, smooth, out) for part, image, out in parts]
        weights_TN = np.concatenate(smoothed, axis=1)
    rows_TS[:, at_N] = weights_TN
    return ShownRows(rows_TS, sink_S, left_out)


# -------------------------------------------------------------------------------------------- colour


def _between(stops: Sequence[tuple[int, int, int]], values: np.ndarray) -> np.ndarray:
    """Colours between evenly spaced stops."""
    values, places = np.clip(np.asarray(values, np.float32), 0, 1), np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, places, channel) for channel in zip(*stops)], axis=-1)


def red_to_green(values: np.ndarray) -> np.ndarray:
    """Colour map: values of any shape in 0..1 (clipped) to RGB floats in 0..255, with a last axis of 3."""
    return _between(RED_TO_GREEN, values)


def blue_to_yellow(values: np.ndarray) -> np.ndarray:
    """The same from dark blue to yellow: told apart by any colour vision, and in grey."""
    return _between(BLUE_TO_YELLOW, values)


COLORMAPS = {colormap.__name__: colormap for colormap in (red_to_green, blue_to_yellow)}


def with_luminance(colours: np.ndarray, least: float = 0, most: float = 1) -> np.ndarray:
    """(n, 3) RGB 0..255, darkened or mixed with white where their WCAG luminance is not in least..most."""
    colours = np.clip(np.asarray(colours, float) / 255, 0, 1)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    light = (linear @ LUMINANCE)[:, None]
    linear = np.where(light > most, linear * most / np.maximum(light, most), linear)
    linear = np.where(light < least, 1 - (1 - linear) * (1 - least) / (1 - np.minimum(light, least)), linear)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def opacity(values: np.ndarray, alpha_range: tuple[float, float]) -> np.ndarray:
    """Opacity 0..1 of the tint of weights on the scale 0..1: it grows with the weight."""
    return alpha_range[0] + (alpha_range[1] - alpha_range[0]) * np.clip(values, 0, 1)


def tinted(values: np.ndarray, colormap: Colormap, alpha_range: tuple[float, float]) -> np.ndarray:
    """(n, 3) RGB 0..255 of weights on the scale 0..1, tinted over white."""
    return 255 - (255 - np.asarray(colormap(np.clip(values, 0, 1)))) * opacity(values, alpha_range)[:, None]


def text_colours(values: np.ndarray, colormap: Colormap, text_style: str) -> tuple[np.ndarray, np.ndarray]:
    """((n, 3), (n, 3)) RGB 0..255 of the grounds and the glyphs of weights, with a contrast of 4.5:1 for any map."""
    if text_style == "glyph":
        return np.full((len(values), 3), 255.0), with_luminance(colormap(values), most=GLYPH_LUMINANCE)
    grounds = with_luminance(tinted(values, colormap, TEXT_ALPHA), least=GROUND_LUMINANCE)
    return grounds, np.full((len(values), 3), INK, float)


def blend(under: np.ndarray, over: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Colours `over` laid on colours `under`, with an opacity `cover` of 0..1."""
    return under + (over - under) * cover


def pixel_words(colours: np.ndarray, cover: Any = 255) -> np.ndarray:
    """(n,) uint32 words, a pixel each, of (n, 3) RGB colours and (n,) covers, all 0..255."""
    words = np.empty((len(colours), 4), np.uint8)
    words[:, :3], words[:, 3] = np.round(colours), cover
    return words.view(np.uint32)[:, 0]


def coloured(entries: np.ndarray, words: np.ndarray) -> Image.Image:
    """An RGBA image from (Y, X) intp indices into a palette of words."""
    return Image.frombuffer("RGBA", entries.shape[::-1], words.take(entries), "raw", "RGBA", 0, 1)


def _bar(shades: np.ndarray, height: int) -> Image.Image:
    """A colour bar of (n, 3) colours, one a column of pixels."""
    return Image.fromarray(np.tile(shades.round().astype(np.uint8), (height, 1, 1)))


def weight_scale(weights: np.ndarray, quantile: float) -> float:
    """The weight that is drawn as the highest: a quantile of the weights shown, above 0."""
    shown = weights[weights > 0]
    return float(np.quantile(shown, quantile, method="higher")) if shown.size else 1.0


# --------------------------------------------------------------------------------------------- fonts


@lru_cache(maxsize=1)
def _font_files() -> tuple[str, ...]:
    """Every font file in the usual folders."""
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
    found = (path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*")))
    return tuple(str(path) for path in found if path.suffix.lower() in (".ttf", ".otf", ".ttc"))


@lru_cache(maxsize=4096)
def _fonts_with(char: str) -> tuple[tuple[str, int], ...]:
    """(file, face) of installed fonts that may have a character: by fontconfig, else every font there is."""
    query = ["fc-list", f":charset={ord(char):x}:scalable=true", "--format=%{file}|%{index}|%{style}|%{family}\n"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return tuple((file, 0) for file in _font_files())
    faces = [line.split("|") for line in lines if line.count("|") == 3]
    # The plain sans face first: a bold or a serif glyph stands out in a line of regular ones. Of the faces of one
    # Chinese, Japanese and Korean font, which share most characters, the simplified Chinese one.
    faces.sort(key=lambda f: ("Regular" not in f[2], "Sans" not in f[3], "Mono" in f[3], " SC" not in f[3], f[0]))
    return tuple((file, int(face)) for file, face, _, _ in faces)


class BitmapFont:
    """A font of coloured bitmaps, which has one size only, as grey glyphs of another size."""

    def __init__(self, file: str, size: int, face: int) -> None:
        self._font = ImageFont.truetype(file, BITMAP_FONT_SIZE, index=face)
        self._scale = size / BITMAP_FONT_SIZE

    def getmask(self, text: str) -> Any:
        return self._font.getmask(text, "RGBA")

    def getlength(self, text: str) -> float:
        return self._font.getlength(text) * self._scale

    def getmetrics(self) -> tuple[int, int]:
        ascent, descent = self._font.getmetrics()
        return math.ceil(ascent * self._scale), math.ceil(descent * self._scale)

    def coverage(self, text: str) -> Image.Image:
        """How much ink each pixel takes, as an L image whose base line lies `getmetrics()[0]` below its top."""
        size = math.ceil(self._font.getlength(text)), sum(self._font.getmetrics())
        drawn = Image.new("RGBA", size)
        ImageDraw.Draw(drawn).text((0, size[1]), text, font=self._font, embedded_color=True, anchor="ld")
        dark = ImageOps.invert(drawn.convert("L")).point(lambda level: 64 + level * 3 // 4)
        grey = ImageChops.multiply(dark, drawn.getchannel("A"))
        return grey.resize((max(round(size[0] * self._scale), 1), sum(self.getmetrics())), Image.Resampling.BOX)


_warned_of: set[str] = set()  # one warning a package, not one a character


class FontSet:
    """A font at one size, with others to fall back on for the characters that it lacks."""

    def __init__(self, size: int, font_path: str | None = None) -> None:
        self.size = size
        self.main, self.small = self._open_main(font_path)
        self._fallbacks: list[ImageFont.FreeTypeFont] = []
        self._by_char: dict[str, ImageFont.FreeTypeFont | None] = {}

    def _open_main(self, font_path: str | None) -> list[ImageFont.FreeTypeFont]:
        """The font, and the same for code points. A broken one that cannot draw ASCII is told, or passed over."""

        sizes = self.size, max(round(self.size * CODE_POINT_SIZE), 6)

        def opened(name: str) -> list[ImageFont.FreeTypeFont]:
            fonts = [ImageFont.truetype(name, size) for size in sizes]
            for font in fonts:
                font.getmask(ASCII)
            return fonts

        if font_path is not None:
            try:
                return opened(font_path)
            except OSError as error:
                raise OSError(
                    f"font_path {font_path} cannot be used: {one_line(error)}; give a .ttf, .otf or .ttc file"
                ) from error
        for name in FONT_NAMES:
            try:
                return opened(name)
            except OSError:
                continue
        return [ImageFont.load_default(size) for size in sizes]  # Pillow's own; Latin only

    @staticmethod
    def has_glyph(font: ImageFont.FreeTypeFont, char: str) -> bool:
        """Whether a font draws the character itself, and not the box for a missing one."""
        if char.isspace():
            return True
        try:
            glyph, missing = font.getmask(char), font.getmask("\U0010ffff")
        except OSError:  # a broken font
            return False
        return glyph.size != missing.size or bytes(glyph) != bytes(missing)

    def font_for(self, char: str) -> ImageFont.FreeTypeFont | None:
        """The first font that has the character, or None where no installed font has it."""
        if char not in self._by_char:
            self._by_char[char] = self._search(char)
        return self._by_char[char]

    def _search(self, char: str) -> ImageFont.FreeTypeFont | None:
        if unicodedata.category(char) in ("Cc", "Cs", "Cn", "Co"):
            return None  # nothing to see; drawn as its code point
        for font in (self.main, *self._fallbacks):
            if self.has_glyph(font, char):
                return font
        for file, face in _fonts_with(char):
            for kind in (ImageFont.truetype, BitmapFont):
                try:
                    font = kind(file, self.size, face)
                    if self.has_glyph(font, char):
                        self._fallbacks.append(font)
                        return font
                except OSError:  # a bitmap font without this size
                    continue
        kind = "cjk" if BREAK_ANYWHERE.match(char) else "emoji" if unicodedata.category(char) == "So" else "any"
        if kind not in _warned_of:
            _warned_of.add(kind)
            logger.warning(
                "no installed font has %r (U+%04X): code points are shown; install %s",
                char, ord(char), FONT_ADVICE[kind],
            )  # fmt: skip
        return None

    def runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """The text in runs of one font each; a character that no font has becomes its code point, small."""
        drawn: list[tuple[ImageFont.FreeTypeFont, str]] = []
        for char in text:
            if char in TURNING_MARKS:  # text would stand in another order than the tokens
                continue
            # An accent or a joiner belongs to the character before it.
            if drawn and unicodedata.category(char) in ("Mn", "Me", "Mc", "Cf"):
                before = drawn[-1][0]
                if before is not self.small and self.has_glyph(before, char):
                    drawn.append((before, char))
                    continue
                if unicodedata.category(char) == "Cf":
                    continue
            if char == NEWLINE_MARK and not self.has_glyph(self.main, char):
                drawn.append((self.small, "\\n"))
                continue
            font = self.font_for(char)
            drawn.append((font, char) if font else (self.small, f"{ord(char):04X} "))
        return [(font, "".join(part for _, part in group)) for font, group in groupby(drawn, key=lambda item: item[0])]

    def width(self, text: str) -> float:
        """Pixels that the text takes on one line."""
        return sum(font.getlength(part) for font, part in self.runs(text))

    def metrics(self) -> tuple[int, int]:
        """Pixels above and below the base line that hold every font used so far."""
        ascents, descents = zip(*(font.getmetrics() for font in (self.main, *self._fallbacks)))
        return max(ascents), max(descents)


# -------------------------------------------------------------------------------------- text panel

# Scripts written without spaces: a line may break before and after each of their characters.
BREAK_ANYWHERE = re.compile(
    "[\u1100-\u11ff\u2e80-\u303f\u3040-\u30ff\u3100-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
FRAGMENT = re.compile(rf"\r?\n|[^\S\n]+|{BREAK_ANYWHERE.pattern}|(?:(?!{BREAK_ANYWHERE.pattern})\S)+")
NO_LINE_START = set("、。，．：；！？）」』】》〉”’…")
LETTERS = re.compile(r"[^\W\d_]+")
NEWLINE_MARK = "↵"
TURNING_MARKS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
JOINER = "\u200d"  # has no width; an Arabic letter beside it takes its joined form
LINE_PITCH = 1.3  # of the height of the fonts
GLYPH_OVERHANG = 3  # pixels that a glyph may reach over its width


@dataclass(frozen=True)
class Fragment:
    """A part of a piece that is never broken: a word or a part of one, a space, a newline, one CJK character."""

    piece: int
    text: str
    width: float
    alone: bool = False
    """A chip or a special token: a line may break before and after it."""

    @property
    def is_space(self) -> bool:
        return self.text.isspace()


@dataclass(frozen=True, eq=False)
class TextLayout:
    """The text of a whole video, laid out and drawn once; a frame only looks its colours up."""

    pieces: tuple[TextPiece, ...]
    piece_index: np.ndarray
    """(Y, X) int32, 1 + the piece that owns a pixel, 0 for none; in the white between pieces and between lines
    the number of pieces is added, since glyphs reach into it and the tint does not."""
    ink: np.ndarray
    """(Y, X) uint8, how much of a pixel the glyphs cover, 0..INK_LEVELS - 1."""
    last_line: np.ndarray
    """(pieces,) int, the line on which each piece ends."""
    line_height: int
    """Pixels."""

    @cached_property
    def entries(self) -> np.ndarray:
        """(Y, X) intp, piece and ink of a pixel as one index: what a frame looks its colours up by."""
        return self.piece_index.astype(np.intp) * INK_LEVELS + self.ink


def _fragments(pieces: Sequence[TextPiece], fonts: FontSet) -> list[Fragment]:
    """The pieces cut where a line may have to end."""
    parts: list[list] = []  # number of the piece, text
    for number, piece in enumerate(pieces):
        text = piece.text.expandtabs(4).replace("\u3000", "  ")
        for part in [text] if piece.kind == "image" else FRAGMENT.findall(text):
            # No font is asked for any of the other white space: it would draw a box for it.
            parts.append([number, " " * len(part) if part.isspace() and "\n" not in part else part])
            if len(parts) > 1 and all(unicodedata.bidirectional(c) == "AL" for c in (parts[-2][1][-1], part[0])):
                parts[-2][1] += JOINER  # Arabic letters join across tokens, too
                parts[-1][1] = JOINER + part
    fragments = []
    for number, part in parts:
        width = fonts.width(NEWLINE_MARK if "\n" in part else part)
        if not width:  # a token of characters that nobody sees
            part = "".join(f"{ord(char):04X}" for char in part)
            width = fonts.width(part)
        fragments.append(Fragment(number, part, width, pieces[number].kind != "text"))
    return fragments


def _words(fragments: Sequence[Fragment], fonts: FontSet, width: float) -> Iterator[list[Fragment]]:
    """Fragments that must stand on one line together; a word wider than the line comes in single characters."""
    word: list[Fragment] = []
    for fragment in fragments:
        previous = word[-1] if word else None
        if previous is not None and _may_break(previous, fragment):
            yield from _fitting(word, fonts, width)
            word = []
        word.append(fragment)
    if word:
        yield from _fitting(word, fonts, width)


def _may_break(previous: Fragment, fragment: Fragment) -> bool:
    if previous.is_space or fragment.is_space:
        return True
    if (previous.alone or fragment.alone) and previous.piece != fragment.piece:
        return True
    if fragment.text[0] in NO_LINE_START:
        return False
    return bool(BREAK_ANYWHERE.match(previous.text[-1]) or BREAK_ANYWHERE.match(fragment.text[0]))


def _fitting(word: list[Fragment], fonts: FontSet, width: float) -> Iterator[list[Fragment]]:
    if sum(fragment.width for fragment in word) <= width:
        yield word
        return
    for fragment in word:
        for char in fragment.text:
            yield [Fragment(fragment.piece, char, fonts.width(char))]


def _place(fragments: Sequence[Fragment], fonts: FontSet, width: float) -> list[tuple[Fragment, int, float]]:
    """(fragment, line, x) of everything, wrapped at the width. Spaces at the end of a line take the room there is."""
    placed, spaces = [], []
    line, x = 0, 0.0
    room = width - fonts.width(NEWLINE_MARK)  # the mark always finds its place on the line that it ends
    for word in _words(fragments, fonts, room):
        ends_line = "\n" in word[0].text
        if word[0].is_space and not ends_line:
            spaces.append(word[0])
            continue
        indent = sum(space.width for space in spaces)
        if x + indent + (0 if ends_line else sum(fragment.width for fragment in word)) > room:
            others = [space for space in spaces if space.piece != word[0].piece]  # which is seen on the next line
            placed += _squeezed(others, line, x, room if ends_line else width)
            line, x = (line, room if others else x) if ends_line else (line + (x > 0 or bool(others)), 0.0)
            spaces = []
        for fragment in (*spaces, *word):
            placed.append((fragment, line, x))
            x += fragment.width
        spaces = []
        if ends_line:
            line, x = line + 1, 0.0
    placed += _squeezed(spaces, line, x, width)
    return _turned(placed)


def _squeezed(spaces: Sequence[Fragment], line: int, x: float, end: float) -> list[tuple[Fragment, int, float]]:
    """Spaces between an x and the end of a line, narrower where they would not fit: each is a token to be seen."""
    narrow = min(max(end - x, 0) / (sum(space.width for space in spaces) or 1), 1)
    spaces = [replace(space, width=space.width * narrow) for space in spaces]
    before = np.cumsum([0, *(space.width for space in spaces)])
    return [(space, line, x + float(left)) for space, left in zip(spaces, before)]


def _turned(placed: list[tuple[Fragment, int, float]]) -> list[tuple[Fragment, int, float]]:
    """The same with every stretch of right-to-left script turned round within its line, but not the numbers in it."""
    ordered = []
    for line, entries in groupby(placed, key=lambda entry: entry[1]):
        fragments, x = [entry[0] for entry in entries], 0.0
        kinds = "".join(_direction(fragment.text) for fragment in fragments)
        for stretch in re.finditer("R(?:[R1 ]*[R1])?", kinds):
            fragments[slice(*stretch.span())] = fragments[slice(*stretch.span())][::-1]
            for number in re.finditer("1+", stretch[0][::-1]):
                place = slice(stretch.start() + number.start(), stretch.start() + number.end())
                fragments[place] = fragments[place][::-1]
        for fragment in fragments:
            ordered.append((fragment, line, x))
            x += fragment.width
    return ordered


def _direction(text: str) -> str:
    """R for right-to-left script, L for left-to-right, 1 for a number, a space for what takes any direction."""
    found = {unicodedata.bidirectional(char) for char in text}
    return "R" if found & {"R", "AL"} else "L" if "L" in found else "1" if found & {"EN", "AN"} else " "


def layout_text(pieces: Sequence[TextPiece], fonts: FontSet, width: int) -> TextLayout:
    """Lay the pieces out on lines of a width in pixels, and draw their glyphs once."""
    placed = _place(_fragments(pieces, fonts), fonts, width - GLYPH_OVERHANG)
    ascent, descent = fonts.metrics()
    line_height = round((ascent + descent) * LINE_PITCH)
    gap = max(round(line_height * 0.07), 1)
    lines = placed[-1][1] + 1 if placed else 1
    canvas = Image.new("L", (width, lines * line_height))
    draw = ImageDraw.Draw(canvas)
    index = np.zeros((lines * line_height, width), np.int32)
    last_line = np.zeros(len(pieces), int)
    for number, (fragment, line, x) in enumerate(placed):
        top, left, right = line * line_height, round(x), min(round(x + fragment.width), width)
        index[top : top + line_height, left:right] = 1 + fragment.piece
        # A pixel stays white at the right of a piece, so that two of one colour can be told apart.
        if number + 1 == len(placed) or placed[number + 1][0].piece != fragment.piece:
            index[top + gap : top + line_height - gap, right - 1 : right] += len(pieces)
        last_line[fragment.piece :] = line
        base = top + (line_height - ascent - descent) // 2 + ascent
        if pieces[fragment.piece].kind == "image":
            box = (left, top + gap, right - 1, top + line_height - gap)
            index[box[1] : box[3], left:right] *= _draw_chip(canvas, box)
            shown = fragment.text.strip("[]")
            x += (fragment.width - fonts.width(shown)) / 2
        else:
            shown = NEWLINE_MARK if "\n" in fragment.text else fragment.text
        _draw_runs(draw, (x, base), shown, fonts)
    between = np.arange(len(index)) % line_height
    between = (between < gap) | (between >= line_height - gap)
    index[between] += len(pieces) * (index[between] > 0)
    ink = np.round(np.asarray(canvas) / 255 * (INK_LEVELS - 1)).astype(np.uint8)
    for shift in (1, 1, 1, -1, -1):  # a glyph reaches a pixel or two over its width: those belong to its token too
        over, neighbours = (ink > 0) & (index == 0), np.roll(index, shift, axis=1)
        index[over] = neighbours[over] + len(pieces) * ((neighbours[over] > 0) & (neighbours[over] <= len(pieces)))
    ink[index == 0] = 0
    return TextLayout(tuple(pieces), index, ink, last_line, line_height)


def _draw_chip(canvas: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Outline a chip in a box; returns the (Y, X) bool mask of its inside, the corners cut round."""
    width, height = box[2] - box[0], box[3] - box[1]
    outline, inside = (Image.new("L", (width * SMOOTH, height * SMOOTH)) for _ in range(2))
    corners = (0, 0, width * SMOOTH - 1, height * SMOOTH - 1)
    ImageDraw.Draw(outline).rounded_rectangle(corners, height * SMOOTH // 3, outline=255, width=SMOOTH + 1)
    ImageDraw.Draw(inside).rounded_rectangle(corners, height * SMOOTH // 3, fill=255)
    canvas.paste(outline.reduce(SMOOTH), box[:2])
    return np.pad(np.asarray(inside.reduce(SMOOTH)) > 127, ((0, 0), (0, 1)))


def _draw_runs(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, fonts: FontSet, fill: Any = 255) -> float:
    """Draw a line of text with its base line at a point; returns the x at which it ends."""
    x, y = at
    for font, part in fonts.runs(text):
        if isinstance(font, BitmapFont):
            draw.bitmap((round(x), round(y) - font.getmetrics()[0]), font.coverage(part), fill)
        else:
            draw.text((x, y), part, fill=fill, font=font, anchor="ls")
        x += font.getlength(part)
    return x


def visualize_attention_step(
    layout: TextLayout,
    values: np.ndarray,
    current: int | None,
    height: int,
    colormap: Colormap = red_to_green,
    text_style: str = "tint",
) -> Image.Image:
    """Draw the text panel of one step: the function to edit, or to pass a `colormap` to, for another style.

    layout: the text, from `layout_text`.
    values: (pieces,) float, the weight of each piece on the scale 0..1 (clipped); NaN: left out, on white.
    current: number of the piece that is being generated: blue; what comes after it is not shown yet. None: all is.
    height: pixels of the panel; the text scrolls by lines so that the current piece is always in view.
    text_style: "tint" colours the ground of dark text, "glyph" the text itself on white.
    Returns an RGB image of that height, as wide as the layout.
    """
    # A piece becomes a level, a level has a ground and a glyph colour: text tokens, special ones, white, blue.
    paper, blue, plain = 2 * TEXT_LEVELS, 2 * TEXT_LEVELS + 1, 2 * TEXT_LEVELS + 2
    shades, inks = text_colours(np.linspace(0, 1, TEXT_LEVELS), colormap, text_style)
    tint = text_style == "tint"
    faded = blend(np.array(MUTED), inks, 0 if tint else SPECIAL_ALPHA)
    current_colours = np.array([CURRENT_TOKEN, PAPER] if tint else [PAPER, CURRENT_TOKEN], float)
    current_colours[0] = current_colours[0] if tint else blend(current_colours[0], current_colours[1], CURRENT_ALPHA)
    grounds = np.concatenate([shades, blend(255, shades, SPECIAL_ALPHA), [PAPER, current_colours[0], PAPER]])
    glyphs = np.concatenate([inks, faded, [PAPER, current_colours[1], MUTED]])
    levels = np.round(np.clip(np.nan_to_num(values), 0, 1) * (TEXT_LEVELS - 1)).astype(np.uint16)
    levels += TEXT_LEVELS * np.array([piece.kind == "special" for piece in layout.pieces], np.uint16)
    levels[np.isnan(values)] = plain
    last = len(levels) - 1 if current is None else current
    levels[last + 1 :] = paper
    if current is not None:
        levels[current] = blue
    # Glyphs reach into the white round their token: there the ground is white and the glyph colour the token's.
    grounds = np.concatenate([grounds, np.full_like(grounds, 255)])
    colours = blend(grounds[:, None], np.tile(glyphs, (2, 1))[:, None], np.linspace(0, 1, INK_LEVELS)[:, None])
    levels = np.concatenate([[paper], levels, levels + len(glyphs)])
    words = pixel_words(colours.reshape(-1, 3)).reshape(-1, INK_LEVELS)[levels]

    visible_lines = max(height // layout.line_height, 1)
    last_line = int(layout.last_line[last])
    first_line = max(last_line + 1 - visible_lines, 0)
    rows = slice(first_line * layout.line_height, (last_line + 1) * layout.line_height)
    panel = Image.new("RGB", (layout.ink.shape[1], height), PAPER)
    panel.paste(coloured(layout.entries[rows], words))
    return panel


# ------------------------------------------------------------------------------------- image panel


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one picture's map."""

    boxes: np.ndarray
    """(cells, 4) float32, in pixels of the picture."""
    positions: np.ndarray
    """(cells,) int64, the position in the prompt of each cell's image token."""
    spread: tuple[tuple[int, np.ndarray, np.ndarray], ...]
    """(position, cells, fractions) of each image token whose weight does not lie on one cell alone."""

    def weights(self, rows_TS: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
        """(T, cells) weight of every cell, from rows of attention; NaN where it is one of the sinks, (S,) bool."""
        alone = ~np.isin(self.positions, [position for position, _, _ in self.spread])
        weights = rows_TS[:, self.positions] * alone
        for position, cells, fractions in self.spread:
            weights[:, cells] += rows_TS[:, position, None] * fractions
        if sinks is not None:
            weights[:, sinks[self.positions]] = np.nan
        return weights


def finest_cells(boxes: np.ndarray) -> tuple[np.ndarray, list[tuple[int, np.ndarray, np.ndarray]]]:
    """The boxes that are cells of the map, coarsest first, and (box, places, fractions) of those that finer ones cover.

    Views of a picture overlap: a thumbnail, and tiles or crops. The finest boxes are the cells; the weight of a
    coarser box lies on them by area, and on the rest of it, if it sticks out. `places` are indices into the cells.
    Boxes that do not overlap, as of a single grid, are all cells, in their order.
    """
    x0, y0, x1, y1 = boxes.T.astype(np.float64)
    area = (x1 - x0) * (y1 - y0)
    everything = np.arange(len(boxes))
    if not len(boxes) or area.sum() <= 1.01 * (x1.max() - x0.min()) * (y1.max() - y0.min()):
        return everything, []
    order, is_cell, covered = np.argsort(-area, kind="stable"), np.zeros(len(boxes), bool), {}
    for box in order[::-1]:
        wide = np.minimum(x1, x1[box]) - np.maximum(x0, x0[box])
        high = np.minimum(y1, y1[box]) - np.maximum(y0, y0[box])
        shared = np.where(is_cell, np.maximum(wide, 0) * np.maximum(high, 0), 0) / area[box]
        bare = 1 - shared.sum()
        is_cell[box] = bare > SMALLEST_BARE_PART
        if bare < 1 - SMALLEST_BARE_PART:
            shared[box] = max(bare, 0) * is_cell[box]
            covered[int(box)] = shared / shared.sum()
    cells = order[is_cell[order]]
    return cells, [(box, np.flatnonzero(part[cells]), part[cells][part[cells] > 0]) for box, part in covered.items()]


def map_cells(tokens: ImageTokens) -> Cells:
    """The cells of a picture, of those of its tokens that have a place."""
    placed = np.isfinite(tokens.boxes).all(axis=1)
    boxes, at = tokens.boxes[placed], tokens.positions[placed]
    cells, covered = finest_cells(boxes)
    return Cells(boxes[cells], at[cells], tuple((int(at[box]), on, fractions) for box, on, fractions in covered))


@dataclass(frozen=True, eq=False)
class ImageLayout:
    """The pictures of a whole video, scaled and placed once, with an index of the cells over them."""

    picture: np.ndarray
    """(Y, X, 3) uint8, the panel without heat, grid lines drawn."""
    cell_index: np.ndarray
    """(Y, X) int64, 1 + the cell that covers a pixel, 0 for none."""
    cells: tuple[Cells, ...]
    """Of each picture."""
    places: tuple[tuple[int, int, int, int], ...] = ()
    """Left, top, width, height of each picture on the panel, in pixels."""

    @cached_property
    def cell_rows(self) -> slice:
        """The rows of pixels in which there are cells."""
        rows = np.flatnonzero(self.cell_index.any(axis=1))
        return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 1)

    @property
    def positions(self) -> np.ndarray:
        """(cells,) int64, the position in the prompt of each cell's image token."""
        return np.concatenate([np.zeros(0, np.int64), *(cells.positions for cells in self.cells)])

    def cell_weights(self, rows_TS: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
        """(T, cells) weight of every cell, from rows of attention; NaN where it is one of the sinks, (S,) bool."""
        return np.concatenate([rows_TS[:, :0], *(cells.weights(rows_TS, sinks) for cells in self.cells)], axis=1)


def layout_images(
    record: AttentionRecord, images: Sequence[Image.Image], width: int, height: int, fonts: FontSet,
    sinks: np.ndarray | None = None,
) -> ImageLayout:  # fmt: skip
    """Place the pictures, each as large as a panel of at most width × height pixels allows, and index their cells.

    sinks: (S,) bool, positions whose cells are hatched.
    """
    sizes, label = [image.size for image in images], _label_height(fonts, len(images))
    slots = _picture_slots(sizes, width, height, label)
    panel = Image.new("RGB", (width, _used_height(sizes, slots)), PAPER)
    draw = ImageDraw.Draw(panel)
    index = np.zeros((panel.height, width), np.int64)
    found, sides = tuple(map(map_cells, record.images)), []
    for number, (image, cells, (x, y, scale)) in enumerate(zip(images, found, slots), start=1):
        size = round(image.width * scale), round(image.height * scale)
        panel.paste(upright_rgb(image).resize(size, Image.Resampling.LANCZOS), (x, y))
        if label:
            _draw_runs(draw, (x, y - label * 0.3), f"image {number}", fonts, INK)
        stretch = np.array([size[0] / image.width, size[1] / image.height] * 2)
        # Rounding edges, not sizes, lets uneven cells still reach the last pixel.
        edges = np.round(cells.boxes * stretch).astype(int) + np.array([x, y, x, y])
        for left, top, right, bottom in edges:
            sides.append(min(right - left, bottom - top))
            index[top:bottom, left:right] = len(sides)
    if sides and np.median(sides) >= SMALLEST_GRIDDED_CELL:
        around = np.pad(index, 1)
        starts = (index != around[:-2, 1:-1]) | (index != around[1:-1, :-2])
        ends = (around[2:, 1:-1] == 0) | (around[1:-1, 2:] == 0)
        lines = np.where((index > 0) & (starts | ends), round(255 * GRID_ALPHA), 0)
        panel.paste(GRID_LINE, mask=Image.fromarray(lines.astype(np.uint8)))
    places = tuple((x, y, round(i.width * scale), round(i.height * scale)) for i, (x, y, scale) in zip(images, slots))
    layout = ImageLayout(np.asarray(panel), index, found, places)
    if sinks is None or not sinks[layout.positions].any():
        return layout
    hatched = np.concatenate([[False], sinks[layout.positions]])[index]
    _hatch(panel, hatched, max(round(fonts.size * HATCH / FONT_LABEL), 2))
    return replace(layout, picture=np.asarray(panel))


def _hatch(panel: Image.Image, where: np.ndarray, stripe: int) -> None:
    """Lay dark and light stripes, so many pixels wide, over a (Y, X) bool part of the panel."""
    dark = np.add.outer(*map(np.arange, where.shape)) // stripe % 2 == 0
    for colour, stripes in ((INK, dark), (PAPER, ~dark)):
        mask = np.where(where & stripes, round(255 * HATCH_ALPHA), 0)
        panel.paste(colour, mask=Image.fromarray(mask.astype(np.uint8)))


def _label_height(fonts: FontSet, count: int) -> int:
    """Pixels above each of so many pictures, for its number; one alone has none."""
    return round(fonts.size * 1.5) if count > 1 else 0


def _picture_slots(
    sizes: Sequence[tuple[int, int]], width: int, height: int, label: int
) -> list[tuple[int, int, float]]:
    """(x, y, scale) of each picture, from the top left, in as many columns as let the smallest one be largest."""

    def scales(columns: int) -> list[float]:
        rows = -(-len(sizes) // columns)
        wide = (width - (columns - 1) * label) / columns
        high = height / rows - label
        return [min(wide / w, high / h) for w, h in sizes]

    columns = max(range(1, len(sizes) + 1), key=lambda count: min(scales(count)))
    slots, y, placed = [], 0.0, list(zip(sizes, scales(columns)))
    for start in range(0, len(sizes), columns):
        row = placed[start : start + columns]
        x = 0.0
        for (w, _), scale in row:
            slots.append((round(x), round(y + label), scale))
            x += w * scale + label
        y += label + max(h * scale for (_, h), scale in row)
    return slots


def _used_height(sizes: Sequence[tuple[int, int]], slots: Sequence[tuple[int, int, float]]) -> int:
    """Rows that pictures in these slots take."""
    return max(y + round(height * scale) for (_, height), (_, y, scale) in zip(sizes, slots))


def mean_cells(record: AttentionRecord, shown: ShownRows) -> list[tuple[np.ndarray, np.ndarray]]:
    """((cells, 4), (cells,)) a picture: boxes, and weights as drawn, mean over the steps; NaN for a sink."""
    mean_1S = shown.rows.mean(axis=0, keepdims=True)
    return [(cells.boxes, cells.weights(mean_1S, shown.sinks)[0]) for cells in map(map_cells, record.images)]


def moved_cells(boxes: np.ndarray, part: np.ndarray) -> np.ndarray:
    """(cells,) int, the cell that comes to each cell's place where a map moves by parts 0..1 of its sides."""
    middles, low, high = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    sources = low + (middles - low + part * (high - low)) % (high - low)
    return np.array([np.abs(middles - source).sum(axis=1).argmin() for source in sources])


def cells_to_hide(cells: Sequence[tuple[np.ndarray, np.ndarray]], seed: int | None = None) -> list[np.ndarray]:
    """(n, 4) boxes a picture: the hottest CHECK_PART of the cells of `mean_cells`.

    seed: as many of the map moved by a random distance, wrapped round at the edges: where it points is left to
    chance, how its hot cells cling together is kept. Scattered cells would seldom hide a whole thing, and so flatter
    any map with a large spot.
    """
    usable = np.flatnonzero(np.isfinite(np.concatenate([part for _, part in cells])))
    random = np.random.default_rng(seed)
    parts = [part if seed is None else part[moved_cells(boxes, random.random(2))] for boxes, part in cells]
    weights = np.nan_to_num(np.concatenate(parts))
    order = usable[np.argsort(-weights[usable], kind="stable")]
    hidden = np.zeros(len(weights), bool)
    hidden[order[: math.ceil(CHECK_PART * len(usable))]] = True
    parts = np.split(hidden, np.cumsum([len(part) for _, part in cells])[:-1])
    return [boxes[part] for (boxes, _), part in zip(cells, parts)]


def hide_cells(images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[Image.Image]:
    """The pictures with boxes in their pixels, (n, 4) a picture, painted over in the picture's mean colour."""
    painted = []
    for image, hidden in zip(images, boxes):
        copy = image.copy()
        colour = tuple(np.asarray(image).reshape(-1, 3).mean(axis=0).round().astype(int).tolist())
        for box in hidden:
            copy.paste(colour, tuple(np.round(box).astype(int).tolist()))
        painted.append(copy)
    return painted


def heat_tint(layout: ImageLayout, values: np.ndarray, colormap: Colormap = red_to_green) -> Image.Image:
    """The tint of each cell, as an RGBA image of those rows of the panel in which there are cells.

    values: (cells,) float, the weight of each cell on the scale 0..1 (clipped); NaN: no tint.
    """
    levels = np.round(np.clip(np.nan_to_num(values), 0, 1) * (CELL_LEVELS - 1)).astype(int)
    scale = np.linspace(0, 1, CELL_LEVELS)
    # Entry 0 is for pixels without a cell.
    tints = np.concatenate([[PAPER], np.asarray(colormap(scale))[levels]])
    alphas = np.where(np.isnan(values), 0, np.round(255 * opacity(scale, CELL_ALPHA))[levels])
    return coloured(layout.cell_index[layout.cell_rows], pixel_words(tints, np.concatenate([[0], alphas])))


def draw_heat(layout: ImageLayout, values: np.ndarray, colormap: Colormap = red_to_green) -> Image.Image:
    """The panel of the pictures under the tint of their cells, an RGB image; values as for `heat_tint`."""
    panel, heat = Image.fromarray(layout.picture), heat_tint(layout, values, colormap)
    panel.paste(heat, (0, layout.cell_rows.start), heat)
    return panel


def draw_marks(layout: ImageLayout, marks: Sequence[Mark], fonts: FontSet) -> Image.Image:
    """An RGBA overlay of the panel: marks numbered, the points of a picture joined in order; the last one is blue."""
    Y, X = layout.cell_index.shape
    radius, width = fonts.size * 0.75 * SMOOTH, max(round(fonts.size * 0.12 * SMOOTH), 1)
    # All outlines are white, as the ground is: colour and cover may be reduced by themselves, which is much faster.
    overlay, cover = Image.new("RGB", (X * SMOOTH, Y * SMOOTH), PAPER), Image.new("L", (X * SMOOTH, Y * SMOOTH))
    draw, mask = ImageDraw.Draw(overlay), ImageDraw.Draw(cover)
    font = fonts.main.font_variant(size=round(radius * 1.15))
    paths: list[list] = [[] for _ in layout.places]
    corners = []  # x, y of each mark's first corner
    for mark in marks:
        place = np.array(layout.places[mark.image])
        x, y = ((place[:2] + np.reshape(mark.corners, (-1, 2)) * place[2:]) * SMOOTH).T.tolist()
        rim, ends = radius + width, (place[:2] + place[2:]) * SMOOTH  # a disc stays whole, and in its picture
        disc = np.maximum(np.minimum((x[0], y[0]), ends - rim), place[:2] * SMOOTH + rim)
        corners.append(tuple(disc.tolist()))
        if len(x) == 1:
            paths[mark.image].append((x[0], y[0]))
        else:
            paths.append([(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]), (x[0], y[0])])
    for on, colour, thickness in ((draw, PAPER, 3 * width), (mask, 255, 3 * width), (draw, INK, width)):
        for path in (path for path in paths if len(path) > 1):  # light round dark: seen on any picture
            on.line(path, colour, thickness, joint="curve")
    for number, at in enumerate(corners, start=1):
        disc = [at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius]
        draw.ellipse(disc, CURRENT_TOKEN if number == len(corners) else INK, PAPER, width)
        draw.text(at, str(number), PAPER, font, anchor="mm")
        mask.ellipse(disc, 255)
    overlay = overlay.reduce(SMOOTH)
    overlay.putalpha(cover.reduce(SMOOTH))
    return overlay


# ------------------------------------------------------------------------------------------- frames


@dataclass(frozen=True, eq=False)
class Share:
    """A part of a row: how much of the attention lies on one kind of position."""

    name: str
    colour: tuple[int, int, int]
    weights: np.ndarray
    """(T,) float, the share at each step, 0..1."""


def picture_colour(number: int) -> tuple[int, ...]:
    """The colour of a picture's share, from 0."""
    turn, place = divmod(number, len(SHARE_COLOURS))
    return tuple(round(blend(255, channel, PALER**turn)) for channel in SHARE_COLOURS[place])


def attention_shares(record: AttentionRecord, layer: int) -> list[Share]:
    """Where each step's attention lies: each picture, the first token, the rest of the prompt, the response."""
    rows_TS = record.layer_weights(layer)
    total = np.maximum(rows_TS.sum(axis=1), TINY)
    kind = np.full(rows_TS.shape[1], 0)  # 0: problem
    kind[record.prompt_length :] = 1
    kind[0] = 2
    for number, image in enumerate(record.images):
        kind[image.positions] = 3 + number
    names = [("problem", PROBLEM_COLOUR), ("response", RESPONSE_COLOUR), ("first token (sink)", FIRST_COLOUR)]
    pictures = [
        (f"image {n + 1}" if len(record.images) > 1 else "image", picture_colour(n)) for n in range(len(record.images))
    ]
    shares = [
        Share(name, colour, rows_TS[:, kind == number].sum(axis=1) / total)
        for number, (name, colour) in enumerate(names + pictures)
    ]
    return shares[3:] + shares[:3]


def image_shares(record: AttentionRecord, layer: int) -> np.ndarray:
    """(T,) float, the part of each step's attention that lies on the pictures."""
    return sum(share.weights for share in attention_shares(record, layer)[: len(record.images)])


CHOICES = {  # options that are one of a few words
    "scale": ("video", "frame"), "text_style": ("tint", "glyph"), "format": ("mp4", "gif", "webm"),
    "draw_points": ("auto", "thousandths", "pixels", "off"), "baseline": tuple(BASELINES), "view": ("plain", "clear"),
}  # fmt: skip
# What a view sets where it is left at its default: first of recording, then of drawing.
CLEAR_RECORDING, CLEAR_DRAWING = {"layer_idx": "auto", "head": "auto"}, {"baseline": "median", "sinks": True}


def check_fps(fps: float, suffix: str) -> None:
    """Raises ValueError for a rate that a video of such a suffix cannot have."""
    fastest = FASTEST_GIF if suffix == ".gif" else FASTEST_FPS
    if not SLOWEST_FPS <= fps <= fastest:
        raise ValueError(f"fps is {fps}; expected a number from {SLOWEST_FPS} to {fastest} for {suffix}")


def check_colormap(colormap: Any) -> None:
    """Raises ValueError for what is neither the name of a colour map nor a function that gives colours."""
    if not callable(colormap) and colormap not in tuple(COLORMAPS):
        raise ValueError(f"colormap is {colormap!r}; expected {' or '.join(COLORMAPS)}, or a function")
    shape = np.shape(colormap(np.linspace(0, 1, 3))) if callable(colormap) else (3, 3)
    if shape != (3, 3):
        raise ValueError(
            f"colormap makes of 3 weights an array of shape {shape}; expected (3, 3), RGB in 0..255 of each"
        )


@dataclass(frozen=True)
class DrawingOptions:
    """How a video looks. Raises ValueError or OSError for an option that cannot be used."""

    fps: float = 2
    """Frames a second."""
    scale: str = "video"
    """"video": one colour scale for all frames; "frame": its own for each."""
    colormap: str | Colormap = "red_to_green"
    """A name in `COLORMAPS`, or any function of (n,) weights in 0..1 to (n, 3) RGB in 0..255."""
    text_style: str = "tint"
    """"tint": dark text on tinted grounds; "glyph": coloured text on white."""
    draw_points: str = "auto"
    """Mark the places that the response names: "thousandths" of the picture, its "pixels", "auto" or "off"."""
    frame_size: tuple[int, int] = DEFAULT_FRAME_SIZE
    """Width and height in even pixels; in a frame taller than wide the pictures stand above the text."""
    font_path: str | None = None
    """Font of the text; by default a sans font of the system."""
    format: str = "mp4"
    """Of the video: "mp4", "webm" (VP9) or "gif" (at most 960 pixels wide)."""
    frames: int | Sequence[int] = ()
    """Steps whose frames are also written as PNG, from 0; negative: from the end."""
    summary: bool = False
    """Also write one PNG: the response, maps of single words, mean maps of the phases."""
    baseline: str = "off"
    """What every cell gets anyway is taken off: its "median" over the steps, its mean under a "neutral" prompt;
    "relative" divides by the latter. Those two need a record with `neutral_prompt`."""
    sinks: bool = False
    """Hatch the cells that take far more than others at nearly all steps, and leave them out of the scale."""
    smooth: float = 0
    """Width, in cells, of a Gaussian over the map; 0: none."""
    view: str = "plain"
    """"plain": the model's weights; "clear": what points best on the demo, see `CLEAR_DRAWING`."""

    def __post_init__(self) -> None:
        check_kinds(self)
        check_fps(self.fps, f".{self.format}")
        if self.smooth and not LEAST_SMOOTH <= self.smooth < math.inf:
            raise ValueError(
                f"smooth is {self.smooth}; expected a width in cells, {LEAST_SMOOTH} or more, or 0 for none"
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                expected = " or ".join(map(repr, known))
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")
        check_colormap(self.colormap)
        frames = tuple(self.frames) if isinstance(self.frames, Iterable) else (self.frames,)
        if not are_whole(frames):
            raise ValueError(f"frames is {self.frames!r}; expected the numbers of steps, such as (0, 51)")
        object.__setattr__(self, "frames", tuple(map(int, frames)))
        if not are_whole(self.frame_size) or len(self.frame_size) != 2:
            raise ValueError(f"frame_size is {self.frame_size!r}; expected whole pixels, such as {DEFAULT_FRAME_SIZE}")
        (width, height), (least_width, least_height) = self.frame_size, SMALLEST_FRAME
        fits = least_width <= width <= LARGEST_SIDE_OF_FRAME and least_height <= height <= LARGEST_SIDE_OF_FRAME
        if width % 2 or height % 2 or not fits:
            raise ValueError(
                f"frame_size {width}x{height} cannot be used: both must be even, at least {least_width}x{least_height} "
                f"and at most {LARGEST_SIDE_OF_FRAME}"
            )
        FontSet(FONT_TEXT, self.font_path)
        for name, value in CLEAR_DRAWING.items():
            if self.view == "clear" and getattr(self, name) == getattr(type(self), name):
                object.__setattr__(self, name, value)

    @property
    def map(self) -> tuple[str, bool, float]:
        """What is done to the weights before they are drawn: the last arguments of `shown_rows` and `view_names`."""
        return self.baseline, self.sinks, self.smooth


DRAWING_OPTIONS = [field.name for field in fields(DrawingOptions)]


def _scale_ends(weights: np.ndarray, quantile: float, scale: str) -> np.ndarray:
    """(steps,) the weight drawn as the highest in each frame, from (steps, ...) weights."""
    if scale == "frame":
        return np.array([weight_scale(row, quantile) for row in weights])
    return np.full(len(weights), weight_scale(weights, quantile))


def _amount(weight: float, relative: bool) -> str:
    """A weight in the unit of its map."""
    return f"{weight:.3g} times" if relative else f"{weight:.2%}"


def layer_title(record: AttentionRecord, layer: int) -> str:
    """Whose attention is shown."""
    layers = f" of 0-{record.num_layers - 1}" if record.num_layers else ""
    names = {"mean": "mean of the heads", "max": "maximum of the heads"}
    if record.head == "auto":
        heads = f"head {record.auto_heads[record.layers.index(layer)]} (auto)"
    elif isinstance(record.head, tuple):
        many = len(record.head) > MOST_HEADS_NAMED  # `map_notes` names them
        heads = f"mean of {len(record.head)} heads" if many else f"mean of heads {', '.join(map(str, record.head))}"
    else:
        heads = names.get(record.head, f"head {record.head}")
    return f"layer {layer}{' (auto)' * record.auto_layer}{layers}, {heads}"


def map_notes(record: AttentionRecord, layer: int, options: DrawingOptions, shown: ShownRows) -> list[str]:
    """What a reader must know of a map that is not the plain one, and what its check said."""
    view = view_names(*options.map)
    notes = [f"map: {view}"] if view else []
    if options.sinks:
        cells = int(shown.sinks[record.image_positions].sum())
        words = int(shown.sinks.sum()) - cells
        found = [f"{cells} hatched with {shown.left_out:.1%} of the attention on the pictures"] if cells else []
        found += [f"{words} in the prompt's text"] if words else []
        none = "none found" if record.response_length >= FEWEST_SINK_STEPS else "too short an answer to tell"
        notes[0] = notes[0].replace(SINKS_LEFT_OUT, f"{SINKS_LEFT_OUT} ({' and '.join(found) or none})")
    for check in (check for check in record.checks if check.layer == layer):
        other = "" if check.view == view else f" of the map {check.view or 'as the model computed it'}"
        notes.append(f"check{other}: {check}")
    if isinstance(record.head, tuple) and len(record.head) > MOST_HEADS_NAMED:
        notes.append(f"heads: {', '.join(map(str, record.head))}")
    return notes


def _wrapped(notes: Sequence[str], fonts: FontSet, width: float) -> list[str]:
    """Notes on lines of a width in pixels, broken between words."""
    lines: list[str] = []
    for note in notes:
        lines.append("")
        for word in note.split():
            longer = f"{lines[-1]} {word}".strip()
            if fonts.width(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
    return lines


def _draw_lines(
    canvas: Image.Image, lines: Sequence[str], at: tuple[float, float], pitch: int, fonts: FontSet, fill: Any = INK
) -> None:
    """Draw lines of text below each other, the base line of the first at a point."""
    for number, line in enumerate(lines):
        _draw_runs(ImageDraw.Draw(canvas), (at[0], at[1] + number * pitch), line, fonts, fill)


class FrameRenderer:
    """Lays out once what no step changes, for one layer of one record, and then draws any step."""

    def __init__(
        self, record: AttentionRecord, images: Sequence[Image.Image], layer: int, start_phrase: str,
        options: DrawingOptions,
    ) -> None:  # fmt: skip
        if len(images) != len(record.images):
            raise ValueError(f"{len(images)} pictures were given; the record has {len(record.images)}")
        self.record, self.layer, self.text_style = record, layer, options.text_style
        self.colormap = COLORMAPS.get(options.colormap, options.colormap)
        self.width, self.height = options.frame_size
        self.tall = self.height > self.width
        text_fonts, self.title_fonts, self.label_fonts = (
            FontSet(self.px(size), options.font_path)
            for size in (TALL_FONT_TEXT if self.tall else FONT_TEXT, FONT_TITLE, FONT_LABEL)
        )
        margin = self.px(MARGIN)
        shown = shown_rows(record, layer, *options.map)
        self.unit = BASELINES[options.baseline][1], options.baseline == "relative"
        notes = _wrapped(map_notes(record, layer, options, shown), self.label_fonts, self.width - 2 * margin)
        self.sizes, self.left, self.right = [image.size for image in images], margin, self.width - margin
        self.footer = self.height - self.px(FOOTER) - len(notes) * self.px(NOTES) + self.px(16)
        self._place_panels(self.footer - self.px(16))

        start, self.first_step = find_panel_start(record, start_phrase)
        pieces = text_pieces(record, start)
        self.piece_starts = np.array([piece.start for piece in pieces])
        self.text = layout_text(pieces, text_fonts, self.text_size[0])
        self.image = layout_images(record, images, *self.image_size, self.label_fonts, shown.sinks)
        self._weigh(shown, start, pieces, options.scale)
        self.shares = attention_shares(record, layer)
        self.marks = response_marks(record, layer, self.sizes, options.draw_points)
        self.mark_overlay: tuple = ([], None)  # of the last frame: the marks, and what to paste
        self.base = Image.new("RGB", (self.width, self.height), PAPER)  # what no step changes
        self.base.paste(Image.fromarray(self.image.picture), self.image_at)
        at = (self.image_at[0], self._heading(self.image_at[1]))
        title = layer_title(record, layer)
        fonts = self.title_fonts if at[0] + self.title_fonts.width(title) <= self.right else self.label_fonts
        _draw_runs(ImageDraw.Draw(self.base), at, title, fonts, INK)
        self._draw_share_names()
        self._draw_timeline()
        last = self.height - self.px(FOOTER_END)
        _draw_lines(
            self.base, notes, (margin, last - self.px(NOTES) * (len(notes) - 1)), self.px(NOTES), self.label_fonts
        )
        if options.scale == "video":
            self._draw_bars(self.base, 0)
        self.bars_change = options.scale == "frame"

    def _weigh(self, shown: ShownRows, start: int, pieces: Sequence[TextPiece], scale: str) -> None:
        """The weights of all pieces of text and of all cells, NaN where left out, and the ends of their scales."""
        rows_TS, starts = self.record.layer_weights(self.layer), self.piece_starts - start
        # Weights of the frames only; the weight of a run of image tokens, or of a character's parts, is their sum.
        self.text_weights = np.add.reduceat(rows_TS[self.first_step :, start:], starts, axis=1)
        left_out = shown.sinks[start:] & ~np.isin(np.arange(start, len(shown.sinks)), self.record.image_positions)
        self.text_weights[:, np.logical_or.reduceat(left_out, starts)] = np.nan
        self.cell_weights = self.image.cell_weights(shown.rows[self.first_step :], shown.sinks)
        words = np.array([piece.kind == "text" for piece in pieces])
        self.text_ends = _scale_ends(self.text_weights[:, words], TEXT_SCALE_QUANTILE, scale)
        self.any_heat = bool((np.nan_to_num(self.cell_weights) > 0).any())
        self.cell_ends = _scale_ends(self.cell_weights, IMAGE_SCALE_QUANTILE, scale)

    def _place_panels(self, bottom: int) -> None:
        """Where the text and the pictures stand, (x, y), and how large, down to a row.

        They stand side by side; in a frame taller than wide the pictures stand above the text where they are larger so.
        """
        margin, top, label = self.left, self.px(HEADER), _label_height(self.label_fonts, len(self.sizes))

        def scale(width: int, height: int) -> float:
            return round(min(scale for *_, scale in _picture_slots(self.sizes, width, height, label)), 4)

        both, height = self.width - 3 * margin, bottom - top
        # No wider than makes the pictures larger.
        width = max((round(both * part) for part in IMAGE_PANEL), key=lambda width: (scale(width, height), -width))
        self.image_size, self.text_size = (width, height), (both - width, height)
        self.text_at, self.image_at = (margin, top), (2 * margin + both - width, top)
        self.second_bar = (margin + self.right) // 2 if self.tall else self.image_at[0]
        above = self.right - margin, round((height - top) * TALL_IMAGE_PANEL)
        self.stacked = self.tall and scale(*above) > scale(width, height)
        if self.stacked:
            used = _used_height(self.sizes, _picture_slots(self.sizes, *above, label))
            self.image_size, self.image_at, self.text_at = above, (margin, top), (margin, 2 * top + used)
            self.text_size = above[0], bottom - self.text_at[1]

    def _heading(self, top: int) -> int:
        """The base line of the heading of a panel."""
        return top - self.px(HEADER) + round(self.px(HEADER) * 0.6)

    def check_step(self, step: int) -> int:
        """A step that has a frame; negative ones count from the end. Raises ValueError."""
        number = step + self.record.response_length if step < 0 else step
        if not self.first_step <= number < self.record.response_length:
            last = self.record.response_length - 1
            raise ValueError(f"step {step} has no frame; there are frames of steps {self.first_step}..{last}")
        return number

    def px(self, length: float) -> int:
        """Pixels of a length that is given for a frame of DEFAULT_FRAME_SIZE, or of TALL_FRAME_SIZE."""
        width, height = TALL_FRAME_SIZE if self.tall else DEFAULT_FRAME_SIZE
        return max(round(length * min(self.width / width, self.height / height)), 1)

    def draw(self, step: int) -> np.ndarray:
        """The frame of one step: (Y, X, 3) uint8."""
        frame_number = step - self.first_step
        current = int(np.searchsorted(self.piece_starts, self.record.prompt_length + step, side="right")) - 1
        text_end, cell_end = self.text_ends[frame_number], self.cell_ends[frame_number]
        text_values = self.text_weights[frame_number] / text_end
        canvas = self.base.copy()
        canvas.paste(
            visualize_attention_step(
                self.text, text_values, current, self.text_size[1], self.colormap, self.text_style
            ),
            self.text_at,
        )
        heat = heat_tint(self.image, self.cell_weights[frame_number] / cell_end, self.colormap)
        canvas.paste(heat, (self.image_at[0], self.image_at[1] + self.image.cell_rows.start), heat)
        draw = ImageDraw.Draw(canvas)
        self._draw_marks(canvas, step)
        self._draw_token(draw, step, self.text.pieces[current].text)
        if self.bars_change:
            self._draw_bars(canvas, frame_number)
        self._draw_shares(draw, step)
        self._draw_place(canvas, draw, step)
        return np.asarray(canvas)

    def _draw_token(self, draw: ImageDraw.ImageDraw, step: int, token: str) -> None:
        """Which token this is."""
        px, fonts, base = self.px, self.title_fonts, self._heading(self.text_at[1])
        title = f"token {step + 1} of {self.record.response_length}"
        x = _draw_runs(draw, (self.text_at[0], base), title, fonts, INK) + px(24)
        shown = " ".join(token.replace("\n", NEWLINE_MARK).split()) or "space"
        while x + fonts.width(shown) > self.text_at[0] + self.text_size[0] - px(MARGIN) and len(shown) > 1:
            shown = shown[: 3 * (len(shown) - 1) // 4] + "…"
        chip = [x - px(8), base - px(30), x + fonts.width(shown) + px(8), base + px(11)]
        draw.rounded_rectangle(chip, px(6), fill=CURRENT_TOKEN)
        _draw_runs(draw, (x, base), shown, fonts, PAPER)

    def _draw_marks(self, canvas: Image.Image, step: int) -> None:
        """The places named so far in the phase of the last one: an answer is not drawn over the thoughts it repeats."""
        marks = [mark for mark in self.marks if mark.step <= step]
        marks = [mark for mark in marks if mark.phase == marks[-1].phase]
        if not marks:
            return
        if self.mark_overlay[0] != marks:
            overlay = draw_marks(self.image, marks, self.label_fonts)
            box = overlay.getbbox()
            at, overlay = (self.image_at[0] + box[0], self.image_at[1] + box[1]), overlay.crop(box)
            self.mark_overlay = marks, (overlay.convert("RGB"), at, overlay.getchannel("A"))
        canvas.paste(*self.mark_overlay[1])
        inside = share_inside(self.record, self.layer, step, marks, self.sizes)
        if inside is not None:
            text = f"{inside:.1%} of the attention on the picture{'s' * (len(self.sizes) > 1)} is inside the boxes"
            at = (self.right - self.label_fonts.width(text), self.timeline_y - self.px(10))
            _draw_runs(ImageDraw.Draw(canvas), at, text, self.label_fonts, INK)

    def _draw_bars(self, canvas: Image.Image, frame_number: int) -> None:
        """The colour bars of the text and of the pictures, each with its two numbers, tinted as they are on white."""
        px, fonts, draw, y, width = self.px, self.label_fonts, ImageDraw.Draw(canvas), self.footer, self.px(220)
        text = (self.left, "a token", self.text_ends, TEXT_ALPHA, (BASELINES["off"][1], False))
        for x, name, ends, alpha, unit in (text, (self.second_bar, "a cell", self.cell_ends, CELL_ALPHA, self.unit)):
            low = "0" if unit[1] else "0%"
            left = round(_draw_runs(draw, (x, y + px(18)), f"{name}   {low}", fonts, INK)) + px(10)
            weights = np.linspace(0, 1, width)
            shades = tinted(weights, self.colormap, alpha)
            if alpha == TEXT_ALPHA:
                shades = text_colours(weights, self.colormap, self.text_style)[self.text_style == "glyph"]
            canvas.paste(_bar(shades, px(20)), (left, y))
            end = f"{_amount(ends[frame_number], unit[1])} or more {unit[0]}"
            if name == "a cell" and not self.any_heat:
                end = f"nothing {unit[0]}"
            _draw_runs(draw, (left + width + px(10), y + px(18)), end, fonts, INK)

    def _draw_share_names(self) -> None:
        """The key below the bar of shares; where the number of each belongs is kept for `_draw_shares`.

        Where there is no room for all pictures, the last ones are left out.
        """
        px, fonts, draw, x = self.px, self.label_fonts, ImageDraw.Draw(self.base), float(self.left)
        self.share_base = self.footer + px(BARS) + px(50)
        self.share_numbers: list[tuple[Share, float]] = []
        gap, count = px(36), len(self.sizes)
        widths = [px(24) + fonts.width(f"{share.name} 100.0%") + gap for share in self.shares]
        kept, others = count, sum(widths[count:]) + fonts.width("…")
        while kept > 1 and x + sum(widths[:kept]) + others > self.right:
            kept -= 1
        for number, (share, width) in enumerate(zip(self.shares, widths)):
            if kept <= number < count:
                continue
            if kept < number == count:
                x = _draw_runs(draw, (x, self.share_base), "…", fonts, INK) + gap
            if x + width - gap > self.right:
                break
            draw.rectangle([x, self.share_base - px(16), x + px(16), self.share_base], fill=share.colour)
            end = _draw_runs(draw, (x + px(24), self.share_base), f"{share.name} ", fonts, INK)
            self.share_numbers.append((share, end))
            x = round(x + width)

    def _draw_shares(self, draw: ImageDraw.ImageDraw, step: int) -> None:
        """One bar over the width of the frame: where this step's attention lies, with the numbers of the key below."""
        top, x = self.footer + self.px(BARS), float(self.left)
        for share in self.shares:
            end = x + float(share.weights[step]) * (self.right - self.left)
            if round(end) > round(x):
                box = [round(x), top, min(round(end), self.right) - 1, top + self.px(20)]
                draw.rectangle(box, fill=share.colour)
            x = end
        for share, x in self.share_numbers:
            _draw_runs(draw, (x, self.share_base), f"{share.weights[step]:.1%}", self.label_fonts, INK)

    def _column(self, step: int) -> int:
        """Where a step begins on the time line, in pixels from its left."""
        steps = self.record.response_length - self.first_step
        return (step - self.first_step) * (self.right - self.left) // steps

    def _draw_timeline(self) -> None:
        """The share of the pictures at each step, as bars over the phases: pale here, in full for `_draw_place`."""
        px, steps = self.px, self.record.response_length - self.first_step
        self.timeline_y = self.footer + px(BARS) + px(SHARES)
        shares = self.shares[: len(self.record.images)]
        totals = np.cumsum([share.weights[self.first_step :] for share in shares], axis=0)
        top = max(totals.max(initial=0), TINY)
        width, high = self._column(self.record.response_length), px(CURVE)
        starts = np.array([self._column(self.first_step + n) for n in range(steps + 1)])
        step_X = np.searchsorted(starts, np.arange(width), side="right") - 1
        band = np.full((high + px(PHASES), width, 3), 255, np.uint8)
        height_Y = np.arange(high, 0, -1)[:, None]
        for share, total in reversed(list(zip(shares, totals))):
            band[:high][height_Y <= np.round(total / top * high)[step_X]] = share.colour
        if width >= 4 * steps:
            band[:high, starts[:-1]] = 255
        self.timeline = Image.fromarray(band)
        draw = ImageDraw.Draw(self.timeline)
        for phase in (phase for phase in response_phases(self.record) if phase.last > self.first_step):
            left, right = self._column(max(phase.first, self.first_step)), self._column(phase.last)
            draw.rectangle([left, high, right - 1, band.shape[0]], fill=PHASE_COLOURS[phase.name])
            if self.label_fonts.width(phase.name) + px(12) < right - left:
                _draw_runs(draw, (left + px(8), high + px(19)), phase.name, self.label_fonts, INK)
        pale = np.asarray(self.timeline).astype(float)
        pale[:high] = blend(255, pale[:high], COMING_ALPHA)
        self.base.paste(Image.fromarray(pale.round().astype(np.uint8)), (self.left, self.timeline_y))
        caption = f"attention on the picture{'s' * (len(shares) > 1)} at each step, up to {top:.1%}"
        _draw_runs(ImageDraw.Draw(self.base), (self.left, self.timeline_y - px(10)), caption, self.label_fonts, INK)

    def _draw_place(self, canvas: Image.Image, draw: ImageDraw.ImageDraw, step: int) -> None:
        """The time line up to this step, and where the step stands on it."""
        px, y, left, right = self.px, self.timeline_y, self._column(step), self._column(step + 1)
        canvas.paste(self.timeline.crop((0, 0, right, self.timeline.height)), (self.left, y))
        left = min(self.left + left, self.right - px(4))
        right = max(self.left + right, left + px(4)) - 1
        # Round the bar alone: below it stand the names of the phases.
        draw.rectangle([left, y - px(4), right, y + px(CURVE) - 1], outline=CURRENT_TOKEN, width=px(3))


def render_frames(
    record: AttentionRecord,
    images: Sequence[Image.Image],
    layer: int,
    start_phrase: str = DEFAULT_START_PHRASE,
    **options: Any,
) -> Iterator[np.ndarray]:
    """The frames of one layer's video, one a response token, drawn as they are asked for.

    layer: a recorded layer. start_phrase: where the text panel begins. options: fields of `DrawingOptions`.
    Returns an iterator of (Y, X, 3) uint8. Raises ValueError before the first frame for what does not fit.
    """
    renderer = FrameRenderer(record, images, layer, start_phrase, DrawingOptions(**options))
    return map(renderer.draw, range(renderer.first_step, record.response_length))


# ------------------------------------------------------------------------------------------ summary


def words_that_looked(record: AttentionRecord, layer: int, count: int) -> list[tuple[int, str]]:
    """(step, word) of the words that looked at the pictures the most, the most first, each word once.

    A word counts by the token that begins it; in a script without spaces each token is a word.
    """
    text, words = record.response, {}
    starts = np.concatenate([[0], response_ends(record)])
    for step in np.argsort(-image_shares(record, layer), kind="stable"):
        token = record.tokens[record.prompt_length + step]
        match = LETTERS.search(token)
        at = starts[step] + match.start() if match else 0
        if not match or (at and text[at - 1] in "</") or len(words) == count:
            continue
        alone = bool(BREAK_ANYWHERE.match(match[0]))
        if alone or not (at and text[at - 1].isalpha()):
            words.setdefault(match[0] if alone else LETTERS.match(text, at)[0], int(step))
    return [(step, word) for word, step in words.items()]


def summary_spans(record: AttentionRecord, layer: int) -> list[tuple[str, int, int]]:
    """(title, first step, the one after the last) of each map of the summary: the phases, then single words."""
    phases = [(f"{p.name}: mean of {p.last - p.first} steps", p.first, p.last) for p in response_phases(record)]
    words = words_that_looked(record, layer, 2 * SUMMARY_COLUMNS - len(phases))
    return phases + [(f"“{word}”, token {step + 1}", step, step + 1) for step, word in words]


def summary_facts(
    spans: Sequence[tuple], shares_T: np.ndarray, cells_TN: np.ndarray, images: int, options: DrawingOptions
) -> list[str]:
    """What is written over the map of each span of steps: the share of the pictures, and the highest cell."""
    relative, unit = options.baseline == "relative", f" {BASELINES[options.baseline][1]}" * (options.baseline != "off")
    tops = [np.nan_to_num(cells_TN[start:end].mean(axis=0)).max(initial=0) for _, start, end in spans]
    looked = [f"{shares_T[start:end].mean():.1%} on the picture{'s' * (images > 1)}" for _, start, end in spans]
    return [f"{share}, highest cell {_amount(top, relative)}{unit}" for share, top in zip(looked, tops)]


def draw_summary(
    record: AttentionRecord, images: Sequence[Image.Image], layer: int, options: DrawingOptions | None = None
) -> Image.Image:
    """One picture of a whole response, as wide as a frame: its text, where its phases and some of its words looked.

    The text is coloured by the share of each token's attention that lies on the pictures.
    """
    options = options or DrawingOptions()
    colormap, width = COLORMAPS.get(options.colormap, options.colormap), options.frame_size[0]
    px = lambda length: max(round(length * width / DEFAULT_FRAME_SIZE[0]), 1)  # noqa: E731
    text_fonts, title_fonts, fonts = (FontSet(px(n), options.font_path) for n in (FONT_TEXT, FONT_TITLE, FONT_LABEL))
    margin = px(MARGIN)
    shown, shares_T = shown_rows(record, layer, *options.map), image_shares(record, layer)
    pieces = text_pieces(record, record.prompt_length)
    text = layout_text(pieces, text_fonts, width - 2 * margin)
    first = np.array([piece.start - record.prompt_length for piece in pieces])
    values = np.maximum.reduceat(shares_T, first) / max(shares_T.max(), TINY)
    written = visualize_attention_step(text, values, None, len(text.ink), colormap, options.text_style)

    spans = summary_spans(record, layer)
    tile = (width - margin) // SUMMARY_COLUMNS - margin
    image = layout_images(record, images, tile, tile * 3 // 4, fonts, shown.sinks)  # two pictures stand side by side
    cells_TN = image.cell_weights(shown.rows, shown.sinks)
    notes = _wrapped(map_notes(record, layer, options, shown), fonts, width - 2 * margin)
    notes += ["each map below goes up to its own highest cell"]
    facts = [_wrapped([text], fonts, tile) for text in summary_facts(spans, shares_T, cells_TN, len(images), options)]
    y_heat = px(60) + (max(map(len, facts)) - 1) * px(NOTES)
    tile_height = max(top + high for _, top, _, high in image.places) + y_heat + px(40)
    y_text = margin + px(100) + len(notes) * px(NOTES)
    y_maps = y_text + px(40) + written.height
    canvas = Image.new("RGB", (width, y_maps + -(-len(spans) // SUMMARY_COLUMNS) * tile_height), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_runs(draw, (margin, margin + px(30)), layer_title(record, layer), title_fonts, INK)
    caption = f"each token coloured by its attention on the picture{'s' * (len(images) > 1)}: 0% "
    x = round(_draw_runs(draw, (margin, margin + px(74)), caption, fonts, INK))
    shades = text_colours(np.linspace(0, 1, px(220)), colormap, options.text_style)[options.text_style == "glyph"]
    canvas.paste(_bar(shades, px(20)), (x, margin + px(58)))
    _draw_runs(draw, (x + px(230), margin + px(74)), f"{shares_T.max():.1%}", fonts, INK)
    _draw_lines(canvas, notes, (margin, margin + px(74 + NOTES)), px(NOTES), fonts)
    canvas.paste(written, (margin, y_text))
    for number, (name, start, end) in enumerate(spans):
        row, column = divmod(number, SUMMARY_COLUMNS)
        x, y = margin + column * (tile + margin), y_maps + row * tile_height
        cells = cells_TN[start:end].mean(axis=0)
        top = max(np.nan_to_num(cells).max(initial=0), TINY)
        _draw_runs(draw, (x, y + px(22)), name, fonts, INK)
        _draw_lines(canvas, facts[number], (x, y + px(48)), px(NOTES), fonts, MUTED)
        heat = draw_heat(image, cells / top, colormap)
        canvas.paste(heat.crop((0, 0, tile, min(tile_height - y_heat, heat.height))), (x, y + y_heat))
    return canvas


# -------------------------------------------------------------------------------------------- video


def _drawn_ahead(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same frames, each drawn in a second thread while the encoder takes the one before."""
    source = iter(frames)
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, source, None)
        while (frame := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield frame


def write_video(frames: Iterable[np.ndarray], path: str | Path, fps: float = 2) -> str:
    """Encode (Y, X, 3) uint8 frames, as they come, under a name that appears when all is well.

    The suffix of the path decides: .mp4 is H.264 (yuv420p), .webm VP9, .gif at most GIF_WIDTH pixels wide.
    Returns the path. Raises ValueError when there is no frame, fps does not fit or the suffix is another,
    OSError when the file cannot be written whole, RuntimeError when the encoder is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in ENCODERS:
        raise ValueError(f"{path} has no suffix of a video; expected {', '.join(ENCODERS)}")
    check_fps(fps, path.suffix.lower())
    with moved_into_place(path) as temporary, tempfile.TemporaryDirectory() as folder:
        gif = path.suffix.lower() == ".gif"
        target = Path(folder) / "lossless.mkv" if gif else temporary
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} is no folder; make it first")
        count = _encode(frames, target, path, fps)
        if not count:
            raise ValueError(f"{path} would have no frame: the response is empty")
        if gif:
            _convert_to_gif(Path(folder) / "lossless.mkv", temporary)
    logger.info("wrote %s: %d frames at %g a second", path, count, fps)
    return str(path)


def find_encoder() -> str:
    """The path of ffmpeg. Raises RuntimeError where there is none."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"no video encoder: {one_line(error)}; run pip install imageio-ffmpeg") from error


def _encode(frames: Iterable[np.ndarray], target: Path, path: Path, fps: float) -> int:
    """Write a video with the encoder for the suffix of `path`; the number of its frames.

    The encoder is run here since its exit status alone tells that the end of the file has found room.
    """
    codec, pixel_format, options = ENCODERS[path.suffix.lower()]
    drawn, count = _drawn_ahead(frames), 0
    first = next(drawn, None)
    if first is None:
        return 0
    height, width = first.shape[:2]
    command = [
        find_encoder(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
        "-r", str(Fraction(fps).limit_denominator()), "-i", "-", "-c:v", codec, "-pix_fmt", pixel_format,
        # A key frame every few seconds lets a player jump about in a video of few frames a second.
        *options.split(), "-g", str(max(round(5 * fps), 10)), str(target.absolute()),
    ]  # fmt: skip
    with tempfile.TemporaryFile() as complaints, _running(command, complaints) as encoder:
        fed = False
        with suppress(BrokenPipeError):  # it ended before its input did
            for frame in chain([first], drawn):
                encoder.stdin.write(np.ascontiguousarray(frame).data)
                count += 1
            encoder.stdin.close()
            fed = True
        with suppress(subprocess.TimeoutExpired):
            encoder.wait(None if fed else ENCODER_PATIENCE)
        if not fed or encoder.returncode:
            complaints.seek(0)
            reason = _reason(complaints.read(), encoder.returncode)
            raise OSError(f"{path} could not be written: the encoder ended ({reason}); {_folder_advice(path)}")
    return count


def _reason(said: bytes, status: int) -> str:
    """The last line that an encoder said, without the name of a part of it; else its exit status."""
    lines = said.decode(errors="replace").strip().splitlines() or [f"status {status}"]
    return one_line(re.sub(r"^\[[^]]*\]\s*", "", lines[-1]))


@contextmanager
def _running(command: list[str], complaints: Any) -> Iterator[subprocess.Popen]:
    """A process fed through its input, which Ctrl-C does not reach; it has ended when the block is left."""
    process, pipes = None, {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": complaints}
    try:
        try:
            with undisturbed():
                process = subprocess.Popen(command, start_new_session=True, **pipes)
        except OSError as error:
            raise OSError(f"the video encoder {command[0]} cannot be run: {error.strerror}; reinstall it") from error
        yield process
    finally:  # before its file is moved or removed
        if process:
            process.kill()
            process.wait()
            with suppress(OSError):
                process.stdin.close()


def _convert_to_gif(source: Path, target: Path) -> None:
    """One palette for the whole video and no dithering: what does not change from frame to frame costs nothing."""
    size = f"scale='min({GIF_WIDTH},iw)':-1:flags=area"
    filters = (
        f"[0]{size},palettegen=max_colors={GIF_COLOURS}[palette];"
        f"[1]{size}[frames];[frames][palette]paletteuse=dither=none:diff_mode=rectangle"
    )
    command = [find_encoder(), "-y", "-loglevel", "error", *["-i", str(source)] * 2, "-lavfi", filters, str(target)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if result.returncode:
        reason = _reason(result.stderr, result.returncode)
        raise OSError(f"the GIF could not be written: {reason}; check the space, or try --format mp4")


def check_output_dir(output_dir: str | Path) -> None:
    """Raises OSError when nothing can be written there, before the long work begins; makes nothing."""
    folder = Path(output_dir)
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(LEAST_SPACE))
    except (OSError, ValueError) as error:  # ValueError: no path at all
        raise OSError(
            f"output_dir {output_dir!r} cannot be written to ({one_line(error)}); give another folder"
        ) from error


def video_path(output_dir: str | Path, layer: int, options: DrawingOptions) -> Path:
    """Where the video of a layer goes."""
    return Path(output_dir) / f"combined_attention_visualization_layer{layer}.{options.format}"


def file_names(layer: int, stills: Sequence[str], options: DrawingOptions) -> list[str]:
    """The names of a layer's files: of the stills, of the summary and, last, of the video."""
    video = video_path("", layer, options)
    pictures = [f"{video.stem}_{name}.png" for name in [*stills, *["summary"] * options.summary]]
    return [*pictures, video.name]


def stills_of(record: AttentionRecord, first_step: int, frames: Sequence[int]) -> list[int]:
    """The steps among `frames`, negative ones from the end, that have a frame."""
    steps = [step + record.response_length if step < 0 else step for step in frames]
    return [step for step in steps if first_step <= step < record.response_length]


def write_layer_videos(
    record: AttentionRecord, images: Sequence[Image.Image], layers: Sequence[int], start_phrase: str,
    output_dir: str | Path, options: DrawingOptions,
) -> list[str]:  # fmt: skip
    """Write `combined_attention_visualization_layer{layer}.mp4` for each layer, with a progress bar; the paths.

    What `frames` and `summary` ask for stands beside it: `..._layer7_step51.png`, `..._layer7_summary.png`.
    """
    from tqdm import tqdm

    paths = []
    for layer in layers:
        path = video_path(output_dir, layer, options)
        renderer = FrameRenderer(record, images, layer, start_phrase, options)
        steps = range(renderer.first_step, record.response_length)
        stills = stills_of(record, renderer.first_step, options.frames)
        if len(stills) < len(options.frames):
            ends = renderer.first_step, record.response_length - 1
            logger.warning("not all of the frames %s are there, but those of steps %d..%d", list(options.frames), *ends)
        path.parent.mkdir(parents=True, exist_ok=True)
        *names, _ = file_names(layer, [f"step{step}" for step in stills], options)
        pictures = (Image.fromarray(renderer.draw(step)) for step in stills)
        summary = (draw_summary(record, images, layer, options) for _ in range(options.summary))
        for name, picture in zip(names, chain(pictures, summary)):
            with moved_into_place(path.with_name(name)) as temporary:
                picture.save(temporary)
        with tqdm(steps, desc=f"writing layer {layer}", unit="frame", leave=None) as bar:
            paths.append(write_video(map(renderer.draw, bar), path, options.fps))
    return paths


# ------------------------------------------------------------------------------------------ dataset

FACTS_NAME, TABLE_NAME = "sample.json", "samples.csv"
SHARED_COLUMNS = ("sample", "id", "response", "answer", "correct")  # then a share for each phase and layer
LAST_COLUMNS = ("map", "check", "files", "error")


def sample_folder(output_dir: str | Path, number: int) -> Path:
    """Where the files of one sample of a dataset go."""
    return Path(output_dir) / f"sample_{number:04d}"


def read_facts(folder: Path) -> dict:
    """What is known of a sample: number, response, shares, files, the settings behind them; {} where nothing is."""
    try:
        facts = json.loads((folder / FACTS_NAME).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def write_facts(folder: Path, facts: dict) -> None:
    """Keep what is known of a sample. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with moved_into_place(folder / FACTS_NAME) as temporary:
        temporary.write_text(json.dumps(facts, indent=1), "utf-8")


def own_files(folder: Path, facts: dict) -> list[Path]:
    """The files that a sample's facts name; a name that would leave the folder is none."""
    names = facts.get("files")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [folder / name for name in names if name not in ("", "..") and Path(name).name == name]


def is_finished(folder: Path, facts: dict) -> bool:
    """Whether a sample succeeded and every file of it is there: each appears under its name when it is whole."""
    files = own_files(folder, facts)
    return bool(files) and not facts.get("error") and all(path.is_file() for path in files)


def forget_sample(folder: Path) -> None:
    """Remove what an earlier run made of a sample, the facts first: without them nothing counts as finished."""
    for path in (folder / FACTS_NAME, *own_files(folder, read_facts(folder))):
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def fingerprint(sample: object, image_dir: Path, allow_absolute_paths: bool = False) -> str:
    """Of a sample as it stands in the dataset and the bytes of its pictures: with others it is another input."""
    digest = hashlib.sha256(json.dumps(sample, sort_keys=True).encode())
    with suppress(ValueError, OSError):  # what cannot be read is told when its turn comes
        for name in check_sample(sample, ""):
            path = image_dir / name
            if path.is_file() and (allow_absolute_paths or _lies_in(path, image_dir)):
                with path.open("rb") as file:
                    for part in iter(lambda: file.read(2**20), b""):
                        digest.update(part)
    return digest.hexdigest()


def unfinished_samples(output_dir: str | Path, numbers: Iterable[int], settings_of: Callable[[int], dict]) -> list[int]:
    """Those of the samples that no earlier run has finished. Raises ValueError where one did so by other settings."""
    unfinished, others = [], {}
    for number in numbers:
        folder = sample_folder(output_dir, number)
        facts = read_facts(folder)
        if not is_finished(folder, facts):
            unfinished.append(number)
        elif (wanted := settings_of(number)) != (made := facts.get("settings")):
            made = made if isinstance(made, dict) else {}
            others[number] = sorted(key for key in wanted | made if wanted.get(key) != made.get(key))
    if others:
        number, names = next(iter(others.items()))
        raise ValueError(
            f"{len(others)} finished sample(s) in {output_dir} were made otherwise, such as sample {number} (other "
            f"{', '.join(names)}); give another output_dir, or --overwrite to make them again"
        )
    return unfinished


def answer_text(text: object) -> str:
    """What is compared of a response or an answer: inside the last <answer> tags, else all; white space squeezed."""
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return " ".join((re.findall(r"<answer>(.*?)</answer>", text, re.S) or [text])[-1].split())


def is_correct(response: str, answer: object) -> bool | None:
    """Whether a response gives the answer, letter by letter; None where the dataset has none."""
    return None if answer is None or not answer_text(answer) else answer_text(response) == answer_text(answer)


def phase_shares(record: AttentionRecord, layer: int) -> dict[str, float]:
    """Of each phase, and of the whole `response`: the mean over its steps of the attention that lies on pictures."""
    phases = [*response_phases(record), Phase("response", 0, record.response_length)]
    shares_T = image_shares(record, layer)
    return {phase.name: round(float(shares_T[phase.first : phase.last].mean()), 6) for phase in phases}


def record_facts(record: AttentionRecord, answer: object) -> dict:
    """What a record says of its sample, for the table."""
    return {
        "response": record.response,
        "correct": is_correct(record.response, answer),
        "image_share": {str(layer): phase_shares(record, layer) for layer in record.layers},
        "map": "; ".join(layer_title(record, layer) for layer in record.layers),
        "check": "; ".join(f"layer {check.layer}: {check}" for check in record.checks),
    }


def table_row(folder: Path) -> dict:
    """A sample's row of the table."""
    facts = read_facts(folder)
    shares, correct = facts.get("image_share"), facts.get("correct")
    columns = {
        f"image_share_{phase}_layer{layer}": share
        for layer, phases in (shares.items() if isinstance(shares, dict) else ())
        for phase, share in (phases.items() if isinstance(phases, dict) else ())
    }
    return {
        **{name: facts.get(name) for name in SHARED_COLUMNS},
        "sample": int(folder.name.rpartition("_")[2]),
        "correct": int(correct) if isinstance(correct, bool) else None,
        **columns,
        **{name: facts.get(name) for name in ("map", "check")},
        "files": ";".join(f"{folder.name}/{path.name}" for path in own_files(folder, facts) if path.is_file()),
        "error": facts.get("error") or ("" if is_finished(folder, facts) else "not finished"),
    }


def _cell(value: object) -> object:
    """A value of the table: harmless in a terminal, and marked as text where a spreadsheet would run it."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    is_formula = text.lstrip().startswith(tuple("=+-@＝＋－＠")) and not re.fullmatch(r"[+-]?[\d.]+", text)
    return f"'{text}" if is_formula else text


def write_table(output_dir: str | Path) -> None:
    """Write `samples.csv`: a row for each sample that has a folder in output_dir, by whichever run. Raises OSError."""
    folders = [path for path in Path(output_dir).glob("sample_*") if re.fullmatch(r"sample_[0-9]{4,18}", path.name)]
    rows = sorted(map(table_row, folders), key=lambda row: row["sample"])
    shares = {name for row in rows for name in row if name.startswith("image_share_")}
    with (
        moved_into_place(Path(output_dir) / TABLE_NAME) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, [*SHARED_COLUMNS, *sorted(shares), *LAST_COLUMNS], restval="")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


class NoSpaceLeft(OSError):
    """The samples to come would fail, too."""


def fail_sample(folder: Path, facts: dict, error: object) -> None:
    """Report a sample that failed, and note it for the table. Raises NoSpaceLeft where the rest would fail as well."""
    message = one_line(error) or type(error).__name__
    logger.error("sample %s: %s", facts["sample"], message)
    try:
        write_facts(folder, facts | {"error": message})
    except OSError as problem:  # the table will say that it is not finished
        logger.error("sample %s: %s", facts["sample"], one_line(problem))
    if os.strerror(errno.ENOSPC) in message:
        raise NoSpaceLeft(f"{folder.parent} has no space left; make room, and the same command goes on where it was")


class BackgroundDrawing:
    """Draws one sample while the model answers the next, in a process of this module's own command line.

    A process, since the Python of a thread would hold up the model's. One sample at a time, so that there are never
    more than two records. A failure is written into the facts of its sample.
    """

    def __init__(self, start_phrase: str, options: DrawingOptions, save_record: str | None) -> None:
        self.start_phrase, self.options, self.save_record = start_phrase, options, save_record and str(save_record)
        self._current: tuple[Path, dict, Path, subprocess.Popen, Any] | None = None
        self._said: set[str] = set()

    def __enter__(self) -> BackgroundDrawing:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.finish(stop=kind is not None)

    def start(self, folder: Path, facts: dict, record: AttentionRecord) -> None:
        """Begin to draw a sample as soon as the one before is drawn. Its facts name the files before they are there."""
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / self.save_record if self.save_record else partial_path(folder / "record.npz")
        record.save(source, compress=bool(self.save_record))
        try:
            self.finish()
            facts = facts | record_facts(record, facts["answer"]) | {"files": self._names(record)}
            write_facts(folder, facts)
            if not callable(self.options.colormap):
                with undisturbed():
                    self._current = folder, facts, source, *self._drawing_process(source, folder, record.layers)
            else:  # no other process has it
                images = record.open_pictures()
                write_layer_videos(record, images, record.layers, self.start_phrase, folder, self.options)
        finally:
            if not self._current and not self.save_record:
                source.unlink(missing_ok=True)

    def _names(self, record: AttentionRecord) -> list[str]:
        """The names of a sample's files."""
        names, phrase = [self.save_record] * bool(self.save_record), self.start_phrase
        first = find_panel_start(record, phrase)[1] if phrase and phrase in record.response else 0
        stills = [f"step{step}" for step in stills_of(record, first, self.options.frames)]
        return names + [name for layer in record.layers for name in file_names(layer, stills, self.options)]

    def _drawing_process(self, source: Path, folder: Path, layers: Sequence[int]) -> tuple[subprocess.Popen, Any]:
        """A process that draws a record into a folder, and the file that holds what it says."""
        flags = [f"--start_phrase={self.start_phrase}", "--layer_idx", *map(str, layers)]
        for name in DRAWING_OPTIONS:
            value = getattr(self.options, name)
            if name == "frame_size":
                flags.append("--frame_size={}x{}".format(*value))
            elif isinstance(value, bool):
                flags += [f"--{name}"] * value
            elif name == "frames":
                flags += [f"--{name}", *map(str, value)] * (len(value) > 0)
            elif value is not None:
                flags.append(f"--{name}={float(value) if isinstance(value, Real) else value}")
        command = [sys.executable, __file__, f"--from_record={source}", f"--output_dir={folder}", *flags]
        said = tempfile.TemporaryFile()  # noqa: SIM115  closed when the process has ended
        quiet = {**os.environ, "TQDM_DISABLE": "1", DRAWN_FOR: str(os.getpid())}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": said}
        return subprocess.Popen(command, env=quiet, **streams), said

    def finish(self, stop: bool = False) -> None:
        """Wait until the current sample is drawn, or stop that; pass on what its process said."""
        if not self._current:
            return
        folder, facts, source, process, said = self._current
        try:
            if stop:
                process.terminate()
            process.wait(DRAWING_PATIENCE if stop else None)
        finally:  # also where this very wait is stopped
            self._current = None
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(DRAWING_PATIENCE)
            process.kill()
            if not self.save_record:
                source.unlink(missing_ok=True)
        said.seek(0)
        lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
        said.close()
        for line in dict.fromkeys(line for line in lines if line.startswith("WARNING: ")):
            if line not in self._said:  # of fonts, say: once is enough
                logger.warning("sample %s: %s", facts["sample"], one_line(line.removeprefix("WARNING: ")))
                self._said.add(line)
        if process.returncode and not stop:
            reason = lines[-1].removeprefix("error: ") if lines else f"drawing ended with status {process.returncode}"
            fail_sample(folder, facts, reason)


@contextmanager
def said_of(number: int) -> Iterator[None]:
    """Within this block whatever is logged names the sample."""

    def name(message: logging.LogRecord) -> bool:
        message.msg = f"sample {number}: {message.msg}"
        return True

    logger.addFilter(name)
    try:
        yield
    finally:
        logger.removeFilter(name)


def run_samples(
    numbers: Iterable[int], output_dir: str | Path, answer: Callable[[int, dict], AttentionRecord],
    beside: BackgroundDrawing | None, settings_of: Callable[[int], dict] | None,
) -> None:  # fmt: skip
    """Answer one sample after the other, and have each drawn while the next is answered.

    answer: gives the record of a sample, and adds to its facts. beside: None in a process that only helps to answer.
    settings_of: of a sample that another run may have finished meanwhile, to leave it out; None where all are done,
    as by processes that share a model: they have to agree.
    Raises OSError where nothing can be written any more.
    """
    from tqdm import tqdm

    for number in tqdm(numbers, desc="samples", unit="sample"):
        check_output_dir(output_dir)
        if settings_of and not unfinished_samples(output_dir, [number], settings_of):
            continue
        folder, facts = sample_folder(output_dir, number), {"sample": number}
        try:
            if beside:
                forget_sample(folder)
            with said_of(number):
                record = answer(number, facts)
            if beside:
                beside.start(folder, facts, record)
        except NoSpaceLeft:  # it may be the sample before that found none
            raise
        except Exception as error:  # whatever it is, it is this sample's
            if beside:
                fail_sample(folder, facts, error)


# -------------------------------------------------------------------------------------------- class


def process_number(tp_plan: Any) -> int:
    """Which process of a tensor-parallel run this is, by torchrun's word; 0 where the model is not shared."""
    return int(os.environ.get("RANK", 0)) if tp_plan else 0


def check_tp_plan(tp_plan: Any, device_map: Any, config: Any) -> None:
    """Raises ValueError where a model cannot be shared by the processes that were started."""
    if not tp_plan:
        return
    ranks, text = int(os.environ.get("WORLD_SIZE", 1)), config.get_text_config()
    if ranks < 2:
        raise ValueError(
            f"tp_plan {tp_plan!r} shares the model between processes, and there is one; start several: "
            "torchrun --nproc-per-node 2 visualizeHeatMap.py ..."
        )
    if device_map not in (None, "auto"):
        raise ValueError(f"device_map {device_map!r} and tp_plan {tp_plan!r} were both given; give one of them")
    for name in ("num_attention_heads", "num_key_value_heads"):
        uneven = [count for count in layer_values(text, name, 0) if count % ranks]
        if uneven:
            raise ValueError(
                f"tp_plan {tp_plan!r}: {ranks} processes cannot share {uneven[0]} {name} evenly; start a number of "
                "processes that divides them"
            )


def _pictures_of(record: AttentionRecord, given: list[Image.Image] | None) -> list[Image.Image]:
    """The pictures of a record. Raises ValueError when others were given."""
    if not record.pictures:
        return given or record.open_pictures()
    own = record.open_pictures()
    for number, (kept, other) in enumerate(zip(own, given or own), start=1):
        small = [np.asarray(image.resize((16, 16)), float) for image in (kept, other)]
        if len(own) != len(given or own) or kept.size != other.size or np.abs(small[0] - small[1]).max() > 32:
            raise ValueError(
                f"picture {number} of the sample is not the record's; check --sample_idx, or leave the dataset out"
            )
    return own


class AttentionVisualizer:
    """Shows what a vision-language model looks at while it answers.

    model_name_or_path: a Hugging Face checkpoint, a directory or a name on the hub.
    max_image_num: the most pictures that a sample may have.
    device_map, dtype, trust_remote_code: as in `from_pretrained`; dtype "auto" is float32 on a CPU.
    tp_plan: "auto", in processes started by torchrun, lets them share every layer (tensor parallelism); it takes the
        place of device_map. Every process makes the record, the first one alone writes files.
    model_kwargs, processor_kwargs: whatever else the `from_pretrained` of the model and of the processor takes, such
        as {"quantization_config": ...} or {"do_pan_and_scan": True}. A LoRA adapter's directory (peft) will do, too.

    The configuration and the processor are read at once, the weights when they are first needed, so that a
    wrong option is found before the long wait. Raises OSError or ValueError when there is no such checkpoint.
    """

    def __init__(
        self,
        model_name_or_path: str,
        max_image_num: int = 2,
        *,
        device_map: str | dict | None = "auto",
        dtype: Any = "auto",
        tp_plan: str | dict | None = None,
        trust_remote_code: bool = False,
        model_kwargs: dict | None = None,
        processor_kwargs: dict | None = None,
    ) -> None:
        if max_image_num < 1:
            raise ValueError(f"max_image_num is {max_image_num}; expected 1 or more")
        import torch
        from transformers import AutoConfig, AutoProcessor

        if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype is {dtype!r}; expected auto or one of torch's, such as float32 or bfloat16")
        self.model_name_or_path = str(model_name_or_path)
        self.max_image_num = max_image_num
        self.device_map, self.dtype, self.trust_remote_code = device_map, dtype, trust_remote_code
        self.tp_plan = tp_plan
        self.model_kwargs, self.processor_kwargs = dict(model_kwargs or {}), dict(processor_kwargs or {})
        self.last_record: AttentionRecord | None = None  # of the last video: its response, its weights
        self.config = self._from_pretrained(AutoConfig, self._base_of("config.json"))
        image_token_id(self.config)  # a model without pictures is told here
        check_tp_plan(tp_plan, device_map, self.config)
        processor_name = self._base_of("processor_config.json", "preprocessor_config.json")
        self.processor = self._from_pretrained(AutoProcessor, processor_name, **self.processor_kwargs)
        if getattr(self.processor, "tokenizer", None) is None:
            raise ValueError(f"model_path {model_name_or_path} has no tokenizer beside its processor; add its files")
        logger.info("%s: model type %s, %d layers", model_name_or_path, self.config.model_type, self.num_layers)

    def _base_of(self, *names: str) -> str:
        """The checkpoint that has one of these files: an adapter's directory leaves some to the model it adapts."""
        folder = Path(self.model_name_or_path)
        adapter = folder / "adapter_config.json"
        if any((folder / name).exists() for name in names) or not adapter.exists():
            return self.model_name_or_path
        try:
            return str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{adapter} names no base model: {one_line(error)!r}; save the adapter again") from error

    def _from_pretrained(self, auto_class: Any, name: str | None = None, **kwargs: Any) -> Any:
        """auto_class.from_pretrained, its many-line complaints as one line that names the checkpoint."""
        try:
            return auto_class.from_pretrained(
                name or self.model_name_or_path, **{"trust_remote_code": self.trust_remote_code, **kwargs}
            )
        except Exception as error:  # what a broken file or a wrong keyword raises depends on the loader
            if is_out_of_memory(error):
                raise
            if "trust_remote_code" in str(error) and not self.trust_remote_code:
                raise ValueError(
                    f"model_path {self.model_name_or_path} comes with Python code of its own, which could do whatever "
                    "you can do on this machine; read it, then allow it with --trust_remote_code"
                ) from error
            kinds = (OSError, ImportError, RuntimeError)
            kind = next((kind for kind in kinds if isinstance(error, kind)), ValueError)
            advice = "give a directory with a Hugging Face vision-language checkpoint, or its name on the hub"
            # A file that is missing or broken raises OSError or an error of the reader's own; a wrong option, these.
            if kwargs and isinstance(error, (ImportError, RuntimeError, TypeError, ValueError)):
                processor = auto_class.__name__ == "AutoProcessor"
                options = "processor_kwargs" if processor else "device_map, dtype and model_kwargs"
                advice = f"check {options}, then the checkpoint's files"
            where = f"model_path {self.model_name_or_path}"
            raise kind(f"{where}: {auto_class.__name__} cannot load it ({one_line(error)}); {advice}") from error

    @property
    def num_layers(self) -> int:
        """Number of layers of the language model."""
        return self.config.get_text_config().num_hidden_layers

    @cached_property
    def model(self) -> Any:
        """The Hugging Face model, in evaluation mode, loaded at the first use."""
        import torch
        import transformers

        names = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM")
        classes = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
        written = getattr(self.config, "auto_map", {})  # by the checkpoint's own code
        fits = [c for c in classes if type(self.config) in c._model_mapping or c.__name__ in written]
        dtype = self.dtype
        if dtype == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            dtype = torch.float32  # half precision on a CPU is slow and, for some operations, missing
        started = time.perf_counter()
        places = {"distributed_config": {"tp_plan": self.tp_plan}} if self.tp_plan else {"device_map": self.device_map}
        options = {"dtype": dtype, **places, **self.model_kwargs}
        needed = 0 if "quantization_config" in options else weights_memory(self.model_name_or_path, self.config, dtype)
        ranks = int(os.environ.get("WORLD_SIZE", 1)) if self.tp_plan else 1
        check_weights(needed, options.get("device_map"), ranks)
        with out_of_memory_told(f"the weights take {gib(needed or None)}; take a smaller dtype or more devices"):
            model = self._from_pretrained((fits or classes)[0], **options)
        if self.tp_plan and not shared_heads(model):
            raise RuntimeError(
                f"transformers {transformers.__version__} did not share the model between the processes; tp_plan needs "
                "version 5.17 or newer"
            )
        parts = getattr(model, "hf_device_map", {"": model.device}).values()
        places = sorted({f"cuda:{place}" if isinstance(place, int) else str(place) for place in parts})
        facts = type(model).__name__, ", ".join(places), model.dtype, time.perf_counter() - started
        logger.info("loaded %s on %s as %s in %.1f s", *facts)
        return model.eval()

    def load_sample_data(
        self,
        benchmark_json: str | Path,
        image_dir: str | Path,
        sample_idx: int = 0,
        *,
        allow_absolute_paths: bool = False,
    ) -> tuple[dict, list[Image.Image]]:
        """Sample `sample_idx` of a dataset, and its pictures as RGB images. See `load_sample`."""
        paths = {"allow_absolute_paths": allow_absolute_paths}
        return load_sample(benchmark_json, image_dir, sample_idx, self.max_image_num, **paths)

    def resolve_layer(self, layer_idx: int) -> int:
        """The 0-based layer of a number that may be negative. Raises ValueError out of range, or without attention.

        The default layer alone gives way, where the model has no such layer or it does not look at pictures.
        """
        if isinstance(layer_idx, bool) or not isinstance(layer_idx, Integral):
            raise ValueError(f"layer_idx is {layer_idx!r}; expected a whole number")
        layer_idx, count, usable = int(layer_idx), self.num_layers, attention_layers(self.config)
        seeing = cross_layers(self.config) or usable
        if layer_idx == DEFAULT_LAYER and layer_idx not in seeing:
            nearest = min(seeing, key=lambda layer: abs(layer - layer_idx))
            which = "" if len(seeing) == count else f", of which {len(seeing)} show attention to pictures"
            logger.warning(
                "the model has %d layers%s; layer %d is shown in place of the default %d",
                count, which, nearest, layer_idx,
            )  # fmt: skip
            return nearest
        if not -count <= layer_idx < count:
            raise ValueError(
                f"layer_idx {layer_idx} is out of range: the model has {count} layers (0..{count - 1}, or {-count}..-1)"
            )
        if layer_idx % count not in usable:
            kind = layer_kinds(self.config)[layer_idx]
            raise ValueError(
                f"layer {layer_idx % count} is a {kind} layer without attention weights; take one of {usable}"
            )
        return layer_idx % count

    def record(
        self, sample: dict, images: Sequence[Image.Image], layers: Sequence[int] | str, **options: Any
    ) -> AttentionRecord:
        """Let the model answer a sample, and record the attention of some layers on the way.

        layers: 0-based, negative from the end; all of them cost one generation. "auto": one, see `choose_heads`.
        options: the fields of `RecordingOptions`.
        Raises ValueError for options that do not fit, RuntimeError when no attention could be recorded.
        """
        how, layers = RecordingOptions(**options), self._resolve_layers(layers)
        auto_layer = not layers
        problem = well_formed(_problem(sample, "the sample"))
        if self.tp_plan and (auto_layer or how.head == "auto"):
            raise ValueError(
                "auto compares the heads of a layer, which tp_plan shares out; name the layer and the head"
            )
        response, head, generation = how.given_response(sample), self._head(how), how.generation()
        originals = [upright_rgb(image) for image in images]
        with out_of_memory_told() as facts:
            inputs, located = self._inputs(problem, originals, how)
            given = self._response_ids(response) if response is not None else None
            steps, replay = how.max_new_tokens if given is None else len(given), given is not None
            eager = how.attention == "eager"
            facts.append(check_memory(self.model, inputs, steps, max(len(layers), 1), replay=replay, eager=eager))
            logger.info(facts[0])
            given = generate_fast(self.model, inputs, generation) if how.fast and given is None else given
            auto_heads: tuple[int, ...] = ()
            if auto_layer or head == "auto":
                given = given or generate_response(self.model, inputs, generation)[0]
                layers, auto_heads = self._choose(inputs, given, located, originals, layers, head == "auto")
            heads = auto_heads or (head,) * len(layers)
            rows = self._rows_of_each(inputs, layers, heads, generation, given, how.attention)
            record = self._as_record(inputs, located, layers, rows, originals, problem)
            record = replace(record, head=head, auto_layer=auto_layer, auto_heads=auto_heads)
            if how.neutral_prompt is not None:
                anyway = self._inputs(how.neutral_prompt, originals, replace(how, prompt_template="{Question}"))
                neutral = self._mean_weights(*anyway, layers, heads, rows.response_ids, how.attention)
                record = replace(record, neutral=neutral)
        self._warn_of_blind_layers(layers, located, inputs["input_ids"].shape[1] + len(rows.response_ids))
        return record

    def _head(self, how: RecordingOptions) -> str | int | tuple[int, ...]:
        """The reduction of the heads, which this model's layers can do. Raises ValueError."""
        return check_head(how.head, self.config.get_text_config().num_attention_heads)

    def _resolve_layers(self, layers: Iterable[int] | str) -> tuple[int, ...]:
        """The 0-based layers, each once; none for "auto". Raises ValueError."""
        layers = layers[0] if isinstance(layers, (list, tuple)) and [*layers] == ["auto"] else layers
        if isinstance(layers, str):
            if layers != "auto":
                raise ValueError(f"layer_idx is {layers!r}; expected a whole number or auto")
            return ()
        resolved = tuple(dict.fromkeys(self.resolve_layer(layer) for layer in layers))
        if not resolved:
            raise ValueError("no layer was given; expected one or more")
        return resolved

    def _choose(
        self, inputs: Any, given: list[int], located: Any, originals: list, layers: tuple[int, ...], choose_head: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The layers, or the one chosen where there are none, and the heads chosen for them, if any; logged."""
        regions = picture_regions(located, [image.size for image in originals])
        layer, heads = choose_heads(survey_heads(self.model, inputs, given, located, regions))
        if not layers:
            logger.log(NOTE, "auto: layer %d, whose heads agree most on what moves with the token", layer)
            layers = (layer,)
        if not choose_head:
            return layers, ()
        for number in layers:
            if number not in heads:
                raise ValueError(
                    f"no head of layer {number} sees pictures, for auto to choose; take one of {list(heads)}"
                )
            logger.log(NOTE, "auto: head %d of layer %d, which agrees most with the others", heads[number], number)
        return layers, tuple(heads[number] for number in layers)

    def _rows_of_each(
        self, inputs: Any, layers: tuple, heads: tuple, generation: dict, given: list[int] | None, attention: str
    ) -> RecordedRows:
        """The rows of each layer with heads of its own: by one pass where those are the same, else by a pass each."""
        if len(set(heads)) == 1:
            return self._rows(inputs, layers, heads[0], generation, given, attention)
        each = zip(layers, heads)
        found = [self._rows(inputs, (layer,), head, generation, given, attention) for layer, head in each]
        return replace(found[0], weights=np.concatenate([rows.weights for rows in found], axis=1))

    def _mean_weights(
        self, inputs: Any, located: list[ImageTokens], layers: tuple, heads: tuple, given: list[int], attention: str
    ) -> np.ndarray:
        """(L, N) float32, the mean weight of every image token while a given response is replayed."""
        rows = self._rows_of_each(inputs, layers, heads, {}, given, attention)
        record = self._as_record(inputs, located, layers, rows, [], "")
        return record.weights[:, :, record.image_positions].mean(axis=0, dtype=np.float32)

    def _response_ids(self, response: str) -> list[int]:
        """The tokens of a given response, without an end-of-sequence token at its end."""
        ids = list(self.processor.tokenizer(response, add_special_tokens=False)["input_ids"])
        while ids and ids[-1] in _end_ids(self.model):
            ids.pop()
        if not ids:
            raise ValueError(f"the given response is {response!r}; expected more than the end of a sequence")
        return ids

    def _inputs(
        self, problem: str, originals: list[Image.Image], how: RecordingOptions
    ) -> tuple[Any, list[ImageTokens]]:
        """The model's inputs on its device, and where the image tokens stand in the original pictures."""
        if not 1 <= len(originals) <= self.max_image_num:
            raise ValueError(f"{len(originals)} pictures were given; expected 1..{self.max_image_num} (max_image_num)")
        images = [shrink(image, how.max_pixels) for image in originals]
        inputs = build_inputs(self.processor, problem, images, how.prompt_template)
        if not (inputs["input_ids"] == image_token_id(self.config)).any():
            raise ValueError("the prompt holds no image token: the chat template or the tokenizer leaves pictures out")
        shapes = {key: tuple(value.shape) for key, value in inputs.items() if hasattr(value, "shape")}
        logger.debug("inputs: %s", shapes)
        located = [
            ImageTokens(tokens.positions, tokens.boxes * np.float32([a.width / b.width, a.height / b.height] * 2))
            for tokens, a, b in zip(locate_image_tokens(self.model, self.processor, inputs, images), originals, images)
        ]
        return inputs.to(input_device(self.model), dtype=self.model.dtype), located

    def _processed(self, problem: str, images: list[Image.Image], how: RecordingOptions) -> Any:
        """The model's inputs on its device."""
        images = [shrink(image, how.max_pixels) for image in images]
        inputs = build_inputs(self.processor, problem, images, how.prompt_template)
        return inputs.to(input_device(self.model), dtype=self.model.dtype)

    def _as_record(
        self, inputs: Any, located: list[ImageTokens], layers: tuple, rows: RecordedRows, originals: list, problem: str
    ) -> AttentionRecord:
        """Join what was recorded with the text and the pictures."""
        tokenizer, weights_TLS = self.processor.tokenizer, rows.weights
        token_ids = np.concatenate([inputs["input_ids"][0].cpu().numpy(), rows.response_ids]).astype(np.int64)
        tokens = decode_tokens(tokenizer, token_ids.tolist())
        if crossing := cross_layers(self.config):
            crosses_L = [layer in crossing for layer in layers]
            placed = insert_image_positions(token_ids, weights_TLS, located, crosses_L, rows.cross_keys)
            token_ids, weights_TLS, is_text = placed
            texts = iter(tokens)
            tokens = tuple(next(texts) if text else "" for text in is_text)
        P = len(token_ids) - len(rows.response_ids)
        ends, at = np.cumsum([0, *map(len, tokens[:P])]), "".join(tokens[:P]).rfind(problem)
        span = np.searchsorted(ends, [at, at + len(problem) - 1], side="right") - [1, 0]
        return AttentionRecord(
            tokens=tokens, token_ids=token_ids, prompt_length=P, problem=tuple(span.tolist()) if at >= 0 else None,
            layers=layers, weights=weights_TLS, images=tuple(located),
            special_ids=tuple(sorted(set(tokenizer.all_special_ids))), num_layers=self.num_layers,
            pictures=tuple(map(picture_file, originals)),
        )  # fmt: skip

    def check(
        self,
        record: AttentionRecord,
        sample: dict,
        images: Sequence[Image.Image],
        options: DrawingOptions | None = None,
        **recording: Any,
    ) -> AttentionRecord:
        """The record of a sample with a `Check` of the map of each of its layers, as drawn with these options.

        The hottest CHECK_PART of the cells is painted over in the pictures, in their mean colour, and, CHECK_DRAWS
        times, as many after the map was moved by a random distance; each time the same response is forced, and the
        log-probability of its answer compared: CHECK_DRAWS + 1 passes a layer, and one. A map that is the same
        everywhere gets no check. recording: as for `record`, so that the prompt is the same.
        Raises ValueError for another sample's record, or where the pictures painted over do not give the same tokens.
        """
        how = RecordingOptions(**recording)
        options, ids = options or DrawingOptions(), record.token_ids[record.prompt_length :].tolist()
        originals, problem = [upright_rgb(image) for image in images], _problem(sample, "the sample")
        whole = Phase("response", 0, record.response_length)
        part = next((phase for phase in response_phases(record) if phase.name == "answer"), whole)
        prompt = self._processed(problem, originals, how)
        own_ids, drawn = record.token_ids[: record.prompt_length], record.image_positions
        text_ids = np.delete(own_ids, drawn) if cross_layers(self.config) else own_ids
        if text_ids.tolist() != prompt["input_ids"][0].tolist():
            raise ValueError("the record is of another prompt; give its own sample, pictures and prompt_template")
        _pictures_of(record, originals)

        def log_probability(inputs: Any) -> float:
            return float(response_log_probabilities(self.model, inputs, ids, range(part.first, part.last)).mean())

        def fall(boxes: Sequence[np.ndarray]) -> float:
            inputs = self._processed(problem, hide_cells(originals, boxes), how)
            if inputs["input_ids"].tolist() != prompt["input_ids"].tolist():
                raise ValueError("the check cannot be made: the processor cuts the pictures by what they show")
            return plain - log_probability(inputs)

        checks = []
        with out_of_memory_told("lower max_pixels"):
            plain = log_probability(prompt)
            for layer in record.layers:
                cells = mean_cells(record, shown_rows(record, layer, *options.map))
                if np.ptp(np.concatenate([weights[np.isfinite(weights)] for _, weights in cells])) == 0:
                    logger.log(NOTE, "layer %d cannot be checked: its map is the same everywhere", layer)
                    continue
                random = tuple(fall(cells_to_hide(cells, seed)) for seed in range(CHECK_DRAWS))
                checks.append(Check(layer, view_names(*options.map), part.name, fall(cells_to_hide(cells)), random))
                logger.log(NOTE, "check of layer %d: %s", layer, checks[-1])
        return replace(record, checks=tuple(checks))

    def _warn_of_blind_layers(self, layers: Sequence[int], located: Sequence[ImageTokens], positions: int) -> None:
        """Say which layers cannot see the pictures, or not all of them."""
        crossing, kinds = cross_layers(self.config), layer_kinds(self.config)
        window = getattr(self.config.get_text_config(), "sliding_window", None)
        reach = positions - min(int(image.positions.min()) for image in located)
        for layer in layers:
            if crossing and layer not in crossing:
                logger.warning("layer %d does not look at pictures; layers %s do", layer, crossing)
            elif kinds[layer] == "sliding_attention" and reach > (window or reach):
                logger.warning(
                    "layer %d sees the last %d positions only: at the response's end not all of the picture, %d back",
                    layer, window, reach,
                )  # fmt: skip

    def _rows(self, inputs: Any, layers: tuple, head: Any, generation: dict, given: Any, attention: str) -> Any:
        """What `record_rows` returns or, where the model does not reach our function, `record_rows_eager`."""
        arguments = (self.model, inputs, layers, head, generation)
        if attention == "auto":
            recorded = record_rows(*arguments, given)
            if recorded is not None:
                return recorded
            logger.warning(
                "%s does not go through transformers' AttentionInterface: falling back to eager attention with "
                "output_attentions, which holds every layer's S×S weights and may run out of memory",
                type(self.model).__name__,
            )
            steps = generation["max_new_tokens"] if given is None else len(given)
            check_memory(self.model, inputs, steps, len(layers), replay=given is not None, eager=True)
        return record_rows_eager(*arguments, given)

    def create_attention_visualization_for_sample(
        self,
        sample: dict,
        images: Sequence[Image.Image],
        layer_idx: int | Sequence[int] | str = DEFAULT_LAYER,
        start_phrase: str = DEFAULT_START_PHRASE,
        *,
        output_dir: str | Path = ".",
        save_record: str | Path | None = None,
        check: bool = False,
        **options: Any,
    ) -> str | list[str]:
        """Answer a sample and write the video of one layer, or of several by one generation.

        layer_idx: a layer, a list of them, or "auto". start_phrase: where the text panel begins. output_dir: gets
        `combined_attention_visualization_layer{layer}.mp4`. save_record: an .npz to keep the record in.
        check: hide the hottest cells and see whether the answer suffers, see `check`.
        options: the fields of `RecordingOptions` and of `DrawingOptions`.
        Returns the path of the video; a list of paths when layer_idx is a list. The record stays in `last_record`.
        Raises ValueError, OSError or RuntimeError, with what to do; nothing half-written is left.
        """
        drawing, layers, options = self._planned(layer_idx, options)
        several = isinstance(layer_idx, Iterable) and not isinstance(layer_idx, str)
        check_output_dir(output_dir)
        if save_record:
            check_output_dir(Path(save_record).parent)
            if Path(save_record).is_dir():
                raise ValueError(f"save_record {save_record} is a folder; give the name of a file, such as run.npz")
        writes = not process_number(self.tp_plan)  # of processes that share a model, the first one does
        record = self.last_record = self.record(sample, images, layers, **options)
        logger.info("response: %s", one_line(record.response))
        if save_record and writes:
            record.save(save_record)
        if check:
            record = self.last_record = self.check(record, sample, images, drawing, **options)
        if check and save_record and writes:
            record.save(save_record)
        if writes:
            paths = write_layer_videos(record, images, record.layers, start_phrase, output_dir, drawing)
        else:
            paths = [str(video_path(output_dir, layer, drawing)) for layer in record.layers]
        return paths if several else paths[0]

    def _planned(
        self, layer_idx: int | Sequence[int] | str, options: dict
    ) -> tuple[DrawingOptions, tuple[int, ...] | str, dict]:
        """How to draw, which layers to record, or "auto", and how: what a view or a baseline asks for included."""
        drawing = DrawingOptions(**{key: options.pop(key) for key in options.keys() & DRAWING_OPTIONS})
        if drawing.view == "clear":
            default = isinstance(layer_idx, Integral) and layer_idx == DEFAULT_LAYER
            layer_idx = CLEAR_RECORDING["layer_idx"] if default else layer_idx
            options["head"] = CLEAR_RECORDING["head"] if options.get("head", "mean") == "mean" else options["head"]
        if drawing.baseline in ("neutral", "relative"):
            options["neutral_prompt"] = options.get("neutral_prompt") or NEUTRAL_PROMPT
        given = layer_idx if isinstance(layer_idx, Iterable) else [layer_idx]
        return drawing, self._resolve_layers(given) or "auto", options

    def visualize_dataset(
        self, benchmark_json: str | Path, image_dir: str | Path, sample_idx: int | str | Iterable[int] = "all",
        layer_idx: int | Sequence[int] | str = DEFAULT_LAYER, start_phrase: str = DEFAULT_START_PHRASE, *,
        output_dir: str | Path = ".", overwrite: bool = False, save_record: str | None = None, check: bool = False,
        allow_absolute_paths: bool = False, **options: Any,
    ) -> list[dict]:  # fmt: skip
        """Answer many samples of a dataset. The files of each go to `output_dir/sample_0003/`, a table tells of all.

        sample_idx: as in `select_samples`. overwrite: do samples again that an earlier run has finished; without it a
        run that was stopped goes on. save_record: a name, under which the record of each sample is kept in its folder.
        The rest is as in `create_attention_visualization_for_sample`. Under `accelerate launch` each process takes a
        part of the samples, and a card of its own.
        Returns their rows of `output_dir/samples.csv`: sample, id, response, answer, correct (1, 0, or None without an
        answer), image_share_{phase}_layer{layer} (0..1, mean over its steps), files, error (why it failed).
        Raises ValueError, OSError or RuntimeError for what no sample could succeed with.
        """
        drawing, layers, options = self._planned(layer_idx, options)
        settings = self._settings(layers, start_phrase, drawing, save_record, options) | {"check": check}
        samples, numbers = select_from_dataset(benchmark_json, image_dir, sample_idx)
        check_output_dir(output_dir)

        def settings_of(number: int) -> dict:
            return {**settings, "input": fingerprint(samples[number], Path(image_dir), allow_absolute_paths)}

        def answer(number: int, facts: dict) -> AttentionRecord:
            sample, where = samples[number], f"sample {number} of {benchmark_json}"
            facts |= {key: sample.get(key) for key in ("id", "answer")} if isinstance(sample, dict) else {}
            images = open_pictures_of(sample, image_dir, self.max_image_num, where, allow_absolute_paths)
            facts["settings"] = settings_of(number)
            record = self.last_record = self.record(sample, images, layers, **options)
            logger.info("%s", one_line(record.response))
            if check:
                self.last_record = self.check(record, sample, images, drawing, **options)
            return self.last_record

        own, is_first, wait_for_everyone = self._part(numbers)
        waiting = own if overwrite else unfinished_samples(output_dir, own, settings_of)
        if waiting:
            _ = self.model  # without it no sample could succeed
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        try:
            with BackgroundDrawing(start_phrase, drawing, save_record) as beside:
                writer = beside if is_first or not self.tp_plan else None
                run_samples(waiting, output_dir, answer, writer, None if overwrite or self.tp_plan else settings_of)
            wait_for_everyone()
        finally:
            if is_first:
                write_table(output_dir)
        wait_for_everyone()  # no process ends, and has the others ended, before the table is there
        return [table_row(sample_folder(output_dir, number)) for number in numbers]

    def _settings(
        self, layers: tuple | str, start_phrase: str, drawing: DrawingOptions, save_record: str | None, options: dict
    ) -> dict:
        """All that a sample's files depend on beside the sample, as JSON gives it back. Raises ValueError."""
        how = RecordingOptions(**options)
        self._head(how)
        if how.response is not None:
            raise ValueError("response is the answer to one sample; give response_key, the field that holds each one's")
        if save_record is not None and not re.fullmatch(r"[^/\\]+\.npz", str(save_record)):
            raise ValueError(f"save_record {save_record} is no name for each sample's folder; give one such as run.npz")
        find_encoder()
        path = Path(self.model_name_or_path)
        files = [(file.name, file.stat()) for file in sorted(path.glob("*")) if file.is_file()]
        model = {
            "model": str(path.resolve()) if path.is_dir() else str(path), "dtype": str(self.dtype),
            "checkpoint": [[name, facts.st_size, facts.st_mtime] for name, facts in files],
            "model_kwargs": self.model_kwargs, "processor_kwargs": self.processor_kwargs,
        }  # fmt: skip
        shown = {"layers": layers, "start_phrase": start_phrase, "save_record": save_record, **vars(drawing)}
        if callable(drawing.colormap):  # many functions have one name
            colours = np.asarray(drawing.colormap(np.linspace(0, 1, CELL_LEVELS)), np.float32)
            shown["colormap"] = hashlib.sha256(colours.tobytes()).hexdigest()
        return json.loads(json.dumps({**model, **vars(how), **shown}, default=str))

    def _part(self, numbers: list[int]) -> tuple[list[int], bool, Callable[[], None]]:
        """The samples of this process, whether it is the first, and a function that waits for the others.

        By accelerate's view of the processes, each of which gets a card of its own; of processes that share the
        model, each answers every sample.
        """
        import torch

        if self.tp_plan:
            wait = lambda: torch.distributed.is_initialized() and torch.distributed.barrier()  # noqa: E731
            return numbers, not process_number(self.tp_plan), wait
        from accelerate import PartialState

        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
        if state.num_processes > 1 and self.device_map == "auto":
            self.device_map = {"": state.device}
        with state.split_between_processes(numbers) as own:
            return list(own), state.is_main_process, state.wait_for_everyone


# ------------------------------------------------------------------------------------- command line


# Flags that have no meaning where a record is drawn, beside those of recording.
NOT_FOR_RECORDS = (
    "model_path", "save_record", "check", "overwrite", "tp_plan", "device_map", "dtype", "trust_remote_code",
    "model_kwargs", "processor_kwargs",
)  # fmt: skip
OF_DATASETS = ("sample_idx", "max_image_num", "allow_absolute_paths")  # no meaning where there is none


def _frame_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected WIDTHxHEIGHT, such as 1920x1080")
    return int(match[1]), int(match[2])


def _sample_idx(text: str) -> int | str:
    """The number of a single sample, or a selection as it stands."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _number_or(what: str, *words: str) -> Callable[[str], str | int]:
    """How a flag is read that takes one of some words or a number."""

    def read(text: str) -> str | int:
        try:
            return text if text in words else int(text)
        except ValueError:
            expected = ", ".join(words)
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}; expected {expected} or a number") from None

    return read


def _json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object; expected one such as {{"revision": "main"}}')
    return value


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line."""

    def error(self, message: str) -> Any:
        self.exit(2, f"error: {one_line(message)}; --help lists the flags\n")


def _add_drawing_flags(add: Callable) -> None:
    """The fields of `DrawingOptions`."""
    add("--fps", type=float, default=2, help="frames a second")
    add("--scale", choices=CHOICES["scale"], default="video", help="one colour scale for all frames, or one for each")
    add("--colormap", choices=tuple(COLORMAPS), default="red_to_green", help="colours of low to high weights")
    add("--draw_points", choices=CHOICES["draw_points"], default="auto", help="mark the places that the answer names")
    add("--text_style", choices=CHOICES["text_style"], default="tint", help="colour the text's ground or its glyphs")
    add(
        "--frame_size",
        type=_frame_size,
        default=DEFAULT_FRAME_SIZE,
        metavar="WxH",
        help="size in even pixels; in a tall frame the pictures stand above the text",
    )
    add("--format", choices=CHOICES["format"], default="mp4", help="of the video")
    add("--frames", type=int, nargs="*", default=(), help="steps whose frames are also written as PNG, from 0")
    add("--summary", action="store_true", help="also write one PNG: the response, word maps, mean maps of the phases")
    add("--view", choices=CHOICES["view"], default="plain", help="clear: layer and head auto, baseline median, sinks")
    add("--baseline", choices=CHOICES["baseline"], default="off", help="take off what every cell gets anyway")
    add("--sinks", action="store_true", help="hatch cells that glow at nearly all steps, and leave them out")
    add("--smooth", type=float, default=0, help="width of a Gaussian over the map, in cells")
    add("--font_path", help="font of the text, a .ttf, .otf or .ttc file")


def build_parser() -> argparse.ArgumentParser:
    """The command line: every flag is a keyword of `AttentionVisualizer` or of its methods, by name and default."""
    parser = _OneLineParser(
        prog="visualizeHeatMap.py",
        description="Video of what a vision-language model looks at while it answers: a frame a generated token.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required, add = parser.add_argument_group("required"), parser.add_argument
    layer, head = _number_or("layer", "auto"), _number_or("head", "mean", "max", "auto")
    required.add_argument(
        "--model_path", help="Hugging Face checkpoint: a directory, or a name on the hub; not with --from_record"
    )
    required.add_argument("--benchmark_json", help="dataset: a JSON list of {image, problem, ...}")
    required.add_argument("--image_dir", help="folder that the pictures' paths start in; --from_record needs neither")
    add("--sample_idx", type=_sample_idx, default=0, help="which sample, from 0; or several: 0-99, or 0,5,9, or all")
    add("--layer_idx", type=layer, nargs="+", default=[DEFAULT_LAYER], help="layer(s), from 0, or auto; -1: the last")
    add("--start_phrase", default=DEFAULT_START_PHRASE, help="where the text panel begins")
    add("--max_image_num", type=int, default=2, help="the most pictures that a sample may have")
    add("--prompt_template", default=DEFAULT_PROMPT_TEMPLATE, help="{Question} is replaced by the problem")
    add("--max_new_tokens", type=int, default=DEFAULT_MAX_NEW_TOKENS, help="the most tokens to generate")
    add("--do_sample", action="store_true", help="sample instead of taking the likeliest token")
    add("--temperature", type=float, default=1.0, help="of sampling")
    add("--top_p", type=float, default=1.0, help="of sampling")
    add("--seed", type=int, default=0, help="of sampling")
    add("--response", help="an answer already known: its attention is shown, nothing is generated")
    add("--response_key", help="the same, from this field of the sample, such as solution")
    add("--head", type=head, nargs="+", default="mean", help="mean or max over the heads, one or several, or auto")
    add("--neutral_prompt", metavar="TEXT", help="replay the answer after this text, too, for --baseline neutral")
    add("--check", action="store_true", help="hide the hottest cells, then random ones: does the answer suffer?")
    add("--attention", choices=("auto", "eager"), default="auto", help="how to record; eager needs far more memory")
    add("--fast", action="store_true", help="compiled generation, then one recording pass: for long answers on a GPU")
    add("--max_pixels", type=int, help="shrink pictures of more pixels first, for a smaller memory")
    add("--output_dir", default=".", help="folder of the video")
    add("--overwrite", action="store_true", help="with several samples: do those again that are finished")
    add("--save_record", metavar="NPZ", help="keep the record behind the video in this file")
    add("--from_record", metavar="NPZ", help="draw a kept record again: no model, no torch, nothing generated")
    _add_drawing_flags(add)
    add("--device_map", default="auto", help="as in from_pretrained: auto, cpu, cuda:0, ...")
    add("--dtype", default="auto", help="as in from_pretrained: auto, float32, bfloat16, ...")
    add("--tp_plan", choices=("auto",), help="under torchrun: its processes share every layer, in place of device_map")
    add("--allow_absolute_paths", action="store_true", help="let the dataset name pictures outside image_dir")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the checkpoint")
    add("--model_kwargs", type=_json_object, metavar="JSON", help="more for the model's from_pretrained, as an object")
    add("--processor_kwargs", type=_json_object, metavar="JSON", help="more for the processor's from_pretrained")
    add("--verbose", action="store_true", help="say what is loaded, how large it is and how long it takes")
    return parser


def _keywords(function: Callable, arguments: dict) -> dict:
    """Those of the arguments that a function names as keywords of its own."""
    named = inspect.signature(function).parameters.values()
    return {p.name: arguments[p.name] for p in named if p.kind is p.KEYWORD_ONLY and p.name in arguments}


def run_command(arguments: dict) -> str | list[str]:
    """One command line, from its arguments to the video's path."""
    layers, start_phrase, output_dir = (arguments[key] for key in ("layer_idx", "start_phrase", "output_dir"))
    if "auto" in layers and len(layers) > 1:
        raise ValueError(f"layer_idx is {layers}; expected numbers, or auto alone")
    if isinstance(arguments["head"], list) and len(arguments["head"]) == 1:
        arguments["head"] = arguments["head"][0]
    drawing = {key: arguments[key] for key in DRAWING_OPTIONS}
    options = DrawingOptions(**drawing)
    check_output_dir(output_dir)
    sample, images, several = None, None, not isinstance(arguments["sample_idx"], int)
    if arguments["overwrite"] and not several:
        logger.warning("overwrite changes nothing for one sample, whose files are always written anew; leave it out")
    if arguments["benchmark_json"] and not several:
        dataset = ("benchmark_json", "image_dir", "sample_idx", "max_image_num")
        sample, images = load_sample(*(arguments[key] for key in dataset), **_keywords(load_sample, arguments))
    elif arguments["benchmark_json"]:
        select_from_dataset(arguments["benchmark_json"], arguments["image_dir"], arguments["sample_idx"])
    if arguments["from_record"]:
        record = AttentionRecord.load(arguments["from_record"])
        images = _pictures_of(record, images)
        if layers == ["auto"] and not record.auto_layer:
            raise ValueError(f"layer_idx auto: the record's layers {list(record.layers)} were named; name one of them")
        if options.view == "clear" and record.head != "auto":
            logger.log(NOTE, "view clear: layers %s, head %s as recorded; auto chooses while recording only",
                       list(record.layers), record.head)  # fmt: skip
        default = layers == ["auto"] or (layers == [DEFAULT_LAYER] and DEFAULT_LAYER not in record.layers)
        shown = record.layers if default else dict.fromkeys(map(record.layer_number, layers))
        return write_layer_videos(record, images, list(shown), start_phrase, output_dir, options)
    visualizer = AttentionVisualizer(
        arguments["model_path"], arguments["max_image_num"], **_keywords(AttentionVisualizer.__init__, arguments)
    )
    create = visualizer.visualize_dataset if several else visualizer.create_attention_visualization_for_sample
    keywords = {**_keywords(create, arguments), **{key: arguments[key] for key in RECORDING_OPTIONS}, **drawing}
    layer_idx = layers if len(layers) > 1 else layers[0]
    if several:
        dataset = (arguments[key] for key in ("benchmark_json", "image_dir", "sample_idx"))
        return report_samples(create(*dataset, layer_idx, start_phrase, **keywords), output_dir)
    return create(sample, images, layer_idx, start_phrase, **keywords)


class SamplesFailed(RuntimeError):
    """Some samples of a dataset failed, the rest is done."""


def report_samples(rows: list[dict], output_dir: str | Path) -> str:
    """The path of the table. Raises SamplesFailed with a list of the samples that failed."""
    table = Path(output_dir) / TABLE_NAME
    failed = [str(row["sample"]) for row in rows if row["error"]]
    if failed:
        shown = ", ".join(failed[:FAILURES_NAMED]) + ", ..." * (len(failed) > FAILURES_NAMED)
        raise SamplesFailed(f"{len(failed)} of {len(rows)} samples failed: {shown}; {table} says why")
    return str(table)


def check_flags(parser: argparse.ArgumentParser, arguments: dict) -> None:
    """Let the parser tell of flags that are missing, or that do not go together."""
    needed = ["model_path", "benchmark_json", "image_dir"]
    if arguments["from_record"]:  # it keeps its pictures
        needed = needed[1:] if arguments["benchmark_json"] or arguments["image_dir"] else []
        recording = [*RECORDING_OPTIONS, *NOT_FOR_RECORDS]
        if not isinstance(arguments["sample_idx"], int):
            parser.error("--sample_idx takes one number with --from_record")
        for name in (name for name in recording if arguments.get(name) != parser.get_default(name)):
            parser.error(f"--{name} does not go with --from_record, which only draws what was recorded")
        for name in (name for name in OF_DATASETS if not needed and arguments[name] != parser.get_default(name)):
            parser.error(f"--{name} tells of a dataset, and none was given; leave it out, or give --benchmark_json")
    for name in needed:
        if not arguments[name]:
            parser.error(f"--{name} is required; only --from_record, to draw a record again, does without")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry: prints the path of each video, or of a dataset's table.

    Returns 0; with one line on stderr, 1 where samples of a dataset failed, 2 when something is wrong, 128 + the
    number of the signal that stopped it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every character
    parser = build_parser()
    arguments = vars(parser.parse_args(argv))
    check_flags(parser, arguments)
    level, number = logging.DEBUG if arguments.pop("verbose") else NOTE, process_number(arguments["tp_plan"])
    # Of processes that share out a dataset, too, the first one tells the end.
    first = not (number if isinstance(arguments["sample_idx"], int) else int(os.environ.get("RANK", 0)))
    if number:  # the first process speaks for all
        level, os.environ["TQDM_DISABLE"], os.environ["TRANSFORMERS_VERBOSITY"] = logging.ERROR, "1", "error"
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    logging.getLogger("PIL").setLevel(logging.INFO)
    try:
        with stoppable(deaf_after=argv is None):
            paths = run_command(arguments)
    except KeyboardInterrupt as stop:
        signalled = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
        after = "no file is half-written, and the same command goes on with a dataset"
        print(f"error: stopped by {signalled.name}; {after}", file=sys.stderr)
        return 128 + signalled
    except (ValueError, RuntimeError, OSError, ImportError, MemoryError) as error:
        if number:  # where the first process met the same error, its launcher ends this one before it speaks
            time.sleep(LATER_PROCESS_WAITS)
        failed = isinstance(error, SamplesFailed)
        if failed and not first:
            return 0
        print(f"error: {f'process {number}: ' if number else ''}{one_line(error)}", file=sys.stderr)
        return 1 if failed else 2
    if first:
        print("\n".join(map(visible, [paths] if isinstance(paths, str) else paths)))
    if arguments["tp_plan"]:
        import torch.distributed

        if torch.distributed.is_initialized():  # not where every sample was finished already
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
