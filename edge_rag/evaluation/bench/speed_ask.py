"""How soon an answer begins, how fast it goes on, and what it needs: `edge-rag bench ask`.

Each round is a new process that opens the models and asks three questions: one, a second over the very same passages
(whose keys and values the model still has), and one about something else. Confidence 0 lets every one be answered, and all
of them show as many passages as the settings say, in the order of the search.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_rag.answering import Assistant, KeepTop
from edge_rag.errors import UsageError
from edge_rag.evaluation.bench import speed_choice
from edge_rag.evaluation.figures import MB, Figure, Report, check_counts, figure, load_average, ratios, surroundings
from edge_rag.evaluation.processes import fresh_process, memory_of
from edge_rag.interfaces import Generator, Message, Passage, Progress, Selection, Style
from edge_rag.library import Library
from edge_rag.models import is_lister
from edge_rag.settings import Settings


@dataclass(frozen=True, slots=True)
class Round:
    load_s: float  # embedder and generator, before the first question
    first_token_s: tuple[float, float, float]
    prompt_tokens: tuple[int, int, int]
    prefill: float  # tokens/s, first question
    generation: float  # tokens/s, all answers
    memory: dict[str, int]  # bytes


def measure(
    library: Path,
    questions: Sequence[str],
    *,
    generators: Sequence[str],
    rounds: int,
    settings: Settings,
    hf_selector: Path | None = None,
    command: str,
    progress: Progress | None = None,
) -> Report:
    """Ask with each generator in turn, round by round; the first of them is the one that the targets are for.

    Where the settings name a selector, what it costs and saves is measured, too: see speed_choice.
    """
    check_counts(rounds=rounds)
    if len(questions) != 3:
        raise UsageError(
            f"{len(questions)} questions were given",
            mend="give three: one, a second on the same matter, one on another",
        )
    load_before = load_average()
    done: dict[str, list[Round]] = {name: [] for name in generators}
    for number in range(rounds):
        for name in generators:
            if progress:
                progress("rounds", number, rounds, name)
            own = replace(settings, generator=name, confidence=0.0)
            with fresh_process() as worker:
                done[name].append(worker.submit(ask_three, library, own, tuple(questions)).result())
    if progress:
        progress("rounds", rounds, rounds, "")
    figures = [f for i, (name, runs) in enumerate(done.items()) for f in _figures(_short(name), runs, is_main=i == 0)]
    figures += _comparisons(done)
    if settings.selector and not is_lister(settings.selector):
        figures += speed_choice.figures(library, (questions[0], questions[2]), settings, hf_selector, rounds, progress)
    tokens = done[generators[0]][0].prompt_tokens
    notes = [
        f"three questions of {tokens[0]}, {tokens[1]} and {tokens[2]} prompt tokens, retrieval and the choice of evidence"
        f" included; {rounds} interleaved rounds, each a new process",
        "the second question is over the first one's passages; models are opened before the first question",
    ]
    return Report(
        "Ask: from the question to the first token", tuple(figures), tuple(notes), surroundings(command, load_before)
    )


def _figures(name: str, runs: Sequence[Round], *, is_main: bool) -> Iterator[Figure]:
    first, second, other = ([run.first_token_s[i] for run in runs] for i in range(3))
    yield figure(f"{name}: first token, first question", "s", first)
    yield figure(f"{name}: second question, same passages", "s", second)
    yield figure(f"{name}: unrelated question", "s", other)
    yield figure(f"{name}: second sooner than first", "x", ratios(first, second), at_least=3 if is_main else None)
    yield figure(f"{name}: loading the models", "s", [run.load_s for run in runs])
    yield figure(f"{name}: prefill", "tokens/s", [run.prefill for run in runs])
    yield figure(f"{name}: generation", "tokens/s", [run.generation for run in runs])
    for key, label in (("peak", "peak memory"), ("private", "of it private"), ("mapped", "of it mapped files")):
        if all(key in run.memory for run in runs):
            limit = 500.0 if is_main and key == "peak" else None
            yield figure(f"{name}: {label}", "MB", [run.memory[key] / MB for run in runs], below=limit)


def _comparisons(done: dict[str, list[Round]]) -> Iterator[Figure]:
    (main, runs), *others = done.items()
    for name, other in others:
        pair = f"{_short(main)} to {_short(name)}"
        yield figure(f"{pair}: prefill", "x", ratios([r.prefill for r in runs], [r.prefill for r in other]))
        yield figure(f"{pair}: generation", "x", ratios([r.generation for r in runs], [r.generation for r in other]))


def _short(name: str) -> str:
    return Path(name).name


# --- what runs in a process of its own ---


def ask_three(path: Path, settings: Settings, questions: Sequence[str]) -> Round:
    pin, watch = _Pin(settings.passages), None
    with Library.open(path, settings=settings) as library:
        start = time.perf_counter()
        library.embedder.embed(["warm"])
        with Assistant(library, settings=settings) as opener:
            watch = _Stopwatch(opener.generator)
            load_s = time.perf_counter() - start
            assistant = Assistant(library, settings=settings, generator=watch, selector=pin)
            first = assistant.ask(questions[0])
            second = assistant.ask(questions[1])
            pin.first = Selection(())
            other = assistant.ask(questions[2])
            answers = (first, second, other)
            return Round(
                load_s=load_s,
                first_token_s=tuple(a.timings.first_token_ms / 1000 for a in answers),  # type: ignore[arg-type]
                prompt_tokens=tuple(a.prompt_tokens for a in answers),  # type: ignore[arg-type]
                prefill=first.prompt_tokens / watch.first_s[0],
                generation=watch.n_later / watch.later_s if watch.later_s else 0.0,
                memory=memory_of(),
            )


class _Pin:
    """Keep the best passages of a first question for those that follow."""

    name = "pin"

    def __init__(self, n: int) -> None:
        self._keep = KeepTop(n)
        self.first = Selection(())

    def select(self, question: str, passages: Sequence[Passage]) -> Selection:
        self.first = self.first if self.first.passages else self._keep.select(question, passages)
        return self.first


@dataclass(slots=True)
class _Stopwatch:
    """A generator that notes how long another one takes. A piece is a token, but for characters of several."""

    inner: Generator
    first_s: list[float] = field(default_factory=list)
    n_later: int = 0
    later_s: float = 0.0

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def context_tokens(self) -> int:
        return self.inner.context_tokens

    @property
    def style(self) -> Style:
        return self.inner.style

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self.inner.count_tokens(messages)

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[str]:
        start = time.perf_counter()
        for number, piece in enumerate(self.inner.generate(messages, max_tokens=max_tokens)):
            now = time.perf_counter()
            if number == 0:
                self.first_s.append(now - start)
            else:
                self.n_later += 1
                self.later_s += now - start
            yield piece
            start = time.perf_counter()

    def close(self) -> None:
        self.inner.close()
