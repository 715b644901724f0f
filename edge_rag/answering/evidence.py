"""Is the answer in these passages at all? The first abstention rule: a logistic model over four signals of the retrieval.

The weights were fitted on the train part of squad2, hotpotqa/fullwiki and questions asked of foreign corpora;
docs/figures/search.md has both error rates on the dev part, and `edge-rag bench abstain` reproduces weights and rates.
They belong to the embedder that they were fitted with: with another one the rule is off (confidence is still reported).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from edge_rag.answering.nearest import Sentence
from edge_rag.answering.words import content_words, is_exact, names
from edge_rag.interfaces import Embedder, Passage


@dataclass(frozen=True, slots=True)
class Signals:
    """What the decision is made from; each between 0 and 1."""

    best_passage: float  # cosine of the question and the nearest passage
    best_sentence: float  # cosine of the question and the nearest sentence
    covered: float  # share of the question's content words that the best passage holds
    names_covered: float  # share of its names and figures that the passages hold; 1 if it has none


# Fitted by `edge-rag bench abstain`: bias, then a weight for each signal; and the threshold that, on train, refuses as large a
# share of the answerable questions as it lets through of those about something else.
WEIGHTS = (-7.49, 0.563, 5.12, 1.38, 2.60)
THRESHOLD = 0.179
FITTED_WITH = "c4682e3945cf4556a8a65ea18ee3a4e29543ddd6d891f1ad142d210404863b56"  # fingerprint of the embedder


@dataclass(frozen=True, slots=True)
class Rule:
    """What decides, as one value that can travel with what it was fitted to."""

    weights: tuple[float, ...]  # bias, then one for each of Signals
    threshold: float
    fitted_with: str


SHIPPED = Rule(WEIGHTS, THRESHOLD, FITTED_WITH)


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
        best_sentence=max((s.cosine for s in sentences), default=0.0),
        covered=max((len(asked & h) / max(1, len(asked)) for h in held), default=0.0),
        names_covered=len(named & everywhere) / len(named) if named else 1.0,
    )


def threshold(embedder: Embedder, rule: Rule = SHIPPED) -> float:
    """Return the confidence below which to abstain; 0 with an embedder that the rule was not fitted with."""
    return rule.threshold if embedder.fingerprint == rule.fitted_with else 0.0


def confidence(s: Signals, rule: Rule = SHIPPED) -> float:
    """Return the probability that the passages hold the answer."""
    bias, *weights = rule.weights
    return 1 / (1 + math.exp(-(bias + sum(w * v for w, v in zip(weights, astuple(s), strict=True)))))
