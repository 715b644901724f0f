"""Make the library agree with one folder: what is new there comes in, what is gone there goes.

Only files below that folder are touched, and a file goes only when it is certain that it does not exist: not when a
folder cannot be read, not when a disk is not mounted.
"""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_rag.errors import LibraryError
from edge_rag.library import store
from edge_rag.library.database import command, transaction
from edge_rag.library.ingest import Ingest, Tally, look
from edge_rag.library.reports import SyncReport
from edge_rag.library.walk import FileProblem, Found, is_under, walk


def files_in(library: Path, folder: str, known: Sequence[str], problem: Callable[[FileProblem], None]) -> list[Found]:
    """Return the folder's files; refuse a folder that looks unmounted."""
    if not Path(folder).is_dir():
        raise LibraryError(
            f"{folder}: no such folder; nothing was removed",
            mend=command(library, f"remove {folder}") + " if it is gone for good",
        )
    problems: list[FileProblem] = []
    files = list(walk(folder, skip=library, problem=problems.append))
    if known and not files and not problems:
        raise LibraryError(
            f"{folder}: empty, but the library has {len(known)} files of it; nothing was removed: is the disk mounted?",
            mend="mount it, or " + command(library, f"remove {folder}"),
        )
    for found in problems:
        problem(found)
    return files


def vanished(known: Sequence[str], problem: Callable[[FileProblem], None]) -> list[str]:
    """Return those paths at which there certainly is nothing any more."""
    gone = []
    for path in known:
        try:
            Path(path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            gone.append(path)
        except OSError as error:
            problem(FileProblem(path, f"{error.strerror}; kept"))
    return gone


def apply(db: sqlite3.Connection, library: Path, folder: str, ingest: Ingest) -> SyncReport:
    before = {path: source for path, source in store.sources(db).items() if is_under(path, folder)}
    ingest.run(files_in(library, folder, list(before), ingest.report))
    gone = vanished(list(before), ingest.report)
    tally = ingest.tally
    after = store.sources(db)
    renamed = _renamed(gone, {path: before[path].document_id for path in gone},
                       {path: after[path].document_id for path in tally.duplicates})  # fmt: skip
    problems = {p.path for p in tally.problems}
    with transaction(db):
        for path in gone:
            db.execute("DELETE FROM sources WHERE path = ?", (path,))
            store.drop_unused_document(db, before[path].document_id)
        for (path,) in db.execute("SELECT path FROM problems").fetchall():
            if is_under(path, folder) and path not in problems:
                db.execute("DELETE FROM problems WHERE path = ?", (path,))
    return _report(tally, gone, renamed, dry_run=False)


def foresee(db: sqlite3.Connection, library: Path, folder: str, recipe: str, max_bytes: int) -> SyncReport:
    """Say what `apply` would do. Files that need it are read and hashed, nothing is written."""
    before = {path: source for path, source in store.sources(db).items() if is_under(path, folder)}
    tally, new_content, now_at = Tally(), set[tuple[bytes, str]](), dict[str, int]()
    for found in files_in(library, folder, list(before), tally.problems.append):
        seen = look(db, found, before.get(found.path), recipe, max_bytes)
        match seen.kind:
            case "unchanged" | "same content":
                tally.unchanged += 1
            case "skipped":
                tally.skipped += 1
            case "problem":
                tally.problems.append(FileProblem(found.path, seen.reason))
            case _ if found.path in before:
                tally.changed.append(found.path)
            case "known content":
                tally.duplicates.append(found.path)
                now_at[found.path] = seen.document_id
            case "new content":
                content = (seen.content_sha256, seen.media_type)
                (tally.duplicates if content in new_content else tally.added).append(found.path)
                new_content.add(content)
    gone = vanished(list(before), tally.problems.append)
    renamed = _renamed(gone, {path: before[path].document_id for path in gone}, now_at)
    return _report(tally, gone, renamed, dry_run=True)


def _renamed(gone: Sequence[str], was: dict[str, int], now_at: dict[str, int]) -> list[tuple[str, str]]:
    """Pair each file that is gone with one that appeared with its content."""
    appeared: dict[int, list[str]] = {}
    for path, document_id in now_at.items():
        appeared.setdefault(document_id, []).append(path)
    pairs = [(old, appeared[was[old]].pop(0)) for old in gone if appeared.get(was[old])]
    return pairs


def _report(tally: Tally, gone: Sequence[str], renamed: Sequence[tuple[str, str]], *, dry_run: bool) -> SyncReport:
    moved_from, moved_to = {old for old, _ in renamed}, {new for _, new in renamed}
    return SyncReport(
        added=tuple(tally.added),
        changed=tuple(tally.changed),
        renamed=tuple(renamed),
        removed=tuple(path for path in gone if path not in moved_from),
        duplicates=tuple(path for path in tally.duplicates if path not in moved_to),
        unchanged=tally.unchanged,
        skipped=tally.skipped,
        problems=tuple(tally.problems),
        warnings=tuple(tally.warnings),
        n_chunks=tally.n_chunks,
        n_embedded=tally.n_embedded,
        dry_run=dry_run,
    )
