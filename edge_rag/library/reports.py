"""What a library says about itself and about what was done to it: plain values, for people and for JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edge_rag.interfaces import Passage
from edge_rag.library.walk import FileProblem


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    id: int
    paths: tuple[str, ...]  # every file that has this content, the one added first in front
    title: str
    media_type: str
    metadata: Mapping[str, str]
    n_chars: int
    n_chunks: int
    warnings: tuple[str, ...]
    added_at: str

    @property
    def path(self) -> str:
        return self.paths[0] if self.paths else ""


@dataclass(frozen=True, slots=True)
class DocumentView:
    id: int
    paths: tuple[str, ...]
    title: str
    media_type: str
    metadata: Mapping[str, str]
    warnings: tuple[str, ...]
    added_at: str
    text: str
    chunks: tuple[Passage, ...]  # score 0


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Paths are printable and in the order in which they were met."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()  # known files with new content
    duplicates: tuple[str, ...] = ()  # new files with content that the library already has
    unchanged: int = 0
    skipped: int = 0  # binary and other files that hold no text
    problems: tuple[FileProblem, ...] = ()
    warnings: tuple[FileProblem, ...] = ()  # of files that were read, but not all of them: "page 3 has no text"
    n_chunks: int = 0  # stored
    n_embedded: int = 0  # texts that went through the embedder; the other chunks' vectors were known

    def summary(self) -> str:
        return _summary(
            added=len(self.added), changed=len(self.changed), duplicates=len(self.duplicates), unchanged=self.unchanged,
            skipped=self.skipped, unreadable=len(self.problems),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SyncReport:
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()  # from, to
    removed: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    unchanged: int = 0
    skipped: int = 0
    problems: tuple[FileProblem, ...] = ()
    warnings: tuple[FileProblem, ...] = ()
    n_chunks: int = 0
    n_embedded: int = 0
    dry_run: bool = False

    def summary(self) -> str:
        return ("would be: " if self.dry_run else "") + _summary(
            added=len(self.added), changed=len(self.changed), renamed=len(self.renamed), removed=len(self.removed),
            duplicates=len(self.duplicates), unchanged=self.unchanged, skipped=self.skipped,
            unreadable=len(self.problems),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CompactReport:
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class Stats:
    path: str
    n_documents: int
    n_sources: int
    n_chunks: int
    n_chars: int
    n_problems: int  # files that could not be read when last tried
    media_types: Mapping[str, int]
    database_bytes: int
    index_bytes: int
    embedder: str
    embedder_fingerprint: str  # "" until the first text was embedded
    dim: int
    chunk_tokens: int
    generation: int  # number of the index generation; 0 if there is none
    n_indexed: int  # rows in it
    n_tail: int  # chunks that came later; a search reads them one by one


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Literal["info", "mended", "warning", "error"]
    what: str
    mend: str = ""


def _summary(**counts: int) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "no files"
