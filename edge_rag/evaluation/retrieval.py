"""The corpus of a question set as a library, indexed once and kept; and the set's questions asked of it.

CACHE/corpora/KEY/library/         what the questions are asked of
CACHE/corpora/KEY/ids.json         the set's ids of each text, by the number that names its file
CACHE/corpora/KEY/texts/           the corpus as files, while it is being indexed
CACHE/corpora/KEY/COMPLETE.json    written last: the sha256 of the library's files

The key is a hash of all that the library depends on: the corpus, the embedder, how documents are read and cut, the format. So a
second run opens what the first has made; one that was killed half-way goes on, and what is damaged is made anew.
"""

import hashlib
import html
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_rag.answering.retrieve import retrieve
from edge_rag.documents import CHUNKER_VERSION, READER_VERSION
from edge_rag.errors import EdgeRagError, IntegrityError, LibraryLocked, UsageError
from edge_rag.evaluation.question_sets import Question, QuestionSet, SetPassage
from edge_rag.evaluation.run_folder import Rows, content_key
from edge_rag.interfaces import Embedder, Passage, Progress
from edge_rag.library import Library
from edge_rag.library.database import DATABASE_NAME
from edge_rag.library.generations import INDEX_FOLDER, file_sha256
from edge_rag.library.lock import writer_lock
from edge_rag.library.schema import VERSION
from edge_rag.settings import Settings, cache_dir

How = Literal["fused", "dense", "lexical"]

FORMAT = 1  # of the folder; raise it when a corpus is laid down in another way
LIBRARY, IDS, TEXTS, COMPLETE = "library", "ids.json", "texts", "COMPLETE.json"
BATCH = 256  # questions embedded together
BLOCK = 1024  # chunks read together
WAIT_S = 0.5  # between looks whether another process has finished

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Found:
    """What a search brought back for one question."""

    passages: tuple[Passage, ...]  # best first; chunks, so several may come from one passage of the set
    ids: tuple[str, ...]  # the set's id of each
    cosines: Mapping[int, float]  # by chunk id, of those that the dense search found
    question_vector: npt.NDArray[np.float32]


def library_of_set(
    question_set: QuestionSet, *, embedder: Embedder, settings: Settings, progress: Progress | None = None
) -> Library:
    """Open the library of the set's corpus; make it if it is not there. Of two processes one makes it, the other waits."""
    if not question_set.has_corpus:
        raise UsageError(
            f"{question_set.name} has no corpus to search", mend="use a set with a corpus, or with passages"
        )
    folder = cache_dir() / "corpora" / _key(question_set, embedder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_whole(folder):
        with _turn(folder, progress):
            if not _is_whole(folder):
                _make(folder, question_set, embedder, settings, progress)
    return Library.open(folder / LIBRARY, embedder=embedder, settings=settings)


def search_set(
    library: Library,
    questions: Sequence[Question],
    k: int,
    *,
    how: How = "fused",
    settings: Settings,
    progress: Progress | None = None,
) -> dict[str, Found]:
    """Return the k best chunks for each question, by its id. `library` is one that library_of_set has opened."""
    name = passage_ids(library)
    found = {}
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        vectors = library.embedder.embed([q.question for q in batch])
        for number, (q, vector) in enumerate(zip(batch, vectors, strict=True), start=start):
            if progress:
                progress("search", number, len(questions), "")
            passages, cosines = _search(library, q.question, vector, k, how, settings)
            found[q.id] = Found(passages, tuple(name(p, q) for p in passages), cosines, vector)
    if progress:
        progress("search", len(questions), len(questions), "")
    return found


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that a search brought back, as a passage of the set; several may come from one passage, and have its id."""

    passage: SetPassage
    score: float  # of the search; compare it within a question only


def search_corpus(
    question_set: QuestionSet,
    questions: Sequence[Question],
    k: int,
    *,
    how: How = "fused",
    embedder: Embedder,
    settings: Settings,
    progress: Progress | None = None,
) -> dict[str, tuple[Candidate, ...]]:
    """Return the k best candidates of the set's corpus for each question, by its id, best first."""
    with library_of_set(question_set, embedder=embedder, settings=settings, progress=progress) as library:
        found = _search_once(library, questions, k, how, settings, progress)
        name = passage_ids(library)
    return {
        question.id: tuple(
            Candidate(SetPassage(key, hit.title, hit.text, key in question.gold_ids), hit.score)
            for hit in hits
            for key in [name(hit, question)]
        )
        for question, hits in zip(questions, found, strict=True)
    }


def search_library(
    path: Path,
    questions: Sequence[Question],
    k: int,
    *,
    how: How = "fused",
    settings: Settings,
    progress: Progress | None = None,
) -> dict[str, tuple[Candidate, ...]]:
    """Search any library for each question. A candidate's id is its document and place; which one is gold, nobody knows."""
    with Library.open(path, settings=settings) as library:
        found = _search_once(library, questions, k, how, settings, progress)
    return {
        question.id: tuple(
            Candidate(
                SetPassage(f"{hit.document}:{hit.start}-{hit.end}", hit.heading or hit.title, hit.text), hit.score
            )
            for hit in hits
        )
        for question, hits in zip(questions, found, strict=True)
    }


def _search_once(
    library: Library,
    questions: Sequence[Question],
    k: int,
    how: How,
    settings: Settings,
    progress: Progress | None,
) -> list[tuple[Passage, ...]]:
    """Search for what has not been searched yet with the same library, depth and way: CACHE/candidates/KEY/hits.jsonl."""
    embedder = library.embedder
    key = content_key(FORMAT, library.fingerprint(), embedder.fingerprint, k, how, settings.candidates)
    folder = cache_dir() / "candidates" / key
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder, progress), Rows(folder / "hits.jsonl", lambda row: (row["question"], row["hits"])) as rows:
        hits: dict[str, list[tuple[int, float]]] = {row["question"]: row["hits"] for row in rows}
        new = list({q.question: q for q in questions if q.question not in hits}.values())
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            for number, (q, vector) in enumerate(
                zip(batch, embedder.embed([q.question for q in batch]), strict=True), start=start + 1
            ):
                found, _ = _search(library, q.question, vector, k, how, settings)
                hits[q.question] = [(hit.chunk_id, hit.score) for hit in found]
                rows.add({"question": q.question, "hits": hits[q.question]})
                if progress:
                    progress("search", number, len(new), "")
    return [_passages_of(library, hits[q.question]) for q in questions]


def _passages_of(library: Library, hits: Sequence[tuple[int, float]]) -> tuple[Passage, ...]:
    scores = dict(hits)
    return tuple(replace(p, score=scores[p.chunk_id]) for p in library.passages(scores))


def passage_ids(library: Library) -> Callable[[Passage, Question], str]:
    """Return what tells the set's id of a chunk. Where the set has the text under several ids, one is as good as another: a
    gold one is named."""
    ids_of: list[list[str]] = json.loads((library.path.parent / IDS).read_text(encoding="utf-8"))

    def name(chunk: Passage, question: Question) -> str:
        ids = ids_of[int(Path(chunk.document).stem)]
        return next((id for id in ids if id in question.gold_ids), ids[0])

    return name


def all_chunks(library: Library) -> list[Passage]:
    """Return the chunks of a library that library_of_set has made; from such a one nothing was ever removed."""
    n_chunks = library.stats().n_chunks
    blocks = (range(start, min(start + BLOCK, n_chunks + 1)) for start in range(1, n_chunks + 1, BLOCK))
    return [chunk for block in blocks for chunk in library.passages(block)]


def _search(
    library: Library, question: str, vector: npt.NDArray[np.float32], k: int, how: How, settings: Settings
) -> tuple[tuple[Passage, ...], dict[int, float]]:
    match how:
        case "fused":
            retrieval = retrieve(library, question, k, candidates=settings.candidates, vector=vector)
            return retrieval.passages, retrieval.cosines
        case "dense":
            passages = library.dense(vector, k)
            return tuple(passages), {p.chunk_id: p.score for p in passages}
        case "lexical":
            return tuple(library.lexical(question, k)), {}


# --- making a library ---


def _key(question_set: QuestionSet, embedder: Embedder, settings: Settings) -> str:
    sha256 = question_set.sha256 if question_set.corpus is None else file_sha256(question_set.corpus)
    versions = (FORMAT, VERSION, READER_VERSION, CHUNKER_VERSION)
    depends_on = f"{sha256} {embedder.fingerprint} {settings.chunk_tokens} {versions}"
    return hashlib.sha256(depends_on.encode()).hexdigest()[:32]


@contextmanager
def _turn(folder: Path, progress: Progress | None) -> Iterator[None]:
    """Hold the folder's lock; wait while another process or thread has it."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(writer_lock(folder, "edge-rag eval"))
                break
            except LibraryLocked as error:
                if progress:
                    progress("wait", 0, 0, error.message)
                time.sleep(WAIT_S)
        yield


def _make(
    folder: Path, question_set: QuestionSet, embedder: Embedder, settings: Settings, progress: Progress | None
) -> None:
    """Make the library, or go on where a killed process has stopped."""
    if (folder / COMPLETE).exists():  # and yet it is not whole
        shutil.rmtree(folder / LIBRARY, ignore_errors=True)
        (folder / COMPLETE).unlink()
    _write(folder / IDS, json.dumps(_write_texts(folder / TEXTS, question_set.read_corpus())))
    try:
        _index(folder, embedder, settings, progress)
    except IntegrityError:
        shutil.rmtree(folder / LIBRARY)
        _index(folder, embedder, settings, progress)
    shutil.rmtree(folder / TEXTS)
    _write(folder / COMPLETE, json.dumps(_checksums(folder), indent=1))


def _write_texts(folder: Path, corpus: Iterable[SetPassage]) -> list[list[str]]:
    """Write each text to a file once; return the ids of those that have it, by the number in the file's name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    ids: list[list[str]] = []
    numbers: dict[bytes, int] = {}
    for passage in corpus:
        page = _page(passage)
        number = numbers.setdefault(hashlib.sha256(page).digest(), len(ids))
        if number == len(ids):
            ids.append([])
            (folder / f"{number:07}.html").write_bytes(page)
        ids[number].append(passage.id)
    return ids


def _page(passage: SetPassage) -> bytes:
    """Write a passage as a document. In HTML, unlike in Markdown, any text can be said so that it is read as it stands."""
    title, text = (html.escape(_CONTROL.sub(" ", part).strip(), quote=False) for part in (passage.title, passage.text))
    lines = ["<!doctype html>", '<meta charset="utf-8">', f"<title>{title}</title>"]
    lines += [f"<h1>{title}</h1>"] if title else []
    lines += [f"<p>{line}</p>" for line in text.splitlines() if line.strip()]
    return "\n".join(lines).encode(errors="replace")


def _index(folder: Path, embedder: Embedder, settings: Settings, progress: Progress | None) -> None:
    with Library.open(folder / LIBRARY, create=True, embedder=embedder, settings=settings) as library:
        report = library.add([folder / TEXTS], progress=progress)
    if report.problems:
        problem = report.problems[0]
        raise EdgeRagError(
            f"{len(report.problems)} passages of the corpus cannot be read, the first: {problem.reason}",
            mend=f"look at {problem.path}",
        )


def _checksums(folder: Path) -> dict[str, str]:
    """Return what proves that the library is as it was made."""
    files = [folder / IDS, folder / LIBRARY / DATABASE_NAME, *sorted((folder / LIBRARY / INDEX_FOLDER).rglob("*.*"))]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / COMPLETE).read_text(encoding="utf-8")) == _checksums(folder))
    except (OSError, ValueError):
        return False


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
