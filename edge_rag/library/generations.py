"""Index generations: immutable files made from the vectors in library.sqlite, so that a dense search need not read
those.

    index/000007/vectors.eidx, MANIFEST.json      a generation holds every vector whose chunk id is <= its max_chunk_id
    index/CURRENT                                 "000007"; replaced by rename

A generation is a cache. Later chunks are searched exactly, chunks deleted since are dropped, and a generation that is
missing, damaged or not listed in this very database (say, because a power cut took its last transaction back) is not
used at all: the answer stays right and only takes longer.
"""

import hashlib
import json
import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from edge_rag.errors import EdgeRagError
from edge_rag.interfaces import VectorIndex
from edge_rag.library import schema, store
from edge_rag.library.database import transaction

INDEX_FOLDER = "index"
CURRENT_NAME = "CURRENT"
MANIFEST_NAME = "MANIFEST.json"
VECTORS_NAME = "vectors.eidx"

# Up to so many chunks are searched without the index; reading them costs less than a millisecond per thousand.
LARGEST_TAIL = 1000
LARGEST_TAIL_SHARE = 0.02
LARGEST_DEAD_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Manifest:
    library_id: str
    number: int
    sha256: str  # of the vectors file
    size: int
    count: int
    max_chunk_id: int
    embedder_fingerprint: str


@dataclass(frozen=True, slots=True)
class Generation:
    manifest: Manifest
    index: VectorIndex


def folder(library: Path, number: int) -> Path:
    return library / INDEX_FOLDER / f"{number:06d}"


def current_number(library: Path) -> int:
    """Return the number that CURRENT names; 0 if there is none."""
    try:
        return int((library / INDEX_FOLDER / CURRENT_NAME).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def read_manifest(library: Path, number: int) -> Manifest | None:
    try:
        fields = json.loads((folder(library, number) / MANIFEST_NAME).read_text(encoding="utf-8"))
        manifest = Manifest(**fields)
    except (OSError, ValueError, TypeError):
        return None
    ints = (manifest.number, manifest.size, manifest.count, manifest.max_chunk_id)
    return manifest if all(isinstance(n, int) for n in ints) else None


def is_listed(db: sqlite3.Connection, manifest: Manifest) -> bool:
    """Tell whether this generation was made from this database, in a state that the snapshot has seen."""
    row = db.execute(
        "SELECT sha256, max_chunk_id, count FROM generations WHERE number = ?", (manifest.number,)
    ).fetchone()
    return row == (manifest.sha256, manifest.max_chunk_id, manifest.count) and (
        manifest.library_id == schema.get_meta(db, "library_id")
        and manifest.embedder_fingerprint == schema.get_meta(db, "embedder_fingerprint")
    )


def open_generation(library: Path, number: int) -> Generation | None:
    """Open and check a generation's file; None if it cannot be used."""
    from edge_rag.index import ScanIndex

    manifest = read_manifest(library, number)
    if manifest is None:
        return None
    try:
        index = ScanIndex.open(folder(library, number) / VECTORS_NAME)
    except (EdgeRagError, OSError):
        return None
    if len(index) != manifest.count:
        index.close()
        return None
    return Generation(manifest, index)


def is_due(db: sqlite3.Connection, library: Path) -> bool:
    """Tell whether so much was added or removed since the current generation that a new one pays."""
    manifest = read_manifest(library, current_number(library))
    n_vectors = db.execute("SELECT count(*) FROM vectors").fetchone()[0]
    if manifest is None or not is_listed(db, manifest):
        return bool(n_vectors > LARGEST_TAIL)
    n_tail = db.execute("SELECT count(*) FROM vectors WHERE chunk_id > ?", (manifest.max_chunk_id,)).fetchone()[0]
    n_dead = manifest.count - (n_vectors - n_tail)
    return bool(
        n_tail > max(LARGEST_TAIL, LARGEST_TAIL_SHARE * n_vectors)
        or n_dead > max(LARGEST_TAIL, LARGEST_DEAD_SHARE * n_vectors)
    )


def publish(db: sqlite3.Connection, library: Path) -> None:
    """Write a generation of all vectors and make it the current one; a library without vectors has none."""
    from edge_rag.index import write_index

    last = max(
        [current_number(library), *_numbers(library), *(row[0] for row in db.execute("SELECT number FROM generations"))]
    )
    dim = schema.get_int(db, "dim")
    count, max_chunk_id = db.execute("SELECT count(*), max(chunk_id) FROM vectors").fetchone()
    if not count:
        with transaction(db):
            db.execute("DELETE FROM generations")
        (library / INDEX_FOLDER / CURRENT_NAME).unlink(missing_ok=True)
        remove_all_but(library, 0)
        return
    number = last + 1
    target = folder(library, number)
    try:
        target.mkdir(parents=True)
        write_index(target / VECTORS_NAME, store.vector_blocks(db, library, dim), dim)
        manifest = Manifest(
            schema.get_meta(db, "library_id"), number, file_sha256(target / VECTORS_NAME),
            (target / VECTORS_NAME).stat().st_size, count, max_chunk_id, schema.get_meta(db, "embedder_fingerprint"),
        )  # fmt: skip
        _write_durably(
            target / MANIFEST_NAME, json.dumps({f: getattr(manifest, f) for f in Manifest.__slots__}, indent=1)
        )
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    # FULL makes this commit, and with it every earlier one, survive a power cut: a generation must never know chunk ids
    # that the database forgets and gives out again.
    db.execute("PRAGMA synchronous = FULL")
    try:
        with transaction(db):
            db.execute("DELETE FROM generations")
            db.execute("INSERT INTO generations VALUES (?, ?, ?, ?)", (number, manifest.sha256, max_chunk_id, count))
    finally:
        db.execute("PRAGMA synchronous = NORMAL")
    _write_durably(library / INDEX_FOLDER / CURRENT_NAME, f"{number:06d}\n")
    remove_all_but(library, number)


def remove_all_but(library: Path, number: int) -> None:
    """Remove the other generations. Windows does not let go of a file that a reader has open: the next writer tries
    again."""
    for other in _numbers(library):
        if other != number:
            shutil.rmtree(folder(library, other), ignore_errors=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numbers(library: Path) -> list[int]:
    return [int(f.name) for f in (library / INDEX_FOLDER).glob("[0-9]*") if f.name.isdecimal()]


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name != "nt":  # where a folder cannot be opened
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
