"""The rows of a library: documents with their chunks and vectors, and the files that they come from.

Functions that change something expect to run inside a transaction. Nothing here knows how text is read, split or
embedded.
"""

import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_rag.interfaces import Chunk, Document, Passage
from edge_rag.library.database import checked, damaged
from edge_rag.library.filters import Filters
from edge_rag.library.reports import DocumentInfo
from edge_rag.library.walk import FileProblem, Found

VECTOR_TYPE = np.dtype("<f2")
_VECTORS_PER_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Source:
    path: str
    document_id: int
    size: int
    mtime_ns: int
    read_ns: int
    recipe: str  # of its document


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def chunk_digest(content_sha256: bytes, start: int, end: int, page: int | None, heading: str, text: str) -> bytes:
    """Return what proves that a chunk is as it was stored."""
    digest = hashlib.blake2b(content_sha256, digest_size=16)
    digest.update(f"{start} {end} {page} {len(heading)} {heading}{text}".encode())
    return digest.digest()


def record_digest(content_sha256: bytes, *values: object) -> bytes:
    """Return what proves that a row belongs to this content and says what it said."""
    return hashlib.blake2b(content_sha256 + json.dumps(values).encode(), digest_size=16).digest()


def embed_key(embedded_text: str, fingerprint: str) -> bytes:
    return hashlib.blake2b(embedded_text.encode(), key=fingerprint.encode()[:64], digest_size=16).digest()


def vector_blob(vector: npt.NDArray[np.float32]) -> bytes:
    return vector.astype(VECTOR_TYPE).tobytes()


def are_vectors(vectors: npt.NDArray[np.float32]) -> bool:
    """Tell whether each of these rows is still finite, and not zero, as it will be stored."""
    with np.errstate(over="ignore"):
        stored = vectors.astype(VECTOR_TYPE)
    return bool(np.isfinite(stored).all() and stored.any(axis=1).all())


# --- sources ---


def sources(db: sqlite3.Connection) -> dict[str, Source]:
    rows = db.execute(
        "SELECT s.path, s.document_id, s.size, s.mtime_ns, s.read_ns, d.recipe"
        " FROM sources s JOIN documents d ON d.id = s.document_id"
    )
    return {row[0]: Source(*row) for row in rows}


def put_source(db: sqlite3.Connection, found: Found, document_id: int) -> None:
    """Say that this file has this document's content now; a document that no file has any more goes."""
    row = db.execute("SELECT document_id FROM sources WHERE path = ?", (found.path,)).fetchone()
    content_sha256 = db.execute("SELECT content_sha256 FROM documents WHERE id = ?", (document_id,)).fetchone()[0]
    digest = record_digest(content_sha256, found.path)
    db.execute(
        "INSERT INTO sources (path, document_id, size, mtime_ns, read_ns, root, added_at, digest)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (path) DO UPDATE SET document_id = excluded.document_id, size = excluded.size,"
        " mtime_ns = excluded.mtime_ns, read_ns = excluded.read_ns, root = excluded.root, digest = excluded.digest",
        (found.path, document_id, found.size, found.mtime_ns, time.time_ns(), found.root, now(), digest),
    )
    db.execute("DELETE FROM problems WHERE path = ?", (found.path,))
    if row is not None and row[0] != document_id:
        drop_unused_document(db, row[0])


def drop_unused_document(db: sqlite3.Connection, document_id: int) -> None:
    db.execute(
        "DELETE FROM documents WHERE id = ? AND NOT EXISTS (SELECT 1 FROM sources WHERE document_id = documents.id)",
        (document_id,),
    )


def put_problem(db: sqlite3.Connection, problem: FileProblem) -> None:
    db.execute("INSERT OR REPLACE INTO problems VALUES (?, ?, ?)", (problem.path, problem.reason, now()))


# --- documents ---


def find_document(db: sqlite3.Connection, content_sha256: bytes, media_type: str) -> tuple[int, str] | None:
    """Return id and recipe of the document with this content."""
    row: tuple[int, str] | None = db.execute(
        "SELECT id, recipe FROM documents WHERE content_sha256 = ? AND media_type = ?", (content_sha256, media_type)
    ).fetchone()
    return row


def put_document(
    db: sqlite3.Connection,
    document: Document,
    content_sha256: bytes,
    media_type: str,
    recipe: str,
    chunks: Sequence[Chunk],
    keys: Sequence[bytes],
    vectors: Mapping[bytes, bytes],
) -> int:
    """Store a document with its chunks and their vectors, in place of one with the same content. Return its id."""
    metadata = json.dumps(dict(document.metadata), ensure_ascii=False)
    warnings = json.dumps(list(document.warnings), ensure_ascii=False)
    date = document.metadata.get("date") or None
    shown = (document.title, metadata, date, len(document.text), warnings)
    values = (*shown, recipe, record_digest(content_sha256, media_type, *shown))
    known = find_document(db, content_sha256, media_type)
    if known is None:
        document_id = db.execute(
            "INSERT INTO documents"
            " (title, metadata, date, n_chars, warnings, recipe, digest, content_sha256, media_type, added_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, content_sha256, media_type, now()),
        ).lastrowid
    else:
        document_id = known[0]
        db.execute("DELETE FROM chunks WHERE document_id = ?", (document_id,))
        db.execute(
            "UPDATE documents SET title = ?, metadata = ?, date = ?, n_chars = ?, warnings = ?, recipe = ?,"
            " digest = ? WHERE id = ?",
            (*values, document_id),
        )
    assert document_id is not None
    for ordinal, (chunk, key) in enumerate(zip(chunks, keys, strict=True)):
        text = document.text[chunk.start : chunk.end]
        digest = chunk_digest(content_sha256, chunk.start, chunk.end, chunk.page, chunk.heading, text)
        chunk_id = db.execute(
            'INSERT INTO chunks (document_id, ordinal, start, "end", page, digest, embed_key, heading, text)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (document_id, ordinal, chunk.start, chunk.end, chunk.page, digest, key, chunk.heading, text),
        ).lastrowid
        assert chunk_id is not None
        put_vector(db, chunk_id, vectors[key])
    return document_id


def document_infos(
    db: sqlite3.Connection, library: Path, filters: Filters, document_id: int | None = None
) -> list[DocumentInfo]:
    where, parameters = filters.where()
    rows = db.execute(
        f"SELECT d.id, {DOCUMENT_COLUMNS}, d.added_at, (SELECT count(*) FROM chunks c WHERE c.document_id = d.id)"
        f" FROM documents d WHERE d.id IN (SELECT s.document_id FROM {_JOINED} WHERE {where})"
        " AND (? IS NULL OR d.id = ?) ORDER BY d.id",
        (*parameters, document_id, document_id),
    ).fetchall()
    only = "" if document_id is None else f" WHERE d.id = {int(document_id)}"
    paths: dict[int, list[str]] = {}
    for owner, content_sha256, path, digest in db.execute(
        f"SELECT d.id, d.content_sha256, s.path, s.digest FROM {_JOINED}{only} ORDER BY s.added_at, s.path"
    ):
        check_source(library, content_sha256, path, digest)
        paths.setdefault(owner, []).append(path)
    return [_info(library, row, tuple(paths.get(row[0], ()))) for row in rows]


def _info(library: Path, row: Sequence[object], paths: tuple[str, ...]) -> DocumentInfo:
    title, media_type, metadata, warnings, n_chars = check_document(library, row[1:-2])
    id_, added_at, n_chunks = checked(library, (row[0], *row[-2:]), int, str, int)
    return DocumentInfo(
        id_, paths, title, media_type, json.loads(metadata), n_chars, n_chunks, tuple(json.loads(warnings)), added_at
    )


# What is shown of a document, and its proof, on `documents d`
DOCUMENT_COLUMNS = "d.content_sha256, d.media_type, d.title, d.metadata, d.date, d.n_chars, d.warnings, d.digest"


def check_document(library: Path, row: Sequence[object]) -> tuple[str, str, str, str, int]:
    """Return title, media type, metadata, warnings and length from DOCUMENT_COLUMNS if they are what was stored."""
    content_sha256, media_type, title, metadata, date, n_chars, warnings, digest = checked(
        library, row, bytes, str, str, str, (str, type(None)), int, str, bytes
    )
    if digest != record_digest(content_sha256, media_type, title, metadata, date, n_chars, warnings):
        raise damaged(library, f"what is known of the document {title[:80]!r} is not what was stored")
    return title, media_type, metadata, warnings, n_chars


def check_source(library: Path, content_sha256: object, path: object, digest: object) -> None:
    checked(library, (content_sha256, path, digest), bytes, str, bytes)
    assert isinstance(content_sha256, bytes)
    if digest != record_digest(content_sha256, path):
        raise damaged(library, f"the path {path!r} is not what was stored")


# --- passages ---

_JOINED = "sources s JOIN documents d ON d.id = s.document_id"


def passages(
    db: sqlite3.Connection, library: Path, scores: Mapping[int, float], filters: Filters | None = None
) -> list[Passage]:
    """Return these chunks, in this order, each proved to be what was stored; those that are gone are left out."""
    where, parameters = (filters or Filters()).where()
    rows = db.execute(
        'SELECT c.id, c.document_id, c.start, c."end", c.page, c.digest, c.heading, c.text, f.path, f.digest,'
        f" {DOCUMENT_COLUMNS} FROM chunks c JOIN documents d ON d.id = c.document_id JOIN sources f ON f.rowid ="
        f" (SELECT s.rowid FROM sources s WHERE s.document_id = d.id AND {where} ORDER BY s.added_at, s.path LIMIT 1)"
        " WHERE c.id IN (SELECT value FROM json_each(?))",
        (*parameters, json.dumps(list(scores))),
    )
    found = {row[0]: _passage(library, row, scores) for row in rows}
    return [found[chunk_id] for chunk_id in scores if chunk_id in found]


def _passage(library: Path, row: Sequence[object], scores: Mapping[int, float]) -> Passage:
    chunk_id, document_id, start, end, page, digest, heading, text, path, path_digest, content_sha256 = checked(
        library, row[:11], int, int, int, int, (int, type(None)), bytes, str, str, str, bytes, bytes
    )
    if digest != chunk_digest(content_sha256, start, end, page, heading, text) or (text and len(text) != end - start):
        raise damaged(library, f"a passage of {path} is not what was stored")
    check_source(library, content_sha256, path, path_digest)
    title, *_ = check_document(library, row[10:])
    kept = text.rstrip()
    end = start + len(kept) if text else end  # a bundle may have been built without texts
    return Passage(chunk_id, document_id, path, title, heading, page, start, end, kept, scores.get(chunk_id, 0.0))


def document_text(db: sqlite3.Connection, library: Path, document_id: int) -> str:
    rows = db.execute('SELECT start, "end", text FROM chunks WHERE document_id = ? ORDER BY ordinal', (document_id,))
    parts, position = [], 0
    for start, end, text in (checked(library, row, int, int, str) for row in rows):
        if start != position or len(text) != end - start:
            raise damaged(library, f"document {document_id} has a gap at character {position}")
        parts.append(text)
        position = end
    return "".join(parts)


# --- vectors ---


def put_vector(db: sqlite3.Connection, chunk_id: int, vector: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", (chunk_id, vector, zlib.crc32(vector)))


def put_spare_vectors(db: sqlite3.Connection, vectors: Mapping[bytes, bytes]) -> None:
    rows = [(key, vector, zlib.crc32(vector)) for key, vector in vectors.items()]
    db.executemany("INSERT OR REPLACE INTO spare_vectors VALUES (?, ?, ?)", rows)


def drop_spare_vectors(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM spare_vectors")


def known_vectors(db: sqlite3.Connection, keys: Iterable[bytes], dim: int) -> dict[bytes, bytes]:
    """Return the vectors that the library already has for texts with these keys."""
    found: dict[bytes, bytes] = {}
    for key in set(keys):
        row = db.execute(
            "SELECT v.vector, v.crc32 FROM chunks c JOIN vectors v ON v.chunk_id = c.id WHERE c.embed_key = ?"
            " UNION ALL SELECT vector, crc32 FROM spare_vectors WHERE embed_key = ? LIMIT 1",
            (key, key),
        ).fetchone()
        if row is not None and vector_is_whole(row[0], row[1], dim):
            found[key] = row[0]
    return found


def vector_is_whole(vector: object, crc32: object, dim: int) -> bool:
    return isinstance(vector, bytes) and len(vector) == dim * VECTOR_TYPE.itemsize and zlib.crc32(vector) == crc32


def vector_blocks(
    db: sqlite3.Connection, library: Path, dim: int, condition: str = "1", parameters: Sequence[object] = ()
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Yield ids, ascending, and vectors (n, dim) of the chunks for which the condition on `chunk_id` holds."""
    rows = db.execute(
        f"SELECT chunk_id, vector, crc32 FROM vectors WHERE {condition} ORDER BY chunk_id", tuple(parameters)
    )
    while block := rows.fetchmany(_VECTORS_PER_BLOCK):
        for chunk_id, vector, crc32 in block:
            if not isinstance(chunk_id, int) or not vector_is_whole(vector, crc32, dim):
                raise damaged(library, f"the vector of chunk {chunk_id} is not what was stored")
        ids = np.array([row[0] for row in block], dtype=np.int64)
        joined = np.frombuffer(b"".join(row[1] for row in block), dtype=VECTOR_TYPE)
        yield ids, joined.reshape(-1, dim).astype(np.float32)
