"""The tables of library.sqlite and the numbered steps that lead to them. PRAGMA user_version counts the steps taken.

What a library must be able to do decides two choices: no STRICT tables and no FTS5 secure-delete, because both would
make a library unreadable for the older SQLite of a device that it is copied to. `compact` rebuilds the full-text index
instead.
"""

import sqlite3
import uuid
from pathlib import Path

from edge_rag.errors import LibraryError
from edge_rag.library.database import transaction

FTS_COLUMNS = ("heading", "text")

_STEP_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    content_sha256 BLOB NOT NULL,       -- of the file's bytes
    media_type TEXT NOT NULL,           -- the same bytes read as another type are another document
    title TEXT NOT NULL,
    metadata TEXT NOT NULL,             -- JSON object of texts
    date TEXT,                          -- metadata's date, ISO 8601
    n_chars INTEGER NOT NULL,
    warnings TEXT NOT NULL,             -- JSON array of texts
    recipe TEXT NOT NULL,               -- versions of reader and chunker, and the chunk size
    added_at TEXT NOT NULL,             -- UTC, ISO 8601
    digest BLOB NOT NULL,               -- store.record_digest of what is shown to users
    UNIQUE (content_sha256, media_type)
);

CREATE TABLE sources (
    path TEXT PRIMARY KEY,              -- absolute
    document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    read_ns INTEGER NOT NULL,           -- when it was read: a file changed in the same instant looks unchanged
    root TEXT NOT NULL,                 -- the path that the user gave
    added_at TEXT NOT NULL,
    digest BLOB NOT NULL                -- store.record_digest of the path
);
CREATE INDEX sources_by_document ON sources (document_id);

-- The chunks of a document tile its text, so the text stands here and nowhere else.
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: index generations refer to it
    document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    page INTEGER,
    digest BLOB NOT NULL,               -- store.chunk_digest
    embed_key BLOB NOT NULL,            -- store.embed_key: equal keys, equal vectors
    heading TEXT NOT NULL,
    text TEXT NOT NULL,
    UNIQUE (document_id, ordinal)
);
CREATE INDEX chunks_by_embed_key ON chunks (embed_key);

CREATE TABLE vectors (
    chunk_id INTEGER PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
    vector BLOB NOT NULL,               -- dim float16, little-endian
    crc32 INTEGER NOT NULL
);

-- Vectors of files that are not complete yet, so that a kill does not cost them; empty between commands.
CREATE TABLE spare_vectors (embed_key BLOB PRIMARY KEY, vector BLOB NOT NULL, crc32 INTEGER NOT NULL) WITHOUT ROWID;

CREATE VIRTUAL TABLE chunk_fts USING fts5 (
    heading, text, content = 'chunks', content_rowid = 'id', tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER chunks_to_fts_insert AFTER INSERT ON chunks BEGIN
    INSERT INTO chunk_fts (rowid, heading, text) VALUES (new.id, new.heading, new.text);
END;
CREATE TRIGGER chunks_to_fts_delete AFTER DELETE ON chunks BEGIN
    INSERT INTO chunk_fts (chunk_fts, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text);
END;
CREATE TRIGGER chunks_to_fts_update AFTER UPDATE OF heading, text ON chunks BEGIN
    INSERT INTO chunk_fts (chunk_fts, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text);
    INSERT INTO chunk_fts (rowid, heading, text) VALUES (new.id, new.heading, new.text);
END;

CREATE TABLE generations (              -- a generation that is not listed here belongs to another state
    number INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL,               -- of the vectors file
    max_chunk_id INTEGER NOT NULL,
    count INTEGER NOT NULL
);

CREATE TABLE problems (path TEXT PRIMARY KEY, reason TEXT NOT NULL, at TEXT NOT NULL) WITHOUT ROWID;
"""

MIGRATIONS = (_STEP_1,)
VERSION = len(MIGRATIONS)


def version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def check_version(db: sqlite3.Connection, library: Path) -> int:
    """Return the schema's version; refuse one that a later edge_rag has written."""
    found = version(db)
    if found > VERSION:
        raise LibraryError(
            f"{library}: library format {found}, this edge_rag reads up to {VERSION}",
            mend="pip install --upgrade edge-rag",
        )
    return found


def migrate(db: sqlite3.Connection, library: Path) -> None:
    """Bring the schema up to VERSION, all steps or none."""
    if check_version(db, library) == VERSION:
        return
    with transaction(db):
        # read again: another writer may have been here between the look and the lock
        for step in MIGRATIONS[version(db) :]:
            for statement in statements(step):
                db.execute(statement)
        db.execute("INSERT OR IGNORE INTO meta VALUES ('library_id', ?)", (uuid.uuid4().hex,))
        db.execute(f"PRAGMA user_version = {VERSION}")


def statements(script: str) -> list[str]:
    """Split a script; executescript() would commit before it starts."""
    found, statement = [], ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found


def expected_objects() -> dict[str, str]:
    """Return the name and SQL of everything that a whole library's schema has."""
    db = sqlite3.connect(":memory:")
    try:
        for step in MIGRATIONS:
            db.executescript(step)
        return objects(db)
    finally:
        db.close()


def objects(db: sqlite3.Connection) -> dict[str, str]:
    rows = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    return {str(name): str(sql) for name, sql in rows}


def get_meta(db: sqlite3.Connection, key: str) -> str:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


def get_int(db: sqlite3.Connection, key: str) -> int:
    """Return a number, 0 if it is not there or unreadable."""
    text = get_meta(db, key)
    return int(text) if text.isdecimal() else 0


def set_meta(db: sqlite3.Connection, **values: str | int) -> None:
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, str(value)) for key, value in values.items()])
