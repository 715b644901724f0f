"""Markdown: blocks by its line rules, inline marks removed, so that text reads and embeds as prose.

Link targets go, their words stay; `code` keeps its backticks, because they say where the code begins and ends.
Repetitions in the patterns are bounded: a hostile line costs at most a constant for each of its characters.
"""

import html
import re

from edge_rag.documents.text import Builder, clean, decode, rows_as_lines, squeeze
from edge_rag.interfaces import Document

_QUOTE = re.compile(r"^ {0,3}>[ \t]?")
_FENCE = re.compile(r"^(\s*)(?:[-*+]\s+|\d+[.)]\s+)?(`{3,}|~{3,})([^`]*)$")
_ATX = re.compile(r"^ {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_ATX_END = re.compile(r"(?:^|[ \t]+)#+$|[ \t]*\{#[^{}\s]+\}$")
_HTML_HEADING = re.compile(r"^\s*<h([1-6])(?:\s[^<>]*)?>(.*?)(?:</h\1\s*>)?\s*$", re.IGNORECASE)
_SETEXT = re.compile(r"^ {0,3}(=+|-+)$")
_RULE = re.compile(r"^ {0,3}([-*_])[ \t]*\1[ \t]*\1[-*_ \t]*$")
_ITEM = re.compile(r"^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*)|$)")
_TABLE_RULE = re.compile(r"^[\s|:-]*-[\s|:-]*$")
_CELL_BORDER = re.compile(r"(?<!\\)\|")
_LINK_DEFINITION = re.compile(r"^ {0,3}\[(?!\^)[^\]]{1,400}\]:\s*\S+(\s+[\"'(].*)?$")
_FOOTNOTE = re.compile(r"^ {0,3}\[\^[^\]]{1,200}\]:\s*")
_CALLOUT = re.compile(r"^\[!(\w+)\][-+]?\s*")
_TEMPLATE_LINE = re.compile(r"^\s*(\{\{[#<%].*\}\}|\{%.*%\}|:::+.*|\[\[?_?TOC_?\]?\])\s*$", re.IGNORECASE)
_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)\n(.{0,20000}?)\n(?:\1|\.\.\.)(?:\n|\Z)", re.DOTALL)
_FRONT_LINE = re.compile(r"^([A-Za-z][\w-]*)\s*[:=]\s*(.*)$")
_FRONT_NAMES = {
    "author": "author",
    "authors": "author",
    "date": "date",
    "description": "description",
    "tags": "subject",
}

# A comment may span lines and blocks, so it goes first; one inside code stays.
_CODE_OR_COMMENT = re.compile(
    r"^[ \t>]*(?P<fence>`{3,}+|~{3,}+)[^\n]*+\n.*?(?:^[ \t>]*(?P=fence)|\Z)|`[^`\n]{1,400}`|<!--(?:(?!<!--).)*?-->",
    re.DOTALL | re.MULTILINE,
)

_CODE_SPAN = re.compile(r"(?<!`)(`++)(.{1,1000}?)(?<!`)\1(?!`)")
_TARGET = (
    r"(?:\(\s*<?[^()\s]{0,2000}(?:\([^()]{0,500}\)[^()\s]{0,500}){0,9}>?(?:\s+[\"'(][^\"']{0,400}[\"')])?\s*\)"
    r"|\[[^\[\]]{0,400}\])"
)
_IMAGE = re.compile(r"!\[([^\[\]]{0,400})\]" + _TARGET)
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]{0,200}\]){0,600})\]" + _TARGET)
_FOOTNOTE_MARK = re.compile(r"\[\^[^\]\s]{1,100}\]")
_AUTOLINK = re.compile(r"<((?:https?|ftp|mailto):[^<>\s]{1,2000}|[^<>\s@]{1,100}@[^<>\s@]{1,200})>")
_HTML_TAG = re.compile(
    r"</?(?P<name>a|abbr|b|big|blockquote|br|center|cite|code|dd|del|details|div|dl|dt|em|figcaption|figure|font|h[1-6]|hr|i|img|ins|kbd"
    r"|li|mark|ol|p|picture|pre|q|s|samp|section|small|source|span|strong|sub|summary|sup|table|tbody|td|tfoot|th|thead|tr|u|ul"
    r"|video|[A-Z][A-Za-z]+(?=\s|>\s*$))(?P<attributes>\s[^<>]{0,1000})?/?>"
)
_NUMBER = re.compile(r"\bnumber=\"([^\"]+)\"")
_CAPTION = re.compile(r"\b(?:caption|alt)=\"([^\"]+)\"")
_STRONG = re.compile(r"(?<![\\*\w])(\*{1,3})(?=[^\s*])([^*\n]{1,600})(?<=[^\s\\])\1(?!\*)")
_UNDERLINED = re.compile(r"(?<![\\\w])(_{1,3})(?=[^\s_])(.{1,400}?)(?<=[^\s\\_])\1(?!\w)")
_STRUCK = re.compile(r"~~(?=\S)(.{1,400}?)(?<=\S)~~")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
_LINE_BREAK = re.compile(r"(\\|<br\s*/?>)$", re.IGNORECASE)


def read_markdown(data: bytes) -> Document:
    builder = Builder()
    add_markdown(builder, decode(data))
    return builder.finish("text/markdown")


def add_markdown(builder: Builder, source: str) -> None:
    """Append the blocks of `source` to `builder`; its front matter becomes metadata."""
    source = clean(source)
    if (front := _FRONT_MATTER.match(source)) and _read_front_matter(builder, front[2]):
        source = source[front.end() :]
    source = _CODE_OR_COMMENT.sub(lambda m: "" if m[0].startswith("<!--") else m[0], source)
    _MarkdownParser(builder).parse(source.split("\n"))


def plain_inline(text: str) -> str:
    """Remove inline marks from one paragraph; what stands in `code` is left as it is."""
    spans: list[str] = []

    def protect(match: re.Match[str]) -> str:
        spans.append(f"`{match[2].strip()}`")
        return f"\ue000{len(spans) - 1}\ue001"

    if "\ue000" in text:
        text = text.replace("\ue000", "")
    if "`" in text:
        text = _CODE_SPAN.sub(protect, text)
    text = _plain_prose(text)
    return re.sub("\ue000([0-9]+)\ue001", lambda m: spans[int(m[1])], text) if spans else text


def _plain_prose(text: str) -> str:
    if "[" in text:
        text = _IMAGE.sub(r"\1", text)
        text = _LINK.sub(r"\1", text)
        text = _FOOTNOTE_MARK.sub("", text)
    if "<" in text:
        text = _AUTOLINK.sub(r"\1", text)
        text = _HTML_TAG.sub(_what_a_tag_says, text)
    if "*" in text:
        text = _STRONG.sub(r"\2", _STRONG.sub(r"\2", text))
    if "_" in text:
        text = _UNDERLINED.sub(r"\2", text)
    if "~~" in text:
        text = _STRUCK.sub(r"\1", text)
    if "\\" in text:
        text = _ESCAPE.sub(r"\1", text)
    return html.unescape(text) if "&" in text else text


def _what_a_tag_says(match: re.Match[str]) -> str:
    """A tag says nothing but its caption: "Listing 2-1: Code that reads a guess"."""
    attributes = match["attributes"] or ""
    caption, number = _CAPTION.search(attributes), _NUMBER.search(attributes)
    if not caption:
        return ""
    return f" {match['name']} {number[1]}: {caption[1]} " if number else f" {caption[1]} "


def _read_front_matter(builder: Builder, front: str) -> bool:
    """Take `key: value` lines as metadata; return False if these lines are no front matter at all."""
    pairs = [m.groups() for line in front.split("\n") if (m := _FRONT_LINE.match(line))]
    if not pairs:
        return False
    for key, value in pairs:
        value = value.strip().strip("\"'[]").strip()
        if key.lower() == "title":
            builder.title = value
        elif key.lower() in _FRONT_NAMES:
            builder.describe(**{_FRONT_NAMES[key.lower()]: value})
    return True


class _MarkdownParser:
    """One pass over the lines; `_paragraph` and `_items` hold what is not finished yet."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._paragraph: list[str] = []
        self._items: list[str] = []
        self._indents: list[int] = []  # of the open list levels
        self._after_blank = True

    def parse(self, lines: list[str]) -> None:
        i = 0
        while i < len(lines):
            i = self._take(lines, i)
        self._flush()

    def _take(self, lines: list[str], i: int) -> int:
        """Consume the block or line that starts at lines[i]; return the index of the next one."""
        line = _unquote(lines[i])
        if not line.strip() or _TEMPLATE_LINE.match(line):
            self._flush_paragraph()
            self._after_blank = True
            return i + 1
        if fence := _FENCE.match(line):
            return self._take_fence(lines, i, fence)
        if (heading := _ATX.match(line)) or (heading := _HTML_HEADING.match(line)):
            level = int(heading[1]) if heading[1].isdigit() else len(heading[1])
            self._add_heading(_ATX_END.sub("", heading[2] or ""), level)
            return i + 1
        if self._paragraph and not self._items and _SETEXT.match(line):
            text = " ".join(self._paragraph)
            self._paragraph.clear()
            self._add_heading(text, 1 if "=" in line else 2)
            return i + 1
        if _RULE.match(line):
            self._flush()
            return i + 1
        if "|" in line and i + 1 < len(lines) and "-" in lines[i + 1] and _TABLE_RULE.match(_unquote(lines[i + 1])):
            return self._take_table(lines, i)
        if line.startswith(("    ", "\t")) and self._after_blank and not self._items:
            return self._take_indented_code(lines, i)
        if not self._paragraph and (_LINK_DEFINITION.match(line)):
            return i + 1
        self._take_text(line)
        self._after_blank = False
        return i + 1

    def _take_text(self, line: str) -> None:
        item = _ITEM.match(line)
        if item and (not self._paragraph or self._items or item[2] in ("-", "*", "+", "1.", "1)")):
            self._flush_paragraph()
            self._add_item(len(item[1].expandtabs(4)), item[2], item[3] or "")
        elif not self._items:
            self._paragraph.append(line.strip() if self._paragraph else _opening(line))
        elif not self._after_blank:
            self._items[-1] += " " + line.strip()
        elif line.startswith((" ", "\t")):
            self._items.append("  " * len(self._indents) + line.strip())
        else:
            self._flush()
            self._paragraph.append(_opening(line))

    def _add_item(self, indent: int, marker: str, text: str) -> None:
        while self._indents and indent < self._indents[-1]:
            self._indents.pop()
        if not self._indents or indent > self._indents[-1] + 1:
            self._indents.append(indent)
        depth = min(len(self._indents) - 1, 8)
        self._items.append("  " * depth + ("-" if marker in "-*+" else marker) + " " + text.removeprefix("[ ] "))

    def _take_fence(self, lines: list[str], i: int, fence: re.Match[str]) -> int:
        self._flush()
        indent, mark = len(fence[1]), fence[2]
        quoted = bool(_QUOTE.match(lines[i]))
        code = []
        for j in range(i + 1, len(lines)):
            line = _unquote(lines[j]) if quoted else lines[j]
            if line.strip().startswith(mark) and not line.strip().strip(mark[0]):
                break
            if not _TEMPLATE_LINE.match(line):
                code.append(line[indent:] if not line[:indent].strip() else line.lstrip())
        else:
            j = len(lines)
        self._builder.code("\n".join(code))
        self._after_blank = True
        return j + 1

    def _take_indented_code(self, lines: list[str], i: int) -> int:
        self._flush()
        code = []
        while i < len(lines) and (not lines[i].strip() or lines[i].startswith(("    ", "\t"))):
            code.append(lines[i].expandtabs(4)[4:])
            i += 1
        self._builder.code("\n".join(code))
        self._after_blank = True
        return i

    def _take_table(self, lines: list[str], i: int) -> int:
        self._flush()
        rows = []
        for j in range(i, len(lines)):
            line = _unquote(lines[j]).strip()
            if "|" not in line:
                break
            if j != i + 1:
                cells = _CELL_BORDER.split(line.removeprefix("|").removesuffix("|"))
                rows.append([plain_inline(cell.strip().replace("\\|", "|").replace("<br>", " ")) for cell in cells])
        else:
            j = len(lines)
        self._builder.lines("table", rows_as_lines(rows, header=True))
        self._after_blank = True
        return j

    def _add_heading(self, text: str, level: int) -> None:
        self._flush()
        text = squeeze(plain_inline(text))
        if not self._builder.title and self._builder.is_empty:
            self._builder.title = text
        self._builder.heading(text, level)
        self._after_blank = True

    def _flush(self) -> None:
        self._flush_paragraph()
        if self._items:
            self._builder.lines("list", [plain_inline(item) for item in self._items])
            self._items = []
        self._indents = []

    def _flush_paragraph(self) -> None:
        if self._paragraph:
            self._builder.paragraph(plain_inline(_join(self._paragraph)))
            self._paragraph.clear()


def _opening(line: str) -> str:
    """Return a paragraph's first line: "[!NOTE]" becomes a word, the mark of a footnote goes."""
    return _CALLOUT.sub(lambda m: m[1].capitalize() + ": ", _FOOTNOTE.sub("", line).strip())


def _join(lines: list[str]) -> str:
    """Join wrapped lines; a marked line break stays one."""
    return "".join(_LINE_BREAK.sub("\n", line) if _LINE_BREAK.search(line) else line + " " for line in lines).rstrip()


def _unquote(line: str) -> str:
    while match := _QUOTE.match(line):
        line = line[match.end() :]
    return line
