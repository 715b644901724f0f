"""An index that changes: an immutable segment, a flat tail in memory for what came later, and marks on what is gone.

Nothing here is durable until `save` has merged it all into a new segment: keep the vectors elsewhere until then, as the
library does in SQLite.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edge_rag.index.arrays import (
    Metric,
    checked_allow,
    checked_ids,
    checked_metric,
    checked_number,
    checked_queries,
    checked_rows,
)
from edge_rag.index.build import build_index
from edge_rag.index.compiled import native
from edge_rag.index.flat import best_of, best_rows, prepared, scores_of
from edge_rag.index.native import Found, NativeIndex, packed_mask

LARGEST_TAIL = 2000  # rows; to score them costs a search 0.1 ms, as much as the graph of 100,000
LARGEST_TAIL_SHARE = 0.01  # of all rows; to merge them into 100,000 costs half a second
LARGEST_DEAD_SHARE = 0.1
_ROWS_PER_BLOCK = 4096

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _State:
    """What a search sees. Never changed: a writer makes the next one."""

    segment: NativeIndex | None
    segment_alive: Flags
    segment_mask: npt.NDArray[np.uint8] | None  # the same, packed; None if all are alive
    n_segment: int  # alive
    tail_ids: npt.NDArray[np.int64]  # in the order in which they came
    tail_vectors: npt.NDArray[np.float32]  # as `prepared`
    tail_alive: Flags
    n_tail: int  # alive

    def all_ids(self) -> npt.NDArray[np.int64]:
        """Return the ids that are alive: the segment's, then the tail's."""
        of_segment = self.segment.ids[self.segment_alive] if self.segment else np.empty(0, dtype=np.int64)
        return np.concatenate([of_segment, self.tail_ids[self.tail_alive]])


class LiveIndex:
    """A `VectorIndex` to which rows can be added and from which they can be removed, each in microseconds.

    Any number of threads may search while another changes it: each search sees one state. Changes wait for each other.
    """

    def __init__(
        self, segment: NativeIndex | None = None, *, dim: int | None = None, metric: Metric | None = None
    ) -> None:
        """Start from a segment, which must stay open, or from nothing with `dim` and `metric`."""
        if segment is None and (dim is None or metric is None):
            raise ValueError("without a segment, dim and metric are needed")
        self._dim = segment.dim if segment else checked_number(dim or 0, "dim", 1, native.MAX_DIM)
        self._metric = segment.metric if segment else checked_metric(metric or "")
        self._changing = threading.Lock()  # guards what follows; searches only read _state, once
        self._buffer = np.empty((0, self._dim), dtype=np.float32)
        self._tail_rows: dict[int, int] = {}  # of the ids that are alive in the tail
        self._closed = False
        self._state = self._fresh_state(segment)

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def metric(self) -> Metric:
        return self._metric

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return np.sort(self._state.all_ids())

    @property
    def n_tail(self) -> int:
        """Rows that came after the segment, removed ones too: what each search reads besides."""
        return len(self._state.tail_ids)

    @property
    def n_dead(self) -> int:
        """Rows of the segment that were removed."""
        return len(self._state.segment_alive) - self._state.n_segment

    def __len__(self) -> int:
        return self._state.n_segment + self._state.n_tail

    def add(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Add rows. A row whose id is there already takes the place of that row; the same id twice is refused."""
        new_ids, array = checked_ids(ids), np.asarray(vectors)
        if array.shape[:1] == new_ids.shape:
            order = np.argsort(new_ids, kind="stable")
            new_ids, array = new_ids[order], array[order]
        new_ids, rows = checked_rows(new_ids, array, self._dim, metric=self._metric)
        with self._changing:
            self._check_open()
            state = self._without(new_ids)
            first = len(state.tail_ids)
            self._tail_rows |= zip(new_ids.tolist(), range(first, first + len(new_ids)), strict=True)
            self._state = replace(
                state,
                tail_ids=np.concatenate([state.tail_ids, new_ids]),
                tail_vectors=self._appended(first, prepared(rows, self._metric)),
                tail_alive=np.concatenate([state.tail_alive, np.ones(len(new_ids), dtype=np.bool_)]),
                n_tail=state.n_tail + len(new_ids),
            )

    def remove(self, ids: npt.ArrayLike) -> int:
        """Remove rows; return how many of them were there. Their vectors stay in memory and file until `save`."""
        wanted = np.unique(checked_ids(ids))
        with self._changing:
            self._check_open()
            before = len(self)
            self._state = self._without(wanted)
            return before - len(self)

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        allow: npt.NDArray[np.bool_] | None = None,
        ef: int | None = None,
        exact: bool | None = None,
        threads: int | None = None,
    ) -> Found:
        """As `NativeIndex.search`; `allow` has one entry for each of `ids`."""
        state = self._state
        self._check_open()
        queries = checked_queries(queries, self._dim, self._metric)
        k = checked_number(k, "k", 1)
        mask, n_segment, tail = state.segment_mask, state.n_segment, state.tail_alive
        if allow is not None:
            of_segment, tail = _split(state, checked_allow(allow, state.n_segment + state.n_tail))
            mask, n_segment = packed_mask(of_segment), int(np.count_nonzero(of_segment))
        found = _search_tail(state, tail, prepared(queries, self._metric), k, self._metric)
        if state.segment is None or n_segment == 0:
            return found
        ids, scores = state.segment.search_packed(queries, k, mask, n_segment, ef=ef, exact=exact, threads=threads)
        return best_of(np.hstack([ids, found[0]]), np.hstack([scores, found[1]]), k)

    def is_due(self) -> bool:
        """Tell whether so much has changed that a merge pays for itself."""
        return bool(
            self.n_tail > max(LARGEST_TAIL, LARGEST_TAIL_SHARE * len(self))
            or self.n_dead > max(LARGEST_TAIL, LARGEST_DEAD_SHARE * len(self))
        )

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Merge everything into a new segment at `path`, which may be the old one's (not on Windows), and go on from that.

        `options` are those of `build_index`. Removed rows are not in the new file. Searches go on meanwhile; changes
        wait. If it fails, everything is as before.
        """
        with self._changing:
            self._check_open()
            state = self._state
            rows = np.flatnonzero(state.tail_alive)
            rows = rows[np.argsort(state.tail_ids[rows])]
            ids, alive = state.tail_ids[rows], state.segment_alive
            last = state.segment.ids[alive][-1] if state.segment and alive.any() else None
            base = state.segment if last is None or not len(ids) or ids[0] > last else None
            tail = _blocks(ids, state.tail_vectors, rows)
            build_index(
                path,
                tail if base or not state.segment else _merged(state.segment, alive, ids, state.tail_vectors, rows),
                self._dim,
                metric=self._metric,
                base=base,
                keep=None if base is None else alive,
                **options,
            )
            segment = NativeIndex.open(path)
            self._buffer, self._tail_rows = self._buffer[:0], {}
            self._state = self._fresh_state(segment)  # the old segment goes with the last search that has it

    def close(self) -> None:
        """Forget what was not saved. Searches under way end well. May be called twice."""
        with self._changing:
            self._closed = True
            self._buffer, self._tail_rows = self._buffer[:0], {}
            self._state = self._fresh_state(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fresh_state(self, segment: NativeIndex | None) -> _State:
        n = len(segment) if segment else 0
        nothing = np.empty(0, dtype=np.int64)
        alive = np.ones(n, dtype=np.bool_)
        return _State(segment, alive, None, n, nothing, self._buffer, nothing.astype(np.bool_), 0)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the index is closed")

    def _without(self, ids: npt.NDArray[np.int64]) -> _State:
        """Return the state without these ids, which ascend, and forget where they stood in the tail."""
        state = self._state
        if state.segment is not None and len(ids):
            places = np.minimum(np.searchsorted(state.segment.ids, ids), len(state.segment_alive) - 1)
            hit = (
                places[(state.segment.ids[places] == ids) & state.segment_alive[places]]
                if len(state.segment)
                else ids[:0]
            )
            if len(hit):
                alive = state.segment_alive.copy()
                alive[hit] = False
                state = replace(
                    state, segment_alive=alive, segment_mask=packed_mask(alive), n_segment=state.n_segment - len(hit)
                )
        rows = [self._tail_rows.pop(i) for i in ids.tolist() if i in self._tail_rows]
        if rows:
            tail_alive = state.tail_alive.copy()
            tail_alive[rows] = False
            state = replace(state, tail_alive=tail_alive, n_tail=state.n_tail - len(rows))
        return state

    def _appended(self, first: int, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Write rows behind the first `first` of the buffer, where no state looks yet; return all of them."""
        end = first + len(rows)
        if end > len(self._buffer):
            grown = np.empty((max(end, 2 * first, 64), self._dim), dtype=np.float32)
            grown[:first] = self._buffer[:first]
            self._buffer = grown
        self._buffer[first:end] = rows
        return self._buffer[:end]


def _split(state: _State, allow: Flags) -> tuple[Flags, Flags]:
    """Turn flags for the ids in ascending order into flags for the rows of the segment and of the tail."""
    flags = np.empty_like(allow)
    flags[np.argsort(state.all_ids())] = allow
    of_segment, of_tail = state.segment_alive.copy(), state.tail_alive.copy()
    of_segment[state.segment_alive] = flags[: state.n_segment]
    of_tail[state.tail_alive] = flags[state.n_segment :]
    return of_segment, of_tail


def _search_tail(state: _State, alive: Flags, queries: npt.NDArray[np.float32], k: int, metric: Metric) -> Found:
    ids, vectors = state.tail_ids, state.tail_vectors
    if not alive.all():
        rows = np.flatnonzero(alive)
        ids, vectors = ids[rows], vectors[rows]
    scores = scores_of(queries, vectors, metric)
    best = [best_rows(of_query, min(k, len(ids))) for of_query in scores]
    rows_found = np.array(best, dtype=np.intp).reshape(len(queries), min(k, len(ids)))
    return best_of(ids[rows_found], np.take_along_axis(scores, rows_found, axis=1), k)


def _blocks(
    ids: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.intp]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    for start in range(0, len(rows), _ROWS_PER_BLOCK):
        yield ids[start : start + _ROWS_PER_BLOCK], vectors[rows[start : start + _ROWS_PER_BLOCK]]


def _merged(
    segment: NativeIndex,
    alive: Flags,
    tail_ids: npt.NDArray[np.int64],
    tail_vectors: npt.NDArray[np.float32],
    tail_rows: npt.NDArray[np.intp],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Yield the rows of both in the order of their ids: for ids that do not come after the segment's, whose graph is lost."""
    segment_rows = np.flatnonzero(alive)
    ids = np.concatenate([segment.ids[segment_rows], tail_ids])
    order = np.argsort(ids)
    for start in range(0, len(ids), _ROWS_PER_BLOCK):
        block = order[start : start + _ROWS_PER_BLOCK]
        vectors = np.empty((len(block), segment.dim), dtype=np.float32)
        from_segment = block < len(segment_rows)
        vectors[from_segment] = segment.vectors(segment_rows[block[from_segment]])
        vectors[~from_segment] = tail_vectors[tail_rows[block[~from_segment] - len(segment_rows)]]
        yield ids[block], vectors
