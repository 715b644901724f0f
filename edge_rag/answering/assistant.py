"""Questions to answers over one library: retrieve -> select -> decide -> prompt -> generate -> cite."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from edge_rag.answering import evidence
from edge_rag.answering.cite import locate, quote
from edge_rag.answering.extract import extract
from edge_rag.answering.history import Turn, earlier_questions, retrieve_with_history
from edge_rag.answering.nearest import Sentence, rank_sentences
from edge_rag.answering.prompt import (
    NOT_FOUND,
    answer_messages,
    answer_so_far,
    closed_book_messages,
    final_answer,
    pseudo_passage,
    pseudo_passage_messages,
    says_nothing,
)
from edge_rag.answering.retrieve import Retrieval, retrieve
from edge_rag.answering.selector import GenerativeSelector, KeepTop, OnnxSelector, both_ends
from edge_rag.documents import sentence_spans
from edge_rag.errors import MissingExtraError, UsageError
from edge_rag.interfaces import (
    Answer,
    AnswerSentence,
    Citation,
    Generator,
    Message,
    Order,
    Passage,
    Selection,
    Selector,
    Style,
    Timings,
)
from edge_rag.library import EVERYTHING, Filters, Library
from edge_rag.models import (
    is_lister,
    locate_generator,
    locate_lister,
    locate_selector,
    open_generator,
    open_lister,
    open_scorer,
)
from edge_rag.settings import Settings

EXTRACTIVE = "extractive"
NEAREST = 2  # quotes given besides the answer
# A generated answer must be supported by one of this many sentences nearest to the question: what is true is not yet an answer.
NEAR_ENOUGH = 3


@dataclass(frozen=True, slots=True)
class Prompt:
    messages: Sequence[Message]
    tokens: int
    passages: tuple[Passage, ...]  # that fit
    dropped: tuple[Passage, ...]  # that did not


class Assistant:
    """Answers questions from a library. Owns the generator and the selector that it opens, never the library.

    >>> with Library.open(path) as library, Assistant(library) as assistant:
    ...     print(assistant.ask("When was the lamp replaced?").text)
    """

    def __init__(
        self,
        library: Library,
        *,
        settings: Settings | None = None,
        generator: Generator | None = None,
        selector: Selector | None = None,
        rule: evidence.Rule = evidence.SHIPPED,
    ) -> None:
        self._library = library
        self._settings = settings or Settings()
        self._selector = selector or _selector(self._settings)
        self._rule = rule
        self._generator = generator
        self._extractive = generator is None and not _can_generate(self._settings.generator)

    def ask(
        self,
        question: str,
        *,
        filters: Filters = EVERYTHING,
        history: Sequence[Turn] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer one question. `on_text` receives the answer's pieces as they are generated."""
        if not question.strip():
            raise UsageError("the question is empty", mend='ask something: edge-rag ask "..."')
        clock = _Clock()
        found = self._retrieve(question, filters, history)
        clock.mark("retrieve")
        earlier = earlier_questions(question, history)
        selection = self._selector.select(" ".join([*earlier, question]), found.passages)
        kept = selection.passages
        order = self._settings.order
        if history:  # what the generator has read already stays where it is
            kept, order = tuple(in_places_of(history[-1].answer.passages, kept)), "best-first"
        clock.mark("select")
        sentences = rank_sentences(question, kept, found.question_vector, self._library.embedder)
        confidence, threshold = self._judge(question, selection, sentences, found)
        emit = clock.first_piece(on_text)
        if kept and confidence >= threshold:
            reply = self._reply(question, kept, order, sentences, earlier, emit)
        else:
            reply = _Reply(NOT_FOUND, Prompt((), 0, kept, ()))
            emit(NOT_FOUND)
        guess = self._guess(question) if reply.text == NOT_FOUND else ""
        clock.mark("generate")
        return Answer(
            text=reply.text,
            abstained=reply.text == NOT_FOUND,
            confidence=confidence,
            sentences=tuple(reply.sentences),
            citations=tuple(reply.citations),
            draft=reply.draft,
            guess=guess,
            nearest=tuple(quote(s) for s in sentences[:NEAREST]),
            passages=reply.prompt.passages,
            dropped=reply.prompt.dropped,
            prompt_tokens=reply.prompt.tokens,
            generator=self._answerer(),
            timings=clock.timings(),
        )

    @property
    def generator(self) -> Generator:
        if self._generator is None:
            s = self._settings
            lora = Path(s.lora).expanduser() if s.lora else None
            self._generator = open_generator(s.generator, threads=s.threads, context_tokens=s.context_tokens, lora=lora)
        return self._generator

    def close(self) -> None:
        if isinstance(self._selector, GenerativeSelector):
            self._selector.close()
        if self._generator is not None:
            self._generator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _style(self) -> Style:
        chosen = self._settings.prompt
        return self.generator.style if chosen == "trained" else chosen

    def _retrieve(self, question: str, filters: Filters, history: Sequence[Turn]) -> Retrieval:
        s = self._settings
        k = max(s.passages, s.candidates)
        if history:
            return retrieve_with_history(self._library, question, history, k, candidates=s.candidates, filters=filters)
        return retrieve(self._library, question, k, candidates=s.candidates, filters=filters)

    def _judge(
        self, question: str, selection: Selection, sentences: Sequence[Sentence], found: Retrieval
    ) -> tuple[float, float]:
        """Return how likely the documents hold the answer, and from where on it is given.

        By the rule for what the search brings, where it was fitted to this embedder, else as the selector says, if it does: at as
        many wrong refusals the rule answers half as many questions about something else (docs/figures/selectors.md).
        """
        confidence, threshold = selection.confidence, selection.threshold
        of_rule = evidence.threshold(self._library.embedder, self._rule)
        if of_rule or confidence is None:
            nearest = found.passages[: self._settings.passages]
            known = {sentence.passage for sentence in sentences}
            others = [passage for passage in nearest if passage not in known]
            judged = [
                *(sentence for sentence in sentences if sentence.passage in nearest),
                *rank_sentences(question, others, found.question_vector, self._library.embedder),
            ]
            confidence = evidence.confidence(evidence.signals(question, nearest, judged, found.cosines), self._rule)
            threshold = of_rule
        wanted = self._settings.confidence
        return confidence, threshold if wanted < 0 else wanted

    def _guess(self, question: str) -> str:
        """Let the generator say what it knows without the documents, if that is wanted; "" where it does not know."""
        if self._settings.guess == "never" or self._extractive:
            return ""
        style = self._style
        messages = closed_book_messages(question, style=style)
        if self._settings.guess == "pseudo-passage":
            text = self._say(pseudo_passage_messages(question))
            if says_nothing(text):
                return ""
            messages = answer_messages(question, [pseudo_passage(text)], style=style)
        text = final_answer(self._say(messages), style)
        return "" if says_nothing(text) else text

    def _say(self, messages: Sequence[Message]) -> str:
        return "".join(self.generator.generate(messages, max_tokens=self._settings.answer_tokens)).strip()

    def _answerer(self) -> str:
        """Name who answers. Does not open the generator: an abstention needs none."""
        if self._extractive:
            return EXTRACTIVE
        return self._generator.name if self._generator is not None else self._settings.generator

    def _reply(
        self,
        question: str,
        kept: Sequence[Passage],
        order: Order,
        ranked: Sequence[Sentence],
        earlier: Sequence[str],
        emit: Callable[[str], None],
    ) -> "_Reply":
        """Let the generator answer; where nothing that it says is supported, let the documents speak for themselves."""
        draft, prompt = "", Prompt((), 0, tuple(kept), ())
        if not self._extractive:
            s = self._settings
            prompt = fit(question, kept, self.generator, s.answer_tokens, earlier, style=self._style, order=order)
            draft = self._generate(prompt, emit)
            sentences, citations = locate(question, draft, prompt.passages)
            if _is_near(citations, ranked):
                return _Reply(draft, prompt, sentences, citations)
            if draft == NOT_FOUND:
                return _Reply(draft, prompt)
        text, sentences, citations = extract(ranked)
        if not draft:
            emit(text)
        return _Reply(text, prompt, sentences, citations, draft)

    def _generate(self, prompt: Prompt, emit: Callable[[str], None]) -> str:
        """Stream an answer; end it where it begins to say the same again."""
        style = self._style
        text = shown = ""
        for piece in self.generator.generate(prompt.messages, max_tokens=self._settings.answer_tokens):
            text += piece
            *said, last = [text[start:end] for start, end in sentence_spans(text)] or [""]
            if last in said:
                text = text[: text.rindex(last)]
                break
            answer = answer_so_far(text, style)
            if len(answer) > len(shown):
                emit(answer[len(shown) :])
                shown = answer
        return final_answer(text, style)


def _selector(settings: Settings) -> Selector:
    """Return the settings' selector, not opened yet; ModelError if what they name is none."""
    if not settings.selector:
        return KeepTop(settings.passages)
    if is_lister(settings.selector):
        adapter = str(locate_lister(settings.selector))
        return GenerativeSelector(
            lambda: open_lister(
                adapter, settings.generator, threads=settings.threads, context_tokens=settings.context_tokens
            ),
            settings.passages,
        )
    folder = str(locate_selector(settings.selector))
    return OnnxSelector(lambda: open_scorer(folder, threads=settings.threads), settings.passages)


def _can_generate(generator: str) -> bool:
    """Tell whether answers are generated: not if the user wants extracts, nor if no language model can run here."""
    if generator == EXTRACTIVE:
        return False
    try:
        locate_generator(generator)
    except MissingExtraError:
        return False
    return True


def _is_near(citations: Sequence[Citation], ranked: Sequence[Sentence]) -> bool:
    """Tell whether a citation quotes one of the sentences nearest to the question: a true statement may still be no answer."""
    nearest = [quote(sentence) for sentence in ranked[:NEAR_ENOUGH]]
    return any(c.chunk_id == n.chunk_id and c.start < n.end and n.start < c.end for c in citations for n in nearest)


@dataclass(frozen=True, slots=True)
class _Reply:
    text: str
    prompt: Prompt
    sentences: Sequence[AnswerSentence] = ()
    citations: Sequence[Citation] = ()
    draft: str = ""


def in_places_of(earlier: Sequence[Passage], passages: Sequence[Passage]) -> list[Passage]:
    """Let passages that headed the last prompt head this one too, in the same order.

    What stands in front of the first difference is not read again by the generator: a follow-up starts at once.
    """
    by_id = {p.chunk_id: p for p in passages}
    head = [by_id[p.chunk_id] for p in itertools.takewhile(lambda p: p.chunk_id in by_id, earlier)]
    taken = {p.chunk_id for p in head}
    return [*head, *(p for p in passages if p.chunk_id not in taken)]


class TokenCounter(Protocol):
    """What of a generator decides how much fits into its prompt."""

    @property
    def context_tokens(self) -> int: ...
    def count_tokens(self, messages: Sequence[Message]) -> int: ...


def fit(
    question: str,
    passages: Sequence[Passage],
    generator: TokenCounter,
    answer_tokens: int,
    earlier: Sequence[str] = (),
    *,
    style: Style = "sentence",
    order: Order = "best-first",
) -> Prompt:
    """Build the prompt from as many of the passages, given best first, as leave room for the answer."""
    budget = generator.context_tokens - answer_tokens
    for n in range(len(passages), 0, -1):
        shown = both_ends(passages[:n]) if order == "both-ends" else passages[:n]
        messages = answer_messages(question, shown, earlier, style=style)
        tokens = generator.count_tokens(messages)
        if tokens <= budget:
            return Prompt(messages, tokens, tuple(shown), tuple(passages[n:]))
    raise UsageError(
        f"not even one passage fits: the question and the best passage need {tokens} tokens, and {budget} are free",
        mend="ask a shorter question or raise context_tokens",
    )


class _Clock:
    """Wall time since the question, and of each stage."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._stages: dict[str, float] = {}
        self._first: float | None = None

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self._stages[stage] = (now - self._last) * 1000
        self._last = now

    def first_piece(self, on_text: Callable[[str], None] | None) -> Callable[[str], None]:
        def emit(piece: str) -> None:
            if self._first is None:
                self._first = (time.perf_counter() - self._start) * 1000
            if on_text is not None:
                on_text(piece)

        return emit

    def timings(self) -> Timings:
        return Timings(
            retrieve_ms=self._stages.get("retrieve", 0.0),
            select_ms=self._stages.get("select", 0.0),
            first_token_ms=self._first or 0.0,
            generate_ms=self._stages.get("generate", 0.0),
            total_ms=(time.perf_counter() - self._start) * 1000,
        )
