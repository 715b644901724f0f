"""A selector that is trained: a cross-encoder with one score, from any encoder's folder with a fresh head.

A row is a group: a question with its candidates, and the share that each is to have. The pairs of a piece's groups are
computed together, those of like length with each other. Dropout is off: drawn in several threads, it would let no two runs
end with the same bits.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from edge_rag.errors import ModelError, UsageError
from edge_rag.models.cores import usable_cores
from edge_rag.models.licences import UNKNOWN, card_licence

from . import losses
from .fit import Losses, pieces_of
from .trainable import MODEL

PIECE_TOKENS = {"cpu": 384, "cuda": 16384}  # of pairs that are computed together, padding included
LEAST_ROOM = 8  # tokens of a passage, beside a question that is longer than others


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and a passage as tokens, and which of them are the passage's."""

    tokens: tuple[int, ...]
    segments: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class GroupRow:
    pairs: tuple[Pair, ...]
    shares: tuple[float, ...]  # that each is to have, 1 together
    gold: tuple[bool, ...]

    @property
    def n_tokens(self) -> int:
        return sum(pair.n_tokens for pair in self.pairs)


class CrossEncoder:
    """The network, and what turns texts into its tokens."""

    def __init__(self, network: Any, tokenizer: Any, base: Path, max_tokens: int) -> None:
        self.network = network
        self._tokenizer = tokenizer
        self.base = base
        self._max_tokens = max_tokens

    def fits(self, question: str) -> bool:
        return len(self._tokenizer(question).input_ids) + LEAST_ROOM < self._max_tokens

    def pairs(self, question: str, texts: Sequence[str]) -> tuple[Pair, ...]:
        """Tokenise as the runtime does: passages are cut where they are too long beside the question, which never is."""
        found = self._tokenizer(  # as lists: an empty passage alone is taken for none
            [question] * len(texts), list(texts), truncation="only_second", max_length=self._max_tokens,
            return_token_type_ids=True,
        )  # fmt: skip
        return tuple(
            Pair(tuple(ids), tuple(segments))
            for ids, segments in zip(found.input_ids, found.token_type_ids, strict=True)
        )

    def losses(self) -> Losses[GroupRow]:
        return group_losses(pad=self._tokenizer.pad_token_id or 0)

    def save(self, folder: Path) -> Path:
        """Save a folder that `edge-rag export onnx --role selector` takes, with a card of a few lines."""
        self.network.save_pretrained(folder / MODEL)
        self._tokenizer.save_pretrained(folder / MODEL)
        licence = card_licence(self.base)
        head = "" if licence == UNKNOWN else f"---\nlicense: {licence}\n---\n"
        text = f"{head}A cross-encoder that `edge-rag train` made from {self.base.resolve().name}.\n"
        (folder / MODEL / "README.md").write_text(text, encoding="utf-8", newline="\n")
        return folder / MODEL


def open_cross_encoder(base: Path, *, max_tokens: int, threads: int, seed: int) -> CrossEncoder:
    """Open an encoder's folder; where it has no head with one score, it gets a fresh one."""
    check_encoder(base)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(usable_cores(threads))
    torch.manual_seed(seed)
    try:
        config = transformers.AutoConfig.from_pretrained(base, num_labels=1, local_files_only=True)
        for name, value in config.to_dict().items():
            if "dropout" in name and isinstance(value, float):
                setattr(config, name, 0.0)
        with warnings.catch_warnings(action="ignore"):
            network = transformers.AutoModelForSequenceClassification.from_pretrained(
                base, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        tokenizer = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    except Exception as error:  # whatever damaged files make them raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{base} cannot be opened: {reason}", mend="give the folder of an encoder") from error
    positions = int(getattr(config, "max_position_embeddings", max_tokens))
    if max_tokens > positions:
        raise UsageError(f"{base} has positions for {positions} tokens", mend=f"give --max-tokens {positions} or less")
    tokenizer.model_max_length = max_tokens
    return CrossEncoder(network.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, base, max_tokens)


def check_encoder(base: Path) -> None:
    if not (base / "config.json").is_file():
        raise UsageError(
            f"{base} is no folder of a Hugging Face encoder: it holds no config.json",
            mend="make one: edge-rag export hf all-minilm-l6-v2 -o DIR",
        )


def group_losses(*, pad: int) -> Losses[GroupRow]:
    """Return what computes the loss of groups: the KL divergence of their scores' softmax from their shares."""

    def compute(model: Any, piece: Sequence[GroupRow]) -> tuple[Tensor, dict[str, Tensor]]:
        scores = scores_of(model, [pair for row in piece for pair in row.pairs], pad)
        width = max(len(row.pairs) for row in piece)
        mask = torch.tensor([[n < len(row.pairs) for n in range(width)] for row in piece], device=scores.device)
        places = mask.flatten().nonzero()[:, 0]
        grouped = scores.new_zeros(len(piece) * width).index_put((places,), scores).view(len(piece), width)
        shares = scores.new_tensor([[*row.shares, *[0.0] * (width - len(row.shares))] for row in piece])
        gold = scores.new_tensor([[*row.gold, *[False] * (width - len(row.gold))] for row in piece])
        first = grouped.masked_fill(~mask, -torch.inf).argmax(-1)
        figures = {
            "best_first": (first == shares.argmax(-1)).float(),
            "gold_first": gold.gather(1, first[:, None])[:, 0],
        }
        return losses.group_kl(grouped, shares, mask), figures

    return compute


def scores_of(model: Any, pairs: Sequence[Pair], pad: int) -> Tensor:
    """Return the score of each pair."""
    device = next(model.parameters()).device
    numbered = [_Numbered(number, pair) for number, pair in enumerate(pairs)]
    order, found = [], []
    for together in pieces_of(numbered, PIECE_TOKENS.get(device.type, PIECE_TOKENS["cpu"])):
        longest = together[-1].n_tokens
        rows = [item.pair for item in together]
        inputs = {
            "input_ids": [[*row.tokens, *[pad] * (longest - row.n_tokens)] for row in rows],
            "attention_mask": [[1] * row.n_tokens + [0] * (longest - row.n_tokens) for row in rows],
        }
        if getattr(model.config, "type_vocab_size", 1) > 1:
            inputs["token_type_ids"] = [[*row.segments, *[0] * (longest - row.n_tokens)] for row in rows]
        logits = model(**{name: torch.tensor(values, device=device) for name, values in inputs.items()}).logits
        found.append(logits[:, 0].float())
        order += [item.number for item in together]
    return torch.cat(found)[torch.tensor(order, device=device).argsort()]


@dataclass(frozen=True, slots=True)
class _Numbered:
    number: int
    pair: Pair

    @property
    def n_tokens(self) -> int:
        return self.pair.n_tokens
