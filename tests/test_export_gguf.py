"""Models of every architecture that can be exported, with random weights: to GGUF, and compared with transformers."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from edge_rag.export import parity
from edge_rag.export.architectures import halve, interleave, shape_of
from edge_rag.export.gguf_tokenizer import read_tokenizer
from edge_rag.export.gguf_writer import write_gguf
from edge_rag.export.hf_models import full_config, open_original
from edge_rag.export.model_folder import ModelFolder
from edge_rag.export.sources import read_source
from edge_rag.export.to_gguf import export_gguf
from tiny_models import edit_json, make_adapter, make_model

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Message
from edge_rag.models import open_generator

EXPORTED = [
    ("llama", "smollm"), ("mistral", "gpt-2"), ("qwen2", "qwen2"), ("qwen3", "llama-bpe"), ("gemma3_text", "smaug-bpe"),
    ("gemma3_text", "sentencepiece"), ("mistral", "sentencepiece prefix"),
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "copy")


def export(model: Path, target: Path, quantised_type: str = "f32", **options: Any) -> dict[str, Any]:
    return export_gguf(model, target, quantised_type, timed=False, threads=1, **options)


def assert_exact(report: dict[str, Any]) -> None:
    assert report["failed"] == []
    assert report["top1"] == 1.0
    assert report["kl_max"] < 1e-4
    assert report["greedy"]["agreement"] == 1.0
    assert report["positions"] > 500
    assert report["token_mismatches"] == report["prompt_mismatches"] == []


@pytest.mark.parametrize(("model_type", "procedure"), EXPORTED)
def test_a_model_in_f32_computes_what_the_original_does(model_type: str, procedure: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", model_type, procedure=procedure)
    report = export(model, tmp_path / "model.gguf")
    assert_exact(report)
    assert report["source_tokenizer"] == ("default" if procedure.startswith("sentencepiece") else procedure)
    assert json.loads((tmp_path / "model.gguf.parity.json").read_text()) == report
    assert {p.name for p in tmp_path.iterdir()} - {"home"} == {"model", "model.gguf", "model.gguf.parity.json"}


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"dtype": "float16", "tie_word_embeddings": True},
        {"max_shard_size": "100KB", "padding": 0},
        {"padding": 60, "head_dim": 32, "num_key_value_heads": 4},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        },
    ],
    ids=["bf16", "f16 and tied", "shards", "padded vocabulary and wide heads", "scaled rope"],
)  # fmt: skip
def test_other_weights_files_and_ropes_are_exact_too(options: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", **options)
    assert ("max_shard_size" in options) == (len([*model.glob("*.safetensors")]) > 1)
    assert_exact(export(model, tmp_path / "model.gguf"))


def test_f16_differs_only_where_the_original_sees_a_tie(llama: Path, tmp_path: Path) -> None:
    report = export(llama, tmp_path / "model.gguf", "f16")
    assert report["top1_without_ties"] == 1.0
    assert 0.98 < report["top1"] <= 1.0
    assert report["largest_gap"] < report["floors"]["tie"]
    assert (tmp_path / "model.gguf").stat().st_size == report["size_bytes"] < 0.6 * report["source_size_bytes"]


def test_a_quantised_export_answers_in_the_runtime(llama: Path, tmp_path: Path) -> None:
    report = export_gguf(llama, tmp_path / "model.gguf", "q8_0", threads=1)
    assert report["kl_mean"] < 0.03
    assert all(value > 0 for value in report["speed"].values())
    assert len(report["speed"]) == 4
    with open_generator(str(tmp_path / "model.gguf"), threads=1) as generator:  # type: ignore[attr-defined]
        assert "".join(generator.generate([Message("user", "Who kept the light?")], max_tokens=8))


def test_below_a_floor_nothing_is_written(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "model.gguf"
    target.write_text("the one before")
    with pytest.raises(ModelError, match=r"model.gguf was not written: .*top-1 agreement 0\.\d+ is below 0\.6"):
        export(llama, target, "q4_0", force=True)
    assert target.read_text() == "the one before"
    assert [p.name for p in target.parent.iterdir()] == ["model.gguf"]


def test_what_is_there_stays_unless_forced(llama: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_text("mine")
    with pytest.raises(UsageError, match="is there already; give --force"):
        export(llama, target)
    assert target.read_text() == "mine"
    export(llama, target, force=True)
    assert target.read_bytes()[:4] == b"GGUF"
    with pytest.raises(UsageError, match="there is no folder"):
        export(llama, tmp_path / "nowhere" / "model.gguf")
    with pytest.raises(UsageError, match="is a folder"):
        export(llama, tmp_path, force=True)
    with pytest.raises(UsageError, match="'q3' is no type to export; use one of f32, f16"):
        export(llama, tmp_path / "other.gguf", "q3")


@pytest.mark.parametrize("stage", ["write", "quantise", "compare"])
def test_an_interrupted_export_leaves_nothing(llama: Path, tmp_path: Path, stage: str) -> None:
    def interrupt(at: str, done: int, total: int, detail: str) -> None:
        if at == stage:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    (out / ".model.gguf.part").mkdir(parents=True)
    (out / ".model.gguf.part" / "whole.gguf").write_text("what a killed export left")
    with pytest.raises(KeyboardInterrupt):
        export(llama, out / "model.gguf", "q8_0", progress=interrupt)
    assert list(out.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit on Windows")
def test_a_full_disk_is_one_clear_line(llama: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    code = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from edge_rag.export.sources import read_source
from edge_rag.export.to_gguf import export_gguf
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    export_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'f32', timed=False, threads=1)
except Exception as error:
    print(type(error).__name__, error)
"""
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(llama), str(out / "model.gguf")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("ModelError") and "the disk is full" in done.stdout, done.stdout + done.stderr[-2000:]
    assert list(out.iterdir()) == []


# ---- what is refused


def with_config(**changes: Any) -> Any:
    return lambda folder: edit_json(folder / "config.json", **changes)


def without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def with_tokenizer(change: Any) -> Any:
    def edit(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content))

    return edit


def with_tensor(name: str, *, of: str = "", value: float | None = None) -> Any:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors[name] = tensors[of or name].clone()
        if value is not None:
            tensors[name].view(-1)[0] = value
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


def without_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_a_shard(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def outside(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without_stop(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token=None)


REFUSED = [
    (with_config(architectures=["PhiForCausalLM"], model_type="phi"), "its architecture is PhiForCausalLM"),
    (with_config(architectures=None), "its architecture is not said"),
    (with_config(hidden_act="gelu"), "hidden_act is 'gelu', and llama.cpp computes with 'silu'"),
    (with_config(attention_bias=True), "attention_bias is True"),
    (with_config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}), "its rope scaling is 'yarn'"),
    (with_config(quantization_config={"quant_method": "gptq"}), "quantised already"),
    (with_config(hidden_size=96), r"is \(\d+, 64\) and config.json says \(\d+, 96\)"),
    (with_config(num_hidden_layers=3), "holds no model.layers.2."),
    (with_config(num_hidden_layers=1), "the tensor model.layers.1.* has no place"),
    (without("config.json"), "holds no config.json"),
    (without("tokenizer.json"), "holds no tokenizer.json"),
    (without("model.safetensors"), "holds no model.safetensors"),
    (without("chat_template.jinja"), "has no chat template"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    (lambda folder: (folder / "tokenizer.json").write_text("[]"), "is no JSON object"),
    (pickled, "its weights are pickled"),
    (cut, "is no whole safetensors file"),
    (without_a_shard, "model-00001-of-00001.safetensors is missing"),
    (outside, "names no files"),
    (without_tensor, "holds no model.layers.1.mlp.up_proj.weight"),
    (with_tensor("model.layers.0.self_attn.q_proj.bias", of="model.norm.weight"), "q_proj.bias has no place"),
    (with_tensor("model.norm.weight", value=float("inf")), "infinite, not a number"),
    (with_tokenizer(lambda t: t.update(pre_tokenizer={"type": "Whitespace"})), "no tokenizer with the steps Whitespace"),
    (with_tokenizer(lambda t: t["model"].update(ignore_merges=True)), "and ignore_merges"),
    (with_tokenizer(lambda t: t.update(normalizer={"type": "Lowercase"})), "the normalizer Lowercase"),
    (with_tokenizer(lambda t: t["model"].update(byte_fallback=True)), "byte_fallback and the step Digits"),
    (with_tokenizer(lambda t: t["added_tokens"][0].update(lstrip=True)), "takes white space with it, '<|endoftext|>'"),
    (with_tokenizer(lambda t: t["added_tokens"][0].update(id=5000)), "has 5001 tokens, and the model knows"),
    (with_tokenizer(lambda t: t["added_tokens"][0].update(content="<|im_end|>")), "two tokens of one text"),
    (without_stop, "no eos_token is named"),
    (lambda folder: edit_json(folder / "generation_config.json", eos_token_id=[2, 9999]), "9999 is no token"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_llama_cpp_would_not_do_alike_is_refused(copy: Path, tmp_path: Path, damage: Any, reason: str) -> None:
    damage(copy)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=reason) as refused:
        export(copy, out / "model.gguf")
    assert refused.value.mend
    assert "\n" not in str(refused.value)
    assert list(out.iterdir()) == []


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in list(value) if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
        yield (*place, key)
        if key != "vocab":
            yield from places_in(value[key], (*place, key))


def test_wrong_values_anywhere_are_one_clear_line_or_do_no_harm(copy: Path) -> None:
    files = [
        copy / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    ]
    whole = {path: path.read_text(encoding="utf-8") for path in files}
    changes = [
        (path, place, value)
        for path in files
        for place in places_in(json.loads(whole[path]))
        for value in (None, 0, -1, "x", [], {}, 1e9, [["a"]])
    ]
    n_refused = 0
    for path, place, value in random.Random(0).sample(changes, 100):
        content = json.loads(whole[path])
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path.write_text(json.dumps(content))
        try:
            read_source(copy)
        except ModelError:
            n_refused += 1
        path.write_text(whole[path])
    assert n_refused > 20


def test_a_window_that_llama_cpp_does_not_know_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "mistral", sliding_window=256)
    with pytest.raises(ModelError, match="its layers see 256 tokens back"):
        export(model, tmp_path / "model.gguf")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        export(tmp_path / "nothing", tmp_path / "model.gguf")


def test_a_tokenizer_with_scores_needs_all_pairs_in_order(tmp_path: Path) -> None:
    n = tiny_models.make_sentencepiece_like(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", chat_template="x")
    (tmp_path / "config.json").write_text("{}")
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    merges = content["model"]["merges"]
    assert read_tokenizer(tmp_path, n).kind == "llama"
    made = ["".join(pair) for pair in merges]
    twice = next(i for i in range(len(made) - 1) if made[i] == made[i + 1])
    for changed, reason in (
        (merges[:twice] + merges[twice + 1 :], "are not among its merges"),
        ([*merges[:twice], *merges[twice + 1 :], merges[twice]], "at two places in its merges"),
    ):
        content["model"]["merges"] = changed
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(ModelError, match=reason):
            read_tokenizer(tmp_path, n)


# ---- the comparison finds what it is for


@pytest.fixture(scope="module")
def original(llama: Path) -> parity.Original:
    return open_original(llama, threads=1)


def compared(llama: Path, original: parity.Original, tmp_path: Path, *, shape: Any = None, **changes: Any) -> Any:
    right = shape_of(full_config(llama), "here")
    tokenizer = dataclasses.replace(read_tokenizer(llama, right.vocab), **changes)
    path = tmp_path / "wrong.gguf"
    write_gguf(ModelFolder(llama), shape(right) if shape else right, tokenizer, path, dtype="f32", name="wrong")
    with parity.Export(path, "f32", threads=1) as wrong:
        return parity.compare(original, wrong, stop_ids=tokenizer.stop_ids)


def test_the_right_file_passes(llama: Path, original: parity.Original, tmp_path: Path) -> None:
    assert compared(llama, original, tmp_path)["failed"] == []


def test_wrong_numbers_are_found(llama: Path, original: parity.Original, tmp_path: Path) -> None:
    for field, value in (("rope_base", 20_000.0), ("norm_epsilon", 1e-1)):
        report = compared(llama, original, tmp_path, shape=lambda s: dataclasses.replace(s, **{field: value}))  # noqa: B023
        assert any("top-1 agreement" in line for line in report["failed"]), field


def test_rows_in_the_wrong_order_are_found(llama: Path, original: parity.Original, tmp_path: Path) -> None:
    def plain(shape: Any) -> Any:
        return dataclasses.replace(shape, architecture=dataclasses.replace(shape.architecture, interleaved=False))

    assert compared(llama, original, tmp_path, shape=plain)["top1"] < 0.9


def test_a_wrong_cut_of_texts_is_found(llama: Path, original: parity.Original, tmp_path: Path) -> None:
    report = compared(llama, original, tmp_path, procedure="gpt-2")
    assert "hostile texts get other token ids" in report["failed"][0]
    assert {"text", "original", "export"} == report["token_mismatches"][0].keys()


def test_another_template_is_found(llama: Path, original: parity.Original, tmp_path: Path) -> None:
    report = compared(llama, original, tmp_path, template=tiny_models.TEMPLATE.replace("assistant", "model"))
    assert "prompts get other token ids" in report["failed"][0]


def test_a_token_that_does_not_stop_is_found(llama: Path, original: parity.Original, tmp_path: Path) -> None:
    report = compared(llama, original, tmp_path, stop_ids=(2, 77))
    assert report["failed"] == ["llama.cpp does not stop at the tokens [77]"]


def test_all_stop_tokens_stop(copy: Path, tmp_path: Path) -> None:
    edit_json(copy / "generation_config.json", eos_token_id=[0, 2, 401])
    assert export(copy, tmp_path / "model.gguf")["stop_ids"] == [2, 0, 401]


def test_rows_are_put_back() -> None:
    import numpy as np

    rows = np.arange(48).reshape(12, 4)
    assert interleave(rows, 2)[:6, 0].tolist() == [0, 12, 4, 16, 8, 20]
    assert (halve(interleave(rows, 2), 2) == rows).all()


# ---- a base and its adapter, merged


@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_adapter_computes_what_peft_does(llama: Path, tmp_path: Path, rslora: bool) -> None:
    adapter = make_adapter(tmp_path / "adapter", llama, use_rslora=rslora)
    report = export(llama, tmp_path / "merged.gguf", lora=adapter)
    assert_exact(report)
    assert report["source"] == "llama + adapter"
    with parity.Export(tmp_path / "merged.gguf", "f32", threads=1) as merged:
        assert parity.compare(open_original(llama, threads=1), merged)["top1"] < 0.95  # it does change the model
