"""Models by name: catalog, fetching, embedder and generators.

fetch.py and remote.py are the only files of the runtime that open sockets. Everything heavy is imported when it is
opened.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edge_rag.errors import MissingExtraError, ModelError, UsageError

if TYPE_CHECKING:
    from edge_rag.interfaces import Generator, Progress
    from edge_rag.models.embedder import OnnxEmbedder
    from edge_rag.models.gguf_lister import GgufLister
    from edge_rag.models.selector import OnnxScorer

__all__ = [
    "has_llama_cpp",
    "is_embedder",
    "is_lister",
    "lasting_embedder_name",
    "locate_adapter",
    "locate_embedder",
    "locate_generator",
    "locate_lister",
    "locate_selector",
    "open_embedder",
    "open_generator",
    "open_lister",
    "open_scorer",
    "quantised_generator",
]


def open_embedder(name: str, *, threads: int = 0, fingerprint: str = "") -> "OnnxEmbedder":
    """Open a packaged embedder by name, or one that `export` made, by its folder. `threads` 0: all usable cores.

    `fingerprint`: of the embedder that a library was made with. Where there are two precisions, it says which one.
    """
    from edge_rag.models.embedder import OnnxEmbedder

    return OnnxEmbedder(locate_embedder(name), threads=threads, fingerprint=fingerprint)


def lasting_embedder_name(name: str) -> str:
    """Return what opens the same embedder from any folder, for a library to keep; ModelError if there is none."""
    from edge_rag.models.onnx_folder import read_folder

    folder = locate_embedder(name)
    read_folder(folder, "embedder")
    return str(folder.absolute()) if _is_path(name) else name


def locate_embedder(name: str) -> Path:
    """Return the folder of an embedder."""
    if _is_path(name):
        return Path(name).expanduser()
    from edge_rag.models.store import PACKAGED

    if name not in {path.name for path in PACKAGED.iterdir() if path.is_dir()}:
        raise ModelError(f"there is no embedder {name!r}", mend="run: edge-rag models list")
    return PACKAGED / name


def is_embedder(name: str) -> bool:
    """Tell whether this names a packaged embedder, or a folder that `export onnx` made."""
    from edge_rag.models.store import PACKAGED

    return ((Path(name).expanduser() if _is_path(name) else PACKAGED / name) / "model.json").is_file()


def open_scorer(name: str, *, threads: int = 0) -> "OnnxScorer":
    """Open a packaged cross-encoder by name, or one that `export selector` or `export onnx` made, by its folder."""
    from edge_rag.models.selector import OnnxScorer

    return OnnxScorer(locate_selector(name), threads=threads)


def locate_selector(name: str) -> Path:
    """Return the folder of a selector; ModelError if it is none."""
    from edge_rag.models import catalog
    from edge_rag.models.onnx_folder import read_folder
    from edge_rag.models.store import PACKAGED

    entry = catalog.find(name)
    path = PACKAGED / name if entry is not None and entry.role == "selector" else Path(name).expanduser()
    if not _is_path(name) and not path.exists():
        raise ModelError(f"there is no selector {name!r}", mend="run: edge-rag models list; or give the folder of one")
    read_folder(path, "selector")
    return path


def open_lister(adapter: str, generator: str, *, threads: int = 0, context_tokens: int = 2048) -> "GgufLister":
    """Open a selector that writes lists: a GGUF adapter on the file of a generator."""
    from edge_rag.models.gguf_lister import GgufLister

    path = locate_generator(generator)
    if path is None:
        raise UsageError(
            f"{adapter} cannot be applied to the server {generator}", mend="give a --generator that runs here"
        )
    return GgufLister(path, locate_lister(adapter), threads=threads, context_tokens=context_tokens)


def is_lister(selector: str) -> bool:
    """Tell whether a selector is an adapter that writes lists, by its name."""
    return selector.endswith(".gguf")


def locate_lister(adapter: str) -> Path:
    """Return the file of such an adapter; ModelError if it is none."""
    from edge_rag.models.prompt_style import trained_listing

    path = Path(adapter).expanduser()
    if trained_listing(path) is None:
        raise ModelError(
            f"{path} was not trained to write lists of passages",
            mend="give what export lora made of RUN/model/selector of train dro",
        )
    return path


def locate_adapter(spec: str) -> Path:
    """Return a GGUF adapter by its path, or by the name of a model whose adapter comes with edge_rag."""
    from edge_rag.models import catalog, store

    if _is_path(spec) or spec.endswith(".gguf"):
        return Path(spec).expanduser()
    entry = catalog.find(spec)
    path = store.packaged_adapter(entry) if entry else None
    if path is None:
        raise UsageError(f"no adapter of {spec} comes with edge_rag", mend="give the path of a .gguf file")
    return path


def open_generator(spec: str, *, threads: int = 0, context_tokens: int = 2048, lora: Path | None = None) -> "Generator":
    """Open a chat model: a catalog name, the path of a .gguf, or http(s)://host/v1#model; `lora`: a GGUF adapter."""
    path = locate_generator(spec)
    if path is None:
        if lora is not None:
            raise UsageError(f"an adapter cannot be applied to the server {spec}", mend="leave out --lora")
        from edge_rag.models.remote import RemoteGenerator

        return RemoteGenerator(spec, context_tokens=context_tokens)
    from edge_rag.models.gguf import GgufGenerator

    name = "" if _is_path(spec) or spec.endswith(".gguf") else spec
    return GgufGenerator(path, threads=threads, context_tokens=context_tokens, lora=lora, name=name)


def quantised_generator(spec: str, quantised_type: str, progress: "Progress | None" = None) -> Path:
    """Return a generator's file converted to a type such as "Q4_0". It is made once and kept in the home's cache."""
    from edge_rag.models import quantise

    quantise.check_type(quantised_type)
    path = locate_generator(spec)
    if path is None:
        raise UsageError(f"{spec} is a server: it cannot be converted", mend="name a model or the path of a .gguf file")
    return quantise.quantised_file(path, quantised_type, progress)


def locate_generator(spec: str) -> Path | None:
    """Return the file of a generator, None if it is a server. Opens nothing, but raises what opening it would raise first.

    That the extra is missing is said before anything else: without it no model file helps.
    """
    if spec.startswith(("http://", "https://")):
        return None
    if not has_llama_cpp():
        raise MissingExtraError("llm", "generating answers with a GGUF model")
    from edge_rag.models import catalog, store

    if _is_path(spec) or spec.endswith(".gguf"):
        path = Path(spec).expanduser()
        if not path.is_file():
            raise ModelError(
                f"there is no model file {path}", mend="give the path of a .gguf file, or run: edge-rag models list"
            )
        return path
    entry = catalog.find(spec)
    if (entry is None or entry.role != "generator") and store.read_manifest(spec) is None:
        raise UsageError(
            f"there is no generator {spec!r}", mend="run: edge-rag models list; or give the path of a .gguf file"
        )
    return store.installed_file(spec)


def has_llama_cpp() -> bool:
    try:
        return find_spec("llama_cpp") is not None
    except ValueError:  # something else stands in sys.modules under that name
        return False


def _is_path(text: str) -> bool:
    return "/" in text or os.sep in text
