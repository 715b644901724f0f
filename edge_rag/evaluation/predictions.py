"""What a run stores of one question, and the folder that it is stored in.

RUN/config.json         what was asked, of whom, how: written first; a run goes on only under the same one
RUN/predictions.jsonl   one Prediction a line, in the order in which they were made
RUN/summary.json        written last: figures with n and interval, speed, memory
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_rag.errors import EdgeRagError
from edge_rag.evaluation.run_folder import CONFIG

PREDICTIONS = "predictions.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class Prediction:
    id: str  # of the question, unique in its set
    question: str
    answers: tuple[str, ...]  # any of them is right; () where the set has none
    answerable: bool  # False: the right reply is "not in these documents"
    gold_ids: tuple[str, ...]  # the passages that hold the answer, as the set says
    shown: tuple[str, ...]  # ids of the passages in the prompt, in their order there
    found: tuple[str, ...]  # ids of what the search brought back, best first; () where nothing was searched
    output: str  # what the generator wrote
    answer: str  # what is scored: the output without its rationale and marks
    refused: bool  # the rule, or the generator in so many words, says "not in these documents"
    confidence: float | None  # of the rule, that the passages hold the answer; None in a closed book
    logprob: float | None  # mean over the output's tokens; None where the generator does not tell
    cited: tuple[str, ...]  # ids of the passages that citations stand in
    prompt_tokens: int
    answer_tokens: int
    scores: Mapping[str, float] = field(
        default_factory=dict
    )  # by the names in scoring.METRICS; absent: not defined here


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95% bootstrap interval over n questions."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Summary:
    n: int  # questions
    metrics: Mapping[str, Interval]  # scores are fractions from 0 to 1, tokens are counts
    risk_coverage: Sequence[
        tuple[float, float]
    ]  # (share of questions answered, share of these that are wrong), most confident first
    timings: Mapping[str, Interval]  # of single questions, timed one at a time: first_token_ms, total_ms
    seconds: float  # for all questions, batched; of the last session only if the run was interrupted
    tokens_per_second: float  # prompts and answers together
    peak_memory_mb: float


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run, read back."""

    folder: Path
    config: Mapping[str, Any]  # "set", "arm", "generator" ... : see run.py
    predictions: tuple[Prediction, ...]
    summary: Summary

    @property
    def name(self) -> str:
        return f"{self.config['set']} {self.config['arm']}"


def read_run(folder: Path) -> Run:
    """Read a finished run. One that was interrupted, or is none, is an error that says how to mend it."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EdgeRagError(f"{folder} is no run: it has no {CONFIG}", mend=_MEND) from None
    except (OSError, ValueError) as error:
        raise EdgeRagError(f"{folder / CONFIG} cannot be read: {error}", mend=_MEND) from error
    if not (folder / SUMMARY).is_file():
        raise EdgeRagError(f"{folder} is not finished", mend=f"run the same command again: {config.get('command', '')}")
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return Run(folder, config, tuple(read_predictions(folder)), _summary(summary))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeRagError(f"{folder} is damaged: {error}", mend=_MEND) from error


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the finished runs that these folders are, or hold at any depth."""
    runs = []
    for folder in folders:
        inside = [folder] if (folder / CONFIG).is_file() else sorted(p.parent for p in folder.rglob(CONFIG))
        if not inside:
            raise EdgeRagError(f"{folder} holds no run", mend=_MEND)
        runs += [read_run(path) for path in inside]
    return runs


def read_predictions(folder: Path) -> list[Prediction]:
    """Read the predictions of a run, finished or not. A last line that was cut off by a kill is left out."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [from_json(json.loads(line)) for line in whole.split("\n") if line]  # a question may hold other line ends


def to_json(value: Prediction | Summary) -> dict[str, Any]:
    return asdict(value)


def from_json(row: dict[str, Any]) -> Prediction:
    texts = ("answers", "gold_ids", "shown", "found", "cited")
    values: dict[str, Any] = {key: tuple(value) if key in texts else value for key, value in row.items()}
    return Prediction(**values)


def _summary(row: dict[str, Any]) -> Summary:
    for group in ("metrics", "timings"):
        row[group] = {name: Interval(**figure) for name, figure in row[group].items()}
    row["risk_coverage"] = [(coverage, risk) for coverage, risk in row["risk_coverage"]]
    return Summary(**row)


_MEND = "make a run first: edge-rag eval SET --arm given --out RUN"
