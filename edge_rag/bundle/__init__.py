"""One file with a library, its models and what its answers depend on: build it, prove it, ask it. container.py has its bytes."""

from edge_rag.bundle.build import build
from edge_rag.bundle.manifest import Manifest, Part
from edge_rag.bundle.opened import Bundle
from edge_rag.bundle.signing import make_keys
from edge_rag.bundle.verify import verify

__all__ = ["Bundle", "Manifest", "Part", "build", "make_keys", "verify"]
