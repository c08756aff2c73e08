"""Whole datasets: each sample recorded and drawn, one drawn while the next is answered, and resumed."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from attention_heatmap.dataset import check_sample, lies_in
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.outputs import write_videos
from attention_heatmap.files import check_output_dir, new_partial, remove_stale
from attention_heatmap.log import OurMistake, logger, one_line, said_of
from attention_heatmap.record import AttentionRecord
from attention_heatmap.table import (
    TABLE_NAME,
    forget_sample,
    is_finished,
    read_facts,
    record_facts,
    sample_folder,
    write_facts,
)

RECORD_NAME = "record.safetensors"  # of a record that is kept since its drawing failed
_COLOURS_COMPARED = 255  # of a colour map that is a function, whose name says nothing
_FAILURES_NAMED = 20  # samples, at most, in the last line


class NoSpaceLeft(OSError):
    """The samples to come would fail, too."""


class SamplesFailed(RuntimeError):
    """Some samples of a dataset failed, the rest is done."""


def fingerprint(sample: object, image_dir: Path, allow_absolute_paths: bool = False) -> str:
    """Of a sample as it stands in the dataset and the bytes of its pictures: with others it is another input."""
    digest = hashlib.sha256(json.dumps(sample, sort_keys=True).encode())
    with suppress(ValueError, OSError):  # what cannot be read is told when its turn comes
        for name in check_sample(sample, ""):
            path = image_dir / name
            if path.is_file() and (allow_absolute_paths or lies_in(path, image_dir)):
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
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
            f"{len(others)} finished sample(s) in {output_dir} were made with other settings, such as sample {number} "
            f"(other {', '.join(names)}); give another output_dir, or --overwrite to make them again"
        )
    return unfinished


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


def settings_of_run(settings: dict, drawing: DrawingOptions) -> dict:
    """All that a sample's files depend on beside the sample, as JSON gives it back. Raises ValueError."""
    if settings.get("response") is not None:
        raise ValueError("response is the answer to one sample; give response_key, the field that holds each one's")
    save_record = settings.get("save_record")
    if save_record is not None and not re.fullmatch(r"[^/\\]+\.safetensors", str(save_record)):
        raise ValueError(
            f"save_record {save_record} is no name for each sample's folder; give one such as run.safetensors"
        )
    shown = dict(vars(drawing))
    if callable(drawing.colormap):
        colours = np.asarray(drawing.colormap(np.linspace(0, 1, _COLOURS_COMPARED)), np.float32)
        shown["colormap"] = hashlib.sha256(colours.tobytes()).hexdigest()
    return json.loads(json.dumps({**settings, **shown}, default=str))


@contextmanager
def kept_on_failure(record: AttentionRecord, saved: str | Path | None, place: Path) -> Iterator[None]:
    """A block after which a record is not lost where it fails: the error says where it is kept.

    saved: where the record is already, if anywhere; place: where else it goes.
    """
    try:
        yield
    except Exception as error:
        try:
            if not saved:
                record.save(place)
        except (OSError, ValueError) as problem:
            logger.error("the record could not be kept: %s", one_line(problem))
            raise error from None
        text = f"{one_line(error) or type(error).__name__}; the record is kept in {saved or place}"
        known = isinstance(error, (ValueError, OSError, RuntimeError))
        raise (RuntimeError(text) if known else OurMistake(f"{type(error).__name__}: {text}")) from error


def draw_sample(record: Path, folder: Path, start_phrase: str, options: DrawingOptions) -> tuple[list[Path], list[str]]:
    """Draw a kept record into a folder; the paths of its files, and the warnings that were said."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda message: said.append(message.getMessage())
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        kept = AttentionRecord.load(record)
        planes = range(len(kept.layers))
        return write_videos(kept, kept.open_pictures(), planes, start_phrase, folder, options), said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _begin_process() -> None:
    """What a process that draws begins with: Ctrl-C reaches the one that it draws for, which then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TQDM_DISABLE"] = "1"


class BackgroundDrawing:
    """Draws one sample while the model answers the next, in a process of its own.

    A process, since the Python of a thread would hold up the model's. One sample at a time, so that there are never
    more than two records. A failure is written into the facts of its sample, and its record is kept.
    """

    def __init__(self, start_phrase: str, options: DrawingOptions, save_record: str | None) -> None:
        self.start_phrase, self.options, self.save_record = start_phrase, options, save_record and str(save_record)
        self._pool: ProcessPoolExecutor | None = None
        self._processes: set[Any] = set()
        self._current: tuple[Path, dict, Path, Future] | None = None
        self._said: set[str] = set()

    def __enter__(self) -> BackgroundDrawing:
        try:
            pickle.dumps(self.options)
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin_process)
        except (pickle.PicklingError, AttributeError, TypeError):  # a colour map that no other process could have
            pass
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            for process in self._processes:
                process.terminate()
            if self._pool:
                self._pool.shutdown(cancel_futures=True)
            if self._current:
                folder, _, record, _ = self._current
                self._remove(record)
                remove_stale(folder)

    def start(self, folder: Path, facts: dict, record: AttentionRecord) -> None:
        """Begin to draw a sample as soon as the one before is drawn."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.save_record if self.save_record else new_partial(folder / RECORD_NAME)
        try:
            record.save(path)
        except BaseException:
            self._remove(path)
            raise
        self.finish()
        facts = facts | record_facts(record, facts["answer"])
        self._current = folder, facts, path, self._submit(path, folder)

    def _submit(self, path: Path, folder: Path) -> Future:
        """The drawing of a record, begun in the process or, where there is none, done at once."""
        if self._pool:
            before = set(multiprocessing.active_children())
            future = self._pool.submit(draw_sample, path, folder, self.start_phrase, self.options)
            self._processes |= set(multiprocessing.active_children()) - before
            return future
        done: Future = Future()
        try:
            done.set_result(draw_sample(path, folder, self.start_phrase, self.options))
        except Exception as error:
            done.set_exception(error)
        return done

    def finish(self) -> None:
        """Wait until the current sample is drawn, pass on what was said, and write its facts."""
        if not self._current:
            return
        folder, facts, path, drawing = self._current
        try:
            try:
                files, said = drawing.result()
            except BrokenProcessPool:  # it was killed, or could not import the caller's program
                logger.warning("the process that draws has ended; drawing goes on in this one")
                self._pool = None
                files, said = self._submit(path, folder).result()
            self._current = None
            kept = [path] if self.save_record else []
            write_facts(folder, facts, [*kept, *files])
            self._remove(path)
        except Exception as error:
            self._current = None
            place = path
            if not self.save_record:
                place = folder / RECORD_NAME
                with suppress(OSError):
                    path.replace(place)
            fail_sample(folder, facts, f"{one_line(error)}; its record is kept in {place}")
            said = []
        for line in dict.fromkeys(said):
            if line not in self._said:  # of fonts, say: once is enough
                logger.warning("sample %s: %s", facts["sample"], one_line(line))
                self._said.add(line)

    def _remove(self, path: Path) -> None:
        if not self.save_record:
            path.unlink(missing_ok=True)


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
        folder, facts = sample_folder(output_dir, number), {"sample": number, "answer": None}
        try:
            if beside:
                forget_sample(folder)
            with said_of(f"sample {number}"):
                record = answer(number, facts)
            if beside:
                beside.start(folder, facts, record)
        except NoSpaceLeft:  # it may be the sample before that found none
            raise
        except Exception as error:  # whatever it is, it is this sample's
            if beside:
                fail_sample(folder, facts, error)


def report_samples(rows: list[dict], output_dir: str | Path) -> str:
    """The path of the table. Raises SamplesFailed with a list of the samples that failed."""
    table = Path(output_dir) / TABLE_NAME
    failed = [str(row["sample"]) for row in rows if row["error"]]
    if failed:
        shown = ", ".join(failed[:_FAILURES_NAMED]) + ", ..." * (len(failed) > _FAILURES_NAMED)
        raise SamplesFailed(f"{len(failed)} of {len(rows)} samples failed: {shown}; {table} says why")
    return str(table)
