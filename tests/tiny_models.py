"""Tiny models with random weights, of each architecture that can be exported, and adapters for them."""

import json
import warnings
from pathlib import Path
from typing import Any

TEXTS = [
    "The lamp was lit on 1 October 1849 and seen at 19 miles.",
    "Thomas Moar kept the light from 1891 to 1914; it's said he'd never slept.",
    "def mean(values):\n    return sum(values) / len(values)\n\n\n",
    "The tower is open from Easter to the end of September. " * 3,
    "Der Leuchtturm wurde gebaut. 灯台は建てられました。🙂",
]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"
    "|\\s+(?!\\S)|\\s+"
)
LLAMA3 = QWEN.replace("|\\p{N}|", "|\\p{N}{1,3}|")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None, "head_dim": 32},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


def make_tokenizer(folder: Path, procedure: str = "smollm", **fields: Any) -> int:
    """Train a byte-level BPE on a few texts, and write it as transformers does; return its number of tokens."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    by_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    steps = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), by_regex],
        "gpt-2": [by_regex],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN), "isolated"), by_bytes],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), by_bytes],
        "smaug-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), by_bytes],
        "whitespace": [pre_tokenizers.Whitespace(), by_bytes],
    }[procedure]
    tokenizer = Tokenizer(models.BPE(ignore_merges=procedure == "llama-bpe"))
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if procedure == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if procedure == "llama-bpe":
        ids = [("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=ids)
    if procedure == "qwen2":
        tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    settings = {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    if procedure == "llama-bpe":
        settings["chat_template"] = "{{ bos_token }}" + TEMPLATE
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(settings | fields)).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def make_sentencepiece_like(folder: Path, *, space_prefix: bool = False) -> int:
    """Write a BPE as transformers makes it of a SentencePiece model: bytes for what is unknown, all pairs that make a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=250, show_progress=False)
    learner.train_from_iterator(TEXTS, trainer)
    learnt = [token for token, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1])]
    special = ["<|endoftext|>", "<unk>", "<|im_end|>", "<|im_start|>", "<pad>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [(t[:n], t[n:]) for t in learnt for n in range(1, len(t)) if t[:n] in vocab and t[n:] in vocab]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replaced = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if space_prefix else replaced
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    ids = [("<|endoftext|>", vocab["<|endoftext|>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=ids)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>",
        chat_template="{{ bos_token }}" + TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return len(tokens)


def make_model(
    folder: Path, model_type: str = "llama", *, procedure: str = "smollm", dtype: str = "float32", padding: int = 3,
    max_shard_size: str = "1GB", seed: int = 0, **config: Any,
) -> Path:  # fmt: skip
    """Save a model with random weights, large enough that its predictions are no coin tosses, and a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    if procedure.startswith("sentencepiece"):
        n_tokens = make_sentencepiece_like(folder, space_prefix=procedure.endswith("prefix"))
    else:
        n_tokens = make_tokenizer(folder, procedure)
    settings = {
        "vocab_size": n_tokens + padding, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.3,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **(settings | CONFIGS[model_type] | config))
    )
    for name, values in model.named_parameters():
        if name.endswith(("norm.weight", ".bias")):
            torch.nn.init.normal_(values, mean=0.5, std=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def make_adapter(folder: Path, base: Path, *, seed: int = 1, **config: Any) -> Path:
    """Save an adapter whose B is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = {"r": 8, "lora_alpha": 16, "target_modules": targets, "task_type": "CAUSAL_LM"} | config
    with warnings.catch_warnings(action="ignore"):  # peft has many
        adapted = get_peft_model(model, LoraConfig(**settings))
        for name, values in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(values, std=0.05)
        adapted.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
