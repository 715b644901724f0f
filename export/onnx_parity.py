"""Compare an exported encoder with its original: token ids, vectors or scores, rankings, size, load time, speed.

The original is run by transformers in float32, the export by the runtime's own classes, both on real text: Python's
manual, or a file of the user's.
"""

import pydoc_data.topics
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401  # before loading is timed

from edge_rag.errors import ModelError
from edge_rag.models.embedder import OnnxEmbedder
from edge_rag.models.onnx_folder import Tokenizer
from edge_rag.models.selector import OnnxScorer

from .onnx_graph import Array
from .onnx_source import Original
from .parity_texts import HOSTILE

# What an export must reach: at least, for *_difference at most.
FLOORS: dict[tuple[str, str], dict[str, float]] = {
    ("embedder", "fp32"): {"cosine_mean": 0.99999, "cosine_min": 0.9999, "top10_overlap": 0.99},
    ("embedder", "int8"): {"cosine_mean": 0.99, "cosine_min": 0.95, "top10_overlap": 0.85},
    ("selector", "fp32"): {"spearman": 0.9999, "top5_overlap": 0.99, "logit_difference": 0.001},
    ("selector", "int8"): {"spearman": 0.95, "top5_overlap": 0.85},
}
PIECE_TOKENS = 256  # of a text; longer ones say little more, and take long
QUESTIONS, CANDIDATES = 20, 20
TIMED_TEXTS, ROUNDS = 16, 3

# What goes with an export, so that another machine can compare: about as long as a chunk.
_FACTS = (
    "The first lamp burnt colza oil and was lit on 1 October 1849. In 1902 it gave way to a paraffin burner, and in 1978 to"
    " an electric lamp of 400 watts, whose light is seen at 19 nautical miles in clear weather.",
    "Thomas Moar kept the light from 1891 to 1914. He wrote down the weather four times a day; 31 of his books are kept in"
    " the archive. His daughter Ann took over the rain gauge when he fell ill.",
    "The tower is open from Easter to the end of September, from 10:00 to 16:30. There are 142 steps to the gallery. The"
    " boat leaves the pier at 9:15, 11:45 and 14:00; it does not sail in winds above force 6.",
    "The firm of Tarn and Holm stripped the roof in May, renewed eleven of the sixteen copper sheets and gilded the vane."
    " The work cost 38,400 pounds and was paid from the harbour fund.",
    "To make the bread, mix 500 g of flour with 320 g of water, 10 g of salt and a little yeast; let the dough rest for an"
    " hour, fold it twice, and bake it for forty minutes in a hot oven with a bowl of water.",
    "A binary search halves the range in each step: compare the middle element with the key and go on with the half that"
    " may hold it. It needs a sorted array and takes time proportional to the logarithm of its length.",
)
PROBE_TEXTS = [f"{fact} {_FACTS[(i + 1) % len(_FACTS)]}" for i, fact in enumerate(_FACTS)]
PROBE_QUESTIONS = ["When was the electric lamp fitted?", "Who kept the light in 1900?", "How is bread baked?"]


def sample_texts(sample: Path | None, count: Callable[[str], int], max_tokens: int) -> list[str]:
    """Cut running text into pieces of whole paragraphs, most of them near `max_tokens`."""
    texts, current = [], ""
    for paragraph in re.split(r"\n\s*\n", _running_text(sample)):
        longer = f"{current}\n\n{paragraph}" if current else paragraph
        if count(longer) > max_tokens and current:
            texts.append(current)
            longer = paragraph
        current = longer
    if len(texts) < 2 * CANDIDATES:
        raise ModelError(f"{sample} has {len(texts)} pieces of {max_tokens} tokens, and {2 * CANDIDATES} are needed",
                         mend="give a longer --sample, of many paragraphs")  # fmt: skip
    return texts


def sample_pairs(texts: Sequence[str], n_questions: int) -> list[tuple[str, list[str]]]:
    """Make questions of the beginnings of some pieces, each with the pieces around it and as many from elsewhere."""
    chance = random.Random(0)
    found = []
    for n in range(n_questions):
        at = n * (len(texts) - 1) // max(1, n_questions - 1)
        first = min(max(0, at - CANDIDATES // 4), len(texts) - CANDIDATES // 2)
        near = list(range(first, first + CANDIDATES // 2))
        far = chance.sample([i for i in range(len(texts)) if i not in near], CANDIDATES // 2)
        found.append((" ".join(texts[at].split()[:12]), [texts[i] for i in near + far]))
    return found


def token_mismatches(original: Original, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the hostile texts, alone and as pairs, that get other ids than the original's."""
    limit = original.plan.max_tokens
    found = []
    for text in HOSTILE:
        expected: Any = original.encode(text)
        ids: Any = tokenizer.encode(text, limit)
        if ids == expected and original.plan.role == "selector":
            expected, ids = original.encode_pair("Which one?", text), tokenizer.encode_pair("Which one?", text, limit)
        if ids != expected:
            found.append({"text": text, "original": expected, "export": ids})
    return found


def compare_embedder(folder: Path, precision: str, texts: list[str], expected: Array, threads: int) -> dict[str, Any]:
    """Compare with the original's vectors: cosines, and how many of each text's ten nearest neighbours stay."""
    start = time.perf_counter()
    embedder = OnnxEmbedder(folder, threads=threads, precision=precision)
    load_s = time.perf_counter() - start
    found = embedder.embed(texts)
    cosines = np.sum(found * expected, axis=1)
    overlap = [len(set(a) & set(b)) / 10 for a, b in zip(_nearest(found), _nearest(expected), strict=True)]
    return {
        "n_texts": len(texts),
        "cosine_mean": round(float(cosines.mean()), 5),
        "cosine_min": round(float(cosines.min()), 5),
        "top10_overlap": round(float(np.mean(overlap)), 4),
        "load_ms": round(load_s * 1000),
        "fingerprint": embedder.fingerprint,
    }


def compare_scorer(
    folder: Path, precision: str, asked: list[tuple[str, list[str]]], expected: Array, threads: int
) -> dict[str, Any]:
    """Compare with the original's logits: their order for each question, the best five, the largest difference."""
    start = time.perf_counter()
    scorer = OnnxScorer(folder, threads=threads, precision=precision)
    load_s = time.perf_counter() - start
    found = np.stack([scorer.score(question, texts) for question, texts in asked])
    wanted = expected.reshape(found.shape)
    best = [len(set(np.argsort(-a)[:5]) & set(np.argsort(-b)[:5])) / 5 for a, b in zip(found, wanted, strict=True)]
    return {
        "n_questions": len(asked),
        "n_pairs": found.size,
        "spearman": round(float(np.mean([_spearman(a, b) for a, b in zip(found, wanted, strict=True)])), 5),
        "top5_overlap": round(float(np.mean(best)), 4),
        "logit_difference": round(float(np.abs(found - wanted).max()), 6),
        "logit_range": round(float(wanted.max() - wanted.min()), 4),
        "load_ms": round(load_s * 1000),
        "fingerprint": scorer.fingerprint,
    }


def below_floors(role: str, precision: str, figures: dict[str, Any]) -> list[str]:
    failed = []
    for name, floor in FLOORS[role, precision].items():
        highest = name.endswith("_difference")
        good = figures[name] <= floor if highest else figures[name] >= floor
        if not good:  # also where a figure is no number
            failed.append(f"{precision}: {name} {figures[name]} is {'above' if highest else 'below'} {floor}")
    return failed


def speeds(
    original: Original, folder: Path, precisions: Sequence[str], samples: Sequence[Any], threads: int
) -> dict[str, float]:
    """Return texts (or pairs) per second of the original and of each precision: the best of some rounds, in turn."""
    samples = samples[:TIMED_TEXTS]
    runs: dict[str, Callable[[], Any]] = {"original": lambda: original.run(samples)}
    for precision in precisions:
        runs[precision] = _runner(folder, original.plan.role, precision, samples, threads)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return {f"{name}_texts_s": round(len(samples) / seconds, 1) for name, seconds in best.items()}


def _runner(folder: Path, role: str, precision: str, samples: Sequence[Any], threads: int) -> Callable[[], Any]:
    if role == "embedder":
        embedder = OnnxEmbedder(folder, threads=threads, precision=precision)
        return lambda: embedder.embed(samples)
    scorer = OnnxScorer(folder, threads=threads, precision=precision)
    question = samples[0][0]  # as at run time: one question, many passages
    return lambda: scorer.score(question, [text for _, text in samples])


def _running_text(sample: Path | None) -> str:
    if sample is None:
        return "\n\n".join(pydoc_data.topics.topics.values())
    try:
        return sample.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{sample} cannot be read as UTF-8 text: {error}", mend="give another --sample") from error


def _nearest(vectors: Array) -> list[list[int]]:
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -1)
    return [list(map(int, row)) for row in np.argsort(-similar, axis=1)[:, :10]]


def _spearman(a: Array, b: Array) -> float:
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Array) -> Array:
    """Return the rank of each value; equal ones (a text that is there twice) share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Array = (np.cumsum(counts) - (counts - 1) / 2).astype(np.float32)
    return means[place]
