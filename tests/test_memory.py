import logging
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import picture
from tiny_models import qwen_checkpoint
from transformers import Gemma3TextConfig, Qwen2_5_VLConfig

import visualizeHeatMap as vhm

GIB = 2**30
SAMPLE = {"problem": "Go."}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny random Qwen2-VL, loaded."""
    visualizer = vhm.AttentionVisualizer(str(qwen_checkpoint("qwen2_vl", tmp_path_factory.mktemp("tiny"))))
    assert visualizer.model
    return visualizer


@pytest.fixture(scope="module")
def seven_billion():
    """Qwen2.5-VL-7B's configuration."""
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
    }  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "out_hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision)


@pytest.mark.parametrize(
    "prompt, steps, replay, eager, measured",
    [
        (1536, 128, False, False, 0.29), (4096, 128, False, False, 0.77), (16384, 128, False, False, 3.06),
        (1536, 1024, True, False, 0.35), (4096, 1024, True, False, 0.69), (16384, 1024, True, False, 2.32),
        (4300, 128, False, True, 41.5),
    ],
)  # fmt: skip
def test_an_estimate_lies_at_most_20_percent_above_what_was_measured_on_a_gpu(
    seven_billion, prompt, steps, replay, eager, measured
):
    """GiB over the weights at the peak, bfloat16, a picture of 2640 patches."""
    least, most = vhm.device_memory(seven_billion, prompt, steps, 2, 2640, replay=replay, eager=eager)
    assert measured <= most * vhm.MEMORY_MARGIN / GIB <= 1.2 * measured
    assert least * vhm.SURE_PART / GIB < measured, "a run that fits would be refused"


def test_the_cache_grows_by_keys_and_values_of_each_layer_and_a_window_keeps_its_own_length(seven_billion):
    assert vhm.cache_size(seven_billion, 1000) * 2 == 57344 * 1000
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    sliding = Gemma3TextConfig(
        num_hidden_layers=6, layer_types=kinds, sliding_window=100, num_key_value_heads=2, head_dim=8
    )
    assert vhm.cache_size(sliding, 1000) == 2 * 2 * 8 * (5 * 100 + 1000)


def test_a_large_picture_counts_by_the_vision_tower(seven_billion):
    small, large = (vhm.pass_size(seven_billion, 100, patches) for patches in (4, 40000))
    assert small == vhm.pass_size(seven_billion, 100) and large > 100 * small


def test_devices_and_processes_that_share_a_model_share_its_cache(seven_billion):
    whole, _ = vhm.device_memory(seven_billion, 16384, 1, 2)
    half, _ = vhm.device_memory(seven_billion, 16384, 1, 2, share=0.5)
    shared, _ = vhm.device_memory(seven_billion, 16384, 1, 2, ranks=2)
    assert whole - half == 16384 * 57344 / 2
    assert shared < 0.6 * whole


def test_a_record_is_counted_as_it_is_kept(monkeypatch):
    for limit in (2**28, 0):
        monkeypatch.setattr(vhm, "LARGEST_FLOAT32_RECORD", limit)
        kept = vhm.AttentionRecorder((0, 1), first_query=49, steps=7)._weights_TLK
        assert vhm.record_memory(50, 7, 2) == kept.nbytes


def free(monkeypatch, count):
    monkeypatch.setattr(vhm, "free_memory", lambda device: count)


@pytest.mark.parametrize("options", [{}, {"response": "go on"}, {"attention": "eager"}])
def test_what_surely_does_not_fit_is_refused_before_anything_runs(tiny, monkeypatch, options):
    free(monkeypatch, 1000)
    monkeypatch.setattr(tiny.model, "forward", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=r"prompt tokens and up to .* on cpu .* where 0.0 MiB are free: ") as error:
        tiny.record(SAMPLE, [picture()], [1], max_new_tokens=3, **options)
    lower = "attention='auto'" if options.get("attention") == "eager" else "lower max_pixels"
    assert lower in str(error.value)


def test_a_long_answer_that_may_not_fit_is_warned_of_and_still_tried(tiny, monkeypatch, caplog):
    short = tiny.record(SAMPLE, [picture()], [1], max_new_tokens=3)
    least, most = vhm.device_memory(tiny.config, short.prompt_length, 5000, 4)
    assert least < most
    free(monkeypatch, most)
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [int(short.token_ids[-1])])
    assert tiny.record(SAMPLE, [picture()], [1], max_new_tokens=5000).response_length < 3
    assert "that may not fit; lower max_new_tokens, or" in caplog.text
    assert "record fewer layers" in caplog.text


def test_where_the_free_memory_is_unknown_nothing_is_said_but_the_estimate(tiny, monkeypatch, caplog):
    free(monkeypatch, None)
    with caplog.at_level(logging.INFO):
        tiny.record(SAMPLE, [picture()], [1], max_new_tokens=2)
    assert "on cpu beside the weights, where unknown GiB are free" in caplog.text
    assert "may not fit" not in caplog.text


def test_the_hosts_free_memory_is_less_than_all_of_it():
    assert vhm.free_memory("cpu") is None or 0 < vhm.free_memory("cpu") < 2**50
    assert vhm.free_memory("meta") is None


def test_weights_that_do_not_fit_are_told_before_they_are_loaded(tiny, monkeypatch, caplog):
    free(monkeypatch, 1000)
    named = vhm.AttentionVisualizer(tiny.model_name_or_path, device_map={"": "cpu"})
    with pytest.raises(ValueError, match=r"the weights take \d\.\d MiB on cpu, where 0\.0 MiB are free"):
        _ = named.model
    _ = vhm.AttentionVisualizer(tiny.model_name_or_path).model  # "auto": what does not fit stays on disk
    assert "which is slow" in caplog.text


def test_weights_count_in_the_dtype_they_are_loaded_as(tiny):
    folder, count = tiny.model_name_or_path, sum(p.numel() for p in tiny.model.parameters())
    for dtype, size in ((torch.float32, 4), ("bfloat16", 2), ("auto", 4)):
        assert 0 <= vhm.weights_memory(folder, tiny.config, dtype) - count * size < 20000  # the file's header
    assert vhm.weights_memory("a name on/the hub", tiny.config, "auto") == 0
    quantised = SimpleNamespace(quantization_config={"bits": 4}, dtype=torch.float16)
    assert vhm.weights_memory(folder, quantised, "auto") == 0


def run_out(module, after, held, error):
    """The module's forward, which fails at a later call while a tensor is alive in its frame."""
    forward, calls = module.forward, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            large = torch.zeros(1000)
            held.append(weakref.ref(large))
            raise error
        return forward(*args, **kwargs)

    return failing


@pytest.mark.parametrize("after, options", [(0, {}), (3, {}), (0, {"response": "go on"}), (0, {"attention": "eager"})])
@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. Of the allocated memory ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_running_out_of_memory_is_one_line_with_the_numbers_and_leaves_nothing_behind(
    tiny, monkeypatch, after, options, error
):
    before, held = vhm.implementations(tiny.model.config), []
    layer = tiny.model.get_decoder().layers[2]
    monkeypatch.setattr(layer, "forward", run_out(layer, after, held, error))
    with pytest.raises(RuntimeError, match=r"^out of memory: .*allocate.* prompt tokens and up to .* free") as told:
        tiny.record(SAMPLE, [picture()], [1], max_new_tokens=8, **options)
    assert "\n" not in str(told.value) and "lower max_pixels" in str(told.value)
    assert [reference() for reference in held] == [None], "a tensor of the failed pass is still held"
    assert vhm.implementations(tiny.model.config) == before and vhm._active_recorder.get() is None
    monkeypatch.undo()
    assert tiny.record(SAMPLE, [picture()], [1], max_new_tokens=2).response_length == 2


def test_another_error_of_the_model_is_left_as_it_is(tiny, monkeypatch):
    layer = tiny.model.get_decoder().layers[2]
    monkeypatch.setattr(layer, "forward", run_out(layer, 0, [], RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        tiny.record(SAMPLE, [picture()], [1], max_new_tokens=2)


def test_a_record_too_large_for_the_host_is_one_line(tiny):
    with pytest.raises(RuntimeError, match=r"^out of memory: Unable to allocate .* on the host for the record"):
        tiny.record(SAMPLE, [picture()], [1], max_new_tokens=10**9)


@pytest.mark.parametrize("kind, text", [(torch.cuda.OutOfMemoryError, "CUDA"), (RuntimeError, "DefaultCPUAllocator")])
def test_running_out_of_memory_while_loading_names_the_weights_once(tiny, monkeypatch, kind, text):
    def none_left(*_, **__):
        raise kind(f"{text}: cannot allocate 2.00 GiB.")

    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", none_left)
    message = rf"^out of memory: {text}: cannot .*; the weights take .* MiB; take a smaller dtype or more devices$"
    with pytest.raises(RuntimeError, match=message):
        vhm.AttentionVisualizer(tiny.model_name_or_path).record(SAMPLE, [picture()], [1])
