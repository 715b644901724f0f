"""edge-rag bench: reproduce every published figure."""

import typer

app = typer.Typer(help="Reproduce every published figure.", no_args_is_help=True)


@app.command()
def abstain() -> None:
    """x"""
