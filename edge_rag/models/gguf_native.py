"""llama.cpp, as GgufGenerator and GgufBatch both use it: the library, a model with its adapter, a context.

The low-level functions of llama-cpp-python are used, not its Llama class: that keeps a scores buffer of n_batch x
vocabulary (100 MB here), redirects the process's own stdout and stderr while it works, and prints a traceback at
interpreter exit.

Bits. Every context is opened without flash attention, and with a memory of its own for each sequence. As measured on
x86-64 with AVX-512, the logits after a token of a F32, F16, Q8_0 or Q4_0 model then depend on the tokens before it and
on two things more: for each of these, whether it was computed in one call with others of its sequence, as in a prompt,
or not, as in an answer; and, with F32 and F16, whether a call computes one token or several, and the logits of one or
of several. How a prompt is cut into calls, which other sequences take part, how many threads work: none of it changes a
bit. K types depend on the cut and on the number of sequences as well. Flash attention would make all of them depend on
the cut and on the threads; to do without it costs about a fifth of the speed at which prompts are read.
"""

import ctypes
import functools
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rag.errors import MissingExtraError, ModelError
from edge_rag.models.prompt_style import how_trained

N_BATCH = 512  # prompt tokens for each call: also how long Ctrl-C may have to wait
TOGETHER = 2  # tokens at least for each call that must not depend on company: one alone takes another path
CELLS = 256  # the memory of a sequence is a multiple of this many tokens
_DAMAGED_MEND = "pull the model again with --force, or upgrade llama-cpp-python"


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
    if b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info() and os.environ.get("EDGE_RAG_AMX") != "1":
        _leave_out_amx(llama_cpp)
    return llama_cpp


def _leave_out_amx(llama_cpp: Any) -> None:
    """Keep llama.cpp from its kernels for AMX, which end the process with an illegal instruction.

    It describes its tiles in memory that gcc 12 takes for unused, and leaves unwritten (llama.cpp, pull request 26954), unless
    it is told not to: EDGE_RAG_AMX=1 says that it was. Kernels are chosen by where weights are put, and these other places are
    asked for in the default parameters of every model.
    """
    native = llama_cpp.llama_cpp
    defaults = native.llama_model_default_params

    def without() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    native.llama_model_default_params = llama_cpp.llama_model_default_params = without


def _no_log(llama_cpp: Any) -> Any:
    """Return a log callback that does nothing, and is no Python: there an interrupt would be printed and lost."""
    harmless = llama_cpp.llama_cpp._lib.llama_time_us  # a C function that ignores what it is called with
    return ctypes.cast(harmless, llama_cpp.llama_log_callback)


class NativeModel:
    """A GGUF file in memory, and the adapter that its contexts apply. Contexts must be closed before it."""

    def __init__(self, path: Path, *, lora: Path | None = None) -> None:
        self.trained = how_trained(path, lora)  # which checks both files
        self.llama = load_llama()
        self.path = path
        self.pointer = self.llama.llama_model_load_from_file(os.fsencode(path), self.llama.llama_model_default_params())
        if not self.pointer:
            raise ModelError(
                f"{path} cannot be loaded: llama.cpp does not know it, or it is damaged", mend=_DAMAGED_MEND
            )
        self._free = weakref.finalize(self, self.llama.llama_model_free, self.pointer)  # frees its adapters, too
        self._adapter = None
        if lora is not None:
            self._adapter = self.llama.llama_adapter_lora_init(self.pointer, os.fsencode(lora))
            if not self._adapter:
                self._free()
                raise ModelError(
                    f"{lora} is no LoRA adapter for {path.name}", mend="use an adapter that was trained for this model"
                )

    @property
    def size_bytes(self) -> int:
        """Return the size of all tensors: the file may hold more (a bundle)."""
        return int(self.llama.llama_model_size(self.pointer))

    @property
    def is_open(self) -> bool:
        return bool(self._free.alive)

    def close(self) -> None:
        self._free()

    def open_context(
        self, *, tokens: int, sequences: int, read_threads: int, write_threads: int, exact: bool = False
    ) -> "NativeContext":
        """Open a context; `exact` keeps keys and values in 32 bits instead of 16, to compare with other software."""
        return NativeContext(self, self._adapter, tokens, sequences, read_threads, write_threads, exact)


class NativeContext:
    """A memory of keys and values for `sequences` sequences of up to `tokens` tokens each. One thread at a time."""

    def __init__(
        self, model: NativeModel, adapter: Any, tokens: int, sequences: int, read_threads: int, write_threads: int,
        exact: bool,
    ) -> None:  # fmt: skip
        self.llama = llama = model.llama
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = -(-tokens // CELLS) * CELLS * sequences  # llama.cpp rounds down
        parameters.n_batch = parameters.n_ubatch = N_BATCH
        parameters.n_threads_batch = read_threads
        parameters.n_threads = write_threads
        parameters.n_seq_max = sequences
        parameters.kv_unified = False
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.no_perf = True
        if exact:
            parameters.type_k = parameters.type_v = llama.GGML_TYPE_F32
        pointer = llama.llama_init_from_model(model.pointer, parameters)
        if not pointer:
            raise ModelError(
                f"{model.path}: no memory for a context of {parameters.n_ctx} tokens", mend="lower context_tokens"
            )
        self._batch = llama.llama_batch_init(N_BATCH, 0, 1)
        self._free = weakref.finalize(self, _free_context, llama, pointer, self._batch)
        self.pointer = pointer
        self.n_sequences = sequences
        self.memory = llama.llama_get_memory(pointer)
        self._n_vocab: int = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model.pointer))
        if adapter is not None:
            adapters, scales = (llama.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
            if llama.llama_set_adapters_lora(pointer, adapters, 1, scales) != 0:
                self._free()
                raise ModelError(f"{model.path}: the adapter cannot be applied", mend="run without it")

    def close(self) -> None:
        self._free()

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop what a sequence holds from a position on; False: it cannot go back so far (recurrent models)."""
        return bool(self.llama.llama_memory_seq_rm(self.memory, sequence, start, -1))

    def clear(self) -> None:
        self.llama.llama_memory_clear(self.memory, True)

    def copy(self, source: int, target: int) -> None:
        """Let one sequence hold what another one holds, in place of what it held."""
        self.forget(target)
        self.llama.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def read(self, sequence: int, start: int, tokens: list[int]) -> None:
        """Compute up to N_BATCH tokens of one sequence; the last one's logits are in row 0."""
        last = len(tokens) - 1
        self.decode([(token, start + i, sequence, i == last) for i, token in enumerate(tokens)])

    def write(self, tokens: list[tuple[int, int, int]]) -> None:
        """Compute one (token, position, sequence) for each of several sequences; the logits are in rows 0, 1 ..."""
        self.decode([(*token, True) for token in tokens])

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """Return a row of logits: a view that the next computation overwrites."""
        rows = np.ctypeslib.as_array(self.llama.llama_get_logits(self.pointer), shape=(row + 1, self._n_vocab))
        view: npt.NDArray[np.float32] = rows[row]
        return view

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Compute up to N_BATCH tokens: (token, position, sequence, whether its logits are wanted).

        The wanted logits are in rows 0, 1 ... in the order of the tokens. Sequences must be neighbours.
        """
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        status = self.llama.llama_decode(self.pointer, batch)
        if status != 0:
            self.clear()
            raise ModelError(
                f"llama.cpp stopped with status {status}", mend="lower context_tokens, or close other programs"
            )


def pieces(start: int, end: int, size: int = N_BATCH) -> Iterator[tuple[int, int]]:
    """Cut a stretch of a prompt for `read`, so that none is of one token unless the stretch is."""
    while start < end:
        stop = min(start + size, end)
        if end - stop in range(1, TOGETHER):
            stop = end - TOGETHER
        yield start, stop
        start = stop


def _free_context(llama: Any, pointer: Any, batch: Any) -> None:
    llama.llama_batch_free(batch)
    llama.llama_free(pointer)
