"""Questions to answers over one library: retrieve -> select -> decide -> prompt -> generate -> cite."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edge_rag.answering import evidence
from edge_rag.answering.cite import locate, quote
from edge_rag.answering.extract import extract
from edge_rag.answering.history import Turn, earlier_questions, retrieve_with_history
from edge_rag.answering.prompt import answer_messages
from edge_rag.answering.retrieve import Retrieval, retrieve
from edge_rag.answering.selector import KeepTop
from edge_rag.errors import UsageError
from edge_rag.interfaces import Answer, Generator, Message, Passage, Selector, Timings
from edge_rag.library import EVERYTHING, Filters, Library
from edge_rag.models import open_generator
from edge_rag.settings import Settings

NOT_FOUND = "This is not in these documents."
NEAREST = 2  # quotes given besides the answer


@dataclass(frozen=True, slots=True)
class Prompt:
    messages: Sequence[Message]
    tokens: int
    passages: tuple[Passage, ...]  # that fit
    dropped: tuple[Passage, ...]  # that did not


class Assistant:
    """Answers questions from a library. Owns the generator that it opens, never the library.

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
    ) -> None:
        self._library = library
        self._settings = settings or Settings()
        self._selector = selector or KeepTop(self._settings.passages)
        self._generator = generator
        self._extractive = generator is None and self._settings.generator == "extractive"

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
        kept = self._selector.select(question, found.passages)
        clock.mark("select")
        sentences = evidence.rank_sentences(kept, found.question_vector, self._library.embedder)
        confidence = evidence.confidence(evidence.signals(question, kept, sentences, found.cosines))
        emit = clock.first_piece(on_text)
        if not kept or confidence < self._threshold():
            emit(NOT_FOUND)
            prompt, text = Prompt((), 0, tuple(kept), ()), NOT_FOUND
        elif self._extractive:
            prompt, text = Prompt((), 0, tuple(kept), ()), extract(sentences)
            emit(text)
        else:
            prompt = fit(
                question, kept, self.generator, self._settings.answer_tokens, earlier_questions(question, history)
            )
            text = self._generate(prompt, emit)
        clock.mark("generate")
        abstained = text == NOT_FOUND
        answered, citations = ([], []) if abstained else locate(question, text, prompt.passages)
        return Answer(
            text=text,
            abstained=abstained,
            confidence=confidence,
            sentences=tuple(answered),
            citations=tuple(citations),
            nearest=tuple(quote(s) for s in sentences[:NEAREST]),
            passages=prompt.passages,
            dropped=prompt.dropped,
            prompt_tokens=prompt.tokens,
            generator="extractive" if self._extractive else self._settings.generator,
            timings=clock.timings(),
        )

    @property
    def generator(self) -> Generator:
        if self._generator is None:
            s = self._settings
            self._generator = open_generator(s.generator, threads=s.threads, context_tokens=s.context_tokens)
        return self._generator

    def close(self) -> None:
        if self._generator is not None:
            self._generator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _retrieve(self, question: str, filters: Filters, history: Sequence[Turn]) -> Retrieval:
        s = self._settings
        k = max(s.passages, s.candidates)
        if history:
            return retrieve_with_history(self._library, question, history, k, candidates=s.candidates, filters=filters)
        return retrieve(self._library, question, k, candidates=s.candidates, filters=filters)

    def _threshold(self) -> float:
        chosen = self._settings.confidence
        return evidence.threshold(self._library.embedder) if chosen < 0 else chosen

    def _generate(self, prompt: Prompt, emit: Callable[[str], None]) -> str:
        pieces = []
        for piece in self.generator.generate(prompt.messages, max_tokens=self._settings.answer_tokens):
            emit(piece)
            pieces.append(piece)
        return "".join(pieces).strip()


def fit(
    question: str, passages: Sequence[Passage], generator: Generator, answer_tokens: int, earlier: Sequence[str] = ()
) -> Prompt:
    """Build the prompt from as many of the passages, best first, as leave room for the answer."""
    budget = generator.context_tokens - answer_tokens
    for n in range(len(passages), 0, -1):
        messages = answer_messages(question, passages[:n], earlier)
        tokens = generator.count_tokens(messages)
        if tokens <= budget:
            return Prompt(messages, tokens, tuple(passages[:n]), tuple(passages[n:]))
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
