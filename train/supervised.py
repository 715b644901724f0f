"""Supervised training: right answers from passages of which some, or all, do not hold them.

    examples    questions with the passages that answer them among others that do not, or with such others only
    model       an adapter (or all weights) fitted to the answers; the weights that were best on dev are kept

It is what the other methods must beat, and what they start from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edge_rag.answering.prompt import PROMPT_VERSION
from edge_rag.evaluation.question_sets import Part, load_set
from edge_rag.evaluation.run_folder import Rows, file_hashes, read_rows
from edge_rag.interfaces import Embedder, Progress, Style
from edge_rag.settings import Settings

from .answers import Row, answers_loss, fit_to_answers, sharing_prompts, weighed
from .examples import Example, Noise, Statistics, example_of_row, example_row, examples_of
from .fit import Fitted, Fitting
from .joining import groups_of, joined
from .page import examples_section
from .quotes import reasoned_target
from .run import TrainingRun
from .trainable import Trainable, open_trainable

EXAMPLES, MODEL = "examples", "model"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a supervised training depends on, but the base model."""

    sets: tuple[str, ...]
    limit: int | None = None  # examples of each set
    dev_limit: int = 40  # of each set, to choose the best weights by
    noise: Noise = field(default_factory=Noise)
    styles: tuple[Style, ...] = ("words",)  # each example is asked in one of them
    prompt_tokens: int = 1024
    together: int = 1  # examples whose passages are shown together, and asked about one by one
    lora_rank: int = 32  # 0: all weights are trained
    fitting: Fitting = field(default_factory=Fitting)


def train_supervised(
    base: Path,
    out: Path,
    plan: Plan,
    *,
    adapter: Path | None = None,
    embedder: Embedder,
    settings: Settings,
    command: str,
    force: bool = False,
    progress: Progress | None = None,
) -> Fitted:
    """Train, from `adapter` on if there is one; RUN/model holds the new one. The same call goes on with an interrupted run."""
    model = model_to_train(base, adapter, plan, settings)
    config = {
        "method": "supervised",
        "base": file_hashes(base),
        "adapter": file_hashes(adapter) if adapter else {},
        **asdict(plan),
        "sets": hashes_of_sets(plan),
        "prompt_version": PROMPT_VERSION,
    }
    with TrainingRun.open(out, config, command=command, force=force) as run:
        examples = make_examples(run, plan, model, embedder, settings, progress)
        return fit_answers(run, plan, model, base, adapter, examples, progress)


def model_to_train(base: Path, adapter: Path | None, plan: Plan, settings: Settings) -> Trainable:
    return open_trainable(
        base, adapter=adapter, lora_rank=plan.lora_rank, threads=settings.threads, seed=plan.fitting.seed,
        precision=plan.fitting.precision,
    )  # fmt: skip


def hashes_of_sets(plan: Plan) -> dict[str, str]:
    return {name: load_set(name, limit=1).sha256 for name in plan.sets}


def make_examples(
    run: TrainingRun,
    plan: Plan,
    model: Trainable,
    embedder: Embedder,
    settings: Settings,
    progress: Progress | None,
) -> Path:
    """Make the examples of all sets; return the folder that holds train.jsonl and dev.jsonl."""
    inputs = {
        "sets": hashes_of_sets(plan),
        "limits": [plan.limit, plan.dev_limit],
        "noise": plan.noise,
        "styles": plan.styles,
        "prompt": [PROMPT_VERSION, plan.prompt_tokens],
        "together": plan.together,
        "seed": plan.fitting.seed,
    }
    with run.stage(EXAMPLES, inputs) as stage:
        if not stage.is_complete:
            statistics: dict[str, list[Statistics]] = {}
            parts: Mapping[Part, int | None] = {"train": plan.limit, "dev": plan.dev_limit}
            for part, limit in parts.items():
                statistics[part], found = [], []
                for name in plan.sets:
                    examples, told = examples_of(
                        load_set(name, part=part), plan.noise, counter=model, styles=plan.styles,
                        prompt_tokens=plan.prompt_tokens, embedder=embedder, settings=settings,
                        seed=plan.fitting.seed, limit=limit, progress=progress,
                    )  # fmt: skip
                    statistics[part].append(told)
                    found += examples
                (stage.folder / f"{part}.jsonl").unlink(missing_ok=True)
                with Rows(stage.folder / f"{part}.jsonl") as rows:
                    for example in joined(
                        found, plan.together, model, plan.prompt_tokens, embedder=embedder, seed=plan.fitting.seed,
                        progress=progress,
                    ):  # fmt: skip
                        rows.add(example_row(example))
            run.show(EXAMPLES, examples_section(statistics, plan.together))
    return run.folder / EXAMPLES


def fit_answers(
    run: TrainingRun,
    plan: Plan,
    model: Trainable,
    base: Path,
    adapter: Path | None,
    examples: Path,
    progress: Progress | None,
) -> Fitted:
    """Fit the model to the answers, and save what was trained."""

    def rows() -> tuple[list[Row], list[Row]]:
        train, dev = (
            rows_of(read_examples(examples, part), model, share=plan.together > 1) for part in ("train", "dev")
        )
        return train, dev

    inputs = {
        "examples": [examples / "train.jsonl", examples / "dev.jsonl"],
        "base": base,
        "adapter": adapter or "",
        "lora_rank": plan.lora_rank,
    }
    return fit_to_answers(run, MODEL, inputs, model, rows, answers_loss, plan.fitting, plan.styles[0], progress)


def read_examples(folder: Path, part: str) -> list[Example]:
    return [example_of_row(row) for row in read_rows(folder / f"{part}.jsonl")]


def rows_of(examples: Sequence[Example], model: Trainable, *, share: bool = False) -> list[Row]:
    """Turn examples into tokens; `share`: those that were joined share a row."""
    targets = [reasoned_target(e) if e.style == "rationale" else e.target for e in examples]
    rows = [Row(model.prompt(e.prompt), (model.answer(target),)) for e, target in zip(examples, targets, strict=True)]
    rows = weighed(rows, [e.style for e in examples])
    return sharing_prompts(rows, groups_of(examples)) if share else rows
