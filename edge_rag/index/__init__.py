"""The vector index: the Python face of native/, and two alternatives behind the same protocol.

`build_index` turns blocks of ids and vectors into a file (native/FORMAT.md), `NativeIndex` maps and searches it, and
`LiveIndex` lets rows be added and removed in between. `FlatIndex` is the same search in plain numpy over float32, exact
and without a file; `HnswlibIndex` is hnswlib's, for who has it. All are `interfaces.VectorIndex`.
"""

import typing as _typing
from importlib import import_module as _import_module

if _typing.TYPE_CHECKING:
    from edge_rag.index.arrays import Metric
    from edge_rag.index.build import build_index
    from edge_rag.index.compiled import simd_kernel
    from edge_rag.index.flat import FlatIndex
    from edge_rag.index.hnsw import HnswlibIndex
    from edge_rag.index.live import LiveIndex
    from edge_rag.index.native import IndexInfo, NativeIndex

__all__ = [
    "FlatIndex",
    "HnswlibIndex",
    "IndexInfo",
    "LiveIndex",
    "Metric",
    "NativeIndex",
    "build_index",
    "simd_kernel",
]

# Resolved on first use: a process that only searches need not load what builds.
_HOMES = {
    "FlatIndex": "flat",
    "HnswlibIndex": "hnsw",
    "IndexInfo": "native",
    "LiveIndex": "live",
    "Metric": "arrays",
    "NativeIndex": "native",
    "build_index": "build",
    "simd_kernel": "compiled",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edge_rag.index' has no attribute {name!r}")
    return getattr(_import_module(f"edge_rag.index.{_HOMES[name]}"), name)
