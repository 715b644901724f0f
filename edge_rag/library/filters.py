"""Which documents a search or a listing is about."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_rag.errors import UsageError

_DATE = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?")
_LONGEST_PATTERN = 4096


@dataclass(frozen=True, slots=True)
class Filters:
    """All conditions must hold; of the paths and of the types one must fit.

    A document's date is the one that it gives itself, else when its file was last changed (UTC).
    """

    paths: tuple[str, ...] = ()  # globs: "*.pdf", "reports/*", "/abs/file.txt", or a folder: "reports"
    types: tuple[str, ...] = ()  # "pdf", "markdown", "text/html", "text/*"
    after: str = ""  # ISO 8601, as exact as you like: "2024", "2024-05", "2024-05-31"; this moment or later
    before: str = ""  # earlier than this moment
    metadata: Mapping[str, str] = field(default_factory=dict)  # key and value, upper and lower case alike

    def __post_init__(self) -> None:
        for name, date in (("after", self.after), ("before", self.before)):
            if date and not _DATE.fullmatch(date):
                raise UsageError(
                    f"{name} is {date!r} and must be a date", mend="write it as 2024, 2024-05 or 2024-05-31"
                )
        for pattern in (*self.paths, *self.types):
            if not pattern or "\0" in pattern or len(pattern) > _LONGEST_PATTERN:
                raise UsageError(f"{pattern[:80]!r} is no pattern for a path or type", mend='write one such as "*.pdf"')

    def __bool__(self) -> bool:
        return bool(self.paths or self.types or self.after or self.before or self.metadata)

    def where(self) -> tuple[str, list[str]]:
        """Return a condition on `sources s JOIN documents d`, and its parameters."""
        conditions, parameters = ["1"], list[str]()
        if self.paths:
            path = "replace(s.path, '\\', '/')" if os.sep == "\\" else "s.path"
            # in a bundle paths are relative, and a relative pattern may begin where they do
            path = f"CASE WHEN {path} GLOB '/*' OR {path} GLOB '?:/*' THEN {path} ELSE '/' || {path} END"
            choices = []
            for pattern in self.paths:
                glob = _path_glob(pattern)
                # the last choice is the path as it stands, for a file called "a[1].txt"
                if glob.startswith("*/"):
                    choices.append(f"{path} GLOB ? OR {path} GLOB ? OR substr({path}, -length(?)) = ?")
                    literal = [glob[1:], glob[1:]]
                else:
                    choices.append(f"{path} GLOB ? OR {path} GLOB ? OR {path} = ?")
                    literal = [glob]
                parameters += [glob, glob.rstrip("/") + "/*", *literal]
            conditions.append(f"({' OR '.join(choices)})")
        if self.types:
            choices = []
            for kind in (t.lower().lstrip(".") for t in self.types):
                if "/" in kind:
                    choices.append("d.media_type GLOB ?")
                    parameters.append(kind)
                else:
                    choices.append("d.media_type GLOB ? OR lower(s.path) GLOB ?")
                    parameters += [f"*/{kind}", f"*.{kind}"]
            conditions.append(f"({' OR '.join(choices)})")
        date = "coalesce(d.date, strftime('%Y-%m-%dT%H:%M:%S', s.mtime_ns / 1000000000, 'unixepoch'))"
        for operator, moment in ((">=", self.after), ("<", self.before)):
            if moment:
                conditions.append(f"{date} {operator} ?")
                parameters.append(moment.replace(" ", "T"))
        for key, value in self.metadata.items():
            conditions.append(
                "EXISTS (SELECT 1 FROM json_each(d.metadata) m"
                " WHERE lower(m.key) = lower(?) AND lower(m.value) = lower(?))"
            )
            parameters += [key, value]
        return " AND ".join(conditions), parameters


def _path_glob(pattern: str) -> str:
    """Return a GLOB for whole paths: a relative pattern may begin at any folder."""
    if pattern.startswith("~"):
        pattern = str(Path(pattern).expanduser())
    if pattern in (".", "..") or pattern.startswith(("./", "../", ".\\", "..\\")):
        pattern = os.path.abspath(pattern)  # noqa: PTH100 - resolve() would follow links, and stored paths do not
    pattern = pattern.replace("\\", "/") if os.sep == "\\" else pattern
    absolute = pattern.startswith(("/", "*")) or Path(pattern).is_absolute()
    return pattern if absolute else f"*/{pattern}"
