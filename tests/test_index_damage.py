"""Damaged index files: an error or the right answer, never anything else; and the format, read by a second program."""

import random
import struct

import numpy as np
import pytest

from edge_rag import _native
from edge_rag.errors import IntegrityError
from edge_rag.index import NativeIndex, build_index
from tests.index_data import clustered, make

HEADER_BYTES = 4096
SECTIONS_AT, N_SECTIONS = 88, 10  # u32 kind, u32 reserved, u64 offset, u64 size, u64 checksum
N_COPIES = 200


def sections(content):
    """Return (kind, offset, size, checksum) of each section, as native/FORMAT.md has it."""
    entries = struct.iter_unpack("<IIQQQ", content[SECTIONS_AT : SECTIONS_AT + 32 * N_SECTIONS])
    return [(kind, offset, size, checksum) for kind, _, offset, size, checksum in entries]


def checksum_of(data):
    """A second writing of the formula in native/FORMAT.md."""
    multiplier, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    lanes = [(i + 1) * multiplier & mask for i in range(8)]
    for words in struct.iter_unpack("<8Q", data):
        for i in range(8):
            mixed = (lanes[i] ^ words[i]) * multiplier & mask
            lanes[i] = (mixed << 29 | mixed >> 35) & mask
    total = 0
    for lane in lanes:
        total = (total ^ lane) * multiplier & mask
        total ^= total >> 32
    return total


def answers(path):
    """Everything that a reader may ask, along all ways."""
    queries = clustered(2000, 40, 20)[1]
    allow = np.arange(2000) % 5 == 0
    with NativeIndex.open(path) as index:
        found = [index.search(queries, 10, exact=exact) for exact in (True, False, None)]
        found.append(index.search(queries, 10, allow=allow))
        return [array for pair in found for array in pair] + [index.vectors(range(0, 2000, 100)), index.ids.copy()]


def damages(content):
    """Return 200 damaged copies with what was done to each, the same ones every time."""
    chance = random.Random(7)
    copies = []
    edges = sorted({edge for _, offset, size, _ in sections(content) for edge in (offset, offset + size)})
    for edge in [0, *edges]:
        copies += [(f"cut at {at}", content[:at]) for at in (edge - 1, edge, edge + 1) if 0 <= at < len(content)]
    fields = [*range(0, SECTIONS_AT, 4), *range(SECTIONS_AT, SECTIONS_AT + 32 * N_SECTIONS, 8)]
    extremes = (0, 1, 2**31 - 1, 2**32 - 1, 2**61 + 1, 2**62, 2**63, 2**64 - 1)  # the last ones: sizes that wrap around
    for at, value in chance.sample([(at, value) for at in fields for value in extremes], 60):
        copies.append((f"{value} at {at}", overwritten(content, at, struct.pack("<Q", value))))
    while len(copies) < N_COPIES - 30:
        bit = chance.randrange(8 * len(content))
        copies.append((f"bit {bit} flipped", overwritten(content, bit // 8, bytes([content[bit // 8] ^ 1 << bit % 8]))))
    while len(copies) < N_COPIES:
        at = chance.randrange(len(content) - 4096)
        copies.append((f"4 KiB of 0xFF at {at}", overwritten(content, at, b"\xff" * 4096)))
    return copies


def overwritten(content, at, put):
    return content[:at] + put + content[at + len(put) :]


def test_200_damaged_copies_give_an_error_or_the_right_answer(tmp_path):
    vectors, _ = clustered(2000, 40, 20)
    path = tmp_path / "x.idx"
    build_index(path, [(np.arange(2000), vectors)], 40, graph_from=1)
    content, right = path.read_bytes(), answers(path)
    outcomes = {"error": 0, "right answer": 0}
    for what, copy in damages(content):
        path.write_bytes(copy)
        if copy == content:  # a field that had the value already
            continue
        try:
            found = answers(path)
        except IntegrityError:
            outcomes["error"] += 1
        else:
            assert all(np.array_equal(a, b) for a, b in zip(found, right, strict=True)), what
            outcomes["right answer"] += 1
    assert sum(outcomes.values()) > N_COPIES - 10
    assert outcomes["error"] > N_COPIES / 2


def test_every_single_flipped_bit_of_a_small_file_is_seen(tmp_path):
    make(tmp_path / "x.idx", 17, 5, graph_from=1)
    content = np.frombuffer((tmp_path / "x.idx").read_bytes(), np.uint8)
    memory = np.empty(len(content) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + len(content)]  # an index is read where it lies, at a multiple of 64
    copy[:] = content
    view = memoryview(copy)
    _native.open(view, 2)
    unseen = []
    for at in range(len(content)):
        for bit in range(8):
            copy[at] = content[at] ^ 1 << bit
            try:
                _native.open(view, 2)
                unseen.append(8 * at + bit)
            except _native.IndexFileError:
                pass
        copy[at] = content[at]
    assert unseen == []
    _native.open(view, 2)


def test_verify_sees_a_flipped_bit_in_a_file_that_is_open(tmp_path):
    make(tmp_path / "x.idx", 5000, 100, graph_from=1)
    content = (tmp_path / "x.idx").read_bytes()
    chance = random.Random(3)
    bits = [
        8 * at + chance.randrange(8) for _, offset, size, _ in sections(content) for at in (offset, offset + size - 1)
    ]
    bits += [chance.randrange(8 * len(content)) for _ in range(60)]
    with NativeIndex.open(tmp_path / "x.idx") as index, (tmp_path / "x.idx").open("r+b", buffering=0) as file:
        for bit in bits:
            at = bit // 8
            file.seek(at)
            file.write(bytes([content[at] ^ 1 << bit % 8]))
            with pytest.raises(IntegrityError):
                index.verify()
            file.seek(at)
            file.write(content[at : at + 1])
        index.verify()


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
def test_the_header_says_what_the_format_says(tmp_path, metric):
    make(tmp_path / "x.idx", 40, 5, metric=metric, graph_from=1, max_links=6, ef_build=20)
    content = (tmp_path / "x.idx").read_bytes()
    magic, version, order, checksum, size, hot, count = struct.unpack_from("<8sIIQQQQ", content)
    assert (magic, order, size, count) == (b"EDGEIDX\n", 0x01020304, len(content), 40)
    assert version >= 1
    assert checksum == checksum_of(content[:16] + bytes(8) + content[24:HEADER_BYTES])
    end = HEADER_BYTES
    for number, (kind, offset, length, its_checksum) in enumerate(sections(content), 1):
        assert (kind, offset) == (number, end)
        assert length % 4096 == 0
        assert its_checksum == checksum_of(content[offset : offset + length])
        end += length
    assert end == len(content)
    residuals = sections(content)[9]
    assert hot == residuals[1]
    sums = sections(content)[8][1]
    for group in range(3):  # each 16 rows of 128 bytes
        rows = content[residuals[1] + 2048 * group :][: 128 * min(16, 40 - 16 * group)]
        assert struct.unpack_from("<Q", content, sums + 8 * group) == (checksum_of(rows),)
