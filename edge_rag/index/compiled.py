"""The compiled part, loaded with an error that says what to do, and its kernel chosen."""

import os
import sys

from edge_rag.errors import EdgeRagError, UsageError

try:
    from edge_rag import _native as native
except ImportError as error:
    raise EdgeRagError(
        f"the compiled part of edge_rag can not be loaded ({error})",
        mend="run: pip install edge-rag, or in a clone: pip install -e .",
    ) from error

__all__ = ["native", "simd_kernel", "usable_cores"]

try:
    native.simd_select(os.environ.get("EDGE_RAG_SIMD") or None)
except ValueError as error:
    raise UsageError(
        f"EDGE_RAG_SIMD={os.environ['EDGE_RAG_SIMD']}: {error}", mend="unset EDGE_RAG_SIMD, or set it to scalar"
    ) from error


def simd_kernel() -> str:
    """Return the name of the kernel that searches use on this processor."""
    return native.simd_name()


def usable_cores() -> int:
    """Return how many cores this process may run on, as far as the index can use them."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(cores, native.MAX_THREADS)
