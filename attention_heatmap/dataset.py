"""A dataset, one of its samples, its pictures."""

import errno
import json
import math
import os
import re
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from attention_heatmap.log import logger, one_line
from attention_heatmap.options import are_whole, spans

_LARGEST_LEVEL = 1e30  # of a float pixel; larger ones mark a value that is missing
_SPACE = re.compile(r"\s*")
_LINES_SUFFIXES = (".jsonl", ".ndjson")  # of JSON lines; of more than one line they are known by their content


def load_sample(
    benchmark_json: str | Path | list, image_dir: str | Path, sample_idx: int = 0, max_image_num: int = 2, *,
    allow_absolute_paths: bool = False,
) -> tuple[dict, list[Image.Image]]:  # fmt: skip
    """Read one sample of a dataset and its pictures.

    The dataset is a JSON list of {"id", "image": ["rel/path.png"] or "rel/path.png", "problem", "solution",
    "answer"}, or one such object a line; only "image" and "problem" are required. Returns the sample as it stands in
    the file, and its pictures as upright RGB images. Raises OSError for a file that is missing or unreadable,
    ValueError for one with the wrong content, or for a picture outside image_dir unless allow_absolute_paths lets it
    be anywhere.
    """
    samples, (number,) = select_from_dataset(benchmark_json, image_dir, [sample_idx])
    where = f"sample {number} of {samples}"
    return samples[number], open_pictures_of(samples[number], image_dir, max_image_num, where, allow_absolute_paths)


def select_samples(selection: int | str | Iterable[int], count: int, benchmark_json: object) -> list[int]:
    """The numbers of the samples that a selection names, each once, in its order, of a dataset of `count` samples.

    selection: a number, several numbers, or a text: `3`, a range with both its ends `0-99`, a list `0,5-7,9`, `all`.
    Raises ValueError for what cannot be read or is out of range.
    """
    if isinstance(selection, str):
        parsed = [(0, count - 1)] if selection.strip() == "all" else spans(selection)
        if parsed is None:
            raise ValueError(
                f"sample_idx {one_line(selection)[:200]!r} cannot be read; expected a number, a range such as 0-99, a "
                "list such as 0,5,9, or all"
            )
    else:
        parsed = [(n, n) for n in (selection if isinstance(selection, Iterable) else [selection])]
    for span in parsed:
        if not are_whole(span) or not 0 <= span[0] <= span[1] < count:
            named = "-".join(dict.fromkeys(map(str, span)))
            raise ValueError(
                f"sample_idx {named} is out of range: {benchmark_json} has {count} samples (0..{count - 1})"
            )
    if not parsed:
        raise ValueError("sample_idx names no sample; expected one or more")
    return list(dict.fromkeys(n for first, last in parsed for n in range(int(first), int(last) + 1)))


def open_pictures_of(
    sample: object, image_dir: str | Path, max_image_num: int, where: str, allow_absolute_paths: bool = False
) -> list[Image.Image]:
    """The pictures of a sample whose fields are as they should be, upright and RGB. Raises ValueError or OSError."""
    names, folder = check_sample(sample, where), Path(image_dir)
    if len(names) > max_image_num:
        raise ValueError(
            f"{where} has {len(names)} picture{'s' * (len(names) > 1)}, more than max_image_num={max_image_num}; "
            f"raise it with --max_image_num {len(names)} (in Python: max_image_num={len(names)})"
        )
    for name in names:
        if not allow_absolute_paths and not lies_in(folder / name, folder):
            raise ValueError(
                f"{where} names a picture outside image_dir {folder}: {name}; move it there, or give "
                "--allow_absolute_paths if you trust the dataset"
            )
    images = [_open_image(folder / name, where) for name in names]
    logger.debug("%s: %d picture(s), sizes %s", where, len(images), [image.size for image in images])
    return images


def open_pictures(images: Iterable[Any]) -> list[Image.Image]:
    """Pictures given as PIL images or as paths, upright and RGB. Raises ValueError or OSError."""
    opened = []
    for image in [images] if isinstance(images, (str, Path, Image.Image)) else images:
        if isinstance(image, (str, os.PathLike)):
            opened.append(_open_image(Path(image), "image"))
        elif isinstance(image, Image.Image):
            opened.append(upright_rgb(image))
        else:
            raise ValueError(f"a picture is a {type(image).__name__}; expected a path or a PIL image")
    return opened


class Dataset(list):
    """The samples of a dataset; as a text its name, for messages."""

    def __init__(self, samples: list, name: str) -> None:
        super().__init__(samples)
        self.name = name

    def __str__(self) -> str:
        return self.name


def read_dataset(benchmark_json: str | Path | list) -> Dataset:
    """The samples in a file, a JSON list or JSON lines, at least one; a list of samples will do, too.

    Raises OSError or ValueError. What is read already is not read again: a pipe gives its content once.
    """
    if isinstance(benchmark_json, list):
        samples = benchmark_json if isinstance(benchmark_json, Dataset) else Dataset(benchmark_json, "the dataset")
    else:
        samples = Dataset(_parse_samples(_read_text(Path(benchmark_json)), Path(benchmark_json)), str(benchmark_json))
    if not samples:
        raise ValueError(f"benchmark_json {samples} is an empty list; expected at least one sample")
    return samples


def _read_text(path: Path) -> str:
    """What stands in a file or in a pipe, as of `<(...)`. Raises OSError or ValueError."""
    try:
        # Without waiting for a program that writes into a pipe: there may never be one.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise OSError(errno.EINVAL, "it is a device")  # reading one may never end
            if stat.S_ISFIFO(mode):
                os.set_blocking(file.fileno(), True)
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"benchmark_json {path} is not UTF-8 text: {one_line(error)}; expected a JSON list") from error
    except (OSError, ValueError) as error:  # ValueError: no path at all
        reason = f"cannot be read: {getattr(error, 'strerror', None) or one_line(error)}"
        reason = {FileNotFoundError: "does not exist", IsADirectoryError: "is a folder"}.get(type(error), reason)
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(f"benchmark_json {path} {reason}; give a JSON list of samples") from error


def _parse_samples(text: str, path: Path) -> list:
    """The samples of a JSON list, or of a JSON object a line. Raises ValueError."""
    values, at = [], 0
    try:
        while (at := _SPACE.match(text, at).end()) < len(text):
            value, at = json.JSONDecoder().raw_decode(text, at)
            values.append(value)
    except (ValueError, RecursionError) as error:
        line = "" if isinstance(error, ValueError) else f": line {text.count(chr(10), 0, at) + 1}"
        raise ValueError(f"benchmark_json {path} is not JSON: {one_line(error)}{line}; expected a JSON list") from error
    if not values:
        raise ValueError(f"benchmark_json {path} is empty; expected a JSON list")
    samples = values[0]
    if isinstance(samples, dict) and (len(values) > 1 or path.suffix.lower() in _LINES_SUFFIXES):
        return values
    if not isinstance(samples, list) or len(values) > 1:
        held = " and more" * (len(values) > 1)
        raise ValueError(
            f"benchmark_json {path} holds a {type(samples).__name__}{held}; expected a JSON list of samples, "
            '[{"id": ..., "image": [...], "problem": ...}, ...]'
        )
    return samples


def select_from_dataset(
    benchmark_json: str | Path | list, image_dir: str | Path, selection: int | str | Iterable[int]
) -> tuple[Dataset, list[int]]:
    """The samples of a dataset and the numbers of those selected; the folder of their pictures is there."""
    samples = read_dataset(benchmark_json)
    numbers = select_samples(selection, len(samples), samples)
    if not Path(image_dir).is_dir():
        raise FileNotFoundError(f"image_dir {image_dir} is no directory; give the folder that holds the pictures")
    return samples, numbers


def check_sample(sample: object, where: str) -> list[str]:
    """The picture paths of a sample whose fields are as they should be."""
    if not isinstance(sample, dict):
        raise ValueError(f"{where} is a {type(sample).__name__}; expected an object with image and problem")
    for key in ("image", "problem"):
        if key not in sample:
            raise ValueError(f"{where} has no key {key!r}; it has {sorted(map(str, sample))}")
    problem_of(sample, where)
    paths = sample["image"]
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"the image of {where} is {paths!r}; expected a path or a list of paths")
    return paths


def problem_of(sample: dict, where: str) -> str:
    """The problem of a sample. Raises ValueError where there is none."""
    problem = sample.get("problem") if isinstance(sample, dict) else None
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"the problem of {where} is {one_line(repr(problem))}; expected a text that is not empty")
    return problem


def _open_image(path: Path, where: str) -> Image.Image:
    """A picture, upright and RGB: the model and the overlay both see it so."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError("a device or a pipe")  # reading one may never end
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large picture, odd metadata; what cannot be read is an error as well
            with Image.open(path) as image:
                if image.format == "EPS":
                    raise ValueError("a program, which Ghostscript would have to run; convert it to PNG")
                return upright_rgb(image)
    except (FileNotFoundError, IsADirectoryError) as error:
        missing = isinstance(error, FileNotFoundError)
        what = "a picture that does not exist" if missing else "a folder where a picture is expected"
        raise type(error)(f"{where} names {what}: {path}; check the path") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{where} has a picture that is too large: {path} ({one_line(error)}); it may be made to fill the memory: "
            "shrink it"
        ) from error
    except Exception as error:  # what a broken picture leads to depends on its format
        raise OSError(f"{where} has a picture that cannot be read: {path} ({one_line(error)})") from error


def well_formed(text: str) -> str:
    """The text with lone surrogates, which no tokenizer takes, as the sign of a broken character."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def lies_in(path: Path, folder: Path) -> bool:
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
        bad = ~((values >= 0) & (values < _LARGEST_LEVEL))
        if bad.any():
            if bad.all():
                raise ValueError("no pixel of the picture is a number from 0 up")
            count = f"{bad.sum()} of {bad.size}"
            logger.warning("%s pixels of a picture are below 0 or no numbers; they become black", count)
            values[bad] = 0
        top = 65535 if image.mode.startswith("I") and values.max(initial=0) > 255 else max(values.max(initial=0), 1)
        image = Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def shrink(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The picture, smaller where it has more than `max_pixels` pixels, which must be 1 or more."""
    if max_pixels is None:
        return image
    scale = min(math.sqrt(max_pixels / (image.width * image.height)), 1)
    size = [max(int(length * scale), 1) for length in image.size]
    return image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
