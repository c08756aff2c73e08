"""A page of a record in a browser, and what it shows."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import make_record

from attention_heatmap.record import AttentionRecord, picture_file

# Nothing of the browser's own asks the network: whatever does is the page.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = (400, 300)  # pixels of the pictures


def chromium() -> str:
    """The path of an installed Chromium; "" where there is none. CHROMIUM names another."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium. Skips the test where there is none, or no package that drives it."""
    driver = pytest.importorskip("playwright.sync_api", reason="no package drives a browser: pip install playwright")
    if not chromium():
        pytest.skip("no browser: install Chromium, such as Debian's package chromium")
    with driver.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield opened
        opened.close()


def record_of(response: list[str], layers: tuple[int, ...] = (0, 1), pictures: int = 1, **more: Any) -> AttentionRecord:
    """A record with its pictures, each of one colour, of 3 x 4 cells."""
    from PIL import Image

    colours = ((250, 250, 250), (60, 90, 140))
    files = tuple(picture_file(Image.new("RGB", SIZE, colour)) for colour in colours[:pictures])
    record = make_record(["Find", " the", " cat"], response, [(3, 4)] * pictures, SIZE, layers, **more)
    return dataclasses.replace(record, pictures=files)


class Shown:
    """A page that is open, with the errors that it wrote on the console and what it asked of the network."""

    def __init__(self, page: Any, path: Path, hash: str = "") -> None:
        self.page, self.said, self.asked = page, [], []
        page.on("console", lambda message: message.type == "error" and self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(f"{path.as_uri()}{hash}")
        page.wait_for_selector("body[data-ready]", timeout=10_000)
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.page.evaluate(
            "new Promise(go => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(go))))"
        )

    def until(self, expression: str) -> Any:
        """The value of an expression once it is true; the page's policy does not let it be waited for inside."""
        for _ in range(200):
            if value := self.page.evaluate(expression):
                self.settle()
                return value
            self.page.wait_for_timeout(25)
        raise AssertionError(f"{expression} never came true")

    def token(self, step: int) -> Any:
        return self.page.locator("#answer > span").nth(step)

    def text(self, id: str) -> str:
        return self.page.locator(f"#{id}").inner_text()

    def point_at(self, part: tuple[float, float], picture: int = 0) -> tuple[float, float]:
        """The point of the screen at parts (x, y) of a picture."""
        box = self.page.locator(".over").nth(picture).bounding_box()
        return box["x"] + part[0] * box["width"], box["y"] + part[1] * box["height"]

    def cell(self, number: int, picture: int = 0) -> tuple[float, float]:
        """The point of the screen in the middle of a cell of 3 x 4."""
        row, column = divmod(number, 4)
        return self.point_at(((column + 0.5) / 4, (row + 0.5) / 3), picture)

    def tint(self, number: int, picture: int = 0) -> list[int]:
        """RGBA of the heat in the middle of a cell of 3 x 4."""
        row, column = divmod(number, 4)
        return self.page.locator(".heat").nth(picture).evaluate(
            """(canvas, [x, y]) => Array.from(canvas.getContext("2d")
                .getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data)""",
            [(column + 0.5) / 4, (row + 0.5) / 3],
        )  # fmt: skip

    def ground(self, step: int) -> str:
        """The colour behind a token of the answer."""
        return self.token(step).evaluate("span => getComputedStyle(span).backgroundColor")

    def close(self) -> None:
        """No error stands on the console, and nothing was asked for but the file itself."""
        self.page.close()
        left = [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))]
        assert (self.said, left) == ([], []), (self.said, left)


def hot_weights(record: AttentionRecord, cells: dict[int, int], hot: float = 0.5) -> AttentionRecord:
    """The record with rows that lie on one cell of the first picture each: {step: cell}; a part `hot` of the row."""
    weights = record.weights.copy()
    for step, cell in cells.items():
        weights[step] *= 1 - hot
        weights[step, :, record.images[0].positions[cell]] += hot
    return dataclasses.replace(record, weights=weights.astype(np.float32))
