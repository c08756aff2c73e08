import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DEMO, ROOT, picture
from tiny_models import qwen_checkpoint

import visualizeHeatMap as vhm

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request, tmp_path_factory):
    """A tiny random checkpoint of one family, loaded."""
    return vhm.AttentionVisualizer(str(qwen_checkpoint(request.param, tmp_path_factory.mktemp(request.param))))


def inputs_of(visualizer, problem="Based on the following requirements, go.", sizes=((150, 110), (90, 130))):
    rng = np.random.default_rng(0)
    images = [vhm.Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)) for w, h in sizes]
    return vhm.build_inputs(visualizer.processor, problem, images, "{Question} Think.")


def test_rows_equal_eager_attention_on_every_step_and_layer(tiny):
    arguments = (tiny.model, inputs_of(tiny), (0, 1, 2), "mean", {"max_new_tokens": 12, **GREEDY}, None)
    rows, eager = vhm.record_rows(*arguments), vhm.record_rows_eager(*arguments)
    assert rows.response_ids == eager.response_ids
    np.testing.assert_allclose(rows.weights, eager.weights, rtol=0, atol=1e-5)


def test_a_replayed_response_has_the_rows_of_its_generation(tiny):
    inputs = inputs_of(tiny)
    rows = vhm.record_rows(tiny.model, inputs, (0, 2), "mean", {"max_new_tokens": 70, **GREEDY}, None)
    replayed = vhm.record_rows(tiny.model, inputs, (0, 2), "mean", {}, rows.response_ids)
    assert replayed.response_ids == rows.response_ids
    np.testing.assert_allclose(replayed.weights, rows.weights, rtol=0, atol=1e-5)


def test_the_row_is_of_the_query_that_produced_the_token(tiny):
    """Row t is the query at position P - 1 + t of one plain eager pass: not the token's own, one later."""
    inputs = inputs_of(tiny)
    P = inputs["input_ids"].shape[1]
    rows = vhm.record_rows(tiny.model, inputs, (1,), "mean", {"max_new_tokens": 6, **GREEDY}, None)
    ids, weights = rows.response_ids, rows.weights
    with vhm.text_attention(tiny.model, "eager"), torch.no_grad():
        output = tiny.model(**vhm.append_response(inputs, ids), output_attentions=True)
    full_QK = output.attentions[1][0].mean(0).numpy()
    for t in range(len(ids)):
        np.testing.assert_allclose(weights[t, 0, : P + t], full_QK[P - 1 + t, : P + t], atol=1e-5)
        assert np.abs(weights[t, 0, : P + t] - full_QK[P + t, : P + t]).max() > 1e-3


def test_rows_sum_to_one_and_are_zero_from_the_token_on(tiny):
    inputs = inputs_of(tiny)
    P = inputs["input_ids"].shape[1]
    rows = vhm.record_rows(tiny.model, inputs, (0, 1), "mean", {"max_new_tokens": 9, **GREEDY}, None)
    ids, weights = rows.response_ids, rows.weights
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    for t in range(len(ids)):
        assert (weights[t, :, P + t :] == 0).all() and (weights[t, :, : P + t] > 0).all()


@pytest.mark.parametrize("head", ["max", 0, 3, -1])
def test_other_reductions_of_the_heads_equal_eager_too(tiny, head):
    arguments = (tiny.model, inputs_of(tiny), (1,), head, {"max_new_tokens": 4, **GREEDY}, None)
    rows, eager = vhm.record_rows(*arguments), vhm.record_rows_eager(*arguments)
    np.testing.assert_allclose(rows.weights, eager.weights, atol=1e-5)


@pytest.mark.parametrize("head", [4, -5, 1.5, "x", True, None])
def test_a_head_that_is_none_names_the_number_of_heads(head):
    with pytest.raises(ValueError, match="cannot be taken: the layer has 4 heads"):
        vhm.check_head(head, 4)


def test_the_old_attention_comes_back_also_after_an_error(tiny):
    before = vhm.implementations(tiny.model.config)
    with pytest.raises(KeyboardInterrupt), vhm.recording(tiny.model, vhm.AttentionRecorder((0,), 0)):
        during = vhm.implementations(tiny.model.config)
        raise KeyboardInterrupt
    assert during["text_config"] == vhm.RECORDING_ATTENTION and during["vision_config"] == before["vision_config"]
    assert vhm.implementations(tiny.model.config) == before
    assert vhm._active_recorder.get() is None


def test_recording_changes_no_token(tiny):
    inputs = inputs_of(tiny)
    rows = vhm.record_rows(tiny.model, inputs, (0, 1, 2), "mean", {"max_new_tokens": 12, **GREEDY}, None)
    plain = tiny.model.generate(**inputs, max_new_tokens=12, **GREEDY)[0, inputs["input_ids"].shape[1] :].tolist()
    assert plain[: len(rows.response_ids)] == rows.response_ids


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("more, steps", [({}, False), ({"cache_implementation": "static"}, True)])
def test_steps_of_a_growing_cache_are_kept_from_cudnn_which_plans_anew_for_each_length(tiny, more, steps, before):
    """The pass over the prompt and the steps of a static cache are not; an error, too, puts it back."""
    inputs, allowed, kept = inputs_of(tiny), [], torch.backends.cuda.cudnn_sdp_enabled()

    def note(*_):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        if len(allowed) == 4:
            raise RuntimeError("stopped")

    torch.backends.cuda.enable_cudnn_sdp(before)
    hook = tiny.model.get_decoder().register_forward_pre_hook(note)
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            vhm.generate_response(tiny.model, inputs, {"max_new_tokens": 6, **GREEDY, **more})
        assert allowed == [before, *[before and steps] * 3]
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    finally:
        hook.remove()
        torch.backends.cuda.enable_cudnn_sdp(kept)


def test_no_matrix_of_all_positions_is_held(tiny):
    recorder = vhm.AttentionRecorder((1,), first_query=inputs_of(tiny)["input_ids"].shape[1] - 1)
    with vhm.recording(tiny.model, recorder), torch.no_grad():
        tiny.model(**inputs_of(tiny))
    assert recorder._found_TL.shape == (1, 1) and recorder._weights_TLK.shape[2] == recorder.first_query + 2


def test_a_model_that_bypasses_the_interface_falls_back_to_eager_with_a_warning(tiny, monkeypatch, caplog):
    monkeypatch.setattr(vhm, "RECORDING_ATTENTION", "sdpa")  # so that our function is never called
    monkeypatch.setattr("transformers.AttentionInterface.register", lambda *_: None)
    monkeypatch.setattr("transformers.AttentionMaskInterface.register", lambda *_: None)
    sample = {"problem": "Go."}
    record = tiny.record(sample, [picture((90, 60))], [1], max_new_tokens=4)
    assert "falling back to eager attention" in caplog.text
    monkeypatch.undo()
    direct = tiny.record(sample, [picture((90, 60))], [1], max_new_tokens=4)
    np.testing.assert_allclose(record.weights, direct.weights, atol=1e-5)


def observe(recorder, layer, batch=1, queries=1, keys=1):
    recorder.observe(layer, torch.zeros(batch, 4, queries, 8), torch.zeros(batch, 2, keys, 8), None, None)


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match="the batch has 2 sequences"):
        observe(vhm.AttentionRecorder((0,), 0), 0, batch=2)


def test_a_layer_without_rows_is_named():
    recorder = vhm.AttentionRecorder((0, 5), 0)
    observe(recorder, 0)
    with pytest.raises(RuntimeError, match="layer 5 gave 0 attention rows for 1 tokens"):
        recorder.weights(1, 2)


@pytest.mark.parametrize("window", [200, 60, 3])
@pytest.mark.parametrize("values_at_once", [1, 2**23])
def test_queries_that_wait_for_each_other_get_the_rows_of_their_own_step(monkeypatch, window, values_at_once):
    """Also where a sliding window begins to move while some wait: keys then leave the cache."""
    monkeypatch.setattr(vhm, "VALUES_AT_ONCE", values_at_once)
    P, T, H, G, D = 50, 70, 4, 2, 8
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(1, n, P + T, D, generator=generator) for n in (H, G))
    recorder = vhm.AttentionRecorder((0, 1), P - 1, steps=T)
    for t in range(T):
        end, first = P + t, max(P + t - window, 0)
        for layer in (0, 1):
            mask = torch.zeros(1, 1, P, P).masked_fill(torch.ones(P, P).triu(1) > 0, -torch.inf) if t == 0 else None
            seen = slice(0 if t == 0 else first, end)
            recorder.observe(layer, queries[:, :, end - 1 if t else 0 : end], keys[:, :, seen], mask, None)
    assert window > P + T or not recorder._late  # keys that have left the cache are not held either
    rows = recorder.weights(T, P + T)
    for t in range(T):
        seen = slice(max(P + t - window, 0) if t else 0, P + t)
        scores = queries[0, :, P + t - 1, None] @ keys[0].repeat_interleave(H // G, 0)[:, seen].transpose(1, 2)
        expected = torch.zeros(P + T)
        expected[seen] = torch.softmax(scores[:, 0] / D**0.5, -1).mean(0)
        for layer in (0, 1):
            np.testing.assert_allclose(rows[t, layer], expected, atol=1e-6)


def test_a_step_of_generation_waits_with_no_key_but_the_last_one():
    recorder = vhm.AttentionRecorder((0,), 0, steps=5)
    for keys in range(1, 4):
        observe(recorder, 0, keys=keys)
    late = recorder._late[0]
    assert len(late.queries) == 3 and late.key.shape[2] == 3 and recorder.reached


@pytest.mark.parametrize("limit, dtype", [(2**28, np.float32), (0, np.float16)])
def test_a_large_record_is_kept_in_half_the_memory(monkeypatch, limit, dtype):
    monkeypatch.setattr(vhm, "LARGEST_FLOAT32_RECORD", limit)
    recorder = vhm.AttentionRecorder((0,), 99, steps=5)
    observe(recorder, 0, queries=104, keys=104)
    weights = recorder.weights(5, 104)
    assert weights.dtype == dtype
    np.testing.assert_allclose(weights.astype(np.float32).sum(-1), 1, atol=1e-3)


def test_rows_of_a_step_leave_together(monkeypatch):
    recorder, sizes = vhm.AttentionRecorder((0, 1, 2), 0, steps=4), []
    monkeypatch.setattr(recorder, "_store", lambda event, step, column, places, rows: sizes.append(len(places)))
    for _ in range(2):
        for layer in range(3):
            observe(recorder, layer, queries=2, keys=4)
    recorder._pool.shutdown()
    assert sizes == [3, 3]


def test_recording_equals_eager_on_the_demo_on_every_step_and_layer(demo_visualizer, demo_record):
    record, images = demo_record
    sample, _ = demo_visualizer.load_sample_data(DEMO / "dataset.json", DEMO / "images", 0)
    layers = range(demo_visualizer.num_layers)
    eager = demo_visualizer.record(sample, images, layers, attention="eager")
    np.testing.assert_array_equal(record.token_ids, eager.token_ids)
    np.testing.assert_allclose(record.weights, eager.weights, rtol=0, atol=1e-5)
    replay = demo_visualizer.record(sample, images, layers, response=record.response)
    np.testing.assert_array_equal(record.token_ids, replay.token_ids)
    np.testing.assert_allclose(record.weights, replay.weights, rtol=0, atol=1e-5)


SHARED_RUNS = (
    {}, {"head": "max"}, {"head": 1}, {"head": -1}, {"attention": "eager"}, {"response": "<think> so"},
    {"do_sample": True, "temperature": 5.0, "seed": 3},
)  # fmt: skip
OF_TWO_PROCESSES = """
import sys
import numpy as np, visualizeHeatMap as vhm
from test_recording import shared_runs
for checkpoint in sys.argv[1:]:
    rows = shared_runs(vhm.AttentionVisualizer(checkpoint, tp_plan="auto"))
    np.savez(f"{checkpoint}/{vhm.process_number('auto')}.npz", *rows)
"""


def shared_runs(visualizer, runs=SHARED_RUNS):
    """Weights and ids of each run in turn."""
    sample, images = {"problem": "Go."}, [picture((90, 60))]
    records = [visualizer.record(sample, images, [0, 2], max_new_tokens=6, **options) for options in runs]
    return [part for record in records for part in (record.weights, record.token_ids)]


def test_processes_that_share_the_heads_record_what_one_process_does(tmp_path):
    """qwen3_vl's text is one that transformers 5.23 does not cut into parts: each process has all heads."""
    checkpoints = [str(qwen_checkpoint(family, tmp_path / family)) for family in ("qwen2_vl", "qwen3_vl")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "-c", OF_TWO_PROCESSES, *checkpoints], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    for checkpoint in checkpoints:
        alone = shared_runs(vhm.AttentionVisualizer(checkpoint))
        for process in (0, 1):
            with np.load(f"{checkpoint}/{process}.npz") as found:
                for name, expected in zip(found.files, alone, strict=True):
                    np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)


def test_a_model_of_which_parts_are_kept_on_disk_has_the_same_rows(tiny, tmp_path):
    """Also where the first part, whose device the model calls its own, is one of them."""
    parts = {"model.visual": "disk", "model.language_model": "cpu", "model.language_model.layers.1": "disk"}
    places = parts | {f"model.language_model.layers.{n}": "cpu" for n in (0, 2)} | {"lm_head": "disk"}
    places |= {f"model.language_model.{name}": "disk" for name in ("embed_tokens", "norm", "rotary_emb")}
    del places["model.language_model"]
    spread = vhm.AttentionVisualizer(
        tiny.model_name_or_path, device_map=places, model_kwargs={"offload_folder": str(tmp_path)}
    )
    assert spread.model.device.type == "meta"
    for found, expected in zip(shared_runs(spread, [{}]), shared_runs(tiny, [{}])):
        np.testing.assert_array_equal(found, expected)


def test_no_pass_is_given_tensors_that_accelerate_would_move_away_from_the_last_layers(tiny):
    """It moves every tensor to the first card; one that points into the hidden states is needed on the last."""
    inputs, ids, given = inputs_of(tiny), [65, 66, 67], set()
    located = vhm.locate_image_tokens(tiny.model, tiny.processor, inputs, [picture((150, 110)), picture((90, 130))])
    regions = vhm.picture_regions(located, [(150, 110), (90, 130)])

    def note(module, arguments, keywords):
        given.update(name for name, value in keywords.items() if isinstance(value, torch.Tensor))

    hook = tiny.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        vhm.record_rows(tiny.model, inputs, (1,), "mean", {}, ids)
        vhm.record_rows_eager(tiny.model, inputs, (1,), "mean", {}, ids)
        vhm.survey_heads(tiny.model, inputs, ids, located, regions)
        vhm.response_log_probabilities(tiny.model, inputs, ids, range(1, 3))
    finally:
        hook.remove()
    assert given == set(inputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recording_on_the_gpu_takes_no_memory_beyond_plain_generation():
    visualizer = vhm.AttentionVisualizer(str(DEMO / "model"))
    inputs = inputs_of(visualizer).to("cuda", dtype=visualizer.model.dtype)
    generation = {"max_new_tokens": 16, **GREEDY}
    peaks = []
    for run in (
        lambda: visualizer.model.generate(**inputs, **generation),
        lambda: vhm.record_rows(visualizer.model, inputs, (5,), "mean", generation, None),
    ):
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.05 * peaks[0]


def test_several_heads_are_their_mean_and_equal_eager_too(tiny):
    arguments = (tiny.model, inputs_of(tiny), (1,), (0, 2), {"max_new_tokens": 4, **GREEDY}, None)
    rows, eager = vhm.record_rows(*arguments), vhm.record_rows_eager(*arguments)
    np.testing.assert_allclose(rows.weights, eager.weights, atol=1e-5)
    single = [vhm.record_rows(*arguments[:3], head, {}, rows.response_ids).weights for head in (0, 2)]
    np.testing.assert_allclose(rows.weights, np.mean(single, axis=0), atol=1e-5)


@pytest.mark.parametrize(
    "heads, taken", [(-1, 3), ([-1], 3), ([1], 1), ((3, -1, 0), (3, 0)), ([2, 2], 2), ("auto", "auto")]
)
def test_heads_are_numbers_from_0_each_once(heads, taken):
    assert vhm.check_head(heads, 4) == taken


@pytest.mark.parametrize("heads", [[], [0, 4], ["mean", 1], [1, "auto"], [[1], 2]])
def test_several_heads_of_which_one_is_none_are_refused(heads):
    with pytest.raises(ValueError, match="cannot be taken"):
        vhm.check_head(heads, 4)


def test_the_survey_sees_what_the_recorder_records_of_each_head(tiny):
    """The agreement of the heads of every layer, from rows recorded head by head, on a coarse grid by hand."""
    inputs, ids, sizes = inputs_of(tiny), list(range(40, 110)), [(150, 110), (90, 130)]
    images = [picture(size) for size in sizes]
    located = vhm.locate_image_tokens(tiny.model, tiny.processor, inputs, images)
    regions = vhm.picture_regions(located, sizes)
    survey = vhm.survey_heads(tiny.model, inputs, ids, located, regions)
    heads = [vhm.record_rows(tiny.model, inputs, (0, 1, 2), head, {}, ids).weights for head in range(4)]
    at, region = np.concatenate([image.positions for image in located]), np.concatenate(regions)
    onto_NR = (region[:, None] == np.unique(region)).astype(np.float32)
    for layer in range(3):
        survey_THR = np.stack([weights[:, layer, at] @ onto_NR for weights in heads], axis=1)
        np.testing.assert_allclose(survey[layer], vhm.head_agreement(survey_THR), rtol=1e-3, atol=1e-9)


def test_a_cell_belongs_to_the_region_of_its_middle_and_each_picture_has_its_own():
    boxes = np.concatenate([vhm.grid_boxes(2, 2, 80, 40), [[np.nan] * 4]]).astype(np.float32)
    images = [vhm.ImageTokens(np.arange(5), boxes)] * 2
    first, second = vhm.picture_regions(images, [(80, 40)] * 2)
    side = vhm.SURVEY_REGIONS
    assert first.tolist() == [2 * side + 2, 2 * side + 6, 6 * side + 2, 6 * side + 6, -1]
    np.testing.assert_array_equal(second[:4], first[:4] + side**2)


def test_log_probabilities_of_a_part_are_those_of_a_plain_pass(tiny, monkeypatch):
    monkeypatch.setattr(vhm, "LOGITS_PER_BLOCK", 3)
    inputs, ids = inputs_of(tiny), [65, 66, 67, 68, 69, 70, 71, 72]
    P = inputs["input_ids"].shape[1]
    with torch.no_grad():
        logits = tiny.model(**vhm.append_response(inputs, ids)).logits[0].log_softmax(-1)
    expected = [float(logits[P - 1 + t, ids[t]]) for t in range(8)]
    for part in (range(0, 8), range(3, 8), range(7, 8), range(0, 1)):
        found = vhm.response_log_probabilities(tiny.model, inputs, ids, part)
        np.testing.assert_allclose(found, np.array(expected)[part], atol=1e-4)
