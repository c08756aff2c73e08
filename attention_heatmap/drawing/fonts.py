"""Fonts at one size, with others to fall back on, and lines of text that fit a width."""

import math
import subprocess
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from attention_heatmap.drawing.text import BREAK_ANYWHERE
from attention_heatmap.log import logger, one_line

FONT_TEXT, FONT_TITLE, FONT_LABEL = 26, 30, 20  # pixels in a frame 1080 high
_BITMAP_FONT_SIZE = 109  # pixels; the one size of fonts such as Noto Color Emoji
_CODE_POINT_SIZE = 0.55  # of the font, for characters that no font has
_FONT_ADVICE = {
    "cjk": "a CJK font, such as Debian's fonts-noto-cjk",
    "emoji": "an emoji font, such as Debian's fonts-noto-color-emoji",
    "any": "a font that has it, such as Debian's fonts-noto-core, or give font_path",
}
ASCII = "".join(map(chr, range(32, 127)))  # what every font must be able to draw
FONT_NAMES = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf", "Helvetica.ttc")
FONT_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip
NEWLINE_MARK = "↵"
TURNING_MARKS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@cache
def _font_files() -> tuple[str, ...]:
    """Every font file in the usual folders."""
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
    found = (path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*")))
    return tuple(str(path) for path in found if path.suffix.lower() in (".ttf", ".otf", ".ttc"))


@lru_cache(maxsize=4096)
def _fonts_with(char: str) -> tuple[tuple[str, int], ...]:
    """(file, face) of installed fonts that may have a character: by fontconfig, else every font there is."""
    query = ["fc-list", f":charset={ord(char):x}:scalable=true", "--format=%{file}|%{index}|%{style}|%{family}\n"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return tuple((file, 0) for file in _font_files())
    faces = [line.split("|") for line in lines if line.count("|") == 3]
    # The plain sans face first: a bold or a serif glyph stands out in a line of regular ones. Of the faces of one
    # Chinese, Japanese and Korean font, which share most characters, the simplified Chinese one.
    faces.sort(key=lambda f: ("Regular" not in f[2], "Sans" not in f[3], "Mono" in f[3], " SC" not in f[3], f[0]))
    return tuple((file, int(face)) for file, face, _, _ in faces)


class BitmapFont:
    """A font of coloured bitmaps, which has one size only, as grey glyphs of another size."""

    def __init__(self, file: str, size: int, face: int) -> None:
        self._font = ImageFont.truetype(file, _BITMAP_FONT_SIZE, index=face)
        self._scale = size / _BITMAP_FONT_SIZE

    def getmask(self, text: str) -> Any:
        return self._font.getmask(text, "RGBA")

    def getlength(self, text: str) -> float:
        return self._font.getlength(text) * self._scale

    def getmetrics(self) -> tuple[int, int]:
        ascent, descent = self._font.getmetrics()
        return math.ceil(ascent * self._scale), math.ceil(descent * self._scale)

    def coverage(self, text: str) -> Image.Image:
        """How much ink each pixel takes, as an L image whose base line lies `getmetrics()[0]` below its top."""
        size = math.ceil(self._font.getlength(text)), sum(self._font.getmetrics())
        drawn = Image.new("RGBA", size)
        ImageDraw.Draw(drawn).text((0, size[1]), text, font=self._font, embedded_color=True, anchor="ld")
        dark = ImageOps.invert(drawn.convert("L")).point(lambda level: 64 + level * 3 // 4)
        grey = ImageChops.multiply(dark, drawn.getchannel("A"))
        return grey.resize((max(round(size[0] * self._scale), 1), sum(self.getmetrics())), Image.Resampling.BOX)


_warned_of: set[str] = set()  # one warning a package, not one a character


class FontSet:
    """A font at one size, with others to fall back on for the characters that it lacks."""

    def __init__(self, size: int, font_path: str | None = None) -> None:
        self.size = size
        self.main, self.small = self._open_main(font_path)
        self._fallbacks: list[ImageFont.FreeTypeFont] = []
        # Words and characters come again and again.
        self._font_for, self.runs, self.width = cache(self._find), cache(self._runs), cache(self._width)

    def _open_main(self, font_path: str | None) -> list[ImageFont.FreeTypeFont]:
        """The font, and the same for code points. A broken one that cannot draw ASCII is told, or passed over."""
        sizes = self.size, max(round(self.size * _CODE_POINT_SIZE), 6)
        for name in FONT_NAMES if font_path is None else [font_path]:
            try:
                if font_path is not None and Path(name).exists() and not Path(name).is_file():
                    raise OSError("a folder, a device or a pipe")  # reading one may never end
                fonts = [ImageFont.truetype(name, size) for size in sizes]
                for font in fonts:
                    font.getmask(ASCII)
                return fonts
            except (OSError, ValueError) as error:  # ValueError: no path at all
                if font_path is not None:
                    raise OSError(
                        f"font_path {font_path} cannot be used: {one_line(error)}; give a .ttf, .otf or .ttc file"
                    ) from error
        return [ImageFont.load_default(size) for size in sizes]  # Pillow's own; Latin only

    @staticmethod
    def has_glyph(font: ImageFont.FreeTypeFont, char: str) -> bool:
        """Whether a font draws the character itself, and not the box for a missing one."""
        if char.isspace():
            return True
        try:
            glyph, missing = font.getmask(char), font.getmask("\U0010ffff")
        except OSError:  # a broken font
            return False
        return glyph.size != missing.size or bytes(glyph) != bytes(missing)

    def _find(self, char: str) -> ImageFont.FreeTypeFont | None:
        """The first font that has the character, or None where no installed font has it."""
        category = unicodedata.category(char)
        if category in ("Cc", "Cs", "Cn", "Co"):
            return None  # nothing to see; drawn as its code point
        for font in (self.main, *self._fallbacks):
            if self.has_glyph(font, char):
                return font
        for (file, face), kind in product(_fonts_with(char), (ImageFont.truetype, BitmapFont)):
            try:
                font = kind(file, self.size, face)
            except OSError:  # a bitmap font without this size
                continue
            if self.has_glyph(font, char):
                self._fallbacks.append(font)
                return font
        kind = "cjk" if BREAK_ANYWHERE.match(char) else "emoji" if category == "So" else "any"
        if kind not in _warned_of:
            _warned_of.add(kind)
            message = "no installed font has %r (U+%04X): code points are shown; install %s"
            logger.warning(message, char, ord(char), _FONT_ADVICE[kind])
        return None

    def _runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """The text in runs of one font each; a character that no font has becomes its code point, small."""
        drawn: list[tuple[ImageFont.FreeTypeFont, str]] = []
        for char in text:
            if char in TURNING_MARKS:  # text would stand in another order than the tokens
                continue
            category, before = unicodedata.category(char), drawn[-1][0] if drawn else self.small
            # An accent or a joiner belongs to the character before it.
            follows = category in ("Mn", "Me", "Mc", "Cf") and before is not self.small
            if follows and self.has_glyph(before, char):
                drawn.append((before, char))
            elif char == NEWLINE_MARK and not self.has_glyph(self.main, char):
                drawn.append((self.small, "\\n"))
            elif category != "Cf" or not drawn:
                font = self._font_for(char)
                drawn.append((font, char) if font else (self.small, f"{ord(char):04X} "))
        return [(font, "".join(part for _, part in group)) for font, group in groupby(drawn, key=lambda item: item[0])]

    def _width(self, text: str) -> float:
        """Pixels that the text takes on one line."""
        return sum(font.getlength(part) for font, part in self.runs(text))

    def metrics(self) -> tuple[int, int]:
        """Pixels above and below the base line that hold every font used so far."""
        ascents, descents = zip(*(font.getmetrics() for font in (self.main, *self._fallbacks)))
        return max(ascents), max(descents)


def cut_to(text: str, fonts: FontSet, width: float) -> str:
    """The text, or its beginning and its end with an ellipsis between, in a width in pixels."""

    def cut(kept: int) -> str:
        return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"

    if fonts.width(text) <= width:
        return text
    too_wide = bisect_left(range(len(text)), True, key=lambda kept: fonts.width(cut(kept)) > width)
    return cut(too_wide - 1) if too_wide > 1 else text[:1]


def wrapped(notes: Sequence[str], fonts: FontSet, width: float) -> list[str]:
    """Notes on lines of a width in pixels, broken between words; a longer word is cut."""
    lines: list[str] = []
    for note in notes:
        lines.append("")
        for word in note.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and fonts.width(longer) > width:
                lines.append("")
                longer = word
            lines[-1] = cut_to(longer, fonts, width)
    return lines
