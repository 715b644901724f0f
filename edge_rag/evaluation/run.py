"""Answer a question set under several arms, and store each as a run: `edge-rag eval run`.

load the set -> prepare the cases -> answer them -> score each answer as it comes -> sum up.
A run that was interrupted goes on where it stopped, and ends as the same predictions: no answer depends on another.
"""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_rag.answering import NOT_FOUND, GenerativeSelector, OnnxSelector, evidence
from edge_rag.answering.cite import locate
from edge_rag.answering.prompt import PROMPT_VERSION, final_answer
from edge_rag.errors import UsageError
from edge_rag.evaluation.answerers import Answerer, Reply, Who, open_answerer, time_singly
from edge_rag.evaluation.arms import Arm
from edge_rag.evaluation.cases import SELECTORS, Case, Choice, cases_of
from edge_rag.evaluation.intervals import mean_interval, summarise
from edge_rag.evaluation.predictions import (
    PREDICTIONS,
    SUMMARY,
    Interval,
    Prediction,
    Run,
    Summary,
    from_json,
    read_run,
    to_json,
)
from edge_rag.evaluation.processes import memory_of
from edge_rag.evaluation.question_sets import QuestionSet
from edge_rag.evaluation.run_folder import CONFIG, Rows, check_config, json_text, make_folder, write_whole, writer_lock
from edge_rag.evaluation.scoring import score_answer
from edge_rag.interfaces import Embedder, Progress, Selector
from edge_rag.models import is_lister, locate_lister, open_lister, open_scorer
from edge_rag.models.cores import usable_cores
from edge_rag.models.store import sha256_file
from edge_rag.settings import Settings

ALL = 1000  # passages that a selector may keep: more than any arm shows
# What a run may have been begun with and be gone on without: none of it changes an answer.
INCIDENTAL = {"started", "command", "machine", "cores", "timed"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run's answers depend on, but its questions and its arm."""

    who: Who
    choice: Choice
    timed: int = 5  # questions that are asked once more, one at a time, for their time


def evaluate(
    question_set: QuestionSet,
    arms: Mapping[Arm, Path],
    plan: Plan,
    embedder: Embedder,
    settings: Settings,
    *,
    part: str,
    limit: int | None,
    spare: int = 0,
    command: str,
    progress: Progress | None = None,
) -> list[Run]:
    """Run every arm, each into its folder. Finished ones are read, begun ones are gone on with."""
    configs = dict[Arm, dict[str, Any]]()
    selector, of_selector = _open_selector(plan, settings)
    threshold = evidence.threshold(embedder) or of_selector.get("calibration", {}).get("threshold", 0.0)
    with ExitStack() as locks:
        if isinstance(selector, GenerativeSelector):
            locks.callback(selector.close)
        for arm, folder in arms.items():
            make_folder(folder)
            locks.enter_context(writer_lock(folder, "eval run"))
            configs[arm] = _config(question_set, arm, plan, part, limit, command) | of_selector
            configs[arm] |= {"spare": spare} if spare else {}
            check_config(folder, configs[arm], INCIDENTAL)
        open_arms = [arm for arm, folder in arms.items() if not (folder / SUMMARY).is_file()]
        if open_arms:
            with closing(open_answerer(plan.who)) as answerer:
                cases = cases_of(question_set, open_arms, plan.choice, answerer, embedder, settings, progress, selector)
                for arm in open_arms:
                    spent = _answer(arms[arm], configs[arm], cases[arm], answerer, plan, threshold, progress)
                    _finish(arms[arm], arm, cases[arm], plan, spent, progress)
    return [read_run(folder) for folder in arms.values()]


def _open_selector(plan: Plan, settings: Settings) -> tuple[Selector | None, dict[str, Any]]:
    """Return the exported selector that a plan names, if it names one, and what a run's config says of it."""
    name, most = plan.choice.selector, plan.choice.keep or ALL
    if name in SELECTORS:
        return None, {}
    if not is_lister(name):
        scorer = open_scorer(name, threads=settings.threads)
        known = {"calibration": asdict(scorer.calibration)} if scorer.calibration else {}
        return OnnxSelector(lambda: scorer, most), {"selector_sha256": scorer.fingerprint, **known}
    adapter, who = locate_lister(name), plan.who
    generator = str(who.file) if who.file else who.generator
    lister = open_lister(name, generator, threads=who.threads, context_tokens=who.context_tokens)
    return GenerativeSelector(lambda: lister, most), {"selector_sha256": sha256_file(adapter)}


def _config(
    question_set: QuestionSet,
    arm: Arm,
    plan: Plan,
    part: str,
    limit: int | None,
    command: str,
) -> dict[str, Any]:
    who, choice = plan.who, plan.choice
    return {
        "set": question_set.name,
        "set_sha256": question_set.sha256,
        "part": part,
        "limit": limit,
        "arm": str(arm),
        "generator": who.generator,
        "generator_sha256": sha256_file(who.file) if who.file else "",
        "lora": who.lora,
        "lora_sha256": sha256_file(who.lora_file) if who.lora_file else "",
        "quantised": who.quantised,
        "context_tokens": who.context_tokens,
        **asdict(choice),
        "prompt_version": PROMPT_VERSION,
        "edge_rag": version("edge-rag"),
        "timed": plan.timed,
        "machine": platform.platform(),
        "cores": usable_cores(who.threads),
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "command": command,
    }


def _answer(
    folder: Path,
    config: Mapping[str, Any],
    cases: Sequence[Case],
    answerer: Answerer,
    plan: Plan,
    threshold: float,
    progress: Progress | None,
) -> "Spent":
    """Answer what has no prediction yet, and store each answer as it comes."""
    if not cases:
        raise UsageError(
            f"no question of the set has what the arm {config['arm']} needs", mend="choose another arm or set"
        )
    if not (folder / CONFIG).is_file():  # not before all that could be wrong with the command has been found
        write_whole(folder / CONFIG, json_text(config))
    with _predictions(folder) as rows:
        known = {row["id"] for row in rows}
        todo = [case for case in cases if case.question.id not in known]
        done, n_tokens, start = len(known), 0, time.perf_counter()

        def store(number: int, reply: Reply) -> None:
            nonlocal done, n_tokens
            prediction = predict(todo[number], reply, plan.choice, threshold)
            rows.add(to_json(prediction))
            done, n_tokens = done + 1, n_tokens + reply.prompt_tokens + reply.answer_tokens
            if progress:
                progress(f"answers, {config['arm']}", done, len(cases), " ".join(prediction.answer.split())[:60])

        answerer.answer(todo, plan.choice.answer_tokens, store)
    return Spent(time.perf_counter() - start, n_tokens)


@dataclass(frozen=True, slots=True)
class Spent:
    seconds: float
    n_tokens: int


def predict(case: Case, reply: Reply, choice: Choice, threshold: float) -> Prediction:
    """Turn a reply into what is stored of it, scores included."""
    question = case.question
    answer = final_answer(reply.text, choice.prompt)
    unsure = case.confidence is not None and case.confidence < threshold
    _, citations = locate(question.question, answer, case.passages)
    cited = tuple(dict.fromkeys(c.document for c in citations))
    return Prediction(
        id=question.id,
        question=question.question,
        answers=question.answers,
        answerable=case.answerable,
        gold_ids=question.gold_ids,
        shown=tuple(p.id for p in case.shown),
        found=tuple(p.id for p in case.found),
        output=reply.text,
        answer=answer,
        refused=unsure or NOT_FOUND in reply.text or not answer,
        confidence=case.confidence,
        logprob=reply.logprob,
        cited=cited,
        prompt_tokens=reply.prompt_tokens,
        answer_tokens=reply.answer_tokens,
        scores=score_answer(
            replace(question, answerable=case.answerable),
            answer=answer,
            shown=case.shown,
            found=case.found,
            cited=cited,
        ),
    )


def _finish(folder: Path, arm: Arm, cases: Sequence[Case], plan: Plan, spent: Spent, progress: Progress | None) -> None:
    """Put the predictions into the set's order, time some questions, and write the summary."""
    place = {case.question.id: n for n, case in enumerate(cases)}
    predictions = sorted(_whole_predictions(folder), key=lambda p: place[p.id])
    timed = [cases[n] for n in range(0, len(cases), max(1, len(cases) // max(1, plan.timed)))][: plan.timed]
    if progress and timed:
        progress(f"timing, {arm}", 0, len(timed), "one question at a time")
    times = time_singly(plan.who, timed, plan.choice.answer_tokens)
    metrics, curve = summarise(predictions)
    timings: dict[str, Interval] = {}
    if times:
        timings["first_token_ms"] = mean_interval([t.first_token_ms for t in times], scores=False)
        timings["total_ms"] = mean_interval([t.total_ms for t in times], scores=False)
    summary = Summary(
        n=len(predictions),
        metrics=metrics,
        risk_coverage=curve,
        timings=timings,
        seconds=spent.seconds,
        tokens_per_second=spent.n_tokens / spent.seconds if spent.n_tokens else 0.0,
        peak_memory_mb=memory_of().get("peak", 0) / 1e6,
    )
    write_whole(folder / PREDICTIONS, "".join(json.dumps(to_json(p), ensure_ascii=False) + "\n" for p in predictions))
    write_whole(folder / SUMMARY, json_text(to_json(summary)))


def _whole_predictions(folder: Path) -> list[Prediction]:
    """Read what is stored, and take a last line that a kill has cut off out of the file."""
    with _predictions(folder) as rows:
        return [from_json(row) for row in rows]


def _predictions(folder: Path) -> Rows:
    return Rows(folder / PREDICTIONS, from_json)
