"""Fit and measure the abstention rule: `edge-rag bench abstain`.

Weights and threshold are fitted on the train part, error rates are measured on the dev part. Three kinds of question that
must be refused are told apart, because they are of very different difficulty:
near     squad2: the paragraph is about the thing, the answer is not in it (written to fool readers: similarity cannot tell)
partial  hotpotqa/fullwiki: two passages are needed, and the retriever that made the set missed one
foreign  natural questions asked of the squad2 corpus: the documents are about something else
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rag.answering import evidence
from edge_rag.answering.nearest import rank_sentences
from edge_rag.evaluation.figures import Figure, interval
from edge_rag.evaluation.logistic import equal_error, fit_logistic
from edge_rag.evaluation.question_sets import Question, is_dev, load_set, read_rows
from edge_rag.evaluation.retrieval import library_of_set, search_set
from edge_rag.interfaces import Embedder, Passage, Progress, Selector
from edge_rag.library import Library
from edge_rag.settings import Settings


@dataclass(frozen=True, slots=True)
class Example:
    kind: str  # "answerable" or one of the kinds above
    source: str  # the question set
    held: bool  # the passages hold the answer: what the rule is fitted to
    dev: bool
    signals: evidence.Signals
    sure: float | None = None  # how sure the selector is, where there is one that can tell


@dataclass(frozen=True, slots=True)
class Fit:
    weights: tuple[float, ...]
    threshold: float
    auc_dev: float
    rates: tuple[Figure, ...]  # how often it goes wrong on dev


def collect(
    embedder: Embedder,
    settings: Settings,
    *,
    limit: int,
    selector: Selector | None = None,
    progress: Progress | None = None,
) -> list[Example]:
    """Run the runtime's own retrieval for at most `limit` questions of each set and part, and measure the signals.

    A selector is asked about all candidates: how sure it is was calibrated when it was exported.
    """
    with library_of_set(load_set("squad2"), embedder=embedder, settings=settings, progress=progress) as library:
        return [
            *_asked_of(library, settings, limit, selector, progress),
            *_hotpot(embedder, settings, limit, selector, progress),
        ]


def fit(examples: Sequence[Example]) -> Fit:
    """Fit weights and threshold on train examples, measure on dev ones."""
    return _fit(examples, _signals)


def fit_both(examples: Sequence[Example]) -> Fit:
    """Do so with one signal more: how sure the selector is, as log-odds."""
    return _fit(examples, _signals_and_sure)


def _fit(examples: Sequence[Example], matrix: "_Matrix") -> Fit:
    train = [e for e in examples if not e.dev]
    dev = [e for e in examples if e.dev]
    weights = fit_logistic(
        matrix(train), np.array([e.held for e in train]), _balance([e.source + e.kind for e in train])
    )
    train_scores, dev_scores = (1 / (1 + np.exp(-(matrix(part) @ weights))) for part in (train, dev))
    # The other kinds are left out: a threshold that refused most of them would refuse every second good question, too.
    threshold = equal_error(
        train_scores[[e.kind == "answerable" for e in train]], train_scores[[e.kind == "foreign" for e in train]]
    )
    auc = _auc(dev_scores, np.array([e.held for e in dev]))
    rates = tuple(error_rates(dev, dev_scores, threshold))
    return Fit(tuple(round(float(w), 3) for w in weights), round(float(threshold), 3), auc, rates)


def error_rates(examples: Sequence[Example], scores: npt.NDArray[np.float64], threshold: float) -> Iterator[Figure]:
    """Say how often each kind of question is refused or answered wrongly."""
    for source in sorted({e.source for e in examples}):
        for kind in ("answerable", "near", "partial", "foreign"):
            chosen = np.array([e.source == source and e.kind == kind for e in examples])
            if chosen.any():
                refused = scores[chosen] < threshold
                wrong = refused if kind == "answerable" else ~refused
                what = "wrongly refused" if kind == "answerable" else "wrongly answered"
                yield interval(f"{source}, {kind}: {what}", wrong)


def by_selector(examples: Sequence[Example], threshold: float) -> Iterator[Figure]:
    """Measure on dev, as the rule's decisions are, the selector's, and those of both together."""
    dev = [e for e in examples if e.dev and e.sure is not None]
    sure = np.array([e.sure for e in dev], dtype=float)
    for found in error_rates(dev, sure, threshold):
        yield replace(found, name=f"selector: {found.name}")
    auc = _auc(sure, np.array([e.held for e in dev]))
    yield Figure("selector: AUC: the passages hold the answer", "", len(dev), auc, auc, auc)
    both = fit_both(examples)
    for found in both.rates:
        yield replace(found, name=f"both: {found.name}")
    yield Figure("both: AUC: the passages hold the answer", "", len(dev), both.auc_dev, both.auc_dev, both.auc_dev)


def _asked_of(
    library: Library, settings: Settings, limit: int, selector: Selector | None, progress: Progress | None
) -> list[Example]:
    """squad2's questions, and foreign ones, asked of the squad2 corpus."""
    asked = [("squad2", row) for row in train_and_dev("squad2/questions", limit)]
    asked += [("nq_gold", row) for row in train_and_dev("nq_gold/questions", limit // 2)]
    questions = [Question(row["id"], row["question"], (), gold_ids=tuple(row.get("gold_ids", ()))) for _, row in asked]
    depth = max(settings.passages, settings.candidates) if selector else settings.passages
    searched = search_set(library, questions, depth, settings=settings, progress=progress)
    examples = []
    for done, (source, row) in enumerate(asked, start=1):
        question, found = row["question"], searched[row["id"]]
        kept = found.passages[: settings.passages]
        sentences = rank_sentences(question, kept, found.question_vector, library.embedder)
        kind = "foreign" if source == "nq_gold" else "answerable" if row["answerable"] else "near"
        held = kind == "answerable" and not set(row["gold_ids"]).isdisjoint(found.ids[: settings.passages])
        signals = evidence.signals(question, kept, sentences, found.cosines)
        sure = selector.select(question, found.passages).confidence if selector else None
        examples.append(Example(kind, source, held, is_dev(question), signals, sure))
        if progress:
            progress("questions", done, len(asked), source)
    return examples


def _hotpot(
    embedder: Embedder, settings: Settings, limit: int, selector: Selector | None, progress: Progress | None
) -> list[Example]:
    """hotpotqa/fullwiki brings its own ten retrieved passages; the nearest are kept."""
    rows = train_and_dev("hotpotqa/fullwiki", limit)
    examples = []
    for done, row in enumerate(rows, start=1):
        question = row["question"]
        texts = [f"{p['title']}\n{p['text']}" for p in row["passages"]]
        vector = embedder.embed([question])[0]
        cosines = dict(enumerate((embedder.embed(texts) @ vector).tolist()))
        passages = [
            Passage(i, i, p["id"], p["title"], p["title"], None, 0, len(p["text"]), p["text"], cosines[i])
            for i, p in enumerate(row["passages"])
        ]
        ranked = sorted(passages, key=lambda p: -p.score)
        kept = ranked[: settings.passages]
        held_titles = {p["title"] for p in row["passages"]}
        complete = all(title in held_titles for title in row["gold_titles"])
        held = complete and all(title in {p.title for p in kept} for title in row["gold_titles"])
        sentences = rank_sentences(question, kept, vector, embedder)
        signals = evidence.signals(question, kept, sentences, cosines)
        kind = "answerable" if complete else "partial"
        sure = selector.select(question, ranked).confidence if selector else None
        examples.append(Example(kind, "hotpotqa/fullwiki", held, is_dev(question), signals, sure))
        if progress:
            progress("questions with their own passages", done, len(rows), "hotpotqa/fullwiki")
    return examples


def train_and_dev(name: str, n_train: int, n_dev: int | None = None) -> list[dict[str, Any]]:
    """Return at most so many train rows and dev rows, drawn with a fixed seed; all dev rows if n_dev is None."""
    rows = list(read_rows(name))
    chosen = []
    for part, n in ((False, n_train), (True, n_dev)):
        of_part = [row for row in rows if is_dev(row["question"]) is part]
        chosen += [of_part[i] for i in sorted(np.random.default_rng(0).permutation(len(of_part))[:n])]
    return chosen


_Matrix = Callable[[Sequence[Example]], npt.NDArray[np.float64]]


def _signals(examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    return np.array([[1.0, *astuple(e.signals)] for e in examples])


def _signals_and_sure(examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    sure = np.clip([e.sure or 0.0 for e in examples], 1e-6, 1 - 1e-6)
    return np.column_stack([_signals(examples), np.log(sure / (1 - sure))])


def _balance(groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """Weigh examples so that each kind counts the same, however many it has."""
    names, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return (len(groups) / (len(names) * counts))[index]


def _auc(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    above = scores[positive][:, None] - scores[~positive][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
