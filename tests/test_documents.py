"""Every format, from a real file made here: what is read, how it is structured, and which metadata comes along."""

# ruff: noqa: E501 - markup in samples reads better unbroken

import io
import json
import zipfile
import zlib
from pathlib import Path

import pytest

from edge_rag.documents import read_document, sniff
from edge_rag.errors import DocumentError
from edge_rag.interfaces import Document

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def zip_of(members: dict[str, str | bytes], stored: tuple[str, ...] = ()) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            method = zipfile.ZIP_STORED if name in stored else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


def relations(**targets: str) -> str:
    """`kind_id="target"`: relationships rId1, rId2 ... in the order given."""
    rows = "".join(
        f'<Relationship Id="rId{i}" Type="{RELATIONS}/{key.split("__")[0]}" Target="{target}"/>'
        for i, (key, target) in enumerate(targets.items(), start=1)
    )
    return f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{rows}</Relationships>'


CORE = (
    '<cp:coreProperties xmlns:cp="c" xmlns:dc="d" xmlns:dt="t"><dc:title>Annual report</dc:title><dc:creator>Ada</dc:creator>'
    "<dt:modified>2024-05-01T10:00:00Z</dt:modified></cp:coreProperties>"
)
ROOT_RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    f'<Relationship Id="a" Type="{RELATIONS}/officeDocument" Target="{{main}}"/>'
    '<Relationship Id="b" Type="http://schemas.openxmlformats.org/package/2006/relationships/metadata/core-properties"'
    ' Target="docProps/core.xml"/></Relationships>'
)


def make_docx(body: str) -> bytes:
    return zip_of(
        {
            "[Content_Types].xml": "<Types/>",
            "_rels/.rels": ROOT_RELATIONS.format(main="word/document.xml"),
            "docProps/core.xml": CORE,
            "word/document.xml": f'<?xml version="1.0"?><w:document {W}><w:body>{body}</w:body></w:document>',
            "word/_rels/document.xml.rels": relations(styles="styles.xml", footnotes="footnotes.xml"),
            "word/styles.xml": f'<w:styles {W}><w:style w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>'
            '<w:style w:styleId="Code"><w:name w:val="Source Code"/></w:style></w:styles>',
            "word/footnotes.xml": f"<w:footnotes {W}><w:footnote><w:p><w:r><w:t>See the annex.</w:t></w:r></w:p></w:footnote></w:footnotes>",
        }
    )


def para(text: str, style: str = "", extra: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/>{extra}</w:pPr>' if style or extra else ""
    return f'<w:p>{properties}<w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def sample_docx() -> bytes:
    cell = "<w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc>"
    table = "".join(
        "<w:tr>" + "".join(cell.format(c) for c in row) + "</w:tr>" for row in (("City", "Rain"), ("Bergen", "225"))
    )
    return make_docx(
        para("Results", "berschrift2")
        + "<w:p><w:r><w:t>It rained </w:t></w:r><w:del><w:r><w:delText>never</w:delText></w:r></w:del><w:ins><w:r><w:t>often.</w:t></w:r></w:ins></w:p>"
        + para("first", extra='<w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>')
        + para("nested", extra='<w:numPr><w:ilvl w:val="1"/><w:numId w:val="1"/></w:numPr>')
        + f"<w:tbl>{table}</w:tbl>"
        + para("x = 1", "Code")
        + para("y = 2", "Code")
    )


def sample_pptx() -> bytes:
    def shape(kind: str, *texts: str) -> str:
        body = "".join(f"<a:p><a:r><a:t>{t}</a:t></a:r></a:p>" for t in texts)
        return f'<p:sp><p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr><p:txBody>{body}</p:txBody></p:sp>'

    def slide(*shapes: str) -> str:
        return f"<p:sld {P} {A}><p:cSld><p:spTree>{''.join(shapes)}</p:spTree></p:cSld></p:sld>"

    return zip_of(
        {
            "[Content_Types].xml": "<Types/>",
            "_rels/.rels": ROOT_RELATIONS.format(main="ppt/presentation.xml"),
            "docProps/core.xml": CORE,
            "ppt/presentation.xml": f'<p:presentation {P} {R}><p:sldIdLst><p:sldId id="1" r:id="rId2"/><p:sldId id="2" r:id="rId1"/>'
            "</p:sldIdLst></p:presentation>",
            "ppt/_rels/presentation.xml.rels": relations(slide__1="slides/b.xml", slide__2="slides/a.xml"),
            "ppt/slides/a.xml": slide(shape("title", "Plans"), shape("body", "Grow", "Ship"), shape("sldNum", "1")),
            "ppt/slides/_rels/a.xml.rels": relations(notesSlide="../notesSlides/n.xml"),
            "ppt/slides/b.xml": slide(shape("title", "Costs"), shape("body", "None")),
            "ppt/notesSlides/n.xml": slide(shape("body", "Speak slowly")),
        }
    )


def sample_xlsx() -> bytes:
    rows = (
        '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c><c r="C1" t="inlineStr"><is><t>Share</t></is></c></row>'
        '<row r="2"><c r="A2" t="str"><v>Bolt</v></c><c r="B2" s="1"><v>45413</v></c><c r="C2" s="2"><v>0.25</v></c></row>'
        '<row r="4"><c r="A4" t="str"><v>Nut</v></c><c r="C4"><v>0.30000000000000004</v></c></row>'
    )
    return zip_of(
        {
            "[Content_Types].xml": "<Types/>",
            "_rels/.rels": ROOT_RELATIONS.format(main="xl/workbook.xml"),
            "docProps/core.xml": CORE,
            "xl/workbook.xml": f'<workbook {S} {R}><sheets><sheet name="Empty" sheetId="1" r:id="rId1"/>'
            '<sheet name="Stock" sheetId="2" r:id="rId2"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relations(
                worksheet__1="worksheets/s1.xml",
                worksheet__2="/xl/worksheets/s2.xml",
                sharedStrings="shared.xml",
                styles="styles.xml",
            ),
            "xl/worksheets/s1.xml": f"<worksheet {S}><sheetData/></worksheet>",
            "xl/worksheets/s2.xml": f"<worksheet {S}><sheetData>{rows}</sheetData></worksheet>",
            "xl/shared.xml": f"<sst {S}><si><t>Part</t></si><si><r><t>Bou</t></r><r><t>ght</t></r></si></sst>",
            "xl/styles.xml": f'<styleSheet {S}><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="9"/></cellXfs></styleSheet>',
        }
    )


def sample_odt() -> bytes:
    spaces = 'xmlns:office="o" xmlns:text="t" xmlns:table="b" xmlns:dc="d"'
    body = (
        '<text:h text:outline-level="2">Soil</text:h><text:p>Sand<text:s text:c="2"/>and clay<text:note><text:note-body>'
        "<text:p>mostly clay</text:p></text:note-body></text:note>.</text:p>"
        "<text:list><text:list-item><text:p>wet</text:p><text:list><text:list-item><text:p>very wet</text:p></text:list-item></text:list>"
        "</text:list-item></text:list>"
        "<table:table><table:table-row><table:table-cell><text:p>Depth</text:p></table:table-cell><table:table-cell><text:p>Kind</text:p>"
        "</table:table-cell></table:table-row><table:table-row><table:table-cell><text:p>1 m</text:p></table:table-cell><table:table-cell>"
        "<text:p>peat</text:p></table:table-cell></table:table-row></table:table>"
    )
    return zip_of(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": f"<office:document-content {spaces}><office:body><office:text>{body}</office:text></office:body></office:document-content>",
            "meta.xml": f"<office:document-meta {spaces}><office:meta><dc:title>Ground</dc:title><dc:creator>Bo</dc:creator></office:meta></office:document-meta>",
        },
        stored=("mimetype",),
    )


def sample_epub(encryption: str = "") -> bytes:
    members: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        "OPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        "<dc:title>Two Tales</dc:title><dc:creator>Cy</dc:creator><dc:date>1899</dc:date></metadata><manifest>"
        '<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        '<item id="a" href="a%20b.xhtml" media-type="application/xhtml+xml"/><item id="z" href="z.xhtml" media-type="application/xhtml+xml"/>'
        '</manifest><spine><itemref idref="n"/><itemref idref="z"/><itemref idref="a"/></spine></package>',
        "OPS/nav.xhtml": "<html><body><p>Contents</p></body></html>",
        "OPS/a b.xhtml": '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body><h1>Second</h1><p>The <a id="x"/>end.</p></body></html>',
        "OPS/z.xhtml": "<html><head><title>t</title></head><body><h1>First</h1><p>Once.</p></body></html>",
    }
    if encryption:
        members["META-INF/encryption.xml"] = (
            f'<encryption xmlns:e="e"><e:EncryptedData><e:EncryptionMethod Algorithm="{encryption}"/><e:CipherData>'
            '<e:CipherReference URI="OPS/z.xhtml"/></e:CipherData></e:EncryptedData></encryption>'
        )
    return zip_of(members, stored=("mimetype",))


def make_pdf(
    pages: list[list[tuple[float, float, float, str]]], info: str = "", encrypt: str = "", image: bool = False
) -> bytes:
    """Write a PDF of (x, y, font size, text) lines on each page."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, lines in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {5 + 2 * i} 0 R /Resources << /Font << /F 3 0 R >> >> >>".encode()
        )
        shown = [f"BT /F {size} Tf {x} {y} Td ({text}) Tj ET" for x, y, size, text in lines]
        stream = zlib.compress("\n".join([*shown, "0 0 50 50 re f" if image else ""]).encode("latin-1"))
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(stream) + stream + b"\nendstream")
    objects.append(f"<< {info} >>".encode())
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + content + b"\nendobj\n"
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += f"trailer << /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R {encrypt} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


def sample_pdf() -> bytes:
    first = [
        (72, 720, 20, "Wind power"),
        (72, 690, 11, "The turbines of the northern coast were built in the year 1998 and are main-"),
        (72, 676, 11, "tained by a crew of seven people who live in the village."),
        (72, 640, 11, "A second paragraph follows after a gap."),
    ]
    return make_pdf(
        [first, [(72, 720, 11, "The second page.")]],
        info="/Title (Coast) /Author (Dee) /CreationDate (D:20240501120000Z)",
    )


SAMPLE_EML = (
    b"From: =?utf-8?q?J=C3=B6rg?= <j@example.org>\r\nTo: ann@example.org\r\nSubject: Pump 7\r\nDate: Wed, 01 May 2024 10:00:00 +0200\r\n"
    b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n'
    b'Content-Type: multipart/alternative; boundary="c"\r\n\r\n--c\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\nDer Druck f\xe4llt.\r\n'
    b"--c\r\nContent-Type: text/html\r\n\r\n<p>not this one</p>\r\n--c--\r\n--b\r\nContent-Type: application/pdf\r\n"
    b'Content-Disposition: attachment; filename="plan.pdf"\r\nContent-Transfer-Encoding: base64\r\n\r\nJVBERi0=\r\n--b--\r\n'
)
SAMPLE_MBOX = (
    b"From ann@example.org Wed May  1 10:00:00 2024\nFrom: ann@example.org\nSubject: One\n\nFirst body.\n>From here on.\n\n"
    b"From bob@example.org Thu May  2 10:00:00 2024\nFrom: bob@example.org\nSubject: Two\nContent-Type: text/html\n\n<p>Second <b>body</b>.</p>\n"
)
SAMPLE_MD = b"""---
title: "Garden"
author: Eve
---
# Garden

Some **bold** and _soft_ words, a [link][x], `a * b * c` and snake_case_name&nbsp;&amp; more<!-- gone
over lines -->.
Second line of it.

[x]: https://example.org "title"

Setext
------

1. one
2. two
   - deep
     wrapped

> [!NOTE] mind this

| A | B |
|---|---|
| 1 | 2 \\| 3 |

```python
# no heading
<!-- stays -->
x = 1
```
"""
SAMPLE_RST = b"""PEP: 9
Title: Some rules
Author: Flo <flo@example.org>
Status: Final
Created: 05-Jul-2001

.. contents::

Motivation
==========

See :pep:`8`, `the docs <https://example.org>`_ and ``x = *y*``.
Like this::

    x = 1

    y = 2

.. note::
   Mind
   the gap.

.. comment that
   nobody sees

- one

  - deep
  - deeper
- two

term
    What it means.

Details
-------

====  =====
Col   Other
====  =====
1     a b
2     c
====  =====

+-----+-----+
| Key | Val |
+=====+=====+
| k   | v   |
|     | w   |
+-----+-----+

.. code-block:: python

   print("hi")
"""
SAMPLE_HTML = b"""<!DOCTYPE html><html><head><title>Bread &amp; butter</title><meta name="author" content="Gil">
<style>p {color: red}</style><script>var x = "<p>no</p>";</script></head><body>
<nav><a href="/">Home</a></nav><header class="navbar">Menu</header>
<h1>Bread</h1><p>Flour,<br>water &amp;
 <b>salt</b>.</p><ul><li>rye<ul><li>dark</li></ul></li><li>wheat</li></ul><ol start="3"><li>bake</li></ol>
<dl><dt>Crumb</dt><dd>the inside</dd></dl>
<table><tr><th>Kind</th><th>Hours</th></tr><tr><td>Rye</td><td>24</td></tr></table>
<pre>  a
    b</pre><footer>(c) nobody</footer></body></html>"""


def shape_of(document: Document) -> list[tuple[str, int, str]]:
    return [(b.kind, b.level, document.text[b.start : b.end]) for b in document.blocks]


SAMPLES: dict[str, tuple[bytes, str]] = {
    "a.md": (SAMPLE_MD, "text/markdown"),
    "a.rst": (SAMPLE_RST, "text/x-rst"),
    "a.txt": (b"One.\n\nTwo.\n", "text/plain"),
    "a.html": (SAMPLE_HTML, "text/html"),
    "a.pdf": (sample_pdf(), "application/pdf"),
    "a.docx": (sample_docx(), "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    "a.pptx": (sample_pptx(), "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
    "a.xlsx": (sample_xlsx(), "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    "a.odt": (sample_odt(), "application/vnd.oasis.opendocument.text"),
    "a.epub": (sample_epub(), "application/epub+zip"),
    "a.csv": (b'name;size\nbolt;3\n"nut; big";4\n', "text/csv"),
    "a.json": (
        b'{"title": "T", "n": 1.50, "deep": {"x": [1, 2], "y": null}, "rows": [{"k": "v"}]}',
        "application/json",
    ),
    "a.jsonl": (b'{"q": "why", "n": 1}\n{"q": "how", "n": 2}\n', "application/jsonl"),
    "a.eml": (SAMPLE_EML, "message/rfc822"),
    "a.mbox": (SAMPLE_MBOX, "application/mbox"),
    "a.py": (
        b"import os\n\n@cache\ndef run(x):\n    return x\n\nclass A:\n    def go(self):\n        pass\n",
        "text/x-python",
    ),
    "a.xml": (b"<?xml version='1.0'?><doc><title>T</title><p>Some <i>mixed</i> text.</p></doc>", "application/xml"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_content_decides_the_type_whatever_the_name(name: str) -> None:
    data, media_type = SAMPLES[name]
    assert sniff(data, name) == media_type
    by_suffix_only = {"text/markdown", "text/x-rst", "text/csv", "text/x-python"}
    if media_type not in by_suffix_only:
        assert sniff(data, "other.bin") == sniff(data, "") == sniff(data, "a.txt") == media_type
    else:
        assert sniff(data, "noname") == "text/plain"


@pytest.mark.parametrize("name", SAMPLES)
def test_blocks_and_pages_lie_in_order_inside_the_text(name: str) -> None:
    assert_sound(read_document(SAMPLES[name][0], name))


def assert_sound(document: Document) -> None:
    text = document.text
    text.encode("utf-8")
    assert text == text.strip() and "\r" not in text and "\0" not in text and "\n\n\n" not in text
    position = 0
    for block in document.blocks:
        assert position <= block.start < block.end <= len(text)
        assert text[position : block.start].strip() == ""
        assert text[block.start : block.end].strip()
        assert (block.level > 0) == (block.kind == "heading")
        position = block.end
    assert position == len(text)
    if document.pages:
        assert document.pages[0].start == 0 and document.pages[-1].end == len(text)
        for before, after in zip(document.pages, document.pages[1:], strict=False):
            assert before.end == after.start and before.number < after.number


def test_markdown_becomes_prose_with_structure() -> None:
    document = read_document(SAMPLE_MD, "a.md")
    assert document.title == "Garden" and document.metadata == {"author": "Eve"}
    assert shape_of(document) == [
        ("heading", 1, "Garden"),
        (
            "paragraph",
            0,
            "Some bold and soft words, a link, `a * b * c` and snake_case_name & more. Second line of it.",
        ),
        ("heading", 2, "Setext"),
        ("list", 0, "1. one\n2. two\n  - deep wrapped"),
        ("paragraph", 0, "Note: mind this"),
        ("table", 0, "A: 1; B: 2 | 3"),
        ("code", 0, "# no heading\n<!-- stays -->\nx = 1"),
    ]


def test_rst_directives_roles_and_tables_are_resolved() -> None:
    document = read_document(SAMPLE_RST, "a.rst")
    assert document.title == "PEP 9: Some rules"
    assert document.metadata == {"author": "Flo <flo@example.org>", "date": "05-Jul-2001"}
    assert shape_of(document) == [
        ("list", 0, "PEP: 9\nTitle: Some rules\nAuthor: Flo <flo@example.org>\nStatus: Final\nCreated: 05-Jul-2001"),
        ("heading", 1, "Motivation"),
        ("paragraph", 0, "See PEP 8, the docs and `x = *y*`. Like this:"),
        ("code", 0, "x = 1\n\ny = 2"),
        ("paragraph", 0, "Note: Mind the gap."),
        ("list", 0, "- one\n  - deep\n  - deeper\n- two"),
        ("paragraph", 0, "term: What it means."),
        ("heading", 2, "Details"),
        ("table", 0, "Col: 1; Other: a b\nCol: 2; Other: c"),
        ("table", 0, "Key: k; Val: v w"),
        ("code", 0, 'print("hi")'),
    ]


def test_html_keeps_content_and_drops_furniture() -> None:
    document = read_document(SAMPLE_HTML, "a.html")
    assert document.title == "Bread & butter" and document.metadata == {"author": "Gil"}
    assert shape_of(document) == [
        ("heading", 1, "Bread"),
        ("paragraph", 0, "Flour,\nwater & salt."),
        ("list", 0, "- rye\n  - dark\n- wheat"),
        ("list", 0, "3. bake"),
        ("list", 0, "- Crumb: the inside"),
        ("table", 0, "Kind: Rye; Hours: 24"),
        ("code", 0, "  a\n    b"),
    ]


def test_pdf_lines_are_joined_to_paragraphs_with_pages_and_metadata() -> None:
    document = read_document(sample_pdf(), "a.pdf")
    assert document.title == "Coast" and document.metadata == {"author": "Dee", "date": "2024-05-01"}
    assert shape_of(document) == [
        ("heading", 1, "Wind power"),
        (
            "paragraph",
            0,
            "The turbines of the northern coast were built in the year 1998 and are maintained by a crew of seven people who live"
            " in the village.",
        ),
        ("paragraph", 0, "A second paragraph follows after a gap."),
        ("paragraph", 0, "The second page."),
    ]
    second = document.pages[1]
    assert (second.number, document.text[second.start : second.end]) == (2, "The second page.")


def test_pdf_pages_without_text_are_named() -> None:
    words = [(72.0, 700.0, 11.0, "Words.")]
    document = read_document(make_pdf([words, [], [], [], words], image=True), "a.pdf")
    assert document.warnings == ("pages 2-4 have no text layer (scanned?)",)
    assert [page.number for page in document.pages] == [1, 5]
    empty = read_document(make_pdf([[]], image=True), "a.pdf")
    assert (empty.text, empty.warnings) == ("", ("page 1 has no text layer (scanned?)",))
    assert read_document(make_pdf([[]]), "a.pdf").warnings == ()  # a blank page is no scan


def test_a_paragraph_that_runs_over_a_page_stays_whole_and_keeps_its_pages() -> None:
    document = read_document(
        make_pdf([[(72, 700, 11, "The lamp was lit")], [(72, 700, 11, "every evening at six.")]]), "a.pdf"
    )
    assert shape_of(document) == [("paragraph", 0, "The lamp was lit every evening at six.")]
    assert [document.text[page.start : page.end] for page in document.pages] == [
        "The lamp was lit ",
        "every evening at six.",
    ]


def test_pdf_running_titles_and_page_numbers_go() -> None:
    pages = [
        [(72.0, 780.0, 9.0, "Handbook of Wind")]
        + [(72.0, 700.0 - 14 * k, 11.0, f"Sentence {k} of page {n} says something new.") for k in range(8)]
        + [(300.0, 20.0, 9.0, str(n))]
        for n in range(1, 6)
    ]
    document = read_document(make_pdf(pages), "a.pdf")
    assert "Handbook" not in document.text and document.text.startswith("Sentence 0 of page 1")
    assert document.text.endswith("Sentence 7 of page 5 says something new.")


def test_encrypted_pdf_is_refused_with_a_remedy() -> None:
    encrypt = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'41' * 32}> /U <{'42' * 32}> /P -4 >> /ID [<00> <00>]"
    with pytest.raises(DocumentError, match=r"a\.pdf: encrypted PDF; save it without a password"):
        read_document(make_pdf([[(72, 700, 11, "Secret")]], encrypt=encrypt), "a.pdf")


def test_docx_has_headings_lists_tables_code_and_notes() -> None:
    document = read_document(sample_docx(), "a.docx")
    assert document.title == "Annual report" and document.metadata == {"author": "Ada", "date": "2024-05-01T10:00:00Z"}
    assert shape_of(document) == [
        ("heading", 2, "Results"),
        ("paragraph", 0, "It rained often."),
        ("list", 0, "- first\n  - nested"),
        ("table", 0, "City: Bergen; Rain: 225"),
        ("code", 0, "x = 1\ny = 2"),
        ("paragraph", 0, "See the annex."),
    ]


def test_pptx_slides_are_pages_in_order_with_notes() -> None:
    document = read_document(sample_pptx(), "a.pptx")
    assert shape_of(document) == [
        ("heading", 2, "Plans"),
        ("list", 0, "- Grow\n- Ship"),
        ("paragraph", 0, "Notes: Speak slowly"),
        ("heading", 2, "Costs"),
        ("paragraph", 0, "None"),
    ]
    assert [(page.number, document.text[page.start :].split("\n")[0]) for page in document.pages] == [
        (1, "Plans"),
        (2, "Costs"),
    ]


def test_xlsx_rows_make_sense_alone() -> None:
    document = read_document(sample_xlsx(), "a.xlsx")
    assert shape_of(document) == [
        ("heading", 2, "Stock"),
        ("table", 0, "Part: Bolt; Bought: 2024-05-01; Share: 25%\nPart: Nut; Share: 0.3"),
    ]
    assert [page.number for page in document.pages] == [2]


def test_odt_is_read_with_notes_lists_and_tables() -> None:
    document = read_document(sample_odt(), "a.odt")
    assert document.title == "Ground" and document.metadata["author"] == "Bo"
    assert shape_of(document) == [
        ("heading", 2, "Soil"),
        ("paragraph", 0, "Sand and clay (mostly clay)."),
        ("list", 0, "- wet\n  - very wet"),
        ("table", 0, "Depth: 1 m; Kind: peat"),
    ]


def test_epub_follows_the_spine_and_skips_the_contents() -> None:
    document = read_document(sample_epub(), "a.epub")
    assert document.title == "Two Tales" and document.metadata == {"author": "Cy", "date": "1899"}
    assert [text for _, _, text in shape_of(document)] == ["First", "Once.", "Second", "The end."]


def test_epub_with_drm_is_refused_but_scrambled_fonts_are_not() -> None:
    with pytest.raises(DocumentError, match="DRM"):
        read_document(sample_epub("http://www.w3.org/2001/04/xmlenc#aes128-cbc"), "a.epub")
    assert "Once." in read_document(sample_epub("http://www.idpf.org/2008/embedding"), "a.epub").text


def test_csv_delimiter_and_header_are_found() -> None:
    assert shape_of(read_document(SAMPLES["a.csv"][0], "a.csv")) == [
        ("table", 0, "name: bolt; size: 3\nname: nut; big; size: 4")
    ]
    tabs = read_document(b"a\tb\n1\t2,5\n", "a.tsv")
    assert tabs.text == "a: 1; b: 2,5"
    assert read_document(b'a,b\n1,"two\nlines"\n', "a.csv").text == "a: 1; b: two lines"


def test_json_values_keep_their_spelling_under_their_path() -> None:
    document = read_document(SAMPLES["a.json"][0], "a.json")
    assert document.title == "T"
    assert document.text == "title: T\n\nn: 1.50\n\ndeep.x: 1, 2\n\nrows[0].k: v"
    assert read_document(SAMPLES["a.jsonl"][0], "a.jsonl").text == "q: why\nn: 1\n\nq: how\nn: 2"


def test_message_has_headers_first_and_names_attachments() -> None:
    document = read_document(SAMPLE_EML, "a.eml")
    assert document.title == "Pump 7"
    assert (
        document.metadata["author"] == "Jörg <j@example.org>"
        and document.metadata["date"] == "2024-05-01T10:00:00+02:00"
    )
    assert document.text.startswith("Pump 7\n\nFrom: Jörg <j@example.org>\nTo: ann@example.org\nDate: ")
    assert document.text.endswith("Der Druck fällt.") and document.warnings == ("attachments not read: plan.pdf",)


def test_each_message_of_a_mailbox_is_a_heading() -> None:
    document = read_document(SAMPLE_MBOX, "a.mbox")
    assert [text for kind, _, text in shape_of(document) if kind == "heading"] == ["One", "Two"]
    assert "First body.\nFrom here on." in document.text and document.text.endswith("Second body.")


def test_definitions_in_code_are_headings() -> None:
    document = read_document(SAMPLES["a.py"][0], "a.py")
    assert shape_of(document) == [
        ("code", 0, "import os"),
        ("code", 0, "@cache"),
        ("heading", 2, "def run(x):"),
        ("code", 0, "    return x"),
        ("heading", 2, "class A:"),
        ("heading", 3, "def go(self):"),
        ("code", 0, "        pass"),
    ]
    assert "@cache\ndef run(x):\n    return x\n\nclass A:" in document.text


@pytest.mark.parametrize(
    ("name", "source", "headings"),
    [
        ("a.rs", "pub fn go(x: u8) -> u8 {\n    x\n}\nimpl Foo for Bar {\n    fn run() {}\n}\n", 3),
        ("a.c", "#include <a.h>\nstatic int add(int a, int b)\n{\n    return a;\n}\nint x = f(3);\n", 1),
        ("a.go", "package main\nfunc (s *S) Run() error {\n}\n", 2),
        ("a.ts", "export default class A {\n  go() { if (x) {} }\n}\nexport async function b() {}\n", 2),
        ("a.sh", "#!/bin/sh\nclean() {\n  rm x\n}\n", 1),
        ("a.sql", "CREATE TABLE t (a int);\nselect 1;\n", 1),
    ],
)
def test_common_languages_show_their_definitions(name: str, source: str, headings: int) -> None:
    document = read_document(source.encode(), name)
    assert sum(1 for block in document.blocks if block.kind == "heading") == headings
    assert "".join(document.text.split()) == "".join(source.split())


def test_xml_of_any_vocabulary_gives_its_text() -> None:
    assert read_document(SAMPLES["a.xml"][0], "a.xml").text == "T\n\nSome mixed text."


def test_plain_text_keeps_its_lines_and_shows_chapters() -> None:
    document = read_document(b"Title\n=====\n\nRoses are red,\nviolets blue.\n\n\n\nCHAPTER II\n\nMore.", "poem.txt")
    assert shape_of(document) == [
        ("heading", 1, "Title"),
        ("paragraph", 0, "Roses are red,\nviolets blue."),
        ("heading", 2, "CHAPTER II"),
        ("paragraph", 0, "More."),
    ]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8-sig", "Grüße aus Köln – 5 €"),
        ("utf-16", "Grüße aus Köln"),
        ("utf-16-le", "Plain words, Grüße, without a mark"),
        ("utf-16-be", "Plain words, Grüße, without a mark"),
        ("utf-32", "Grüße aus Köln"),
        ("latin-1", "Die Straße führt über die Brücke nach Süden, an der Mühle vorbei."),
        ("cp1252", "“Where are we going?” asked the young man – nobody knew the café…"),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"),
        ("gb18030", "道可道，非常道。名可名，非常名。无名天地之始；有名万物之母。"),
        ("cp1251", "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему."),
    ],
)
def test_text_in_any_common_encoding_is_decoded(encoding: str, text: str) -> None:
    assert read_document(text.encode(encoding), "letter.txt").text == text


def test_declared_charset_of_a_page_is_used() -> None:
    page = '<html><head><meta charset="iso-8859-2"></head><body><p>Zażółć gęślą jaźń</p></body></html>'
    assert read_document(page.encode("iso-8859-2"), "a.html").text == "Zażółć gęślą jaźń"


def test_text_is_normalised_once() -> None:
    messy = "e\u0301t\u00e9\u00a0x\u200b \r\nb\x00\x07\rc\n\n\n\n\nd x\u00b2"
    assert read_document(messy.encode(), "a.txt").text == "été x\nb\nc\n\nd x²"


def test_json_with_lone_surrogates_is_stored_as_utf8() -> None:
    document = read_document(rb'{"a": "\ud800 x \u0000"}', "a.json")
    assert_sound(document)
    assert document.text == "a: \ufffd x"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x7fELF" + bytes(range(256)) * 4, "binary"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200), "binary"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000), "before 2007"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "encrypted"),
        (b"{\\rtf1\\ansi Hello}", "RTF"),
        (zip_of({"photo.jpg": b"x"}), "binary"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason) as caught:
        read_document(data, "thing.doc")
    assert "\n" not in str(caught.value) and caught.value.mend and str(caught.value).startswith("thing.doc: ")


def test_an_empty_file_is_an_empty_document() -> None:
    for name in ("a.txt", "a.pdf", "", "a.md", "a.json", "a.csv", "a.py"):
        assert read_document(b"", name).text == read_document(b" \n\t", name).text == ""


def test_notebooks_are_read_cell_by_cell() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Study\n", "\n", "Words."]},
        {"cell_type": "code", "source": "x = 1"},
    ]
    document = read_document(json.dumps({"nbformat": 4, "cells": cells}).encode(), "a.ipynb")
    assert shape_of(document) == [("heading", 1, "Study"), ("paragraph", 0, "Words."), ("code", 0, "x = 1")]


def test_this_file_reads_as_code() -> None:
    document = read_document(Path(__file__).read_bytes(), Path(__file__).name)
    assert document.media_type == "text/x-python"
    assert_sound(document)
