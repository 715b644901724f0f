"""Texts that begin alike, computed together: rows of tokens that branch.

A row is what some prompts begin with alike, how each of them goes on, and then the answers that follow each. Every token is
computed once; a mask says that it sees what leads to it and nothing else. Keys and values of a prompt are never copied for
another of its answers, which is what takes most of the time otherwise: sixteen answers to a prompt of 1,400 tokens read a
gigabyte for each token that they grow by.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .attention import branching

# (tokens, positions, mask, positions of all keys, cache that is added to, places whose logits are wanted) -> logits
Compute = Callable[[Tensor, Tensor, Tensor | None, Tensor, DynamicCache, Tensor | int], Tensor]
Tokens = Sequence[int]


class Branches:
    """Prompts that have been computed, and what follows them."""

    def __init__(self, compute: Compute, rows: Sequence[Sequence[Tokens]], device: Any) -> None:
        """Compute rows of prompts. Prompts are numbered through all rows."""
        self._compute, self._device = compute, device
        self.row_of = [r for r, prompts in enumerate(rows) for _ in prompts]
        self.lengths = [len(prompt) for prompts in rows for prompt in prompts]
        trunks = [n_alike(prompts) for prompts in rows]
        width = max(n + sum(len(p) - n for p in prompts) for n, prompts in zip(trunks, rows, strict=True))
        tokens, positions = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
        segments = torch.full_like(tokens, -1)
        ends: list[int] = []
        for r, (trunk, prompts) in enumerate(zip(trunks, rows, strict=True)):
            at = width - trunk - sum(len(prompt) - trunk for prompt in prompts)  # ends of rows are aligned
            for n, part in enumerate([prompts[0][:trunk], *(prompt[trunk:] for prompt in prompts)]):
                to = slice(at, at + len(part))
                tokens[r, to] = torch.tensor(part, dtype=torch.long)
                positions[r, to] = torch.arange(len(part)) + (trunk if n else 0)
                segments[r, to] = n
                at += len(part)
                if n:
                    ends.append(at - 1)
        own = [n for prompts in rows for n in range(1, len(prompts) + 1)]
        of_prompts = segments[self.row_of]
        self.seen = ((of_prompts == 0) | (of_prompts == torch.tensor(own)[:, None])).to(device)  # (prompts, keys)
        mask = None if len(self.lengths) == 1 else branching(segments).to(device)
        kept, places = torch.unique(torch.tensor(ends), return_inverse=True)
        # It keeps everything, of layers with a window, too: how far back these look, the mask says.
        self._cache = DynamicCache()
        self._positions = positions.to(device)  # (rows, keys)
        found = compute(tokens.to(device), self._positions, mask, self._positions, self._cache, kept.to(device))
        self.logits = found[self.row_of, places.to(device)].float()  # (prompts, vocabulary): after their last tokens

    @property
    def _n_rows(self) -> int:
        return len(self._positions)

    @property
    def _n_keys(self) -> int:
        return int(self._positions.shape[1])

    def logits_of(self, answers: Sequence[tuple[int, Tokens]], most: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the logits before each token of answers to prompts, (prompt, tokens), with the place of the answer.

        Some `most` logits are computed at a time.
        """
        left: dict[int, list[int]] = {row: [] for row in range(self._n_rows)}
        for place in sorted(range(len(answers)), key=lambda n: len(answers[n][1])):
            left[self.row_of[answers[place][0]]].append(place)  # the longest comes last, and is taken first
        room = max(1, most // len(left))
        while any(left.values()):
            chosen: list[int] = []
            for waiting in left.values():
                width = 0
                while waiting and (not width or width + len(answers[waiting[-1]][1]) <= room):
                    chosen.append(waiting.pop())
                    width += len(answers[chosen[-1]][1])
            parts = [(prompt, tokens[:-1]) for prompt, tokens in (answers[place] for place in chosen)]
            further = self._follow(parts).split([len(tokens) for _, tokens in parts])
            for place, (prompt, _), logits in zip(chosen, parts, further, strict=True):
                yield place, torch.cat([self.logits[prompt][None], logits])

    def _follow(self, parts: Sequence[tuple[int, Tokens]]) -> Tensor:
        """Compute what follows prompts, and return the logits after all its tokens, one part after the other."""
        rows = [self.row_of[prompt] for prompt, tokens in parts for _ in tokens]
        if not rows:
            return self.logits[:0]
        owner = [n for n, (_, tokens) in enumerate(parts) for _ in tokens]
        start = [self.lengths[prompt] for prompt, _ in parts]
        positions = [start[n] + i for n, (_, tokens) in enumerate(parts) for i in range(len(tokens))]
        slots, width = _slots(rows)
        segments = self._spread(rows, slots, width, torch.tensor(owner) + 1, empty=-1)
        seen = self.seen[[parts[n][0] for n in owner]]
        tokens = torch.tensor([token for _, part in parts for token in part])
        return self._grow(rows, slots, width, tokens, positions, seen, branching(segments)[:, 0])

    def _grow(
        self, rows: list[int], slots: list[int], width: int, tokens: Tensor, positions: list[int], seen: Tensor,
        among: Tensor,
    ) -> Tensor:  # fmt: skip
        """Compute further tokens, each at its slot of its row, and return their logits.

        `seen` says what each token sees of what is there (tokens, keys), `among` what each slot sees of the others.
        """
        before = torch.zeros(self._n_rows, width, self._n_keys, dtype=torch.bool, device=self._device)
        before[rows, slots, : seen.shape[1]] = seen  # and nothing of what came since
        mask = torch.cat([before, among.to(self._device)], -1)[:, None]
        laid, places = (self._spread(rows, slots, width, values) for values in (tokens, torch.tensor(positions)))
        self._positions = torch.cat([self._positions, places], 1)
        logits = self._compute(laid, places, mask, self._positions, self._cache, 0)
        return logits[rows, slots].float()

    def _spread(self, rows: list[int], slots: list[int], width: int, values: Tensor, empty: int = 0) -> Tensor:
        laid = torch.full((self._n_rows, width), empty, dtype=torch.long, device=self._device)
        laid[rows, slots] = values.to(self._device)
        return laid

    def _forget_rows_but(self, rows: Sequence[int]) -> None:
        self._cache.batch_select_indices(torch.tensor(rows, device=self._device))
        self._positions = self._positions[list(rows)]


class Tips:
    """Drafts that go on from prompts, a token of each at a time. Nothing else can go on from these prompts then."""

    def __init__(self, read: Branches, prompts: Sequence[int]) -> None:
        self._read = read
        self._rows = [read.row_of[prompt] for prompt in prompts]
        self._positions = [read.lengths[prompt] for prompt in prompts]
        self._seen = read.seen[list(prompts)]

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these drafts only."""
        self._rows = [self._rows[n] for n in places]
        self._positions = [self._positions[n] for n in places]
        self._seen = self._seen[list(places)]
        used = sorted(set(self._rows))
        if used and 2 * len(used) <= self._read._n_rows:  # to leave rows out copies the others
            self._read._forget_rows_but(used)
            self._rows = [used.index(row) for row in self._rows]

    def grow(self, tokens: Tensor) -> Tensor:
        """Add a token to each, and return the logits after it."""
        read = self._read
        slots, width = _slots(self._rows)
        among = torch.eye(width, dtype=torch.bool, device=read._device)
        before = read._n_keys
        logits = read._grow(
            self._rows, slots, width, tokens, self._positions, self._seen, among.expand(read._n_rows, width, width)
        )
        seen = torch.nn.functional.pad(self._seen, (0, before - self._seen.shape[1]))
        self._seen = torch.cat([seen, among[slots]], 1)
        self._positions = [position + 1 for position in self._positions]
        return logits


def _slots(rows: Sequence[int]) -> tuple[list[int], int]:
    """Number what stands in each row; return the numbers, and how many the fullest row needs."""
    filled: dict[int, int] = {}
    slots = []
    for row in rows:
        slots.append(filled.get(row, 0))
        filled[row] = slots[-1] + 1
    return slots, max(filled.values(), default=0)


def n_alike(prompts: Sequence[Tokens]) -> int:
    """Return how many tokens prompts begin with alike, if that is most of each: else 0. The last of each is its own."""
    if len(prompts) == 1:
        return 0
    n = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
    n = min(n, min(map(len, prompts)) - 1)
    return n if 2 * n > max(map(len, prompts)) else 0
