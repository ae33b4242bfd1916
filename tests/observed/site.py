"""A whole stack that is watched: it sends its traces to a collector of ours, logs all it can, and every secret of it is marked."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import orjson
import redis

from tests import servers
from tests.collector import Collector
from tests.stack import KEY, Process, Stack, eventually, free_port
from tests.webhooks.receiver import Message, Receiver, Reply

MARKS = {
    name: f"{before}visiblyfake{name}7Qz3mark9Xk2{behind}"
    for name, before, behind in (
        ("secret", "", ""), ("database", "", ""), ("redis", "", ""), ("metrics", "", ""), ("api", "rq_", ""),
        ("openai", "sk-", ""), ("leaky", "sk-", ""), ("stored", "opaque-", ""), ("flower", "", ""),
        ("telegram", "5550001234:AAF", "0123456789abcdef"), ("collector", "", ""), ("hook", "", ""),
    )
}  # fmt: skip
"""A secret each; the words between are what is looked for, so that one which is cut or quoted is found, too."""
SAID = {
    "phone": "+380 50 765 43 21", "mail": "olena.marked@example.com", "card": "4111 1111 1111 1111",
    "text": "the visiblyfakesaid secret of my grandmother",
}  # fmt: skip
USER = "marked-user-oleksandra"
CONFIG = """
default = "sim"

[providers.sim]
kind = "openai"
base_url = "{sim}"
api_key_env = "OPENAI_API_KEY"

[providers.leaky]
kind = "openai"
base_url = "{leaky}"
api_key = "{key}"

[models.sim]
chain = ["sim/sim"]

[models.slow]
chain = ["sim/sim:delay=3000"]

[models.long]
chain = ["sim/sim:tps=20,words=10"]

[models.shaky]
chain = ["leaky/down", "sim/sim"]

[models.plain]
chain = ["leaky/plain"]

[models.broken]
chain = ["leaky/down"]

[models.refuses-the-key]
chain = ["leaky/refuses-the-key"]

[models.refuses-the-text]
chain = ["leaky/refuses-the-text"]
"""


class _Guarded:  # `url` is a property of both servers
    """A server whose URL has a password in it; all else is the server's."""

    def __init__(self, server: Any, url: str) -> None:
        self._server = server
        self.url = url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)


def _let_in(server: Any) -> None:
    with redis.Redis(unix_socket_path=str(server.socket_path)) as client:
        client.execute_command("ACL", "SETUSER", "marked", "on", f">{MARKS['redis']}", "~*", "&*", "+@all")


class MarkedStack(Stack):
    """A stack whose servers want a password."""

    def _start_postgres(self) -> Any:
        made = super()._start_postgres()
        return _Guarded(made, made.url.replace("@/", f":{MARKS['database']}@/", 1))

    def _start_redis(self, *, persistent: bool) -> Any:
        port = free_port()
        made = servers.start_redis(self.folder, persistent=persistent, options={"port": str(port)})
        _let_in(made)
        return _Guarded(made, f"redis://marked:{MARKS['redis']}@127.0.0.1:{port}/0")

    def let_in(self) -> None:
        """Give the user his password again, of which a Redis begun anew knows nothing."""
        _let_in(self.redis)

    def _make_default_bot(self) -> None:
        super()._make_default_bot()
        filled = CONFIG.format(sim=self.simulator.base_url, leaky=self.env["LEAKY_URL"], key=MARKS["leaky"])
        Path(self.env["LLM_CONFIG"]).write_text(filled)

    def start_others(self, api_url: str) -> list[Process]:
        """Start what serves Telegram, and Flower."""
        front = self._process("telegram", ["telegram", "--poll", "1", "--api-url", api_url])
        return [front.start(), self._process("flower", ["flower"]).start()]


@dataclasses.dataclass(slots=True)
class Site:
    """The stack, who takes its traces, a provider that quotes what it was told, and a receiver of webhooks."""

    stack: MarkedStack
    collector: Collector
    leaky: Receiver
    hooks: Receiver
    others: list[Process]

    def close(self) -> None:
        for process in self.others:
            process.stop(10)
        self.stack.close()
        for other in (self.collector, self.leaky, self.hooks):
            other.close()

    def ended(self, trace_id: str, *names: str) -> dict[str, Any]:
        """Wait until spans of these names have come of a trace; return the last of each."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: {span.name for span in self.collector.of(trace_id)} >= set(names), 60, every_s=0.2)
        found = self.collector.of(trace_id)
        missing = set(names) - {span.name for span in found}
        assert not missing, f"{missing} did not come, but {[span.name for span in found]}"
        return {name: next(span for span in reversed(found) if span.name == name) for name in names}

    def logs(self) -> dict[str, str]:
        """Return what each process has written."""
        return {path.stem: path.read_text(errors="replace") for path in sorted(self.stack.folder.glob("*.log"))}

    def lines(self, *processes: str) -> list[dict[str, Any]]:
        """Return the lines of processes' logs; fail where one is no event as JSON."""
        found = []
        for name, text in self.logs().items():
            if name.partition("-")[0] in processes:
                found += [{**_event(name, line), "process": name} for line in text.splitlines() if line]
        return found


def _event(process: str, line: str) -> dict[str, Any]:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise AssertionError(f"{process} wrote a line that is no JSON: {line}") from None
    assert isinstance(event, dict), line
    assert {"event", "level", "timestamp"} <= set(event), line
    return event


def _leak(message: Message) -> Reply:
    """Answer as the model's name says; what is refused is quoted, as some providers do."""
    if not message.path.startswith("/v1"):  # Telegram's: its path holds the token
        return 404, {}, orjson.dumps({"ok": False, "error_code": 404, "description": f"Not Found: {message.path}"})
    model = message.json["model"]
    if model == "plain":
        said = {"role": "assistant", "content": "well"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        whole = {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "plain-1",
            "choices": [choice],
            "usage": usage,
        }
        return 200, {"Content-Type": "application/json"}, orjson.dumps(whole)
    status = {"refuses-the-key": 401, "refuses-the-text": 400}.get(model, 500)
    quoted = f"cannot take {message.headers['authorization']} with {message.body.decode()}"
    error = {"error": {"message": quoted, "type": "invalid_request_error", "code": "refused"}}
    return status, {"Content-Type": "application/json"}, orjson.dumps(error)


def start(folder: Path) -> Site:
    """Start it: two workers, beat, Flower, and a front in Telegram that is refused."""
    collector, leaky, hooks = Collector(), Receiver(), Receiver()
    leaky.reply = _leak
    place = f"http://127.0.0.1:{leaky.port}"
    stack = MarkedStack(workers=2, threads=8, beat=True, env={
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-collector-key={MARKS['collector']}",
        "OTEL_RESOURCE_ATTRIBUTES": "host.name=of-the-test", "LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG",
        "LLM_CONFIG": str(folder / "providers.toml"), "LEAKY_URL": f"{place}/v1",
        "WEBHOOK_ALLOW_PRIVATE": "true", "DEFAULT_MODEL": "sim", "USER_WINDOW": "100",
        "SECRET_KEY": MARKS["secret"], "API_KEYS": f"{KEY},{MARKS['api']}", "OPENAI_API_KEY": MARKS["openai"],
        "METRICS_TOKEN": MARKS["metrics"], "TELEGRAM_BOT_TOKEN": MARKS["telegram"],
        "FLOWER_PORT": str(free_port()), "FLOWER_BASIC_AUTH": f"admin:{MARKS['flower']}",
    })  # fmt: skip
    site = Site(stack, collector, leaky, hooks, stack.start_others(place))
    stack.wait_for_workers("worker-0", "worker-1")
    eventually(lambda: "Visit me" in site.logs().get("flower", ""), 90)
    return site
