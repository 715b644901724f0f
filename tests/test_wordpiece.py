"""The tokenizer against the `tokenizers` package, its reference, over the vocabulary that is shipped."""

import functools
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import edge_rag.models
from edge_rag.errors import ModelError, UsageError
from edge_rag.models.wordpiece import MAX_WORD_CHARS, SPECIAL_TOKENS, WordPiece

VOCAB = Path(edge_rag.models.__file__).parent / "data" / "all-minilm-l6-v2" / "vocab.txt"


@functools.cache
def ours() -> WordPiece:
    return WordPiece.load(VOCAB)


@functools.cache
def reference() -> Tokenizer:
    tokens = VOCAB.read_text(encoding="utf-8").splitlines()
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARS))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


@functools.cache
def known_to_both(character: str) -> bool:
    """Whether both sides' Unicode tables agree on it; the reference's are those of 2015."""
    normalizer, splitter = reference().normalizer, reference().pre_tokenizer
    kept = len(normalizer.normalize_str("a" + character + "b")) > 2
    kept_here = unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs", "Mn") and character != "\ufffd"
    split = len(splitter.pre_tokenize_str("a" + character + "b")) == 3
    split_here = unicodedata.category(character)[0] == "P" or character in "$+<=>^`|~"
    return character in "\t\n\r" or (kept == kept_here and split == split_here)


characters = st.characters(exclude_categories=["Cs"]).filter(known_to_both)
pieces = st.one_of(
    st.text(characters, max_size=8),
    st.text("abcdefgh ABC 123", max_size=8),
    st.text("é\u0301\u0308e\u0327ñÅİıßΣσςǅﬁ", max_size=6),
    st.text("中文字㐀豈𠀀𪜀한국어ひらカナ", max_size=6),
    st.text("\t\n\r \x00\x0b\x0c\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad\u200b\u200d\u2028\u3000\ufeff\ufffdab", max_size=8),
    st.text("👩‍👧🏽🇨🇭☃️", max_size=6),
    st.text("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»—…¿。、", max_size=6),
    st.sampled_from([*SPECIAL_TOKENS, "[sep]", "[ SEP ]", "[[MASK]]", "##ing", "x" * 100, "x" * 101, "un" * 60]),
)
texts = st.lists(pieces, max_size=8).map("".join)


@given(texts)
@settings(max_examples=1000, deadline=None)
def test_ids_are_those_of_the_reference(text: str) -> None:
    assert ours().encode(text, 1 << 30) == reference().encode(text).ids


def test_ids_of_real_text_are_those_of_the_reference() -> None:
    import pydoc_data.topics

    for text in pydoc_data.topics.topics.values():
        assert ours().encode(text, 1 << 30) == reference().encode(text).ids


def test_few_characters_are_known_to_one_side_only() -> None:
    unknown = sum(
        not known_to_both(chr(c)) for c in range(0x30000) if not 0xD800 <= c < 0xE000 and chr(c).isprintable()
    )
    assert unknown < 1500


@given(texts, texts, st.integers(3, 60))
@settings(max_examples=300, deadline=None)
def test_pairs_are_cut_like_the_reference_cuts_them(first: str, second: str, max_tokens: int) -> None:
    if ours().count(first) > max_tokens - 4:  # no room for one token of the second
        with pytest.raises(UsageError, match="the question has"):
            ours().encode_pair(first, second, max_tokens)
        return
    pairing = reference()
    pairing.enable_truncation(max_tokens, strategy="only_second")
    try:
        expected = pairing.encode(first, second)
    finally:
        pairing.no_truncation()
    assert ours().encode_pair(first, second, max_tokens) == (expected.ids, expected.type_ids)


@given(texts, st.integers(2, 20))
@settings(max_examples=200, deadline=None)
def test_a_cut_text_is_the_beginning_of_the_whole(text: str, max_tokens: int) -> None:
    whole = ours().encode(text, 1 << 30)
    cut = ours().encode(text, max_tokens)
    assert len(cut) == min(len(whole), max_tokens)
    assert cut[:-1] == whole[: len(cut) - 1]
    assert cut[-1] == whole[-1]


@given(texts)
@settings(max_examples=100, deadline=None)
def test_count_leaves_the_frame_out(text: str) -> None:
    assert ours().count(text) == len(ours().encode(text, 1 << 30)) - 2


def test_the_cache_stays_bounded() -> None:
    tokenizer = WordPiece.load(VOCAB)
    text = " ".join(f"w{i}" for i in range(100_000))
    tokenizer.count(text)
    tokenizer.count("long" * 1_000_000)
    assert len(tokenizer._words) <= 1 << 15
    assert max(map(len, tokenizer._words)) <= 48


def test_a_lone_surrogate_is_dropped() -> None:
    assert ours().encode("a\ud800b", 10) == ours().encode("ab", 10)


def test_a_vocabulary_without_special_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no \[PAD\]"):
        WordPiece(["a", "b"])
