"""The contestants of `edge-rag bench index`, each behind the same few calls: ours, and the peers that are installed.

All are given the same unit vectors, M = 16 (32 links on the lowest level) and efConstruction = 200 where these are theirs to set.
"""

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edge_rag.evaluation.bench.speed_index_data import BLOCK, Floats, Rows
from edge_rag.index import NativeIndex, build_index

M, EF_BUILD = 16, 200
SEED = 100  # where a peer takes one

Found = tuple[Rows, Floats]  # rows and scores, each (n_queries, k), best first


class System:
    """An index that can be built into a folder, opened from there and searched on one thread."""

    name: ClassVar[str]
    package: ClassVar[str]  # that it is imported from
    ef_default: ClassVar[int] = 64
    index: Any  # what the package calls an index, once it is open

    def __init__(self, dim: int) -> None:
        self.dim = dim

    @classmethod
    def imported(cls) -> Any:
        return importlib.import_module(cls.package)

    def build(self, vectors: Floats, folder: Path, threads: int) -> None:
        """Index vectors, the ids being row numbers, and write the file or files."""
        raise NotImplementedError

    def open(self, folder: Path) -> None:
        raise NotImplementedError

    def header_at(self, content: bytes) -> int:
        """Tell where in its file the numbers stand that say what the rest is."""
        return 0

    def search(self, queries: Floats, k: int, ef: int) -> Found:
        raise NotImplementedError

    def search_allowed(self, query: Floats, k: int, ef: int, allow: npt.NDArray[np.bool_]) -> Found:
        """Search for one query, (1, dim), among the allowed rows; -1 fills up what was not found."""
        raise NotImplementedError


class EdgeRag(System):
    name, package = "edge_rag", "edge_rag.index"
    index: NativeIndex
    ef_default = 0  # its own
    preload = True

    def build(self, vectors: Floats, folder: Path, threads: int) -> None:
        build_index(folder / "index", blocks_of(vectors), self.dim, graph_from=1, threads=threads)

    def open(self, folder: Path) -> None:
        self.index = NativeIndex.open(folder / "index", preload=self.preload)

    def search(self, queries: Floats, k: int, ef: int) -> Found:
        return self.index.search(queries, k, ef=ef or None, exact=False, threads=1)

    def search_allowed(self, query: Floats, k: int, ef: int, allow: npt.NDArray[np.bool_]) -> Found:
        return self.index.search(query, k, ef=ef or None, allow=allow, threads=1)

    def scan(self, queries: Floats, k: int) -> Found:
        return self.index.search(queries, k, exact=True, threads=1)

    def auto(self, queries: Floats, k: int) -> Found:
        return self.index.search(queries, k, threads=1)


class EdgeRagLazy(EdgeRag):
    """Mapped without reading ahead: for little memory."""

    name = "edge_rag, preload=False"
    preload = False


class Hnswlib(System):
    name, package = "hnswlib", "hnswlib"

    def build(self, vectors: Floats, folder: Path, threads: int) -> None:
        hnswlib = self.imported()
        index = hnswlib.Index("ip", self.dim)
        index.init_index(len(vectors), M=M, ef_construction=EF_BUILD, random_seed=SEED)
        index.set_num_threads(threads)
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            index.add_items(block, np.arange(start, start + len(block)))
        index.save_index(str(folder / "index"))

    def open(self, folder: Path) -> None:
        hnswlib = self.imported()
        self.index = hnswlib.Index("ip", self.dim)
        self.index.load_index(str(folder / "index"))
        self.index.set_num_threads(1)

    def search(self, queries: Floats, k: int, ef: int) -> Found:
        self.index.set_ef(max(ef, k))
        labels, distances = self.index.knn_query(queries, k)
        return labels.astype(np.int64), 1 - distances

    def search_allowed(self, query: Floats, k: int, ef: int, allow: npt.NDArray[np.bool_]) -> Found:
        self.index.set_ef(max(ef, k))
        try:
            labels, distances = self.index.knn_query(query, k, num_threads=1, filter=lambda label: bool(allow[label]))
        except RuntimeError:  # it found fewer than k, and then gives none
            return np.full((1, k), -1, dtype=np.int64), np.full((1, k), -np.inf, dtype=np.float32)
        return labels.astype(np.int64), 1 - distances


class FaissHnsw(System):
    name, package = "faiss HNSWFlat", "faiss"
    kind: ClassVar[str] = f"HNSW{M},Flat"

    def build(self, vectors: Floats, folder: Path, threads: int) -> None:
        faiss = self.imported()
        faiss.omp_set_num_threads(threads)
        index = faiss.index_factory(self.dim, self.kind, faiss.METRIC_INNER_PRODUCT)
        if hasattr(index, "hnsw"):
            index.hnsw.efConstruction = EF_BUILD
        index.train(np.ascontiguousarray(vectors[:BLOCK]))
        for start in range(0, len(vectors), BLOCK):
            index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
        faiss.write_index(index, str(folder / "index"))

    def open(self, folder: Path) -> None:
        faiss = self.imported()
        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(str(folder / "index"))

    def search(self, queries: Floats, k: int, ef: int) -> Found:
        self.index.hnsw.efSearch = ef
        scores, rows = self.index.search(queries, k)
        return rows, scores

    def search_allowed(self, query: Floats, k: int, ef: int, allow: npt.NDArray[np.bool_]) -> Found:
        faiss = self.imported()
        chosen = faiss.IDSelectorBitmap(np.packbits(allow, bitorder="little"))
        scores, rows = self.index.search(query, k, params=faiss.SearchParametersHNSW(sel=chosen, efSearch=ef))
        return rows, scores


class FaissSq8(FaissHnsw):
    name = "faiss HNSW SQ8"
    kind = f"HNSW{M},SQ8"


class FaissFlat(FaissHnsw):
    name = "faiss flat f32"
    kind = "Flat"

    def search(self, queries: Floats, k: int, ef: int) -> Found:
        scores, rows = self.index.search(queries, k)
        return rows, scores


class Usearch(System):
    name, package = "usearch f32", "usearch.index"

    def build(self, vectors: Floats, folder: Path, threads: int) -> None:
        index = self.imported().Index(ndim=self.dim, metric="ip", dtype="f32", connectivity=M, expansion_add=EF_BUILD)
        for start in range(0, len(vectors), BLOCK):
            block = np.ascontiguousarray(vectors[start : start + BLOCK])
            index.add(np.arange(start, start + len(block)), block, threads=threads)
        index.save(str(folder / "index"))

    def open(self, folder: Path) -> None:
        self.index = self.imported().Index.restore(str(folder / "index"), view=True)
        if self.index is None:
            raise ValueError("usearch restores no index")

    def header_at(self, content: bytes) -> int:
        return content.rfind(b"usearch")  # after the vectors

    def search(self, queries: Floats, k: int, ef: int) -> Found:
        self.index.expansion_search = ef
        found = self.index.search(queries, k, threads=1)
        shape = (len(queries), k)
        return found.keys.astype(np.int64).reshape(shape), 1 - found.distances.reshape(shape)


class Svs(System):
    name, package = "svs Vamana f16", "svs"
    most_links: ClassVar[int] = 2 * M

    def build(self, vectors: Floats, folder: Path, threads: int) -> None:
        svs = self.imported()
        settings = svs.VamanaBuildParameters(graph_max_degree=self.most_links, window_size=EF_BUILD, alpha=1.2)
        half = np.asarray(vectors, dtype=np.float16)
        index = svs.Vamana.build(settings, half, svs.DistanceType.L2, num_threads=threads)
        parts = [folder / part for part in ("config", "graph", "data")]
        for part in parts:
            part.mkdir(exist_ok=True)
        index.save(*map(str, parts))

    def open(self, folder: Path) -> None:
        svs = self.imported()
        config, graph, data = (str(folder / part) for part in ("config", "graph", "data"))
        loader = svs.VectorDataLoader(data, svs.DataType.float16)
        self.index = svs.Vamana(config, svs.GraphLoader(graph), loader, svs.DistanceType.L2, num_threads=1)

    def search(self, queries: Floats, k: int, ef: int) -> Found:
        self.index.search_window_size = max(ef, k)
        rows, distances = self.index.search(queries, k)
        return rows.astype(np.int64), 1 - distances / 2


class SvsDense(Svs):
    """With twice the links of all others, which is where svs is fastest on the real vectors."""

    name = "svs Vamana f16, 64 links"
    most_links = 64


GRAPHS: tuple[type[System], ...] = (EdgeRag, Hnswlib, FaissSq8, FaissHnsw, Usearch, Svs, SvsDense)
_ALL: tuple[type[System], ...] = (*GRAPHS, EdgeRagLazy, FaissFlat)
EVERY = {system.name: system for system in _ALL}


def blocks_of(vectors: Floats, first_id: int = 0) -> Iterator[tuple[Rows, Floats]]:
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        yield np.arange(first_id + start, first_id + start + len(block)), block


def is_installed(system: type[System]) -> bool:
    return find_spec(system.package.partition(".")[0]) is not None
