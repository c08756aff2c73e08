"""One picture of many planes: rows are layers, columns heads, each a small map of what one word looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from attention_heatmap.drawing.colour import INK, MUTED, PAPER, colour_map
from attention_heatmap.drawing.fonts import FONT_LABEL, FONT_TITLE, FontSet, draw_runs
from attention_heatmap.drawing.image_panel import draw_heat, layout_images
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions
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
    fonts, small = FontSet(FONT_TITLE, options.font_path), FontSet(FONT_LABEL, options.font_path)
    names = [_head_name(head) for head in heads]
    left = _MARGIN + round(max(small.width(f"layer {layer}") for layer in layers)) + _GAP
    room = (options.frame_size[0] - left - _MARGIN) // len(heads) - _GAP
    width = min(max(room, _NARROWEST), _WIDEST)
    layout = layout_images(record, images, width, round(width * _TALLEST), small, None, options.picture)
    height = max(top + high for _, top, _, high in layout.places)
    line = round(small.size * 1.4)
    top = _MARGIN + round(fonts.size * 1.6) + 2 * line
    size = left + len(heads) * (width + _GAP) + _MARGIN, top + len(layers) * (height + line + _GAP) + _MARGIN
    canvas = Image.new("RGB", (max(size[0], DEFAULT_FRAME_SIZE[0] // 3), size[1]), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw_runs(draw, (_MARGIN, _MARGIN + fonts.size), title, fonts, INK)
    one_scale = options.scale != "frame"
    said = "all maps on one scale" if one_scale else "each map up to its own highest cell"
    draw_runs(
        draw, (_MARGIN, _MARGIN + fonts.size + line), f"{said}; below each its share on the pictures", small, MUTED
    )
    for column, name in enumerate(names):
        draw_runs(draw, (left + column * (width + _GAP), top - _GAP), _fitting(name, small, width), small, INK)
    maps, shares = _maps(record, layout, steps, options)
    highest = max(float(np.nan_to_num(values).max(initial=0)) for values in maps)
    for plane, values in enumerate(maps):
        row, column = layers.index(record.layers[plane]), heads.index(record.heads[plane])
        x, y = left + column * (width + _GAP), top + row * (height + line + _GAP)
        end = max(highest if one_scale else float(np.nan_to_num(values).max(initial=0)), TINY)
        heat = draw_heat(layout, np.clip(values / end, 0, 1) ** options.power, colour_map(options.colormap))
        canvas.paste(heat.crop((0, 0, width, height)), (x, y))
        draw_runs(draw, (x, y + height + line - 8), f"{shares[plane]:.1%}", small, INK)
        if column == 0 or record.heads[plane] == heads[0]:
            draw_runs(draw, (_MARGIN, y + height // 2), f"layer {record.layers[plane]}", small, INK)
    return canvas


def _maps(
    record: AttentionRecord, layout: object, steps: list[int], options: DrawingOptions
) -> tuple[list[np.ndarray], list[float]]:
    """(cells,) mean weights over the steps of each plane, and its mean share on the pictures."""
    maps, shares = [], []
    for plane in range(len(record.layers)):
        shown = shown_rows(record, plane, *options.map)
        maps.append(layout.cell_weights(shown.rows[steps], shown.sinks).mean(axis=0))
        shares.append(float(image_shares(record, plane)[steps].mean()))
    return maps, shares


def _head_name(head: Head) -> str:
    """A column's name."""
    if isinstance(head, tuple):
        return "heads " + "+".join(map(str, head))
    return {"mean": "mean", "max": "maximum"}.get(head, f"head {head}")


def _fitting(name: str, fonts: FontSet, width: float) -> str:
    """The name, or its last word where that is all there is room for."""
    return name if fonts.width(name) <= width else name.split()[-1]
