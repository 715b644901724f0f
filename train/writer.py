"""A language model that writes and scores for a method, as fast as this machine runs it, and what it has written, remembered."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.run_folder import content_key, file_hashes, read_rows
from edge_rag.interfaces import Message, Progress

from .fit import Precision, computes_in_bfloat16
from .gguf_model import GgufModel
from .language_model import LanguageModel, Prompts, Sampled, Scored
from .run import ROWS, TrainingRun
from .torch_model import TorchModel


@contextmanager
def open_writer(
    run: TrainingRun,
    stage: str,
    base: Path,
    adapter: Path | None,
    *,
    context_tokens: int,
    threads: int,
    precision: Precision,
    progress: Progress | None,
) -> Iterator[LanguageModel]:
    """Open a model with its adapter for the engine that is fastest here.

    That is torch on a GPU, and on a processor that multiplies matrices of bfloat16 (AMX): three times as fast as llama.cpp over
    prompts of 730 tokens, unless `precision` is 32 bits. Elsewhere it is llama.cpp, several times as fast as torch, and a GGUF
    is made first.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    in_bfloat16 = precision != "float32" and computes_in_bfloat16("auto", device)
    if in_bfloat16 or device.type == "cuda":
        dtype = "bfloat16" if in_bfloat16 else "float32"
        yield TorchModel(base, adapter, dtype=dtype, threads=threads, context_tokens=context_tokens)
        return
    with run.stage(stage, {"base": base, "adapter": adapter or ""}) as made:
        if not made.is_complete:
            if progress:
                progress(stage, 0, 1, "export gguf")
            merged = ["--lora", str(adapter)] if adapter else []
            file = str(made.folder / "model.gguf")
            export("gguf", str(base), "-o", file, "--type", "f16", "--untimed", "--force", *merged)
    with GgufModel(run.folder / stage / "model.gguf", threads=threads, context_tokens=context_tokens) as model:
        yield model


def export(*arguments: str) -> None:
    """Run `edge-rag export`: training and export meet on disk."""
    command = [sys.executable, "-m", "edge_rag", "--quiet", "export", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise EdgeRagError(
            f"edge-rag export {' '.join(arguments)} failed: {said[-1].removeprefix('error: ') if said else ''}"
        )


def key_of(base: Path, adapter: Path | None, model: LanguageModel) -> str:
    """Return what tells models apart whose work is remembered."""
    return content_key(file_hashes(base), file_hashes(adapter) if adapter else {}, model.name)


def sample_once(
    run: TrainingRun,
    store: str,
    model: LanguageModel,
    made_by: str,
    prompts: Prompts,
    *,
    n: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    what: str,
    progress: Progress | None,
) -> list[list[Sampled]]:
    """Sample what the store does not hold yet, and store it: it is dear, and another session finds it."""
    keys = [content_key(made_by, as_json(prompt), n, max_tokens, temperature, seed) for prompt in prompts]
    with run.rows(store) as known:
        new = list({key: i for i, key in enumerate(keys) if key not in known}.values())
        tell = telling(progress, what, len(new))

        def keep(index: int, samples: list[Sampled]) -> None:
            known.add(keys[new[index]], [asdict(sample) for sample in samples])
            tell(index, samples)

        if new:
            model.sample(
                [prompts[i] for i in new], n=n, max_tokens=max_tokens, temperature=temperature, seed=seed, on_done=keep
            )  # fmt: skip
        return [[Sampled(**sample) for sample in known[key]] for key in keys]


def score_once(
    run: TrainingRun,
    store: str,
    model: LanguageModel,
    made_by: str,
    prompts: Prompts,
    answers: Sequence[Sequence[str]],
    *,
    what: str,
    progress: Progress | None,
) -> list[list[Scored]]:
    """Score what the store does not hold yet, and store it."""
    keys = [
        [content_key(made_by, as_json(prompt), text) for text in texts]
        for prompt, texts in zip(prompts, answers, strict=True)
    ]
    with run.rows(store) as known:
        new = [
            {key: text for key, text in zip(own, texts, strict=True) if key not in known}
            for own, texts in zip(keys, answers, strict=True)
        ]
        lacking = [n for n, own in enumerate(new) if own]
        tell = telling(progress, what, len(lacking))

        def keep(index: int, scores: list[Scored]) -> None:
            for key, score in zip(new[lacking[index]], scores, strict=True):
                known.add(key, asdict(score))
            tell(index, scores)

        if lacking:
            model.score([prompts[n] for n in lacking], [[*new[n].values()] for n in lacking], keep)
        return [[Scored(known[key]["text"], tuple(known[key]["logprobs"])) for key in own] for own in keys]


def borrow(other: Path, run: TrainingRun, store: str) -> None:
    """Add what another run has stored to this one's: its keys say what it was made from."""
    stored = read_rows(other / ROWS / f"{store}.jsonl")
    if not stored:
        raise UsageError(f"{other} holds no {store}", mend="give the folder of a run that has come so far")
    with run.rows(store) as known:
        for row in stored:
            if row["key"] not in known:
                known.add(row["key"], row["value"])


def telling(progress: Progress | None, what: str, total: int) -> Callable[[int, object], None]:
    """Return an `on_done` that tells how far the work is."""
    done = 0

    def tell(index: int, result: object) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(what, done, total, "")

    return tell


def as_json(prompt: Iterable[Message]) -> list[list[str]]:
    return [[message.role, message.content] for message in prompt]
