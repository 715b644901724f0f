"""Convert GGUF files to other types, and keep what was converted.

<home>/cache/quantised/<sha256 of the source>.Q4_0.gguf
"""

import ctypes
import os
from pathlib import Path

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Progress
from edge_rag.models import store
from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf_file import check_gguf
from edge_rag.models.gguf_native import load_llama
from edge_rag.settings import home_dir

QUANTISED_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}  # llama_ftype


def quantised_file(source: Path, quantised_type: str, progress: Progress | None = None) -> Path:
    """Return a GGUF converted to a type: made once for the bytes of the source, by one process."""
    check_type(quantised_type)
    check_gguf(source)
    report = progress or _silent
    folder = home_dir() / "cache" / "quantised"
    target = folder / f"{store.sha256_file(source, progress=report)}.{quantised_type}.gguf"
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with store.lock(folder / "lock", report, "another process is converting a model"):
            if not target.is_file():
                report("convert", 0, 0, f"{source.name} to {quantised_type}")
                temporary = target.with_name(target.name + ".part")  # what a killed process left is written over
                requantize(source, temporary, quantised_type)
                temporary.replace(target)
    except OSError as error:
        raise ModelError(
            f"{folder}: {error.strerror or error}", mend="check that the folder can be written, or set EDGE_RAG_HOME"
        ) from error
    return target


def requantize(source: Path, target: Path, quantised_type: str) -> None:
    """Convert a GGUF to another type, e.g. "Q8_0". Half-written output is removed on failure.

    Where a tensor's rows are too short for a K type, llama.cpp takes the next larger type that fits.
    """
    check_type(quantised_type)
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


def check_type(quantised_type: str) -> None:
    if quantised_type not in QUANTISED_TYPES:
        raise UsageError(
            f"{quantised_type!r} is no type that a model can be converted to",
            mend=f"use one of {', '.join(QUANTISED_TYPES)}",
        )


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    pass
