"""One picture of many planes: rows are layers, columns heads, each a small map of what one word looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from attention_heatmap.drawing.colour import MUTED, PAPER, colour_map
from attention_heatmap.drawing.fonts import FONT_LABEL, FONT_TITLE, FontSet
from attention_heatmap.drawing.image_panel import draw_heat, layout_images
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions
from attention_heatmap.drawing.pen import Pen
from attention_heatmap.maps import TINY, image_shares, shown_rows
from attention_heatmap.phases import steps_of
from attention_heatmap.record import AttentionRecord, Head

# Pixels: a map's width at least and at most, its height over its width at most, between maps, round all.
_NARROWEST, _WIDEST, _TALLEST, _GAP, _MARGIN = 72, 420, 1.2, 10, 28


def draw_overview(
    record: AttentionRecord, images: Sequence[Image.Image], what: int | str, options: DrawingOptions | None = None
) -> Image.Image:
    """A small map of the same pictures for each plane of a record: rows are layers, columns heads.

    what: a token's number, a word of the response (the mean over its mentions), or a phase such as "answer". Each map
    goes up to its own highest cell, or all to the same with the scale "video"; below each stands its share.
    """
    options = options or DrawingOptions()
    title, steps = steps_of(record, what)
    layers, heads = list(dict.fromkeys(record.layers)), list(dict.fromkeys(record.heads))
    title_fonts, fonts = FontSet(FONT_TITLE, options.font_path), FontSet(FONT_LABEL, options.font_path)
    left = _MARGIN + round(max(fonts.width(f"layer {layer}") for layer in layers)) + _GAP
    room = (options.frame_size[0] - left - _MARGIN) // len(heads) - _GAP
    width = min(max(room, _NARROWEST), _WIDEST)
    layout = layout_images(record, images, width, round(width * _TALLEST), fonts, None, options.picture)
    height, line = max(top + high for _, top, _, high in layout.places), round(fonts.size * 1.4)
    pitch_x, pitch_y = width + _GAP, height + line + _GAP
    top = _MARGIN + round(title_fonts.size * 1.6) + 2 * line
    size = left + len(heads) * pitch_x + _MARGIN, top + len(layers) * pitch_y + _MARGIN
    canvas = Image.new("RGB", (max(size[0], DEFAULT_FRAME_SIZE[0] // 3), size[1]), PAPER)
    pen, one_scale = Pen(canvas), options.scale != "frame"
    pen.text((_MARGIN, _MARGIN + title_fonts.size), title, title_fonts)
    said = "all maps on one scale" if one_scale else "each map up to its own highest cell"
    note = f"{said}; below each its share on the pictures"
    pen.text((_MARGIN, _MARGIN + title_fonts.size + line), note, fonts, MUTED)
    for column, name in enumerate(map(_head_name, heads)):
        fitting = name if fonts.width(name) <= width else name.split()[-1]
        pen.text((left + column * pitch_x, top - _GAP), fitting, fonts)
    maps = []  # (cells,) mean weights over the steps, of each plane
    for plane in range(len(record.layers)):
        shown = shown_rows(record, plane, *options.map)
        maps.append(layout.cell_weights(shown.rows[steps], shown.sinks).mean(axis=0))
    ends = [float(np.nan_to_num(values).max(initial=0)) for values in maps]
    for plane, values in enumerate(maps):
        row, column = layers.index(record.layers[plane]), heads.index(record.heads[plane])
        x, y = left + column * pitch_x, top + row * pitch_y
        end = max(max(ends) if one_scale else ends[plane], TINY)
        heat = draw_heat(layout, np.clip(values / end, 0, 1) ** options.power, colour_map(options.colormap))
        pen.picture(heat.crop((0, 0, width, height)), (x, y))
        pen.text((x, y + height + line - 8), f"{image_shares(record, plane)[steps].mean():.1%}", fonts)
        if column == 0:
            pen.text((_MARGIN, y + height // 2), f"layer {record.layers[plane]}", fonts)
    return canvas


def _head_name(head: Head) -> str:
    """A column's name."""
    if isinstance(head, tuple):
        return "heads " + "+".join(map(str, head))
    return {"mean": "mean", "max": "maximum"}.get(head, f"head {head}")
