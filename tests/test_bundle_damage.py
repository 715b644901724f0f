"""Damaged and hostile bundles: each is a clear error with exit code 4, or is answered right; none is a crash."""

import hashlib
import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from edge_rag.bundle import Bundle
from edge_rag.bundle.build import build
from edge_rag.bundle.container import TRAILER_BYTES, Trailer, directory_bytes, place
from edge_rag.bundle.manifest import is_safe_name
from edge_rag.bundle.verify import verify
from edge_rag.errors import IntegrityError
from edge_rag.library import Library
from edge_rag.settings import Settings

FAKE_GGUF = b"GGUF" + (3).to_bytes(4, "little") + bytes(16) + b"weights" * 1000
QUESTION = "Who opens the west door?"


@pytest.fixture(scope="session")
def original(tmp_path_factory, request):
    """A bundle with every kind of part; without a selector where none can be made."""
    pytest.importorskip("llama_cpp", reason="needs the [llm] extra")
    folder = tmp_path_factory.mktemp("damage")
    docs = folder / "docs"
    docs.mkdir()
    for n in range(40):
        (docs / f"{n}.txt").write_text(f"Door {n} is opened by keeper {n * 7 % 41} on day {n * n}.\n")
    (docs / "west.txt").write_text("The west door is opened by the keeper only.\n")
    (folder / "g.gguf").write_bytes(FAKE_GGUF)
    (folder / "l.gguf").write_bytes(FAKE_GGUF + b"adapter")
    selector = request.getfixturevalue("selector_folder") if find_spec("torch") and find_spec("onnx") else ""
    settings = Settings(
        generator=str(folder / "g.gguf"), lora=str(folder / "l.gguf"), selector=str(selector), threads=1
    )
    with Library.open(folder / "lib", create=True, settings=settings) as library:
        library.add([docs])
        library.compact()  # which makes an index
    build(folder / "lib", folder / "x.erag", settings=settings)
    return folder / "x.erag"


@pytest.fixture
def bundle_file(original, tmp_path):
    return Path(shutil.copy(original, tmp_path / "x.erag"))


@pytest.fixture(scope="session")
def right(original):
    return uses(original)


def uses(path):
    """Return what a bundle answers, without a language model."""
    with Bundle.open(path) as bundle:
        settings = Settings(generator="extractive", threads=1, selector=bundle.manifest.selector)
        with bundle.assistant(settings) as assistant:
            answer = assistant.ask(QUESTION)
        library = bundle.library()
        bundle.proved("generator")
        bundle.extracted("adapter")
        said = answer.text, [p.chunk_id for p in answer.passages]
        return said, answer.confidence, [d.path for d in library.list()], library.show("west.txt").text


def flip(path, offset, bit):
    with path.open("r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def places(path):
    """Return the stretches of the file by name: the parts, what lies between, the manifest, the directory, the trailer."""
    with Bundle.open(path) as bundle:
        manifest, trailer = bundle.manifest, bundle.trailer
        found = {part.name: (part.offset, part.offset + part.size) for part in manifest.parts}
        entries = manifest.entries(trailer.manifest_size)
    found |= {f"header of {e.name}": (e.start, e.offset) for e in entries}
    found["manifest.json"] = (entries[-1].offset, entries[-1].end)
    size = path.stat().st_size
    return found | {"directory": (entries[-1].end, size - TRAILER_BYTES), "trailer": (size - TRAILER_BYTES, size)}


def test_a_flipped_bit_anywhere_is_found_and_never_a_wrong_answer(bundle_file, right):
    assert uses(bundle_file) == right
    rng = random.Random(5)
    stretches = places(bundle_file)
    assert len(stretches) > 20
    n_errors = 0
    for name, (start, end) in stretches.items():
        for _ in range(3):
            offset, bit = rng.randrange(start, end), rng.randrange(8)
            flip(bundle_file, offset, bit)
            try:
                assert uses(bundle_file) == right, (name, offset)
            except IntegrityError as error:
                assert error.exit_code == 4 and error.mend
                n_errors += 1
            with pytest.raises(IntegrityError), Bundle.open(bundle_file) as bundle:
                verify(bundle)  # which finds each
            flip(bundle_file, offset, bit)
    assert n_errors > len(stretches)
    assert uses(bundle_file) == right


def test_every_bit_of_the_trailer_counts(bundle_file):
    start, end = places(bundle_file)["trailer"]
    for offset in range(start, end):
        flip(bundle_file, offset, offset % 8)
        with pytest.raises(IntegrityError), Bundle.open(bundle_file) as bundle:
            verify(bundle)
        flip(bundle_file, offset, offset % 8)


def test_a_file_cut_off_or_grown_anywhere_is_no_bundle(bundle_file):
    size = bundle_file.stat().st_size
    rng = random.Random(6)
    cuts = {
        0,
        1,
        4,
        TRAILER_BYTES - 1,
        TRAILER_BYTES,
        *(size - n for n in range(1, 200, 7)),
        *(e for _, e in places(bundle_file).values()),
    }
    cuts |= {rng.randrange(size) for _ in range(50)}
    for cut in sorted(cuts - {size}, reverse=True):
        with bundle_file.open("r+b") as file:
            file.truncate(cut)
        with pytest.raises(IntegrityError, match="no bundle, or its end is missing"):
            Bundle.open(bundle_file)


def test_bytes_taken_out_or_put_in_are_found_at_once(bundle_file):
    data = bundle_file.read_bytes()
    for at in (0, 100, len(data) // 2, len(data) - TRAILER_BYTES - 10_000):
        for changed in (data[:at] + data[at + 4096 :], data[:at] + bytes(4096) + data[at:], data[:at] + data[at:] * 2):
            bundle_file.write_bytes(changed)
            with pytest.raises(IntegrityError):
                Bundle.open(bundle_file)


def test_two_parts_that_changed_places_are_found(bundle_file):
    found = places(bundle_file)
    data = bytearray(bundle_file.read_bytes())
    (a, a_end), (b, b_end) = found["generator.gguf"], found["adapter.gguf"]
    n = min(a_end - a, b_end - b)
    data[a : a + n], data[b : b + n] = data[b : b + n], bytes(data[a : a + n])
    data[a + n - 1] ^= 1  # the two begin alike
    bundle_file.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"generator\.gguf is not what was bundled"):
        uses(bundle_file)


# --- made by an enemy, who can compute hashes ---


def forge(path, change, *, text=None):
    """Rewrite the manifest, with a trailer and a directory that fit it."""
    with Bundle.open(path) as bundle:
        manifest, trailer = bundle.manifest, bundle.trailer
        entries = manifest.entries(trailer.manifest_size)
    data = path.read_bytes()
    fields = json.loads(data[trailer.manifest_offset : trailer.manifest_offset + trailer.manifest_size])
    change(fields)
    forged = text if text is not None else (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()
    head = manifest.part("generator").size
    entries = place(head, [*((e.name, e.size) for e in entries[:-1]), ("manifest.json", len(forged))])
    trailer = Trailer(trailer.manifest_offset, len(forged), hashlib.sha256(forged).digest(), bytes(32), bytes(64))
    end = directory_bytes(entries, [0] * len(entries), trailer)
    path.write_bytes(data[: trailer.manifest_offset] + forged + end)


def part(which, /, **values):
    def change(fields):
        next(p for p in fields["parts"] if p["role"] == which).update(values)

    return change


def top(**values):
    return lambda fields: fields.update(values)


def without(role):
    return lambda fields: fields.update(parts=[p for p in fields["parts"] if p["role"] != role])


HOSTILE = {
    "a newer format": (top(format=2), "reads up to 1; pip install --upgrade"),
    "a name that leads out": (part("library", name="../x.sqlit"), "a part is called"),
    "an absolute name": (part("library", name="/ibrary.sqlite"), "a part is called"),
    "a Windows name": (part("library", name="c:\\rary.sqlite"), "a part is called"),
    "a device's name": (part("library", name="library/con.sq"), "a part is called"),
    "a name that is the manifest's": (part("library", name="manifest.json"), "a part is called"),
    "two parts of one name": (part("library", name="Vectors.EIDX"), "two parts have one name"),
    "an absurd size": (part("library", size=1 << 62), "cannot be so"),
    "a negative size": (part("library", size=-1), "cannot be so"),
    "a size beyond its neighbour": (part("library", size=1 << 20), "do not lie where they must"),
    "a size that is too small": (part("library", size=4096), "do not lie where they must"),
    "overlapping parts": (part("index", offset=28672), "do not lie where they must"),
    "a part outside": (part("index", offset=1 << 50), "do not lie where they must"),
    "a generator that is not first": (part("generator", offset=4096), "the generator does not come first"),
    "no library": (without("library"), "lacks a part"),
    "no embedder": (without("embedder"), "lacks a part"),
    "no generator": (without("generator"), "its generator is missing"),
    "an unknown role": (part("library", role="program"), "is a 'program'"),
    "two libraries": (part("index", role="library"), "has one twice"),
    "a hash that is none": (part("library", sha256="0" * 63), "cannot be so"),
    "a size in words": (part("library", size="1000"), "size is '1000'"),
    "a list for a number": (top(passages=[4]), r"passages is \[4\]"),
    "a million passages": (top(passages=1_000_000), "out of bounds"),
    "a window of a terabyte": (top(context_tokens=1 << 40), "out of bounds"),
    "no passages": (top(passages=0), "out of bounds"),
    "a server for a generator": (top(generator="http://example.org/v1#model"), "its generator has no name"),
    "another rule": (top(abstention_weights=[1.0]), "rule for abstention makes no sense"),
    "a field too many": (top(command="rm"), "makes no sense"),
    "parts that are none": (top(parts=7), "makes no sense"),
    "no parts": (top(parts=[]), "lacks a part"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_forged_manifest_is_refused(bundle_file, name):
    change, message = HOSTILE[name]
    forge(bundle_file, change)
    with pytest.raises(IntegrityError, match=message):
        Bundle.open(bundle_file)


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format": NaN}', b'{"format": 1e999}',
     b'{"format": ' + b"9" * 9999 + b"}",
     b'{"format": 1, "format": "1"}'],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_what_is_no_manifest_is_refused(bundle_file, text):
    forge(bundle_file, lambda fields: None, text=text)
    with pytest.raises(IntegrityError):
        Bundle.open(bundle_file)


def test_random_changes_of_the_manifest_are_refused_or_change_no_text(bundle_file, original, right):
    rng = random.Random(7)
    junk = [None, -1, 0, 1 << 70, 0.5, float("inf"), "", "x", "../x", [], {}, True, "\0", "ﬀ"]

    def change(fields):
        target = rng.choice([fields, rng.choice(fields["parts"])])
        key = rng.choice(list(target))
        if rng.random() < 0.2:
            del target[key]
        else:
            target[key] = rng.choice(junk)

    n_refused = 0
    for _ in range(50):
        shutil.copy(original, bundle_file)
        forge(bundle_file, change)
        try:
            found = uses(bundle_file)
        except IntegrityError:
            n_refused += 1
        else:
            assert found[2:] == right[2:]  # it may choose other settings, as any bundle may
    assert n_refused > 25


def test_parts_that_an_enemy_replaced_are_checked_for_what_they_must_be(bundle_file, original):
    """With hashes that fit: a library without tables, an index of something else, files of the embedder that changed names."""

    def replace(role, content):
        shutil.copy(original, bundle_file)
        start, end = places(bundle_file)[next(p["name"] for p in manifest["parts"] if p["role"] == role)]
        data = bytearray(bundle_file.read_bytes())
        data[start:end] = content[: end - start].ljust(end - start, b"\0")
        bundle_file.write_bytes(data)
        forge(bundle_file, part(role, sha256=hashlib.sha256(data[start:end]).hexdigest()))

    data = original.read_bytes()
    manifest = json.loads(data[places(original)["manifest.json"][0] : places(original)["manifest.json"][1]])
    start, end = places(original)["library.sqlite"]
    broken_page = bytearray(data[start:end])
    broken_page[4096:8192] = bytes(4096)
    for role, content in (
        ("selector", b"{}"),
        ("library", b""),
        ("library", b"SQLite format 3\0"),
        ("library", bytes(broken_page)),
        ("index", b""),
        ("index", data[places(original)["vectors.eidx"][0] :][:500]),
    ):
        replace(role, content)
        with pytest.raises(IntegrityError):
            uses(bundle_file)
            raise AssertionError((role, content[:20]))

    def swap(a, b):
        def change(fields):
            files = [p for p in fields["parts"] if p["name"] in (a, b)]
            files[0]["name"], files[1]["name"] = files[1]["name"], files[0]["name"]

        return change

    for a, b in (
        ("embedder/vocab.txt", "embedder/model.int8.onnx"),
        ("selector/vocab.txt", "selector/model.fp32.onnx"),
        ("selector/model.json", "embedder/model.json"),
    ):
        shutil.copy(original, bundle_file)
        forge(bundle_file, swap(a, b))
        with pytest.raises(IntegrityError):
            uses(bundle_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("selector"), "its selector is missing"),
        (top(selector=""), "its selector is missing, or has no name"),
        (top(selector_fingerprint="0" * 64), "its selector is another"),
        (part("selector", role="embedder"), "holds no selector"),
    ],
)
def test_a_selector_that_is_not_the_manifests_is_refused(bundle_file, selector_folder, change, message):
    forge(bundle_file, change)
    with pytest.raises(IntegrityError, match=message):
        uses(bundle_file)


@pytest.mark.parametrize("name", ["a", "a/b.c", "Apache-2.0.txt", "_x"])
def test_a_safe_name_is_let_through(name):
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/../b", "/a", "a/", "a//b", "a\\b", "c:a", "a.", "nul", "a/COM1.txt", "a b", "ä", ".a", "a" * 300, "a\n"]
)  # fmt: skip
def test_an_unsafe_name_is_not(name):
    assert not is_safe_name(name)
