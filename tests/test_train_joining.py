"""Joined examples: what is shown together, who comes to whom, and that it trains what each question alone would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_rag.train.examples import Example, Noise, examples_of
from edge_rag.train.joining import groups_of, joined

from edge_rag.answering.prompt import NOT_FOUND
from edge_rag.evaluation.question_sets import load_set
from edge_rag.interfaces import Style
from edge_rag.settings import Settings
from edge_rag.testing import EchoGenerator, HashEmbedder

Write = Callable[..., Path]
COUNTER = EchoGenerator()


def lamp(n: int, answer: str = "") -> dict[str, Any]:
    answer = answer or str(1800 + n)
    gold = {"id": f"lamp{n}", "title": f"Lamp {n}", "text": f"The lamp of head {n} was lit in {answer}.", "gold": True}
    others = [
        {"id": f"goat{n}-{i}", "title": "Goats", "text": f"{i} goats at head {n}.", "gold": False} for i in range(3)
    ]
    return {"id": f"q{n}", "question": f"When was the lamp {n} lit?", "answers": [answer], "passages": [*others, gold]}


def examples(
    write: Write, rows: list[dict[str, Any]], absent: float = 0.3, styles: tuple[Style, ...] = ("words",)
) -> list[Example]:
    path = write(*rows, name="lamps.jsonl")
    found, _ = examples_of(
        load_set(str(path)), Noise(most_others=2, absent=absent), counter=COUNTER, styles=styles, prompt_tokens=10_000,
        embedder=HashEmbedder(), settings=Settings(), seed=0,
    )  # fmt: skip
    return found


def join(found: list[Example], most: int = 4, prompt_tokens: int = 10_000, seed: int = 0) -> list[list[Example]]:
    together = joined(found, most, COUNTER, prompt_tokens, embedder=HashEmbedder(), seed=seed)
    return [[together[n] for n in group] for group in groups_of(together)]


def test_each_example_is_in_one_group_and_finds_its_own_passages_there(write: Write) -> None:
    alone = examples(write, [lamp(n) for n in range(60)])
    groups = join(alone)
    assert sorted(e.id for group in groups for e in group) == sorted(e.id for e in alone)
    assert all(len(group) == 4 for group in groups)
    by_id = {e.id: e for e in alone}
    for group in groups:
        for example in group:
            own = by_id[example.id]
            assert {p.text for p in own.passages} <= {p.text for p in example.passages}
            assert [example.passages[n].text for n in example.gold] == [own.passages[n].text for n in own.gold]
            assert (example.question, example.target) == (own.question, own.target)
            assert len(example.passages) == len({p.text for p in example.passages})
    assert len({e.gold[0] for group in groups for e in group if e.gold}) > 4  # in any place


def test_nobody_comes_to_a_question_that_is_to_abstain_with_its_answer(write: Write) -> None:
    found = examples(write, [lamp(n, "1850") for n in range(40)], absent=0.5)
    groups = join(found)
    abstaining = [e for group in groups for e in group if e.target == NOT_FOUND]
    assert abstaining
    assert not any("1850" in p.text for e in abstaining for p in e.passages)
    verdicts = examples(write, [lamp(n, "yes") for n in range(40)], absent=0.5)
    assert any(
        e.target == NOT_FOUND and any(other.target == "yes" for other in group)
        for group in join(verdicts)
        for e in group
    )  # the word alone tells nothing


def test_only_one_style_stands_in_a_group(write: Write) -> None:
    groups = join(examples(write, [lamp(n) for n in range(60)], styles=("words", "rationale")))
    assert all(len({e.style for e in group}) == 1 for group in groups)
    assert {e.style for group in groups for e in group} == {"words", "rationale"}


def test_prompts_stay_within_their_bound(write: Write) -> None:
    found = examples(write, [lamp(n) for n in range(60)])
    most = 2 * max(COUNTER.count_tokens(e.prompt) for e in found)
    groups = join(found, most=8, prompt_tokens=most)
    assert not any(len(group) == 8 for group in groups)
    assert any(len(group) > 1 for group in groups)
    assert all(COUNTER.count_tokens(e.prompt) <= most for group in groups for e in group)
    assert sorted(e.id for group in groups for e in group) == sorted(e.id for e in found)


def test_the_same_seed_joins_the_same_and_one_at_a_time_changes_nothing(write: Write) -> None:
    found = examples(write, [lamp(n) for n in range(30)])
    assert join(found, seed=3) == join(found, seed=3) != join(found, seed=4)
    assert joined(found, 1, COUNTER, 100, embedder=HashEmbedder(), seed=0) == found


def test_questions_about_one_paragraph_show_it_once(write: Write) -> None:
    rows = [lamp(n) for n in range(8)]
    for row in rows:
        row["passages"] = [rows[0]["passages"][-1]]
        row["answers"] = ["1800"]
    (group,) = join(examples(write, rows, absent=0.0), most=8)
    assert len(group) == 8
    assert all(len(e.passages) == 1 and e.gold == (0,) for e in group)


def test_questions_about_the_same_passage_come_together_and_it_is_shown_once(write: Write) -> None:
    def asked(n: int, about: int) -> dict[str, Any]:
        row = lamp(about)
        return {
            **row,
            "id": f"q{n}",
            "question": f"When was the lamp {about} lit, asked {n}?",
            "passages": row["passages"][-1:],
        }

    alone = examples(write, [asked(n, n % 12) for n in range(48)], absent=0.0)
    groups = join(alone, most=8)
    assert sum(len(group) for group in groups) == 48
    lamps = [{e.passages[e.gold[0]].title for e in group} for group in groups]
    assert sum(map(len, lamps)) <= 12 + len(groups)  # nearly all of a lamp's questions stand in one group
    assert all(len({p.text for p in group[0].passages}) == len(group[0].passages) for group in groups)


def test_passages_that_are_near_each_other_come_together(write: Write) -> None:
    def about(n: int) -> dict[str, Any]:
        kind = ("lamp oil burnt in tower", "goat cheese sold at market", "tide tables kept by clerk")[n % 3]
        text = f"{kind} {kind} {kind} in {1800 + n}."
        passages = [{"id": f"p{n}", "title": "", "text": text, "gold": True}]
        return {"id": f"q{n}", "question": f"When was it, asked {n}?", "answers": [str(1800 + n)], "passages": passages}

    groups = join(examples(write, [about(n) for n in range(48)], absent=0.0), most=4)
    kinds = [{e.passages[n].text.split()[0] for e in group for n in e.gold} for group in groups]
    assert sum(len(kind) == 1 for kind in kinds) >= len(groups) - 2  # the walk leaves a kind twice


def test_prompts_are_short_and_long(write: Write) -> None:
    found = examples(write, [lamp(n) for n in range(200)])
    most = 12 * max(COUNTER.count_tokens(e.prompt) for e in found)
    sizes = sorted(len(group) for group in join(found, most=50, prompt_tokens=most))
    assert sizes[0] == 1
    assert sizes[-1] >= 8
    assert len(set(sizes)) > 4
