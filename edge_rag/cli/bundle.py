"""edge-rag bundle: build, inspect, verify, run, keys."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_rag.cli.answers import GeneratorOption, LoraOption, PromptOption, Question, SelectorOption, ask
from edge_rag.cli.common import JsonFlag, note, open_bundle, pairs_of, print_json, progress_of, settings_of
from edge_rag.errors import UsageError
from edge_rag.settings import Settings, library_path

app = typer.Typer(
    help="One file with a library and its models, for a machine without a network.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(help="The bundle.", metavar="FILE")]
TrustedKey = Annotated[
    str | None,
    typer.Option(help="Refuse a bundle that this Ed25519 key did not sign: PEM file or hexadecimal.", metavar="KEY"),
]


@app.command()
def build(
    context: typer.Context,
    library: Annotated[str, typer.Argument(help="A name, or a folder such as ./notes.", metavar="LIBRARY")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: NAME.erag.", metavar="FILE")],
    generator: GeneratorOption = None,
    lora: LoraOption = None,
    selector: SelectorOption = None,
    prompt: PromptOption = None,
    passages: Annotated[int | None, typer.Option(help="Passages shown to the generator.", metavar="N")] = None,
    max_size: Annotated[
        str, typer.Option(help="Fail if it would be larger: 500MB, 2GB, or bytes.", metavar="SIZE")
    ] = "",
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Say where passages stand, not what they say; no generator, no selector.")
    ] = False,
    licence: Annotated[
        list[str] | None,
        typer.Option(
            help="Licence of the generator, adapter, embedder, selector or library: an SPDX name or a text file. Repeatable.",
            metavar="PART=SPDX|FILE",
        ),
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(help="Sign it with this Ed25519 private key, a PEM file.", metavar="KEY")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write a library, its models and settings into one file, and verify it.

    The same library, models and versions give the same bytes. Paths in it are relative; nothing of this machine is in it.

    Example: edge-rag bundle build default -o notes.erag --max-size 500MB
    """
    from edge_rag.bundle.build import build as build_bundle

    if no_text and selector:
        raise UsageError("without texts a selector has nothing to read", mend="leave out --selector, or --no-text")
    settings = settings_of(context, generator=generator, lora=lora, selector=selector, prompt=prompt, passages=passages)
    manifest = build_bundle(
        library_path(library), out, settings=settings, max_bytes=_bytes(max_size), texts=not no_text,
        licences=pairs_of(licence, "--licence", "generator=Apache-2.0"), signing_key=sign, force=force,
        progress=progress_of(context),
    )  # fmt: skip
    unknown = dict.fromkeys(part.role for part in manifest.parts if part.licence == "unknown")
    if unknown:
        note(
            context,
            f"warning: unknown licence of the {', '.join(unknown)}; state it with --licence {next(iter(unknown))}=SPDX|FILE",
        )
    if json:
        print_json({"path": out, "size_bytes": out.stat().st_size, "manifest": manifest})
    else:
        print(f"{out}: {out.stat().st_size / 1e6:,.1f} MB, {manifest.n_documents:,} documents, {manifest.generator}")


@app.command()
def inspect(context: typer.Context, file: File, trusted_key: TrustedKey = None, json: JsonFlag = False) -> None:
    """Print what is in a bundle, as its manifest says; `verify` reads every byte.

    Example: edge-rag bundle inspect notes.erag
    """
    with open_bundle(context, file, trusted_key=trusted_key) as (bundle, settings):
        shown = {"manifest": bundle.manifest, **_signature(bundle, settings)}
        if json:
            print_json(shown)
            return
        m = bundle.manifest
        models = f"generator {m.generator}, embedder {m.embedder}" + (f", selector {m.selector}" if m.selector else "")
        print(f"{m.n_documents:,} documents, {m.n_chunks:,} chunks; {models}")
        print(f"bundle format {m.format}, built by edge_rag {m.edge_rag}; {_signature_text(bundle, settings)}")
        if not m.texts:
            print("without texts: it says where passages stand")
        print(f"answers from {m.passages} passages of {m.candidates} candidates, {m.context_tokens} tokens of context")
        for part in m.parts:
            print(
                f"{part.size / 1e6:9,.2f} MB  {part.sha256[:16]}  {part.name:28} {part.licence:22} {part.source}".rstrip()
            )


@app.command()
def verify(context: typer.Context, file: File, trusted_key: TrustedKey = None, json: JsonFlag = False) -> None:
    """Read every byte of a bundle; exit with 4 if one is not what was bundled.

    Example: edge-rag bundle verify notes.erag --trusted-key publisher.pub
    """
    from edge_rag.bundle.verify import verify as verify_bundle

    with open_bundle(context, file, trusted_key=trusted_key) as (bundle, settings):
        verify_bundle(bundle, progress=progress_of(context))
        if json:
            print_json({"ok": True, "parts": len(bundle.manifest.parts), **_signature(bundle, settings)})
        else:
            print(f"{file}: every byte is what was bundled; {_signature_text(bundle, settings)}")


@app.command()
def run(
    context: typer.Context,
    file: File,
    question: Question,
    generator: GeneratorOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if the documents do not hold the answer.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Answer a question from a bundle: `ask --bundle FILE`.

    Example: edge-rag bundle run notes.erag "When was the lamp replaced?"
    """
    ask(context, question, bundle=file, generator=generator, strict=strict, json=json)


@app.command()
def keys(
    file: Annotated[Path, typer.Argument(help="The private key to write, say publisher.pem.", metavar="FILE")],
    json: JsonFlag = False,
) -> None:
    """Make a key pair for signed bundles: FILE to keep, and FILE with .pub to give away.

    Example: edge-rag bundle keys publisher.pem
    """
    from edge_rag.bundle.signing import make_keys

    public = make_keys(file)
    if json:
        print_json({"private": file, "public": public})
    else:
        print(f"{file}: keep it secret\n{public}: give it away")


def _signature(bundle: Any, settings: Settings) -> dict[str, Any]:
    signed_by = bundle.trailer.public_key.hex() if bundle.trailer.is_signed else None
    return {"signed_by": signed_by, "trusted": bool(settings.trusted_key)}


def _signature_text(bundle: Any, settings: Settings) -> str:
    if not bundle.trailer.is_signed:
        return "not signed"
    trust = "which is the trusted key" if settings.trusted_key else "which says nothing without a trusted key"
    return f"signed by {bundle.trailer.public_key.hex()}, {trust}"


def _bytes(size: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", size.strip().lower())
    if size and not match:
        raise UsageError(f"--max-size {size!r} is no size", mend="write it as 500MB, 2GB or a number of bytes")
    if not match:
        return 0
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))
