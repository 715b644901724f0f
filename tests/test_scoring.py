"""Scores of one answer: by hand, against independent implementations on random inputs, and by properties."""

import math
import random
import re
import string
from collections import Counter

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from edge_rag.answering import NOT_FOUND
from edge_rag.evaluation.question_sets import Question, SetPassage
from edge_rag.evaluation.scoring import (
    DEPTHS,
    METRICS,
    contains_answer,
    kilt_words,
    score_answer,
    score_text,
    squad_words,
    verdict,
)


def asked(*answers, gold=(), question="Who kept the lamp?", **more):
    return Question(
        id="q",
        question=question,
        answers=answers,
        passages=(),
        gold_ids=gold,
        **{"answerable": True, "relevance": {}} | more,
    )


def passages(*ids, text="Nothing."):
    return [SetPassage(id=id, title="", text=text) for id in ids]


def scored(question, answer="", *, shown=(), found=(), cited=()):
    return score_answer(question, answer=answer, shown=shown, found=found, cited=cited)


# --- words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "squad", "kilt"),
    [
        ("The U.S. Army", "us army", "u s army"),
        ("post-war  Britain's", "postwar britains", "post war britain s"),
        ("A.the-an", "athean", ""),  # where a deleted mark joins articles, they are none
        ("Beyoncé’s “hit”", "beyoncé’s “hit”", "beyoncé’s “hit”"),  # neither knows other marks than ASCII's
        ("İstanbul\u00a0a\tThe", "i̇stanbul", "i̇stanbul"),
        ("...", "", ""),
        ("", "", ""),
    ],
)
def test_words_by_hand(text, squad, kilt):
    assert " ".join(squad_words(text)) == squad
    assert " ".join(kilt_words(text)) == kilt


# --- text ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "golds", "em", "contains", "f1"),
    [
        ("The Rollo.", ("Rollo",), 1, 1, 1),
        ("It was Rollo of Normandy", ("Rollo", "Rollo the Viking"), 0, 1, 2 * (1 / 5) * 1 / (1 / 5 + 1)),
        ("red red blue", ("red blue blue",), 0, 0, 2 / 3),  # words count as often as they stand there
        ("Oslo", ("Paris", "Oslo"), 1, 1, 1),
        ("Oslo", ("Paris",), 0, 0, 0),
        ("", ("Paris",), 0, 0, 0),
        ("the", ("a",), 1, 1, 1),  # SQuAD 2: nothing agrees with nothing
        ("Paris", ("the",), 0, 0, 0),
        ("the", ("the", "Paris"), 0, 0, 0),  # a gold answer without words is none where there are others
        ("It is known", ("no",), 0, 0, 0),
        ("No, it is not", ("no",), 0, 1, 0),  # HotpotQA: yes and no as a whole
        ("no", ("no",), 1, 1, 1),
        ("noanswer given", ("noanswer",), 0, 1, 0),
        ("No law", ("no", "no law at all"), 0, 1, 2 * 1 * (2 / 4) / (1 + 2 / 4)),  # not a question of yes or no
    ],
)
def test_text_scores_by_hand(answer, golds, em, contains, f1):
    scores = score_text(answer, golds)
    assert (scores["em"], scores["contains"]) == (em, contains)
    assert scores["f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "gold", "em", "f1"),
    [
        ("post war", "post-war", 1, 1),
        ("the U.S.", "US", 0, 0),
        ("U.S. Army", "U.S.", 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("the", "a", 1, 0),  # DRO's F1 finds nothing in common in nothing
    ],
)
def test_kilt_scores_by_hand(answer, gold, em, f1):
    scores = score_text(answer, [gold])
    assert (scores["em_kilt"], scores["f1_kilt"]) == (em, pytest.approx(f1))


@pytest.mark.parametrize(
    ("text", "gold", "there"),
    [
        ("in 1981, on the 9th", "9", False),
        ("The Americans left", "American", False),
        ("Rollo's army", "Rollo", True),
        ("Rollo’s army", "Rollo", True),
        ("the 1914–1918 war", "1918", True),
        ("“Hey Jude”—a song", "Hey Jude", True),
        ("the Elan sports car", "Élan", True),
        ("the US Army", "U.S.", True),
        ("3.5 million", "5", False),
        ("1000 ships", "1,000", True),
        ("red and blue", "red blue", False),
        ("blue red", "red blue", False),
        ("… so", "∞", False),
        ("to ∞ and on", "∞", True),
        ("anything", "", False),
        ("", "", False),
    ],
)
def test_an_answer_is_contained_as_a_run_of_whole_words(text, gold, there):
    assert contains_answer(text, [gold]) is there


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes.", "yes"),
        ("**No**, it does not", "no"),
        ("The answer is: maybe", "maybe"),
        ("True", "yes"),
        ("It isn't true.", "no"),
        ("It isn’t true.", "no"),
        ("That cannot be true", "no"),
        ("not yes", "no"),
        ("This is not false", "yes"),
        ("Maybe not", "maybe"),
        ("No doubt: yes", "yes"),
        ("Yes or no? No.", "no"),
        ("I cannot say yes or no", None),
        ("Of yes, no, or maybe: yes/no", None),
        ("No, no", "no"),
        ("There is no evidence", "no"),
        ("nothing known, yesterday", None),
        ("", None),
    ],
)
def test_the_first_verdict_counts(answer, said):
    assert verdict(answer) == said


def test_accuracy_is_of_questions_of_yes_no_or_maybe():
    assert score_text("Yes, of course", ["Yes."])["accuracy"] == 1
    assert score_text("Probably", ["maybe"])["accuracy"] == 0  # commits to nothing
    assert score_text("maybe", ["no", "maybe"])["accuracy"] == 1
    assert "accuracy" not in score_text("yes", ["yes", "indeed"])
    assert "accuracy" not in score_text("yes", ["noanswer"])


# The published definitions once more, in another manner: regular expressions over the text, lists that words are taken out of.


def words_again(text, mark):
    text = re.sub(f"[{re.escape(string.punctuation)}]", mark, text.lower())
    return [word for word in re.split(r"\s+", re.sub(r"\b(?:a|an|the)\b", " ", text)) if word]


def f1_again(said, right):
    rest, common = list(right), 0
    for word in said:
        if word in rest:
            rest.remove(word)
            common += 1
    return 2 * common / (len(said) + len(right)) if common else 0.0


def squad2_again(answer, golds):
    said = words_again(answer, "")
    rights = [words for gold in golds if (words := words_again(gold, ""))] or [[]]
    return (
        max(said == right for right in rights),
        max(f1_again(said, right) if said and right else float(said == right) for right in rights),
    )


def hotpot_again(answer, gold):
    said, right = " ".join(words_again(answer, "")), " ".join(words_again(gold, ""))
    whole = re.compile("yes|no|noanswer")
    if said != right and (whole.fullmatch(said) or whole.fullmatch(right)):
        return 0.0
    return f1_again(said.split(), right.split())


PIECES = [
    "red",
    "Blue",
    "the",
    "A",
    "an",
    "U.S.",
    "post-war",
    "yes",
    "no",
    "noanswer",
    "Élan",
    "—",
    "'s",
    "1,000",
    "x",
    " ",
]


def random_text(rng, most=6):
    return rng.choice([" ", "", "-", ", "]).join(rng.choices(PIECES, k=rng.randint(0, most)))


def test_squad_scores_agree_with_another_implementation():
    rng = random.Random(1)
    compared = 0
    for _ in range(8_000):
        answer, golds = random_text(rng), [random_text(rng) for _ in range(rng.randint(1, 4))]
        if all(words_again(gold, "") in (["yes"], ["no"], ["noanswer"]) for gold in golds if words_again(gold, "")):
            continue  # HotpotQA's rule: the next test
        scores, (em, f1) = score_text(answer, golds), squad2_again(answer, golds)
        assert scores["em"] == em, (answer, golds)
        assert abs(scores["f1"] - f1) < 1e-12, (answer, golds)
        said, rights = words_again(answer, " "), [words_again(gold, " ") for gold in golds]
        assert scores["em_kilt"] == (said in rights), (answer, golds)
        assert abs(scores["f1_kilt"] - max(f1_again(said, right) for right in rights)) < 1e-12, (answer, golds)
        compared += 1
    assert compared > 7_000


def test_hotpot_scores_agree_with_another_implementation():
    rng = random.Random(2)
    for _ in range(5_000):
        gold = rng.choice(["yes", "no", "noanswer", "The No.", "red", "Blue post-war", "U.S. red"])
        answer = rng.choice([gold, random_text(rng, 2), random_text(rng)])
        if answer.strip() and words_again(answer, "") not in (["yes"], ["no"], ["noanswer"], []):
            assert score_text(answer, [gold])["f1"] == pytest.approx(hotpot_again(answer, gold), abs=1e-12), (
                answer,
                gold,
            )


texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=6).map(" ".join)


@given(texts, st.lists(texts, min_size=1, max_size=4), st.randoms())
def test_text_scores_do_not_depend_on_the_order_of_the_golds(answer, golds, rng):
    shuffled = rng.sample(golds, len(golds))
    assert score_text(answer, golds) == score_text(answer, shuffled)


@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_text_scores_are_fractions_and_equal_answers_are_contained(answer, golds):
    scores = score_text(answer, golds)
    assert all(0 <= score <= 1 for score in scores.values())
    assert scores["em"] <= scores["contains"]
    assert scores["em"] <= scores["f1"]


@given(texts, texts)
def test_f1_is_1_where_the_bags_of_words_are_equal_and_only_there(answer, gold):
    said, right = Counter(squad_words(answer)), Counter(squad_words(gold))
    if squad_words(gold) not in (["yes"], ["no"], ["noanswer"]):
        assert (score_text(answer, [gold])["f1"] == 1) == (said == right)


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_any_text_can_be_scored(answer, golds):
    scores = score_text(answer, golds)
    assert all(0 <= score <= 1 for score in scores.values())
    assert set(scores) <= set(METRICS)


# --- retrieval -----------------------------------------------------------------------------------------------------------


def test_retrieval_scores_by_hand():
    scores = scored(asked("Rollo", gold=("g1", "g2")), found=passages("x", "g2", "y", "z", "g1"))
    assert [scores[f"recall@{k}"] for k in DEPTHS] == [0, 0.5, 1, 1, 1]
    assert [scores[f"all_gold@{k}"] for k in DEPTHS] == [0, 0, 1, 1, 1]
    assert scores["mrr"] == 1 / 2
    ideal = 1 + 1 / math.log2(3)
    assert scores["ndcg@10"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(6)) / ideal)
    assert [scores[f"answer_recall@{k}"] for k in DEPTHS] == [0, 0, 0, 0, 0]


def test_answers_are_looked_for_in_the_texts_found():
    found = [*passages("x", "y"), SetPassage(id="z", title="", text="Rollo’s army"), *passages("w")]
    scores = scored(asked("Rollo", gold=("g",)), found=found)
    assert [scores[f"answer_recall@{k}"] for k in DEPTHS] == [0, 1, 1, 1, 1]
    deeper = scored(asked("Rollo", gold=("g",)), found=[*passages("v"), *found])
    assert [deeper[f"answer_recall@{k}"] for k in DEPTHS] == [0, 0, 1, 1, 1]


def test_an_answer_of_several_parts_needs_each():
    question = asked("Rollo and Gisela", parts=(("Rollo", "Hrolf"), ("Gisela",)))
    found = [*passages("x"), *passages("y", text="Gisela"), *passages("z", text="Hrolf"), *passages("w", text="Rollo")]
    assert scored(question, "Gisela and Hrolf")["contains"] == 1
    assert scored(question, "Hrolf and Rollo")["contains"] == 0
    assert [scored(question, found=found)[f"answer_recall@{k}"] for k in DEPTHS] == [0, 1, 1, 1, 1]
    assert scored(question, shown=found)["answer_shown"] == 1
    assert scored(question, shown=found[:2])["answer_shown"] == 0


def test_ndcg_goes_by_graded_relevance():
    scores = scored(asked(relevance={"a": 2, "b": 1, "c": 0}), found=passages("b", "c", "a"))
    assert scores["ndcg@10"] == pytest.approx((1 + 2 / math.log2(4)) / (2 + 1 / math.log2(3)))


def test_passages_that_come_back_twice_count_once_at_their_first_place():
    question = asked("Rollo", gold=("g1", "g2"))
    assert scored(question, found=passages("x", "x", "g1", "g1", "g2", "x")) == scored(
        question, found=passages("x", "g1", "g2")
    )


def test_retrieval_is_not_scored_where_nothing_was_searched_or_nothing_is_gold():
    retrieval = {"mrr", "ndcg@10", *(f"{name}@{k}" for name in ("recall", "all_gold", "answer_recall") for k in DEPTHS)}
    assert not retrieval & set(scored(asked("Rollo", gold=("g",)), "Rollo", shown=passages("g")))
    assert retrieval & set(scored(asked("Rollo"), found=passages("g"))) == {f"answer_recall@{k}" for k in DEPTHS}
    assert not retrieval & set(scored(asked(relevance={"g": 0}), found=passages("g")))


def test_answers_of_yes_or_no_are_not_looked_for():
    question = asked("yes", gold=("g",))
    scores = scored(question, found=passages("g", text="yes"), shown=passages("g", text="yes"))
    assert "answer_recall@1" not in scores and "answer_shown" not in scores and scores["recall@1"] == 1


def test_retrieval_scores_agree_with_trec_eval():
    rng = random.Random(4)
    ids = [f"d{n}" for n in range(60)]
    measures = {"recip_rank", "ndcg_cut.10", "recall." + ",".join(map(str, DEPTHS))}
    for _ in range(400):
        grades = {id: rng.choice([0, 1, 1, 2, 3]) for id in rng.sample(ids, rng.randint(1, 25))}
        gold = tuple(id for id, grade in grades.items() if grade)
        if not gold:
            continue
        ranking = rng.sample(ids, rng.randint(1, 40))
        run = {id: float(-rank) for rank, id in enumerate(ranking)}
        theirs = pytrec_eval.RelevanceEvaluator({"q": grades}, measures).evaluate({"q": run})["q"]
        ours = scored(asked(gold=gold, relevance=grades), found=passages(*ranking))
        assert ours["mrr"] == pytest.approx(theirs["recip_rank"], abs=1e-12)
        assert ours["ndcg@10"] == pytest.approx(theirs["ndcg_cut_10"], abs=1e-12)
        for k in DEPTHS:
            assert ours[f"recall@{k}"] == pytest.approx(theirs[f"recall_{k}"], abs=1e-12)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_deeper_finds_more_and_all_gold_means_full_recall(ranking, gold):
    scores = scored(asked("x", gold=tuple(gold)), found=passages(*ranking))
    recalls = [scores[f"recall@{k}"] for k in DEPTHS]
    assert recalls == sorted(recalls)
    assert [scores[f"all_gold@{k}"] == 1 for k in DEPTHS] == [recall == 1 for recall in recalls]
    assert all(0 <= score <= 1 + 1e-12 for score in scores.values())
    assert (scores["mrr"] == 0) == (scores["ndcg@10"] == 0) == (not gold & set(ranking))


# --- grounding -----------------------------------------------------------------------------------------------------------


def test_what_the_prompt_held_by_hand():
    shown = [SetPassage(id="g1", title="Rollo", text="A Viking."), *passages("x")]
    scores = scored(asked("Rollo", gold=("g1", "g2")), "Rollo", shown=shown)
    assert (scores["gold_shown"], scores["answer_shown"]) == (0.5, 1)  # the generator reads titles, too
    assert scored(asked("Gisela", gold=("g1",)), "Rollo", shown=shown)["answer_shown"] == 0


def test_citation_scores_by_hand():
    question, shown = asked("Rollo", gold=("g1", "g2")), passages("g1", "x", "y")
    scores = scored(question, "Rollo", shown=shown, cited=("g1", "x", "g1"))
    assert (scores["citation_precision"], scores["citation_recall"]) == (0.5, 0.5)
    silent = scored(question, "Rollo", shown=shown)
    assert "citation_precision" not in silent and silent["citation_recall"] == 0
    assert "citation_recall" not in scored(question, "", shown=shown)
    assert not {"citation_precision", "citation_recall"} & set(
        scored(asked("Rollo"), "Rollo", shown=shown, cited=("x",))
    )


def test_k_precision_by_hand():
    question = asked("Rollo", question="Who led the army?")
    shown = passages("x", text="Rollo led the army.")
    scores = scored(question, "The army: Rollo, Rollo and Gisela led", shown=shown)  # army rollo rollo and gisela led
    assert scores["k_precision"] == 3 / 6  # the second Rollo is not held a second time
    assert scores["k_precision_new"] == 1 / 4  # rollo rollo and gisela
    assert scored(question, "", shown=shown)["k_precision"] == 0
    assert scored(question, "Army led!", shown=shown)["k_precision_new"] == 1  # adds nothing, so nothing unfounded
    assert "k_precision" not in scored(question, "Rollo")


def test_k_precision_takes_words_from_all_passages_together():
    shown = [*passages("x", text="red red"), *passages("y", text="red blue")]
    assert scored(asked("x"), "red red red blue green", shown=shown)["k_precision"] == 4 / 5


def test_questions_without_an_answer_have_no_text_scores():
    nothing = asked(answerable=False)
    assert scored(nothing, "Rollo", shown=passages("x")) == {}
    plausible = asked("Rollo", answerable=False)  # some sets name what a careless reader would answer
    assert scored(plausible, "Rollo", shown=passages("x")) == {}
    assert not {"em", "contains", "f1", "answer_shown"} & set(scored(asked(), "Rollo", shown=passages("x")))


def test_a_refusal_rests_on_nothing():
    scores = scored(asked("Rollo", gold=("g",)), NOT_FOUND, shown=passages("g"))
    assert not {"citation_recall", "k_precision", "k_precision_new"} & set(scores)
    assert scores["em"] == scores["contains"] == 0 and scores["gold_shown"] == 1


def test_every_score_has_its_line():
    question = asked("yes", gold=("g",))
    other = asked("Rollo", gold=("g",))
    for q in (question, other):
        scores = scored(q, "Rollo", shown=passages("g"), found=passages("g"), cited=("g",))
        assert set(scores) <= set(METRICS)
        assert all(0 <= score <= 1 for score in scores.values())
