"""Two runs over the same questions: what differs between them, by how much, and in which questions it shows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge_rag.errors import UsageError
from edge_rag.evaluation.intervals import paired_bootstrap
from edge_rag.evaluation.predictions import Prediction, Run
from edge_rag.evaluation.scoring import squad_words
from edge_rag.evaluation.wording import clip, differing_fields, group_of, metric_label, number, p_value, run_labels

# Figures of a summary that are no scores, though means over questions: see intervals.summarise.
_OF_QUESTION: Mapping[str, Callable[[Prediction], float | None]] = {
    "false_refusal_rate": lambda p: float(p.refused) if p.answerable else None,
    "missed_refusal_rate": lambda p: None if p.answerable else float(not p.refused),
    "prompt_tokens": lambda p: p.prompt_tokens,
    "answer_tokens": lambda p: p.answer_tokens,
    "em_with_refusals": lambda p: _with_refusals(p, "em"),
    "f1_with_refusals": lambda p: _with_refusals(p, "f1"),
}
_MEND = "compare two runs of one set and part"


@dataclass(frozen=True, slots=True)
class MetricDifference:
    metric: str
    a: float  # means over the questions for which both runs have it
    b: float
    difference: float  # b - a
    low: float  # its 95% paired bootstrap interval
    high: float
    p: float
    p_holm: float  # corrected for the number of metrics that were tested
    n: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What one run made of a question."""

    answer: str
    refused: bool
    score: float  # by Comparison.metric; for an unanswerable question: 1 if it was refused
    shown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    id: str
    question: str
    answerable: bool
    answers: tuple[str, ...]
    gold_ids: tuple[str, ...]
    a: Reply
    b: Reply


@dataclass(frozen=True, slots=True)
class Comparison:
    questions: str  # the set, and the part of it
    a: str  # arms, and what else tells the runs apart
    b: str
    folder_a: str
    folder_b: str
    n: int  # questions in both
    only_a: int  # questions in one of them: left out
    only_b: int
    differs: Mapping[str, tuple[Any, Any]]  # settings, by their names in config.json
    metrics: tuple[MetricDifference, ...]  # that were tested
    same: tuple[str, ...]  # metrics that are equal for every question: nothing to test
    untested: Mapping[str, tuple[float, float]]  # figures of whole runs, which no question has one by one
    metric: str  # that won and lost go by
    won: tuple[Change, ...]  # better in b, the largest change first
    lost: tuple[Change, ...]
    warnings: tuple[str, ...]


def compare(a: Run, b: Run, *, metric: str = "contains", seed: int = 0) -> Comparison:
    """Compare two runs over the same questions, which are matched by their ids."""
    pairs = pairs_of(a, b)
    _check_metric(metric, pairs)
    names = [name for name in a.summary.metrics if name in b.summary.metrics]
    differences, same = _differences(pairs, names, seed)
    listed = {*(d.metric for d in differences), *same}
    differs = {name: (a.config.get(name), b.config.get(name)) for name in differing_fields([a.config, b.config])}
    changes = _changes(pairs, metric)
    labels = run_labels([a, b])
    return Comparison(
        questions=group_of(a),
        a=labels[0],
        b=labels[1],
        folder_a=str(a.folder),
        folder_b=str(b.folder),
        n=len(pairs),
        only_a=len({p.id for p in a.predictions}) - len(pairs),
        only_b=len({p.id for p in b.predictions}) - len(pairs),
        differs=differs,
        metrics=tuple(differences),
        same=tuple(same),
        untested={
            name: (a.summary.metrics[name].value, b.summary.metrics[name].value) for name in names if name not in listed
        },
        metric=metric,
        won=tuple(c for c in changes if c.b.score > c.a.score),
        lost=tuple(c for c in changes if c.b.score < c.a.score),
        warnings=tuple(_warnings(pairs, a, b, differs)),
    )


def values(prediction: Prediction) -> dict[str, float]:
    """Return what a question contributes to the means of a summary; to some only if the summary has them."""
    found = {name: value for name, of in _OF_QUESTION.items() if (value := of(prediction)) is not None}
    return {**prediction.scores, **found}


def _with_refusals(p: Prediction, metric: str) -> float | None:
    if not p.answerable:
        return float(p.refused or not squad_words(p.answer))
    return 0.0 if p.refused else p.scores.get(metric)


def score(prediction: Prediction, metric: str) -> float | None:
    """Return how good a reply is: its score, or for an unanswerable question whether it was refused."""
    return prediction.scores.get(metric) if prediction.answerable else float(prediction.refused)


def markdown(comparison: Comparison, limit: int = 20) -> str:
    """Write a comparison for a terminal, with at most `limit` questions that were won and as many that were lost."""
    c = comparison
    return "\n".join(
        [
            f"# {c.questions}: A = {c.a}, B = {c.b}",
            "",
            f"- A: {clip(c.folder_a, 200)}",
            f"- B: {clip(c.folder_b, 200)}",
            f"- {_counted(c)}",
            *_differing(c),
            *(f"- WARNING: {text}" for text in c.warnings),
            "",
            *differences_table("metric", [(metric_label(d.metric), d) for d in c.metrics]),
            "",
            *_notes(c),
            *_listed("Won", "better in B", c.won, c.metric, limit),
            *_listed("Lost", "worse in B", c.lost, c.metric, limit),
        ]
    )


Pair = tuple[Prediction, Prediction]


def pairs_of(a: Run, b: Run) -> list[Pair]:
    """Match questions, and refuse runs over different ones."""
    if group_of(a) != group_of(b):
        raise UsageError(f"the runs are over different questions: {group_of(a)}, and {group_of(b)}", mend=_MEND)
    in_a, in_b = ({p.id: p for p in run.predictions} for run in (a, b))
    pairs = [(p, in_b[id]) for id, p in in_a.items() if id in in_b]
    if not pairs:
        raise UsageError(f"no question of {a.folder} is in {b.folder}", mend=_MEND)
    if changed := [p.id for p, q in pairs if p.question != q.question]:
        raise UsageError(f"question {clip(changed[0], 80)} is not the same in both runs", mend=_MEND)
    return pairs


def _check_metric(metric: str, pairs: Sequence[Pair]) -> None:
    names = dict.fromkeys(name for pair in pairs for p in pair for name in p.scores)
    if metric not in names and any(p.answerable for p, _ in pairs):
        raise UsageError(f"neither run has the metric {metric}", mend=f"use one of: {', '.join(names) or 'none'}")


def _differences(pairs: Sequence[Pair], names: Sequence[str], seed: int) -> tuple[list[MetricDifference], list[str]]:
    """Test every metric of these names in which the runs differ for some question."""
    columns: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for in_a, in_b in ((values(p), values(q)) for p, q in pairs):
        for name in columns:
            if name in in_a and name in in_b:
                columns[name].append((in_a[name], in_b[name]))
    columns = {name: column for name, column in columns.items() if column}
    same = [name for name, column in columns.items() if all(x == y for x, y in column)]
    tested = [name for name in columns if name not in same]
    found = [paired_bootstrap(*zip(*columns[name], strict=True), seed=seed) for name in tested]
    differences = [
        MetricDifference(name, _mean(columns[name], 0), _mean(columns[name], 1), d.value, d.low, d.high, d.p, d.p, d.n)
        for name, d in zip(tested, found, strict=True)
    ]
    return correct(differences), same


def correct(differences: Sequence[MetricDifference]) -> list[MetricDifference]:
    """Fill in p_holm: these were tested together."""
    ps = holm([d.p for d in differences])
    return [replace(d, p_holm=p) for d, p in zip(differences, ps, strict=True)]


def holm(ps: Sequence[float]) -> list[float]:
    """Correct for several tests: the smallest p times their number, the next times one less, and none below one before it."""
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, ps[place] * (len(ps) - rank)))
        corrected[place] = largest
    return corrected


def _mean(column: Sequence[tuple[float, float]], side: int) -> float:
    return sum(pair[side] for pair in column) / len(column)


def _changes(pairs: Sequence[Pair], metric: str) -> list[Change]:
    """List the questions whose score changed, the largest change first; F1 decides where those are equal."""
    found = list[tuple[float, float, Change]]()
    for p, q in pairs:
        score_a, score_b = score(p, metric), score(q, metric)
        if score_a is None or score_b is None or score_a == score_b:
            continue
        replies = (Reply(r.answer, r.refused, s, r.shown) for r, s in ((p, score_a), (q, score_b)))
        f1 = abs(q.scores.get("f1", 0.0) - p.scores.get("f1", 0.0))
        change = Change(p.id, p.question, p.answerable, p.answers, p.gold_ids, *replies)
        found.append((abs(score_b - score_a), f1, change))
    return [change for _, _, change in sorted(found, key=lambda row: row[:2], reverse=True)]


def _warnings(pairs: Sequence[Pair], a: Run, b: Run, differs: Mapping[str, tuple[object, object]]) -> Iterator[str]:
    # Another arm takes settings of its own along: only a search has a selector.
    own = [name for name, (x, y) in differs.items() if "arm" in differs and (x is None or y is None)]
    if len(differs) - len(own) > 1:
        yield f"{len(differs) - len(own)} settings differ, so no difference below can be put down to one of them"
    if not differs:
        yield "the runs have the same settings: what differs below is chance"
    if any(p.answers != q.answers for p, q in pairs):
        yield "the right answers to some questions differ between the runs"
    if turned := sum(p.answerable != q.answerable for p, q in pairs):
        yield f"{turned:,} questions can be answered from what one run was shown, and are to be refused in the other"
    for run in (a, b):
        if len({p.id for p in run.predictions}) < len(run.predictions):
            yield f"{clip(run.folder, 200)} has questions twice; the last reply to each counts"


def _counted(c: Comparison) -> str:
    left_out = [f"{n} only in {side}" for n, side in ((c.only_a, "A"), (c.only_b, "B")) if n]
    return f"{c.n:,} questions in both" + (f"; left out: {', '.join(left_out)}" if left_out else "")


def _differing(c: Comparison) -> Iterator[str]:
    for name, (in_a, in_b) in c.differs.items():
        yield f"- {clip(name, 80)}: {clip(in_a, 120)} → {clip(in_b, 120)}"


def differences_table(head: str, named: Sequence[tuple[str, MetricDifference]]) -> Iterator[str]:
    """Write a Markdown table whose columns stand in line in a terminal, too."""
    rows = [[head, "A", "B", "B − A", "95% interval", "p", "p (Holm)", "n"]]
    for name, d in named:
        rows.append(
            [
                name,
                *(number(d.metric, value) for value in (d.a, d.b)),
                number(d.metric, d.difference, sign=True),
                " to ".join(number(d.metric, value, sign=True) for value in (d.low, d.high)),
                p_value(d.p),
                p_value(d.p_holm) + (" *" if d.p_holm < 0.05 else "  "),
                f"{d.n:,}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield "| " + " | ".join(cells) + " |"


def _notes(c: Comparison) -> Iterator[str]:
    tests = f"{len(c.metrics)} metrics were" if len(c.metrics) != 1 else "1 metric was"
    yield f"{tests} tested, question by question; p (Holm) corrects for their number, * is below 0.05. Intervals: bootstrap."
    yield "Scores are in percent, differences in percentage points; n counts the questions for which both runs have the score."
    if c.same:
        yield f"Equal for every question: {', '.join(map(metric_label, c.same))}."
    if c.untested:
        both = (f"{metric_label(m)} {number(m, x)} → {number(m, y)}" for m, (x, y) in c.untested.items())
        yield f"Of the whole runs, not tested: {'; '.join(both)}."


def _listed(title: str, meaning: str, changes: Sequence[Change], metric: str, limit: int) -> Iterator[str]:
    left_out = max(0, len(changes) - limit)
    yield ""
    first = f"; the first {limit:,}" if left_out else ""
    yield f"## {title}, {meaning} by {metric_label(metric)}: {len(changes):,}{first}"
    for count, change in enumerate(changes[:limit], 1):
        gold = " / ".join(clip(answer, 100) for answer in change.answers[:5])
        yield ""
        yield f"{count}. {clip(change.question, 300)}  [{clip(change.id, 60)}]"
        yield f"   gold: {gold or 'none'}" if change.answerable else "   gold: not in these documents"
        yield f"   A {_reply(change.a, change)}"
        yield f"   B {_reply(change.b, change)}"


def _reply(reply: Reply, change: Change) -> str:
    shown = " ".join(clip(id, 40) + ("*" if id in change.gold_ids else "") for id in reply.shown[:12])
    more = f" and {len(reply.shown) - 12} more" if len(reply.shown) > 12 else ""
    refused = " [refused]" if reply.refused else ""
    passages = f"  (shown: {shown}{more}; * is gold)" if reply.shown else ""
    return f"({number('', reply.score)}): {clip(reply.answer, 300) or 'nothing'}{refused}{passages}"
