"""A row of each published format, files of such rows, and what is expected of every set that loads or is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from edge_rag.errors import EdgeRagError
from edge_rag.evaluation.question_sets import (
    Question,
    QuestionSet,
    load_set,
)

Row = dict[str, Any]

HOTPOTQA: Row = {
    "_id": "h1",
    "question": "In which country was the builder of the tower born?",
    "answer": "Norway",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Tower", 0], ["Builder", 1], ["Builder", 0]],
    "context": [
        ["River", ["A river runs.", " It is long."]],
        ["Builder", ["He built.", " He was born in Norway."]],
        ["Tower", ["The tower was built by him."]],
    ],
}
RIVER, BUILDER, TOWER = "A river runs. It is long.", "He built. He was born in Norway.", "The tower was built by him."
MUSIQUE: Row = {
    "id": "2hop__1_2",
    "question": "Who led the town of the mill?",
    "paragraphs": [
        {"idx": 0, "title": "Mill", "paragraph_text": "The mill is in Aby.", "is_supporting": True},
        {"idx": 1, "title": "Lake", "paragraph_text": "A lake.", "is_supporting": False},
    ],
    "question_decomposition": [{"id": 1, "question": "Mill >> town", "answer": "Aby", "paragraph_support_idx": 0}],
    "answer": "Ada",
    "answer_aliases": ["Ada A.", "Ada"],
    "answerable": True,
}
SQUAD_ENTRY: Row = {"id": "s1", "question": "Where is it?", "answers": [{"text": "in Aby", "answer_start": 9}]}
DPR: Row = {
    "question": "who made it",
    "answers": ["Ada"],
    "ctxs": [
        {"id": "7", "title": "It", "text": "Ada made it.", "score": "1.5", "hasanswer": True},
        {"id": "8", "title": "That", "text": "Bo made that.", "score": "1.25", "hasanswer": False},
    ],
}
RGB: Row = {
    "id": 0,
    "query": "When was the fair?",
    "answer": [["May 2", "2 May"]],
    "positive": ["The fair was on May 2."],
    "negative": ["The fair has a wheel."],
}
TRIVIAQA: Row = {
    "QuestionId": "tc_1",
    "Question": "Who wrote it?",
    "QuestionSource": "a quiz",
    "EntityPages": [],
    "SearchResults": [],
    "Answer": {"Value": "Ada A", "Aliases": ["Ada", "A. Ada"], "NormalizedAliases": ["ada", "ada a"], "Type": "Person"},
}
STRATEGYQA: Row = {
    "qid": "b8677742616fef051f00",
    "term": "Mill",
    "description": "a building",
    "question": "Can a mill float?",
    "answer": False,
    "facts": ["Mills are of stone."],
    "decomposition": ["Of what is a mill?"],
    "evidence": [[[["Mill-1", "Stone-2"], "operation"], ["no_evidence"]], [[["Mill-1"]]]],
}
POPQA: Row = {
    "id": "4222362",
    "subj": "Ada",
    "s_pop": "142",
    "question": 'What is "Ada\'s" occupation?',
    "possible_answers": '["writer", "author, \\"poet\\""]',
}
NQ_OPEN: Row = {"question": "where is the mill", "answer": ["Aby", "in Aby"]}
OURS: Row = {
    "id": "o1",
    "question": "Where is the mill?",
    "answers": ["Aby"],
    "passages": [
        {"id": "p1", "title": "Mill", "text": "The mill is in Aby.", "gold": True},
        {"id": "p2", "title": "Lake", "text": "A lake.", "gold": False},
    ],
    "split": "dev",
    "licence": "CC0",
}

ROWS = {
    "hotpotqa": HOTPOTQA,
    "2wiki": HOTPOTQA | {"evidences": [["Tower", "builder", "him"]]},
    "musique": MUSIQUE,
    "squad": {
        "id": "s1",
        "title": "Aby",
        "context": "It is in Aby.",
        "question": "Where?",
        "answers": {"text": ["Aby"]},
    },
    "dpr": DPR,
    "rgb": RGB,
    "triviaqa": TRIVIAQA,
    "strategyqa": STRATEGYQA,
    "popqa": POPQA,
    "nq_open": NQ_OPEN,
    "edge_rag": OURS,
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)

Write = Callable[..., Path]


def load_one(path: Path) -> Question:
    (question,) = load_set(str(path)).questions
    return question


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(EdgeRagError) as error:
        load_set(str(path), **options)
    assert error.value.mend
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


def check(found: QuestionSet) -> None:
    """What holds of every set that loads."""
    assert found.questions
    assert len({question.id for question in found.questions}) == len(found.questions)
    for question in found.questions:
        assert question.question.strip() and question.id
        assert all(isinstance(answer, str) and answer.strip() for answer in question.answers)
        assert all(isinstance(text, str) for p in question.passages for text in (p.id, p.title, p.text))
        assert len({passage.id for passage in question.passages}) == len(question.passages)
        assert question.answerable or not (question.answers or question.gold_ids)
        assert all(type(grade) is int and grade > 0 for grade in question.relevance.values())
    list(found.read_corpus())


def door_questions(path: Path) -> Path:
    """Write questions to train on: which colour has which door? One passage tells, two others speak of other doors."""
    colours = ["red", "blue", "green", "white", "black", "yellow", "brown", "grey"]
    places = ["north", "south", "east", "west", "upper", "lower", "inner", "outer"]
    doors = [(place, number) for place in places for number in range(1, 9)]
    rows = []
    for n, (place, number) in enumerate(doors):
        passages = [
            {
                "id": f"p{m}",
                "title": f"Door {doors[m][1]}",
                "text": f"The {doors[m][0]} door {doors[m][1]} is {colours[m % 8]}.",
                "gold": m == n,
            }
            for m in (n, (n + 3) % 64, (n + 5) % 64)
        ]
        question = f"What is the {place} door {number}?"
        rows.append({"id": f"q{n}", "question": question, "answers": [colours[n % 8]], "passages": passages})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
