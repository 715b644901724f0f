"""A bundle answers as its library does, anywhere; says nothing of where it was made; and is the same bytes each time."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import typing
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from gguf_writing import write_adapter, write_gguf
from typer.testing import CliRunner

from edge_rag.answering import Assistant, retrieve
from edge_rag.bundle import Bundle, opened
from edge_rag.bundle.build import build
from edge_rag.bundle.container import Trailer, directory_bytes, directory_size, header_bytes, place
from edge_rag.bundle.contents import relative_paths
from edge_rag.bundle.signing import make_keys
from edge_rag.bundle.verify import verify
from edge_rag.cli.commands import app
from edge_rag.cli.common import State, open_bundle
from edge_rag.errors import EdgeRagError, IntegrityError, LibraryError, ModelError, UsageError
from edge_rag.library import Filters, Library
from edge_rag.models import selector
from edge_rag.models.licences import card_licence
from edge_rag.models.precision import Choice
from edge_rag.settings import Settings, cache_dir

SAMPLES = Path(__file__).parent / "samples"
QUESTIONS = [
    json.loads(line)["question"] for line in (SAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]
EXTRACTS = Settings(generator="extractive", threads=1)
FAKE_GGUF = (
    b"GGUF" + (3).to_bytes(4, "little") + bytes(16) + b"weights" * 1000
)  # a header without tensors, and what follows


@pytest.fixture(scope="session")
def lighthouse(tmp_path_factory):
    """The library of the sample documents."""
    folder = tmp_path_factory.mktemp("bundles")
    with Library.open(folder / "library", create=True, settings=EXTRACTS) as library:
        library.sync(SAMPLES / "lighthouse")
    return folder / "library"


@pytest.fixture(scope="session")
def bundle_file(lighthouse):
    path = lighthouse.parent / "lighthouse.erag"
    build(lighthouse, path, settings=EXTRACTS)
    return path


@pytest.fixture
def small_library(tmp_path):
    with Library.open(tmp_path / "small", create=True, settings=EXTRACTS) as library:
        docs = tmp_path / "docs"
        docs.mkdir()
        (docs / "a.md").write_text("# Lamp\n\nThe lamp was replaced in 1931.\n")
        (docs / "b.txt").write_text("The west door is opened by the keeper only.\n")
        library.add([docs])
    return tmp_path / "small"


def shown(answer):
    """All of an answer but how long it took and the folders of documents."""
    fields = {f: getattr(answer, f) for f in answer.__dataclass_fields__ if f != "timings"}
    return re.sub(r"document='[^']*?([^/']+)'", r"document='\1'", repr(fields))


# --- it answers as the library does ---


def test_sample_questions_are_answered_as_the_library_answers_it(lighthouse, bundle_file):
    with (
        Library.open(lighthouse, settings=EXTRACTS) as library,
        Assistant(library, settings=EXTRACTS) as ours,
        Bundle.open(bundle_file) as bundle,
        bundle.assistant() as theirs,
    ):
        for question in QUESTIONS[::4]:
            assert shown(theirs.ask(question)) == shown(ours.ask(question))


def test_a_generated_answer_is_the_librarys_to_the_last_bit(lighthouse, generator_file, tmp_path):
    settings = Settings(generator=str(generator_file), threads=1, answer_tokens=24, passages=2, prompt="words")
    build(lighthouse, tmp_path / "x.erag", settings=settings)
    question = "What did the repair of the lantern roof cost?"
    with Library.open(lighthouse, settings=settings) as library, Assistant(library, settings=settings) as assistant:
        expected = assistant.ask(question)
    with Bundle.open(tmp_path / "x.erag") as bundle, bundle.assistant() as assistant:
        found = assistant.ask(question)
        assert bundle.settings().prompt == "words"
        assert bundle.manifest.generator == generator_file.stem
    assert found.prompt_tokens > 100  # a language model was at work
    assert shown(found) == shown(expected)
    assert (tmp_path / "x.erag").read_bytes()[: generator_file.stat().st_size] == generator_file.read_bytes()


def test_a_bundle_stores_how_its_model_was_trained_to_be_asked(small_library, generator_file, tmp_path):
    words = write_adapter(tmp_path / "words.gguf", size=0.0, style="words")
    rationale = write_adapter(tmp_path / "rationale.gguf", size=0.0, style="rationale")
    plain = Settings(generator=str(generator_file), threads=1, answer_tokens=2, confidence=0.0)
    for settings, style in (
        (plain, "sentence"),
        (EXTRACTS, "sentence"),
        (replace(plain, prompt="rationale", lora=str(words)), "rationale"),
        (replace(plain, lora=str(words)), "words"),
    ):
        assert build(small_library, tmp_path / "x.erag", settings=settings, force=True).prompt == style
    context = SimpleNamespace(obj=State(None, quiet=True))
    for flags, style in (({}, "words"), ({"lora": str(rationale)}, "trained"), ({"prompt": "sentence"}, "sentence")):
        with open_bundle(context, tmp_path / "x.erag", **flags) as (_, settings):
            assert settings.prompt == style
    with Bundle.open(tmp_path / "x.erag") as bundle:
        assert bundle.settings().prompt == "words"
        other = replace(bundle.settings(), prompt="trained", lora=str(rationale))
        with bundle.assistant(replace(other, lora="")) as assistant:
            assert assistant.generator.style == "words"
        with bundle.assistant(other) as assistant:  # another adapter is asked in its own style
            assert assistant.generator.style == "rationale"


def test_a_selector_chooses_in_a_bundle_as_it_does_in_the_library(lighthouse, bundle_file, selector_folder, tmp_path):
    folder = Path(shutil.copytree(selector_folder, tmp_path / "judge"))
    settings = Settings(generator="extractive", threads=1, candidates=12, passages=2, selector=str(folder))
    manifest = build(lighthouse, tmp_path / "x.erag", settings=settings)
    assert manifest.selector == "judge" and str(tmp_path) not in repr(manifest)
    assert {p.name for p in manifest.parts if p.role == "selector"} == {
        f"selector/{name}" for name in ("model.json", "model.fp32.onnx", "model.fp32.data", "vocab.txt")
    }
    with Library.open(lighthouse, settings=settings) as library:
        with Assistant(library, settings=settings) as ours:
            wanted = [ours.ask(question) for question in QUESTIONS[::8]]
        with Assistant(library, settings=replace(settings, selector="")) as ours:
            in_order = [shown(ours.ask(question)) for question in QUESTIONS[::8]]
    shutil.rmtree(folder)
    with Bundle.open(tmp_path / "x.erag") as bundle:
        with bundle.assistant() as theirs:
            found = [theirs.ask(question) for question in QUESTIONS[::8]]
        with bundle.assistant(replace(bundle.settings(), selector="")) as theirs:
            assert [shown(theirs.ask(question)) for question in QUESTIONS[::8]] == in_order
        assert bundle.settings(Settings(selector="of the user")).selector == "judge"
    assert [shown(answer) for answer in found] == [shown(answer) for answer in wanted] != in_order
    with Bundle.open(bundle_file) as bundle:  # which has none: the user's has the last word
        mine = replace(bundle.settings(), candidates=12, passages=2, threads=1, selector=str(selector_folder))
        with bundle.assistant(mine) as theirs:
            assert [shown(theirs.ask(question)) for question in QUESTIONS[::8]] == [shown(answer) for answer in wanted]


def test_a_bundles_selector_keeps_the_precision_that_it_was_built_with(
    small_library, selector_folder, tmp_path, monkeypatch
):
    from edge_rag.export import onnx_parity, to_onnx

    quick = {"n_texts": 60, "timed": False, "threads": 1, "sample": Path(typing.__file__)}
    monkeypatch.setitem(onnx_parity.FLOORS, ("selector", "int8"), {})  # random weights score all texts nearly alike
    to_onnx.export_onnx(selector_folder.parent / "source", tmp_path / "judge", "selector", precision="both", **quick)
    settings = replace(EXTRACTS, selector=str(tmp_path / "judge"))
    for liked, other in (("fp32", "int8"), ("int8", "fp32")):
        monkeypatch.setattr(selector, "choose", lambda _, choice=liked: Choice(choice, "in this test"))
        build(small_library, tmp_path / "x.erag", settings=settings, force=True)
        monkeypatch.setattr(selector, "choose", lambda _, choice=other: Choice(choice, "in this test"))
        with Bundle.open(tmp_path / "x.erag") as bundle:
            assert bundle._scorer(EXTRACTS).precision == liked


def test_a_selectors_licence_is_stated_and_without_texts_there_is_no_selector(small_library, selector_folder, tmp_path):
    settings = replace(EXTRACTS, selector=str(selector_folder))
    manifest = build(small_library, tmp_path / "x.erag", settings=settings)
    assert {p.licence for p in manifest.parts if p.role == "selector"} == {"unknown"}
    manifest = build(small_library, tmp_path / "x.erag", settings=settings, licences={"selector": "MIT"}, force=True)
    assert {p.licence for p in manifest.parts if p.role == "selector"} == {"MIT"}
    with zipfile.ZipFile(tmp_path / "x.erag") as archive:
        listed = {c["name"]: c for c in json.loads(archive.read("sbom.cdx.json"))["components"]}
    assert listed["selector/model.fp32.data"]["type"] == "machine-learning-model"
    manifest = build(small_library, tmp_path / "x.erag", settings=settings, texts=False, force=True)
    assert manifest.selector == "" and manifest.part("selector") is None
    flags = ["-o", str(tmp_path / "y.erag"), "--generator", "extractive", "--selector", str(selector_folder)]
    with pytest.raises(UsageError, match="without texts a selector has nothing to read"):
        CliRunner().invoke(app, ["bundle", "build", str(small_library), *flags, "--no-text"], catch_exceptions=False)
    assert not (tmp_path / "y.erag").exists()
    done = CliRunner().invoke(app, ["-q", "bundle", "build", str(small_library), *flags], catch_exceptions=False)
    assert done.exit_code == 0
    done = CliRunner().invoke(app, ["-q", "bundle", "inspect", str(tmp_path / "y.erag")], catch_exceptions=False)
    assert "selector judge" in done.stdout.splitlines()[0]


def test_a_damaged_selector_is_not_bundled(small_library, selector_folder, tmp_path):
    folder = Path(shutil.copytree(selector_folder, tmp_path / "judge"))
    (folder / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"vocab\.txt is damaged"):
        build(small_library, tmp_path / "x.erag", settings=replace(EXTRACTS, selector=str(folder)))
    assert not (tmp_path / "x.erag").exists()


def test_an_index_is_searched_where_it_lies(tmp_path):
    library_folder, docs = tmp_path / "lib", tmp_path / "docs"
    docs.mkdir()
    names = ["Ann", "Bob", "Cid", "Dee", "Eve", "Flo", "Gus", "Hal", "Ivy", "Joe"]
    rows = [f"# Day {n}\n\nOn day {n} {names[n % 10]} kept watch {n * 7 % 100} of the log.\n\n" for n in range(1100)]
    (docs / "log.md").write_text("".join(rows))
    settings = Settings(generator="extractive", chunk_tokens=32)
    with Library.open(library_folder, create=True, settings=settings) as library:
        library.add([docs])
        assert library.stats().generation
        path = tmp_path / "x.erag"
        build(library_folder, path, settings=settings)
        with Bundle.open(path) as bundle:
            offset = bundle.manifest.part("index").offset
            assert offset % 4096 == 0
            inside = bundle.library()
            assert inside.stats().n_indexed == library.stats().n_indexed > 1000
            for question in ("Who kept watch on day 77?", "log 35"):
                found = retrieve(inside, question, 10, candidates=40).passages
                wanted = retrieve(library, question, 10, candidates=40).passages
                assert [(p.chunk_id, p.score, p.text) for p in found] == [(p.chunk_id, p.score, p.text) for p in wanted]
        # removed rows leave the index, too, and the rest is found
        gone = library.show(str(docs / "log.md")).chunks[5].chunk_id
        (docs / "other.md").write_text("# Other\n\nNobody kept watch.\n")
        library.add([docs])
        library.remove(str(docs / "log.md"))
        build(library_folder, path, settings=settings, force=True)
        with Bundle.open(path) as bundle:
            assert bundle.library().passages([gone]) == []
            assert bundle.library().dense("watch", 3)[0].text.endswith("Nobody kept watch.")
        assert b"Gus kept" not in path.read_bytes()


def test_lists_shows_counts_and_filters(lighthouse, bundle_file):
    with Library.open(lighthouse, settings=EXTRACTS) as library, Bundle.open(bundle_file) as bundle:
        inside = bundle.library()
        assert [Path(d.path).name for d in library.list()] == [d.path for d in inside.list()]
        [guide] = [d for d in library.list() if d.path.endswith("visitor-guide.html")]
        assert inside.show("visitor-guide.html").text == library.show(guide.id).text
        assert inside.stats().n_chunks == library.stats().n_chunks
        for pattern in ("*.pdf", "visitor-guide.html", "./visitor*", "/visitor*"):
            expected = {"*.pdf": 2, "./visitor*": 0}.get(pattern, 1)  # "." is this folder, "/" the bundle
            assert len(inside.list(Filters(paths=(pattern,)))) == expected
        assert inside.list(Filters(paths=("*/visitor*",)))


@pytest.mark.parametrize("change", ["add", "sync", "remove", "compact", "doctor"])
def test_nothing_in_a_bundle_can_be_changed(bundle_file, change, tmp_path):
    arguments = {"add": [[tmp_path]], "sync": [tmp_path], "remove": [1]}.get(change, [])
    with Bundle.open(bundle_file) as bundle, pytest.raises(LibraryError, match="cannot be changed"):
        getattr(bundle.library(), change)(*arguments)


def test_the_bundles_settings_count_and_flags_have_the_last_word(small_library, tmp_path):
    build(small_library, tmp_path / "x.erag", settings=Settings(generator="extractive", passages=1, confidence=0.0))
    with Bundle.open(tmp_path / "x.erag") as bundle:
        settings = bundle.settings(Settings(passages=7, threads=2))
        assert (settings.passages, settings.confidence, settings.threads) == (1, 0.0, 2)
        with bundle.assistant(settings) as assistant:
            assert len(assistant.ask("When was the lamp replaced?").passages) == 1


def test_without_llama_cpp_it_quotes_and_never_looks_the_generators_name_up(small_library, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp", reason="needs the [llm] extra")
    (tmp_path / "g.gguf").write_bytes(FAKE_GGUF)
    build(small_library, tmp_path / "x.erag", settings=Settings(generator=str(tmp_path / "g.gguf")))
    monkeypatch.setattr(opened, "has_llama_cpp", lambda: False)
    with Bundle.open(tmp_path / "x.erag") as bundle, bundle.assistant() as assistant:
        answer = assistant.ask("When was the lamp replaced?")
    assert (answer.generator, "1931" in answer.text) == ("extractive", True)


# --- anywhere ---


def test_it_answers_where_nothing_can_be_written(bundle_file, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGE_RAG_HOME", str(tmp_path / "file" / "home"))  # no folder can be made in a file
    for limit in (opened.LARGEST_IN_MEMORY, 0):
        monkeypatch.setattr(opened, "LARGEST_IN_MEMORY", limit)
        with Bundle.open(bundle_file) as bundle, bundle.assistant() as assistant:
            assert "142" in assistant.ask("How many steps lead up to the gallery?").text


def test_a_large_database_is_extracted_once_and_again_if_it_is_damaged(bundle_file, monkeypatch):
    monkeypatch.setattr(opened, "LARGEST_IN_MEMORY", 0)

    def titles():
        with Bundle.open(bundle_file) as bundle:
            return [document.title for document in bundle.library().list()]

    first = titles()
    [copy] = (cache_dir() / "bundles").glob("*.sqlite")
    before = copy.stat()
    assert titles() == first and copy.stat().st_mtime_ns == before.st_mtime_ns
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
    copy.write_bytes(damaged)
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))  # ctime tells
    assert titles() == first
    assert copy.read_bytes() != damaged
    assert not list((cache_dir() / "bundles").glob("*.part"))


def test_what_must_be_a_file_of_its_own_is_extracted_or_says_what_it_needs(small_library, tmp_path, monkeypatch):
    (tmp_path / "g.gguf").write_bytes(FAKE_GGUF)
    (tmp_path / "l.gguf").write_bytes(FAKE_GGUF + b"adapter")
    pytest.importorskip("llama_cpp", reason="needs the [llm] extra")
    settings = Settings(generator=str(tmp_path / "g.gguf"), lora=str(tmp_path / "l.gguf"))
    build(small_library, tmp_path / "x.erag", settings=settings)
    with Bundle.open(tmp_path / "x.erag") as bundle:
        assert bundle.extracted("adapter").read_bytes() == FAKE_GGUF + b"adapter"
        monkeypatch.setenv("EDGE_RAG_HOME", str(tmp_path / "g.gguf" / "home"))
        with pytest.raises(LibraryError, match=r"needs 0\.0 MB in .*set EDGE_RAG_HOME"):
            bundle.extracted("adapter")


def test_a_part_is_hashed_once_for_each_file_and_again_when_it_was_touched(bundle_file, monkeypatch, tmp_path):
    from edge_rag.bundle import proof

    path = tmp_path / "copy.erag"
    shutil.copy(bundle_file, path)
    hashed = []
    monkeypatch.setattr(proof, "check", lambda path, view, part: hashed.append(part.name))

    def use():
        hashed.clear()
        with Bundle.open(path) as bundle:
            bundle.library().list()
        return list(hashed)

    assert use() == ["library.sqlite"]
    assert use() == []
    os.utime(path)
    assert use() == ["library.sqlite"]


def test_the_command_asks_from_an_empty_folder_with_the_library_gone_and_sockets_blocked(small_library, tmp_path):
    code = """
import os, sys
def block(event, args):
    if event.startswith("socket."):
        os._exit(99)
sys.addaudithook(block)
from edge_rag.cli import main
main()
"""
    path = tmp_path / "elsewhere" / "x.erag"
    build(small_library, path, settings=EXTRACTS)
    shutil.rmtree(small_library)
    shutil.rmtree(tmp_path / "docs")
    path.chmod(0o444)
    empty = tmp_path / "empty"
    empty.mkdir()

    def edge_rag(*arguments, input=""):
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=empty, env={"EDGE_RAG_HOME": str(empty / "home"), "PATH": ""},
            capture_output=True, text=True, encoding="utf-8", input=input,
        )  # fmt: skip

    done = edge_rag("bundle", "run", str(path), "When was the lamp replaced?", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["citations"][0]["document"] == "a.md"
    assert edge_rag("search", "lamp", "--bundle", str(path), "-k", "1").stdout.startswith(" 1. a.md")
    assert edge_rag("bundle", "run", str(path), "Capital of Mongolia?", "--strict").returncode == 3
    talk = edge_rag("chat", "--bundle", str(path), input="When was the lamp replaced?\n")
    assert "1931" in talk.stdout and talk.returncode == 0
    assert edge_rag("--library", "x", "list", "--bundle", str(path)).returncode == 2
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    (empty / "bad.erag").write_bytes(damaged)
    done = edge_rag("--quiet", "bundle", "verify", str(empty / "bad.erag"))
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)


# --- what is in it, and what is not ---


def test_it_is_a_zip_that_other_programs_read(bundle_file):
    with zipfile.ZipFile(bundle_file) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == "library.sqlite" and names[-1] == "manifest.json"
        manifest = json.loads(archive.read("manifest.json"))
        for part in manifest["parts"]:
            assert hashlib.sha256(archive.read(part["name"])).hexdigest() == part["sha256"]
        materials = json.loads(archive.read("sbom.cdx.json"))
        assert archive.read("licences/Apache-2.0.txt") == (SAMPLES.parent.parent / "LICENSE").read_bytes()
    assert {part["name"] for part in manifest["parts"]} - {"sbom.cdx.json"} <= {
        c["name"] for c in materials["components"]
    }
    assert {"numpy", "onnxruntime", "typer"} <= {c["name"] for c in materials["components"]}
    assert all(c["licenses"][0]["license"]["name"] for c in materials["components"])


def test_a_bundle_says_each_models_licence_as_its_file_does(small_library, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    generator = write_gguf(
        folder / "g.gguf", {"general.license": "other", "general.license.link": "https://a.org/x"}, {}
    )
    adapter = write_gguf(folder / "a.gguf", {"general.type": "adapter"}, {})
    settings = Settings(generator=str(generator), lora=str(adapter), threads=1)

    def licences(**options):
        manifest = build(small_library, tmp_path / "x.erag", settings=settings, force=True, **options)
        with zipfile.ZipFile(tmp_path / "x.erag") as archive:
            texts = {name: archive.read(name) for name in archive.namelist() if name.startswith("licences/")}
            listed = {
                c["name"]: c["licenses"][0]["license"]["name"]
                for c in json.loads(archive.read("sbom.cdx.json"))["components"]
            }
        stated = {part.name: part.licence for part in manifest.parts if part.role != "sbom"}
        assert stated.items() <= listed.items()
        return stated, texts

    stated, texts = licences()
    assert stated["generator.gguf"] == "other (https://a.org/x)"
    assert (stated["adapter.gguf"], stated["embedder/model.json"]) == ("unknown", "Apache-2.0")
    assert list(texts) == ["licences/Apache-2.0.txt"]

    (folder / "LICENSE").write_text("do as you like")  # where a file says nothing, the text beside it does
    stated, texts = licences()
    assert stated["generator.gguf"] == "other (https://a.org/x)"
    assert stated["adapter.gguf"] == "text in licences/adapter.txt"
    assert texts["licences/adapter.txt"] == b"do as you like"

    stated, texts = licences(licences={"generator": str(folder / "LICENSE"), "adapter": "MIT", "library": "CC-BY-4.0"})
    assert stated["generator.gguf"] == "text in licences/generator.txt"
    assert (stated["adapter.gguf"], stated["library.sqlite"]) == ("MIT", "CC-BY-4.0")
    assert set(texts) == {"licences/Apache-2.0.txt", "licences/generator.txt"}

    for wrong in ({"index": "MIT"}, {"adapter": "no/such/file"}, {"adapter": "LICENCE.txt"}, {"adapter": ""}):
        with pytest.raises(UsageError):
            licences(licences=wrong)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: mit\n---\n# A model", "mit"),
        ("---\nlicense: other\nlicense_name: house-rules\n---\n", "house-rules"),
        ("---\nlicense: 'mit\x1b[31m\u202e'\n---\n", "mit [31m"),
        ("license: mit\n", "unknown"),
        ("---\nlicense: mit\n", "unknown"),
        ("---\nlicense:\n---\nlicense: mit", "unknown"),
    ],
)
def test_a_models_card_names_its_licence(tmp_path, card, licence):
    assert card_licence(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert card_licence(tmp_path) == licence


def test_a_licence_that_nobody_knows_is_said_when_a_bundle_is_built(small_library, tmp_path):
    model = write_gguf(tmp_path / "g.gguf", {"general.license": "\n\x1b "}, {})
    options = ["bundle", "build", str(small_library), "-o", "x.erag", "--force", "--generator", str(model)]

    def warnings(*more):
        done = subprocess.run(
            [sys.executable, "-m", "edge_rag", *options, *more], capture_output=True, encoding="utf-8", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return [line for line in done.stderr.splitlines() if "licence of" in line]

    assert warnings() == ["warning: unknown licence of the generator; state it with --licence generator=SPDX|FILE"]
    assert warnings("--licence", "generator=Apache-2.0") == []


def test_parts_and_offsets_beyond_four_gigabytes_have_their_place(tmp_path):
    path, head, large = tmp_path / "sparse", 5 << 30, (4 << 30) + 7
    entries = place(head, [("a", 3), ("large", large), ("b", 5), ("manifest.json", 2)])
    trailer = Trailer(entries[-1].offset, 2, bytes(32), bytes(32), bytes(64))
    contents = {"a": b"abc", "b": b"fives", "manifest.json": b"{}"}
    crc32s = [zlib.crc32(contents.get(e.name, b"")) for e in entries]
    with path.open("wb") as file:  # what is not written takes no room
        for entry, crc32 in zip(entries, crc32s, strict=True):
            file.seek(entry.start)
            file.write(header_bytes(entry, crc32))
            assert file.tell() == entry.offset and entry.offset % 4096 == 0
            file.write(contents.get(entry.name, b""))
        file.seek(entries[-1].end)
        end = directory_bytes(entries, crc32s, trailer)
        assert len(end) == directory_size(entries)
        file.write(end)
    with zipfile.ZipFile(path) as archive:
        assert [archive.read(name) for name in contents] == list(contents.values())
        assert archive.getinfo("large").file_size == large


def test_the_same_library_gives_the_same_bytes(small_library, tmp_path):
    build(small_library, tmp_path / "1.erag", settings=EXTRACTS)
    moved = tmp_path / "elsewhere" / "library"
    shutil.copytree(small_library, moved)
    build(moved, tmp_path / "2.erag", settings=EXTRACTS)
    assert (tmp_path / "1.erag").read_bytes() == (tmp_path / "2.erag").read_bytes()


def test_nothing_tells_where_or_by_whom_it_was_made(tmp_path, monkeypatch):
    home = tmp_path / "zaphod-of-betelgeuse"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for name in ("papers/lamp.md", "notes/deep/door.md", "top.md"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"# {Path(name).stem}\n\nThe {Path(name).stem} is old.\n")
    (home / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    other = tmp_path / "other" / "papers"
    other.mkdir(parents=True)
    (other / "roof.md").write_text("# Roof\n\nThe roof is new.\n")
    with Library.open(home / "lib", create=True, settings=EXTRACTS) as library:
        library.add([home / "papers", home / "notes", home / "top.md", home / "broken.pdf", other])
    path = home / "x.erag"
    build(home / "lib", path, settings=EXTRACTS)
    data = path.read_bytes()
    for secret in (b"zaphod", os.fsencode(tmp_path.name), b"broken.pdf"):
        assert secret not in data
    with Bundle.open(path) as bundle:
        paths = {document.path for document in bundle.library().list()}
    assert paths == {"papers-2/lamp.md", "notes/deep/door.md", "home/top.md", "papers/roof.md"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([("/srv/docs/a.md", "/srv/docs"), ("/srv/docs/sub/b.md", "/srv/docs")], ["a.md", "sub/b.md"]),
        ([("/srv/docs/a.md", "/srv/docs/a.md")], ["a.md"]),
        ([("/home/ann/a.md", "/"), ("/etc/b", "/")], ["home/a.md", "root/etc/b"]),
        ([("/home/bob/a.md", "/home/bob"), ("/srv/b", "/srv")], ["home/a.md", "srv/b"]),
        ([("/x/d/a", "/x/d"), ("/y/d/a", "/y/d"), ("/z/d-2/a", "/z/d-2")], ["d/a", "d-2/a", "d-2-2/a"]),
        ([("C:\\papers\\sub\\a.md", "C:\\papers")], ["sub/a.md"]),
    ],
)  # fmt: skip
def test_paths_become_relative_to_what_the_user_gave(files, expected):
    assert relative_paths(files, "/home/ann") == expected


def test_removed_documents_and_their_words_are_not_in_it(small_library, tmp_path):
    (tmp_path / "docs" / "secret.md").write_text("# Xylophone\n\nThe quokka sleeps at noon.\n")
    with Library.open(small_library, settings=EXTRACTS) as library:
        library.add([tmp_path / "docs"])
        library.remove(str(tmp_path / "docs" / "secret.md"))
    build(small_library, tmp_path / "x.erag", settings=EXTRACTS)
    data = (tmp_path / "x.erag").read_bytes().lower()
    library_part = data[: data.index(b"embedder/")]
    assert b"quokka" not in library_part and b"xylophon" not in library_part and b"keeper" in library_part


def test_without_texts_it_says_where_and_not_what(small_library, tmp_path):
    build(small_library, tmp_path / "x.erag", settings=EXTRACTS, texts=False)
    data = (tmp_path / "x.erag").read_bytes().lower()
    assert b"keeper" not in data[: data.index(b"embedder/")] and b"1931" not in data[: data.index(b"embedder/")]
    with Library.open(small_library, settings=EXTRACTS) as library, Bundle.open(tmp_path / "x.erag") as bundle:
        inside = bundle.library()
        wanted = [(p.start, p.page, p.score) for p in library.dense("the lamp", 5)]
        found = inside.dense("the lamp", 5)
        assert [(p.start, p.page, p.score) for p in found] == wanted
        assert all(p.text == p.heading == "" and p.end > p.start for p in found)
        assert retrieve(inside, "the lamp", 5, candidates=40).passages[0].document == "a.md"
        with pytest.raises(LibraryError, match="without texts"):
            bundle.assistant()
        with pytest.raises(LibraryError, match="without texts"):
            inside.show("a.md")
        assert [d.path for d in inside.list()] == ["a.md", "b.txt"]


# --- building ---


def test_a_build_that_cannot_be_says_why_and_leaves_nothing(small_library, tmp_path):
    (tmp_path / "empty-folder").mkdir()
    path = tmp_path / "out" / "x.erag"
    for arguments, message in (
        (
            {"max_bytes": 1_000_000},
            r"it would have 4\d\.\d MB, and 1\.0 are allowed \(selector/model.int8.data 24\.1, embedder",
        ),
        ({"settings": Settings(generator="http://localhost:1/v1#x")}, "a server: it cannot be bundled"),
        ({"settings": Settings(generator="extractive", lora="x.gguf")}, "an adapter needs a generator"),
        ({"signing_key": tmp_path / "docs" / "a.md"}, "cannot be used as a key"),
    ):
        with pytest.raises(UsageError, match=message):
            build(small_library, path, **({"settings": EXTRACTS} | arguments))
    with pytest.raises(EdgeRagError, match="no library here"):
        build(tmp_path / "empty-folder", path, settings=EXTRACTS)
    assert not path.parent.exists() or list(path.parent.iterdir()) == []
    build(small_library, path, settings=EXTRACTS, max_bytes=60_000_000)
    with pytest.raises(UsageError, match="is there already"):
        build(small_library, path, settings=EXTRACTS)


def test_an_empty_library_cannot_be_bundled(tmp_path):
    Library.open(tmp_path / "lib", create=True).close()
    with pytest.raises(LibraryError, match="nothing in it"):
        build(tmp_path / "lib", tmp_path / "x.erag", settings=EXTRACTS)


# --- signatures ---


def test_a_signed_bundle_is_opened_with_its_key_and_with_no_other(small_library, tmp_path):
    pytest.importorskip("nacl", reason="needs the [sign] extra")
    ours, theirs = make_keys(tmp_path / "ours.pem"), make_keys(tmp_path / "theirs.pem")
    assert (tmp_path / "ours.pem").stat().st_mode & 0o077 == 0 or os.name == "nt"
    path, unsigned = tmp_path / "x.erag", tmp_path / "y.erag"
    build(small_library, path, settings=EXTRACTS, signing_key=tmp_path / "ours.pem")
    build(small_library, unsigned, settings=EXTRACTS)
    with Bundle.open(path, trusted_key=str(ours)) as bundle:
        verify(bundle)
        key = bundle.trailer.public_key.hex()
    Bundle.open(path, trusted_key=key).close()
    with pytest.raises(IntegrityError, match="not the trusted key"):
        Bundle.open(path, trusted_key=str(theirs))
    with pytest.raises(IntegrityError, match="not signed"):
        Bundle.open(unsigned, trusted_key=str(ours))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="signature is not by"):
        Bundle.open(path, trusted_key=str(ours))
    with Bundle.open(path) as bundle, pytest.raises(IntegrityError, match="signature is not by"):
        verify(bundle)
    data[-96:-64], data[-64:] = bytes.fromhex(Bundle.open(path).trailer.public_key.hex()), bytes(64)
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="end is damaged"):
        Bundle.open(path)


def test_openssl_and_we_read_each_others_keys(tmp_path):
    pytest.importorskip("nacl", reason="needs the [sign] extra")
    from edge_rag.bundle import signing

    openssl = shutil.which("openssl") or pytest.skip("needs openssl")
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "k.pem"], check=True)
    subprocess.run([openssl, "pkey", "-in", tmp_path / "k.pem", "-pubout", "-out", tmp_path / "k.pub"], check=True)
    private = signing.read_private_key(tmp_path / "k.pem")
    public = signing.read_public_key(str(tmp_path / "k.pub"))
    assert signing.public_key(private) == public
    signature = signing.sign(private, b"x" * 32)
    (tmp_path / "message").write_bytes(b"edge_rag bundle manifest\n" + b"x" * 32)
    (tmp_path / "signature").write_bytes(signature)
    subprocess.run(
        [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "k.pub", "-rawin",
         "-in", tmp_path / "message", "-sigfile", tmp_path / "signature"], check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with contextlib.suppress(UsageError):
        signing.read_public_key(str(tmp_path / "k.pem"))
        raise AssertionError("a private key was taken for a public one")
