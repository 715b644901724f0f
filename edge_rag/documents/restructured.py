"""reStructuredText: sections, directives and roles, resolved as far as a single file allows."""

import re

from edge_rag.documents.tabular import csv_rows
from edge_rag.documents.text import Builder, clean, decode, rows_as_lines, squeeze, word_set
from edge_rag.interfaces import Document

_ADORNMENT = re.compile(r"^([!-/:-@\[-`{-~])\1*$")
_DIRECTIVE = re.compile(r"^\.\.\s+(?:\|[^|]{1,100}\|\s+)?([A-Za-z][\w:+.-]*?)::(?:\s+(.*)|$)")
_FOOTNOTE = re.compile(r"^\.\.\s+\[([^\]\s]{1,100})\]\s*(.*)$")
_FIELD = re.compile(r"^:([^:\s][^:]{0,80}):(?:\s+(.*)|$)")
_PREAMBLE_LINE = re.compile(r"^([A-Z][A-Za-z-]{1,30}):(?:\s+(.*)|$)")
_ITEM = re.compile(r"^([-*+•]|\(?(?:\d{1,4}|[A-Za-z]|#|[ivxIVX]{1,5})[.)])(\s+)(?=\S)")
_SIMPLE_TABLE = re.compile(r"^=+( +=+)+$")
_GRID_TABLE = re.compile(r"^\+(-+\+)+$")
_SUBSTITUTION = re.compile(r"^\.\. \|([^|]{1,100})\| (?:replace|unicode):: (.*)$", re.MULTILINE)

_CODE = word_set("""
    code code-block sourcecode parsed-literal literal doctest prompt console ipython testcode productionlist
    math
""")
_DROPPED = word_set("""
    contents toctree sectnum section-numbering highlight index include literalinclude raw meta module
    currentmodule py:module py:currentmodule default-role role target-notes header footer title replace unicode
    date tabularcolumns
""")
_NOTES = word_set("""
    note warning attention caution danger error hint important tip seealso versionadded versionchanged
    deprecated
""")
_MAX_NESTING = 30

_LITERAL = re.compile(r"``(.{1,1000}?)``")
_ROLE = re.compile(r":([A-Za-z][\w:+.-]{0,60}):`([^`]{1,600})`")
_LINK = re.compile(r"`([^`<]{1,600}?)\s*<[^`<>]{1,2000}>`__?")
_REFERENCE = re.compile(r"`([^`]{1,600})`__?")
_INTERPRETED = re.compile(r"(?<![`\w])`([^`]{1,600})`(?![`\w])")
_WORD_REFERENCE = re.compile(r"(?<![\w/])([A-Za-z0-9][\w.-]{0,100}?)__?(?=[\s.,;:!?)'\"\]-]|$)")
_FOOTNOTE_MARK = re.compile(r"(?<=\s)\[(#[\w-]*|\*)\]_")
_NUMBERED_MARK = re.compile(r"(\[[\w.-]{1,60}\])_\b")
_STRONG = re.compile(r"(?<![\\*\w])(\*{1,2})(?=[^\s*])([^*]{1,600})(?<=[^\s\\])\1(?![*\w])")
_INLINE_TARGET = re.compile(r"_`([^`]{1,300})`")
_SUBSTITUTED = re.compile(r"\|([^|\s][^|]{0,100})\|_{0,2}")
_ESCAPE = re.compile(r"\\(.)")


def read_rst(data: bytes) -> Document:
    source = clean(decode(data)).expandtabs(8)
    builder = Builder()
    lines = source.split("\n")
    reader = _RstReader(builder, dict(_SUBSTITUTION.findall(source)))
    reader.read(_take_preamble(builder, lines), nesting=0)
    if not builder.title and reader.first_heading and reader.first_heading[1] == 1:
        builder.title = reader.first_heading[0]
    return builder.finish("text/x-rst")


def _take_preamble(builder: Builder, lines: list[str]) -> list[str]:
    """Read "Key: value" lines at the top, as PEPs have them; they stay in the text, for they answer questions."""
    lines = lines[next((i for i, line in enumerate(lines) if line.strip()), len(lines)) :]
    if not lines or not _PREAMBLE_LINE.match(lines[0]):
        return lines
    fields: list[list[str]] = []
    end = 0
    for end, line in enumerate([*lines, ""]):  # noqa: B007
        if not line.strip():
            break
        if match := _PREAMBLE_LINE.match(line):
            fields.append([match[1], match[2] or ""])
        elif fields and line.startswith(" "):
            fields[-1][1] += " " + line.strip()
        else:
            return lines
    if len(fields) < 3:
        return lines
    fields = [[key, squeeze(_plain_inline(value, {}))] for key, value in fields]
    values = {key.lower(): value for key, value in fields}
    builder.title = values.get("title", "")
    if "pep" in values:
        builder.title = f"PEP {values['pep']}: {builder.title}"
    builder.describe(author=values.get("author"), date=values.get("created") or values.get("date"))
    builder.lines("list", [f"{key}: {value}" for key, value in fields if value and "$" not in value])
    return lines[end:]


class _RstReader:
    def __init__(self, builder: Builder, substitutions: dict[str, str]) -> None:
        self.first_heading: tuple[str, int] | None = None
        self._builder = builder
        self._substitutions = substitutions
        self._styles: list[str] = []  # adornments in the order of their first use: their place is the level

    def read(self, lines: list[str], nesting: int) -> None:
        i = 0
        while i < len(lines):
            i = self._take(lines, i, nesting)

    def _take(self, lines: list[str], i: int, nesting: int) -> int:
        """Consume the block that starts at lines[i]; return the index behind it."""
        line = lines[i]
        if not line.strip():
            return i + 1
        if line[0] == " ":
            return self._take_quote(lines, i, nesting)
        if (end := self._take_heading(lines, i)) > i:
            return end
        if line.startswith("..") and (len(line) == 2 or line[2] == " "):
            return self._take_explicit(lines, i, nesting)
        if line.startswith("__ "):
            return i + 1
        if _SIMPLE_TABLE.match(line):
            return self._take_simple_table(lines, i)
        if _GRID_TABLE.match(line.replace("=", "-")):
            return self._take_grid_table(lines, i)
        if line.startswith(">>>"):
            end = _paragraph_end(lines, i)
            self._builder.code("\n".join(lines[i:end]))
            return end
        if _ITEM.match(line):
            return self._take_list(lines, i)
        if _FIELD.match(line):
            return self._take_fields(lines, i)
        return self._take_paragraph(lines, i, nesting)

    def _take_heading(self, lines: list[str], i: int) -> int:
        line = lines[i]
        under = lines[i + 1] if i + 1 < len(lines) else ""
        if _ADORNMENT.match(line) and len(line) >= 3 and under.strip() and i + 2 < len(lines) and lines[i + 2] == line:
            text, style, end = under.strip(), line[0] * 2, i + 3
        elif _ADORNMENT.match(under) and len(under) >= min(len(line), 4) and not _ADORNMENT.match(line):
            text, style, end = line.strip(), under[0], i + 2
        else:
            return i + 1 if _ADORNMENT.match(line) and len(line) >= 4 and not under.strip() else i
        if style not in self._styles:
            self._styles.append(style)
        level = self._styles.index(style) + 1
        text = squeeze(self._inline(text))
        if self.first_heading is None:
            self.first_heading = (text, level)
        self._builder.heading(text, level)
        return end

    def _take_explicit(self, lines: list[str], i: int, nesting: int) -> int:
        """Consume a directive, footnote, target or comment with its indented body."""
        end = _indented_end(lines, i + 1)
        body = _dedent(lines[i + 1 : end])
        if match := _FOOTNOTE.match(lines[i]):
            text = " ".join([match[2], *body])
            label = "" if match[1][0] in "#*" else f"[{match[1]}] "
            self._builder.paragraph(label + squeeze(self._inline(text)))
        elif match := _DIRECTIVE.match(lines[i]):
            self._add_directive(match[1], match[2] or "", body, nesting)
        return end

    def _add_directive(self, name: str, argument: str, body: list[str], nesting: int) -> None:
        options: dict[str, str] = {}
        while body and (match := _FIELD.match(body[0])):
            options[match[1]] = match[2] or ""
            body = body[1:]
        if name in _DROPPED or nesting >= _MAX_NESTING:
            return
        if name in _CODE:
            self._builder.code("\n".join(([argument] if name in ("math", "productionlist") else []) + body))
        elif name == "csv-table":
            self._add_titled(argument)
            header = next(iter(csv_rows(options["header"])), []) if "header" in options else None
            rows = ([header] if header else []) + list(csv_rows("\n".join(body)))
            self._add_table(rows, header=bool(header) or options.get("header-rows", "0") != "0")
        elif name == "list-table":
            self._add_titled(argument)
            self._add_table(_list_table_rows(body), header=options.get("header-rows", "0") != "0")
        elif name in ("image", "figure"):
            self._add_titled(options.get("alt", ""))
            self.read(body, nesting + 1)
        else:
            label = f"{name.capitalize()}: " if name in _NOTES else ""
            first, rest = _split_paragraph(body) if label and not argument else ([], body)
            self._add_titled(label + " ".join([argument, *first]))
            self.read(rest, nesting + 1)

    def _add_titled(self, text: str) -> None:
        self._builder.paragraph(self._inline(squeeze(text)))

    def _take_quote(self, lines: list[str], i: int, nesting: int) -> int:
        end = _indented_end(lines, i)
        body = _dedent(lines[i:end])
        if nesting < _MAX_NESTING:
            self.read(body, nesting + 1)
        else:
            self._builder.paragraph(" ".join(body))
        return end

    def _take_paragraph(self, lines: list[str], i: int, nesting: int) -> int:
        end = _paragraph_end(lines, i)
        if end == i + 1 and end < len(lines) and lines[end].startswith(" ") and not lines[i].endswith("::"):
            return self._take_definition(lines, i, nesting)
        paragraph = lines[i:end]
        if all(line.startswith("|") for line in paragraph):
            self._builder.paragraph("\n".join(self._inline(line[1:].strip()) for line in paragraph))
            return end
        text = " ".join(line.strip() for line in paragraph)
        is_literal = text.endswith("::")
        if is_literal:
            text = text[:-2].rstrip() + (":" if len(text) > 2 and not text.endswith(" ::") else "")
        self._builder.paragraph(self._inline(text))
        if not is_literal:
            return end
        while end < len(lines) and not lines[end].strip():
            end += 1
        code_end = _indented_end(lines, end) if end < len(lines) and lines[end].startswith(" ") else end
        self._builder.code("\n".join(_dedent(lines[end:code_end])))
        return code_end

    def _take_definition(self, lines: list[str], i: int, nesting: int) -> int:
        """A term, and its indented definition right under it: keep the first paragraph on the term's line."""
        end = _indented_end(lines, i + 1)
        first, rest = _split_paragraph(_dedent(lines[i + 1 : end]))
        is_literal = bool(first) and first[-1].endswith("::")
        term = self._inline(lines[i].strip()).rstrip(":")
        definition = " ".join(first)
        if is_literal:
            definition = definition[:-1]
        self._builder.paragraph(f"{term}: {self._inline(squeeze(definition))}")
        if is_literal:
            code_end = _indented_end(rest, 0)
            self._builder.code("\n".join(_dedent(rest[:code_end])))
            rest = rest[code_end:]
        if nesting < _MAX_NESTING:
            self.read(rest, nesting + 1)
        return end

    def _take_list(self, lines: list[str], i: int) -> int:
        """Consume items of any depth. A literal block ends the list; what follows it starts another."""
        items: list[str] = []
        indents: list[int] = []
        after_blank = True
        while i < len(lines):
            line = lines[i]
            stripped = line.strip()
            indent = len(line) - len(line.lstrip())
            if not stripped:
                after_blank = True
            elif after_blank and (match := _ITEM.match(stripped)) and (indent == 0 or indents):
                while indents and indent < indents[-1]:
                    indents.pop()
                if not indents or indent > indents[-1]:
                    indents.append(indent)
                items.append("  " * min(len(indents) - 1, 8) + _marker(match) + stripped[match.end() :])
                after_blank = False
            elif indent in indents and (
                match := _ITEM.match(stripped)
            ):  # the next item, without a blank line before it
                del indents[indents.index(indent) + 1 :]
                items.append("  " * min(len(indents) - 1, 8) + _marker(match) + stripped[match.end() :])
            elif (indent == 0 and (after_blank or not items)) or (stripped.startswith((".. ", ">>>")) and after_blank):
                break
            elif after_blank:
                items.append("  " * len(indents) + stripped)
                after_blank = False
            else:
                items[-1] += " " + stripped
            i += 1
            if stripped.endswith("::") and i < len(lines) and not lines[i].strip():
                items[-1] = items[-1][:-1].rstrip()
                break
        self._builder.lines("list", [self._inline(item) for item in items])
        if items and items[-1].endswith(":") and i < len(lines) and lines[i - 1].endswith("::"):
            while i < len(lines) and not lines[i].strip():
                i += 1
            depth = len(lines[i]) - len(lines[i].lstrip()) if i < len(lines) else 0
            end = _indented_end(lines, i, depth) if depth else i
            self._builder.code("\n".join(_dedent(lines[i:end])))
            return end
        return i

    def _take_fields(self, lines: list[str], i: int) -> int:
        fields: list[str] = []
        while i < len(lines) and (match := _FIELD.match(lines[i])):
            end = _indented_end(lines, i + 1)
            text = squeeze(" ".join([match[2] or "", *lines[i + 1 : end]]))
            if self._builder.is_empty and match[1].lower() in ("author", "authors", "date"):
                self._builder.describe(**{match[1].lower().rstrip("s"): text})
            fields.append(f"{match[1]}: {self._inline(text)}")
            i = end
        self._builder.lines("list", fields)
        return i

    def _take_simple_table(self, lines: list[str], i: int) -> int:
        spans = [m.span() for m in re.finditer("=+", lines[i])]
        spans[-1] = (spans[-1][0], 10_000)
        rows: list[list[str]] = []
        borders = 1
        header_end = 0
        j = i + 1
        while j < len(lines):
            line = lines[j]
            j += 1
            if _SIMPLE_TABLE.match(line):
                borders += 1
                if j >= len(lines) or not lines[j].strip():
                    break
                header_end = len(rows)
            elif line.strip() and not _ADORNMENT.match(line.replace(" ", "")):
                cells = [
                    line[start : spans[k + 1][0] if k + 1 < len(spans) else end].strip()
                    for k, (start, end) in enumerate(spans)
                ]
                if cells[0] or not rows or len(rows) == header_end:
                    rows.append(cells)
                else:
                    rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
            elif not line.strip() and borders == 1 and not rows:
                break
        if header_end > 1:
            rows[:header_end] = [[" ".join(parts) for parts in zip(*rows[:header_end], strict=True)]]
        self._add_table(rows, header=header_end > 0)
        return j

    def _take_grid_table(self, lines: list[str], i: int) -> int:
        end = i
        while end < len(lines) and lines[end].startswith(("+", "|")):
            end += 1
        rows: list[list[str]] = []
        row: list[str] = []
        header = False
        for line in lines[i:end]:
            if line.startswith("+"):
                if any(row):
                    rows.append(row)
                row = []
                header = header or (line.startswith("+=") and len(rows) == 1)
                continue
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            row = [f"{old} {new}".strip() for old, new in zip(row, cells, strict=False)] if row else cells
        self._add_table([*rows, row], header=header)
        return end

    def _add_table(self, rows: list[list[str]], *, header: bool) -> None:
        cleaned = [[self._inline(squeeze(cell)) for cell in row] for row in rows]
        self._builder.lines("table", rows_as_lines(cleaned, header=header))

    def _inline(self, text: str) -> str:
        return _plain_inline(text, self._substitutions)


def _plain_inline(text: str, substitutions: dict[str, str]) -> str:
    """Remove inline marks; literals keep one backtick on each side."""
    literals: list[str] = []

    def protect(match: re.Match[str]) -> str:
        literals.append(match[1])
        return f"\ue000{len(literals) - 1}\ue001"

    text = text.replace("\ue000", "")
    if "`" in text:
        text = _LITERAL.sub(protect, text)
        text = _ROLE.sub(_role_text, text)
        text = _LINK.sub(r"\1", text)
        text = _INLINE_TARGET.sub(r"\1", text)
        text = _REFERENCE.sub(r"\1", text)
        text = _INTERPRETED.sub(r"\1", text)
    if "|" in text:
        text = _SUBSTITUTED.sub(lambda m: substitutions.get(m[1], m[0]), text)
    if "_" in text:
        text = _FOOTNOTE_MARK.sub("", text)
        text = _NUMBERED_MARK.sub(r"\1", text)
        text = text.replace("]_", "]")
        text = _WORD_REFERENCE.sub(r"\1", text)
    if "*" in text:
        text = _STRONG.sub(r"\2", text)
    if "\\" in text:
        text = _ESCAPE.sub(lambda m: "" if m[1] == " " else m[1], text)
    return re.sub("\ue000([0-9]+)\ue001", lambda m: f"`{literals[int(m[1])]}`", text) if literals else text


def _marker(item: re.Match[str]) -> str:
    return "- " if item[1] in "-*+•" else f"{item[1]} "


def _role_text(match: re.Match[str]) -> str:
    role, text = match[1].rpartition(":")[2].lower(), match[2]
    titled = re.match(r"(.+?)\s*<([^<>]*)>$", text, re.DOTALL)
    if role in ("pep", "rfc"):
        number = (titled[2] if titled else text).partition("#")[0]
        return f"{titled[1]} ({role.upper()} {number})" if titled else f"{role.upper()} {number}"
    if titled:
        return titled[1]
    return text.lstrip("~!") if "~" not in text else text.lstrip("~").rpartition(".")[2]


def _paragraph_end(lines: list[str], i: int) -> int:
    """Return the index behind the lines that follow lines[i] without blank line or indentation."""
    i += 1
    while i < len(lines) and lines[i].strip() and not lines[i].startswith(" "):
        i += 1
    return i


def _indented_end(lines: list[str], i: int, indent: int = 1) -> int:
    """Return the index behind the lines that are indented (or blank between indented ones)."""
    end = i
    while i < len(lines):
        if lines[i].strip():
            if not lines[i].startswith(" " * indent):
                break
            end = i + 1
        i += 1
    return end


def _dedent(lines: list[str]) -> list[str]:
    filled = [line for line in lines if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in filled), default=0)
    first = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    return [line[indent:] for line in lines[first:]]


def _split_paragraph(lines: list[str]) -> tuple[list[str], list[str]]:
    """Split off the first paragraph."""
    for i, line in enumerate(lines):
        if not line.strip():
            return lines[:i], lines[i:]
        if i and line.startswith(" "):
            return lines[:i], lines[i:]
    return lines, []


def _list_table_rows(lines: list[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    for line in lines:
        stripped = line.strip()
        if line.startswith(("* -", "* *")):
            rows.append([stripped[3:].strip()])
        elif rows and re.match(r"^\s+[-*](\s|$)", line):
            rows[-1].append(stripped[1:].strip())
        elif rows and stripped:
            rows[-1][-1] += " " + stripped
    return rows
