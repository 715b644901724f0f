"""Two folders of runs, paired by questions and arm: each pair compared, and the average over all of them.

On average each pair counts the same, however many questions it has. A question that several pairs ask (under two arms, or in two
sets) is drawn with all of its values at once: they rise and fall together.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_rag.errors import UsageError
from edge_rag.evaluation.compare import MetricDifference, Pair, correct, differences_table, pairs_of, values
from edge_rag.evaluation.intervals import paired_bootstrap
from edge_rag.evaluation.predictions import Run, find_runs
from edge_rag.evaluation.run_folder import CONFIG
from edge_rag.evaluation.scoring import squad_words
from edge_rag.evaluation.wording import arm_order, clip, differing_fields, group_of, metric_label

AVERAGED = ("em", "contains", "f1", "k_precision", "false_refusal_rate", "missed_refusal_rate", "prompt_tokens")
_MEND = "give two folders whose runs have sets, parts and arms in common"


@dataclass(frozen=True, slots=True)
class Row:
    name: str  # the questions, and the arm
    difference: MetricDifference


@dataclass(frozen=True, slots=True)
class FoldersComparison:
    folder_a: str
    folder_b: str
    metric: str  # of the rows
    rows: tuple[Row, ...]
    averages: tuple[MetricDifference, ...]  # over the pairs that have the metric; n counts different questions
    unpaired: tuple[str, ...]  # folders of runs that have no partner: left out
    differs: tuple[str, ...]  # settings that are not the same in every pair


def holds_several(folder: Path) -> bool:
    """Tell whether a folder holds runs, and is none."""
    return not (folder / CONFIG).is_file() and any(folder.rglob(CONFIG))


def compare_folders(a: Path, b: Path, *, metric: str = "f1", seed: int = 0) -> FoldersComparison:
    """Compare the runs that two folders hold, at any depth."""
    in_a, in_b = find_runs([a]), find_runs([b])
    partners = list(_partners(in_a, in_b))
    if not partners:
        raise UsageError(f"no run in {a} has the questions and the arm of one in {b}", mend=_MEND)
    named = {_name(run, other): pairs_of(run, other) for run, other in partners}
    rows = {name: found for name, pairs in named.items() if (found := _difference(metric, [pairs], seed))}
    if not rows:
        raise UsageError(f"no run has the metric {metric}", mend=f"use one of: {', '.join(AVERAGED)}")
    paired = {run.folder for two in partners for run in two}
    return FoldersComparison(
        folder_a=str(a),
        folder_b=str(b),
        metric=metric,
        rows=tuple(map(Row, rows, correct(list(rows.values())))),
        averages=tuple(correct([d for name in AVERAGED if (d := _difference(name, list(named.values()), seed))])),
        unpaired=tuple(str(run.folder) for run in [*in_a, *in_b] if run.folder not in paired),
        differs=tuple(dict.fromkeys(name for two in partners for name in differing_fields([r.config for r in two]))),
    )


def markdown(c: FoldersComparison) -> str:
    """Write it for a terminal: a row for each pair of runs, then a row for each metric's average."""
    differs = ", ".join(clip(name, 80) for name in c.differs) or "none, so what differs below is chance"
    return "\n".join(
        [
            f"# A = {clip(c.folder_a, 200)}, B = {clip(c.folder_b, 200)}",
            "",
            f"- settings that differ: {differs}",
            *(f"- left out, without a partner: {clip(folder, 200)}" for folder in c.unpaired),
            "",
            *differences_table(metric_label(c.metric), [(row.name, row.difference) for row in c.rows]),
            "",
            *differences_table("average of the runs", [(metric_label(d.metric), d) for d in c.averages]),
            "",
            "Tested question by question; p (Holm) corrects for the number of rows of a table, * is below 0.05. In an average",
            "each run counts the same, and n is the number of different questions. Scores in percent, differences in points.",
        ]
    )


def _partners(in_a: Sequence[Run], in_b: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Pair runs over the same questions: by their arms, or, where each folder has one run, whatever its arm is."""
    for group in dict.fromkeys(map(group_of, in_a)):
        ours, theirs = ([run for run in runs if group_of(run) == group] for runs in (in_a, in_b))
        if len(ours) == len(theirs) == 1:
            yield ours[0], theirs[0]
            continue
        for arm in sorted({run.config["arm"] for run in ours}, key=arm_order):
            one, other = ([run for run in runs if run.config["arm"] == arm] for runs in (ours, theirs))
            for same in (one, other):
                if len(same) > 1:
                    raise UsageError(
                        f"{same[0].folder} and {same[1].folder} have the same questions and arm: which is to be compared?",
                        mend="compare folders that hold one of them",
                    )
            if one and other:
                yield one[0], other[0]


def _name(a: Run, b: Run) -> str:
    arms = dict.fromkeys(str(run.config["arm"]) for run in (a, b))
    return clip(f"{group_of(a)} {' → '.join(arms)}", 80)


def _difference(metric: str, runs: Sequence[Sequence[Pair]], seed: int) -> MetricDifference | None:
    """Return the difference of a metric, on average over those of these runs that have it; None if none has."""
    scored = [[(p.question, values(p), values(q)) for p, q in pairs] for pairs in runs]
    columns = [[(text, x[metric], y[metric]) for text, x, y in run if metric in x and metric in y] for run in scored]
    columns = [column for column in columns if column]
    if not columns:
        return None
    shares: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # what each question adds to both averages
    for column in columns:
        for question, x, y in column:
            share = shares[" ".join(squad_words(question))]
            share[0] += x / (len(columns) * len(column))
            share[1] += y / (len(columns) * len(column))
    n = len(shares)
    a, b = ([n * share[side] for share in shares.values()] for side in (0, 1))
    found = paired_bootstrap(a, b, seed=seed)
    return MetricDifference(metric, sum(a) / n, sum(b) / n, found.value, found.low, found.high, found.p, found.p, n)
