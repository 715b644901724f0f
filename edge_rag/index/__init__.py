"""The vector index: the Python face of native/, and its exact numpy twin.

`write_index` streams ids and vectors into a file (native/FORMAT.md), `ScanIndex` maps and searches it, `FlatIndex` is
the same search in plain numpy over float32, exact and without a file. Both are `interfaces.VectorIndex`.
"""

from edge_rag.index.flat import FlatIndex
from edge_rag.index.scan import IndexInfo, ScanIndex, simd_kernel, write_index

__all__ = ["FlatIndex", "IndexInfo", "ScanIndex", "simd_kernel", "write_index"]
