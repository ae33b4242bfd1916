"""Histograms: one bucket for a time wherever it is asked for, and percentiles that are nearly those of the times themselves."""

from __future__ import annotations

import fractions
import math
from collections import Counter

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from app.analytics import histograms
from app.core.database import Sessions

TIMES = st.one_of(st.integers(0, 300), st.integers(0, 120_000), st.integers(0, histograms.MOST_MS))
SHARES = st.sampled_from([0.0, 0.01, 0.07, 0.29, 0.5, 0.57, 0.9, 0.95, 0.99, 0.999, 1.0])


def exact(times: list[int], q: float) -> int:
    """Return the quantile of the times themselves, by the nearest rank."""
    return sorted(times)[max(1, math.ceil(fractions.Fraction(str(q)) * len(times))) - 1]


def counted(times: list[int]) -> Counter[int]:
    return Counter(map(histograms.bucket_of, times))


def test_buckets_follow_each_other_and_leave_no_time_out() -> None:
    expected = 0
    for bucket in range(histograms.BUCKETS):
        first, last = histograms.span(bucket)
        assert first == expected
        assert histograms.bucket_of(first) == histograms.bucket_of(last) == bucket
        assert last - first + 1 <= max(1, first / 64)
        expected = last + 1
    assert expected == histograms.MOST_MS + 1


@given(TIMES)
def test_the_middle_of_a_bucket_is_nearly_the_time(ms: int) -> None:
    middle = histograms.middle(histograms.bucket_of(ms))
    assert abs(middle - ms) <= 0.0079 * ms
    assert ms >= 128 or middle == ms


def test_sql_and_python_put_a_time_into_the_same_bucket(analytics_sessions: Sessions) -> None:
    edges = [(1 << bits) + step for bits in range(31) for step in (-1, 0, 1)]
    times = sorted({*range(1200), *(ms for ms in edges if ms >= 0), histograms.MOST_MS, 59_999, 120_000, 3_600_000})
    query = f"SELECT ms, {histograms.sql('ms')} FROM unnest(CAST(:times AS int[])) AS ms"
    with analytics_sessions.begin() as session:
        found = session.execute(sqlalchemy.text(query), {"times": times}).all()
    assert {ms: bucket for ms, bucket in found} == {ms: histograms.bucket_of(ms) for ms in times}  # noqa: C416


@given(st.lists(TIMES, min_size=1, max_size=80), SHARES)
def test_a_percentile_is_that_of_the_times_within_its_error(times: list[int], q: float) -> None:
    found, wanted = histograms.quantile(counted(times), q), exact(times, q)
    assert found is not None
    assert abs(found - wanted) <= 0.0079 * wanted


@given(st.lists(st.lists(TIMES, max_size=30), min_size=1, max_size=5), SHARES)
def test_the_percentile_of_parts_together_is_that_of_the_whole(parts: list[list[int]], q: float) -> None:
    together: Counter[int] = Counter()
    for part in parts:
        together.update(counted(part))
    whole = [ms for part in parts for ms in part]
    assert together == counted(whole)
    assert histograms.quantile(together, q) == histograms.quantile(counted(whole), q)


def test_ranks_are_those_of_the_share_as_it_is_written() -> None:
    times = Counter(range(1, 101))
    for percent in range(1, 101):  # as floats, seven of these hundred would be one rank too high
        assert histograms.quantile(times, percent / 100) == percent


def test_of_nothing_there_is_no_percentile() -> None:
    assert histograms.quantile({}, 0.5) is None
    assert histograms.quantile({7: 0}, 0.5) is None
    assert histograms.quantile({7: 0, 9: 1}, 0.0) == 9


@pytest.mark.parametrize("ms", [-1, histograms.MOST_MS + 1])
def test_what_is_no_response_time_is_refused(ms: int) -> None:
    with pytest.raises(ValueError, match="response time"):
        histograms.bucket_of(ms)
    with pytest.raises(ValueError, match="between"):
        histograms.quantile({1: 1}, 1.5)
    with pytest.raises(ValueError, match="bucket"):
        histograms.span(histograms.BUCKETS)
