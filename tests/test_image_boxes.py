from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import picture
from transformers import Qwen2VLConfig

import visualizeHeatMap as vhm

IMAGE_ID = 7


def locate(grids, tokens, images):
    """locate_image_tokens on inputs made by hand: a text token, each picture's run, a text token between."""
    ids = [1]
    for count in tokens:
        ids += [IMAGE_ID] * count + [2]
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": torch.zeros(8, 4)}
    if grids is not None:
        inputs["image_grid_thw"] = torch.tensor(grids)
    model = SimpleNamespace(config=Qwen2VLConfig(image_token_id=IMAGE_ID))
    return vhm.locate_image_tokens(model, None, inputs, images)


@pytest.mark.parametrize("hot, cell", [(0, (0, 0)), (3, (0, 3)), (4, (1, 0)), (11, (2, 3))])
def test_cells_are_row_major(hot, cell):
    row, column = cell
    box = vhm.grid_boxes(3, 4, 400, 300)[hot]
    np.testing.assert_allclose(box, [column * 100, row * 100, column * 100 + 100, row * 100 + 100])


def test_boxes_cover_the_whole_picture_without_gap_or_overlap():
    boxes = vhm.grid_boxes(7, 5, 333, 211)
    assert boxes.dtype == np.float32
    assert boxes[:, 2].max() == 333 and boxes[:, 3].max() == 211 and boxes[:, :2].min() == 0
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert area.sum() == pytest.approx(333 * 211, rel=1e-5)


def test_the_grid_comes_from_the_processor_and_the_box_from_the_original_size():
    (tokens,) = locate([[1, 4, 6]], [6], [picture((90, 50))])
    np.testing.assert_array_equal(tokens.positions, np.arange(1, 7))
    np.testing.assert_allclose(tokens.boxes[4], [30, 25, 60, 50])  # second row, second column of 2 x 3


def test_each_of_two_pictures_has_its_own_grid():
    first, second = locate([[1, 4, 6], [1, 8, 4]], [6, 8], [picture((90, 50)), picture((20, 40))])
    assert first.positions.tolist() == list(range(1, 7)) and second.positions.tolist() == list(range(8, 16))
    np.testing.assert_allclose(second.boxes[-1], [10, 30, 20, 40])


@pytest.mark.parametrize(
    "grids, tokens, images, message",
    [
        (None, [6], 1, "it reports no grid, and pixel_values are no tiles"),
        ([[1, 4, 6]], [5], 1, "the 1 pictures would have"),
        ([[1, 4, 6], [1, 4, 6]], [6, 6], 1, "do not make so many tokens"),
        ([[2, 4, 6]], [12], 1, "expected one frame a picture"),
        ([[1, 4, 6]], [0], 1, "the prompt holds none; check the chat template"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_with_type_and_counts(grids, tokens, images, message):
    with pytest.raises(ValueError, match=message) as error:
        locate(grids, tokens, [picture()] * images)
    assert "'qwen2_vl'" in str(error.value) and f"{sum(tokens)} image tokens" in str(error.value)


def test_a_model_without_an_image_token_is_refused():
    config = SimpleNamespace(model_type="text_only", vision_config=None)
    with pytest.raises(ValueError, match="'text_only' names no image_token_id"):
        vhm.image_token_id(config)
