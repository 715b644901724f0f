"""Transformer encoders written to ONNX node by node: ids of one text in, one unit vector or one logit out.

Tracing the torch model with `torch.onnx.export` and quantising the result gives 822 nodes where this gives 82, takes four
times as long to load, and loses more accuracy, because two things can only be done here:

- Activations are quantised with one scale for each matrix product, and a few channels of MiniLM are ten times larger
  than all others. They are divided by a constant before the product and their weights multiplied by it (SmoothQuant,
  Xiao et al. 2023, equation 4, with the constants rounded to powers of two, which makes the division exact and the
  export repeatable).
- There is no attention mask, no padding and no batch: the runtime gives each text to a core of its own, which is
  faster than any batch on a CPU, and makes a text's result independent of its neighbours.

`BertGraph` knows BERT, RoBERTa and XLM-R, `ModernBertGraph` ModernBERT; each as an embedder (pooling and normalisation
inside) and as a cross-encoder with one logit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators: fused attention, layer norm and quantised product
SMOOTH_WEIGHT = 0.7  # how much of an outlier goes from the activations into the weights; best of 0.3, 0.5 and 0.7
SMOOTH_LIMIT = 3.0  # activations after GELU are mostly below this; larger ones are scaled down to it


class Graph(ABC):
    """Builds the graph of one encoder. Values inside are (1, tokens, channels)."""

    norm_eps: float

    def __init__(self, config: Any, weights: dict[str, Array], peaks: dict[str, Array] | None) -> None:
        """`peaks` maps a linear layer's name to the largest magnitude that each of its input channels takes.

        Without peaks the graph is fp32, with them int8.
        """
        self.config, self.weights, self.peaks = config, weights, peaks
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = ["input_ids"]

    @abstractmethod
    def encode(self) -> str:
        """Return the last hidden state."""

    @abstractmethod
    def classify(self, x: str) -> str:
        """Return what stands before the last layer of the classifier, (1, channels)."""

    def embedder(self, pooling: str) -> onnx.ModelProto:
        x = self.encode()
        # The length of a vector is lost in the normalisation, so a sum is as good as a mean.
        pooled = self.sum_of_tokens(x) if pooling == "mean" else self.first_token(x)
        self.nodes.append(helper.make_node("LpNormalization", [pooled], ["embedding"], axis=1, p=2))
        return self._model("embedder", "embedding", self.config.hidden_size)

    def scorer(self) -> onnx.ModelProto:
        """Make a cross-encoder: question and passage as one text in, one logit out."""
        last = "classifier.out_proj" if "classifier.out_proj.weight" in self.weights else "classifier"
        inputs = [self.classify(self.encode()), *self.parameters(last)]
        self.nodes.append(helper.make_node("Gemm", inputs, ["logit"], transB=1))
        return self._model("scorer", "logit", 1)

    def _model(self, name: str, output: str, width: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(value, TensorProto.INT64, [1, "tokens"]) for value in self.inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, width])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="edge_rag")

    # --- parts ---

    def words(self, name: str) -> str:
        """Look up word embeddings: int8 with one scale for each row."""
        words = self.weights[name]
        if self.peaks is None:
            return self.node("Gather", [self.constant("words", words), "input_ids"])
        scale = np.maximum(np.abs(words).max(axis=1, keepdims=True), 1e-12) / 127
        quantised = self.constant("words", np.round(words / scale).astype(np.int8))
        row = self.node("Cast", [self.node("Gather", [quantised, "input_ids"])], to=TensorProto.FLOAT)
        return self.node("Mul", [row, self.node("Gather", [self.constant("word_scales", scale), "input_ids"])])

    def linear(self, x: str, name: str, parts: list[str], *, smooth: "Smooth | None") -> str:
        """Multiply with the stacked weights of `parts`: int8, one scale for each output channel."""
        weight = np.concatenate([self.weights[part + ".weight"] for part in parts])  # (outputs, inputs)
        biases = [self.weights[part + ".bias"] for part in parts if part + ".bias" in self.weights]
        if self.peaks is None:
            product = self.node("MatMul", [x, self.constant(name + ".weight", np.ascontiguousarray(weight.T))])
            return (
                self.node("Add", [product, self.constant(name + ".bias", np.concatenate(biases))])
                if biases
                else product
            )
        if smooth is not None:
            factor = np.exp2(np.round(np.log2(smooth(self.peaks[parts[0]], weight)))).astype(np.float32)
            x = self.node("Mul", [x, self.constant(name + ".smooth", 1 / factor)])
            weight = weight * factor
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / 127
        quantised = np.round(weight / scale[:, None]).astype(np.int8)
        inputs = [
            x,
            self.constant(name + ".weight", np.ascontiguousarray(quantised.T)),
            self.constant(name + ".scale", scale),
            self.constant(name + ".zero", np.zeros(len(scale), np.int8)),
        ]
        if biases:
            inputs.append(self.constant(name + ".bias", np.concatenate(biases)))
        return self.node("DynamicQuantizeMatMul", inputs, MICROSOFT)

    def dense(self, x: str, name: str) -> str:
        """Multiply one vector, (1, channels), in fp32: too small to be worth quantising."""
        return self.node("Gemm", [x, *self.parameters(name)], transB=1)

    def normalise(self, x: str, name: str) -> str:
        return self.node("LayerNormalization", [x, *self.parameters(name)], epsilon=self.norm_eps)

    def add_and_normalise(self, x: str, residual: str, name: str) -> str:
        return self.node(
            "SkipLayerNormalization", [x, residual, *self.parameters(name)], MICROSOFT, epsilon=self.norm_eps
        )

    def parameters(self, name: str) -> list[str]:
        """Return a layer's weight, and its bias if it has one, as constants."""
        full = [name + end for end in (".weight", ".bias") if name + end in self.weights]
        return [self.constant(parameter, self.weights[parameter]) for parameter in full]

    def sum_of_tokens(self, x: str) -> str:
        return self.node("ReduceSum", [x, self.constant("token_axis", np.array([1]))], keepdims=0)

    def first_token(self, x: str) -> str:
        return self.node("Gather", [x, self.constant("first", np.array(0))], axis=1)

    def n_tokens(self) -> str:
        return self.node("Shape", ["input_ids"], start=1, end=2)

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


class BertGraph(Graph):
    """BERT, RoBERTa and XLM-R: learned positions, normalisation after each part."""

    def __init__(self, config: Any, weights: dict[str, Array], peaks: dict[str, Array] | None, *, pairs: bool) -> None:
        """`pairs`: the model tells question from passage by segment ids, where it has any."""
        super().__init__(config, weights, peaks)
        self.norm_eps = config.layer_norm_eps
        self.segmented = pairs and config.type_vocab_size > 1
        if self.segmented:
            self.inputs.append("token_type_ids")

    def encode(self) -> str:
        x = self.embeddings()
        for i in range(self.config.num_hidden_layers):
            x = self.layer(x, f"encoder.layer.{i}.")
        return x

    def classify(self, x: str) -> str:
        name = "pooler.dense" if "pooler.dense.weight" in self.weights else "classifier.dense"
        return self.node("Tanh", [self.dense(self.first_token(x), name)])

    def embeddings(self) -> str:
        """Add words, positions and segments; without segments, the first one."""
        x = self.words("embeddings.word_embeddings.weight")
        segments = self.weights["embeddings.token_type_embeddings.weight"]
        positions = self.weights["embeddings.position_embeddings.weight"][first_position(self.config) :]
        if self.segmented:
            x = self.node("Add", [x, self.node("Gather", [self.constant("segments", segments), "token_type_ids"])])
        else:
            positions = positions + segments[0]
        n_tokens = self.n_tokens()
        start, axis = self.constant("zero", np.array([0])), self.constant("position_axis", np.array([0]))
        here = self.node("Slice", [self.constant("positions", positions), start, n_tokens, axis])
        norm = self.parameters("embeddings.LayerNorm")
        return self.node("LayerNormalization", [self.node("Add", [x, here]), *norm], epsilon=self.norm_eps)

    def layer(self, x: str, prefix: str) -> str:
        parts = [prefix + f"attention.self.{part}" for part in ("query", "key", "value")]
        query, key, value = self.split(self.linear(x, prefix + "qkv", parts, smooth=_smooth_weights), 3)
        attended = self.node(
            "MultiHeadAttention", [query, key, value], MICROSOFT, num_heads=self.config.num_attention_heads
        )
        projected = self.linear(attended, prefix + "attention.output", [prefix + "attention.output.dense"], smooth=None)
        x = self.add_and_normalise(projected, x, prefix + "attention.output.LayerNorm")
        up = self.linear(x, prefix + "up", [prefix + "intermediate.dense"], smooth=_smooth_weights)
        down = self.linear(self.node("Gelu", [up]), prefix + "down", [prefix + "output.dense"], smooth=_smooth_limit)
        return self.add_and_normalise(down, x, prefix + "output.LayerNorm")


class ModernBertGraph(Graph):
    """ModernBERT: rotated positions, attention to near tokens in most layers, gated GELU, normalisation before each part."""

    def __init__(self, config: Any, weights: dict[str, Array], peaks: dict[str, Array] | None, *, pairs: bool) -> None:
        super().__init__(config, weights, peaks)
        self.norm_eps = config.norm_eps

    def encode(self) -> str:
        self.first = self.constant("position", np.array([0]))
        self.far = self.far_tokens()
        self.rotations = {kind: self.rotation(kind) for kind in sorted(set(self.config.layer_types))}
        x = self.normalise(self.words("embeddings.tok_embeddings.weight"), "embeddings.norm")
        for i, kind in enumerate(self.config.layer_types):
            x = self.layer(x, f"layers.{i}.", kind)
        return self.normalise(x, "final_norm")

    def classify(self, x: str) -> str:
        if self.config.classifier_pooling == "mean":
            pooled = self.node("ReduceMean", [x, self.constant("token_axis", np.array([1]))], keepdims=0)
        else:
            pooled = self.first_token(x)
        return self.normalise(self.node("Gelu", [self.dense(pooled, "head.dense")]), "head.norm")

    def layer(self, x: str, prefix: str, kind: str) -> str:
        near = x if prefix == "layers.0." else self.normalise(x, prefix + "attn_norm")
        qkv = self.linear(near, prefix + "qkv", [prefix + "attn.Wqkv"], smooth=_smooth_weights)
        query, key, value = self.split(qkv, 3)
        inputs = [self.rotate(query, kind), self.rotate(key, kind), value]
        if kind == "sliding_attention":
            inputs += ["", "", self.far]
        attended = self.node("MultiHeadAttention", inputs, MICROSOFT, num_heads=self.config.num_attention_heads)
        x = self.node("Add", [x, self.linear(attended, prefix + "attended", [prefix + "attn.Wo"], smooth=None)])
        wide = self.linear(
            self.normalise(x, prefix + "mlp_norm"), prefix + "up", [prefix + "mlp.Wi"], smooth=_smooth_weights
        )
        inner, gate = self.split(wide, 2)
        gated = self.node("Mul", [self.node("Gelu", [inner]), gate])
        return self.node("Add", [x, self.linear(gated, prefix + "down", [prefix + "mlp.Wo"], smooth=_smooth_limit)])

    def rotation(self, kind: str) -> list[str]:
        """Return cosines and sines of the angles at each position."""
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        theta = self.config.rope_parameters[kind]["rope_theta"]
        speeds = 1.0 / theta ** (np.arange(half, dtype=np.float64) / half)
        angles = np.outer(np.arange(self.config.max_position_embeddings), speeds)
        return [
            self.constant(f"{kind}.{name}", function(angles).astype(np.float32))
            for name, function in (("cos", np.cos), ("sin", np.sin))
        ]

    def rotate(self, x: str, kind: str) -> str:
        heads = self.config.num_attention_heads
        return self.node("RotaryEmbedding", [x, self.first, *self.rotations[kind]], MICROSOFT, num_heads=heads)

    def far_tokens(self) -> str:
        """Return what keeps a token from attending to those beyond the window, (1, 1, tokens, tokens): 0 or very negative."""
        axis = self.constant("all", np.array([0]))
        count = self.node("Squeeze", [self.n_tokens(), axis])
        zero, one = self.constant("zero", np.array(0)), self.constant("one", np.array(1))
        row = self.node("Range", [zero, count, one])
        column = self.node("Unsqueeze", [row, self.constant("last", np.array([1]))])
        distance = self.node("Abs", [self.node("Sub", [row, column])])
        window = self.constant("window", np.array(self.config.sliding_window))
        far = self.node("Cast", [self.node("Greater", [distance, window])], to=TensorProto.FLOAT)
        bias = self.node("Mul", [far, self.constant("never", np.array(-1e9, np.float32))])
        return self.node("Unsqueeze", [bias, self.constant("leading", np.array([0, 1]))])


def first_position(config: Any) -> int:
    """Return which row of the position embeddings a text's first token takes: RoBERTa's count from the padding id on."""
    return int(config.pad_token_id) + 1 if config.model_type in ("roberta", "xlm-roberta") else 0


Smooth = Callable[[Array, Array], Array]  # peaks (inputs,) and weights (outputs, inputs) to divisors (inputs,)


def _smooth_weights(peaks: Array, weight: Array) -> Array:
    largest = np.maximum(np.abs(weight).max(axis=0), 1e-5)
    return np.asarray(np.maximum(peaks, 1e-5) ** SMOOTH_WEIGHT / largest ** (1 - SMOOTH_WEIGHT))


def _smooth_limit(peaks: Array, weight: Array) -> Array:
    return np.asarray(np.maximum(peaks / SMOOTH_LIMIT, 1))
