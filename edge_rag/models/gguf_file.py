"""Walk the header of a GGUF file before llama.cpp sees it: that library trusts more than it should, and may abort the
process.

Layout (little-endian): magic "GGUF", u32 version, u64 tensor count, u64 metadata count; the metadata (key, type,
value); the tensors (name, dimensions, type, offset); padding; the data.
"""

import math
import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from edge_rag.errors import ModelError

MEND = "pull the model again with --force"
MAX_ENTRIES = 1 << 20  # of tensors or metadata: far more than any model has
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# tensor type -> (values in a block, bytes of a block); types that are missing here are not checked for size
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
           11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 30: (1, 2)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dims: tuple[int, ...]  # the one whose values are neighbours comes first
    kind: int  # one of BLOCKS, or another of llama.cpp's
    offset: int  # in the file
    size: int  # bytes; 0 for a kind that is not in BLOCKS


@dataclass(frozen=True, slots=True)
class Head:
    texts: dict[str, str]  # the metadata that was wanted
    fields: dict[str, tuple[int, int]]  # where each key with its type and value begins and ends in the file
    tensors: tuple[Tensor, ...]


def check_gguf(path: Path, wanted: Collection[str] = ()) -> dict[str, str]:
    """Raise ModelError unless the header is whole and all tensors lie inside the file. Return the wanted texts of its head."""
    return read_head(path, wanted).texts


def read_head(path: Path, wanted: Collection[str] = ()) -> Head:
    """Return what stands where in a GGUF; ModelError unless the header is whole and all tensors lie inside the file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walker(data, wanted).walk()
    except FileNotFoundError:
        raise ModelError(
            f"there is no model file {path}", mend="check the path, or run: edge-rag models pull NAME"
        ) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", mend="check the path") from error
    except (ValueError, struct.error, OverflowError) as error:
        raise ModelError(f"{path} is no whole GGUF file: {error}", mend=MEND) from error


class _Walker:
    def __init__(self, data: mmap.mmap, wanted: Collection[str]) -> None:
        self.data = data
        self.wanted = wanted
        self.at = 0

    def walk(self) -> Head:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version, n_tensors, n_metadata = self.u32(), self.u64(), self.u64()
        if version not in (2, 3):
            raise ValueError(f"version {version}, this reads 2 and 3")
        if max(n_tensors, n_metadata) > MAX_ENTRIES:
            raise ValueError("impossible counts")
        alignment, texts, fields = 32, {}, {}
        for _ in range(n_metadata):
            begin = self.at
            name, kind = self.text(), self.u32()
            if name == "general.alignment" and kind == 4:
                alignment = self.u32()
            elif kind == _STRING and name in self.wanted:
                texts[name] = self.text()
            else:
                self.skip_value(kind)
            fields[name] = (begin, self.at)
        if alignment == 0 or alignment % 8:
            raise ValueError(f"alignment {alignment}")
        tensors = [self.tensor() for _ in range(n_tensors)]
        start = -(-self.at // alignment) * alignment
        tensors = [replace(tensor, offset=start + tensor.offset) for tensor in tensors]
        end = max((tensor.offset + tensor.size for tensor in tensors), default=0)
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, its data at {end}")
        return Head(texts, fields, tuple(tensors))

    def tensor(self) -> Tensor:
        name, n_dims = self.text(), self.u32()
        if not 1 <= n_dims <= 4:
            raise ValueError(f"a tensor of {n_dims} dimensions")
        dims = tuple(self.u64() for _ in range(n_dims))
        kind, offset = self.u32(), self.u64()
        values, size = BLOCKS.get(kind, (1, 0))
        return Tensor(name, dims, kind, offset, math.prod(dims) // values * size)

    def skip_value(self, kind: int) -> None:
        if kind in _SCALAR_BYTES:
            self.skip(_SCALAR_BYTES[kind])
        elif kind == _STRING:
            self.skip(self.u64())
        elif kind == _ARRAY:
            item, n = self.u32(), self.u64()
            if item in _SCALAR_BYTES:
                self.skip(n * _SCALAR_BYTES[item])
            elif item == _STRING:
                for _ in range(n):
                    self.skip(self.u64())
            else:
                raise ValueError("an array of arrays")
        else:
            raise ValueError(f"metadata of the unknown type {kind}")

    def text(self) -> str:
        n = self.u64()
        start = self.at
        self.skip(n)
        return self.data[start : self.at].decode("utf-8", "replace")

    def u32(self) -> int:
        self.skip(4)
        return int(_U32.unpack_from(self.data, self.at - 4)[0])

    def u64(self) -> int:
        self.skip(8)
        return int(_U64.unpack_from(self.data, self.at - 8)[0])

    def skip(self, n: int) -> None:
        self.at += n
        if self.at > len(self.data):
            raise ValueError(f"it ends inside its header, at byte {len(self.data)}")


_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
