"""One writer at a time: a lock that dies with its holder and tells others who that is.

The lock is the operating system's (flock, or msvcrt.locking on Windows), so that kill -9 frees it. The text in the file
only names the holder; it is never what decides. The file stays: removing it would let two processes lock two files of
one name.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_rag.errors import LibraryError, LibraryLocked

LOCK_NAME = "writer.lock"


@dataclass(frozen=True, slots=True)
class Holder:
    pid: int
    host: str
    command: str
    since: str  # local time, "2026-11-21 09:41"

    def __str__(self) -> str:
        today = time.strftime("%Y-%m-%d ")
        return f"process {self.pid} ({self.command}) on {self.host} since {self.since.removeprefix(today)}"


@contextmanager
def writer_lock(library: Path, command: str) -> Iterator[None]:
    """Hold the library's lock; raise LibraryLocked, naming the holder, if another process or thread has it."""
    path = library / LOCK_NAME
    try:
        file = path.open("a+b")
    except OSError as error:
        raise LibraryError(
            f"{library}: cannot be written ({error.strerror})",
            mend="check its permissions and that the disk is not read-only",
        ) from error
    with file:
        if not _try_lock(file):
            holder = read_holder(library)
            raise LibraryLocked(
                f"{library}: being written by {holder or 'another process'}",
                mend="wait until it has finished, then try again",
            )
        try:
            _write_text(file, json.dumps(_holder_now(command)))
            yield
        finally:
            _write_text(file, "")
            _unlock(file)


def read_holder(library: Path) -> Holder | None:
    """Return who wrote the lock file last and has not wiped it: the holder, or somebody who was killed."""
    try:
        entry = json.loads((library / LOCK_NAME).read_text(encoding="utf-8"))
        return Holder(int(entry["pid"]), str(entry["host"]), str(entry["command"]), str(entry["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_locked(library: Path) -> bool:
    """Tell whether somebody is writing now."""
    try:
        with (library / LOCK_NAME).open("r+b") as file:
            if _try_lock(file):
                _unlock(file)
                return False
            return True
    except OSError:
        return False


def _holder_now(command: str) -> dict[str, object]:
    since = time.strftime("%Y-%m-%d %H:%M")
    return {"pid": os.getpid(), "host": platform.node(), "command": command, "since": since}


def _write_text(file: IO[bytes], text: str) -> None:
    try:
        file.truncate(0)
        file.write(text.encode())
        file.flush()
    except OSError:
        pass  # on a full disk the lock holds just as well without a name in it


if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 30  # far behind the text: a locked byte cannot be read by others, and they must read the text

    def _try_lock(file: IO[bytes]) -> bool:
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise LibraryError(
                f"{file.name}: cannot be locked ({error.strerror})", mend="put the library on a local disk"
            ) from error
        return True

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
