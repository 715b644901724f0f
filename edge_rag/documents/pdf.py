"""PDF: lines with their place and size on the page, joined to paragraphs and headings.

PDFium gives lines of text; what is a paragraph, a heading or a running title must be seen from where the lines stand.
PDFium may not be called from two threads at once, so one lock guards it.
"""

import ctypes
import math
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edge_rag.documents.text import Builder, clean, squeeze
from edge_rag.errors import DocumentError
from edge_rag.interfaces import Document

MAX_PAGES = 50_000
MAX_CHARS = 256 << 20

_PDFIUM = threading.Lock()
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_HYPHEN = "\u2010"  # stands for any hyphen at a line's end until the lines are joined
_LINE_END_HYPHEN = re.compile("(?<=\\w)[-\u2010\u00ad\ufffe\x02]\\s*$")
_PHYSICAL_LINE = re.compile("[^\n\ufffe\x02]*[\n\ufffe\x02]?")  # PDFium runs lines together at a hyphen, which it marks
_LEADER = re.compile(r"(?: ?[.·…_]){5,} ?")  # the dots in a table of contents
_CONTENTS_ENTRY = re.compile(r" … (\d+|[ivxlc]+)?$")
_BULLET = re.compile(r"^([•◦▪●○■□–‣⁃·*]|-|\(?\d{1,3}[.)]|\(?[a-z][.)])\s+(?=\S)")
_PAGE_NUMBER = re.compile(
    r"^\W*(page\s+)?(\d+|[ivxlc]+)\b(\s*(/|of)\s*\d+)?|\b(page\s+)?(\d+|[ivxlc]+)(\s*(/|of)\s*\d+)?\W*$"
)
_NUMBER_ROW = re.compile(r"\S [-–(£$€]?\d[\d.,]*[)%]?$")
_BOLD = re.compile(r"bold|black|heavy|medi(um)?\b|CMBX|SFBX|CMSSBX", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?:;。！？][\"'”’)\]]*$")
_EDGE_LINES = 2  # at the top and the bottom of a page, where running titles and page numbers stand
_JUNK_TITLE = re.compile(
    r"^(untitled|microsoft (word|powerpoint) - |.*\.(docx?|pptx?|indd|tex|dvi|pdf|qxd|rtf|odt)$|\s*$)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    left: float
    right: float
    baseline: float
    size: float  # of the font on the page, in points
    is_bold: bool


def read_pdf(data: bytes) -> Document:
    builder = Builder()
    with _PDFIUM:
        pages, outline, without_text = _extract(data, builder)
    if without_text:
        builder.warnings.append(f"{_page_list(without_text)} no text layer (scanned?)")
    _drop_running_titles(pages)
    _add_pages(builder, pages, outline)
    return builder.finish("application/pdf")


def _extract(data: bytes, builder: Builder) -> tuple[list[list[_Line]], dict[str, int], list[int]]:
    """Return the lines of each page, the outline (title -> level), and the numbers of pages without text."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower() or "security" in str(error).lower():
            raise DocumentError("encrypted PDF", mend="save it without a password") from error
        raise DocumentError("damaged PDF", mend="open it in a PDF viewer and print it to a new PDF") from error
    try:
        _add_metadata(builder, pdf)
        outline = _outline(pdf)
        pages: list[list[_Line]] = []
        without_text: list[int] = []
        unreadable: list[int] = []
        n_chars = 0
        n_pages = len(pdf)
        for i in range(min(n_pages, MAX_PAGES)):
            try:
                lines, is_blank = _page_lines(pdf, i)
            except pypdfium2.PdfiumError:
                unreadable.append(i + 1)
                lines, is_blank = [], True
            if not lines and not is_blank:
                without_text.append(i + 1)
            pages.append(lines)
            n_chars += sum(len(line.text) for line in lines)
            if n_chars > MAX_CHARS:
                break
        if len(pages) < n_pages:
            builder.warnings.append(f"only the first {len(pages)} of {n_pages} pages were read")
        if unreadable:
            builder.warnings.append(f"{_page_list(unreadable)} damaged content")
        return pages, outline, without_text
    finally:
        pdf.close()


def _add_metadata(builder: Builder, pdf: Any) -> None:
    values = pdf.get_metadata_dict(skip_empty=True)
    title = squeeze(clean(values.get("Title", "")))
    if not _JUNK_TITLE.match(title):
        builder.title = title
    builder.describe(
        author=values.get("Author"),
        subject=values.get("Subject"),
        keywords=values.get("Keywords"),
        date=_iso_date(values.get("CreationDate", "")),
    )


def _iso_date(value: str) -> str:
    match = re.match(r"(?:D:)?(\d{4})(\d\d)?(\d\d)?", value)
    return "-".join(part for part in match.groups() if part) if match else ""


def _outline(pdf: Any) -> dict[str, int]:
    import pypdfium2

    outline: dict[str, int] = {}
    try:
        for bookmark in pdf.get_toc(max_depth=6):
            outline.setdefault(_key(bookmark.get_title()), bookmark.level + 1)
            if len(outline) > 20_000:
                break
    except (pypdfium2.PdfiumError, ValueError):
        pass  # an outline is an extra
    outline.pop("", None)
    return outline


def _page_lines(pdf: Any, index: int) -> tuple[list[_Line], bool]:
    """Return the page's lines, and whether there is nothing at all on it."""
    import pypdfium2.raw as pdfium

    page = pdf[index]
    try:
        textpage = page.get_textpage()
        try:
            lines = list(_lines(textpage)) if textpage.count_chars() else []
        finally:
            textpage.close()
        return lines, not lines and pdfium.FPDFPage_CountObjects(page) == 0
    finally:
        page.close()


def _lines(textpage: Any) -> Iterator[_Line]:
    for match in _PHYSICAL_LINE.finditer(textpage.get_text_range()):
        shown = match[0].strip()
        text = _LEADER.sub(" … ", squeeze(clean(_LINE_END_HYPHEN.sub(_HYPHEN, shown.translate(_LIGATURES)))))
        if not text:
            continue
        start = match.start() + len(match[0]) - len(match[0].lstrip())
        first, last = _glyph(textpage, start), _glyph(textpage, start + len(shown) - 1)
        # One word in another font, at either end, must not make the line look like a heading.
        size = min(first.size or last.size, last.size or first.size)
        if _BULLET.match(text):
            size = last.size
        yield _Line(text, first.left, max(first.left, last.right), first.baseline, size, first.is_bold and last.is_bold)


@dataclass(frozen=True, slots=True)
class _Glyph:
    left: float
    right: float
    baseline: float
    size: float
    is_bold: bool


def _glyph(textpage: Any, text_index: int) -> _Glyph:
    import pypdfium2.raw as pdfium

    index = pdfium.FPDFText_GetCharIndexFromTextIndex(textpage, text_index)
    box, x, y = pdfium.FS_RECTF(), ctypes.c_double(), ctypes.c_double()
    if not pdfium.FPDFText_GetLooseCharBox(textpage, index, box):
        return _Glyph(0.0, 0.0, 0.0, 0.0, False)
    pdfium.FPDFText_GetCharOrigin(textpage, index, x, y)
    matrix = pdfium.FS_MATRIX()
    pdfium.FPDFText_GetMatrix(textpage, index, matrix)
    size = pdfium.FPDFText_GetFontSize(textpage, index) * math.hypot(matrix.c, matrix.d)
    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    length = pdfium.FPDFText_GetFontInfo(textpage, index, name, len(name), flags)
    is_bold = 0 < length <= len(name) and bool(_BOLD.search(name.value.decode("latin-1")))
    return _Glyph(box.left, box.right, y.value, round(size, 1), is_bold)


def _drop_running_titles(pages: list[list[_Line]]) -> None:
    """Remove lines that come back, but for their numbers, at the edge of at least half of the pages."""
    filled = [page for page in pages if len(page) > 2 * _EDGE_LINES]
    if len(filled) < 3:
        return
    for at_top in (True, False):
        counts = Counter(key for page in filled for key in {_running_key(line) for line in _edge(page, at_top)})
        running = {key for key, count in counts.items() if count >= max(3, len(filled) / 2)}
        if not running:
            continue
        for page in pages:
            dropped = [line for line in _edge(page, at_top) if _running_key(line) in running]
            page[:] = [line for line in page if not any(line is other for other in dropped)]


def _edge(page: list[_Line], at_top: bool) -> list[_Line]:
    return page[:_EDGE_LINES] if at_top else page[-_EDGE_LINES:]


def _running_key(line: _Line) -> str:
    """Return the text without page number. Numbers inside stay: rows of a table that runs over pages are no titles."""
    return _PAGE_NUMBER.sub("#", line.text.lower())


def _add_pages(builder: Builder, pages: list[list[_Line]], outline: dict[str, int]) -> None:
    sizes = Counter[float]()
    bold_chars = all_chars = 0
    for page in pages:
        for line in page:
            sizes[line.size] += len(line.text)
            all_chars += len(line.text)
            bold_chars += len(line.text) if line.is_bold else 0
    body_size = sizes.most_common(1)[0][0] if sizes else 0.0
    larger = sorted((size for size in sizes if size > 1.12 * body_size), reverse=True)
    levels = {size: min(rank, 4) for rank, size in enumerate(_distinct(larger), start=1)}
    headings = _Headings(body_size, levels, outline, bold_chars < 0.3 * all_chars)
    words = _vocabulary(pages)
    leading = _usual_leading(pages)
    for number, page in enumerate(pages, start=1):
        builder.start_page(number)
        items: list[str] = []
        for group in _groups(page, leading):
            text = _join(group, words)
            level = headings.level(group, text)
            if not level and _CONTENTS_ENTRY.search(text):
                items.append(f"- {text}")
                continue
            if not level and _BULLET.match(text):
                items.append(_BULLET.sub(lambda m: ("-" if len(m[1]) == 1 else m[1]) + " ", text))
                continue
            builder.lines("list", items)
            items = []
            if level:
                builder.heading(text, level)
            elif _is_table(group):
                builder.lines("table", [line.text for line in group])
            elif group[0] is page[0] and not text[0].isupper() and builder.ends_in_mid_sentence:
                builder.continue_paragraph(text)
            else:
                builder.paragraph(text)
        builder.lines("list", items)


@dataclass(frozen=True, slots=True)
class _Headings:
    body_size: float
    levels: dict[float, int]  # of the sizes above the body's
    outline: dict[str, int]
    bold_is_special: bool

    def level(self, group: list[_Line], text: str) -> int:
        """Return the level of a group of lines that is a heading, else 0."""
        if len(text) > 200 or len(group) > 3 or not re.search(r"[^\W\d]", text) or _CONTENTS_ENTRY.search(text):
            return 0
        if level := self.outline.get(_key(text)):
            return level
        size = group[0].size
        if size > 1.12 * self.body_size:
            nearest = min(self.levels, key=lambda known: abs(known - size))
            return self.levels[nearest] + (1 if self.outline else 0)
        is_bold = self.bold_is_special and all(line.is_bold for line in group)
        if is_bold and len(text) <= 120 and size >= 0.95 * self.body_size and not re.search(r"[.,;:]$", text):
            return min(len(self.levels) + 1, 5)
        return 0


def _distinct(sizes: Iterable[float]) -> list[float]:
    """Merge sizes that differ by less than 4 %: they are one style, unevenly measured."""
    kept: list[float] = []
    for size in sizes:
        if not kept or size < 0.96 * kept[-1]:
            kept.append(size)
    return kept


def _usual_leading(pages: list[list[_Line]]) -> float:
    steps = [
        above.baseline - below.baseline
        for page in pages[:50]
        for above, below in pairwise(page)
        if 0 < above.baseline - below.baseline < 3 * max(above.size, 1.0) and abs(above.size - below.size) < 1
    ]
    return sorted(steps)[len(steps) // 4] if steps else 0.0  # most steps are within paragraphs


def _groups(page: list[_Line], leading: float) -> Iterator[list[_Line]]:
    """Split a page's lines into paragraphs and headings."""
    group: list[_Line] = []
    for line in page:
        if group and _starts_new(group, line, leading):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _starts_new(group: list[_Line], line: _Line, leading: float) -> bool:
    last = group[-1]
    step = last.baseline - line.baseline
    if abs(line.size - last.size) > 0.12 * max(line.size, last.size) or (
        line.is_bold != last.is_bold and len(group[0].text) < 120
    ):
        return abs(step) > 0.3 * last.size  # else a footnote mark or a bold word on the same line
    if _BULLET.match(line.text) or _CONTENTS_ENTRY.search(last.text):
        return True
    ends_sentence = bool(_SENTENCE_END.search(last.text))
    if step < -0.5 * last.size:  # up: the next column
        return ends_sentence
    gap = 1.35 * leading
    if step > (
        gap if gap > 1.3 * last.size else 1.5 * last.size
    ):  # lines of a heading are larger than the usual leading
        return True
    width = max(one.right for one in group) - min(one.left for one in group)
    if ends_sentence and last.right < line.right - 0.15 * max(width, 1.0):
        return True
    return (
        ends_sentence and line.left > min(one.left for one in group[-2:]) + 0.7 * line.size and step > 0.3 * line.size
    )


def _join(group: list[_Line], words: set[str]) -> str:
    """Join wrapped lines. A hyphen at a line's end goes, unless the document elsewhere writes that word with it."""
    text = group[0].text
    for line in group[1:]:
        if not text.endswith(_HYPHEN):
            text += " " + line.text
            continue
        head, tail = text[:-1], line.text
        before, after = re.search(r"\w*$", head), re.match(r"\w*", tail)
        left, right = before[0] if before else "", after[0] if after else ""
        hyphenated = f"{left}-{right}".lower() in words
        joined = (left + right).lower() in words
        keeps = (hyphenated and not joined) or not right[:1].islower() or left.isdigit()
        text = f"{head}-{tail}" if keeps else head + tail
    return text.replace(_HYPHEN, "-")


def _is_table(group: list[_Line]) -> bool:
    """Rows of numbers: most lines end in one, after a label or other numbers."""
    return len(group) >= 3 and sum(1 for line in group if _NUMBER_ROW.search(line.text)) >= 0.7 * len(group)


def _vocabulary(pages: list[list[_Line]]) -> set[str]:
    words: set[str] = set()
    for page in pages:
        for line in page:
            words.update(re.findall(r"\w+(?:-\w+)?", line.text.lower()))
    return words


def _key(text: str) -> str:
    """Return what an outline's entry and its heading on the page have in common."""
    return re.sub(r"\W+", "", re.sub(r"^[\s\d.]+", "", text)).lower()


def _page_list(numbers: list[int]) -> str:
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges[:20])
    return f"page {shown} has" if len(numbers) == 1 else f"pages {shown} have"
