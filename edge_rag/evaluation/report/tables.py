"""Tables of figures: a row for each arm, gathered by set."""

from collections import Counter
from collections.abc import Iterator, Sequence

from edge_rag.evaluation.predictions import Interval
from edge_rag.evaluation.report import page
from edge_rag.evaluation.report.page import NOTHING, cell, head, row, side, text
from edge_rag.evaluation.report.runs import Groups, NamedRun, difference_of
from edge_rag.evaluation.scoring import METRICS
from edge_rag.evaluation.wording import LOWER_IS_BETTER, metric_label, number, span, unit

# Metrics by table. A name that ends in @ stands for all depths.
ANSWERS = ("em", "contains", "f1", "accuracy", "em_with_refusals", "f1_with_refusals")
SUPPORT = ("gold_shown", "answer_shown", "citation_precision", "citation_recall", "k_precision", "k_precision_new")
RETRIEVAL = ("recall@", "all_gold@", "answer_recall@", "mrr", "ndcg@")
REFUSALS = (
    "refusal_precision",
    "false_refusal_rate",
    "missed_refusal_rate",
    "auroc",
    "aurc",
    "aurc_logprob",
    "aurc_best",
    "aurc_random",
)
COST = ("prompt_tokens", "answer_tokens")


def figures(label: str, groups: Groups, names: Sequence[str], *, best: bool = False) -> Iterator[str]:
    """Tabulate the metrics of these names, and explain them."""
    if metrics := present(groups, names):
        yield figures_table(label, groups, metrics, best=best)
        yield explained(metrics)


def cost(groups: Groups) -> Iterator[str]:
    metrics = present(groups, COST)
    summaries = [arm.run.summary for arms in groups.values() for arm in arms]
    timings = list(dict.fromkeys(name for s in summaries for name in s.timings))
    bodies = []
    for name, arms in groups.items():
        rows = []
        for arm in arms:
            s = arm.run.summary
            cells = [_figure_cell(m, s.metrics.get(m), s.n) for m in metrics]
            cells += [_figure_cell(t, figure := s.timings.get(t), figure.n if figure else 0) for t in timings]
            rest = (f"{s.seconds:,.0f}", f"{s.tokens_per_second:,.0f}", f"{s.peak_memory_mb:,.0f}")
            rows.append(row(side(arm.link), *cells, *(cell(value, "figure") for value in rest)))
        bodies.append(page.group(page.name(name), len(metrics) + len(timings) + 4, rows))
    names = [
        *(_column(m) for m in (*metrics, *timings)),
        "all, batched&nbsp;(s)",
        "tokens per second",
        "peak memory&nbsp;(MB)",
    ]
    counts = sorted({figure.n for s in summaries for figure in s.timings.values()})
    note = "Means with 95% intervals."
    if counts:
        n = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        note += f" First token and whole answer: of {n} questions of each run, asked one at a time."
    yield page.table("Cost", [head("Arm"), *(head(name, "figure") for name in names)], bodies, note)


def present(groups: Groups, names: Sequence[str] = ()) -> list[str]:
    """List the metrics of these names that any run has, in the order of METRICS; without names, those of no other table."""
    order = {name: place for place, name in enumerate(METRICS)}
    found = {name for arms in groups.values() for arm in arms for name in arm.run.summary.metrics}
    others = (*ANSWERS, *RETRIEVAL, *REFUSALS, *SUPPORT, *COST)
    chosen = [name for name in found if (_family(name) in names if names else _family(name) not in others)]
    return sorted(chosen, key=lambda name: (order.get(name, len(order)), name))


def _family(metric: str) -> str:
    name, at, _ = metric.partition("@")
    return name + at


def figures_table(label: str, groups: Groups, metrics: Sequence[str], *, best: bool = False) -> str:
    bodies = []
    for name, arms in groups.items():
        winners = {metric: _winner(arms, metric) for metric in metrics} if best else {}
        rows = []
        for arm in arms:
            if not arm.run.summary.metrics.keys() & metrics:
                continue
            figures = [(m, arm.run.summary.metrics.get(m)) for m in metrics]
            n = _usual_n([figure for _, figure in figures])
            cells = [_figure_cell(m, figure, n, best=winners.get(m) is arm) for m, figure in figures]
            rows.append(row(side(arm.link), *cells, cell(f"{n:,}" if n else NOTHING, "figure")))
        if rows:
            bodies.append(page.group(f"{page.name(name)}, {_counts(arms)} questions", len(metrics) + 2, rows))
    note = (
        "★ better than every other arm of its set that has the figure: paired test, p below 0.05 against each."
        if best
        else ""
    )
    heads = [head("Arm"), *(head(_column(m), "figure") for m in metrics), head("n", "figure")]
    return page.table(label, heads, bodies, note)


def _usual_n(figures: Sequence[Interval | None]) -> int:
    """Return the number of questions that most of a row's figures rest on; the others get their own."""
    counts = Counter(figure.n for figure in figures if figure is not None)
    return counts.most_common(1)[0][0] if counts else 0


def _figure_cell(metric: str, figure: Interval | None, n: int, *, best: bool = False) -> str:
    if figure is None:
        return cell(NOTHING, "figure")
    star = '★<span class="hidden"> best</span> ' if best else ""
    of = f", n&nbsp;{figure.n:,}" if figure.n != n else ""
    value = f"{star}{number(metric, figure.value)}<small>{span(metric, figure)}{of}</small>"
    return cell(value, "figure best" if best else "figure")


def _winner(arms: Sequence[NamedRun], metric: str) -> NamedRun | None:
    """Return the arm that a paired test finds better than every other; None where there is no such arm."""
    rated = [(a.run.summary.metrics[metric].value, a) for a in arms if metric in a.run.summary.metrics]
    rated.sort(key=lambda r: r[0] if metric in LOWER_IS_BETTER else -r[0])
    if len(rated) < 2:
        return None
    (_, first), *others = rated
    for _, other in others:
        difference = difference_of(first, other, metric)
        if difference is None or difference.p >= 0.05:
            return None
        if (difference.value > 0) != (metric in LOWER_IS_BETTER):
            return None
    return first


def explained(metrics: Sequence[str]) -> str:
    known = [(metric_label(m), text(METRICS[m])) for m in metrics if m in METRICS]
    return page.details("What the columns mean", [page.pairs(known)]) if known else ""


def _counts(arms: Sequence[NamedRun]) -> str:
    counts = sorted({arm.run.summary.n for arm in arms})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _column(metric: str) -> str:
    return text(metric_label(metric), 60) + (f"&nbsp;({unit(metric)})" if unit(metric) else "")
