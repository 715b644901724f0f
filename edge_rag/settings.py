"""Settings: one flat dataclass, read once at the edge and handed down.

A value comes from the first of: command-line flag, EDGE_RAG_<NAME>, the project's .edge_rag/config.toml (in the working
directory or above it), the user's config.toml, the default here. `edge-rag config show --origin` prints which one it was.
EDGE_RAG_HOME moves libraries, models and the user's config.toml into one folder, say on a stick.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

import platformdirs

from edge_rag.errors import UsageError
from edge_rag.interfaces import Guess, Order, Style


@dataclass(frozen=True, slots=True)
class Settings:
    library: str = "default"  # a name, or a folder (anything with a path separator in it)
    embedder: str = "all-minilm-l6-v2"  # catalog name, or the folder of an exported one; a library keeps its own
    generator: str = "smollm2-135m-rag"  # catalog name, path of a GGUF file, "extractive", or http(s)://host/v1#model
    lora: str = ""  # path of a GGUF adapter for the generator; "": none
    selector: str = (
        "minilm-l6-rag"  # catalog name, folder of an exported one, a GGUF that lists; "": as the search ranks
    )
    threads: int = 0  # for models; 0: the physical cores that this process may use
    chunk_tokens: int = 200  # most tokens of a chunk with its heading, counted with the embedder's tokenizer
    max_file_mb: int = 256  # larger files are reported, not read
    candidates: int = 40  # passages of lexical and of dense search, before they are fused; as many a selector scores
    passages: int = 4  # passages that are kept for the generator; a calibrated selector may keep fewer
    order: Order = "best-first"  # in which the generator sees them; both-ends: the best last, the next best first
    context_tokens: int = 2048  # window of the generator: prompt and answer together
    answer_tokens: int = 160  # most tokens of an answer
    # what the generator is asked for: sentence, words, rationale (reasons first, not shown), or what it was trained for
    prompt: Style | Literal["trained"] = "trained"
    trusted_key: str = ""  # Ed25519 public key, hexadecimal or a PEM file: bundles that it did not sign are refused
    confidence: float = -1.0  # abstain below this probability, 0 to 1; -1: the calibrated threshold
    # what the generator is asked where the documents do not hold the answer: for one from what it knows, or for a passage first
    guess: Guess = "never"


@dataclass(frozen=True, slots=True)
class Origin:
    value: Any
    source: str  # "flag --library", "EDGE_RAG_THREADS", the path of a config file, or "default"


WORDS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("trained", *get_args(Style)),
    "order": get_args(Order),
    "guess": get_args(Guess),
}
ENV_PREFIX = "EDGE_RAG_"
# In the environment under the same prefix, but not settings: where things lie, and switches for tests and benchmarks.
NOT_SETTINGS = {f"EDGE_RAG_{name}" for name in ("HOME", "DATA", "SIMD", "AMX", "API_KEY", "TEST_CACHE")}


def home_dir() -> Path:
    """Return the folder that holds libraries and models."""
    override = os.environ.get("EDGE_RAG_HOME")
    return Path(override).expanduser() if override else Path(platformdirs.user_data_dir("edge_rag", appauthor=False))


def user_config_path() -> Path:
    if os.environ.get("EDGE_RAG_HOME"):
        return home_dir() / "config.toml"
    return Path(platformdirs.user_config_dir("edge_rag", appauthor=False)) / "config.toml"


def project_config_path(start: Path | None = None) -> Path | None:
    """Return the nearest .edge_rag/config.toml in `start` or above it."""
    folder = (start or Path.cwd()).absolute()
    for parent in (folder, *folder.parents):
        candidate = parent / ".edge_rag" / "config.toml"
        if _is_there(candidate):
            return candidate
    return None


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except PermissionError:  # in a folder that this user may not enter, say the home of who called sudo
        return False


def models_dir() -> Path:
    return home_dir() / "models"


def cache_dir() -> Path:
    """Return the folder for what can be made again."""
    if os.environ.get("EDGE_RAG_HOME"):
        return home_dir() / "cache"
    return Path(platformdirs.user_cache_dir("edge_rag", appauthor=False))


def libraries_dir() -> Path:
    return home_dir() / "libraries"


def library_path(library: str) -> Path:
    """Turn a library's name, or the folder it is in, into its folder."""
    if "/" in library or os.sep in library or library in (".", ".."):
        return Path(library).expanduser().absolute()
    if not library or library.startswith(".") or any(c in library for c in '<>:"|?*\\\0'):
        raise UsageError(
            f"{library!r} is no name for a library", mend="use letters and digits, or give a folder: ./NAME"
        )
    return libraries_dir() / library


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Merge all sources. `flags` maps setting names to values; None means that the flag was not given."""
    return Settings(**{name: origin.value for name, origin in load_with_origins(flags).items()})


def load_with_origins(flags: Mapping[str, Any] | None = None) -> dict[str, Origin]:
    merged = {f.name: Origin(f.default, "default") for f in fields(Settings)}
    for path in (user_config_path(), project_config_path()):
        if path is not None and _is_there(path):
            for name, value in _read_toml(path).items():
                merged[name] = Origin(_convert(name, value, str(path)), str(path))
    for variable, text in os.environ.items():
        if variable.startswith(ENV_PREFIX) and variable not in NOT_SETTINGS:
            name = variable.removeprefix(ENV_PREFIX).lower()
            if name not in merged:
                raise _unknown(name, variable)
            merged[name] = Origin(_convert(name, text, variable), variable)
    for name, value in (flags or {}).items():
        if value is not None:
            flag = "flag --" + name.replace("_", "-")
            merged[name] = Origin(_convert(name, value, flag), flag)
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}", mend=f"edit {path}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", mend="check its permissions") from error


def _convert(name: str, value: Any, source: str) -> Any:
    kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(Settings)}
    if name not in kinds:
        raise _unknown(name, source)
    kind: type[int] | type[float] | type[str] = kinds[name]
    try:
        if isinstance(value, bool) or (isinstance(value, float) and kind is int):
            raise ValueError
        converted = kind(value)
    except (TypeError, ValueError) as error:
        kind_name = {int: "a whole number", float: "a number", str: "a text"}[kind]
        raise UsageError(f"{source}: {name} is {value!r} and must be {kind_name}", mend=f"correct {source}") from error
    low, high = _RANGES.get(name, (-inf, inf))
    if name in WORDS and converted not in WORDS[name]:
        raise UsageError(f"{source}: {name} is {value!r}", mend=f"use one of: {', '.join(WORDS[name])}")
    if not isinstance(converted, str) and not low <= converted <= high:
        raise UsageError(f"{source}: {name} is {value} and must lie between {low} and {high}", mend=f"correct {source}")
    return converted


_RANGES: dict[str, tuple[float, float]] = {
    "threads": (0, 1024),
    "chunk_tokens": (32, 512),
    "max_file_mb": (1, 1 << 20),
    "candidates": (1, 10_000),
    "passages": (1, 1000),
    "context_tokens": (256, 1 << 20),
    "answer_tokens": (1, 1 << 16),
    "confidence": (-1.0, 1.0),
}


def _unknown(name: str, source: str) -> UsageError:
    known = ", ".join(f.name for f in fields(Settings))
    return UsageError(f"{source}: there is no setting {name!r}", mend=f"known settings: {known}")
