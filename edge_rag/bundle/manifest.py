"""What a bundle says of itself: its parts with their hashes, and what its answers depend on.

Whoever writes a bundle writes its manifest, hashes included. So nothing here is believed before it was checked: names are
relative and fit for any file system, and the parts lie where `container.place` puts them, which leaves no room for parts that
overlap, reach outside the file or are absurdly large.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edge_rag.bundle.container import FORMAT, MANIFEST_NAME, Entry, Trailer, broken, directory_size, place
from edge_rag.errors import IntegrityError
from edge_rag.interfaces import Order, Style

Role = Literal["generator", "adapter", "library", "index", "embedder", "selector", "licence", "sbom"]
GENERATOR_NAME = "generator.gguf"
LIBRARY_NAME = "library.sqlite"
EMBEDDER_FOLDER, SELECTOR_FOLDER = "embedder/", "selector/"
ONE_OF_EACH: tuple[Role, ...] = ("generator", "adapter", "library", "index", "sbom")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows, with any suffix
_FIRST = {
    "prompt": "sentence",
    "selector": "",
    "selector_fingerprint": "",
    "order": "best-first",
}  # what the first bundles do not say
_LONGEST_NAME = 200
_MOST_PARTS = 1000


@dataclass(frozen=True, slots=True)
class Part:
    name: str  # in the zip, and under which a cache keeps it
    role: Role
    offset: int  # in the file
    size: int
    sha256: str
    licence: str
    source: str  # where it came from; "" if it was made here


@dataclass(frozen=True, slots=True)
class Manifest:
    format: int
    edge_rag: str  # the version that wrote it
    generator: str  # its name; "extractive": there is none
    embedder: str
    embedder_fingerprint: str
    selector: str  # its name; "": passages in the order of the search
    selector_fingerprint: str
    passages: int  # these seven as in Settings
    order: str
    candidates: int
    context_tokens: int
    answer_tokens: int
    prompt: str
    confidence: float
    abstention_weights: tuple[float, ...]  # answering.evidence.Rule
    abstention_threshold: float
    abstention_fitted_with: str
    n_documents: int
    n_chunks: int
    texts: bool  # False: it says where something stands, and not what
    parts: tuple[Part, ...]

    def part(self, role: Role) -> Part | None:
        return next((part for part in self.parts if part.role == role), None)

    def entries(self, manifest_size: int) -> list[Entry]:
        """Return the zip's entries: every part but the generator, and the manifest itself."""
        head = self.part("generator")
        zipped = [(part.name, part.size) for part in self.parts if part is not head]
        return place(head.size if head else 0, [*zipped, (MANIFEST_NAME, manifest_size)])


def to_json(manifest: Manifest) -> bytes:
    return (json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n").encode("ascii")


def from_json(path: Path, data: bytes, trailer: Trailer, file_size: int) -> Manifest:
    """Read a manifest and check everything in it that the size of the file can contradict."""
    try:
        fields = json.loads(data)
        if fields["format"] > FORMAT:
            raise IntegrityError(
                f"{path}: bundle format {fields['format']}, this edge_rag reads up to {FORMAT}",
                mend="pip install --upgrade edge-rag",
            )
        parts = tuple(Part(**_typed(part, Part)) for part in fields.pop("parts"))
        weights = tuple(float(weight) for weight in fields.pop("abstention_weights"))
        for name, value in _FIRST.items():
            fields.setdefault(name, value)
        fields |= {"parts": parts, "abstention_weights": weights}
        manifest = Manifest(**_typed(fields, Manifest))
        _check(manifest, len(data), trailer, file_size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise broken(path, f"its manifest makes no sense ({error})") from error
    return manifest


def is_safe_name(name: str) -> bool:
    """Tell whether a name is relative and can be a file's on any system."""
    pieces = name.split("/")
    return (
        len(name) <= _LONGEST_NAME
        and _NAME.fullmatch(name) is not None
        and not any(piece.endswith(".") or _RESERVED.fullmatch(piece) for piece in pieces)
    )


def _typed(fields: Mapping[str, Any], kind: type[Part] | type[Manifest]) -> Mapping[str, Any]:
    """Return the fields if they are those of the class and of its types."""
    plain: dict[str, type | tuple[type, ...]] = {"int": int, "str": str, "float": (int, float), "bool": bool}
    for name, annotation in kind.__annotations__.items():
        wanted = plain.get(getattr(annotation, "__name__", ""))
        value = fields[name]
        if wanted and (not isinstance(value, wanted) or isinstance(value, bool) != (annotation is bool)):
            raise ValueError(f"{name} is {value!r}"[:200])
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    return fields


def _check(manifest: Manifest, manifest_size: int, trailer: Trailer, file_size: int) -> None:
    parts = manifest.parts
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"{len(parts)} parts")
    for part in parts:
        if not is_safe_name(part.name) or part.name.lower() == MANIFEST_NAME:
            raise ValueError(f"a part is called {part.name!r}"[:200])
        if not (part.licence + part.source).isprintable():
            raise ValueError(f"what is said of {part.name} holds control characters")
        if part.role not in get_args(Role):
            raise ValueError(f"{part.name} is a {part.role!r}"[:200])
        if not 0 <= part.size <= file_size or not re.fullmatch("[0-9a-f]{64}", part.sha256):
            raise ValueError(f"{part.name} cannot be so")
    if len({part.name.lower() for part in parts}) != len(parts):
        raise ValueError("two parts have one name")
    roles = [part.role for part in parts]
    if any(roles.count(role) > 1 for role in ONE_OF_EACH) or "library" not in roles or "embedder" not in roles:
        raise ValueError("it lacks a part, or has one twice")
    head = manifest.part("generator")
    if head is not None and (parts[0] is not head or head.offset != 0):
        raise ValueError("the generator does not come first")
    if ("adapter" in roles and head is None) or (head is None) != (manifest.generator == "extractive"):
        raise ValueError("its generator is missing")
    if ("selector" in roles) != bool(manifest.selector):
        raise ValueError("its selector is missing, or has no name")
    if any(c in manifest.generator for c in "/\\") or not manifest.generator:
        raise ValueError("its generator has no name")
    if manifest.prompt not in get_args(Style):
        raise ValueError(f"its prompt is {manifest.prompt!r}"[:200])
    if manifest.order not in get_args(Order):
        raise ValueError(f"its order is {manifest.order!r}"[:200])
    entries = manifest.entries(manifest_size)
    places = [entry.offset for entry in entries]
    if places != [*(part.offset for part in parts if part is not head), trailer.manifest_offset]:
        raise ValueError("its parts do not lie where they must")
    if entries[-1].end + directory_size(entries) != file_size:
        raise ValueError(f"the file has {file_size} bytes, and must have {entries[-1].end + directory_size(entries)}")
    for low, value, high in (
        (1, manifest.passages, 1000), (1, manifest.candidates, 10_000), (256, manifest.context_tokens, 1 << 20),
        (1, manifest.answer_tokens, 1 << 16), (-1.0, manifest.confidence, 1.0),
    ):  # fmt: skip
        if not low <= value <= high:
            raise ValueError(f"{value} is out of bounds")
