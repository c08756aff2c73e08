"""What a run takes: refused where it surely does not fit, told in one line where memory runs out."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma3TextConfig, Qwen2_5_VLConfig

from attention_heatmap.recording import memory as room
from attention_heatmap.recording import recorder
from attention_heatmap.recording.memory import (
    check_memory,
    free_memory,
    gib,
    is_out_of_memory,
    out_of_memory_told,
    run_memory,
)
from attention_heatmap.recording.recorder import AttentionRecorder

GIB = 2**30


@pytest.fixture(scope="module")
def seven_billion():
    """Qwen2.5-VL-7B's configuration."""
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
    }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text)


@pytest.mark.parametrize(
    "prompt, eager, measured, passed",
    [(1536, False, 0.29, 0.35), (4096, False, 0.77, 0.69), (16384, False, 3.06, 2.32), (4300, True, 41.5, 41.5)],
)
def test_an_estimate_lies_a_little_above_what_was_measured_on_a_gpu(seven_billion, prompt, eager, measured, passed):
    """GiB over the weights at the peak, bfloat16: of generation with 128 tokens, and of a pass alone with 1024."""
    least, most, longer = (2 * run_memory(seven_billion, prompt + steps, eager) / GIB for steps in (0, 128, 1024))
    assert measured <= most * room.MARGIN <= 1.25 * measured
    assert least * room.SURE_PART < passed, "a run that fits would be refused"
    assert passed <= longer * room.MARGIN


def test_a_layer_with_a_window_has_next_to_no_cache():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = Gemma3TextConfig(
        num_hidden_layers=6, layer_types=kinds, sliding_window=100, num_key_value_heads=20, num_attention_heads=20,
        head_dim=800, hidden_size=20, intermediate_size=5,
    )  # fmt: skip
    assert run_memory(config, 1000) == 1000 * (2 * 20 * 800 + 3 * 5 + 4 * 20)


@pytest.mark.parametrize("limit", [2**28, 0])
def test_a_record_that_does_not_fit_on_the_host_is_refused_as_large_as_it_is_kept(twin, monkeypatch, caplog, limit):
    monkeypatch.setattr(recorder, "LARGEST_FLOAT32_RECORD", limit)
    size = AttentionRecorder([(0, "mean")] * 28, prompt=100, steps=5000).weights.nbytes
    monkeypatch.setattr(room, "run_memory", lambda *_, **__: 0)
    assert f"up to {gib(size)} on the host for the record" in checked(monkeypatch, twin("qwen2_vl"), size, planes=28)
    assert "may not fit" not in caplog.text
    checked(monkeypatch, twin("qwen2_vl"), size - 1, planes=28)  # an answer seldom has all of its steps
    assert "may not fit; record fewer layers or heads, or lower max_new_tokens" in caplog.text
    room.check_record_memory(100, 50, 28, known=True)
    with pytest.raises(ValueError, match=r"on the host for the record, .*: record fewer layers or heads, or low"):
        room.check_record_memory(100, 5000, 28, known=True)


@pytest.mark.parametrize("count, words", [(2**20, "1.0 MiB"), (3 * 2**29, "1.50 GiB")])
def test_bytes_in_words(count, words):
    assert gib(count) == words


def test_the_hosts_free_memory_is_less_than_all_of_it():
    assert 0 < free_memory("cpu") < 2**50 and free_memory("xpu") == float("inf")


def test_a_cards_free_memory_has_torchs_own_reserve_in_it(monkeypatch):
    facts = {"memory_reserved": 500, "memory_allocated": 200, "mem_get_info": (1000, 4000)}
    for name, value in facts.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert free_memory("cuda:0") == 1300


def test_devices_that_share_the_layers_are_taken_together(twin, monkeypatch):
    """Weights that accelerate keeps elsewhere are on "meta"."""
    model = twin("qwen2_vl")
    places = [torch.device(name) for name in ("cuda:1", "cuda:0", "meta", "cuda:1")]
    monkeypatch.setattr(model, "parameters", lambda: [SimpleNamespace(device=place) for place in places])
    monkeypatch.setattr(room, "input_device", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr(type(model), "dtype", torch.bfloat16)
    told = checked(monkeypatch, model, 3 * GIB)
    assert "on cuda:0, cuda:1 beside the weights, where 6.00 GiB are free" in told


def checked(monkeypatch, model, free, steps=5000, planes=3, eager=False):
    monkeypatch.setattr(room, "free_memory", lambda device: free)
    return check_memory(model, 100, steps, planes, eager=eager)


@pytest.mark.parametrize("eager, advice", [(True, "take attention='auto'"), (False, "lower max_pixels, take dtype bf")])
def test_what_surely_does_not_fit_is_refused(twin, monkeypatch, eager, advice):
    message = rf"^100 prompt tokens and up to 5000 .* on cpu .* where 0\.0 MiB are free: {advice}"
    with pytest.raises(ValueError, match=message):
        checked(monkeypatch, twin("qwen2_vl"), 1000, planes=0, eager=eager)


def test_a_long_answer_that_may_not_fit_is_warned_of(twin, monkeypatch, caplog):
    model = twin("qwen2_vl")
    checked(monkeypatch, model, 4 * run_memory(model.config, 5100), planes=0)
    assert "that may not fit; lower max_new_tokens, or lower max_pixels" in caplog.text
    caplog.clear()
    assert "take about" in checked(monkeypatch, model, 2**40)
    assert not caplog.text


def test_processes_that_share_a_model_share_what_a_run_takes(twin, monkeypatch):
    def taken():
        return float(checked(monkeypatch, twin("qwen2_vl"), 2**40).split("take about ")[1].split()[0])

    whole = taken()
    monkeypatch.setattr(type(twin("qwen2_vl")), "tp_size", 2, raising=False)
    assert taken() == pytest.approx(whole / 2, abs=0.1)


ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. Of the allocated memory ..."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError("Unable to allocate 3 TiB"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["on a GPU", "by torch on the host", "by NumPy"])
def test_running_out_of_memory_is_one_line_with_the_numbers_and_leaves_nothing_behind(error):
    held = []

    def fails():
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise error

    message = r"^out of memory: .*allocate[^.]*(\..*)?; 7 tokens; lower it$"
    with pytest.raises(RuntimeError, match=message) as told, out_of_memory_told("lower it") as facts:
        facts.append("7 tokens")
        fails()
    assert "\n" not in str(told.value)
    assert [reference() for reference in held] == [None], "a tensor of the failed pass is still held"


def test_another_error_is_left_as_it_is():
    error = RuntimeError("shapes do not fit")
    assert not is_out_of_memory(error)
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"), out_of_memory_told():
        raise error
