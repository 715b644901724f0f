"""The other indexes behind the same protocol: one that changes, hnswlib's, and the exact one in numpy."""

import itertools
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from index_data import METRICS, blocks_of, clustered, make, recall, rows_of, run_python, unit_rows

from edge_rag.errors import IntegrityError, MissingExtraError
from edge_rag.index import FlatIndex, HnswlibIndex, LiveIndex, NativeIndex, build_index, live

# ---- FlatIndex


@given(
    n=st.integers(1, 60), dim=st.integers(1, 20), k=st.integers(1, 70), metric=st.sampled_from(METRICS),
    seed=st.integers(0, 99), ties=st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_flat_index_is_the_formula_written_out(n, dim, k, metric, seed, ties):
    vectors, queries = rows_of(n, dim, seed), rows_of(2, dim, seed + 500)
    if ties:
        vectors = np.sign(vectors)
    ids, scores = FlatIndex(np.arange(n) * 7, vectors, metric).search(queries, k)
    for q in range(2):
        exact = []
        for i, row in enumerate(vectors.astype(np.float64)):
            query = queries[q].astype(np.float64)
            if metric == "cosine":
                score = query @ row / np.linalg.norm(query) / np.linalg.norm(row)
            else:
                score = query @ row if metric == "inner_product" else -((query - row) ** 2).sum()
            exact.append((-round(score, 4), i * 7))
        exact = sorted(exact)[:k]
        assert np.allclose(scores[q], [-score for score, _ in exact], atol=1e-3)
        assert (np.diff(scores[q]) <= 0).all()
        same = np.diff(scores[q]) == 0
        assert (np.diff(ids[q])[same] > 0).all()


def test_flat_index_gives_the_best_of_many_rows_whatever_their_order():
    scores = np.tile(np.arange(500, dtype=np.float32), 4)
    for k in (1, 3, 100, 1999, 2000):
        found, _ = FlatIndex(np.arange(2000), scores[:, None] + 1).search(np.ones((1, 1), np.float32), k)
        assert found[0].tolist() == sorted(range(2000), key=lambda row: (-scores[row], row))[:k]


def test_flat_index_refuses_what_a_file_refuses():
    with pytest.raises(ValueError, match="comes after"):
        FlatIndex([2, 1], unit_rows(2, 8))
    with pytest.raises(ValueError, match="vectors must be"):
        FlatIndex([1, 2], np.empty((2, 0), np.float32))
    with pytest.raises(ValueError, match="id 1 is zero"):
        FlatIndex([1], np.zeros((1, 8), np.float32), "cosine")
    with pytest.raises(ValueError, match="metric must be"):
        FlatIndex([1], np.ones((1, 8), np.float32), "dot")


# ---- LiveIndex


def vectors_for(ids, dim=12):
    """The vector of an id and a version of it, always the same."""
    return np.stack([np.random.default_rng(abs(int(i)) + 1).standard_normal(dim) for i in ids]).astype(np.float32)


class Changes(RuleBasedStateMachine):
    """Whatever is added, replaced, removed and saved: a LiveIndex finds what a dict of the same rows holds."""

    @initialize(metric=st.sampled_from(METRICS), graph=st.booleans(), n=st.integers(0, 30))
    def start(self, metric, graph, n):
        self.folder = tmp_factory.mktemp("live")
        self.metric, self.options = metric, {"graph_from": 1 if graph else 1000, "threads": 1}
        self.rows = dict(zip(range(n), vectors_for(range(n)), strict=True)) if n else {}
        segment = None
        if n:
            build_index(
                self.folder / "x",
                [(list(self.rows), np.stack([*self.rows.values()]))],
                12,
                metric=metric,
                **self.options,
            )
            segment = NativeIndex.open(self.folder / "x")
        self.index = LiveIndex(segment) if segment else LiveIndex(dim=12, metric=metric)
        self.names = 0

    @rule(ids=st.lists(st.integers(-5, 60), unique=True, max_size=8), version=st.integers(0, 3))
    def add(self, ids, version):
        vectors = vectors_for([i + 100 * version for i in ids]) if ids else np.empty((0, 12), np.float32)
        self.index.add(ids, vectors)
        self.rows |= dict(zip(ids, vectors, strict=True))

    @rule(ids=st.lists(st.integers(-5, 60), max_size=8))
    def remove(self, ids):
        assert self.index.remove(np.array(ids, dtype=np.int64)) == len(self.rows.keys() & set(ids))
        for i in ids:
            self.rows.pop(i, None)

    @rule(in_place=st.booleans())
    def save(self, in_place):
        self.names += not in_place
        self.index.save(self.folder / f"{self.names}", **self.options)
        assert (self.index.n_tail, self.index.n_dead) == (0, 0)

    @rule(data=st.data(), k=st.integers(1, 70))
    def filter(self, data, k):
        allow = np.array(data.draw(st.lists(st.booleans(), min_size=len(self.rows), max_size=len(self.rows))), bool)
        self.compare(k, allow)

    @invariant()
    def finds_what_is_there(self):
        assert len(self.index) == len(self.rows)
        assert self.index.ids.tolist() == sorted(self.rows)
        self.compare(5, None)

    def compare(self, k, allow):
        queries = rows_of(2, 12, 77)
        found, scores = self.index.search(queries, k, allow=allow)
        ids = sorted(self.rows)
        vectors = np.stack([self.rows[i] for i in ids]) if ids else np.empty((0, 12), np.float32)
        assert found.shape == scores.shape == (2, min(k, len(ids) if allow is None else int(allow.sum())))
        if found.size:
            assert recall(found, np.array(ids), vectors, queries, k, self.metric, allow, slack=1e-2) == 1
            assert (np.diff(scores, axis=1) <= 0).all()

    def teardown(self):
        if hasattr(self, "index"):
            self.index.close()


tmp_factory: pytest.TempPathFactory


def test_a_live_index_follows_any_changes(tmp_path_factory):
    global tmp_factory
    tmp_factory = tmp_path_factory
    run = Changes.TestCase
    run.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
    run().runTest()


@pytest.fixture
def segment(tmp_path):
    ids, vectors = make(tmp_path / "x.idx", 2000, 24, graph_from=1)
    return NativeIndex.open(tmp_path / "x.idx"), ids, vectors


def test_a_live_index_searches_segment_and_tail_as_one(segment):
    index, ids, vectors = segment
    with LiveIndex(index) as changing:
        later = unit_rows(300, 24, 9)
        changing.add(np.arange(300) + 10_000, later)
        assert changing.remove(ids[::10]) == 200 and changing.remove(ids[::10]) == 0
        assert (len(changing), changing.n_tail, changing.n_dead) == (2100, 300, 200)
        alive = np.ones(2000, bool)
        alive[::10] = False
        all_ids = np.concatenate([ids[alive], np.arange(300) + 10_000])
        all_vectors = np.concatenate([vectors[alive], later])
        queries = unit_rows(40, 24, 5)
        for options in ({}, {"exact": True}, {"exact": False, "ef": 300}, {"threads": 3}):
            found = changing.search(queries, 10, **options)[0]
            assert recall(found, all_ids, all_vectors, queries, 10, slack=1e-3) >= 0.95
        allow = np.random.default_rng(1).random(2100) < 0.01
        found = changing.search(queries, 10, allow=allow)[0]
        assert recall(found, all_ids, all_vectors, queries, 10, allow=allow, slack=1e-3) == 1


def test_a_merge_that_fails_leaves_the_live_index_as_it_was(segment, tmp_path):
    index, ids, _ = segment

    def fails(*what):
        raise LookupError("stop")

    with LiveIndex(index) as changing:
        changing.add([100_000], unit_rows(1, 24))
        changing.remove(ids[:5])
        before = changing.search(unit_rows(3, 24, 4), 20)
        for path in (tmp_path / "y.idx", tmp_path / "x.idx"):
            with pytest.raises(LookupError):
                changing.save(path, progress=fails, graph_from=1)
            assert np.array_equal(changing.search(unit_rows(3, 24, 4), 20), before)
        assert (changing.n_tail, changing.n_dead, len(changing)) == (1, 5, 1996)
        assert [p.name for p in tmp_path.iterdir()] == ["x.idx"]


def test_a_live_index_is_due_when_its_tail_or_its_dead_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "LARGEST_TAIL", 50)
    make(tmp_path / "x.idx", 1000, 8)
    with LiveIndex(NativeIndex.open(tmp_path / "x.idx")) as index:
        index.add(np.arange(50) + 10_000, unit_rows(50, 8))
        assert not index.is_due()
        index.add([20_000], unit_rows(1, 8))
        assert index.is_due()
        index.save(tmp_path / "y.idx")
        assert not index.is_due() and len(index) == 1051
        index.remove(index.ids[:90])
        assert not index.is_due()
        index.remove(index.ids[:20])
        assert index.is_due()


def test_threads_search_whole_states_while_another_changes_the_index(segment, tmp_path):
    """Each step turns three rows alike; a search must never see one of them turned and another not."""
    index, _, _ = segment
    changing = LiveIndex(index)
    marks = np.eye(24, dtype=np.float32)[:3] * 50
    ids = np.arange(3) + 100_000
    changing.add(ids, marks)
    stop, wrong, seen = threading.Event(), [], set()

    def search():
        try:
            while not stop.is_set():
                found, scores = changing.search(marks, 1)
                if found[:, 0].tolist() != ids.tolist() or np.ptp(scores) > 2e-3:
                    wrong.append((found, scores))
                seen.add(round(float(scores[0, 0]), 2))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        latest = time.monotonic() + 60  # on a busy machine those that search may be slow to begin
        for step in itertools.count(1):
            if step >= 200 and (len(seen) > 1 or time.monotonic() > latest):
                break
            turned = marks.copy()
            turned[:, 5] = 4 * (step % 10)
            changing.add(ids, turned)
            if step < 200 and step % 50 == 0:
                changing.save(tmp_path / f"{step}.idx")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    changing.close()
    assert not wrong and len(seen) > 1


def test_an_update_is_quick_however_large_the_tail(segment):
    index, ids, vectors = segment
    with LiveIndex(index) as changing:
        for step in range(2000):
            changing.add([200_000 + step], vectors[step : step + 1])
            changing.remove([ids[step]])
        assert (len(changing), changing.n_tail, changing.n_dead) == (2000, 2000, 2000)
        assert changing.search(vectors[7:8], 1)[0].tolist() == [[200_007]]


def test_a_live_index_names_what_is_wrong(segment):
    index, _, _ = segment
    with pytest.raises(ValueError, match="dim and metric are needed"):
        LiveIndex()
    with pytest.raises(ValueError, match="dim must be 1 to 4096"):
        LiveIndex(dim=4097, metric="l2")
    with LiveIndex(index) as changing:
        for ids, vectors, said in (
            ([1], unit_rows(1, 23), "vectors must be"),
            ([1, 1], unit_rows(2, 24), "1 comes after 1"),
            ([1, 2], unit_rows(3, 24), "2 ids for 3 vectors"),
            ([1], np.zeros((1, 24), np.float32), "id 1 is zero"),
            ([1.5], unit_rows(1, 24), "ids must be"),
        ):
            with pytest.raises(ValueError, match=said):
                changing.add(ids, vectors)
        assert len(changing) == 2000 and changing.n_tail == 0
    for act in (lambda: changing.search(unit_rows(1, 24), 1), lambda: changing.add([1], unit_rows(1, 24))):
        with pytest.raises(ValueError, match="is closed"):
            act()


# ---- HnswlibIndex


@pytest.fixture
def hnswlib():
    return pytest.importorskip("hnswlib", reason="needs the [hnswlib] extra")


@pytest.mark.parametrize("metric", METRICS)
def test_hnswlib_finds_what_the_exact_search_finds(hnswlib, tmp_path, metric):
    vectors, queries = clustered(1500, 24, 20)
    ids = np.arange(1500) * 3 - 700
    index = HnswlibIndex.build(blocks_of(ids, vectors, 400), 24, metric=metric, threads=2)
    index.save(tmp_path / "x.hnsw")
    with HnswlibIndex.open(tmp_path / "x.hnsw") as again:
        for opened in (index, again):
            assert (opened.dim, opened.metric, len(opened)) == (24, metric, 1500)
            assert np.array_equal(opened.ids, ids)
            for options in ({}, {"exact": True}, {"exact": False, "ef": 200}):
                found, scores = opened.search(queries, 10, **options)
                assert recall(found, ids, vectors, queries, 10, metric) >= 0.95
                exact = FlatIndex(ids, vectors, metric).search(queries, 10)[1]
                assert np.allclose(scores[:, 0], exact[:, 0], rtol=1e-3, atol=1e-4)
            assert opened.search(queries, 5000)[0].shape == (20, 1500)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.03, 0.3, 0.9, 1.0])
def test_a_filter_never_starves_hnswlib(hnswlib, share, monkeypatch):
    monkeypatch.setattr("edge_rag.index.hnsw._FEW", 20)
    vectors, queries = clustered(1500, 24, 10)
    ids = np.arange(1500)
    index = HnswlibIndex.build([(ids, vectors)], 24, threads=2)
    allow = np.random.default_rng(2).random(1500) < share
    for k in (1, 10, 1500):
        found = index.search(queries, k, allow=allow)[0]
        assert recall(found, ids, vectors, queries, k, allow=allow) >= 0.95


def test_an_empty_hnswlib_index_finds_nothing(hnswlib, tmp_path):
    index = HnswlibIndex.build([], 8)
    index.save(tmp_path / "x")
    assert HnswlibIndex.open(tmp_path / "x").search(unit_rows(2, 8), 3)[0].shape == (2, 0)


def test_a_damaged_hnswlib_file_is_refused(hnswlib, tmp_path):
    HnswlibIndex.build([(np.arange(50), unit_rows(50, 8))], 8).save(tmp_path / "x")
    for name in ("x", "x.rows"):
        whole = (tmp_path / name).read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 40)):
            damaged = bytearray(whole)
            damaged[at] ^= 1
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(IntegrityError, match="not the index that was saved"):
                HnswlibIndex.open(tmp_path / "x")
        (tmp_path / name).write_bytes(whole)


def test_a_full_disk_is_not_taken_for_a_saved_hnswlib_index(hnswlib, tmp_path):
    pytest.importorskip("resource")
    code = """
import resource, signal, sys
import numpy as np
from edge_rag.index import HnswlibIndex
index = HnswlibIndex.build([(np.arange(500), np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32))], 8)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    index.save(sys.argv[1])
except OSError as error:
    print(error.strerror)
"""
    assert run_python(code, tmp_path / "x").stdout == "No space left on device\n"
    assert not list(tmp_path.iterdir())


def test_without_hnswlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-rag\[hnswlib\]'"):
        HnswlibIndex.build([], 8)
