"""What a selector's scores are found to mean: margin, threshold and when it is settled, from scores that are known."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the [export] extra")

from edge_rag.export.selector import FEWEST, NEVER, REFUSED, Scored, calibrate, export_selector, figures

from edge_rag.errors import UsageError


def question(*scores: float, gold: tuple[int, ...] = (0,)) -> Scored:
    return Scored(np.array(scores), np.array([n in gold for n in range(len(scores))]))


def questions(n: int, n_candidates: int = 10, apart: float = 6.0, seed: int = 0) -> list[Scored]:
    """Two gold passages each, that score higher by `apart` and differ by up to 1."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        gold = tuple(sorted(draw.choice(n_candidates, 2, replace=False).tolist()))
        scores = draw.normal(-3, 0.5, n_candidates)
        scores[list(gold)] = [-3 + apart, -3 + apart - draw.uniform(0, 1)]
        found.append(question(*scores, gold=gold))
    return found


def test_the_margin_keeps_nearly_all_gold_and_little_else() -> None:
    scored = questions(200)
    found = calibrate(scored, 4)
    assert 0.9 < found.margin < 1.0
    report = figures(scored, found, 4)
    assert report["gold_in_best"][0] == 1.0 and 0.95 <= report["gold_kept"][0] < 0.97
    assert report["mean_kept"] < 2.0


def test_gold_that_never_comes_among_the_best_does_not_widen_the_margin() -> None:
    lost = [question(3.0, 2.9, 2.8, -5.0, gold=(0, 3)) for _ in range(50)]
    assert calibrate([*questions(50), *lost], 2).margin < 1.0


def test_the_confidence_tells_what_is_there_from_what_is_not() -> None:
    found = calibrate(questions(200), 4)
    report = figures(questions(200), found, 4)
    assert report["auroc"][0] == 1.0 and report["wrongly_refused"][0] == report["wrongly_answered"][0] == 0.0
    assert found.confidence(3.0) >= found.threshold > found.confidence(-2.0)
    blurred = questions(200, apart=1.2)
    report = figures(blurred, calibrate(blurred, 4), 4)
    assert 0.5 < report["auroc"][0] < 1.0
    assert report["wrongly_refused"][0] == pytest.approx(report["wrongly_answered"][0], abs=0.05)


def test_twins_that_cannot_be_told_are_answered_rather_than_good_questions_refused() -> None:
    alike = questions(200, apart=0.6)
    report = figures(alike, calibrate(alike, 4), 4)
    assert 0 < report["wrongly_refused"][0] <= REFUSED < report["wrongly_answered"][0]


def test_early_only_where_the_rest_would_have_changed_nothing() -> None:
    assert calibrate(questions(100, n_candidates=8), 4).settled == NEVER  # all are scored at once
    first = [question(5 + n / 100, *[-3.0] * 20) for n in range(100)]
    late = [question(*[-3.0] * 20, 9.0, gold=(20,)) for _ in range(20)]
    assert calibrate([*first, *late], 1).settled == pytest.approx(5.0)
    beaten = [question(5.5, *[-3.0] * 19, 9.0, gold=(20,)) for _ in range(20)]
    assert calibrate([*first, *beaten], 1).settled > 5.5


def test_a_run_without_a_selector_or_with_too_few_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no selector that was trained"):
        export_selector(tmp_path, tmp_path / "out")
    (tmp_path / "model" / "model").mkdir(parents=True)
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "dev.jsonl").write_text("")
    with pytest.raises(UsageError, match=f"0 dev questions .* leaves {FEWEST} or more"):
        export_selector(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
