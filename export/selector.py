"""From a run that trained a selector to the folder that the runtime opens: the graph, and what its scores mean.

Scores are calibrated on the dev questions of the run, of which nothing was learnt but when to stop, with the exported model in
each of its precisions. Each question counts twice: with its candidates as they were found, and without the gold ones, as if the
search had missed them. That second kind is the hardest of those that should be refused: what is left is still about the thing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rag.answering.selector import AT_ONCE, scored_text
from edge_rag.errors import ModelError, UsageError
from edge_rag.evaluation.cases import as_passage
from edge_rag.evaluation.intervals import auroc, mean_interval
from edge_rag.evaluation.logistic import equal_error, fit_logistic
from edge_rag.evaluation.predictions import Interval
from edge_rag.evaluation.question_sets import SetPassage
from edge_rag.evaluation.run_folder import read_rows
from edge_rag.interfaces import Progress
from edge_rag.models.onnx_folder import MANIFEST, PRECISIONS
from edge_rag.models.selector import Calibration, OnnxScorer

from . import outputs
from .to_onnx import export_onnx

NEARLY_ALL = 0.95  # of the questions whose gold the best ones would hold, those whose gold is kept
REFUSED = 0.07  # of the questions whose gold is there, those that may be refused: as many as by the rule for the search's scores
SAFELY = 0.98  # of the questions that are settled early, those in which the rest would have changed nothing
NEVER = 1e6  # a score that none reaches
FEWEST = 20  # questions that say anything

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of a question's candidates, in the order of the search, and which of them are gold."""

    scores: Floats
    gold: npt.NDArray[np.bool_]

    @property
    def without_gold(self) -> "Scored":
        return Scored(self.scores[~self.gold], self.gold[~self.gold])

    def keeps_all(self, most: int, margin: float) -> bool:
        """Tell whether all gold is among the best ones that are kept."""
        order = np.argsort(-self.scores, kind="stable")
        near = (self.scores[order] >= self.scores[order[0]] - margin)[:most]
        return bool(self.gold[order[: len(near)][near]].sum() == self.gold.sum())


def export_selector(
    run: Path, target: Path, *, precision: str = "int8", name: str = "", most: int = 4, timed: bool = True, threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the folder `target`; return the report. `most`: passages that the runtime will keep at most."""
    groups = read_groups(run)
    outputs.check_target(target, force=False, mend="give another folder, or remove it")
    with outputs.workplace(target) as work:
        made = work / "selector"
        report = export_onnx(
            run / "model" / "model", made, "selector", precision=precision, name=name or run.resolve().name, timed=timed,
            threads=threads, progress=progress,
        )  # fmt: skip
        report["file"], report["calibration"] = target.name, {}
        manifest = json.loads((made / MANIFEST).read_text(encoding="utf-8"))
        manifest["calibration"] = {}
        for each in [p for p in PRECISIONS if p in report["precisions"]]:
            scored = score(OnnxScorer(made, precision=each, threads=threads), groups, progress)
            found = calibrate(scored, most)
            manifest["calibration"][each] = {key: round(value, 5) for key, value in asdict(found).items()}
            report["calibration"][each] = manifest["calibration"][each] | figures(scored, found, most)
        (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        outputs.publish_folder(made, target, report)
    return report


def read_groups(run: Path) -> list[dict[str, Any]]:
    """Read the dev questions that a run has candidates of, some of them gold and some not."""
    path = run / "groups" / "dev.jsonl"
    if not path.is_file() or not (run / "model" / "model").is_dir():
        raise UsageError(
            f"{run} holds no selector that was trained",
            mend="give the folder of a run of train gain, radio or relevance",
        )
    found = []
    for row in read_rows(path):
        members = sorted((m for m in row["members"] if m["rank"] is not None), key=lambda m: m["rank"])
        if len({m["gold"] for m in members}) == 2:
            found.append({"question": row["question"], "members": members})
    if len(found) < FEWEST:
        raise UsageError(
            f"{run} has {len(found)} dev questions with gold passages and others, too few to calibrate with",
            mend=f"train with a --dev-limit that leaves {FEWEST} or more, or use edge-rag export onnx --role selector",
        )
    return found


def score(scorer: OnnxScorer, groups: Sequence[dict[str, Any]], progress: Progress | None) -> list[Scored]:
    found = []
    for done, group in enumerate(groups, start=1):
        members = group["members"]
        texts = [scored_text(as_passage(0, SetPassage(m["id"], m["title"], m["text"]))) for m in members]
        scores = scorer.score(group["question"], texts).astype(np.float64)
        if not np.isfinite(scores).all():
            raise ModelError("a score of the selector is no number", mend="train it again with a lower learning rate")
        found.append(Scored(scores, np.array([m["gold"] for m in members], dtype=bool)))
        if progress:
            progress("calibrate", done, len(groups), scorer.precision)
    return found


def calibrate(scored: Sequence[Scored], most: int) -> Calibration:
    margin = _margin(scored, most)
    best, held = _answerable(scored, most, margin)
    bias, slope = fit_logistic(np.stack([np.ones(len(best)), best], 1), held, np.ones(len(best)))
    sure = 1 / (1 + np.exp(-(bias + slope * best)))
    n = len(scored)
    # Both errors equally frequent, but for hard twins: a quarter of all good questions would be refused to tell these.
    threshold = min(equal_error(sure[:n], sure[n:]), float(np.quantile(sure[:n], REFUSED, method="lower")))
    return Calibration(
        slope=float(slope), bias=float(bias), threshold=threshold, margin=margin, settled=_settled(scored, most, margin)
    )


def _answerable(scored: Sequence[Scored], most: int, margin: float) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the best scores, and whether what is kept holds all gold: of the questions, then of their twins without it."""
    best = [s.scores.max() for s in scored] + [s.without_gold.scores.max() for s in scored]
    held = [s.keeps_all(most, margin) for s in scored] + [False] * len(scored)
    return np.array(best), np.array(held)


def _margin(scored: Sequence[Scored], most: int) -> float:
    """Return the smallest one that keeps nearly all gold that the best ones hold."""
    wanted = NEARLY_ALL * sum(s.keeps_all(most, np.inf) for s in scored)
    margins = sorted({float(d) for s in scored for d in s.scores.max() - s.scores[s.gold]})
    return next((m for m in margins if sum(s.keeps_all(most, m) for s in scored) >= wanted), margins[-1])


def _settled(scored: Sequence[Scored], most: int, margin: float) -> float:
    """Return the lowest best score of the first candidates from which on the others can be left alone."""
    early = []
    for s in scored:
        if len(s.scores) > AT_ONCE:
            few, every = (_kept(s.scores[:n], most, margin) for n in (AT_ONCE, None))
            early.append((float(s.scores[:AT_ONCE].max()), few == every))
    best, same = (np.array(values) for values in zip(*early, strict=True)) if early else (np.empty(0), np.empty(0))
    for value in np.unique(best):
        if (best >= value).sum() >= FEWEST and same[best >= value].mean() >= SAFELY:
            return float(value)
    return NEVER


def _kept(scores: Floats, most: int, margin: float) -> list[int]:
    order = np.argsort(-scores, kind="stable")[:most]
    return [int(n) for n in order if scores[n] >= scores[order[0]] - margin]


def figures(scored: Sequence[Scored], found: Calibration, most: int) -> dict[str, Any]:
    """Measure, on the questions that it was found on, what the calibration does."""
    best, held = _answerable(scored, most, found.margin)
    sure = np.array([found.confidence(float(value)) for value in best])
    n = len(scored)
    kept = [len(_kept(s.scores, most, found.margin)) for s in scored]
    early = [s.scores[:AT_ONCE].max() >= found.settled for s in scored]
    is_answerable = np.arange(2 * n) < n
    return {
        "n_questions": n,
        "most": most,
        "auroc": _rounded(auroc(sure, is_answerable)),
        "wrongly_refused": _rounded(mean_interval((sure[:n] < found.threshold).astype(float))),
        "wrongly_answered": _rounded(mean_interval((sure[n:] >= found.threshold).astype(float))),
        "gold_kept": _rounded(mean_interval(held[:n].astype(float))),
        "gold_in_best": _rounded(mean_interval(np.array([s.keeps_all(most, np.inf) for s in scored], dtype=float))),
        "mean_kept": round(float(np.mean(kept)), 2),
        "settled_early": round(float(np.mean(early)), 3),
    }


def _rounded(interval: Interval) -> list[float]:
    return [round(value, 3) for value in (interval.value, interval.low, interval.high)]
