"""The files that are drawn of a record: videos, single frames, summaries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from attention_heatmap.drawing.figure import save_picture, write_figure
from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.options import STILLS, VIDEOS, DrawingOptions
from attention_heatmap.drawing.overview import draw_overview
from attention_heatmap.drawing.summary import draw_summary
from attention_heatmap.drawing.video import write_video
from attention_heatmap.log import logger
from attention_heatmap.record import AttentionRecord


def plane_stem(record: AttentionRecord, plane: int) -> str:
    """The name, without a suffix, that the files of a plane begin with."""
    return f"combined_attention_visualization_{record.plane_key(plane)}"


def file_names(record: AttentionRecord, plane: int, stills: Sequence[str], options: DrawingOptions) -> list[str]:
    """The names of a plane's files: of the stills, of the summary and, last, of the video, if there is one."""
    stem = plane_stem(record, plane)
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


def write_videos(
    record: AttentionRecord, images: Sequence[Image.Image], planes: Sequence[int], start_phrase: str,
    output_dir: str | Path, options: DrawingOptions,
) -> list[Path]:  # fmt: skip
    """Write `combined_attention_visualization_layer{layer}.mp4` for each plane, with a progress bar.

    What `frames` and `summary` ask for stands beside it: `..._layer7_token52.png`, `..._layer7_summary.png`. Of a
    format that is no video they are all, in that format; without `frames` it is the summary.
    Returns the paths of all files, of each plane the video last.
    """
    from tqdm import tqdm

    paths, folder = [], Path(output_dir)
    for plane in planes:
        renderer = FrameRenderer(record, images, plane, start_phrase, options)
        steps = range(renderer.first_step, record.response_length)
        stills, none = stills_of(record, renderer.first_step, options.frames)
        if none:
            ends = renderer.first_step + 1, record.response_length
            logger.warning("frames: there is no token %s; the frames are of tokens %d to %d", none, *ends)
        folder.mkdir(parents=True, exist_ok=True)
        names = file_names(record, plane, [f"token{step + 1}" for step in stills], options)
        for step, name in zip(stills, names):
            write_figure(renderer, step, folder / name)
        for name in names[len(stills) :]:
            if name.endswith(tuple(VIDEOS)):
                with tqdm(steps, desc=f"writing {record.plane_name(plane)}", unit="frame", leave=None) as bar:
                    write_video(map(renderer.draw, bar), folder / name, options.fps)
            else:
                as_shapes = not name.endswith(".png")
                save_picture(draw_summary(record, images, plane, options, as_shapes), folder / name)
        if not names:
            raise ValueError(f"there is no token {none} to write; give frames from {steps.start + 1} to {steps.stop}")
        paths += [folder / name for name in names]
    return paths


def write_records(
    records: Sequence[AttentionRecord], images: Sequence[Image.Image], planes: Sequence[int] | None, start_phrase: str,
    output_dir: str | Path, options: DrawingOptions,
) -> list[Path]:  # fmt: skip
    """The files of a record, or of two of the same tokens beside each other; planes: of the first, None: all."""
    planes = range(len(records[0].layers)) if planes is None else planes
    extra = []
    if options.overview is not None:
        picture = draw_overview(records[0], images, options.overview, options)  # first, since a word may not be there
        extra = [Path(output_dir) / "combined_attention_visualization_overview.png"]
        extra[0].parent.mkdir(parents=True, exist_ok=True)
        save_picture(picture, extra[0])
    return [*extra, *write_videos(records[0], images, planes, start_phrase, output_dir, options)]


def video_names(records: Sequence[AttentionRecord], planes: Sequence[int] | None, options: DrawingOptions) -> list[str]:
    """The names of the videos that `write_records` makes."""
    planes = range(len(records[0].layers)) if planes is None else planes
    return [file_names(records[0], plane, (), options)[-1] for plane in planes]
