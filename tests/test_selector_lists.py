"""A selector that writes lists, at run time: only passages that are there, each once, the likeliest first."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

from edge_rag.export.lora_to_gguf import export_lora
from edge_rag.export.to_gguf import export_gguf
from in_process import edge_rag
from tiny_models import make_adapter, make_model

from edge_rag.answering import Assistant, GenerativeSelector, KeepTop
from edge_rag.answering.prompt import list_messages, written_list
from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Passage
from edge_rag.library import Library
from edge_rag.models import locate_lister, open_lister
from edge_rag.models.gguf_batch import GgufBatch
from edge_rag.models.gguf_lister import GgufLister
from edge_rag.models.prompt_style import LIST, Listing, list_fields, read_note, trained_listing, write_note
from edge_rag.settings import Settings

LISTING = Listing(candidates=12, words=8, passages=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A generator, and an adapter of it that is said to write lists."""
    folder = tmp_path_factory.mktemp("lister")
    base = make_model(folder / "base")
    adapter = make_adapter(folder / "adapter", base)
    write_note(adapter, list_fields(LISTING, 1))
    export_gguf(base, folder / "base.gguf", "f32", timed=False, threads=1)
    export_lora(adapter, folder / "lists.gguf", base=base, timed=False, threads=1)
    return folder / "base.gguf", folder / "lists.gguf"


@pytest.fixture(scope="module")
def lister(files: tuple[Path, Path]) -> Iterator[GgufLister]:
    with open_lister(str(files[1]), str(files[0]), threads=1, context_tokens=2048) as lister:
        yield lister


def passages(n: int) -> list[Passage]:
    texts = [f"In {1800 + i} keeper {i} kept the light of Elmo Head, and so on." for i in range(n)]
    return [Passage(i, i, f"{i}.md", "Log", "", None, 0, len(t), t, 1 / (i + 1)) for i, t in enumerate(texts)]


def test_a_list_has_what_is_there_and_each_once(lister: GgufLister) -> None:
    shown = passages(12)
    messages = list_messages("Who kept it?", shown, 12, words=8)
    listed = lister.choose(messages, written_list, 12, 12)
    assert sorted(listed) == list(range(12))  # two-digit numbers as well
    assert lister.choose(messages, written_list, 12, 3) == listed[:3]
    assert len(lister.choose(messages, written_list, 2, 5)) == 2


def test_at_each_number_the_likeliest_is_taken(lister: GgufLister, files: tuple[Path, Path]) -> None:
    shown = passages(9)  # numbers of one digit: a number is a token
    messages = list_messages("Which keeper?", shown, 3, words=8)
    listed = lister.choose(messages, written_list, 9, 3)
    with GgufBatch(files[0], lora=files[1], threads=1, context_tokens=2048) as batch:
        for n in range(3):
            left = [place for place in range(9) if place not in listed[:n]]
            lists = [written_list([*listed[:n], place]) for place in left]
            (scores,) = batch.score([messages], [lists], ended=False)
            assert left[max(range(len(left)), key=lambda i: scores[i][-2])] == listed[n]  # then the bracket closes


def test_a_selector_shows_as_many_candidates_as_were_trained_with_and_fit(files: tuple[Path, Path]) -> None:
    shown = passages(30)
    selector = GenerativeSelector(lambda: open_lister(str(files[1]), str(files[0]), threads=1), 3)
    found = selector.select("Which keeper?", shown)
    assert len(found.passages) == 3 and {p.chunk_id for p in found.passages} < set(range(12))
    assert found.confidence is None
    assert selector.select("Which keeper?", []).passages == ()
    assert selector.select("Which keeper?", shown) == found
    selector.close()
    small = GenerativeSelector(lambda: open_lister(str(files[1]), str(files[0]), threads=1, context_tokens=512), 3)
    assert {p.chunk_id for p in small.select("Which keeper?", shown).passages} < set(range(11))
    small.close()


def test_ask_and_eval_take_an_adapter_that_lists(files: tuple[Path, Path], tmp_path: Path, home: Path) -> None:
    generator, adapter = files
    for passage in passages(6):
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / passage.document).write_text(passage.text)
    with Library.open(tmp_path / "library", create=True) as library:
        library.add([tmp_path / "docs"])
        settings = Settings(generator=str(generator), selector=str(adapter), confidence=0.0, passages=2, threads=1)
        with Assistant(library, settings=settings) as assistant:
            answer = assistant.ask("Which keeper kept the light?")
            assert len(answer.passages) == 2
            assert assistant.ask("Which keeper kept the light?").passages == answer.passages
        with Assistant(library, settings=settings, selector=KeepTop(2)) as assistant:
            assistant.ask("Which keeper kept the light?")
    rows = [
        {"id": str(n), "question": f"Which keeper {n}?", "answers": [f"keeper {n}"],
         "passages": [{"id": p.document, "title": p.title, "text": p.text, "gold": p.chunk_id == n} for p in passages(6)]}
        for n in range(2)
    ]  # fmt: skip
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = edge_rag(
        "eval", "run", tmp_path / "set.jsonl", "--arm", "given", "--generator", generator, "--selector", adapter, "--keep", 2,
        "--answer-tokens", 4, "--timed", 0, "--out", tmp_path / "run", "--json", home=home,
    )  # fmt: skip
    assert len(json.loads(ran.stdout)[0]["config"]["selector_sha256"]) == 64


def test_what_it_was_trained_with_travels(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert trained_listing(files[1]) == LISTING and trained_listing(files[0]) is None
    write_note(tmp_path, list_fields(LISTING, 1))
    assert read_note(tmp_path) == list_fields(LISTING, 1)
    write_note(tmp_path, {LIST: "12 8 40", "edge_rag.prompt_version": "1"})
    with pytest.raises(ModelError, match="makes no sense"):
        read_note(tmp_path)


def test_an_adapter_that_does_not_list_is_one_clear_line(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"base.gguf was not trained to write lists of passages; give what export lora"
    ):
        locate_lister(str(files[0]))
    with pytest.raises(ModelError, match=r"there is no model file"):
        locate_lister(str(tmp_path / "none.gguf"))
    with pytest.raises(UsageError, match="cannot be applied to the server"):
        open_lister(str(files[1]), "http://localhost:1/v1#x")
