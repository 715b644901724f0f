"""The exact search in plain numpy: what the native index is measured against, and an index of a few rows in memory."""

import numpy as np
import numpy.typing as npt

from edge_rag.index.arrays import checked_allow, checked_k, checked_queries, checked_rows


class FlatIndex:
    """Inner products in float32 with every row. A `VectorIndex`."""

    def __init__(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Take ids (n,), strictly ascending, and vectors (n, dim), finite and not zero."""
        self._ids, self._vectors = checked_rows(ids, vectors)

    @property
    def dim(self) -> int:
        return int(self._vectors.shape[1])

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def search(
        self, queries: npt.NDArray[np.float32], k: int, *, allow: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return ids and scores, each (n_queries, min(k, rows allowed)), best first, ties by smaller id."""
        queries = checked_queries(queries, self.dim)
        k = checked_k(k)
        rows = np.arange(len(self)) if allow is None else np.flatnonzero(checked_allow(allow, len(self)))
        scores = queries @ (self._vectors if allow is None else self._vectors[rows]).T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return self._ids[rows[best]], np.take_along_axis(scores, best, axis=1)

    def close(self) -> None:
        pass
