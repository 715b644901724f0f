"""Open model folders with transformers, from disk only and without its chatter."""

import os
import warnings
from pathlib import Path
from typing import Any

# Read when it is loaded: what is exported lies on this machine, and nothing is looked for elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from tokenizers import Tokenizer

from .architectures import Shape
from .gguf_tokenizer import GgufTokenizer, open_tokenizer
from .parity import Original

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def full_config(folder: Path) -> dict[str, Any]:
    """Return a config.json with the defaults of its architecture, as transformers 5 names them."""
    config: dict[str, Any] = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    return config


def open_original(folder: Path, *, lora: Path | None = None, threads: int = 0) -> Original:
    """Open a model in float32, with an adapter as peft applies it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    if lora is not None:
        import peft

        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft, at transformers
            model = peft.PeftModel.from_pretrained(model, lora)
    chat = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def render(messages: list[dict[str, str]]) -> str:
        text: str = chat.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text

    def tokenize(text: str) -> list[int]:
        ids: list[int] = chat(text, add_special_tokens=False)["input_ids"]
        return ids

    return Original(model.eval(), open_tokenizer(folder / "tokenizer.json"), render, tokenize, threads)


def save_config(folder: Path, shape: Shape, tokenizer: GgufTokenizer) -> None:
    """Write config.json and generation_config.json."""
    ids: dict[str, Any] = {f"{kind}_token_id": tokenizer.special_ids.get(kind) for kind in ("bos", "eos", "pad")}
    config = transformers.AutoConfig.for_model(
        shape.architecture.model_type,
        architectures=[shape.architecture.hf],
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.context,
        vocab_size=shape.vocab,
        rms_norm_eps=shape.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        tie_word_embeddings=shape.tied,
        dtype="float32",
        **ids,
    )
    config.save_pretrained(folder)
    stops = list(tokenizer.stop_ids)
    ids["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    transformers.GenerationConfig(**ids).save_pretrained(folder)


def save_tokenizer(folder: Path, tokenizer: Tokenizer, fields: GgufTokenizer, context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    names = {
        f"{kind}_token": fields.tokens[fields.special_ids[kind]]
        for kind in ("bos", "eos", "pad", "unk")
        if kind in fields.special_ids
    }
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.template,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **names,
    ).save_pretrained(folder)
