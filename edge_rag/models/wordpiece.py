"""BERT's uncased WordPiece tokenizer in plain Python: text to token ids.

It gives the ids that the `tokenizers` package gives for the same vocabulary (tests/test_wordpiece.py compares them)
without that package and the thirteen that come with it. The one known difference: characters that entered Unicode
after 2015 get the category that this Python's `unicodedata` has for them, where `tokenizers` takes them for
unassigned.

Most words of a text have been seen before, so the speed comes from a cache from whole words to their ids.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from edge_rag.errors import ModelError, UsageError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_CHARS = 100  # longer words are unknown: BERT's own rule
_CACHED_WORDS = 1 << 15  # some 8 MB when full
_CACHED_WORD_CHARS = 48


class WordPiece:
    """The tokenizer of one vocabulary. Not safe to share between threads."""

    n_special = 2  # [CLS] and [SEP] stand around a text

    def __init__(self, tokens: Sequence[str]) -> None:
        """`tokens` is the vocabulary in the order of its ids."""
        ids = {token: i for i, token in enumerate(tokens)}
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise ModelError(f"the vocabulary has no {missing[0]}", mend="use the vocab.txt of an uncased BERT model")
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id = (ids[token] for token in SPECIAL_TOKENS[:4])
        self._special = {token: ids[token] for token in SPECIAL_TOKENS}
        self._words = _WordIds(ids, self.unknown_id)

    @classmethod
    def load(cls, vocab: Path) -> "WordPiece":
        """Read a vocab.txt: one token for each line."""
        return cls.parse(vocab.read_bytes())

    @classmethod
    def parse(cls, vocab: bytes) -> "WordPiece":
        return cls(vocab.decode("utf-8").removesuffix("\n").split("\n"))

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return [CLS] text [SEP], the text cut so that there are at most `max_tokens` ids in all."""
        return [self.cls_id, *islice(self._ids(text), max(0, max_tokens - 2)), self.sep_id]

    def encode_pair(self, question: str, passage: str, max_tokens: int) -> tuple[list[int], list[int]]:
        """Return the ids of [CLS] question [SEP] passage [SEP] and their segment ids, 0 and 1.

        The passage is cut so that there are at most `max_tokens` in all, never the question.
        """
        head = list(self._ids(question))
        check_room(len(head), max_tokens, 3)
        tail = list(islice(self._ids(passage), max_tokens - 3 - len(head)))
        ids = [self.cls_id, *head, self.sep_id, *tail, self.sep_id]
        return ids, [0] * (len(head) + 2) + [1] * (len(tail) + 1)

    def count(self, text: str) -> int:
        """Return the number of tokens of the text itself, without [CLS] and [SEP]."""
        return sum(1 for _ in self._ids(text))

    def _ids(self, text: str) -> Iterator[int]:
        if "[" in text:
            return chain.from_iterable(map(self._part_ids, _SPECIAL.split(text)))
        return self._plain_ids(text)

    def _part_ids(self, part: str) -> Iterator[int]:
        special = self._special.get(part)
        return self._plain_ids(part) if special is None else iter((special,))

    def _plain_ids(self, text: str) -> Iterator[int]:
        # BERT drops these and so joins what they stand between; str.split would take some of them for separators
        words = _CONTROLS.sub("", text).split()
        return chain.from_iterable(map(self._words.__getitem__, words))


def check_room(n_question: int, max_tokens: int, n_special: int) -> None:
    """Raise UsageError where a question leaves no token to a passage."""
    room = max_tokens - n_special - 1
    if n_question > room:
        raise UsageError(
            f"the question has {n_question} tokens; with a passage beside it the model reads {max(0, room)}",
            mend="ask a shorter question",
        )


_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class _WordIds(dict[str, tuple[int, ...]]):
    """Whitespace-free strings to their ids, worked out when first asked for."""

    def __init__(self, ids: dict[str, int], unknown_id: int) -> None:
        super().__init__()
        self._ids = ids
        self._unknown = (unknown_id,)

    def __missing__(self, word: str) -> tuple[int, ...]:
        found = tuple(chain.from_iterable(map(self._pieces, _basic_tokens(word))))
        if len(word) <= _CACHED_WORD_CHARS:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = found
        return found

    def _pieces(self, token: str) -> tuple[int, ...]:
        """Return the longest vocabulary entries that the token is made of, from its start on."""
        if len(token) > MAX_WORD_CHARS:
            return self._unknown
        whole = self._ids.get(token)
        if whole is not None:
            return (whole,)
        pieces: list[int] = []
        start = 0
        while start < len(token):
            prefix = "##" if start else ""
            for end in range(len(token), start, -1):
                piece = self._ids.get(prefix + token[start:end])
                if piece is not None:
                    pieces.append(piece)
                    start = end
                    break
            else:
                return self._unknown
        return tuple(pieces)


def _basic_tokens(word: str) -> list[str]:
    """Normalise a word and split it where BERT does: around punctuation and Chinese characters."""
    if not word.isascii():
        word = "".join(_clean(word))
        word = "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn")
        # character by character: str.lower gives a sigma at the end of a word its final form, BERT does not
        return _split_punctuation("".join(map(str.lower, word)))
    return _ASCII_TOKENS.findall(word.lower())


_ASCII_TOKENS = re.compile(r"[^\x00-\x2f\x3a-\x40\x5b-\x60\x7b-\x7f]+|[!-/:-@\[-`{-~]")


def _clean(word: str) -> Iterator[str]:
    for c in word:
        if _is_chinese(ord(c)):
            yield f" {c} "
        elif c != "\ufffd" and unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"):
            yield c


def _split_punctuation(text: str) -> list[str]:
    return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()


def _is_punctuation(c: str) -> bool:
    return c in _ASCII_PUNCTUATION if c.isascii() else unicodedata.category(c)[0] == "P"


_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def _is_chinese(code: int) -> bool:
    return code >= 0x3400 and any(low <= code <= high for low, high in _CHINESE)


# as the reference has them, a slip in the sixth range included (the block begins at 2B820)
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
