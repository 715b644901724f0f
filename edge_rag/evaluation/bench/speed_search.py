"""How fast a large library is searched by a cold process, and how little a changed file costs: `edge-rag bench search`.

The library holds real text. Its vectors are made up, because a search takes as long over wrong vectors as over right
ones, and 100,000 real ones take half an hour. It stays in the work folder, so the next run has it at once.
"""

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_rag.errors import DocumentError, EdgeRagError
from edge_rag.evaluation.bench.real_texts import chunk_texts, documents_in
from edge_rag.evaluation.figures import MB, Figure, Report, check_counts, figure, load_average, surroundings
from edge_rag.evaluation.processes import Run, fresh_process, run_cold
from edge_rag.evaluation.question_sets import read_rows
from edge_rag.interfaces import Embedder, Progress
from edge_rag.settings import Settings

CHUNKS_PER_FILE = 10
TOKENS_PER_CHUNK = 165  # on average, after chunking: a budget of 200 is not filled to the last
TOKENS_PER_PART = 100  # pieces that files are made of, each told apart from its copies
SAMPLE = 128  # chunks that the real embedder is timed with
ABSORB_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """A work folder."""

    folder: Path
    rows: int

    @property
    def texts(self) -> Path:
        return self.folder / f"texts-{self.rows}"

    @property
    def library(self) -> Path:
        return self.folder / f"library-{self.rows}"

    @property
    def built(self) -> Path:
        return self.folder / f"built-{self.rows}.json"


@dataclass(frozen=True, slots=True)
class Built:
    seconds: float
    n_files: int
    n_chunks: int


@dataclass(frozen=True, slots=True)
class Absorbed:
    seconds: float
    n_embedded: int


class MadeUpVectors:
    """Stands in for an embedder: its name, fingerprint and tokenizer, and random unit vectors from a seed."""

    def __init__(self, real: Embedder) -> None:
        self.name, self.dim, self.max_tokens, self.fingerprint = real.name, real.dim, real.max_tokens, real.fingerprint
        self.count_tokens = real.count_tokens
        self._random = np.random.default_rng(0)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = self._random.standard_normal((len(texts), self.dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def questions_of(source: str, limit: int) -> list[str]:
    """Return the first questions of a set in EDGE_RAG_DATA, or of a JSONL file."""
    if not source.endswith(".jsonl"):
        return [row["question"] for row in islice(read_rows(source), limit)]
    try:
        with Path(source).open(encoding="utf-8") as lines:
            return [json.loads(line)["question"] for line in islice(lines, limit)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeRagError(f"{source}: cannot be read as questions: {error}", mend="one JSON object a line") from error


def measure(
    work: Path,
    questions: Sequence[str],
    *,
    rows: int,
    docs: Path | None,
    command: str,
    progress: Progress | None = None,
) -> Report:
    """Build the library if it is not there, ask each question in a process of its own, and absorb a changed file."""
    check_counts(rows=rows)
    place, load_before = Place(work.absolute(), rows), load_average()
    place.folder.mkdir(parents=True, exist_ok=True)
    with fresh_process() as worker:  # this process stays small, see run_cold
        built = worker.submit(build, place, docs, progress).result()
    searches, helps = list[Run](), list[Run]()
    for number, question in enumerate([questions[0], *questions]):  # the first is to warm up the file cache
        if progress:
            progress("search", number, len(questions) + 1, question)
        searches.append(run_cold(["-q", "-L", str(place.library), "search", question]))
        helps.append(run_cold(["--help"]))
    absorbed, cold = list[Absorbed](), list[Absorbed]()
    for number in range(ABSORB_ROUNDS):
        if progress:
            progress("absorb", number, ABSORB_ROUNDS, "")
        with fresh_process() as worker:
            absorbed.append(worker.submit(absorb, place).result())
        cold.append(absorb_cold(place))
    with fresh_process() as worker:
        per_chunk_s = worker.submit(seconds_for_a_chunk, place).result()
    projected_s = built.seconds + built.n_chunks * per_chunk_s
    notes = [
        f"library: {built.n_chunks:,} chunks of real text in {built.n_files:,} files, vectors made up; full build"
        f" {built.seconds:.0f} s without embedding",
        f"the real full build is projected to {projected_s:,.0f} s: that, and {per_chunk_s * 1000:.1f} ms for each chunk,"
        f" measured with the real embedder on {SAMPLE} of them",
        "cold: a new process from start to end; the files are in the system's cache",
        "absorb: one of the files has changed, `sync` looks at all of them; texts embedded anew: "
        + ", ".join(str(a.n_embedded) for a in (*absorbed, *cold)),
    ]
    return Report(
        f"Search and sync: {built.n_chunks:,} chunks",
        (*_search_figures(searches[1:], helps[1:]), *_absorb_figures(absorbed, cold, built.seconds, projected_s)),
        tuple(notes),
        surroundings(command, load_before),
    )


def _search_figures(searches: Sequence[Run], helps: Sequence[Run]) -> Iterator[Figure]:
    wall = [run.wall_s for run in searches]
    yield figure("cold `edge-rag search`", "s", wall, below=0.6)
    p95 = float(np.quantile(wall, 0.95))
    yield Figure("cold `edge-rag search`, p95", "s", len(wall), p95, p95, p95)
    peaks = [run.peak_rss / MB for run in searches if run.peak_rss is not None]
    if peaks:
        yield figure("its peak memory", "MB", peaks, below=200)
    yield figure("cold `edge-rag --help`", "s", [run.wall_s for run in helps], below=0.3)


def _absorb_figures(
    absorbed: Sequence[Absorbed], cold: Sequence[Absorbed], built_s: float, projected_s: float
) -> Iterator[Figure]:
    seconds, cold_seconds = [a.seconds for a in absorbed], [a.seconds for a in cold]
    yield figure("absorb one changed file, made-up vectors", "s", seconds)
    yield figure("... of the full build", "%", [s / built_s * 100 for s in seconds], below=2)
    yield figure("cold `edge-rag sync` of one changed file, real embedder", "s", cold_seconds)
    yield figure("... of the projected full build", "%", [s / projected_s * 100 for s in cold_seconds], below=2)


# --- what runs in processes of its own ---


def build(place: Place, docs: Path | None, progress: Progress | None) -> Built:
    """Make texts and library; go on where an earlier run was stopped, or return at once what it made."""
    from edge_rag.library import Library
    from edge_rag.models import open_embedder

    before = Built(**json.loads(place.built.read_text(encoding="utf-8"))) if place.built.exists() else Built(0.0, 0, 0)
    if before.n_chunks:
        return before
    real = open_embedder(Settings().embedder)
    if not place.texts.exists():
        _write_texts(place, docs, real)
    start = time.perf_counter()
    n_files = n_chunks = 0
    try:
        with Library.open(place.library, create=True, embedder=MadeUpVectors(real)) as library:
            library.add([place.texts], progress=progress)
            stats = library.stats()
        n_files, n_chunks = stats.n_documents, stats.n_chunks
    finally:  # stopped half way, the time counts all the same
        built = Built(before.seconds + time.perf_counter() - start, n_files, n_chunks)
        place.built.write_text(json.dumps(asdict(built)), encoding="utf-8")
    return built


def absorb(place: Place) -> Absorbed:
    from edge_rag.library import Library
    from edge_rag.models import open_embedder

    embedder = MadeUpVectors(open_embedder(Settings().embedder))
    _change_a_file(place)
    start = time.perf_counter()
    with Library.open(place.library, embedder=embedder) as library:
        report = library.sync(place.texts)
    return Absorbed(time.perf_counter() - start, report.n_embedded)


def absorb_cold(place: Place) -> Absorbed:
    _change_a_file(place)
    run = run_cold(["-q", "-L", str(place.library), "sync", str(place.texts), "--json"])
    return Absorbed(run.wall_s, json.loads(run.stdout)["n_embedded"])


def seconds_for_a_chunk(place: Place) -> float:
    """Time the real embedder on chunks of this library."""
    from edge_rag.documents import embedding_text
    from edge_rag.library import Library
    from edge_rag.models import open_embedder

    embedder = open_embedder(Settings().embedder)
    with Library.open(place.library) as library:
        # Changed files have got new ids, far above the number of chunks in a small library: ids that are gone are left out.
        n = 10 * library.stats().n_chunks
        ids = random.Random(0).sample(range(1, n + 1), min(10 * SAMPLE, n))
        texts = [embedding_text(p.heading, p.text) for p in library.passages(ids)][:SAMPLE]
    embedder.embed(texts[:8])
    start = time.perf_counter()
    embedder.embed(texts)
    return (time.perf_counter() - start) / len(texts)


def _change_a_file(place: Place) -> None:
    """Say something new at a file's end."""
    file = random.choice(sorted(place.texts.rglob("*.txt")))
    with file.open("a", encoding="utf-8") as text:
        text.write(f"\n\nThis was changed for the measurement number {time.time_ns()}.\n")


def _write_texts(place: Place, docs: Path | None, embedder: Embedder) -> None:
    """Write files of about ten chunks each: the real documents over and over, with a difference in every part."""
    parts = list[tuple[str, int]]()
    with documents_in(docs) as files:
        for file in files:
            with suppress(DocumentError):
                texts = chunk_texts(file, embedder.count_tokens, TOKENS_PER_PART)
                parts += [(text, embedder.count_tokens(text)) for text in texts]
    copies = (f"Copy {copy}. {text}" for copy in count(1) for text, _ in parts)
    sizes = cycle(tokens for _, tokens in parts)
    unfinished = place.texts.with_suffix(".new")
    for number in range(max(1, round(place.rows / CHUNKS_PER_FILE))):
        lines, tokens = list[str](), 0
        while tokens < CHUNKS_PER_FILE * TOKENS_PER_CHUNK:
            lines.append(next(copies))
            tokens += next(sizes)
        file = unfinished / f"{number // 1000:03}" / f"{number:06}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    unfinished.replace(place.texts)
