"""TODO."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from numbers import Real
from pathlib import Path
from typing import Any

from attention_heatmap.dataset import check_sample, lies_in
from attention_heatmap.drawing.frame import layer_title
from attention_heatmap.drawing.options import DRAWING_OPTIONS, DrawingOptions
from attention_heatmap.drawing.outputs import file_names, stills_of, write_layer_videos
from attention_heatmap.drawing.shares import image_shares
from attention_heatmap.drawing.text import find_panel_start
from attention_heatmap.files import DRAWN_FOR, check_output_dir, moved_into_place, partial_path
from attention_heatmap.log import logger, one_line, visible
from attention_heatmap.phases import Phase, response_phases
from attention_heatmap.record import AttentionRecord

FACTS_NAME, TABLE_NAME = "sample.json", "samples.csv"
SHARED_COLUMNS = ("sample", "id", "response", "answer", "correct")  # then a share for each phase and layer
LAST_COLUMNS = ("map", "check", "files", "error")
DRAWING_PATIENCE = 10  # seconds that a process that draws may take to end when it is stopped
FAILURES_NAMED = 20  # samples, at most, in the last line
LONGEST_WAIT = timedelta(weeks=4)  # of one process for the others, whose samples may take longer


def sample_folder(output_dir: str | Path, number: int) -> Path:
    """Where the files of one sample of a dataset go."""
    return Path(output_dir) / f"sample_{number:04d}"


def read_facts(folder: Path) -> dict:
    """What is known of a sample: number, response, shares, files, the settings behind them; {} where nothing is."""
    try:
        facts = json.loads((folder / FACTS_NAME).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def write_facts(folder: Path, facts: dict) -> None:
    """Keep what is known of a sample. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with moved_into_place(folder / FACTS_NAME) as temporary:
        temporary.write_text(json.dumps(facts, indent=1), "utf-8")


def own_files(folder: Path, facts: dict) -> list[Path]:
    """The files that a sample's facts name; a name that would leave the folder is none."""
    names = facts.get("files")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [folder / name for name in names if name not in ("", "..") and Path(name).name == name]


def is_finished(folder: Path, facts: dict) -> bool:
    """Whether a sample succeeded and every file of it is there: each appears under its name when it is whole."""
    files = own_files(folder, facts)
    return bool(files) and not facts.get("error") and all(path.is_file() for path in files)


def forget_sample(folder: Path) -> None:
    """Remove what an earlier run made of a sample, the facts first: without them nothing counts as finished."""
    for path in (folder / FACTS_NAME, *own_files(folder, read_facts(folder))):
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def fingerprint(sample: object, image_dir: Path, allow_absolute_paths: bool = False) -> str:
    """Of a sample as it stands in the dataset and the bytes of its pictures: with others it is another input."""
    digest = hashlib.sha256(json.dumps(sample, sort_keys=True).encode())
    with suppress(ValueError, OSError):  # what cannot be read is told when its turn comes
        for name in check_sample(sample, ""):
            path = image_dir / name
            if path.is_file() and (allow_absolute_paths or lies_in(path, image_dir)):
                with path.open("rb") as file:
                    for part in iter(lambda: file.read(2**20), b""):
                        digest.update(part)
    return digest.hexdigest()


def unfinished_samples(output_dir: str | Path, numbers: Iterable[int], settings_of: Callable[[int], dict]) -> list[int]:
    """Those of the samples that no earlier run has finished. Raises ValueError where one did so by other settings."""
    unfinished, others = [], {}
    for number in numbers:
        folder = sample_folder(output_dir, number)
        facts = read_facts(folder)
        if not is_finished(folder, facts):
            unfinished.append(number)
        elif (wanted := settings_of(number)) != (made := facts.get("settings")):
            made = made if isinstance(made, dict) else {}
            others[number] = sorted(key for key in wanted | made if wanted.get(key) != made.get(key))
    if others:
        number, names = next(iter(others.items()))
        raise ValueError(
            f"{len(others)} finished sample(s) in {output_dir} were made otherwise, such as sample {number} (other "
            f"{', '.join(names)}); give another output_dir, or --overwrite to make them again"
        )
    return unfinished


def answer_text(text: object) -> str:
    """What is compared of a response or an answer: inside the last <answer> tags, else all; white space squeezed."""
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return " ".join((re.findall(r"<answer>(.*?)</answer>", text, re.S) or [text])[-1].split())


def is_correct(response: str, answer: object) -> bool | None:
    """Whether a response gives the answer, letter by letter; None where the dataset has none."""
    return None if answer is None or not answer_text(answer) else answer_text(response) == answer_text(answer)


def phase_shares(record: AttentionRecord, layer: int) -> dict[str, float]:
    """Of each phase, and of the whole `response`: the mean over its steps of the attention that lies on pictures."""
    phases = [*response_phases(record), Phase("response", 0, record.response_length)]
    shares_T = image_shares(record, layer)
    return {phase.name: round(float(shares_T[phase.first : phase.last].mean()), 6) for phase in phases}


def record_facts(record: AttentionRecord, answer: object) -> dict:
    """What a record says of its sample, for the table."""
    return {
        "response": record.response,
        "correct": is_correct(record.response, answer),
        "image_share": {str(layer): phase_shares(record, layer) for layer in record.layers},
        "map": "; ".join(layer_title(record, layer) for layer in record.layers),
        "check": "; ".join(f"layer {check.layer}: {check}" for check in record.checks),
    }


def table_row(folder: Path) -> dict:
    """A sample's row of the table."""
    facts = read_facts(folder)
    shares, correct = facts.get("image_share"), facts.get("correct")
    columns = {
        f"image_share_{phase}_layer{layer}": share
        for layer, phases in (shares.items() if isinstance(shares, dict) else ())
        for phase, share in (phases.items() if isinstance(phases, dict) else ())
    }
    return {
        **{name: facts.get(name) for name in SHARED_COLUMNS},
        "sample": int(folder.name.rpartition("_")[2]),
        "correct": int(correct) if isinstance(correct, bool) else None,
        **columns,
        **{name: facts.get(name) for name in ("map", "check")},
        "files": ";".join(f"{folder.name}/{path.name}" for path in own_files(folder, facts) if path.is_file()),
        "error": facts.get("error") or ("" if is_finished(folder, facts) else "not finished"),
    }


def _cell(value: object) -> object:
    """A value of the table: harmless in a terminal, and marked as text where a spreadsheet would run it."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    is_formula = text.lstrip().startswith(tuple("=+-@＝＋－＠")) and not re.fullmatch(r"[+-]?[\d.]+", text)
    return f"'{text}" if is_formula else text


def write_table(output_dir: str | Path) -> None:
    """Write `samples.csv`: a row for each sample that has a folder in output_dir, by whichever run. Raises OSError."""
    folders = [path for path in Path(output_dir).glob("sample_*") if re.fullmatch(r"sample_[0-9]{4,18}", path.name)]
    rows = sorted(map(table_row, folders), key=lambda row: row["sample"])
    shares = {name for row in rows for name in row if name.startswith("image_share_")}
    with (
        moved_into_place(Path(output_dir) / TABLE_NAME) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, [*SHARED_COLUMNS, *sorted(shares), *LAST_COLUMNS], restval="")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


class NoSpaceLeft(OSError):
    """The samples to come would fail, too."""


def fail_sample(folder: Path, facts: dict, error: object) -> None:
    """Report a sample that failed, and note it for the table. Raises NoSpaceLeft where the rest would fail as well."""
    message = one_line(error) or type(error).__name__
    logger.error("sample %s: %s", facts["sample"], message)
    try:
        write_facts(folder, facts | {"error": message})
    except OSError as problem:  # the table will say that it is not finished
        logger.error("sample %s: %s", facts["sample"], one_line(problem))
    if os.strerror(errno.ENOSPC) in message:
        raise NoSpaceLeft(f"{folder.parent} has no space left; make room, and the same command goes on where it was")


class BackgroundDrawing:
    """Draws one sample while the model answers the next, in a process of this module's own command line.

    A process, since the Python of a thread would hold up the model's. One sample at a time, so that there are never
    more than two records. A failure is written into the facts of its sample.
    """

    def __init__(self, start_phrase: str, options: DrawingOptions, save_record: str | None) -> None:
        self.start_phrase, self.options, self.save_record = start_phrase, options, save_record and str(save_record)
        self._current: tuple[Path, dict, Path, subprocess.Popen, Any] | None = None
        self._said: set[str] = set()

    def __enter__(self) -> BackgroundDrawing:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.finish(stop=kind is not None)

    def start(self, folder: Path, facts: dict, record: AttentionRecord) -> None:
        """Begin to draw a sample as soon as the one before is drawn. Its facts name the files before they are there."""
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / self.save_record if self.save_record else partial_path(folder / "record.npz")
        record.save(source, compress=bool(self.save_record))
        try:
            self.finish()
            facts = facts | record_facts(record, facts["answer"]) | {"files": self._names(record)}
            write_facts(folder, facts)
            if not callable(self.options.colormap):
                with undisturbed():
                    self._current = folder, facts, source, *self._drawing_process(source, folder, record.layers)
            else:  # no other process has it
                images = record.open_pictures()
                write_layer_videos(record, images, record.layers, self.start_phrase, folder, self.options)
        finally:
            if not self._current and not self.save_record:
                source.unlink(missing_ok=True)

    def _names(self, record: AttentionRecord) -> list[str]:
        """The names of a sample's files."""
        names, phrase = [self.save_record] * bool(self.save_record), self.start_phrase
        first = find_panel_start(record, phrase)[1] if phrase and phrase in record.response else 0
        stills = [f"step{step}" for step in stills_of(record, first, self.options.frames)]
        return names + [name for layer in record.layers for name in file_names(layer, stills, self.options)]

    def _drawing_process(self, source: Path, folder: Path, layers: Sequence[int]) -> tuple[subprocess.Popen, Any]:
        """A process that draws a record into a folder, and the file that holds what it says."""
        flags = [f"--start_phrase={self.start_phrase}", "--layer_idx", *map(str, layers)]
        for name in DRAWING_OPTIONS:
            value = getattr(self.options, name)
            if name == "frame_size":
                flags.append("--frame_size={}x{}".format(*value))
            elif isinstance(value, bool):
                flags += [f"--{name}"] * value
            elif name == "frames":
                flags += [f"--{name}", *map(str, value)] * (len(value) > 0)
            elif value is not None:
                flags.append(f"--{name}={float(value) if isinstance(value, Real) else value}")
        command = [sys.executable, __file__, f"--from_record={source}", f"--output_dir={folder}", *flags]
        said = tempfile.TemporaryFile()  # noqa: SIM115  closed when the process has ended
        quiet = {**os.environ, "TQDM_DISABLE": "1", DRAWN_FOR: str(os.getpid())}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": said}
        return subprocess.Popen(command, env=quiet, **streams), said

    def finish(self, stop: bool = False) -> None:
        """Wait until the current sample is drawn, or stop that; pass on what its process said."""
        if not self._current:
            return
        folder, facts, source, process, said = self._current
        try:
            if stop:
                process.terminate()
            process.wait(DRAWING_PATIENCE if stop else None)
        finally:  # also where this very wait is stopped
            self._current = None
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(DRAWING_PATIENCE)
            process.kill()
            if not self.save_record:
                source.unlink(missing_ok=True)
        said.seek(0)
        lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
        said.close()
        for line in dict.fromkeys(line for line in lines if line.startswith("WARNING: ")):
            if line not in self._said:  # of fonts, say: once is enough
                logger.warning("sample %s: %s", facts["sample"], one_line(line.removeprefix("WARNING: ")))
                self._said.add(line)
        if process.returncode and not stop:
            reason = lines[-1].removeprefix("error: ") if lines else f"drawing ended with status {process.returncode}"
            fail_sample(folder, facts, reason)


@contextmanager
def said_of(number: int) -> Iterator[None]:
    """Within this block whatever is logged names the sample."""

    def name(message: logging.LogRecord) -> bool:
        message.msg = f"sample {number}: {message.msg}"
        return True

    logger.addFilter(name)
    try:
        yield
    finally:
        logger.removeFilter(name)


def run_samples(
    numbers: Iterable[int], output_dir: str | Path, answer: Callable[[int, dict], AttentionRecord],
    beside: BackgroundDrawing | None, settings_of: Callable[[int], dict] | None,
) -> None:  # fmt: skip
    """Answer one sample after the other, and have each drawn while the next is answered.

    answer: gives the record of a sample, and adds to its facts. beside: None in a process that only helps to answer.
    settings_of: of a sample that another run may have finished meanwhile, to leave it out; None where all are done,
    as by processes that share a model: they have to agree.
    Raises OSError where nothing can be written any more.
    """
    from tqdm import tqdm

    for number in tqdm(numbers, desc="samples", unit="sample"):
        check_output_dir(output_dir)
        if settings_of and not unfinished_samples(output_dir, [number], settings_of):
            continue
        folder, facts = sample_folder(output_dir, number), {"sample": number}
        try:
            if beside:
                forget_sample(folder)
            with said_of(number):
                record = answer(number, facts)
            if beside:
                beside.start(folder, facts, record)
        except NoSpaceLeft:  # it may be the sample before that found none
            raise
        except Exception as error:  # whatever it is, it is this sample's
            if beside:
                fail_sample(folder, facts, error)


class SamplesFailed(RuntimeError):
    """Some samples of a dataset failed, the rest is done."""


def report_samples(rows: list[dict], output_dir: str | Path) -> str:
    """The path of the table. Raises SamplesFailed with a list of the samples that failed."""
    table = Path(output_dir) / TABLE_NAME
    failed = [str(row["sample"]) for row in rows if row["error"]]
    if failed:
        shown = ", ".join(failed[:FAILURES_NAMED]) + ", ..." * (len(failed) > FAILURES_NAMED)
        raise SamplesFailed(f"{len(failed)} of {len(rows)} samples failed: {shown}; {table} says why")
    return str(table)
