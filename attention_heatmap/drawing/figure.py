"""One step as a picture by itself: the whole frame, or the map alone, as PNG, SVG or PDF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from attention_heatmap.drawing.colour import CELL_ALPHA, PAPER, tinted
from attention_heatmap.drawing.fonts import FONT_LABEL
from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.layout import used_size
from attention_heatmap.drawing.legend import BAR_WIDTH, amount_text, draw_scale
from attention_heatmap.drawing.options import STILLS
from attention_heatmap.drawing.pen import AnyPen, Pen, VectorPen
from attention_heatmap.drawing.vector import write_pdf, write_svg
from attention_heatmap.files import moved_into_place
from attention_heatmap.maps import BASELINES

SCALE_HEIGHT = 2.4  # of the room below a map for its scale, in heights of the font


def draw_figure(renderer: FrameRenderer, step: int, figure: str, as_shapes: bool = False) -> Image.Image | VectorPen:
    """A step, from 0, as an RGB image, or as shapes: "frame" or "map"."""
    if figure == "frame":
        return renderer.draw_shapes(step) if as_shapes else Image.fromarray(renderer.draw(step))
    layout = renderer.maps[0].layout
    width, height = used_size([place[2:] for place in layout.places], [(x, y, 1.0) for x, y, *_ in layout.places])
    size = max(width, renderer.px(BAR_WIDTH)), height + round(renderer.px(FONT_LABEL) * SCALE_HEIGHT)
    canvas = Image.new("RGB", size, PAPER)
    canvas.paste(Image.fromarray(layout.picture).crop((0, 0, width, height)))
    pen = VectorPen(*size) if as_shapes else Pen(canvas)
    _draw_map(pen, renderer, step, *size)
    return pen if as_shapes else canvas


def write_figure(renderer: FrameRenderer, step: int, path: str | Path) -> Path:
    """Write a step, from 0, as a file of the suffix .png, .svg or .pdf; its path."""
    path, kind = Path(path), Path(path).suffix.lower()
    if kind[1:] not in STILLS:
        raise ValueError(f"{path} has no suffix of a picture; expected .{', .'.join(STILLS)}")
    save_picture(draw_figure(renderer, step, renderer.options.figure, kind != ".png"), path)
    return path


def save_picture(picture: Image.Image | VectorPen, path: Path) -> None:
    """Write an image, or shapes as the suffix says, whole or not at all."""
    with moved_into_place(path) as temporary:
        if isinstance(picture, Image.Image):
            picture.save(temporary)
        else:
            (write_pdf if path.suffix.lower() == ".pdf" else write_svg)(picture, temporary)


def _draw_map(pen: AnyPen, renderer: FrameRenderer, step: int, width: int, height: int) -> None:
    """The map, its marks, and below it its scale and the share of the pictures, at the foot of a size."""
    panel, number, fonts, options = renderer.maps[0], step - renderer.first_step, renderer.label_fonts, renderer.options
    at, panel.at = panel.at, (0, 0)
    try:
        panel.draw(pen, number, fonts)
        renderer.draw_marks(pen, panel, step)
    finally:
        panel.at = at
    unit, relative = BASELINES[options.baseline][1], options.baseline == "relative"
    high = f"{amount_text(float(panel.ends[number]), relative)} or more" if panel.any_heat else "nothing"
    shades = tinted(np.linspace(0, 1, 256) ** options.power, panel.colormap, CELL_ALPHA, float(panel.strengths[number]))
    share = f"{panel.shares[number]:.1%} on the picture{'s' * (len(renderer.sizes) > 1)}"
    y, end = height - round(fonts.size * 0.6), width - fonts.width(share)
    is_shown = width > fonts.width(share) * 3
    last, amounts = round(end - renderer.px(20)) if is_shown else width, ("0" if relative else "0%", high, unit)
    draw_scale(pen, (0, y), last, "a cell", amounts, shades, fonts, renderer.px)
    if is_shown:
        pen.text((end, y), share, fonts, renderer.legend.shares[0].colour)
