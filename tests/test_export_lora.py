"""LoRA adapters to GGUF: as llama.cpp applies them, and as peft does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from edge_rag.export import parity
from edge_rag.export.adapters import read_adapter
from edge_rag.export.hf_from_gguf import export_hf
from edge_rag.export.lora_from_gguf import export_peft
from edge_rag.export.lora_to_gguf import export_lora
from edge_rag.export.to_gguf import export_gguf
from tiny_models import edit_json, make_adapter, make_model

from edge_rag.answering.prompt import NOT_FOUND, PROMPT_VERSION
from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Message
from edge_rag.models import open_generator
from edge_rag.models.merge import merge
from edge_rag.models.prompt_style import Trained, how_trained, prompt_fields, read_note, write_note


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "adapter", llama)


def export(adapter: Path, target: Path, **options: Any) -> dict[str, Any]:
    return export_lora(adapter, target, timed=False, threads=1, **options)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True, "r": 4}),
        ("qwen3", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}),
        ("gemma3_text", {}),
    ],
    ids=["llama", "rslora", "some matrices", "gemma"],
)
def test_an_adapter_computes_what_peft_does(model_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", model_type)
    adapter = make_adapter(tmp_path / "adapter", base, **options)
    report = export(adapter, tmp_path / "adapter.gguf")
    assert report["failed"] == []
    assert report["top1_without_ties"] == 1.0
    assert report["kl_max"] < 1e-3
    assert report["size_bytes"] == (tmp_path / "adapter.gguf").stat().st_size
    assert json.loads((tmp_path / "adapter.gguf.parity.json").read_text()) == report


def test_the_runtime_applies_it_to_a_quantised_base(llama: Path, adapter: Path, tmp_path: Path) -> None:
    export(adapter, tmp_path / "adapter.gguf", base=llama)
    export_gguf(llama, tmp_path / "base.gguf", "q8_0", timed=False, threads=1)
    answers = []
    for lora in (None, tmp_path / "adapter.gguf"):
        with open_generator(str(tmp_path / "base.gguf"), threads=1, lora=lora) as generator:  # type: ignore[attr-defined]
            answers.append("".join(generator.generate([Message("user", "Who kept the light?")], max_tokens=20)))
    assert answers[0] != answers[1]


@pytest.mark.parametrize("lora_type", ["f16", "q8_0"])
def test_what_pull_merges_computes_what_the_adapter_does(
    llama: Path, adapter: Path, tmp_path: Path, lora_type: str
) -> None:
    export_gguf(llama, tmp_path / "base.gguf", "f32", timed=False, threads=1)
    export(adapter, tmp_path / "adapter.gguf", lora_type=lora_type, base=llama)
    merge(tmp_path / "base.gguf", tmp_path / "adapter.gguf", tmp_path / "merged.gguf", name="merged")

    def logits(name: str, lora: Path | None = None) -> npt.NDArray[np.float32]:
        with parity.Export(tmp_path / name, "f32", lora=lora, threads=1) as model:
            return model.logits(list(range(5, 60)))

    wanted, without = logits("base.gguf", tmp_path / "adapter.gguf"), logits("base.gguf")
    assert np.abs(logits("merged.gguf") - wanted).mean() < np.abs(without - wanted).mean() / 5


def test_an_adapter_in_q8_0_is_smaller_and_computes_the_same(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    wide = make_adapter(tmp_path / "adapter", base, r=32)
    reports = {kind: export(wide, tmp_path / f"{kind}.gguf", lora_type=kind) for kind in ("f16", "q8_0")}
    assert reports["q8_0"]["failed"] == []
    assert reports["q8_0"]["kl_mean"] < 1e-3
    assert reports["q8_0"]["size_bytes"] < 0.7 * reports["f16"]["size_bytes"]
    with pytest.raises(UsageError, match=r"'q4_0' is no type of an adapter.*f16, q8_0"):
        export(wide, tmp_path / "other.gguf", lora_type="q4_0")


def test_how_it_was_trained_to_be_asked_travels_with_it(llama: Path, adapter: Path, tmp_path: Path) -> None:
    """From the note in the adapter's folder to the adapter, to what is merged with it, and back to a folder."""
    noted = shutil.copytree(adapter, tmp_path / "noted")
    write_note(noted, prompt_fields("words", PROMPT_VERSION, NOT_FOUND))
    export(noted, tmp_path / "adapter.gguf", base=llama)
    export_gguf(llama, tmp_path / "merged.gguf", "f32", lora=noted, timed=False, threads=1)
    export_hf(tmp_path / "merged.gguf", tmp_path / "folder", threads=1)
    assert read_note(tmp_path / "folder") == prompt_fields("words", PROMPT_VERSION, NOT_FOUND)
    export_gguf(tmp_path / "folder", tmp_path / "again.gguf", "f32", timed=False, threads=1)
    for name in ("adapter.gguf", "merged.gguf", "again.gguf"):
        assert how_trained(tmp_path / name) == Trained("words", NOT_FOUND)
    export(noted, tmp_path / "stated.gguf", base=llama, prompt="rationale")  # what is stated has the last word
    assert how_trained(tmp_path / "merged.gguf", tmp_path / "stated.gguf").style == "rationale"
    with open_generator(str(tmp_path / "merged.gguf"), threads=1) as generator:  # type: ignore[attr-defined]
        assert generator.style == "words"


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"edge_rag.prompt": "poem", "edge_rag.prompt_version": "1"}'])
def test_a_note_that_makes_no_sense_is_refused(llama: Path, adapter: Path, tmp_path: Path, note: str) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (copy / "edge_rag.json").write_text(note)
    with pytest.raises(ModelError, match=r"edge_rag\.json makes no sense"):
        export(copy, tmp_path / "adapter.gguf", base=llama)
    assert not (tmp_path / "adapter.gguf").exists()


def test_a_wrong_strength_is_found(llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What llama.cpp is told of alpha matters to the comparison."""
    read = read_adapter(adapter)
    doubled = replace(read, scale=read.scale * 2)
    monkeypatch.setattr("edge_rag.export.lora_to_gguf.read_adapter", lambda path: doubled)
    with pytest.raises(ModelError, match=r"was not written: .*top-1"):
        export(adapter, tmp_path / "adapter.gguf", base=llama)
    assert not (tmp_path / "adapter.gguf").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern is"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "it holds .*embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"]}, "it holds .*lm_head"),
    ],
)
def test_what_is_more_than_a_plain_lora_is_refused(
    llama: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    adapter = make_adapter(tmp_path / "adapter", llama, **options)
    for attempt in (
        lambda: export(adapter, tmp_path / "adapter.gguf", base=llama),
        lambda: export_gguf(llama, tmp_path / "merged.gguf", "f32", lora=adapter, timed=False, threads=1),
    ):
        with pytest.raises(ModelError, match=reason):
            attempt()
    assert not list(tmp_path.glob("*.gguf*"))


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    wider = make_model(tmp_path / "wider", intermediate_size=128)
    with pytest.raises(ModelError, match=r"mlp.* is \(96, 64\) there and \(128, 64\)|is \(64, 96\) there"):
        export(adapter, tmp_path / "adapter.gguf", base=wider)
    shallower = make_model(tmp_path / "shallower", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"it changes model.layers.1.*, which .*shallower does not hold"):
        export(adapter, tmp_path / "adapter.gguf", base=shallower)


def test_damaged_adapters_are_refused(llama: Path, adapter: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(adapter, tmp_path / name)

    edit_json(copy("moved") / "adapter_config.json", base_model_name_or_path="someone/some-model")
    with pytest.raises(UsageError, match=r"names 'someone/some-model' as its base.*--base"):
        export(tmp_path / "moved", tmp_path / "adapter.gguf")
    weights = copy("cut") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (copy("empty") / "adapter_model.safetensors").unlink()
    (copy("bare") / "adapter_config.json").unlink()
    edit_json(copy("ranked") / "adapter_config.json", r=16)
    for name, reason in (
        ("cut", "is no whole safetensors file"), ("empty", "there is no adapter_model.safetensors"),
        ("bare", "holds no adapter_config.json"), ("ranked", "are not an A and a B of rank 16"),
        ("nothing", "there is no folder"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=reason):
            export(tmp_path / name, tmp_path / "adapter.gguf", base=llama)
    assert not list(tmp_path.glob("*.gguf*"))


# --- and back


@pytest.mark.parametrize("lora_type", ["f16", "q8_0"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_an_adapter_comes_back_and_is_the_same_file_again(tmp_path: Path, model_type: str, lora_type: str) -> None:
    base = make_model(tmp_path / "base", model_type)
    adapter = make_adapter(tmp_path / "adapter", base)
    write_note(adapter, prompt_fields("words", PROMPT_VERSION, NOT_FOUND))
    export(adapter, tmp_path / "first.gguf", lora_type=lora_type)
    report = export_peft(tmp_path / "first.gguf", tmp_path / "back", base=base, threads=1)
    assert report["failed"] == []
    assert (report["type"], report["rank"]) == (lora_type, read_adapter(adapter).rank)
    assert read_note(tmp_path / "back") == read_note(adapter)
    export(tmp_path / "back", tmp_path / "second.gguf", lora_type=lora_type)
    assert (tmp_path / "second.gguf").read_bytes() == (tmp_path / "first.gguf").read_bytes()


def test_what_comes_back_can_be_trained_further(llama: Path, adapter: Path, tmp_path: Path) -> None:
    from edge_rag.train.trainable import open_trainable

    export(adapter, tmp_path / "adapter.gguf", base=llama)
    export_peft(tmp_path / "adapter.gguf", tmp_path / "back", base=llama, threads=1)
    model = open_trainable(llama, adapter=tmp_path / "back", lora_rank=8, threads=1, seed=0)
    assert any(parameter.requires_grad for parameter in model.network.parameters())


def test_what_is_no_adapter_of_the_base_is_one_line(llama: Path, adapter: Path, tmp_path: Path) -> None:
    export(adapter, tmp_path / "adapter.gguf", base=llama)
    export_gguf(llama, tmp_path / "base.gguf", "f16", timed=False, threads=1)
    other = make_model(tmp_path / "other", "qwen3")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "adapter.gguf").read_bytes()[:-500])
    for file, base, words in (
        ("base.gguf", llama, "is no adapter"),
        ("adapter.gguf", other, "is for the architecture llama"),
        ("cut.gguf", llama, "no whole GGUF"),
        ("none.gguf", llama, "there is no model file"),
    ):
        with pytest.raises(ModelError, match=words):
            export_peft(tmp_path / file, tmp_path / "back", base=base, threads=1)
        assert not (tmp_path / "back").exists()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="is there already"):
        export_peft(tmp_path / "adapter.gguf", tmp_path / "back", base=llama, threads=1)
    assert (tmp_path / "back" / "mine.txt").read_text() == "kept"
