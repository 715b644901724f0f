"""edge-rag config: which settings are in force, and where they come from."""

from typing import Annotated

import typer

from edge_rag.cli.common import JsonFlag, State, print_json
from edge_rag.settings import (
    home_dir,
    libraries_dir,
    load_with_origins,
    models_dir,
    project_config_path,
    user_config_path,
)

app = typer.Typer(help="Show settings and where they come from.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(
    context: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="Say for each setting where its value comes from.")] = False,
    json: JsonFlag = False,
) -> None:
    """Print every setting as it is in force here.

    Example: edge-rag config show --origin
    """
    state: State = context.obj
    merged = load_with_origins({"library": state.library})
    if json:
        print_json({name: o if origin else o.value for name, o in merged.items()})
        return
    for name, o in merged.items():
        print(f"{name} = {o.value!r}" + (f"  # {o.source}" if origin else ""))


@app.command()
def path(json: JsonFlag = False) -> None:
    """Print where settings, libraries and models lie. EDGE_RAG_HOME moves them.

    Example: edge-rag config path
    """
    places = {
        "home": home_dir(),
        "libraries": libraries_dir(),
        "models": models_dir(),
        "user_config": user_config_path(),
        "project_config": project_config_path(),
    }
    if json:
        print_json(places)
        return
    for name, place in places.items():
        print(f"{name:15} {place or 'none'}")
