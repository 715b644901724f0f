"""What a model says of its own licence: in its GGUF, on the card of its folder, or in a licence text beside it."""

import re
from collections.abc import Mapping
from pathlib import Path

from edge_rag.models.gguf_file import check_gguf

UNKNOWN = "unknown"
LONGEST_TEXT = 1 << 20
_TEXT_NAME = re.compile(r"(licen[cs]e|copying)(\.(txt|md))?", re.IGNORECASE)
_FIELD = re.compile(r"^(license|license_name|license_link):[ \t]*(\S.*)$", re.MULTILINE)


def gguf_licence(path: Path) -> str:
    """Return the licence that a GGUF names in its metadata, UNKNOWN if none; ModelError if the file is damaged."""
    fields = {
        "license": "general.license",
        "license_name": "general.license.name",
        "license_link": "general.license.link",
    }
    found = check_gguf(path, wanted=tuple(fields.values()))
    return _named({name: found.get(key, "") for name, key in fields.items()})


def card_licence(folder: Path) -> str:
    """Return the licence that the head of a folder's README.md names, as Hugging Face's model cards do; UNKNOWN if none."""
    try:
        with (folder / "README.md").open(encoding="utf-8") as file:
            beginning, *rest = file.read(1 << 16).split("\n---", 1)
    except (OSError, UnicodeDecodeError):
        return UNKNOWN
    return _named(dict(_FIELD.findall(beginning))) if rest and beginning.startswith("---\n") else UNKNOWN


def licence_text(folder: Path) -> Path | None:
    """Return the licence text that lies in a folder, if there is one."""
    named = sorted(path for path in folder.iterdir() if _TEXT_NAME.fullmatch(path.name) and path.is_file())
    return next((path for path in named if 0 < path.stat().st_size <= LONGEST_TEXT), None)


def _named(fields: Mapping[str, str]) -> str:
    """Join the fields to one line: "apache-2.0", or "llama3.2 (https://...)". A licence called "other" has a name of its own."""
    name = _line(fields.get("license", ""))
    if name.lower() in ("", "other"):
        name = _line(fields.get("license_name", "")) or name
    link = _line(fields.get("license_link", ""))
    return f"{name} ({link})" if name and link else name or link or UNKNOWN


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip(" \"'[]")[:200]
