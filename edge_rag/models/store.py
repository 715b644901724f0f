"""Models on disk: one folder for each under settings.models_dir(), with a manifest that says what its file must be.

    <models>/smollm2-135m-instruct/manifest.json
    <models>/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q8_0.gguf

A pulled file is hashed when it arrives. When it is used, its size and time of change must be those of the manifest;
if the time differs (a copied folder) it is hashed once more, so that damage is found without reading a gigabyte
before every answer.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Progress
from edge_rag.models.catalog import Entry
from edge_rag.settings import models_dir

MANIFEST = "manifest.json"
PACKAGED = Path(__file__).parent / "data"  # what comes with edge_rag


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    role: str
    source: str
    licence: str
    file: str
    sha256: str  # of the file that lies here
    size_bytes: int
    mtime_ns: int
    source_sha256: str  # of the file that was fetched; differs after a conversion
    adapter_sha256: str = ""  # of the adapter that was merged into it


def model_folder(name: str) -> Path:
    """Return where a model of this name lies or would lie; the name must be fit for any file system."""
    if not name or name.startswith(".") or name.endswith((".", " ")) or any(c in name for c in '/\\<>:"|?*\0'):
        raise UsageError(f"{name!r} is no name for a model", mend="use letters, digits, dots and hyphens")
    return models_dir() / name


def installed() -> Iterator[Manifest]:
    """Yield the manifests of all models that are here, in the order of their names."""
    root = models_dir()
    for path in sorted(root.glob(f"*/{MANIFEST}")) if root.is_dir() else ():
        yield _read(path)


def read_manifest(name: str) -> Manifest | None:
    path = model_folder(name) / MANIFEST
    return _read(path) if path.is_file() else None


def installed_file(name: str) -> Path:
    """Return the model's file after a quick check that it is the one that was pulled."""
    manifest = read_manifest(name)
    if manifest is None:
        raise ModelError(f"the model {name} is not on this machine", mend=f"run: edge-rag models pull {name}")
    path = model_folder(name) / manifest.file
    try:
        status = path.stat()
    except OSError as error:
        raise _damaged(path, error.strerror or "cannot be read", name) from error
    if status.st_size != manifest.size_bytes:
        raise _damaged(path, f"{status.st_size} bytes instead of {manifest.size_bytes}", name)
    if status.st_mtime_ns != manifest.mtime_ns:
        verify(name)
        try:
            write_manifest(replace(manifest, mtime_ns=status.st_mtime_ns))
        except OSError:
            pass  # a read-only medium: it is hashed again next time
    return path


def packaged_adapter(entry: Entry) -> Path | None:
    """Return the adapter that comes with edge_rag for this model, proved; None if the model needs none."""
    if entry.adapter is None:
        return None
    path = PACKAGED / entry.adapter.file
    try:
        found = sha256_file(path)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}", mend="install edge_rag again") from error
    if found != entry.adapter.sha256:
        raise ModelError(f"{path}: it is not the adapter of {entry.name}", mend="install edge_rag again")
    return path


def verify(name: str, *, progress: Progress | None = None) -> Manifest:
    """Hash the whole file; ModelError if it is not what was pulled."""
    manifest = read_manifest(name)
    if manifest is None:
        raise ModelError(f"the model {name} is not on this machine", mend=f"run: edge-rag models pull {name}")
    path = model_folder(name) / manifest.file
    try:
        found = sha256_file(path, progress=progress)
    except OSError as error:
        raise _damaged(path, error.strerror or "cannot be read", name) from error
    if found != manifest.sha256:
        raise _damaged(path, "its sha256 is not the one that was pulled", name)
    return manifest


def write_manifest(manifest: Manifest) -> None:
    path = model_folder(manifest.name) / MANIFEST
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def sha256_file(path: Path, *, progress: Progress | None = None) -> str:
    """Hash a file in bounded memory."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress("verify", done, total, path.name)
    return digest.hexdigest()


@contextmanager
def lock(path: Path, report: Progress, why: str) -> Iterator[None]:
    """Hold a lock file; who comes second waits and reports why. A dead process holds nothing."""
    with path.open("a+b") as file:
        waited = False
        while not _try_lock(file):
            if not waited:
                report("wait", 0, 0, why)
                waited = True
            time.sleep(0.2)
        yield  # closing the file lets go of the lock


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read(path: Path) -> Manifest:
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        kinds = (str, str, str, str, str, str, int, int, str, str)
        values = tuple(asdict(manifest).values())
        if not all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)):
            raise ValueError("a value of the wrong type")
        if Path(manifest.file).name != manifest.file:
            raise ValueError("the file lies outside its folder")
    except (OSError, ValueError, TypeError) as error:
        name = path.parent.name
        raise ModelError(f"{path} is damaged: {error}", mend=f"run: edge-rag models pull {name} --force") from error
    return manifest


def _damaged(path: Path, what: str, name: str) -> ModelError:
    return ModelError(f"{path} is damaged: {what}", mend=f"run: edge-rag models pull {name} --force")
