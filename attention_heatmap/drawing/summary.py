"""Pictures of many small maps: of a whole answer, of all planes, of what changed between two records."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from attention_heatmap.compare import Comparison
from attention_heatmap.drawing.colour import MUTED, PAPER, colour_bar, colour_map, scaled, text_colours
from attention_heatmap.drawing.fonts import FONT_LABEL, FONT_TEXT, FONT_TITLE, FontSet, cut_to, wrapped
from attention_heatmap.drawing.image_panel import ImageLayout, draw_heat, draw_heat_by_pen, layout_images, painted
from attention_heatmap.drawing.layout import MARGIN
from attention_heatmap.drawing.legend import NOTES, amount_text, map_notes, plane_title
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions
from attention_heatmap.drawing.pen import AnyPen, Pen, VectorPen, draw_lines
from attention_heatmap.drawing.text import BREAK_ANYWHERE, LETTERS, text_pieces
from attention_heatmap.drawing.text_layout import TextLayout, layout_text
from attention_heatmap.drawing.text_panel import put_text
from attention_heatmap.drawing.together import difference_note, two_sided_colours
from attention_heatmap.maps import BASELINES, TINY, image_shares, shown_rows
from attention_heatmap.phases import response_ends, response_phases, steps_of
from attention_heatmap.record import AttentionRecord, Head

SUMMARY_COLUMNS = 4  # maps side by side, in two rows
# Of the overview, in pixels: a map's width at least and at most, its height over its width at most, between maps.
_NARROWEST, _WIDEST, _TALLEST, _PLANES_APART = 72, 420, 1.2, 10
_MOST_CHANGED = 6  # tokens whose maps are drawn, two in a row
_MAPS_APART, _TITLES = 12, 40  # pixels between those maps, and from line to line of their title, as MARGIN


def words_that_looked(record: AttentionRecord, plane: int, count: int) -> list[tuple[int, str]]:
    """(step, word) of the words that looked at the pictures the most, the most first, each word once.

    A word counts by the token that begins it; in a script without spaces each token is a word.
    """
    text, words = record.response, {}
    starts = np.concatenate([[0], response_ends(record)])
    for step in np.argsort(-image_shares(record, plane), kind="stable"):
        token = record.tokens[record.prompt_length + step]
        match = LETTERS.search(token)
        at = starts[step] + match.start() if match else 0
        if not match or (at and text[at - 1] in "</") or len(words) == count:
            continue
        alone = bool(BREAK_ANYWHERE.match(match[0]))
        if alone or not (at and text[at - 1].isalpha()):
            words.setdefault(match[0] if alone else LETTERS.match(text, at)[0], int(step))
    return [(step, word) for word, step in words.items()]


def summary_spans(record: AttentionRecord, plane: int) -> list[tuple[str, int, int]]:
    """(title, first step, the one after the last) of each map of the summary: the phases, then single words."""
    phases = [(f"{p.name}: mean of {p.last - p.first} steps", p.first, p.last) for p in response_phases(record)]
    words = words_that_looked(record, plane, 2 * SUMMARY_COLUMNS - len(phases))
    return phases + [(f"“{word}”, token {step + 1}", step, step + 1) for step, word in words]


def summary_facts(
    spans: Sequence[tuple], shares_T: np.ndarray, cells_TN: np.ndarray, images: int, options: DrawingOptions
) -> list[str]:
    """What is written over the map of each span of steps: the share of the pictures, and the highest cell."""
    relative, unit = options.baseline == "relative", f" {BASELINES[options.baseline][1]}" * (options.baseline != "off")
    tops = [np.nan_to_num(cells_TN[start:end].mean(axis=0)).max(initial=0) for _, start, end in spans]
    looked = [f"{shares_T[start:end].mean():.1%} on the picture{'s' * (images > 1)}" for _, start, end in spans]
    return [f"{share}, highest cell {amount_text(top, relative)}{unit}" for share, top in zip(looked, tops)]


def lengths_and_fonts(options: DrawingOptions) -> tuple[Callable[[float], int], list[FontSet]]:
    """What gives the pixels of a length in a picture of the default width, and the fonts of text, titles, labels."""

    def px(length: float) -> int:
        return max(round(length * options.frame_size[0] / DEFAULT_FRAME_SIZE[0]), 1)

    return px, [FontSet(px(size), options.font_path) for size in (FONT_TEXT, FONT_TITLE, FONT_LABEL)]


def map_height(width: int, images: Sequence[Image.Image]) -> int:
    """Pixels that a small map of the pictures may be high, in so many of width: several stand above each other."""
    return width * (3 if len(images) == 1 else 5) // 4


def answer_values(
    record: AttentionRecord, values_T: np.ndarray, fonts: FontSet, width: int
) -> tuple[TextLayout, np.ndarray]:
    """The answer laid out, and (pieces,) the highest value of each piece's tokens, 1 for the highest of all."""
    pieces = text_pieces(record, record.prompt_length)
    first = np.array([piece.start - record.prompt_length for piece in pieces])
    return layout_text(pieces, fonts, width), np.maximum.reduceat(values_T, first) / max(values_T.max(), TINY)


def draw_summary(
    record: AttentionRecord, images: Sequence[Image.Image], plane: int, options: DrawingOptions | None = None,
    vectors: type[VectorPen] | None = None,
) -> Image.Image | VectorPen:  # fmt: skip
    """One picture of a whole response, as wide as a frame: its text, where its phases and some of its words looked.

    The text is coloured by the share of each token's attention that lies on the pictures. vectors: of SVG or PDF.
    """
    options = options or DrawingOptions()
    width, (px, (text_fonts, title_fonts, fonts)) = options.frame_size[0], lengths_and_fonts(options)
    margin, colormap, shown = px(MARGIN), colour_map(options.colormap), shown_rows(record, plane, *options.map)
    shares_T, spans = image_shares(record, plane), summary_spans(record, plane)
    text, values = answer_values(record, shares_T, text_fonts, width - 2 * margin)
    tile = (width - margin) // SUMMARY_COLUMNS - margin
    image = layout_images(record, images, tile, map_height(tile, images), fonts, shown.sinks, options.picture)
    cells_TN = image.cell_weights(shown.rows, shown.sinks)
    notes = [*map_notes(record, plane, options, shown), "each map below goes up to its own highest cell"]
    notes = wrapped(notes, fonts, width - 2 * margin)
    facts = [wrapped([fact], fonts, tile) for fact in summary_facts(spans, shares_T, cells_TN, len(images), options)]
    y_heat = px(60) + (max(map(len, facts)) - 1) * px(NOTES)
    tile_height = max(top + high for _, top, _, high in image.places) + y_heat + px(40)
    y_text = margin + px(100) + len(notes) * px(NOTES)
    y_maps = y_text + px(40) + len(text.ink)
    size = width, y_maps + -(-len(spans) // SUMMARY_COLUMNS) * tile_height
    canvas = Image.new("RGB", size, PAPER)
    pen: AnyPen = vectors(*size) if vectors else Pen(canvas)

    pen.text((margin, margin + px(30)), plane_title(record, plane), title_fonts)
    caption = f"each token coloured by its attention on the picture{'s' * (len(images) > 1)}: 0% "
    x = round(pen.text((margin, margin + px(74)), caption, fonts))
    shades = text_colours(np.linspace(0, 1, px(220)), colormap, options.text_style)[options.text_style == "glyph"]
    pen.picture(colour_bar(shades, px(20)), (x, margin + px(58)))
    pen.text((x + px(230), margin + px(74)), f"{shares_T.max():.1%}", fonts)
    draw_lines(pen, notes, (margin, margin + px(74 + NOTES)), px(NOTES), fonts)
    put_text(pen, (margin, y_text), text, values, None, len(text.ink), colormap, options.text_style, 1)
    for number, (name, start, end) in enumerate(spans):
        row, column = divmod(number, SUMMARY_COLUMNS)
        x, y = margin + column * (tile + margin), y_maps + row * tile_height
        pen.text((x, y + px(22)), cut_to(name, fonts, tile), fonts)
        draw_lines(pen, facts[number], (x, y + px(48)), px(NOTES), fonts, MUTED)
        cells = cells_TN[start:end].mean(axis=0)
        values = scaled(cells / max(np.nan_to_num(cells).max(initial=0), TINY), options.scale, options.power)
        if vectors:
            draw_heat_by_pen(pen, (x, y + y_heat), image, values, colormap, 1, fonts)
        else:
            heat = draw_heat(image, values, colormap)
            pen.picture(heat.crop((0, 0, tile, min(tile_height - y_heat, heat.height))), (x, y + y_heat))
    return pen if vectors else canvas


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
    left = MARGIN + round(max(fonts.width(f"layer {layer}") for layer in layers)) + _PLANES_APART
    room = (options.frame_size[0] - left - MARGIN) // len(heads) - _PLANES_APART
    width = min(max(room, _NARROWEST), _WIDEST)
    layout = layout_images(record, images, width, round(width * _TALLEST), fonts, None, options.picture)
    height, line = max(top + high for _, top, _, high in layout.places), round(fonts.size * 1.4)
    pitch_x, pitch_y = width + _PLANES_APART, height + line + _PLANES_APART
    top = MARGIN + round(title_fonts.size * 1.6) + 2 * line
    size = left + len(heads) * pitch_x + MARGIN, top + len(layers) * pitch_y + MARGIN
    one_scale = options.scale != "frame"
    said = "all maps on one scale" if one_scale else "each map up to its own highest cell"
    note = f"{said}; below each its share on the pictures"
    written = round(max(title_fonts.width(title), fonts.width(note))) + 2 * MARGIN
    canvas = Image.new("RGB", (max(size[0], min(written, options.frame_size[0])), size[1]), PAPER)
    pen = Pen(canvas)
    pen.text((MARGIN, MARGIN + title_fonts.size), title, title_fonts)
    pen.text((MARGIN, MARGIN + title_fonts.size + line), note, fonts, MUTED)
    for column, name in enumerate(map(_head_name, heads)):
        fitting = name if fonts.width(name) <= width else name.split()[-1]
        pen.text((left + column * pitch_x, top - _PLANES_APART), fitting, fonts)
    maps = []  # (cells,) mean weights over the steps, of each plane
    for plane in range(len(record.layers)):
        shown = shown_rows(record, plane, *options.map)
        maps.append(layout.cell_weights(shown.rows[steps], shown.sinks).mean(axis=0))
    ends = [float(np.nan_to_num(values).max(initial=0)) for values in maps]
    for plane, values in enumerate(maps):
        row, column = layers.index(record.layers[plane]), heads.index(record.heads[plane])
        x, y = left + column * pitch_x, top + row * pitch_y
        end = max(max(ends) if one_scale else ends[plane], TINY)
        heat = draw_heat(layout, scaled(values / end, options.scale, options.power), colour_map(options.colormap))
        pen.picture(heat.crop((0, 0, width, height)), (x, y))
        pen.text((x, y + height + line - 8), f"{image_shares(record, plane)[steps].mean():.1%}", fonts)
        if column == 0:
            pen.text((MARGIN, y + height // 2), f"layer {record.layers[plane]}", fonts)
    return canvas


def _head_name(head: Head) -> str:
    """A column's name."""
    if isinstance(head, tuple):
        return "heads " + "+".join(map(str, head))
    return {"mean": "mean", "max": "maximum"}.get(head, f"head {head}")


def draw_changes(
    comparison: Comparison, images: Sequence[Image.Image], names: tuple[str, str], options: DrawingOptions | None = None
) -> Image.Image:
    """The answer, each token coloured by how far its two maps lie apart, and the maps of those that changed most.

    names: what the two records are called. The third map of each token is the difference of the two: purple where the
    first looked more, green where the second did.
    """
    options, record = options or DrawingOptions(), comparison.common_records()[0]
    px, (text_fonts, title_fonts, fonts) = lengths_and_fonts(options)
    width, margin, line, gap = options.frame_size[0], px(MARGIN), px(NOTES), px(_MAPS_APART)
    inside = width - 2 * margin
    text, values = answer_values(record, comparison.distances, text_fonts, inside)
    text_height = len(text.ink)
    title = wrapped([f"{names[0]} and {names[1]}: {record.plane_name(0)}"], title_fonts, inside)
    scale = (
        "each token coloured by how far its two maps lie apart (Jensen-Shannon distance): from 0 to "
        f"{comparison.distances.max():.2f}"
    )
    phases = [_fact(row, names) for row in comparison.phases()]
    notes = wrapped([scale, difference_note(names), *phases], fonts, inside)
    changed = comparison.most_changed(_MOST_CHANGED)
    tile = (inside - 5 * gap - margin) // 6
    layout = layout_images(record, images, tile, map_height(tile, images), fonts, None, options.picture)
    high = max(y + height for _, y, _, height in layout.places)
    y_notes = margin + px(70) + (len(title) - 1) * px(_TITLES)
    top = y_notes + px(2) + len(notes) * line
    row = high + 3 * line + margin
    canvas = Image.new("RGB", (width, top + text_height + margin + -(-len(changed) // 2) * row), PAPER)
    pen = Pen(canvas)
    draw_lines(pen, title, (margin, margin + px(30)), px(_TITLES), title_fonts)
    draw_lines(pen, notes, (margin, y_notes), line, fonts)
    look = colour_map(options.colormap), options.text_style, 1
    put_text(pen, (margin, top), text, values, None, text_height, *look)
    for number, (step, token, distance) in enumerate(changed):
        x = margin + (number % 2) * (3 * (tile + gap) + margin)
        y = top + text_height + margin + (number // 2) * row
        what = f"token {step + 1} “{token.strip()}”, distance {distance:.2f}"
        pen.text((x, y + line // 2), cut_to(what, fonts, 3 * tile), fonts)
        for place, (name, fact, picture) in enumerate(_maps(comparison, layout, step, names, options)):
            at = x + place * (tile + gap), y + 3 * line
            said = [cut_to(words, fonts, tile) for words in (name, fact)]
            draw_lines(pen, said, (at[0], at[1] - line - px(8)), line, fonts, MUTED)
            pen.picture(picture.crop((0, 0, tile, high)), at)
    return canvas


def _maps(
    comparison: Comparison, layout: ImageLayout, step: int, names: tuple[str, str], options: DrawingOptions
) -> list[tuple[str, str, Image.Image]]:
    """(name, fact, picture) of a step: both maps, each up to its own highest cell, and their difference."""
    both = [weights[step] for weights in comparison.weights]
    drawn = []
    for name, share, weights in zip(names, comparison.shares, both):
        heat = draw_heat(layout, weights / max(float(weights.max(initial=0)), TINY), colour_map(options.colormap))
        drawn.append((name, f"{share[step]:.1%} on the picture", heat))
    change = both[1] - both[0]
    end = max(float(np.abs(change).max(initial=0)), TINY)
    panel, heat = Image.fromarray(layout.picture), painted(layout, *two_sided_colours(change / end))
    panel.paste(heat, (0, layout.cell_rows.start), heat)
    return [*drawn, ("difference", f"up to {end:.2%}", panel)]


def _fact(row: dict, names: tuple[str, str]) -> str:
    """A phase's figures in words."""
    return (
        f"{row['phase']}, {row['steps']} steps: {row['image_share_a']:.1%} of the attention on the pictures in "
        f"{names[0]}, {row['image_share_b']:.1%} in {names[1]}; the maps lie {row['distance']:.2f} apart"
    )
