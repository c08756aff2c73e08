"""The record: the attention behind one response, made by `recording/`, read by everything below it."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from attention_heatmap.log import one_line
from attention_heatmap.options import are_whole, expand
from attention_heatmap.showing import Showing

LARGEST_FLOAT32_RECORD = 2**28  # bytes; larger ones are float16, whose error of 0.05% is below a colour's step
_LARGEST_PIXELS = 2**28  # of all pictures of a record
_PICTURE_BYTES = 2**20  # a record keeps a picture whose PNG is larger as a JPEG
# The check hides this part of the cells; 19 random draws, so that chance beats all of them 1 time in 20.
CHECK_PART, CHECK_DRAWS, _CHECK_MATTERS = 0.2, 19, 1.05
_CHECK_UNCLEAR = 15  # draws beaten, at least, for a map that may still point: chance does it 1 time in 4

Head = str | int | tuple[int, ...]
"""How the heads of a layer are reduced: "mean", "max", the number of one, or several, whose mean is taken."""


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """Where the tokens of one picture stand, in the prompt and in the picture."""

    positions: np.ndarray
    """(M,) int64, position of each image token in the prompt."""
    boxes: np.ndarray
    """(M, 4) float32, left, top, right, bottom of each token's cell in pixels of the original picture;
    NaN where a token has no place in it."""

    def __post_init__(self) -> None:
        if self.boxes.shape != (expected := (len(self.positions), 4)):
            raise ValueError(f"boxes has shape {self.boxes.shape}; expected {expected}: one box an image token")


@dataclass(frozen=True)
class Check:
    """What hiding cells did to a given response: whether a map points at what the answer needs.

    The deletion test of Petsiuk et al. 2018 (RISE, arXiv 1806.07421) at one level, against random draws.
    """

    plane: int
    view: str
    """Which map of that plane, in the words of `view_names`; "" for the plain weights."""
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
        if not self.matters or _CHECK_UNCLEAR <= beaten < len(self.random):
            return None
        return beaten == len(self.random)

    @property
    def matters(self) -> bool:
        """Whether hiding any cells made the answer less likely by more than a trifle."""
        return max(self.hottest, *self.random) >= math.log(_CHECK_MATTERS)

    def __str__(self) -> str:
        falls = self.hottest, np.mean(self.random), min(self.random), max(self.random)
        hottest, mean, low, high = (f"{times:.2f}" if times < 10 else f"{times:.3g}" for times in np.exp(falls))
        unclear = "more than most random draws, not all: unclear, check more answers"
        meaning = {
            True: "the map points at what it needs",
            False: "no better than random: do not trust this map",
            None: unclear if self.matters else "the pictures hardly matter to it here, so this says nothing of the map",
        }[self.points]
        return (
            f"hiding the hottest {CHECK_PART:.0%} of the cells made the {self.part} {hottest} times as unlikely per "
            f"token, as many elsewhere {mean} times ({low} to {high} in {len(self.random)} draws): {meaning}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class AttentionRecord(Showing):
    """The attention behind one response: everything that a video is drawn from, and no model.

    A plane is a layer with its heads reduced, or with one of its heads.
    """

    tokens: tuple[str, ...]
    """(S,) display text of every position; joined, they are the decoded text. A character made of
    several tokens stands in the last of them, the others are empty."""
    token_ids: np.ndarray
    """(S,) int64, the prompt's tokens, then the response's (without a trailing end-of-sequence token)."""
    prompt_length: int
    """P; the response has T = S - P tokens."""
    layers: tuple[int, ...]
    """(N,) the 0-based layer of each plane, in the order of `weights`."""
    weights: np.ndarray
    """(T, N, S) float32; float16 in a record of over LARGEST_FLOAT32_RECORD bytes. Row t: attention of the query
    that produced response token t (at position P - 1 + t), heads reduced; columns from P + t on are 0. But for the
    maximum of the heads a row sums to 1."""
    images: tuple[ImageTokens, ...]
    """One entry a picture, in the order of the prompt."""
    heads: tuple[Head, ...] = ()
    """(N,) how the heads of each plane were reduced; by default the mean of all."""
    special_ids: tuple[int, ...] = ()
    """Ids of the tokenizer's special tokens, which the text panel shows discreetly."""
    num_layers: int | None = None
    """Number of layers of the model, for the legend."""
    problem: tuple[int, int] | None = None
    """First position of the problem in the prompt and the one after its last; None: it is all of the prompt."""
    pictures: tuple[bytes, ...] = ()
    """The pictures as PNG or JPEG files, so that the record can be drawn by itself; empty: they are not kept."""
    auto_layer: bool = False
    """Whether the layer was chosen by `choose_heads`."""
    auto_head: bool = False
    """Whether the head of each layer was chosen by `choose_heads`."""
    neutral: np.ndarray | None = None
    """(N, M) float32, the mean weight of every image token, picture after picture, while the same response was
    replayed after a neutral prompt; None: it was not asked for."""
    model: str = ""
    """What the checkpoint is called, for the legend of a comparison."""
    checks: tuple[Check, ...] = ()
    """What hiding cells did to the answer, where that was asked for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", self.heads or ("mean",) * len(self.layers))
        _check_shapes(self)

    def __repr__(self) -> str:
        planes = ", ".join([*map(self.plane_name, range(len(self.layers)))][:3] + ["..."] * (len(self.layers) > 3))
        return (
            f"AttentionRecord({self.response_length} response tokens after {self.prompt_length} of the prompt, "
            f"{len(self.images)} picture(s) of {len(self.image_positions)} image tokens, {len(self.layers)} plane(s): "
            f"{planes})"
        )

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
        """(M,) int, the positions of the image tokens, picture after picture."""
        return np.concatenate([np.zeros(0, int), *(image.positions for image in self.images)])

    def plane(self, layer: int | None = None, head: Head | None = None) -> int:
        """The number of the plane of a layer, and of a head where it has several; by default the last layer's first.

        layer: 0-based; negative ones count from the model's end. Raises ValueError where it was not recorded.
        """
        return self.select(self.layers[-1] if layer is None else layer, None if head is None else [head])[0]

    def select(self, layers: Any = None, heads: Any = None) -> list[int]:
        """The numbers of the planes of some layers and heads, in the record's order; None: of all.

        layers, heads: a number, "all" or "each", a range such as "0-7", or several of these. Raises ValueError where
        one that is named was not recorded.
        """
        from_end = [layer - self.num_layers for layer in self.layers] if self.num_layers else self.layers
        found = []
        for name, given, every, others in (
            ("layer", layers, self.layers, from_end), ("head", heads, self.heads, self.heads)
        ):  # fmt: skip
            wanted = expand(given, name) if given is not None else ["all"]
            wanted = list(every) if set(wanted) & {"all", "each"} else wanted
            missing = [one for one in wanted if one not in every and one not in others]
            if missing:
                held = sorted(set(every), key=str)
                raise ValueError(f"{name} {missing[0]} was not recorded; the record holds {held}")
            found.append([own in wanted or other in wanted for own, other in zip(every, others)])
        return [plane for plane, (layer, head) in enumerate(zip(*found)) if layer and head]

    def plane_name(self, plane: int) -> str:
        """A plane in words, such as "layer 7, head 2"."""
        head = self.heads[plane]
        one = f"mean of heads {', '.join(map(str, head))}" if isinstance(head, tuple) else f"head {head}"
        names = {"mean": "mean of the heads", "max": "maximum of the heads"}
        return f"layer {self.layers[plane]}, {names.get(head, one)}"

    def plane_key(self, plane: int) -> str:
        """A plane in the names of files and columns: "layer7", with its head where the layer has several planes."""
        layer, head = self.layers[plane], self.heads[plane]
        name = "+".join(map(str, head)) if isinstance(head, tuple) else head
        return f"layer{layer}" + f"_head{name}" * (self.layers.count(layer) > 1)

    def rows(self, plane: int) -> np.ndarray:
        """(T, S) float32 rows of a plane."""
        return self.weights[:, plane].astype(np.float32, copy=False)

    def open_pictures(self) -> list[Image.Image]:
        """The pictures that the record keeps, as RGB images. Raises ValueError where it keeps none, or no picture."""
        if len(self.pictures) < len(self.images):
            raise ValueError("the record keeps no pictures; give benchmark_json and image_dir (in Python: images)")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # counted below, all together
                files = [Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) for data in self.pictures]
            if (pixels := sum(math.prod(file.size) for file in files)) > _LARGEST_PIXELS:
                raise ValueError(f"its pictures have {pixels} pixels, more than {_LARGEST_PIXELS}")
            return [file.convert("RGB") for file in files]
        except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, OSError) as error:
            raise ValueError(f"the record has a picture that cannot be read: {one_line(error)}") from error

    def step_of(self, number: int) -> int:
        """The step, from 0, of a response token's number, from 1 as in every frame; -1: the last. Raises ValueError."""
        if not are_whole([number]):
            raise ValueError(f"token {one_line(repr(number))} is not there; expected a token's number, from 1")
        step = number - 1 if number > 0 else number + self.response_length
        if number == 0 or not 0 <= step < self.response_length:
            raise ValueError(f"token {number} is not there; expected 1 to {self.response_length}, or -1 for the last")
        return step

    def save(self, path: str | Path) -> None:
        """Write the record as one safetensors file, whole or not at all. Raises OSError."""
        from attention_heatmap.record_file import write_record

        write_record(self, path)

    @classmethod
    def load(cls, path: str | Path, layers: Iterable[int] | None = None) -> AttentionRecord:
        """Read a record that `save` wrote; nothing in it is run. layers: only the planes of these are read.

        Raises OSError, or ValueError for any other file.
        """
        from attention_heatmap.record_file import read_record

        return read_record(path, layers)


def _check_shapes(record: AttentionRecord) -> None:
    """Raises ValueError where the parts of a record do not fit each other."""
    S, T, N, M = len(record.tokens), record.response_length, len(record.layers), len(record.image_positions)
    pictures = len(record.images) if record.pictures else 0
    counts = {"token_ids": (S, "tokens"), "heads": (N, "planes"), "pictures": (pictures, "images, or 0")}
    for name, (expected, of) in counts.items():
        if (count := len(getattr(record, name))) != expected:
            raise ValueError(f"{name} has {count} entries; expected {expected}, the number of {of}")
    if not 0 < record.prompt_length <= S:
        raise ValueError(f"prompt_length is {record.prompt_length}; expected 1..{S}, the number of tokens")
    weights = "weights", record.weights, (T, N, S), "response tokens, planes, positions"
    for name, array, expected, axes in (weights, ("neutral", record.neutral, (N, M), "planes, image tokens")):
        if array is not None and array.shape != expected:
            raise ValueError(f"{name} has shape {array.shape}; expected {expected}: {axes}")
    for number, image in enumerate(record.images, start=1):
        if len(image.positions) and not 0 <= image.positions.min() <= image.positions.max() < S:
            raise ValueError(f"image {number} has tokens outside the {S} positions of the record")


def picture_file(image: Image.Image) -> bytes:
    """The picture as a PNG file, or as a JPEG where that would be too large for a record."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG")
    if png.tell() > _PICTURE_BYTES:
        image.save(jpeg, "JPEG", quality=92)
    return jpeg.getvalue() or png.getvalue()


def check_pictures(record: AttentionRecord, given: Sequence[Image.Image] | None) -> list[Image.Image]:
    """The pictures of a record. Raises ValueError when others were given, told by their size and coarse colours."""
    if not record.pictures:
        return list(given) if given else record.open_pictures()
    own = record.open_pictures()
    for number, (kept, other) in enumerate(zip(own, given or own), start=1):
        small = [np.asarray(image.resize((16, 16)), float) for image in (kept, other)]
        if len(own) != len(given or own) or kept.size != other.size or np.abs(small[0] - small[1]).max() > 32:
            raise ValueError(
                f"picture {number} of the sample is not the record's; check --sample_idx, or leave the dataset out"
            )
    return own
