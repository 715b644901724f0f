"""RADIO (arXiv 2412.08519): a selector learns which passages the reasoning needs, from rationales of the right answer.

    candidates  questions with the passages that a search brought, or that they have themselves
    generator   what writes the rationales, unless they are quotes
    groups      a rationale of each answer: the generator says why it is right, or the sentences of the gold passages that lead
                to it. The embedder tells how near each candidate comes to it; that is fused with the score of the search. The
                best candidate is right, and some further down are wrong
    model       a cross-encoder fitted to tell them apart (InfoNCE)

The published ranks of the wrong ones are 3, 4, 6, 9, 13 and 18, from 0: those between them and the best may be right, too.
With fewer candidates those of the ranks are taken that there are; of four or fewer candidates it is the last.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edge_rag.errors import UsageError
from edge_rag.evaluation.cases import as_passage
from edge_rag.evaluation.question_sets import Part
from edge_rag.evaluation.run_folder import file_hashes
from edge_rag.interfaces import Embedder, Message, Progress
from edge_rag.settings import Settings

from . import targets
from .examples import Example
from .fit import Fitted, Fitting
from .page import Beside, Section
from .quotes import quotes
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
    member_texts,
    members_of,
    open_base,
    selector_config,
    write_groups,
)
from .torch_model import check_folder
from .writer import key_of, open_writer, sample_once

Source = Literal["model", "quotes"]

GENERATOR, WRITTEN = "generator", "written"
RATIONALE_TOKENS = 120
TEMPERATURE = 0.2


@dataclass(frozen=True, slots=True)
class Rationales:
    """Where reasons come from, and what they count for."""

    source: Source = "model"
    weight: float = 0.5  # of the similarity with the rationale; the rest is the search's
    spared: bool = False  # a passage that is gold, or holds the answer, is never wrong

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UsageError(f"a weight of {self.weight} makes no sense", mend="give one from 0 to 1")


def train_radio(
    base: str,
    out: Path,
    plan: Plan,
    rationales: Rationales,
    *,
    generator: Path | None,
    adapter: Path | None,
    embedder: Embedder,
    settings: Settings,
    command: str,
    force: bool = False,
    progress: Progress | None = None,
) -> Fitted:
    """Train; RUN/model holds the cross-encoder. The same call goes on with an interrupted run."""
    if rationales.source == "model" and generator is None:
        raise UsageError("somebody has to write the rationales", mend="give --generator, or --rationale quotes")
    if generator is not None:
        check_folder(generator, adapter)
    config = selector_config("radio", base, plan, {
        "generator": file_hashes(generator) if generator else {},
        "adapter": file_hashes(adapter) if adapter else {},
        "rationales": asdict(rationales),
    })  # fmt: skip
    with TrainingRun.open(out, config, command=command, force=force) as run:
        model = open_base(run, base, plan, settings)
        asked = find_candidates(run, plan, embedder, settings, progress)
        _make_groups(run, plan, rationales, asked, generator, adapter, embedder, settings, progress)
        return fit_selector(run, plan, model, progress)


def _make_groups(
    run: TrainingRun,
    plan: Plan,
    rationales: Rationales,
    asked: Mapping[Part, Sequence[Asked]],
    generator: Path | None,
    adapter: Path | None,
    embedder: Embedder,
    settings: Settings,
    progress: Progress | None,
) -> None:
    inputs = {
        "candidates": [run.folder / CANDIDATES / f"{part}.jsonl" for part in PARTS],
        "generator": generator or "",
        "adapter": adapter or "",
        "rationales": rationales,
        "embedder": embedder.fingerprint,
        "seed": plan.fitting.seed,
    }
    with run.stage(GROUPS, inputs) as stage:
        if stage.is_complete:
            return
        given = (
            {part: [_quoted(one) for one in asked[part]] for part in PARTS}
            if generator is None or rationales.source == "quotes"
            else _written(run, asked, generator, adapter, plan.fitting, settings, progress)
        )
        groups: dict[Part, list[Group]] = {}
        counts: dict[Part, Counter[str]] = {}
        for part in PARTS:
            told = [(one, text) for one, text in zip(asked[part], given[part], strict=True) if text]
            compared: list[tuple[Group, str]] = []
            for done, (one, text) in enumerate(told, start=1):
                group = _group(one, text, rationales, embedder)
                if group is not None:
                    compared.append((group, text))
                if progress:
                    progress(f"{part}, similarities", done, len(told), "")
            groups[part] = [group for group, _ in compared]
            counts[part] = Counter(
                {"no rationale": len(asked[part]) - len(told), "no passage is wrong": len(told) - len(compared)}
            )
            write_groups(stage.folder, part, groups[part], "none has a rationale")
            if part == "train":
                run.show(f"{GROUPS}-shown", _shown(compared))
        run.show(GROUPS, groups_section(groups, counts))


def _written(
    run: TrainingRun,
    asked: Mapping[Part, Sequence[Asked]],
    generator: Path,
    adapter: Path | None,
    fitting: Fitting,
    settings: Settings,
    progress: Progress | None,
) -> dict[Part, list[str]]:
    """Let the generator say why each answer is right."""
    with open_writer(
        run, GENERATOR, generator, adapter, context_tokens=settings.context_tokens, threads=settings.threads,
        precision=fitting.precision, progress=progress,
    ) as model:  # fmt: skip
        made_by = key_of(generator, adapter, model)
        return {
            part: [
                " ".join(sample.text.split())
                for (sample,) in sample_once(
                    run, WRITTEN, model, made_by, [_hint(one) for one in asked[part]], n=1, max_tokens=RATIONALE_TOKENS,
                    temperature=TEMPERATURE, seed=fitting.seed, what=f"{part}, rationales", progress=progress,
                )
            ]
            for part in PARTS
        }  # fmt: skip


def _hint(asked: Asked) -> list[Message]:
    task = (
        f"The question is: {asked.question}\nThe right answer is: {' or '.join(asked.answers[:3])}\n"
        "Say in two or three sentences why this answer is right."
    )
    return [Message("system", "You explain why an answer to a question is right."), Message("user", task)]


def _quoted(asked: Asked) -> str:
    """Quote the sentences that lead to the answer; "" where no candidate is gold."""
    passages = tuple(as_passage(n, candidate.passage) for n, candidate in enumerate(asked.candidates))
    gold = tuple(n for n, candidate in enumerate(asked.candidates) if candidate.passage.gold)
    return " ".join(quotes(Example(asked.id, asked.set, asked.question, asked.answers, passages, gold)))


def _group(asked: Asked, rationale: str, rationales: Rationales, embedder: Embedder) -> Group | None:
    """Rank the candidates by rationale and search, and say which one is right and which are wrong; None if none is."""
    sought = f"{asked.question}. {', '.join(asked.answers)}. {rationale}"
    vectors = embedder.embed([sought, *member_texts(asked)])
    worth = targets.fused(
        (vectors[1:] @ vectors[0]).tolist(), [candidate.score for candidate in asked.candidates], rationales.weight
    )
    best, *others = sorted(range(len(worth)), key=lambda n: -worth[n])
    if rationales.spared:
        others = [n for n in others if not (asked.candidates[n].passage.gold or asked.holds(n))]
    ranking = [best, *others]
    if not others:
        return None
    shares: list[float | None] = [None] * len(worth)
    shares[best] = 1.0
    for rank in targets.negatives(len(ranking)):
        shares[ranking[rank]] = 0.0
    return Group(asked.id, asked.set, asked.question, asked.answers, members_of(asked, worth.tolist(), shares))


def _shown(groups: Sequence[tuple[Group, str]]) -> Section:
    pairs = []
    for group, rationale in groups[:30]:
        best = max(group.members, key=lambda m: m.worth or 0.0)
        pairs.append(
            Beside(
                group.question, "rationale", rationale, f"search {best.rank}" + ", gold" * best.gold,
                f"{best.title}\n{best.text}", f"accepted: {' | '.join(group.answers)}",
            )
        )  # fmt: skip
    return Section("Rationales", "And the candidate that comes best by rationale and search.", pairs=pairs)
