"""The index file's life: opened whole or inside another file, read-only, evicted, damaged, killed half way, on a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_data import blocks_of, clustered, make, run_python, runnable_kernels, unit_rows

from edge_rag.errors import IntegrityError
from edge_rag.index import NativeIndex, build_index, simd_kernel


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """3,000 rows of 96 dimensions with a graph: (path, ids, queries)."""
    vectors, queries = clustered(3000, 96, 30)
    path = tmp_path_factory.mktemp("index") / "big.idx"
    build_index(path, blocks_of(np.arange(3000), vectors), 96, graph_from=1)
    return path, np.arange(3000), queries


def answers(index, queries):
    return [part.tobytes() for exact in (True, False) for part in index.search(queries, 10, exact=exact)]


# ---- opening


def test_info_tells_what_is_open(big):
    with NativeIndex.open(big[0]) as index:
        info = index.info()
    assert (info.path, info.n_rows, info.dim, info.metric, info.kernel) == (big[0], 3000, 96, "cosine", simd_kernel())
    assert info.size_bytes == big[0].stat().st_size
    assert 3000 * 48 < info.hot_bytes < info.size_bytes - 3000 * 96 + 4096
    assert 3000 < info.n_links <= 3000 * info.max_links


def test_a_closed_index_says_so(big):
    index = NativeIndex.open(big[0])
    ids = index.ids
    index.close()
    index.close()
    for act in (lambda: index.search(big[2], 1), lambda: index.vectors([0]), index.verify):
        with pytest.raises(ValueError, match="is closed"):
            act()
    assert np.array_equal(ids, big[1])  # what was handed out stays valid


@pytest.mark.parametrize("check", ["header", "search", "all", None])
@pytest.mark.parametrize("preload", [True, False])
def test_every_way_to_open_gives_the_same_answers(big, check, preload):
    with NativeIndex.open(big[0]) as index:
        expected = answers(index, big[2])
    with NativeIndex.open(big[0], check=check, preload=preload) as index:
        assert answers(index, big[2]) == expected
        index.verify()


@pytest.mark.parametrize("offset", [0, 64, 4096, 4096 + 64, 1 << 20, (1 << 16) - 64])
def test_an_index_inside_a_bundle_is_searched_where_it_lies(tmp_path, big, offset):
    whole = big[0].read_bytes()
    (tmp_path / "bundle").write_bytes(os.urandom(offset) + whole + os.urandom(777))
    with NativeIndex.open(big[0]) as index:
        expected = answers(index, big[2])
    for preload in (True, False):
        with NativeIndex.open(
            tmp_path / "bundle", offset=offset, size=len(whole), preload=preload, check="all"
        ) as index:
            assert answers(index, big[2]) == expected
            assert index.info().size_bytes == len(whole)
    (tmp_path / "bundle").write_bytes(os.urandom(offset) + whole)
    with NativeIndex.open(tmp_path / "bundle", offset=offset) as index:
        assert len(index) == 3000


def test_a_wrong_place_in_a_bundle_is_refused(tmp_path, big):
    whole = big[0].read_bytes()
    (tmp_path / "bundle").write_bytes(bytes(4096) + whole)
    for offset in (1, 32, 4095, -64):
        with pytest.raises(ValueError, match="multiple of 64"):
            NativeIndex.open(tmp_path / "bundle", offset=offset, size=len(whole))
    for offset, size in ((4096, len(whole) + 1), (1 << 30, None), (4096, 0), (4096, -5), (len(whole) + 4096, None)):
        with pytest.raises(IntegrityError, match="the file ends at byte"):
            NativeIndex.open(tmp_path / "bundle", offset=offset, size=size)
    for offset, size in ((0, None), (4096 + 64, None), (4096, len(whole) - 64), (0, len(whole))):
        with pytest.raises(IntegrityError):
            NativeIndex.open(tmp_path / "bundle", offset=offset, size=size)


def test_an_unknown_check_is_refused(big):
    with pytest.raises(ValueError, match="check must be one of header, search, all"):
        NativeIndex.open(big[0], check="some")


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let go of the name of an open file")
def test_an_open_index_outlives_its_name(tmp_path, big):
    shutil.copy(big[0], tmp_path / "x.idx")
    with NativeIndex.open(tmp_path / "x.idx", preload=False) as index:
        make(tmp_path / "x.idx", 3, 96)
        (tmp_path / "x.idx").unlink()
        with NativeIndex.open(big[0]) as same:
            assert answers(index, big[2]) == answers(same, big[2])


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="only Linux can be told to forget a file")
@pytest.mark.parametrize("preload", [True, False])
def test_an_evicted_file_gives_the_same_answers(tmp_path, big, preload):
    shutil.copy(big[0], tmp_path / "x.idx")
    with NativeIndex.open(big[0]) as index:
        expected = answers(index, big[2])
    with (tmp_path / "x.idx").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with NativeIndex.open(tmp_path / "x.idx", preload=preload) as index:
        assert answers(index, big[2]) == expected


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork() beside numpy's threads, from 3.12 on
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_read_only_file_of_another_user_opens(big):
    folder = Path("/tmp") / f"edge-rag-test-{os.getpid()}"  # the folders of pytest are private to this user
    folder.mkdir(mode=0o755)
    try:
        shutil.copy(big[0], folder / "x.idx")
        (folder / "x.idx").chmod(0o444)
        folder.chmod(0o555)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setuid(65534)
                with NativeIndex.open(folder / "x.idx") as index:
                    status = 0 if index.search(big[2], 5, threads=1)[0].shape == (30, 5) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        shutil.rmtree(folder)


def test_an_index_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        NativeIndex.open(tmp_path / "none.idx")
    with pytest.raises(OSError):
        NativeIndex.open(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what memory is a process's own")
def test_searching_takes_little_memory_of_its_own(big):
    code = """
import sys
import numpy as np
from edge_rag.index import NativeIndex
def own():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0])
queries = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)
queries @ queries.T
before = own()
index = NativeIndex.open(sys.argv[1])
for query in queries:
    index.search(query[None], 10, exact=False)
    index.search(query[None], 10, exact=True)
print(own() - before)
"""
    assert int(run_python(code, big[0], OPENBLAS_NUM_THREADS="1").stdout) < 2048


# ---- damage


def opens(path, **options):
    """Whether the file opens; if not, it must be for an IntegrityError that names the file and how to mend it."""
    try:
        NativeIndex.open(path, **options).close()
    except IntegrityError as error:
        assert str(path) in str(error)
        assert "edge-rag doctor --repair" in error.mend
        return False
    return True


def test_every_flipped_bit_of_the_header_is_seen(tmp_path):
    path = tmp_path / "x.idx"
    make(path, 20, 70, graph_from=1)
    whole = path.read_bytes()
    assert opens(path)
    for bit in [*range(8 * 300), *range(8 * 300, 8 * 4096, 97)]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert not opens(path, check="header", preload=False), bit


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_flipped_bit_anywhere_is_seen(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("index") / "x.idx"
    make(path, 200, 70, graph_from=1)
    query = unit_rows(1, 70)
    with NativeIndex.open(path) as index:
        expected = index.search(query, 200)
    damaged = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    assert not opens(path, check="all")
    if opens(path):  # then it is a residual, and seen when it is read
        with NativeIndex.open(path) as index:
            with pytest.raises(IntegrityError):
                index.verify()
            try:
                found = index.search(query, 200)
            except IntegrityError:
                return
            assert np.array_equal(found, expected)  # it was in the padding


def test_a_damaged_file_does_not_become_the_base_of_a_sound_one(tmp_path):
    path = tmp_path / "x.idx"
    make(path, 200, 70)
    damaged = bytearray(path.read_bytes())
    damaged[-4096] ^= 1
    path.write_bytes(damaged)
    with NativeIndex.open(path) as index, pytest.raises(IntegrityError):
        build_index(tmp_path / "y.idx", [], 70, base=index)
    assert [p.name for p in tmp_path.iterdir()] == ["x.idx"]


def test_a_file_cut_short_or_grown_is_refused(tmp_path):
    path = tmp_path / "x.idx"
    make(path, 2000, 70, graph_from=1)
    whole = path.read_bytes()
    page_edges = range(0, len(whole), 4096)  # all section edges among them
    for size in sorted({1, 8, 48, 144, 4095, len(whole) - 1, *page_edges}):
        path.write_bytes(whole[:size])
        assert not opens(path), size
    for tail in (b"\0", bytes(4096)):
        path.write_bytes(whole + tail)
        assert not opens(path)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"EDGEIDX\n", b"SQLite format 3\0" + bytes(8192), bytes(8192), b"EDGEIDX\n" + bytes(8192)]
)
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "x.idx").write_bytes(content)
    assert not opens(tmp_path / "x.idx")


def test_a_lazy_open_still_checks_the_header(tmp_path):
    path = tmp_path / "x.idx"
    make(path, 20, 70)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[-4096] ^= 1
    path.write_bytes(damaged)
    assert opens(path, preload=False)
    assert not opens(path, preload=False, check="all")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_an_unchecked_search_of_a_damaged_file_ends_and_stays_inside(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("index") / "x.idx"
    make(path, 300, 20, graph_from=1)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 30))):
        damaged[data.draw(st.integers(4096, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    allow = np.arange(300) % 3 == 0
    with NativeIndex.open(path, check="header", preload=False) as index:
        for exact in (True, False):
            assert index.search(unit_rows(3, 20), 10, exact=exact)[0].shape == (3, 10)
            assert index.search(unit_rows(3, 20), 10, exact=exact, allow=allow)[0].shape == (3, 10)


# ---- a build that does not come to its end


def test_a_source_that_fails_leaves_nothing_behind(tmp_path):
    def failing():
        yield [1], unit_rows(1, 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "x.idx", failing(), 8)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        build_index(tmp_path / "no" / "x.idx", [], 8)


BUILD = """
import os, resource, signal, sys
import numpy as np
from edge_rag.index import NativeIndex, build, build_index
path, base, how = sys.argv[1:4]
vectors = np.random.default_rng(1).standard_normal((1500, 40)).astype(np.float32)
def kill(*what):
    os.kill(os.getpid(), signal.SIGKILL)
progress = None
if how == "kill in the middle":
    progress = lambda stage, done, total, detail: done > total // 2 and kill()
elif how == "kill before the rename":
    os.fsync = kill
elif how == "full disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
index = NativeIndex.open(base) if base else None
build_index(path, [(np.arange(9000, 10500), vectors)], 40, base=index, graph_from=1, progress=progress)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("how", ["kill in the middle", "kill before the rename"])
@pytest.mark.parametrize("merge", [False, True])
def test_a_killed_build_leaves_the_old_file_and_the_next_build_clears_up(tmp_path, how, merge):
    path = tmp_path / "x[1].idx"
    make(path, 500, 40, graph_from=1)
    before = path.read_bytes()
    done = run_python(BUILD, path, path if merge else "", how, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.read_bytes() == before and opens(path, check="all")
    left = [p for p in tmp_path.iterdir() if p != path]
    assert len(left) == 1 and left[0].name.endswith(".tmp")
    (tmp_path / "another.idx.0123.tmp").touch()
    make(path, 10, 40)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["another.idx.0123.tmp", path.name]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    pytest.importorskip("resource")
    path = tmp_path / "x.idx"
    make(path, 500, 40, graph_from=1)
    before = path.read_bytes()
    done = run_python(BUILD, path, path, "full disk", check=False)
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.idx"]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not rename onto an open file")
def test_two_builds_of_one_file_do_not_hurt_each_other(tmp_path):
    path = tmp_path / "x.idx"
    commands = [[sys.executable, "-c", BUILD, str(path), "", ""] for _ in range(3)]
    for child in [subprocess.Popen(command) for command in commands]:
        assert child.wait() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.idx"] and opens(path, check="all")


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_a_build_holds_little_more_than_the_file_that_it_makes(tmp_path):
    code = """
import json, sys
import numpy as np
from edge_rag.index import build_index
def blocks():
    random = np.random.default_rng(0)
    for start in range(0, 40_000, 1000):
        yield np.arange(start, start + 1000), random.standard_normal((1000, 192), dtype=np.float32)
def field(name):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
for block in blocks():
    pass
build_index(sys.argv[1] + "0", [(np.arange(10), np.ones((10, 192), np.float32))], 192)
before = field("VmRSS")
build_index(sys.argv[1], blocks(), 192, ef_build=20, max_links=24, threads=2)
print(json.dumps(field("VmHWM") - before))
"""
    grown = json.loads(run_python(code, tmp_path / "x.idx", OPENBLAS_NUM_THREADS="1").stdout)
    block, file = 1000 * 192 * 4, (tmp_path / "x.idx").stat().st_size
    assert grown < 1.5 * file + 3 * block  # two blocks as they change over, and what the checks of one need


# ---- the switch for the kernel


@pytest.mark.parametrize(("name", "expected"), [("scalar", "scalar"), ("", "best"), (None, "best")])
def test_the_environment_chooses_the_kernel(name, expected):
    best = runnable_kernels()[-1]
    printed = run_python("from edge_rag.index import simd_kernel; print(simd_kernel())", EDGE_RAG_SIMD=name)
    assert printed.stdout.strip() == (best if expected == "best" else expected)


def test_an_impossible_kernel_is_refused_with_a_way_out():
    code = """
from edge_rag.errors import UsageError
try:
    from edge_rag.index import simd_kernel
except UsageError as error:
    print(error)
"""
    assert (
        "EDGE_RAG_SIMD=mmx: no such kernel on this processor; unset EDGE_RAG_SIMD"
        in run_python(code, EDGE_RAG_SIMD="mmx").stdout
    )


def test_an_index_opened_without_reading_can_be_grown(tmp_path):
    vectors = np.random.default_rng(5).standard_normal((300, 16)).astype(np.float32)
    build_index(tmp_path / "a.idx", [(np.arange(200), vectors[:200])], 16)
    with NativeIndex.open(tmp_path / "a.idx", preload=False) as base:
        build_index(tmp_path / "b.idx", [(np.arange(200, 300), vectors[200:])], 16, base=base)
    with NativeIndex.open(tmp_path / "b.idx") as grown:
        assert (grown.search(vectors, 1)[0][:, 0] == np.arange(300)).all()
