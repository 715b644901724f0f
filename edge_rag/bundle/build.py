"""A library and its models into one file."""

import hashlib
import os
import re
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from edge_rag.answering import EXTRACTIVE
from edge_rag.answering.evidence import SHIPPED
from edge_rag.bundle import signing
from edge_rag.bundle.container import FORMAT, MANIFEST_NAME, Trailer, directory_bytes, directory_size, header_bytes
from edge_rag.bundle.contents import Contents, copy_library
from edge_rag.bundle.manifest import (
    EMBEDDER_FOLDER,
    GENERATOR_NAME,
    LIBRARY_NAME,
    SELECTOR_FOLDER,
    Manifest,
    Part,
    Role,
    to_json,
)
from edge_rag.bundle.opened import Bundle
from edge_rag.bundle.sbom import edge_rag_version, sbom
from edge_rag.bundle.verify import verify
from edge_rag.errors import LibraryError, UsageError
from edge_rag.interfaces import Embedder, Progress, Style
from edge_rag.library import Library
from edge_rag.models import catalog, is_lister, locate_embedder, locate_generator, locate_selector, open_scorer, store
from edge_rag.models.gguf_file import check_gguf
from edge_rag.models.licences import LONGEST_TEXT, UNKNOWN, card_licence, gguf_licence, licence_text
from edge_rag.models.onnx_folder import folder_files
from edge_rag.models.prompt_style import how_trained
from edge_rag.models.selector import OnnxScorer
from edge_rag.settings import Settings

_LICENCE_FILE = Path(__file__).with_name("Apache-2.0.txt")
_BLOCK = 1 << 20
LICENSED: tuple[Role, ...] = ("generator", "adapter", "embedder", "selector", "library")  # whose licence can be stated


@dataclass(frozen=True, slots=True)
class Ingredient:
    """A part before it has its place."""

    name: str
    role: Role
    content: Path | bytes
    licence: str
    source: str = ""

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def build(
    library: Path,
    target: Path,
    *,
    settings: Settings,
    max_bytes: int = 0,
    texts: bool = True,
    licences: Mapping[str, str] | None = None,
    signing_key: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write a bundle of a library, with the generator, adapter and selector that the settings name, and verify it.

    The same library, models and versions give the same bytes. `max_bytes` 0: any size. Without `texts` it can be searched by
    meaning, and says where passages stand; it needs no generator and no selector. `licences` names for a role of LICENSED an SPDX
    expression or the file of a licence's text, and has the last word over what the models' files say. The file appears when it is
    whole.
    """
    report = progress or _silent
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", mend="choose another name, or add --force")
    private_key = signing.read_private_key(signing_key) if signing_key else None
    if private_key:
        signing.public_key(private_key)  # that the extra is missing is said before the work
    if not texts:
        settings = replace(settings, generator=EXTRACTIVE, lora="", selector="")
    stated = _stated(licences or {})
    models, selector = _models(settings), _selector(settings)
    scorer = open_scorer(settings.selector, threads=settings.threads) if selector else None  # which proves its files
    with Library.open(library, settings=settings) as opened:
        if not opened.stats().n_chunks:
            raise LibraryError(f"{library}: there is nothing in it", mend="add something: edge-rag add PATH...")
        embedder = opened.embedder
        embedder_name = opened.stats().embedder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            report("copy the library", 0, 0, "")
            contents = copy_library(library, Path(folder), embedder.name, texts=texts)
            ingredients = _licensed([*models, *_library(contents), *_embedder(embedder_name), *selector], stated)
            temporary = Path(folder) / "bundle"
            manifest = _manifest(settings, embedder, scorer, contents, texts)
            with temporary.open("w+b") as file:
                manifest = _write(file, manifest, ingredients, private_key, max_bytes, report)
            with Bundle.open(temporary) as bundle:
                verify(bundle, progress=progress)
            temporary.replace(target)
    except OSError as error:
        raise LibraryError(f"{target}: {error.strerror or error}", mend="check the disk and the permissions") from error
    return manifest


# --- what goes in ---


def _models(settings: Settings) -> list[Ingredient]:
    if settings.generator == EXTRACTIVE:
        if settings.lora:
            raise UsageError("an adapter needs a generator", mend="leave out --lora, or name a generator")
        return []
    path = locate_generator(settings.generator)
    if path is None:
        raise UsageError(f"{settings.generator} is a server: it cannot be bundled", mend="name a model or a .gguf file")
    check_gguf(path)
    known = None if path == Path(settings.generator).expanduser() else store.read_manifest(settings.generator)
    licence, source = (known.licence, known.source) if known else (UNKNOWN, "")
    if licence == UNKNOWN:
        licence = gguf_licence(path)
    found = [Ingredient(GENERATOR_NAME, "generator", path, licence, _public(source))]
    if settings.lora:
        lora = Path(settings.lora).expanduser()
        found.append(Ingredient("adapter.gguf", "adapter", lora, gguf_licence(lora)))
    return found


def _public(source: str) -> str:
    """Return where a model came from, unless that is a place on this machine."""
    return "" if source.startswith("file:") else source


def _library(contents: Contents) -> list[Ingredient]:
    found = [Ingredient(LIBRARY_NAME, "library", contents.database, "that of the documents")]
    if contents.index is not None:
        found.append(Ingredient("vectors.eidx", "index", contents.index, "that of the documents"))
    return found


def _embedder(name: str) -> list[Ingredient]:
    folder, entry = locate_embedder(name), catalog.find(name)
    licence, source = (entry.licence, entry.source) if entry else (card_licence(folder), "")
    return _encoder(folder, "embedder", EMBEDDER_FOLDER, licence, source)


def _selector(settings: Settings) -> list[Ingredient]:
    if not settings.selector:
        return []
    if is_lister(settings.selector):
        raise UsageError(
            f"{settings.selector} writes lists, which a bundle cannot carry yet",
            mend="leave out --selector, or give a folder",
        )
    folder, entry = locate_selector(settings.selector), catalog.find(settings.selector)
    licence, source = (entry.licence, entry.source) if entry else (card_licence(folder), "")
    return _encoder(folder, "selector", SELECTOR_FOLDER, licence, source)


def _encoder(folder: Path, role: Role, place: str, licence: str, source: str = "") -> list[Ingredient]:
    """Return the files that `export onnx` made, and the model's card."""
    card = folder / "README.md"
    files = [*folder_files(folder, role), *([card] if card.is_file() else [])]
    return [Ingredient(place + path.name, role, path, licence, source) for path in files]


def _stated(licences: Mapping[str, str]) -> dict[str, str | Path]:
    """Tell names of licences from files with their texts."""
    stated: dict[str, str | Path] = {}
    for role, said in licences.items():
        if role not in LICENSED:
            raise UsageError(f"{role!r} is no part with a licence", mend=f"name one of {', '.join(LICENSED)}")
        path = Path(said).expanduser()
        if path.is_file():
            if not 0 < path.stat().st_size <= LONGEST_TEXT:
                raise UsageError(f"{said} is no text of a licence", mend="give a file of 1 byte to 1 MB")
            stated[role] = path
        elif re.fullmatch(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*", said) and path.suffix not in (
            ".txt",
            ".md",
        ):
            stated[role] = said
        else:
            raise UsageError(
                f"{said!r} is neither a file nor an SPDX expression",
                mend="for example Apache-2.0, or the path of a text",
            )
    return stated


def _licensed(parts: list[Ingredient], stated: Mapping[str, str | Path]) -> list[Ingredient]:
    """Return the parts with their licences and the texts of those: what was stated, else what lies beside a model's file."""
    texts = [Ingredient("licences/Apache-2.0.txt", "licence", _LICENCE_FILE, "Apache-2.0")]
    found = []
    for part in parts:
        role = "library" if part.role == "index" else part.role
        said = stated.get(role)
        if said is None and part.licence == UNKNOWN and isinstance(part.content, Path):
            said = licence_text(part.content.parent)
        if isinstance(said, Path):
            name = f"licences/{role}.txt"
            if name not in {text.name for text in texts}:
                texts.append(Ingredient(name, "licence", said, f"that of the {role}"))
            said = f"text in {name}"
        found.append(replace(part, licence=said) if said else part)
    return found + texts


def _style(settings: Settings) -> Style:
    """Return how the bundle's generator is to be asked, whatever it is called elsewhere."""
    if settings.prompt != "trained":
        return settings.prompt
    path = None if settings.generator == EXTRACTIVE else locate_generator(settings.generator)
    return how_trained(path, Path(settings.lora).expanduser() if settings.lora else None).style if path else "sentence"


def _manifest(
    settings: Settings, embedder: Embedder, scorer: OnnxScorer | None, contents: Contents, texts: bool
) -> Manifest:
    generator = settings.generator
    if "/" in generator or os.sep in generator or generator.endswith(".gguf"):
        generator = Path(generator).stem  # as it is called where it is opened by its path
    return Manifest(
        format=FORMAT,
        edge_rag=edge_rag_version(),
        generator=generator,
        embedder=embedder.name,
        embedder_fingerprint=embedder.fingerprint,
        selector=scorer.name if scorer else "",
        selector_fingerprint=scorer.fingerprint if scorer else "",
        passages=settings.passages,
        order=settings.order,
        candidates=settings.candidates,
        context_tokens=settings.context_tokens,
        answer_tokens=settings.answer_tokens,
        prompt=_style(settings),
        confidence=settings.confidence,
        abstention_weights=SHIPPED.weights,
        abstention_threshold=SHIPPED.threshold,
        abstention_fitted_with=SHIPPED.fitted_with,
        n_documents=contents.n_documents,
        n_chunks=contents.n_chunks,
        texts=texts,
        parts=(),
    )


# --- writing ---


def _write(
    file: IO[bytes],
    manifest: Manifest,
    ingredients: list[Ingredient],
    private_key: bytes | None,
    max_bytes: int,
    report: Progress,
) -> Manifest:
    """Write the parts where they belong, then what tells of them: the list of materials, the manifest, the trailer."""
    hashed: list[Part] = []
    for ingredient in ingredients:
        report("read", len(hashed), len(ingredients), ingredient.name)
        hashed.append(_part(ingredient))
    ingredients = [*ingredients, Ingredient("sbom.cdx.json", "sbom", sbom(hashed), "Apache-2.0")]
    hashed.append(_part(ingredients[-1]))
    # Where a part lies does not depend on the manifest, which is the last entry, so any size for that will do here.
    entries = replace(manifest, parts=tuple(hashed)).entries(0)
    offsets = {entry.name: entry.offset for entry in entries}
    parts = tuple(replace(part, offset=offsets.get(part.name, 0)) for part in hashed)
    manifest = replace(manifest, parts=parts)
    data = to_json(manifest)
    entries = manifest.entries(len(data))
    _check_size(parts, entries[-1].end + directory_size(entries), max_bytes)
    contents = {i.name: i.content for i in ingredients} | {MANIFEST_NAME: data}
    if manifest.part("generator"):
        _copy(contents[GENERATOR_NAME], file)
    crc32s = []
    for entry in entries:
        report("write", entry.offset, entries[-1].end, entry.name)
        file.seek(entry.offset)
        crc32s.append(_copy(contents[entry.name], file))
        file.seek(entry.start)
        file.write(header_bytes(entry, crc32s[-1]))
    sha256 = hashlib.sha256(data).digest()
    public_key, signature = bytes(32), bytes(64)
    if private_key is not None:
        public_key, signature = signing.public_key(private_key), signing.sign(private_key, sha256)
    trailer = Trailer(entries[-1].offset, len(data), sha256, public_key, signature)
    file.seek(entries[-1].end)
    file.write(directory_bytes(entries, crc32s, trailer))
    file.flush()
    os.fsync(file.fileno())
    return manifest


def _part(ingredient: Ingredient) -> Part:
    """Hash an ingredient; its place is found later."""
    i = ingredient
    sha256 = hashlib.sha256(i.content).hexdigest() if isinstance(i.content, bytes) else store.sha256_file(i.content)
    return Part(i.name, i.role, 0, i.size, sha256, i.licence, i.source)


def _copy(content: Path | bytes, file: IO[bytes]) -> int:
    """Write a part's bytes, and return their CRC-32."""
    if isinstance(content, bytes):
        file.write(content)
        return zlib.crc32(content)
    crc32 = 0
    with content.open("rb") as source:
        while block := source.read(_BLOCK):
            crc32 = zlib.crc32(block, crc32)
            file.write(block)
    return crc32


def _check_size(parts: tuple[Part, ...], size: int, max_bytes: int) -> None:
    if max_bytes and size > max_bytes:
        largest = sorted(parts, key=lambda part: -part.size)[:4]
        sizes = ", ".join(f"{part.name} {part.size / 1e6:,.1f}" for part in largest)
        raise UsageError(
            f"it would have {size / 1e6:,.1f} MB, and {max_bytes / 1e6:,.1f} are allowed ({sizes} MB)",
            mend="bundle a smaller generator or library, or --generator extractive",
        )


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    pass
