"""The edge-rag command. One module for each group of commands: parse, call the library, print.

Results go to stdout, progress to stderr. Exit codes: 0 fine, 1 our error, 2 wrong usage, 3 abstained under --strict,
4 integrity failure, 130 interrupted. Imports of models and readers sit inside the command bodies, so --help stays quick.
"""

import os
import signal
import sys
from typing import TextIO

INTERRUPTED = 130


def main() -> None:
    """Run the command line, and turn every deliberate error into one line and its exit code."""
    try:
        code = _run()
    except BrokenPipeError:
        # The reader went away (`edge-rag list | head -1`): keep the interpreter from complaining about that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except BaseException as error:
        if not _was_interrupted(error):
            raise
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done, while the interpreter takes a moment to end
    sys.exit(code)


def _was_interrupted(error: BaseException | None) -> bool:
    """Tell whether it began with Ctrl-C: a compiled module that is interrupted while it loads fails with an error of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _run() -> int:
    # Imported here so that Ctrl-C is an interruption from the first moment on.
    import typer

    from edge_rag.cli.commands import app
    from edge_rag.errors import EdgeRagError

    _escape_what_cannot_be_shown(sys.stdout, sys.stderr)
    try:
        code = app(prog_name="edge-rag", standalone_mode=False)
    except EdgeRagError as error:
        if _was_interrupted(error):
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    except PermissionError as error:
        print(f"error: {error.filename}: {error.strerror}; check its permissions", file=sys.stderr)
        return 1
    except typer.Abort:
        code = INTERRUPTED
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):
            raise
        error.show()  # wrong usage, as the command parser found it
        return int(error.exit_code)
    if code == INTERRUPTED:  # the command parser has swallowed a KeyboardInterrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _escape_what_cannot_be_shown(*streams: TextIO) -> None:
    """Let a name or a text that the terminal's encoding does not know be printed as an escape instead of failing."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
