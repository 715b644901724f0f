"""The benchmarks really run, small; what they measure is not judged here."""

import gzip
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_rag.answering import evidence
from edge_rag.cli.commands import app
from edge_rag.errors import UsageError
from edge_rag.evaluation import figures
from edge_rag.evaluation.bench import (
    abstention,
    abstention_report,
    speed_answers,
    speed_ask,
    speed_choice,
    speed_ingest,
    speed_search,
    speed_training,
)
from edge_rag.library import Library
from edge_rag.settings import Settings
from edge_rag.testing import HashEmbedder

SAMPLES = Path(__file__).parent / "samples"
DOCS, QUESTIONS = SAMPLES / "lighthouse", SAMPLES / "questions.jsonl"


def values(report: figures.Report) -> dict[str, float]:
    return {figure.name: figure.value for figure in report.figures}


def test_ingest_measures_library_and_embedder_and_names_the_absent_peers() -> None:
    report = speed_ingest.measure(
        DOCS, chunks=4, rounds=2, fp32=None, hf_folder=None, threads=1, command="edge-rag bench ingest"
    )
    found = values(report)
    assert found[speed_ingest.INGEST] > 0
    assert found[speed_ingest.EMBED] > 0
    assert all(figure.n == 2 for figure in report.figures)
    assert any(speed_ingest.FP32 in note and "--fp32" in note for note in report.notes)


def test_ingest_refuses_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not there"):
        speed_ingest.measure(DOCS, chunks=4, rounds=1, fp32=tmp_path / "no.onnx", hf_folder=None, threads=1, command="")


def test_search_builds_once_and_absorbs_a_change(tmp_path: Path) -> None:
    questions = speed_search.questions_of(str(QUESTIONS), 1)
    report = speed_search.measure(tmp_path, questions, rows=60, docs=DOCS, command="edge-rag bench search")
    found = values(report)
    assert {"cold `edge-rag search`", "cold `edge-rag --help`", "... of the full build"} <= found.keys()
    place = speed_search.Place(tmp_path, 60)
    with Library.open(place.library) as library:
        assert library.stats().n_documents == 6
        assert "This was changed" in "".join(library.show(d.id).text for d in library.list())
    before = place.built.read_text()
    speed_search.build(place, DOCS, None)
    assert place.built.read_text() == before


def test_search_goes_on_with_a_build_that_was_stopped(tmp_path: Path) -> None:
    place = speed_search.Place(tmp_path, 40)
    place.built.write_text(json.dumps({"seconds": 1000.0, "n_files": 0, "n_chunks": 0}))
    built = speed_search.build(place, DOCS, None)
    assert built.seconds > 1000
    assert built.n_files == 4
    assert built.n_chunks >= 36


def test_made_up_vectors_have_length_one_and_differ() -> None:
    vectors = speed_search.MadeUpVectors(HashEmbedder()).embed(["same", "same"])
    assert abs((vectors**2).sum(axis=1) - 1).max() < 1e-5
    assert abs(vectors[0] - vectors[1]).max() > 0.01


def test_questions_of_a_damaged_file_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("[]\n")
    result = CliRunner().invoke(
        app, ["bench", "search", "--work", str(tmp_path), "--questions", str(tmp_path / "q.jsonl")]
    )
    assert "cannot be read as questions" in str(result.exception)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_training_is_timed_beside_the_peer(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")  # what the tiny model is made with
    from tiny_models import make_model

    base = make_model(tmp_path / "tiny", padding=0)
    rows = [
        {"id": f"q{n}", "question": f"Who kept light {n}?", "answers": [f"Keeper {n}"],
         "passages": [{"id": f"p{n}", "title": "Keepers", "text": f"Keeper {n} kept light {n}.", "gold": True}]}
        for n in range(12)
    ]  # fmt: skip
    (tmp_path / "lights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = speed_training.measure(
        base, str(tmp_path / "lights.jsonl"), n_pairs=2, others=0, batch=2, rounds=1, peer=True, embedder=HashEmbedder(),
        settings=Settings(threads=1), command="edge-rag bench training",
    )  # fmt: skip
    found = values(report)
    assert found["edge_rag: pairs"] > 0
    if find_spec("trl"):
        assert found["edge_rag faster than trl ORPOTrainer"] > 0


def test_ask_measures_the_default_generator(tmp_path: Path, default_models: Path) -> None:
    library = tmp_path / "library"
    with Library.open(library, create=True) as opened:
        opened.add([DOCS / "keepers.md", DOCS / "tide-station.html"])
    gguf = str(next(default_models.rglob("*.gguf")))
    settings = replace(Settings(), answer_tokens=8, passages=1, threads=1, generator=gguf)
    questions = ("Who kept the light?", "How long did the keeper stay?", "Where is the tide station?")
    report = speed_ask.measure(library, questions, generators=[gguf], rounds=1, settings=settings, command="edge-rag")
    found = {name.partition(": ")[2]: value for name, value in values(report).items()}
    assert found["first token, first question"] > 0
    assert found["second question, same passages"] > 0
    assert found["prefill"] > 0


def test_ask_with_a_selector_measures_its_scores_and_the_usual_pipeline(
    tmp_path: Path, default_models: Path, selector_folder: Path
) -> None:
    library = tmp_path / "library"
    with Library.open(library, create=True) as opened:
        opened.add([DOCS / "keepers.md", DOCS / "tide-station.html"])
    gguf = str(next(default_models.rglob("*.gguf")))
    settings = replace(Settings(), answer_tokens=4, threads=1, generator=gguf, selector=str(selector_folder))
    questions = ("Who kept the light?", "Where is the tide station?")
    found = {f.name: f for f in speed_choice.figures(library, questions, settings, None, 2, None)}
    assert found[f"sooner than {speed_choice.NAIVE}"].n == 2
    assert all(figure.value > 0 for figure in found.values())
    assert speed_choice.PEER not in " ".join(found)


def test_a_folder_that_is_no_original_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Hugging Face folder"):
        list(speed_choice.figures(tmp_path, ("One?", "Two?"), Settings(selector="x"), tmp_path, 1, None))


def test_ask_wants_three_questions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 questions"):
        speed_ask.measure(tmp_path, ["One?"], generators=["x"], rounds=1, settings=Settings(), command="")


def examples() -> list[abstention.Example]:
    """Answerable and foreign questions that the signals tell apart, half of them held out."""
    near, far = evidence.Signals(0.7, 0.7, 0.9, 1.0), evidence.Signals(0.2, 0.2, 0.1, 0.0)
    return [
        abstention.Example(kind, "set", kind == "answerable", bool(number % 2), signals)
        for number in range(40)
        for kind, signals in (("answerable", near), ("foreign", far))
    ]


@pytest.mark.parametrize(("agrees", "said"), [(True, "agree with this fit"), (False, "do NOT agree with this fit")])
def test_abstain_says_whether_the_shipped_constants_agree(
    monkeypatch: pytest.MonkeyPatch, agrees: bool, said: str
) -> None:
    fit = abstention.fit(examples())
    monkeypatch.setattr(abstention, "collect", lambda *args, **kwargs: examples())
    monkeypatch.setattr(evidence, "THRESHOLD", fit.threshold)
    monkeypatch.setattr(evidence, "WEIGHTS", fit.weights if agrees else tuple(-w for w in fit.weights))
    plain = Settings(selector="")
    report = abstention_report.measure(HashEmbedder(), plain, limit=5, command="edge-rag bench abstain")
    assert any(said in note for note in report.notes)
    assert values(report)["set, answerable: wrongly refused"] == 0


def test_abstain_measures_a_selector_beside_the_rule() -> None:
    sure = {"answerable": 0.9, "foreign": 0.4}
    asked = [replace(e, sure=sure[e.kind]) for e in examples()]
    found = {f.name: f for f in abstention.by_selector(asked, threshold=0.3)}
    assert found["selector: set, answerable: wrongly refused"].value == 0
    assert found["selector: set, foreign: wrongly answered"].value == 100
    assert found["selector: AUC: the passages hold the answer"].value == 1
    assert found["both: set, foreign: wrongly answered"].value == 0


def test_abstain_measures_what_the_selector_adds_to_signals_that_say_nothing() -> None:
    same = evidence.Signals(0.5, 0.5, 0.5, 0.5)
    sure = {"answerable": 0.6, "foreign": 0.4}
    asked = [replace(e, signals=same, sure=sure[e.kind]) for e in examples()]
    assert abstention.fit(asked).auc_dev == 0.5
    assert abstention.fit_both(asked).auc_dev == 1.0


def test_json_and_markdown_show_the_same_figures() -> None:
    arguments = ["-q", "bench", "ingest", "--docs", str(DOCS), "--chunks", "4", "--rounds", "1"]
    printed = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    report = json.loads(printed.stdout)
    assert report["surroundings"]["command"].startswith("edge-rag")
    table = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert all(f"| {figure['name']} |" in table for figure in report["figures"])


def test_a_figure_knows_whether_its_target_is_met() -> None:
    assert figures.figure("x", "s", [1.0, 2.0, 9.0], below=3).met is True
    assert figures.figure("x", "s", [1.0, 2.0, 9.0], at_least=3).met is False
    assert figures.figure("x", "s", [1.0]).met is None
    assert figures.ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]


def test_answers_are_timed_in_three_ways(generator_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"question": f"Who kept light {i}?", "passages": [{"title": "Keepers", "text": f"Moar kept light {i}."}]}
        for i in range(40)
    ]
    with gzip.open(tmp_path / "set.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setenv("EDGE_RAG_DATA", str(tmp_path))
    arguments = ["-q", "bench", "answers", "--questions", "set", "--limit", "2", "--tokens", "3", "--rounds", "1"]
    monkeypatch.setenv("EDGE_RAG_GENERATOR", str(generator_file))
    monkeypatch.setenv("EDGE_RAG_THREADS", "2")
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    named = {f["name"]: f["value"] for f in report["figures"]}
    for way in ("GgufBatch", "GgufGenerator", "Llama.create_chat_completion"):
        assert named[f"{way}: questions"] > 0
    assert named["GgufBatch faster than GgufGenerator"] > 0
    assert "the same text as GgufGenerator: 2 of 2" in report["notes"][2]


def test_answers_of_a_server_are_not_timed() -> None:
    with pytest.raises(UsageError, match="is a server"):
        speed_answers.measure(
            [[]], rounds=1, answer_tokens=1, settings=Settings(generator="http://localhost:1/v1#x"), command=""
        )
