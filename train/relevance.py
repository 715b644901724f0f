"""A selector that learns what is relevant: what the methods that know better must beat.

candidates  questions with the passages that a search brought, or that they have themselves
groups      the gold passages are right, the others wrong; where several are gold, they share
model       a cross-encoder fitted to tell them apart (InfoNCE)
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_rag.evaluation.question_sets import Part
from edge_rag.interfaces import Embedder, Progress
from edge_rag.settings import Settings

from .fit import Fitted
from .run import TrainingRun
from .selector import (
    CANDIDATES,
    GROUPS,
    PARTS,
    Asked,
    Group,
    Plan,
    find_candidates,
    fit_selector,
    groups_section,
    members_of,
    open_base,
    selector_config,
    write_groups,
)


def train_relevance(
    base: str,
    out: Path,
    plan: Plan,
    *,
    embedder: Embedder,
    settings: Settings,
    command: str,
    force: bool = False,
    progress: Progress | None = None,
) -> Fitted:
    """Train; RUN/model holds the cross-encoder. The same call goes on with an interrupted run."""
    config = selector_config("relevance", base, plan, {})
    with TrainingRun.open(out, config, command=command, force=force) as run:
        model = open_base(run, base, plan, settings)
        asked = find_candidates(run, plan, embedder, settings, progress)
        _make_groups(run, asked)
        return fit_selector(run, plan, model, progress)


def _make_groups(run: TrainingRun, asked: Mapping[Part, Sequence[Asked]]) -> None:
    with run.stage(GROUPS, {"candidates": [run.folder / CANDIDATES / f"{part}.jsonl" for part in PARTS]}) as stage:
        if stage.is_complete:
            return
        groups = {part: [group for one in asked[part] if (group := _group(one)) is not None] for part in PARTS}
        counts = {part: Counter({"gold: none or all": len(asked[part]) - len(groups[part])}) for part in PARTS}
        for part in PARTS:
            write_groups(stage.folder, part, groups[part], "no candidate is gold, or all are")
        run.show(GROUPS, groups_section(groups, counts))


def _group(asked: Asked) -> Group | None:
    gold = [candidate.passage.gold for candidate in asked.candidates]
    if not any(gold) or all(gold):
        return None
    worth = [float(is_gold) for is_gold in gold]
    shares = [value / sum(worth) for value in worth]
    return Group(asked.id, asked.set, asked.question, asked.answers, members_of(asked, worth, shares))
