"""A library: what goes in comes out, is found, is kept up to date, and is gone when it is removed."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from edge_rag.documents import embedding_text
from edge_rag.errors import LibraryError, UsageError
from edge_rag.library import Filters, Library, diagnose, generations, list_libraries, search, walk
from edge_rag.library.store import vector_blob
from edge_rag.settings import Settings
from edge_rag.testing import HashEmbedder

LONG_AGO = 1_600_000_000  # 2020-09-13; files that were not just written need not be read again


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder(256)


@pytest.fixture
def library(tmp_path: Path, embedder: HashEmbedder) -> Iterator[Library]:
    with Library.open(tmp_path / "lib", create=True, embedder=embedder) as opened:
        yield opened


def write(path: Path, text: str | bytes, *, mtime: int = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    os.utime(path, (mtime, mtime))
    return path


def names(paths: object) -> list[str]:
    return [Path(str(path)).name for path in paths]  # type: ignore[attr-defined]


def is_sound(library: Library) -> bool:
    return not [f for f in library.doctor(deep=True) if f.severity in ("error", "warning")]


# --- in and out ---


def test_show_gives_the_whole_text_back(library: Library, docs: Path) -> None:
    text = "\n\n".join(f"Paragraph {i} says that {i} is a number, and more words follow here." for i in range(200))
    write(docs / "long.txt", text)
    report = library.add([docs])
    shown = library.show(str(docs / "long.txt"))
    assert names(report.added) == ["long.txt"] and report.n_chunks == len(shown.chunks) > 3
    assert shown.text == text
    for passage in shown.chunks:
        assert shown.text[passage.start : passage.end] == passage.text == passage.text.rstrip()
    assert library.show(shown.id) == shown
    assert is_sound(library)


def test_a_question_finds_its_passage_by_words_and_by_vector(library: Library, docs: Path) -> None:
    for animal in ("badger", "otter", "heron"):
        write(docs / f"{animal}.md", f"# The {animal}\n\nThe {animal} lives near the river and sleeps by day.")
    library.add([docs])
    for found in (library.lexical("Where does the otter live?", 3), library.dense("# The otter", 3)):
        assert Path(found[0].document).name == "otter.md"
        assert found[0].score >= found[-1].score
    assert library.passages([found[0].chunk_id])[0].text == found[0].text


def test_neighbours_are_the_chunks_around(library: Library, docs: Path) -> None:
    write(docs / "a.txt", "\n\n".join(f"Number {i} " + "word " * 100 for i in range(9)))
    library.add([docs])
    chunks = library.show(1).chunks
    assert library.neighbours(chunks[2].chunk_id) == [chunks[1], chunks[3]]
    assert library.neighbours(chunks[0].chunk_id, 2) == [chunks[1], chunks[2]]
    assert library.neighbours(10_000) == []


def test_an_empty_file_is_a_document_without_chunks(library: Library, docs: Path) -> None:
    library.add([write(docs / "empty.txt", "")])
    assert [(info.n_chunks, info.n_chars) for info in library.list()] == [(0, 0)]
    assert library.show(1).text == ""
    assert library.lexical("anything", 3) == library.dense("anything", 3) == []
    assert is_sound(library)


def test_an_empty_library_answers_with_nothing(library: Library) -> None:
    assert library.lexical("a question", 3) == library.dense("a question", 3) == library.list() == []
    assert library.stats().n_documents == 0
    library.compact()
    assert is_sound(library)


def test_stats_count_what_is_there(library: Library, docs: Path) -> None:
    write(docs / "a.txt", "one")
    write(docs / "b.md", "# two")
    library.add([docs])
    stats = library.stats()
    assert (stats.n_documents, stats.n_sources, stats.n_chunks) == (2, 2, 2)
    assert dict(stats.media_types) == {"text/plain": 1, "text/markdown": 1}
    assert (stats.embedder, stats.dim, stats.n_tail) == ("hash", 256, 2)


def test_missing_library_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"no library here; make one: edge-rag .*add PATH"):
        Library.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_with_other_things_does_not_become_a_library(docs: Path, embedder: HashEmbedder) -> None:
    write(docs / "a.txt", "text")
    with pytest.raises(LibraryError, match="not empty"):
        Library.open(docs, create=True, embedder=embedder)
    assert names(docs.iterdir()) == ["a.txt"]


def test_close_may_be_called_twice_and_then_use_is_refused(library: Library) -> None:
    library.close()
    library.close()
    with pytest.raises(LibraryError, match="closed"):
        library.list()


def test_list_libraries_names_only_libraries(tmp_path: Path, library: Library) -> None:
    (tmp_path / "other").mkdir()
    assert list_libraries(tmp_path) == ["lib"]
    assert list_libraries(tmp_path / "none") == []


def test_reading_does_not_load_an_embedder(tmp_path: Path, library: Library, docs: Path) -> None:
    library.add([write(docs / "a.txt", "words to find")])
    program = (
        "import sys; from pathlib import Path; from edge_rag.library import Library\n"
        "with Library.open(Path(sys.argv[1])) as library:\n"
        "    library.list(), library.show(1), library.stats(), library.lexical('words', 1), library.doctor()\n"
        "assert not {'onnxruntime', 'edge_rag.models', 'pypdfium2', 'selectolax'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(library.path)], check=True)


# --- what is known already costs nothing ---


def test_adding_again_reads_and_embeds_nothing(
    library: Library, docs: Path, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(5):
        write(docs / f"{i}.txt", f"document number {i}")
    library.add([docs])
    done = embedder.n_embedded
    monkeypatch.setattr("edge_rag.library.ingest.read_bytes", lambda *a: pytest.fail("an unchanged file was read"))
    report = library.add([docs])
    assert (report.unchanged, report.added, report.changed) == (5, (), ())
    assert embedder.n_embedded == done


def test_a_changed_file_keeps_the_vectors_of_what_did_not_change(
    library: Library, docs: Path, embedder: HashEmbedder
) -> None:
    paragraphs = [f"Paragraph {i} " + f"word{i} " * 120 for i in range(8)]
    path = write(docs / "a.txt", "\n\n".join(paragraphs))
    library.add([path])
    done = embedder.n_embedded
    paragraphs[3] = "Something else " + "entirely " * 120
    write(path, "\n\n".join(paragraphs), mtime=LONG_AGO + 5)
    report = library.add([path])
    assert names(report.changed) == ["a.txt"] and report.n_chunks >= 8
    assert 1 <= embedder.n_embedded - done == report.n_embedded <= 2
    assert library.stats().n_documents == 1
    assert library.lexical("word3", 5) == [] and library.lexical("entirely", 5)
    assert is_sound(library)


def test_identical_files_are_one_document(library: Library, docs: Path) -> None:
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        write(docs / name, "the same text")
    report = library.add([docs])
    assert (names(report.added), names(report.duplicates)) == (["a.txt"], ["b.txt", "c.txt"])
    (info,) = library.list()
    assert names(info.paths) == ["a.txt", "b.txt", "c.txt"]
    assert library.remove(str(docs / "a.txt")) == [str(docs / "a.txt")]
    assert names([library.lexical("same text", 1)[0].document]) == ["b.txt"]
    library.remove(info.id)
    assert library.list() == library.lexical("same text", 1) == []


def test_the_same_bytes_under_another_type_are_another_document(library: Library, docs: Path) -> None:
    write(docs / "a.txt", "# heading\n\ntext")
    write(docs / "a.md", "# heading\n\ntext")
    library.add([docs])
    assert sorted(info.media_type for info in library.list()) == ["text/markdown", "text/plain"]


def test_a_touched_file_is_unchanged(library: Library, docs: Path, embedder: HashEmbedder) -> None:
    path = write(docs / "a.txt", "text")
    library.add([path])
    os.utime(path, (LONG_AGO + 9, LONG_AGO + 9))
    report = library.add([path])
    assert (report.unchanged, embedder.n_embedded) == (1, 1)


def test_a_file_written_in_the_same_instant_is_noticed(library: Library, docs: Path) -> None:
    path = docs / "a.txt"
    path.write_text("version one")
    library.add([path])
    stamp = path.stat().st_mtime_ns
    path.write_text("version two")
    os.utime(path, ns=(stamp, stamp))
    assert names(library.add([path]).changed) == ["a.txt"]
    assert library.show(1 + 1).text == "version two"


def test_files_stored_by_another_reader_are_read_again(
    library: Library, docs: Path, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(docs / "a.txt", "text")
    library.add([path])
    monkeypatch.setattr("edge_rag.library.ingest.READER_VERSION", 999)
    assert any("another version" in finding.what for finding in library.doctor())
    report = library.add([path])
    assert names(report.changed) == ["a.txt"] and embedder.n_embedded == 1
    assert not any("another version" in finding.what for finding in library.doctor())
    assert [info.id for info in library.list()] == [1]
    assert is_sound(library)


# --- walking ---


def test_walk_is_sorted_and_skips_what_is_hidden_or_binary(library: Library, docs: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b.txt", ".hidden.txt", ".git/config", "c.txt"):
        write(docs / name, f"text of {name}")
    write(docs / "picture.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    write(docs / "film.bin", b"\0\1\2\3" * 50_000)
    report = library.add([docs])
    assert sorted(names(report.added)) == ["b.txt", "b.txt", "c.txt", "z.txt"]
    assert (report.skipped, report.problems) == (2, ())
    assert names(library.add([docs / ".hidden.txt"]).added) == [".hidden.txt"]


def test_links_are_followed_once_and_loops_end(library: Library, docs: Path, tmp_path: Path) -> None:
    write(docs / "real/a.txt", "text a")
    write(tmp_path / "elsewhere/b.txt", "text b")
    (docs / "again").symlink_to(docs / "real")
    (docs / "real/loop").symlink_to(docs)
    (docs / "other").symlink_to(tmp_path / "elsewhere")
    (docs / "dangling.txt").symlink_to(docs / "nothing")
    (docs / "self").symlink_to(docs / "self")
    report = library.add([docs])
    assert [str(Path(p).relative_to(docs)) for p in report.added] == ["real/a.txt", "other/b.txt"]
    assert sorted(names(p.path for p in report.problems)) == ["dangling.txt", "self"]


def test_the_library_does_not_index_itself(docs: Path, embedder: HashEmbedder) -> None:
    write(docs / "a.txt", "text")
    with Library.open(docs / "lib", create=True, embedder=embedder) as library:
        write(docs / "lib/note.txt", "inside the library")
        assert names(library.add([docs]).added) == ["a.txt"]


def test_one_bad_file_stops_nothing_and_is_listed(
    library: Library, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(docs / "a.txt", "good a")
    write(docs / "broken.pdf", b"%PDF-1.7\nnothing that a PDF has")
    write(docs / "huge.txt", "x" * ((1 << 20) + 1))
    write(docs / "trap.txt", "raises")
    write(docs / "z.txt", "good z")
    pipe = [docs / "pipe.txt"] if hasattr(os, "mkfifo") else []
    for path in pipe:
        os.mkfifo(path)
    from edge_rag.library import ingest

    real = ingest.read_document

    def read(data: bytes, name: str) -> object:
        if name == "trap.txt":
            raise ZeroDivisionError("a mistake in a parser")
        return real(data, name)

    monkeypatch.setattr(ingest, "read_document", read)
    with Library.open(library.path, settings=Settings(max_file_mb=1), embedder=HashEmbedder(256)) as limited:
        report = limited.add([docs, docs / "missing.txt", *pipe])
        assert names(report.added) == ["a.txt", "z.txt"]
        problems = {Path(p.path).name: p.reason for p in report.problems}
        assert problems.keys() - {"pipe.txt"} == {"missing.txt", "broken.pdf", "huge.txt", "trap.txt"}
        assert ("pipe.txt" in problems) == bool(pipe)
        assert "max_file_mb" in problems["huge.txt"] and "ZeroDivisionError" in problems["trap.txt"]
        assert limited.stats().n_problems == len(problems)
        assert is_sound(limited)


def test_an_explicit_picture_is_a_problem(library: Library, docs: Path) -> None:
    report = library.add([write(docs / "p.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)))])
    assert "not a kind of document" in report.problems[0].reason


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_a_name_that_is_not_utf8_is_reported_in_printable_form(library: Library, docs: Path) -> None:
    Path(os.fsdecode(os.fsencode(docs) + b"/caf\xe9.txt")).write_bytes(b"text")
    (problem,) = library.add([docs]).problems
    assert problem.path.endswith("caf\\xe9.txt") and "UTF-8" in problem.reason
    problem.path.encode()
    assert library.stats().n_problems == 1


def test_a_file_that_changes_while_it_is_read_is_reported(
    library: Library, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(docs / "log.txt", "line\n")
    reads = 0
    real = walk._state

    def restless(status: os.stat_result) -> tuple[int, int, int]:
        nonlocal reads
        reads += 1
        with path.open("a") as file:
            file.write("more\n")
        return real(path.stat())

    monkeypatch.setattr(walk, "_state", restless)
    (problem,) = library.add([path]).problems
    assert "being written" in problem.reason and reads > 1
    monkeypatch.setattr(walk, "_state", real)
    assert names(library.add([path]).added) == ["log.txt"]
    assert library.stats().n_problems == 0


def test_ctrl_c_keeps_what_is_complete_and_passes_on(library: Library, docs: Path, embedder: HashEmbedder) -> None:
    for i in range(100):
        write(docs / f"{i:03}.txt", f"document number {i} " * (i + 1))

    class Interrupted(HashEmbedder):
        def embed(self, texts: object) -> object:  # type: ignore[override]
            if self.n_embedded >= 64:
                raise KeyboardInterrupt
            return super().embed(texts)  # type: ignore[arg-type]

    with Library.open(library.path, embedder=Interrupted(256)) as interrupted:
        with pytest.raises(KeyboardInterrupt):
            interrupted.add([docs])
        kept = interrupted.stats().n_documents
        assert kept > 10
    report = library.add([docs])
    assert (report.unchanged, len(report.added)) == (kept, 100 - kept)
    assert is_sound(library)


# --- sync ---


def test_sync_adds_changes_renames_and_removes_and_a_dry_run_says_the_same(
    library: Library, docs: Path, tmp_path: Path, embedder: HashEmbedder
) -> None:
    for name in ("keep", "change", "rename", "remove"):
        write(docs / f"{name}.txt", f"text of {name}")
    elsewhere = write(tmp_path / "docs2/other.txt", "from elsewhere")
    library.add([docs, elsewhere])
    elsewhere.unlink()
    write(docs / "change.txt", "new words in it", mtime=LONG_AGO + 5)
    (docs / "rename.txt").rename(docs / "renamed.txt")
    (docs / "remove.txt").unlink()
    write(docs / "new.txt", "a new file")
    done = embedder.n_embedded
    foreseen = library.sync(docs, dry_run=True)
    assert embedder.n_embedded == done and library.stats().n_sources == 5
    report = library.sync(docs)
    assert replace(foreseen, dry_run=False, n_chunks=report.n_chunks, n_embedded=report.n_embedded) == report
    assert names(report.added) == ["new.txt"] and names(report.changed) == ["change.txt"]
    assert [names(pair) for pair in report.renamed] == [["rename.txt", "renamed.txt"]]
    assert names(report.removed) == ["remove.txt"] and report.unchanged == 1
    assert embedder.n_embedded - done == 2
    assert names(i.path for i in library.list()) == ["keep.txt", "renamed.txt", "other.txt", "change.txt", "new.txt"]
    assert library.sync(docs).unchanged == 4
    assert is_sound(library)


def test_sync_of_a_missing_or_empty_folder_removes_nothing(library: Library, docs: Path) -> None:
    path = write(docs / "a.txt", "text")
    library.add([docs])
    path.unlink()
    with pytest.raises(LibraryError, match="is the disk mounted"):
        library.sync(docs)
    docs.rmdir()
    with pytest.raises(LibraryError, match="no such folder"):
        library.sync(docs)
    assert library.stats().n_documents == 1
    library.remove(str(docs))
    assert library.stats().n_documents == 0


@pytest.mark.skipif(not hasattr(os, "fork") or os.geteuid() != 0, reason="needs to become another user")
def test_sync_keeps_what_stands_under_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    docs = folder / "docs"
    write(docs / "a.txt", "text a")
    write(docs / "closed/b.txt", "text b")
    for path in (folder, docs, docs / "closed"):
        path.chmod(0o755)
    (folder / "home").mkdir(mode=0o777)
    (folder / "home").chmod(0o777)
    parent = tmp_path
    while parent != parent.parent:  # pytest makes its folders private
        parent.chmod(parent.stat().st_mode | 0o011) if parent.owner() == "root" and parent != Path("/") else None
        parent = parent.parent
    code = os.fork()
    if code == 0:
        status = 1
        try:
            os.setuid(65534)
            with Library.open(folder / "home/lib", create=True, embedder=HashEmbedder(64)) as library:
                library.add([docs])
                (folder / "home/ready").touch()
                while not (folder / "home/go").exists():
                    time.sleep(0.01)
                report = library.sync(docs)
                good = report.removed == () and len(report.problems) >= 1 and library.stats().n_documents == 2
                status = 0 if good else 2
        finally:
            os._exit(status)
    while not (folder / "home/ready").exists():
        assert os.waitpid(code, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    (docs / "closed").chmod(0o700)
    (folder / "home/go").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(code, 0)[1]) == 0


def test_sync_keeps_a_hidden_file_that_was_added_by_name(library: Library, docs: Path) -> None:
    write(docs / "a.txt", "text a")
    library.add([docs, write(docs / ".notes.txt", "hidden notes")])
    assert library.sync(docs).removed == ()
    assert library.stats().n_sources == 2


# --- removing ---


def test_remove_by_id_path_and_folder(library: Library, docs: Path) -> None:
    for name in ("a.txt", "sub/b.txt", "sub/c.txt", "subway.txt"):
        write(docs / name, f"text of {name}")
    library.add([docs])
    assert names(library.remove(1)) == ["a.txt"]
    assert sorted(names(library.remove(docs / "sub"))) == ["b.txt", "c.txt"]
    assert names(i.path for i in library.list()) == ["subway.txt"]
    with pytest.raises(LibraryError, match="not in the library"):
        library.remove(77)
    with pytest.raises(LibraryError, match="not in the library"):
        library.remove("nowhere.txt")


def test_compact_leaves_no_byte_of_a_removed_text(library: Library, docs: Path) -> None:
    secret = ("xylophonist", "quagmirelike", "zanzibarite")  # as written; FTS5 stores porter stems, the prefixes below
    for i in range(300):
        write(docs / f"{i}.txt", f"ordinary text number {i} " * 20)
    path = write(docs / "zanzibarite.md", f"# The {secret[1]}\n\nThe {secret[0]} has a secret. " * 30)
    library.add([docs])
    library.compact()  # so that it is in a generation as well
    traces = [word.encode()[:7] for word in secret]
    assert any(traces[0] in raw for raw in files_of(library.path))
    secret_passage = library.lexical("xylophonist", 1)[0]
    text = embedding_text(secret_passage.heading, secret_passage.text)
    vector = vector_blob(library.embedder.embed([text])[0])
    assert any(vector in raw for raw in files_of(library.path))
    library.remove(str(path))
    assert library.lexical("xylophonist", 3) == []
    library.compact()
    for raw in files_of(library.path):
        assert not any(trace in raw.lower() for trace in traces)
        assert vector not in raw
    assert is_sound(library)
    assert library.stats().n_indexed == library.stats().n_chunks


def files_of(folder: Path) -> list[bytes]:
    """Read all files through another process: opening the database here would drop SQLite's locks."""
    program = (
        "import sys, pathlib\n"
        "for f in pathlib.Path(sys.argv[1]).rglob('*'):\n"
        "    f.is_file() and sys.stdout.buffer.write(str(f).encode() + f.read_bytes())\n"
    )
    return [subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True).stdout]


# --- searching ---


@pytest.mark.parametrize(
    "question",
    [
        "", " ", "the", '"', '"" OR', "NEAR(a b)", "a AND", "otter*", "heading:otter", "-otter", "(", "\0", "otter\0x",
        "\N{OTTER} otter", "\N{OTTER}",
        "'; DROP TABLE chunks; --", "^otter", "{heading text}: otter", "otter " * 10_000,
        "\u0308", "\ufb01n \u01c5 \u0130", "\uff11\uff12", "\u6c34\u737a", "\ud800 otter", "e\u0301tude", "x" * 200_000,
        " ".join(f"word{i}" for i in range(10_000)),
    ],
)  # fmt: skip
def test_any_text_is_a_question(library: Library, docs: Path, question: str) -> None:
    write(docs / "a.txt", "The otter lives near the river. Étude 12.")
    library.add([docs])
    found = library.lexical(question, 5)
    assert len(found) == (1 if any(word in question for word in ("otter", "the", "NEAR", "tude")) else 0)


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_no_question_breaks_the_query_syntax(question: str) -> None:
    import sqlite3

    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE t USING fts5 (x, tokenize = 'porter unicode61 remove_diacritics 2')")
    db.execute("INSERT INTO t VALUES (?)", ("some text",))
    query = search.any_of(search.question_words(question))
    if query:
        db.execute("SELECT * FROM t WHERE t MATCH ?", (query,)).fetchall()
    db.close()


def test_words_are_found_in_other_forms_and_without_accents(library: Library, docs: Path) -> None:
    write(docs / "a.txt", "Die Kapelle spielte Études; the engines were running.")
    library.add([docs])
    for question in ("etude", "engine runs", "KAPELLE"):
        assert len(library.lexical(question, 1)) == 1


def test_words_that_most_chunks_have_decide_only_where_there_are_no_others(library: Library, docs: Path) -> None:
    for i in range(30):
        write(docs / f"{i}.txt", f"every file is common and has rare{i}")
    library.add([docs])
    assert [Path(p.document).name for p in library.lexical("the common rare7 in every file", 9)] == ["7.txt"]
    assert len(library.lexical("every common file", 9)) == 9


def test_a_library_can_be_searched_while_its_only_chunk_is_the_first(library: Library, docs: Path) -> None:
    library.add([write(docs / "a.txt", "otter")])
    assert len(library.lexical("otter", 1)) == 1


def build_many(library: Library, docs: Path, n: int) -> None:
    for i in range(n):
        write(docs / f"{i:05}.txt", f"item{i} group{i % 7} of a list with number{i % 31}")
    library.add([docs])


def exact_scores(library: Library, vector: npt.NDArray[np.float32], k: int) -> list[float]:
    texts = [p.text for info in library.list() for p in library.show(info.id).chunks]
    stored = library.embedder.embed(texts).astype(np.float16).astype(np.float32)
    return sorted((stored @ vector).tolist(), reverse=True)[:k]


def test_dense_search_is_exact_with_a_generation_a_tail_and_dead_rows(
    library: Library, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_many(library, docs, 150)
    library.compact()
    assert library.stats().n_indexed == 150
    for i in range(150, 180):
        write(docs / f"{i:05}.txt", f"item{i} group{i % 7} of a list with number{i % 31}")
    library.add([docs])
    for i in range(120):
        (docs / f"{i:05}.txt").unlink()
    library.sync(docs)
    stats = library.stats()
    assert (stats.n_indexed, stats.n_tail, stats.n_chunks) == (150, 30, 60)
    for question in ("item5 group5 number5", "item170 group2", "group3"):
        vector = library.embedder.embed([question])[0]
        for k in (1, 10, 55, 100):
            found = library.dense(vector, k)
            assert len(found) == min(k, 60)
            assert [p.score for p in found] == pytest.approx(exact_scores(library, vector, k), abs=1e-5)
    monkeypatch.setattr(generations, "LARGEST_TAIL", 20)
    library.add([write(docs / "last.txt", "the last one")])
    stats = library.stats()
    assert (stats.n_indexed, stats.n_tail, stats.generation) == (61, 0, 2)
    assert sorted(names((library.path / "index").iterdir())) == ["000002", "CURRENT"]
    assert is_sound(library)


def test_dense_scores_are_cosines(library: Library, docs: Path) -> None:
    write(docs / "a.txt", "one two three")
    library.add([docs])
    library.compact()
    assert library.dense("one two three", 1)[0].score == pytest.approx(1.0, abs=2e-3)


def test_filters_never_starve_a_search(library: Library, docs: Path) -> None:
    build_many(library, docs, 300)
    library.compact()
    for pattern, n in (("0000?.txt", 10), ("00123.txt", 1), ("nothing", 0)):
        for search_by in (library.dense, library.lexical):
            found = search_by("list number", 10, Filters(paths=(pattern,)))
            assert len(found) == n
            assert all(Path(p.document).match(pattern) for p in found)


def test_a_vector_of_another_size_is_refused(library: Library, docs: Path) -> None:
    library.add([write(docs / "a.txt", "text")])
    with pytest.raises(UsageError, match="256"):
        library.dense(np.ones(3, dtype=np.float32), 1)


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (Filters(), "abcd"),
        (Filters(paths=("*.md",)), "cd"),
        (Filters(paths=("reports",)), "bc"),
        (Filters(paths=("reports/",)), "bc"),
        (Filters(paths=("reports/*.txt", "d.md")), "bd"),
        (Filters(paths=("a[1].txt",)), "a"),
        (Filters(types=("md",)), "cd"),
        (Filters(types=("text/plain",)), "ab"),
        (Filters(types=("text/*",)), "abcd"),
        (Filters(types=("plain", ".MD")), "abcd"),
        (Filters(after="2021"), "bd"),
        (Filters(before="2021"), "ac"),
        (Filters(after="2024-05-01", before="2024-05-02"), "d"),
        (Filters(after="2020-09-13T12", before="2020-09-13 13:00"), "ac"),
        (Filters(metadata={"Author": "ada"}), "d"),
        (Filters(metadata={"author": "ada", "topic": "x"}), ""),
        (Filters(paths=("reports",), types=("md",)), "c"),
    ],
)
def test_filters_choose_documents(library: Library, docs: Path, filters: Filters, wanted: str) -> None:
    write(docs / "a[1].txt", "common a")
    write(docs / "reports/b.txt", "common b", mtime=LONG_AGO + 40_000_000)
    write(docs / "reports/c.md", "common c")
    write(docs / "d.md", "---\ndate: 2024-05-01\nauthor: Ada\n---\n\ncommon d")
    library.add([docs])
    assert "".join(sorted(Path(i.path).name[0] for i in library.list(filters))) == wanted
    assert "".join(sorted(Path(p.document).name[0] for p in library.lexical("common", 9, filters))) == wanted
    assert "".join(sorted(Path(p.document).name[0] for p in library.dense("common", 9, filters))) == wanted


def test_a_filter_shows_the_path_that_fits_it(library: Library, docs: Path) -> None:
    write(docs / "a/x.txt", "the same")
    write(docs / "b/x.txt", "the same")
    library.add([docs])
    assert library.lexical("same", 1, Filters(paths=("b/*",)))[0].document == str(docs / "b/x.txt")


@pytest.mark.parametrize(
    "wrong", [{"after": "yesterday"}, {"before": "2024-5-1"}, {"paths": ("",)}, {"types": ("x\0",)}]
)
def test_filters_refuse_nonsense(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Filters(**wrong)  # type: ignore[arg-type]


# --- moving and readers beside a writer ---


def test_a_copied_library_works_elsewhere(library: Library, docs: Path, tmp_path: Path) -> None:
    build_many(library, docs, 30)
    library.compact()
    library.close()
    shutil.copytree(library.path, tmp_path / "moved")
    with Library.open(tmp_path / "moved", embedder=HashEmbedder(256)) as moved:
        assert moved.dense("item3 group3", 1) and moved.stats().generation == 1
        assert moved.show(str(docs / "00003.txt")).text.startswith("item3")
        assert is_sound(moved)


def test_readers_see_whole_states_while_a_writer_writes(library: Library, docs: Path) -> None:
    """The file says one number in all its chunks; a reader must never see two, nor miss a chunk."""
    path = docs / "a.txt"

    def body(n: int) -> str:
        return "\n\n".join(f"state{n} part{i} " + "filler " * 120 for i in range(6))

    write(path, body(0))
    library.add([path])
    stop = threading.Event()
    wrong: list[object] = []
    seen = set()

    def read() -> None:
        try:
            while not stop.is_set():
                view = library.show(str(path))
                states = {word for word in view.text.split() if word.startswith("state")}
                found = library.dense("state part filler", 20)
                if len(states) != 1 or len(found) != len(view.chunks):
                    wrong.append((states, len(found)))
                seen.update(states)
                library.lexical("filler", 5)
        except Exception as error:
            wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        with Library.open(library.path, embedder=HashEmbedder(256)) as writer:
            for n in range(1, 15):
                write(path, body(n), mtime=LONG_AGO + n)
                assert writer.add([path]).problems == ()
                if n % 5 == 0:
                    writer.compact()
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert wrong == [] and len(seen) > 1
    assert is_sound(library)


def test_diagnose_is_the_same_as_the_librarys_doctor(library: Library, docs: Path) -> None:
    library.add([write(docs / "a.txt", "text")])
    (docs / "a.txt").unlink()
    findings = diagnose(library.path)
    assert findings == library.doctor()
    assert [f.severity for f in findings] == ["info"] and "no longer" in findings[0].what
