"""Errors in OpenAI's shape: the one exception that every endpoint raises and the bodies of the well-known ones."""

from __future__ import annotations

import orjson

from app.llm.simulator.exchange import Reply

_BY_STATUS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request was refused."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: (
        "invalid_request_error",
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    408: ("server_error", "timeout", "The request timed out."),
    413: ("invalid_request_error", "request_too_large", "The request body is too large."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached. Please try again later."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    502: ("server_error", None, "Bad gateway."),
    503: ("server_error", None, "The engine is currently overloaded, please try again later"),
    504: ("server_error", None, "The gateway timed out."),
}


class Refusal(Exception):
    """A request that gets an error: HTTP status and the four fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str = "",
        *,
        kind: str = "",
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        fallback = _BY_STATUS[400] if status < 500 else _BY_STATUS[500]
        default_kind, default_code, default_message = _BY_STATUS.get(status, fallback)
        self.status = status
        self.message = message or default_message
        self.kind = kind or default_kind
        self.param = param
        self.code = code if message or code else default_code
        self.headers = headers
        super().__init__(self.message)

    def reply(self) -> Reply:
        """Renders the error as an answer."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return Reply(self.status, orjson.dumps({"error": error}), self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """Makes the 400 for a request that has the wrong shape."""
    return Refusal(400, message, param=param, code=code)


def unknown_model(model: str) -> Refusal:
    """Makes the 404 for a model that the simulator does not play."""
    message = f"The model `{model[:200]}` does not exist or you do not have access to it."
    return Refusal(404, message, code="model_not_found")
