"""From a question and an arm to a prompt: search, choose what is shown, cut it to the token budget, judge the evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_rag.answering import evidence
from edge_rag.answering.assistant import TokenCounter, fit
from edge_rag.answering.nearest import Sentence, rank_sentences
from edge_rag.answering.prompt import closed_book_messages
from edge_rag.evaluation.arms import Arm, Shown, decoys_of, others_of, passages_of
from edge_rag.evaluation.question_sets import Question, QuestionSet, SetPassage
from edge_rag.evaluation.retrieval import How, search_corpus
from edge_rag.interfaces import Embedder, Message, Order, Passage, Progress, Selection, Selector, Style
from edge_rag.settings import Settings

SCORED = 20  # search results that recall and rank are measured on, if an arm does not show more

SELECTORS = ("keep-top", "oracle")  # or an exported one: a folder, or a GGUF adapter that writes lists


@dataclass(frozen=True, slots=True)
class Case:
    """One question under one arm, ready to be asked."""

    question: Question
    answerable: bool
    shown: tuple[SetPassage, ...]  # that fit into the prompt
    passages: tuple[Passage, ...]  # the same, as the answering room knows them
    found: tuple[SetPassage, ...]  # by the search, best first; () if the arm does not search
    sentences: tuple[Sentence, ...]  # of what is shown, the likeliest to hold the answer first
    confidence: float | None  # None in a closed book
    messages: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Choice:
    """How passages are found, chosen and shown."""

    search: How = "fused"
    selector: str = "keep-top"  # one of SELECTORS, or a folder
    keep: int = 0  # passages that the selector keeps; 0: all
    order: Order = "best-first"
    prompt: Style = "sentence"
    answer_tokens: int = 64
    seed: int = 0


def cases_of(
    question_set: QuestionSet,
    arms: Sequence[Arm],
    choice: Choice,
    counter: TokenCounter,
    embedder: Embedder,
    settings: Settings,
    progress: Progress | None,
    selector: Selector | None = None,
) -> dict[Arm, list[Case]]:
    """Prepare every question for every arm. Questions that lack what an arm needs are left out of that arm.

    `selector` is the one that was exported, where the choice names none of SELECTORS.
    """
    found = _search(question_set, arms, choice, embedder, settings, progress)
    corpus = gold_passages(question_set)
    decoys = decoys_of(question_set.questions, choice.seed) if any(arm.poisoned for arm in arms) else {}
    vectors = embedder.embed([question.question for question in question_set.questions])
    cases: dict[Arm, list[Case]] = {arm: [] for arm in arms}
    for done, (question, vector) in enumerate(zip(question_set.questions, vectors, strict=True), start=1):
        remembering = Remembering(embedder)
        gold = [corpus[i] for i in question.gold_ids if i in corpus]
        for arm in arms:
            retrieved = found.get(question.id, ())
            shown = passages_of(arm, question, gold=gold, retrieved=retrieved, decoys=decoys, seed=choice.seed)
            if shown is not None:
                searched = retrieved if arm.searches else ()
                cases[arm].append(
                    _case(question, shown, searched, choice, counter, vector, remembering, selector, settings.passages)
                )
        if progress:
            progress("prompts", done, len(question_set.questions), question_set.name)
    return cases


def _search(
    question_set: QuestionSet,
    arms: Sequence[Arm],
    choice: Choice,
    embedder: Embedder,
    settings: Settings,
    progress: Progress | None,
) -> Mapping[str, tuple[SetPassage, ...]]:
    """Search the corpus for every question, if an arm shows what is found, or if it needs more others than the set has."""
    fewest_own = min((len(others_of(question, (), (), choice.seed)) for question in question_set.questions), default=0)
    if not any(arm.searches or arm.others > fewest_own for arm in arms):
        return {}
    depth = max(SCORED, *(arm.k for arm in arms), *(4 * arm.others for arm in arms))
    found = search_corpus(
        question_set, question_set.questions, depth, how=choice.search, embedder=embedder, settings=settings,
        progress=progress,
    )  # fmt: skip
    return {key: tuple(candidate.passage for candidate in candidates) for key, candidates in found.items()}


def gold_passages(question_set: QuestionSet) -> dict[str, SetPassage]:
    """Read the passages that hold answers: from the questions, else from the corpus."""
    passages = {p.id: p for q in question_set.questions for p in q.passages if p.gold}
    missing = {i for q in question_set.questions for i in q.gold_ids} - passages.keys()
    if missing and question_set.has_corpus:
        passages |= {p.id: p for p in question_set.read_corpus() if p.id in missing}
    return passages


def _case(
    question: Question,
    shown: Shown,
    found: tuple[SetPassage, ...],
    choice: Choice,
    counter: TokenCounter,
    vector: npt.NDArray[np.float32],
    embedder: "Remembering",
    selector: Selector | None,
    most: int,
) -> Case:
    if not shown.passages:
        messages = closed_book_messages(question.question, style=choice.prompt)
        return Case(question, shown.answerable, (), (), found, (), None, messages)
    selection = select(choice, question, shown.passages, selector)
    prompt = fit(
        question.question, selection.passages, counter, choice.answer_tokens, style=choice.prompt, order=choice.order
    )
    fitting = prompt.passages
    kept = tuple(shown.passages[p.chunk_id] for p in fitting)
    sentences = rank_sentences(question.question, fitting, vector, embedder)
    confidence = selection.confidence
    if confidence is None:
        confidence = _by_rule(question, fitting, vector, embedder)
    elif evidence.threshold(embedder):  # the rule decides, by what is nearest and not by what was chosen
        numbered = [as_passage(number, passage) for number, passage in enumerate(shown.passages)]
        if not found:  # in no order: the nearest come first, as a search would have it
            near = embedder.embed([f"{p.title}\n{p.text}" for p in numbered]) @ vector
            numbered = [numbered[n] for n in np.argsort(-near, kind="stable")]
        confidence = _by_rule(question, numbered[:most], vector, embedder)
    return Case(
        question, shown.answerable, kept, fitting, found, tuple(sentences), confidence, prompt.messages,
    )  # fmt: skip


def _by_rule(
    question: Question,
    passages: Sequence[Passage],
    vector: npt.NDArray[np.float32],
    embedder: Embedder,
) -> float:
    """Return how likely the passages hold the answer."""
    cosines = embedder.embed([f"{p.title}\n{p.text}" for p in passages]) @ vector
    similar = {p.chunk_id: cosine for p, cosine in zip(passages, cosines.tolist(), strict=True)}
    sentences = rank_sentences(question.question, passages, vector, embedder)
    return evidence.confidence(evidence.signals(question.question, passages, sentences, similar))


def select(
    choice: Choice, question: Question, passages: Sequence[SetPassage], selector: Selector | None = None
) -> Selection:
    """Choose as the selector would. The oracle knows which passages hold the answer, and keeps no other while there is one."""
    numbered = [as_passage(number, passage) for number, passage in enumerate(passages)]
    if selector is not None:
        return selector.select(question.question, numbered)
    if choice.selector == "oracle":
        known = [n for n, p in zip(numbered, passages, strict=True) if p.gold or p.id in question.gold_ids]
        numbered = known or numbered
    return Selection(tuple(numbered[: choice.keep or None]))


def as_passage(number: int, passage: SetPassage) -> Passage:
    return Passage(
        chunk_id=number,
        document_id=number,
        document=passage.id,
        title=passage.title,
        heading=passage.title,
        page=None,
        start=0,
        end=len(passage.text),
        text=passage.text,
        score=0.0,
    )


class Remembering:
    """An embedder that embeds each text once: the arms of a question show the same sentences again and again."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, npt.NDArray[np.float32]] = {}
        self.name, self.dim, self.max_tokens = embedder.name, embedder.dim, embedder.max_tokens
        self.fingerprint = embedder.fingerprint

    def count_tokens(self, text: str) -> int:
        return self._embedder.count_tokens(text)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            self._known.update(zip(new, self._embedder.embed(new), strict=True))
        return np.array([self._known[text] for text in texts], dtype=np.float32).reshape(len(texts), self.dim)
