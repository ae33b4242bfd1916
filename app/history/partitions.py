"""The months of `request_history`."""

from __future__ import annotations

from app.core.database.partitions import Months

MONTHS = Months("request_history", "created_at")
TABLE = MONTHS.table
ensure = MONTHS.ensure
default_sql = MONTHS.default_sql
