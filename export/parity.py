"""Compare an exported model with its original: the same texts, the same tokens, and how far apart what each predicts is.

The original is run by transformers in float32 (and its adapter by peft), the export by llama.cpp. Every export is
compared before its file appears; one that is below the floor of its type does not appear.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from tokenizers import Tokenizer

from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf_native import N_BATCH, NativeModel, pieces
from edge_rag.models.gguf_vocabulary import Vocabulary, common_prefix

from . import parity_texts

Logits = npt.NDArray[np.float32]  # (positions, vocabulary)
CONTEXT = 2048
GREEDY_TOKENS = 32
READ_TOKENS, WRITTEN_TOKENS, REPEATS = 256, 32, 3
# What models call keys and values from before, in what they take and give.
_CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"


@dataclass(frozen=True, slots=True)
class Floors:
    """What an export of a type must reach, at least (at most, for kl)."""

    cosine: float  # mean, of the logits
    top1: float  # share of positions with the same likeliest token
    kl: float  # mean divergence of the export's distribution from the original's, in nats
    tie: float = 0.0  # positions where the original's own logits for the two are nearer than this do not count


# F32 and F16 must agree everywhere but at ties. Their keys and values are kept in 32 bits here: the 16 bits of the runtime alone
# move single logits of SmolLM2 by 0.009. Then F32 differs from transformers by the order of its sums (KL below 1e-9), and F16 by
# the rounding of weights and inputs, which moves single logits by 0.02: 4 of 826 positions differ, at gaps of less than 0.008.
# Quantised types are measured as they are run, and no tie excuses them.
FLOORS = {
    "f32": Floors(0.99999, 1.0, 1e-5, tie=0.001),
    "f16": Floors(0.9999, 1.0, 1e-3, tie=0.02),
    "q8_0": Floors(0.99, 0.90, 0.03),
    "q6_k": Floors(0.985, 0.88, 0.05),
    "q5_k_m": Floors(0.90, 0.70, 0.40),
    "q4_k_m": Floors(0.90, 0.70, 0.40),
    "q4_0": Floors(0.85, 0.60, 0.80),
}


class Original:
    """A model as transformers runs it, in float32."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, render: Callable[[list[dict[str, str]]], str],
        tokenize_to_train: Callable[[str], list[int]], threads: int,
    ) -> None:  # fmt: skip
        self._model = model
        self._tokenizer = tokenizer
        self._render = render
        self.tokenize_to_train = (
            tokenize_to_train  # as transformers' AutoTokenizer does, which may read more than tokenizer.json
        )
        torch.set_num_threads(usable_cores(threads))

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prompt_tokens(self, messages: Sequence[Any]) -> list[int]:
        return self.tokenize(self._render([{"role": m.role, "content": m.content} for m in messages]))

    def logits(self, tokens: Sequence[int]) -> Logits:
        with torch.inference_mode():
            values: Logits = self._model(input_ids=torch.tensor([list(tokens)])).logits[0].float().numpy()
        return values

    def seconds(self, tokens: Sequence[int]) -> tuple[float, float]:
        """Return how long it takes to read tokens, and to write some more one at a time."""
        with torch.inference_mode():
            start = time.perf_counter()
            output = self._model(input_ids=torch.tensor([list(tokens)]), use_cache=True, logits_to_keep=1)
            read = time.perf_counter()
            for _ in range(WRITTEN_TOKENS):
                token = output.logits[0, -1].argmax().reshape(1, 1)
                output = self._model(input_ids=token, use_cache=True, **{_CACHE: output[_CACHE]})
            return read - start, time.perf_counter() - read


class Export:
    """A GGUF, with its adapter, as llama.cpp runs it."""

    def __init__(
        self, path: Path, quantised_type: str, *, lora: Path | None = None, threads: int = 0, exact: bool | None = None
    ) -> None:
        """Open it; `exact` is whether keys and values are kept in 32 bits, and follows the type unless it is given."""
        self.floors = FLOORS[quantised_type]
        self._native = NativeModel(path, lora=lora)
        self.vocabulary = Vocabulary(self._native, path.name)
        n = usable_cores(threads)
        self._context = self._native.open_context(
            tokens=CONTEXT,
            sequences=1,
            read_threads=n,
            write_threads=n,
            exact=self.floors.top1 == 1.0 if exact is None else exact,
        )

    def __enter__(self) -> "Export":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
        self._native.close()

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Return the logits after each token."""
        self._context.clear()
        rows = []
        for start in range(0, len(tokens), N_BATCH):
            piece = tokens[start : start + N_BATCH]
            self._context.write([(token, start + i, 0) for i, token in enumerate(piece)])
            rows += [self._context.logits(i).copy() for i in range(len(piece))]
        return np.stack(rows)

    def greedy(self, tokens: list[int], n: int) -> list[int]:
        """Return the answer to a prompt, its end included."""
        self._read(tokens)
        answer: list[int] = []
        while True:
            answer.append(int(np.argmax(self._context.logits(0))))
            if len(answer) == n or self.vocabulary.is_end(answer[-1]):
                return answer
            self._context.write([(answer[-1], len(tokens) + len(answer) - 1, 0)])

    def seconds(self, tokens: list[int]) -> tuple[float, float]:
        start = time.perf_counter()
        self._read(tokens)
        read = time.perf_counter()
        for i in range(WRITTEN_TOKENS):
            token = int(np.argmax(self._context.logits(0)))
            self._context.write([(token, len(tokens) + i, 0)])
        return read - start, time.perf_counter() - read

    def _read(self, tokens: list[int]) -> None:
        self._context.clear()
        for start, end in pieces(0, len(tokens)):
            self._context.read(0, start, tokens[start:end])


@dataclass(slots=True)
class Measured:
    """What was found on some texts."""

    tie: float
    cosines: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    largest_gap: float = 0.0  # between the original's likeliest token and the export's, where they differ
    n_same: int = 0
    n_ties: int = 0
    n_positions: int = 0

    def add(self, original: Logits, export: Logits) -> None:
        best, chosen = original.argmax(axis=1), export.argmax(axis=1)
        rows = np.arange(len(best))
        gaps = original[rows, best] - original[rows, chosen]
        self.n_positions += len(best)
        self.largest_gap = max(self.largest_gap, float(gaps.max(initial=0.0)))
        self.n_same += int((best == chosen).sum())
        self.n_ties += int(((best != chosen) & (gaps < self.tie)).sum())
        norms = np.linalg.norm(original, axis=1) * np.linalg.norm(export, axis=1)
        self.cosines += ((original * export).sum(axis=1) / norms).tolist()
        p, q = _log_softmax(original), _log_softmax(export)
        self.divergences += (np.exp(p) * (p - q)).sum(axis=1).tolist()


def compare(
    original: Original, export: Export, *,
    stop_ids: Sequence[int] = (), composes: bool = False, trains: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of an export, its floors, and what of it is below them.

    `composes`: the tokenizer does so, and llama.cpp does not. `trains`: a folder was made to be trained, with AutoTokenizer.
    """
    vocabulary, floors = export.vocabulary, export.floors
    mismatches = token_mismatches(original, vocabulary, composes=composes)
    prompts = [original.prompt_tokens(messages) for messages in parity_texts.prompts()]
    other_prompts = [
        messages[-1].content
        for messages, ids in zip(parity_texts.prompts(), prompts, strict=True)
        if vocabulary.prompt_tokens(messages) != ids
    ]
    unknown_stops = [token for token in stop_ids if not vocabulary.is_end(token)]
    measured = Measured(floors.tie)
    texts = [*prompts, *(original.tokenize(text) for text in parity_texts.PLAIN)]
    for i, tokens in enumerate(texts):
        known = max((common_prefix(tokens, earlier) for earlier in texts[:i]), default=0)  # each beginning counts once
        measured.add(original.logits(tokens)[known:], export.logits(tokens)[known:])
    report: dict[str, Any] = {
        "texts": len(texts),
        "positions": measured.n_positions,
        "cosine_mean": float(np.mean(measured.cosines)),
        "cosine_min": float(np.min(measured.cosines)),
        "top1": measured.n_same / measured.n_positions,
        "ties": measured.n_ties,
        "largest_gap": measured.largest_gap,
        "top1_without_ties": measured.n_same / max(1, measured.n_positions - measured.n_ties),
        "kl_mean": float(np.mean(measured.divergences)),
        "kl_max": float(np.max(measured.divergences)),
        "greedy": _greedy(original, export, prompts),
        "hostile_texts": len(parity_texts.HOSTILE),
        "token_mismatches": mismatches,
        "prompt_mismatches": other_prompts,
        "stop_ids": list(stop_ids),
        "floors": dataclasses.asdict(floors),
    }
    report["failed"] = _failed(report, floors, unknown_stops)
    trained_otherwise = [t for t in parity_texts.HOSTILE if original.tokenize_to_train(t) != original.tokenize(t)]
    report["auto_tokenizer_mismatches"] = trained_otherwise
    if trains and trained_otherwise:
        report["failed"].append(
            f"AutoTokenizer gives {len(trained_otherwise)} hostile texts other ids than tokenizer.json"
        )
    return report


def token_mismatches(original: Original, vocabulary: Vocabulary, *, composes: bool = False) -> list[dict[str, Any]]:
    """Return the hostile texts that get other ids in llama.cpp; with `composes`, of texts that are composed already."""
    import unicodedata

    texts = [unicodedata.normalize("NFC", text) if composes else text for text in parity_texts.HOSTILE]
    pairs = ((text, original.tokenize(text), vocabulary.tokenize(text, add_special=False)) for text in texts)
    return [{"text": text, "original": ids, "export": found} for text, ids, found in pairs if ids != found]


def speeds(original: Original, export: Export) -> dict[str, float]:
    """Return tokens per second of both, read and written: the middle of some runs, in turn, after one to warm up."""
    tokens = [t for text in parity_texts.PLAIN for t in original.tokenize(text)]
    tokens = (tokens * (READ_TOKENS // len(tokens) + 1))[:READ_TOKENS]
    runs: dict[str, list[tuple[float, float]]] = {"original": [], "export": []}
    for _ in range(REPEATS + 1):
        runs["original"].append(original.seconds(tokens))
        runs["export"].append(export.seconds(tokens))
    found = {}
    for name, seconds in runs.items():
        found[f"{name}_read_tokens_s"] = round(READ_TOKENS / median(s[0] for s in seconds[1:]), 1)
        found[f"{name}_written_tokens_s"] = round(WRITTEN_TOKENS / median(s[1] for s in seconds[1:]), 1)
    return found


def _greedy(original: Original, export: Export, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Continue each prompt, and count how far the original would have written the same."""
    n_same = n_written = n_whole = n_ties = 0
    for prompt in prompts:
        answer = export.greedy(prompt, GREEDY_TOKENS)
        logits = original.logits([*prompt, *answer[:-1]])[len(prompt) - 1 :]
        same = logits.argmax(axis=1) == np.array(answer)
        first = len(answer) if same.all() else int(np.argmin(same))
        n_written += len(answer)
        n_same += first
        n_whole += first == len(answer)
        n_ties += first < len(answer) and float(logits[first].max() - logits[first][answer[first]]) < export.floors.tie
    return {"prompts": len(prompts), "whole": n_whole, "parted_at_a_tie": n_ties,
            "agreement": n_same / n_written}  # fmt: skip


def _failed(report: dict[str, Any], floors: Floors, unknown_stops: Sequence[int]) -> list[str]:
    failed = []
    if report["token_mismatches"]:
        failed.append(
            f"{len(report['token_mismatches'])} of {report['hostile_texts']} hostile texts get other token ids"
        )
    if report["prompt_mismatches"]:
        failed.append(
            f"{len(report['prompt_mismatches'])} prompts get other token ids: the chat template is read otherwise"
        )
    if unknown_stops:
        failed.append(f"llama.cpp does not stop at the tokens {unknown_stops}")
    if not report["cosine_mean"] >= floors.cosine:
        failed.append(f"cosine {report['cosine_mean']:.5f} is below {floors.cosine}")
    exact = floors.top1 == 1.0
    top1 = report["top1_without_ties"] if exact else report["top1"]
    if not top1 >= floors.top1:
        failed.append(f"top-1 agreement {top1:.3f} is below {floors.top1}")
    if not report["kl_mean"] <= floors.kl:
        failed.append(f"KL {report['kl_mean']:.4f} is above {floors.kl}")
    greedy = report["greedy"]
    if exact and greedy["whole"] + greedy["parted_at_a_tie"] < greedy["prompts"]:
        failed.append("greedy answers part where the original sees no tie")
    return failed


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    values: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return values
