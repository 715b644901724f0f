"""Examples that are joined: their passages are shown together, and each question is asked about all of them.

What costs time in training is reading passages; a question about them and its answer are a twentieth of that. Here the
passages of one question are the noise of the others, and all are read once: in the same time a model sees several times as many
questions, each among as many passages. Questions about the same passage are joined first, then those about passages that are
near each other, as what a search brings is: passages about other things are noise that is told apart too easily. How long a
prompt may get is drawn for each: a model that has only ever seen ten passages refuses what a single one tells.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from edge_rag.evaluation.scoring import asks_verdict, contains_answer
from edge_rag.interfaces import Embedder, Passage, Progress, Style

from .examples import Example, TokenCounter

OPEN = 16  # groups that wait for fitting examples; then the oldest goes as it is
EMBEDDED = 256  # passages between two tellings of progress


@dataclass(slots=True)
class _Group:
    room: float  # tokens that it may grow to
    passages: list[Passage] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    tokens: int = (
        0  # of passages and questions; tokenising the prompts of every group that is tried would take most time
    )


def joined(
    examples: Sequence[Example],
    most: int,
    counter: TokenCounter,
    prompt_tokens: int,
    *,
    embedder: Embedder,
    seed: int,
    progress: Progress | None = None,
) -> list[Example]:
    """Join up to `most` examples of one style each, drawn from all sets; those of a group stand one after the other.

    An example never comes to a question whose answer it tells though that is to abstain. Passages and questions of a group may
    have up to a part of `prompt_tokens` that is drawn; an example that is longer stands alone.
    """
    if most == 1:
        return list(examples)
    rng = random.Random(seed)
    whole: list[_Group] = []
    waiting: dict[Style, list[_Group]] = {}
    for example in _in_turn(examples, embedder, rng, progress):
        bare = counter.count_tokens(replace(example, passages=()).prompt)
        own = counter.count_tokens(example.prompt) - bare
        groups = waiting.setdefault(example.style, [])
        for group in [*reversed(groups), _Group(rng.random() * prompt_tokens)]:  # the last one holds what is near
            new = _new(group, example)
            tokens = own
            if len(new) < len(example.passages):
                tokens = counter.count_tokens(replace(example, passages=tuple(new)).prompt) - bare
            fits = group.tokens + bare + tokens <= group.room
            if not group.examples or (fits and _may_see_each_other(group, example, new)):
                break
        if not group.examples:
            groups.append(group)
        group.passages += new
        group.examples.append(example)
        group.tokens += bare + tokens
        if len(group.examples) == most or len(groups) > OPEN:
            done = group if len(group.examples) == most else groups[0]
            groups.remove(done)
            whole.append(done)
    whole += [group for groups in waiting.values() for group in groups]
    return [example for group in whole for example in _shown_together(group, rng)]


def _in_turn(
    examples: Sequence[Example], embedder: Embedder, rng: random.Random, progress: Progress | None
) -> list[Example]:
    """Order examples so that those about the same passage follow each other, and then those about one that is near."""
    common = Counter(passage.text for example in examples for passage in example.passages)
    about: dict[str, list[Example]] = {}
    for example in rng.sample(examples, len(examples)):
        texts = [example.passages[n].text for n in example.gold] or [passage.text for passage in example.passages]
        about.setdefault(max(texts, key=lambda text: (common[text], text), default=""), []).append(example)
    texts = list(about)
    vectors = np.empty((len(texts), embedder.dim), np.float32)
    for start in range(0, len(texts), EMBEDDED):
        vectors[start : start + EMBEDDED] = embedder.embed(texts[start : start + EMBEDDED])
        if progress:
            progress("passages that are near", min(len(texts), start + EMBEDDED), len(texts), "")
    return [example for n in _walk(vectors) for example in about[texts[n]]]


def _walk(vectors: npt.NDArray[np.float32]) -> Iterator[int]:
    """Go from the first row to the nearest one, and on, until all were visited."""
    left, at = np.ones(len(vectors), bool), 0
    for _ in range(len(vectors)):
        yield at
        left[at] = False
        at = int(np.where(left, vectors @ vectors[at], -np.inf).argmax())


def groups_of(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Yield the places of examples that were joined: they follow each other and show the same passages."""
    for _, group in groupby(range(len(examples)), key=lambda n: (examples[n].style, examples[n].passages)):
        yield list(group)


def _may_see_each_other(group: _Group, example: Example, new: Sequence[Passage]) -> bool:
    shown = [*group.passages, *new]
    return not (_tell(shown, example) or any(_tell(new, other) for other in group.examples))


def _tell(passages: Sequence[Passage], example: Example) -> bool:
    """Tell whether passages hold what an example is not to be told."""
    if not example.untold or asks_verdict(example.untold):
        return False
    return any(contains_answer(f"{p.title}\n{p.text}", example.untold) for p in passages)


def _new(group: _Group, example: Example) -> list[Passage]:
    known = {p.text for p in group.passages}
    return [p for p in example.passages if p.text not in known]


def _shown_together(group: _Group, rng: random.Random) -> list[Example]:
    shuffled = rng.sample(group.passages, len(group.passages))
    places = {passage.text: n for n, passage in enumerate(shuffled)}
    passages = tuple(replace(p, chunk_id=n, document_id=n) for n, p in enumerate(shuffled))
    return [
        replace(example, passages=passages, gold=tuple(sorted(places[example.passages[n].text] for n in example.gold)))
        for example in group.examples
    ]
