"""How fast documents go in, beside what people use otherwise: `edge-rag bench ingest`.

Everyone gets the same texts and a process of its own. All processes are started and warmed up first, then the rounds go
A B C ... A B C ...: on a machine that is not idle, the ratios within a round are what can be trusted.
"""

import functools
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rag import models
from edge_rag.errors import DocumentError, UsageError
from edge_rag.evaluation.bench.real_texts import chunk_texts, documents_in
from edge_rag.evaluation.figures import Figure, Report, check_counts, figure, load_average, ratios, surroundings
from edge_rag.evaluation.processes import fresh_process
from edge_rag.interfaces import Progress
from edge_rag.library import Library
from edge_rag.models import open_embedder
from edge_rag.models.cores import usable_cores
from edge_rag.models.wordpiece import WordPiece
from edge_rag.settings import Settings

Vectors = npt.NDArray[np.float32]

EMBEDDER = Settings().embedder
VOCAB = Path(models.__file__).parent / "data" / EMBEDDER / "vocab.txt"
BATCH = 32  # texts; the default of chromadb and of sentence-transformers
MAX_TOKENS = 256
WARM_UP = 32  # texts
INGEST, EMBED = "edge_rag, files to searchable library", "edge_rag, embedding only"
FP32, CHROMA, TORCH = "onnxruntime fp32", "chromadb's embedding function", "sentence-transformers, torch"
# What chromadb looks for before it would download.
CHROMA_FILES = ("config.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Lap:
    wall_s: float
    cpu_s: float  # of all threads
    vectors: Vectors | None


def measure(
    docs: Path | None,
    *,
    chunks: int,
    rounds: int,
    fp32: Path | None,
    hf_folder: Path | None,
    threads: int,
    command: str,
    progress: Progress | None = None,
) -> Report:
    """Time about `chunks` chunks of real text; peers whose files or packages are not there are left out."""
    check_counts(chunks=chunks, rounds=rounds)
    for path in (fp32, hf_folder):
        if path is not None and not path.exists():
            raise UsageError(f"{path}: not there", mend="see: edge-rag bench ingest --help")
    threads, load_before = usable_cores(threads), load_average()
    with TemporaryDirectory() as name, documents_in(docs) as files, ExitStack() as stack:
        folder = Path(name)
        texts, n_files, mean_tokens = _choose(files, folder / "docs", chunks)
        contestants = _contestants(folder, texts, threads, fp32, hf_folder)
        laps: dict[str, list[Lap]] = {name: [] for name in contestants}
        workers = {name: stack.enter_context(fresh_process()) for name in contestants}
        for number in range(-1, rounds):  # the first is to warm up
            for name, contestant in contestants.items():
                if progress:
                    progress("warm up" if number < 0 else "rounds", max(0, number), rounds, name)
                lap = workers[name].submit(contestant, texts[:WARM_UP] if number < 0 else texts).result()
                if number >= 0:
                    laps[name].append(lap)
        if progress:
            progress("rounds", rounds, rounds, "")
    notes = [
        f"{len(texts):,} chunks of {n_files} real files, {mean_tokens:.0f} tokens on average; {threads} threads each; "
        f"{rounds} interleaved rounds, ratios taken within a round",
        f"{FP32}: batches of {BATCH} in the order of the files, padded to the longest, default session options",
        "the library's figure holds reading, chunking, embedding and storing; the peers' only embedding",
        *_absent(contestants),
    ]
    return Report(
        f"Ingest: {len(texts):,} chunks", tuple(_figures(laps, len(texts))), tuple(notes),
        surroundings(command, load_before),
    )  # fmt: skip


def _choose(files: Sequence[Path], folder: Path, wanted: int) -> tuple[list[str], int, float]:
    """Copy files in random order until their chunks are enough; return the chunks' texts, each once."""
    embedder = open_embedder(EMBEDDER)
    budget = min(Settings().chunk_tokens, embedder.max_tokens)
    folder.mkdir()
    texts: dict[str, None] = {}
    n_files = 0
    for file in random.Random(0).sample(files, len(files)):
        try:
            more = chunk_texts(file, embedder.count_tokens, budget)
        except DocumentError:
            continue
        if len(more) > wanted and n_files + 1 < len(files):
            continue  # a book on its own would be all there is
        shutil.copyfile(file, folder / f"{n_files:05}-{file.name}")
        n_files += 1
        texts |= dict.fromkeys(more)
        if len(texts) >= wanted:
            break
    return [*texts], n_files, float(np.mean([embedder.count_tokens(text) for text in texts]))


def _contestants(
    folder: Path, texts: Sequence[str], threads: int, fp32: Path | None, hf_folder: Path | None
) -> dict[str, Callable[[Sequence[str]], Lap]]:
    found: dict[str, Callable[[Sequence[str]], Lap]] = {
        INGEST: functools.partial(ingest_files, folder / "docs", threads, len(texts)),
        EMBED: functools.partial(embed_ours, threads),
    }
    if fp32 is not None:
        found[FP32] = functools.partial(embed_fp32, fp32, threads)
        if hf_folder is not None and find_spec("chromadb"):
            place = folder / "chroma" / "onnx"
            place.mkdir(parents=True)
            for name in CHROMA_FILES:
                shutil.copyfile(hf_folder / name, place / name)
            shutil.copyfile(fp32, place / "model.onnx")
            found[CHROMA] = functools.partial(embed_chroma, place.parent)
    if hf_folder is not None and find_spec("sentence_transformers"):
        found[TORCH] = functools.partial(embed_torch, hf_folder, threads)
    return found


def _absent(contestants: dict[str, Any]) -> list[str]:
    needs = {FP32: "--fp32", CHROMA: "chromadb, --fp32 and --hf-folder", TORCH: "sentence-transformers and --hf-folder"}
    return [f"{name}: not measured, needs {need}" for name, need in needs.items() if name not in contestants]


def _figures(laps: dict[str, list[Lap]], n: int) -> list[Figure]:
    wall = {name: [lap.wall_s for lap in runs] for name, runs in laps.items()}
    cpu = {name: [lap.cpu_s for lap in runs] for name, runs in laps.items()}
    peers = [name for name in (FP32, CHROMA, TORCH) if name in laps]
    targets = {FP32: 2.5}
    figures = [
        figure(f"edge_rag to {name}", "x", ratios(wall[name], wall[INGEST]), at_least=targets.get(name))
        for name in peers
    ]
    figures += [figure(name, "chunks/s", [n / s for s in seconds]) for name, seconds in wall.items()]
    figures += [
        figure(f"{name}, CPU time", "ms/chunk", [s / n * 1000 for s in seconds]) for name, seconds in cpu.items()
    ]
    expected = laps[FP32][0].vectors if FP32 in laps else None
    for name in (EMBED, CHROMA, TORCH):
        vectors = laps[name][0].vectors if name in laps else None
        if expected is not None and vectors is not None:
            cosines = np.sum(expected * vectors, axis=1)
            figures.append(figure(f"{name}, cosine to {FP32}", "", cosines.tolist()))
    return figures


# --- the contestants: each runs in a process of its own, where what it opens stays open ---


def ingest_files(folder: Path, threads: int, n: int, texts: Sequence[str]) -> Lap:
    embedder = _embedder(threads)
    with TemporaryDirectory() as new:
        start, start_cpu = time.perf_counter(), time.process_time()
        with Library.open(Path(new) / "library", create=True, embedder=embedder) as library:
            report = library.add([folder])
        lap = Lap(time.perf_counter() - start, time.process_time() - start_cpu, None)
    if report.n_embedded != n:
        raise UsageError(f"{report.n_embedded} chunks were embedded, and {n} expected", mend="give other --docs")
    return lap


def embed_ours(threads: int, texts: Sequence[str]) -> Lap:
    embedder = _embedder(threads)
    return _timed(lambda: embedder.embed(texts))


def embed_fp32(model: Path, threads: int, texts: Sequence[str]) -> Lap:
    session, tokenizer = _fp32_session(model, threads)

    def embed() -> Vectors:
        batches = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        return np.concatenate([_run_padded(session, tokenizer, batch) for batch in batches])

    return _timed(embed)


def embed_chroma(place: Path, texts: Sequence[str]) -> Lap:
    function = _chroma(place)
    return _timed(lambda: np.stack(function(list(texts))))


def embed_torch(folder: Path, threads: int, texts: Sequence[str]) -> Lap:
    model = _sentence_transformer(folder, threads)
    return _timed(lambda: model.encode(list(texts), batch_size=BATCH, normalize_embeddings=True))


def _timed(embed: Callable[[], Vectors]) -> Lap:
    start, start_cpu = time.perf_counter(), time.process_time()
    vectors = embed()
    return Lap(time.perf_counter() - start, time.process_time() - start_cpu, vectors)


def _run_padded(session: Any, tokenizer: WordPiece, texts: Sequence[str]) -> Vectors:
    rows = [tokenizer.encode(text, MAX_TOKENS) for text in texts]
    ids = np.full((len(rows), max(map(len, rows))), tokenizer.pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    states = session.run(["last_hidden_state"], inputs)[0] * mask[:, :, None]
    vectors: Vectors = states.sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


@functools.cache
def _embedder(threads: int) -> Any:
    return open_embedder(EMBEDDER, threads=threads)


@functools.cache
def _fp32_session(model: Path, threads: int) -> tuple[Any, WordPiece]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(model), options), WordPiece.load(VOCAB)


@functools.cache
def _chroma(place: Path) -> Any:
    from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2

    ONNXMiniLM_L6_V2.DOWNLOAD_PATH = place
    return ONNXMiniLM_L6_V2()


@functools.cache
def _sentence_transformer(folder: Path, threads: int) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(threads)  # what torch goes by, if it is set before torch is loaded
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")
