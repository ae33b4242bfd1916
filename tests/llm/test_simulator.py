"""The simulator as its users meet it: a real process, the official SDK, and raw sockets where HTTP matters."""

from __future__ import annotations

import itertools
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from app.llm.simulator.process import SimulatorProcess

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
DIALOG: list[Any] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatorProcess]:
    with SimulatorProcess() as process:
        yield process


@pytest.fixture
def simulator(running: SimulatorProcess) -> SimulatorProcess:
    running.reset()
    return running


@pytest.fixture(scope="module")
def client(running: SimulatorProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0, timeout=30) as client:
        yield client


def ask(client: openai.OpenAI, model: str = "gpt-4o-mini", messages: list[Any] = HELLO, **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages, **more)


def connect(simulator: SimulatorProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", simulator.port), timeout=30)


def request(method: str, path: str, body: bytes = b"", headers: str = "", version: str = "1.1") -> bytes:
    head = f"{method} {path} HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def chat(model: str = "gpt-4o-mini", messages: Any = HELLO, **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": messages, **more}).encode()


def exchange(simulator: SimulatorProcess, data: bytes) -> bytes:
    """Sends raw bytes and reads until the server closes."""
    with connect(simulator) as peer:
        peer.sendall(data)
        return b"".join(iter(lambda: peer.recv(65536), b""))


def post(simulator: SimulatorProcess, body: bytes, path: str = CHAT, headers: str = "") -> tuple[int, Any]:
    answer = exchange(simulator, request("POST", path, body, headers + "Connection: close\r\n"))
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def wait_until(condition: Any) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true within thirty seconds"
        time.sleep(0.005)


# Answers


def test_an_answer_shows_the_context_it_was_given(simulator, client):
    completion = ask(client, messages=DIALOG)
    text = completion.choices[0].message.content
    assert text.startswith('You said: "c". Before that: "a". (4 messages, system prompt of 28 characters: "You are a')
    assert completion.object == "chat.completion"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.prompt_tokens == (7 + 3) + 3 * (1 + 3)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_the_same_question_has_the_same_answer_and_another_has_another(simulator, client):
    first, second = ask(client, messages=DIALOG), ask(client, messages=DIALOG)
    assert first.choices == second.choices
    assert first.usage == second.usage
    assert first.id != second.id
    assert ask(client).choices != first.choices


def test_a_stream_has_the_words_of_the_whole_answer_and_its_usage(simulator, client):
    whole = ask(client, messages=DIALOG)
    chunks = list(ask(client, messages=DIALOG, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_include_usage_says_nothing_of_usage(simulator, client):
    assert all(chunk.usage is None and chunk.choices for chunk in ask(client, stream=True))


def test_max_tokens_cuts_the_answer_and_says_length(simulator, client):
    for limit in ("max_tokens", "max_completion_tokens"):
        completion = ask(client, **{limit: 3})
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage.completion_tokens == 3
        assert len(completion.choices[0].message.content.split()) == 3


def test_n_gives_so_many_choices_whole_and_streamed(simulator, client):
    whole = ask(client, n=3)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in ask(client, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_words_set_the_length_of_the_answer(simulator, client):
    for words in (2, 40):
        assert len(ask(client, f"sim:words={words}").choices[0].message.content.split()) == words


def test_tools_and_content_parts_are_accepted(simulator, client):
    parts = [{"type": "text", "text": "see "}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    completion = ask(client, messages=[{"role": "user", "content": parts}], tools=tools)
    assert 'You said: "see [image_url]"' in completion.choices[0].message.content


def test_embeddings_are_unit_vectors_that_depend_on_the_text_alone(simulator, client):
    create = client.embeddings.create
    one, same, other = create(model="text-embedding-3-small", input=["cat", "cat", "dog"]).data
    assert one.embedding == same.embedding != other.embedding
    assert len(one.embedding) == 1536
    assert math.isclose(sum(x * x for x in one.embedding), 1, rel_tol=1e-5)
    floats = create(model="text-embedding-3-small", input="cat", dimensions=8, encoding_format="float")
    assert len(floats.data[0].embedding) == 8


def test_models_are_listed_and_found_by_name(simulator, client):
    assert {"gpt-4o", "gpt-4o-mini", "gpt-4.1-mini", "gpt-3.5-turbo"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("sim-large").id == "sim-large"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-99")


# Refusals


def test_an_unknown_model_is_not_found(simulator, client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "gpt-99")
    assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b'{"model": "gpt-4o"', None, None),
        (b"[]", None, None),
        (b'{"messages": []}', None, None),
        (b'{"model": "gpt-4o"}', "messages", "missing_required_parameter"),
        (chat(messages=[]), "messages", "empty_array"),
        (chat(messages="hi"), "messages", "invalid_type"),
        (chat(messages=["hi"]), "messages[0]", "invalid_type"),
        (chat(messages=[{"content": "hi"}]), "messages[0].role", "missing_required_parameter"),
        (chat(messages=[{"role": "king", "content": "hi"}]), "messages[0].role", "invalid_value"),
        (chat(messages=[{"role": "user"}]), "messages[0].content", "invalid_type"),
        (
            chat(messages=[{"role": "user", "content": [{"type": "text"}]}]),
            "messages[0].content[0].text",
            "invalid_type",
        ),
        (chat(n=0), "n", "integer_below_min_value"),
        (chat(n=129), "n", "integer_above_max_value"),
        (chat(max_tokens="4"), "max_tokens", "invalid_type"),
        (chat(stream="yes"), "stream", "invalid_type"),
        (chat(stream_options={"include_usage": True}), "stream_options", None),
        (chat("sim:delay=soon"), "delay", "invalid_simulator_pair"),
        (chat("sim:colour=red"), "colour", "invalid_simulator_pair"),
    ],
)
def test_a_wrong_body_is_refused_with_the_field_that_is_wrong(simulator, body, param, code):
    status, answer = post(simulator, body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["type"], answer["error"]["param"], answer["error"]["code"]) == (
        "invalid_request_error",
        param,
        code,
    )


def test_a_wrong_path_or_method_is_refused(simulator):
    assert post(simulator, b"{}", "/v1/nothing")[0] == 404
    answer = exchange(simulator, request("GET", CHAT, headers="Connection: close\r\n"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: POST\r\n" in answer


def test_a_required_key_must_be_given():
    with SimulatorProcess(require_key="sk-right") as process:
        with openai.OpenAI(base_url=process.base_url, api_key="sk-right", max_retries=0) as client:
            ask(client)
        with (
            openai.OpenAI(base_url=process.base_url, api_key="sk-wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            ask(client)
        assert caught.value.code == "invalid_api_key"
        assert post(process, chat())[0] == 401


# Behaviours


def test_a_rate_limit_error_carries_retry_after(simulator, client):
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, "sim:status=429,retry_after=2")
    assert caught.value.response.headers["retry-after"] == "2"
    assert caught.value.code == "rate_limit_exceeded"


def test_a_server_error_comes_by_name_by_header_and_by_default(simulator, client):
    for more in ({"model": "sim:status=503"}, {"extra_headers": {"X-Simulate": "status=503"}}):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, **more)
        assert caught.value.status_code == 503
    simulator.behave(status=503)
    with pytest.raises(openai.InternalServerError):
        ask(client)
    with pytest.raises(openai.InternalServerError):
        client.models.list()
    ask(client, "sim:words=2")  # has pairs of its own
    simulator.behave()
    ask(client)


def test_a_hang_up_in_mid_stream_raises_after_the_chunks_that_came(simulator, client):
    stream = ask(client, "sim:hangup=3", stream=True)
    received = [next(stream) for _ in range(3)]
    assert received[2].choices[0].delta.content == " said:"
    with pytest.raises(openai.APIConnectionError):
        next(stream)
    for more in ({"stream": True, "model": "sim:hangup=0"}, {"model": "sim:hangup=3"}):
        with pytest.raises(openai.APIConnectionError):
            ask(client, **more)
    assert simulator.stats()["by_status"] == {"hangup": 3}


def test_a_hang_up_sends_exactly_so_many_chunks(simulator):
    answer = exchange(simulator, request("POST", CHAT, chat("sim:hangup=3", stream=True)))
    assert answer.count(b"data: ") == 3
    assert not answer.endswith(b"0\r\n\r\n")


def test_a_stall_sends_its_chunks_and_then_nothing(simulator, client):
    with connect(simulator) as peer:
        peer.sendall(request("POST", CHAT, chat("sim:stall=2", stream=True)))
        answer = b""
        while answer.count(b"\n\n") < 2:
            answer += peer.recv(65536)
        peer.settimeout(0.05)
        with pytest.raises(TimeoutError):
            peer.recv(1)
        assert simulator.stats()["in_flight"] == 1
    wait_until(lambda: simulator.stats()["in_flight"] == 0)
    with pytest.raises(openai.APITimeoutError):
        ask(client, "sim:stall=2", timeout=0.1)


def takes(action: Any, least_s: float, most_s: float) -> bool:
    """Never takes less, and in the best of five tries, on a machine that is shared, less than the most."""
    for _ in range(5):
        started_s = time.monotonic()
        action()
        took_s = time.monotonic() - started_s
        assert took_s >= least_s
        if took_s < most_s:
            return True
    return False


def test_delays_and_paces_take_their_time(simulator, client):
    ask(client)
    assert takes(lambda: ask(client, "sim:delay=100"), 0.1, 0.4)
    assert takes(lambda: ask(client, "sim:delay=100,jitter=50"), 0.1, 0.45)
    assert takes(lambda: ask(client, "sim:ttft=100"), 0.1, 0.4)
    assert takes(lambda: ask(client, "sim:words=10,tps=100"), 0.1, 0.4)
    assert takes(lambda: list(ask(client, "sim:words=10,tps=100,ttft=100", stream=True)), 0.18, 0.5)


def test_a_streams_chunks_come_one_by_one_at_the_pace(simulator, client):
    def at_the_pace() -> bool:
        stream = ask(client, "sim:words=5,tps=25", stream=True)
        times_s = [time.monotonic() for chunk in stream if chunk.choices[0].delta.content]
        assert len(times_s) == 5
        return all(later - earlier > 0.01 for earlier, later in itertools.pairwise(times_s))

    assert any(at_the_pace() for _ in range(10)), "a reader that was kept waiting gets several at once, but not always"


def test_the_first_requests_of_a_key_fail_and_later_ones_succeed(simulator, client):
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            ask(client, "sim:fail=2,key=abc")
    ask(client, "sim:fail=2,key=abc")
    with pytest.raises(openai.RateLimitError):
        ask(client, "sim:fail=1,key=other,status=429")
    with pytest.raises(openai.APIConnectionError):
        ask(client, "sim:fail=1,key=third,hangup=0")
    ask(client, "sim:fail=1,key=third,hangup=0")


def test_requests_beyond_rpm_are_limited_with_retry_after(simulator, client):
    for _ in range(2):
        ask(client, "sim:rpm=2")
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, "sim:rpm=2")
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_filter_and_context_refuse_the_prompt(simulator, client):
    for model, code in (("sim:filter=1", "content_filter"), ("sim:context=10", "context_length_exceeded")):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, model, messages=DIALOG)
        assert caught.value.code == code
    ask(client, "sim:context=10")


def test_malformed_is_broken_json_and_empty_is_empty_content(simulator, client):
    with pytest.raises(json.JSONDecodeError):
        post(simulator, chat("sim:malformed=1"))
    assert ask(client, "sim:empty=1").choices[0].message.content == ""
    assert not any(chunk.choices[0].delta.content for chunk in ask(client, "sim:empty=1", stream=True))


# Counts


def test_calls_are_counted_by_task_and_else_by_what_was_said(simulator, client):
    for _ in range(2):
        ask(client, extra_headers={"X-Task-ID": "task-1"})
    ask(client)
    with pytest.raises(openai.InternalServerError):
        ask(client, "sim:status=500", extra_headers={"X-Request-ID": "request-1"})
    stats = simulator.stats()
    assert stats["calls"] == {"task-1": 2, "hello": 1, "request-1": 1}
    assert stats["answered"] == {"task-1": 2, "hello": 1}
    assert stats["by_path"] == {CHAT: 4}
    assert stats["by_status"] == {"200": 3, "500": 1}
    assert stats["by_model"] == {"gpt-4o-mini": 3, "sim:status=500": 1}
    assert (stats["total"], stats["in_flight"], stats["max_in_flight"]) == (4, 0, 1)
    simulator.reset()
    assert simulator.stats()["calls"] == {}


def test_a_client_that_leaves_in_mid_stream_is_noticed(simulator):
    with connect(simulator) as peer:
        peer.sendall(request("POST", CHAT, chat("sim:words=1000,tps=10", stream=True)))
        peer.recv(100)
    wait_until(lambda: simulator.stats()["by_status"] == {"disconnect": 1})
    assert simulator.stats()["in_flight"] == 0
    assert simulator.stats()["answered"] == {}


# HTTP


def test_pipelined_requests_are_answered_in_their_order(simulator):
    bodies = [chat("sim:delay=30", [{"role": "user", "content": "first"}]), chat(), chat(stream=True), chat()]
    data = b"".join(request("POST", CHAT, body) for body in bodies)
    data += request("POST", CHAT, chat(messages=[{"role": "user", "content": "last"}]), "Connection: close\r\n")
    answer = exchange(simulator, data)
    assert answer.count(b"HTTP/1.1 200 OK") == 5
    assert answer.index(b"first") < answer.index(b"chat.completion.chunk") < answer.index(b"last")


def test_many_pipelined_requests_are_all_answered(simulator):
    data = request("POST", CHAT, chat()) * 500 + request("GET", "/health", headers="Connection: close\r\n")
    assert exchange(simulator, data).count(b"HTTP/1.1 200 OK") == 501


def test_a_chunked_body_is_read_byte_by_byte(simulator):
    body = chat()
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    data = head.encode() + pieces
    with connect(simulator) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            peer.send(bytes([byte]))
        assert b"You said" in b"".join(iter(lambda: peer.recv(65536), b""))


def test_http_1_0_gets_a_stream_without_chunks_and_a_closed_connection(simulator):
    answer = exchange(simulator, request("POST", CHAT, chat(stream=True), version="1.0"))
    assert b"Transfer-Encoding" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")


def test_what_is_not_http_gets_a_400_and_what_is_too_large_a_413(simulator):
    assert exchange(simulator, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    huge = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n".encode()
    assert exchange(simulator, huge).startswith(b"HTTP/1.1 413 ")
    assert exchange(simulator, b"GET / HTTP/1.1\r\nX: " + b"x" * 400_000).startswith(b"HTTP/1.1 431 ")


def test_a_body_of_several_megabytes_is_read(simulator):
    assert post(simulator, chat(messages=[{"role": "user", "content": "x" * 7_000_000}]))[0] == 200


def test_a_slow_reader_gets_the_whole_stream(simulator):
    body = chat("sim:words=10000", stream=True, n=4)  # nine megabytes: more than the kernel buffers
    with connect(simulator) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
        peer.sendall(request("POST", CHAT, body, "Connection: close\r\n"))
        wait_until(lambda: simulator.stats()["in_flight"] == 1)
        answer = b"".join(iter(lambda: peer.recv(65536), b""))
    assert answer.count(b"data: ") >= 40_000 + 9
    assert answer.endswith(b"0\r\n\r\n")


# The process


def test_it_stops_at_once_and_cleanly_and_comes_back_at_the_same_address():
    process = SimulatorProcess().start()
    port = process.port
    with connect(process) as peer:
        peer.sendall(request("POST", CHAT, chat("sim:stall=1", stream=True)))
        peer.recv(100)
        started_s = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - started_s < 4  # it waits for nobody, and was not killed
    with process:
        assert process.port == port
        assert process.stats()["total"] == 0


def test_a_port_that_is_taken_is_one_clear_line(simulator):
    command = [sys.executable, "-m", "app.llm.simulator", "--port", str(simulator.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"simulator cannot listen on 127.0.0.1:{simulator.port}: the address is in use by another process\n"
    )


def test_a_unix_socket_serves_too(tmp_path):
    path = tmp_path / "sim.sock"
    command = [sys.executable, "-m", "app.llm.simulator", "--uds", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"simulator listening on unix:{path}\n"
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            peer.sendall(request("GET", "/health"))
            assert peer.recv(1000).endswith(b'{"status":"ok"}')
        child.terminate()
        assert child.wait(30) == 0
    assert not path.exists()


def test_a_default_for_all_is_before_what_a_request_brings(simulator: SimulatorProcess) -> None:
    simulator.behave(status=503, all=True)
    assert post(simulator, chat("sim:words=3"))[0] == 503
    assert post(simulator, chat("gpt-4o-mini"))[0] == 503
    simulator.behave(status=503)
    assert post(simulator, chat("sim:words=3"))[0] == 200
    simulator.behave()
    assert post(simulator, chat("gpt-4o-mini"))[0] == 200


def test_outcomes_are_counted_by_model(simulator: SimulatorProcess) -> None:
    for model in ("gpt-4o-mini", "gpt-4o-mini", "sim:status=503"):
        post(simulator, chat(model))
    post(simulator, chat("no-such-model"))
    expected = {"gpt-4o-mini": {"200": 2}, "sim:status=503": {"503": 1}, "no-such-model": {"404": 1}}
    wait_until(lambda: simulator.stats()["outcomes"] == expected)


def test_azures_paths_answer_with_its_filters_findings(simulator: SimulatorProcess) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=simulator.endpoint, api_key="any", api_version="2024-10-21", max_retries=0, timeout=30
    ) as azure:
        answer = azure.chat.completions.create(model="sim", messages=HELLO)
        assert answer.choices[0].model_extra["content_filter_results"]["hate"]["filtered"] is False  # type: ignore[index]
        chunks = list(azure.chat.completions.create(model="sim", messages=HELLO, stream=True))
        assert (chunks[0].choices, "prompt_filter_results" in chunks[0].model_extra) == ([], True)  # type: ignore[operator]
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks[1:]) == answer.choices[0].message.content
        )
        assert azure.embeddings.create(model="sim", input="x").data
        with pytest.raises(openai.RateLimitError) as limited:
            azure.chat.completions.create(model="sim:status=429,retry_after=1.5", messages=HELLO)
        assert limited.value.response.headers["retry-after-ms"] == "1500"
        assert limited.value.response.headers["retry-after"] == "2"
        with pytest.raises(openai.BadRequestError) as filtered:
            azure.chat.completions.create(model="sim:filter=1", messages=HELLO)
        assert filtered.value.body["innererror"]["code"] == "ResponsibleAIPolicyViolation"  # type: ignore[index]
        with pytest.raises(openai.NotFoundError) as missing:
            azure.chat.completions.create(model="nobody", messages=HELLO)
        assert missing.value.code == "DeploymentNotFound"
    assert simulator.stats()["by_path"]["/azure/chat/completions"] == 5
