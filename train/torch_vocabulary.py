"""The tokeniser and the chat template of a Hugging Face model, used as the runtime uses those of a GGUF."""

import json
from typing import Any

from tokenizers import Tokenizer

from edge_rag.models.chat_vocabulary import ChatVocabulary

# Tokens by which llama.cpp ends an answer wherever a vocabulary has them, whatever its configuration says.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>",
)  # fmt: skip


class TorchVocabulary(ChatVocabulary):
    def __init__(self, tokenizer: Tokenizer, chat: Any, eos_ids: list[int], where: str) -> None:
        """Take the ids from `tokenizer`, the template and the names of control tokens from transformers' `chat`."""
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._eos = int(chat.eos_token_id)
        named = (self._tokenizer.token_to_id(text) for text in _ENDS)
        self._ends = {self._eos, *eos_ids, *(token for token in named if token is not None)}
        added = self._tokenizer.get_added_tokens_decoder()
        model = json.loads(self._tokenizer.to_str())["model"]
        # where bytes stand for what is unknown, llama.cpp takes the unknown token for no control token
        unknown = model.get("unk_token") if model.get("byte_fallback") else None
        self._controls = {t for t, found in added.items() if found.special and found.content != unknown} | self._ends
        self._bos_ids = [] if chat.bos_token is None else [int(chat.bos_token_id)]
        template = chat.chat_template if isinstance(chat.chat_template, str) else ""
        super().__init__(
            template,
            where,
            bos=chat.bos_token or "",
            add_bos=bool(self._bos_ids) and self._tokenizer.encode("a").ids[:1] == self._bos_ids,
        )

    @property
    def usual_end(self) -> int:
        return self._eos

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        whole = text.encode("utf-8", "replace").decode("utf-8")  # half a character stops the tokenizer
        ids: list[int] = self._tokenizer.encode(whole, add_special_tokens=False).ids
        return self._bos_ids + ids if add_special else ids

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def is_control(self, token: int) -> bool:
        return token in self._controls

    def special_text(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""

    def text(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text
