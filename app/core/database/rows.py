"""Many rows as the one parameter of a statement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson


def as_rows(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return rows as the parameter `rows`, for `jsonb_to_recordset(CAST(:rows AS jsonb))`: nearly as fast as COPY."""
    return {"rows": orjson.dumps(list(rows)).decode()}
