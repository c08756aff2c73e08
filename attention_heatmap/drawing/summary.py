"""Pictures of many small maps: of a whole answer, of all planes, of what changed between two records."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from attention_heatmap.compare import Comparison
from attention_heatmap.drawing.colour import MUTED, PAPER, colour_bar, colour_map, text_colours
from attention_heatmap.drawing.fonts import FONT_LABEL, FONT_TEXT, FONT_TITLE, FontSet, cut_to, wrapped
from attention_heatmap.drawing.image_panel import ImageLayout, cell_colours, put_heat, two_sided_colours
from attention_heatmap.drawing.layout import MARGIN, Sheet
from attention_heatmap.drawing.legend import NOTES, amount_text, difference_note, map_notes, plane_title
from attention_heatmap.drawing.options import DEFAULT_FRAME_SIZE, DrawingOptions
from attention_heatmap.drawing.pen import AnyPen, Pen, VectorPen, draw_lines
from attention_heatmap.drawing.text import BREAK_ANYWHERE, LETTERS, text_pieces
from attention_heatmap.drawing.text_layout import TextLayout, layout_text
from attention_heatmap.drawing.text_panel import put_text
from attention_heatmap.maps import BASELINES, TINY, ShownRows, cell_weights, image_shares, shown_rows
from attention_heatmap.phases import response_ends, response_phases, steps_of
from attention_heatmap.record import AttentionRecord, Head

_SUMMARY_COLUMNS = 4  # maps side by side, in two rows
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


def _summary_maps(
    record: AttentionRecord, plane: int, shown: ShownRows, options: DrawingOptions
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(title, fact, (cells,) mean weights) of each map of the summary: the phases, then single words."""
    cells_TN, shares_T = cell_weights(record, shown.rows, shown.sinks), image_shares(record, plane)
    spans = [(f"{p.name}: mean of {p.last - p.first} steps", p.first, p.last) for p in response_phases(record)]
    words = words_that_looked(record, plane, 2 * _SUMMARY_COLUMNS - len(spans))
    spans += [(f"“{word}”, token {step + 1}", step, step + 1) for step, word in words]
    unit = f" {BASELINES[options.baseline][1]}" * (options.baseline != "off")
    for title, start, end in spans:
        cells = cells_TN[start:end].mean(axis=0)
        highest = amount_text(_highest(cells), options.baseline == "relative")
        share = f"{shares_T[start:end].mean():.1%} on the picture{'s' * (len(record.images) > 1)}"
        yield title, f"{share}, highest cell {highest}{unit}", cells


def _highest(cells: np.ndarray) -> float:
    return float(np.nan_to_num(cells).max(initial=0))


class _WideSheet(Sheet):
    """What a picture with an answer shares with a frame; its lengths follow the width alone."""

    def px(self, length: float) -> int:
        return max(round(length * self.width / DEFAULT_FRAME_SIZE[0]), 1)

    def answer(self, record: AttentionRecord, values_T: np.ndarray) -> tuple[TextLayout, np.ndarray]:
        """The answer laid out, and (pieces,) the highest value of each piece's tokens, 1 for the highest of all."""
        pieces, fonts = text_pieces(record, record.prompt_length), FontSet(self.px(FONT_TEXT), self.options.font_path)
        first = np.array([piece.start - record.prompt_length for piece in pieces])
        values = np.maximum.reduceat(values_T, first) / max(values_T.max(), TINY)
        return layout_text(pieces, fonts, self.right - self.left), values


def draw_summary(
    record: AttentionRecord, images: Sequence[Image.Image], plane: int, options: DrawingOptions | None = None,
    vectors: type[VectorPen] | None = None, name: str = "",
) -> Image.Image | VectorPen:  # fmt: skip
    """One picture of a whole response, as wide as a frame: its text, where its phases and some of its words looked.

    The text is coloured by the share of each token's attention that lies on the pictures. vectors: of SVG or PDF.
    name: of the record, where there are two.
    """
    sheet = _WideSheet(options or DrawingOptions())
    px, fonts, margin, width, options = sheet.px, sheet.label_fonts, sheet.left, sheet.width, sheet.options
    shares_T, shown = image_shares(record, plane), shown_rows(record, plane, *options.map)
    text, values = sheet.answer(record, shares_T)
    tile = (width - margin) // _SUMMARY_COLUMNS - margin
    most = tile * (3 if len(images) == 1 else 5) // 4  # several pictures stand above each other
    layout = ImageLayout(record, images, tile, most, fonts, shown.sinks, options.picture)
    notes = [*map_notes(record, plane, options, shown), "each map below goes up to its own highest cell"]
    notes = wrapped(notes, fonts, width - 2 * margin)
    names, facts, maps = zip(*_summary_maps(record, plane, shown, options))
    facts = [wrapped([fact], fonts, tile) for fact in facts]
    y_heat = px(60) + (max(map(len, facts)) - 1) * px(NOTES)
    tile_height = layout.picture.shape[0] + y_heat + px(40)
    y_text = margin + px(100) + len(notes) * px(NOTES)
    y_maps = y_text + px(40) + len(text.ink)
    size = width, y_maps + -(-len(maps) // _SUMMARY_COLUMNS) * tile_height
    canvas = Image.new("RGB", size, PAPER)
    pen: AnyPen = vectors(*size) if vectors else Pen(canvas)

    title = f"{name}: " * bool(name) + plane_title(record, plane)
    pen.text((margin, margin + px(30)), cut_to(title, sheet.title_fonts, width - 2 * margin), sheet.title_fonts)
    caption = f"each token coloured by its attention on the picture{'s' * (len(images) > 1)}: 0% "
    x = round(pen.text((margin, margin + px(74)), caption, fonts))
    shades = text_colours(np.linspace(0, 1, px(220)), sheet.colormap, options.text_style)[options.text_style == "glyph"]
    pen.picture(colour_bar(shades, px(20)), (x, margin + px(58)))
    pen.text((x + px(230), margin + px(74)), f"{shares_T.max():.1%}", fonts)
    draw_lines(pen, notes, (margin, margin + px(74 + NOTES)), px(NOTES), fonts)
    put_text(pen, (margin, y_text), text, values, None, len(text.ink), sheet.colormap, options.text_style, 1)
    for number, cells in enumerate(maps):
        row, column = divmod(number, _SUMMARY_COLUMNS)
        x, y = margin + column * (tile + margin), y_maps + row * tile_height
        pen.text((x, y + px(22)), cut_to(names[number], fonts, tile), fonts)
        draw_lines(pen, facts[number], (x, y + px(48)), px(NOTES), fonts, MUTED)
        put_heat(pen, (x, y + y_heat), layout, *cell_colours(cells, _highest(cells), options, sheet.colormap))
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
    layout = ImageLayout(record, images, width, round(width * _TALLEST), fonts, None, options.picture)
    height, line = layout.picture.shape[0], round(fonts.size * 1.4)
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
    shown = (shown_rows(record, plane, *options.map) for plane in range(len(record.layers)))
    maps = [cell_weights(record, one.rows[steps], one.sinks).mean(axis=0) for one in shown]
    ends = [max(map(_highest, maps))] * len(maps) if one_scale else list(map(_highest, maps))
    for plane, (cells, end) in enumerate(zip(maps, ends)):
        row, column = layers.index(record.layers[plane]), heads.index(record.heads[plane])
        x, y = left + column * pitch_x, top + row * pitch_y
        put_heat(pen, (x, y), layout, *cell_colours(cells, end, options, colour_map(options.colormap)))
        pen.text((x, y + height + line - 8), f"{image_shares(record, plane)[steps].mean():.1%}", fonts)
        if record.layers.index(record.layers[plane]) == plane:
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

    names: what the two records are called. The third map of each token is the difference of the two.
    """
    sheet, record = _WideSheet(options or DrawingOptions()), comparison.common_record(0)
    px, fonts, margin, options = sheet.px, sheet.label_fonts, sheet.left, sheet.options
    line, gap, inside = px(NOTES), px(_MAPS_APART), sheet.right - margin
    text, values = sheet.answer(record, comparison.distances)
    title = wrapped([f"{names[0]} and {names[1]}: {record.plane_name(0)}"], sheet.title_fonts, inside)
    highest = f"{comparison.distances.max():.2f}"
    notes = [f"each token coloured by how far its two maps lie apart (Jensen-Shannon distance): from 0 to {highest}"]
    notes = wrapped([*notes, difference_note(names), *_phase_facts(comparison, names)], fonts, inside)
    changed = [one for one in comparison.most_changed(_MOST_CHANGED) if one[2] > 0]
    tile = (inside - 5 * gap - margin) // 6
    most = tile * (3 if len(images) == 1 else 8) // 4
    layout = ImageLayout(record, images, tile, most, fonts, None, options.picture)
    y_notes = margin + px(70) + (len(title) - 1) * px(_TITLES)
    y_text = y_notes + px(2) + len(notes) * line
    y_maps, row = y_text + len(text.ink) + margin, layout.picture.shape[0] + 3 * line + margin
    canvas = Image.new("RGB", (sheet.width, y_maps + -(-len(changed) // 2) * row), PAPER)
    pen = Pen(canvas)
    draw_lines(pen, title, (margin, margin + px(30)), px(_TITLES), sheet.title_fonts)
    draw_lines(pen, notes, (margin, y_notes), line, fonts)
    put_text(pen, (margin, y_text), text, values, None, len(text.ink), sheet.colormap, options.text_style, 1)
    for number, (step, token, distance) in enumerate(changed):
        x, y = margin + (number % 2) * (3 * (tile + gap) + margin), y_maps + (number // 2) * row
        what = f"token {step + 1} “{token.strip()}”, distance {distance:.2f}"
        pen.text((x, y + line // 2), cut_to(what, fonts, 3 * tile), fonts)
        for place, (name, fact, colours) in enumerate(_maps(comparison, step, names, sheet)):
            at = x + place * (tile + gap), y + 3 * line
            said = [cut_to(words, fonts, tile) for words in (name, fact)]
            draw_lines(pen, said, (at[0], at[1] - line - px(8)), line, fonts, MUTED)
            put_heat(pen, at, layout, *colours)
    return canvas


def _maps(
    comparison: Comparison, step: int, names: tuple[str, str], sheet: Sheet
) -> list[tuple[str, str, tuple[np.ndarray, np.ndarray]]]:
    """(name, fact, colours of the cells) of both maps of a step, each to its highest cell, and of their difference."""
    plain, both = DrawingOptions(), [weights[step] for weights in comparison.weights]
    one, other = both
    tints = [cell_colours(weights, _highest(weights), plain, sheet.colormap) for weights in both]
    pictures = f"picture{'s' * (len(comparison.cells) > 1)}"
    facts = [f"{share[step]:.1%} on the {pictures}" for share in comparison.shares]
    end = _highest(np.abs(other - one))
    change = two_sided_colours(other - one, end)
    return list(zip((*names, "difference"), (*facts, f"up to {end:.2%}"), (*tints, change)))


def _phase_facts(comparison: Comparison, names: tuple[str, str]) -> list[str]:
    return [
        f"{row['phase']}, {row['steps']} steps: {row['image_share_a']:.1%} of the attention on the pictures in "
        f"{names[0]}, {row['image_share_b']:.1%} in {names[1]}; the maps lie {row['distance']:.2f} apart"
        for row in comparison.phases()
    ]
