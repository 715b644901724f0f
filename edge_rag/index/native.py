"""The native index, opened: a file that is mapped and searched in place, by following its graph or by reading every row.

Only the mapping's life is handled here. The layout, the checks and the search are native's (native/FORMAT.md,
native/include/edge_index.h); files are written by `edge_rag.index.build`.
"""

import mmap
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from edge_rag.errors import IntegrityError
from edge_rag.index.arrays import METRICS, Metric, checked_allow, checked_number, checked_queries
from edge_rag.index.compiled import native, simd_kernel, usable_cores

Check = Literal["header", "search", "all"]
Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]

_CHECKS: dict[Check, int] = {"header": 0, "search": 1, "all": 2}
_WAYS = {None: 0, True: 1, False: 2}
_NS_PER_THREAD = 1_000_000  # for less work, starting a thread costs as much as it saves
_SCAN_NS_PER_VALUE = 0.011  # 4.2 ns for a row of 384, one thread
_GRAPH_NS = 80_000


@dataclass(frozen=True, slots=True)
class IndexInfo:
    path: Path
    n_rows: int
    dim: int
    metric: Metric
    size_bytes: int  # of the index, which may be a part of the file
    hot_bytes: int  # of these, what a search reads most of
    n_links: int  # of the graph; 0 if there is none
    max_links: int  # of one row
    ef_build: int
    kernel: str


class NativeIndex:
    """An index file, opened. A `VectorIndex`; any number of threads may search it at once.

    The file is pinned: it may be unlinked or replaced while it is open. It must not be written to or cut short in
    place, which nothing in edge_rag does.
    """

    def __init__(self, path: Path, mapping: mmap.mmap, view: memoryview, index: "native.Index", preload: bool) -> None:
        """Use `NativeIndex.open`."""
        self.path = path
        self._mapping, self._view = mapping, view
        self._rest_is_wanted = preload  # but not before a second query comes: many processes ask one
        self._n_queries = 0
        self._index: native.Index | None = index
        fields = native.info(index)
        self._n_rows, self._size_bytes, self._hot_bytes, ids_offset, self._n_links = fields[:5]
        self._dim, metric, self._max_links, self._ef_build = fields[5:]
        self._metric = METRICS[metric - 1]
        self._cold = len(mapping) - self._size_bytes + self._hot_bytes  # from here on the mapping is rarely read
        _expect_few_reads(mapping, self._cold, few=True)
        # A view of the mapping, which stays alive as long as the view: no copy, and safe after close().
        self._ids: npt.NDArray[np.int64] = np.frombuffer(view, dtype=np.int64, count=self._n_rows, offset=ids_offset)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        offset: int = 0,
        size: int | None = None,
        check: Check | None = None,
        preload: bool = True,
    ) -> Self:
        """Map an index file, or an index that lies in a file at `offset`, a multiple of 64, and is `size` bytes long.

        With `preload`, what a search reads most of is read ahead, in order, and from the second query on the rest.
        Without, pages come in when they are first needed, and memory holds only those.

        `check` is what is proved by checksums: "header"; "search", also all that a search reads, some of it when it is
        first read, so that a search may raise IntegrityError; "all", also the rest, now. Nothing that is not proved
        can make a search crash or hang, but its results may be wrong. By default "search", and without `preload`
        "header", because to prove is to read.
        """
        path = Path(path)
        if offset < 0 or offset % native.ALIGNMENT:
            raise ValueError(f"an index must begin at a multiple of {native.ALIGNMENT} bytes, not at {offset}")
        check = check or ("search" if preload else "header")
        if check not in _CHECKS:
            raise ValueError(f"check must be one of {', '.join(_CHECKS)}, not {check!r}")
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            size = end - offset if size is None else size
            if size <= 0 or offset + size > end:
                raise _integrity_error(path, f"not an index: the file ends at byte {end}")
            inside = offset % mmap.ALLOCATIONGRANULARITY
            mapping = mmap.mmap(file.fileno(), inside + size, access=mmap.ACCESS_READ, offset=offset - inside)
            view = memoryview(mapping)[inside:]
            try:
                if preload:
                    hot_bytes = native.peek(view[: native.HEADER_BYTES])[2]
                    _read_ahead(mapping, inside + min(hot_bytes, size))
                return cls(path, mapping, view, native.open(view, _CHECKS[check]), preload)
            except native.IndexFileError as error:
                raise _integrity_error(path, str(error)) from error

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def metric(self) -> Metric:
        return self._metric

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._ids

    def __len__(self) -> int:
        return self._n_rows

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        allow: npt.NDArray[np.bool_] | None = None,
        ef: int | None = None,
        exact: bool | None = None,
        threads: int | None = None,
    ) -> Found:
        """Return ids and scores, each (n_queries, min(k, rows allowed)), best first, ties by smaller id.

        The score is the cosine, the inner product, or minus the squared distance. `ef` is how many rows are kept in
        sight on the way through the graph: larger finds more and takes longer. `exact`: True reads every row, False
        follows the graph if there is one, None takes what will be quicker. `threads` share the queries, or the rows.
        """
        packed = None
        n_allowed = len(self)
        if allow is not None:
            allow = checked_allow(allow, len(self))
            n_allowed = int(np.count_nonzero(allow))
            packed = packed_mask(allow)
        return self.search_packed(queries, k, packed, n_allowed, ef=ef, exact=exact, threads=threads)

    def search_packed(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        allow: npt.NDArray[np.uint8] | None,
        n_allowed: int,
        *,
        ef: int | None = None,
        exact: bool | None = None,
        threads: int | None = None,
    ) -> Found:
        """As `search`, for a caller that keeps a filter: `allow` is from `packed_mask` and lets `n_allowed` rows through."""
        index = self._alive()  # held to the end of the search, even if another thread closes
        queries = checked_queries(queries, self.dim, self.metric)
        k = min(checked_number(k, "k", 1), n_allowed)
        ef = 0 if ef is None else checked_number(ef, "ef", 1, native.MAX_EF)
        if threads is None:
            threads = self._n_threads(len(queries), exact)
        threads = checked_number(threads, "threads", 1, native.MAX_THREADS)
        ids = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        self._n_queries += len(queries)
        if self._rest_is_wanted and self._n_queries > 1:
            self._rest_is_wanted = False
            _expect_few_reads(self._mapping, self._cold, few=False)
            _read_ahead(self._mapping, len(self._mapping))
        if ids.size:
            try:
                native.search(index, queries, len(queries), k, ef, _WAYS[exact], threads, allow, ids, scores)
            except native.IndexFileError as error:
                raise _integrity_error(self.path, str(error)) from error
        return ids, scores

    def vectors(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return what the file knows of the vectors of some rows (not ids), (n, dim); of length 1 for "cosine"."""
        index = self._alive()
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or (wanted.size and not np.issubdtype(wanted.dtype, np.integer)):
            raise ValueError(f"rows must be (n,) integers, not {wanted.shape} {wanted.dtype}")
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise ValueError(f"rows must be 0 to {len(self) - 1}")
        out = np.empty((len(wanted), self.dim), dtype=np.float32)
        try:
            native.vectors(index, np.ascontiguousarray(wanted, dtype=np.uint32), len(wanted), out)
        except native.IndexFileError as error:
            raise _integrity_error(self.path, str(error)) from error
        return out

    def verify(self) -> None:
        """Read every byte; raise IntegrityError if one is not what was written."""
        self.verified()

    def verified(self) -> "native.Index":
        """Verify, and return what the binding knows this index by."""
        self._alive()
        try:
            return native.open(self._view, _CHECKS["all"])
        except native.IndexFileError as error:
            raise _integrity_error(self.path, str(error)) from error

    def info(self) -> IndexInfo:
        return IndexInfo(
            self.path, len(self), self.dim, self.metric, self._size_bytes, self._hot_bytes, self._n_links,
            self._max_links, self._ef_build, simd_kernel(),
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the file, as soon as searches under way and arrays from `ids` do. May be called twice."""
        self._index = None
        self._ids = np.empty(0, dtype=np.int64)
        self._mapping, self._view = mmap.mmap(-1, 1), memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _alive(self) -> "native.Index":
        index = self._index
        if index is None:
            raise ValueError(f"{self.path} is closed")
        return index

    def _n_threads(self, n_queries: int, exact: bool | None) -> int:
        """Return how many threads pay: one for one query, unless it reads very many rows."""
        scan_ns = len(self) * self.dim * _SCAN_NS_PER_VALUE
        query_ns = scan_ns if exact or not self._n_links else min(scan_ns, _GRAPH_NS)
        wanted = int(n_queries * query_ns) // _NS_PER_THREAD
        return min(usable_cores(), wanted) if wanted > 1 else 1


def packed_mask(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return a bit for each row, as native wants it."""
    return np.packbits(mask, bitorder="little")


def _read_ahead(mapping: mmap.mmap, end: int) -> None:
    """Have the system read a mapping up to `end`, in order, while other things are done."""
    if sys.platform != "win32":
        with suppress(OSError):  # it is advice
            mapping.madvise(mmap.MADV_WILLNEED, 0, end)


def _expect_few_reads(mapping: mmap.mmap, start: int, *, few: bool) -> None:
    """Tell the system whether only a few places after `start` will be read, so that it reads no more than these.

    A first search of an evicted file took 59 ms without this, and 37 ms with it.
    """
    if sys.platform != "win32":
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if start < len(mapping):
            with suppress(OSError):
                mapping.madvise(mmap.MADV_RANDOM if few else mmap.MADV_NORMAL, start, len(mapping) - start)


def _integrity_error(path: Path, text: str) -> IntegrityError:
    return IntegrityError(f"{path}: {text}", mend="rebuild it with: edge-rag doctor --repair")
