"""What a file is: its content decides; the name only chooses between kinds of text that look alike."""

import re
from pathlib import PurePath

from edge_rag.documents.archive import Archive
from edge_rag.documents.mail import MBOX_SEPARATOR
from edge_rag.documents.office import DOCX, ODT, PPTX, XLSX
from edge_rag.documents.plain import CODE_TYPES
from edge_rag.documents.tabular import parse_json
from edge_rag.documents.text import decode
from edge_rag.errors import DocumentError

EPUB = "application/epub+zip"
# Known, so that the refusal can name a remedy, but not read.
OLE = "application/x-ole-storage"
RTF = "application/rtf"

_HEAD = 1 << 16
_OFFICE_FOLDERS = {"word/": DOCX, "ppt/": PPTX, "xl/": XLSX}
_BINARY_SUFFIXES = {".pdf": "application/pdf", ".docx": DOCX, ".pptx": PPTX, ".xlsx": XLSX, ".odt": ODT, ".epub": EPUB}
_TEXT_SUFFIXES = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd", ".rmd"), "text/markdown"),
    **dict.fromkeys((".rst", ".rest"), "text/x-rst"),
    **dict.fromkeys((".csv",), "text/csv"),
    **dict.fromkeys((".tsv", ".tab"), "text/tab-separated-values"),
    **dict.fromkeys((".htm", ".html", ".shtml"), "text/html"),
    **dict.fromkeys((".xhtml", ".xht"), "application/xhtml+xml"),
    **dict.fromkeys((".jsonl", ".ndjson"), "application/jsonl"),
    **{suffix: media_type for suffix, (media_type, _) in CODE_TYPES.items()},
}
_ALREADY_MARKUP = {"text/markdown", "text/x-rst"}

_CONTROL = bytes(set(range(32)) - {7, 8, 9, 10, 11, 12, 13, 26, 27}) + b"\x7f"
_HTML_START = re.compile(
    r"(?:\s|<!--.*?-->|<\?xml[^>]*>)*(?:<!doctype\s+html|<html[\s>]|<head[\s>]|<body[\s>])", re.DOTALL | re.I
)
_XML_START = re.compile(r"\s*<\?xml\s")
_XML_ROOT = re.compile(r"<([A-Za-z_][\w.:-]*)")
_HEADER_LINE = re.compile(r"^([!-9;-~]+):(?:[ \t].*)?$")
_MAIL_HEADERS = {"date", "subject", "message-id", "received", "mime-version", "return-path", "delivered-to", "to"}
_SHEBANG = re.compile(r"^#!.*\b(python|bash|sh|zsh|ruby|perl|node|lua)")
_INTERPRETERS = {
    "python": "text/x-python",
    "ruby": "text/x-ruby",
    "lua": "text/x-lua",
    "node": "text/javascript",
    "perl": "text/x-source",
}


def sniff(data: bytes, name: str) -> str | None:
    """Return the media type, or None if this is no document at all (a picture, a program ...).

    What is named like a document and is none gets the type of its name, so that reading it says what is wrong.
    """
    suffix = PurePath(name.replace("\\", "/")).suffix.lower()
    return _sniff_content(data, suffix) or _BINARY_SUFFIXES.get(suffix)


def _sniff_content(data: bytes, suffix: str) -> str | None:
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _sniff_zip(data)
    if data.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return OLE
    if data.lstrip(b"\xef\xbb\xbf \t\r\n\0").startswith(b"%PDF-"):
        return "application/pdf"
    if _is_binary(data[:_HEAD]):
        return "application/pdf" if b"%PDF-" in data[:1024] else None
    if data.lstrip().startswith(b"{\\rtf"):
        return RTF
    return _sniff_text(data, suffix)


def _sniff_zip(data: bytes) -> str | None:
    try:
        archive = Archive(data)
        names = archive.names
        if "mimetype" in archive:
            declared = archive.read("mimetype").decode("ascii", "replace").strip()
            if declared.startswith(ODT):  # also templates
                return ODT
            return EPUB if declared == EPUB else None
        if "META-INF/container.xml" in archive:
            return EPUB
        if "[Content_Types].xml" in archive:
            return next(
                (kind for folder, kind in _OFFICE_FOLDERS.items() if any(n.startswith(folder) for n in names)), None
            )
        return None
    except DocumentError:  # damaged: say which document it was meant to be
        hints = {b"mimetypeapplication/vnd.oasis.opendocument.text": ODT, b"mimetypeapplication/epub+zip": EPUB}
        hints |= {folder.encode(): kind for folder, kind in _OFFICE_FOLDERS.items() if b"[Content_Types].xml" in data}
        return next((kind for hint, kind in hints.items() if hint in data), None)


def _is_binary(head: bytes) -> bool:
    """Text has next to no control characters, unless it is UTF-16, which `decode` tells by its pattern."""
    if not head:
        return False
    controls = len(head) - len(head.translate(None, _CONTROL))
    if controls <= max(2, 0.01 * len(head)):
        return False
    text = decode(head[: len(head) & ~3])
    odd = sum(
        1 for c in text if (c < "\x20" and c not in "\t\n\r\x0b\x0c\x1b") or c == "\ufffd" or "\ue000" <= c <= "\uf8ff"
    )
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff")) or len(text) <= len(head) // 2 + 2
    return not (wide and odd <= 0.01 * len(text))


def _sniff_text(data: bytes, suffix: str) -> str:
    head = decode(data[:_HEAD]).lstrip("\ufeff")
    by_name = _TEXT_SUFFIXES.get(suffix)
    if _HTML_START.match(head):
        return "application/xhtml+xml" if _XML_START.match(head) or by_name == "application/xhtml+xml" else "text/html"
    if _XML_START.match(head):
        return _sniff_xml(head)
    if by_name in _ALREADY_MARKUP or suffix in CODE_TYPES:
        return by_name or "text/plain"
    if (kind := _sniff_json(data, head, by_name)) is not None:
        return kind
    if MBOX_SEPARATOR.match(data) and _mail_headers(head.partition("\n")[2]):
        return "application/mbox"
    if _mail_headers(head):
        return "message/rfc822"
    if by_name is not None:
        return by_name
    shebang = _SHEBANG.match(head)
    return _INTERPRETERS.get(shebang[1], "text/x-shellscript") if shebang else "text/plain"


def _sniff_xml(head: str) -> str:
    for match in _XML_ROOT.finditer(head):
        return "application/xhtml+xml" if match[1].rpartition(":")[2].lower() == "html" else "application/xml"
    return "application/xml"


def _sniff_json(data: bytes, head: str, by_name: str | None) -> str | None:
    start = head.lstrip()
    if not start.startswith(("{", "[")):
        return None
    lines = [line for line in start.split("\n", 3)[:3] if line.strip()]
    one_value = (
        len(data) <= _HEAD or len(lines) == 1 or not _is_json(lines[0])
    )  # else do not parse a huge JSONL in vain
    if one_value and by_name != "application/jsonl" and _is_json(decode(data)):
        return "application/json"
    complete = lines[: 2 if len(data) > _HEAD else 3]
    if len(complete) > (0 if by_name == "application/jsonl" else 1) and all(_is_json(line) for line in complete):
        return "application/jsonl"
    return None


def _is_json(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict | list)
    except ValueError:
        return False


def _mail_headers(head: str) -> bool:
    """Does it begin with the headers of a message: From, and one of the others that every message has?"""
    names: set[str] = set()
    for line in head.split("\n", 200)[:200]:
        line = line.rstrip("\r")
        if line[:1] in (" ", "\t") and names:
            continue
        match = _HEADER_LINE.match(line)
        if match is None:
            break
        names.add(match[1].lower())
    return "from" in names and not names.isdisjoint(_MAIL_HEADERS)
