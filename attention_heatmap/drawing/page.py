"""One HTML file to explore a record in a browser: point at a word, see where it looked; point at a place, see who did.

The file asks nothing of any network: its Content-Security-Policy forbids every request, and only our own script and
style run, by their hashes. What comes from datasets and models is data in it, never markup. `page_assets/` holds the
page's HTML, CSS and JavaScript, one file after the other in one script.
"""

import base64
import hashlib
import html
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attention_heatmap.drawing import colour, image_panel
from attention_heatmap.drawing.colour import (
    CELL_ALPHA,
    COLORMAPS,
    TEXT_ALPHA,
    blend,
    opacity,
    strengths,
    with_luminance,
)
from attention_heatmap.drawing.fonts import NEWLINE_MARK, TURNING_MARKS
from attention_heatmap.drawing.legend import PHASE_COLOURS, key_entries, plane_title
from attention_heatmap.drawing.marks import response_marks
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.summary import draw_summary, words_that_looked
from attention_heatmap.drawing.text import find_panel_start, text_pieces
from attention_heatmap.drawing.text_panel import TEXT_SCALE_QUANTILE
from attention_heatmap.drawing.vectors import picture_address
from attention_heatmap.files import moved_into_place
from attention_heatmap.maps import BASELINES, TINY, image_shares, map_cells, mean_cells, shown_rows
from attention_heatmap.phases import response_phases
from attention_heatmap.record import AttentionRecord, picture_file
from attention_heatmap.showing import DEFAULT_START_PHRASE

_ASSETS = Path(__file__).parent / "page_assets"
# The scripts, in the order they run.
_SCRIPTS = ("data", "maps", "pictures", "text", "timeline", "words", "render", "hands", "address", "take", "page")
# A weight is kept as one of 255 levels on a logarithmic scale below the row's highest one: two of them are 4.4% apart,
# so a weight is right to 2.2%, and one below a 65536th of the highest is 0.
LOG_RANGE = math.log(65536)
_THUMBNAIL = (160, 120)  # pixels, at most
_LEVELS = 65  # colours of a table; odd, so that a difference of nothing has one of its own
_STRENGTHS = np.linspace(colour.LEAST_STRENGTH, 1, 6)  # of the tint; it follows the share of the attention shown
_DARK_PAPER, _DARK_INK = (21, 23, 27), (232, 234, 238)  # of the page on a dark screen
# Luminance there of coloured grounds at most, of coloured glyphs at least: a contrast of 4.5:1.
_DARK_GROUNDS, _DARK_GLYPHS = 0.14, 0.23
LARGEST_NOTEBOOK_PAGE = 3 * 2**20  # bytes; a larger page would make notebooks heavy, which keep it


def write_page(
    records: AttentionRecord | Sequence[AttentionRecord], path: str | Path, start_phrase: str = DEFAULT_START_PHRASE,
    options: DrawingOptions | None = None, **more: Any,
) -> Path:  # fmt: skip
    """Write one HTML file that shows a record, or two of the same tokens beside each other and their difference.

    The rest as for `page_html`. Returns the path. Raises ValueError for records that do not fit, or OSError.
    """
    return save_page(page_html(records, start_phrase, options, **more), Path(path))


def save_page(page: str, path: Path) -> Path:
    """Write a page whole or not at all, and as it is: a hash is of its very bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with moved_into_place(path) as temporary:
        temporary.write_bytes(page.encode())
    return path


def page_html(
    records: AttentionRecord | Sequence[AttentionRecord], start_phrase: str = DEFAULT_START_PHRASE,
    options: DrawingOptions | None = None, *, images: Sequence[Image.Image] | None = None, names: Sequence[str] = (),
    plane: int | None = None,
) -> str:  # fmt: skip
    """The page of a record, or of two.

    images: the pictures, where the records keep none. names: of the two records, such as two checkpoints'.
    plane: which is shown first. Raises ValueError for records that do not fit.
    """
    records = [records] if isinstance(records, AttentionRecord) else list(records)
    first = _check_records(records)
    pictures = list(images) if images and not first.pictures else first.open_pictures()
    names = names or [f"record {number + 1}" for number in range(len(records))]
    plane = first.plane() if plane is None else plane
    facts = _facts(records, names, pictures, plane, start_phrase, options or DrawingOptions())
    facts = json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")  # no markup in it
    title = html.escape(visible_text(" ".join(first.response.split())[:80]))
    thumbnail = _thumbnail(first, plane, pictures)
    return filled_page("page", _SCRIPTS, facts=facts, title=title, thumbnail=thumbnail)


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
    if not first.response_length or not first.images:
        raise ValueError("the record has no picture, or an empty response: there is nothing to explore")
    return first


def _facts(
    records: Sequence[AttentionRecord], names: Sequence[str], pictures: Sequence[Image.Image], plane: int,
    start_phrase: str, options: DrawingOptions,
) -> dict:  # fmt: skip
    """All that the page shows. How it looks at first is how the video would."""
    first, shown_from = records[0], min(find_panel_start(records[0], start_phrase)[0], records[0].prompt_length)
    files = first.pictures or [picture_file(image) for image in pictures]
    replayed = all(record.neutral is not None for record in records)
    return {
        "pieces": [[p.start, visible_text(p.text).replace("\n", f"{NEWLINE_MARK}\n"), p.kind]
                   for p in text_pieces(first, 0)],
        "positions": len(first.tokens), "prompt": first.prompt_length, "shownFrom": shown_from,
        "phases": [vars(phase) | {"rgb": PHASE_COLOURS[phase.name]} for phase in response_phases(first)],
        "images": [_picture_facts(first, number, file, pictures[number]) for number, file in enumerate(files)],
        "records": [
            {"name": name, "planes": [_plane_facts(record, n, shown_from) for n in range(len(record.layers))]}
            for name, record in zip(names, records)
        ],
        "marks": [vars(m) for m in response_marks(first, plane, [i.size for i in pictures], options.draw_points)],
        "plane": plane,
        "look": {
            "colours": options.colormap if isinstance(options.colormap, str) else "own", "scale": options.scale,
            "baseline": options.baseline, "sinks": options.sinks, "smooth": options.smooth,
            "style": options.text_style, "picture": options.picture, "power": options.power, "fps": options.fps,
        },
        "logRange": LOG_RANGE, "logDecades": colour.LOG_DECADES,
        "quantiles": {"text": TEXT_SCALE_QUANTILE, "cells": image_panel.IMAGE_SCALE_QUANTILE},
        "baselines": {name: words for name, words in BASELINES.items() if replayed or name in ("off", "median")},
        "colours": _colours(options),
        "grid": {"rgb": image_panel.GRID_LINE, "alpha": image_panel.GRID_ALPHA,
                 "smallest": image_panel.SMALLEST_GRIDDED_CELL},
        "markLook": {"radius": image_panel.MARK_RADIUS, "opacity": image_panel.MARK_OPACITY,
                     "old": image_panel.OLD_MARK, "most": image_panel.MOST_MARKS},
        "greyed": image_panel.GREYED,
        "start": next((step for step, _ in words_that_looked(first, plane, 1)), 0),
    }  # fmt: skip


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _pack(array: np.ndarray, kind: str = "<f4") -> str:
    """An array in base64: its bytes, little end first, deflated without header and checksum: browsers' deflate-raw."""
    return _base64(zlib.compress(array.astype(kind).tobytes(), 9)[2:-4])


def _quantised(record: AttentionRecord, plane: int) -> tuple[np.ndarray, np.ndarray]:
    """((T, S) uint8, (T, 1 + pictures) float32): levels, and the highest weight of the text and of each picture."""
    rows_TS, group_S = record.rows(plane), np.zeros(len(record.tokens), int)
    for number, image in enumerate(record.images, start=1):
        group_S[image.positions] = number
    groups = range(len(record.images) + 1)
    peaks_TG = np.stack([rows_TS[:, group_S == group].max(axis=1, initial=0) for group in groups], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        levels_TS = np.round(255 + 254 / LOG_RANGE * np.log(rows_TS / peaks_TG[:, group_S]))
    return np.where(levels_TS >= 1, levels_TS, 0).astype(np.uint8), peaks_TG


def _plane_facts(record: AttentionRecord, n: int, text_start: int) -> dict:
    """What the page needs of a plane; text_start: the position at which the text is shown."""
    words = np.setdiff1d(np.arange(text_start, len(record.tokens)), record.image_positions)
    shown, (levels_TS, peaks_TG) = shown_rows(record, n, "off", True, 0), _quantised(record, n)
    return {
        "title": plane_title(record, n), "name": record.plane_name(n), "key": record.plane_key(n),
        "layer": record.layers[n], "head": record.plane_name(n).partition(", ")[2],
        "rows": _pack(levels_TS, "u1"), "peaks": _pack(peaks_TG),
        "cellStrengths": _pack(strengths(image_shares(record, n), "frame")),
        "textStrengths": _pack(strengths(record.rows(n)[:, words].sum(axis=1), "frame")),
        "shares": [{"name": e.name, "rgb": e.colour, "weights": _pack(e.weights)} for e in key_entries(record, n)],
        "median": _pack(np.median(record.rows(n)[:, record.image_positions], axis=0)),
        "neutral": None if record.neutral is None else _pack(record.neutral[n]),
        "sinks": np.flatnonzero(shown.sinks).tolist(), "leftOut": shown.left_out,
        "checks": [{"view": check.view, "text": str(check)} for check in record.checks if check.plane == n],
    }  # fmt: skip


def visible_text(text: str) -> str:
    """Text as a browser may show it: what turns or hides other text, and what has no glyph, as its code point."""

    def is_hidden(c: str) -> bool:
        return c in TURNING_MARKS or (unicodedata.category(c) in ("Cc", "Cs", "Cn", "Co") and c not in "\n\t")

    return "".join(f"[U+{ord(c):04X}]" if is_hidden(c) else c for c in text)


def _picture_facts(record: AttentionRecord, number: int, file: bytes, picture: Image.Image) -> dict:
    """A picture and its cells, as `maps.Cells` has them."""
    tokens = record.images[number]
    cells = map_cells(tokens)
    spread = [[position, on.tolist(), parts.astype(float).round(6).tolist()] for position, on, parts in cells.spread]
    return {
        "name": f"image {number + 1}", "width": picture.width, "height": picture.height,
        "shades": image_panel.heat_shades(picture),
        "kind": "image/png" if file.startswith(b"\x89PNG") else "image/jpeg", "file": _base64(file),
        "positions": _pack(tokens.positions, "<i4"), "boxes": _pack(tokens.boxes),
        "cells": _pack(cells.positions, "<i4"), "cellBoxes": _pack(cells.boxes), "spread": spread,
    }  # fmt: skip


def _colours(options: DrawingOptions) -> dict:
    """Tables of colours of each map, made by the functions that draw the video: strength by strength, low to high."""
    given, scale, strength = options.colormap, np.linspace(0, 1, _LEVELS), _STRENGTHS[:, None]
    maps = {given if isinstance(given, str) else "own": colour.colour_map(given)} | COLORMAPS
    covers = [opacity(scale, alpha, strength) for alpha in (CELL_ALPHA, TEXT_ALPHA)]
    # From the most below to the most above: the opacity alone tells how far, and what is alike has no tint.
    two_sided = [np.abs(2 * scale - 1) * high * strength for _, high in (CELL_ALPHA, TEXT_ALPHA)]
    difference = _table(*(colour.purple_to_green(values) for values in (np.round(scale), scale)), *two_sided)
    return {
        "levels": _LEVELS, "strengths": _STRENGTHS.tolist(),
        "maps": {name: _table(colormap(scale), colormap(scale), *covers) for name, colormap in maps.items()},
        "difference": difference,
        "fixed": {"current": colour.CURRENT_TOKEN, "ink": colour.INK, "muted": colour.MUTED, "paper": colour.PAPER},
        "dark": {"ink": _DARK_INK, "paper": _DARK_PAPER}, "special": colour.SPECIAL_ALPHA,
    }  # fmt: skip


def _table(shades: np.ndarray, letters: np.ndarray, cells: np.ndarray, texts: np.ndarray) -> dict[str, str]:
    """RGBA of cells, RGB of grounds and glyphs of the text on light and dark paper, as base64 of bytes.

    shades, letters: (levels, 3) RGB; cells, texts: (strengths, levels) their opacity. Tables: (strengths, levels, ...).
    """
    shades, letters = (np.tile(np.asarray(part, float), (len(_STRENGTHS), 1)) for part in (shades, letters))
    light, dark = (blend(np.array(paper, float), shades, texts.reshape(-1, 1)) for paper in (colour.PAPER, _DARK_PAPER))
    tables = {
        "cells": np.column_stack([shades, 255 * cells.ravel()]),
        "ground": with_luminance(light, least=colour.GROUND_LUMINANCE),
        "glyph": with_luminance(letters, most=colour.GLYPH_LUMINANCE),
        "darkGround": with_luminance(dark, most=_DARK_GROUNDS), "darkGlyph": with_luminance(shades, least=_DARK_GLYPHS),
    }  # fmt: skip
    return {kind: _base64(np.round(table).astype(np.uint8).tobytes()) for kind, table in tables.items()}


def _thumbnail(record: AttentionRecord, plane: int, pictures: Sequence[Image.Image]) -> str:
    """The first picture under its mean map as the address of a small JPEG."""
    picture = pictures[0].convert("RGB")
    boxes, weights = mean_cells(record, shown_rows(record, plane, "off", True, 0))[0]
    picture.thumbnail(_THUMBNAIL)
    boxes = np.round(boxes * (picture.width / pictures[0].width)).astype(int)
    values = np.nan_to_num(weights) / max(np.nan_to_num(weights).max(initial=0), TINY)
    pixels = np.asarray(picture, float).copy()
    for (left, top, right, bottom), value in zip(boxes, values):
        part = pixels[top:bottom, left:right]
        part += (COLORMAPS["red_to_green"](value) - part) * opacity(value, CELL_ALPHA)
    return picture_address(Image.fromarray(pixels.round().astype(np.uint8)), "JPEG", quality=80)


def filled_page(name: str, scripts: Sequence[str], **texts: str) -> str:
    """A page of `page_assets` with its places filled, all at once: nothing that is filled in is looked into."""
    files = f"{name}.html", f"{name}.css", *(f"{one}.js" for one in scripts)
    template, style, *parts = ((_ASSETS / file).read_text("utf-8") for file in files)
    script = "\n".join(parts)
    hashes = [_base64(hashlib.sha256(text.encode()).digest()) for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    texts |= {"style": style, "script": script, "policy": policy}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: texts[place[1]], template)


def notebook_html(record: AttentionRecord) -> str:
    """What a notebook shows of a record: its page, or its summary where the page would be heavy."""
    if not record.pictures or not record.response_length:
        return f"<pre>{html.escape(record.response)}</pre>"
    page = page_html(record)
    if len(page) <= LARGEST_NOTEBOOK_PAGE:
        # The frame has no rights over the notebook; where a notebook that is not trusted drops it, the words stay.
        return (
            '<div style="position: relative; height: 760px"><p>The page of this record shows in a trusted notebook.</p>'
            '<iframe title="What a model looked at while it answered" sandbox="allow-scripts allow-downloads" '
            'style="position: absolute; inset: 0; width: 100%; height: 100%; border: 0; background: white" '
            f'srcdoc="{html.escape(page)}"></iframe></div>'
        )
    summary = picture_address(draw_summary(record, record.open_pictures(), record.plane()))
    return f'<img alt="summary of an attention record" style="max-width: 100%" src="{summary}">'
