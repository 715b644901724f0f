"""Selectors choose the passages that the generator sees. Trained ones will stand beside this one."""

from collections.abc import Sequence

from edge_rag.interfaces import Passage


class KeepTop:
    """Keep the first n in the order of the search: the baseline that a trained selector must beat."""

    name = "keep-top"

    def __init__(self, n: int) -> None:
        self._n = n

    def select(self, question: str, passages: Sequence[Passage]) -> list[Passage]:
        return list(passages[: self._n])
