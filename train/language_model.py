"""A language model for training: samples answers, and says how likely given ones are.

Two engines do the same behind one interface: `torch_model.TorchModel` (a Hugging Face folder, or a model that is being trained;
GPU or CPU) and `gguf_model.GgufModel` (a GGUF on a CPU, as it will be served). Prompts are messages, made by
`edge_rag.answering.prompt` as the runtime makes them; both engines render and tokenise them alike, and draw the same random
numbers for the same sample. They part where a rounding error decides which token is drawn: with F32 weights, 14 of 52 answers
of 16 tokens did.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_rag.interfaces import Message

Prompts = Sequence[Sequence[Message]]


@dataclass(frozen=True, slots=True)
class Sampled:
    """An answer that the model wrote."""

    text: str
    logprob: (
        float  # mean over its tokens and, if it is whole, its end; of the model itself, whatever the temperature was
    )
    n_tokens: int  # without its end
    is_whole: bool  # the model ended it: it was not cut, nor stopped as a loop


@dataclass(frozen=True, slots=True)
class Scored:
    """A given answer, and how likely each of its tokens is after the prompt and those before it."""

    text: str
    logprobs: tuple[float, ...]  # of each token, the end included

    @property
    def mean(self) -> float:
        return self.sum / len(self.logprobs)

    @property
    def sum(self) -> float:
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Contrasted:
    """A given answer, how likely it is under a prompt, and by what the prompt adds to another one."""

    text: str
    logprobs: tuple[float, ...]  # of each token under the prompt, without an end
    contrasts: tuple[float, ...]  # of each token, by (1 + alpha) times the prompt's logits less alpha times the other's


class LanguageModel(Protocol):
    """What generates and scores training data. One call at a time.

    A prompt whose last message is the assistant's is a begun answer: samples and given answers continue it. Control tokens'
    text in prompts and answers is broken up, so that neither can end its own message. `on_done(index of the prompt, result)`
    is called in the calling thread as soon as a prompt is done, in any order; what it raises, and Ctrl-C, end the call.
    """

    @property
    def name(self) -> str: ...
    @property
    def context_tokens(self) -> int: ...  # prompt and answer together
    def count_tokens(self, messages: Sequence[Message]) -> int: ...
    def sample(
        self,
        prompts: Prompts,
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
        top_p: float = 1.0,
        on_done: Callable[[int, list[Sampled]], None] | None = None,
    ) -> list[list[Sampled]]:
        """Return n answers to each prompt; temperature 0 takes the likeliest tokens, top_p 1 leaves none out.

        An answer depends on the seed, the prompt's text and the number of the sample: on other prompts, their order and the
        number of threads not at all (GgufModel), or only where two tokens are as good as equal (TorchModel, which rounds
        otherwise in other company).
        """
        ...

    def score(
        self,
        prompts: Prompts,
        answers: Sequence[Sequence[str]],
        on_done: Callable[[int, list[Scored]], None] | None = None,
        *,
        ended: bool = True,
    ) -> list[list[Scored]]:
        """Score given answers to each prompt; `ended=False` leaves out the end: they are to go on."""
        ...

    def contrast(
        self,
        prompts: Sequence[Prompts],
        without: Prompts,
        answers: Sequence[Sequence[str]],
        on_done: Callable[[int, list[list[Contrasted]]], None] | None = None,
        *,
        alpha: float,
    ) -> list[list[list[Contrasted]]]:
        """Score given answers under several prompts each, against the prompt `without` what these show.

        Each prompt is read once. `on_done(index, result)` is called as soon as all prompts that are compared with one without
        are done; what it gets is, for each of these, one for each answer.
        """
        ...
