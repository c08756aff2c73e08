"""The legend of a frame: whose attention, colour bars, shares, time line, notes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from attention_heatmap.drawing import colour
from attention_heatmap.drawing.colour import CELL_ALPHA, CURRENT_TOKEN, LOG_DECADES, MUTED, PAPER, blend
from attention_heatmap.drawing.layout import Sheet
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.pen import AnyPen, Pen
from attention_heatmap.maps import BASELINES, FEWEST_SINK_STEPS, SINKS_LEFT_OUT, ShownRows, attention_shares, view_names
from attention_heatmap.phases import response_phases
from attention_heatmap.record import AttentionRecord

PHASE_COLOURS = {"think": (226, 222, 240), "answer": (214, 233, 226), "response": (230, 232, 236)}
_COMING_ALPHA = 0.3  # opacity of that part of the time line which the video has not reached
# Lengths in pixels of a frame 1080 high; every one grows and shrinks with the frame.
# Heights of the parts of the footer, from the top down: colour bars, shares, curve, phases (without names if small).
_PARTS, _SMALL_PARTS = (46, 92, 46, 26), (34, 50, 30)
FOOTER_END = 16
NOTES = 28  # height of a line of notes, below the phases
_BAR_WIDTH, _LEAST_BAR = 220, 60  # of a colour bar; where there is little room, down to the second
SHARE_COLOURS = ((37, 122, 138), (112, 84, 158), (161, 98, 40), (70, 112, 62))  # pictures, in turn, then paler
_PALER = 0.6  # what is left of a share's colour with each turn
# What a share is called, and its colour.
_OTHER_SHARES = {
    "problem": ("problem", (120, 128, 140)), "response": ("response", (30, 92, 214)),
    "first": ("first token (sink)", (200, 204, 210)),
}  # fmt: skip
MOST_HEADS_NAMED = 4  # in the heading; more are named below the time line


def plane_title(record: AttentionRecord, plane: int) -> str:
    """Whose attention is shown."""
    layer, last, head = record.layers[plane], (record.num_layers or 0) - 1, record.heads[plane]
    place = {0: "the first", last: "the last"}.get(layer, f"the last is {last}") if record.num_layers else ""
    known = ", ".join(filter(None, (place, "chosen by auto" * record.auto_layer)))
    heads = record.plane_name(plane).partition(", ")[2] + " (chosen by auto)" * record.auto_head
    if isinstance(head, tuple) and len(head) > MOST_HEADS_NAMED:  # `map_notes` names them
        heads = f"mean of {len(head)} heads"
    return f"attention in layer {layer}{f' ({known})' * bool(known)}, {heads}"


def map_notes(record: AttentionRecord, plane: int, options: DrawingOptions, shown: ShownRows) -> list[str]:
    """What a reader must know of a map that is not the plain one, and what its check said."""
    view = view_names(*options.map)
    notes = [f"map: {view}"] if view else []
    if options.sinks:
        cells = int(shown.sinks[record.image_positions].sum())
        words = int(shown.sinks.sum()) - cells
        pictures = f"picture{'s' * (len(record.images) > 1)}"
        found = (
            [f"{cells} hatched, on average {shown.left_out:.1%} of the attention on the {pictures}"] if cells else []
        )
        found += [f"{words} in the prompt's text"] if words else []
        none = "none found" if record.response_length >= FEWEST_SINK_STEPS else "too short an answer to tell"
        notes[0] = notes[0].replace(SINKS_LEFT_OUT, f"{SINKS_LEFT_OUT} ({' and '.join(found) or none})")
    for check in (check for check in record.checks if check.plane == plane):
        other = "" if check.view == view else f" of the map {check.view or 'as the model computed it'}"
        notes.append(f"check{other}: {check}")
    head = record.heads[plane]
    if isinstance(head, tuple) and len(head) > MOST_HEADS_NAMED:
        notes.append(f"heads: {', '.join(map(str, head))}")
    return notes


def difference_note(names: Sequence[str]) -> str:
    """What the colours of a difference mean."""
    return f"difference: green where {names[1]} looks more, purple where {names[0]} does"


def amount_text(weight: float, relative: bool) -> str:
    """A weight in the unit of its map."""
    if relative:
        return f"{weight:.3g} times"
    small = 0 < weight < 0.00005  # which two digits would call 0.00%
    return f"{np.format_float_positional(100 * weight, 1, fractional=False)}%" if small else f"{weight:.2%}"


class KeyEntry(NamedTuple):
    """A share as the legend shows it."""

    name: str
    colour: tuple[int, ...]
    weights: np.ndarray  # (T,) float, the share at each step, 0..1


def key_entries(record: AttentionRecord, plane: int) -> list[KeyEntry]:
    """The shares of a plane with the names and colours of the legend, pictures first."""
    entries, several = [], len(record.images) > 1
    for number, (kind, weights) in enumerate(attention_shares(record, plane)):
        if kind == "image":
            turn, place = divmod(number, len(SHARE_COLOURS))
            name = f"image {number + 1}" if several else "image"
            shade = tuple(round(blend(255, channel, _PALER**turn)) for channel in SHARE_COLOURS[place])
        else:
            name, shade = _OTHER_SHARES[kind]
        entries.append(KeyEntry(name, shade, weights))
    return entries


def footer_height(sheet: Sheet) -> int:
    """Pixels that the legend takes, without notes."""
    return sum(map(sheet.px, (*(_SMALL_PARTS if sheet.small else _PARTS), FOOTER_END)))


def draw_scale(
    pen: AnyPen, at: tuple[int, int], end: int, high: float | str | None, strength: float, sheet: Sheet, steps: int,
    own: str = "", of_text: bool = False,
) -> None:  # fmt: skip
    """The colour bar of the cells, or of the text, tinted as on white, and what its ends are, from a point to an x.

    high: the weight at the high end, words in its place, or None where there is none. steps: colours of the bar; own:
    whose scale it is. Where there is little room the bar is shorter, then the words go.
    """
    px, fonts, options = sheet.px, sheet.label_fonts, sheet.options
    values, relative = np.linspace(0, 1, steps) ** options.power, options.baseline == "relative" and not of_text
    if of_text:
        name, unit = "a token", "of the attention"
        shades = colour.text_colours(values, sheet.colormap, options.text_style, strength)
        shades = shades[options.text_style == "glyph"]
    else:
        name, unit = "a cell", BASELINES[options.baseline][1]
        shades = colour.tinted(values, sheet.colormap, CELL_ALPHA, strength)
    low, last = f"{name}  {'0' if relative else '0%'}", high or "nothing"
    if isinstance(high, str) and options.scale == "log":
        low, last = name, f"{high}, log"
    if isinstance(high, float):
        last = f"{amount_text(high, relative)} or more"
        if options.scale == "log":
            low = f"{name}  {amount_text(high / 10**LOG_DECADES, relative)} or less"
    for words in [last] if isinstance(high, str) else [f"{last} {unit}{own}", last]:
        room = end - at[0] - fonts.width(low) - fonts.width(words) - 2 * px(10)
        if room >= px(_LEAST_BAR):
            break
    width = min(max(round(room), px(_LEAST_BAR) // 2), px(_BAR_WIDTH))
    x = round(pen.text(at, low, fonts)) + px(10)
    bar = colour.colour_bar(shades[np.linspace(0, steps - 1, width).astype(int)], px(20))
    pen.picture(bar, (x, at[1] - px(18)))
    pen.text((x + width + px(10), at[1]), words, fonts)


class Legend:
    """The footer of all frames of a video: what no step changes is drawn once, the rest for each step."""

    def __init__(
        self, record: AttentionRecord, plane: int, first_step: int, sheet: Sheet, top: int, second_bar: int
    ) -> None:
        """top: pixels from the frame's top; second_bar: where, from its left, the colour bar of the pictures begins."""
        self.record, self.first_step, self.sheet, self.shares = record, first_step, sheet, key_entries(record, plane)
        self.px, self.fonts, self.left, self.right = sheet.px, sheet.label_fonts, sheet.left, sheet.right
        self.top, self.second_bar = top, second_bar
        bars, shares, self.curve = map(self.px, (_SMALL_PARTS if sheet.small else _PARTS)[:3])
        self.share_top, self.share_high = top + bars, self.px(12 if sheet.small else 20)
        self.share_base, self.timeline_y = self.share_top + self.share_high + self.px(28), self.share_top + shares
        steps = record.response_length - first_step
        # Where each step begins on the time line, and where the last ends, in pixels from its left.
        self.columns = [n * (self.right - self.left) // steps for n in range(steps + 1)]
        # (pictures, steps) the shares of the pictures, one on the other.
        self.totals = np.cumsum([share.weights[first_step:] for share in self.shares[: len(record.images)]], axis=0)
        self.highest = self.totals.max(initial=0)
        self.timeline, self.names = self._timeline(), self._share_names()

    def draw_fixed(self, pen: AnyPen) -> None:
        """What no step changes: the key of the shares, and the time line, pale as where the video has not come yet."""
        for share, x in self.names:
            if share is None:
                pen.text((x, self.share_base), "…", self.fonts)
                continue
            side = self.px(16)
            pen.box((x, self.share_base - side, x + side, self.share_base), share.colour)
            pen.text((x + self.px(24), self.share_base), share.name, self.fonts)
        pale = np.asarray(self.timeline).astype(float)
        pale[: self.curve] = blend(255, pale[: self.curve], _COMING_ALPHA)
        pen.picture(Image.fromarray(pale.round().astype(np.uint8)), (self.left, self.timeline_y))
        if not self.sheet.small:
            several = "s" * (len(self.record.images) > 1)
            caption = f"attention on the picture{several}, token by token; at most {self.highest:.1%}"
            pen.text((self.left, self.timeline_y - self.px(10)), caption, self.fonts, MUTED)

    def draw_step(self, pen: AnyPen, step: int) -> None:
        """One bar of where this step's attention lies, its numbers in the key, and its place on the time line."""
        px, top, x, y = self.px, self.share_top, float(self.left), self.timeline_y
        for share in self.shares:
            end = x + float(share.weights[step]) * (self.right - self.left)
            pen.box((round(x), top, min(round(end), self.right), top + self.share_high), share.colour)
            x = end
        for share, x in self.names:
            if share is not None:
                at = x + px(24) + self.fonts.width(f"{share.name} "), self.share_base
                pen.text(at, f"{share.weights[step]:.1%}", self.fonts)
        left, right = self.columns[step - self.first_step : step - self.first_step + 2]
        pen.picture(self.timeline.crop((0, 0, right, self.timeline.height)), (self.left, y))
        left = min(self.left + left, self.right - px(4))
        right = max(self.left + right, left + px(4))
        # Round the bar alone: below it stand the names of the phases.
        pen.box((left, y - px(4), right, y + self.curve), outline=CURRENT_TOKEN, width=px(3))

    def draw_bars(
        self, pen: AnyPen, text_end: float, cell_end: float | str | None, strong: tuple[float, float]
    ) -> None:
        """The colour bars of the text and of the pictures, by the ends of their scales and how strong the tints are."""
        y, steps = self.top + self.px(20), self.px(_BAR_WIDTH)
        own = {"frame": " (this frame)", "video": " (all frames)", "log": ", log"}.get(self.sheet.options.scale, "")
        end = self.second_bar - self.px(20)
        draw_scale(pen, (self.left, y), end, text_end, strong[0], self.sheet, steps, own, of_text=True)
        draw_scale(pen, (self.second_bar, y), self.right, cell_end, strong[1], self.sheet, steps, own)

    def _share_names(self) -> list[tuple[KeyEntry | None, float]]:
        """(share, x) of the key below the bar of shares; None: "…", where there is no room for all pictures."""
        px, x, count, gap = self.px, float(self.left), len(self.record.images), self.px(36)
        widths = [px(24) + self.fonts.width(f"{share.name} 100.0%") + gap for share in self.shares]
        kept, dots = count, self.fonts.width("…")
        while kept > 1 and x + sum(widths[:kept]) + sum(widths[count:]) + dots > self.right:
            kept -= 1
        entries, placed = list(zip(self.shares, widths)), []
        entries[kept:count] = [(None, dots + gap)] * (kept < count)
        for share, width in entries:
            if share and x + width - gap > self.right:
                break
            placed.append((share, x))
            x = round(x + width) if share else x + width
        return placed

    def _timeline(self) -> Image.Image:
        """The share of the pictures at each step, as bars over the phases."""
        px, high, small, width = self.px, self.curve, self.sheet.small, self.columns[-1]
        timeline = Image.new("RGB", (width, high + (0 if small else px(_PARTS[3]))), PAPER)
        pen, gap = Pen(timeline), width >= 4 * (len(self.columns) - 1)
        for share, total in reversed(list(zip(self.shares, self.totals))):
            for (left, right), top in zip(pairwise(self.columns), np.round(total / (self.highest or 1) * high)):
                pen.box((left + gap, high - top, right, high), share.colour)
        for phase in (phase for phase in response_phases(self.record) if phase.last > self.first_step):
            left, right = (self.columns[max(step - self.first_step, 0)] for step in (phase.first, phase.last))
            pen.box((left, high, right, timeline.height), PHASE_COLOURS[phase.name])
            if not small and self.fonts.width(phase.name) + px(12) < right - left:
                pen.text((left + px(8), high + px(19)), phase.name, self.fonts)
        return timeline
