"""Every command but `models pull` (and a generator given as a URL) runs with sockets blocked."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from question_rows import door_questions
from tiny_models import make_adapter, make_model

from edge_rag.cli.commands import app

# The hook sees every socket that Python code opens or looks up a name for, and ends the process on the spot.
BLOCKED = """
import os, sys
def block(event, args):
    if event.startswith("socket."):
        os.write(2, f"SOCKET {event}\\n".encode())
        os._exit(99)
sys.addaudithook(block)
from edge_rag.cli import main
main()
"""

# Command, arguments, exit code. {doc} is a document, {home} the home folder, where a tiny model lies, too, {set} a question set,
# {runs} where runs go.
CASES: dict[str, tuple[list[str], int]] = {
    "export onnx": (
        [
            *("{home}/tiny-encoder", "-o", "{home}/tiny-onnx", "--role", "selector"),
            *("--precision", "fp32", "--untimed", "--json"),
        ],
        0,
    ),
    "add": (["{doc}"], 0),
    "sync": (["{docs}"], 0),
    "list": (["--json"], 0),
    "show": (["1"], 0),
    "stats": ([], 0),
    "doctor": (["--deep"], 0),
    "search": (["keeper", "--json"], 0),
    "ask": (["Who kept the light?", "--confidence", "0", "--selector", "{home}/tiny-onnx"], 0),
    "chat": ([], 0),
    "remove": (["2"], 0),
    "compact": ([], 0),
    "libraries": ([], 0),
    "models list": ([], 0),
    "models show": (["all-minilm-l6-v2"], 0),
    "config show": (["--origin"], 0),
    "config path": ([], 0),
    "bundle build": (
        ["default", "-o", "{home}/x.erag", "--generator", "extractive", "--selector", "{home}/tiny-onnx"],
        0,
    ),
    "bundle inspect": (["{home}/x.erag", "--json"], 0),
    "bundle verify": (["{home}/x.erag", "--json"], 0),
    "bundle run": (["{home}/x.erag", "Who kept the light?", "--json"], 0),
    "bundle keys": (["{home}/key.pem"], 0),
    "eval run": (
        [
            "{set}",
            "--arm",
            "gold",
            "--arm",
            "retrieved:2",
            "--timed",
            "1",
            "--out",
            "{runs}",
            "--json",
            "--selector",
            "{home}/tiny-onnx",
        ],
        0,
    ),
    "eval compare": (["{runs}/gold", "{runs}/retrieved-2", "--json"], 0),
    "eval report": (["{runs}", "--out", "{runs}/report.html"], 0),
    "eval search": (["{set}", "--json"], 0),
    "train supervised": (
        [
            *("--base", "{home}/tiny", "--set", "{home}/doors.jsonl", "--out", "{home}/trained"),
            *("--others", "2", "--limit", "8", "--dev-limit", "3", "--json"),
        ],
        0,
    ),
    "train radio": (
        [
            *("--base", "{home}/tiny-encoder", "--set", "{home}/doors.jsonl", "--out", "{home}/selector-run"),
            *("--rationale", "quotes", "--max-tokens", "64", "--limit", "8", "--dev-limit", "3", "--json"),
        ],
        0,
    ),
    "train inspect": (["{home}/selector-run", "--json"], 0),
    "export gguf": (["{home}/tiny", "-o", "{home}/tiny.gguf", "--type", "f32", "--json"], 0),
    "export hf": (["{home}/tiny.gguf", "-o", "{home}/tiny-back", "--json"], 0),
    "export lora": (["{home}/tiny-lora", "-o", "{home}/tiny-lora.gguf", "--untimed"], 0),
    "export peft": (["{home}/tiny-lora.gguf", "-o", "{home}/tiny-lora-back", "--base", "{home}/tiny", "--json"], 0),
}
# Not run here: `pull` is the one that may; the benchmarks run what is run here, for minutes; `train rose`, `train gain` and
# `train dro` run `export gguf`, and train as `train supervised` and `train radio` do, as `train relevance` does;
# `export selector` runs `export onnx`, and wants more questions than there are here.
NOT_RUN = {
    "models pull", "export selector", "train rose run", "train rose inspect", "train gain", "train relevance", "train dro",
    "bench ingest", "bench ask", "bench answers", "bench abstain", "bench extract", "bench search", "bench index",
    "bench training",
}  # fmt: skip


def commands() -> Iterator[str]:
    root = typer.main.get_command(app)
    yield from named("", root.commands)  # type: ignore[attr-defined]


def named(group: str, members: dict[str, Any]) -> Iterator[str]:
    for name, command in members.items():
        inner = getattr(command, "commands", None)
        yield from [f"{group}{name}"] if inner is None else named(f"{group}{name} ", inner)


def test_every_command_is_tried_here() -> None:
    assert set(commands()) == CASES.keys() | NOT_RUN


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("offline")
    (home / "docs").mkdir()
    (home / "docs" / "keepers.md").write_text("# Keepers\n\nThomas Moar kept the light from 1891 to 1914.\n")
    (home / "docs" / "doors.txt").write_text("The west door is opened by the keeper only.\n")
    texts = {
        "moar": "Thomas Moar kept the light from 1891 to 1914.",
        "door": "The west door is opened by the keeper only.",
    }
    asked = {"id": "1", "question": "Who kept the light?", "answers": ["Thomas Moar"], "gold_ids": ["moar"]}
    (home / "questions.jsonl").write_text(json.dumps(asked))
    door_questions(home / "doors.jsonl")
    corpus = (json.dumps({"id": name, "title": "", "text": text}) for name, text in texts.items())
    (home / "corpus.jsonl").write_text("\n".join(corpus))
    return home


def run_blocked(home: Path, args: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *args],
        env={"PATH": "", "EDGE_RAG_HOME": str(home), "HOME": str(home), "GOMP_SPINCOUNT": "0"},
        input="Who kept the light?\nAnd until when?\n",
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_block_works(home: Path) -> None:
    code = BLOCKED.replace("from edge_rag.cli import main\nmain()", "import socket; socket.getaddrinfo('localhost', 1)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 99


def test_every_command_runs_with_sockets_blocked(home: Path, default_models: Path) -> None:
    make_adapter(home / "tiny-lora", make_model(home / "tiny"))
    import tiny_encoders  # loads torch

    tiny_encoders.save(home / "tiny-encoder", "bert", n_labels=1)
    (home / "models").symlink_to(default_models, target_is_directory=True)
    for command, (args, expected) in CASES.items():
        places = {
            "home": home,
            "doc": home / "docs" / "doors.txt",
            "docs": home / "docs",
            "set": home / "questions.jsonl",
            "runs": home / "runs",
        }
        filled = [a.format(**places) for a in args]
        done = run_blocked(home, [*command.split(), *filled])
        assert done.returncode == expected, f"{command}: {done.stderr[-2000:]}"
        if "--json" in args:
            json.loads(done.stdout)
    # The hook sees no sockets of compiled code. Where onnxruntime's telemetry is on, it leaves a device id before it sends.
    assert not (home / ".cache" / "Microsoft").exists()
