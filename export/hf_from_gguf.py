"""A GGUF back to a Hugging Face folder that can be trained: the weights in float32, and a tokenizer that gives llama.cpp's ids.

transformers can load a GGUF by itself, but what it then saves is not the model: the digits step of the tokenizer is lost, and
versions differ in where they look for the rope's base. So every part is written here, and compared with llama.cpp.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from safetensors.torch import save_file

from edge_rag.errors import ModelError
from edge_rag.interfaces import Progress
from edge_rag.models import prompt_style
from edge_rag.models.gguf_file import check_gguf
from edge_rag.models.quantise import requantize

from . import outputs, parity
from .architectures import Shape, find_gguf
from .gguf_tokenizer import NFC_NOTE, GgufTokenizer, build_tokenizer, composes
from .model_folder import SINGLE
from .sources import foreign, write_card


def export_hf(source: Path, target: Path, *, threads: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Write the folder `target`, which must be new or empty, with its parity report; return the report."""
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    outputs.check_target(target, force=False, mend="give a folder that is not there yet")
    report = progress or _silent
    asked = check_gguf(source, wanted=prompt_style.KEYS)
    with foreign(source):
        reader = GGUFReader(source)
        shape = read_shape(reader, str(source))
        tokenizer = read_tokenizer_fields(reader, str(source))
        rebuilt = build_tokenizer(tokenizer, str(source))
    from .hf_models import open_original, save_config, save_tokenizer

    with outputs.workplace(target) as work:
        made = work / "made"
        made.mkdir()
        save_tokenizer(made, rebuilt, tokenizer, shape.context)
        save_config(made, shape, tokenizer)
        write_card(made, source, "export hf")
        if asked:
            prompt_style.write_note(made, asked)
        tensors = {}
        for done, (name, values) in enumerate(_values(reader, shape, str(source)), start=1):
            tensors[name] = torch.from_numpy(values)
            report("read", done, len(shape.tensor_names()), name)
        save_file(tensors, made / SINGLE, metadata={"format": "pt"})
        del tensors
        report("compare", 0, 0, "logits and tokens")
        plain = work / "f32.gguf"
        requantize(source, plain, "F32")  # by llama.cpp: nothing of what is tested here takes part
        with parity.Export(plain, "f32", threads=threads) as export:
            found = parity.compare(
                open_original(made, threads=threads), export,
                stop_ids=tokenizer.stop_ids, composes=bool(tokenizer.notes), trains=True,
            )  # fmt: skip
        size = sum(path.stat().st_size for path in made.iterdir())
        found = {"file": target.name, "type": "f32", "source": source.name, "size_bytes": size,
                 "source_size_bytes": source.stat().st_size, "source_tokenizer": tokenizer.procedure} | found  # fmt: skip
        found["notes"] = list(tokenizer.notes)
        outputs.refuse_if_failed(found, target)
        outputs.publish_folder(made, target, found)
    return found


def read_shape(reader: GGUFReader, place: str) -> Shape:
    """Read what llama.cpp is told of a model."""
    kind = _field(reader, "general.architecture", place)
    architecture = find_gguf(kind, place)
    if architecture.has_windows:
        raise _refused(place, f"the windowed layers of {kind} are not brought back")
    if f"{kind}.rope.scaling.type" in reader.fields and _field(reader, f"{kind}.rope.scaling.type", place) != "none":
        raise _refused(place, "its rope is scaled")
    names = {tensor.name for tensor in reader.tensors}
    if "rope_freqs.weight" in names:
        raise _refused(place, "its rope is scaled")

    def number(key: str, default: Any = None) -> Any:
        return _field(reader, f"{kind}.{key}", place, default)

    heads, hidden = number("attention.head_count"), number("embedding_length")
    return Shape(
        architecture=architecture,
        n_layers=number("block_count"),
        n_heads=heads,
        n_kv_heads=number("attention.head_count_kv", heads),
        head_dim=number("attention.key_length", hidden // heads),
        hidden=hidden,
        feed_forward=number("feed_forward_length"),
        context=number("context_length"),
        vocab=len(_field(reader, "tokenizer.ggml.tokens", place)),
        norm_epsilon=_shortest(number("attention.layer_norm_rms_epsilon")),
        rope_base=_shortest(number("rope.freq_base", 10_000.0)),
        tied="output.weight" not in names,
    )


def read_tokenizer_fields(reader: GGUFReader, place: str) -> GgufTokenizer:
    """Read what llama.cpp is told of a tokenizer."""
    if (model := _field(reader, "tokenizer.ggml.model", place)) != "gpt2":
        raise _refused(place, f"its tokenizer is of the kind {model!r}")
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot", "eom": "eom"}
    ids = {kind: _field(reader, f"tokenizer.ggml.{key}_token_id", place, -1) for kind, key in keys.items()}
    special_ids = {kind: i for kind, i in ids.items() if i >= 0}
    if "eos" not in special_ids:
        raise _refused(place, "it names no token that ends an answer")
    tokens = _field(reader, "tokenizer.ggml.tokens", place)
    procedure = _field(reader, "tokenizer.ggml.pre", place)
    return GgufTokenizer(
        procedure=procedure,
        tokens=tokens,
        types=_field(reader, "tokenizer.ggml.token_type", place, [int(TokenType.NORMAL)] * len(tokens)),
        merges=_field(reader, "tokenizer.ggml.merges", place),
        special_ids=special_ids,
        add_bos=_field(reader, "tokenizer.ggml.add_bos_token", place, False),
        add_eos=_field(reader, "tokenizer.ggml.add_eos_token", place, False),
        template=_field(reader, "tokenizer.chat_template", place),
        stop_ids=tuple(dict.fromkeys(special_ids[kind] for kind in ("eos", "eot", "eom") if kind in special_ids)),
        notes=(NFC_NOTE,) if composes(procedure) else (),
    )


def _values(reader: GGUFReader, shape: Shape, place: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the tensors in float32, under their Hugging Face names."""
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = shape.tensor_names()
    if extra := stored.keys() - set(names.values()):
        raise _refused(place, f"its tensor {min(extra)} has no place in a {shape.architecture.hf}")
    for hf_name, gguf_name in names.items():
        if gguf_name not in stored:
            raise _refused(place, f"it holds no {gguf_name}", "pull the model again")
        tensor = stored[gguf_name]
        size = shape.tensor_shape(hf_name)
        if tuple(reversed(tensor.shape.tolist())) != size:
            raise _refused(place, f"{gguf_name} is not {size}", "pull the model again")
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(size)
        yield hf_name, np.array(shape.from_gguf(hf_name, values))


def _field(reader: GGUFReader, key: str, place: str, default: Any = None) -> Any:
    field = reader.fields.get(key)
    if field is None:
        if default is None:
            raise _refused(place, f"it does not say {key}")
        return default
    return field.contents()


def _shortest(value: float) -> float:
    """Return the shortest number that is the same in 32 bits: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _refused(place: str, why: str, mend: str = "it cannot be turned into a training folder") -> ModelError:
    return ModelError(f"{place}: {why}", mend=mend)


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    pass
