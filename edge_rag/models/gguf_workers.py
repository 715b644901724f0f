"""The threads that work through many prompts of one call: who takes which prompt, and how results and errors come back.

Prompts are sorted by their tokens, so that neighbours begin alike; each worker goes through a stretch of that order
and takes over keys and values for what a prompt shares with one that it still holds. A worker without work takes over
half of what the slowest has left.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from edge_rag.errors import EdgeRagError, ModelError
from edge_rag.models.gguf_vocabulary import common_prefix

PIECE = 64  # tokens for each call of llama.cpp: more are no faster, and Ctrl-C has to wait for them
HELD_TOKENS = 8192  # by all sequences of a worker: 180 MB of keys and values for the default model
MOST_SEQUENCES = 16  # of 1, 4, 8 and 16 answers together a core writes 34, 68, 92 and 117 tokens/s

R = TypeVar("R")


class Call(Generic[R]):
    """What the workers of one call share."""

    def __init__(self, prompts: list[list[int]], n_workers: int) -> None:
        self.prompts = prompts  # their tokens
        self.results: queue.SimpleQueue[tuple[int, R | BaseException]] = queue.SimpleQueue()
        self.stop = threading.Event()
        self._shares = _Shares(prompts, n_workers)

    def take(self, worker: int) -> int | None:
        """Return the next prompt of a worker; None if all have been taken."""
        return self._shares.take(worker)

    def report(self, index: int, result: R | BaseException) -> None:
        self.results.put((index, result))

    def next_result(self) -> tuple[int, R]:
        """Wait for the next result; raise what ended a worker."""
        while True:
            try:
                index, result = self.results.get(timeout=0.2)  # Windows tells of Ctrl-C only between waits
            except queue.Empty:
                continue
            if isinstance(result, BaseException):
                raise _as_edge_rag_error(result) from result
            return index, result


@dataclass(slots=True)
class Crew:
    """The worker threads of one model, for one call at a time."""

    name: str
    size: int
    _workers: list[threading.Thread] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(
        self, prompts: list[list[int]], work: Callable[[Call[R], int], None], on_result: Callable[[int, R], None]
    ) -> None:
        """Let each worker do `work(call, its number)`, and hand over results in the calling thread until all are there.

        What `on_result` raises, and Ctrl-C, end the call; so does the first error of a worker.
        """
        call: Call[R] = Call(prompts, self.size)
        self._stop = call.stop
        try:
            for number in range(min(self.size, len(prompts))):
                worker = threading.Thread(target=_guarded, args=(work, call, number), name=f"{self.name} {number}")
                self._workers.append(worker)
                worker.start()
            for _ in prompts:
                on_result(*call.next_result())
        finally:
            self.end()

    def end(self) -> None:
        """Stop the workers, and wait for them."""
        self._stop.set()
        for worker in self._workers:
            if worker.ident is not None:
                worker.join()
        self._workers.clear()


def _guarded(work: Callable[[Call[R], int], None], call: Call[R], number: int) -> None:
    try:
        work(call, number)
    except BaseException as error:
        call.report(-1, error)


def _as_edge_rag_error(error: BaseException) -> EdgeRagError:
    if isinstance(error, EdgeRagError):
        return error
    return ModelError(f"a worker failed: {type(error).__name__}: {error}")


class _Shares:
    """Which worker takes which prompt."""

    def __init__(self, tokens: list[list[int]], n_workers: int) -> None:
        self._lock = threading.Lock()
        order = sorted(range(len(tokens)), key=tokens.__getitem__)
        cost, costs = 0, []
        for i, index in enumerate(order):
            shared = common_prefix(tokens[order[i - 1]], tokens[index]) if i else 0
            cost += len(tokens[index]) - shared
            costs.append(cost)
        self._left: list[deque[int]] = [deque() for _ in range(n_workers)]
        for index, until in zip(order, costs, strict=True):
            self._left[min(n_workers - 1, until * n_workers // (cost + 1))].append(index)

    def take(self, worker: int) -> int | None:
        with self._lock:
            own = self._left[worker]
            if not own:
                most = max(self._left, key=len)
                own.extendleft([most.pop() for _ in range(-(-len(most) // 2))])
            return own.popleft() if own else None
