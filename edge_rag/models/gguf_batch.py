"""Many answers of a GGUF as fast as this processor can: for evaluation and for making training data.

Each worker thread has a context of its own with one llama.cpp thread and several sequences: while one prompt after
another is read, all answers of the worker are written together, a token of each at a time. Threads never wait for each
other inside a token, which is what costs a small model most of what more cores could give. Who takes which prompt is
decided in gguf_workers; what a worker does with it stands in gguf_write and gguf_score.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_rag.interfaces import Message
from edge_rag.models import sampling
from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf_native import NativeModel
from edge_rag.models.gguf_score import Contrast, ContrastJob, Logprobs, ScoreJob, contrast_answers, score_answers
from edge_rag.models.gguf_vocabulary import Vocabulary
from edge_rag.models.gguf_workers import Call, Crew
from edge_rag.models.gguf_write import Generated, WriteJob, is_exact, write_answers

__all__ = ["Contrast", "Generated", "GgufBatch", "Logprobs"]

Prompts = Sequence[Sequence[Message]]


class GgufBatch:
    """Answers to many prompts at once: the likeliest, or samples, or given ones that are scored.

    What is generated for a prompt depends on the model, the adapter, the prompt and max_tokens (and, sampled, on the
    temperature, top_p, the seed and the number of the sample), to the last bit of `logprob`: not on the other prompts of the
    call, their order, the number of threads, or earlier calls. So do scores, on the prompt and the answer. Another
    processor or build of llama.cpp may round otherwise. With Q8_0 and Q4_0 the likeliest texts are those of GgufGenerator, too;
    with other types they may differ where two tokens are about equally likely.

    The first call tries out whether the cut of a prompt and company change bits, as they do with K types. If so, prompts are
    cut at multiples of PIECE only, whatever they share, always SEQUENCES answers are written together, and given ones are
    scored one at a time.
    """

    def __init__(
        self, path: Path, *, threads: int = 0, context_tokens: int = 2048, lora: Path | None = None, name: str = ""
    ) -> None:
        self.name = name or path.stem
        self.context_tokens = context_tokens
        self._model = NativeModel(path, lora=lora)
        self._vocabulary = Vocabulary(self._model, self.name)
        self._refusal = self._vocabulary.begin_of(self._model.trained.refusal)
        self._crew = Crew(self.name, usable_cores(threads))

    def __enter__(self) -> "GgufBatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the native memory back. May be called twice."""
        self._crew.end()
        self._model.close()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self._vocabulary.prompt_tokens(messages))

    def generate(
        self,
        prompts: Prompts,
        *,
        max_tokens: int,
        on_done: Callable[[int, Generated], None] | None = None,
    ) -> list[Generated]:
        """Return the likeliest answers in the order of the prompts.

        `on_done` gets each of them, with the index of its prompt, as soon as it is there, in the calling thread. What it
        raises, and Ctrl-C, end the call; so does the first error of a worker.
        """
        tokens = self._vocabulary.fitting_prompts(prompts, max_tokens, self.context_tokens)
        job = WriteJob(max_tokens, [sampling.greedy(self._refusal) for _ in tokens])
        done: dict[int, Generated] = {}

        def take(index: int, generated: Generated) -> None:
            done[index] = generated
            if on_done is not None:
                on_done(index, generated)

        self._write(tokens, job, take)
        return [done[index] for index in range(len(tokens))]

    def sample(
        self,
        prompts: Prompts,
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
        top_p: float = 1.0,
        on_done: Callable[[int, list[Generated]], None] | None = None,
    ) -> list[list[Generated]]:
        """Return n answers to each prompt, drawn from the model's distribution. A prompt is read once for all of them.

        `logprob` is that of the model as it is, at temperature 1 and without top_p. `on_done` is as in `generate`, called when
        all samples of a prompt are there.
        """
        sampling.check_sampling(n=n, max_tokens=max_tokens, temperature=temperature, top_p=top_p)
        fitting = self._vocabulary.fitting_prompts(prompts, max_tokens, self.context_tokens)
        tokens = [prompt for prompt in fitting for _ in range(n)]
        draws = [sampling.draws_for(seed, prompt, number) for prompt in prompts for number in range(n)]
        job = WriteJob(max_tokens, [sampling.sampler(d, temperature, top_p) for d in draws])
        done: list[dict[int, Generated]] = [{} for _ in prompts]

        def take(index: int, generated: Generated) -> None:
            samples = done[index // n]
            samples[index % n] = generated
            if len(samples) == n and on_done is not None:
                on_done(index // n, [samples[number] for number in range(n)])

        self._write(tokens, job, take)
        return [[samples[number] for number in range(n)] for samples in done]

    def score(
        self,
        prompts: Prompts,
        answers: Sequence[Sequence[str]],
        *,
        ended: bool = True,
        on_done: Callable[[int, list[Logprobs]], None] | None = None,
    ) -> list[list[Logprobs]]:
        """Return the log-probability of each token of given answers to each prompt, and of the end after it.

        `ended=False`: answers that are to go on, scored without an end. `on_done` is as in `generate`, called when all
        answers to a prompt are scored.
        """
        tokens, given = self._vocabulary.fitting_answers(prompts, answers, self.context_tokens, ended=ended)
        job = ScoreJob(given)
        done: dict[int, list[Logprobs]] = {}

        def take(index: int, logprobs: list[Logprobs]) -> None:
            done[index] = logprobs
            if on_done is not None:
                on_done(index, logprobs)

        def work(call: Call[list[Logprobs]], number: int) -> None:
            score_answers(self._model, exact, job, call, number)

        exact = self._is_exact
        self._crew.run(tokens, work, take)
        return [done[index] for index in range(len(tokens))]

    def contrast(
        self,
        prompts: Sequence[Prompts],
        without: Prompts,
        answers: Sequence[Sequence[str]],
        *,
        alpha: float,
        on_done: Callable[[int, list[list[Contrast]]], None] | None = None,
    ) -> list[list[list[Contrast]]]:
        """Score given answers under several prompts each, as they are and against the prompt `without` what these show.

        Answers are scored without an end. `on_done` is as in `generate`, called when all prompts of one without are done.
        """
        plain, given = self._vocabulary.fitting_answers(without, answers, self.context_tokens, ended=False)
        shown = [
            self._vocabulary.fitting_answers(several, [texts] * len(several), self.context_tokens, ended=False)[0]
            for several, texts in zip(prompts, answers, strict=True)
        ]
        job = ContrastJob(given, shown, alpha)
        done: dict[int, list[list[Contrast]]] = {}

        def take(index: int, found: list[list[Contrast]]) -> None:
            done[index] = found
            if on_done is not None:
                on_done(index, found)

        def work(call: Call[list[list[Contrast]]], number: int) -> None:
            contrast_answers(self._model, exact, job, call, number)

        exact = self._is_exact
        self._crew.run(plain, work, take)
        return [done[index] for index in range(len(plain))]

    @functools.cached_property
    def _is_exact(self) -> bool:
        return is_exact(self._model, self._vocabulary)

    def _write(self, tokens: list[list[int]], job: WriteJob, take: Callable[[int, Generated], None]) -> None:
        def work(call: Call[Generated], number: int) -> None:
            write_answers(self._model, self._vocabulary, exact, job, call, number)

        exact = self._is_exact
        self._crew.run(tokens, work, take)
