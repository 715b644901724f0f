"""Tiny encoders with random weights, of each architecture that `export onnx` knows, as folders of transformers."""

import functools
import json
import pydoc_data.topics
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import edge_rag.models

VOCAB = Path(edge_rag.models.__file__).parent / "data" / "all-minilm-l6-v2" / "vocab.txt"
TEXT = list(pydoc_data.topics.topics.values())
ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "modernbert")


def save(folder: Path, architecture: str, *, n_labels: int = 0, pooling: str = "mean", **changes: Any) -> Path:
    """Save an embedder, or with labels a classifier, with a tokenizer of the kind that such models have."""
    tokenizer, special = _tokenizer(architecture)
    values: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=300, initializer_range=0.15, pad_token_id=special["pad"], bos_token_id=special["cls"],
        eos_token_id=special["sep"], cls_token_id=special["cls"], sep_token_id=special["sep"], **changes,
    )  # fmt: skip
    if architecture == "modernbert":  # windows smaller than the texts, and a first scale that keeps its residuals alive
        values |= {"local_attention": 32, "initializer_cutoff_factor": 3.0}
    if architecture in ("roberta", "xlm-roberta"):
        values |= {"type_vocab_size": 1, "max_position_embeddings": 302}
    if n_labels:
        values |= {"num_labels": n_labels}
    config = transformers.AutoConfig.for_model(architecture, **values)
    torch.manual_seed(1)
    kind = transformers.AutoModelForSequenceClassification if n_labels else transformers.AutoModel
    model = kind.from_config(config)
    with torch.no_grad():  # fresh norms and biases are all ones and zeros, and one left out would not be seen
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter += torch.randn_like(parameter) * 0.2
            elif "classifier" in name and parameter.shape[0] == n_labels:
                parameter += torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not n_labels:
        _save_modules(folder, pooling)
    return folder


def _save_modules(folder: Path, pooling: str) -> None:
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls",
             "pooling_mode_max_tokens": pooling == "max"}  # fmt: skip
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64} | modes))


@functools.cache
def _tokenizer(architecture: str) -> tuple[Any, dict[str, int]]:
    if architecture == "bert":
        return _wordpiece()
    names = (
        ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
        if architecture == "modernbert"
        else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    cls, pad, sep, unknown, mask = names
    if architecture == "xlm-roberta":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=600, special_tokens=names, unk_token=unknown, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC() if architecture == "modernbert" else None
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=names,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(TEXT[:25], trainer)
    ids = {name: tokenizer.token_to_id(name) for name in names}
    between = f"{sep} {sep}" if architecture != "modernbert" else sep
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {between} $B {sep}", special_tokens=[(cls, ids[cls]), (sep, ids[sep])]
    )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token=cls, pad_token=pad, sep_token=sep, unk_token=unknown, mask_token=mask,
        bos_token=cls, eos_token=sep,
    )  # fmt: skip
    return wrapped, {"cls": ids[cls], "pad": ids[pad], "sep": ids[sep]}


def _wordpiece() -> tuple[Any, dict[str, int]]:
    tokenizer = transformers.BertTokenizerFast(vocab=str(VOCAB))
    return tokenizer, {"cls": tokenizer.cls_token_id, "pad": tokenizer.pad_token_id, "sep": tokenizer.sep_token_id}
