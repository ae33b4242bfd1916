"""Prompts as requests have them: from memory, in the user's language, with checked values, sticky in experiments."""

from __future__ import annotations

import collections
import concurrent.futures
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from app.bots import bots, organisations
from app.bots.directory import Bot
from app.bots.schemas import BotCreate, BotSettings
from app.bots.signing import Secrets
from app.core import errors
from app.core.database.engine import Sessions, make_engine
from app.prompts import experiments, figures, prompts, schemas, variants, versions
from app.prompts.prompts import Prompts

TEXTS = {"en": "I help {{ name }} of {{ bot }} ({{ language }}).", "uk": "Я допомагаю: {{ name }}.", "any": "Any."}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def bot(sessions: Sessions) -> Bot:
    with sessions.begin() as session:
        owner = organisations.create(session, "Owner")
        row = bots.create(session, str(owner.id), BotCreate(name="Shop"))
        return Bot(str(row.id), str(owner.id), "Shop", BotSettings(), Secrets("whsec_fake", None, None))


def push(sessions: Sessions, bot: Bot, name: str = "sales", **given: Any) -> int:
    values = {"texts": TEXTS, "variables": [{"name": "name", "default": "you"}], **given}
    with sessions.begin() as session:
        try:
            return versions.add(session, bot.id, name, schemas.VersionCreate(**values)).version.version
        except errors.NotFound:
            return versions.create(session, bot.id, schemas.PromptCreate(name=name, **values)).version.version


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shelf(sessions: Sessions, clock: Clock) -> Prompts:
    return Prompts(sessions, clock)


@pytest.fixture
def statements(sessions: Sessions) -> Iterator[list[str]]:
    """Collect what is asked of PostgreSQL."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(sessions.engine, "before_cursor_execute", note)
    yield found
    event.remove(sessions.engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("language", "text", "told"),
    [
        ("en", "I help Anna of Shop (en).", "en"),
        ("uk-UA", "Я допомагаю: Anna.", "uk"),
        ("de", "Any.", "any"),
        (None, "I help Anna of Shop (en).", "en"),
    ],
)
def test_a_text_is_chosen_by_language(
    sessions: Sessions, bot: Bot, shelf: Prompts, language: str | None, text: str, told: str
) -> None:
    push(sessions, bot)
    found = shelf.render(bot, "sales", user="u", language=language, variables={"name": "Anna"})
    assert (found.text, found.language, found.version, found.variant) == (text, told, 1, None)


def test_without_a_text_for_everybody_the_default_serves(sessions: Sessions, bot: Bot, shelf: Prompts) -> None:
    push(sessions, bot, texts={"ru": "р", "uk": "у"}, variables=[])
    push(sessions, bot, "other", texts={"ru": "р", "uk": "у"}, default_language="ru", variables=[])
    assert shelf.render(bot, "sales", user="u").text == "у"
    assert shelf.render(bot, "other", user="u").text == "р"


@pytest.mark.parametrize(
    ("variables", "param"),
    [
        ({}, "variables.name"),
        ({"name": None}, "variables.name"),
        ({"name": "A", "other": 1}, "variables.other"),
        ({"name": "x" * 11}, "variables.name"),
        ({"name": ["x" * 9]}, "variables.name"),
        ({"name": [[[[[[1]]]]]]}, "variables.name"),
        ({"name": "A", "user": "B"}, "variables.user"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(
    sessions: Sessions, bot: Bot, shelf: Prompts, variables: dict[str, Any], param: str
) -> None:
    push(sessions, bot, variables=[{"name": "name", "required": True, "max_length": 10}])
    with pytest.raises(errors.InvalidRequest) as caught:
        shelf.render(bot, "sales", user="u", variables=variables)
    assert caught.value.param == param


def test_what_stands_for_itself_is_shown(sessions: Sessions, bot: Bot, shelf: Prompts) -> None:
    push(sessions, bot, variables=[{"name": "name", "required": True}])
    assert shelf.render(bot, "sales", user="", unfilled=True).text == "I help {{ name }} of Shop (en)."


def test_a_prompt_is_of_its_bot_alone(sessions: Sessions, bot: Bot, shelf: Prompts) -> None:
    push(sessions, bot)
    with pytest.raises(errors.InvalidRequest) as caught:
        shelf.render(Bot(str(uuid.uuid4()), "", "Other", BotSettings(), bot.webhook_secrets), "sales", user="u")
    assert caught.value.param == "prompt"


def test_what_is_remembered_has_bounds_however_long_the_texts_are(
    sessions: Sessions, bot: Bot, shelf: Prompts, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "MOST_CHARACTERS", 250_000)
    long = [{"name": "name", "default": "d" * 20_000, "max_length": 20_000}]
    for number in range(4):
        push(sessions, bot, texts={"any": f"{number}" + "x" * 40_000}, variables=long)
    push(sessions, bot, texts={"any": "y" * 45_000 + " {{ name }}"}, variables=long, name="other")

    def asked(name: str, version: int | None) -> int:
        before = len(statements)
        shelf.render(bot, name, user="u1", version=version)
        return len(statements) - before

    assert all(asked("sales", version) for version in (1, 2, 3, 4))
    assert not any(asked("sales", version) for version in (1, 2, 3, 4))
    assert asked("other", None)
    assert asked("sales", 1), "the oldest made room"
    assert not asked("other", None)
    shelf.forget_all()
    assert asked("other", None)
    assert not asked("other", None)


def test_the_hot_path_asks_nothing(
    sessions: Sessions, bot: Bot, shelf: Prompts, clock: Clock, statements: list[str]
) -> None:
    push(sessions, bot)
    shelf.render(bot, "sales", user="u")
    statements.clear()
    for number in range(100):
        shelf.render(bot, "sales", user=f"u{number}")
    assert statements == []
    clock.now += 1.1
    shelf.render(bot, "sales", user="u")
    assert statements


def test_a_change_is_seen_when_it_is_announced_or_old(
    sessions: Sessions, bot: Bot, shelf: Prompts, clock: Clock
) -> None:
    push(sessions, bot)
    shelf.fresh_s = prompts.FRESH_S
    assert shelf.render(bot, "sales", user="u").version == 1
    push(sessions, bot, note="second", activate=True)
    assert shelf.render(bot, "sales", user="u").version == 1
    assert shelf.heard(f'{{"forget":"prompt","bot":"{bot.id}","name":"sales"}}'.encode())
    assert shelf.render(bot, "sales", user="u").version == 2
    with sessions.begin() as session:
        versions.activate(session, bot.id, "sales", 1)
    clock.now += prompts.FRESH_S
    assert shelf.render(bot, "sales", user="u").version == 1
    assert shelf.render(bot, "sales", user="u", version=2).version == 2
    assert not shelf.heard(b'{"forget":"bot","id":"x"}')
    assert not shelf.heard(b"nonsense")


def test_what_is_known_is_used_while_postgresql_is_away(database_url: str, bot: Bot, sessions: Sessions) -> None:
    away = Sessions(make_engine("postgresql+psycopg2://repliq@127.0.0.1:1/none"))
    push(sessions, bot)
    clock = Clock()
    shelf = Prompts(sessions, clock)
    assert shelf.render(bot, "sales", user="u").version == 1
    shelf._sessions = away
    shelf.forget_all()
    for _ in range(3):
        clock.now += 100
        assert shelf.render(bot, "sales", user="u").version == 1
    with pytest.raises(errors.Unavailable):
        shelf.render(bot, "other", user="u")
    push(sessions, bot, note="second", activate=True)
    shelf._sessions = sessions
    clock.now += 2
    assert shelf.render(bot, "sales", user="u").version == 2


def test_two_hundred_users_keep_their_variants_near_the_weights(sessions: Sessions, bot: Bot) -> None:
    push(sessions, bot)
    push(sessions, bot, note="b")
    given = schemas.ExperimentCreate(
        name="tone", variants=[schemas.Variant(version=1, weight=3), schemas.Variant(version=2, name="new")]
    )
    with sessions.begin() as session:
        experiments.start(session, bot.id, "sales", given)
    first, second = Prompts(sessions), Prompts(sessions)
    found = {f"user-{number}": first.render(bot, "sales", user=f"user-{number}") for number in range(200)}
    assert {user: second.render(bot, "sales", user=user) for user in found} == found
    shares = collections.Counter(one.variant for one in found.values())
    assert set(shares) == {"tone/v1", "tone/new"}
    assert 130 <= shares["tone/v1"] <= 170
    assert {(one.variant, one.version) for one in found.values()} == {("tone/v1", 1), ("tone/new", 2)}
    nobody = collections.Counter(first.render(bot, "sales", user="").variant for _ in range(200))
    assert len(nobody) == 2
    assert first.render(bot, "sales", user="user-1", version=2).variant is None


def test_another_experiment_divides_the_users_anew() -> None:
    split = [{"weight": 1, "version": 1}, {"weight": 1, "version": 2}]
    one, other = uuid.UUID(int=1), uuid.UUID(int=2)
    users = [f"user-{number}" for number in range(200)]
    differ = sum(variants.chosen(one, split, user) != variants.chosen(other, split, user) for user in users)
    assert 70 < differ < 130


def test_versions_are_made_once_however_many_push(sessions: Sessions, bot: Bot) -> None:
    push(sessions, bot)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda number: push(sessions, bot, note=f"note {number % 3}"), range(12)))
        assert push(sessions, bot, note="the same") == push(sessions, bot, note="the same")
    assert set(made) <= set(range(2, 14))
    with sessions.begin() as session:
        rows = versions.list_versions(session, versions.get(session, bot.id, "sales"), None, 100).data
        assert [row.version for row in rows] == list(range(len(rows), 0, -1))


def test_one_experiment_runs_at_a_time_however_many_are_started(sessions: Sessions, bot: Bot) -> None:
    push(sessions, bot)
    push(sessions, bot, note="b")

    def start(number: int) -> bool:
        split = [schemas.Variant(version=1), schemas.Variant(version=2)]
        try:
            with sessions.begin() as session:
                experiments.start(session, bot.id, "sales", schemas.ExperimentCreate(name=f"e{number}", variants=split))
        except errors.AlreadyExists:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(start, range(4))) == 1


def test_wilsons_interval_is_the_one_of_the_books() -> None:
    assert figures.wilson(0, 0) is None
    assert figures.wilson(10, 20) == (0.2993, 0.7007)
    assert figures.wilson(0, 20) == (0.0, 0.1611)
    assert figures.wilson(20, 20) == (0.8389, 1.0)


@pytest.mark.parametrize(
    ("ratings", "says"),
    [
        ([(2, 1), (90, 1)], "too few"),
        ([(50, 50), (52, 48)], "no difference"),
        ([(90, 10), (40, 60)], "a is liked better"),
        ([(40, 60), (90, 10), (1, 0)], "b is liked better of those"),
    ],
)
def test_the_verdict_says_whether_chance_would_do(ratings: list[tuple[int, int]], says: str) -> None:
    found = [
        {"name": name, "thumbs_up": up, "thumbs_down": down, "thumbs_up_rate": up / (up + down),
         "thumbs_up_interval": figures.wilson(up, up + down)}
        for name, (up, down) in zip("abc", ratings, strict=False)
    ]  # fmt: skip
    assert says in figures.verdict(found)
