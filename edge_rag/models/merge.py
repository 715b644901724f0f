"""Merge a LoRA adapter into its base, both GGUF: what `models pull` does where the package brings the adapter of a model.

The base is taken as it was downloaded. Converted to Q8_0 before, its values would all lie on the steps that the merged ones are
rounded to, and what an adapter changes by less than half a step would be gone (SmolLM2-135M: a KL divergence of .016 instead
of .005 from base and adapter in F32).

Some rows at a time, in numpy. Each operation is one that IEEE 754 rounds in one way only, in an order that is written here (a
matrix product is not: its sums are taken as the processor likes), so that the same files give the same bytes on every machine.
"""

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_rag.errors import ModelError
from edge_rag.interfaces import Progress
from edge_rag.models import prompt_style
from edge_rag.models.gguf_file import BLOCKS, Head, Tensor, read_head

Rows = npt.NDArray[np.float32]  # (rows, values of a row)

ROWS = 64  # at a time: what is added up stays in a core's cache
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8  # ggml_type
MOSTLY_Q8_0 = 7  # llama_ftype
_ALIGNMENT = 32
_Q4_1_BLOCK = np.dtype([("step", "<f2"), ("least", "<f2"), ("codes", "u1", (16,))])
_Q8_0_BLOCK = np.dtype([("step", "<f2"), ("codes", "i1", (32,))])


def merge(base: Path, adapter: Path, target: Path, *, name: str, progress: Progress | None = None) -> None:
    """Write `target`: the base with the adapter in it, its matrices in Q8_0; what the adapter says of prompts goes along.

    Half-written output is removed on failure. ModelError if the adapter is not one for this base, or if one of them has
    tensors of a type that is not read here.
    """
    head, pairs = read_head(base), _pairs(base, adapter)
    plan = [(tensor, _becomes(tensor, pairs)) for tensor in head.tensors]
    try:
        with base.open("rb") as opened, target.open("wb") as file:
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                file.write(_head(data, head, [made for _, made in plan], _fields(adapter, name)))
                for done, (tensor, made) in enumerate(plan, start=1):
                    for piece in _pieces(data, tensor, made, pairs.get(tensor.name), base):
                        file.write(piece)
                    file.write(bytes(-made.size % _ALIGNMENT))
                    if progress is not None:
                        progress("merge", done, len(plan), tensor.name)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def merged_size(base: Path) -> int:
    """Return about how many bytes the merged file will have."""
    head = read_head(base)
    return head.tensors[0].offset + sum(_becomes(tensor, {}).size + _ALIGNMENT for tensor in head.tensors)


# --- what is to be added ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pair:
    a: Rows  # (rank, inputs)
    b: Rows  # (outputs, rank)
    scale: np.float32

    def add_to(self, rows: Rows, start: int) -> None:
        """Add scale * b @ a, from row `start` on: the products of the first rank, then those of the second ..."""
        term = np.empty_like(rows)
        total = np.zeros_like(rows)
        for column, row in zip(self.b[start : start + len(rows)].T, self.a, strict=True):
            np.multiply(column[:, None], row, out=term)
            total += term
        total *= self.scale
        rows += total


def _pairs(base: Path, adapter: Path) -> dict[str, _Pair]:
    """Read an adapter: what it adds to which tensor of the base."""
    architecture = "general.architecture"
    wanted = (architecture, "general.type", "adapter.type")
    head, bases = read_head(adapter, wanted), read_head(base, wanted)
    if (head.texts.get("general.type"), head.texts.get("adapter.type")) != ("adapter", "lora"):
        raise _refused(adapter, base, "it is no LoRA")
    if head.texts.get(architecture) != bases.texts.get(architecture):
        raise _refused(adapter, base, f"it is for the architecture {head.texts.get(architecture)}")
    parts = {tensor.name: tensor for tensor in head.tensors}
    shapes = {tensor.name: tensor.dims for tensor in bases.tensors}
    pairs = {}
    with adapter.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin, end = head.fields.get("adapter.lora.alpha", (0, 0))
        if end - begin < 8 or struct.unpack_from("<I", data, end - 8)[0] != 6:
            raise _refused(adapter, base, "it does not say how strong it is")
        alpha = struct.unpack_from("<f", data, end - 4)[0]
        for name in dict.fromkeys(part.rsplit(".lora_", 1)[0] for part in parts):
            a, b = parts.get(f"{name}.lora_a"), parts.get(f"{name}.lora_b")
            if a is None or b is None or len(a.dims) != 2 or len(b.dims) != 2 or a.dims[1] != b.dims[0]:
                raise _refused(adapter, base, f"it has no A and B for {name}")
            if shapes.get(name) != (a.dims[0], b.dims[1]):
                raise _refused(adapter, base, f"it changes a {name} of {b.dims[1]} times {a.dims[0]} values")
            scale = np.float32(alpha / a.dims[1])
            pairs[name] = _Pair(_floats(data, a, 0, a.dims[1], adapter), _floats(data, b, 0, b.dims[1], adapter), scale)
    return pairs


def _refused(adapter: Path, base: Path, why: str) -> ModelError:
    return ModelError(
        f"{adapter.name} is no adapter for {base.name}: {why}", mend="use one that was trained for this model"
    )


# --- what is written --------------------------------------------------------------------------------------------------


def _becomes(tensor: Tensor, pairs: Mapping[str, _Pair]) -> Tensor:
    """Return what a tensor will be: matrices in Q8_0, all else as it is."""
    if len(tensor.dims) != 2 or tensor.kind == Q8_0 or tensor.dims[0] % 32:
        if tensor.name in pairs and tensor.kind != Q8_0:
            raise ModelError(
                f"{tensor.name} has rows of {tensor.dims[0]} values", mend="use a base whose rows are multiples of 32"
            )
        return tensor
    values, n_bytes = BLOCKS[Q8_0]
    size = tensor.dims[0] * tensor.dims[1] // values * n_bytes
    return Tensor(tensor.name, tensor.dims, Q8_0, 0, size)


def _fields(adapter: Path, name: str) -> dict[str, str]:
    said = read_head(adapter, wanted=prompt_style.KEYS).texts
    return {"general.name": name, **said}


def _head(data: mmap.mmap, head: Head, tensors: list[Tensor], fields: Mapping[str, str]) -> bytes:
    """Build the new header: the base's metadata but for what is another now, then where each tensor will lie."""
    other = {*fields, *prompt_style.KEYS, "general.file_type", "general.alignment"}
    own = [_text(key) + struct.pack("<I", 8) + _text(value) for key, value in fields.items()]
    own.append(_text("general.file_type") + struct.pack("<II", 4, MOSTLY_Q8_0))
    kept = [data[begin:end] for key, (begin, end) in head.fields.items() if key not in other]
    metadata = [*own, *kept]
    infos, offset = [], 0
    for tensor in tensors:
        infos.append(
            _text(tensor.name)
            + struct.pack(f"<I{len(tensor.dims)}QIQ", len(tensor.dims), *tensor.dims, tensor.kind, offset)
        )
        offset += -(-tensor.size // _ALIGNMENT) * _ALIGNMENT
    whole = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join([*metadata, *infos])
    return whole + bytes(-len(whole) % _ALIGNMENT)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _pieces(data: mmap.mmap, tensor: Tensor, made: Tensor, pair: _Pair | None, base: Path) -> Iterator[bytes]:
    """Yield the bytes of a tensor as it is to be written."""
    if made.kind == tensor.kind and pair is None:
        if tensor.kind not in BLOCKS:
            raise _unknown_type(base, tensor)
        for start in range(0, tensor.size, 1 << 20):
            yield data[tensor.offset + start : tensor.offset + min(start + (1 << 20), tensor.size)]
        return
    for start in range(0, tensor.dims[1], ROWS):
        rows = _floats(data, tensor, start, min(start + ROWS, tensor.dims[1]), base)
        if pair is not None:
            pair.add_to(rows, start)
        yield _quantised(rows)


# --- types ------------------------------------------------------------------------------------------------------------


def _floats(data: mmap.mmap, tensor: Tensor, start: int, end: int, place: Path) -> Rows:
    """Read rows of a matrix."""
    values, n_bytes = BLOCKS.get(tensor.kind, (1, 0))
    width = tensor.dims[0]
    row_bytes = width // values * n_bytes
    raw = data[tensor.offset + start * row_bytes : tensor.offset + end * row_bytes]
    if tensor.kind in (F32, F16):
        floats = np.frombuffer(raw, "<f4" if tensor.kind == F32 else "<f2").astype(np.float32)
    elif tensor.kind == Q4_1:
        blocks = np.frombuffer(raw, _Q4_1_BLOCK)
        codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=1).astype(np.float32)
        floats = codes * blocks["step"].astype(np.float32)[:, None] + blocks["least"].astype(np.float32)[:, None]
    elif tensor.kind == Q8_0:
        blocks = np.frombuffer(raw, _Q8_0_BLOCK)
        floats = blocks["codes"].astype(np.float32) * blocks["step"].astype(np.float32)[:, None]
    else:
        raise _unknown_type(place, tensor)
    return floats.reshape(end - start, width)


def _quantised(rows: Rows) -> bytes:
    """Return rows in Q8_0, as llama.cpp rounds them: each 32 values in steps of a 127th of the largest."""
    values = rows.reshape(-1, 32)
    steps = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > 0)
    scaled = values * inverse
    whole = np.trunc(scaled)
    whole += np.sign(scaled) * (np.abs(scaled - whole) >= 0.5)  # halves away from zero
    blocks = np.empty(len(values), _Q8_0_BLOCK)
    blocks["step"], blocks["codes"] = steps[:, 0], whole
    return blocks.tobytes()


def _unknown_type(place: Path, tensor: Tensor) -> ModelError:
    return ModelError(
        f"{place.name}: {tensor.name} is of llama.cpp's type {tensor.kind}, which is not merged here",
        mend="use a base in F32, F16, Q4_1 or Q8_0",
    )
