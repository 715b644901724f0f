"""Chat: what an earlier turn lends to the search of a later one.

A follow-up ("and who paid for it?") names nothing to search for. Rewriting it takes a model that can be trusted with that;
the search itself looks twice: for the question, and for the question together with what was talked about.
The rankings are fused; a question that stands on its own outweighs the history, so a change of subject is followed at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_rag.answering.retrieve import Retrieval, fuse, retrieve
from edge_rag.answering.words import STOP_WORDS, words
from edge_rag.interfaces import Answer
from edge_rag.library import EVERYTHING, Filters, Library

POINTERS = frozenset(
    [
        "it",
        "its",
        "he",
        "him",
        "his",
        "she",
        "her",
        "they",
        "them",
        "their",
        "this",
        "that",
        "these",
        "those",
        "there",
        "then",
        "one",
        "ones",
        "same",
        "other",
    ]
)
TURNS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Turn:
    question: str
    answer: Answer


def leans_on_history(question: str) -> bool:
    """Tell whether a question cannot stand alone: it points back, or names hardly anything."""
    raw = [w.strip("?!.,;:'\"").casefold() for w in question.split()]
    named = [w for w in words(question) if w not in STOP_WORDS]
    return any(w in POINTERS for w in raw) or len(named) < 2 or raw[:1] in (["and"], ["but"], ["so"])


def with_history(question: str, history: Sequence[Turn]) -> str:
    """Return the question with what the last turns were about put before it."""
    cited = [c.quote for c in history[-1].answer.citations[:1]]
    return " ".join([*earlier_questions(question, history), *cited, question])


def earlier_questions(question: str, history: Sequence[Turn]) -> list[str]:
    """Return the questions that this one follows up, oldest first; none if it stands alone."""
    return [turn.question for turn in history[-TURNS_KEPT:]] if leans_on_history(question) else []


def retrieve_with_history(
    library: Library, question: str, history: Sequence[Turn], k: int, *, candidates: int, filters: Filters = EVERYTHING
) -> Retrieval:
    """Retrieve for a question in a conversation."""
    alone = retrieve(library, question, k, candidates=candidates, filters=filters)
    if not leans_on_history(question):
        return alone
    joined = retrieve(library, with_history(question, history), k, candidates=candidates, filters=filters)
    passages = fuse([joined.passages, alone.passages], k, weights=[2.0, 1.0])[:k]
    return Retrieval(tuple(passages), joined.question_vector, {**alone.cosines, **joined.cosines})
