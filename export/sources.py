"""What an export begins with: a model folder, its shape and its tokenizer, read and checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_rag.answering.prompt import NOT_FOUND, PROMPT_VERSION
from edge_rag.errors import EdgeRagError, ModelError
from edge_rag.interfaces import Style
from edge_rag.models.licences import UNKNOWN, gguf_licence
from edge_rag.models.prompt_style import prompt_fields, read_note

from .architectures import Shape, find_hf, shape_of
from .gguf_tokenizer import GgufTokenizer, read_tokenizer
from .model_folder import ModelFolder


@dataclass(frozen=True, slots=True)
class Source:
    folder: ModelFolder
    shape: Shape
    tokenizer: GgufTokenizer


def read_source(path: Path) -> Source:
    """Read a Hugging Face folder; ModelError if it is damaged, or not one that llama.cpp runs alike."""
    config = path / "config.json"
    with foreign(path):
        folder = ModelFolder(path)
        find_hf(folder.config, str(config))  # before transformers looks at it
        from .hf_models import full_config

        shape = shape_of(full_config(path), str(config))
        return Source(folder, shape, read_tokenizer(path, shape.vocab))


def prompt_of(folder: Path, stated: Style | None) -> dict[str, str]:
    """Return the metadata that says how what was trained is to be asked: as stated, or as its training has noted."""
    return prompt_fields(stated, PROMPT_VERSION, NOT_FOUND) if stated else read_note(folder)


def write_card(folder: Path, source: Path, command: str) -> None:
    """Write a model card of a few lines into what was made from a GGUF, so that its licence goes on with it."""
    licence = gguf_licence(source)
    head = "" if licence == UNKNOWN else f"---\nlicense: {licence}\n---\n"
    text = f"{head}Made from {source.name} by `edge-rag {command}`.\n"
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def foreign(path: Path) -> Iterator[None]:
    """Turn what a file of someone else makes the code that reads it raise into one clear line."""
    try:
        yield
    except (EdgeRagError, MemoryError):
        raise
    except BaseException as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # one without is transformers' word for what is missing
            raise
        # the tokenizers package panics, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ModelError(
            f"{path} is not as it should be: {type(error).__name__}: {reason}", mend="copy or make it again"
        ) from error
