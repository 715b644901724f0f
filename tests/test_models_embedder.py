"""The packaged embedder, for real: what it says about texts, and what happens to damaged files."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_rag.errors import ModelError
from edge_rag.interfaces import Embedder
from edge_rag.models import cores, open_embedder
from edge_rag.models.embedder import OnnxEmbedder

PACKAGED = Path(sys.modules["edge_rag.models"].__file__ or "").parent / "data" / "all-minilm-l6-v2"


@pytest.fixture(scope="module")
def embedder() -> OnnxEmbedder:
    return open_embedder("all-minilm-l6-v2", threads=2)


def test_it_is_an_embedder_with_unit_vectors(embedder: OnnxEmbedder) -> None:
    checked: Embedder = embedder
    vectors = checked.embed(["one", "two words", "", "\x00", "x" * 5000, "many words " * 400])
    assert vectors.shape == (6, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_no_texts_give_no_vectors(embedder: OnnxEmbedder) -> None:
    assert embedder.embed([]).shape == (0, 384)


def test_texts_that_mean_the_same_are_nearer_than_others(embedder: OnnxEmbedder) -> None:
    question, answer, other = embedder.embed(
        ["How do I cook rice?", "Boil the rice in twice its volume of water.", "The treaty was signed in 1648."]
    )
    assert question @ answer > question @ other + 0.3


def test_vectors_are_near_those_of_the_original(embedder: OnnxEmbedder) -> None:
    # the first numbers of the fp32 model's vectors, from transformers 5.23.0 and torch 2.13.0
    expected = json.loads((Path(__file__).parent / "fixtures" / "minilm_fp32.json").read_text(encoding="utf-8"))
    vectors = embedder.embed([row["text"] for row in expected])
    cosines = np.sum(vectors * np.array([row["vector"] for row in expected]), axis=1)
    assert cosines.min() > 0.985
    assert cosines.mean() > 0.994


def test_a_vector_does_not_depend_on_its_neighbours(embedder: OnnxEmbedder) -> None:
    texts = [f"sentence {i} " * (i % 7 + 1) for i in range(40)]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_array_equal(together, alone)


def test_one_thread_and_many_give_the_same(embedder: OnnxEmbedder) -> None:
    texts = [f"text number {i}" for i in range(9)]
    np.testing.assert_array_equal(embedder.embed(texts), open_embedder("all-minilm-l6-v2", threads=1).embed(texts))


def test_threads_may_share_an_embedder(embedder: OnnxEmbedder) -> None:
    texts = [f"shared text number {i}" for i in range(30)]
    expected = embedder.embed(texts)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: embedder.embed(texts), range(8)):
            np.testing.assert_array_equal(found, expected)


def test_texts_up_to_max_tokens_reach_the_model_whole(embedder: OnnxEmbedder) -> None:
    words = ["river"] * embedder.max_tokens
    assert embedder.count_tokens(" ".join(words)) == embedder.max_tokens
    whole, last_differs, longer = embedder.embed(
        [" ".join(words), " ".join([*words[:-1], "bank"]), " ".join([*words, "bank"])]
    )
    assert not np.array_equal(whole, last_differs)
    np.testing.assert_array_equal(whole, longer)


def test_the_fingerprint_is_that_of_the_files(embedder: OnnxEmbedder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGED, copy)
    assert open_embedder(str(copy)).fingerprint == embedder.fingerprint
    assert len(embedder.fingerprint) == 64


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.int8.data", "vocab.txt"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_file_is_found(tmp_path: Path, name: str, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGED, copy)
    path = copy / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "truncate":
        del data[-1:]
    elif damage == "empty":
        data.clear()
    path.write_bytes(data)
    if damage == "remove":
        path.unlink()
    with pytest.raises(ModelError, match=name) as error:
        open_embedder(str(copy))
    assert "reinstall" in error.value.mend


@pytest.mark.parametrize("manifest", ["", "{", "[]", "null", '{"name": 1, "dim": 384, "max_tokens": 256, "files": {}}'])
def test_a_damaged_manifest_is_found(tmp_path: Path, manifest: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGED, copy)
    (copy / "model.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(ModelError, match=r"model\.json is damaged"):
        open_embedder(str(copy))


def test_a_folder_without_an_embedder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no embedder"):
        open_embedder(str(tmp_path) + "/")


@pytest.mark.parametrize("name", ["nothing", "", "..", "__init__.py"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="there is no embedder"):
        open_embedder(name)


def test_opening_loads_neither_torch_nor_sockets() -> None:
    code = (
        "import sys; from edge_rag.models import open_embedder; open_embedder('all-minilm-l6-v2').embed(['a'])\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'llama_cpp', 'urllib.request') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_models_loads_nothing_heavy() -> None:
    code = (
        "import sys, edge_rag.models, edge_rag.models.catalog, edge_rag.models.store\n"
        "print([m for m in ('onnxruntime', 'llama_cpp', 'http.client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cores_follow_the_request_then_the_machine() -> None:
    assert cores.usable_cores(3) == 3
    assert 1 <= cores.usable_cores() <= max(1, len(cores._affinity()))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_a_container_quota_is_read(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert cores._cgroup_quota(tmp_path) == expected


def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    assert cores._physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert cores._physical_cores({0, 1, 2, 3, 9}, tmp_path) == 3
