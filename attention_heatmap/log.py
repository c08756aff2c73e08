"""What is said to the user: one line, harmless in any terminal."""

import logging
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache

logger = logging.getLogger("visualizeHeatMap")
warn_once = lru_cache(logger.warning)  # options are made anew for each sample
NOTE = 25  # level of what the user asked to be told (a choice, a verdict), in the log between info and warning
logging.addLevelName(NOTE, "NOTE")
LONGEST_LINE = 2000  # characters of one message; whole files have come as the text of an error


class OurMistake(RuntimeError):
    """An error that no input should lead to."""


def visible(text: object) -> str:
    """The text with all that a terminal obeys or hides written as escapes; line breaks and spaces stay.

    The text of a dataset or a model may hold escape sequences, marks that turn the direction of writing or lone
    surrogates: they must not steer the terminal of whoever reads it.
    """
    harmless = (c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs" for c in str(text))
    return "".join(c if keep else c.encode("unicode_escape").decode() for c, keep in zip(str(text), harmless))


def one_line(text: object) -> str:
    """The text with every run of white space, line breaks included, as one space, nothing hidden in it, and cut."""
    line = visible(" ".join(str(text)[: 4 * LONGEST_LINE].split()))
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


def package_missing(error: ModuleNotFoundError) -> str:
    """What to say, and to do, where a package is not installed."""
    module = (error.name or str(error)).partition(".")[0]
    return (
        f"the package {'pillow' if module == 'PIL' else module} is not installed; run pip install -r requirements.txt"
    )


@contextmanager
def _filtered(keep: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def said_of(name: str) -> AbstractContextManager:
    """A block in which whatever is logged begins with a name, such as that of a sample."""

    def add_name(message: logging.LogRecord) -> bool:
        message.msg, message.args = f"{name}: {message.getMessage()}", ()
        return True

    return _filtered(add_name)


@contextmanager
def said_once() -> Iterator[None]:
    """A block in which each message is logged once, such as of many videos of one record."""
    seen = set()

    def is_new(message: logging.LogRecord) -> bool:
        return not ((text := message.getMessage()) in seen or seen.add(text))

    with _filtered(is_new):
        yield


@contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """A block in which nothing is logged: its warnings and errors stand in a list."""
    said: list[str] = []

    def keep(message: logging.LogRecord) -> bool:
        said.extend([message.getMessage()] * (message.levelno >= logging.WARNING))
        return False

    with _filtered(keep):
        yield said
