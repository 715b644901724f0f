"""Real documents to measure with: a folder, or the archives of the question sets' docs folder."""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from edge_rag.documents import chunk_document, embedding_text, read_document, sniff
from edge_rag.errors import EdgeRagError
from edge_rag.evaluation.question_sets import data_dir


@contextmanager
def documents_in(docs: Path | None) -> Iterator[list[Path]]:
    """Give the documents of a folder; without one, those of the archives, unpacked for as long as they are needed."""
    with TemporaryDirectory() as unpacked:
        if docs is None:
            for archive in sorted((data_dir() / "docs").glob("*.tar.gz")):
                _unpack(archive, Path(unpacked))
        folder = docs or Path(unpacked)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and sniff(file.read_bytes(), file.name)]
        if not files:
            raise EdgeRagError(f"no documents in {docs or data_dir() / 'docs'}", mend="give a folder: --docs DIR")
        yield files


def chunk_texts(file: Path, count_tokens: Callable[[str], int], budget: int) -> list[str]:
    """Return what the library would embed of this file."""
    document = read_document(file.read_bytes(), file.name)
    chunks = chunk_document(document, count_tokens=count_tokens, budget=budget)
    return [embedding_text(chunk.heading, document.text[chunk.start : chunk.end]) for chunk in chunks]


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            content = tar.extractfile(member) if member.isfile() and ".." not in parts else None
            if content is not None:
                target = folder.joinpath(*(part for part in parts if part != "/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
