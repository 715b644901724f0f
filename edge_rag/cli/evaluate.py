"""edge-rag eval: run, compare, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_rag.cli.answers import PromptOption
from edge_rag.cli.common import JsonFlag, RunByDefault, command_line, one_of, print_json, progress_of, settings_of

if TYPE_CHECKING:
    from edge_rag.evaluation.arms import Arm
    from edge_rag.evaluation.question_sets import Part, QuestionSet


app = typer.Typer(
    cls=RunByDefault,
    help="Measure answers: the same questions under arms that differ in one thing. eval SET is eval run SET.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SHOWN = ("em", "contains", "f1", "accuracy", "citation_precision", "k_precision", "prompt_tokens")


@app.command()
def run(
    context: typer.Context,
    set: Annotated[
        str,
        typer.Argument(help="A question file, a BEIR folder, or a name under EDGE_RAG_DATA: squad2.", metavar="SET"),
    ],
    arm: Annotated[
        list[str],
        typer.Option(
            help="closed, given, gold, gold+N, none+N or retrieved:K, each but closed with +Npoisoned. Repeatable.",
            metavar="ARM",
        ),
    ],
    part: Annotated[str, typer.Option(help="all, or the dev or train questions.", metavar="PART")] = "all",
    limit: Annotated[int | None, typer.Option(help="At most so many questions, drawn by the seed.", min=1)] = None,
    spare: Annotated[
        int,
        typer.Option(
            help="Leave out those that --limit N would draw: settings were chosen by them.", metavar="N", min=0
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Draws questions, others and orders.", min=0)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run, or of a run for each arm. [default: runs/SET/ARM]", metavar="DIR"),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(help="Model name, GGUF file, 'extractive', or http(s)://host/v1#model.", metavar="MODEL"),
    ] = None,
    lora: Annotated[
        str | None, typer.Option(help="GGUF file of an adapter for the generator; '' for none.", metavar="FILE")
    ] = None,
    quantised: Annotated[str, typer.Option(help="Convert the generator first: Q8_0, Q4_0 ...", metavar="TYPE")] = "",
    prompt: PromptOption = None,
    search: Annotated[str, typer.Option(help="fused, dense or lexical.", metavar="HOW")] = "fused",
    selector: Annotated[
        str,
        typer.Option(
            help="keep-top; oracle, which knows the gold; or a trained one: name, folder, or GGUF.", metavar="NAME|PATH"
        ),
    ] = "keep-top",
    keep: Annotated[int, typer.Option(help="Most passages that the selector keeps; 0: all.", min=0)] = 0,
    order: Annotated[
        str, typer.Option(help="best-first, or both-ends: the best one last, the next best first.", metavar="ORDER")
    ] = "best-first",
    answer_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1, max=4096)] = 64,
    context_tokens: Annotated[int, typer.Option(help="Prompt and answer together.", min=256)] = 4096,
    timed: Annotated[int, typer.Option(help="Questions asked again one at a time, for their time.", min=0)] = 5,
    json: JsonFlag = False,
) -> None:
    """Answer a question set under one or more arms; an interrupted run goes on where it stopped.

    Example: edge-rag eval run hotpotqa/distractor --part dev --arm gold --arm gold+8
    """
    from edge_rag.evaluation.answerers import Who
    from edge_rag.evaluation.arms import parse_arm
    from edge_rag.evaluation.cases import Choice
    from edge_rag.evaluation.question_sets import load_set
    from edge_rag.evaluation.report import markdown_table
    from edge_rag.evaluation.run import Plan, evaluate
    from edge_rag.models import open_embedder

    settings = settings_of(context, prompt=prompt)
    adapter = settings.lora if lora is None else lora
    who = Who(generator or settings.generator, adapter, quantised, settings.threads, context_tokens)
    choice = Choice(
        one_of("--search", search, ("fused", "dense", "lexical")),
        selector,
        keep,
        one_of("--order", order, ("best-first", "both-ends")),
        who.style if settings.prompt == "trained" else settings.prompt,
        answer_tokens,
        seed,
    )
    arms = [parse_arm(text) for text in dict.fromkeys(arm)]
    questions = load_set(set, part=one_of("--part", part, ("all", "dev", "train")), limit=limit, spare=spare, seed=seed)
    runs = evaluate(
        questions,
        _folders(out, questions.name, arms),
        Plan(who, choice, timed),
        open_embedder(settings.embedder, threads=settings.threads),
        settings,
        part=part,
        limit=limit,
        spare=spare,
        command=command_line(),
        progress=progress_of(context),
    )
    if json:
        print_json([{"folder": r.folder, "config": r.config, "summary": r.summary} for r in runs])
    else:
        print(markdown_table(runs, metrics=SHOWN))


@app.command()
def compare(
    context: typer.Context,
    a: Annotated[Path, typer.Argument(help="Folder of a run, or of runs.", metavar="RUN_A")],
    b: Annotated[
        Path, typer.Argument(help="Folder of another run, or of runs, over the same questions.", metavar="RUN_B")
    ],
    limit: Annotated[int, typer.Option(help="Changed questions that are listed, of two runs.", min=0)] = 20,
    metric: Annotated[str, typer.Option(help="What the rows show, of folders of runs.", metavar="NAME")] = "f1",
    json: JsonFlag = False,
) -> None:
    """Compare two runs question by question: differences with intervals, and what changed.

    Of two folders of runs, those over the same questions and arm are compared, with the average over all of them.

    Example: edge-rag eval compare runs/squad2/gold runs/squad2/gold+8
    """
    from edge_rag.evaluation import compare_folders
    from edge_rag.evaluation.compare import compare as compare_runs
    from edge_rag.evaluation.compare import markdown
    from edge_rag.evaluation.predictions import read_run

    if compare_folders.holds_several(a) or compare_folders.holds_several(b):
        folders = compare_folders.compare_folders(a, b, metric=metric)
        if json:
            print_json(folders)
        else:
            print(compare_folders.markdown(folders))
        return
    comparison = compare_runs(read_run(a), read_run(b))
    if json:
        print_json(comparison)
    else:
        print(markdown(comparison, limit=limit))


@app.command()
def report(
    context: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders of such.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="The page to write.", metavar="FILE")] = Path("report.html"),
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table instead.")] = False,
) -> None:
    """Write one HTML page about runs: tables, plots, and the questions behind them.

    Example: edge-rag eval report runs --out report.html
    """
    from edge_rag.evaluation.predictions import find_runs
    from edge_rag.evaluation.report import markdown_table, write_report

    found = find_runs(runs)
    if markdown:
        print(markdown_table(found))
    else:
        write_report(found, out)
        print(out)


@app.command()
def search(
    context: typer.Context,
    sets: Annotated[list[str], typer.Argument(help="Question sets with a corpus, as for eval run.", metavar="SET...")],
    part: Annotated[str, typer.Option(help="all, or the dev or train questions.", metavar="PART")] = "all",
    limit: Annotated[int | None, typer.Option(help="At most so many questions of each set.", min=1)] = None,
    k: Annotated[int, typer.Option("-k", help="Passages of each ranking that count.", min=1, max=100)] = 20,
    peers: Annotated[
        str,
        typer.Option(help="bm25s (needs that package), fp32 (needs --fp32), with commas between.", metavar="PEER,..."),
    ] = "",
    fp32: Annotated[
        Path | None,
        typer.Option(help="fp32 ONNX file of the embedder (edge_rag.export.embedder_fp32).", metavar="MODEL.onnx"),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Measure what the library finds by words, by vectors and by both, beside peers.

    Example: edge-rag eval search scifact nq_gold --peers bm25s
    """
    from edge_rag.evaluation import retrieval_table
    from edge_rag.evaluation.figures import markdown
    from edge_rag.models import open_embedder

    settings = settings_of(context)
    report = retrieval_table.measure(
        [_at_most(limit, spec, one_of("--part", part, ("all", "dev", "train"))) for spec in dict.fromkeys(sets)], k=k,
        peers=[peer.strip() for peer in peers.split(",") if peer.strip()], fp32=fp32,
        embedder=open_embedder(settings.embedder, threads=settings.threads), settings=settings, command=command_line(),
        progress=progress_of(context),
    )  # fmt: skip
    if json:
        print_json(report)
    else:
        print(markdown(report, crossed=True))


def _at_most(limit: int | None, spec: str, part: "Part") -> "QuestionSet":
    from edge_rag.evaluation.question_sets import load_set

    found = load_set(spec, part=part)
    return found if limit is None or len(found.questions) <= limit else load_set(spec, part=part, limit=limit)


def _folders(out: Path | None, set_name: str, arms: "list[Arm]") -> "dict[Arm, Path]":
    names = {arm: str(arm).replace(":", "-") for arm in arms}  # NTFS has no colons
    if out is not None and len(arms) == 1:
        return {arms[0]: out}
    parent = out or Path("runs", set_name.replace("/", "-"))
    return {arm: parent / name for arm, name in names.items()}
