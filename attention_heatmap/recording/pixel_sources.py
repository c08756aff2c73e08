"""Which pixel of which picture each pixel value shows. The processor is asked, with ramps in the pictures' place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from attention_heatmap.log import one_line
from attention_heatmap.recording.prompt import process, prompt_text

_DARK, _LIGHT = 16.0, 240.0  # levels of 0..255 that a ramp runs between
_HALF_LEVEL = 0.5 / (_LIGHT - _DARK)
_PARTS_OF_TILES, _PARTS = 8, 32  # ramps in place of one, where levels are whole; in tiles a line is laid through them
_SMALLEST_SHARE = 0.1  # of picture in a pixel value; less, beside padding, is an overshoot of the resizing
_END = 0.501  # pixels of the picture from its ends, up to where enlarging repeats the first and the last one
_BENT = 2  # pixel values from a line, on average; more is no line, such as two pictures in a tile


class PixelSources(NamedTuple):
    """Arrays of the shape of `as_tiles`, about each pixel value."""

    shown: Any  # bool: whether part of a picture is there; without it the rest means nothing
    picture: Any  # int64: which picture it is
    x: Any  # in pixels of the picture, at the middle of what is shown
    y: Any


def pixel_sources(processor: Any, sizes: Sequence[tuple[int, int]], name: str) -> PixelSources:
    """Where the pixel values `name` of pictures of such sizes come from. Raises ValueError where they can't be read.

    Processors cut, scale and pad, all linear in the colours: two plain pictures tell how much of a value is picture,
    and a ramp divided by that which part of it. Some take whole levels only, as those that resize with Pillow: for them
    a ramp is the sum of steeper ones, each over a part of the picture.
    """
    import torch

    parts = 1

    def through(level: Any) -> Any:
        """Pixel values of grey pictures; level: from (number, width, height) to 0..1, as broadcasts to the picture."""
        pictures = []
        for number, (width, height) in enumerate(sizes):
            grey = torch.as_tensor(_DARK + (_LIGHT - _DARK) * level(number, width, height))
            grey = grey.float() if parts == 1 else grey.round().byte()
            pictures.append(grey.expand(3, height, width).contiguous())
        return as_tiles(processed(processor, pictures)[name]).float()

    try:
        fine = ((through(lambda *_: _HALF_LEVEL) - _DARK - 0.5).abs() < 0.01).any()
    except ValueError:
        fine = False
    parts = 1 if fine else _PARTS
    dark = through(lambda *_: 0.0)
    if not fine and dark.ndim > 2:
        parts = _PARTS_OF_TILES
    share = through(lambda *_: 1.0) - dark
    shown = share > _SMALLEST_SHARE * share.max()

    def told(level: Any) -> Any:
        ramps = (lambda *at, first=first: (level(*at) * parts - first).clamp(0, 1) for first in range(parts))
        return (sum(through(ramp) - dark for ramp in ramps) / parts / share).where(shown, 0)

    part = told(lambda number, *_: torch.tensor((number + 0.5) / len(sizes))) if len(sizes) > 1 else dark * 0
    picture = (part * len(sizes)).long().clamp(0, len(sizes) - 1)
    widths, heights = torch.tensor(sizes).float().T
    x = told(lambda _, width, height: (torch.arange(width) + 0.5) / width) * widths[picture]
    y = told(lambda _, width, height: (torch.arange(height)[:, None] + 0.5) / height) * heights[picture]
    if x.ndim > 2:
        x, y = _straightened(x, shown, widths[picture], -1), _straightened(y, shown, heights[picture], -2)
    return PixelSources(*(values.numpy() for values in (shown, picture, x, y)))


def _straightened(at: Any, shown: Any, length: Any, axis: int) -> Any:
    """Places in the picture along an axis of each tile, put on a line where they are nearly on one.

    Lanczos resizing lets a ramp ripple, and any kernel bends it towards the picture's ends.
    """
    import torch

    at, shown, length = (values.movedim(axis, -1) for values in (at, shown, length))
    inside = shown & (at > _END) & (at < length - _END)

    def mean(values: Any) -> Any:
        return (values * inside).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)

    place, mean_at = torch.arange(at.shape[-1]).expand_as(at), mean(at)
    place = place - mean(place)
    slope = mean(place * (at - mean_at)) / mean(place**2)
    line = mean_at + slope * place
    bent = mean((line - at).abs()) / slope.abs()
    return line.where(shown & (bent < _BENT), at).movedim(-1, axis)  # NaN where nothing is inside: stays


def processed(processor: Any, pictures: Sequence[Any]) -> Any:
    """The processor's output for pictures alone, their colours as they are."""
    text = prompt_text(processor, [{"type": "image"} for _ in pictures])
    as_it_is = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_first"}
    try:
        return process(processor, text, pictures, **as_it_is)
    except Exception as error:  # each processor has its own complaints
        name = type(processor).__name__
        raise ValueError(f"{name} takes no ramps in the pictures' place: {one_line(error)}") from error


def pixel_tensor(inputs: Any, name: str) -> Any:
    """One of the inputs. Raises ValueError where it is no tensor."""
    value = inputs.get(name)
    if not hasattr(value, "is_floating_point"):
        raise ValueError(f"{name} is no tensor of pixel values")
    return value


def as_tiles(values: Any) -> Any:
    """(tiles, height, width) of canvases, one colour alone, since all are alike; of others (patches, values)."""
    if values.ndim > 3 and values.shape[-3] == 3:
        return values[..., 0, :, :].reshape(-1, *values.shape[-2:])
    return values.reshape(-1, values.shape[-1])
