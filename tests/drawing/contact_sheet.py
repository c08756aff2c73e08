"""Frames side by side in one PNG, for a human look: one map on eight kinds of pictures, or the hard cases of layout.

python tests/drawing/contact_sheet.py sheet.png [--hard]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from records import make_record

from attention_heatmap.drawing.fonts import FontSet
from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.options import drawing_options
from attention_heatmap.drawing.outputs import draw_figure

SIZE, GRID = (640, 448), (14, 20)
TILE, LABEL = 560, 30  # pixels: width of a tile, height of the line above it
HOT = ((4, 5), (10, 15))  # the two places that are looked at
WORDS = [" the", " road", " turns", " left", " at", " (", "3", "0", "0", ",", " 4", "0", "0", ")", ".\n"]


def landscape(night: bool) -> Image.Image:
    """A photograph-like scene: sky, hills, noise; at night nearly black, with lamps."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width].astype(float)
    rng = np.random.default_rng(1)
    sky = np.stack([90 + y / 4, 140 + y / 5, 215 - y / 8], axis=-1)
    for n, colour in enumerate(((86, 112, 80), (60, 92, 52), (94, 78, 50))):
        ridge = 180 + 75 * n + 30 * np.sin(x / (60 + 25 * n) + n) + 12 * np.sin(x / 13 + 2 * n)
        sky = np.where((y > ridge)[..., None], np.array(colour) + rng.normal(0, 16, sky.shape), sky)
    image = Image.fromarray(np.clip(sky * (0.13 if night else 1), 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(1)
    )
    draw = ImageDraw.Draw(image)
    for left in (90, 310, 480):
        draw.rectangle([left, 190, left + 90, 290], (30, 24, 22) if night else (178, 92, 70))
        draw.rectangle([left + 20, 215, left + 40, 240], (255, 214, 120))
        draw.rectangle([left + 55, 215, left + 75, 240], (255, 214, 120) if not night else (40, 36, 40))
    return image


def screenshot(dark: bool) -> Image.Image:
    paper, ink, accent = (
        ((24, 26, 32), (200, 204, 212), (60, 120, 220)) if dark else ((250, 250, 252), (40, 44, 52), (36, 110, 230))
    )
    image, fonts = Image.new("RGB", SIZE, paper), FontSet(15)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, SIZE[0], 40], accent)
    draw.text((14, 10), "Settings    Account    Privacy    Help", "white", fonts.main)
    for n, line in enumerate(("Notifications", "Language", "Display", "Keyboard", "Backups", "Network", "About")):
        draw.text((24, 64 + 52 * n), line, ink, fonts.main)
        draw.rounded_rectangle(
            [440, 60 + 52 * n, 600, 90 + 52 * n], 8, outline=ink, fill=accent if n % 3 == 0 else paper
        )
    return image


def drawing() -> Image.Image:
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    for n in range(9):
        draw.line([(20 + 70 * n, 20), (600 - 55 * n, 420)], "black", 2)
    draw.ellipse([120, 90, 260, 230], outline="black", width=3)
    draw.rectangle([400, 260, 560, 400], outline="black", width=3)
    return image


def green_leaves() -> Image.Image:
    rng = np.random.default_rng(3)
    image = Image.new("RGB", SIZE, (20, 90, 30))
    draw = ImageDraw.Draw(image)
    for _ in range(900):
        x, y, r = rng.integers(0, 640), rng.integers(0, 448), rng.integers(6, 26)
        draw.ellipse(
            [x, y, x + r, y + r * 0.6],
            (int(rng.integers(0, 90)), int(rng.integers(90, 220)), int(rng.integers(10, 80))),
        )
    return image


def chart() -> Image.Image:
    image, fonts = Image.new("RGB", SIZE, "white"), FontSet(16)
    draw = ImageDraw.Draw(image)
    for n, (high, colour) in enumerate(
        zip((300, 210, 340, 120, 260), ("crimson", "orange", "seagreen", "royalblue", "purple"))
    ):
        draw.rectangle([70 + 110 * n, 400 - high, 140 + 110 * n, 400], colour)
        draw.text((85 + 110 * n, 408), f"Q{n + 1}", "black", fonts.main)
    draw.line([(50, 20), (50, 400), (630, 400)], "black", 2)
    return image


def kinds() -> list[tuple[str, Image.Image]]:
    with Image.open(ROOT / "demo/images/route_en_0245.webp") as route:
        demo = route.convert("RGB").resize(SIZE)
    return [
        ("a map of the demo", demo), ("a photograph", landscape(False)), ("a dark photograph", landscape(True)),
        ("leaves, all green", green_leaves()), ("a drawing", drawing()), ("a chart", chart()),
        ("a screenshot", screenshot(False)), ("a dark screenshot", screenshot(True)),
    ]  # fmt: skip


def looking_record(share: float = 0.3):
    """One step that looks at two places, and a little everywhere."""
    record = make_record(["Based"], [" there"], grids=[GRID], size=SIZE)
    weights, rng = record.weights.copy(), np.random.default_rng(7)
    y, x = np.mgrid[0 : GRID[0], 0 : GRID[1]]
    heat = rng.gamma(0.6, 0.03, GRID)
    for part, (row, column) in zip((1.0, 0.7), HOT):
        heat += part * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 1.2)
    weights[:, :, record.images[0].positions] = (share * heat / heat.sum()).ravel()
    return replace(record, weights=weights)


def on_pictures() -> list[tuple[str, Image.Image]]:
    record, options = looking_record(), drawing_options({"figure": "map"})
    return [
        (name, draw_figure(FrameRenderer(record, [image], 1, "Based", options), 0, "map")) for name, image in kinds()
    ]


def hard() -> list[tuple[str, Image.Image]]:
    """The layouts that leave room blank or squeeze the text, if any do."""
    long = (WORDS * 70)[:900]
    grey = {"text_style": "glyph", "picture": "grey", "colormap": "blue_to_yellow"}
    scripts = (
        [
            "السلام",
            " علي",
            "كم",
            " ل",
            "ا",
            " إله ",
            "लि",
            "पि",
            " ภาษาไทย",
            " 日本語",
            "中文",
            " 😀",
            " ש",
            "לום",
            "\x07",
            " ",
        ]
        + [" "] * 40
        + ["ا" + "لسلام" * 40, " end"]
    )

    def shown(name: str, sizes: list, frame: tuple, words: list, step: int, **options) -> tuple[str, Image.Image]:
        grids = [(max(h // 40, 1), max(w // 40, 1)) for w, h in sizes]
        record = make_record(["Based", *WORDS * 6], words, grids=grids, sizes=sizes)
        images = [kinds()[n % 2][1].resize(size) for n, size in enumerate(sizes)]
        renderer = FrameRenderer(record, images, 1, "Based", drawing_options({"frame_size": frame, **options}))
        return name, Image.fromarray(renderer.draw(renderer.check_step(step)))

    return [
        shown("one portrait", [(500, 900)], (1920, 1080), WORDS * 6, 40),
        shown("a strip of 20:1", [(2000, 100)], (1920, 1080), WORDS * 6, 40),
        shown("two of unequal size", [(1000, 800), (300, 900)], (1920, 1080), WORDS * 6, 40),
        shown("two, tall frame", [(640, 448), (640, 448)], (1080, 1920), WORDS * 6, 40),
        shown("a strip and a portrait", [(2000, 100), (300, 600)], (1920, 1080), WORDS * 6, 40),
        shown("640x360", [(640, 448)], (640, 360), WORDS * 6, 40),
        shown("640x360, two", [(640, 448), (448, 640)], (640, 360), long, 400),
        shown("900 tokens, video scale", [(640, 448)], (1920, 1080), long, 880, scale="video"),
        shown("scripts", [(640, 448)], (1920, 1080), scripts, -1),
        shown("glyphs, grey", [(640, 448)], (1280, 720), WORDS * 6, 60, **grey),
    ]  # fmt: skip


def sheet(tiles: list[tuple[str, Image.Image]], columns: int) -> Image.Image:
    tiles = [
        (name, image.resize((TILE, round(TILE * image.height / image.width)), Image.Resampling.LANCZOS))
        for name, image in tiles
    ]
    rows = [tiles[n : n + columns] for n in range(0, len(tiles), columns)]
    heights = [LABEL + max(image.height for _, image in row) for row in rows]
    whole = Image.new("RGB", (columns * (TILE + 10) - 10, sum(heights)), "white")
    draw, font, y = ImageDraw.Draw(whole), FontSet(18).main, 0
    for row, height in zip(rows, heights):
        for column, (name, image) in enumerate(row):
            draw.text((column * (TILE + 10) + 2, y + 6), name, "black", font)
            whole.paste(image, (column * (TILE + 10), y + LABEL))
        y += height
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--hard", action="store_true")
    arguments = parser.parse_args()
    picture = sheet(hard(), 2) if arguments.hard else sheet(on_pictures(), 2)
    picture.save(arguments.path, optimize=True)


if __name__ == "__main__":
    main()
