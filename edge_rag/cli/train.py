"""edge-rag train: models that bad retrieval does not mislead."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edge_rag.cli.common import JsonFlag, RunByDefault, command_line, one_of, print_json, progress_of, settings_of

app = typer.Typer(help="Train models that bad retrieval does not mislead.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Train models that bad retrieval does not mislead."""


BaseOption = Annotated[
    Path, typer.Option(help="Hugging Face folder of the model (made by export hf).", metavar="MODEL_DIR")
]
SetsOption = Annotated[
    list[str], typer.Option("--set", help="A question file, or a name under EDGE_RAG_DATA. Repeatable.", metavar="SET")
]
AdapterOption = Annotated[
    Path | None, typer.Option(help="peft adapter to start from: that of train supervised.", metavar="PEFT_DIR")
]
OutOption = Annotated[Path, typer.Option(help="Folder of the run.", metavar="DIR")]


LimitOption = Annotated[int | None, typer.Option(help="Examples of each set. [default: all]", min=1)]
DevLimitOption = Annotated[int, typer.Option(help="Dev examples of each set, to choose the weights by.", min=1)]
OthersOption = Annotated[int, typer.Option(help="Passages that do not hold the answer: 0 to so many.", min=0)]
AbsentOption = Annotated[float, typer.Option(help="Share of examples that are to abstain.", min=0, max=0.99)]
DrawsOption = Annotated[int, typer.Option(help="Examples of each question.", min=1)]
TogetherOption = Annotated[
    int,
    typer.Option(help="Examples whose passages are shown together, computed once, and asked about one by one.", min=1),
]
PromptTokensOption = Annotated[int, typer.Option(help="Longest prompt; others are left out until it fits.", min=64)]
RankOption = Annotated[int, typer.Option(help="Rank of the adapter; 0 trains all weights.", min=0)]
RateOption = Annotated[float, typer.Option(help="Highest learning rate.")]
BatchOption = Annotated[int, typer.Option(help="Prompts for each step, over all processes.", min=1)]
EpochsOption = Annotated[float, typer.Option(help="Times that the examples are gone through.")]
EveryOption = Annotated[int, typer.Option(help="Steps between looks at dev, and checkpoints.", min=1)]
PatienceOption = Annotated[int, typer.Option(help="Looks at dev without a better one before it ends.", min=1)]
PrecisionOption = Annotated[
    str,
    typer.Option(help="Of matrix products: float32, bfloat16, or auto: bfloat16 where that is fast.", metavar="NAME"),
]
SeedOption = Annotated[int, typer.Option(help="Draws examples, orders, samples, first weights.", min=0)]
ForceOption = Annotated[bool, typer.Option("--force", help="Go on in DIR though settings have changed.")]


@app.command()
def supervised(
    context: typer.Context,
    base: BaseOption,
    set: SetsOption,
    out: OutOption,
    limit: LimitOption = None,
    dev_limit: DevLimitOption = 40,
    others: OthersOption = 9,
    absent: AbsentOption = 0.2,
    draws: DrawsOption = 1,
    adapter: AdapterOption = None,
    prompt: Annotated[
        list[str],
        typer.Option(
            help="What is asked for: words, sentence, rationale. Repeatable: one is drawn; the first is noted for later.",
            metavar="STYLE",
        ),
    ] = ["words"],  # noqa: B006
    prompt_tokens: PromptTokensOption = 1024,
    together: TogetherOption = 1,
    lora_rank: RankOption = 32,
    learning_rate: RateOption = 4e-4,
    batch: BatchOption = 8,
    epochs: EpochsOption = 1.0,
    evaluate_every: EveryOption = 50,
    patience: PatienceOption = 3,
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonFlag = False,
) -> None:
    """Train a model to answer from passages of which some, or all, do not hold the answer.

    DIR/model/adapter is the adapter, DIR/page.html shows how it went. Interrupted, the same command goes on. With several
    GPUs or machines: accelerate launch -m edge_rag train supervised ...

    Example: edge-rag train supervised --base ./smollm2 --set squad/train --set hotpotqa/distractor --out ./run
    """
    check_extras()
    from edge_rag.models import open_embedder
    from edge_rag.train.examples import Noise
    from edge_rag.train.fit import Fitting
    from edge_rag.train.supervised import Plan, train_supervised

    settings = settings_of(context)
    plan = Plan(
        tuple(dict.fromkeys(set)), limit, dev_limit, Noise(others, absent, draws),
        tuple(dict.fromkeys(one_of("--prompt", style, ("words", "sentence", "rationale")) for style in prompt)),
        prompt_tokens, together, lora_rank,
        Fitting(
            learning_rate, batch, epochs, evaluate_every=evaluate_every, patience=patience, precision=precision_of(precision),
            seed=seed,
        ),
    )  # fmt: skip
    fitted = train_supervised(
        base, out, plan, adapter=adapter, embedder=open_embedder(settings.embedder, threads=settings.threads), settings=settings,
        command=command_line(), force=force, progress=progress_of(context),
    )  # fmt: skip
    _report(fitted, base, out, json)


rose = typer.Typer(
    cls=RunByDefault,
    help="RoseRAG: prefer right responses to wrong ones. train rose --base ... is train rose run --base ...",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(rose, name="rose")


@rose.command("run")
def rose_run(
    context: typer.Context,
    base: BaseOption,
    set: SetsOption,
    out: OutOption,
    adapter: AdapterOption = None,
    limit: LimitOption = None,
    dev_limit: DevLimitOption = 40,
    others: OthersOption = 9,
    absent: AbsentOption = 0.2,
    draws: DrawsOption = 1,
    prompt: Annotated[str, typer.Option(help="What is asked for: rationale or words.", metavar="STYLE")] = "rationale",
    prompt_tokens: PromptTokensOption = 1024,
    together: TogetherOption = 1,
    samples: Annotated[int, typer.Option(help="Responses of each kind to each question.", min=1)] = 4,
    temperature: Annotated[float, typer.Option(help="At which they are sampled.", min=0.01)] = 0.8,
    rejection: Annotated[
        bool, typer.Option("--rejection/--no-rejection", help="Keep only reasons that lead to the right answer.")
    ] = True,
    pick: Annotated[str, typer.Option(help="Pairs: hardest, random or easiest.", metavar="HOW")] = "hardest",
    loss: Annotated[str, typer.Option(help="orpo, dpo or simpo.", metavar="NAME")] = "orpo",
    beta: Annotated[float | None, typer.Option(help="Of the loss. [default: 0.1; 2 of simpo]")] = None,
    margin: Annotated[float, typer.Option(help="Of simpo.")] = 0.5,
    prompt_loss: Annotated[bool, typer.Option("--prompt-loss", help="Of orpo: likelihood of the prompt, too.")] = False,
    responses: Annotated[
        Path | None, typer.Option(help="Another run, whose responses of the same model are used.", metavar="RUN")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Each begins with the model of the one before.", min=1)] = 1,
    lora_rank: RankOption = 32,
    learning_rate: RateOption = 5e-5,
    batch: BatchOption = 8,
    epochs: EpochsOption = 1.0,
    evaluate_every: EveryOption = 50,
    patience: PatienceOption = 3,
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonFlag = False,
) -> None:
    """Let a model write right and wrong responses, and train it to prefer the right ones.

    DIR/model/adapter is the adapter, DIR/page.html shows how it went, train rose inspect DIR the pairs. Interrupted, the
    same command goes on.

    Example: edge-rag train rose run --base ./smollm2 --adapter ./run/model/adapter --set hotpotqa/distractor --out ./rose
    """
    check_extras()
    from edge_rag.errors import UsageError
    from edge_rag.models import open_embedder
    from edge_rag.train.examples import Noise
    from edge_rag.train.fit import Fitting
    from edge_rag.train.rose import Preferences, train_rose
    from edge_rag.train.supervised import Plan

    settings = settings_of(context)
    plan = Plan(
        tuple(dict.fromkeys(set)), limit, dev_limit, Noise(others, absent, draws),
        (one_of("--prompt", prompt, ("rationale", "words")),), prompt_tokens, together, lora_rank,
        Fitting(
            learning_rate, batch, epochs, evaluate_every=evaluate_every, patience=patience, prompt_loss=prompt_loss,
            precision=precision_of(precision), seed=seed,
        ),
    )  # fmt: skip
    one_of("--loss", loss, ("orpo", "dpo", "simpo"))
    if prompt_loss and loss != "orpo":
        raise UsageError(f"{loss} has no likelihood that the prompt could be part of", mend="leave out --prompt-loss")
    if prompt_loss and together > 1:
        raise UsageError("a prompt of several questions has no likelihood of its own", mend="leave out --prompt-loss")
    preferences = Preferences(
        samples, temperature, rejection, one_of("--pick", pick, ("hardest", "random", "easiest")), loss,
        (2.0 if loss == "simpo" else 0.1) if beta is None else beta, margin, rounds,
    )  # fmt: skip
    fitted = train_rose(
        base, out, plan, preferences, adapter=adapter, responses=responses,
        embedder=open_embedder(settings.embedder, threads=settings.threads), settings=settings,
        command=command_line(), force=force, progress=progress_of(context),
    )  # fmt: skip
    _report(fitted, base, out, json)


@rose.command("inspect")
def rose_inspect(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run of train rose.", metavar="RUN")],
    limit: Annotated[int, typer.Option(help="Pairs that are shown.", min=1)] = 10,
    part: Annotated[str, typer.Option(help="train or dev.", metavar="PART")] = "train",
    json: JsonFlag = False,
) -> None:
    """Show pairs side by side: what the model is to prefer, and to what.

    Example: edge-rag train rose inspect ./rose --limit 5
    """
    check_extras()
    from edge_rag.train.rose import newest_pairs, read_pairs

    pairs = read_pairs(newest_pairs(run), one_of("--part", part, ("train", "dev")))
    if json:
        print_json(pairs[:limit])
        return
    for pair in pairs[:limit]:
        print(f"{pair.question}\n  right answers: {' | '.join(pair.answers) or 'none: not in these passages'}")
        print(f"  chosen   {pair.chosen_logprob:6.2f}  {' '.join(pair.chosen.split())}")
        print(f"  rejected {pair.rejected_logprob:6.2f}  {' '.join(pair.rejected.split())}\n")
    print(
        f"{min(limit, len(pairs))} of {len(pairs)} pairs; the figures are mean log-probabilities of a token before training"
    )


def precision_of(name: str) -> Any:
    return one_of("--precision", name, ("auto", "float32", "bfloat16"))


def _report(fitted: Any, base: Path, out: Path, json: bool) -> None:
    if json:
        print_json(fitted)
        return
    print_loss(fitted)
    adapter, model = out / "model" / "adapter", out / "model" / "model"
    trained = adapter if adapter.is_dir() else model
    print(f"{trained}: what was trained; {out / 'page.html'}: how it went")
    if trained == adapter:
        print(f"to run it: edge-rag export lora {trained} -o adapter.gguf --base {base}")
    else:
        print(f"to run it: edge-rag export gguf {trained} -o model.gguf")


def print_loss(fitted: Any) -> None:
    print(f"loss on dev {fitted.first_loss:.3f} before, {fitted.best_loss:.3f} at step {fitted.best_step} of {fitted.steps}"
          f" ({fitted.tokens_per_second:,.0f} tokens/s)")  # fmt: skip


def check_extras() -> None:
    from importlib.util import find_spec

    from edge_rag.errors import MissingExtraError

    if any(find_spec(name) is None for name in ("accelerate", "peft", "torch", "transformers")):
        raise MissingExtraError("train", "training")
