"""Plain text and source code: kept line by line, with the headings that can be seen without doubt."""

import re

from edge_rag.documents.text import Builder, clean, decode, squeeze
from edge_rag.interfaces import Document

_UNDERLINE = re.compile(r"^(=+|-+|~+|\*+)$")
_CHAPTER = re.compile(
    r"^(chapter|part|book|section|appendix|act|scene|letter|adventure|kapitel|teil|chapitre)\s+([\divxlc]+|[a-z])\b",
    re.I,
)
_MAX_SIGNATURE = 300  # a longer line defines nothing that a reader would name

_PYTHON = re.compile(r"^(\s*)(?:async\s+def|def|class)\s+\w+")
_MODIFIERS = (
    r"(?:(?:export|default|declare|public|private|protected|internal|static|async|abstract|final|sealed|open|override|unsafe|inline"
    r"|virtual|partial|data|pub(?:\([^)]*\))?|const|extern(?:\s+\"C\")?)\s+)*"
)
_KEYWORD = re.compile(
    rf"^(\s*){_MODIFIERS}(?:class|struct|enum|interface|trait|impl|fn|func|function\*?|fun|module|namespace|object|protocol|extension"
    r"|record|union|macro_rules!|defmodule|defp?|sub|package|type(?=\s+\w+\s+(?:struct|interface)))\b\s*[\w<(]"
)
_C_FUNCTION = re.compile(
    r"^(\s{0,0})(?=[^;=]*$)(?!(?:return|else|if|for|while|switch|typedef|case|goto|do|using|throw|new|delete)\b)"
    r"[A-Za-z_][\w:*&<>,~ \t]*[\s*&][\w:~]+\s*\("
)
_SHELL = re.compile(r"^(\s*)(?:function\s+)?[\w-]+\s*\(\)\s*\{?$|^(\s*)function\s+[\w-]+")
_RUBY = re.compile(r"^(\s*)(?:def|class|module)\s+\w+")
_LUA = re.compile(r"^(\s*)(?:local\s+)?function\s+[\w.:]+")
_SQL = re.compile(
    r"^(\s*)create\s+(?:or\s+replace\s+)?(?:\w+\s+){0,2}?(?:table|view|function|procedure|trigger|index|type)\b", re.I
)
_SECTION = re.compile(r"^(\s*)\[[\w.\"' -]+\]\s*$")
_ATTACHED = re.compile(r"^\s*(?:@|#\[|//|/\*|\*|\*/|#(?!include|define|if|endif|else|pragma|!)|--|;;|\[<|template\s*<)")

CODE_TYPES = {  # suffix: (media type, pattern of a line that defines something)
    **dict.fromkeys((".py", ".pyi", ".pyw"), ("text/x-python", _PYTHON)),
    **dict.fromkeys((".c", ".h"), ("text/x-c", _C_FUNCTION)),
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hpp", ".hh", ".hxx", ".cu", ".m", ".mm"), ("text/x-c++", _C_FUNCTION)),
    **dict.fromkeys((".js", ".mjs", ".cjs", ".jsx"), ("text/javascript", _KEYWORD)),
    **dict.fromkeys((".ts", ".tsx", ".mts", ".cts"), ("text/x-typescript", _KEYWORD)),
    **dict.fromkeys((".rs",), ("text/x-rust", _KEYWORD)),
    **dict.fromkeys((".go",), ("text/x-go", _KEYWORD)),
    **dict.fromkeys(
        (".java", ".kt", ".kts", ".scala", ".groovy", ".cs", ".swift", ".dart", ".php"), ("text/x-source", _KEYWORD)
    ),
    **dict.fromkeys(
        (".ex", ".exs", ".pl", ".pm", ".zig", ".nim", ".jl", ".r", ".vb", ".fs", ".hs", ".ml"),
        ("text/x-source", _KEYWORD),
    ),
    **dict.fromkeys((".rb", ".rake", ".cr"), ("text/x-ruby", _RUBY)),
    **dict.fromkeys((".lua",), ("text/x-lua", _LUA)),
    **dict.fromkeys((".sh", ".bash", ".zsh", ".ksh", ".fish"), ("text/x-shellscript", _SHELL)),
    **dict.fromkeys((".sql",), ("text/x-sql", _SQL)),
    **dict.fromkeys((".toml", ".ini", ".cfg", ".conf", ".properties"), ("text/x-config", _SECTION)),
    **dict.fromkeys((".yaml", ".yml", ".css", ".scss", ".cmake", ".mk", ".bat", ".ps1", ".tex"), ("text/x-code", None)),
}


_PATTERNS = dict(CODE_TYPES.values())


def read_plain(data: bytes) -> Document:
    """Paragraphs stand between blank lines; underlined lines and "Chapter 3" lines that stand alone are headings."""
    builder = Builder()
    for part in re.split(r"\n(?:[ \t]*\n)+", clean(decode(data))):
        lines = part.split("\n")
        if (
            len(lines) > 1
            and _UNDERLINE.match(lines[1])
            and lines[0].strip()
            and len(lines[0]) <= 120
            and len(lines[1]) >= 3
        ):
            builder.heading(lines[0], 1 if lines[1][0] in "=*" else 2)
            lines = lines[2:]
        elif len(lines) <= 2 and len(part) <= 120 and _CHAPTER.match(part.strip()):
            builder.heading(squeeze(part), 2)
            lines = []
        if lines and _is_preformatted(lines):
            builder.code("\n".join(lines))
        else:
            builder.paragraph("\n".join(lines))
    return builder.finish("text/plain")


def _is_preformatted(lines: list[str]) -> bool:
    """Columns: spaces inside the lines carry meaning."""
    return len(lines) > 1 and sum(1 for line in lines if re.search(r"\S {3,}\S", line)) > len(lines) / 2


def read_code(data: bytes, media_type: str) -> Document:
    """Each line that defines something is a heading; what lies between is code. Levels follow the indentation."""
    pattern = _PATTERNS[media_type]
    builder = Builder()
    pending: list[str] = []
    indents: list[int] = []
    for line in clean(decode(data)).expandtabs(4).split("\n"):
        match = pattern.match(line) if pattern and line and len(line) <= _MAX_SIGNATURE else None
        if match is None:
            pending.append(line)
            continue
        attached = _split_attached(pending)
        builder.code("\n".join(pending), tight=True)
        builder.code("\n".join(attached))
        indent = len(line) - len(line.lstrip())
        while indents and indents[-1] >= indent:
            indents.pop()
        indents.append(indent)
        builder.heading(line, len(indents) + 1, tight=bool(attached))
        pending = []
    builder.code("\n".join(pending), tight=True)
    return builder.finish(media_type)


def _split_attached(lines: list[str]) -> list[str]:
    """Cut decorators and comments off the end of `lines`: they belong to the definition that follows."""
    cut = len(lines)
    while cut and _ATTACHED.match(lines[cut - 1]):
        cut -= 1
    attached = lines[cut:]
    del lines[cut:]
    return attached
