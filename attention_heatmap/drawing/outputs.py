"""The files that are drawn of a record: videos, single frames, summaries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from PIL import Image

from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.overview import draw_overview
from attention_heatmap.drawing.summary import draw_summary
from attention_heatmap.drawing.video import write_video
from attention_heatmap.files import moved_into_place
from attention_heatmap.log import logger
from attention_heatmap.record import AttentionRecord


def plane_stem(record: AttentionRecord, plane: int) -> str:
    """The name, without a suffix, that the files of a plane begin with."""
    return f"combined_attention_visualization_{record.plane_key(plane)}"


def file_names(record: AttentionRecord, plane: int, stills: Sequence[str], options: DrawingOptions) -> list[str]:
    """The names of a plane's files: of the stills, of the summary and, last, of the video."""
    stem = plane_stem(record, plane)
    pictures = [f"{stem}_{name}.png" for name in [*stills, *["summary"] * options.summary]]
    return [*pictures, f"{stem}.{options.format}"]


def stills_of(record: AttentionRecord, first_step: int, frames: Sequence[int]) -> list[int]:
    """The steps among `frames`, negative ones from the end, that have a frame."""
    steps = [step + record.response_length if step < 0 else step for step in frames]
    return [step for step in steps if first_step <= step < record.response_length]


def write_videos(
    record: AttentionRecord, images: Sequence[Image.Image], planes: Sequence[int], start_phrase: str,
    output_dir: str | Path, options: DrawingOptions,
) -> list[Path]:  # fmt: skip
    """Write `combined_attention_visualization_layer{layer}.mp4` for each plane, with a progress bar.

    What `frames` and `summary` ask for stands beside it: `..._layer7_step51.png`, `..._layer7_summary.png`.
    Returns the paths of all files, of each plane the video last.
    """
    from tqdm import tqdm

    paths, folder = [], Path(output_dir)
    for plane in planes:
        renderer = FrameRenderer(record, images, plane, start_phrase, options)
        steps = range(renderer.first_step, record.response_length)
        stills = stills_of(record, renderer.first_step, options.frames)
        if len(stills) < len(options.frames):
            ends = renderer.first_step, record.response_length - 1
            logger.warning("not all of the frames %s are there, but those of steps %d..%d", list(options.frames), *ends)
        folder.mkdir(parents=True, exist_ok=True)
        *names, video = file_names(record, plane, [f"step{step}" for step in stills], options)
        pictures = (Image.fromarray(renderer.draw(step)) for step in stills)
        summary = (draw_summary(record, images, plane, options) for _ in range(options.summary))
        for name, picture in zip(names, chain(pictures, summary)):
            with moved_into_place(folder / name) as temporary:
                picture.save(temporary)
        with tqdm(steps, desc=f"writing {record.plane_name(plane)}", unit="frame", leave=None) as bar:
            write_video(map(renderer.draw, bar), folder / video, options.fps)
        paths += [folder / name for name in (*names, video)]
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
        with moved_into_place(extra[0]) as temporary:
            picture.save(temporary)
    return [*extra, *write_videos(records[0], images, planes, start_phrase, output_dir, options)]


def video_names(records: Sequence[AttentionRecord], planes: Sequence[int] | None, options: DrawingOptions) -> list[str]:
    """The names of the videos that `write_records` makes."""
    planes = range(len(records[0].layers)) if planes is None else planes
    return [file_names(records[0], plane, (), options)[-1] for plane in planes]
