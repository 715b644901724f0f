"""Losses against hand-made cases, and the training step: packed answers, pieces, resuming, two processes, trouble."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from edge_rag.train import losses
from edge_rag.train.answers import (
    Row,
    answer_logps,
    answer_losses,
    answers_loss,
    sharing_prompt,
    sharing_prompts,
    usual_lengths,
    weighed,
)
from edge_rag.train.attention import use_blocks
from edge_rag.train.fit import Fitting, fit, last_checkpoint, pieces_of
from edge_rag.train.rose import Preferences, preference_loss
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_rag.errors import EdgeRagError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::FutureWarning:peft")

VOCABULARY = 50


def tiny_network(kind: str = "llama", *, lora: bool = False, seed: int = 0, **fields: Any) -> Any:
    import peft
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=256, **fields,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config)
    if lora:
        network = peft.get_peft_model(
            network, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    return network


def tiny_rows(n: int, answers: int = 1, seed: int = 0) -> list[Row]:
    """Prompts whose answer is their first token, over and over: easily learnt."""
    draw = torch.Generator().manual_seed(seed)

    def numbers(count: int, most: int) -> list[int]:
        return torch.randint(3, most, (count,), generator=draw).tolist()  # type: ignore[no-any-return]

    rows = []
    for _ in range(n):
        prompt = numbers(int(numbers(1, 30)[0]), VOCABULARY)
        rows.append(Row(tuple(prompt), tuple((prompt[0],) * numbers(1, 7)[0] for _ in range(answers))))
    return rows


def nll(logps: Any, mask: Any, _: Any) -> tuple[Any, dict[str, Any]]:
    loss = losses.answer_nll(logps, mask)
    return loss, {"likelihood": torch.exp(-loss)}


NLL = answer_losses(nll, pad=0)


# --- losses


def test_answer_nll_is_the_mean_over_the_tokens_of_the_first_answer() -> None:
    logps = torch.tensor([[[-1.0, -3.0, -99.0], [-50.0, -50.0, -50.0]]])
    mask = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]])
    assert losses.answer_nll(logps, mask).tolist() == [2.0]


def test_all_tokens_of_a_style_weigh_the_same_and_each_style_as_much_as_another() -> None:
    lengths, styles = (2, 6, 40, 8), ("words", "words", "rationale", "rationale")
    rows = weighed([Row((1,), ((5,) * n,)) for n in lengths], styles)
    usual = usual_lengths(rows, torch.zeros(1))
    assert usual.tolist() == [4, 4, 24, 24]
    present = torch.arange(40) < torch.tensor(lengths)[:, None, None]
    logps = -torch.rand(4, 1, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (weights,) = torch.autograd.grad(losses.answer_nll(logps, present.float(), usual).sum(), logps)
    assert weights[present].unique().tolist() == pytest.approx([-1 / 4, -1 / 24])
    assert -weights[:2].sum() == pytest.approx(2) and -weights[2:].sum() == pytest.approx(2)
    assert usual_lengths([Row((1,), ((5,) * 7,))], logps).tolist() == [7]


def test_the_odds_ratio_is_that_of_the_probabilities() -> None:
    chosen, rejected = torch.tensor([math.log(0.8)]), torch.tensor([math.log(0.5)])
    assert losses.log_odds_ratio(chosen, rejected).item() == pytest.approx(
        math.log((0.8 / 0.2) / (0.5 / 0.5)), rel=1e-5
    )


def test_the_odds_ratio_is_finite_for_certain_and_for_impossible_answers() -> None:
    certain, impossible = torch.tensor([0.0]), torch.tensor([-200.0])
    for pair in ((certain, impossible), (impossible, certain), (certain, certain), (impossible, impossible)):
        assert torch.isfinite(losses.log_odds_ratio(*pair)).all()


@given(st.lists(st.floats(-30, -1e-4), min_size=4, max_size=4))
@settings(deadline=None, max_examples=200)
def test_the_odds_ratio_equals_that_in_64_bits(values: list[float]) -> None:
    found = losses.log_odds_ratio(torch.tensor(values[:2]), torch.tensor(values[2:]))
    for got, a, b in zip(found.tolist(), values[:2], values[2:], strict=True):
        odds = [x - math.log(-math.expm1(x)) for x in (a, b)]
        assert got == pytest.approx(odds[0] - odds[1], rel=2e-3, abs=2e-3)


def test_orpo_and_simpo_are_those_of_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    draw = torch.Generator().manual_seed(0)
    logps = -4 * torch.rand(64, 2, 9, generator=draw)
    mask = (torch.arange(9) < torch.randint(1, 10, (64, 2, 1), generator=draw)).float()
    means = losses.mean_logps(logps, mask)
    trainer = SimpleNamespace(
        beta=0.3,
        accelerator=SimpleNamespace(device="cpu"),
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=0.7,
        label_smoothing=0.0,
    )
    odds, *_ = ORPOTrainer.odds_ratio_loss(trainer, means[:, 0], means[:, 1])
    assert torch.allclose(losses.orpo(logps, mask, beta=0.3), losses.answer_nll(logps, mask) - odds, atol=1e-5)
    theirs, *_ = CPOTrainer.cpo_loss(trainer, means[:, 0], means[:, 1])
    assert torch.allclose(losses.simpo(logps, mask, beta=0.3, margin=0.7), theirs, atol=1e-6)


def test_preference_losses_fall_as_the_chosen_answer_gains_on_the_rejected_one() -> None:
    mask = torch.ones(1, 2, 3)
    before = torch.full((1, 2, 3), -2.0)
    after = torch.stack([torch.full((1, 3), -1.0), torch.full((1, 3), -3.0)], 1)
    reference = losses.sum_logps(before, mask)
    for loss in (
        lambda logps: losses.orpo(logps, mask, beta=0.1),
        lambda logps: losses.dpo(logps, mask, reference, beta=0.1),
        lambda logps: losses.simpo(logps, mask, beta=2.0, margin=0.5),
    ):
        assert loss(after).item() < loss(before).item()
    assert losses.dpo(before, mask, reference, beta=0.1).item() == pytest.approx(math.log(2))


# --- one sequence for a prompt and all of its answers


WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [("llama", {}), ("qwen2", {}), ("qwen3", {}), ("mistral", {"sliding_window": 4}), ("gemma3_text", WINDOWS)],
)
def test_answers_that_share_a_prompt_do_not_see_each_other(kind: str, fields: dict[str, Any], in_blocks: bool) -> None:
    network = tiny_network(kind, **fields)
    if in_blocks:
        use_blocks(network)
    rows = tiny_rows(5, answers=3)
    together, mask = answer_logps(network, rows, pad=0)
    for r, row in enumerate(rows):
        for a, answer in enumerate(row.answers):
            alone, _ = answer_logps(network, [Row(row.prompt, (answer,))], pad=0)
            assert mask[r, a].sum() == len(answer)
            assert torch.allclose(together[r, a, : len(answer)], alone[0, 0], atol=1e-5)


def joined_by_hand(answers: int) -> tuple[list[Row], list[list[int]]]:
    """Rows that begin alike, with a remainder and answers of their own, and which of them are to be joined."""
    start = tuple(range(3, 20))
    draw = torch.Generator().manual_seed(1)
    rows = [
        Row(
            (*start, *torch.randint(20, 50, (1 + n % 3,), generator=draw).tolist()),
            tuple(tuple(torch.randint(3, 20, (1 + (n + a) % 4,), generator=draw).tolist()) for a in range(answers)),
            reference=tuple(-1.0 - n - a for a in range(answers)),
            usual=3.0,
        )
        for n in range(6)
    ]
    return rows, [[0, 1, 2], [3], [4, 5]]


@pytest.mark.parametrize("loss", ["answers", "orpo", "dpo", "simpo"])
def test_rows_that_share_a_prompt_are_learnt_as_if_each_was_alone(loss: Any) -> None:
    network = tiny_network("llama")
    computed = answers_loss if loss == "answers" else preference_loss(Preferences(loss=loss))
    alone, groups = joined_by_hand(answers=1 if loss == "answers" else 2)
    shared = sharing_prompts(alone, groups)
    assert len(shared) == 3
    assert sum(row.n_tokens for row in shared) < sum(row.n_tokens for row in alone)

    def learnt(rows: list[Row]) -> tuple[dict[str, float], list[Any]]:
        logps, mask = answer_logps(network, rows, pad=0)
        found, figures = computed(logps, mask, rows)
        network.zero_grad()
        found.mean().backward()
        means = {"loss": found.mean().item(), **{name: each.mean().item() for name, each in figures.items()}}
        return means, gradients(network)

    found, gradient = learnt(shared)
    expected, one_by_one = learnt(alone)
    assert found == pytest.approx(expected, rel=1e-4)
    for own, other in zip(gradient, one_by_one, strict=True):
        assert torch.allclose(own, other, atol=1e-5)


def test_answers_count_by_their_weights() -> None:
    logps = torch.tensor([[[-1.0, -3.0], [-2.0, 0.0]], [[-5.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    rows = [Row((1,), ((5, 5), (5,)), weights=(0.75, 0.25)), Row((1,), ((5,),))]
    assert answers_loss(logps, mask, rows)[0].tolist() == [(0.75 * 4 + 0.25 * 2) / 2, 5.0]


def test_prompts_that_begin_with_one_another_share_all_but_a_token() -> None:
    row = sharing_prompt([Row((1, 2, 3), ((9,),)), Row((1, 2, 3, 4), ((8,),))])
    assert row.prompt == (1, 2) and row.asked == ((3,), (3, 4))


def test_log_probabilities_are_those_of_the_whole_text() -> None:
    network = tiny_network()
    row = tiny_rows(1)[0]
    whole = torch.tensor([[*row.prompt, *row.answers[0]]])
    expected = network(whole).logits.log_softmax(-1)[0, len(row.prompt) - 1 : -1]
    found, _ = answer_logps(network, [row], pad=0)
    assert torch.allclose(found[0, 0], expected[range(len(row.answers[0])), list(row.answers[0])], atol=1e-5)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 200))
def test_pieces_hold_every_row_once_and_no_more_tokens_than_wanted(lengths: list[int], most: int) -> None:
    rows = [Row((7,) * length, ((number,),)) for number, length in enumerate(lengths)]
    pieces = list(pieces_of(rows, most))
    assert sorted(row.answers[0][0] for piece in pieces for row in piece) == list(range(len(rows)))
    assert all(len(piece) == 1 or max(row.n_tokens for row in piece) * len(piece) <= most for piece in pieces)


def gradients(network: Any) -> list[Any]:
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def test_gradients_do_not_depend_on_how_a_step_is_cut(tmp_path: Path) -> None:
    rows = tiny_rows(8)
    whole = trained(tmp_path / "whole", rows, piece_tokens=10_000)
    cut = trained(tmp_path / "cut", rows, piece_tokens=1)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, cut, strict=True))


def trained(folder: Path, rows: list[Row], **changes: Any) -> list[Any]:
    network = tiny_network()
    fitting = Fitting(**({"batch": 4, "evaluate_every": 2, "learning_rate": 1e-3, "precision": "float32"} | changes))
    fit(network, rows, rows[:2], NLL, fitting, folder)
    return [parameter.detach().clone() for parameter in network.parameters()]


# --- a whole training


@pytest.mark.parametrize("lora", [False, True])
def test_a_few_rows_can_be_learnt_by_heart(tmp_path: Path, lora: bool) -> None:
    rows, logged = tiny_rows(8), []
    network = tiny_network(lora=lora)
    found = fit(
        network, rows, rows, NLL,
        Fitting(1e-2, batch=8, epochs=60, evaluate_every=20, patience=9, precision="float32"), tmp_path,
        on_log=lambda step, figures: logged.append((step, figures)),
    )  # fmt: skip
    assert found.steps == 60
    assert found.first_loss > 3
    assert found.best_loss < 0.3
    assert {"dev_loss", "dev_likelihood"} <= logged[0][1].keys()
    assert {"loss", "likelihood", "learning_rate", "tokens_per_second"} <= logged[1][1].keys()
    with torch.no_grad():
        left = nll(*answer_logps(network.eval(), rows, 0), None)[0].mean().item()
    assert left == pytest.approx(found.best_loss, rel=1e-4)  # the best weights, and not the last


def test_bfloat16_learns_what_32_bits_learn_and_keeps_what_is_trained_in_32(tmp_path: Path) -> None:
    rows = tiny_rows(24)
    ends = {}
    for precision in ("float32", "bfloat16"):
        network = tiny_network(lora=True)
        fitting = Fitting(1e-2, batch=8, epochs=8, evaluate_every=8, precision=precision)
        ends[precision] = fit(network, rows, rows, NLL, fitting, tmp_path / precision)
        assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    assert ends["bfloat16"].first_loss == pytest.approx(ends["float32"].first_loss, rel=0.01)
    assert ends["bfloat16"].best_loss == pytest.approx(ends["float32"].best_loss, rel=0.1)
    assert ends["bfloat16"].best_loss < 0.8 * ends["bfloat16"].first_loss


def test_with_the_prompt_the_loss_is_the_one_that_transformers_has_for_the_whole_text(tmp_path: Path) -> None:
    network, rows = tiny_network(), [row for row in tiny_rows(9, answers=2) if len(row.prompt) > 1]
    expected = []
    with torch.no_grad():
        for row in rows:
            whole = torch.tensor([[*row.prompt, *row.answers[0]]])
            expected.append(network(whole, labels=whole).loss.item())
    whole_text = answer_losses(nll, pad=0, prompt_loss=True)
    found = fit(network, rows, rows, whole_text, Fitting(1e-9, precision="float32"), tmp_path)
    assert found.first_loss == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_the_best_weights_are_kept_when_training_does_harm(tmp_path: Path) -> None:
    rows, others = tiny_rows(8), [Row(row.prompt, ((49, 48, 47),)) for row in tiny_rows(8)]
    network = tiny_network()
    fitting = Fitting(3e-2, batch=8, epochs=60, evaluate_every=1, patience=3, precision="float32")
    found = fit(network, rows, others, NLL, fitting, tmp_path)
    assert found.steps <= found.best_step + 3 < 60
    with torch.no_grad():
        left = nll(*answer_logps(network.eval(), others, 0), None)[0].mean().item()
    assert left == pytest.approx(found.best_loss, rel=1e-4)


def test_what_is_computed_again_to_save_memory_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny_rows(12)
    plain = trained(tmp_path / "plain", rows)
    free = SimpleNamespace(available=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    network = tiny_network()
    fit(network, rows, rows[:2], NLL, Fitting(1e-3, batch=4, evaluate_every=2, precision="float32"), tmp_path / "again")
    assert network.is_gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(plain, network.parameters(), strict=True))


def test_nothing_to_train_on_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to train on"):
        fit(tiny_network(), [], tiny_rows(1), NLL, Fitting(), tmp_path)


def test_a_loss_that_is_no_number_ends_it_with_the_last_good_checkpoint_kept(tmp_path: Path) -> None:
    calls = 0

    def breaks(logps: Any, mask: Any, reference: Any) -> tuple[Any, dict[str, Any]]:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return nll(logps * (math.nan if calls > 5 else 1.0), mask, reference)

    with pytest.raises(EdgeRagError, match=r"not a number at step 6.*lower the learning rate"):
        fitting = Fitting(batch=2, evaluate_every=2)
        fit(tiny_network(), tiny_rows(30), tiny_rows(2), answer_losses(breaks, pad=0), fitting, tmp_path)
    kept = last_checkpoint(tmp_path)
    assert kept is not None
    assert kept.name == "checkpoint-4"


def test_a_checkpoint_that_was_cut_off_is_not_gone_on_from(tmp_path: Path) -> None:
    rows = tiny_rows(16)
    trained(tmp_path, rows)
    last = last_checkpoint(tmp_path)
    assert last is not None
    torn = tmp_path / "checkpoint-900"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")
    assert last_checkpoint(tmp_path) == last


SCRIPT = """
import os, signal, sys, threading, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from pathlib import Path
from edge_rag.train.fit import Fitting, fit
from test_train_fit import NLL, tiny_network, tiny_rows

folder, stop_at = Path(sys.argv[2]), int(sys.argv[3])
network = tiny_network(lora=True)

def watch(step, figures):
    print(step, figures, flush=True)

def progress(stage, done, total, detail):
    if done == stop_at:
        os.kill(os.getpid(), signal.SIGINT if sys.argv[4] == "int" else signal.SIGKILL)

found = fit(network, tiny_rows(40), tiny_rows(6, seed=1), NLL,
            Fitting(1e-2, batch=4, epochs=2, evaluate_every=4, precision=sys.argv[5]), folder, on_log=watch, progress=progress)
sys.stdout.write(f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}\\n")  # in one piece: two write here
sys.stdout.flush()
if int(os.environ.get("RANK", "0")) == 0:
    torch.save({name: value for name, value in network.state_dict().items() if "lora" in name}, folder / "end.pt")
    print("best", found.first_loss, found.best_step, found.best_loss)
"""


def run_script(
    folder: Path, stop_at: int = -1, how: str = "int", launcher: tuple[str, ...] = (), precision: str = "float32"
) -> Any:
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    arguments = [str(Path(__file__).parent), str(folder), str(stop_at), how, precision]
    command = [sys.executable, *launcher, str(script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def weights(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "end.pt", weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("how, precision", [("int", "float32"), ("kill", "bfloat16")])
def test_a_training_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, how: str, precision: str
) -> None:
    whole = run_script(tmp_path / "whole", precision=precision)
    assert whole.returncode == 0, whole.stderr
    stopped = run_script(tmp_path / "stopped", stop_at=10, how=how, precision=precision)
    assert stopped.returncode == (-signal.SIGKILL if how == "kill" else -signal.SIGINT), stopped.stderr
    if how == "int":
        assert "KeyboardInterrupt" in stopped.stderr
        last = last_checkpoint(tmp_path / "stopped")
        assert last is not None
        assert last.name == "checkpoint-10"
    resumed = run_script(tmp_path / "stopped", precision=precision)
    assert resumed.returncode == 0, resumed.stderr
    assert not [
        line for line in resumed.stdout.splitlines() if line.startswith("0 ")
    ]  # measured before, and remembered
    assert resumed.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    end, expected = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert end.keys() == expected.keys()
    assert all(torch.equal(end[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    alone = run_script(tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    # accelerate starts one process with --cpu; --multi_gpu starts as many as it is told to, and finds no GPU here
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")  # fmt: skip
    both = run_script(tmp_path / "both", launcher=launcher)
    assert both.returncode == 0, both.stderr[-3000:]
    assert "process 1 of 2" in both.stdout
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "both")
    furthest = max((one[name] - two[name]).abs().max().item() for name in one)
    assert furthest < 1e-3, furthest
