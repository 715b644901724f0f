"""One file with a library, its models and what its answers depend on: build it, prove it, ask it. container.py has its bytes.

Building and proving stand in `edge_rag.bundle.build` and `edge_rag.bundle.verify`: who only opens a bundle does not load them.
"""

from edge_rag.bundle.manifest import Manifest, Part
from edge_rag.bundle.opened import Bundle

__all__ = ["Bundle", "Manifest", "Part"]
