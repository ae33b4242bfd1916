"""`repliq costs`: what it shows, and what it prices."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from click.testing import CliRunner, Result

from app import cli
from app.bots import bootstrap, bots, schemas
from app.cli import costs
from app.core import ids, settings
from app.core.database import Sessions
from app.core.store import Keys, Store
from app.history import repricing, writer
from tests.history.entries import NOON, final, new_ref

SECRET = "a secret of the tests"
OWN = {"sim*": {"input": "1", "output": "2", "cached_input": "0.5"}}

Repliq = Callable[..., Result]


@pytest.fixture
def bot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sessions: Sessions, redis_url: str) -> str:
    """Take the test to a folder without `.env`, over the test's servers; return the default bot's id."""
    monkeypatch.chdir(tmp_path)
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    url = sessions.engine.url.render_as_string(hide_password=False)
    for name, value in {
        "DATABASE_URL": url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": SECRET,
        "DEFAULT_MODEL": "gpt-4o",
    }.items():
        monkeypatch.setenv(name, value)
    with sessions.begin() as session:
        bootstrap.ensure(session, settings.load({"secret_key": SECRET, "api_keys": "rq_the-first-key-of-all"}))
        found = bootstrap.default_bot(session)
        assert found
        return str(found.id)


@pytest.fixture
def shop(bot: str, sessions: Sessions) -> str:
    """Make a second bot, "Shop", with prices of its own; return its id."""
    with sessions.begin() as session:
        default = bootstrap.default_bot(session)
        assert default
        given = schemas.BotCreate.model_validate({"name": "Shop", "settings": {"prices": OWN}})
        return str(bots.create(session, str(default.organisation_id), given).id)


@pytest.fixture
def repliq(bot: str) -> Repliq:
    def run(*arguments: str, **how: Any) -> Result:
        return CliRunner().invoke(cli.command, ["costs", *arguments], catch_exceptions=True, **how)

    return run


def asked(bot: str, model: str, at: int = NOON, cost: str | None = None) -> Any:
    ref = f"{ids.shard_of(bot, 16):02d}{new_ref(at)[2:]}"
    return final(ref, bot=bot, model=model, at=at, cost=cost, prompt_tokens=10, completion_tokens=10, tokens=20)


def priced(sessions: Sessions) -> list[Any]:
    with sessions.begin() as session:
        found = session.execute(sqlalchemy.text("SELECT model, cost FROM request_history ORDER BY model, created_at"))
        return [tuple(row) for row in found]


def test_the_price_of_a_model_is_shown_with_whose_it_is(repliq: Repliq, shop: str) -> None:
    done = repliq("show", "gpt-4o-mini")
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [
        "model", "provider", "input", "cached", "output", "reasoning", "price", "of",
        "gpt-4o-mini", "openai", "0.15", "0.075", "0.6", "0.6", "openai/gpt-4o-mini",
    ]  # fmt: skip
    assert "the bot's own (sim*)" in repliq("show", "sim", "--bot", "Shop").stdout
    assert "2.5 above 200,000" in repliq("show", "gemini-2.5-pro", "--provider", "google").stdout
    done = repliq("show", "sim")
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [["sim", "openai", "-", "-", "-", "-", "unknown"]]
    assert "`prices`" in done.stderr


def test_without_a_model_those_in_use_and_those_with_a_price_are_shown(
    repliq: Repliq, shop: str, sessions: Sessions
) -> None:
    writer.write(
        sessions,
        [asked(shop, "gpt-4o-mini"), asked(shop, "gpt-4o-mini"), asked(shop, "sim-large"), asked(shop, "other")],
    )
    done = repliq("show", "--bot", shop)
    assert done.exit_code == 0, done.output
    found = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:]}
    assert set(found) == {"gpt-4o-mini", "sim-large", "other", "gpt-4o", "sim*"}
    assert found["gpt-4o-mini"][-2:] == ["openai/gpt-4o-mini", "2"]
    assert found["other"][-2:] == ["unknown", "1"]
    assert found["gpt-4o"][-1] == "0"
    assert (found["sim-large"][2:6], found["sim-large"][-1]) == (["1", "0.5", "2", "2"], "1")


def test_what_has_no_cost_gets_one_by_its_bots_prices(repliq: Repliq, bot: str, shop: str, sessions: Sessions) -> None:
    writer.write(
        sessions, [asked(bot, "sim"), asked(bot, "gpt-4o-mini"), asked(shop, "sim-1"), asked(shop, "gpt-4o", cost="9")]
    )
    done = repliq("reprice")
    assert done.exit_code == 0, done.output
    assert done.stdout == "Priced 2 of 4 requests; costs rise by 0.0000375000 USD.\n"
    assert "No price is known of sim (openai): 1 request stays without." in done.stderr
    assert priced(sessions) == [
        ("gpt-4o", Decimal(9)),
        ("gpt-4o-mini", Decimal("0.0000075")),
        ("sim", None),
        ("sim-1", Decimal("0.00003")),
    ]
    assert repliq("reprice").stdout == "Priced 0 of 4 requests; costs rise by 0.0000000000 USD.\n"
    assert repliq("reprice", "--all", "--bot", "Shop").stdout.startswith(
        "Priced 0 and changed 1 of 2 requests; costs rise by -8.99"
    )


def test_what_was_priced_goes_on_to_analytics_at_once(
    repliq: Repliq, bot: str, sessions: Sessions, store: Store, keys: Keys
) -> None:
    writer.write(sessions, [asked(bot, "gpt-4o-mini")])
    assert repliq("reprice").exit_code == 0
    found = store.call("XRANGE", keys.of_outbox("events", ids.shard_of(bot, 16)), "-", "+")
    assert sum(b"chat_completion_repriced" in b"".join(fields) if isinstance(fields, list) else
               b"chat_completion_repriced" in b"".join(fields.values()) for _, fields in found) == 1  # fmt: skip
    with sessions.begin() as session:
        assert session.scalar(sqlalchemy.text("SELECT count(*) FROM announcements")) == 0


def test_a_dry_run_and_a_stretch_of_time(repliq: Repliq, bot: str, sessions: Sessions) -> None:
    writer.write(sessions, [asked(bot, "gpt-4o-mini", NOON), asked(bot, "gpt-4o-mini", NOON + 86_400_000)])
    done = repliq("reprice", "--dry-run", "--from", "2026-03-11")
    assert done.stdout == "Would have priced 1 of 1 requests; costs rise by 0.0000075000 USD.\n"
    assert [cost for _, cost in priced(sessions)] == [None, None]
    assert repliq("reprice", "--to", "2026-03-10T13:00+01:00").stdout.startswith("Priced 0 of 0")
    assert repliq("reprice", "--to", "2026-03-10T12:00:01Z").stdout.startswith("Priced 1 of 1")
    assert [cost is None for _, cost in priced(sessions)] == [False, True]


def test_who_asks_for_what_cannot_be_is_told_in_a_line(repliq: Repliq, shop: str) -> None:
    for arguments, wanted in (
        (("reprice", "--bot", str(uuid.uuid4())), "There is no bot"),
        (("show", "--bot", "Nobody"), "There is no bot 'Nobody'"),
        (("reprice", "--from", "yesterday"), "'yesterday' is no date and no time"),
    ):
        done = repliq(*arguments)
        assert done.exit_code
        assert wanted in done.output + str(done.exception)


def test_many_unknown_models_are_summed_up() -> None:
    tally = costs._Tally()
    for number in range(30):
        tally.add(repricing.Batch(1, repricing._BEGINNING, unknown={("openai", f"m{number:02d}"): 30 - number}))
    told = list(tally.unpriced())
    assert told[0] == "No price is known of m00 (openai): 30 requests stay without."
    assert (len(told), told[-1]) == (21, "… and of 10 more models.")


def test_ctrl_c_says_what_was_done(
    repliq: Repliq, bot: str, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(sessions, [asked(bot, "gpt-4o-mini", NOON + number) for number in range(5)])
    whole = costs._Tally.add

    def stopped(self: costs._Tally, batch: repricing.Batch) -> None:
        whole(self, batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(costs._Tally, "add", stopped)
    done = repliq("reprice")
    assert done.exit_code == 130
    assert "Stopped. Priced 5 of 5 requests" in done.stderr
    assert all(cost is not None for _, cost in priced(sessions))
