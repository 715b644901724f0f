"""Index generations: immutable files made from the vectors in library.sqlite, so that a dense search need not read
those.

    index/000007/vectors.eidx, MANIFEST.json      a generation holds every vector whose chunk id is <= its max_chunk_id
    index/CURRENT                                 "000007"; replaced by rename

A generation is a cache. Later chunks are searched exactly, chunks deleted since are dropped, and a generation that is
missing, damaged or not listed in this very database (say, because a power cut took its last transaction back) is not
used at all: the answer stays right and only takes longer, until the next writer makes a new one.
"""

import hashlib
import json
import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from edge_rag.errors import EdgeRagError, IntegrityError
from edge_rag.interfaces import Progress
from edge_rag.library import schema, store
from edge_rag.library.database import transaction

if TYPE_CHECKING:
    from edge_rag.index import NativeIndex  # loads the compiled part, which words alone do not need

INDEX_FOLDER = "index"
CURRENT_NAME = "CURRENT"
MANIFEST_NAME = "MANIFEST.json"
VECTORS_NAME = "vectors.eidx"
METRIC: Literal["cosine"] = "cosine"

# Up to so many chunks are searched without the index. To read 1,000 of them costs a cold search 4 ms (a later one 0.2 ms);
# to merge them costs the writer, which has embedded them for 8 s, 0.06 s where there are 12,000 and 0.4 s where 90,000.
LARGEST_TAIL = 1000
LARGEST_TAIL_SHARE = 0.01
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
    n_whole: int  # rows of the last one that was built from nothing but the database


@dataclass(frozen=True, slots=True)
class Generation:
    manifest: Manifest
    index: "NativeIndex"


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
    ints = (manifest.number, manifest.size, manifest.count, manifest.max_chunk_id, manifest.n_whole)
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
    from edge_rag.index import NativeIndex

    manifest = read_manifest(library, number)
    if manifest is None:
        return None
    try:
        index = NativeIndex.open(folder(library, number) / VECTORS_NAME)
    except (EdgeRagError, OSError):
        return None
    if len(index) != manifest.count or index.metric != METRIC:
        index.close()
        return None
    return Generation(manifest, index)


def of_index(db: sqlite3.Connection, index: "NativeIndex") -> Generation | None:
    """Return the one generation that a database lists, with its index already open; None if it is not that one."""
    row = db.execute("SELECT number, sha256, max_chunk_id, count FROM generations").fetchone()
    if row is None or len(index) != row[3] or index.metric != METRIC or not len(index) or index.ids[-1] != row[2]:
        return None
    number, sha256, last, count = row
    library_id, fingerprint = schema.get_meta(db, "library_id"), schema.get_meta(db, "embedder_fingerprint")
    return Generation(
        Manifest(library_id, number, sha256, index.info().size_bytes, count, last, fingerprint, count), index
    )


def is_due(db: sqlite3.Connection, library: Path) -> bool:
    """Tell whether so much was added or removed since the current generation that a new one pays, or it is unusable."""
    n_vectors = _count(db)
    number = current_number(library)
    if not number:
        return bool(n_vectors > LARGEST_TAIL)
    generation = open_generation(library, number)
    if generation is None:
        return True
    generation.index.close()
    manifest = generation.manifest
    if not is_listed(db, manifest):
        return True
    n_tail = db.execute("SELECT count(*) FROM vectors WHERE chunk_id > ?", (manifest.max_chunk_id,)).fetchone()[0]
    n_dead = manifest.count - (n_vectors - n_tail)
    return bool(
        n_tail > max(LARGEST_TAIL, LARGEST_TAIL_SHARE * n_vectors)
        or n_dead > max(LARGEST_TAIL, LARGEST_DEAD_SHARE * n_vectors)
    )


def publish(db: sqlite3.Connection, library: Path, *, whole: bool = False, progress: Progress | None = None) -> None:
    """Write a generation of all vectors and make it the current one; a library without vectors has none.

    Usually the rows of the current one are taken over and the later ones joined to them. `whole` builds it from the
    database alone, so that it owes nothing to rows that were removed.
    """
    if db.execute("SELECT 1 FROM vectors LIMIT 1").fetchone() is None:
        with transaction(db):
            db.execute("DELETE FROM generations")
        (library / INDEX_FOLDER / CURRENT_NAME).unlink(missing_ok=True)
        remove_all_but(library, 0)
        return
    listed = [row[0] for row in db.execute("SELECT number FROM generations")]
    number = 1 + max([current_number(library), *_numbers(library), *listed])
    target = folder(library, number)
    base = None if whole else _base(db, library)
    try:
        target.mkdir(parents=True)
        try:
            manifest = _build(db, library, number, base, progress)
        except IntegrityError:
            if base is None:
                raise
            manifest = _build(db, library, number, None, progress)  # the base is damaged where no search had looked
        _write_durably(
            target / MANIFEST_NAME, json.dumps({f: getattr(manifest, f) for f in Manifest.__slots__}, indent=1)
        )
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    finally:
        if base is not None:
            base.index.close()
    # FULL makes this commit, and with it every earlier one, survive a power cut: a generation must never know chunk ids
    # that the database forgets and gives out again.
    db.execute("PRAGMA synchronous = FULL")
    try:
        with transaction(db):
            db.execute("DELETE FROM generations")
            db.execute(
                "INSERT INTO generations VALUES (?, ?, ?, ?)",
                (number, manifest.sha256, manifest.max_chunk_id, manifest.count),
            )
    finally:
        db.execute("PRAGMA synchronous = NORMAL")
    _write_durably(library / INDEX_FOLDER / CURRENT_NAME, f"{number:06d}\n")
    remove_all_but(library, number)


def _base(db: sqlite3.Connection, library: Path) -> Generation | None:
    """Return the current generation if a new one may grow from it."""
    generation = open_generation(library, current_number(library))
    if generation is None:
        return None
    n_vectors = _count(db)
    n_whole = generation.manifest.n_whole
    # What was fitted to the rows of the last whole build fits worse, the fewer of all rows these are.
    if is_listed(db, generation.manifest) and n_whole / 2 <= n_vectors <= 2 * n_whole:
        return generation
    generation.index.close()
    return None


def _build(
    db: sqlite3.Connection, library: Path, number: int, base: Generation | None, progress: Progress | None
) -> Manifest:
    from edge_rag.index import NativeIndex, build_index

    dim = schema.get_int(db, "dim")
    path = folder(library, number) / VECTORS_NAME
    if base is None:
        build_index(path, store.vector_blocks(db, library, dim), dim, metric=METRIC, progress=progress)
    else:
        later = store.vector_blocks(db, library, dim, "chunk_id > ?", [base.manifest.max_chunk_id])
        keep = _alive(db, base.index.ids)
        build_index(path, later, dim, metric=METRIC, progress=progress, base=base.index, keep=keep)
    with NativeIndex.open(path, check="header", preload=False) as index:
        count, max_chunk_id = len(index), int(index.ids[-1])
    return Manifest(
        schema.get_meta(db, "library_id"), number, file_sha256(path), path.stat().st_size, count, max_chunk_id,
        schema.get_meta(db, "embedder_fingerprint"), count if base is None else base.manifest.n_whole,
    )  # fmt: skip


def _count(db: sqlite3.Connection) -> int:
    """Return how many vectors there are: one for each chunk, and chunks are counted without reading 78 MB per 100,000."""
    return int(db.execute("SELECT count(*) FROM chunks").fetchone()[0])


def _alive(db: sqlite3.Connection, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell which of these chunks are still there."""
    there = np.fromiter((row[0] for row in db.execute("SELECT id FROM chunks")), dtype=np.int64)
    return np.isin(ids, there, assume_unique=True)


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
