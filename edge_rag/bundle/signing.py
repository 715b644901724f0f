"""Ed25519 signatures over a manifest, which has the hash of every part. Keys are the PEM files that OpenSSL writes, too.

PyNaCl does the work: of the kept libraries the smallest (1.4 MB, `cryptography` has 4.8; both bring cffi). It is the [sign]
extra, needed to sign, and where a trusted key is asked for.
"""

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from edge_rag.errors import MissingExtraError, UsageError

# DER of a PKCS#8 private and an X.509 public key, up to the 32 bytes of the key (RFC 8410)
_PRIVATE = bytes.fromhex("302e020100300506032b657004220420")
_PUBLIC = bytes.fromhex("302a300506032b6570032100")
_CONTEXT = b"edge_rag bundle manifest\n"  # a signature for this is good for nothing else


def make_keys(private: Path) -> Path:
    """Write a new private key, and the public one beside it; return the latter's path."""
    seed = bytes(_nacl().SigningKey.generate())
    public = private.with_suffix(".pub")
    if public.exists() or private.exists():
        raise UsageError(f"{private if private.exists() else public} is there already", mend="choose another name")
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii", newline="\n") as file:
        file.write(_pem("PRIVATE KEY", _PRIVATE + seed))
    public.write_text(_pem("PUBLIC KEY", _PUBLIC + public_key(seed)), encoding="ascii", newline="\n")
    return public


def read_private_key(path: Path) -> bytes:
    """Return the 32 bytes that an Ed25519 private key is made from."""
    return _read(path, "PRIVATE KEY", _PRIVATE)


def read_public_key(key: str) -> bytes:
    """Return a public key, given in 64 hexadecimal digits or as the path of a PEM file."""
    try:
        raw = bytes.fromhex(key)
    except ValueError:
        raw = b""
    return raw if len(raw) == 32 else _read(Path(key).expanduser(), "PUBLIC KEY", _PUBLIC)


def public_key(private: bytes) -> bytes:
    return bytes(_nacl().SigningKey(private).verify_key)


def sign(private: bytes, manifest_sha256: bytes) -> bytes:
    return bytes(_nacl().SigningKey(private).sign(_CONTEXT + manifest_sha256).signature)


def is_signed_by(public: bytes, manifest_sha256: bytes, signature: bytes) -> bool:
    nacl = _nacl()
    try:
        nacl.VerifyKey(public).verify(_CONTEXT + manifest_sha256, signature)
    except (nacl_errors().CryptoError, ValueError):
        return False
    return True


def can_check() -> bool:
    try:
        _nacl()
    except MissingExtraError:
        return False
    return True


def _nacl() -> Any:
    try:
        import nacl.signing
    except ImportError as error:
        raise MissingExtraError("sign", "signing, and checking a signature,") from error
    return nacl.signing


def nacl_errors() -> Any:
    import nacl.exceptions

    return nacl.exceptions


def _pem(label: str, der: bytes) -> str:
    return f"-----BEGIN {label}-----\n{base64.b64encode(der).decode()}\n-----END {label}-----\n"


def _read(path: Path, label: str, prefix: bytes) -> bytes:
    mend = "make one: edge-rag bundle keys NAME.pem; or openssl genpkey -algorithm ed25519"
    try:
        lines = path.read_text(encoding="ascii").split()
        text = " ".join(lines)
        begin, end = f"-----BEGIN {label}-----", f"-----END {label}-----"
        if not text.startswith(begin) or not text.endswith(end):
            raise ValueError(f"it is no {label}")
        der = base64.b64decode(text[len(begin) : -len(end)].replace(" ", ""), validate=True)
        if len(der) != len(prefix) + 32 or not der.startswith(prefix):
            raise ValueError("it is no Ed25519 key")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", mend=mend) from error
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"{path} cannot be used as a key: {error}", mend=mend) from error
    return der[len(prefix) :]
