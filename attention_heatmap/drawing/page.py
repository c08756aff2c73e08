"""One HTML file to explore a record in a browser: point at a word, see where it looked; point at a place, see who did.

The file asks nothing of any network: its Content-Security-Policy forbids every request, and only our own script and
style run, by their hashes. What comes from datasets and models is data in it, never markup. `page_assets/` holds the
page's HTML, CSS and JavaScript, one file after the other in one script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from attention_heatmap.drawing.colour import (
    CELL_ALPHA,
    COLORMAPS,
    CURRENT_TOKEN,
    INK,
    MUTED,
    PAPER,
    SPECIAL_ALPHA,
    TEXT_ALPHA,
    Colormap,
    blend,
    opacity,
    text_colours,
    with_luminance,
)
from attention_heatmap.drawing.fonts import NEWLINE_MARK, TURNING_MARKS
from attention_heatmap.drawing.frame import IMAGE_SCALE_QUANTILE, TEXT_SCALE_QUANTILE
from attention_heatmap.drawing.image_panel import GRID_ALPHA, GRID_LINE, SMALLEST_GRIDDED_CELL
from attention_heatmap.drawing.legend import PHASE_COLOURS, key_entries, plane_title
from attention_heatmap.drawing.marks import response_marks
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.summary import words_that_looked
from attention_heatmap.drawing.text import find_panel_start, text_pieces
from attention_heatmap.files import moved_into_place
from attention_heatmap.maps import BASELINES, map_cells, mean_cells, shown_rows
from attention_heatmap.phases import response_phases
from attention_heatmap.record import DEFAULT_START_PHRASE, AttentionRecord, picture_file

ASSETS = Path(__file__).parent / "page_assets"
SCRIPTS = ("data.js", "maps.js", "pictures.js", "text.js", "timeline.js", "words.js", "render.js", "hands.js", "address.js",
           "take.js", "page.js")  # in the order they run
# A weight is kept as one of 255 levels on a logarithmic scale below the row's highest one: two of them are 4.4% apart,
# so a weight is right to 2.2%, and one below a 65536th of the highest is 0.
LOG_RANGE = math.log(65536)
LEVELS = 128  # colours of a table
DARK_PAPER, DARK_INK = (21, 23, 27), (232, 234, 238)  # of the page on a dark screen
DARK_LUMINANCE = 0.14  # of coloured grounds at most there: light text keeps a contrast of 4.5:1
DARK_GLYPHS = 0.23  # luminance of coloured glyphs at least there
TWO_SIDED = ((178, 88, 6), (244, 240, 232), (45, 80, 160))  # below, alike, above: told apart by any colour vision
THUMBNAIL = (160, 120)  # pixels, at most
ROW_COLUMNS = ("sample", "id", "response", "answer", "correct", "error")


def write_page(
    records: AttentionRecord | Sequence[AttentionRecord], path: str | Path, start_phrase: str = DEFAULT_START_PHRASE,
    options: DrawingOptions | None = None, *, images: Sequence[Image.Image] | None = None, names: Sequence[str] = (),
    plane: int | None = None,
) -> Path:  # fmt: skip
    """Write one HTML file that shows a record, or two of the same tokens beside each other and their difference.

    images: the pictures, where the records keep none. names: of the two records, such as two checkpoints'.
    plane: which is shown first. Returns the path. Raises ValueError for records that do not fit, or OSError.
    """
    path = Path(path)
    page = page_html(records, start_phrase, options, images=images, names=names, plane=plane)
    path.parent.mkdir(parents=True, exist_ok=True)
    with moved_into_place(path) as temporary:
        temporary.write_bytes(page.encode())  # as it is: a hash is of its very bytes
    return path


def page_html(
    records: AttentionRecord | Sequence[AttentionRecord], start_phrase: str = DEFAULT_START_PHRASE,
    options: DrawingOptions | None = None, *, images: Sequence[Image.Image] | None = None, names: Sequence[str] = (),
    plane: int | None = None,
) -> str:  # fmt: skip
    """The page; arguments as for `write_page`."""
    records = [records] if isinstance(records, AttentionRecord) else list(records)
    options, first = options or DrawingOptions(), _check_records(records)
    pictures = list(images) if images and not first.pictures else first.open_pictures()
    files = first.pictures or [picture_file(image) for image in pictures]
    names = names or [f"record {number + 1}" for number in range(len(records))]
    plane = first.plane() if plane is None else plane
    facts = _text_facts(first, start_phrase) | {
        "images": [_picture_facts(first, number, file, pictures[number].size) for number, file in enumerate(files)],
        "records": [{"name": name, "planes": _planes(record)} for name, record in zip(names, records)],
        "marks": [vars(m) for m in response_marks(first, plane, [i.size for i in pictures], options.draw_points)],
        "plane": plane,
        "look": _look(options),
        "logRange": LOG_RANGE,
        "quantiles": {"text": TEXT_SCALE_QUANTILE, "cells": IMAGE_SCALE_QUANTILE},
        "baselines": {name: BASELINES[name] for name in BASELINES if first.neutral is not None or name in _ALONE},
        "colours": _colours(options),
        "grid": {"rgb": GRID_LINE, "alpha": GRID_ALPHA, "smallest": SMALLEST_GRIDDED_CELL},
        "start": next((step for step, _ in words_that_looked(first, plane, 1)), 0),
    }  # fmt: skip
    blocks = {
        f"rows-{r}-{n}": _pack(_quantised(record, n)[0])
        for r, record in enumerate(records)
        for n in range(len(record.layers))
    }
    scripts = "\n".join((ASSETS / name).read_text("utf-8") for name in SCRIPTS)
    data = "\n".join(f'<script type="text/plain" id="{name}">{text}</script>' for name, text in blocks.items())
    return _filled(
        "page.html", (ASSETS / "page.css").read_text("utf-8"), scripts, facts=_json(facts), data=data,
        title=html.escape(" ".join(first.response.split())[:80] or "an empty answer"),
        thumbnail=_thumbnail(first, plane, pictures),
    )  # fmt: skip


_ALONE = ("off", "median")  # baselines that need no replay


def _check_records(records: Sequence[AttentionRecord]) -> AttentionRecord:
    """The first of one or two records. Raises ValueError where they cannot be shown together."""
    if not 1 <= len(records) <= 2:
        raise ValueError(f"{len(records)} records were given; a page shows one, or two of the same tokens")
    first, other = records[0], records[-1]
    boxes = all(np.array_equal(a.boxes, b.boxes, equal_nan=True) for a, b in zip(first.images, other.images))
    same = np.array_equal(first.token_ids, other.token_ids) and first.prompt_length == other.prompt_length
    if not (same and boxes and np.array_equal(first.image_positions, other.image_positions)):
        raise ValueError("the two records are not of the same tokens; record the second with the first's response")
    if len(first.layers) != len(other.layers):
        raise ValueError(
            f"the two records hold {len(first.layers)} and {len(other.layers)} planes; record the same layers and heads"
        )
    if not first.response_length:
        raise ValueError("the response is empty: there is nothing to explore")
    return first


def _pack(array: np.ndarray) -> str:
    """An array as base64 of its compressed bytes, little end first."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)  # no header: what browsers call deflate-raw
    data = packer.compress(np.ascontiguousarray(array).tobytes()) + packer.flush()
    return base64.b64encode(data).decode()


def _quantised(record: AttentionRecord, plane: int) -> tuple[np.ndarray, np.ndarray]:
    """((T, S) uint8, (T, 1 + pictures) float32): levels, and the highest weight of the text and of each picture."""
    rows_TS = record.rows(plane)
    group_S = np.zeros(rows_TS.shape[1], int)
    for number, image in enumerate(record.images, start=1):
        group_S[image.positions] = number
    levels_TS = np.zeros(rows_TS.shape, np.uint8)
    peaks_TG = np.zeros((len(rows_TS), len(record.images) + 1), np.float32)
    for group in range(peaks_TG.shape[1]):
        columns = np.flatnonzero(group_S == group)
        part = rows_TS[:, columns]
        peaks_TG[:, group] = peak_T = part.max(axis=1, initial=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            levels = np.round(255 + 254 / LOG_RANGE * np.log(part / peak_T[:, None]))
        levels_TS[:, columns] = np.where(levels >= 1, levels, 0)
    return levels_TS, peaks_TG


def _planes(record: AttentionRecord) -> list[dict]:
    """What the page needs of each plane but its rows."""
    planes, at_N = [], record.image_positions
    for n in range(len(record.layers)):
        shown, weights_TN = shown_rows(record, n, "off", True, 0), record.rows(n)[:, at_N]
        entries = key_entries(record, n)
        name = record.plane_name(n)
        planes.append({
            "title": plane_title(record, n), "name": name,
            "layer": record.layers[n], "head": name.partition(", ")[2],
            "peaks": _pack(_quantised(record, n)[1]),
            "shares": [{"name": e.name, "rgb": e.colour, "weights": _pack(e.weights.astype("<f4"))} for e in entries],
            "median": _pack(np.median(weights_TN, axis=0).astype("<f4")),
            "neutral": None if record.neutral is None else _pack(record.neutral[n].astype("<f4")),
            "sinks": np.flatnonzero(shown.sinks).tolist(), "leftOut": shown.left_out,
            "checks": [{"view": check.view, "text": str(check)} for check in record.checks if check.plane == n],
        })  # fmt: skip
    return planes


def visible_text(text: str) -> str:
    """Text as a browser may show it: what turns or hides other text, and what has no glyph, as its code point."""
    hidden = ("Cc", "Cs", "Cn", "Co")
    return "".join(
        f"[U+{ord(c):04X}]" if c in TURNING_MARKS or (unicodedata.category(c) in hidden and c not in "\n\t") else c
        for c in text
    )


def _text_facts(record: AttentionRecord, start_phrase: str) -> dict:
    """The tokens, and what is known of their places."""
    return {
        "pieces": [[p.start, visible_text(p.text).replace("\n", f"{NEWLINE_MARK}\n"), p.kind]
                   for p in text_pieces(record, 0)],
        "positions": len(record.tokens), "prompt": record.prompt_length,
        "shownFrom": min(find_panel_start(record, start_phrase)[0], record.prompt_length),
        "phases": [vars(phase) | {"rgb": PHASE_COLOURS[phase.name]} for phase in response_phases(record)],
    }  # fmt: skip


def _picture_facts(record: AttentionRecord, number: int, file: bytes, size: tuple[int, int]) -> dict:
    """A picture and its cells, as `maps.Cells` has them."""
    tokens = record.images[number]
    cells = map_cells(tokens)
    return {
        "name": f"image {number + 1}", "width": size[0], "height": size[1],
        "kind": "image/png" if file.startswith(b"\x89PNG") else "image/jpeg", "file": base64.b64encode(file).decode(),
        "positions": _pack(tokens.positions.astype("<i4")), "boxes": _pack(tokens.boxes.astype("<f4")),
        "cells": _pack(cells.positions.astype("<i4")), "cellBoxes": _pack(cells.boxes.astype("<f4")),
        "spread": [[position, on.tolist(), [round(float(f), 6) for f in parts]] for position, on, parts in cells.spread],
    }  # fmt: skip


def _look(options: DrawingOptions) -> dict:
    """How the page looks at first, as the video would."""
    return {
        "colours": options.colormap if isinstance(options.colormap, str) else "own", "scale": options.scale,
        "baseline": options.baseline, "sinks": options.sinks, "smooth": options.smooth,
        "style": options.text_style, "picture": getattr(options, "picture", "muted"), "fps": options.fps,
    }  # fmt: skip


def _table(colours: np.ndarray) -> str:
    """Colours, or colours and an opacity 0..1, as base64 of bytes."""
    return base64.b64encode(np.round(colours).astype(np.uint8).tobytes()).decode()


def _colours(options: DrawingOptions) -> dict:
    """Tables of LEVELS colours of each map, from low to high weights, made by the functions that draw the video."""
    own = {"own": options.colormap} if callable(options.colormap) else {}
    maps = own | COLORMAPS
    return {
        "levels": LEVELS, "maps": {name: _colour_tables(colormap) for name, colormap in maps.items()},
        "difference": _two_sided_tables(),
        "fixed": {"current": CURRENT_TOKEN, "ink": INK, "muted": MUTED, "paper": PAPER},
        "dark": {"ink": DARK_INK, "paper": DARK_PAPER}, "special": SPECIAL_ALPHA,
    }  # fmt: skip


def _colour_tables(colormap: Colormap) -> dict:
    """Of one map: RGBA of cells; grounds and glyphs of the text, on light and on dark paper."""
    scale = np.linspace(0, 1, LEVELS)
    shades, cover = np.asarray(colormap(scale), float), opacity(scale, CELL_ALPHA)
    tint, glyph = text_colours(scale, colormap, "tint"), text_colours(scale, colormap, "glyph")
    paper = np.array(DARK_PAPER, float)
    dark = with_luminance(blend(paper, shades, opacity(scale, TEXT_ALPHA)[:, None]), most=DARK_LUMINANCE)
    return {
        "cells": _table(np.column_stack([shades, 255 * cover])), "ground": _table(tint[0]), "glyph": _table(glyph[1]),
        "darkGround": _table(dark), "darkGlyph": _table(with_luminance(shades, least=DARK_GLYPHS)),
    }  # fmt: skip


def _two_sided_tables() -> dict:
    """The same of a difference, from the most below to the most above; what is alike has no tint."""
    scale = np.linspace(-1, 1, LEVELS)
    shades = np.stack([np.interp(scale, (-1, 0, 1), channel) for channel in zip(*TWO_SIDED)], axis=-1)
    strong = np.array([TWO_SIDED[0] if value < 0 else TWO_SIDED[2] for value in scale], float)
    cover = np.abs(scale) * TEXT_ALPHA[1]
    light = with_luminance(blend(255.0, strong, cover[:, None]), least=0.23)
    dark = with_luminance(blend(np.array(DARK_PAPER, float), strong, cover[:, None]), most=DARK_LUMINANCE)
    return {
        "cells": _table(np.column_stack([strong, 255 * np.abs(scale) ** 0.7 * 0.85])), "ground": _table(light),
        "glyph": _table(with_luminance(shades, most=0.175)), "darkGround": _table(dark),
        "darkGlyph": _table(with_luminance(shades, least=DARK_GLYPHS)),
    }  # fmt: skip


def _thumbnail(record: AttentionRecord, plane: int, pictures: Sequence[Image.Image]) -> str:
    """The first picture under its mean map as the address of a small JPEG; "" without a picture."""
    if not pictures:
        return "data:,"
    picture = pictures[0].convert("RGB")
    boxes, weights = mean_cells(record, shown_rows(record, plane, "off", True, 0))[0]
    picture.thumbnail(THUMBNAIL)
    stretch = picture.width / pictures[0].width
    values = np.nan_to_num(weights) / max(np.nan_to_num(weights).max(initial=0), np.finfo(np.float32).tiny)
    pixels = np.asarray(picture, float).copy()
    for (left, top, right, bottom), value in zip(np.round(boxes * stretch).astype(int), values):
        part = pixels[top:bottom, left:right]
        part += (COLORMAPS["red_to_green"](value) - part) * opacity(value, CELL_ALPHA)
    file = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _json(value: Any) -> str:
    """JSON of ASCII characters that no parser of HTML takes for markup."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def _filled(template: str, style: str, script: str, **texts: str) -> str:
    """A template with its places filled, all at once, so that nothing that is filled in is looked into."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    texts |= {"style": style, "script": script, "policy": policy}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: texts[place[1]], (ASSETS / template).read_text("utf-8"))
