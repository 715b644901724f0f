"""Runs as a page calls them, by set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_rag.evaluation.compare import values
from edge_rag.evaluation.intervals import PairedDifference, paired_bootstrap
from edge_rag.evaluation.predictions import Run
from edge_rag.evaluation.report import page
from edge_rag.evaluation.wording import arm_order, group_of, run_labels


@dataclass(frozen=True, slots=True)
class NamedRun:
    """A run, as it is called on the page."""

    run: Run
    label: str  # unique among the runs of a set
    anchor: str
    values: Mapping[str, Mapping[str, float]]  # of each question, by its id

    @property
    def link(self) -> str:
        return f'<a href="#{self.anchor}">{page.name(self.label)}</a>'


Groups = dict[str, list[NamedRun]]  # by the name of a set and its part


def grouped(runs: Sequence[Run]) -> Groups:
    arms = [
        NamedRun(run, label, f"run-{n}", {p.id: values(p) for p in run.predictions})
        for n, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True), 1)
    ]
    groups: Groups = {}
    for arm in arms:
        groups.setdefault(group_of(arm.run), []).append(arm)
    return {name: sorted(found, key=lambda a: arm_order(a.run.config["arm"])) for name, found in groups.items()}


def difference_of(a: NamedRun, b: NamedRun, metric: str) -> PairedDifference | None:
    pairs = [
        (of[metric], b.values[id][metric])
        for id, of in a.values.items()
        if metric in of and metric in b.values.get(id, ())
    ]
    return paired_bootstrap(*zip(*pairs, strict=True)) if pairs else None
