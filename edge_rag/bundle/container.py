"""The bytes of a bundle: one file that is a GGUF at its beginning and a zip at its end.

    the generator's GGUF, if there is one        llama.cpp maps the file and ignores what follows the tensors
    a stored (uncompressed) zip                  each part's data begins at a multiple of 4096 bytes of the file
        library.sqlite, index, embedder ...      in the order of the manifest
        manifest.json                            the last entry
    the zip's directory, and its comment         the comment is the trailer below: the last 152 bytes of the file

Where each part lies follows from the names and sizes alone (`place`), and so does every other byte that is no part's: a reader
that knows the manifest knows the whole file. Nobody reads the zip's directory here; it is for other programs.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_rag.errors import IntegrityError

FORMAT = 1
ALIGNMENT = 4096
MANIFEST_NAME = "manifest.json"
LARGEST_MANIFEST = 16 << 20

_MAGIC = b"edge_rag"
_TRAILER = struct.Struct("<8s I I Q 32s 32s 64s")  # little-endian, 152 bytes
TRAILER_BYTES = _TRAILER.size

_LARGEST_32 = 0xFFFFFFFF  # this value says: the number stands in the zip64 record
_DATE = 0x21  # 1980-01-01, the first day of zip; a bundle has no times of its own
_PADDING_ID = 0xD935  # the extra field that Android's zipalign writes: u16 alignment, then zeros


@dataclass(frozen=True, slots=True)
class Trailer:
    manifest_offset: int
    manifest_size: int
    manifest_sha256: bytes
    public_key: bytes  # Ed25519; zeros: not signed
    signature: bytes

    @property
    def is_signed(self) -> bool:
        return any(self.public_key)

    def packed(self) -> bytes:
        return _TRAILER.pack(
            _MAGIC, FORMAT, self.manifest_size, self.manifest_offset, self.manifest_sha256, self.public_key,
            self.signature,
        )  # fmt: skip


def read_trailer(path: Path, end: bytes, file_size: int) -> Trailer:
    """Understand the last bytes of a file."""
    if len(end) != TRAILER_BYTES or end[: len(_MAGIC)] != _MAGIC:
        raise broken(path, "this is no bundle, or its end is missing")
    _, version, size, offset, sha256, public_key, signature = _TRAILER.unpack(end)
    if version > FORMAT:
        raise IntegrityError(
            f"{path}: bundle format {version}, this edge_rag reads up to {FORMAT}",
            mend="pip install --upgrade edge-rag",
        )
    half_signed = any(public_key) != any(signature)
    if version < 1 or size > LARGEST_MANIFEST or offset + size > file_size or half_signed:
        raise broken(path, "its end is damaged")
    return Trailer(offset, size, sha256, public_key, signature)


def broken(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{path}: {what}", mend="copy the bundle again from where it was made")


# --- the zip ---


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    start: int  # of its header, in the file
    offset: int  # of its data
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def place(start: int, entries: Sequence[tuple[str, int]]) -> list[Entry]:
    """Lay out entries, given by name and size, one after the other from `start` on."""
    placed = []
    for name, size in entries:
        least = start + 30 + len(name) + 6 + (20 if size >= _LARGEST_32 else 0)
        offset = -(-least // ALIGNMENT) * ALIGNMENT
        placed.append(Entry(name, start, offset, size))
        start = offset + size
    return placed


def header_bytes(entry: Entry, crc32: int) -> bytes:
    """Return what stands between `entry.start` and its data."""
    size, extra = entry.size, b""
    if size >= _LARGEST_32:
        extra, size = struct.pack("<HHQQ", 1, 16, size, size), _LARGEST_32
    n_padding = entry.offset - entry.start - 30 - len(entry.name) - len(extra) - 4
    extra += struct.pack("<HHH", _PADDING_ID, n_padding, ALIGNMENT) + bytes(n_padding - 2)
    fixed = struct.pack(
        "<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, _DATE, crc32, size, size, len(entry.name), len(extra)
    )  # fmt: skip
    return fixed + entry.name.encode("ascii") + extra


def directory_bytes(entries: Sequence[Entry], crc32s: Sequence[int], trailer: Trailer) -> bytes:
    """Return what follows the last entry's data, up to the end of the file."""
    directory = b"".join(_directory_entry(entry, crc32) for entry, crc32 in zip(entries, crc32s, strict=True))
    start, n = entries[-1].end, len(entries)
    # The zip64 records are always there: one layout for small and large.
    zip64_start = start + len(directory)
    zip64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, n, n, len(directory), start)
    zip64 += struct.pack("<4sLQL", b"PK\6\7", 0, zip64_start, 1)
    end = struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, n, n, len(directory), min(start, _LARGEST_32), TRAILER_BYTES
    )  # fmt: skip
    return directory + zip64 + end + trailer.packed()


def directory_size(entries: Sequence[Entry]) -> int:
    """Return how many bytes `directory_bytes` returns."""
    return sum(46 + len(e.name) + len(_zip64_extra(e)) for e in entries) + 56 + 20 + 22 + TRAILER_BYTES


def _directory_entry(entry: Entry, crc32: int) -> bytes:
    extra = _zip64_extra(entry)
    size, start = min(entry.size, _LARGEST_32), min(entry.start, _LARGEST_32)
    fixed = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, _DATE, crc32, size, size, len(entry.name), len(extra), 0, 0, 0, 0, start
    )  # fmt: skip
    return fixed + entry.name.encode("ascii") + extra


def _zip64_extra(entry: Entry) -> bytes:
    numbers = [entry.size, entry.size] if entry.size >= _LARGEST_32 else []
    if entry.start >= _LARGEST_32:
        numbers.append(entry.start)
    return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
