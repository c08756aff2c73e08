"""Files appear whole or not at all, never through a link or over what is no file, and what is left is cleared away."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from attention_heatmap import files
from attention_heatmap.files import (
    HOST,
    check_output_dir,
    check_target,
    moved_into_place,
    new_partial,
    remove_stale,
)


def test_a_file_appears_when_the_block_ends_well(tmp_path):
    with moved_into_place(tmp_path / "a.png") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a.png").exists()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_nothing_is_left_where_the_block_is_stopped_and_the_file_before_stays(tmp_path, error):
    (tmp_path / "a.png").write_text("before")
    with pytest.raises(error), moved_into_place(tmp_path / "a.png") as temporary:
        temporary.write_text("half")
        raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_an_error_of_the_system_while_a_file_is_written_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"a\.png could not be written: No space left on device; check the space in"):  # noqa: SIM117
        with moved_into_place(tmp_path / "a.png") as temporary:
            temporary.write_text("half")
            raise OSError(28, os.strerror(28))
    assert list(tmp_path.iterdir()) == []


def test_a_drawing_process_whose_parent_has_ended_moves_nothing_into_place(tmp_path, monkeypatch):
    class Ended:
        def is_alive(self):
            return False

    monkeypatch.setattr(files.multiprocessing, "parent_process", Ended)
    with pytest.raises(OSError, match="no longer asked for"), moved_into_place(tmp_path / "a.png") as temporary:
        temporary.touch()
    assert not list(tmp_path.iterdir())


# --- names that nobody can guess, and never through a link


def test_a_temporary_name_is_another_each_time_and_the_file_is_new(tmp_path):
    names = {new_partial(tmp_path / "a.png").name for _ in range(20)}
    assert len(names) == 20 and all(files.PARTIAL_NAME.fullmatch(name) for name in names)


def test_a_link_planted_under_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / f".a.{HOST}-{os.getpid()}-guessed.partial.png").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"a\.png could not be written: File exists"):  # noqa: SIM117
        with moved_into_place(tmp_path / "a.png") as temporary:
            temporary.write_text("evil")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_link_at_the_target_is_replaced_and_what_it_names_stays(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a.png").symlink_to(tmp_path / "precious")
    with moved_into_place(tmp_path / "a.png") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "precious").read_text() == "mine" and (tmp_path / "a.png").read_text() == "new"


@pytest.mark.parametrize("name", ["x" * 200 + ".png", "路" * 80 + ".mp4", "a" * 30 + "\n.png", "no_suffix"])
def test_long_and_odd_names_have_temporary_ones(tmp_path, name):
    with moved_into_place(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"


def test_a_name_that_is_too_long_is_told(tmp_path):
    with pytest.raises(OSError, match=r"could not be written: File name too long"):  # noqa: SIM117
        with moved_into_place(tmp_path / ("x" * 300 + ".png")):
            pass
    assert list(tmp_path.iterdir()) == []


# --- what is there and must stay


@pytest.mark.parametrize(
    "make, what",
    [
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is a device or a pipe"),
        (lambda path: path.symlink_to("/dev/null"), "is a device or a pipe"),
        (lambda path: path.symlink_to(path.parent), "is a folder"),
    ],
)
def test_no_folder_device_or_pipe_is_replaced(tmp_path, make, what):
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(ValueError, match=f"{what}; give the name of a file"):
        check_target(path)
    with pytest.raises(ValueError, match=what), moved_into_place(path):
        pass
    assert os.path.lexists(path) and len(list(tmp_path.iterdir())) == 1


def test_no_file_is_replaced_that_the_run_reads_by_whatever_name(tmp_path):
    data = tmp_path / "data.json"
    data.write_text("[]")
    (tmp_path / "link").symlink_to(data)
    os.link(data, tmp_path / "hard")
    for name in ("data.json", "link", "hard", "../" + tmp_path.name + "/data.json"):
        with pytest.raises(ValueError, match="is read by this run and must not be overwritten"):
            check_target(tmp_path / name, (data,))
    check_target(tmp_path / "other", (data, tmp_path / "gone"))


# --- folders


@pytest.mark.parametrize(
    "name, reason",
    [
        ("/dev/null/x", "Not a directory"),
        ("file/below", "Not a directory"),
        ("file", "Not a directory"),
        ("/proc/x", "."),
        ("ring", "Too many levels of symbolic links|Not a directory|No such file"),
        ("ring/below/it", "."),
        ("dangling", "."),
        ("nul\0", "null"),
        ("x" * 5000, "too long"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_told_before_the_long_work(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    (tmp_path / "dangling").symlink_to("/nowhere/at/all")
    with pytest.raises(OSError, match=rf"output_dir .* cannot be written to \(.*({reason}).*\); give another folder"):
        check_output_dir(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "ring"]


@pytest.mark.parametrize("name", [".", "new", "new/and/deep", "", "link"])
def test_a_folder_that_can_be_made_is_fine_and_is_not_made(tmp_path, name):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    check_output_dir(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_a_folder_without_permission_is_told(tmp_path):
    if os.geteuid() == 0:
        code = (
            f"import os, sys; sys.path.insert(0, {str(Path(files.__file__).parents[1])!r})\n"
            "from attention_heatmap.files import check_output_dir; os.setuid(65534)\n"
            f"check_output_dir({str(tmp_path / 'closed')!r})"
        )
    else:
        pytest.skip("needs root, to become nobody")
    (tmp_path / "closed").mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert "Permission denied" in result.stderr and "give another folder" in result.stderr, result.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of a size."""
    disks = []

    def mount(size):
        disk = tmp_path / f"disk{len(disks)}"
        disk.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], capture_output=True)
        if made.returncode:
            pytest.skip("mounting a small file system needs root")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_is_full_is_told_before_the_long_work(small_disk):
    disk = small_disk("4k")
    with pytest.raises(OSError, match=r"cannot be written to \(\[Errno 28\] No space left on device\)"):
        check_output_dir(disk)
    assert list(disk.iterdir()) == []


def test_a_full_temporary_folder_is_not_blamed_on_the_output_folder(small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk("4k")))
    check_output_dir(tmp_path / "out")
    with moved_into_place(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(bytes(2**17))
    assert (tmp_path / "a.bin").stat().st_size == 2**17


# --- what killed runs leave


def test_only_the_half_written_files_of_dead_processes_are_stale(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = {
        f".a.{HOST}-{dead.pid}-0a1b2c3d.partial.mp4": False, f".a.{HOST}-{os.getpid()}-0a1b2c3d.partial.mp4": True,
        f".a.{HOST}-1.partial": True, ".a.elsewhere-7.partial.npz": True, ".a.long_ago-7-aa.partial.npz": False,
        ".mine.partial": True, "a.partial.mp4": True, f".b.{HOST}-{10**30}.partial.png": False,
        f".c.{HOST}-{dead.pid}-0a1b2c3d.partial.mkv": False, f".{HOST}-{dead.pid}-00.partial": True,
    }  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    os.utime(tmp_path / ".a.long_ago-7-aa.partial.npz", (0, 0))
    remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}


def test_a_stale_name_that_is_a_folder_or_a_link_harms_nothing(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f".a.{HOST}-999999999.partial").symlink_to(tmp_path / "precious")
    (tmp_path / f".b.{HOST}-999999999.partial").mkdir()
    remove_stale(tmp_path)
    remove_stale(tmp_path / "none")
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("host", ["my-host.example", "路线", "x" * 300, ""])
def test_files_of_any_host_are_known_again(host):
    import re

    cleaned = re.sub(r"\W", "_", host)[:40]
    assert files.PARTIAL_NAME.fullmatch(f".a.{cleaned or 'x'}-12-ab.partial.png")[2] == "12"
