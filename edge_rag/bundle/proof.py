"""Whether a part is what was bundled, and where it lies once it had to leave the bundle.

To hash a model before each answer takes as long as to load it. So each part is hashed when it is first used on a machine, and
that it was right is remembered in the cache, for exactly this file: device, inode, size, times of change of content and inode.
Where the cache cannot be written, it is hashed each time.

    <cache>/bundles/<sha256>.ok         "this part, in that file, was found right"
    <cache>/bundles/<sha256>.gguf       a part that only a file of its own can be opened from
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

from edge_rag.bundle.container import broken
from edge_rag.bundle.manifest import Part
from edge_rag.errors import IntegrityError, LibraryError
from edge_rag.settings import cache_dir


def prove(path: Path, view: memoryview, parts: Sequence[Part], state: str) -> None:
    """Raise IntegrityError unless these parts of a bundle, mapped at `view`, are what its manifest says."""
    for part in parts:
        verdict = _folder() / f"{part.sha256}.ok"
        line = f"{state} {part.offset} {part.size}\n"
        if line not in _lines(verdict):
            check(path, view, part)
            _remember(verdict, line)


def check(path: Path, view: memoryview, part: Part) -> None:
    """Hash a part."""
    if hashlib.sha256(view[part.offset : part.offset + part.size]).hexdigest() != part.sha256:
        raise broken(path, f"{part.name} is not what was bundled")


def state_of(status: os.stat_result) -> str:
    """Return what of a file changes whenever its bytes do."""
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def extracted(path: Path, view: memoryview, part: Part, beside: Executor) -> Path:
    """Return a file of its own with a part's bytes, made once for all processes and bundles; LibraryError if it cannot be.

    A new file is proved and can be used at once. That it is right is remembered when the disk has it, which `beside` waits for:
    else a power cut could leave another file with a note that says it is right.
    """
    target = _folder() / f"{part.sha256}{Path(part.name).suffix}"
    with suppress(OSError, IntegrityError):
        status = target.stat()
        if _line(target, part) in _lines(_folder() / f"{part.sha256}.ok"):
            return target
        if status.st_size == part.size:
            with target.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == part.sha256:
                    beside.submit(_settle, target, part)
                    return target
    try:
        _write(target, path, view, part, beside)
    except OSError as error:
        raise LibraryError(
            f"{part.name} of {path} needs {part.size / 1e6:,.1f} MB in {_folder()}: {error.strerror or error}",
            mend="make room there, or set EDGE_RAG_HOME to a folder that can be written",
        ) from error
    beside.submit(_settle, target, part)
    return target


def _write(target: Path, path: Path, view: memoryview, part: Part, beside: Executor) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=part.sha256[:16], suffix=".part", dir=target.parent)
    temporary = Path(name)
    proof = beside.submit(check, path, view, part)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            at = part.offset
            while at < part.offset + part.size:
                at += file.write(view[at : part.offset + part.size])
        proof.result()
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _settle(target: Path, part: Part) -> None:
    """Remember that a copy is right, once the disk has it and it was read back."""
    with suppress(OSError), target.open("r+b") as file:
        os.fsync(file.fileno())
        if hashlib.file_digest(file, "sha256").hexdigest() == part.sha256:
            _remember(_folder() / f"{part.sha256}.ok", _line(target, part))


def _line(target: Path, part: Part) -> str:
    return f"{state_of(target.stat())} 0 {part.size}\n"


def _folder() -> Path:
    return cache_dir() / "bundles"


def _lines(verdict: Path) -> list[str]:
    try:
        return verdict.read_text(encoding="ascii").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError):
        return []


def _remember(verdict: Path, line: str) -> None:
    """Add a line; two processes at once both add theirs, or one line is lost and the part hashed once more."""
    with suppress(OSError):
        verdict.parent.mkdir(parents=True, exist_ok=True)
        with verdict.open("a", encoding="ascii", newline="\n") as file:
            file.write(line)
