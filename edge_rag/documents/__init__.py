"""A file's bytes become a Document with offsets and pages, and a Document becomes chunks."""

from edge_rag.documents.chunking import CHUNKER_VERSION, chunk_document, embedding_text
from edge_rag.documents.reading import READER_VERSION, read_document
from edge_rag.documents.sentences import sentence_spans
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
