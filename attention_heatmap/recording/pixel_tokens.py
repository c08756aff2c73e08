"""Which image token each pixel value feeds. The model is asked, by gradients, with the attention of its tower off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from attention_heatmap.log import one_line
from attention_heatmap.recording.attention import decoder_layers, vision_attention_off
from attention_heatmap.recording.pixel_sources import as_tiles
from attention_heatmap.recording.prompt import input_device

_DIGIT = 64  # codes of one backward pass in float32: far enough apart for its rounding
_ROUNDING = 0.02  # of a ratio of gradients from the number that it stands for
_WRONG_PART = 0.02  # of the pixel values may name no token, by rounding


def token_of_each_value(model: Any, inputs: Any, name: str, token_id: int) -> tuple[Any, int]:
    """The image token that each of the pixel values `name` feeds, as tiles, -1 for none; and how many tokens there are.

    Raises ValueError where a value feeds several, as in a query-former, or the model can't be asked. The model is
    left as it was; only what lies between the pixels and the first layer of the language model is computed, of the
    encoder's layers none.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        device = input_device(model)
        inputs = {
            key: value.detach().clone().to(device) if torch.is_tensor(value) else value for key, value in inputs.items()
        }
        inputs |= {k: v.to(model.dtype) for k, v in inputs.items() if torch.is_tensor(v) and v.is_floating_point()}
        noise = torch.randn(inputs[name].shape, generator=torch.Generator().manual_seed(0)).to(inputs[name])
        # An empty tile stays one: models leave those out.
        inputs[name] = pixels = (noise * (inputs[name] != 0)).requires_grad_()
        tokens_ND = _image_embeddings(model, inputs, token_id)
        if not tokens_ND.requires_grad:
            raise ValueError("no gradient leads from the image tokens to the pixels")
        code = _by_ratios if tokens_ND.dtype == torch.float32 else _by_bits
        owner, fed = code(tokens_ND, pixels)
        if not fed.any():
            raise ValueError("no image token hangs on pixels of its own, as in a query-former or perceiver")
        if (fed & (owner < 0)).sum() > _WRONG_PART * fed.sum():
            raise ValueError(
                "pixels feed several image tokens each, as in a query-former, perceiver or overlapping pool"
            )
        return owner.cpu().numpy(), len(tokens_ND)


def _gradients(tokens_ND: Any, pixels: Any) -> Any:
    """A function from one number a token to the gradient of the sum of the tokens, projected at random, times these."""
    import torch

    random = torch.Generator().manual_seed(1)
    project_ND = torch.randn(tokens_ND.shape, generator=random).to(tokens_ND)

    def gradient(code_N: Any) -> Any:
        seed_ND = project_ND * code_N.to(tokens_ND)[:, None]
        (found,) = torch.autograd.grad(tokens_ND, pixels, seed_ND, retain_graph=True, allow_unused=True)
        return as_tiles(torch.zeros_like(pixels) if found is None else found)

    return gradient


def _by_ratios(tokens_ND: Any, pixels: Any) -> tuple[Any, Any]:
    """The token of each pixel value and whether it feeds any, by two digits, each a ratio of gradients."""
    import torch

    gradient, number_N = _gradients(tokens_ND, pixels), torch.arange(len(tokens_ND), device=tokens_ND.device)
    whole = gradient(torch.ones_like(number_N))
    # What is lost against the strongest value is rounding.
    fed = whole.abs() > 1e-6 * whole.abs().max()
    owner, sure = torch.zeros_like(whole, dtype=torch.int64), fed.clone()
    for digit_N, worth in ((number_N % _DIGIT, 1), (number_N // _DIGIT, _DIGIT)):
        ratio = gradient(digit_N) / whole
        digit = ratio.nan_to_num().round()
        sure &= (ratio - digit).abs() < _ROUNDING
        owner += digit.long() * worth
    sure &= (owner >= 0) & (owner < len(number_N))
    owner = owner.where(sure, 0)
    # What feeds several tokens may come near two whole numbers by chance, but hardly near a third one as well.
    check_N = 1 + (number_N * 0.618) % 1
    sure &= (gradient(check_N) / whole - check_N[owner]).abs() < _ROUNDING
    return owner.where(sure, -1), fed


def _by_bits(tokens_ND: Any, pixels: Any) -> tuple[Any, Any]:
    """The same where numbers are coarse: for each bit of the tokens' numbers, is there a gradient or none?"""
    import torch

    gradient, number_N = _gradients(tokens_ND, pixels), torch.arange(len(tokens_ND), device=tokens_ND.device)
    owner, fed, sure = torch.zeros((), dtype=torch.int64), False, True
    for place in range(max(len(tokens_ND) - 1, 1).bit_length()):
        one_N = (number_N >> place) & 1
        one, zero = gradient(one_N) != 0, gradient(1 - one_N) != 0
        owner, fed, sure = owner.to(one.device) + (one.long() << place), fed | one | zero, sure & (one ^ zero)
    return owner.where(sure & (owner < len(number_N)), -1), fed


def _image_embeddings(model: Any, inputs: dict, token_id: int) -> Any:
    """(N, D) what the language model gets of the pictures, one row an image token, with a graph to the pixels."""
    import torch

    layers, found = decoder_layers(model), {}
    if not layers:
        raise ValueError(f"the layers of {type(model).__name__} cannot be found")

    def keep(_: Any, args: tuple, kwargs: dict) -> None:
        found.update(kwargs, hidden_states=args[0] if args else kwargs.get("hidden_states"))
        raise _EmbeddingsFound

    with ExitStack() as stack:
        stack.callback(layers[0].register_forward_pre_hook(keep, with_kwargs=True).remove)
        stack.enter_context(vision_attention_off(model))
        stack.enter_context(_encoder_layers_skipped(model))
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
    if not torch.is_tensor(hidden) or tuple(hidden.shape[:2]) != (1, len(ids_P)):
        raise ValueError("the first layer of its language model sees something else than the prompt")
    return hidden[0, ids_P.to(hidden.device) == token_id].flatten(1)


class _EmbeddingsFound(Exception):
    """Leaves a model's forward pass as soon as its embeddings are there."""


@contextmanager
def _encoder_layers_skipped(model: Any) -> Iterator[None]:
    """Within this block the layers of every encoder but the language model pass on what they get.

    Without attention a layer works on each patch alone, so that nothing is lost but time. Left as they are: layers
    without attention, with a convolution, or that give something of another shape, such as fewer tokens.
    """
    import torch
    from torch.nn.modules.conv import _ConvNd

    text, formats = {id(module) for module in model.get_decoder().modules()}, {}

    def skipping(layer: Any, forward: Any) -> Any:
        def skipped(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else next(iter(kwargs.values()), None)
            if type(layer) not in formats:  # asked once, so that what comes back looks as it should
                with torch.no_grad():
                    made = forward(*args, **kwargs)
                first = made[0] if isinstance(made, tuple) and made else made
                same = torch.is_tensor(first) and torch.is_tensor(given) and first.shape == given.shape
                formats[type(layer)] = type(made), same, made[1:] if isinstance(made, tuple) else ()
            kind, same, rest = formats[type(layer)]
            if not same:
                return forward(*args, **kwargs)
            return (given, *rest) if kind is tuple else given

        return skipped

    with ExitStack() as stack:
        for layers in model.modules():
            for layer in layers if isinstance(layers, torch.nn.ModuleList) and id(layers) not in text else ():
                parts = [*layer.modules()]
                if any("attention" in type(p).__name__.lower() for p in parts) and not any(
                    isinstance(p, _ConvNd) for p in parts
                ):
                    stack.callback(_restore_forward, layer, layer.__dict__.get("forward"))
                    layer.forward = skipping(layer, layer.forward)
        yield


def _restore_forward(layer: Any, own: Any) -> None:
    """accelerate puts a forward of its own on modules; the class has that of the others."""
    if own is None:
        del layer.forward
    else:
        layer.forward = own
