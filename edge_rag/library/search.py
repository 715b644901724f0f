"""Lexical and dense search over one snapshot of the database."""

import json
import sqlite3
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_rag.errors import IntegrityError
from edge_rag.library import store
from edge_rag.library.filters import Filters
from edge_rag.library.generations import Generation

LARGEST_TAIL_IN_MEMORY = 20_000  # chunks: 30 MB of 384 dimensions
HEADING_WEIGHT = 2.0  # in BM25; the text's is 1
_LARGEST_PIECE = 1 << 18  # numbers of a matrix
_MOST_TERMS = 64  # of a question; more cost time and add nothing
_STOP_WORDS = frozenset(
    """
    a about all also am an and any are as at be been but by can could did do does doing for from had has have
    having he her him his how i if in into is it its just may me might my no nor not of on or our shall she
    should so some such than that the their them then there these they this those to was we were what when where
    which while who whom whose why will with would you your s t d ll re ve m
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)


def question_words(question: str) -> list[str]:
    """Return the words of any text that are worth looking for, each once."""
    # FTS5's tokenizer separates where these categories end, so every word is one plain token, and quoted it is no
    # operator.
    spaced = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in question[:100_000])
    words = list(dict.fromkeys(spaced.lower().split()))
    content = [word for word in words if word not in _STOP_WORDS] or words
    return content[:_MOST_TERMS]


def any_of(words: Sequence[str]) -> str:
    """Return the FTS5 query for chunks that have one of these words."""
    return " OR ".join(f'"{word}"' for word in words)


def lexical(db: sqlite3.Connection, question: str, k: int, filters: Filters) -> dict[int, float]:
    """Return the k best chunks and their BM25 scores, higher is better."""
    words = _telling_words(db, question_words(question))
    if not words or k < 1:
        return {}
    condition, parameters = _chunk_condition("chunk_fts.rowid", filters)
    rows = db.execute(
        f"SELECT rowid, rank FROM chunk_fts WHERE chunk_fts MATCH ? AND rank MATCH 'bm25({HEADING_WEIGHT}, 1.0)'"
        f" AND {condition} ORDER BY rank LIMIT ?",
        (any_of(words), *parameters, k),
    )
    return {int(chunk_id): -float(rank) for chunk_id, rank in rows}


def _telling_words(db: sqlite3.Connection, words: list[str]) -> list[str]:
    """Leave out words that more than half of the chunks have, unless there are no others.

    FTS5 gives them no weight (its inverse document frequency ends at 1e-6), but scoring each of their chunks costs 1 to
    2 µs; counting them costs a twentieth of that.
    """
    half = (db.execute("SELECT max(id) FROM chunks").fetchone()[0] or 0) // 2
    count = "SELECT count(*) FROM (SELECT rowid FROM chunk_fts WHERE chunk_fts MATCH ? LIMIT ?)"
    telling = [word for word in words if 0 < db.execute(count, (any_of([word]), half + 1)).fetchone()[0] <= half]
    return telling or words


@dataclass(frozen=True, slots=True)
class Tail:
    """The chunks that came after a generation, held in memory by who asks more than once."""

    ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]  # (n, dim)


def read_tail(db: sqlite3.Connection, library: Path, dim: int, after: int) -> Tail | None:
    """Read the vectors of all chunks after this one; None if that could be more than fit in little memory."""
    last = db.execute("SELECT max(chunk_id) FROM vectors").fetchone()[0] or 0
    if last - after > LARGEST_TAIL_IN_MEMORY:
        return None
    blocks = list(store.vector_blocks(db, library, dim, "chunk_id > ?", [after]))
    if not blocks:
        return Tail(np.empty(0, dtype=np.int64), np.empty((0, dim), dtype=np.float32))
    return Tail(np.concatenate([ids for ids, _ in blocks]), np.concatenate([vectors for _, vectors in blocks]))


def dense(
    db: sqlite3.Connection,
    library: Path,
    generation: Generation | None,
    vector: npt.NDArray[np.float32],
    k: int,
    filters: Filters,
    tail: Tail | None = None,
) -> dict[int, float]:
    """Return the k chunks nearest to the vector and their cosines: what the generation finds, and what came after
    it, which is `tail` or else read here."""
    if k < 1:
        return {}
    best = _search_generation(db, library, generation, vector, k, filters) if generation is not None else None
    if generation is None or best is None:
        best, last, tail = {}, 0, None if generation is not None else tail
    else:
        last = generation.manifest.max_chunk_id
    condition, parameters = _chunk_condition("chunk_id", filters)
    if tail is None:
        later = store.vector_blocks(db, library, len(vector), condition + " AND chunk_id > ?", [*parameters, last])
        for ids, vectors in later:
            best = _top(best | _scores(ids, _dots(vectors, vector), k), k)
        return best
    ids, scores = tail.ids, _dots(tail.vectors, vector)
    if filters:
        rows = db.execute(f"SELECT chunk_id FROM vectors WHERE {condition} AND chunk_id > ?", (*parameters, last))
        wanted = np.isin(ids, np.fromiter((row[0] for row in rows), dtype=np.int64))
        ids, scores = ids[wanted], scores[wanted]
    return _top(best | _scores(ids, scores, k), k)


def _search_generation(
    db: sqlite3.Connection,
    library: Path,
    generation: Generation,
    vector: npt.NDArray[np.float32],
    k: int,
    filters: Filters,
) -> dict[int, float] | None:
    """Ask the index for more than k and score those again from the stored vectors: the index rounds, and its rows may
    be dead. None if the index turns out to be damaged."""
    index, allow = generation.index, None
    if filters:
        condition, parameters = _chunk_condition("id", filters)
        rows = db.execute(f"SELECT id FROM chunks WHERE {condition} ORDER BY id", parameters)
        wanted = np.fromiter((row[0] for row in rows), dtype=np.int64)
        allow = np.isin(index.ids, wanted, assume_unique=True)
    n_asked = k + 16
    while True:
        try:
            ids, _ = index.search(vector[None, :], n_asked, allow=allow)
        except IntegrityError:  # in a part that is proved when it is first read
            return None
        candidates = json.dumps(ids[0].tolist())
        best: dict[int, float] = {}
        for found, vectors in store.vector_blocks(
            db, library, len(vector), "chunk_id IN (SELECT value FROM json_each(?))", [candidates]
        ):
            best |= _scores(found, _dots(vectors, vector), k)
        if len(best) >= k or ids.shape[1] < n_asked:
            return _top(best, k)
        n_asked *= 4


def _chunk_condition(column: str, filters: Filters) -> tuple[str, list[str]]:
    if not filters:
        return "1", []
    where, parameters = filters.where()
    documents = f"SELECT s.document_id FROM sources s JOIN documents d ON d.id = s.document_id WHERE {where}"
    return f"{column} IN (SELECT id FROM chunks WHERE document_id IN ({documents}))", parameters


def _dots(vectors: npt.NDArray[np.float32], vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the inner products, in pieces so small that BLAS starts no threads: on a busy machine these cost 8 ms."""
    dots = np.empty(len(vectors), dtype=np.float32)
    step = max(1, _LARGEST_PIECE // len(vector))
    for start in range(0, len(vectors), step):
        np.dot(vectors[start : start + step], vector, out=dots[start : start + step])
    return dots


def _scores(ids: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], k: int) -> dict[int, float]:
    """Return the k best of a block, ties by smaller id."""
    order = np.argsort(-scores, kind="stable")[:k]
    return dict(zip(ids[order].tolist(), scores[order].tolist(), strict=True))


def _top(scores: dict[int, float], k: int) -> dict[int, float]:
    """Return the k best, ties by smaller id."""
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k])
