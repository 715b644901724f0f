"""Reasons that nobody has to write: the sentences of the gold passages that lead to the answer.

They are what a model starts from that is to give reasons: its own are of use only once it keeps to a form that can be read.
"""

from edge_rag.answering.prompt import ANSWER_MARK, NOT_FOUND
from edge_rag.documents import sentence_spans
from edge_rag.evaluation.scoring import asks_verdict, contains_answer, squad_words
from edge_rag.interfaces import Passage

from .examples import Example

MOST_QUOTES = 3


def reasoned_target(example: Example) -> str:
    """Return what a model is to say that gives reasons first: the sentences that tell, and the answer after its mark."""
    if example.target == NOT_FOUND:
        return NOT_FOUND
    return f"{' '.join(quotes(example))} {ANSWER_MARK} {example.target}"


def quotes(example: Example) -> list[str]:
    """Return a sentence of each gold passage: first of those that lead to the answer, then of those that hold it.

    Of several that hold it, where nothing leads there, two are enough: the rest says the same again.
    """
    answers = () if asks_verdict(example.answers) else example.answers
    gold = [example.passages[n] for n in example.gold]
    about = set(squad_words(example.question)) | {word for p in gold for word in squad_words(p.title)}
    holding = [p for p in gold if answers and contains_answer(p.text, answers)]
    leading = [p for p in gold if p not in holding][:MOST_QUOTES]
    telling = [_nearest(p, about, answers) for p in holding[: 1 if leading else 2]]
    return list(dict.fromkeys([*(_nearest(p, about, ()) for p in leading), *telling]))


def _nearest(passage: Passage, about: set[str], answers: tuple[str, ...]) -> str:
    """Return the sentence that shares most words with the question and the titles, of those that hold an answer if one does."""
    sentences = [" ".join(passage.text[start:end].split()) for start, end in sentence_spans(passage.text)]
    holding = [sentence for sentence in sentences if contains_answer(sentence, answers)]
    return max(holding or sentences or [passage.title], key=lambda sentence: len(about & set(squad_words(sentence))))
