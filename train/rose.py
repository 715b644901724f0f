"""RoseRAG (arXiv 2502.10993): a small model learns from its own reasons which passages not to trust.

    examples     questions with the passages that answer them among others, or with others only (as in supervised training)
    writer       the model as it writes and scores fastest here (see writer); on a GPU the one that is trained does
    responses    right ones: reasons that the model gives when it sees the answer, kept if it finds the answer from them when
                 it does not see it; where none hold, the sentences that lead to the answer. Wrong ones: what it writes from
                 the noisy passages alone, if that is wrong
    pairs        for each question the right response that the model finds least likely, and the wrong one that it finds most
                 likely: where it has most to learn
    model        an adapter fitted to prefer the first to the second

Where the passages do not hold the answer, to say so is the right response, and every answer is a wrong one. With several rounds
each begins from the model of the one before.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from edge_rag.answering.prompt import ANSWER_MARK, NOT_FOUND, PROMPT_VERSION, final_answer, is_refusal
from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.run_folder import Rows, file_hashes, read_rows
from edge_rag.evaluation.scoring import contains_answer, score_text, squad_words
from edge_rag.interfaces import Embedder, Message, Progress
from edge_rag.settings import Settings

from . import losses
from .answers import Loss, Row, answer_weights, fit_to_answers, sharing_prompts, usual_lengths, weighed
from .examples import Example
from .fit import Fitted
from .joining import groups_of
from .language_model import LanguageModel, Sampled
from .page import Beside, Section, Value
from .quotes import reasoned_target
from .run import ROWS, TrainingRun
from .supervised import Plan, hashes_of_sets, make_examples, model_to_train, read_examples
from .trainable import ADAPTER, Trainable
from .writer import borrow, key_of, open_writer, sample_once, score_once

Pick = Literal["hardest", "random", "easiest"]

RESPONSES, SCORES = "responses", "scores"
REASON_TOKENS, ANSWER_TOKENS = 80, 24
WRONG_F1 = 0.4  # an answer above it that is not right to the word is neither: its question is left to the others
LEAST_WORDS, MOST_WORDS = 4, 80  # of reasons
LEAST_KNOWN = 0.6  # share of the reasons' words that stand in the passages or the question: the rest is made up
LEAST_USED = (
    3  # words of the passages that are neither the question's nor the answer's: without them the hint was repeated
)


@dataclass(frozen=True, slots=True)
class Preferences:
    """How pairs are made, and what is done with them."""

    samples: int = 4  # responses of each kind to each question
    temperature: float = 0.8
    rejection: bool = True  # False: reasons count as right whatever the model concludes from them
    pick: Pick = "hardest"
    loss: losses.PreferenceLoss = "orpo"
    beta: float = 0.1
    margin: float = 0.5  # of SimPO
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class Pair:
    """A question's right and wrong response, and how likely the model finds a token of each under its prompt."""

    example: str  # its id
    question: str
    answers: tuple[str, ...]
    chosen: str
    rejected: str
    chosen_logprob: float
    rejected_logprob: float


def train_rose(
    base: Path,
    out: Path,
    plan: Plan,
    preferences: Preferences,
    *,
    adapter: Path | None,
    responses: Path | None = None,
    embedder: Embedder,
    settings: Settings,
    command: str,
    force: bool = False,
    progress: Progress | None = None,
) -> Fitted:
    """Train; RUN/model holds the adapter. `adapter` is what the first round starts from: the supervised one.

    `responses` is another run, say with another loss: what was sampled there from the same model is not sampled again.
    """
    first = model_to_train(base, adapter, plan, settings)
    config = {
        "method": "rose",
        "base": file_hashes(base),
        "adapter": file_hashes(adapter) if adapter else {},
        **asdict(plan),
        **asdict(preferences),
        "sets": hashes_of_sets(plan),
        "prompt_version": PROMPT_VERSION,
    }
    with TrainingRun.open(out, config, command=command, force=force) as run:
        examples = make_examples(run, plan, first, embedder, settings, progress)
        if responses is not None and run.is_main:
            borrow(responses, run, RESPONSES)
            if (responses / ROWS / f"{SCORES}.jsonl").is_file():
                borrow(responses, run, SCORES)
        fitted, model = None, first
        for number in range(1, preferences.rounds + 1):
            name = "model" if number == preferences.rounds else f"model-{number}"
            if number > 1:
                model = model_to_train(base, adapter, plan, settings)
            round_ = _Round(run, number, name, model, base, adapter, examples, plan, preferences, settings, progress)
            fitted = round_.train()
            adapter = run.folder / name / ADAPTER
        assert fitted is not None
        return fitted


@dataclass(frozen=True, slots=True)
class _Round:
    """Responses, pairs and a model, from the examples and the model before."""

    run: TrainingRun
    number: int
    name: str  # of the stage that trains
    model: Trainable
    base: Path
    adapter: Path | None
    examples: Path
    plan: Plan
    preferences: Preferences
    settings: Settings
    progress: Progress | None

    def train(self) -> Fitted:
        pairs = self.make_pairs()
        inputs = {
            "pairs": [pairs / "train.jsonl", pairs / "dev.jsonl"],
            "base": self.base,
            "adapter": self.adapter or "",
            "lora_rank": self.plan.lora_rank,
            "loss": [self.preferences.loss, self.preferences.beta, self.preferences.margin],
        }

        def rows() -> tuple[list[Row], list[Row]]:
            return self.rows(pairs, "train"), self.rows(pairs, "dev")

        return fit_to_answers(
            self.run,
            self.name,
            inputs,
            self.model,
            rows,
            preference_loss(self.preferences),
            self.plan.fitting,
            self.plan.styles[0],
            self.progress,
        )

    def make_pairs(self) -> Path:
        """Make the pairs of both parts; return the folder that holds train.jsonl and dev.jsonl."""
        name = f"pairs-{self.number}"
        inputs = {
            "examples": [self.examples / "train.jsonl", self.examples / "dev.jsonl"],
            "base": self.base,
            "adapter": self.adapter or "",
            "preferences": {**asdict(self.preferences), "loss": "", "beta": 0, "margin": 0, "rounds": 0},
        }
        with self.run.stage(name, inputs) as stage:
            if not stage.is_complete:
                counts: dict[str, Counter[str]] = {}
                with self.writer() as writer:
                    for part in ("train", "dev"):
                        examples = read_examples(self.examples, part)
                        counts[part] = Counter()
                        responses = self.responses(writer, part, examples, counts[part])
                        pairs = self.pairs(writer, part, examples, responses, counts[part])
                        if not pairs:
                            raise _no_pairs(part, counts[part])
                        (stage.folder / f"{part}.jsonl").unlink(missing_ok=True)
                        with Rows(stage.folder / f"{part}.jsonl") as rows:
                            for pair in pairs:
                                rows.add(asdict(pair))
                        if part == "train":
                            self.show(pairs, examples)
                self.run.show(name, _counts_section(f"Responses and pairs, round {self.number}", counts))
        return self.run.folder / name

    @contextmanager
    def writer(self) -> Iterator[LanguageModel]:
        """The model that writes; on a GPU there is one only."""
        if self.model.is_on_gpu:
            yield self.model.language_model
            return
        with open_writer(
            self.run, f"writer-{self.number}", self.base, self.adapter, context_tokens=self.context_tokens,
            threads=self.settings.threads, precision=self.plan.fitting.precision, progress=self.progress,
        ) as writer:  # fmt: skip
            yield writer

    @property
    def context_tokens(self) -> int:
        return self.plan.prompt_tokens + 2 * REASON_TOKENS + 4 * ANSWER_TOKENS

    def responses(
        self, writer: LanguageModel, part: str, examples: Sequence[Example], counts: Counter[str]
    ) -> dict[str, "Responses"]:
        """Gather right and wrong responses to each example, by its id."""
        reasoned = any(example.style == "rationale" for example in examples)
        tokens = ANSWER_TOKENS + REASON_TOKENS * reasoned
        plain = self.sample(writer, f"{part}, from the passages", [e.prompt for e in examples], tokens)
        helped = self.helped(writer, part, examples) if reasoned else {}
        found = {}
        for n, example in enumerate(examples):
            gathered = found[example.id] = Responses()
            if not example.answers:
                gathered.add_right(NOT_FOUND)
            elif example.style == "words":
                gathered.add_right(example.target)
            for text in helped.get(n, ()):
                gathered.add_right(text)
                counts["reasons that hold"] += 1
            for sample in plain[n]:
                kind = judge(sample, example)
                counts[f"{kind}, from the passages"] += 1
                if kind == "wrong":
                    gathered.wrong.add(sample.text.strip())
                elif kind == "right" and (example.style == "words" or is_sound(reasons_of(sample.text), example)):
                    gathered.add_right(sample.text.strip())
            if not gathered.right:
                gathered.add_right(reasoned_target(example))
                counts["no reasons of its own: quotes"] += 1
        return found

    def helped(self, writer: LanguageModel, part: str, examples: Sequence[Example]) -> dict[int, list[str]]:
        """Let the model give reasons with the answer in sight, and answer from them without it."""
        asked = [n for n, example in enumerate(examples) if example.answers and example.style == "rationale"]
        hints = [_hint(examples[n]) for n in asked]
        given = dict(zip(asked, self.sample(writer, f"{part}, reasons", hints, REASON_TOKENS), strict=True))
        begun: list[tuple[int, str]] = []
        for n, samples in given.items():
            reasons = dict.fromkeys(" ".join(sample.text.split()) for sample in samples if sample.is_whole)
            begun += [(n, f"{text} {ANSWER_MARK}") for text in reasons if is_sound(text, examples[n])]
        concluded = self.sample(
            writer, f"{part}, conclusions", [[*examples[n].prompt, Message("assistant", text)] for n, text in begun],
            ANSWER_TOKENS, n=1, temperature=0.0,
        )  # fmt: skip
        kept: dict[int, list[str]] = {}
        for (n, text), (answer,) in zip(begun, concluded, strict=True):
            whole = f"{text} {answer.text.strip()}"
            if not self.preferences.rejection or is_right(final_answer(whole, "rationale"), examples[n]) == "right":
                kept.setdefault(n, []).append(whole)
        return kept

    def pairs(
        self,
        writer: LanguageModel,
        part: str,
        examples: Sequence[Example],
        responses: Mapping[str, "Responses"],
        counts: Counter[str],
    ) -> list[Pair]:
        """Choose a pair for each example that has wrong responses, too."""
        both = [example for example in examples if responses[example.id].wrong]
        counts["no wrong response"] = len(examples) - len(both)
        counts["pairs"] = len(both)
        texts = [[*sorted(responses[e.id].right), *sorted(responses[e.id].wrong)] for e in both]
        scored = score_once(
            self.run, SCORES, writer, key_of(self.base, self.adapter, writer), [e.prompt for e in both], texts,
            what=f"round {self.number}, {part}, scores", progress=self.progress,
        )  # fmt: skip
        found = []
        for example, scores in zip(both, scored, strict=True):
            means = {score.text: score.mean for score in scores}
            right = {text: means[text] for text in sorted(responses[example.id].right)}
            wrong = {text: means[text] for text in sorted(responses[example.id].wrong)}
            chosen, rejected = choose(right, wrong, self.preferences.pick, f"{self.plan.fitting.seed} {example.id}")
            found.append(
                Pair(
                    example.id, example.question, example.answers, chosen, rejected, right[chosen], wrong[rejected]
                )
            )  # fmt: skip
        return found

    def rows(self, pairs: Path, part: str) -> list[Row]:
        """Make the rows to train on; DPO compares with what the writer thought of them, which is what they were chosen by."""
        examples = {example.id: example for example in read_examples(self.examples, part)}
        found = read_pairs(pairs, part)
        rows = []
        for pair in found:
            answers = self.model.answer(pair.chosen), self.model.answer(pair.rejected)
            means = pair.chosen_logprob, pair.rejected_logprob
            reference = tuple(mean * len(answer) for mean, answer in zip(means, answers, strict=True))
            rows.append(Row(self.model.prompt(examples[pair.example].prompt), answers, reference=reference))
        asked = [examples[pair.example] for pair in found]
        rows = weighed(rows, [example.style for example in asked])
        return sharing_prompts(rows, groups_of(asked)) if self.plan.together > 1 else rows

    def sample(
        self,
        writer: LanguageModel,
        what: str,
        prompts: Sequence[Sequence[Message]],
        max_tokens: int,
        *,
        n: int = 0,
        temperature: float | None = None,
    ) -> list[list[Sampled]]:
        """Sample, and remember what was sampled."""
        return sample_once(
            self.run, RESPONSES, writer, key_of(self.base, self.adapter, writer), prompts,
            n=n or self.preferences.samples, max_tokens=max_tokens, seed=self.plan.fitting.seed,
            temperature=self.preferences.temperature if temperature is None else temperature,
            what=f"round {self.number}, {what}", progress=self.progress,
        )  # fmt: skip

    def show(self, pairs: Sequence[Pair], examples: Sequence[Example]) -> None:
        shown = random.Random(0).sample(list(pairs), min(30, len(pairs)))
        beside = [
            Beside(
                pair.question, f"chosen ({pair.chosen_logprob:.2f})", pair.chosen, f"rejected ({pair.rejected_logprob:.2f})",
                pair.rejected, f"right: {' | '.join(pair.answers) or 'not in these passages'}",
            )
            for pair in shown
        ]  # fmt: skip
        note = "Chosen and rejected responses, and the mean log-probability of their tokens before training."
        self.run.show(f"pairs-{self.number}-shown", Section(f"Pairs, round {self.number}", note, pairs=beside))


@dataclass(frozen=True, slots=True)
class Responses:
    right: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)

    def add_right(self, text: str) -> None:
        """Add what says something new. The same words in odd letters would be found the least likely, and be learnt."""
        if squad_words(text) not in map(squad_words, self.right):
            self.right.add(text)


Kind = Literal["right", "wrong", "unclear"]


def judge(sample: Sampled, example: Example) -> Kind:
    """Judge what the model wrote. What it did not end is nobody's example."""
    if not sample.is_whole or not sample.text.strip():
        return "unclear"
    if is_refusal(sample.text):
        return is_right(sample.text, example)
    if example.style == "rationale" and not has_mark(sample.text):
        return "unclear"
    return is_right(final_answer(sample.text, example.style), example)


def is_right(answer: str, example: Example) -> Kind:
    """Compare an answer with all accepted ones. A wrong one must not hold a right one, nor be nearly it: aliases are many."""
    if is_refusal(answer):
        return "wrong" if example.answers else "right"
    if not answer:
        return "unclear"
    if not example.answers:  # a refusal in other words is none of ours, nor is it an answer
        return "unclear" if score_text(answer, [NOT_FOUND])["f1"] > WRONG_F1 else "wrong"
    scores = score_text(answer, example.answers)
    if scores["em"]:
        return "right"
    held = contains_answer(answer, example.answers) or any(contains_answer(a, [answer]) for a in example.answers)
    return "unclear" if held or scores["f1"] > WRONG_F1 else "wrong"


def is_sound(reasons: str, example: Example) -> bool:
    """Tell whether reasons are of a fit length, made of what the passages say, and more than the hint again."""
    words = squad_words(reasons)
    if not LEAST_WORDS <= len(words) <= MOST_WORDS or is_refusal(reasons) or has_mark(reasons):
        return False
    shown = {word for p in example.passages for word in squad_words(f"{p.title} {p.text}")}
    hinted = set(squad_words(example.question)) | {word for answer in example.answers for word in squad_words(answer)}
    known = sum(word in shown or word in hinted for word in words) / len(words)
    used = {word for word in words if word in shown and word not in hinted and len(word) > 3}
    return known >= LEAST_KNOWN and len(used) >= LEAST_USED


def reasons_of(text: str) -> str:
    """Return what stands before the mark."""
    return text.partition(ANSWER_MARK)[0].strip()


def has_mark(text: str) -> bool:
    return ANSWER_MARK.casefold() in text.casefold()


def choose(right: Mapping[str, float], wrong: Mapping[str, float], pick: Pick, seed: str) -> tuple[str, str]:
    """Choose a right and a wrong response by what the model thinks of them."""
    if pick == "random":
        draw = random.Random(seed)
        return draw.choice(sorted(right)), draw.choice(sorted(wrong))
    least, most = (min, max) if pick == "hardest" else (max, min)
    return least(right, key=lambda text: right[text]), most(wrong, key=lambda text: wrong[text])


def read_pairs(folder: Path, part: str = "train") -> list[Pair]:
    rows = read_rows(folder / f"{part}.jsonl")
    return [Pair(**{**row, "answers": tuple(row["answers"])}) for row in rows]


def newest_pairs(run: Path) -> Path:
    """Return the folder of a run's last pairs."""
    found = sorted(path.parent for path in run.glob("pairs-[0-9]*/train.jsonl") if path.parent.suffix == "")
    if not found:
        raise UsageError(f"{run} holds no pairs", mend="give the folder of a run of train rose that has come so far")
    return found[-1]


def _hint(example: Example) -> list[Message]:
    """Ask for the reasons of an answer that is given away."""
    blocks = [
        f"Passage {n}{f' ({p.title})' if p.title else ''}:\n{' '.join(p.text.split())}"
        for n, p in enumerate(example.passages, start=1)
    ]
    task = (
        f"The question is: {example.question}\nThe right answer is: {example.target}\n"
        "Say in one or two sentences which facts of the passages lead to this answer."
    )
    return [
        Message("system", "You explain how passages answer a question."),
        Message("user", "\n\n".join([*blocks, task])),
    ]


def preference_loss(preferences: Preferences) -> Loss:
    """Return the loss of a row: of its pairs, whose answers stand one after the other, by their weights."""

    def loss(logps: Tensor, mask: Tensor, rows: Sequence[Row]) -> tuple[Tensor, dict[str, Tensor]]:
        most = logps.shape[1] // 2  # pairs of a row
        usual = usual_lengths(rows, logps).repeat_interleave(most)
        shares = answer_weights(rows, logps)[:, ::2] * 2
        pairs, masks = logps.reshape(-1, 2, logps.shape[2]), mask.reshape(-1, 2, mask.shape[2])
        if preferences.loss == "orpo":
            found = losses.orpo(pairs, masks, usual, beta=preferences.beta)
        elif preferences.loss == "dpo":
            padded = [(*row.reference, *[0.0] * (2 * most - len(row.reference))) for row in rows]
            reference = torch.tensor(padded, dtype=logps.dtype, device=logps.device).reshape(-1, 2)
            found = losses.dpo(pairs, masks, reference, beta=preferences.beta)
        else:
            found = losses.simpo(pairs, masks, beta=preferences.beta, margin=preferences.margin)
        means = losses.mean_logps(pairs, masks)
        figures = {
            "nll": losses.answer_nll(pairs, masks, usual),
            "preferred": (means[:, 0] > means[:, 1]).float(),
            "margin": means[:, 0] - means[:, 1],
        }

        def of_rows(values: Tensor) -> Tensor:
            return (values.reshape(len(rows), most) * shares).sum(-1)

        return of_rows(found), {name: of_rows(values) for name, values in figures.items()}

    return loss


def _no_pairs(part: str, counts: Counter[str]) -> EdgeRagError:
    return EdgeRagError(
        f"no pair came out of the {part} examples: {counts['no wrong response']} have no wrong response",
        mend="start from a supervised adapter (--adapter), or give more --samples, a higher --temperature or more --others",
    )


def _counts_section(title: str, counts: Mapping[str, Counter[str]]) -> Section:
    names = sorted({name for counted in counts.values() for name in counted})
    rows: list[list[Value]] = [[name, *(counted[name] for counted in counts.values())] for name in names]
    return Section(title, "", ("", *counts), rows)
