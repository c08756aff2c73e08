"""Pictures as PNG, SVG and PDF files: one step, the whole frame or the map alone; in SVG and PDF text stays text."""

import base64
import html
import io
import unicodedata
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from attention_heatmap.drawing.colour import PAPER
from attention_heatmap.drawing.fonts import FONT_LABEL
from attention_heatmap.drawing.frame import FrameRenderer
from attention_heatmap.drawing.layout import used_size
from attention_heatmap.drawing.legend import draw_scale
from attention_heatmap.drawing.options import STILLS
from attention_heatmap.drawing.pen import AnyPen, Pen, VectorPen
from attention_heatmap.files import moved_into_place

SCALE_HEIGHT = 2.4  # of the room below a map for its scale, in heights of the font
PDF_ADVICE = "PDF files need fpdf2, which keeps text as text; run pip install fpdf2, or take format svg or png"

LEAST_MAP_WIDTH = 480  # pixels: room for what stands below a map alone, however narrow it is


def draw_figure(renderer: FrameRenderer, step: int, figure: str, as_shapes: bool = False) -> Image.Image | VectorPen:
    """A step, from 0, as an RGB image, or as shapes: "frame" or "map"."""
    if figure == "frame":
        return renderer.draw_shapes(step) if as_shapes else Image.fromarray(renderer.draw(step))
    layout = renderer.panel.layout
    width, height = used_size([place[2:] for place in layout.places], [(x, y, 1.0) for x, y, *_ in layout.places])
    size = max(width, renderer.px(LEAST_MAP_WIDTH)), height + round(renderer.px(FONT_LABEL) * SCALE_HEIGHT)
    canvas = Image.new("RGB", size, PAPER)
    canvas.paste(Image.fromarray(layout.picture).crop((0, 0, width, height)))
    pen = VectorPen(*size) if as_shapes else Pen(canvas)
    _draw_map(pen, renderer, step, *size)
    return pen if as_shapes else canvas


def write_figure(renderer: FrameRenderer, step: int, path: str | Path) -> Path:
    """Write a step, from 0, as a file of the suffix .png, .svg or .pdf; its path."""
    path, kind = Path(path), Path(path).suffix.lower()
    if kind[1:] not in STILLS:
        raise ValueError(f"{path} has no suffix of a picture; expected .{', .'.join(STILLS)}")
    save_picture(draw_figure(renderer, step, renderer.options.figure, kind != ".png"), path)
    return path


def save_picture(picture: Image.Image | VectorPen, path: Path) -> None:
    """Write an image, or shapes as the suffix says, whole or not at all."""
    with moved_into_place(path) as temporary:
        if isinstance(picture, Image.Image):
            picture.save(temporary)
        else:
            (write_pdf if path.suffix.lower() == ".pdf" else write_svg)(picture, temporary)


def _draw_map(pen: AnyPen, renderer: FrameRenderer, step: int, width: int, height: int) -> None:
    """The map, its marks, and below it its scale and the share of the pictures, at the foot of a size."""
    panel, number, fonts = renderer.panel, step - renderer.first_step, renderer.label_fonts
    at, panel.at = panel.at, (0, 0)
    try:
        panel.draw(pen, number)
        renderer.draw_marks(pen, step)
    finally:
        panel.at = at
    share = f"{panel.maps[0].shares[number]:.1%} on the picture{'s' * (len(renderer.sizes) > 1)}"
    y, end = height - round(fonts.size * 0.6), width - fonts.width(share)
    is_shown = width > fonts.width(share) * 3
    last = round(end - renderer.px(20)) if is_shown else width
    high, strength = float(panel.ends[0][number]) if panel.any_heat else None, float(panel.strengths[number])
    draw_scale(pen, (0, y), last, high, strength, renderer.sheet, 256)
    if is_shown:
        pen.text((end, y), share, fonts, renderer.legend.shares[0].colour)


def write_svg(pen: VectorPen, path: str | Path) -> None:
    """Write the shapes as an SVG file. Text names its font and its width, so that another font takes the same room."""
    writer = _SvgWriter()
    for kind, values in pen.shapes:
        getattr(writer, kind)(**values)
    size = f'width="{pen.width}" height="{pen.height}" viewBox="0 0 {pen.width} {pen.height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size}>'
    paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
    Path(path).write_text("\n".join([head, paper, *writer.elements, "</svg>\n"]), encoding="utf-8")


def picture_address(image: Image.Image, kind: str = "PNG", **how: Any) -> str:
    """A picture as the address of its own data."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


class _SvgWriter:
    """The shapes of a `VectorPen` as elements of SVG."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def _add(self, tag: str, words: str = "", **attributes: Any) -> None:
        """An element, its lengths to a tenth of a pixel; colours are RGB or None, "_" in a name stands for "-"."""
        parts = [tag]
        for name, value in attributes.items():
            if name in ("fill", "stroke"):
                value = "none" if value is None else "#" + "".join(f"{round(channel):02x}" for channel in value)
            value = f"{value:.1f}" if isinstance(value, float) else html.escape(str(value))
            parts.append(f'{name.replace("_", "-")}="{value}"')
        self.elements.append(f"<{' '.join(parts)}>{html.escape(words)}</{tag}>")

    def text(self, at: tuple, text: str, width: float, font: Any, fill: tuple) -> None:
        # A control character is no XML; its code point was drawn, so none comes here.
        text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs"))
        family = f"{font.getname()[0] or 'sans-serif'}, sans-serif"
        place = {"x": at[0], "y": at[1], "textLength": width, "lengthAdjust": "spacingAndGlyphs"}
        look = {"font_size": font.size, "font_family": family, "fill": fill, "xml:space": "preserve"}
        self._add("text", text, **place, **look)

    def box(self, box: tuple, fill: Any, outline: Any, width: float, radius: float, opacity: float) -> None:
        left, top, right, bottom = box
        place = {"x": left, "y": top, "width": right - left, "height": bottom - top, "rx": radius}
        edge = {} if outline is None else {"stroke": outline, "stroke_width": width}
        self._add("rect", **place, fill=fill, fill_opacity=f"{opacity:.3f}", **edge)

    def picture(self, image: Image.Image, at: tuple, size: tuple) -> None:
        place = {"x": at[0], "y": at[1], "width": size[0], "height": size[1], "preserveAspectRatio": "none"}
        self._add("image", **place, **{"xlink:href": picture_address(image)})

    def ring(self, at: tuple, radius: float, colour: Any, width: float, opacity: float, fill: Any) -> None:
        look = {"fill": fill, "stroke": colour, "stroke_width": width, "opacity": f"{opacity:.2f}"}
        self._add("circle", cx=at[0], cy=at[1], r=radius, **look)

    def line(self, points: list, colour: Any, width: float, opacity: float) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        look = {"stroke": colour, "stroke_width": width, "stroke_linejoin": "round", "opacity": f"{opacity:.2f}"}
        self._add("polyline", points=path, fill=None, **look)


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

    def box(self, box: tuple, fill: Any, outline: Any, width: float, radius: float, opacity: float) -> None:
        left, top, right, bottom = box
        style = "D" * (outline is not None) + "F" * (fill is not None)
        corners = {"round_corners": True, "corner_radius": radius} if radius else {}
        with self._look(fill, outline, width, fill_opacity=opacity):
            self.pdf.rect(left, top, right - left, bottom - top, style=style, **corners)

    def picture(self, image: Image.Image, at: tuple, size: tuple) -> None:
        self.pdf.image(image, *at, *size)

    def ring(self, at: tuple, radius: float, colour: Any, width: float, opacity: float, fill: Any) -> None:
        with self._look(fill, colour, width, fill_opacity=opacity, stroke_opacity=opacity):
            self.pdf.ellipse(at[0] - radius, at[1] - radius, 2 * radius, 2 * radius, style="DF" if fill else "D")

    def line(self, points: list, colour: Any, width: float, opacity: float) -> None:
        with self._look(None, colour, width, stroke_opacity=opacity):
            self.pdf.polyline(points)
