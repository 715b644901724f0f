"""Two folders of runs are compared run by run, and on average."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import invented_runs
import pytest
from typer.testing import CliRunner

from edge_rag.cli.commands import app
from edge_rag.errors import UsageError
from edge_rag.evaluation.compare import compare
from edge_rag.evaluation.compare_folders import compare_folders, holds_several, markdown
from edge_rag.evaluation.intervals import summarise
from edge_rag.evaluation.predictions import PREDICTIONS, SUMMARY, Run, read_run
from edge_rag.evaluation.run_folder import CONFIG


def write(run: Run) -> None:
    """Store a run as edge-rag eval does."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / CONFIG).write_text(json.dumps(dict(run.config)), encoding="utf-8")
    lines = "".join(json.dumps(asdict(p)) + "\n" for p in run.predictions)
    (run.folder / PREDICTIONS).write_text(lines, encoding="utf-8")
    (run.folder / SUMMARY).write_text(json.dumps(asdict(run.summary)), encoding="utf-8")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two sets of 40 and 20 questions that share none, under two arms: B is given more distractors than A."""
    one, other = (
        invented_runs.questions(60, unanswerable=True)[:40],
        invented_runs.questions(60, unanswerable=True)[40:],
    )
    for side, extra in (("a", ""), ("b", "+8")):
        for name, asked in (("one", one), ("other", other)):
            run = invented_runs.run(f"gold{extra}", asked)
            config = dict(run.config) | {"set": name, "arm": "gold", "noise": extra}
            write(replace(run, folder=tmp_path / side / name / "gold", config=config))
    return tmp_path / "a", tmp_path / "b"


def f1(run: Run) -> list[float]:
    return [p.scores["f1"] for p in run.predictions if "f1" in p.scores]


def test_rows_are_the_comparisons_of_single_runs(folders: tuple[Path, Path]) -> None:
    a, b = folders
    found = compare_folders(a, b)
    assert [row.name for row in found.rows] == ["one (dev) gold", "other (dev) gold"]
    for row, name in zip(found.rows, ("one", "other"), strict=True):
        single = compare(read_run(a / name / "gold"), read_run(b / name / "gold"))
        expected = next(d for d in single.metrics if d.metric == "f1")
        assert (row.difference.a, row.difference.b, row.difference.n) == pytest.approx(
            (expected.a, expected.b, expected.n)
        )
        assert row.difference.difference == pytest.approx(expected.difference)
        assert row.difference.p == pytest.approx(expected.p, abs=0.02)
        assert row.difference.p_holm >= row.difference.p


def test_each_run_counts_the_same_in_an_average(folders: tuple[Path, Path]) -> None:
    a, b = folders
    average = next(d for d in compare_folders(a, b).averages if d.metric == "f1")
    for side, folder in ((average.a, a), (average.b, b)):
        means = [sum(values) / len(values) for values in (f1(read_run(folder / n / "gold")) for n in ("one", "other"))]
        assert side == pytest.approx(sum(means) / 2)
    assert average.difference == pytest.approx(average.b - average.a)
    assert average.low < average.difference < average.high


def test_a_question_under_two_arms_is_drawn_as_one(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Asked twice, the same questions say no more than once: neither interval nor p may shrink."""
    a, b = folders
    once = next(d for d in compare_folders(a / "one", b / "one").averages if d.metric == "f1")
    for side in (a, b):
        run = read_run(side / "one" / "gold")
        write(replace(run, folder=side / "one" / "given", config=dict(run.config) | {"arm": "given"}))
    twice = next(d for d in compare_folders(a / "one", b / "one").averages if d.metric == "f1")
    assert (twice.n, twice.low, twice.high, twice.p) == pytest.approx((once.n, once.low, once.high, once.p))


def test_where_each_folder_has_one_run_of_a_set_the_arm_may_differ(folders: tuple[Path, Path]) -> None:
    a, b = folders
    run = read_run(b / "one" / "gold")
    write(replace(run, config=dict(run.config) | {"arm": "gold+8"}))
    assert compare_folders(a, b).rows[0].name == "one (dev) gold → gold+8"


def test_runs_without_a_partner_are_named(folders: tuple[Path, Path]) -> None:
    a, b = folders
    run = read_run(a / "one" / "gold")
    extra = a / "third"
    write(replace(run, folder=extra, config=dict(run.config) | {"set": "third"}))
    found = compare_folders(a, b)
    assert found.unpaired == (str(extra),)
    assert f"left out, without a partner: {extra}" in markdown(found)


def test_two_runs_of_the_same_questions_and_arm_are_refused(folders: tuple[Path, Path]) -> None:
    a, b = folders
    run = read_run(a / "one" / "gold")
    write(replace(run, folder=a / "again"))
    with pytest.raises(UsageError, match="which is to be compared"):
        compare_folders(a, b)


def test_folders_without_a_common_run_or_metric_are_refused(folders: tuple[Path, Path]) -> None:
    a, b = folders
    with pytest.raises(UsageError, match="no run in"):
        compare_folders(a / "one", b / "other")
    with pytest.raises(UsageError, match="no run has the metric nonsense"):
        compare_folders(a, b, metric="nonsense")


def test_a_rate_is_averaged_over_the_runs_that_have_it(folders: tuple[Path, Path]) -> None:
    a, b = folders
    for side in (a, b):
        run = read_run(side / "one" / "gold")
        predictions = tuple(replace(p, answerable=True) for p in run.predictions)
        metrics, _ = summarise(predictions)
        write(replace(run, predictions=predictions, summary=replace(run.summary, metrics=metrics)))
    rate = next(d for d in compare_folders(a, b).averages if d.metric == "missed_refusal_rate")
    unanswerable = [p for p in read_run(a / "other" / "gold").predictions if not p.answerable]
    assert rate.n == len(unanswerable)


def test_a_run_is_told_from_a_folder_of_runs(folders: tuple[Path, Path]) -> None:
    a, _ = folders
    assert holds_several(a) and holds_several(a / "one")
    assert not holds_several(a / "one" / "gold")
    assert not holds_several(a / "nowhere")


def test_the_command_compares_folders(folders: tuple[Path, Path]) -> None:
    a, b = map(str, folders)
    shown = CliRunner().invoke(app, ["eval", "compare", a, b], catch_exceptions=False)
    assert shown.exit_code == 0 and "| average of the runs |" in shown.stdout
    found = CliRunner().invoke(app, ["eval", "compare", a, b, "--metric", "em", "--json"], catch_exceptions=False)
    assert json.loads(found.stdout)["metric"] == "em" and len(json.loads(found.stdout)["rows"]) == 2


def test_a_run_finds_its_partner_in_a_folder(folders: tuple[Path, Path]) -> None:
    a, b = folders
    shown = CliRunner().invoke(app, ["eval", "compare", str(a / "one" / "gold"), str(b)], catch_exceptions=False)
    assert "| one (dev) gold |" in shown.stdout and f"without a partner: {b / 'other' / 'gold'}" in shown.stdout
