"""Which precision of a model suits this machine: two seconds of measuring, once for each processor, runtime and file.

int8 is smaller and mostly faster. Without the processor's int8 product (VNNI on x86) it can be slower, and less exact,
since its sums may overflow 16 bits. So both are run on texts that the export put beside the model, with what the
original gave for them.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rag.errors import ModelError
from edge_rag.models.onnx_folder import PRECISIONS, PROBE, OnnxFolder, place, read
from edge_rag.settings import cache_dir

SECONDS = 2.0  # for two; where there is nothing to choose, an eighth of it tells enough
# Less agreement with the original than this is no price of int8 but arithmetic that does not work here: the mean cosine of
# vectors, the correlation of scores.
FLOORS = {"embedder": 0.98, "selector": 0.95}
FALLBACK_TEXTS = ["The keeper of the light wrote down the wind, the weather and every ship that passed. " * 6] * 4


@dataclass(frozen=True, slots=True)
class Measured:
    precision: str
    texts_s: float  # of one core
    agreement: float | None  # with the original; None if the export left nothing to compare with


@dataclass(frozen=True, slots=True)
class Choice:
    precision: str
    why: str
    measured: tuple[Measured, ...] = ()


def choose(folder: OnnxFolder) -> Choice:
    """Return the precision to open, measured only where there are two."""
    if len(folder.precisions) == 1:
        return Choice(folder.precisions[0], "the only one here")
    return probe(folder)


def probe(folder: OnnxFolder) -> Choice:
    """Measure every precision in the folder, or remember what was measured, and choose."""
    remembered = cache_dir() / "precision" / f"{_key(folder)}.json"
    with suppress(OSError, ValueError, TypeError):
        measured = tuple(Measured(**row) for row in json.loads(remembered.read_text(encoding="utf-8")))
        return decide(folder.role, measured)
    measured = _measure(folder)
    with suppress(OSError):  # a home that cannot be written to is measured again
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps([asdict(m) for m in measured]), encoding="utf-8")
    return decide(folder.role, measured)


def decide(role: str, measured: tuple[Measured, ...]) -> Choice:
    """Choose the fastest of those that agree with the original; if none does, the one that agrees most."""
    floor = FLOORS[role]
    exact = [m for m in measured if m.agreement is None or m.agreement >= floor]
    best = max(exact, key=_speed) if exact else max(measured, key=lambda m: m.agreement or 0.0)
    if len(measured) == 1:
        reason = "the only one here" if exact else f"below {floor}: export it again with --precision both"
    elif not exact:
        reason = f"neither reaches {floor}, and this one is nearer"
    elif len(exact) == 1:
        reason = f"the other agrees less than {floor} with the original"
    else:
        reason = "the faster" if best == max(exact, key=lambda m: m.texts_s) else "about as fast, and smaller"
    return Choice(best.precision, f"{reason} ({', '.join(_figures(m) for m in measured)})", measured)


def _speed(m: Measured) -> float:
    return m.texts_s * (1.1 if m.precision == PRECISIONS[0] else 1.0)  # a tenth more is not worth four times the size


def _figures(m: Measured) -> str:
    agreement = "" if m.agreement is None else f", {m.agreement:.4f} of the original"
    return f"{m.precision}: {m.texts_s:.0f} texts/s of a core{agreement}"


def _measure(folder: OnnxFolder) -> tuple[Measured, ...]:
    texts, expected = _samples(folder)
    runs = {precision: _runner(folder, precision, texts) for precision in folder.precisions}
    results = {precision: run() for precision, run in runs.items()}  # warms up, too
    best = dict.fromkeys(runs, float("inf"))
    end = time.perf_counter() + (SECONDS if len(runs) > 1 else SECONDS / 8)
    while time.perf_counter() < end or float("inf") in best.values():
        for precision, run in runs.items():  # in turn: what else the machine does falls on all alike
            start = time.perf_counter()
            run()
            best[precision] = min(best[precision], time.perf_counter() - start)
    return tuple(
        Measured(p, round(len(texts) / best[p], 1), _agreement(folder.role, results[p], expected)) for p in runs
    )


def _samples(folder: OnnxFolder) -> tuple[list[Any], npt.NDArray[np.float32] | None]:
    path = place(folder.files, folder.role, PROBE)
    try:
        found = json.loads(read(folder.files, PROBE))
        texts, expected = found["texts"], np.array(found["expected"], dtype=np.float32)
        if not texts or expected.shape != ((len(texts), folder.dim) if folder.dim else (len(texts),)):
            raise ValueError("texts and results do not match")
        return texts, expected
    except FileNotFoundError:
        pairs = [[text[:40], text] for text in FALLBACK_TEXTS]
        return (FALLBACK_TEXTS if folder.role == "embedder" else pairs), None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}", mend=f"remove it, or export {folder.name} again") from error


def _runner(folder: OnnxFolder, precision: str, texts: list[Any]) -> Callable[[], npt.NDArray[np.float32]]:
    """Return a function that runs all texts on one core."""
    if folder.role == "embedder":
        from edge_rag.models.embedder import OnnxEmbedder

        embedder = OnnxEmbedder(folder.files, threads=1, precision=precision)
        return lambda: embedder.embed(texts)
    from edge_rag.models.selector import OnnxScorer

    scorer = OnnxScorer(folder.files, threads=1, precision=precision)
    return lambda: np.concatenate([scorer.score(question, [text]) for question, text in texts])


def _agreement(role: str, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32] | None) -> float | None:
    if expected is None:
        return None
    if role == "embedder":
        return round(float((found * expected).sum(axis=1).mean()), 5)
    return round(float(np.corrcoef(found, expected)[0, 1]), 5)


def _key(folder: OnnxFolder) -> str:
    fingerprints = [folder.fingerprint(precision) for precision in folder.precisions]
    return hashlib.sha256("\n".join([processor(), version("onnxruntime"), *fingerprints]).encode()).hexdigest()[:32]


def processor() -> str:
    """Return the processor's model and what it can do, as far as the system tells."""
    lines = [platform.machine(), platform.processor()]
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "CPU implementer", "CPU part", "flags", "Features"):
                lines.append(value.strip())
            if not name.strip():
                break  # the first core speaks for all
    return "\n".join(lines)
