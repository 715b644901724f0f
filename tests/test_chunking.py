"""Chunks tile the text, fit the budget, and are cut where a reader would cut."""

# ruff: noqa: E501 - markup in samples reads better unbroken

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_rag.documents import chunk_document, embedding_text, read_document
from edge_rag.documents.text import Builder
from edge_rag.interfaces import Chunk, Document
from edge_rag.testing import HashEmbedder


def words(text: str) -> int:
    return len(text.split())


def pieces(text: str) -> int:
    """Like a real tokenizer: two tokens of its own, and more than one for a long word."""
    return 2 + len(re.findall(r"\w{1,4}|[^\w\s]", text))


def merging(text: str) -> int:
    """Not additive: tokens depend on what stands across a cut."""
    return len(text.encode()) // 3 + text.count("ab") * 3 + text.count("\n") * 2


COUNTERS: list[Callable[[str], int]] = [words, pieces, merging, HashEmbedder().count_tokens, len]


def build(blocks: list[tuple[str, str, int]], title: str = "", page_every: int = 0) -> Document:
    builder = Builder()
    builder.title = title
    for i, (kind, text, level) in enumerate(blocks):
        if page_every and i % page_every == 0:
            builder.start_page(i // page_every + 1)
        if kind == "heading":
            builder.heading(text, level)
        elif kind == "paragraph":
            builder.paragraph(text)
        elif kind == "code":
            builder.code(text, tight=bool(level % 2))
        else:
            builder.lines("list" if kind == "list" else "table", text.split("\n"))
    return builder.finish("text/plain")


def assert_tiles(document: Document, chunks: list[Chunk], count: Callable[[str], int], budget: int) -> None:
    position = 0
    for chunk in chunks:
        assert chunk.start == position and chunk.end > chunk.start
        position = chunk.end
        text = document.text[chunk.start : chunk.end]
        assert count(embedding_text(chunk.heading, text)) <= budget or chunk.end - chunk.start == 1
    assert position == len(document.text)
    assert bool(chunks) == bool(document.text)


texts = st.text(st.characters(codec="utf-8"), max_size=200) | st.lists(
    st.sampled_from(["alpha", "beta.", "Gamma", "ab" * 40, "。", "x" * 300, "\n", "e.g.", "Dr.", "1.", "tail:"]),
    max_size=120,
).map(" ".join)
blocks = st.lists(
    st.tuples(st.sampled_from(["heading", "paragraph", "list", "table", "code"]), texts, st.integers(1, 6)), max_size=25
)


@settings(max_examples=150, deadline=None)
@given(blocks, st.sampled_from(COUNTERS), st.integers(1, 300), st.text(max_size=30), st.integers(0, 3))
def test_chunks_tile_any_document_within_any_budget(
    blocks: list[tuple[str, str, int]], count: Callable[[str], int], budget: int, title: str, page_every: int
) -> None:
    document = build(blocks, title, page_every)
    assert_tiles(document, chunk_document(document, count_tokens=count, budget=budget), count, budget)


@settings(max_examples=60, deadline=None)
@given(blocks, st.integers(1, 3))
def test_a_chunk_is_on_the_page_of_its_first_word(blocks: list[tuple[str, str, int]], page_every: int) -> None:
    document = build(blocks, page_every=page_every)
    for chunk in chunk_document(document, count_tokens=words, budget=20):
        first = next((i for i in range(chunk.start, chunk.end) if not document.text[i].isspace()), None)
        if first is not None:
            assert [page.number for page in document.pages if page.start <= first < page.end] == [chunk.page]


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from("\n#*-=|` "), max_size=400),
    st.sampled_from(["a.md", "a.rst", "a.txt", "a.html", "a.csv"]),
)
def test_any_text_file_can_be_chunked(text: str, name: str) -> None:
    document = read_document(("Some words at the start. " + text).encode(), name)
    assert_tiles(document, chunk_document(document, count_tokens=pieces, budget=30), pieces, 30)


def chunk_texts(document: Document, budget: int) -> list[tuple[str, str]]:
    chunks = chunk_document(document, count_tokens=words, budget=budget)
    assert_tiles(document, chunks, words, budget)
    return [(chunk.heading, document.text[chunk.start : chunk.end].strip()) for chunk in chunks]


def sentence(n: int, length: int = 10) -> str:
    return " ".join([f"Word{n}", *["filler"] * (length - 2), "end."])


def test_sections_are_not_joined_and_know_their_path() -> None:
    body = " ".join(sentence(i) for i in range(3))
    document = read_document(f"# Guide\n\n{body}\n\n## Install\n\n{body}\n\n### Linux\n\n{body}\n".encode(), "a.md")
    assert [heading for heading, _ in chunk_texts(document, 100)] == ["Guide", "Guide > Install"]
    assert [heading for heading, _ in chunk_texts(document, 45)] == [
        "Guide",
        "Guide > Install",
        "Guide > Install > Linux",
    ]


def test_tiny_sections_share_a_chunk_under_their_common_heading() -> None:
    source = "# Words\n\n## Ant\n\nSmall.\n\n## Bee\n\nBusy.\n\n## Cat\n\nSly."
    assert [heading for heading, _ in chunk_texts(read_document(source.encode(), "a.md"), 60)] == ["Words"]


def test_a_heading_stays_with_its_text() -> None:
    body = " ".join(sentence(i) for i in range(30))
    document = read_document(f"# One\n\n{body}\n\n### Two\n\n{body}\n\n### Three\n\n{body}".encode(), "a.md")
    for _, text in chunk_texts(document, 60):
        assert text.splitlines()[-1] not in ("One", "Two", "Three")


def test_cuts_fall_between_sentences_and_not_after_abbreviations() -> None:
    text = "Mr. Holmes of No. 7 met Dr. Watson and e.g. J. R. Smith at 5 p.m. in town today. " * 12
    chunks = chunk_texts(read_document(text.encode(), "a.txt"), 60)
    assert len(chunks) > 2
    assert all(text.startswith("Mr. Holmes") and text.endswith("today.") for _, text in chunks)


def test_chinese_sentences_are_cut_at_their_full_stops() -> None:
    text = "道可道，非常道。名可名，非常名。" * 40
    document = read_document(text.encode(), "a.txt")
    chunks = chunk_document(document, count_tokens=len, budget=100)
    assert_tiles(document, chunks, len, 100)
    assert all(document.text[chunk.end - 1] == "。" for chunk in chunks)


def test_two_chunks_of_one_section_are_about_equal() -> None:
    body = " ".join(sentence(i) for i in range(11))
    sizes = [words(text) for _, text in chunk_texts(read_document(body.encode(), "a.txt"), 100)]
    assert len(sizes) == 2 and min(sizes) >= 40


def test_rows_of_a_table_are_not_cut() -> None:
    rows = "\n".join(f"{i},{'long ' * 5}value {i}" for i in range(100))
    for _, text in chunk_texts(read_document(f"id,what\n{rows}\n".encode(), "a.csv"), 50):
        assert text.startswith("id: ") and re.search(r"value \d+$", text)


def test_decorators_stay_with_their_definition() -> None:
    code = "\n".join(f"@cache\ndef run{i}(x):\n    return {' + '.join(['x'] * 20)}\n" for i in range(6))
    chunks = chunk_texts(read_document(code.encode(), "a.py"), 50)
    assert [text.splitlines()[0] for _, text in chunks] == ["@cache"] * 6
    assert chunks[2][0] in ("def run1(x):", "def run2(x):")


def test_a_heading_over_half_the_budget_is_cut_from_the_left() -> None:
    title = " ".join(f"t{i}" for i in range(40))
    document = build([("paragraph", " ".join(sentence(i) for i in range(8)), 0)], title=title)
    headings = {heading for heading, _ in chunk_texts(document, 30)}
    assert headings == {" ".join(f"t{i}" for i in range(25, 40))}


def test_a_title_that_the_first_heading_repeats_is_not_doubled() -> None:
    page = b"<html><head><title>Ants - The Garden Site</title></head><body><h1>Ants</h1><p>They dig.</p><h2>Queens</h2><p>One.</p></body></html>"
    assert chunk_texts(read_document(page, "a.html"), 50)[0][0] == "Ants"
    other = page.replace(b"<h1>Ants</h1>", b"<h1>Digging</h1>")
    assert chunk_texts(read_document(other, "a.html"), 50)[0][0] == "Ants - The Garden Site > Digging"


def test_embedding_text_does_not_say_the_last_heading_twice() -> None:
    assert embedding_text("Guide > Install", "Install\n\nRun it.\n\n") == "Guide\nInstall\n\nRun it."
    assert embedding_text("Guide > Install", "Run it.") == "Guide > Install\nRun it."
    assert embedding_text("", " x ") == "x"


@pytest.mark.parametrize("line", ["x" * 20_000_000, "word " * 1_600_000, "QUJD/+9=" * 500_000, "。" * 1_000_000])
def test_one_monstrous_line_is_chunked_in_linear_time(line: str) -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(text.split())

    document = build([("paragraph", line, 0)])
    start = time.perf_counter()
    chunks = chunk_document(document, count_tokens=count, budget=200)
    assert time.perf_counter() - start < 12
    assert counted < 6 * len(document.text)
    assert chunks[0].start == 0 and chunks[-1].end == len(document.text)
    assert max(chunk.end - chunk.start for chunk in chunks) <= 200 * 12


def test_many_headings_are_chunked_in_linear_time() -> None:
    source = "".join(f"{'#' * (i % 6 + 1)} Heading {i}\n\nText {i}.\n\n" for i in range(20_000))
    document = read_document(source.encode(), "a.md")
    start = time.perf_counter()
    assert_tiles(document, chunk_document(document, count_tokens=words, budget=100), words, 100)
    assert time.perf_counter() - start < 5


def test_a_document_without_blocks_or_text_is_no_trouble() -> None:
    assert chunk_document(Document("text/plain", "T", "", ()), count_tokens=words, budget=10) == []
    bare = Document("text/plain", "", "Just a text. Without blocks.", ())
    assert_tiles(bare, chunk_document(bare, count_tokens=words, budget=3), words, 3)
    with pytest.raises(ValueError, match="budget"):
        chunk_document(bare, count_tokens=words, budget=0)
