"""DRO: lists that a model writes, what they are worth, and both models learning from them, with a tiny model."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

from edge_rag.train.dro import Joint, Judged, Question, _figures, _Learning, _question
from edge_rag.train.language_model import Sampled, Scored
from edge_rag.train.run import TrainingRun
from edge_rag.train.selector import Asked, Candidate, Plan
from in_process import edge_rag
from question_rows import door_questions
from tiny_models import make_model

from edge_rag.answering.prompt import list_messages, listed, written_list
from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.cases import as_passage
from edge_rag.evaluation.question_sets import SetPassage
from edge_rag.evaluation.run_folder import read_rows
from edge_rag.interfaces import Message
from edge_rag.settings import Settings

# --- lists


def test_a_list_is_read_as_it_is_written() -> None:
    assert written_list([2, 0, 6]) == "[3] > [1] > [7]"
    assert listed("[3] > [1] > [7]", 10, 5) == (2, 0, 6)
    assert listed("[3] > [1] > [7]", 10, 2) == (2, 0)


@pytest.mark.parametrize(
    ("output", "places"),
    [
        ("[3] > [3] > [1]", (2, 0)),
        ("[11] > [0] > [2]", (1,)),
        ("In 1871 there were 3 lamps: [2]", (1,)),
        ("3 > 1", ()),
        ("[٣] > [99999999999]", ()),
        ("", ()),
    ],
)
def test_what_is_not_there_or_comes_twice_is_not_listed(output: str, places: tuple[int, ...]) -> None:
    assert listed(output, 10, 5) == places


def test_passages_are_numbered_and_shortened_in_the_prompt() -> None:
    passages = [as_passage(n, SetPassage(str(n), "Log", f"word{n} " * 30)) for n in range(3)]
    (_, asked) = list_messages("Who kept\nit?", passages, 2, words=5)
    assert "Passage 3 (Log):\nword2 word2 word2 word2 word2 ...\n" in asked.content
    assert asked.content.endswith(": Who kept it?") and "[2] > [1]" in asked.content
    assert "..." not in list_messages("Who?", passages, 2)[1].content


def asked(*gold: bool) -> Asked:
    candidates = tuple(
        Candidate(SetPassage(f"p{n}", "", f"text {n}", is_gold), 1.0 / (n + 1)) for n, is_gold in enumerate(gold)
    )
    return Asked("s:1", "s", "Which?", ("Wick", "wick.", "Thurso"), candidates)


def test_the_teacher_lists_gold_first_and_then_what_the_search_found_best() -> None:
    found = _question(asked(False, False, True, False, True), 4, None, seed=0)
    assert [found.passages[place].document for place in found.teacher] == ["p2", "p4", "p0", "p1"]
    assert [found.passages[n].document for n, gold in enumerate(found.gold) if gold] in (["p2", "p4"], ["p4", "p2"])
    assert found.answers == ("Wick", "Thurso")
    orders = {tuple(p.document for p in _question(asked(*[True] * 5), 4, None, seed).passages) for seed in range(9)}
    assert len(orders) > 5


# --- what lists are worth


class Writer:
    """Writes the lists that it is given, hotter ones when it is asked again; finds answers likely after one passage."""

    name, context_tokens = "scripted", 2048

    def __init__(self, lists: Sequence[str], hotter: Sequence[str] = (), best: str = "text 3") -> None:
        self.lists, self.hotter, self.best = lists, hotter, best
        self.n_scored = 0

    def sample(self, prompts: Any, *, n: int, temperature: float, on_done: Any, **_: Any) -> None:
        for index in range(len(prompts)):
            texts = self.hotter if temperature > 1 else self.lists
            on_done(index, [Sampled(text, -1.0, 5, True) for text in texts[:n]])

    def score(self, prompts: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]], on_done: Any) -> None:
        for index, (prompt, texts) in enumerate(zip(prompts, answers, strict=True)):
            first = prompt[-1].content.splitlines()[1]
            self.n_scored += 1
            mean = -1.0 if first == self.best else -3.0
            on_done(index, [Scored(text, (mean - 2 * n, mean - 2 * n)) for n, text in enumerate(texts)])


@pytest.fixture
def question() -> Question:
    return _question(asked(*[False] * 4, True), 2, None, seed=0)


def learning(folder: Path, question: Question, joint: Joint) -> _Learning:
    run = TrainingRun(folder, {})
    folder.mkdir(exist_ok=True)
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base" / "weights").write_text("w")
    parts = {"train": [question], "dev": [question]}
    return _Learning(run, folder / "base", Plan(("s",)), joint, Settings(), None, parts)  # type: ignore[arg-type]


def place_of(question: Question, text: str) -> int:
    return next(n for n, p in enumerate(question.passages) if p.text == text)


def judged_by(writer: Writer, work: _Learning) -> Judged:
    questions = work.drawn(1)
    lists = work.lists(1, writer, work.base, "train", questions)  # type: ignore[arg-type]
    (found,) = work.judge(1, writer, None, "train", questions, lists)  # type: ignore[arg-type]
    return found


def test_lists_are_weighed_by_the_likelihood_of_the_likeliest_answer(question: Question, tmp_path: Path) -> None:
    best, other = place_of(question, "text 3"), place_of(question, "text 1")
    texts = [f"[{best + 1}] > [{other + 1}]", f"[{other + 1}] > [{best + 1}]", f"[{best + 1}] > [{other + 1}]", "none"]
    writer = Writer(texts)
    found = judged_by(writer, learning(tmp_path, question, Joint(keep=2)))
    assert found.lists == ((best, other), (other, best))
    assert found.weights == pytest.approx([1 / (1 + 2.718281828**-2), 1 / (1 + 2.718281828**2)])
    assert found.answers == ("Wick", "Wick")
    assert writer.n_scored == 2
    judged_by(writer, learning(tmp_path, question, Joint(keep=2)))
    assert writer.n_scored == 2  # likelihoods are remembered
    whole = judged_by(writer, learning(tmp_path, question, Joint(keep=2, whole=True)))
    assert whole.weights[0] == pytest.approx(1 / (1 + 2.718281828**-4))  # two tokens
    flat = judged_by(writer, learning(tmp_path, question, Joint(keep=2, sharpness=1e-9)))
    assert flat.weights == pytest.approx([0.5, 0.5])


def test_where_all_lists_are_the_same_others_are_drawn_hotter(question: Question, tmp_path: Path) -> None:
    found = judged_by(
        Writer(["[1] > [2]"] * 4, ["[1] > [2]", "[4] > [2]"]), learning(tmp_path, question, Joint(keep=2))
    )
    assert found.lists == ((0, 1), (3, 1))


def test_each_iteration_draws_questions_of_its_own(question: Question, tmp_path: Path) -> None:
    questions = [replace(question, id=str(n)) for n in range(40)]
    some, every = learning(tmp_path, question, Joint(per_iteration=8)), learning(tmp_path, question, Joint())
    some, every = (replace(work, questions={"train": questions, "dev": [question]}) for work in (some, every))
    first, second = ([one.id for one in some.drawn(number)] for number in (1, 2))
    assert len(set(first)) == len(set(second)) == 8 and first != second
    assert [one.id for one in some.drawn(1)] == first
    assert every.drawn(1) == questions


def test_a_selector_that_writes_no_list_at_all_is_said_so(question: Question, tmp_path: Path) -> None:
    with pytest.raises(EdgeRagError, match=r"wrote no list for any of 1 train questions; give more"):
        judged_by(Writer(["3 and 4"], ["nothing"]), learning(tmp_path, question, Joint()))


def test_figures_count_what_was_listed_and_what_was_answered(question: Question) -> None:
    gold = question.gold.index(True)
    others = tuple(n for n in range(5) if n != gold)[:2]
    figures = _figures([question, question], [(gold, others[0]), ()], [(gold, others[0]), others], ["Wick", "Skye"])
    assert (figures["n"], figures["f1"], figures["em"]) == (2, 0.5, 0.5)
    assert (figures["gold_listed"], figures["lists_read"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    "changes", [{"keep": 0}, {"samples": 0}, {"per_iteration": 0}, {"temperature": 0.0}, {"sharpness": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="make no sense"):
        Joint(**changes)


# --- the command


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def command(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    questions = door_questions(tmp_path_factory.mktemp("questions") / "doors.jsonl")
    settings = ["--candidates", 3, "--keep", 2, "--samples", 3, "--iterations", 2, "--temperature", 1.2, "--limit", 24]
    settings += ["--per-iteration", 16]
    quickly = ["--dev-limit", 6, "--batch", 4, "--evaluate-every", 6, "--epochs", 4, "--lora-rank", 8]
    return ["train", "dro", "--base", base, "--set", questions, "--learning-rate", 0.01, *settings, *quickly]


@pytest.mark.slow
def test_both_learn_together_and_go_on_where_they_were_stopped(command: list[object], tmp_path: Path) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    done = edge_rag(*command, "--out", run, home=home)
    assert "of the gold passages listed" in done.stdout
    measured = [row for row in read_rows(run / "metrics.jsonl") if row["stage"] == "measured"]
    assert [row["step"] for row in measured] in ([0, 1], [0, 1, 2])
    figures = json.loads((run / "model" / "figures.json").read_text())
    assert figures["f1"] == pytest.approx(max(row["f1"] for row in measured))
    assert (run / "model" / "selector" / "adapter_model.safetensors").is_file()
    lists = read_rows(run / "lists-1" / "train.jsonl")
    assert lists and all(sum(row["weights"]) == pytest.approx(1) for row in lists)
    assert any(len(row["lists"]) > 1 for row in lists) and len(lists) <= 16
    page = (run / "page.html").read_text()
    assert "Lists, iteration 1" in page and "Iterations" in page
    stored = {name: (run / "rows" / f"{name}.jsonl").read_bytes() for name in ("written", "likelihoods")}
    before = (run / "lists-1" / "train.jsonl").read_bytes()
    shutil.rmtree(run / "lists-1")
    shutil.rmtree(run / "model")
    edge_rag(*command, "--out", run, home=home)
    assert (run / "lists-1" / "train.jsonl").read_bytes() == before
    assert {name: (run / "rows" / f"{name}.jsonl").read_bytes() for name in stored} == stored
    assert json.loads((run / "model" / "figures.json").read_text()) == figures
    frozen = edge_rag(*command, "--out", run, "--freeze", "generator", "--force", "--json", home=home)
    assert not (run / "model" / "generator").exists() and json.loads(frozen.stdout)["n"] == figures["n"]


def test_what_cannot_be_is_one_line_and_leaves_no_run(command: list[object], tmp_path: Path, home: Path) -> None:
    for more, said in (
        (["--freeze", "both"], "--freeze"),
        (["--prompt", "rationale"], "--prompt"),
        (["--lora-rank", 0], "give a --lora-rank above 0"),
        (["--teacher", tmp_path], "holds no selector"),
        (["--adapter", tmp_path], "holds no adapter_config.json"),
    ):
        done = edge_rag(*command, "--out", tmp_path / "run", *more, home=home, expect=1 if "--teacher" in more else 2)
        assert said in done.stderr, done.stderr
        assert not (tmp_path / "run" / "model").exists()
