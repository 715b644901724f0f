"""The page as a whole, and the Markdown table."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.predictions import Interval, Run
from edge_rag.evaluation.report import contrasts, page, plots, questions, tables
from edge_rag.evaluation.report.page import cell, head, row, side, text
from edge_rag.evaluation.report.runs import Groups, NamedRun, grouped
from edge_rag.evaluation.wording import metric_label, number, span

_SETTING_NAMES = {
    "set_sha256": "question file, SHA-256",
    "timed": "questions timed one at a time",
    "edge_rag": "edge_rag version",
    "prompt": "prompt style",
    "n": "questions",
    "limit": "limit of questions",
}
_HASH = re.compile("[0-9a-f]{32,}")


def write_report(runs: Sequence[Run], path: Path) -> None:
    """Write runs as one HTML file. An older file is replaced at the end, or not at all."""
    if not runs:
        raise UsageError("no run to report on", mend="name one or more: edge-rag eval report RUN...")
    groups = grouped(runs)
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
    for name, arms in grouped(runs).items():
        for arm in arms:
            figures = [arm.run.summary.metrics.get(metric) for metric in metrics]
            shown = [_in_markdown(m, f, arm.run.summary.n) for m, f in zip(metrics, figures, strict=True)]
            cells = [name, arm.label, f"{arm.run.summary.n:,}", *shown]
            lines.append("| " + " | ".join(c.replace("\\", "\\\\").replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def _title(groups: Groups) -> str:
    names = list(groups)
    return "Answers to " + (names[0] if len(names) == 1 else f"{len(names)} question sets")


def _body(groups: Groups) -> Iterator[str]:
    arms = [arm for found in groups.values() for arm in found]
    sections = [
        ("short", "In short", contrasts.in_short(groups)),
        ("answers", "Answers", _answers(groups)),
        ("noise", "Noise", plots.noise(groups)),
        ("confidence", "Confidence and refusals", _confidence(groups)),
        ("cost", "Cost", [*plots.cost_plots(groups), *tables.cost(groups)]),
        ("retrieval", "Retrieval", tables.figures("Retrieval", groups, tables.RETRIEVAL, best=True)),
        ("support", "What answers rest on", tables.figures("What answers rest on", groups, tables.SUPPORT, best=True)),
        ("others", "Other metrics", tables.figures("Other metrics", groups, ())),
        ("measured", "What was measured", _measured(groups)),
        ("runs", "Runs and their questions", questions.runs(groups)),
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


def _cards(groups: Groups, arms: Sequence[NamedRun]) -> str:
    generators = list(dict.fromkeys(str(a.run.config.get("generator") or "unknown") for a in arms))
    cards = [
        ("Question sets", f"{len(groups)}"),
        ("Runs", f"{len(arms)}"),
        ("Answers scored", f"{sum(a.run.summary.n for a in arms):,}"),
        ("Generator", text(generators[0], 60) if len(generators) == 1 else f"{len(generators)} of them"),
    ]
    return '<dl class="cards">' + "".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in cards) + "</dl>"


def _answers(groups: Groups) -> Iterator[str]:
    if metrics := tables.present(groups, tables.ANSWERS):
        yield (
            "<p>In percent, with 95% bootstrap intervals. <b>EM</b>: the answer is exactly a right one."
            " <b>contains</b>: a right one stands in it. <b>F1</b>: words shared with the nearest right one.</p>"
        )
        yield from page.plots(plots.answer_plots(groups))
        yield tables.figures_table("Answers", groups, metrics, best=True)
        yield tables.explained(metrics)


def _confidence(groups: Groups) -> Iterator[str]:
    yield from plots.risk_coverage(groups)
    yield from tables.figures("Refusals", groups, tables.REFUSALS)


def _measured(groups: Groups) -> Iterator[str]:
    arms = [arm for found in groups.values() for arm in found]
    configs = [a.run.config for a in arms]
    hidden = ("command", "arm", "set", "part")
    names = [name for name in dict.fromkeys(n for c in configs for n in c) if name not in hidden]
    shared = [name for name in names if all(c.get(name) == configs[0].get(name) for c in configs)]
    varied = [name for name in names if name not in shared]
    yield "<h3>The same for all runs</h3>" if len(arms) > 1 else ""
    sets = ("sets", ", ".join(map(page.name, groups)))
    yield page.pairs([sets, *((_setting_name(name), _setting(configs[0].get(name))) for name in shared)])
    if varied:
        yield "<h3>Different between runs</h3>"
        heads = [head("Arm"), *(head(_setting_name(name)) for name in varied)]
        bodies = []
        for group, found in groups.items():
            rows = (row(side(a.link), *(cell(_setting(a.run.config.get(name))) for name in varied)) for a in found)
            bodies.append(page.group(page.name(group), len(varied) + 1, rows))
        yield page.table("Settings that differ between runs", heads, bodies)
    commands = list(dict.fromkeys(str(c["command"]) for c in configs if c.get("command")))
    if commands:
        yield page.details(
            "How to make these runs again",
            ["<pre tabindex='0'><code>" + "\n".join(text(command, 500) for command in commands) + "</code></pre>"],
        )


def _setting_name(name: str) -> str:
    return text(_SETTING_NAMES.get(name, name.replace("_sha256", ", SHA-256").replace("_", " ")), 60)


def _setting(value: object) -> str:
    if value is None or value == "":
        return '<span class="soft">none</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    return text(value[:12] if isinstance(value, str) and _HASH.fullmatch(value) else value, 200)


def _in_markdown(metric: str, figure: Interval | None, n: int) -> str:
    if figure is None:
        return "–"
    of = f", n {figure.n:,}" if figure.n != n else ""
    return f"{number(metric, figure.value)} ({span(metric, figure)}{of})"
