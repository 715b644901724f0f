"""How the next token of an answer is chosen. Every engine draws the same numbers for the same sample of the same prompt."""

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edge_rag.errors import UsageError
from edge_rag.interfaces import Message

Logits = npt.NDArray[np.float32]  # (vocabulary,)
Choose = Callable[[Logits], int]


LIKELY = 0.5


def likeliest(logits: Logits) -> int:
    return int(np.argmax(logits))


def greedy(refusal: int | None = None) -> Choose:
    """Return what takes the likeliest token; `refusal` begins a refusal, and is the first one only if it is LIKELY.

    A refusal is always worded alike, and right answers share what is left: each may look less likely than a refusal that is
    probably wrong.
    """
    is_first = True

    def choose(logits: Logits) -> int:
        nonlocal is_first
        token = likeliest(logits)
        if is_first and token == refusal and np.exp(logits - logits[token]).sum(dtype=np.float64) > 1 / LIKELY:
            others = logits.copy()
            others[token] = -np.inf
            token = likeliest(others)
        is_first = False
        return token

    return choose


def sampler(draws: random.Random, temperature: float, top_p: float = 1.0) -> Choose:
    """Return what draws one token after another from the model's distribution; at temperature 0 it is the likeliest."""
    if temperature == 0:
        return likeliest

    def choose(logits: Logits) -> int:
        weights = np.exp((logits - logits.max()) / np.float32(temperature))
        if top_p < 1:
            weights = _nucleus(weights, top_p)
        up_to = np.cumsum(weights, dtype=np.float64)
        drawn = int(np.searchsorted(up_to, draws.random() * up_to[-1], side="right"))
        return min(drawn, len(up_to) - 1)

    return choose


def draws_for(seed: int, prompt: Sequence[Message], number: int) -> random.Random:
    """Return the random numbers of one sample: they depend on the seed, the prompt's text and the number of the sample only."""
    key = json.dumps([seed, number, [[m.role, m.content] for m in prompt]])
    return random.Random(int.from_bytes(hashlib.sha256(key.encode("ascii")).digest()))


def check_sampling(*, n: int, max_tokens: int, temperature: float, top_p: float) -> None:
    """Raise UsageError for what makes no sense."""
    if n < 1:
        raise UsageError(f"{n} samples for each prompt make no sense", mend="ask for 1 or more")
    if max_tokens < 0:
        raise UsageError(f"answers of {max_tokens} tokens make no sense", mend="give a number that is not negative")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError(f"the temperature {temperature} makes no sense", mend="use 0 (greedy) or more, such as 0.8")
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p {top_p} makes no sense", mend="use more than 0, up to 1 (off)")


def _nucleus(weights: Logits, top_p: float) -> Logits:
    """Keep the fewest of the likeliest tokens that together have the share `top_p`."""
    order = np.argsort(-weights, kind="stable")
    up_to = np.cumsum(weights[order], dtype=np.float64)
    n_kept = int(np.searchsorted(up_to, top_p * up_to[-1])) + 1
    kept = np.zeros_like(weights)
    kept[order[:n_kept]] = weights[order[:n_kept]]
    return kept
