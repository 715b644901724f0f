"""What a selector costs and what it saves: the part of `edge-rag bench ask` for those who have one.

pairs     20 pairs of a question and a passage, 256 tokens each: our scorer beside sentence-transformers with the same weights
answers   from a question to the first token of its answer: `ask` with the selector, beside the usual pipeline, the five
          passages whose vectors are nearest, in one prompt of llama-cpp-python's own class
Contestants have a process each and take turns; what a prompt has in common with the one before, both keep.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_rag.answering import Assistant
from edge_rag.answering.prompt import answer_messages
from edge_rag.errors import UsageError
from edge_rag.evaluation.figures import Figure, figure, ratios
from edge_rag.evaluation.processes import fresh_process
from edge_rag.interfaces import Progress
from edge_rag.library import EVERYTHING, Library
from edge_rag.models import locate_generator, open_scorer
from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf_native import load_llama
from edge_rag.settings import Settings

PAIRS, TOKENS, SHOWN = 20, 256, 5
PEER = "sentence-transformers, torch"
NAIVE = f"the {SHOWN} nearest passages in one prompt"


def figures(
    library: Path, questions: Sequence[str], settings: Settings, hf_folder: Path | None, rounds: int,
    progress: Progress | None,
) -> Iterator[Figure]:  # fmt: skip
    """`hf_folder`: what the selector was made of (RUN/model/model); without it, it is timed alone."""
    if hf_folder is not None and not (hf_folder / "config.json").is_file():
        raise UsageError(f"{hf_folder} is no Hugging Face folder", mend="give RUN/model/model of a trained selector")
    pairs = _pairs(library, settings, questions[0])
    scorers: dict[str, Callable[[], float]] = {"selector": functools.partial(score_ours, settings, pairs)}
    if hf_folder is not None and find_spec("sentence_transformers"):
        scorers[PEER] = functools.partial(score_peer, hf_folder, usable_cores(settings.threads), pairs)
    seconds = _in_turn(scorers, rounds, "pairs", progress)
    yield figure(f"selector: {PAIRS} pairs of {TOKENS} tokens", "s", seconds["selector"])
    if PEER in seconds:
        yield figure(f"{PEER}: {PAIRS} pairs", "s", seconds[PEER])
        yield figure(f"selector faster than {PEER}", "x", ratios(seconds[PEER], seconds["selector"]), at_least=3)

    if locate_generator(settings.generator) is None:
        return  # a server: how soon it answers says nothing of this machine
    own = replace(settings, confidence=0.0)
    ways: dict[str, Callable[[], float]] = {
        "ask": functools.partial(first_token, library, own, tuple(questions)),
        NAIVE: functools.partial(first_token_naive, library, own, tuple(questions)),
    }
    seconds = _in_turn(ways, rounds, "first tokens", progress)
    yield figure("ask with the selector: first token", "s", seconds["ask"])
    yield figure(f"{NAIVE}: first token", "s", seconds[NAIVE])
    yield figure(f"sooner than {NAIVE}", "x", ratios(seconds[NAIVE], seconds["ask"]), at_least=4)


def _in_turn(
    ways: dict[str, Callable[[], float]], rounds: int, what: str, progress: Progress | None
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(fresh_process()) for name in ways}
        for number in range(-1, rounds):  # the first is to warm up
            for name, way in ways.items():
                if progress:
                    progress(what, max(0, number), rounds, name)
                lap = workers[name].submit(way).result()
                if number >= 0:
                    seconds[name].append(lap)
    return seconds


def _pairs(library: Path, settings: Settings, question: str) -> tuple[tuple[str, str], ...]:
    """Make pairs that are longer than they may be of the library's own texts: both sides cut them to the same tokens."""
    with Library.open(library, settings=settings) as opened:
        passages = opened.dense(opened.embedder.embed([question])[0], 2 * PAIRS, EVERYTHING)
    words = " ".join(passage.text for passage in passages).split() or [question]
    words *= -(-2 * TOKENS // len(words)) + 1
    step = max(1, (len(words) - TOKENS) // PAIRS)
    return tuple((question, " ".join(words[n * step : n * step + TOKENS])) for n in range(PAIRS))


# --- what runs in processes of their own, where what is opened stays open ---


def score_ours(settings: Settings, pairs: Sequence[tuple[str, str]]) -> float:
    scorer = _scorer(settings)
    start = time.perf_counter()
    scorer.score(pairs[0][0], [text for _, text in pairs])
    return time.perf_counter() - start


def score_peer(folder: Path, threads: int, pairs: Sequence[tuple[str, str]]) -> float:
    peer = _cross_encoder(folder, threads)
    start = time.perf_counter()
    peer.predict(list(pairs), batch_size=PAIRS, show_progress_bar=False)
    return time.perf_counter() - start


def first_token(library: Path, settings: Settings, questions: Sequence[str]) -> float:
    """Return the mean over the questions."""
    assistant = _assistant(library, settings)
    return sum(assistant.ask(question).timings.first_token_ms for question in questions) / len(questions) / 1000


def first_token_naive(library: Path, settings: Settings, questions: Sequence[str]) -> float:
    opened, llama = _naive(library, settings)
    taken = []
    for question in questions:
        start = time.perf_counter()
        passages = opened.dense(opened.embedder.embed([question])[0], SHOWN, EVERYTHING)
        messages = answer_messages(question, passages, style="words")
        pieces = llama.create_chat_completion(
            [{"role": m.role, "content": m.content} for m in messages], max_tokens=settings.answer_tokens,
            temperature=0.0, stream=True,
        )  # fmt: skip
        next(piece for piece in pieces if piece["choices"][0]["delta"].get("content"))
        taken.append(time.perf_counter() - start)
        pieces.close()
    return sum(taken) / len(taken)


@functools.cache
def _scorer(settings: Settings) -> Any:
    scorer = open_scorer(settings.selector, threads=settings.threads)
    scorer.max_tokens = TOKENS
    return scorer


@functools.cache
def _cross_encoder(folder: Path, threads: int) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(threads)  # what torch goes by, if it is set before torch is loaded
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), max_length=TOKENS, device="cpu")


@functools.cache
def _assistant(library: Path, settings: Settings) -> Assistant:
    return Assistant(Library.open(library, settings=settings), settings=settings)


@functools.cache
def _naive(library: Path, settings: Settings) -> tuple[Library, Any]:
    llama_cpp = load_llama()  # as it is loaded for us: quiet, without busy waiting and what ends the process
    threads = usable_cores(settings.threads)
    path = locate_generator(settings.generator)
    llama = llama_cpp.Llama(
        str(path), n_ctx=settings.context_tokens, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    return Library.open(library, settings=settings), llama
