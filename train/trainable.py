"""A model that is being trained: a Hugging Face folder, with new adapter weights or all of its own to be trained."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edge_rag.errors import UsageError
from edge_rag.interfaces import Message
from edge_rag.models.cores import usable_cores

from .fit import Precision, computes_in_bfloat16
from .torch_model import TorchModel, open_folder

ADAPTER, MODEL = "adapter", "model"  # what a run's folder holds afterwards
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt")


class Trainable:
    """The network, and what turns texts into its tokens."""

    def __init__(self, network: Any, tokenizer: Any, base: Path, lora_rank: int) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.language_model = TorchModel.of(network, tokenizer, name=base.resolve().name)
        self._base = base
        self._lora_rank = lora_rank

    @property
    def is_on_gpu(self) -> bool:
        return bool(self.network.device.type != "cpu")

    @property
    def pad(self) -> int:
        return self.language_model.vocabulary.end_token

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self.language_model.count_tokens(messages)

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(self.language_model.vocabulary.prompt_tokens(messages))

    def answer(self, text: str) -> tuple[int, ...]:
        return tuple(self.language_model.vocabulary.answer_tokens(text, ended=True))

    def save(self, folder: Path) -> Path:
        """Save what was trained, for `edge-rag export`: an adapter, or a whole model with its tokenizer."""
        if self._lora_rank:
            self.network.save_pretrained(folder / ADAPTER)
            return folder / ADAPTER
        self.network.save_pretrained(folder / MODEL)
        own = {path.name for path in (folder / MODEL).iterdir()}
        weights = {path.name for pattern in _WEIGHTS for path in self._base.glob(pattern)}
        for path in self._base.iterdir():
            if path.is_file() and path.name not in own | weights:
                shutil.copyfile(path, folder / MODEL / path.name)
        return folder / MODEL


def open_trainable(
    base: Path, *, lora_rank: int, adapter: Path | None = None, threads: int, seed: int, precision: Precision = "auto"
) -> Trainable:
    """Open a model to be trained, from `adapter` on if there is one.

    Where matrices are multiplied in bfloat16 (see fit), an adapter's base is held in it: what is trained always has 32 bits.
    """
    if adapter is not None and not lora_rank:
        raise UsageError(
            "all weights cannot be trained from an adapter on",
            mend="merge it: edge-rag export gguf MODEL_DIR --lora PEFT_DIR --type f32 -o merged.gguf, then edge-rag export hf",
        )
    import peft

    torch.set_num_threads(usable_cores(threads))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if lora_rank and computes_in_bfloat16(precision, torch.device(device)) else "float32"
    network, _, tokenizer = open_folder(base, adapter, device, dtype, is_trainable=True)
    torch.manual_seed(seed)
    if lora_rank and adapter is None:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft, at transformers
            network = peft.get_peft_model(
                network,
                peft.LoraConfig(
                    r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
                ),
            )
    return Trainable(network, tokenizer, base, lora_rank)
