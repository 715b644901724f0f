"""Read a LoRA adapter as peft saves it: what it adds to which matrix, and how strongly.

Refused is what neither a merge here nor llama.cpp's adapters would do alike: DoRA, trained biases and embeddings, whole
modules saved beside the adapter, a rank or strength of its own for some matrices.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edge_rag.errors import ModelError

from .model_folder import read_json, read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# setting -> values with which it changes nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "use_dora": (False, None), "bias": ("none", None), "lora_bias": (False, None),
    "modules_to_save": (None, []), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None), "layer_replication": (None, []), "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []), "alora_invocation_tokens": (None, []), "use_qalora": (False, None),
    "use_bdlora": (None, False), "velora_config": (None,), "monteclora_config": (None,), "kasa_config": (None,),
    "arrow_config": (None,),
    # others change the base's weights as they begin, so that the adapter belongs to a base that is nowhere on disk
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    a: torch.Tensor  # (rank, inputs)
    b: torch.Tensor  # (outputs, rank)


@dataclass(frozen=True, slots=True)
class Adapter:
    path: Path
    base: str  # the model that it was trained on, as peft noted it
    rank: int
    scale: float  # of b @ a: alpha / rank, or alpha / sqrt(rank) for rsLoRA
    pairs: dict[str, Pair]  # by the name of the tensor that it is added to: model.layers.0.self_attn.q_proj.weight

    def merge(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the base with the adapter in it, in float32."""
        pair = self.pairs.get(name)
        if pair is None:
            return tensor
        return tensor.to(torch.float32) + self.scale * (pair.b.to(torch.float32) @ pair.a.to(torch.float32))


def read_adapter(path: Path) -> Adapter:
    """Read a folder with adapter_config.json and adapter_model.safetensors."""
    if not path.is_dir():
        raise ModelError(f"there is no folder {path}", mend=f"give the folder that holds {CONFIG}")
    config = read_json(path / CONFIG)
    for key, neutral in _NEUTRAL.items():
        if config.get(key, neutral[0]) not in neutral:
            raise _refused(
                path, f"{key} is {config[key]!r}", "train a plain LoRA, or merge it with peft and export the result"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank <= 0 or not isinstance(alpha, int | float):
        raise _refused(path, f"r is {rank!r} and lora_alpha {alpha!r}", "copy the folder again")
    if not (path / WEIGHTS).is_file():
        raise _refused(path, f"there is no {WEIGHTS}", "save the adapter as safetensors")
    return Adapter(
        path=path,
        base=str(config.get("base_model_name_or_path") or ""),
        rank=rank,
        scale=alpha / rank**0.5 if config.get("use_rslora") else alpha / rank,
        pairs=_pairs(path, rank),
    )


def check_fits(adapter: Adapter, names: tuple[str, ...], shape_of: Any, place: str) -> None:
    """Raise ModelError unless each pair has a matrix of its size in the base."""
    for name, pair in adapter.pairs.items():
        if name not in names:
            raise _refused(
                adapter.path, f"it changes {name}, which {place} does not hold", "give the base that it was trained on"
            )
        outputs, inputs = shape_of(name)
        if pair.a.shape[1] != inputs or pair.b.shape[0] != outputs:
            found = (pair.b.shape[0], pair.a.shape[1])
            raise _refused(
                adapter.path,
                f"{name} is {found} there and {(outputs, inputs)} in {place}",
                "give the base that it was trained on",
            )


def _pairs(path: Path, rank: int) -> dict[str, Pair]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in read_tensors(path / WEIGHTS):
        match = _NAME.fullmatch(name)
        if match is None or match[1].endswith(("embed_tokens", "lm_head")):
            raise _refused(path, f"it holds {name}", "train LoRA on the attention and mlp matrices only")
        if not torch.isfinite(tensor).all():
            raise _refused(path, f"{name} holds values that are no numbers", "check the training")
        parts.setdefault(match[1] + ".weight", {})[match[2]] = tensor
    if not parts:
        raise _refused(path, "it is empty", "copy the folder again")
    for name, part in parts.items():
        if part.keys() != {"A", "B"} or part["A"].shape[0] != rank or part["B"].shape[1] != rank:
            raise _refused(path, f"the parts for {name} are not an A and a B of rank {rank}", "copy the folder again")
    return {name: Pair(part["A"], part["B"]) for name, part in parts.items()}


def _refused(path: Path, why: str, mend: str) -> ModelError:
    return ModelError(f"the adapter {path}: {why}", mend=mend)
