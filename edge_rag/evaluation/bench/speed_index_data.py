"""Vectors to measure an index with: real ones, or made ones, their exact neighbours, and the recall against these."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.question_sets import data_dir

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

MOST_ROWS = 1_000_000
TIE = (
    2e-6  # a score that is so near to the last that counts is as good: more than float32 rounds off, less than matters
)
BLOCK = 10_000  # rows in memory at a time
MADE_DIM, MADE_QUERIES = 384, 500  # of vectors that rest on no real ones
# With these, hnswlib finds as much of 20,000 made vectors as of real ones: 0.74, 0.92, 0.97, 0.99 with ef 10, 32, 64,
# 128, and 0.80, 0.94, 0.98, 0.99 of the real ones.
ROWS_PER_CLUSTER, DECAY = 10, 0.5


@dataclass(frozen=True, slots=True)
class VectorSet:
    """Where the vectors lie. They are mapped, so that a process that reads them in blocks holds one block."""

    folder: Path
    origin: str  # for the reader of the figures

    @property
    def base(self) -> Floats:
        return np.load(self.folder / "base.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @property
    def queries(self) -> Floats:
        return np.load(self.folder / "queries.npy")  # type: ignore[no-any-return]

    @property
    def fingerprint(self) -> str:
        """Tell sets of vectors apart."""
        ends = [zlib.crc32(np.ascontiguousarray(part).tobytes()) for part in (self.base[:BLOCK], self.base[-BLOCK:])]
        return f"{self.base.shape} {ends[0]} {ends[1]}"

    @property
    def dim(self) -> int:
        return int(self.base.shape[1])


@dataclass(frozen=True, slots=True)
class Truth:
    """What an exact search over float32 finds."""

    base: Floats
    queries: Floats
    floor: Floats  # (n_queries,): the score that a row must reach to be a hit
    k: int

    def hits(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Tell which of rows (n_queries, k) are hits; -1 stands for no row, and a row given twice counts once."""
        scores = self._scores(rows)
        first = np.array([np.isin(np.arange(len(row)), np.unique(row, return_index=True)[1]) for row in rows])
        return np.asarray((rows >= 0) & first & (scores >= self.floor[:, None] - TIE))

    def recall(self, rows: Rows) -> float:
        return float(self.hits(rows).sum()) / (len(self.queries) * self.k)

    def shortfall(self, rows: Rows) -> float:
        """Return how far the worst of rows (n_queries, k) stays behind the score of a hit."""
        return max(0.0, float((self.floor[:, None] - self._scores(rows)).max()))

    def _scores(self, rows: Rows) -> Floats:
        return np.einsum("qd,qkd->qk", self.queries, self.base[np.maximum(rows, 0)])  # type: ignore[no-any-return]


def exact(base: Floats, queries: Floats, k: int, allowed: Rows | None = None) -> Truth:
    """Find each query's k-th best score among all rows, or the allowed ones."""
    count = len(base) if allowed is None else len(allowed)
    k = min(k, count)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for start in range(0, count, BLOCK):
        rows = base[start : start + BLOCK] if allowed is None else base[allowed[start : start + BLOCK]]
        best = np.partition(np.hstack([best, queries @ rows.T]), -k, axis=1)[:, -k:]
    return Truth(base, queries, best.min(axis=1), k)


def prepare(folder: Path, source: Path | None, *, rows: int | None, generated: int | None) -> VectorSet:
    """Write unit vectors as float32 to `folder`: from `source`, from the data folder, or made up where there are none.

    `generated` rows begin with the real ones, where there are any.
    """
    if generated is not None and not 1 <= generated <= MOST_ROWS:
        raise UsageError(f"--generated is {generated}", mend=f"use 1 to {MOST_ROWS}")
    real = _real_vectors(source)
    if real is None:
        n_rows = generated or rows or 100_000
        n_clusters = -(-n_rows // ROWS_PER_CLUSTER)
        origin = f"{n_rows:,} made vectors, {MADE_DIM} dimensions, {n_clusters:,} Gaussian clusters"
        blocks, dim = _mixture(n_rows, n_clusters, seed=1), MADE_DIM
        queries = next(_mixture(MADE_QUERIES, n_clusters, seed=2))
    else:
        base, queries = real
        base = base[:rows]
        n_rows, dim = generated or len(base), base.shape[1]
        made = max(0, n_rows - len(base))
        base = base[:n_rows]
        origin = f"{len(base):,} real vectors" + (f" and {made:,} made from them" if made else "")
        origin += f", {dim} dimensions"
        blocks = _with_variations(base, made)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "queries.npy", _unit(queries))
    target = np.lib.format.open_memmap(folder / "base.npy", mode="w+", dtype=np.float32, shape=(n_rows, dim))
    start = 0
    for block in blocks:
        target[start : start + len(block)] = _unit(block)
        start += len(block)
    target.flush()
    return VectorSet(folder, origin)


def _real_vectors(source: Path | None) -> tuple[Floats, Floats] | None:
    if source is None:
        try:
            source = data_dir() / "vectors"
        except EdgeRagError:
            return None
        if not source.is_dir():
            return None
    found = []
    for name in ("base", "queries"):
        files = sorted(source.glob(f"{name}*.npy"))
        if not files:
            raise UsageError(f"no {name}*.npy in {source}", mend="give a folder that holds base.npy and queries.npy")
        try:
            found.append(np.load(files[0], mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise EdgeRagError(
                f"{files[0]}: cannot be read as vectors: {error}", mend="save it with numpy.save"
            ) from error
    base, queries = found
    if base.ndim != 2 or queries.ndim != 2 or base.shape[1] != queries.shape[1] or not len(base) or not len(queries):
        raise UsageError(f"{source}: base {base.shape} and queries {queries.shape}", mend="both must be (n, dim)")
    return base, queries


def _with_variations(base: Floats, made: int) -> Iterator[Floats]:
    """Give the real rows, then as many others: a real row, moved along the difference of two others."""
    for start in range(0, len(base), BLOCK):
        yield base[start : start + BLOCK]
    random = np.random.default_rng(0)
    for start in range(0, made, BLOCK):
        here, there, elsewhere = (
            _unit(base[random.integers(0, len(base), min(BLOCK, made - start))]) for _ in range(3)
        )
        step = random.uniform(0.3, 0.7, (len(here), 1)).astype(np.float32)
        yield here + step * (there - elsewhere)


def _mixture(n_rows: int, n_clusters: int, *, seed: int) -> Iterator[Floats]:
    """Give points around cluster centres; both spread less and less from dimension to dimension."""
    spread = np.arange(1, MADE_DIM + 1, dtype=np.float32) ** -DECAY
    centres = np.random.default_rng(0).standard_normal((n_clusters, MADE_DIM), dtype=np.float32)
    random = np.random.default_rng(seed)
    for start in range(0, n_rows, BLOCK):
        chosen = centres[random.integers(0, n_clusters, min(BLOCK, n_rows - start))]
        yield (chosen + random.standard_normal(chosen.shape, dtype=np.float32)) * spread


def _unit(vectors: Floats) -> Floats:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]
