"""Pens of SVG and PDF files, in which text stays text."""

import base64
import html
import io
import unicodedata
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from attention_heatmap.drawing.pen import VectorPen

_PDF_ADVICE = "PDF files need fpdf2, which keeps text as text; run pip install fpdf2, or take format svg or png"


def picture_address(image: Image.Image, kind: str = "PNG", **how: Any) -> str:
    """A picture as the address of its own data."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


class SvgPen(VectorPen):
    """Draws elements of SVG. Text names its font and its width, so that another font takes the same room."""

    def __init__(self, width: int, height: int) -> None:
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size}>'
        self.elements = [head, '<rect width="100%" height="100%" fill="#ffffff"/>']

    def save(self, path: str | Path) -> None:
        Path(path).write_text("\n".join([*self.elements, "</svg>\n"]), encoding="utf-8")

    def _add(self, tag: str, words: str = "", **attributes: Any) -> None:
        """An element, its lengths to a tenth of a pixel; colours are RGB or None, "_" in a name stands for "-"."""
        parts = [tag]
        for name, value in attributes.items():
            if name in ("fill", "stroke"):
                value = "none" if value is None else "#" + "".join(f"{round(channel):02x}" for channel in value)
            value = f"{value:.1f}" if isinstance(value, float) else html.escape(str(value))
            parts.append(f'{name.replace("_", "-")}="{value}"')
        self.elements.append(f"<{' '.join(parts)}>{html.escape(words)}</{tag}>")

    def run(self, at: tuple, text: str, width: float, font: Any, fill: Any) -> None:
        # No control character comes here, which were no XML: of one a font set gives the code point.
        family = f"{font.getname()[0] or 'sans-serif'}, sans-serif"
        place = {"x": at[0], "y": at[1], "textLength": width, "lengthAdjust": "spacingAndGlyphs"}
        look = {"font_size": font.size, "font_family": family, "fill": fill, "xml:space": "preserve"}
        self._add("text", text, **place, **look)

    def rect(self, at: tuple, size: tuple, fill: Any, outline: Any, width: int, radius: int, opacity: float) -> None:
        place = {"x": at[0], "y": at[1], "width": size[0], "height": size[1], "rx": radius}
        edge = {} if outline is None else {"stroke": outline, "stroke_width": width}
        self._add("rect", **place, fill=fill, fill_opacity=f"{opacity:.3f}", **edge)

    def image(self, image: Image.Image, at: tuple, size: tuple) -> None:
        place = {"x": at[0], "y": at[1], "width": size[0], "height": size[1], "preserveAspectRatio": "none"}
        self._add("image", **place, **{"xlink:href": picture_address(image)})

    def circle(self, at: tuple, radius: float, colour: Any, width: float, opacity: float, fill: Any) -> None:
        look = {"fill": fill, "stroke": colour, "stroke_width": width, "opacity": f"{opacity:.2f}"}
        self._add("circle", cx=at[0], cy=at[1], r=radius, **look)

    def path(self, points: Any, colour: Any, width: float, opacity: float) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        look = {"stroke": colour, "stroke_width": width, "stroke_linejoin": "round", "opacity": f"{opacity:.2f}"}
        self._add("polyline", points=path, fill=None, **look)


class PdfPen(VectorPen):
    """Draws on a page of fpdf2, a pixel a point, its fonts embedded. Raises RuntimeError where there is no fpdf2.

    What a PDF viewer cannot shape or the library cannot embed is put in as a picture.
    """

    def __init__(self, width: int, height: int) -> None:
        try:
            from fpdf import FPDF
        except ImportError:
            raise RuntimeError(_PDF_ADVICE) from None
        self.pdf, self.families = FPDF(unit="pt", format=(width, height)), {}
        self.pdf.set_auto_page_break(False)
        self.pdf.add_page()

    def save(self, path: str | Path) -> None:
        self.pdf.output(str(path))

    def run(self, at: tuple, text: str, width: float, font: Any, fill: Any) -> None:
        family, fill = self._family(font), tuple(map(round, fill))
        shaped = any(unicodedata.bidirectional(c) in ("R", "AL") or "\u0900" <= c <= "\u109f" for c in text)
        if family is None or shaped:
            self._drawn(at, text, font, fill)
            return
        self.pdf.set_font(family, size=font.size)
        self.pdf.set_text_color(*fill)
        self.pdf.set_stretching(100 * width / (self.pdf.get_string_width(text) or width))
        self.pdf.text(*at, text)

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
            image = Image.new("RGBA", (int(right - left) + 1, int(bottom - top) + 1), (*fill, 0))
            ImageDraw.Draw(image).text((-left, -top), text, fill, fine, anchor="ls")
            self.picture(image, (at[0] + left / 4, at[1] + top / 4), (image.width / 4, image.height / 4))

    def _look(self, fill: Any, outline: Any, width: float, **opacities: float) -> Any:
        """A context in which shapes have these colours, an edge so wide, and these opacities."""
        if fill is not None:
            self.pdf.set_fill_color(*map(round, fill))
        if outline is not None:
            self.pdf.set_draw_color(*map(round, outline))
            self.pdf.set_line_width(width)
        return self.pdf.local_context(**opacities)

    def rect(self, at: tuple, size: tuple, fill: Any, outline: Any, width: int, radius: int, opacity: float) -> None:
        style = "D" * (outline is not None) + "F" * (fill is not None)
        corners = {"round_corners": True, "corner_radius": radius} if radius else {}
        with self._look(fill, outline, width, fill_opacity=opacity):
            self.pdf.rect(*at, *size, style=style, **corners)

    def image(self, image: Image.Image, at: tuple, size: tuple) -> None:
        self.pdf.image(image, *at, *size)

    def circle(self, at: tuple, radius: float, colour: Any, width: float, opacity: float, fill: Any) -> None:
        with self._look(fill, colour, width, fill_opacity=opacity, stroke_opacity=opacity):
            self.pdf.ellipse(at[0] - radius, at[1] - radius, 2 * radius, 2 * radius, style="DF" if fill else "D")

    def path(self, points: Any, colour: Any, width: float, opacity: float) -> None:
        with self._look(None, colour, width, stroke_opacity=opacity):
            self.pdf.polyline(list(points))


VECTOR_PENS = {".svg": SvgPen, ".pdf": PdfPen}
