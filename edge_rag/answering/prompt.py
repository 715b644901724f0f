"""The words that a generator is shown. Pure functions: training uses the same ones, so a model serves what it was trained on.

The stable part comes first (the system turn, then the passages, then the question), so that a second question over the same
passages finds their keys and values already computed. Change a text here, and raise PROMPT_VERSION: trained adapters name it.
"""

from collections.abc import Sequence

from edge_rag.interfaces import Message, Passage

PROMPT_VERSION = 1

SYSTEM = "You answer questions from the passages that you are given, and from nothing else."
# The instruction stands beside the question: far above it, a small model has forgotten it after four passages.
INSTRUCTION = "Using only the passages, answer in one short sentence: "


def answer_messages(question: str, passages: Sequence[Passage], earlier: Sequence[str] = ()) -> list[Message]:
    """Build the prompt for one question; `earlier` are the questions that it follows up, oldest first.

    Texts of passages are data: white space in them is folded, so they cannot end the passage block or begin a new turn.
    """
    blocks = [f"Passage {n}{_where(p)}:\n{_flat(p.text)}" for n, p in enumerate(passages, start=1)]
    talk = [f"Earlier question: {_flat(q)}" for q in earlier]
    return [
        Message("system", SYSTEM),
        Message("user", "\n\n".join([*blocks, *talk, f"{INSTRUCTION}{_flat(question)}"])),
    ]


def _where(passage: Passage) -> str:
    """Name a passage by its headings; file names mean nothing to a model and change when files move."""
    label = passage.heading or passage.title
    return f" ({_flat(label)})" if label else ""


def _flat(text: str) -> str:
    return " ".join(text.split())
