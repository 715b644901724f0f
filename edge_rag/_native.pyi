"""Types of the compiled binding (native/python/module.c). Only edge_rag.index calls it."""

import mmap
from typing import NewType

import numpy as np
import numpy.typing as npt

Index = NewType("Index", object)

HEADER_BYTES: int
MAX_DIM: int

class IndexFileError(Exception): ...

def open(file: mmap.mmap, verify: bool, /) -> Index: ...
def shape(index: Index, /) -> tuple[int, int, int]: ...
def search(
    index: Index,
    queries: npt.NDArray[np.float32],
    n_queries: int,
    k: int,
    allow: npt.NDArray[np.bool_] | None,
    threads: int,
    ids: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    /,
) -> None: ...
def quantize(
    rows: npt.NDArray[np.float32],
    n: int,
    dim: int,
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    /,
) -> None: ...
def checksum_state() -> bytearray: ...
def checksum(state: bytearray, data: bytes | memoryview, /) -> int: ...
def header(dim: int, count: int, checksums: tuple[int, int, int], /) -> bytes: ...
def simd_select(name: str | None, /) -> None: ...
def simd_name() -> str: ...
