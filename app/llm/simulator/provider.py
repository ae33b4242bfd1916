"""The provider that is played: which endpoint a request is for, how it is treated, and the counts of all requests."""

from __future__ import annotations

import hmac
import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from app.llm.simulator import behaviour as behaviours
from app.llm.simulator import completions, dialects, embeddings, models
from app.llm.simulator.behaviour import Behaviour
from app.llm.simulator.dialects import Azure
from app.llm.simulator.exchange import Reply, Request
from app.llm.simulator.faults import Faults
from app.llm.simulator.refusals import Refusal, invalid, unknown_model
from app.llm.simulator.tallies import Tallies

logger = logging.getLogger(__name__)

_METHODS = {"/chat/completions": "POST", "/embeddings": "POST", "/models": "GET"}
_CONTROL = {"/health": "GET", "/_sim/stats": "GET", "/_sim/reset": "POST", "/_sim/behaviour": "POST"}


@dataclass(slots=True)
class _Visit:
    """One request on its way to a reply, with what must be known of it even when it is refused."""

    request: Request
    path: str
    route: str
    delay_s: float = 0.0
    call: str = ""
    model: str = ""
    azure: Azure | None = None
    deployment: str = ""


class Provider:
    """Answers requests one by one; it knows nothing of sockets."""

    def __init__(self, *, seed: int = 0, required_key: str = "", dialect: str = "openai") -> None:
        self.tallies = Tallies()
        self._dialect = dialects.DIALECTS[dialect]
        self._faults = Faults(seed)
        self._required_key = required_key.encode()
        self._default: Behaviour | None = None
        self._fingerprint = f"fp_sim_{seed & 0xFFFFFFFF:08x}"
        self._ids = itertools.count(1)
        self._run = os.urandom(6).hex()  # ids of two runs never meet; answers do not depend on it

    def begin(self, request: Request) -> Reply:
        """Gives the reply to a request; it must be handed to `end` when it is over."""
        path = request.path.partition("?")[0]
        path = path[3:] if path.startswith("/v1/") else path
        try:
            return self._control(path, request) if path in _CONTROL else self._serve(path, request)
        except Refusal as refusal:
            return refusal.reply()

    def end(self, reply: Reply, *, sent: bool) -> None:
        """Takes note that a reply is over; `sent` is false when the client went away first."""
        if reply.counted:
            reply.counted = False
            outcome = reply.fate.value if reply.fate else str(reply.status)
            self.tallies.end(outcome if sent or reply.fate else "disconnect", reply.call, reply.model)

    def _serve(self, path: str, request: Request) -> Reply:
        visit = _Visit(request, path, "/models" if path.startswith("/models/") else path)
        found = dialects.azure(request.path)
        if found:
            visit.deployment, visit.route, version = found
            visit.azure = Azure(version)
        prefix = "/azure" if found else "/v1"
        self.tallies.begin(f"{prefix}{visit.route}" if visit.route in _METHODS else "(others)")
        try:
            reply = self._answer(visit)
            reply = visit.azure.answer(reply) if visit.azure else reply
        except Refusal as refusal:
            reply = (visit.azure or self._dialect).refuse(refusal)
        except Exception:
            logger.exception("the simulator could not answer %s %s", request.method, request.path)
            reply = Refusal(500).reply()
        reply.counted = True
        reply.delay_s += visit.delay_s
        reply.call, reply.model = visit.call, visit.model
        return reply

    def _answer(self, visit: _Visit) -> Reply:
        request = visit.request
        if request.refusal:
            raise request.refusal
        _check_method(visit.route, request, _METHODS)
        body = _read_body(request) if request.method == "POST" else {}
        if visit.azure:
            body["model"] = visit.deployment
        model = body.get("model", "")
        if visit.route == "/chat/completions":
            visit.call, visit.model = _call_name(request, body), str(model)
            self.tallies.call(visit.model, visit.call)
        self._check_key(request, visit.azure)
        body = (visit.azure or self._dialect).heeded(body)
        wanted, scope = self._behaviour(request, model)
        visit.delay_s = self._faults.delay_s(wanted)
        return self._endpoint(visit, body, self._faults.settle(wanted, scope))

    def _endpoint(self, visit: _Visit, body: dict[str, Any], treatment: Behaviour) -> Reply:
        if visit.route == "/models":
            if treatment.interruption:
                return Reply(fate=treatment.interruption[0])
            if visit.path == visit.route:
                return models.listing(self._dialect)
            return models.one(visit.path.removeprefix("/models/"), self._dialect)
        if visit.route == "/embeddings":
            _check_model(body, self._dialect.plays_embeddings)
            return embeddings.embed(body, treatment)
        _check_model(body, self._dialect.plays_chat)
        return completions.complete(body, treatment, f"chatcmpl-{self._run}{next(self._ids):012x}", self._fingerprint)

    def _behaviour(self, request: Request, model: object) -> tuple[Behaviour, str]:
        """Chooses the header's pairs before the model name's before the default; the text names the counter. A default for all is
        before everything."""
        if self._default and self._default.all:
            return self._default, "default"
        text = request.headers.get(b"x-simulate", b"").decode("latin-1")
        if not text and isinstance(model, str):
            text = models.pairs(model)
        if text:
            return behaviours.parse(text), text
        return self._default or behaviours.PLAIN, "default"

    def _check_key(self, request: Request, azure: Azure | None) -> None:
        if not self._required_key:
            return
        scheme, _, key = request.headers.get(b"authorization", b"").partition(b" ")
        if azure:
            scheme, key = b"bearer", request.headers.get(b"api-key", b"")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._required_key):
            raise Refusal(401)

    def _control(self, path: str, request: Request) -> Reply:
        if request.refusal:
            raise request.refusal
        _check_method(path, request, _CONTROL)
        if path == "/health":
            return Reply(body=b'{"status":"ok"}')
        if path == "/_sim/stats":
            return Reply(body=orjson.dumps(self.tallies.report()))
        if path == "/_sim/reset":
            self._reset()
        else:
            pairs = _read_body(request)
            self._default = behaviours.from_mapping(pairs) if pairs else None
        return Reply(body=b'{"ok":true}')

    def _reset(self) -> None:
        self.tallies.reset()
        self._faults.reset()
        self._default = None


def _check_method(path: str, request: Request, methods: dict[str, str]) -> None:
    allowed = methods.get(path)
    if allowed is None:
        raise Refusal(404, f"Invalid URL ({request.method} {request.path[:200]})")
    if request.method != allowed and (request.method, allowed) != ("HEAD", "GET"):
        message = f"Not allowed to {request.method} on {request.path[:200]} (HINT: perhaps you meant to use {allowed})"
        raise Refusal(405, message, code="method_not_supported", headers=(("Allow", allowed),))


def _check_model(body: dict[str, Any], plays: Callable[[str], bool]) -> None:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("you must provide a model parameter")
    if not plays(model):
        raise unknown_model(model)


def _read_body(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(request.body or b"{}")
    except orjson.JSONDecodeError as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}.") from None
    if not isinstance(body, dict):
        raise invalid("The JSON body of your request must be an object.")
    return body


def _call_name(request: Request, body: dict[str, Any]) -> str:
    """Names a model call by the task that made it, else by what the user said last."""
    named = request.headers.get(b"x-task-id") or request.headers.get(b"x-request-id")
    if named:
        return named.decode("latin-1")
    messages: Any = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            return str(message.get("content"))
    return "(no user message)"
