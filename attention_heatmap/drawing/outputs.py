"""The files that are drawn of a record: videos, single frames, summaries."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from attention_heatmap.compare import compare
from attention_heatmap.drawing.figure import VECTOR_PENS, save_picture, write_figure
from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.options import PAGE, STILLS, VIDEOS, DrawingOptions
from attention_heatmap.drawing.page import write_page
from attention_heatmap.drawing.summary import draw_changes, draw_overview, draw_summary
from attention_heatmap.drawing.together import comparison_maps, planes_together
from attention_heatmap.drawing.video import write_video
from attention_heatmap.log import logger
from attention_heatmap.record import AttentionRecord

STEM = "combined_attention_visualization"  # what the names of all files begin with


def _stems(records: Sequence[AttentionRecord], planes: Sequence[int], options: DrawingOptions) -> dict[str, int]:
    """What the names of the files of each film begin with, and the plane that it shows, or the first of them."""
    if len(records) == 1 and options.together != "off" and len(planes) > 1:
        return {f"{STEM}_together": planes[0]}
    end = "_comparison" * (len(records) > 1)
    return {f"{STEM}_{records[0].plane_key(plane)}{end}": plane for plane in planes}


def _file_names(stem: str, stills: Sequence[int], options: DrawingOptions) -> list[str]:
    """The names of a film's files: of the stills of some steps, of the summary and, last, of the video."""
    kind = options.format if options.format in STILLS else "png"
    wants_summary = options.summary or (options.format in STILLS and not options.frames)
    pictures = [*(f"token{step + 1}" for step in stills), *["summary"] * wants_summary]
    video = [f"{stem}.{options.format}"] * (options.format in VIDEOS)
    return [*(f"{stem}_{name}.{kind}" for name in pictures), *video]


def _stills(record: AttentionRecord, first_step: int, frames: Sequence[int | str]) -> tuple[list[int], list[int]]:
    """The steps, from 0, among the tokens' numbers in `frames` that have a frame, and the numbers that have none."""
    T, steps, none = record.response_length, [], []
    for number in [n for one in frames for n in (range(first_step + 1, T + 1) if one == "all" else [one])]:
        step = number - 1 if number > 0 else number + T
        if first_step <= step < T:
            steps.append(step)
        else:
            none.append(number)
    return list(dict.fromkeys(steps)), none


def _record_names(records: Sequence[AttentionRecord]) -> tuple[str, ...]:
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
    record, folder, names = records[0], Path(output_dir), _record_names(records)
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
    for stem, plane in _stems(records, planes, options).items():
        if two:
            together = comparison_maps(two[plane], names, options.difference)
            renderer = FrameRenderer(together[1][0].record, images, 0, start_phrase, options, together)
        else:
            together = planes_together(record, planes) if options.together != "off" and len(planes) > 1 else None
            renderer = FrameRenderer(record, images, plane, start_phrase, options, together)
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
    paths = [stem.with_name(name) for name in _file_names(stem.name, stills, options)]
    for step, path in zip(stills, paths):
        write_figure(renderer, step, path)
    for path in paths[len(stills) :]:
        if path.suffix[1:] in VIDEOS:
            with tqdm(steps, desc=f"writing {renderer.maps[0].title}", unit="frame", leave=None) as bar:
                write_video(map(renderer.draw, bar), path, options.fps)
        else:
            save_picture(draw_summary(record, images, renderer.plane, options, VECTOR_PENS.get(path.suffix)), path)
    if not paths and options.format in STILLS:
        raise ValueError(f"there is no token {none} to write; give frames from {steps.start + 1} to {steps.stop}")
    return paths


def video_names(records: Sequence[AttentionRecord], options: DrawingOptions) -> list[str]:
    """The names of the videos, the page or the pictures that another process makes of all planes, as far as known."""
    if options.format == PAGE:
        return [f"{STEM}.html"]
    stems = _stems(records, range(len(records[0].layers)), options)
    stills = _stills(records[0], 0, options.frames)[0]
    names = [_file_names(stem, stills, options) for stem in stems]
    return [name for own in names for name in (own[-1:] if options.format in VIDEOS else own)]
