"""edge-rag train dro: a selector that writes lists, and the generator that answers from them, learn together."""

from pathlib import Path
from typing import Annotated

import typer

from edge_rag.cli.common import JsonFlag, command_line, one_of, print_json, progress_of, settings_of
from edge_rag.cli.train import (
    AdapterOption,
    BaseOption,
    EveryOption,
    ForceOption,
    OutOption,
    PatienceOption,
    PrecisionOption,
    RankOption,
    RateOption,
    SeedOption,
    SetsOption,
    check_extras,
)
from edge_rag.cli.train_selectors import (
    CandidatesOption,
    DevQuestionsOption,
    LibraryOption,
    QuestionBatchOption,
    QuestionEpochsOption,
    QuestionsOption,
    SearchOption,
    plan_of,
)


def dro(
    context: typer.Context,
    base: BaseOption,
    set: SetsOption,
    out: OutOption,
    adapter: AdapterOption = None,
    library: LibraryOption = None,
    limit: QuestionsOption = None,
    dev_limit: DevQuestionsOption = 40,
    candidates: CandidatesOption = 10,
    search: SearchOption = "fused",
    keep: Annotated[int, typer.Option(help="Passages of a list.", min=1)] = 4,
    samples: Annotated[int, typer.Option(help="Lists that are drawn for each question.", min=1)] = 4,
    iterations: Annotated[int, typer.Option(help="At most; they end when F1 on dev ends to rise.", min=1)] = 3,
    per_iteration: Annotated[
        int | None, typer.Option(help="Questions of an iteration, drawn anew for each. [default: all]", min=1)
    ] = None,
    temperature: Annotated[float, typer.Option(help="At which lists are drawn.", min=0.01)] = 0.8,
    sharpness: Annotated[float, typer.Option(help="Of the weights of lists; 1 is Bayes's rule.", min=0.01)] = 1.0,
    likelihood: Annotated[
        str, typer.Option(help="Of answers: mean over the tokens, or whole as in the paper.", metavar="KIND")
    ] = "mean",
    words: Annotated[int, typer.Option(help="Words of a candidate that the selector sees; 0: all.", min=0)] = 60,
    freeze: Annotated[str, typer.Option(help="selector or generator: it stays as it is.", metavar="WHICH")] = "",
    teacher: Annotated[
        Path | None,
        typer.Option(help="Exported selector that orders the first lists. [default: the search]", metavar="DIR"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What it is asked for: words, sentence. [default: what it was trained for]", metavar="STYLE"),
    ] = None,
    lora_rank: RankOption = 32,
    learning_rate: RateOption = 2e-4,
    batch: QuestionBatchOption = 8,
    epochs: QuestionEpochsOption = 1.0,
    evaluate_every: EveryOption = 50,
    patience: PatienceOption = 3,
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonFlag = False,
) -> None:
    """DRO: let a selector write lists of passages, and train it and the generator by how likely right answers are from them.

    DIR/model/selector and DIR/model/generator are the adapters, as they were best on dev; DIR/page.html shows how it went.
    Interrupted, the same command goes on.

    Example: edge-rag train dro --base ./smollm2 --adapter ./run/model/adapter --set hotpotqa/distractor --out ./dro
    """
    check_extras()
    from edge_rag.errors import UsageError
    from edge_rag.models import open_embedder
    from edge_rag.models.prompt_style import noted_style
    from edge_rag.train.dro import Joint, train_dro

    settings = settings_of(context)
    plan = plan_of(
        set, library, limit, dev_limit, candidates, search, candidates, 0,
        (learning_rate, batch, epochs, evaluate_every, patience, precision, seed),
    )  # fmt: skip
    style = noted_style(adapter, base) if prompt is None else one_of("--prompt", prompt, ("words", "sentence"))
    if style == "rationale":
        raise UsageError("this generator gives reasons, which no list can be judged by", mend="give --prompt words")
    if not lora_rank:
        raise UsageError("selector and generator are adapters of one base", mend="give a --lora-rank above 0")
    is_whole = one_of("--likelihood", likelihood, ("mean", "whole")) == "whole"
    frozen = one_of("--freeze", freeze, ("selector", "generator")) if freeze else ""
    joint = Joint(
        keep, samples, iterations, per_iteration, temperature, sharpness, is_whole, words, frozen, style, str(teacher or ""),
        lora_rank,
    )  # fmt: skip
    figures = train_dro(
        base, out, plan, joint, adapter=adapter, embedder=open_embedder(settings.embedder, threads=settings.threads),
        settings=settings, command=command_line(), force=force, progress=progress_of(context),
    )  # fmt: skip
    if json:
        print_json(figures)
        return
    print(f"F1 on {figures['n']} dev questions {100 * figures['f1']:.1f} ({100 * figures['f1_low']:.1f} to "
          f"{100 * figures['f1_high']:.1f}), {100 * figures['gold_listed']:.1f}% of the gold passages listed")  # fmt: skip
    print(f"{out / 'model'}: both adapters; {out / 'page.html'}: how it went")
    print(
        f"to run them: edge-rag export lora {out / 'model' / 'selector'} -o lists.gguf --base {base}, and so the generator"
    )
