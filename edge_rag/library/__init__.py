"""One knowledge base: what is in it, how it gets there, how it is searched, and how it is kept whole."""

from edge_rag.library.doctor import doctor
from edge_rag.library.filters import Filters
from edge_rag.library.knowledge import EVERYTHING, Library, library_names
from edge_rag.library.reports import (
    CompactReport,
    DocumentInfo,
    DocumentView,
    Finding,
    IngestReport,
    RemoveReport,
    Stats,
    SyncReport,
)
from edge_rag.library.walk import Problem

__all__ = [
    "EVERYTHING",
    "CompactReport",
    "DocumentInfo",
    "DocumentView",
    "Filters",
    "Finding",
    "IngestReport",
    "Library",
    "Problem",
    "RemoveReport",
    "Stats",
    "SyncReport",
    "doctor",
    "library_names",
]
