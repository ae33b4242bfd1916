"""Signatures: those of receivers' own libraries find them right, and only those of the right message, time and secret."""

from __future__ import annotations

import base64
import datetime
import time

import openai
import pytest
import standardwebhooks

from app.bots import signing
from app.webhooks import courier, signatures

BODY = courier.body("task.completed", "2026-03-10T12:00:00.000Z", {"id": "task_00", "result": "Привіт, світе \u2028"})
NOW = int(time.time())


def signed(*secrets: str, at_s: int | None = None, body: bytes = BODY) -> dict[str, str]:
    return signatures.headers("msg_1", int(time.time()) if at_s is None else at_s, body, secrets)


def test_the_standardwebhooks_library_finds_it_right() -> None:
    secret = signing.new()
    found = standardwebhooks.Webhook(secret).verify(BODY, signed(secret))
    assert found["data"]["result"] == "Привіт, світе \u2028"


def test_the_openai_sdk_finds_it_right() -> None:
    secret = signing.new()
    with openai.OpenAI(api_key="sk-test", webhook_secret=secret) as client:
        client.webhooks.verify_signature(BODY.decode(), signed(secret))
        event = client.webhooks.unwrap(BODY.decode(), signed(secret))
    assert event.type == "task.completed"  # type: ignore[comparison-overlap]


def test_it_is_the_librarys_own_signature() -> None:
    secret = signing.new()
    at = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    theirs = standardwebhooks.Webhook(secret).sign("msg_1", at, BODY.decode())
    assert signed(secret, at_s=NOW)["webhook-signature"] == theirs


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (signed("whsec_" + base64.b64encode(b"another").decode()), BODY),
        ({**signed("whsec_c2VjcmV0"), "webhook-id": "msg_2"}, BODY),
        (signed("whsec_c2VjcmV0", at_s=NOW - 1000), BODY),
        ({**signed("whsec_c2VjcmV0"), "webhook-timestamp": str(NOW - 1)}, BODY),
        (signed("whsec_c2VjcmV0"), BODY.replace(b"task_00", b"task_01")),
    ],
)
def test_anything_else_is_found_wrong(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook("whsec_c2VjcmV0").verify(body, headers)
    with (
        openai.OpenAI(api_key="sk-test", webhook_secret="whsec_c2VjcmV0") as client,
        pytest.raises(openai.InvalidWebhookSignatureError),
    ):
        client.webhooks.verify_signature(body.decode(), headers)


def test_after_a_rotation_who_has_either_secret_finds_it_right() -> None:
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)
    secrets = signing.Secrets("whsec_bmV3LW5ldy1uZXc=", "whsec_b2xkLW9sZC1vbGQ=", until)
    headers = signed(*secrets.valid(until - datetime.timedelta(seconds=1)))
    for secret in ("whsec_bmV3LW5ldy1uZXc=", "whsec_b2xkLW9sZC1vbGQ="):
        standardwebhooks.Webhook(secret).verify(BODY, headers)
    assert secrets.valid(until) == ["whsec_bmV3LW5ldy1uZXc="]


def test_secrets_show_themselves_to_no_log() -> None:
    assert "whsec_" not in repr(signing.Secrets("whsec_bmV3LW5ldy1uZXc=", "whsec_b2xkLW9sZC1vbGQ="))
