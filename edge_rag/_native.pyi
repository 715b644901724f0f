"""Types of the compiled binding (native/python/module.c). Only edge_rag.index calls it."""

import mmap
from collections.abc import Callable
from typing import NewType

import numpy as np
import numpy.typing as npt

Index = NewType("Index", object)
Builder = NewType("Builder", object)
# count, file_bytes, hot_bytes, ids_offset, n_links, dim, metric, max_links, ef_build
Info = tuple[int, int, int, int, int, int, int, int, int]

HEADER_BYTES: int
ALIGNMENT: int
MAX_DIM: int
MAX_LINKS: int
MAX_EF: int
MAX_THREADS: int

class IndexFileError(Exception): ...

def open(file: mmap.mmap | memoryview | bytes, check: int, /) -> Index: ...
def info(index: Index, /) -> Info: ...
def peek(header: memoryview | bytes, /) -> Info: ...
def search(
    index: Index,
    queries: npt.NDArray[np.float32],
    n_queries: int,
    k: int,
    ef: int,
    way: int,
    threads: int,
    allow: npt.NDArray[np.uint8] | None,
    ids: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    /,
) -> None: ...
def vectors(index: Index, rows: npt.NDArray[np.uint32], n: int, out: npt.NDArray[np.float32], /) -> None: ...
def builder(
    dim: int, metric: int, max_links: int, ef_build: int, seed: int, graph_from: int, threads: int, /
) -> Builder: ...
def builder_take(builder: Builder, index: Index, keep: npt.NDArray[np.uint8] | None, /) -> None: ...
def builder_add(builder: Builder, ids: npt.NDArray[np.int64], rows: npt.NDArray[np.float32], n: int, /) -> None: ...
def builder_finish(
    builder: Builder, progress: Callable[[int, int], object] | None, write: Callable[[memoryview], object], /
) -> None: ...
def simd_select(name: str | None, /) -> None: ...
def simd_name() -> str: ...
