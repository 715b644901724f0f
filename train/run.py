"""The folder of a training run: stages that are finished or not there, rows that outlive a kill, metrics, one writer.

RUN/config.json       what was asked for; written once something has been made, and a run goes on only under the same one
RUN/STAGE/            outputs of a finished stage, with stage.json: what they were made from, their hashes, the time it took
RUN/STAGE.part/       those of one that was begun. Begun again from the same inputs, it finds what it has left there
RUN/rows/NAME.jsonl   rows that are dear, each with the key of what made it
RUN/metrics.jsonl     one JSON object for each step that was logged: {"stage", "step", and figures by their names}
RUN/sections/         what a method shows on the page
RUN/page.html         all this to look at, written again while the run goes on

    with TrainingRun.open(folder, config, command="train supervised") as run:
        with run.stage("examples", {"sets": names, "noise": noise}) as stage:
            if not stage.is_complete:
                (stage.folder / "examples.jsonl").write_text(...)

Of the processes of `accelerate launch` the first one writes, and the others wait until a stage is there.
"""

import errno
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from edge_rag.train.page import METRICS, PAGE, SECTIONS, STAGE, Section, write_page

from edge_rag.errors import EdgeRagError
from edge_rag.evaluation.run_folder import (
    CONFIG,
    Rows,
    check_config,
    content_key,
    file_hashes,
    json_text,
    make_folder,
    read_json,
    unwritable,
    write_whole,
    writer_lock,
)

# What a run may have been begun with and be gone on without: none of it changes what is learnt.
INCIDENTAL = {"started", "command", "machine", "threads"}
PACKAGES = ("edge-rag", "torch", "transformers", "peft", "trl", "llama-cpp-python")  # whose versions do
ROWS = "rows"
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")  # the number of a process, as torchrun and mpirun give it
PAGE_S = 60.0  # between two pages while metrics come in
WAIT_S = 0.2  # between looks whether the first process has finished a stage

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,60}(?<!\.part)(?<!\.old)")


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a run. What is not complete is to be made, into `folder`, which becomes the stage's when the block ends well."""

    name: str
    folder: Path
    is_complete: bool
    key: str = ""  # of the inputs
    outputs: Mapping[str, str] = field(default_factory=dict)  # sha256 by the file's name; of a complete stage


class TrainingRun:
    """A run, held by one process (see `open`)."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Use `TrainingRun.open`."""
        self.folder = folder
        self.config = config
        self.is_main = next((int(os.environ[name]) for name in RANKS if name in os.environ), 0) == 0
        self._parent = os.getppid()
        self._page_due = 0.0
        self._metrics: Rows | None = None

    @classmethod
    @contextmanager
    def open(cls, folder: Path, config: Mapping[str, Any], *, command: str, force: bool = False) -> Iterator[Self]:
        """Begin a run, or go on with the one that the folder holds; refuse one that was begun with another config.

        `config` is what the outcome depends on, as JSON can hold it; machine, versions and time are added. With `force`
        a changed config is taken: stages whose inputs are the same stay, the others are made again.
        """
        run = cls(folder, dict(config) | _circumstances(command))
        if run.is_main:
            make_folder(folder)
        with writer_lock(folder, command) if run.is_main else nullcontext():
            if not force:
                check_config(folder, run.config, INCIDENTAL, mend="or go on there with --force")
            elif run.is_main and (folder / CONFIG).exists():
                write_whole(folder / CONFIG, json_text(run.config))
            try:
                yield run
            except Exception as error:
                if _is_full(error):
                    raise unwritable(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
                raise
            finally:
                run._close()

    @contextmanager
    def stage(self, name: str, inputs: Mapping[str, Any], *, together: bool = False) -> Iterator[Stage]:
        """Give the place of a stage's outputs. It is complete if it was made from the same inputs.

        Inputs are what JSON can hold, dataclasses, paths (which stand for the bytes there), and stages (for their outputs).
        All processes work on a stage that is made `together`; the last thing that they do in it must be to wait for each other.
        """
        if not _NAME.fullmatch(name) or name in (SECTIONS, ROWS):
            raise ValueError(f"{name!r} is no name for a stage")
        key = content_key(name, _plain(inputs))
        if not self.is_main:
            yield self._wait(name, key, together=together)
            self._wait(name, key)
            return
        found = self._complete(name, key)
        if found is not None:
            yield found
            return
        part = self._begin(name, key, inputs)
        started = time.time()
        try:
            yield Stage(name, part, is_complete=False, key=key)
            self._finish(name, part, started)
        except BaseException:
            with suppress(EdgeRagError, OSError):
                self._note(part, seconds=_seconds(part) + time.time() - started)
            raise

    @contextmanager
    def rows(self, name: str) -> "Iterator[KeyedRows]":
        """Open a store of rows that are dear: what was made in an earlier session, or another stage, is found by its key."""
        if not self.is_main:
            raise ValueError("only the first process stores rows")
        folder = self.folder / ROWS
        folder.mkdir(exist_ok=True)
        with KeyedRows(folder / f"{name}.jsonl", self) as rows:
            yield rows

    def log(self, stage: str, step: int, **figures: float) -> None:
        """Store figures of a step. A figure that is no number (a loss gone astray) is stored as null."""
        if not self.is_main:
            return
        numbers = {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}
        if self._metrics is None:
            self.keep_config()
            self._metrics = Rows(self.folder / METRICS)
        self._metrics.add({"stage": stage, "step": step, **numbers})
        if time.monotonic() >= self._page_due:
            self.write_page()

    def forget(self, stage: str, *, after: int = -1) -> None:
        """Take the metrics of a stage after this step back: it goes on from an earlier checkpoint, or anew."""
        path = self.folder / METRICS
        if not self.is_main or not path.is_file():
            return
        self._close_metrics()
        with Rows(path) as rows:
            kept = [row for row in rows if row.get("stage") != stage or row.get("step", 0) <= after]
            is_changed = len(kept) < len(rows)
        if is_changed:
            write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))

    def show(self, name: str, section: Section) -> None:
        """Put a section of the method's own on the page, in place of one of the same name."""
        if self.is_main:
            (self.folder / SECTIONS).mkdir(exist_ok=True)
            write_whole(self.folder / SECTIONS / f"{name}.json", json_text(asdict(section)))

    def write_page(self) -> None:
        if self.is_main:
            write_page(self.folder, self.folder / PAGE)
            self._page_due = time.monotonic() + PAGE_S

    def _close(self) -> None:
        self._close_metrics()
        if (self.folder / CONFIG).is_file():
            with suppress(EdgeRagError):
                self.write_page()

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def _complete(self, name: str, key: str) -> Stage | None:
        """Return the finished stage, if it was made from these inputs. A kill between two renames is mended."""
        place, part, old = self._places(name)
        begun = _read(part)
        if self.is_main and begun and begun.get("finished") and begun.get("key") == key:
            self._put(place, part, old)
        found = _read(place)
        if not (found and found.get("finished") and found.get("key") == key):
            return None
        if not all((place / name).is_file() for name in found["outputs"]):
            return None  # somebody has removed one
        if self.is_main:
            shutil.rmtree(old, ignore_errors=True)
        return Stage(name, place, is_complete=True, key=key, outputs=found["outputs"])

    def _begin(self, name: str, key: str, inputs: Mapping[str, Any]) -> Path:
        _, part, _ = self._places(name)
        begun = _read(part)
        if not begun or begun.get("key") != key:
            shutil.rmtree(part, ignore_errors=True)
            self.forget(name)
            try:
                part.mkdir()
            except OSError as error:
                raise unwritable(self.folder, error) from error
            self._note(
                part, name=name, key=key, inputs=_plain(inputs), started=time.time(), seconds=0.0, finished=False
            )
        return part

    def _finish(self, name: str, part: Path, started: float) -> None:
        for path in part.rglob("*"):
            if path.is_file():
                _sync(path)
        outputs = {path: digest for path, digest in file_hashes(part).items() if path != STAGE}
        self._note(part, seconds=_seconds(part) + time.time() - started, outputs=outputs, finished=True)
        self.keep_config()
        place, part, old = self._places(name)
        self._put(place, part, old)
        self.write_page()

    def _put(self, place: Path, part: Path, old: Path) -> None:
        try:
            shutil.rmtree(old, ignore_errors=True)
            if place.exists():
                place.replace(old)
            part.replace(place)
            _sync(self.folder)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def _note(self, part: Path, **values: Any) -> None:
        write_whole(part / STAGE, json_text((_read(part) or {}) | values))

    def keep_config(self) -> None:
        """Write the config, now that the folder holds something that was made under it."""
        if not (self.folder / CONFIG).is_file():
            write_whole(self.folder / CONFIG, json_text(self.config))

    def _wait(self, name: str, key: str, *, together: bool = False) -> Stage:
        """Wait until the first process has finished a stage, or begun one on which all work."""
        while True:
            found = self._complete(name, key)
            if found is not None:
                return found
            _, part, _ = self._places(name)
            begun = _read(part) if together else None
            if begun and begun.get("key") == key:
                return Stage(name, part, is_complete=False, key=key)
            if os.getppid() != self._parent:  # the launcher is gone, and with it the process that is waited for
                raise EdgeRagError(
                    f"{self.folder}: the process that makes {name} has ended", mend="start the run again"
                )
            time.sleep(WAIT_S)

    def _places(self, name: str) -> tuple[Path, Path, Path]:
        return self.folder / name, self.folder / f"{name}.part", self.folder / f"{name}.old"


class KeyedRows:
    """Rows by the key of what made them: `content_key` of the question, the prompt, the model's hash ..."""

    def __init__(self, path: Path, run: TrainingRun) -> None:
        self._run = run
        self._rows = Rows(path, lambda row: (row["key"], row["value"]))
        self._values = {row["key"]: row["value"] for row in self._rows}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, key: str, value: Any) -> None:
        self._run.keep_config()
        self._rows.add({"key": key, "value": value})
        self._values[key] = value


def _circumstances(command: str) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "versions": versions,
        "machine": platform.platform(),
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "command": command,
    }


def _plain(value: Any) -> Any:
    """Return inputs as `content_key` takes them."""
    if isinstance(value, Stage):
        return dict(value.outputs)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return file_hashes(value) if isinstance(value, Path) else value


def _read(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / STAGE)


def _seconds(part: Path) -> float:
    return float((_read(part) or {}).get("seconds", 0.0))


def _is_full(error: Exception) -> bool:
    """Tell whether the disk was full; libraries that write checkpoints say so in words of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return not isinstance(error, EdgeRagError) and any(
        words in str(error) for words in ("No space left", "os error 28", "file write failed")
    )


def _sync(path: Path) -> None:
    """Make sure that a file, or what a folder lists, outlives a loss of power. Windows has no such call for a folder."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
