"""Answers that are given again: to whom, for how long, and to nobody else, whatever he tries."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from app.bots.schemas import BotSettings
from app.chat import cached, windows
from app.chat.cached import CachedAnswers, Follow, Hit, Lead, Wishes
from app.chat.records import Task
from app.core import clock, errors, ids
from app.core.database import Sessions
from app.core.store import Keys, Scripts, Store
from app.llm.answers import Answer, Model, Provider, Target
from app.llm.cache.shelf import Shelf
from tests.chat.conftest import BOT

OTHER_BOT = "0197b0c0-0000-7000-8000-000000000002"
SECRET = "the secret that only one user's dialog has"
_refs = itertools.count(1)


@dataclasses.dataclass
class Embedded:
    vectors: list[list[float]]
    tokens: int


class Embedder:
    """Stands for providers and their embeddings: texts that are said to be alike are, by so much; all others are at right angles."""

    def __init__(self) -> None:
        self.alike: dict[str, tuple[int, float]] = {}
        self.asked: list[str] = []
        self.broken = False

    def model(self, name: str, bot: str = "") -> Model:
        return Model(name, (Target(Provider("test", "http://127.0.0.1:1/v1", "fake"), name),))

    def embed(self, provider: Provider, model: str, texts: Sequence[str], *, timeout_s: float) -> Embedded:
        if self.broken:
            raise errors.UpstreamError("away")
        self.asked += texts
        return Embedded([self._vector(text) for text in texts], 7 * len(texts))

    def _vector(self, text: str) -> list[float]:
        axis, likeness = self.alike.setdefault(text, (len(self.alike), 1.0))
        vector = [0.0] * 32
        vector[axis] = likeness
        vector[31] = (1 - likeness**2) ** 0.5
        return vector


@dataclasses.dataclass
class Place:
    """A cache, and requests to it as admission and the worker make them."""

    answers: CachedAnswers
    embedder: Embedder
    settings: BotSettings

    def request(
        self, user_: str, /, *own: str | dict[str, Any], bot: str = BOT, context: Sequence[str] = (), header: str = "",
        system: str = "Be brief.", known: str = "", variables: bool = False, **options: Any,
    ) -> tuple[Task, dict[str, Any], dict[str, Any]]:  # fmt: skip
        """Return a task, its envelope and what the model would be given; `context` is the dialog's, `known` the owner's server's."""
        messages = [{"role": "user", "content": one} if isinstance(one, str) else one for one in own]
        envelope = {
            "body": {"messages": messages, **options},
            "system": system,
            "dialog_ttl_ms": 1,
            "kept": 1,
            "store": "all",
        }
        given = cached.policy(self.settings, header, personal=variables)
        if given is not None:
            envelope["cache"] = given
        said = [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(context)]
        told = [{"role": "system", "content": known}] if known else []
        body = {**options, "messages": [*windows.system(system), *told, *said, *messages]}
        now = clock.now_ms()
        task = Task(
            ids.new_ref(0), "in_progress", 1, now, now + 60_000, bot, user_, "chat.completion", "m", "s", now=now
        )
        return task, envelope, body

    def find(self, *given: Any, **options: Any) -> Hit | Lead | Follow | None:
        return self.answers.find(*self.request(*given, **options))

    def ask(self, *given: Any, answer: str = "", **options: Any) -> str:
        """Ask as a worker does; return what is answered, which is new unless it was kept."""
        found = self.find(*given, **options)
        if isinstance(found, Hit):
            return found.answer.text
        made = answer or f"answer {next(_refs)}"
        if isinstance(found, Lead):
            self.answers.fill(found, spoken(made))
        return made


def spoken(text: str, *, finish: str | None = "stop", **message: Any) -> Answer:
    usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m-1",
        "choices": [choice],
        "usage": usage,
    }
    return Answer(orjson.dumps(body), "openai", "m-1", text, usage, finish)


@pytest.fixture
def place(scripts: Scripts, keys: Keys, sessions: Sessions) -> Place:
    embedder = Embedder()
    answers = CachedAnswers(Shelf(scripts, keys), sessions, embedder, lambda: embedder)
    return Place(answers, embedder, BotSettings(cache="exact"))


@pytest.fixture
def semantic(place: Place, sessions: Sessions) -> Place:
    with sessions.begin() as session:
        from app.core.database import extensions

        extensions.require_vector(session)
    place.settings = BotSettings(cache="semantic", semantic_threshold=0.9)
    return place


def test_the_same_question_is_answered_once_for_all_of_a_bots_users(place: Place) -> None:
    first = place.ask("u1", "What are your hours?")
    assert place.ask("u2", "What are your hours?") == first
    assert place.ask("u2", "What are your hours?  \r\n") == first
    assert place.ask("u2", "what are your hours?") != first


def test_a_kept_answer_used_nothing_and_is_of_nobody(place: Place) -> None:
    place.ask("u1", "q", answer="a")
    found = place.find("u2", "q")
    assert isinstance(found, Hit)
    assert (found.source, found.answer.provider, found.answer.text) == ("exact", "cache", "a")
    assert found.answer.usage == orjson.loads(found.answer.body)["usage"] == {
        "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0,
    }  # fmt: skip
    assert found.answer.also == ()


@pytest.mark.parametrize("mode", ["exact", "semantic"])
def test_two_users_private_contexts_never_meet(semantic: Place, mode: str) -> None:
    """Whatever one user's request has to itself, no other gets its answer: not by asking the same, nor by guessing the rest of it."""
    semantic.settings = BotSettings(cache=mode, semantic_threshold=0.5)
    question, mine = "What did I order?", "You ordered: " + SECRET
    private: list[dict[str, Any]] = [
        {"context": [SECRET, "noted"]},
        {"known": SECRET},
        {"variables": True, "system": f"You speak with {SECRET}"},
    ]
    own: list[list[str | dict[str, Any]]] = [
        [{"role": "system", "content": SECRET}, question],
        [SECRET, question],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": SECRET}, question],
        [{"role": "user", "content": question, "name": "Anna"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:" + SECRET}}]}],
    ]
    tries: list[tuple[list[Any], dict[str, Any]]] = [([question], facts) for facts in private] + [
        (messages, {}) for messages in own
    ]
    for messages, facts in tries:
        assert semantic.ask("anna", *messages, answer=mine, **facts) == mine
        assert semantic.ask("anna", *messages, **facts) == mine, "it is kept for herself"
    for (messages, facts), user in itertools.product(
        tries, ["boris", "anna ", "Anna", "key:anna", "", "anna:", "tg:1"]
    ):
        assert mine not in semantic.ask(user, *messages, **facts), (user, messages, facts)
        assert mine not in semantic.ask(user, question), user
        assert mine not in semantic.ask(user, *messages, bot=OTHER_BOT, **facts)
    assert mine not in semantic.ask("anna", *own[0], bot=OTHER_BOT)
    for words in ("What did I order", "what did i order?"):
        assert mine not in semantic.ask("boris", words)


def test_equal_questions_in_different_contexts_have_different_answers_even_where_they_are_shared(place: Place) -> None:
    place.settings = BotSettings(cache="exact", cache_shared=True)
    first = place.ask("u1", "and then?", context=["a", "b"])
    assert place.ask("u2", "and then?", context=["a", "c"]) != first
    assert place.ask("u2", "and then?") != first
    assert place.ask("u2", "and then?", context=["a", "b"]) == first, "which the owner allowed"


def test_without_sharing_equal_contexts_are_each_users_own(place: Place) -> None:
    first = place.ask("u1", "and then?", context=["a", "b"])
    assert place.ask("u2", "and then?", context=["a", "b"]) != first
    assert place.ask("u1", "and then?", context=["a", "b"]) == first


def test_no_bot_is_given_anothers_answer(place: Place) -> None:
    place.settings = BotSettings(cache="exact", cache_shared=True)
    first = place.ask("u1", "q")
    assert place.ask("u1", "q", bot=OTHER_BOT) != first


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.1},
        {"max_tokens": 5},
        {"seed": 1},
        {"stop": ["x"]},
        {"response_format": {"type": "json_object"}},
        {"top_k": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_changes_the_answer_is_part_of_the_question(place: Place, options: dict[str, Any]) -> None:
    first = place.ask("u1", "q")
    second = place.ask("u1", "q", **options)
    assert second != first
    assert place.ask("u1", "q", **options) == second


def test_what_does_not_change_the_answer_is_not(place: Place) -> None:
    first = place.ask("u1", "q")
    assert (
        place.ask("u2", "q", user="u2", metadata={"a": "b"}, stream=True, stream_options={"include_usage": True})
        == first
    )


def test_another_prompt_is_another_question(place: Place) -> None:
    assert place.ask("u1", "q", system="A") != place.ask("u1", "q", system="B")


@pytest.mark.parametrize(
    "options",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"functions": [{}]},
        {"modalities": ["text", "audio"]},
        {"web_search_options": {"a": 1}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_not_one_text_is_not_kept(place: Place, options: dict[str, Any]) -> None:
    assert place.find("u1", "q", **options) is None


def test_what_is_too_large_is_not_kept(place: Place) -> None:
    assert place.find("u1", "q" * 300_000) is None
    lead = place.find("u1", "short")
    assert isinstance(lead, Lead)
    place.answers.fill(lead, spoken("a" * 300_000))
    assert isinstance(place.find("u1", "short"), Lead)


@pytest.mark.parametrize(
    "answer",
    [
        spoken("cut", finish="length"),
        spoken("filtered", finish="content_filter"),
        spoken("called", finish="tool_calls", tool_calls=[{"id": "c"}]),
        spoken("stopped, and called", tool_calls=[{"id": "c"}]),
        spoken("", refusal="no"),
        spoken("I will not", refusal="no"),
        spoken("  "),
        spoken("broken off", finish=None),
    ],
    ids=lambda answer: answer.text.strip() or "empty",
)
def test_what_is_no_whole_answer_is_not_kept_and_who_waited_asks_himself(place: Place, answer: Answer) -> None:
    lead = place.find("u1", "q")
    follows = [place.find("u2", "q"), place.find("u3", "q")]
    assert isinstance(lead, Lead)
    assert all(isinstance(one, Follow) for one in follows)
    assert len(place.answers.fill(lead, answer)) == 2
    again = [place.find("u2", "q"), place.find("u3", "q")]
    assert all(isinstance(one, Lead) and one.alone for one in again)


def test_who_follows_is_woken_by_the_answer(place: Place) -> None:
    lead, waits = place.request("u1", "q"), place.request("u2", "q")
    found, follow = place.answers.find(*lead), place.answers.find(*waits)
    assert isinstance(found, Lead)
    assert isinstance(follow, Follow)
    assert 0 < follow.retry_ms <= 8_000
    assert not place.answers.filled(follow)
    assert place.answers.fill(found, spoken("a")) == [waits[0].ref]
    assert place.answers.filled(follow)
    hit = place.answers.find(*waits)
    assert isinstance(hit, Hit)


def test_after_a_call_that_failed_the_next_one_asks(place: Place) -> None:
    lead, waits = place.find("u1", "q"), place.request("u2", "q")
    assert isinstance(lead, Lead)
    assert isinstance(place.answers.find(*waits), Follow)
    assert place.answers.give_up(lead) == [waits[0].ref]
    assert isinstance(place.answers.find(*waits), Lead)


def test_while_all_providers_are_limited_it_stays_one_call(place: Place) -> None:
    for number in range(4):  # as often as the leader is put back
        lead = place.find(f"u{number}", "q")
        assert isinstance(lead, Lead)
        place.answers.give_up(lead, failed=False)
    assert isinstance(place.find("u8", "q"), Lead)
    assert isinstance(place.find("u9", "q"), Follow)


@pytest.mark.parametrize(
    ("header", "wished"),
    [
        ("", Wishes()),
        ("no-cache", Wishes(read=False)),
        ("no-store", Wishes(read=False, store=False)),
        ("max-age=60", Wishes(max_age_s=60)),
        ("Max-Age=0, No-Transform", Wishes(max_age_s=0)),
        ("no-cache, max-age=5", Wishes(read=False, max_age_s=5)),
        ("nonsense, max-age=x", Wishes()),
    ],
)
def test_what_a_request_wishes_is_read(header: str, wished: Wishes) -> None:
    assert cached.wishes(header) == wished


def test_a_request_may_want_a_new_answer_a_recent_one_or_none_kept(place: Place, scripts: Scripts) -> None:
    first = place.ask("u1", "q")
    assert place.find("u1", "q", header="no-store") is None
    second = place.ask("u1", "q", header="no-cache")
    assert second != first
    assert place.ask("u1", "q") == second, "the new one is kept"
    scripts.shift_ms += 100_000
    assert place.ask("u1", "q", header="max-age=3000") == second
    assert place.ask("u1", "q", header="max-age=60") != second


def test_an_answer_is_kept_for_as_long_as_its_bot_says(place: Place, store: Store, keys: Keys) -> None:
    place.settings = BotSettings(cache="exact", cache_ttl_s=77)
    found = place.find("u1", "q")
    assert isinstance(found, Lead)
    place.answers.fill(found, spoken("a"))
    assert 70_000 < store.call("PTTL", keys.of_answer("kept_answer", found.key)) <= 77_000


def test_a_user_who_is_forgotten_leaves_no_answer_behind_not_even_one_on_its_way(place: Place) -> None:
    shared, own = place.ask("u1", "q"), place.ask("u1", "q", context=["a", "b"])
    on_its_way, coming = place.find("u1", "later"), place.find("u1", "later", context=["a", "b"])
    assert isinstance(on_its_way, Lead)
    assert isinstance(coming, Lead)
    place.answers.forget(BOT, "u1")
    assert place.ask("u2", "q") != shared
    assert place.ask("u1", "q", context=["a", "b"]) != own
    for lead in (on_its_way, coming):
        place.answers.fill(lead, spoken("too late"))
    assert place.ask("u2", "later") != "too late"
    assert place.ask("u1", "later", context=["a", "b"]) != "too late"


def test_without_redis_the_model_is_asked(sessions: Sessions, keys: Keys) -> None:
    away = Store("redis://127.0.0.1:1/0", timeout_s=0.2)
    embedder = Embedder()
    place = Place(
        CachedAnswers(Shelf(Scripts(away), keys), sessions, embedder, lambda: embedder),
        embedder,
        BotSettings(cache="exact"),
    )
    assert place.find("u1", "q") is None


# By meaning


def test_a_question_that_means_the_same_is_given_the_same_answer_and_adds_nothing(
    semantic: Place, sessions: Sessions
) -> None:
    semantic.embedder.alike = {
        "Where is my order?": (0, 1.0),
        "Where's my order?": (0, 0.95),
        "Where is the exit?": (0, 0.85),
    }
    first = semantic.ask("u1", "Where is my order?")
    found = semantic.find("u1", "Where's my order?")
    assert isinstance(found, Hit)
    assert (found.source, found.answer.text) == ("semantic", first)
    assert semantic.ask("u1", "Where is the exit?") != first, "it is below the threshold"
    assert rows(sessions) == 2


def test_those_who_asked_the_very_same_meanwhile_have_the_answer_too(semantic: Place) -> None:
    semantic.embedder.alike = {"one": (0, 1.0), "uno": (0, 0.95)}
    first = semantic.ask("u1", "one")
    twins = [semantic.request("u1", "uno") for _ in range(3)]
    led = semantic.answers.shelf.look_up
    found: list[Any] = []

    def late(name: str, task: str, **given: Any) -> Any:
        mine = led(name, task, **given)
        if not found:  # the others come while the first is being embedded
            found.append(task)
            found.extend(semantic.answers.find(*twin) for twin in twins[1:])
        return mine

    semantic.answers.shelf.look_up = late  # type: ignore[method-assign]
    hit = semantic.answers.find(*twins[0])
    semantic.answers.shelf.look_up = led  # type: ignore[method-assign]
    assert isinstance(hit, Hit)
    assert all(isinstance(one, Follow) for one in found[1:])
    assert sorted(hit.wake) == sorted(twin[0].ref for twin in twins[1:])
    again = [semantic.answers.find(*twin) for twin in twins[1:]]
    assert [one.answer.text for one in again if isinstance(one, Hit)] == [first] * 2
    assert semantic.embedder.asked == ["one", "uno"]


def test_meanings_are_each_users_own_unless_the_bot_shares(semantic: Place) -> None:
    semantic.embedder.alike = {"one": (0, 1.0), "uno": (0, 0.99), "eins": (0, 0.98)}
    first = semantic.ask("u1", "one")
    assert semantic.ask("u2", "uno") != first
    assert semantic.ask("u1", "eins") == first
    semantic.settings = BotSettings(cache="semantic", semantic_threshold=0.9, cache_shared=True)
    shared = semantic.ask("u3", "one", system="Another.")
    assert semantic.ask("u4", "uno", system="Another.") == shared
    assert semantic.ask("u4", "uno", system="Another.", bot=OTHER_BOT) != shared


@pytest.mark.parametrize(
    ("one", "other"),
    [("price of 5 apples", "price of 6 apples"), ("call me at +380501234567", "call me at +380507654321")],
    ids=["numbers", "personal"],
)
def test_questions_with_other_numbers_or_anything_personal_are_never_the_same(
    semantic: Place, one: str, other: str
) -> None:
    semantic.embedder.alike = {one: (0, 1.0), other: (0, 1.0)}
    first = semantic.ask("u1", one)
    assert semantic.ask("u1", other) != first
    assert not [text for text in semantic.embedder.asked if "+380" in text], "nor is it told to one more provider"


def test_only_one_question_by_itself_is_looked_up_by_its_meaning(semantic: Place) -> None:
    semantic.embedder.alike = {"one": (0, 1.0), "uno": (0, 1.0)}
    first = semantic.ask("u1", "one", context=["a", "b"])
    assert semantic.ask("u1", "uno", context=["a", "b"]) != first
    assert semantic.ask("u1", "one", temperature=0.5) != semantic.ask("u1", "uno", temperature=0.6)
    assert semantic.ask("u1", "one", system="A") != semantic.ask("u1", "uno", system="B")


def test_an_answer_that_is_gone_is_not_found_by_its_meaning(semantic: Place, scripts: Scripts) -> None:
    semantic.embedder.alike = {"one": (0, 1.0), "uno": (0, 1.0)}
    lead = semantic.find("u1", "one")
    assert isinstance(lead, Lead)
    semantic.answers.fill(lead, spoken("a"))
    scripts.shift_ms += 100_000
    too_old = semantic.find("u1", "uno", header="max-age=60")
    assert isinstance(too_old, Lead)
    semantic.answers.give_up(too_old)
    semantic.answers.shelf.drop(lead.key)
    assert isinstance(semantic.find("u1", "uno"), Lead)


def test_meanings_go_with_their_user_and_beyond_the_most(
    semantic: Place, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        semantic.ask("u1", f"question {'abcde'[number]}")
    semantic.ask("u2", "mine")
    assert rows(sessions) == 6
    semantic.answers.forget(BOT, "u1")
    assert rows(sessions) == 1
    from app.llm.cache import meanings

    monkeypatch.setitem(meanings.add.__kwdefaults__ or {}, "most", 2)
    for number in range(4):
        semantic.ask("u1", f"question {'fghi'[number]}")
    assert rows(sessions) == 2


def test_without_embeddings_the_exact_cache_goes_on(semantic: Place) -> None:
    semantic.embedder.broken = True
    first = semantic.ask("u1", "q")
    assert semantic.ask("u1", "q") == first


@pytest.mark.parametrize("away", ["the bot's keys", "the kept answers"])
def test_who_cannot_look_by_meaning_asks_all_the_same_and_nobody_waits_for_nothing(semantic: Place, away: str) -> None:
    semantic.embedder.alike = {"one": (0, 1.0), "uno": (0, 0.95)}
    semantic.ask("u1", "one")

    def fails(*_: object) -> Any:
        raise errors.Unavailable

    if away == "the bot's keys":
        semantic.embedder.model = fails  # type: ignore[method-assign]
    else:
        semantic.answers.shelf.read = fails  # type: ignore[method-assign]
    leader, follower = semantic.request("u1", "uno"), semantic.request("u1", "uno")
    lead = semantic.answers.find(*leader)
    assert isinstance(semantic.answers.find(*follower), Follow)
    assert isinstance(lead, Lead)
    assert semantic.answers.fill(lead, spoken("sí")) == [follower[0].ref]


def test_a_fault_while_looking_by_meaning_leaves_no_flight_behind(semantic: Place) -> None:
    def faulty(*_: object, **__: object) -> Any:
        raise ZeroDivisionError

    semantic.embedder.embed = faulty  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        semantic.find("u1", "one")
    assert semantic.answers.shelf._led == {}


def test_a_user_who_is_forgotten_while_his_question_is_looked_up_leaves_no_flight_behind(semantic: Place) -> None:
    semantic.embedder.alike = {"one": (0, 1.0), "uno": (0, 0.95)}
    semantic.ask("u1", "one")
    read = semantic.answers.shelf.read

    def late(name: str) -> Any:
        kept = read(name)
        semantic.answers.forget(BOT, "u1")
        return kept

    semantic.answers.shelf.read = late  # type: ignore[method-assign]
    leader = semantic.request("u1", "uno")
    semantic.answers.find(*leader)
    assert semantic.answers.shelf._led == {}


def test_without_pgvector_the_exact_cache_goes_on(place: Place) -> None:
    place.settings = BotSettings(cache="semantic")
    first = place.ask("u1", "q")
    assert place.ask("u1", "q") == first


def test_a_bot_that_keeps_nothing_that_was_said_has_no_meanings() -> None:
    given = cached.policy(BotSettings(cache="semantic", store_content="metadata"), "", personal=False)
    assert given is not None
    assert given["mode"] == "exact"


def rows(sessions: Sessions) -> int:
    import sqlalchemy

    with sessions.begin() as session:
        return int(session.execute(sqlalchemy.text("SELECT count(*) FROM cached_meanings")).scalar_one())
