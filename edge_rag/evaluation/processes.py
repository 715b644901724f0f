"""Measuring in processes of their own: neither threads nor memory of one contestant touch another."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edge_rag.errors import EdgeRagError


@dataclass(frozen=True, slots=True)
class Run:
    wall_s: float
    peak_rss: int | None  # bytes; None where the system does not tell
    stdout: str


def fresh_process() -> ProcessPoolExecutor:
    """Return an executor with one new process, which inherits nothing and lives until the executor is closed."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def run_cold(arguments: Sequence[str]) -> Run:
    """Run edge-rag as a process of its own, from start to end.

    On Linux a child's peak starts at what its parent occupies, so callers keep their own process small.
    """
    command = [sys.executable, "-m", "edge_rag", *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        peak: int | None = None
        if hasattr(os, "wait4"):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        else:
            process.wait()
        wall_s = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            message = err.read().decode("utf-8", "replace").strip() or f"exit code {process.returncode}"
            raise EdgeRagError(f"edge-rag {' '.join(arguments)}: {message}")
        return Run(wall_s, peak, out.read().decode("utf-8", "replace"))


def memory_of(process: int | str = "self") -> dict[str, int]:
    """Return a process's peak, and what it holds now apart: private memory and mapped files, in bytes (Linux)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    status = dict(line.split(":", 1) for line in lines)
    wanted = {"peak": "VmHWM", "private": "RssAnon", "mapped": "RssFile"}
    return {name: int(status[key].split()[0]) * 1024 for name, key in wanted.items() if key in status}
