"""Drawings of a `VectorPen` as SVG and PDF files: text stays text, a picture stays a picture."""

from __future__ import annotations

import base64
import html
import io
import unicodedata
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from attention_heatmap.drawing.pen import VectorPen

PDF_ADVICE = "PDF files need fpdf2, which keeps text as text; run pip install fpdf2, or take format svg or png"


def write_svg(pen: VectorPen, path: str | Path) -> None:
    """Write the shapes as an SVG file. Text names its font and its width, so that another font takes the same room."""
    size = f'width="{pen.width}" height="{pen.height}" viewBox="0 0 {pen.width} {pen.height}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size}>']
    lines.append('<rect width="100%" height="100%" fill="#ffffff"/>')
    lines += [_SVG[kind](**values) for kind, values in pen.shapes]
    Path(path).write_text("\n".join([*lines, "</svg>\n"]), encoding="utf-8")


def _colour(rgb: Any) -> str:
    return "none" if rgb is None else "#" + "".join(f"{round(channel):02x}" for channel in rgb)


def _svg_text(at: tuple, text: str, width: float, font: Any, fill: tuple) -> str:
    # A control character is no XML; its code point was drawn, so none comes here.
    text = html.escape("".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs")))
    return (
        f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" font-size="{font.size}" font-family="{_family(font)}, sans-serif" '
        f'fill="{_colour(fill)}" textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve">'
        f"{text}</text>"
    )


def _family(font: Any) -> str:
    return html.escape(font.getname()[0] or "sans-serif")


def _svg_box(box: tuple, fill: Any, outline: Any, width: float, radius: float, opacity: float) -> str:
    left, top, right, bottom = box
    edge = f' stroke="{_colour(outline)}" stroke-width="{width}"' if outline is not None else ""
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" rx="{radius}" '
        f'fill="{_colour(fill)}" fill-opacity="{opacity:.3f}"{edge}/>'
    )


def _svg_picture(image: Image.Image, at: tuple, size: tuple) -> str:
    data = base64.b64encode(_png(image)).decode()
    return (
        f'<image x="{at[0]:.1f}" y="{at[1]:.1f}" width="{size[0]}" height="{size[1]}" preserveAspectRatio="none" '
        f'xlink:href="data:image/png;base64,{data}"/>'
    )


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _svg_ring(at: tuple, radius: float, colour: Any, width: float, opacity: float, fill: Any) -> str:
    return (
        f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:.1f}" fill="{_colour(fill)}" '
        f'stroke="{_colour(colour)}" stroke-width="{width:.1f}" opacity="{opacity:.2f}"/>'
    )


def _svg_line(points: list, colour: Any, width: float, opacity: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{_colour(colour)}" stroke-width="{width:.1f}" '
        f'stroke-linejoin="round" opacity="{opacity:.2f}"/>'
    )


_SVG = {"text": _svg_text, "box": _svg_box, "picture": _svg_picture, "ring": _svg_ring, "line": _svg_line}


def write_pdf(pen: VectorPen, path: str | Path) -> None:
    """Write the shapes as a PDF file, its fonts embedded. Raises RuntimeError where fpdf2 is not installed."""
    try:
        from fpdf import FPDF
    except ImportError:
        raise RuntimeError(PDF_ADVICE) from None
    # A pixel is a point. What a PDF viewer cannot shape or the library cannot embed is put in as a picture.
    pdf = FPDF(unit="pt", format=(pen.width, pen.height))
    pdf.set_auto_page_break(False)
    pdf.add_page()
    writer = _PdfWriter(pdf)
    for kind, values in pen.shapes:
        getattr(writer, kind)(**values)
    pdf.output(str(path))


class _PdfWriter:
    """The shapes of a `VectorPen` on a page of fpdf2."""

    def __init__(self, pdf: Any) -> None:
        self.pdf, self.families = pdf, {}

    def text(self, at: tuple, text: str, width: float, font: Any, fill: tuple) -> None:
        family = self._family(font)
        shaped = any(unicodedata.bidirectional(c) in ("R", "AL") or "\u0900" <= c <= "\u109f" for c in text)
        if family is None or shaped:
            self._drawn(at, text, font, fill)
            return
        self.pdf.set_font(family, size=font.size)
        self.pdf.set_text_color(*map(round, fill))
        natural = self.pdf.get_string_width(text) or width
        self.pdf.set_stretching(100 * width / natural)
        self.pdf.text(at[0], at[1], text)

    def _family(self, font: Any) -> str | None:
        """The name under which a font's file is embedded; None where it cannot be."""
        key = str(getattr(font, "path", "")), getattr(font, "index", 0)
        if key not in self.families:
            name = f"font{len(self.families)}"
            try:
                self.pdf.add_font(name, fname=key[0], collection_font_number=key[1])
                self.families[key] = name
            except Exception:  # of whatever kind: a collection, a format that the library does not read
                self.families[key] = None
        return self.families[key]

    def _drawn(self, at: tuple, text: str, font: Any, fill: tuple) -> None:
        """Text as a picture, four times as fine as a pixel."""
        fine = font.font_variant(size=font.size * 4)
        left, top, right, bottom = fine.getbbox(text, anchor="ls")
        if right > left and bottom > top:
            image = Image.new("RGBA", (int(right - left) + 1, int(bottom - top) + 1), (*map(round, fill), 0))
            ImageDraw.Draw(image).text((-left, -top), text, tuple(map(round, fill)), fine, anchor="ls")
            self.picture(image, (at[0] + left / 4, at[1] + top / 4), (image.width / 4, image.height / 4))

    def box(self, box: tuple, fill: Any, outline: Any, width: float, radius: float, opacity: float) -> None:
        style = "F" * (fill is not None) + "D" * (outline is not None)
        self._colours(fill, outline, width)
        with self.pdf.local_context(fill_opacity=opacity):
            corners = {"round_corners": True, "corner_radius": radius} if radius else {}
            self.pdf.rect(box[0], box[1], box[2] - box[0], box[3] - box[1], style=style[::-1], **corners)

    def _colours(self, fill: Any, outline: Any, width: float) -> None:
        if fill is not None:
            self.pdf.set_fill_color(*map(round, fill))
        if outline is not None:
            self.pdf.set_draw_color(*map(round, outline))
            self.pdf.set_line_width(width)

    def picture(self, image: Image.Image, at: tuple, size: tuple) -> None:
        self.pdf.image(image, at[0], at[1], size[0], size[1])

    def ring(self, at: tuple, radius: float, colour: Any, width: float, opacity: float, fill: Any) -> None:
        self._colours(fill, colour, width)
        with self.pdf.local_context(fill_opacity=opacity, stroke_opacity=opacity):
            self.pdf.ellipse(at[0] - radius, at[1] - radius, 2 * radius, 2 * radius, style="DF" if fill else "D")

    def line(self, points: list, colour: Any, width: float, opacity: float) -> None:
        self._colours(None, colour, width)
        with self.pdf.local_context(stroke_opacity=opacity):
            self.pdf.polyline(points)
