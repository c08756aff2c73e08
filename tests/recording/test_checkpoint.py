"""Loading a checkpoint: what is wrong with it is one line that names it, before any long wait."""

import argparse
import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from reference import inputs_of

from attention_heatmap.recording.checkpoint import Checkpoint
from attention_heatmap.recording.generation import record_rows
from attention_heatmap.recording.options import CheckpointOptions, _json_object

RESPONSE = list(range(40, 46))


@pytest.fixture
def copied(tiny_checkpoint, tmp_path):
    """A copy of the tiny Qwen2-VL's folder, to change."""
    return shutil.copytree(tiny_checkpoint("qwen2_vl"), tmp_path / "copied")


def checkpoint(folder, **options):
    return Checkpoint(str(folder), CheckpointOptions(**options))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float99"}, "dtype is 'float99'; expected auto or one of torch's"),
        ({"dtype": "nn"}, "dtype is 'nn'"),
        ({"device_map": "meta"}, "device_map names meta, a device without weights"),
        ({"device_map": {"": "meta"}}, "device_map names meta"),
        ({"trust_remote_code": 1}, "trust_remote_code is 1; expected True or False"),
    ],
)
def test_a_wrong_option_says_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        CheckpointOptions(**options)


@pytest.mark.parametrize("text", ["[1]", "{", "1", "[" * 10**5])
def test_a_flag_that_is_no_json_object_says_so(text):
    assert _json_object('{"revision": "main"}') == {"revision": "main"}
    with pytest.raises(argparse.ArgumentTypeError, match="is no JSON object; expected one such as"):
        _json_object(text)


# ------------------------------------------------------------------------------------- where it is


def test_a_path_without_a_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises((OSError, ValueError), match="AutoConfig cannot load it") as error:
        checkpoint(tmp_path)
    assert "\n" not in str(error.value) and str(error.value).count("model_path") == 1


def test_a_path_that_is_none_is_told_before_the_hub_is_asked_with_the_nearest_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (
        ("modell", r"is no directory; did you mean .*model\?$"),
        ("file", "is a file, no directory; give a directory"),
        ("a/b/c", "is no directory; give a directory with a checkpoint, or a name on the hub"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            checkpoint(tmp_path / name)


def test_a_name_on_the_hub_is_asked_for_there():
    with pytest.raises(OSError, match=r"^model_path someone/model: AutoConfig cannot load it"):
        checkpoint("someone/model")


def test_a_text_model_is_told_at_once(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="'gpt2' names no image_token_id"):
        checkpoint(tmp_path)


def test_a_processor_without_a_tokenizer_is_told(tiny):
    with pytest.raises(ValueError, match="has no tokenizer beside its processor; add its files"):
        Checkpoint(tiny.checkpoint.name, CheckpointOptions(), processor=SimpleNamespace())


# ------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    "name, content",
    [("model.safetensors", b"\x10\0\0\0\0\0\0\0cut"), ("config.json", b"{"), ("config.json", b"\xff\xfe")],
)
def test_a_broken_file_of_a_checkpoint_is_one_clear_line(copied, name, content):
    if name == "model.safetensors":  # far too small for its configuration otherwise
        content += b" " * 40000
    (copied / name).write_bytes(content)
    with pytest.raises((OSError, ValueError), match=r"cannot load it .*; give a directory") as error:
        _ = checkpoint(copied).model
    assert type(error.value) in (OSError, ValueError) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, message",
    [("adapter_config.json", "{}", "names no base model"), ("adapter_config.json", "[", "names no base model"),
     ("processor_config.json", "[]", "cannot load it")],
)  # fmt: skip
def test_a_broken_file_beside_the_weights_is_one_clear_line(copied, name, content, message):
    (copied / name).write_text(content)
    if name == "adapter_config.json":
        (copied / "config.json").unlink()
    with pytest.raises((ValueError, OSError), match=message) as error:
        checkpoint(copied)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_kwargs": {"no_such_option": 1}}, "cannot load it .*; check device_map, dtype and model_kwargs"),
        ({"device_map": "nowhere"}, "cannot load it .*; check device_map, dtype and model_kwargs"),
        ({"processor_kwargs": {"size": "q"}}, "cannot load it .*; check processor_kwargs"),
    ],
)
def test_what_from_pretrained_cannot_take_is_one_clear_line(tiny_checkpoint, options, message):
    with pytest.raises(ValueError, match=message) as error:
        _ = checkpoint(tiny_checkpoint("qwen2_vl"), **options).model
    assert "\n" not in str(error.value)


def test_code_that_comes_with_a_checkpoint_is_run_only_when_it_is_allowed(copied):
    (copied / "own.py").write_text("raise SystemExit('run')")
    edit(copied / "config.json", auto_map={"AutoConfig": "own.Config"}, model_type="own")
    with pytest.raises(ValueError, match=r"comes with Python code of its own.*allow it with --trust_remote_code"):
        checkpoint(copied)


# ------------------------------------------------------------------------------------- the weights


def test_weights_that_are_missing_or_of_another_shape_are_an_error_unless_allowed(copied, caplog):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if "q_proj.weight" in name)
    del weights[name]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing or of another shape: .*q_proj\.weight; the model"):
        _ = checkpoint(copied).model
    assert checkpoint(copied, allow_missing_weights=True).model
    assert "they are random" in caplog.text


@pytest.mark.parametrize("size, message", [
    (9000, r"its configuration describes \d{7} weights, its files hold 0\.\d MiB; check"), (50, "cannot load it"),
])  # fmt: skip
def test_a_configuration_of_a_far_larger_model_is_told_before_its_weights_are_made(copied, size, message):
    config = json.loads((copied / "config.json").read_text())
    edit(copied / "config.json", text_config=config["text_config"] | {"intermediate_size": size})
    with pytest.raises((ValueError, RuntimeError), match=message):
        _ = checkpoint(copied).model


@pytest.mark.parametrize("kind, text", [(torch.cuda.OutOfMemoryError, "CUDA"), (RuntimeError, "DefaultCPUAllocator")])
def test_running_out_of_memory_while_loading_says_what_to_take(tiny_checkpoint, monkeypatch, kind, text):
    def none_left(*_, **__):
        raise kind(f"{text}: cannot allocate 2.00 GiB.")

    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", none_left)
    message = rf"^out of memory: {text}: cannot .*; take a smaller dtype, more devices or device_map auto$"
    with pytest.raises(RuntimeError, match=message):
        _ = checkpoint(tiny_checkpoint("qwen2_vl")).model


def test_a_plan_that_transformers_did_not_follow_is_an_error(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = checkpoint(tiny_checkpoint("qwen2_vl"), tp_plan="auto")
    real = transformers.AutoModelForImageTextToText.from_pretrained

    def alone(*arguments, distributed_config, **kwargs):
        assert distributed_config == {"tp_plan": "auto"} and "device_map" not in kwargs
        return real(*arguments, **kwargs)

    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", alone)
    with pytest.raises(RuntimeError, match="did not share the model between the processes"):
        _ = found.model


def test_a_sharded_checkpoint_is_read_and_model_kwargs_reach_it(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = checkpoint(tmp_path, model_kwargs={"attn_implementation": "eager", "dtype": torch.bfloat16})
    assert found.model.dtype == torch.bfloat16 and found.model.config._attn_implementation == "eager"
    one, other = tiny.model.state_dict(), checkpoint(tmp_path).model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapters_directory_is_a_checkpoint(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tiny.checkpoint.name)
    torch.manual_seed(1)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    adapted = checkpoint(tmp_path).model
    assert any("lora" in name for name, _ in adapted.named_parameters())
    planes, inputs = [(2, "mean")], inputs_of(tiny)
    plain, other = (record_rows(one, inputs, planes, RESPONSE).weights for one in (tiny.model, adapted))
    assert np.abs(plain - other).max() > 1e-3


def test_processor_kwargs_reach_the_processor(tiny_checkpoint):
    found = checkpoint(tiny_checkpoint("gemma3"), processor_kwargs={"do_pan_and_scan": True})
    assert found.processor.image_processor.do_pan_and_scan


# ------------------------------------------------------------------------------------- what is loaded


def test_what_is_loaded_can_be_read_in_the_log_and_is_loaded_once_when_it_is_needed(tiny_checkpoint, caplog):
    with caplog.at_level(logging.INFO):
        found = checkpoint(tiny_checkpoint("qwen2_vl"))
        assert "model type qwen2_vl, 3 layers" in caplog.text and "loaded" not in caplog.text
        assert found.model is found.model and not found.model.training
    assert caplog.text.count("loaded Qwen2VLForConditionalGeneration on cpu as torch.float32 in") == 1


@pytest.mark.parametrize(
    "options, dtype",
    [({}, torch.float32), ({"dtype": "bfloat16"}, torch.bfloat16), ({"dtype": torch.float16}, torch.float16)],
)
def test_on_a_cpu_auto_is_float32(tiny, tmp_path, options, dtype):
    tiny.processor.save_pretrained(tmp_path)
    transformers.AutoModelForImageTextToText.from_pretrained(
        tiny.checkpoint.name, dtype=torch.bfloat16
    ).save_pretrained(tmp_path)
    assert checkpoint(tmp_path, device_map="cpu", **options).model.dtype == dtype


def test_a_family_that_answers_as_a_causal_model_is_loaded_as_one(tiny_checkpoint):
    assert "CausalLM" in type(checkpoint(tiny_checkpoint("phi4_multimodal")).model).__name__


def test_a_loaded_model_is_taken_as_it_is_with_its_processor(tiny):
    with pytest.raises(ValueError, match="a loaded model needs its processor too"):
        Checkpoint(tiny.model, CheckpointOptions())
    found = Checkpoint(tiny.model, CheckpointOptions(), processor=tiny.processor)
    assert found.model is tiny.model and found.processor is tiny.processor and found.name == tiny.checkpoint.name


def test_facts_tell_a_changed_file_of_a_directory(copied):
    before = checkpoint(copied).facts()
    assert json.loads(json.dumps(before)) == before == checkpoint(copied).facts()
    assert before["model"] == str(copied.resolve()) and "model.safetensors" in [
        name for name, *_ in before["checkpoint"]
    ]
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert checkpoint(copied).facts() != before
    assert checkpoint(copied, dtype="bfloat16", processor_kwargs={"a": 1}).facts()["dtype"] == "bfloat16"


def test_weights_that_were_loaded_here_can_be_let_go_of_and_a_given_model_stays(tiny, tiny_checkpoint):
    found = checkpoint(tiny_checkpoint("qwen2_vl"))
    first = found.model
    found.release()
    assert "model" not in vars(found) and found.model is not first
    given = Checkpoint(tiny.model, CheckpointOptions(), processor=tiny.processor)
    given.release()
    assert given.model is tiny.model


def test_checkpoints_of_other_tokenizers_are_not_compared(tiny_checkpoint):
    one = checkpoint(tiny_checkpoint("qwen2_vl"))
    one.check_same_words(checkpoint(tiny_checkpoint("qwen3_vl")))
    with pytest.raises(ValueError, match=r"^the tokenizers of .*qwen2_vl and .*llava differ in \d+ tokens; compare"):
        one.check_same_words(checkpoint(tiny_checkpoint("llava")))
