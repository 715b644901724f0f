"""Where an export goes: made beside its place, moved there when it is whole and was found good, gone if it was not."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_rag.errors import ModelError, UsageError


def check_target(target: Path, *, force: bool, mend: str = "give --force to replace it, or another name") -> None:
    """Raise, before anything is computed, what would keep an export from its place."""
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}", mend=f"run: mkdir -p {target.parent}")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", mend=mend)
    if target.is_dir():
        raise UsageError(f"{target} is a folder", mend="give the name of a file")


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """Give a folder beside the target that is gone afterwards, whatever happens; a full disk is one clear line.

    What a killed process left there is removed.
    """
    work = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None):  # None: numpy wrote less than it was given
            raise ModelError(f"{target.parent}: the disk is full", mend="free some space, and export again") from error
        raise ModelError(
            f"{error.filename or target.parent}: {error.strerror or error}", mend="check that the folder can be written"
        ) from error


def report_path(target: Path) -> Path:
    return target.with_name(target.name + ".parity.json")


def refuse_if_failed(report: dict[str, Any], target: Path) -> None:
    """Raise ModelError with what is below its floor."""
    if report["failed"]:
        raise ModelError(
            f"{target} was not written: {'; '.join(report['failed'])}",
            mend="export another --type, or report what differs",
        )


def publish_folder(made: Path, target: Path, report: dict[str, Any]) -> None:
    """Move a whole folder to its place, with its report inside."""
    _write_json(made / "parity.json", report)
    made.replace(target)


def publish(made: Path, target: Path, report: dict[str, Any]) -> None:
    """Move a whole file and its report to their place. The file comes last: where it is, all is."""
    beside = made.with_name("report")
    _write_json(beside, report)
    with made.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(report_path(target))
    made.replace(target)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
