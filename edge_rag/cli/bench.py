"""edge-rag bench: reproduce every published figure. Results are Markdown tables; --json has every value."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_rag.cli.answers import SelectorOption
from edge_rag.cli.common import JsonFlag, command_line, print_json, progress_of, settings_of
from edge_rag.settings import library_path

if TYPE_CHECKING:
    from edge_rag.evaluation.figures import Report

app = typer.Typer(help="Reproduce every published figure.", no_args_is_help=True, rich_markup_mode=None)

DocsOption = Annotated[
    Path | None,
    typer.Option(help="Folder of documents; default: the archives in EDGE_RAG_DATA/docs.", metavar="DIR"),
]
RoundsOption = Annotated[int, typer.Option(help="Interleaved rounds.", min=1)]


@app.command()
def ingest(
    context: typer.Context,
    docs: DocsOption = None,
    chunks: Annotated[int, typer.Option(help="About how many chunks.", min=1)] = 512,
    rounds: RoundsOption = 5,
    fp32: Annotated[
        Path | None,
        typer.Option(help="fp32 ONNX file of the embedder (edge_rag.export.embedder_fp32).", metavar="MODEL.onnx"),
    ] = None,
    hf_folder: Annotated[
        Path | None, typer.Option(help="Hugging Face folder of the embedder, for the peers.", metavar="DIR")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Time how fast documents go in, beside peers.

    The peers: fp32 onnxruntime, and chromadb and sentence-transformers where they are installed.

    Example: edge-rag bench ingest --fp32 minilm.onnx --hf-folder all-MiniLM-L6-v2
    """
    from edge_rag.evaluation.bench import speed_ingest

    report = speed_ingest.measure(
        docs, chunks=chunks, rounds=rounds, fp32=fp32, hf_folder=hf_folder, threads=settings_of(context).threads,
        command=command_line(), progress=progress_of(context),
    )  # fmt: skip
    _print(report, json)


@app.command()
def search(
    context: typer.Context,
    work: Annotated[Path, typer.Option(help="Where the library is built, and found the next time.", metavar="DIR")],
    rows: Annotated[int, typer.Option(help="About how many chunks.", min=1)] = 100_000,
    docs: DocsOption = None,
    questions: Annotated[
        str, typer.Option(help="Question set in EDGE_RAG_DATA, or a JSONL file.", metavar="SET|FILE")
    ] = "nq_gold/questions",
    limit: Annotated[int, typer.Option(help="How many questions.", min=1)] = 20,
    json: JsonFlag = False,
) -> None:
    """Time cold searches and the sync of one changed file.

    Example: edge-rag bench search --work /tmp/edge-rag-bench
    """
    from edge_rag.evaluation.bench import speed_search

    report = speed_search.measure(
        work,
        speed_search.questions_of(questions, limit),
        rows=rows,
        docs=docs,
        command=command_line(),
        progress=progress_of(context),
    )
    _print(report, json)


@app.command()
def ask(
    context: typer.Context,
    questions: Annotated[
        list[str],
        typer.Argument(help="Three: one, a second on the same matter, one on another.", metavar="FIRST SECOND OTHER"),
    ],
    gguf: Annotated[
        list[str] | None, typer.Option(help="Another generator to compare with. Repeatable.", metavar="FILE")
    ] = None,
    selector: SelectorOption = None,
    hf_selector: Annotated[
        Path | None,
        typer.Option(help="What the selector was made of, for sentence-transformers: RUN/model/model.", metavar="DIR"),
    ] = None,
    rounds: RoundsOption = 5,
    json: JsonFlag = False,
) -> None:
    """Time answers to the first token, and weigh the memory.

    With a selector also its scores, beside sentence-transformers' if that is installed, and answers over what it chooses,
    beside the usual five nearest passages.

    Example: edge-rag -L ./lighthouse bench ask "How high is the tower?" "Who built it?" "When does the boat leave?"
    """
    from edge_rag.evaluation.bench import speed_ask

    settings = settings_of(context, selector=selector)
    report = speed_ask.measure(
        library_path(settings.library), questions, generators=[settings.generator, *(gguf or ())], rounds=rounds,
        settings=settings, hf_selector=hf_selector, command=command_line(), progress=progress_of(context),
    )  # fmt: skip
    _print(report, json)


@app.command()
def answers(
    context: typer.Context,
    questions: Annotated[str, typer.Option(help="Question set in EDGE_RAG_DATA.", metavar="SET")] = "nq_gold/questions",
    limit: Annotated[int, typer.Option(help="How many questions.", min=1)] = 100,
    passages: Annotated[int, typer.Option(help="Passages in each prompt.", min=0)] = 4,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 48,
    peer: Annotated[bool, typer.Option(help="Time llama-cpp-python's own class, too.")] = True,
    rounds: RoundsOption = 3,
    json: JsonFlag = False,
) -> None:
    """Time many answers at once, beside one at a time.

    Example: edge-rag bench answers --questions hotpotqa/distractor --passages 5 --limit 40
    """
    from edge_rag.evaluation.bench import speed_answers

    report = speed_answers.measure(
        speed_answers.prompts_of(questions, limit=limit, passages=passages), rounds=rounds, answer_tokens=tokens,
        settings=settings_of(context), peer=peer, command=command_line(), progress=progress_of(context),
    )  # fmt: skip
    _print(report, json)


@app.command()
def training(
    context: typer.Context,
    base: Annotated[
        Path, typer.Option(help="Hugging Face folder of the model (made by export hf).", metavar="MODEL_DIR")
    ],
    questions: Annotated[
        str, typer.Option(help="Question set in EDGE_RAG_DATA.", metavar="SET")
    ] = "hotpotqa/distractor",
    limit: Annotated[int, typer.Option(help="How many pairs.", min=1)] = 32,
    others: Annotated[int, typer.Option(help="Passages that do not hold the answer: 0 to so many.", min=0)] = 4,
    batch: Annotated[int, typer.Option(help="Pairs for each step.", min=1)] = 8,
    peer: Annotated[bool, typer.Option(help="Time trl's ORPOTrainer, too, where it is installed.")] = True,
    rounds: RoundsOption = 3,
    json: JsonFlag = False,
) -> None:
    """Time training on preference pairs, beside trl.

    Example: edge-rag bench training --base ./smollm2 --limit 16 --rounds 2
    """
    from edge_rag.evaluation.bench import speed_training
    from edge_rag.models import open_embedder

    settings = settings_of(context)
    report = speed_training.measure(
        base, questions, n_pairs=limit, others=others, batch=batch, rounds=rounds, peer=peer,
        embedder=open_embedder(settings.embedder, threads=settings.threads), settings=settings, command=command_line(),
        progress=progress_of(context),
    )  # fmt: skip
    _print(report, json)


@app.command()
def index(
    context: typer.Context,
    part: Annotated[
        str, typer.Option(help="Parts, with commas between.", metavar="PART,...")
    ] = "speed,build,open,filters,update,damage,scale",
    rows: Annotated[int | None, typer.Option(help="Use only the first so many real vectors.")] = None,
    generated: Annotated[
        int | None,
        typer.Option(help="So many rows in all, made from the real ones; 1,000,000 at most.", metavar="ROWS"),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            help="Folder of base.npy and queries.npy; default: EDGE_RAG_DATA/vectors, else made ones.", metavar="DIR"
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help='hnswlib, faiss, usearch, svs, with commas between; default: the installed ones; "" for none.',
            metavar="PEER,...",
        ),
    ] = None,
    rounds: RoundsOption = 5,
    threads: Annotated[int | None, typer.Option(help="Of builds; default: all cores.", min=1)] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Time builds with one thread, too.")] = False,
    work: Annotated[
        Path | None,
        typer.Option(help="Where vectors and indexes are kept; default: a folder for a while.", metavar="DIR"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where plots (SVG) and curves (JSON) go.", metavar="DIR")] = None,
    json: JsonFlag = False,
) -> None:
    """Measure the vector index beside its peers: speed, build, open, filters, updates, damage, scale.

    Example: edge-rag bench index --part speed,build --out plots
    """
    from edge_rag.evaluation.bench import speed_index
    from edge_rag.evaluation.figures import markdown

    reports = speed_index.measure(
        _names(part), rows=rows, generated=generated, source=vectors, peers=None if peers is None else _names(peers),
        rounds=rounds, threads=threads, thorough=thorough, work=work, out=out, command=command_line(),
        progress=progress_of(context),
    )  # fmt: skip
    if json:
        print_json(reports)
    else:
        print("\n\n".join(markdown(report, crossed=True) for report in reports))


@app.command()
def abstain(
    context: typer.Context,
    limit: Annotated[int, typer.Option(help="Train questions of each set.", min=1)] = 1000,
    selector: SelectorOption = None,
    json: JsonFlag = False,
) -> None:
    """Fit and measure the rule for \"not in these documents\", beside a calibrated selector, and both together.

    Example: edge-rag bench abstain
    """
    from edge_rag.evaluation.bench import abstention_report
    from edge_rag.models import open_embedder

    settings = settings_of(context, selector=selector)
    report = abstention_report.measure(
        open_embedder(settings.embedder, threads=settings.threads), settings, limit=limit, command=command_line(),
        progress=progress_of(context),
    )  # fmt: skip
    _print(report, json)


@app.command()
def extract(
    context: typer.Context,
    limit: Annotated[int, typer.Option(help="Questions of each part.", min=1)] = 500,
    json: JsonFlag = False,
) -> None:
    """Fit and measure the order of sentences that answers quote.

    Example: edge-rag bench extract
    """
    from edge_rag.evaluation.bench import extraction
    from edge_rag.models import open_embedder

    settings = settings_of(context)
    report = extraction.measure(
        open_embedder(settings.embedder, threads=settings.threads), settings, limit=limit, command=command_line(),
        progress=progress_of(context),
    )  # fmt: skip
    _print(report, json)


def _print(report: "Report", json: bool) -> None:
    from edge_rag.evaluation.figures import markdown

    if json:
        print_json(report)
    else:
        print(markdown(report))


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]
