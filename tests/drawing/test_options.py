import numpy as np
import pytest

from attention_heatmap.drawing.options import DrawingOptions, drawing_options


def test_by_default_each_frame_has_its_own_scale_and_the_picture_is_muted():
    options = DrawingOptions()
    assert (options.scale, options.picture, options.power, options.figure, options.format) == (
        "frame",
        "muted",
        1,
        "frame",
        "mp4",
    )


@pytest.mark.parametrize(
    "given, message",
    [
        ({"scale": "linear"}, "expected 'frame' or 'video' or 'log'"),
        ({"picture": "pink"}, "expected 'muted' or 'colour' or 'grey'"),
        ({"power": 0}, "power is 0; expected a number above 0"),
        ({"frames": 0}, "tokens are numbered from 1"),
        ({"frames": "x"}, "expected the numbers of tokens"),
        ({"frames": (1.5,)}, "expected the numbers of tokens"),
        ({"format": "bmp"}, "format is 'bmp'"),
        ({"colormap": "blues?"}, "colormap is 'blues\\?'"),
        ({"frame_size": (641, 360)}, "both must be even"),
        ({"fps": 0}, "fps is 0"),
        ({"scael": "frame"}, "did you mean scale"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        drawing_options(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given, numbers",
    [(52, (52,)), ("50-52", (50, 51, 52)), ((1, "3-4", -1), (1, 3, 4, -1)), ("all", ("all",)), (np.int64(3), (3,))],
)
def test_frames_are_numbers_ranges_or_all(given, numbers):
    assert DrawingOptions(frames=given).frames == numbers


def test_the_clear_view_sets_what_is_left_at_its_default():
    assert DrawingOptions(view="clear").map == ("median", True, 0)
    assert DrawingOptions(view="clear", baseline="neutral").baseline == "neutral"
