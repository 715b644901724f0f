"""CSV, TSV, JSON and JSON Lines: each row or record becomes lines that make sense alone."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from edge_rag.documents.text import Builder, clean, decode, rows_as_lines, squeeze
from edge_rag.errors import DocumentError
from edge_rag.interfaces import Document

MAX_PATH_CHARS = 120  # of the name of one JSON value
_DELIMITERS = ",;\t|"
_LONG_VALUE = 200  # a longer text stands in lines of its own


def read_csv(data: bytes, media_type: str) -> Document:
    builder = Builder()
    text = clean(decode(data))
    try:
        rows = list(csv_rows(text, "\t" if media_type == "text/tab-separated-values" else None))
    except csv.Error:  # say a quote that never closes
        builder.warnings.append("the quotes in this table do not match: its lines are kept as they are")
        rows = [[line] for line in text.split("\n")]
    add_table(builder, rows)
    return builder.finish(media_type)


def add_table(builder: Builder, rows: list[list[str]]) -> None:
    builder.lines("table", rows_as_lines(rows))


def csv_rows(text: str, delimiter: str | None = None) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text), delimiter=delimiter or _sniff_delimiter(text), skipinitialspace=True)


def _sniff_delimiter(text: str) -> str:
    """Return the delimiter that splits the first lines most often and most evenly."""
    lines = [line for line in text[:100_000].split("\n")[:30] if line.strip()]
    best, best_score = ",", 0.0
    for delimiter in _DELIMITERS:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row]
        except csv.Error:
            continue
        usual = max(set(widths), key=widths.count, default=1)
        score = (usual - 1) * (widths.count(usual) / len(widths)) ** 2 if widths else 0.0
        if score > best_score:
            best, best_score = delimiter, score
    return best


def parse_json(text: str) -> Any:
    """Parse, numbers as they are written; ValueError for what is no JSON or nests too deeply."""
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(data: bytes) -> Document:
    builder = Builder()
    try:
        value = parse_json(decode(data))
    except ValueError as error:
        raise DocumentError(f"damaged JSON ({error})", mend="correct the file") from error
    if isinstance(value, dict) and isinstance(value.get("cells"), list) and "nbformat" in value:
        _add_notebook(builder, value["cells"])
        return builder.finish("application/x-ipynb+json")
    if isinstance(value, dict):
        if isinstance(value.get("title"), str):
            builder.title = value["title"]
        for key, part in value.items():
            _add_record(builder, part, key)
    else:
        for record in value if isinstance(value, list) else [value]:
            _add_record(builder, record, "")
    return builder.finish("application/json")


def read_jsonl(data: bytes) -> Document:
    builder = Builder()
    broken = 0
    for line in decode(data).split("\n"):
        if not line.strip():
            continue
        try:
            _add_record(builder, parse_json(line), "")
        except ValueError:
            broken += 1
            builder.paragraph(line)
    if broken:
        builder.warnings.append(f"{broken} lines are not JSON: kept as they are")
    return builder.finish("application/jsonl")


def _add_record(builder: Builder, record: Any, path: str) -> None:
    """Append one record: "path: value" lines, and long texts as paragraphs under their path."""
    if isinstance(record, list) and record and all(isinstance(item, dict) for item in record):
        for i, item in enumerate(record):
            _add_record(builder, item, f"{path}[{i}]")
        return
    lines: list[str] = []
    for name, value in _leaves(record, path):
        if len(value) <= _LONG_VALUE and "\n" not in value.strip():
            lines.append(f"{name}: {squeeze(value)}" if name else value)
            continue
        builder.lines("list", lines)
        lines = []
        for part in clean(f"{name}: {value}" if name else value).split("\n\n"):
            builder.paragraph(part)
    builder.lines("list", lines)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of all values in order. A list of plain values is one value."""
    pending: list[tuple[str, Any]] = [(path, value)]
    while pending:
        name, value = pending.pop()
        name = name[-MAX_PATH_CHARS:]  # or a long key over many values would multiply
        if isinstance(value, dict):
            pending.extend((f"{name}.{key}" if name else str(key), part) for key, part in reversed(value.items()))
        elif isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
            pending.extend((f"{name}[{i}]", value[i]) for i in range(len(value) - 1, -1, -1))
        elif isinstance(value, list):
            if value:
                yield name, ", ".join(_scalar(part) for part in value)
        elif value is not None and value != "":
            yield name, _scalar(value)


def _scalar(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _add_notebook(builder: Builder, cells: list[Any]) -> None:
    from edge_rag.documents.markup import add_markdown

    for cell in cells:
        if not isinstance(cell, dict):
            continue
        source = cell.get("source", "")
        text = "".join(map(str, source)) if isinstance(source, list) else str(source)
        if cell.get("cell_type") == "code":
            builder.code(text)
        else:
            add_markdown(builder, text)
