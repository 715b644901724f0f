"""A file's bytes become a Document with offsets and pages, and a Document becomes chunks."""

import typing as _typing
from importlib import import_module as _import_module

from edge_rag.documents.chunking import CHUNKER_VERSION, chunk_document, embedding_text
from edge_rag.documents.sentences import sentence_spans

if _typing.TYPE_CHECKING:
    from edge_rag.documents.reading import READER_VERSION, read_document
    from edge_rag.documents.sniffing import sniff

__all__ = [
    "CHUNKER_VERSION",
    "READER_VERSION",
    "chunk_document",
    "embedding_text",
    "read_document",
    "sentence_spans",
    "sniff",
]

# The readers are loaded on first use: a search needs none of them, and they take a tenth of its time.
_READERS = {"READER_VERSION": "reading", "read_document": "reading", "sniff": "sniffing"}


def __getattr__(name: str) -> _typing.Any:
    if name not in _READERS:
        raise AttributeError(f"module 'edge_rag.documents' has no attribute {name!r}")
    return getattr(_import_module(f"edge_rag.documents.{_READERS[name]}"), name)
