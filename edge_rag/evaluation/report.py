"""Runs side by side: one HTML file with tables, plots and every answer's fate, and a Markdown table for a README."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation import page, plot
from edge_rag.evaluation.compare import holm, values
from edge_rag.evaluation.intervals import PairedDifference, paired_bootstrap
from edge_rag.evaluation.page import cell, head, row, side, text
from edge_rag.evaluation.predictions import Interval, Prediction, Run
from edge_rag.evaluation.scoring import METRICS
from edge_rag.evaluation.wording import (
    CIRCUMSTANCES,
    LOWER_IS_BETTER,
    arm_order,
    clip,
    differing_fields,
    distractors,
    group_of,
    metric_label,
    number,
    run_labels,
    span,
    unit,
)

QUESTION_BYTES = 2_000_000  # of all runs' questions in the page together
MOST_QUESTIONS = 200  # of a run
MOST_LINES = 8  # in a plot
CURVE_POINTS = 50

# Metrics by table. A name that ends in @ stands for all depths.
_ANSWERS = ("em", "contains", "f1", "accuracy", "em_with_refusals", "f1_with_refusals")
_SUPPORT = ("gold_shown", "answer_shown", "citation_precision", "citation_recall", "k_precision", "k_precision_new")
_RETRIEVAL = ("recall@", "all_gold@", "answer_recall@", "mrr", "ndcg@")
_NOTHING = '<span class="soft">–</span>'
_REFUSALS = (
    "refusal_precision",
    "false_refusal_rate",
    "missed_refusal_rate",
    "auroc",
    "aurc",
    "aurc_logprob",
    "aurc_best",
    "aurc_random",
)
_COST = ("prompt_tokens", "answer_tokens")
_SAME_MODEL = ("generator", "generator_sha256", "lora", "quantised", "prompt")
_SETTING_NAMES = {
    "set_sha256": "question file, SHA-256",
    "generator_sha256": "generator, SHA-256",
    "edge_rag": "edge_rag version",
    "prompt": "prompt style",
    "n": "questions",
    "limit": "limit of questions",
}


@dataclass(frozen=True, slots=True)
class _Arm:
    """A run, as it is called on the page."""

    run: Run
    label: str  # unique among the runs of a set
    anchor: str
    values: Mapping[str, Mapping[str, float]]  # of each question, by its id

    @property
    def link(self) -> str:
        return f'<a href="#{self.anchor}">{page.name(self.label)}</a>'


_Groups = dict[str, list[_Arm]]  # by the name of a set and its part


def write_report(runs: Sequence[Run], path: Path) -> None:
    """Write runs as one HTML file. An older file is replaced at the end, or not at all."""
    if not runs:
        raise UsageError("no run to report on", mend="name one or more: edge-rag eval report RUN...")
    groups = _grouped(runs)
    html = page.page(_title(groups), _body(groups))
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(html, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise EdgeRagError(
            f"{path} cannot be written: {error.strerror}", mend="give another file with --out"
        ) from error


def markdown_table(runs: Sequence[Run], metrics: Sequence[str] = ("em", "contains", "f1")) -> str:
    """Write a row for each run: means in percent, 95% intervals, and the number of questions."""
    lines = [
        "| set | arm | n | " + " | ".join(metric_label(m) for m in metrics) + " |",
        "|---|---|--:|" + "--:|" * len(metrics),
    ]
    for name, arms in _grouped(runs).items():
        for arm in arms:
            figures = [arm.run.summary.metrics.get(metric) for metric in metrics]
            shown = [_in_markdown(m, f, arm.run.summary.n) for m, f in zip(metrics, figures, strict=True)]
            cells = [name, arm.label, f"{arm.run.summary.n:,}", *shown]
            lines.append("| " + " | ".join(c.replace("\\", "\\\\").replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def _grouped(runs: Sequence[Run]) -> _Groups:
    arms = [
        _Arm(run, label, f"run-{n}", {p.id: values(p) for p in run.predictions})
        for n, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True), 1)
    ]
    groups: _Groups = {}
    for arm in arms:
        groups.setdefault(group_of(arm.run), []).append(arm)
    return {name: sorted(found, key=lambda a: arm_order(a.run.config["arm"])) for name, found in groups.items()}


def _title(groups: _Groups) -> str:
    names = list(groups)
    return "Answers to " + (names[0] if len(names) == 1 else f"{len(names)} question sets")


def _body(groups: _Groups) -> Iterator[str]:
    arms = [arm for found in groups.values() for arm in found]
    sections = [
        ("short", "In short", _in_short(groups)),
        ("answers", "Answers", _answers(groups)),
        ("noise", "Noise", _noise(groups)),
        ("confidence", "Confidence and refusals", [*_risk_coverage(groups), *_figures("Refusals", groups, _REFUSALS)]),
        ("cost", "Cost", [*_cost_plots(groups), *_cost(groups)]),
        ("retrieval", "Retrieval", _figures("Retrieval", groups, _RETRIEVAL, best=True)),
        ("support", "What answers rest on", _figures("What answers rest on", groups, _SUPPORT, best=True)),
        ("others", "Other metrics", _figures("Other metrics", groups, ())),
        ("measured", "What was measured", _measured(groups)),
        ("runs", "Runs and their questions", _runs(groups)),
    ]
    written = [(name, title, html) for name, title, body in sections if (html := page.section(name, title, body))]
    yield f"<header><h1>{text(_title(groups), 120)}</h1>"
    yield _cards(groups, arms)
    yield '<nav aria-label="Sections"><ul>'
    yield from (f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in written)
    yield "</ul></nav></header><main>"
    for _, _, html in written:
        yield from html
    yield "</main>"


def _cards(groups: _Groups, arms: Sequence[_Arm]) -> str:
    generators = list(dict.fromkeys(str(a.run.config.get("generator") or "unknown") for a in arms))
    cards = [
        ("Question sets", f"{len(groups)}"),
        ("Runs", f"{len(arms)}"),
        ("Answers scored", f"{sum(a.run.summary.n for a in arms):,}"),
        ("Generator", text(generators[0], 60) if len(generators) == 1 else f"{len(generators)} of them"),
    ]
    return '<dl class="cards">' + "".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in cards) + "</dl>"


# ---- in short: what the arms say when held against each other


def _in_short(groups: _Groups) -> Iterator[str]:
    """Tabulate the contrasts that the arms were made for: one thing differs, the questions are the same."""
    metrics = ("contains", "f1")
    found = [(meaning, name, a, b) for name, arms in groups.items() for meaning, a, b in _contrasts(arms)]
    tests = [[_difference(before, after, metric) for metric in metrics] for _, _, before, after in found]
    flat = [d for differences in tests for d in differences if d is not None]
    if not flat:
        return
    uncertain = {id(d) for d, p in zip(flat, holm([d.p for d in flat]), strict=True) if p >= 0.05}
    rows = dict[str, list[str]]()
    for (meaning, name, before, after), differences in zip(found, tests, strict=True):
        title = side(f"{page.name(name)} <span>{page.name(before.label)} → {page.name(after.label)}</span>")
        cells = [_difference_cell(m, d, id(d) in uncertain) for m, d in zip(metrics, differences, strict=True)]
        n = max((d.n for d in differences if d is not None), default=0)
        rows.setdefault(meaning, []).append(row(title, *cells, cell(f"{n:,}", "figure")))
    yield (
        "<p>Differences between two arms over the same questions, in percentage points with their 95% intervals. An arm is a"
        " way to choose what the generator is shown.</p>"
    )
    yield page.table(
        "In short",
        [head("Set, from → to"), *(head(metric_label(m), "figure") for m in metrics), head("n", "figure")],
        [page.group(meaning, len(metrics) + 2, html) for meaning, html in rows.items()],
        f"“Uncertain”: p is 0.05 or more by a paired test, after Holm’s correction for these {len(flat)} tests.",
    )


def _difference_cell(metric: str, difference: PairedDifference | None, uncertain: bool) -> str:
    if difference is None:
        return cell(_NOTHING, "figure")
    low, high = (number(metric, v, sign=True) for v in (difference.low, difference.high))
    doubt = "<small>uncertain</small>" if uncertain else ""
    return cell(f"{number(metric, difference.value, sign=True)}<small>{low} to {high}</small>{doubt}", "figure")


def _contrasts(arms: Sequence[_Arm]) -> Iterator[tuple[str, _Arm, _Arm]]:
    """Pair arms of one set that the same generator answered with the same prompt style."""
    for closed, other in _pairs(arms, "closed", "given", "retrieved"):
        yield "What passages add to what the model knows by itself", closed, other
    for other, gold in [(b, a) for a, b in _pairs(arms, "gold", "given", "retrieved")]:
        yield "What would be added by showing the right passages only", other, gold
    steps = [a for a in arms if distractors(a.run.config["arm"])]
    for start, end in _pairs(arms, "gold", "gold"):
        same = [distractors(a.run.config["arm"]) or 0 for a in steps if _same_model(a, start)]
        if distractors(end.run.config["arm"]) == max(same):
            yield "What is lost to distractors beside the right passages", start, end


def _pairs(arms: Sequence[_Arm], first: str, *kinds: str) -> Iterator[tuple[_Arm, _Arm]]:
    """Yield each arm that is just `first` with each other arm of these kinds, poisoned ones left out."""
    for a in arms:
        for b in arms:
            arm = str(b.run.config["arm"])
            of_kind = arm.startswith(kinds) and not arm.endswith("poisoned") and arm != first
            if a.run.config["arm"] == first and of_kind and _same_model(a, b):
                yield a, b


def _same_model(a: _Arm, b: _Arm) -> bool:
    return all(a.run.config.get(name) == b.run.config.get(name) for name in _SAME_MODEL)


def _difference(a: _Arm, b: _Arm, metric: str) -> PairedDifference | None:
    pairs = [
        (of[metric], b.values[id][metric])
        for id, of in a.values.items()
        if metric in of and metric in b.values.get(id, ())
    ]
    return paired_bootstrap(*zip(*pairs, strict=True)) if pairs else None


# ---- tables of figures


def _answers(groups: _Groups) -> Iterator[str]:
    if metrics := _present(groups, _ANSWERS):
        yield (
            "<p>In percent, with 95% bootstrap intervals. <b>EM</b>: the answer is exactly a right one."
            " <b>contains</b>: a right one stands in it. <b>F1</b>: words shared with the nearest right one.</p>"
        )
        yield from page.plots(_answer_plots(groups))
        yield _figures_table("Answers", groups, metrics, best=True)
        yield _explained(metrics)


def _answer_plots(groups: _Groups) -> Iterator[str]:
    kinds = [metric for metric in ("em", "f1", "contains", "accuracy") if _present(groups, [metric])][:3]
    x = plot.Axis("score (%)", low=0, high=100)
    for name, arms in groups.items():
        rows = [plot.Row(a.label, [_percent(a.run.summary.metrics.get(kind)) for kind in kinds]) for a in arms]
        drawn = plot.row_plot(f"Answers: {name}", x, [metric_label(kind) for kind in kinds], rows)
        if any(value for row in rows for value in row.values):
            yield page.figure(page.name(name), drawn)


def _percent(figure: Interval | None) -> tuple[float, float, float] | None:
    return None if figure is None else (figure.value * 100, figure.low * 100, figure.high * 100)


def _figures(label: str, groups: _Groups, names: Sequence[str], *, best: bool = False) -> Iterator[str]:
    """Tabulate the metrics of these names, and explain them."""
    if metrics := _present(groups, names):
        yield _figures_table(label, groups, metrics, best=best)
        yield _explained(metrics)


def _present(groups: _Groups, names: Sequence[str] = ()) -> list[str]:
    """List the metrics of these names that any run has, in the order of METRICS; without names, those of no other table."""
    order = {name: place for place, name in enumerate(METRICS)}
    found = {name for arms in groups.values() for arm in arms for name in arm.run.summary.metrics}
    others = (*_ANSWERS, *_RETRIEVAL, *_REFUSALS, *_SUPPORT, *_COST)
    chosen = [name for name in found if (_family(name) in names if names else _family(name) not in others)]
    return sorted(chosen, key=lambda name: (order.get(name, len(order)), name))


def _family(metric: str) -> str:
    name, at, _ = metric.partition("@")
    return name + at


def _figures_table(label: str, groups: _Groups, metrics: Sequence[str], *, best: bool = False) -> str:
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
            rows.append(row(side(arm.link), *cells, cell(f"{n:,}" if n else _NOTHING, "figure")))
        if rows:
            bodies.append(page.group(f"{page.name(name)}, {_counts(arms)} questions", len(metrics) + 2, rows))
    note = "★ better than every other arm of its set: paired test, p below 0.05 against each of them." if best else ""
    heads = [head("Arm"), *(head(_column(m), "figure") for m in metrics), head("n", "figure")]
    return page.table(label, heads, bodies, note)


def _usual_n(figures: Sequence[Interval | None]) -> int:
    """Return the number of questions that most of a row's figures rest on; the others get their own."""
    counts = Counter(figure.n for figure in figures if figure is not None)
    return counts.most_common(1)[0][0] if counts else 0


def _figure_cell(metric: str, figure: Interval | None, n: int, *, best: bool = False) -> str:
    if figure is None:
        return cell(_NOTHING, "figure")
    star = '★<span class="hidden"> best</span> ' if best else ""
    of = f"<small>n {figure.n:,}</small>" if figure.n != n else ""
    value = f"{star}{number(metric, figure.value)}<small>{span(metric, figure)}</small>{of}"
    return cell(value, "figure best" if best else "figure")


def _winner(arms: Sequence[_Arm], metric: str) -> _Arm | None:
    """Return the arm that is better than every other by paired bootstrap; None where no arm is."""
    rated = [(a.run.summary.metrics[metric].value, a) for a in arms if metric in a.run.summary.metrics]
    rated.sort(key=lambda r: r[0] if metric in LOWER_IS_BETTER else -r[0])
    if len(rated) < 2:
        return None
    (_, first), *others = rated
    for _, other in others:
        difference = _difference(first, other, metric)
        if difference is None or difference.p >= 0.05:
            return None
        if (difference.value > 0) != (metric in LOWER_IS_BETTER):
            return None
    return first


def _explained(metrics: Sequence[str]) -> str:
    known = [(metric_label(m), text(METRICS[m])) for m in metrics if m in METRICS]
    return page.details("What the columns mean", [page.pairs(known)]) if known else ""


def _counts(arms: Sequence[_Arm]) -> str:
    counts = sorted({arm.run.summary.n for arm in arms})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _column(metric: str) -> str:
    return text(metric_label(metric), 60) + (f"&nbsp;({unit(metric)})" if unit(metric) else "")


# ---- plots


def _noise(groups: _Groups) -> list[str]:
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


def _slopes(name: str, arms: Sequence[_Arm]) -> list[tuple[str, list[_Arm]]]:
    """Gather the arms that differ in nothing but their distractors, and name each such slope."""
    by_setting = dict[str, list[_Arm]]()
    for arm in arms:
        if distractors(arm.run.config["arm"]) is not None:
            kept = {k: v for k, v in arm.run.config.items() if k not in CIRCUMSTANCES and k != "arm"}
            by_setting.setdefault(json.dumps(kept, sort_keys=True, default=str), []).append(arm)
    found = [slope for slope in by_setting.values() if len(slope) > 1]
    varied = [f for f in differing_fields([slope[0].run.config for slope in found]) if f != "arm"] if found else []
    return [
        (" · ".join([name, *(clip(slope[0].run.config.get(field), 40) for field in varied)]), slope) for slope in found
    ]


def _noise_plot(metric: str, name: str, slopes: Sequence[tuple[str, list[_Arm]]]) -> str:
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


def _risk_coverage(groups: _Groups) -> list[str]:
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


def _cost_plots(groups: _Groups) -> Iterator[str]:
    yield "<p>What an answer costs: a prompt that the generator has to read, and the time it takes.</p>"
    for title, figures in (
        ("Answers against length of prompt", _against_tokens(groups)),
        ("Latency", _latency(groups)),
    ):
        if found := page.plots(figures):
            yield from (f"<h3>{title}</h3>", *found)
    yield "<h3>In numbers</h3>"


def _against_tokens(groups: _Groups) -> Iterator[str]:
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


def _dot(name: str, tokens: Interval, figure: Interval) -> plot.Dot:
    return plot.Dot(name, tokens.value, figure.value * 100, figure.low * 100, figure.high * 100)


def _latency(groups: _Groups) -> Iterator[str]:
    kinds = {"first_token_ms": "first token", "total_ms": "whole answer"}
    for name, arms in groups.items():
        timed = [a for a in arms if a.run.summary.timings.keys() & kinds]
        if timed:
            rows = [plot.Row(a.label, [_seconds(a.run.summary.timings.get(kind)) for kind in kinds]) for a in timed]
            x = plot.Axis("seconds, one question at a time", low=0)
            drawn = plot.row_plot(f"Latency: {name}", x, list(kinds.values()), rows)
            yield page.figure(f"Latency: {page.name(name)}", drawn)


def _seconds(figure: Interval | None) -> tuple[float, float, float] | None:
    return None if figure is None else (figure.value / 1000, figure.low / 1000, figure.high / 1000)


def _cost(groups: _Groups) -> Iterator[str]:
    metrics = _present(groups, _COST)
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


def _ceiling(highest: float) -> float:
    """Return where an axis of percentages ends: at the next ten."""
    return min(100.0, 10.0 * math.ceil(highest / 10 + 1e-9))


# ---- what was measured, and the questions


def _measured(groups: _Groups) -> Iterator[str]:
    arms = [arm for found in groups.values() for arm in found]
    configs = [a.run.config for a in arms]
    hidden = ("command", "arm", "set", "part")
    names = [name for name in dict.fromkeys(n for c in configs for n in c) if name not in hidden]
    shared = [name for name in names if all(c.get(name) == configs[0].get(name) for c in configs)]
    varied = [name for name in names if name not in shared]
    yield "<h3>The same for all runs</h3>" if len(arms) > 1 else ""
    yield page.pairs((_setting_name(name), _setting(configs[0].get(name))) for name in shared)
    if varied:
        yield "<h3>Different between runs</h3>"
        heads = [head("Arm"), *(head(_setting_name(name)) for name in varied)]
        bodies = []
        for group, found in groups.items():
            rows = (row(side(a.link), *(cell(_setting(a.run.config.get(name))) for name in varied)) for a in found)
            bodies.append(page.group(page.name(group), len(varied) + 1, rows))
        yield page.table("Settings that differ between runs", heads, bodies)
    commands = [str(c["command"]) for c in configs if c.get("command")]
    if commands:
        yield page.details(
            f"Commands that reproduce {'the run' if len(commands) == 1 else f'these {len(commands)} runs'}",
            ["<pre tabindex='0'><code>" + "\n".join(text(command, 500) for command in commands) + "</code></pre>"],
        )


def _setting_name(name: str) -> str:
    return text(_SETTING_NAMES.get(name, name.replace("_", " ")), 60)


def _setting(value: object) -> str:
    if value is None or value == "":
        return '<span class="soft">none</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    return text(value[:12] if isinstance(value, str) and _HASH.fullmatch(value) else value, 200)


def _runs(groups: _Groups) -> Iterator[str]:
    n_runs = sum(len(arms) for arms in groups.values())
    yield "<p>Open a run for all its figures, and for what became of its questions.</p>"
    for name, arms in groups.items():
        for arm in arms:
            yield page.details(
                f"<h3>{page.name(name)}: {text(arm.label)}</h3>",
                [
                    *_all_figures(arm.run),
                    *_questions(arm.run, QUESTION_BYTES // n_runs),
                ],
                "run",
                arm.anchor,
            )


def _all_figures(run: Run) -> Iterator[str]:
    figures = {**run.summary.metrics, **run.summary.timings}
    rows = (
        row(
            side(text(metric_label(name), 60)),
            cell(f"{number(name, figure.value)} {unit(name)}".strip(), "figure"),
            cell(span(name, figure), "figure"),
            cell(f"{figure.n:,}", "figure"),
        )
        for name, figure in figures.items()
    )
    heads = [
        head("Metric"),
        head("mean", "figure"),
        head("95% interval", "figure"),
        head("n", "figure"),
        head("meaning"),
    ]
    yield page.table(f"All figures of {run.name}", heads, ["<tbody>", *rows, "</tbody>"])
    yield page.pairs([("Folder", f"<code>{text(run.folder, 300)}</code>")])


def _questions(run: Run, room: int) -> Iterator[str]:
    """List questions by what became of them, as many as there is room for."""
    kinds = dict[str, list[Prediction]]()
    for prediction in run.predictions:
        kinds.setdefault(_fate(prediction), []).append(prediction)
    for fate in (name for name in _FATES if name in kinds):
        found = kinds[fate]
        share = room * len(found) // len(run.predictions)
        most = max(1, MOST_QUESTIONS * len(found) // len(run.predictions))
        listed, used = list[str](), 0
        for prediction in found[:most]:
            html = _question(prediction, fate)
            used += len(html.encode())
            if used > share and listed:
                break
            listed.append(html)
        left_out = len(found) - len(listed)
        note = (
            [f'<p class="soft">{left_out:,} more are left out here; they stand in the run’s folder.</p>']
            if left_out
            else []
        )
        yield page.details(f"<h4>{_FATES[fate]}: {len(found):,} of {len(run.predictions):,}</h4>", [*listed, *note])


def _fate(p: Prediction) -> str:
    if not p.answerable:
        return "refused rightly" if p.refused else "should be refused"
    right = p.scores.get("accuracy", p.scores.get("contains", p.scores.get("em")))
    if right is None:
        return "not scored"
    return ("right" if right >= 0.5 else "wrong") + (" but refused" if p.refused else "")


def _question(p: Prediction, fate: str) -> str:
    mark = {"r": ("right", "✓"), "w": ("wrong", "✗"), "s": ("wrong", "✗"), "n": ("soft", "·")}[fate[0]]
    rows = [
        ("Gold answers" if len(p.answers) > 1 else "Gold answer", _gold(p)),
        ("Answer", (text(p.answer, 400) if p.answer.strip() else '<span class="soft">nothing</span>')),
    ]
    if p.output.strip() != p.answer.strip():
        rows.append(("Output", text(p.output, 400)))
    if p.shown:
        rows.append(("Passages shown", _passages(p.shown, p.gold_ids)))
    if missing := [id for id in p.gold_ids if id not in p.shown] if p.shown else []:
        rows.append(("Gold, not shown", _passages(missing, ())))
    if p.cited:
        rows.append(("Passages cited", _passages(p.cited, p.gold_ids)))
    told = [f"{metric_label(m)} {number(m, p.scores[m])}" for m in ("em", "f1", "accuracy") if m in p.scores]
    told += [f"confidence {p.confidence:.2f}"] if p.confidence is not None else []
    told += [f"{p.prompt_tokens:,} prompt tokens"]
    rows.append(("Figures", ", ".join(told)))
    title = f'<span class="{mark[0]}">{mark[1]} {fate}</span> {text(p.question, 300)}'
    return page.details(title, [page.pairs(rows)], "question")


def _gold(p: Prediction) -> str:
    if not p.answerable:
        return "none: the right reply is that it is not in these documents"
    more = f" and {len(p.answers) - 5} more" if len(p.answers) > 5 else ""
    return " / ".join(text(answer, 100) for answer in p.answers[:5]) + more


def _passages(ids: Sequence[str], gold: Sequence[str]) -> str:
    shown = ", ".join(f"<b>{text(id, 60)} (gold)</b>" if id in gold else text(id, 60) for id in ids[:20])
    return shown + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")


def _in_markdown(metric: str, figure: Interval | None, n: int) -> str:
    if figure is None:
        return "–"
    of = f", n {figure.n:,}" if figure.n != n else ""
    return f"{number(metric, figure.value)} ({span(metric, figure)}{of})"


_HASH = re.compile("[0-9a-f]{32,}")
_FATES = {
    "wrong": "Wrong",
    "wrong but refused": "Refused, and the draft was wrong",
    "right but refused": "Refused, though the draft was right",
    "should be refused": "Answered, though the passages do not say it",
    "right": "Right",
    "refused rightly": "Rightly refused",
    "not scored": "Not scored",
}
