"""The one table from our errors to HTTP: status, title and OpenAI's type of each code, in one body that both sorts of client read."""

from __future__ import annotations

import re
from typing import Any

import flask
import orjson
import pydantic
import werkzeug.exceptions

from app.core import errors, logs, texts
from app.http import limits
from app.limits.standing import Standing

_log = logs.get(__name__)

_INVALID, _AUTH, _SERVER = "invalid_request_error", "authentication_error", "server_error"
TABLE: dict[str, tuple[int, str, str]] = {
    "malformed_json": (400, "Malformed JSON", _INVALID),
    "bad_request": (400, "Bad request", _INVALID),
    "invalid_api_key": (401, "Invalid API key", _AUTH),
    "missing_scope": (403, "Missing scope", "permission_error"),
    "not_found": (404, "Not found", _INVALID),
    "model_not_found": (404, "Model not found", _INVALID),
    "method_not_allowed": (405, "Method not allowed", _INVALID),
    "not_acceptable": (406, "Not acceptable", _INVALID),
    "already_finished": (409, "Already finished", _INVALID),
    "already_exists": (409, "Already exists", _INVALID),
    "key_not_current": (409, "Key not current", _INVALID),
    "not_finished": (409, "Not finished", _INVALID),
    "dialog_archived": (409, "Dialog archived", _INVALID),
    "dialog_busy": (409, "Dialog busy", _INVALID),
    "idempotency_in_progress": (409, "The first request with this key is still running", _INVALID),
    "version_mismatch": (412, "Version mismatch", _INVALID),
    "payload_too_large": (413, "Payload too large", _INVALID),
    "unsupported_media_type": (415, "Unsupported media type", _INVALID),
    "invalid_request": (422, "Invalid request", _INVALID),
    "idempotency_key_reused": (422, "Idempotency key reused", _INVALID),
    "bad_cursor": (422, "Bad cursor", _INVALID),
    "context_length_exceeded": (422, "Context length exceeded", _INVALID),
    "webhook_url_refused": (422, "Webhook URL refused", _INVALID),
    "daily_limit_exceeded": (429, "Daily limit exceeded", "rate_limit_error"),
    "rate_limit_exceeded": (429, "Rate limit exceeded", "rate_limit_error"),
    "token_limit_exceeded": (429, "Token limit exceeded", "rate_limit_error"),
    "concurrency_limit_exceeded": (429, "Concurrency limit exceeded", "rate_limit_error"),
    "too_many_wrong_keys": (429, "Too many wrong keys", _AUTH),
    "budget_exceeded": (429, "Budget exceeded", "insufficient_quota"),
    "internal_error": (500, "Internal error", _SERVER),
    "upstream_error": (502, "Upstream error", _SERVER),
    "upstream_rate_limited": (503, "Upstream rate limited", _SERVER),
    "content_filtered": (502, "Content filtered", _SERVER),
    "overloaded": (503, "Overloaded", _SERVER),
    "unavailable": (503, "Unavailable", _SERVER),
    "too_many_waiters": (503, "Too many waiters", _SERVER),
    "upstream_timeout": (504, "Upstream timeout", _SERVER),
    "wait_timeout": (504, "Wait timeout", _SERVER),
    "deadline_exceeded": (504, "Deadline exceeded", _SERVER),
    # only ever the end of a task
    "cancelled": (409, "Cancelled", _INVALID),
    "task_lost": (500, "Task lost", _SERVER),
    "poison": (500, "Poison task", _SERVER),
}
# What the OpenAI SDKs would repeat by themselves without any use.
NO_RETRY = {
    "wait_timeout",
    "upstream_error",
    "upstream_timeout",
    "upstream_rate_limited",
    "content_filtered",
    "deadline_exceeded",
    "poison",
    "task_lost",
    "cancelled",
    "already_finished",
    "already_exists",
    "key_not_current",
    "dialog_archived",
    "dialog_busy",
    "budget_exceeded",
}
_TWO_MINUTES_MS = 120_000


def respond(
    code: str,
    message: str,
    *,
    param: str | None = None,
    status: int | None = None,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> flask.Response:
    """Build the problem of a code; `members` stand beside RFC 9457's."""
    known, title, kind = TABLE.get(code, TABLE["internal_error"])
    status = status or known
    body = {
        "type": f"urn:repliq:error:{code}", "title": title, "status": status, "detail": message, "instance": flask.request.path,
        "error": {"message": message, "type": kind, "code": code, "param": param}, **members,
    }  # fmt: skip
    response = flask.Response(
        orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS), status, headers, content_type="application/problem+json"
    )
    if code in NO_RETRY:
        response.headers.setdefault("x-should-retry", "false")
    return response


def of_error(error: errors.RepliqError) -> flask.Response:
    """Build the problem of one of our errors."""
    if isinstance(error, errors.ConfigurationError):
        return of_unexpected(error)
    headers: dict[str, str] = dict(error.facts.get("headers", {}))
    members: dict[str, Any] = dict(error.facts.get("members", {}))
    message = str(error)
    if isinstance(error, errors.LimitExceeded):
        message = _limit(error, headers, members)
    elif isinstance(error, errors.Unavailable):
        headers["Retry-After"] = str(error.retry_s)
        if error.code == "unavailable":
            _log.warning("unavailable", reason=message)
            message = texts.text(error.text)  # which server, and where, is not the caller's business
    elif isinstance(error, errors.InvalidApiKey):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, errors.UpstreamError) and error.retryable:
        message = texts.text(error.text)
    status = 500 if error.facts.get("for_user") else None  # api.md: what the provider did is a 500 to a bot's `send`
    return respond(error.code, message, param=error.param, status=status, headers=headers, **members)


def _limit(error: errors.LimitExceeded, headers: dict[str, str], members: dict[str, Any]) -> str:
    headers["Retry-After"] = str(max(1, -(-error.retry_ms // 1000)))
    if error.retry_ms > _TWO_MINUTES_MS:
        headers["x-should-retry"] = "false"
    if isinstance(error.limits, Standing):
        headers |= limits.headers(error.limits)
        if error.code == "daily_limit_exceeded":
            members |= {"remaining": 0, "limit": error.limits.limit, "resets_at": limits.resets_at(error.limits)}
            return limits.day_text(error.limits, error.facts.get("language"))
    if isinstance(error, errors.BudgetExceeded):
        members |= {"budget": error.budget}
        return texts.text(
            f"limit.budget.{error.budget['period']}", error.facts.get("language"), **_budget(error.budget)
        )
    return texts.text("limit.rate", error.facts.get("language"), seconds=headers["Retry-After"])


def _budget(told: dict[str, Any]) -> dict[str, str]:
    """Return what the sentence of a refusal by a budget says; its figures without the zeros at their ends."""
    short = {name: told[f"{name}_usd"].rstrip("0").rstrip(".") for name in ("limit", "spent", "reserved")}
    return {"scope": told["scope"], "resets_at": told["resets_at"], **short}


def of_validation(error: pydantic.ValidationError, where: str = "") -> flask.Response:
    """Build the 422 that names the first bad field and lists all."""
    found = [
        {"loc": _loc(item["loc"], where), "msg": item["msg"].removeprefix("Value error, "), "type": item["type"]}
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    first = found[0]
    return respond(
        "invalid_request", f"{first['loc'] or 'body'}: {first['msg']}", param=first["loc"] or None, errors=found
    )


def _loc(loc: tuple[int | str, ...], where: str) -> str:
    return ".".join(str(part) for part in ((where, *loc) if where else loc))


def of_http(error: werkzeug.exceptions.HTTPException) -> flask.Response:
    """Build the problem of what Flask itself refuses."""
    codes = {
        400: "bad_request",
        404: "not_found",
        405: "method_not_allowed",
        406: "not_acceptable",
        413: "payload_too_large",
        415: "unsupported_media_type",
    }
    code = codes.get(error.code or 500, "internal_error" if (error.code or 500) >= 500 else "bad_request")
    response = respond(code, re.sub(r"\s+", " ", error.description or ""), status=error.code)
    if isinstance(error, werkzeug.exceptions.MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return response


def of_unexpected(error: Exception) -> flask.Response:
    """Build the bare 500; the log has the trace under the request's id."""
    _log.error("unexpected", exc_info=error)
    return respond("internal_error", texts.text("error.internal"))
