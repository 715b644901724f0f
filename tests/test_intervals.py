"""Figures over many questions: by hand, against brute force and scipy, and by how often the intervals hold the truth."""

import itertools
import random
import tracemalloc
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edge_rag.answering import NOT_FOUND
from edge_rag.evaluation.intervals import (
    CURVE_POINTS,
    area_under_risk,
    auroc,
    mean_interval,
    paired_bootstrap,
    risk_coverage,
    summarise,
)
from edge_rag.evaluation.predictions import Prediction
from edge_rag.evaluation.scoring import METRICS


def predicted(answerable=True, refused=False, confidence=None, answer="Rollo", logprob=None, tokens=7, **scores):
    return Prediction(
        id="q",
        question="Who?",
        answers=("Rollo",) if answerable else (),
        answerable=answerable,
        gold_ids=(),
        shown=(),
        found=(),
        output=answer,
        answer=answer,
        refused=refused,
        confidence=confidence,
        logprob=logprob,
        cited=(),
        prompt_tokens=100,
        answer_tokens=tokens,
        scores={name.replace("_at_", "@"): score for name, score in scores.items()},
    )


# --- means ---------------------------------------------------------------------------------------------------------------


def close(interval, low, high, within):
    return abs(interval.low - low) <= within and abs(interval.high - high) <= within


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("0/1", (np.arange(300) < 120).astype(float)),
        ("few different", np.arange(400) % 7 / 6),
        ("all different", np.random.default_rng(5).beta(0.5, 2, 250)),
    ],
)
def test_the_interval_agrees_with_scipy(name, values):
    ours = mean_interval(values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert ours.n == len(values)
    assert close(ours, theirs.low, theirs.high, 0.04 * width)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 50), (9, 1000)])
def test_where_almost_all_scores_agree_the_interval_is_wilsons(hits, n):
    interval = mean_interval([1.0] * hits + [0.0] * (n - hits))
    wilson = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert close(interval, wilson.low, wilson.high, 1e-6)
    assert interval.low <= interval.value <= interval.high


def test_equal_scores_are_no_certainty_and_equal_counts_are_a_point():
    one = mean_interval([0.5])
    assert one.low < 0.15 and one.high > 0.85
    assert mean_interval([1.0, 1.0], scores=False).low == 1
    assert mean_interval([250.0, 300.0]).high == 300  # milliseconds are seen to be no scores
    tokens = mean_interval([0.1, 0.1, 0.1], scores=False)
    assert tokens.low == tokens.value == tokens.high


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_the_seed_decides_the_draws():
    values = np.random.default_rng(0).random(50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_memory_is_bounded_for_many_questions():
    values = np.random.default_rng(0).random(100_000)
    tracemalloc.start()
    try:
        interval = mean_interval(values, draws=200)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6  # 200 draws at once would take 240 MB
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.2887 / 100_000**0.5, rel=0.3)


@pytest.mark.parametrize(
    ("name", "draw", "truth", "least"),
    [
        ("share of 200", lambda rng: (rng.random(200) < 0.3).astype(float), 0.3, 0.93),
        ("f1 of 150", lambda rng: rng.beta(0.5, 0.5, 150), 0.5, 0.93),
        ("rare share of 60", lambda rng: (rng.random(60) < 0.04).astype(float), 0.04, 0.93),
        ("share of 10", lambda rng: (rng.random(10) < 0.8).astype(float), 0.8, 0.93),
    ],
)
def test_the_interval_holds_the_truth_19_times_of_20(name, draw, truth, least):
    rng = np.random.default_rng(7)
    intervals = [mean_interval(draw(rng), draws=1000, seed=round) for round in range(600)]
    covered = fmean(interval.low <= truth <= interval.high for interval in intervals)
    assert least <= covered <= 0.985


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_intervals_of_scores_are_scores_around_their_mean(values):
    interval = mean_interval(values, draws=200)
    assert 0 <= interval.low <= interval.high <= 1 + 1e-12
    assert interval.value == pytest.approx(fmean(values))


# --- pairs ---------------------------------------------------------------------------------------------------------------


def test_the_paired_difference_is_b_minus_a():
    difference = paired_bootstrap([0.0] * 30 + [1.0] * 70, [0.0] * 10 + [1.0] * 90)
    assert difference.value == pytest.approx(0.2)
    assert 0.1 < difference.low < 0.2 < difference.high < 0.3
    assert difference.n == 100


def test_signs_are_all_tried_where_they_are_few():
    # 5 questions gained, none lost: of the 32 ways to choose signs, 2 are as extreme
    assert paired_bootstrap([0.0] * 50, [1.0] * 5 + [0.0] * 45).p == 2 / 32
    # gained 3/4 and 1/2, lost 1/4: sums at least 1 away from 0 are +++ ++- and their opposites
    assert paired_bootstrap([0.0, 0.0, 0.25], [0.75, 0.5, 0.0]).p == 4 / 8


def test_sums_that_differ_by_rounding_are_as_extreme():
    gains = [0.3, 0.1, 0.2, 0.7]
    for order in itertools.permutations(gains):
        assert paired_bootstrap([0.0] * 4, order).p == 2 / 16


def test_p_is_never_0():
    assert paired_bootstrap([0.0] * 60, [1.0] * 60).p == 1 / 10_001


def test_runs_that_agree_everywhere_differ_by_chance():
    same = paired_bootstrap([0.3, 1.0, 0.0], [0.3, 1.0, 0.0])
    assert (same.value, same.low, same.high, same.p, same.n) == (0, 0, 0, 1, 3)


@pytest.mark.parametrize("kind", ["0/1", "real"])
def test_the_p_value_agrees_with_scipy(kind):
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.05, 0.1):
        a, b = rng.random(120), rng.random(120) + shift
        if kind == "0/1":
            a, b = (a < 0.5).astype(float), (b < 0.6).astype(float)
        theirs = stats.permutation_test(
            (b - a,), np.mean, permutation_type="samples", n_resamples=10_000, alternative="two-sided", rng=1
        ).pvalue
        assert paired_bootstrap(a, b).p == pytest.approx(theirs, abs=0.02)


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="no pairs"):
        paired_bootstrap([1.0], [1.0, 0.0])


def test_equal_runs_seldom_seem_different():
    rng = np.random.default_rng(11)
    ps = [paired_bootstrap((rng.random(80) < 0.5) * 1.0, (rng.random(80) < 0.5) * 1.0, draws=500).p for _ in range(400)]
    assert 0.02 <= fmean(p <= 0.05 for p in ps) <= 0.075


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_swapping_the_runs_swaps_the_sign(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    there, back = paired_bootstrap(a, b, draws=200), paired_bootstrap(b, a, draws=200)
    assert there.value == pytest.approx(-back.value, abs=1e-12)
    assert 0 < there.p <= 1
    assert -1 <= there.low <= there.high <= 1


# --- risk and coverage ---------------------------------------------------------------------------------------------------


def brute_areas(confidences, wrong):
    """AURC of every order of the questions that the confidences allow."""
    order = sorted(range(len(wrong)), key=lambda i: -confidences[i])
    groups = [list(group) for _, group in itertools.groupby(order, key=lambda i: confidences[i])]
    for ways in itertools.product(*(itertools.permutations(group) for group in groups)):
        errors = [wrong[i] for way in ways for i in way]
        yield fmean(fmean(errors[:answered]) for answered in range(1, len(errors) + 1))


def test_aurc_by_hand():
    # risks at 1, 2, 3, 4 answered: 0, 1/2, 1/3, 2/4
    area = area_under_risk(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert area.value == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert area.low <= area.value <= area.high


def test_replies_that_are_all_right_are_no_certainty():
    area = area_under_risk(np.array([0.9, 0.8, 0.7]), np.zeros(3))
    assert area.value == area.low == 0 and area.high > 0.5


def test_aurc_is_the_mean_over_all_orders_that_ties_allow():
    rng = random.Random(6)
    for _ in range(60):
        n = rng.randint(1, 6)
        confidences = np.array([rng.choice([0.1, 0.2, 0.3]) for _ in range(n)])
        wrong = np.array([rng.choice([0.0, 1.0, 0.5]) for _ in range(n)])
        expected = fmean(brute_areas(confidences, wrong))
        assert area_under_risk(confidences, wrong, draws=10).value == pytest.approx(expected)
        curve = risk_coverage(-np.sort(-confidences), wrong[np.argsort(-confidences, kind="stable")])
        assert fmean(risk for _, risk in curve) == pytest.approx(expected)


def test_the_interval_of_the_area_agrees_with_scipy():
    rng = np.random.default_rng(8)
    confidences = rng.random(150).round(2)  # some ties
    wrong = (rng.random(150) > confidences).astype(float)

    def area(confidences, wrong):
        return area_under_risk(confidences, wrong, draws=1).value

    theirs = stats.bootstrap(
        (confidences, wrong), area, paired=True, vectorized=False, n_resamples=2000, method="percentile", rng=1
    ).confidence_interval
    ours = area_under_risk(confidences, wrong)
    assert close(ours, theirs.low, theirs.high, 0.07 * (theirs.high - theirs.low))


def test_the_curve_is_thinned_and_ends_at_all_questions():
    rng = np.random.default_rng(9)
    wrong = (rng.random(1234) < 0.4).astype(float)
    curve = risk_coverage(np.linspace(1, 0, 1234), wrong)
    assert len(curve) == CURVE_POINTS
    assert curve[0] == (1 / 1234, wrong[0])
    assert curve[-1] == (1, pytest.approx(wrong.mean()))
    assert [coverage for coverage, _ in curve] == sorted({coverage for coverage, _ in curve})
    for coverage, risk in curve[::10]:
        assert risk == pytest.approx(wrong[: round(coverage * 1234)].mean())
    assert risk_coverage(np.array([]), np.array([])) == []


@pytest.mark.parametrize("kind", ["few different confidences", "all different"])
def test_auroc_agrees_with_scipy_and_with_counting_pairs(kind):
    rng = np.random.default_rng(10)
    confidences = rng.random(90)
    answerable = rng.random(90) < 0.3 + 0.4 * confidences
    if kind == "few different confidences":
        confidences = confidences.round(1)
    area = auroc(confidences, answerable)
    pairs = itertools.product(confidences[answerable], confidences[~answerable])
    assert area.value == pytest.approx(fmean((a > b) + (a == b) / 2 for a, b in pairs))
    u = stats.mannwhitneyu(confidences[answerable], confidences[~answerable]).statistic
    assert area.value == pytest.approx(u / (answerable.sum() * (~answerable).sum()))

    def pairwise(a, b):
        return ((a[:, None] > b) + (a[:, None] == b) / 2).mean()

    theirs = stats.bootstrap(
        (confidences[answerable], confidences[~answerable]),
        pairwise,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert close(area, theirs.low, theirs.high, 0.07 * (theirs.high - theirs.low))


def test_a_perfect_separation_of_few_is_no_certainty():
    area = auroc(np.array([0.9, 0.8, 0.1, 0.2]), np.array([True, True, False, False]))
    assert area.value == area.high == 1 and area.low < 0.5


# --- summaries -----------------------------------------------------------------------------------------------------------


def test_a_mean_is_over_the_predictions_that_define_it():
    metrics, _ = summarise([predicted(em=1.0), predicted(em=0.0, mrr=0.5), predicted(answerable=False)])
    assert (metrics["em"].value, metrics["em"].n) == (0.5, 2)
    assert (metrics["mrr"].value, metrics["mrr"].n) == (0.5, 1)
    assert (metrics["answer_tokens"].value, metrics["answer_tokens"].n) == (7, 3)


def test_refusals_by_hand():
    metrics, _ = summarise(
        [
            predicted(em=1.0, f1=1.0),
            predicted(em=0.0, f1=0.4),
            predicted(em=1.0, f1=1.0, refused=True),  # what it would have said does not count
            predicted(answerable=False, refused=True),
            predicted(answerable=False, refused=True),
            predicted(answerable=False),
            predicted(answerable=False, answer="The."),  # SQuAD 2: no words are no answer
        ]
    )
    values = {name: figure.value for name, figure in metrics.items()}
    assert values["refusal_precision"] == pytest.approx(2 / 3)
    assert values["false_refusal_rate"] == pytest.approx(1 / 3)
    assert values["missed_refusal_rate"] == pytest.approx(2 / 4)
    assert values["em_with_refusals"] == pytest.approx((1 + 0 + 0 + 3) / 7)
    assert values["f1_with_refusals"] == pytest.approx((1 + 0.4 + 0 + 3) / 7)
    assert metrics["em_with_refusals"].n == 7


def test_a_set_without_unanswerable_questions_has_only_the_rate_of_false_refusals():
    metrics, _ = summarise([predicted(em=1.0, refused=True), predicted(em=1.0)])
    assert metrics["false_refusal_rate"].value == 0.5
    assert not {"refusal_precision", "missed_refusal_rate", "em_with_refusals", "auroc"} & set(metrics)


def test_nobody_refused_leaves_the_precision_of_refusals_undefined():
    metrics, _ = summarise([predicted(em=1.0), predicted(answerable=False)])
    assert "refusal_precision" not in metrics and metrics["missed_refusal_rate"].value == 1


def test_replies_are_wrong_by_containment_by_verdict_and_by_refusal():
    metrics, curve = summarise(
        [
            predicted(confidence=0.9, logprob=-3.0, contains=1.0),
            predicted(confidence=0.8, logprob=-1.0, contains=1.0, accuracy=0.0),  # "no doubt: yes" contains "no"
            predicted(confidence=0.7, logprob=-4.0, answerable=False, refused=True, answer=NOT_FOUND),
            predicted(confidence=0.6, logprob=-2.0, answerable=False, refused=True),  # by the rule alone
            predicted(confidence=None, contains=0.0),
            predicted(confidence=0.5),  # nothing to judge it by
        ]
    )
    assert curve == [(1 / 4, 0), (2 / 4, 1 / 2), (3 / 4, 1 / 3), (1, 2 / 4)]
    values = {name: metrics[name].value for name in metrics}
    assert values["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert values["aurc_best"] == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    assert values["aurc_random"] == pytest.approx(2 / 4)
    assert values["aurc_logprob"] == pytest.approx((1 + 2 / 2 + 2 / 3 + 2 / 4) / 4)
    assert values["auroc"] == pytest.approx(4 / 6)  # 0.9 and 0.8 beat 0.7 and 0.6; 0.5 beats neither


def test_a_closed_book_has_no_curve():
    metrics, curve = summarise([predicted(contains=1.0)])
    assert curve == [] and "aurc" not in metrics


def test_every_figure_has_its_line_and_stands_in_that_order():
    metrics, _ = summarise(
        [
            predicted(confidence=0.5, logprob=-1.0, refused=True, em=1.0, f1=1.0, contains=1.0, recall_at_5=1.0),
            predicted(confidence=0.4, logprob=-2.0, answerable=False),
        ]
    )
    assert list(metrics) == [name for name in METRICS if name in metrics]
    assert {"em", "recall@5", "aurc_logprob", "auroc", "refusal_precision", "prompt_tokens"} <= set(metrics)


def test_no_predictions_have_no_figures():
    assert summarise([]) == ({}, [])
