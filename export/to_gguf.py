"""A Hugging Face folder, or a base and its LoRA merged, to one GGUF that was compared with its original."""

from pathlib import Path
from typing import Any

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Progress, Style
from edge_rag.models.quantise import requantize

from . import outputs, parity
from .adapters import check_fits, read_adapter
from .gguf_tokenizer import NFC_NOTE, GgufTokenizer
from .gguf_writer import write_gguf
from .sources import foreign, prompt_of, read_source

TYPES = tuple(parity.FLOORS)
WRITTEN_DIRECTLY = ("f32", "f16")


def export_gguf(
    model: Path, target: Path, quantised_type: str = "q8_0", *, lora: Path | None = None,
    prompt: Style | None = None, force: bool = False, timed: bool = True, threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write `target` and its parity report; return the report.

    `prompt` says how the model was trained to be asked, where its folder, or its adapter's, does not.
    ModelError if the model is not one that llama.cpp runs alike, or if the export is below a floor: then nothing is written.
    """
    quantised_type = quantised_type.lower()
    if quantised_type not in TYPES:
        raise UsageError(f"{quantised_type!r} is no type to export", mend=f"use one of {', '.join(TYPES)}")
    outputs.check_target(target, force=force)
    report = progress or _silent
    source = read_source(model)
    folder, shape, tokenizer = source.folder, source.shape, source.tokenizer
    from .hf_models import open_original

    adapter = read_adapter(lora) if lora is not None else None
    if adapter is not None:
        check_fits(adapter, tuple(shape.tensor_names()), shape.tensor_shape, str(model))
    asked = prompt_of(lora or model, prompt)
    name = model.resolve().name + (f" + {lora.resolve().name}" if lora else "")
    with outputs.workplace(target) as work:
        whole = work / "whole.gguf"
        dtype = quantised_type if quantised_type in WRITTEN_DIRECTLY else "f32"
        write_gguf(
            folder,
            shape,
            tokenizer,
            whole,
            dtype=dtype,
            name=name,
            change=adapter.merge if adapter else None,
            fields=asked,
            progress=report,
        )
        made = whole
        if quantised_type not in WRITTEN_DIRECTLY:
            report("quantise", 0, 0, quantised_type)
            made = work / "quantised.gguf"
            try:
                requantize(whole, made, quantised_type.upper())
            except ModelError as error:
                raise ModelError(
                    f"{model} could not be quantised to {quantised_type.upper()}",
                    mend=f"check the free space in {target.parent}, and export again",
                ) from error
            whole.unlink()
        report("compare", 0, 0, "opening the original")
        with foreign(model):
            original = open_original(model, lora=lora, threads=threads)
        found = _compared(original, made, quantised_type, tokenizer, timed=timed, threads=threads, progress=report)
        found = {"file": target.name, "type": quantised_type, "source": name, "size_bytes": made.stat().st_size,
                 "source_size_bytes": folder.size_bytes(), "source_tokenizer": tokenizer.procedure} | found  # fmt: skip
        outputs.refuse_if_failed(found, target)
        outputs.publish(made, target, found)
    return found


def _compared(
    original: parity.Original, made: Path, quantised_type: str, tokenizer: GgufTokenizer, *,
    timed: bool, threads: int, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    with parity.Export(made, quantised_type, threads=threads) as export:
        progress("compare", 0, 0, "logits and tokens")
        found = parity.compare(original, export, stop_ids=tokenizer.stop_ids, composes=NFC_NOTE in tokenizer.notes)
    if timed:
        progress("time", 0, 0, "both, on this processor")
        with parity.Export(made, quantised_type, threads=threads, exact=False) as export:
            found["speed"] = parity.speeds(original, export)
    found["notes"] = list(tokenizer.notes)
    return found


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    pass
