"""How fast preference pairs are trained on, beside trl's ORPOTrainer: `edge-rag bench training`."""

from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path

from edge_rag.errors import EdgeRagError, MissingExtraError
from edge_rag.evaluation.figures import MB, Report, check_counts, figure, load_average, ratios, surroundings
from edge_rag.evaluation.processes import fresh_process
from edge_rag.evaluation.question_sets import load_set
from edge_rag.interfaces import Embedder, Progress
from edge_rag.models.cores import usable_cores
from edge_rag.settings import Settings

OURS, PEER = "edge_rag", "trl ORPOTrainer"


def measure(
    base: Path,
    name: str,
    *,
    n_pairs: int,
    others: int,
    batch: int,
    rounds: int,
    peer: bool,
    embedder: Embedder,
    settings: Settings,
    command: str,
    progress: Progress | None = None,
) -> Report:
    """Train on the same pairs in turn, each time in a new process."""
    if any(find_spec(package) is None for package in ("torch", "transformers", "peft", "accelerate")):
        raise MissingExtraError("train", "training")
    from edge_rag.train import speed
    from edge_rag.train.examples import Noise, examples_of
    from edge_rag.train.torch_model import TorchModel

    check_counts(pairs=n_pairs, batch=batch, rounds=rounds)
    examples, _ = examples_of(
        load_set(name, part="train"), Noise(others, absent=0.0), counter=TorchModel(base, device="cpu"), styles=("words",),
        prompt_tokens=2048, embedder=embedder, settings=settings, seed=0, limit=n_pairs, progress=progress,
    )  # fmt: skip
    pairs = speed.pairs_of(examples)
    names = [OURS, *([PEER] if peer and find_spec("trl") is not None else [])]
    threads, load_before = usable_cores(settings.threads), load_average()
    spent: dict[str, list[speed.Spent]] = {name: [] for name in names}
    for number in range(rounds):
        for way in names:
            if progress:
                progress("rounds", number, rounds, way)
            try:
                with fresh_process() as process:
                    spent[way].append(process.submit(speed.train, way, base, pairs, batch, threads).result())
            except BrokenProcessPool as error:
                raise EdgeRagError(
                    f"{way} was ended by the system, as when memory runs out", mend="use fewer --others, or --no-peer"
                ) from error
    if progress:
        progress("rounds", rounds, rounds, "")
    figures = []
    for way, runs in spent.items():
        figures += [
            figure(f"{way}: pairs", "/s", [len(pairs) / run.seconds for run in runs]),
            figure(
                f"{way}: tokens, prompts counted for both answers", "/s", [run.n_tokens / run.seconds for run in runs]
            ),
            figure(f"{way}: peak memory", "MB", [run.peak_bytes / MB for run in runs]),
        ]
    if PEER in spent:
        faster = ratios([run.seconds for run in spent[PEER]], [run.seconds for run in spent[OURS]])
        figures.append(figure(f"{OURS} faster than {PEER}", "x", faster, at_least=1.5))
    mean = sum(run.n_tokens for run in spent[OURS]) / len(spent[OURS]) / len(pairs)
    notes = [
        f"{len(pairs)} pairs of {name}, {mean:.0f} tokens each on average (both sequences), steps of {batch}; ORPO,"
        f" LoRA of rank {speed.LORA_RANK} on all linear layers, bfloat16 where that is fast,"
        f" {threads} threads; {rounds} rounds in turn",
        f"{PEER}: one pair at a time (two took more than 23 GB), no gradient checkpointing",
    ]
    return Report("Training on preference pairs", tuple(figures), tuple(notes), surroundings(command, load_before))
