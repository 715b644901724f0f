"""Many answers of a GGUF as fast as this processor can: for evaluation and for making training data.

Each worker thread has a context of its own with one llama.cpp thread and several sequences: while one prompt after
another is read, all answers of the worker are written together, a token of each at a time. Threads never wait for each
other inside a token, which is what costs a small model most of what more cores could give.

Prompts are sorted by their tokens, so that neighbours begin alike; each worker goes through a stretch of that order
and takes over keys and values for what a prompt shares with one that it still holds. A worker without work takes over
half of what the slowest has left.
"""

import functools
import itertools
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_rag.errors import EdgeRagError, ModelError, UsageError
from edge_rag.interfaces import Message
from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf_native import TOGETHER, NativeContext, NativeModel, pieces
from edge_rag.models.gguf_vocabulary import Draft, Vocabulary, common_prefix

SEQUENCES = 8  # answers that a worker writes together, where their number changes bits
MOST_SEQUENCES = 16  # elsewhere: of 1, 4, 8 and 16 together a core writes 34, 68, 92 and 117 tokens/s
HELD_TOKENS = 8192  # by all sequences of a worker: 180 MB of keys and values for the default model
PIECE = 64  # prompt tokens for each call: larger ones are no faster, and Ctrl-C has to wait for them
WORTH_COPYING = 16  # shared tokens; to copy keys and values takes as long as to compute a few of them


@dataclass(frozen=True, slots=True)
class Generated:
    text: str
    prompt_tokens: int
    answer_tokens: int  # without the one that says that the answer ends
    logprob: float  # mean over the answer's tokens and, if the model ended it, its end; 0.0 if nothing was generated


class GgufBatch:
    """Greedy answers to many prompts at once.

    What is generated for a prompt depends on the model, the adapter, the prompt and max_tokens, to the last bit of
    `logprob`: not on the other prompts of the call, their order, the number of threads, or earlier calls. Another
    processor or build of llama.cpp may round otherwise. With Q8_0 and Q4_0 the texts are those of GgufGenerator, too;
    with other types they may differ where two tokens are about equally likely.

    The first call tries out whether the cut of a prompt and company change bits, as they do with K types. If so, prompts are
    cut at multiples of PIECE only, whatever they share, and always SEQUENCES answers are written together.
    """

    def __init__(
        self, path: Path, *, threads: int = 0, context_tokens: int = 2048, lora: Path | None = None, name: str = ""
    ) -> None:
        self.name = name or path.stem
        self.context_tokens = context_tokens
        self._threads = usable_cores(threads)
        self._model = NativeModel(path, lora=lora)
        self._vocabulary = Vocabulary(self._model, self.name)
        self._workers: list[threading.Thread] = []
        self._call: _Call | None = None  # the last one

    def __enter__(self) -> "GgufBatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the native memory back. May be called twice."""
        self._end_workers()
        self._model.close()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self._vocabulary.prompt_tokens(messages))

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_tokens: int,
        on_done: Callable[[int, Generated], None] | None = None,
    ) -> list[Generated]:
        """Return the answers in the order of the prompts.

        `on_done` gets each of them, with the index of its prompt, as soon as it is there, in the calling thread. What it
        raises, and Ctrl-C, end the call; so does the first error of a worker.
        """
        tokens = [self._vocabulary.prompt_tokens(messages) for messages in prompts]
        for number, prompt in enumerate(tokens):
            if len(prompt) + max_tokens > self.context_tokens:
                raise UsageError(
                    f"prompt {number} (counted from 0) has {len(prompt)} tokens: with an answer of {max_tokens} it does"
                    f" not fit into {self.context_tokens}",
                    mend="show it fewer passages, or raise context_tokens",
                )
        done: dict[int, Generated] = {}
        call = _Call(tokens, max_tokens, self._is_exact, _Shares(tokens, self._threads))
        self._start_workers(call)
        try:
            while len(done) < len(tokens):
                index, result = _next(call.results)
                if isinstance(result, BaseException):
                    raise _as_edge_rag_error(result) from result
                done[index] = result
                if on_done is not None:
                    on_done(index, result)
        finally:
            self._end_workers()
        return [done[index] for index in range(len(tokens))]

    @functools.cached_property
    def _is_exact(self) -> bool:
        return _is_exact(self._model, self._vocabulary)

    def _start_workers(self, call: "_Call") -> None:
        self._call = call
        for number in range(min(self._threads, len(call.tokens))):
            worker = threading.Thread(target=self._work, args=(call, number), name=f"{self.name} {number}")
            self._workers.append(worker)
            worker.start()

    def _end_workers(self) -> None:
        if self._call is not None:
            self._call.stop.set()
        for worker in self._workers:
            worker.join()
        self._workers.clear()

    def _work(self, call: "_Call", number: int) -> None:
        try:
            room = max(map(len, call.tokens)) + call.max_tokens
            sequences = SEQUENCES
            if call.is_exact:
                sequences = max(TOGETHER, min(MOST_SEQUENCES, HELD_TOKENS // max(1, room), len(call.tokens)))
            context = self._model.open_context(tokens=room, sequences=sequences, read_threads=1, write_threads=1)
            try:
                _Worker(context, self._vocabulary, call, number).run()
            finally:
                context.close()
        except BaseException as error:
            call.results.put((-1, error))


@dataclass(frozen=True, slots=True)
class _Call:
    """What the workers of one `generate` share."""

    tokens: list[list[int]]  # of the prompts
    max_tokens: int
    is_exact: bool
    shares: "_Shares"
    results: "queue.SimpleQueue[tuple[int, Generated | BaseException]]" = field(default_factory=queue.SimpleQueue)
    stop: threading.Event = field(default_factory=threading.Event)


def _next(
    results: "queue.SimpleQueue[tuple[int, Generated | BaseException]]",
) -> tuple[int, Generated | BaseException]:
    while True:
        try:
            return results.get(timeout=0.2)  # Windows tells of Ctrl-C only between waits
        except queue.Empty:
            pass


def _as_edge_rag_error(error: BaseException) -> EdgeRagError:
    if isinstance(error, EdgeRagError):
        return error
    return ModelError(f"a worker failed: {type(error).__name__}: {error}")


def _is_exact(model: NativeModel, vocabulary: Vocabulary) -> bool:
    """Try out whether the same tokens give the same bits however a prompt is cut, and in whatever company."""
    prompt = vocabulary.tokenize(
        "The keeper lit the lamp at dusk, and wrote the wind and the weather down. " * 3, add_special=True
    )
    n = len(prompt)
    context = model.open_context(tokens=n + 1, sequences=SEQUENCES, read_threads=1, write_threads=1)
    try:
        first = []
        for sequence, cuts in enumerate(([0, n], [0, n - 2, n], [0, 3, n - 5, n], [0, 8, 15, n])):
            for start, end in itertools.pairwise(cuts):
                context.read(sequence, start, prompt[start:end])
            first.append(context.logits(0).copy())
        second = []
        for company in (TOGETHER, 3, 4):
            context.write([(prompt[0], n, sequence) for sequence in range(company)])
            second.append(context.logits(0).copy())
            if not all(context.forget(sequence, n) for sequence in range(company)):
                return False
    finally:
        context.close()
    return all(np.array_equal(group[0], other) for group in (first, second) for other in group)


class _Shares:
    """Which worker answers which prompt."""

    def __init__(self, tokens: list[list[int]], n_workers: int) -> None:
        self._lock = threading.Lock()
        order = sorted(range(len(tokens)), key=tokens.__getitem__)
        cost, costs = 0, []
        for i, index in enumerate(order):
            shared = common_prefix(tokens[order[i - 1]], tokens[index]) if i else 0
            cost += len(tokens[index]) - shared
            costs.append(cost)
        self._left: list[deque[int]] = [deque() for _ in range(n_workers)]
        for index, until in zip(order, costs, strict=True):
            self._left[min(n_workers - 1, until * n_workers // (cost + 1))].append(index)

    def take(self, worker: int) -> int | None:
        """Return the next prompt of a worker; None if all have been taken."""
        with self._lock:
            own = self._left[worker]
            if not own:
                most = max(self._left, key=len)
                own.extendleft([most.pop() for _ in range(-(-len(most) // 2))])
            return own.popleft() if own else None


@dataclass(slots=True)
class _Answer:
    """What is written for one prompt."""

    index: int  # of the prompt
    draft: Draft
    text: str = ""
    logprobs: list[float] = field(default_factory=list)

    def add(self, logits: npt.NDArray[np.float32]) -> None:
        """Take the likeliest token."""
        token = int(np.argmax(logits))
        self.text += self.draft.add(token)
        self.logprobs.append(_logprob(logits, token))


@dataclass(slots=True)
class _Sequence:
    """A place for one prompt and its answer in a worker's context."""

    number: int
    held: list[int] = field(default_factory=list)  # the prompt whose keys and values are here, without its answer
    answer: _Answer | None = None  # in the making

    @property
    def last_token(self) -> int:
        return self.answer.draft.tokens[-1] if self.answer else 0

    @property
    def last_position(self) -> int:
        return len(self.held) + (len(self.answer.draft.tokens) - 1 if self.answer else 0)


class _Worker:
    """One thread's part: reads prompts one at a time, and writes all their answers together."""

    def __init__(self, context: NativeContext, vocabulary: Vocabulary, call: _Call, number: int) -> None:
        self._context = context
        self._vocabulary = vocabulary
        self._call = call
        self._number = number
        self._sequences = [_Sequence(number) for number in range(context.n_sequences)]

    def run(self) -> None:
        """Answer prompts until none is left, or until it is to stop."""
        more = True
        while not self._call.stop.is_set():
            free = [s for s in self._sequences if s.answer is None]
            index = self._call.shares.take(self._number) if more and free else None
            if index is not None:
                self._begin(index, self._call.tokens[index], free)
            elif len(free) < len(self._sequences):
                more = more and not free
                self._go_on()
            else:
                return

    def _begin(self, index: int, prompt: list[int], free: list[_Sequence]) -> None:
        """Read a prompt, and take the first token of its answer."""
        sequence, keep = self._place(prompt, free)
        for start, end in pieces(keep, len(prompt), PIECE):
            if self._call.stop.is_set():
                return
            self._context.read(sequence.number, start, prompt[start:end])
        sequence.held = prompt
        sequence.answer = _Answer(index, Draft(self._vocabulary, self._call.max_tokens))
        if not sequence.answer.draft.is_finished:
            sequence.answer.add(self._context.logits(0))
        self._report_if_finished(sequence)

    def _place(self, prompt: list[int], free: list[_Sequence]) -> tuple[_Sequence, int]:
        """Choose a free sequence, and let it hold as much of the prompt's beginning as is held anywhere."""
        shared = {s.number: common_prefix(s.held, prompt) for s in self._sequences}
        chosen = max(free, key=lambda s: shared[s.number])
        richest = max(self._sequences, key=lambda s: shared[s.number])
        keep = shared[chosen.number]
        if shared[richest.number] >= keep + WORTH_COPYING:
            self._context.copy(richest.number, chosen.number)
            keep = shared[richest.number]
            chosen.held = self._sequences[richest.number].held
        keep = max(0, min(keep, len(prompt) - TOGETHER))
        self._cut(chosen, keep if self._call.is_exact else keep // PIECE * PIECE)
        return chosen, len(chosen.held)

    def _go_on(self) -> None:
        """Take one more token of every answer.

        llama.cpp computes neighbouring sequences together, so those between take part, and a single answer gets company:
        how a token is computed must not depend on how many others are still being written.
        """
        together = self._sequences
        if self._call.is_exact:
            busy = [s.number for s in together if s.answer is not None]
            first = min(busy[0], len(together) - TOGETHER)
            together = together[first : max(busy[-1] + 1, first + TOGETHER)]
        self._context.write([(s.last_token, s.last_position, s.number) for s in together])
        for row, sequence in enumerate(together):
            if sequence.answer is None:
                self._cut(sequence, len(sequence.held))
            else:
                sequence.answer.add(self._context.logits(row))
                self._report_if_finished(sequence)

    def _report_if_finished(self, sequence: _Sequence) -> None:
        answer = sequence.answer
        if answer is None or not answer.draft.is_finished:
            return
        mean = sum(answer.logprobs) / len(answer.logprobs) if answer.logprobs else 0.0
        generated = Generated(answer.text, len(sequence.held), len(answer.draft.tokens), mean)
        self._call.results.put((answer.index, generated))
        sequence.answer = None
        self._cut(sequence, len(sequence.held))

    def _cut(self, sequence: _Sequence, keep: int) -> None:
        """Let a sequence hold no more than the beginning of its prompt."""
        if not self._context.forget(sequence.number, keep):  # recurrent models cannot go back
            self._context.forget(sequence.number)
            keep = 0
        sequence.held = sequence.held[:keep]


def _logprob(logits: npt.NDArray[np.float32], token: int) -> float:
    highest = logits[token]
    return -math.log(float(np.exp(logits - highest).sum(dtype=np.float64)))
