"""The wheel for 64-bit Arm, cross-compiled here and run in Debian's Python for Arm under emulation."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edge_rag.index import NativeIndex, build_index

ROOT = Path(__file__).parent.parent
ARM = ROOT / "build/arm"
QEMU = "qemu-aarch64-static"
TOOLS = (QEMU, "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++")
CROSS = {
    "_PYTHON_HOST_PLATFORM": "linux-aarch64",
    "CMAKE_ARGS": "-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64"
    " -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
}
PROGRAM = """
import sys
import numpy as np
from edge_rag import _native
from edge_rag.index import NativeIndex, build_index
folder = sys.argv[1]
ids, vectors = np.load(f"{folder}/ids.npy"), np.load(f"{folder}/vectors.npy")
build_index(f"{folder}/arm.eidx", [(ids, vectors)], dim=vectors.shape[1], metric="cosine")
with NativeIndex.open(f"{folder}/here.eidx") as index:
    found, scores = index.search(vectors[:20], k=10)
np.savez(f"{folder}/arm.npz", found=found, scores=scores)
print(_native.simd_name())
"""


@pytest.mark.slow
@pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}")
@pytest.mark.skipif(not (ARM / "packages").is_dir(), reason="needs Python for Arm: sh tests/arm_python.sh build/arm")
def test_the_wheel_for_64_bit_arm_finds_what_this_one_does_to_the_last_bit(tmp_path):
    hook = "import sys; from scikit_build_core.build import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", hook, str(tmp_path)], cwd=ROOT, env=os.environ | CROSS, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-cp311-abi3-linux_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")

    random = np.random.default_rng(0)
    ids, vectors = np.arange(2000), random.standard_normal((2000, 96), dtype=np.float32)
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "vectors.npy", vectors)
    build_index(tmp_path / "here.eidx", [(ids, vectors)], dim=96, metric="cosine")
    with NativeIndex.open(tmp_path / "here.eidx") as index:
        found, scores = index.search(vectors[:20], k=10)

    paths = f"PYTHONPATH={tmp_path / 'site'}:{ARM / 'packages'}"
    for processor, kernel in (("cortex-a72", "neon"), ("max", "dotprod")):  # a Raspberry Pi 4, and what a Pi 5 has
        command = [QEMU, "-cpu", processor, "-L", ARM, "-E", paths, ARM / "usr/bin/python3", "-c", PROGRAM, tmp_path]
        done = subprocess.run([str(part) for part in command], capture_output=True, encoding="utf-8", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{kernel}\n"), done.stderr
        assert (tmp_path / "arm.eidx").read_bytes() == (tmp_path / "here.eidx").read_bytes()
        with np.load(tmp_path / "arm.npz") as theirs:
            assert np.array_equal(theirs["found"], found)
            assert np.array_equal(theirs["scores"].view(np.uint32), scores.view(np.uint32))
        (tmp_path / "arm.eidx").unlink()
