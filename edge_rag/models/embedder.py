"""Sentence embeddings with ONNX Runtime: an int8 MiniLM made by export/embedder_to_onnx.py.

Each text is one run on one core, and as many texts run at once as there are cores. Measured against padded batches of
any size this is the fastest on chunks (no padding, no mask, activations that stay in the core's cache), and a text's
vector does not depend on the texts that happen to be embedded with it.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rag.errors import ModelError
from edge_rag.models.cores import usable_cores
from edge_rag.models.wordpiece import WordPiece

MANIFEST = "model.json"
SPECIAL = 2  # [CLS] and [SEP] stand around each text


class OnnxEmbedder:
    """An interfaces.Embedder over a folder with model.json and the files that it names. Threads may share it."""

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        self._folder = folder
        manifest = _read_manifest(folder)
        self.name: str = manifest["name"]
        self.dim: int = manifest["dim"]
        self._cut: int = manifest["max_tokens"]
        self.max_tokens = self._cut - SPECIAL
        self._threads = usable_cores(threads)
        hashes: dict[str, str] = manifest["files"]
        self.fingerprint = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()
        # Hashing takes no longer than the import beside it, and flipped bits in weights are found nowhere else.
        with ThreadPoolExecutor(1) as beside:
            checked = beside.submit(_check_files, folder, hashes)
            import onnxruntime

            checked.result()
        self._tokenizer = WordPiece.load(folder / "vocab.txt")
        self._session = _open_session(onnxruntime, folder / "model.int8.onnx")

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

        if self._threads == 1 or len(texts) == 1:
            for row in range(len(texts)):
                run(row)
        elif texts:
            longest_first = sorted(range(len(texts)), key=lambda row: -len(ids[row]))
            with ThreadPoolExecutor(min(self._threads, len(texts))) as workers:
                for _ in workers.map(run, longest_first):
                    pass
        return vectors


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(manifest[key], kind) for key, kind in _MANIFEST_TYPES.items()):
            raise ValueError("a value of the wrong type")
    except FileNotFoundError:
        raise ModelError(f"{folder} holds no embedder: there is no {MANIFEST}", mend=_MEND) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}", mend=_MEND) from error
    return manifest


_MANIFEST_TYPES: dict[str, type] = {"name": str, "dim": int, "max_tokens": int, "files": dict}
_MEND = "reinstall edge-rag, or export the embedder again"


def _check_files(folder: Path, hashes: dict[str, str]) -> None:
    for name, expected in hashes.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{folder / name} cannot be read: {error.strerror}", mend=_MEND) from error
        if found != expected:
            raise ModelError(f"{folder / name} is damaged: its sha256 is not the one in {MANIFEST}", mend=_MEND)


def _open_session(onnxruntime: Any, path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{path} cannot be loaded: {error}", mend="pip install --upgrade onnxruntime") from error
