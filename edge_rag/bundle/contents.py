"""A library as it goes into a bundle: a copy of its database that says nothing of the machine that it was made on.

Paths become relative, what could not be read is forgotten, words and vectors of removed documents are gone, and the same library
gives the same bytes each time.
"""

import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from edge_rag.errors import LibraryError
from edge_rag.library import generations, schema, store
from edge_rag.library.database import connect_reader, snapshot, transaction, translated
from edge_rag.library.generations import VECTORS_NAME

_HEADER_FIXES = ((24, 1), (40, 1), (92, 1), (96, 3_040_000))  # change counter, schema cookie, version valid for, writer


@dataclass(frozen=True, slots=True)
class Contents:
    database: Path
    index: Path | None  # None: so few chunks that they are searched without one
    n_documents: int
    n_chunks: int


def copy_library(library: Path, folder: Path, embedder_name: str, *, texts: bool = True) -> Contents:
    """Copy a library's database and index into an empty folder. Nothing is written into the library.

    Without `texts`, passages keep their place and their vector, and lose words and headings.
    """
    target = folder / "library.sqlite"
    with translated(library):
        source = connect_reader(library)
        db = sqlite3.connect(target, isolation_level=None)
        try:
            with snapshot(source):
                source.backup(db)
            db.execute("PRAGMA journal_mode = DELETE")  # a database in memory knows no other
            schema.migrate(db, library)
            with transaction(db):
                _anonymise(db, embedder_name)
                if not texts:
                    _drop_texts(db)
            db.execute("INSERT INTO chunk_fts (chunk_fts) VALUES ('rebuild')")  # or it keeps words of removed texts
            index = _index(db, library, folder)
            counts = [
                int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) for table in ("documents", "chunks")
            ]
            db.execute("VACUUM")
        finally:
            db.close()
            source.close()
        _normalise(target)
    return Contents(target, index, *counts)


def _anonymise(db: sqlite3.Connection, embedder_name: str) -> None:
    db.execute("DELETE FROM problems")
    db.execute("DELETE FROM spare_vectors")
    schema.set_meta(db, embedder_name=embedder_name)  # it may have been a folder
    rows = db.execute(
        "SELECT s.rowid, s.path, s.root, d.content_sha256 FROM sources s JOIN documents d ON d.id = s.document_id"
        " ORDER BY s.path"
    ).fetchall()
    shown = relative_paths([(path, root) for _, path, root, _ in rows], str(Path.home()))
    db.execute("UPDATE sources SET path = '/' || rowid")  # so that no new path meets an old one
    for (rowid, _, _, content_sha256), path in zip(rows, shown, strict=True):
        db.execute(
            "UPDATE sources SET path = ?, root = '', read_ns = 0, digest = ? WHERE rowid = ?",
            (path, store.record_digest(content_sha256, path), rowid),
        )


def _drop_texts(db: sqlite3.Connection) -> None:
    rows = db.execute(
        'SELECT c.id, d.content_sha256, c.start, c."end", c.page FROM chunks c JOIN documents d ON d.id = c.document_id'
    ).fetchall()
    blank = [(store.chunk_digest(sha256, start, end, page, "", ""), id_) for id_, sha256, start, end, page in rows]
    db.execute("DROP TRIGGER chunks_to_fts_update")  # the full-text index is built anew afterwards
    db.executemany(
        "UPDATE chunks SET heading = '', text = '', embed_key = zeroblob(16), digest = ? WHERE id = ?", blank
    )
    db.execute(schema.expected_objects()["chunks_to_fts_update"])


def relative_paths(files: Iterable[tuple[str, str]], home: str) -> list[str]:
    """Return for each (path, root that the user gave) the path that a bundle shows: from the root on, with "/".

    Where there are several roots, the name of its last folder comes first. The user's home is a root of its own, called
    "home": its name is nobody's business.
    """
    files = [(path, _narrowed(path, root, home)) for path, root in files]
    roots = sorted({root for _, root in files})
    labels = dict.fromkeys(roots, "") if len(roots) == 1 else _labels(roots, home)
    shown = []
    for path, root in files:
        inside = (
            path[len(root) :].lstrip("/\\").replace("\\", "/") if _is_windows(path) else path[len(root) :].lstrip("/")
        )
        shown.append(f"{labels[root]}/{inside}" if labels[root] else inside)
    return shown


def _narrowed(path: str, root: str, home: str) -> str:
    """Return the folder that a path is shown from: that of a file which was named itself, and none above the home."""
    if path == root or not _is_under(path, root):
        root = os.path.dirname(path)  # noqa: PTH120 - a path of any system
    if _is_under(path, home) and _is_under(home, root):
        root = home
    return root


def _labels(roots: list[str], home: str) -> dict[str, str]:
    names = {}
    for root in roots:
        pure = PureWindowsPath(root) if _is_windows(root) else PurePosixPath(root)
        is_home = root == home or pure.parent.name.lower() in ("home", "users")
        names[root] = "home" if is_home else pure.name or "root"
    labels: dict[str, str] = {}
    for root in roots:
        n, label = 1, names[root]
        while label in labels.values():
            n += 1
            label = f"{names[root]}-{n}"
        labels[root] = label
    return labels


def _is_under(path: str, folder: str) -> bool:
    """Tell so of paths of any system: a library may have come from another one."""
    return path == folder or path.startswith((folder.rstrip("/") + "/", folder.rstrip("\\") + "\\"))


def _is_windows(path: str) -> bool:
    return (len(path) > 2 and path[1] == ":") or path.startswith("\\\\")


def _index(db: sqlite3.Connection, library: Path, folder: Path) -> Path | None:
    """Return a file with the library's current index; one without removed rows is built anew if it has any."""
    alive = {row[0] for row in db.execute("SELECT chunk_id FROM vectors")}
    generation = generations.open_generation(library, generations.current_number(library))
    if generation is None and len(alive) <= generations.LARGEST_TAIL:
        db.execute("DELETE FROM generations")
        return None
    if generation is not None:
        number = generation.manifest.number
        with generation.index as index:
            if generations.is_listed(db, generation.manifest) and alive.issuperset(index.ids.tolist()):
                index.verify()
                db.execute("DELETE FROM generations WHERE number != ?", (number,))
                return generations.folder(library, number) / VECTORS_NAME
    generations.publish(db, folder, whole=True)
    number = generations.current_number(folder)
    return generations.folder(folder, number) / VECTORS_NAME if number else None


def _normalise(database: Path) -> None:
    """Write constants where SQLite counts its changes and names its version (https://sqlite.org/fileformat.html, 1.3)."""
    with database.open("r+b") as file:
        for offset, value in _HEADER_FIXES:
            file.seek(offset)
            file.write(value.to_bytes(4))


def require_contents(library: Path, contents: Contents) -> None:
    if not contents.n_chunks:
        raise LibraryError(f"{library}: there is nothing in it", mend="add something: edge-rag add PATH...")
