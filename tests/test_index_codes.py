"""Why rows are centred and rotated before they are rounded: the rounding in numpy, with and without, on vectors that are hard
to round, and the index itself on the same."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from index_data import clustered

from edge_rag.index import NativeIndex, build_index

Vectors = npt.NDArray[np.float32]
DIM = 384
N_RESCORED = 36  # rows that a search for 10 scores again


def rotated(vectors: Vectors) -> Vectors:
    x = vectors * np.random.default_rng(0).choice([-1, 1], size=DIM)
    x = x.reshape(-1, DIM // 128, 128)
    step = 1
    while step < 128:
        pairs = x.reshape(len(x), DIM // 128, 128 // (2 * step), 2, step)
        x = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], axis=-2)
        step *= 2
    return x.reshape(-1, DIM).astype(np.float32)


def found_by_codes(vectors: Vectors, queries: Vectors, *, centre: bool, rotate: bool) -> float:
    """Return the share of the true ten best that is among the best by codes."""
    rows = vectors - vectors.mean(axis=0) if centre else vectors
    looked_for = queries
    if rotate:
        rows, looked_for = rotated(rows), rotated(queries)
    scales = np.abs(rows).max(axis=1, keepdims=True) / 1919
    codes = np.floor((np.round(rows / scales) + 128) / 256) * 256 * scales
    best = np.argsort(-(looked_for @ codes.T), axis=1)[:, :N_RESCORED]
    true = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    return float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(true, best, strict=True)]))


def unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def hard(kind: str) -> tuple[Vectors, Vectors]:
    vectors, queries = clustered(4000, DIM, 50)
    if kind == "a few dimensions 30 times as large":
        vectors, queries = vectors.copy(), queries.copy()
        vectors[:, [5, 77, 200]] *= 30
        queries[:, [5, 77, 200]] *= 30
    elif kind == "all in one corner":
        corner = np.zeros(DIM, dtype=np.float32)
        corner[[5, 77]] = 3
        vectors, queries = unit(vectors) + corner, unit(queries) + corner
    return unit(vectors), unit(queries)


@pytest.mark.parametrize(
    ("kind", "alone"),
    [("a few dimensions 30 times as large", "rotate"), ("all in one corner", "centre"), ("nothing special", "")],
)
def test_centring_and_rotating_earn_their_place(kind: str, alone: str, tmp_path: Path) -> None:
    vectors, queries = hard(kind)
    neither = found_by_codes(vectors, queries, centre=False, rotate=False)
    both = found_by_codes(vectors, queries, centre=True, rotate=True)
    if alone:
        assert neither < 0.8
        assert found_by_codes(vectors, queries, centre=alone == "centre", rotate=alone == "rotate") > neither + 0.15
    else:
        assert neither > 0.99
    assert both > 0.95

    build_index(tmp_path / "x.eidx", [(np.arange(len(vectors)), vectors)], DIM)
    with NativeIndex.open(tmp_path / "x.eidx") as index:
        scores = index.search(queries, 10, exact=True)[1]
    true = -np.sort(-(queries @ vectors.T), axis=1)[:, :10]
    assert float(np.mean(scores >= true - 2e-4)) > 0.95
