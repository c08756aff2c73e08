"""Loading a checkpoint, the weights when they are first needed, by one process or by several that share the work."""

from __future__ import annotations

import difflib
import gc
import inspect
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from attention_heatmap.log import logger, one_line
from attention_heatmap.recording import torch, transformers
from attention_heatmap.recording.image_tokens import image_token_id
from attention_heatmap.recording.layers import layer_values, text_config, tp_size
from attention_heatmap.recording.memory import gib, is_out_of_memory, out_of_memory_told
from attention_heatmap.recording.options import CheckpointOptions
from attention_heatmap.recording.prompt import check_chat_template

_FAR_TOO_SMALL = 8  # times; no format takes less than a bit for a weight
_ALIKE = 0.85  # of 1; names so much alike are one, misspelt
_NAMED = 5  # tensors in a message
_LONGEST_WAIT = timedelta(weeks=4)  # of one process for the others, whose samples may take longer


class Checkpoint:
    """A Hugging Face checkpoint by its name, or a model and a processor that are loaded already.

    The configuration and the processor are read at once, the weights when they are first needed, so that a wrong
    option is found before the long wait. Raises OSError or ValueError when there is no such checkpoint.
    """

    def __init__(self, model: Any, options: CheckpointOptions, processor: Any = None) -> None:
        self.options, self._given = options, hasattr(model, "generate")
        if self._given:
            if processor is None:
                raise ValueError("a loaded model needs its processor too; give processor=AutoProcessor...")
            self.name = str(getattr(model, "name_or_path", None) or type(model).__name__)
            self.config, self.processor, self.model = model.config, processor, model
        else:
            self.name, kwargs = str(model), options.processor_kwargs or {}
            _check_name(self.name)
            self.config = self._from_pretrained(transformers.AutoConfig, self._base_of("config.json"))
            base = self._base_of("processor_config.json", "preprocessor_config.json")
            self.processor = processor or self._from_pretrained(transformers.AutoProcessor, base, **kwargs)
            _check_names(kwargs, self.processor)
        layers = text_config(self.config).num_hidden_layers
        image_token_id(self.config)  # a model without pictures is told here
        if getattr(self.processor, "tokenizer", None) is None:
            raise ValueError(f"model_path {self.name} has no tokenizer beside its processor; add its files")
        check_chat_template(self.processor)
        check_tp_plan(options.tp_plan, options.device_map, self.config)
        logger.info("%s: model type %s, %d layers", self.name, self.config.model_type, layers)

    def facts(self) -> dict:
        """What an answer depends on, as JSON: the files of a directory with their sizes and times, the options."""
        path, options = Path(self.name), self.options
        files = [(file.name, file.stat()) for file in sorted(path.glob("*")) if file.is_file()]
        return {
            "model": str(path.resolve()) if path.is_dir() else str(path), "dtype": str(options.dtype),
            "checkpoint": [[name, facts.st_size, facts.st_mtime] for name, facts in files],
            "model_kwargs": options.model_kwargs or {}, "processor_kwargs": options.processor_kwargs or {},
        }  # fmt: skip

    @cached_property
    def model(self) -> Any:
        """The Hugging Face model, in evaluation mode, loaded at the first use."""
        options, dtype = self.options, self.options.dtype
        if dtype == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            dtype = torch.float32  # half precision on a CPU is slow and, for some operations, missing
        started, tp = time.perf_counter(), options.tp_plan
        places = {"distributed_config": {"tp_plan": tp}} if tp else {"device_map": options.device_map}
        kwargs = {"dtype": dtype, **places, **(options.model_kwargs or {})}
        with out_of_memory_told("take a smaller dtype, more devices or device_map auto"):
            self._check_size()
            model, info = self._from_pretrained(self._model_class(), **kwargs, output_loading_info=True)
        self._check_loaded(info)
        if tp and tp_size(model) == 1:
            told = f"transformers {transformers.__version__} did not share the model between the processes"
            raise RuntimeError(f"{told}; tp_plan needs version 5.17 or newer")
        where = ", ".join(sorted({str(weight.device) for weight in model.parameters()}))
        took = time.perf_counter() - started
        logger.info("loaded %s on %s as %s in %.1f s", type(model).__name__, where, model.dtype, took)
        return model.eval()

    def release(self) -> None:
        """Let go of weights that were loaded here, for another model's; the next use loads them again."""
        if not self._given:
            self.__dict__.pop("model", None)
            gc.collect()
            torch.cuda.empty_cache()

    def check_same_words(self, other: Checkpoint) -> None:
        """Raises ValueError where another checkpoint has another tokenizer, so that its tokens are others."""
        own, others = (one.processor.tokenizer.get_vocab() for one in (self, other))
        if own != others:
            differ = len({word for word, _ in own.items() ^ others.items()})
            advice = "compare checkpoints of one tokenizer, such as a model and its fine-tune"
            raise ValueError(f"the tokenizers of {self.name} and {other.name} differ in {differ} tokens; {advice}")

    def _model_class(self) -> Any:
        """The class of transformers that loads the model."""
        names = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM")
        classes = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
        own = getattr(self.config, "auto_map", {})  # of the checkpoint's own code
        return next((c for c in classes if type(self.config) in c._model_mapping or c.__name__ in own), classes[0])

    def _check_size(self) -> None:
        """Raises ValueError for a configuration of a far larger model, whose weights would be made at random first."""
        model_class, folder = self._model_class(), Path(self.name)
        files = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
        if not files or type(self.config) not in model_class._model_mapping or self.options.allow_missing_weights:
            return
        with torch.device("meta"):
            count = sum(weight.numel() for weight in model_class.from_config(self.config).parameters())
        stored = sum(file.stat().st_size for file in files)
        if stored * _FAR_TOO_SMALL < count:
            told = f"its configuration describes {count} weights, its files hold {gib(stored)}"
            advice = "check config.json (is text_config missing?) and that all files of weights are there"
            raise ValueError(f"model_path {self.name}: {told}; {advice}")

    def _check_loaded(self, info: dict) -> None:
        """Raises ValueError where weights of the model were not in the checkpoint, or of another shape."""
        wrong = sorted(str(key) for name in ("missing_keys", "mismatched_keys") for key in info.get(name) or ())
        named = ", ".join(wrong[:_NAMED]) + ", ..." * (len(wrong) > _NAMED)
        message = f"model_path {self.name}: {len(wrong)} weights are missing or of another shape: {named}"
        if wrong and self.options.allow_missing_weights:
            logger.warning("%s; they are random", message)
        elif wrong:
            advice = "the model would answer at random: give a whole checkpoint, or allow_missing_weights"
            raise ValueError(f"{message}; {advice}")

    def _base_of(self, *names: str) -> str:
        """The checkpoint that has one of these files: an adapter's directory leaves some to the model it adapts."""
        folder = Path(self.name)
        adapter = folder / "adapter_config.json"
        if any((folder / name).exists() for name in names) or not adapter.exists():
            return self.name
        try:
            return str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{adapter} names no base model: {one_line(error)!r}; save the adapter again") from error

    def _from_pretrained(self, auto_class: Any, name: str | None = None, **kwargs: Any) -> Any:
        """auto_class.from_pretrained, its many-line complaints as one line that names the checkpoint."""
        trusted, where = self.options.trust_remote_code, f"model_path {self.name}"
        try:
            return auto_class.from_pretrained(name or self.name, **{"trust_remote_code": trusted, **kwargs})
        except Exception as error:  # what a broken file or a wrong keyword raises depends on the loader
            if is_out_of_memory(error):
                raise
            if "trust_remote_code" in str(error) and not trusted:
                told = "comes with Python code of its own, which could do whatever you can do on this machine"
                raise ValueError(f"{where} {told}; read it, then allow it with --trust_remote_code") from error
            kind = next((kind for kind in (OSError, ImportError, RuntimeError) if isinstance(error, kind)), ValueError)
            advice = "give a directory with a Hugging Face vision-language checkpoint, or its name on the hub"
            # A file that is missing or broken raises OSError or an error of the reader's own; a wrong option, these.
            if kwargs and isinstance(error, (ImportError, RuntimeError, TypeError, ValueError)):
                of_processor = auto_class.__name__ == "AutoProcessor"
                given = "processor_kwargs" if of_processor else "device_map, dtype and model_kwargs"
                advice = f"check {given}, then the checkpoint's files"
            raise kind(f"{where}: {auto_class.__name__} cannot load it ({one_line(error)}); {advice}") from error


def _check_names(kwargs: dict, processor: Any) -> None:
    """Tell of keywords that a processor did not take, in silence. Raises ValueError for one that is misspelt."""
    known = {
        "revision", "token", "cache_dir", "subfolder", "use_fast", "backend", "local_files_only", "force_download",
        "vocab_file", "bos_token", "eos_token", "unk_token", "pad_token",
    }  # fmt: skip
    for part in (processor, *(part for part in vars(processor).values() if hasattr(part, "__dict__"))):
        known |= {name.lstrip("_") for name in vars(part)} | {*inspect.signature(type(part).__init__).parameters}
        known |= {*getattr(getattr(part, "valid_kwargs", None), "__annotations__", ())}
    for name in sorted(set(kwargs) - known):
        shown, near = one_line(name)[:200], difflib.get_close_matches(name, known, 1, _ALIKE)
        if near:
            raise ValueError(f"processor_kwargs: {shown} is no keyword of the processor; did you mean {near[0]}?")
        logger.warning("processor_kwargs: %s is no known keyword of the processor", shown)


def _check_name(name: str) -> None:
    """Raises FileNotFoundError for what looks like a path and is no directory, before the hub is asked for it."""
    path = Path(name)
    on_hub = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) and not path.exists()
    if path.is_dir() or (on_hub and ("/" not in name or not path.parent.is_dir())):
        return
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.glob("*") if entry.is_dir()], 1)
    advice = "give a directory with a checkpoint, or a name on the hub"
    advice = f"did you mean {path.parent / near[0]}?" if near else advice
    what = "is a file, no directory" if path.exists() else "is no directory"
    raise FileNotFoundError(f"model_path {name} {what}; {advice}")


def process_number(tp_plan: Any = "auto") -> int:
    """Which of several processes this is, by the launcher's word; 0 for one alone, or without a plan."""
    return environment_number("RANK", 0) if tp_plan else 0


def environment_number(name: str, default: int) -> int:
    """A number that a launcher puts into the environment. Raises ValueError for another text."""
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"the environment's {name} is {text[:50]!r}; expected a number, as a launcher sets it")
    return int(text)


def check_tp_plan(tp_plan: Any, device_map: Any, config: Any) -> None:
    """Raises ValueError where a model cannot be shared by the processes that were started."""
    if not tp_plan:
        return
    ranks = environment_number("WORLD_SIZE", 1)
    if ranks < 2:
        advice = "start several: torchrun --nproc-per-node 2 visualizeHeatMap.py ..."
        raise ValueError(f"tp_plan {tp_plan!r} shares the model between processes, and there is one; {advice}")
    if device_map not in (None, "auto"):
        raise ValueError(f"device_map {device_map!r} and tp_plan {tp_plan!r} were both given; give one of them")
    for name in ("num_attention_heads", "num_key_value_heads"):
        uneven = [count for count in layer_values(config.get_text_config(), name, 0) if count % ranks]
        if uneven:
            told = f"tp_plan {tp_plan!r}: {ranks} processes cannot share {uneven[0]} {name} evenly"
            raise ValueError(f"{told}; start a number of processes that divides them")


def part_of(numbers: list[int], checkpoint: Any) -> tuple[list[int], bool, Callable[[], None]]:
    """The samples of this process, whether it is the first, and a function that waits for the others.

    By accelerate's view of the processes, each of which gets a card of its own; of processes that share the model,
    each answers every sample. Comes before the weights are loaded.
    """
    if checkpoint.options.tp_plan:
        wait = lambda: torch.distributed.is_initialized() and torch.distributed.barrier()  # noqa: E731
        return numbers, not process_number(), wait
    from accelerate import PartialState

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment_number(name, 0)
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST_WAIT)
    if state.num_processes > 1 and checkpoint.options.device_map == "auto":
        checkpoint.options = replace(checkpoint.options, device_map={"": state.device})
    with state.split_between_processes(numbers) as own:
        return list(own), state.is_main_process, state.wait_for_everyone
