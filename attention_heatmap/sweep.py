"""Whole datasets: each sample recorded and drawn, one drawn while the next is answered, and resumed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attention_heatmap.background import BackgroundDrawing, NoSpaceLeft, fail_sample
from attention_heatmap.dataset import Dataset, check_sample, lies_in, open_pictures_of
from attention_heatmap.drawing.options import PAGE, DrawingOptions
from attention_heatmap.drawing.page_index import write_index
from attention_heatmap.files import check_output_dir, free_name
from attention_heatmap.log import OurMistake, logger, one_line, said_of
from attention_heatmap.record import AttentionRecord
from attention_heatmap.recording.options import RecordingOptions
from attention_heatmap.recording.processes import part_of
from attention_heatmap.table import (
    TABLE_NAME,
    forget_sample,
    is_finished,
    read_facts,
    sample_folder,
    write_table,
)

_COLOURS_COMPARED = 255  # of a colour map that is a function, whose name says nothing
INDEX_NAME = "index.html"  # of the pages of all samples
_FAILURES_NAMED = 20  # samples, at most, in the last line


class SamplesFailed(RuntimeError):
    """Some samples of a dataset failed, the rest is done."""


def fingerprint(sample: object, image_dir: Path, allow_absolute_paths: bool = False) -> str:
    """Of a sample as it stands in the dataset and the bytes of its pictures: with others it is another input."""
    digest = hashlib.sha256(json.dumps(sample, sort_keys=True, default=str).encode())
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
            place = free_name(place)
            if not saved:
                record.save(place)
        except (OSError, ValueError) as problem:
            logger.error("the record could not be kept: %s", one_line(problem))
            raise error from None
        text = f"{one_line(error) or type(error).__name__}; the record is kept in {saved or place}"
        known = isinstance(error, (ValueError, OSError, RuntimeError))
        raise (RuntimeError(text) if known else OurMistake(f"{type(error).__name__}: {text}")) from error


@dataclass(frozen=True)
class Plan:
    """What is done with each sample."""

    layers: Any
    start_phrase: str
    recording: RecordingOptions
    drawing: DrawingOptions
    save_record: str | None = None
    check: bool = False
    second: Any = None
    """The visualizer of a checkpoint that is compared; its model is loaded when the first one's is no longer needed."""

    def facts(self) -> dict:
        """The settings that a sample's files depend on."""
        shown = {"layers": self.layers, "start_phrase": self.start_phrase, "save_record": self.save_record}
        second = {"second": self.second.checkpoint.facts()} if self.second else {}
        return {**vars(self.recording), **shown, **second, "check": self.check}


class Sweep:
    """Samples of a dataset, answered and drawn by one plan into one folder."""

    def __init__(
        self, visualizer: Any, plan: Plan, samples: Dataset, image_dir: Path, output_dir: Path,
        allow_absolute_paths: bool,
    ) -> None:  # fmt: skip
        self.visualizer, self.plan, self.samples = visualizer, plan, samples
        self.image_dir, self.output_dir, self.allow_absolute_paths = image_dir, output_dir, allow_absolute_paths
        self._settings = settings_of_run({**visualizer.checkpoint.facts(), **plan.facts()}, plan.drawing)

    def settings_of(self, number: int) -> dict:
        """All that the files of a sample depend on."""
        digest = fingerprint(self.samples[number], self.image_dir, self.allow_absolute_paths)
        return {**self._settings, "input": digest}

    def run(self, numbers: list[int], overwrite: bool) -> None:
        """Answer the samples, draw them, write the table. Raises for what no sample could succeed with."""
        own, is_first, wait_for_everyone = part_of(numbers, self.visualizer.checkpoint)
        shared = self.visualizer.checkpoint.options.tp_plan
        waiting = own if overwrite else unfinished_samples(self.output_dir, own, self.settings_of)
        if waiting:
            _ = self.visualizer.model  # without it no sample could succeed
        self.output_dir.mkdir(parents=True, exist_ok=True)
        again = None if overwrite or shared else self.settings_of
        try:
            if self.plan.second and waiting:
                waiting = self._answer_all(waiting, again)
            with BackgroundDrawing(self.plan.start_phrase, self.plan.drawing, self.plan.save_record) as beside:
                writer = beside if is_first or not shared else None
                answer = self._read_again if self.plan.second else self._answer
                run_samples(waiting, self.output_dir, answer, writer, again, writer is not None)
            for number in waiting if self.plan.second else ():
                self._first_path(number).unlink(missing_ok=True)
            wait_for_everyone()
        finally:
            if is_first:
                rows = write_table(self.output_dir)
                if self.plan.drawing.format == PAGE:
                    write_index(rows, self.output_dir / INDEX_NAME)
        wait_for_everyone()  # no process ends, and has the others ended, before the table is there

    def _opened(self, number: int, facts: dict) -> tuple[dict, list]:
        """A sample and its pictures, with what is known of it added to its facts."""
        sample = self.samples[number]
        facts |= {key: sample.get(key) for key in ("id", "answer")} if isinstance(sample, dict) else {}
        most, named = self.visualizer.max_image_num, f"sample {number} of {self.samples}"
        images = open_pictures_of(sample, self.image_dir, most, named, self.allow_absolute_paths)
        facts["settings"] = self.settings_of(number)
        return sample, images

    def _answer(self, number: int, facts: dict) -> list[AttentionRecord]:
        sample, images = self._opened(number, facts)
        how, visualizer = vars(self.plan.recording), self.visualizer
        record = visualizer.record(sample, images, self.plan.layers, **how)
        logger.info("%s", one_line(record.response))
        if self.plan.check:
            record = visualizer.check(record, sample, images, **how, **vars(self.plan.drawing))
        visualizer.last_records = [record]
        return [record]

    def _answer_all(self, waiting: list[int], again: Callable | None) -> list[int]:
        """Let the first model answer all samples and keep its records for the second one; those that succeeded."""

        def keep(number: int, facts: dict) -> list[AttentionRecord]:
            if not self._first_path(number).is_file():
                self._answer(number, facts)[0].save(self._first_path(number))
            return []

        failed = run_samples(waiting, self.output_dir, keep, None, again)
        self.visualizer.checkpoint.release()
        _ = self.plan.second.model
        return [number for number in waiting if number not in failed]

    def _read_again(self, number: int, facts: dict) -> list[AttentionRecord]:
        """The first model's record, and how the second one reads its tokens."""
        first = AttentionRecord.load(self._first_path(number))
        return [first, self.plan.second.replay(first, *self._opened(number, facts), **vars(self.plan.recording))]

    def _first_path(self, number: int) -> Path:
        """Where the first model's record of a sample waits; made with other settings it has another name."""
        digest = hashlib.sha256(json.dumps(self.settings_of(number), sort_keys=True).encode()).hexdigest()[:12]
        return sample_folder(self.output_dir, number) / f"first_{digest}.safetensors"


def run_samples(
    numbers: Iterable[int], output_dir: str | Path, answer: Callable[[int, dict], list[AttentionRecord]],
    beside: BackgroundDrawing | None, settings_of: Callable[[int], dict] | None, report: bool = True,
) -> list[int]:  # fmt: skip
    """Answer one sample after the other, and have each drawn while the next is answered; those that failed.

    answer: gives the record of a sample, or two, and adds to its facts. beside: None where nothing is drawn.
    settings_of: of a sample that another run may have finished meanwhile, to leave it out; None where all are done,
    as by processes that share a model: they have to agree. report: write down failures, as one process does.
    Raises OSError where nothing can be written any more.
    """
    from tqdm import tqdm

    failed = []
    for number in tqdm(numbers, desc="samples", unit="sample"):
        check_output_dir(output_dir)
        if settings_of and not unfinished_samples(output_dir, [number], settings_of):
            continue
        folder, facts = sample_folder(output_dir, number), {"sample": number, "answer": None}
        try:
            if beside:
                forget_sample(folder)
            with said_of(f"sample {number}"):
                records = answer(number, facts)
            if beside:
                beside.start(folder, facts, records)
        except NoSpaceLeft:  # it may be the sample before that found none
            raise
        except Exception as error:  # whatever it is, it is this sample's
            failed.append(number)
            if report:
                fail_sample(folder, facts, error)
    return failed


def report_samples(rows: list[dict], output_dir: str | Path) -> str:
    """The path of the table. Raises SamplesFailed with a list of the samples that failed."""
    table = Path(output_dir) / TABLE_NAME
    failed = [str(row["sample"]) for row in rows if row["error"]]
    if failed:
        shown = ", ".join(failed[:_FAILURES_NAMED]) + ", ..." * (len(failed) > _FAILURES_NAMED)
        raise SamplesFailed(f"{len(failed)} of {len(rows)} samples failed: {shown}; {table} says why")
    return str(table)
