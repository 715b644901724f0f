"""The native index: a file of int8 vectors that is mapped and searched in place by reading every row.

Only the file's life is handled here: written beside its place and moved there when complete, mapped, checked, let go.
The layout, the checks and the search are native's (native/FORMAT.md, native/include/edge_index.h).
"""

import mmap
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from edge_rag.errors import EdgeRagError, IntegrityError, UsageError
from edge_rag.index.arrays import checked_allow, checked_k, checked_queries, checked_rows

try:
    from edge_rag import _native
except ImportError as error:
    raise EdgeRagError(
        f"the compiled part of edge_rag can not be loaded ({error})",
        mend="run: pip install edge-rag, or in a clone: pip install -e .",
    ) from error

try:
    _native.simd_select(os.environ.get("EDGE_RAG_SIMD") or None)
except ValueError as error:
    raise UsageError(
        f"EDGE_RAG_SIMD={os.environ['EDGE_RAG_SIMD']}: {error}", mend="unset EDGE_RAG_SIMD, or set it to scalar"
    ) from error

_MOST_THREADS = 4  # a scan reads memory, and a few cores use up its bandwidth
_BYTES_PER_THREAD = 64 << 20  # for less, a thread saves under a millisecond and costs others a core
_Blocks = Iterable[tuple[npt.ArrayLike, npt.ArrayLike]]


@dataclass(frozen=True, slots=True)
class IndexInfo:
    path: Path
    n_rows: int
    dim: int
    size_bytes: int  # of the file
    kernel: str


class ScanIndex:
    """An index file, opened. A `VectorIndex`; any number of threads may search it at once.

    The file is pinned: it may be unlinked or replaced while it is open. It must not be written to or cut short in
    place, which nothing in edge_rag does.
    """

    def __init__(self, path: Path, mapping: mmap.mmap, index: "_native.Index") -> None:
        self.path = path
        self._index: _native.Index | None = index
        self._n_rows, self._dim, ids_offset = _native.shape(index)
        self._size_bytes = len(mapping)
        # A view of the mapping, which stays alive as long as the view: no copy, and safe after close().
        self._ids: npt.NDArray[np.int64] = np.frombuffer(mapping, dtype=np.int64, count=self._n_rows, offset=ids_offset)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Map an index file and check it: the header and what a search trusts always, every byte if `verify`."""
        path = Path(path)
        with path.open("rb") as file:
            try:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:  # an empty file can not be mapped
                raise _integrity_error(path, "not an index file: it is empty") from error
        try:
            return cls(path, mapping, _native.open(mapping, verify))
        except _native.IndexFileError as error:
            raise _integrity_error(path, str(error)) from error

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._ids

    def __len__(self) -> int:
        return self._n_rows

    def search(
        self, queries: npt.NDArray[np.float32], k: int, *, allow: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return ids and scores, each (n_queries, min(k, rows allowed)), best first, ties by smaller id.

        Rows are kept as 8-bit integers: a score is off by at most sum(|query|) * max(|row|) / 254, which never happens;
        for unit vectors of 384 dimensions expect 0.001.
        """
        index = self._index  # held to the end of the search, even if another thread closes
        if index is None:
            raise ValueError(f"{self.path} is closed")
        queries = checked_queries(queries, self.dim)
        n_allowed = len(self)
        if allow is not None:
            allow = checked_allow(allow, len(self))
            n_allowed = int(np.count_nonzero(allow))
        k = min(checked_k(k), n_allowed)
        ids = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        if ids.size:
            threads = _n_threads(len(queries) * self._size_bytes)
            _native.search(index, queries, len(queries), k, allow, threads, ids, scores)
        return ids, scores

    def info(self) -> IndexInfo:
        return IndexInfo(self.path, len(self), self.dim, self._size_bytes, simd_kernel())

    def close(self) -> None:
        """Let go of the file, as soon as searches under way and arrays from `ids` do. May be called twice."""
        self._index = None
        self._ids = np.empty(0, dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_index(path: str | os.PathLike[str], blocks: _Blocks, dim: int) -> None:
    """Write blocks of ids (n,) and vectors (n, dim) as an index file; ids must ascend strictly through all blocks.

    Memory holds one block at a time. The file appears at `path` complete and on disk, or not at all.
    """
    if not 1 <= dim <= _native.MAX_DIM:
        raise ValueError(f"dim must be 1 to {_native.MAX_DIM}, not {dim}")
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            _write_sections(file, blocks, dim, path.parent)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def simd_kernel() -> str:
    """Return the name of the kernel that searches use on this processor."""
    return _native.simd_name()


def _n_threads(scan_bytes: int) -> int:
    """Return how many threads share a scan of so many bytes: 1 for a query over 100,000 rows, which takes 2 ms."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, _MOST_THREADS, scan_bytes // _BYTES_PER_THREAD))


def _write_sections(file: BinaryIO, blocks: _Blocks, dim: int, folder: Path) -> None:
    """Codes go straight to the file; the scales and ids of all blocks wait on disk until the codes are through."""
    file.write(bytes(_native.HEADER_BYTES))
    with tempfile.TemporaryFile(dir=folder) as scales, tempfile.TemporaryFile(dir=folder) as ids:
        checksums = (
            _write_section(file, _quantized(blocks, dim, scales, ids)),
            _write_section(file, _read_back(scales)),
            _write_section(file, _read_back(ids)),
        )
        count = ids.tell() // 8
    file.seek(0)
    file.write(_native.header(dim, count, checksums))


def _quantized(blocks: _Blocks, dim: int, scales: IO[bytes], ids: IO[bytes]) -> Iterator[memoryview]:
    last_id: int | None = None
    row_bytes = -(-dim // 64) * 64
    for block_ids, vectors in blocks:
        id_array, rows = checked_rows(block_ids, vectors, dim, after=last_id)
        if not len(rows):
            continue
        last_id = int(id_array[-1])
        codes = np.empty((len(rows), row_bytes), dtype=np.int8)
        row_scales = np.empty(len(rows), dtype=np.float32)
        _native.quantize(rows, len(rows), dim, codes, row_scales)
        scales.write(row_scales.data)
        ids.write(id_array.data)
        yield codes.data


def _read_back(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    while part := spool.read(1 << 20):
        yield part + bytes(-len(part) % 64)


def _write_section(file: BinaryIO, parts: Iterable[bytes | memoryview]) -> int:
    """Write parts, each a multiple of 64 bytes, padded together to the next section. Return their checksum."""
    state = _native.checksum_state()
    start = file.tell()
    for part in parts:
        file.write(part)
        _native.checksum(state, part)
    padding = bytes((start - file.tell()) % _native.HEADER_BYTES)
    file.write(padding)
    return _native.checksum(state, padding)


def _sync_folder(folder: Path) -> None:
    """Make a rename last; Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _integrity_error(path: Path, text: str) -> IntegrityError:
    return IntegrityError(f"{path}: {text}", mend="rebuild it with: edge-rag doctor --repair")
