import _thread
import signal
import subprocess
import sys
import time

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image, ImageSequence

from attention_heatmap.drawing.video import _GIF_WIDTH, write_video


def frames(count, size=(64, 48)):
    """Frames of one grey each, lighter from one to the next."""
    for number in range(count):
        yield np.full((size[1], size[0], 3), min(40 + 10 * number, 255), np.uint8)


@pytest.mark.parametrize("count, fps", [(1, 2), (7, 2), (12, 0.5), (5, 24)])
def test_a_video_read_back_has_its_frames_size_rate_and_pixel_format(tmp_path, count, fps):
    path = write_video(frames(count), tmp_path / "out.mp4", fps)
    with imageio.get_reader(path) as reader:
        facts = reader.get_meta_data()
        levels = [frame.mean() for frame in reader]
    assert path == str(tmp_path / "out.mp4")
    assert len(levels) == count and facts["fps"] == fps and facts["size"] == (64, 48)
    assert facts["codec"] == "h264" and facts["pix_fmt"].startswith("yuv420p")
    np.testing.assert_allclose(levels, [40 + 10 * n for n in range(count)], atol=3)


def test_a_webm_is_vp9(tmp_path):
    path = write_video(frames(7), tmp_path / "out.webm", 4)
    with imageio.get_reader(path) as reader:
        facts = reader.get_meta_data()
        levels = [frame.mean() for frame in reader]
    assert facts["codec"] == "vp9" and facts["size"] == (64, 48) and facts["fps"] == 4
    np.testing.assert_allclose(levels, [40 + 10 * n for n in range(7)], atol=3)


@pytest.mark.parametrize("name", ["out.gif", "OUT.GIF"])
def test_a_gif_has_its_frames_and_its_rate(tmp_path, name):
    with Image.open(write_video(frames(7), tmp_path / name, 4)) as gif:
        assert gif.format == "GIF" and gif.size == (64, 48) and gif.info["duration"] == 250
        levels = [np.asarray(frame.convert("L")).mean() for frame in ImageSequence.Iterator(gif)]
    np.testing.assert_allclose(levels, [40 + 10 * n for n in range(7)], atol=3)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_gif_is_no_wider_than_is_reasonable_and_has_the_colours_of_its_frames(tmp_path):
    frame = np.zeros((540, 1920, 3), np.uint8)
    frame[:, :960], frame[:, 960:] = (255, 0, 0), (30, 92, 214)
    with Image.open(write_video([frame] * 3, tmp_path / "out.gif", 2)) as gif:
        assert gif.size == (_GIF_WIDTH, 270) and gif.info["duration"] == 500 and gif.info["loop"] == 0
        colours = np.asarray(gif.convert("RGB"), int)
    np.testing.assert_allclose(colours[100, [100, 800]], [(255, 0, 0), (30, 92, 214)], atol=4)


def test_another_suffix_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"out\.avi has no suffix of a video; expected \.mp4, \.webm, \.gif"):
        write_video(iter(lambda: pytest.fail("drawn"), None), tmp_path / "out.avi", 2)


def test_frames_go_to_the_encoder_as_they_come(tmp_path):
    """The encoder's file grows while frames are still being made: they are never all in memory."""
    seen = []

    def slow():
        rng = np.random.default_rng(0)
        for _ in range(120):
            seen.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield rng.integers(0, 255, (240, 320, 3), np.uint8)

    write_video(slow(), tmp_path / "out.mp4", 2)
    assert seen[-1] > 0


@pytest.mark.parametrize("failure", [RuntimeError("drawing failed"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(tmp_path, failure):
    def broken():
        yield from frames(3)
        raise failure

    with pytest.raises(type(failure)):
        write_video(broken(), tmp_path / "out.mp4", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def heard_signal():
    """SIGINT raises KeyboardInterrupt, though the tests may run where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_signal_while_the_encoder_starts_leaves_no_file(tmp_path, monkeypatch, name, heard_signal):
    started = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)
            if len(started) == (2 if name == "a.gif" else 1):
                _thread.interrupt_main()
                time.sleep(0.05)  # here a main thread would be interrupted

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_video(frames(9), tmp_path / name)
    for process in started:
        process.wait(timeout=20)
    assert not list(tmp_path.iterdir())


def test_the_encoder_has_ended_when_drawing_fails(tmp_path):
    def broken():
        yield from frames(3)
        raise RuntimeError("drawing failed")

    with pytest.raises(RuntimeError):
        write_video(broken(), tmp_path / "out.mp4", 2)
    running = subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in running


@pytest.mark.parametrize(
    "script",
    [
        "head -c 9000 >/dev/null; exit 1",
        "head -c 9000 >/dev/null; kill -9 $$",
        "head -c 9000 >/dev/null; exit 0",
        "cat >/dev/null; for name; do :; done; echo half >$name; exit 1",
    ],
)
def test_an_encoder_that_ends_too_soon_or_badly_is_one_clear_line_and_leaves_no_file(tmp_path, monkeypatch, script):
    encoder = tmp_path / "encoder"
    encoder.write_text(f"#!/bin/sh\n{script}\n")
    encoder.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(encoder))
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match=r"could not be written(: the encoder ended;| whole)"):
        write_video(frames(200), tmp_path / "out" / "out.mp4", 2)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_older_video_is_kept_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "out.mp4"
    write_video(frames(2), path, 2)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="would have no frame"):
        write_video([], path, 2)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e9, 1e-9])
def test_a_rate_that_is_not_positive_is_refused(tmp_path, fps):
    with pytest.raises(ValueError, match=r"expected a number from 0\.01 to 240"):
        write_video(frames(2), tmp_path / "out.mp4", fps)


@pytest.mark.parametrize("name", ["out.gif", "OUT.GIF"])
def test_a_gif_that_would_play_at_another_rate_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"fps is 51; expected a number from 0\.01 to 50 for \.gif"):
        write_video(frames(2), tmp_path / name, 51)
    with Image.open(write_video(frames(2), tmp_path / name, 50)) as gif:
        assert gif.info["duration"] == 20


def test_a_missing_encoder_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(RuntimeError, match="run pip install imageio-ffmpeg"):
        write_video(frames(2), tmp_path / "out.mp4", 2)
    monkeypatch.undo()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(OSError, match="none cannot be run: No such file or directory; reinstall it"):
        write_video(frames(2), tmp_path / "out.mp4", 2)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        write_video(frames(2), tmp_path / "nowhere" / "out.mp4", 2)
