"""The vocabulary of a GGUF, and an answer in the making: what every answer goes through, one at a time or many at once."""

import codecs
import ctypes
from collections.abc import Sequence

from edge_rag.errors import ModelError
from edge_rag.models.chat_vocabulary import ChatVocabulary
from edge_rag.models.gguf_native import NativeModel


class Vocabulary(ChatVocabulary):
    """The tokeniser and the chat template of one GGUF. Any number of threads may use it."""

    def __init__(self, model: NativeModel, name: str) -> None:
        self._model = model
        self._name = name
        self._llama = llama = model.llama
        self._vocab = llama.llama_model_get_vocab(model.pointer)
        template: bytes = llama.llama_model_chat_template(model.pointer, None) or b""
        super().__init__(
            template.decode("utf-8", "replace"),
            str(model.path),
            bos=self.special_text(llama.llama_vocab_bos(self._vocab)),
            add_bos=bool(llama.llama_vocab_get_add_bos(self._vocab)),
        )

    @property
    def usual_end(self) -> int:
        turn: int = self._llama.llama_vocab_eot(self._vocab)
        text: int = self._llama.llama_vocab_eos(self._vocab)
        return turn if turn >= 0 else text

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        if not self._model.is_open:
            raise ModelError(f"{self._name} has been closed")
        data = text.encode("utf-8", "replace")
        size = len(data) + 8  # never more tokens than bytes, BOS and EOS apart
        tokens = (self._llama.llama_token * size)()
        n = self._llama.llama_tokenize(self._vocab, data, len(data), tokens, size, add_special, True)
        if n < 0:
            raise ModelError(f"{self._name}: the text cannot be tokenised")
        return list(tokens[:n])

    def begin_of(self, answer: str) -> int | None:
        """Return the token that an answer begins with."""
        return next(iter(self.answer_tokens(answer, ended=False)), None)

    def is_end(self, token: int) -> bool:
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        return bool(self._llama.llama_vocab_is_control(self._vocab, token)) or self.is_end(token)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        n = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    def special_text(self, token: int) -> str:
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""


class Draft:
    """An answer in the making: tokens go in until it is finished, text of whole characters comes out."""

    def __init__(self, vocabulary: Vocabulary, max_tokens: int) -> None:
        self._vocabulary = vocabulary
        self._max_tokens = max_tokens
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.tokens: list[int] = []  # without the one that says that the answer ends
        self.is_finished = max_tokens <= 0
        self.is_whole = False  # the model ended it

    def add(self, token: int) -> str:
        """Take the next token; return the characters that it completes."""
        text = ""
        if self._vocabulary.is_end(token):
            self.is_finished = self.is_whole = True
        else:
            self.tokens.append(token)
            if is_loop(self.tokens):
                self.is_finished = True
            else:
                text = self._characters.decode(self._vocabulary.piece(token))
                self.is_finished = len(self.tokens) >= self._max_tokens
        return text + self._characters.decode(b"", final=True) if self.is_finished else text


def is_loop(tokens: Sequence[int]) -> bool:
    """Tell whether the tokens end in one stretch over and over: 3 times, or up to 16 times if it is a short one."""
    for length in range(1, min(64, len(tokens) // 3) + 1):
        times = max(3, -(-16 // length))
        if len(tokens) >= length * times:
            tail = tokens[-length * times :]
            if all(tail[i] == tail[i - length] for i in range(length, len(tail))):
                return True
    return False


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    if a == b:
        return len(a)
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
