"""Answer in the documents' own words: where no language model is installed, or nothing that it said is supported."""

from collections.abc import Sequence
from dataclasses import replace

from edge_rag.answering.cite import quote
from edge_rag.answering.nearest import Sentence
from edge_rag.interfaces import AnswerSentence, Citation

# One holds the answer too rarely, three are more than an answer: `edge-rag bench extract` has the figures.
SENTENCES = 2


def extract(ranked: Sequence[Sentence]) -> tuple[str, list[AnswerSentence], list[Citation]]:
    """Take the sentences nearest to the question; those of one passage in the order in which they stand there."""
    best = ranked[:SENTENCES]
    rank_of = {s.passage.chunk_id: n for n, s in reversed(list(enumerate(best)))}
    ordered = sorted(best, key=lambda s: (rank_of[s.passage.chunk_id], s.start))
    texts = [" ".join(s.text.split()) for s in ordered]
    return (
        " ".join(texts),
        [AnswerSentence(text, supported=True) for text in texts],
        [replace(quote(s), sentence=n) for n, s in enumerate(ordered)],
    )
