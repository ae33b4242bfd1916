"""Rotated keys: what goes on with the new one, and that the old one ends to the second, wherever it is remembered."""

from __future__ import annotations

import concurrent.futures
import datetime
import threading
import uuid
from typing import Any

import pytest
import sqlalchemy

from app.bots import audit, bots, directory, keys, models, organisations, schemas
from app.bots.directory import Bot, Directory
from app.chat import reservations
from app.core import clock, errors
from app.core.database import Sessions, make_engine
from tests.bots.clock import Clock

SECRET = "a secret of tests"
HOUR_S = 3600
GIVEN = {
    "name": "partner", "scopes": ["chat", "history"], "daily_limit": 3, "rate_limit_per_minute": 2, "daily_budget_usd": "1.5",
    "monthly_budget_usd": "9",
}  # fmt: skip


class Place:
    """A bot's key, and a process that remembers keys."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.clock = Clock()
        self.directory = Directory(sessions, SECRET, clock=self.clock)
        with sessions.begin() as session:
            self.organisation = str(organisations.create(session, "Ours").id)
            self.bot = str(bots.create(session, self.organisation, schemas.BotCreate(name="One")).id)
            made = schemas.KeyCreate.model_validate(GIVEN)
            row, self.key = keys.create(session, SECRET, self.organisation, self.bot, made)
            self.key_id = str(row.id)

    def rotate(self, key_id: str, grace_s: int, **other: Any) -> tuple[models.ApiKey, str, models.ApiKey]:
        whose = {"organisation": self.organisation, "bot": self.bot, **other}
        with self.sessions.begin() as session:
            found = keys.rotate(session, SECRET, whose["organisation"], whose["bot"], key_id, grace_s)
            session.expunge_all()
        return found

    def row(self, key_id: str) -> models.ApiKey:
        with self.sessions.begin() as session:
            found = session.get_one(models.ApiKey, uuid.UUID(key_id))
            session.expunge(found)
        return found

    def let_pass(self, key_id: str, seconds: float) -> None:
        """Bring a key's end nearer, as that much time would."""
        with self.sessions.begin() as session:
            row = session.get_one(models.ApiKey, uuid.UUID(key_id))
            assert row.expires_at is not None
            row.expires_at -= datetime.timedelta(seconds=seconds)

    def queries_from_now(self) -> list[str]:
        """Return a list that every further query is added to."""
        seen: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            seen.append(statement)

        sqlalchemy.event.listen(self.sessions.engine, "before_cursor_execute", note)
        return seen

    def is_good(self, key: str) -> bool:
        try:
            return bool(self.directory.authenticate(key))
        except errors.InvalidApiKey:
            return False


@pytest.fixture
def place(sessions: Sessions) -> Place:
    return Place(sessions)


def test_the_new_key_has_all_that_the_old_one_had_and_is_counted_with_it(place: Place) -> None:
    with place.sessions.begin() as session:
        session.get_one(models.ApiKey, uuid.UUID(place.key_id)).budgets_since = clock.as_utc(1_763_680_000_000)
    before = place.directory.authenticate(place.key)
    new, key, old = place.rotate(place.key_id, HOUR_S)
    assert (str(old.id), old.revoked_at) == (place.key_id, None)
    assert new.id != old.id
    after = place.directory.authenticate(key)
    differing = {name for name in before.__slots__ if getattr(before, name) != getattr(after, name)}
    assert differing == {"key_id"}
    assert new.name == "partner"
    assert key != place.key
    assert key.startswith(f"rq_{old.prefix}")
    assert len(key) - len(f"rq_{old.prefix}") == 40  # 240 random bits, however well the beginning is known
    bot = place.directory.bot(place.bot)
    held = reservations.allowances(bot, before, "key:x")
    assert held
    assert reservations.allowances(bot, after, "key:x") == held


def test_a_budget_is_listed_once_while_two_keys_draw_on_it(place: Place) -> None:
    place.rotate(place.key_id, HOUR_S)
    with place.sessions.begin() as session:
        bot: Bot = place.directory.bot(place.bot)
        (listed,) = reservations.everybodys(session, bot, None)
    assert listed.name == place.row(place.key_id).prefix


def test_both_keys_hold_within_the_grace_and_the_old_one_ends_with_it_where_it_is_remembered(place: Place) -> None:
    place.directory.max_age_s = 2 * HOUR_S  # nothing is read twice here
    _, key, old = place.rotate(place.key_id, HOUR_S)
    assert old.expires_at is not None
    assert (place.is_good(place.key), place.is_good(key)) == (True, True)
    left_s = place.directory.authenticate(place.key).until - place.clock.now
    assert HOUR_S - 60 < left_s <= HOUR_S
    queries = place.queries_from_now()
    place.clock.now += left_s - 0.001
    assert place.is_good(place.key)
    place.clock.now += 0.002
    assert (place.is_good(place.key), place.is_good(key)) == (False, True)
    assert queries == [], "it was not read again: what is remembered ends by itself"


def test_an_expired_key_is_not_loaded_and_one_nearer_its_end_is_read_anew(place: Place) -> None:
    place.rotate(place.key_id, HOUR_S)
    assert place.is_good(place.key)
    place.let_pass(place.key_id, HOUR_S - 60)
    place.clock.now += directory.FRESH_S + 0.1
    assert place.directory.authenticate(place.key).until <= place.clock.now + 60
    place.let_pass(place.key_id, 60)
    place.clock.now += directory.FRESH_S + 0.1
    assert not place.is_good(place.key)
    assert not place.directory.knows(place.key)
    with pytest.raises(errors.InvalidApiKey):
        Directory(place.sessions, SECRET).authenticate(place.key)


def test_the_wrong_wall_clock_of_a_machine_moves_no_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.rotate(place.key_id, HOUR_S)
    monkeypatch.setattr(clock, "now_ms", lambda: 4_000_000_000_000)
    assert 0 < place.directory.authenticate(place.key).until - place.clock.now <= HOUR_S


def test_the_end_holds_while_postgresql_is_away(place: Place) -> None:
    place.rotate(place.key_id, HOUR_S // 2)
    assert place.is_good(place.key)
    place.directory._sessions = Sessions(make_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none"))
    place.clock.now += HOUR_S // 2 - 60
    assert place.is_good(place.key)
    place.clock.now += 61
    assert not place.is_good(place.key)
    with pytest.raises(errors.Unavailable):
        place.directory.authenticate("rq_unheard-of")


@pytest.mark.parametrize("how", ["revoked", "rotated", "expired"])
def test_what_has_ended_or_was_rotated_is_not_rotated_again(place: Place, how: str) -> None:
    if how == "revoked":
        with place.sessions.begin() as session:
            keys.revoke(session, place.organisation, place.bot, place.key_id)
    else:
        place.rotate(place.key_id, HOUR_S)
    if how == "expired":
        place.let_pass(place.key_id, HOUR_S + 1)
    with place.sessions.begin() as session:
        count = len(keys.list_page(session, place.organisation, place.bot).data)
    with pytest.raises(errors.KeyNotCurrent, match="revoked" if how == "revoked" else "was rotated"):
        place.rotate(place.key_id, HOUR_S)
    with place.sessions.begin() as session:
        assert len(keys.list_page(session, place.organisation, place.bot).data) == count


def test_a_rotated_keys_successor_can_be_rotated_in_turn(place: Place) -> None:
    first, key, _ = place.rotate(place.key_id, HOUR_S)
    _, last, _ = place.rotate(str(first.id), HOUR_S)
    assert all(place.is_good(each) for each in (place.key, key, last))


def test_no_grace_revokes_so_that_a_release_without_expiry_refuses_it_too(place: Place) -> None:
    _, key, old = place.rotate(place.key_id, 0)
    assert old.revoked_at == old.expires_at
    assert old.revoked_at is not None
    assert (place.is_good(place.key), place.is_good(key)) == (False, True)


def test_of_rotations_at_once_one_is_done(place: Place) -> None:
    at_once = threading.Barrier(4)

    def rotate(_: int) -> bool:
        at_once.wait(30)
        try:
            place.rotate(place.key_id, HOUR_S)
        except errors.KeyNotCurrent:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(rotate, range(4))) == [False, False, False, True]
    with place.sessions.begin() as session:
        assert len(keys.list_page(session, place.organisation, place.bot).data) == 2


def test_nobody_elses_key_is_rotated(place: Place) -> None:
    with place.sessions.begin() as session:
        theirs = str(organisations.create(session, "Theirs").id)
        other = str(bots.create(session, place.organisation, schemas.BotCreate(name="Other")).id)
    for whose in ({"organisation": theirs}, {"bot": other}, {"bot": None}):
        with pytest.raises(errors.NotFound):
            place.rotate(place.key_id, HOUR_S, **whose)
    assert place.row(place.key_id).expires_at is None


def test_an_organisations_key_is_rotated_too(place: Place) -> None:
    with place.sessions.begin() as session:
        given = schemas.KeyCreate(name="o", scopes=["org"])
        row, _ = keys.create(session, SECRET, place.organisation, None, given)
        key_id = str(row.id)
    _, key, _ = place.rotate(key_id, HOUR_S, bot=None)
    assert place.directory.authenticate(key).kind == "organisation_key"


def test_a_prefix_that_no_header_should_hold_is_kept_and_not_in_the_key(place: Place) -> None:
    with place.sessions.begin() as session:
        session.get_one(models.ApiKey, uuid.UUID(place.key_id)).prefix = "ключabcd"
    new, key, _ = place.rotate(place.key_id, HOUR_S)
    assert new.prefix == "ключabcd"
    assert key.isascii()
    assert place.directory.authenticate(key).key_prefix == "ключabcd"


def test_a_rotation_is_on_record_without_a_secret(place: Place) -> None:
    new, key, old = place.rotate(place.key_id, HOUR_S)
    with place.sessions.begin() as session:
        rows = audit.page(session, place.organisation, audit.Filter(bot=uuid.UUID(place.bot)), None, 2).data
        told = [(row.action, row.target, row.details) for row in rows]
        text = str([vars(row) for row in rows])
    assert [each[:2] for each in told] == [("key.rotated", f"key:{old.id}"), ("key.created", f"key:{new.id}")]
    assert told[0][2] == {"name": "partner", "prefix": old.prefix, "grace_seconds": HOUR_S, "successor": str(new.id)}
    for secret in (key, place.key, key[3 + len(old.prefix) :], new.digest.hex(), old.digest.hex()):
        assert secret not in text
