"""hnswlib behind the same protocol: the alternative, and the peer that the native index is measured against.

It keeps float32 vectors in memory. Its own file has no checksum and trusts what it reads, so a second file beside it
says what the first one holds.
"""

import errno
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edge_rag.errors import IntegrityError, MissingExtraError
from edge_rag.index.arrays import (
    Metric,
    checked_allow,
    checked_metric,
    checked_number,
    checked_queries,
    checked_rows,
)
from edge_rag.index.build import Blocks, complete_or_absent
from edge_rag.index.compiled import usable_cores
from edge_rag.index.flat import FlatIndex, best_of
from edge_rag.index.native import Found
from edge_rag.interfaces import Progress

_SPACES: dict[Metric, str] = {"cosine": "cosine", "inner_product": "ip", "l2": "l2"}
_LEAST_EF = 64
_FEW = 2000  # allowed rows that are quicker scored one by one
_FEW_SHARE = 0.05  # with fewer allowed, the graph's neighbours are nearly all forbidden


class HnswlibIndex:
    """A `VectorIndex` that hnswlib holds in memory. Labels are row numbers, so that any int64 can be an id."""

    def __init__(self, graph: Any, ids: npt.NDArray[np.int64], dim: int, metric: Metric) -> None:
        """Use `HnswlibIndex.build` or `HnswlibIndex.open`."""
        self._graph: Any = graph
        self._ids, self._dim, self._metric = ids, dim, metric

    @classmethod
    def build(
        cls,
        blocks: Blocks,
        dim: int,
        *,
        metric: Metric = "cosine",
        max_links: int = 16,
        ef_build: int = 200,
        seed: int = 100,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Index blocks of ids (n,) and vectors (n, dim); ids must ascend strictly through all blocks."""
        graph = _hnswlib().Index(space=_SPACES[checked_metric(metric)], dim=checked_number(dim, "dim", 1))
        graph.init_index(max_elements=1, M=max_links, ef_construction=ef_build, random_seed=seed)
        all_ids: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        n_rows = 0
        for block_ids, vectors in blocks:
            after = int(all_ids[-1][-1]) if n_rows else None
            ids, rows = checked_rows(block_ids, vectors, dim, metric=metric, after=after)
            if not len(ids):
                continue
            if n_rows + len(ids) > graph.max_elements:
                graph.resize_index(max(n_rows + len(ids), 2 * n_rows))
            graph.add_items(rows, np.arange(n_rows, n_rows + len(ids)), num_threads=threads or usable_cores())
            all_ids.append(ids)
            n_rows += len(ids)
            if progress:
                progress("index", n_rows, 0, "")
        return cls(graph, np.concatenate(all_ids), dim, metric)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write hnswlib's file at `path`, and what it holds at `path`.rows."""
        path = Path(path)
        with complete_or_absent(path) as file:
            graph = self._alive()
            graph.save_index(file.name)
            if Path(file.name).stat().st_size != graph.index_file_size():  # hnswlib does not look
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            digest = _sha256(Path(file.name))
        head = json.dumps({"format": 1, "dim": self._dim, "metric": self._metric, "sha256": digest}).encode() + b"\n"
        body = head + self._ids.astype("<i8").tobytes()
        with complete_or_absent(_rows_path(path)) as file:
            file.write(hashlib.sha256(body).digest() + body)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Read a saved index into memory; refuse it if a byte is not what was written."""
        path = Path(path)
        hnswlib = _hnswlib()
        rows = _rows_path(path).read_bytes()
        if hashlib.sha256(rows[32:]).digest() != rows[:32]:
            raise _damaged(_rows_path(path))
        line, _, raw = rows[32:].partition(b"\n")
        head, ids = json.loads(line), np.frombuffer(raw, dtype="<i8").astype(np.int64)
        dim, metric = int(head["dim"]), checked_metric(head["metric"])
        if head["sha256"] != _sha256(path):
            raise _damaged(path)
        graph = hnswlib.Index(space=_SPACES[metric], dim=dim)
        graph.load_index(str(path), max_elements=max(1, len(ids)))
        return cls(graph, ids, dim, metric)

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
        return len(self._ids)

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
        """As `NativeIndex.search`. With few rows allowed these are scored one by one, and so is what the graph misses."""
        graph = self._alive()
        queries = checked_queries(queries, self._dim, self._metric)
        rows = None if allow is None else np.flatnonzero(checked_allow(allow, len(self)))
        n_allowed = len(self) if rows is None else len(rows)
        k = min(checked_number(k, "k", 1), n_allowed)
        if not k or not len(queries):
            return np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
        few = rows is not None and n_allowed < max(_FEW, _FEW_SHARE * len(self))
        if exact or (few and exact is None):
            return self._search_exactly(queries, k, rows)
        graph.set_ef(max(ef or _LEAST_EF, k))
        try:
            if allow is None:
                labels, distances = graph.knn_query(queries, k, num_threads=threads or -1)
            else:
                labels, distances = graph.knn_query(queries, k, num_threads=1, filter=allow.__getitem__)
        except RuntimeError:  # it found fewer than k
            return self._search_exactly(queries, k, rows)
        scores = -distances if self._metric == "l2" else 1 - distances
        return best_of(self._ids[labels.astype(np.int64)], scores.astype(np.float32), k)

    def close(self) -> None:
        """Let go of the memory. May be called twice."""
        self._graph = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _alive(self) -> Any:
        if self._graph is None:
            raise ValueError("the index is closed")
        return self._graph

    def _search_exactly(self, queries: npt.NDArray[np.float32], k: int, rows: npt.NDArray[np.intp] | None) -> Found:
        labels = np.arange(len(self)) if rows is None else rows
        vectors = np.asarray(self._alive().get_items(labels), dtype=np.float32)
        return FlatIndex(self._ids[labels], vectors, self._metric).search(queries, k)


def _hnswlib() -> Any:
    try:
        import hnswlib
    except ImportError as error:
        raise MissingExtraError("hnswlib", "an index of hnswlib") from error
    return hnswlib


def _rows_path(path: Path) -> Path:
    return path.with_name(path.name + ".rows")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path) -> IntegrityError:
    return IntegrityError(f"{path}: not the index that was saved", mend="build and save it again")
