"""One thread's part of scoring given answers: it reads a prompt once, and computes several of its answers in each call."""

import math
from dataclasses import dataclass

import numpy as np

from edge_rag.errors import ModelError
from edge_rag.models.gguf_native import TOGETHER, NativeContext, NativeModel, pieces
from edge_rag.models.gguf_vocabulary import common_prefix
from edge_rag.models.gguf_workers import HELD_TOKENS, MOST_SEQUENCES, PIECE, Call
from edge_rag.models.sampling import Logits

SHORTEST_STEP = 4  # tokens of each answer in a call: fewer calls for answers of many lengths, for a few tokens in vain

Logprobs = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What is to be scored: the answers to each prompt of the call, as tokens."""

    answers: list[list[list[int]]]


def logprob_of(logits: Logits, token: int) -> float:
    highest = logits[token]
    value = -math.log(float(np.exp(logits - highest).sum(dtype=np.float64)))
    if not math.isfinite(value):
        raise ModelError("the model predicts values that are no numbers", mend="check its file, and how it was trained")
    return value


def score_answers(model: NativeModel, is_exact: bool, job: ScoreJob, call: Call[list[Logprobs]], number: int) -> None:
    """Do one worker's part of a call."""
    room = TOGETHER + SHORTEST_STEP + max(
        len(prompt) + max(map(len, answers), default=0)
        for prompt, answers in zip(call.prompts, job.answers, strict=True)
    )  # fmt: skip
    together = 1  # where company changes bits
    if is_exact:
        together = max(1, min(MOST_SEQUENCES, HELD_TOKENS // room, max(map(len, job.answers))))
    context = model.open_context(tokens=room, sequences=together, read_threads=1, write_threads=1)
    try:
        _Scorer(context, is_exact, job, call, number).run()
    finally:
        context.close()


class _Scorer:
    def __init__(
        self, context: NativeContext, is_exact: bool, job: ScoreJob, call: Call[list[Logprobs]], number: int
    ) -> None:
        self._context = context
        self._is_exact = is_exact
        self._job = job
        self._call = call
        self._number = number
        self._held: list[int] = []  # what sequence 0 holds: the beginning of the last prompt, or all of it

    def run(self) -> None:
        """Score the answers to prompts until none is left, or until it is to stop."""
        while (index := self._call.take(self._number)) is not None:
            prompt, answers = self._call.prompts[index], self._job.answers[index]
            if answers:
                self._read(prompt)
            if self._call.stop.is_set():
                return
            logprobs = [[logprob_of(self._context.logits(0), answer[0])] for answer in answers]
            # the longest first, so that those which still go on are neighbours; no call for those of one token
            order = sorted((i for i, a in enumerate(answers) if len(a) > 1), key=lambda i: -len(answers[i]))
            for start in range(0, len(order), self._context.n_sequences):
                together = order[start : start + self._context.n_sequences]
                self._score(prompt, [answers[i] for i in together], [logprobs[i] for i in together])
            if self._call.stop.is_set():
                return
            self._call.report(index, [tuple(values) for values in logprobs])

    def _read(self, prompt: list[int]) -> None:
        """Let sequence 0 hold a prompt. What it shares with the last one is there; its last tokens' logits are wanted."""
        keep = max(0, min(common_prefix(self._held, prompt), len(prompt) - TOGETHER))
        self._cut(keep if self._is_exact else keep // PIECE * PIECE)
        for start, end in pieces(len(self._held), len(prompt), PIECE):
            if self._call.stop.is_set():
                return
            self._context.read(0, start, prompt[start:end])
        self._held = prompt

    def _score(self, prompt: list[int], answers: list[list[int]], logprobs: list[list[float]]) -> None:
        """Compute answers in a sequence each, the longest first, and add the log-probabilities after their first tokens.

        Each call computes as many tokens of one answer as of another, at least TOGETHER, and fills up what has ended: how a
        token is computed must not depend on the other answers.
        """
        n = len(prompt)
        if len(self._held) < n:  # after answers that a recurrent model could not forget
            self._read(prompt)
        for sequence in range(1, len(answers)):
            self._context.copy(0, sequence)
        start = 0
        while going := [answer for answer in answers if len(answer) - 1 > start]:
            if self._call.stop.is_set():
                return
            end = start + _step(len(going[-1]) - 1 - start, len(going[0]) - 1 - start, len(going))
            # logits of TOGETHER tokens at least: those of a single one are computed in another way, too
            wanted = [max(min(len(answer) - 1, end), start + TOGETHER) for answer in going]
            self._context.decode([
                (answer[i] if i < len(answer) else 0, n + i, sequence, i < wanted[sequence])
                for sequence, answer in enumerate(going)
                for i in range(start, end)
            ])  # fmt: skip
            row = 0
            for answer, values, until in zip(going, logprobs, wanted, strict=False):
                values += [
                    logprob_of(self._context.logits(row + i), token)
                    for i, token in enumerate(answer[start + 1 : end + 1])
                ]
                row += until - start
            start = end
        self._cut(n)

    def _cut(self, keep: int) -> None:
        if not self._context.forget(0, keep):  # recurrent models cannot go back
            self._context.forget(0)
            keep = 0
        self._held = self._held[:keep]


def _step(fewest: int, most: int, n_answers: int) -> int:
    """Return how many tokens of each answer the next call computes: of those that the shortest still has, and the longest."""
    wanted = max(fewest, min(SHORTEST_STEP, most))
    return max(TOGETHER, min(wanted, PIECE // n_answers))
