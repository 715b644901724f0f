"""Question sets by name or path: the layout of EDGE_RAG_DATA (see the README of that folder) and the official formats.

The data is read where it lies and never copied into the project. In the layout a corpus stands beside its questions:

    squad2/questions.jsonl.gz       squad2/corpus.jsonl.gz          is called squad2
    squad/dev_questions.jsonl.gz    squad/dev_corpus.jsonl.gz       is called squad/dev
    hotpotqa/fullwiki.jsonl.gz      hotpotqa/corpus.jsonl.gz        is called hotpotqa/fullwiki
"""

import difflib
import gzip
import hashlib
import heapq
import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation.official_formats import TITLE, QuestionFile, open_questions, read_corpus_file
from edge_rag.evaluation.questions import Question, SetPassage

__all__ = [
    "Part",
    "Question",
    "QuestionSet",
    "SetPassage",
    "data_dir",
    "first_question",
    "is_dev",
    "load_set",
    "read_rows",
    "set_names",
]

Part = Literal["dev", "train", "all"]

_ENDINGS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True, slots=True)
class QuestionSet:
    name: str
    format: str  # one of those in official_formats
    questions: tuple[Question, ...]  # those that were asked for, in the file's order
    corpus: Path | None  # the file that holds the corpus; None: the passages of all questions are all that there is
    path: Path  # of the questions
    sha256: str  # of the file of questions

    @property
    def has_corpus(self) -> bool:
        """Whether there is anything to search: a corpus file, or passages in the questions."""
        return self.corpus is not None or any(question.passages for question in self.questions)

    def read_corpus(self) -> Iterator[SetPassage]:
        """Yield each passage of the corpus once, none of them gold.

        Without a corpus file these are the passages of all questions in the file, whatever part or limit was asked for:
        a search among those of a few questions alone would be easier than it should be.
        """
        if self.corpus is not None:
            yield from read_corpus_file(self.corpus)
            return
        seen: set[str] = set()
        for question in open_questions(self.path).questions:
            for passage in question.passages:
                if passage.id not in seen:
                    seen.add(passage.id)
                    yield replace(passage, gold=False)


def load_set(spec: str, *, part: Part = "all", limit: int | None = None, spare: int = 0, seed: int = 0) -> QuestionSet:
    """Load a set by its path or by its name under EDGE_RAG_DATA.

    `limit` draws at most that many questions of the part; with the same seed a smaller limit draws some of the same questions.
    `spare` leaves out those that a limit of so many would draw: what was chosen by these is measured on others.
    """
    path, name = _find(spec)
    source = open_questions(path)
    questions = _draw(source.questions, name, part, limit, spare, seed)
    corpus = source.corpus or (_corpus_beside(path) if source.format == "edge_rag" else None)
    found = QuestionSet(name, source.format, tuple(questions), corpus, path, _sha256(source))
    return replace(found, questions=tuple(_with_titles_found(found)))


def data_dir() -> Path:
    """Return the folder of question sets: EDGE_RAG_DATA, or ../shared/data where that exists."""
    folder = Path(os.environ.get("EDGE_RAG_DATA", "../shared/data"))
    if not folder.is_dir():
        raise EdgeRagError(f"no question sets in {folder}", mend="set EDGE_RAG_DATA to the folder that holds them")
    return folder


def set_names() -> list[str]:
    """Return the names of all sets under EDGE_RAG_DATA."""
    return sorted(_named(data_dir()))


def first_question(spec: str) -> Question | None:
    """Read one question of a set, to see what the set has."""
    return next(open_questions(_find(spec)[0]).questions, None)


def read_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one file, named without its ending: "squad2/questions"."""
    path = data_dir() / f"{name}.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise EdgeRagError(f"{path}: cannot be read: {error}", mend="check EDGE_RAG_DATA") from error


def is_dev(question: str) -> bool:
    """Tell whether a question is held out. The rule is shared by all sets, so a question that stands in two is on one side."""
    plain = " ".join(re.sub(r"[^a-z0-9 ]+", " ", question.lower()).split())
    return int(hashlib.sha1(plain.encode()).hexdigest(), 16) % 10 == 9


def _find(spec: str) -> tuple[Path, str]:
    """Return the file or folder of a set, and its name. A path that holds a set goes before a name."""
    path = Path(spec)
    try:
        if path.is_file():
            return path, _name_of(path.resolve())
        if path.is_dir() and (inside := _questions_in(path)) is not None:
            return inside, path.resolve().name
    except OSError as error:
        raise EdgeRagError(f"{spec!r} cannot be read: {error}", mend="give a file that you may read") from error
    try:
        named = _named(data_dir())
    except EdgeRagError:
        named = {}
    name = spec.removesuffix("/questions")
    if name in named:
        return named[name], name
    if path.is_dir():
        return path, path.resolve().name  # what it lacks is for the reader of BEIR folders to say
    raise EdgeRagError(f"there is no set or file {spec!r}", mend=_nearest(name, named))


def _name_of(path: Path) -> str:
    """Return squad2 for squad2/questions.jsonl.gz, squad/dev for squad/dev_questions.jsonl.gz, nq_dev for nq_dev.json."""
    stem = path.name.removesuffix(".gz")
    stem = stem.rpartition(".")[0] or stem
    folder = path.parent.parent if path.parent.name == "qrels" else path.parent
    if stem == "questions":
        return folder.name
    if stem.endswith("_questions") or folder != path.parent:
        return f"{folder.name}/{stem.removesuffix('_questions')}"
    return stem


def _questions_in(folder: Path) -> Path | None:
    for ending in _ENDINGS:
        if (questions := folder / f"questions{ending}").is_file():
            return questions
    return folder if any((folder / f"queries{ending}").is_file() for ending in _ENDINGS) else None


def _named(folder: Path) -> dict[str, Path]:
    """Return the sets of a folder in the layout, and the BEIR folders in it, by name."""
    named = {}
    for path in sorted(folder.glob("*/*.jsonl*")):
        stem = _plain(path.name)
        if stem == "queries":
            named[path.parent.name] = path.parent
        elif stem == "questions":
            named[path.parent.name] = path
        elif stem is not None and not stem.endswith("corpus"):
            named[f"{path.parent.name}/{stem.removesuffix('_questions')}"] = path
    return named


def _nearest(name: str, named: dict[str, Path]) -> str:
    if not named:
        return "give the path of a file, or set EDGE_RAG_DATA to the folder that holds the sets"
    inside = [other for other in named if other.startswith(f"{name}/")]
    near = inside or difflib.get_close_matches(name, named, n=5, cutoff=0.5) or sorted(named)
    return f"give the path of a file, or one of: {', '.join(near)}"


def _plain(name: str) -> str | None:
    return next((name.removesuffix(ending) for ending in reversed(_ENDINGS) if name.endswith(ending)), None)


def _corpus_beside(path: Path) -> Path | None:
    stem = _plain(path.name) or ""
    own = stem.removesuffix("questions") + "corpus" if stem.endswith("questions") else "corpus"
    files = (path.with_name(f"{own}{ending}") for ending in _ENDINGS)
    return next((file for file in files if file.is_file()), None)


def _draw(
    questions: Iterator[Question], name: str, part: Part, limit: int | None, spare: int, seed: int
) -> Iterator[Question]:
    """Yield the questions of a part, at most as many as the limit says. Only what is kept stays in memory."""
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} leaves no question", mend="give --limit 1 or more")
    of_part = (question for question in questions if part == "all" or is_dev(question.question) == (part == "dev"))
    count = 0
    if limit is None and not spare:
        for count, question in enumerate(of_part, 1):  # noqa: B007
            yield question
    else:
        draw = random.Random(seed)
        most = None if limit is None else limit + spare
        kept: list[tuple[float, int, Question]] = []  # those with the highest numbers drawn, the lowest of them first
        for count, question in enumerate(of_part, 1):
            drawn = (draw.random(), count, question)
            if most is None or len(kept) < most:
                heapq.heappush(kept, drawn)
            else:
                heapq.heappushpop(kept, drawn)
        kept = sorted(kept)[: len(kept) - spare] if spare else kept
        if count and not kept:
            raise UsageError(f"{name} has no more than {count} questions of this part", mend="give a smaller --spare")
        yield from (question for _, _, question in sorted(kept, key=lambda drawn: drawn[1]))
    if count == 0:
        where = "" if part == "all" else f" in its {part} part"
        raise UsageError(f"{name} has no questions{where}", mend="give another part, or another file")


def _with_titles_found(question_set: QuestionSet) -> Iterator[Question]:
    """Give gold passages that are known by their title the ids that the corpus has for these titles.

    Titles that the corpus does not have keep an id that nothing found can have, so recall counts them as missed.
    """
    wanted = {key for question in question_set.questions for key in question.gold_ids if key.startswith(TITLE)}
    known: dict[str, str] = {}
    if wanted:
        for passage in question_set.read_corpus():
            if TITLE + passage.title in wanted:
                known.setdefault(TITLE + passage.title, passage.id)
    for question in question_set.questions:
        if any(key in known for key in question.gold_ids):
            gold = tuple(dict.fromkeys(known.get(key, key) for key in question.gold_ids))
            yield replace(question, gold_ids=gold, relevance=dict.fromkeys(gold, 1))
        else:
            yield question


def _sha256(source: QuestionFile) -> str:
    digest = hashlib.sha256()
    for path in source.files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
