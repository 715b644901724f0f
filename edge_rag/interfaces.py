"""The values that cross rooms, and the four protocols that can be swapped.

Offsets everywhere are Python string indices into `Document.text`, the text as stored: `text[start:end]` is what was meant.
Each protocol has a trivial twin that ships: `testing.HashEmbedder`, `index.FlatIndex`, `answering.KeepTop` and
`testing.EchoGenerator`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

# progress(stage, done, total, detail): called often, cheap to ignore; total is 0 while unknown, detail says what is in hand
# What a generator is asked for. sentence: what people read. words: what scores and small devices want. rationale: reasons first,
# then the answer after a mark.
Style = Literal["sentence", "words", "rationale"]
Order = Literal["best-first", "both-ends"]  # of passages in a prompt
Guess = Literal["never", "closed-book", "pseudo-passage"]  # how a generator is asked for what it knows by itself

Progress = Callable[[str, int, int, str], None]

BlockKind = Literal["heading", "paragraph", "list", "table", "code"]


@dataclass(frozen=True, slots=True)
class Block:
    """A structural unit of a document's text. Blocks are in order and never overlap; separators lie between them."""

    kind: BlockKind
    start: int
    end: int
    level: int = 0  # of a heading: 1 is the top


@dataclass(frozen=True, slots=True)
class PageSpan:
    """The part of the text that stands on one page (of a PDF), slide (of a PPTX) or sheet (of an XLSX)."""

    number: int  # counted from 1
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, apart from where it lies: two copies of a file are one document."""

    media_type: str  # e.g. "application/pdf"
    title: str  # as the document itself gives it; "" if it gives none
    text: str
    blocks: tuple[Block, ...]
    pages: tuple[PageSpan, ...] = ()  # () where the format has no pages
    metadata: Mapping[str, str] = field(default_factory=dict)  # author, date (ISO 8601), subject ...
    warnings: tuple[str, ...] = ()  # what could not be read, for the yield report: "pages 3-7 have no text layer"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice of a document. The chunks of a document tile its text: in order, no gap, no overlap."""

    start: int
    end: int
    page: int | None
    heading: str  # the headings that it stands under: "Guide > Install"


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that a search brought back, with where it comes from. `text` is exactly the stored text from start to end."""

    chunk_id: int
    document_id: int
    document: str  # the path under which the document was added
    title: str
    heading: str
    page: int | None
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Citation:
    """A quote, located by the runtime: it stands in the document's stored text at start:end."""

    document: str
    page: int | None
    start: int
    end: int
    quote: str
    chunk_id: int
    sentence: int | None  # index into Answer.sentences of the sentence that it supports; None in Answer.nearest


@dataclass(frozen=True, slots=True)
class AnswerSentence:
    text: str
    supported: bool  # False: no passage says this, and it has no citation


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall time of each stage in milliseconds; absent stages are 0."""

    retrieve_ms: float = 0.0
    select_ms: float = 0.0
    first_token_ms: float = 0.0  # from the question to the first piece of the answer
    generate_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    abstained: bool
    confidence: float  # that the passages hold the answer, 0 to 1; below the threshold the answer is an abstention
    sentences: tuple[AnswerSentence, ...]
    citations: tuple[Citation, ...]
    draft: str  # what the generator said, where nothing in it is supported and `text` quotes the documents instead; else ""
    guess: str  # what the generator says without the documents, where they do not hold the answer and a guess is wanted
    nearest: tuple[Citation, ...]  # what the documents say that is nearest to the question, whatever the answer says
    passages: tuple[Passage, ...]  # those that the generator was shown, in that order
    dropped: tuple[Passage, ...]  # those that were selected but did not fit the token budget
    prompt_tokens: int
    generator: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


class Embedder(Protocol):
    """Text to unit vectors. Vectors of two embedders are comparable only if their fingerprints are equal."""

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...  # longer texts are cut, so callers keep below it
    @property
    def fingerprint(self) -> str: ...  # hash of weights and tokenizer
    def count_tokens(self, text: str) -> int: ...
    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]: ...  # (n, dim), rows of length 1


class VectorIndex(Protocol):
    """Row ids and their vectors. The score is the index's own: cosine, inner product, or minus the squared distance."""

    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    @property
    def ids(self) -> npt.NDArray[np.int64]: ...  # (n,), ascending
    def search(
        self, queries: npt.NDArray[np.float32], k: int, *, allow: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return ids and scores, each (n_queries, min(k, rows allowed)), best first.

        `allow` has one entry for each row, in the order of `ids`.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Passages that a selector has chosen, and how sure it is of them."""

    passages: tuple[Passage, ...]  # best first
    confidence: float | None = None  # that they hold the answer, 0 to 1; None: the selector does not tell
    threshold: float = 0.0  # of the confidence, below which to abstain


class Selector(Protocol):
    """Choose and order the passages that the generator will see."""

    @property
    def name(self) -> str: ...
    def select(self, question: str, passages: Sequence[Passage]) -> Selection: ...


class Generator(Protocol):
    """A chat model. Holds native memory: close it, or use it as a context manager."""

    @property
    def name(self) -> str: ...
    @property
    def context_tokens(self) -> int: ...  # prompt and answer together
    @property
    def style(self) -> Style: ...  # how it was trained to be asked; "sentence" where nothing is known of that
    def count_tokens(self, messages: Sequence[Message]) -> int: ...  # of the whole prompt, template included
    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[str]: ...
    def close(self) -> None: ...
