"""An adapter merged into its base: the numbers, the bytes, what is refused, and how `pull` does it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("gguf", reason="needs the [export] extra")

from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from typer.testing import CliRunner

from edge_rag.answering.prompt import NOT_FOUND, PROMPT_VERSION
from edge_rag.cli.commands import app
from edge_rag.errors import ModelError
from edge_rag.models import catalog, fetch, merge, store
from edge_rag.models.catalog import CATALOG, Adapter, Entry
from edge_rag.models.gguf_file import check_gguf
from edge_rag.models.prompt_style import KEYS, REFUSAL, STYLE, VERSION, Trained, how_trained, prompt_fields

Type = GGMLQuantizationType
WIDTH, HEIGHT, ALPHA = 96, 70, 16.0  # 70 rows: more than are merged at a time, and no multiple of that


def numbers(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Values that are the same on every machine."""
    drawn = np.random.default_rng(seed).integers(-1000, 1000, size=shape)
    return (drawn.astype(np.float32) / np.float32(512)).astype(np.float32)


def write_base(path: Path, kind: Type = Type.Q4_1, *, architecture: str = "llama") -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_name("the base")
    writer.add_license("apache-2.0")
    writer.add_file_type(3)
    writer.add_token_list(["a", "b"])
    values = numbers(HEIGHT, WIDTH)
    for n, name in enumerate(("one.weight", "two.weight")):
        writer.add_tensor(name, quantize(values + n, kind), raw_dtype=kind)
    writer.add_tensor("norm.weight", numbers(WIDTH, seed=3))
    writer.add_tensor("odd.weight", numbers(HEIGHT, 7, seed=4))
    return finish(writer, path)


def write_adapter(
    path: Path, *, rank: int = 32, kind: Type = Type.F16, width: int = WIDTH, name: str = "one.weight",
    parts: str = "ab", architecture: str = "llama", type: str = "adapter", alpha: float | None = ALPHA,
    fields: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    writer = GGUFWriter(path, architecture)
    writer.add_type(type)
    writer.add_string("adapter.type", "lora")
    for key, value in (prompt_fields("words", PROMPT_VERSION, NOT_FOUND) if fields is None else fields).items():
        writer.add_string(key, value)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for part, shape in (("a", (rank, width)), ("b", (HEIGHT, rank))):
        if part in parts:
            values = numbers(*shape, seed=ord(part)) / np.float32(4)
            writer.add_tensor(f"{name}.lora_{part}", quantize(values, kind), raw_dtype=kind)
    return finish(writer, path)


def finish(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def values_of(tensor: Any) -> npt.NDArray[np.float64]:
    return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float64)


# --- the numbers and the bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q4_1, Type.Q8_0])
@pytest.mark.parametrize("adapter_kind", [Type.F32, Type.F16, Type.Q8_0])
def test_what_is_merged_is_base_and_adapter_rounded_once(kind: Type, adapter_kind: Type, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf", kind)
    adapter = write_adapter(tmp_path / "adapter.gguf", kind=adapter_kind)
    merge.merge(base, adapter, tmp_path / "merged.gguf", name="merged")
    before, parts, after = tensors(base), tensors(adapter), tensors(tmp_path / "merged.gguf")
    a, b = (values_of(parts[f"one.weight.lora_{part}"]) for part in "ab")
    exact = values_of(before["one.weight"]) + ALPHA / 32 * (b @ a)
    found = values_of(after["one.weight"])
    step = np.abs(exact).reshape(-1, 32).max(axis=1) / 127
    assert (np.abs(found - exact).reshape(-1, 32) <= step[:, None] * 0.58 + 1e-6).all()  # steps have 11 bits themselves
    assert np.abs(exact - values_of(before["one.weight"])).mean() > 5 * step.mean()  # the adapter was no trifle


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q4_1])
def test_what_no_adapter_changes_is_converted_as_llama_cpp_does_it(kind: Type, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf", kind)
    merge.merge(base, write_adapter(tmp_path / "a.gguf"), tmp_path / "merged.gguf", name="merged")
    before, after = tensors(base), tensors(tmp_path / "merged.gguf")
    floats = dequantize(before["two.weight"].data, kind).astype(np.float32)
    assert after["two.weight"].data.tobytes() == quantize(floats, Type.Q8_0).tobytes()
    for name in ("norm.weight", "odd.weight"):  # vectors, and rows that are no multiple of 32
        assert after[name].tensor_type == Type.F32
        assert after[name].data.tobytes() == before[name].data.tobytes()


def test_what_is_q8_0_already_stays_as_it_is(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf", Type.Q8_0)
    merge.merge(base, write_adapter(tmp_path / "a.gguf"), tmp_path / "merged.gguf", name="merged")
    before, after = tensors(base), tensors(tmp_path / "merged.gguf")
    assert after["two.weight"].data.tobytes() == before["two.weight"].data.tobytes()


def test_the_same_files_give_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base.gguf"), write_adapter(tmp_path / "adapter.gguf", kind=Type.Q8_0)
    merge.merge(base, adapter, tmp_path / "merged.gguf", name="merged")
    found = b"".join(tensor.data.tobytes() for tensor in GGUFReader(tmp_path / "merged.gguf").tensors)
    assert hashlib.sha256(found).hexdigest() == "63cbb32fc70372976f5b410b3229cc2ced6f357426c068802ca9da2ae7211ac8"


def test_the_metadata_is_the_bases_with_the_adapters_word_on_prompts(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf")
    merge.merge(base, write_adapter(tmp_path / "adapter.gguf"), tmp_path / "merged.gguf", name="mine")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "merged.gguf").fields.items()}
    assert fields["general.name"] == "mine"
    assert fields["general.license"] == "apache-2.0"
    assert fields["general.file_type"] == 7
    assert fields["tokenizer.ggml.tokens"] == ["a", "b"]
    assert (fields[STYLE], fields[VERSION]) == ("words", str(PROMPT_VERSION))
    again = write_adapter(tmp_path / "silent.gguf", fields={})
    merge.merge(tmp_path / "merged.gguf", again, tmp_path / "twice.gguf", name="mine")
    assert how_trained(tmp_path / "twice.gguf") == Trained()  # what was true of the base need not be true any more


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "qwen2"}, "it is for the architecture qwen2"),
        ({"type": "model"}, "it is no LoRA"),
        ({"alpha": None}, "it does not say how strong it is"),
        ({"parts": "a"}, "it has no A and B for one.weight"),
        ({"width": 64}, "it changes a one.weight of 70 times 64 values"),
        ({"name": "three.weight"}, "it changes a three.weight"),
        ({"name": "odd.weight", "width": 7}, "odd.weight has rows of 7 values"),
        ({"kind": Type.BF16}, "one.weight.lora_a is of llama.cpp's type 30, which is not merged here"),
    ],
)
def test_what_is_no_adapter_for_the_base_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base.gguf"), write_adapter(tmp_path / "adapter.gguf", **options)
    with pytest.raises(ModelError, match=said) as error:
        merge.merge(base, adapter, tmp_path / "merged.gguf", name="merged")
    assert error.value.mend
    assert not (tmp_path / "merged.gguf").exists()


def test_a_base_of_another_type_is_refused(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base.gguf", Type.Q4_0), write_adapter(tmp_path / "adapter.gguf")
    with pytest.raises(ModelError, match=r"one\.weight is of llama\.cpp's type 2") as error:
        merge.merge(base, adapter, tmp_path / "merged.gguf", name="merged")
    assert "Q4_1" in error.value.mend
    assert not (tmp_path / "merged.gguf").exists()


# --- pull -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def entry(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A model whose base is a file of this machine, and whose adapter comes with edge_rag."""
    base = write_base(tmp_path / "base.gguf")
    adapter = write_adapter(tmp_path / "adapter.gguf")
    made = Entry(
        "tiny-rag", "generator", f"file:{base}", "base.gguf", store.sha256_file(base), base.stat().st_size, "Apache-2.0",
        adapter=Adapter("adapter.gguf", store.sha256_file(adapter)),
    )  # fmt: skip
    monkeypatch.setattr(catalog, "CATALOG", (made,))
    monkeypatch.setattr(store, "PACKAGED", tmp_path)
    return made


def test_pull_merges_the_adapter_that_comes_with_the_package(entry: Entry, home: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    path = fetch.pull("tiny-rag", progress=lambda *args: seen.append(args))
    assert {p.name for p in path.parent.iterdir()} == {"tiny-rag.Q8_0.gguf", "manifest.json", "lock"}
    assert how_trained(path) == Trained("words", NOT_FOUND)
    manifest = store.verify("tiny-rag")
    assert entry.adapter
    assert (manifest.source_sha256, manifest.adapter_sha256) == (entry.sha256, entry.adapter.sha256)
    assert [done for stage, done, _, _ in seen if stage == "merge"] == [1, 2, 3, 4]
    assert fetch.pull("tiny-rag") == path
    assert store.installed_file("tiny-rag") == path


def test_models_list_and_show_say_how_it_is_to_be_asked(entry: Entry, home: Path) -> None:
    def said(*arguments: str) -> Any:
        done = CliRunner().invoke(app, ["-q", "models", *arguments], catch_exceptions=False)
        return done.stdout if "--json" not in arguments else json.loads(done.stdout)

    for _ in range(2):  # the adapter says it, and then the model that is here
        assert said("show", "tiny-rag", "--json")["prompt"] == "words"
        assert [row["prompt"] for row in said("list", "--json")["models"]] == ["words"]
        assert "Apache-2.0, asked for words" in said("list")
        path = fetch.pull("tiny-rag")
    path.write_bytes(b"damaged")
    assert said("show", "tiny-rag", "--json")["prompt"] == ""


def test_an_edge_rag_with_another_adapter_merges_that(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch.pull("tiny-rag").read_bytes()
    other = write_adapter(tmp_path / "other.gguf", rank=8)
    newer = replace(entry, adapter=Adapter("other.gguf", store.sha256_file(other)))
    monkeypatch.setattr(catalog, "CATALOG", (newer,))
    advice = "this edge_rag has another one: edge-rag models pull tiny-rag"
    assert advice in CliRunner().invoke(app, ["-q", "models", "list"], catch_exceptions=False).stdout
    assert fetch.pull("tiny-rag").read_bytes() != first
    assert advice not in CliRunner().invoke(app, ["-q", "models", "list"], catch_exceptions=False).stdout


def test_an_adapter_that_is_not_the_catalogs_is_refused_before_anything_is_fetched(
    entry: Entry, tmp_path: Path, home: Path
) -> None:
    with (tmp_path / "adapter.gguf").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(ModelError, match="is not the adapter of tiny-rag") as error:
        fetch.pull("tiny-rag")
    assert error.value.mend == "install edge_rag again"
    (tmp_path / "adapter.gguf").unlink()
    with pytest.raises(ModelError, match=r"adapter\.gguf: No such file"):
        fetch.pull("tiny-rag")
    assert not home.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from edge_rag.models import catalog, fetch, merge, store
catalog.CATALOG = (eval(sys.argv[1], vars(catalog)),)
store.PACKAGED = Path(sys.argv[2])
merge._quantised = lambda rows: os.kill(os.getpid(), signal.SIGKILL)
fetch.pull("tiny-rag")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_pull_that_is_killed_while_it_merges_leaves_no_model_and_is_gone_on_with(
    entry: Entry, tmp_path: Path, home: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, repr(entry), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert store.read_manifest("tiny-rag") is None
    assert (home / "models" / "tiny-rag" / "tiny-rag.Q8_0.gguf.part").is_file()
    (tmp_path / "base.gguf").unlink()  # what was fetched is not fetched again
    path = fetch.pull("tiny-rag")
    assert {p.name for p in path.parent.iterdir()} == {"tiny-rag.Q8_0.gguf", "manifest.json", "lock"}
    shutil.copy(write_base(tmp_path / "base.gguf"), tmp_path / "again.gguf")
    merge.merge(tmp_path / "again.gguf", tmp_path / "adapter.gguf", tmp_path / "whole.gguf", name="tiny-rag")
    assert path.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_no_model_and_is_gone_on_with(entry: Entry, tmp_path: Path, home: Path) -> None:
    folder = home / "models" / "tiny-rag"
    folder.mkdir(parents=True)
    (folder / "tiny-rag.Q8_0.gguf.part").symlink_to("/dev/full")
    with pytest.raises(ModelError, match="disk is full") as error:
        fetch.pull("tiny-rag")
    assert "goes on where it stopped" in error.value.mend
    assert {p.name for p in folder.iterdir()} == {"base.gguf", "lock"}
    (tmp_path / "base.gguf").unlink()
    assert fetch.pull("tiny-rag").is_file()


def test_a_disk_with_too_little_room_is_found_before_the_work(
    entry: Entry, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    usage = shutil.disk_usage(home.parent)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(merge, "merge", None)  # would be called
    with pytest.raises(ModelError, match="disk is full"):
        fetch.pull("tiny-rag")


# --- what ships -------------------------------------------------------------------------------------------------------


def trained_for_other_prompts(entries: tuple[Entry, ...]) -> list[str]:
    """Name the models whose packaged adapter was trained with other prompts than the runtime's."""
    packaged = {entry.name: store.packaged_adapter(entry) for entry in entries}
    said = {name: check_gguf(path, wanted=KEYS) for name, path in packaged.items() if path}
    return [
        name
        for name, fields in said.items()
        if fields != prompt_fields(how_trained(packaged[name]).style, PROMPT_VERSION, NOT_FOUND)
    ]


def test_adapters_that_ship_were_trained_with_the_prompts_that_ship() -> None:
    assert trained_for_other_prompts(CATALOG) == []


@pytest.mark.parametrize(
    "fields", [{}, {STYLE: "words"}, {STYLE: "words", VERSION: str(PROMPT_VERSION - 1), REFUSAL: NOT_FOUND}]
)
def test_an_adapter_for_other_prompts_is_found(entry: Entry, tmp_path: Path, fields: dict[str, str]) -> None:
    assert trained_for_other_prompts((entry,)) == []
    other = write_adapter(tmp_path / "other.gguf", fields=fields)
    wrong = replace(entry, adapter=Adapter("other.gguf", store.sha256_file(other)))
    assert trained_for_other_prompts((wrong,)) == ["tiny-rag"]
