"""Words as evidence counts them: lower-cased, numbers whole, function words left out, plain inflections ignored.

Used by citation and abstention only; the search engine has its own tokenizers.
"""

import re
import unicodedata

_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*|\w+")

STOP_WORDS = frozenset(
    """a about after all also am an and any are as at be because been before being both but by can could did do does doing
    during each few for from further had has have having he her here hers him his how i if in into is it its itself just
    may me might more most much must my no nor not now of off on once one only or other our out over own per same shall she
    should so some such than that the their them then there these they this those through to too under until up upon us
    very was we were what when where whether which while who whom whose why will with would you your yes according
    passage passages text document documents answer question based given mentioned stated""".split()  # noqa: SIM905
)


def words(text: str) -> list[str]:
    """Return every word in order, in the form in which it is compared."""
    return [_fold(w) for w in _WORD.findall(text)]


def content_words(text: str) -> list[str]:
    """Return the words that carry meaning; all of them if there are only function words."""
    every = words(text)
    return [w for w in every if w not in STOP_WORDS] or every


def is_exact(word: str) -> bool:
    """Tell whether a word is a figure, which must occur as it is to count as said."""
    return any(c.isdigit() for c in word)


def names(text: str) -> set[str]:
    """Return the words that are capitalised inside the text, where a sentence does not begin: names, mostly."""
    return {w for token in text.split()[1:] if token.lstrip("\"'“‘(")[:1].isupper() for w in content_words(token)}


def _fold(word: str) -> str:
    word = unicodedata.normalize("NFKC", word).casefold()
    if word[0].isdigit():
        return word.replace(",", "").rstrip(".:/")
    word = word.replace("’", "'").removesuffix("'s")
    for suffix, rest in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", "e"), ("s", "")):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
            return (word.removesuffix(suffix) + rest).removesuffix("e")
    return word.removesuffix("e") if len(word) > 4 else word
