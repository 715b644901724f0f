"""The files that question sets come in, as rows: JSON lines, one JSON document, or a table; gzipped or not, with or without BOM.

Whatever the bytes are, a reader yields rows or raises EdgeRagError with the place: "squad.json.gz, line 7: ...".
JSON lines and tables are read as they are used; one JSON document has to be in memory as a whole.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from edge_rag.errors import EdgeRagError

Row = dict[str, Any]

TABLE_COLUMNS = ("question", "query-id")  # a file that is not JSON is a table if its first line names one of these


def read_entries(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each row with its place in the file. A document {"data": [...]} or {"Data": [...]} is its entries."""
    lines = read_lines(path)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    start = first.lstrip()[:1]
    if not start:
        raise EdgeRagError(f"{path} is empty", mend="give a file with questions")
    if start not in "[{":
        yield from _table(path, number, first, lines)
        return
    try:
        document = json.loads(first)
    except (ValueError, RecursionError):  # a document over several lines, unless the error stays
        document = _parse(path, "", first + "".join(line for _, line in lines))
        yield from _document(path, document)
        return
    if isinstance(document, list) or _data(document) is not None:
        yield from _document(path, document)
    else:
        yield from _json_lines(path, number, document, lines)


def read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each object of a file that holds one a line, with its place."""
    for number, line in read_lines(path):
        if line.strip():
            yield f"line {number}", _object(path, f"line {number}", _parse(path, f"line {number}", line))


def read_table(path: Path) -> Iterator[list[str]]:
    """Yield the cells of each line of a tab-separated file."""
    for _, line in read_lines(path):
        if line.strip():
            yield line.rstrip("\r\n").split("\t")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file, numbered from 1, with their ends."""
    try:
        with _open(path) as lines:
            yield from enumerate(lines, 1)
    except UnicodeDecodeError as error:
        raise EdgeRagError(f"{path} is no UTF-8 text", mend="give a text file, or convert it to UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise EdgeRagError(f"{path} is a damaged gzip file: {error}", mend="fetch it again") from error
    except (OSError, ValueError) as error:
        raise EdgeRagError(f"{path} cannot be read: {error}", mend="give a file that you may read") from error


def bad_row(path: Path, place: str, what: str) -> EdgeRagError:
    where = f"{path}, {place}" if place else str(path)
    return EdgeRagError(f"{where}: {what}", mend="mend the file or fetch it again")


def shorten(value: object) -> str:
    """Return a value as one short line, for a message."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"  # what the name ends in does not matter
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _data(document: Row) -> list[Any] | None:
    for key in ("data", "Data"):  # SQuAD, TriviaQA
        if isinstance(document.get(key), list):
            return list(document[key])
    return None


def _document(path: Path, document: Any) -> Iterator[tuple[str, Row]]:
    entries = document if isinstance(document, list) else _data(document)
    for number, entry in enumerate([document] if entries is None else entries, 1):
        yield f"entry {number}", _object(path, f"entry {number}", entry)


def _json_lines(path: Path, number: int, first: object, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Row]]:
    yield f"line {number}", _object(path, f"line {number}", first)
    for number, line in lines:
        if line.strip():
            yield f"line {number}", _object(path, f"line {number}", _parse(path, f"line {number}", line))


def _table(path: Path, number: int, header: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Row]]:
    delimiter = "\t" if "\t" in header else ","
    try:
        columns = next(csv.reader([header], delimiter=delimiter))
        if not any(column in columns for column in TABLE_COLUMNS):
            raise EdgeRagError(
                f"{path} is neither JSON nor a table of questions: it begins with {shorten(header.strip())}",
                mend="give JSON lines, JSON, or a table with a column that is called question",
            )
        reader = csv.reader((line for _, line in lines), delimiter=delimiter)
        for cells in reader:
            if cells:
                yield f"line {number + reader.line_num}", dict(zip(columns, cells, strict=False))
    except csv.Error as error:
        raise bad_row(path, "", f"is no table that can be read: {error}") from error


def _parse(path: Path, place: str, text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise bad_row(path, place, "is nested too deep") from None
    except ValueError as error:
        raise bad_row(path, place, f"is not JSON: {' '.join(str(error).split())[:120]}") from None


def _object(path: Path, place: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise bad_row(path, place, f"is no question but {shorten(value)}")
    return value
