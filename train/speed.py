"""How fast preference pairs are trained on, beside trl's own trainer: what `edge-rag bench training` measures.

Each contestant runs in a process of its own, over the same pairs, with the same adapter, batch and threads.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch

from edge_rag.answering.prompt import answer_messages
from edge_rag.evaluation.processes import memory_of
from edge_rag.interfaces import Message

from . import losses
from .answers import Row, answer_losses
from .examples import Example
from .fit import Fitting, computes_in_bfloat16, fit
from .trainable import open_trainable

Contestant = Literal["edge_rag", "trl ORPOTrainer"]
LORA_RANK, BETA = 32, 0.1


@dataclass(frozen=True, slots=True)
class Pair:
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Spent:
    seconds: float  # of the steps, without opening the model
    n_tokens: int  # of both sequences of all pairs
    peak_bytes: int


def pairs_of(examples: Sequence[Example]) -> list[Pair]:
    """Make pairs of equal kind without a model: the right answer, and another question's."""
    return [
        Pair(tuple(answer_messages(e.question, e.passages, style="words")), e.target, other.target)
        for e, other in zip(examples, [*examples[1:], *examples[:1]], strict=True)
    ]


def train(contestant: Contestant, base: Path, pairs: Sequence[Pair], batch: int, threads: int) -> Spent:
    """Take one step for each `batch` pairs, and one before the clock starts."""
    model = open_trainable(base, lora_rank=LORA_RANK, threads=threads, seed=0)
    rows = [Row(model.prompt(p.prompt), (model.answer(p.chosen), model.answer(p.rejected))) for p in pairs]
    n_tokens = sum(2 * len(row.prompt) + sum(map(len, row.answers)) for row in rows)
    way = _ours if contestant == "edge_rag" else _trl
    with TemporaryDirectory() as folder:
        way(model, pairs[:batch], rows[:batch], batch, Path(folder, "warm"))
        seconds = way(model, pairs, rows, batch, Path(folder, "timed"))
    return Spent(seconds, n_tokens, memory_of().get("peak", 0))


def _ours(model: Any, pairs: Sequence[Pair], rows: Sequence[Row], batch: int, folder: Path) -> float:
    times: list[float] = []

    def loss(logps: Any, mask: Any, _: Any) -> tuple[Any, dict[str, Any]]:
        return losses.orpo(logps, mask, beta=BETA), {}

    def tell(stage: str, done: int, total: int, detail: str) -> None:
        times.append(time.perf_counter())

    # The dev row is as small as can be: only steps are timed, and the last is followed by an evaluation.
    smallest = [Row(rows[0].prompt[:8], rows[0].answers)]
    started = time.perf_counter()
    computed = answer_losses(loss, pad=model.pad)
    fit(model.network, rows, smallest, computed, Fitting(1e-6, batch, evaluate_every=10_000), folder, progress=tell)
    return times[-1] - started


def _trl(model: Any, pairs: Sequence[Pair], rows: Sequence[Row], batch: int, folder: Path) -> float:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    tokenizer = model.tokenizer
    model.network.set_attn_implementation("sdpa")  # transformers' own
    texts = [
        {
            "prompt": tokenizer.decode(row.prompt),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
        }
        for pair, row in zip(pairs, rows, strict=True)
    ]
    trainer = ORPOTrainer(
        model=model.network,
        args=ORPOConfig(
            output_dir=str(folder), per_device_train_batch_size=1, gradient_accumulation_steps=batch,
            num_train_epochs=1, learning_rate=1e-6, beta=BETA, max_length=4096, gradient_checkpointing=False,
            bf16=computes_in_bfloat16("auto", model.network.device),
            use_cpu=not torch.cuda.is_available(), report_to="none", disable_tqdm=True, save_strategy="no",
            logging_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return times[-1] - times[0]
