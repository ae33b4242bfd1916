"""Logs: whatever is logged, however it got there, what names or opens something is not in the line."""

from __future__ import annotations

import dataclasses
import io
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import orjson
import pytest
import structlog

from app.core import logs, server_log, settings
from tests.stack import ROOT

MAIL, PHONE, KEY = "anna@example.com", "+380501234567", "sk-visiblyfake0123456789"
TOLD = f"{MAIL} {PHONE} {KEY} 8.8.8.8"
MASKED = "[email] [phone] sk-[secret] [ip]"

Lines = Callable[[], list[str]]


@pytest.fixture(params=["json", "console"])
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    """Configure logs; return a function that gives the lines which have been written since."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level, hooks = root.handlers[:], root.level, (sys.excepthook, threading.excepthook)
    logs.configure(settings.load({"log_format": request.param}))
    written = io.StringIO()
    made = root.handlers[0]
    assert isinstance(made, logging.StreamHandler)
    made.setStream(written)
    yield lambda: written.getvalue().splitlines()
    root.handlers[:] = handlers
    sys.excepthook, threading.excepthook = hooks
    root.setLevel(level)
    structlog.configure(**before)


@dataclasses.dataclass
class Person:
    mail: str


def clean(written: list[str]) -> bool:
    text = "\n".join(written)
    return bool(text) and not any(secret in text for secret in (MAIL, PHONE, KEY, "8.8.8.8"))


def test_every_value_of_our_events_is_masked(lines: Lines) -> None:
    log = structlog.get_logger("test")
    log.info("happened", text=TOLD, nested={"a": [TOLD, {"b": TOLD}]}, error=ValueError(TOLD), person=Person(MAIL), some=(MAIL, 1),
             several={MAIL}, raw=TOLD.encode(), number=7)  # fmt: skip
    log.warning(f"happened to {TOLD}")
    with structlog.contextvars.bound_contextvars(request_id=f"of {MAIL}"):
        log.info("within")
    assert clean(lines())


def test_exceptions_are_masked_with_their_causes_and_tracebacks(lines: Lines) -> None:
    try:
        try:
            raise ValueError(f"inner {TOLD}")
        except ValueError as error:
            raise RuntimeError(f"outer {TOLD!r}\n{PHONE}") from error
    except RuntimeError:
        structlog.get_logger("test").exception("failed")
        logging.getLogger("library").exception("failed for %s", MAIL)
    written = lines()
    assert clean(written)
    assert "inner [email]" in "\n".join(written)


def test_what_nobody_catches_is_logged_masked_in_whichever_thread(lines: Lines) -> None:
    def fail() -> None:
        raise ValueError(TOLD)

    thread = threading.Thread(target=fail, name="failing")
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    written = lines()
    assert clean(written)
    assert "\n".join(written).count("uncaught") == 2


def test_what_libraries_log_is_masked(lines: Lines) -> None:
    logging.getLogger("library").warning(
        "GET https://%s:%s@example.com/bot%s", "anna", "hunter22", "123456789:" + "Aa1-" * 8 + "Abc"
    )
    logging.getLogger("library").warning("Bearer abcdefg and %(mail)s", {"mail": MAIL})
    written = "\n".join(lines())
    assert not any(secret in written for secret in ("hunter22", "Aa1-", "abcdefg", MAIL))


def test_a_line_stays_json_with_its_numbers_and_times() -> None:
    event = {"event": f"x {TOLD}", "timestamp": "2026-11-21T08:01:04.720019Z", "level": "info", "took": 1.5, "n": 4111111111111111,
             "none": None, "ok": True, "at": "127.0.0.1:6379"}  # fmt: skip
    found = orjson.loads(orjson.dumps(logs.masked(None, "info", dict(event))))
    assert found == {**event, "event": f"x {MASKED}"}


def test_masking_costs_microseconds_a_line() -> None:
    plain = {
        "event": "call_repeated", "reason": "The model's provider failed.", "calls": 2, "delay_s": 0.51, "level": "info",
        "timestamp": "2026-11-21T08:01:04.720019Z", "task_id": "task_07f3a9", "request_id": "4f1d2c3b-aaaa-4bbb-8ccc-0123456789ab",
    }  # fmt: skip
    told = {**plain, "reason": f"The provider refused {TOLD}"}
    for name, event in (("plain", plain), ("with five things to mask", told)):
        started = time.perf_counter()
        for _ in range(1_000):
            logs.masked(None, "info", dict(event))
        each_us = (time.perf_counter() - started) * 1_000
        print(f"\na line {name}: {each_us:.0f} µs")
        assert each_us < 5_000


def test_what_is_logged_where_our_logging_is_not_is_one_json_object_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        record = logging.LogRecord(
            "_granian", logging.ERROR, "", 0, "Unexpected %s", ("exit\nof a worker",), sys.exc_info()
        )
    line = server_log.Line().format(record)
    found = orjson.loads(line)
    assert "\n" not in line
    assert (found["event"], found["level"], found["logger"]) == ("Unexpected exit\nof a worker", "error", "_granian")
    assert found["exception"].endswith("ValueError: of two\nlines")
    assert found["timestamp"].endswith("Z")
    server_log.say("worker: Warm shutdown", sys.stdout)
    assert orjson.loads(capfd.readouterr().err)["event"] == "worker: Warm shutdown"


def test_the_web_server_loads_its_form_of_a_line_and_nothing_else_of_ours() -> None:
    code = (
        "import json, logging, sys\nfrom granian.log import LogLevels, configure_logging\nbefore = set(sys.modules)\n"
        f"configure_logging(LogLevels.warning, json.load(open({str(server_log.CONFIG)!r})))\n"
        "logging.getLogger('_granian').error('told')\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith(('json', 'logging', 'datetime', '_'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    told, loaded = done.stdout.splitlines()
    assert orjson.loads(told)["event"] == "told"
    assert loaded == "['app', 'app.core', 'app.core.server_log']"


def test_what_json_cannot_hold_costs_no_line_and_shows_no_secret(
    lines: Lines, capfd: pytest.CaptureFixture[str]
) -> None:
    log = structlog.get_logger("test")
    log.warning("half", reason=f"\ud800 {TOLD}")  # as a provider's `"\ud800"` is read
    log.warning("large", of={"size": 2**70, "by": TOLD})
    written = lines()
    assert len(written) == 2
    assert clean(written)
    assert [word in line for word, line in zip(("half", "large"), written, strict=True)] == [True, True]
    assert capfd.readouterr().err == ""


def test_a_line_that_cannot_be_written_is_told_of_without_what_was_in_it(
    lines: Lines, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError(KEY)

        __repr__ = __str__

    handler = logging.getLogger().handlers[0]  # ours alone: the tests' own handlers would raise
    handler.handle(logging.LogRecord("test", logging.ERROR, "", 0, "%s of %s", (TOLD, Broken()), None))
    assert not lines()
    (told,) = [orjson.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (told["event"], told["level"], told["logger"]) == ("not_logged", "error", "test")
