"""Vectors, files and yardsticks that the tests of the index share."""

import contextlib
import os
import subprocess
import sys

import numpy as np

from edge_rag import _native
from edge_rag.index import FlatIndex, build_index

METRICS = ("cosine", "inner_product", "l2")


def rows_of(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def unit_rows(n, dim, seed=0):
    rows = rows_of(n, dim, seed)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(n, dim, n_queries, seed=7):
    """Vectors that lie in clusters, as texts do, and queries near some of them."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, n // 50), dim))
    vectors = centres[random.integers(len(centres), size=n)] + 0.7 * random.standard_normal((n, dim))
    queries = vectors[random.integers(n, size=n_queries)] + 0.3 * random.standard_normal((n_queries, dim))
    return vectors.astype(np.float32), queries.astype(np.float32)


def blocks_of(ids, vectors, size=1000):
    return ((ids[i : i + size], vectors[i : i + size]) for i in range(0, len(ids), size))


def make(path, n, dim, seed=0, **options):
    """Write n rows with ids 5, 8, 11 ... and return the ids and the vectors."""
    ids, vectors = np.arange(n) * 3 + 5, unit_rows(n, dim, seed)
    build_index(path, blocks_of(ids, vectors), dim, **options)
    return ids, vectors


def recall(found, ids, vectors, queries, k, metric="cosine", allow=None, slack=2e-6):
    """Share of the true k best that were found; a row that is as good as the k-th best, within slack, counts as one."""
    k = min(k, len(ids) if allow is None else int(allow.sum()))
    assert found.shape[1] == k
    if not found.size:
        return 1.0
    exact_ids, exact = FlatIndex(ids, vectors, metric).search(queries, len(ids), allow=allow)
    hits = 0
    for q in range(len(queries)):
        assert len(set(found[q].tolist())) == k, "a row came twice"
        scores = dict(zip(exact_ids[q].tolist(), exact[q].tolist(), strict=True))
        assert all(i in scores for i in found[q].tolist()), "a row that is not allowed"
        size = abs(exact[q]).max()
        hits += sum(scores[i] >= exact[q][k - 1] - slack * size for i in found[q].tolist())
    return hits / found.size


def runnable_kernels():
    before, names = _native.simd_name(), []
    for name in ("scalar", "avx2", "avx512vnni", "neon", "dotprod"):
        with contextlib.suppress(ValueError):
            _native.simd_select(name)
            names.append(name)
    _native.simd_select(before)
    return names


def run_python(code, *arguments, check=True, **environment):
    env = {k: v for k, v in (os.environ | environment).items() if v is not None}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=check)
