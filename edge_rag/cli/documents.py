"""edge-rag add, sync, list, show, remove, stats, doctor, compact, libraries."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_rag.cli.common import (
    AfterFilter,
    BeforeFilter,
    BundleOption,
    JsonFlag,
    MetaFilter,
    PathFilter,
    TypeFilter,
    filters_of,
    note,
    open_library,
    open_readable,
    print_json,
    progress_of,
    settings_of,
    shown_path,
)
from edge_rag.settings import Settings, libraries_dir, library_path

if TYPE_CHECKING:
    from edge_rag.library import IngestReport, SyncReport

Which = Annotated[str, typer.Argument(help="A document's id or path, as `list` prints them.", metavar="ID|PATH")]
PROBLEMS_FOUND = 1


def register(app: typer.Typer) -> None:
    for command in (add, sync, show, remove, stats, doctor, compact, libraries):
        app.command()(command)
    app.command(name="list")(list_documents)


def add(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", metavar="PATH...")],
    json: JsonFlag = False,
) -> None:
    """Read, chunk and index documents. Stop it when you like: the next run goes on where it was.

    Unchanged files are skipped. A file that cannot be read is listed at the end, stops nothing, and makes the exit code 1.

    Example: edge-rag add ~/Documents report.pdf
    """
    with open_library(context, create=True) as library:
        report = library.add(paths, progress=progress_of(context))
    _finish(report, json)


def sync(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The folder to follow.", metavar="DIR")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make the library agree with a folder.

    What was added, changed, renamed and removed there is added, changed, renamed and removed here.

    Documents from elsewhere are left alone.

    Example: edge-rag sync ~/Documents --dry-run
    """
    with open_library(context, create=not dry_run) as library:
        report = library.sync(folder, dry_run=dry_run, progress=progress_of(context))
    if not json:
        for verb in ("added", "changed", "duplicates", "removed"):
            for path in getattr(report, verb):
                print(f"{verb:10} {shown_path(path)}")
        for old, new in report.renamed:
            print(f"renamed    {shown_path(old)} -> {shown_path(new)}")
    _finish(report, json)


def list_documents(
    context: typer.Context,
    path: PathFilter = None,
    type: TypeFilter = None,
    after: AfterFilter = None,
    before: BeforeFilter = None,
    meta: MetaFilter = None,
    bundle: BundleOption = None,
    json: JsonFlag = False,
) -> None:
    """List the documents.

    Example: edge-rag list --type pdf
    """
    with open_readable(context, bundle) as (library, _):
        rows = library.list(filters_of(path, type, after, before, meta))
    if json:
        print_json({"documents": rows})
        return
    for row in rows:
        for source in row.paths:
            print(
                f"{row.id:>6}  {row.n_chunks:>5} chunks  {shown_path(source)}"
                + "".join(f"  [{w}]" for w in row.warnings)
            )
    note(context, f"{len(rows):,} document{'s' if len(rows) != 1 else ''}")


def show(context: typer.Context, document: Which, bundle: BundleOption = None, json: JsonFlag = False) -> None:
    """Print a document's stored text and what is known of it.

    Example: edge-rag show 12
    """
    with open_readable(context, bundle) as (library, _):
        shown = library.show(document)
    if json:
        print_json(shown)
        return
    known = {"path": ", ".join(shown.paths), "title": shown.title, "type": shown.media_type, **shown.metadata}
    for key, value in known.items():
        if value:
            print(f"{key}: {value}", file=sys.stderr)
    print(shown.text)


def remove(
    context: typer.Context,
    documents: Annotated[
        list[str], typer.Argument(help="Ids or paths; a folder's path removes all under it.", metavar="ID|PATH...")
    ],
    json: JsonFlag = False,
) -> None:
    """Remove documents. They are out of every search at once; `compact` then erases their bytes from the disk.

    Example: edge-rag remove 12 old/report.pdf
    """
    with open_library(context) as library:
        removed = [path for document in documents for path in library.remove(document)]
    if json:
        print_json({"removed": removed})
        return
    for path in removed:
        print(f"removed {shown_path(path)}")
    note(context, "erase their bytes from the disk with: edge-rag compact")


def stats(context: typer.Context, bundle: BundleOption = None, json: JsonFlag = False) -> None:
    """Print what the library holds.

    Example: edge-rag stats --json
    """
    with open_readable(context, bundle) as (library, _):
        counted = library.stats()
    if json:
        print_json(counted)
        return
    for name, value in _flat(counted):
        print(f"{name:22} {f'{value:,}' if isinstance(value, int) else value}")


def doctor(
    context: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Read every text and vector, not only the structure.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be; name the files to add again.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Look for damage, and name the command that mends it.

    Also says what this machine brings: kernel, cores, language model. Exits with 1 if anything is damaged.

    Example: edge-rag doctor --deep
    """
    from edge_rag.library import describe_index, diagnose

    settings = settings_of(context)
    findings = diagnose(library_path(settings.library), deep=deep, repair=repair, settings=settings)
    machine = {"index": describe_index(library_path(settings.library)), **_machine(settings)}
    bad = [f for f in findings if f.severity == "error"]
    if json:
        print_json({"ok": not bad, "findings": findings, "machine": machine})
    else:
        for name, value in machine.items():
            print(f"{name:22} {value}")
        for finding in findings:
            print(f"{finding.severity}: {finding.what}" + (f"; {finding.mend}" if finding.mend else ""))
        if not bad:
            print("no damage found" + ("" if deep else " (--deep reads every byte)"))
    if bad:
        raise typer.Exit(PROBLEMS_FOUND)


def compact(context: typer.Context, json: JsonFlag = False) -> None:
    """Erase the bytes of removed documents from the disk.

    Rebuilds store and index; nothing of a removed text stays in any file of the library.

    Example: edge-rag compact
    """
    with open_library(context) as library:
        report = library.compact(progress=progress_of(context))
    if json:
        print_json(report)
    else:
        print(f"{report.bytes_before:,} bytes before, {report.bytes_after:,} after")


def libraries(json: JsonFlag = False) -> None:
    """List the libraries that have a name. `--library NAME` chooses one.

    Example: edge-rag libraries
    """
    from edge_rag.library import list_libraries

    names = list_libraries(libraries_dir())
    if json:
        print_json({"libraries": names})
        return
    for name in names:
        print(name)


def _finish(report: "IngestReport | SyncReport", json: bool) -> None:
    """Print what was done and what could not be, and set the exit code."""
    if json:
        print_json(report)
    else:
        print(f"{report.summary()}; {report.n_chunks:,} chunks stored, {report.n_embedded:,} embedded")
        for warning in report.warnings:
            print(f"warning: {shown_path(warning.path)}: {warning.reason}", file=sys.stderr)
        for problem in report.problems:
            print(f"not read: {shown_path(problem.path)}: {problem.reason}", file=sys.stderr)
    if report.problems:
        raise typer.Exit(PROBLEMS_FOUND)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    import dataclasses

    rows: list[tuple[str, Any]] = []
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if isinstance(inner, dict):
            rows += [(f"{f.name}.{k}", v) for k, v in inner.items()]
        else:
            rows.append((f.name, inner))
    return rows


def _machine(settings: Settings) -> dict[str, str]:
    """Return what answers depend on: kernel, cores, embedder, language model."""
    from edge_rag.index import simd_kernel
    from edge_rag.models import catalog, has_llama_cpp, store
    from edge_rag.models.cores import usable_cores

    generator = settings.generator
    if not has_llama_cpp():
        model = "no llama.cpp here, so answers are extracts; for more: pip install 'edge-rag[llm]'"
    elif catalog.find(generator) and store.read_manifest(generator) is None:
        model = f"{generator} is not here; run: edge-rag models pull {generator}"
    else:
        model = generator
    return {
        "index kernel": simd_kernel(), "cores for models": str(usable_cores()),
        "embedder": _encoder(settings.embedder, "embedder"), "generator": model,
        **({"selector": _selector(settings.selector)} if settings.selector else {}),
    }  # fmt: skip


def _selector(name: str) -> str:
    from edge_rag.errors import ModelError
    from edge_rag.models import is_lister, locate_lister

    if not is_lister(name):
        return _encoder(name, "selector")
    try:
        return f"{locate_lister(name)}, which writes lists"
    except ModelError as error:
        return f"{name}: {error}"


def _encoder(name: str, role: str) -> str:
    """Say which precision of a model suits this machine; measured for two seconds the first time."""
    from edge_rag.errors import ModelError
    from edge_rag.models import locate_embedder, locate_selector
    from edge_rag.models.onnx_folder import read_folder
    from edge_rag.models.precision import probe

    try:
        locate = locate_embedder if role == "embedder" else locate_selector
        choice = probe(read_folder(locate(name), role))
    except ModelError as error:
        return f"{name}: {error}"
    return f"{name}, {choice.precision}: {choice.why}"
