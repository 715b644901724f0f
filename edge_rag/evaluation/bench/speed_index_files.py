"""What it takes to build an index, and to open one: each time in a process of its own."""

import mmap
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_rag.evaluation.bench.speed_index_data import VectorSet
from edge_rag.evaluation.bench.speed_index_search import K
from edge_rag.evaluation.bench.speed_index_systems import System
from edge_rag.evaluation.processes import fresh_process, memory_of

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
WATCH_S = 0.005  # between two looks at a building process's memory


@dataclass(frozen=True, slots=True)
class Built:
    folder: Path
    wall_s: float
    cpu_s: float
    size: int  # bytes, of all files
    peak_private: int | None  # bytes more than before the build; None where the system does not tell
    peak: int | None  # of the whole process, with Python and the mapped vectors


@dataclass(frozen=True, slots=True)
class Opened:
    """One opening in a new process. Memory is what was added to it, in bytes; {} where the system does not tell."""

    first_s: float  # from the file's name to the first answer
    after_first: dict[str, int]
    after_many: dict[str, int]
    resident: float | None  # part of the file that was in memory before


@contextmanager
def process_of(threads: int) -> Iterator[ProcessPoolExecutor]:
    """Give a new process whose numeric libraries use so many threads."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        with fresh_process() as worker:
            yield worker
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def folder_of(work: Path, system: type[System], n_rows: int) -> Path:
    return work / f"{re.sub(r'[^a-z0-9]+', '-', system.name.lower())}-{n_rows}"


def build(vectors: VectorSet, system: type[System], folder: Path, *, n_rows: int, threads: int) -> Built:
    """Build in a new process, and watch its memory from here."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with process_of(threads) as worker:
        pid = worker.submit(os.getpid).result()
        before = worker.submit(_ready, system).result()
        building = worker.submit(_build, vectors, system, folder, n_rows, threads)
        peak_private = _watch(pid, building)
        wall_s, cpu_s, peak = building.result()
    private = before.get("private")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Built(folder, wall_s, cpu_s, size, peak_private - private if peak_private and private else None, peak)


def open_cold(vectors: VectorSet, system: type[System], folder: Path, *, evicted: bool) -> Opened:
    """Open in a new process and search; with the file in the system's cache, or dropped from there."""
    with process_of(1) as worker:
        return worker.submit(_open, vectors, system, folder, evicted).result()


def _watch(pid: int, building: "Future[tuple[float, float, int | None]]") -> int | None:
    peak = 0
    while not building.done():
        peak = max(peak, memory_of(pid).get("private", 0))
        time.sleep(WATCH_S)
    return peak or None


# --- what runs in processes of its own ---


def _ready(system: type[System]) -> dict[str, int]:
    system.imported()
    return memory_of()


def _build(
    vectors: VectorSet, system: type[System], folder: Path, n_rows: int, threads: int
) -> tuple[float, float, int | None]:
    base = vectors.base[:n_rows]
    start, cpu = time.perf_counter(), time.process_time()
    system(vectors.dim).build(base, folder, threads)
    return time.perf_counter() - start, time.process_time() - cpu, memory_of().get("peak")


def _open(vectors: VectorSet, system: type[System], folder: Path, evicted: bool) -> Opened:
    system.imported()
    queries = vectors.queries
    index = system(vectors.dim)
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        _evict(file) if evicted else file.read_bytes()
    resident = _resident(files)
    before = _held()
    start = time.perf_counter()
    index.open(folder)
    index.search(queries[:1], K, index.ef_default)
    first_s = time.perf_counter() - start
    after_first = _held()
    for number in range(len(queries)):
        index.search(queries[number : number + 1], K, index.ef_default)
    after_many = _held()
    return Opened(first_s, _less(after_first, before), _less(after_many, before), resident)


def _evict(file: Path) -> None:
    """Have the system write a file out and forget its pages."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _resident(files: list[Path]) -> float | None:
    """Return which part of the files is in memory (Linux), as mincore() sees it."""
    if sys.platform != "linux":
        return None
    import ctypes

    mincore = ctypes.CDLL(None, use_errno=True).mincore
    pages = held = 0
    for file in files:
        size = file.stat().st_size
        if not size:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            seen = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
            view = np.frombuffer(mapping, dtype=np.uint8)
            failed = mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), seen)
            del view
            if failed:
                return None
            pages += len(seen)
            held += sum(byte & 1 for byte in seen.raw)
    return held / pages if pages else None


def _held() -> dict[str, int]:
    """Return resident and anonymous memory of this process in bytes (Linux)."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return {}
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"resident": found["Rss"], "anonymous": found["Anonymous"]}


def _less(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}
