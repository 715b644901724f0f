"""What each arm shows."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_rag.errors import UsageError
from edge_rag.evaluation.arms import Arm, decoys_of, parse_arm, passages_of
from edge_rag.evaluation.question_sets import Question, SetPassage

GOLD = SetPassage("g", "Elmo Head", "The lamp of Elmo Head was lit in 1871 by Ada Quill.", gold=True)
OTHERS = [SetPassage(f"o{n}", f"Other {n}", f"Nothing of the kind, number {n}.") for n in range(12)]
FOUND = [SetPassage(f"f{n}", f"Found {n}", f"A search result, number {n}.") for n in range(30)]
LIT = Question("q1", "When was the lamp lit?", ("1871", "eighteen seventy-one"), (OTHERS[0], GOLD, *OTHERS[1:]), ("g",))
BUILT = Question("q2", "When was the tower built?", ("1902",), (), ("t",))
KEEPER = Question("q3", "Who lit the lamp?", ("Ada Quill",), (GOLD,), ("g",))


def shown(arm, question=LIT, *, gold=(GOLD,), retrieved=FOUND, seed=0):
    decoys = decoys_of([LIT, BUILT, KEEPER], seed)
    return passages_of(parse_arm(arm), question, gold=gold, retrieved=retrieved, decoys=decoys, seed=seed)


def ids(arm, question=LIT, **options):
    return [p.id for p in shown(arm, question, **options).passages]


@pytest.mark.parametrize(
    "text",
    [
        "closed",
        "given",
        "gold",
        "gold+4",
        "gold+4+2poisoned",
        "none+3",
        "retrieved:5",
        "retrieved:5+1poisoned",
        "given+1poisoned",
    ],
)
def test_an_arm_is_written_as_it_is_read(text):
    assert str(parse_arm(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "gold+", "gold4", "closed+1", "closed+1poisoned", "none", "none+0", "retrieved", "retrieved:0", "given+3", "gold:3",
     "retrieved:5+2", "gold+101", "retrieved:1000", "gold+4poison", "GOLD", "gold +4"],
)  # fmt: skip
def test_what_is_no_arm_is_refused_with_those_that_are(text):
    with pytest.raises(UsageError, match=re.escape("gold+N")):
        parse_arm(text)


@given(st.text(max_size=30))
def test_any_text_is_an_arm_or_a_usage_error(text):
    try:
        assert isinstance(parse_arm(text), Arm)
    except UsageError:
        pass


def test_a_closed_book_shows_nothing_and_the_given_arm_what_the_set_gives():
    assert ids("closed") == []
    assert ids("given") == [p.id for p in LIT.passages]


def test_retrieved_passages_come_in_the_order_of_the_search():
    assert ids("retrieved:3") == ["f0", "f1", "f2"]


def test_a_longer_noise_arm_shows_the_shorter_one_in_the_same_order_and_more():
    arms = [ids(f"gold+{n}") for n in (1, 2, 4, 8)]
    for few, many in itertools.pairwise(arms):
        assert [i for i in many if i in few] == few
        assert "g" in few and set(few) < set(many)


def test_the_place_of_gold_differs_from_question_to_question():
    questions = [Question(f"q{n}", "?", ("1871",), LIT.passages, ("g",)) for n in range(40)]
    places = {ids("gold+4", question).index("g") for question in questions}
    assert places == {0, 1, 2, 3, 4}


def test_another_seed_shows_other_passages():
    assert ids("gold+4") == ids("gold+4", seed=0) != ids("gold+4", seed=1)


def test_others_come_from_the_search_where_the_set_has_too_few():
    few = Question("q4", "?", ("1871",), (GOLD, OTHERS[0]), ("g",))
    assert set(ids("gold+3", few)) == {"g", "o0", "f0", "f1"}


def test_a_passage_in_which_the_answer_stands_is_no_other():
    tells = SetPassage("tells", "", "It is said that in 1871, a lamp was lit.")
    question = Question("q5", "?", ("1871",), (GOLD,), ("g",))
    assert set(ids("gold+1", question, retrieved=[tells, *FOUND])) == {"g", "f0"}


def test_where_the_answer_is_yes_every_passage_may_be_an_other():
    question = Question("q8", "Was it lit?", ("yes",), (GOLD,), ("g",))
    assert "y" in ids("gold+1", question, retrieved=[SetPassage("y", "", "Yes, said the keeper.")])


def test_without_gold_the_right_reply_is_that_it_is_not_there():
    assert "g" not in ids("none+4")
    assert not shown("none+4").answerable
    assert shown("gold+4").answerable


def test_questions_that_lack_what_an_arm_needs_are_left_out():
    assert shown("gold", BUILT, gold=()) is None
    assert shown("given", BUILT) is None
    assert shown("none+8", Question("q6", "?", ("x",), (GOLD,), ("g",)), retrieved=FOUND[:3]) is None
    assert shown("gold+1poisoned", Question("q7", "?", (), (GOLD,), ("g",))) is None


def test_a_poisoned_copy_names_another_answer_of_the_same_form():
    arm = shown("gold+2+1poisoned")
    [poison] = [p for p in arm.passages if p.id.endswith("!poisoned")]
    assert poison.text == GOLD.text.replace("1871", "1902")
    assert not poison.gold
    assert len(arm.passages) == 4
