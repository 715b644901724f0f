"""Trivial twins of the models, for tests and as floors in benchmarks. They need no model file and are deterministic."""

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edge_rag.interfaces import Message, Style


class HashEmbedder:
    """A bag of hashed words: texts that share words are near each other."""

    name = "hash"
    max_tokens = 256

    def __init__(self, dim: int = 64) -> None:
        self.dim = dim
        self.fingerprint = f"hash-{dim}-v1"
        self.n_embedded = 0  # texts embedded so far, so that tests can show what was not done twice

    def count_tokens(self, text: str) -> int:
        return len(_words(text))

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.n_embedded += len(texts)
        rows = np.full((len(texts), self.dim), 1e-3, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in _words(text):
                row[int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest()) % self.dim] += 1.0
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


class EchoGenerator:
    """Answers with the last message's last line."""

    name = "echo"
    context_tokens = 2048
    style: Style = "sentence"

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(_words(m.content)) + 4 for m in messages)

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[str]:
        for word in messages[-1].content.splitlines()[-1].split()[:max_tokens]:
            yield word + " "

    def close(self) -> None:
        pass


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())
