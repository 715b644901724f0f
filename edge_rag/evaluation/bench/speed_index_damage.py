"""What damaged index files do: every kind of damage that a disk, a cut-off copy or a bad stick brings about.

Each copy is opened and searched in a process of its own kind, which may crash or hang without harm.
"""

import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np

from edge_rag.errors import EdgeRagError
from edge_rag.evaluation.bench.speed_index_data import Floats, VectorSet
from edge_rag.evaluation.bench.speed_index_search import K
from edge_rag.evaluation.bench.speed_index_systems import EdgeRag, Found, System
from edge_rag.interfaces import Progress

Outcome = Literal["right answer", "error", "wrong answer", "crash", "hang"]
OUTCOMES: tuple[Outcome, ...] = ("right answer", "error", "wrong answer", "crash", "hang")
N_COPIES = 200
N_QUERIES, EF = 100, 64
TIMEOUT_S = 30.0
MOST_MEMORY = 8 << 30  # that an opening may ask for, lest a damaged size fills the machine
HEADER_BYTES = 128  # of which each 8 are set to extreme values
RUN_OF_FF = 4096
WRAPPING = (2**61 + 1, 2**62, 2**63, 2**64 - 1)  # as a count of 8-byte values, their size wraps around 2^64
EXTREME = (0, 1, 2**31 - 1, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class Damage:
    """Cut a file at `at`, or write `put` over what stands there."""

    kind: str
    at: int
    put: bytes | None = None

    def do(self, file: Path) -> None:
        with file.open("r+b") as opened:
            if self.put is None:
                opened.truncate(self.at)
            else:
                opened.seek(self.at)
                opened.write(self.put)


@dataclass(frozen=True, slots=True)
class Damaged:
    name: str
    damage: Damage
    outcome: Outcome
    detail: str  # the error's text, or the signal


def damages(file: Path, system: System, edges: Sequence[int]) -> list[Damage]:
    """Choose the damage to one file: the same places, as parts of its size, for every file with as many edges."""
    content = file.read_bytes()
    size = len(content)
    cuts = sorted({min(max(edge + by, 0), size - 1) for edge in (0, *edges, size) for by in (-1, 0, 1)})
    found = [Damage("cut at a section's edge", at) for at in cuts]
    chance = random.Random(0)
    header = system.header_at(content)
    words = [
        Damage("header field set to an extreme", header + at, struct.pack("<Q", value))
        for at in range(0, HEADER_BYTES, 8)
        for value in (*EXTREME, *WRAPPING)
    ]
    found += chance.sample(words, 60)
    n_flips = (N_COPIES - len(found)) * 2 // 3
    for _ in range(n_flips):
        at = int(chance.random() * size)
        found.append(Damage("one bit flipped", at, bytes([content[at] ^ 1 << chance.randrange(8)])))
    while len(found) < N_COPIES:
        at = int(chance.random() * max(0, size - RUN_OF_FF))
        found.append(Damage("4 KiB of 0xFF", at, b"\xff" * RUN_OF_FF))
    return found


def survey(
    vectors: VectorSet, system: type[System], folder: Path, edges: Sequence[int], progress: Progress | None
) -> list[Damaged]:
    """Damage copies of an index of one file, and see what becomes of a search in each."""
    found = list[Damaged]()
    todo = damages(folder / "index", system(vectors.dim), edges)
    while len(found) < len(todo):
        with _Victim(vectors, system, folder) as victim:
            for damage in todo[len(found) :]:
                if progress:
                    progress(f"damage to {system.name}", len(found), len(todo), damage.kind)
                outcome, detail = victim.suffer(damage)
                found.append(Damaged(system.name, damage, outcome, detail))
                if outcome in ("crash", "hang"):
                    break
    return found


def counts(found: Sequence[Damaged]) -> Counter[Outcome]:
    return Counter(damaged.outcome for damaged in found)


class _Victim:
    """A process that opens and searches damaged copies, one after the other, as long as it lives."""

    def __init__(self, vectors: VectorSet, system: type[System], folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._copy = Path(tempfile.mkdtemp(prefix="damaged-", dir=folder.parent))
        arguments = (theirs, vectors, system, folder, self._copy)
        self._process = context.Process(target=_suffer_all, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._ours.recv()  # ready, with the right answers
        except EOFError as error:
            raise EdgeRagError(f"{system.name} dies of its own undamaged file {folder}") from error

    def suffer(self, damage: Damage) -> tuple[Outcome, str]:
        self._ours.send(damage)
        if not self._ours.poll(TIMEOUT_S):
            return "hang", f"no answer within {TIMEOUT_S:.0f} s"
        try:
            return self._ours.recv()  # type: ignore[no-any-return]
        except EOFError:
            self._process.join()
            code = self._process.exitcode or 0
            return "crash", signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def __enter__(self) -> "_Victim":
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._copy, ignore_errors=True)


# --- what runs in the victim's process ---


def _suffer_all(pipe: Connection, vectors: VectorSet, system: type[System], folder: Path, copy: Path) -> None:
    _be_quiet_and_frugal()
    queries = vectors.queries[:N_QUERIES]
    right = _answers(system, queries, folder)
    try:
        pipe.send("ready")
        while True:
            damage: Damage = pipe.recv()
            shutil.copyfile(folder / "index", copy / "index")
            damage.do(copy / "index")
            pipe.send(_outcome(system, queries, copy, right))
    except EOFError:  # the parent has seen enough
        pass


def _outcome(system: type[System], queries: Floats, copy: Path, right: list[Found]) -> tuple[Outcome, str]:
    try:
        answers = _answers(system, queries, copy)
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"
    same = all(
        np.array_equal(rows, right_rows) and np.array_equal(scores, right_scores)
        for (rows, scores), (right_rows, right_scores) in zip(answers, right, strict=True)
    )
    return ("right answer", "") if same else ("wrong answer", "")


def _answers(system: type[System], queries: Floats, folder: Path) -> list[Found]:
    index = system(queries.shape[1])
    index.open(folder)
    found = [index.search(queries, K, EF)]
    if isinstance(index, EdgeRag):
        found.append(index.scan(queries, K))
    return found


def _be_quiet_and_frugal() -> None:
    """Keep what a crashing library says off the terminal, and a damaged size from taking the machine's memory."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
