"""How a model was trained to be asked, and to refuse. It travels with the model, so that whoever opens it asks in that style:

edge_rag.json in the folder that was trained -> the metadata of the GGUF that `export` makes of it -> what is merged from that
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edge_rag.errors import ModelError
from edge_rag.interfaces import Style
from edge_rag.models.gguf_file import check_gguf

# Of a GGUF's metadata, all texts.
STYLE, VERSION, REFUSAL = KEYS = ("edge_rag.prompt", "edge_rag.prompt_version", "edge_rag.refusal")
LIST = "edge_rag.list"  # of a selector that writes lists: candidates, words of each that it sees, passages it lists
NOTE = "edge_rag.json"


@dataclass(frozen=True, slots=True)
class Trained:
    style: Style = "sentence"
    refusal: str = ""  # what it was trained to say where the passages do not hold the answer


@dataclass(frozen=True, slots=True)
class Listing:
    """What a model that writes lists of passages was trained with."""

    candidates: int
    words: int  # shown of each; 0: all
    passages: int  # that it lists


def prompt_fields(style: Style, version: int, refusal: str) -> dict[str, str]:
    """Return the metadata of a model that was trained with prompts of this style; `version`: PROMPT_VERSION at that time."""
    return {STYLE: style, VERSION: str(version), REFUSAL: refusal}


def list_fields(listing: Listing, version: int) -> dict[str, str]:
    """Return the metadata of a model that was trained to write lists."""
    return {LIST: f"{listing.candidates} {listing.words} {listing.passages}", VERSION: str(version)}


def write_note(folder: Path, fields: dict[str, str]) -> None:
    (folder / NOTE).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def read_note(folder: Path) -> dict[str, str]:
    """Return the metadata that a folder's GGUF is to have; {} if nobody has noted any."""
    path = folder / NOTE
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = int(fields[VERSION])
        if LIST in fields:
            return list_fields(_listing(fields[LIST]), version)
        style, refusal = fields[STYLE], fields.get(REFUSAL, "")
        if style not in get_args(Style) or not isinstance(refusal, str):
            raise ValueError(f"{STYLE} is {style!r}, {REFUSAL} is {refusal!r}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path} makes no sense: {error}", mend="copy the folder again, or remove that file"
        ) from error
    return prompt_fields(style, version, refusal)


def noted_style(*folders: Path | None) -> Style:
    """Return the style that the first of these folders notes which notes any; "sentence" if none does."""
    noted = (read_note(folder).get(STYLE) for folder in folders if folder is not None)
    said = next((style for style in noted if style), "sentence")
    return next(style for style in get_args(Style) if style == said)


def how_trained(model: Path, adapter: Path | None = None) -> Trained:
    """Return how a GGUF says that it is to be asked; its adapter has the last word, and who says nothing has none."""
    found = Trained()
    for path in (model, adapter):
        said = check_gguf(path, wanted=KEYS) if path is not None else {}
        style = next((known for known in get_args(Style) if known == said.get(STYLE)), None)
        if style is not None:
            found = Trained(style, said.get(REFUSAL, ""))
    return found


def trained_listing(adapter: Path) -> Listing | None:
    """Return what a GGUF says of the lists that it was trained to write; None if it was not."""
    said = check_gguf(adapter, wanted=(LIST,)).get(LIST)
    try:
        return None if said is None else _listing(said)
    except ValueError:
        return None


def _listing(text: str) -> Listing:
    candidates, words, passages = (int(number) for number in text.split())
    if not (1 <= candidates <= 1000 and 0 <= words <= 10_000 and 1 <= passages <= candidates):
        raise ValueError(f"{LIST} is {text!r}")
    return Listing(candidates, words, passages)
