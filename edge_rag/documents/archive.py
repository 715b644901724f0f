"""Zip containers and XML from strangers, read without trust.

Nothing is extracted to disk. Sizes are counted while inflating, never believed from a header. XML may neither declare
entities nor nest deeper than MAX_DEPTH, so walking a tree with a recursive function is safe.
"""

import io
import posixpath
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from xml.etree.ElementTree import Element
from xml.parsers import expat

from edge_rag.documents.text import clean, decode
from edge_rag.errors import DocumentError

MAX_MEMBERS = 20_000
MAX_MEMBER_BYTES = 128 << 20
MAX_TOTAL_BYTES = 512 << 20
MAX_RATIO = 250  # inflated to packed; XML of spreadsheets reaches 100
RATIO_FREE_BYTES = 8 << 20  # below this no ratio is suspicious
MAX_DEPTH = 200
MAX_ELEMENTS = 2_000_000

_STEP = 1 << 18
_MEND = "open it in its own application and save it again"
_XML_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


class Archive:
    """A zip file in memory. Every byte that is inflated counts against one budget."""

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            infos = self._zip.infolist()
        except _BROKEN_ZIP as error:
            raise DocumentError(f"damaged zip container ({error})", mend="get an undamaged copy") from error
        if len(infos) > MAX_MEMBERS:
            raise DocumentError(f"a zip container with {len(infos)} members, more than {MAX_MEMBERS}", mend=_MEND)
        self._members = {info.filename: info for info in infos}
        self._inflated = 0

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str) -> bytes:
        info = self._members.get(name)
        if info is None:
            raise DocumentError(f"{name} is missing in the zip container", mend=_MEND)
        if info.flag_bits & 1:
            raise DocumentError("encrypted", mend="save it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DocumentError(f"{name} is packed with an unusual method ({info.compress_type})", mend=_MEND)
        parts = []
        size = 0
        try:
            with self._zip.open(info) as member:
                while part := member.read(_STEP):
                    parts.append(part)
                    size += len(part)
                    self._inflated += len(part)
                    self._check_size(name, size, info.compress_size)
        except _BROKEN_ZIP as error:
            raise DocumentError(
                f"{name} in the zip container is damaged ({error})", mend="get an undamaged copy"
            ) from error
        return b"".join(parts)

    def _check_size(self, name: str, size: int, packed: int) -> None:
        if size > MAX_MEMBER_BYTES or self._inflated > MAX_TOTAL_BYTES:
            raise DocumentError(
                f"{name} inflates beyond {MAX_MEMBER_BYTES >> 20} MB: too large", mend="split the document"
            )
        if size > RATIO_FREE_BYTES and size > MAX_RATIO * max(packed, 1):
            raise DocumentError(f"{name} inflates more than {MAX_RATIO}-fold: a zip bomb?", mend="leave this file out")

    def xml(self, name: str) -> Element:
        return parse_xml(self.read(name))

    def xml_or_none(self, name: str) -> Element | None:
        return self.xml(name) if name in self else None

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """Return the relationships of an Office part: id -> (last word of the type, name of the target member)."""
        folder, base = posixpath.split(part)
        root = self.xml_or_none(posixpath.join(folder, "_rels", base + ".rels"))
        found = {}
        for relation in root if root is not None else ():
            if relation.get("TargetMode") != "External":
                kind = relation.get("Type", "").rpartition("/")[2]
                found[relation.get("Id", "")] = (kind, resolve(folder, relation.get("Target", "")))
        return found


def resolve(folder: str, target: str) -> str:
    """Return the member's name that `target` means, seen from `folder`."""
    if target.startswith("/"):
        return posixpath.normpath(target).lstrip("/")
    return posixpath.normpath(posixpath.join(folder, target))


def parse_xml(data: bytes) -> Element:
    """Parse into elements and attributes with local names, but for `r:id`, the relationships of Office files."""
    parser = _TreeParser()
    for _ in parser.feed_all(data):
        pass
    if parser.root is None:
        raise DocumentError("empty XML", mend=_MEND)
    return parser.root


def iter_xml(data: bytes, tag: str) -> Iterator[Element]:
    """Yield each `tag` element when it is complete, and forget it: large sheets need not fit in memory as trees."""
    return _TreeParser(tag).feed_all(data)


class _TreeParser:
    """With `wanted`, elements of that name are cut out of the tree when complete and handed over."""

    def __init__(self, wanted: str | None = None) -> None:
        self.root: Element | None = None
        self._wanted = wanted
        self._finished: list[Element] = []
        self._stack: list[Element] = []
        self._last_closed: Element | None = None
        self._text: list[str] = []
        self._n_kept = 0
        self._n_open_wanted = 0
        self._names: dict[str, str] = {}
        self._parser = expat.ParserCreate("utf-8", "}")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text.append
        self._parser.StartDoctypeDeclHandler = _refuse_declarations

    def feed_all(self, data: bytes) -> Iterator[Element]:
        declared = _XML_ENCODING.match(data[:500])
        source = clean(decode(data, declared[1].decode() if declared else None)).lstrip().encode()
        try:
            for start in range(0, len(source), _STEP):
                self._parser.Parse(source[start : start + _STEP], False)
                yield from self._finished
                self._finished.clear()
            self._parser.Parse(b"", True)
            yield from self._finished
        except expat.ExpatError as error:
            raise DocumentError(f"damaged XML ({error})", mend=_MEND) from error

    def _local(self, name: str) -> str:
        local = self._names.get(name)
        if local is None:
            space, _, local = name.rpartition("}")
            if local == "id" and space.endswith("/relationships"):
                local = "r:id"
            self._names[name] = local
        return local

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._flush_text()
        if len(self._stack) >= MAX_DEPTH:
            raise DocumentError(f"XML nested more than {MAX_DEPTH} deep", mend="leave this file out")
        self._n_kept += 1
        if self._n_kept > MAX_ELEMENTS:
            raise DocumentError(f"XML with more than {MAX_ELEMENTS} elements", mend="split the document")
        element = Element(self._local(name), {self._local(key): value for key, value in attributes.items()})
        if element.tag == self._wanted:
            self._n_open_wanted += 1
        if self._stack:
            self._stack[-1].append(element)
        else:
            self.root = element
        self._stack.append(element)
        self._last_closed = None

    def _end(self, _name: str) -> None:
        self._flush_text()
        element = self._stack.pop()
        self._last_closed = element
        if element.tag != self._wanted:
            return
        self._n_open_wanted -= 1
        if self._n_open_wanted == 0:
            self._finished.append(element)
            self._n_kept -= sum(1 for _ in element.iter())
            if self._stack:
                del self._stack[-1][-1]

    def _flush_text(self) -> None:
        if not self._text:
            return
        text = "".join(self._text)
        self._text.clear()
        if self._last_closed is not None:
            self._last_closed.tail = text
        elif self._stack:
            self._stack[-1].text = text


def _refuse_declarations(_name: str, _system: str | None, _public: str | None, has_internal_subset: int) -> None:
    if has_internal_subset:  # the only place where a document can declare entities of its own
        raise DocumentError("XML with declarations of its own (entities?) is not read", mend="leave this file out")
