"""Find where the passages say what an answer sentence says.

The model is never asked for citations: small ones invent them. The runtime looks for the passage sentence that holds the
sentence's content, and quotes it from the stored text. A sentence that no passage supports is marked, and gets none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_rag.answering.evidence import Sentence
from edge_rag.answering.words import content_words, is_exact, names, words
from edge_rag.documents import sentence_spans
from edge_rag.interfaces import AnswerSentence, Citation, Passage

# Share of what a sentence adds to the question that one quote must hold, and share of the question that the same quote, with
# the headings it stands under, must be about. Lower values accept sentences that join unrelated facts or quote what was not
# asked for, higher ones reject plain rewording.
MIN_SUPPORT = 0.7
MIN_ABOUT = 0.34
MAX_QUOTE_SENTENCES = 2
FEWEST_REPEATED = 3  # content words of a sentence that only repeats the question and can still be a statement
NEGATIONS = frozenset(["no", "not", "never", "none", "nobody", "nothing", "neither", "nor", "without", "cannot"])


@dataclass(frozen=True, slots=True)
class _Quote:
    passage: Passage
    start: int  # in the stored text
    end: int
    words: frozenset[str]  # of the quote itself
    context: frozenset[str]  # of the headings above it
    negated: bool


def locate(question: str, answer: str, passages: Sequence[Passage]) -> tuple[list[AnswerSentence], list[Citation]]:
    """Split an answer into sentences, and cite for each the quote that supports it best."""
    quotes = [found for passage in passages for found in _quotes(passage)]
    asked = frozenset(content_words(question))
    sentences: list[AnswerSentence] = []
    citations: list[Citation] = []
    for start, end in sentence_spans(answer):
        text = answer[start:end]
        if not any(c.isalnum() for c in text):
            continue
        best = _best_quote(text, asked, quotes)
        if best is not None:
            citations.append(_citation(best, len(sentences)))
        sentences.append(AnswerSentence(text, supported=best is not None))
    return sentences, citations


def quote(sentence: Sentence) -> Citation:
    """Quote a sentence of a passage as it stands."""
    p = sentence.passage
    return Citation(
        p.document, p.page, p.start + sentence.start, p.start + sentence.end, sentence.text, p.chunk_id, None
    )


def _best_quote(sentence: str, asked: frozenset[str], quotes: Sequence[_Quote]) -> _Quote | None:
    said = frozenset(content_words(sentence))
    # What the sentence adds to the question is what needs proof: anyone can repeat a question.
    new = said - asked
    if not new and len(said) < FEWEST_REPEATED:
        return None
    if sentence.endswith("?"):
        return None
    negated = _is_negated(sentence)
    must = {word for word in new if is_exact(word)} | (names(sentence) - asked)
    best, best_score = None, 0.0
    for candidate in quotes:
        missing = (new or said) - candidate.words
        support = 1 - len(missing) / len(new or said)
        about = len(asked & (candidate.words | candidate.context)) / max(1, len(asked))
        if support < MIN_SUPPORT or about < MIN_ABOUT or missing & must or candidate.negated != negated:
            continue
        # Among quotes that hold the new words, prefer the one about what was asked, then the tighter one.
        score = support + about - 0.01 * (candidate.end - candidate.start) / 100
        if score > best_score:
            best, best_score = candidate, score
    return best


def _quotes(passage: Passage) -> Iterator[_Quote]:
    spans = sentence_spans(passage.text)
    context = frozenset(content_words(passage.heading)) if passage.heading else frozenset()
    for first in range(len(spans)):
        for last in range(first, min(first + MAX_QUOTE_SENTENCES, len(spans))):
            start, end = spans[first][0], spans[last][1]
            text = passage.text[start:end]
            found = frozenset(content_words(text))
            yield _Quote(passage, passage.start + start, passage.start + end, found, context, _is_negated(text))


def _is_negated(text: str) -> bool:
    plain = text.casefold().replace("’", "'")
    return "n't " in plain or any(word in NEGATIONS for word in words(plain))


def _citation(found: _Quote, sentence: int) -> Citation:
    p = found.passage
    text = p.text[found.start - p.start : found.end - p.start]
    return Citation(p.document, p.page, found.start, found.end, text, p.chunk_id, sentence)
