"""Signatures per Standard Webhooks, which the standardwebhooks libraries and the openai SDK check as they are.

They are an HMAC of a few lines, so the library is used by our tests, as a receiver would use it, and not here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable


def headers(identifier: str, at_s: int, body: bytes, secrets: Iterable[str]) -> dict[str, str]:
    """Return the three headers of a message that is sent at a time, s since the epoch, signed with each of the secrets."""
    text = f"{identifier}.{at_s}.".encode() + body
    signatures = [f"v1,{_signature(secret, text)}" for secret in secrets]
    return {"webhook-id": identifier, "webhook-timestamp": str(at_s), "webhook-signature": " ".join(signatures)}


def _signature(secret: str, text: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_") + "==")
    return base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode()
