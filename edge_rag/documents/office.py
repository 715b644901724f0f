"""Office files: DOCX, PPTX, XLSX and ODT, each a zip container with XML in it.

What a reader sees counts: deleted tracked changes, field codes and fallback drawings are left out, notes are kept.
"""

import datetime
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from edge_rag.documents.archive import Archive, iter_xml
from edge_rag.documents.text import Builder, rows_as_lines, squeeze
from edge_rag.errors import DocumentError
from edge_rag.interfaces import Document

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
ODT = "application/vnd.oasis.opendocument.text"

_UNSEEN = {"del", "moveFrom", "Fallback", "instrText", "delText", "pPr", "rPr", "annotation"}
_CODE_STYLE = re.compile(r"code|source|preformatted|listing|verbatim", re.IGNORECASE)
_MAX_CELLS_PER_ROW = 2000


def read_docx(data: bytes) -> Document:
    archive = Archive(data)
    main = _main_part(archive, "word/document.xml")
    builder = Builder()
    _add_core_metadata(builder, archive)
    reader = _DocxReader(builder, _docx_styles(archive, main))
    body = archive.xml(main).find("body")
    reader.read(body if body is not None else ())
    for kind, target in archive.relations(main).values():
        if kind in ("footnotes", "endnotes") and target in archive:
            for note in archive.xml(target):
                if note.get("type") not in ("separator", "continuationSeparator", "continuationNotice"):
                    builder.paragraph(" ".join(_run_text(p) for p in note.iter("p")))
    return builder.finish(DOCX)


class _DocxReader:
    def __init__(self, builder: Builder, styles: dict[str, str]) -> None:
        self._builder = builder
        self._styles = styles  # id -> name, in lower case
        self._items: list[str] = []
        self._code: list[str] = []

    def read(self, body: "Element | tuple[()]") -> None:
        for element in _blocks_of(body):
            if element.tag == "p":
                self._add_paragraph(element)
            else:
                self._flush()
                self._builder.lines("table", rows_as_lines(list(_docx_rows(element))))
        self._flush()

    def _add_paragraph(self, paragraph: Element) -> None:
        text = _run_text(paragraph)
        style, level, depth = self._looks(paragraph)
        if _CODE_STYLE.search(style):
            self._flush_items()
            self._code.append(text)
        elif not text.strip():
            return
        elif level:
            self._flush()
            if style == "title" and not self._builder.title:
                self._builder.title = text
            self._builder.heading(text, level)
        elif depth is not None:
            self._flush_code()
            self._items.append("  " * min(depth, 8) + "- " + squeeze(text))
        else:
            self._flush()
            self._builder.paragraph(text)

    def _looks(self, paragraph: Element) -> tuple[str, int, int | None]:
        """Return the style's name, the level if it is a heading, the depth if it is a list item."""
        properties = paragraph.find("pPr")
        if properties is None:
            return "", 0, None
        style_id = _value(properties.find("pStyle"))
        style = self._styles.get(style_id, style_id.lower())
        level = 0
        if match := re.match(r"heading ?(\d)", style):
            level = int(match[1])
        elif style == "title":
            level = 1
        elif (outline := _value(properties.find("outlineLvl"))).isdecimal() and int(outline[:3]) < 9:
            level = int(outline[:3]) + 1
        numbering = properties.find("numPr")
        if numbering is not None and _value(numbering.find("numId")) != "0":
            return style, level, _small_int(_value(numbering.find("ilvl")))
        if style.startswith("list"):
            return style, level, 0
        return style, level, None

    def _flush(self) -> None:
        self._flush_items()
        self._flush_code()

    def _flush_items(self) -> None:
        self._builder.lines("list", self._items)
        self._items = []

    def _flush_code(self) -> None:
        self._builder.code("\n".join(self._code))
        self._code = []


def _blocks_of(body: "Element | tuple[()]") -> Iterator[Element]:
    """Yield paragraphs and tables in order, looking through content controls and the like."""
    for element in body:
        if element.tag in ("p", "tbl"):
            yield element
        elif element.tag not in _UNSEEN:
            yield from _blocks_of(element)


def _docx_rows(table: Element) -> Iterator[list[str]]:
    for row in table.iterfind("tr"):
        yield [" ".join(_run_text(p) for p in cell.iter("p")) for cell in row.iter("tc")]


def _run_text(element: Element) -> str:
    """Return the visible text of a paragraph of any Office or OpenDocument file."""
    parts: list[str] = []
    for child in element:
        tag = child.tag
        if tag in _UNSEEN:
            continue
        if tag == "t":
            parts.append(child.text or "")
        elif tag == "tab":
            parts.append(" ")
        elif tag in ("br", "cr"):
            parts.append("\n")
        elif tag == "noBreakHyphen":
            parts.append("-")
        else:
            parts.append(_run_text(child))
            if tag == "txbxContent":
                parts.append("\n")
    return "".join(parts)


def _docx_styles(archive: Archive, main: str) -> dict[str, str]:
    """Map style ids to names: the ids are translated ("berschrift1"), the names of built-in styles are not."""
    for kind, target in archive.relations(main).values():
        if kind == "styles" and target in archive:
            styles = archive.xml(target).iter("style")
            return {style.get("styleId", ""): _value(style.find("name")).lower() for style in styles}
    return {}


def read_pptx(data: bytes) -> Document:
    archive = Archive(data)
    main = _main_part(archive, "ppt/presentation.xml")
    relations = archive.relations(main)
    builder = Builder()
    _add_core_metadata(builder, archive)
    slide_ids = [slide.get("r:id", "") for slide in archive.xml(main).iterfind("./sldIdLst/sldId")]
    for number, slide_id in enumerate(slide_ids, start=1):
        target = relations.get(slide_id, ("", ""))[1]
        if target not in archive:
            builder.warnings.append(f"slide {number} is missing in the file")
            continue
        builder.start_page(number)
        _add_slide(builder, archive.xml(target))
        for kind, notes in archive.relations(target).values():
            if kind == "notesSlide" and notes in archive:
                _add_notes(builder, archive.xml(notes))
    return builder.finish(PPTX)


def _add_slide(builder: Builder, slide: Element) -> None:
    shapes = [shape for shape in slide.iter() if shape.tag in ("sp", "tbl")]
    titles = [shape for shape in shapes if _placeholder(shape) in ("title", "ctrTitle")]
    for title in titles:
        builder.heading(" ".join(_shape_lines(title)), 2)
    for shape in shapes:
        if shape.tag == "tbl":
            rows = [
                [" ".join(_run_text(p) for p in cell.iter("p")) for cell in row.iter("tc")]
                for row in shape.iterfind("tr")
            ]
            builder.lines("table", rows_as_lines(rows))
        elif shape not in titles and _placeholder(shape) not in ("sldNum", "dt", "ftr"):
            lines = _shape_lines(shape)
            if len(lines) > 1:
                builder.lines("list", lines)
            else:
                builder.paragraph("".join(lines).removeprefix("- "))


def _add_notes(builder: Builder, notes: Element) -> None:
    for shape in notes.iter("sp"):
        if _placeholder(shape) == "body" and (lines := _shape_lines(shape)):
            builder.paragraph("Notes: " + "\n".join(line.strip().removeprefix("- ") for line in lines))


def _placeholder(shape: Element) -> str:
    placeholder = shape.find("./nvSpPr/nvPr/ph")
    return placeholder.get("type", "body") if placeholder is not None else ""


def _shape_lines(shape: Element) -> list[str]:
    lines = []
    is_title = _placeholder(shape) in ("title", "ctrTitle")
    for paragraph in shape.iterfind("./txBody/p"):
        text = squeeze(_run_text(paragraph))
        properties = paragraph.find("pPr")
        depth = _small_int(properties.get("lvl", "0")) if properties is not None else 0
        if text:
            lines.append(text if is_title else "  " * min(depth, 8) + "- " + text)
    return lines


def read_xlsx(data: bytes) -> Document:
    archive = Archive(data)
    main = _main_part(archive, "xl/workbook.xml")
    workbook = archive.xml(main)
    relations = archive.relations(main)
    targets = dict(relations.values())
    shared = _shared_strings(archive, targets.get("sharedStrings", ""))
    formats = _number_formats(archive, targets.get("styles", ""))
    properties = workbook.find("workbookPr")
    counts_from_1904 = properties is not None and properties.get("date1904") in ("1", "true")
    builder = Builder()
    _add_core_metadata(builder, archive)
    for number, sheet in enumerate(workbook.iterfind("./sheets/sheet"), start=1):
        target = relations.get(sheet.get("r:id", ""), ("", ""))[1]
        if "/chartsheets/" in target or target not in archive:
            continue
        cells = _Cells(shared, formats, counts_from_1904)
        rows = [row for element in iter_xml(archive.read(target), "row") if (row := cells.row(element))]
        if not rows:
            continue
        builder.start_page(number)
        builder.heading(sheet.get("name", f"Sheet {number}"), 2)
        width = max(len(row) for row in rows)
        first = min(next(i for i, cell in enumerate(row) if cell) for row in rows)
        while rows and sum(1 for cell in rows[0] if cell) == 1 and width - first > 1:
            builder.paragraph("".join(rows.pop(0)))  # a title above the table
        builder.lines("table", rows_as_lines([row[first:] for row in rows]))
    return builder.finish(XLSX)


class _Cells:
    """Turns cells into what the sheet shows, near enough: ISO 8601 dates, percentages, numbers without noise."""

    def __init__(self, shared: list[str], formats: list[str], counts_from_1904: bool) -> None:
        self._shared = shared
        self._formats = formats
        self._epoch = datetime.datetime(1904, 1, 1) if counts_from_1904 else datetime.datetime(1899, 12, 30)

    def row(self, row: Element) -> list[str]:
        texts: list[str] = []
        for cell in row.iterfind("c"):
            column = _column(cell.get("r", ""))
            if column is None:
                column = len(texts)
            if column >= _MAX_CELLS_PER_ROW:
                break
            texts.extend([""] * (column + 1 - len(texts)))
            texts[column] = self._text(cell)
        return texts if any(texts) else []

    def _text(self, cell: Element) -> str:
        kind = cell.get("t", "n")
        if kind == "inlineStr":
            return "".join(_run_text(part) for part in cell.iterfind("is"))
        value = cell.findtext("v") or ""
        if kind == "s":
            return (
                self._shared[int(value)]
                if value.isdecimal() and len(value) < 9 and int(value) < len(self._shared)
                else ""
            )
        if kind == "b":
            return "TRUE" if value == "1" else "FALSE"
        return self._number(value, _small_int(cell.get("s", "0"))) if kind == "n" else value

    def _number(self, value: str, style: int) -> str:
        try:
            number = float(value)
        except ValueError:
            return value
        shape = self._formats[style] if style < len(self._formats) else ""
        if shape in ("date", "time"):
            return self._date(number, shape) or value
        if shape == "percent":
            return f"{number * 100:.10g}%"
        return f"{number:.15g}" if abs(number) < 1e15 else value

    def _date(self, number: float, shape: str) -> str:
        try:
            moment = self._epoch + datetime.timedelta(seconds=round(number * 86400))
        except (OverflowError, ValueError):
            return ""
        if shape == "time" and 0 <= number < 1:
            return moment.strftime("%H:%M:%S")
        return moment.date().isoformat() if number == int(number) else moment.isoformat(sep=" ")


def _column(reference: str) -> int | None:
    """Return the index of the column in "BC12"."""
    letters = reference.rstrip("0123456789")
    if not (0 < len(letters) <= 3 and letters.isascii() and letters.isalpha()):
        return None
    index = 0
    for letter in letters.upper():
        index = index * 26 + ord(letter) - 64
    return index - 1


def _shared_strings(archive: Archive, name: str) -> list[str]:
    if name not in archive:
        return []
    return ["".join(t.text or "" for t in _visible_texts(item)) for item in iter_xml(archive.read(name), "si")]


def _visible_texts(item: Element) -> Iterator[Element]:
    """Yield the text runs, without the reading aids of East Asian strings."""
    yield from item.iterfind("t")
    yield from item.iterfind("r/t")


def _number_formats(archive: Archive, name: str) -> list[str]:
    """Return for each cell style "date", "time", "percent" or ""."""
    if name not in archive:
        return []
    styles = archive.xml(name)
    codes = {fmt.get("numFmtId", ""): fmt.get("formatCode", "") for fmt in styles.iterfind("./numFmts/numFmt")}
    formats = []
    for style in styles.iterfind("./cellXfs/xf"):
        number = style.get("numFmtId", "0")
        code = re.sub(r'"[^"]*"|\[[^\]]*\]|\\.', "", codes.get(number, "")).lower()
        if number in ("14", "15", "16", "17", "22") or re.search(r"[yd]", code):
            formats.append("date")
        elif number in ("18", "19", "20", "21", "45", "46", "47") or re.search(r"h|ss", code):
            formats.append("time")
        else:
            formats.append("percent" if number in ("9", "10") or "%" in code else "")
    return formats


def read_odt(data: bytes) -> Document:
    archive = Archive(data)
    manifest = archive.xml_or_none("META-INF/manifest.xml")
    if manifest is not None and manifest.find(".//encryption-data") is not None:
        raise DocumentError("encrypted", mend="save it without a password")
    builder = Builder()
    meta = archive.xml_or_none("meta.xml")
    if meta is not None:
        builder.title = meta.findtext(".//title") or ""
        builder.describe(
            author=meta.findtext(".//creator") or meta.findtext(".//initial-creator"),
            date=meta.findtext(".//date") or meta.findtext(".//creation-date"),
            subject=meta.findtext(".//subject"),
        )
    content = archive.xml("content.xml")
    body = content.find("./body/text")
    if body is not None:
        code_styles = {
            s.get("name") for s in content.iter("style") if _CODE_STYLE.search(s.get("parent-style-name", ""))
        }
        _add_odt(builder, body, code_styles)
    return builder.finish(ODT)


def _add_odt(builder: Builder, body: Element, code_styles: set[str | None]) -> None:
    code: list[str] = []
    for element in body:
        style = element.get("style-name", "")
        if element.tag == "p" and (style in code_styles or _CODE_STYLE.search(style)):
            code.append(_odt_text(element))
            continue
        builder.code("\n".join(code))
        code = []
        if element.tag == "h":
            builder.heading(_odt_text(element), _small_int(element.get("outline-level", "1")))
        elif element.tag == "p":
            builder.paragraph(_odt_text(element))
        elif element.tag == "list":
            builder.lines("list", _odt_items(element, 0))
        elif element.tag == "table":
            rows = [
                [" ".join(_odt_text(p) for p in cell.iter("p")) for cell in row if "cell" in cell.tag]
                for row in element.iter("table-row")
            ]
            builder.lines("table", rows_as_lines(rows))
        elif element.tag not in ("tracked-changes", "sequence-decls", "forms", "table-of-content"):
            _add_odt(builder, element, code_styles)
    builder.code("\n".join(code))


def _odt_items(items: Element, depth: int) -> list[str]:
    lines = []
    for item in items:
        marker = "- "
        for part in item:
            if part.tag in ("p", "h"):
                lines.append("  " * min(depth, 8) + marker + squeeze(_odt_text(part)))
                marker = "  "
            elif part.tag == "list":
                lines += _odt_items(part, depth + 1)
    return lines


def _odt_text(element: Element) -> str:
    parts = [element.text or ""]
    for child in element:
        if child.tag == "s":
            count = child.get("c", "1")
            parts.append(" " * min(_small_int(count), 100))
        elif child.tag == "tab":
            parts.append(" ")
        elif child.tag == "line-break":
            parts.append("\n")
        elif child.tag == "note":
            body = child.find("note-body")
            parts.append(f" ({squeeze(_odt_text(body))})" if body is not None else "")
        elif child.tag not in ("annotation", "change", "change-start", "change-end", "bookmark"):
            parts.append(_odt_text(child))
        parts.append(child.tail or "")
    return "".join(parts)


def _main_part(archive: Archive, usual: str) -> str:
    for kind, target in archive.relations("").values():
        if kind == "officeDocument" and target in archive:
            return target
    return usual


def _add_core_metadata(builder: Builder, archive: Archive) -> None:
    for kind, target in archive.relations("").values():
        if kind == "core-properties" and target in archive:
            core = archive.xml(target)
            builder.title = core.findtext("title") or ""
            builder.describe(
                author=core.findtext("creator"),
                date=core.findtext("modified") or core.findtext("created"),
                subject=core.findtext("subject"),
            )


def _value(element: Element | None) -> str:
    return element.get("val", "") if element is not None else ""


def _small_int(text: str) -> int:
    """Read a count or level; nonsense is 0."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else 0
