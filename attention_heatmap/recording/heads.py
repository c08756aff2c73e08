"""The choice of auto: which layer, and which head of a layer, follows what is spoken of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_heatmap.record import ImageTokens
from attention_heatmap.recording.attention import recording
from attention_heatmap.recording.generation import picture_columns
from attention_heatmap.recording.layers import attention_layers, cross_layers
from attention_heatmap.recording.prompt import forced_pass
from attention_heatmap.recording.recorder import AttentionRecorder

SURVEY_REGIONS = 8  # rows and columns of the coarse grid on which heads are compared, whatever the cells' size


class HeadSurvey(AttentionRecorder):
    """How the heads of every layer agree on where a given response looks, instead of rows.

    Of each head the weights of the image tokens are summed over a coarse grid on the device; of each layer only the
    agreement of its heads is kept.
    """

    def __init__(
        self, layers: Sequence[int], steps: int, located: Sequence[ImageTokens], regions: Sequence[np.ndarray],
        crossing: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__([(layer, "mean") for layer in layers], 0, 0, crossing)
        self.steps, self.located, self.regions_M = steps, located, np.concatenate(regions)
        self.found: dict[int, np.ndarray] = {}  # by layer, (H,): see `head_agreement`
        self._sums: list[Any] = []  # of the layer that is met, a block of queries each

    def take(self, layer: int, step: int, weights_HQK: Any) -> None:
        """Sum the weights of the queries from a step on over the regions."""
        import torch

        H, Q, keys = weights_HQK.shape
        columns_M = np.concatenate([image.positions for image in self.located])
        if layer in self.crossing:
            columns_M = picture_columns(self.located, keys)
        weights_HQM = weights_HQK[..., torch.as_tensor(columns_M, device=weights_HQK.device)]
        sums_HQR = weights_HQK.new_zeros(H, Q, int(self.regions_M.max(initial=0)) + 2)
        sums_HQR.index_add_(2, torch.as_tensor(self.regions_M + 1, device=weights_HQK.device), weights_HQM)
        self._sums.append(sums_HQR[..., 1:].cpu())  # the first region: no place
        if step + Q == self.steps:
            self.found[layer] = head_agreement(torch.cat(self._sums, dim=1).transpose(0, 1).numpy())
            self._sums.clear()


def picture_regions(located: Sequence[ImageTokens], sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """(M,) int a picture, the region of a coarse grid that each cell's middle is in; -1 without a place."""
    regions, first = [], 0
    for image, size in zip(located, sizes):
        middle = (image.boxes[:, :2] + image.boxes[:, 2:]) / 2 / np.float32(size)
        x, y = np.clip(np.nan_to_num(middle) * SURVEY_REGIONS, 0, SURVEY_REGIONS - 1).astype(int).T
        regions.append(np.where(np.isnan(middle[:, 0]), -1, first + y * SURVEY_REGIONS + x))
        first += SURVEY_REGIONS**2
    return regions


def survey_heads(
    model: Any, inputs: Any, response_ids: list[int], located: Sequence[ImageTokens], regions: Sequence[np.ndarray]
) -> dict[int, np.ndarray]:
    """By layer, (H,) the agreement of the heads over a response: one teacher-forced pass, without generating.

    Raises RuntimeError where the model does not go through our attention function.
    """
    crossing = cross_layers(model.config)
    survey = HeadSurvey(crossing or attention_layers(model.config), len(response_ids), located, regions, crossing)
    with recording(model, survey):
        forced_pass(model, inputs, response_ids, logits_to_keep=slice(-1, None))
    if not survey.found:
        raise RuntimeError(
            f"{type(model).__name__} does not go through transformers' AttentionInterface, so that no layer or head "
            "can be chosen by auto; name them"
        )
    return survey.found


def head_agreement(survey_THR: np.ndarray) -> np.ndarray:
    """(H,) how much of what each head looks at from token to token the other heads of its layer look at, too.

    The covariance over the steps of a head's weights with the mean of the others', summed over the regions. What
    glows at every step counts nothing, a blur next to nothing, and neither does a head that moves on its own.
    No label goes in. In the spirit of Kang et al. 2025 (arXiv 2503.06287), who find a few heads that locate what
    is spoken of by the sum and the spatial concentration of their attention.
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
