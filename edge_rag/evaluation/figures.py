"""A measured figure, and what it travels with: machine, kernel, versions, load, size and the command that gave it."""

import os
import platform
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from edge_rag.errors import UsageError
from edge_rag.index import simd_kernel
from edge_rag.models.cores import usable_cores

# Those that a figure may depend on, ours and the peers'.
PACKAGES = (
    "edge-rag", "numpy", "onnxruntime", "llama-cpp-python", "chromadb", "sentence-transformers", "transformers", "torch",
    "hnswlib", "faiss-cpu", "usearch", "scalable-vs", "bm25s", "PyStemmer",
)  # fmt: skip
MB = 1e6


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    unit: str
    n: int  # values that were measured
    value: float  # their median, where the name says nothing else
    low: float
    high: float
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    machine: str
    cores: int  # usable, physical
    system: str
    simd_kernel: str
    python: str
    packages: dict[str, str]
    load_before: tuple[float, ...]  # over 1, 5 and 15 minutes; () where the system does not tell
    load_after: tuple[float, ...]
    command: str


@dataclass(frozen=True, slots=True)
class Report:
    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    surroundings: Surroundings


def figure(
    name: str, unit: str, values: Sequence[float], *, at_least: float | None = None, below: float | None = None
) -> Figure:
    """Sum up what was measured, and compare the median with its target."""
    middle = median(values)
    target, met = "", None
    if at_least is not None:
        target, met = f"at least {at_least:g}", middle >= at_least
    if below is not None:
        target, met = f"below {below:g}", middle < below
    return Figure(name, unit, len(values), middle, min(values), max(values), target, met)


def interval(name: str, hits: npt.NDArray[np.bool_]) -> Figure:
    """Say how often something happened, with its 95% bootstrap interval."""
    draws = np.random.default_rng(0).choice(hits, (2000, len(hits))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Figure(name, "%", len(hits), float(hits.mean()) * 100, float(low) * 100, float(high) * 100)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide round by round: what disturbed one round disturbed both its sides."""
    return [a / b for a, b in zip(above, below, strict=True)]


def check_counts(**counts: int) -> None:
    """Refuse counts below 1 by name."""
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"--{name} is {count}", mend="use 1 or more")


def load_average() -> tuple[float, ...]:
    return tuple(round(load, 2) for load in os.getloadavg()) if hasattr(os, "getloadavg") else ()


def surroundings(command: str, load_before: tuple[float, ...]) -> Surroundings:
    """Describe where a measurement that ends now was made."""
    return Surroundings(
        machine=f"{_processor()} ({platform.machine()})",
        cores=usable_cores(),
        system=platform.platform(),
        simd_kernel=simd_kernel(),
        python=f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        packages=_installed(),
        load_before=load_before,
        load_after=load_average(),
        command=command,
    )


def markdown(report: Report, *, crossed: bool = False) -> str:
    """Write a report as a table for the README, what it rests on below it.

    `crossed`: figures are named "what: contestant", and get a row for each what and a column for each contestant.
    """
    s = report.surroundings
    packages = ", ".join(f"{name} {number}" for name, number in s.packages.items())
    return "\n".join(
        [
            f"### {report.title}",
            "",
            *(_crossed(report.figures) if crossed else _listed(report.figures)),
            "",
            *(f"- {text}" for text in report.notes),
            f"- {s.machine}, {s.cores} cores, {s.system}; index kernel {s.simd_kernel}; load {_load(s.load_before)} before,"
            f" {_load(s.load_after)} after",
            f"- Python {s.python}; {packages}",
            f"- `{s.command}`",
        ]
    )


def _listed(figures: Sequence[Figure]) -> Iterator[str]:
    yield from ("| | median | range | n | target |", "|---|---|---|---|---|")
    for f in figures:
        span = f"{_number(f.low)} – {_number(f.high)}" if f.low != f.high else ""
        yield f"| {f.name} | {_number(f.value)} {f.unit} | {span} | {f.n} | {_judged(f)} |"


def _crossed(figures: Sequence[Figure]) -> Iterator[str]:
    cells: dict[str, dict[str, str]] = {}
    for f in figures:
        what, _, contestant = f.name.rpartition(": ")
        span = f" ({_number(f.low)} – {_number(f.high)})" if f.low != f.high else ""
        judged = f", {_judged(f)}" if f.target else ""
        cells.setdefault(f"{what} [{f.unit}]" if f.unit else what, {})[contestant] = _number(f.value) + span + judged
    contestants = list(dict.fromkeys(contestant for row in cells.values() for contestant in row))
    yield "| | " + " | ".join(contestants) + " |"
    yield "|---" * (len(contestants) + 1) + "|"
    for what, row in cells.items():
        yield f"| {what} | " + " | ".join(row.get(contestant, "") for contestant in contestants) + " |"


def _judged(f: Figure) -> str:
    return f.target + ("" if f.met is None else " (met)" if f.met else " (missed)")


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{digits}f}"


def _load(load: Sequence[float]) -> str:
    return " ".join(f"{value:.1f}" for value in load) or "unknown"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found
