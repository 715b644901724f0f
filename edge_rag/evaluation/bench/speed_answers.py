"""How many questions a minute are answered from passages: `edge-rag bench answers`.

Three ways to ask the same prompts of one GGUF: GgufBatch; GgufGenerator, one after another; and llama-cpp-python's own
Llama.create_chat_completion, one after another. Greedy, with the same threads; models are opened before the clock starts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_rag.answering.prompt import answer_messages
from edge_rag.errors import UsageError
from edge_rag.evaluation.figures import Figure, Report, check_counts, figure, load_average, ratios, surroundings
from edge_rag.evaluation.question_sets import is_dev, read_rows
from edge_rag.interfaces import Message, Passage, Progress
from edge_rag.models import locate_generator
from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf import GgufGenerator
from edge_rag.models.gguf_batch import GgufBatch
from edge_rag.models.gguf_native import load_llama
from edge_rag.settings import Settings

BATCH, ONE, PEER = "GgufBatch", "GgufGenerator", "Llama.create_chat_completion"

Prompts = Sequence[Sequence[Message]]


@dataclass(frozen=True, slots=True)
class Round:
    """All prompts answered once."""

    texts: list[str]
    answer_tokens: int
    seconds: float  # wall time
    cpu_seconds: float  # of all threads


def prompts_of(name: str, *, limit: int, passages: int) -> list[list[Message]]:
    """Build prompts from the first dev questions of a set, each over its own first passages."""
    prompts = []
    for row in read_rows(name):
        if is_dev(row["question"]):
            shown = [_passage(p) for p in row.get("passages", ())[:passages]]
            prompts.append(answer_messages(row["question"], shown))
            if len(prompts) == limit:
                break
    return prompts


def measure(
    prompts: Prompts,
    *,
    rounds: int,
    answer_tokens: int,
    settings: Settings,
    peer: bool = True,
    command: str,
    progress: Progress | None = None,
) -> Report:
    """Answer all prompts in each way in turn, round by round."""
    check_counts(rounds=rounds, prompts=len(prompts))
    path = locate_generator(settings.generator)
    if path is None:
        raise UsageError(f"{settings.generator} is a server", mend="name a model or the path of a .gguf file")
    load_before = load_average()
    with ExitStack() as opened:
        batch = opened.enter_context(GgufBatch(path, threads=settings.threads, context_tokens=settings.context_tokens))
        one = opened.enter_context(
            GgufGenerator(path, threads=settings.threads, context_tokens=settings.context_tokens)
        )
        n_prompt = sum(batch.count_tokens(prompt) for prompt in prompts)
        batch.generate(prompts[:1], max_tokens=1)  # what the first call tries out is not timed
        ways: dict[str, Callable[[], tuple[list[str], int]]] = {
            BATCH: lambda: _in_batch(batch, prompts, answer_tokens),
            ONE: lambda: _one_by_one(one, prompts, answer_tokens),
        }
        if peer:
            llama = _open_peer(path, settings)
            opened.callback(llama.close)
            ways[PEER] = lambda: _by_peer(llama, prompts, answer_tokens)
        done: dict[str, list[Round]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                if progress:
                    progress("rounds", number, rounds, name)
                done[name].append(_timed(way))
    if progress:
        progress("rounds", rounds, rounds, "")
    notes = [
        f"{path.name}: {len(prompts)} prompts of {n_prompt / len(prompts):.0f} tokens on average, answers of up to"
        f" {answer_tokens}; {rounds} interleaved rounds, {usable_cores(settings.threads)} threads, greedy",
        "tokens: of prompts, shared beginnings counted each time, and of answers",
        f"the same text as {ONE}: {_same(done, BATCH, ONE)} of {len(prompts)}"
        + (f"; {PEER} as {ONE}: {_same(done, PEER, ONE)}" if peer else ""),
    ]
    return Report(
        "Answers to many questions", tuple(_figures(done, len(prompts), n_prompt)), tuple(notes),
        surroundings(command, load_before),
    )  # fmt: skip


def _figures(done: dict[str, list[Round]], n: int, n_prompt: int) -> Iterator[Figure]:
    for name, runs in done.items():
        yield figure(f"{name}: questions", "/s", [n / run.seconds for run in runs])
        yield figure(f"{name}: tokens", "/s", [(n_prompt + run.answer_tokens) / run.seconds for run in runs])
        yield figure(f"{name}: processor time for a question", "s", [run.cpu_seconds / n for run in runs])
        yield figure(f"{name}: cores at work", "", [run.cpu_seconds / run.seconds for run in runs])
    fastest = [run.seconds for run in done[BATCH]]
    for name, runs in done.items():
        if name != BATCH:
            yield figure(f"{BATCH} faster than {name}", "x", ratios([run.seconds for run in runs], fastest))


def _same(done: dict[str, list[Round]], a: str, b: str) -> int:
    return sum(x == y for x, y in zip(done[a][0].texts, done[b][0].texts, strict=True))


def _timed(way: Callable[[], tuple[list[str], int]]) -> Round:
    start, cpu = time.perf_counter(), time.process_time()
    texts, tokens = way()
    return Round(texts, tokens, time.perf_counter() - start, time.process_time() - cpu)


def _in_batch(batch: GgufBatch, prompts: Prompts, max_tokens: int) -> tuple[list[str], int]:
    answers = batch.generate(prompts, max_tokens=max_tokens)
    return [answer.text for answer in answers], sum(answer.answer_tokens for answer in answers)


def _one_by_one(generator: GgufGenerator, prompts: Prompts, max_tokens: int) -> tuple[list[str], int]:
    answers = [list(generator.generate(prompt, max_tokens=max_tokens)) for prompt in prompts]
    return ["".join(pieces) for pieces in answers], sum(
        map(len, answers)
    )  # a piece is a token, but for rare characters


def _by_peer(llama: Any, prompts: Prompts, max_tokens: int) -> tuple[list[str], int]:
    answers = [
        llama.create_chat_completion(
            [{"role": m.role, "content": m.content} for m in prompt], max_tokens=max_tokens, temperature=0.0
        )
        for prompt in prompts
    ]
    return [a["choices"][0]["message"]["content"] for a in answers], sum(
        a["usage"]["completion_tokens"] for a in answers
    )


def _open_peer(path: Path, settings: Settings) -> Any:
    """Open llama-cpp-python's own class with the same threads, loaded as it is for us: quiet and without busy waiting."""
    llama_cpp = load_llama()
    threads = usable_cores(settings.threads)
    return llama_cpp.Llama(
        str(path), n_ctx=settings.context_tokens, n_threads=threads, n_threads_batch=threads, verbose=False
    )


def _passage(row: dict[str, str]) -> Passage:
    return Passage(0, 0, "", row["title"], "", None, 0, len(row["text"]), row["text"], 0.0)
