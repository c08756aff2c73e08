"""One sample is drawn while the next is answered, in a process of its own."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.outputs import write_records
from attention_heatmap.files import free_name, remove_stale
from attention_heatmap.log import OurMistake, kept_warnings, logger, one_line
from attention_heatmap.record import AttentionRecord
from attention_heatmap.table import record_facts, write_facts

RECORD_NAME = "record.safetensors"  # of a record that is kept since its drawing failed


@contextmanager
def kept_on_failure(
    records: Sequence[AttentionRecord], saved: Sequence[str | Path], place: Path, fresh: bool = True
) -> Iterator[None]:
    """A block after which no record is lost where it fails: the error says where they are kept.

    records: may grow within the block. saved: where the first of them are already; place: where the others go, the
    second and later ones with a number. fresh: under free names; else in place of those of an earlier try.
    """
    try:
        yield
    except Exception as error:
        kept = list(saved)
        try:
            for number, record in enumerate(records[len(kept) :]):
                target = place.with_stem(f"{place.stem}_{number}") if number else place
                kept.append(free_name(target) if fresh else target)
                record.save(kept[-1])
        except (OSError, ValueError) as problem:
            logger.error("the record could not be kept: %s", one_line(problem))
            raise error from None
        text = f"{one_line(error) or type(error).__name__}; the record is kept in {', '.join(map(str, kept))}"
        known = isinstance(error, (ValueError, OSError, RuntimeError))
        raise (RuntimeError(text) if known else OurMistake(f"{type(error).__name__}: {text}")) from error


class NoSpaceLeft(OSError):
    """The samples to come would fail, too."""


def fail_sample(folder: Path, facts: dict, error: object) -> None:
    """Report a sample that failed, and note it for the table. Raises NoSpaceLeft where the rest would fail as well."""
    message = one_line(error) or type(error).__name__
    name = f"sample {facts['sample']}"
    logger.error("%s", message if message.startswith(f"{name} ") else f"{name}: {message}")
    try:
        write_facts(folder, facts | {"error": message})
    except OSError as problem:  # the table will say that it is not finished
        logger.error("sample %s: %s", facts["sample"], one_line(problem))
    if os.strerror(errno.ENOSPC) in message:
        raise NoSpaceLeft(f"{folder.parent} has no space left; make room, and the same command goes on where it was")


def _draw_sample(
    records: Sequence[AttentionRecord], saved: Sequence[Path], folder: Path, facts: dict, start_phrase: str,
    options: DrawingOptions,
) -> list[str]:  # fmt: skip
    """Draw a record, or two beside each other, into a folder, and write the sample's facts; the warnings said.

    saved: where the records are already. What fails is an error that says where they are kept.
    """
    with kept_on_failure(records, saved, folder / RECORD_NAME, fresh=False), kept_warnings() as said:
        files = write_records(records, records[0].open_pictures(), None, start_phrase, folder, options)
        write_facts(folder, facts, [*saved, *files])
    return said


def _begin_process() -> None:
    """What a process that draws begins with: Ctrl-C reaches the one that it draws for, which then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what it was writing is removed
    os.environ["TQDM_DISABLE"] = "1"


class BackgroundDrawing:
    """Draws one sample while the model answers the next, in a process of its own.

    A process, since the Python of a thread would hold up the model's. One sample at a time, so that there are never
    more than two samples' records. A failure is written into the facts of its sample, and its record is kept.
    """

    def __init__(self, start_phrase: str, options: DrawingOptions, save_record: str | None) -> None:
        self.how, self.save_record = (start_phrase, options), save_record
        self._pool: ProcessPoolExecutor | None = None
        self._processes: set[Any] = set()
        self._current: tuple[Path, dict, Callable[[], list[str]], Future | None] | None = None
        self._said: set[str] = set()

    def __enter__(self) -> BackgroundDrawing:
        with suppress(pickle.PicklingError, AttributeError, TypeError):  # a colour map that no other process could have
            pickle.dumps(self.how)
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin_process)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            for process in self._processes if self._current else ():
                process.terminate()
            if self._pool:
                self._pool.shutdown(cancel_futures=True)
            if self._current:
                remove_stale(self._current[0])

    def start(self, folder: Path, facts: dict, records: Sequence[AttentionRecord]) -> None:
        """Begin to draw the record of a sample, or two to be compared, as soon as the sample before is drawn."""
        self.finish()
        folder.mkdir(parents=True, exist_ok=True)
        name = Path(self.save_record or RECORD_NAME)
        saved = [folder / name, folder / f"{name.stem}_b{name.suffix}"][: len(records)] if self.save_record else []
        for path, record in zip(saved, records):
            record.save(path)
        with kept_on_failure(records, saved, folder / RECORD_NAME, fresh=False):
            facts = facts | record_facts(records, facts["answer"])
        job, before = partial(_draw_sample, records, saved, folder, facts, *self.how), multiprocessing.active_children()
        future = None
        with self._going_on_if_broken():
            future = self._pool.submit(job) if self._pool else None
            self._processes |= {*multiprocessing.active_children()} - {*before}
        self._current = folder, facts, job, future
        if not future:
            self.finish()

    def finish(self) -> None:
        """Wait until the current sample is drawn, and pass on what was said."""
        if not self._current:
            return
        (folder, facts, job, future), said, failed = self._current, None, None
        try:
            with self._going_on_if_broken():
                said = future.result() if future else None
            if said is None:  # there is no process, or it has ended
                said = job()
        except Exception as error:
            failed = error
        self._current = None
        if failed:
            fail_sample(folder, facts, failed)
        for line in dict.fromkeys(said or ()):
            if line not in self._said:  # of fonts, say: once is enough
                logger.warning("sample %s: %s", facts["sample"], one_line(line))
        self._said.update(said or ())

    @contextmanager
    def _going_on_if_broken(self) -> Iterator[None]:
        """A block in which the process may be gone: it was killed, or could not import the caller's program."""
        try:
            yield
        except BrokenProcessPool:
            logger.warning("the process that draws has ended; drawing goes on in this one")
            self._pool = None
        except (pickle.PicklingError, AttributeError, TypeError, MemoryError) as error:  # drawing raises none of these
            logger.warning("a sample cannot be handed to the process that draws: %s; it is drawn here", one_line(error))
