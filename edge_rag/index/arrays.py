"""What comes in at the door: arrays are checked and converted here once, and trusted further in."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Metric = Literal["cosine", "inner_product", "l2"]
METRICS: tuple[Metric, ...] = ("cosine", "inner_product", "l2")

LARGEST_VALUE = 1e16  # of a component: products of two, summed over 4,096 dimensions, stay far inside float32
SMALLEST_PEAK = 1e-16  # where the length counts, a vector without a component of this size is zero


def checked_rows(
    ids: npt.ArrayLike,
    vectors: npt.ArrayLike,
    dim: int | None = None,
    *,
    metric: Metric = "cosine",
    after: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return ids (n,) int64, strictly ascending from above `after`, and vectors (n, dim) float32 in C order."""
    id_array = checked_ids(ids)
    rows = _checked_floats(vectors, dim, "vectors")
    if len(id_array) != len(rows):
        raise ValueError(f"{len(id_array)} ids for {len(rows)} vectors")
    if len(rows):
        if after is not None and id_array[0] <= after:
            raise ValueError(f"ids must ascend: {id_array[0]} comes after {after}")
        falls = np.flatnonzero(id_array[1:] <= id_array[:-1])
        if len(falls):
            raise ValueError(f"ids must ascend: {id_array[falls[0] + 1]} comes after {id_array[falls[0]]}")
        bad = _first_bad_row(rows, metric)
        if bad is not None:
            raise ValueError(f"the vector of id {id_array[bad[0]]} {bad[1]}")
    return id_array, rows


def checked_ids(ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    id_array = np.asarray(ids)
    if id_array.ndim != 1 or (id_array.size and not np.issubdtype(id_array.dtype, np.integer)):
        raise ValueError(f"ids must be (n,) integers, not {_shown(id_array)}")
    if id_array.dtype == np.uint64 and id_array.size and int(id_array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"id {id_array.max()} does not fit 64 bits with a sign")
    return np.ascontiguousarray(id_array, dtype=np.int64)


def checked_queries(queries: npt.ArrayLike, dim: int, metric: Metric) -> npt.NDArray[np.float32]:
    """Return queries (n, dim) float32 in C order."""
    rows = _checked_floats(queries, dim, "queries")
    bad = _first_bad_row(rows, metric) if len(rows) else None
    if bad is not None:
        raise ValueError(f"query {bad[0]} {bad[1]}")
    return rows


def checked_allow(allow: npt.ArrayLike, n_rows: int, name: str = "allow") -> npt.NDArray[np.bool_]:
    mask = np.asarray(allow)
    if mask.dtype != np.bool_ or mask.shape != (n_rows,):
        raise ValueError(f"{name} must be ({n_rows},) bool, not {_shown(mask)}")
    return np.ascontiguousarray(mask)


def checked_number(value: int, name: str, low: int, high: int | None = None) -> int:
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {f'{low} to {high}' if high is not None else f'at least {low}'}, not {value}")
    return int(value)


def checked_metric(metric: str) -> Metric:
    for known in METRICS:
        if metric == known:
            return known
    raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")


def unit_rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return rows (n, dim), none of them zero, scaled to length 1."""
    lengths: npt.NDArray[np.float32] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def _checked_floats(values: npt.ArrayLike, dim: int | None, name: str) -> npt.NDArray[np.float32]:
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] != (dim or array.shape[1] or 1) or array.dtype.kind != "f":
        raise ValueError(f"{name} must be (n, {dim or 'dim'}) floats, not {_shown(array)}")
    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinity, which is refused next
        return np.ascontiguousarray(array, dtype=np.float32)


def _first_bad_row(rows: npt.NDArray[np.float32], metric: Metric) -> tuple[int, str] | None:
    """Return the first row that is no vector for this metric, and why."""
    least = SMALLEST_PEAK if metric == "cosine" else 0.0
    squares = np.einsum("ij,ij->i", rows, rows)  # a quick look, which nearly every good row passes
    low, high = (squares[0], squares[0]) if len(rows) == 1 else (squares.min(), squares.max())
    if low >= rows.shape[1] * least**2 and high <= LARGEST_VALUE**2:
        return None
    peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # NaN passes through both
    bad = np.flatnonzero(~((peaks >= least) & (peaks <= LARGEST_VALUE)))
    if not len(bad):
        return None
    peak = peaks[bad[0]]
    if not np.isfinite(peak):
        return int(bad[0]), "holds NaN or infinity"
    return int(bad[0]), "is zero" if peak < least else f"holds a value beyond {LARGEST_VALUE:g}"


def _shown(array: npt.NDArray[Any]) -> str:
    return f"{array.shape} {array.dtype}"
