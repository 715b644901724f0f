"""edge-rag train supervised and rose: from question files to an adapter that the runtime loads, with a tiny model."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

from edge_rag.train.examples import Example
from edge_rag.train.language_model import Sampled
from edge_rag.train.page import METRICS
from edge_rag.train.quotes import quotes, reasoned_target
from edge_rag.train.rose import Responses, choose, is_right, is_sound, judge, newest_pairs, read_pairs, reasons_of
from in_process import edge_rag
from question_rows import door_questions
from tiny_models import make_model

from edge_rag.answering.prompt import NOT_FOUND, PROMPT_VERSION
from edge_rag.evaluation.question_sets import is_dev
from edge_rag.evaluation.run_folder import read_rows
from edge_rag.interfaces import Passage, Style
from edge_rag.models.prompt_style import prompt_fields, read_note


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return door_questions(tmp_path_factory.mktemp("questions") / "doors.jsonl")


def supervised(base: Path, questions: Path, out: Path, *more: object) -> list[object]:
    settings = ["--others", 2, "--batch", 4, "--evaluate-every", 5, "--lora-rank", 8, "--learning-rate", 0.01, *more]
    return ["train", "supervised", "--base", base, "--set", questions, "--out", out, *settings]


@pytest.fixture(scope="module")
def trained(base: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervised run, and the home that it was made in beside it."""
    folder = tmp_path_factory.mktemp("trained")
    done = edge_rag(*supervised(base, questions, folder / "run", "--epochs", 3), home=folder / "home")
    assert "to run it: edge-rag export lora" in done.stdout
    return folder / "run"


def test_supervised_training_lowers_the_loss_on_dev_and_says_what_it_made(trained: Path) -> None:
    metrics = read_rows(trained / METRICS)
    dev = [row["dev_loss"] for row in metrics if "dev_loss" in row]
    fitted = json.loads((trained / "model" / "fitted.json").read_text())
    assert fitted["first_loss"] == pytest.approx(dev[0])
    assert fitted["best_loss"] == pytest.approx(min(dev))
    assert min(dev) < dev[0] / 2
    assert (trained / "model" / "adapter" / "adapter_model.safetensors").is_file()
    assert read_note(trained / "model" / "adapter") == prompt_fields("words", PROMPT_VERSION, NOT_FOUND)
    assert not (trained / "model" / "checkpoints").exists()
    page = (trained / "page.html").read_text()
    assert "prompt tokens" in page
    assert "dev_loss" in page or "dev loss" in page


def test_questions_of_dev_are_not_trained_on(trained: Path) -> None:
    for part in ("train", "dev"):
        rows = [json.loads(line) for line in (trained / "examples" / f"{part}.jsonl").read_text().splitlines()]
        assert rows
        assert all(is_dev(row["question"]) == (part == "dev") for row in rows)


def test_a_finished_run_is_not_made_again(base: Path, questions: Path, trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained / "model").rglob("*")}
    done = edge_rag(*supervised(base, questions, trained, "--epochs", 3, "--json"), home=trained.parent / "home")
    assert json.loads(done.stdout)["steps"] > 0
    assert {path: path.stat().st_mtime_ns for path in (trained / "model").rglob("*")} == before


def test_a_run_that_was_begun_otherwise_is_refused_in_one_line(base: Path, questions: Path, trained: Path) -> None:
    command = supervised(base, questions, trained, "--epochs", 3, "--seed", 7)
    done = edge_rag(*command, home=trained.parent / "home", expect=2)
    assert done.stderr.count("\n") == 1
    assert "seed" in done.stderr
    assert "--force" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--base": "nowhere"}, "edge-rag export hf"),
        ({"--set": "nowhere"}, "there is no set or file"),
        ({"--prompt": "rhyme"}, "use one of: words, sentence, rationale"),
        ({"--adapter": "nowhere"}, "nowhere"),
        ({"--others": 500}, "makes no sense"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_leaves_no_run(
    base: Path, questions: Path, tmp_path: Path, home: Path, change: dict[str, Any], said: str
) -> None:
    command = supervised(base, questions, tmp_path / "run")
    for flag, value in change.items():
        command += [flag, value]
    if "--set" in change:
        command[command.index(questions)] = change["--set"]
    done = edge_rag(*command, home=home, expect=1 if "--set" in change else 2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_set_without_answers_is_refused(base: Path, tmp_path: Path, home: Path) -> None:
    path = tmp_path / "bare.jsonl"
    path.write_text(json.dumps({"id": "1", "question": "Why?", "answers": [], "passages": []}) + "\n")
    done = edge_rag(*supervised(base, path, tmp_path / "run"), home=home, expect=2)
    assert "no answers" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_and_the_same_command_again_end_as_an_uninterrupted_run(
    base: Path, questions: Path, trained: Path, tmp_path: Path
) -> None:
    command = supervised(base, questions, tmp_path / "run", "--epochs", 3)
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_rag", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"EDGE_RAG_HOME": str(tmp_path / "home"), "EDGE_RAG_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(3000):
        if metrics.is_file() and '"step": 5,' in metrics.read_text():
            break
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert not (tmp_path / "run" / "model").exists()
    edge_rag(*command, home=tmp_path / "home")
    name = "model/adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()


@pytest.mark.slow
def test_rose_prefers_right_responses_and_its_adapter_runs(
    base: Path, questions: Path, trained: Path, tmp_path: Path
) -> None:
    home = trained.parent / "home"
    command = [
        "train", "rose", "--base", base, "--adapter", trained / "model" / "adapter", "--set", questions, "--out",
        tmp_path / "rose", "--prompt", "words", "--others", 2, "--batch", 4, "--evaluate-every", 5, "--learning-rate", 0.001,
        "--samples", 3, "--temperature", 1.5,
    ]  # fmt: skip
    done = edge_rag(*command, home=home)
    assert "loss on dev" in done.stdout
    pairs = read_pairs(newest_pairs(tmp_path / "rose"))
    assert pairs
    for pair in pairs:
        assert pair.chosen != pair.rejected
        if not pair.answers:
            assert pair.chosen == NOT_FOUND
    dev = [row["dev_preferred"] for row in read_rows(tmp_path / "rose" / METRICS) if "dev_preferred" in row]
    assert dev[-1] >= dev[0]
    shown = edge_rag("train", "rose", "inspect", tmp_path / "rose", "--limit", 2, home=home).stdout
    assert shown.count("chosen ") == 2
    assert pairs[0].question in shown
    rows, scores = (tmp_path / "rose" / "rows" / f"{name}.jsonl" for name in ("responses", "scores"))
    sampled, scored = rows.read_bytes(), scores.read_bytes()
    shutil.rmtree(tmp_path / "rose" / "model")
    shutil.rmtree(tmp_path / "rose" / "pairs-1")
    edge_rag(*command, home=home)  # what was sampled is dear, and found again
    assert (rows.read_bytes(), scores.read_bytes()) == (sampled, scored)
    assert read_pairs(newest_pairs(tmp_path / "rose")) == pairs
    command[command.index(tmp_path / "rose")] = tmp_path / "other"
    edge_rag(*command, "--loss", "dpo", "--pick", "random", "--responses", tmp_path / "rose", home=home)
    for name, stored in (("responses", sampled), ("scores", scored)):
        assert sorted((tmp_path / "other" / "rows" / f"{name}.jsonl").read_bytes()) == sorted(stored)
    losses = [row["dev_loss"] for row in read_rows(tmp_path / "other" / METRICS) if "dev_loss" in row]
    assert losses[0] == pytest.approx(math.log(2), abs=0.01)  # nothing was gained on what the writer thought of them
    command[command.index(tmp_path / "other")] = tmp_path / "joined"
    edge_rag(*command, "--loss", "dpo", "--together", 3, home=home)
    examples = read_rows(tmp_path / "joined" / "examples" / "train.jsonl")
    assert len({tuple(p["text"] for p in e["passages"]) for e in examples}) < 0.6 * len(examples)
    dev = [row["dev_preferred"] for row in read_rows(tmp_path / "joined" / METRICS) if "dev_preferred" in row]
    assert dev[-1] >= dev[0]
    done = edge_rag(*command, "--prompt-loss", "--together", 3, home=home, expect=2)
    assert "leave out --prompt-loss" in done.stderr


def test_an_adapter_that_is_none_is_said_so(base: Path, questions: Path, tmp_path: Path, home: Path) -> None:
    command = ["train", "rose", "--base", base, "--adapter", base, "--set", questions, "--out", tmp_path / "rose"]
    done = edge_rag(*command, home=home, expect=2)
    assert "it holds no adapter_config.json" in done.stderr
    assert not (tmp_path / "rose").exists()


@pytest.mark.slow
def test_a_model_that_writes_nothing_of_use_is_said_so(base: Path, questions: Path, tmp_path: Path, home: Path) -> None:
    command = ["train", "rose", "--base", base, "--set", questions, "--out", tmp_path / "rose", "--limit", 6, "--samples", 1,
               "--others", 2, "--lora-rank", 4]  # fmt: skip
    done = edge_rag(*command, home=home, expect=1)
    assert "no pair came out" in done.stderr
    assert "--adapter" in done.stderr
    assert "Traceback" not in done.stderr


# --- what is right, wrong, and sound


def example(
    *answers: str,
    text: str = "The keeper Thomas Moar lit the lamp in 1849, when the tower was new.",
    style: Style = "words",
) -> Example:
    passage = Passage(0, 0, "p", "Tower", "Tower", None, 0, len(text), text, 0.0)
    return Example("s:q#0", "s", "Who lit the lamp first?", answers, (passage,), (0,) if answers else (), style)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Thomas Moar", "right"),
        ("thomas moar.", "right"),
        ("The keeper", "wrong"),
        ("Moar", "unclear"),  # part of the answer: perhaps an alias
        ("Thomas B. Moar", "unclear"),  # nearly right, which is no example of right
        ("It was Thomas Moar who lit it", "unclear"),  # holds the answer
        (NOT_FOUND, "wrong"),
        ("this is not in these documents", "wrong"),
        ("", "unclear"),
    ],
)
def test_answers_are_judged_by_all_that_is_accepted(answer: str, kind: str) -> None:
    assert is_right(answer, example("Thomas Moar", "T. Moar")) == kind


def test_where_nothing_tells_only_to_say_so_is_right() -> None:
    assert is_right(NOT_FOUND, example()) == is_right(NOT_FOUND.lower(), example()) == "right"
    assert is_right("Thomas Moar", example()) == "wrong"
    assert is_right("That is not in these documents.", example()) == "unclear"


def test_the_same_answer_in_odd_letters_is_no_other_one() -> None:
    found = Responses()
    for text in ("Thomas Moar", "thomas moar.", "T. Moar"):
        found.add_right(text)
    assert found.right == {"Thomas Moar", "T. Moar"}


def test_what_was_cut_off_is_no_example() -> None:
    words, reasoned = example("Thomas Moar"), example("Thomas Moar", style="rationale")
    assert judge(Sampled("Thomas Moar", -1.0, 3, False), words) == "unclear"
    assert judge(Sampled("Thomas Moar", -1.0, 3, True), words) == "right"
    assert judge(Sampled("Thomas Moar", -1.0, 3, True), reasoned) == "unclear"  # no mark
    assert judge(Sampled("He did. Answer: the cook", -1.0, 3, True), reasoned) == "wrong"


@pytest.mark.parametrize(
    ("reasons", "sound"),
    [
        ("The passage says that the keeper lit the lamp when the tower was new.", True),
        ("Thomas Moar lit the lamp first.", False),  # the question and the answer, and nothing else
        ("The answer is Thomas Moar because the answer is Thomas Moar.", False),
        ("Photosynthesis converts sunlight into chemical energy, as keeper and tower.", False),  # made up
        ("keeper tower", False),
        ("The keeper lit the lamp, the tower was new. Answer: Thomas Moar", False),
    ],
)
def test_reasons_must_come_from_the_passages(reasons: str, sound: bool) -> None:
    assert is_sound(reasons, example("Thomas Moar")) is sound


def test_the_hardest_pair_is_the_right_one_least_likely_and_the_wrong_one_most_likely() -> None:
    right, wrong = {"a": -3.0, "b": -1.0}, {"c": -2.0, "d": -0.5}
    assert choose(right, wrong, "hardest", "") == ("a", "d")
    assert choose(right, wrong, "easiest", "") == ("b", "c")
    drawn = {choose(right, wrong, "random", str(seed)) for seed in range(50)}
    assert drawn == {("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")}


# --- reasons that are quotes


def two_hops(*answers: str, style: Style = "rationale") -> Example:
    first = "The tower is old. Skerry light was built by the engineer Alan Howe. It is white."
    second = "Alan Howe was a painter, too. He was born in Wick. He died at sea."
    shown = [("Skerry", first), ("Rock", "Wick is a town where engineers are born."), ("Alan Howe", second)]
    passages = tuple(
        Passage(n, n, title, title, title, None, 0, len(text), text, 0.0) for n, (title, text) in enumerate(shown)
    )
    return Example("s:q#0", "s", "Where was the engineer of Skerry light born?", answers, passages, (0, 2), style)


def test_reasons_quote_what_leads_to_the_answer_and_then_what_holds_it() -> None:
    assert quotes(two_hops("Wick")) == ["Skerry light was built by the engineer Alan Howe.", "He was born in Wick."]
    assert reasoned_target(two_hops("Wick")).endswith("He was born in Wick. Answer: Wick")
    assert is_sound(reasons_of(reasoned_target(two_hops("Wick"))), two_hops("Wick"))


def test_a_verdict_is_led_to_by_a_sentence_of_each_passage() -> None:
    assert len(quotes(two_hops("yes"))) == 2
    assert reasoned_target(two_hops("no")).endswith("Answer: no")


def test_without_an_answer_there_are_no_reasons() -> None:
    assert reasoned_target(two_hops()) == NOT_FOUND


@pytest.mark.slow
def test_a_model_learns_to_give_reasons_and_goes_on_from_an_adapter(
    base: Path, questions: Path, trained: Path, tmp_path: Path
) -> None:
    adapter = trained / "model" / "adapter"
    command = supervised(
        base, questions, tmp_path / "run", "--adapter", adapter, "--prompt", "rationale", "--prompt", "words"
    )
    edge_rag(*command, "--epochs", 1, home=trained.parent / "home")
    rows = read_rows(tmp_path / "run" / "examples" / "train.jsonl")
    assert {row["style"] for row in rows} == {"rationale", "words"}
    first, begun = (
        json.loads((run / "model" / "fitted.json").read_text())["first_loss"] for run in (tmp_path / "run", trained)
    )
    assert first < begun
