"""How well the library finds passages, beside what people use otherwise: `edge-rag eval search`.

All rank the same corpus for the same questions, and are judged by passages: where several chunks of one were found, the first
counts. The peers: bm25s with its own tokenizer, over whole passages (title and text), without and with PyStemmer's stemming;
and the embedder that ours was quantised from, over our chunks, with exact search.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rag.answering.retrieve import retrieve
from edge_rag.documents import embedding_text
from edge_rag.errors import UsageError
from edge_rag.evaluation.bench.speed_ingest import embed_fp32
from edge_rag.evaluation.figures import Figure, Report, figure, load_average, surroundings
from edge_rag.evaluation.intervals import mean_interval, paired_bootstrap
from edge_rag.evaluation.question_sets import Question, QuestionSet, SetPassage
from edge_rag.evaluation.retrieval import How, all_chunks, library_of_set, passage_ids, search_set
from edge_rag.evaluation.scoring import score_retrieval
from edge_rag.interfaces import Embedder, Passage, Progress
from edge_rag.library import Library
from edge_rag.library.generations import file_sha256
from edge_rag.models.cores import usable_cores
from edge_rag.settings import Settings

METRICS = {  # by scoring's names
    "ndcg@10": "nDCG@10",
    "recall@1": "recall@1",
    "recall@5": "recall@5",
    "recall@20": "recall@20",
    "mrr": "MRR",
    "answer_recall@5": "answer recall@5",
}
COMPARED = ("ndcg@10", "recall@5")  # of fused with the best peer
OURS: dict[str, How] = {"words": "lexical", "vectors": "dense", "fused": "fused"}
FUSED = "fused"
PEERS = ("bm25s", "fp32")
K1, B = 1.5, 0.75  # the defaults of bm25s
TIMED = 50  # questions asked one at a time
BLOCK = 1024  # chunks embedded between two words of progress

Ids = tuple[str, ...]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    rank: Callable[[Sequence[Question]], dict[str, Ids]]  # passages, best first, by question
    once: Callable[[str], object]  # one question, from its text to the ranking


def measure(
    sets: Sequence[QuestionSet],
    *,
    k: int,
    peers: Sequence[str],
    fp32: Path | None,
    embedder: Embedder,
    settings: Settings,
    command: str,
    progress: Progress | None = None,
) -> Report:
    """Rank k passages for each question of each set. `fp32`: the ONNX file that the peer fp32 needs."""
    _check(sets, peers, fp32)
    load_before = load_average()
    by_row: dict[str, list[Figure]] = {}
    for question_set in sets:
        asked = [q for q in question_set.questions if q.gold_ids]
        with library_of_set(question_set, embedder=embedder, settings=settings, progress=progress) as library:
            corpus = {passage.id: passage for passage in question_set.read_corpus()}
            contestants = [_ours(name, how, library, settings, k, progress) for name, how in OURS.items()]
            contestants += _bm25s(corpus, k) if "bm25s" in peers else []
            contestants += [_fp32(fp32, library, settings, k, progress)] if fp32 and "fp32" in peers else []
            scores = {c.name: _scores(c.rank(asked), asked, corpus, k) for c in contestants}
            label = f"{question_set.name}, {len(corpus):,} passages"
            for row, figures in [*_rows(scores, k), ("ms per question", _times(contestants, asked[:TIMED]))]:
                by_row.setdefault(row, []).extend(
                    replace(f, name=f"{row}, {label}, n = {f.n}: {f.name}") for f in figures
                )
    figures = [f for figures in by_row.values() for f in figures]
    return Report("Search", tuple(figures), tuple(_notes(peers, k)), surroundings(command, load_before))


def _check(sets: Sequence[QuestionSet], peers: Sequence[str], fp32: Path | None) -> None:
    for question_set in sets:
        if not any(q.gold_ids for q in question_set.questions):
            raise UsageError(f"{question_set.name} does not say which passages are right", mend="leave it out")
    for peer in peers:
        if peer not in PEERS:
            raise UsageError(f"there is no peer {peer!r}", mend=f"use {' or '.join(PEERS)}")
    if "bm25s" in peers and find_spec("bm25s") is None:
        raise UsageError("bm25s is not installed", mend="pip install bm25s PyStemmer, or leave it out of --peers")
    if "fp32" in peers and (fp32 is None or not fp32.is_file()):
        raise UsageError(
            "the peer fp32 needs the embedder's fp32 file",
            mend="make one with python -m edge_rag.export.embedder_fp32, and name it with --fp32",
        )


# --- the contestants ---


def _ours(name: str, how: How, library: Library, settings: Settings, k: int, progress: Progress | None) -> Contestant:
    chunks = max(k, settings.candidates)

    def rank(questions: Sequence[Question]) -> dict[str, Ids]:
        found = search_set(library, questions, chunks, how=how, settings=settings, progress=progress)
        return {id: f.ids for id, f in found.items()}

    def once(question: str) -> object:
        match how:
            case "lexical":
                return library.lexical(question, chunks)
            case "dense":
                return library.dense(question, chunks)
            case "fused":
                return retrieve(library, question, chunks, candidates=settings.candidates)

    return Contestant(name, rank, once)


def _bm25s(corpus: Mapping[str, SetPassage], k: int) -> list[Contestant]:
    """Follow the README of bm25s: its tokenizer, English stop words, its defaults; stemming where PyStemmer is there."""
    import bm25s

    ids, texts = [*corpus], [f"{p.title} {p.text}".strip() for p in corpus.values()]

    def contestant(name: str, stemmer: Any) -> Contestant:
        def tokens(texts: list[str]) -> Any:
            return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)

        index = bm25s.BM25(k1=K1, b=B)
        index.index(tokens(texts), show_progress=False)

        def once(question: str) -> Ids:
            places, scores = index.retrieve(tokens([question]), k=min(k, len(ids)), show_progress=False)
            return tuple(ids[place] for place, score in zip(places[0], scores[0], strict=True) if score > 0)

        return Contestant(name, lambda questions: {q.id: once(q.question) for q in questions}, once)

    found = [contestant("bm25s", None)]
    if find_spec("Stemmer") is not None:
        import Stemmer

        found.append(contestant("bm25s, stemmed", Stemmer.Stemmer("english")))
    return found


def _fp32(model: Path, library: Library, settings: Settings, k: int, progress: Progress | None) -> Contestant:
    chunks = all_chunks(library)
    vectors = _fp32_vectors(model, library, chunks, settings.threads, progress)
    n_best = min(len(chunks), max(k, settings.candidates))
    names = passage_ids(library)

    def search(vector: Floats) -> list[int]:
        cosines = vectors @ vector
        best = np.argpartition(-cosines, n_best - 1)[:n_best]
        return [int(i) for i in best[np.argsort(-cosines[best], kind="stable")]]

    def rank(questions: Sequence[Question]) -> dict[str, Ids]:
        asked = _embed_fp32(model, settings.threads, [q.question for q in questions])
        return {
            q.id: tuple(names(chunks[place], q) for place in search(vector))
            for q, vector in zip(questions, asked, strict=True)
        }

    return Contestant(
        "fp32 vectors", rank, lambda question: search(_embed_fp32(model, settings.threads, [question])[0])
    )


def _fp32_vectors(
    model: Path, library: Library, chunks: Sequence[Passage], threads: int, progress: Progress | None
) -> Floats:
    """Return the chunks' vectors, embedded once and kept beside the library."""
    path = library.path.parent / f"{file_sha256(model)[:16]}.npy"
    if path.is_file():
        try:
            kept: Floats = np.load(path)
            if len(kept) == len(chunks):
                return kept
        except (OSError, ValueError):
            pass  # cut off by a kill
    texts = [embedding_text(chunk.heading, chunk.text) for chunk in chunks]
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # alike in length: little padding
    vectors = np.empty((len(texts), library.embedder.dim), dtype=np.float32)
    for start in range(0, len(order), BLOCK):
        if progress:
            progress("embed with fp32", start, len(order), "")
        places = order[start : start + BLOCK]
        vectors[places] = _embed_fp32(model, threads, [texts[place] for place in places])
    np.save(path, vectors)
    return vectors


def _embed_fp32(model: Path, threads: int, texts: Sequence[str]) -> Floats:
    vectors = embed_fp32(model, usable_cores(threads), texts).vectors
    assert vectors is not None
    return vectors


# --- the figures ---


def _scores(
    rankings: Mapping[str, Ids], questions: Sequence[Question], corpus: Mapping[str, SetPassage], k: int
) -> list[dict[str, float]]:
    scores = []
    for question in questions:
        passages = list(dict.fromkeys(rankings[question.id]))[:k]
        scores.append(score_retrieval(question, [corpus[id] for id in passages]))
    return scores


def _rows(scores: Mapping[str, list[dict[str, float]]], k: int) -> list[tuple[str, list[Figure]]]:
    """Return a row for each metric, and what fused has more than each of the others of the metrics in COMPARED."""
    rows = []
    for metric, label in METRICS.items():
        if int(metric.partition("@")[2] or 0) > k:
            continue
        values = {name: [s[metric] for s in of_one if metric in s] for name, of_one in scores.items()}
        if not values[FUSED]:
            continue  # the set has no answers
        means = {name: mean_interval(of_one) for name, of_one in values.items()}
        rows.append((label, [Figure(name, "", m.n, m.value, m.low, m.high) for name, m in means.items()]))
        if metric in COMPARED:
            others = {name: paired_bootstrap(of_one, values[FUSED]) for name, of_one in values.items() if name != FUSED}
            rows.append(
                (
                    f"{label}, fused minus this",
                    [Figure(name, "", d.n, d.value, d.low, d.high, f"p = {d.p:.2g}") for name, d in others.items()],
                )
            )
    return rows


def _times(contestants: Sequence[Contestant], questions: Sequence[Question]) -> list[Figure]:
    """Take turns question by question: what else the machine does disturbs all alike."""
    laps: dict[str, list[float]] = {c.name: [] for c in contestants}
    for contestant in contestants:
        contestant.once(questions[0].question)  # to warm up
    for question in questions:
        for contestant in contestants:
            start = time.perf_counter()
            contestant.once(question.question)
            laps[contestant.name].append((time.perf_counter() - start) * 1000)
    return [figure(name, "ms", of_one) for name, of_one in laps.items()]


def _notes(peers: Sequence[str], k: int) -> list[str]:
    notes = [
        f"judged by passages, the first {k} of each ranking; means with 95% intervals, times are medians with their range",
        "FTS5's BM25 has k1 = 1.2 and b = 0.75, porter stemming, and the heading counts twice",
    ]
    if "bm25s" in peers:
        notes.append(
            f"bm25s {version('bm25s')}: k1 = {K1}, b = {B}, Lucene's variant, its own tokenizer and English stop words, over"
            " title and text of whole passages; its time is without reading the passages' texts"
        )
    if "fp32" in peers:
        notes.append(
            "fp32 vectors: the embedder before its quantisation, over the library's chunks, exact search in numpy"
        )
    return notes
