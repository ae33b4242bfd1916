"""Dates and times on the command line."""

from __future__ import annotations

import datetime

import click


class Moment(click.ParamType[datetime.datetime]):
    """A date or a time in ISO 8601; without a zone it is UTC, a date is its beginning."""

    name = "date or time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime.datetime:
        if isinstance(value, datetime.datetime):
            return value
        try:
            moment = datetime.datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"'{value}' is no date and no time; 2026-03-31 and 2026-03-31T12:00Z are", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
