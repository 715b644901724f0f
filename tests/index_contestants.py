"""Contestants for tests of `bench index` that behave badly. A module of its own, because new processes import it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_rag.evaluation.bench.speed_index_systems import Found, System


class Careless(System):
    """Believes whatever its file says: the first byte is its answer, or what it does instead."""

    name, package = "careless", "edge_rag.index"

    def build(self, vectors: Any, folder: Path, threads: int) -> None:
        (folder / "index").write_bytes(b"a" + bytes(4999))

    def open(self, folder: Path) -> None:
        content = (folder / "index").read_bytes()
        if not content:
            raise ValueError("nothing in it")
        self.says = content[0]

    def search(self, queries: Any, k: int, ef: int) -> Found:
        if self.says == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.says == 255:
            time.sleep(3600)
        shape = (len(queries), k)
        return np.full(shape, self.says, dtype=np.int64), np.zeros(shape, dtype=np.float32)


class Doomed(Careless):
    """Dies while it builds."""

    name = "doomed"

    def build(self, vectors: Any, folder: Path, threads: int) -> None:
        os._exit(1)
