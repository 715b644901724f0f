"""One question of a set, as every part of the evaluation sees it, whatever file it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SetPassage:
    """A passage that a set brings along: in the question itself, or in the set's corpus."""

    id: str
    title: str
    text: str
    gold: bool = False  # the set says that it answers the question (in a corpus: always False)
    misleading: bool = False  # written to state a wrong answer: RGB's counterfactual passages


@dataclass(frozen=True, slots=True)
class Question:
    id: str  # unique in its set
    question: str
    answers: tuple[str, ...]  # any of them is right; () where the set has none
    passages: tuple[SetPassage, ...] = ()  # the set's own, in its order, each id once
    gold_ids: tuple[str, ...] = ()  # an id that is neither here nor in the corpus can only be missed
    answerable: bool = True  # False: the right reply is "not in these documents"
    # where an answer must give several things (RGB): the wordings of each; `answers` are then these, joined by "and"
    parts: tuple[tuple[str, ...], ...] = ()
    facts: tuple[str, ...] = ()  # sentences that the answer follows from (StrategyQA); shown in no arm
    related_ids: tuple[str, ...] = ()  # of an unanswerable question: what it was written about (SQuAD 2)
    # of passages, by id, above 0; 1 for each gold one if the set has no grades
    relevance: Mapping[str, int] = field(default_factory=dict, hash=False)
