"""The whole of the OpenAPI document fuzzed: no 500, no hang, and no answer that the document does not allow."""

from __future__ import annotations

import json
import os
import time

import hypothesis
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from app.dialogs import lines
from app.http import factory, openapi
from tests.dialogs.test_transfers import dialog, messages
from tests.stack import KEY, Stack

# A provider's failures (5xx of these codes) are an answer, not a crash.
_UPSTREAM = {"upstream_error", "upstream_timeout", "upstream_rate_limited", "content_filtered", "deadline_exceeded"}
_SLOW_S = 15.0  # the stack's longest synchronous wait is 6 s
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))

# A stream's lines are no JSON Schema's business: good ones of an export with some members put wrong, and no lines at all.
_ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.dictionaries(st.text(max_size=5), st.text(max_size=5))
)
_LINES = st.sampled_from([dialog(1), messages(dialog(1), 1)[0], {"object": "export.end", "dialogs": 1, "messages": 1}])
_WRONG = st.dictionaries(st.sampled_from(sorted({*dialog(1), *messages(dialog(1), 1)[0]})), _ODD, max_size=2)
_FILES = st.lists(
    st.builds(lambda line, wrong: json.dumps({**line, **wrong}).encode(), _LINES, _WRONG) | st.binary(max_size=50),
    max_size=8,
).map(b"\n".join)
schemathesis.openapi.media_type(lines.MEDIA_TYPES[0], _FILES, aliases=lines.MEDIA_TYPES[1:])

schema = schemathesis.openapi.from_dict(openapi.document(factory.all_routes()))


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_no_request_breaks_the_api(case: schemathesis.Case, stack: Stack) -> None:
    started = time.monotonic()
    response = case.call(
        base_url=f"http://127.0.0.1:{stack.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=30
    )
    assert time.monotonic() - started < _SLOW_S
    if response.status_code >= 500:
        code = response.json()["error"]["code"]
        if code in _UPSTREAM:
            return
    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, content_type_conformance])
