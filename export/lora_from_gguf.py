"""A LoRA adapter in GGUF back to a folder that peft opens: what `train --adapter` goes on from, the shipped model's own included.

What was rounded to 8 bits stays rounded: exported again in the same type, it is the same file.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file

from edge_rag.errors import ModelError
from edge_rag.interfaces import Progress
from edge_rag.models import prompt_style
from edge_rag.models.gguf_file import check_gguf

from . import outputs
from .adapters import WEIGHTS, check_fits, read_adapter
from .architectures import Shape
from .lora_to_gguf import compare
from .sources import foreign, read_source, write_card

_KINDS = ("general.type", "adapter.type", "general.architecture")


def export_peft(
    source: Path, target: Path, *, base: Path, threads: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the folder `target`, which must be new or empty, with its parity report; return the report.

    `base` is the Hugging Face folder of the model that the adapter is for.
    """
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    outputs.check_target(target, force=False, mend="give a folder that is not there yet")
    texts = check_gguf(source, wanted=(*_KINDS, *prompt_style.KEYS, prompt_style.LIST))
    if (texts.get("general.type"), texts.get("adapter.type")) != ("adapter", "lora"):
        raise ModelError(f"{source} is no adapter", mend="give a GGUF that export lora made, or use export hf")
    model = read_source(base)
    shape = model.shape
    if texts.get("general.architecture") != shape.architecture.gguf:
        raise ModelError(
            f"{source} is for the architecture {texts.get('general.architecture')}, {base} is {shape.architecture.gguf}",
            mend="give the base that it was trained on with --base",
        )
    with outputs.workplace(target) as work:
        made = work / "made"
        made.mkdir()
        with foreign(source):
            tensors, alpha, kinds = _read(source, shape)
        _write(made, tensors, alpha, base)
        write_card(made, source, "export peft")
        if asked := {key: text for key, text in texts.items() if key not in _KINDS}:
            prompt_style.write_note(made, asked)
        adapter = read_adapter(made)
        check_fits(adapter, tuple(shape.tensor_names()), shape.tensor_shape, str(base))
        lora_type = "q8_0" if GGMLQuantizationType.Q8_0 in kinds else "f16"
        found = compare(
            model, base, made, source, lora_type, work, timed=False, threads=threads, progress=progress or _silent
        )
        found = {
            "file": target.name, "type": lora_type, "source": source.name, "base": base.resolve().name,
            "size_bytes": (made / WEIGHTS).stat().st_size, "source_size_bytes": source.stat().st_size,
            "rank": adapter.rank, "matrices": len(adapter.pairs), **found, "notes": list(model.tokenizer.notes),
        }  # fmt: skip
        outputs.refuse_if_failed(found, target)
        outputs.publish_folder(made, target, found)
    return found


def _read(source: Path, shape: Shape) -> tuple[dict[str, torch.Tensor], float, set[GGMLQuantizationType]]:
    """Return the matrices by peft's names, alpha, and the types that they were stored in."""
    reader = GGUFReader(source)
    names = {gguf: hf for hf, gguf in shape.tensor_names().items()}
    found: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        stem, _, part = tensor.name.rpartition(".")
        if stem not in names or part not in ("lora_a", "lora_b"):
            raise ModelError(
                f"{source} changes {tensor.name}, which its base does not hold", mend="give another --base"
            )
        name = names[stem]
        size = tuple(reversed(tensor.shape.tolist()))
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(size)
        if part == "lora_b":
            values = shape.from_gguf(name, values)
        place = f"base_model.model.{name.removesuffix('.weight')}.lora_{part[-1].upper()}.weight"
        found[place] = torch.from_numpy(np.array(values, order="C"))
    if "adapter.lora.alpha" not in reader.fields:
        raise ModelError(f"{source} does not say how strong it is", mend="export it again with export lora")
    return (
        found,
        float(reader.fields["adapter.lora.alpha"].contents()),
        {tensor.tensor_type for tensor in reader.tensors},
    )


def _write(folder: Path, tensors: dict[str, torch.Tensor], alpha: float, base: Path) -> None:
    import peft

    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    rank = next((len(values) for name, values in tensors.items() if ".lora_A." in name), 0)
    matrices = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    config = peft.LoraConfig(
        r=rank, lora_alpha=int(alpha) if alpha.is_integer() else alpha, target_modules=matrices, task_type="CAUSAL_LM",
        inference_mode=True, base_model_name_or_path=str(base.resolve()),
    )  # fmt: skip
    config.save_pretrained(folder)


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    pass
