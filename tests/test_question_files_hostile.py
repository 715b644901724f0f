"""Files that are no question sets, or damaged ones: refused in one line, or read as what they are."""

import gzip
import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from question_rows import (
    HOTPOTQA,
    MUSIQUE,
    NQ_OPEN,
    OURS,
    RGB,
    ROWS,
    TRIVIAQA,
    Row,
    Write,
    check,
    json_values,
    load_one,
    refusal,
)

from edge_rag.errors import EdgeRagError
from edge_rag.evaluation.question_sets import (
    Question,
    SetPassage,
    load_set,
)

# Wrong files


def test_a_file_without_questions_says_so(write: Write) -> None:
    for number, raw in enumerate(
        (b"", b"\n\n \n", b"\xef\xbb\xbf", gzip.compress(b""), b"[]", b'{"data": []}', b"id\tquestion\n")
    ):
        message = refusal(write(raw=raw, name=str(number)))
        assert "empty" in message or "no questions" in message


def test_a_file_of_no_known_format_says_what_it_has_and_what_is_known(write: Write) -> None:
    message = refusal(write({"prompt": "x", "completion": "y"}))
    assert "prompt, completion" in message
    for name in [*ROWS, "beir"]:
        assert name in message
    assert "neither JSON nor a table" in refusal(write(raw=b"Dear reader,\nhello\n"))
    assert "neither JSON nor a table" in refusal(write(raw=b"\x89PNG".replace(b"\x89", b"") + bytes(range(9))))


def test_a_row_that_is_wrong_is_named_by_its_line(write: Write) -> None:
    good = [NQ_OPEN | {"question": f"q {n}"} for n in range(3)]
    assert 'line 4: "question" is missing' in refusal(write(*good, {"answer": ["x"]}))
    assert 'line 4: "question" is blank' in refusal(write(*good, {"question": " ", "answer": ["x"]}))
    assert "line 4: is no question but 7" in refusal(write(*good, 7))
    assert "line 4: an answer is no text but 7" in refusal(write(*good, {"question": "q", "answer": [7]}))
    assert "line 4: an answer is no text but NaN" in refusal(write(*good, {"question": "q", "answer": float("nan")}))
    assert "line 4: an answer is no text but" in refusal(write(*good, {"question": "q", "answer": [{"a": ["b"]}]}))
    assert "entry 4" in refusal(write(document=[*good, {"answer": ["x"]}]))


def test_a_row_without_a_question_in_a_table_is_named_by_its_line(write: Write) -> None:
    assert "line 3" in refusal(write(raw=b'question,possible_answers\nq,"[""a""]"\n,"[""a""]"\n'))
    assert "line 3" in refusal(write(raw=b"question\tpossible_answers\nq\t[]\nq2\tnot json\n"))


def test_lines_that_are_no_json_are_named(write: Write) -> None:
    row = json.dumps(NQ_OPEN).encode()
    assert "line 2: is not JSON" in refusal(write(raw=row + b"\n" + row[:-5] + b"\n"))
    assert "is not JSON" in refusal(write(raw=row[:-5]))
    assert "nested too deep" in refusal(write(raw=b"[" * 200_000))
    assert "nested too deep" in refusal(write(raw=row + b"\n" + b'{"a":' * 200_000))


def test_a_gzip_file_that_was_cut_off_says_so_at_every_length(write: Write) -> None:
    rows = "".join(json.dumps(NQ_OPEN | {"question": f"question {n}"}) + "\n" for n in range(50))
    packed = gzip.compress(rows.encode())
    for length in range(2, len(packed)):
        assert "damaged gzip" in refusal(write(raw=packed[:length]))


def test_damaged_gzip_is_one_clear_line(write: Write) -> None:
    packed = bytearray(gzip.compress(json.dumps(NQ_OPEN).encode()))
    for position in range(2, len(packed)):
        damaged = bytes(packed[:position]) + bytes([packed[position] ^ 0xFF]) + bytes(packed[position + 1 :])
        path = write(raw=damaged)
        try:
            load_set(str(path))  # a flag or the name in the header may be lost without harm
        except EdgeRagError:
            refusal(path)


def test_text_that_is_no_utf8_says_so(write: Write) -> None:
    assert "UTF-8" in refusal(write(raw=json.dumps(NQ_OPEN).encode("utf-16")))
    assert "UTF-8" in refusal(write(raw=b'{"question": "caf\xe9", "answer": "x"}'))


def test_an_id_that_two_questions_have_is_refused(write: Write) -> None:
    assert 'line 2: another question has the id "o1", too' in refusal(write(OURS, OURS | {"question": "Another?"}))


def test_a_question_that_is_there_again_under_its_id_is_left_out(write: Write) -> None:
    assert len(load_set(str(write(TRIVIAQA, TRIVIAQA | {"SearchResults": [{"Title": "a page"}]}))).questions) == 1


def corpus_refusal(write: Write, **content: Any) -> str:
    write(*content.pop("rows", ()), name="set/corpus.jsonl", **content)
    loaded = load_set(str(write(OURS, name="set/questions.jsonl")))
    with pytest.raises(EdgeRagError) as error:
        list(loaded.read_corpus())
    assert "\n" not in str(error.value) and "corpus.jsonl" in str(error.value)
    return str(error.value)


def test_a_corpus_that_is_wrong_is_named_with_its_line(write: Write) -> None:
    good = {"id": "p1", "title": "Mill", "text": "The mill is in Aby."}
    assert 'line 2: the id "p1" is there a second time' in corpus_refusal(write, rows=[good, good])
    assert 'line 2: has no "id"' in corpus_refusal(write, rows=[good, {"text": "x"}])
    assert 'line 2: has no "id"' in corpus_refusal(write, rows=[good, {}])
    assert 'line 2: "text" is missing' in corpus_refusal(write, rows=[good, {"id": "p2"}])
    assert "a title is no text but 5" in corpus_refusal(write, rows=[good | {"title": 5}])
    assert "is empty" in corpus_refusal(write)
    assert "damaged gzip" in corpus_refusal(write, raw=gzip.compress(json.dumps(good).encode())[:-4])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.data())
def test_any_json_is_read_as_a_corpus_or_refused(rows: st.DataObject, write: Write) -> None:
    entry = st.dictionaries(st.sampled_from(["id", "_id", "title", "text", "content"]), json_values, max_size=4)
    content = rows.draw(
        st.lists(entry | st.dictionaries(st.text(max_size=3), entry, max_size=2), min_size=1, max_size=3)
    )
    write(*content, name="set/corpus.jsonl")
    loaded = load_set(str(write(OURS, name="set/questions.jsonl")))
    try:
        passages = list(loaded.read_corpus())
    except EdgeRagError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(text, str) for passage in passages for text in (passage.id, passage.title, passage.text))


def test_fields_of_absurd_length_are_refused(write: Write) -> None:
    assert "100,001 characters" in refusal(write(NQ_OPEN | {"question": "q" * 100_001}))
    assert "characters" in refusal(write(OURS | {"id": "q" * 1_001}))
    assert "is no table" in refusal(write(raw=b'question,possible_answers\n"' + b"q" * 200_000 + b'",[]\n'))


def test_halves_of_characters_are_replaced(write: Write) -> None:
    question = load_one(write(raw=rb'{"question": "a \ud800 b", "answer": ["\udfff"]}'))
    assert question.question == "a ? b"
    question.question.encode()


def test_rows_of_another_format_further_on_are_refused(write: Write) -> None:
    assert "line 2" in refusal(write(NQ_OPEN, HOTPOTQA | {"question": None}))
    assert "line 2" in refusal(write(OURS, MUSIQUE | {"question": 3}))
    assert "line 2" in refusal(write(RGB, NQ_OPEN))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    "value", [None, 7, 0.5, True, "text", [], {}, [[]], [None], {"title": 5}, [["a", "b", "c"]], [{"text": 1}]]
)
def test_a_field_of_any_other_type_never_gives_a_traceback(write: Write, name: str, value: object) -> None:
    for key in ROWS[name]:
        path = write(ROWS[name] | {key: value})
        try:
            found = load_set(str(path))
        except EdgeRagError:
            refusal(path)
        else:
            check(found)


KEYS = sorted(
    {key for row in ROWS.values() for key in row} | {"Data", "data", "query-id", "evidences", "question_id", "qrels"}
)
known_rows = st.sampled_from(list(ROWS.values())).flatmap(
    lambda row: st.dictionaries(st.sampled_from(KEYS), json_values, max_size=3).map(lambda changes: row | changes)
)
any_rows = st.dictionaries(st.sampled_from(KEYS), json_values, max_size=5)
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzed
@given(raw=st.binary(max_size=60))
def test_any_bytes_load_or_are_refused(raw: bytes, write: Write) -> None:
    for number, content in enumerate(
        (raw, gzip.compress(raw), b"\x1f\x8b" + raw, b'{"question":' + raw, b"question,answer\n" + raw)
    ):
        path = write(raw=content, name=f"fuzz{number}")
        try:
            found = load_set(str(path))
        except EdgeRagError:
            refusal(path)
        else:
            check(found)


@fuzzed
@given(
    rows=st.lists(known_rows | any_rows, min_size=1, max_size=3),
    as_list=st.booleans(),
    within=st.sampled_from(["", "data", "Data"]),
)
def test_any_json_loads_or_is_refused(rows: list[Row], as_list: bool, within: str, write: Write) -> None:
    path = write(document={within: rows} if within else rows) if as_list or within else write(*rows)
    try:
        found = load_set(str(path))
    except EdgeRagError:
        refusal(path)
    else:
        check(found)


@fuzzed
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip),
        min_size=2,
        max_size=8,
        unique=True,
    )
)
def test_what_is_written_in_the_layout_is_read_back(texts: list[str], write: Write) -> None:
    question = Question(
        id="q",
        question=texts[0],
        answers=tuple(texts[1:3]),
        passages=tuple(SetPassage(f"p{n}", text, text, n == 0) for n, text in enumerate(texts[1:])),
        gold_ids=("p0",),
        relevance={"p0": 1},
    )
    passages = [{"id": p.id, "title": p.title, "text": p.text, "gold": p.gold} for p in question.passages]
    row = {"id": question.id, "question": question.question, "answers": list(question.answers), "passages": passages}
    for ascii_only in (True, False):
        line = json.dumps(row, ensure_ascii=ascii_only).encode()
        assert load_one(write(raw=gzip.compress(line))) == question


def test_long_files_are_not_kept_in_memory(write: Write) -> None:
    import tracemalloc

    row = json.dumps(OURS | {"passages": [{"title": "", "text": "word " * 2_000}]})
    out = io.BytesIO()
    for number in range(2_000):
        out.write(row.replace('"o1"', f'"o{number}"').encode() + b"\n")
    path = str(write(raw=out.getvalue()))
    size = len(out.getvalue())
    tracemalloc.start()
    load_set(path, limit=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 20_000_000
    assert peak < size / 8
