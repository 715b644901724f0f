"""Selectors choose the passages that the generator sees, and their order."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_rag.answering.prompt import list_messages, written_list
from edge_rag.documents import embedding_text
from edge_rag.interfaces import Passage, Selection

if TYPE_CHECKING:
    from edge_rag.models.gguf_lister import GgufLister
    from edge_rag.models.selector import OnnxScorer

LIST_TOKENS = 64  # room for a list that is written
# Passages that are scored before the selector looks whether the best one settles it. A multiple of usual numbers of cores.
AT_ONCE = 8


class KeepTop:
    """Keep the first n in the order of the search: the baseline that a trained selector must beat."""

    name = "keep-top"

    def __init__(self, n: int) -> None:
        self._n = n

    def select(self, question: str, passages: Sequence[Passage]) -> Selection:
        return Selection(tuple(passages[: self._n]))


class OnnxSelector:
    """Keep at most n of those that a cross-encoder scores best, best first. It is opened when there is something to score.

    A calibrated one keeps only what comes near the best, tells how sure it is, and scores no more passages once it is sure.
    """

    def __init__(self, open_scorer: Callable[[], "OnnxScorer"], n: int) -> None:
        self._open, self._n = open_scorer, n

    @property
    def name(self) -> str:
        return self._scorer.name

    def select(self, question: str, passages: Sequence[Passage]) -> Selection:
        return choose(self._scorer, question, passages, self._n) if passages else Selection(())

    @cached_property
    def _scorer(self) -> "OnnxScorer":
        return self._open()


class GenerativeSelector:
    """Keep what a model lists, in its order: it sees all candidates at once, where a cross-encoder judges each alone.

    It is shown as many candidates as it was trained with, and as fit.
    """

    def __init__(self, open_lister: Callable[[], "GgufLister"], n: int) -> None:
        self._open, self._n = open_lister, n

    @property
    def name(self) -> str:
        return self._lister.name

    def select(self, question: str, passages: Sequence[Passage]) -> Selection:
        if not passages:
            return Selection(())
        trained = self._lister.listing
        most = min(self._n, trained.passages)
        room = self._lister.context_tokens - LIST_TOKENS
        for n in range(min(trained.candidates, len(passages)), 0, -1):
            messages = list_messages(question, passages[:n], trained.passages, words=trained.words)
            if n == 1 or self._lister.count_tokens(messages) <= room:
                break
        return Selection(tuple(passages[place] for place in self._lister.choose(messages, written_list, n, most)))

    def close(self) -> None:
        """Give the native memory back, if it was opened."""
        if "_lister" in self.__dict__:
            self._lister.close()

    @cached_property
    def _lister(self) -> "GgufLister":
        return self._open()


def choose(scorer: "OnnxScorer", question: str, passages: Sequence[Passage], most: int) -> Selection:
    """Choose at most so many passages. Equal scores stay in the order of the search, and `score` is still the search's."""
    known = scorer.calibration
    texts = [scored_text(passage) for passage in passages]
    if known is None:
        ranked, _ = _best_first(scorer.score(question, texts), passages)
        return Selection(tuple(ranked[:most]))
    scores = np.empty(0, dtype=np.float32)
    while len(scores) < len(texts) and scores.max(initial=-np.inf) < known.settled:
        more = scorer.score(question, texts[len(scores) : len(scores) + AT_ONCE])
        scores = np.concatenate([scores, more])
    ranked, ordered = _best_first(scores, passages)
    near = int((ordered >= ordered[0] - known.margin).sum())
    return Selection(tuple(ranked[: min(most, near)]), known.confidence(float(ordered[0])), known.threshold)


def _best_first(
    scores: npt.NDArray[np.float32], passages: Sequence[Passage]
) -> tuple[list[Passage], npt.NDArray[np.float32]]:
    order = np.argsort(-scores, kind="stable")
    return [passages[i] for i in order], scores[order]


def both_ends(passages: Sequence[Passage]) -> list[Passage]:
    """Put the best passages at both ends, the best one last, beside the question: models overlook most what stands in between."""
    return [*passages[1::2], *passages[::2][::-1]]


def scored_text(passage: Passage) -> str:
    """Return what stands beside the question for a selector, in training as here: what is embedded, headings before the text."""
    return embedding_text(passage.heading or passage.title, passage.text)
