"""The native library on its own: its C tests under the sanitizers and for Arm, and what the compiled objects hold."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_rag import _native

cmake = pytest.importorskip("cmake", reason="needs the dev group: cmake")
ninja = pytest.importorskip("ninja", reason="needs the dev group: ninja")

NATIVE = Path(__file__).parent.parent / "native"
SIMD_SOURCES = {"kernel_avx2.c", "kernel_avx512vnni.c"}
ARM_TOOLS = ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", "qemu-aarch64-static")


def run(*command):
    """Run a command and return what it prints; a failure shows it."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def build(folder, *options):
    """Build the library with its tests in `folder`; return what the compiler said."""
    tool = Path(cmake.CMAKE_BIN_DIR) / "cmake"
    maker = f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}"
    run(tool, "-S", NATIVE, "-B", folder, "-G", "Ninja", maker, "-DEDGE_INDEX_TESTS=ON", *options)
    return run(tool, "--build", folder, "--parallel", "2")


def has_sanitizers(folder):
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    compiler = shutil.which("cc")
    command = [str(compiler), "-fsanitize=address,undefined", str(source), "-o", str(folder / "empty")]
    return compiler is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_c_tests_pass_under_the_sanitizers(tmp_path):
    if not has_sanitizers(tmp_path):
        pytest.skip("the compiler has no address and undefined-behaviour sanitizers")
    said = build(tmp_path / "build", "-DEDGE_INDEX_SANITIZE=address")
    assert "warning" not in said
    printed = run(Path(cmake.CMAKE_BIN_DIR) / "ctest", "--test-dir", tmp_path / "build", "--verbose")
    assert "all passed" in printed
    assert f"kernel {_native.simd_name()}" in printed


@pytest.mark.skipif(platform.machine() != "x86_64", reason="about registers of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
def test_wide_registers_stay_in_the_simd_objects(tmp_path):
    build(tmp_path)
    using = set()
    objects = list(tmp_path.glob("CMakeFiles/edge_index.dir/src/*.o"))
    for file in objects:
        listing = run("objdump", "-d", file)
        if "%ymm" in listing or "%zmm" in listing:
            using.add(file.name.removesuffix(".o"))
    assert len(objects) == 9
    assert using == SIMD_SOURCES


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ARM_TOOLS),
    reason="needs apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user-static",
)
def test_c_tests_pass_on_64_bit_arm(tmp_path):
    gcc, gxx, qemu = ARM_TOOLS
    said = build(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_C_COMPILER={gcc}",
        f"-DCMAKE_CXX_COMPILER={gxx}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    assert "warning" not in said
    old = run(qemu, "-cpu", "cortex-a72", tmp_path / "test_index")  # Raspberry Pi 4: traps on sdot
    assert "kernel neon" in old
    assert "kernel dotprod" not in old
    assert "kernel dotprod" in run(qemu, "-cpu", "max", tmp_path / "test_index")
