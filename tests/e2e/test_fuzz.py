"""The whole of the OpenAPI document fuzzed: no 500, no hang, and no answer that the document does not allow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
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
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "6"))  # besides some 55 of each operation that are its schemas' edges

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

document = openapi.document(factory.all_routes())
SECOND = [path for path in document["paths"] if f"/v1{path}" in document["paths"]]  # leads to what /v1 leads to
schema = schemathesis.openapi.from_dict(document).exclude(path=SECOND)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.trust_env = False  # it would look for proxies in the environment and for passwords in .netrc each time
        made.headers.clear()
        yield made


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_no_request_breaks_the_api(case: schemathesis.Case, stack: Stack, session: requests.Session) -> None:
    started = time.monotonic()
    place = f"http://127.0.0.1:{stack.port}"
    response = case.call(place, session, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
    assert time.monotonic() - started < _SLOW_S
    if response.status_code >= 500:
        code = response.json()["error"]["code"]
        if code in _UPSTREAM:
            return
    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, content_type_conformance])


def test_a_second_path_is_documented_as_the_first_is() -> None:
    assert SECOND
    for path in SECOND:
        first, second = ({**document["paths"][place]} for place in (f"/v1{path}", path))
        assert _unnamed(first) == _unnamed(second), path


def _unnamed(operations: dict[str, Any]) -> dict[str, Any]:
    return {
        method: {name: value for name, value in operation.items() if name != "operationId"}
        for method, operation in operations.items()
    }
