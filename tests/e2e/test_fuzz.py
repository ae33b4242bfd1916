"""The whole of the OpenAPI document fuzzed: no 500, no hang, and no answer that the document does not allow."""

from __future__ import annotations

import os
import time

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from app.http import factory, openapi
from tests.stack import KEY, Stack

# A provider's failures (5xx of these codes) are an answer, not a crash.
_UPSTREAM = {"upstream_error", "upstream_timeout", "upstream_rate_limited", "content_filtered", "deadline_exceeded"}
_SLOW_S = 9.0  # the stack's longest synchronous wait is 6 s
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))


schema = schemathesis.openapi.from_dict(openapi.document(factory.all_routes()))


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_no_request_breaks_the_api(case: schemathesis.Case, stack: Stack) -> None:
    started = time.monotonic()
    response = case.call(
        base_url=f"http://127.0.0.1:{stack.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=20
    )
    assert time.monotonic() - started < _SLOW_S
    if response.status_code >= 500:
        code = response.json()["error"]["code"]
        if code in _UPSTREAM:
            return
    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, content_type_conformance])
