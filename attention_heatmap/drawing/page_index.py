"""The index of a dataset's pages: a row a sample, each leading to its page."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from attention_heatmap.drawing.page import filled_page, save_page, visible_text

_SHARES = "image_share_"  # what the columns of shares begin with in the table of a dataset
_ICON = re.compile(rb'<link rel="icon" href="(data:image/jpeg;base64,[A-Za-z0-9+/=]+)">')


def write_index(rows: Sequence[dict], path: str | Path) -> Path:
    """Write the index: a row a sample with its response, right or wrong, its shares, a thumbnail and a link.

    rows: of the table, as `table.table_row` gives them; the names in `files` are relative to the index. Returns the
    path. Raises OSError.
    """
    path, shares = Path(path), list(dict.fromkeys(name for row in rows for name in row if name.startswith(_SHARES)))
    known = [row["correct"] for row in rows if row.get("correct") is not None]
    failed = sum(bool(row.get("error")) for row in rows)
    summary = f"{len(rows)} samples" + f", {sum(map(bool, known))} of {len(known)} right" * bool(known)
    summary += f", {failed} failed" * bool(failed)
    heads = "".join(f"<th scope=col>{html.escape(_share_name(name))}</th>" for name in shares)
    body = "\n".join(_index_row(row, shares, path.parent) for row in rows)
    return save_page(filled_page("index", ["index"], summary=summary, heads=heads, rows=body), path)


def _share_name(column: str) -> str:
    phase, _, plane = column.removeprefix(_SHARES).partition("_")
    return f"on the pictures: {phase}, {plane.replace('_', ' ')}"


def _index_row(row: dict, shares: Sequence[str], folder: Path) -> str:
    """A row of the index; a text of the dataset or the model is text in it."""

    def words(name: str) -> str:
        value = row.get(name)
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
        return f"<bdi>{html.escape(visible_text(text))}</bdi>"

    pages = [name for name in str(row.get("files") or "").split(";") if name.endswith(".html")]
    link = f'<a href="{html.escape(quote(pages[0]))}">{words("sample")}</a>' if pages else words("sample")
    thumbnail = _thumbnail_in(folder / pages[0]) if pages else ""
    picture = f'<img src="{thumbnail}" alt="" loading="lazy">' if thumbnail else ""
    correct = row.get("correct")
    verdict = "" if correct is None else "right" if correct else "wrong"
    numbers = [row.get(name) for name in shares]
    cells = "".join(f"<td>{n:.1%}</td>" if isinstance(n, (int, float)) else "<td></td>" for n in numbers)
    error = f'<p class="error">{words("error")}</p>' if row.get("error") else ""
    return (
        f'<tr><th scope=row>{link}</th><td>{picture}</td><td>{words("id")}</td><td class="long">{words("response")}'
        f'{error}</td><td class="long">{words("answer")}</td><td class="{verdict}">{verdict}</td>{cells}</tr>'
    )


def _thumbnail_in(page: Path) -> str:
    """The thumbnail that a page of ours keeps in its head; "" for any other file."""
    try:
        with page.open("rb") as file:
            found = _ICON.search(file.read(2**16))
    except OSError:
        return ""
    return found[1].decode() if found else ""
