"""Index files of released formats keep opening, and keep giving the answers they gave.

`python -m tests.test_index_format` writes the fixture of the present format, once, before that format is released.
"""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from edge_rag.index import NativeIndex, build_index
from tests.index_data import clustered

FIXTURES = Path(__file__).parent / "fixtures"
N_ROWS, DIM, K = 60, 20, 5


def answers(path):
    """What the file says, as JSON can hold it: float32 survives the way through a decimal number."""
    queries = clustered(N_ROWS, DIM, 8)[1]
    allow = np.arange(N_ROWS) % 7 == 0
    with NativeIndex.open(path) as index:
        found = [
            index.search(queries, K, exact=True),
            index.search(queries, K, exact=False, ef=N_ROWS),
            index.search(queries, K, allow=allow),
        ]
        return {
            "ids": [ids.tolist() for ids, _ in found],
            "scores": [scores.tolist() for _, scores in found],
            "vectors": index.vectors([0, 33, N_ROWS - 1]).tolist(),
            "metric": index.metric,
            "all_ids": index.ids.tolist(),
        }


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("index-v*.idx.gz")))
def test_a_file_of_a_released_format_gives_the_answers_that_it_gave(tmp_path, name):
    content = gzip.decompress((FIXTURES / name).read_bytes())
    version = int(name.split("-")[1].removeprefix("v"))
    assert struct.unpack_from("<I", content, 8) == (version,)
    (tmp_path / "x.idx").write_bytes(content)
    expected = json.loads((FIXTURES / name).with_name(name.replace(".idx.gz", ".json")).read_text(encoding="utf-8"))
    got = answers(tmp_path / "x.idx")
    for key in ("ids", "metric", "all_ids"):
        assert got[key] == expected[key]
    for key in ("scores", "vectors"):
        assert np.allclose(got[key], expected[key], rtol=0, atol=1e-6)
    with NativeIndex.open(tmp_path / "x.idx", check="all") as index:
        assert index.info().n_links > N_ROWS


def test_there_is_a_file_of_the_present_format(tmp_path):
    build_index(tmp_path / "x.idx", [(np.arange(3), np.eye(3, dtype=np.float32))], 3)
    (version,) = struct.unpack_from("<I", (tmp_path / "x.idx").read_bytes(), 8)
    assert len(list(FIXTURES.glob(f"index-v{version}-*.idx.gz"))) == 3


def write_fixtures(folder):
    vectors = clustered(N_ROWS, DIM, 1)[0]
    blocks = [(np.arange(N_ROWS) * 5 - 100, vectors)]
    for metric in ("cosine", "inner_product", "l2"):
        path = folder / "new.idx"
        build_index(path, blocks, DIM, metric=metric, graph_from=1, max_links=8, seed=1)
        content = path.read_bytes()
        (version,) = struct.unpack_from("<I", content, 8)
        name = f"index-v{version}-{metric}"
        (folder / f"{name}.idx.gz").write_bytes(gzip.compress(content, mtime=0))
        (folder / f"{name}.json").write_text(json.dumps(answers(path)) + "\n", encoding="utf-8")
        path.unlink()


if __name__ == "__main__":
    write_fixtures(FIXTURES)
