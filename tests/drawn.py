"""What tests of the drawing share: a frame's renderer, records of known hot cells, the colours to expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image
from records import SMALL, make_record, picture

from attention_heatmap.drawing.colour import CELL_ALPHA, CURRENT_TOKEN, Colormap, red_to_green, tinted
from attention_heatmap.drawing.fonts import FontSet
from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.image_panel import CELL_LEVELS
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.pen import VectorPen
from attention_heatmap.drawing.text_panel import TEXT_LEVELS
from attention_heatmap.record import AttentionRecord

FONTS = FontSet(20)


class Shapes(VectorPen):
    """Keeps what it is asked to draw: (what, its values), in this order."""

    def __init__(self, width: int = 1, height: int = 1) -> None:
        self.size, self.shapes = (width, height), []

    def run(self, at, text, width, font, fill):
        self.shapes.append(("text", {"at": at, "text": text, "width": width, "font": font, "fill": fill}))

    def rect(self, at, size, fill, outline, width, radius, opacity):
        box = (*at, at[0] + size[0], at[1] + size[1])
        self.shapes.append(("box", {"box": box, "fill": fill, "opacity": opacity}))

    def image(self, image, at, size):
        self.shapes.append(("picture", {"image": image}))

    def circle(self, *values):
        self.shapes.append(("ring", values))

    def path(self, *values):
        self.shapes.append(("line", values))


def renderer_of(
    record: AttentionRecord, images: Sequence[Image.Image] = (), plane: int = 1, size: tuple[int, int] = SMALL,
    phrase: str = "Based", together: tuple | None = None, **options: object,
) -> FrameRenderer:  # fmt: skip
    """The renderer of a record over white pictures."""
    images = images or [picture()] * len(record.images)
    return FrameRenderer(record, images, plane, phrase, DrawingOptions(frame_size=size, **options), together)


def with_cells(record: AttentionRecord, weights: np.ndarray) -> AttentionRecord:
    """The record with (T, image tokens) weights, or (T, planes, image tokens), on its pictures."""
    changed = record.weights.copy()
    changed[:, :, record.image_positions] = weights if np.ndim(weights) == 3 else np.asarray(weights)[:, None]
    return replace(record, weights=changed)


def hot_record(cells: Sequence[int], weight: float = 0.5, **kwargs: object) -> AttentionRecord:
    """A record in which step t looks at image token cells[t] and at nothing else of the pictures."""
    record = make_record(["Based", " on"], [f" w{t}" for t in range(len(cells))], **kwargs)
    weights = np.zeros((len(cells), len(record.image_positions)), np.float32)
    weights[np.arange(len(cells)), cells] = weight
    return with_cells(record, weights)


def sink_record(sink: int = 5, steps: int = 20) -> AttentionRecord:
    """A record in which one cell takes most of every step, and another cell is looked at in turn."""
    record = hot_record([t % 12 if t % 12 != sink else 0 for t in range(steps)])
    weights = np.maximum(record.weights[:, 0, record.image_positions], 0.001)
    weights[:, sink] = 3.0
    return with_cells(record, weights)


def cell_centre(renderer: FrameRenderer, cell: int) -> tuple[int, int]:
    """(y, x) on the frame of the middle of a cell."""
    (left, top, right, bottom), at = renderer.panel.layout.edges[cell], renderer.panel.at
    return at[1] + (top + bottom) // 2, at[0] + (left + right) // 2


def on_white(
    weight: float, alpha_range: tuple[float, float] = CELL_ALPHA, strength: float = 1,
    colormap: Colormap = red_to_green,
) -> np.ndarray:  # fmt: skip
    """The colour of a weight on the scale 0..1 over white."""
    levels = (CELL_LEVELS if alpha_range is CELL_ALPHA else TEXT_LEVELS) - 1
    return tinted(np.round([weight * levels]) / levels, colormap, alpha_range, strength)[0]


def text_panel(renderer: FrameRenderer, step: int) -> np.ndarray:
    """The text of a frame, from its first line on."""
    (left, top), (width, height) = renderer.answer.at, renderer.answer.size
    panel = renderer.draw(step)[top : top + height, left : left + width]
    return panel[: len(renderer.answer.layout.ink)]


def ground_of(renderer: FrameRenderer, piece: int) -> np.ndarray:
    """(Y, X) bool, the pixels of a piece's ground that no glyph covers, of the lines that the panel shows."""
    height = min(renderer.answer.size[1], len(renderer.answer.layout.ink))
    return ((renderer.answer.layout.piece_index == piece + 1) & (renderer.answer.layout.ink == 0))[:height]


def is_current(pixels: np.ndarray) -> np.ndarray:
    """Which of (..., 3) pixels have the colour of the current token."""
    return (pixels == CURRENT_TOKEN).all(axis=-1)


def contrast(first: Sequence[float], second: Sequence[float]) -> float:
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour: Sequence[float]) -> float:
        c = np.asarray(colour, float) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
