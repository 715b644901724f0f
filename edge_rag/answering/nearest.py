"""The sentences of the passages that most likely hold the answer.

Cosine alone likes sentences that sound like the question. The answer more often stands in one that also shares the question's
words and brings what is asked for: a figure for "how many" and "when", a name for "who" and "where".
"""

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from edge_rag.answering.words import content_words, is_exact, names, words
from edge_rag.documents import sentence_spans
from edge_rag.interfaces import Embedder, Passage

MAX_SENTENCES = 48  # scored for one question: it bounds the time
FEWEST_WORDS = 3  # shorter ones are labels


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a sentence fits a question; each between 0 and 1."""

    cosine: float
    covered: float  # share of the question's content words that it holds, or the headings above it
    said: float  # the same without the headings
    brings_figure: float  # 1 if a figure is asked for and it has one that the question has not
    brings_name: float  # 1 if a name is asked for and it has one that the question has not
    passage_rank: float  # 1 for the best passage, 1/2 for the second ...


# Fitted by `edge-rag bench extract` on train questions of squad.
WEIGHTS = (6.26, 3.07, 3.07, 1.94, 2.40, 2.20)

_WANTS_FIGURE = re.compile(
    r"\bhow (?:many|much|long|old|far|tall|high|large|big|often|heavy|deep|fast)\b|\bwhen\b"
    r"|\b(?:what|which) (?:year|date|day|month|century|percent\w*|number|time|age)\b",
    re.IGNORECASE,
)
_WANTS_NAME = re.compile(
    r"\bwho(?:se|m)?\b|\bwhere\b|\b(?:what|which) (?:city|country|place|state|person)\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a passage; `score` orders the sentences of one question, and says nothing across questions."""

    passage: Passage
    start: int  # in the passage's text
    end: int
    cosine: float
    score: float

    @property
    def text(self) -> str:
        return self.passage.text[self.start : self.end]


def rank_sentences(
    question: str, passages: Sequence[Passage], question_vector: npt.NDArray[np.float32], embedder: Embedder
) -> list[Sentence]:
    """Return the passages' sentences, the likeliest to hold the answer first."""
    places = [
        (p, s, e) for p in passages for s, e in sentence_spans(p.text) if len(p.text[s:e].split()) >= FEWEST_WORDS
    ]
    places = places[:MAX_SENTENCES]
    if not places:
        return []
    cosines = embedder.embed([p.text[s:e] for p, s, e in places]) @ question_vector
    rank_of = {p.chunk_id: rank for rank, p in enumerate(passages)}
    ranked = []
    for (p, s, e), cosine in zip(places, cosines.tolist(), strict=True):
        fit = fit_of(question, p.text[s:e], p.heading, cosine, rank_of[p.chunk_id])
        ranked.append(Sentence(p, s, e, cosine, float(np.dot(WEIGHTS, astuple(fit)))))
    return sorted(ranked, key=lambda sentence: -sentence.score)


def fit_of(question: str, sentence: str, heading: str, cosine: float, passage_rank: int) -> Fit:
    """Measure how well one sentence fits."""
    asked, known = set(content_words(question)), set(words(question))
    said = set(content_words(sentence))
    brings = set(words(sentence)) - known
    return Fit(
        cosine=cosine,
        covered=len(asked & (said | set(content_words(heading)))) / max(1, len(asked)),
        said=len(asked & said) / max(1, len(asked)),
        brings_figure=float(bool(_WANTS_FIGURE.search(question)) and any(map(is_exact, brings))),
        brings_name=float(bool(_WANTS_NAME.search(question)) and bool(names(sentence) - known)),
        passage_rank=1 / (1 + passage_rank),
    )
