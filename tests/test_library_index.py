"""How a library keeps its index: grown from the last one, built anew, healed, interrupted, and right all the while."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import edge_rag.index
from edge_rag.errors import ModelError, UsageError
from edge_rag.index import NativeIndex, build_index
from edge_rag.library import Filters, Library, describe_index, diagnose, generations, search, store
from edge_rag.testing import HashEmbedder

LONG_AGO = 1_600_000_000
DIM = 64


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new generation for every 20 chunks, each with a graph."""
    monkeypatch.setattr(generations, "LARGEST_TAIL", 20)
    monkeypatch.setattr(edge_rag.index, "build_index", functools.partial(build_index, graph_from=1))


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library.open(tmp_path / "lib", create=True, embedder=HashEmbedder(DIM)) as opened:
        yield opened


def put(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for i in numbers:
        path = folder / f"{i:04}.txt"
        path.write_text(f"item{i} group{i % 7} of a list with number{i % 31} and word{i % 13} too")
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def index_file(library: Library) -> Path:
    number = generations.current_number(library.path)
    return generations.folder(library.path, number) / generations.VECTORS_NAME


def whole_rows(library: Library) -> int:
    """How many of the rows were there when the index was last built from the database alone."""
    manifest = generations.read_manifest(library.path, generations.current_number(library.path))
    assert manifest is not None
    return manifest.n_whole


def assert_exact(library: Library, k: int = 10) -> None:
    """Every dense search finds what the vectors in the database say, in their order."""
    with library._reading() as db:
        blocks = list(store.vector_blocks(db, library.path, DIM))
    ids = np.concatenate([block[0] for block in blocks])
    vectors = np.concatenate([block[1] for block in blocks])
    for question in ("item5 group5 number5", "item170 group2 word9", "group3", "nothing of this"):
        vector = library.embedder.embed([question])[0]
        scores = vectors @ vector
        found = library.dense(vector, k)
        assert [p.score for p in found] == pytest.approx(sorted(scores.tolist(), reverse=True)[:k], abs=1e-5)
        at = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        assert all(p.score == pytest.approx(at[p.chunk_id], abs=1e-6) for p in found)


def is_sound(library: Library) -> bool:
    return not [f for f in library.doctor(deep=True) if f.severity in ("error", "warning")]


def test_a_generation_grows_from_the_last_one(library: Library, tmp_path: Path) -> None:
    docs = put(tmp_path / "docs", range(100))
    library.add([docs])
    assert (library.stats().generation, whole_rows(library)) == (1, 100)
    put(docs, range(100, 150))
    for i in range(0, 30, 3):
        (docs / f"{i:04}.txt").unlink()
    library.sync(docs)
    stats = library.stats()
    assert (stats.generation, stats.n_indexed, stats.n_tail, whole_rows(library)) == (2, 140, 0, 100)
    with NativeIndex.open(index_file(library)) as index, library._reading() as db:
        assert index.ids.tolist() == [row[0] for row in db.execute("SELECT chunk_id FROM vectors ORDER BY chunk_id")]
        assert index.info().n_links > 0
    assert_exact(library)
    assert is_sound(library)


def test_a_generation_that_has_grown_to_twice_its_size_is_built_anew(library: Library, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    seen = []
    for n in range(50, 251, 50):
        library.add([put(docs, range(n - 50, n))])
        seen.append(whole_rows(library))
    assert seen == [50, 50, 150, 150, 150]
    for i in range(200):
        (docs / f"{i:04}.txt").unlink()
    library.sync(docs)
    assert whole_rows(library) == 50
    assert_exact(library)


def test_compact_leaves_an_index_that_owes_nothing_to_what_was_removed(library: Library, tmp_path: Path) -> None:
    docs = put(tmp_path / "docs", range(120))
    library.add([docs])
    library.remove(docs / "0007.txt")
    library.compact()
    with library._reading() as db:
        remaining = list(store.vector_blocks(db, library.path, DIM))
    build_index(tmp_path / "never-there.eidx", remaining, DIM, graph_from=1)
    assert (tmp_path / "never-there.eidx").read_bytes() == index_file(library).read_bytes()
    assert whole_rows(library) == 119
    assert len(list((library.path / "index").glob("*/*"))) == 2


def older_format(path: Path) -> None:
    path.write_bytes(b"EDGEIDX\n\x01\0\0\0" + path.read_bytes()[12:])


def flipped_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 + 100] ^= 4
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def manifest_of_older_kind(path: Path) -> None:
    manifest = path.with_name(generations.MANIFEST_NAME)
    manifest.write_text(manifest.read_text().replace('"n_whole"', '"something_else"'))


@pytest.mark.parametrize("harm", [older_format, flipped_bit, cut_short, manifest_of_older_kind, Path.unlink])
def test_a_generation_that_cannot_be_opened_is_not_used_and_the_next_writer_makes_a_new_one(
    library: Library, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    docs = put(tmp_path / "docs", range(30))
    library.add([docs])
    library.close()
    harm(index_file(library))
    with Library.open(library.path, embedder=HashEmbedder(DIM)) as again:
        assert_exact(again)
        assert [f.severity for f in again.doctor(deep=True)] == ["warning"]
        again.add([put(docs, range(31))])
        assert (again.stats().generation, again.stats().n_indexed, whole_rows(again)) == (2, 31, 31)
        assert_exact(again)
        assert is_sound(again)


def test_damage_that_a_search_meets_first_does_not_make_its_answer_wrong(library: Library, tmp_path: Path) -> None:
    library.add([put(tmp_path / "docs", range(100))])
    file = index_file(library)
    data = bytearray(file.read_bytes())
    with NativeIndex.open(file) as index:
        hot = index.info().hot_bytes
    for at in range(hot, len(data)):
        data[at] ^= 1  # all residuals, which are checked when they are read
    file.write_bytes(data)
    with Library.open(library.path, embedder=HashEmbedder(DIM)) as again:
        assert_exact(again)
        assert any("damaged" in f.what for f in again.doctor(deep=True))
        again.add([put(tmp_path / "docs", range(130))])  # the merge finds it, and builds anew
        assert (again.stats().generation, whole_rows(again)) == (2, 130)
        assert_exact(again)
        assert is_sound(again)


def reads_of_vectors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    real = store.vector_blocks

    def counted(db: object, path: object, dim: int, condition: str = "1", parameters: object = ()) -> object:
        if "json_each" not in condition:  # those read a few rows by their ids
            reads.append(condition)
        return real(db, path, dim, condition, parameters)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "vector_blocks", counted)
    return reads


def test_the_tail_is_read_once_and_again_after_every_change(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = put(tmp_path / "docs", range(60))
    library.add([docs])
    library.add([put(docs, range(60, 70))])
    reads = reads_of_vectors(monkeypatch)
    for _ in range(3):
        library.dense("item65 group2", 5)
    assert len(reads) == 1
    with Library.open(library.path, embedder=HashEmbedder(DIM)) as other:
        other.add([put(docs, range(70, 75))])
        assert library.dense("item72 group2 number10 word7", 1)[0].document.endswith("0072.txt")
        other.remove(docs / "0072.txt")
        assert not library.dense("item72 group2 number10 word7", 1)[0].document.endswith("0072.txt")
        assert_exact(library)
        other.compact()
    assert library.stats().n_tail == 0
    assert_exact(library)
    library.add([put(docs, range(80, 82))])  # its own changes too
    assert library.dense("item81 group4 number19 word3", 1)[0].document.endswith("0081.txt")


def test_the_tail_is_filtered_like_everything_else(library: Library, tmp_path: Path) -> None:
    docs = put(tmp_path / "docs", range(60))
    library.add([docs])
    library.add([put(docs, range(60, 75))])
    assert library.stats().n_tail == 15
    for pattern, wanted in (("006?.txt", 10), ("005?.txt", 10), ("00[56]5.txt", 2), ("none", 0)):
        found = library.dense("list of items", 40, Filters(paths=(pattern,)))
        assert len(found) == wanted


def test_a_tail_too_long_for_memory_is_read_every_time(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.add([put(tmp_path / "docs", range(60))])
    library.add([put(tmp_path / "docs", range(60, 75))])
    monkeypatch.setattr(search, "LARGEST_TAIL_IN_MEMORY", 10)
    assert_exact(library)
    assert library._tail is None


def test_the_index_is_described_by_its_rows_links_and_bytes(library: Library, tmp_path: Path) -> None:
    assert describe_index(library.path) == "none"
    library.add([put(tmp_path / "docs", range(60))])
    size = index_file(library).stat().st_size
    said = describe_index(library.path)
    assert said.startswith("60 vectors of 64, a graph of ") and said.endswith(f" links, {size:,} bytes")
    index_file(library).unlink()
    assert describe_index(library.path) == "none"


def test_a_vector_without_direction_is_refused(library: Library, tmp_path: Path) -> None:
    library.add([put(tmp_path / "docs", range(3))])
    with pytest.raises(UsageError, match="not all zero"):
        library.dense(np.zeros(DIM, dtype=np.float32), 1)


# --- interruptions ---


def test_progress_of_the_index_is_shown_and_can_interrupt(library: Library, tmp_path: Path) -> None:
    docs = put(tmp_path / "docs", range(60))
    library.add([docs])
    steps: list[tuple[int, int]] = []

    def interrupt(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "index":
            steps.append((done, total))
            if total and done * 2 > total:
                raise KeyboardInterrupt

    put(docs, range(60, 200))
    with pytest.raises(KeyboardInterrupt):
        library.add([docs], progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        library.compact(progress=interrupt)
    assert max(total for _, total in steps) > 0
    stats = library.stats()
    assert (stats.generation, stats.n_indexed, stats.n_tail) == (1, 60, 140)
    assert sorted(p.name for p in (library.path / "index").iterdir()) == ["000001", "CURRENT"]
    assert_exact(library)
    library.add([docs])
    assert (library.stats().generation, library.stats().n_tail) == (2, 0)
    assert_exact(library)


CHILD = f"""
import functools, os, signal, sys
from pathlib import Path
import edge_rag.index
from edge_rag.errors import EdgeRagError
from edge_rag.library import Library, generations
from edge_rag.testing import HashEmbedder
library, docs, how, verb = sys.argv[1:5]
generations.LARGEST_TAIL = 20
edge_rag.index.build_index = functools.partial(edge_rag.index.build_index, graph_from=1)
def kill(*what):
    os.kill(os.getpid(), signal.SIGKILL)
def progress(stage, done, total, detail):
    if how == "in the graph" and stage == "index" and total and done * 2 > total:
        kill()
    if how == "full disk" and stage == "index":
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
if how == "before the rename":
    real = os.fsync
    os.fsync = lambda descriptor: kill() if os.fstat(descriptor).st_size > 10_000 else real(descriptor)
if how == "before CURRENT":
    real = generations._write_durably
    generations._write_durably = lambda path, text: kill() if path.name == "CURRENT" else real(path, text)
if how == "after CURRENT":
    generations.remove_all_but = kill
try:
    with Library.open(Path(library), embedder=HashEmbedder({DIM})) as opened:
        opened.add([docs], progress=progress) if verb == "add" else opened.compact(progress=progress)
except EdgeRagError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("verb", ["add", "compact"])
@pytest.mark.parametrize("how", ["in the graph", "before the rename", "before CURRENT", "after CURRENT"])
def test_a_killed_writer_leaves_an_index_that_is_right(library: Library, tmp_path: Path, how: str, verb: str) -> None:
    docs = put(tmp_path / "docs", range(100))
    library.add([docs])
    put(docs, range(100, 160))
    assert_exact(library)  # this reader stays open
    arguments = [str(a) for a in (library.path, docs, how, verb)]
    child = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert_exact(library)
    with Library.open(library.path, embedder=HashEmbedder(DIM)) as again:
        assert_exact(again)
        if how in ("in the graph", "before the rename"):
            assert again.stats().generation == 1
        again.add([docs])
        again.compact()
        assert (again.stats().n_chunks, again.stats().n_tail) == (160, 0)
        assert_exact(again)
        assert is_sound(again)
    assert len(list((library.path / "index").iterdir())) == 2
    assert not list(library.path.rglob("*.tmp"))


def test_a_full_disk_while_merging_leaves_the_old_generation(library: Library, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    docs = put(tmp_path / "docs", range(100))
    library.add([docs])
    put(docs, range(100, 160))
    library.close()
    arguments = [str(a) for a in (library.path, docs, "full disk", "add")]
    child = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
    assert child.returncode == 3 and "the disk is full" in child.stdout, child.stderr
    with Library.open(library.path, embedder=HashEmbedder(DIM)) as again:
        assert (again.stats().generation, again.stats().n_indexed) == (1, 100)
        assert_exact(again)
        assert is_sound(again)
        again.add([docs])
        assert again.stats().generation == 2
        assert_exact(again)


def test_many_readers_and_a_merging_writer_in_other_processes_do_not_disturb_each_other(
    library: Library, tmp_path: Path
) -> None:
    docs = put(tmp_path / "docs", range(60))
    library.add([docs])
    code = f"""
import sys, time
from pathlib import Path
from edge_rag.library import Library
from edge_rag.testing import HashEmbedder
seen = set()
end = time.monotonic() + float(sys.argv[2])
with Library.open(Path(sys.argv[1]), embedder=HashEmbedder({DIM})) as library:
    while time.monotonic() < end:
        found = library.dense("item5 group5 number5 word5", 3)
        assert found[0].document.endswith("0005.txt"), found
        assert len(found) == 3
        seen.add(library.stats().generation)
print(len(seen))
"""
    readers = [
        subprocess.Popen([sys.executable, "-c", code, str(library.path), "2.5"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    n = 60
    while any(reader.poll() is None for reader in readers):
        n += 25
        library.add([put(docs, range(n - 25, n))])
    printed = [reader.communicate()[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    assert all(int(n_generations) > 1 for n_generations in printed)
    assert library.stats().generation > 2
    assert_exact(library)


def test_a_copy_of_a_library_on_a_read_only_disk_uses_its_index(library: Library, tmp_path: Path) -> None:
    library.add([put(tmp_path / "docs", range(60))])
    library.close()
    shutil.copytree(library.path, tmp_path / "copy")
    for path in sorted((tmp_path / "copy").rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with Library.open(tmp_path / "copy", embedder=HashEmbedder(DIM)) as copy:
        assert_exact(copy)
        assert copy._generation is not None
    assert not [f for f in diagnose(tmp_path / "copy", embedder=HashEmbedder(DIM)) if f.severity == "error"]


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e6, float("nan"), float("inf")])
def test_an_embedder_whose_vectors_are_none_is_refused_before_anything_is_stored(tmp_path: Path, value: float) -> None:
    class Broken(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            return np.full((len(texts), DIM), value, dtype=np.float32)

    with Library.open(tmp_path / "lib", create=True, embedder=Broken(DIM)) as library:
        with pytest.raises(ModelError, match="vectors that are no vectors"):
            library.add([put(tmp_path / "docs", range(30))])
        assert library.stats().n_chunks == 0
