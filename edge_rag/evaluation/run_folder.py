"""The folder of a run, of the evaluation and of training: its config, whole files or none, rows that outlive a kill.

A run is gone on with only under the config that it was begun with. Rows are JSON objects, one a line, appended as they are made:
of a killed process at most the last line is torn, and it is dropped; on a full disk nothing is left of the row that found no
room. What cannot be written is one clear line, and all that is there is whole.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.library.lock import LOCK_NAME, writer_lock

__all__ = ["CONFIG", "Rows", "check_config", "content_key", "file_hashes", "json_text", "make_folder", "read_config",
           "read_json", "read_rows", "unwritable", "write_whole", "writer_lock"]  # fmt: skip

CONFIG = "config.json"

Row = dict[str, Any]


def make_folder(folder: Path, what: str = "a run") -> None:
    """Make the folder of a run; one that is there must hold a run, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not {CONFIG, LOCK_NAME} & {path.name for path in folder.iterdir()} and any(folder.iterdir()):
            raise UsageError(f"{folder} holds something else than {what}", mend="give another folder with --out")
    except OSError as error:
        raise unwritable(folder, error) from error


def read_config(folder: Path) -> Row | None:
    """Read what the folder was begun with; None if nothing was begun."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no settings")
        return config
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EdgeRagError(f"{path} cannot be read: {error}", mend=f"remove {folder}, and run again") from error


def check_config(
    folder: Path, config: Mapping[str, Any], incidental: Collection[str], mend: str = "or remove that one"
) -> None:
    """Check that what the folder holds was asked for in the same way, but for what is `incidental`."""
    begun = read_config(folder)
    if begun is None:
        return
    there, now = _flat(begun, incidental), _flat(config, incidental)
    for key in [*now, *(key for key in there if key not in now)]:
        if there.get(key) != now.get(key):
            raise UsageError(
                f"{folder} holds another run: {key} is {there.get(key)!r} there and {now.get(key)!r} now",
                mend=f"give another folder with --out, {mend}",
            )


def _flat(config: Mapping[str, Any], incidental: Collection[str], prefix: str = "") -> Row:
    """Name settings inside settings by their path, and give each the form that JSON gives it."""
    flat: Row = {}
    for key, value in config.items():
        if key in incidental:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, incidental, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def content_key(*parts: Any) -> str:
    """Return a hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def file_hashes(path: Path) -> dict[str, str]:
    """Return the sha256 of a file, or of each file in a folder, by its name there."""
    files = sorted(inside for inside in path.rglob("*") if inside.is_file()) if path.is_dir() else [path]
    return {file.relative_to(path if path.is_dir() else path.parent).as_posix(): _sha256(file) for file in files}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EdgeRagError(f"{path} cannot be read: {error.strerror}", mend="give a file that you may read") from error


def read_json(path: Path) -> Row | None:
    """Read a JSON object; None if it is not there, or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    except (OSError, ValueError):
        return None


def read_rows(path: Path) -> list[Row]:
    """Read the whole lines of a file of rows, which may be growing; those that are no rows are left out."""
    rows = []
    with suppress(OSError):
        for line in path.read_bytes().split(b"\n")[:-1]:
            with suppress(ValueError):
                row = json.loads(line)
                rows += [row] if isinstance(row, dict) else []
    return rows


def json_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there as a whole, or as it was before, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unwritable(path.parent, error) from error


def unwritable(folder: Path, error: OSError) -> EdgeRagError:
    return EdgeRagError(
        f"{folder} cannot be written: {error.strerror or error}; what is there is whole",
        mend="free space or mend permissions, and run the same command again: it goes on where it stopped",
    )


class Rows:
    """A file of JSON objects, one a line, to which rows are only ever added. A context manager; one process at a time."""

    def __init__(self, path: Path, is_sound: Callable[[Row], object] = bool) -> None:
        """Read what is whole. `is_sound` raises ValueError, KeyError or TypeError for a row that is none of these."""
        self.path = path
        self.rows: list[Row] = []
        try:
            with path.open("a+b", buffering=0) as file:
                self._end = _read(path, file.fileno(), self.rows, is_sound)
                file.truncate(self._end)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(path.parent, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Store a row. When this returns, killing the process does not cost it."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode(
            errors="backslashreplace"
        )  # as JSON writes half a character
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise unwritable(self.path.parent, error) from error
        self._end += len(line)
        self.rows.append(dict(row))

    def close(self) -> None:
        self._file.close()


def _read(path: Path, descriptor: int, rows: list[Row], is_sound: Callable[[Row], object]) -> int:
    """Read the whole lines into `rows`; return where the last of them ends."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        end = 0
        for number, line in enumerate(
            file, start=1
        ):  # a text may hold other line ends, so bytes are split and not text
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                is_sound(row)
                rows.append(dict(row))
            except (ValueError, KeyError, TypeError) as error:
                raise EdgeRagError(
                    f"{path} is damaged: line {number}: {error}",
                    mend=f"remove {path}, and run again: what it held is made anew",
                ) from error
            end += len(line)
        return end
