"""What the methods that train a selector share: its base, questions with their candidates, groups, and fitting it to them.

base        the encoder's folder, made of an embedder by name where none is given
candidates  questions with the passages that a search brought, or that they have themselves
groups      the method's own: what each candidate is worth, and the share of the score that it is to have
model       a cross-encoder fitted to the shares; the weights that were best on dev are kept
"""

import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_rag.answering.selector import scored_text
from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.cases import as_passage
from edge_rag.evaluation.question_sets import Part, Question, SetPassage, load_set
from edge_rag.evaluation.retrieval import How
from edge_rag.evaluation.run_folder import Rows, file_hashes, read_rows
from edge_rag.evaluation.scoring import asks_verdict, contains_answer, squad_words
from edge_rag.interfaces import Embedder, Progress
from edge_rag.models import is_embedder
from edge_rag.settings import Settings

from .candidates import Candidate, candidates_of
from .cross_encoder import CrossEncoder, GroupRow, check_encoder, open_cross_encoder
from .fit import Fitted, Fitting, fit_stage
from .page import Section, Value
from .run import TrainingRun
from .writer import export

BASE, CANDIDATES, GROUPS, MODEL = "base", "candidates", "groups", "model"
PARTS: tuple[Part, ...] = ("train", "dev")
MOST_ANSWERS = 8  # accepted ones that are scored


@dataclass(frozen=True, slots=True)
class Plan:
    """What the training of a selector depends on, but its base and what the method adds."""

    sets: tuple[str, ...]
    library: str = ""  # folder of the library that is searched; "": the question's own passages, else the set's corpus
    limit: int | None = None  # questions of each set
    dev_limit: int | None = 40  # of each set, to choose the best weights by
    candidates: int = 10  # of each question
    search: How = "fused"
    group: int = 16  # candidates that a question is trained with: the best one, and others that are drawn
    max_tokens: int = 384  # of question and passage
    fitting: Fitting = field(default_factory=lambda: Fitting(6e-5, batch=8, epochs=2.0, warmup=0.1))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its candidates, best first."""

    id: str  # "SET:question id"
    set: str
    question: str
    answers: tuple[str, ...]
    candidates: tuple[Candidate, ...]  # gold: as the set says; in a library: an answer stands in it

    @property
    def distinct_answers(self) -> tuple[str, ...]:
        """The accepted answers that differ in more than case and punctuation: some questions have dozens."""
        distinct = {" ".join(squad_words(answer)): answer for answer in reversed(self.answers)}
        return tuple([*distinct.values()][::-1][:MOST_ANSWERS])

    def holds(self, number: int) -> bool:
        passage = self.candidates[number].passage
        return not asks_verdict(self.answers) and contains_answer(f"{passage.title}\n{passage.text}", self.answers)


@dataclass(frozen=True, slots=True)
class Member:
    """A candidate, and what a selector is to make of it."""

    id: str
    title: str
    text: str
    gold: bool
    rank: int | None  # that the search gave it, from 1; None: it was not searched
    worth: float | None  # by the method; None: it was not asked
    share: float | None  # that it is to have; None: the selector is not trained with it


@dataclass(frozen=True, slots=True)
class Group:
    """A question, its candidates by their worth, and how much of a selector's score each is to have."""

    id: str
    set: str
    question: str
    answers: tuple[str, ...]
    members: tuple[Member, ...]


def selector_config(method: str, base: str, plan: Plan, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run is gone on with only under the same of; raise where there is no such base or set."""
    if not is_embedder(base):
        check_encoder(Path(base))
    return {
        "method": method,
        "base": base if is_embedder(base) else file_hashes(Path(base)),
        **asdict(plan),
        "sets": {name: load_set(name, limit=1).sha256 for name in plan.sets},
        **more,
    }


def open_base(run: TrainingRun, base: str, plan: Plan, settings: Settings) -> CrossEncoder:
    """Open the encoder that the selector begins as: a Hugging Face folder, or an embedder that is made into one."""
    folder = Path(base)
    if is_embedder(base):
        with run.stage(BASE, {"embedder": base}) as stage:
            if not stage.is_complete:
                shutil.rmtree(stage.folder / MODEL, ignore_errors=True)  # of a killed process
                export("hf", base, "-o", str(stage.folder / MODEL))
        folder = run.folder / BASE / MODEL
    return open_cross_encoder(folder, max_tokens=plan.max_tokens, threads=settings.threads, seed=plan.fitting.seed)


def find_candidates(
    run: TrainingRun, plan: Plan, embedder: Embedder, settings: Settings, progress: Progress | None
) -> dict[Part, list[Asked]]:
    """Gather the candidates of all questions that have an accepted answer, and anything to choose from."""
    inputs = {
        "sets": {name: load_set(name, limit=1).sha256 for name in plan.sets},
        "library": plan.library,
        "limits": [plan.limit, plan.dev_limit],
        "candidates": [plan.candidates, plan.search, embedder.fingerprint, settings.candidates],
    }
    with run.stage(CANDIDATES, inputs) as stage:
        if not stage.is_complete:
            left_out: Counter[str] = Counter()
            for part in PARTS:
                asked = _candidates(plan, part, embedder, settings, progress, left_out)
                write_rows(stage.folder / f"{part}.jsonl", map(asdict, asked))
                if not asked:
                    raise _nothing(part, left_out)
            run.show(
                CANDIDATES, Section("Questions that were left out", "", ("why", "questions"), list(left_out.items()))
            )
    return {
        part: [_asked_of_row(row) for row in read_rows(run.folder / CANDIDATES / f"{part}.jsonl")] for part in PARTS
    }


def _candidates(
    plan: Plan, part: Part, embedder: Embedder, settings: Settings, progress: Progress | None, left_out: Counter[str]
) -> list[Asked]:
    found: list[Asked] = []
    for name in plan.sets:
        questions = load_set(name, part=part, limit=plan.limit if part == "train" else plan.dev_limit)
        candidates = candidates_of(
            questions, plan.candidates, library=Path(plan.library) if plan.library else None, how=plan.search,
            embedder=embedder, settings=settings, progress=progress,
        )  # fmt: skip
        for question in questions.questions:
            asked = _asked(questions.name, question, candidates.get(question.id, ()), in_library=bool(plan.library))
            if not asked.answers:
                left_out["no answer"] += 1
            elif len(asked.candidates) < 2:
                left_out["fewer than two candidates"] += 1
            else:
                found.append(asked)
    return found


def _asked(name: str, question: Question, candidates: Sequence[Candidate], *, in_library: bool) -> Asked:
    answers = question.answers if question.answerable else ()
    asked = Asked(f"{name}:{question.id}", name, question.question, answers, tuple(candidates))
    gold = [
        asked.holds(n) if in_library else c.passage.gold or c.passage.id in question.gold_ids
        for n, c in enumerate(candidates)
    ]
    marked = [
        Candidate(SetPassage(c.passage.id, c.passage.title, c.passage.text, is_gold), c.score)
        for c, is_gold in zip(candidates, gold, strict=True)
    ]
    return Asked(asked.id, name, asked.question, answers, tuple(marked))


def _asked_of_row(row: Mapping[str, Any]) -> Asked:
    candidates = tuple(Candidate(SetPassage(**c["passage"]), c["score"]) for c in row["candidates"])
    return Asked(row["id"], row["set"], row["question"], tuple(row["answers"]), candidates)


# --- groups


def members_of(asked: Asked, worth: Sequence[float | None], shares: Sequence[float | None]) -> tuple[Member, ...]:
    """Join candidates with what they are worth and the shares they are to have."""
    return tuple(
        Member(c.passage.id, c.passage.title, c.passage.text, c.passage.gold, rank, value, share)
        for rank, (c, value, share) in enumerate(zip(asked.candidates, worth, shares, strict=True), start=1)
    )


def member_texts(asked: Asked) -> list[str]:
    return [scored_text(as_passage(0, candidate.passage)) for candidate in asked.candidates]


def write_groups(folder: Path, part: Part, groups: Sequence[Group], why_none: str) -> None:
    if not groups:
        raise EdgeRagError(
            f"no question of the {part} part is left to learn from: {why_none}", mend="give more questions"
        )
    write_rows(folder / f"{part}.jsonl", map(asdict, groups))


def read_groups(run: Path, part: Part) -> list[Group]:
    """Read what a run has made of the questions of a part."""
    path = run / GROUPS / f"{part}.jsonl"
    if not path.is_file():
        raise UsageError(f"{run} holds no groups", mend="give the folder of a run of a selector that has come so far")
    return [
        Group(row["id"], row["set"], row["question"], tuple(row["answers"]), tuple(Member(**m) for m in row["members"]))
        for row in read_rows(path)
    ]


def groups_section(groups: Mapping[Part, Sequence[Group]], counts: Mapping[Part, Counter[str]]) -> Section:
    """Show what the groups of each part are like: how far the method, the search and the annotations agree."""
    names = (
        "questions",
        "candidates",
        "gold",
        "best is gold (%)",
        "best is not searched (%)",
        "search's first is gold (%)",
    )
    columns: list[list[Value]] = []
    for found in groups.values():
        best = [max(group.members, key=_worth) for group in found]
        searched = [next((m for m in group.members if m.rank == 1), None) for group in found]
        columns.append([
            len(found), _mean(len(g.members) for g in found), _mean(sum(m.gold for m in g.members) for g in found),
            100 * _mean(m.gold for m in best), 100 * _mean(m.rank is None for m in best),
            100 * _mean(m is not None and m.gold for m in searched),
        ])  # fmt: skip
    rows: list[list[Value]] = [[name, *values] for name, *values in zip(names, *columns, strict=True)]
    rows += [[name, *(counted[name] for counted in counts.values())] for name in sorted(set().union(*counts.values()))]
    note = "Candidates and gold are means. The best is the candidate that the method finds worth most."
    return Section("Groups", note, ("", *groups), rows)


def _worth(member: Member) -> float:
    return float("-inf") if member.worth is None else member.worth


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


# --- fitting


def fit_selector(run: TrainingRun, plan: Plan, model: CrossEncoder, progress: Progress | None) -> Fitted:
    """Fit the cross-encoder to the groups, and save what was trained."""

    def rows() -> tuple[list[GroupRow], list[GroupRow]]:
        train, dev = (
            [_row(g, plan, model) for g in read_groups(run.folder, part) if model.fits(g.question)] for part in PARTS
        )
        return train, dev

    inputs = {
        "groups": [run.folder / GROUPS / f"{part}.jsonl" for part in PARTS],
        "base": model.base,
        "selector": [plan.group, plan.max_tokens],
    }
    return fit_stage(run, MODEL, inputs, model.network, rows, model.losses(), plan.fitting, model.save, progress)


def _row(group: Group, plan: Plan, model: CrossEncoder) -> GroupRow:
    """Take the candidate that is to have most and some others, drawn where there are more than wanted."""
    members = [(m, m.share) for m in group.members if m.share is not None]
    members.sort(key=lambda item: -item[1])
    if len(members) > plan.group:
        members[1:] = random.Random(f"{plan.fitting.seed} {group.id}").sample(members[1:], plan.group - 1)
    whole = sum(share for _, share in members)
    texts = [scored_text(as_passage(0, SetPassage(m.id, m.title, m.text))) for m, _ in members]
    return GroupRow(
        model.pairs(group.question, texts),
        tuple(share / whole for _, share in members),
        tuple(m.gold for m, _ in members),
    )


def write_rows(path: Path, found: Iterable[Mapping[str, Any]]) -> None:
    path.unlink(missing_ok=True)
    with Rows(path) as rows:
        for row in found:
            rows.add(row)


def _nothing(part: Part, left_out: Counter[str]) -> EdgeRagError:
    why = ", ".join(f"{n} with {reason}" for reason, n in left_out.items()) or "the sets have none"
    return EdgeRagError(
        f"no question of the {part} part can be learnt from: {why}", mend="give other sets, or more of them"
    )
