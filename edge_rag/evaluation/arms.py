"""What the generator is shown: one arm of an experiment.

    closed              nothing: what the generator knows by itself
    given               the set's own passages, in their order
    gold                the passages that hold the answer, as the set says
    gold+4              and 4 others that do not
    none+4              only the 4 others: the right reply is "not in these documents"
    retrieved:5         the best 5 of a search in the set's corpus
    gold+4+2poisoned    and 2 copies of gold passages that name another answer ("given+1poisoned", "retrieved:5+1poisoned" ...)

Others are the set's own passages first, then what a search for the question brings back: the hard kind. A passage in which an
answer stands is none of them. Passages of gold and none arms are shuffled by question, the same way in every arm: gold+8 shows
the passages of gold+4, in the same order, and four more.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge_rag.errors import UsageError
from edge_rag.evaluation.question_sets import Question, SetPassage
from edge_rag.evaluation.scoring import asks_verdict, contains_answer, squad_words

Source = Literal["closed", "given", "gold", "none", "retrieved"]

_ARM = re.compile(
    r"(?P<source>closed|given|gold|none|retrieved(?=:))(?::(?P<k>\d+))?(?:\+(?P<others>\d+))?(?:\+(?P<poisoned>\d+)poisoned)?"
)
MOST = 100  # passages of each kind


@dataclass(frozen=True, slots=True)
class Arm:
    source: Source
    k: int = 0  # passages, of retrieved
    others: int = 0  # passages that do not hold the answer, of gold and none
    poisoned: int = 0  # passages that name another answer

    def __str__(self) -> str:
        k = f":{self.k}" if self.source == "retrieved" else ""
        others = f"+{self.others}" if self.others else ""
        return f"{self.source}{k}{others}" + (f"+{self.poisoned}poisoned" if self.poisoned else "")

    @property
    def searches(self) -> bool:
        return self.source == "retrieved"


def parse_arm(text: str) -> Arm:
    match = _ARM.fullmatch(text)
    if match is None:
        raise UsageError(f"there is no arm {text!r}", mend=_MEND)
    arm = Arm(
        source=match["source"],  # type: ignore[arg-type]
        k=int(match["k"] or 0),
        others=int(match["others"] or 0),
        poisoned=int(match["poisoned"] or 0),
    )
    makes_sense = {
        "closed": arm.others == arm.poisoned == 0 and not match["k"],
        "given": arm.others == 0 and not match["k"],
        "gold": not match["k"],
        "none": arm.others > 0 and not match["k"],
        "retrieved": arm.k > 0 and arm.others == 0,
    }
    if not makes_sense[arm.source] or max(arm.k, arm.others, arm.poisoned) > MOST:
        raise UsageError(f"the arm {text!r} makes no sense", mend=_MEND)
    return arm


_MEND = f"use closed, given, gold, gold+N, none+N or retrieved:K, each but closed with +Npoisoned; N and K up to {MOST}"


@dataclass(frozen=True, slots=True)
class Shown:
    passages: tuple[SetPassage, ...]
    answerable: bool  # from them, as far as the set knows


def passages_of(
    arm: Arm,
    question: Question,
    *,
    gold: Sequence[SetPassage],
    retrieved: Sequence[SetPassage],
    decoys: Mapping[str, str],
    seed: int,
) -> Shown | None:
    """Choose what an arm shows for a question; None where the set lacks what the arm needs (no gold passage, nothing to poison).

    `retrieved` is what a search for the question brought back, best first; `decoys` has a wrong answer for each question id.
    """
    shown: list[SetPassage]
    if arm.source == "closed":
        return Shown((), question.answerable)
    if arm.source == "given":
        shown = [p for p in question.passages if not p.misleading]
    elif arm.source == "retrieved":
        shown = list(retrieved[: arm.k])
    else:
        others = others_of(question, gold, retrieved, seed)
        if len(others) < arm.others:
            return None
        shown = [*others[: arm.others], *(gold if arm.source == "gold" else ())]
        shown.sort(key=lambda passage: draw_number(seed, question.id, "place", passage.id))
    if not shown or (arm.source == "gold" and not gold):
        return None
    if arm.poisoned:
        poison = _poisoned(question, [*gold, *shown], decoys, arm.poisoned)
        if len(poison) < arm.poisoned:
            return None
        for passage in poison:
            shown.insert(draw_number(seed, question.id, "poison", passage.id) % (len(shown) + 1), passage)
    return Shown(tuple(shown), question.answerable and arm.source != "none")


def decoys_of(questions: Sequence[Question], seed: int) -> dict[str, str]:
    """Find for each question a wrong answer that looks like the right one: another question's, as like it in form as there is."""
    by_form: dict[tuple[object, ...], list[str]] = {}
    for question in questions:
        for answer in question.answers[:1]:
            for form in _forms(answer):
                by_form.setdefault(form, []).append(answer)
    decoys = {}
    for question in questions:
        right = {tuple(squad_words(answer)) for answer in question.answers}
        for form in _forms(question.answers[0]) if question.answers else ():
            wrong = sorted({answer for answer in by_form[form] if tuple(squad_words(answer)) not in right})
            if wrong:
                decoys[question.id] = wrong[draw_number(seed, question.id, "decoy", "") % len(wrong)]
                break
    return decoys


def _forms(answer: str) -> list[tuple[object, ...]]:
    """Describe an answer from closely to loosely: a year is swapped for a year, a name of two words for such a name."""
    has_figure, has_name = any(c.isdigit() for c in answer), any(c.isupper() for c in answer)
    length = len(answer.split())
    return [(has_figure, has_name, length), (has_figure, has_name, min(length, 3)), (has_figure,)]


def others_of(
    question: Question, gold: Sequence[SetPassage], retrieved: Sequence[SetPassage], seed: int
) -> list[SetPassage]:
    """Return the passages that may stand as others beside the gold ones, in the order in which arms take them."""
    own = sorted(question.passages, key=lambda passage: draw_number(seed, question.id, "other", passage.id))
    taken = {passage.id for passage in gold} | set(question.gold_ids)
    others = []
    for passage in [*own, *retrieved]:
        if passage.id not in taken and not passage.gold | passage.misleading and not _tells(passage, question):
            taken.add(passage.id)
            others.append(passage)
    return others


def _tells(passage: SetPassage, question: Question) -> bool:
    """Tell whether the passage holds an answer; a yes or a no says nothing wherever it stands."""
    return not asks_verdict(question.answers) and contains_answer(passage.text, question.answers)


def _poisoned(
    question: Question, passages: Sequence[SetPassage], decoys: Mapping[str, str], n: int
) -> list[SetPassage]:
    """Copy passages that hold the answer, with the decoy in its place."""
    decoy = decoys.get(question.id)
    if decoy is None:
        return []
    answers = sorted((a for a in question.answers if a.strip()), key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(answer)}(?!\w)" for answer in answers), re.IGNORECASE)
    copies: dict[str, SetPassage] = {}
    for passage in passages:
        text, n_changed = pattern.subn(lambda _: decoy, passage.text)
        if n_changed and len(copies) < n:
            copy_id = f"{passage.id}!poisoned"
            title = pattern.sub(lambda _: decoy, passage.title)
            copies.setdefault(copy_id, replace(passage, id=copy_id, title=title, text=text, gold=False))
    return list(copies.values())


def draw_number(seed: int, *what: str) -> int:
    """Draw a number that depends on nothing but this: not on other questions, not on the order of calls."""
    return int.from_bytes(hashlib.blake2b("\0".join([str(seed), *what]).encode(), digest_size=8).digest())
