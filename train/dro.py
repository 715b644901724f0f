"""DRO (arXiv 2505.03075): a selector that writes a list of passages, and the generator that answers from it, learn together.

    candidates  questions with the passages that a search brought, or that they have themselves, numbered in a drawn order
    warm-up     the selector writes the list of a teacher: gold passages first, the rest as search or a cross-encoder orders them
    lists       E-step: lists that the selector writes, and how likely the generator finds the right answer from each
    selector    M-step: lists become likelier as they make the answer likely
    generator   M-step: so do the right answers, from the lists that make them likely
    measured    F1 of greedy answers from greedy lists on dev, after the warm-up and after each iteration

The list is the latent variable of expectation maximisation: the weights of a question's lists, p(list | question, answer), are
the generator's likelihoods, normalised over the lists that were drawn. Iterations end when F1 on dev ends to rise, and
RUN/model holds both adapters as they were best.
"""

import math
import random
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_rag.answering.prompt import PROMPT_VERSION, answer_messages, final_answer, list_messages, listed, written_list
from edge_rag.answering.selector import scored_text
from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.cases import as_passage
from edge_rag.evaluation.intervals import mean_interval
from edge_rag.evaluation.question_sets import Part, SetPassage, load_set
from edge_rag.evaluation.run_folder import content_key, file_hashes, json_text, read_json, read_rows, write_whole
from edge_rag.evaluation.scoring import asks_verdict, score_text
from edge_rag.interfaces import Embedder, Message, Passage, Progress, Style
from edge_rag.models import open_scorer
from edge_rag.models.prompt_style import Listing, list_fields, write_note
from edge_rag.models.selector import OnnxScorer
from edge_rag.settings import Settings

from . import targets
from .answers import Row, answer_losses, answers_loss, fit_to_answers
from .fit import fit_stage
from .language_model import LanguageModel, Scored
from .page import Beside, Section
from .run import TrainingRun
from .selector import CANDIDATES, PARTS, Asked, Plan, find_candidates, write_rows
from .torch_model import check_folder
from .trainable import ADAPTER, Trainable, open_trainable
from .writer import as_json, key_of, open_writer, sample_once, telling

Frozen = Literal["", "selector", "generator"]

QUESTIONS, WARM_UP, MODEL = "questions", "warm-up", "model"
SELECTOR, GENERATOR = "selector", "generator"
WRITTEN, LIKELIHOODS = "written", "likelihoods"
FIGURES = "figures.json"
LIST_TOKENS, ANSWER_TOKENS = 48, 24
HOTTER = 2.0  # times the temperature, for questions whose lists all came out the same


@dataclass(frozen=True, slots=True)
class Joint:
    """How lists are written and judged."""

    keep: int = 4  # passages of a list
    samples: int = 4  # lists of each question
    iterations: int = 3  # at most
    per_iteration: int | None = None  # questions that are drawn for each, others each time; None: all
    temperature: float = 0.8  # at which lists are sampled
    sharpness: float = 1.0  # of the weights: 1 is Bayes's rule; means over tokens differ little, and may want more
    whole: bool = (
        False  # likelihood of the whole answer, as in the paper; else of a token, mean over it, as in the authors' code
    )
    words: int = 60  # shown of each candidate to the selector; 0: all
    frozen: Frozen = ""  # which of the two stays as it is
    style: Style = "words"  # that the generator was trained for
    teacher: str = ""  # folder of an exported cross-encoder that orders the lists of the warm-up; "": the search
    lora_rank: int = 32

    def __post_init__(self) -> None:
        if not (
            self.keep >= 1
            and self.samples >= 1
            and self.iterations >= 1
            and self.per_iteration != 0
            and self.temperature > 0
            and self.sharpness > 0
        ):
            raise UsageError(
                "lists of these settings make no sense",
                mend="keep, draw and ask for 1 or more, once or more often, with a temperature and a sharpness above 0",
            )


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its candidates in the order in which they are numbered, and the list that a teacher would write."""

    id: str
    set: str
    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...]
    gold: tuple[bool, ...]
    teacher: tuple[int, ...]  # places in passages

    def prompt(self, joint: Joint) -> list[Message]:
        return list_messages(self.question, self.passages, joint.keep, words=joint.words)

    def answering(self, places: Sequence[int], style: Style) -> list[Message]:
        return answer_messages(self.question, [self.passages[place] for place in places], style=style)


@dataclass(frozen=True, slots=True)
class Judged:
    """The lists that were written for a question, what each is worth, and the accepted answer that it makes likeliest."""

    question: Question
    lists: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    answers: tuple[str, ...]


def train_dro(
    base: Path,
    out: Path,
    plan: Plan,
    joint: Joint,
    *,
    adapter: Path | None,
    embedder: Embedder,
    settings: Settings,
    command: str,
    force: bool = False,
    progress: Progress | None = None,
) -> Mapping[str, Any]:
    """Train, and return the figures of the best iteration; the same call goes on with an interrupted run.

    `adapter` is what the generator begins as: that of train supervised or train rose.
    """
    check_folder(base, adapter)
    config = {
        "method": "dro",
        "base": file_hashes(base),
        "adapter": file_hashes(adapter) if adapter else {},
        **asdict(plan),
        "joint": asdict(joint),
        "sets": {name: load_set(name, limit=1).sha256 for name in plan.sets},
        "prompt_version": PROMPT_VERSION,
    }
    with TrainingRun.open(out, config, command=command, force=force) as run:
        asked = find_candidates(run, plan, embedder, settings, progress)
        questions = _make_questions(run, asked, plan, joint, settings, progress)
        return _Learning(run, base, plan, joint, settings, progress, questions).learn(adapter)


def _make_questions(
    run: TrainingRun,
    asked: Mapping[Part, Sequence[Asked]],
    plan: Plan,
    joint: Joint,
    settings: Settings,
    progress: Progress | None,
) -> dict[Part, list[Question]]:
    """Number the candidates in a drawn order, and let the teacher write its list."""
    inputs = {
        "candidates": [run.folder / CANDIDATES / f"{part}.jsonl" for part in PARTS],
        "keep": joint.keep,
        "teacher": Path(joint.teacher) if joint.teacher else "",
        "seed": plan.fitting.seed,
    }
    with run.stage(QUESTIONS, inputs) as stage:
        if not stage.is_complete:
            teacher = open_scorer(joint.teacher, threads=settings.threads) if joint.teacher else None
            for part in PARTS:
                tell = telling(progress, f"{part}, the teacher's lists", len(asked[part]))
                rows = []
                for one in asked[part]:
                    question = _question(one, joint.keep, teacher, plan.fitting.seed)
                    rows.append(_row_of(question))
                    tell(0, question)
                write_rows(stage.folder / f"{part}.jsonl", rows)
    return {part: [_of_row(row) for row in read_rows(run.folder / QUESTIONS / f"{part}.jsonl")] for part in PARTS}


def _question(asked: Asked, keep: int, teacher: OnnxScorer | None, seed: int) -> Question:
    candidates = list(asked.candidates)
    if teacher is not None:
        texts = [scored_text(as_passage(0, candidate.passage)) for candidate in candidates]
        order = np.argsort(-teacher.score(asked.question, texts), kind="stable")
        candidates = [candidates[n] for n in order]
    best = sorted(candidates, key=lambda candidate: not candidate.passage.gold)[:keep]
    shown = random.Random(f"{seed} {asked.id}").sample(candidates, len(candidates))
    passages = tuple(as_passage(n, candidate.passage) for n, candidate in enumerate(shown))
    gold = tuple(candidate.passage.gold for candidate in shown)
    teacher_list = tuple(shown.index(candidate) for candidate in best)
    return Question(asked.id, asked.set, asked.question, asked.distinct_answers, passages, gold, teacher_list)


@dataclass(frozen=True, slots=True)
class _Learning:
    """The iterations of a run."""

    run: TrainingRun
    base: Path
    plan: Plan
    joint: Joint
    settings: Settings
    progress: Progress | None
    questions: Mapping[Part, Sequence[Question]]

    def learn(self, generator: Path | None) -> Mapping[str, Any]:
        taught = {part: [Judged(q, (q.teacher,), (1.0,), ("",)) for q in self.questions[part]] for part in PARTS}
        selector = self.fit_selector(WARM_UP, None, taught)
        best, figures = (selector, generator), self.measure(0, selector, generator)
        for number in range(1, self.joint.iterations + 1):
            judged = self.write_lists(number, selector, generator)
            if self.joint.frozen != "selector":
                selector = self.fit_selector(f"{SELECTOR}-{number}", selector, judged)
            if self.joint.frozen != "generator":
                generator = self.fit_generator(f"{GENERATOR}-{number}", generator, judged)
            found = self.measure(number, selector, generator)
            if found["f1"] <= figures["f1"]:
                break
            best, figures = (selector, generator), found
        self.keep(*best, figures)
        return figures

    # --- E-step

    def write_lists(self, number: int, selector: Path, generator: Path | None) -> dict[Part, list[Judged]]:
        """Let the selector write lists, and the generator judge them."""
        name = f"lists-{number}"
        asked = {"train": self.drawn(number), "dev": self.questions["dev"]}
        inputs = {
            "questions": self.question_files,
            "base": self.base,
            "selector": selector,
            "generator": generator or "",
            "joint": {**asdict(self.joint), "iterations": 0, "frozen": "", "teacher": ""},
            "seed": self.plan.fitting.seed,
        }
        with self.run.stage(name, inputs) as stage:
            if not stage.is_complete:
                with self.open(SELECTOR, selector) as writer:
                    lists = {part: self.lists(number, writer, selector, part, asked[part]) for part in PARTS}
                with self.open(GENERATOR, generator) as writer:
                    for part in PARTS:
                        judged = self.judge(number, writer, generator, part, asked[part], lists[part])
                        write_rows(stage.folder / f"{part}.jsonl", map(_judged_row, judged))
                        self.tell_lists(number, part, judged)
        found = {part: read_rows(self.run.folder / name / f"{part}.jsonl") for part in PARTS}
        known = {part: {q.id: q for q in self.questions[part]} for part in PARTS}
        return {part: [_judged_of_row(row, known[part][row["id"]]) for row in found[part]] for part in PARTS}

    def drawn(self, number: int) -> Sequence[Question]:
        """Return the train questions of an iteration, which reads several times as much of each as the warm-up does."""
        questions, wanted = self.questions["train"], self.joint.per_iteration
        if wanted is None or wanted >= len(questions):
            return questions
        return random.Random(f"{self.plan.fitting.seed} {number}").sample(questions, wanted)

    def lists(
        self, number: int, writer: LanguageModel, selector: Path, part: Part, questions: Sequence[Question]
    ) -> list[list[tuple[int, ...]]]:
        """Return the different lists of each question. Where all are the same they tell nothing: some are drawn hotter."""
        found = self.sampled(f"iteration {number}, {part}, lists", writer, selector, questions, self.joint.temperature)
        same = [n for n, lists in enumerate(found) if len(lists) < 2]
        hotter = self.sampled(
            f"iteration {number}, {part}, lists that were all the same", writer, selector, [questions[n] for n in same],
            HOTTER * self.joint.temperature,
        )  # fmt: skip
        for n, more in zip(same, hotter, strict=True):
            found[n] = list(dict.fromkeys([*found[n], *more]))
        return found

    def sampled(
        self, what: str, writer: LanguageModel, selector: Path, questions: Sequence[Question], temperature: float
    ) -> list[list[tuple[int, ...]]]:
        samples = sample_once(
            self.run, WRITTEN, writer, key_of(self.base, selector, writer), [q.prompt(self.joint) for q in questions],
            n=self.joint.samples, max_tokens=LIST_TOKENS, temperature=temperature, seed=self.plan.fitting.seed, what=what,
            progress=self.progress,
        )  # fmt: skip
        return [
            [*dict.fromkeys(places for text in texts if (places := self.places(q, text.text)))]
            for q, texts in zip(questions, samples, strict=True)
        ]

    def places(self, question: Question, output: str) -> tuple[int, ...]:
        return listed(output, len(question.passages), self.joint.keep)

    def judge(
        self,
        number: int,
        writer: LanguageModel,
        generator: Path | None,
        part: Part,
        questions: Sequence[Question],
        lists: Sequence[list[tuple[int, ...]]],
    ) -> list[Judged]:
        """Weigh the lists of each question by the likelihood of the accepted answer that is likeliest after it."""
        asked = [(q, places) for q, own in zip(questions, lists, strict=True) for places in own]
        prompts = [q.answering(places, self.joint.style) for q, places in asked]
        answers = [q.answers for q, _ in asked]
        made_by = key_of(self.base, generator, writer)
        keys = [content_key(made_by, as_json(p), texts) for p, texts in zip(prompts, answers, strict=True)]
        with self.run.rows(LIKELIHOODS) as known:
            new = list({key: n for n, key in enumerate(keys) if key not in known}.values())
            tell = telling(self.progress, f"iteration {number}, {part}, answers", len(new))

            def keep(index: int, scores: list[Scored]) -> None:
                known.add(keys[new[index]], [[score.sum, score.mean] for score in scores])
                tell(index, scores)

            if new:
                writer.score([prompts[n] for n in new], [answers[n] for n in new], keep)
            found = {(q.id, places): known[key] for (q, places), key in zip(asked, keys, strict=True)}
        judged = []
        for q, own in zip(questions, lists, strict=True):
            if own:
                scores = np.array([found[q.id, places] for places in own])[:, :, 0 if self.joint.whole else 1]
                weights = targets.shares(scores.max(1).tolist(), 1 / self.joint.sharpness)
                likeliest = tuple(q.answers[n] for n in scores.argmax(1))
                judged.append(Judged(q, tuple(own), tuple(weights.tolist()), likeliest))
        if not judged:
            raise EdgeRagError(
                f"the selector wrote no list for any of {len(lists)} {part} questions",
                mend="give more questions or --epochs for its warm-up, or a lower --temperature",
            )
        return judged

    # --- M-step

    def fit_selector(self, name: str, adapter: Path | None, judged: Mapping[Part, Sequence[Judged]]) -> Path:
        model = self.trainable(adapter)

        def rows() -> tuple[list[Row], list[Row]]:
            train, dev = ([self.list_row(model, one) for one in judged[part]] for part in PARTS)
            return train, dev

        def save(folder: Path) -> None:
            listing = Listing(self.plan.candidates, self.joint.words, min(self.joint.keep, self.plan.candidates))
            write_note(model.save(folder), list_fields(listing, PROMPT_VERSION))

        fit_stage(
            self.run, name, self.inputs(name, adapter), model.network, rows, answer_losses(answers_loss, pad=model.pad),
            self.plan.fitting, save, self.progress,
        )  # fmt: skip
        return self.run.folder / name / ADAPTER

    def fit_generator(self, name: str, adapter: Path | None, judged: Mapping[Part, Sequence[Judged]]) -> Path:
        model = self.trainable(adapter)

        def rows() -> tuple[list[Row], list[Row]]:
            train, dev = (self.answer_rows(model, judged[part]) for part in PARTS)
            return train, dev

        fit_to_answers(
            self.run, name, self.inputs(name, adapter), model, rows, answers_loss, self.plan.fitting, self.joint.style,
            self.progress,
        )  # fmt: skip
        return self.run.folder / name / ADAPTER

    def list_row(self, model: Trainable, one: Judged) -> Row:
        lists = tuple(model.answer(written_list(places)) for places in one.lists)
        return Row(model.prompt(one.question.prompt(self.joint)), lists, weights=one.weights)

    def answer_rows(self, model: Trainable, judged: Sequence[Judged]) -> list[Row]:
        """Make a row of each list. Those of a question weigh as much as those of any other, and a row 1 on average."""
        n_lists = sum(len(one.lists) for one in judged) / len(judged)
        found = [
            Row(
                model.prompt(one.question.answering(places, self.joint.style)), (model.answer(answer),),
                weights=(n_lists * weight,),
            )
            for one in judged
            for places, weight, answer in zip(one.lists, one.weights, one.answers, strict=True)
        ]  # fmt: skip
        usual = sum(len(row.answers[0]) for row in found) / len(found)
        return [replace(row, usual=usual) for row in found]

    def inputs(self, name: str, adapter: Path | None) -> dict[str, Any]:
        lists = f"lists-{name.rpartition('-')[2]}"
        made_from = self.question_files if name == WARM_UP else [self.run.folder / lists / f"{p}.jsonl" for p in PARTS]
        shown = [self.joint.keep, self.joint.words, self.joint.style]
        return {
            "rows": made_from,
            "shown": shown,
            "base": self.base,
            "adapter": adapter or "",
            "rank": self.joint.lora_rank,
        }

    def trainable(self, adapter: Path | None) -> Trainable:
        return open_trainable(
            self.base, adapter=adapter, lora_rank=self.joint.lora_rank, threads=self.settings.threads,
            seed=self.plan.fitting.seed, precision=self.plan.fitting.precision,
        )  # fmt: skip

    # --- how good both are

    def measure(self, number: int, selector: Path, generator: Path | None) -> dict[str, Any]:
        """Let both answer the dev questions, each with what is likeliest."""
        name = f"measured-{number}"
        inputs = {
            "questions": self.question_files,
            "base": self.base,
            "selector": selector,
            "generator": generator or "",
            "shown": [self.joint.keep, self.joint.words, self.joint.style],
        }
        with self.run.stage(name, inputs) as stage:
            if not stage.is_complete:
                questions = self.questions["dev"]
                with self.open(SELECTOR, selector) as writer:
                    lists = self.written(writer, selector, [q.prompt(self.joint) for q in questions], LIST_TOKENS)
                chosen = [self.places(q, text) for q, text in zip(questions, lists, strict=True)]
                # One that wrote no list shows what comes first, as it will at run time.
                shown = [
                    places or tuple(range(min(self.joint.keep, len(q.passages))))
                    for q, places in zip(questions, chosen, strict=True)
                ]
                with self.open(GENERATOR, generator) as writer:
                    prompts = [q.answering(p, self.joint.style) for q, p in zip(questions, shown, strict=True)]
                    answers = self.written(writer, generator, prompts, ANSWER_TOKENS)
                figures = _figures(questions, chosen, shown, [final_answer(a, self.joint.style) for a in answers])
                write_whole(stage.folder / FIGURES, json_text(figures))
                self.run.log("measured", number, **{key: value for key, value in figures.items() if key != "n"})
                self.run.show("measured", self.section(number, figures))
        return dict(read_json(self.run.folder / name / FIGURES) or {})

    def section(self, number: int, figures: Mapping[str, Any]) -> Section:
        earlier = [read_json(self.run.folder / f"measured-{n}" / FIGURES) or {} for n in range(number)]
        rows = [[n, *(f.get(key, 0.0) for key in figures)] for n, f in enumerate([*earlier, figures])]
        note = "Greedy lists and answers on dev; 0 is the warm-up. F1 with its 95% interval, the rest are shares."
        return Section("Iterations", note, ("iteration", *figures), rows)

    def written(
        self, writer: LanguageModel, adapter: Path | None, prompts: list[list[Message]], most: int
    ) -> list[str]:
        samples = sample_once(
            self.run, WRITTEN, writer, key_of(self.base, adapter, writer), prompts, n=1, max_tokens=most, temperature=0.0,
            seed=0, what="measure", progress=self.progress,
        )  # fmt: skip
        return [sample.text for (sample,) in samples]

    def tell_lists(self, number: int, part: Part, judged: Sequence[Judged]) -> None:
        """Log how much the lists differ, and how much the generator makes of that: 1 is a weight that is the same for all."""
        several = [one for one in judged if len(one.lists) > 1]
        entropies = [_entropy(one.weights) / math.log(len(one.lists)) for one in several]
        figures = {
            "lists": sum(len(one.lists) for one in judged) / len(judged),
            "collapsed": 1 - len(several) / len(judged),
            "entropy": sum(entropies) / len(entropies) if entropies else 1.0,
        }
        self.run.log(f"lists, {part}", number, **figures)
        if part == "train":
            pairs = [_beside(one) for one in random.Random(0).sample(several, min(20, len(several)))]
            note = "The list that the generator finds best, beside the one that it finds worst."
            self.run.show(f"lists-{number}", Section(f"Lists, iteration {number}", note, pairs=pairs))

    def keep(self, selector: Path, generator: Path | None, figures: Mapping[str, Any]) -> None:
        with self.run.stage(MODEL, {"selector": selector, "generator": generator or ""}) as stage:
            if not stage.is_complete:
                shutil.copytree(selector, stage.folder / SELECTOR, dirs_exist_ok=True)
                if generator is not None:
                    shutil.copytree(generator, stage.folder / GENERATOR, dirs_exist_ok=True)
                write_whole(stage.folder / FIGURES, json_text(figures))

    # --- shared

    @property
    def question_files(self) -> list[Path]:
        return [self.run.folder / QUESTIONS / f"{part}.jsonl" for part in PARTS]

    def open(self, which: str, adapter: Path | None) -> AbstractContextManager[LanguageModel]:
        return open_writer(
            self.run, f"{which}-writer", self.base, adapter, context_tokens=self.settings.context_tokens,
            threads=self.settings.threads, precision=self.plan.fitting.precision, progress=self.progress,
        )  # fmt: skip


def _figures(
    questions: Sequence[Question],
    chosen: Sequence[Sequence[int]],
    shown: Sequence[Sequence[int]],
    answers: Sequence[str],
) -> dict[str, Any]:
    scores = [score_text(answer, q.answers) for q, answer in zip(questions, answers, strict=True)]
    worth = [s["accuracy"] if asks_verdict(q.answers) else s["f1"] for q, s in zip(questions, scores, strict=True)]
    f1 = mean_interval(np.array(worth, dtype=float))
    gold = [
        (sum(q.gold[p] for p in places), sum(q.gold)) for q, places in zip(questions, shown, strict=True) if any(q.gold)
    ]
    return {
        "n": len(questions),
        "f1": f1.value,
        "f1_low": f1.low,
        "f1_high": f1.high,
        "em": sum(s["em"] for s in scores) / len(scores),
        "gold_listed": sum(found / there for found, there in gold) / len(gold) if gold else math.nan,
        "lists_read": sum(map(bool, chosen)) / len(chosen),
    }


def _entropy(weights: Sequence[float]) -> float:
    return -sum(w * math.log(w) for w in weights if w > 0)


def _beside(one: Judged) -> Beside:
    order = sorted(range(len(one.lists)), key=lambda n: -one.weights[n])

    def shown(n: int) -> tuple[str, str]:
        passages = (one.question.passages[place] for place in one.lists[n])
        texts = [f"{p.title}: {' '.join(p.text.split())[:120]}" for p in passages]
        return f"weight {one.weights[n]:.2f}, {written_list(one.lists[n])}", "\n".join(texts)

    accepted = f"accepted: {' | '.join(one.question.answers)}"
    return Beside(one.question.question, *shown(order[0]), *shown(order[-1]), accepted)


# --- rows


def _row_of(question: Question) -> dict[str, Any]:
    passages = [{"id": p.document, "title": p.title, "text": p.text} for p in question.passages]
    return {
        "id": question.id, "set": question.set, "question": question.question, "answers": question.answers,
        "passages": passages, "gold": question.gold, "teacher": question.teacher,
    }  # fmt: skip


def _of_row(row: Mapping[str, Any]) -> Question:
    passages = tuple(as_passage(n, SetPassage(p["id"], p["title"], p["text"])) for n, p in enumerate(row["passages"]))
    return Question(
        row["id"],
        row["set"],
        row["question"],
        tuple(row["answers"]),
        passages,
        tuple(row["gold"]),
        tuple(row["teacher"]),
    )


def _judged_row(one: Judged) -> dict[str, Any]:
    return {"id": one.question.id, "lists": one.lists, "weights": one.weights, "answers": one.answers}


def _judged_of_row(row: Mapping[str, Any], question: Question) -> Judged:
    return Judged(question, tuple(map(tuple, row["lists"])), tuple(row["weights"]), tuple(row["answers"]))
