"""Where sentences end. Chunks are cut there, and citations quote from one end to the next."""

import re
from collections.abc import Iterator

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？｡]+[」』”’）]*\s*|\n+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'“‘])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|Rev|Gen|Col|Capt|Lt|Sgt|Hon|Sr|Jr|St|Mt|vs|cf|al|ca|approx|Figs?|Eq|Nos?|Vol|pp|Sec|Ch"
    r"|Art|Inc|Ltd|Co|Corp|Dept|Univ|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|e\.g|i\.e|a\.m|p\.m|U\.S|z\.B|d\.h|bzw|Nr|Ph\.D)\.$"
)
_ITEM_NUMBER = re.compile(r"(?:^|\n)\s*\(?\w{1,3}\.$")
_NEW_ITEM = re.compile(
    r"[-*•–]\s|\(?\w{1,3}[.)]\s|[^\s:;][^:;\n]{0,39}: "
)  # a list item, or a row of a table: "Name: value"
_WRAPPED_LINE = range(50, 110)  # characters of a line that an editor broke, not an author


def sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Yield where a sentence of text[start:end] ends, white space after it included."""
    line_start = start
    for match in _SENTENCE_END.finditer(text, start, end):
        has_newline = "\n" in match[0]
        if "\n\n" in match[0]:
            is_end = True
        elif match[0][0] == "\n":
            is_end = match.start() - line_start not in _WRAPPED_LINE or bool(_NEW_ITEM.match(text, match.end(), end))
        elif match[0][0] == ".":
            before = text[max(start, match.start() - 12) : match.start() + 1]
            follower = text[match.end() : match.end() + 1]
            is_end = not (follower.islower() or _ABBREVIATION.search(before) or _ITEM_NUMBER.search(before))
        else:
            is_end = True
        if has_newline:
            line_start = match.end()
        if is_end:
            yield match.end()


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of each sentence, without the white space around it."""
    spans = []
    start = 0
    for end in [*sentence_ends(text, 0, len(text)), len(text)]:
        piece = text[start:end]
        if piece.strip():
            spans.append((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())))
        start = end
    return spans
