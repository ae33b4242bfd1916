"""Secrets of others, encrypted at rest: AES-256-GCM with keys that come of `SECRET_KEY`, each sealed thing bound to what it is for."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.core import errors

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES = 32
_NONCE_BYTES = 12
_ID_BYTES = 6


class CannotOpen(errors.RepliqError):
    """What was sealed cannot be opened: it was sealed with another secret, or it is not what it is taken for."""


class Sealer:
    """Seals with `secret`; opens what was sealed with it or with one of those `before`."""

    def __init__(self, secret: str, before: Sequence[str] = ()) -> None:
        self._keys = {_key_id(each): _key(each) for each in (*before, secret)}
        self.key_id = _key_id(secret)
        """Which secret seals now: a word that tells nothing of it."""

    def seal(self, plain: str, about: str) -> bytes:
        """Encrypt a text; `about` must be given to open it, so that it cannot be put in another's place."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return bytes(nonce + _cipher(self._keys[self.key_id]).encrypt(nonce, plain.encode(), about.encode()))

    def open(self, sealed: bytes, key_id: str, about: str) -> str:
        """Decrypt a text that was sealed under a `key_id`; raise `CannotOpen`."""
        from cryptography.exceptions import InvalidTag

        key = self._keys.get(key_id)
        if key is None:
            raise CannotOpen("It was sealed with a SECRET_KEY that is neither SECRET_KEY nor in SECRET_KEY_BEFORE.")
        try:
            return str(_cipher(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode()).decode())
        except (InvalidTag, ValueError):
            raise CannotOpen from None


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # not before it is needed: most processes never do

    return AESGCM(key)


def _key(secret: str) -> bytes:
    return _derived(secret, b"repliq sealing, AES-256-GCM", _KEY_BYTES)


def _key_id(secret: str) -> str:
    return _derived(secret, b"repliq sealing, key id", _ID_BYTES).hex()


def _derived(secret: str, purpose: bytes, length: int) -> bytes:
    """Derive a key (HKDF of RFC 5869 with SHA-256, no salt; one block is enough for what is asked here)."""
    extracted = hmac.digest(bytes(hashlib.sha256().digest_size), secret.encode(), "sha256")
    return hmac.digest(extracted, purpose + b"\x01", "sha256")[:length]
