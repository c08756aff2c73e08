"""Laws of the demo: its dataset, its generator, the shipped checkpoint and the script that trained it."""

import json
import random
from pathlib import Path

import make_data
import numpy as np
import pytest
import torch
import train_demo_model as demo
from PIL import Image

from attention_heatmap.recording.prompt import DEFAULT_PROMPT_TEMPLATE
from attention_heatmap.showing import DEFAULT_START_PHRASE

DEMO = Path(make_data.__file__).parent
DATASET = json.loads((DEMO / "dataset.json").read_text(encoding="utf-8"))
KINDS = [(task, language) for task in make_data.TASKS for language in make_data.LANGUAGES]
SIZES = [(task, size) for task in make_data.TASKS for size in make_data.SIZES[task]]
TINY = dict(demo.SETTINGS["tiny"], batch=2)


@pytest.fixture(scope="module")
def shipped():
    return demo.load(DEMO / "model", dtype=torch.float32)


@pytest.fixture(scope="module")
def random_model(shipped):
    """A tiny model with random weights everywhere: zero residual outputs would hide a wrong block."""
    torch.manual_seed(0)
    model = demo.build_model(TINY, shipped[1].tokenizer).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def pictures_of(sample):
    return [Image.open(DEMO / "images" / name) for name in sample["image"]]


def rgb_of(name):
    """The colour that a landmark's name says, in either language."""
    for english, (chinese, rgb) in make_data.COLOURS.items():
        if name.startswith((f"{english} ", chinese)):
            return np.array(rgb)
    raise ValueError(f"no colour in the name {name!r}")


def test_each_sample_has_the_fields_and_as_many_pictures_as_boxes():
    assert len({sample["id"] for sample in DATASET}) == len(DATASET) == 64
    for sample in DATASET:
        assert set(sample) == {"id", "image", "problem", "solution", "answer", "boxes"}
        assert len(sample["image"]) == len(sample["boxes"]) in (1, 2)
        assert all((DEMO / "images" / name).is_file() for name in sample["image"])


def test_the_first_sample_is_an_english_route_over_four_landmarks():
    assert DATASET[0]["id"].startswith("route_en") and len(DATASET[0]["image"]) == 1
    assert DATASET[0]["answer"].count("(") == 4


def test_a_solution_thinks_then_answers_and_both_name_the_landmarks():
    for sample in DATASET:
        thought, answer = sample["solution"].split("<answer>")
        assert thought.startswith("<think> ") and thought.endswith(" </think>")
        assert answer == f" {sample['answer']} </answer>"
        named = [name for name in sample["boxes"][0] if name in answer]
        assert named and all(name in thought for name in named)


def test_english_problems_hold_the_start_phrase_and_chinese_ones_theirs():
    for sample in DATASET:
        phrase = "根据以下要求" if "_zh_" in sample["id"] else DEFAULT_START_PHRASE
        assert sample["problem"].count(phrase) == 1


@pytest.mark.parametrize("sample", DATASET, ids=lambda s: s["id"])
def test_a_box_frames_pixels_of_the_colour_that_its_name_says(sample):
    for picture, boxes in zip(pictures_of(sample), sample["boxes"]):
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        for name, (left, top, right, bottom) in boxes.items():
            assert 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height
            x0, y0, x1, y1 = int(left) - 4, int(top) - 4, int(right) + 5, int(bottom) + 5
            region = pixels[max(y0, 0) : y1, max(x0, 0) : x1]
            y, x = np.nonzero(np.abs(region - rgb_of(name)).max(-1) <= 26)
            assert len(x) > 0.25 * (right - left) * (bottom - top)
            found = x.min() + max(x0, 0), y.min() + max(y0, 0), x.max() + max(x0, 0), y.max() + max(y0, 0)
            assert np.abs(np.array(found) - (left, top, right, bottom)).max() < 8  # a star's tips are thin


def test_coordinates_are_the_centres_of_the_boxes_in_thousandths():
    for sample in (s for s in DATASET if s["id"].startswith("route")):
        size = np.array(pictures_of(sample)[0].size)
        for name, box in sample["boxes"][0].items():
            if name in sample["answer"]:
                x, y = 1000 * (np.array(box[:2]) + box[2:]) / 2 / size
                said = sample["answer"].split(name)[1].split(")")[0].strip(" (").split(", ")
                assert abs(int(said[0]) - x) < 6 and abs(int(said[1]) - y) < 6


def test_no_side_of_a_picture_is_a_multiple_of_a_cell():
    assert all(side % demo.CELL for _, size in SIZES for side in size)


@pytest.mark.parametrize("task, language", KINDS)
def test_the_same_seed_gives_the_same_sample(task, language):
    (first, sample), (again, same), (_, other) = (make_data.make_sample(s, task, language) for s in (5, 5, 6))
    assert sample == same and sample["solution"] != other["solution"]
    assert all(np.array_equal(a, b) for a, b in zip(first, again))


def test_the_generator_still_makes_the_shipped_dataset(tmp_path):
    kinds = [(task, language) for task in make_data.TASKS for language in make_data.LANGUAGES]
    made = make_data.write_dataset(tmp_path, dict(zip(kinds, (1, 0, 0, 0))), make_data.DATASET_SEED)
    assert made == DATASET[:1]
    drawn, kept = (
        np.asarray(Image.open(folder / "images" / made[0]["image"][0])).astype(int) for folder in (tmp_path, DEMO)
    )
    assert np.abs(drawn - kept).max() <= 1


def test_training_draws_only_seeds_that_measuring_and_the_dataset_do_not(monkeypatch, shipped):
    drawn = []
    original = demo.make_scene
    monkeypatch.setattr(demo, "make_scene", lambda seed, *rest: drawn.append(seed) or original(seed, *rest))
    batches = demo.Batches(shipped[1].tokenizer, 3, 512)
    batches[0], batches[7]
    assert drawn == [make_data.TRAINING_SEEDS + i for i in (0, 1, 2, 21, 22, 23)]
    last = max(int(sample["id"].split("_")[2]) for sample in DATASET)
    assert last < demo.HELD_OUT_SEEDS < make_data.TRAINING_SEEDS - 10**6


def test_no_answer_of_the_dataset_occurs_among_training_answers():
    rng = random.Random(0)
    seeds = [make_data.TRAINING_SEEDS + rng.randrange(3_000_000) for _ in range(3000)]
    trained = {make_data.scene_text(make_data.make_scene(seed))[2] for seed in seeds}
    assert len(trained) > 2990 and not trained & {sample["answer"] for sample in DATASET}


def test_a_misled_thought_leaves_the_answer_right_and_gets_no_loss(shipped):
    texts = demo.Texts(shipped[1].tokenizer)
    scene = make_data.make_scene(11, "route", "en")
    assert make_data.scene_text(scene, misled=True)[1] != make_data.scene_text(scene)[1]
    labels = [i for i in texts.sample(scene, misled=True)[1] if i != demo.IGNORED]
    learnt = shipped[1].tokenizer.decode(labels)
    assert make_data.scene_text(scene)[2] in learnt and "think" not in learnt


def test_the_prompt_template_is_the_tools():
    assert make_data.DEFAULT_PROMPT_TEMPLATE == DEFAULT_PROMPT_TEMPLATE


def test_the_model_folder_is_at_most_15_megabytes():
    assert sum(file.stat().st_size for file in (DEMO / "model").iterdir()) <= 15e6


def test_the_early_model_differs_from_the_trained_one_in_its_weights_alone(shipped):
    for file in (DEMO / "model").iterdir():
        same = (DEMO / "early_model" / file.name).read_bytes() == file.read_bytes()
        assert same == (file.suffix != ".safetensors"), file.name
    early, _ = demo.load(DEMO / "early_model")
    assert early.dtype == torch.bfloat16
    assert {k: v.shape for k, v in early.state_dict().items()} == {
        k: v.shape for k, v in shipped[0].state_dict().items()
    }


def test_the_checkpoint_is_a_qwen2_vl_that_decodes_greedily(shipped):
    model, processor = shipped
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration" and type(processor).__name__ == "Qwen2VLProcessor"
    assert model.config.get_text_config().num_hidden_layers >= 6
    settings, ids = model.generation_config, processor.tokenizer.convert_tokens_to_ids
    assert not settings.do_sample and ids("<|im_end|>") in settings.eos_token_id
    assert settings.pad_token_id == ids("<|endoftext|>")
    assert model.config.image_token_id == ids("<|image_pad|>") == processor.image_token_id


def test_the_chat_template_is_qwen2_vls(shipped):
    content = [{"type": "image"}, {"type": "text", "text": "Hi."}]
    text = shipped[1].apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>Hi.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "text", ["A naïve café, 12.5 km²\n\n\tx", "请看地图上的彩色路线，龘靐齉", "🗺️ → 👩‍🚀", "\x00\x7f ￿"]
)
def test_any_text_survives_the_tokenizer(shipped, text):
    tokenizer = shipped[1].tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_tokens_and_some_characters_are_several(shipped):
    pieces = demo.token_bytes(shipped[1].tokenizer, shipped[1].tokenizer.encode("(340, 620)"))
    assert [p for p in pieces if p.isdigit()] == [b"3", b"4", b"0", b"6", b"2", b"0"]
    texts = [sample["solution"] for sample in DATASET if "_zh_" in sample["id"]]
    pieces = [p for t in texts for p in demo.token_bytes(shipped[1].tokenizer, shipped[1].tokenizer.encode(t))]
    assert any("\ufffd" in p.decode(errors="replace") for p in pieces)


@pytest.mark.parametrize("task, size", SIZES)
def test_pixels_and_ids_of_training_are_the_processors(shipped, task, size):
    scene = make_data.make_scene(7, task, "en", size)
    pictures, problem = make_data.draw_scene(scene), make_data.scene_text(scene)[0]
    inputs = demo.prepare(shipped[1], [pictures], [problem])
    stacked = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)
    difference = (demo.pixel_values(stacked).flatten(0, 1) - inputs["pixel_values"]).abs()
    assert difference.max() < 0.04 and difference.mean() < 1e-3  # 0.04: two of 255 levels
    rows, columns = demo.grid_of(size)
    prompt = demo.Texts(shipped[1].tokenizer).prompt(problem, [rows * columns] * len(pictures))
    assert prompt == inputs["input_ids"][0].tolist()


@pytest.mark.parametrize("task, size", SIZES[::3])
def test_the_batched_forward_pass_of_training_is_the_plain_one(shipped, random_model, task, size):
    scenes = [make_data.make_scene(seed, task, "zh", size) for seed in (3, 4)]
    texts, grid = demo.Texts(shipped[1].tokenizer), demo.grid_of(size)
    pictures = [make_data.draw_scene(scene) for scene in scenes]
    count = len(pictures[0])
    inputs = [demo.prepare(shipped[1], [p], [make_data.scene_text(s)[0]]) for p, s in zip(pictures, scenes)]
    length = max(i["input_ids"].shape[1] for i in inputs) + 5
    ids = torch.full((2, length), texts.pad)
    for row, one in zip(ids, inputs):
        row[: one["input_ids"].shape[1]] = one["input_ids"][0]
    values = torch.cat([i["pixel_values"].view(count, grid[0] * grid[1] * 4, -1) for i in inputs])
    slots = torch.tensor(texts.image_slots([grid[0] * grid[1]] * count))
    positions = demo.rope_positions(texts, grid, count, length)
    rotary = demo.vision_rotary(random_model.model.visual, grid, "cpu")
    with torch.no_grad():
        batched = random_model.lm_head(demo.hidden_states(random_model, ids, values, slots, positions, rotary))
        for row, one in zip(batched, inputs):
            plain = random_model(**one).logits[0]
            torch.testing.assert_close(row[: len(plain)], plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task, language", KINDS)
def test_the_checkpoint_answers_the_dataset(shipped, task, language):
    samples = [s for s in DATASET if s["id"].startswith(f"{task}_{language}")][:3]
    measured = demo.measure_batch(*shipped, samples, [pictures_of(s) for s in samples])
    assert sum(score["names"] for score, _, _ in measured) >= 2
    errors = [error for score, _, _ in measured for error in score["errors"]]
    assert np.mean(errors) < 10  # of 1000
    found = np.concatenate([found for _, found, _ in measured])  # mentions, layers, heads + 1, (hit, share)
    assert found[:, 7, -1, 0].mean() > 0.9 and found[:, 7, -1, 1].mean() > 0.5


def test_wrong_order_a_missing_landmark_and_a_wrong_number_are_seen():
    sample = DATASET[0]
    first, second, *rest = sample["answer"].replace("), ", ");").split(";")

    def score(parts):
        return demo.score_answer(f"<think> x </think><answer> {', '.join(parts)} </answer>", sample)

    assert score([first, second, *rest]) == {"names": True, "exact": True, "errors": [0] * 8}
    assert not score([second, first, *rest])["names"] and not score([second, *rest])["names"]
    wrong = score([first.replace(" (", " (1"), second, *rest])
    assert wrong["names"] and not wrong["exact"] and max(wrong["errors"]) >= 1000


def test_overlaps_add_up_to_the_area_of_the_box():
    boxes, size = [{"red circle": [30.0, 40.0, 90.0, 80.0]}, {}], (340, 260)
    overlap = demo.cell_overlap("red circle", boxes, [size, size])
    rows, columns = demo.grid_of(size)
    assert overlap.shape == (2 * rows * columns,) and not overlap[rows * columns :].any()
    assert overlap.sum() * (340 / columns) * (260 / rows) == pytest.approx(60 * 40)


@pytest.mark.parametrize("weights, hit, share", [((0.6, 0.2, 0.2), 1, 0.7), ((0.2, 0.2, 0.6), 0, 0.3)])
def test_a_hit_needs_the_hottest_cell_and_a_share_counts_parts_of_cells(weights, hit, share):
    result = demo.pointing_of(np.array([weights]), np.array([1.0, 0.5, 0.0]))
    np.testing.assert_allclose(result, [[hit, share]])


def test_a_mention_begins_at_the_token_that_holds_its_first_byte(shipped):
    tokenizer = shipped[1].tokenizer
    ids = tokenizer.encode("所以移动的是红色圆形。 So the red circle")
    found = demo.mentions_of(tokenizer, ids, {"红色圆形", "red circle"})
    pieces = demo.token_bytes(tokenizer, ids)
    assert [name for _, name in found] == ["红色圆形", "red circle"]
    assert "红".encode()[:1] in pieces[found[0][0]] and pieces[found[1][0]] == b" red"
    assert b"".join(pieces[: found[0][0]]).decode() == "所以移动的是"


@pytest.mark.parametrize("progress, factor", [(0.0, 0.0), (demo.WARM_UP, 0.997), (0.5, 0.5), (1.0, 0.0), (1.2, 0.0)])
def test_the_learning_rate_warms_up_and_ends_at_zero(progress, factor):
    assert demo.learning_rate(2.0, progress) == pytest.approx(2 * factor, abs=0.01)


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    whole, _ = demo.train(TINY, tmp_path / "whole.pt", steps=4)
    demo.train(TINY, tmp_path / "parts.pt", steps=4, stop_at=2)
    assert torch.load(tmp_path / "parts.pt", weights_only=True)["step"] == 2
    parts, _ = demo.train(TINY, tmp_path / "parts.pt", steps=4)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def test_tiny_training_lowers_the_loss_and_exports_a_loadable_checkpoint(tmp_path):
    model, tokenizer = demo.train(TINY, tmp_path / "tiny.pt", steps=12)
    fresh = demo.build_model(TINY, tokenizer)
    texts = demo.Texts(tokenizer)
    batch = demo.Batches(tokenizer, 4, 512)[10**6]
    losses = [demo.Stepper(m, texts, 512, torch.device("cpu")).loss(batch).item() for m in (fresh, model)]
    assert losses[1] < losses[0] - 0.5
    demo.export(model, tokenizer, tmp_path / "model")
    loaded, processor = demo.load(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16 and len(processor.tokenizer) == len(tokenizer)
