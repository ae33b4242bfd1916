"""Python's collector of cyclic garbage: what a process has made by the time it serves stays for ever, and need not be looked at again."""

from __future__ import annotations

import gc

_YOUNG = 10_000
"""New objects until the youngest are looked at; Python's own 700 are passed several times in each request."""


def settle() -> None:
    """Leave all that there is now out of the collections to come. For a process that is about to serve, once."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
