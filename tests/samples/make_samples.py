"""Make the PDF, DOCX, EPUB and ODT files in lighthouse/ from the texts in sources/.

The sources are Markdown of a small kind: headings, paragraphs of one or more lines, lists and tables. The other files
in lighthouse/ (Markdown, HTML, CSV, text, mail) are their own sources and are not touched.

Run it after changing a source: python tests/samples/make_samples.py
It needs two packages that the project itself does not: pip install reportlab==4.4.4 python-docx==1.2.0
Dates are fixed, so a second run with the same versions writes the same bytes.
"""

import io
import os
import random
import re
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
SOURCES = HERE / "sources"
LIGHTHOUSE = HERE / "lighthouse"

TRUST = "Skerry Point Lighthouse Trust"
DATE = datetime(2024, 6, 20, 12, 0, 0, tzinfo=UTC)


def main() -> None:
    for name, data in make_all().items():
        (LIGHTHOUSE / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes")


def make_all() -> dict[str, bytes]:
    return {
        "annual-report-2024.pdf": make_pdf(read_source("annual-report-2024.md")),
        "keepers-report-1953-scan.pdf": make_scan(read_source("keepers-report-1953.md")),
        "maintenance-manual.docx": make_docx(read_source("maintenance-manual.md")),
        "history.epub": make_epub(read_source("history.md"), author="Ruth Sandison"),
        "trustees-minutes-2024-03.odt": make_odt(read_source("trustees-minutes-2024-03.md")),
    }


# ---------------------------------------------------------------- the sources


@dataclass(frozen=True, slots=True)
class Part:
    """One heading, paragraph, list or table."""

    kind: Literal["heading", "paragraph", "bullets", "numbers", "table"]
    level: int = 0  # of a heading
    text: str = ""
    items: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()  # the first one is the table's head


def read_source(name: str) -> list[Part]:
    blocks = re.split(r"\n\s*\n", (SOURCES / name).read_text(encoding="utf-8").strip())
    return [_part(block.splitlines()) for block in blocks]


def _part(lines: list[str]) -> Part:
    first = lines[0]
    if heading := re.match(r"(#+) (.*)", first):
        return Part("heading", level=len(heading[1]), text=heading[2])
    if first.startswith("- "):
        return Part("bullets", items=tuple(line[2:] for line in lines))
    if first.startswith("1. "):
        return Part("numbers", items=tuple(re.sub(r"^\d+\. ", "", line) for line in lines))
    if first.startswith("| "):
        rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
        return Part("table", rows=(rows[0], *rows[2:]))
    return Part("paragraph", text=" ".join(lines))


# ---------------------------------------------------------------- PDF with a text layer


def make_pdf(parts: list[Part]) -> bytes:
    os.environ["SOURCE_DATE_EPOCH"] = f"{DATE.timestamp():.0f}"  # where reportlab looks for a fixed date
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.lib.units import mm
    from reportlab.platypus import Paragraph, SimpleDocTemplate, Table

    def style(size: int, before: int, bold: bool = False, indent: int = 0) -> ParagraphStyle:
        font = "Helvetica-Bold" if bold else "Helvetica"
        spacing = {"leading": size * 1.4, "spaceBefore": before, "spaceAfter": 4, "keepWithNext": bold}
        return ParagraphStyle(f"s{size}", fontName=font, fontSize=size, bulletIndent=4, leftIndent=indent, **spacing)

    body, item_style = style(11, 4), style(11, 0, indent=16)
    headings = {1: style(20, 0, bold=True), 2: style(14, 14, bold=True), 3: style(11, 8, bold=True)}
    flow: list[Any] = []
    for part in parts:
        if part.kind == "heading":
            flow.append(Paragraph(escape(part.text), headings[part.level]))
        elif part.kind == "paragraph":
            flow.append(Paragraph(escape(part.text), body))
        elif part.kind == "table":
            widths = [90 * mm] + [30 * mm] * (len(part.rows[0]) - 1)
            look = [("LINEBELOW", (0, 0), (-1, 0), 0.7, "black"), ("ALIGN", (1, 0), (-1, -1), "RIGHT")]
            flow.append(Table([list(row) for row in part.rows], colWidths=widths, style=look, hAlign="LEFT"))
        else:
            flow += [Paragraph(escape(item), item_style, bulletText="•") for item in part.items]

    def furniture(canvas: Any, doc: Any) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawString(25 * mm, 285 * mm, f"{TRUST}: annual report 2024")
        canvas.drawCentredString(105 * mm, 12 * mm, f"Page {doc.page}")

    out = io.BytesIO()
    document = SimpleDocTemplate(
        out, pagesize=A4, leftMargin=25 * mm, rightMargin=25 * mm, topMargin=22 * mm, bottomMargin=22 * mm,
        title=parts[0].text, author=TRUST, subject=TRUST,
    )  # fmt: skip
    document.build(flow, onFirstPage=furniture, onLaterPages=furniture)
    return out.getvalue()


# ---------------------------------------------------------------- PDF of two scanned pages


def make_scan(parts: list[Part]) -> bytes:
    """Draw the text as a crooked, speckled black-and-white picture: two pages, no text layer."""
    from PIL import ImageFont  # Pillow comes with reportlab

    font = ImageFont.load_default(25)
    lines: list[str] = []
    for part in parts:
        lines += [*_wrap(part.text, 64), ""]
    half = next(n for n in range(len(lines) // 2, len(lines)) if not lines[n])
    pages = [_scanned_page(text, font, seed) for seed, text in enumerate((lines[:half], lines[half:]), start=1)]
    out = io.BytesIO()
    date = time.struct_time(DATE.timetuple())
    pages[0].save(
        out, "PDF", save_all=True, append_images=pages[1:], resolution=120,
        title=parts[0].text, creationDate=date, modDate=date,
    )  # fmt: skip
    return out.getvalue()


def _scanned_page(lines: list[str], font: Any, seed: int) -> Any:
    from PIL import Image, ImageDraw

    width, height = 992, 1403  # A4 at 120 dots per inch
    page = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        draw.text((110, 130 + row * 46), line, font=font, fill=0)
    page = page.rotate(0.7 if seed % 2 else -0.5, resample=Image.Resampling.BICUBIC, fillcolor=255)
    specks = random.Random(seed)
    draw = ImageDraw.Draw(page)
    for _ in range(150):
        x, y = specks.randrange(width), specks.randrange(height)
        draw.ellipse((x, y, x + specks.randrange(3), y + specks.randrange(3)), fill=0)
    return page.point(lambda grey: 255 if grey > 140 else 0).convert("1")


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


# ---------------------------------------------------------------- DOCX


def make_docx(parts: list[Part]) -> bytes:
    import docx

    document = docx.Document()
    properties = document.core_properties
    properties.title, properties.author, properties.comments = parts[0].text, "Gordon Leask", ""
    properties.created = properties.modified = DATE
    for part in parts:
        if part.kind == "heading":
            document.add_heading(part.text, part.level - 1)  # level 0 is Word's style "Title"
        elif part.kind == "paragraph":
            document.add_paragraph(part.text)
        elif part.kind == "table":
            table = document.add_table(rows=0, cols=len(part.rows[0]), style="Table Grid")
            for row in part.rows:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
        else:
            for item in part.items:
                document.add_paragraph(item, style="List Bullet" if part.kind == "bullets" else "List Number")
    out = io.BytesIO()
    document.save(out)
    with zipfile.ZipFile(out) as archive:
        return pack({name: archive.read(name) for name in archive.namelist()})


# ---------------------------------------------------------------- EPUB


def make_epub(parts: list[Part], *, author: str) -> bytes:
    """Make an EPUB 3 book in which each heading of level 2 begins a chapter."""
    title = parts[0].text
    chapters = list(_chapters(parts[1:]))
    names = [f"chapter{n}.xhtml" for n in range(1, len(chapters) + 1)]
    headings = [escape(chapter[0].text) for chapter in chapters]
    links = "\n".join(f'<li><a href="{name}">{h}</a></li>' for name, h in zip(names, headings, strict=True))
    manifest = "\n".join(f'<item id="{name[:-6]}" href="{name}" media-type="application/xhtml+xml"/>' for name in names)
    spine = "\n".join(f'<itemref idref="{name[:-6]}"/>' for name in names)
    package = f"""<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id" xml:lang="en">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:identifier id="id">urn:skerry-point:history</dc:identifier>
<dc:title>{escape(title)}</dc:title>
<dc:creator>{escape(author)}</dc:creator>
<dc:language>en</dc:language>
<dc:date>{DATE:%Y-%m-%d}</dc:date>
<meta property="dcterms:modified">{DATE:%Y-%m-%dT%H:%M:%SZ}</meta>
</metadata>
<manifest>
<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
{manifest}
</manifest>
<spine>
{spine}
</spine>
</package>
"""
    container = """<?xml version="1.0" encoding="utf-8"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OEBPS/package.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>
"""
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": container,
        "OEBPS/package.opf": package,
        "OEBPS/nav.xhtml": _xhtml(title, f'<nav epub:type="toc"><h1>Contents</h1><ol>\n{links}\n</ol></nav>'),
    }
    for name, chapter in zip(names, chapters, strict=True):
        tagged = [("h1" if part.kind == "heading" else "p", escape(part.text)) for part in chapter]
        members[f"OEBPS/{name}"] = _xhtml(chapter[0].text, "\n".join(f"<{tag}>{text}</{tag}>" for tag, text in tagged))
    return pack({name: text.encode() for name, text in members.items()})


def _chapters(parts: list[Part]) -> Iterator[list[Part]]:
    starts = [n for n, part in enumerate(parts) if part.kind == "heading"]
    for start, end in zip(starts, [*starts[1:], len(parts)], strict=True):
        yield parts[start:end]


def _xhtml(title: str, body: str) -> str:
    return f"""<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" xml:lang="en">
<head><title>{escape(title)}</title></head>
<body>
{body}
</body>
</html>
"""


# ---------------------------------------------------------------- ODT

ODT_MIME = "application/vnd.oasis.opendocument.text"
ODT_NAMES = (
    " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for name in ("office", "style", "text", "table", "meta", "manifest")
    )
    + ' xmlns:fo="urn:oasis:names:tc:opendocument:xmlns:xsl-fo-compatible:1.0"'
)


def make_odt(parts: list[Part]) -> bytes:
    body = "\n".join(_odt_part(part) for part in parts)
    content = _odt_file("office:document-content", f"<office:body><office:text>\n{body}\n</office:text></office:body>")
    meta = _odt_file(
        "office:document-meta",
        '<office:meta xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>{escape(parts[0].text)}</dc:title>"
        "<meta:initial-creator>Sheila Wylie</meta:initial-creator>"
        f"<dc:date>{DATE:%Y-%m-%dT%H:%M:%S}</dc:date></office:meta>",
    )
    styles = _odt_file(
        "office:document-styles",
        "<office:styles>"
        + "".join(
            f'<style:style style:name="Heading_20_{n}" style:display-name="Heading {n}" '
            f'style:family="paragraph" style:default-outline-level="{n}">'
            f'<style:paragraph-properties fo:margin-top="4mm" fo:margin-bottom="2mm"/>'
            f'<style:text-properties fo:font-weight="bold" fo:font-size="{size}pt"/></style:style>'
            for n, size in ((1, 18), (2, 13))
        )
        + "</office:styles>",
    )
    files = {"/": ODT_MIME, "content.xml": "text/xml", "styles.xml": "text/xml", "meta.xml": "text/xml"}
    manifest = _odt_file(
        "manifest:manifest",
        "".join(
            f'<manifest:file-entry manifest:full-path="{path}" manifest:media-type="{kind}"/>'
            for path, kind in files.items()
        ),
    )
    members = {"mimetype": ODT_MIME, "META-INF/manifest.xml": manifest}
    members |= {"content.xml": content, "styles.xml": styles, "meta.xml": meta}
    return pack({name: text.encode() for name, text in members.items()})


def _odt_file(tag: str, body: str) -> str:
    version = f'{tag.split(":")[0]}:version="1.2"'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{tag} {ODT_NAMES} {version}>\n{body}\n</{tag}>\n'


def _odt_part(part: Part) -> str:
    if part.kind == "heading":
        level = part.level
        return f'<text:h text:style-name="Heading_20_{level}" text:outline-level="{level}">{escape(part.text)}</text:h>'
    if part.kind == "paragraph":
        return _odt_paragraph(part.text)
    if part.kind == "table":
        rows = "\n".join(f"<table:table-row>{''.join(map(_odt_cell, row))}</table:table-row>" for row in part.rows)
        columns = f'<table:table-column table:number-columns-repeated="{len(part.rows[0])}"/>'
        return f"<table:table>{columns}\n{rows}\n</table:table>"
    items = "".join(f"<text:list-item>{_odt_paragraph(item)}</text:list-item>" for item in part.items)
    return f"<text:list>{items}</text:list>"


def _odt_paragraph(text: str) -> str:
    return f"<text:p>{escape(text)}</text:p>"


def _odt_cell(text: str) -> str:
    return f'<table:table-cell office:value-type="string">{_odt_paragraph(text)}</table:table-cell>'


# ---------------------------------------------------------------- archives


def pack(members: dict[str, bytes]) -> bytes:
    """Make a zip archive with fixed dates. A member called mimetype is stored as it is, as EPUB and ODF demand."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, date_time=DATE.timetuple()[:6])
            entry.compress_type = zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return out.getvalue()


if __name__ == "__main__":
    main()
