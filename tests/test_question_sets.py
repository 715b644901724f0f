"""Question sets: every published format, the layout of EDGE_RAG_DATA, and files that are none of these."""

import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation import official_formats
from edge_rag.evaluation.official_formats import passage_id
from edge_rag.evaluation.question_sets import (
    Question,
    QuestionSet,
    SetPassage,
    data_dir,
    is_dev,
    load_set,
    read_rows,
    set_names,
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


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(rows...) makes JSON lines, write(document=...) one JSON document, write(raw=...) what it is given."""

    def write_file(*rows: object, name: str = "file", document: object = None, raw: bytes | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if raw is None and document is not None:
            raw = json.dumps(document, indent=1).encode()
        path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() if raw is None else raw)
        return path

    return write_file


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


# Each published format


def test_hotpotqa_titles_of_supporting_facts_are_the_gold_passages(write: Write) -> None:
    question = load_one(write(document=[HOTPOTQA]))
    assert question.id == "h1"
    assert question.answers == ("Norway",)
    assert [(p.title, p.text, p.gold) for p in question.passages] == [
        ("River", RIVER, False),
        ("Builder", BUILDER, True),
        ("Tower", TOWER, True),
    ]
    assert question.gold_ids == (passage_id("Tower", TOWER), passage_id("Builder", BUILDER))
    assert question.relevance == dict.fromkeys(question.gold_ids, 1)


def test_2wiki_reads_the_same_from_pairs_from_columns_and_from_json_in_cells(write: Write) -> None:
    pairs = HOTPOTQA | {"evidences": [["Tower", "builder", "him"]]}
    columns = pairs | {
        "context": {
            "title": [title for title, _ in HOTPOTQA["context"]],
            "sentences": [sentences for _, sentences in HOTPOTQA["context"]],
        },
        "supporting_facts": {"title": ["Tower", "Builder", "Builder"], "sent_id": [0, 1, 0]},
    }
    cells = pairs | {key: json.dumps(pairs[key]) for key in ("context", "supporting_facts", "evidences")}
    columns["id"] = columns.pop("_id")
    sets = [load_set(str(write(row, name=name))) for name, row in (("a", pairs), ("b", columns), ("c", cells))]
    assert {found.format for found in sets} == {"2wiki"}
    assert sets[0].questions == sets[1].questions == sets[2].questions
    assert len(sets[0].questions[0].gold_ids) == 2


def test_hotpotqa_gold_titles_that_were_not_retrieved_are_found_in_another_question_or_missed(write: Write) -> None:
    fullwiki = HOTPOTQA | {"context": HOTPOTQA["context"][:1]}
    other = HOTPOTQA | {"_id": "h2", "context": HOTPOTQA["context"][2:]}
    loaded = load_set(str(write(document=[fullwiki, other])))
    assert loaded.questions[0].gold_ids == (passage_id("Tower", TOWER), "title:Builder")
    assert loaded.questions[0].relevance == {passage_id("Tower", TOWER): 1, "title:Builder": 1}
    assert "title:Builder" not in {passage.id for passage in loaded.read_corpus()}


def test_hotpotqa_test_part_has_no_answers_and_no_gold(write: Write) -> None:
    question = load_one(write(document=[{key: HOTPOTQA[key] for key in ("_id", "question", "context")}]))
    assert (question.answers, question.gold_ids, question.answerable) == ((), (), True)
    assert len(question.passages) == 3


def test_musique_aliases_are_answers(write: Write) -> None:
    question = load_one(write(MUSIQUE))
    assert question.answers == ("Ada", "Ada A.")
    assert [passage.gold for passage in question.passages] == [True, False]
    assert question.gold_ids == (passage_id("Mill", "The mill is in Aby."),)


def test_musique_full_has_each_question_twice(write: Write) -> None:
    answerable, not_answerable = load_set(str(write(MUSIQUE, MUSIQUE | {"answerable": False}))).questions
    assert (answerable.id, not_answerable.id) == ("2hop__1_2", "2hop__1_2-unanswerable")
    assert not not_answerable.answerable
    assert (not_answerable.answers, not_answerable.gold_ids, not_answerable.relevance) == ((), (), {})
    assert not any(passage.gold for passage in not_answerable.passages)


def test_nq_open_questions_get_ids_that_do_not_depend_on_the_file(write: Write) -> None:
    loaded = load_set(str(write({"question": "who"} | {"answer": "x"}, NQ_OPEN, NQ_OPEN)))
    first, second, third = loaded.questions
    assert loaded.format == "nq_open"
    assert first.answers == ("x",)
    assert second.answers == ("Aby", "in Aby")
    assert third.id == f"{second.id}-2"
    assert second.id == load_one(write(NQ_OPEN, name="other")).id


def test_triviaqa_reads_the_document_and_rows_of_either_spelling(write: Write) -> None:
    document = {"Data": [TRIVIAQA], "Domain": "Web", "Split": "dev", "VerifiedEval": False, "Version": 1.0}
    answer = {"value": "Ada A", "aliases": ["Ada", "A. Ada"], "normalized_aliases": ["ada", "ada a"], "type": "Person"}
    exported = {"question": "Who wrote it?", "question_id": "tc_1", "answer": answer, "entity_pages": {"title": []}}
    questions = [
        load_one(write(document=document, name="a")),
        load_one(write(raw=json.dumps(document).encode(), name="b")),
        load_one(write(TRIVIAQA, name="c")),
        load_one(write(exported, name="d")),
    ]
    assert questions == [questions[0]] * 4
    assert questions[0].id == "tc_1"
    assert questions[0].answers == ("Ada A", "Ada", "A. Ada", "ada", "ada a")


def test_triviaqa_test_part_has_no_answers(write: Write) -> None:
    hidden = {key: value for key, value in TRIVIAQA.items() if key != "Answer"}
    assert load_one(write(document={"Data": [hidden]})).answers == ()


@pytest.mark.parametrize("delimiter", ["\t", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_popqa_reads_a_table_with_quoted_cells(write: Write, delimiter: str, end: str) -> None:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [delimiter.join(POPQA), delimiter.join(cell(value) for value in POPQA.values()), ""]
    loaded = load_set(str(write(raw=end.join(lines).encode())))
    assert loaded.format == "popqa"
    assert loaded.questions == load_set(str(write(POPQA, name="rows"))).questions
    (question,) = loaded.questions
    assert question.id == "4222362"
    assert question.question == 'What is "Ada\'s" occupation?'
    assert question.answers == ("writer", 'author, "poet"')


def test_popqa_answers_may_be_a_list(write: Write) -> None:
    assert load_one(write(POPQA | {"possible_answers": ["writer"]})).answers == ("writer",)


def test_strategyqa_answers_are_yes_and_no(write: Write) -> None:
    no, yes = load_set(str(write(document=[STRATEGYQA, STRATEGYQA | {"qid": "q2", "answer": True}]))).questions
    assert (no.answers, yes.answers) == (("no",), ("yes",))
    assert no.gold_ids == ("Mill-1", "Stone-2")
    assert no.id == STRATEGYQA["qid"]


def test_strategyqa_paragraphs_beside_the_questions_are_the_corpus(write: Write) -> None:
    paragraphs = {"Mill-1": {"title": "Mill", "section": "", "headers": [], "para_index": 1, "content": "It is heavy."}}
    write(document=paragraphs, name="sqa/strategyqa_train_paragraphs.json")
    for name, raw in (("a", json.dumps([STRATEGYQA])), ("b", json.dumps(STRATEGYQA))):
        loaded = load_set(str(write(raw=raw.encode(), name=f"sqa/{name}")))
        assert list(loaded.read_corpus()) == [SetPassage("Mill-1", "Mill", "It is heavy.")]
        assert loaded.has_corpus


def test_strategyqa_test_part_has_no_answers(write: Write) -> None:
    assert load_one(write(document=[{"qid": "t1", "term": "Mill", "question": "Can it float?"}])).answers == ()


def squad(*entries: Row) -> Row:
    paragraphs = [{"context": "The mill is in Aby.", "qas": list(entries)}]
    return {"version": "v2.0", "data": [{"title": "Old_mill", "paragraphs": paragraphs}]}


def test_squad_context_is_the_passage_of_its_questions(write: Write) -> None:
    document = squad(SQUAD_ENTRY, SQUAD_ENTRY | {"id": "s2"})
    loaded = load_set(str(write(document=document)))
    first, second = loaded.questions
    assert loaded.format == "squad"
    assert first.answers == ("in Aby",)
    assert first.passages == second.passages
    assert first.passages == (
        SetPassage(passage_id("Old mill", "The mill is in Aby."), "Old mill", "The mill is in Aby.", gold=True),
    )
    assert first.gold_ids == (first.passages[0].id,)
    assert [passage.text for passage in loaded.read_corpus()] == ["The mill is in Aby."]


def test_squad2_impossible_questions_have_no_answer_and_no_gold(write: Write) -> None:
    entry = SQUAD_ENTRY | {
        "answers": [],
        "is_impossible": True,
        "plausible_answers": [{"text": "Aby", "answer_start": 3}],
    }
    question = load_one(write(document=squad(entry)))
    assert not question.answerable
    assert (question.answers, question.gold_ids) == ((), ())
    assert [passage.gold for passage in question.passages] == [False]


def test_squad_test_part_without_answers_is_answerable(write: Write) -> None:
    question = load_one(write(document=squad({"id": "s1", "question": "Where is it?"})))
    assert (question.answerable, question.answers) == (True, ())


def test_squad_rows_say_that_they_are_unanswerable_by_an_empty_list(write: Write) -> None:
    row = ROWS["squad"]
    answerable, not_answerable = load_set(str(write(row, row | {"id": "s2", "answers": {"text": []}}))).questions
    assert (answerable.answerable, not_answerable.answerable) == (True, False)


def test_dpr_contexts_with_an_answer_are_gold_unless_some_are_annotated(write: Write) -> None:
    plain = load_one(write(DPR, name="a"))
    assert [passage.gold for passage in plain.passages] == [True, False]
    contexts = [DPR["ctxs"][0], DPR["ctxs"][1] | {"isgold": True}]
    annotated = load_one(write(DPR | {"ctxs": contexts}, name="b"))
    assert [passage.gold for passage in annotated.passages] == [False, True]
    underscored = [{key.replace("hasanswer", "has_answer"): value for key, value in ctx.items()} for ctx in DPR["ctxs"]]
    assert load_one(write(document=[DPR | {"ctxs": underscored}], name="c")) == plain


def test_rgb_wordings_of_one_answer_are_alternatives(write: Write) -> None:
    question = load_one(write(RGB))
    assert question.id == "0"
    assert question.answers == ("May 2", "2 May")
    assert [(passage.text, passage.gold) for passage in question.passages] == [
        ("The fair was on May 2.", True),
        ("The fair has a wheel.", False),
    ]


@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        ("May 2", ("May 2",)),
        (["May 2"], ("May 2",)),
        (["May 2", "June 1"], ("May 2 and June 1",)),
        ([["May 2", "2 May"], ["June 1"]], ("May 2 and June 1", "2 May and June 1")),
    ],
)
def test_rgb_parts_of_an_answer_are_all_required(write: Write, answer: object, answers: tuple[str, ...]) -> None:
    row = RGB | {"answer": answer, "positive": [["The fair was on May 2."], ["The ball was on June 1."]]}
    question = load_one(write(row))
    assert question.answers == answers
    assert [" and ".join(part[0] for part in question.parts)] == ([answers[0]] if "and" in answers[0] else [""])
    assert [passage.gold for passage in question.passages] == [True, True, False]


def test_rgb_many_parts_with_many_wordings_stay_a_few_answers(write: Write) -> None:
    question = load_one(write(RGB | {"answer": [[str(n) for n in range(50)]] * 50}))
    assert len(question.answers) == 256
    assert [len(part) for part in question.parts] == [50] * 50


def test_rgb_counterfactual_passages_are_marked(write: Write) -> None:
    question = load_one(write(RGB | {"positive_wrong": ["The fair was on May 9."], "fakeanswer": "May 9"}))
    assert [(passage.text[-6:], passage.gold, passage.misleading) for passage in question.passages] == [
        ("May 2.", True, False),
        ("May 9.", False, True),
        ("wheel.", False, False),
    ]
    assert len(question.gold_ids) == 1


@pytest.fixture
def beir(write: Write) -> Path:
    write(
        {"_id": "d1", "title": "Mill", "text": "The mill is in Aby.", "metadata": {}},
        {"_id": "d2", "title": "", "text": "A lake."},
        name="beir/corpus.jsonl",
    )
    write(
        {"_id": "q1", "text": "mill?"},
        {"_id": "q2", "text": "lake?"},
        {"_id": "q3", "text": "sea?"},
        name="beir/queries.jsonl",
    )
    write(raw=b"query-id\tcorpus-id\tscore\nq2\td2\t2\nq2\td1\t1\nq1\td1\t0\nq1\td2\t-1\n", name="beir/qrels/test.tsv")
    return write(raw=b"query-id\tcorpus-id\tscore\r\nq3\td2\t1\r\n", name="beir/qrels/dev.tsv").parent.parent


def test_beir_relevance_is_graded_and_above_zero_is_gold(beir: Path) -> None:
    loaded = load_set(str(beir))
    assert (loaded.name, loaded.format) == ("beir", "beir")
    first, second = loaded.questions
    assert (first.id, first.gold_ids, first.relevance) == ("q1", (), {})
    assert (second.id, second.gold_ids, second.relevance) == ("q2", ("d2", "d1"), {"d2": 2, "d1": 1})
    assert list(loaded.read_corpus()) == [
        SetPassage("d1", "Mill", "The mill is in Aby."),
        SetPassage("d2", "", "A lake."),
    ]
    assert loaded.has_corpus


def test_beir_another_part_is_asked_for_by_its_qrels(beir: Path) -> None:
    loaded = load_set(str(beir / "qrels" / "dev.tsv"))
    assert loaded.name == "beir/dev"
    assert [question.id for question in loaded.questions] == ["q3"]
    assert loaded.corpus == beir / "corpus.jsonl"


def test_beir_folders_that_lack_something_say_what(beir: Path, write: Write) -> None:
    write(raw=b"query-id\tcorpus-id\tscore\nq9\td2\t1\n", name="beir/qrels/test.tsv")
    assert "q9" in refusal(beir)
    write(raw=b"query-id\tcorpus-id\tscore\nq1\td2\tmuch\n", name="beir/qrels/test.tsv")
    assert "test.tsv, line 2" in refusal(beir)
    write({"_id": "q1", "title": "no text"}, name="beir/queries.jsonl")
    assert "line 2" in refusal(beir)
    write(raw=b"query-id\tcorpus-id\tscore\nq1\td2\t1\n", name="beir/qrels/test.tsv")
    assert '"text" is missing' in refusal(beir)
    (beir / "corpus.jsonl").unlink()
    assert "corpus.jsonl" in refusal(beir)


# What decides the format, and what every format has


@pytest.mark.parametrize("name", ROWS)
def test_the_content_decides_the_format_in_lines_and_lists_zipped_or_not(write: Write, name: str) -> None:
    row = ROWS[name]
    line = json.dumps(row).encode()
    files = [
        write(row, name="a.json"),
        write(raw=b"\xef\xbb\xbf" + line, name="b.tsv"),
        write(document=[row], name="c.jsonl"),
        write(raw=gzip.compress(line + b"\r\n"), name="d"),
        write(raw=b"\n \n" + gzip.decompress(gzip.compress(b"[" + line + b"]")), name="e.gz"),
        write(raw=json.dumps(row, indent=2).encode(), name="f.txt"),
        write(raw=gzip.compress(b"\xef\xbb\xbf" + line), name="g.csv"),
    ]
    loaded = [load_set(str(path)) for path in files]
    assert [found.format for found in loaded] == [name] * len(files)
    assert [found.questions for found in loaded] == [loaded[0].questions] * len(files)
    assert [found.sha256 for found in loaded] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_every_format_has_a_row_here_and_a_line_in_the_table() -> None:
    assert set(ROWS) == set(official_formats._PARSERS)
    for name in ROWS:
        assert f"\n{name} " in (official_formats.__doc__ or "")


def test_passages_of_two_questions_with_the_same_text_are_one_in_the_corpus(write: Write) -> None:
    other = {"id": "8", "title": "It", "text": "Ada made it.", "hasanswer": False}
    loaded = load_set(str(write(DPR, DPR | {"question": "and who else", "ctxs": [other]})))
    corpus = list(loaded.read_corpus())
    assert loaded.corpus is None
    assert loaded.has_corpus
    assert [passage.title for passage in corpus] == ["It", "That"]
    assert not any(passage.gold for passage in corpus)
    assert loaded.questions[1].passages[0].id == corpus[0].id


def test_the_pooled_corpus_is_that_of_the_whole_file_under_any_limit(write: Write) -> None:
    rows = [DPR | {"question": f"q {n}", "ctxs": [{"title": "", "text": f"text {n}"}]} for n in range(20)]
    path = str(write(*rows))
    assert len(list(load_set(path, limit=2).read_corpus())) == 20


def test_questions_without_passages_have_no_corpus(write: Write) -> None:
    loaded = load_set(str(write(NQ_OPEN)))
    assert not loaded.has_corpus
    assert list(loaded.read_corpus()) == []


def test_a_passage_that_comes_twice_in_a_question_is_there_once_and_gold_if_either_is(write: Write) -> None:
    contexts = [{"title": "It", "text": "Ada made it."}, DPR["ctxs"][1], DPR["ctxs"][0]]
    assert [(p.title, p.gold) for p in load_one(write(DPR | {"ctxs": contexts})).passages] == [
        ("It", True),
        ("That", False),
    ]


# The layout of EDGE_RAG_DATA


@pytest.fixture
def data(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_RAG_DATA", str(tmp_path / "data"))
    corpus = [
        {"id": "p1", "title": "Mill", "text": "The mill is in Aby."},
        {"id": "p3", "title": "Sea", "text": "A sea."},
    ]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in corpus).encode())
    open_question = {"id": "x1", "question": "Where is the sea?", "answers": ["here"], "gold_ids": ["p3"]}
    for name, row in {
        "mills/questions": OURS,
        "seas/open_questions": open_question,
        "titles/fullwiki": OURS | {"gold_titles": ["Sea", "Mill", "Moon"]},
        "qa_only/dev": {"id": "y1", "question": "Where?", "answers": ["here"]},
    }.items():
        write(raw=gzip.compress(json.dumps(row).encode()), name=f"data/{name}.jsonl.gz")
    for name in ("mills/corpus", "seas/open_corpus", "titles/corpus"):
        write(raw=packed, name=f"data/{name}.jsonl.gz")
    return tmp_path / "data"


def test_sets_are_called_by_their_folder_and_file(data: Path) -> None:
    assert set_names() == ["mills", "qa_only/dev", "seas/open", "titles/fullwiki"]
    assert {name: load_set(name).name for name in set_names()} == {name: name for name in set_names()}
    assert load_set("mills/questions").name == "mills"
    assert load_set("mills").questions == load_set(str(data / "mills")).questions
    assert load_set(str(data / "mills" / "questions.jsonl.gz")).name == "mills"
    assert load_set(str(data / "seas" / "open_questions.jsonl.gz")).name == "seas/open"


def test_the_corpus_of_a_set_is_beside_its_questions(data: Path) -> None:
    assert {name: load_set(name).corpus for name in set_names()} == {
        "mills": data / "mills" / "corpus.jsonl.gz",
        "seas/open": data / "seas" / "open_corpus.jsonl.gz",
        "titles/fullwiki": data / "titles" / "corpus.jsonl.gz",
        "qa_only/dev": None,
    }
    assert [passage.id for passage in load_set("seas/open").read_corpus()] == ["p1", "p3"]


def test_gold_is_what_the_layout_says_by_id_by_flag_or_by_title(data: Path) -> None:
    assert load_set("mills").questions[0].gold_ids == ("p1",)
    assert load_set("seas/open").questions[0].gold_ids == ("p3",)
    # in the passages, else in the corpus, else nowhere
    assert load_set("titles/fullwiki").questions[0].gold_ids == ("p3", "p1", "title:Moon")


def test_sections_of_one_document_of_the_corpus_are_one_passage(write: Write) -> None:
    sections = [
        {"id": "17-0", "title": "AIM", "text": "We asked.", "gold": True},
        {"id": "17-1", "title": "END", "text": "We know.", "gold": True},
    ]
    question = load_one(write(OURS | {"passages": sections, "gold_ids": ["17"]}))
    assert question.passages == (SetPassage("17", "", "We asked. We know.", gold=True),)


def test_unanswerable_questions_of_the_layout_have_no_answers(write: Write) -> None:
    question = load_one(write(OURS | {"answerable": False}))
    assert (question.answerable, question.answers, question.gold_ids, question.relevance) == (False, (), (), {})


def test_graded_relevance_of_the_layout_is_kept(write: Write) -> None:
    row = {"id": "f1", "question": "A claim.", "answers": [], "gold_ids": ["d1"], "qrels": {"d1": 2, "d2": 0}}
    question = load_one(write(row))
    assert (question.answers, question.gold_ids, question.relevance) == ((), ("d1",), {"d1": 2})


def test_a_name_that_is_no_set_lists_the_nearest(data: Path) -> None:
    for wrong, expected in (
        ("mill", "mills"),
        ("seas", "seas/open"),
        ("fullwiki", "titles/fullwiki"),
        ("zz", "qa_only/dev"),
    ):
        with pytest.raises(EdgeRagError, match=f"there is no set or file '{wrong}'") as error:
            load_set(wrong)
        assert expected in error.value.mend


def test_a_name_without_a_data_folder_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_RAG_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(EdgeRagError, match="EDGE_RAG_DATA"):
        load_set("squad2")


@pytest.mark.parametrize("spec", ["", ".", "\0", "x" * 5000, "/", "a\nb", "../..", "~"])
def test_a_spec_that_names_nothing_is_one_clear_line(spec: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    with pytest.raises(EdgeRagError) as error:
        load_set(spec)
    assert "\n" not in str(error.value)


def test_a_path_goes_before_a_name(data: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(OURS | {"id": "mine"}, name="here/mills/questions.jsonl")
    monkeypatch.chdir(data.parent / "here")
    assert load_set("mills").questions[0].id == "mine"


# Parts and limits


@pytest.fixture
def many(write: Write) -> str:
    return str(write(*({"question": f"question number {n}", "answer": str(n)} for n in range(300))))


def test_parts_are_those_of_the_shared_rule_and_make_up_the_whole(many: str) -> None:
    whole, dev, train = (load_set(many, part=part).questions for part in ("all", "dev", "train"))
    assert dev == tuple(question for question in whole if is_dev(question.question))
    assert sorted(dev + train, key=lambda question: int(question.answers[0])) == list(whole)
    assert 0 < len(dev) < 80


def test_a_limit_draws_by_seed_and_keeps_the_order_of_the_file(many: str) -> None:
    drawn = load_set(many, limit=40, seed=7).questions
    numbers = [int(question.answers[0]) for question in drawn]
    assert len(set(numbers)) == 40
    assert numbers == sorted(numbers)
    assert numbers != list(range(40))
    assert drawn == load_set(many, limit=40, seed=7).questions
    assert drawn != load_set(many, limit=40, seed=8).questions


def test_a_smaller_limit_draws_some_of_the_same_questions(many: str) -> None:
    assert set(load_set(many, limit=10, seed=3).questions) <= set(load_set(many, limit=90, seed=3).questions)


def test_every_question_is_about_equally_likely_to_be_drawn(many: str) -> None:
    counts = dict.fromkeys(range(300), 0)
    for seed in range(60):
        for question in load_set(many, limit=100, seed=seed).questions:
            counts[int(question.answers[0])] += 1
    assert min(counts.values()) > 4  # 20 expected, 4.3 standard deviations
    assert max(counts.values()) < 36


def test_a_limit_is_of_the_part(many: str) -> None:
    drawn = load_set(many, part="dev", limit=5).questions
    assert len(drawn) == 5
    assert all(is_dev(question.question) for question in drawn)


@pytest.mark.parametrize("limit", [300, 301, 10**9])
def test_a_limit_of_all_or_more_is_all(many: str, limit: int) -> None:
    assert load_set(many, limit=limit).questions == load_set(many).questions


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing_is_wrong_usage(many: str, limit: int) -> None:
    with pytest.raises(UsageError, match="--limit"):
        load_set(many, limit=limit)


def test_a_part_without_questions_is_wrong_usage(write: Write) -> None:
    part = "train" if is_dev(NQ_OPEN["question"]) else "dev"
    with pytest.raises(UsageError, match=f"no questions in its {part} part"):
        load_set(str(write(NQ_OPEN)), part=part)


# Wrong files


def test_a_file_without_questions_says_so(write: Write) -> None:
    for number, raw in enumerate(
        (b"", b"\n\n \n", b"\xef\xbb\xbf", gzip.compress(b""), b"[]", b'{"data": []}', b"id\tquestion\n")
    ):
        message = refusal(write(raw=raw, name=str(number)))
        assert "empty" in message or "no questions" in message


def test_a_file_of_no_known_format_says_what_it_has_and_what_is_known(write: Write) -> None:
    message = refusal(write({"prompt": "x", "completion": "y"}))
    assert "prompt, completion" in message
    for name in [*ROWS, "beir"]:
        assert name in message
    assert "neither JSON nor a table" in refusal(write(raw=b"Dear reader,\nhello\n"))
    assert "neither JSON nor a table" in refusal(write(raw=b"\x89PNG".replace(b"\x89", b"") + bytes(range(9))))


def test_a_row_that_is_wrong_is_named_by_its_line(write: Write) -> None:
    good = [NQ_OPEN | {"question": f"q {n}"} for n in range(3)]
    assert 'line 4: "question" is missing' in refusal(write(*good, {"answer": ["x"]}))
    assert 'line 4: "question" is blank' in refusal(write(*good, {"question": " ", "answer": ["x"]}))
    assert "line 4: is no question but 7" in refusal(write(*good, 7))
    assert "line 4: an answer is no text but 7" in refusal(write(*good, {"question": "q", "answer": [7]}))
    assert "line 4: an answer is no text but NaN" in refusal(write(*good, {"question": "q", "answer": float("nan")}))
    assert "line 4: an answer is no text but" in refusal(write(*good, {"question": "q", "answer": [{"a": ["b"]}]}))
    assert "entry 4" in refusal(write(document=[*good, {"answer": ["x"]}]))


def test_a_row_without_a_question_in_a_table_is_named_by_its_line(write: Write) -> None:
    assert "line 3" in refusal(write(raw=b'question,possible_answers\nq,"[""a""]"\n,"[""a""]"\n'))
    assert "line 3" in refusal(write(raw=b"question\tpossible_answers\nq\t[]\nq2\tnot json\n"))


def test_lines_that_are_no_json_are_named(write: Write) -> None:
    row = json.dumps(NQ_OPEN).encode()
    assert "line 2: is not JSON" in refusal(write(raw=row + b"\n" + row[:-5] + b"\n"))
    assert "is not JSON" in refusal(write(raw=row[:-5]))
    assert "nested too deep" in refusal(write(raw=b"[" * 200_000))
    assert "nested too deep" in refusal(write(raw=row + b"\n" + b'{"a":' * 200_000))


def test_a_gzip_file_that_was_cut_off_says_so_at_every_length(write: Write) -> None:
    rows = "".join(json.dumps(NQ_OPEN | {"question": f"question {n}"}) + "\n" for n in range(50))
    packed = gzip.compress(rows.encode())
    for length in range(2, len(packed)):
        assert "damaged gzip" in refusal(write(raw=packed[:length]))


def test_damaged_gzip_is_one_clear_line(write: Write) -> None:
    packed = bytearray(gzip.compress(json.dumps(NQ_OPEN).encode()))
    for position in range(2, len(packed)):
        damaged = bytes(packed[:position]) + bytes([packed[position] ^ 0xFF]) + bytes(packed[position + 1 :])
        path = write(raw=damaged)
        try:
            load_set(str(path))  # a flag or the name in the header may be lost without harm
        except EdgeRagError:
            refusal(path)


def test_text_that_is_no_utf8_says_so(write: Write) -> None:
    assert "UTF-8" in refusal(write(raw=json.dumps(NQ_OPEN).encode("utf-16")))
    assert "UTF-8" in refusal(write(raw=b'{"question": "caf\xe9", "answer": "x"}'))


def test_an_id_that_two_questions_have_is_refused(write: Write) -> None:
    assert 'line 2: another question has the id "o1", too' in refusal(write(OURS, OURS | {"question": "Another?"}))


def test_a_question_that_is_there_again_under_its_id_is_left_out(write: Write) -> None:
    assert len(load_set(str(write(TRIVIAQA, TRIVIAQA | {"SearchResults": [{"Title": "a page"}]}))).questions) == 1


def corpus_refusal(write: Write, **content: Any) -> str:
    write(*content.pop("rows", ()), name="set/corpus.jsonl", **content)
    loaded = load_set(str(write(OURS, name="set/questions.jsonl")))
    with pytest.raises(EdgeRagError) as error:
        list(loaded.read_corpus())
    assert "\n" not in str(error.value) and "corpus.jsonl" in str(error.value)
    return str(error.value)


def test_a_corpus_that_is_wrong_is_named_with_its_line(write: Write) -> None:
    good = {"id": "p1", "title": "Mill", "text": "The mill is in Aby."}
    assert 'line 2: the id "p1" is there a second time' in corpus_refusal(write, rows=[good, good])
    assert 'line 2: has no "id"' in corpus_refusal(write, rows=[good, {"text": "x"}])
    assert 'line 2: has no "id"' in corpus_refusal(write, rows=[good, {}])
    assert 'line 2: "text" is missing' in corpus_refusal(write, rows=[good, {"id": "p2"}])
    assert "a title is no text but 5" in corpus_refusal(write, rows=[good | {"title": 5}])
    assert "is empty" in corpus_refusal(write)
    assert "damaged gzip" in corpus_refusal(write, raw=gzip.compress(json.dumps(good).encode())[:-4])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.data())
def test_any_json_is_read_as_a_corpus_or_refused(rows: st.DataObject, write: Write) -> None:
    entry = st.dictionaries(st.sampled_from(["id", "_id", "title", "text", "content"]), json_values, max_size=4)
    content = rows.draw(
        st.lists(entry | st.dictionaries(st.text(max_size=3), entry, max_size=2), min_size=1, max_size=3)
    )
    write(*content, name="set/corpus.jsonl")
    loaded = load_set(str(write(OURS, name="set/questions.jsonl")))
    try:
        passages = list(loaded.read_corpus())
    except EdgeRagError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(text, str) for passage in passages for text in (passage.id, passage.title, passage.text))


def test_fields_of_absurd_length_are_refused(write: Write) -> None:
    assert "100,001 characters" in refusal(write(NQ_OPEN | {"question": "q" * 100_001}))
    assert "characters" in refusal(write(OURS | {"id": "q" * 1_001}))
    assert "is no table" in refusal(write(raw=b'question,possible_answers\n"' + b"q" * 200_000 + b'",[]\n'))


def test_halves_of_characters_are_replaced(write: Write) -> None:
    question = load_one(write(raw=rb'{"question": "a \ud800 b", "answer": ["\udfff"]}'))
    assert question.question == "a ? b"
    question.question.encode()


def test_rows_of_another_format_further_on_are_refused(write: Write) -> None:
    assert "line 2" in refusal(write(NQ_OPEN, HOTPOTQA | {"question": None}))
    assert "line 2" in refusal(write(OURS, MUSIQUE | {"question": 3}))
    assert "line 2" in refusal(write(RGB, NQ_OPEN))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    "value", [None, 7, 0.5, True, "text", [], {}, [[]], [None], {"title": 5}, [["a", "b", "c"]], [{"text": 1}]]
)
def test_a_field_of_any_other_type_never_gives_a_traceback(write: Write, name: str, value: object) -> None:
    for key in ROWS[name]:
        path = write(ROWS[name] | {key: value})
        try:
            found = load_set(str(path))
        except EdgeRagError:
            refusal(path)
        else:
            check(found)


KEYS = sorted(
    {key for row in ROWS.values() for key in row} | {"Data", "data", "query-id", "evidences", "question_id", "qrels"}
)
known_rows = st.sampled_from(list(ROWS.values())).flatmap(
    lambda row: st.dictionaries(st.sampled_from(KEYS), json_values, max_size=3).map(lambda changes: row | changes)
)
any_rows = st.dictionaries(st.sampled_from(KEYS), json_values, max_size=5)
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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


@fuzzed
@given(raw=st.binary(max_size=60))
def test_any_bytes_load_or_are_refused(raw: bytes, write: Write) -> None:
    for number, content in enumerate(
        (raw, gzip.compress(raw), b"\x1f\x8b" + raw, b'{"question":' + raw, b"question,answer\n" + raw)
    ):
        path = write(raw=content, name=f"fuzz{number}")
        try:
            found = load_set(str(path))
        except EdgeRagError:
            refusal(path)
        else:
            check(found)


@fuzzed
@given(
    rows=st.lists(known_rows | any_rows, min_size=1, max_size=3),
    as_list=st.booleans(),
    within=st.sampled_from(["", "data", "Data"]),
)
def test_any_json_loads_or_is_refused(rows: list[Row], as_list: bool, within: str, write: Write) -> None:
    path = write(document={within: rows} if within else rows) if as_list or within else write(*rows)
    try:
        found = load_set(str(path))
    except EdgeRagError:
        refusal(path)
    else:
        check(found)


@fuzzed
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip),
        min_size=2,
        max_size=8,
        unique=True,
    )
)
def test_what_is_written_in_the_layout_is_read_back(texts: list[str], write: Write) -> None:
    question = Question(
        id="q",
        question=texts[0],
        answers=tuple(texts[1:3]),
        passages=tuple(SetPassage(f"p{n}", text, text, n == 0) for n, text in enumerate(texts[1:])),
        gold_ids=("p0",),
        relevance={"p0": 1},
    )
    passages = [{"id": p.id, "title": p.title, "text": p.text, "gold": p.gold} for p in question.passages]
    row = {"id": question.id, "question": question.question, "answers": list(question.answers), "passages": passages}
    for ascii_only in (True, False):
        line = json.dumps(row, ensure_ascii=ascii_only).encode()
        assert load_one(write(raw=gzip.compress(line))) == question


def test_long_files_are_not_kept_in_memory(write: Write) -> None:
    import tracemalloc

    row = json.dumps(OURS | {"passages": [{"title": "", "text": "word " * 2_000}]})
    out = io.BytesIO()
    for number in range(2_000):
        out.write(row.replace('"o1"', f'"o{number}"').encode() + b"\n")
    path = str(write(raw=out.getvalue()))
    size = len(out.getvalue())
    tracemalloc.start()
    load_set(path, limit=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 20_000_000
    assert peak < size / 8


# The real data, where it is


COUNTS = {
    "2wikimultihopqa": (800, 7_034),
    "2wikimultihopqa/open": (247, 6_119),
    "hotpotqa/distractor": (624, 17_501),
    "hotpotqa/fullwiki": (639, 17_501),
    "musique": (210, 5_021),
    "nq_gold": (1_813, 2_600),
    "nq_retrieved": (698, 3_295),
    "popqa_retrieved": (470, 2_134),
    "pubmedqa": (704, 1_000),
    "scifact": (555, 5_183),
    "squad/dev": (7_392, 2_067),
    "squad/train": (10_957, 5_821),
    "squad2": (4_240, 646),
    "strategyqa": (1_600, 998),
    "triviaqa_retrieved": (673, 3_453),
    "qa_only/nq-open_dev": (2_484, 0),
    "qa_only/nq-open_efficientqa_dev_1_1": (1_207, 0),
    "qa_only/nq-open_efficientqa_test_1_1": (1_237, 0),
    "qa_only/triviaqa_dev": (6_218, 0),
    "qa_only/triviaqa_test": (7_993, 0),
    "qa_only/webquestions_test": (1_402, 0),
}


@pytest.mark.skipif(
    not Path(os.environ.get("EDGE_RAG_DATA", "")).joinpath("squad2").is_dir(), reason="needs EDGE_RAG_DATA"
)
@pytest.mark.parametrize("name", COUNTS)
def test_a_real_set_has_what_its_readme_says(name: str) -> None:
    loaded = load_set(name)
    corpus = {passage.id: passage for passage in loaded.read_corpus()}
    assert (len(loaded.questions), len(corpus)) == COUNTS[name]
    check(loaded)
    missing = [key for question in loaded.questions for key in question.gold_ids if key not in corpus]
    assert len(missing) == (
        497 if name == "hotpotqa/fullwiki" else 0
    )  # what that retriever and this corpus do not have
    assert all(key.startswith("title:") for key in missing)
    for question in loaded.questions:
        for passage in question.passages:
            assert (passage.title, passage.text) == (corpus[passage.id].title, corpus[passage.id].text)
            assert passage.gold == (passage.id in question.gold_ids)
    assert all(question.answers for question in loaded.questions if question.answerable) or name == "scifact"
    assert sum(not question.answerable for question in loaded.questions) == (2_203 if name == "squad2" else 0)


@pytest.mark.skipif(
    not Path(os.environ.get("EDGE_RAG_DATA", "")).joinpath("squad2").is_dir(), reason="needs EDGE_RAG_DATA"
)
def test_all_real_sets_are_in_that_list() -> None:
    assert set(set_names()) == set(COUNTS)
    assert data_dir().is_dir()
    assert sum(1 for _ in read_rows("squad2/questions")) == COUNTS["squad2"][0]
