"""Read every byte of a bundle, and say whether each is what was bundled."""

import zlib

from edge_rag.bundle import signing
from edge_rag.bundle.container import broken, directory_bytes, header_bytes
from edge_rag.bundle.opened import Bundle
from edge_rag.bundle.proof import check
from edge_rag.interfaces import Progress


def verify(bundle: Bundle, *, progress: Progress | None = None) -> None:
    """Raise IntegrityError unless every part has its hash, and every byte between the parts is what follows from them.

    A signature is checked, too, where that is possible here; whether its key is to be trusted is for `Bundle.open`.
    """
    path, view, trailer = bundle.path, bundle.view, bundle.trailer
    done, total = 0, len(view)
    for part in bundle.manifest.parts:
        check(path, view, part)
        done += part.size
        if progress is not None:
            progress("verify", done, total, part.name)
    entries = bundle.manifest.entries(trailer.manifest_size)
    crc32s = [zlib.crc32(view[entry.offset : entry.end]) for entry in entries]
    for entry, crc32 in zip(entries, crc32s, strict=True):
        if view[entry.start : entry.offset] != header_bytes(entry, crc32):
            raise broken(path, f"the header of {entry.name} is damaged")
    if view[entries[-1].end :] != directory_bytes(entries, crc32s, trailer):
        raise broken(path, "its directory is damaged")
    signed = (trailer.public_key, trailer.manifest_sha256, trailer.signature)
    if trailer.is_signed and signing.can_check() and not signing.is_signed_by(*signed):
        raise broken(path, "its signature is not by the key that it names")
