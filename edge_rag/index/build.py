"""Build an index file: blocks of vectors go into native's builder, and what it writes appears at its place when complete."""

import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from edge_rag.index.arrays import METRICS, Metric, checked_allow, checked_metric, checked_number, checked_rows
from edge_rag.index.compiled import native, usable_cores
from edge_rag.index.native import NativeIndex, packed_mask
from edge_rag.interfaces import Progress

Blocks = Iterable[tuple[npt.ArrayLike, npt.ArrayLike]]


def build_index(
    path: str | os.PathLike[str],
    blocks: Blocks,
    dim: int,
    *,
    metric: Metric = "cosine",
    max_links: int | None = None,
    ef_build: int | None = None,
    graph_from: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    base: NativeIndex | None = None,
    keep: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Write blocks of ids (n,) and vectors (n, dim) as an index file; ids must ascend strictly through all blocks.

    `base` is an index whose rows, those that `keep` (n_rows,) names or all, are taken over with their graph; the blocks
    come after them. Larger `max_links` and `ef_build` make a better graph, which takes longer, and a larger file.
    `graph_from`: with fewer rows there is no graph. The file depends on all this and not on `threads`.

    Memory holds one block and what the file will hold. The file appears at `path` complete and on disk, or not at all.
    """
    path = Path(path)
    metric = checked_metric(metric)
    builder = native.builder(
        checked_number(dim, "dim", 1, native.MAX_DIM),
        METRICS.index(metric) + 1,
        0 if max_links is None else checked_number(max_links, "max_links", 4, native.MAX_LINKS),
        0 if ef_build is None else checked_number(ef_build, "ef_build", 1, native.MAX_EF),
        checked_number(seed, "seed", 0, (1 << 64) - 1),
        0 if graph_from is None else checked_number(graph_from, "graph_from", 1, (1 << 32) - 1),
        usable_cores() if threads is None else checked_number(threads, "threads", 1, native.MAX_THREADS),
    )
    last_id = None
    if base is not None:
        last_id = _take(builder, base, keep, dim, metric)
    elif keep is not None:
        raise ValueError("keep is about the rows of base, and there is no base")

    def on_progress(done: int, total: int) -> None:
        if progress:
            progress("index", done, total, "")

    with complete_or_absent(path) as file:
        for block_ids, vectors in blocks:
            ids, rows = checked_rows(block_ids, vectors, dim, metric=metric, after=last_id)
            if len(rows):
                native.builder_add(builder, ids, rows, len(rows))
                last_id = int(ids[-1])
        native.builder_finish(builder, on_progress, file.write)


def _take(
    builder: "native.Builder", base: NativeIndex, keep: npt.NDArray[np.bool_] | None, dim: int, metric: Metric
) -> int | None:
    """Take over the rows of an index; return the last id among them."""
    if (base.dim, base.metric) != (dim, metric):
        raise ValueError(f"base has {base.dim} dimensions and the metric {base.metric}, not {dim} and {metric}")
    index = base.verified()  # damage must not move into a file that calls itself sound
    kept = base.ids
    if keep is not None:
        keep = checked_allow(keep, len(base), "keep")
        kept = kept[keep]
    native.builder_take(builder, index, None if keep is None else packed_mask(keep))
    return int(kept[-1]) if len(kept) else None


@contextmanager
def complete_or_absent(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file beside `path` that takes its place when all went well, and is removed otherwise.

    A process that is killed leaves it behind; the next build here removes it. That nobody is writing it any more shows
    in its lock, which the operating system takes back from the dead.
    """
    for leftover in path.parent.glob(_escaped(path.name) + ".*.tmp"):
        _remove_unless_locked(leftover)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            with suppress(OSError):  # a file system without locks: leftovers stay there
                _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # which does not rename an open file
                temporary.replace(path)
        if sys.platform == "win32":
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename last; Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _remove_unless_locked(leftover: Path) -> None:
    with suppress(OSError):  # somebody is writing it, or it is not ours to remove
        with leftover.open("rb") as file:
            _lock(file)
            if sys.platform != "win32":
                leftover.unlink()
        if sys.platform == "win32":
            leftover.unlink()


if sys.platform == "win32":

    def _lock(file: IO[bytes]) -> None:
        pass  # an open file cannot be removed

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        """Raise OSError if another process has the lock, or if this file system has none."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
