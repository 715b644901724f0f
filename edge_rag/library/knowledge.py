"""The library as the rest of the house sees it: open it, put files in, ask it, keep it."""

import hashlib
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from edge_rag.errors import IntegrityError, LibraryError, LibraryLocked, UsageError
from edge_rag.interfaces import Embedder, Passage, Progress
from edge_rag.library import generations, schema, search, store
from edge_rag.library.database import (
    DATABASE_NAME,
    checked,
    command,
    connect_reader,
    connect_writer,
    damaged,
    identity,
    snapshot,
    transaction,
    translated,
)
from edge_rag.library.filters import Filters
from edge_rag.library.lock import LOCK_NAME, writer_lock
from edge_rag.library.reports import (
    CompactReport,
    DocumentInfo,
    DocumentView,
    Finding,
    IngestReport,
    Stats,
    SyncReport,
)
from edge_rag.library.walk import Found, absolute, is_under, walk
from edge_rag.settings import Settings

if TYPE_CHECKING:
    from edge_rag.index import NativeIndex
    from edge_rag.library.ingest import Ingest  # loads the readers of all formats, which a search does not need

EVERYTHING = Filters()

# Library.list hides the built-in name inside the class.
Findings = list[Finding]
Infos = list[DocumentInfo]
Passages = list[Passage]
Paths = list[str]
Files = list[tuple[str, int]]


class Library:
    """A folder with documents that can be searched. A context manager; `close()` may be called twice.

    Several threads may share one, and many processes may read while one writes; a reader never waits for a writer.
    """

    def __init__(self, path: Path, settings: Settings, embedder: Embedder | None) -> None:
        """Use `Library.open`."""
        self.path = path
        self._settings = settings
        self._embedder = embedder
        self._embedder_given = embedder is not None
        self._open_embedder: Callable[[str, str, Settings], Embedder] = _open_embedder
        self._embedder_checked = False
        self._lock = threading.RLock()  # guards what follows
        self._reader: sqlite3.Connection | None = None
        self._identity: tuple[int, ...] = ()
        self._generation: generations.Generation | None = None
        self._tail: search.Tail | None = None
        self._tail_state = (-1, -1)  # of the database, and the chunk that it comes after
        self._closed = False
        self._fixed = False  # it lies in a bundle: there is no folder, and nothing ever changes

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        create: bool = False,
        settings: Settings | None = None,
        embedder: Embedder | None = None,
    ) -> Self:
        """Open the library in this folder; with `create`, make it if it is not there.

        `embedder` stands in for the model that the library names, which is otherwise opened when it is first needed.
        """
        path = Path(absolute(path))
        library = cls(path, settings or Settings(), embedder)
        if not _has_database(path):
            if not create:
                raise _missing(path)
            library._create()
        try:
            with library._reading():
                pass
        except BaseException:
            library.close()
            raise
        return library

    @classmethod
    def of_parts(
        cls,
        path: Path,
        reader: sqlite3.Connection,
        index: "NativeIndex | None",
        *,
        settings: Settings,
        open_embedder: Callable[[str, str, Settings], Embedder],
    ) -> Self:
        """Take over a database and its index that lie in the file `path`, a bundle, where nobody can change them."""
        library = cls(path, settings, None)
        library._fixed, library._reader, library._open_embedder = True, reader, open_embedder
        try:
            library._check_reader()
            if index is not None:
                with translated(path):
                    library._generation = generations.of_index(reader, index)
                if library._generation is None:
                    raise damaged(path, "its index belongs to another library")
        except BaseException:
            library.close()
            raise
        return library

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- putting in and taking out ---

    def add(self, paths: Iterable[str | Path], *, progress: Progress | None = None) -> IngestReport:
        """Add files, and the files in folders. What is already there and unchanged costs next to nothing."""
        with self._writing("add") as db:
            ingest = self._ingest(db, progress)
            files: dict[str, Found] = {}
            for path in paths:
                for found in walk(str(path), skip=self.path, problem=ingest.report):
                    files.setdefault(found.path, found)
            ingest.run([*files.values()])
            self._publish_if_due(db, progress)
            t = ingest.tally
            return IngestReport(
                tuple(t.added), tuple(t.changed), tuple(t.duplicates), t.unchanged, t.skipped, tuple(t.problems),
                tuple(t.warnings), t.n_chunks, t.n_embedded,
            )  # fmt: skip

    def sync(self, folder: str | Path, *, dry_run: bool = False, progress: Progress | None = None) -> SyncReport:
        """Make the library agree with a folder; nothing that came from elsewhere is touched."""
        self._refuse_if_fixed()
        from edge_rag.library import sync
        from edge_rag.library.ingest import recipe

        root = absolute(folder)
        if dry_run:
            with self._reading() as db:
                return sync.foresee(db, self.path, root, recipe(self._chunk_tokens(db)), self._max_bytes)
        with self._writing("sync") as db:
            report = sync.apply(db, self.path, root, self._ingest(db, progress))
            self._publish_if_due(db, progress)
            return report

    def remove(self, target: int | str | Path) -> Paths:
        """Remove a document by its id, a file by its path, or all files of a folder; return the files' paths.

        They are out of every search at once. `compact` erases their bytes from the disk.
        """
        with self._writing("remove") as db:
            files = self._files_of(db, target)
            with transaction(db):
                for path, document_id in files:
                    db.execute("DELETE FROM sources WHERE path = ?", (path,))
                    store.drop_unused_document(db, document_id)
            self._publish_if_due(db, None)
            return [path for path, _ in files]

    def compact(self, *, progress: Progress | None = None) -> CompactReport:
        """Give free space back and make deleted text gone: from the tables, the full-text index, the vectors and the
        disk."""
        self._refuse_if_fixed()
        bytes_before = _bytes_of(_files_under(self.path))
        with self._writing("compact") as db:
            if progress:
                progress("compact", 0, 0, "")
            # FTS5 forgets a deleted text's words only when it is built anew.
            db.execute("INSERT INTO chunk_fts (chunk_fts) VALUES ('rebuild')")
            store.drop_spare_vectors(db)
            generations.publish(db, self.path, whole=True, progress=progress)
            db.execute("VACUUM")
            with self._lock:
                self._let_go()  # or our own reader could keep the log from being emptied
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:
                raise LibraryLocked(
                    f"{self.path}: compacted, but a reading process keeps the log, where deleted text may stand",
                    mend="close it and compact again",
                )
        return CompactReport(bytes_before, _bytes_of(_files_under(self.path)))

    # --- looking ---

    def list(self, filters: Filters | None = None) -> Infos:
        with self._reading() as db:
            return store.document_infos(db, self.path, filters or EVERYTHING)

    def show(self, target: int | str | Path) -> DocumentView:
        """Return a document by its id or by the path of one of its files."""
        with self._reading() as db:
            _, document_id = self._files_of(db, target)[0]
            infos = store.document_infos(db, self.path, EVERYTHING, document_id)
            if not infos:
                raise damaged(self.path, f"document {document_id} is missing")
            info = infos[0]
            ids = [
                row[0] for row in db.execute("SELECT id FROM chunks WHERE document_id = ? ORDER BY ordinal", (info.id,))
            ]
            chunks = store.passages(db, self.path, dict.fromkeys(ids, 0.0))
            if self._fixed and chunks and not any(chunk.text for chunk in chunks):
                raise LibraryError(f"{self.path}: it was built without texts", mend="look where `list` says that it is")
            text = store.document_text(db, self.path, info.id)
            if len(text) != info.n_chars:
                raise damaged(self.path, f"document {info.id} has {len(text)} of {info.n_chars} characters")
            return DocumentView(
                info.id, info.paths, info.title, info.media_type, info.metadata, info.warnings, info.added_at, text,
                tuple(chunks),
            )  # fmt: skip

    def stats(self) -> Stats:
        with self._reading() as db:

            def one(sql: str) -> int:
                return int(db.execute(sql).fetchone()[0])

            if self._fixed:
                manifest = self._generation.manifest if self._generation else None
                database_bytes = one("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
                index_bytes = manifest.size if manifest else 0
            else:
                manifest = generations.read_manifest(self.path, generations.current_number(self.path))
                database_bytes = _bytes_of(self.path.glob(DATABASE_NAME + "*"))
                index_bytes = _bytes_of(_files_under(self.path / generations.INDEX_FOLDER))
            if manifest is not None and not generations.is_listed(db, manifest):
                manifest = None
            last = manifest.max_chunk_id if manifest else 0
            return Stats(
                path=str(self.path),
                n_documents=one("SELECT count(*) FROM documents"),
                n_sources=one("SELECT count(*) FROM sources"),
                n_chunks=one("SELECT count(*) FROM chunks"),
                n_chars=one("SELECT coalesce(sum(n_chars), 0) FROM documents"),
                n_problems=one("SELECT count(*) FROM problems"),
                media_types=dict(
                    Counter(row[0] for row in db.execute("SELECT media_type FROM documents")).most_common()
                ),
                database_bytes=database_bytes,
                index_bytes=index_bytes,
                embedder=schema.get_meta(db, "embedder_name"),
                embedder_fingerprint=schema.get_meta(db, "embedder_fingerprint"),
                dim=schema.get_int(db, "dim"),
                chunk_tokens=self._chunk_tokens(db),
                generation=manifest.number if manifest else 0,
                n_indexed=manifest.count if manifest else 0,
                n_tail=one(f"SELECT count(*) FROM vectors WHERE chunk_id > {last}"),
            )

    def fingerprint(self) -> str:
        """Return a hash of what a search can find and of the model that finds it: equal ones give equal results."""
        digest = hashlib.sha256()
        with self._reading() as db:
            digest.update(schema.get_meta(db, "embedder_fingerprint").encode())
            for chunk_id, proof in db.execute("SELECT id, digest FROM chunks ORDER BY id"):
                digest.update(b"%d " % chunk_id + proof)
        return digest.hexdigest()[:32]

    def doctor(self, *, deep: bool = False, repair: bool = False) -> Findings:
        """See `edge_rag.library.diagnose`, which also works where a library cannot be opened."""
        self._refuse_if_fixed()
        from edge_rag.library.doctor import diagnose

        with self._lock:
            self._let_go()
        return diagnose(
            self.path,
            deep=deep,
            repair=repair,
            settings=self._settings,
            embedder=self._embedder if self._embedder_given else None,
        )

    # --- searching ---

    def lexical(self, question: str, k: int, filters: Filters | None = None) -> Passages:
        """Return the k best passages by words (BM25); any text is a question."""
        with self._reading() as db:
            return store.passages(db, self.path, search.lexical(db, question, k, filters or EVERYTHING), filters)

    def dense(self, question: str | npt.NDArray[np.float32], k: int, filters: Filters | None = None) -> Passages:
        """Return the k nearest passages by meaning; the score is the cosine. `question` is a text or its vector."""
        if isinstance(question, str):
            with self._reading() as db:
                if not schema.get_meta(db, "embedder_fingerprint"):
                    return []
            vector = self.embedder.embed([question])[0]
        else:
            vector = np.asarray(question, dtype=np.float32).reshape(-1)
        with self._reading() as db:
            dim = schema.get_int(db, "dim")
            if dim == 0:
                if schema.get_meta(db, "embedder_fingerprint"):
                    raise damaged(self.path, "it does not say how long its vectors are")
                return []  # nothing was ever embedded
            if len(vector) != dim or not np.isfinite(vector).all() or not vector.any():
                raise UsageError(
                    f"a vector of {dim} finite numbers, not all zero, is needed", mend="use the library's embedder"
                )
            generation = self._current_generation(db)
            tail = self._current_tail(db, generation, dim)
            found = search.dense(db, self.path, generation, vector, k, filters or EVERYTHING, tail)
            return store.passages(db, self.path, found, filters)

    def passages(self, chunk_ids: Iterable[int]) -> Passages:
        """Return these chunks, in this order; those that are gone are left out."""
        with self._reading() as db:
            return store.passages(db, self.path, dict.fromkeys(map(int, chunk_ids), 0.0))

    def neighbours(self, chunk_id: int, distance: int = 1) -> Passages:
        """Return the chunks up to so many places before and after this one in its document, without it."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT n.id FROM chunks c JOIN chunks n ON n.document_id = c.document_id"
                " AND abs(n.ordinal - c.ordinal) <= ? AND n.id != c.id WHERE c.id = ? ORDER BY n.ordinal",
                (distance, chunk_id),
            )
            return store.passages(db, self.path, {row[0]: 0.0 for row in rows})

    @property
    def embedder(self) -> Embedder:
        """Return the model that turns texts into this library's vectors; refuse one with another fingerprint."""
        with self._lock:
            if self._embedder is None or not self._embedder_checked:
                with self._reading() as db:
                    name, fingerprint = (
                        schema.get_meta(db, "embedder_name"),
                        schema.get_meta(db, "embedder_fingerprint"),
                    )
                embedder = self._embedder or self._open_embedder(name, fingerprint, self._settings)
                if fingerprint and embedder.fingerprint != fingerprint:
                    raise LibraryError(
                        f"{self.path}: made with the embedder {name} ({fingerprint[:12]}), and not with the one here:"
                        f" {embedder.name} ({embedder.fingerprint[:12]})",
                        mend=f"edge-rag models pull {name}, or embed everything again: "
                        + command(self.path, "doctor --repair"),
                    )
                self._embedder, self._embedder_checked = embedder, True
            return self._embedder

    # --- inside ---

    @property
    def _max_bytes(self) -> int:
        return self._settings.max_file_mb << 20

    def _create(self) -> None:
        """Make an empty library. Killed half way, it is no library yet and the next call finishes it."""
        _refuse_foreign_folder(self.path)
        from edge_rag.models import lasting_embedder_name

        embedder = self._embedder.name if self._embedder else lasting_embedder_name(self._settings.embedder)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LibraryError(
                f"{self.path}: cannot be made ({error.strerror})", mend="choose another place"
            ) from error
        with writer_lock(self.path, "edge-rag add"):
            db = connect_writer(self.path)
            try:
                with translated(self.path):
                    schema.migrate(db, self.path)
                    with transaction(db):
                        if not schema.get_meta(db, "embedder_name"):
                            schema.set_meta(db, embedder_name=embedder, chunk_tokens=self._settings.chunk_tokens)
            finally:
                db.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Hold a snapshot of the database on disk."""
        with self._lock:
            if self._closed:
                raise LibraryError(f"{self.path}: closed", mend="open the library again")
            if not self._fixed and (self._reader is None or self._identity != identity(self.path)):
                self._let_go()
                self._connect()
            assert self._reader is not None
            with translated(self.path), snapshot(self._reader):
                yield self._reader

    def _connect(self) -> None:
        if not _has_database(self.path):
            raise _missing(self.path)
        self._identity = identity(self.path)
        self._reader = connect_reader(self.path)
        self._check_reader()

    def _check_reader(self) -> None:
        assert self._reader is not None
        with translated(self.path):
            found = schema.check_version(self._reader, self.path)
            if found == 0:
                empty = not schema.objects(self._reader)
                raise _missing(self.path) if empty else damaged(self.path, "not a library's database")
            if found < schema.VERSION and not self._fixed:
                self._let_go()
                with writer_lock(self.path, "edge-rag migrate"):
                    db = connect_writer(self.path)
                    try:
                        schema.migrate(db, self.path)
                    finally:
                        db.close()
                self._connect()
            elif not schema.get_meta(self._reader, "embedder_name"):
                raise damaged(self.path, "it does not say how it was made")

    def _refuse_if_fixed(self) -> None:
        if self._fixed:
            raise LibraryError(
                f"{self.path}: a bundle cannot be changed",
                mend="change the library that it was made from, and build it again",
            )

    @contextmanager
    def _writing(self, verb: str) -> Iterator[sqlite3.Connection]:
        """Hold the writer's lock and a connection of its own, so that readers of this object are not disturbed."""
        self._refuse_if_fixed()
        with self._reading():
            pass  # finds out what is wrong before anything is written
        with writer_lock(self.path, f"edge-rag {verb}"):
            db = connect_writer(self.path)
            try:
                with translated(self.path):
                    yield db
            finally:
                db.close()

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._generation is not None:
            self._generation.index.close()
            self._generation = None
        self._tail, self._tail_state = None, (-1, -1)

    def _ingest(self, db: sqlite3.Connection, progress: Progress | None) -> "Ingest":
        from edge_rag.library.ingest import Ingest

        def embedder() -> Embedder:
            model = self.embedder
            if not schema.get_meta(db, "embedder_fingerprint"):
                with transaction(db):
                    name = model.name if self._embedder_given else schema.get_meta(db, "embedder_name")
                    schema.set_meta(db, embedder_name=name, embedder_fingerprint=model.fingerprint, dim=model.dim)
            return model

        return Ingest(
            db, embedder=embedder, chunk_tokens=self._chunk_tokens(db), max_bytes=self._max_bytes, progress=progress
        )

    def _chunk_tokens(self, db: sqlite3.Connection) -> int:
        tokens = schema.get_int(db, "chunk_tokens")
        if not tokens:
            raise damaged(self.path, "it does not say how it was made")
        return tokens

    def _publish_if_due(self, db: sqlite3.Connection, progress: Progress | None) -> None:
        if generations.is_due(db, self.path):
            if progress:
                progress("index", 0, 0, "")
            generations.publish(db, self.path, progress=progress)

    def _current_generation(self, db: sqlite3.Connection) -> generations.Generation | None:
        """Follow CURRENT; None if what it names cannot be used with this snapshot."""
        number = 0 if self._fixed else generations.current_number(self.path)
        if not self._fixed and (self._generation is None or self._generation.manifest.number != number):
            if self._generation is not None:
                self._generation.index.close()
            self._generation = generations.open_generation(self.path, number) if number else None
        if self._generation is None or not generations.is_listed(db, self._generation.manifest):
            return None
        return self._generation

    def _current_tail(
        self, db: sqlite3.Connection, generation: generations.Generation | None, dim: int
    ) -> search.Tail | None:
        """Return what came after the generation, read again only if somebody has written meanwhile."""
        version = int(db.execute("PRAGMA data_version").fetchone()[0])  # changes with every other connection's commit
        state = (version, generation.manifest.max_chunk_id if generation else 0)
        if self._tail_state != state:
            self._tail, self._tail_state = search.read_tail(db, self.path, dim, state[1]), state
        return self._tail

    def _files_of(self, db: sqlite3.Connection, target: int | str | Path) -> Files:
        """Return path and document of the files that an id, a path or a folder stands for: at least one."""
        files: Files = []
        if isinstance(target, int) or (isinstance(target, str) and target.isdecimal()):
            files = db.execute(
                "SELECT path, document_id FROM sources WHERE document_id = ? ORDER BY added_at, path", (int(target),)
            ).fetchall()
        else:
            rows = db.execute("SELECT path, document_id FROM sources ORDER BY path").fetchall()
            everything = [(path, owner) for path, owner in (checked(self.path, row, str, int) for row in rows)]
            # as it stands first: in a library that came from another machine no path exists here
            for wanted in (str(target), absolute(target)):
                files = [row for row in everything if wanted and is_under(row[0], wanted)]
                if files:
                    break
        if not files:
            raise LibraryError(f"{target}: not in the library", mend="see what is there: " + command(self.path, "list"))
        return files


def list_libraries(folder: Path) -> list[str]:
    """Return the names of the libraries in a folder of libraries."""
    return sorted(child.name for child in folder.iterdir() if _has_database(child)) if folder.is_dir() else []


def _open_embedder(name: str, fingerprint: str, settings: Settings) -> Embedder:
    from edge_rag.models import open_embedder  # loads onnxruntime

    return open_embedder(name, threads=settings.threads, fingerprint=fingerprint)


def _has_database(path: Path) -> bool:
    database = path / DATABASE_NAME
    try:
        return database.is_file() and database.stat().st_size > 0
    except OSError as error:
        raise LibraryError(f"{path}: cannot be read ({error.strerror})", mend="check its permissions") from error


def _missing(path: Path) -> LibraryError | IntegrityError:
    if (path / generations.INDEX_FOLDER / generations.CURRENT_NAME).exists():
        return damaged(path, f"{DATABASE_NAME} is missing")
    return LibraryError(f"{path}: no library here", mend="make one: " + command(path, "add PATH..."))


def _refuse_foreign_folder(path: Path) -> None:
    """A library in a folder of documents would index itself, and `--library ./docs` is easily typed."""
    if not path.exists():
        return
    if not path.is_dir():
        raise LibraryError(f"{path}: a file, not a folder", mend="choose another place for the library")
    ours = (DATABASE_NAME, LOCK_NAME, generations.INDEX_FOLDER, "damaged-")
    foreign = sorted(f.name for f in path.iterdir() if not f.name.startswith((*ours, ".")))
    if foreign:
        raise LibraryError(
            f"{path}: no library, and not empty ({foreign[0]} is there)",
            mend="choose an empty or a new folder for the library",
        )


def _files_under(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder; what a writer removes meanwhile is left out, where Path.rglob would fail."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _bytes_of(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            pass  # removed while we looked
    return total
