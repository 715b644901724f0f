"""One model, rows, and a loss: the step that all methods share, inside transformers' Trainer.

What a row is, and what is computed for a piece of rows, is handed in: `answers` does it for language models, `cross_encoder`
for selectors.

The rows of a step are sorted by length and computed in pieces of up to `piece_tokens`, so that memory has a bound and little
is padding. On a CPU each core computes a piece of its own: where torch's threads share every operation, as they usually do,
they keep two of four cores busy with a model of this size. A core that multiplies matrices of bfloat16 (AMX) is given such
ones; what is trained always has 32 bits. Trainer does the rest: accelerate's processes, schedule, checkpoints, resuming.
"""

import math
import os
import random
import shutil
import signal
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import psutil
import torch
from accelerate import PartialState
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.run_folder import json_text, read_json, write_whole
from edge_rag.interfaces import Progress

from .run import TrainingRun

CHECKPOINTS, CHECKPOINT, FIRST, FITTED = "checkpoints", "checkpoint-", "first.json", "fitted.json"

# Trainer's names are its own: what we store has ours.
_TOTALS = ("epoch", "train_", "total_flos")


Precision = Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 where that is much faster


class Sized(Protocol):
    @property
    def n_tokens(self) -> int: ...  # that are computed for a row, without padding


R = TypeVar("R", bound=Sized)

# (model, piece of rows) -> loss of each row, and figures of each row to follow
Losses = Callable[[Any, Sequence[R]], tuple[Tensor, dict[str, Tensor]]]
_Figures = defaultdict[str, list[float]]
OnLog = Callable[[int, dict[str, float]], None]  # step, figures


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a model is fitted to rows."""

    learning_rate: float = 4e-4
    batch: int = 8  # rows for each step, over all processes
    epochs: float = 1.0
    warmup: float = 0.05  # share of the steps; from then on the rate falls along a cosine
    weight_decay: float = 0.01
    evaluate_every: int = 50  # steps; a checkpoint is written each time
    patience: int = 3  # evaluations without a better one before it ends
    prompt_loss: bool = False  # of language models: likelihood of the prompt's tokens, too
    precision: Precision = "auto"  # of products of matrices
    piece_tokens: int = 0  # computed together, padding included; 0: 384 on a processor, 16,384 elsewhere
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.batch >= 1 and self.epochs > 0 and self.evaluate_every >= 1):
            raise UsageError(
                "a learning rate, batch, epochs or steps between evaluations of 0 train nothing",
                mend="give numbers above 0",
            )


@dataclass(frozen=True, slots=True)
class Fitted:
    steps: int  # taken, over all sessions
    best_step: int  # whose weights the model now has
    best_loss: float  # on the dev rows
    first_loss: float  # on the dev rows, before the first step
    seconds: float  # of this session
    tokens_per_second: float  # of this session, without padding


def fit(
    model: Any,
    rows: Sequence[R],
    dev_rows: Sequence[R],
    losses: Losses[R],
    fitting: Fitting,
    folder: Path,
    *,
    on_log: OnLog | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Train the model in place, and leave it with the weights that were best on `dev_rows`.

    `folder` holds the checkpoints: what is there is gone on with. Ctrl-C ends after the step that is being taken, with a
    checkpoint of it; KeyboardInterrupt is raised then.
    """
    if not rows or not dev_rows:
        raise UsageError("there is nothing to train on, or nothing to measure on", mend="give more questions")
    transformers_logging.set_verbosity_error()
    if _is_short_of_memory(model, [*rows, *dev_rows], fitting):
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its new name is too new
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    steps = _steps(len(rows), fitting, _n_processes())
    in_bfloat16 = computes_in_bfloat16(fitting.precision, next(model.parameters()).device)
    trainer = _Trainer(
        model,
        rows,
        dev_rows,
        losses,
        steps,
        fitting,
        folder,
        on_log=on_log,
        progress=progress,
    )
    started = time.perf_counter()
    # autocast converts what an adapter needs; peft would convert it to 32 bits before
    with _stopping_gently(trainer.stop), disable_input_dtype_casting(model, active=in_bfloat16):
        trainer.run()
    if trainer.stop.is_set() and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
    seconds = time.perf_counter() - started
    return Fitted(
        steps=trainer.state.global_step,
        best_step=trainer.state.best_global_step or 0,
        best_loss=float(trainer.state.best_metric if trainer.state.best_metric is not None else math.nan),
        first_loss=trainer.first_loss,
        seconds=seconds,
        tokens_per_second=trainer.n_tokens / seconds if seconds else 0.0,
    )


def fit_stage(
    run: TrainingRun,
    name: str,
    inputs: Mapping[str, Any],
    network: Any,
    rows: Callable[[], tuple[Sequence[R], Sequence[R]]],
    losses: Losses[R],
    fitting: Fitting,
    save: Callable[[Path], object],
    progress: Progress | None,
) -> Fitted:
    """Fit as a stage of a run: all processes work on it, and the first one saves what was trained, into the stage's folder.

    `rows` makes the rows to train on and the dev rows, if they are needed.
    """
    with run.stage(name, {**inputs, "fitting": fitting}, together=True) as stage:
        if stage.is_complete:
            return Fitted(**(read_json(stage.folder / FITTED) or {}))
        checkpoints = stage.folder / CHECKPOINTS
        last = last_checkpoint(checkpoints)
        run.forget(name, after=_step_of(last) if last else -1)
        fitted = fit(
            network,
            *rows(),
            losses,
            fitting,
            checkpoints,
            on_log=lambda step, figures: run.log(name, step, **figures),
            progress=progress,
        )
        if run.is_main:
            save(stage.folder)
            write_whole(stage.folder / FITTED, json_text(asdict(fitted)))
            shutil.rmtree(checkpoints)
        PartialState().wait_for_everyone()
        return fitted


def computes_in_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Tell whether matrices are multiplied in bfloat16: if that is wanted, or several times as fast as in 32 bits."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return device.type == "cuda" and bool(torch.cuda.is_bf16_supported())


def pieces_of(rows: Sequence[R], piece_tokens: int) -> Iterator[list[R]]:
    """Cut rows into pieces of about equal lengths that have up to so many tokens with their padding, or one row."""
    piece: list[R] = []
    for row in sorted(rows, key=lambda row: row.n_tokens):
        if piece and row.n_tokens * (len(piece) + 1) > piece_tokens:
            yield piece
            piece = []
        piece.append(row)
    if piece:
        yield piece


def _steps(n_rows: int, fitting: Fitting, n_processes: int) -> list[list[int]]:
    """Draw which rows each step of each process takes: neighbouring entries are the processes of one step."""
    rng = random.Random(fitting.seed)
    wanted = max(1, round(n_rows * fitting.epochs))
    order: list[int] = []
    while len(order) < wanted:
        order += rng.sample(range(n_rows), n_rows)
    each = max(1, fitting.batch // n_processes)
    steps = [order[n : n + each] for n in range(0, wanted, each)]
    while len(steps) % n_processes:
        steps.append(steps[len(steps) % n_processes])
    return steps


def _is_short_of_memory(model: Any, rows: Sequence[Sized], fitting: Fitting) -> bool:
    """Estimate what a step keeps for its way back: if that is most of what is free, it is computed again instead."""
    config = model.config.get_text_config()
    device = next(model.parameters()).device
    longest = max(_piece_tokens(fitting, device), max(row.n_tokens for row in rows))
    # Of each layer some 20 times its width and 8 times its inner width, in 32 bits: 2.9 GB for 1,024 tokens of SmolLM2-135M
    # with a LoRA, of which four threads held 11 GB.
    values = 20 * config.hidden_size + 8 * config.intermediate_size
    if device.type != "cuda":
        values += config.num_attention_heads * longest // 2  # attention in blocks keeps its weights
    needed = int(longest * config.num_hidden_layers * values * 4)
    if device.type == "cuda":
        return needed > 0.6 * int(torch.cuda.mem_get_info(device)[0])
    return needed * int(torch.get_num_threads()) > 0.8 * int(psutil.virtual_memory().available)


def _piece_tokens(fitting: Fitting, device: torch.device) -> int:
    return fitting.piece_tokens or (384 if device.type == "cpu" else 16384)


def _n_processes() -> int:
    """Of this training, as its launcher says: what accelerate knows of it, it knows from the same place, and later."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class _Steps(torch.utils.data.Dataset[dict[str, Any]]):  # type: ignore[misc]
    def __init__(self, steps: Sequence[Sequence[int]]) -> None:
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {"rows": list(self._steps[n])}


class _Trainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with our step and our evaluation."""

    def __init__(
        self, model: Any, rows: Sequence[Sized], dev_rows: Sequence[Sized], losses: Losses[Any], steps: list[list[int]],
        fitting: Fitting, folder: Path, *, on_log: OnLog | None, progress: Progress | None,
    ) -> None:  # fmt: skip
        self.stop = threading.Event()
        self.n_tokens = 0
        self.first_loss = math.nan
        self._rows, self._dev_rows, self._compute, self._on_log = rows, dev_rows, losses, on_log
        self._folder = folder
        self._figures: _Figures = defaultdict(list)
        self._since, self._n_since = time.perf_counter(), 0
        device = next(model.parameters()).device
        self._in_bfloat16 = computes_in_bfloat16(fitting.precision, device)
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._piece_tokens = _piece_tokens(fitting, device)
        n_steps = len(steps) // _n_processes()
        every = min(fitting.evaluate_every, n_steps)
        super().__init__(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder),
                per_device_train_batch_size=1,  # an item is all that a process does in one step
                train_sampling_strategy="sequential",  # the steps were drawn
                num_train_epochs=1,
                learning_rate=fitting.learning_rate,
                weight_decay=fitting.weight_decay,
                warmup_steps=math.ceil(fitting.warmup * n_steps),
                lr_scheduler_type="cosine",
                max_grad_norm=1.0,
                seed=fitting.seed,
                use_cpu=device.type == "cpu",
                logging_strategy="steps",
                logging_steps=max(1, min(10, every)),
                logging_nan_inf_filter=False,
                eval_strategy="steps",
                eval_steps=every,
                save_strategy="steps",
                save_steps=every,
                save_total_limit=2,  # the last and the best
                load_best_model_at_end=True,
                metric_for_best_model="eval_loss",
                greater_is_better=False,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=_Steps(steps),
            eval_dataset=_Steps([]),
            data_collator=_first,
            callbacks=[EarlyStoppingCallback(fitting.patience), _Follow(self.stop, progress)],
        )
        self.remove_callback(PrinterCallback)

    def run(self) -> None:
        last, first = last_checkpoint(self._folder), self._folder / FIRST
        if (begun := read_json(first)) is None:
            begun = {"loss": self.evaluate()["eval_loss"]}
            if self.is_world_process_zero():
                self._folder.mkdir(parents=True, exist_ok=True)
                write_whole(first, json_text(begun))
        self.first_loss = float(begun["loss"])
        try:
            self.train(resume_from_checkpoint=str(last) if last else None)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        except RuntimeError as error:  # torch and safetensors say so when a disk is full
            if "No space left" in str(error) or "unexpected pos" in str(error) or "PytorchStreamWriter" in str(error):
                raise _unwritable(self._folder, error) from error
            raise

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Compute the rows of a step in pieces; their gradients add up to that of the mean over the rows."""
        model.train()
        rows = [self._rows[n] for n in inputs["rows"]]
        pieces = list(pieces_of(rows, self._piece_tokens))[::-1]  # the longest first: cores end at about the same time
        beside = self._threads > 1 and self.args.world_size == 1
        total = (self._beside_each_other if beside else self._one_by_one)(model, pieces, len(rows))
        if not math.isfinite(total.item()):
            raise EdgeRagError(
                f"the loss is not a number at step {self.state.global_step + 1}; the last good checkpoint is kept",
                mend="lower the learning rate, and start again with another --out",
            )
        self._count(sum(row.n_tokens for row in rows))
        return total

    def _one_by_one(self, model: Any, pieces: Sequence[list[Sized]], n_rows: int) -> Tensor:
        total = torch.zeros((), device=self.args.device)
        for n, piece in enumerate(pieces):
            is_last = n == len(pieces) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                loss = self._losses(model, piece, self._figures).sum() / n_rows
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _beside_each_other(self, model: Any, pieces: Sequence[list[Sized]], n_rows: int) -> Tensor:
        """Give each core a piece of its own, and add up in the pieces' order: the bits do not depend on the threads."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def gradients(piece: list[Sized]) -> tuple[Tensor, tuple[Tensor, ...], _Figures]:
            torch.set_num_threads(1)  # of this thread
            figures: _Figures = defaultdict(list)
            loss = self._losses(model, piece, figures).sum() / n_rows
            return loss.detach(), torch.autograd.grad(loss, trained), figures

        total = torch.zeros(())
        with ThreadPoolExecutor(self._threads) as pool:
            for loss, found, figures in pool.map(gradients, pieces):
                total += loss
                for name, values in figures.items():
                    self._figures[name] += values
                for parameter, gradient in zip(trained, found, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Compute the mean loss, and the mean figures, of the dev rows: each process its share of them."""
        model = self.model
        model.eval()
        share = self._dev_rows[self.args.process_index :: self.args.world_size]

        def measure(piece: list[Sized]) -> dict[str, float]:
            if self._threads > 1:
                torch.set_num_threads(1)  # of this thread
            figures: _Figures = defaultdict(list)
            with torch.no_grad():
                loss = float(self._losses(model, piece, figures).sum())
            return {"loss": loss, **{name: sum(values) for name, values in figures.items()}}

        sums: defaultdict[str, float] = defaultdict(float)
        with ThreadPoolExecutor(self._threads) as pool:
            for found in pool.map(measure, pieces_of(share, self._piece_tokens)):
                for name, value in found.items():
                    sums[name] += value
        names = sorted(sums)
        totals = torch.tensor([*(sums[name] for name in names), float(len(share))], dtype=torch.float64)
        totals = self.accelerator.reduce(totals.to(self.args.device, torch.float32), "sum")
        metrics = {f"eval_{name}": float(totals[n] / totals[-1]) for n, name in enumerate(names)}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._figures.items()}
            now = time.perf_counter()
            logs["tokens_per_second"] = self._n_since / max(1e-9, now - self._since)
            self._figures.clear()
            self._since, self._n_since = now, 0
        super().log(logs, start_time)
        figures = {name.replace("eval_", "dev_"): value for name, value in logs.items() if not name.startswith(_TOTALS)}
        if figures and self._on_log is not None and self.is_world_process_zero():
            self._on_log(self.state.global_step, figures)

    def _losses(self, model: Any, piece: Sequence[Sized], to: "_Figures") -> Tensor:
        # Without a cache: threads would share what it holds.
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._in_bfloat16, cache_enabled=False):
            losses, figures = self._compute(model, piece)
        for name, values in figures.items():
            to[name] += values.detach().float().tolist()
        return losses

    def _count(self, n_tokens: int) -> None:
        self.n_tokens += n_tokens
        self._n_since += n_tokens


def _first(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return items[0]


class _Follow(TrainerCallback):  # type: ignore[misc]
    """Tell how far the training is; end it with a checkpoint when it is to stop."""

    def __init__(self, stop: threading.Event, progress: Progress | None) -> None:
        self._stop = stop
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress and state.is_world_process_zero:
            losses = [entry["loss"] for entry in state.log_history[-20:] if "loss" in entry]
            detail = f"loss {losses[-1]:.3f}" if losses else ""
            self._progress("training", state.global_step, state.max_steps, detail)
        if state.global_step == state.max_steps:
            control.should_evaluate = control.should_save = True
        elif self._stop.is_set():
            control.should_save = control.should_training_stop = True


@contextmanager
def _stopping_gently(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set `stop`, and the second end the process as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.getsignal(signal.SIGINT)

    def on_interrupt(*_: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint. Trainer writes trainer_state.json last: without it one was cut off."""
    found = [path.parent for path in folder.glob(f"{CHECKPOINT}*/trainer_state.json") if path.stat().st_size]
    return max(found, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def _unwritable(folder: Path, error: BaseException) -> EdgeRagError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return EdgeRagError(
        f"{folder} cannot be written: {reason}; the last good checkpoint is kept",
        mend="free space or mend permissions, and run the same command again: it goes on from there",
    )
