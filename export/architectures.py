"""The shapes of models that can be exported, as data: what their tensors are called on either side, and what llama.cpp
needs to be told. Whatever is not described here is refused: llama.cpp would compute something else in silence.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rag.errors import ModelError

_LLAMA_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_HEAD_NORMS = {"self_attn.q_norm.weight": "attn_q_norm.weight", "self_attn.k_norm.weight": "attn_k_norm.weight"}
_QWEN2_BIASES = {f"self_attn.{x}_proj.bias": f"attn_{x}.bias" for x in "qkv"}
_GEMMA_NORMS = {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_AROUND_LAYERS = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}
_SILU: dict[str, Sequence[Any]] = {"hidden_act": ("silu",)}
_NO_BIAS: dict[str, Sequence[Any]] = {"attention_bias": (False,), "mlp_bias": (False,)}


@dataclass(frozen=True, slots=True)
class Architecture:
    hf: str  # config.json's architectures[0]
    model_type: str  # config.json's model_type
    gguf: str  # general.architecture
    layer: Mapping[str, str]  # what a layer's tensors are called: Hugging Face to GGUF
    wanted: Mapping[str, Sequence[Any]]  # settings that llama.cpp takes for granted: the first is the default
    interleaved: bool = False  # llama.cpp rotates neighbouring rows of q and k here, transformers the two halves
    norm_offset: float = 0.0  # what transformers adds to the weights of norms while it computes
    has_windows: bool = False  # some layers see no further back than a window, with a rope of their own


ARCHITECTURES = (
    Architecture("LlamaForCausalLM", "llama", "llama", _LLAMA_LAYER, _SILU | _NO_BIAS, interleaved=True),
    Architecture("MistralForCausalLM", "mistral", "llama", _LLAMA_LAYER, _SILU, interleaved=True),
    Architecture("Qwen2ForCausalLM", "qwen2", "qwen2", _LLAMA_LAYER | _QWEN2_BIASES, _SILU),
    Architecture("Qwen3ForCausalLM", "qwen3", "qwen3", _LLAMA_LAYER | _HEAD_NORMS, _SILU | _NO_BIAS),
    Architecture(
        "Gemma3ForCausalLM", "gemma3_text", "gemma3", _LLAMA_LAYER | _GEMMA_NORMS | _HEAD_NORMS,
        _NO_BIAS | {
            "hidden_activation": ("gelu_pytorch_tanh",), "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,), "use_bidirectional_attention": (False, None),
        },
        norm_offset=1.0, has_windows=True,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """One model's numbers, checked."""

    architecture: Architecture
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    feed_forward: int
    context: int
    vocab: int
    norm_epsilon: float
    rope_base: float
    tied: bool  # the embedding is the output's matrix, too
    rope_factors: tuple[float, ...] = ()  # what each frequency is divided by; (): none is
    window: int = 0  # tokens that windowed layers see
    windowed: tuple[bool, ...] = ()  # which layers are
    window_rope_base: float = 0.0

    def gguf_name(self, name: str) -> str:
        """Translate a tensor's name; "" for one that is computed anew; ModelError for one that llama.cpp does not know."""
        if name in _AROUND_LAYERS:
            return _AROUND_LAYERS[name]
        parts = name.split(".", 3)
        if parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[2].isdecimal():
            if parts[3] == "self_attn.rotary_emb.inv_freq":
                return ""
            if parts[3] in self.architecture.layer and int(parts[2]) < self.n_layers:
                return f"blk.{parts[2]}.{self.architecture.layer[parts[3]]}"
        raise ModelError(
            f"the tensor {name} has no place in a {self.architecture.hf} of {self.n_layers} layers as llama.cpp runs it",
            mend="export a model without it",
        )

    def tensor_names(self) -> dict[str, str]:
        """Return all tensors that the model must have: Hugging Face to GGUF."""
        layers = {
            f"model.layers.{i}.{hf}": f"blk.{i}.{gguf}"
            for i in range(self.n_layers)
            for hf, gguf in self.architecture.layer.items()
        }
        around = {hf: gguf for hf, gguf in _AROUND_LAYERS.items() if hf != HEAD or not self.tied}
        return around | layers

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that a tensor must have, by its Hugging Face name."""
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        stem = name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
        rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": self.feed_forward,
                "up_proj": self.feed_forward, "o_proj": self.hidden, "down_proj": self.hidden,
                "embed_tokens": self.vocab, "lm_head": self.vocab}  # fmt: skip
        columns = {"o_proj": queries, "down_proj": self.feed_forward}
        if name.endswith(".bias"):
            return (rows[stem],)
        if stem in rows:
            return rows[stem], columns.get(stem, self.hidden)
        return (self.head_dim if stem in ("q_norm", "k_norm") else self.hidden,)

    def to_gguf(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn a tensor's values, or those of a LoRA's B, into what llama.cpp expects under that name."""
        if self.architecture.norm_offset and _is_norm(name):
            return np.asarray(values + np.float32(self.architecture.norm_offset))
        heads = self._rotated_heads(name)
        return interleave(values, heads) if heads else values

    def from_gguf(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undo `to_gguf`."""
        if self.architecture.norm_offset and _is_norm(name):
            return np.asarray(values - np.float32(self.architecture.norm_offset))
        heads = self._rotated_heads(name)
        return halve(values, heads) if heads else values

    def _rotated_heads(self, name: str) -> int:
        if not self.architecture.interleaved:
            return 0
        return self.n_heads if ".q_proj." in name else self.n_kv_heads if ".k_proj." in name else 0


def shape_of(config: Mapping[str, Any], place: str) -> Shape:
    """Read a configuration with all its defaults; a ModelError names what in it llama.cpp would not compute alike."""
    architecture = find_hf(config, place)
    for key, allowed in architecture.wanted.items():
        if config.get(key, allowed[0]) not in allowed:
            raise _refused(place, f"{key} is {config[key]!r}, and llama.cpp computes with {allowed[0]!r}")
    if config.get("quantization_config"):
        raise _refused(place, "its weights are quantised already", mend="export the model that it was made from")
    heads, hidden, n_layers = config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]
    head_dim = config.get("head_dim") or hidden // heads
    if architecture.gguf == "qwen2" and head_dim * heads != hidden:
        raise _refused(place, f"{heads} heads of {head_dim} are not the {hidden} channels that llama.cpp counts on")
    rope = config["rope_parameters"]
    shape = Shape(
        architecture=architecture,
        n_layers=n_layers,
        n_heads=heads,
        n_kv_heads=config["num_key_value_heads"],
        head_dim=head_dim,
        hidden=hidden,
        feed_forward=config["intermediate_size"],
        context=config["max_position_embeddings"],
        vocab=config["vocab_size"],
        norm_epsilon=float(config["rms_norm_eps"]),
        rope_base=float((rope.get("full_attention") or rope)["rope_theta"]),
        rope_factors=_rope_factors(rope.get("full_attention") or rope, head_dim, place),
        tied=bool(config["tie_word_embeddings"]),
    )
    return _with_windows(shape, config, place)


def find_hf(config: Mapping[str, Any], place: str) -> Architecture:
    """Return the architecture that a config.json names."""
    named = config.get("architectures") or ["not said"]
    for architecture in ARCHITECTURES:
        if architecture.hf == named[0] and architecture.model_type == config.get("model_type"):
            return architecture
    known = ", ".join(a.hf for a in ARCHITECTURES)
    raise _refused(place, f"its architecture is {named[0]}", mend=f"these can be exported: {known}")


def find_gguf(name: str, place: str) -> Architecture:
    """Return the architecture that a GGUF names; where two share a name, the first."""
    for architecture in ARCHITECTURES:
        if architecture.gguf == name:
            return architecture
    known = ", ".join(sorted({a.gguf for a in ARCHITECTURES}))
    raise _refused(place, f"its architecture is {name!r}", mend=f"these can be converted: {known}")


def interleave(values: npt.NDArray[Any], n_heads: int) -> npt.NDArray[Any]:
    """Rows of each head from two halves to pairs of neighbours: 0 1 2 3 4 5 to 0 3 1 4 2 5."""
    halves = values.reshape(n_heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def halve(values: npt.NDArray[Any], n_heads: int) -> npt.NDArray[Any]:
    """Undo `interleave`."""
    pairs = values.reshape(n_heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))


def _rope_factors(rope: Mapping[str, Any], head_dim: int, place: str) -> tuple[float, ...]:
    """Return what Llama 3.1 divides each frequency by: slow ones by `factor`, fast ones by 1, between them gradually."""
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise _refused(place, f"only {rope['partial_rotary_factor']} of each head is rotated")
    if kind == "default":
        return ()
    if kind != "llama3":
        raise _refused(place, f"its rope scaling is {kind!r}", mend="none and 'llama3' can be exported")
    factor, low, high, context = (
        float(rope[key])
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (i / head_dim)
        fastness = min(1.0, max(0.0, (context / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - fastness) / factor + fastness))
    return tuple(factors)


def _with_windows(shape: Shape, config: Mapping[str, Any], place: str) -> Shape:
    window = config.get("sliding_window")
    if not shape.architecture.has_windows:
        if window and window < shape.context:
            raise _refused(place, f"its layers see {window} tokens back, and llama.cpp would let them see all")
        return shape
    rope = config["rope_parameters"]["sliding_attention"]
    if rope.get("rope_type", "default") != "default":
        raise _refused(place, f"its windowed layers have the rope scaling {rope['rope_type']!r}")
    if config["query_pre_attn_scalar"] != shape.head_dim or shape.n_layers == 62:
        raise _refused(place, "its attention is not scaled by the size of a head")
    windowed = tuple(kind == "sliding_attention" for kind in config["layer_types"])
    return replace(
        shape, window=config["sliding_window"], windowed=windowed, window_rope_base=float(rope["rope_theta"])
    )


def _is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


def _refused(place: str, why: str, *, mend: str = "it cannot be exported to GGUF") -> ModelError:
    return ModelError(f"{place}: {why}", mend=mend)
