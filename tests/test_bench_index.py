"""`bench index` really runs, small; what it measures is not judged, but that it judges rightly is."""

import itertools
import json
import os
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from index_contestants import Careless, Doomed
from typer.testing import CliRunner

from edge_rag.cli.commands import app
from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation import plot
from edge_rag.evaluation.bench import (
    speed_index,
    speed_index_damage,
    speed_index_data,
    speed_index_figures,
    speed_index_files,
    speed_index_search,
)
from edge_rag.evaluation.bench.speed_index_systems import EdgeRag, Hnswlib
from edge_rag.index import NativeIndex

ROWS, DIM = 1200, 32


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of few small vectors, not of length one, as float16."""
    folder = tmp_path_factory.mktemp("vectors")
    random = np.random.default_rng(5)
    np.save(folder / "base.f16.npy", random.standard_normal((ROWS, DIM)).astype(np.float16))
    np.save(folder / "queries.f16.npy", random.standard_normal((20, DIM)).astype(np.float16))
    return folder


@pytest.fixture(scope="module")
def vectors(source: Path, tmp_path_factory: pytest.TempPathFactory) -> speed_index_data.VectorSet:
    return speed_index_data.prepare(tmp_path_factory.mktemp("set"), source, rows=None, generated=None)


# ---- vectors and recall


def test_vectors_have_length_one_and_generated_ones_begin_with_the_real(source: Path, tmp_path: Path) -> None:
    real = speed_index_data.prepare(tmp_path / "real", source, rows=100, generated=None)
    more = speed_index_data.prepare(tmp_path / "more", source, rows=100, generated=250)
    assert real.base.shape == (100, DIM)
    assert more.base.shape == (250, DIM)
    assert np.array_equal(more.base[:100], real.base)
    assert np.abs(np.linalg.norm(more.base, axis=1) - 1).max() < 1e-6
    assert len(np.unique(more.base, axis=0)) > 240
    assert "150 made from them" in more.origin
    assert real.fingerprint != more.fingerprint


def test_vectors_are_made_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_RAG_DATA", str(tmp_path / "nowhere"))
    made = speed_index_data.prepare(tmp_path / "a", None, rows=None, generated=1500)
    again = speed_index_data.prepare(tmp_path / "b", None, rows=None, generated=1500)
    assert "1,500 made vectors" in made.origin
    assert np.array_equal(made.base, again.base)
    assert (made.queries @ made.base.T).max() < 0.99  # no query is a row


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no base"),
        ({"base.npy": np.ones((9, 4))}, "no queries"),
        ({"base.npy": np.ones((9, 4)), "queries.npy": np.ones((9, 5))}, "must be"),
        ({"base.npy": np.ones(9), "queries.npy": np.ones((9, 5))}, "must be"),
        ({"base.npy": np.ones((0, 4)), "queries.npy": np.ones((9, 4))}, "must be"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path: Path, files: dict[str, object], said: str) -> None:
    for name, array in files.items():
        np.save(tmp_path / name, array)
    with pytest.raises(UsageError, match=said):
        speed_index_data.prepare(tmp_path / "set", tmp_path, rows=None, generated=None)


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.npy").write_bytes(b"not an array")
    with pytest.raises(EdgeRagError, match="cannot be read as vectors"):
        speed_index_data.prepare(tmp_path / "set", tmp_path, rows=None, generated=None)


@pytest.mark.parametrize("generated", [0, speed_index_data.MOST_ROWS + 1])
def test_an_impossible_number_of_generated_rows_is_refused(source: Path, tmp_path: Path, generated: int) -> None:
    with pytest.raises(UsageError, match="--generated"):
        speed_index_data.prepare(tmp_path, source, rows=None, generated=generated)


def test_recall_counts_ties_once_and_nothing_as_nothing() -> None:
    base = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]  # rows 0 and 1 are equal
    truth = speed_index_data.exact(base, np.array([[1.0, 0.5, 0.0, 0.0]], dtype=np.float32), 2)
    assert truth.recall(np.array([[0, 1]])) == 1.0
    assert truth.recall(np.array([[1, 0]])) == 1.0
    assert truth.recall(np.array([[0, 0]])) == 0.5
    assert truth.recall(np.array([[0, 3]])) == 0.5
    assert truth.recall(np.array([[0, -1]])) == 0.5
    assert truth.shortfall(np.array([[0, 1]])) == 0.0
    assert truth.shortfall(np.array([[0, 2]])) == 0.5
    only = speed_index_data.exact(base, truth.queries, 2, np.array([2, 3]))
    assert only.recall(np.array([[2, 3]])) == 1.0
    assert speed_index_data.exact(base, truth.queries, 10, np.array([2])).k == 1


def test_exact_neighbours_are_those_of_a_full_sort(vectors: speed_index_data.VectorSet) -> None:
    scores = vectors.queries @ vectors.base.T
    rows = np.argsort(-scores, axis=1)[:, :10]
    truth = speed_index_data.exact(vectors.base, vectors.queries, 10)
    assert truth.recall(rows) == 1.0
    assert truth.recall(np.argsort(-scores, axis=1)[:, 5:15]) == 0.5


def test_a_curve_gives_the_time_between_two_ef_and_none_beyond_its_end() -> None:
    curve = speed_index_search.Curve((10, 20), (0.9, 1.0), ((1e-5, 4e-5), (4e-5, 16e-5)))
    assert curve.seconds_at(0.95) == pytest.approx([2e-5, 8e-5])  # half way on a logarithmic scale
    assert curve.seconds_at(0.8) == pytest.approx([1e-5, 4e-5])
    assert curve.ef_at(0.95) == 15
    assert speed_index_search.Curve((10,), (0.9,), ((1e-5,),)).seconds_at(0.95) == []


# ---- damage


def test_damage_is_of_every_kind_and_the_same_each_time(tmp_path: Path) -> None:
    file = tmp_path / "index"
    file.write_bytes(bytes(range(256)) * 100)
    chosen = speed_index_damage.damages(file, Careless(DIM), [4096, 8192])
    assert chosen == speed_index_damage.damages(file, Careless(DIM), [4096, 8192])
    assert len(chosen) == speed_index_damage.N_COPIES
    cuts = {damage.at for damage in chosen if damage.put is None}
    assert {0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 25599} == cuts
    wrapping = struct.pack("<Q", 2**61 + 1)
    assert any(damage.put == wrapping for damage in chosen)
    for damage in chosen:
        copy = tmp_path / "copy"
        copy.write_bytes(file.read_bytes())
        damage.do(copy)
        if damage.kind == "one bit flipped":
            changed = np.frombuffer(copy.read_bytes(), np.uint8) ^ np.frombuffer(file.read_bytes(), np.uint8)
            assert np.unpackbits(changed).sum() == 1
        assert copy.stat().st_size == (damage.at if damage.put is None else 25600)


@pytest.mark.skipif(not hasattr(speed_index_damage.signal, "SIGKILL"), reason="signals of POSIX")
def test_each_outcome_is_told_apart(
    vectors: speed_index_data.VectorSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = {
        "right answer": speed_index_damage.Damage("other byte", 100, b"x"),
        "wrong answer": speed_index_damage.Damage("first byte", 0, b"b"),
        "crash": speed_index_damage.Damage("first byte", 0, b"\x00"),
        "hang": speed_index_damage.Damage("first byte", 0, b"\xff"),
        "error": speed_index_damage.Damage("cut", 0),
    }
    monkeypatch.setattr(speed_index_damage, "damages", lambda *_: list(todo.values()))
    monkeypatch.setattr(speed_index_damage, "TIMEOUT_S", 2.0)
    folder = tmp_path / "careless"
    folder.mkdir()
    Careless(DIM).build(vectors.base, folder, 1)
    found = speed_index_damage.survey(vectors, Careless, folder, [], None)
    assert [damaged.outcome for damaged in found] == list(todo)
    assert found[2].detail == "SIGSEGV"
    assert found[4].detail == "ValueError: nothing in it"
    assert [child.name for child in tmp_path.iterdir()] == ["careless"]  # the copies are gone
    by_name = {figure.name: figure for figure in speed_index_figures.of_damage(found)}
    assert by_name["crash: careless"].value == 1


def test_section_edges_are_those_of_the_file(vectors: speed_index_data.VectorSet, tmp_path: Path) -> None:
    EdgeRag(DIM).build(vectors.base, tmp_path, 1)
    edges = speed_index.section_edges(tmp_path / "index")
    assert edges == sorted(set(edges))
    assert edges[-1] == (tmp_path / "index").stat().st_size
    assert all(edge % 4096 == 0 for edge in edges)
    with NativeIndex.open(tmp_path / "index") as index:
        assert len(edges) > 5
        assert index.info().size_bytes == edges[-1]


# ---- processes


def test_a_contestant_that_dies_is_left_out_with_a_line(vectors: speed_index_data.VectorSet, tmp_path: Path) -> None:
    bench = speed_index.Bench(vectors, tmp_path, 1, 1, [Doomed], None, None)
    assert bench.folders([Doomed]) == {}
    assert "doomed is left out" in bench.left_out["doomed"]
    assert bench.build(Doomed) is None


def test_what_a_peer_has_built_is_used_again_for_the_same_vectors_only(
    vectors: speed_index_data.VectorSet, source: Path, tmp_path: Path
) -> None:
    speed_index.Bench(vectors, tmp_path, 1, 1, [Careless], None, None).folders([Careless])
    again = speed_index.Bench(vectors, tmp_path, 1, 1, [Careless], None, None)
    earlier = again.earlier(Careless, ROWS)
    assert earlier is not None
    assert earlier.size == 5000
    others = speed_index_data.prepare(tmp_path / "others", source, rows=None, generated=ROWS + 1)
    assert speed_index.Bench(others, tmp_path, 1, 1, [Careless], None, None).earlier(Careless, ROWS) is None


def test_a_process_of_its_own_has_its_threads_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with speed_index_files.process_of(1) as worker:
        assert worker.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7"


# ---- reports


def test_every_part_reports(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_index_damage, "N_COPIES", 100)
    reports = speed_index.measure(
        speed_index.PARTS, source=source, peers=[], rounds=1, threads=1, thorough=True, out=tmp_path, command="edge-rag"
    )
    assert len(reports) == len(speed_index.PARTS)
    values = {figure.name: figure for report in reports for figure in report.figures}
    assert values["recall@10 with default settings: edge_rag"].value > 90
    assert values["wrong answer: edge_rag"].value == 0
    assert values["error: edge_rag"].value + values["right answer: edge_rag"].value == 100
    assert values["12 rows allowed (1.00%), results that came back: edge_rag"].value == 100
    assert values["1,200 rows: edge_rag, scan"].value > 0
    assert values["full build of the same rows: edge_rag"].value > 0
    assert values["open and first answer, file in the cache: edge_rag"].value > 0
    assert values["size of the file: edge_rag"].value > 0
    for name in ("index-speed.svg", "index-scale.svg"):
        ElementTree.parse(tmp_path / name)
    for name in ("index-speed.json", "index-scale.json", "index-damage.json"):
        json.loads((tmp_path / name).read_text())


def test_hnswlib_is_measured_beside_ours(source: Path) -> None:
    pytest.importorskip("hnswlib", reason="needs the [hnswlib] extra")
    parts = ["speed", "filters", "update"]
    reports = speed_index.measure(parts, source=source, peers=["hnswlib"], rounds=1, threads=1, command="edge-rag")
    values = {figure.name: figure for report in reports for figure in report.figures}
    assert values[f"recall 0.95, batch, ours is faster by: {Hnswlib.name}"].target == "at least 5"
    assert values[f"add one, remove one, search: {Hnswlib.name}"].value > 0
    assert values[f"1,200 rows allowed (100.00%), recall: {Hnswlib.name}"].value > 0.9


def test_an_absent_peer_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_index, "is_installed", lambda system: system.package == "faiss")
    chosen, absent = speed_index._chosen(["faiss", "svs"])
    assert {system.package for system in chosen} == {"faiss"}
    assert absent == ["svs is not installed, and left out"]


def test_the_crossover_lies_between_two_sizes() -> None:
    def size(n_rows: int, scan: float, graph: float) -> speed_index_search.Scaled:
        seconds = {"edge_rag, scan": (scan,), "edge_rag, graph": (graph,)}
        return speed_index_search.Scaled(n_rows, seconds, 1.0, 0.0)

    sizes = [size(1000, 1.0, 2.0), size(4000, 4.0, 2.0)]
    assert speed_index_figures.crossover(sizes) == pytest.approx(2000)
    assert speed_index_figures.crossover(sizes[:1]) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--part", "spead"], "there is no part 'spead'"),
        (["--peers", "hnswlip"], "there is no peer 'hnswlip'"),
        (["--rows", "5"], "5 rows say nothing"),
        (["--rows", "-5"], "--rows is -5"),
    ],
)
def test_wrong_usage_is_one_line(source: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["-q", "bench", "index", "--vectors", str(source), *arguments])
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def test_the_command_prints_what_json_says(source: Path) -> None:
    arguments = ["-q", "bench", "index", "--vectors", str(source), "--part", "scale", "--peers", "", "--rounds", "1"]
    reports = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    table = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    names = [figure["name"].rpartition(": ")[0] for figure in reports[0]["figures"]]
    assert "1,200 rows, recall@10" in names
    assert all(f"| {name}" in table for name in names if not name.startswith("rows from which"))  # chance decides it
    assert "| | edge_rag, as it chooses | edge_rag, scan | edge_rag, graph |" in table


# ---- plots


def drawn(*series: plot.Series, log: bool = False) -> ElementTree.Element:
    return ElementTree.fromstring(plot.line_plot("a < b", plot.Axis("x", log), plot.Axis("y", log), series))


def texts(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text")]


def test_a_plot_names_its_lines_and_its_axes() -> None:
    picture = drawn(plot.Series("ours", [(1, 10), (2, 20)]), plot.Series("theirs & co", [(1, 5), (2, 19.9)]))
    assert {"a < b", "x", "y", "ours", "theirs & co"} <= set(texts(picture))
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_names_at_the_right_do_not_touch() -> None:
    picture = drawn(*(plot.Series(f"line {n}", [(1, 1), (2, 1 + n / 1000)]) for n in range(8)))
    heights = sorted(
        float(text.get("y") or 0)
        for text in picture.iter("{http://www.w3.org/2000/svg}text")
        if (text.text or "").startswith("line")
    )
    assert all(after - before >= plot.LINE_HEIGHT - 0.2 for before, after in itertools.pairwise(heights))
    assert heights[-1] <= plot.HEIGHT


def test_a_logarithmic_axis_has_round_ticks_and_equal_steps() -> None:
    picture = drawn(plot.Series("line", [(1, 1), (10, 1000), (100, 1e6)]), log=True)
    assert {"1", "10", "100", "1k", "100k", "1M"} <= set(texts(picture))
    [line] = picture.iter("{http://www.w3.org/2000/svg}polyline")
    places = [tuple(map(float, point.split(","))) for point in (line.get("points") or "").split()]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.2)


def test_error_bars_span_their_ranges_and_a_plot_of_nothing_is_a_plot() -> None:
    picture = drawn(plot.Series("line", [(1, 2), (2, 3)], [(1, 4), (2, 5)]))
    bars = [path.get("d") or "" for path in picture.iter("{http://www.w3.org/2000/svg}path")]
    bottom, top = plot.HEIGHT - plot.BOTTOM - plot.INSET, plot.TOP + plot.INSET
    assert any(f" {bottom:.1f}V" in bar for bar in bars)
    assert any(f"V{top:.1f}" in bar for bar in bars)
    assert "line" not in texts(drawn(plot.Series("line", [])))
