"""Sentence embeddings with ONNX Runtime: an int8 MiniLM made by export/embedder_to_onnx.py.

Each text is one run on one core, and as many texts run at once as there are cores. Measured against padded batches of
any size this is the fastest on chunks (no padding, no mask, activations that stay in the core's cache), and a text's
vector does not depend on the texts that happen to be embedded with it.
"""

import errno
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rag.errors import ModelError
from edge_rag.models.cores import usable_cores
from edge_rag.models.wordpiece import WordPiece

MANIFEST, GRAPH, WEIGHTS, VOCABULARY = "model.json", "model.int8.onnx", "model.int8.data", "vocab.txt"
Files = Path | Mapping[str, memoryview]  # a folder, or bytes by name
SPECIAL = 2  # [CLS] and [SEP] stand around each text


class OnnxEmbedder:
    """An interfaces.Embedder over a folder with model.json and the files that it names, or over their bytes. Threads may
    share it."""

    def __init__(self, files: Files, *, threads: int = 0) -> None:
        manifest = _read_manifest(files)
        self.name: str = manifest["name"]
        self.dim: int = manifest["dim"]
        self._cut: int = manifest["max_tokens"]
        self.max_tokens = self._cut - SPECIAL
        self._threads = usable_cores(threads)
        hashes: dict[str, str] = manifest["files"]
        self.fingerprint = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()
        # Hashing takes no longer than the import beside it, and flipped bits in weights are found nowhere else.
        with ThreadPoolExecutor(1) as beside:
            checked = beside.submit(_check_files, files, hashes)
            import onnxruntime

            checked.result()
        self._tokenizer = WordPiece.parse(_read(files, VOCABULARY))
        self._session = _open_session(onnxruntime, files)

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


def embedder_files(folder: Path) -> list[Path]:
    """Return the files that an embedder's folder must hold: its manifest, and what that names."""
    return [folder / name for name in (MANIFEST, *_read_manifest(folder)["files"])]


def _read_manifest(files: Files) -> dict[str, Any]:
    path = _place(files, MANIFEST)
    try:
        manifest: dict[str, Any] = json.loads(_read(files, MANIFEST))
        if not all(isinstance(manifest[key], kind) for key, kind in _MANIFEST_TYPES.items()):
            raise ValueError("a value of the wrong type")
    except FileNotFoundError:
        raise ModelError(f"{path.parent} holds no embedder: there is no {MANIFEST}", mend=_MEND) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}", mend=_MEND) from error
    return manifest


_MANIFEST_TYPES: dict[str, type] = {"name": str, "dim": int, "max_tokens": int, "files": dict}
_MEND = "reinstall edge-rag, or export the embedder again"


def _check_files(files: Files, hashes: dict[str, str]) -> None:
    for name, expected in hashes.items():
        path = _place(files, name)
        try:
            if isinstance(files, Path):
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                found = hashlib.sha256(_held(files, name)).hexdigest()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}", mend=_MEND) from error
        if found != expected:
            raise ModelError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}", mend=_MEND)


def _read(files: Files, name: str) -> bytes:
    return (files / name).read_bytes() if isinstance(files, Path) else bytes(_held(files, name))


def _held(files: Mapping[str, memoryview], name: str) -> memoryview:
    try:
        return files[name]
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, "no such file", name) from None


def _place(files: Files, name: str) -> Path:
    """Name a file in an error."""
    return files / name if isinstance(files, Path) else Path("embedder", name)


def _open_session(onnxruntime: Any, files: Files) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    path = _place(files, GRAPH)
    try:
        model: str | bytes = str(path)
        if not isinstance(files, Path):
            # Copied once by onnxruntime, where a file would be mapped: 36 ms more to open (72), and 14 MB.
            weights = _held(files, WEIGHTS)
            if not hasattr(options, "add_external_initializers_from_files_in_memory"):
                raise RuntimeError("this onnxruntime cannot read weights from memory")
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
            model = _read(files, GRAPH)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{path} cannot be loaded: {error}", mend="pip install --upgrade onnxruntime") from error
