"""Which part of a picture each pixel value shows, and which image token it feeds.

The processor is asked for the first, with ramps in the pictures' place, the model for the second, by gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from attention_heatmap.log import one_line
from attention_heatmap.recording import torch
from attention_heatmap.recording.attention import decoder_layers, vision_attention_off
from attention_heatmap.recording.prompt import input_device, process, prompt_text

END = 0.501  # pixels of the picture from its ends, up to where enlarging repeats the first and the last one
_DARK, _LIGHT = 16.0, 240.0  # levels of 0..255 that a ramp runs between
_HALF_LEVEL = 0.5 / (_LIGHT - _DARK)
_PARTS_OF_TILES, _PARTS = 8, 32  # ramps in place of one, where levels are whole; in tiles a line is laid through them
_SMALLEST_SHARE = 0.1  # of picture in a pixel value; less, beside padding, is an overshoot of the resizing
_BENT = 2  # pixel values from a line, on average; more is no line, such as two pictures in a tile
_LARGE_DIGITS = 64  # base of the codes of one backward pass in float32: far enough apart for its rounding
_ROUNDING = 0.02  # of a ratio of gradients from the number that it stands for
_WRONG_PART = 0.02  # of the pixel values may name no token, by rounding


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
    parts, text = 1, prompt_text(processor, [{"type": "image"} for _ in sizes])
    as_it_is = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_first"}

    def through(level: Any) -> Any:
        """Pixel values of grey pictures; level: from (number, width, height) to 0..1, as broadcasts to the picture."""
        pictures = []
        for number, (width, height) in enumerate(sizes):
            grey = torch.as_tensor(_DARK + (_LIGHT - _DARK) * level(number, width, height))
            grey = grey.float() if parts == 1 else grey.round().byte()
            pictures.append(grey.expand(3, height, width).contiguous())
        try:
            return _as_tiles(process(processor, text, pictures, **as_it_is)[name]).float()
        except Exception as error:  # each processor has its own complaints
            told = f"{type(processor).__name__} takes no ramps in the pictures' place: {one_line(error)}"
            raise ValueError(told) from error

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
    at, shown, length = (values.movedim(axis, -1) for values in (at, shown, length))
    inside = shown & (at > END) & (at < length - END)

    def mean(values: Any) -> Any:
        return (values * inside).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)

    place, mean_at = torch.arange(at.shape[-1]).expand_as(at), mean(at)
    place = place - mean(place)
    slope = mean(place * (at - mean_at)) / mean(place**2)
    line = mean_at + slope * place
    bent = mean((line - at).abs()) / slope.abs()
    return line.where(shown & (bent < _BENT), at).movedim(-1, axis)  # NaN where nothing is inside: stays


def _as_tiles(values: Any) -> Any:
    """(tiles, height, width) of canvases, one colour alone, since all are alike; of others (patches, values)."""
    if values.ndim > 3 and values.shape[-3] == 3:
        return values[..., 0, :, :].reshape(-1, *values.shape[-2:])
    return values.reshape(-1, values.shape[-1])


def token_of_each_value(model: Any, inputs: Any, name: str, token_id: int) -> tuple[Any, int]:
    """The image token that each of the pixel values `name` feeds, as tiles, -1 for none; and how many tokens there are.

    Raises ValueError where a value feeds several, as in a query-former, or the model can't be asked. The model is
    left as it was; of it only the patch embedding is computed, and what follows the encoder.
    """
    with torch.inference_mode(False), torch.enable_grad():
        given = {key: value.clone().to(input_device(model)) for key, value in inputs.items() if torch.is_tensor(value)}
        given[name] = given[name].float()
        given |= {key: value.to(model.dtype) for key, value in given.items() if value.is_floating_point()}
        noise = torch.empty_like(given[name]).normal_(generator=torch.Generator(given[name].device).manual_seed(0))
        pixels = (noise * (given[name] != 0)).requires_grad_()  # an empty tile stays one: models leave those out
        tokens_ND = _image_embeddings(model, {**inputs, **given, name: pixels}, token_id)
        if not tokens_ND.requires_grad:
            raise ValueError("no gradient leads from the image tokens to the pixels")
        project_ND = torch.empty_like(tokens_ND).normal_(generator=torch.Generator(tokens_ND.device).manual_seed(1))

        def gradient(code_N: Any) -> Any:
            """The gradient of the tokens' random projections, each times its code."""
            seeds_ND = project_ND * code_N.to(tokens_ND)[:, None]
            how = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            return _as_tiles(torch.autograd.grad(tokens_ND, pixels, seeds_ND, **how)[0])

        number_N = torch.arange(len(tokens_ND), device=pixels.device)
        # Large digits take few passes; small ones are exact also where kernels are coarser, by half precision or TF32.
        exact = tokens_ND.dtype == pixels.dtype == torch.float32
        for base in (_LARGE_DIGITS, 2) if exact else (2,):
            owner, fed = _by_digits(gradient, number_N, base)
            if not fed.any():
                raise ValueError("no image token hangs on pixels of its own, as where they come from codes or queries")
            if (fed & (owner < 0)).sum() <= _WRONG_PART * fed.sum():
                return owner.cpu().numpy(), len(tokens_ND)
        raise ValueError("pixels feed several image tokens each: queries, convolutions or pools overlap")


def _by_digits(gradient: Callable, number_N: Any, base: int) -> tuple[Any, Any]:
    """The token of each pixel value and whether it feeds any, by its number's digits, each a ratio of gradients."""
    whole = gradient(number_N * 0 + 1)
    fed = sure = whole.abs() > 1e-6 * whole.abs().max()  # what is lost against the strongest value is rounding
    owner, worth = whole.long() * 0, 1
    while worth < len(number_N):
        ratio = gradient(number_N // worth % base) / whole
        digit = ratio.nan_to_num().round()
        rounding = _ROUNDING if base > 2 else 4 * torch.finfo(ratio.dtype).eps * digit  # a digit of 0 gives just that
        sure = sure & ((ratio - digit).abs() <= rounding)
        owner, worth = owner + digit.long() * worth, worth * base
    sure &= (owner >= 0) & (owner < len(number_N))
    if base > 2:  # what feeds several tokens may come near whole numbers by chance, but hardly near a broken one, too
        check_N = 1 + (number_N * 0.618) % 1
        sure &= (gradient(check_N) / whole - check_N[owner.where(sure, 0)]).abs() < _ROUNDING
    return owner.where(sure, -1), fed


class _EmbeddingsFound(Exception):
    """Leaves a model's forward pass as soon as its embeddings are there."""


def _image_embeddings(model: Any, inputs: dict, token_id: int) -> Any:
    """(N, D) what the language model gets of the pictures, one row an image token, with a graph to the pixels."""
    layers, found = decoder_layers(model), {}
    if not layers:
        raise ValueError(f"the layers of {type(model).__name__} cannot be found")

    def keep(_: Any, args: tuple, kwargs: dict) -> None:
        found.update(kwargs, hidden_states=args[0] if args else kwargs.get("hidden_states"))
        raise _EmbeddingsFound

    with ExitStack() as stack:
        stack.callback(layers[0].register_forward_pre_hook(keep, with_kwargs=True).remove)
        stack.enter_context(vision_attention_off(model))
        stack.enter_context(_shortcuts(model))
        try:
            model(**inputs, use_cache=False)
        except _EmbeddingsFound:
            pass
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each model has its own complaints
            raise ValueError(f"the model cannot be asked: {one_line(error)}") from error
    crossing, hidden = found.get("cross_attention_states"), found.get("hidden_states")
    if crossing is not None:  # of the tiles of each picture, those that are no padding
        tiles = inputs["aspect_ratio_mask"].flatten().bool()
        return crossing.reshape(len(tiles), -1, crossing.shape[-1])[tiles.to(crossing.device)].flatten(0, 1)
    ids_P = inputs["input_ids"][0]
    if getattr(hidden, "ndim", 0) == 4 and hidden.shape[1:3] == (1, len(ids_P)):  # gemma3n makes several of one
        hidden = hidden[0]
    if not torch.is_tensor(hidden) or tuple(hidden.shape[:2]) != (1, len(ids_P)):
        raise ValueError("its answering layers do not hold the prompt")
    return hidden[0, ids_P.to(hidden.device) == token_id].flatten(1)


@contextmanager
def _shortcuts(model: Any) -> Iterator[None]:
    """Within this block encoder layers pass on what they get: without attention each patch stays alone in any case.

    Not so layers with a convolution, or that give another shape. A convolution of whole patches becomes a product of
    matrices, whose gradient takes a fiftieth of the time.
    """
    text, formats = {id(module) for module in decoder_layers(model).modules()}, {}

    def skipped(layer: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if type(layer) not in formats:  # asked once, so that what comes back looks as it should
            with torch.no_grad():
                made = forward(*args, **kwargs)
            first, rest = (made[0], made[1:]) if isinstance(made, tuple) else (made, None)
            formats[type(layer)] = getattr(first, "shape", 0) == getattr(given, "shape", None), rest
        same, rest = formats[type(layer)]
        if not same:
            return forward(*args, **kwargs)
        return given if rest is None else (given, *rest)

    def multiplied(conv: Any, forward: Any, patches: Any) -> Any:
        if tuple(patches.shape[2:]) != conv.kernel_size or conv.groups > 1 or any(map(bool, conv.padding)):
            return forward(patches)
        made = torch.nn.functional.linear(patches.flatten(1), conv.weight.flatten(1), conv.bias)
        return made.view(*made.shape, *[1] * len(conv.kernel_size))

    convs = torch.nn.Conv2d, torch.nn.Conv3d
    ways = [(m, multiplied) for m in model.modules() if isinstance(m, convs) and "forward" not in vars(m)]
    for layers in (m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and id(m) not in text):
        for layer in layers:
            attends = any("attention" in type(part).__name__.lower() for part in layer.modules())
            if attends and not any(isinstance(part, (*convs, torch.nn.Conv1d)) for part in layer.modules()):
                ways.append((layer, skipped))
    with ExitStack() as stack:
        for module, way in ways:
            own = vars(module).get("forward")  # accelerate's, if any
            stack.callback(setattr, module, "forward", own) if own else stack.callback(delattr, module, "forward")
            module.forward = partial(way, module, module.forward)
        yield
