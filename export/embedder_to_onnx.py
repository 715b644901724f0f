"""A MiniLM-like sentence embedder (Hugging Face files) to the int8 ONNX model that the runtime loads.

    python -m edge_rag.export.embedder_to_onnx SOURCE -o DIR

The graph is written node by node from the weights: ids of one text in, one unit vector out, with mean pooling and
normalisation inside. Tracing the torch model with `torch.onnx.export` and quantising the result gives 822 nodes where
this gives 82, takes four times as long to load, and loses more accuracy, because two things can only be done here:

- Activations are quantised with one scale for each matrix product, and a few channels of MiniLM are ten times larger
  than all others. They are divided by a constant before the product and their weights multiplied by it (SmoothQuant,
  Xiao et al. 2023, equation 4, with the constants rounded to powers of two, which makes the division exact and the
  export repeatable).
- There is no attention mask, no padding and no batch: the runtime gives each text to a core of its own, which is
  faster than any batch on a CPU, and makes a text's vector independent of its neighbours.

The report compares the result with the original in torch. All of it takes about a minute.
"""

import argparse
import hashlib
import json
import pydoc_data.topics
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from transformers import AutoModel

from edge_rag.errors import ModelError
from edge_rag.interfaces import Embedder
from edge_rag.models.embedder import OnnxEmbedder
from edge_rag.models.wordpiece import WordPiece

Array = npt.NDArray[np.float32]

GRAPH, WEIGHTS, VOCAB, MANIFEST = "model.int8.onnx", "model.int8.data", "vocab.txt", "model.json"
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators: fused attention, layer norm and quantised product
SMOOTH_WEIGHT = 0.7  # how much of an outlier goes from the activations into the weights; best of 0.3, 0.5 and 0.7
SMOOTH_LIMIT = 3.0  # activations after GELU are mostly below this; larger ones are scaled down to it


def main() -> None:
    parser = argparse.ArgumentParser(description="Sentence embedder to int8 ONNX")
    parser.add_argument("source", type=Path, help="folder with config.json, model.safetensors and vocab.txt")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write; made if absent")
    parser.add_argument("--name", default="all-minilm-l6-v2")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest text that the model was trained on")
    parser.add_argument(
        "--sample", type=Path, help="text file for calibration and parity; default: Python's own manual"
    )
    arguments = parser.parse_args()
    report = export(
        arguments.source,
        arguments.output,
        name=arguments.name,
        max_tokens=arguments.max_tokens,
        sample=arguments.sample,
    )
    print(json.dumps(report, indent=2))


def export(
    source: Path, output: Path, *, name: str, max_tokens: int, sample: Path | None = None, n_sample: int = 500
) -> dict[str, Any]:
    """Write graph, weights, vocabulary, manifest and parity report into `output`; return the report."""
    config = _read_config(source)
    vocab = (source / "vocab.txt").read_bytes()
    tokenizer = WordPiece.parse(vocab)
    texts = sample_texts(sample, tokenizer, max_tokens)[:n_sample]
    ids = [tokenizer.encode(text, max_tokens) for text in texts]
    original = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    peaks = _activation_peaks(original, ids[::5])

    output.mkdir(parents=True, exist_ok=True)
    weights = {key.removeprefix("bert."): value for key, value in load_file(source / "model.safetensors").items()}
    model = BertGraph(config, weights, peaks).build()
    (output / WEIGHTS).unlink(missing_ok=True)  # onnx.save would append to it
    onnx.save(model, output / GRAPH, save_as_external_data=True, location=WEIGHTS, size_threshold=1024)
    (output / WEIGHTS).chmod(0o644)  # onnx makes it readable to its owner only
    (output / VOCAB).write_bytes(vocab)
    manifest = {
        "name": name,
        "dim": config["hidden_size"],
        "max_tokens": max_tokens,
        "files": {file: _sha256(output / file) for file in (GRAPH, WEIGHTS, VOCAB)},
    }
    (output / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    unseen = [i for i in range(len(texts)) if i % 5]
    report = parity(OnnxEmbedder(output), [texts[i] for i in unseen], _embed(original, [ids[i] for i in unseen]))
    report |= {
        "n_nodes": len(model.graph.node),
        "size_bytes": sum((output / f).stat().st_size for f in manifest["files"]),
    }
    (output / "parity.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def parity(embedder: Embedder, texts: list[str], expected: Array) -> dict[str, Any]:
    """Compare with the original's vectors: cosines, and how many of each text's ten nearest neighbours stay."""
    found = embedder.embed(texts)
    cosines = np.sum(found * expected, axis=1)
    overlap = [len(set(a) & set(b)) / 10 for a, b in zip(_nearest(found), _nearest(expected), strict=True)]
    return {
        "n_texts": len(texts),
        "cosine_mean": round(float(cosines.mean()), 5),
        "cosine_min": round(float(cosines.min()), 5),
        "top10_overlap": round(float(np.mean(overlap)), 4),
    }


def sample_texts(sample: Path | None, tokenizer: WordPiece, max_tokens: int) -> list[str]:
    """Cut running text into pieces of whole paragraphs, most of them near `max_tokens`."""
    whole = "\n\n".join(pydoc_data.topics.topics.values()) if sample is None else sample.read_text(encoding="utf-8")
    texts, current = [], ""
    for paragraph in re.split(r"\n\s*\n", whole):
        longer = f"{current}\n\n{paragraph}" if current else paragraph
        if tokenizer.count(longer) > max_tokens and current:
            texts.append(current)
            longer = paragraph
        current = longer
    random.Random(0).shuffle(texts)
    return texts


class BertGraph:
    """Builds the ONNX graph of one BERT encoder. Values inside are (1, tokens, channels)."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Array], peaks: dict[str, Array]) -> None:
        """`peaks` maps a linear layer's name to the largest magnitude that each of its input channels takes."""
        self.config, self.weights, self.peaks = config, weights, peaks
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def build(self) -> onnx.ModelProto:
        x = self.embeddings()
        for i in range(self.config["num_hidden_layers"]):
            x = self.layer(x, f"encoder.layer.{i}.")
        pooled = self.node("ReduceSum", [x, self.constant("token_axis", np.array([1]))], keepdims=0)
        self.nodes.append(helper.make_node("LpNormalization", [pooled], ["embedding"], axis=1, p=2))
        dim = self.config["hidden_size"]
        graph = helper.make_graph(
            self.nodes,
            "embedder",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, dim])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="edge_rag")
        onnx.checker.check_model(model)
        return model

    def embeddings(self) -> str:
        """Words with one int8 scale for each row, plus positions, plus the (constant) first segment."""
        words = self.weights["embeddings.word_embeddings.weight"]
        scale = np.maximum(np.abs(words).max(axis=1, keepdims=True), 1e-12) / 127
        quantised = self.constant("words", np.round(words / scale).astype(np.int8))
        row = self.node("Cast", [self.node("Gather", [quantised, "input_ids"])], to=TensorProto.FLOAT)
        x = self.node("Mul", [row, self.node("Gather", [self.constant("word_scales", scale), "input_ids"])])
        positions = (
            self.weights["embeddings.position_embeddings.weight"]
            + self.weights["embeddings.token_type_embeddings.weight"][0]
        )
        n_tokens = self.node("Shape", ["input_ids"], start=1, end=2)
        start, axis = self.constant("zero", np.array([0])), self.constant("position_axis", np.array([0]))
        here = self.node("Slice", [self.constant("positions", positions), start, n_tokens, axis])
        norm = [self.constant(n, self.weights[n]) for n in ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias")]
        return self.node(
            "LayerNormalization", [self.node("Add", [x, here]), *norm], epsilon=self.config["layer_norm_eps"]
        )

    def layer(self, x: str, prefix: str) -> str:
        parts = [prefix + f"attention.self.{part}" for part in ("query", "key", "value")]
        qkv = self.linear(x, prefix + "qkv", parts, smooth=_smooth_weights)
        query, key, value = self.split(qkv, 3)
        attended = self.node(
            "MultiHeadAttention", [query, key, value], MICROSOFT, num_heads=self.config["num_attention_heads"]
        )
        projected = self.linear(attended, prefix + "attention.output", [prefix + "attention.output.dense"], smooth=None)
        x = self.add_and_normalise(projected, x, prefix + "attention.output.LayerNorm")
        up = self.linear(x, prefix + "up", [prefix + "intermediate.dense"], smooth=_smooth_weights)
        down = self.linear(self.node("Gelu", [up]), prefix + "down", [prefix + "output.dense"], smooth=_smooth_limit)
        return self.add_and_normalise(down, x, prefix + "output.LayerNorm")

    def linear(self, x: str, name: str, parts: list[str], *, smooth: "Smooth | None") -> str:
        """Multiply with the stacked weights of `parts`: int8, one scale for each output channel."""
        weight = np.concatenate([self.weights[part + ".weight"] for part in parts])  # (outputs, inputs)
        bias = np.concatenate([self.weights[part + ".bias"] for part in parts])
        if smooth is not None:
            factor = np.exp2(np.round(np.log2(smooth(self.peaks[parts[0]], weight)))).astype(np.float32)
            x = self.node("Mul", [x, self.constant(name + ".smooth", 1 / factor)])
            weight = weight * factor
        scale = np.abs(weight).max(axis=1) / 127
        quantised = np.round(weight / scale[:, None]).astype(np.int8)
        inputs = [
            x,
            self.constant(name + ".weight", np.ascontiguousarray(quantised.T)),
            self.constant(name + ".scale", scale),
            self.constant(name + ".zero", np.zeros(len(scale), np.int8)),
            self.constant(name + ".bias", bias),
        ]
        return self.node("DynamicQuantizeMatMul", inputs, MICROSOFT)

    def add_and_normalise(self, x: str, residual: str, name: str) -> str:
        norm = [self.constant(name + end, self.weights[name + end]) for end in (".weight", ".bias")]
        return self.node(
            "SkipLayerNormalization", [x, residual, *norm], MICROSOFT, epsilon=self.config["layer_norm_eps"]
        )

    def split(self, x: str, n: int) -> list[str]:
        outputs = [f"Split_{len(self.nodes)}_{i}" for i in range(n)]
        self.nodes.append(helper.make_node("Split", [x], outputs, axis=-1, num_outputs=n))
        return outputs

    def node(self, operator: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name


Smooth = Callable[[Array, Array], Array]  # peaks (inputs,) and weights (outputs, inputs) to divisors (inputs,)


def _smooth_weights(peaks: Array, weight: Array) -> Array:
    return np.asarray(np.maximum(peaks, 1e-5) ** SMOOTH_WEIGHT / np.abs(weight).max(axis=0) ** (1 - SMOOTH_WEIGHT))


def _smooth_limit(peaks: Array, weight: Array) -> Array:
    return np.asarray(np.maximum(peaks / SMOOTH_LIMIT, 1))


def _read_config(source: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    wanted = {"model_type": "bert", "hidden_act": "gelu"}
    for key, value in wanted.items():
        if config.get(key) != value:
            raise ModelError(f"{source}: {key} is {config.get(key)!r}; this export knows {value!r}")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(f"{source}: relative positions; this export knows absolute ones")
    return config


def _activation_peaks(model: Any, ids: Iterable[list[int]]) -> dict[str, Array]:
    peaks: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[Any, Any], None]:
        def note(_module: Any, inputs: Any) -> None:
            peak = inputs[0].abs().amax(dim=(0, 1))
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return note

    hooks = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    _embed(model, ids)
    for hook in hooks:
        hook.remove()
    return {name: peak.numpy() for name, peak in peaks.items()}


def _embed(model: Any, ids: Iterable[list[int]]) -> Array:
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([text])).last_hidden_state.mean(dim=1)[0] for text in ids]
        vectors: Array = torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()
    return vectors


def _nearest(vectors: Array) -> list[list[int]]:
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -1)
    return [list(map(int, row)) for row in np.argsort(-similar, axis=1)[:, :10]]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
