"""The command contract, run as a user runs it: real processes, the real embedder, the real generator."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edge_rag.settings import Settings

DOCS = {
    "keepers.md": "# Keepers\n\nThomas Moar kept the light from 1891 to 1914. He had two daughters.\n",
    "lamps.md": "# Lamps\n\nThe second lamp burned paraffin. It was lit on 3 March 1907.\n",
    "doors.txt": "The west door is opened by the keeper only, with key 17.\n",
}


def edge_rag(home: Path, *args: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_rag", *map(str, args)],
        env=os.environ | {"EDGE_RAG_HOME": str(home), "COLUMNS": "100"} | env,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def edge_rag_json(home: Path, *args: object, **env: str) -> Any:
    done = edge_rag(home, *args, "--json", **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three documents in its default library."""
    shelf = tmp_path_factory.mktemp("shelf")
    (shelf / "docs").mkdir()
    for name, text in DOCS.items():
        (shelf / "docs" / name).write_text(text)
    done = edge_rag(shelf, "add", shelf / "docs")
    assert done.returncode == 0, done.stderr
    return shelf


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.skipif(sys.platform == "win32", reason="about the permissions of Unix")
def test_a_home_that_this_user_may_not_enter_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0)
    program = (
        "import contextlib, os, sys, edge_rag.cli, edge_rag.models.catalog, edge_rag.models.store\n"
        # whoever may not enter the home may not enter this checkout either, perhaps: what is imported late is so before
        "sys.argv[1:] = ['models', 'list', '--help']\n"
        "with contextlib.suppress(SystemExit): edge_rag.cli.main()\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"  # root may enter any folder
        "sys.argv[1:] = ['models', 'list']\n"
        "edge_rag.cli.main()"
    )
    env = os.environ | {"EDGE_RAG_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert "Permission denied" in one_line(done)


# --- the shapes that scripts rely on ---


def test_search_prints_the_contract(shelf: Path) -> None:
    found = edge_rag_json(shelf, "search", "who kept the light", "-k", 2)
    assert len(found["results"]) == 2
    top = found["results"][0]
    assert {"chunk_id", "document", "page", "start", "end", "score", "text"} <= top.keys()
    assert top["document"] == str(shelf / "docs" / "keepers.md")
    text = edge_rag_json(shelf, "show", top["document"])["text"]
    assert text[top["start"] : top["end"]] == top["text"]
    assert all(isinstance(v, float) for v in found["timings"].values())


def test_ask_prints_the_contract_and_true_quotes(shelf: Path) -> None:
    asked = edge_rag_json(shelf, "ask", "Who kept the light?", "--generator", "extractive", "--confidence", 0)
    assert {"answer", "abstained", "citations", "passages", "timings"} <= asked.keys()
    assert "Thomas Moar" in asked["answer"] and asked["abstained"] is False
    for citation in asked["citations"]:
        text = edge_rag_json(shelf, "show", citation["document"])["text"]
        assert text[citation["start"] : citation["end"]] == citation["quote"]


def test_the_default_generator_answers_and_streams(shelf: Path, default_models: Path, tmp_path: Path) -> None:
    home = tmp_path / "with-models"
    home.mkdir()
    (home / "models").symlink_to(default_models, target_is_directory=True)
    asked = edge_rag_json(home, "--library", shelf / "libraries" / "default", "ask", "When was the second lamp lit?")
    assert asked["generator"] == Settings().generator
    assert asked["prompt_tokens"] > 0
    assert "1907" in asked["answer"]
    assert asked["citations"]


def test_without_the_llm_extra_answers_are_extracts(shelf: Path) -> None:
    code = "import sys; sys.modules['llama_cpp'] = None; from edge_rag.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", "Who kept the light?"],
        env=os.environ | {"EDGE_RAG_HOME": str(shelf)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Thomas Moar" in done.stdout and "edge-rag[llm]" in done.stderr


def test_what_the_documents_do_not_hold_is_said_and_strict_makes_it_an_exit_code(shelf: Path) -> None:
    question = "What is the capital of Mongolia?"
    calm = edge_rag(shelf, "ask", question, "--generator", "extractive")
    assert calm.returncode == 0 and "not in these documents" in calm.stdout
    strict = edge_rag(shelf, "ask", question, "--generator", "extractive", "--strict", "--json")
    assert strict.returncode == 3
    answer = json.loads(strict.stdout)
    assert answer["abstained"] is True and answer["citations"] == []


@pytest.mark.parametrize(
    "args", [["list"], ["stats"], ["doctor"], ["doctor", "--deep"], ["libraries"], ["config", "show"], ["config", "path"],
             ["models", "list"], ["models", "show", "all-minilm-l6-v2"]]
)  # fmt: skip
def test_every_reading_command_speaks_json(shelf: Path, args: list[str]) -> None:
    assert edge_rag_json(shelf, *args)


def test_filters_narrow_every_query(shelf: Path) -> None:
    for filters in (["--path", "*/lamps.md"], ["--type", "txt"], ["--before", "1999"]):
        hits = {r["document"] for r in edge_rag_json(shelf, "search", "light", *filters)["results"]}
        listed = {p for d in edge_rag_json(shelf, "list", *filters)["documents"] for p in d["paths"]}
        assert hits == listed and len(hits) < 3


def test_a_question_can_come_from_standard_input(shelf: Path) -> None:
    done = edge_rag(shelf, "ask", "-", "--generator", "extractive", stdin="Who kept the light?\n")
    assert done.returncode == 0 and "Thomas Moar" in done.stdout


def test_chat_remembers_what_was_talked_about(shelf: Path) -> None:
    done = edge_rag(
        shelf,
        "chat",
        "--generator",
        "extractive",
        stdin="Which key opens the west door?\nAnd who may use it?\n/new\n/quit\n",
    )
    assert done.returncode == 0
    assert done.stdout.count("opened by the keeper only") >= 2


# --- several libraries, settings ---


def test_libraries_by_name_and_by_folder_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Apples are stored in the cellar.")
    (tmp_path / "b.txt").write_text("Boats are stored in the shed.")
    assert edge_rag(tmp_path, "--library", "one", "add", tmp_path / "a.txt").returncode == 0
    assert edge_rag(tmp_path, "-L", tmp_path / "two", "add", tmp_path / "b.txt").returncode == 0
    assert edge_rag_json(tmp_path, "libraries")["libraries"] == ["one"]
    (hit,) = edge_rag_json(tmp_path, "-L", tmp_path / "two", "search", "stored")["results"]
    assert hit["document"].endswith("b.txt")


def test_the_origin_of_a_setting_is_shown(tmp_path: Path) -> None:
    shown = edge_rag(tmp_path, "config", "show", "--origin", EDGE_RAG_PASSAGES="2").stdout
    assert "passages = 2  # EDGE_RAG_PASSAGES" in shown


# --- what users get wrong ---


def test_nothing_at_all_prints_help(tmp_path: Path) -> None:
    done = edge_rag(tmp_path)
    assert done.returncode == 2 and "Usage:" in done.stdout + done.stderr


def test_a_mistyped_command_is_guessed(tmp_path: Path) -> None:
    done = edge_rag(tmp_path, "serach", "x")
    assert done.returncode == 2 and "search" in done.stderr


@pytest.mark.parametrize("args", [["search", "x"], ["ask", "x"], ["list"], ["stats"], ["show", "1"], ["remove", "1"], ["compact"],
                                  ["doctor"]])  # fmt: skip
def test_without_a_library_the_way_to_make_one_is_named(tmp_path: Path, args: list[str]) -> None:
    done = edge_rag(tmp_path, *args)
    assert done.returncode == 1
    assert "edge-rag add" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["add", "/no/such/file"], 1, "/no/such/file"),
        (["search", " "], 2, "empty"),
        (["show", "999"], 1, "edge-rag list"),
        (["ask", "x", "--generator", "no-such-model"], 2, "models list"),
        (["ask", "x", "--generator", "./no.gguf", "--confidence", "0"], 1, "no.gguf"),
        (["search", "x", "--after", "yesterday"], 2, "2024"),
        (["search", "x", "--meta", "author"], 2, "author="),
        (["models", "pull", "no-such-model"], 2, "models list"),
        (["models", "show", "no-such-model"], 1, "models list"),
        (["--library", "a:b", "list"], 2, "name"),
    ],
)
def test_a_mistake_gets_one_line_and_what_to_do(shelf: Path, args: list[str], code: int, said: str) -> None:
    done = edge_rag(shelf, *args)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if args[0] != "add":
        one_line(done)


def test_a_bad_setting_is_one_line(tmp_path: Path) -> None:
    done = edge_rag(tmp_path, "list", EDGE_RAG_THREADS="many")
    assert done.returncode == 2 and "EDGE_RAG_THREADS" in one_line(done)


def test_one_bad_file_stops_nothing_and_is_listed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "good.txt").write_text("The good file.")
    (tmp_path / "docs" / "broken.docx").write_bytes(b"PK\x03\x04 this is no archive")
    done = edge_rag(tmp_path, "add", tmp_path / "docs")
    assert done.returncode == 1
    assert "broken.docx" in done.stderr
    assert edge_rag_json(tmp_path, "search", "good")["results"]


def test_a_damaged_library_is_an_integrity_failure_with_its_mend(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Apples are stored in the cellar.")
    assert edge_rag(tmp_path, "add", tmp_path / "a.txt").returncode == 0
    database = tmp_path / "libraries" / "default" / "library.sqlite"
    database.write_bytes(b"this is no database" * 1000)
    done = edge_rag(tmp_path, "search", "apples")
    assert done.returncode == 4 and "edge-rag doctor --repair" in one_line(done)
    examined = edge_rag(tmp_path, "doctor")
    assert examined.returncode == 1 and "--repair" in examined.stdout


def test_a_reader_that_goes_away_is_no_error(shelf: Path) -> None:
    command = f'"{sys.executable}" -m edge_rag show 1 | head -c 1'
    done = subprocess.run(
        ["bash", "-c", command], env=os.environ | {"EDGE_RAG_HOME": str(shelf)}, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for child processes")
def test_ctrl_c_ends_with_130_and_what_was_done_is_kept(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for n in range(400):
        (docs / f"{n:03}.txt").write_text(" ".join(f"Fact {n}-{i} is about keeping the light." for i in range(40)))
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_rag", "add", str(docs)],
        env=os.environ | {"EDGE_RAG_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
        listed = edge_rag(tmp_path, "stats", "--json")
        if listed.returncode == 0 and json.loads(listed.stdout)["n_documents"] > 0:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    kept = edge_rag_json(tmp_path, "stats")["n_documents"]
    assert 0 < kept < 400
    assert edge_rag(tmp_path, "doctor", "--deep").returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for child processes")
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0, 2.0])
def test_ctrl_c_at_any_moment_of_a_question_is_one_word_and_130(
    shelf: Path, default_models: Path, tmp_path: Path, seconds: float
) -> None:
    (tmp_path / "models").symlink_to(default_models, target_is_directory=True)
    # The clock starts with the command, not with the interpreter, which on a busy machine may not have come so far.
    program = "import sys; print('begun', flush=True); from edge_rag.cli import main; main()"
    arguments = ["-L", str(shelf / "libraries" / "default"), "ask", "Who kept the light?"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"EDGE_RAG_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:  # it was faster
        assert "first token" in said
    else:
        assert (process.returncode, said.strip()) == (130, "interrupted")
