"""One thread's part of writing many answers: it reads prompts one at a time, and writes all their answers together."""

import itertools
from dataclasses import dataclass, field

import numpy as np

from edge_rag.models.gguf_native import TOGETHER, NativeContext, NativeModel, pieces
from edge_rag.models.gguf_score import logprob_of
from edge_rag.models.gguf_vocabulary import Draft, Vocabulary, common_prefix
from edge_rag.models.gguf_workers import HELD_TOKENS, MOST_SEQUENCES, PIECE, Call
from edge_rag.models.sampling import Choose, Logits

SEQUENCES = 8  # answers that a worker writes together, where their number changes bits; elsewhere up to MOST_SEQUENCES
WORTH_COPYING = 16  # shared tokens; to copy keys and values takes as long as to compute a few of them


@dataclass(frozen=True, slots=True)
class Generated:
    text: str
    prompt_tokens: int
    answer_tokens: int  # without the one that says that the answer ends
    logprob: float  # mean over the answer's tokens and, if the model ended it, its end; 0.0 if nothing was generated
    is_whole: bool  # the model ended it: it was not cut at max_tokens, nor as a loop


@dataclass(frozen=True, slots=True)
class WriteJob:
    """What is to be written: an answer for each prompt of the call."""

    max_tokens: int
    choose: list[Choose]  # for each prompt of the call


def is_exact(model: NativeModel, vocabulary: Vocabulary) -> bool:
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


def write_answers(
    model: NativeModel, vocabulary: Vocabulary, is_exact: bool, job: WriteJob, call: Call[Generated], number: int
) -> None:
    """Do one worker's part of a call."""
    room = max(map(len, call.prompts)) + job.max_tokens
    sequences = SEQUENCES
    if is_exact:
        sequences = max(TOGETHER, min(MOST_SEQUENCES, HELD_TOKENS // max(1, room), len(call.prompts)))
    context = model.open_context(tokens=room, sequences=sequences, read_threads=1, write_threads=1)
    try:
        _Writer(context, vocabulary, is_exact, job, call, number).run()
    finally:
        context.close()


@dataclass(slots=True)
class _Answer:
    """What is written for one prompt."""

    index: int  # of the prompt
    draft: Draft
    choose: Choose
    text: str = ""
    logprobs: list[float] = field(default_factory=list)

    def add(self, logits: Logits) -> None:
        """Choose the next token, and take it."""
        token = self.choose(logits)
        self.text += self.draft.add(token)
        self.logprobs.append(logprob_of(logits, token))


@dataclass(slots=True)
class _Sequence:
    """A place for one prompt and its answer in a worker's context."""

    number: int
    held: list[int] = field(default_factory=list)  # the prompt whose keys and values are here, without its answer
    after: Logits | None = None  # the logits after it, if it is a whole prompt
    answer: _Answer | None = None  # in the making

    @property
    def last_token(self) -> int:
        return self.answer.draft.tokens[-1] if self.answer else 0

    @property
    def last_position(self) -> int:
        return len(self.held) + (len(self.answer.draft.tokens) - 1 if self.answer else 0)


class _Writer:
    def __init__(
        self, context: NativeContext, vocabulary: Vocabulary, is_exact: bool, job: WriteJob, call: Call[Generated],
        number: int,
    ) -> None:  # fmt: skip
        self._context = context
        self._vocabulary = vocabulary
        self._is_exact = is_exact
        self._job = job
        self._call = call
        self._number = number
        self._sequences = [_Sequence(number) for number in range(context.n_sequences)]

    def run(self) -> None:
        """Answer prompts until none is left, or until it is to stop."""
        more = True
        while not self._call.stop.is_set():
            free = [s for s in self._sequences if s.answer is None]
            index = self._call.take(self._number) if more and free else None
            if index is not None:
                self._begin(index, self._call.prompts[index], free)
            elif len(free) < len(self._sequences):
                more = more and not free
                self._go_on()
            else:
                return

    def _begin(self, index: int, prompt: list[int], free: list[_Sequence]) -> None:
        """Read a prompt, and take the first token of its answer."""
        sequence = self._place(prompt, free)
        for start, end in pieces(len(sequence.held), len(prompt), PIECE):
            if self._call.stop.is_set():
                return
            self._context.read(sequence.number, start, prompt[start:end])
        sequence.held = prompt
        if sequence.after is None:
            sequence.after = self._context.logits(0).copy()
        sequence.answer = _Answer(index, Draft(self._vocabulary, self._job.max_tokens), self._job.choose[index])
        if not sequence.answer.draft.is_finished:
            sequence.answer.add(sequence.after)
        self._report_if_finished(sequence)

    def _place(self, prompt: list[int], free: list[_Sequence]) -> _Sequence:
        """Choose a free sequence, and let it hold as much of the prompt's beginning as is held anywhere.

        A prompt that is held whole, with the logits after it, is not read again: that is how its samples share it.
        """
        shared = {s.number: common_prefix(s.held, prompt) for s in self._sequences}
        chosen = max(free, key=lambda s: shared[s.number])
        richest = max(self._sequences, key=lambda s: shared[s.number])
        keep = shared[chosen.number]
        if shared[richest.number] >= keep + WORTH_COPYING:
            self._context.copy(richest.number, chosen.number)
            keep = shared[richest.number]
            chosen.held, chosen.after = richest.held, richest.after
        if chosen.after is None or chosen.held != prompt:
            keep = max(0, min(keep, len(prompt) - TOGETHER))
            keep = keep if self._is_exact else keep // PIECE * PIECE
        self._cut(chosen, keep)
        return chosen

    def _go_on(self) -> None:
        """Take one more token of every answer.

        llama.cpp computes neighbouring sequences together, so those between take part, and a single answer gets company:
        how a token is computed must not depend on how many others are still being written.
        """
        together = self._sequences
        if self._is_exact:
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
        draft, logprobs = answer.draft, answer.logprobs
        mean = sum(logprobs) / len(logprobs) if logprobs else 0.0
        self._call.report(
            answer.index, Generated(answer.text, len(sequence.held), len(draft.tokens), mean, draft.is_whole)
        )
        sequence.answer = None
        self._cut(sequence, len(sequence.held))

    def _cut(self, sequence: _Sequence, keep: int) -> None:
        """Let a sequence hold no more than the beginning of its prompt."""
        if not self._context.forget(sequence.number, keep):  # recurrent models cannot go back
            self._context.forget(sequence.number)
            keep = 0
        if keep < len(sequence.held):
            sequence.held, sequence.after = sequence.held[:keep], None
