"""The files that are drawn of a record: videos, single frames, summaries."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from attention_heatmap.compare import compare
from attention_heatmap.drawing.figure import VECTOR_PENS, save_picture, write_figure
from attention_heatmap.drawing.frame import FrameRenderer, comparison_maps, planes_together
from attention_heatmap.drawing.options import PAGE, STILLS, VIDEOS, DrawingOptions
from attention_heatmap.drawing.page import write_page
from attention_heatmap.drawing.summary import draw_changes, draw_overview, draw_summary
from attention_heatmap.drawing.video import write_video
from attention_heatmap.log import logger
from attention_heatmap.record import AttentionRecord

STEM = "combined_attention_visualization"  # what the names of all files begin with


def _films(
    records: Sequence[AttentionRecord], planes: Sequence[int], options: DrawingOptions
) -> dict[str, Sequence[int]]:
    """What the names of the files of each film begin with, and the planes that it shows."""
    if len(records) == 1 and options.together != "off" and len(planes) > 1:
        return {f"{STEM}_together": planes}
    end = "_comparison" * (len(records) > 1)
    return {f"{STEM}_{records[0].plane_key(plane)}{end}": [plane] for plane in planes}


def _film_names(stem: str, stills: Sequence[int], options: DrawingOptions) -> list[str]:
    """The names of a film's files: of the stills of some steps, of the summary and, last, of the video."""
    kind = options.format if options.format in STILLS else "png"
    wants_summary = options.summary or (options.format in STILLS and not options.frames)
    pictures = [*(f"token{step + 1}" for step in stills), *["summary"] * wants_summary]
    video = [f"{stem}.{options.format}"] * (options.format in VIDEOS)
    return [*(f"{stem}_{name}.{kind}" for name in pictures), *video]


def file_names(records: Sequence[AttentionRecord], options: DrawingOptions) -> list[str]:
    """The names of the page, or of the films' files, that another process makes of all planes, as far as known."""
    if options.format == PAGE:
        return [f"{STEM}.html"]
    stills, _ = _stills(records[0], 0, options.frames)
    films = _films(records, range(len(records[0].layers)), options)
    return [name for stem in films for name in _film_names(stem, stills, options)]


def _stills(record: AttentionRecord, first_step: int, frames: Sequence[int | str]) -> tuple[list[int], list[int]]:
    """The steps, from 0, among the tokens' numbers in `frames` that have a frame, and the numbers that have none."""
    T = record.response_length
    numbers = [n for one in frames for n in (range(first_step + 1, T + 1) if one == "all" else [one])]
    steps = [number - 1 if number > 0 else number + T for number in numbers]
    none = [number for number, step in zip(numbers, steps) if not first_step <= step < T]
    return list(dict.fromkeys(step for step in steps if first_step <= step < T)), none


def write_records(
    records: Sequence[AttentionRecord], images: Sequence[Image.Image], planes: Sequence[int] | None, start_phrase: str,
    output_dir: str | Path, options: DrawingOptions,
) -> list[Path]:  # fmt: skip
    """Write all files of a record, or of two of the same tokens that are compared; their paths.

    planes: of the first record, None: all. Of each, or of all `together`, a video; beside it what `frames` and
    `summary` ask for, as `..._layer7_token52.png` and `..._layer7_summary.png`. Of a format that is no video they are
    all, in that format; without `frames` it is the summary. The format html is one page of all planes.
    """
    record, folder, names = records[0], Path(output_dir), tuple(one.model for one in records)
    if not all(names) or len(set(names)) < len(names):  # what two records are called
        names = "first", "second"
    planes = range(len(record.layers)) if planes is None else planes
    paths: list[Path] = []
    overview = None if options.overview is None else draw_overview(record, images, options.overview, options)
    folder.mkdir(parents=True, exist_ok=True)  # after it, since a word may not be there
    if overview:
        paths.append(folder / f"{STEM}_overview.png")
        save_picture(overview, paths[-1])
    if options.format == PAGE:
        page = folder / f"{STEM}.html"
        paths.append(write_page(records, page, start_phrase, options, images=images, names=names, plane=planes[0]))
    two = {n: compare(*records, record.layers[n], record.heads[n]) for n in planes} if len(records) > 1 else {}
    if two and (steps := two[planes[0]].steps) < max(one.response_length for one in records):
        logger.warning("the two answers part at token %d: the tokens up to it are compared", steps)
    for stem, shown in _films(records, planes, options).items():
        own, plane, together = record, shown[0], None
        if two:
            own, _ = common = [two[plane].common_record(which) for which in (0, 1)]
            plane, together = 0, comparison_maps(common, names, options)
        elif len(shown) > 1:
            together = planes_together(record, shown, options)
        renderer = FrameRenderer(own, images, plane, start_phrase, options, together)
        paths += _write_film(renderer, images, folder / stem)
    for plane, comparison in two.items():
        paths.append(folder / f"{STEM}_{record.plane_key(plane)}_changes.png")
        save_picture(draw_changes(comparison, images, names, options), paths[-1])
    return paths


def _write_film(renderer: FrameRenderer, images: Sequence[Image.Image], stem: Path) -> list[Path]:
    """The pictures and the video of a film, with a progress bar; their paths, the video last."""
    from tqdm import tqdm

    record, options = renderer.record, renderer.options
    steps = range(renderer.first_step, record.response_length)
    stills, none = _stills(record, steps.start, options.frames)
    if none:
        ends = steps.start + 1, steps.stop
        logger.warning("frames: there is no token %s; the frames are of tokens %d to %d", none, *ends)
    paths = [stem.with_name(name) for name in _film_names(stem.name, stills, options)]
    for step, path in zip(stills, paths):
        write_figure(renderer, step, path)
    for path in paths[len(stills) :]:
        if path.suffix[1:] in VIDEOS:
            with tqdm(steps, desc=f"writing {renderer.title}", unit="frame", leave=None) as bar:
                write_video(map(renderer.draw, bar), path, options.fps)
        else:
            save_picture(draw_summary(record, images, renderer.plane, options, VECTOR_PENS.get(path.suffix)), path)
    if not paths and options.format in STILLS:
        raise ValueError(f"there is no token {none} to write; give frames from {steps.start + 1} to {steps.stop}")
    return paths
