"""What is known of each sample of a dataset: its facts, and the table of all."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from attention_heatmap.compare import bootstrap, compare
from attention_heatmap.files import check_target, moved_into_place
from attention_heatmap.log import visible
from attention_heatmap.maps import image_shares
from attention_heatmap.phases import Phase, response_phases
from attention_heatmap.record import AttentionRecord

_FACTS_NAME, TABLE_NAME = "sample.json", "samples.csv"
_LARGEST_FACTS = 2**26  # bytes; a larger file is none of ours
_LONGEST_NAME = 255  # bytes of a file's name, on most systems
_SHARED_COLUMNS = ("sample", "id", "response", "answer", "correct")  # then a share for each phase and plane
_NUMBERS = ("image_share_", "distance_", "change_")  # what the columns of numbers begin with
_LAST_COLUMNS = ("map", "check", "files", "error")
# What a spreadsheet runs a cell for, at its beginning or after what some programs split cells at; plain numbers aside.
_FORMULA = re.compile(
    r"""(^|[;\t\r\n,|])(?=(?:[^\S\t\r\n]|["'])*[=+\-@＝＋－＠])(?![^\S\t\r\n]*[+-][\d.]+ *[)\]}]* *(?:[;\t\r\n,|]|$))"""
)


def sample_folder(output_dir: str | Path, number: int) -> Path:
    """Where the files of one sample of a dataset go."""
    return Path(output_dir) / f"sample_{number:04d}"


def read_facts(folder: Path) -> dict:
    """What is known of a sample: number, response, shares, files, the settings behind them; {} where nothing is."""
    path = folder / _FACTS_NAME
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_FACTS:
            return {}
        facts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def write_facts(folder: Path, facts: dict, files: Iterable[Path] = ()) -> None:
    """Keep what is known of a sample, last of all: it vouches for its files by their sizes. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {path.name: path.stat().st_size for path in files}
    with moved_into_place(folder / _FACTS_NAME) as temporary:
        temporary.write_text(json.dumps({**facts, "files": sizes}, indent=1), "utf-8")


def own_files(folder: Path, facts: dict) -> dict[Path, int]:
    """The files that a sample's facts name, and their sizes; what would leave the folder, or is no name, is none."""
    names = facts.get("files")
    names = names if isinstance(names, dict) else {}
    return {folder / name: size for name, size in names.items() if _is_name(name)}


def _is_name(name: str) -> bool:
    plain = name.isprintable() and len(name.encode()) <= _LONGEST_NAME
    return plain and name not in ("", "..") and Path(name).name == name


def is_finished(folder: Path, facts: dict) -> bool:
    """Whether a sample succeeded and every file of it is there, as large as it was."""
    files = own_files(folder, facts)
    whole = all(path.is_file() and path.stat().st_size == size for path, size in files.items())
    return bool(files) and not facts.get("error") and whole


def forget_sample(folder: Path) -> None:
    """Remove what an earlier run made of a sample, the facts first: without them nothing counts as finished."""
    for path in (folder / _FACTS_NAME, *own_files(folder, read_facts(folder))):
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def answer_text(text: object) -> str:
    """What is compared of a response or an answer: inside the last <answer> tags, else all; white space squeezed."""
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    end = text.rfind("</answer>")
    begin = text.rfind("<answer>", 0, end) if end >= 0 else -1
    inside = text[begin + len("<answer>") : end] if begin >= 0 else text
    return " ".join(inside.split())


def is_correct(response: str, answer: object) -> bool | None:
    """Whether a response gives the answer, letter by letter; None where the dataset has none."""
    return None if answer is None or not answer_text(answer) else answer_text(response) == answer_text(answer)


def phase_shares(record: AttentionRecord, plane: int) -> dict[str, float]:
    """Of each phase, and of the whole `response`: the mean over its steps of the attention that lies on pictures."""
    phases = [*response_phases(record), Phase("response", 0, record.response_length)]
    shares_T = image_shares(record, plane)
    return {phase.name: round(float(shares_T[phase.first : phase.last].mean()), 6) for phase in phases}


def record_facts(records: Sequence[AttentionRecord], answer: object) -> dict:
    """What the record of a sample, or two that are compared, say of it, for the table."""
    record, planes, columns = records[0], range(len(records[0].layers)), {}
    for plane in planes:
        key = record.plane_key(plane)
        columns |= {f"image_share_{phase}_{key}": share for phase, share in phase_shares(record, plane).items()}
        if len(records) > 1:
            for row in compare(*records, record.layers[plane], record.heads[plane]).phases():
                columns |= {f"{name}_{row['phase']}_{key}": row[name] for name in ("image_share_b", "distance")}
    return {
        "response": record.response,
        "correct": is_correct(record.response, answer),
        "columns": columns,
        "map": "; ".join(map(record.plane_name, planes)),
        "check": "; ".join(f"{record.plane_name(check.plane)}: {check}" for check in record.checks),
    }


def table_row(folder: Path) -> dict:
    """A sample's row of the table."""
    facts = read_facts(folder)
    columns, correct = facts.get("columns"), facts.get("correct")
    numbers = columns.items() if isinstance(columns, dict) else ()
    return {
        **{name: facts.get(name) for name in _SHARED_COLUMNS},
        "sample": int(folder.name.rpartition("_")[2]),
        "correct": int(correct) if isinstance(correct, bool) else None,
        **{name: n for name, n in numbers if name.startswith(_NUMBERS) and isinstance(n, (int, float))},
        **{name: facts.get(name) for name in ("map", "check")},
        "files": ";".join(f"{folder.name}/{path.name}" for path in own_files(folder, facts) if path.is_file()),
        "error": facts.get("error") or ("" if is_finished(folder, facts) else "not finished"),
    }


def _table_ends(rows: Sequence[dict]) -> list[dict]:
    """Rows that end the table of a comparison: of each number its mean over the samples, and its 95% interval."""
    if not any(name.startswith("distance_") for row in rows for name in row):
        return []
    names = sorted({name for row in rows for name in row if name.startswith(_NUMBERS)})
    found = {name: bootstrap([row.get(name) for row in rows if not row["error"]]) for name in ("correct", *names)}
    pairs = [(name, name.replace("image_share_b_", "image_share_", 1)) for name in names if "_share_b_" in name]
    for second, first in pairs:
        both = [(row.get(first), row.get(second)) for row in rows if not row["error"]]
        found[f"change_{first}"] = bootstrap([b - a for a, b in both if None not in (a, b)])
    ends = "mean", "2.5%", "97.5%"
    return [{"sample": end, **{n: values[k] for n, values in found.items()}} for k, end in enumerate(ends)]


def _cell(value: object) -> object:
    """A value of the table: harmless in a terminal, and marked as text where a spreadsheet would run a part of it."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return _FORMULA.sub(r"\1'", text)


def write_table(output_dir: str | Path) -> list[dict]:
    """Write `samples.csv`: a row for each sample that has a folder in output_dir, by whichever run.

    Returns the rows of the samples, by their numbers. Raises OSError.
    """
    folders = [path for path in Path(output_dir).glob("sample_*") if re.fullmatch(r"sample_[0-9]{4,18}", path.name)]
    samples = sorted(map(table_row, folders), key=lambda row: row["sample"])
    rows = samples + _table_ends(samples)
    shares = {name for row in rows for name in row if name.startswith(_NUMBERS)}
    with (
        moved_into_place(Path(output_dir) / TABLE_NAME) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, [*_SHARED_COLUMNS, *sorted(shares), *_LAST_COLUMNS], restval="")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return samples


def check_table(output_dir: str | Path) -> None:
    """Raises ValueError where the table cannot be written, or would replace another, before the long work begins."""
    path, header = Path(output_dir) / TABLE_NAME, ",".join(_SHARED_COLUMNS).encode()
    check_target(path)
    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        if (begin := file.read(len(header))) and begin != header:
            raise ValueError(f"{path} is there and no table of this program; give another output_dir, or move it")
