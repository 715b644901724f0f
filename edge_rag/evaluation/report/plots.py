"""What a page draws: scores by arm, noise, risk and coverage, and what answers cost."""

import json
import math
from collections.abc import Iterator, Sequence

from edge_rag.evaluation import plot
from edge_rag.evaluation.predictions import Interval
from edge_rag.evaluation.report import page
from edge_rag.evaluation.report.runs import Groups, NamedRun
from edge_rag.evaluation.report.tables import present
from edge_rag.evaluation.wording import CIRCUMSTANCES, clip, differing_fields, distractors, metric_label

MOST_LINES = 8  # in a plot
CURVE_POINTS = 50


def answer_plots(groups: Groups) -> Iterator[str]:
    kinds = [metric for metric in ("em", "f1", "contains", "accuracy") if present(groups, [metric])][:3]
    x = plot.Axis("score (%)", low=0, high=100)
    for name, arms in groups.items():
        rows = [plot.Row(a.label, [_percent(a.run.summary.metrics.get(kind)) for kind in kinds]) for a in arms]
        drawn = plot.row_plot(f"Answers: {name}", x, [metric_label(kind) for kind in kinds], rows)
        if any(value for row in rows for value in row.values):
            yield page.figure(page.name(name), drawn)


def noise(groups: Groups) -> list[str]:
    """Draw scores against the number of distractors beside the gold passages."""
    slopes = {name: _slopes(name, arms) for name, arms in groups.items()}
    together = [slope for found in slopes.values() for slope in found]
    pictures = {"": together} if len(together) <= MOST_LINES else slopes
    figures = [
        _noise_plot(metric, name, found) for name, found in pictures.items() if found for metric in ("f1", "contains")
    ]
    if not figures:
        return []
    return [
        "<p>How far scores fall when passages that do not hold the answer are mixed in. Flat is good: the generator is not"
        " misled. Bars are 95% intervals.</p>",
        *page.plots(figures),
    ]


def _slopes(name: str, arms: Sequence[NamedRun]) -> list[tuple[str, list[NamedRun]]]:
    """Gather the arms that differ in nothing but their distractors, and name each such slope."""
    by_setting = dict[str, list[NamedRun]]()
    for arm in arms:
        if distractors(arm.run.config["arm"]) is not None:
            kept = {k: v for k, v in arm.run.config.items() if k not in CIRCUMSTANCES and k != "arm"}
            by_setting.setdefault(json.dumps(kept, sort_keys=True, default=str), []).append(arm)
    found = [slope for slope in by_setting.values() if len(slope) > 1]
    varied = [f for f in differing_fields([slope[0].run.config for slope in found]) if f != "arm"] if found else []
    return [
        (" · ".join([name, *(clip(slope[0].run.config.get(field), 40) for field in varied)]), slope) for slope in found
    ]


def _noise_plot(metric: str, name: str, slopes: Sequence[tuple[str, list[NamedRun]]]) -> str:
    series = []
    for slope, arms in slopes[:MOST_LINES]:
        rated = [a for a in arms if metric in a.run.summary.metrics]
        steps = [(distractors(a.run.config["arm"]) or 0, a.run.summary.metrics[metric]) for a in rated]
        points = [(float(n), figure.value * 100) for n, figure in steps]
        series.append(plot.Series(slope, points, [(f.low * 100, f.high * 100) for _, f in steps]))
    highest = max((high for line in series for _, high in line.ranges), default=100)
    x = plot.Axis("distractors beside the gold passages")
    label = metric_label(metric)
    y = plot.Axis(f"{label} (%)", low=0, high=_ceiling(highest))
    title = f"{label[0].upper()}{label[1:]} against distractors"
    caption = f"{title}: {page.name(name)}" if name else title
    return page.figure(caption, plot.line_plot(f"{title} {name}".strip(), x, y, series, plot.IN_PAGE))


def risk_coverage(groups: Groups) -> list[str]:
    figures = []
    x, y = plot.Axis("answered (%)", low=0, high=100), plot.Axis("of these wrong (%)", low=0, high=100)
    for name, arms in groups.items():
        lines = [
            plot.Series(a.label, [(c * 100, r * 100) for c, r in _thinned(a.run.summary.risk_coverage)])
            for a in arms
            if len(a.run.summary.risk_coverage) > 1
        ]
        if lines:
            drawn = plot.line_plot(f"Risk and coverage: {name}", x, y, lines[:MOST_LINES], plot.IN_PAGE)
            left_out = f" (the first {MOST_LINES} of {len(lines)} arms)" if len(lines) > MOST_LINES else ""
            figures.append(page.figure(f"{page.name(name)}{left_out}", drawn))
    if not figures:
        return []
    return [
        "<p>If only the most confident answers were given: the share answered, and how many of those would be wrong. A line"
        " that rises from low on the left knows when it is right; a flat one does not.</p>",
        *page.plots(figures),
    ]


def _thinned(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    step = -(-len(curve) // CURVE_POINTS)
    return [*curve[:-1:step], curve[-1]]


def cost_plots(groups: Groups) -> Iterator[str]:
    yield "<p>What an answer costs: a prompt that the generator has to read, and the time it takes.</p>"
    for title, figures in (
        ("Answers against length of prompt", _against_tokens(groups)),
        ("Latency", _latency(groups)),
    ):
        if found := page.plots(figures):
            yield from (f"<h3>{title}</h3>", *found)
    yield "<h3>In numbers</h3>"


def _against_tokens(groups: Groups) -> Iterator[str]:
    for name, arms in groups.items():
        metric = next((m for m in ("em", "accuracy") if any(m in a.run.summary.metrics for a in arms)), "em")
        rated = [a for a in arms if {metric, "prompt_tokens"} <= a.run.summary.metrics.keys()]
        if len(rated) > 1:
            dots = [_dot(a.label, a.run.summary.metrics["prompt_tokens"], a.run.summary.metrics[metric]) for a in rated]
            label = metric_label(metric)
            y = plot.Axis(f"{label} (%)", low=0, high=_ceiling(max(d.high for d in dots)))
            title = f"{label} against prompt tokens"
            x = plot.Axis("prompt tokens (mean)", low=0)
            yield page.figure(f"{title}: {page.name(name)}", plot.scatter_plot(f"{title}: {name}", x, y, dots))


def _latency(groups: Groups) -> Iterator[str]:
    kinds = {"first_token_ms": "first token", "total_ms": "whole answer"}
    for name, arms in groups.items():
        timed = [a for a in arms if a.run.summary.timings.keys() & kinds]
        if timed:
            rows = [plot.Row(a.label, [_seconds(a.run.summary.timings.get(kind)) for kind in kinds]) for a in timed]
            x = plot.Axis("seconds, one question at a time", low=0)
            drawn = plot.row_plot(f"Latency: {name}", x, list(kinds.values()), rows)
            yield page.figure(f"Latency: {page.name(name)}", drawn)


def _dot(name: str, tokens: Interval, figure: Interval) -> plot.Dot:
    return plot.Dot(name, tokens.value, figure.value * 100, figure.low * 100, figure.high * 100)


def _percent(figure: Interval | None) -> tuple[float, float, float] | None:
    return None if figure is None else (figure.value * 100, figure.low * 100, figure.high * 100)


def _seconds(figure: Interval | None) -> tuple[float, float, float] | None:
    return None if figure is None else (figure.value / 1000, figure.low / 1000, figure.high / 1000)


def _ceiling(highest: float) -> float:
    """Return where an axis of percentages ends: at the next ten."""
    return min(100.0, 10.0 * math.ceil(highest / 10 + 1e-9))
