"""A Document becomes chunks that tile its text and fit an embedder's budget of tokens.

The text is cut into units: blocks, or, where a block is too large, its sentences or lines, then words, then characters.
Units are then packed from left to right, and each cut is made at the best place near the end of what fits: before a
section, then before a lesser heading, between blocks, between sentences. A page's end is always a cut. All of it is
linear in the text's length, and only a few chunks' worth of units is in memory at a time.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edge_rag.documents.sentences import sentence_ends
from edge_rag.interfaces import Block, Chunk, Document

CHUNKER_VERSION = 1  # raise it when the same document gives other chunks

# Most characters that a token stands for on average: tokenizers count a base64 line as one unknown word.
CHARS_PER_TOKEN = 12
TINY = 0.2  # of the budget: a section below this may share a chunk with its neighbour
MAX_HEADING_CHARS = 160  # of one heading in a path

# Places to cut at, from bad to good, and what they are worth against a chunk that is not filled (1.0: a whole budget).
_GLUE, _WORD, _SENTENCE, _LINE, _LEAD, _BLOCK, _HEADING, _SECTION = range(8)
_WORTH = (-1.0, -0.4, 0.15, 0.25, 0.15, 0.35, 0.6, 0.7)
_SECTION_LEVEL = 2  # headings up to this level begin a section

_NEWLINES = re.compile(r"\n+")
_WORD_RUN = re.compile(r"(?:\S+\s*){1,12}")
_SINGLE_WORD = re.compile(r"\S+\s*")


@dataclass(frozen=True, slots=True)
class _Unit:
    """A piece of text that is not cut further. `cost` is its tokens, or more if it has few tokens for its length."""

    start: int
    end: int
    cost: int
    place: int  # what the place before it is for a cut


def embedding_text(heading: str, text: str) -> str:
    """Return what is embedded for a chunk: its heading path on a line, then its text.

    The path's last heading is left out where the text begins with it.
    """
    text = text.strip()
    above, _, last = heading.rpartition(" > ")
    if last and text.startswith(last):
        heading = above
    return f"{heading}\n{text}" if heading else text


def chunk_document(document: Document, *, count_tokens: Callable[[str], int], budget: int) -> list[Chunk]:
    """Cut `document` into chunks; for each, count_tokens(embedding_text(heading, text)) <= budget.

    The chunks tile the text; separators belong to the chunk before them. Only a single character can exceed the budget.
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, not {budget}")
    if not document.text:
        return []
    units = _Units(document, count_tokens, budget)
    return _Packer(document, count_tokens, budget).pack(iter(units))


class _Units:
    """Yields units that tile the text: blocks up to a quarter of the budget, else their sentences or lines ..."""

    def __init__(self, document: Document, count_tokens: Callable[[str], int], budget: int) -> None:
        self._text = document.text
        self._document = document
        self._count = count_tokens
        self._fixed = count_tokens("")  # tokens that the tokenizer adds to any text
        room = max(1, budget - self._fixed)
        self._block_limit = max(1, room // 4)
        self._limit = max(1, room // 2)

    def __iter__(self) -> Iterator[_Unit]:
        blocks = self._document.blocks
        starts = [0, *(block.start for block in blocks[1:]), len(self._text)]
        kinds = [block.kind for block in blocks] or ["paragraph"]
        for i, kind in enumerate(kinds):
            place = self._place(i) if i else _BLOCK
            yield from self._split_block(starts[i], starts[i + 1], kind, place)

    def _place(self, i: int) -> int:
        """Judge a cut between blocks[i - 1] and blocks[i]."""
        blocks = self._document.blocks
        before, block = blocks[i - 1], blocks[i]
        after = blocks[i + 1] if i + 1 < len(blocks) else None
        is_tight = block.start - before.end < 2
        if before.kind == "heading" or (is_tight and block.kind == "heading"):
            return _GLUE
        if after is not None and block.kind == "code" and after.kind == "heading" and after.start - block.end < 2:
            block = after  # decorators and comments right above a definition belong to it
        if block.kind == "heading":
            return _SECTION if block.level <= _SECTION_LEVEL else _HEADING
        if block.kind != "paragraph" and self._text[before.end - 1] == ":":
            return _LEAD  # "as follows:" and what follows
        return _LINE if is_tight else _BLOCK

    def _split_block(self, start: int, end: int, kind: str, place: int) -> Iterator[_Unit]:
        limit = self._limit if kind == "heading" else self._block_limit
        if (unit := self._unit_within(limit, start, end, place)) is not None:
            yield unit
            return
        flows = kind in ("paragraph", "heading")
        for a, b in _tile(
            start,
            end,
            sentence_ends(self._text, start, end) if flows else _match_ends(_NEWLINES, self._text, start, end),
        ):
            yield from self._split_line(a, b, place)
            place = _SENTENCE if flows or self._text[b : b + 1] == " " else _LINE

    def _split_line(self, start: int, end: int, place: int) -> Iterator[_Unit]:
        """Keep a sentence or line whole up to half a budget; else cut between words, and inside monsters only."""
        if (unit := self._unit_within(self._limit, start, end, place)) is not None:
            yield unit
            return
        for a, b in _tile(start, end, _match_ends(_WORD_RUN, self._text, start, end)):
            if (unit := self._unit_within(self._limit, a, b, place)) is not None:
                yield unit
                place = _WORD
                continue
            for c, d in _tile(a, b, _match_ends(_SINGLE_WORD, self._text, a, b)):
                yield from self._split_word(c, d, place)
                place = _WORD

    def _split_word(self, start: int, end: int, place: int) -> Iterator[_Unit]:
        step = 2 * self._limit
        while start < end:
            unit = self._unit_within(self._limit, start, min(start + step, end), place)
            if unit is None and step > 1:
                step //= 2
                continue
            yield unit or _Unit(start, start + 1, self._limit, place)
            start = unit.end if unit else start + 1
            place = _WORD

    def _unit_within(self, limit: int, start: int, end: int, place: int) -> _Unit | None:
        """Return text[start:end] as a unit if it costs no more than `limit`. Long texts are not even counted."""
        by_length = -(-(end - start) // CHARS_PER_TOKEN)
        if by_length > limit:
            return None
        cost = max(by_length, self._count(self._text[start:end]) - self._fixed)
        return _Unit(start, end, cost, place) if cost <= limit else None


class _Packer:
    """Packs units into chunks from left to right, with two budgets' worth of units in view."""

    def __init__(self, document: Document, count_tokens: Callable[[str], int], budget: int) -> None:
        self._text = document.text
        self._count = count_tokens
        self._budget = budget
        self._fixed = count_tokens("")
        self._headings = _HeadingPaths(document, count_tokens, budget)
        self._pages = deque(document.pages)
        self._page_starts = {page.start for page in document.pages}
        self._chunks: list[Chunk] = []

    def pack(self, units: Iterator[_Unit]) -> list[Chunk]:
        view: deque[_Unit] = deque()
        cost = 0
        is_last = False
        while True:
            while not is_last and cost <= 2 * self._budget:
                unit = next(units, None)
                is_last = unit is None
                if unit is not None:
                    view.append(unit)
                    cost += unit.cost
            if not view:
                return self._chunks
            taken = [view.popleft() for _ in range(self._cut(list(view), is_last))]
            cost -= sum(unit.cost for unit in taken)
            self._emit(taken)

    def _cut(self, view: list[_Unit], is_last: bool) -> int:
        """Return how many of the units in view the next chunk takes."""
        room = max(1, self._budget - self._fixed - self._headings.cost_at(view[0].start))
        sums = [0]  # sums[n]: the cost of the first n units
        for unit in view:
            sums.append(sums[-1] + unit.cost)
        # A page ends every chunk: a chunk names one page, and what is quoted from it must stand there.
        n_page = next((n for n in range(1, len(view)) if view[n].start in self._page_starts), len(view))
        n_fit = max(n for n in range(1, n_page + 1) if n == 1 or sums[n] <= room)
        section_ends = [n for n in range(1, n_page) if view[n].place == _SECTION]
        if n_page < len(view) or is_last:
            section_ends.append(n_page)
        if section_ends and section_ends[0] <= n_fit:
            return self._join_tiny_sections(section_ends, sums, room)
        # The section is too large for one chunk. If two will do, let them be about equal.
        rest = sums[section_ends[0]] if section_ends else None
        target = rest / 2 if rest is not None and rest <= 1.9 * room else room
        best, best_score = n_fit, float("-inf")
        for n in range(1, n_fit + 1):
            score = _WORTH[view[n].place] - abs(sums[n] - target) / room
            if sums[n] >= 0.4 * target and score >= best_score:
                best, best_score = n, score
        return best

    def _join_tiny_sections(self, ends: list[int], sums: list[int], room: int) -> int:
        taken = ends[0]
        for end in ends[1:]:
            smaller = min(sums[taken], sums[end] - sums[taken])
            if sums[end] > room or smaller >= TINY * self._budget:
                break
            taken = end
        return taken

    def _emit(self, units: list[_Unit]) -> None:
        """Append the units as a chunk, or as several if together they count more than one by one."""
        pending = [units]
        while pending:
            part = pending.pop()
            start, end = part[0].start, part[-1].end
            heading = self._headings.path(start, end)
            fits = self._count(embedding_text(heading, self._text[start:end])) <= self._budget
            if fits or end - start == 1:
                self._chunks.append(Chunk(start, end, self._page(start), heading if fits else ""))
            elif len(part) > 1:
                half = len(part) // 2
                pending += [part[half:], part[:half]]
            else:
                middle = (start + end) // 2
                middle = self._text.rfind(" ", start, middle) + 1 or middle
                pending += [[_Unit(middle, end, 0, _WORD)], [_Unit(start, middle, 0, _WORD)]]

    def _page(self, start: int) -> int | None:
        """Return the page of the first character that is no space. Must be asked in order."""
        while start < len(self._text) - 1 and self._text[start].isspace():
            start += 1
        while len(self._pages) > 1 and self._pages[0].end <= start:
            self._pages.popleft()
        return self._pages[0].number if self._pages else None


class _HeadingPaths:
    """Knows under which headings a piece of text stands. Must be asked in order."""

    def __init__(self, document: Document, count_tokens: Callable[[str], int], budget: int) -> None:
        self._text = document.text
        self._count = count_tokens
        self._most = budget // 2
        self._fixed = count_tokens("")
        self._headings = [block for block in document.blocks if block.kind == "heading"]
        self._title = document.title if self._needs_title(document.title) else ""
        self._n_passed = 0
        self._open: list[Block] = []
        self._fitted: dict[str, tuple[str, int]] = {}  # the last path: what fits of it, and its cost

    def cost_at(self, start: int) -> int:
        self._advance(start)
        return self._fit(self._spell(self._open))[1]

    def path(self, start: int, end: int) -> str:
        """Return the path for the chunk text[start:end]; several whole sections stand under what they share."""
        self._advance(start)
        top = 99
        for i in range(self._n_passed, len(self._headings)):
            if self._headings[i].start >= end:
                break
            top = min(top, self._headings[i].level)
        return self._fit(self._spell([block for block in self._open if block.start < start or block.level < top]))[0]

    def _advance(self, start: int) -> None:
        while self._n_passed < len(self._headings) and self._headings[self._n_passed].start <= start:
            heading = self._headings[self._n_passed]
            self._open = [block for block in self._open if block.level < heading.level]
            self._open.append(heading)
            self._n_passed += 1

    def _needs_title(self, title: str) -> bool:
        """A title is no news if the first heading says it - or says part of it and stands above all others."""
        if not title or not self._headings:
            return bool(title)
        first = self._headings[0]
        known, heading = _letters(title), _letters(self._name(first))
        is_alone_on_top = all(block.level > first.level for block in self._headings[1:])
        return known != heading and not (heading in known and is_alone_on_top)

    def _name(self, block: Block) -> str:
        return " ".join(self._text[block.start : min(block.end, block.start + 4 * MAX_HEADING_CHARS)].split())

    def _spell(self, blocks: list[Block]) -> str:
        names = [self._title, *(self._name(block) for block in blocks)]
        return " > ".join(
            n if len(n) <= MAX_HEADING_CHARS else n[: MAX_HEADING_CHARS - 1].rstrip() + "…" for n in names if n
        )

    def _fit(self, path: str) -> tuple[str, int]:
        """Cut a path that is over half the budget from the left, by whole words; also return its cost."""
        if path not in self._fitted:
            words = path.split(" ")
            low, high = 0, len(words)
            if self._tokens(path) <= self._most:
                high = 0
            while low < high:  # the fewest words to drop
                middle = (low + high) // 2
                if self._tokens(" ".join(words[middle:])) > self._most:
                    low = middle + 1
                else:
                    high = middle
            fitted = " ".join(words[low:]).removeprefix("> ")
            self._fitted = {path: (fitted, self._tokens(fitted))}
        return self._fitted[path]

    def _tokens(self, text: str) -> int:
        return max(0, self._count(text) - self._fixed)


def _letters(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()


def _tile(start: int, end: int, cuts: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Yield the pieces of start..end between the cuts."""
    for cut in cuts:
        if start < cut < end:
            yield start, cut
            start = cut
    yield start, end


def _match_ends(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[int]:
    return (match.end() for match in pattern.finditer(text, start, end))
