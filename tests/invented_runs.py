"""Runs as `edge-rag eval` stores them, with answers that chance wrote: harder questions and noisier arms go wrong more often."""

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from edge_rag.evaluation.intervals import summarise
from edge_rag.evaluation.predictions import Interval, Prediction, Run, Summary
from edge_rag.evaluation.question_sets import Question, SetPassage
from edge_rag.evaluation.scoring import score_answer

ARMS = ("closed", "given", "gold", "gold+1", "gold+2", "gold+4", "gold+8", "retrieved:5", "gold+4+2poisoned")
SKILL = {"closed": 0.14, "given": 0.5, "gold": 0.78, "gold+1": 0.74, "gold+2": 0.69, "gold+4": 0.62, "gold+8": 0.55}
PLACES = ("Ystad", "Oban", "Faro", "Kotor", "Tromsø", "Nairn", "Gdynia", "Sète", "Chania", "Porto")


def questions(n: int, *, unanswerable: bool = False) -> list[Question]:
    """Make up questions with ten passages each, two of them gold."""
    made = []
    for number in range(n):
        place = PLACES[number % len(PLACES)]
        answerable = not (unanswerable and number % 3 == 0)
        passages = tuple(
            SetPassage(f"p{number}-{k}", place, f"The lighthouse of {place} no. {k} was lit in {1700 + number}.", k < 2)
            for k in range(10)
        )
        text = f"In which year was lighthouse {number} of {place} lit?"
        answers = (str(1700 + number), f"the year {1700 + number}") if answerable else ()
        gold = tuple(p.id for p in passages if p.gold) if answerable else ()
        made.append(Question(f"q{number}", text, answers, passages, gold, answerable, relevance=dict.fromkeys(gold, 1)))
    return made


def real_questions(path: Path, n: int) -> list[Question]:
    """Read questions in the layout of EDGE_RAG_DATA, to look at a report of real texts."""
    made = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line, _ in zip(lines, range(n), strict=False):
            row = json.loads(line)
            passages = tuple(SetPassage(p["id"], p["title"], p["text"], p["gold"]) for p in row.get("passages", ()))
            gold = tuple(row.get("gold_ids") or (p.id for p in passages if p.gold))
            passages = passages or tuple(SetPassage(id, "", "A paragraph.", True) for id in gold)
            relevance = dict.fromkeys(gold, 1)
            answers, answerable = tuple(row["answers"]), row.get("answerable", True)
            made.append(Question(row["id"], row["question"], answers, passages, gold, answerable, relevance=relevance))
    return made


def run(arm: str, asked: Sequence[Question], *, set: str = "lighthouses", skill: float = 0.0, **config: Any) -> Run:
    """Make up a run. `skill` is added to what the arm's name promises."""
    settings = {
        "set": set,
        "part": "dev",
        "arm": arm,
        "generator": "smollm2-135m-instruct",
        "generator_sha256": "2f1c" * 16,
        "prompt": "short",
        "selector": "keep-top" if arm.startswith("retrieved") else None,
        "keep": 5 if arm.startswith("retrieved") else None,
        "seed": 0,
        "n": len(asked),
        "set_sha256": "9ab0" * 16,
        "edge_rag": "0.1.0",
        "machine": "a machine (x86_64)",
        "cores": 4,
        "started": "2026-11-21T16:00:00Z",
        "command": f"edge-rag eval {set} --part dev --arm {arm} --out runs/{arm}",
    }
    level = SKILL.get(arm, 0.45) + skill
    predictions = tuple(_prediction(q, arm, level, place) for place, q in enumerate(asked))
    metrics, curve = summarise(predictions)
    tokens = metrics["prompt_tokens"].value
    first, total = 4 * tokens + 60, 4 * tokens + 700
    timings = {
        "first_token_ms": Interval(first, first * 0.9, first * 1.12, 20),
        "total_ms": Interval(total, total * 0.93, total * 1.08, 20),
    }
    summary = Summary(len(asked), metrics, curve, timings, len(asked) * tokens / 900, 812.0, 640.0)
    return Run(Path("runs") / set / arm, settings | config, predictions, summary)


def _prediction(q: Question, arm: str, level: float, place: int) -> Prediction:
    hardness = Random(q.id).gauss(0, 0.18)  # the same in every arm
    chance = Random(f"{q.id} {arm}")
    right = chance.random() < level - hardness and bool(q.answers)
    wordy = chance.random() < 0.5
    answer = chance.choice(q.answers) if right else f"It was {chance.choice(PLACES)} in {chance.randint(1500, 1999)}"
    answer = f"The answer is {answer}, as the passage says." if right and wordy else answer
    shown = _shown(q, arm, chance)
    found = tuple(chance.sample(q.passages, len(q.passages))) if arm.startswith("retrieved") else ()
    cited = tuple(p.id for p in shown if chance.random() < (0.8 if p.gold else 0.1))
    certainty = (1.2 if right else -0.4) + chance.gauss(0, 1) - (0 if q.answerable else 0.8)
    confidence = None if arm == "closed" else 1 / (1 + math.exp(-certainty))
    refused = (confidence or 1) < 0.3
    return Prediction(
        id=q.id,
        question=q.question,
        answers=q.answers,
        answerable=q.answerable,
        gold_ids=q.gold_ids,
        shown=tuple(p.id for p in shown),
        found=tuple(p.id for p in found),
        output=f"{answer} [1]" if place % 4 == 0 else answer,
        answer=answer,
        refused=refused,
        confidence=confidence,
        logprob=certainty - 3 + chance.gauss(0, 0.5),
        cited=cited,
        prompt_tokens=60 + sum(20 + len(p.text) // 4 for p in shown),
        answer_tokens=4 + len(answer) // 4,
        scores=score_answer(q, answer=answer, shown=shown, found=found, cited=cited),
    )


def _shown(q: Question, arm: str, chance: Random) -> tuple[SetPassage, ...]:
    gold = [p for p in q.passages if p.gold]
    others = [p for p in q.passages if not p.gold]
    if arm == "closed":
        return ()
    if arm == "given":
        return q.passages
    if arm.startswith("gold"):
        extra = int(arm.split("+")[1]) if "+" in arm else 0
        return (*gold, *others[:extra])
    return tuple(chance.sample(q.passages, min(5, len(q.passages))))
