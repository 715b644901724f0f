"""Selectors choose the passages that the generator sees, and their order."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edge_rag.documents import embedding_text
from edge_rag.interfaces import Passage

if TYPE_CHECKING:
    from edge_rag.models.selector import OnnxScorer


class KeepTop:
    """Keep the first n in the order of the search: the baseline that a trained selector must beat."""

    name = "keep-top"

    def __init__(self, n: int) -> None:
        self._n = n

    def select(self, question: str, passages: Sequence[Passage]) -> list[Passage]:
        return list(passages[: self._n])


class OnnxSelector:
    """Keep the n that a cross-encoder scores best, best first. It is opened when there is something to score."""

    def __init__(self, open_scorer: Callable[[], "OnnxScorer"], n: int) -> None:
        self._open, self._n = open_scorer, n

    @property
    def name(self) -> str:
        return self._scorer.name

    def select(self, question: str, passages: Sequence[Passage]) -> list[Passage]:
        return best_first(self._scorer, question, passages)[: self._n] if passages else []

    @cached_property
    def _scorer(self) -> "OnnxScorer":
        return self._open()


def best_first(scorer: "OnnxScorer", question: str, passages: Sequence[Passage]) -> list[Passage]:
    """Sort passages by their scores; equal ones stay in the order of the search. Their own `score` is still the search's."""
    scores = scorer.score(question, [scored_text(passage) for passage in passages])
    return [passages[i] for i in np.argsort(-scores, kind="stable")]


def scored_text(passage: Passage) -> str:
    """Return what stands beside the question for a selector, in training as here: what is embedded, headings before the text."""
    return embedding_text(passage.heading or passage.title, passage.text)
