"""Find and read the files that the user means by a path, without being led astray by links, hidden files or changes
under way."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A file or folder that could not be read. `path` is printable, also where the name is not UTF-8."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    path: str  # absolute, links not resolved
    root: str  # the path that the user gave
    size: int
    mtime_ns: int

    @property
    def explicit(self) -> bool:
        """Tell whether the user named this very file."""
        return self.path == self.root


class ChangedWhileReading(Exception):
    pass


def absolute(path: str | Path) -> str:
    """Return the path from the root without resolving links: what the user sees is what is stored."""
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100


def printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def walk(path: str, *, skip: Path, problem: Callable[[FileProblem], None]) -> Iterator[Found]:
    """Yield the files at `path`, a file or a folder, sorted; report what cannot be read.

    Hidden names, special files and the folder `skip` are passed over. Links are followed; a folder is entered once,
    under its real name where it has one below `path`.
    """
    root = absolute(path)
    try:
        status = Path(root).stat()
    except (OSError, ValueError) as error:
        problem(FileProblem(printable(root), _reason(error)))
        return
    if stat.S_ISREG(status.st_mode):
        yield from _found(root, root, status, problem)
        return
    if not stat.S_ISDIR(status.st_mode):
        problem(FileProblem(printable(root), "neither a file nor a folder"))
        return
    entered = {_identity(skip.stat())} if skip.exists() else set()
    folders, linked_folders = [root], list[str]()
    while folders or linked_folders:
        folder = folders.pop() if folders else linked_folders.pop(0)
        try:
            identity = _identity(Path(folder).stat())
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(folder) as entries:
                names = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            problem(FileProblem(printable(folder), _reason(error)))
            continue
        subfolders = list[str]()
        for entry in names:
            if entry.name.startswith("."):
                continue
            try:
                status = entry.stat()
                is_link = entry.is_symlink()
            except OSError as error:
                problem(FileProblem(printable(entry.path), _reason(error)))
                continue
            if stat.S_ISREG(status.st_mode):
                yield from _found(entry.path, root, status, problem)
            elif stat.S_ISDIR(status.st_mode):
                (linked_folders if is_link else subfolders).append(entry.path)
        folders.extend(reversed(subfolders))


def read_bytes(found: Found, limit: int) -> tuple[bytes, Found]:
    """Return the file's bytes and its state as they were read; raise ChangedWhileReading if it does not keep still."""
    for _ in range(2):
        with Path(found.path).open("rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise OSError("no longer a file")
            data = file.read(limit + 1)
            after = os.fstat(file.fileno())
        now = Path(found.path).stat()  # a file replaced by rename keeps its old content for who has it open
        same = all(_state(status) == _state(before) for status in (after, now))
        if same and (len(data) == before.st_size or len(data) > limit):
            return data, Found(found.path, found.root, before.st_size, before.st_mtime_ns)
    raise ChangedWhileReading


def is_under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _found(path: str, root: str, status: os.stat_result, problem: Callable[[FileProblem], None]) -> Iterator[Found]:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        problem(FileProblem(printable(path), "its name is not valid UTF-8; rename it"))
        return
    yield Found(path, root, status.st_size, status.st_mtime_ns)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist, or is a link to nothing"
    return (isinstance(error, OSError) and error.strerror) or str(error)
