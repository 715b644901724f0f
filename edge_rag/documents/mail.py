"""E-mail: one message, or a mailbox of them."""

import email
import email.header
import email.message
import email.utils
import re

from edge_rag.documents.html import add_html
from edge_rag.documents.text import Builder, clean, decode, squeeze
from edge_rag.errors import DocumentError
from edge_rag.interfaces import Document

MBOX_SEPARATOR = re.compile(rb"^From \S+ .{0,80}\d{4}.{0,20}$", re.MULTILINE)
_SHOWN_HEADERS = ("From", "To", "Cc", "Date")
_MAX_PARTS = 1000


def read_message(data: bytes) -> Document:
    builder = Builder()
    message = _parse(data)
    subject = _header(message, "Subject")
    builder.title = subject
    builder.describe(
        author=_header(message, "From"),
        to=_header(message, "To"),
        date=_iso_date(_header(message, "Date")),
        subject=subject,
    )
    _add_message(builder, message, subject or "(no subject)")
    return builder.finish("message/rfc822")


def read_mailbox(data: bytes) -> Document:
    builder = Builder()
    starts = list(MBOX_SEPARATOR.finditer(data))
    for i, start in enumerate(starts):
        end = starts[i + 1].start() if i + 1 < len(starts) else len(data)
        message = _parse(re.sub(rb"^>(>*From )", rb"\1", data[start.end() : end].lstrip(b"\r\n"), flags=re.MULTILINE))
        _add_message(builder, message, _header(message, "Subject") or "(no subject)")
    return builder.finish("application/mbox")


def _parse(data: bytes) -> email.message.Message:
    try:
        return email.message_from_bytes(data)
    except (RecursionError, ValueError) as error:
        raise DocumentError(
            "a message that nests too deeply or has damaged headers", mend="leave this file out"
        ) from error


def _add_message(builder: Builder, message: email.message.Message, subject: str) -> None:
    builder.heading(subject, 1)
    shown = [f"{name}: {value}" for name in _SHOWN_HEADERS if (value := _header(message, name))]
    builder.lines("list", shown)
    attachments: list[str] = []
    for part in _text_parts(message, attachments):
        payload = part.get_payload(decode=True)
        body = decode(payload, part.get_content_charset()) if isinstance(payload, bytes) else str(part.get_payload())
        if part.get_content_type() == "text/html":
            add_html(builder, body)
        else:
            for paragraph in re.split(r"\n[ \t]*\n", clean(body)):
                builder.paragraph(paragraph)
    if attachments:
        builder.warnings.append(
            f"attachments not read: {', '.join(attachments[:20])}" + (" ..." if len(attachments) > 20 else "")
        )


def _text_parts(message: email.message.Message, attachments: list[str]) -> list[email.message.Message]:
    """Return the parts to read, in order: of alternatives the plain one. Names of the others go to `attachments`."""
    found = []
    pending = [message]
    for _ in range(_MAX_PARTS):
        if not pending:
            break
        part = pending.pop()
        kind = part.get_content_type()
        payload = part.get_payload()
        if isinstance(payload, list):
            children = [child for child in payload if isinstance(child, email.message.Message)]
            if kind == "multipart/alternative":
                texts = [child for child in children if child.get_content_type() == "text/plain"]
                children = texts[:1] or children[-1:]
            pending.extend(reversed(children))
        elif part.get_content_disposition() == "attachment" or kind not in ("text/plain", "text/html"):
            attachments.append(_attachment_name(part, kind))
        else:
            found.append(part)
    return found


def _attachment_name(part: email.message.Message, kind: str) -> str:
    try:
        name = part.get_filename()
    except (ValueError, LookupError, TypeError):
        name = None
    return squeeze(clean(_decode_words(name)))[:100] if name else f"({kind})"


def _header(message: email.message.Message, name: str) -> str:
    value = message.get(name)
    return squeeze(clean(_decode_words(str(value)))) if value is not None else ""


def _decode_words(value: str) -> str:
    """Decode "=?utf-8?q?...?=". Raw bytes in a header come as surrogates, or as a Header of unknown charset."""
    try:
        parts = email.header.decode_header(value)
    except (ValueError, LookupError, email.errors.HeaderParseError):
        return value
    words = []
    for part, charset in parts:
        words.append(decode(part, charset) if isinstance(part, bytes) else part)
    text = "".join(words)
    return decode(text.encode("ascii", "surrogateescape")) if _is_escaped(text) else text


def _is_escaped(text: str) -> bool:
    return any("\udc80" <= c <= "\udcff" for c in text) and all(c < "\x80" or "\udc80" <= c <= "\udcff" for c in text)


def _iso_date(value: str) -> str:
    try:
        return email.utils.parsedate_to_datetime(value).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return value
