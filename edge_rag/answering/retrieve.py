"""Question to passages: lexical and dense search, fused by their scores.

Each finds what the other misses: BM25 knows part numbers and names, vectors know paraphrases. The scores have no common scale,
so each is taken as a share of the best that its search found for the question, and the shares are averaged. That ranks better
than ranks alone, which hide how far the best stands out from the rest (Bruch, Gai and Ingber, TOIS 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_rag.interfaces import Passage
from edge_rag.library import EVERYTHING, Filters, Library


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
        passages=tuple(fuse([dense, lexical], depth)[:k]),
        question_vector=vector,
        cosines={p.chunk_id: p.score for p in dense},
    )


def fuse(rankings: Sequence[Sequence[Passage]], depth: int, weights: Sequence[float] | None = None) -> list[Passage]:
    """Merge rankings of at most `depth` passages by the weighted mean of their scores, as shares of the best in the ranking.

    Ties go to the earlier ranking, so the result is deterministic.
    """
    weights = weights or [1.0] * len(rankings)
    passages = {p.chunk_id: p for ranking in reversed(rankings) for p in ranking}
    scores = dict.fromkeys((p.chunk_id for ranking in rankings for p in ranking), 0.0)
    for ranking, weight in zip(rankings, weights, strict=True):
        shares = _shares(ranking)
        # What a full ranking leaves out may be hardly worse than its last; a short one has all that fits the question at all.
        left_out = shares[ranking[-1].chunk_id] if 0 < depth <= len(ranking) else 0.0
        for chunk_id in scores:
            scores[chunk_id] += weight / sum(weights) * shares.get(chunk_id, left_out)
    order = sorted(scores, key=lambda chunk_id: -scores[chunk_id])
    return [replace(passages[i], score=scores[i]) for i in order]


def _shares(ranking: Sequence[Passage]) -> dict[int, float]:
    best = ranking[0].score if ranking else 0.0
    return {p.chunk_id: max(0.0, p.score) / best if best > 0 else 1.0 for p in ranking}
