"""Training examples: what is shown, what is asked for, and that nothing but the seed decides it."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edge_rag.train.examples import Example, Noise, Statistics, example_of_row, example_row, examples_of

from edge_rag.answering.prompt import INSTRUCTIONS, NOT_FOUND, answer_messages
from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.question_sets import Question, QuestionSet, data_dir, is_dev, load_set, set_names
from edge_rag.evaluation.scoring import asks_verdict, contains_answer
from edge_rag.settings import Settings
from edge_rag.testing import EchoGenerator, HashEmbedder

TEN = 10
Write = Callable[..., Path]


def passage(name: str, text: str, *, gold: bool = False) -> dict[str, Any]:
    return {"id": name, "title": name.title(), "text": text, "gold": gold}


def lamp(n: int, *, found: bool = True, n_others: int = 9) -> dict[str, Any]:
    """A question with its own passages; one that a search has missed if it was not found."""
    gold = [passage(f"lamp{n}", f"The lamp of head {n} was lit in {1800 + n}.", gold=True)] if found else []
    others = [passage(f"goat{n}-{i}", f"There are {i} goats at head {n}.") for i in range(n_others)]
    key = {"id": f"q{n}", "question": f"When was the lamp of head {n} lit?", "answers": ["by night", str(1800 + n)]}
    return key | {"passages": [*others, *gold]}


def made(question_set: QuestionSet, noise: Noise | None = None, **options: Any) -> tuple[list[Example], Statistics]:
    settings = {"counter": EchoGenerator(), "styles": ["words"], "prompt_tokens": 10_000, "seed": 0} | options
    return examples_of(
        question_set, noise or Noise(), embedder=HashEmbedder(), settings=Settings(candidates=TEN), **settings
    )


@pytest.fixture
def lamps(write: Write) -> QuestionSet:
    return load_set(str(write(*map(lamp, range(200)), name="lamps.jsonl")))


def test_an_example_shows_gold_among_others_in_any_place(lamps: QuestionSet) -> None:
    examples, _ = made(lamps, Noise(absent=0.0))
    assert len(examples) == 200
    assert {len(e.passages) for e in examples} == set(range(1, 11))
    for example in examples:
        assert [example.passages[n].document for n in example.gold] == [f"lamp{example.id[7:-2]}"]
        assert len({p.document for p in example.passages}) == len(example.passages)
    assert len({e.gold[0] for e in examples if len(e.passages) == 10}) >= 5


def test_the_target_is_the_answer_that_stands_in_the_gold_passage(lamps: QuestionSet) -> None:
    examples, _ = made(lamps, Noise(absent=0.0))
    assert all(e.answers[0] == "by night" and e.target == str(1800 + int(e.id[7:-2])) for e in examples)
    unsaid = dataclasses.replace(examples[0], answers=("by night", "at dusk"))
    assert unsaid.target == "by night"
    assert dataclasses.replace(examples[0], answers=("yes",)).target == "yes"
    place = next(e for e in examples if e.passages[e.gold[0]].title)
    assert dataclasses.replace(place, answers=(place.passages[place.gold[0]].title.upper(),)).target.istitle()


def test_of_several_styles_each_example_is_asked_in_one(lamps: QuestionSet) -> None:
    examples, _ = made(lamps, Noise(), styles=["words", "rationale"])
    assert 60 < sum(e.style == "rationale" for e in examples) < 140
    alone, _ = made(lamps, Noise())
    assert [dataclasses.replace(e, style="words") for e in examples] == alone
    assert [example_of_row(example_row(e)) for e in examples] == examples
    assert all(INSTRUCTIONS[e.style] in e.prompt[-1].content for e in examples)


def test_a_share_of_the_examples_has_no_gold_and_abstains(lamps: QuestionSet) -> None:
    examples, statistics = made(lamps, Noise(absent=0.3, draws=3))
    silent = [e for e in examples if not e.answers]
    assert 0.25 < len(silent) / len(examples) < 0.35
    for example in silent:
        assert example.target == NOT_FOUND
        assert example.gold == () and example.passages
        assert not any(p.document.startswith("lamp") for p in example.passages)
    assert statistics.n_examples == 600 == len({e.id for e in examples})
    assert statistics.answerable == pytest.approx(1 - len(silent) / 600)


def test_without_noise_gold_stands_alone(lamps: QuestionSet) -> None:
    examples, statistics = made(lamps, Noise(most_others=0, absent=0.0))
    assert all(len(e.passages) == 1 for e in examples)
    assert (statistics.mean_others, statistics.mean_passages, statistics.answerable) == (0.0, 1.0, 1.0)


def test_an_other_that_holds_the_answer_is_none_even_in_its_title(write: Write) -> None:
    row = lamp(1, n_others=1)
    row["passages"] += [passage("tells", "Lit, it is said, in 1801."), passage("1801", "A year of storms.")]
    examples, _ = made(load_set(str(write(row))), Noise(absent=0.5, draws=40))
    assert {p.document for e in examples for p in e.passages} == {"lamp1", "goat1-0"}


def test_where_the_set_has_too_few_others_they_are_searched(write: Write) -> None:
    rows = [
        {"id": f"q{n}", "question": f"When was lamp {n} lit?", "answers": [f"{1800 + n}"], "gold_ids": [f"p{n}"]}
        for n in range(30)
    ]
    corpus = [{"id": f"p{n}", "title": f"Lamp {n}", "text": f"Lamp {n} was lit in {1800 + n}."} for n in range(30)]
    write(*corpus, name="set/corpus.jsonl")
    examples, statistics = made(load_set(str(write(*rows, name="set/questions.jsonl"))), Noise(most_others=4))
    assert statistics.n_examples == 30 and 0 < statistics.answerable < 1
    assert {len(e.passages) for e in examples if e.answers} == {1, 2, 3, 4, 5}
    for example in examples:
        own = "p" + example.id.split("#")[0].rpartition("q")[2]
        assert [p.document for p in example.passages].count(own) == (1 if example.answers else 0)


def test_a_search_that_missed_trains_abstention_as_it_was_found(write: Write) -> None:
    rows = [lamp(n, found=n % 2 == 0, n_others=4) for n in range(200)]
    examples, statistics = made(load_set(str(write(*rows))), Noise(most_others=4, absent=0.2))
    silent = [e for e in examples if not e.answers]
    assert len(silent) == 25 and statistics.answerable == 0.8
    assert statistics.left_out == {"more abstentions than wanted": 75}
    for example in silent:
        n = int(example.id.split("#")[0].rpartition("q")[2])
        assert n % 2 == 1
        assert [p.document for p in example.passages] == [f"goat{n}-{i}" for i in range(4)]


def test_a_partly_retrieved_question_counts_what_holds_the_answer(write: Write) -> None:
    hop = {"id": "a", "question": "Who built it?", "answers": ["Ada"], "gold_ids": ["first", "second"]}
    first, second = passage("first", "It stands in Aby."), passage("second", "In Aby Ada built.")
    by_chance = passage("chance", "Ada Quill kept the light.")
    rows = [
        hop | {"id": "whole", "passages": [by_chance, first, second]},
        hop | {"id": "chance", "passages": [first, by_chance]},
        hop | {"id": "part", "passages": [first]},
    ]
    examples, _ = made(load_set(str(write(*rows))), Noise(most_others=0, absent=0.4))
    shown = {e.id.split(":")[1]: ({p.document for p in e.passages}, len(e.gold), bool(e.answers)) for e in examples}
    assert shown["part#0"] == ({"first"}, 0, False)
    assert shown["whole#0"][0] in ({"first", "second"}, {"chance"}) or not shown["whole#0"][2]
    if shown["chance#0"][2]:
        assert shown["chance#0"][:2] == ({"first", "chance"}, 2)


def test_unanswerable_questions_abstain_with_their_paragraph_and_no_more_than_the_share(write: Write) -> None:
    corpus = [{"id": f"p{n}", "title": "", "text": f"Lamp {n} was lit in {1800 + n} by hand."} for n in range(40)]
    rows: list[dict[str, Any]] = [
        {"id": f"a{n}", "question": f"When was lamp {n} lit?", "answers": [f"{1800 + n}"], "gold_ids": [f"p{n}"]}
        for n in range(40)
    ]
    rows += [
        {"id": f"u{n}", "question": f"Who sank lamp {n}?", "answers": [], "answerable": False, "related_ids": [f"p{n}"]}
        for n in range(40)
    ]
    write(*corpus, name="set/corpus.jsonl")
    examples, statistics = made(load_set(str(write(*rows, name="set/questions.jsonl"))), Noise(3, absent=0.2))
    silent = [e for e in examples if not e.answers]
    assert len(silent) == 10 and len(examples) == 50 and statistics.answerable == 0.8
    assert any(len(e.passages) > 1 for e in silent)
    for example in silent:
        number = example.id.split("#")[0].rpartition("u")[2]
        assert f"p{number}" in [p.document for p in example.passages] and example.gold == ()


def test_facts_stand_for_passages_and_a_verdict_is_the_target(write: Write) -> None:
    row = {"id": "s", "question": "Is it lit?", "answers": ["no"], "facts": ["It is a lamp.", "Lamps are out by day."]}
    [example], _ = made(load_set(str(write(row))), Noise(0, absent=0.0))
    assert sorted(p.text for p in example.passages) == sorted(row["facts"])
    assert example.gold == (0, 1) and example.target == "no"


def test_what_does_not_fit_loses_others_and_never_gold(lamps: QuestionSet) -> None:
    whole, _ = made(lamps, Noise(absent=0.0))
    counter = EchoGenerator()
    cut, statistics = made(lamps, Noise(absent=0.0), prompt_tokens=100)
    assert statistics.left_out == {}
    assert max(len(e.passages) for e in cut) < max(len(e.passages) for e in whole)
    for long, short in zip(whole, cut, strict=True):
        assert short.id == long.id and len(short.gold) == 1
        documents = [p.document for p in short.passages]
        assert documents == [p.document for p in long.passages if p.document in documents]
        assert counter.count_tokens(answer_messages(short.question, short.passages, style="words")) <= 100
    none, statistics = made(lamps, Noise(absent=0.0), prompt_tokens=20)
    assert none == [] and statistics.left_out == {"too long": 200}


def test_the_same_seed_makes_the_same_examples_and_another_makes_others(lamps: QuestionSet) -> None:
    assert made(lamps) == made(lamps)
    assert made(lamps, seed=1)[0] != made(lamps)[0]


def test_a_limit_takes_some_of_the_same_examples(write: Write) -> None:
    found = load_set(str(write(*(lamp(n, found=n % 3 > 0) for n in range(90)))))
    everything, fifty, twenty = (made(found, limit=limit)[0] for limit in (None, 50, 20))
    assert len(fifty) == 50 and len(twenty) == 20
    assert {e.id for e in twenty} < {e.id for e in fifty} < {e.id for e in everything}
    assert all(example in everything for example in fifty)
    assert [e for e in everything if e in fifty] == fifty


def test_examples_of_a_question_do_not_depend_on_the_other_questions(lamps: QuestionSet) -> None:
    few = dataclasses.replace(lamps, questions=lamps.questions[10:20])
    everything, _ = made(lamps)
    assert all(example in everything for example in made(few)[0])


def test_an_example_comes_back_from_its_row(lamps: QuestionSet) -> None:
    for example in made(lamps)[0]:
        assert example_of_row(json.loads(json.dumps(example_row(example)))) == example


@pytest.mark.parametrize("noise", [{"most_others": -1}, {"absent": 1.0}, {"absent": -0.1}, {"draws": 0}])
def test_noise_that_makes_no_sense_is_refused(noise: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="makes no sense; give"):
        Noise(**noise)


def test_a_set_without_answers_is_refused_with_those_that_have_them(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_RAG_DATA", str(tmp_path / "data"))
    write(lamp(1), name="data/lamps/questions.jsonl")
    write({"id": "a", "question": "Who?", "answers": ["Ada"]}, name="data/plain/questions.jsonl")
    write(lamp(1) | {"answers": []}, name="data/blank/questions.jsonl")
    with pytest.raises(UsageError, match=re.escape("blank has no answers to train on; use a set with answers and")):
        made(load_set("blank"))
    with pytest.raises(UsageError, match=r"plain has no passages to train on; .*: lamps$"):
        made(load_set("plain"))


# --- the real sets, where they are


def real_set(name: str) -> QuestionSet:
    try:
        data_dir()
    except EdgeRagError:
        pytest.skip("needs EDGE_RAG_DATA")
    if name not in set_names():
        pytest.skip(f"needs {name}")
    return load_set(name, part="train")


@pytest.mark.parametrize(
    "name", ["hotpotqa/distractor", "2wikimultihopqa", "musique", "nq_retrieved", "hotpotqa/fullwiki", "pubmedqa"]
)
def test_real_sets_give_what_they_say(name: str) -> None:
    question_set = real_set(name)
    most = 1 if name in ("nq_retrieved",) else 8 if name != "pubmedqa" else 0  # no search: that takes minutes
    noise = Noise(most, absent=0.2 if most > 1 else 0.0)
    few = [q for q in question_set.questions if most_own(q) >= most][:120]
    examples, statistics = made(dataclasses.replace(question_set, questions=tuple(few)), noise)
    assert statistics.n_examples == len(examples) >= 60
    assert statistics.answerable >= 0.7
    by_id = {q.id: q for q in few}
    for example in examples:
        question = by_id[example.id.removeprefix(f"{name}:").rpartition("#")[0]]
        assert not is_dev(example.question)
        if not example.answers:
            assert example.gold == () and example.target == NOT_FOUND
            continue
        assert example.target.casefold() in map(str.casefold, question.answers) and example.target.strip()
        outside = [p for n, p in enumerate(example.passages) if n not in example.gold]
        if not asks_verdict(example.answers):
            assert not any(contains_answer(f"{p.title}\n{p.text}", example.answers) for p in outside)
        else:
            assert example.target in ("yes", "no", "maybe")


def most_own(question: Question) -> int:
    """Count what can be an other without a search."""
    return sum(
        not p.gold and (asks_verdict(question.answers) or not contains_answer(f"{p.title}\n{p.text}", question.answers))
        for p in question.passages
    )
