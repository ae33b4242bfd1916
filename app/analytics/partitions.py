"""The months of `analytics_events`."""

from __future__ import annotations

from app.core.database.partitions import Months

MONTHS = Months("analytics_events", "timestamp")
ensure = MONTHS.ensure
