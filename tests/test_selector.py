"""A selector at run time: what it scores, what it keeps, in which order, and what is said of a folder that is none."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from edge_rag.answering import NOT_FOUND, Assistant, KeepTop, OnnxSelector, Turn, evidence, retrieve
from edge_rag.answering.assistant import fit
from edge_rag.answering.selector import AT_ONCE, both_ends, choose, scored_text
from edge_rag.cli.commands import app
from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Message, Passage, Selection, Selector
from edge_rag.library import Library
from edge_rag.models import open_scorer
from edge_rag.models.selector import Calibration, OnnxScorer
from edge_rag.settings import Settings
from edge_rag.testing import EchoGenerator

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


def test_the_one_that_comes_with_the_package_knows_what_answers_and_when_nothing_does() -> None:
    shipped = open_scorer(Settings().selector, threads=1)
    assert shipped.name == Settings().selector
    found = choose(shipped, QUESTION, [passage(n, fact) for n, fact in enumerate(FACTS)], 4)
    assert found.passages[0].text == FACTS[1]
    nothing = choose(shipped, "What is the capital of Mongolia?", [passage(n, fact) for n, fact in enumerate(FACTS)], 4)
    assert found.confidence is not None and nothing.confidence is not None
    assert found.confidence > found.threshold > nothing.confidence


@pytest.mark.parametrize("name", ["no-such-selector", "smollm2-135m-rag"])
def test_a_name_that_no_selector_has_is_one_clear_line(name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no selector '{name}'; run: edge-rag models list"):
        open_scorer(name)


def test_the_best_by_score_are_kept_best_first_as_they_came(scorer: OnnxScorer) -> None:
    passages = [passage(n, fact) for n, fact in enumerate(FACTS)]
    scores = scorer.score(QUESTION, [scored_text(p) for p in passages]).tolist()
    wanted = sorted(passages, key=lambda p: -scores[p.chunk_id])
    assert wanted != passages and len(set(scores)) == len(scores)
    for n in (1, 3, 9):
        selector: Selector = OnnxSelector(lambda: scorer, n)
        assert selector.select(QUESTION, passages) == Selection(tuple(wanted[:n]))
        assert selector.select(QUESTION, passages[::-1]) == Selection(tuple(wanted[:n]))
    assert selector.name == "judge"


def test_of_equal_scores_the_search_has_the_last_word(scorer: OnnxScorer) -> None:
    twice = [passage(n, FACTS[n % 2]) for n in (3, 8, 1, 6, 5)]
    kept = [p.chunk_id for p in OnnxSelector(lambda: scorer, 5).select(QUESTION, twice).passages]
    assert kept in ([3, 1, 5, 8, 6], [8, 6, 3, 1, 5])


def test_headings_are_scored_too_and_a_title_where_there_are_none() -> None:
    assert scored_text(passage(1, "It was lit.")) == "Elmo Head > Log\nIt was lit."
    assert scored_text(passage(1, "It was lit.", heading="")) == "Log\nIt was lit."
    assert scored_text(passage(1, "It was lit.", heading="", title="")) == "It was lit."


def test_nothing_to_score_opens_nothing() -> None:
    def fail() -> OnnxScorer:
        raise AssertionError

    assert OnnxSelector(fail, 3).select(QUESTION, []) == Selection(())


def test_an_assistant_scores_all_candidates_and_shows_as_many_as_are_set(
    library_folder: Path, selector_folder: Path, scorer: OnnxScorer
) -> None:
    settings = Settings(generator="extractive", confidence=0.0, threads=1, passages=2, selector=str(selector_folder))
    with Library.open(library_folder) as library:
        found = retrieve(library, QUESTION, len(FACTS), candidates=40).passages
        wanted = OnnxSelector(lambda: scorer, 2).select(QUESTION, found).passages
        assert len(found) == len(FACTS) and wanted != found[:2]
        with Assistant(library, settings=settings) as assistant:
            assert assistant.ask(QUESTION).passages == wanted
        with Assistant(library, settings=replace(settings, candidates=2)) as assistant:
            shown = assistant.ask(QUESTION).passages  # two candidates, and two to keep: only their order is chosen
            assert {p.chunk_id for p in shown} == {p.chunk_id for p in found[:2]}
        with Assistant(library, settings=settings, selector=KeepTop(2)) as assistant:
            assert list(assistant.ask(QUESTION).passages) == list(found[:2])


def test_a_follow_up_is_scored_with_the_question_that_it_follows(library_folder: Path) -> None:
    asked: list[str] = []

    class Asked(KeepTop):
        def select(self, question: str, passages: Sequence[Passage]) -> Selection:
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


# --- what scores mean ---


class Judge:
    """A scorer whose scores stand in the texts."""

    def __init__(self, **changes: float) -> None:
        known = {"slope": 2.0, "bias": -4.0, "threshold": 0.4, "margin": 1.0, "settled": 9.0} | changes
        self.calibration = Calibration(**known)
        self.asked: list[int] = []

    def score(self, question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.asked.append(len(texts))
        return np.array([float(text.rsplit(" ", 1)[1]) for text in texts], dtype=np.float32)


def rated(*scores: float) -> list[Passage]:
    return [passage(n, f"It is worth {score}") for n, score in enumerate(scores)]


def chosen(judge: Judge, passages: Sequence[Passage], most: int) -> Selection:
    return choose(judge, QUESTION, passages, most)  # type: ignore[arg-type]


def test_what_comes_near_the_best_is_kept_and_no_more_than_wanted() -> None:
    passages = rated(1.5, 3.0, 2.5, 2.0, 1.9)
    found = chosen(Judge(), passages, 4)
    assert [p.chunk_id for p in found.passages] == [1, 2, 3]
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-2))) and found.threshold == 0.4
    assert [p.chunk_id for p in chosen(Judge(), passages, 2).passages] == [1, 2]
    assert [p.chunk_id for p in chosen(Judge(margin=0.0), passages, 4).passages] == [1]


def test_once_the_best_settles_it_the_rest_is_not_scored() -> None:
    passages = rated(*[0.0] * 5, 9.5, *[0.0] * 30)
    judge = Judge()
    assert [p.chunk_id for p in chosen(judge, passages, 4).passages] == [5]
    assert judge.asked == [AT_ONCE]
    judge = Judge(settled=10.0)
    chosen(judge, passages, 4)
    assert sum(judge.asked) == len(passages)
    judge = Judge()
    chosen(judge, [*rated(*[0.0] * AT_ONCE), *passages], 4)
    assert judge.asked == [AT_ONCE, AT_ONCE]


def test_a_selector_that_can_tell_decides_whether_to_answer(library_folder: Path) -> None:
    class Sure(KeepTop):
        threshold = 0.4

        def select(self, question: str, passages: Sequence[Passage]) -> Selection:
            return replace(super().select(question, passages), confidence=0.3, threshold=self.threshold)

    with Library.open(library_folder) as library:
        selector = Sure(2)

        of_another = replace(evidence.SHIPPED, fitted_with="another embedder")

        def abstains(rule: evidence.Rule = of_another, **more: float) -> bool:
            settings = Settings(generator="extractive", **more)  # type: ignore[arg-type]
            answer = Assistant(library, settings=settings, selector=selector, rule=rule).ask(QUESTION)
            assert (answer.confidence == 0.3) == (rule is of_another)
            return answer.abstained

        assert abstains() and not abstains(confidence=0.0)
        selector.threshold = 0.2
        assert not abstains() and abstains(confidence=0.5)
        # unless there is a rule for this embedder
        sure = evidence.Rule((9.0, 0, 0, 0, 0), 0.5, library.embedder.fingerprint)
        unsure = replace(sure, weights=(-9.0, 0, 0, 0, 0))
        selector.threshold = 0.4
        assert not abstains(sure) and abstains(unsure)


def test_the_rule_looks_at_what_the_search_brings_and_not_at_what_a_selector_keeps(library_folder: Path) -> None:
    class Last(KeepTop):
        def select(self, question: str, passages: Sequence[Passage]) -> Selection:
            return Selection(tuple(passages[-1:]), confidence=0.9, threshold=0.1)

    with Library.open(library_folder) as library:
        rule = evidence.Rule(evidence.WEIGHTS, 0.01, library.embedder.fingerprint)
        settings = Settings(generator="extractive")
        plain, chosen = (
            Assistant(library, settings=settings, selector=selector, rule=rule).ask(QUESTION)
            for selector in (KeepTop(settings.passages), Last(1))
        )
    assert plain.confidence == pytest.approx(chosen.confidence)
    assert len(chosen.passages) == 1
    assert {c.chunk_id for c in chosen.citations} <= {p.chunk_id for p in chosen.passages}


def test_a_calibration_that_is_torn_is_one_clear_line(selector_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(selector_folder, tmp_path / "judge")
    manifest = json.loads((folder / "model.json").read_text())
    known = {"slope": 1, "bias": 0, "threshold": 0.5, "margin": 2, "settled": 7}
    (folder / "model.json").write_text(json.dumps(manifest | {"calibration": {"fp32": known}}))
    assert open_scorer(str(folder)).calibration == Calibration(**known)
    assert open_scorer(str(folder)).fingerprint == open_scorer(str(selector_folder)).fingerprint
    del known["slope"]
    (folder / "model.json").write_text(json.dumps(manifest | {"calibration": {"fp32": known}}))
    with pytest.raises(ModelError, match=r"calibration in model.json is damaged.*edge-rag export selector"):
        open_scorer(str(folder))
    (folder / "model.json").write_text(json.dumps(manifest | {"calibration": "none"}))
    with pytest.raises(ModelError, match=r"model.json is damaged"):
        open_scorer(str(folder))


def test_the_best_passages_may_stand_at_both_ends_of_those_that_fit() -> None:
    passages = [passage(n, "light " * 50) for n in range(5)]
    assert [p.chunk_id for p in both_ends(passages)] == [1, 3, 4, 2, 0]
    assert both_ends(passages[:1]) == passages[:1] and both_ends([]) == []
    room = EchoGenerator()
    room.context_tokens = 250
    prompt = fit(QUESTION, passages, room, 20, order="both-ends")
    n = len(prompt.passages)
    assert 1 < n < 5 and list(prompt.passages) == both_ends(passages[:n]) and list(prompt.dropped) == passages[n:]


# --- what the model knows by itself ---


class Knows(EchoGenerator):
    def __init__(self, *said: str) -> None:
        self.said, self.asked = list(said), list[str]()

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[str]:
        self.asked.append(messages[-1].content)
        yield self.said[len(self.asked) - 1]


@pytest.mark.parametrize(
    ("guess", "said", "guessed"),
    [
        ("never", [], ""),
        ("closed-book", ["Ada Quill."], "Ada Quill."),
        ("closed-book", ["I don't know."], ""),
        ("pseudo-passage", ["Ada Quill kept it from 1871.", "Ada Quill."], "Ada Quill."),
        ("pseudo-passage", ["N/A"], ""),
    ],
)
def test_a_guess_is_made_when_it_is_wanted_and_is_no_answer(
    guess: Any, said: list[str], guessed: str, library_folder: Path
) -> None:
    generator = Knows(*said)
    with Library.open(library_folder) as library:
        assistant = Assistant(library, settings=Settings(confidence=1.0, guess=guess), generator=generator)
        answer = assistant.ask(QUESTION)
    assert (answer.text, answer.abstained, answer.guess) == (NOT_FOUND, True, guessed)
    assert not answer.citations and not answer.sentences
    assert len(generator.asked) == len(said)
    assert not any(fact in text for fact in FACTS for text in generator.asked)
    if len(said) == 2:
        assert said[0] in generator.asked[1]


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
