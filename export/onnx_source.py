"""What `export onnx` takes: a Hugging Face folder of an encoder, opened by transformers, and what of it is refused."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from edge_rag.errors import ModelError, UsageError
from edge_rag.models.cores import usable_cores

from .model_folder import ModelFolder, read_json, read_json_if_there
from .onnx_graph import Array, first_position

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "modernbert")
ROLES = ("embedder", "selector")
POOLINGS = ("mean", "cls")
_OLD_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a folder says about how its model is used, checked."""

    folder: ModelFolder
    role: str
    pooling: str  # "mean" or "cls"; "" for a selector
    max_tokens: int  # special tokens included


def plan(path: Path, role: str, *, pooling: str = "", max_tokens: int = 0) -> Plan:
    """Read a folder's configuration; ModelError if it is not one that the graphs are known to compute alike."""
    if role not in ROLES:
        raise UsageError(f"{role!r} is no role", mend=f"use one of {', '.join(ROLES)}")
    folder = ModelFolder(path)
    _check_architecture(folder.config, path)
    if role == "selector":
        _check_head(folder.config, path)
        pooling = ""
    else:
        pooling = _pooling(path, pooling)
    return Plan(folder, role, pooling, _max_tokens(path, folder.config, max_tokens))


class Original:
    """The model as transformers runs it, in float32, one text at a time."""

    def __init__(self, planned: Plan, *, threads: int = 0) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(usable_cores(threads))
        self.plan = planned
        path = planned.folder.path
        self.tokenizer = _open_tokenizer(path)
        self._model = _open_model(planned)
        prefix = self._model.base_model_prefix + "."
        self.config = self._model.config
        self.weights: dict[str, Array] = {
            name.removeprefix(prefix): value.numpy() for name, value in self._model.state_dict().items()
        }
        limit = _positions(self.config)
        if planned.max_tokens > limit:
            raise UsageError(f"{path} has positions for {limit} tokens, not for {planned.max_tokens}",
                             mend=f"give --max-tokens {limit} or less")  # fmt: skip
        if len(self.tokenizer) > self.config.vocab_size:
            raise ModelError(f"{path}: the tokenizer has {len(self.tokenizer)} tokens, the model {self.config.vocab_size}",
                             mend="copy the tokenizer that the model was trained with into the folder")  # fmt: skip

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=self.plan.max_tokens).input_ids
        return ids

    def encode_pair(self, question: str, passage: str) -> tuple[list[int], list[int]]:
        encoded = self.tokenizer(  # as lists: an empty passage alone is taken for none
            [question], [passage], truncation="only_second", max_length=self.plan.max_tokens, return_token_type_ids=True
        )
        return encoded.input_ids[0], encoded.token_type_ids[0]

    def embed(self, texts: Sequence[str]) -> Array:
        with torch.inference_mode():
            states = [self._model(input_ids=torch.tensor([self.encode(text)])).last_hidden_state for text in texts]
            pooled = [state.mean(dim=1)[0] if self.plan.pooling == "mean" else state[0, 0] for state in states]
            vectors: Array = torch.nn.functional.normalize(torch.stack(pooled), dim=1).numpy()
        return vectors

    def score(self, pairs: Sequence[tuple[str, str]]) -> Array:
        with torch.inference_mode():
            logits = [self._model(**self._inputs(*self.encode_pair(*pair))).logits[0, 0] for pair in pairs]
            scores: Array = torch.stack(logits).numpy()
        return scores

    def peaks(self, samples: Sequence[Any]) -> dict[str, Array]:
        """Return the largest magnitude that each input channel of each linear layer takes on texts or pairs."""
        peaks: dict[str, torch.Tensor] = {}
        prefix = self._model.base_model_prefix + "."

        def watch(name: str) -> Any:
            def note(_module: Any, inputs: Any) -> None:
                peak = inputs[0].abs().amax(dim=tuple(range(inputs[0].dim() - 1)))
                peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

            return note

        hooks = [
            module.register_forward_pre_hook(watch(name.removeprefix(prefix)))
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear)
        ]
        self.run(samples)
        for hook in hooks:
            hook.remove()
        return {name: peak.numpy() for name, peak in peaks.items()}

    def run(self, samples: Sequence[Any]) -> Array:
        """Return vectors of texts, or scores of pairs."""
        return self.embed(samples) if self.plan.role == "embedder" else self.score(samples)

    def _inputs(self, ids: list[int], segments: list[int]) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.tensor([ids])}
        if getattr(self.config, "type_vocab_size", 1) > 1:
            inputs["token_type_ids"] = torch.tensor([segments])
        return inputs


def is_uncased_bert(tokenizer: dict[str, Any]) -> bool:
    """Tell whether a tokenizer.json is what models/wordpiece.py computes."""
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer") or {}
    special = {token["content"] for token in tokenizer["added_tokens"]}
    return (
        model.get("type") == "WordPiece"
        and (model["unk_token"], model["continuing_subword_prefix"], model["max_input_chars_per_word"])
        == ("[UNK]", "##", 100)
        and normalizer.get("type") == "BertNormalizer"
        and bool(normalizer["clean_text"] and normalizer["handle_chinese_chars"] and normalizer["lowercase"])
        and normalizer["strip_accents"] in (None, True)
        and (tokenizer.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        and special == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
        and sorted(model["vocab"].values()) == list(range(len(model["vocab"])))
    )


def vocabulary(tokenizer: dict[str, Any]) -> bytes:
    """Return the words of a WordPiece tokenizer as a vocab.txt."""
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    return ("\n".join(sorted(ids, key=ids.__getitem__)) + "\n").encode()


# --- what is refused ---


def _check_architecture(config: dict[str, Any], path: Path) -> None:
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ModelError(f"{path}: model_type is {kind!r}, and {', '.join(ARCHITECTURES)} are known", mend=_OTHER_MODEL)
    wanted = {
        "hidden_act": "gelu", "hidden_activation": "gelu", "classifier_activation": "gelu", "is_decoder": False,
        "add_cross_attention": False, "position_embedding_type": "absolute", "quantization_config": None,
        "rope_scaling": None,
    }  # fmt: skip
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ModelError(f"{path}: {key} is {config[key]!r}; only {value!r} is known", mend=_OTHER_MODEL)
    for rope in (config.get("rope_parameters") or {}).values():
        if isinstance(rope, dict) and rope.get("rope_type", "default") != "default":
            raise ModelError(f"{path}: rope_type is {rope['rope_type']!r}; only 'default' is known", mend=_OTHER_MODEL)


def _check_head(config: dict[str, Any], path: Path) -> None:
    heads = config.get("architectures") or []
    if not any(str(head).endswith("ForSequenceClassification") for head in heads):
        raise ModelError(f"{path} holds {', '.join(map(str, heads)) or 'no head'}, no cross-encoder",
                         mend="give a model trained as ...ForSequenceClassification with one label")  # fmt: skip
    n_labels = config.get(
        "num_labels", len(config.get("id2label") or {0: "", 1: ""})
    )  # transformers takes two for granted
    if n_labels != 1:
        raise ModelError(
            f"{path} has {n_labels} labels; a selector has one, the score", mend="train it with num_labels=1"
        )


def _pooling(path: Path, asked: str) -> str:
    """Return how token states become one vector, as sentence-transformers' modules.json says or as asked for."""
    if asked and asked not in POOLINGS:
        raise UsageError(f"{asked!r} is no pooling", mend="use mean or cls")
    if not (path / "modules.json").is_file():
        if not asked:
            raise ModelError(f"{path} holds no modules.json, so how its token states become one vector is not known",
                             mend="give --pooling mean or --pooling cls, as it was trained")  # fmt: skip
        return asked
    modules = _read_modules(path / "modules.json")
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ModelError(f"{path}: modules.json lists {', '.join(kinds)}; Transformer, Pooling and Normalize are known",
                         mend=_OTHER_MODEL)  # fmt: skip
    extras = read_json_if_there(path / "config_sentence_transformers.json")
    if extras.get("default_prompt_name"):
        raise ModelError(f"{path} puts a prompt before each text, {extras['default_prompt_name']!r}, and the runtime none",
                         mend=_OTHER_MODEL)  # fmt: skip
    if "Normalize" not in kinds and str(extras.get("similarity_fn_name") or "cosine") != "cosine":
        raise ModelError(f"{path} compares with {extras['similarity_fn_name']!r}, and the runtime with the cosine",
                         mend=_OTHER_MODEL)  # fmt: skip
    found = read_json(path / str(modules[1].get("path", "")) / "config.json")
    mode = found.get("pooling_mode")  # as sentence-transformers writes it today; before, one key for each mode
    modes = (
        [mode] if isinstance(mode, str) else mode or [_OLD_POOLINGS.get(k, k) for k, v in found.items() if v is True]
    )
    modes = [mode for mode in modes if mode != "include_prompt"]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ModelError(
            f"{path}: its pooling is {' and '.join(modes) or 'not named'}; mean and cls are known", mend=_OTHER_MODEL
        )
    if asked and asked != modes[0]:
        raise UsageError(f"{path} was trained with {modes[0]} pooling, not {asked}", mend="leave out --pooling")
    return str(modes[0])


def _read_modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
            raise ValueError("no list of modules")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", mend="copy the folder again") from error
    return modules


_OTHER_MODEL = "export another model, or run this one with transformers"


def _max_tokens(path: Path, config: dict[str, Any], asked: int) -> int:
    """Return the most tokens of one run: as asked, else as the folder says, else as many as there are positions."""
    stated = read_json_if_there(path / "sentence_bert_config.json").get("max_seq_length")
    stated = stated or read_json_if_there(path / "tokenizer_config.json").get("model_max_length")
    offset = 2 if config["model_type"] in ("roberta", "xlm-roberta") else 0
    positions = int(config.get("max_position_embeddings", 512)) - offset
    found = asked or min(positions, int(stated) if stated else positions)
    if found < 8:
        raise UsageError(f"{found} tokens are too few for a text", mend="give --max-tokens 8 or more")
    return found


def _positions(config: Any) -> int:
    return int(config.max_position_embeddings) - first_position(config)


def _open_model(planned: Plan) -> Any:
    path = planned.folder.path
    kind = transformers.AutoModel if planned.role == "embedder" else transformers.AutoModelForSequenceClassification
    try:
        model, found = kind.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # transformers raises what its parts raise
        raise ModelError(f"{path} cannot be opened: {_first_line(error)}", mend="check it with transformers") from error
    # What a checkpoint lacks, transformers fills with random numbers.
    invented = sorted(name for name in found["missing_keys"] if planned.role == "selector" or "pooler" not in name)
    if invented or found["mismatched_keys"]:
        name = invented[0] if invented else str(sorted(found["mismatched_keys"])[0])
        raise ModelError(
            f"{path} holds no weights for {name}", mend="give the folder that the trained model was saved to"
        )
    return model.eval()


def _open_tokenizer(path: Path) -> Any:
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise ModelError(f"{path} holds no tokenizer.json", mend="save the model's tokenizer into the folder")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        tokenizer.backend_tokenizer.to_str()
    except Exception as error:
        raise ModelError(f"{path}: the tokenizer cannot be opened: {_first_line(error)}",
                         mend="save the model's tokenizer into the folder") from error  # fmt: skip
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
