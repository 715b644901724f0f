"""edge-rag bench: reproduce every published figure."""

import typer

app = typer.Typer(help="Reproduce every published figure.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def abstain() -> None:
    """x"""
