"""Candidates: from a library, from the question's own passages, from the set's corpus; searched once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edge_rag.train.candidates import Candidate, candidates_of

from edge_rag.errors import EdgeRagError
from edge_rag.evaluation.question_sets import QuestionSet, load_set
from edge_rag.evaluation.retrieval import library_of_set, search_set
from edge_rag.library import Library
from edge_rag.settings import Settings, cache_dir
from edge_rag.testing import HashEmbedder

SETTINGS = Settings(candidates=10)
THINGS = ["lamp", "keeper", "boat", "bell", "goat", "tide", "rope", "mirror"]


@pytest.fixture
def things(write: Callable[..., Path]) -> QuestionSet:
    """Questions about a corpus; the last one has passages of its own."""
    corpus = [{"id": f"p{n}", "title": f"The {t}", "text": f"The {t} is number {n}."} for n, t in enumerate(THINGS)]
    rows: list[dict[str, object]] = [
        {"id": f"q{n}", "question": f"Which number is the {t}?", "answers": [str(n)], "gold_ids": [f"p{n}"]}
        for n, t in enumerate(THINGS)
    ]
    own = [{"id": f"own{n}", "text": text} for n, text in enumerate(["A wreck.", "Which number is the wreck? Nine."])]
    rows.append({"id": "own", "question": "Which number is the wreck?", "answers": ["nine"], "passages": own})
    write(*corpus, name="set/corpus.jsonl")
    return load_set(str(write(*rows, name="set/questions.jsonl")))


def candidates(
    question_set: QuestionSet, k: int = 3, embedder: HashEmbedder | None = None, **options: Any
) -> dict[str, tuple[Candidate, ...]]:
    return dict(candidates_of(question_set, k, embedder=embedder or HashEmbedder(), settings=SETTINGS, **options))


def test_a_question_without_passages_is_searched_in_the_corpus(things: QuestionSet) -> None:
    found = candidates(things)
    for n in range(len(THINGS)):
        best = found[f"q{n}"][0]
        assert (best.passage.id, best.passage.gold, best.passage.title) == (f"p{n}", True, f"The {THINGS[n]}")
        assert not any(c.passage.gold for c in found[f"q{n}"][1:]) and len(found[f"q{n}"]) == 3
        assert [c.score for c in found[f"q{n}"]] == sorted((c.score for c in found[f"q{n}"]), reverse=True)


def test_own_passages_are_the_candidates_best_first(things: QuestionSet) -> None:
    assert [c.passage.id for c in candidates(things)["own"]] == ["own1", "own0"]
    assert [c.passage.id for c in candidates(things, 1)["own"]] == ["own1"]


def test_a_question_that_brings_only_what_answers_it_is_searched(write: Callable[..., Path]) -> None:
    gold = {"id": "own", "text": "The wreck is number nine.", "gold": True}
    corpus = [{"id": "own", "text": gold["text"]}, {"id": "other", "text": "The wreck has no bell."}]
    write(*corpus, name="set/corpus.jsonl")
    rows = [{"id": "q", "question": "Which number is the wreck?", "answers": ["nine"], "passages": [gold]}]
    found = candidates(load_set(str(write(*rows, name="set/questions.jsonl"))))["q"]
    assert {c.passage.id: c.passage.gold for c in found} == {"own": True, "other": False}


def test_what_was_searched_is_not_searched_again(things: QuestionSet) -> None:
    first = candidates(things)
    embedder = HashEmbedder()
    assert candidates(things, embedder=embedder) == first
    assert embedder.n_embedded == 3  # the question with passages of its own
    [rows] = cache_dir().glob("candidates/*/hits.jsonl")
    stored = rows.read_bytes()
    rows.write_bytes(stored[:-5])  # killed in the last row
    assert candidates(things) == first
    assert sorted(rows.read_bytes().splitlines()) == sorted(stored.splitlines())


def test_what_a_search_depends_on_has_its_own_rows(things: QuestionSet) -> None:
    shallow = candidates(things)["q0"]
    assert [c.passage.id for c in candidates(things, 5)["q0"]][:1] == [shallow[0].passage.id]
    candidates(things, how="dense")
    candidates(things, embedder=HashEmbedder(32))
    assert len(list(cache_dir().glob("candidates/*/hits.jsonl"))) == 4


def test_kept_results_are_those_of_a_search(things: QuestionSet) -> None:
    asked = things.questions[:-1]
    with library_of_set(things, embedder=HashEmbedder(), settings=SETTINGS) as library:
        fresh = search_set(library, asked, 4, settings=SETTINGS)
    for found in (candidates(things, 4), candidates(things, 4)):
        for question in asked:
            searched = fresh[question.id]
            assert [c.passage.id for c in found[question.id]] == list(searched.ids)
            assert [(c.passage.text, c.score) for c in found[question.id]] == [
                (p.text, p.score) for p in searched.passages
            ]


def test_any_library_is_searched_and_a_changed_one_again(things: QuestionSet, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for thing in THINGS:
        (folder / f"{thing}.txt").write_text(f"The {thing} is one of the things of the island.")
    path = tmp_path / "library"
    with Library.open(path, create=True, embedder=HashEmbedder()) as library:
        library.add([folder])
        before = library.fingerprint()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_rag.library.knowledge._open_embedder", lambda *_: HashEmbedder())
        found = candidates(things, library=path)
        assert found.keys() == {q.id for q in things.questions}
        best = found["q2"][0].passage
        assert best.id.startswith(str(folder / "boat.txt") + ":0-") and "boat" in best.text and not best.gold
        with Library.open(path, embedder=HashEmbedder()) as library:
            assert library.fingerprint() == before
            library.remove(folder / "boat.txt")
            assert library.fingerprint() != before
        assert "boat" not in candidates(things, library=path)["q2"][0].passage.text


def test_a_folder_that_is_no_library_is_one_clear_line(things: QuestionSet, tmp_path: Path) -> None:
    with pytest.raises(EdgeRagError, match="no library"):
        candidates(things, library=tmp_path / "nothing")


def test_damaged_rows_are_named(things: QuestionSet) -> None:
    candidates(things)
    [rows] = cache_dir().glob("candidates/*/hits.jsonl")
    rows.write_text(json.dumps({"question": "x"}) + "\n")
    with pytest.raises(EdgeRagError, match=r"hits\.jsonl is damaged: .*; remove"):
        candidates(things)
