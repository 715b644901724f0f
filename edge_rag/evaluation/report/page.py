"""The HTML of a report: one page that needs nothing from outside, no script, and reads well on a phone, in the dark, on paper.

Texts are escaped by `text`, and only there; every other string that is passed on is HTML already. A policy in the page's head
forbids scripts and requests, whatever a text may hold.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from edge_rag.evaluation.wording import clean, clip

NOTHING = '<span class="soft">–</span>'  # in a cell
_STYLE = "report.css"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def text(value: object, most: int = 0) -> str:
    """Escape a text, on one line and cut where it is longer than `most`, and keep its direction to itself."""
    return f"<bdi>{_escaped(value, most)}</bdi>"


def name(value: object) -> str:
    """Escape the name of a set or an arm, which may be long: lines break between its parts."""
    return "<bdi>" + re.sub("([/+])", r"\1<wbr>", _escaped(value)) + "</bdi>"


def page(title: str, body: Iterable[str]) -> str:
    style = resources.files("edge_rag.evaluation.report").joinpath(_STYLE).read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_escaped(title, 200)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def section(anchor: str, title: str, body: Iterable[str]) -> list[str]:
    """Return a section with a heading that links lead to; nothing where it would be empty."""
    parts = list(body)
    return (
        [f'<section aria-labelledby="{anchor}">', f'<h2 id="{anchor}">{title}</h2>', *parts, "</section>"]
        if parts
        else []
    )


def table(label: str, head: Sequence[str], rows: Iterable[str], note: str = "") -> str:
    """Wrap rows into a table that scrolls inside its own box, a note below it. The head begins with that of the rows' names."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_escaped(label, 200)}">\n<table>\n'
        f"<thead><tr>{''.join(head)}</tr></thead>\n"
        + "\n".join(rows)
        + "\n</table>\n</div>"
        + (f'\n<p class="soft">{note}</p>' if note else "")
    )


def head(html: str, kind: str = "") -> str:
    return f'<th scope="col"{_class(kind)}>{html}</th>'


def side(html: str) -> str:
    return f'<th scope="row" class="side">{html}</th>'


def cell(html: str, kind: str = "") -> str:
    return f"<td{_class(kind)}>{html}</td>"


def row(*cells: str) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def group(html: str, columns: int, rows: Iterable[str]) -> str:
    """Gather rows under a line that spans the table."""
    title = f'<tr><th class="group" scope="rowgroup" colspan="{columns}"><span>{html}</span></th></tr>'
    return "\n".join(["<tbody>", title, *rows, "</tbody>"])


def figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>\n{svg}</figure>"


def plots(figures: Iterable[str]) -> list[str]:
    found = list(figures)
    return ['<div class="plots">', *found, "</div>"] if found else []


def pairs(found: Iterable[tuple[str, str]]) -> str:
    rows = (f"<dt>{term}</dt><dd>{value}</dd>" for term, value in found)
    return f'<dl class="pairs">{"".join(rows)}</dl>'


def details(summary: str, body: Iterable[str], kind: str = "", anchor: str = "") -> str:
    named = f' id="{anchor}"' if anchor else ""
    return f"<details{_class(kind)}{named}><summary>{summary}</summary>\n" + "\n".join(body) + "\n</details>"


def _escaped(value: object, most: int = 0) -> str:
    return escape(clip(value, most) if most else clean(value))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
