"""A folder that `edge-rag export onnx` made: model.json, the graph in one or two precisions, and the tokenizer.

Each text is one run on one core, and as many texts run at once as there are cores. Measured against padded batches of
any size this is the fastest on chunks (no padding, no mask, activations that stay in the core's cache), and what a text
gives does not depend on the texts that happen to be run with it.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge_rag.errors import ModelError
from edge_rag.models.wordpiece import WordPiece

MANIFEST, PROBE = "model.json", "probe.json"
VOCAB, TOKENIZER = "vocab.txt", "tokenizer.json"
PRECISIONS = ("int8", "fp32")  # the first is taken where nothing speaks against it


class Tokenizer(Protocol):
    n_special: int  # tokens that stand around a text

    def encode(self, text: str, max_tokens: int) -> list[int]: ...
    def encode_pair(self, question: str, passage: str, max_tokens: int) -> tuple[list[int], list[int]]: ...
    def count(self, text: str) -> int: ...


Files = Path | Mapping[str, memoryview]  # a folder, or bytes by name


@dataclass(frozen=True, slots=True)
class OnnxFolder:
    files: Files
    role: str  # "embedder" or "selector"
    name: str
    max_tokens: int  # of one run, special tokens included
    dim: int  # of a vector; 0 for a selector
    hashes: Mapping[str, str]  # sha256 of each file
    calibration: Mapping[str, Mapping[str, float]]  # of a selector, for each precision that has one

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(p for p in PRECISIONS if graph_name(p) in self.hashes)

    def fingerprint(self, precision: str) -> str:
        """Return the hash of what makes the results: the graph and weights of this precision, and the tokenizer."""
        return hashlib.sha256("".join(self._hashes(precision).values()).encode()).hexdigest()

    def precision_of(self, fingerprint: str) -> str:
        """Return the precision that has this fingerprint; "" if none has."""
        return next((p for p in self.precisions if self.fingerprint(p) == fingerprint), "")

    def open(self, precision: str) -> tuple[Tokenizer, Any]:
        """Return the tokenizer and the session, every byte of both checked."""
        if precision not in self.precisions:
            raise ModelError(f"{self.name} is not here as {precision}", mend=f"use {' or '.join(self.precisions)}")
        # Hashing takes no longer than the import beside it, and flipped bits in weights are found nowhere else.
        with ThreadPoolExecutor(1) as beside:
            checked = beside.submit(_check_files, self.files, self.role, self._hashes(precision))
            import onnxruntime

            checked.result()
        return self._open_tokenizer(), _open_session(onnxruntime, self.files, self.role, precision)

    def _hashes(self, precision: str) -> dict[str, str]:
        others = tuple(f"model.{other}." for other in PRECISIONS if other != precision)
        return {name: digest for name, digest in self.hashes.items() if not name.startswith(others)}

    def _open_tokenizer(self) -> Tokenizer:
        if VOCAB in self.hashes:
            return WordPiece.parse(read(self.files, VOCAB))
        from edge_rag.models.tokenizer_file import TokenizerFile

        return TokenizerFile.parse(read(self.files, TOKENIZER))


def graph_name(precision: str) -> str:
    return f"model.{precision}.onnx"


def read_folder(files: Files, role: str) -> OnnxFolder:
    """Read the manifest. It must be that of a model of this role; the files are checked when they are opened."""
    manifest = place(files, role, MANIFEST)
    try:
        found: dict[str, Any] = json.loads(read(files, MANIFEST))
        folder = OnnxFolder(
            files,
            found.get("role", "embedder"),
            found["name"],
            found["max_tokens"],
            found.get("dim", 0),
            found["files"],
            found.get("calibration", {}),
        )
        typed = [(folder.name, str), (folder.max_tokens, int), (folder.dim, int), (folder.hashes, dict)]
        typed += [(folder.calibration, dict)]
        if not all(isinstance(value, kind) for value, kind in typed) or not folder.precisions:
            raise ValueError("a value of the wrong type, or no graph")
        if folder.role == "embedder" and not folder.dim:
            raise ValueError("no dim")
    except FileNotFoundError:
        raise ModelError(f"{manifest.parent} holds no {role}: there is no {MANIFEST}", mend=_mend(role)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{manifest} is damaged: {error}", mend=_mend(role)) from error
    if folder.role != role:
        raise ModelError(f"{manifest.parent} holds the {folder.role} {folder.name}, no {role}", mend=_mend(role))
    return folder


def folder_files(folder: Path, role: str) -> list[Path]:
    """Return the files that a model's folder must hold: its manifest, and what that names."""
    return [folder / name for name in (MANIFEST, *read_folder(folder, role).hashes)]


def run_each(run: Callable[[int], None], lengths: Sequence[int], threads: int) -> None:
    """Call run(i) for each of the lengths, the longest first, as many at once as there are threads."""
    if threads == 1 or len(lengths) <= 1:
        for i in range(len(lengths)):
            run(i)
        return
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    with ThreadPoolExecutor(min(threads, len(lengths))) as workers:
        for _ in workers.map(run, longest_first):
            pass


def _mend(role: str) -> str:
    return f"reinstall edge-rag, or make one: edge-rag export onnx MODEL_DIR -o DIR --role {role}"


def _check_files(files: Files, role: str, hashes: dict[str, str]) -> None:
    for name, expected in hashes.items():
        path = place(files, role, name)
        try:
            if isinstance(files, Path):
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                found = hashlib.sha256(_held(files, name)).hexdigest()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}", mend=_mend(role)) from error
        if found != expected:
            raise ModelError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}", mend=_mend(role))


def read(files: Files, name: str) -> bytes:
    return (files / name).read_bytes() if isinstance(files, Path) else bytes(_held(files, name))


def _held(files: Mapping[str, memoryview], name: str) -> memoryview:
    try:
        return files[name]
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, "no such file", name) from None


def place(files: Files, role: str, name: str) -> Path:
    """Name a file in an error."""
    return files / name if isinstance(files, Path) else Path(role, name)


def _open_session(onnxruntime: Any, files: Files, role: str, precision: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    path = place(files, role, graph_name(precision))
    try:
        model: str | bytes = str(path)
        if not isinstance(files, Path):
            # Copied once by onnxruntime, where a file would be mapped: 36 ms more to open (72), and 14 MB.
            data = f"model.{precision}.data"
            weights = _held(files, data)
            if not hasattr(options, "add_external_initializers_from_files_in_memory"):
                raise RuntimeError("this onnxruntime cannot read weights from memory")
            options.add_external_initializers_from_files_in_memory([data], [weights], [len(weights)])
            model = read(files, graph_name(precision))
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{path} cannot be loaded: {error}", mend="pip install --upgrade onnxruntime") from error
