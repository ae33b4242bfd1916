"""How the states of one request replace each other: pending, then lost, then final; never back, and a final one stays."""

from __future__ import annotations

PENDING, LOST, FINAL = 0, 1, 2
TASK_LOST = "task_lost"
_STATUSES = {"pending": PENDING, "success": FINAL, "error": FINAL, "cancelled": FINAL}


def of(status: str, code: str | None) -> int:
    """Return a state's rank; raise `ValueError` for a status that is none."""
    if status not in _STATUSES:
        raise ValueError(f"'{status}' is not a status")
    return LOST if status == "error" and code == TASK_LOST else _STATUSES[status]


def sql(table: str) -> str:
    """Return the same as an SQL expression over a table's `status` and `error_code`."""
    return (
        f"CASE WHEN {table}.status = 'pending' THEN {PENDING} "
        f"WHEN {table}.status = 'error' AND {table}.error_code = '{TASK_LOST}' THEN {LOST} ELSE {FINAL} END"
    )
