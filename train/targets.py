"""What a selector is to learn, as plain functions of numbers: what a passage is worth, and the share that it is to have."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

NEGATIVE_RANKS = (3, 4, 6, 9, 13, 18)  # of a fused ranking, from 0: right behind the best there may be other good ones


def gain(mean_logprobs: Sequence[float]) -> float:
    """Return -log(PPL + 1), where PPL is the least perplexity of the accepted answers (GainRAG, arXiv 2505.18710, section 3).

    `mean_logprobs`: of a token of each of them. Perplexities have a long tail, which the logarithm tames.
    """
    return -float(np.logaddexp(0.0, -max(mean_logprobs)))


def shares(values: Sequence[float], temperature: float = 1.0) -> Values:
    """Return the softmax of values: at temperature 1 those of gains are as 1 / (PPL + 1)."""
    scaled = np.asarray(values, np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return np.asarray(weights / weights.sum())


def blended(found: Values, gold: Sequence[bool], weight: float) -> Values:
    """Give `weight` of the shares to the gold passages, to each as much; where none is gold, all stays as it is."""
    marked = np.asarray(gold, np.float64)
    if not marked.any():
        return found
    return np.asarray((1 - weight) * found + weight * marked / marked.sum())


def rescaled(values: Sequence[float]) -> Values:
    """Spread values over 0 to 1. Where all are the same, they say nothing: 0."""
    found = np.asarray(values, np.float64)
    width = found.max() - found.min()
    return (found - found.min()) / width if width > 0 else np.zeros_like(found)


def fused(rationale: Sequence[float], search: Sequence[float], weight: float) -> Values:
    """Join the similarities with a rationale and the scores of the search, each rescaled (RADIO, arXiv 2412.08519)."""
    return weight * rescaled(rationale) + (1 - weight) * rescaled(search)


def negatives(n: int) -> tuple[int, ...]:
    """Return which ranks of n, from 0, are negatives: those published that there are. Of four or fewer it is the last."""
    return tuple(rank for rank in NEGATIVE_RANKS if rank < n) or (n - 1,)
