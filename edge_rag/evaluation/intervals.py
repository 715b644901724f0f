"""From the scores of single questions to figures with an interval: means, differences of two runs, refusals, risk and coverage.

The intervals are percentile bootstraps over questions: how far would the figure move with another draw of as many questions?
The bootstrap knows only what it has seen, so where almost all scores agree it is far too sure of itself (20 right of 20 gives
100% to 100%). There Wilson's score interval takes its place, which for scores between 0 and 1 errs to the wide side.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_rag.answering import NOT_FOUND
from edge_rag.evaluation.predictions import Interval, Prediction
from edge_rag.evaluation.scoring import METRICS, squad_words

DRAWS = 10_000
CURVE_DRAWS = 2_000  # of areas under curves, where a draw costs more
FEWEST_APART = 10  # scores that differ from the most common one; with fewer the bootstrap interval is too narrow
CURVE_POINTS = 101
_CELLS = 1 << 21  # drawn at a time: bounds the memory for any number of questions
_Z = 1.959964  # 97.5% quantile of the normal distribution

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of b minus mean of a over the same n questions, with its 95% interval."""

    value: float
    low: float
    high: float
    p: float  # two-sided: how often chance alone makes the runs differ at least as much
    n: int


def mean_interval(
    values: Sequence[float] | Floats, *, seed: int = 0, draws: int = DRAWS, scores: bool = True
) -> Interval:
    """Return the mean and its 95% interval. `scores`: the values lie between 0 and 1 by definition, as tokens or times do not.

    Where fewer than FEWEST_APART scores differ from the most common one, the interval is Wilson's. Of other values that are all
    equal it is a point, which says only that there is no spread to go by.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        raise ValueError("the mean of no values")
    mean = float(x.mean())
    apart = len(x) - int(np.unique(x, return_counts=True)[1].max())
    if scores and apart < FEWEST_APART and x.min() >= 0 and x.max() <= 1:
        return Interval(mean, *_wilson(mean, len(x)), len(x))
    if not apart:
        return Interval(mean, mean, mean, len(x))
    return _interval(mean, _drawn_means(x, draws, seed), len(x))


def paired_bootstrap(
    a: Sequence[float] | Floats, b: Sequence[float] | Floats, *, seed: int = 0, draws: int = DRAWS
) -> PairedDifference:
    """Compare two runs over the same questions, value by value: mean of b minus mean of a.

    The interval is the bootstrap's over pairs. The p-value is a permutation test's: if the runs were equally good, each
    difference could as well have the other sign; p is the share of signs that give a mean at least as far from 0. It needs no
    large n, and it is 1 where no question differs.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or not len(x):
        raise ValueError(f"{len(x)} and {len(y)} values are no pairs")
    difference = y - x
    interval = _interval(float(difference.mean()), _drawn_means(difference, draws, seed), len(x))
    p = _sign_flip_p(difference, draws, seed)
    return PairedDifference(interval.value, interval.low, interval.high, p, len(x))


def summarise(
    predictions: Sequence[Prediction], *, seed: int = 0
) -> tuple[dict[str, Interval], list[tuple[float, float]]]:
    """Sum up a run: every metric that its predictions define, in the order of METRICS, and its risk-coverage curve.

    A point of the curve is (share of questions answered, share of these whose reply is wrong), most confident first; questions
    of equal confidence are taken as if in random order. A reply to an answerable question is wrong unless it contains a right
    answer (of a yes/no question: the right verdict); one to an unanswerable question is wrong unless the generator itself
    refuses. That the rule would refuse does not make a reply right here: the curve is there to choose the rule's threshold by.
    """
    found: dict[str, Interval] = {}
    for name in {name for p in predictions for name in p.scores}:
        found[name] = mean_interval([p.scores[name] for p in predictions if name in p.scores], seed=seed)
    found |= {name: mean_interval(shares, seed=seed) for name, shares in _refusals(predictions) if shares}
    for name in ("prompt_tokens", "answer_tokens") if predictions else ():
        found[name] = mean_interval([getattr(p, name) for p in predictions], seed=seed, scores=False)
    found |= _confidence_figures(predictions, seed)
    order = {name: place for place, name in enumerate(METRICS)}
    metrics = {name: found[name] for name in sorted(found, key=lambda name: (order.get(name, len(order)), name))}
    return metrics, risk_coverage(*_replies(predictions, lambda p: p.confidence))


def risk_coverage(confidences: Floats, wrong: Floats) -> list[tuple[float, float]]:
    """Return the curve, thinned to CURVE_POINTS at even coverages, the full one included."""
    n = len(wrong)
    if not n:
        return []
    groups = _Groups(confidences)
    sizes = groups.sum(np.ones((1, n)))[0]
    expected = np.repeat(groups.sum(wrong[None])[0] / sizes, sizes.astype(int))
    risks = np.cumsum(expected) / np.arange(1, n + 1)
    places = np.unique(np.linspace(0, n - 1, min(n, CURVE_POINTS)).round().astype(int))
    return [((place + 1) / n, float(risks[place])) for place in places.tolist()]


def area_under_risk(confidences: Floats, wrong: Floats, *, seed: int = 0, draws: int = CURVE_DRAWS) -> Interval:
    """Return the mean of the risk over the coverages 1/n, 2/n ... 1, ties taken as if in random order (AURC)."""
    n = len(wrong)
    if np.all(wrong == wrong[0]):  # then any order has the same area: the mean
        return mean_interval(wrong, seed=seed)
    groups = _Groups(confidences)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])

    def areas(counts: Floats) -> Floats:
        # A group of m with w wrong, after M with W wrong, has the expected risks (W + i w/m) / (M + i) for i = 1 ... m.
        m, w = groups.sum(counts), groups.sum(counts * wrong)
        before, wrong_before = np.cumsum(m, axis=1) - m, np.cumsum(w, axis=1) - w
        rate = np.divide(w, m, out=np.zeros_like(w), where=m > 0)
        steps = harmonic[(before + m).astype(int)] - harmonic[before.astype(int)]
        areas: Floats = (((wrong_before - before * rate) * steps) + w).sum(axis=1) / n
        return areas

    value = float(areas(np.ones((1, n)))[0])
    rng = np.random.default_rng(seed)
    return _interval(value, np.concatenate([areas(c) for c in _drawn_counts(rng, n, draws, _rows(n))]), n)


def auroc(
    confidences: Floats, answerable: npt.NDArray[np.bool_], *, seed: int = 0, draws: int = CURVE_DRAWS
) -> Interval:
    """Return the chance that an answerable question has more confidence than an unanswerable one, ties counting half.

    Both kinds are drawn apart, so every draw has both. Where they separate perfectly the bootstrap has no spread, and Wilson's
    interval for the rarer kind's number takes its place: no area varies more than a share of so few.
    """
    groups = _Groups(confidences)
    n_right, n_other = int(answerable.sum()), int((~answerable).sum())

    def areas(right: Floats, other: Floats) -> Floats:
        r, o = groups.sum(right), groups.sum(other)
        below = n_other - np.cumsum(o, axis=1)  # groups are in falling order
        areas: Floats = (r * (below + o / 2)).sum(axis=1) / (n_right * n_other)
        return areas

    value = float(areas(answerable[None].astype(np.float64), (~answerable)[None].astype(np.float64))[0])
    if value in (0.0, 1.0):
        return Interval(value, *_wilson(value, min(n_right, n_other)), len(answerable))
    rng, rows = np.random.default_rng(seed), _rows(len(answerable))
    rights, others = _drawn_counts(rng, n_right, draws, rows), _drawn_counts(rng, n_other, draws, rows)
    drawn = [
        areas(_spread(right, answerable), _spread(other, ~answerable))
        for right, other in zip(rights, others, strict=True)
    ]
    return _interval(value, np.concatenate(drawn), len(answerable))


def _refusals(predictions: Sequence[Prediction]) -> Iterator[tuple[str, list[float]]]:
    """Yield the figures about refusing, each as the values that it is the mean of; () where there are none.

    A set without unanswerable questions has only the rate of false refusals: the others would be 0 by definition.
    """
    answerable = [p for p in predictions if p.answerable]
    unanswerable = [p for p in predictions if not p.answerable]
    yield "false_refusal_rate", [float(p.refused) for p in answerable]
    if unanswerable:
        yield "refusal_precision", [float(not p.answerable) for p in predictions if p.refused]
        yield "missed_refusal_rate", [float(not p.refused) for p in unanswerable]
        for name in ("em", "f1"):
            # As the script of SQuAD 2: a refusal is the empty answer, and so is an answer without words.
            silent = [float(p.refused or not squad_words(p.answer)) for p in unanswerable]
            spoken = [0.0 if p.refused else p.scores[name] for p in answerable if name in p.scores]
            yield f"{name}_with_refusals", silent + spoken


def _confidence_figures(predictions: Sequence[Prediction], seed: int) -> dict[str, Interval]:
    figures: dict[str, Interval] = {}
    confidences, wrong = _replies(predictions, lambda p: p.confidence)
    if len(wrong):
        figures["aurc"] = area_under_risk(confidences, wrong, seed=seed)
        figures["aurc_best"] = area_under_risk(-wrong, wrong, seed=seed)
        figures["aurc_random"] = mean_interval(wrong, seed=seed)
    logprobs, wrong = _replies(predictions, lambda p: p.logprob)
    if len(wrong):
        figures["aurc_logprob"] = area_under_risk(logprobs, wrong, seed=seed)
    rated = [(p.confidence, p.answerable) for p in predictions if p.confidence is not None]
    answerable = np.array([kind for _, kind in rated], dtype=bool)
    if answerable.any() and not answerable.all():
        figures["auroc"] = auroc(np.array([rate for rate, _ in rated], dtype=np.float64), answerable, seed=seed)
    return figures


def _replies(
    predictions: Sequence[Prediction], confidence: Callable[[Prediction], float | None]
) -> tuple[Floats, Floats]:
    """Return confidence and error of each reply that has both."""
    replies = [
        (rate, error) for p in predictions if (rate := confidence(p)) is not None and (error := _error(p)) is not None
    ]
    return np.array([rate for rate, _ in replies], dtype=np.float64), np.array(
        [e for _, e in replies], dtype=np.float64
    )


def _error(p: Prediction) -> float | None:
    if not p.answerable:
        return float(NOT_FOUND not in p.output and bool(squad_words(p.answer)))
    right = p.scores.get("accuracy", p.scores.get("contains"))  # "no" also stands in "no doubt: yes"
    return None if right is None else 1 - right


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval for a share of n. Scores between 0 and 1 vary at most as much as shares with their mean."""
    centre = share + _Z**2 / (2 * n)
    reach = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return max(0.0, min(share, (centre - reach) / scale)), min(1.0, max(share, (centre + reach) / scale))


def _interval(value: float, drawn: Floats, n: int) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high), n)


def _drawn_means(x: Floats, draws: int, seed: int) -> Floats:
    """Return the means of bootstrap samples, each of as many values as there are."""
    rng = np.random.default_rng(seed)
    n = len(x)
    values, counts = np.unique(x, return_counts=True)
    if len(values) * 8 < n:  # the same distribution, drawn faster: how often each different value comes up
        drawn = [rng.multinomial(n, counts / n, size=rows) @ values for rows in _batches(draws, _rows(len(values)))]
    else:
        drawn = [x[rng.integers(0, n, (rows, n), dtype=np.uint32)].sum(axis=1) for rows in _batches(draws, _rows(n))]
    means: Floats = np.concatenate(drawn) / n
    return means


def _drawn_counts(rng: np.random.Generator, n: int, draws: int, rows: int) -> Iterator[Floats]:
    """Yield bootstrap samples of n things as (at most rows, n): how often each is in the sample."""
    for size in _batches(draws, rows):
        taken = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(taken.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _batches(draws: int, rows: int) -> Iterator[int]:
    for start in range(0, draws, rows):
        yield min(rows, draws - start)


def _rows(width: int) -> int:
    return max(1, _CELLS // width)


def _spread(counts: Floats, where: npt.NDArray[np.bool_]) -> Floats:
    wide = np.zeros((len(counts), len(where)))
    wide[:, where] = counts
    return wide


def _sign_flip_p(difference: Floats, draws: int, seed: int) -> float:
    """Return the share of signs that give a sum at least as far from 0; all of them if they are few, drawn at random if not."""
    sizes, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    observed = abs(float(difference.sum())) * (1 - 1e-9)  # sums of the same terms in another order are equal
    moved = int(counts.sum())
    if 2**moved <= draws:
        signs = 1 - 2 * (np.arange(2**moved)[:, None] >> np.arange(moved) & 1)
        return float((np.abs(signs @ np.repeat(sizes, counts)) >= observed).mean())
    rng = np.random.default_rng(seed)
    far = 0
    for rows in _batches(draws, _rows(len(sizes))):
        if len(sizes) == moved:
            signs = 2 * rng.integers(0, 2, (rows, moved), dtype=np.int8) - 1
        else:  # how many of each size are positive
            signs = 2 * rng.binomial(counts, 0.5, size=(rows, len(counts))) - counts
        far += int((np.abs(signs @ sizes) >= observed).sum())
    return (far + 1) / (draws + 1)  # the observed signs are one of the draws: p is never 0


class _Groups:
    """Questions of equal confidence, most confident first; columns of what is summed are in any order of the questions."""

    def __init__(self, confidences: Floats) -> None:
        self._order = np.argsort(-confidences, kind="stable")
        ordered = confidences[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def sum(self, columns: Floats) -> Floats:
        """Add up the columns of each group: (rows, n) to (rows, groups)."""
        sums: Floats = np.add.reduceat(columns[:, self._order], self._starts, axis=1)
        return sums
