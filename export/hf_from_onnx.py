"""An embedder that `export onnx` made back to a Hugging Face folder: what a selector can be trained from, without a download.

int8 weights become what they stand for, which is near the original; each of the two other things that the graph no longer
tells apart takes the simplest value: segments are added to the positions already, so their own embeddings are zero, and the
pooler, which no embedder uses, is left out.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from onnx import numpy_helper
from safetensors.torch import save_file

from edge_rag.errors import ModelError
from edge_rag.interfaces import Progress
from edge_rag.models import catalog
from edge_rag.models.licences import UNKNOWN, card_licence
from edge_rag.models.onnx_folder import VOCAB, graph_name, read_folder

from . import onnx_parity, outputs
from .model_folder import SINGLE
from .onnx_graph import Array
from .onnx_source import Original, plan

N_TEXTS = 100


def export_hf_encoder(
    source: Path, target: Path, *, threads: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the folder `target`, which must be new or empty, with its parity report; return the report."""
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    outputs.check_target(target, force=False, mend="give a folder that is not there yet")
    folder = read_folder(source, "embedder")
    precision = "fp32" if "fp32" in folder.precisions else folder.precisions[0]
    with outputs.workplace(target) as work:
        made = work / "made"
        made.mkdir()
        if progress:
            progress("read", 0, 0, str(source))
        tokenizer, _ = folder.open(precision)  # every byte checked
        graph = onnx.load(source / graph_name(precision))
        constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
        if VOCAB not in folder.hashes or "encoder.layer.0.qkv.weight" not in constants:
            raise ModelError(
                f"{source} is no uncased BERT", mend="take the Hugging Face folder that it was exported from"
            )
        config = _config(graph, constants)
        config.save_pretrained(made)
        weights = _weights(constants, config.num_hidden_layers)
        save_file(
            {name: torch.from_numpy(np.array(values, np.float32, order="C")) for name, values in weights.items()},
            made / SINGLE,
            metadata={"format": "pt"},
        )
        (made / SINGLE).chmod(0o644)  # safetensors makes it readable to its owner only
        (made / VOCAB).write_bytes((source / VOCAB).read_bytes())
        words = transformers.BertTokenizerFast(vocab=str(made / VOCAB), model_max_length=folder.max_tokens)
        words.save_pretrained(made)
        _write_modules(made, "mean" if any(n.op_type == "ReduceSum" for n in graph.graph.node) else "cls", config)
        _write_card(made, source, folder.name)
        if progress:
            progress("compare", 0, 0, "vectors")
        original = Original(plan(made, "embedder"), threads=threads)
        texts = onnx_parity.sample_texts(None, tokenizer.count, onnx_parity.PIECE_TOKENS)[:N_TEXTS]
        figures = onnx_parity.compare_embedder(source, precision, texts, original.embed(texts), threads)
        failed = onnx_parity.below_floors("embedder", precision, figures)
        if failed:
            raise ModelError(f"{target} was not written: {'; '.join(failed)}", mend="report this embedder")
        found = {"file": target.name, "source": folder.name, "precision": precision,
                 "size_bytes": sum(path.stat().st_size for path in made.rglob("*") if path.is_file()),
                 "floors": onnx_parity.FLOORS["embedder", precision]} | figures  # fmt: skip
        outputs.publish_folder(made, target, found)
    return found


def _config(graph: Any, constants: dict[str, Array]) -> Any:
    """Return the configuration that the graph was written from."""
    attributes = {(n.op_type, a.name): a for n in graph.graph.node for a in n.attribute}
    n_words, width = constants["words"].shape
    return transformers.BertConfig(
        vocab_size=n_words,
        hidden_size=width,
        num_hidden_layers=sum(name.endswith(".qkv.weight") for name in constants),
        num_attention_heads=attributes["MultiHeadAttention", "num_heads"].i,
        intermediate_size=constants["encoder.layer.0.up.weight"].shape[1],
        max_position_embeddings=len(constants["positions"]),
        layer_norm_eps=float(f"{attributes['LayerNormalization', 'epsilon'].f:.1e}"),
        architectures=["BertModel"],
    )


def _weights(constants: dict[str, Array], n_layers: int) -> dict[str, Array]:
    words = constants["words"] * constants.get("word_scales", np.float32(1))
    found = {
        "embeddings.word_embeddings.weight": words,
        "embeddings.position_embeddings.weight": constants["positions"],
        "embeddings.token_type_embeddings.weight": np.zeros((2, words.shape[1])),
    }
    for layer in (f"encoder.layer.{i}." for i in range(n_layers)):
        query_key_value = zip(*(np.split(part, 3) for part in _linear(constants, layer + "qkv")), strict=True)
        for name, part in zip(("query", "key", "value"), query_key_value, strict=True):
            found |= _named(f"{layer}attention.self.{name}", part)
        for name, own in (
            ("attention.output.dense", "attention.output"),
            ("intermediate.dense", "up"),
            ("output.dense", "down"),
        ):
            found |= _named(layer + name, _linear(constants, layer + own))
    return found | {name: value for name, value in constants.items() if "LayerNorm." in name}


def _linear(constants: dict[str, Array], name: str) -> tuple[Array, Array]:
    """Return weight (outputs, inputs) and bias of a layer, as it was before it was quantised."""
    weight = constants[name + ".weight"].T * constants.get(name + ".scale", np.ones(1, np.float32))[:, None]
    return weight * constants.get(name + ".smooth", np.float32(1)), constants[name + ".bias"]


def _named(name: str, both: tuple[Array, Array]) -> dict[str, Array]:
    return {f"{name}.weight": both[0], f"{name}.bias": both[1]}


def _write_modules(folder: Path, pooling: str, config: Any) -> None:
    """Say how token states become a vector, as sentence-transformers does."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    modes = {"word_embedding_dimension": config.hidden_size, "pooling_mode_cls_token": pooling == "cls",
             "pooling_mode_mean_tokens": pooling == "mean"}  # fmt: skip
    for kind, content in (("1_Pooling", modes), ("2_Normalize", {})):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_card(folder: Path, source: Path, name: str) -> None:
    """Write a model card of a few lines, so that the licence goes on with the model."""
    licence = card_licence(source)
    entry = catalog.find(name)
    if licence == UNKNOWN and entry is not None:
        licence = entry.licence
    head = "" if licence == UNKNOWN else f"---\nlicense: {licence}\n---\n"
    text = f"{head}Made from the embedder {name} by `edge-rag export hf`.\n"
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")
