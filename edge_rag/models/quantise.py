"""Convert GGUF files to other types."""

import ctypes
import os
from pathlib import Path

from edge_rag.errors import ModelError
from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf_file import check_gguf
from edge_rag.models.gguf_native import load_llama

QUANTISED_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}  # llama_ftype


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
