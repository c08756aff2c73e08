"""See what a vision-language model looks at while it answers: the class, the command line, and all public names.

    sample -> inputs -> answer (plain generate) -> one teacher-forced pass: rows -> record -> maps, text -> frames

The rooms behind it stand in `attention_heatmap/`. torch and transformers are imported when a model is needed only.
"""

import argparse
import difflib
import inspect
import io
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from attention_heatmap.log import NOTE, OurMistake, logger, one_line, package_missing, visible

try:
    from PIL import Image

    from attention_heatmap.background import RECORD_NAME, kept_on_failure
    from attention_heatmap.compare import compare
    from attention_heatmap.dataset import load_sample, open_pictures, problem_of, select_from_dataset
    from attention_heatmap.drawing.frame import render_frames
    from attention_heatmap.drawing.options import CLEAR_RECORDING, STILLS, DrawingOptions
    from attention_heatmap.drawing.outputs import STEM, write_records
    from attention_heatmap.drawing.text_panel import visualize_attention_step
    from attention_heatmap.drawing.video import find_encoder, write_video
    from attention_heatmap.files import check_output_dir, check_target
    from attention_heatmap.options import add_flags, names_of, number_or_text, pick, shows_options
    from attention_heatmap.record import AttentionRecord, ImageTokens, check_pictures
    from attention_heatmap.record_file import check_replaced
    from attention_heatmap.recording.check import check_record
    from attention_heatmap.recording.checkpoint import Checkpoint, process_number
    from attention_heatmap.recording.image_tokens import locate_image_tokens
    from attention_heatmap.recording.layers import DEFAULT_LAYER, resolve_heads, resolve_layers
    from attention_heatmap.recording.options import NEUTRAL_PROMPT, CheckpointOptions, RecordingOptions
    from attention_heatmap.recording.session import Session
    from attention_heatmap.showing import DEFAULT_START_PHRASE
    from attention_heatmap.sweep import SamplesFailed, Sweep, report_samples
    from attention_heatmap.table import check_table, sample_folder, table_row
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    print(f"error: {package_missing(error)}", file=sys.stderr)
    sys.exit(2)

__all__ = [
    "AttentionRecord", "AttentionVisualizer", "ImageTokens", "compare", "load_sample", "locate_image_tokens",
    "render_frames", "visible", "visualize_attention_step", "write_video",
]  # fmt: skip

_LATER_PROCESS_WAITS = 5  # seconds before any process but the first tells its error
Layers = int | str | Iterable[int | str]


class AttentionVisualizer:
    """Shows what a vision-language model looks at while it answers.

    model_name_or_path: a Hugging Face checkpoint, a directory or a name on the hub; a LoRA adapter's directory (peft)
        will do, too. Or a model that is loaded already, with its processor as `processor`: its state is the same
        afterwards.
    max_image_num: the most pictures that a sample may have.
    options: the fields of `CheckpointOptions`. device_map, dtype, trust_remote_code: as in `from_pretrained`.

    The configuration and the processor are read at once, the weights when they are first needed, so that a
    wrong option is found before the long wait. Raises OSError or ValueError when there is no such checkpoint.
    """

    @shows_options(CheckpointOptions)
    def __init__(self, model_name_or_path: Any, max_image_num: int = 2, *, processor: Any = None, **options: Any):
        if max_image_num < 1:
            raise ValueError(f"max_image_num is {max_image_num}; expected 1 or more")
        (loading,) = pick(options, CheckpointOptions)
        self.checkpoint = Checkpoint(model_name_or_path, CheckpointOptions(**loading), processor)
        self.processor, self.config = self.checkpoint.processor, self.checkpoint.config
        self.max_image_num = max_image_num
        self.last_records: list[AttentionRecord] = []  # of the last video: two where checkpoints are compared

    @property
    def model(self) -> Any:
        """The Hugging Face model, loaded at the first use."""
        return self.checkpoint.model

    @property
    def last_record(self) -> AttentionRecord | None:
        """The record of the last video: its response, its weights."""
        return self.last_records[0] if self.last_records else None

    @property
    def num_layers(self) -> int:
        """Number of layers of the language model."""
        return self.config.get_text_config().num_hidden_layers

    def load_sample_data(
        self, benchmark_json: str | Path | list, image_dir: str | Path, sample_idx: int = 0, *,
        allow_absolute_paths: bool = False,
    ) -> tuple[dict, list[Image.Image]]:  # fmt: skip
        """Sample `sample_idx` of a dataset, and its pictures as RGB images. See `load_sample`."""
        paths = {"allow_absolute_paths": allow_absolute_paths}
        return load_sample(benchmark_json, image_dir, sample_idx, self.max_image_num, **paths)

    def _opened(self, images: Any) -> list[Image.Image]:
        """The pictures of a sample, before the weights are loaded. Raises ValueError or OSError."""
        opened = open_pictures(images)
        if not 1 <= len(opened) <= self.max_image_num:
            raise ValueError(f"{len(opened)} pictures were given; expected 1..{self.max_image_num} (max_image_num)")
        return opened

    @shows_options(RecordingOptions)
    def record(self, sample: dict, images: Sequence[Any], layers: Layers, **options: Any) -> AttentionRecord:
        """Let the model answer a sample, then record the attention of some layers; all cost one generation.

        images: PIL images or paths. layers: 0-based, negative from the end; one, several, "all", a range such as
        "0-7", or "auto": one, see `choose_heads`. options: the fields of `RecordingOptions`.
        Raises ValueError for options that do not fit, RuntimeError when no attention could be recorded.
        """
        how, wanted = RecordingOptions(**pick(options, RecordingOptions)[0]), resolve_layers(self.config, layers)
        resolve_heads(self.config, how.head)
        how.given_response(sample)
        problem_of(sample, "the sample")
        opened = self._opened(images)
        return Session(self.model, self.processor).record(sample, opened, wanted, how)

    @shows_options(RecordingOptions)
    def replay(self, record: AttentionRecord, sample: dict, images: Sequence[Any], **options: Any) -> AttentionRecord:
        """Record how this model reads the very tokens of another record, such as another checkpoint's.

        The layers and heads are those of the record. Raises ValueError where the tokens mean other words here.
        """
        options = {name: value for name, value in options.items() if name not in ("head", "response", "response_key")}
        heads = list(dict.fromkeys(record.heads))
        how = RecordingOptions(**pick(options, RecordingOptions)[0], head=heads)
        ids, layers = record.token_ids[record.prompt_length :].tolist(), tuple(dict.fromkeys(record.layers))
        opened = self._opened(images)
        session = Session(self.model, self.processor)
        again = session.record(sample, opened, resolve_layers(self.config, layers), how, ids)
        if again.response != record.response:
            raise ValueError("the record's tokens are other words for this model: it has another tokenizer")
        return again

    @shows_options(RecordingOptions, DrawingOptions)
    def check(self, record: AttentionRecord, sample: dict, images: Sequence[Any], **options: Any) -> AttentionRecord:
        """The record of a sample with a `Check` of the map of each of its planes: are the hottest cells needed?

        options: those that the record was made with, and those that the map is drawn with. See `check_record`.
        """
        recording, drawing = pick(options, RecordingOptions, DrawingOptions)
        how, view, opened = RecordingOptions(**recording), DrawingOptions(**drawing).map, self._opened(images)
        session = Session(self.model, self.processor)
        return check_record(session, record, sample, opened, view, how)

    @shows_options(RecordingOptions, DrawingOptions)
    def create_attention_visualization_for_sample(
        self, sample: dict, images: Sequence[Any], layer_idx: Layers = DEFAULT_LAYER,
        start_phrase: str = DEFAULT_START_PHRASE, *, output_dir: str | Path = ".",
        save_record: str | Path | None = None, check: bool = False, compare_model_path: str | Path | None = None,
        **options: Any,
    ) -> str | list[str]:  # fmt: skip
        """Answer a sample and write the video of one layer, or of several by one generation.

        images: PIL images or paths. layer_idx: a layer, a list of them, "all", a range such as "0-7", or "auto".
        start_phrase: where the text panel begins. output_dir: gets
        `combined_attention_visualization_layer{layer}.mp4`. save_record: a file to keep the record in; that of a
        second checkpoint gets a `_b` in its name.
        check: hide the hottest cells and see whether the answer suffers, see `check`. compare_model_path: a second
        checkpoint, which reads the very same tokens; both maps are drawn, and its record is `last_records[1]`.
        options: the fields of `RecordingOptions` and of `DrawingOptions`.
        Returns the path of the video; a list of paths where layer_idx names several or is a list. Of processes that
        share a model the first one writes, the others return []. The record stays in `last_record`. Raises ValueError,
        OSError or RuntimeError, with what to do; nothing half-written is left.
        """
        layers, recording, drawing = _planned(self.config, layer_idx, options)
        second, folder = _second_of(self, compare_model_path), Path(output_dir)
        check_output_dir(folder)
        for path in folder.glob(f"{STEM}*.{drawing.format}"):
            check_target(path)
        if save_record:
            _check_save_record(save_record)
        find_encoder()
        images = self._opened(images)
        writes = not process_number(self.checkpoint.options.tp_plan)  # of processes that share a model, the first does
        record = self.record(sample, images, layers, **vars(recording))
        records = self.last_records = [record]
        logger.info("response: %s", one_line(record.response))
        if save_record and writes:
            record.save(save_record)
        saved = [Path(save_record)] if save_record else []
        with kept_on_failure(records, saved, folder / RECORD_NAME):
            if check:
                records[0] = self.check(record, sample, images, **vars(recording), **vars(drawing))
            if check and save_record and writes:
                records[0].save(save_record)
            if second:
                self.checkpoint.release()
                records.append(second.replay(record, sample, images, **vars(recording)))
                if saved and writes:
                    saved.append(saved[0].with_stem(f"{saved[0].stem}_b"))
                    records[1].save(saved[1])
            written = write_records(records, images, None, start_phrase, folder, drawing) if writes else []
        paths = _told_paths(written, drawing)
        return paths if len(paths) != 1 or isinstance(layer_idx, (list, tuple)) else paths[0]

    @shows_options(RecordingOptions, DrawingOptions)
    def visualize(self, image: Any, problem: str, layer_idx: Layers = DEFAULT_LAYER, **options: Any) -> str | list[str]:
        """The video of one question about one picture, or several, without a dataset.

        image: a path or a PIL image, or a list of them. options: as for `create_attention_visualization_for_sample`.
        """
        images = image if isinstance(image, (list, tuple)) else [image]
        options = {"start_phrase": problem, **options}
        return self.create_attention_visualization_for_sample({"problem": problem}, images, layer_idx, **options)

    @shows_options(RecordingOptions, DrawingOptions)
    def visualize_dataset(
        self, benchmark_json: str | Path | list, image_dir: str | Path, sample_idx: int | str | Iterable[int] = "all",
        layer_idx: Layers = DEFAULT_LAYER, start_phrase: str = DEFAULT_START_PHRASE, *, output_dir: str | Path = ".",
        overwrite: bool = False, save_record: str | None = None, check: bool = False,
        compare_model_path: str | Path | None = None, allow_absolute_paths: bool = False, **options: Any,
    ) -> list[dict]:  # fmt: skip
        """Answer many samples of a dataset. The files of each go to `output_dir/sample_0003/`, a table tells of all.

        benchmark_json: a file, or a list of samples. sample_idx: as in `select_samples`. overwrite: do samples again
        that an earlier run has finished; without it a run that was stopped goes on. save_record: a name, under which
        the record of each sample is kept in its folder.
        The rest is as in `create_attention_visualization_for_sample`. Under `accelerate launch` each process takes a
        part of the samples, and a card of its own.
        Returns their rows of `output_dir/samples.csv`: sample, id, response, answer, correct (1, 0, or None without an
        answer), image_share_{phase}_layer{layer} (0..1, mean over its steps), files, error (why it failed).
        Raises ValueError, OSError or RuntimeError for what no sample could succeed with.
        """
        layers, recording, drawing = _planned(self.config, layer_idx, options)
        second, folder = _second_of(self, compare_model_path), Path(output_dir)
        samples, numbers = select_from_dataset(benchmark_json, image_dir, sample_idx)
        sweep = Sweep(
            self, samples, Path(image_dir), allow_absolute_paths, folder, layers, start_phrase, recording, drawing,
            save_record, check, second,
        )  # fmt: skip
        check_output_dir(folder)
        check_table(folder)
        find_encoder()
        sweep.run(numbers, overwrite)
        return [table_row(sample_folder(folder, number)) for number in numbers]


def _second_of(visualizer: AttentionVisualizer, compare_model_path: str | Path | None) -> AttentionVisualizer | None:
    """The visualizer of a checkpoint that is compared with another's; its weights are loaded later."""
    if compare_model_path is None:
        return None
    options = visualizer.checkpoint.options
    if options.tp_plan:
        raise ValueError("compare_model_path does not go with tp_plan; record each model, then compare the records")
    second = AttentionVisualizer(compare_model_path, visualizer.max_image_num, **vars(options))
    visualizer.checkpoint.check_same_words(second.checkpoint)
    return second


def _planned(config: Any, layer_idx: Layers, options: dict) -> tuple[Layers, RecordingOptions, DrawingOptions]:
    """Which layers to record, or "auto", and how, what a view or a baseline asks for included, and how to draw."""
    recording, drawing = pick(options, RecordingOptions, DrawingOptions)
    shown = DrawingOptions(**drawing)
    if shown.view == "clear":
        default = isinstance(layer_idx, Integral) and layer_idx == DEFAULT_LAYER
        layer_idx = CLEAR_RECORDING["layer_idx"] if default else layer_idx
        recording["head"] = CLEAR_RECORDING["head"] if recording.get("head", "mean") == "mean" else recording["head"]
    if shown.baseline in ("neutral", "relative"):
        recording["neutral_prompt"] = recording.get("neutral_prompt") or NEUTRAL_PROMPT
    how = RecordingOptions(**recording)
    resolve_heads(config, how.head)
    return resolve_layers(config, layer_idx) or "auto", how, shown


def _check_save_record(path: str | Path, *read: str | Path) -> None:
    """Raises ValueError or OSError where a record cannot be kept in a file. read: files that the run reads."""
    if Path(path).suffix.lower() == ".npz":
        raise ValueError(f"save_record {path}: records are safetensors files; give a name such as run.safetensors")
    check_output_dir(Path(path).parent, "the folder of save_record")
    check_target(path, read)
    check_replaced(path)


# ------------------------------------------------------------------------------------- command line


_DATASET = ("benchmark_json", "image_dir", "sample_idx")
_OF_DATASETS = ("sample_idx", "max_image_num", "allow_absolute_paths")  # no meaning where there is none
# Flags that have no meaning where a record is drawn, beside those of recording and of the checkpoint.
_NOT_FOR_RECORDS = ("model_path", "save_record", "check", "overwrite", "compare_model_path", "image", "problem")


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line, and which flag a misspelt one is nearest to."""

    def error(self, message: str) -> Any:
        advice = "--help lists the flags"
        if message.startswith("unrecognized arguments: --"):
            typed = message.split()[2].partition("=")[0]
            begun = [flag for flag in self._option_string_actions if flag.startswith(typed)]
            near = begun or difflib.get_close_matches(typed, self._option_string_actions)
            advice = f"did you mean {near[0]}? {advice}" if near else advice
        self.exit(2, f"error: {one_line(message)}; {advice}\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line: every flag is a keyword of `AttentionVisualizer` or of its methods, by name and default."""
    parser = _OneLineParser(
        prog="visualizeHeatMap.py", allow_abbrev=False,
        description="Video of what a vision-language model looks at while it answers: a frame a generated token.",
    )  # fmt: skip
    names = ("required", "model", "sample", "answer", "recording", "map", "picture", "output", "dataset")
    groups = {name: parser.add_argument_group(name) for name in names}

    def flag(group: str, name: str, help: str, **more: Any) -> None:
        groups[group].add_argument(f"--{name}", help=help, **more)

    flag("required", "model_path", "Hugging Face checkpoint: a directory, or a name on the hub")
    samples = "dataset: a JSON list of {image, problem, ...}, or a file of such lines (.jsonl)"
    flag("required", "benchmark_json", samples)
    flag("required", "image_dir", "folder that the pictures' paths start in")
    second = "a second checkpoint, which reads the very same tokens; both maps are drawn"
    flag("model", "compare_model_path", second, metavar="PATH")
    flag("sample", "image", "picture(s) to ask about, in place of a dataset", nargs="+", metavar="PATH")
    flag("sample", "problem", "the question about them", metavar="TEXT")
    which = "which sample, from 0 (default: 0); or several: 0-99, or 0,5,9, or all"
    flag("sample", "sample_idx", which, type=number_or_text, default=0)
    flag("sample", "max_image_num", "the most pictures that a sample may have (default: 2)", type=int, default=2)
    flag("sample", "allow_absolute_paths", "let the dataset name pictures outside image_dir", action="store_true")
    layers = {"nargs": "+", "type": number_or_text, "default": [DEFAULT_LAYER], "metavar": "LAYER"}
    flag("recording", "layer_idx", "layer(s), from 0; -1: the last; 0-7, all, or auto (default: 20)", **layers)
    check = "hide the hottest cells, then random ones: does the answer suffer?"
    flag("recording", "check", check, action="store_true")
    begin = f"where the text panel begins (default: {DEFAULT_START_PHRASE})"
    flag("picture", "start_phrase", begin, default=DEFAULT_START_PHRASE)
    flag("output", "output_dir", "folder of the video (default: .)", default=".")
    flag("output", "save_record", "keep the record behind the video in this .safetensors file", metavar="FILE")
    again = "draw a kept record again, or two beside each other: no model, nothing generated"
    flag("output", "from_record", again, nargs="+", metavar="FILE")
    verbose = "say what is loaded, how large it is, how long it takes; tracebacks"
    flag("output", "verbose", verbose, action="store_true")
    flag("dataset", "overwrite", "with several samples: do those again that are finished", action="store_true")
    for kind in (CheckpointOptions, RecordingOptions, DrawingOptions):
        add_flags(parser, groups, kind)
    return parser


def check_flags(parser: argparse.ArgumentParser, arguments: dict) -> None:
    """Let the parser tell of flags that are missing, or that do not go together."""
    given = [name for name in arguments if arguments[name] != parser.get_default(name)]
    needed = ["model_path", "benchmark_json", "image_dir"]

    def refuse(names: Iterable[str], why: str) -> None:
        for name in given:
            if name in names:
                parser.error(f"--{name} {why}")

    if arguments["image"] or arguments["problem"]:
        others = {*_DATASET, *_OF_DATASETS} - {"max_image_num"}
        refuse(others, "tells of a dataset, --image and --problem are a sample of their own; give one of them")
        needed = ["model_path", "image", "problem"]
    if arguments["from_record"]:  # it keeps its pictures
        needed = ["benchmark_json", "image_dir"] if {"benchmark_json", "image_dir"} & set(given) else []
        if not isinstance(arguments["sample_idx"], int):
            parser.error("--sample_idx takes one number with --from_record")
        recording = {*names_of(RecordingOptions), *names_of(CheckpointOptions), *_NOT_FOR_RECORDS} - {"head"}
        refuse(recording, "does not go with --from_record, which only draws what was recorded")
        if not needed:
            refuse(_OF_DATASETS, "tells of a dataset, and none was given; leave it out, or give --benchmark_json")
    for name in needed:
        if not arguments[name]:
            parser.error(f"--{name} is required; only --from_record, to draw a record again, does without")


def run_command(arguments: dict) -> str | list[str]:
    """One command line, from its arguments to the video's path."""

    def call(function: Callable, *first: Any) -> Any:
        """A function with the flags that are its keywords."""
        names = inspect.signature(function).parameters.keys() & arguments.keys()
        return function(*first, **{name: arguments[name] for name in names})

    layers, several = arguments["layer_idx"], not isinstance(arguments["sample_idx"], int)
    heads = arguments["head"] if isinstance(arguments["head"], list) else None  # None: none were named
    drawing, sample, images = call(DrawingOptions), None, None
    check_output_dir(arguments["output_dir"])
    if several:
        arguments["benchmark_json"], _ = select_from_dataset(*(arguments[name] for name in _DATASET))
    elif arguments["save_record"]:
        read = [arguments["benchmark_json"], *(arguments["image"] or ())]
        _check_save_record(arguments["save_record"], *filter(None, read))
    if arguments["overwrite"] and not several:
        logger.warning("overwrite changes nothing for one sample, whose files are always written anew; leave it out")
    if arguments["image"]:
        sample, images = {"problem": arguments["problem"]}, open_pictures(arguments["image"])
        if arguments["start_phrase"] == DEFAULT_START_PHRASE:  # which is of Reason-RFT's problems
            arguments["start_phrase"] = arguments["problem"]
    elif arguments["benchmark_json"] and not several:
        sample, images = call(load_sample)
    if arguments["from_record"]:
        return call(_draw_record, images, heads, drawing)
    arguments["max_image_num"] = max(arguments["max_image_num"], len(arguments["image"] or ()))
    arguments["layer_idx"] = layers if len(layers) > 1 else layers[0]
    arguments["head"] = heads[0] if heads and len(heads) == 1 else arguments["head"]
    visualizer = call(AttentionVisualizer, arguments["model_path"])
    if several:
        return report_samples(call(visualizer.visualize_dataset), arguments["output_dir"])
    return call(visualizer.create_attention_visualization_for_sample, sample, images)


def _draw_record(
    images: list | None, heads: list | None, options: DrawingOptions, from_record: list[str], layer_idx: list,
    start_phrase: str, output_dir: str,
) -> list[str]:  # fmt: skip
    """Draw a kept record again, or two beside each other: the planes that were named, else all; the videos' paths."""
    find_encoder()
    if len(from_record) > 2:
        raise ValueError(f"from_record names {len(from_record)} records; expected one, or two to compare")
    record, *_ = records = list(map(AttentionRecord.load, from_record))
    images = check_pictures(record, images)
    if layer_idx == ["auto"] and not record.auto_layer:
        raise ValueError(f"layer_idx auto: the record's layers {list(record.layers)} were named; name one of them")
    if options.view == "clear" and not record.auto_head:
        logger.log(NOTE, "view clear: %s as recorded; auto chooses while recording only", record.plane_name(0))
    default = layer_idx == ["auto"] or (layer_idx == [DEFAULT_LAYER] and DEFAULT_LAYER not in record.layers)
    planes = record.select(None if default else layer_idx, heads)
    return _told_paths(write_records(records, images, planes, start_phrase, output_dir, options), options)


def _told_paths(written: Iterable[Path], options: DrawingOptions) -> list[str]:
    """The paths that a run answers with: the videos, or the page; where there is neither, all pictures."""
    return [str(path) for path in written if options.format in STILLS or path.suffix == f".{options.format}"]


_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _stop(number: int, frame: Any = None) -> None:
    """A signal asks the program to end: as Ctrl-C, and further ones do not disturb the cleaning up."""
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _said(error: BaseException, number: int) -> str:
    """An error as one line, by the process of a number."""
    text = package_missing(error) if isinstance(error, ModuleNotFoundError) else one_line(error) or type(error).__name__
    known = isinstance(error, (ValueError, RuntimeError, OSError, ImportError, MemoryError))
    if not known or isinstance(error, OurMistake):
        name = "" if known else f"{type(error).__name__}: "
        text = f"{name}{text} (a mistake of this program, not yours; please report it with what --verbose prints)"
    return f"error: {f'process {number}: ' if number else ''}{text}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry: prints the path of each video, or of a dataset's table.

    Returns 0; with one line on stderr, 1 where samples of a dataset failed, 2 when something is wrong, 128 + the
    number of the signal that stopped it.
    """
    _fill_standard_streams()
    parser = build_parser()
    arguments = vars(parser.parse_args(argv))
    check_flags(parser, arguments)
    number, handlers = 0, {one: signal.getsignal(one) for one in _SIGNALS}
    for one in (one for one, handler in handlers.items() if handler is not signal.SIG_IGN):
        signal.signal(one, _stop)
    try:
        number = process_number(arguments["tp_plan"])
        # Of processes that share out a dataset, too, the first one tells the end.
        first = not (number if isinstance(arguments["sample_idx"], int) else process_number())
        _begin_log(arguments["verbose"], number)
        paths = run_command(arguments)
        if first:
            _print("\n".join(map(visible, [paths] if isinstance(paths, str) else paths)))
    except KeyboardInterrupt as stop:
        signalled = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
        after = "no file is half-written, and the same command goes on with a dataset"
        print(f"error: stopped by {signalled.name}; {after}", file=sys.stderr)
        return 128 + signalled
    except SamplesFailed as error:
        if first:
            print(_said(error, number), file=sys.stderr)
        return int(first)
    except Exception as error:  # the one place that turns whatever comes into one line
        if number:  # where the first process met the same error, its launcher ends this one before it speaks
            time.sleep(_LATER_PROCESS_WAITS)
        if arguments["verbose"]:
            traceback.print_exc()
        print(_said(error, number), file=sys.stderr)
        return 2
    finally:
        for one, handler in handlers.items() if argv is not None else ():  # a program that goes on has its own again
            signal.signal(one, handler or signal.SIG_DFL)
    if arguments["tp_plan"]:
        import torch.distributed

        if torch.distributed.is_initialized():  # not where every sample was finished already
            torch.distributed.destroy_process_group()
    return 0


def _fill_standard_streams() -> None:
    """The null device in place of a closed stream: a file that is opened later, here or by the encoder, would be it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stderr is None:  # what is printed on it would come out of stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _begin_log(verbose: bool, number: int) -> None:
    """What is logged, and in which characters; of processes that share a model the first one speaks for all."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every character
    level = logging.DEBUG if verbose else NOTE
    if number:
        level, os.environ["TQDM_DISABLE"], os.environ["TRANSFORMERS_VERBOSITY"] = logging.ERROR, "1", "error"
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    logging.getLogger("PIL").setLevel(logging.INFO)
    if not verbose:  # a hub that cannot be reached is told in one line at the end
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _print(text: str) -> None:
    """Print on stdout, now. Raises OSError where that is closed or full; the files are there all the same."""
    try:
        if sys.stdout is None:
            raise ValueError("stdout is closed")
        print(text, flush=True)
    except (OSError, ValueError) as error:
        with open(os.devnull, "w") as nothing:  # or Python would complain once more at its end
            os.dup2(nothing.fileno(), 1)
        raise OSError(f"the paths could not be printed ({one_line(error)}), the files are written: {text}") from error


if __name__ == "__main__":
    sys.exit(main())
