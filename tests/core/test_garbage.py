"""Python's collector: what stands when a process begins to serve is looked at no more, and what is new still is."""

from __future__ import annotations

import subprocess
import sys

_TRY = """
import gc, weakref
from app.core import garbage

class Knot:
    pass

def tie():
    knot = Knot()
    knot.itself = knot
    return weakref.ref(knot)

kept = [Knot() for _ in range(1000)]
garbage.settle()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
assert not any(isinstance(one, Knot) for one in gc.get_objects())
gone = tie()
for _ in range(20_001):
    kept.append(Knot())
assert gone() is None, "a knot that nobody holds is still there"
"""


def test_what_stands_is_left_out_and_what_is_new_is_collected() -> None:
    done = subprocess.run([sys.executable, "-c", _TRY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
