"""Question files in the formats in which the sets are published. What a file holds decides, never its name.

A row is of the first format below whose keys it has; all rows of a file are of one format.

format     decided by                                 passages of a question          answers
---------  -----------------------------------------  ------------------------------  ---------------------------------------
rgb        query, positive, negative                  positive (gold, in groups or    answer: a text, or a list of which each
                                                      not), positive_wrong, negative  part must be given, as a text or any of
                                                                                      a list
beir       a folder, or a file, of qrels: query-id,   none; corpus.jsonl              none: relevance above 0 is gold
           corpus-id, score; queries.jsonl beside
musique    question, paragraphs                       paragraphs (is_supporting)      answer, answer_aliases; answerable
2wiki      context, evidences or entity_ids           context, gold by the titles in  answer
                                                      supporting_facts
hotpotqa   question, context (pairs or dict of lists) the same                        answer
dpr        question, ctxs                             ctxs (isgold, else hasanswer)   answers
popqa      question, possible_answers                 none                            possible_answers: a list, or its JSON
triviaqa   QuestionId; or question_id and an answer   none: web pages and articles    Value, Aliases, HumanAnswers,
           that is an object                          are too long for a prompt       NormalizedAliases
strategyqa question, qid                              none; evidence names those of   answer: true or false
                                                      *_paragraphs.json beside it
squad      question and context, a text: paragraphs   context                         answers; is_impossible, or none left
           of {"data": ...}, or one question a row
edge_rag   question, answers                          passages (gold)                 answers; answerable
nq_open    question, answer                           none                            answer: a list, or one text

StrategyQA's facts are kept, and so are "facts" and "related_ids" (what an unanswerable question is about) of a row of ours.

Where JSON lines are usual, a JSON list of the same rows is as good, and the other way round. 2WikiMultiHopQA and HotpotQA
come in three shapes: pairs [title, [sentence, ...]] as published, {"title": [...], "sentences": [[...], ...]} as exported
from parquet, and either of these as a JSON text in a cell. Keys are as in the sets' own documentation; test parts leave
out the answers and the gold passages, and so do the questions read from them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

from edge_rag.errors import EdgeRagError
from edge_rag.evaluation.question_files import Row, bad_row, read_entries, read_json_lines, read_table, shorten
from edge_rag.evaluation.questions import Question, SetPassage

LONGEST = 100_000  # characters of a question, an answer, a title
LONGEST_ID = 1_000
LONGEST_PASSAGE = 10_000_000

_MOST_WORDINGS = 256  # of an answer in several parts, each with several wordings

# A gold passage of which only the title is known, and that title is nowhere: the id is in no corpus, so recall counts a miss.
TITLE = "title:"


@dataclass(frozen=True, slots=True)
class QuestionFile:
    format: str
    questions: Iterator[Question]  # reads the file as it goes, and raises EdgeRagError where a row is wrong
    corpus: Path | None  # where the format says where it lies
    files: tuple[Path, ...]  # what the questions are read from


def open_questions(path: Path) -> QuestionFile:
    """Tell the format of a file or folder from its content, and begin to read its questions."""
    if path.is_dir():
        return _open_beir(path, _qrels_of(path))
    entries = read_entries(path)
    first = next(entries, None)
    if first is None:
        raise EdgeRagError(f"{path} has no questions in it", mend="give a file with questions")
    _, row = first
    if "query-id" in row:
        return _open_beir(path.parent.parent, path)
    name = _format(row)
    if name is None:
        raise EdgeRagError(
            f"{path} is of no known format: its rows have {_keys(row)}",
            mend=f"known are: {', '.join([*_PARSERS, 'beir'])}",
        )
    # strategyqa_train.json has the ids of its evidence, strategyqa_train_paragraphs.json the texts
    corpus = next(iter(sorted(path.parent.glob("*_paragraphs.json*"))), None) if name == "strategyqa" else None
    return QuestionFile(name, _unique(path, _read(path, name, chain([first], entries))), corpus, (path,))


def passage_id(title: str, text: str) -> str:
    """Return the id of a passage that has none of its own: the same passage has the same id in every question and set."""
    return hashlib.sha256(f"{title}\0{text}".encode()).hexdigest()[:16]


def read_corpus_file(path: Path) -> Iterator[SetPassage]:
    """Yield the passages of a corpus file: rows of id or _id, title and text; or StrategyQA's {id: {title, content}}."""
    seen: set[str] = set()
    for place, row in read_entries(path):
        try:
            key = _id(row, "id", "_id")
            if row and key is None and all(isinstance(value, dict) and "content" in value for value in row.values()):
                for name, paragraph in row.items():
                    text = _text(paragraph, "content", LONGEST_PASSAGE, empty=True)
                    yield SetPassage(_as_id(name), _title(paragraph.get("title")), text)
                continue
            if key is None:
                raise _Wrong('has no "id"')
            if key in seen:
                raise _Wrong(f"the id {shorten(key)} is there a second time")
            seen.add(key)
            yield SetPassage(key, _title(row.get("title")), _text(row, "text", LONGEST_PASSAGE, empty=True))
        except _Wrong as error:
            raise bad_row(path, place, str(error)) from None


class _Wrong(Exception):
    """What is wrong with a row; the reader adds file and line."""


def _format(row: Row) -> str | None:
    has = row.keys()
    answer = row.get("answer")
    if {"query", "positive", "negative"} <= has:
        return "rgb"
    if "paragraphs" in has:
        return "musique" if "question" in has else "squad"
    if "QuestionId" in has or ("question_id" in has and isinstance(answer, dict)):
        return "triviaqa"
    if "question" not in has:
        return None
    if "context" in has and ("supporting_facts" in has or not _is_plain_text(row["context"])):
        return "2wiki" if "evidences" in has or "entity_ids" in has else "hotpotqa"
    if "ctxs" in has:
        return "dpr"
    if "possible_answers" in has:
        return "popqa"
    if "qid" in has and (isinstance(answer, bool) or "facts" in has or "term" in has):
        return "strategyqa"
    if "context" in has:
        return "squad"
    if "answers" in has:
        return "edge_rag"
    return "nq_open" if "answer" in has else None


def _is_plain_text(context: object) -> bool:
    return isinstance(context, str) and not context.lstrip().startswith(("[[", '{"title"'))


def _read(path: Path, name: str, entries: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Question]]:
    parse = _PARSERS[name]
    for place, row in entries:
        try:
            for question in parse(row):
                yield place, question
        except _Wrong as error:
            raise bad_row(path, place, str(error)) from None


def _unique(path: Path, questions: Iterator[tuple[str, Question]]) -> Iterator[Question]:
    """Give an id to questions that have none, and refuse an id that two questions have: runs are compared by it.

    A question that is there again under its id is left out: TriviaQA as exported has those of its web and Wikipedia parts.
    """
    seen: dict[str, int] = {}
    for place, question in questions:
        key = question.id
        if not key:
            key = base = hashlib.sha256(question.question.encode()).hexdigest()[:16]
            copy = 2
            while key in seen:
                key, copy = f"{base}-{copy}", copy + 1
        elif key in seen:
            if seen[key] == hash(question):
                continue
            raise EdgeRagError(
                f"{path}, {place}: another question has the id {shorten(key)}, too",
                mend="give every question its own id",
            )
        seen[key] = hash(question)
        yield question if key == question.id else replace(question, id=key)


# One parser a format: a row to its questions.


def _rgb(row: Row) -> Iterator[Question]:
    # "int" sets give positive in groups, one for each part of the answer
    positive = [text for group in _list(row, "positive") for text in (group if isinstance(group, list) else [group])]
    passages = [
        *(_passage("", text, gold=True) for text in positive),
        *(_passage("", text, misleading=True) for text in _list(row, "positive_wrong", missing=True)),
        *(_passage("", text) for text in _list(row, "negative")),
    ]
    answer = row.get("answer")
    parts = [_answers(part) for part in (answer if isinstance(answer, list) else [answer])]
    parts = [part for part in parts if part]
    answers = [" and ".join(wordings) for wordings in islice(product(*parts), _MOST_WORDINGS)]
    question = _question(row, "id", answers=filter(None, answers), passages=passages, key="query")
    yield replace(question, parts=tuple(map(tuple, parts))) if len(parts) > 1 else question


def _musique(row: Row) -> Iterator[Question]:
    answerable = _flag(row, "answerable", True)
    passages = [
        _passage(
            _title(part.get("title")),
            part.get("paragraph_text"),
            # the paragraphs of an unanswerable question support less than it asks
            gold=_flag(part, "is_supporting", False) and answerable,
        )
        for part in _objects(row, "paragraphs")
    ]
    answers = [*_answers(row.get("answer")), *_answers(row.get("answer_aliases"))]
    question = _question(row, "id", answers=answers, passages=passages, answerable=answerable)
    # the full set has each question twice under one id, the second time without a paragraph that it needs
    yield question if answerable or not question.id else replace(question, id=f"{question.id}-unanswerable")


def _hotpotqa(row: Row) -> Iterator[Question]:
    facts = _unpacked(row.get("supporting_facts")) or []
    if isinstance(facts, dict):
        titles = _list(facts, "title")
    else:
        titles = [_pair(fact, "supporting_facts")[0] for fact in _sequence(facts, "supporting_facts")]
    gold = tuple(dict.fromkeys(_title(title) for title in titles))
    context = _unpacked(row.get("context")) or []
    if isinstance(context, dict):
        context = list(zip(_list(context, "title"), _list(context, "sentences"), strict=False))
    passages = []
    for pair in _sequence(context, "context"):
        name, sentences = _pair(pair, "context")
        title = _title(name)
        texts = [_as_text(sentence, "a sentence", LONGEST_PASSAGE) for sentence in _sequence(sentences, "context")]
        text = " ".join(text.strip() for text in texts if text.strip())
        passages.append(_passage(title, text, gold=title in gold))
    yield _question(row, "_id", "id", answers=_answers(row.get("answer")), passages=passages, gold_titles=gold)


def _dpr(row: Row) -> Iterator[Question]:
    contexts = _objects(row, "ctxs")
    # a retriever marks what contains an answer; a set with annotated passages marks those, and then only they are gold
    keys = ("isgold",) if any("isgold" in context for context in contexts) else ("hasanswer", "has_answer")
    passages = []
    for context in contexts:
        gold = any(_flag(context, key, False) for key in keys)
        passages.append(_passage(_title(context.get("title")), context.get("text"), gold=gold))
    answers = _answers(row.get("answers", row.get("answer")))
    yield _question(row, "id", "_id", "qid", "q_id", answers=answers, passages=passages)


def _popqa(row: Row) -> Iterator[Question]:
    answers = _unpacked(row.get("possible_answers"))
    yield _question(row, "id", answers=_answers(answers))


def _triviaqa(row: Row) -> Iterator[Question]:
    answer = row.get("Answer", row.get("answer"))
    if answer is None:
        answer = {}
    if not isinstance(answer, dict):
        raise _Wrong(f"the answer is no object but {shorten(answer)}")
    published = ("Value", "Aliases", "HumanAnswers", "NormalizedAliases")
    exported = ("value", "aliases", "human_answers", "normalized_aliases")
    answers = [text for key in published + exported for text in _answers(answer.get(key))]
    text = "Question" if "Question" in row else "question"
    yield _question(row, "QuestionId", "question_id", answers=answers, key=text)


def _strategyqa(row: Row) -> Iterator[Question]:
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, bool):
        raise _Wrong(f'"answer" is not true or false but {shorten(answer)}')
    answers = [] if answer is None else ["yes" if answer else "no"]
    gold = tuple(_evidence(row.get("evidence")))
    yield _question(row, "qid", answers=answers, gold_ids=gold, facts=_facts(row))


def _facts(row: Row) -> tuple[str, ...]:
    return tuple(_as_text(fact, "a fact", LONGEST_PASSAGE) for fact in _list(row, "facts", missing=True))


def _evidence(evidence: object) -> Iterator[str]:
    """Yield the paragraph ids in the lists of annotators, of steps, of findings, once each and in their order."""
    seen = {"operation", "no_evidence"}  # what an annotator writes for a step without a paragraph
    left = [evidence]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left.extend(reversed(item))
        elif item is not None:
            key = _as_text(item, '"evidence"', LONGEST_ID)
            if key not in seen:
                seen.add(key)
                yield key


def _squad(row: Row) -> Iterator[Question]:
    if "paragraphs" not in row:
        yield _squad_question(row, row.get("title"), row.get("context"))
        return
    for paragraph in _objects(row, "paragraphs"):
        for entry in _objects(paragraph, "qas"):
            yield _squad_question(entry, row.get("title"), paragraph.get("context"))


def _squad_question(row: Row, title: object, context: object) -> Question:
    answers = row.get("answers")
    texts = answers.get("text") if isinstance(answers, dict) else answers
    if isinstance(texts, list):
        texts = [answer.get("text") if isinstance(answer, dict) else answer for answer in texts]
    # an exported row has no is_impossible, and an unanswerable question has an empty list
    impossible = _flag(row, "is_impossible", isinstance(answers, dict) and not texts)
    passage = _passage(_title(title).replace("_", " "), context, gold=not impossible)
    return _question(row, "id", answers=_answers(texts), passages=[passage], answerable=not impossible)


def _edge_rag(row: Row) -> Iterator[Question]:
    gold = tuple(_as_id(key) for key in _list(row, "gold_ids", missing=True))
    passages: list[SetPassage] = []
    for part in _objects(row, "passages", missing=True):
        title, text = _title(part.get("title")), _text(part, "text", LONGEST_PASSAGE, empty=True)
        key = _id(part, "id") or passage_id(title, text)
        whole, _, number = key.rpartition("-")
        if key not in gold and whole in gold and number.isdigit():
            # a section of a document that the corpus has in one piece (PubMedQA's abstracts): shown and found are the same
            if passages and passages[-1].id == whole:
                passages[-1] = replace(passages[-1], text=f"{passages[-1].text} {text}")
            else:
                passages.append(SetPassage(whole, "", text, True))
        else:
            passages.append(SetPassage(key, title, text, _flag(part, "gold", False) or key in gold))
    titles = () if gold else tuple(_title(title) for title in _list(row, "gold_titles", missing=True))
    grades = row.get("qrels") or {}
    if not isinstance(grades, dict) or not all(type(grade) is int for grade in grades.values()):
        raise _Wrong(f'"qrels" are no grades: {shorten(grades)}')
    yield _question(
        row,
        "id",
        answers=_answers(row.get("answers")),
        passages=passages,
        gold_ids=gold,
        gold_titles=titles,
        answerable=_flag(row, "answerable", True),
        relevance={_as_id(key): grade for key, grade in grades.items()},
        facts=_facts(row),
        related_ids=tuple(_as_id(key) for key in _list(row, "related_ids", missing=True)),
    )


def _nq_open(row: Row) -> Iterator[Question]:
    yield _question(row, "id", answers=_answers(row.get("answer")))


_PARSERS = {
    "rgb": _rgb,
    "musique": _musique,
    "2wiki": _hotpotqa,
    "hotpotqa": _hotpotqa,
    "dpr": _dpr,
    "popqa": _popqa,
    "triviaqa": _triviaqa,
    "strategyqa": _strategyqa,
    "squad": _squad,
    "edge_rag": _edge_rag,
    "nq_open": _nq_open,
}


# BEIR: three kinds of files in a folder


def _qrels_of(folder: Path) -> Path:
    """Return the relevance judgements of a BEIR folder: those of its test part, as in the benchmark, else of another part."""
    for name in ("queries.jsonl", "corpus.jsonl"):
        if _either(folder / name) is None:
            raise EdgeRagError(f"{folder} is no BEIR folder: it has no {name}", mend="give a file, or a BEIR folder")
    for part in ("test", "dev", "train"):
        if (qrels := _either(folder / "qrels" / f"{part}.tsv")) is not None:
            return qrels
    others = sorted((folder / "qrels").glob("*.tsv*"))
    if not others:
        raise EdgeRagError(f"{folder} has no qrels/test.tsv", mend="add the relevance judgements, as BEIR gives them")
    return others[0]


def _open_beir(folder: Path, qrels: Path) -> QuestionFile:
    queries = _either(folder / "queries.jsonl")
    if queries is None:
        raise EdgeRagError(f"{qrels} has no queries.jsonl beside its folder", mend="give a BEIR folder as a whole")
    questions = _unique(queries, _read_beir(queries, qrels))
    return QuestionFile("beir", questions, _either(folder / "corpus.jsonl"), (queries, qrels))


def _read_beir(queries: Path, qrels: Path) -> Iterator[tuple[str, Question]]:
    judged = _judgements(qrels)
    for place, row in read_json_lines(queries):
        try:
            key = _id(row, "_id", "id")
            relevance = judged.pop(key or "", None)
            if relevance is not None:  # a query of another part has no judgements here
                gold = tuple(name for name, grade in relevance.items() if grade > 0)
                yield place, _question(row, "_id", "id", answers=[], gold_ids=gold, relevance=relevance, key="text")
        except _Wrong as error:
            raise bad_row(queries, place, str(error)) from None
    if judged:
        raise bad_row(queries, "", f"has no query with the id {shorten(next(iter(judged)))}, which {qrels} judges")


def _judgements(qrels: Path) -> dict[str, dict[str, int]]:
    judged: dict[str, dict[str, int]] = {}
    for number, cells in enumerate(read_table(qrels), 1):
        try:
            query, passage, grade = cells
            judged.setdefault(query, {})[passage] = int(grade)
        except ValueError:
            if number > 1:  # the first line names the columns
                raise bad_row(qrels, f"line {number}", "is not: query-id, corpus-id, score") from None
    return judged


def _either(path: Path) -> Path | None:
    """Return the file, or the gzipped one."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


# Fields. Each of these takes what JSON allows and returns what the field is for, or says what is wrong with it.


def _question(
    row: Row,
    *id_keys: str,
    answers: Iterable[str],
    passages: Sequence[SetPassage] = (),
    gold_ids: tuple[str, ...] = (),
    gold_titles: tuple[str, ...] = (),
    answerable: bool = True,
    relevance: Mapping[str, int] | None = None,
    facts: tuple[str, ...] = (),
    related_ids: tuple[str, ...] = (),
    key: str = "question",
) -> Question:
    """Put a question together: passages once each, gold ids from the first of ids, titles, passages that there is."""
    distinct: dict[str, SetPassage] = {}
    for passage in passages:
        known = distinct.setdefault(passage.id, passage)
        if passage.gold and not known.gold:
            distinct[passage.id] = replace(known, gold=True)
    if gold_titles:
        by_title = {passage.title: passage.id for passage in reversed(distinct.values()) if passage.gold}
        gold_ids = tuple(by_title.get(title, TITLE + title) for title in gold_titles)
    elif not gold_ids:
        gold_ids = tuple(passage.id for passage in distinct.values() if passage.gold)
    if not answerable:
        answers, gold_ids, relevance = (), (), {}
    return Question(
        id=_id(row, *id_keys) or "",
        question=_text(row, key, LONGEST),
        answers=tuple(dict.fromkeys(answers)),
        passages=tuple(distinct.values()),
        gold_ids=tuple(dict.fromkeys(gold_ids)),
        answerable=answerable,
        facts=facts,
        related_ids=related_ids,
        relevance={name: grade for name, grade in (relevance or dict.fromkeys(gold_ids, 1)).items() if grade > 0},
    )


def _passage(title: str, text: object, *, gold: bool = False, misleading: bool = False) -> SetPassage:
    body = _as_text(text, "a passage", LONGEST_PASSAGE)
    return SetPassage(passage_id(title, body), title, body, gold, misleading)


def _answers(value: object) -> list[str]:
    """Return a text, or a list of texts, as a list without the blank ones."""
    texts = value if isinstance(value, list) else [] if value is None else [value]
    return [text for text in (_as_text(text, "an answer", LONGEST) for text in texts) if text.strip()]


def _text(row: Row, key: str, longest: int, *, empty: bool = False) -> str:
    text = _as_text(row.get(key), f'"{key}"', longest)
    if not (empty or text.strip()):
        raise _Wrong(f'"{key}" is blank')
    return text


def _title(value: object) -> str:
    return "" if value is None else _as_text(value, "a title", LONGEST)


def _as_text(value: object, what: str, longest: int) -> str:
    if value is None:
        raise _Wrong(f"{what} is missing")
    if not isinstance(value, str):
        raise _Wrong(f"{what} is no text but {shorten(value)}")
    if len(value) > longest:
        raise _Wrong(f"{what} has {len(value):,} characters, more than {longest:,}")
    # JSON can hold halves of characters, which no file can
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _id(row: Row, *keys: str) -> str | None:
    return next((_as_id(row[key]) for key in keys if row.get(key) not in (None, "")), None)


def _as_id(value: object) -> str:
    return str(value) if type(value) is int else _as_text(value, "an id", LONGEST_ID)


def _flag(row: Row, key: str, otherwise: bool) -> bool:
    value = row.get(key, otherwise)
    if not isinstance(value, bool):
        raise _Wrong(f'"{key}" is not true or false but {shorten(value)}')
    return value


def _list(row: Row, key: str, *, missing: bool = False) -> list[Any]:
    return [] if missing and row.get(key) is None else _sequence(row.get(key), key)


def _objects(row: Row, key: str, *, missing: bool = False) -> list[Row]:
    objects = _list(row, key, missing=missing)
    if wrong := [item for item in objects if not isinstance(item, dict)]:
        raise _Wrong(f'"{key}" holds {shorten(wrong[0])}, which is no object')
    return objects


def _sequence(value: object, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Wrong(f'"{key}" is no list but {shorten(value)}')
    return value


def _pair(value: object, key: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _Wrong(f'"{key}" has {shorten(value)} where a pair should be')
    return value


def _unpacked(value: Any) -> Any:
    """Return what a JSON text in a cell stands for, and anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise _Wrong(f"a cell holds no JSON: {shorten(value)}") from None


def _keys(row: Row) -> str:
    names = ", ".join(shorten(name)[1:-1] for name in islice(row, 8))
    return f"the keys {names}" if names else "no keys"
