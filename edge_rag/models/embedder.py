"""Sentence embeddings with ONNX Runtime: the int8 MiniLM that comes with edge_rag, or what `edge-rag export onnx` made."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_rag.models.cores import usable_cores
from edge_rag.models.onnx_folder import Files, read_folder, run_each
from edge_rag.models.precision import choose


class OnnxEmbedder:
    """An interfaces.Embedder over a folder with model.json and the files that it names, or over their bytes. Threads may
    share it."""

    def __init__(self, files: Files, *, threads: int = 0, precision: str = "", fingerprint: str = "") -> None:
        """Where both precisions are there: the one asked for, the one with that fingerprint, or this machine's choice."""
        folder = read_folder(files, "embedder")
        self.precision = precision or folder.precision_of(fingerprint) or choose(folder).precision
        self.name = folder.name
        self.dim = folder.dim
        self.fingerprint = folder.fingerprint(self.precision)
        self._tokenizer, self._session = folder.open(self.precision)
        self._cut = folder.max_tokens
        self.max_tokens = self._cut - self._tokenizer.n_special
        self._threads = usable_cores(threads)

    def count_tokens(self, text: str) -> int:
        """Count the tokens of the text itself; up to `max_tokens` of them reach the model."""
        return self._tokenizer.count(text)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (n, dim) float32, rows of length 1, in the order of `texts`."""
        ids = [self._tokenizer.encode(text, self._cut) for text in texts]
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)

        def run(row: int) -> None:
            inputs = {"input_ids": np.array([ids[row]], dtype=np.int64)}
            vectors[row] = self._session.run(["embedding"], inputs)[0][0]

        run_each(run, [len(row) for row in ids], self._threads)
        return vectors
