"""edge-rag train gain, radio, relevance and inspect: selectors that learn which passages to show."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edge_rag.cli.common import JsonFlag, command_line, one_of, print_json, progress_of, settings_of
from edge_rag.cli.train import (
    EveryOption,
    ForceOption,
    OutOption,
    PatienceOption,
    PrecisionOption,
    RateOption,
    SeedOption,
    SetsOption,
    check_extras,
    precision_of,
    print_loss,
)

SelectorBaseOption = Annotated[
    str, typer.Option(help="An embedder, or the Hugging Face folder of an encoder.", metavar="NAME|MODEL_DIR")
]
GeneratorOption = Annotated[
    Path, typer.Option(help="Hugging Face folder of the model that is to be helped.", metavar="MODEL_DIR")
]
GeneratorAdapterOption = Annotated[Path | None, typer.Option(help="peft adapter of the generator.", metavar="PEFT_DIR")]
LibraryOption = Annotated[
    Path | None, typer.Option(help="Library that is searched. [default: own passages, else the set's]", metavar="DIR")
]
CandidatesOption = Annotated[int, typer.Option(help="Passages of each question to choose from.", min=2)]
SearchOption = Annotated[str, typer.Option(help="How they are searched: fused, dense or lexical.", metavar="HOW")]
GroupOption = Annotated[int, typer.Option(help="Passages of a question that are trained with.", min=2)]
MaxTokensOption = Annotated[int, typer.Option(help="Most tokens of a question with a passage.", min=32)]
QuestionsOption = Annotated[int | None, typer.Option("--limit", help="Questions of each set. [default: all]", min=1)]
DevQuestionsOption = Annotated[
    int, typer.Option("--dev-limit", help="Dev questions of each set, to choose the weights by.", min=1)
]
QuestionBatchOption = Annotated[int, typer.Option(help="Questions for each step, over all processes.", min=1)]
QuestionEpochsOption = Annotated[float, typer.Option(help="Times that the questions are gone through.")]


def add_to(app: typer.Typer) -> None:
    for command in (gain, radio, relevance, inspect):
        app.command()(command)


def gain(
    context: typer.Context,
    generator: GeneratorOption,
    set: SetsOption,
    out: OutOption,
    base: SelectorBaseOption = "all-minilm-l6-v2",
    adapter: GeneratorAdapterOption = None,
    library: LibraryOption = None,
    limit: QuestionsOption = None,
    dev_limit: DevQuestionsOption = 40,
    candidates: CandidatesOption = 10,
    search: SearchOption = "fused",
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What it is asked for: words, sentence, rationale. [default: what it was trained for]", metavar="STYLE"
        ),
    ] = None,
    gain: Annotated[
        str, typer.Option(help="contrastive, or plain: also high where the generator knows the answer.", metavar="KIND")
    ] = "contrastive",
    alpha: Annotated[float, typer.Option(help="How much of what it knows by itself is taken off.", min=0)] = 0.5,
    pseudo: Annotated[
        bool, typer.Option("--pseudo/--no-pseudo", help="A passage that the generator writes is a candidate, too.")
    ] = True,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Learn from questions that it answers wrongly from the best, too.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Of the softmax over the gains.", min=0.01)] = 1.0,
    gold: Annotated[float, typer.Option(help="Weight of gold annotations beside the gains.", min=0, max=1)] = 0.0,
    together: Annotated[
        int, typer.Option(help="Passages valued together: each beside the best ones before.", min=1)
    ] = 1,
    gains: Annotated[
        Path | None, typer.Option(help="Another run, whose gains by the same generator are used.", metavar="RUN")
    ] = None,
    group: GroupOption = 16,
    max_tokens: MaxTokensOption = 384,
    learning_rate: RateOption = 6e-5,
    batch: QuestionBatchOption = 8,
    epochs: QuestionEpochsOption = 2.0,
    evaluate_every: EveryOption = 50,
    patience: PatienceOption = 3,
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonFlag = False,
) -> None:
    """GainRAG: train a selector to find what helps a generator to answer.

    DIR/model/model is the selector, DIR/page.html shows how it went, train inspect DIR what it has learnt from. Interrupted,
    the same command goes on.

    Example: edge-rag train gain --generator ./smollm2 --adapter ./run/model/adapter --set hotpotqa/distractor --out ./gain
    """
    check_extras()
    from edge_rag.models import open_embedder
    from edge_rag.models.prompt_style import noted_style
    from edge_rag.train.gain import Gain, train_gain

    settings = settings_of(context)
    plan = plan_of(
        set, library, limit, dev_limit, candidates, search, group, max_tokens,
        (learning_rate, batch, epochs, evaluate_every, patience, precision, seed),
    )  # fmt: skip
    worth = Gain(
        noted_style(adapter, generator) if prompt is None else one_of("--prompt", prompt, ("words", "sentence", "rationale")),
        one_of("--gain", gain, ("contrastive", "plain")), alpha, pseudo, not keep_all, temperature, gold, together,
    )  # fmt: skip
    fitted = train_gain(
        base, out, plan, worth, generator=generator, adapter=adapter, gains=gains,
        embedder=open_embedder(settings.embedder, threads=settings.threads), settings=settings,
        command=command_line(), force=force, progress=progress_of(context),
    )  # fmt: skip
    _report_selector(fitted, out, json)


def radio(
    context: typer.Context,
    set: SetsOption,
    out: OutOption,
    base: SelectorBaseOption = "all-minilm-l6-v2",
    generator: Annotated[
        Path | None, typer.Option(help="Hugging Face folder of the model that writes rationales.", metavar="MODEL_DIR")
    ] = None,
    adapter: GeneratorAdapterOption = None,
    library: LibraryOption = None,
    limit: QuestionsOption = None,
    dev_limit: DevQuestionsOption = 40,
    candidates: CandidatesOption = 20,
    search: SearchOption = "fused",
    rationale: Annotated[
        str, typer.Option(help="model: the generator says why; quotes: of the gold passages.", metavar="SOURCE")
    ] = "model",
    weight: Annotated[float, typer.Option(help="Of the rationale; the rest is the search's.", min=0, max=1)] = 0.5,
    spare: Annotated[
        bool, typer.Option("--spare", help="A passage that is gold, or holds the answer, is never wrong.")
    ] = False,
    group: GroupOption = 16,
    max_tokens: MaxTokensOption = 384,
    learning_rate: RateOption = 6e-5,
    batch: QuestionBatchOption = 8,
    epochs: QuestionEpochsOption = 2.0,
    evaluate_every: EveryOption = 50,
    patience: PatienceOption = 3,
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonFlag = False,
) -> None:
    """RADIO: train a selector to find what the reasons of an answer need.

    DIR/model/model is the selector, DIR/page.html shows how it went, train inspect DIR what it has learnt from. Interrupted,
    the same command goes on.

    Example: edge-rag train radio --rationale quotes --set hotpotqa/distractor --out ./radio
    """
    check_extras()
    from edge_rag.models import open_embedder
    from edge_rag.train.radio import Rationales, train_radio

    settings = settings_of(context)
    plan = plan_of(
        set, library, limit, dev_limit, candidates, search, group, max_tokens,
        (learning_rate, batch, epochs, evaluate_every, patience, precision, seed),
    )  # fmt: skip
    fitted = train_radio(
        base, out, plan, Rationales(one_of("--rationale", rationale, ("model", "quotes")), weight, spare),
        generator=generator, adapter=adapter, embedder=open_embedder(settings.embedder, threads=settings.threads),
        settings=settings, command=command_line(), force=force, progress=progress_of(context),
    )  # fmt: skip
    _report_selector(fitted, out, json)


def relevance(
    context: typer.Context,
    set: SetsOption,
    out: OutOption,
    base: SelectorBaseOption = "all-minilm-l6-v2",
    library: LibraryOption = None,
    limit: QuestionsOption = None,
    dev_limit: DevQuestionsOption = 40,
    candidates: CandidatesOption = 10,
    search: SearchOption = "fused",
    group: GroupOption = 16,
    max_tokens: MaxTokensOption = 384,
    learning_rate: RateOption = 6e-5,
    batch: QuestionBatchOption = 8,
    epochs: QuestionEpochsOption = 2.0,
    evaluate_every: EveryOption = 50,
    patience: PatienceOption = 3,
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonFlag = False,
) -> None:
    """Train a selector to find the gold passages: what gain and radio must beat.

    DIR/model/model is the selector, DIR/page.html shows how it went. Interrupted, the same command goes on.

    Example: edge-rag train relevance --set hotpotqa/distractor --out ./relevance
    """
    check_extras()
    from edge_rag.models import open_embedder
    from edge_rag.train.relevance import train_relevance

    settings = settings_of(context)
    plan = plan_of(
        set, library, limit, dev_limit, candidates, search, group, max_tokens,
        (learning_rate, batch, epochs, evaluate_every, patience, precision, seed),
    )  # fmt: skip
    fitted = train_relevance(
        base, out, plan, embedder=open_embedder(settings.embedder, threads=settings.threads), settings=settings,
        command=command_line(), force=force, progress=progress_of(context),
    )  # fmt: skip
    _report_selector(fitted, out, json)


def inspect(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run of train gain, radio or relevance.", metavar="RUN")],
    limit: Annotated[int, typer.Option(help="Questions that are shown.", min=1)] = 5,
    part: Annotated[str, typer.Option(help="train or dev.", metavar="PART")] = "train",
    json: JsonFlag = False,
) -> None:
    """Show what a selector has learnt from: candidates by what the method finds them worth, with their rank in the search.

    Example: edge-rag train inspect ./gain --limit 5
    """
    check_extras()
    from edge_rag.train.selector import read_groups

    groups = read_groups(run, one_of("--part", part, ("train", "dev")))
    if json:
        print_json(groups[:limit])
        return
    for found in groups[:limit]:
        print(f"{found.question}\n  accepted: {' | '.join(found.answers[:5])}\n     worth  share  search  gold")
        for m in sorted(found.members, key=lambda m: float("-inf") if m.worth is None else m.worth, reverse=True):
            worth, share = "-" if m.worth is None else f"{m.worth:.2f}", "-" if m.share is None else f"{m.share:.2f}"
            text = " ".join(f"{m.title or m.id}: {m.text}".split())[:80]
            print(f"    {worth:>6}  {share:>5}  {m.rank or '-':>6}  {'gold' if m.gold else '':4}  {text}")
        print()
    print(
        f"{min(limit, len(groups))} of {len(groups)} questions; share: of the score that it is to have, - if it has no part"
    )


def plan_of(
    sets: list[str], library: Path | None, limit: int | None, dev_limit: int, candidates: int, search: str, group: int,
    max_tokens: int, how: tuple[float, int, float, int, int, str, int],
) -> Any:  # fmt: skip
    from edge_rag.train.fit import Fitting
    from edge_rag.train.selector import Plan

    learning_rate, batch, epochs, evaluate_every, patience, precision, seed = how
    fitting = Fitting(
        learning_rate,
        batch,
        epochs,
        warmup=0.1,
        evaluate_every=evaluate_every,
        patience=patience,
        precision=precision_of(precision),
        seed=seed,
    )
    return Plan(
        tuple(dict.fromkeys(sets)), str(library or ""), limit, dev_limit, candidates,
        one_of("--search", search, ("fused", "dense", "lexical")), group, max_tokens, fitting,
    )  # fmt: skip


def _report_selector(fitted: Any, out: Path, json: bool) -> None:
    if json:
        print_json(fitted)
        return
    print_loss(fitted)
    print(f"{out / 'model' / 'model'}: what was trained; {out / 'page.html'}: how it went")
    print(f"to use it: edge-rag export selector {out} -o selector")
