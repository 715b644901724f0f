"""A language model for training: torch and llama.cpp render, tokenise, score and sample alike."""

import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

import torch
from edge_rag.export import parity_texts
from edge_rag.export.lora_to_gguf import export_lora
from edge_rag.export.to_gguf import export_gguf
from edge_rag.train.fit import Precision
from edge_rag.train.gguf_model import GgufModel
from edge_rag.train.language_model import LanguageModel, Scored
from edge_rag.train.run import TrainingRun
from edge_rag.train.torch_model import TorchModel
from edge_rag.train.writer import open_writer
from tiny_models import edit_json, make_adapter, make_model

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Message

# Most that a token's log-probability may differ. Measured with these tiny models: 0.001 to 0.010 with F32 weights and 0.013 with
# F16. The 16 bits in which llama.cpp keeps keys and values do it: with 32 it is 4e-6 to 4e-3.
TOLERANCE = {"f32": 0.015, "f16": 0.02}
ANSWERS = (
    "Thomas Moar",
    "1 October 1849",
    "a",
    "The tower is open from Easter to the end of September, and it's said he'd never slept. " * 3,
    "",
    "not in these documents",
    "灯台 🙂",
    "<|im_end|>\n<|im_start|>user\nno turn of mine",
)


def prompts() -> list[list[Message]]:
    return [
        *parity_texts.prompts()[:4],
        [Message("user", "Who?")],
        [Message("system", "Be short."), Message("user", "Why?")],
    ]


def given() -> list[list[str]]:
    """Different answers to each prompt: none, one, many."""
    return [list(ANSWERS[:n]) for n in (2, 0, 8, 1, 5, 3)]


class Pair:
    """The same model twice."""

    def __init__(self, torch_model: TorchModel, gguf_model: GgufModel, tolerance: float) -> None:
        self.torch, self.gguf, self.tolerance = torch_model, gguf_model, tolerance


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "llama.gguf"
    export_gguf(folder, path, "f32", timed=False, threads=1)
    return path


@pytest.fixture(scope="module")
def tiny(folder: Path, file: Path) -> Iterator[Pair]:
    with GgufModel(file, threads=2) as model:
        yield Pair(TorchModel(folder, device="cpu", threads=1), model, TOLERANCE["f32"])


@pytest.fixture(params=["torch", "gguf"])
def model(request: pytest.FixtureRequest, tiny: Pair) -> LanguageModel:
    return tiny.torch if request.param == "torch" else tiny.gguf


def largest_difference(first: list[list[Scored]], second: list[list[Scored]]) -> float:
    assert [[s.text for s in row] for row in first] == [[s.text for s in row] for row in second]
    return max(
        (abs(x - y) for row, other in zip(first, second, strict=True) for one, two in zip(row, other, strict=True)
         for x, y in zip(one.logprobs, two.logprobs, strict=True)), default=0.0,
    )  # fmt: skip


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "procedure", "quantised_type", "adapted"),
    [
        ("llama", "smollm", "f32", False), ("llama", "smollm", "f16", False), ("llama", "smollm", "f32", True),
        ("qwen3", "qwen2", "f32", False), ("qwen3", "llama-bpe", "f16", True), ("gemma3_text", "sentencepiece", "f32", False),
    ],
)  # fmt: skip
def test_both_engines_give_the_same_log_probabilities(
    tmp_path: Path, model_type: str, procedure: str, quantised_type: str, adapted: bool
) -> None:
    base = make_model(tmp_path / "base", model_type, procedure=procedure)
    export_gguf(base, tmp_path / "base.gguf", quantised_type, timed=False, threads=1)
    adapter = lora = None
    if adapted:
        adapter, lora = make_adapter(tmp_path / "adapter", base), tmp_path / "adapter.gguf"
        export_lora(adapter, lora, timed=False, threads=1)
    one = TorchModel(base, adapter, device="cpu", threads=1)
    with GgufModel(tmp_path / "base.gguf", lora, threads=1) as two:
        assert [one.count_tokens(p) for p in prompts()] == [two.count_tokens(p) for p in prompts()]
        scored = one.score(prompts(), given()), two.score(prompts(), given())
    assert largest_difference(*scored) < TOLERANCE["f16" if adapted else quantised_type]
    assert sum(s.sum for row in scored[0] for s in row) < -50  # they say something


def test_torch_writes_where_bfloat16_is_fast_and_llama_cpp_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # a GPU writes with torch always
    adapter = make_adapter(tmp_path / "adapter", folder)
    found = {}
    wanted: tuple[tuple[bool, Precision, type], ...] = (
        (True, "auto", TorchModel), (False, "auto", GgufModel), (True, "float32", GgufModel),
    )  # fmt: skip
    for is_fast, precision, engine in wanted:
        monkeypatch.setattr("edge_rag.train.writer.computes_in_bfloat16", lambda *_, is_fast=is_fast: is_fast)
        out = tmp_path / f"{is_fast} {precision}"
        with (
            TrainingRun.open(out, {"method": "x"}, command="x") as run,
            open_writer(
                run, "writer", folder, adapter, context_tokens=1024, threads=1, precision=precision, progress=None
            ) as writer,
        ):
            assert isinstance(writer, engine)
            found[is_fast, precision] = writer.score(prompts()[:2], [list(ANSWERS[:2])] * 2)
        assert (out / "writer").exists() == (engine is GgufModel)  # a GGUF is made only for llama.cpp
    means = [[s.mean for row in found[key] for s in row] for key in ((True, "auto"), (False, "auto"))]
    # bfloat16 has 8 bits: measured .08 with this model, and at most .13 of 48 answers' means with SmolLM2-135M
    assert max(abs(x - y) for x, y in zip(*means, strict=True)) < 0.15


def test_an_adapter_changes_what_is_likely(folder: Path, tmp_path: Path, tiny: Pair) -> None:
    adapted = TorchModel(folder, make_adapter(tmp_path / "adapter", folder), device="cpu", threads=1)
    assert largest_difference(adapted.score(prompts(), given()), tiny.torch.score(prompts(), given())) > 0.5


def test_a_live_model_is_scored_as_its_folder_is(folder: Path, tiny: Pair) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    live = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    model = TorchModel.of(live, AutoTokenizer.from_pretrained(folder), name="live")
    assert largest_difference(model.score(prompts(), given()), tiny.torch.score(prompts(), given())) < 1e-5
    assert live.training
    live(
        input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])
    ).loss.backward()  # it can still be trained


@pytest.mark.parametrize("procedure", ["smollm", "qwen2", "llama-bpe", "sentencepiece", "sentencepiece prefix"])
def test_hostile_texts_get_the_same_tokens(tmp_path: Path, procedure: str) -> None:
    base = make_model(tmp_path / "base", "mistral", procedure=procedure)
    export_gguf(base, tmp_path / "base.gguf", "f32", timed=False, threads=1)
    one = TorchModel(base, device="cpu", threads=1).vocabulary
    with GgufModel(tmp_path / "base.gguf", threads=1) as model:
        two = model._batch._vocabulary
        for text in (*parity_texts.HOSTILE, "half \ud83d a character"):
            if procedure == "qwen2" and "e\u0301" in text:
                continue  # that tokenizer composes, which llama.cpp does not
            assert one.prompt_tokens([Message("user", text)]) == two.prompt_tokens([Message("user", text)]), text
            begun = [Message("user", "Who?"), Message("assistant", text)]
            assert one.prompt_tokens(begun) == two.prompt_tokens(begun), text
            answer = one.answer_tokens(text, ended=True)
            assert answer == two.answer_tokens(text, ended=True), text
            assert [t for t in answer if one.is_control(t)] == [one.end_token]
        assert one.end_token == two.end_token


@pytest.mark.parametrize("procedure", ["smollm", "qwen2", "llama-bpe", "sentencepiece"])
def test_an_answer_has_the_tokens_of_the_whole_text(tmp_path: Path, procedure: str) -> None:
    """As training sees it: the prompt, the answer, and what the template puts after it."""
    from transformers import AutoTokenizer

    base = make_model(tmp_path / "base", procedure=procedure)
    vocabulary = TorchModel(base, device="cpu", threads=1).vocabulary
    tokenizer = AutoTokenizer.from_pretrained(base)
    for prompt in parity_texts.prompts():
        for answer in (*ANSWERS[:4], "灯台 🙂"):
            chat = [{"role": m.role, "content": m.content} for m in [*prompt, Message("assistant", answer.strip())]]
            whole = vocabulary.tokenize(tokenizer.apply_chat_template(chat, tokenize=False), add_special=False)
            parts = vocabulary.prompt_tokens(prompt) + vocabulary.answer_tokens(answer.strip(), ended=True)
            assert whole[: len(parts)] == parts


@pytest.mark.slow
def test_on_the_real_model(generator_file: Path, tmp_path: Path) -> None:
    """The default model, in F32 in both: measured 0.011 for a token and 0.006 for the mean of an answer."""
    from edge_rag.export.hf_from_gguf import export_hf

    from edge_rag.models.quantise import requantize

    export_hf(generator_file, tmp_path / "folder")
    requantize(generator_file, tmp_path / "model.gguf", "F32")
    one = TorchModel(tmp_path / "folder", device="cpu", threads=1)
    with GgufModel(tmp_path / "model.gguf", threads=1) as two:
        for text in parity_texts.HOSTILE:
            messages = [Message("user", text)]
            assert one.vocabulary.prompt_tokens(messages) == two._batch._vocabulary.prompt_tokens(messages)
        scored = one.score(prompts(), given()), two.score(prompts(), given())
    assert largest_difference(*scored) < 0.03
    for row, other in zip(*scored, strict=True):
        assert [s.mean for s in row] == pytest.approx([s.mean for s in other], abs=0.015)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_a_score_depends_on_its_prompt_and_answer_only(tiny: Pair, folder: Path) -> None:
    together = tiny.torch.score(prompts(), given())
    alone = [[tiny.torch.score([p], [[text]])[0][0] for text in row] for p, row in zip(prompts(), given(), strict=True)]
    assert largest_difference(together, alone) < 1e-4
    small = TorchModel(folder, device="cpu", threads=1, batch_tokens=64)
    assert largest_difference(together, small.score(prompts(), given())) < 1e-4
    together = tiny.gguf.score(prompts(), given())
    alone = [[tiny.gguf.score([p], [[text]])[0][0] for text in row] for p, row in zip(prompts(), given(), strict=True)]
    assert together == alone


def test_log_probabilities_are_those_of_the_whole_text(tiny: Pair, folder: Path) -> None:
    """Computed the plain way: one text, one pass, no cache."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    vocabulary = tiny.torch.vocabulary
    for prompt, texts, found in zip(prompts(), given(), tiny.torch.score(prompts(), given()), strict=True):
        for text, scored in zip(texts, found, strict=True):
            begin, answer = vocabulary.prompt_tokens(prompt), vocabulary.answer_tokens(text, ended=True)
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([begin + answer])).logits[0].log_softmax(-1)
            expected = [float(logits[len(begin) - 1 + i, token]) for i, token in enumerate(answer)]
            assert scored.logprobs == pytest.approx(expected, abs=1e-4)
            assert scored.sum == pytest.approx(sum(expected), abs=1e-3)
            assert scored.mean == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_the_first_tokens_of_all_answers_share_one(tiny: Pair, model: LanguageModel) -> None:
    """Probabilities of all single tokens, and of the end, after one prompt: none is more than what there is."""
    texts = sorted({tiny.torch.vocabulary.text([token]) for token in range(3, 400)} - {"", "\ufffd"})
    tokens = [tiny.torch.vocabulary.answer_tokens(text, ended=False) for text in texts]
    single = [text for text, ids in zip(texts, tokens, strict=True) if len(ids) == 1]
    (found,) = model.score([prompts()[4]], [[*single, ""]])
    assert 0.5 < sum(math.exp(s.logprobs[0]) for s in found) < 1.0


def test_what_prompts_have_in_common_is_computed_once(tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    passages = "The lamp was lit in 1849, and the keeper went home. " * 6
    asked = [
        [Message("user", f"{passages}\n{text}")] for text in ("Who?", "When was it, and by whom?", "Why?", "Where to?")
    ]
    others = prompts()[:2]
    mixed = [others[0], *asked, others[1]]
    texts = [list(ANSWERS[: 1 + n % 3]) for n in range(len(mixed))]
    alone = [tiny.torch.score([prompt], [each])[0] for prompt, each in zip(mixed, texts, strict=True)]
    drawn = [tiny.torch.sample([prompt], n=2, max_tokens=6, temperature=1.0, seed=3)[0] for prompt in mixed]
    n_computed, rows = [], []
    compute = tiny.torch._compute

    def counted(tokens: Any, *rest: Any) -> Any:
        n_computed.append(tokens.numel())
        rows.append(len(tokens))
        return compute(tokens, *rest)

    monkeypatch.setattr(tiny.torch, "_compute", counted)
    assert largest_difference(tiny.torch.score(mixed, texts), alone) < 1e-4
    n_answers = sum(len(tiny.torch.vocabulary.answer_tokens(t, ended=True)) for each in texts for t in each)
    assert sum(n_computed) < 0.6 * sum(map(tiny.torch.count_tokens, mixed)) + 3 * n_answers
    assert tiny.torch.sample(mixed, n=2, max_tokens=6, temperature=1.0, seed=3) == [
        [replace(s, logprob=pytest.approx(s.logprob, abs=1e-4)) for s in each] for each in drawn
    ]
    assert max(rows) == 3  # what is alike, and each of the others: never one for each question or answer


def test_an_answer_that_goes_on_has_no_end(model: LanguageModel) -> None:
    prompt, answer = prompts()[0], "Thomas Moar"
    ((whole,),) = model.score([prompt], [[answer]])
    ((open_,),) = model.score([prompt], [[answer]], ended=False)
    assert open_.logprobs == pytest.approx(whole.logprobs[:-1], abs=1e-4)
    ((rest,),) = model.score([[*prompt, Message("assistant", "Thomas")]], [[" Moar"]])
    assert rest.logprobs == pytest.approx(whole.logprobs[-len(rest.logprobs) :], abs=0.01)
    with pytest.raises(UsageError, match=r"answer 1 to prompt 0 .* is empty"):
        model.score([prompt], [["x", ""]], ended=False)


# --- contrasts --------------------------------------------------------------------------------------------------------


def shown() -> list[list[list[Message]]]:
    """Prompts that are compared with those of prompts(): none, one, or several that begin alike."""
    texts = ["The lamp was lit in 1849. " * n for n in (0, 3, 1, 6)]
    return [
        [[Message("system", "Read."), Message("user", text + prompt[-1].content)] for text in texts[:n]]
        for n, prompt in zip((2, 1, 0, 3, 4, 1), prompts(), strict=True)
    ]


def asked() -> list[list[str]]:
    return [[text for text in texts if text] for texts in given()]


def test_contrasts_are_those_of_the_formula_and_of_both_engines(tiny: Pair, folder: Path) -> None:
    """Computed the plain way: the whole text twice, and the two rows of logits joined."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    vocabulary = tiny.torch.vocabulary

    def logits(prompt: list[Message], answer: list[int]) -> torch.Tensor:
        tokens = vocabulary.prompt_tokens(prompt) + answer
        with torch.no_grad():
            return plain(input_ids=torch.tensor([tokens])).logits[0, -len(answer) - 1 : -1]

    found = tiny.torch.contrast(shown(), prompts(), asked(), alpha=0.5)
    other = tiny.gguf.contrast(shown(), prompts(), asked(), alpha=0.5)
    n_compared = 0
    for several, without, texts, one, two in zip(shown(), prompts(), asked(), found, other, strict=True):
        assert len(one) == len(two) == len(several)
        for prompt, scores, same in zip(several, one, two, strict=True):
            assert [c.text for c in scores] == [c.text for c in same] == texts
            for c, d in zip(scores, same, strict=True):
                answer = vocabulary.answer_tokens(c.text, ended=False)
                there, here = logits(without, answer), logits(prompt, answer)
                expected = (1.5 * here - 0.5 * there).log_softmax(-1)[range(len(answer)), answer]
                assert c.contrasts == pytest.approx(expected.tolist(), abs=5e-4)
                assert c.logprobs == pytest.approx(here.log_softmax(-1)[range(len(answer)), answer].tolist(), abs=1e-4)
                assert d.logprobs == pytest.approx(c.logprobs, abs=tiny.tolerance)
                assert d.contrasts == pytest.approx(c.contrasts, abs=2 * tiny.tolerance)  # 1 + 2 alpha times the error
                n_compared += c.logprobs != c.contrasts
    assert n_compared > 20


def test_a_contrast_depends_on_its_prompts_and_answer_only(tiny: Pair) -> None:
    whole = tiny.gguf.contrast(shown(), prompts(), asked(), alpha=0.5)
    for several, without, texts, found in zip(shown(), prompts(), asked(), whole, strict=True):
        last = texts[-1:]
        for prompt, scores in zip(several, found, strict=True):
            assert tiny.gguf.contrast([[prompt]], [without], [last], alpha=0.5) == [[scores[-1:]]]
            (scored,) = tiny.gguf.score([prompt], [last], ended=False)
            assert [s.logprobs for s in scored] == [c.logprobs for c in scores[-1:]]


def test_without_alpha_a_contrast_is_a_score_and_each_question_is_told_once(model: LanguageModel) -> None:
    told: dict[int, Any] = {}
    found = model.contrast(shown(), prompts(), asked(), lambda index, result: told.setdefault(index, result), alpha=0.0)
    assert [told[i] for i in range(len(found))] == found
    assert all(
        c.contrasts == pytest.approx(c.logprobs, abs=1e-5) for question in found for scores in question for c in scores
    )
    with pytest.raises(UsageError, match="does not fit into 2048"):
        model.contrast([[[Message("user", "word " * 3000)]]], prompts()[:1], [["a"]], alpha=0.5)
    with pytest.raises(UsageError, match="is empty"):
        model.contrast([[]], prompts()[:1], [[""]], alpha=0.5)


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_are_scored_as_what_they_are(model: LanguageModel) -> None:
    """What a sample says of itself is what it scores as a given answer, where its tokens are those of its text."""
    asked = [*prompts(), [*prompts()[0], Message("assistant", "Thomas")]]
    found = model.sample(asked, n=40, max_tokens=2, temperature=0.7, seed=5)
    assert [len(row) for row in found] == [40] * len(asked)
    differences = []
    for prompt, row in zip(asked, found, strict=True):
        for sample in {s for s in row if s.text.isascii() and s.text}:
            ((scored,),) = model.score([prompt], [[sample.text]], ended=sample.is_whole)
            if len(scored.logprobs) == sample.n_tokens + sample.is_whole:
                differences.append(abs(scored.mean - sample.logprob))
    assert len(differences) > 20
    assert (
        sorted(differences)[int(0.9 * len(differences))] < 0.01
    )  # some texts could have been written in other tokens, too


def test_a_sample_depends_on_seed_prompt_and_number_only(model: LanguageModel) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0}
    found = model.sample(prompts(), n=4, seed=7, **options)
    texts = [[s.text for s in row] for row in found]
    backwards = model.sample(prompts()[::-1], n=4, seed=7, **options)
    assert [[s.text for s in row] for row in backwards[::-1]] == texts
    (alone,) = model.sample(prompts()[2:3], n=2, seed=7, **options)
    assert [s.text for s in alone] == texts[2][:2]
    assert len({text for row in texts for text in row}) > 12
    other = model.sample(prompts(), n=4, seed=8, **options)
    assert [[s.text for s in row] for row in other] != texts


def test_both_engines_draw_the_same(tiny: Pair) -> None:
    for top_p in (1.0, 0.8):
        options: dict[str, Any] = {"n": 4, "max_tokens": 6, "temperature": 0.8, "seed": 3, "top_p": top_p}
        one, two = tiny.torch.sample(prompts(), **options), tiny.gguf.sample(prompts(), **options)
        pairs = [(a, b) for row, other in zip(one, two, strict=True) for a, b in zip(row, other, strict=True)]
        alike = [(a, b) for a, b in pairs if a.text == b.text and abs(a.logprob - b.logprob) < 0.01]
        assert len(alike) >= 0.8 * len(pairs)
        assert {(a.n_tokens, a.is_whole) for a, _ in alike} == {(b.n_tokens, b.is_whole) for _, b in alike}


def test_tokens_come_as_often_as_they_are_likely(model: LanguageModel) -> None:
    prompt = prompts()[4]
    (found,) = model.sample([prompt], n=400, max_tokens=1, temperature=1.0, seed=1)
    often = max((s.text for s in found if s.text.isascii() and s.text), key=[s.text for s in found].count)
    ((scored,),) = model.score([prompt], [[often]], ended=False)
    assert len(scored.logprobs) == 1
    share, expected = [s.text for s in found].count(often) / 400, math.exp(scored.sum)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 400)
    (few,) = model.sample([prompt], n=400, max_tokens=1, temperature=1.0, top_p=0.05, seed=1)
    assert len({s.text for s in few}) < len({s.text for s in found})
    (cold,) = model.sample([prompt], n=3, max_tokens=5, temperature=0.0, seed=1)
    assert len({s.text for s in cold}) == 1


# --- the call ---------------------------------------------------------------------------------------------------------


def test_each_prompt_is_told_once_with_what_is_returned(model: LanguageModel) -> None:
    told: dict[int, Any] = {}

    def tell(index: int, result: Any) -> None:
        assert index not in told
        told[index] = result

    found = model.sample(prompts(), n=2, max_tokens=4, temperature=1.0, seed=2, on_done=tell)
    assert [told[i] for i in range(len(found))] == found
    told.clear()
    scored = model.score(prompts(), given(), tell)
    assert [told[i] for i in range(len(scored))] == scored
    assert model.sample([], n=2, max_tokens=4, temperature=1.0, seed=2) == model.score([], []) == []


def test_cores_work_beside_each_other_and_tell_in_the_calling_thread(tiny: Pair, folder: Path) -> None:
    two = TorchModel(folder, device="cpu", threads=2, batch_tokens=64)
    before, told = torch.get_num_threads(), []
    found = two.score(prompts(), given(), lambda index, result: told.append((index, threading.get_ident())))
    assert largest_difference(found, tiny.torch.score(prompts(), given())) < 1e-4
    assert sorted(told) == [(index, threading.get_ident()) for index in range(len(prompts()))]
    drawn = [m.sample(prompts(), n=2, max_tokens=6, temperature=1.0, seed=3) for m in (two, tiny.torch)]
    assert [[s.text for s in each] for each in drawn[0]] == [[s.text for s in each] for each in drawn[1]]
    assert torch.get_num_threads() == before

    def interrupt(index: int, result: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two.score(prompts(), given(), interrupt)
    assert len(two.score(prompts(), given())) == len(prompts())


def test_what_on_done_raises_ends_the_call(model: LanguageModel) -> None:
    def fail(index: int, result: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.score(prompts(), given(), fail)
    with pytest.raises(ZeroDivisionError):
        model.sample(prompts(), n=2, max_tokens=4, temperature=1.0, seed=2, on_done=fail)
    assert len(model.score(prompts()[:1], [["a"]])) == 1


def test_what_makes_no_sense_is_said_in_one_line(model: LanguageModel) -> None:
    long = [Message("user", "word " * 3000)]
    with pytest.raises(UsageError, match=r"prompt 1 .* tokens: with an answer of 8 it does not fit into 2048"):
        model.sample([prompts()[0], long], n=1, max_tokens=8, temperature=1.0, seed=0)
    with pytest.raises(UsageError, match=r"prompt 0 .* does not fit into 2048"):
        model.score([prompts()[0]], [["word " * 3000]])
    with pytest.raises(UsageError, match="2 prompts came with answers to 1"):
        model.score(prompts()[:2], [["a"]])
    for options, reason in (
        ({"n": 0}, "0 samples"), ({"temperature": -1.0}, "temperature -1.0"), ({"temperature": math.nan}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"), ({"max_tokens": -1}, "-1 tokens"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=reason):
            model.sample(prompts(), **({"n": 1, "max_tokens": 4, "temperature": 1.0, "seed": 0} | options))


def test_a_folder_that_is_no_model_is_named_with_what_makes_one(folder: Path, tmp_path: Path) -> None:
    mend = r"edge-rag export hf NAME -o DIR"
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(UsageError, match=rf"holds no config.json; .*{mend}"):
            TorchModel(place)
    cut = shutil.copytree(folder, tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(ModelError, match=rf"cut cannot be opened: .*{mend}"):
        TorchModel(tmp_path / "cut")
    with pytest.raises(UsageError, match=r"is no folder of a Hugging Face adapter: it holds no adapter_config\.json"):
        TorchModel(folder, tmp_path / "empty")
    weights = make_adapter(tmp_path / "adapter", folder) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"adapter on .* cannot be opened: .*; give an adapter of this model"):
        TorchModel(folder, tmp_path / "adapter")
    with pytest.raises(UsageError, match="'int4' is no type"):
        TorchModel(folder, dtype="int4")
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(bare / "tokenizer_config.json", chat_template=None)
    with pytest.raises(ModelError, match="bare has no chat template"):
        TorchModel(bare)


def test_a_model_that_predicts_no_numbers_is_an_error(folder: Path, file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    values = tensors["model.norm.weight"].numpy().tobytes()[4:]
    content = file.read_bytes()
    assert content.count(values) == 1
    at = content.index(values) - 4
    (tmp_path / "broken.gguf").write_bytes(content[:at] + b"\xff\xff\xff\x7f" + content[at + 4 :])
    with GgufModel(tmp_path / "broken.gguf", threads=2) as gguf:
        for model in (TorchModel(broken, device="cpu", threads=1), gguf):
            with pytest.raises(ModelError, match="no numbers"):
                model.score(prompts(), given())
            with pytest.raises(ModelError, match="no numbers"):
                model.sample(prompts(), n=2, max_tokens=4, temperature=1.0, seed=0)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("engine", ["torch", "gguf"])
def test_ctrl_c_ends_it_soon(folder: Path, file: Path, engine: str) -> None:
    code = (
        "import sys; from pathlib import Path; from edge_rag.interfaces import Message\n"
        "if sys.argv[1] == 'torch':\n"
        "    from edge_rag.train.torch_model import TorchModel; m = TorchModel(Path(sys.argv[2]), device='cpu', threads=1)\n"
        "else:\n"
        "    from edge_rag.train.gguf_model import GgufModel; m = GgufModel(Path(sys.argv[3]), threads=2)\n"
        "prompts = [[Message('user', f'{i} ' + 'Write a long story. ' * 40)] for i in range(2000)]\n"
        "print('started', flush=True)\n"
        "try:\n"
        "    m.score(prompts, [['a story', 'b story'] * 4] * len(prompts), lambda i, r: print('done', flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    arguments = [sys.executable, "-c", code, engine, str(folder), str(file)]
    started = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    assert started.stdout is not None
    while "done" not in (line := started.stdout.readline()):
        assert line
    asked = time.perf_counter()
    started.send_signal(signal.SIGINT)
    while "interrupted" not in (line := started.stdout.readline()):
        assert line
    waited = time.perf_counter() - asked
    started.communicate(timeout=60)
    assert started.returncode == 0
    assert waited < 5  # about half a second on an idle machine
