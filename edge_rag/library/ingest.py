"""Files become documents: read, split, embed, store.

Chunks are embedded together across files, sorted by length, because that is fast. Each file is still a transaction
of its own, committed as soon as its last vector is there, and the vectors of files that are not complete are kept too.
So a kill costs the embedding of at most BATCH_CHUNKS texts, even in the middle of a long book; files that were read and
not complete are read again.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_rag.documents import (
    CHUNKER_VERSION,
    READER_VERSION,
    chunk_document,
    embedding_text,
    read_document,
    sniff,
)
from edge_rag.errors import DocumentError, ModelError
from edge_rag.interfaces import Chunk, Document, Embedder, Progress
from edge_rag.library import store
from edge_rag.library.database import transaction
from edge_rag.library.walk import ChangedWhileReading, FileProblem, Found, read_bytes

WINDOW_CHUNKS = 512  # texts gathered before they are embedded: enough to sort by length, about 1 MB of text
BATCH_CHUNKS = 32
HEAD_BYTES = 1 << 16
_RACY_NS = 2_000_000_000  # the coarsest clock of a common file system (FAT)


@dataclass(frozen=True, slots=True)
class Look:
    """What a file is to the library, seen without reading it as a document."""

    kind: str  # "unchanged", "same content", "known content", "new content", "skipped", "problem"
    found: Found
    data: bytes = b""
    content_sha256: bytes = b""
    media_type: str = ""
    document_id: int = 0
    reason: str = ""


@dataclass(slots=True)
class _Pending:
    """A document that waits for its vectors, and the files that have its content."""

    document: Document
    content_sha256: bytes
    media_type: str
    chunks: Sequence[Chunk]
    keys: list[bytes]
    files: list[Found]
    missing: set[bytes]


@dataclass(slots=True)
class Tally:
    """What happened so far: the reports are made from it."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    unchanged: int = 0
    skipped: int = 0
    problems: list[FileProblem] = field(default_factory=list)
    warnings: list[FileProblem] = field(default_factory=list)
    n_chunks: int = 0
    n_embedded: int = 0


def look(db: sqlite3.Connection, found: Found, known: store.Source | None, recipe: str, max_bytes: int) -> Look:
    """Find out whether a file must be read: by size and time, then by its content."""
    # A file written within the clock's resolution of its reading may have changed since without a trace.
    if (
        known
        and known.recipe == recipe
        and (known.size, known.mtime_ns) == (found.size, found.mtime_ns)
        and known.mtime_ns + _RACY_NS < known.read_ns
    ):
        return Look("unchanged", found, document_id=known.document_id)
    if found.size > HEAD_BYTES and not found.explicit and known is None and _is_no_document(found):
        return Look("skipped", found)
    if found.size > max_bytes:
        return Look("problem", found, reason=_too_large(found.size, max_bytes))
    try:
        data, found = read_bytes(found, max_bytes)
    except ChangedWhileReading:
        return Look("problem", found, reason="is being written; add it again when it is complete")
    except OSError as error:
        return Look("problem", found, reason=error.strerror or str(error))
    if len(data) > max_bytes:
        return Look("problem", found, reason=_too_large(found.size, max_bytes))
    try:
        media_type = sniff(data, Path(found.path).name)
    except Exception as error:  # as in _read: one file must not stop the others
        return Look("problem", found, reason=_tripped(error))
    if media_type is None:
        if known:
            return Look("problem", found, reason="holds no text any more; the library keeps what it said before")
        if found.explicit:
            return Look("problem", found, reason="not a kind of document that can be read")
        return Look("skipped", found)
    content_sha256 = hashlib.sha256(data).digest()
    document = store.find_document(db, content_sha256, media_type)
    if document is not None and document[1] == recipe:
        same = known is not None and known.document_id == document[0]
        return Look("same content" if same else "known content", found, document_id=document[0])
    return Look("new content", found, data, content_sha256, media_type)


class Ingest:
    """One run over many files. Not for use by several threads."""

    def __init__(
        self,
        db: sqlite3.Connection,
        *,
        embedder: Callable[[], Embedder],
        chunk_tokens: int,
        max_bytes: int,
        progress: Progress | None,
    ) -> None:
        self.tally = Tally()
        self._db = db
        self._get_embedder = embedder  # called when the first text needs it
        self._chunk_tokens = chunk_tokens
        self._recipe = recipe(chunk_tokens)
        self._max_bytes = max_bytes
        self._progress = progress or (lambda stage, done, total, detail: None)
        self._sources = store.sources(db)
        self._pending: dict[tuple[bytes, str], _Pending] = {}
        self._texts: dict[bytes, str] = {}  # to embed
        self._vectors: dict[bytes, bytes] = {}  # of the pending documents

    def run(self, files: Sequence[Found]) -> None:
        for number, found in enumerate(files):
            self._progress("read", number, len(files), found.path)
            self._take(found)
            if max(len(self._texts), len(self._pending)) >= WINDOW_CHUNKS:
                self._flush()
        self._flush()
        self._progress("read", len(files), len(files), "")

    def report(self, problem: FileProblem) -> None:
        self.tally.problems.append(problem)
        with transaction(self._db):
            store.put_problem(self._db, problem)

    def _take(self, found: Found) -> None:
        seen = look(self._db, found, self._sources.get(found.path), self._recipe, self._max_bytes)
        match seen.kind:
            case "unchanged":
                self.tally.unchanged += 1
            case "same content" | "known content":
                with transaction(self._db):
                    store.put_source(self._db, seen.found, seen.document_id)
                self._count(seen.found, seen.kind)
            case "skipped":
                self.tally.skipped += 1
            case "problem":
                self.report(FileProblem(found.path, seen.reason))
            case "new content":
                waiting = self._pending.get((seen.content_sha256, seen.media_type))
                if waiting is not None:
                    waiting.files.append(seen.found)
                else:
                    self._read(seen)

    def _read(self, seen: Look) -> None:
        embedder = self._get_embedder()
        try:
            document = read_document(seen.data, Path(seen.found.path).name)
            budget = min(self._chunk_tokens, embedder.max_tokens)
            chunks = chunk_document(document, count_tokens=embedder.count_tokens, budget=budget)
            texts = [embedding_text(chunk.heading, document.text[chunk.start : chunk.end]) for chunk in chunks]
            _check_tiles(document, chunks)
            keys = [store.embed_key(text, embedder.fingerprint) for text in texts]
            "\0".join(
                (document.title, *document.metadata.values(), *document.warnings)
            ).encode()  # or it cannot be stored
        except DocumentError as error:
            name = Path(seen.found.path).name
            self.report(FileProblem(seen.found.path, str(error).removeprefix(f"{name}: ")))
            return
        except Exception as error:  # one file that trips a parser must not stop the other ten thousand
            self.report(FileProblem(seen.found.path, _tripped(error)))
            return
        known = store.known_vectors(self._db, keys, embedder.dim)
        self._vectors |= known
        self._pending[seen.content_sha256, seen.media_type] = _Pending(
            document, seen.content_sha256, seen.media_type, chunks, keys, [seen.found], set(keys) - known.keys()
        )
        self._texts |= {key: text for key, text in zip(keys, texts, strict=True) if key not in known}

    def _flush(self) -> None:
        """Embed what waits, shortest first, and store each file as soon as it is complete."""
        self._store_complete()
        if not self._pending:
            return
        embedder = self._get_embedder()
        waiting = sorted(
            (key for p in self._pending.values() for key in p.missing), key=lambda key: len(self._texts[key])
        )
        waiting = list(dict.fromkeys(waiting))
        for start in range(0, len(waiting), BATCH_CHUNKS):
            batch = waiting[start : start + BATCH_CHUNKS]
            self._progress("embed", start, len(waiting), "")
            vectors = embedder.embed([self._texts[key] for key in batch])
            if vectors.shape != (len(batch), embedder.dim) or not store.are_vectors(vectors):
                raise ModelError(
                    f"the embedder {embedder.name} gave vectors that are no vectors", mend="use another embedder"
                )
            self.tally.n_embedded += len(batch)
            done = {key: store.vector_blob(vector) for key, vector in zip(batch, vectors, strict=True)}
            self._vectors |= done
            if start + BATCH_CHUNKS < len(waiting):
                with transaction(self._db):
                    store.put_spare_vectors(self._db, done)
            for pending in self._pending.values():
                pending.missing -= done.keys()
            self._store_complete()
        with transaction(self._db):
            store.drop_spare_vectors(self._db)
        self._vectors.clear()
        self._texts.clear()

    def _store_complete(self) -> None:
        for identity, pending in list(self._pending.items()):
            if pending.missing:
                continue
            with transaction(self._db):
                document_id = store.put_document(
                    self._db, pending.document, pending.content_sha256, pending.media_type, self._recipe,
                    pending.chunks, pending.keys, self._vectors,
                )  # fmt: skip
                for found in pending.files:
                    store.put_source(self._db, found, document_id)
            del self._pending[identity]
            self.tally.n_chunks += len(pending.chunks)
            self.tally.warnings += [FileProblem(pending.files[0].path, text) for text in pending.document.warnings]
            for number, found in enumerate(pending.files):
                self._count(found, "new content" if number == 0 else "known content")

    def _count(self, found: Found, kind: str) -> None:
        if kind == "same content":
            self.tally.unchanged += 1
        elif found.path in self._sources:
            self.tally.changed.append(found.path)
        elif kind == "known content":
            self.tally.duplicates.append(found.path)
        else:
            self.tally.added.append(found.path)


def recipe(chunk_tokens: int) -> str:
    """Return what a document's chunks depend on besides its bytes; a file stored by another recipe is read again."""
    return f"reader {READER_VERSION}, chunker {CHUNKER_VERSION}, {chunk_tokens} tokens"


def _is_no_document(found: Found) -> bool:
    """Tell a film or a disk image from a document by its beginning; a zip archive shows at its end what it is."""
    try:
        with Path(found.path).open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False  # reading it whole will say why
    return not head.startswith(b"PK") and sniff(head, Path(found.path).name) is None


def _check_tiles(document: Document, chunks: Sequence[Chunk]) -> None:
    """The text is stored in its chunks alone, so a gap would lose some of it for good."""
    position = 0
    for chunk in chunks:
        if chunk.start != position or chunk.end <= chunk.start:
            raise DocumentError(f"was split wrongly at character {position}")
        position = chunk.end
    if position != len(document.text):
        raise DocumentError(f"was split wrongly at character {position}")


def _tripped(error: Exception) -> str:
    return f"could not be read: {type(error).__name__}: {error}"


def _too_large(size: int, max_bytes: int) -> str:
    return f"{size / (1 << 20):,.0f} MB is more than max_file_mb = {max_bytes >> 20}"
