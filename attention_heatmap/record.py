"""The record: the attention behind one response, made by `recording/`, read by everything below it."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from attention_heatmap.files import moved_into_place
from attention_heatmap.log import one_line
from attention_heatmap.options import expand

DEFAULT_START_PHRASE = "Based on the following requirements"
LARGEST_FLOAT32_RECORD = 2**28  # bytes; larger ones are float16, whose error of 0.05% is below a colour's step
_FORMAT = 2  # version written into every file
_PICTURE_BYTES = 2**20  # a record keeps a picture whose PNG is larger as a JPEG
# In a record that is read: number of a head, nats a token, a weight that was rounded, pixels along a picture and in
# all of them, characters of a token.
_LARGEST_HEAD, _LARGEST_FALL, _LARGEST_WEIGHT = 2**16, 700, 1.01
_LARGEST_SIDE, _LARGEST_PIXELS, _LARGEST_TOKEN = 2**20, 2**28, 2**16
# The check hides this part of the cells; 19 random draws, so that chance beats all of them 1 time in 20.
CHECK_PART, CHECK_DRAWS, CHECK_MATTERS = 0.2, 19, 1.05
CHECK_UNCLEAR = 15  # draws beaten, at least, for a map that may still point: chance does it 1 time in 4

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
        if self.boxes.shape != (len(self.positions), 4):
            raise ValueError(
                f"boxes has shape {self.boxes.shape}; expected ({len(self.positions)}, 4): one box an image token"
            )


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


@dataclass(frozen=True, eq=False, repr=False)
class AttentionRecord:
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
    checks: tuple[Check, ...] = ()
    """What hiding cells did to the answer, where that was asked for."""

    def __post_init__(self) -> None:
        S, T, N = len(self.tokens), self.response_length, len(self.layers)
        object.__setattr__(self, "heads", self.heads or ("mean",) * N)
        if len(self.token_ids) != S:
            raise ValueError(f"token_ids has {len(self.token_ids)} entries; expected {S}, one for each of tokens")
        if not 0 < self.prompt_length <= S:
            raise ValueError(f"prompt_length is {self.prompt_length}; expected 1..{S}, the number of tokens")
        if self.weights.shape != (T, N, S):
            raise ValueError(
                f"weights has shape {self.weights.shape}; expected {(T, N, S)}: response tokens, planes, positions"
            )
        if len(self.pictures) not in (0, len(self.images)):
            raise ValueError(
                f"pictures has {len(self.pictures)} entries; expected {len(self.images)}, one an image, or 0"
            )
        if len(self.heads) != N:
            raise ValueError(f"heads has {len(self.heads)} entries; expected {N}, one a plane")
        tokens = len(self.image_positions)
        if self.neutral is not None and self.neutral.shape != (N, tokens):
            raise ValueError(f"neutral has shape {self.neutral.shape}; expected {(N, tokens)}: planes, image tokens")
        for number, image in enumerate(self.images, start=1):
            if len(image.positions) and not 0 <= image.positions.min() <= image.positions.max() < S:
                raise ValueError(f"image {number} has tokens outside the {S} positions of the record")

    def __repr__(self) -> str:
        planes = ", ".join(map(self.plane_name, range(min(len(self.layers), 3)))) + ", ..." * (len(self.layers) > 3)
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
        names = {"mean": "mean of the heads", "max": "maximum of the heads"}
        if isinstance(head, tuple):
            return f"layer {self.layers[plane]}, mean of heads {', '.join(map(str, head))}"
        return f"layer {self.layers[plane]}, {names.get(head, f'head {head}')}"

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

    # Here alone does a room use one below it, inside the methods, so that a record can show itself.
    def show(
        self,
        step: int,
        layer: int | None = None,
        start_phrase: str = DEFAULT_START_PHRASE,
        *,
        head: Head | None = None,
        **options: Any,
    ) -> Image.Image:
        """The frame of one step as a PIL image, of the last recorded layer by default. options: `DrawingOptions`."""
        from attention_heatmap.drawing.frame import FrameRenderer
        from attention_heatmap.drawing.options import drawing_options

        plane = self.plane(layer, head)
        renderer = FrameRenderer(self, self.open_pictures(), plane, start_phrase, drawing_options(options))
        return Image.fromarray(renderer.draw(renderer.check_step(step)))

    def page(
        self, path: str | Path, start_phrase: str = DEFAULT_START_PHRASE, *, other: AttentionRecord | None = None,
        names: Sequence[str] = (), **options: Any,
    ) -> Path:  # fmt: skip
        """Write one HTML file to explore the record in a browser; returns its path. options: `DrawingOptions`.

        other: a second record of the same tokens, to compare with; names: of the two.
        """
        from attention_heatmap.drawing.options import drawing_options
        from attention_heatmap.drawing.page import write_page

        records = [self] if other is None else [self, other]
        return write_page(records, path, start_phrase, drawing_options(options), names=names)

    def _repr_html_(self) -> str:
        """What a notebook shows of a record: its page, or its summary where the page would be heavy."""
        from attention_heatmap.drawing.page import notebook_html

        return notebook_html(self)

    def save(self, path: str | Path) -> None:
        """Write the record as one safetensors file, whole or not at all. Raises OSError."""
        from safetensors.numpy import save_file

        facts = {name: getattr(self, name) for name in _PLAIN_FIELDS} | {
            "format": _FORMAT, "images": len(self.images), "pictures": len(self.pictures),
            "checks": [asdict(check) for check in self.checks],
        }  # fmt: skip
        arrays = {"token_ids": self.token_ids, "weights": np.ascontiguousarray(self.weights)}
        for number, image in enumerate(self.images):
            arrays |= {f"positions_{number}": image.positions, f"boxes_{number}": image.boxes}
        arrays |= {f"picture_{number}": np.frombuffer(data, np.uint8) for number, data in enumerate(self.pictures)}
        arrays |= {} if self.neutral is None else {"neutral": self.neutral}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with moved_into_place(Path(path)) as temporary:
            save_file(arrays, temporary, {"facts": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path, layers: Iterable[int] | None = None) -> AttentionRecord:
        """Read a record that `save` wrote; nothing in it is run. layers: only the planes of these are read.

        Raises OSError, or ValueError for any other file.
        """
        try:
            if Path(path).exists() and not Path(path).is_file():
                raise ValueError("it is a folder, a device or a pipe")  # reading one may never end
            return _read(cls, path, layers)
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise type(error)(
                f"the record {path} cannot be read: {reason}; give a file that --save_record or save() wrote"
            ) from error
        except Exception as error:  # whatever a broken or hostile file leads to
            raise ValueError(f"{path} is no attention record: {one_line(error)}; make one with save()") from error


# The fields of a record that are texts and numbers: they stand in its file as JSON.
_PLAIN_FIELDS = [
    field.name for field in fields(AttentionRecord)
    if field.name not in ("token_ids", "weights", "images", "pictures", "neutral", "checks")
]  # fmt: skip


def _read(cls: type[AttentionRecord], path: str | Path, layers: Iterable[int] | None) -> AttentionRecord:
    """The record in a file; raises whatever a broken one leads to."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as data:
        facts = json.loads((data.metadata() or {}).get("facts") or "{}")
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise ValueError(f"its format is {facts.get('format')!r}, this version reads {_FORMAT}")
        plain = {name: facts[name] for name in _PLAIN_FIELDS if name in facts}
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        plain["heads"] = tuple(tuple(head) if isinstance(head, list) else head for head in plain["heads"])
        kept = range(len(plain["layers"]))
        if layers is not None:
            wanted = set(layers)
            kept = [n for n in kept if plain["layers"][n] in wanted]
            plain |= {name: tuple(plain[name][n] for n in kept) for name in ("layers", "heads")}
        if not kept:
            raise ValueError(f"it holds none of the layers {sorted(wanted) if layers is not None else []}")
        neutral = data.get_tensor("neutral")[list(kept)] if "neutral" in data.keys() else None  # noqa: SIM118
        weights = data.get_slice("weights")
        record = cls(
            token_ids=data.get_tensor("token_ids"),
            weights=weights[:] if layers is None else np.stack([weights[:, n] for n in kept], axis=1),
            images=tuple(
                ImageTokens(data.get_tensor(f"positions_{n}"), data.get_tensor(f"boxes_{n}"))
                for n in range(facts["images"])
            ),
            pictures=tuple(data.get_tensor(f"picture_{n}").tobytes() for n in range(facts["pictures"])),
            neutral=neutral,
            checks=tuple(
                Check(**{**check, "plane": list(kept).index(check["plane"]), "random": tuple(check["random"])})
                for check in facts["checks"] if check["plane"] in kept
            ),
            **plain,
        )  # fmt: skip
    _check_values(record)
    if record.pictures:
        record.open_pictures()
    return record


def _check_values(record: AttentionRecord) -> None:
    """Raises ValueError where a record that was read holds what no recording gives."""
    P, numbered = record.prompt_length, [head for head in record.heads if head not in ("mean", "max")]
    heads = [one for head in numbered for one in (head if isinstance(head, tuple) and head else (head,))]
    numbers = [P, *record.layers, *record.special_ids, *heads, *(record.problem or (0, 1))]
    falls = [fall for check in record.checks for fall in (check.hottest, *check.random)]
    extra = np.concatenate([np.zeros(1), np.ravel(0 if record.neutral is None else record.neutral)])
    boxes = np.concatenate([np.zeros((1, 4)), *(image.boxes for image in record.images)])
    low, high = record.weights.min(initial=0), record.weights.max(initial=0)
    arrays = [record.token_ids, *(image.positions for image in record.images)]
    rules = {
        "tokens must be texts": type(record.tokens) is tuple and all(isinstance(token, str) for token in record.tokens)
        and max(map(len, record.tokens)) <= _LARGEST_TOKEN,
        "lengths, layers, heads and ids must be whole numbers": all(type(number) is int for number in numbers),
        "layers must be layers of the model, each plane a different one": 0
        < len(set(zip(record.layers, record.heads))) == len(record.layers)
        and type(record.num_layers or 0) is int
        and 0 <= min(record.layers) <= max(record.layers) < (record.num_layers or math.inf),
        "heads must be mean, max or numbers": all(abs(head) < _LARGEST_HEAD for head in heads),
        "auto_layer and auto_head must be true or false": type(record.auto_layer) is type(record.auto_head) is bool,
        "the problem must lie in the prompt": record.problem is None
        or (len(record.problem) == 2 and 0 <= record.problem[0] <= record.problem[1] <= P),
        "ids and positions must be rows of whole numbers": all(a.ndim == 1 and a.dtype.kind == "i" for a in arrays),
        "weights must be float32 or float16, from 0 to 1": record.weights.dtype in (np.float32, np.float16)
        and bool(0 <= low <= high <= _LARGEST_WEIGHT),
        "neutral must be from 0 up and finite": extra.dtype.kind == "f"
        and bool(((extra >= 0) & (extra < np.inf)).all()),
        "checks must be of planes, their falls numbers": all(c.plane in range(len(record.layers)) for c in record.checks)
        and all(type(fall) is float and abs(fall) < _LARGEST_FALL for fall in falls)
        and len(record.checks) <= len(record.layers)
        and all(isinstance(c.view, str) and isinstance(c.part, str) and c.random for c in record.checks),
        f"boxes must lie within 0 and {_LARGEST_SIDE} pixels": boxes.dtype.kind == "f"
        and not ((boxes < 0) | (boxes > _LARGEST_SIDE)).any(),
    }  # fmt: skip
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise ValueError("; ".join(broken))


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
