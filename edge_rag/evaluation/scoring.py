"""Score one answer: is it right, was what it needs found and shown, does it rest on the passages?

Scores are fractions from 0 to 1. One that a question does not define is absent, not 0: retrieval scores where nothing was
searched, text scores of a question that has no answer (whether that was noticed is judged over many: see intervals.py).

Exact match and F1 are the published definitions to the letter, so that they can stand beside published tables: what those
count as different ("Beyoncé" and "Beyonce", “quoted” and "quoted") is different here too. Whether a text *contains* an answer
has no official definition; `_within` says which one was chosen, and why.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

from edge_rag.answering import NOT_FOUND
from edge_rag.evaluation.question_sets import Question, SetPassage

DEPTHS = (1, 3, 5, 10, 20)
NDCG_DEPTH = 10

METRICS: dict[str, str] = {
    # the answer, over the answerable questions
    "em": "the answer is one of the right ones, SQuAD normalisation",
    "contains": "one of the right answers stands in the answer as a run of whole words",
    "f1": "overlap of words with the nearest right answer, SQuAD normalisation; all or nothing where that is yes or no",
    "em_kilt": "em where punctuation separates words instead of vanishing",
    "f1_kilt": "f1 where punctuation separates words instead of vanishing",
    "accuracy": "the verdict is right, on questions of yes, no or maybe; no verdict is a wrong one",
    # with the questions that have no answer
    "em_with_refusals": "em over all questions of a set with unanswerable ones; refusing those, and only those, is right",
    "f1_with_refusals": "f1 over all questions of a set with unanswerable ones; refusing those, and only those, is right",
    "refusal_precision": "of the questions that were refused, the share that has no answer",
    "false_refusal_rate": "of the answerable questions, the share that was refused",
    "missed_refusal_rate": "of the unanswerable questions, the share that was answered",
    # confidence
    "auroc": "chance that an answerable question gets more confidence than an unanswerable one",
    "aurc": "share of wrong replies among the most confident ones, mean over all shares answered; less is better",
    "aurc_logprob": "aurc with the generator's mean log-probability as the confidence",
    "aurc_best": "aurc of a confidence that puts every right reply first",
    "aurc_random": "aurc of a confidence that says nothing: the share of wrong replies",
    # what the search found
    **{f"recall@{k}": f"share of the gold passages among the first {k} found" for k in DEPTHS},
    **{f"all_gold@{k}": f"all gold passages are among the first {k} found" for k in DEPTHS},
    **{f"answer_recall@{k}": f"one of the first {k} passages found contains a right answer" for k in DEPTHS},
    "mrr": "1 / rank of the first gold passage found; 0 if none was",
    f"ndcg@{NDCG_DEPTH}": f"discounted gain of the first {NDCG_DEPTH} found by graded relevance, 1 for the best order",
    # what the prompt held, and what the answer rests on
    "gold_shown": "share of the gold passages in the prompt",
    "answer_shown": "a passage in the prompt contains a right answer",
    "citation_precision": "of the passages cited, the share that is gold",
    "citation_recall": "of the gold passages, the share that is cited",
    "k_precision": "share of the answer's words that the passages in the prompt hold",
    "k_precision_new": "k_precision of the words that do not stand in the question",
    # cost
    "prompt_tokens": "tokens of the prompt",
    "answer_tokens": "tokens of the output",
}

# Answers that HotpotQA's F1 counts only as a whole. Its script does so, too, for an answer of just "yes" or "no" beside a
# right answer of several words; not done here, where the same function serves SQuAD.
_WHOLE = (["yes"], ["no"], ["noanswer"])
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACE_PUNCTUATION = str.maketrans(string.punctuation, " " * len(string.punctuation))


def score_answer(
    question: Question, *, answer: str, shown: Sequence[SetPassage], found: Sequence[SetPassage], cited: Sequence[str]
) -> dict[str, float]:
    """Score an answer and the passages that it was made from.

    `found`: what the search brought back, best first; () where nothing was searched. `shown`: the passages in the prompt.
    `cited`: ids of the passages that the answer's citations stand in.
    """
    scores: dict[str, float] = {}
    if question.answerable and question.answers:
        scores |= score_text(answer, question.answers)
        if question.parts:  # as RGB: the answer must give each of several things
            scores["contains"] = float(all(contains_answer(answer, part) for part in question.parts))
    if found:
        scores |= score_retrieval(question, found)
    if shown:
        scores |= score_grounding(question, answer, shown, cited)
    return scores


def squad_words(text: str) -> list[str]:
    """Normalise as SQuAD and HotpotQA do: lower case, ASCII punctuation deleted, articles dropped ("U.S." is "us")."""
    return _ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split()


def kilt_words(text: str) -> list[str]:
    """Normalise as DRO does: as SQuAD, but ASCII punctuation separates words ("post-war" is "post war", "U.S." "u s").

    DRO calls it KILT's; KILT's own script deletes punctuation, as SQuAD does.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_SPACE_PUNCTUATION)).split()


def verdict(answer: str) -> str | None:
    """Return the first "yes", "no" or "maybe" that an answer commits to; "true" and "false" count, "not true" is "no"."""
    text = answer.casefold().replace("’", "'")
    for words in (_EITHER, _EMPHASIS):
        text = words.sub(" ", text)
    first = _VERDICT.search(text)
    if first is None:
        return None
    said = _VERDICTS[first["word"]]
    return _OPPOSITE[said] if first["negation"] else said


_WORD = "(?:yes|no|maybe|true|false)"
# "yes or no" repeats the question; "no doubt" and "no question" are emphasis.
_EITHER = re.compile(rf"\b{_WORD}(?:, {_WORD})*(?:,? (?:or|and) |/){_WORD}\b")
_EMPHASIS = re.compile(r"\bno (?:doubt|question)\b")
_VERDICT = re.compile(rf"(?P<negation>(?:\b(?:can)?not|n't)(?: (?:an?|be|say))?\W+)?\b(?P<word>{_WORD})\b")
_VERDICTS = {"yes": "yes", "true": "yes", "no": "no", "false": "no", "maybe": "maybe"}
_OPPOSITE = {"yes": "no", "no": "yes", "maybe": "maybe"}


def score_text(answer: str, golds: Sequence[str]) -> dict[str, float]:
    """Compare an answer with the right ones: the best of them counts."""
    said, right = squad_words(answer), [squad_words(gold) for gold in golds]
    right = [words for words in right if words] or [[]]  # as SQuAD 2: a gold answer without words is none
    said_kilt, right_kilt = kilt_words(answer), [kilt_words(gold) for gold in golds]
    em = said in right
    scores = {
        "em": float(em),
        "contains": float(em or contains_answer(answer, golds)),
        "f1": float(em) if all(words in _WHOLE for words in right) else max(_f1_squad(said, words) for words in right),
        "em_kilt": float(said_kilt in right_kilt),
        "f1_kilt": max(_f1(said_kilt, words) for words in right_kilt),
    }
    if asks_verdict(golds):
        scores["accuracy"] = float([verdict(answer)] in right)
    return scores


def asks_verdict(golds: Collection[str]) -> bool:
    """Tell whether every right answer is yes, no or maybe."""
    return bool(golds) and all(squad_words(gold) in (["yes"], ["no"], ["maybe"]) for gold in golds)


def contains_answer(text: str, golds: Collection[str]) -> bool:
    """Tell whether one of the right answers stands in a text as a run of whole words."""
    for words in (squad_words, _plain_words):
        held = words(text)
        if any(_within(words(gold), held) for gold in golds):
            return True
    return False


def score_retrieval(question: Question, found: Sequence[SetPassage]) -> dict[str, float]:
    """Judge a ranking by the gold passages, by their graded relevance, and by the answers that its texts contain."""
    first: dict[str, SetPassage] = {}
    for passage in found:
        first.setdefault(passage.id, passage)
    ids, texts = list(first), [passage.text for passage in first.values()]
    gold = set(question.gold_ids)
    scores: dict[str, float] = {}
    if gold:
        for k in DEPTHS:
            scores[f"recall@{k}"] = len(gold & set(ids[:k])) / len(gold)
            scores[f"all_gold@{k}"] = float(gold <= set(ids[:k]))
        scores["mrr"] = next((1 / rank for rank, id in enumerate(ids, start=1) if id in gold), 0.0)
    grades = dict(question.relevance) or dict.fromkeys(gold, 1)
    best = _discounted(sorted((grade for grade in grades.values() if grade > 0), reverse=True))
    if best:
        scores[f"ndcg@{NDCG_DEPTH}"] = _discounted([max(0, grades.get(id, 0)) for id in ids]) / best
    if _has_answer_text(question):
        hit = _answered_by(question, texts[: max(DEPTHS)])
        scores |= {f"answer_recall@{k}": float(hit <= k) for k in DEPTHS}
    return scores


def score_grounding(
    question: Question, answer: str, shown: Sequence[SetPassage], cited: Sequence[str]
) -> dict[str, float]:
    """Judge what the prompt held, and what of it the answer uses and cites."""
    scores: dict[str, float] = {}
    texts = [f"{passage.title}\n{passage.text}" for passage in shown]  # the generator reads both
    gold = set(question.gold_ids)
    if gold:
        scores["gold_shown"] = len(gold & {passage.id for passage in shown}) / len(gold)
    if _has_answer_text(question):
        scores["answer_shown"] = float(_answered_by(question, texts) <= len(texts))
    if gold and cited:
        scores["citation_precision"] = len(gold & set(cited)) / len(set(cited))
    refused = NOT_FOUND in answer  # claims nothing, so there is nothing to cite or to hold
    if gold and squad_words(answer) and not refused:
        scores["citation_recall"] = len(gold & set(cited)) / len(gold)
    if question.answerable and not refused:
        said, held = squad_words(answer), Counter(squad_words("\n".join(texts)))
        asked = set(squad_words(question.question))
        new = [word for word in said if word not in asked]
        scores["k_precision"] = _share_held(said, held)
        # As instruct-qa has it: an answer that adds nothing to the question adds nothing unfounded.
        scores["k_precision_new"] = _share_held(new, held) if new else 1.0
    return scores


def _has_answer_text(question: Question) -> bool:
    return question.answerable and bool(question.answers) and not asks_verdict(question.answers)


def _answered_by(question: Question, texts: Sequence[str]) -> float:
    """Return how many of the texts it takes to find the answer, or every part of it; infinity if all are too few."""
    parts = question.parts or (question.answers,)
    return max(next((n for n, text in enumerate(texts, 1) if contains_answer(text, part)), math.inf) for part in parts)


def _f1_squad(said: Sequence[str], right: Sequence[str]) -> float:
    """F1 as SQuAD 2 has it: nothing agrees with nothing."""
    return _f1(said, right) if said and right else float(said == right)


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    common = (Counter(said) & Counter(right)).total()
    # The harmonic mean of precision and recall, in the order of operations of the published scripts.
    precision, recall = common / max(1, len(said)), common / max(1, len(right))
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _within(words: Sequence[str], text: Sequence[str]) -> bool:
    """Tell whether words stand in a text, in this order, side by side.

    Whole words, because letters are found anywhere: of HotpotQA's distractor passages 15% more "contain" the answer by letters
    than by words, for answers such as "no" (in "not") and "9" (in "1981").
    """
    return bool(words) and f" {' '.join(words)} " in f" {' '.join(text)} "


def _plain_words(text: str) -> list[str]:
    """Split at whatever is no letter or digit, drop accents and articles; "1,000" and "3.5" stay whole.

    Answers are looked for in these words besides SQuAD's, which miss an answer before "'s", a dash or a typographic quote: 1%
    of the annotated passages of SQuAD and NQ, none of which both together miss.
    """
    letters = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    whole = _IN_NUMBER.sub("", letters)
    return _ARTICLES.sub(" ", _NO_WORD.sub(" ", whole)).split()


_IN_NUMBER = re.compile(r"(?<=\d)[.,](?=\d)")
_NO_WORD = re.compile(r"[\W_]+")


def _discounted(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades[:NDCG_DEPTH], start=1))


def _share_held(words: Sequence[str], held: Counter[str]) -> float:
    return (Counter(words) & held).total() / len(words) if words else 0.0
