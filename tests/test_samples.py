"""The sample documents say what questions.jsonl claims, as the project's own readers read them."""

import io
import json
import runpy
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from edge_rag.documents import read_document
from edge_rag.interfaces import Document

SAMPLES = Path(__file__).parent / "samples"
LIGHTHOUSE = SAMPLES / "lighthouse"
SCAN = "keepers-report-1953-scan.pdf"
FILES = sorted(path.name for path in LIGHTHOUSE.iterdir())
QUESTIONS = [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
ANSWERABLE = [row for row in QUESTIONS if row["answers"]]
UNANSWERABLE = [row for row in QUESTIONS if not row["answers"]]


@cache
def read(name: str) -> Document:
    return read_document((LIGHTHOUSE / name).read_bytes(), name)


def normal(text: str) -> str:
    return " ".join(text.split())


def question(row: dict[str, Any]) -> str:
    return str(row["question"])


def test_there_are_forty_answerable_and_fifteen_unanswerable_questions() -> None:
    assert (len(ANSWERABLE), len(UNANSWERABLE)) == (40, 15)
    assert len({row["question"] for row in QUESTIONS}) == 55


def test_questions_are_spread_over_every_file_with_text() -> None:
    assert {row["document"] for row in ANSWERABLE} == set(FILES) - {SCAN}


@pytest.mark.parametrize("row", ANSWERABLE, ids=question)
def test_evidence_stands_in_its_document_and_in_no_other(row: dict[str, Any]) -> None:
    evidence = normal(row["evidence"])
    assert [name for name in FILES if name != SCAN and evidence in normal(read(name).text)] == [row["document"]]


@pytest.mark.parametrize("row", ANSWERABLE, ids=question)
def test_evidence_holds_the_answer(row: dict[str, Any]) -> None:
    if row["document"].endswith(".csv"):  # there the evidence is one cell, and the answer may be in another
        held = next(line for line in read(row["document"]).text.splitlines() if row["evidence"] in line)
    else:
        held = row["evidence"]
    assert any(answer in held for answer in row["answers"])


@pytest.mark.parametrize("row", [row for row in ANSWERABLE if "also" in row], ids=question)
def test_other_places_of_an_answer_hold_it_too(row: dict[str, Any]) -> None:
    for name in row["also"]:
        assert any(answer in normal(read(name).text) for answer in row["answers"])


@pytest.mark.parametrize("row", [row for row in ANSWERABLE if row["page"]], ids=question)
def test_evidence_stands_on_its_page(row: dict[str, Any]) -> None:
    document = read(row["document"])
    page = next(page for page in document.pages if page.number == row["page"])
    assert normal(row["evidence"]) in normal(document.text[page.start : page.end])


@pytest.mark.parametrize("row", UNANSWERABLE, ids=question)
def test_no_document_holds_the_key_fact_of_an_unanswerable_question(row: dict[str, Any]) -> None:
    texts = [normal(read(name).text).lower() for name in FILES if name != SCAN]
    assert row["absent"]
    assert not [word for word in row["absent"] for text in texts if word.lower() in text]


def test_scanned_report_is_read_with_a_warning_for_its_pages() -> None:
    document = read(SCAN)
    assert document.text == ""
    assert "1-2" in " ".join(document.warnings)


@pytest.mark.parametrize("name", ["history.epub", "trustees-minutes-2024-03.odt"])
def test_archives_are_what_make_samples_makes_of_the_sources(name: str) -> None:
    """The PDF and the DOCX need packages that the project does not have."""
    script = runpy.run_path(str(SAMPLES / "make_samples.py"))
    if name.endswith(".epub"):
        made = script["make_epub"](script["read_source"]("history.md"), author="Ruth Sandison")
    else:
        made = script["make_odt"](script["read_source"]("trustees-minutes-2024-03.md"))
    assert _members(made) == _members((LIGHTHOUSE / name).read_bytes())


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
