"""Find where the passages say what an answer sentence says.

The model is never asked for citations: small ones invent them. The runtime looks for the passage sentence that holds the
sentence's content, and quotes it from the stored text. A sentence that no passage supports is marked, and gets none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_rag.answering.evidence import Sentence
from edge_rag.answering.words import content_words, is_exact
from edge_rag.documents import sentence_spans
from edge_rag.interfaces import AnswerSentence, Citation, Passage

# Share of a sentence's content words that one quote must hold. Chosen on answers of the default model to train questions:
# lower values accept sentences that join unrelated facts, higher ones reject plain rewording.
MIN_SUPPORT = 0.7
MAX_QUOTE_SENTENCES = 2


@dataclass(frozen=True, slots=True)
class _Quote:
    passage: Passage
    start: int  # in the stored text
    end: int
    words: frozenset[str]


def locate(question: str, answer: str, passages: Sequence[Passage]) -> tuple[list[AnswerSentence], list[Citation]]:
    """Split an answer into sentences, and cite for each the quote that supports it best."""
    quotes = [found for passage in passages for found in _quotes(passage)]
    asked = frozenset(content_words(question))
    sentences: list[AnswerSentence] = []
    citations: list[Citation] = []
    for start, end in sentence_spans(answer):
        text = answer[start:end].strip()
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
    start, end = _trim(p.text, sentence.start, sentence.end)
    return Citation(p.document, p.page, p.start + start, p.start + end, p.text[start:end], p.chunk_id, None)


def _best_quote(sentence: str, asked: frozenset[str], quotes: Sequence[_Quote]) -> _Quote | None:
    said = frozenset(content_words(sentence))
    # What the sentence adds to the question is what needs proof: anyone can repeat a question.
    new = said - asked or said
    best, best_score = None, 0.0
    for candidate in quotes:
        if any(is_exact(word) and word not in candidate.words for word in new):
            continue
        support = len(new & candidate.words) / len(new)
        if support < MIN_SUPPORT:
            continue
        # Among quotes that hold the new words, prefer the one about what was asked, then the tighter one.
        about = len(asked & candidate.words) / max(1, len(asked))
        score = support + about - 0.01 * (candidate.end - candidate.start) / 100
        if best is None or score > best_score:
            best, best_score = candidate, score
    return best


def _quotes(passage: Passage) -> Iterator[_Quote]:
    spans = [s for s in sentence_spans(passage.text) if passage.text[s[0] : s[1]].strip()]
    context = frozenset(content_words(passage.heading)) if passage.heading else frozenset()
    for first in range(len(spans)):
        for last in range(first, min(first + MAX_QUOTE_SENTENCES, len(spans))):
            start, end = _trim(passage.text, spans[first][0], spans[last][1])
            found = frozenset(content_words(passage.text[start:end]))
            yield _Quote(passage, passage.start + start, passage.start + end, found | context)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _citation(found: _Quote, sentence: int) -> Citation:
    p = found.passage
    text = p.text[found.start - p.start : found.end - p.start]
    return Citation(p.document, p.page, found.start, found.end, text, p.chunk_id, sentence)
