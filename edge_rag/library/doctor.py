"""Find what is wrong with a library, and put right what can be.

Everything but the documents' text can be made anew: the full-text index, the vectors, the index generations. A document
whose text is damaged is dropped and its files are named, so that they can be added again. A database that SQLite itself
calls broken is moved aside, never deleted, and what can be read of it is copied into a new one.
"""

import os
import re
import shlex
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from edge_rag.errors import EdgeRagError, IntegrityError, LibraryError, ModelError
from edge_rag.interfaces import Embedder
from edge_rag.library import generations, lock, schema, store
from edge_rag.library.database import (
    DATABASE_NAME,
    command,
    connect_reader,
    connect_writer,
    snapshot,
    transaction,
    translated,
)
from edge_rag.library.reports import Finding
from edge_rag.library.walk import absolute, printable
from edge_rag.settings import Settings

_MOST_NAMED = 5  # paths in one message
_BATCH = 32  # texts embedded together


def diagnose(
    path: str | Path,
    *,
    deep: bool = False,
    repair: bool = False,
    settings: Settings | None = None,
    embedder: Embedder | None = None,
) -> list[Finding]:
    """Examine the library in a folder; `deep` reads every byte of it. With `repair`, mend it and say what is left.

    What was put right comes first, with severity "mended".
    """
    library = Path(absolute(path))
    if not library.is_dir() or not any((library / name).exists() for name in (DATABASE_NAME, generations.INDEX_FOLDER)):
        raise LibraryError(f"{library}: no library here", mend="make one: " + command(library, "add PATH..."))
    models = _Models(settings or Settings(), embedder)
    if not repair:
        return _examine(library, models, deep)
    with lock.writer_lock(library, "edge-rag doctor --repair"):
        mended = _repair(library, models)
        return [*mended, *_examine(library, models, deep=True)]


def describe_index(path: str | Path) -> str:
    """Say in one line what the library's index holds; "none" if there is none that can be used."""
    library = Path(absolute(path))
    generation = generations.open_generation(library, generations.current_number(library))
    if generation is None:
        return "none"
    with generation.index as index:
        info = index.info()
    way = f"a graph of {info.n_links:,} links" if info.n_links else "no graph for so few"
    return f"{info.n_rows:,} vectors of {info.dim}, {way}, {info.size_bytes:,} bytes"


class _Models:
    """The library's embedder, opened at most once and only when something must be known about it."""

    def __init__(self, settings: Settings, embedder: Embedder | None) -> None:
        self.settings = settings
        self._embedder = embedder
        self.given = embedder is not None

    def open(self, name: str, fingerprint: str) -> Embedder:
        if self._embedder is None:
            from edge_rag.models import open_embedder  # loads onnxruntime

            self._embedder = open_embedder(name, threads=self.settings.threads, fingerprint=fingerprint)
        return self._embedder


# --- examining ---


def _examine(library: Path, models: _Models, deep: bool) -> list[Finding]:
    mend = command(library, "doctor --repair")
    findings = list(_lock_findings(library))
    if not (library / DATABASE_NAME).exists():
        return [*findings, Finding("error", f"{DATABASE_NAME} is missing", mend)]
    try:
        with closing(connect_reader(library)) as db, translated(library), snapshot(db):
            found = schema.check_version(db, library)
            missing = _missing_objects(db)
            if found < schema.VERSION or missing:
                names = ", ".join(missing) or "some"
                return [*findings, Finding("error", f"{DATABASE_NAME}: tables are missing or altered: {names}", mend)]
            structural = list(_structural_findings(db, deep, mend))
            findings += structural
            if not structural:
                for check in (_text_findings, _vector_findings, _fts_findings, _generation_findings):
                    findings += check(library, db, deep, mend)
                findings += _model_findings(library, db, deep, mend, models)
                findings += _source_findings(library, db)
    except EdgeRagError as error:
        findings.append(Finding("error", error.message, error.mend))
    return [*findings, *_orphan_findings(library, mend)]


def _lock_findings(library: Path) -> Iterator[Finding]:
    holder = lock.read_holder(library)
    if holder is not None and holder.pid != os.getpid():
        if lock.is_locked(library):
            yield Finding("info", f"being written by {holder}")
        else:
            yield Finding("info", f"{holder} ended without saying goodbye; the next writing command wipes this")


def _structural_findings(db: sqlite3.Connection, deep: bool, mend: str) -> Iterator[Finding]:
    problems = [row[0] for row in db.execute(f"PRAGMA {'integrity_check' if deep else 'quick_check'}(5)")]
    if problems != ["ok"]:
        yield Finding("error", f"{DATABASE_NAME}: damaged: {problems[0]}".splitlines()[0], mend)
    elif dangling := len(db.execute("PRAGMA foreign_key_check").fetchall()):
        yield Finding("error", f"{DATABASE_NAME}: {dangling} rows belong to nothing", mend)


def _text_findings(library: Path, db: sqlite3.Connection, deep: bool, mend: str) -> Iterator[Finding]:
    bad = _damaged_documents(library, db) if deep else _untiled_documents(db)
    if bad:
        yield Finding("error", f"the text of {len(bad)} documents is damaged: {_named(_paths(db, bad))}", mend)
    homeless = db.execute(
        "SELECT count(*) FROM documents WHERE id NOT IN (SELECT document_id FROM sources)"
    ).fetchone()[0]
    if homeless:
        yield Finding("error", f"{homeless} documents have no file", mend)


def _untiled_documents(db: sqlite3.Connection) -> list[int]:
    """Return the documents whose chunks cannot tile their text, without reading the text."""
    rows = db.execute(
        "SELECT d.id FROM documents d LEFT JOIN chunks c ON c.document_id = d.id GROUP BY d.id"
        " HAVING coalesce(min(c.start), 0) != 0"
        ' OR coalesce(max(c."end"), 0) != d.n_chars OR coalesce(sum(c."end" - c.start), 0) != d.n_chars'
        " OR count(c.id) != coalesce(max(c.ordinal) + 1, 0)"
    )
    return [row[0] for row in rows]


def _damaged_documents(library: Path, db: sqlite3.Connection) -> list[int]:
    """Return the documents of which not every row is what was stored."""
    ids = [row[0] for row in db.execute("SELECT id FROM documents ORDER BY id")]
    return [document_id for document_id in ids if not _document_is_whole(library, db, document_id)]


def _document_is_whole(library: Path, db: sqlite3.Connection, document_id: int) -> bool:
    try:
        row = db.execute(f"SELECT {store.DOCUMENT_COLUMNS} FROM documents d WHERE d.id = ?", (document_id,)).fetchone()
        *_, n_chars = store.check_document(library, row)
        for path, digest in db.execute("SELECT path, digest FROM sources WHERE document_id = ?", (document_id,)):
            store.check_source(library, row[0], path, digest)
        ids = [row[0] for row in db.execute("SELECT id FROM chunks WHERE document_id = ?", (document_id,))]
        store.passages(db, library, dict.fromkeys(ids, 0.0))
        ordinals = db.execute(
            "SELECT count(*), coalesce(max(ordinal) + 1, 0) FROM chunks WHERE document_id = ?", (document_id,)
        ).fetchone()
        return ordinals[0] == ordinals[1] and len(store.document_text(db, library, document_id)) == n_chars
    except (sqlite3.Error, IntegrityError):
        return False


def _vector_findings(library: Path, db: sqlite3.Connection, deep: bool, mend: str) -> Iterator[Finding]:
    bad = _chunks_without_good_vector(db, deep)
    if bad:
        yield Finding("error", f"the vectors of {len(bad)} chunks are missing or damaged", mend)


def _chunks_without_good_vector(db: sqlite3.Connection, deep: bool) -> list[int]:
    dim = schema.get_int(db, "dim")
    size = dim * store.VECTOR_TYPE.itemsize
    if not deep:
        rows = db.execute(
            "SELECT c.id FROM chunks c LEFT JOIN vectors v ON v.chunk_id = c.id"
            " WHERE v.chunk_id IS NULL OR typeof(v.vector) != 'blob' OR length(v.vector) != ?",
            (size,),
        )
        return [row[0] for row in rows]
    rows = db.execute("SELECT c.id, v.vector, v.crc32 FROM chunks c LEFT JOIN vectors v ON v.chunk_id = c.id")
    return [chunk_id for chunk_id, vector, crc32 in rows if not store.vector_is_whole(vector, crc32, dim)]


def _fts_findings(library: Path, db: sqlite3.Connection, deep: bool, mend: str) -> Iterator[Finding]:
    n_chunks, n_indexed = db.execute(
        "SELECT (SELECT count(*) FROM chunks), (SELECT count(*) FROM chunk_fts_docsize)"
    ).fetchone()
    if n_chunks != n_indexed:
        yield Finding("error", f"the full-text index has {n_indexed} of {n_chunks} chunks", mend)
    elif deep and not _fts_is_whole(library):
        yield Finding("error", "the full-text index does not agree with the text", mend)


def _fts_is_whole(library: Path) -> bool:
    """Ask FTS5 to compare its index with the text. It asks for this with an INSERT, though nothing is written."""
    if not (os.access(library, os.W_OK) and os.access(library / DATABASE_NAME, os.W_OK)):
        return True  # cannot be asked; a rebuild would be impossible as well
    with closing(sqlite3.connect(library / DATABASE_NAME, isolation_level=None, timeout=10)) as db:
        try:
            db.execute("INSERT INTO chunk_fts (chunk_fts, rank) VALUES ('integrity-check', 1)")
        except sqlite3.DatabaseError as error:
            return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return True


def _generation_findings(library: Path, db: sqlite3.Connection, deep: bool, mend: str) -> Iterator[Finding]:
    slow = "searches are right but slower"
    number = generations.current_number(library)
    listed = db.execute("SELECT max(number) FROM generations").fetchone()[0]
    if not number:
        if listed:
            yield Finding("warning", f"index/{generations.CURRENT_NAME} is missing or unreadable: {slow}", mend)
        return
    manifest = generations.read_manifest(library, number)
    file = generations.folder(library, number) / generations.VECTORS_NAME
    if manifest is None:
        yield Finding("warning", f"index generation {number} is missing or has no manifest: {slow}", mend)
    elif not generations.is_listed(db, manifest):
        yield Finding("warning", f"index generation {number} belongs to another state of the library: {slow}", mend)
    elif not file.is_file() or file.stat().st_size != manifest.size:
        yield Finding("warning", f"index generation {number} is missing or cut short: {slow}", mend)
    elif (deep and generations.file_sha256(file) != manifest.sha256) or not _opens(library, number):
        yield Finding("warning", f"index generation {number} is damaged: {slow}", mend)


def _opens(library: Path, number: int) -> bool:
    generation = generations.open_generation(library, number)
    if generation is not None:
        generation.index.close()
    return generation is not None


def _model_findings(library: Path, db: sqlite3.Connection, deep: bool, mend: str, models: _Models) -> Iterator[Finding]:
    name, fingerprint = schema.get_meta(db, "embedder_name"), schema.get_meta(db, "embedder_fingerprint")
    if not name or not schema.get_int(db, "chunk_tokens"):
        yield Finding("error", "the library does not say how it was made", mend)
        return
    if deep and fingerprint:
        try:
            embedder = models.open(name, fingerprint)
        except ModelError as error:
            yield Finding(
                "warning",
                f"the embedder {name} cannot be opened, so only words can be searched: {error.message}",
                error.mend,
            )
        else:
            if embedder.fingerprint != fingerprint:
                yield Finding(
                    "error", f"the vectors are of another embedder than {embedder.name} as it is installed here", mend
                )
    from edge_rag.library.ingest import recipe

    tokens = schema.get_int(db, "chunk_tokens")
    old = db.execute("SELECT count(*) FROM documents WHERE recipe != ?", (recipe(tokens),)).fetchone()[0]
    if old:
        again = command(library, "add PATH...")
        yield Finding(
            "info",
            f"{old} documents were read by another version of edge_rag; adding their files reads them again",
            again,
        )


def _source_findings(library: Path, db: sqlite3.Connection) -> Iterator[Finding]:
    gone = [path for (path,) in db.execute("SELECT path FROM sources ORDER BY path") if not os.path.lexists(path)]
    if gone:
        yield Finding("info", f"{len(gone)} files are no longer where they were added from: {_named(gone)}",
                      "to take them out: " + command(library, "sync FOLDER"))  # fmt: skip
    unread = [f"{path} ({reason})" for path, reason in db.execute("SELECT path, reason FROM problems ORDER BY path")]
    if unread:
        yield Finding("info", f"{len(unread)} files could not be read: {_named(unread)}")


def _orphan_findings(library: Path, mend: str) -> Iterator[Finding]:
    orphans = _orphans(library)
    if orphans:
        names = [str(path.relative_to(library)) for path in orphans]
        yield Finding("warning", f"files that belong to nothing: {_named(names)}", mend)
    for kept in sorted(library.glob("damaged-*")):
        yield Finding(
            "info", f"{kept.name} keeps what was moved aside by a repair", f"remove {kept} when you do not need it"
        )


def _orphans(library: Path) -> list[Path]:
    """Return what an interrupted command of ours left in the index folder."""
    keep = {generations.CURRENT_NAME, f"{generations.current_number(library):06d}"}
    index = library / generations.INDEX_FOLDER
    orphans = [path for path in index.iterdir() if path.name not in keep] if index.is_dir() else []
    inside = generations.folder(library, generations.current_number(library))
    files = {generations.MANIFEST_NAME, generations.VECTORS_NAME}
    orphans += [path for path in inside.iterdir() if path.name not in files] if inside.is_dir() else []
    return sorted(orphans)


# --- repairing ---


def _repair(library: Path, models: _Models) -> list[Finding]:
    done: list[Finding] = []
    if _is_broken(library):
        done += _salvage(library, models)
    with closing(connect_writer(library)) as db, translated(library):
        schema.migrate(db, library)
        done += _drop_damaged(library, db)
        if not schema.get_meta(db, "embedder_name"):
            schema.set_meta(db, embedder_name=models.settings.embedder)
        if not schema.get_meta(db, "chunk_tokens").isdecimal():
            schema.set_meta(db, chunk_tokens=models.settings.chunk_tokens)
        done += _embed_again(library, db, models)
        if any(_fts_findings(library, db, True, "")):
            db.execute("INSERT INTO chunk_fts (chunk_fts) VALUES ('rebuild')")
            done.append(Finding("mended", "the full-text index was built anew"))
        stale = any(_generation_findings(library, db, True, ""))
        if stale or any(f.what.startswith("vectors") for f in done):
            generations.publish(db, library, whole=True)
            done.append(Finding("mended", "the vector index was built anew"))
    for orphan in _orphans(library):
        shutil.rmtree(orphan, ignore_errors=True) if orphan.is_dir() else orphan.unlink(missing_ok=True)
        done.append(Finding("mended", f"{orphan.relative_to(library)} belonged to nothing and was removed"))
    return done


def _is_broken(library: Path) -> bool:
    """Tell whether the tables themselves cannot be trusted, so that a new database is needed."""
    if not (library / DATABASE_NAME).exists():
        return True
    try:
        with closing(connect_reader(library)) as db:
            found = schema.check_version(db, library)
            problems = [row[0] for row in db.execute("PRAGMA integrity_check(100)")]
            # integrity_check also asks FTS5, and what FTS5 says can be mended by a rebuild
            broken = [text for text in problems if text != "ok" and "chunk_fts" not in text]
            dangling = db.execute("PRAGMA foreign_key_check").fetchall()
            return found == 0 or bool(broken or _missing_objects(db) or dangling) or _refuses_writers(library)
    except (sqlite3.Error, EdgeRagError) as error:
        if isinstance(error, LibraryError):  # newer, locked, not permitted: no damage
            raise
        return True


def _missing_objects(db: sqlite3.Connection) -> list[str]:
    """Return the names of tables and the like that are not there, or not as we made them."""
    there = {name: _bare(sql) for name, sql in schema.objects(db).items()}
    # FTS5's own tables are made in the words of the SQLite that made them.
    return sorted(
        name
        for name, sql in schema.expected_objects().items()
        if name not in there or (there[name] != _bare(sql) and not name.startswith("chunk_fts_"))
    )


def _bare(sql: str) -> str:
    """Return SQL without comments and white space, which may differ between our versions."""
    return re.sub(r"--[^\n]*|\s", "", sql)


def _refuses_writers(library: Path) -> bool:
    """Tell whether the header names a format that SQLite reads and does not write (fileformat2.html, section 1.3.3)."""
    with (library / DATABASE_NAME).open("rb") as file:
        return file.read(20)[18:19] not in (b"\1", b"\2")


def _drop_damaged(library: Path, db: sqlite3.Connection) -> list[Finding]:
    bad = _damaged_documents(library, db)
    bad += [row[0] for row in db.execute("SELECT id FROM documents WHERE id NOT IN (SELECT document_id FROM sources)")]
    if not bad:
        return []
    paths = _paths(db, bad)
    # The triggers would tell FTS5 to forget words that a damaged text does not have; the rebuild forgets them all.
    with transaction(db):
        for document_id in bad:
            db.execute("DELETE FROM documents WHERE id = ?", (document_id,))
        db.execute("INSERT INTO chunk_fts (chunk_fts) VALUES ('rebuild')")
    return [
        Finding("mended", f"{len(bad)} damaged documents were dropped: {_named(paths)}", _add_again(library, paths))
    ]


def _embed_again(library: Path, db: sqlite3.Connection, models: _Models) -> list[Finding]:
    """Give every chunk that has no good vector of the installed embedder one."""
    from edge_rag.documents import embedding_text

    name, fingerprint = schema.get_meta(db, "embedder_name"), schema.get_meta(db, "embedder_fingerprint")
    everything = [row[0] for row in db.execute("SELECT id FROM chunks ORDER BY id")]
    bad = _chunks_without_good_vector(db, deep=True) if fingerprint else everything
    if not everything:
        return []
    try:
        embedder = models.open(name, fingerprint)
    except ModelError:
        if bad:
            raise
        return []
    if embedder.fingerprint != fingerprint:
        bad = everything
    if not bad:
        return []
    # The fingerprint goes last: cut short, the next repair sees the old one and starts again.
    for start in range(0, len(bad), _BATCH):
        batch = bad[start : start + _BATCH]
        texts = []
        for chunk_id in batch:
            heading, text = db.execute("SELECT heading, text FROM chunks WHERE id = ?", (chunk_id,)).fetchone()
            texts.append(embedding_text(heading, text))
        vectors = embedder.embed(texts)
        with transaction(db):
            for chunk_id, text, vector in zip(batch, texts, vectors, strict=True):
                store.put_vector(db, chunk_id, store.vector_blob(vector))
                key = store.embed_key(text, embedder.fingerprint)
                db.execute("UPDATE chunks SET embed_key = ? WHERE id = ?", (key, chunk_id))
    with transaction(db):
        schema.set_meta(
            db,
            embedder_name=embedder.name if models.given else name,
            embedder_fingerprint=embedder.fingerprint,
            dim=embedder.dim,
        )
    return [Finding("mended", f"vectors of {len(bad)} chunks were made anew")]


def _salvage(library: Path, models: _Models) -> list[Finding]:
    """Move the broken database aside and copy every whole document that can still be read into a new one."""
    aside = library / time.strftime("damaged-%Y%m%d-%H%M%S")
    aside.mkdir()
    for file in sorted(library.glob(DATABASE_NAME + "*")):
        file.replace(aside / file.name)
    old_path = aside / DATABASE_NAME
    paths = _paths_in_bytes(old_path)
    with closing(connect_writer(library)) as db, translated(library):
        schema.migrate(db, library)
        with _opened_for_salvage(old_path) as old:
            n_kept = _copy_readable(library, old, db) if old is not None else 0
            if old is not None:
                paths |= {path for (path,) in _rows(old, "SELECT path FROM sources", ()) if isinstance(path, str)}
        lost = sorted(paths - {row[0] for row in db.execute("SELECT path FROM sources")})
    what = f"{DATABASE_NAME} was broken; {n_kept} documents were saved into a new one, the old one is in {aside.name}"
    return [Finding("mended", what + (f"; lost: {_named(lost)}" if lost else ""), _add_again(library, lost))]


@contextmanager
def _opened_for_salvage(path: Path) -> Iterator[sqlite3.Connection | None]:
    if not path.exists():
        yield None
        return
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.text_factory = lambda data: data.decode(
            "utf-8", "surrogateescape"
        )  # a bad byte must not hide the other columns
        yield db


def _copy_readable(library: Path, old: sqlite3.Connection, new: sqlite3.Connection) -> int:
    for key, value in _rows(old, "SELECT key, value FROM meta WHERE key != 'library_id'", ()):
        if key in ("embedder_name", "embedder_fingerprint", "dim", "chunk_tokens") and isinstance(value, str):
            new.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    for path, reason, at in _rows(old, "SELECT path, reason, at FROM problems", ()):
        _try_insert(new, "INSERT OR IGNORE INTO problems VALUES (?, ?, ?)", (path, reason, at))
    n_kept = 0
    last = 0
    while (last := _next_document(old, last)) > 0:
        with transaction(new):
            new.execute("SAVEPOINT document")
            if _copy_document(library, old, new, last):
                n_kept += 1
            else:
                new.execute("ROLLBACK TO document")
            new.execute("RELEASE document")
    return n_kept


def _next_document(old: sqlite3.Connection, after: int) -> int:
    """Return the next id of a document; where a page cannot be read, feel for the next one that can."""
    for table, column in (("documents", "id"), ("chunks", "document_id"), ("sources", "document_id")):
        rows = _rows(old, f"SELECT min({column}) FROM {table} WHERE {column} > ?", (after,))
        if rows:
            return rows[0][0] if isinstance(rows[0][0], int) else 0
    return 0


def _copy_document(library: Path, old: sqlite3.Connection, new: sqlite3.Connection, document_id: int) -> bool:
    tables = (
        (
            "documents",
            "id",
            "id, content_sha256, media_type, title, metadata, date, n_chars, warnings, recipe, added_at, digest",
        ),
        ("sources", "document_id", "path, document_id, size, mtime_ns, read_ns, root, added_at, digest"),
        ("chunks", "document_id", 'id, document_id, ordinal, start, "end", page, digest, embed_key, heading, text'),
    )
    for table, key, columns in tables:
        for row in _rows(old, f"SELECT {columns} FROM {table} WHERE {key} = ?", (document_id,)):
            marks = ", ".join("?" * len(row))
            if not _try_insert(new, f"INSERT INTO {table} ({columns}) VALUES ({marks})", row):
                return False
    has_source = new.execute("SELECT count(*) FROM sources WHERE document_id = ?", (document_id,)).fetchone()[0]
    if not has_source or not _document_is_whole(library, new, document_id):
        return False
    # a vector that cannot be read is made anew later
    for (chunk_id,) in new.execute("SELECT id FROM chunks WHERE document_id = ?", (document_id,)).fetchall():
        for row in _rows(old, "SELECT chunk_id, vector, crc32 FROM vectors WHERE chunk_id = ?", (chunk_id,)):
            _try_insert(new, "INSERT INTO vectors VALUES (?, ?, ?)", row)
    return True


def _rows(db: sqlite3.Connection, sql: str, parameters: Sequence[object]) -> list[tuple[object, ...]]:
    """Return the rows that can be read: those before the first broken page."""
    rows = []
    try:
        for row in db.execute(sql, parameters):
            rows.append(row)
    except sqlite3.Error:
        pass
    return rows


def _try_insert(db: sqlite3.Connection, sql: str, row: Sequence[object]) -> bool:
    try:
        db.execute(sql, row)
    except (sqlite3.IntegrityError, sqlite3.DataError, UnicodeEncodeError):
        return False
    return True


def _paths_in_bytes(path: Path) -> set[str]:
    """Return what in the bytes of a broken database looks like the path of an existing file."""
    if not path.exists():
        return set()
    pattern = re.compile(rb"(?:[A-Za-z]:\\|/)[^\x00-\x1f]{1,1024}")
    found = set()
    with path.open("rb") as file:
        overlap = b""
        while block := file.read(1 << 20):
            for match in pattern.finditer(overlap + block):
                # The next column's bytes follow without a gap, and look like letters now and then.
                text = match.group().decode("utf-8", "ignore")
                for end in range(len(text), max(len(text) - 40, 1), -1):
                    if os.path.isfile(text[:end]):  # noqa: PTH113 - a Path refuses some of these
                        found.add(text[:end])
                        break
            overlap = block[-2048:]
    return found


# --- wording ---


def _paths(db: sqlite3.Connection, document_ids: Sequence[int]) -> list[str]:
    return [
        path
        for document_id in document_ids
        for (path,) in db.execute("SELECT path FROM sources WHERE document_id = ? ORDER BY path", (document_id,))
    ]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(printable(name) for name in names[:_MOST_NAMED]) + more


def _add_again(library: Path, paths: Sequence[str]) -> str:
    return command(library, "add " + " ".join(shlex.quote(path) for path in paths)) if paths else ""
