"""The page of a training run: settings, stages, curves, and what the method shows. It needs nothing else, and no script.

It is made from the files of the run's folder alone, at any time: while the run goes on, after it, on another machine.
Every text is escaped, whatever it holds: passages and answers come from files that anybody may have written.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_rag.evaluation import plot
from edge_rag.evaluation.report import page as html
from edge_rag.evaluation.report.page import cell, head, row, side, text
from edge_rag.evaluation.run_folder import CONFIG, read_json, read_rows, write_whole

if TYPE_CHECKING:
    from edge_rag.train.examples import Statistics

STAGE, METRICS, SECTIONS, PAGE = "stage.json", "metrics.jsonl", "sections", "page.html"
POINTS = 120  # of a curve; more are averaged
MOST_PAIRS = 50  # shown of a section

_HASH = re.compile("[0-9a-f]{32,}")

Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Beside:
    """Two texts to compare, such as the chosen and the rejected response of a pair."""

    title: str
    left_name: str
    left: str
    right_name: str
    right: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """What a method shows of its own: a table, texts side by side, or both."""

    title: str
    note: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Value]] = ()
    pairs: Sequence[Beside] = ()


def examples_section(parts: "Mapping[str, Sequence[Statistics]]", together: int) -> Section:
    """Show what each set has given to each part."""
    rows = [
        (
            s.set,
            part,
            s.n_questions,
            s.n_examples,
            100 * s.answerable,
            s.mean_others,
            s.mean_passages,
            s.mean_prompt_tokens,
            ", ".join(f"{n:,} {reason}" for reason, n in s.left_out.items()),
        )
        for part, statistics in parts.items()
        for s in statistics
    ]
    names = (
        "set",
        "part",
        "questions",
        "examples",
        "answerable (%)",
        "others",
        "passages",
        "prompt tokens",
        "left out",
    )
    about = "Others, passages and prompt tokens are means."
    if together > 1:
        about += f" They are those of single examples, before up to {together} were joined."
    return Section("Examples", about, names, rows)


def write_page(folder: Path, path: Path) -> None:
    """Write the page of the run in this folder."""
    write_whole(path, page_of(folder))


def page_of(folder: Path) -> str:
    config = read_json(folder / CONFIG) or {}
    stages = _stages(folder)
    metrics = _by_stage(read_rows(folder / METRICS))
    sections = [_section(stored) for p in sorted((folder / SECTIONS).glob("*.json")) if (stored := read_json(p))]
    title = f"Training: {folder.resolve().name}"
    body = [
        "<header>",
        f"<h1>{text(title, 200)}</h1>",
        _cards(config, stages, metrics),
        "</header>",
        "<main>",
        *html.section("stages", "Stages", _stage_table(stages)),
        *html.section("curves", "Curves", _curves(metrics)),
        *(line for n, section in enumerate(sections) for line in _own(n, section)),
        *html.section("settings", "Settings", _settings(config)),
        "</main>",
    ]
    return html.page(title, body)


# --- what the folder holds


def _stages(folder: Path) -> list[dict[str, Any]]:
    """Read the stages in the order in which they were begun."""
    found = [
        stage for path in folder.glob(f"*/{STAGE}") if (stage := read_json(path)) and not path.parent.match("*.old")
    ]
    newest = {str(stage.get("name")): stage for stage in sorted(found, key=_begun)}
    return sorted(newest.values(), key=_begun)


def _begun(stage: Mapping[str, Any]) -> float:
    return _number(stage.get("started")) or 0.0


def _by_stage(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Gather the points of each figure by stage and name; of a step that was logged twice the last."""
    points: dict[str, dict[str, dict[float, float]]] = {}
    for logged in rows:
        step = _number(logged.get("step"))
        for name, value in logged.items():
            if name not in ("stage", "step") and step is not None and (number := _number(value)) is not None:
                points.setdefault(str(logged.get("stage")), {}).setdefault(name, {})[step] = number
    return {stage: {name: sorted(p.items()) for name, p in names.items()} for stage, names in points.items()}


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _section(stored: Mapping[str, Any]) -> Section:
    pairs = [Beside(**{key: str(value) for key, value in pair.items()}) for pair in stored.get("pairs", ())]
    return Section(
        str(stored.get("title", "")),
        str(stored.get("note", "")),
        list(map(str, stored.get("head", ()))),
        list(stored.get("rows", ())),
        pairs,
    )


# --- how it is shown


def _cards(
    config: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
) -> str:
    n_finished = sum(bool(stage.get("finished")) for stage in stages)
    cards = [("Stages finished", f"{n_finished} of {len(stages)} begun")]
    if "method" in config:
        cards.insert(0, ("Method", text(config["method"], 60)))
    for stage, names in metrics.items():
        if "loss" in names:
            step, loss = names["loss"][-1]
            cards.append((f"Loss at step {step:,.0f} of {text(stage, 40)}", _shown(loss)))
    return '<dl class="cards">' + "".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in cards) + "</dl>"


def _stage_table(stages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not stages:
        return
    rows = (
        row(
            side(text(stage.get("name"), 60)),
            cell("finished" if stage.get("finished") else "begun"),
            cell(_duration(_number(stage.get("seconds")) or 0.0), "figure"),
            cell(f"{len(stage.get('outputs') or ()):,}", "figure"),
            cell(f"<code>{text(str(stage.get('key'))[:8])}</code>"),
        )
        for stage in stages
    )
    heads = [head("Stage"), head("State"), head("Time", "figure"), head("Files", "figure"), head("Inputs")]
    note = "Time is that of all sessions; a session that was killed leaves none."
    yield html.table("Stages", heads, ["<tbody>", *rows, "</tbody>"], note)


def _curves(metrics: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Iterator[str]:
    """Draw each figure over the steps of its stage; losses share a plot, and so do the other figures of dev."""
    for stage, names in metrics.items():
        families: dict[str, list[str]] = {}
        for name in names:
            families.setdefault(_family(name), []).append(name)
        figures = []
        for family, members in families.items():
            for start in range(0, len(members), len(plot.COLOURS)):
                lines = [
                    plot.Series(name, _thinned(names[name])) for name in members[start : start + len(plot.COLOURS)]
                ]
                from_zero = family != "loss" and all(value >= 0 for line in lines for _, value in line.points)
                x, y = plot.Axis("step"), plot.Axis("", low=0.0 if from_zero else None)  # the caption names it
                drawn = plot.line_plot(f"{_label(family)}, {stage}", x, y, lines, plot.IN_PAGE)
                figures.append(html.figure(text(_label(family), 60), drawn))
        yield f"<h3>{text(stage, 60)}</h3>"
        yield from html.plots(figures)


def _family(name: str) -> str:
    if name.endswith("loss"):
        return "loss"
    return "dev" if name.startswith("dev_") else name


def _label(family: str) -> str:
    return family.replace("_", " ")


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours where there are more points than can be told apart. The last point stays as it is."""
    width = -(-len(points) // POINTS)
    if width == 1:
        return list(points)
    blocks = [points[start : start + width] for start in range(0, len(points), width)]
    means = [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in blocks]
    return [*means[:-1], points[-1]]


def _own(number: int, section: Section) -> list[str]:
    body = [f"<p>{text(section.note)}</p>"] if section.note else []
    if section.rows:
        is_figure = [all(isinstance(r[n], int | float | None) for r in section.rows) for n in range(len(section.head))]
        kinds = ["figure" if figure else "" for figure in is_figure]
        heads = [
            head(text(name, 60), kind if n else "")
            for n, (name, kind) in enumerate(zip(section.head, kinds, strict=True))
        ]
        rows = [
            row(side(_cell(first)), *(cell(_cell(value), kind) for value, kind in zip(rest, kinds[1:], strict=True)))
            for first, *rest in section.rows
        ]
        body.append(html.table(section.title, heads, ["<tbody>", *rows, "</tbody>"]))
    for pair in section.pairs[:MOST_PAIRS]:
        note = f'<p class="soft">{text(pair.note, 500)}</p>' if pair.note else ""
        beside = "".join(
            f"<div><h4>{text(name, 80)}</h4><p>{text(said, 3000)}</p></div>"
            for name, said in ((pair.left_name, pair.left), (pair.right_name, pair.right))
        )
        body.append(
            html.details(f"<h3>{text(pair.title, 300)}</h3>", [note, f'<div class="beside">{beside}</div>'], "question")
        )
    if len(section.pairs) > MOST_PAIRS:
        body.append(f'<p class="soft">The first {MOST_PAIRS} of {len(section.pairs):,}.</p>')
    return html.section(f"own{number}", text(section.title, 200), body)


def _cell(value: Value) -> str:
    if value is None:
        return html.NOTHING
    return text(value, 500) if isinstance(value, str) else _shown(value)


def _settings(config: Mapping[str, Any]) -> Iterator[str]:
    pairs = [(text(name, 80), _setting(value)) for name, value in _flat(config) if name != "command"]
    if pairs:
        yield html.pairs(pairs)
    if command := config.get("command"):
        yield "<h3>How to make this run again</h3>"
        yield f"<pre tabindex='0'><code>{text(command, 2000)}</code></pre>"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _setting(value: object) -> str:
    if value is None or value == "" or value == []:
        return '<span class="soft">none</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and _HASH.fullmatch(value):
        return f"<code>{text(value[:12])}</code>"
    return text(", ".join(map(str, value)) if isinstance(value, list) else value, 300)


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
