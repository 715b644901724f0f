"""edge-rag search, ask and chat."""

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_rag.cli.common import (
    AfterFilter,
    BeforeFilter,
    BundleOption,
    JsonFlag,
    MetaFilter,
    PathFilter,
    TypeFilter,
    filters_of,
    note,
    open_bundle,
    open_library,
    open_readable,
    print_json,
    settings_of,
    shown_path,
)
from edge_rag.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_rag.answering import Assistant
    from edge_rag.interfaces import Answer, Citation
    from edge_rag.settings import Settings

ABSTAINED = 3

Question = Annotated[str, typer.Argument(help="The question; - reads it from standard input.", metavar="QUESTION")]
GeneratorOption = Annotated[
    str | None,
    typer.Option(help="Model name, GGUF file, 'extractive', or http(s)://host/v1#model.", metavar="MODEL"),
]
LoraOption = Annotated[str | None, typer.Option(help="GGUF adapter for the generator.", metavar="FILE")]
PromptOption = Annotated[
    str | None,
    typer.Option(
        help="Ask for a sentence, words, or a rationale (which is not shown). [default: what the model was trained for]",
        metavar="STYLE",
    ),
]
SelectorOption = Annotated[
    str | None,
    typer.Option(
        help="Selector: its name, folder, or GGUF adapter that lists; '' for the search's order.", metavar="NAME|PATH"
    ),
]
PassagesOption = Annotated[int | None, typer.Option(help="Passages shown to the generator.", metavar="N")]


def register(app: typer.Typer) -> None:
    app.command()(search)
    app.command()(ask)
    app.command()(chat)


def search(
    context: typer.Context,
    question: Question,
    k: Annotated[int, typer.Option("-k", help="How many passages.", min=1, max=1000)] = 10,
    path: PathFilter = None,
    type: TypeFilter = None,
    after: AfterFilter = None,
    before: BeforeFilter = None,
    meta: MetaFilter = None,
    bundle: BundleOption = None,
    json: JsonFlag = False,
) -> None:
    """Find passages: words (BM25) and meaning (vectors), fused.

    Example: edge-rag search "lamp replacement" -k 5 --type pdf
    """
    import time

    from edge_rag.answering import retrieve

    question = _read(question)
    start = time.perf_counter()
    with open_readable(context, bundle) as (library, settings):
        opened = time.perf_counter()
        found = retrieve(
            library, question, k, candidates=settings.candidates, filters=filters_of(path, type, after, before, meta)
        )
    done = time.perf_counter()
    if json:
        fields = ("chunk_id", "document", "page", "start", "end", "score", "text", "heading", "title")
        results = [{f: getattr(p, f) for f in fields} for p in found.passages]
        timings = {"open_ms": (opened - start) * 1000, "retrieve_ms": (done - opened) * 1000}
        print_json({"results": results, "timings": timings})
        return
    for n, p in enumerate(found.passages, start=1):
        place = _place(p.document, p.page)
        print(f"{n:2}. {place}  [{p.start}:{p.end}]  score {p.score:.3f}" + (f"  {p.heading}" if p.heading else ""))
        print(_indented(p.text))
    if not found.passages:
        note(context, "nothing found")


def ask(
    context: typer.Context,
    question: Question,
    path: PathFilter = None,
    type: TypeFilter = None,
    after: AfterFilter = None,
    before: BeforeFilter = None,
    meta: MetaFilter = None,
    bundle: BundleOption = None,
    generator: GeneratorOption = None,
    lora: LoraOption = None,
    selector: SelectorOption = None,
    prompt: PromptOption = None,
    passages: PassagesOption = None,
    confidence: Annotated[
        float | None, typer.Option(help="Abstain below this probability, 0 to 1.", metavar="P")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if the documents do not hold the answer.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Answer a question with citations, or say it is not there.

    Example: edge-rag ask "When was the lamp replaced?"
    """
    from edge_rag.answering import EXTRACTIVE

    question = _read(question)
    flags = {
        "generator": generator, "lora": lora, "selector": selector, "prompt": prompt, "passages": passages,
        "confidence": confidence,
    }  # fmt: skip
    with _open_assistant(context, bundle, **flags) as (assistant, settings):
        answer = assistant.ask(
            question,
            filters=filters_of(path, type, after, before, meta),
            on_text=None if json else _stream,
        )
    if json:
        print_json(answer_json(answer))
    else:
        print_answer(answer)
    if answer.generator == EXTRACTIVE != settings.generator:
        note(context, "no language model is installed, so answers are extracts; for more: pip install 'edge-rag[llm]'")
    if strict and answer.abstained:
        raise typer.Exit(ABSTAINED)


def chat(
    context: typer.Context,
    path: PathFilter = None,
    type: TypeFilter = None,
    after: AfterFilter = None,
    before: BeforeFilter = None,
    meta: MetaFilter = None,
    bundle: BundleOption = None,
    generator: GeneratorOption = None,
    lora: LoraOption = None,
    selector: SelectorOption = None,
    prompt: PromptOption = None,
) -> None:
    """Talk with the documents.

    Follow-up questions are searched for with what was talked about. An empty line, Ctrl-D or /quit ends it; /new forgets
    what was said.

    Example: edge-rag chat --path '*/manuals/*'
    """
    from edge_rag.answering import Turn

    filters = filters_of(path, type, after, before, meta)
    history: list[Turn] = []
    flags = {"generator": generator, "lora": lora, "selector": selector, "prompt": prompt}
    with _open_assistant(context, bundle, **flags) as (assistant, _):
        while question := _prompt():
            if question == "/new":
                history.clear()
                continue
            if question == "/quit":
                return
            try:
                answer = assistant.ask(question, filters=filters, history=history, on_text=_stream)
            except KeyboardInterrupt:
                note(context, "\n(stopped; ask again, or Ctrl-D to leave)")
                continue
            print_answer(answer)
            history.append(Turn(question, answer))


@contextmanager
def _open_assistant(
    context: typer.Context, bundle: Path | None, **flags: Any
) -> "Iterator[tuple[Assistant, Settings]]":
    from edge_rag.answering import Assistant

    if bundle is None:
        settings = settings_of(context, **flags)
        with open_library(context, settings) as library, Assistant(library, settings=settings) as assistant:
            yield assistant, settings
    else:
        with open_bundle(context, bundle, **flags) as (opened, settings), opened.assistant(settings) as assistant:
            yield assistant, settings


def answer_json(answer: "Answer") -> dict[str, object]:
    """The contract's shape, and what else is known."""
    passage = ("chunk_id", "document", "page", "start", "end", "score", "text")
    return {
        "answer": answer.text,
        "abstained": answer.abstained,
        "confidence": answer.confidence,
        "citations": [
            {f: getattr(c, f) for f in ("document", "page", "start", "end", "quote", "chunk_id", "sentence")}
            for c in answer.citations
        ],
        "sentences": answer.sentences,
        "draft": answer.draft,
        "guess": answer.guess,
        "nearest": [{f: getattr(c, f) for f in ("document", "page", "start", "end", "quote")} for c in answer.nearest],
        "passages": [{f: getattr(p, f) for f in passage} for p in answer.passages],
        "dropped": [{f: getattr(p, f) for f in passage} for p in answer.dropped],
        "prompt_tokens": answer.prompt_tokens,
        "generator": answer.generator,
        "timings": answer.timings,
    }


def print_answer(answer: "Answer") -> None:
    """Print what follows the streamed text: proof, or the lack of it."""
    print()
    if answer.draft:
        print(f"  [!] the documents do not say this. They say:\n{answer.text}")
    for number, citation in enumerate(answer.citations, start=1):
        print(f"  [{number}] {_place(citation.document, citation.page)}: {_quoted(citation)}")
    for sentence in answer.sentences:
        if not sentence.supported:
            print(f"  [!] no passage says this: {' '.join(sentence.text.split())}")
    if answer.guess:
        print(f"  [!] without the documents, the model says: {' '.join(answer.guess.split())}")
    if answer.abstained and answer.nearest:
        nearest = answer.nearest[0]
        print(f"  nearest: {_place(nearest.document, nearest.page)}: {_quoted(nearest)}")
    t = answer.timings
    spent = f"first token {t.first_token_ms / 1000:.2f} s, total {t.total_ms / 1000:.2f} s"
    print(f"  confidence {answer.confidence:.2f}, {answer.generator}, {spent}", file=sys.stderr)


def _quoted(citation: "Citation") -> str:
    return "“" + " ".join(citation.quote.split()) + "”"


def _place(document: str, page: int | None) -> str:
    return shown_path(document) + (f", page {page}" if page is not None else "")


def _indented(text: str) -> str:
    flat = " ".join(text.split())
    return "    " + (flat if len(flat) <= 400 else flat[:400] + " …")


def _stream(piece: str) -> None:
    print(piece, end="", flush=True)


def _read(question: str) -> str:
    if question == "-":
        question = sys.stdin.read()
    if not question.strip():
        raise UsageError("the question is empty", mend='ask something: edge-rag ask "..."')
    return question.strip()


def _prompt() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
