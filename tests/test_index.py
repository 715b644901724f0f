"""The vector index: both implementations, the file between them, and what happens to bad input."""

import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_rag import _native
from edge_rag.errors import IntegrityError
from edge_rag.index import FlatIndex, ScanIndex, simd_kernel, write_index
from edge_rag.interfaces import VectorIndex


def unit_rows(n, dim, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def blocks_of(ids, vectors, size=1000):
    return ((ids[i : i + size], vectors[i : i + size]) for i in range(0, len(ids), size))


def make(path, n, dim, seed=0):
    """Write n rows with ids 5, 8, 11 ... and return the ids and the vectors."""
    ids, vectors = np.arange(n) * 3 + 5, unit_rows(n, dim, seed)
    write_index(path, blocks_of(ids, vectors), dim)
    return ids, vectors


def runnable_kernels():
    names = []
    for name in ("scalar", "avx2", "avx512vnni", "neon", "dotprod"):
        try:
            _native.simd_select(name)
        except ValueError:
            continue
        names.append(name)
    return names


@pytest.fixture
def restore_kernel():
    kernel = simd_kernel()
    yield
    _native.simd_select(kernel)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """3,000 rows of 96 dimensions that lie in clusters, as texts do: (path, ids, vectors, queries)."""
    random = np.random.default_rng(7)
    centres = random.standard_normal((60, 96))
    vectors = centres[random.integers(60, size=3000)] + 0.7 * random.standard_normal((3000, 96))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    queries = vectors[::100] + 0.05 * random.standard_normal((30, 96)).astype(np.float32)
    path = tmp_path_factory.mktemp("index") / "big.idx"
    ids = np.cumsum(random.integers(1, 9, size=3000))
    write_index(path, blocks_of(ids, vectors, 700), 96)
    return path, ids, vectors, queries


# ---- finding


def test_both_indexes_are_vector_indexes(big):
    path, ids, vectors, _ = big
    indexes: list[VectorIndex] = [ScanIndex.open(path), FlatIndex(ids, vectors)]
    for index in indexes:
        assert (index.dim, len(index), index.ids.dtype) == (96, 3000, np.int64)
        assert np.array_equal(index.ids, ids)
        index.close()


def test_scan_finds_what_the_exact_search_finds(big):
    path, ids, vectors, queries = big
    with ScanIndex.open(path) as index:
        found, scores = index.search(queries, 10)
    exact = queries @ vectors.T
    tenth = np.sort(exact, axis=1)[:, -10]
    of_found = np.take_along_axis(exact, np.searchsorted(ids, found), axis=1)
    assert (of_found >= tenth[:, None] - 2e-6).mean() >= 0.98
    assert (of_found >= tenth[:, None] - 2e-3).all()
    assert (np.diff(scores, axis=1) <= 0).all()


@given(
    n=st.integers(1, 40),
    dim=st.integers(1, 200),
    k=st.integers(1, 50),
    log_size=st.floats(-6, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_scores_are_within_the_rounding_of_the_rows(tmp_path_factory, n, dim, k, log_size, seed):
    path = tmp_path_factory.mktemp("index") / "x.idx"
    ids, vectors = np.arange(n), unit_rows(n, dim, seed) * np.float32(10**log_size)
    queries = unit_rows(3, dim, seed + 1000)
    write_index(path, [(ids, vectors)], dim)
    with ScanIndex.open(path) as index:
        found, scores = index.search(queries, k)
    assert found.shape == scores.shape == (3, min(k, n))
    exact = np.take_along_axis(queries @ vectors.T, found, axis=1)
    peaks = np.abs(vectors).max(axis=1)[found]
    row_rounding = np.abs(queries).sum(axis=1)[:, None] * peaks / 254
    query_rounding = np.abs(queries).max(axis=1)[:, None] * np.abs(vectors).sum(axis=1)[found] / 32639
    assert (np.abs(scores - exact) <= 1.01 * (row_rounding + query_rounding)).all()


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 63, 64, 65, 127, 384, 767, 768, 4096])
def test_every_kernel_gives_the_same_bits(tmp_path, dim, restore_kernel):
    rows = unit_rows(40, dim, dim)
    rows[3] = -1  # all codes -127
    rows[4] = np.where(np.arange(dim) % 2, 1, -1)
    queries = np.concatenate([unit_rows(3, dim, 1), rows[3:5], -rows[3:4]])
    write_index(tmp_path / "x.idx", [(np.arange(40), rows)], dim)
    with ScanIndex.open(tmp_path / "x.idx") as index:
        _native.simd_select("scalar")
        assert simd_kernel() == "scalar"
        expected = index.search(queries, 40)
        for name in runnable_kernels():
            _native.simd_select(name)
            ids, scores = index.search(queries, 40)
            assert np.array_equal(ids, expected[0]), name
            assert scores.tobytes() == expected[1].tobytes(), name


def test_threads_do_not_change_the_result(big):
    path, _, _, queries = big
    with ScanIndex.open(path) as index:
        expected = index.search(queries, 20)
        for threads in (2, 3, 16):
            ids, scores = np.empty((30, 20), np.int64), np.empty((30, 20), np.float32)
            _native.search(index._index, queries, 30, 20, None, threads, ids, scores)
            assert np.array_equal(ids, expected[0])
            assert np.array_equal(scores, expected[1])


def test_equal_rows_come_in_the_order_of_their_ids(tmp_path):
    vectors = np.ones((300, 8), dtype=np.float32)
    write_index(tmp_path / "x.idx", [(np.arange(300), vectors)], 8)
    with ScanIndex.open(tmp_path / "x.idx") as index:
        assert index.search(vectors[:1], 7)[0].tolist() == [list(range(7))]
    assert FlatIndex(np.arange(300), vectors).search(vectors[:1], 7)[0].tolist() == [list(range(7))]


@pytest.mark.parametrize("share", [0.0, 0.0004, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_a_filter_leaves_exactly_the_rows_that_it_allows(big, share):
    path, ids, vectors, queries = big
    allow = np.random.default_rng(3).random(3000) < share
    n_allowed = int(allow.sum())
    with ScanIndex.open(path) as index:
        everything, all_scores = index.search(queries, 3000)
        for k in (1, 10, 3000):
            found, scores = index.search(queries, k, allow=allow)
            assert found.shape == scores.shape == (30, min(k, n_allowed))
            for q in range(len(queries)):  # the same as filtering afterwards
                kept = np.isin(everything[q], ids[allow])
                assert np.array_equal(found[q], everything[q][kept][:k])
                assert np.array_equal(scores[q], all_scores[q][kept][:k])
    exact_ids, _ = FlatIndex(ids, vectors).search(queries, 10, allow=allow)
    assert exact_ids.shape == (30, min(10, n_allowed))
    assert np.isin(exact_ids, ids[allow]).all()


def test_a_query_of_zeros_scores_zero_everywhere(big):
    path, ids, _, _ = big
    with ScanIndex.open(path) as index:
        found, scores = index.search(np.zeros((1, 96), np.float32), 3)
    assert found.tolist() == [ids[:3].tolist()]
    assert scores.tolist() == [[0, 0, 0]]


def test_an_empty_index_finds_nothing(tmp_path):
    write_index(tmp_path / "x.idx", [], 64)
    with ScanIndex.open(tmp_path / "x.idx") as index:
        assert (len(index), index.dim, index.ids.tolist()) == (0, 64, [])
        ids, scores = index.search(unit_rows(2, 64), 5, allow=np.zeros(0, bool))
        assert ids.shape == scores.shape == (2, 0)
    assert FlatIndex([], np.empty((0, 64), np.float32)).search(unit_rows(2, 64), 5)[0].shape == (2, 0)


def test_no_queries_give_no_rows(big):
    with ScanIndex.open(big[0]) as index:
        assert index.search(np.empty((0, 96), np.float32), 5)[0].shape == (0, 5)


@pytest.mark.parametrize(
    "convert", [lambda q: q.astype(np.float64), np.asfortranarray, lambda q: np.repeat(q, 2, 0)[::2]]
)
def test_queries_of_another_layout_are_converted(big, convert):
    path, ids, vectors, queries = big
    for index in (ScanIndex.open(path), FlatIndex(ids, vectors)):
        assert np.array_equal(index.search(convert(queries), 5)[0], index.search(queries, 5)[0])
        index.close()


@pytest.mark.parametrize(
    ("queries", "k", "allow", "said"),
    [
        (np.ones((1, 95), np.float32), 1, None, "queries must be"),
        (np.ones(96, np.float32), 1, None, "queries must be"),
        (np.ones((1, 96), np.int64), 1, None, "queries must be"),
        (np.full((1, 96), np.nan, np.float32), 1, None, "NaN"),
        (np.full((1, 96), np.inf, np.float32), 1, None, "infinity"),
        (np.full((1, 96), 1e300), 1, None, "infinity"),
        (np.ones((1, 96), np.float32), 0, None, "k must be"),
        (np.ones((1, 96), np.float32), -1, None, "k must be"),
        (np.ones((1, 96), np.float32), 1, np.ones(2999, bool), "allow must be"),
        (np.ones((1, 96), np.float32), 1, np.ones(3000, np.int8), "allow must be"),
    ],
)
def test_a_wrong_argument_is_named(big, queries, k, allow, said):
    path, ids, vectors, _ = big
    with ScanIndex.open(path) as scan:
        for index in (scan, FlatIndex(ids, vectors)):
            with pytest.raises(ValueError, match=said):
                index.search(queries, k, allow=allow)


def test_a_huge_k_is_cut_to_the_rows(big):
    with ScanIndex.open(big[0]) as index:
        assert index.search(big[3][:1], 1 << 62)[0].shape == (1, 3000)


def test_threads_may_search_and_close_at_once(big):
    path, _, _, queries = big
    index = ScanIndex.open(path)
    expected, problems = index.search(queries, 10)[0], []

    def search_until_closed():
        while True:
            try:
                found = index.search(queries, 10)[0]
            except ValueError as error:
                if "is closed" not in str(error):
                    problems.append(error)
                return
            if not np.array_equal(found, expected):
                problems.append(found)

    threads = [threading.Thread(target=search_until_closed, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.1)
    index.close()
    for thread in threads:
        thread.join(10)
    assert not problems
    assert not any(thread.is_alive() for thread in threads)


# ---- writing


def test_blocks_of_any_size_give_the_same_file(tmp_path):
    ids, vectors = np.arange(777) * 2, unit_rows(777, 70)
    for size in (777, 100, 1):
        write_index(tmp_path / f"{size}.idx", blocks_of(ids, vectors, size), 70)
    whole = (tmp_path / "777.idx").read_bytes()
    assert (tmp_path / "100.idx").read_bytes() == whole
    assert (tmp_path / "1.idx").read_bytes() == whole


def test_codes_are_the_rounded_rows(tmp_path):
    _, vectors = make(tmp_path / "x.idx", 50, 70)
    data = (tmp_path / "x.idx").read_bytes()
    codes = np.frombuffer(data, np.int8, 50 * 128, 4096).reshape(50, 128)
    peaks = np.abs(vectors).max(axis=1, keepdims=True)
    assert np.array_equal(codes[:, :70], np.rint(vectors * (np.float32(127) / peaks)))
    assert not codes[:, 70:].any()
    assert np.array_equal(np.frombuffer(data, np.float32, 50, 4096 + 8192), peaks[:, 0] / np.float32(127))
    assert np.array_equal(np.frombuffer(data, np.int64, 50, 4096 + 8192 + 4096), np.arange(50) * 3 + 5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_vectors_of_another_type_or_layout_are_converted(tmp_path, dtype):
    vectors = unit_rows(20, 64).astype(dtype)
    write_index(tmp_path / "a.idx", [(list(range(20)), vectors.tolist())], 64)
    write_index(tmp_path / "b.idx", [(np.arange(20, dtype=np.int32), np.asfortranarray(vectors))], 64)
    assert (tmp_path / "a.idx").read_bytes() == (tmp_path / "b.idx").read_bytes()


def with_value(value):
    vectors = unit_rows(4, 8)
    vectors[2, 5] = value
    return vectors


@pytest.mark.parametrize(
    ("ids", "vectors", "said"),
    [
        ([1, 2, 3, 4], with_value(np.nan), "id 3 holds NaN"),
        ([1, 2, 3, 4], with_value(np.inf), "id 3 holds NaN or infinity"),
        ([1, 2, 3, 4], with_value(-np.inf), "id 3 holds NaN or infinity"),
        ([1, 2, 3, 4], np.full((4, 8), 1e300), "id 1 holds NaN or infinity"),
        ([1, 2, 3, 4], np.zeros((4, 8), np.float32), "id 1 is zero"),
        ([1, 2, 3, 4], np.full((4, 8), 1e-40, np.float32), "id 1 is zero"),
        ([1, 2, 3, 4], unit_rows(4, 9), "vectors must be"),
        ([1, 2, 3, 4], unit_rows(4, 8).ravel(), "vectors must be"),
        ([1, 2, 3, 4], np.ones((4, 8), np.int32), "vectors must be"),
        ([1, 2, 3], unit_rows(4, 8), "3 ids for 4 vectors"),
        ([1, 2, 2, 4], unit_rows(4, 8), "2 comes after 2"),
        ([1, 3, 2, 4], unit_rows(4, 8), "2 comes after 3"),
        ([0, 2, 3, 4], unit_rows(4, 8), "0 comes after 0"),
        ([1.0, 2.0, 3.0, 4.0], unit_rows(4, 8), "ids must be"),
        ([[1, 2, 3, 4]], unit_rows(4, 8), "ids must be"),
        (np.array([1, 2, 3, 1 << 63], np.uint64), unit_rows(4, 8), "does not fit"),
    ],
)
def test_a_bad_block_is_named_and_leaves_the_old_file(tmp_path, ids, vectors, said):
    make(tmp_path / "x.idx", 3, 8)
    before = (tmp_path / "x.idx").read_bytes()
    with pytest.raises(ValueError, match=said):
        write_index(tmp_path / "x.idx", [([0], unit_rows(1, 8)), (ids, vectors)], 8)
    assert [p.name for p in tmp_path.iterdir()] == ["x.idx"]
    assert (tmp_path / "x.idx").read_bytes() == before


@pytest.mark.parametrize("dim", [0, -1, 4097])
def test_a_dimension_out_of_range_is_refused(tmp_path, dim):
    with pytest.raises(ValueError, match="dim must be 1 to 4096"):
        write_index(tmp_path / "x.idx", [], dim)
    assert not list(tmp_path.iterdir())


def test_a_source_that_fails_leaves_nothing_behind(tmp_path):
    def failing():
        yield [1], unit_rows(1, 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path / "x.idx", failing(), 8)
    assert not list(tmp_path.iterdir())


def test_flat_index_refuses_what_a_file_refuses():
    with pytest.raises(ValueError, match="comes after"):
        FlatIndex([2, 1], unit_rows(2, 8))
    with pytest.raises(ValueError, match="vectors must be"):
        FlatIndex([1, 2], np.empty((2, 0), np.float32))


def test_writing_holds_one_block_at_a_time(tmp_path):
    rows = unit_rows(1000, 384)
    tracemalloc.start()
    try:
        write_index(tmp_path / "x.idx", ((np.arange(1000) + 1000 * i, rows.copy()) for i in range(30)), 384)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3.5 * rows.nbytes  # two blocks as they change over, and one block's codes
    with ScanIndex.open(tmp_path / "x.idx") as index:
        assert len(index) == 30_000


# ---- opening


def test_info_tells_what_is_open(big):
    with ScanIndex.open(big[0]) as index:
        info = index.info()
    assert (info.n_rows, info.dim, info.kernel) == (3000, 96, simd_kernel())
    assert info.size_bytes == big[0].stat().st_size


def test_a_closed_index_says_so(big):
    index = ScanIndex.open(big[0])
    ids = index.ids
    index.close()
    index.close()
    with pytest.raises(ValueError, match="is closed"):
        index.search(big[3], 1)
    assert np.array_equal(ids, big[1])  # what was handed out stays valid


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let go of the name of an open file")
def test_an_open_index_outlives_its_name(tmp_path, big):
    shutil.copy(big[0], tmp_path / "x.idx")
    with ScanIndex.open(tmp_path / "x.idx") as index:
        expected = index.search(big[3], 5)[0]
        make(tmp_path / "x.idx", 3, 96)
        (tmp_path / "x.idx").unlink()
        assert np.array_equal(index.search(big[3], 5)[0], expected)


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
                with ScanIndex.open(folder / "x.idx") as index:
                    status = 0 if index.search(big[3], 5)[0].shape == (30, 5) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        shutil.rmtree(folder)


def test_an_index_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        ScanIndex.open(tmp_path / "none.idx")


def opens(path):
    """Whether the file opens; if not, it must be for an IntegrityError that names the file and how to mend it."""
    try:
        ScanIndex.open(path).close()
    except IntegrityError as error:
        assert str(path) in str(error)
        assert "edge-rag doctor --repair" in error.mend
        return False
    return True


def test_every_flipped_bit_of_the_header_is_seen(tmp_path):
    path = tmp_path / "x.idx"
    make(path, 20, 70)
    whole = path.read_bytes()
    assert opens(path)
    for bit in [*range(8 * 160), *range(8 * 160, 8 * 4096, 97)]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert not opens(path), bit


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_flipped_bit_anywhere_is_seen(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("index") / "x.idx"
    make(path, 200, 70)
    damaged = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    assert not opens(path)


def test_a_file_cut_short_or_grown_is_refused(tmp_path):
    path = tmp_path / "x.idx"
    make(path, 2000, 70)
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


def test_an_unverified_open_still_checks_the_header(tmp_path):
    path = tmp_path / "x.idx"
    make(path, 20, 70)
    damaged = bytearray(path.read_bytes())
    damaged[4096] ^= 1  # a code
    path.write_bytes(damaged)
    ScanIndex.open(path, verify=False).close()
    damaged[24] ^= 1  # the count
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError):
        ScanIndex.open(path, verify=False)


# ---- the switch for the kernel


@pytest.mark.parametrize(("name", "expected"), [("scalar", "scalar"), ("", "best"), (None, "best")])
def test_the_environment_chooses_the_kernel(name, expected, restore_kernel):
    _native.simd_select(None)
    best = simd_kernel()
    printed = run_python("from edge_rag.index import simd_kernel; print(simd_kernel())", EDGE_RAG_SIMD=name)
    assert printed.stdout.strip() == (best if expected == "best" else expected)


def test_an_impossible_kernel_is_refused_with_a_way_out():
    code = """
from edge_rag.errors import UsageError
try:
    import edge_rag.index
except UsageError as error:
    print(error)
"""
    assert (
        "EDGE_RAG_SIMD=mmx: no such kernel on this processor; unset EDGE_RAG_SIMD"
        in run_python(code, EDGE_RAG_SIMD="mmx").stdout
    )


def run_python(code, **environment):
    env = {k: v for k, v in (os.environ | environment).items() if v is not None}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
