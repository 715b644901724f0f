"""Candidates: the passages of which a selector learns to choose, with the scores and ids that the search gave them."""

from collections.abc import Mapping
from pathlib import Path

from edge_rag.evaluation.question_sets import Question, QuestionSet
from edge_rag.evaluation.retrieval import Candidate, How, search_corpus, search_library
from edge_rag.interfaces import Embedder, Progress
from edge_rag.settings import Settings

__all__ = ["Candidate", "candidates_of"]


def candidates_of(
    question_set: QuestionSet,
    k: int,
    *,
    library: Path | None = None,
    how: How = "fused",
    embedder: Embedder,
    settings: Settings,
    progress: Progress | None = None,
) -> Mapping[str, tuple[Candidate, ...]]:
    """Return at most k candidates for each question, by its id, best first.

    They come from a search of `library` where one is given; else they are the question's own passages, scored by the cosine
    with the question; else, also where it has none of its own but those that answer it, they come from a search of the set's
    corpus. What a search finds is kept on disk, and searched again only if the library, the embedder or the way of searching
    is another. A question without candidates has ().
    """
    questions = question_set.questions
    if library is not None:
        return search_library(library, questions, k, how=how, settings=settings, progress=progress)
    found: dict[str, tuple[Candidate, ...]] = {}
    for done, question in enumerate(questions, start=1):
        if question.passages and not (question_set.has_corpus and all(passage.gold for passage in question.passages)):
            found[question.id] = _own(question, k, embedder)
        if progress:
            progress("own passages", done, len(questions), question_set.name)
    searched = [question for question in questions if question.id not in found]
    if searched and question_set.has_corpus:
        found |= search_corpus(
            question_set, searched, k, how=how, embedder=embedder, settings=settings, progress=progress
        )
    return {question.id: found.get(question.id, ()) for question in questions}


def _own(question: Question, k: int, embedder: Embedder) -> tuple[Candidate, ...]:
    passages = [passage for passage in question.passages if not passage.misleading]
    vectors = embedder.embed([question.question, *(f"{p.title}\n{p.text}" for p in passages)])
    scored = [Candidate(p, float(score)) for p, score in zip(passages, vectors[1:] @ vectors[0], strict=True)]
    return tuple(sorted(scored, key=lambda candidate: -candidate.score)[:k])
