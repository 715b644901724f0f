"""A bundle, opened: its library and its models, read where they lie in the file."""

import hashlib
import mmap
import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from edge_rag.answering import EXTRACTIVE, Assistant, OnnxSelector
from edge_rag.answering.evidence import WEIGHTS, Rule
from edge_rag.bundle import signing
from edge_rag.bundle.container import TRAILER_BYTES, Trailer, broken, read_trailer
from edge_rag.bundle.manifest import EMBEDDER_FOLDER, SELECTOR_FOLDER, Manifest, Part, Role, from_json
from edge_rag.bundle.proof import extracted, prove, state_of
from edge_rag.errors import IntegrityError, LibraryError, ModelError
from edge_rag.interfaces import Embedder, Generator, Message, Order, Style
from edge_rag.library import Library, schema
from edge_rag.models import has_llama_cpp
from edge_rag.settings import Settings

if TYPE_CHECKING:
    from edge_rag.index import NativeIndex
    from edge_rag.models.selector import OnnxScorer

# A larger database is not read into memory before each question, but once into a file of its own: to read 19 MB takes 8 to 19 ms,
# 195 MB 250 ms and as much memory; to open the file 0.5 ms.
LARGEST_IN_MEMORY = 32 << 20


class Bundle:
    """A bundle file. A context manager; `close()` may be called twice.

    >>> with Bundle.open(path) as bundle, bundle.assistant() as assistant:
    ...     print(assistant.ask("When was the lamp replaced?").text)
    """

    def __init__(self, path: Path, mapping: mmap.mmap, state: str, trailer: Trailer, manifest: Manifest) -> None:
        """Use `Bundle.open`."""
        self.path = path
        self.trailer = trailer
        self.manifest = manifest
        self._view = memoryview(mapping)
        self._state = state
        self._library: Library | None = None
        self._beside = ThreadPoolExecutor(
            2
        )  # for hashing and for what may be done after the answer; starts no thread yet

    @classmethod
    def open(cls, path: Path, *, trusted_key: str = "") -> Self:
        """Map a bundle and prove its manifest; its parts are proved when they are first used.

        With `trusted_key`, a public key or its file, a bundle that this key has not signed is refused.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                size = status.st_size
                file.seek(max(0, size - TRAILER_BYTES))
                trailer = read_trailer(path, file.read(TRAILER_BYTES), size)
                file.seek(trailer.manifest_offset)
                data = file.read(trailer.manifest_size)
                mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise LibraryError(f"{path}: {error.strerror or error}", mend="check the path") from error
        if hashlib.sha256(data).digest() != trailer.manifest_sha256:
            raise broken(path, "its manifest is not what was bundled")
        if trusted_key:
            check_key(path, trailer, trusted_key)
        manifest = from_json(path, data, trailer, size)
        if len(manifest.abstention_weights) != len(WEIGHTS):
            raise broken(path, "its rule for abstention makes no sense")
        return cls(path, mapping, state_of(status), trailer, manifest)

    @property
    def view(self) -> memoryview:
        """The whole file."""
        return self._view

    def settings(self, base: Settings | None = None) -> Settings:
        """Return settings with what the bundle's answers depend on set as they were when it was made."""
        m = self.manifest
        return replace(
            base or Settings(), generator=m.generator, lora="", selector=m.selector, passages=m.passages,
            order=cast(Order, m.order), candidates=m.candidates, context_tokens=m.context_tokens, answer_tokens=m.answer_tokens,
            prompt=cast(Style, m.prompt), confidence=m.confidence,
        )  # fmt: skip

    def library(self, settings: Settings | None = None) -> Library:
        """Return the bundle's library, which cannot be changed. It is closed with the bundle."""
        if self._library is None:
            settings = settings or Settings()
            with ExitStack() as undo:
                opening = self._beside.submit(
                    self._index
                )  # what takes time is hashing: the index and the database at once
                undo.callback(_close_index, opening)
                database = self._database()
                undo.callback(database.close)
                self._library = Library.of_parts(
                    self.path, database, opening.result(), settings=settings, open_embedder=self._embedder
                )
                undo.pop_all()
        return self._library

    def assistant(self, settings: Settings | None = None) -> Assistant:
        """Return who answers. `settings` are those of `self.settings()`, or what a user has changed in them."""
        settings = settings or self.settings()
        m = self.manifest
        if not m.texts:
            raise LibraryError(
                f"{self.path}: it was built without texts", mend="search it: edge-rag search ... --bundle FILE"
            )
        generator = None
        if settings.generator == m.generator != EXTRACTIVE:
            # The name that a bundle gives is never looked up: it could be that of something else, or a server's.
            if has_llama_cpp():
                generator = _Generator(self, settings)
            else:
                settings = replace(settings, generator=EXTRACTIVE)
        rule = Rule(m.abstention_weights, m.abstention_threshold, m.abstention_fitted_with)
        selector = None
        if settings.selector == m.selector != "":  # nor is this name looked up
            selector = OnnxSelector(lambda: self._scorer(settings), settings.passages)
        return Assistant(self.library(settings), settings=settings, generator=generator, selector=selector, rule=rule)

    def close(self) -> None:
        if self._library is not None:
            self._library.close()
            self._library = None
        self._beside.shutdown()
        self._view = memoryview(b"")  # the mapping goes with the last view of it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- parts ---

    def has_changed(self) -> bool:
        return state_of(self.path.stat()) != self._state

    def bytes_of(self, part: Part) -> memoryview:
        return self._view[part.offset : part.offset + part.size]

    def proved(self, role: Role) -> list[Part]:
        """Return the parts with this role, proved."""
        parts = [part for part in self.manifest.parts if part.role == role]
        prove(self.path, self._view, parts, self._state)
        return parts

    def extracted(self, role: Role) -> Path | None:
        part = self.manifest.part(role)
        return extracted(self.path, self._view, part, self._beside) if part else None

    def _database(self) -> sqlite3.Connection:
        part = self.manifest.part("library")
        assert part is not None  # or from_json had refused it
        db = self._extracted_database(part) or self._database_in_memory(part)
        try:
            db.execute("PRAGMA query_only = ON")
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cell_size_check = ON")
            schema.check_version(db, self.path)
            if schema.objects(db) != schema.expected_objects():
                raise broken(self.path, "its library has other tables than a library has")
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error):
                raise broken(self.path, f"its library cannot be read ({error})") from error
            raise
        return db

    def _extracted_database(self, part: Part) -> sqlite3.Connection | None:
        """Return a connection to a copy in the cache; None if memory does, or must because the cache cannot be written."""
        if part.size <= LARGEST_IN_MEMORY:
            return None
        with suppress(LibraryError):
            uri = extracted(self.path, self._view, part, self._beside).absolute().as_uri() + "?mode=ro&immutable=1"
            return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        return None

    def _database_in_memory(self, part: Part) -> sqlite3.Connection:
        proof = self._beside.submit(self.proved, "library")
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            db.deserialize(self.bytes_of(part))  # copied while it is hashed; nothing is read before both are done
            proof.result()
        except BaseException:
            db.close()
            raise
        return db

    def _embedder(self, name: str, fingerprint: str, settings: Settings) -> Embedder:
        from edge_rag.models.embedder import OnnxEmbedder

        files = self._files("embedder", EMBEDDER_FOLDER)
        try:
            return OnnxEmbedder(files, threads=settings.threads, fingerprint=fingerprint)
        except ModelError as error:
            raise IntegrityError(f"{self.path}: {error.message}", mend=error.mend) from error

    def _scorer(self, settings: Settings) -> "OnnxScorer":
        from edge_rag.models.selector import OnnxScorer

        files, fingerprint = self._files("selector", SELECTOR_FOLDER), self.manifest.selector_fingerprint
        try:
            scorer = OnnxScorer(files, threads=settings.threads, fingerprint=fingerprint)
        except ModelError as error:
            raise IntegrityError(f"{self.path}: {error.message}", mend=error.mend) from error
        if scorer.fingerprint != fingerprint:
            raise broken(self.path, "its selector is another than its manifest says")
        return scorer

    def _files(self, role: Role, folder: str) -> dict[str, memoryview]:
        return {part.name.removeprefix(folder): self.bytes_of(part) for part in self.proved(role)}

    def _index(self) -> "NativeIndex | None":
        from edge_rag.index import NativeIndex

        for part in self.proved("index"):
            try:
                return NativeIndex.open(self.path, offset=part.offset, size=part.size)
            except IntegrityError as error:
                raise broken(self.path, error.message) from error
        return None


def _close_index(opening: "Future[NativeIndex | None]") -> None:
    if opening.exception() is None and (index := opening.result()) is not None:
        index.close()


def check_key(path: Path, trailer: Trailer, trusted_key: str) -> None:
    """Raise IntegrityError unless this key has signed the bundle."""
    trusted = signing.read_public_key(trusted_key)
    mend = "get the bundle from whom you trust, or name the key that it was signed with"
    if not trailer.is_signed:
        raise IntegrityError(
            f"{path}: it is not signed, and only bundles signed by the trusted key are used", mend=mend
        )
    if trailer.public_key != trusted:
        raise IntegrityError(f"{path}: signed by {trailer.public_key.hex()}, which is not the trusted key", mend=mend)
    if not signing.is_signed_by(trusted, trailer.manifest_sha256, trailer.signature):
        raise IntegrityError(f"{path}: its signature is not by the trusted key", mend=mend)


class _Generator:
    """The bundle's generator, an interfaces.Generator: proved and opened when it is first used, not for an abstention."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.name = bundle.manifest.generator
        self.context_tokens = settings.context_tokens
        self._bundle, self._settings = bundle, settings
        self._model: Generator | None = None

    @property
    def style(self) -> Style:
        return self._opened().style if self._settings.lora else cast(Style, self._bundle.manifest.prompt)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self._opened().count_tokens(messages)

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[str]:
        return self._opened().generate(messages, max_tokens=max_tokens)

    def close(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None

    def _opened(self) -> Generator:
        if self._model is None:
            from edge_rag.models.gguf import GgufGenerator

            bundle, s = self._bundle, self._settings
            bundle.proved("generator")
            if bundle.has_changed():  # llama.cpp opens the file again, by its name
                raise broken(bundle.path, "it was changed while it was open")
            lora = Path(s.lora).expanduser() if s.lora else bundle.extracted("adapter")
            self._model = GgufGenerator(
                bundle.path, threads=s.threads, context_tokens=s.context_tokens, lora=lora, name=self.name
            )
        return self._model
