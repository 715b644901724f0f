"""What a bundle is made of and what it needs, as a CycloneDX 1.5 list: its parts, and the Python packages that open it."""

import json
import re
from collections.abc import Sequence
from typing import Any

from edge_rag.bundle.manifest import Part
from edge_rag.models.onnx_folder import TOKENIZER


def sbom(parts: Sequence[Part]) -> bytes:
    """List parts and packages. No times and no random serial number: the same bundle has the same list."""
    models = [
        {
            "type": "machine-learning-model"
            if part.role in ("generator", "adapter", "embedder", "selector")
            else "data",
            "bom-ref": part.name,
            "name": part.name,
            "hashes": [{"alg": "SHA-256", "content": part.sha256}],
            **_licences(part.licence),
            **({"externalReferences": [{"type": "distribution", "url": part.source}]} if part.source else {}),
        }
        for part in parts
    ]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "edge-rag",
                "name": "edge-rag",
                "version": edge_rag_version(),
            }
        },
        "components": [*models, *_packages(_extras(parts))],
    }
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode("ascii")


def _extras(parts: Sequence[Part]) -> set[str]:
    needed = {"llm"} if any(part.role == "generator" for part in parts) else set()
    return needed | ({"tokenizers"} if any(part.name.endswith(f"/{TOKENIZER}") for part in parts) else set())


def edge_rag_version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # 20 ms, which opening a bundle does not need

    try:
        return version("edge-rag")
    except PackageNotFoundError:  # a tree that was never installed
        return "0"


def _packages(extras: set[str]) -> list[dict[str, Any]]:
    """Return the packages that the runtime needs, theirs included, as they are here."""
    from importlib.metadata import PackageNotFoundError, distribution

    found: dict[str, dict[str, Any]] = {}
    wanted = [("edge-rag", frozenset(extras))]
    while wanted:
        name, asked = wanted.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        known = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
        if known in found:
            continue
        found[known] = {
            "type": "library",
            "bom-ref": f"pkg:pypi/{known}@{package.version}",
            "purl": f"pkg:pypi/{known}@{package.version}",
            "name": known,
            "version": package.version,
            **_licences(_licence_of(package.metadata)),
        }
        for requirement in package.requires or ():
            needed = _needed(requirement, asked)
            if needed:
                wanted.append((needed, frozenset()))
    return [found[name] for name in sorted(found)]


def _needed(requirement: str, extras: frozenset[str]) -> str:
    """Return the name that a requirement is about; "" if it is for other extras or for another system."""
    from packaging.requirements import Requirement  # comes with onnxruntime

    parsed = Requirement(requirement)
    if parsed.marker is not None and not any(parsed.marker.evaluate({"extra": extra}) for extra in (extras or {""})):
        return ""
    return parsed.name


def _licence_of(metadata: Any) -> str:
    stated = metadata["License-Expression"] or metadata["License"] or ""
    if stated and "\n" not in stated.strip():
        return str(stated).strip()
    classifiers = [c.rsplit(" :: ", 1)[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")]
    return ", ".join(classifiers) or "unknown"


def _licences(licence: str) -> dict[str, Any]:
    return {"licenses": [{"license": {"name": licence}}]}
