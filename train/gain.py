"""GainRAG (arXiv 2505.18710): a selector learns what helps this generator to answer, which is not what is relevant.

    candidates  questions with the passages that a search brought, or that they have themselves
    generator   the model to please, as it is fastest here (see writer)
    groups      beside the candidates a passage that the generator writes itself, unless it says that it does not know. What
                each is worth: how likely the accepted answers are made by what it adds to the question, in one prompt with
                it alone. Only questions that the generator answers rightly from the best one are learnt from
    model       a cross-encoder fitted to the softmax of the gains

Beyond the paper: gold annotations may be blended in (`gold`), and passages valued beside those that are kept already
(`together`), for questions that no passage answers alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edge_rag.answering.prompt import (
    ANSWER_MARK,
    PROMPT_VERSION,
    answer_messages,
    closed_book_messages,
    final_answer,
    pseudo_passage_messages,
    says_nothing,
)
from edge_rag.errors import UsageError
from edge_rag.evaluation.cases import as_passage
from edge_rag.evaluation.question_sets import Part, SetPassage
from edge_rag.evaluation.run_folder import content_key, file_hashes
from edge_rag.evaluation.scoring import asks_verdict, score_text
from edge_rag.interfaces import Embedder, Message, Passage, Progress, Style
from edge_rag.settings import Settings

from . import targets
from .fit import Fitted
from .language_model import Contrasted, LanguageModel
from .page import Beside, Section
from .run import ROWS, TrainingRun
from .selector import (
    CANDIDATES,
    GROUPS,
    PARTS,
    Asked,
    Group,
    Member,
    Plan,
    find_candidates,
    fit_selector,
    groups_section,
    open_base,
    selector_config,
    write_groups,
)
from .torch_model import check_folder
from .writer import as_json, borrow, key_of, open_writer, sample_once, telling

Kind = Literal["contrastive", "plain"]

GENERATOR, WRITTEN, GAINS = "generator", "written", "gains"
PSEUDO = "written by the generator"  # instead of a passage's id
PSEUDO_TOKENS, ANSWER_TOKENS = 160, 24


@dataclass(frozen=True, slots=True)
class Gain:
    """What a passage is worth, and what is made of it."""

    style: Style = "words"  # that the generator was trained for
    kind: Kind = "contrastive"  # plain: perplexity as it is, high also where the generator knows the answer anyway
    alpha: float = 0.5  # how much of what it says without the passage is taken off
    pseudo: bool = True
    only_right: bool = True  # questions that the generator answers rightly from the best passage alone
    temperature: float = 1.0  # of the softmax over the gains
    gold: float = 0.0  # weight of the gold annotations in the shares
    together: int = 1  # passages that are valued beside each other

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.temperature > 0 and 0 <= self.gold <= 1 and self.together >= 1):
            raise UsageError(
                "gains of these settings make no sense",
                mend="give an alpha of 0 or more, a temperature above 0, a weight of gold from 0 to 1, 1 or more together",
            )


def train_gain(
    base: str,
    out: Path,
    plan: Plan,
    gain: Gain,
    *,
    generator: Path,
    adapter: Path | None,
    gains: Path | None = None,
    embedder: Embedder,
    settings: Settings,
    command: str,
    force: bool = False,
    progress: Progress | None = None,
) -> Fitted:
    """Train; RUN/model holds the cross-encoder. The same call goes on with an interrupted run.

    `gains` is another run, say with another `gold`: what was scored there by the same generator is not scored again.
    """
    check_folder(generator, adapter)
    config = selector_config("gain", base, plan, {
        "generator": file_hashes(generator),
        "adapter": file_hashes(adapter) if adapter else {},
        "gain": asdict(gain),
        "prompt_version": PROMPT_VERSION,
    })  # fmt: skip
    with TrainingRun.open(out, config, command=command, force=force) as run:
        model = open_base(run, base, plan, settings)
        if gains is not None and run.is_main:
            borrow(gains, run, GAINS)
            if (gains / ROWS / f"{WRITTEN}.jsonl").is_file():
                borrow(gains, run, WRITTEN)
        asked = find_candidates(run, plan, embedder, settings, progress)
        _Valuing(run, gain, generator, adapter, plan, settings, progress).make_groups(asked)
        return fit_selector(run, plan, model, progress)


@dataclass(slots=True)
class _Valued:
    """A question, what it may be answered from, and what each of that is worth, step by step (see `together`)."""

    asked: Asked
    passages: tuple[Passage, ...]  # the candidates, then what the generator wrote, if it did
    steps: list[dict[int, float]]  # worth of the passages that were not kept, by their places
    kept: list[int]


@dataclass(frozen=True, slots=True)
class _Valuing:
    """Groups from candidates and a generator."""

    run: TrainingRun
    gain: Gain
    generator: Path
    adapter: Path | None
    plan: Plan
    settings: Settings
    progress: Progress | None

    def make_groups(self, asked: Mapping[Part, Sequence[Asked]]) -> None:
        candidates = [self.run.folder / CANDIDATES / f"{part}.jsonl" for part in PARTS]
        inputs = {
            "candidates": candidates,
            "generator": self.generator,
            "adapter": self.adapter or "",
            "gain": self.gain,
            "prompt": PROMPT_VERSION,
        }
        with self.run.stage(GROUPS, inputs) as stage:
            if stage.is_complete:
                return
            groups: dict[Part, list[Group]] = {}
            counts: dict[Part, Counter[str]] = {}
            with open_writer(
                self.run, GENERATOR, self.generator, self.adapter, context_tokens=self.settings.context_tokens,
                threads=self.settings.threads, precision=self.plan.fitting.precision, progress=self.progress,
            ) as model:  # fmt: skip
                for part in PARTS:
                    counts[part] = Counter()
                    valued = self.value(model, part, asked[part], counts[part])
                    right = self.right(model, part, valued) if self.gain.only_right else valued
                    counts[part]["not answered from the best"] = len(valued) - len(right)
                    groups[part] = [self.group(one) for one in right]
                    why = f"the generator answers none of {len(valued)} rightly from its best passage (--keep-all)"
                    write_groups(stage.folder, part, groups[part], why)
            self.run.show(GROUPS, groups_section(groups, counts))
            self.run.show(f"{GROUPS}-shown", _shown(groups["train"]))

    def value(self, model: LanguageModel, part: Part, asked: Sequence[Asked], counts: Counter[str]) -> list[_Valued]:
        """Find out what each candidate is worth alone, then each other one beside the best, and so on while that helps."""
        written = self.written(model, part, asked) if self.gain.pseudo else [""] * len(asked)
        valued = []
        for question, text in zip(asked, written, strict=True):
            passages = [as_passage(n, candidate.passage) for n, candidate in enumerate(question.candidates)]
            if text:
                passages.append(as_passage(len(passages), SetPassage(PSEUDO, "", text)))
                counts["passages written"] += 1
            valued.append(_Valued(question, tuple(passages), [], []))
        going = valued
        for step in range(1, self.gain.together + 1):
            found = self.gains(model, f"{part}, gains" + (f" beside {step - 1}" if step > 1 else ""), going)
            still = []
            for one, worth in zip(going, found, strict=True):
                if not worth or (one.steps and max(worth.values()) <= max(one.steps[-1].values())):
                    continue  # what is kept does better alone
                one.steps.append(worth)
                one.kept.append(max(worth, key=lambda place: worth[place]))
                still.append(one)
            going = still
            counts[f"{step} kept"] += len(going)
        return [one for one in valued if one.steps]

    def written(self, model: LanguageModel, part: Part, asked: Sequence[Asked]) -> list[str]:
        """Let the generator write a passage for each question; "" where it says that it does not know."""
        prompts = [pseudo_passage_messages(one.question) for one in asked]
        texts = self.answers(model, f"{part}, passages written", prompts, PSEUDO_TOKENS)
        return ["" if says_nothing(text) else text for text in texts]

    def gains(self, model: LanguageModel, what: str, valued: Sequence[_Valued]) -> list[dict[int, float]]:
        """Return the gain of each passage that is not kept, beside those that are, by its place; too long ones are left out."""
        made_by = content_key(key_of(self.generator, self.adapter, model), self.gain.alpha)
        lists = [self.prompts(model, one) for one in valued]
        without = [self.asked_for(closed_book_messages(one.asked.question, style=self.gain.style)) for one in valued]
        answers = [self.given(one.asked) for one in valued]
        keys = [
            {place: content_key(made_by, as_json(prompt), as_json(plain), texts) for place, prompt in prompts.items()}
            for prompts, plain, texts in zip(lists, without, answers, strict=True)
        ]
        with self.run.rows(GAINS) as known:
            new = [{p: key for p, key in own.items() if key not in known} for own in keys]
            lacking = [n for n, own in enumerate(new) if own]
            tell = telling(self.progress, what, len(lacking))

            def keep(index: int, found: list[list[Contrasted]]) -> None:
                for key, scores in zip(new[lacking[index]].values(), found, strict=True):
                    known.add(key, {"plain": _likeliest([s.logprobs for s in scores]),
                                    "contrastive": _likeliest([s.contrasts for s in scores])})  # fmt: skip
                tell(index, found)

            if lacking:
                model.contrast(
                    [[lists[n][place] for place in new[n]] for n in lacking], [without[n] for n in lacking],
                    [answers[n] for n in lacking], keep, alpha=self.gain.alpha,
                )  # fmt: skip
            return [{place: targets.gain([known[key][self.gain.kind]]) for place, key in own.items()} for own in keys]

    def prompts(self, model: LanguageModel, one: _Valued) -> dict[int, list[Message]]:
        """Return the prompt of each passage that is not kept, after those that are, if it leaves room for the answers."""
        kept = [one.passages[place] for place in one.kept]
        found = {
            place: self.prompt(one.asked, [*kept, passage])
            for place, passage in enumerate(one.passages)
            if place not in one.kept
        }
        room = model.context_tokens - max(len(answer.encode()) for answer in self.given(one.asked)) - ANSWER_TOKENS
        return {place: prompt for place, prompt in found.items() if model.count_tokens(prompt) <= room}

    def right(self, model: LanguageModel, part: Part, valued: Sequence[_Valued]) -> list[_Valued]:
        """Keep the questions that the generator answers rightly from what was found best."""
        prompts = [self.prompt(one.asked, [one.passages[place] for place in one.kept]) for one in valued]
        found = self.answers(model, f"{part}, answers from the best", prompts, ANSWER_TOKENS)
        return [one for one, text in zip(valued, found, strict=True) if self.is_right(text, one.asked.answers)]

    def is_right(self, output: str, answers: Sequence[str]) -> bool:
        scores = score_text(final_answer(output, self.gain.style), answers)
        return bool(scores["accuracy"] if asks_verdict(answers) else scores["contains"])

    def group(self, one: _Valued) -> Group:
        """Make the shares of what passages are worth. Each step counts alike: a choice among those that no other step keeps."""
        n, n_searched = len(one.passages), len(one.asked.candidates)
        shares = np.zeros(n)
        for worth, kept in zip(one.steps, one.kept, strict=True):
            places = [place for place in worth if place == kept or place not in one.kept]
            values = [worth[place] for place in places]
            shares[places] += targets.shares(values, self.gain.temperature) / len(one.steps)
        gold = [*(candidate.passage.gold for candidate in one.asked.candidates), False][:n]
        blended = targets.blended(shares, gold, self.gain.gold)
        members = [
            Member(
                passage.document, passage.title, passage.text, gold[place], place + 1 if place < n_searched else None,
                one.steps[0].get(place), float(blended[place]) if place in one.steps[0] else None,
            )
            for place, passage in enumerate(one.passages)
        ]  # fmt: skip
        return Group(one.asked.id, one.asked.set, one.asked.question, one.asked.answers, tuple(members))

    # --- prompts

    def prompt(self, asked: Asked, passages: Sequence[Passage]) -> list[Message]:
        return self.asked_for(answer_messages(asked.question, passages, style=self.gain.style))

    def asked_for(self, messages: list[Message]) -> list[Message]:
        """Let the answer begin at once: one that gives reasons first is begun with what stands before its answer."""
        return [*messages, Message("assistant", ANSWER_MARK)] if self.gain.style == "rationale" else messages

    def given(self, asked: Asked) -> list[str]:
        space = " " if self.gain.style == "rationale" else ""
        return [space + answer for answer in asked.distinct_answers]

    def answers(self, model: LanguageModel, what: str, prompts: list[list[Message]], max_tokens: int) -> list[str]:
        samples = sample_once(
            self.run, WRITTEN, model, key_of(self.generator, self.adapter, model), prompts, n=1, max_tokens=max_tokens,
            temperature=0.0, seed=0, what=what, progress=self.progress,
        )  # fmt: skip
        return [sample.text.strip() for (sample,) in samples]


def _likeliest(answers: Sequence[tuple[float, ...]]) -> float:
    """Return the mean log-probability of a token of the answer that is likeliest: that of the least perplexity."""
    return max(sum(logprobs) / len(logprobs) for logprobs in answers)


def _shown(groups: Sequence[Group]) -> Section:
    """Show what search and generator find best, where they do not agree."""
    pairs = []
    for group in groups:
        first = min(group.members, key=lambda m: m.rank or len(group.members) + 1)
        best = max(group.members, key=lambda m: m.worth if m.worth is not None else float("-inf"))
        if best is not first:
            left = f"gain {best.worth:.2f}, " + (f"search {best.rank}" if best.rank else best.id) + ", gold" * best.gold
            right = f"search {first.rank}" + ("" if first.worth is None else f", gain {first.worth:.2f}")
            pairs.append(
                Beside(
                    group.question, left, f"{best.title}\n{best.text}", right + ", gold" * first.gold,
                    f"{first.title}\n{first.text}", f"accepted: {' | '.join(group.answers)}",
                )
            )  # fmt: skip
    note = "What helps the generator most, beside what the search found best, where these differ."
    return Section("Passages", note, pairs=pairs[:30])
