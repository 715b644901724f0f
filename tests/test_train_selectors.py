"""Selectors that are trained: formulae by hand, losses beside others', and the commands from question files to ONNX."""

import json
import math
import shutil
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

import tiny_encoders
import torch
from edge_rag.export import onnx_parity
from edge_rag.export.hf_from_onnx import export_hf_encoder
from edge_rag.export.to_onnx import export_onnx
from edge_rag.train import losses, targets
from edge_rag.train.candidates import Candidate
from edge_rag.train.cross_encoder import CrossEncoder, GroupRow, open_cross_encoder, scores_of
from edge_rag.train.gain import PSEUDO, Gain, _Valuing
from edge_rag.train.language_model import Contrasted, Sampled
from edge_rag.train.radio import Rationales, _group
from edge_rag.train.run import TrainingRun
from edge_rag.train.selector import Asked, Group, Plan, read_groups
from edge_rag.train.writer import borrow
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import edge_rag
from question_rows import door_questions
from tiny_models import make_model

from edge_rag.answering.prompt import answer_messages, pseudo_passage_messages, says_nothing
from edge_rag.errors import ModelError, UsageError
from edge_rag.evaluation.question_sets import SetPassage, is_dev
from edge_rag.evaluation.run_folder import read_rows
from edge_rag.interfaces import Message
from edge_rag.library import Library
from edge_rag.models import locate_embedder
from edge_rag.models.embedder import OnnxEmbedder
from edge_rag.models.prompt_style import noted_style, prompt_fields, write_note
from edge_rag.models.selector import OnnxScorer
from edge_rag.settings import Settings
from edge_rag.testing import HashEmbedder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::FutureWarning:peft")

numbers = st.floats(-30, 30, allow_nan=False)


# --- what a passage is worth, and the share it is to have


def test_a_gain_is_that_of_the_answer_with_the_least_perplexity() -> None:
    perplexities = [8.0, 3.0, 100.0]
    assert targets.gain([-math.log(p) for p in perplexities]) == pytest.approx(-math.log(3.0 + 1))
    assert targets.gain([0.0]) == pytest.approx(-math.log(2))  # certain
    assert targets.gain([-2000.0]) == pytest.approx(-2000.0)  # the perplexity itself would be infinite


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=9))
def test_the_shares_of_gains_are_as_the_inverse_of_perplexities_and_one(perplexities: list[float]) -> None:
    found = targets.shares([targets.gain([-math.log(p)]) for p in perplexities])
    inverse = np.array([1 / (p + 1) for p in perplexities])
    assert found == pytest.approx(inverse / inverse.sum())


def test_a_low_temperature_sharpens() -> None:
    assert targets.shares([-1.0, -2.0], 0.1)[0] > 0.99 > targets.shares([-1.0, -2.0])[0] > 0.7


def test_gold_annotations_take_their_weight_and_share_it() -> None:
    found = np.array([0.6, 0.3, 0.1])
    assert targets.blended(found, [False, True, True], 0.5).tolist() == pytest.approx([0.3, 0.4, 0.3])
    assert targets.blended(found, [False, True, False], 1.0).tolist() == [0, 1, 0]
    assert targets.blended(found, [False] * 3, 0.5).tolist() == found.tolist()


@given(st.lists(numbers, min_size=1, max_size=9), st.lists(st.booleans(), min_size=9, max_size=9), st.floats(0, 1))
def test_blended_shares_are_shares(values: list[float], gold: list[bool], weight: float) -> None:
    found = targets.blended(targets.shares(values), gold[: len(values)], weight)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()


def test_rationale_and_search_are_fused_on_one_scale_and_ties_say_nothing() -> None:
    assert targets.fused([0.2, 0.6, 0.4], [10.0, 10.0, 30.0], 0.5).tolist() == pytest.approx([0.0, 0.5, 0.75])
    assert targets.fused([0.5, 0.5], [1.0, 3.0], 0.5).tolist() == [0.0, 0.5]
    assert targets.fused([0.5], [1.0], 0.5).tolist() == [0.0]


def test_negatives_are_those_of_the_published_ranks_that_there_are() -> None:
    assert targets.negatives(20) == targets.negatives(19) == (3, 4, 6, 9, 13, 18)
    assert targets.negatives(10) == (3, 4, 6, 9)
    assert targets.negatives(4) == (3,)
    assert targets.negatives(3) == (2,)
    assert targets.negatives(2) == (1,)


# --- the loss


def kl(scores: Sequence[float], shares: Sequence[float]) -> float:
    one = torch.ones(1, len(scores))
    return float(losses.group_kl(torch.tensor([list(scores)]), torch.tensor([list(shares)]), one))


def test_the_loss_is_none_where_the_scores_give_the_shares_and_cross_entropy_where_one_has_all() -> None:
    assert kl([math.log(x) + 7 for x in (0.5, 0.3, 0.2)], [0.5, 0.3, 0.2]) == pytest.approx(0, abs=1e-6)
    assert kl([0.0, 0.0], [0.75, 0.25]) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    scores = [0.3, -1.2, 2.0, 0.1]
    expected = torch.nn.functional.cross_entropy(torch.tensor([scores]), torch.tensor([0])).item()
    assert kl(scores, [1.0, 0.0, 0.0, 0.0]) == pytest.approx(expected)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9), st.integers(0, 4))
@settings(deadline=None)
def test_the_loss_is_no_less_than_none_and_padding_changes_nothing(values: list[tuple[float, float]], n: int) -> None:
    scores, worth = [score for score, _ in values], [value for _, value in values]
    found = kl(scores, targets.shares(worth).tolist())
    assert found >= -1e-4
    padded = torch.tensor([scores + [50.0] * n]).requires_grad_()
    shares = torch.tensor([[*targets.shares(worth).tolist(), *[0.0] * n]])
    loss = losses.group_kl(padded, shares, torch.tensor([[1.0] * len(scores) + [0.0] * n])).sum()
    assert loss.item() == pytest.approx(found, rel=1e-5, abs=1e-5)
    loss.backward()
    assert torch.isfinite(padded.grad).all() and (padded.grad[0, len(scores) :] == 0).all()


# --- the cross-encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.save(tmp_path_factory.mktemp("encoder") / "tiny", "bert")


@pytest.fixture(scope="module")
def judge(encoder: Path) -> CrossEncoder:
    return open_cross_encoder(encoder, max_tokens=64, threads=1, seed=0)


QUESTION = "Who kept the light?"
TEXTS = ["Thomas Moar kept the light from 1891 to 1914. " * 9, "A boat.", "", "Goats lived on the island. " * 3]


def rows_of(judge: CrossEncoder, worth: Sequence[Sequence[float]]) -> list[GroupRow]:
    return [
        GroupRow(judge.pairs(QUESTION, TEXTS[: len(v)]), tuple(targets.shares(v).tolist()), (True,) + (False,) * (len(v) - 1))
        for v in worth
    ]  # fmt: skip


def test_each_pair_is_scored_as_if_it_were_alone(judge: CrossEncoder) -> None:
    pairs = judge.pairs(QUESTION, TEXTS)
    assert [pair.n_tokens for pair in pairs] == [64, 11, 8, 26]
    with torch.no_grad():
        together = scores_of(judge.network, pairs, 0)
        alone = torch.cat([scores_of(judge.network, [pair], 0) for pair in pairs])
    assert torch.allclose(together, alone, atol=1e-5)
    assert len({round(score, 3) for score in alone.tolist()}) == len(pairs)


def test_the_loss_of_groups_is_that_of_each_and_nothing_is_dropped_out(judge: CrossEncoder) -> None:
    rows = rows_of(judge, [[-1.0, -2.0, -5.0], [-4.0, -1.0], [-1.0, -1.5, -2.0, -3.0]])
    judge.network.train()
    found, figures = judge.losses()(judge.network, rows)
    for row, loss in zip(rows, found.tolist(), strict=True):
        (alone,), _ = judge.losses()(judge.network, [row])
        assert alone.item() == pytest.approx(loss, abs=1e-5)
    assert set(figures) == {"best_first", "gold_first"}
    assert all(value in (0.0, 1.0) for values in figures.values() for value in values.tolist())


def test_the_losses_are_those_of_sentence_transformers(judge: CrossEncoder, tmp_path: Path) -> None:
    """ListNet is cross-entropy with softmax(labels): our KL divergence and the entropy of the labels."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.cross_encoder import CrossEncoder as Theirs
    from sentence_transformers.cross_encoder import losses as their_losses

    theirs = Theirs(str(judge.save(tmp_path)), device="cpu", max_length=64)
    worth = [[-1.0, -2.5, -5.0, -3.0], [-4.0, -1.0, -2.0, -2.0]]
    inputs: Any = [[QUESTION] * 2, [TEXTS, TEXTS]]
    with torch.no_grad():
        listwise = their_losses.ListNetLoss(theirs)(inputs, [torch.tensor(values) for values in worth])
        ours, _ = judge.losses()(judge.network, rows_of(judge, worth))
        entropy = -sum(float((p * np.log(p)).sum()) for p in map(targets.shares, worth)) / 2
        assert ours.mean().item() + entropy == pytest.approx(listwise.item(), abs=1e-4)
        best = [GroupRow(judge.pairs(QUESTION, TEXTS), (1.0, 0.0, 0.0, 0.0), (True,) * 4)]
        ranking = their_losses.MultipleNegativesRankingLoss(
            theirs, num_negatives=None, scale=1.0, activation_fn=torch.nn.Identity()
        )
        contrast = ranking([[QUESTION], *([text] for text in TEXTS)], torch.zeros(1))
        (found,), _ = judge.losses()(judge.network, best)
        assert found.item() == pytest.approx(contrast.item(), abs=1e-4)


def test_a_fresh_head_is_drawn_by_the_seed(judge: CrossEncoder, encoder: Path) -> None:
    def weights(seed: int) -> list[Any]:
        network = open_cross_encoder(encoder, max_tokens=64, threads=1, seed=seed).network
        return [value for name, value in network.state_dict().items() if "classifier" in name or "pooler" in name]

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_folder_that_is_none_or_too_short_is_said_so(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no config.json; make one: edge-rag export hf all-minilm-l6-v2 -o DIR"):
        open_cross_encoder(tmp_path, max_tokens=64, threads=1, seed=0)
    with pytest.raises(UsageError, match="positions for 300 tokens; give --max-tokens 300 or less"):
        open_cross_encoder(encoder, max_tokens=301, threads=1, seed=0)
    cut = shutil.copytree(encoder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cut cannot be opened"):
        open_cross_encoder(cut, max_tokens=64, threads=1, seed=0)


# --- an embedder back to a folder that can be trained


def quick(source: Path, target: Path, role: str, **options: Any) -> Any:
    return export_onnx(
        source, target, role, n_texts=60, timed=False, threads=1, sample=Path(typing.__file__), **options
    )


def test_an_exported_embedder_becomes_a_folder_again(encoder: Path, tmp_path: Path) -> None:
    quick(encoder, tmp_path / "both", "embedder", precision="both")
    found = export_hf_encoder(tmp_path / "both", tmp_path / "back", threads=1)
    assert (found["precision"], found["cosine_min"]) == ("fp32", 1.0)
    from safetensors.torch import load_file

    there, back = (load_file(folder / "model.safetensors") for folder in (encoder, tmp_path / "back"))
    for name, value in back.items():
        if "position" in name:  # the segments are in them
            value = value - there["embeddings.token_type_embeddings.weight"][0]
        if "token_type" not in name:
            assert torch.allclose(value, there[name], atol=1e-6), name
    quick(tmp_path / "back", tmp_path / "again", "embedder", precision="fp32")  # and it can be exported
    first, again = (OnnxEmbedder(tmp_path / name, precision="fp32").embed(TEXTS) for name in ("both", "again"))
    np.testing.assert_allclose(first, again, atol=1e-5)


def test_only_an_uncased_bert_can_go_back(tmp_path: Path) -> None:
    source = tiny_encoders.save(tmp_path / "source", "modernbert")
    quick(source, tmp_path / "onnx", "embedder", precision="fp32")
    with pytest.raises(ModelError, match="is no uncased BERT"):
        export_hf_encoder(tmp_path / "onnx", tmp_path / "back", threads=1)
    assert not (tmp_path / "back").exists()


@pytest.mark.slow
def test_the_packaged_embedder_goes_back_from_eight_bits(tmp_path: Path) -> None:
    found = export_hf_encoder(locate_embedder("all-minilm-l6-v2"), tmp_path / "minilm", threads=1)
    assert found["precision"] == "int8" and found["cosine_min"] > 0.995
    assert "license: Apache-2.0" in (tmp_path / "minilm" / "README.md").read_text()


# --- gains, with a model whose likes are known


class Oracle:
    """A generator that finds an answer the likelier the more of what it needs it is shown."""

    name, context_tokens = "oracle", 600

    def __init__(self, *needed: str) -> None:
        self.needed = needed
        self.n_scored = 0

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(" ".join(m.content for m in messages).split())

    def contrast(
        self, prompts: Any, without: Any, answers: Any, on_done: Any = None, *, alpha: float
    ) -> list[list[list[Contrasted]]]:
        done = []
        for index, (several, texts) in enumerate(zip(prompts, answers, strict=True)):
            done.append([[self._scored(prompt, text) for text in texts] for prompt in several])
            self.n_scored += len(several)
            on_done(index, done[-1])
        return done

    def _scored(self, prompt: Sequence[Message], text: str) -> Contrasted:
        lacking = sum(needed not in prompt[-1].content for needed in self.needed)
        value = -0.1 - 2.0 * lacking - (5.0 if text == "an alias" else 0.0)
        return Contrasted(text, (value / 2, value / 2), (value, value))

    def sample(self, prompts: Any, *, on_done: Any, **_: Any) -> list[list[Sampled]]:
        for index, prompt in enumerate(prompts):
            asks_passage = "background" in prompt[-1].content
            right = all(needed in prompt[-1].content for needed in self.needed)
            on_done(index, [Sampled("N/A" if asks_passage else "in Wick" if right else "no idea", -1.0, 2, True)])
        return []


HOPS = ["Skerry light was built by Alan Howe.", "Alan Howe was born in Wick.", "A goat lives on Skerry.", "Boats sail."]


def asked(*texts: str, answers: tuple[str, ...] = ("Wick", "wick.", "an alias"), gold: Sequence[int] = ()) -> Asked:
    candidates = tuple(Candidate(SetPassage(f"p{n}", f"T{n}", t, n in gold), 1.0 - n / 10) for n, t in enumerate(texts))
    return Asked("s:q", "s", "Where was the engineer born?", answers, candidates)


@pytest.fixture
def value(tmp_path: Path) -> Callable[..., list[Group]]:
    """value(model, gain, asked...) returns the groups; what is scored is remembered from call to call."""
    generator = tmp_path / "generator"
    generator.write_text("weights")

    def make(model: Any, gain: Gain, *questions: Asked) -> list[Group]:
        with TrainingRun.open(tmp_path / "run", {}, command="test", force=True) as run:
            valuing = _Valuing(run, gain, generator, None, Plan(("s",)), Settings(threads=1), None)
            valued = valuing.value(model, "train", questions, Counter())
            return [
                valuing.group(one) for one in (valuing.right(model, "train", valued) if gain.only_right else valued)
            ]

    return make


def test_what_holds_the_answer_is_worth_most(value: Callable[..., list[Group]]) -> None:
    (group,) = value(Oracle("born in Wick"), Gain(), asked(*HOPS))
    worth = [member.worth for member in group.members]
    assert worth[1] == max(w for w in worth if w is not None) == pytest.approx(-math.log1p(math.exp(0.1)))
    assert [m.rank for m in group.members] == [1, 2, 3, 4]
    assert sum(m.share or 0 for m in group.members) == pytest.approx(1)
    assert worth[0] == worth[2] == worth[3] == pytest.approx(-math.log1p(math.exp(2.1)))


def test_plain_and_contrastive_gains_are_scored_once(value: Callable[..., list[Group]]) -> None:
    model = Oracle("born in Wick")
    contrastive = value(model, Gain(), asked(*HOPS))
    assert model.n_scored == 4
    plain = value(model, Gain(kind="plain", gold=0.5, temperature=0.5), asked(*HOPS, gold=[0]))
    assert model.n_scored == 4
    assert plain[0].members[1].worth == pytest.approx(-math.log1p(math.exp(0.05)))
    assert plain[0].members[0].share > 0.5 > contrastive[0].members[0].share  # type: ignore[operator]


def test_a_question_that_is_not_answered_rightly_is_left_out(value: Callable[..., list[Group]]) -> None:
    assert value(Oracle("by Alan Howe", "born in Wick"), Gain(), asked(*HOPS)) == []
    assert len(value(Oracle("by Alan Howe", "born in Wick"), Gain(only_right=False), asked(*HOPS))) == 1
    assert value(Oracle("born in Wick"), Gain(), asked(*HOPS, answers=("Oslo",))) == []


def test_passages_that_help_only_together_are_found_together(value: Callable[..., list[Group]]) -> None:
    model = Oracle("by Alan Howe", "born in Wick")
    (group,) = value(model, Gain(together=3), asked(*HOPS))  # and now the question is answered rightly
    shares = [member.share for member in group.members]
    assert model.n_scored == 4 + 3 + 2  # a third one adds nothing, and ends it
    assert shares[0] == pytest.approx(shares[1], rel=0.5) and min(shares[:2]) > 2 * max(shares[2:])
    alone = value(model, Gain(only_right=False), asked(*HOPS))[0]
    assert max(member.share for member in alone.members) < 0.5  # type: ignore[type-var]


def test_what_leaves_no_room_for_the_answer_is_left_out(value: Callable[..., list[Group]]) -> None:
    (group,) = value(Oracle("born in Wick"), Gain(), asked(*HOPS, "born in Wick " * 300))
    assert [m.share is None for m in group.members] == [False] * 4 + [True]


def test_the_generator_is_asked_as_it_was_trained_to_be(tmp_path: Path) -> None:
    with TrainingRun.open(tmp_path / "run", {}, command="test") as run:
        styled = {
            s: _Valuing(run, Gain(style=s), tmp_path, None, Plan(("s",)), Settings(), None)
            for s in ("words", "rationale")
        }  # type: ignore[arg-type]
    question = asked(*HOPS)
    assert styled["words"].prompt(question, ()) == answer_messages(question.question, (), style="words")
    assert styled["words"].given(question) == ["Wick", "an alias"]
    assert styled["rationale"].prompt(question, ())[-1] == Message("assistant", "Answer:")
    assert styled["rationale"].given(question) == [" Wick", " an alias"]


@pytest.mark.parametrize("text", ["", " ", "N/A", "n/a.", "NA", "I don't know.", "I am not sure about this", "Unknown",
                                  "This is not in these documents.", "None."])  # fmt: skip
def test_a_generator_that_does_not_know_is_understood(text: str) -> None:
    assert says_nothing(text)


@pytest.mark.parametrize("text", ["Nathan built it.", "I was born in Wick.", "Nonesuch House", "Wick", "I can swim."])
def test_and_one_that_does_is_not_mistaken(text: str) -> None:
    assert not says_nothing(text)
    assert text not in pseudo_passage_messages("Who?")[-1].content


def test_a_style_that_was_noted_is_taken(tmp_path: Path) -> None:
    assert noted_style(None, tmp_path) == "sentence"
    write_note(tmp_path, prompt_fields("words", 1, ""))
    assert noted_style(None, tmp_path) == "words"
    (tmp_path / "adapter").mkdir()
    write_note(tmp_path / "adapter", prompt_fields("rationale", 1, ""))
    assert noted_style(tmp_path / "adapter", tmp_path) == "rationale"


def test_settings_that_make_no_sense_are_refused() -> None:
    for changes in ({"alpha": -1.0}, {"temperature": 0.0}, {"gold": 1.5}, {"together": 0}):
        with pytest.raises(UsageError, match="make no sense"):
            Gain(**changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="weight of 2"):
        Rationales(weight=2)


# --- rationales


def test_the_best_by_rationale_and_search_is_right_and_what_holds_the_answer_may_be_spared() -> None:
    texts = [f"Text {n} about goats." for n in range(12)]
    texts[5] = "The engineer was born in Wick, Alan Howe's home."
    texts[9] = "In Wick there are goats."
    question = asked(*texts, gold=[5], answers=("Wick",))
    rationale = "The engineer was born in Wick, Alan Howe's home."
    plain = _group(question, rationale, Rationales(weight=1.0), HashEmbedder())
    assert plain is not None
    ranking = sorted(plain.members, key=lambda m: -(m.worth or 0))
    assert ranking[0].id == "p5" and ranking[0].share == 1.0
    assert [n for n, m in enumerate(ranking) if m.share == 0.0] == [3, 4, 6, 9]
    spared = _group(question, rationale, Rationales(weight=1.0, spared=True), HashEmbedder())
    assert spared is not None
    assert next(m for m in spared.members if m.id == "p9").share is None
    only = asked("In Wick.", "By Wick.", answers=("Wick",))
    assert _group(only, rationale, Rationales(spared=True), HashEmbedder()) is None


# --- the commands


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("generator") / "model")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return door_questions(tmp_path_factory.mktemp("questions") / "doors.jsonl")


def command(method: str, encoder: Path, questions: Path, out: Path, *more: object) -> list[object]:
    quickly = ["--batch", 4, "--evaluate-every", 8, "--max-tokens", 200, "--learning-rate", 0.001]
    return ["train", method, "--base", encoder, "--set", questions, "--out", out, *quickly, *more]


@pytest.fixture(scope="module")
def relevant(encoder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("relevance")
    done = edge_rag(*command("relevance", encoder, questions, folder / "run", "--epochs", 6), home=folder / "home")
    assert f"to use it: edge-rag export selector {folder / 'run'} -o selector" in done.stdout
    return folder / "run"


def test_a_selector_learns_which_passages_are_gold(relevant: Path) -> None:
    metrics = read_rows(relevant / "metrics.jsonl")
    dev = [row["dev_loss"] for row in metrics if "dev_loss" in row]
    assert min(dev) < dev[0] - 0.2
    for part in ("train", "dev"):
        groups = read_groups(relevant, part)  # type: ignore[arg-type]
        assert groups
        for group in groups:
            assert is_dev(group.question) == (part == "dev")
            assert [m.share for m in group.members if m.gold] == [1.0] and len(group.members) == 3
    assert "gold first" in (relevant / "page.html").read_text()


def test_the_command_that_it_names_makes_a_selector_of_it(
    relevant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so small a model scores unrelated text nearly alike, so that rounding swaps it
    monkeypatch.setitem(onnx_parity.FLOORS, ("selector", "int8"), {"spearman": 0.8, "top5_overlap": 0.5})
    monkeypatch.setattr("edge_rag.export.selector.FEWEST", 2)
    done = edge_rag("export", "selector", relevant, "-o", tmp_path / "selector", "--untimed", home=tmp_path / "home")
    assert "gold there or taken away, told apart (AUC)" in done.stdout
    scorer = OnnxScorer(tmp_path / "selector", threads=1)
    assert (scorer.name, scorer.precision, scorer.max_tokens) == ("run", "int8", 200)
    assert scorer.calibration is not None and 0 < scorer.calibration.threshold < 1
    report = json.loads((tmp_path / "selector" / "parity.json").read_text())["calibration"]["int8"]
    assert report["n_questions"] == len(read_groups(relevant, "dev")) and report["auroc"][0] > 0.5
    assert edge_rag("export", "selector", relevant, "-o", tmp_path / "selector", home=tmp_path / "home", expect=2)
    first = 0
    groups = read_groups(relevant, "train")
    for group in groups:
        texts = [f"{m.title}\n{m.text}" for m in group.members]
        first += group.members[int(scorer.score(group.question, texts).argmax())].gold
    assert first > 0.6 * len(groups)  # one in three by chance


def test_gains_are_remembered_and_shown(encoder: Path, generator: Path, questions: Path, tmp_path: Path) -> None:
    more = ["--generator", generator, "--keep-all", "--limit", 8, "--dev-limit", 2, "--epochs", 1]
    run = tmp_path / "run"
    edge_rag(*command("gain", encoder, questions, run, *more), home=tmp_path / "home")
    stored = (run / "rows" / "gains.jsonl").read_bytes()
    groups = read_groups(run, "train")
    assert 4 < len(groups) <= 8
    assert all(len(g.members) == 3 + any(m.id == PSEUDO for m in g.members) for g in groups)
    shown = edge_rag("train", "inspect", run, "--limit", 2, home=tmp_path / "home").stdout
    assert groups[0].question in shown and shown.count(" gold ") == 2
    as_json = edge_rag("train", "inspect", run, "--part", "dev", "--json", home=tmp_path / "home").stdout
    assert json.loads(as_json)[0]["members"][0]["worth"] < 0
    shutil.rmtree(run / "groups")
    (run / "rows" / "gains.jsonl").write_bytes(stored[: len(stored) // 2])  # killed half-way
    edge_rag(*command("gain", encoder, questions, run, *more), home=tmp_path / "home")
    assert sorted((run / "rows" / "gains.jsonl").read_bytes().splitlines()) == sorted(stored.splitlines())
    assert read_groups(run, "train") == groups
    refused = edge_rag(
        *command("gain", encoder, questions, run, *more, "--gold", 0.5), home=tmp_path / "home", expect=2
    )
    assert "gain.gold is 0.0 there and 0.5 now" in refused.stderr
    edge_rag(*command("gain", encoder, questions, run, *more, "--gold", 0.5, "--force"), home=tmp_path / "home")
    assert sorted((run / "rows" / "gains.jsonl").read_bytes().splitlines()) == sorted(stored.splitlines())
    assert read_groups(run, "train") != groups


def test_gains_of_another_run_are_taken_over(tmp_path: Path) -> None:
    with TrainingRun.open(tmp_path / "one", {}, command="test") as one, one.rows("gains") as rows:
        rows.add("a", {"plain": -1.0, "contrastive": -2.0})
    with TrainingRun.open(tmp_path / "two", {}, command="test") as two:
        for _ in range(2):
            borrow(tmp_path / "one", two, "gains")
        with two.rows("gains") as rows:
            assert len(rows) == 1 and rows["a"]["plain"] == -1.0
        with pytest.raises(UsageError, match="holds no gains"):
            borrow(tmp_path, two, "gains")


def test_candidates_come_from_a_library_where_what_holds_the_answer_counts_as_gold(
    encoder: Path, questions: Path, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "docs").mkdir()
    for row in map(json.loads, questions.read_text().splitlines()):
        gold = next(p for p in row["passages"] if p["gold"])
        (tmp_path / "docs" / f"{row['id']}.txt").write_text(gold["text"])
    with Library.open(tmp_path / "library", create=True) as library:
        library.add([tmp_path / "docs"])
    more = ["--library", tmp_path / "library", "--limit", 8, "--dev-limit", 3, "--candidates", 4, "--epochs", 1]
    edge_rag(*command("relevance", encoder, questions, tmp_path / "run", *more), home=home)
    for group in read_groups(tmp_path / "run", "train"):
        assert len(group.members) == 4
        assert [m.gold for m in group.members] == [group.answers[0] in m.text for m in group.members]


def test_rationales_are_quotes_or_written(encoder: Path, generator: Path, questions: Path, tmp_path: Path) -> None:
    quickly = ["--limit", 12, "--dev-limit", 3, "--epochs", 1]
    quoted = command("radio", encoder, questions, tmp_path / "quoted", *quickly, "--rationale", "quotes", "--weight", 1)
    edge_rag(*quoted, home=tmp_path / "home")
    groups = read_groups(tmp_path / "quoted", "train")
    assert all([m.gold for m in g.members if m.share == 1.0] == [True] for g in groups)  # it is quoted
    written = command("radio", encoder, questions, tmp_path / "written", *quickly, "--generator", generator)
    edge_rag(*written, home=tmp_path / "home")
    assert len(read_rows(tmp_path / "written" / "rows" / "written.jsonl")) >= len(
        read_groups(tmp_path / "written", "train")
    )


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("relevance", {"--base": "nowhere"}, "edge-rag export hf all-minilm-l6-v2"),
        ("relevance", {"--set": "nowhere"}, "there is no set or file"),
        ("relevance", {"--search": "by heart"}, "use one of: fused, dense, lexical"),
        ("radio", {}, "give --generator, or --rationale quotes"),
        ("radio", {"--rationale": "rhyme"}, "use one of: model, quotes"),
        ("gain", {"--generator": "nowhere"}, "holds no config.json"),
        ("gain", {"--prompt": "rhyme"}, "use one of: words, sentence, rationale"),
        ("gain", {"--adapter": "nowhere"}, "holds no adapter_config.json"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_leaves_no_run(
    encoder: Path, generator: Path, questions: Path, tmp_path: Path, method: str, change: dict[str, str], said: str
) -> None:
    words = command(method, encoder, questions, tmp_path / "run")
    words += ["--generator", generator] if method == "gain" else []
    for flag, value in change.items():
        words += [flag, value]
    if "--set" in change:
        words[words.index(questions)] = "nowhere"
    done = edge_rag(*words, home=tmp_path / "home", expect=1 if "--set" in change else 2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_questions_that_teach_nothing_are_said_so(
    encoder: Path, generator: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    rows = [
        {"id": str(n), "question": f"Which {n}?", "answers": ["x"], "passages": [{"id": "p", "text": "x"}]}
        for n in range(30)
    ]
    done = edge_rag(*command("relevance", encoder, write(*rows), tmp_path / "run"), home=tmp_path / "home", expect=1)
    assert "with fewer than two candidates; give other sets" in done.stderr
    with pytest.raises(UsageError, match="holds no groups"):
        read_groups(tmp_path, "train")
