"""The edge-rag command. One module for each group of commands: parse, call the library, print.

Results go to stdout, progress to stderr. Exit codes: 0 fine, 1 our error, 2 wrong usage, 3 abstained under --strict,
4 integrity failure, 130 interrupted. Imports of models and readers sit inside the command bodies, so --help stays quick.
"""

import os
import sys
from typing import Annotated

import typer

from edge_rag.cli import answers, bench, config, documents, models
from edge_rag.cli.common import State, fail, silence_stdout
from edge_rag.errors import EdgeRagError

app = typer.Typer(
    name="edge-rag",
    help="Answers from your own documents, offline, with citations that are true.",
    epilog="Start: edge-rag models pull smollm2-135m-instruct, edge-rag add ~/Documents, edge-rag ask 'When ...?'",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: half the start-up time, and it can be pasted
    context_settings={"help_option_names": ["-h", "--help"]},
)
documents.register(app)
answers.register(app)
app.add_typer(models.app, name="models")
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")


@app.callback()
def root(
    context: typer.Context,
    library: Annotated[
        str | None,
        typer.Option(
            "--library", "-L", help="Library to use: a name, or a folder such as ./notes.", metavar="NAME|DIR"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda v: _print_version(v), help="Print the version.")
    ] = False,
) -> None:
    context.obj = State(library=library, quiet=quiet)


def main() -> None:
    """Run the command line, and turn every deliberate error into one line and its exit code."""
    try:
        code = app(prog_name="edge-rag", standalone_mode=False)
    except EdgeRagError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        silence_stdout()
        raise SystemExit(1) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except Exception as error:
        if error.__class__.__module__.startswith(("click", "typer")) and hasattr(error, "exit_code"):
            error.show()  # type: ignore[attr-defined]
            raise SystemExit(error.exit_code) from None
        raise
    raise SystemExit(code if isinstance(code, int) else 0)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"edge-rag {version('edge-rag')}")
        raise typer.Exit


if os.environ.get("PYTHONIOENCODING") is None and hasattr(sys.stdout, "reconfigure"):
    # A file name or a text may hold what the terminal's encoding cannot show: print an escape instead of failing.
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
