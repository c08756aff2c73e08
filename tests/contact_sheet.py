"""The hard cases of drawing side by side in one PNG, for a human look.

python tests/contact_sheet.py sheet.png [record.npz ...]

Records are kept runs (`--save_record`), shown at the step that looks at the pictures the most; the other cases
are made by hand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from unittest import mock

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from conftest import make_record
from PIL import Image, ImageDraw

import visualizeHeatMap as vhm

COLUMNS, WIDTH, LABEL = 2, 960, 34  # cases side by side; pixels of a case and of the line above it
SCRIPTS = """Based on| السلام| عليكم| 1|2|5| ورحمة| الل|ه|,| ש|לום| עולם|.|
emoji| 😀| ❤️| 👩‍🚀| maths| ∑|ᵢ| 𝑥²| ∈| ℝ|,| ∀ε>0| ⟨ψ,φ⟩| √2≈1.41|
हिन्दी| ภาษาไทย| 한국어| 日本語|テキスト|、|中文|。|
control|\x00\x07\x1b|\r|\t|\u200b| e\u0301| \ue000|\u2028|\u3000|\x85| a\u00a0b|
    def| f(x):\n|        return| x"""
BOXES = "<think>| The| lamp| is| at| (100,|150),(400,|500)|, the| cup| at| [550, 600, 900, 950]"
ROUTE = "First| (200,| 200)|, then| [800,|300]|, at last| (500,|900)|</think>|<answer>|done"
LONG = " follow| the| road|,| turn| left| at| the| (|1|4|0|)| mark|.\n"
SCRIPTS, BOXES, ROUTE, LONG = (text.split("|") for text in (SCRIPTS, BOXES, ROUTE, LONG))


def pictures(record: vhm.AttentionRecord) -> list[Image.Image]:
    """A colour gradient for each image of a record, of the size that its boxes have."""
    images = []
    for tokens in record.images:
        width, height = tokens.boxes[:, 2:].max(axis=0).astype(int)
        y, x = np.mgrid[0:height, 0:width]
        shades = np.stack([x / width, y / height, 1 - x / width], axis=-1) * 120 + 110
        images.append(Image.fromarray(shades.astype(np.uint8)))
    return images


def frame(record: vhm.AttentionRecord, step: int = -1, layer: int = 1, **options) -> Image.Image:
    images = record.open_pictures() if record.pictures else pictures(record)
    phrase = options.pop("start_phrase", "Based")
    renderer = vhm.FrameRenderer(record, images, layer, phrase, vhm.DrawingOptions(**options))
    return Image.fromarray(renderer.draw(renderer.check_step(step)))


def without_fonts(record: vhm.AttentionRecord) -> Image.Image:
    """As on a machine with no fonts at all: Pillow's own, and code points for what it lacks."""
    with mock.patch.object(vhm, "FONT_NAMES", ()), mock.patch.object(vhm, "_fonts_with", lambda char: ()):
        return frame(record)


def cases(paths: list[str]) -> list[tuple[str, Image.Image]]:
    """(name, picture) of every case."""
    shown = []
    for path in paths:
        record = vhm.AttentionRecord.load(path)
        layer = record.layers[-1]
        shares = sum(share.weights for share in vhm.attention_shares(record, layer)[: len(record.images)])
        step, name = int(shares.argmax()), Path(path).name
        start = {"layer": layer, "start_phrase": vhm.DEFAULT_START_PHRASE if "Based" in "".join(record.tokens) else ""}
        shown += [
            (f"{name}, step {step}", frame(record, step, **start)),
            (f"{name}, last step", frame(record, **start)),
        ]
        shown.append((f"{name}, summary", vhm.draw_summary(record, record.open_pictures(), layer)))
    long_problem = ["Based", *(LONG * 30)]
    hard = make_record(["Based", " on"], SCRIPTS)
    two = make_record(["Based"], ROUTE, grids=[(6, 9), (9, 4)], size=(504, 336))
    return [
        *shown,
        ("scripts", frame(hard)),
        ("scripts, no fonts", without_fonts(hard)),
        ("boxes", frame(make_record(["Based"], BOXES, grids=[(12, 16)]))),
        ("glyphs, blue to yellow", frame(hard, text_style="glyph", colormap="blue_to_yellow")),
        ("two pictures, a route", frame(two)),
        ("chips", frame(two, 3, start_phrase="<s>", text_style="glyph")),
        ("1,000 tokens over a long problem", frame(make_record(long_problem, LONG * 67, grids=[(18, 26)]), 600)),
        ("smallest frame", frame(make_record(long_problem, LONG, grids=[(18, 26)]), 9, frame_size=vhm.SMALLEST_FRAME)),
        ("tall frame", frame(two, frame_size=(1080, 1350))),
        ("one token, tall picture", frame(make_record(["Based"], ["x"], grids=[(20, 4)], size=(100, 500)))),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("records", nargs="*")
    arguments = parser.parse_args()
    tiles = [
        (name, image.resize((WIDTH, WIDTH * image.height // image.width))) for name, image in cases(arguments.records)
    ]
    rows = [tiles[n : n + COLUMNS] for n in range(0, len(tiles), COLUMNS)]
    heights = [LABEL + max(image.height for _, image in row) for row in rows]
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + 10), sum(heights)), (180, 180, 180))
    draw, font, y = ImageDraw.Draw(sheet), vhm.FontSet(22).main, 0
    for row, height in zip(rows, heights):
        for column, (name, image) in enumerate(row):
            draw.text((column * (WIDTH + 10) + 6, y + 4), name, "black", font)
            sheet.paste(image, (column * (WIDTH + 10), y + LABEL))
        y += height
    sheet.save(arguments.path)


if __name__ == "__main__":
    main()
