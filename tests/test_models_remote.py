"""The OpenAI-compatible client against a server on this machine."""

import json

import pytest
from loopback import Handler, serving

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Generator, Message
from edge_rag.models import open_generator
from edge_rag.models.remote import RemoteGenerator

ASK = [Message("system", "Be brief."), Message("user", "Where is Zürich?")]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("EDGE_RAG_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


def event(text: str | None = None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


def answer(url: str, *, timeout_s: float = 5.0) -> list[str]:
    with RemoteGenerator(f"{url}/v1#some-model", timeout_s=timeout_s) as generator:
        return list(generator.generate(ASK, max_tokens=7))


def streaming(*events: bytes) -> object:
    return lambda request: request.reply(200, b"".join(events), Content_Type="text/event-stream")


def test_pieces_arrive_in_order_and_the_request_is_complete() -> None:
    body = [
        b": comment\n\n",
        event(),
        event("In der "),
        b"event: x\r\n",
        event("Schweiz é👍"),
        event(finish="stop"),
        b"data: [DONE]\n\n",
    ]
    with serving(streaming(*body)) as server:  # type: ignore[arg-type]
        assert answer(server.url) == ["In der ", "Schweiz é👍"]
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert "Authorization" not in request.headers
    sent = json.loads(request.body)
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is Zürich?"},
    ]
    assert (sent["model"], sent["max_tokens"], sent["temperature"], sent["stream"]) == ("some-model", 7, 0, True)


@pytest.mark.parametrize("variable", ["EDGE_RAG_API_KEY", "OPENAI_API_KEY"])
def test_a_key_is_sent(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "k")
    with serving(streaming(event("x", "stop"))) as server:  # type: ignore[arg-type]
        assert answer(server.url) == ["x"]
    assert server.requests[0].headers["Authorization"] == "Bearer k"


def test_pieces_are_yielded_while_the_server_is_still_writing() -> None:
    import threading

    seen = threading.Event()

    def respond(request: Handler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.end_headers()
        request.wfile.write(event("first"))
        assert seen.wait(5)
        request.wfile.write(event("second", "stop"))

    with serving(respond) as server:
        pieces = RemoteGenerator(f"{server.url}/v1#m").generate(ASK, max_tokens=5)
        assert next(pieces) == "first"
        seen.set()
        assert list(pieces) == ["second"]


def test_a_server_that_does_not_stream_is_understood() -> None:
    whole = json.dumps({"choices": [{"message": {"content": "all at once"}}]}).encode()
    with serving(lambda request: request.reply(200, whole, Content_Type="application/json")) as server:
        assert answer(server.url) == ["all at once"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ([event("half")], "cut off"),
        ([], "cut off"),
        ([b"data: {broken\n\n"], "not JSON"),
        ([b"data: 5\n\n"], "not JSON"),
        ([b'data: {"error": {"message": "out of memory"}}\n\n'], "out of memory"),
        ([b'data: {"choices": [{"x": 1}]}\n\n'], "no text"),
        ([b'data: {"choices": [5]}\n\n'], "no text"),
    ],
)
def test_a_bad_stream_is_a_model_error(reply: list[bytes], said: str) -> None:
    with serving(streaming(*reply)) as server, pytest.raises(ModelError, match=said):  # type: ignore[arg-type]
        answer(server.url)


@pytest.mark.parametrize(
    ("status", "mend"), [(401, "EDGE_RAG_API_KEY"), (404, "some-model"), (500, "log"), (429, "log")]
)
def test_a_refusal_says_what_the_server_said_and_what_to_do(status: int, mend: str) -> None:
    with (
        serving(lambda request: request.reply(status, b'{"error": "no\n such thing"}')) as server,
        pytest.raises(ModelError, match="no such thing") as error,
    ):
        answer(server.url)
    assert mend in error.value.mend


def test_a_silent_server_times_out() -> None:
    import time

    with serving(lambda request: time.sleep(0.5)) as server, pytest.raises(ModelError, match="timed out"):
        answer(server.url, timeout_s=0.1)


def test_nobody_there_is_a_model_error() -> None:
    with serving(lambda request: None) as server:
        url = server.url
    with pytest.raises(ModelError, match="refused") as error:
        answer(url)
    assert "start the server" in error.value.mend


@pytest.mark.parametrize("spec", ["http://host/v1", "http:///v1#m", "http://host/v1#"])
def test_an_incomplete_address_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="is no address of a model"):
        open_generator(spec)


def test_open_generator_knows_addresses() -> None:
    generator: Generator = open_generator("http://localhost:1/v1#m", context_tokens=999)
    assert (generator.name, generator.context_tokens) == ("m", 999)
    generator.close()
    generator.close()


def test_the_estimate_is_above_what_real_tokenizers_count() -> None:
    generator = RemoteGenerator("http://localhost:1/v1#m")
    english = "The quick brown fox jumps over the lazy dog. " * 20  # 10 tokens each in common vocabularies
    assert generator.count_tokens([Message("user", english)]) >= 200
