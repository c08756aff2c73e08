"""Frames to a video file, whole or not at all."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from attention_heatmap.files import folder_advice, moved_into_place, new_partial
from attention_heatmap.log import logger, one_line

# What is drawn is flat and hardly moves: without psy a file is smaller, and no edge suffers; bits spent on what stays
# (mbtree) and frames before the last one (ref) are worth more than the slower presets that have them.
_STILL = "psy=0:mbtree=1:rc-lookahead=10:ref=3:bframes=0"
# By suffix: codec, pixel format, options. A GIF is made from a lossless video, by two passes: palette, then frames.
_ENCODERS = {
    ".mp4": ("libx264", "yuv420p", f"-preset superfast -crf 28 -x264-params {_STILL} -movflags +faststart"),
    ".webm": ("libvpx-vp9", "yuv420p", "-deadline realtime -cpu-used 6 -row-mt 1 -crf 28 -b:v 0"),
    ".gif": ("libx264rgb", "rgb24", "-preset ultrafast -qp 0"),
}
_GIF_WIDTH = 960  # pixels at most: a GIF of full frames would have many megabytes
_KEY_FRAME_SECONDS, _FEWEST_BETWEEN_KEYS = 5, 60  # lets a player jump about; still frames are decoded in no time
_SLOWEST_FPS, _FASTEST_FPS = 0.01, 240
_FASTEST_GIF = 50  # frames a second: delays are whole hundredths of a second, and players draw out a single one


def write_video(frames: Iterable[np.ndarray], path: str | Path, fps: float = 2) -> str:
    """Encode (Y, X, 3) uint8 frames, as they come, under a name that appears when all is well.

    The suffix of the path decides: .mp4 is H.264 (yuv420p), .webm VP9, .gif at most 960 pixels wide.
    Returns the path. Raises ValueError when there is no frame, fps does not fit or the suffix is another,
    OSError when the file cannot be written whole, RuntimeError when the encoder is missing.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _ENCODERS:
        raise ValueError(f"{path} has no suffix of a video; expected {', '.join(_ENCODERS)}")
    check_fps(fps, suffix)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder; make it first")
    with moved_into_place(path) as temporary:
        count = _write_gif(frames, temporary, fps) if suffix == ".gif" else _encode(frames, temporary, fps, suffix)
        if not count:
            raise ValueError(f"{path} would have no frame: the response is empty")
        _prove(temporary, path, count)
    logger.info("wrote %s: %d frames at %g a second", path, count, fps)
    return str(path)


def check_fps(fps: float, suffix: str) -> None:
    """Raises ValueError for a rate that a video of such a suffix cannot have."""
    fastest = _FASTEST_GIF if suffix == ".gif" else _FASTEST_FPS
    if not _SLOWEST_FPS <= fps <= fastest:
        raise ValueError(f"fps is {fps}; expected a number from {_SLOWEST_FPS} to {fastest} for {suffix}")


def find_encoder() -> str:
    """The path of ffmpeg. Raises RuntimeError where there is none."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        encoder = get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"no video encoder: {one_line(error)}; run pip install imageio-ffmpeg") from error
    if not shutil.which(encoder):
        raise OSError(f"the encoder {encoder} cannot be run: No such file or directory; reinstall it")
    return encoder


def _encode(frames: Iterable[np.ndarray], target: Path, fps: float, suffix: str) -> int:
    """Write a video as one of a suffix; the number of its frames.

    A thread of its own writes one frame while the next is drawn. No signal, which Python gives to the main thread,
    comes between the encoder's start and those who end it: it would write its file after that was removed.
    """
    from imageio.v2 import get_writer

    find_encoder()
    codec, pixel_format, options = _ENCODERS[suffix]
    between = str(max(round(_KEY_FRAME_SECONDS * fps), _FEWEST_BETWEEN_KEYS))
    settings = {"fps": fps, "codec": codec, "pixelformat": pixel_format, "quality": None, "macro_block_size": 1}
    settings |= {"output_params": [*options.split(), "-g", between], "ffmpeg_log_level": "quiet"}
    count, written, writer = 0, None, get_writer(target, "FFMPEG", **settings)

    def write(frame: np.ndarray) -> None:
        try:
            writer.append_data(frame)
        except OSError as error:
            raise OSError(f"the video could not be written: the encoder ended; {folder_advice(target)}") from error

    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            for frame in frames:
                if written:
                    written.result()
                written, count = thread.submit(write, frame), count + 1
            if written:
                written.result()
        finally:
            thread.submit(writer.close).result()
    return count


def _prove(target: Path, path: Path, count: int) -> None:
    """Raises OSError where a finished file does not hold so many frames, as on a disk that was full at the end."""
    from imageio_ffmpeg import count_frames_and_secs

    try:
        found, seconds = count_frames_and_secs(str(target))
    except RuntimeError:
        found, seconds = 0, 0.0
    if found != count or not seconds > 0:
        raise OSError(f"{path} could not be written whole ({found} of {count} frames); {folder_advice(path)}")


def _write_gif(frames: Iterable[np.ndarray], target: Path, fps: float) -> int:
    """A GIF by way of a lossless video beside it; the number of its frames.

    One palette for the whole video and no dithering: what does not change from frame to frame costs nothing.
    """
    lossless = new_partial(target.with_name(f"{target.name.split('.')[1]}.mkv"))
    size = f"scale='min({_GIF_WIDTH},iw)':-1:flags=area"
    filters = (
        f"[0]{size},palettegen[palette];[1]{size}[frames];[frames][palette]paletteuse=dither=none:diff_mode=rectangle"
    )
    try:
        count = _encode(frames, lossless, fps, ".gif")
        inputs = ["-i", str(lossless)] * 2
        command = [find_encoder(), "-y", "-loglevel", "error", *inputs, "-lavfi", filters, str(target)]
        streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
        with ThreadPoolExecutor(max_workers=1) as thread:
            process = thread.submit(subprocess.Popen, command, **streams)
            try:
                _, said = process.result().communicate()
            finally:
                process.result().kill()
                code = process.result().wait()
        if count and code:
            reason = re.sub(r"^\[[^]]*\]\s*", "", (said.strip().splitlines() or ["the encoder ended"])[-1])
            raise OSError(f"the GIF could not be written: {one_line(reason)}; {folder_advice(target)}")
        return count
    finally:
        lossless.unlink(missing_ok=True)
