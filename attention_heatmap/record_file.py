"""A record as a file: safetensors with the facts as JSON in its metadata."""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from attention_heatmap.files import moved_into_place
from attention_heatmap.log import one_line
from attention_heatmap.record import AttentionRecord, Check, ImageTokens

_FORMAT = 2  # version written into every file
# In a record that is read: number of a head, nats a token, a weight that was rounded, pixels along a picture and in
# all of them, characters of a token and of a map's name.
_LARGEST_HEAD, _LARGEST_FALL, _LARGEST_WEIGHT = 2**16, 700, 1.01
_LARGEST_SIDE, _LARGEST_TOKEN, _LONGEST_VIEW = 2**20, 2**16, 200


def write_record(record: AttentionRecord, path: str | Path) -> None:
    """What `AttentionRecord.save` does."""
    facts = {name: getattr(record, name) for name in _PLAIN_FIELDS} | {
        "format": _FORMAT, "images": len(record.images), "pictures": len(record.pictures),
        "checks": [asdict(check) for check in record.checks],
    }  # fmt: skip
    arrays = {"token_ids": record.token_ids, "weights": record.weights}
    for number, image in enumerate(record.images):
        arrays |= {f"positions_{number}": image.positions, f"boxes_{number}": image.boxes}
    arrays |= {f"picture_{number}": np.frombuffer(data, np.uint8) for number, data in enumerate(record.pictures)}
    arrays |= {} if record.neutral is None else {"neutral": record.neutral}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # strided ones come out as they lie
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(array.nbytes for array in arrays.values()) >> 20, shutil.disk_usage(Path(path).parent).free >> 20
    if needed > free:
        raise OSError(f"{path} needs {needed} MiB, {free} MiB are free; record fewer layers or heads")
    with moved_into_place(Path(path)) as temporary:
        mode = temporary.stat().st_mode  # as of any new file; safetensors would let nobody else read it
        safetensors.numpy.save_file(arrays, temporary, {"facts": json.dumps(facts)})
        temporary.chmod(mode)


def read_record(path: str | Path, layers: Iterable[int] | None = None) -> AttentionRecord:
    """What `AttentionRecord.load` does."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is a folder, a device or a pipe")  # reading one may never end
        return _read(path, layers)
    except OSError as error:
        text = f"the record {path} cannot be read: {error.strerror or one_line(error)}"
        raise type(error)(f"{text}; give a file that --save_record or save() wrote") from error
    except Exception as error:  # whatever a broken or hostile file leads to
        raise ValueError(f"{path} is no attention record: {one_line(error)}; make one with save()") from error


def check_replaced(path: str | Path) -> None:
    """Raises ValueError where a file is there that is no record: the weights of a model, say, or a picture."""
    if not Path(path).exists() or not Path(path).stat().st_size:
        return
    try:
        with safetensors.safe_open(path, framework="numpy") as data:
            ours = "facts" in (data.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        ours = False
    if not ours:
        raise ValueError(f"{path} is there and no attention record, and is not overwritten; give another name")


# The fields of a record that are texts and numbers: they stand in its file as JSON.
_PLAIN_FIELDS = [
    field.name for field in fields(AttentionRecord)
    if field.name not in ("token_ids", "weights", "images", "pictures", "neutral", "checks")
]  # fmt: skip


def _read(path: str | Path, layers: Iterable[int] | None) -> AttentionRecord:
    """The record in a file; raises whatever a broken one leads to."""
    with safetensors.safe_open(path, framework="numpy") as data:
        facts = json.loads((data.metadata() or {}).get("facts") or "{}")
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise ValueError(f"its format is {facts.get('format')!r}, this version reads {_FORMAT}")
        plain = {name: _tuples(facts[name]) for name in _PLAIN_FIELDS if name in facts or name == "heads"}
        kept = range(len(plain["layers"]))
        if layers is not None:
            wanted = set(layers)
            kept = [n for n in kept if plain["layers"][n] in wanted]
            plain |= {name: tuple(plain[name][n] for n in kept) for name in ("layers", "heads")}
        if not kept:
            raise ValueError(f"it holds none of the layers {sorted(wanted) if layers is not None else []}")
        neutral = data.get_tensor("neutral")[list(kept)] if "neutral" in data.keys() else None  # noqa: SIM118
        weights = data.get_slice("weights")
        record = AttentionRecord(
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


def _tuples(value: Any) -> Any:
    """The lists of JSON as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_values(record: AttentionRecord) -> None:
    """Raises ValueError where a record that was read holds what no recording gives."""
    P, numbered = record.prompt_length, [head for head in record.heads if head not in ("mean", "max")]
    heads = [one for head in numbered for one in (head if isinstance(head, tuple) and head else (head,))]
    numbers = [P, *record.layers, *record.special_ids, *(record.problem or (0, 1))]
    checks, neutral = record.checks, np.zeros(1) if record.neutral is None else record.neutral
    falls = [fall for check in checks for fall in (check.hottest, *check.random)]
    low, high = record.weights.min(initial=0), record.weights.max(initial=0)
    arrays = [record.token_ids, *(image.positions for image in record.images)]
    rules = {
        "tokens must be texts": type(record.tokens) is tuple and all(isinstance(token, str) for token in record.tokens)
        and max(map(len, record.tokens)) <= _LARGEST_TOKEN,
        "lengths, layers and ids must be whole numbers": all(type(number) is int for number in numbers),
        "layers must be layers of the model, each plane a different one": 0
        < len(set(zip(record.layers, record.heads))) == len(record.layers)
        and type(record.num_layers or 0) is int
        and 0 <= min(record.layers) <= max(record.layers) < (record.num_layers or math.inf),
        "heads must be mean, max or numbers": all(type(head) is int and abs(head) < _LARGEST_HEAD for head in heads),
        "model must be a text": type(record.model) is str and len(record.model) <= _LONGEST_VIEW,
        "auto_layer and auto_head must be true or false": type(record.auto_layer) is type(record.auto_head) is bool,
        "the problem must lie in the prompt": record.problem is None
        or (len(record.problem) == 2 and 0 <= record.problem[0] <= record.problem[1] <= P),
        "ids and positions must be rows of whole numbers": all(a.ndim == 1 and a.dtype.kind == "i" for a in arrays),
        "weights must be float32 or float16, from 0 to 1": record.weights.dtype in (np.float32, np.float16)
        and bool(0 <= low <= high <= _LARGEST_WEIGHT),
        "neutral must be from 0 up and finite": neutral.dtype.kind == "f"
        and bool(((neutral >= 0) & (neutral < np.inf)).all()),
        "checks must be of planes, their falls numbers": all(c.plane in range(len(record.layers)) for c in checks)
        and all(type(fall) is float and abs(fall) < _LARGEST_FALL for fall in falls)
        and len(checks) <= len(record.layers) and all(c.random for c in checks)
        and all(type(name) is str and len(name) <= _LONGEST_VIEW for c in checks for name in (c.view, c.part)),
        f"boxes must lie within 0 and {_LARGEST_SIDE} pixels": all(
            i.boxes.dtype.kind == "f" and not ((i.boxes < 0) | (i.boxes > _LARGEST_SIDE)).any() for i in record.images),
    }  # fmt: skip
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise ValueError("; ".join(broken))
