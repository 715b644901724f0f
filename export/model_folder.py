"""Read a Hugging Face model folder: configuration, tokenizer files, and tensors out of one safetensors file or many.

Nothing of a folder is executed, and no pickle is opened. What is missing or damaged is one clear line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from edge_rag.errors import ModelError
from edge_rag.models.licences import licence_text

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
Array = npt.NDArray[Any]


class ModelFolder:
    """The folder of a model. Tensors are read one at a time, so that a model larger than memory can be converted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise ModelError(f"there is no folder {path}", mend="give the folder that holds config.json")
        self.config = read_json(path / "config.json")
        self._files = _weight_files(path)
        self.names = tuple(self._files)

    def read(self, name: str) -> "torch.Tensor":
        """Return a tensor as it is stored."""
        path = self._files[name]
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in set(self._files.values()))


def copy_papers(source: Path, target: Path) -> None:
    """Copy a model's card and licence text, where it has them, into the folder of what is made from it."""
    for path in (source / "README.md", licence_text(source)):
        if path is not None and path.is_file():
            (target / path.name).write_bytes(path.read_bytes())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that must be there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} holds no {path.name}", mend="give a folder as save_pretrained writes it"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", mend="copy the folder again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is no JSON object", mend="copy the folder again")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def read_tensors(path: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield the names and tensors of one safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def to_numpy(tensor: "torch.Tensor", dtype: str) -> Array:
    """Return "f32" or "f16" values; one that a half cannot hold is an error, not an infinity."""
    values: Array = tensor.detach().to(torch.float32).numpy()
    if dtype == "f16":
        with np.errstate(over="ignore"):
            values = values.astype(np.float16)
    if not np.isfinite(values).all():
        raise ModelError(
            f"a tensor holds values that {dtype.upper()} cannot: infinite, not a number, or beyond 65504",
            mend="export with --type f32, or check the training" if dtype == "f16" else "check the training",
        )
    return np.ascontiguousarray(values)


def _weight_files(folder: Path) -> dict[str, Path]:
    """Return which file each tensor lies in."""
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(
            isinstance(file, str) and Path(file).name == file for file in listed.values()
        ):
            raise ModelError(f"{folder / INDEX} names no files", mend="copy the folder again")
        files = {name: folder / file for name, file in listed.items()}
    elif (folder / SINGLE).is_file():
        files = dict.fromkeys(_tensor_names(folder / SINGLE), folder / SINGLE)
    else:
        mend = "give a folder as save_pretrained writes it"
        if any(folder.glob("pytorch_model*.bin")):
            mend = "its weights are pickled, which is not opened here: load them with transformers and save them again"
        raise ModelError(f"{folder} holds no {SINGLE}", mend=mend)
    for file in sorted(set(files.values())):
        if not file.is_file():
            raise ModelError(f"{file} is missing", mend="copy the folder again: the index names that file")
        missing = {name for name, place in files.items() if place == file} - set(_tensor_names(file))
        if missing:
            raise ModelError(f"{file} holds no {min(missing)}", mend="copy the folder again")
    return files


def _tensor_names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is no whole safetensors file: {error}", mend="copy the folder again")
