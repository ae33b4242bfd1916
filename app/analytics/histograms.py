"""Histograms of response times, after HdrHistogram's scheme: whole numbers alone, so that SQL and Python agree, and merging is adding.

Up to 127 ms each has a bucket of its own; above that the seven most significant bits of a time are kept. So a bucket is at most 1/64 as
wide as the times in it, and its middle is off by 0.79 % of them at most. The percentile of any set of histograms is that of their sum.
"""

from __future__ import annotations

import bisect
import fractions
import functools
import itertools
from collections.abc import Mapping, Sequence

_BITS = 7
_EXACT = 1 << _BITS
_HALF = _EXACT >> 1
MOST_MS = 2**31 - 1
"""The longest time there is a bucket for; PostgreSQL's `int`."""
BUCKETS = (31 - _BITS) * _HALF + _EXACT


def bucket_of(ms: int) -> int:
    """Return the bucket of a time in ms; raise `ValueError` for what is none."""
    if not 0 <= ms <= MOST_MS:
        raise ValueError(f"{ms} ms is not a response time")
    shift = max(0, ms.bit_length() - _BITS)
    return shift * _HALF + (ms >> shift)


def sql(ms: str) -> str:
    """Return `bucket_of` as an SQL expression over an `int` expression."""
    powers = ", ".join(str(1 << bits) for bits in range(_BITS, 31))
    shift = f"width_bucket({ms}, ARRAY[{powers}])"
    return f"({shift} * {_HALF} + ({ms} >> {shift}))"


def span(bucket: int) -> tuple[int, int]:
    """Return the shortest and the longest time of a bucket, ms."""
    if not 0 <= bucket < BUCKETS:
        raise ValueError(f"there is no bucket {bucket}")
    shift = max(0, bucket // _HALF - 1)
    first = (bucket - shift * _HALF) << shift
    return first, first + (1 << shift) - 1


def middle(bucket: int) -> float:
    """Return the middle of a bucket, ms: what its times are taken for."""
    first, last = span(bucket)
    return (first + last) / 2


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """Return a quantile in ms by the nearest-rank definition (the smallest time that a share `q` of all does not exceed).

    `counts`: how many times fell into each bucket; `q`: 0 to 1. None without any.
    """
    return quantiles(counts, [q])[0]


def quantiles(counts: Mapping[int, int], qs: Sequence[float]) -> list[float | None]:
    """Return several quantiles, as `quantile` does."""
    ranks = [_rank(q, sum(counts.values())) for q in qs]
    found: list[float | None] = [None] * len(qs)
    buckets = sorted(counts)
    reached = list(itertools.accumulate(counts[bucket] for bucket in buckets))
    for number, rank in enumerate(ranks):
        place = bisect.bisect_left(reached, rank)
        if place < len(buckets):
            found[number] = middle(buckets[place])
    return found


def _rank(q: float, count: int) -> int:
    if not 0 <= q <= 1:
        raise ValueError(f"{q} is not between 0 and 1")
    share = _share(q)
    return max(1, -(-share.numerator * count // share.denominator))


@functools.cache
def _share(q: float) -> fractions.Fraction:
    """Return the number as it is written: 0.07 * 100 is more than 7 in floats."""
    return fractions.Fraction(str(q))
