"""Two runs are compared over the questions that both have."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import invented_runs
import pytest

from edge_rag.errors import UsageError
from edge_rag.evaluation.compare import Comparison, compare, holm, markdown
from edge_rag.evaluation.intervals import paired_bootstrap, summarise
from edge_rag.evaluation.predictions import Prediction, Run
from edge_rag.evaluation.wording import clean, clip, differing_fields, number

ASKED = invented_runs.questions(60)


@pytest.fixture(scope="module")
def gold() -> Run:
    return invented_runs.run("gold", ASKED)


@pytest.fixture(scope="module")
def noisy() -> Run:
    return invented_runs.run("gold+8", ASKED)


def altered(run: Run, change: Callable[[Prediction], Prediction]) -> Run:
    predictions = tuple(map(change, run.predictions))
    metrics, curve = summarise(predictions)
    return replace(run, predictions=predictions, summary=replace(run.summary, metrics=metrics, risk_coverage=curve))


def of(comparison: Comparison, metric: str):
    return next(d for d in comparison.metrics if d.metric == metric)


def test_means_and_difference_are_those_of_the_common_questions(gold: Run, noisy: Run) -> None:
    found = of(compare(gold, noisy), "contains")
    in_a = [p.scores["contains"] for p in gold.predictions]
    in_b = [p.scores["contains"] for p in noisy.predictions]
    expected = paired_bootstrap(in_a, in_b)
    assert (found.a, found.b) == pytest.approx((sum(in_a) / 60, sum(in_b) / 60))
    assert (found.difference, found.low, found.high, found.p, found.n) == pytest.approx(
        (expected.value, expected.low, expected.high, expected.p, 60)
    )
    assert found.difference == pytest.approx(found.b - found.a)


def test_questions_that_one_run_lacks_are_left_out_and_counted(gold: Run, noisy: Run) -> None:
    part = replace(gold, predictions=gold.predictions[5:])
    rest = replace(noisy, predictions=noisy.predictions[:-2][::-1])  # and the order does not matter
    found = compare(part, rest)
    assert (found.n, found.only_a, found.only_b) == (53, 2, 5)
    assert of(found, "f1").a == pytest.approx(sum(p.scores["f1"] for p in gold.predictions[5:-2]) / 53)
    assert "53 questions in both; left out: 2 only in A, 5 only in B" in markdown(found)


@pytest.mark.parametrize("change", [{"set": "other"}, {"part": "train"}])
def test_runs_over_different_questions_are_refused_in_one_line(gold: Run, change: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="different questions: lighthouses") as refusal:
        compare(gold, replace(gold, config={**gold.config, **change}))
    assert "\n" not in str(refusal.value)


def test_runs_without_a_common_question_or_with_other_texts_are_refused(gold: Run) -> None:
    with pytest.raises(UsageError, match="no question of"):
        compare(replace(gold, predictions=gold.predictions[:3]), replace(gold, predictions=gold.predictions[3:]))
    with pytest.raises(UsageError, match="question q0 is not the same"):
        compare(gold, altered(gold, lambda p: replace(p, question=p.question + "?")))


def test_a_metric_that_no_run_has_is_refused_with_those_there_are(gold: Run, noisy: Run) -> None:
    with pytest.raises(UsageError, match="use one of: em, contains"):
        compare(gold, noisy, metric="bleu")


def test_won_and_lost_are_the_questions_whose_score_changed(gold: Run, noisy: Run) -> None:
    found = compare(gold, noisy)
    pairs = zip(gold.predictions, noisy.predictions, strict=True)
    scores = {p.id: (p.scores["contains"], q.scores["contains"]) for p, q in pairs}
    assert {c.id for c in found.won} == {id for id, (a, b) in scores.items() if b > a}
    assert {c.id for c in found.lost} == {id for id, (a, b) in scores.items() if b < a}
    assert found.won and found.lost
    back = compare(noisy, gold)
    assert {c.id for c in back.won} == {c.id for c in found.lost}


def test_changes_of_a_graded_metric_begin_with_the_largest(gold: Run, noisy: Run) -> None:
    lost = compare(gold, noisy, metric="f1").lost
    sizes = [c.a.score - c.b.score for c in lost]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1


def test_an_unanswerable_question_is_won_by_refusing_it() -> None:
    asked = invented_runs.questions(30, unanswerable=True)
    eager = altered(invented_runs.run("given", asked), lambda p: replace(p, refused=False))
    cautious = replace(altered(eager, lambda p: replace(p, refused=True)), config={**eager.config, "seed": 1})
    found = compare(eager, cautious)
    assert {c.id for c in found.won} == {q.id for q in asked if not q.answerable}
    assert not found.lost
    assert (of(found, "missed_refusal_rate").difference, of(found, "missed_refusal_rate").n) == (-1, 10)
    assert (of(found, "false_refusal_rate").difference, of(found, "false_refusal_rate").n) == (1, 20)
    assert of(found, "em_with_refusals").b == pytest.approx(cautious.summary.metrics["em_with_refusals"].value)
    assert "gold: not in these documents" in markdown(found)


def test_derived_means_equal_those_of_the_summary() -> None:
    asked = invented_runs.questions(45, unanswerable=True)
    one, two = invented_runs.run("gold", asked), invented_runs.run("gold+4", asked)
    found = compare(one, two)
    summed = {d.metric: (one.summary.metrics[d.metric], two.summary.metrics[d.metric]) for d in found.metrics}
    whole = [d for d in found.metrics if d.n == summed[d.metric][0].n == summed[d.metric][1].n]
    for d in whole:
        assert (d.a, d.b) == pytest.approx((summed[d.metric][0].value, summed[d.metric][1].value))
    assert {"em_with_refusals", "missed_refusal_rate", "prompt_tokens"} <= {d.metric for d in whole}
    assert "aurc" in found.untested


def test_metrics_without_a_difference_are_not_tested(gold: Run, noisy: Run) -> None:
    found = compare(gold, noisy)
    assert "gold_shown" in found.same
    assert not {d.metric for d in found.metrics} & {*found.same, *found.untested}
    again = compare(gold, gold)
    assert again.metrics == () and again.won == () and again.lost == ()
    assert "same settings" in again.warnings[0]


def test_what_differs_is_listed_and_more_than_one_thing_is_warned_of(gold: Run, noisy: Run) -> None:
    found = compare(gold, noisy)
    assert dict(found.differs) == {"arm": ("gold", "gold+8")}
    assert not found.warnings
    other = replace(noisy, config={**noisy.config, "generator": "big", "generator_sha256": "0" * 64, "cores": 8})
    found = compare(gold, other)
    assert list(found.differs) == ["arm", "generator"]  # its hash differs with it; cores change no answer
    assert "2 settings differ" in found.warnings[0]
    assert "WARNING: 2 settings" in markdown(found)


def test_the_settings_that_come_with_an_arm_are_no_second_thing(gold: Run) -> None:
    found = compare(gold, invented_runs.run("retrieved:5", ASKED))
    assert {"arm", "selector", "keep"} == found.differs.keys()
    assert not found.warnings


def test_holm_equals_a_case_by_hand() -> None:
    # sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 = .04 but not below .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_every_p_is_corrected_for_the_number_of_tests(gold: Run, noisy: Run) -> None:
    found = compare(gold, noisy)
    assert [d.p_holm for d in found.metrics] == holm([d.p for d in found.metrics])
    assert f"{len(found.metrics)} metrics were tested" in markdown(found)


def test_a_comparison_is_the_same_each_time_and_becomes_json(gold: Run, noisy: Run) -> None:
    assert json.dumps(asdict(compare(gold, noisy))) == json.dumps(asdict(compare(gold, noisy)))


def test_markdown_lists_as_many_questions_as_asked_for(gold: Run, noisy: Run) -> None:
    found = compare(gold, noisy)
    shown = markdown(found, 2)
    assert shown.count("\n   A (") == 4
    assert f"## Lost, worse in B by contains: {len(found.lost)}; the first 2" in shown
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1  # columns stand in line in a terminal
    assert all(row.count("|") == 9 for row in rows)


def test_hostile_texts_cannot_reach_the_terminal(gold: Run, noisy: Run) -> None:
    hostile = "\x1b[31mred\x1b]0;title\x07\n# Won: 99\x00 \u202eright to left \ud800 " + "x" * 100_000
    shown = markdown(compare(gold, altered(noisy, lambda p: replace(p, answer=hostile, answers=(hostile,)))))
    assert not any(c in shown for c in "\x1b\x07\x00\u202e\ud800")
    assert shown.encode("utf-8")
    assert "\n# Won: 99" not in shown and "# Won: 99" in shown
    assert len(shown) < 60_000
    assert "100,0" in shown  # how long it was


# ---- wording


def test_numbers_have_their_unit_and_sign() -> None:
    assert [number("f1", 0.1234), number("f1", -0.1234), number("f1", 0.1, sign=True)] == ["12.3", "−12.3", "+10.0"]
    assert [number("f1", -0.0001, sign=True), number("prompt_tokens", 1234.5)] == ["0.0", "1,234"]
    assert [number("prompt_tokens", 9.25), number("total_ms", 1234)] == ["9.2", "1.23"]


def test_clipping_says_how_long_a_text_was() -> None:
    assert clip("two\n words", 20) == "two words"
    assert clip("x" * 30, 20) == "x" * 20 + " … (30 characters)"
    assert clean("a\x00b\ud800c\td") == "a\ufffdb\ufffdc\td"


def test_differing_fields_leave_circumstances_and_their_hashes_out() -> None:
    one = {"arm": "gold", "generator": "a", "generator_sha256": "1", "started": "now", "set_sha256": "1"}
    other = {"arm": "gold", "generator": "b", "generator_sha256": "2", "started": "then", "set_sha256": "2", "new": 1}
    assert differing_fields([one, other]) == ["generator", "set_sha256", "new"]
