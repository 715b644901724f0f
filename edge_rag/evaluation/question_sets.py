"""Question sets in the layout of EDGE_RAG_DATA: gzipped JSONL, one question a row; see the README of that folder.

The data is read where it lies and never copied into the project.
"""

import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_rag.errors import EdgeRagError


def data_dir() -> Path:
    """Return the folder of question sets: EDGE_RAG_DATA, or ../shared/data where that exists."""
    folder = Path(os.environ.get("EDGE_RAG_DATA", "../shared/data"))
    if not folder.is_dir():
        raise EdgeRagError(f"no question sets in {folder}", mend="set EDGE_RAG_DATA to the folder that holds them")
    return folder


def read_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one file, named without its ending: "squad2/questions"."""
    path = data_dir() / f"{name}.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise EdgeRagError(f"{path}: cannot be read: {error}", mend="check EDGE_RAG_DATA") from error


def is_dev(question: str) -> bool:
    """Tell whether a question is held out. The rule is shared by all sets, so a question that stands in two is on one side."""
    plain = " ".join(re.sub(r"[^a-z0-9 ]+", " ", question.lower()).split())
    return int(hashlib.sha1(plain.encode()).hexdigest(), 16) % 10 == 9
