"""A question set's corpus as a library, and search in it."""

import gzip
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_rag.answering.retrieve import retrieve
from edge_rag.documents import read_document
from edge_rag.errors import UsageError
from edge_rag.evaluation import retrieval, retrieval_table
from edge_rag.evaluation.bench.speed_ingest import Lap
from edge_rag.evaluation.figures import Report, markdown
from edge_rag.evaluation.question_sets import Question, QuestionSet, SetPassage, load_set
from edge_rag.evaluation.retrieval import Found, library_of_set, search_set
from edge_rag.library import Library
from edge_rag.library.lock import writer_lock
from edge_rag.settings import Settings, cache_dir
from edge_rag.testing import HashEmbedder

SETTINGS = Settings(candidates=10)
WORDS = "lamp keeper island storm oil boat letter winter harbour mirror engine rope tide wreck signal".split()  # noqa: SIM905


def made_up(n: int) -> list[SetPassage]:
    draw = np.random.default_rng(0)
    return [SetPassage(f"p{i}", f"Story {i}", " ".join(draw.choice(WORDS, 30)) + f" number{i}.") for i in range(n)]


def questions_about(passages: Sequence[SetPassage]) -> list[Question]:
    return [
        Question(f"q{i}", f"Where is the {p.text.split()[0]} of {p.title}?", (), (), (p.id,), True, {p.id: 1})
        for i, p in enumerate(passages)
    ]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    monkeypatch.setenv("EDGE_RAG_DATA", str(folder))
    return folder


def set_of(data: Path, passages: Sequence[SetPassage]) -> QuestionSet:
    """Write a set in the layout of EDGE_RAG_DATA."""
    (data / "tales").mkdir(parents=True, exist_ok=True)
    _write_rows(data / "tales" / "corpus.jsonl.gz", [{"id": p.id, "title": p.title, "text": p.text} for p in passages])
    gold = [passages[0].id]
    _write_rows(
        data / "tales" / "questions.jsonl.gz", [{"id": "q", "question": "Who?", "answers": ["x"], "gold_ids": gold}]
    )
    return load_set("tales")


def _write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0))


def opened(question_set: QuestionSet, embedder: HashEmbedder) -> Library:
    return library_of_set(question_set, embedder=embedder, settings=SETTINGS)


def found_ids(library: Library, question: str) -> tuple[str, ...]:
    return search_set(library, [Question("q", question, ())], 5, settings=SETTINGS)["q"].ids


def test_a_corpus_is_indexed_once(data: Path) -> None:
    question_set, embedder = set_of(data, made_up(20)), HashEmbedder()
    with opened(question_set, embedder) as library:
        assert library.stats().n_documents == 20
        assert found_ids(library, "number7 of Story 7")[0] == "p7"
    before = embedder.n_embedded
    with opened(question_set, embedder) as library:
        assert library.stats().n_documents == 20
    assert embedder.n_embedded == before


def test_another_corpus_embedder_or_chunk_size_gets_a_library_of_its_own(data: Path) -> None:
    question_set = set_of(data, made_up(3))
    opened(question_set, HashEmbedder()).close()
    opened(question_set, HashEmbedder(dim=32)).close()
    library_of_set(question_set, embedder=HashEmbedder(), settings=Settings(chunk_tokens=64)).close()
    opened(set_of(data, made_up(4)), HashEmbedder()).close()
    assert len([*(cache_dir() / "corpora").iterdir()]) == 4


def test_the_files_of_the_texts_do_not_stay(data: Path) -> None:
    opened(set_of(data, made_up(3)), HashEmbedder()).close()
    (folder,) = (cache_dir() / "corpora").iterdir()
    assert not (folder / retrieval.TEXTS).exists()


class Killed(BaseException):
    pass


def killed(_: float) -> None:
    raise Killed


class Dying(HashEmbedder):
    """Is killed after so many texts."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if self.n_embedded + len(texts) > self.most:
            raise Killed
        return super().embed(texts)


def test_a_killed_build_goes_on_where_it_stopped(data: Path) -> None:
    question_set, dying, second = set_of(data, made_up(200)), Dying(130), HashEmbedder()
    with pytest.raises(Killed):
        opened(question_set, dying)
    with opened(question_set, second) as library:
        assert library.stats().n_documents == 200
        assert second.n_embedded == 200 - dying.n_embedded > 0
        assert found_ids(library, "number150 of Story 150")[0] == "p150"


@pytest.mark.parametrize("name", [retrieval.IDS, "library/library.sqlite", retrieval.COMPLETE])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_library_is_made_anew(data: Path, name: str, harm: str) -> None:
    question_set = set_of(data, made_up(30))
    opened(question_set, HashEmbedder()).close()
    (folder,) = (cache_dir() / "corpora").iterdir()
    path = folder / name
    content = path.read_bytes()
    middle = len(content) // 2
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(
            content[:middle] + (bytes([content[middle] ^ 1]) + content[middle + 1 :] if harm == "flip" else b"")
        )
    with opened(question_set, HashEmbedder()) as library:
        assert [f for f in library.doctor(deep=True) if f.severity != "info"] == []
        assert found_ids(library, "number7 of Story 7")[0] == "p7"


def test_a_half_made_library_that_is_damaged_is_made_anew(data: Path) -> None:
    question_set = set_of(data, made_up(200))
    with pytest.raises(Killed):
        opened(question_set, Dying(130))
    (folder,) = (cache_dir() / "corpora").iterdir()
    (folder / "library/library.sqlite").write_bytes(b"no database" * 1000)
    with opened(question_set, HashEmbedder()) as library:
        assert library.stats().n_documents == 200


def test_of_two_at_once_one_builds_and_the_other_waits(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "WAIT_S", 0.01)
    question_set, embedders = set_of(data, made_up(200)), [HashEmbedder() for _ in range(3)]
    counts = []

    def run(embedder: HashEmbedder) -> None:
        with opened(question_set, embedder) as library:
            counts.append(library.stats().n_documents)

    threads = [threading.Thread(target=run, args=(embedder,)) for embedder in embedders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [200] * 3
    assert sorted(e.n_embedded for e in embedders) == [0, 0, 200]


def test_who_waits_says_for_whom(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question_set = set_of(data, made_up(5))
    opened(question_set, HashEmbedder()).close()
    (folder,) = (cache_dir() / "corpora").iterdir()
    (folder / retrieval.COMPLETE).unlink()
    said: list[tuple[str, str]] = []
    with writer_lock(folder, "another"):
        monkeypatch.setattr(retrieval.time, "sleep", killed)
        with pytest.raises(Killed):
            library_of_set(
                question_set,
                embedder=HashEmbedder(),
                settings=SETTINGS,
                progress=lambda stage, _done, _total, detail: said.append((stage, detail)),
            )
    assert said[0][0] == "wait"
    assert "another" in said[0][1]


def test_a_set_without_a_corpus_is_refused(data: Path) -> None:
    bare = QuestionSet("bare", "edge_rag", (), None, data, "")
    with pytest.raises(UsageError, match="no corpus"):
        opened(bare, HashEmbedder())


HOSTILE = [
    SetPassage("a/../../b", "# Not a heading\n/etc", "* harbour\n| a | b |\n|---|---|\n[x]: gone <b>bold</b> & co"),
    SetPassage("nul\0id", "nul\0title", "mirror\0glass"),
    SetPassage("empty", "", ""),
    SetPassage("x" * 999, "engine " * 5000, "long title"),
    SetPassage("long text", "rope", "wreck and tide. " * 5000),
    SetPassage("markup", "<!-- ", "--> <script>lantern</script> </p></body> beacon"),
    SetPassage("Ünï ☃", "مرحبا", "الضوء في البحر"),
]


def test_without_a_corpus_the_passages_of_all_questions_are_searched(data: Path) -> None:
    (data / "tales").mkdir(parents=True)
    rows = [
        {
            "id": p.id,
            "question": p.title,
            "answers": ["x"],
            "passages": [{"id": p.id, "title": p.title, "text": p.text}],
        }
        for p in made_up(9)
    ]
    _write_rows(data / "tales" / "questions.jsonl.gz", rows)
    with opened(load_set("tales", limit=2), HashEmbedder()) as library:
        assert library.stats().n_documents == 9
        assert found_ids(library, "number7 of Story 7")[0] == "p7"


def test_hostile_passages_are_found_by_their_own_ids(data: Path) -> None:
    with opened(set_of(data, HOSTILE), HashEmbedder()) as library:
        for words, id_ in [
            ("harbour gone bold", "a/../../b"),
            ("mirror glass", "nul\0id"),
            ("engine", "x" * 999),
            ("wreck tide", "long text"),
            ("lantern beacon", "markup"),
            ("الضوء", "Ünï ☃"),
        ]:
            found = search_set(library, [Question("q", words, ())], 1, how="lexical", settings=SETTINGS)["q"]
            assert found.ids == (id_,), words


@given(title=st.text(), text=st.text())
def test_a_page_says_all_that_the_passage_says(title: str, text: str) -> None:
    document = read_document(retrieval._page(SetPassage("i", title, text)), "0.html")
    said = (f"{title} {text}").encode(errors="replace").decode()
    kept = [c for c in said if c.isalnum()]
    assert [c for c in document.text if c.isalnum()] == kept


def test_a_text_under_two_ids_counts_as_the_gold_one(data: Path) -> None:
    passages = [*made_up(5), SetPassage("twin", made_up(5)[3].title, made_up(5)[3].text)]
    with opened(set_of(data, passages), HashEmbedder()) as library:
        asked = [Question(g, "number3 of Story 3", (), (), (g,)) for g in ("p3", "twin", "p0")]
        found = search_set(library, asked, 3, settings=SETTINGS)
    assert [found[q.id].ids[0] for q in asked] == ["p3", "twin", "p3"]
    assert len(set(found["p3"].ids)) == 3


@pytest.fixture
def searched(data: Path) -> Iterator[tuple[Library, list[Question]]]:
    passages = [SetPassage(p.id, p.title, (p.text + " ") * (1 + i % 9)) for i, p in enumerate(made_up(60))]
    questions = questions_about(passages[1:9])
    with opened(set_of(data, passages), HashEmbedder()) as library:
        yield library, questions


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_search_finds_what_single_questions_find(
    searched: tuple[Library, list[Question]], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "BATCH", batch)
    library, questions = searched
    fused = search_set(library, questions, 12, settings=SETTINGS)
    for q in questions:
        one = retrieve(library, q.question, 12, candidates=SETTINGS.candidates)
        found: Found = fused[q.id]
        assert found.passages == one.passages
        assert found.cosines == one.cosines
        assert (found.question_vector == one.question_vector).all()


def test_search_by_words_or_vectors_alone(searched: tuple[Library, list[Question]]) -> None:
    library, questions = searched
    lexical = search_set(library, questions, 7, how="lexical", settings=SETTINGS)
    dense = search_set(library, questions, 7, how="dense", settings=SETTINGS)
    for q in questions:
        assert list(lexical[q.id].passages) == library.lexical(q.question, 7)
        assert list(dense[q.id].passages) == library.dense(q.question, 7)
        assert dense[q.id].cosines == {p.chunk_id: p.score for p in dense[q.id].passages}
        assert lexical[q.id].ids[0] in q.gold_ids


def test_chunks_of_one_passage_have_its_id(searched: tuple[Library, list[Question]]) -> None:
    library, _ = searched
    found = search_set(library, [Question("q", "number8 of Story 8", ())], 5, settings=SETTINGS)["q"]
    assert len(found.ids) == len(found.passages) == 5
    assert found.ids.count("p8") > 1
    assert all(p.title == f"Story {i[1:]}" for p, i in zip(found.passages, found.ids, strict=True))


def test_the_cache_can_be_moved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question_set, embedder = set_of(data, made_up(10)), HashEmbedder()
    opened(question_set, embedder).close()
    before = embedder.n_embedded
    shutil.move(cache_dir(), tmp_path / "elsewhere" / "cache")
    monkeypatch.setenv("EDGE_RAG_HOME", str(tmp_path / "elsewhere"))
    with opened(question_set, embedder) as library:
        assert found_ids(library, "number7 of Story 7")[0] == "p7"
    assert embedder.n_embedded == before + 1


# --- the table ---


def table(data: Path, **more: object) -> Report:
    passages = [SetPassage(p.id, p.title, (p.text + " ") * (1 + i % 9)) for i, p in enumerate(made_up(40))]
    (data / "tales").mkdir(parents=True, exist_ok=True)
    _write_rows(data / "tales" / "corpus.jsonl.gz", [{"id": p.id, "title": p.title, "text": p.text} for p in passages])
    rows = [
        {"id": f"q{i}", "question": f"What of number{i} in {p.title}?", "answers": [f"number{i}"], "gold_ids": [p.id]}
        for i, p in enumerate(passages[:12])
    ]
    _write_rows(data / "tales" / "questions.jsonl.gz", rows)
    arguments: dict[str, Any] = {"k": 20, "peers": (), "fp32": None, **more}
    return retrieval_table.measure(
        [load_set("tales")],
        embedder=HashEmbedder(),
        settings=SETTINGS,
        command="edge-rag eval search tales",
        **arguments,
    )


def values(report: Report, row: str) -> dict[str, float]:
    named = (f.name.rpartition(": ") for f in report.figures)
    return {
        c: f.value for f, (what, _, c) in zip(report.figures, named, strict=True) if what.startswith(f"{row}, tales")
    }


def test_the_table_has_what_each_search_finds_and_the_difference_to_fused(data: Path) -> None:
    report = table(data)
    assert values(report, "recall@1")["words"] == 1.0
    assert values(report, "answer recall@5")["words"] == 1.0
    ndcg = values(report, "nDCG@10")
    difference = values(report, "nDCG@10, fused minus this")
    assert difference == pytest.approx({name: ndcg["fused"] - ndcg[name] for name in ("words", "vectors")})
    assert {f.n for f in report.figures} == {12}
    assert "| words | vectors | fused |" in markdown(report, crossed=True)


def test_a_table_of_few_passages_has_no_recall_of_many(data: Path) -> None:
    assert not values(table(data, k=5), "recall@20")


def test_the_peer_bm25s_is_measured_with_and_without_stemming(data: Path) -> None:
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    report = table(data, peers=("bm25s",))
    recall = values(report, "recall@1")
    assert recall["bm25s"] == recall["bm25s, stemmed"] == 1.0
    assert "k1 = 1.5, b = 0.75" in " ".join(report.notes)


def test_vectors_of_the_peer_are_made_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our own vectors the peer must find what we find."""
    embedder = HashEmbedder()
    monkeypatch.setattr(
        retrieval_table, "embed_fp32", lambda model, threads, texts: Lap(0.0, 0.0, embedder.embed(texts))
    )
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    first = table(data, peers=("fp32",), fp32=model)
    assert values(first, "nDCG@10")["fp32 vectors"] == values(first, "nDCG@10")["vectors"]
    before = embedder.n_embedded
    assert values(table(data, peers=("fp32",), fp32=model), "MRR") == values(first, "MRR")
    assert embedder.n_embedded - before < 40  # the questions only


def test_a_peer_that_cannot_run_is_one_clear_line(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no peer 'elastic'; use bm25s or fp32"):
        table(data, peers=("elastic",))
    with pytest.raises(UsageError, match="--fp32"):
        table(data, peers=("fp32",))
    monkeypatch.setattr(retrieval_table, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install bm25s"):
        table(data, peers=("bm25s",))


def test_a_set_that_does_not_say_what_is_right_is_refused(data: Path) -> None:
    (data / "tales").mkdir(parents=True)
    _write_rows(data / "tales" / "questions.jsonl.gz", [{"id": "q", "question": "Who?", "answers": ["x"]}])
    with pytest.raises(UsageError, match="tales does not say which passages are right"):
        retrieval_table.measure(
            [load_set("tales")], k=20, peers=(), fp32=None, embedder=HashEmbedder(), settings=SETTINGS, command=""
        )


def test_the_command_prints_the_table(data: Path, home: Path) -> None:
    table(data)
    done = subprocess.run(
        [sys.executable, "-m", "edge_rag", "-q", "eval", "search", "tales", "--part", "all", "--limit", "3", "-k", "10"],
        capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "| nDCG@10, tales, 40 passages, n = 3 |" in done.stdout
    assert "edge-rag -q eval search tales" in done.stdout
