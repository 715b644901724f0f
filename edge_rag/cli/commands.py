"""The tree of commands, and the options that stand before them."""

from typing import Annotated

import typer

from edge_rag.cli import (
    answers,
    bench,
    bundle,
    config,
    documents,
    evaluate,
    export,
    models,
    train,
    train_dro,
    train_selectors,
)
from edge_rag.cli.common import State

app = typer.Typer(
    name="edge-rag",
    help="Answers from your own documents, offline, with citations that are true.",
    epilog="Start: edge-rag models pull, edge-rag add ~/Documents, edge-rag ask 'When ...?'",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: half the start-up time, and it can be pasted
    context_settings={"help_option_names": ["-h", "--help"]},
)
documents.register(app)
answers.register(app)
app.add_typer(models.app, name="models")
app.add_typer(config.app, name="config")
app.add_typer(evaluate.app, name="eval")
train_selectors.add_to(train.app)
train.app.command()(train_dro.dro)
app.add_typer(train.app, name="train")
app.add_typer(export.app, name="export")
app.add_typer(bundle.app, name="bundle")
app.add_typer(bench.app, name="bench")


@app.callback()
def root(
    context: typer.Context,
    library: Annotated[
        str | None,
        typer.Option(
            "--library", "-L", help="Library to use: a name, or a folder such as ./notes.", metavar="NAME|DIR"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda v: _print_version(v), help="Print the version.")
    ] = False,
) -> None:
    context.obj = State(library=library, quiet=quiet)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"edge-rag {version('edge-rag')}")
        raise typer.Exit
