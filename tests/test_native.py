"""The native library on its own: its C tests under the sanitizers and for Arm, its fuzzer, and a C program that uses it."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_rag import _native
from edge_rag.index import NativeIndex
from tests.index_data import make, rows_of

cmake = pytest.importorskip("cmake", reason="needs the dev group: cmake")
ninja = pytest.importorskip("ninja", reason="needs the dev group: ninja")

NATIVE = Path(__file__).parent.parent / "native"
SIMD_SOURCES = {"kernel_avx2.c", "kernel_avx512vnni.c"}
ARM_TOOLS = ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", "qemu-aarch64-static")
CMAKE = Path(cmake.CMAKE_BIN_DIR) / "cmake"
CTEST = Path(cmake.CMAKE_BIN_DIR) / "ctest"


def run(*command, cwd=None, **environment):
    """Run a command and return what it prints; a failure shows it."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def configure(folder, *options):
    maker = f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}"
    run(CMAKE, "-S", NATIVE, "-B", folder, "-G", "Ninja", maker, *options)


def build(folder, *options):
    """Build the library with its tests in `folder`; return what the compiler said."""
    configure(folder, "-DEDGE_INDEX_TESTS=ON", *options)
    return run(CMAKE, "--build", folder, "--parallel", "2")


def require_sanitizer(folder, flag, compiler="cc"):
    """Skip the test where the compiler has no such sanitizer, or this system does not run what it makes."""
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    found = shutil.which(compiler)
    command = [str(found), f"-fsanitize={flag}", str(source), "-o", str(program)]
    if found is None or subprocess.run(command, capture_output=True).returncode or subprocess.run([program]).returncode:
        pytest.skip(f"the compiler has no sanitizer for {flag}")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The library and its tests as they are released."""
    folder = tmp_path_factory.mktemp("native")
    assert "warning" not in build(folder)
    return folder


@pytest.mark.slow
def test_c_tests_pass_under_the_address_sanitizer(tmp_path):
    require_sanitizer(tmp_path, "address,undefined")
    assert "warning" not in build(tmp_path / "build", "-DEDGE_INDEX_SANITIZE=address")
    printed = run(CTEST, "--test-dir", tmp_path / "build", "--verbose")
    assert printed.count("all passed") == 6
    assert f"kernel {_native.simd_name()}" in printed


@pytest.mark.slow
def test_threads_do_not_race(tmp_path):
    require_sanitizer(tmp_path, "thread")
    build(tmp_path / "build", "-DEDGE_INDEX_SANITIZE=thread")
    printed = run(CTEST, "--test-dir", tmp_path / "build", "--verbose", "-R", "^threads$")
    assert "all passed" in printed


def test_c_tests_pass_as_released(built):
    printed = run(CTEST, "--test-dir", built, "--verbose")
    assert printed.count("all passed") == 6


@pytest.mark.skipif(platform.machine() != "x86_64", reason="about registers of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
def test_wide_registers_stay_in_the_simd_objects(built):
    using = set()
    objects = list(built.glob("CMakeFiles/edge_index.dir/src/*.o"))
    for file in objects:
        listing = run("objdump", "-d", file)
        if "%ymm" in listing or "%zmm" in listing:
            using.add(file.name.removesuffix(".o"))
    foreign = {"kernel_neon", "kernel_neon_dotprod"}
    assert {o.name.split(".")[0] for o in objects} == {s.stem for s in (NATIVE / "src").glob("*.c*")} - foreign
    assert using == SIMD_SOURCES


@pytest.mark.slow
@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ARM_TOOLS),
    reason="needs apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user-static",
)
def test_c_tests_pass_on_64_bit_arm(tmp_path, built):
    gcc, gxx, qemu = ARM_TOOLS
    arm = tmp_path / "build"
    said = build(
        arm,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_C_COMPILER={gcc}",
        f"-DCMAKE_CXX_COMPILER={gxx}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    assert "warning" not in said
    pi_4 = (qemu, "-cpu", "cortex-a72")  # traps on the dot products of newer ones
    newest = (qemu, "-cpu", "max")
    old = run(*pi_4, arm / "test_kernels")
    assert "kernel neon\n" in old
    assert "kernel dotprod\n" not in old
    assert "kernel dotprod\n" in run(*newest, arm / "test_kernels")
    assert "kernel neon\nall passed" in run(*pi_4, arm / "test_index", "threads")
    assert "kernel dotprod\nall passed" in run(*newest, arm / "test_index", "threads")

    for folder, command in (
        (tmp_path / "arm", (*pi_4, arm / "make_corpus")),
        (tmp_path / "here", (built / "make_corpus",)),
    ):
        folder.mkdir()
        run(*command, folder)
    files = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert len(files) > 5
    for name in files:  # the same file on every processor, to the last bit
        assert (tmp_path / "arm" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name

    ids, vectors = make(tmp_path / "index", 300, 40, graph_from=1)
    query = [str(x) for x in vectors[7]]
    lines = run(*pi_4, arm / "search_example", tmp_path / "index", "3", "--", *query).splitlines()
    assert lines[0].split()[:2] == ["0", str(ids[7])]
    assert lines == run(built / "search_example", tmp_path / "index", "3", "--", *query).splitlines()


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("cc") is None, reason="needs cc")
def test_an_installed_library_serves_a_c_program(built, tmp_path):
    prefix = tmp_path / "a place"  # a space, as in many homes
    run(CMAKE, "--install", built, "--prefix", prefix)
    (library,) = prefix.glob("lib*/**/libedge_index.a")
    (settings,) = prefix.glob("lib*/**/edge_index.pc")
    flags = [f"-I{prefix / 'include'}", str(library)]
    private = next(
        line for line in settings.read_text(encoding="utf-8").splitlines() if line.startswith("Libs.private: ")
    )
    run(
        "cc",
        "-Wall",
        "-Werror",
        NATIVE / "examples" / "search.c",
        *flags,
        *private.split()[1:],
        "-o",
        tmp_path / "search",
    )

    make(tmp_path / "index", 500, 24)
    queries = rows_of(4, 24, seed=1)
    queries.tofile(tmp_path / "queries.f32")
    lines = run(tmp_path / "search", tmp_path / "index", "5", tmp_path / "queries.f32").splitlines()
    ids, scores = NativeIndex.open(tmp_path / "index").search(queries, 5)
    expected = [f"{q} {ids[q, i]} {scores[q, i]:.6f}" for q in range(4) for i in range(5)]
    assert lines == expected


@pytest.mark.skipif(shutil.which("pkg-config") is None or shutil.which("cc") is None, reason="needs pkg-config and cc")
def test_pkg_config_finds_the_installed_library(built, tmp_path):
    prefix = tmp_path / "installed"
    run(CMAKE, "--install", built, "--prefix", prefix)
    (settings,) = prefix.glob("lib*/**/edge_index.pc")
    flags = run(
        "pkg-config", "--cflags", "--libs", "--static", "edge_index", PKG_CONFIG_PATH=str(settings.parent)
    ).split()
    run("cc", NATIVE / "examples" / "search.c", *flags, "-o", tmp_path / "search")
    make(tmp_path / "index", 20, 2)
    assert len(run(tmp_path / "search", tmp_path / "index", "3", "--", "0.5", "-1").splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "usage"),
        (("index", "0", "--", "1", "2"), "usage"),
        (("nowhere", "3", "--", "1", "2"), "nowhere: cannot be read"),
        (("text", "3", "--", "1", "2"), "text: not an index file"),
        (("index", "3", "--", "1"), "queries of 2 numbers"),
        (("index", "3", "--", "1", "two"), "queries of 2 numbers"),
        (("index", "3", "queries"), "queries of 2 numbers"),
        (("index", "3", "--", "0", "0"), "index: a vector is zero"),
        (("index", "3", "--", "nan", "0"), "index: a vector is zero, too large or not finite"),
    ],
)
def test_the_c_program_says_what_is_wrong(built, tmp_path, arguments, said):
    make(tmp_path / "index", 20, 2)
    (tmp_path / "text").write_text("no index", encoding="utf-8")
    np.zeros(3, np.float32).tofile(tmp_path / "queries")
    done = subprocess.run([built / "search_example", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_a_short_fuzz_finds_nothing(tmp_path):
    """A few seconds of it; `make fuzz` takes a minute."""
    require_sanitizer(tmp_path, "address,undefined", "clang++")
    build(
        tmp_path / "build", "-DEDGE_INDEX_SANITIZE=fuzzer", "-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"
    )
    found = tmp_path / "found"
    found.mkdir()
    limits = ("-max_total_time=5", "-max_len=20000", "-timeout=20", "-rss_limit_mb=2048")
    # By a shell: on Linux a child's peak memory begins with its parent's, and this process may hold more than the limit by now.
    command = (tmp_path / "build" / "fuzz_open", *limits, found, NATIVE / "tests" / "corpus")
    run("sh", "-c", '"$0" "$@"; exit $?', *command, cwd=tmp_path)


@pytest.mark.slow
def test_python_tests_of_the_index_pass_under_the_address_sanitizer(tmp_path):
    """The binding too: what it hands to the library, and what it frees."""
    require_sanitizer(tmp_path, "address,undefined")
    if sys.platform != "linux":
        pytest.skip("the sanitizer is put before Python by LD_PRELOAD")
    folder = tmp_path / "build"
    configure(folder, "-DSKBUILD=2", "-DEDGE_INDEX_SANITIZE=address", f"-DPython_EXECUTABLE={sys.executable}")
    run(CMAKE, "--build", folder, "--parallel", "2")
    (module,) = folder.glob("_native*.so")
    tests = [Path(__file__).parent / name for name in ("test_index.py", "test_index_damage.py")]
    printed = run(
        sys.executable,
        "-c",
        UNDER_SANITIZER,
        module,
        "-q",
        "--capture=no",  # the sanitizer's own words come out
        "-p",
        "no:cacheprovider",
        "-k",
        "not ctrl_c and not kernel and not any_dimension and not never_starves",  # other processes; the C tests do these
        *tests,
        cwd=NATIVE.parent,
        LD_PRELOAD=" ".join(
            run("cc", f"-print-file-name=lib{name}.so").strip() for name in ("asan", "ubsan", "stdc++")
        ),
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=1",
        PYTHONMALLOC="malloc",
    )
    assert " passed" in printed


# Puts the sanitized module into the place of the installed one, then runs the tests.
UNDER_SANITIZER = """
import importlib.util, sys
import pytest

spec = importlib.util.spec_from_file_location("edge_rag._native", sys.argv[1])
sys.modules["edge_rag._native"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import edge_rag
edge_rag._native = module
sys.exit(pytest.main(sys.argv[2:]))
"""
