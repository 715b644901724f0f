"""What small changes to an index cost: a row added and one removed, and having many such changes in the file."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_rag.evaluation.bench.speed_index_data import BLOCK, Floats, VectorSet, exact
from edge_rag.evaluation.bench.speed_index_search import K
from edge_rag.evaluation.bench.speed_index_systems import EF_BUILD, SEED, EdgeRag, Hnswlib, M, blocks_of
from edge_rag.index import LiveIndex, NativeIndex, build_index
from edge_rag.interfaces import Progress

CHANGED_SHARE = 0.01  # of the rows: added, and as many removed
PEER_EF = 64


@dataclass(frozen=True, slots=True)
class Updates:
    cycles: dict[str, list[float]]  # seconds to add a row, remove a row and search: the median of each round
    writes: dict[str, list[float]]  # seconds until all of that is in the file
    full: list[float]  # seconds to build ours from the same rows
    n_changed: int  # rows added, and as many removed
    merged_recall: float
    full_recall: float


def updates(
    vectors: VectorSet, work: Path, *, threads: int, rounds: int, with_peer: bool, progress: Progress | None = None
) -> Updates:
    """Index all rows but the last, then add these one by one, removing one of the first each time."""
    base, queries = vectors.base, vectors.queries
    each = max(1, round(CHANGED_SHARE * len(base)) // rounds)  # changes in a round
    n_changed = rounds * each
    first = len(base) - n_changed
    files = [work / name for name in ("before", "merged", "built-anew", "hnswlib")]
    before, merged, anew, saved = files
    build_index(before, blocks_of(base[:first]), vectors.dim, graph_from=1, threads=threads)
    peer = _peer(base[:first], len(base), threads) if with_peer else None
    cycles = {name: list[float]() for name in (EdgeRag.name, *([Hnswlib.name] if peer else ()))}
    writes = {name: list[float]() for name in cycles}
    full = list[float]()
    with LiveIndex(NativeIndex.open(before)) as live:
        for number in range(rounds):
            _tell(progress, "small changes", number, rounds)
            rows = range(first + number * each, first + (number + 1) * each)
            cycles[EdgeRag.name].append(_cycles(rows, lambda row: _change(live, row, first, base, queries)))
            if peer:
                cycles[Hnswlib.name].append(_cycles(rows, lambda row: _change_peer(peer, row, first, base, queries)))
    keep = np.arange(first) >= n_changed
    for number in range(rounds):
        _tell(progress, "merges", number, rounds)
        with NativeIndex.open(before) as old:
            merge = partial(build_index, merged, blocks_of(base[first:], first), vectors.dim, base=old, keep=keep)
            writes[EdgeRag.name].append(_seconds(partial(merge, threads=threads)))
        alive = blocks_of(base[n_changed:], n_changed)
        full.append(_seconds(partial(build_index, anew, alive, vectors.dim, graph_from=1, threads=threads)))
        if peer:
            writes[Hnswlib.name].append(_seconds(lambda: peer.save_index(str(saved))))
    found = Updates(
        cycles, writes, full, n_changed, _recall(merged, vectors, n_changed), _recall(anew, vectors, n_changed)
    )
    for file in files:
        file.unlink(missing_ok=True)
    return found


def _peer(base: Floats, most: int, threads: int) -> Any:
    import hnswlib

    index = hnswlib.Index("ip", base.shape[1])
    index.init_index(most, M=M, ef_construction=EF_BUILD, random_seed=SEED)
    for start in range(0, len(base), BLOCK):
        block = base[start : start + BLOCK]
        index.add_items(block, np.arange(start, start + len(block)), num_threads=threads)
    index.set_num_threads(1)
    index.set_ef(PEER_EF)
    return index


def _change(live: LiveIndex, row: int, first: int, base: Floats, queries: Floats) -> None:
    live.add([row], base[row : row + 1])
    live.remove([row - first])
    live.search(_query(queries, row), K, threads=1)


def _change_peer(peer: Any, row: int, first: int, base: Floats, queries: Floats) -> None:
    peer.add_items(base[row : row + 1], [row])
    peer.mark_deleted(row - first)
    peer.knn_query(_query(queries, row), K)


def _query(queries: Floats, row: int) -> Floats:
    place = row % len(queries)
    return queries[place : place + 1]


def _cycles(rows: range, change: Callable[[int], None]) -> float:
    return float(np.median([_seconds(partial(change, row)) for row in rows]))


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _recall(file: Path, vectors: VectorSet, first_alive: int) -> float:
    truth = exact(vectors.base, vectors.queries, K, np.arange(first_alive, len(vectors.base)))
    with NativeIndex.open(file) as index:
        return truth.recall(index.search(truth.queries, K, exact=False, threads=1)[0])


def _tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress:
        progress(stage, done, total, "")
