"""The words that a generator is shown, and what of its reply is the answer. Pure functions: training uses the same ones, so a
model serves what it was trained on.

The stable part comes first (the system turn, then the passages, then the question), so that a second question over the same
passages finds their keys and values already computed. Change a text here, and raise PROMPT_VERSION: trained adapters name it.
"""

import re
from collections.abc import Sequence

from edge_rag.interfaces import Message, Passage, Style

PROMPT_VERSION = 1

SYSTEM = "You answer questions from the passages that you are given, and from nothing else."
CLOSED_BOOK_SYSTEM = "You answer questions from what you know."
LIST_SYSTEM = "You choose the passages that are needed to answer a question."
# The instruction stands beside the question: far above it, a small model has forgotten it after four passages.
INSTRUCTIONS: dict[Style, str] = {
    "sentence": "answer in one short sentence: ",
    "words": "answer with a few words and nothing else: ",
    "rationale": "say in one or two sentences what matters here, then write 'Answer:' and a few words: ",
}
ANSWER_MARK = "Answer:"
NOT_FOUND = "This is not in these documents."  # a trained model abstains in these words


def answer_messages(
    question: str, passages: Sequence[Passage], earlier: Sequence[str] = (), *, style: Style = "sentence"
) -> list[Message]:
    """Build the prompt for one question; `earlier` are the questions that it follows up, oldest first.

    Texts of passages are data: white space in them is folded, so they cannot end the passage block or begin a new turn.
    """
    blocks = [f"Passage {n}{_where(p)}:\n{_flat(p.text)}" for n, p in enumerate(passages, start=1)]
    talk = [f"Earlier question: {_flat(q)}" for q in earlier]
    task = f"Using only the passages, {INSTRUCTIONS[style]}{_flat(question)}"
    return [Message("system", SYSTEM), Message("user", "\n\n".join([*blocks, *talk, task]))]


def closed_book_messages(question: str, *, style: Style = "sentence") -> list[Message]:
    """Build the prompt that shows what the generator knows by itself: no passages, and none spoken of."""
    task = INSTRUCTIONS[style]
    return [
        Message("system", CLOSED_BOOK_SYSTEM),
        Message("user", f"{task[0].upper()}{task[1:]}{_flat(question)}"),
    ]


def pseudo_passage_messages(question: str) -> list[Message]:
    """Ask the generator for what it knows: a passage that may stand among those of a search (see says_nothing)."""
    task = (
        "Write about 100 words of background that help to answer this question, and nothing else. "
        f"If you do not know, write only N/A.\nQuestion: {_flat(question)}"
    )
    return [Message("system", CLOSED_BOOK_SYSTEM), Message("user", task)]


def list_messages(question: str, passages: Sequence[Passage], most: int, *, words: int = 0) -> list[Message]:
    """Ask which passages to answer from, the best first (see listed). `words`: shown of each passage; 0: all."""
    blocks = [f"Passage {n}{_where(p)}:\n{_first_words(p.text, words)}" for n, p in enumerate(passages, start=1)]
    task = (
        f"Write the numbers of the {most} passages that are needed to answer the question, the most useful first, "
        f"as in {written_list([1, 0])}, and nothing else: {_flat(question)}"
    )
    return [Message("system", LIST_SYSTEM), Message("user", "\n\n".join([*blocks, task]))]


def written_list(places: Sequence[int]) -> str:
    """Write places of passages, from 0, as a model is to write them."""
    return " > ".join(f"[{place + 1}]" for place in places)


def listed(output: str, n_passages: int, most: int) -> tuple[int, ...]:
    """Return the places of the passages that an output lists: those that are there, each once. Other figures mean nothing."""
    numbers = (int(number) - 1 for number in _LISTED.findall(output))
    return tuple(dict.fromkeys(place for place in numbers if 0 <= place < n_passages))[:most]


def pseudo_passage(text: str) -> Passage:
    """Return what the generator has written as a passage that can be shown: it stands in no document."""
    return Passage(
        chunk_id=-1, document_id=-1, document="", title="", heading="", page=None, start=0, end=len(text), text=text, score=0.0
    )  # fmt: skip


def is_refusal(text: str) -> bool:
    """Tell whether a text says that the documents do not hold the answer, in whatever letters it was drawn."""
    return NOT_FOUND.rstrip(".").casefold() in text.casefold()


def says_nothing(pseudo_passage: str) -> bool:
    """Tell whether the generator says that it does not know."""
    return NOT_FOUND in pseudo_passage or _UNKNOWN.match(pseudo_passage) is not None


def final_answer(output: str, style: Style = "sentence") -> str:
    """Return what of a generator's output answers the question: without the mark, and what stands before it or after its line."""
    if style == "sentence":
        return output.strip()
    marked = _MARK.split(output)
    lines = marked[-1].strip().splitlines()
    return lines[0].strip() if lines else ""


def answer_so_far(output: str, style: Style = "sentence") -> str:
    """Return what an output that is still being written has of the answer: "" as long as reasons are given."""
    if style == "sentence":
        return output
    if style == "rationale":
        mark = _MARK.search(output)
        if mark is None:
            return ""
        output = output[mark.end() :]
    lines = output.lstrip().splitlines()
    return lines[0] if lines else ""


_UNKNOWN = re.compile(
    r"\W*($|n/?a\b|none\b|unknown\b|(i am|i'm|i’m) (not sure|unsure)|i (do not|don't|don’t|cannot|can't) )",
    re.IGNORECASE,
)
_LISTED = re.compile(r"\[(\d{1,4})\]", re.ASCII)
_MARK = re.compile(r"\banswer\s*:", re.IGNORECASE)


def _where(passage: Passage) -> str:
    """Name a passage by its headings; file names mean nothing to a model and change when files move."""
    label = passage.heading or passage.title
    return f" ({_flat(label)})" if label else ""


def _first_words(text: str, words: int) -> str:
    found = text.split()
    return " ".join(found) if not words or len(found) <= words else " ".join([*found[:words], "..."])


def _flat(text: str) -> str:
    return " ".join(text.split())
