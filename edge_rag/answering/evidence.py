"""Is the answer in these passages at all? The first abstention rule: a logistic model over four signals of the retrieval.

The weights were fitted on the train part of squad2, hotpotqa/fullwiki and questions asked of foreign corpora;
README.md has both error rates on the dev part, and `edge-rag bench abstain` reproduces weights and rates.
They belong to the embedder that they were fitted with: with another one the rule is off (confidence is still reported).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from edge_rag.answering.words import content_words, is_exact, names
from edge_rag.documents import sentence_spans
from edge_rag.interfaces import Embedder, Passage

MAX_SENTENCES = 48  # scored for one question; more adds time and, on dev, nothing


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a passage, with its cosine to the question."""

    passage: Passage
    start: int  # in the passage's text
    end: int
    cosine: float

    @property
    def text(self) -> str:
        return self.passage.text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Signals:
    """What the decision is made from; each between 0 and 1."""

    best_passage: float  # cosine of the question and the nearest passage
    best_sentence: float  # cosine of the question and the nearest sentence
    covered: float  # share of the question's content words that the best passage holds
    names_covered: float  # share of its names and figures that the passages hold; 1 if it has none


# Fitted by `edge-rag bench abstain`: bias, then a weight for each signal; and the threshold that, on train, refuses as large a
# share of the answerable questions as it lets through of those about something else.
WEIGHTS = (-7.595, 0.646, 4.917, 1.257, 2.893)
THRESHOLD = 0.206
FITTED_WITH = ""  # fingerprint of the embedder


def rank_sentences(
    passages: Sequence[Passage], question_vector: npt.NDArray[np.float32], embedder: Embedder
) -> list[Sentence]:
    """Return the passages' sentences, nearest to the question first."""
    places = [(p, s, e) for p in passages for s, e in sentence_spans(p.text) if len(p.text[s:e].split()) > 2]
    places = places[:MAX_SENTENCES]
    if not places:
        return []
    cosines = embedder.embed([p.text[s:e] for p, s, e in places]) @ question_vector
    ranked = [Sentence(p, s, e, float(c)) for (p, s, e), c in zip(places, cosines, strict=True)]
    return sorted(ranked, key=lambda sentence: -sentence.cosine)


def signals(
    question: str, passages: Sequence[Passage], sentences: Sequence[Sentence], cosines: Mapping[int, float]
) -> Signals:
    """Measure how well the passages fit the question."""
    asked = set(content_words(question))
    held = [set(content_words(f"{p.heading} {p.text}")) for p in passages]
    named = {w for w in asked if is_exact(w)} | names(question)
    everywhere = set().union(*held)
    return Signals(
        best_passage=max((cosines[p.chunk_id] for p in passages if p.chunk_id in cosines), default=0.0),
        best_sentence=sentences[0].cosine if sentences else 0.0,
        covered=max((len(asked & h) / max(1, len(asked)) for h in held), default=0.0),
        names_covered=len(named & everywhere) / len(named) if named else 1.0,
    )


def threshold(embedder: Embedder) -> float:
    """Return the confidence below which to abstain; 0 with an embedder that the rule was not fitted with."""
    return THRESHOLD if embedder.fingerprint == FITTED_WITH else 0.0


def confidence(s: Signals) -> float:
    """Return the probability that the passages hold the answer."""
    bias, *weights = WEIGHTS
    return 1 / (1 + math.exp(-(bias + sum(w * v for w, v in zip(weights, astuple(s), strict=True)))))
