"""`repliq budgets`, and what `repliq keys` and `repliq bots` set of budgets."""

from __future__ import annotations

from click.testing import CliRunner, Result

from app import cli
from app.core import clock, ids
from app.core.database import Sessions
from app.history import writer
from tests.cli.test_costs import bot  # noqa: F401  fixture
from tests.history.entries import final


def repliq(*arguments: str) -> Result:
    return CliRunner().invoke(cli.command, list(arguments), catch_exceptions=False)


def test_budgets_are_set_and_shown(bot: str, sessions: Sessions) -> None:  # noqa: F811
    assert "No budget is set" in repliq("budgets").output
    given = "daily_budget_usd=2", "user_monthly_budget_usd=0.5"
    assert repliq("bots", "set", "default", *given).exit_code == 0
    assert repliq("keys", "create", "--daily-budget", "1.5", "--scopes", "chat").exit_code == 0
    now = clock.now_ms()
    told = final(ids.new_ref(ids.shard_of(bot, 16)), bot=bot, cost="0.25", at=now, end=now, user="tg:5", tg=5)
    writer.write(sessions, [told])
    lines = repliq("budgets", "--user", "tg:5").stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["of", "bot", "key", "user"]
    assert lines[1].split()[1:7] == ["day", "2.000000", "0.250000", "0.000000", "1.750000", "12.5"]
    assert lines[3].split()[2:8] == ["month", "0.500000", "0.250000", "0.000000", "0.250000", "50"]


def test_a_receiver_that_is_not_public_is_refused(bot: str) -> None:  # noqa: F811
    refused = CliRunner().invoke(cli.command, ["bots", "set", bot, "alerts_webhook_url=http://127.0.0.1:9/"])
    assert refused.exit_code != 0
