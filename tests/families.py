"""What becomes of each model type: placed and proven, refused by one line, or not to be built here. The table of docs.

python tests/families.py        # prints docs/families.md anew
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import geometries
import numpy as np
import torch
import transformers
from geometries import OF_TYPE, PUBLISHED, TYPES, Geometry
from placing import breaches, noise_picture

from attention_heatmap.log import one_line
from attention_heatmap.recording.image_tokens import image_token_id, locate_image_tokens
from attention_heatmap.recording.prompt import build_inputs

DOCS = Path(__file__).resolve().parents[1] / "docs" / "families.md"
PICTURE = (611, 330)  # pixels
NOT_BUILT = {"evolla": "it reads proteins, and no pictures"}  # what may stay so, and why


@dataclass(frozen=True)
class Outcome:
    kind: str
    """placed, refused, or not built: the tiny model, its processor or its inputs fail by themselves, or are no such."""
    text: str
    wrong: int = 0
    """Pairs of a token and a changed half of the picture that contradict the boxes."""
    looked: int = 0


def outcome(geometry: Geometry) -> Outcome:
    """Build a tiny model of a geometry, place its image tokens, and change the picture to see whether they moved."""
    if geometry.model_type in NOT_BUILT:
        return Outcome("not built", NOT_BUILT[geometry.model_type])
    return _outcome(geometry.model_type, next((n for n, g in PUBLISHED.items() if g is geometry), None))


@cache
def _outcome(model_type: str, label: str | None) -> Outcome:
    geometry = PUBLISHED[label] if label else OF_TYPE.get(model_type, Geometry(model_type))
    picture = noise_picture(*PICTURE)
    try:
        config = geometries.configuration(geometry)
        try:
            image_token_id(config)  # asked before the weights are loaded
        except ValueError as error:
            return Outcome("refused", _reason(error))
        model, processor = geometries.build(geometry)
        inputs = build_inputs(processor, "Where?", [picture], "{Question}")
    except Exception as error:  # each type has its own complaints about defaults that do not fit together
        own = isinstance(error, ValueError) and "of its own in place of the problem" in str(error)
        return Outcome("refused" if own else "not built", _reason(error))
    try:
        (tokens,) = locate_image_tokens(model, processor, inputs, [picture])
    except ValueError as error:
        if "cannot be asked" in str(error) and (complaint := _complaint(model, inputs)):
            return Outcome("not built", complaint)
        return Outcome("refused", _reason(error))
    looked, wrong = breaches(model, processor, picture, tokens.boxes, cuts=(0.64,))
    placed = int(np.isfinite(tokens.boxes[:, 0]).sum())
    return Outcome("placed", f"{placed} of {len(tokens.boxes)}", wrong, looked)


def _complaint(model: torch.nn.Module, inputs: dict) -> str:
    """What a tiny model fails with by itself; "" where it runs."""
    try:
        with torch.inference_mode():
            model(**inputs.to(model.dtype), use_cache=False)
    except Exception as error:  # whatever it is, it is the model's own
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    text = one_line(error).removeprefix("the image tokens cannot be placed in the picture: ")
    text = re.split(r" \(model type|; |, so its|, add|\. ", text)[0].replace("|", "/")
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return kind + re.sub(r"<class '.*\.(\w+)'>", r"\1", text)[:150]


def table() -> str:
    """docs/families.md."""
    rows, others = [], []
    for label, geometry in PUBLISHED.items():
        found = outcome(geometry)
        rows.append(f"| {label} | {geometry.model_type} | {geometry.stands_for} | {found.kind}: {found.text} |")
    for name in TYPES:
        if name in {geometry.model_type for geometry in PUBLISHED.values()}:
            continue
        found = outcome(OF_TYPE.get(name, Geometry(name)))
        others.append(f"| {name} | {found.kind}: {found.text} |")
    return HEAD + "\n".join(rows) + MIDDLE + "\n".join(others) + "\n"


HEAD = f"""# Families

The tool asks the processor which pixel of which picture each pixel value shows (with ramps in the pictures' place) and
the model which image token each pixel value feeds (by gradients, with the attention of the vision tower off). A token's
rectangle is the extent of its pixel values in the picture. Tokens on no pixel (newlines, separators, class tokens,
padding) have no place. Where a processor reports a grid, it is believed once a trial picture has confirmed it for the
model. One rule for a family is left: llava_onevision blends patches where a picture is large, and then the rectangles
come from its own formula. Where a pixel feeds several tokens (query-formers, perceivers, overlapping pools or
convolutions), the tool stops with one line.

This page is printed by `python tests/families.py`, here for transformers {transformers.__version__}, and a test holds
it to what is printed. Each row is a random model of tiny width; tiles, patches, merges and processor are as published.
*Placed*: how many image tokens of a picture of {PICTURE[0]} × {PICTURE[1]} pixels have a place in it. It is proven by
changing a half of the picture: exactly the tokens whose rectangle reaches into it have to change. For published
checkpoints the rectangles are held to the family's own formula besides, within 0.02 pixels of the processor's canvas
(0.1 where it resizes with Pillow, which takes whole shades only).

## Published checkpoints

| geometry | model type | stands for | outcome |
|---|---|---|---|
"""
MIDDLE = """

## Every other image-text-to-text type of transformers

Built from the type's own defaults and what they lack. *Refused*: the line that the tool stops with; where it names the
model type, the configuration tells it, and no weights are loaded. *Not built*: what is no vision-language model.

| model type | outcome |
|---|---|
"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    DOCS.parent.mkdir(exist_ok=True)
    DOCS.write_text(table(), encoding="utf-8")
    print(DOCS.read_text(encoding="utf-8"))
