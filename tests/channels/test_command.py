"""`repliq telegram` among the other processes."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from app.cli import stack, telegram


@pytest.mark.parametrize("wanted", [True, False])
def test_up_serves_telegram_where_there_is_a_token(wanted: bool) -> None:
    plan = stack.Plan(
        host="127.0.0.1", port=8000, data_dir="var", database_url="", redis_url="", simulated=False, secret_key="", api_keys=[],
        workers=1, flower=False, flower_port=5555, verbose=False, telegram=wanted,
    )  # fmt: skip
    names = [child.name for stage in stack.processes(plan, {}, 0) for child in stage]
    assert ("telegram" in names) is wanted


def test_telegram_delivers_to_https_alone() -> None:
    done = CliRunner().invoke(telegram.command, ["--webhook", "http://shop.example"])
    assert done.exit_code == 1
    assert "https://" in done.output
