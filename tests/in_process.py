"""Commands in this process: libraries that take seconds to load are loaded once."""

import io
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_rag.cli import main


@dataclass(frozen=True, slots=True)
class Done:
    stdout: str
    stderr: str


def edge_rag(*arguments: object, home: Path, expect: int = 0) -> Done:
    """Run a command, in one thread."""
    out, err, on_interrupt = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["edge-rag", "--quiet", *map(str, arguments)])
        patch.setenv("EDGE_RAG_HOME", str(home))
        patch.setenv("EDGE_RAG_THREADS", "1")
        with pytest.raises(SystemExit) as ended:
            main()
    signal.signal(signal.SIGINT, on_interrupt)  # the command ignores it when all is done
    assert ended.value.code == expect, err.getvalue()[-3000:]
    return Done(out.getvalue(), err.getvalue())
