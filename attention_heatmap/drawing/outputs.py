"""The files that are drawn of a record: videos, single frames, summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attention_heatmap.compare import compare
from attention_heatmap.drawing.changes import draw_changes
from attention_heatmap.drawing.figure import save_picture, write_figure
from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.options import PAGE, STILLS, VIDEOS, DrawingOptions
from attention_heatmap.drawing.overview import draw_overview
from attention_heatmap.drawing.page import write_page
from attention_heatmap.drawing.summary import draw_summary
from attention_heatmap.drawing.together import ShownMap, comparison_maps, planes_together
from attention_heatmap.drawing.video import write_video
from attention_heatmap.log import logger
from attention_heatmap.record import AttentionRecord

STEM = "combined_attention_visualization"  # what the names of all files begin with


def plane_stem(record: AttentionRecord, plane: int) -> str:
    """The name, without a suffix, that the files of a plane begin with."""
    return f"{STEM}_{record.plane_key(plane)}"


def file_names(stem: str, stills: Sequence[str], options: DrawingOptions) -> list[str]:
    """The names of a film's files: of the stills, of the summary and, last, of the video, if there is one."""
    kind = options.format if options.format in STILLS else "png"
    wants = options.summary or (options.format in STILLS and not options.frames)
    pictures = [f"{stem}_{name}.{kind}" for name in [*stills, *["summary"] * wants]]
    return [*pictures, *[f"{stem}.{options.format}"] * (options.format in VIDEOS)]


def stills_of(record: AttentionRecord, first_step: int, frames: Sequence[int | str]) -> tuple[list[int], list[int]]:
    """The steps, from 0, among the tokens' numbers in `frames` that have a frame, and the numbers that have none."""
    T, steps, none = record.response_length, [], []
    for number in [n for one in frames for n in (range(first_step + 1, T + 1) if one == "all" else [one])]:
        step = number - 1 if number > 0 else number + T
        (steps if first_step <= step < T else none).append(step if first_step <= step < T else number)
    return list(dict.fromkeys(steps)), none


@dataclass(frozen=True)
class _Film:
    """What one video shows, or the pictures in place of it."""

    stem: str
    record: AttentionRecord
    plane: int
    together: tuple[str, list[ShownMap]] | None = None
    """A heading and several maps, in place of that of the plane."""


def _films(
    records: Sequence[AttentionRecord], planes: Sequence[int], options: DrawingOptions, draw: bool = True
) -> list[_Film]:
    """The videos of planes of one record, or of two of the same tokens beside each other.

    draw: False where the names alone are wanted.
    """
    record, found = records[0], []
    if len(records) > 1:
        for plane in planes:
            stem = f"{plane_stem(record, plane)}_comparison"
            comparison = compare(*records, record.layers[plane], record.heads[plane]) if draw else None
            if comparison is None:
                found.append(_Film(stem, record, plane))
                continue
            maps = comparison_maps(comparison, record_names(records), options.difference)
            found.append(_Film(stem, maps[1][0].record, 0, maps))
        return found
    if options.together != "off" and len(planes) > 1:
        return [_Film(f"{STEM}_together", record, planes[0], planes_together(record, planes))]
    return [_Film(plane_stem(record, plane), record, plane) for plane in planes]


def record_names(records: Sequence[AttentionRecord]) -> tuple[str, ...]:
    """What records that are compared are called: by their checkpoints, where those differ."""
    names = tuple(record.model for record in records)
    return names if all(names) and len(set(names)) == len(names) else ("first", "second")[: len(names)]


def write_records(
    records: Sequence[AttentionRecord], images: Sequence[Image.Image], planes: Sequence[int] | None, start_phrase: str,
    output_dir: str | Path, options: DrawingOptions,
) -> list[Path]:  # fmt: skip
    """Write all files of a record, or of two of the same tokens that are compared; their paths.

    planes: of the first record, None: all. Of each plane, or of all `together`,
    `combined_attention_visualization_layer{layer}.mp4`; what `frames` and `summary` ask for stands beside it:
    `..._layer7_token52.png`, `..._layer7_summary.png`. Of a format that is no video they are all, in that format;
    without `frames` it is the summary. The format html is one page of all planes.
    """
    planes, folder = range(len(records[0].layers)) if planes is None else planes, Path(output_dir)
    paths: list[Path] = []
    if options.overview is not None:
        picture = draw_overview(records[0], images, options.overview, options)  # first, since a word may not be there
        paths = [folder / f"{STEM}_overview.png"]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        save_picture(picture, paths[0])
    if options.format == PAGE:
        folder.mkdir(parents=True, exist_ok=True)
        names = record_names(records)
        page = folder / f"{STEM}.html"
        paths.append(write_page(records, page, start_phrase, options, images=images, names=names, plane=planes[0]))
    for film in _films(records, planes, options):
        paths += _write_film(film, images, start_phrase, folder, options)
    for plane in planes if len(records) > 1 else ():
        comparison = compare(*records, records[0].layers[plane], records[0].heads[plane])
        paths.append(folder / f"{plane_stem(records[0], plane)}_changes.png")
        save_picture(draw_changes(comparison, images, record_names(records), options), paths[-1])
    return paths


def _write_film(
    film: _Film, images: Sequence[Image.Image], start_phrase: str, folder: Path, options: DrawingOptions
) -> list[Path]:
    """The pictures and the video of a film, with a progress bar; their paths, the video last."""
    from tqdm import tqdm

    record, plane = film.record, film.plane
    renderer = FrameRenderer(record, images, plane, start_phrase, options, film.together)
    steps = range(renderer.first_step, record.response_length)
    stills, none = stills_of(record, renderer.first_step, options.frames)
    if none:
        ends = renderer.first_step + 1, record.response_length
        logger.warning("frames: there is no token %s; the frames are of tokens %d to %d", none, *ends)
    folder.mkdir(parents=True, exist_ok=True)
    names = file_names(film.stem, [f"token{step + 1}" for step in stills], options)
    for step, name in zip(stills, names):
        write_figure(renderer, step, folder / name)
    for name in names[len(stills) :]:
        if name.endswith(tuple(VIDEOS)):
            with tqdm(steps, desc=f"writing {renderer.maps[0].title}", unit="frame", leave=None) as bar:
                write_video(map(renderer.draw, bar), folder / name, options.fps)
        else:
            as_shapes = not name.endswith(".png")
            save_picture(draw_summary(record, images, plane, options, as_shapes), folder / name)
    if not names and options.format in STILLS:
        raise ValueError(f"there is no token {none} to write; give frames from {steps.start + 1} to {steps.stop}")
    return [folder / name for name in names]


def video_names(records: Sequence[AttentionRecord], planes: Sequence[int] | None, options: DrawingOptions) -> list[str]:
    """The names of the videos that `write_records` makes, of the page, or of the pictures in place of them."""
    planes = range(len(records[0].layers)) if planes is None else planes
    if options.format == PAGE:
        return [f"{STEM}.html"]
    found = []
    for film in _films(records, planes, options, draw=False):
        stills = [f"token{step + 1}" for step in stills_of(film.record, 0, options.frames)[0]]
        names = file_names(film.stem, stills, options)
        found += names[-1:] if options.format in VIDEOS else names
    return found
