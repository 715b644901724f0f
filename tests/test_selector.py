"""A selector at run time: what it scores, what it keeps, in which order, and what is said of a folder that is none."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_rag.answering import Assistant, KeepTop, OnnxSelector, Turn, retrieve
from edge_rag.answering.selector import scored_text
from edge_rag.cli.commands import app
from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Passage, Selector
from edge_rag.library import Library
from edge_rag.models import open_scorer
from edge_rag.models.selector import OnnxScorer
from edge_rag.settings import Settings

QUESTION = "Who kept the light of Elmo Head?"
FACTS = [
    "The lamp was lit in 1871.",
    "Ada Quill kept the light for thirty years.",
    "Eleven goats lived on the island.",
    "The boat came every second Tuesday with oil and letters.",
    "The fog bell was cast in 1902.",
]
EMBEDDER = Path(__file__).parent.parent / "edge_rag" / "models" / "data" / "all-minilm-l6-v2"
MAKE_ONE = r"make one: edge-rag export onnx MODEL_DIR -o DIR --role selector"


def passage(number: int, text: str, heading: str = "Elmo Head > Log", title: str = "Log") -> Passage:
    return Passage(number, number, f"{number}.md", title, heading, None, 0, len(text), text, 1.0 / (number + 1))


@pytest.fixture
def scorer(selector_folder: Path) -> OnnxScorer:
    return open_scorer(str(selector_folder), threads=1)


@pytest.fixture
def library_folder(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number, fact in enumerate(FACTS):
        (docs / f"{number}.md").write_text(f"# Log {number}\n\n{fact}\n")
    with Library.open(tmp_path / "library", create=True) as library:
        library.add([docs])
    return tmp_path / "library"


def test_the_best_by_score_are_kept_best_first_as_they_came(scorer: OnnxScorer) -> None:
    passages = [passage(n, fact) for n, fact in enumerate(FACTS)]
    scores = scorer.score(QUESTION, [scored_text(p) for p in passages]).tolist()
    wanted = sorted(passages, key=lambda p: -scores[p.chunk_id])
    assert wanted != passages and len(set(scores)) == len(scores)
    for n in (1, 3, 9):
        selector: Selector = OnnxSelector(lambda: scorer, n)
        assert selector.select(QUESTION, passages) == wanted[:n]
        assert selector.select(QUESTION, passages[::-1]) == wanted[:n]
    assert selector.name == "judge"


def test_of_equal_scores_the_search_has_the_last_word(scorer: OnnxScorer) -> None:
    twice = [passage(n, FACTS[n % 2]) for n in (3, 8, 1, 6, 5)]
    kept = [p.chunk_id for p in OnnxSelector(lambda: scorer, 5).select(QUESTION, twice)]
    assert kept in ([3, 1, 5, 8, 6], [8, 6, 3, 1, 5])


def test_headings_are_scored_too_and_a_title_where_there_are_none() -> None:
    assert scored_text(passage(1, "It was lit.")) == "Elmo Head > Log\nIt was lit."
    assert scored_text(passage(1, "It was lit.", heading="")) == "Log\nIt was lit."
    assert scored_text(passage(1, "It was lit.", heading="", title="")) == "It was lit."


def test_nothing_to_score_opens_nothing() -> None:
    def fail() -> OnnxScorer:
        raise AssertionError

    assert OnnxSelector(fail, 3).select(QUESTION, []) == []


def test_an_assistant_scores_all_candidates_and_shows_as_many_as_are_set(
    library_folder: Path, selector_folder: Path, scorer: OnnxScorer
) -> None:
    settings = Settings(generator="extractive", confidence=0.0, threads=1, passages=2, selector=str(selector_folder))
    with Library.open(library_folder) as library:
        found = retrieve(library, QUESTION, len(FACTS), candidates=40).passages
        wanted = OnnxSelector(lambda: scorer, 2).select(QUESTION, found)
        assert len(found) == len(FACTS) and wanted != list(found[:2])
        with Assistant(library, settings=settings) as assistant:
            assert list(assistant.ask(QUESTION).passages) == wanted
        with Assistant(library, settings=replace(settings, candidates=2)) as assistant:
            shown = assistant.ask(QUESTION).passages  # two candidates, and two to keep: only their order is chosen
            assert {p.chunk_id for p in shown} == {p.chunk_id for p in found[:2]}
        with Assistant(library, settings=settings, selector=KeepTop(2)) as assistant:
            assert list(assistant.ask(QUESTION).passages) == list(found[:2])


def test_a_follow_up_is_scored_with_the_question_that_it_follows(library_folder: Path) -> None:
    asked: list[str] = []

    class Asked(KeepTop):
        def select(self, question: str, passages: Sequence[Passage]) -> list[Passage]:
            asked.append(question)
            return super().select(question, passages)

    settings = Settings(generator="extractive", confidence=0.0, threads=1)
    with Library.open(library_folder) as library:
        assistant = Assistant(library, settings=settings, selector=Asked(2))
        first = assistant.ask(QUESTION)
        assistant.ask("And until when?", history=[Turn(QUESTION, first)])
        assistant.ask("When was the fog bell cast?", history=[Turn(QUESTION, first)])
    assert asked == [QUESTION, f"{QUESTION} And until when?", "When was the fog bell cast?"]


def test_a_question_that_leaves_no_room_is_one_clear_line(library_folder: Path, selector_folder: Path) -> None:
    settings = Settings(generator="extractive", selector=str(selector_folder), threads=1)
    with Library.open(library_folder) as library, pytest.raises(UsageError, match="ask a shorter question"):
        Assistant(library, settings=settings).ask("light " * 400)


# --- the command ---


def edge_rag(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["-q", *map(str, words)])
    return done.exit_code, done.stdout, str(done.exception or "")


def test_ask_and_the_environment_take_a_folder(
    library_folder: Path, selector_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("--library", library_folder, "ask", QUESTION, "--generator", "extractive", "--json")

    def shown(*more: object) -> list[int]:
        code, out, problem = edge_rag(*ask, "--passages", "3", *more)
        assert code == 0, problem
        return [p["chunk_id"] for p in json.loads(out)["passages"]]

    chosen = shown("--selector", selector_folder)
    assert chosen != shown()
    monkeypatch.setenv("EDGE_RAG_SELECTOR", str(selector_folder))
    assert shown() == chosen != shown("--selector", "")
    code, out, _ = edge_rag("--library", library_folder, "doctor", "--json")
    assert code == 0 and "fp32" in json.dumps(json.loads(out)["machine"]["selector"])


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "an embedder", "torn"])
def test_a_folder_that_is_no_selector_is_said_in_one_line_before_a_question_is_read(
    what: str, library_folder: Path, selector_folder: Path, tmp_path: Path
) -> None:
    folder, message = tmp_path / "judge", "holds no selector: there is no model.json"
    if what == "an empty folder":
        folder.mkdir()
    elif what == "an embedder":
        shutil.copytree(EMBEDDER, folder)
        message = "holds the embedder .*, no selector"
    elif what == "torn":
        shutil.copytree(selector_folder, folder)
        (folder / "model.json").write_bytes((selector_folder / "model.json").read_bytes()[:90])
        message = "model.json is damaged"
    with Library.open(library_folder) as library, pytest.raises(ModelError, match=f"{message}.*{MAKE_ONE}"):
        Assistant(library, settings=Settings(selector=str(folder)))
    with pytest.raises(ModelError, match=MAKE_ONE):
        CliRunner().invoke(
            app, ["--library", str(library_folder), "chat", "--selector", str(folder)], catch_exceptions=False
        )


def test_damaged_weights_are_found_when_they_are_opened(
    library_folder: Path, selector_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(selector_folder, tmp_path / "judge"))
    weights = bytearray((folder / "model.fp32.data").read_bytes())
    weights[5000] ^= 1
    (folder / "model.fp32.data").write_bytes(weights)
    with Library.open(library_folder) as library, pytest.raises(ModelError, match=r"model\.fp32\.data is damaged"):
        Assistant(library, settings=Settings(generator="extractive", selector=str(folder))).ask(QUESTION)
