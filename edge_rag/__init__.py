"""Answers from your own documents, offline, with citations that are true.

>>> from edge_rag import Assistant, Library
>>> with Library.open("notes") as library, Assistant(library) as assistant:
...     answer = assistant.ask("When was the lamp replaced?")
"""

import os as _os
import typing as _typing
from importlib import import_module as _import_module

# Read when onnxruntime is loaded. Otherwise its official builds, from 1.31 on, write a device id into the user's cache, look up
# a host of their maker and send what they were used for.
_os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if _typing.TYPE_CHECKING:
    from edge_rag.answering import Assistant
    from edge_rag.bundle import Bundle
    from edge_rag.errors import EdgeRagError
    from edge_rag.interfaces import Answer, Citation, Passage
    from edge_rag.library import Filters, Library
    from edge_rag.settings import Settings

__all__ = ["Answer", "Assistant", "Bundle", "Citation", "EdgeRagError", "Filters", "Library", "Passage", "Settings"]

# Resolved on first use, so that `edge-rag --help` and a program that needs only a Library load nothing else.
_HOMES = {
    "Answer": "edge_rag.interfaces",
    "Assistant": "edge_rag.answering",
    "Bundle": "edge_rag.bundle",
    "Citation": "edge_rag.interfaces",
    "EdgeRagError": "edge_rag.errors",
    "Filters": "edge_rag.library",
    "Library": "edge_rag.library",
    "Passage": "edge_rag.interfaces",
    "Settings": "edge_rag.settings",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edge_rag' has no attribute {name!r}")
    return getattr(_import_module(_HOMES[name]), name)
