"""The choice of auto: which layer, and which head of a layer, follows what is spoken of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_heatmap.record import ImageTokens
from attention_heatmap.recording import torch
from attention_heatmap.recording.attention import recording
from attention_heatmap.recording.layers import attention_layers, cross_layers
from attention_heatmap.recording.prompt import forced_pass
from attention_heatmap.recording.recorder import AttentionRecorder

SURVEY_REGIONS = 8  # rows and columns of the coarse grid on which heads are compared, whatever the cells' size


class _HeadSurvey(AttentionRecorder):
    """How the heads of every layer agree on where a given response looks, instead of rows.

    Of each head the weights of the image tokens are summed over the regions of a coarse grid, on the device.
    """

    def __init__(self, model: Any, steps: int, located: Sequence[ImageTokens], regions_M: np.ndarray) -> None:
        crossing = cross_layers(model.config)
        planes = [(layer, "mean") for layer in crossing or attention_layers(model.config)]
        super().__init__(planes, 0, 0, located, crossing)  # no rows are kept
        self.steps, self.regions_M = steps, regions_M
        self.found: dict[int, np.ndarray] = {}  # by layer, (H,): see `head_agreement`
        self._sums: list[Any] = []  # of the layer that is met, a block of queries each

    def take(self, layer: int, step: int, weights_HQK: Any) -> None:
        """Sum the weights of the queries from a step on over the regions."""
        (H, Q, K), device = weights_HQK.shape, weights_HQK.device
        keys_M, regions_M = (torch.as_tensor(n, device=device) for n in (self.image_keys(layer, K), self.regions_M))
        sums_HQR = weights_HQK.new_zeros(H, Q, int(self.regions_M.max(initial=0)) + 1)
        sums_HQR.index_add_(2, regions_M, weights_HQK[..., keys_M])
        self._sums.append(sums_HQR[..., 1:].cpu())  # the first region: no place
        if step + Q == self.steps:
            self.found[layer] = head_agreement(torch.cat(self._sums, dim=1).transpose(0, 1).numpy())
            self._sums.clear()


def token_regions(located: Sequence[ImageTokens], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """(M,) int, the region of a coarse grid, from 1, that the middle of each image token's cell is in; 0: no place."""
    parts = zip(located, sizes)
    middles = np.concatenate([(i.boxes[:, :2] + i.boxes[:, 2:]) / 2 / np.float32(size) for i, size in parts])
    picture = np.repeat(np.arange(len(located)), [len(image.positions) for image in located])
    x, y = np.clip(np.nan_to_num(middles) * SURVEY_REGIONS, 0, SURVEY_REGIONS - 1).astype(int).T
    return np.where(np.isnan(middles[:, 0]), 0, 1 + (picture * SURVEY_REGIONS + y) * SURVEY_REGIONS + x)


def survey_heads(
    model: Any, inputs: Any, response_ids: list[int], located: Sequence[ImageTokens], sizes: Sequence[tuple[int, int]]
) -> dict[int, np.ndarray]:
    """By layer, (H,) the agreement of the heads over a response: one teacher-forced pass, without generating.

    sizes: of the pictures. Raises RuntimeError where the model does not go through our attention function.
    """
    survey = _HeadSurvey(model, len(response_ids), located, token_regions(located, sizes))
    with recording(model, survey):
        forced_pass(model, inputs, response_ids, logits_to_keep=slice(-1, None))
    if not survey.found:
        told = f"{type(model).__name__} does not go through transformers' AttentionInterface"
        raise RuntimeError(f"{told}, so that no layer or head can be chosen by auto; name them")
    return survey.found


def head_agreement(survey_THR: np.ndarray) -> np.ndarray:
    """(H,) how much of what each head looks at from token to token the other heads of its layer look at, too.

    The covariance over the steps of a head's weights with the mean of the others', summed over the regions. What
    glows at every step counts nothing, a blur next to nothing, and neither does a head that moves on its own.
    In the spirit of Kang et al. 2025 (arXiv 2503.06287), who find heads that locate what is spoken of by the sum and
    the spatial concentration of their attention.
    """
    H = survey_THR.shape[1]
    moved_THR = survey_THR - survey_THR.mean(axis=0)
    others_THR = (moved_THR.sum(axis=1, keepdims=True) - moved_THR) / (H - 1) if H > 1 else moved_THR
    return (moved_THR * others_THR).mean(axis=0).sum(axis=-1)


def choose_heads(agreement: dict[int, np.ndarray]) -> tuple[int, dict[int, int]]:
    """The layer whose heads agree most, on average, and of each layer the head that agrees most."""
    seeing = [number for number, heads in agreement.items() if heads.any()]  # a window may end before the picture
    layer = max(seeing or agreement, key=lambda number: agreement[number].mean())
    return layer, {number: int(heads.argmax()) for number, heads in agreement.items()}
