"""A LoRA adapter, as peft saves it, to a GGUF that the runtime applies to the quantised base, or merges into it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from edge_rag.errors import UsageError
from edge_rag.interfaces import Progress, Style
from edge_rag.models.licences import UNKNOWN, card_licence

from . import outputs, parity
from .adapters import Adapter, check_fits, read_adapter
from .architectures import Shape
from .gguf_tokenizer import NFC_NOTE
from .gguf_writer import write_gguf
from .model_folder import to_numpy
from .sources import Source, foreign, prompt_of, read_source

TYPES = ("f16", "q8_0")


def export_lora(
    adapter_folder: Path, target: Path, lora_type: str = "f16", *, base: Path | None = None, prompt: Style | None = None,
    force: bool = False, timed: bool = True, threads: int = 0, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write `target` and its parity report; return the report.

    The base is needed for its shape and to compare: base and adapter as peft applies them, with the base in F32 and this file
    as llama.cpp applies them. `prompt` says how the adapter was trained to be asked, where its folder does not.
    """
    lora_type = lora_type.lower()
    if lora_type not in TYPES:
        raise UsageError(f"{lora_type!r} is no type of an adapter", mend=f"use one of {', '.join(TYPES)}")
    outputs.check_target(target, force=force)
    report = progress or _silent
    adapter = read_adapter(adapter_folder)
    if base is None:
        base = Path(adapter.base)
        if not adapter.base or not base.is_dir():
            raise UsageError(
                f"{adapter_folder} names {adapter.base!r} as its base, which is no folder here",
                mend="give it with --base",
            )
    source = read_source(base)
    check_fits(adapter, tuple(source.shape.tensor_names()), source.shape.tensor_shape, str(base))
    asked = prompt_of(adapter_folder, prompt)
    with outputs.workplace(target) as work:
        made = work / "adapter.gguf"
        write_adapter(adapter, source.shape, made, lora_type, licence=card_licence(adapter_folder), fields=asked)
        found = compare(
            source, base, adapter_folder, made, lora_type, work, timed=timed, threads=threads, progress=report
        )
        size = sum(path.stat().st_size for path in adapter_folder.glob("*.safetensors"))
        found = {
            "file": target.name, "type": lora_type, "source": adapter_folder.resolve().name,
            "size_bytes": made.stat().st_size, "source_size_bytes": size, "base": base.resolve().name,
            "rank": adapter.rank, "matrices": len(adapter.pairs), **found, "notes": list(source.tokenizer.notes),
        }  # fmt: skip
        outputs.refuse_if_failed(found, target)
        outputs.publish(made, target, found)
    return found


def compare(
    source: Source, base: Path, peft_folder: Path, lora: Path, lora_type: str, work: Path, *, timed: bool, threads: int,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Compare an adapter as peft applies it with the same one as llama.cpp does, on the base in F32; `work` is for that."""
    from .hf_models import open_original

    plain, tokenizer = work / "base.gguf", source.tokenizer
    write_gguf(source.folder, source.shape, tokenizer, plain, dtype="f32", name=base.resolve().name, progress=progress)
    progress("compare", 0, 0, "opening the original")
    with foreign(base):
        original = open_original(base, lora=peft_folder, threads=threads)
    with parity.Export(plain, lora_type, lora=lora, threads=threads) as export:
        progress("compare", 0, 0, "logits and tokens")
        found = parity.compare(original, export, stop_ids=tokenizer.stop_ids, composes=NFC_NOTE in tokenizer.notes)
    if timed:
        progress("time", 0, 0, "both, on this processor")
        with parity.Export(plain, lora_type, lora=lora, threads=threads, exact=False) as export:
            found["speed"] = parity.speeds(original, export)
    return found


def write_adapter(
    adapter: Adapter, shape: Shape, target: Path, lora_type: str = "f16", *, licence: str = UNKNOWN,
    fields: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write the matrices, those in Q8_0 whose rows are multiples of its 32 values. `fields` is more metadata.

    llama.cpp multiplies with alpha / rank: for rsLoRA alpha is written accordingly.
    """
    writer = GGUFWriter(target, shape.architecture.gguf)
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        if licence != UNKNOWN:
            writer.add_license(licence)
        for key, value in (fields or {}).items():
            writer.add_string(key, value)
        writer.add_float32("adapter.lora.alpha", adapter.scale * adapter.rank)
        for name, pair in adapter.pairs.items():
            stem = shape.gguf_name(name)
            a, b = to_numpy(pair.a, "f32"), shape.to_gguf(name, to_numpy(pair.b, "f32"))
            for part, values in (("lora_a", a), ("lora_b", b)):
                if lora_type == "q8_0" and values.shape[1] % 32 == 0:
                    blocks = quantize(values, GGMLQuantizationType.Q8_0)
                    writer.add_tensor(f"{stem}.{part}", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
                else:
                    writer.add_tensor(f"{stem}.{part}", to_numpy(torch.from_numpy(values), "f16"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    pass
