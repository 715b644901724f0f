"""A Hugging Face encoder to a folder that the runtime loads as embedder or selector, compared with its original."""

import gc
import hashlib
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Progress
from edge_rag.models.onnx_folder import MANIFEST, PRECISIONS, PROBE, TOKENIZER, VOCAB, Tokenizer, graph_name
from edge_rag.models.tokenizer_file import TokenizerFile
from edge_rag.models.wordpiece import WordPiece

from . import onnx_parity, outputs, parity_texts
from .model_folder import copy_papers, read_json_if_there
from .onnx_graph import Array, BertGraph, Graph, ModernBertGraph
from .onnx_source import Original, is_uncased_bert, plan, vocabulary

N_TEXTS = 500  # pieces of the sample: every fifth calibrates, the others compare


def export_onnx(
    model: Path, target: Path, role: str, *, precision: str = "int8", name: str = "", pooling: str = "",
    max_tokens: int = 0, sample: Path | None = None, n_texts: int = N_TEXTS, timed: bool = True, threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the folder `target` with graph, weights, tokenizer, manifest and parity report; return the report.

    ModelError if the model is not one that the graphs are known to compute alike, or if the export is below a floor:
    then nothing is written.
    """
    precisions = PRECISIONS if precision == "both" else (precision,)
    if not set(precisions) <= set(PRECISIONS):
        raise UsageError(f"{precision!r} is no precision", mend=f"use {', '.join(PRECISIONS)} or both")
    outputs.check_target(target, force=False, mend="give another folder, or remove it")
    report = progress or _silent
    planned = plan(model, role, pooling=pooling, max_tokens=max_tokens)
    report("open", 0, 0, str(model))
    original = Original(planned, threads=threads)
    with outputs.workplace(target) as work:
        made = work / "made"
        made.mkdir()
        tokenizer = _write_tokenizer(original, made)
        mismatches = onnx_parity.token_mismatches(original, tokenizer)
        pieces = onnx_parity.sample_texts(sample, tokenizer.count, min(planned.max_tokens, onnx_parity.PIECE_TOKENS))
        calibration, comparison = _samples(role, pieces, n_texts)
        for each in precisions:
            report("write", 0, 0, each)
            _write_graph(original, calibration if each == "int8" else None, made / graph_name(each))
        _write_manifest(original, made, name or _plain_name(model))
        copy_papers(planned.folder.path, made)
        report("compare", 0, 0, "running the original")
        flat = (
            comparison if role == "embedder" else [(question, text) for question, texts in comparison for text in texts]
        )
        expected = original.run(flat)
        write_probe(original, made)
        found: dict[str, Any] = {
            "file": target.name,
            "role": role,
            "source": model.resolve().name,
            "architecture": planned.folder.config["model_type"],
            "pooling": planned.pooling,
            "max_tokens": planned.max_tokens,
            "tokenizer": "built in"
            if isinstance(tokenizer, WordPiece)
            else f"{TOKENIZER}, needs the [tokenizers] extra",
            "size_bytes": sum(path.stat().st_size for path in made.iterdir()),
            "source_size_bytes": planned.folder.size_bytes(),
            "hostile_texts": len(parity_texts.HOSTILE),
            "token_mismatches": mismatches,
            "precisions": {},
            "failed": [f"{len(mismatches)} hostile texts get other token ids"] if mismatches else [],
        }
        for each in precisions:
            report("compare", 0, 0, each)
            figures = _compare(role, made, each, comparison, expected, threads)
            found["precisions"][each] = figures | {"floors": onnx_parity.FLOORS[role, each]}
            found["failed"] += onnx_parity.below_floors(role, each, figures)
        if timed:
            report("time", 0, 0, "original and export, on this processor")
            found["speed"] = onnx_parity.speeds(original, made, precisions, flat, threads)
        gc.collect()  # sessions map the weights, and a mapped file cannot be moved everywhere
        if found["failed"]:
            raise ModelError(f"{target} was not written: {'; '.join(found['failed'])}", mend=_mend(found))
        outputs.publish_folder(made, target, found)
    return found


def _mend(found: dict[str, Any]) -> str:
    if found["token_mismatches"]:
        return f"other ids, for example, for {found['token_mismatches'][0]['text'][:40]!r}: report this tokenizer"
    return "export with --precision fp32, or calibrate on text of yours: --sample FILE"


def _samples(role: str, pieces: list[str], n_texts: int) -> tuple[list[Any], list[Any]]:
    """Return texts or pairs to calibrate with, and others (questions with their candidates) to compare with."""
    if role == "selector":
        n = min(onnx_parity.QUESTIONS, max(2, n_texts // onnx_parity.CANDIDATES))
        calibrating = onnx_parity.sample_pairs(pieces[1:], max(2, n // 4))
        pairs = [(question, text) for question, texts in calibrating for text in texts]
        return pairs, onnx_parity.sample_pairs(pieces, n)
    random.Random(0).shuffle(pieces)
    texts = pieces[:n_texts]
    return texts[::5], [text for i, text in enumerate(texts) if i % 5]


def _write_tokenizer(original: Original, made: Path) -> Tokenizer:
    """Write what the runtime tokenises with: its own WordPiece where that is enough, else the whole tokenizer.json."""
    source = original.plan.folder.path
    backend = original.tokenizer.backend_tokenizer
    described = json.loads(backend.to_str())
    if is_uncased_bert(described):
        there = source / VOCAB
        (made / VOCAB).write_bytes(there.read_bytes() if there.is_file() else vocabulary(described))
        return WordPiece.load(made / VOCAB)
    if read_json_if_there(source / "sentence_bert_config.json").get("do_lower_case"):
        raise ModelError(f"{source}: its texts are lowered before its tokenizer sees them, which the runtime does not do",
                         mend="export another model, or run this one with sentence-transformers")  # fmt: skip
    if (source / TOKENIZER).is_file():
        (made / TOKENIZER).write_bytes((source / TOKENIZER).read_bytes())
    else:
        backend.save(str(made / TOKENIZER))
    return TokenizerFile.parse((made / TOKENIZER).read_bytes())


def _write_graph(original: Original, calibration: Sequence[Any] | None, path: Path) -> None:
    """Write a graph and its weights beside it: int8 with something to calibrate with, fp32 without."""
    peaks = original.peaks(calibration) if calibration else None
    model = build_graph(original, peaks)
    weights = path.with_suffix(".data")
    onnx.save(model, path, save_as_external_data=True, location=weights.name, size_threshold=1024)
    onnx.checker.check_model(str(path))
    for file in (path, weights):
        file.chmod(0o644)  # onnx makes the weights readable to their owner only


def build_graph(original: Original, peaks: dict[str, Array] | None) -> onnx.ModelProto:
    pairs = original.plan.role == "selector"
    kind: type[BertGraph | ModernBertGraph] = (
        ModernBertGraph if original.config.model_type == "modernbert" else BertGraph
    )
    graph: Graph = kind(original.config, original.weights, peaks, pairs=pairs)
    return graph.scorer() if pairs else graph.embedder(original.plan.pooling)


def _write_manifest(original: Original, made: Path, name: str) -> None:
    found = sorted(path.name for path in made.iterdir())
    graphs = [
        f for p in PRECISIONS for f in (graph_name(p), f"model.{p}.data") if f in found
    ]  # as read: graph, weights, tokenizer
    files = [*graphs, *(f for f in (VOCAB, TOKENIZER) if f in found)]
    manifest: dict[str, Any] = {"name": name}
    if original.plan.role == "embedder":
        manifest["dim"] = original.config.hidden_size
    else:
        manifest["role"] = original.plan.role
    manifest |= {
        "max_tokens": original.plan.max_tokens,
        "files": {file: hashlib.sha256((made / file).read_bytes()).hexdigest() for file in files},
    }
    (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def write_probe(original: Original, made: Path) -> None:
    """Keep some of the original's results, so that every machine can tell how near its arithmetic comes."""
    samples: Sequence[Any] = onnx_parity.PROBE_TEXTS
    if original.plan.role == "selector":
        samples = [(question, text) for question in onnx_parity.PROBE_QUESTIONS for text in onnx_parity.PROBE_TEXTS]
    kept = {"texts": samples, "expected": np.round(original.run(samples).astype(float), 5).tolist()}
    (made / PROBE).write_text(json.dumps(kept, ensure_ascii=False) + "\n", encoding="utf-8")


def _compare(
    role: str, made: Path, precision: str, comparison: list[Any], expected: Array, threads: int
) -> dict[str, Any]:
    if role == "embedder":
        figures = onnx_parity.compare_embedder(made, precision, comparison, expected, threads)
    else:
        figures = onnx_parity.compare_scorer(made, precision, comparison, expected, threads)
    graph = onnx.load(made / graph_name(precision), load_external_data=False)
    weights = made / f"model.{precision}.data"
    size = (made / graph_name(precision)).stat().st_size + weights.stat().st_size
    return figures | {"n_nodes": len(graph.graph.node), "size_bytes": size}


def _plain_name(model: Path) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", model.resolve().name.lower()).strip("-.") or "model"


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    pass
