"""What every command shares: settings from flags, JSON, progress with an ETA, and errors on one line."""

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from edge_rag.errors import UsageError
from edge_rag.settings import Settings, library_path, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_rag.bundle import Bundle
    from edge_rag.interfaces import Progress
    from edge_rag.library import Filters, Library


@dataclass(frozen=True, slots=True)
class State:
    """The options that stand before the command."""

    library: str | None
    quiet: bool


class RunByDefault(TyperGroup):
    """A group whose `run` may be left out: `edge-rag eval SET ...` is `edge-rag eval run SET ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PathFilter = Annotated[
    list[str] | None,
    typer.Option("--path", help="Only documents whose path matches this glob. Repeatable.", metavar="GLOB"),
]
TypeFilter = Annotated[
    list[str] | None, typer.Option("--type", help="Only this type: pdf, html, text/csv ... Repeatable.", metavar="TYPE")
]
AfterFilter = Annotated[
    str | None, typer.Option("--after", help="Only documents dated on or after: 2024, 2024-05 ...", metavar="DATE")
]
BeforeFilter = Annotated[str | None, typer.Option("--before", help="Only documents dated before.", metavar="DATE")]
MetaFilter = Annotated[
    list[str] | None, typer.Option("--meta", help="Only documents with this metadata. Repeatable.", metavar="KEY=VALUE")
]

BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Read this bundle and no library.", metavar="FILE")]


def settings_of(context: typer.Context, **flags: Any) -> Settings:
    state: State = context.obj
    return load_settings({"library": state.library, **flags})


@contextmanager
def open_library(
    context: typer.Context, settings: Settings | None = None, *, create: bool = False
) -> "Iterator[Library]":
    from edge_rag.library import Library

    settings = settings or settings_of(context)
    with Library.open(library_path(settings.library), create=create, settings=settings) as library:
        yield library


@contextmanager
def open_bundle(context: typer.Context, path: Path, **flags: Any) -> "Iterator[tuple[Bundle, Settings]]":
    """Open a bundle; yield it with its own settings, in which flags have the last word."""
    from edge_rag.bundle import Bundle

    state: State = context.obj
    if state.library is not None:
        raise UsageError("a bundle has its own library", mend="leave out --library, or --bundle")
    base = settings_of(context, **flags)
    with Bundle.open(path, trusted_key=base.trusted_key) as bundle:
        given = {name: getattr(base, name) for name, value in flags.items() if value is not None}
        if given.keys() & {"generator", "lora"}:  # the bundle's style is its own model's
            given["prompt"] = base.prompt
        yield bundle, dataclasses.replace(bundle.settings(base), **given)


@contextmanager
def open_readable(context: typer.Context, bundle: Path | None, **flags: Any) -> "Iterator[tuple[Library, Settings]]":
    """Open the library or the bundle that a command reads; yield it with the settings in force."""
    if bundle is None:
        settings = settings_of(context, **flags)
        with open_library(context, settings) as library:
            yield library, settings
    else:
        with open_bundle(context, bundle, **flags) as (opened, settings):
            yield opened.library(settings), settings


def filters_of(
    paths: list[str] | None, types: list[str] | None, after: str | None, before: str | None, meta: list[str] | None
) -> "Filters":
    from edge_rag.library import Filters

    pairs = pairs_of(meta, "--meta", "author=Ada")
    return Filters(tuple(paths or ()), tuple(types or ()), after or "", before or "", pairs)


def pairs_of(given: list[str] | None, option: str, example: str) -> dict[str, str]:
    """Split what was given as KEY=VALUE, more than once."""
    pairs = {}
    for pair in given or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {pair!r} is no KEY=VALUE", mend=f"for example: {option} {example}")
        pairs[key] = value
    return pairs


def print_json(value: Any) -> None:
    print(json.dumps(_plain(value), ensure_ascii=False, indent=2))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return round(value, 6)
    return value


def progress_of(context: typer.Context) -> "Progress | None":
    state: State = context.obj
    return None if state.quiet else ProgressLine()


class ProgressLine:
    """One line on stderr: stage, count, rate, ETA. Rewritten in place on a terminal; elsewhere a line every few seconds."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._stage = ""
        self._started = self._printed = 0.0

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._end_line()
            self._stage, self._started, self._printed = stage, now, 0.0
        finished = total > 0 and done >= total
        if not finished and now - self._printed < (0.1 if self._live else 5.0):
            return
        self._printed = now
        line = f"{stage} {done:,}" + (f"/{total:,}" if total else "") + self._eta(now, done, total)
        if self._live:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print("\r\x1b[K" + f"{line}  {detail}"[: max(20, width - 1)], end="", file=sys.stderr, flush=True)
        else:
            print(f"{line}  {detail}", file=sys.stderr, flush=True)
        if finished:
            self._end_line()

    def _eta(self, now: float, done: int, total: int) -> str:
        spent = now - self._started
        if done <= 0 or total <= done or spent < 1:
            return ""
        left = int(spent * (total - done) / done)
        return f", {left // 60}:{left % 60:02d} left"

    def _end_line(self) -> None:
        if self._live and self._stage:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._stage = ""


def one_of(flag: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise UsageError(f"{flag} is {value!r}", mend=f"use one of: {', '.join(known)}")
    return value


def command_line() -> str:
    """Return the command as it was typed, to be stored beside what it made."""
    return shlex.join(["edge-rag", *sys.argv[1:]])


def shown_path(path: str) -> str:
    """Return a path as a person here would write it."""
    here = str(Path.cwd()) + os.sep
    return path.removeprefix(here)


def note(context: typer.Context, text: str) -> None:
    """Say something that is no result."""
    state: State = context.obj
    if not state.quiet:
        print(text, file=sys.stderr)
