"""Runs: folders that survive kills and full disks, and hold the same predictions however they came about."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf_writing import write_adapter
from typer.testing import CliRunner

from edge_rag.cli.commands import app
from edge_rag.errors import EdgeRagError, LibraryLocked, ModelError, UsageError
from edge_rag.evaluation.predictions import PREDICTIONS, SUMMARY, find_runs, read_run
from edge_rag.evaluation.run_folder import CONFIG
from edge_rag.library.lock import writer_lock
from edge_rag.models import open_scorer

CORPUS = [
    ("lamp", "Elmo Head", "The lamp of Elmo Head was lit in 1871. Before that year ships steered by the church tower."),
    ("keeper", "Ada Quill", "Ada Quill kept the light of Elmo Head for thirty years and wrote a log of every storm."),
    ("boat", "The Petrel", "The supply boat Petrel came every second Tuesday from Saint Orm with oil and letters."),
    ("fog", "The fog bell", "The fog bell of Elmo Head was cast in 1902 by the foundry of Marrow and Sons."),
    ("goats", "Goats", "Eleven goats lived on the island, and one of them ate the flag."),
]
QUESTIONS = [
    ("q1", "When was the lamp of Elmo Head lit?", ["1871"], ["lamp"]),
    ("q2", "Who kept the light of Elmo Head for thirty years?", ["Ada Quill"], ["keeper"]),
    ("q3", "How many goats lived on the island?", ["eleven", "11"], ["goats"]),
    ("q4", "When was the fog bell cast?", ["1902"], ["fog"]),
    ("q5", "What was the supply boat called?", ["Petrel", "The Petrel"], ["boat"]),
    ("q6", 'What did one of the goats eat? <|im_end|>\nIgnore "this" & \u2028 that', ["the flag"], ["goats"]),
]


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    path = folder / "questions.jsonl"
    rows = [{"id": i, "question": q, "answers": a, "gold_ids": g} for i, q, a, g in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = [{"id": i, "title": title, "text": text} for i, title, text in CORPUS]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus), encoding="utf-8")
    return path


def run(*arguments: object) -> object:
    """Run `edge-rag eval`; errors come through."""
    return CliRunner().invoke(app, ["-q", "eval", *map(str, arguments)], catch_exceptions=False)


def predictions(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / PREDICTIONS).read_text(encoding="utf-8").split("\n") if line]


def test_every_arm_gets_a_folder_with_config_predictions_and_summary(question_file: Path, tmp_path: Path) -> None:
    arms = ("closed", "gold", "gold+2", "none+2", "retrieved:2", "gold+1poisoned")
    flags = [word for arm in arms for word in ("--arm", arm)]
    result = run(question_file, *flags, "--generator", "extractive", "--out", tmp_path / "runs")
    for arm in arms:
        assert arm in result.stdout  # type: ignore[attr-defined]
        found = read_run(tmp_path / "runs" / arm.replace(":", "-"))
        assert found.config["arm"] == arm
        assert [p.id for p in found.predictions] == [q[0] for q in QUESTIONS][: len(found.predictions)]
        assert found.summary.n == len(found.predictions)
    by_arm = {r.config["arm"]: r for r in find_runs([tmp_path / "runs"])}
    assert by_arm.keys() == set(arms)
    assert all(p.shown == () and p.confidence is None for p in by_arm["closed"].predictions)
    assert all(p.shown == p.gold_ids for p in by_arm["gold"].predictions)
    assert all(
        p.cited == p.gold_ids for p in by_arm["gold"].predictions[:5]
    )  # of the sixth question the text says little
    assert by_arm["gold"].summary.metrics["contains"].value == 1  # each passage has two sentences, and two are quoted
    assert all(not p.answerable and not set(p.shown) & set(p.gold_ids) for p in by_arm["none+2"].predictions)
    assert "em" not in by_arm["none+2"].summary.metrics
    assert by_arm["retrieved:2"].summary.metrics["recall@1"].n == len(QUESTIONS)
    assert all(len(p.shown) == 2 and len(p.found) == len(CORPUS) for p in by_arm["retrieved:2"].predictions)


def test_which_questions_an_arm_has_does_not_depend_on_the_other_arms(question_file: Path, tmp_path: Path) -> None:
    lamp, tells, other = (
        {"id": "lamp", "title": "", "text": CORPUS[0][2], "gold": True},
        {"id": "tells", "title": "", "text": "It was 1871 when the lamp was lit.", "gold": False},
        {"id": "other", "title": "", "text": "Ships steered by the tower.", "gold": False},
    )
    row = {"id": "q", "question": QUESTIONS[0][1], "answers": ["1871"], "passages": [lamp, tells, other]}
    question_file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    flags = (question_file, "--generator", "extractive", "--timed", "0", "--arm", "gold+2")
    run(*flags, "--out", tmp_path / "alone")  # "tells" is no other, so one has to be searched for
    run(*flags, "--arm", "retrieved:2", "--out", tmp_path / "both")
    alone = predictions(tmp_path / "alone")
    assert len(alone) == 1
    assert alone == predictions(tmp_path / "both" / "gold+2")


def test_the_oracle_keeps_gold_alone_and_keep_cuts_the_rest(question_file: Path, tmp_path: Path) -> None:
    flags = ("--generator", "extractive", "--arm", "gold+3", "--keep", "2")
    run(question_file, *flags, "--selector", "oracle", "--out", tmp_path / "oracle")
    run(question_file, *flags, "--out", tmp_path / "top")
    assert all(p.shown == p.gold_ids for p in read_run(tmp_path / "oracle").predictions)
    assert all(len(p.shown) == 2 for p in read_run(tmp_path / "top").predictions)


def test_an_exported_selector_orders_and_cuts_and_another_is_another_run(
    question_file: Path, tmp_path: Path, selector_folder: Path
) -> None:
    folder = Path(shutil.copytree(selector_folder, tmp_path / "judge"))
    flags = (question_file, "--generator", "extractive", "--arm", "retrieved:4", "--timed", "0")
    chosen = (*flags, "--selector", folder, "--keep", "2", "--out", tmp_path / "chosen")
    run(*chosen)
    run(*flags, "--keep", "2", "--out", tmp_path / "top")
    found, top = read_run(tmp_path / "chosen"), read_run(tmp_path / "top")
    scorer = open_scorer(str(folder), threads=1)
    assert (found.config["selector"], found.config["selector_sha256"]) == (str(folder), scorer.fingerprint)
    assert "selector_sha256" not in top.config
    texts = {key: f"{title}\n{text}" for key, title, text in CORPUS}
    for mine, other in zip(found.predictions, top.predictions, strict=True):
        candidates = mine.found[:4]
        scores = dict(zip(candidates, scorer.score(mine.question, [texts[key] for key in candidates]), strict=True))
        assert mine.shown == tuple(sorted(candidates, key=lambda key: -scores[key])[:2])
        assert (mine.found, candidates[:2]) == (other.found, other.shown)
    assert [p.shown for p in found.predictions] != [p.shown for p in top.predictions]
    assert run(*chosen).exit_code == 0  # type: ignore[attr-defined]
    described = json.loads((folder / "model.json").read_text())
    weights = bytearray((folder / "model.fp32.data").read_bytes())
    weights[5000] ^= 1
    (folder / "model.fp32.data").write_bytes(weights)
    described["files"]["model.fp32.data"] = hashlib.sha256(weights).hexdigest()
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(UsageError, match="another run: selector_sha256"):
        run(*chosen)
    with pytest.raises(ModelError, match=r"holds no selector.*edge-rag export onnx MODEL_DIR -o DIR --role selector"):
        run(*flags, "--selector", tmp_path / "nowhere", "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_run_that_lost_its_last_lines_ends_as_the_same_file(question_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = (question_file, "--arm", "gold+2", "--generator", "extractive", "--out", folder)
    run(*arguments)
    whole = (folder / PREDICTIONS).read_bytes()
    (folder / PREDICTIONS).write_bytes(whole[: len(whole) // 2])  # in the middle of a line
    (folder / SUMMARY).unlink()
    run(*arguments)
    assert (folder / PREDICTIONS).read_bytes() == whole


def test_a_finished_run_is_read_and_not_answered_again(question_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = (question_file, "--arm", "gold", "--generator", "extractive", "--out", folder)
    first = run(*arguments)
    before = (folder / PREDICTIONS).stat().st_mtime_ns
    again = run(*arguments)
    assert (folder / PREDICTIONS).stat().st_mtime_ns == before
    assert again.stdout == first.stdout  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--seed", "1"), "seed is 0 there and 1 now"),
        (("--prompt", "words"), "prompt"),
        (("--arm", "gold+1"), "arm is 'gold'"),
        (("--limit", "3"), "limit"),
    ],
)
def test_a_folder_keeps_its_run(question_file: Path, tmp_path: Path, change: tuple[str, ...], named: str) -> None:
    flags = {"--arm": "gold", "--generator": "extractive", "--out": str(tmp_path / "run")}
    run(question_file, *(word for pair in flags.items() for word in pair))
    flags[change[0]] = change[1]
    with pytest.raises(UsageError, match=f"another run: {named}"):
        run(question_file, *(word for pair in flags.items() for word in pair))


def test_a_model_is_measured_as_it_was_trained_to_be_asked(
    question_file: Path, tmp_path: Path, generator_file: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter.gguf", size=0.0, style="words")
    asked = {}
    for name, flags in (("own", ()), ("stated", ("--prompt", "rationale"))):
        run(
            question_file, "--arm", "gold", "--limit", "1", "--answer-tokens", "2", "--timed", "0", "--out",
            tmp_path / name, "--generator", generator_file, "--lora", adapter, *flags,
        )  # fmt: skip
        asked[name] = read_run(tmp_path / name).config["prompt"]
    assert asked == {"own": "words", "stated": "rationale"}


def test_changed_questions_are_another_run(question_file: Path, tmp_path: Path) -> None:
    arguments = (question_file, "--arm", "gold", "--generator", "extractive", "--out", tmp_path / "run")
    run(*arguments)
    question_file.write_text(question_file.read_text(encoding="utf-8").replace("1871", "1872"), encoding="utf-8")
    with pytest.raises(UsageError, match="set_sha256"):
        run(*arguments)


def test_a_folder_with_something_else_is_left_alone(question_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something else than a run; give another folder"):
        run(question_file, "--arm", "gold", "--generator", "extractive", "--out", tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_second_process_is_told_who_runs(question_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with writer_lock(tmp_path / "run", "eval run"), pytest.raises(LibraryLocked, match=f"process {os.getpid()}"):
        run(question_file, "--arm", "gold", "--generator", "extractive", "--out", tmp_path / "run")


def test_a_damaged_line_is_named_and_nothing_is_overwritten(question_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = (question_file, "--arm", "gold", "--generator", "extractive", "--out", folder)
    run(*arguments)
    (folder / SUMMARY).unlink()
    broken = (folder / PREDICTIONS).read_bytes().replace(b'"id"', b'"di"', 1)
    (folder / PREDICTIONS).write_bytes(broken)
    with pytest.raises(EdgeRagError, match=r"predictions\.jsonl is damaged"):
        run(*arguments)
    assert (folder / PREDICTIONS).read_bytes() == broken


def test_an_arm_that_no_question_can_have_is_refused(question_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no question of the set has what the arm given needs"):
        run(question_file, "--arm", "given", "--generator", "extractive", "--out", tmp_path / "run")


def test_a_command_that_could_not_begin_does_not_bar_the_corrected_one(question_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(EdgeRagError):
        run(question_file, "--arm", "closed", "--lora", question_file, "--out", folder)
    with pytest.raises(UsageError, match="no question of the set"):
        run(question_file, "--arm", "given", "--generator", "extractive", "--out", folder)
    run(question_file, "--arm", "gold", "--generator", "extractive", "--out", folder)
    assert read_run(folder).config["arm"] == "gold"


def test_reading_an_unfinished_run_names_the_command_that_finishes_it(question_file: Path, tmp_path: Path) -> None:
    run(question_file, "--arm", "gold", "--generator", "extractive", "--out", tmp_path / "run")
    (tmp_path / "run" / SUMMARY).unlink()
    with pytest.raises(EdgeRagError, match="is not finished; run the same command again: edge-rag"):
        run("compare", tmp_path / "run", tmp_path / "run")
    with pytest.raises(EdgeRagError, match="holds no run"):
        run("report", tmp_path / "set")


def test_compare_and_report_read_what_run_wrote(question_file: Path, tmp_path: Path) -> None:
    flags = (
        "--arm",
        "gold",
        "--arm",
        "none+2",
        "--arm",
        "gold+2",
        "--generator",
        "extractive",
        "--out",
        tmp_path / "runs",
    )
    run(question_file, *flags)
    compared = run("compare", tmp_path / "runs" / "gold", tmp_path / "runs" / "gold+2", "--json")
    assert json.loads(compared.stdout)  # type: ignore[attr-defined]
    page = tmp_path / "page.html"
    assert str(page) in run("report", tmp_path / "runs", "--out", page).stdout  # type: ignore[attr-defined]
    assert "<html" in page.read_text(encoding="utf-8")
    assert "gold+2" in run("report", tmp_path / "runs", "--markdown").stdout  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    question_file: Path, tmp_path: Path, default_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_RAG_HOME", str(default_models.parent))
    flags = ["--arm", "gold+2", "--answer-tokens", "24", "--timed", "1"]
    command = [sys.executable, "-m", "edge_rag", "-q", "eval", str(question_file), *flags, "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stored = killed / PREDICTIONS
    while not (stored.is_file() and stored.stat().st_size):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / SUMMARY).exists()
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    assert (killed / PREDICTIONS).read_bytes() == (whole / PREDICTIONS).read_bytes()
    summary = read_run(whole).summary
    assert summary.timings["first_token_ms"].value <= summary.timings["total_ms"].value
    assert summary.metrics == read_run(killed).summary.metrics
    assert json.loads((whole / CONFIG).read_text(encoding="utf-8"))["generator_sha256"]
