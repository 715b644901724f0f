"""What comes in at the door: arrays are checked and converted here once, and trusted further in."""

from typing import Any

import numpy as np
import numpy.typing as npt

SMALLEST_PEAK = 1e-30  # a row whose largest component is below this counts as zero


def checked_rows(
    ids: npt.ArrayLike, vectors: npt.ArrayLike, dim: int | None = None, *, after: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return ids (n,) int64, strictly ascending from above `after`, and vectors (n, dim) float32 in C order."""
    id_array = np.asarray(ids)
    if id_array.ndim != 1 or (id_array.size and not np.issubdtype(id_array.dtype, np.integer)):
        raise ValueError(f"ids must be (n,) integers, not {_shown(id_array)}")
    if id_array.dtype == np.uint64 and id_array.size and int(id_array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"id {id_array.max()} does not fit 64 bits with a sign")
    id_array = np.ascontiguousarray(id_array, dtype=np.int64)
    rows = _checked_floats(vectors, dim, "vectors")
    if len(id_array) != len(rows):
        raise ValueError(f"{len(id_array)} ids for {len(rows)} vectors")
    if len(rows):
        if after is not None and id_array[0] <= after:
            raise ValueError(f"ids must ascend: {id_array[0]} comes after {after}")
        falls = np.flatnonzero(id_array[1:] <= id_array[:-1])
        if len(falls):
            raise ValueError(f"ids must ascend: {id_array[falls[0] + 1]} comes after {id_array[falls[0]]}")
        peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # NaN passes through both
        bad = np.flatnonzero(~(np.isfinite(peaks) & (peaks >= SMALLEST_PEAK)))
        if len(bad):
            kind = "is zero" if np.isfinite(peaks[bad[0]]) else "holds NaN or infinity"
            raise ValueError(f"the vector of id {id_array[bad[0]]} {kind}")
    return id_array, rows


def checked_queries(queries: npt.ArrayLike, dim: int) -> npt.NDArray[np.float32]:
    """Return queries (n, dim) float32 in C order, all finite."""
    rows = _checked_floats(queries, dim, "queries")
    if not np.isfinite(rows).all():
        raise ValueError("queries hold NaN or infinity")
    return rows


def checked_allow(allow: npt.ArrayLike, n_rows: int) -> npt.NDArray[np.bool_]:
    mask = np.asarray(allow)
    if mask.dtype != np.bool_ or mask.shape != (n_rows,):
        raise ValueError(f"allow must be ({n_rows},) bool, not {_shown(mask)}")
    return np.ascontiguousarray(mask)


def checked_k(k: int) -> int:
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return int(k)


def _checked_floats(values: npt.ArrayLike, dim: int | None, name: str) -> npt.NDArray[np.float32]:
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] != (dim or array.shape[1] or 1) or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} must be (n, {dim or 'dim'}) floats, not {_shown(array)}")
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinity, which is refused next
        return np.ascontiguousarray(array, dtype=np.float32)


def _shown(array: npt.NDArray[Any]) -> str:
    return f"{array.shape} {array.dtype}"
