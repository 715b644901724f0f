"""From bytes to clean text, and from pieces of text to a Document.

Text is normalised once, here: line ends are LF, control characters and lone surrogates are gone, trailing spaces are
cut, and the whole is NFC, because PDFs and keyboards disagree on how an accent is stored, and a lexical search would
miss one of the two. Not NFKC: it would turn x² into x2, and a citation must quote what the document says.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

from edge_rag.interfaces import Block, BlockKind, Document, PageSpan

_BOMS = (  # the longer ones first: the UTF-32 LE mark begins with the UTF-16 LE one
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What text in an undeclared legacy encoding may be in; the fewer candidates, the better the guess on short texts.
_LEGACY = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"]
_LEGACY_EAST_ASIAN = ["cp932", "euc_jp", "gb18030", "big5", "cp949"]
_GUESS_BYTES = 1 << 16
_SEVEN_BIT = re.compile(r"\s*[\"']?(iso-?2022|hz)", re.IGNORECASE)  # they look like ASCII, so UTF-8 would claim them
_NO_TEXT = {"utf-7", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"}

_LINE_ENDS = re.compile("\r\n?|[\x0b\x85\u2028]")
_PARAGRAPH_ENDS = re.compile("[\x0c\u2029]")
_SPACES = re.compile("[\u00a0\u2007\u202f]")
_JUNK = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff\ufff9-\ufffb\ufffe\uffff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_TRAILING = re.compile(r"(?<![ \t])[ \t]+$", re.MULTILINE)  # tried once for each run of spaces, or it were quadratic
_BLANK_LINES = re.compile(r"\n{3,}")


def decode(data: bytes, declared: str | None = None) -> str:
    """Decode by byte order mark, UTF-16 pattern, UTF-8, `declared` encoding, then by guess; never fails.

    That bytes beyond ASCII are valid UTF-8 by chance is less likely than that a declaration is wrong.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    if (pattern := _utf16_without_mark(data)) is not None:
        return data.decode(pattern, "replace")
    if declared and _SEVEN_BIT.match(declared) and (text := _decode_declared(data, declared)) is not None:
        return text
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if declared and (text := _decode_declared(data, declared)) is not None:
        return text
    lossy = data.decode("utf-8", "replace")
    if sum(1 for c in lossy[: 1 << 20] if c > "\x7f") > 10 * lossy.count("\ufffd"):
        return lossy  # UTF-8 with a few damaged bytes
    return data.decode(_guess(data), "replace")


def clean(text: str) -> str:
    """Normalise as the module says. Leading and inner spaces stay: code and tables live by them."""
    if text.isprintable() and (text.isascii() or unicodedata.is_normalized("NFC", text)):
        return text.rstrip(" ")  # the usual case: one line without anything odd in it
    if not text.isascii():
        text = _SURROGATES.sub("\ufffd", text)
        text = _SPACES.sub(" ", text)
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    text = _LINE_ENDS.sub("\n", text)
    text = _PARAGRAPH_ENDS.sub("\n\n", text)
    return _TRAILING.sub("", _JUNK.sub("", text))


def squeeze(text: str) -> str:
    """Put a flowing text on one line."""
    return " ".join(text.split())


def word_set(words: str) -> frozenset[str]:
    """Spell a set of names as one text."""
    return frozenset(words.split())


def rows_as_lines(rows: Sequence[Sequence[str]], header: bool | None = None) -> list[str]:
    """Turn each row of a table into a line that makes sense alone: "Header: value; Header: value".

    `header` says whether the first row names the columns; None: judge by its looks.
    """
    rows = [[squeeze(cell) for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    if header is None:
        header = _looks_like_header(rows)
    if not header or len(rows) < 2:
        return [" | ".join(cell for cell in row if cell) for row in rows]
    names = rows[0]
    lines = []
    for row in rows[1:]:
        named = zip([*names, *[""] * (len(row) - len(names))], row, strict=False)
        lines.append("; ".join(f"{name.rstrip(':')}: {cell}" if name else cell for name, cell in named if cell))
    return lines


def _looks_like_header(rows: Sequence[Sequence[str]]) -> bool:
    if len(rows) < 2 or len(rows[0]) < 2:
        return False
    first = rows[0]
    filled = [cell for cell in first if cell]
    if len(filled) < max(2, 0.6 * max(len(row) for row in rows[:50])) or len(set(filled)) < len(filled):
        return False
    return all(len(cell) <= 60 and re.search(r"[^\W\d]", cell) for cell in filled)


class Builder:
    """Appends blocks to a text and keeps their offsets right."""

    def __init__(self) -> None:
        self.title = ""
        self.metadata: dict[str, str] = {}
        self.warnings: list[str] = []
        self._parts: list[str] = []
        self._length = 0
        self._blocks: list[Block] = []
        self._page_starts: list[tuple[int, int]] = []  # (page number, offset of its first block)
        self._next_page: int | None = None

    @property
    def is_empty(self) -> bool:
        return self._length == 0

    def heading(self, text: str, level: int, *, tight: bool = False) -> None:
        self._append("heading", squeeze(clean(text)), min(max(level, 1), 6), tight)

    def paragraph(self, text: str) -> None:
        """Add running text; its line breaks are kept, blank lines in it are not."""
        self._append("paragraph", "\n".join(s for line in clean(text).split("\n") if (s := squeeze(line))))

    @property
    def ends_in_mid_sentence(self) -> bool:
        return bool(self._blocks) and self._blocks[-1].kind == "paragraph" and self._parts[-1][-1] not in ".!?:;。"

    def continue_paragraph(self, text: str) -> None:
        """Go on with the last paragraph, which the end of a page has cut."""
        self._parts += [" ", text := squeeze(clean(text))]
        self._begin_page(self._length + 1)
        self._length += 1 + len(text)
        self._blocks[-1] = replace(self._blocks[-1], end=self._length)

    def lines(self, kind: BlockKind, lines: Iterable[str]) -> None:
        """Add a list or a table, one item or row a line; leading spaces show nesting."""
        cleaned = (clean(line) for line in lines)
        self._append(kind, "\n".join(" " * _indent(line) + squeeze(line) for line in cleaned if line.strip()))

    def code(self, text: str, *, tight: bool = False) -> None:
        self._append("code", _BLANK_LINES.sub("\n\n", clean(text.expandtabs(4))), tight=tight)

    def start_page(self, number: int) -> None:
        self._next_page = number

    def describe(self, **values: str | None) -> None:
        """Set metadata; empty values are left out."""
        for name, value in values.items():
            if value and (cleaned := squeeze(clean(value))[:1000]):
                self.metadata[name] = cleaned

    def finish(self, media_type: str) -> Document:
        return Document(
            media_type=media_type,
            title=squeeze(clean(self.title))[:300],
            text="".join(self._parts),
            blocks=tuple(self._blocks),
            pages=self._page_spans(),
            metadata=self.metadata,
            warnings=tuple(self.warnings),
        )

    def _append(self, kind: BlockKind, text: str, level: int = 0, tight: bool = False) -> None:
        # The first line's indentation is kept only where another block precedes it: no text starts with a space.
        text = text.strip("\n").rstrip() if self._length else text.strip()
        if not text.strip():
            return
        if self._length:
            separator = "\n" if tight else "\n\n"
            self._parts.append(separator)
            self._length += len(separator)
        self._begin_page(self._length)
        self._blocks.append(Block(kind, self._length, self._length + len(text), level))
        self._parts.append(text)
        self._length += len(text)

    def _begin_page(self, offset: int) -> None:
        if self._next_page is not None:
            self._page_starts.append((self._next_page, offset))
            self._next_page = None

    def _page_spans(self) -> tuple[PageSpan, ...]:
        """Let each page end where the next begins; pages without text have no span."""
        ends = [start for _, start in self._page_starts[1:]] + [self._length]
        return tuple(
            PageSpan(number, start, end) for (number, start), end in zip(self._page_starts, ends, strict=False)
        )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _utf16_without_mark(data: bytes) -> str | None:
    head = data[:4096]
    half = len(head) // 2
    if half < 4:
        return None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > 0.4 * half and even < 0.05 * half:
        return "utf-16-le"
    if even > 0.4 * half and odd < 0.05 * half:
        return "utf-16-be"
    return None


def _decode_declared(data: bytes, declared: str) -> str | None:
    """Decode as a header claims, unless the claim is unknown, no encoding of text, or refuted by the bytes."""
    try:
        name = codecs.lookup(declared.strip().strip("\"'")).name
        if name in _NO_TEXT or name.startswith(("utf-16", "utf-32")):
            return None  # UTF-16 that one could read such a claim in would be no UTF-16
        return data.decode("cp1252" if name in ("iso8859-1", "ascii") else name)  # as browsers do
    except (LookupError, ValueError):
        return None


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes

    middle = re.search(rb"[\x80-\xff]", data)
    start = max(0, (middle.start() if middle else 0) - 1000)
    sample = data[start : start + _GUESS_BYTES]
    # Multi-byte encodings are strict: a text that decodes as one and is mostly beyond ASCII very likely is in it.
    for candidates in (_LEGACY_EAST_ASIAN, _LEGACY):
        best = from_bytes(sample, cp_isolation=candidates).best()
        if best is not None and (candidates is _LEGACY or _is_east_asian(str(best))):
            return best.encoding
    return "cp1252"


def _is_east_asian(text: str) -> bool:
    beyond = [c for c in text if c > "\x7f"]
    native = sum(
        1 for c in beyond if "\u3000" <= c <= "\u30ff" or "\u4e00" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3"
    )
    return native >= max(4, 0.8 * len(beyond))
