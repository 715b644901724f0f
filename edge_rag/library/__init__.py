"""One knowledge base: what is in it, how it gets there, how it is searched, and how it is kept whole."""

from edge_rag.library.doctor import describe_index, diagnose
from edge_rag.library.filters import Filters
from edge_rag.library.knowledge import EVERYTHING, Library, list_libraries
from edge_rag.library.reports import (
    CompactReport,
    DocumentInfo,
    DocumentView,
    Finding,
    IngestReport,
    Stats,
    SyncReport,
)
from edge_rag.library.walk import FileProblem

__all__ = [
    "EVERYTHING",
    "CompactReport",
    "DocumentInfo",
    "DocumentView",
    "FileProblem",
    "Filters",
    "Finding",
    "IngestReport",
    "Library",
    "Stats",
    "SyncReport",
    "describe_index",
    "diagnose",
    "list_libraries",
]
