"""One thread's part of scoring given answers: it reads a prompt once, and computes several of its answers in each call.

Contrasting is scoring twice: once without the passages, where the whole distribution before each token of an answer is kept,
and once for each prompt that is compared with it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

import numpy as np

from edge_rag.errors import ModelError
from edge_rag.models.gguf_native import TOGETHER, NativeContext, NativeModel, pieces
from edge_rag.models.gguf_vocabulary import common_prefix
from edge_rag.models.gguf_workers import HELD_TOKENS, MOST_SEQUENCES, PIECE, Call
from edge_rag.models.sampling import Logits

SHORTEST_STEP = 4  # tokens of each answer in a call: fewer calls for answers of many lengths, for a few tokens in vain

Logprobs = tuple[float, ...]
Contrast = tuple[Logprobs, Logprobs]  # of the tokens of an answer: under the prompt, and by what the prompt adds

T = TypeVar("T")
Take = Callable[[int, int, Logits], T]  # (answer, token, the logits before that token) -> what is kept of them


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What is to be scored: the answers to each prompt of the call, as tokens."""

    answers: list[list[list[int]]]


@dataclass(frozen=True, slots=True)
class ContrastJob:
    """What is to be contrasted: the answers to each prompt of the call, and the prompts that are compared with it."""

    answers: list[list[list[int]]]
    prompts: list[list[list[int]]]
    alpha: float


def logprob_of(logits: Logits, token: int) -> float:
    highest = logits[token]
    value = -math.log(float(np.exp(logits - highest).sum(dtype=np.float64)))
    if not math.isfinite(value):
        raise ModelError("the model predicts values that are no numbers", mend="check its file, and how it was trained")
    return value


def contrasted(logits: Logits, without: Logits, token: int, alpha: float) -> float:
    """Return the log-probability of a token by (1 + alpha) * logits - alpha * those without (arXiv 2305.14739, equation 3)."""
    return logprob_of(np.float32(1 + alpha) * logits - np.float32(alpha) * without, token)


def score_answers(model: NativeModel, is_exact: bool, job: ScoreJob, call: Call[list[Logprobs]], number: int) -> None:
    """Do one worker's part of a call."""
    with _scorer(model, is_exact, call.prompts, job.answers, call.stop) as scorer:
        while (index := call.take(number)) is not None:
            answers = job.answers[index]
            found = scorer.score(call.prompts[index], answers, _likelihood(answers))
            if found is None:
                return
            call.report(index, [tuple(values) for values in found])


def contrast_answers(
    model: NativeModel, is_exact: bool, job: ContrastJob, call: Call[list[list[Contrast]]], number: int
) -> None:
    """Do one worker's part of a call."""
    longest = [max([without, *prompts], key=len) for without, prompts in zip(call.prompts, job.prompts, strict=True)]
    with _scorer(model, is_exact, longest, job.answers, call.stop) as scorer:
        while (index := call.take(number)) is not None:
            answers, found = job.answers[index], []
            without = scorer.score(call.prompts[index], answers, _distribution)
            if without is None:
                return
            for prompt in job.prompts[index]:
                both = scorer.score(prompt, answers, _contrast(answers, without, job.alpha))
                if both is None:
                    return
                found.append([(tuple(a for a, _ in values), tuple(b for _, b in values)) for values in both])
            call.report(index, found)


def _likelihood(answers: list[list[int]]) -> Take[float]:
    return lambda answer, n, logits: logprob_of(logits, answers[answer][n])


def _distribution(answer: int, n: int, logits: Logits) -> Logits:
    return logits.copy()


def _contrast(answers: list[list[int]], without: list[list[Logits]], alpha: float) -> Take[tuple[float, float]]:
    def take(answer: int, n: int, logits: Logits) -> tuple[float, float]:
        token = answers[answer][n]
        return logprob_of(logits, token), contrasted(logits, without[answer][n], token, alpha)

    return take


@contextmanager
def _scorer(
    model: NativeModel, is_exact: bool, prompts: list[list[int]], answers: list[list[list[int]]], stop: Event
) -> Iterator["_Scorer"]:
    """Open a scorer with room for these prompts, each with any of its answers."""
    room = TOGETHER + SHORTEST_STEP + max(
        len(prompt) + max(map(len, texts), default=0) for prompt, texts in zip(prompts, answers, strict=True)
    )  # fmt: skip
    together = 1  # where company changes bits
    if is_exact:
        together = max(1, min(MOST_SEQUENCES, HELD_TOKENS // room, max(map(len, answers))))
    context = model.open_context(tokens=room, sequences=together, read_threads=1, write_threads=1)
    try:
        yield _Scorer(context, is_exact, stop)
    finally:
        context.close()


class _Scorer:
    def __init__(self, context: NativeContext, is_exact: bool, stop: Event) -> None:
        self._context = context
        self._is_exact = is_exact
        self._stop = stop
        self._held: list[int] = []  # what sequence 0 holds: the beginning of the last prompt, or all of it

    def score(self, prompt: list[int], answers: list[list[int]], take: Take[T]) -> list[list[T]] | None:
        """Return what `take` makes of the logits before each token of each answer; None if it is to stop."""
        if answers:
            self._read(prompt)
        if self._stop.is_set():
            return None
        taken = [[take(number, 0, self._context.logits(0))] for number in range(len(answers))]
        # the longest first, so that those which still go on are neighbours; no call for those of one token
        order = sorted((i for i, a in enumerate(answers) if len(a) > 1), key=lambda i: -len(answers[i]))
        for start in range(0, len(order), self._context.n_sequences):
            self._compute(prompt, answers, order[start : start + self._context.n_sequences], take, taken)
        return None if self._stop.is_set() else taken

    def _read(self, prompt: list[int]) -> None:
        """Let sequence 0 hold a prompt. What it shares with the last one is there; its last tokens' logits are wanted."""
        keep = max(0, min(common_prefix(self._held, prompt), len(prompt) - TOGETHER))
        self._cut(keep if self._is_exact else keep // PIECE * PIECE)
        for start, end in pieces(len(self._held), len(prompt), PIECE):
            if self._stop.is_set():
                return
            self._context.read(0, start, prompt[start:end])
        self._held = prompt

    def _compute(
        self, prompt: list[int], answers: list[list[int]], together: list[int], take: Take[T], taken: list[list[T]]
    ) -> None:
        """Compute answers in a sequence each, the longest first, and take what stands before their second tokens and on.

        Each call computes as many tokens of one answer as of another, at least TOGETHER, and fills up what has ended: how a
        token is computed must not depend on the other answers.
        """
        n = len(prompt)
        if len(self._held) < n:  # after answers that a recurrent model could not forget
            self._read(prompt)
        for sequence in range(1, len(together)):
            self._context.copy(0, sequence)
        start = 0
        while going := [i for i in together if len(answers[i]) - 1 > start]:
            if self._stop.is_set():
                return
            shortest, longest = len(answers[going[-1]]) - 1, len(answers[going[0]]) - 1
            end = start + _step(shortest - start, longest - start, len(going))
            # logits of TOGETHER tokens at least: those of a single one are computed in another way, too
            wanted = [max(min(len(answers[i]) - 1, end), start + TOGETHER) for i in going]
            self._context.decode([
                (answers[i][at] if at < len(answers[i]) else 0, n + at, sequence, at < wanted[sequence])
                for sequence, i in enumerate(going)
                for at in range(start, end)
            ])  # fmt: skip
            row = 0
            for i, until in zip(going, wanted, strict=True):
                for at in range(start, min(len(answers[i]) - 1, end)):
                    taken[i].append(take(i, at + 1, self._context.logits(row + at - start)))
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
