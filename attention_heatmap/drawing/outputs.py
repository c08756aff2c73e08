"""The files that are drawn of a record: videos, single steps and summaries as pictures, the page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from attention_heatmap.compare import Comparison, compare
from attention_heatmap.drawing.colour import PAPER
from attention_heatmap.drawing.fonts import FONT_LABEL
from attention_heatmap.drawing.frame import FrameRenderer, comparison_maps, planes_together
from attention_heatmap.drawing.legend import draw_scale
from attention_heatmap.drawing.options import PAGE, STILLS, VIDEOS, DrawingOptions
from attention_heatmap.drawing.page import write_page
from attention_heatmap.drawing.pen import AnyPen, Pen, VectorPen
from attention_heatmap.drawing.summary import draw_changes, draw_overview, draw_summary
from attention_heatmap.drawing.vectors import VECTOR_PENS
from attention_heatmap.drawing.video import write_video
from attention_heatmap.files import moved_into_place
from attention_heatmap.log import logger, said_once
from attention_heatmap.record import AttentionRecord

STEM = "combined_attention_visualization"  # what the names of all files begin with
_SCALE_HEIGHT = 2.4  # of the room below a map for its scale, in heights of the font
_LEAST_MAP_WIDTH = 480  # pixels: room for what stands below a map alone, however narrow it is


@said_once()  # a start phrase that does not occur, say, and not once a video
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
    _say_what_changes_nothing(len(records), len(planes), options)
    # Before anything is written: one may lack a plane.
    compared = {n: compare(*records, record.layers[n], record.heads[n]) for n in planes} if len(records) > 1 else {}
    if compared and (steps := compared[planes[0]].steps) < max(one.response_length for one in records):
        logger.warning("the two answers part at token %d: the tokens up to it are compared", steps)
    paths: list[Path] = []
    overview = None if options.overview is None else draw_overview(record, images, options.overview, options)
    folder.mkdir(parents=True, exist_ok=True)  # after it, since a word may not be there
    if overview:
        paths.append(folder / f"{STEM}_overview.png")
        _save_picture(overview, paths[-1])
    if options.format == PAGE:
        page = folder / f"{STEM}.html"
        paths.append(write_page(records, page, start_phrase, options, images=images, names=names, plane=planes[0]))
    if len(records) == 1 and options.together != "off" and len(planes) > 1:
        together = planes_together(record, planes, options)
        paths += _write_film(record, images, planes[0], folder / f"{STEM}_together", start_phrase, options, together)
    for plane in planes:
        stem = folder / f"{STEM}_{record.plane_key(plane)}"
        if len(records) > 1:
            paths += _write_comparison(compared[plane], images, stem, names, start_phrase, options)
            continue
        if options.together == "off" or len(planes) == 1:
            paths += _write_film(record, images, plane, stem, start_phrase, options)
        paths += _write_summary(record, images, plane, stem, options)
    return paths


def _write_comparison(
    compared: Comparison, images: Sequence[Image.Image], stem: Path, names: Sequence[str], start_phrase: str,
    options: DrawingOptions,
) -> list[Path]:  # fmt: skip
    """The film, the summary and the changes of a plane of two records; their paths."""
    first, second = (compared.common_record(which) for which in (0, 1))
    film, together = stem.with_name(f"{stem.name}_comparison"), comparison_maps((first, second), names, options)
    paths = _write_film(first, images, 0, film, start_phrase, options, together)
    paths += _write_summary(first, images, 0, film, options, names[0])
    if options.format != PAGE:
        paths.append(stem.with_name(f"{stem.name}_changes.png"))
        _save_picture(draw_changes(compared, images, names, options), paths[-1])
    return paths


def _say_what_changes_nothing(records: int, planes: int, options: DrawingOptions) -> None:
    """Name the options that are of no use with so many records and planes, and what they need."""
    no_film = options.together != "off" and (planes == records == 1 or options.format == PAGE)
    together = no_film or (options.together == "own" and records > 1)
    for name, useless, needed in (
        ("difference", options.difference and records == 1, "two checkpoints or records"),
        ("together", together, "a video or pictures of several layers or heads of one record"),
        ("figure", options.figure != "frame" and not options.frames, "frames"),
    ):
        if useless:
            logger.warning("%s changes nothing here: it needs %s", name, needed)


def _write_film(
    record: AttentionRecord, images: Sequence[Image.Image], plane: int, stem: Path, start_phrase: str,
    options: DrawingOptions, together: tuple | None = None,
) -> list[Path]:  # fmt: skip
    """The pictures of single steps and the video of a plane, or of several maps, with a progress bar; their paths."""
    from tqdm import tqdm

    if not options.frames and options.format not in VIDEOS:
        return []
    renderer = FrameRenderer(record, images, plane, start_phrase, options, together)
    steps, kind = range(renderer.first_step, record.response_length), _picture_kind(options)
    stills, none = _stills(record, steps.start, options.frames)
    if none:
        told = f"frames: {none} have no frame; the frames are of tokens {steps.start + 1} to {steps.stop}"
        if not stills and options.format in STILLS and not options.summary and options.overview is None:
            raise ValueError(told)
        logger.warning(told)
    names = [stem.with_name(f"{stem.name}_token{step + 1}.{kind}") for step in stills]
    paths = [write_figure(renderer, step, path) for step, path in zip(stills, names)]
    if options.format in VIDEOS:
        paths.append(stem.with_name(f"{stem.name}.{options.format}"))
        with tqdm(steps, desc=f"writing {renderer.title}", unit="frame", leave=None) as bar:
            write_video(map(renderer.draw, bar), paths[-1], options.fps)
    return paths


def _write_summary(
    record: AttentionRecord, images: Sequence[Image.Image], plane: int, stem: Path, options: DrawingOptions,
    name: str = "",
) -> list[Path]:  # fmt: skip
    """The summary of a plane, if it is asked for; its path. name: whose it is, of two records."""
    asked = options.frames or options.overview is not None
    if not options.summary and (options.format not in STILLS or asked):
        return []
    path = stem.with_name(f"{stem.name}_summary.{_picture_kind(options)}")
    _save_picture(draw_summary(record, images, plane, options, VECTOR_PENS.get(path.suffix), name), path)
    return [path]


def _picture_kind(options: DrawingOptions) -> str:
    return options.format if options.format in STILLS else "png"


def _stills(record: AttentionRecord, first_step: int, frames: Sequence[int | str]) -> tuple[list[int], list[int]]:
    """The steps, from 0, among the tokens' numbers in `frames` that have a frame, and the numbers that have none."""
    T = record.response_length
    numbers = [n for one in frames for n in (range(first_step + 1, T + 1) if one == "all" else [one])]
    steps = [number - 1 if number > 0 else number + T for number in numbers]
    none = [number for number, step in zip(numbers, steps) if not first_step <= step < T]
    return list(dict.fromkeys(step for step in steps if first_step <= step < T)), none


def draw_figure(
    renderer: FrameRenderer, step: int, figure: str, vectors: type[VectorPen] | None = None
) -> Image.Image | VectorPen:
    """A step, from 0, as an RGB image, or by a pen of VECTOR_PENS: "frame" or "map"."""
    if figure == "frame":
        size = renderer.options.frame_size
        return renderer.draw_shapes(step, vectors(*size)) if vectors else Image.fromarray(renderer.draw(step))
    layout = renderer.panel.layout
    width, height = np.max([(x + wide, y + high) for x, y, wide, high in layout.places], axis=0).tolist()
    size = max(width, renderer.px(_LEAST_MAP_WIDTH)), height + round(renderer.px(FONT_LABEL) * _SCALE_HEIGHT)
    canvas = Image.new("RGB", size, PAPER)
    canvas.paste(Image.fromarray(layout.picture).crop((0, 0, width, height)))
    pen = vectors(*size) if vectors else Pen(canvas)
    _draw_map(pen, renderer, step, *size)
    return pen if vectors else canvas


def write_figure(renderer: FrameRenderer, step: int, path: str | Path) -> Path:
    """Write a step, from 0, as a file of the suffix .png, .svg or .pdf; its path."""
    path, kind = Path(path), Path(path).suffix.lower()
    if kind[1:] not in STILLS:
        raise ValueError(f"{path} has no suffix of a picture; expected .{', .'.join(STILLS)}")
    _save_picture(draw_figure(renderer, step, renderer.options.figure, VECTOR_PENS.get(kind)), path)
    return path


def _save_picture(picture: Image.Image | VectorPen, path: Path) -> None:
    """Write an image, or what a pen drew, whole or not at all."""
    with moved_into_place(path) as temporary:
        picture.save(temporary)


def _draw_map(pen: AnyPen, renderer: FrameRenderer, step: int, width: int, height: int) -> None:
    """The map, its marks, and below it its scale and the share of the pictures, at the foot of a size."""
    panel, number, fonts = renderer.panel, step - renderer.first_step, renderer.label_fonts
    at, panel.at = panel.at, (0, 0)
    try:
        panel.draw(pen, number)
        renderer.draw_marks(pen, step)
    finally:
        panel.at = at
    share = f"{panel.maps[0].shares[number].sum():.1%} on the {renderer.pictures}"
    y, end = height - round(fonts.size * 0.6), width - fonts.width(share)
    is_shown = len(panel.maps) == 1 and width > fonts.width(share) * 3
    last = round(end - renderer.px(20)) if is_shown else width
    draw_scale(pen, (0, y), last, panel.scale_end(number), float(panel.strengths[number]), renderer.sheet, 256)
    if is_shown:
        pen.text((end, y), share, fonts, renderer.legend.shares[0].colour)
