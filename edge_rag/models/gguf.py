"""A chat model in a GGUF file, run by llama.cpp.

The key-value cache outlives a call: a prompt that begins like the last one (same system message, same passages) is
only read from where it differs. Decoding is greedy. A small model that falls into a loop is stopped; there is no
repetition penalty, because it would punish exactly what is wanted here, the wording of the passages.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Message
from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf_native import TOGETHER, NativeModel, pieces
from edge_rag.models.gguf_vocabulary import Draft, Vocabulary, common_prefix
from edge_rag.models.sampling import greedy

SMALL_MODEL_BYTES = 256 << 20  # below this, threads that wait for each other cost more than they save


class GgufGenerator:
    """An interfaces.Generator. One thread at a time; a second `generate` ends the one before it.

    An answer does not depend on what was asked before, nor on the number of threads.
    """

    def __init__(
        self, path: Path, *, threads: int = 0, context_tokens: int = 2048, lora: Path | None = None, name: str = ""
    ) -> None:
        self.name = name or path.stem
        self.context_tokens = context_tokens
        threads = usable_cores(threads)
        self._model = NativeModel(path, lora=lora)
        self.style = self._model.trained.style
        self._vocabulary = Vocabulary(self._model, self.name)
        self._refusal = self._vocabulary.begin_of(self._model.trained.refusal)
        self._context = self._model.open_context(
            tokens=context_tokens,
            sequences=1,
            read_threads=threads,
            write_threads=_writing_threads(self._model.size_bytes, threads),
        )
        self._held: list[int] = []  # the part of the last prompt whose keys and values are in the context
        self._turn = 0

    def __enter__(self) -> "GgufGenerator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the native memory back. May be called twice."""
        self._turn += 1
        self._context.close()
        self._model.close()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self._vocabulary.prompt_tokens(messages))

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[str]:
        """Yield the answer in pieces of whole characters.

        A prompt that leaves no room for `max_tokens` is a UsageError: nothing is cut silently.
        """
        self._turn += 1
        prompt = self._vocabulary.prompt_tokens(messages)
        if len(prompt) + max_tokens > self.context_tokens:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens and an answer of {max_tokens} do not fit into {self.context_tokens}",
                mend="ask with fewer passages, or raise context_tokens",
            )
        return self._stream(prompt, max_tokens, self._turn)

    def _stream(self, prompt: list[int], max_tokens: int, turn: int) -> Iterator[str]:
        draft, choose = Draft(self._vocabulary, max_tokens), greedy(self._refusal)
        self._read(prompt)
        while not draft.is_finished:
            text = draft.add(choose(self._context.logits(0)))
            if text:
                yield text
                if turn != self._turn:
                    raise ModelError("this answer was abandoned: another one was begun, or the model was closed")
            if not draft.is_finished:
                self._context.write([(draft.tokens[-1], len(prompt) + len(draft.tokens) - 1, 0)])

    def _read(self, prompt: list[int]) -> None:
        """Bring the context to hold exactly the prompt, keeping what it shares with the last one.

        The last tokens are always read: their logits are wanted. Keys and values of an answer are not kept: they were
        computed one token at a time, and differ in their last bits from those of a prompt.
        """
        keep = max(0, min(common_prefix(self._held, prompt), len(prompt) - TOGETHER))
        if not self._context.forget(0, keep):
            self._context.clear()  # recurrent models cannot go back
            keep = 0
        del self._held[keep:]
        for start, end in pieces(keep, len(prompt)):
            self._context.read(0, start, prompt[start:end])
            # after the call: an interrupt before this line leaves too much in the context, which the next prompt removes
            self._held.extend(prompt[start:end])


def _writing_threads(model_bytes: int, threads: int) -> int:
    """Return the threads for one token at a time; sleeping threads wake too slowly to share a small model's 30 ms."""
    sleeping = sys.platform == "linux" and os.environ.get("GOMP_SPINCOUNT") == "0"
    return 1 if sleeping and model_bytes < SMALL_MODEL_BYTES else threads
