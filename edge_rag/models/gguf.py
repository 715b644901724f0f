"""A chat model in a GGUF file, run by llama.cpp.

The low-level functions of llama-cpp-python are used, not its Llama class: that keeps a scores buffer of n_batch x
vocabulary (100 MB here), redirects the process's own stdout and stderr while it works, and prints a traceback at
interpreter exit.

The key-value cache outlives a call: a prompt that begins like the last one (same system message, same passages) is
only read from where it differs. Decoding is greedy. A small model that falls into a loop is stopped; there is no
repetition penalty, because it would punish exactly what is wanted here, the wording of the passages.
"""

import codecs
import ctypes
import functools
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_rag.errors import MissingExtraError, ModelError, UsageError
from edge_rag.interfaces import Message
from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf_file import check_gguf

N_BATCH = 512  # prompt tokens for each call: also how long Ctrl-C may have to wait
SMALL_MODEL_BYTES = 256 << 20  # below this, threads that wait for each other cost more than they save
QUANTISED_TYPES = {"Q8_0": 7, "Q4_0": 2}  # llama_ftype


class GgufGenerator:
    """An interfaces.Generator. One thread at a time; a second `generate` ends the one before it."""

    def __init__(self, path: Path, *, threads: int = 0, context_tokens: int = 2048, name: str = "") -> None:
        check_gguf(path)
        llama = load_llama()
        self.name = name or path.stem
        self.context_tokens = context_tokens
        self._llama = llama
        self._model, self._context = _open(llama, path, usable_cores(threads), context_tokens)
        self._free = weakref.finalize(self, _free, llama, self._model, self._context)
        self._memory = llama.llama_get_memory(self._context)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self._add_bos = bool(llama.llama_vocab_get_add_bos(self._vocab))
        self._bos = self._special_text(llama.llama_vocab_bos(self._vocab))
        self._template = _compile_template(llama.llama_model_chat_template(self._model, None), path)
        self._cached: list[int] = []  # the tokens whose keys and values are in the context's memory
        self._turn = 0

    def __enter__(self) -> "GgufGenerator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the native memory back. May be called twice."""
        self._turn += 1
        self._free()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self._prompt_tokens(messages))

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[str]:
        """Yield the answer in pieces of whole characters.

        A prompt that leaves no room for `max_tokens` is a UsageError: nothing is cut silently.
        """
        self._turn += 1
        prompt = self._prompt_tokens(messages)
        if len(prompt) + max_tokens > self.context_tokens:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens and an answer of {max_tokens} do not fit into {self.context_tokens}",
                mend="ask with fewer passages, or raise context_tokens",
            )
        return self._stream(prompt, max_tokens, self._turn)

    def _stream(self, prompt: list[int], max_tokens: int, turn: int) -> Iterator[str]:
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        answer: list[int] = []
        self._read(prompt)
        while len(answer) < max_tokens:
            token = self._likeliest()
            if self._llama.llama_vocab_is_eog(self._vocab, token):
                break
            answer.append(token)
            if is_loop(answer):
                break
            text = characters.decode(self._piece(token, special=False))
            if text:
                yield text
                if turn != self._turn:
                    raise ModelError("this answer was abandoned: another one was begun, or the model was closed")
            if len(answer) < max_tokens:
                self._decode([token])
        rest = characters.decode(b"", final=True)
        if rest:
            yield rest

    def _read(self, prompt: list[int]) -> None:
        """Bring the memory to hold exactly the prompt, keeping what it shares with the last one."""
        keep = _common_prefix(self._cached, prompt[:-1])  # the last token is always read: its logits are wanted
        if not self._llama.llama_memory_seq_rm(self._memory, 0, keep, -1):
            self._llama.llama_memory_clear(self._memory, True)  # recurrent models cannot go back
            keep = 0
        del self._cached[keep:]
        for start in range(keep, len(prompt), N_BATCH):
            self._decode(prompt[start : start + N_BATCH])

    def _decode(self, tokens: list[int]) -> None:
        array = (self._llama.llama_token * len(tokens))(*tokens)
        status = self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            self._llama.llama_memory_clear(self._memory, True)
            self._cached = []
            raise ModelError(
                f"llama.cpp stopped with status {status}", mend="lower context_tokens, or close other programs"
            )
        # after the call: an interrupt before this line leaves too much in the memory, which the next prompt removes
        self._cached.extend(tokens)

    def _likeliest(self) -> int:
        logits = self._llama.llama_get_logits_ith(self._context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._n_vocab,))))

    def _prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        if not self._free.alive:
            raise ModelError(f"{self.name} has been closed")
        chat = [{"role": m.role, "content": self._defused(m.content)} for m in messages]
        text: str = self._template.render(
            messages=chat, add_generation_prompt=True, bos_token=self._bos, eos_token="", enable_thinking=False
        )
        has_bos = bool(self._bos) and text.startswith(self._bos)
        return self._tokenize(text, add_special=self._add_bos and not has_bos)

    def _defused(self, content: str) -> str:
        """Break up what the tokenizer would take for a control token, so that no document can end its own message."""
        controls = {t for t in self._tokenize(content, add_special=False) if self._is_control(t)}
        while controls:
            for token in controls:
                text = self._special_text(token)
                content = content.replace(text, f"{text[0]} {text[1:]}")
            controls = {t for t in self._tokenize(content, add_special=False) if self._is_control(t)} - controls
        return content

    def _is_control(self, token: int) -> bool:
        llama = self._llama
        return bool(llama.llama_vocab_is_control(self._vocab, token) or llama.llama_vocab_is_eog(self._vocab, token))

    def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        size = len(data) + 8  # never more tokens than bytes, BOS and EOS apart
        tokens = (self._llama.llama_token * size)()
        n = self._llama.llama_tokenize(self._vocab, data, len(data), tokens, size, add_special, True)
        if n < 0:
            raise ModelError(f"{self.name}: the text cannot be tokenised")
        return list(tokens[:n])

    def _piece(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        n = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    def _special_text(self, token: int) -> str:
        return self._piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""


def is_loop(tokens: Sequence[int]) -> bool:
    """Tell whether the tokens end in one stretch over and over: 3 times, or up to 16 times if it is a short one."""
    for length in range(1, min(64, len(tokens) // 3) + 1):
        times = max(3, -(-16 // length))
        if len(tokens) >= length * times:
            tail = tokens[-length * times :]
            if all(tail[i] == tail[i - length] for i in range(length, len(tail))):
                return True
    return False


def requantize(source: Path, target: Path, quantised_type: str) -> None:
    """Convert a GGUF to another type, e.g. "Q8_0". Half-written output is removed on failure."""
    check_gguf(source)
    llama = load_llama()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = QUANTISED_TYPES[quantised_type]
    parameters.allow_requantize = True
    parameters.nthread = usable_cores()
    status = llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if status != 0:
        target.unlink(missing_ok=True)
        raise ModelError(
            f"{source} could not be converted to {quantised_type}", mend="check the free space, and pull again"
        )


@functools.cache
def load_llama() -> Any:
    """Import llama_cpp once, quiet and without busy waiting."""
    # libgomp reads this when it is loaded. Spinning threads starve each other as soon as anything else runs: 0.8
    # tokens/s, not 50
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingExtraError("llm", "generating answers with a GGUF model") from error
    llama_cpp.llama_log_set(_no_log(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def _no_log(llama_cpp: Any) -> Any:
    """Return a log callback that does nothing, and is no Python: there an interrupt would be printed and lost."""
    harmless = llama_cpp.llama_cpp._lib.llama_time_us  # a C function that ignores what it is called with
    return ctypes.cast(harmless, llama_cpp.llama_log_callback)


def _open(llama: Any, path: Path, threads: int, context_tokens: int) -> tuple[Any, Any]:
    model = llama.llama_model_load_from_file(os.fsencode(path), llama.llama_model_default_params())
    if not model:
        raise ModelError(f"{path} cannot be loaded: llama.cpp does not know it, or it is damaged", mend=_DAMAGED_MEND)
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = context_tokens
    parameters.n_batch = N_BATCH
    parameters.n_ubatch = N_BATCH
    parameters.n_threads_batch = threads
    parameters.n_threads = _generation_threads(path, threads)
    parameters.no_perf = True
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        llama.llama_model_free(model)
        raise ModelError(f"{path}: no memory for a context of {context_tokens} tokens", mend="lower context_tokens")
    return model, context


def _generation_threads(path: Path, threads: int) -> int:
    """Return the threads for one token at a time; sleeping threads wake too slowly to share a small model's 30 ms."""
    sleeping = sys.platform == "linux" and os.environ.get("GOMP_SPINCOUNT") == "0"
    return 1 if sleeping and path.stat().st_size < SMALL_MODEL_BYTES else threads


def _free(llama: Any, model: Any, context: Any) -> None:
    llama.llama_free(context)
    llama.llama_model_free(model)


_DAMAGED_MEND = "pull the model again with --force, or upgrade llama-cpp-python"


def _compile_template(template: bytes | None, path: Path) -> Any:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not template:
        raise ModelError(f"{path} has no chat template", mend="use an instruction-tuned model")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: ""
    try:
        return environment.from_string(template.decode("utf-8", "replace"))
    except TemplateError as error:
        raise ModelError(f"{path}: its chat template cannot be read: {error}", mend="use another model") from error


def _raise_exception(message: str) -> None:
    raise UsageError(f"the model's chat template refuses these messages: {message}")


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
