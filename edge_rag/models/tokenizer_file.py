"""Any tokenizer.json, through the `tokenizers` package: for vocabularies that wordpiece.py is not made for.

RoBERTa and ModernBERT split bytes, XLM-R pieces of sentences. The package is an extra, and nothing that comes with
edge_rag needs it.
"""

from typing import Any

from edge_rag.errors import MissingExtraError, ModelError
from edge_rag.models.wordpiece import check_room


class TokenizerFile:
    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()  # a file may keep how it was used in training
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.n_special: int = tokenizer.num_special_tokens_to_add(is_pair=False)
        self._n_special_of_pair: int = tokenizer.num_special_tokens_to_add(is_pair=True)

    @classmethod
    def parse(cls, described: bytes) -> "TokenizerFile":
        """Take what a tokenizer.json holds."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError("tokenizers", "a model with a tokenizer.json") from error
        try:
            return cls(Tokenizer.from_str(described.decode("utf-8")))
        except Exception as error:  # the package raises nothing more precise
            raise ModelError(
                f"the tokenizer cannot be read: {error}", mend="pip install --upgrade tokenizers"
            ) from error

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return the ids of the text with special tokens, the text cut so that there are at most `max_tokens` in all."""
        encoding = self._tokenizer.encode(text)
        return [encoding.ids[i] for i in _kept(encoding.sequence_ids, 0, max_tokens)]

    def encode_pair(self, question: str, passage: str, max_tokens: int) -> tuple[list[int], list[int]]:
        """Return ids and segment ids of both with special tokens; the passage is cut, never the question."""
        encoding = self._tokenizer.encode(question, passage)
        check_room(encoding.sequence_ids.count(0), max_tokens, self._n_special_of_pair)
        kept = _kept(encoding.sequence_ids, 1, max_tokens)
        return [encoding.ids[i] for i in kept], [encoding.type_ids[i] for i in kept]

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _kept(sequence_ids: list[int | None], sequence: int, max_tokens: int) -> list[int]:
    """Return the places that stay when the end of one sequence is cut off. Special tokens, which belong to none, stay."""
    places = [i for i, owner in enumerate(sequence_ids) if owner == sequence]
    overflow = max(0, len(sequence_ids) - max_tokens)
    cut = set(places[max(0, len(places) - overflow) :]) if overflow else set()
    return [i for i in range(len(sequence_ids)) if i not in cut]
