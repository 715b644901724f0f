"""Question sets by name, in the layout of EDGE_RAG_DATA; parts and limits; the real sets where they are."""

import gzip
import json
import os
from pathlib import Path

import pytest
from question_rows import (
    NQ_OPEN,
    OURS,
    Write,
    check,
    load_one,
)

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.question_sets import (
    SetPassage,
    data_dir,
    is_dev,
    load_set,
    read_rows,
    set_names,
)

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


@pytest.mark.parametrize("limit", [None, 50, 280])
def test_spared_are_those_that_a_limit_would_draw(many: str, limit: int | None) -> None:
    chosen_by = set(load_set(many, limit=30, seed=3).questions)
    others = load_set(many, limit=limit, spare=30, seed=3).questions
    assert len(others) == min(270, limit or 300) and not chosen_by & set(others)
    numbers = [int(question.answers[0]) for question in others]
    assert numbers == sorted(numbers)


def test_who_spares_all_is_told_so(many: str) -> None:
    with pytest.raises(UsageError, match="no more than 300 questions of this part; give a smaller --spare"):
        load_set(many, spare=300)


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


# The real data, where it is


needs_real_sets = pytest.mark.skipif(
    not Path(os.environ.get("EDGE_RAG_DATA", "../shared/data"), "squad2").is_dir(), reason="needs EDGE_RAG_DATA"
)
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


@needs_real_sets
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


@needs_real_sets
def test_all_real_sets_are_in_that_list() -> None:
    assert set(set_names()) == set(COUNTS)
    assert data_dir().is_dir()
    assert sum(1 for _ in read_rows("squad2/questions")) == COUNTS["squad2"][0]
