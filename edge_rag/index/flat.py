"""The exact search in plain numpy: what the native index is measured against, and an index of a few rows in memory."""

import numpy as np
import numpy.typing as npt

from edge_rag.index.arrays import (
    Metric,
    checked_allow,
    checked_metric,
    checked_number,
    checked_queries,
    checked_rows,
    unit_rows,
)

_MOST_SCORES = 1 << 24  # held at once: 64 MB
_ROWS_PER_BLOCK = 4096
_LARGEST_PIECE = 1 << 18  # numbers of a matrix


class FlatIndex:
    """Every row against every query, in float32. A `VectorIndex`."""

    def __init__(self, ids: npt.ArrayLike, vectors: npt.ArrayLike, metric: Metric = "inner_product") -> None:
        """Take ids (n,), strictly ascending, and vectors (n, dim), finite and, for "cosine", not zero."""
        self._metric = checked_metric(metric)
        self._ids, vectors = checked_rows(ids, vectors, metric=metric)
        self._vectors = prepared(vectors, metric)

    @property
    def dim(self) -> int:
        return int(self._vectors.shape[1])

    @property
    def metric(self) -> Metric:
        return self._metric

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def search(
        self, queries: npt.NDArray[np.float32], k: int, *, allow: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return ids and scores, each (n_queries, min(k, rows allowed)), best first, ties by smaller id."""
        queries = prepared(checked_queries(queries, self.dim, self._metric), self._metric)
        k = checked_number(k, "k", 1)
        ids, vectors = self._ids, self._vectors
        if allow is not None:
            rows = np.flatnonzero(checked_allow(allow, len(self)))
            ids, vectors = ids[rows], vectors[rows]
        k = min(k, len(ids))
        best_ids = np.empty((len(queries), k), dtype=np.int64)
        best_scores = np.empty((len(queries), k), dtype=np.float32)
        step = max(1, _MOST_SCORES // max(1, len(ids)))
        for start in range(0, len(queries), step):
            for at, scores in enumerate(scores_of(queries[start : start + step], vectors, self._metric), start):
                best = best_rows(scores, k)
                best_ids[at], best_scores[at] = ids[best], scores[best]
        return best_ids, best_scores

    def close(self) -> None:
        pass


def prepared(rows: npt.NDArray[np.float32], metric: Metric) -> npt.NDArray[np.float32]:
    """Return rows or queries as `scores_of` wants them."""
    return unit_rows(rows) if metric == "cosine" else rows


def scores_of(
    queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], metric: Metric
) -> npt.NDArray[np.float32]:
    """Return (n_queries, n) scores: inner products, or minus the squared distances."""
    scores = np.empty((len(queries), len(vectors)), dtype=np.float32)
    if metric != "l2":
        # For one query, in pieces so small that BLAS starts no threads: on a busy machine these cost 8 ms.
        step = max(1, _LARGEST_PIECE // queries.shape[1]) if len(queries) == 1 else max(1, len(vectors))
        for start in range(0, len(vectors), step):
            np.matmul(queries, vectors[start : start + step].T, out=scores[:, start : start + step])
        return scores
    wide = queries.astype(np.float64)  # the difference of large squares would lose its last digits in float32
    for start in range(0, len(vectors), _ROWS_PER_BLOCK):
        rows = vectors[start : start + _ROWS_PER_BLOCK].astype(np.float64)
        distances = (wide**2).sum(axis=1)[:, None] + (rows**2).sum(axis=1) - 2 * (wide @ rows.T)
        scores[:, start : start + len(rows)] = -np.maximum(distances, 0)
    return scores


def best_rows(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    """Return the k best of (n,) scores, best first, ties by smaller row."""
    if k == 0:
        return np.empty(0, dtype=np.intp)
    rows = np.arange(len(scores))
    if 4 * k < len(scores):
        rows = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return rows[np.argsort(-scores[rows], kind="stable")[:k]]


def best_of(
    ids: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the k best of each row of ids and scores, (n_queries, n), best first, ties by smaller id."""
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
