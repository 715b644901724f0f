"""The README and the commands agree."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from edge_rag.cli.commands import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))]


def commands() -> Iterator[tuple[str, Any]]:
    root: Any = typer.main.get_command(app)
    yield from named("", root.commands)


def named(group: str, members: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, command in members.items():
        inner = getattr(command, "commands", None)
        yield from [(f"{group}{name}", command)] if inner is None else named(f"{group}{name} ", inner)


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_each_command_has_help_an_example_and_a_place_in_the_readme(name: str, command: Any) -> None:
    assert re.search(rf"Example: .*edge-rag (-\S+ \S+ )*{name}\b", command.help, re.DOTALL), "no example"
    assert f"`{name}" in README, "not in the README"
    for option in command.params:
        assert getattr(option, "help", "") or option.name == "help", f"{option.name} has no help"


def test_the_pasted_help_is_true() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "edge_rag", "--help"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={"COLUMNS": "100", "PATH": "", "PYTHONIOENCODING": "utf-8"},
        check=True,
    ).stdout
    assert shown.strip() in README


def test_the_index_example_runs(tmp_path: Path) -> None:
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "build_index" in code]
    code = example + "\nassert found.shape == (3, 10) and found[0, 0] == 0 and len(live) == 20_000\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_every_path_in_the_readmes_drawing_of_the_house_exists() -> None:
    drawn = re.findall(r"^(?:│   )*[├└]── (\S+)", README, re.MULTILINE)
    assert drawn and all((ROOT / "edge_rag" / name).exists() for line in drawn for name in line.split())


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    """Name a page's headings as they are linked to: lower case, words joined by hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
