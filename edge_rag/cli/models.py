"""edge-rag models: list, pull, show. `pull` is the only command that opens the network."""

from typing import Annotated

import typer

from edge_rag.cli.common import JsonFlag, note, print_json, progress_of

app = typer.Typer(help="List models, fetch them, check them.", no_args_is_help=True)


@app.command(name="list")
def list_models(json: JsonFlag = False) -> None:
    """x"""
