"""The native index: what it finds, for every metric and many dimensions, and how files are built and merged."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_data import METRICS, blocks_of, clustered, make, recall, rows_of, run_python, runnable_kernels, unit_rows

from edge_rag import _native
from edge_rag.index import FlatIndex, HnswlibIndex, LiveIndex, NativeIndex, build_index, simd_kernel
from edge_rag.interfaces import VectorIndex

DIMS = (1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 384, 768, 1000, 4096)


@pytest.fixture
def restore_kernel():
    kernel = simd_kernel()
    yield
    _native.simd_select(kernel)


@pytest.fixture(scope="module", params=METRICS)
def big(request, tmp_path_factory):
    """3,000 rows of 96 dimensions with a graph: (path, ids, vectors, queries, metric)."""
    metric = request.param
    vectors, queries = clustered(3000, 96, 30)
    ids = np.cumsum(np.random.default_rng(3).integers(1, 9, size=3000)) - 2000  # some are negative
    path = tmp_path_factory.mktemp("index") / f"{metric}.idx"
    build_index(path, blocks_of(ids, vectors, 700), 96, metric=metric, graph_from=1)
    return path, ids, vectors, queries, metric


# ---- finding


def test_all_indexes_are_vector_indexes(big):
    path, ids, vectors, _, metric = big
    indexes: list[VectorIndex] = [NativeIndex.open(path), FlatIndex(ids, vectors, metric)]
    indexes.append(LiveIndex(NativeIndex.open(path)))
    for index in indexes:
        assert (index.dim, len(index), index.ids.dtype, index.metric) == (96, 3000, np.int64, metric)
        assert np.array_equal(index.ids, ids)
        index.close()
    assert issubclass(HnswlibIndex, object) and {"search", "close", "ids", "dim"} <= set(dir(HnswlibIndex))


def test_reading_every_row_finds_what_the_exact_search_finds(big):
    path, ids, vectors, queries, metric = big
    with NativeIndex.open(path) as index:
        found, scores = index.search(queries, 10, exact=True)
    assert recall(found, ids, vectors, queries, 10, metric) >= 0.98
    assert recall(found, ids, vectors, queries, 10, metric, slack=1e-3) == 1
    exact = FlatIndex(ids, vectors, metric).search(queries, 10)[1]
    assert np.allclose(scores, exact, atol=2e-3 * np.abs(exact).max())
    assert (np.diff(scores, axis=1) <= 0).all()


def test_the_graph_finds_nearly_all_and_more_with_a_larger_ef(big):
    path, ids, vectors, queries, metric = big
    with NativeIndex.open(path) as index:
        assert index.info().n_links > 0
        by_ef = [recall(index.search(queries, 10, exact=False, ef=ef)[0], ids, vectors, queries, 10, metric)
                 for ef in (10, 100, 1000)]  # fmt: skip
        usual = recall(index.search(queries, 10, exact=False)[0], ids, vectors, queries, 10, metric)
    assert by_ef[0] <= by_ef[1] + 0.01 <= by_ef[2] + 0.02
    assert usual >= 0.95
    assert by_ef[2] >= 0.98


@given(
    dim=st.sampled_from(DIMS),
    metric=st.sampled_from(METRICS),
    n=st.integers(1, 120),
    k=st.integers(1, 150),
    graph=st.booleans(),
    log_size=st.floats(-6, 6),
    offset=st.sampled_from([0.0, 0.0, 3.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=120, deadline=None)
def test_any_dimension_and_metric_is_searched_as_exactly_as_it_is_stored(
    tmp_path_factory, dim, metric, n, k, graph, log_size, offset, seed
):
    path = tmp_path_factory.mktemp("index") / "x.idx"
    size = np.float32(10**log_size)
    ids, vectors = np.arange(n) * 2, (rows_of(n, dim, seed) + np.float32(offset)) * size
    queries = (rows_of(3, dim, seed + 1000) + np.float32(offset)) * size
    build_index(path, [(ids, vectors)], dim, metric=metric, graph_from=1 if graph else 1 << 20, threads=1)
    exact = FlatIndex(ids, vectors, metric)
    with NativeIndex.open(path, check="all") as index:
        for exactly in (None, True, False):
            found, scores = index.search(queries, k, exact=exactly)
            assert found.shape == scores.shape == (3, min(k, n))
            assert recall(found, ids, vectors, queries, k, metric, slack=4e-3) == 1
            order = np.argsort(found, axis=1)
            true_ids, true = exact.search(queries, n)
            for q in range(3):
                at = {int(i): float(s) for i, s in zip(true_ids[q], true[q], strict=True)}
                wanted = np.array([at[int(i)] for i in found[q]])
                room = 4e-3 * np.abs(true).max() + (1e-6 if metric == "cosine" else 0)
                assert (np.abs(scores[q] - wanted) <= room).all()
            assert order.shape == found.shape


@pytest.mark.parametrize("dim", DIMS)
def test_every_kernel_builds_the_same_bytes_and_finds_the_same_bits(tmp_path, dim, restore_kernel):
    rows = unit_rows(60, dim, dim)
    rows[3] = -1
    rows[4] = np.where(np.arange(dim) % 2, 1, -1)
    queries = np.concatenate([unit_rows(3, dim, 1), rows[3:5], -rows[3:4]])
    for metric in METRICS:
        files, answers = set(), set()
        for name in runnable_kernels():
            _native.simd_select(name)
            assert simd_kernel() == name
            build_index(tmp_path / "x.idx", [(np.arange(60), rows)], dim, metric=metric, graph_from=1)
            files.add((tmp_path / "x.idx").read_bytes())
            with NativeIndex.open(tmp_path / "x.idx") as index:
                for exact in (True, False):
                    ids, scores = index.search(queries, 20, exact=exact)
                    answers.add((exact, ids.tobytes(), scores.tobytes()))
        assert (len(files), len(answers)) == (1, 2), metric


def test_threads_and_batches_do_not_change_the_result(big):
    path, _, _, queries, _ = big
    many = np.tile(queries, (8, 1))
    with NativeIndex.open(path) as index:
        for exact in (True, False):
            ids, scores = index.search(many, 20, exact=exact, threads=1)
            for threads in (2, 3, 16):
                again = index.search(many, 20, exact=exact, threads=threads)
                assert np.array_equal(again[0], ids) and np.array_equal(again[1], scores)
            for q in (0, 7, 29):
                alone = index.search(queries[q : q + 1], 20, exact=exact, threads=3)
                assert np.array_equal(alone[0][0], ids[q]) and np.array_equal(alone[1][0], scores[q])


@pytest.mark.parametrize("graph_from", [1, 1 << 20])
@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_come_in_the_order_of_their_ids(tmp_path, metric, graph_from):
    vectors = np.ones((300, 8), dtype=np.float32)
    build_index(tmp_path / "x.idx", [(np.arange(300), vectors)], 8, metric=metric, graph_from=graph_from)
    with NativeIndex.open(tmp_path / "x.idx") as index:
        assert index.search(vectors[:1], 7, exact=True)[0].tolist() == [list(range(7))]
        found = index.search(vectors[:1], 300, exact=False)[0]
        assert sorted(found[0].tolist()) == list(range(300))
    assert FlatIndex(np.arange(300), vectors, metric).search(vectors[:1], 7)[0].tolist() == [list(range(7))]


def test_a_row_that_stands_there_often_hides_no_other(tmp_path):
    vectors, queries = clustered(1500, 32, 20)
    vectors[200:900] = vectors[5]
    ids = np.arange(1500)
    build_index(tmp_path / "x.idx", [(ids, vectors)], 32, graph_from=1)
    with NativeIndex.open(tmp_path / "x.idx") as index:
        found = index.search(queries, 10, exact=False)[0]
    assert recall(found, ids, vectors, queries, 10, slack=1e-3) >= 0.95


@pytest.mark.parametrize("share", [0.0, 0.0004, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_a_filter_never_starves_a_search(big, share):
    path, ids, vectors, queries, metric = big
    allow = np.random.default_rng(3).random(3000) < share
    n_allowed = int(allow.sum())
    with NativeIndex.open(path) as index:
        for k in (1, 10, 3000):
            for exact in (None, True):
                found, scores = index.search(queries, k, allow=allow, exact=exact)
                assert found.shape == scores.shape == (30, min(k, n_allowed))
                least = 0.98 if exact or k == 3000 else 0.95
                assert recall(found, ids, vectors, queries, k, metric, allow, slack=1e-3) >= least
    flat = FlatIndex(ids, vectors, metric).search(queries, 10, allow=allow)[0]
    assert flat.shape == (30, min(10, n_allowed)) and np.isin(flat, ids[allow]).all()


@pytest.mark.parametrize("row", [0, 7, 1234, 2999])
def test_the_only_allowed_row_is_found(big, row):
    path, ids, _, queries, _ = big
    allow = np.arange(3000) == row
    with NativeIndex.open(path) as index:
        assert (index.search(queries, 5, allow=allow)[0] == ids[row]).all()
        assert (index.search(queries, 5, allow=allow, exact=False, ef=1)[0] == ids[row]).all()


def test_a_filter_of_far_away_rows_is_answered_in_full(big):
    path, ids, vectors, queries, metric = big
    far = FlatIndex(ids, vectors, metric).search(queries[:1], 3000)[0][0, 2900:]
    allow = np.isin(ids, far)
    with NativeIndex.open(path) as index:
        found = index.search(queries[:1], 10, allow=allow)[0]
    assert recall(found, ids, vectors, queries[:1], 10, metric, allow, slack=1e-3) == 1


def test_an_empty_index_finds_nothing(tmp_path):
    for metric in METRICS:
        build_index(tmp_path / "x.idx", [], 64, metric=metric)
        with NativeIndex.open(tmp_path / "x.idx", check="all") as index:
            assert (len(index), index.dim, index.ids.tolist()) == (0, 64, [])
            ids, scores = index.search(unit_rows(2, 64), 5, allow=np.zeros(0, bool))
            assert ids.shape == scores.shape == (2, 0)
    assert FlatIndex([], np.empty((0, 64), np.float32)).search(unit_rows(2, 64), 5)[0].shape == (2, 0)


def test_no_queries_give_no_rows(big):
    with NativeIndex.open(big[0]) as index:
        assert index.search(np.empty((0, 96), np.float32), 5)[0].shape == (0, 5)


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_a_query_and_rows_of_zeros_have_scores_where_length_does_not_matter(tmp_path, metric):
    vectors = rows_of(20, 8)
    vectors[4] = 0
    build_index(tmp_path / "x.idx", [(np.arange(20), vectors)], 8, metric=metric)
    exact = FlatIndex(np.arange(20), vectors, metric).search(np.zeros((1, 8), np.float32), 20)
    with NativeIndex.open(tmp_path / "x.idx") as index:
        found, scores = index.search(np.zeros((1, 8), np.float32), 20)
        if metric == "l2":
            assert found[0, 0] == 4
        assert np.allclose(scores, exact[1], atol=1e-2)
        assert np.allclose(index.vectors([4]), 0, atol=1e-2)


@pytest.mark.parametrize(
    "convert",
    [lambda q: q.astype(np.float64), np.asfortranarray, lambda q: np.repeat(q, 2, 0)[::2], lambda q: q.tolist()],
)
def test_queries_of_another_layout_are_converted(big, convert):
    path, ids, vectors, queries, metric = big
    for index in (NativeIndex.open(path), FlatIndex(ids, vectors, metric)):
        assert np.array_equal(index.search(convert(queries), 5)[0], index.search(queries, 5)[0])
        index.close()


@pytest.mark.parametrize(
    ("queries", "k", "allow", "said"),
    [
        (np.ones((1, 95), np.float32), 1, None, "queries must be"),
        (np.ones(96, np.float32), 1, None, "queries must be"),
        (np.ones((1, 96), np.int64), 1, None, "queries must be"),
        (np.full((1, 96), np.nan, np.float32), 1, None, "query 0 holds NaN"),
        (np.full((1, 96), np.inf, np.float32), 1, None, "infinity"),
        (np.full((1, 96), 1e300), 1, None, "infinity"),
        (np.full((1, 96), 1e30), 1, None, "beyond"),
        (np.ones((1, 96), np.float32), 0, None, "k must be"),
        (np.ones((1, 96), np.float32), -1, None, "k must be"),
        (np.ones((1, 96), np.float32), 1, np.ones(2999, bool), "allow must be"),
        (np.ones((1, 96), np.float32), 1, np.ones(3000, np.int8), "allow must be"),
    ],
)
def test_a_wrong_argument_is_named(big, queries, k, allow, said):
    path, ids, vectors, _, metric = big
    with NativeIndex.open(path) as opened, LiveIndex(NativeIndex.open(path)) as live:
        for index in (opened, live, FlatIndex(ids, vectors, metric)):
            with pytest.raises(ValueError, match=said):
                index.search(queries, k, allow=allow)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ef": 0}, "ef must"),
        ({"ef": 1 << 20}, "ef must"),
        ({"threads": 0}, "threads must"),
        ({"threads": 65}, "threads"),
    ],
)
def test_a_wrong_option_of_a_search_is_named(big, options, said):
    with NativeIndex.open(big[0]) as index, pytest.raises(ValueError, match=said):
        index.search(big[3], 5, **options)


def test_a_query_without_direction_is_refused_where_direction_counts(big):
    path, ids, vectors, _, metric = big
    if metric != "cosine":
        pytest.skip("only the cosine needs one")
    with NativeIndex.open(path) as opened:
        for index in (opened, FlatIndex(ids, vectors, metric)):
            with pytest.raises(ValueError, match="query 0 is zero"):
                index.search(np.zeros((1, 96), np.float32), 3)


def test_a_huge_k_is_cut_to_the_rows(big):
    with NativeIndex.open(big[0]) as index:
        found = index.search(big[3][:1], 1 << 62)[0]
    assert sorted(found[0].tolist()) == big[1].tolist()


def test_threads_may_search_and_close_at_once(big):
    path, _, _, queries, _ = big
    index = NativeIndex.open(path)
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


def test_vectors_come_back_nearly_as_they_were(big):
    path, _, vectors, _, metric = big
    wanted = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors
    with NativeIndex.open(path) as index:
        rows = np.array([2999, 0, 17, 17])
        assert np.abs(index.vectors(rows) - wanted[rows]).max() <= 2e-3 * np.abs(wanted).max()
        if metric == "cosine":
            assert np.allclose(np.linalg.norm(index.vectors(rows), axis=1), 1, atol=1e-5)
        assert index.vectors([]).shape == (0, 96)
        for wrong in ([3000], [-1], [0.5], [[1]]):
            with pytest.raises(ValueError, match="rows must be"):
                index.vectors(wrong)


# ---- building


def test_the_file_depends_neither_on_threads_nor_on_blocks(tmp_path):
    vectors, _ = clustered(2500, 70, 1)
    ids = np.arange(2500) * 2
    for name, size, threads in (("a", 2500, 1), ("b", 100, 3), ("c", 999, 2)):
        build_index(tmp_path / name, blocks_of(ids, vectors, size), 70, graph_from=1, threads=threads)
    whole = (tmp_path / "a").read_bytes()
    assert (tmp_path / "b").read_bytes() == whole
    assert (tmp_path / "c").read_bytes() == whole


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_vectors_of_another_type_or_layout_are_converted(tmp_path, dtype):
    vectors = unit_rows(20, 64).astype(dtype)
    build_index(tmp_path / "a.idx", [(list(range(20)), vectors.tolist())], 64)
    build_index(tmp_path / "b.idx", [(np.arange(20, dtype=np.int32), np.asfortranarray(vectors))], 64)
    build_index(tmp_path / "c.idx", [(np.arange(40)[::2] // 2, np.repeat(vectors, 2, axis=0)[::2])], 64)
    assert (tmp_path / "a.idx").read_bytes() == (tmp_path / "b.idx").read_bytes() == (tmp_path / "c.idx").read_bytes()


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
        ([1, 2, 3, 4], with_value(3e37), "id 3 holds a value beyond"),
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
        build_index(tmp_path / "x.idx", [([0], unit_rows(1, 8)), (ids, vectors)], 8)
    assert [p.name for p in tmp_path.iterdir()] == ["x.idx"]
    assert (tmp_path / "x.idx").read_bytes() == before


def test_the_core_itself_refuses_what_is_no_vector_by_its_id():
    builder = _native.builder(8, 1, 0, 0, 0, 0, 1)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="id 30"):
            _native.builder_add(builder, np.array([10, 20, 30, 40]), with_value(value), 4)
    with pytest.raises(ValueError, match="id 7"):
        _native.builder_add(builder, np.array([7]), np.zeros((1, 8), np.float32), 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dim": 0}, "dim must be 1 to 4096"),
        ({"dim": -1}, "dim must be"),
        ({"dim": 4097}, "dim must be"),
        ({"metric": "manhattan"}, "metric must be one of cosine"),
        ({"max_links": 129}, "max_links must be"),
        ({"ef_build": 0}, "ef_build must be"),
        ({"threads": 0}, "threads must be"),
        ({"seed": -1}, "seed must be"),
        ({"keep": np.ones(3, bool)}, "there is no base"),
    ],
)
def test_a_wrong_option_of_a_build_is_named(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        build_index(tmp_path / "x.idx", [], **({"dim": 8} | options))
    assert not list(tmp_path.iterdir())


def test_the_binding_refuses_buffers_of_the_wrong_size(tmp_path):
    make(tmp_path / "x.idx", 20, 70)
    index = NativeIndex.open(tmp_path / "x.idx")
    handle = index.verified()
    builder = _native.builder(3, 1, 0, 0, 0, 0, 1)
    query, ids, scores = bytes(4 * 70), bytearray(8), bytearray(4)
    for call in (
        lambda: _native.search(handle, query[:-1], 1, 1, 0, 0, 1, None, ids, scores),
        lambda: _native.search(handle, query, 1, 1, 0, 0, 1, bytes(2), ids, scores),
        lambda: _native.search(handle, query, 1, 1, 0, 0, 1, bytes(4), ids, scores),
        lambda: _native.search(handle, query, 1, 2, 0, 0, 1, None, ids, scores),
        lambda: _native.search(handle, query, 1, 0, 0, 0, 1, None, b"", b""),
        lambda: _native.search(handle, query, 1, 1, 0, 3, 1, None, ids, scores),
        lambda: _native.search(handle, query, 1, 1, 0, 0, 0, None, ids, scores),
        lambda: _native.search(handle, query, 1, 1, 0, 0, 1, None, bytes(8), scores),
        lambda: _native.search(handle, query, -1, 1, 0, 0, 1, None, ids, scores),
        lambda: _native.search(handle, query, 1 << 62, 1, 0, 0, 1, None, ids, scores),
        lambda: _native.search(builder, query, 1, 1, 0, 0, 1, None, ids, scores),
        lambda: _native.vectors(handle, bytes(4), 1, bytearray(4 * 69)),
        lambda: _native.vectors(handle, b"\xff" * 4, 1, bytearray(4 * 70)),
        lambda: _native.builder(0, 1, 0, 0, 0, 0, 1),
        lambda: _native.builder(3, 9, 0, 0, 0, 0, 1),
        lambda: _native.builder_add(builder, bytes(8), bytes(11), 1),
        lambda: _native.builder_add(builder, bytes(7), bytes(12), 1),
        lambda: _native.builder_add(builder, bytes(8), bytes(12), -1),
        lambda: _native.builder_take(builder, handle, None),
        lambda: _native.builder_take(_native.builder(70, 1, 0, 0, 0, 0, 1), handle, bytes(2)),
        lambda: _native.info(object()),
        lambda: _native.open(bytes(100), 7),
    ):
        with pytest.raises((ValueError, BufferError, TypeError, _native.IndexFileError)):
            call()


def test_a_finished_builder_is_finished():
    builder = _native.builder(3, 1, 0, 0, 0, 0, 1)
    _native.builder_finish(builder, None, lambda part: None)
    with pytest.raises(ValueError, match="is finished"):
        _native.builder_add(builder, bytes(8), b"\x00\x00\x80\x3f" * 3, 1)
    with pytest.raises(ValueError, match="is finished"):
        _native.builder_finish(builder, None, lambda part: None)


def test_a_builder_is_used_by_one_thread_at_a_time():
    builder = _native.builder(8, 1, 0, 0, 0, 1, 1)
    _native.builder_add(builder, np.arange(50), unit_rows(50, 8), 50)

    def meddle(part):
        with pytest.raises(ValueError, match="is in use"):
            _native.builder_finish(builder, None, print)

    _native.builder_finish(builder, None, meddle)


def test_what_a_callback_raises_stops_the_build_and_comes_through():
    def raises(*anything):
        raise LookupError("enough")

    vectors = unit_rows(3000, 16)
    for progress, write in ((raises, len), (None, raises)):
        builder = _native.builder(16, 1, 0, 0, 0, 1, 2)
        _native.builder_add(builder, np.arange(3000), vectors, 3000)
        with pytest.raises(LookupError, match="enough"):
            _native.builder_finish(builder, progress, write)


def test_progress_goes_up_to_its_end(tmp_path):
    seen = []
    build_index(tmp_path / "x", [(np.arange(3000), unit_rows(3000, 16))], 16, graph_from=1,
                progress=lambda *what: seen.append(what))  # fmt: skip
    assert {stage for stage, *_ in seen} == {"index"}
    done = [step[1] for step in seen]
    assert done == sorted(done) and len(done) > 2
    assert all(step[1] <= step[2] for step in seen) and seen[-1][1] == seen[-1][2] > 0


def test_ctrl_c_stops_a_build_and_leaves_nothing(tmp_path):
    code = """
import os, signal, sys
import numpy as np
from edge_rag.index import build_index
signal.signal(signal.SIGINT, signal.default_int_handler)
def progress(stage, done, total, detail):
    os.kill(os.getpid(), signal.SIGINT)
vectors = np.random.default_rng(0).standard_normal((4000, 32)).astype(np.float32)
try:
    build_index(sys.argv[1], [(np.arange(4000), vectors)], 32, graph_from=1, progress=progress)
except KeyboardInterrupt:
    print("interrupted")
"""
    assert run_python(code, tmp_path / "x.idx").stdout == "interrupted\n"
    assert not list(tmp_path.iterdir())


# ---- merging


@pytest.mark.parametrize(("n_old", "share"), [(2000, 1.0), (2000, 0.9), (2000, 0.1), (2000, 0.0), (1, 1.0), (0, 1.0)])
@pytest.mark.parametrize("metric", METRICS)
def test_a_merge_keeps_what_it_is_told_and_finds_as_well_as_a_new_build(tmp_path, metric, n_old, share):
    vectors, queries = clustered(3000, 48, 30)
    ids = np.arange(3000) * 2
    build_index(tmp_path / "old", blocks_of(ids[:n_old], vectors[:n_old]), 48, metric=metric, graph_from=1)
    keep = np.random.default_rng(5).random(n_old) < share
    with NativeIndex.open(tmp_path / "old") as old:
        later = blocks_of(ids[n_old:], vectors[n_old:], 300)
        build_index(tmp_path / "new", later, 48, metric=metric, graph_from=1, base=old, keep=keep)
        kept_vectors = old.vectors(np.flatnonzero(keep))
    rest = np.concatenate([np.flatnonzero(keep), np.arange(n_old, 3000)])
    with NativeIndex.open(tmp_path / "new", check="all") as new:
        assert np.array_equal(new.ids, ids[rest])
        assert np.allclose(new.vectors(np.arange(int(keep.sum()))), kept_vectors, atol=1e-3 * np.abs(vectors).max())
        for exact, least in ((True, 0.98), (False, 0.95)):
            found = new.search(queries, 10, exact=exact)[0]
            assert recall(found, ids[rest], vectors[rest], queries, 10, metric, slack=1e-3) >= least
    assert (tmp_path / "old").exists()


def test_a_merge_without_changes_gives_back_the_index(tmp_path):
    vectors, queries = clustered(1500, 48, 20)
    build_index(tmp_path / "a", [(np.arange(1500), vectors)], 48, graph_from=1)
    with NativeIndex.open(tmp_path / "a") as a:
        build_index(tmp_path / "b", [], 48, base=a, graph_from=1)
        with NativeIndex.open(tmp_path / "b", check="all") as b:
            assert np.array_equal(b.vectors(np.arange(1500)), a.vectors(np.arange(1500)))
            for exact in (True, False):
                assert np.array_equal(a.search(queries, 10, exact=exact)[0], b.search(queries, 10, exact=exact)[0])


def test_twenty_merges_of_new_and_dead_rows_lose_nothing(tmp_path):
    vectors, queries = clustered(4000, 32, 30)
    ids, alive = np.arange(4000), np.ones(4000, dtype=bool)
    random = np.random.default_rng(11)
    build_index(tmp_path / "0", [(ids[:2000], vectors[:2000])], 32, graph_from=1)
    for step in range(20):
        first, end = 2000 + 100 * step, 2100 + 100 * step
        with NativeIndex.open(tmp_path / f"{step}") as base:
            alive[random.integers(first, size=50)] = False
            keep = alive[base.ids]
            build_index(tmp_path / f"{step + 1}", [(ids[first:end], vectors[first:end])], 32,
                        base=base, keep=keep, graph_from=1)  # fmt: skip
    with NativeIndex.open(tmp_path / "20", check="all") as index:
        assert np.array_equal(index.ids, ids[alive])
        for exact, least in ((True, 0.98), (False, 0.95)):
            found = index.search(queries, 10, exact=exact)[0]
            assert recall(found, ids[alive], vectors[alive], queries, 10, slack=1e-3) >= least


def test_a_merge_does_not_depend_on_threads(tmp_path):
    vectors, _ = clustered(2500, 40, 1)
    ids = np.arange(2500)
    build_index(tmp_path / "old", [(ids[:1500], vectors[:1500])], 40, graph_from=1)
    keep = np.arange(1500) % 7 > 0
    with NativeIndex.open(tmp_path / "old") as old:
        for threads in (1, 3):
            later = [(ids[1500:], vectors[1500:])]
            build_index(tmp_path / f"{threads}", later, 40, base=old, keep=keep, graph_from=1, threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dim": 9}, "base has 8 dimensions"),
        ({"metric": "l2"}, "base has 8 dimensions and the metric cosine"),
        ({"keep": np.ones(19, bool)}, "keep must be"),
        ({"blocks": [([62], unit_rows(1, 8))]}, "62 comes after 62"),
    ],
)
def test_a_wrong_merge_is_named(tmp_path, options, said):
    make(tmp_path / "old", 20, 8)
    with NativeIndex.open(tmp_path / "old") as old, pytest.raises(ValueError, match=said):
        build_index(tmp_path / "new", **({"blocks": [], "dim": 8, "base": old} | options))
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_removed_row_leaves_no_trace_of_its_id(tmp_path):
    ids = np.arange(400)
    ids[399] = 0x1122334455667788
    build_index(tmp_path / "old", [(ids, unit_rows(400, 24))], 24, graph_from=1)
    trace = int(ids[399]).to_bytes(8, "little")
    assert trace in (tmp_path / "old").read_bytes()
    with NativeIndex.open(tmp_path / "old") as old:
        build_index(tmp_path / "new", [], 24, base=old, keep=np.arange(400) < 399, graph_from=1)
    assert trace not in (tmp_path / "new").read_bytes()
