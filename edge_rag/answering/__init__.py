"""retrieve -> select -> decide -> prompt -> generate -> cite. `Assistant.ask` reads as that list."""

from edge_rag.answering.assistant import EXTRACTIVE, Assistant
from edge_rag.answering.history import Turn
from edge_rag.answering.prompt import NOT_FOUND
from edge_rag.answering.retrieve import Retrieval, retrieve
from edge_rag.answering.selector import GenerativeSelector, KeepTop, OnnxSelector

__all__ = [
    "EXTRACTIVE",
    "NOT_FOUND",
    "Assistant",
    "GenerativeSelector",
    "KeepTop",
    "OnnxSelector",
    "Retrieval",
    "Turn",
    "retrieve",
]
