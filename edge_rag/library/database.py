"""Connections to library.sqlite: how they are opened, and what SQLite's errors mean to a user.

Never open library.sqlite in another way while a connection is open in this process: closing any file handle on it drops
SQLite's POSIX locks (https://sqlite.org/howtocorrupt.html, section 2.2).
"""

import errno
import os
import shlex
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_rag import settings
from edge_rag.errors import EdgeRagError, IntegrityError, LibraryError, LibraryLocked

DATABASE_NAME = "library.sqlite"
BUSY_SECONDS = 10.0

_PERMISSION = {sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH}


def connect_writer(library: Path) -> sqlite3.Connection:
    """Open (or create) the database for writing. The caller holds the writer's lock."""
    with translated(library):
        db = _connect(str(library / DATABASE_NAME))
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA cache_size = -65536")
        return db


def connect_reader(library: Path) -> sqlite3.Connection:
    """Open an existing database so that nothing can be written, also where the folder or the medium is read-only."""
    path = library / DATABASE_NAME
    with translated(library):
        db = _connect(str(path)) if _is_writable(library) else _connect_without_writing(library)
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA trusted_schema = OFF")  # not for writers: FTS5 in a trigger counts as unsafe
        return db


def identity(library: Path) -> tuple[int, ...]:
    """Return what changes when the open database is no longer the one on disk.

    It was replaced, or somebody else writes it while this reader, without write access, cannot take part in locking.
    """
    path = library / DATABASE_NAME
    try:
        stat = path.stat()
    except OSError:
        return ()
    if _is_writable(library):
        return (stat.st_dev, stat.st_ino)
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, _size(Path(f"{path}-wal")))


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Do everything inside or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself, as it does on a full disk.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """See one state of the database, whatever writers do meanwhile."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


@contextmanager
def translated(library: Path) -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into ours."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # misuse of the interface is a mistake in this code, not in the library
    except sqlite3.Error as error:
        raise _translate(library, error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _disk_full(library) from error
        raise LibraryError(f"{library}: {error}", mend="check the disk and the permissions") from error


def checked(library: Path, row: Sequence[Any], *kinds: type | tuple[type, ...]) -> Sequence[Any]:
    """Return the row if its values have these types: in a damaged file a text can come back as NULL or as a number."""
    for value, kind in zip(row, kinds, strict=True):
        if not isinstance(value, kind):
            raise damaged(library, f"a value has type {type(value).__name__}")
    return row


def damaged(library: Path, what: str) -> IntegrityError:
    mend = "copy the bundle again from where it was made" if library.is_file() else command(library, "doctor --repair")
    return IntegrityError(f"{library}: damaged: {what}", mend=mend)


def command(library: Path, rest: str) -> str:
    """Return the command line that does `rest` on this library."""
    name = library.name if library.parent == settings.libraries_dir() else str(library)
    prefix = "edge-rag" if name == settings.Settings().library else f"edge-rag --library {shlex.quote(name)}"
    return f"{prefix} {rest}"


def _is_writable(library: Path) -> bool:
    return os.access(library / DATABASE_NAME, os.W_OK) and os.access(library, os.W_OK)


def _connect_without_writing(library: Path) -> sqlite3.Connection:
    """Open a database that this process cannot write.

    SQLite then cannot keep the shared memory file that WAL needs. A file that nobody can write may be read without it,
    but not if a WAL with data stands beside it: what was committed last is in there.
    """
    path = library / DATABASE_NAME
    wal_has_data = _size(Path(f"{path}-wal")) > 0
    try:
        db = _connect(path.absolute().as_uri() + ("?mode=ro" if wal_has_data else "?mode=ro&immutable=1"), uri=True)
    except sqlite3.OperationalError as error:
        if not wal_has_data:
            raise
        raise LibraryError(
            f"{library}: read-only, and its last changes are not folded in ({path.name}-wal has data)",
            mend="run once where it can be written: " + command(library, "stats"),
        ) from error
    return db


def _connect(target: str, *, uri: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(target, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=uri)
    try:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA cell_size_check = ON")
        # A power cut may take the last transactions back, and never breaks the file. publish() asks for more.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA cache_size = -16384")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # until now nothing was read
    except BaseException:
        db.close()
        raise
    return db


def _translate(library: Path, error: sqlite3.Error) -> EdgeRagError:
    code = getattr(error, "sqlite_errorcode", None)  # absent where Python itself found the value undecodable
    primary = code & 0xFF if isinstance(code, int) else None
    if primary == sqlite3.SQLITE_FULL:
        return _disk_full(library)
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LibraryLocked(f"{library}: in use by another process", mend="wait until it has finished, then try again")
    if primary in _PERMISSION:
        return LibraryError(f"{library}: cannot be opened or written ({error})", mend="check its permissions")
    if primary == sqlite3.SQLITE_IOERR:
        return LibraryError(
            f"{library}: reading or writing failed ({error})",
            mend="check the disk, then run: " + command(library, "doctor"),
        )
    if primary == sqlite3.SQLITE_NOMEM or primary == sqlite3.SQLITE_TOOBIG:
        return LibraryError(
            f"{library}: not enough memory ({error})", mend="close other programs, or add smaller files"
        )
    if "no such module" in str(error):
        return LibraryError(
            f"this Python's SQLite has no full-text search ({error})", mend="use a Python from python.org"
        )
    return damaged(library, str(error))


def _disk_full(library: Path) -> LibraryError:
    return LibraryError(f"{library}: the disk is full", mend="free some space, then run the same command again")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
