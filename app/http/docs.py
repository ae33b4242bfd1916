"""The page that shows the API's description, allowed to run and to load no more than it is made of."""

from __future__ import annotations

import base64
import hashlib
import re

import flask
import flask_swagger_ui

_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_POLICY = (
    "default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def blueprint() -> flask.Blueprint:
    """Return the page under /docs. It says nothing that a request said, and asks nobody else whether the description is valid."""
    config = {"app_name": "Repliq", "validatorUrl": None, "oauth2RedirectUrl": "/docs/oauth2-redirect.html"}
    made: flask.Blueprint = flask_swagger_ui.get_swaggerui_blueprint("/docs", "/openapi.json", config=config)
    made.after_request(_guarded)
    return made


def _guarded(response: flask.Response) -> flask.Response:
    if response.mimetype == "text/html" and not response.direct_passthrough:
        found = _INLINE.findall(response.get_data(as_text=True))
        hashes = " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found
        )
        response.headers["Content-Security-Policy"] = _POLICY.format(hashes=hashes)
    return response
