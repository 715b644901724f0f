"""Question sets to training examples: what the runtime would show for a question, with noise that is drawn.

An example shows the passages that hold the answer among 0 to `most_others` that do not, in any order; or only such that do not,
and then the right reply is the runtime's "not in these documents". Which passages hold the answer depends on what the set has:

    the question's own passages     those that the set marks; where it does not have all of them there (really retrieved ones),
                                    those in which an answer stands, too. If there is none, the search has missed: the example
                                    shows the passages as they were found, and abstains.
    ids into a corpus               those passages
    facts (StrategyQA)              each fact is a passage
    an unanswerable question        none: it abstains, shown with the paragraph that it was written about, the hardest kind

Others are the question's own passages first, then what a search of the set's corpus brings back; one that holds an answer is
none. Abstentions are the share `absent` of a set's examples: its unanswerable questions and misses first (a model that refuses
wrongly is as bad as one that answers wrongly, so no more of these are taken), then questions whose gold is left out.

Nothing is drawn from anything but the seed, the set's name and the question's id: an example does not change with the other
sets of a run, and a smaller limit draws some of the same examples.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edge_rag.answering.prompt import NOT_FOUND, answer_messages
from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.arms import MOST, Arm, draw_number, passages_of
from edge_rag.evaluation.cases import as_passage, gold_passages
from edge_rag.evaluation.question_sets import Question, QuestionSet, SetPassage, first_question, set_names
from edge_rag.evaluation.retrieval import search_corpus
from edge_rag.evaluation.scoring import asks_verdict, contains_answer
from edge_rag.interfaces import Embedder, Message, Passage, Progress, Style
from edge_rag.settings import Settings

SEARCHED = 4  # passages searched for each other that may be needed: some hold the answer, and chunks share a passage


class TokenCounter(Protocol):
    def count_tokens(self, messages: Sequence[Message]) -> int: ...


@dataclass(frozen=True, slots=True)
class Example:
    id: str  # "SET:question id#draw"
    set: str
    question: str
    answers: tuple[str, ...]  # accepted; () where what is shown does not tell
    passages: tuple[Passage, ...]  # shown, in order
    gold: tuple[int, ...]  # positions in passages that hold the answer
    style: Style = "words"  # what is asked for
    untold: tuple[str, ...] = ()  # answers that nothing shown tells

    @property
    def prompt(self) -> list[Message]:
        return answer_messages(self.question, self.passages, style=self.style)

    @property
    def target(self) -> str:
        """What the model is to say: the first answer that stands in a gold passage, as it is written there, else the first;
        or "not found"."""
        if not self.answers:
            return NOT_FOUND
        if not asks_verdict(self.answers):
            for answer in self.answers:
                for passage in (self.passages[n] for n in self.gold):
                    if _holds(passage.title, passage.text, (answer,)):
                        return _as_written(answer, f"{passage.text}\n{passage.title}")
        return self.answers[0]


@dataclass(frozen=True, slots=True)
class Noise:
    most_others: int = 9  # passages that do not hold the answer: 0 to so many, each number as likely
    absent: float = 0.2  # share of a set's examples that abstain
    draws: int = 1  # examples of each question

    def __post_init__(self) -> None:
        if not (0 <= self.most_others <= MOST and 0 <= self.absent < 1 and self.draws >= 1):
            raise UsageError(
                f"noise of {self.most_others} others, {self.absent} absent and {self.draws} draws makes no sense",
                mend=f"give 0 to {MOST} others, a share absent from 0 to below 1, and 1 or more draws",
            )


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a set has given, for the page of a run."""

    set: str
    n_questions: int  # of the set, as loaded
    n_examples: int
    answerable: float  # share of the examples; the rest abstain
    mean_others: float  # passages that do not hold the answer, in answerable examples
    mean_passages: float
    mean_prompt_tokens: float
    left_out: Mapping[str, int]  # questions by the reason, examples under "too long"


def examples_of(
    question_set: QuestionSet,
    noise: Noise,
    *,
    counter: TokenCounter,
    styles: Sequence[Style],
    prompt_tokens: int,
    embedder: Embedder,
    settings: Settings,
    seed: int,
    limit: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Example], Statistics]:
    """Make the examples of a set: load it with part="train", or "dev" to choose settings on.

    Of several styles each example is asked in one, drawn. `limit` takes at most that many questions, and a smaller one takes
    some of the same. (A limit of load_set does nearly that: which misses and unanswerable questions are taken also depends on
    how many others were loaded.) A prompt of more than `prompt_tokens` loses others until it fits; where the passages that
    hold the answer do not fit, the example is left out.
    """
    left_out: Counter[str] = Counter()
    evidence = _evidence_of(question_set, left_out)
    taken, share_left = _taken(question_set.name, evidence, noise, seed, left_out)
    taken = _at_most(limit, question_set.name, taken, seed)
    plans = [
        _plan(question_set.name, item, number, noise, styles, share_left, seed)
        for item in taken
        for number in range(noise.draws)
    ]
    found = _search(question_set, plans, noise, embedder, settings, progress)
    examples: list[Example] = []
    tokens: list[int] = []
    for done, plan in enumerate(plans, start=1):
        example, n_tokens = _example(question_set.name, plan, found, counter, prompt_tokens)
        if example is None:
            left_out["too long"] += 1
        else:
            examples.append(example)
            tokens.append(n_tokens)
        if progress:
            progress("examples", done, len(plans), question_set.name)
    return examples, _statistics(question_set, examples, tokens, left_out)


def example_row(example: Example) -> dict[str, Any]:
    """Return an example as JSON can hold it, with what a prompt is made of and no more."""
    passages = [{"id": p.document, "title": p.title, "text": p.text} for p in example.passages]
    return {
        "id": example.id,
        "set": example.set,
        "question": example.question,
        "answers": list(example.answers),
        "passages": passages,
        "gold": list(example.gold),
        "style": example.style,
        "untold": list(example.untold),
    }


def example_of_row(row: Mapping[str, Any]) -> Example:
    passages = [as_passage(n, SetPassage(p["id"], p["title"], p["text"])) for n, p in enumerate(row["passages"])]
    return Example(
        row["id"], row["set"], row["question"], tuple(row["answers"]), tuple(passages), tuple(row["gold"]), row["style"],
        tuple(row["untold"]),
    )  # fmt: skip


# --- what of a question holds the answer ---


@dataclass(frozen=True, slots=True)
class _Evidence:
    question: Question
    shown: tuple[SetPassage, ...]  # that must be shown: they hold the answer, or are what an abstention is about
    tells: bool  # False: abstain
    is_miss: bool = False  # shown is all that a search has found, and no others come to it


def _evidence_of(question_set: QuestionSet, left_out: Counter[str]) -> list[_Evidence]:
    _check_answers(question_set)
    gold = gold_passages(question_set)
    related_ids = {key for q in question_set.questions for key in q.related_ids if not q.passages}
    related = {p.id: p for p in question_set.read_corpus() if p.id in related_ids} if related_ids else {}
    found = []
    for question in question_set.questions:
        evidence = _evidence(question, gold, related)
        if isinstance(evidence, str):
            left_out[evidence] += 1
        else:
            found.append(evidence)
    return found


def _evidence(
    question: Question, corpus: Mapping[str, SetPassage], related: Mapping[str, SetPassage]
) -> _Evidence | str:
    """Return what must be shown for a question, or why there is nothing."""
    own = tuple(p for p in question.passages if not p.misleading)
    if not question.answerable:
        about = own or tuple(related[key] for key in question.related_ids if key in related)
        return _Evidence(question, about, tells=False) if about else "no passages"
    if not question.answers:
        return "no answers"
    ids = set(question.gold_ids)
    if own:
        marked = tuple(p for p in own if p.gold or p.id in ids)
        if marked and ids <= {p.id for p in own}:
            return _Evidence(question, marked, tells=True)
        holding = tuple(p for p in own if p in marked or _tells(p, question))
        if any(_tells(p, question) for p in holding):
            return _Evidence(question, holding, tells=True)
        return _Evidence(question, own, tells=False, is_miss=True)
    if ids and ids <= corpus.keys():
        return _Evidence(question, tuple(corpus[key] for key in question.gold_ids), tells=True)
    if question.facts:
        facts = (SetPassage(f"{question.id}/fact {n}", "", fact, True) for n, fact in enumerate(question.facts, 1))
        return _Evidence(question, tuple(facts), tells=True)
    return "no passages"


def _tells(passage: SetPassage, question: Question) -> bool:
    return not asks_verdict(question.answers) and _holds(passage.title, passage.text, question.answers)


def _holds(title: str, text: str, answers: Sequence[str]) -> bool:
    return contains_answer(f"{title}\n{text}", answers)  # the prompt shows both


def _as_written(answer: str, text: str) -> str:
    """Return the answer in the text's own letters: lists of accepted answers have them in any case."""
    found = re.search(re.escape(answer), text, re.IGNORECASE)
    return found[0] if found else answer


def _check_answers(question_set: QuestionSet) -> None:
    if any(_is_trainable(question) for question in question_set.questions):
        return
    lacks = "passages" if any(question.answers for question in question_set.questions) else "answers"
    known = [name for name in _set_names() if (first := first_question(name)) is not None and _is_trainable(first)]
    raise UsageError(
        f"{question_set.name} has no {lacks} to train on",
        mend=f"use a set with answers and passages: {', '.join(known)}" if known else "use a set with both",
    )


def _is_trainable(question: Question) -> bool:
    return bool(question.answers) and bool(question.passages or question.gold_ids or question.facts)


def _set_names() -> list[str]:
    try:
        return set_names()
    except EdgeRagError:  # the set was named by its path
        return []


# --- what is drawn ---


@dataclass(frozen=True, slots=True)
class _Plan:
    evidence: _Evidence
    number: int  # of the draw
    n_others: int
    tells: bool  # False: abstain
    style: Style
    seed: int  # of this draw


def _taken(
    set_name: str, evidence: Sequence[_Evidence], noise: Noise, seed: int, left_out: Counter[str]
) -> tuple[list[_Evidence], float]:
    """Choose the questions, and the share of the answerable ones whose gold is left out: abstentions are `absent` of all."""
    telling = [item for item in evidence if item.tells]
    silent = sorted(
        (item for item in evidence if not item.tells),
        key=lambda item: draw_number(seed, set_name, item.question.id, "abstain"),
    )
    n_silent = round(len(telling) * noise.absent / (1 - noise.absent))
    left_out["more abstentions than wanted"] += max(0, len(silent) - n_silent)
    kept = {item.question.id for item in [*telling, *silent[:n_silent]]}
    taken = [item for item in evidence if item.question.id in kept]
    still_wanted = max(0.0, noise.absent * len(taken) - min(n_silent, len(silent)))
    return taken, still_wanted / len(telling) if telling else 0.0


def _at_most(limit: int | None, set_name: str, taken: list[_Evidence], seed: int) -> list[_Evidence]:
    if limit is None or len(taken) <= limit:
        return taken
    drawn = sorted(taken, key=lambda item: draw_number(seed, set_name, item.question.id, "limit"))
    ids = {item.question.id for item in drawn[:limit]}
    return [item for item in taken if item.question.id in ids]


def _plan(
    set_name: str, item: _Evidence, number: int, noise: Noise, styles: Sequence[Style], share_left: float, seed: int
) -> _Plan:
    def draw(what: str) -> int:
        return draw_number(seed, set_name, item.question.id, str(number), what)

    tells = item.tells and draw("absent") >= share_left * 2**64
    n_others = draw("others") % (noise.most_others + 1)
    if item.tells and not tells:
        n_others = max(1, n_others)
    style = styles[draw("style") % len(styles)]
    return _Plan(item, number, 0 if item.is_miss else n_others, tells, style, draw("seed"))


def _search(
    question_set: QuestionSet,
    plans: Sequence[_Plan],
    noise: Noise,
    embedder: Embedder,
    settings: Settings,
    progress: Progress | None,
) -> Mapping[str, tuple[SetPassage, ...]]:
    """Search the corpus for the questions whose own passages are too few."""
    lacking = {
        plan.evidence.question.id: plan.evidence.question
        for plan in plans
        if plan.n_others > len(_own_others(plan.evidence))
    }
    if not (lacking and question_set.has_corpus):
        return {}
    depth = SEARCHED * max(1, noise.most_others)
    found = search_corpus(
        question_set, list(lacking.values()), depth, embedder=embedder, settings=settings, progress=progress
    )
    return {key: tuple(candidate.passage for candidate in candidates) for key, candidates in found.items()}


def _own_others(evidence: _Evidence) -> tuple[SetPassage, ...]:
    shown = {passage.id for passage in evidence.shown}
    return tuple(
        p
        for p in evidence.question.passages
        if not (p.id in shown or p.gold or p.misleading or _tells(p, evidence.question))
    )


# --- what is shown ---


def _example(
    set_name: str,
    plan: _Plan,
    found: Mapping[str, tuple[SetPassage, ...]],
    counter: TokenCounter,
    prompt_tokens: int,
) -> tuple[Example | None, int]:
    """Show as many of the others as fit; None where what must be shown does not fit. Also return the tokens of the prompt."""
    question = plan.evidence.question
    for shown, tells in _shown(plan, found.get(question.id, ())):
        passages = tuple(as_passage(n, passage) for n, passage in enumerate(shown))
        holding = {passage.id for passage in plan.evidence.shown} if tells else set()
        gold = tuple(n for n, passage in enumerate(shown) if passage.id in holding)
        answers, untold = (question.answers, ()) if tells else ((), question.answers)
        name = f"{set_name}:{question.id}#{plan.number}"
        example = Example(name, set_name, question.question, answers, passages, gold, plan.style, untold)
        tokens = counter.count_tokens(example.prompt)
        if tokens <= prompt_tokens:
            return example, tokens
    return None, 0


def _shown(plan: _Plan, searched: Sequence[SetPassage]) -> Iterator[tuple[tuple[SetPassage, ...], bool]]:
    """Yield what may be shown, and whether it tells: the most passages first."""
    evidence = plan.evidence
    if evidence.is_miss:
        for n in range(len(evidence.shown), 0, -1):
            yield evidence.shown[:n], False
        return
    question = replace(evidence.question, passages=_own_others(evidence))
    known = {passage.id for passage in (*evidence.question.passages, *evidence.shown)} | set(question.gold_ids)
    others = _silent((passage for passage in searched if passage.id not in known), question, plan.n_others)
    if evidence.tells and not plan.tells:
        for n in range(plan.n_others, 0, -1):
            arm = passages_of(
                Arm("none", others=n), question, gold=evidence.shown, retrieved=others, decoys={}, seed=plan.seed
            )
            if arm is not None:
                yield arm.passages, False
    for n in range(plan.n_others, -1, -1):
        arm = passages_of(
            Arm("gold", others=n), question, gold=evidence.shown, retrieved=others, decoys={}, seed=plan.seed
        )
        if arm is not None:
            yield arm.passages, evidence.tells


def _silent(searched: Iterable[SetPassage], question: Question, n: int) -> list[SetPassage]:
    """Return the first n passages that do not hold the answer; looking into all of them would take most of the time."""
    silent: dict[str, SetPassage] = {}
    for passage in searched:
        if len(silent) == n:
            break
        if passage.id not in silent and not _tells(passage, question):
            silent[passage.id] = passage
    return list(silent.values())


def _statistics(
    question_set: QuestionSet, examples: Sequence[Example], tokens: Sequence[int], left_out: Counter[str]
) -> Statistics:
    answered = [example for example in examples if example.answers]
    return Statistics(
        set=question_set.name,
        n_questions=len(question_set.questions),
        n_examples=len(examples),
        answerable=len(answered) / len(examples) if examples else 0.0,
        mean_others=_mean([len(example.passages) - len(example.gold) for example in answered]),
        mean_passages=_mean([len(example.passages) for example in examples]),
        mean_prompt_tokens=_mean(tokens),
        left_out={reason: n for reason, n in sorted(left_out.items()) if n},
    )


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
