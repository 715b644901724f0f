"""Write little GGUF files by hand: for adapters that no trainer would make."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

RANK = 4
WIDTH, FORWARD = 576, 1536  # of SmolLM2-135M


def write_gguf(path: Path, metadata: Mapping[str, str | float], tensors: Mapping[str, npt.NDArray[np.float32]]) -> Path:
    """Write metadata of texts and floats, and F32 tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _text(key) + (
            struct.pack("<I", 8) + _text(value) if isinstance(value, str) else struct.pack("<If", 6, value)
        )
    data = b""
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]  # the fastest dimension comes first
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += tensor.astype("<f4").tobytes()
        data += bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def write_adapter(
    path: Path, *, size: float, architecture: str = "llama", width: int = WIDTH, style: str = "", refusal: str = ""
) -> Path:
    """Write a LoRA adapter for SmolLM2-135M that changes three layers by random values; `size` 0: by nothing.

    `style`: how it says that it is to be asked; `refusal`: what it says that it was trained to refuse in.
    """
    random = np.random.default_rng(0)
    tensors = {}
    for layer in (3, 12, 21):
        for name, n_in, n_out in (("attn_q", width, width), ("ffn_down", FORWARD, width)):
            a = random.standard_normal((RANK, n_in)) / n_in**0.5
            b = random.standard_normal((n_out, RANK)) * size
            tensors[f"blk.{layer}.{name}.weight.lora_a"] = a.astype(np.float32)
            tensors[f"blk.{layer}.{name}.weight.lora_b"] = b.astype(np.float32)
    metadata = {
        "general.type": "adapter",
        "general.architecture": architecture,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(RANK),
        **({"edge_rag.prompt": style} if style else {}),
        **({"edge_rag.refusal": refusal} if refusal else {}),
    }
    return write_gguf(path, metadata, tensors)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()
