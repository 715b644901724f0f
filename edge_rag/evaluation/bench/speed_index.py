"""How good the vector index is, beside its peers, on the same vectors: `edge-rag bench index`.

Parts can be run alone. Every contestant is built, opened and damaged in processes of its own; searches are timed in one
process that all share, on one thread, in turn. A peer that is not installed, or that dies here, is left out with a line.
"""

import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edge_rag.errors import UsageError
from edge_rag.evaluation.bench import speed_index_damage, speed_index_figures, speed_index_search, speed_index_updates
from edge_rag.evaluation.bench.speed_index_data import VectorSet, prepare
from edge_rag.evaluation.bench.speed_index_files import Built, Opened, build, folder_of, open_cold, process_of
from edge_rag.evaluation.bench.speed_index_systems import (
    EVERY,
    GRAPHS,
    EdgeRag,
    EdgeRagLazy,
    FaissFlat,
    FaissHnsw,
    FaissSq8,
    Hnswlib,
    System,
    Usearch,
    is_installed,
)
from edge_rag.evaluation.figures import Figure, Report, check_counts, load_average, surroundings
from edge_rag.evaluation.plot import write_plot
from edge_rag.interfaces import Progress
from edge_rag.models.cores import usable_cores

PARTS = ("speed", "build", "open", "filters", "update", "damage", "scale")
BUILD_ROUNDS = 3  # at most: a build takes long enough to be steady
OPENED = (EdgeRag, EdgeRagLazy, Hnswlib, Usearch, FaissHnsw, FaissSq8)
FILTERED = (EdgeRag, Hnswlib, FaissHnsw)
DAMAGED = (EdgeRag, Hnswlib, Usearch, FaissHnsw)
SCALED = (EdgeRag, Hnswlib, FaissFlat)
DAMAGED_ROWS = 20_000  # at most: each of 200 copies of each contestant is written and read
LEAST_ROWS = 1000


@dataclass(slots=True)
class Bench:
    """One run: where it is done, how often, and what has been built so far."""

    vectors: VectorSet
    work: Path
    rounds: int
    threads: int
    peers: Sequence[type[System]]
    out: Path | None
    progress: Progress | None
    built: dict[tuple[str, int], Built] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # name of a contestant that dies here, and why

    @property
    def n_rows(self) -> int:
        return len(self.vectors.base)

    def build(self, system: type[System], n_rows: int | None = None, threads: int | None = None) -> Built | None:
        """Build an index anew; None if this contestant is left out."""
        n_rows = n_rows or self.n_rows
        if system.name in self.left_out:
            return None
        self.tell("build", 0, 0, f"{system.name}, {n_rows:,} rows")
        folder = folder_of(self.work, system, n_rows)
        try:
            built = build(self.vectors, system, folder, n_rows=n_rows, threads=threads or self.threads)
        except Exception as error:  # whatever a peer does wrong, or that its process died of
            if system is EdgeRag:
                raise
            self.left_out[system.name] = f"{system.name} is left out, it fails to build: {type(error).__name__} {error}"
            return None
        if threads in (None, self.threads):
            self.built[system.name, n_rows] = built
        note = {"vectors": self.vectors.fingerprint, "built": asdict(built) | {"folder": ""}}
        _write_json(_note_of(folder), note)
        return built

    def earlier(self, system: type[System], n_rows: int) -> Built | None:
        """Return what an earlier run in the same work folder has built of the same vectors: a peer's, never ours."""
        folder = folder_of(self.work, system, n_rows)
        try:
            note = json.loads(_note_of(folder).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if system is EdgeRag or note["vectors"] != self.vectors.fingerprint:
            return None
        return Built(**note["built"] | {"folder": folder})

    def folders(self, systems: Sequence[type[System]], n_rows: int | None = None) -> dict[str, Path]:
        """Return where the indexes of all contestants lie that are here, built if they are not yet."""
        n_rows = n_rows or self.n_rows
        found = {}
        for system in systems:
            if system is EdgeRag or system in self.peers:
                built = (
                    self.built.get((system.name, n_rows)) or self.earlier(system, n_rows) or self.build(system, n_rows)
                )
                if built:
                    found[system.name] = built.folder
        return found

    def tell(self, stage: str, done: int, total: int, detail: str = "") -> None:
        if self.progress:
            self.progress(stage, done, total, detail)


def measure(
    parts: Sequence[str],
    *,
    rows: int | None = None,
    generated: int | None = None,
    source: Path | None = None,
    peers: Sequence[str] | None = None,
    rounds: int = 5,
    threads: int | None = None,
    thorough: bool = False,
    work: Path | None = None,
    out: Path | None = None,
    command: str,
    progress: Progress | None = None,
) -> tuple[Report, ...]:
    """Measure the parts that are asked for, a report for each. `source` holds base.npy and queries.npy; `out` gets plots."""
    for part in parts:
        if part not in PARTS:
            raise UsageError(f"there is no part {part!r}", mend=f"choose from: {', '.join(PARTS)}")
    check_counts(rounds=rounds, threads=threads or usable_cores(), rows=rows or LEAST_ROWS)
    chosen, absent = _chosen(peers)
    with _work_folder(work) as folder:
        vectors = prepare(folder / "vectors", source, rows=rows, generated=generated)
        if len(vectors.base) < LEAST_ROWS:
            raise UsageError(f"{len(vectors.base)} rows say nothing about an index", mend=f"use {LEAST_ROWS} or more")
        bench = Bench(vectors, folder, rounds, threads or usable_cores(), chosen, out, progress)
        reports = []
        for part in parts:
            load_before = load_average()
            title, figures, notes = _measured(bench, part, thorough)
            all_notes = (vectors.origin, *notes, *absent, *bench.left_out.values())
            reports.append(Report(title, tuple(figures), all_notes, surroundings(command, load_before)))
    return tuple(reports)


def _measured(bench: Bench, part: str, thorough: bool) -> tuple[str, list[Figure], list[str]]:
    match part:
        case "speed":
            return _speed(bench)
        case "build":
            return _build(bench, thorough)
        case "open":
            return _open(bench)
        case "filters":
            return _filters(bench)
        case "update":
            return _update(bench)
        case "damage":
            return _damage(bench)
    return _scale(bench)


def _speed(bench: Bench) -> tuple[str, list[Figure], list[str]]:
    folders = bench.folders(GRAPHS)
    flat = bench.folders([FaissFlat]).get(FaissFlat.name)
    with process_of(1) as worker:
        found = worker.submit(speed_index_search.speed, bench.vectors, folders, bench.rounds, bench.progress).result()
        exact = worker.submit(
            speed_index_search.flat, bench.vectors, folders[EdgeRag.name], flat, bench.rounds
        ).result()
    if bench.out:
        _write_json(bench.out / "index-speed.json", {name: asdict(curve) for name, curve in found.curves.items()})
        write_plot(
            bench.out / "index-speed.svg", *speed_index_figures.speed_plot(found, bench.n_rows, bench.vectors.dim)
        )
    return (
        "Search: one thread, all contestants in one process, in turn",
        list(speed_index_figures.of_speed(found, exact)),
        [
            "recall@10 counts each row whose exact float32 score is within 2e-6 of the tenth best; times at a recall are"
            " interpolated between two ef; a contestant without a line at a recall does not reach it",
            "batch: one call of each contestant's own interface with all queries; built with M = 16 (32 links at the"
            " lowest level), efConstruction = 200 where a peer has these, ours with its own defaults",
        ],
    )


def _build(bench: Bench, thorough: bool) -> tuple[str, list[Figure], list[str]]:
    figures = list[Figure]()
    for threads in (bench.threads, *([1] if thorough and bench.threads > 1 else ())):
        rounds = [
            {
                system.name: bench.build(system, threads=threads)
                for system in (EdgeRag, *bench.peers)
                if system in GRAPHS
            }
            for _ in range(min(BUILD_ROUNDS, bench.rounds))
        ]
        found = {
            name: whole
            for name in rounds[0]
            if len(whole := [built for each in rounds if (built := each[name])]) == len(rounds)
        }
        figures += speed_index_figures.of_builds(found, threads)
    return (
        "Build: from float32 vectors to the written file",
        figures,
        ["private memory: what the process holds at most more than before, mapped files left out; vectors are mapped"],
    )


def _open(bench: Bench) -> tuple[str, list[Figure], list[str]]:
    folders = bench.folders(OPENED)
    folders |= {EdgeRagLazy.name: folders[EdgeRag.name]}
    found: dict[tuple[str, bool], list[Opened]] = {}
    states = (False, True) if hasattr(os, "posix_fadvise") else (False,)
    for number in range(bench.rounds):
        bench.tell("open", number, bench.rounds)
        for evicted in states:
            for system in OPENED:
                if system.name in folders:
                    opened = open_cold(bench.vectors, system, folders[system.name], evicted=evicted)
                    found.setdefault((system.name, evicted), []).append(opened)
    kept = [o.resident for (_, evicted), opened in found.items() for o in opened if evicted and o.resident is not None]
    notes = ["each opening in a new process, libraries loaded before the clock starts; usearch maps its file (view)"]
    if kept:
        notes.append(f"of files dropped from the cache, {max(kept):.1%} at most was still there")
    return "Open and first answer", list(speed_index_figures.of_openings(found)), notes


def _filters(bench: Bench) -> tuple[str, list[Figure], list[str]]:
    folders = bench.folders(FILTERED)
    with process_of(1) as worker:
        found = worker.submit(speed_index_search.filters, bench.vectors, folders, bench.rounds, bench.progress).result()
    note = (
        f"ours with default settings; peers with ef {speed_index_search.FILTER_EF}, hnswlib with a Python function,"
        " faiss with a bitmap; a query a call"
    )
    return "Filters", list(speed_index_figures.of_filters(found, bench.n_rows)), [note]


def _update(bench: Bench) -> tuple[str, list[Figure], list[str]]:
    with process_of(bench.threads) as worker:
        found = worker.submit(
            speed_index_updates.updates, bench.vectors, bench.work, threads=bench.threads,
            rounds=min(BUILD_ROUNDS, bench.rounds), with_peer=Hnswlib in bench.peers, progress=bench.progress,
        ).result()  # fmt: skip
    return (
        "Updates",
        list(speed_index_figures.of_updates(found)),
        [
            f"builds and merges on {bench.threads} threads, searches on one",
            "hnswlib marks removed rows and keeps their vectors; its write is the whole file, without fsync",
        ],
    )


def _damage(bench: Bench) -> tuple[str, list[Figure], list[str]]:
    n_rows = min(DAMAGED_ROWS, bench.n_rows)
    folders = bench.folders(DAMAGED, n_rows)
    edges = section_edges(folders[EdgeRag.name] / "index")
    size = edges[-1]
    found = list[speed_index_damage.Damaged]()
    for name, folder in folders.items():
        its_size = (folder / "index").stat().st_size
        its_edges = [edge * its_size // size for edge in edges]
        found += speed_index_damage.survey(bench.vectors, EVERY[name], folder, its_edges, bench.progress)
    if bench.out:
        rows = [
            {"name": d.name, "kind": d.damage.kind, "at": d.damage.at, "outcome": d.outcome, "detail": d.detail}
            for d in found
        ]
        _write_json(bench.out / "index-damage.json", rows)
    return (
        f"Damage: {speed_index_damage.N_COPIES} damaged copies of each index of {n_rows:,} rows",
        list(speed_index_figures.of_damage(found)),
        [
            "cut at (and a byte beside) each section's edge, header fields set to extremes and to sizes that wrap, single"
            " bits flipped, 4 KiB of 0xFF; at the same places, as parts of the size, in each file",
            f"each copy opened and asked {speed_index_damage.N_QUERIES} queries in a process of its own; a wrong answer"
            " differs in any id or score from that of the whole file",
        ],
    )


def _scale(bench: Bench) -> tuple[str, list[Figure], list[str]]:
    sizes = [n for decade in (1000, 10_000, 100_000) for n in (decade, 2 * decade, 5 * decade) if n < bench.n_rows]
    found, built = [], {}
    for n_rows in (*sizes, bench.n_rows):
        folders = bench.folders(SCALED, n_rows)
        built[n_rows] = bench.built[EdgeRag.name, n_rows]
        with process_of(1) as worker:
            found.append(
                worker.submit(
                    speed_index_search.scale, bench.vectors, n_rows, folders, bench.rounds, bench.progress
                ).result()
            )
    if bench.out:
        _write_json(bench.out / "index-scale.json", [asdict(size) for size in found])
        write_plot(bench.out / "index-scale.svg", *speed_index_figures.scale_plot(found))
    return (
        "Scale: a query a call, one thread",
        list(speed_index_figures.of_scale(found, built, bench.threads)),
        ["hnswlib with the smallest ef of the sweep that reaches our graph's recall with default settings"],
    )


def section_edges(file: Path) -> list[int]:
    """Return where the sections of an index file begin, and its size; the table is described in native/FORMAT.md."""
    header = file.read_bytes()[:4096]
    (n_sections,) = struct.unpack_from("<I", header, 80)
    starts = [struct.unpack_from("<IIQ", header, 88 + 32 * n)[2] for n in range(n_sections)]
    return [*sorted(set(starts)), file.stat().st_size]


def _chosen(peers: Sequence[str] | None) -> tuple[list[type[System]], list[str]]:
    """Return the peers to compare with, and a line for each that is not installed."""
    every = [system for system in EVERY.values() if not issubclass(system, EdgeRag)]
    packages = sorted({_peer_name(system) for system in every})
    for name in peers or ():
        if name not in packages:
            raise UsageError(f"there is no peer {name!r}", mend=f"choose from: {', '.join(packages)}")
    wanted = [system for system in every if peers is None or _peer_name(system) in peers]
    missing = sorted({_peer_name(system) for system in wanted if not is_installed(system)})
    return [s for s in wanted if is_installed(s)], [f"{package} is not installed, and left out" for package in missing]


def _peer_name(system: type[System]) -> str:
    return system.package.partition(".")[0]


@contextmanager
def _work_folder(work: Path | None) -> Iterator[Path]:
    if work is None:
        with tempfile.TemporaryDirectory(prefix="edge-rag-bench-") as folder:
            yield Path(folder)
    else:
        work.mkdir(parents=True, exist_ok=True)
        yield work


def _note_of(folder: Path) -> Path:
    return folder.with_suffix(".json")


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
