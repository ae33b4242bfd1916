"""Sealing: what opens what, and what opens nothing."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.core import sealing
from app.core.sealing import CannotOpen, Sealer

SECRET, OTHER = "a-secret-visibly-fake", "another-secret-visibly-fake"


def test_what_is_sealed_is_opened_with_the_same_secret_for_the_same_thing() -> None:
    sealer = Sealer(SECRET)
    sealed = sealer.seal("sk-key ключ", "bot|openai")
    assert b"sk-key" not in sealed
    assert sealer.open(sealed, sealer.key_id, "bot|openai") == "sk-key ключ"
    assert sealed != sealer.seal("sk-key ключ", "bot|openai")  # a nonce of its own each


def test_it_opens_for_nothing_else() -> None:
    sealer = Sealer(SECRET)
    sealed = sealer.seal("sk-key", "bot|openai")
    for about in ("bot|azure", "another|openai", ""):
        with pytest.raises(CannotOpen):
            sealer.open(sealed, sealer.key_id, about)
    for changed in (sealed[:-1] + bytes([sealed[-1] ^ 1]), bytes([sealed[0] ^ 1]) + sealed[1:], sealed[:5], b""):
        with pytest.raises(CannotOpen):
            sealer.open(changed, sealer.key_id, "bot|openai")


def test_an_earlier_secret_opens_while_it_is_known_and_the_new_one_seals() -> None:
    old, new = Sealer(SECRET), Sealer(OTHER, [SECRET])
    sealed = old.seal("sk-key", "x")
    assert new.open(sealed, old.key_id, "x") == "sk-key"
    assert new.key_id == Sealer(OTHER).key_id != old.key_id
    with pytest.raises(CannotOpen, match="SECRET_KEY_BEFORE"):
        Sealer(OTHER).open(sealed, old.key_id, "x")


def test_the_key_is_derived_as_rfc_5869_says() -> None:
    theirs = HKDF(hashes.SHA256(), 32, None, b"repliq sealing, AES-256-GCM").derive(SECRET.encode())
    assert sealing._key(SECRET) == theirs
