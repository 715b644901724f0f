"""Each run by itself: all its figures, and what became of its questions."""

from collections.abc import Iterator, Sequence

from edge_rag.evaluation.predictions import Prediction, Run
from edge_rag.evaluation.report import page
from edge_rag.evaluation.report.page import cell, head, row, side, text
from edge_rag.evaluation.report.runs import Groups
from edge_rag.evaluation.wording import metric_label, number, span, unit

QUESTION_BYTES = 2_000_000  # of all runs' questions in the page together
MOST_QUESTIONS = 200  # of a run
_FATES = {
    "wrong": "Wrong",
    "wrong but refused": "Refused, and the draft was wrong",
    "right but refused": "Refused, though the draft was right",
    "should be refused": "Answered, though the passages do not say it",
    "right": "Right",
    "refused rightly": "Rightly refused",
    "not scored": "Not scored",
}


def runs(groups: Groups) -> Iterator[str]:
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
    heads = [head("Metric"), head("mean", "figure"), head("95% interval", "figure"), head("n", "figure")]
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
