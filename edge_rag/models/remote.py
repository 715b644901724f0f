"""A chat model behind any OpenAI-compatible address: llama-server, Ollama, vLLM, a cloud. Opens sockets, and only to
that address.

The key comes from EDGE_RAG_API_KEY or OPENAI_API_KEY; local servers need none.
"""

import http.client
import ipaddress
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Message, Style

TIMEOUT_S = 120.0  # without a byte; a large model on a CPU may read a prompt for a minute
MAX_LINE = 1 << 20


class RemoteGenerator:
    """An interfaces.Generator over `POST <base>/chat/completions`. Holds nothing between calls."""

    style: Style = "sentence"

    def __init__(self, spec: str, *, context_tokens: int = 2048, timeout_s: float = TIMEOUT_S) -> None:
        """`spec` is http(s)://host/v1#model."""
        base, _, model = spec.partition("#")
        parts = urllib.parse.urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname or not model:
            raise UsageError(f"{spec!r} is no address of a model", mend="write it as http://localhost:8080/v1#MODEL")
        self.name = model
        self.context_tokens = context_tokens
        self._url = base.rstrip("/") + "/chat/completions"
        self._timeout_s = timeout_s
        # a proxy cannot reach this machine's own loopback
        proxies = urllib.request.ProxyHandler({} if _is_loopback(parts.hostname) else None)
        self._opener = urllib.request.build_opener(proxies)

    def __enter__(self) -> "RemoteGenerator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Estimate, on the safe side: the server's tokenizer is not known. A token is taken as three bytes of UTF-8."""
        return sum(len(m.content.encode("utf-8", "replace")) // 3 + 8 for m in messages)

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[str]:
        """Yield the answer as the server streams it. An answer that ends early is a ModelError."""
        body = {
            "model": self.name,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
        }
        request = urllib.request.Request(self._url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        key = os.environ.get("EDGE_RAG_API_KEY") or os.environ.get("OPENAI_API_KEY")
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                if response.headers.get_content_type() == "application/json":  # a server that does not stream
                    yield _text(_parse(response.read()), "message")
                else:
                    yield from self._events(response)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise ModelError(f"{self._url}: {reason}", mend="start the server, or choose another generator") from error

    def _events(self, response: http.client.HTTPResponse) -> Iterator[str]:
        finished = False
        while line := response.readline(MAX_LINE):
            field, _, value = line.decode("utf-8", "replace").strip().partition(":")
            if field != "data":
                continue  # comments and other fields of server-sent events
            if value.strip() == "[DONE]":
                return
            event = _parse(value.encode())
            text = _text(event, "delta")
            if text:
                yield text
            finished = finished or any(choice.get("finish_reason") for choice in event.get("choices") or [])
        if not finished:
            raise ModelError(f"{self._url}: the answer was cut off", mend="ask again")

    def _refused(self, error: urllib.error.HTTPError) -> ModelError:
        said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
        if error.code in (401, 403):
            mend = "set EDGE_RAG_API_KEY"
        elif error.code == 404:
            mend = f"check that the server has a model {self.name!r} and that the address ends in /v1"
        else:
            mend = "see the server's log, or choose another generator"
        return ModelError(f"{self._url}: {error.code} {error.reason}: {said}", mend=mend)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise ModelError(
            f"the server sent something that is not JSON: {data[:80]!r}", mend="check the address"
        ) from error
    if event.get("error"):
        raise ModelError(f"the server reports: {str(event['error'])[:200]}", mend="see the server's log")
    return event


def _text(event: dict[str, Any], part: str) -> str:
    try:
        choices = event.get("choices") or []  # empty in the last event of some servers, which reports usage
        return str(choices[0][part].get("content") or "") if choices else ""
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "the server's answer has no text in it", mend="check that the address is OpenAI-compatible"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
