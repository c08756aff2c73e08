"""Two records of the same tokens: common cells, distances, shares, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records import make_record

from attention_heatmap.compare import bootstrap, common_cells, compare, jensen_shannon
from attention_heatmap.record import ImageTokens, picture_file

SIZE = (400, 300)


def boxes_of(rows, columns, size=SIZE):
    x, y = np.linspace(0, size[0], columns + 1), np.linspace(0, size[1], rows + 1)
    found = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(rows) for c in range(columns)]
    return np.array(found, np.float32)


def record_of(grid, seed=0, response=("<think>", " lamp", "</think>", "<answer>", "left"), colour="white"):
    record = make_record(["Where", " is", " it"], list(response), grids=[grid], size=SIZE, seed=seed)
    image = ImageTokens(record.images[0].positions, boxes_of(*grid))
    return replace(record, images=(image,), pictures=(picture_file(Image.new("RGB", SIZE, colour)),))


def same_ids(record, other):
    """The record with the other's ids of all that is no image token."""
    ids = record.token_ids.copy()
    ids[np.setdiff1d(np.arange(len(ids)), record.image_positions)] = np.delete(other.token_ids, other.image_positions)
    return replace(record, token_ids=ids)


def test_a_record_compared_with_itself_is_at_no_distance_and_keeps_its_rows():
    record = record_of((3, 4))
    comparison = compare(record, record, 1)
    assert comparison.steps == 5 and comparison.distances.max() == 0
    one, other = map(comparison.common_record, (0, 1))
    np.testing.assert_array_equal(one.weights, record.weights[:, 1:2])
    np.testing.assert_array_equal(one.token_ids, other.token_ids)
    assert one.tokens[one.prompt_length :] == record.tokens[record.prompt_length :]


@settings(deadline=None, max_examples=25)
@given(*(st.integers(1, 7) for _ in range(4)))
def test_the_common_cells_keep_all_weight_of_either_grid_and_cover_the_picture_once(a, b, c, d):
    boxes, parts = common_cells(boxes_of(a, b), boxes_of(c, d))
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert area.sum() == pytest.approx(SIZE[0] * SIZE[1], rel=1e-3)
    for (at, part), count in zip(parts, (a * b, c * d)):
        own = np.random.default_rng(count).random((3, count)).astype(np.float32)
        np.testing.assert_allclose((own[:, at] * part).sum(1), own.sum(1), rtol=1e-4)


def test_a_coarse_map_and_the_fine_map_of_the_same_density_are_at_no_distance():
    fine = record_of((4, 4))
    coarse = same_ids(record_of((2, 2)), fine)
    T = fine.response_length
    weights = np.zeros_like(coarse.weights)
    quarter = np.random.default_rng(0).random((T, 4)).astype(np.float32)
    weights[:, :, coarse.image_positions] = quarter[:, None]
    spread = np.zeros_like(fine.weights)
    owner = [(r // 2) * 2 + c // 2 for r in range(4) for c in range(4)]
    spread[:, :, fine.image_positions] = quarter[:, None, owner] / 4
    comparison = compare(replace(fine, weights=spread), replace(coarse, weights=weights))
    assert comparison.distances.max() < 1e-3
    one, other = map(comparison.common_record, (0, 1))
    np.testing.assert_array_equal(one.images[0].boxes, other.images[0].boxes)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_the_distance_is_a_metric_of_what_is_looked_at_and_not_of_how_much(cells, seed):
    rng = np.random.default_rng(seed)
    a, b, c = rng.random((3, 4, cells + 1))
    ab, ba, bc, ac = (jensen_shannon(x, y) for x, y in ((a, b), (b, a), (b, c), (a, c)))
    np.testing.assert_allclose(ab, ba, atol=1e-12)
    assert (ab >= 0).all() and (ab <= 1).all() and (ac <= ab + bc + 1e-9).all()
    np.testing.assert_allclose(jensen_shannon(a, 7 * a), 0, atol=1e-6)


def test_maps_that_share_no_cell_are_at_distance_1_and_two_without_weight_at_0():
    np.testing.assert_allclose(jensen_shannon(np.array([[1, 0], [0, 0], [0, 0]]), np.array([[0, 3], [1, 0], [0, 0]])),
                               [1, 1, 0])  # fmt: skip


def test_two_answers_are_compared_up_to_the_step_at_which_they_part():
    a = record_of((3, 4))
    b = record_of((3, 4), response=("<think>", " lamp", " and", " chair"))
    b = replace(b, token_ids=np.concatenate([a.token_ids[: a.prompt_length + 2], [900, 901]]))
    comparison = compare(a, b)
    assert comparison.steps == 3 and len(comparison.distances) == 3
    assert [row["phase"] for row in comparison.phases()] == ["think", "response"]


def test_the_tokens_that_changed_most_come_first():
    a = record_of((3, 4))
    weights = a.weights.copy()
    weights[3, :, a.image_positions] = 0
    weights[3, :, a.image_positions[0]] = 0.5
    changed = compare(a, replace(a, weights=weights)).most_changed(2)
    assert changed[0][:2] == (3, "<answer>") and changed[0][2] > 0.1 and changed[1][2] == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: replace(r, token_ids=r.token_ids + 1), "different tokenizers"),
        (lambda r: replace(r, tokens=tuple(t.replace("Where", "When") for t in r.tokens),
                           token_ids=np.where(np.arange(len(r.tokens)) == 13, 77, r.token_ids)), "other prompts"),
        (lambda r: replace(r, images=r.images * 2, pictures=r.pictures * 2), "1 and 2 pictures"),
        (lambda r: replace(r, pictures=(picture_file(Image.new("RGB", SIZE, "black")),)), "picture 1 is not the same"),
    ],
)  # fmt: skip
def test_records_that_do_not_belong_together_are_refused_by_what_does_not_match(change, message):
    record = record_of((3, 4))
    with pytest.raises(ValueError, match=message):
        compare(record, change(record))
    with pytest.raises(ValueError, match="layer 5 was not recorded"):
        compare(record, record, 5)


def test_the_interval_of_a_mean_holds_it_and_is_a_point_where_all_samples_agree():
    mean, low, high = bootstrap([0.1, 0.2, 0.3, 0.2])
    assert low < 0.2 < high and mean == pytest.approx(0.2)
    assert np.isnan(bootstrap([])[0])
    assert bootstrap([0.1] * 8) == pytest.approx((0.1, 0.1, 0.1))
