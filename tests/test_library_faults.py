"""A library under attack: killed writers, full and read-only disks, two writers, damaged files.

Whatever happens, the outcome is a right answer or one clean error, and the next command goes on.
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edge_rag.errors import EdgeRagError, IntegrityError, LibraryError, LibraryLocked
from edge_rag.library import Library, diagnose, generations, ingest, schema
from edge_rag.library.ingest import BATCH_CHUNKS
from edge_rag.testing import HashEmbedder

LONG_AGO = 1_600_000_000
DIM = 64

# A writer in a process of its own. Arguments: library, log of embedded texts, seconds per text, folders to add.
WRITER = f"""
import sys, time
from pathlib import Path
from edge_rag.errors import EdgeRagError
from edge_rag.library import Library, generations
from edge_rag.testing import HashEmbedder

log, pause = open(sys.argv[2], "a", buffering=1), float(sys.argv[3])
generations.LARGEST_TAIL = 20

class Slow(HashEmbedder):
    def embed(self, texts):
        time.sleep(pause * len(texts))
        log.write(f"embedded {{len(texts)}}\\n")
        return super().embed(texts)

log.write("ready\\n")
try:
    with Library.open(Path(sys.argv[1]), create=True, embedder=Slow({DIM})) as library:
        for folder in sys.argv[4:]:
            report = library.add([folder])
            print(report.summary(), flush=True)
except EdgeRagError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(3)
"""


def writer(library: Path, log: Path, pause: float, *folders: Path) -> "subprocess.Popen[str]":
    arguments = [str(a) for a in (library, log, pause, *folders)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def corpus(folder: Path, n: int) -> dict[str, str]:
    """Write n documents of one to six chunks and return their texts."""
    choice = random.Random(7)
    words = ["harbour", "lantern", "otter", "river", "meadow", "granite", "violin", "copper", "saddle", "beacon"]
    texts = {}
    for i in range(n):
        paragraphs = [
            f"Document {i} part {j}: " + " ".join(choice.choices(words, k=choice.randrange(20, 150)))
            for j in range(choice.randrange(1, 7))
        ]
        path = folder / f"part{i % 6}" / f"{i:03}.txt"
        texts[str(path)] = "\n\n".join(paragraphs)
        write(path, texts[str(path)])
    return texts


def open_library(path: Path) -> Library:
    return Library.open(path, embedder=HashEmbedder(DIM))


def n_embedded(log: Path) -> int:
    return sum(int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("embedded "))


def bad_findings(path: Path) -> list[str]:
    findings = diagnose(path, deep=True, embedder=HashEmbedder(DIM))
    return [f.what for f in findings if f.severity in ("error", "warning")]


def test_twenty_kills_leave_a_sound_library_and_lose_one_batch_each(tmp_path: Path) -> None:
    texts = corpus(tmp_path / "docs", 300)
    folders = sorted((tmp_path / "docs").iterdir())
    lib, log = tmp_path / "lib", tmp_path / "log"
    log.touch()
    choice = random.Random(20)
    lives, kills, committed, most_committed = 1, 0, 0, 0
    while kills < 20:
        goal = n_embedded(log) + choice.randrange(80)
        starts = log.read_text().count("ready") + 1
        child = writer(lib, log, 0.0003, *folders)
        while child.poll() is None and (n_embedded(log) < goal or log.read_text().count("ready") < starts):
            time.sleep(0.002)
        time.sleep(choice.uniform(0, 0.05))
        child.kill()
        out, _ = child.communicate()
        if child.returncode == 0:  # it was quicker than the kill: once more from nothing
            shutil.rmtree(lib)
            lives, committed = lives + 1, 0
            continue
        kills += 1
        try:
            with open_library(lib) as library:
                now = library.stats().n_documents
        except LibraryError as error:
            assert committed == 0 and "no library here" in str(error), out
            continue
        assert now >= committed, "a committed document was lost"
        committed, most_committed = now, max(most_committed, now)
        # An index folder that was being written may lie about; everything else must be right.
        assert all(what.startswith(("files that belong to nothing", "index")) for what in bad_findings(lib))
    assert most_committed > 50
    child = writer(lib, log, 0, *folders)
    out, _ = child.communicate()
    assert child.returncode == 0, out
    with open_library(lib) as library:
        assert {i.path: library.show(i.id).text for i in library.list()} == texts
        n_chunks = library.stats().n_chunks
        assert [f for f in library.doctor(repair=True) if f.severity != "mended"] == []
        assert library.add(folders).unchanged == len(texts)
    assert n_chunks <= n_embedded(log) <= lives * n_chunks + kills * BATCH_CHUNKS


def test_a_second_writer_is_told_who_writes_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    corpus(tmp_path / "docs", 40)
    lib, log = tmp_path / "lib", tmp_path / "log"
    log.touch()
    child = writer(lib, log, 0.01, tmp_path / "docs")
    while "embedded" not in log.read_text():
        time.sleep(0.01)
    with open_library(lib) as library:
        library.lexical("otter", 3)  # a reader does not wait
        with pytest.raises(
            LibraryLocked, match=rf"being written by process {child.pid} \(edge-rag add\) on .* since \d\d:\d\d"
        ):
            library.add([tmp_path / "docs"])
        assert any(str(child.pid) in f.what for f in library.doctor())
        child.kill()
        child.communicate()
        assert any("without saying goodbye" in f.what for f in library.doctor())
        assert len(library.add([tmp_path / "docs"]).added) > 0
        assert library.stats().n_documents == 40
        assert not any("goodbye" in f.what for f in library.doctor())


def test_two_writers_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    corpus(tmp_path / "docs", 2)
    with (
        Library.open(tmp_path / "lib", create=True, embedder=HashEmbedder(DIM)) as one,
        open_library(tmp_path / "lib") as two,
    ):
        with one._writing("add"), pytest.raises(LibraryLocked, match=str(os.getpid())):
            two.add([tmp_path / "docs"])
        assert len(two.add([tmp_path / "docs"]).added) == 2
        assert one.stats().n_documents == 2


# --- disks ---


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_clean_error_and_space_lets_it_go_on(tmp_path: Path) -> None:
    texts = corpus(tmp_path / "docs", 120)
    disk = tmp_path / "disk"
    with mounted(disk, "-o", "size=700k"):
        with Library.open(disk / "lib", create=True, embedder=HashEmbedder(DIM)) as library:
            with pytest.raises(LibraryError, match="the disk is full; free some space"):
                library.add([tmp_path / "docs"])
            stored = {i.path: library.show(i.id).text for i in library.list()}
            assert stored == {path: texts[path] for path in stored}
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert bad_findings(disk / "lib") == []
        with open_library(disk / "lib") as library:
            assert len(library.add([tmp_path / "docs"]).added) == 120 - len(stored)


def test_a_file_size_limit_is_one_clean_error(tmp_path: Path) -> None:
    """As on a full disk, where mounting one is not possible."""
    resource = pytest.importorskip("resource")
    corpus(tmp_path / "docs", 120)
    (tmp_path / "log").touch()
    arguments = [str(a) for a in (tmp_path / "lib", tmp_path / "log", 0, tmp_path / "docs")]
    child = subprocess.run(
        [sys.executable, "-c", WRITER, *arguments],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert child.returncode == 3, child.stderr
    assert "LibraryError" in child.stdout and child.stdout.count("\n") == 1
    assert bad_findings(tmp_path / "lib") == []
    with open_library(tmp_path / "lib") as library:
        library.add([tmp_path / "docs"])
        assert library.stats().n_documents == 120


def test_a_failing_index_write_leaves_the_documents_and_no_orphans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(tmp_path / "docs", 30)
    monkeypatch.setattr(generations, "LARGEST_TAIL", 5)
    with Library.open(tmp_path / "lib", create=True, embedder=HashEmbedder(DIM)) as library:
        with monkeypatch.context() as patch:
            patch.setattr(generations, "file_sha256", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
            with pytest.raises(LibraryError, match="disk is full"):
                library.add([tmp_path / "docs"])
        assert library.stats().n_documents == 30 and library.dense("otter river", 5)
        assert bad_findings(library.path) == []
        library.add([tmp_path / "docs"])
        assert library.stats().generation == 1


def read_everything(library: Library, texts: dict[str, str]) -> None:
    """Ask for all that a reader can ask; every text that comes back must be a true one."""
    infos = library.list()
    for info in infos:
        view = library.show(info.id)
        assert view.text in texts.values()
    for found in (library.lexical("otter river granite", 10), library.dense("otter river granite", 10)):
        for passage in found:
            assert any(text[passage.start : passage.end] == passage.text for text in texts.values())
    library.stats()


def test_a_library_on_a_read_only_disk_is_read_and_not_written(tmp_path: Path) -> None:
    texts = corpus(tmp_path / "docs", 20)
    disk = tmp_path / "disk"
    with mounted(disk):
        with Library.open(disk / "lib", create=True, embedder=HashEmbedder(DIM)) as library:
            library.add([tmp_path / "docs"])
            library.compact()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with open_library(disk / "lib") as library:
            read_everything(library, texts)
            assert len(library.list()) == 20 and library.stats().generation == 1
            with pytest.raises(LibraryError, match="cannot be written"):
                library.add([tmp_path / "docs"])
            with pytest.raises(LibraryError, match="cannot be written"):
                library.compact()
            assert library.doctor(deep=True) == []


def test_a_read_only_library_with_unfolded_changes_says_so(tmp_path: Path) -> None:
    corpus(tmp_path / "docs", 40)
    disk = tmp_path / "disk"
    (tmp_path / "log").touch()
    with mounted(disk):
        child = writer(disk / "lib", tmp_path / "log", 0.01, tmp_path / "docs")
        while (tmp_path / "log").read_text().count("embedded") < 2:
            time.sleep(0.01)
        child.kill()
        child.communicate()
        (disk / "lib/library.sqlite-shm").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(LibraryError, match="read-only, and its last changes"):
            open_library(disk / "lib")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with open_library(disk / "lib") as library:
            assert library.stats().n_documents > 0


# --- damage ---


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A library of 30 documents, most of them in a generation, some in the tail."""
    base = tmp_path_factory.mktemp("pristine")
    texts = corpus(base / "docs", 30)
    with Library.open(base / "lib", create=True, embedder=HashEmbedder(DIM)) as library:
        library.add([base / "docs" / f"part{i}" for i in range(4)])
        library.compact()
        library.add([base / "docs"])
    return base / "lib", texts


@pytest.fixture
def copy(pristine: tuple[Path, dict[str, str]], tmp_path: Path) -> tuple[Path, dict[str, str]]:
    shutil.copytree(pristine[0], tmp_path / "lib")
    return tmp_path / "lib", pristine[1]


def damage(path: Path, choice: random.Random) -> str:
    data = bytearray(path.read_bytes())
    kind = choice.choice(["truncate", "bits", "bits", "page", "header"])
    if kind == "truncate" or not data:
        del data[choice.randrange(len(data) or 1) :]
    elif kind == "page":
        start = choice.randrange(len(data)) & ~4095
        data[start : start + 4096] = choice.choice([b"\xff", b"\0"]) * len(data[start : start + 4096])
    else:
        span = min(len(data), 128) if kind == "header" else len(data)
        for _ in range(choice.choice([1, 3, 30])):
            data[choice.randrange(span)] ^= 1 << choice.randrange(8)
    path.write_bytes(bytes(data))
    return kind


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def hung(signum: int, frame: object) -> None:
        raise AssertionError("hung")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarm to end a hang")
@pytest.mark.parametrize("seed", range(6))
def test_damaged_files_give_a_clean_error_or_the_truth_and_can_be_repaired(
    pristine: tuple[Path, dict[str, str]], tmp_path: Path, seed: int
) -> None:
    lib, texts = pristine
    choice = random.Random(seed)
    for trial in range(25):
        target = tmp_path / f"{trial}"
        shutil.copytree(lib, target)
        files = [f for f in sorted(target.rglob("*")) if f.is_file() and f.stat().st_size]
        victim = choice.choice([target / "library.sqlite"] * 2 + files)
        kind = damage(victim, choice)
        with at_most(20):
            try:
                with open_library(target) as library:
                    read_everything(library, texts)
            except EdgeRagError as error:
                assert error.mend, f"{kind} of {victim.name}: no way out: {error}"
            assert all(f.what for f in diagnose(target, embedder=HashEmbedder(DIM)))
            diagnose(target, deep=True, embedder=HashEmbedder(DIM))
            if trial % 3 == 0:
                repair_and_check(target, texts)
        shutil.rmtree(target)


def repair_and_check(target: Path, texts: dict[str, str]) -> None:
    findings = diagnose(target, repair=True, embedder=HashEmbedder(DIM))
    assert [f for f in findings if f.severity in ("error", "warning")] == []
    with open_library(target) as library:
        read_everything(library, texts)
        library.add(sorted({str(Path(path).parent) for path in texts}))
        assert {path: library.show(i.id).text for i in library.list() for path in i.paths} == texts
    assert bad_findings(target) == []


def edit(lib: Path, *statements: str) -> None:
    with closing(sqlite3.connect(lib / "library.sqlite", isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def fresh_pages(lib: Path) -> None:
    (lib / "index/CURRENT").write_text("000099\n")


DAMAGES = {
    "text": (["DROP TRIGGER chunks_to_fts_update", "UPDATE chunks SET text = replace(text, 'otter', 'ottes')"],
             "tables are missing"),
    "page": (["UPDATE chunks SET page = 7 WHERE id = 5"], "the text of 1 documents is damaged"),
    "heading": (["UPDATE chunks SET heading = 'Lies' WHERE id = 5"], "the text of 1 documents is damaged"),
    "title": (["UPDATE documents SET title = 'Lies' WHERE id = 3"], "the text of 1 documents is damaged"),
    "path": (["UPDATE sources SET path = replace(path, 'docs', 'dogs') WHERE document_id = 3"],
             "the text of 1 documents is damaged"),
    "gap": (["PRAGMA foreign_keys = ON", "DELETE FROM chunks WHERE document_id = 3 AND ordinal = 0"],
            "the text of 1 documents is damaged"),
    "vector missing": (["DELETE FROM vectors WHERE chunk_id < 4"], "the vectors of 3 chunks"),
    "vector wrong": (["UPDATE vectors SET vector = zeroblob(128) WHERE chunk_id = 4"], "the vectors of 1 chunks"),
    "vector short": (["UPDATE vectors SET vector = x'00' WHERE chunk_id = 4"], "the vectors of 1 chunks"),
    "fts row": (["INSERT INTO chunk_fts (chunk_fts, rowid, heading, text)"
                 " SELECT 'delete', id, heading, text FROM chunks WHERE id = 2"],
                "the full-text index has"),
    "fts words": (["UPDATE chunk_fts_data SET block = zeroblob(length(block)) WHERE id > 100"], "full-text index"),
    "no generations": (["DELETE FROM generations"], "belongs to another state"),
    "no sources": (["DELETE FROM sources WHERE document_id = 2"], "1 documents have no file"),
    "table": (["DROP TABLE problems"], "tables are missing or altered: problems"),
    "dangling": (["PRAGMA foreign_keys = OFF", "DELETE FROM documents WHERE id = 2"], "rows belong to nothing"),
    "embedder": (["UPDATE meta SET value = 'another' WHERE key = 'embedder_fingerprint'"], "of another embedder"),
    "meta": (["DELETE FROM meta WHERE key = 'embedder_name'"], "does not say how it was made"),
    "dim": (["UPDATE meta SET value = '6t' WHERE key = 'dim'"], "the vectors of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_doctor_finds_each_damage_and_repairs_it(copy: tuple[Path, dict[str, str]], kind: str) -> None:
    lib, texts = copy
    statements, expected = DAMAGES[kind]
    edit(lib, *statements)
    assert any(expected in what for what in bad_findings(lib))
    try:
        with open_library(lib) as library:
            read_everything(library, texts)
    except (IntegrityError, LibraryError) as error:
        assert "doctor --repair" in error.mend
    repair_and_check(lib, texts)


FILE_DAMAGES = {
    "CURRENT gone": (lambda lib: (lib / "index/CURRENT").unlink(), "CURRENT is missing"),
    "CURRENT garbage": (lambda lib: (lib / "index/CURRENT").write_bytes(b"\xff\0"), "CURRENT is missing or unreadable"),
    "CURRENT dangling": (fresh_pages, "generation 99 is missing"),
    "manifest garbage": (lambda lib: (lib / "index/000001/MANIFEST.json").write_text("{}"), "has no manifest"),
    "vectors gone": (lambda lib: (lib / "index/000001/vectors.eidx").unlink(), "missing or cut short"),
    "vectors cut": (lambda lib: os.truncate(lib / "index/000001/vectors.eidx", 100), "missing or cut short"),
    "index gone": (lambda lib: shutil.rmtree(lib / "index"), "CURRENT is missing"),
    "orphan": (lambda lib: (lib / "index/000077").mkdir(), "belong to nothing: index/000077"),
    "leftover": (lambda lib: (lib / "index/000001/x.tmp").touch(), "belong to nothing: index/000001/x.tmp"),
    "database gone": (lambda lib: (lib / "library.sqlite").unlink(), "library.sqlite is missing"),
    "database empty": (lambda lib: os.truncate(lib / "library.sqlite", 0), "tables are missing"),
    "database cut": (lambda lib: os.truncate(lib / "library.sqlite", 20_000), "damaged"),
    "no database": (lambda lib: (lib / "library.sqlite").write_text("this is a text, not a database " * 99), "damaged"),
}


@pytest.mark.parametrize("kind", FILE_DAMAGES)
def test_doctor_finds_each_damaged_file_and_repairs_it(copy: tuple[Path, dict[str, str]], kind: str) -> None:
    lib, texts = copy
    act, expected = FILE_DAMAGES[kind]
    act(lib)
    assert any(expected in what for what in bad_findings(lib))
    if "database" not in kind:  # the index is a cache: answers are right without it
        with open_library(lib) as library:
            read_everything(library, texts)
            assert len(library.dense("otter", 20)) == 20
    repair_and_check(lib, texts)


def test_a_generation_of_another_library_is_not_used(copy: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    lib, texts = copy
    corpus(tmp_path / "other", 12)
    with Library.open(tmp_path / "lib2", create=True, embedder=HashEmbedder(DIM)) as other:
        other.add([tmp_path / "other"])
        other.compact()
    shutil.rmtree(lib / "index")
    shutil.copytree(tmp_path / "lib2/index", lib / "index")
    assert any("another state" in what for what in bad_findings(lib))
    with open_library(lib) as library:
        read_everything(library, texts)
        assert len(library.dense("otter", 30)) == 30


def test_repair_moves_a_hopeless_database_aside_and_names_the_files(copy: tuple[Path, dict[str, str]]) -> None:
    lib, texts = copy
    data = bytearray((lib / "library.sqlite").read_bytes())
    data[:4096] = os.urandom(4096)
    (lib / "library.sqlite").write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"doctor --repair"):
        open_library(lib)
    findings = diagnose(lib, repair=True, embedder=HashEmbedder(DIM))
    (lost,) = [f for f in findings if "was broken" in f.what]
    named = [path for path in texts if path in lost.mend]
    assert "add" in lost.mend and len(named) == len(texts)
    (aside,) = lib.glob("damaged-*")
    assert (aside / "library.sqlite").read_bytes() == bytes(data)
    with open_library(lib) as library:
        library.add(named)
        assert {i.path: library.show(i.id).text for i in library.list()} == texts


def test_a_salvage_keeps_ids_texts_and_vectors_of_what_is_whole(copy: tuple[Path, dict[str, str]]) -> None:
    lib, _ = copy
    with open_library(lib) as library:
        before = {i.path: i.id for i in library.list()}
    edit(lib, "PRAGMA foreign_keys = OFF", "DELETE FROM documents WHERE id = 4")
    embedder = HashEmbedder(DIM)
    findings = diagnose(lib, repair=True, embedder=embedder)
    assert any("29 documents were saved" in f.what for f in findings)
    assert embedder.n_embedded == 0
    with open_library(lib) as library:
        after = {i.path: i.id for i in library.list()}
        assert after == {path: i for path, i in before.items() if i != 4}
        assert library.stats().generation > 0


# --- versions ---


def test_a_library_of_a_later_version_is_refused_unharmed(copy: tuple[Path, dict[str, str]]) -> None:
    lib, _ = copy
    edit(lib, f"PRAGMA user_version = {schema.VERSION + 1}")
    with pytest.raises(LibraryError, match="library format 2, this edge_rag reads up to 1; pip install --upgrade"):
        open_library(lib)
    with pytest.raises(LibraryError, match="pip install --upgrade"):
        diagnose(lib, repair=True)
    assert any("library format" in f.what for f in diagnose(lib))
    assert not list(lib.glob("damaged-*"))


def test_migrations_run_once_on_opening(copy: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    lib, texts = copy
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "ALTER TABLE documents ADD COLUMN colour TEXT;"))
    monkeypatch.setattr(schema, "VERSION", 2)
    for _ in range(2):
        with open_library(lib) as library:
            read_everything(library, texts)
            with library._reading() as db:
                assert schema.version(db) == 2
                db.execute("SELECT colour FROM documents").fetchall()


def test_a_failing_migration_leaves_the_old_version(
    copy: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lib, texts = copy
    with monkeypatch.context() as patch:
        patch.setattr(
            schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE new (a);\nALTER TABLE nothing ADD COLUMN b;")
        )
        patch.setattr(schema, "VERSION", 2)
        with pytest.raises(EdgeRagError):
            open_library(lib)
    with open_library(lib) as library:
        read_everything(library, texts)
    assert bad_findings(lib) == []


def test_another_embedder_is_refused_with_the_way_out(copy: tuple[Path, dict[str, str]]) -> None:
    lib, _ = copy
    with Library.open(lib, embedder=HashEmbedder(32)) as library:
        assert library.lexical("otter", 1)  # words need no embedder
        for act in (lambda: library.dense("otter", 1), lambda: library.embedder):
            with pytest.raises(LibraryError, match=r"made with the embedder hash .*edge-rag models pull hash"):
                act()
        findings = library.doctor(repair=True)
        assert any("vectors of" in f.what and f.severity == "mended" for f in findings)
        assert library.dense("otter", 1) and library.stats().dim == 32
    assert [f for f in diagnose(lib, deep=True, embedder=HashEmbedder(32)) if f.severity != "info"] == []


@pytest.mark.parametrize("door", ["sniff", "read_document", "chunk_document"])
def test_a_file_that_trips_a_reader_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (docs / name).write_text(f"The text of {name}.")
    real = getattr(ingest, door)

    def trip(what: object, *args: object, **options: object) -> object:
        if "b.txt" in str(what):
            raise ZeroDivisionError("a mistake in a reader")
        return real(what, *args, **options)

    monkeypatch.setattr(ingest, door, trip)
    with Library.open(tmp_path / "library", create=True, embedder=HashEmbedder()) as library:
        report = library.add([docs])
        assert [Path(p.path).name for p in report.problems] == ["b.txt"]
        assert "ZeroDivisionError" in report.problems[0].reason
        assert len(library.list()) == 2
