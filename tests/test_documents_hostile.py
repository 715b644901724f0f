"""Files made to hurt, and files that were hurt: a Document or a DocumentError comes out, soon, and nothing else."""

# ruff: noqa: E501 - markup in samples reads better unbroken

import io
import random
import time
import zipfile

import pytest

from edge_rag.documents import archive, read_document, sniff
from edge_rag.errors import DocumentError
from tests.test_documents import SAMPLES, W, assert_sound, make_docx, para, sample_epub, zip_of

BOMB_SECONDS = 10


def read_or_refuse(data: bytes, name: str) -> None:
    try:
        document = read_document(data, name)
    except DocumentError as error:
        assert "\n" not in str(error) and error.mend
    else:
        assert_sound(document)


@pytest.mark.parametrize("name", SAMPLES)
def test_truncated_files_give_a_document_or_an_error(name: str) -> None:
    data = SAMPLES[name][0]
    for cut in sorted({*range(0, len(data), max(1, len(data) // 40)), *range(max(0, len(data) - 30), len(data))}):
        read_or_refuse(data[:cut], name)


@pytest.mark.parametrize("name", SAMPLES)
def test_flipped_bytes_give_a_document_or_an_error(name: str) -> None:
    chance = random.Random(7)
    for _ in range(80):
        damaged = bytearray(SAMPLES[name][0])
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        read_or_refuse(bytes(damaged), name)


@pytest.mark.parametrize(
    "name", [name for name in SAMPLES if name not in ("a.docx", "a.pptx", "a.xlsx", "a.odt", "a.epub")]
)
def test_spliced_texts_give_a_document_or_an_error(name: str) -> None:
    chance = random.Random(11)
    data = SAMPLES[name][0]
    for _ in range(60):
        pieces = [
            data[chance.randrange(len(data)) :][: chance.randrange(1, 200)] for _ in range(chance.randrange(2, 12))
        ]
        read_or_refuse(data[:40] + b"".join(pieces), name)


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", "a.xlsx", "a.odt", "a.epub"])
def test_damaged_xml_in_sound_containers_gives_a_document_or_an_error(name: str) -> None:
    chance = random.Random(13)
    with zipfile.ZipFile(io.BytesIO(SAMPLES[name][0])) as container:
        members = {info.filename: container.read(info) for info in container.infolist()}
    for _ in range(80):
        damaged: dict[str, str | bytes] = dict(members)
        victim = chance.choice([member for member in members if member != "mimetype"])
        content = members[victim]
        kind = chance.randrange(4)
        if kind == 0:
            del damaged[victim]
        elif kind == 1:
            damaged[victim] = content.replace(chance.choice((b"<w:p>", b'Id="rId1"', b"<c ", b"rId2", b"href")), b"", 1)
        elif kind == 2:
            numbers = [b"0", b"-1", b"99999999999999999999", b"1e999", b"nan", "٣".encode(), b""]
            at = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
            if at:
                i = chance.choice(at)
                damaged[victim] = content[:i] + chance.choice(numbers) + content[i + 1 :]
        else:
            i = chance.randrange(len(content))
            damaged[victim] = content[:i] + content[chance.randrange(len(content)) :]
        read_or_refuse(zip_of(damaged, stored=("mimetype",)), name)


def test_a_zip_bomb_is_refused_before_it_fills_the_memory() -> None:
    body = f"<w:document {W}><w:body>" + " " * (60 << 20)
    bomb = zip_of({"[Content_Types].xml": "<Types/>", "word/document.xml": body})
    assert len(bomb) < 100_000
    with pytest.raises(DocumentError, match="zip bomb"):
        read_document(bomb, "a.docx")


def test_a_size_that_lies_does_not_help_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "RATIO_FREE_BYTES", 1000)
    bomb = bytearray(zip_of({"[Content_Types].xml": "<Types/>", "word/document.xml": " " * 500_000}))
    for offset in (bomb.index(b"PK\x01\x02", bomb.index(b"PK\x01\x02") + 4) + 24,):
        bomb[offset : offset + 4] = (10).to_bytes(4, "little")  # the uncompressed size in the directory
    with pytest.raises(DocumentError):
        read_document(bytes(bomb), "a.docx")


def test_the_members_of_a_container_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 500)
    with pytest.raises(DocumentError, match="too large"):
        read_document(sample_epub(), "a.epub")


def test_a_container_with_too_many_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 5)
    with pytest.raises(DocumentError, match="members"):
        read_document(sample_epub(), "a.epub")


def test_containers_in_containers_stay_closed() -> None:
    inner = make_docx(para("inner words"))
    packed = zip_of({"a.docx": inner})
    assert sniff(packed, "a.zip") is None
    with pytest.raises(DocumentError):
        read_document(packed, "a.docx")
    document = read_document(
        zip_of(
            {
                "[Content_Types].xml": "<Types/>",
                "word/document.xml": f"<w:document {W}><w:body/></w:document>",
                "x.zip": inner,
            }
        ),
        "a",
    )
    assert document.text == ""


def test_encrypted_members_are_refused() -> None:
    data = bytearray(make_docx(para("x")))
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + 8] |= 1
    with pytest.raises(DocumentError, match="encrypted"):
        read_document(bytes(data), "a.docx")


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "lol"}">' for i in range(12))


@pytest.mark.parametrize(
    "declarations",
    [LAUGHS, '<!ENTITY l11 SYSTEM "file:///etc/passwd">', '<!ENTITY % p SYSTEM "http://127.0.0.1/x"> %p;'],
)
def test_entities_are_never_expanded(declarations: str) -> None:
    xml = f'<?xml version="1.0"?><!DOCTYPE w:document [{declarations}]><w:document {W}><w:body>{para("&l11;")}</w:body></w:document>'
    with pytest.raises(DocumentError, match="entities"):
        read_document(zip_of({"[Content_Types].xml": "<Types/>", "word/document.xml": xml}), "a.docx")
    as_text = read_document(f'<?xml version="1.0"?><!DOCTYPE d [{declarations}]><d>&l11;</d>'.encode(), "a.xml")
    assert len(as_text.text) < 2000 and "root:" not in as_text.text


def test_encodings_do_not_smuggle_declarations_past_the_check() -> None:
    xml = (
        f'<?xml version="1.0" encoding="utf-16"?><!DOCTYPE w:document [{LAUGHS}]><w:document {W}><w:body/></w:document>'
    )
    for data in (xml.encode("utf-16"), xml.replace("utf-16", "utf-7").encode("utf-7")):
        with pytest.raises(DocumentError):
            read_document(zip_of({"[Content_Types].xml": "<Types/>", "word/document.xml": data}), "a.docx")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.html", b"<html>" + b"<div>" * 100_000 + b"deep" + b"</div>" * 100_000),
        ("a.html", b"<html>" + b"<ul><li>" * 50_000 + b"deep"),
        ("a.html", b"<html>" + b"<x></y>" * 100_000 + b"deep"),
        ("a.html", b"<html>" + b"<table><tr><td>" * 30_000 + b"deep"),
        ("a.html", b"<html>" + b"<b><p>" * 50_000 + b"deep"),
        ("a.xml", b"<?xml version='1.0'?>" + b"<d>" * 100_000 + b"deep" + b"</d>" * 100_000),
        ("a.json", b"[" * 100_000 + b'"deep"' + b"]" * 100_000),
        ("a.json", b'{"a":' * 100_000 + b'"deep"' + b"}" * 100_000),
        ("a.json", b"[" * 900 + b'"deep"' + b"]" * 900),
        ("a.md", b"> " * 100_000 + b"deep"),
        ("a.md", "".join(f"{'  ' * i}- deep\n" for i in range(1500)).encode()),
        ("a.rst", "".join(f"{' ' * i}deep\n\n" for i in range(1500)).encode()),
        ("a.rst", "".join(f"{'   ' * i}.. note::\n\n" for i in range(800)).encode() + b"\ndeep"),
    ],
)
def test_deep_nesting_is_survived(name: str, data: bytes) -> None:
    start = time.perf_counter()
    document = read_document(data, name)
    assert_sound(document)
    assert "deep" in document.text
    assert time.perf_counter() - start < BOMB_SECONDS


def test_deep_xml_in_a_container_is_refused() -> None:
    with pytest.raises(DocumentError, match="deep"):
        read_document(make_docx("<w:sdt>" * 100_000 + "</w:sdt>" * 100_000), "a.docx")


def test_deeply_nested_mail_is_survived() -> None:
    parts = b"".join(b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (i, i) for i in range(2000))
    read_or_refuse(b"From: a@b\nSubject: s\n" + parts + b"deep", "a.eml")


LINE = 3 << 20


@pytest.mark.parametrize(
    "name", ["a.md", "a.rst", "a.txt", "a.html", "a.csv", "a.json", "a.eml", "a.py", "a.c", "a.jsonl", "a.xml"]
)
@pytest.mark.parametrize(
    "filling",
    [
        b"a",
        b"word ",
        b"[",
        b"`",
        b"*a ",
        b"_a _",
        b"<",
        b"<!--",
        b"![](",
        b"|",
        b"|-",
        b"\\",
        b"&",
        b"# ",
        b'"',
        b": ",
        b"- ",
    ],
)
def test_one_long_line_is_read_in_time(name: str, filling: bytes) -> None:
    opening = {
        "a.html": b"<html>",
        "a.eml": b"From: a@b\nSubject: s\n\n",
        "a.json": b'{"a": "',
        "a.jsonl": b'{"a": "',
        "a.xml": b"<?xml version='1.0'?><d>",
    }
    size = LINE if filling in (b"a", b"word ") else LINE // 10
    start = time.perf_counter()
    read_or_refuse(opening.get(name, b"") + filling * (size // len(filling)), name)
    assert time.perf_counter() - start < BOMB_SECONDS


def test_a_cell_far_to_the_right_does_not_fill_the_memory() -> None:
    from tests.test_documents import sample_xlsx

    with zipfile.ZipFile(io.BytesIO(sample_xlsx())) as container:
        members: dict[str, str | bytes] = {info.filename: container.read(info) for info in container.infolist()}
    sheet = "xl/worksheets/s2.xml"
    rows = "".join(f'<row r="{i}"><c r="XFD{i}"><v>1</v></c></row>' for i in range(5000))
    members[sheet] = f"<worksheet><sheetData>{rows}</sheetData></worksheet>"
    assert_sound(read_document(zip_of(members), "a.xlsx"))


def test_long_json_keys_do_not_multiply() -> None:
    data = b'{"' + b"k" * 100_000 + b'": [' + b",".join([b'{"v": 1}'] * 20_000) + b"]}"
    assert len(read_document(data, "a.json").text) < 6_000_000


def test_random_bytes_are_no_document() -> None:
    chance = random.Random(3)
    for size in (100, 5000):
        for name in ("a.txt", "a.pdf", "a.docx", "noname"):
            with pytest.raises(DocumentError):
                read_document(chance.randbytes(size), name)
