"""edge-rag models: list, pull, show. `pull` is the only command that opens the network."""

import typer

from edge_rag.cli.common import JsonFlag

app = typer.Typer(help="List models, fetch them, check them.", no_args_is_help=True)


@app.command(name="list")
def list_models(json: JsonFlag = False) -> None:
    """x"""
