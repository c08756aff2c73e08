"""The legend of a frame: whose attention, colour bars, shares, time line, notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageDraw

from attention_heatmap.drawing.colour import (
    CELL_ALPHA,
    COLORMAPS,
    CURRENT_TOKEN,
    INK,
    TEXT_ALPHA,
    blend,
    colour_bar,
    text_colours,
    tinted,
)
from attention_heatmap.drawing.fonts import FontSet, draw_runs
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.maps import (
    BASELINES,
    FEWEST_SINK_STEPS,
    SINKS_LEFT_OUT,
    TINY,
    ShownRows,
    attention_shares,
    view_names,
)
from attention_heatmap.phases import response_phases
from attention_heatmap.record import AttentionRecord

PHASE_COLOURS = {"think": (226, 222, 240), "answer": (214, 233, 226), "response": (230, 232, 236)}
COMING_ALPHA = 0.3  # opacity of that part of the time line which the video has not reached
# Lengths in pixels of a frame 1080 high; every one grows and shrinks with the frame.
BARS, SHARES, CURVE, PHASES = 44, 96, 46, 26  # heights of the parts of the footer, from the top down
FOOTER_END = 16
FOOTER = 16 + BARS + SHARES + CURVE + PHASES + FOOTER_END
NOTES = 28  # height of a line of notes, below the phases
SHARE_COLOURS = ((37, 122, 138), (112, 84, 158), (161, 98, 40), (70, 112, 62))  # pictures, in turn, then paler
PALER = 0.6  # what is left of a share's colour with each turn
# What a share is called, and its colour.
OTHER_SHARES = {
    "problem": ("problem", (120, 128, 140)), "response": ("response", (30, 92, 214)),
    "first": ("first token (sink)", (200, 204, 210)),
}  # fmt: skip
MOST_HEADS_NAMED = 4  # in the heading; more are named below the time line


def plane_title(record: AttentionRecord, plane: int) -> str:
    """Whose attention is shown."""
    layers, head = f" of 0-{record.num_layers - 1}" if record.num_layers else "", record.heads[plane]
    heads = record.plane_name(plane).partition(", ")[2] + " (auto)" * record.auto_head
    if isinstance(head, tuple) and len(head) > MOST_HEADS_NAMED:  # `map_notes` names them
        heads = f"mean of {len(head)} heads"
    return f"layer {record.layers[plane]}{' (auto)' * record.auto_layer}{layers}, {heads}"


def map_notes(record: AttentionRecord, plane: int, options: DrawingOptions, shown: ShownRows) -> list[str]:
    """What a reader must know of a map that is not the plain one, and what its check said."""
    view = view_names(*options.map)
    notes = [f"map: {view}"] if view else []
    if options.sinks:
        cells = int(shown.sinks[record.image_positions].sum())
        words = int(shown.sinks.sum()) - cells
        found = [f"{cells} hatched with {shown.left_out:.1%} of the attention on the pictures"] if cells else []
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


def amount_text(weight: float, relative: bool) -> str:
    """A weight in the unit of its map."""
    return f"{weight:.3g} times" if relative else f"{weight:.2%}"


@dataclass(frozen=True)
class KeyEntry:
    """A share as the legend shows it."""

    name: str
    colour: tuple[int, ...]
    weights: np.ndarray
    """(T,) float, the share at each step, 0..1."""


def key_entries(record: AttentionRecord, plane: int) -> list[KeyEntry]:
    """The shares of a plane with the names and colours of the legend, pictures first."""
    entries, several = [], len(record.images) > 1
    for number, share in enumerate(attention_shares(record, plane)):
        name, colour = OTHER_SHARES.get(share.kind, (f"image {number + 1}" if several else "image", None))
        entries.append(KeyEntry(name, colour or picture_colour(number), share.weights))
    return entries


def picture_colour(number: int) -> tuple[int, ...]:
    """The colour of a picture's share, from 0."""
    turn, place = divmod(number, len(SHARE_COLOURS))
    return tuple(round(blend(255, channel, PALER**turn)) for channel in SHARE_COLOURS[place])


@dataclass(frozen=True)
class Place:
    """Where the legend stands."""

    left: int
    right: int
    """Pixels from the frame's left."""
    top: int
    """Pixels from the frame's top."""
    second_bar: int
    """Where the colour bar of the pictures begins."""
    px: Callable[[float], int]
    """Pixels of a length that is given for a frame of the default size."""


class Legend:
    """The footer of all frames of a video: what no step changes is drawn once, the rest for each step."""

    def __init__(
        self, record: AttentionRecord, plane: int, first_step: int, place: Place, fonts: FontSet,
        options: DrawingOptions,
    ) -> None:  # fmt: skip
        self.record, self.first_step, self.fonts, self.text_style = record, first_step, fonts, options.text_style
        self.left, self.right, self.top, self.second_bar, self.px = (getattr(place, f.name) for f in fields(place))
        self.colormap = COLORMAPS.get(options.colormap, options.colormap)
        self.unit = BASELINES[options.baseline][1], options.baseline == "relative"
        self.shares = key_entries(record, plane)
        self.share_base = self.top + self.px(BARS) + self.px(50)
        self.share_numbers: list[tuple[KeyEntry, float]] = []
        self.timeline_y = self.top + self.px(BARS) + self.px(SHARES)
        self.timeline = self._timeline()

    def draw_fixed(self, canvas: Image.Image) -> None:
        """What no step changes."""
        self._draw_share_names(canvas)
        pale, high = np.asarray(self.timeline).astype(float), self.px(CURVE)
        pale[:high] = blend(255, pale[:high], COMING_ALPHA)
        canvas.paste(Image.fromarray(pale.round().astype(np.uint8)), (self.left, self.timeline_y))
        caption = (
            f"attention on the picture{'s' * (len(self.record.images) > 1)} at each step, up to {self._highest():.1%}"
        )
        draw_runs(ImageDraw.Draw(canvas), (self.left, self.timeline_y - self.px(10)), caption, self.fonts, INK)

    def draw_step(self, canvas: Image.Image, step: int) -> None:
        """The shares of a step, and where it stands on the time line."""
        draw = ImageDraw.Draw(canvas)
        self._draw_shares(draw, step)
        self._draw_place(canvas, draw, step)

    def draw_bars(self, canvas: Image.Image, text_end: float, cell_end: float | None) -> None:
        """The colour bars of the text and of the pictures, each with its two numbers, tinted as they are on white.

        cell_end: the weight at the end of the pictures' scale; None where no cell has any.
        """
        px, fonts, draw, y, width = self.px, self.fonts, ImageDraw.Draw(canvas), self.top, self.px(220)
        text = (self.left, "a token", text_end, TEXT_ALPHA, (BASELINES["off"][1], False))
        for x, name, highest, alpha, unit in (text, (self.second_bar, "a cell", cell_end, CELL_ALPHA, self.unit)):
            low = "0" if unit[1] else "0%"
            left = round(draw_runs(draw, (x, y + px(18)), f"{name}   {low}", fonts, INK)) + px(10)
            weights = np.linspace(0, 1, width)
            shades = tinted(weights, self.colormap, alpha)
            if alpha == TEXT_ALPHA:
                shades = text_colours(weights, self.colormap, self.text_style)[self.text_style == "glyph"]
            canvas.paste(colour_bar(shades, px(20)), (left, y))
            amount = "nothing" if highest is None else f"{amount_text(highest, unit[1])} or more"
            end = f"{amount} {unit[0]}"
            draw_runs(draw, (left + width + px(10), y + px(18)), end, fonts, INK)

    def _draw_share_names(self, canvas: Image.Image) -> None:
        """The key below the bar of shares; where the number of each belongs is kept for `_draw_shares`.

        Where there is no room for all pictures, the last ones are left out.
        """
        px, fonts, draw, x = self.px, self.fonts, ImageDraw.Draw(canvas), float(self.left)
        gap, count = px(36), len(self.record.images)
        widths = [px(24) + fonts.width(f"{share.name} 100.0%") + gap for share in self.shares]
        kept, others = count, sum(widths[count:]) + fonts.width("…")
        while kept > 1 and x + sum(widths[:kept]) + others > self.right:
            kept -= 1
        for number, (share, width) in enumerate(zip(self.shares, widths)):
            if kept <= number < count:
                continue
            if kept < number == count:
                x = draw_runs(draw, (x, self.share_base), "…", fonts, INK) + gap
            if x + width - gap > self.right:
                break
            draw.rectangle([x, self.share_base - px(16), x + px(16), self.share_base], fill=share.colour)
            end = draw_runs(draw, (x + px(24), self.share_base), f"{share.name} ", fonts, INK)
            self.share_numbers.append((share, end))
            x = round(x + width)

    def _draw_shares(self, draw: ImageDraw.ImageDraw, step: int) -> None:
        """One bar over the width of the frame: where this step's attention lies, with the numbers of the key below."""
        top, x = self.top + self.px(BARS), float(self.left)
        for share in self.shares:
            end = x + float(share.weights[step]) * (self.right - self.left)
            if round(end) > round(x):
                box = [round(x), top, min(round(end), self.right) - 1, top + self.px(20)]
                draw.rectangle(box, fill=share.colour)
            x = end
        for share, x in self.share_numbers:
            draw_runs(draw, (x, self.share_base), f"{share.weights[step]:.1%}", self.fonts, INK)

    def _column(self, step: int) -> int:
        """Where a step begins on the time line, in pixels from its left."""
        steps = self.record.response_length - self.first_step
        return (step - self.first_step) * (self.right - self.left) // steps

    def _totals(self) -> np.ndarray:
        """(pictures, steps) the shares of the pictures at each step that has a frame, one on the other."""
        shares = self.shares[: len(self.record.images)]
        return np.cumsum([share.weights[self.first_step :] for share in shares], axis=0)

    def _highest(self) -> float:
        """The share at the top of the time line."""
        return max(self._totals().max(initial=0), TINY)

    def _timeline(self) -> Image.Image:
        """The share of the pictures at each step, as bars over the phases."""
        px, steps = self.px, self.record.response_length - self.first_step
        totals, top = self._totals(), self._highest()
        width, high = self._column(self.record.response_length), px(CURVE)
        starts = np.array([self._column(self.first_step + n) for n in range(steps + 1)])
        step_X = np.searchsorted(starts, np.arange(width), side="right") - 1
        band = np.full((high + px(PHASES), width, 3), 255, np.uint8)
        height_Y = np.arange(high, 0, -1)[:, None]
        for share, total in reversed(list(zip(self.shares, totals))):
            band[:high][height_Y <= np.round(total / top * high)[step_X]] = share.colour
        if width >= 4 * steps:
            band[:high, starts[:-1]] = 255
        timeline = Image.fromarray(band)
        draw = ImageDraw.Draw(timeline)
        for phase in (phase for phase in response_phases(self.record) if phase.last > self.first_step):
            left, right = self._column(max(phase.first, self.first_step)), self._column(phase.last)
            draw.rectangle([left, high, right - 1, band.shape[0]], fill=PHASE_COLOURS[phase.name])
            if self.fonts.width(phase.name) + px(12) < right - left:
                draw_runs(draw, (left + px(8), high + px(19)), phase.name, self.fonts, INK)
        return timeline

    def _draw_place(self, canvas: Image.Image, draw: ImageDraw.ImageDraw, step: int) -> None:
        """The time line up to this step, and where the step stands on it."""
        px, y, left, right = self.px, self.timeline_y, self._column(step), self._column(step + 1)
        canvas.paste(self.timeline.crop((0, 0, right, self.timeline.height)), (self.left, y))
        left = min(self.left + left, self.right - px(4))
        right = max(self.left + right, left + px(4)) - 1
        # Round the bar alone: below it stand the names of the phases.
        draw.rectangle([left, y - px(4), right, y + px(CURVE) - 1], outline=CURRENT_TOKEN, width=px(3))
