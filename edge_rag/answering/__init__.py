"""retrieve -> select -> decide -> prompt -> generate -> cite. `Assistant.ask` reads as that list."""

from edge_rag.answering.assistant import EXTRACTIVE, Assistant
from edge_rag.answering.history import Turn
from edge_rag.answering.prompt import NOT_FOUND
from edge_rag.answering.retrieve import Retrieval, retrieve
from edge_rag.answering.selector import KeepTop, OnnxSelector

__all__ = ["EXTRACTIVE", "NOT_FOUND", "Assistant", "KeepTop", "OnnxSelector", "Retrieval", "Turn", "retrieve"]
