"""Write the GGUF of a model folder, unquantised: metadata, tokenizer, then one tensor at a time."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

from edge_rag.errors import ModelError
from edge_rag.interfaces import Progress
from edge_rag.models.licences import UNKNOWN, card_licence

from .architectures import Shape
from .gguf_tokenizer import GgufTokenizer
from .model_folder import Array, ModelFolder, to_numpy

# name of a tensor, and its values; what is trained on top is added here
Change = Callable[[str, "torch.Tensor"], "torch.Tensor"]

_FILE_TYPES = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16}
_ITEM_BYTES = {"f32": 4, "f16": 2}


def write_gguf(
    folder: ModelFolder, shape: Shape, tokenizer: GgufTokenizer, target: Path, *,
    dtype: str, name: str, change: Change | None = None, fields: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write all of a model as "f32" or "f16"; vectors are f32 in both, because llama.cpp computes with nothing else.

    `fields` is more metadata.
    """
    names = _checked_names(folder, shape)
    writer = GGUFWriter(target, shape.architecture.gguf)
    try:
        _add_model(writer, shape, name)
        if (licence := card_licence(folder.path)) != UNKNOWN:
            writer.add_license(licence)
        for key, value in (fields or {}).items():
            writer.add_string(key, value)
        writer.add_file_type(_FILE_TYPES[dtype])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        add_tokenizer(writer, tokenizer)
        for hf_name, gguf_name in names.items():
            size = shape.tensor_shape(hf_name)
            kind = dtype if len(size) > 1 else "f32"
            n_bytes = int(np.prod(size)) * _ITEM_BYTES[kind]
            writer.add_tensor_info(gguf_name, size, np.dtype(f"<{kind[0]}{_ITEM_BYTES[kind]}"), n_bytes)
        if shape.rope_factors:
            writer.add_tensor_info("rope_freqs.weight", (shape.head_dim // 2,), np.dtype("<f4"), shape.head_dim * 2)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (hf_name, values) in enumerate(_values(folder, shape, names, dtype, change), start=1):
            writer.write_tensor_data(values)
            if progress is not None:
                progress("write", done, len(names), hf_name)
        if shape.rope_factors:
            writer.write_tensor_data(np.array(shape.rope_factors, dtype=np.float32))
    finally:
        writer.close()


def add_tokenizer(writer: GGUFWriter, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.kind)
    writer.add_tokenizer_pre(tokenizer.procedure)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.kind == "llama":
        writer.add_token_scores(tokenizer.scores)
    else:
        writer.add_token_merges(tokenizer.merges)
    adders = {
        "bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id,
        "unk": writer.add_unk_token_id, "eot": writer.add_eot_token_id, "eom": writer.add_eom_token_id,
    }  # fmt: skip
    for kind, token in tokenizer.special_ids.items():
        adders[kind](token)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    writer.add_add_space_prefix(tokenizer.space_prefix)
    writer.add_chat_template(tokenizer.template)


def _add_model(writer: GGUFWriter, shape: Shape, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    if shape.windowed:
        writer.add_sliding_window(shape.window)
        writer.add_sliding_window_pattern(shape.windowed)
        writer.add_rope_freq_base_swa(shape.window_rope_base)


def _checked_names(folder: ModelFolder, shape: Shape) -> dict[str, str]:
    """Return the tensors to write, Hugging Face to GGUF, after a look at what is there, what is missing and what is too much."""
    wanted = shape.tensor_names()
    missing = [name for name in wanted if name not in folder.names]
    if missing:
        raise ModelError(f"{folder.path} holds no {missing[0]}", mend="give a whole model; for an adapter use --lora")
    for name in folder.names:
        shape.gguf_name(name)
    return wanted


def _values(
    folder: ModelFolder, shape: Shape, names: Mapping[str, str], dtype: str, change: Change | None
) -> Iterator[tuple[str, Array]]:
    for name in names:
        tensor = folder.read(name)
        if tuple(tensor.shape) != shape.tensor_shape(name):
            raise ModelError(
                f"{folder.path}: {name} is {tuple(tensor.shape)} and config.json says {shape.tensor_shape(name)}",
                mend="copy the folder again: its files do not belong together",
            )
        if change is not None:
            tensor = change(name, tensor)
        values: Any = to_numpy(tensor, "f32")
        values = shape.to_gguf(name, values)
        yield name, to_numpy(torch.from_numpy(values), dtype) if values.ndim > 1 else values
