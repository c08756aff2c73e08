"""Files appear whole or not at all: temporary names, and what a killed run left behind."""

import errno
import multiprocessing
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from attention_heatmap.log import one_line

# Host and process stand in the name, so that others may know whether it is still written.
HOST = re.sub(r"\W", "_", socket.gethostname())[:40]
PARTIAL_NAME = re.compile(r"\..*\.(\w+)-(\d+)(?:-\w+)?\.partial(?:\.\w+)?")
LEAST_SPACE = 2**16  # bytes that a folder must have room for before the long work begins


def new_partial(path: Path) -> Path:
    """An empty new file beside `path`, hidden, whose name nobody can guess: no planted link is ever followed."""
    name = f".{path.stem[:40]}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.partial{path.suffix}"
    temporary = path.with_name(name)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


@contextmanager
def moved_into_place(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`: moved there when the block ends well, removed when it does not.

    What killed processes left half-written in the folder goes as well. Raises OSError, with the path in it.
    """
    check_target(path)
    temporary = None
    try:
        remove_stale(path.parent)
        temporary = new_partial(path)
        yield temporary
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise OSError(f"{path} is no longer asked for: the run that it belongs to has ended")
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # one of ours, which says more
            raise
        raise OSError(f"{path} could not be written: {error.strerror}; {folder_advice(path)}") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            if temporary:
                temporary.unlink()


def folder_advice(path: Path) -> str:
    """What to look at where a file could not be written."""
    if path.parent.is_dir() and shutil.disk_usage(path.parent).free < LEAST_SPACE:
        return f"{os.strerror(errno.ENOSPC)}: make room in {path.parent}"
    return f"check the space in {path.parent}" if path.parent.is_dir() else f"{path.parent} is no longer there"


def remove_stale(folder: Path) -> None:
    """Remove the half-written files of processes that ended without doing so; of other hosts', those a day old."""
    for path in folder.glob(".*.partial*"):
        if match := PARTIAL_NAME.fullmatch(path.name):
            with suppress(OSError):  # another process may have been faster
                age = time.time() - path.lstat().st_mtime  # seconds
                if age > 86400 if match[1] != HOST else not _is_running(int(match[2])):
                    path.unlink()


def _is_running(pid: int) -> bool:
    """Whether a process of this host is there; where that cannot be asked, it is."""
    try:
        if os.name == "posix":
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_target(path: str | Path, keep: tuple[str | Path, ...] = ()) -> None:
    """Raises ValueError where a file cannot go to a path: a folder, a device or a pipe is there, or a file to keep.

    keep: files that are read, such as the dataset.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there; a folder that is missing is told elsewhere
        return
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise ValueError(f"{path} is {what}; give the name of a file")
    for other in keep:
        if Path(other).exists() and path.samefile(other):
            raise ValueError(f"{path} is read by this run and must not be overwritten; give another name")


def free_name(path: Path) -> Path:
    """The path, or the first one like it with a number, where nothing is: what stands there is not replaced."""
    numbered = (path.with_stem(f"{path.stem}_{n}") if n else path for n in count())
    return next(one for one in numbered if not os.path.lexists(one))


def check_output_dir(output_dir: str | Path, name: str = "output_dir") -> None:
    """Raises OSError when nothing can be written there, before the long work begins; makes nothing."""
    folder = Path(output_dir)
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
        for part in folder.absolute().relative_to(existing.absolute()).parts:  # a name that is too long, or none at all
            with suppress(FileNotFoundError):
                os.lstat(existing / part)
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(LEAST_SPACE))
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: no path at all; RuntimeError: a ring of links
        text = f"{name} {str(output_dir)!r} cannot be written to ({one_line(error)}); give another folder"
        raise OSError(text) from error
