"""The one door: bytes and a name in, a Document or a DocumentError out."""

from xml.etree.ElementTree import Element

from edge_rag.documents import office, sniffing
from edge_rag.documents.archive import parse_xml
from edge_rag.documents.ebook import read_epub
from edge_rag.documents.html import read_html
from edge_rag.documents.mail import read_mailbox, read_message
from edge_rag.documents.markup import read_markdown
from edge_rag.documents.pdf import read_pdf
from edge_rag.documents.plain import read_code, read_plain
from edge_rag.documents.restructured import read_rst
from edge_rag.documents.tabular import read_csv, read_json, read_jsonl
from edge_rag.documents.text import Builder, squeeze
from edge_rag.errors import DocumentError
from edge_rag.interfaces import Document

READER_VERSION = 1  # raise it when the same bytes give another text: stored documents are then read again

_READERS = {
    "application/pdf": read_pdf,
    office.DOCX: office.read_docx,
    office.PPTX: office.read_pptx,
    office.XLSX: office.read_xlsx,
    office.ODT: office.read_odt,
    sniffing.EPUB: read_epub,
    "text/markdown": read_markdown,
    "text/x-rst": read_rst,
    "text/plain": read_plain,
    "application/json": read_json,
    "application/jsonl": read_jsonl,
    "message/rfc822": read_message,
    "application/mbox": read_mailbox,
}


def read_document(data: bytes, name: str) -> Document:
    """Read a whole file. `name` is only a hint; DocumentError says why it cannot be read, and what would help."""
    try:
        return _read(data, name)
    except DocumentError as error:
        raise DocumentError(f"{name}: {error.message}", mend=error.mend) from error
    except (RecursionError, MemoryError) as error:
        raise DocumentError(f"{name}: too large or too deeply nested to read", mend="split the document") from error


def _read(data: bytes, name: str) -> Document:
    media_type = sniffing.sniff(data, name)
    if media_type is None:
        raise DocumentError(
            "not a document that can be read (binary data)", mend="convert it to PDF, DOCX, HTML or text"
        )
    if media_type == sniffing.OLE:
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise DocumentError("encrypted Office file", mend="save it without a password")
        raise DocumentError("an Office file in the format of before 2007", mend="save it as .docx, .xlsx or .pptx")
    if media_type == sniffing.RTF:
        raise DocumentError("RTF is not read", mend="save it as .docx or .odt")
    if media_type in ("text/html", "application/xhtml+xml"):
        return read_html(data, media_type)
    if media_type in ("text/csv", "text/tab-separated-values"):
        return read_csv(data, media_type)
    if media_type == "application/xml":
        return _read_xml(data)
    reader = _READERS.get(media_type)
    return reader(data) if reader is not None else read_code(data, media_type)


def _read_xml(data: bytes) -> Document:
    """Read any vocabulary: each element that holds text itself is a paragraph. Refused XML is read as text."""
    try:
        root = parse_xml(data)
    except DocumentError:
        return read_plain(data)
    builder = Builder()
    _add_xml(builder, root)
    return builder.finish("application/xml")


def _add_xml(builder: Builder, element: Element) -> None:
    own = [element.text, *(child.tail for child in element)]
    if any(part and part.strip() for part in own):
        text = squeeze("".join(element.itertext()))
        if element.tag in ("title", "head", "heading"):
            builder.heading(text, 2)
        else:
            builder.paragraph(text)
        return
    for child in element:
        _add_xml(builder, child)
