"""What was measured of the indexes, as figures with their targets, and as plots. A figure is named "what: contestant"."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge_rag.evaluation.bench.speed_index_damage import OUTCOMES, Damaged, counts
from edge_rag.evaluation.bench.speed_index_files import Built, Opened
from edge_rag.evaluation.bench.speed_index_search import RECALLS, Filtered, Flat, Scaled, Speed
from edge_rag.evaluation.bench.speed_index_systems import EdgeRag, FaissFlat, FaissSq8, Hnswlib, Svs
from edge_rag.evaluation.bench.speed_index_updates import Updates
from edge_rag.evaluation.figures import MB, Figure, figure, interval, ratios
from edge_rag.evaluation.plot import Axis, Series

US = 1e6  # microseconds in a second
SPEED_TARGETS = {
    (Hnswlib.name, 0.95): 5.0, (Hnswlib.name, 0.99): 5.0, (FaissSq8.name, 0.95): 3.0, (FaissSq8.name, 0.99): 4.5,
    (Svs.name, 0.95): 2.3, (Svs.name, 0.99): 2.3,
}  # fmt: skip
KEPT_EXACTLY = 0.01  # of the rows: a filter that keeps so few, or fewer, loses nothing
MILLION = 1_000_000
OURS = EdgeRag.name
SCAN, GRAPH = "edge_rag, scan", "edge_rag, graph"


def of_speed(found: Speed, flat: Flat) -> Iterator[Figure]:
    for recall in RECALLS:
        at = {name: curve.seconds_at(recall) for name, curve in found.curves.items()}
        for name, seconds in at.items():
            if seconds:
                yield figure(f"recall {recall:.2f}, batch: {name}", "queries/s", [1 / s for s in seconds])
        for name, seconds in at.items():
            if name != OURS and seconds and at[OURS]:
                target = SPEED_TARGETS.get((name, recall))
                faster = ratios(seconds, at[OURS])
                yield figure(f"recall {recall:.2f}, batch, ours is faster by: {name}", "x", faster, at_least=target)
        yield from _of_calls(found, recall)
    yield _with_target(interval(f"recall@10 with default settings: {OURS}", found.defaults.ravel()), 98)
    yield from _of_flat(flat)


def of_builds(found: Mapping[str, Sequence[Built]], threads: int) -> Iterator[Figure]:
    """`found` has each contestant's builds, ours first, in rounds."""
    ours = found[OURS]
    for name, builds in found.items():
        yield figure(f"build, {threads} threads: {name}", "s", [b.wall_s for b in builds])
        if name != OURS:
            target = 4.0 if name == Hnswlib.name else None
            faster = ratios([b.wall_s for b in builds], [b.wall_s for b in ours])
            yield figure(f"build, {threads} threads, ours is faster by: {name}", "x", faster, at_least=target)
    for name, builds in found.items():
        yield figure(f"build, {threads} threads, processor time: {name}", "s", [b.cpu_s for b in builds])
        private = [b.peak_private / MB for b in builds if b.peak_private is not None]
        if private:
            yield figure(f"build, {threads} threads, private memory: {name}", "MB", private)
            of_file = [b.peak_private / b.size for b in builds if b.peak_private is not None]
            below = 1.3 if name == OURS else None
            yield figure(f"build, {threads} threads, private memory to the file: {name}", "x", of_file, below=below)
        peaks = [b.peak / MB for b in builds if b.peak is not None]
        if peaks:
            yield figure(f"build, {threads} threads, peak of the process: {name}", "MB", peaks)
    for name, builds in found.items():
        yield figure(f"size of the file: {name}", "MB", [b.size / MB for b in builds])
        if name != OURS:
            target = 2.2 if name == Hnswlib.name else None
            yield figure(
                f"size of the file, ours is smaller by: {name}", "x", [builds[0].size / ours[0].size], at_least=target
            )


def of_openings(found: Mapping[tuple[str, bool], Sequence[Opened]]) -> Iterator[Figure]:
    """`found`: by name and whether the file was dropped from the system's cache."""
    for evicted, state, floor in ((False, "file in the cache", 25.0), (True, "file dropped from the cache", 4.0)):
        at = {name: opened for (name, dropped), opened in found.items() if dropped is evicted}
        for name, opened in at.items():
            yield figure(f"open and first answer, {state}: {name}", "ms", [o.first_s * 1000 for o in opened])
        for name, opened in at.items():
            if not name.startswith(OURS):
                target = floor if name == Hnswlib.name else None
                sooner = ratios([o.first_s for o in opened], [o.first_s for o in at[OURS]])
                yield figure(f"open and first answer, {state}, ours is sooner by: {name}", "x", sooner, at_least=target)
    for (name, evicted), opened in found.items():
        if evicted or not opened[0].after_many:
            continue
        below = 2.0 if name.startswith(OURS) else None
        for kind in ("anonymous", "resident"):
            limit = below if kind == "anonymous" else None
            yield figure(
                f"{kind} memory after the first answer: {name}", "MB", [o.after_first[kind] / MB for o in opened]
            )
            yield figure(
                f"{kind} memory after all queries: {name}", "MB", [o.after_many[kind] / MB for o in opened], below=limit
            )


def of_filters(found: Sequence[Filtered], n_rows: int) -> Iterator[Figure]:
    for f in found:
        share = f.n_kept / n_rows
        strict = f.name == OURS and share <= KEPT_EXACTLY
        allowed = f"{f.n_kept:,} rows allowed ({share:.2%})"
        ms = [seconds * 1000 for seconds in f.seconds]
        yield figure(f"{allowed}, a query: {f.name}", "ms", ms, below=0.5 if strict else None)
        yield figure(f"{allowed}, recall: {f.name}", "", [f.recall], at_least=1.0 if strict else None)
        yield figure(f"{allowed}, results that came back: {f.name}", "%", [f.returned * 100])


def of_updates(found: Updates) -> Iterator[Figure]:
    for name, seconds in found.cycles.items():
        yield figure(f"add one, remove one, search: {name}", "ms", [s * 1000 for s in seconds])
    if Hnswlib.name in found.cycles:
        yield figure(
            f"add one, remove one, search, ours is faster by: {Hnswlib.name}",
            "x",
            ratios(found.cycles[Hnswlib.name], found.cycles[OURS]),
        )
    for name, seconds in found.writes.items():
        yield figure(f"write {found.n_changed:,} added and removed rows to disk: {name}", "s", seconds)
    yield figure(f"full build of the same rows: {OURS}", "s", found.full)
    yield figure(
        f"the merge, of the full build: {OURS}", "%", [part * 100 for part in ratios(found.writes[OURS], found.full)]
    )
    yield figure(f"recall@10 with default settings, merged: {OURS}", "", [found.merged_recall])
    yield figure(f"recall@10 with default settings, built anew: {OURS}", "", [found.full_recall])


def of_damage(found: Sequence[Damaged]) -> Iterator[Figure]:
    for name in dict.fromkeys(damaged.name for damaged in found):
        of_name = [damaged for damaged in found if damaged.name == name]
        tally = counts(of_name)
        for outcome in OUTCOMES:
            strict = name == OURS and outcome in ("wrong answer", "crash", "hang")
            total = float(tally[outcome])
            target, met = ("none", total == 0) if strict else ("", None)
            yield Figure(f"{outcome}: {name}", "", len(of_name), total, total, total, target, met)


def of_scale(found: Sequence[Scaled], built: Mapping[int, Built], threads: int) -> Iterator[Figure]:
    for size in found:
        for name, seconds in size.seconds.items():
            yield figure(f"{size.n_rows:,} rows: {name}", "µs", [s * US for s in seconds])
        recall = size.recall
        at_least = 0.97 if size.n_rows >= MILLION else None
        yield figure(f"{size.n_rows:,} rows, recall@10: {GRAPH}", "", [recall], at_least=at_least)
        if size.peer_recall:
            yield figure(f"{size.n_rows:,} rows, recall@10: {Hnswlib.name}", "", [size.peer_recall])
    for n_rows, b in built.items():
        below = 600.0 if n_rows >= MILLION else None
        yield figure(f"{n_rows:,} rows, build on {threads} threads: {GRAPH}", "s", [b.wall_s], below=below)
    if len(found) > 1:  # what the cost model of the search rests on
        rows = np.array([size.n_rows for size in found], dtype=np.float64)
        a_query, a_row = _line_through(rows, [np.median(size.seconds[SCAN]) for size in found])
        yield figure(f"scan, for a query: {SCAN}", "µs", [a_query * US])
        yield figure(f"scan, for each row: {SCAN}", "ns", [a_row * 1e9])
        _, a_doubling = _line_through(np.log2(rows), [np.median(size.seconds[GRAPH]) for size in found])
        yield figure(f"graph, for each doubling of the rows: {GRAPH}", "µs", [a_doubling * US])
    crossing = crossover(found)
    if crossing:
        yield figure(f"rows from which the graph is faster than the scan: {GRAPH}", "rows", [crossing])


def crossover(found: Sequence[Scaled]) -> float | None:
    """Return where scan and graph take the same time, between two sizes by interpolation."""
    rows = np.log([size.n_rows for size in found])
    gap = np.log([
        np.median(size.seconds[SCAN]) / np.median(size.seconds[GRAPH]) for size in found
    ])  # fmt: skip
    for before in range(len(gap) - 1):
        if gap[before] < 0 <= gap[before + 1]:
            return float(np.exp(np.interp(0.0, gap[before : before + 2], rows[before : before + 2])))
    return None


def speed_plot(found: Speed, n_rows: int, dim: int) -> tuple[str, Axis, Axis, list[Series]]:
    series = []
    for name, curve in found.curves.items():
        rates = 1 / np.array(curve.seconds)
        series.append(Series(
            name,
            list(zip(curve.recalls, np.median(rates, axis=1).tolist(), strict=True)),
            list(zip(rates.min(axis=1).tolist(), rates.max(axis=1).tolist(), strict=True)),
        ))  # fmt: skip
    title = f"{n_rows:,} vectors of {dim} dimensions, one thread"
    lowest = min(curve.recalls[0] for curve in found.curves.values())
    return title, Axis("recall@10", low=max(0.85, lowest), high=1), Axis("queries per second", log=True), series


def scale_plot(found: Sequence[Scaled]) -> tuple[str, Axis, Axis, list[Series]]:
    names = dict.fromkeys(name for size in found for name in size.seconds)
    series = []
    for name in names:
        sizes = [(size.n_rows, np.array(size.seconds[name]) * US) for size in found if name in size.seconds]
        series.append(Series(
            name,
            [(n_rows, float(np.median(us))) for n_rows, us in sizes],
            [(float(us.min()), float(us.max())) for _, us in sizes],
        ))  # fmt: skip
    return "One query, one thread", Axis("rows", log=True), Axis("microseconds", log=True), series


def _of_calls(found: Speed, recall: float) -> Iterator[Figure]:
    calls = {name: seconds for (name, at), seconds in found.calls.items() if at == recall}
    for name, seconds in calls.items():
        for quantile, label in ((0.5, "p50"), (0.99, "p99")):
            by_round = np.quantile(seconds, quantile, axis=1) * US
            yield figure(f"recall {recall:.2f}, a query a call, {label}: {name}", "µs", by_round.tolist())
    for name, seconds in calls.items():
        if name != OURS and OURS in calls:
            medians = np.median(seconds, axis=1) / np.median(calls[OURS], axis=1)
            yield figure(f"recall {recall:.2f}, a query a call, ours is faster by: {name}", "x", medians.tolist())


def _of_flat(flat: Flat) -> Iterator[Figure]:
    for kind, seconds, target in (("a query a call", flat.calls, 10.0), ("batch", flat.batches, None)):
        for name, found in seconds.items():
            yield figure(f"exact search, {kind}: {name}", "µs", [s * US for s in found])
        if FaissFlat.name in seconds:
            faster = ratios(seconds[FaissFlat.name], seconds[OURS])
            yield figure(f"exact search, {kind}, ours is faster by: {FaissFlat.name}", "x", faster, at_least=target)
    yield figure(f"exact search, recall@10: {OURS}", "", [flat.recall])
    yield figure(f"exact search, most that a result is behind the exact tenth: {OURS}", "1e-6", [flat.shortfall * 1e6])


def _line_through(x: npt.NDArray[np.float64], seconds: Sequence[np.floating]) -> tuple[float, float]:
    """Fit a line, each point weighing the same part of itself; return its height at 0 and its slope."""
    slope, height = np.polyfit(x, seconds, 1, w=1 / np.array(seconds))
    return float(height), float(slope)


def _with_target(f: Figure, at_least: float) -> Figure:
    return Figure(f.name, f.unit, f.n, f.value, f.low, f.high, f"at least {at_least:g}", f.value >= at_least)
