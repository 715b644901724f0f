"""Fit and measure the order of sentences: `edge-rag bench extract`.

How often do the first one, two and three sentences hold an answer string, for questions of squad asked of its 2,067 paragraphs?
Weights are fitted on train questions, figures are those of dev questions, beside the order by cosine alone.
"""

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from edge_rag.answering import nearest
from edge_rag.evaluation.bench.abstention import train_and_dev
from edge_rag.evaluation.figures import Figure, Report, check_counts, interval, load_average, surroundings
from edge_rag.evaluation.question_sets import Question, is_dev, load_set
from edge_rag.evaluation.retrieval import library_of_set, search_set
from edge_rag.interfaces import Embedder, Progress
from edge_rag.library import Library
from edge_rag.settings import Settings

WEIGHT_SLACK = 0.5


@dataclass(frozen=True, slots=True)
class Example:
    fits: npt.NDArray[np.float64]  # (n_sentences, n_signals)
    held: npt.NDArray[np.bool_]  # (n_sentences,): holds an answer string
    dev: bool


def measure(
    embedder: Embedder, settings: Settings, *, limit: int, command: str, progress: Progress | None = None
) -> Report:
    """Fit on at most `limit` train questions, measure on as many dev questions."""
    check_counts(limit=limit)
    load_before = load_average()
    with library_of_set(load_set("squad/dev"), embedder=embedder, settings=settings, progress=progress) as library:
        examples = _examples(library, settings, limit, progress)
    train, dev = [e for e in examples if not e.dev], [e for e in examples if e.dev]
    weights = fit(train)
    figures = []
    for name, order in (("cosine alone", np.eye(len(weights))[0]), ("shipped weights", np.array(nearest.WEIGHTS))):
        for k in (1, 2, 3):
            figures.append(interval(f"first {k}, {name}: hold the answer", _hits(order, dev, k)))
    figures += [
        Figure(f"weight of {name}", "", len(train), w, w, w, f"shipped: {s:g}", abs(w - s) <= WEIGHT_SLACK)
        for name, w, s in zip(nearest.Fit.__dataclass_fields__, weights.tolist(), nearest.WEIGHTS, strict=True)
    ]
    notes = [
        f"weights fitted on {len(train):,} train questions, figures of {len(dev):,} dev questions with 95% intervals"
    ]
    return Report("Sentences that hold the answer", tuple(figures), tuple(notes), surroundings(command, load_before))


def fit(examples: list[Example]) -> npt.NDArray[np.float64]:
    """Maximise the probability, by a softmax over a question's sentences, of those that hold the answer."""
    weights = np.zeros(examples[0].fits.shape[1])
    usable = [e for e in examples if e.held.any() and not e.held.all()]
    for _ in range(1500):
        gradient = -0.01 * weights  # a light ridge
        for e in usable:
            scores = e.fits @ weights
            p = np.exp(scores - np.max(scores))
            p /= np.sum(p)
            q = p * e.held
            gradient += e.fits.T @ (q / np.sum(q) - p)
        weights += 4.0 / len(usable) * gradient
    return weights


def _examples(library: Library, settings: Settings, limit: int, progress: Progress | None) -> list[Example]:
    rows = train_and_dev("squad/dev_questions", limit, limit)
    questions = [Question(row["id"], row["question"], ()) for row in rows]
    searched = search_set(library, questions, settings.passages, settings=settings, progress=progress)
    examples = []
    for done, row in enumerate(rows, start=1):
        question, found = row["question"], searched[row["id"]]
        kept = found.passages
        rank_of = {p.chunk_id: rank for rank, p in enumerate(kept)}
        ranked = nearest.rank_sentences(question, kept, found.question_vector, library.embedder)
        fits = [
            astuple(nearest.fit_of(question, s.text, s.passage.heading, s.cosine, rank_of[s.passage.chunk_id]))
            for s in ranked
        ]
        held = [any(answer.lower() in s.text.lower() for answer in row["answers"]) for s in ranked]
        if ranked:
            examples.append(Example(np.array(fits), np.array(held), is_dev(question)))
        if progress:
            progress("questions", done, len(rows), "squad")
    return examples


def _hits(weights: npt.NDArray[np.float64], examples: list[Example], k: int) -> npt.NDArray[np.bool_]:
    return np.array([e.held[np.argsort(-(e.fits @ weights), kind="stable")[:k]].any() for e in examples])
