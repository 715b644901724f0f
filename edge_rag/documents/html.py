"""HTML and XHTML: the page's own words, without the furniture around them."""

import re
from typing import TYPE_CHECKING

from edge_rag.documents.text import Builder, clean, decode, rows_as_lines, squeeze, word_set
from edge_rag.interfaces import Document

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

# The parser's time grows with the square of the depth, and no honest page comes near this.
MAX_DEPTH = 1000

_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
_LISTS = {"ul", "ol", "dl", "menu", "dir"}
_BLOCKS = (
    _LISTS
    | set(_HEADINGS)
    | word_set("""
    address article aside blockquote body caption center dd details dialog div dt fieldset figcaption figure
    footer form header hgroup hr html legend li main nav p section summary table tbody td tfoot th thead title
    tr
""")
)
_DROPPED = word_set("""
    script style noscript template head nav svg iframe object embed video audio canvas button select option
    input textarea datalist progress meter rp rt annotation annotation-xml map
""")
_DROPPED_ROLES = {
    "navigation",
    "banner",
    "contentinfo",
    "search",
    "menu",
    "menubar",
    "toolbar",
    "dialog",
    "alertdialog",
}
_DROPPED_CLASSES = {
    "headerlink",
    "anchor-link",
    "navbar",
    "breadcrumb",
    "breadcrumbs",
    "skip-link",
    "sr-only",
    "noprint",
}
_CONTENT = {"article", "main", "section", "blockquote"}
_MAYBE_FURNITURE = {"div", "ul", "ol", "a", "p", "span", "section", "aside", "header", "form", "table"}

_CHARSET = re.compile(
    rb"""<meta[^>]{0,300}?charset\s*=\s*["']?\s*([\w.:-]+)|^\s*<\?xml[^>]{0,300}?encoding\s*=\s*["']([\w.:-]+)""",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s+")
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
_EMPTY_TAG = re.compile(r"<([a-zA-Z][\w:.-]*)((?:\s[^<>]*)?)/>")
_VOID = word_set("""
    area base br col embed hr img input link meta param source track wbr basefont bgsound frame keygen
""")
_CLOSED_BY_OTHERS = word_set("""
    p li dt dd option optgroup tr td th thead tbody tfoot colgroup rp rt html head body
""")
_MARKUP = re.compile(r"<(script|style)\b.*?(</\1\s*>|\Z)|<!--.*?(-->|\Z)|<[^<>]*>", re.IGNORECASE | re.DOTALL)


def read_html(data: bytes, media_type: str) -> Document:
    declared = _CHARSET.search(data[:4096])
    encoding = next((g.decode() for g in declared.groups() if g), None) if declared else None
    builder = Builder()
    builder.title = add_html(builder, decode(data, encoding), is_xml=media_type == "application/xhtml+xml")
    return builder.finish(media_type)


def add_html(builder: Builder, markup: str, *, is_xml: bool = False) -> str:
    """Append the page's blocks to `builder` and its metadata; return its title."""
    from selectolax.lexbor import LexborHTMLParser

    markup = clean(markup)
    if is_xml:  # an HTML parser takes <a id="x"/> for a start tag
        markup = _EMPTY_TAG.sub(lambda m: m[0] if m[1].lower() in _VOID else f"<{m[1]}{m[2]}></{m[1]}>", markup)
    if _depth(markup) > MAX_DEPTH:
        builder.warnings.append(f"HTML nested more than {MAX_DEPTH} deep: read without its structure")
        add_flat(builder, markup)
        return ""
    parser = LexborHTMLParser(markup)
    _add_metadata(builder, parser)
    root = _main_part(parser)
    if root is not None:
        walker = _Walker(builder, keep_furniture=False)
        walker.walk(root)
        if walker.n_blocks == 0:
            _Walker(builder, keep_furniture=True).walk(root)
    title = parser.css_first("head > title")
    return squeeze(title.text()) if title is not None else ""


def add_flat(builder: Builder, markup: str) -> None:
    """Append the bare text of markup that is too odd to parse."""
    import html

    for part in re.split(r"\n\s*\n", _MARKUP.sub(" ", markup)):
        builder.paragraph(html.unescape(part))


def _depth(markup: str) -> int:
    """Return an upper estimate of how deep elements nest; elements that others close implicitly do not count."""
    open_by_name: dict[str, int] = {}
    depth = deepest = 0
    for closing, name in (m.groups() for m in _TAG.finditer(markup)):
        name = name.lower()
        if name in _VOID or name in _CLOSED_BY_OTHERS:
            continue
        if not closing:
            open_by_name[name] = open_by_name.get(name, 0) + 1
            depth += 1
            deepest = max(deepest, depth)
        elif open_by_name.get(name):
            open_by_name[name] -= 1
            depth -= 1
    return deepest


def _add_metadata(builder: Builder, parser: "LexborHTMLParser") -> None:
    wanted = {"author": "author", "description": "description", "date": "date", "keywords": "subject"}
    for meta in parser.css("head > meta"):
        attributes = meta.attributes
        name = wanted.get((attributes.get("name") or "").lower())
        if name:
            builder.describe(**{name: attributes.get("content")})


def _main_part(parser: "LexborHTMLParser") -> "LexborNode | None":
    """Return what holds the content: <main> or a lone <article> if much of the text is in it, else the body."""
    body = parser.body
    if body is None:
        return parser.root
    mains = parser.css("main, [role=main]") or parser.css("article")
    if len(mains) == 1 and len(mains[0].text()) > 0.25 * len(body.text()):
        return mains[0]
    return body


class _Walker:
    """Walks a tree without recursion, collecting inline text until a block ends."""

    def __init__(self, builder: Builder, *, keep_furniture: bool) -> None:
        self.n_blocks = 0
        self._builder = builder
        self._keep_furniture = keep_furniture
        self._inline: list[str] = []
        self._lists: list[
            list[int]
        ] = []  # of each open list: [number of the item, or -1 without numbers; 1 if marker is due]
        self._list_lines: list[str] = []
        self._term = ""

    def walk(self, root: "LexborNode") -> None:
        pending: list[tuple[LexborNode, bool]] = [(root, False)]
        while pending:
            node, is_leaving = pending.pop()
            tag = node.tag or ""
            if is_leaving:
                self._leave(tag)
            elif tag == "-text":
                self._inline.append(_SPACE.sub(" ", node.text_content or ""))
            elif not self._is_dropped(tag, node) and not self._is_handled_whole(tag, node):
                if tag in _BLOCKS:
                    self._enter(tag, node)
                    pending.append((node, True))
                pending.extend((child, False) for child in reversed(_children(node)))
        self._flush()
        self._flush_list()

    def _is_dropped(self, tag: str, node: "LexborNode") -> bool:
        if tag in _DROPPED or not tag or tag[0] in "-!":
            return True
        if self._keep_furniture:
            return False
        if tag == "footer":
            return not _stands_in_content(node)
        if tag not in _MAYBE_FURNITURE:
            return False
        attributes = node.attributes
        return bool(attributes) and (
            "hidden" in attributes
            or attributes.get("aria-hidden") == "true"
            or (attributes.get("role") or "") in _DROPPED_ROLES
            or not _DROPPED_CLASSES.isdisjoint((attributes.get("class") or "").split())
        )

    def _is_handled_whole(self, tag: str, node: "LexborNode") -> bool:
        if tag == "br":
            self._inline.append("\n")
        elif tag == "img":
            alt = node.attributes.get("alt") or ""
            if len(alt.split()) > 2:  # a description, not a name
                self._inline.append(f" {_SPACE.sub(' ', alt)} ")
        elif tag in ("pre", "listing", "xmp"):
            self._flush()
            self._flush_list()
            self._builder.code(_verbatim(node))
            self.n_blocks += 1
        elif tag == "table" and (rows := _table_rows(node)) is not None:
            self._flush()
            self._flush_list()
            if (caption := node.css_first("caption")) is not None:
                self._builder.paragraph(_flat_text(caption))
            self._builder.lines("table", rows_as_lines(rows, header=_has_header(node)))
            self.n_blocks += 1
        else:
            return False
        return True

    def _enter(self, tag: str, node: "LexborNode") -> None:
        self._flush()
        if tag in _LISTS:
            start = node.attributes.get("start") or "1" if tag == "ol" else ""
            self._lists.append([int(start) - 1 if start.isdecimal() and len(start) < 9 else -1, 0])
        elif tag in ("li", "dt") and self._lists:
            self._lists[-1][1] = 1
            if self._lists[-1][0] >= 0:
                self._lists[-1][0] += 1

    def _leave(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._flush_list()
            self._add_heading(_HEADINGS[tag])
        elif tag == "dt" and self._lists:
            self._term = squeeze("".join(self._inline)).rstrip(":")
            self._inline.clear()
        else:
            self._flush()
        if tag in _LISTS and self._lists:
            self._lists.pop()
            if not self._lists:
                self._flush_list()

    def _add_heading(self, level: int) -> None:
        text = squeeze("".join(self._inline))
        self._inline.clear()
        if text:
            self._builder.heading(text, level)
            self.n_blocks += 1

    def _flush(self) -> None:
        """End the running text: it becomes a line of the open list, or a paragraph."""
        text = "".join(self._inline)
        self._inline.clear()
        if not text.strip():
            return
        if not self._lists:
            self._builder.paragraph(text)
            self.n_blocks += 1
            return
        indent = "  " * min(len(self._lists) - 1, 8)
        number, is_due = self._lists[-1]
        marker = ("- " if number < 0 else f"{number}. ") if is_due else "  "
        self._lists[-1][1] = 0
        if self._term:
            text = f"{self._term}: {text}"
            self._term = ""
        self._list_lines.append(f"{indent}{marker}{squeeze(text)}")

    def _flush_list(self) -> None:
        if self._term:
            self._list_lines.append(f"- {self._term}")
            self._term = ""
        if self._list_lines:
            self._builder.lines("list", self._list_lines)
            self._list_lines = []
            self.n_blocks += 1


def _children(node: "LexborNode") -> "list[LexborNode]":
    children = []
    child = node.child
    while child is not None:
        children.append(child)
        child = child.next
    return children


def _stands_in_content(node: "LexborNode") -> bool:
    parent = node.parent
    while parent is not None:
        if parent.tag in _CONTENT:
            return True
        parent = parent.parent
    return False


def _verbatim(node: "LexborNode") -> str:
    parts = []
    for part in node.traverse(include_text=True):
        if part.tag == "-text":
            parts.append(part.text_content or "")
        elif part.tag == "br":
            parts.append("\n")
    return "".join(parts)


def _flat_text(node: "LexborNode") -> str:
    parts = []
    for part in node.traverse(include_text=True):
        tag = part.tag or ""
        if tag == "-text":
            parent = part.parent
            if parent is None or parent.tag not in _DROPPED:
                parts.append(part.text_content or "")
        elif tag in _BLOCKS or tag == "br":
            parts.append(" ")
    return squeeze("".join(parts))


def _table_rows(table: "LexborNode") -> list[list[str]] | None:
    """Return the cells' texts, or None for a table that only serves the layout."""
    if table.attributes.get("role") == "presentation" or len(table.css("table")) > 1:
        return None
    if table.css_first("ul, ol, pre, h1, h2, h3") is not None and len(table.css("td, th")) < 8:
        return None
    rows = []
    for row in table.css("tr"):
        rows.append([_flat_text(cell) for cell in _children(row) if cell.tag in ("td", "th")])
    if all(len(row) < 2 for row in rows):
        return None
    return rows


def _has_header(table: "LexborNode") -> bool | None:
    first = table.css_first("tr")
    cells = [cell.tag for cell in _children(first) if cell.tag in ("td", "th")] if first is not None else []
    return True if len(cells) > 1 and all(cell == "th" for cell in cells) else None
