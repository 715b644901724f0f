"""A model that writes which passages to answer from: an adapter that `edge-rag train dro` made, on the generator's file.

It writes the likeliest list, and cannot write anything else: where it could go on in several ways, only those are compared
that lead to the number of a passage that is there and was not listed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from edge_rag.errors import ModelError
from edge_rag.interfaces import Message
from edge_rag.models.gguf import GgufGenerator
from edge_rag.models.prompt_style import trained_listing


class GgufLister(GgufGenerator):
    """Lists passages. The prompt's keys and values are kept as those of a generator are."""

    def __init__(self, path: Path, adapter: Path, *, threads: int = 0, context_tokens: int = 2048) -> None:
        listing = trained_listing(adapter)
        assert listing is not None  # see models.locate_lister
        self.listing = listing
        super().__init__(path, threads=threads, context_tokens=context_tokens, lora=adapter, name=adapter.stem)

    def choose(
        self, messages: Sequence[Message], written: Callable[[Sequence[int]], str], n_passages: int, most: int
    ) -> tuple[int, ...]:
        """Return the places of at most so many of the passages, best first; `written` turns places into what is trained."""
        self._turn += 1
        prompt = self._vocabulary.prompt_tokens(messages)
        self._read(prompt)
        chosen: list[int] = []
        said: list[int] = []  # tokens after the prompt
        while len(chosen) < min(most, n_passages):
            left = {
                place: self._vocabulary.answer_tokens(written([*chosen, place]), ended=False)
                for place in range(n_passages)
                if place not in chosen
            }
            left = {place: tokens for place, tokens in left.items() if tokens[: len(said)] == said}
            if not left:  # this tokeniser joins the end of a list with what follows it
                raise ModelError(f"{self.name}: its tokeniser cannot go on with a list", mend="use another base model")
            while len(left) > 1:
                ways = sorted({tokens[len(said)] for tokens in left.values()})
                logits = self._context.logits(0)
                token = max(ways, key=lambda way: float(logits[way]))
                left = {place: tokens for place, tokens in left.items() if tokens[len(said)] == token}
                self._context.write([(token, len(prompt) + len(said), 0)])
                said.append(token)
            chosen.append(next(iter(left)))
        return tuple(chosen)
