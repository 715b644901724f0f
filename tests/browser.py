"""A real browser, spoken to in the DevTools protocol over two pipes: JSON messages that end in NUL."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# The pipes are numbered descriptors, which Windows does not hand on.
_NAMES = ("chromium", "chromium-browser", "google-chrome") if os.name == "posix" else ()
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)
PATIENCE = 120  # seconds of silence
PHONE, DESKTOP = (390, 844), (1280, 900)

# The browser reads commands from descriptor 3 and writes to 4. Both are moved out of the way first, lest one overwrite the other.
_LAUNCHER = """
import os, sys
reads, writes = (os.dup(os.dup(os.dup(int(fd)))) for fd in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One tab. `requests` and `complaints` are what it asked the network for, and what the console said."""

    def __init__(self, browser: "_Pipe") -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def open(self, path: Path, size: tuple[int, int], *, dark: bool = False, scripts: bool = True) -> None:
        width, height = size
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + phone, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._browser.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._browser.wait_for("Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """Run a script from outside of the page, which the page's own policy does not hold back."""
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])

    def requests(self) -> list[str]:
        sent = self._browser.seen("Network.requestWillBeSent")
        return [event["request"]["url"] for event in sent]

    def complaints(self) -> list[str]:
        names = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(event) for name in names for event in self._browser.seen(name)]


@contextmanager
def opened() -> Iterator[Page]:
    """Start the browser with a profile of its own, and end it."""
    assert CHROMIUM
    theirs, mine = os.pipe()
    my_reads, their_writes = os.pipe()
    # The profile of a browser that ends is still written to: what cannot be removed then is left to the system.
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [
            "--headless",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--disable-gpu",
            "--no-first-run",
        ]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, str(theirs), str(their_writes), CHROMIUM, *flags, "about:blank"],
            pass_fds=(theirs, their_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(their_writes)
        with os.fdopen(my_reads, "rb", buffering=0) as reads, os.fdopen(mine, "wb", buffering=0) as writes:
            pipe = _Pipe(reads.fileno(), writes.fileno())
            try:
                yield Page(pipe)
                pipe.call("Browser.close")
            finally:
                process.terminate()
                process.wait(20)


class _Pipe:
    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes = reads, writes
        self._ids = itertools.count(1)
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        id = next(self._ids)
        message: dict[str, Any] = {"id": id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._writes, left) :]
        while (reply := self._next()).get("id") != id:
            self.events.append(reply)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def wait_for(self, event: str) -> None:
        while not self.seen(event):
            self.events.append(self._next())

    def seen(self, event: str) -> list[dict[str, Any]]:
        return [e["params"] for e in self.events if e.get("method") == event]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reads], [], [], PATIENCE)
            assert ready, "the browser is silent"
            piece = os.read(self._reads, 1 << 20)
            assert piece, "the browser ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
