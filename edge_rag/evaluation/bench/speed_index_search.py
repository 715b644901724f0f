"""How fast indexes are searched: what runs in the one-threaded process that all contestants share.

Each contestant has its turn in each round, so that a ratio is taken between neighbours in time.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_rag.evaluation.bench.speed_index_data import Floats, Truth, VectorSet, exact
from edge_rag.evaluation.bench.speed_index_systems import EVERY, EdgeRag, FaissFlat, Found, Hnswlib, System
from edge_rag.interfaces import Progress

K = 10
EFS = (10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256, 320, 400, 512, 640, 800)
ENOUGH = 0.9955  # recall at which a sweep ends
RECALLS = (0.90, 0.95, 0.99)
KEPT_SHARES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001)
FILTER_EF = 128  # of the peers; ours chooses for itself
FILTER_QUERIES, PEER_FILTER_QUERIES, SCALE_QUERIES = 200, 30, 200


@dataclass(frozen=True, slots=True)
class Curve:
    """A contestant's recall and time for each ef."""

    efs: tuple[int, ...]
    recalls: tuple[float, ...]
    seconds: tuple[tuple[float, ...], ...]  # [ef][round], for a query

    def seconds_at(self, recall: float) -> list[float]:
        """Return each round's time for a query where the curve reaches a recall, between two ef by interpolation.

        A curve that begins above gives its first time, one that ends below nothing.
        """
        if self.recalls[-1] < recall:
            return []
        logs = np.log(np.array(self.seconds))
        return [float(np.exp(np.interp(recall, self.recalls, logs[:, r]))) for r in range(logs.shape[1])]

    def ef_at(self, recall: float) -> int:
        return int(np.ceil(np.interp(recall, self.recalls, self.efs)))


@dataclass(frozen=True, slots=True)
class Speed:
    curves: dict[str, Curve]
    calls: dict[
        tuple[str, float], npt.NDArray[np.float64]
    ]  # (name, recall): (rounds, n_queries) seconds, a query a call
    defaults: npt.NDArray[np.bool_]  # the hits of ours with its default ef


@dataclass(frozen=True, slots=True)
class Flat:
    """Exact searches: seconds for a query in each round."""

    calls: dict[str, list[float]]
    batches: dict[str, list[float]]
    recall: float
    shortfall: float  # of the worst row that ours found


@dataclass(frozen=True, slots=True)
class Filtered:
    name: str
    n_kept: int
    seconds: tuple[float, ...]  # median of a call, each round
    recall: float
    returned: float  # part of the k, or of all allowed where these are fewer, that came back


@dataclass(frozen=True, slots=True)
class Scaled:
    """One size: median seconds of a call, each round."""

    n_rows: int
    seconds: dict[str, tuple[float, ...]]
    recall: float  # of our graph with its default ef
    peer_recall: float


def speed(vectors: VectorSet, folders: Mapping[str, Path], rounds: int, progress: Progress | None) -> Speed:
    """Sweep ef for each contestant, then time single calls where the curves reach RECALLS."""
    truth = exact(vectors.base, vectors.queries, K)
    systems = _opened(folders, vectors)
    points = {name: _recalls(system, truth) for name, system in systems.items()}
    times: dict[str, list[list[float]]] = {name: [[] for _ in found] for name, found in points.items()}
    for number in range(rounds):
        for step in range(len(EFS)):
            _tell(progress, "sweep", number * len(EFS) + step, rounds * len(EFS))
            for name, system in systems.items():
                if step < len(points[name]):
                    times[name][step].append(_seconds(system, truth.queries, points[name][step][0]))
    curves = {
        name: Curve(tuple(ef for ef, _ in found), tuple(recall for _, recall in found), tuple(map(tuple, times[name])))
        for name, found in points.items()
    }
    calls: dict[tuple[str, float], list[npt.NDArray[np.float64]]] = {
        (name, recall): [] for recall in RECALLS for name, curve in curves.items() if curve.seconds_at(recall)
    }
    for number in range(rounds):
        _tell(progress, "single calls", number, rounds)
        for (name, recall), found in calls.items():
            found.append(_single_calls(systems[name], truth.queries, curves[name].ef_at(recall)))
    ours = systems[EdgeRag.name]
    defaults = truth.hits(ours.search(truth.queries, K, ours.ef_default)[0])
    return Speed(curves, {key: np.array(found) for key, found in calls.items()}, defaults)


def flat(vectors: VectorSet, ours: Path, peer: Path | None, rounds: int) -> Flat:
    """Time searches that read every row."""
    queries = vectors.queries
    truth = exact(vectors.base, queries, K)
    index = EdgeRag(queries.shape[1])
    index.open(ours)
    scans: dict[str, Callable[[Floats], object]] = {EdgeRag.name: lambda q: index.scan(q, K)}
    if peer:
        other = FaissFlat(queries.shape[1])
        other.open(peer)
        scans[FaissFlat.name] = lambda q: other.search(q, K, 0)
    calls: dict[str, list[float]] = {name: [] for name in scans}
    batches: dict[str, list[float]] = {name: [] for name in scans}
    few = queries[:FILTER_QUERIES]
    for _ in range(rounds):
        for name, scan in scans.items():
            calls[name].append(float(np.median(_each(scan, few))))
            start = time.perf_counter()
            scan(queries)
            batches[name].append((time.perf_counter() - start) / len(queries))
    rows = index.scan(queries, K)[0]
    return Flat(calls, batches, truth.recall(rows), truth.shortfall(rows))


def filters(
    vectors: VectorSet, folders: Mapping[str, Path], rounds: int, progress: Progress | None
) -> tuple[Filtered, ...]:
    """Search among a random part of the rows, smaller and smaller."""
    base = vectors.base
    systems = _opened(folders, vectors)
    found = []
    for number, share in enumerate(KEPT_SHARES):
        kept = np.sort(np.random.default_rng(number).permutation(len(base))[: max(1, round(share * len(base)))])
        allow = np.zeros(len(base), dtype=np.bool_)
        allow[kept] = True
        for step, system in enumerate(systems.values()):
            _tell(progress, "filters", number * len(systems) + step, len(KEPT_SHARES) * len(systems))
            ours = isinstance(system, EdgeRag)
            queries = vectors.queries[: FILTER_QUERIES if ours else PEER_FILTER_QUERIES]
            truth = exact(base, queries, K, kept)
            ef = system.ef_default if ours else FILTER_EF
            found.append(_filtered(system, truth, ef, allow, rounds))
    return tuple(found)


def scale(
    vectors: VectorSet, n_rows: int, folders: Mapping[str, Path], rounds: int, progress: Progress | None
) -> Scaled:
    """Time single calls of everything at one size, the peer's graph with the ef that gives it our graph's recall."""
    queries = vectors.queries[:SCALE_QUERIES]
    truth = exact(vectors.base[:n_rows], queries, K)
    systems = _opened(folders, vectors)
    ours = systems[EdgeRag.name]
    assert isinstance(ours, EdgeRag)
    recall, peer_recall = truth.recall(ours.search(queries, K, ours.ef_default)[0]), 0.0
    ways: dict[str, Callable[[Floats], object]] = {
        "edge_rag, as it chooses": lambda q: ours.auto(q, K),
        "edge_rag, scan": lambda q: ours.scan(q, K),
        "edge_rag, graph": lambda q: ours.search(q, K, ours.ef_default),
    }
    if peer := systems.get(Hnswlib.name):
        for ef in EFS:
            peer_recall = truth.recall(peer.search(queries, K, ef)[0])
            if peer_recall >= recall:
                break
        ways[Hnswlib.name] = lambda q: peer.search(q, K, ef)
    if whole := systems.get(FaissFlat.name):
        ways[FaissFlat.name] = lambda q: whole.search(q, K, 0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        _tell(progress, f"{n_rows:,} rows", number, rounds)
        for name, way in ways.items():
            seconds[name].append(float(np.median(_each(way, queries))))
    return Scaled(n_rows, {name: tuple(found) for name, found in seconds.items()}, recall, peer_recall)


def _opened(folders: Mapping[str, Path], vectors: VectorSet) -> dict[str, System]:
    systems = {}
    for name, folder in folders.items():
        systems[name] = EVERY[name](vectors.base.shape[1])
        systems[name].open(folder)
    return systems


def _recalls(system: System, truth: Truth) -> list[tuple[int, float]]:
    """Search once with each ef, to the one that finds enough; return those that found more than all before."""
    found = list[tuple[int, float]]()
    for ef in EFS:
        recall = truth.recall(system.search(truth.queries, K, ef)[0])
        if not found or recall > found[-1][1]:
            found.append((ef, recall))
        if recall > ENOUGH:
            break
    return found


def _seconds(system: System, queries: Floats, ef: int) -> float:
    start = time.perf_counter()
    system.search(queries, K, ef)
    return (time.perf_counter() - start) / len(queries)


def _single_calls(system: System, queries: Floats, ef: int) -> npt.NDArray[np.float64]:
    return _each(lambda query: system.search(query, K, ef), queries)


def _each(search: Callable[[Floats], object], queries: Floats) -> npt.NDArray[np.float64]:
    """Time one call for each query."""
    seconds = np.empty(len(queries))
    for number in range(len(queries)):
        query = queries[number : number + 1]
        start = time.perf_counter()
        search(query)
        seconds[number] = time.perf_counter() - start
    return seconds


def _filtered(system: System, truth: Truth, ef: int, allow: npt.NDArray[np.bool_], rounds: int) -> Filtered:
    def search(query: Floats) -> Found:
        return system.search_allowed(query, truth.k, ef, allow)

    rows = np.vstack([search(truth.queries[number : number + 1])[0] for number in range(len(truth.queries))])
    medians = tuple(float(np.median(_each(search, truth.queries))) for _ in range(rounds))
    return Filtered(system.name, int(allow.sum()), medians, truth.recall(rows), float((rows >= 0).mean()))


def _tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress:
        progress(stage, done, total, "")
