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

from attention_heatmap.drawing import image_panel
from attention_heatmap.drawing.colour import CELL_ALPHA, COLORMAPS, LOG_DECADES, opacity, strengths
from attention_heatmap.drawing.figure import picture_address
from attention_heatmap.drawing.fonts import NEWLINE_MARK, TURNING_MARKS
from attention_heatmap.drawing.legend import PHASE_COLOURS, key_entries, plane_title
from attention_heatmap.drawing.marks import response_marks
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.page_colours import page_colours
from attention_heatmap.drawing.summary import draw_summary, words_that_looked
from attention_heatmap.drawing.text import find_panel_start, text_pieces
from attention_heatmap.drawing.text_panel import TEXT_SCALE_QUANTILE
from attention_heatmap.files import moved_into_place
from attention_heatmap.maps import BASELINES, TINY, image_shares, map_cells, mean_cells, shown_rows
from attention_heatmap.phases import response_phases
from attention_heatmap.record import AttentionRecord, picture_file
from attention_heatmap.showing import DEFAULT_START_PHRASE

ASSETS = Path(__file__).parent / "page_assets"
# The scripts, in the order they run.
SCRIPTS = ("data", "maps", "pictures", "text", "timeline", "words", "render", "hands", "address", "take", "page")
# A weight is kept as one of 255 levels on a logarithmic scale below the row's highest one: two of them are 4.4% apart,
# so a weight is right to 2.2%, and one below a 65536th of the highest is 0.
LOG_RANGE = math.log(65536)
THUMBNAIL = (160, 120)  # pixels, at most
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
    options, first = options or DrawingOptions(), _check_records(records)
    pictures = list(images) if images and not first.pictures else first.open_pictures()
    files = first.pictures or [picture_file(image) for image in pictures]
    names = names or [f"record {number + 1}" for number in range(len(records))]
    plane = first.plane() if plane is None else plane
    replayed = all(record.neutral is not None for record in records)
    facts = _text_facts(first, start_phrase)
    facts |= {
        "images": [_picture_facts(first, number, file, pictures[number]) for number, file in enumerate(files)],
        "records": [
            {"name": name, "planes": [_plane_facts(record, n, facts["shownFrom"]) for n in range(len(record.layers))]}
            for name, record in zip(names, records)
        ],
        "marks": [vars(m) for m in response_marks(first, plane, [i.size for i in pictures], options.draw_points)],
        "plane": plane,
        "look": _look(options),
        "logRange": LOG_RANGE, "logDecades": LOG_DECADES,
        "quantiles": {"text": TEXT_SCALE_QUANTILE, "cells": image_panel.IMAGE_SCALE_QUANTILE},
        "baselines": {name: words for name, words in BASELINES.items() if replayed or name in ("off", "median")},
        "colours": page_colours(options),
        "grid": {"rgb": image_panel.GRID_LINE, "alpha": image_panel.GRID_ALPHA,
                 "smallest": image_panel.SMALLEST_GRIDDED_CELL},
        "markLook": {"radius": image_panel.MARK_RADIUS, "opacity": image_panel.MARK_OPACITY,
                     "old": image_panel.OLD_MARK, "most": image_panel.MOST_MARKS},
        "greyed": image_panel.GREYED,
        "start": next((step for step, _ in words_that_looked(first, plane, 1)), 0),
    }  # fmt: skip
    scripts = "\n".join((ASSETS / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    return filled_page(
        "page.html", (ASSETS / "page.css").read_text("utf-8"), scripts, facts=_json(facts),
        title=html.escape(visible_text(" ".join(first.response.split())[:80])),
        thumbnail=_thumbnail(first, plane, pictures),
    )  # fmt: skip


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


def _pack(array: np.ndarray, kind: str = "<f4") -> str:
    """An array in base64: its bytes, little end first, deflated without header and checksum: browsers' deflate-raw."""
    return base64.b64encode(zlib.compress(array.astype(kind).tobytes(), 9)[2:-4]).decode()


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


def _text_facts(record: AttentionRecord, start_phrase: str) -> dict:
    """The tokens, and what is known of their places."""
    return {
        "pieces": [[p.start, visible_text(p.text).replace("\n", f"{NEWLINE_MARK}\n"), p.kind]
                   for p in text_pieces(record, 0)],
        "positions": len(record.tokens), "prompt": record.prompt_length,
        "shownFrom": min(find_panel_start(record, start_phrase)[0], record.prompt_length),
        "phases": [vars(phase) | {"rgb": PHASE_COLOURS[phase.name]} for phase in response_phases(record)],
    }  # fmt: skip


def _picture_facts(record: AttentionRecord, number: int, file: bytes, picture: Image.Image) -> dict:
    """A picture and its cells, as `maps.Cells` has them."""
    tokens = record.images[number]
    cells = map_cells(tokens)
    spread = [[position, on.tolist(), parts.astype(float).round(6).tolist()] for position, on, parts in cells.spread]
    return {
        "name": f"image {number + 1}", "width": picture.width, "height": picture.height,
        "shades": image_panel.heat_shades(picture),
        "kind": "image/png" if file.startswith(b"\x89PNG") else "image/jpeg", "file": base64.b64encode(file).decode(),
        "positions": _pack(tokens.positions, "<i4"), "boxes": _pack(tokens.boxes),
        "cells": _pack(cells.positions, "<i4"), "cellBoxes": _pack(cells.boxes), "spread": spread,
    }  # fmt: skip


def _look(options: DrawingOptions) -> dict:
    """How the page looks at first, as the video would."""
    return {
        "colours": options.colormap if isinstance(options.colormap, str) else "own", "scale": options.scale,
        "baseline": options.baseline, "sinks": options.sinks, "smooth": options.smooth,
        "style": options.text_style, "picture": options.picture, "power": options.power, "fps": options.fps,
    }  # fmt: skip


def _thumbnail(record: AttentionRecord, plane: int, pictures: Sequence[Image.Image]) -> str:
    """The first picture under its mean map as the address of a small JPEG."""
    picture = pictures[0].convert("RGB")
    boxes, weights = mean_cells(record, shown_rows(record, plane, "off", True, 0))[0]
    picture.thumbnail(THUMBNAIL)
    boxes = np.round(boxes * (picture.width / pictures[0].width)).astype(int)
    values = np.nan_to_num(weights) / max(np.nan_to_num(weights).max(initial=0), TINY)
    pixels = np.asarray(picture, float).copy()
    for (left, top, right, bottom), value in zip(boxes, values):
        part = pixels[top:bottom, left:right]
        part += (COLORMAPS["red_to_green"](value) - part) * opacity(value, CELL_ALPHA)
    return picture_address(Image.fromarray(pixels.round().astype(np.uint8)), "JPEG", quality=80)


def _json(value: Any) -> str:
    """JSON of ASCII characters that no parser of HTML takes for markup."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def filled_page(template: str, style: str, script: str, **texts: str) -> str:
    """A template with its places filled, all at once: nothing that is filled in is looked into."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    texts |= {"style": style, "script": script, "policy": policy}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: texts[place[1]], (ASSETS / template).read_text("utf-8"))


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
