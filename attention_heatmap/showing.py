"""How a record shows itself. Here alone does a room use rooms below it, fetched inside the methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from attention_heatmap.record import AttentionRecord, Head

DEFAULT_START_PHRASE = "Based on the following requirements"


class Showing:
    """The methods of a record that draw it."""

    def show(
        self, step: int, layer: int | None = None, start_phrase: str = DEFAULT_START_PHRASE, *,
        head: Head | None = None, **options: Any,
    ) -> Image.Image:  # fmt: skip
        """The frame of one step as a PIL image, of the last recorded layer by default. options: `DrawingOptions`.

        step: the number of the response token, from 1, as every frame names it; -1: the last.
        """
        return self.figure(step, layer, start_phrase=start_phrase, head=head, **options)

    def figure(
        self, step: int, layer: int | None = None, path: str | Path | None = None, *,
        start_phrase: str = DEFAULT_START_PHRASE, head: Head | None = None, **options: Any,
    ) -> Image.Image | Path:  # fmt: skip
        """One step as a picture: the whole frame, or the map alone with `figure="map"`; step and the rest as in `show`.

        Returns a PIL image or, with a path (.png, .svg or .pdf), writes the file and returns its path: in SVG and PDF
        text is text.
        """
        from attention_heatmap.drawing.frame import FrameRenderer
        from attention_heatmap.drawing.options import drawing_options
        from attention_heatmap.drawing.outputs import draw_figure, write_figure

        plane, how = self.plane(layer, head), drawing_options(options)
        renderer = FrameRenderer(self, self.open_pictures(), plane, start_phrase, how)
        number = renderer.check_step(step)
        return draw_figure(renderer, number, how.figure) if path is None else write_figure(renderer, number, path)

    def map(
        self, step: int, layer: int | None = None, image: int = 1, *, head: Head | None = None
    ) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """The weights over one picture at one step, as they are, and where they lie on it, for matplotlib's `imshow`:

            weights, extent = record.map(52)
            plt.imshow(record.open_pictures()[0])
            plt.imshow(weights, extent=extent, alpha=0.6)

        step: as in `show`. image: which picture, from 1, as the frames name it.
        Returns ((rows, columns) float32, (left, right, bottom, top) in pixels of the picture).
        """
        from attention_heatmap.maps import map_array, map_cells

        if not 1 <= image <= len(self.images):
            raise ValueError(f"image {image} is not there; the pictures are numbered 1 to {len(self.images)}")
        row_1S = self.rows(self.plane(layer, head))[self.step_of(step)][None]
        return map_array(map_cells(self.images[image - 1]), row_1S)

    def overview(self, what: int | str, **options: Any) -> Image.Image:
        """A small map for each plane, rows are layers, columns heads: what a step, word or phase looked at."""
        from attention_heatmap.drawing.options import drawing_options
        from attention_heatmap.drawing.summary import draw_overview

        return draw_overview(self, self.open_pictures(), what, drawing_options(options))

    def page(
        self, path: str | Path, start_phrase: str = DEFAULT_START_PHRASE, *, other: AttentionRecord | None = None,
        names: Sequence[str] = (), **options: Any,
    ) -> Path:  # fmt: skip
        """Write one HTML file to explore the record in a browser; returns its path. options: `DrawingOptions`.

        other: a second record of the same tokens, to compare with; names: of the two.
        """
        from attention_heatmap.drawing.options import drawing_options
        from attention_heatmap.drawing.page import write_page

        records = [self] if other is None else [self, other]
        return write_page(records, path, start_phrase, drawing_options(options), names=names)

    def _repr_html_(self) -> str:
        """What a notebook shows of a record: its page, or its summary where the page would be heavy."""
        from attention_heatmap.drawing.page import notebook_html

        return notebook_html(self)
