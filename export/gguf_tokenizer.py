"""tokenizer.json to what a GGUF says of a tokenizer, and back.

llama.cpp has no general tokenizer: how text is cut before byte-pair merges is one of some compiled-in procedures, chosen by
name. So the steps that a tokenizer.json takes are compared with those of the procedures that are known here, and a
tokenizer that does anything else is refused. That both then give the same ids is tried on hostile texts by parity.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edge_rag.errors import ModelError

from .model_folder import read_json, read_json_if_there

Step = tuple[Any, ...]
_BYTES_BY_REGEX: Step = ("ByteLevel", False, True)  # no space before the text; cut by GPT-2's pattern
_BYTES: Step = ("ByteLevel", False, False)
_DIGITS: Step = ("Digits", True)
_SPACE = "\u2581"  # what SentencePiece writes for a space
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CUT = "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"


def _split(pattern: str) -> Step:
    return ("Split", pattern, "Isolated", False)


@dataclass(frozen=True, slots=True)
class Procedure:
    """How llama.cpp cuts a text, and the tokenizer.json that does the same."""

    name: str  # tokenizer.ggml.pre
    steps: tuple[Step, ...]
    ignores_merges: bool = False  # a piece that is a token by itself is not taken apart
    composes: bool = False  # the tokenizers that are cut so compose characters first (NFC); llama.cpp does not


PROCEDURES = (
    Procedure("smollm", (_DIGITS, _BYTES_BY_REGEX)),
    Procedure("gpt-2", (_BYTES_BY_REGEX,)),
    Procedure("qwen2", (_split(_CONTRACTIONS + _CUT % ""), _BYTES), composes=True),
    Procedure("llama-bpe", (_split(_CONTRACTIONS + _CUT % "{1,3}"), _BYTES), ignores_merges=True),
    Procedure("smaug-bpe", (_split(_CONTRACTIONS + _CUT % "{1,3}"), _BYTES)),
)
NFC_NOTE = "the tokenizer composes characters (NFC), llama.cpp does not: texts with decomposed characters get other ids"


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The tokenizer.* fields of a GGUF."""

    procedure: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special_ids: Mapping[str, int]  # "bos", "eos", "pad", "unk", "eot", "eom"; those that there are
    add_bos: bool
    add_eos: bool
    template: str
    stop_ids: tuple[int, ...]  # tokens that end an answer
    notes: tuple[str, ...]  # what is not the same in llama.cpp, and known
    kind: str = "gpt2"  # byte-level BPE; "llama" is BPE with a score for each token, as SentencePiece has it
    scores: tuple[float, ...] = ()  # for "llama" in place of merges
    space_prefix: bool = False


def read_tokenizer(folder: Path, vocab_size: int) -> GgufTokenizer:
    """Read the tokenizer of a model folder; ModelError if llama.cpp would tokenise otherwise."""
    path = folder / "tokenizer.json"
    content = read_json(path)
    settings = read_json_if_there(folder / "special_tokens_map.json") | read_json_if_there(
        folder / "tokenizer_config.json"
    )
    _check_model(content, str(path))  # before the tokenizers package opens it, which some values make end the process
    if content["model"].get("byte_fallback"):
        return _with_scores(_read_common(folder, content, settings, vocab_size, "default", ()), content, str(path))
    procedure, notes = _procedure_of(content, str(path))
    fields = _read_common(folder, content, settings, vocab_size, procedure.name, notes)
    return replace(fields, merges=_merges_of(content, str(path)))


def _read_common(
    folder: Path, content: Mapping[str, Any], settings: Mapping[str, Any], vocab_size: int, procedure: str,
    notes: tuple[str, ...],
) -> GgufTokenizer:  # fmt: skip
    path = folder / "tokenizer.json"
    tokens, types = _tokens_of(content, vocab_size, str(path))
    ids = {text: i for i, text in enumerate(tokens)}
    special_ids = {
        kind: ids[text]
        for kind in ("bos", "eos", "pad", "unk")
        if (text := _text(settings.get(f"{kind}_token"))) is not None and text in ids
    }
    if "eos" not in special_ids:
        raise ModelError(
            f"{folder}: no eos_token is named, so no answer would end", mend="name it in tokenizer_config.json"
        )
    stop_ids = _stop_ids(folder, special_ids["eos"], vocab_size)
    special_ids |= dict(zip(("eot", "eom"), stop_ids[1:], strict=False))
    add_bos, add_eos = _added_around(path, special_ids)
    return GgufTokenizer(
        procedure=procedure,
        tokens=tokens,
        types=types,
        merges=[],
        special_ids=special_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        template=_template_of(folder, settings),
        stop_ids=stop_ids,
        notes=notes,
    )


def open_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer.json."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise ModelError(f"{path} cannot be read: {error}", mend="copy the folder again") from error


def composes(procedure_name: str) -> bool:
    return any(procedure.name == procedure_name and procedure.composes for procedure in PROCEDURES)


def build_tokenizer(fields: GgufTokenizer, place: str) -> Tokenizer:
    """Make the tokenizers.Tokenizer that does what llama.cpp does with these fields."""
    procedure = next((p for p in PROCEDURES if p.name == fields.procedure), None)
    if procedure is None:
        raise _unknown(place, f"the procedure {fields.procedure!r}")
    kinds = list(zip(fields.tokens, fields.types, strict=True))
    vocab = {text: i for i, (text, kind) in enumerate(kinds) if kind != TokenType.UNUSED}
    model = models.BPE(
        vocab=vocab,
        merges=[_pair(merge, place) for merge in fields.merges],
        ignore_merges=procedure.ignores_merges,
    )
    tokenizer = Tokenizer(model)
    if procedure.composes:
        tokenizer.normalizer = normalizers.NFC()
    steps = [_STEP_MAKERS[step[0]](*step[1:]) for step in procedure.steps]
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    control = [AddedToken(text, special=True, normalized=False) for text, kind in kinds if kind == TokenType.CONTROL]
    others = [
        AddedToken(text, special=False, normalized=False) for text, kind in kinds if kind == TokenType.USER_DEFINED
    ]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(others)
    bos = [fields.tokens[fields.special_ids["bos"]]] * fields.add_bos
    eos = [fields.tokens[fields.special_ids["eos"]]] * fields.add_eos
    if bos or eos:
        ids = [(text, vocab[text]) for text in {*bos, *eos}]
        tokenizer.post_processor = processors.TemplateProcessing(single=[*bos, "$A", *eos], special_tokens=ids)
    return tokenizer


_STEP_MAKERS: dict[str, Any] = {
    "Digits": lambda individual: pre_tokenizers.Digits(individual_digits=individual),
    "ByteLevel": lambda space, regex: pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=regex),
    "Split": lambda pattern, behaviour, invert: pre_tokenizers.Split(Regex(pattern), behaviour.lower(), invert),
}


def _check_model(content: Mapping[str, Any], place: str) -> None:
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        raise _unknown(place, f"a model of the type {model.get('type')}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _unknown(place, f"{key} = {model[key]!r}")


def _procedure_of(content: Mapping[str, Any], place: str) -> tuple[Procedure, tuple[str, ...]]:
    model = content["model"]
    normalizer = content.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise _unknown(place, f"the normalizer {normalizer.get('type')}")
    steps = tuple(_steps_of(content.get("pre_tokenizer")))
    for procedure in PROCEDURES:
        if procedure.steps == steps and procedure.ignores_merges == bool(model.get("ignore_merges")):
            return procedure, (NFC_NOTE,) if normalizer else ()
    shown = ", ".join(str(step[0]) for step in steps) or "nothing"
    raise _unknown(
        place, f"the steps {shown} before its merges{' and ignore_merges' * bool(model.get('ignore_merges'))}"
    )


def _steps_of(part: Mapping[str, Any] | None) -> list[Step]:
    """Flatten a pre_tokenizer to what of it changes ids."""
    if part is None:
        return []
    kind = part.get("type")
    if kind == "Sequence":
        return [step for inner in part["pretokenizers"] for step in _steps_of(inner)]
    if kind == "Digits":
        return [("Digits", part["individual_digits"])]
    if kind == "ByteLevel":
        return [("ByteLevel", part["add_prefix_space"], part.get("use_regex", True))]
    if kind == "Split":
        return [("Split", part["pattern"].get("Regex"), part["behavior"], part["invert"])]
    return [(kind,)]


def _tokens_of(content: Mapping[str, Any], vocab_size: int, place: str) -> tuple[list[str], list[int]]:
    """Return the text and the kind of each id; ids without a token, which pad the embedding, get names of their own."""
    texts: dict[int, str] = {i: text for text, i in content["model"]["vocab"].items()}
    types = dict.fromkeys(texts, int(TokenType.NORMAL))
    for token in content.get("added_tokens") or ():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _unknown(place, f"an added token that takes white space with it, {token['content']!r}")
        texts[token["id"]] = token["content"]
        types[token["id"]] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    if max(texts) >= vocab_size:
        raise ModelError(
            f"{place} has {max(texts) + 1} tokens, and the model knows {vocab_size}",
            mend="resize the model's embeddings to its tokenizer, and save both",
        )
    names = set(texts.values())
    if len(names) != len(texts) or "" in names:  # llama.cpp would end the process
        raise _unknown(place, "two tokens of one text, or an empty one")
    for i in range(vocab_size):
        if i not in texts:
            texts[i], types[i] = f"[PAD{i}]", int(TokenType.UNUSED)
            if texts[i] in names:
                raise _unknown(place, f"a token {texts[i]!r}")
    return [texts[i] for i in range(vocab_size)], [types[i] for i in range(vocab_size)]


def _merges_of(content: Mapping[str, Any], place: str) -> list[str]:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"].get("merges") or ()]
    if not pairs:
        raise _unknown(place, "no merges")
    if any(len(pair) != 2 or " " in pair[0] or " " in pair[1] for pair in pairs):
        raise _unknown(place, "a merge of more than two parts")
    return [f"{a} {b}" for a, b in pairs]


def _with_scores(fields: GgufTokenizer, content: Mapping[str, Any], place: str) -> GgufTokenizer:
    """Complete the fields of a tokenizer that was a SentencePiece model, as those of Gemma and Mistral 7B were."""
    model = content["model"]
    if model.get("ignore_merges"):
        raise _unknown(place, "byte_fallback and ignore_merges")
    for step in _flat(content.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] != "Split" or step["pattern"] != {"String": " "}:  # there are no spaces left to cut at
            raise _unknown(place, f"byte_fallback and the step {step['type']}")
    normalizers = [{**step} for step in _flat(content.get("normalizer"), "normalizers")]
    prefix = {"type": "Prepend", "prepend": _SPACE}
    if normalizers[-1:] != [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}] or (
        normalizers[:-1] not in ([], [prefix])
    ):
        raise _unknown(place, "byte_fallback and other normalizers than those of SentencePiece")
    if "unk" not in fields.special_ids or "bos" not in fields.special_ids:
        raise _unknown(place, "byte_fallback and no unk_token or no bos_token")
    types = [*fields.types]
    types[fields.special_ids["unk"]] = int(TokenType.UNKNOWN)
    for byte in range(256):
        token = f"<0x{byte:02X}>"
        if token not in model["vocab"]:
            raise _unknown(place, f"byte_fallback and no {token}")
        types[model["vocab"][token]] = int(TokenType.BYTE)
    scores = _scores_of(content, types, place)
    return replace(fields, kind="llama", types=types, scores=scores, space_prefix=prefix in normalizers)


def _scores_of(content: Mapping[str, Any], types: list[int], place: str) -> tuple[float, ...]:
    """Turn merges in their order into scores of the tokens that they make.

    llama.cpp joins the neighbours whose token has the best score, whatever they are; tokenizers go by the order of listed pairs.
    That is the same if all pairs that make a token are listed, and one after another.
    """
    vocab = content["model"]["vocab"]
    scores = [0.0] * len(types)
    n_pairs: dict[str, int] = {}
    last = ""
    for rank, merge in enumerate(content["model"]["merges"]):
        made = "".join(merge.split(" ") if isinstance(merge, str) else merge)
        if made not in n_pairs:
            scores[vocab[made]] = -1.0 - rank
        elif made != last:
            raise _unknown(place, f"pairs that make {made!r} at two places in its merges")
        n_pairs[made] = n_pairs.get(made, 0) + 1
        last = made
    for token, i in vocab.items():
        if types[i] == TokenType.NORMAL:
            expected = sum(token[:n] in vocab and token[n:] in vocab for n in range(1, len(token)))
            if expected != n_pairs.get(token, 0):
                raise _unknown(place, f"pairs that make {token!r} and are not among its merges")
    return tuple(scores)


def _flat(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return [step for p in part[inner] for step in _flat(p, inner)] if part["type"] == "Sequence" else [part]


def _pair(merge: str, place: str) -> tuple[str, str]:
    first, space, second = merge.partition(" ")
    if not space or not second:
        raise _unknown(place, f"the merge {merge!r}")
    return first, second


def _stop_ids(folder: Path, eos: int, vocab_size: int) -> tuple[int, ...]:
    """Return all tokens that end an answer, the tokenizer's own first."""
    said = read_json_if_there(folder / "generation_config.json").get("eos_token_id")
    if said is None:
        said = read_json(folder / "config.json").get("eos_token_id")
    listed = said if isinstance(said, list) else [] if said is None else [said]
    wrong = [i for i in listed if not isinstance(i, int) or not 0 <= i < vocab_size]
    if wrong:
        raise ModelError(f"{folder}: the eos_token_id {wrong[0]!r} is no token", mend="correct generation_config.json")
    return tuple(dict.fromkeys([eos, *listed]))


def _added_around(path: Path, special_ids: Mapping[str, int]) -> tuple[bool, bool]:
    """Try out what the tokenizer puts before and after a text."""
    tokenizer = open_tokenizer(path)
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for add_bos in (False, True):
        for add_eos in (False, True):
            before = [special_ids.get("bos", -1)] * add_bos
            after = [special_ids["eos"]] * add_eos
            if full == before + bare + after:
                return add_bos, add_eos
    raise _unknown(str(path), f"the ids {full} for 'a', whose own are {bare}")


def _template_of(folder: Path, settings: Mapping[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ModelError(
            f"{folder} has no chat template, so the model could not be asked anything",
            mend="put the one that it was trained with into chat_template.jinja",
        )
    return template


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _unknown(place: str, what: str) -> ModelError:
    known = ", ".join(p.name for p in PROCEDURES)
    return ModelError(
        f"{place}: llama.cpp has no tokenizer with {what}",
        mend=f"SentencePiece's BPE and byte-level BPE like these can be exported: {known}",
    )
