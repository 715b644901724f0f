"""Whoever answers the prompts of a run: a GGUF in batches, a server one prompt at a time, or the documents' own sentences."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge_rag.answering import EXTRACTIVE
from edge_rag.answering.extract import extract
from edge_rag.answering.prompt import closed_book_messages
from edge_rag.errors import UsageError
from edge_rag.evaluation.cases import Case
from edge_rag.interfaces import Generator, Message, Style
from edge_rag.models import locate_generator, open_generator, quantised_generator
from edge_rag.models.gguf import GgufGenerator
from edge_rag.models.gguf_batch import GgufBatch
from edge_rag.models.prompt_style import how_trained


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    prompt_tokens: int
    answer_tokens: int
    logprob: float | None


OnReply = Callable[[int, Reply], None]


class Answerer(Protocol):
    @property
    def context_tokens(self) -> int: ...
    def count_tokens(self, messages: Sequence[Message]) -> int: ...
    def answer(self, cases: Sequence[Case], max_tokens: int, on_reply: OnReply) -> None:
        """Answer every case; `on_reply` gets the number of a case and its reply as soon as there is one, in any order."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Who:
    """Who is to answer."""

    generator: str  # as in settings: a name, a GGUF file, "extractive", or http(s)://host/v1#model
    lora: str = ""  # the file of an adapter
    quantised: str = ""  # the type that the generator is converted to first; "": as it is
    threads: int = 0
    context_tokens: int = 4096

    @property
    def file(self) -> Path | None:
        """Return the GGUF; None where there is none."""
        if self.generator == EXTRACTIVE or self.generator.startswith(("http://", "https://")):
            if self.lora or self.quantised:
                raise UsageError(f"{self.generator} takes no adapter and no type", mend="choose a GGUF generator")
            return None
        if self.quantised:
            return quantised_generator(self.generator, self.quantised)
        return locate_generator(self.generator)

    @property
    def style(self) -> Style:
        """Return how it was trained to be asked."""
        file = self.file
        return how_trained(file, self.lora_file).style if file else "sentence"

    @property
    def lora_file(self) -> Path | None:
        return Path(self.lora).expanduser() if self.lora else None


def open_answerer(who: Who) -> Answerer:
    if who.generator == EXTRACTIVE:
        return Extracts(who.context_tokens)
    file = who.file
    if file is None:
        return OneByOne(open_generator(who.generator, context_tokens=who.context_tokens))
    return Batches(
        GgufBatch(file, threads=who.threads, context_tokens=who.context_tokens, lora=who.lora_file, name=who.generator)
    )


class Batches:
    """A GGUF that answers many prompts at once."""

    def __init__(self, batch: GgufBatch) -> None:
        self._batch = batch
        self.context_tokens = batch.context_tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self._batch.count_tokens(messages)

    def answer(self, cases: Sequence[Case], max_tokens: int, on_reply: OnReply) -> None:
        self._batch.generate(
            [case.messages for case in cases],
            max_tokens=max_tokens,
            on_done=lambda n, r: on_reply(n, Reply(r.text, r.prompt_tokens, r.answer_tokens, r.logprob)),
        )

    def close(self) -> None:
        self._batch.close()


class OneByOne:
    """Any generator. It does not tell how sure it is, and its answers are counted in prompts' tokens."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.context_tokens = generator.context_tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self._generator.count_tokens(messages)

    def answer(self, cases: Sequence[Case], max_tokens: int, on_reply: OnReply) -> None:
        for number, case in enumerate(cases):
            text = "".join(self._generator.generate(case.messages, max_tokens=max_tokens))
            tokens = self.count_tokens([Message("user", text)])
            on_reply(number, Reply(text, self.count_tokens(case.messages), tokens, None))

    def close(self) -> None:
        self._generator.close()


class Extracts:
    """No generator: the sentences nearest to the question are the answer. In a closed book it has nothing to say."""

    def __init__(self, context_tokens: int) -> None:
        self.context_tokens = context_tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    def answer(self, cases: Sequence[Case], max_tokens: int, on_reply: OnReply) -> None:
        for number, case in enumerate(cases):
            text, _, _ = extract(case.sentences)
            on_reply(number, Reply(text, 0, len(text.split()), None))

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Timed:
    text: str
    first_token_ms: float
    total_ms: float


def time_singly(who: Who, cases: Sequence[Case], max_tokens: int) -> list[Timed]:
    """Ask the cases one at a time, with all threads and nothing kept from the one before but what every prompt begins with."""
    file = who.file
    if file is None or not cases:
        return []
    timed = []
    generator = GgufGenerator(file, threads=who.threads, context_tokens=who.context_tokens, lora=who.lora_file)
    with closing(generator):
        for _ in generator.generate(closed_book_messages("Ready?"), max_tokens=1):  # reads the model from disk
            pass
        for case in cases:
            start = time.perf_counter()
            first, text = 0.0, ""
            for piece in generator.generate(case.messages, max_tokens=max_tokens):
                first = first or time.perf_counter() - start
                text += piece
            total = time.perf_counter() - start
            timed.append(Timed(text, (first or total) * 1000, total * 1000))
    return timed
