"""Whole datasets: each sample recorded and drawn, one drawn while the next is answered, and resumed."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attention_heatmap.background import BackgroundDrawing, NoSpaceLeft, fail_sample
from attention_heatmap.dataset import Dataset, check_sample, lies_in, open_pictures_of
from attention_heatmap.drawing.options import PAGE, DrawingOptions
from attention_heatmap.drawing.page_index import write_index
from attention_heatmap.files import check_output_dir
from attention_heatmap.log import logger, one_line, said_of
from attention_heatmap.record import AttentionRecord
from attention_heatmap.recording.checkpoint import part_of
from attention_heatmap.recording.options import RecordingOptions
from attention_heatmap.table import TABLE_NAME, forget_sample, is_finished, read_facts, sample_folder, write_table

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
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
    if callable(drawing.colormap):  # its name says nothing
        colours = np.asarray(drawing.colormap(np.linspace(0, 1, 255)), np.float32)
        shown["colormap"] = hashlib.sha256(colours.tobytes()).hexdigest()
    return json.loads(json.dumps({**settings, **shown}, default=str))


@dataclass
class Sweep:
    """Samples of a dataset, answered and drawn into one folder. Raises ValueError for what fits no sample."""

    visualizer: Any
    samples: Dataset
    image_dir: Path
    allow_absolute_paths: bool
    output_dir: Path
    layers: Any
    start_phrase: str
    recording: RecordingOptions
    drawing: DrawingOptions
    save_record: str | None
    check: bool
    second: Any
    """The visualizer of a checkpoint that is compared; its model is loaded when the first one's is no longer needed."""

    def __post_init__(self) -> None:
        own = {name: getattr(self, name) for name in ("layers", "start_phrase", "save_record", "check")}
        second = {"second": self.second.checkpoint.facts()} if self.second else {}
        first = self.visualizer.checkpoint.facts()
        self._settings = settings_of_run({**first, **second, **vars(self.recording), **own}, self.drawing)

    def settings_of(self, number: int) -> dict:
        """All that the files of a sample depend on."""
        digest = fingerprint(self.samples[number], self.image_dir, self.allow_absolute_paths)
        return {**self._settings, "input": digest}

    def run(self, numbers: list[int], overwrite: bool) -> None:
        """Answer the samples, draw them, write the table. Raises for what no sample could succeed with."""
        checkpoint = self.visualizer.checkpoint
        own, is_first, wait_for_everyone = part_of(numbers, checkpoint)
        shared = checkpoint.options.tp_plan  # each process answers every sample, and has to agree on which
        waiting = own if overwrite else self._unfinished(own)
        if waiting:
            _ = self.visualizer.model  # without it no sample could succeed
        self.output_dir.mkdir(parents=True, exist_ok=True)
        answer, writes = self._answer, is_first or not shared
        try:
            if self.second and waiting:
                answer, waiting = self._read_again, self._answer_all(waiting)
            with BackgroundDrawing(self.start_phrase, self.drawing, self.save_record) as beside:
                self._each(waiting, answer, writes, beside if writes else None, leave=not (overwrite or shared))
            for number in waiting if self.second else ():
                self._first_path(number).unlink(missing_ok=True)
            wait_for_everyone()
        finally:
            if is_first:
                rows = write_table(self.output_dir)
                if self.drawing.format == PAGE:
                    write_index(rows, self.output_dir / "index.html")
        wait_for_everyone()  # no process ends, and has the others ended, before the table is there

    def _unfinished(self, numbers: list[int]) -> list[int]:
        """Those of the samples that no run has finished. Raises ValueError where one did so by other settings."""
        unfinished, others = [], {}
        for number in numbers:
            folder = sample_folder(self.output_dir, number)
            facts = read_facts(folder)
            if not is_finished(folder, facts):
                unfinished.append(number)
            elif (wanted := self.settings_of(number)) != (made := facts.get("settings")):
                made = made if isinstance(made, dict) else {}
                others[number] = sorted(key for key in wanted | made if wanted.get(key) != made.get(key))
        if others:
            number, names = next(iter(others.items()))
            raise ValueError(
                f"{len(others)} finished sample(s) in {self.output_dir} were made with other settings, such as sample "
                f"{number} (other {', '.join(names)}); give another output_dir, or --overwrite to make them again"
            )
        return unfinished

    def _each(
        self, numbers: list[int], answer: Callable[[int], Any], writes: bool = True,
        beside: BackgroundDrawing | None = None, leave: bool = False,
    ) -> None:  # fmt: skip
        """Answer one sample after the other, and have each drawn `beside`, while the next is answered.

        answer: gives what is drawn of a sample: its record, or two. writes: write down failures, as one of the
        processes that share a model does. leave: leave out what another run has finished meanwhile.
        Raises OSError where nothing can be written any more.
        """
        from tqdm import tqdm

        for number in tqdm(numbers, desc="samples", unit="sample"):
            check_output_dir(self.output_dir)
            folder, facts = sample_folder(self.output_dir, number), {"sample": number}
            try:
                if leave and not self._unfinished([number]):
                    continue
                facts |= self._facts(number)
                if writes:
                    forget_sample(folder)
                with said_of(f"sample {number}"):
                    records = answer(number)
                if beside:
                    beside.start(folder, facts, records)
            except NoSpaceLeft:  # it may be the sample before that found none
                raise
            except Exception as error:  # whatever it is, it is this sample's
                if writes:
                    fail_sample(folder, facts, error)

    def _facts(self, number: int) -> dict:
        """What is known of a sample before it is answered."""
        sample = self.samples[number] if isinstance(self.samples[number], dict) else {}
        own = {key: sample.get(key) for key in ("id", "answer")}
        return {**own, "settings": self.settings_of(number)}

    def _opened(self, number: int) -> tuple[dict, list]:
        """A sample and its pictures."""
        where = self.image_dir, self.visualizer.max_image_num, f"sample {number} of {self.samples}"
        return self.samples[number], open_pictures_of(self.samples[number], *where, self.allow_absolute_paths)

    def _answer(self, number: int) -> list[AttentionRecord]:
        sample, images = self._opened(number)
        how, visualizer = vars(self.recording), self.visualizer
        record = visualizer.record(sample, images, self.layers, **how)
        logger.info("%s", one_line(record.response))
        if self.check:
            record = visualizer.check(record, sample, images, **how, **vars(self.drawing))
        visualizer.last_records = [record]
        return [record]

    def _answer_all(self, waiting: list[int]) -> list[int]:
        """Let the first model answer all samples and keep its records for the second one; those that succeeded."""

        kept = []

        def keep(number: int) -> None:
            if not self._first_path(number).is_file():
                self._answer(number)[0].save(self._first_path(number))
            kept.append(number)

        self._each(waiting, keep)
        self.visualizer.checkpoint.release()
        _ = self.second.model
        return kept

    def _read_again(self, number: int) -> list[AttentionRecord]:
        """The first model's record, and how the second one reads its tokens."""
        first = AttentionRecord.load(self._first_path(number))
        return [first, self.second.replay(first, *self._opened(number), **vars(self.recording))]

    def _first_path(self, number: int) -> Path:
        """Where the first model's record of a sample waits; made with other settings it has another name."""
        digest = hashlib.sha256(json.dumps(self.settings_of(number), sort_keys=True).encode()).hexdigest()[:12]
        return sample_folder(self.output_dir, number) / f"first_{digest}.safetensors"


def report_samples(rows: list[dict], output_dir: str | Path) -> str:
    """The path of the table. Raises SamplesFailed with a list of the samples that failed."""
    table = Path(output_dir) / TABLE_NAME
    failed = [str(row["sample"]) for row in rows if row["error"]]
    if failed:
        shown = ", ".join(failed[:_FAILURES_NAMED]) + ", ..." * (len(failed) > _FAILURES_NAMED)
        raise SamplesFailed(f"{len(failed)} of {len(rows)} samples failed: {shown}; {table} says why")
    return str(table)
