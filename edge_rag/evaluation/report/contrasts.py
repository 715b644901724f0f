"""In short: what the arms say when held against each other."""

from collections.abc import Iterator, Sequence

from edge_rag.evaluation.compare import holm
from edge_rag.evaluation.intervals import PairedDifference
from edge_rag.evaluation.report import page
from edge_rag.evaluation.report.page import NOTHING, cell, head, row, side
from edge_rag.evaluation.report.runs import Groups, NamedRun, difference_of
from edge_rag.evaluation.wording import distractors, metric_label, number

_SAME_MODEL = ("generator", "generator_sha256", "lora", "quantised", "prompt")


def in_short(groups: Groups) -> Iterator[str]:
    """Tabulate the contrasts that the arms were made for: one thing differs, the questions are the same."""
    metrics = ("contains", "f1")
    found = [(meaning, name, a, b) for name, arms in groups.items() for meaning, a, b in _contrasts(arms)]
    tests = [[difference_of(before, after, metric) for metric in metrics] for _, _, before, after in found]
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
        return cell(NOTHING, "figure")
    low, high = (number(metric, v, sign=True) for v in (difference.low, difference.high))
    doubt = "<small>uncertain</small>" if uncertain else ""
    return cell(f"{number(metric, difference.value, sign=True)}<small>{low} to {high}</small>{doubt}", "figure")


def _contrasts(arms: Sequence[NamedRun]) -> Iterator[tuple[str, NamedRun, NamedRun]]:
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


def _pairs(arms: Sequence[NamedRun], first: str, *kinds: str) -> Iterator[tuple[NamedRun, NamedRun]]:
    """Yield each arm that is just `first` with each other arm of these kinds, poisoned ones left out."""
    for a in arms:
        for b in arms:
            arm = str(b.run.config["arm"])
            of_kind = arm.startswith(kinds) and not arm.endswith("poisoned") and arm != first
            if a.run.config["arm"] == first and of_kind and _same_model(a, b):
                yield a, b


def _same_model(a: NamedRun, b: NamedRun) -> bool:
    return all(a.run.config.get(name) == b.run.config.get(name) for name in _SAME_MODEL)
