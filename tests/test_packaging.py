"""What is packed, what an installed package can do, who imports whom, and which names are public."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

# ---- what is packed

PACKED = ["edge_rag", "export", "native", "tests", "train", "LICENSE", "README.md", "pyproject.toml"]
JUNK = ["model.gguf", ".env", "notes/x.md", "dist/old.whl", "build/x.o", "edge_rag/__pycache__/x.cpython-311.pyc"]


def python(code_or_arguments, folder, **environment):
    done = subprocess.run(
        [sys.executable, *code_or_arguments],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """An sdist of a littered copy of this tree, and a wheel built from that sdist."""
    pytest.importorskip("scikit_build_core", reason="needs the dev group: scikit-build-core")
    folder = tmp_path_factory.mktemp("packages")
    tree = folder / "tree"
    tree.mkdir()
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, tree / name)
    for name in JUNK:
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(b"junk")
    python(["-c", f"from scikit_build_core.build import build_sdist; build_sdist({str(folder)!r})"], tree)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    [source] = (folder / "unpacked").iterdir()
    python(["-c", f"from scikit_build_core.build import build_wheel; build_wheel({str(folder)!r})"], source)
    [wheel] = folder.glob("*.whl")
    return sdist, wheel


def test_the_sdist_holds_the_source_and_nothing_else(packages):
    with tarfile.open(packages[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {name.split("/")[0] for name in names} == {*PACKED, "PKG-INFO"}
    for junk in JUNK:
        assert junk not in names
    assert "native/include/edge_index.h" in names
    assert "tests/test_packaging.py" in names


def test_the_wheel_holds_the_package_and_nothing_else(packages):
    assert packages[1].name.startswith("edge_rag-")
    assert "-cp311-abi3-" in packages[1].name  # one for every Python from 3.11 on
    with zipfile.ZipFile(packages[1]) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edge_rag").rglob("*.py")}
    for room in ("train", "export"):
        expected |= {"edge_rag/" + path.relative_to(ROOT).as_posix() for path in (ROOT / room).rglob("*.py")}
    modules = {name for name in names if name.endswith(".py")}
    compiled = [name for name in names if name.startswith("edge_rag/_native") and not name.endswith(".pyi")]
    assert modules == expected
    assert len(compiled) == 1
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edge_rag" / "models" / "data").rglob("*")}
    assert {"edge_rag/py.typed", "edge_rag/_native.pyi"} <= set(names)
    assert {name for name in data if (ROOT / name).is_file()} <= set(names)
    assert all(name.startswith("edge_rag/") and not name.endswith((".pyc", ".c", ".cpp", ".h")) for name in names)


def test_an_installed_wheel_searches(packages, tmp_path):
    with zipfile.ZipFile(packages[1]) as archive:
        archive.extractall(tmp_path / "site")
    code = """
import sys
sys.path[1:1] = [SITE, NUMPY]
import numpy as np
import edge_rag.train, edge_rag.export
from edge_rag.index import FlatIndex, NativeIndex, build_index
assert all(m.__file__.startswith(SITE) for m in (edge_rag.train, edge_rag.export, edge_rag._native))
rows = np.random.default_rng(0).standard_normal((50, 70)).astype(np.float32)
build_index("x.idx", [(np.arange(50), rows)], 70)
with NativeIndex.open("x.idx") as index:
    ids, _ = index.search(rows[:5], 1)
assert ids.ravel().tolist() == [0, 1, 2, 3, 4]
try:
    import train
except ModuleNotFoundError:
    print("searched")
"""
    site, numpy_home = str(tmp_path / "site"), str(Path(np.__file__).parent.parent)
    code = code.replace("SITE", repr(site)).replace("NUMPY", repr(numpy_home))
    # -I -S: neither this folder nor the editable install of a developer can help
    assert python(["-I", "-S", "-c", code], tmp_path).strip() == "searched"


# ---- who imports whom (ARCHITECTURE.md)

FLOORS = [
    {"interfaces", "errors", "settings", "testing"},
    {"documents", "index", "models"},
    {"library"},
    {"answering"},
    {"evaluation", "bundle"},
    {"serving", "cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
APART = {"train", "export"}  # they meet on disk
APART_MAY_USE = (
    "interfaces",
    "errors",
    "settings",
    "testing",
    "models",
    "answering.prompt",
    "answering.selector",
    "evaluation",
    "documents",
)  # models: what is exported is opened by the runtime, to compare; documents: where a sentence ends; answering: what models see
MAY_CALL_APART = {"cli", "evaluation"}  # inside a function
TRAINING_LIBRARIES = {"torch", "transformers", "trl", "peft", "accelerate", "optimum"}
NETWORK = {
    "socket",
    "ssl",
    "socketserver",
    "ftplib",
    "smtplib",
    "xmlrpc",
    "urllib.request",
    "http.client",
    "http.server",
}
NETWORK |= {"requests", "httpx", "urllib3", "aiohttp", "huggingface_hub"}
MAY_USE_NETWORK = {"edge_rag/models/fetch.py", "edge_rag/models/remote.py"}


def wrong_imports(path, source):
    """Return what the module at `path` (as in the repository) must not import, one line each."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    own = parts if parts[0] == "edge_rag" else ["edge_rag", *parts]
    package = own if path.endswith("__init__.py") else own[:-1]
    room = own[1] if len(own) > 1 else ""
    return [
        f"{path}:{line}: {target}: {reason}"
        for line, target, in_function in imports_of(ast.parse(source), package)
        if (reason := why_wrong(path, room, target, in_function))
    ]


def imports_of(tree, package):
    """Yield (line, dotted name, whether it stands in a function) for every import, with relative ones made absolute."""

    def walk(node, in_function):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield child.lineno, alias.name, in_function
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield child.lineno, f"{module}.{alias.name}", in_function
            elif isinstance(child, ast.Call) and child.args and isinstance(child.args[0], ast.Constant):
                called = getattr(child.func, "attr", "") or getattr(child.func, "id", "")
                if called in ("import_module", "__import__"):
                    yield child.lineno, str(child.args[0].value), in_function
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, in_function or function)

    return walk(tree, False)


def why_wrong(path, room, target, in_function):
    top, _, inner = target.partition(".")
    if top in APART:
        return f"say edge_rag.{top}"
    if any(target == name or target.startswith(name + ".") for name in NETWORK) and path not in MAY_USE_NETWORK:
        return "only models/fetch.py and models/remote.py use the network"
    if top in TRAINING_LIBRARIES and room not in APART:
        return "the runtime never loads the training libraries"
    if top != "edge_rag":
        return ""
    to = inner.split(".")[0]
    if to == room:
        return ""
    if room in APART:
        return "" if inner.startswith(APART_MAY_USE) else "not for training and export"
    if to in APART:
        return "" if room in MAY_CALL_APART and in_function else "only inside a function of cli or evaluation"
    if to == "_native":
        return "" if room == "index" else "only edge_rag.index calls native"
    if room == "" or room == "__main__":  # edge_rag/__init__.py gathers the public names
        return ""
    if room not in FLOOR_OF:
        return f"{room} has no floor in this test"
    if to not in FLOOR_OF:  # a public name from edge_rag itself, which may load anything
        return "" if FLOOR_OF[room] == len(FLOORS) - 1 else "import from the room itself"
    if FLOOR_OF[to] < FLOOR_OF[room] or FLOOR_OF[to] == FLOOR_OF[room] == 0:
        return ""
    return f"{room} must not know {to}"


def test_imports_go_downwards():
    files = [path for room in ("edge_rag", "train", "export") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 10
    wrong = [
        line
        for path in files
        for line in wrong_imports(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("edge_rag/errors.py", "import edge_rag.library"),
        ("edge_rag/index/native.py", "from edge_rag.models import embed"),
        ("edge_rag/index/native.py", "from edge_rag import models"),
        ("edge_rag/index/native.py", "from ..models import embed"),
        ("edge_rag/index/__init__.py", "from .. import library"),
        ("edge_rag/index/native.py", "from edge_rag import Library"),
        ("edge_rag/library/store.py", "def f():\n    from edge_rag.answering.prompt import render"),
        ("edge_rag/library/store.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import edge_rag.cli"),
        ("edge_rag/bundle/pack.py", "from edge_rag.evaluation import runs"),
        ("edge_rag/library/store.py", "from edge_rag import _native"),
        ("edge_rag/library/store.py", "import importlib\nimportlib.import_module('edge_rag.cli')"),
        ("edge_rag/library/store.py", "class A:\n    async def f(self):\n        import edge_rag.cli.main"),
        ("edge_rag/attic/x.py", "import edge_rag.errors"),
        ("edge_rag/cli/train.py", "import edge_rag.train"),
        ("edge_rag/cli/train.py", "from edge_rag import train"),
        ("edge_rag/answering/x.py", "def f():\n    import edge_rag.train"),
        ("edge_rag/cli/train.py", "def f():\n    import train"),
        ("edge_rag/cli/train.py", "def f():\n    from export.onnx import main"),
        ("train/rose.py", "from edge_rag.export import onnx"),
        ("train/rose.py", "from train.data import read"),
        ("train/rose.py", "from edge_rag.library import Library"),
        ("train/rose.py", "from edge_rag.cli import app"),
        ("export/onnx.py", "from ..train import rose"),
        ("edge_rag/models/embed.py", "def f():\n    import torch"),
        ("edge_rag/models/embed.py", "from transformers import AutoModel"),
        ("edge_rag/models/embed.py", "import torch.nn as nn"),
        ("edge_rag/models/embed.py", "import socket"),
        ("edge_rag/cli/main.py", "def f():\n    import urllib.request"),
        ("edge_rag/cli/main.py", "from urllib import request"),
        ("edge_rag/cli/main.py", "from http import client"),
        ("edge_rag/cli/main.py", "from http.client import HTTPSConnection"),
        ("edge_rag/documents/html.py", "import ssl"),
        ("train/rose.py", "import requests"),
    ],
)
def test_a_wrong_import_is_found(path, source):
    assert len(wrong_imports(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("edge_rag/settings.py", "from edge_rag.errors import UsageError"),
        ("edge_rag/index/native.py", "from edge_rag import _native\nfrom edge_rag.errors import IntegrityError"),
        (
            "edge_rag/index/native.py",
            "from .arrays import checked_rows\nfrom . import flat\nfrom ..errors import UsageError",
        ),
        ("edge_rag/cli/main.py", "import edge_rag\nfrom edge_rag import Library\nimport edge_rag.bundle"),
        ("edge_rag/cli/train.py", "def f():\n    from edge_rag.train import rose"),
        ("edge_rag/evaluation/arms.py", "def f():\n    from edge_rag.train import rose"),
        ("edge_rag/__init__.py", "def __getattr__(name):\n    from edge_rag.library import Library"),
        ("edge_rag/models/fetch.py", "import urllib.request\nimport ssl"),
        ("edge_rag/documents/mail.py", "import email\nfrom urllib.parse import quote\nfrom http import HTTPStatus"),
        ("train/rose.py", "import torch\nfrom . import losses\nfrom edge_rag.answering.prompt import render"),
        ("export/onnx.py", "from transformers import AutoModel\nfrom edge_rag.models.catalog import find"),
    ],
)
def test_a_right_import_is_let_through(path, source):
    assert wrong_imports(path, source) == []


# ---- which names are public


def test_public_names_are_those_of_all_and_sorted():
    code = """
import types
import edge_rag
listed = list(getattr(edge_rag, "__all__", []))
seen = {n for n in dir(edge_rag) if not n.startswith("_")}  # before lazy names are loaded
values = {n: getattr(edge_rag, n) for n in seen | set(listed)}
public = {n for n, value in values.items() if n in listed or not isinstance(value, types.ModuleType)}
assert listed == sorted(set(listed)), f"not sorted: {listed}"
assert public == set(listed), public ^ set(listed)
star = {}
exec("from edge_rag import *", star)
assert {n for n in star if not n.startswith("_")} == public, star
try:
    edge_rag.no_such_name
except AttributeError:
    print("fine")
"""
    assert python(["-c", code], ROOT).strip() == "fine"
