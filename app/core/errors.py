"""The tree of errors: each has a stable `code`. How one looks over HTTP is `app.http.problems`' business alone."""

from __future__ import annotations

from typing import Any


class RepliqError(Exception):
    """Anything that goes wrong in a way we know; `code` is the stable word that clients match on."""

    code = "internal_error"
    text = "error.internal"
    """The catalogue's key of the sentence that may be shown to a user."""

    def __init__(self, message: str = "", *, param: str | None = None, code: str | None = None, **facts: Any) -> None:
        super().__init__(message or self.__class__.__doc__ or self.code)
        self.param = param
        self.facts = facts
        if code:
            self.code = code


class ConfigurationError(RepliqError):
    """A setting is wrong or missing; the message names it and says what to do."""

    code = "configuration"


# What the caller did


class InvalidRequest(RepliqError):
    """The request does not fit its schema."""

    code = "invalid_request"


class BadRequest(RepliqError):
    """The request cannot be understood."""

    code = "bad_request"


class MalformedJson(BadRequest):
    """The body is not JSON."""

    code = "malformed_json"


class PayloadTooLarge(RepliqError):
    """The body is larger than 1 MiB."""

    code = "payload_too_large"


class UnsupportedMediaType(RepliqError):
    """The body must be application/json."""

    code = "unsupported_media_type"


class NotAcceptable(RepliqError):
    """None of the media types that the request accepts can be had here."""

    code = "not_acceptable"


class InvalidApiKey(RepliqError):
    """The API key is missing, unknown, revoked or expired."""

    code = "invalid_api_key"


class MissingScope(RepliqError):
    """The API key does not have the scope that this call needs."""

    code = "missing_scope"


class NotFound(RepliqError):
    """There is no such object."""

    code = "not_found"


class ModelNotFound(NotFound):
    """There is no such model."""

    code = "model_not_found"


class AlreadyFinished(RepliqError):
    """The task has finished already."""

    code = "already_finished"


class NotFinished(RepliqError):
    """The task has not finished yet."""

    code = "not_finished"


class AlreadyExists(RepliqError):
    """There is one of that name already."""

    code = "already_exists"


class KeyNotCurrent(RepliqError):
    """The key is revoked or expired, or another has taken its place already."""

    code = "key_not_current"


class DialogArchived(RepliqError):
    """The dialog is archived; restore it first."""

    code = "dialog_archived"


class DialogBusy(RepliqError):
    """The dialog is being answered in; try again when that is done."""

    code = "dialog_busy"


class VersionMismatch(RepliqError):
    """The object has changed since it was read."""

    code = "version_mismatch"


class IdempotencyKeyReused(RepliqError):
    """This Idempotency-Key was used with another body."""

    code = "idempotency_key_reused"


class BadCursor(RepliqError):
    """The cursor is not one of ours."""

    code = "bad_cursor"


class ContextLengthExceeded(RepliqError):
    """The request is longer than the model's context."""

    code = "context_length_exceeded"


class WebhookUrlRefused(RepliqError):
    """This webhook_url is not one that webhooks are delivered to."""

    code = "webhook_url_refused"


# Limits


class LimitExceeded(RepliqError):
    """A limit refuses the request; `retry_ms` says when it may pass, `limits` what stands where."""

    code = "rate_limit_exceeded"
    text = "limit.rate"

    def __init__(self, code: str, *, retry_ms: int, limits: Any = None, message: str = "") -> None:
        super().__init__(message or f"The limit is reached: {code}.", code=code)
        self.retry_ms = retry_ms
        self.limits = limits


class BudgetExceeded(LimitExceeded):
    """A budget does not hold the request; `budget` says which, as the problem's member of that name has it."""

    code = "budget_exceeded"
    text = "error.budget"

    def __init__(self, *, retry_ms: int = 0, limits: Any = None, budget: dict[str, Any] | None = None) -> None:
        super().__init__(
            "budget_exceeded", retry_ms=retry_ms, limits=limits, message="A budget does not hold the request."
        )
        self.budget = budget or {}


# What we could not do


class Unavailable(RepliqError):
    """A server that this needs cannot be reached."""

    code = "unavailable"
    text = "error.unavailable"

    def __init__(self, message: str = "", *, retry_s: int = 2, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_s = retry_s


class Overloaded(Unavailable):
    """The queue is as deep as it may be."""

    code = "overloaded"


class TooManyWaiters(Unavailable):
    """This process holds as many waiting requests as it may."""

    code = "too_many_waiters"


class WaitTimeout(RepliqError):
    """The answer did not come within the wait; the task goes on."""

    code = "wait_timeout"


# What the model's provider did


class UpstreamError(RepliqError):
    """The model's provider failed."""

    code = "upstream_error"
    text = "error.upstream"
    retryable = True

    def __init__(
        self, message: str = "", *, retry_after_s: float | None = None, status: int | None = None, **facts: Any
    ) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s
        self.status = status

    @property
    def plain(self) -> str:
        """Return what may be logged of it: a provider's own words may quote what it was told."""
        return str(self.facts.get("plain") or self)


class UpstreamTimeout(UpstreamError):
    """The model's provider did not answer in time."""

    code = "upstream_timeout"
    text = "error.upstream_timeout"


class UpstreamRateLimited(UpstreamError):
    """The model's provider refuses for its own rate limit."""

    code = "upstream_rate_limited"
    text = "error.upstream_rate_limited"


class UpstreamRefused(UpstreamError):
    """The model's provider refuses the request itself; repeating it would not help."""

    retryable = False


class UpstreamModelNotFound(UpstreamRefused):
    """The model's provider does not have this model."""

    code = "model_not_found"


class UpstreamContextLength(UpstreamRefused):
    """The request is longer than the model's context."""

    code = "context_length_exceeded"


class ContentFiltered(UpstreamRefused):
    """The model's provider refuses the content."""

    code = "content_filtered"
    text = "error.content_filtered"


class DeadlineExceeded(RepliqError):
    """The task's deadline passed before its answer came."""

    code = "deadline_exceeded"
    text = "error.upstream_timeout"


def codes_of(kind: type[RepliqError]) -> set[str]:
    """Return the codes that errors of a kind may have."""
    return {kind.code}.union(*(codes_of(below) for below in kind.__subclasses__()))
