"""A GGUF back to a training folder: llama.cpp's ids, llama.cpp's logits."""

import json
from pathlib import Path
from typing import Any

import pytest
from edge_rag.export import parity_texts
from edge_rag.export.architectures import shape_of
from edge_rag.export.gguf_tokenizer import read_tokenizer
from edge_rag.export.gguf_writer import write_gguf
from edge_rag.export.hf_from_gguf import export_hf
from edge_rag.export.hf_models import full_config
from edge_rag.export.model_folder import ModelFolder
from edge_rag.export.to_gguf import export_gguf
from gguf import GGUFReader
from tiny_models import make_model

from edge_rag.errors import ModelError, UsageError
from edge_rag.models.gguf_native import NativeModel
from edge_rag.models.gguf_vocabulary import Vocabulary
from edge_rag.models.licences import card_licence, gguf_licence
from edge_rag.models.quantise import requantize


@pytest.mark.parametrize(
    ("model_type", "procedure", "options"),
    [
        ("llama", "smollm", {"tie_word_embeddings": True}),
        ("qwen2", "qwen2", {}),
        ("qwen3", "llama-bpe", {"padding": 40}),
    ],
)
def test_there_and_back_is_the_same_model(
    model_type: str, procedure: str, options: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    model = make_model(tmp_path / "model", model_type, procedure=procedure, **options)
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    export_gguf(model, tmp_path / "model.gguf", "f32", timed=False, threads=1)
    report = export_hf(tmp_path / "model.gguf", tmp_path / "back", threads=1)
    assert report["failed"] == report["token_mismatches"] == report["auto_tokenizer_mismatches"] == []
    assert report["top1"] == 1.0
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    config, was = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", model))
    for key in ("rope_parameters", "tie_word_embeddings", "vocab_size", "rms_norm_eps", "max_position_embeddings"):
        assert config[key] == was[key], key
    assert gguf_licence(tmp_path / "model.gguf") == card_licence(tmp_path / "back") == "mit"
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == (model / "chat_template.jinja").read_text()


def test_a_quantised_file_becomes_what_llama_cpp_computes_with_it(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    export_gguf(model, tmp_path / "model.gguf", "q8_0", timed=False, threads=1)
    report = export_hf(tmp_path / "model.gguf", tmp_path / "back", threads=1)
    assert report["top1"] == 1.0
    assert report["kl_max"] < 1e-6
    assert json.loads((tmp_path / "back" / "parity.json").read_text()) == report
    with pytest.raises(UsageError, match="is there already"):
        export_hf(tmp_path / "model.gguf", tmp_path / "back", threads=1)


def test_what_is_not_understood_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "gemma", "gemma3_text")
    export_gguf(model, tmp_path / "gemma.gguf", "f16", timed=False, threads=1)
    (tmp_path / "text.gguf").write_text("no model")
    data = (tmp_path / "gemma.gguf").read_bytes()
    (tmp_path / "other.gguf").write_bytes(data.replace(b"gemma3", b"gemma9"))
    (tmp_path / "kind.gguf").write_bytes(data.replace(b"gemma3", b"qwen03").replace(b"gpt2", b"spm2"))
    for name, reason in (
        ("gemma.gguf", "windowed layers"),
        ("text.gguf", "no whole GGUF file"),
        ("other.gguf", "its architecture is 'gemma9'; these can be converted"),
        ("absent.gguf", "there is no model file"),
    ):
        with pytest.raises(ModelError, match=reason):
            export_hf(tmp_path / name, tmp_path / "out", threads=1)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_default_generator_can_be_trained(generator_file: Path, tmp_path: Path) -> None:
    """The real SmolLM2, there and back: ids, logits, and what transformers itself gets wrong."""
    from transformers import AutoTokenizer

    report = export_hf(generator_file, tmp_path / "hf")
    assert report["failed"] == []
    assert report["top1"] == 1.0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100000.0}
    assert config["tie_word_embeddings"] is True
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    steps = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert [step["type"] for step in steps] == ["Digits", "ByteLevel"]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        "<|im_end|>",
        "<|im_end|>",
        "<|im_start|>",
    )
    native = NativeModel(generator_file)
    vocabulary = Vocabulary(native, "smollm2")
    for text in parity_texts.HOSTILE:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == vocabulary.tokenize(text, add_special=False)
    native.close()

    shape = shape_of(full_config(tmp_path / "hf"), "here")
    fields = read_tokenizer(tmp_path / "hf", shape.vocab)
    write_gguf(ModelFolder(tmp_path / "hf"), shape, fields, tmp_path / "f32.gguf", dtype="f32", name="smollm2")
    requantize(tmp_path / "f32.gguf", tmp_path / "again.gguf", "Q8_0")
    was, again = GGUFReader(generator_file), GGUFReader(tmp_path / "again.gguf")
    assert {t.name: t.data.tobytes() for t in was.tensors} == {t.name: t.data.tobytes() for t in again.tensors}
    for key in was.fields:
        if key.startswith(("tokenizer.", "llama.")):
            assert again.fields[key].contents() == was.fields[key].contents(), key
