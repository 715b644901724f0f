"""Question to passages: lexical and dense search, fused by reciprocal rank.

Each finds what the other misses: BM25 knows part numbers and names, vectors know paraphrases. Ranks are fused because the
scores have no common scale (Cormack, Clarke and Büttcher, SIGIR 2009).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_rag.interfaces import Passage
from edge_rag.library import EVERYTHING, Filters, Library

RRF_K = 60  # the constant of the paper; larger flattens the difference between ranks


@dataclass(frozen=True, slots=True)
class Retrieval:
    passages: tuple[Passage, ...]  # best first; score is the fused score, 1 where both searches rank it first
    question_vector: npt.NDArray[np.float32]  # (dim,)
    cosines: dict[int, float]  # chunk id to cosine, for the passages that dense search found


def retrieve(
    library: Library,
    question: str,
    k: int,
    *,
    candidates: int,
    filters: Filters = EVERYTHING,
    vector: npt.NDArray[np.float32] | None = None,
) -> Retrieval:
    """Return the k best passages for a question. `vector` is its embedding, for who has embedded many at once."""
    depth = max(k, candidates)
    if vector is None:
        vector = library.embedder.embed([question])[0]
    dense = library.dense(vector, depth, filters)
    lexical = library.lexical(question, depth, filters)
    return Retrieval(
        passages=tuple(fuse([dense, lexical])[:k]),
        question_vector=vector,
        cosines={p.chunk_id: p.score for p in dense},
    )


def fuse(rankings: Sequence[Sequence[Passage]], weights: Sequence[float] | None = None) -> list[Passage]:
    """Merge rankings by reciprocal rank. Ties go to the earlier ranking, so the result is deterministic."""
    weights = weights or [1.0] * len(rankings)
    best_possible = sum(weights) / (RRF_K + 1)
    scores: dict[int, float] = {}
    passages: dict[int, Passage] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, passage in enumerate(ranking, start=1):
            passages.setdefault(passage.chunk_id, passage)
            scores[passage.chunk_id] = scores.get(passage.chunk_id, 0.0) + weight / (RRF_K + rank) / best_possible
    order = sorted(scores, key=lambda chunk_id: -scores[chunk_id])
    return [replace(passages[i], score=scores[i]) for i in order]
