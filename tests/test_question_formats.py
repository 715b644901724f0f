"""Question sets in every published format, and what tells the formats apart."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from question_rows import (
    BUILDER,
    DPR,
    HOTPOTQA,
    MUSIQUE,
    NQ_OPEN,
    OURS,
    POPQA,
    RGB,
    RIVER,
    ROWS,
    SQUAD_ENTRY,
    STRATEGYQA,
    TOWER,
    TRIVIAQA,
    Row,
    Write,
    load_one,
    refusal,
)

from edge_rag.evaluation import official_formats
from edge_rag.evaluation.official_formats import passage_id
from edge_rag.evaluation.question_sets import (
    SetPassage,
    load_set,
)

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


def test_facts_and_related_passages_are_kept(write: Write) -> None:
    official = {"qid": "s", "question": "Is it lit?", "answer": False, "facts": ["It is a lamp."], "decomposition": []}
    assert load_one(write(official)).facts == ("It is a lamp.",)
    ours = OURS | {"answers": [], "answerable": False, "related_ids": ["p1"], "facts": ["A mill."]}
    found = load_one(write(ours))
    assert (found.related_ids, found.facts, found.gold_ids) == (("p1",), ("A mill.",), ())
    assert "facts" in refusal(write(ours | {"facts": "A mill."}))
